// What a peak left behind goes back, though the program stays on the fast path from then on; and what it may want again
// stays meanwhile.
//: modes: preload norseq static
//: run: 16 200
//: run: 200 8000
//: run: 9000 260000
//: run: 2200000 30000000
//: run: 100 100
#include <malloc.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "check.h"

#define PEAK ((size_t)100 << 20)

static uint64_t state = 88172645463325252u;
static size_t low, high;
// Beside the heap.
static void **table;

static size_t size(void) {
    return low + (high > low ? next_random(&state) % (high - low) : 0);
}

static void peak(bool in_order) {
    size_t count = 0;
    for (size_t total = 0; total < PEAK; count++) {
        size_t n = size();
        table[count] = malloc(n);
        CHECK(table[count]);
        memset(table[count], 1, n);
        total += n;
    }
    for (size_t i = count - 1; i > 0 && !in_order; i--) {
        size_t j = next_random(&state) % (i + 1);
        void *swap = table[i];
        table[i] = table[j];
        table[j] = swap;
    }
    CHECK(resident_kb() > (long)(PEAK >> 10) * 9 / 10);
    for (size_t i = 0; i < count; i++)
        free(table[i]);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    low = (size_t)atol(argv[1]);
    high = (size_t)atol(argv[2]);
    size_t most = PEAK / low + 1;
    table = mmap(NULL, most * sizeof *table, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(table != MAP_FAILED);
    size_t live = 0;
    while (live < 8 << 20) {
        size_t n = size();
        void *p = malloc(n);
        CHECK(p);
        memset(p, 1, n);
        live += n;
    }
    for (int in_order = 0; in_order < 2; in_order++) {
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0) {
            long tables = resident_kb();
            peak(in_order);
            long kept = resident_kb() - tables;
            if (kept < (long)(PEAK >> 10) / 2)
                fprintf(stderr, "%ld KiB kept of what may be wanted again, in order: %d\n", kept, in_order);
            CHECK(kept > (long)(PEAK >> 10) / 2);
            CHECK(madvise(table, most * sizeof *table, MADV_DONTNEED) == 0);
            idle(15);
            kept = resident_kb() - tables;
            // Its page descriptors, one object here and there that waits in a sheaf and keeps its slab, and a few
            // pages.
            const long most_kb = (long)(PEAK >> 10) / 5;
            if (kept >= most_kb)
                fprintf(stderr, "%ld KiB kept of a peak, in order: %d\n", kept, in_order);
            CHECK(kept < most_kb);
            exit(0);
        }
    }
    for (int n = 0; n < 2; n++) {
        int status;
        CHECK(wait(&status) > 0 && status == 0);
    }
    return 0;
}
