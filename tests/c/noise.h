// A thread that takes and gives back locks of the heap until it is told to stop.
#ifndef NOISE_H
#define NOISE_H

#include "check.h"

static volatile int stop;

// One block of 64 is replaced by another, of up to `most` bytes.
static inline void replace_one(void *blocks[64], uint64_t *random, size_t most) {
    unsigned i = next_random(random) % 64;
    free(blocks[i]);
    blocks[i] = malloc(next_random(random) % most);
}

// The argument makes one thread's sizes differ from another's.
static void *noise(void *argument) {
    uint64_t random = 4711 + (uintptr_t)argument;
    void *blocks[64] = {0};
    while (!stop)
        replace_one(blocks, &random, 300000);
    for (unsigned i = 0; i < 64; i++)
        free(blocks[i]);
    return NULL;
}

#endif
