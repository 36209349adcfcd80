// Loaded by libraries_deep.c.
#include <malloc.h>
#include <pthread.h>

#include "check.h"

static int refused;

// Of all sizes, and more than caches hold.
static void prepare(void) {
    for (size_t size = 16; size < 16 << 20; size *= 2) {
        void *blocks[200];
        for (int i = 0; i < 200; i++)
            refused += !(blocks[i] = malloc(size));
        for (int i = 0; i < 200; i++)
            free(blocks[i]);
    }
}

__attribute__((constructor)) static void begin(void) {
    CHECK(pthread_atfork(prepare, NULL, NULL) == 0);
}

int refusals(void) {
    return refused;
}

void *swap(void *old) {
    free(old);
    void *new = realloc(malloc(100), 5000);
    CHECK(new);
    CHECK(malloc_usable_size(new) >= 5000);
    mark(new, 5000, 3);
    return new;
}
