// Aligned blocks in numbers: all aligned, none overlapping, all usable.
#include <malloc.h>

#include "check.h"

enum { COUNT = 2000 };

int main(void) {
    static void *blocks[COUNT];
    for (size_t align = 16; align <= 65536; align *= 2) {
        int count = align > 4096 ? 200 : COUNT;
        for (int i = 0; i < count; i++) {
            size_t size = i % 2 ? align : (size_t)i + 1;
            blocks[i] = aligned_alloc(align, size);
            CHECK(blocks[i] && aligned_to(blocks[i], align));
            CHECK(malloc_usable_size(blocks[i]) >= size);
            mark(blocks[i], size, (unsigned)i);
        }
        for (int i = 0; i < count; i++) {
            CHECK(marked(blocks[i], i % 2 ? align : (size_t)i + 1, (unsigned)i));
            // The alignment need not survive, the contents must.
            if (i % 16 == 0) {
                blocks[i] = realloc(blocks[i], 3 * align);
                CHECK(marked(blocks[i], (size_t)i + 1 < align ? (size_t)i + 1 : align, (unsigned)i));
            }
        }
        for (int i = 0; i < count; i++)
            free(blocks[i]);
    }
    // Many of one size, all alive: an allocator once gave 4 567 misaligned ones of these.
    enum { MANY = 100000 };
    static void *many[MANY];
    for (int i = 0; i < MANY; i++) {
        many[i] = aligned_alloc(512, 512);
        CHECK(many[i] && aligned_to(many[i], 512));
    }
    for (int i = 0; i < MANY; i++)
        free(many[i]);
    return 0;
}
