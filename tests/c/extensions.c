// What glibc's malloc has not: C23, BSD, macOS and jemalloc names, and the header's own.
//: modes: preload norseq so archive static
#include <errno.h>
#include <malloc.h>
#include <slabwright.h>

#include "check.h"

// Weak, so that the program can be linked without the library and get it preloaded.
#pragma weak slw_malloc
#pragma weak slw_free
#pragma weak slw_calloc
#pragma weak slw_realloc
#pragma weak slw_reallocarray
#pragma weak slw_free_sized
#pragma weak slw_free_aligned_sized
#pragma weak slw_aligned_alloc
#pragma weak slw_posix_memalign
#pragma weak slw_usable_size
#pragma weak slw_good_size
#pragma weak slw_trim
#pragma weak slw_stats_print
#pragma weak slw_verify
#pragma weak slw_version
#define WEAK __attribute__((weak))
WEAK void free_sized(void *, size_t);
WEAK void free_aligned_sized(void *, size_t, size_t);
WEAK void *reallocf(void *, size_t);
WEAK size_t malloc_size(const void *);
WEAK size_t malloc_good_size(size_t);
WEAK void *mallocx(size_t, int);
WEAK void *rallocx(void *, size_t, int);
WEAK size_t xallocx(void *, size_t, size_t, int);
WEAK size_t sallocx(const void *, int);
WEAK size_t nallocx(size_t, int);
WEAK void dallocx(void *, int);
WEAK void sdallocx(void *, size_t, int);
WEAK void cfree(void *);
WEAK void *__libc_malloc(size_t);
WEAK void __libc_free(void *);
WEAK void *__libc_calloc(size_t, size_t);
WEAK void *__libc_realloc(void *, size_t);
WEAK void *__libc_memalign(size_t, size_t);
WEAK void *__libc_valloc(size_t);
WEAK void *__libc_pvalloc(size_t);
WEAK int __posix_memalign(void **, size_t, size_t);

static void misfits(void) {
    errno = 0;
    CHECK(aligned_alloc(24, 48) == NULL && errno == EINVAL);
    errno = 0;
    CHECK(aligned_alloc(0, 48) == NULL && errno == EINVAL);
    CHECK(mallopt(-100, 1) == 0);
    CHECK(mallopt(0, 1) == 0);
}

static int all_zero(const char *p, size_t from, size_t to) {
    for (size_t i = from; i < to; i++)
        if (p[i])
            return 0;
    return 1;
}

// jemalloc's calls, as they pass blocks among themselves and to malloc's. 0x40 asks for zeroes, small numbers are log2
// of an alignment.
static void jemalloc(void) {
    for (size_t size = 1; size < 3 << 20; size = size * 3 / 2 + 1) {
        char *p = malloc(size);
        memset(p, 1, size);
        free(p);
        CHECK((p = mallocx(size, 0x40)) && all_zero(p, 0, sallocx(p, 0)));
        memset(p, 1, sallocx(p, 0));
        size_t old = sallocx(p, 0);
        CHECK(old == malloc_usable_size(p) && xallocx(p, size, 100, 0) == old);
        CHECK((p = rallocx(p, size * 2, 0x40 | 8)) && aligned_to(p, 256));
        // What the old block could be used for is kept, what is beyond it reads zero.
        size_t all = sallocx(p, 0), kept = old < all ? old : all;
        CHECK(p[0] == 1 && p[kept - 1] == 1);
        CHECK(all_zero(p, kept, all));
        sdallocx(p, size * 2, 8);
        CHECK((p = mallocx(size, 12)) && aligned_to(p, 4096));
        dallocx(rallocx(p, size / 2, 12), 12);
        CHECK((p = rallocx(mallocx(size, 0), size + 1000, 1 << 20)));
        free(p);
    }
    CHECK(mallocx(TOO_MUCH, 0) == NULL);
}

int main(void) {
    misfits();
    jemalloc();
    for (size_t size = 0; size < 20000; size += 1 + size / 16) {
        void *p = malloc(size);
        CHECK(malloc_size(p) == malloc_usable_size(p) && malloc_size(p) >= size);
        CHECK(malloc_good_size(size) >= size && nallocx(size + 1, 0) > size);
        free_sized(p, size);
        p = malloc(size);
        sdallocx(p, size, 0);
        p = aligned_alloc(256, size);
        free_aligned_sized(p, 256, size);
        p = aligned_alloc(256, size);
        sdallocx(p, size, 8);
    }
    for (size_t size = 1 << 20; size <= 64 << 20; size *= 2) {
        void *p = malloc(size);
        CHECK(p && malloc_size(p) >= size);
        memset(p, 1, malloc_size(p));
        free_sized(p, size);
    }
    free_sized(NULL, 10);
    free_sized(NULL, 0);
    free_aligned_sized(NULL, 16, 10);
    CHECK(malloc_size(NULL) == 0);
    CHECK(nallocx(TOO_MUCH << 3, 0) == 0);
    CHECK(nallocx(100, 12) >= 4096);

    void *p = reallocf(NULL, 100);
    p = reallocf(p, 200);
    CHECK(p);
    errno = 0;
    CHECK(reallocf(p, TOO_MUCH) == NULL && errno == ENOMEM); // and p is free
    CHECK(reallocf(malloc(10), 0) == NULL);
    cfree(malloc(10));

    __libc_free(__libc_malloc(10));
    free(__libc_realloc(__libc_calloc(10, 10), 1000));
    p = __libc_memalign(128, 10);
    CHECK(aligned_to(p, 128));
    free(p);
    free(__libc_valloc(1));
    free(__libc_pvalloc(1));
    CHECK(__posix_memalign(&p, 128, 10) == 0 && aligned_to(p, 128));
    free(p);

    CHECK(strchr(slw_version(), '.'));
    p = slw_realloc(slw_malloc(10), 1000);
    CHECK(p && slw_usable_size(p) >= 1000 && slw_good_size(1000) >= 1000);
    slw_free(p);
    slw_free(slw_reallocarray(slw_calloc(3, 3), 5, 5));
    p = slw_aligned_alloc(64, 100);
    CHECK(aligned_to(p, 64));
    slw_free_aligned_sized(p, 64, 100);
    CHECK(slw_posix_memalign(&p, 64, 100) == 0);
    slw_free(p);
    slw_free_sized(slw_malloc(100), 100);
    CHECK(slw_verify() == 0);
    slw_trim();
    CHECK(slw_verify() == 0);
    slw_stats_print();
    malloc_stats();
    return 0;
}
