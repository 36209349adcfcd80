// What the tests do with plugin_deep.c: memory passes between it and the program.
#ifndef SWAP_H
#define SWAP_H

#include <dlfcn.h>

#include "check.h"

// The library's own, as found by its handle.
static void *function_of(void *library, const char *name) {
    void *function = dlsym(library, name);
    CHECK(function);
    return function;
}

static void release_by(void *library) {
    void (*release)(void *) = (void (*)(void *))function_of(library, "free");
    release(malloc(300));
}

static void swap_by(void *library) {
    void *(*swap)(void *) = (void *(*)(void *))function_of(library, "swap");
    for (int i = 0; i < 1000; i++) {
        void *p = swap(malloc((size_t)i * 100));
        CHECK(marked(p, 5000, 3));
        free(p);
    }
}

#endif
