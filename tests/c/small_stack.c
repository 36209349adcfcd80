// A handler on a small stack of its own frees all that a program had: it needs less than 3 KiB.
//: modes: glibc preload norseq so archive static
#include <signal.h>
#include <sys/auxv.h>
#include <sys/mman.h>

#include "check.h"

enum { BLOCKS = 20000, ROOM = 16 << 10, FRAME = 3 << 10, USED = 3 << 10 };
static void *blocks[BLOCKS];

static void handler(int number) {
    (void)number;
    for (int i = 0; i < BLOCKS; i++)
        free(blocks[i]);
}

int main(void) {
    // What the kernel stores of the thread, and then ours; below it nothing is mapped.
    unsigned long stored = getauxval(AT_MINSIGSTKSZ);
    size_t size = ((stored ? stored : FRAME) + USED + 15) / 16 * 16;
    CHECK(size <= ROOM);
    char *room = mmap(NULL, 2 * ROOM, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(room != MAP_FAILED);
    size_t open = (size + 4095) / 4096 * 4096;
    char *end = room + 2 * ROOM;
    CHECK(!mprotect(end - open, open, PROT_READ | PROT_WRITE));
    stack_t stack = {.ss_sp = end - size, .ss_size = size};
    memset(end - open, 0x5a, open - size);
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
    CHECK(!sigaltstack(&stack, NULL) && !sigaction(SIGUSR1, &action, NULL));
    // Functions are bound at their first call, which takes as much again.
    free(veil(malloc(64)));
    for (size_t bytes = 16; bytes <= 256; bytes *= 2) {
        for (int i = 0; i < BLOCKS; i++)
            CHECK((blocks[i] = malloc(bytes)));
        raise(SIGUSR1);
    }
    for (char *at = end - open; at < end - size; at++)
        CHECK(*at == 0x5a);
    return 0;
}
