// Reports need little stack: a thread with the least there is makes them all, and a program may end on a context of as
// much, where the heap is checked and the statistics are written.
//: modes: preload norseq so archive static
//: run: thread => says pages:
//: run: context
//: run: SLABWRIGHT_STATS=1 context => says statistics
#include <limits.h>
#include <malloc.h>
#include <pthread.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "check.h"

enum { LEAST = 16 << 10, SMALLER = 8 << 10, GUARD = 64 << 10 };
static FILE *out;

// Memory below which nothing is mapped.
static void *stack(size_t size) {
    char *room = mmap(NULL, GUARD + size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(room != MAP_FAILED && !mprotect(room + GUARD, size, PROT_READ | PROT_WRITE));
    return room + GUARD;
}

static void *report(void *argument) {
    struct mallinfo2 info = mallinfo2();
    CHECK(info.arena > 0 && info.uordblks + info.fordblks == info.arena);
    malloc_stats();
    CHECK(malloc_info(0, out) == 0);
    malloc_trim(0);
    return argument;
}

static void sums(void) {
    struct mallinfo2 info = mallinfo2();
    CHECK(info.arena > 0);
    _exit(0);
}

static void leave(void) {
    exit(0);
}

// Ends this process in `end` on a stack of `size` bytes.
static void on(size_t size, void (*end)(void)) {
    static ucontext_t context;
    CHECK(!getcontext(&context));
    context.uc_stack.ss_sp = stack(size);
    context.uc_stack.ss_size = size;
    makecontext(&context, end, 0);
    setcontext(&context);
}

int main(int argc, char **argv) {
    CHECK(argc == 2 && PTHREAD_STACK_MIN <= LEAST);
    void *some[1000];
    for (int i = 0; i < 1000; i++)
        CHECK((some[i] = malloc((size_t)(i + 1) * 37)));
    for (int i = 0; i < 1000; i += 2)
        free(some[i]);
    if (strcmp(argv[1], "context") == 0)
        on(LEAST, leave);
    static char text[64 << 10];
    CHECK((out = fmemopen(text, sizeof text, "w")));
    pthread_attr_t attributes;
    pthread_t thread;
    CHECK(!pthread_attr_init(&attributes) && !pthread_attr_setstack(&attributes, stack(LEAST), LEAST));
    CHECK(!pthread_create(&thread, &attributes, report, NULL) && !pthread_join(thread, NULL));
    fclose(out);
    CHECK(strstr(text, "</malloc>"));
    on(SMALLER, sums);
}
