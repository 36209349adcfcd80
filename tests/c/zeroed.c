// calloc reads zero wherever its memory comes from, to the last byte that may be used, and does not touch large blocks.
/* rows: C9 */
#include <malloc.h>

#include "check.h"

static void all_zero(const unsigned char *p, size_t size, size_t step) {
    for (size_t i = 0; i < size; i += step)
        CHECK(p[i] == 0);
    CHECK(size == 0 || p[size - 1] == 0);
}

int main(void) {
    // Dirty memory of each size comes back.
    for (size_t size = 1; size <= 48 << 20; size += 1 + size / 3) {
        void *blocks[16];
        int count = size > 1 << 20 ? 2 : 16;
        for (int round = 0; round < 3; round++) {
            for (int i = 0; i < count; i++) {
                blocks[i] = malloc(size);
                memset(blocks[i], 0xaa, malloc_usable_size(blocks[i]));
            }
            for (int i = 0; i < count; i++)
                free(blocks[i]);
            for (int i = 0; i < count; i++) {
                blocks[i] = calloc(1, size);
                CHECK(blocks[i]);
                all_zero(blocks[i], malloc_usable_size(blocks[i]), size > 1 << 16 ? 509 : 1);
                memset(blocks[i], 0x55, malloc_usable_size(blocks[i]));
            }
            for (int i = 0; i < count; i++)
                free(blocks[i]);
        }
    }
    long before = resident_kb();
    unsigned char *large = calloc(1 << 10, 1 << 20);
    CHECK(large);
    CHECK(resident_kb() - before < 16 << 10);
    all_zero(large, (size_t)1 << 30, 64 << 20);
    free(large);
    return 0;
}
