// What the public test suites of other allocators ask of the standard calls, as far as glibc's own malloc does it too.
#include <errno.h>
#include <malloc.h>

#include "check.h"

// glibc: every call refuses every size beyond PTRDIFF_MAX.
static void too_large(void) {
    for (int shift = 0; shift < 14; shift++) {
        const size_t sizes[] = {SIZE_MAX - ((size_t)1 << shift) + 1, (size_t)PTRDIFF_MAX + ((size_t)1 << shift)};
        for (int i = 0; i < 2; i++) {
            size_t size = sizes[i];
            void *p = malloc(16);
            errno = 0;
            CHECK(!malloc(size) && errno == ENOMEM);
            errno = 0;
            CHECK(!realloc(p, size) && errno == ENOMEM);
            for (size_t count = 1; count <= 8; count *= 2) {
                errno = 0;
                CHECK(!calloc(count, size) && errno == ENOMEM);
                errno = 0;
                CHECK(!calloc(size, count) && errno == ENOMEM);
                errno = 0;
                CHECK(!reallocarray(p, count, size) && errno == ENOMEM);
                errno = 0;
                CHECK(!reallocarray(NULL, size, count) && errno == ENOMEM);
            }
            for (size_t align = sizeof(void *); align <= 64 << 10; align *= 4) {
                errno = 0;
                CHECK(!memalign(align, size) && errno == ENOMEM);
                errno = 0;
                CHECK(!aligned_alloc(align, size) && errno == ENOMEM);
                void *q = p;
                CHECK(posix_memalign(&q, align, size) == ENOMEM && q == p);
            }
            errno = 0;
            CHECK(!valloc(size) && errno == ENOMEM);
            errno = 0;
            CHECK(!pvalloc(size) && errno == ENOMEM);
            free(p);
        }
    }
}

// glibc, scudo: mallinfo counts what is handed out, and what came back.
static void counted(void) {
    void *blocks[20];
    struct mallinfo2 before = mallinfo2();
    for (int i = 0; i < 20; i++)
        blocks[i] = malloc(160);
    struct mallinfo2 during = mallinfo2();
    CHECK(during.uordblks >= before.uordblks + 20 * 160);
    for (int i = 0; i < 20; i++)
        free(blocks[i]);
    void *p = malloc(3000);
    size_t rest = mallinfo2().fordblks;
    free(p);
    CHECK(mallinfo2().fordblks >= rest + 3000);
}

// bionic: a block is aligned for every type that fits into it.
static void fits(void) {
    for (size_t size = 1; size <= 1024; size++) {
        void *blocks[8];
        size_t natural = size & -size;
        for (int i = 0; i < 8; i++) {
            blocks[i] = malloc(size);
            CHECK(aligned_to(blocks[i], natural < 16 ? natural : 16));
        }
        for (int i = 0; i < 8; i++)
            free(blocks[i]);
    }
}

// bionic, jemalloc: alignments that are none.
static void misaligned(void) {
    for (size_t align = 1; align; align *= 2) {
        void *p;
        if (align > 1)
            CHECK(posix_memalign(&p, align + 1, 1) == EINVAL);
        if (align < sizeof(void *))
            CHECK(posix_memalign(&p, align, 1) == EINVAL);
    }
    CHECK(!memalign(SIZE_MAX, 8));
    CHECK(!memalign(8, SIZE_MAX));
    CHECK(!aligned_alloc(8, SIZE_MAX));
    errno = 0;
    CHECK(!memalign((SIZE_MAX >> 1) + 2, 8) && errno == EINVAL);
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    CHECK(!pvalloc(-page) && !pvalloc(-page + 1));
    for (int i = 1; i < 6; i++) {
        void *p = pvalloc(page * (size_t)i - 1);
        CHECK(aligned_to(p, page) && malloc_usable_size(p) >= page * (size_t)i);
        free(p);
    }
}

// mimalloc, jemalloc: what a block may be used for is what it can be resized to without moving its contents' bytes.
static void usable(void) {
    for (size_t size = 1; size < 3 << 20; size += 1 + size / 3) {
        void *p = malloc(size);
        size_t all = malloc_usable_size(p);
        memset(p, 0x3c, all);
        p = realloc(p, all);
        CHECK(p && malloc_usable_size(p) >= all);
        for (size_t i = 0; i < all; i += 1 + all / 100)
            CHECK(((unsigned char *)p)[i] == 0x3c);
        p = realloc(p, size / 2 + 1);
        CHECK(p && ((unsigned char *)p)[size / 2] == 0x3c);
        free(p);
    }
}

// snmalloc, gperftools: many sizes at many alignments, all at once.
static void crossed(void) {
    enum { COUNT = 20 };
    for (size_t align = 16; align <= 1 << 20; align *= 2)
        for (size_t size = 1; size <= 1 << 20; size = size * 5 + 1) {
            void *blocks[COUNT];
            int count = align + size > 1 << 17 ? 3 : COUNT;
            for (int i = 0; i < count; i++) {
                CHECK(posix_memalign(&blocks[i], align, size) == 0 && aligned_to(blocks[i], align));
                mark(blocks[i], size < 100 ? size : 100, (unsigned)i);
            }
            for (int i = 0; i < count; i++) {
                CHECK(marked(blocks[i], size < 100 ? size : 100, (unsigned)i));
                free(blocks[i]);
            }
        }
}

int main(void) {
    too_large();
    counted();
    fits();
    misaligned();
    usable();
    crossed();
    return 0;
}
