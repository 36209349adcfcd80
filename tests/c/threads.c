// Threads that allocate, hand blocks to each other and free each other's: no block is owned twice, no byte changes.
//: run: 1
//: run: 2
//: run: 8
//: run: 16
#include <malloc.h>
#include <pthread.h>

#include "check.h"

enum { SLOTS = 4096, STEPS = 200000 };

struct block {
    size_t size;
    unsigned seed;
};

// Who takes a slot's block out owns it.
static struct block *slots[SLOTS];
static int steps;

static size_t pick(uint64_t *state) {
    uint64_t kind = next_random(state) % 1000;
    if (kind < 900)
        return sizeof(struct block) + next_random(state) % 512;
    if (kind < 990)
        return sizeof(struct block) + next_random(state) % 16384;
    if (kind < 999)
        return sizeof(struct block) + next_random(state) % (256 << 10);
    return sizeof(struct block) + next_random(state) % (4 << 20);
}

static void retire(struct block *block) {
    if (!block)
        return;
    size_t rest = block->size - sizeof *block;
    size_t seen = rest > 8192 ? 8192 : rest;
    CHECK(marked(block + 1, seen, block->seed));
    if (block->seed % 4 == 0 && block->size < 16384) {
        block = realloc(block, block->size * 2);
        CHECK(block && marked(block + 1, seen, block->seed));
    }
    memset(block, 0xee, sizeof *block);
    free(block);
}

static void *worker(void *argument) {
    uint64_t state = 0x9e3779b97f4a7c15u * ((uintptr_t)argument + 1);
    for (int step = 0; step < steps; step++) {
        size_t size = pick(&state);
        struct block *block = step % 7 == 0 ? aligned_alloc(64, size) : step % 5 == 0 ? calloc(1, size) : malloc(size);
        CHECK(block);
        if (step % 7 && step % 5 == 0) {
            for (size_t i = 0; i < size && i < 1024; i++)
                CHECK(((unsigned char *)block)[i] == 0);
        }
        block->size = size;
        block->seed = (unsigned)next_random(&state);
        size_t rest = size - sizeof *block;
        mark(block + 1, rest > 8192 ? 8192 : rest, block->seed);
        retire(__atomic_exchange_n(&slots[next_random(&state) % SLOTS], block, __ATOMIC_ACQ_REL));
    }
    return NULL;
}

int main(int argc, char **argv) {
    int count = argc > 1 ? atoi(argv[1]) : 4;
    pthread_t threads[64];
    steps = STEPS / count;
    for (intptr_t i = 0; i < count; i++)
        CHECK(pthread_create(&threads[i], NULL, worker, (void *)i) == 0);
    for (int i = 0; i < count; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    for (int i = 0; i < SLOTS; i++)
        retire(slots[i]);
    return 0;
}
