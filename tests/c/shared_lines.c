//: modes: preload so archive static
//: run: SLABWRIGHT_VERIFY=1
//: run: SLABWRIGHT_VERIFY=1 alone
// Small blocks of threads on different CPUs share no cache line, whoever made them and wherever the threads were
// before.
#include "check.h"
#include <pthread.h>

enum { SIZES = 6, EACH = 100, BLOCKS = SIZES * EACH };
static const size_t sizes[SIZES] = {8, 16, 24, 32, 40, 48};

static int cpus[2];
static char *kept[BLOCKS], *given[BLOCKS];

// Neighbours are kept and given away.
static void make(void) {
    for (int i = 0; i < BLOCKS; i++) {
        kept[i] = malloc(sizes[i % SIZES]);
        given[i] = malloc(sizes[i % SIZES]);
        CHECK(kept[i] && given[i]);
        mark(kept[i], sizes[i % SIZES], (unsigned)i);
    }
}

static int shares_line(const char *block, size_t size) {
    uintptr_t first = (uintptr_t)block / 64, last = ((uintptr_t)block + size - 1) / 64;
    for (int i = 0; i < BLOCKS; i++)
        if ((uintptr_t)kept[i] / 64 <= last && ((uintptr_t)kept[i] + sizes[i % SIZES] - 1) / 64 >= first)
            return 1;
    return 0;
}

static int count_shared(void) {
    int shared = 0;
    for (int i = 0; i < BLOCKS; i++) {
        given[i] = malloc(sizes[i % SIZES]);
        shared += shares_line(given[i], sizes[i % SIZES]);
    }
    return shared;
}

// Frees on another CPU what the main thread made, and then allocates as much.
static void *free_given(void *shared) {
    run_on(cpus[1]);
    for (int i = 0; i < BLOCKS; i++)
        free(given[i]);
    *(int *)shared = count_shared();
    for (int i = 0; i < BLOCKS; i++)
        free(given[i]);
    return NULL;
}

// Makes blocks beside those that stay behind, and is moved.
static void *make_and_move(void *shared) {
    run_on(cpus[0]);
    make();
    return free_given(shared);
}

// Where the machine is busy with other things the sheaves are called back between one refill and the next: the best of
// some rounds counts. A few lines may be shared where a slab was one CPU's before and is another one's now.
static void expect_apart(void *(*work)(void *), int make_first) {
    int least = BLOCKS;
    for (int round = 0; round < 5 && least >= BLOCKS / 30; round++) {
        pthread_t other;
        int shared = -1;
        if (make_first)
            make();
        CHECK(!pthread_create(&other, NULL, work, &shared));
        CHECK(!pthread_join(other, NULL));
        for (int i = 0; i < BLOCKS; i++) {
            CHECK(marked(kept[i], sizes[i % SIZES], (unsigned)i));
            free(kept[i]);
        }
        CHECK(shared >= 0);
        if (shared < least)
            least = shared;
    }
    CHECK(least < BLOCKS / 30);
}

// A thread that was moved for good has its blocks back like others in the end.
static void *settle(void *again) {
    run_on(cpus[0]);
    static void *blocks[20000];
    for (int i = 0; i < 20000; i++)
        CHECK(blocks[i] = malloc(16));
    run_on(cpus[1]);
    for (int round = 0; round < 20; round++)
        for (int i = 0; i < 20000; i++) {
            free(blocks[i]);
            CHECK(blocks[i] = malloc(16));
        }
    for (int i = 0; i < 20000; i++) {
        void *old = blocks[i];
        free(old);
        blocks[i] = malloc(16);
        *(int *)again += old == blocks[i];
    }
    for (int i = 0; i < 20000; i++)
        free(blocks[i]);
    return NULL;
}

// One thread alone shares lines with nobody: what it frees is what it gets next, wherever it is.
static void alone(void) {
    run_on(cpus[0]);
    char *before = veil(malloc(16));
    run_on(cpus[1]);
    free(before);
    char *after = veil(malloc(16));
    CHECK(before == after);
    free(after);
}

int main(int argc, char **argv) {
    (void)argv;
    cpu_set_t all;
    int found = 0;
    CHECK(!sched_getaffinity(0, sizeof all, &all));
    for (int cpu = 0; cpu < CPU_SETSIZE && found < 2; cpu++)
        if (CPU_ISSET(cpu, &all))
            cpus[found++] = cpu;
    if (found < 2) {
        puts("on one CPU there is nothing to see");
        return 0;
    }
    if (argc > 1) {
        alone();
        return 0;
    }
    run_on(cpus[0]);
    expect_apart(free_given, 1);
    expect_apart(make_and_move, 0);
    pthread_t other;
    int again = 0;
    CHECK(!pthread_create(&other, NULL, settle, &again));
    CHECK(!pthread_join(other, NULL));
    CHECK(again > 15000);
    return 0;
}
