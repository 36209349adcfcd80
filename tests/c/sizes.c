// Every size up to 20 000 and the surroundings of all powers of two: alignment, usable size, and no overlap when
// every usable byte is written.
#include <malloc.h>

#include "check.h"

enum { GROUP = 32 };

static void group(size_t size) {
    void *blocks[GROUP];
    size_t usable[GROUP];
    int count = size > 1 << 20 ? 3 : GROUP;
    for (int i = 0; i < count; i++) {
        blocks[i] = malloc(size);
        CHECK(blocks[i]);
        CHECK(aligned_to(blocks[i], size >= 16 ? 16 : size >= 8 ? 8 : 1));
        usable[i] = malloc_usable_size(blocks[i]);
        CHECK(usable[i] >= size);
        mark(blocks[i], usable[i], (unsigned)i * 31);
    }
    for (int i = 0; i < count; i++) {
        CHECK(marked(blocks[i], usable[i], (unsigned)i * 31));
        CHECK(malloc_usable_size(blocks[i]) == usable[i]);
    }
    for (int i = 0; i < count; i++)
        free(blocks[i]);
}

int main(void) {
    for (size_t size = 0; size <= 1100; size++)
        group(size);
    for (size_t size = 1101; size <= 20000; size += 37)
        group(size);
    for (size_t power = 1 << 10; power <= 32 << 20; power *= 2)
        for (int off = -17; off <= 17; off += power > 1 << 18 ? 17 : 1)
            group(power + (size_t)off);
    return 0;
}
