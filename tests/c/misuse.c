// Wrong use ends with one line that says what it was.
//: modes: preload norseq so archive static
//: run: double 24 => abort says double free
//: run: double 500 => abort says double free
//: run: double 8000 => abort says double free
//: run: double 40000 => abort says double free
//: run: double 5000000 => abort says double free
//: run: between 24 => abort says double free
//: run: between 500 => abort says double free
//: run: between 40000 => abort says double free
//: run: between 5000000 => abort says double free
//: run: later 100 => abort says double free
//: run: SLABWRIGHT_RSEQ=0 prompt 24 => abort says double free
//: run: reused 24 => abort says double free
//: run: returned 1000 => abort says double free
//: run: threads 24 => abort says double free
//: run: interior 24 => abort says middle of a block
//: run: interior 4000 => abort says middle of a block
//: run: interior 40000 => abort says middle of a block
//: run: interior 5000000 => abort says middle of a block
//: run: stack 1 => abort says never allocated
//: run: static 1 => abort says never allocated
//: run: wild 1 => abort says never allocated
//: run: realloc 100 => abort says slabwright:
//: run: realloc 40000 => abort says slabwright:
//: run: size 40000 => abort says slabwright:
//: run: SLABWRIGHT_ABORT=0 double 24 => says double free
//: run: SLABWRIGHT_ABORT=0 interior 40000 => says middle of a block
//: run: SLABWRIGHT_ABORT=0 stack 1 => says never allocated
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"

static char data[256] __attribute__((aligned(64)));

static char *shared;
static size_t shared_size;
static atomic_int turn;

/* Binds the thread to the `nth` of the CPUs that the program may use, or to the last of fewer. */
static void bind_to(int nth) {
    static cpu_set_t all;
    if (CPU_COUNT(&all) == 0)
        CHECK(sched_getaffinity(0, sizeof all, &all) == 0);
    int cpu = 0;
    for (int i = 0; i < CPU_SETSIZE && nth >= 0; i++)
        if (CPU_ISSET(i, &all)) {
            cpu = i;
            nth--;
        }
    run_on(cpu);
}

static void wait_for(int what) {
    while (atomic_load(&turn) != what)
        sched_yield();
}

/* The other of two threads that free the same block, each on a CPU of its own, and both allocate after that. */
static void *other_thread(void *unused) {
    bind_to(1);
    wait_for(1);
    free(veil(shared));
    atomic_store(&turn, 2);
    wait_for(3);
    char *mine = malloc(shared_size);
    printf("%p\n", (void *)mine);
    _exit(3);
    return unused;
}

/* A block of `size` bytes that was freed, and whose memory went back to the system since, though its neighbours' did not. */
static char *returned(size_t size) {
    enum { COUNT = 60000, SLAB = 8192 };
    static char *all[COUNT];
    static bool kept[COUNT];
    for (int i = 0; i < COUNT; i++)
        memset(all[i] = malloc(size), 1, size);
    // The first block of each third slab stays.
    for (int i = 0; i < COUNT; i++) {
        kept[i] = (uintptr_t)all[i] % SLAB < size && (uintptr_t)all[i] / SLAB % 3 == 0;
        if (!kept[i])
            free(all[i]);
    }
    for (int tries = 0; tries < 300; tries++) {
        // Who never asks for anything is not told that time has passed.
        for (size_t other = 300000; other < 303000; other += 1000)
            free(veil(malloc(other)));
        usleep(50000);
        for (int i = 0; i < COUNT; i++) {
            unsigned char resident = 1;
            char *page = all[i] - (uintptr_t)all[i] % 4096;
            bool last = (uintptr_t)all[i] / SLAB % 3 == 0 && !kept[i];
            if (last && mincore(page, 4096, &resident) == 0 && !(resident & 1))
                return all[i];
        }
    }
    CHECK(!"memory goes back");
    return NULL;
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    const char *what = argv[1];
    size_t size = (size_t)atol(argv[2]);
    char local[256] __attribute__((aligned(64)));
    // Neighbours, so that the block is not alone in what holds it.
    void *before = malloc(size);
    char *p = veil(malloc(size));
    void *after = malloc(size);
    CHECK(before && p && after);
    memset(p, 0x41, size);
    if (!strcmp(what, "double")) {
        free(p);
        free(veil(p));
    } else if (!strcmp(what, "between")) {
        free(p);
        free(before);
        free(veil(p));
    } else if (!strcmp(what, "prompt")) {
        free(p);
        free(before);
        free(veil(p));
        _exit(3);
    } else if (!strcmp(what, "reused")) {
        // No block has two owners: the program ends before that.
        free(p);
        free(before);
        free(veil(p));
        char *one = malloc(size), *two = malloc(size), *three = malloc(size);
        printf("%p %p %p\n", (void *)one, (void *)two, (void *)three);
        _exit(3);
    } else if (!strcmp(what, "threads")) {
        // So that no slow path is taken later on.
        for (int nth = 5; nth >= 0; nth--) {
            void *some[64];
            bind_to(nth % 2);
            for (int i = 0; i < 64; i++)
                some[i] = veil(malloc(size));
            for (int i = 0; i < 64; i++)
                free(some[i]);
        }
        shared = p;
        shared_size = size;
        pthread_t other;
        CHECK(pthread_create(&other, NULL, other_thread, NULL) == 0);
        free(p);
        atomic_store(&turn, 1);
        wait_for(2);
        char *mine = malloc(size);
        printf("%p\n", (void *)mine);
        atomic_store(&turn, 3);
        pthread_join(other, NULL);
    } else if (!strcmp(what, "returned")) {
        free(veil(returned(size)));
        _exit(3);
    } else if (!strcmp(what, "later")) {
        free(p);
        for (int i = 0; i < 10000; i++) {
            void *other = malloc(16 + (size_t)i % 3 * size * 2);
            free(other);
        }
        free(veil(p));
    } else if (!strcmp(what, "interior")) {
        free(veil(p + 16));
    } else if (!strcmp(what, "stack")) {
        free(veil(local + 64));
    } else if (!strcmp(what, "static")) {
        free(veil(data + 64));
    } else if (!strcmp(what, "wild")) {
        free(veil((void *)0x123456789abc0));
    } else if (!strcmp(what, "realloc")) {
        free(p);
        p = realloc(veil(p), size * 100);
    } else if (!strcmp(what, "size")) {
        free(p);
        CHECK(malloc_usable_size(veil(p)) < 1 << 30);
    } else {
        CHECK(!"a known misuse");
    }
    return 0;
}
