// errno: set by a failure that says so through errno, touched by nothing else.
#include <errno.h>
#include <malloc.h>

#include "check.h"

#define FAILS(call, error)                                                                                             \
    do {                                                                                                               \
        errno = 0;                                                                                                     \
        CHECK((call) == NULL);                                                                                         \
        CHECK(errno == error);                                                                                         \
    } while (0)

int main(void) {
    FAILS(malloc(TOO_MUCH), ENOMEM);
    FAILS(malloc(BEYOND_PTRDIFF), ENOMEM);
    FAILS(malloc(SIZE_MAX), ENOMEM);
    FAILS(calloc(1, TOO_MUCH), ENOMEM);
    FAILS(calloc(SIZE_MAX, 16), ENOMEM);
    FAILS(realloc(NULL, TOO_MUCH), ENOMEM);
    FAILS(reallocarray(NULL, SIZE_MAX, 16), ENOMEM);
    FAILS(aligned_alloc(64, TOO_MUCH), ENOMEM);
    FAILS(memalign(64, TOO_MUCH), ENOMEM);
    FAILS(memalign(64, SIZE_MAX), ENOMEM);
    FAILS(memalign(((size_t)1 << 63) + 1, 1), EINVAL);
    FAILS(valloc(TOO_MUCH), ENOMEM);
    FAILS(pvalloc(TOO_MUCH), ENOMEM);
    FAILS(pvalloc(SIZE_MAX), ENOMEM);
    // Its result says it; glibc's errno does, too.
    void *p = NULL;
    errno = 0;
    CHECK(posix_memalign(&p, 64, TOO_MUCH) == ENOMEM && errno == ENOMEM && !p);
    p = malloc(10);
    FAILS(realloc(p, TOO_MUCH), ENOMEM);
    FAILS(realloc(p, BEYOND_PTRDIFF), ENOMEM);
    FAILS(reallocarray(p, SIZE_MAX, 16), ENOMEM);
    // Freeing by realloc is no failure.
    errno = 77;
    CHECK(realloc(p, 0) == NULL && errno == 77);
    CHECK(posix_memalign(&p, 3, 1) == EINVAL && errno == 77);

    // All sizes of success, and every free.
    enum { COUNT = 400 };
    static void *blocks[COUNT];
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < COUNT; i++) {
            size_t size = (size_t)1 << (i % 25);
            errno = 77;
            blocks[i] = i % 3 == 0 ? malloc(size) : i % 3 == 1 ? calloc(size, 1) : memalign(64, size);
            CHECK(blocks[i] && errno == 77);
            if (i % 5 == 0) {
                blocks[i] = realloc(blocks[i], size * 2);
                CHECK(blocks[i] && errno == 77);
            }
            CHECK(malloc_usable_size(blocks[i]) >= size && errno == 77);
        }
        for (int i = 0; i < COUNT; i++) {
            errno = 77;
            free(blocks[i]);
            CHECK(errno == 77);
        }
        errno = 77;
        free(NULL);
        CHECK(errno == 77);
    }
    malloc_trim(0);
    return 0;
}
