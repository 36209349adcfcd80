// Memory that was freed goes back to the system when asked for.
//: modes: preload norseq so archive static
//: run: 64
//: run: 1000
//: run: 5000
//: run: 30000
//: run: 300000
//: run: 9000000
#include <malloc.h>

#include "check.h"

int main(int argc, char **argv) {
    size_t size = argc > 1 ? (size_t)atol(argv[1]) : 1000;
    size_t count = (300 << 20) / size;
    void **blocks = malloc(count * sizeof *blocks);
    free(malloc(size));
    malloc_trim(0);
    long before = resident_kb();
    for (size_t i = 0; i < count; i++) {
        blocks[i] = malloc(size);
        memset(blocks[i], 1, size);
    }
    CHECK(resident_kb() > before + (250 << 10));
    for (size_t i = 0; i < count; i++)
        free(blocks[i]);
    CHECK(malloc_trim(0) == 1);
    // All of it.
    CHECK(malloc_trim(0) == 0);
    // The table of pointers is still there.
    long kept = resident_kb() - before - (long)(count * sizeof *blocks >> 10);
    if (kept > 8 << 10)
        fprintf(stderr, "%ld KiB kept\n", kept);
    CHECK(kept < 8 << 10);
    free(blocks);
    return 0;
}
