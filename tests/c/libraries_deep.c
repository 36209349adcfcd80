// Libraries that are not bound in the usual order, as PHP's and Apache's modules, and functions asked for by a
// library's handle, as Python's ctypes does: memory passes between them and the program.
//: modes: glibc preload norseq so
//: plugin: plugin_deep.c
//: run: deep
//: run: handle
//: run: libc
//: run: fork
//: run: handlers
#include <gnu/lib-names.h>
#include <pthread.h>
#include <string.h>
#include <sys/wait.h>

#include "check.h"
#include "swap.h"

enum { THREADS = 8 };

static pthread_barrier_t barrier;

static void *deep(void *unused) {
    (void)unused;
    pthread_barrier_wait(&barrier);
    void *library = dlopen(getenv("PLUGIN"), RTLD_NOW | RTLD_DEEPBIND);
    CHECK(library);
    swap_by(library);
    release_by(library);
    return NULL;
}

static void *handle(void *unused) {
    (void)unused;
    pthread_barrier_wait(&barrier);
    void *library = dlopen(getenv("PLUGIN"), RTLD_LAZY);
    CHECK(library);
    release_by(library);
    swap_by(library);
    return NULL;
}

/// All at once, before anything else was loaded.
static void in_threads(void *(*work)(void *)) {
    pthread_t threads[THREADS];
    CHECK(pthread_barrier_init(&barrier, NULL, THREADS) == 0);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, work, NULL) == 0);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
}

static void libc(void) {
    void *library = dlopen(LIBC_SO, RTLD_LAZY);
    CHECK(library);
    void *(*obtain)(size_t) = (void *(*)(size_t))function_of(library, "malloc");
    free(obtain(100000));
    void (*release)(void *) = (void (*)(void *))function_of(library, "free");
    release(strdup("from the C library"));
    const char *names[] = {"malloc", "free", "calloc", "realloc", "posix_memalign", "malloc_usable_size", "malloc_trim"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        CHECK(dlsym(library, names[i]) == dlsym(RTLD_DEFAULT, names[i]));
    // All else is as before.
    CHECK(dlsym(library, "strdup") == dlsym(RTLD_DEFAULT, "strdup"));
    CHECK(dlsym(library, "no such name") == NULL && dlerror());
    CHECK(dlopen("no such library", RTLD_NOW) == NULL && strstr(dlerror(), "no such library"));
    // In a name space of its own is another C library, with a heap of its own.
    void *apart = dlmopen(LM_ID_NEWLM, getenv("PLUGIN"), RTLD_NOW);
    CHECK(apart);
    void *(*swap)(void *) = (void *(*)(void *))function_of(apart, "swap");
    swap(swap(NULL));
}

static volatile int stop;

static void *noise(void *unused) {
    while (!stop)
        free(malloc(100000));
    return unused;
}

// Handlers of fork that such a library registers run while the heap is there.
static void handlers(void) {
    void *library = dlopen(getenv("PLUGIN"), RTLD_NOW | RTLD_DEEPBIND);
    CHECK(library);
    int (*refusals)(void) = (int (*)(void))function_of(library, "refusals");
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, noise, NULL) == 0);
    for (int i = 0; i < 5; i++) {
        pid_t child = fork();
        if (child == 0)
            _exit(0);
        int status;
        CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    }
    CHECK(refusals() == 0);
    stop = 1;
    CHECK(pthread_join(thread, NULL) == 0);
}

int main(int count, char **arguments) {
    CHECK(count == 2);
    if (!strcmp(arguments[1], "deep"))
        in_threads(deep);
    if (!strcmp(arguments[1], "handle"))
        in_threads(handle);
    if (!strcmp(arguments[1], "libc"))
        libc();
    if (!strcmp(arguments[1], "handlers"))
        handlers();
    if (!strcmp(arguments[1], "fork")) {
        pid_t child = fork();
        CHECK(child >= 0);
        in_threads(child ? deep : handle);
        if (child == 0)
            _exit(0);
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
    }
    return 0;
}
