// A heap that is used before the C library has started, as by who resolves a function, becomes like any other of a
// program of one thread: what is handed out next is not read, so that a write to it is not seen. (That it is read costs
// a fifth of the time of many live blocks.)
//: modes: preload so archive
//: run: => silent
#include "check.h"

static void *early;

static int one(void) {
    return 1;
}

static int (*resolve(void))(void) {
    early = malloc(100);
    return one;
}

int first(void) __attribute__((ifunc("resolve")));

int main(void) {
    static void *blocks[1000];
    CHECK(first() == 1 && early);
    // Slow paths, which look whether there is one thread.
    for (int i = 0; i < 1000; i++)
        CHECK((blocks[i] = malloc(1000)));
    for (int i = 0; i < 1000; i++)
        free(blocks[i]);
    size_t *block = malloc(1000);
    CHECK(block);
    free(block);
    *(volatile size_t *)veil(block) = 5;
    CHECK(malloc(1000) == block);
    free(block);
    free(early);
    return 0;
}
