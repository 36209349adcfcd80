/*
 * The fast paths of the C and C++ interface, for step.c to count their instructions between two marks.
 */
#include <new>
#include <stdlib.h>
#include <string.h>

/* Stops for whoever traces this: what follows is `name`, up to the next mark, which has none. */
static inline void mark(const char *name) { __asm__ volatile("int3" : : "a"(name) : "memory"); }

#define COUNTED(name, work) (mark(name), (work), mark(nullptr))

int main()
{
    void *volatile block;
    for (int i = 0; i < 20; i++) {
        COUNTED("malloc-64", block = malloc(64));
        COUNTED("free-64", free(block));
        COUNTED("calloc-64", block = calloc(1, 64));
        COUNTED("realloc-same-class", block = realloc(block, 60));
        free(block);
        COUNTED("aligned_alloc-64", block = aligned_alloc(64, 64));
        free(block);
        COUNTED("new-64", block = operator new(64));
        COUNTED("delete-64", operator delete(block, (size_t)64));
        COUNTED("malloc-40k", block = malloc(40 << 10));
        COUNTED("realloc-40k", block = realloc(block, 39 << 10));
        COUNTED("free-40k", free(block));
        COUNTED("aligned_alloc-40k-64", block = aligned_alloc(64, 40 << 10));
        free(block);
        COUNTED("aligned_alloc-40k-4096", block = aligned_alloc(4096, 40 << 10));
        free(block);
    }
    // While much lies idle: often enough that two looks at the clock see the same time, though each step is slow.
    block = memset(malloc(64 << 20), 1, 64 << 20);
    free(block);
    for (int i = 0; i < 60; i++) {
        COUNTED("malloc-64-while-much-idles", block = malloc(64));
        free(block);
    }
}
