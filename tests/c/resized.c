// realloc keeps the contents through every path: in place, by copy, by moving pages, between layers, up and down.
#include <malloc.h>

#include "check.h"

int main(void) {
    uint64_t state = 88172645463325252u;
    // Up and down by random steps over all layers.
    for (int block = 0; block < 40; block++) {
        size_t size = 1 + next_random(&state) % 64;
        unsigned char *p = malloc(size);
        mark(p, size, (unsigned)block);
        for (int step = 0; step < 40; step++) {
            size_t next = 1 + next_random(&state) % ((size_t)1 << (4 + next_random(&state) % 21));
            p = realloc(p, next);
            CHECK(p && malloc_usable_size(p) >= next);
            CHECK(marked(p, size < next ? size : next, (unsigned)block));
            mark(p, next, (unsigned)block);
            size = next;
        }
        free(p);
    }
    // Growth as vectors do it, with others in the way.
    size_t size = 16;
    unsigned char *p = malloc(size);
    void *others[32] = {0};
    mark(p, size, 3);
    for (int step = 0; size < (size_t)256 << 20; step++) {
        free(others[step % 32]);
        others[step % 32] = malloc(size);
        size_t next = size * 3 / 2;
        p = realloc(p, next);
        CHECK(p);
        for (size_t i = 0; i < size; i += 4093)
            CHECK(p[i] == (unsigned char)(3 + i * 7));
        mark(p + size, next - size, 3 + (unsigned)size * 7);
        size = next;
    }
    p = realloc(p, 10);
    CHECK(marked(p, 10, 3));
    free(p);
    for (int i = 0; i < 32; i++)
        free(others[i]);
    return 0;
}
