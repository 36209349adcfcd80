// What C, POSIX and glibc say of each function, edge cases included.
#include <errno.h>
#include <malloc.h>

#include "check.h"

static void sizes_of_zero(void) {
    void *a = malloc(0), *b = malloc(0);
    CHECK(a && b && a != b);
    free(a);
    free(b);
    void *c = calloc(0, 8), *d = calloc(8, 0);
    CHECK(c && d && c != d);
    free(c);
    free(d);
    void *e = realloc(NULL, 0);
    CHECK(e);
    CHECK(realloc(e, 0) == NULL);
    void *f = reallocarray(NULL, 0, 8);
    CHECK(f);
    CHECK(reallocarray(f, 8, 0) == NULL);
    void *g = memalign(64, 0);
    CHECK(g && aligned_to(g, 64));
    free(g);
    void *h = veil(&h);
    CHECK(posix_memalign(&h, 64, 0) == 0);
    free(h);
    free(valloc(0));
    free(pvalloc(0));
    free(NULL);
    CHECK(malloc_usable_size(NULL) == 0);
}

static void reallocs(void) {
    char *p = realloc(NULL, 100);
    CHECK(p);
    mark(p, 100, 1);
    p = realloc(p, 100000);
    CHECK(p && marked(p, 100, 1));
    mark(p, 100000, 2);
    p = realloc(p, 10000000);
    CHECK(p && marked(p, 100000, 2));
    // A refusal leaves the block as it was.
    CHECK(realloc(p, TOO_MUCH) == NULL);
    CHECK(realloc(p, BEYOND_PTRDIFF) == NULL);
    CHECK(realloc(p, SIZE_MAX) == NULL);
    CHECK(reallocarray(p, SIZE_MAX / 2, 3) == NULL);
    CHECK(marked(p, 100000, 2));
    p = reallocarray(p, 10, 5);
    CHECK(p && marked(p, 50, 2));
    free(p);
}

static void products(void) {
    CHECK(calloc(SIZE_MAX, 2) == NULL);
    CHECK(calloc(2, SIZE_MAX) == NULL);
    CHECK(calloc((size_t)1 << 32, (size_t)1 << 32) == NULL);
    CHECK(calloc(((size_t)1 << 32) + 1, ((size_t)1 << 32) - 1) == NULL);
    CHECK(reallocarray(NULL, (size_t)1 << 32, (size_t)1 << 32) == NULL);
    unsigned char *p = calloc(7, 11);
    for (int i = 0; i < 77; i++)
        CHECK(p[i] == 0);
    free(p);
}

static void alignments(void) {
    void *const untouched = veil(&errno);
    void *p = untouched;
    CHECK(posix_memalign(&p, 0, 8) == EINVAL);
    CHECK(posix_memalign(&p, 1, 8) == EINVAL);
    CHECK(posix_memalign(&p, 4, 8) == EINVAL);
    CHECK(posix_memalign(&p, 24, 8) == EINVAL);
    CHECK(posix_memalign(&p, sizeof(void *) * 3, 8) == EINVAL);
    CHECK(posix_memalign(&p, 64, TOO_MUCH) == ENOMEM);
    CHECK(posix_memalign(&p, 64, SIZE_MAX) == ENOMEM);
    CHECK(posix_memalign(&p, 64, SIZE_MAX - 63) == ENOMEM);
    CHECK(posix_memalign(&p, (size_t)1 << 62, 8) == ENOMEM);
    CHECK(posix_memalign(&p, (size_t)1 << 63, 8) == ENOMEM);
    CHECK(p == untouched);
    for (size_t align = sizeof(void *); align <= (size_t)1 << 23; align *= 2) {
        CHECK(posix_memalign(&p, align, 10) == 0 && aligned_to(p, align));
        free(p);
        p = aligned_alloc(align, align * 2);
        CHECK(p && aligned_to(p, align) && malloc_usable_size(p) >= align * 2);
        free(p);
        p = memalign(align, 10);
        CHECK(p && aligned_to(p, align));
        free(p);
    }
    for (size_t align = 1; align <= 16; align *= 2) {
        p = aligned_alloc(align, 40);
        CHECK(p && aligned_to(p, 16));
        free(p);
    }
    // memalign takes any alignment and rounds it up.
    for (size_t align = 0; align < 200; align++) {
        p = memalign(align, 100);
        CHECK(p);
        for (size_t power = 1; power <= align; power *= 2)
            CHECK(aligned_to(p, power));
        free(p);
    }
    CHECK(memalign(64, SIZE_MAX - 8) == NULL);
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    p = valloc(10);
    CHECK(p && aligned_to(p, page));
    free(p);
    p = pvalloc(page + 1);
    CHECK(p && aligned_to(p, page) && malloc_usable_size(p) >= 2 * page);
    memset(p, 1, 2 * page);
    free(p);
    CHECK(valloc(TOO_MUCH) == NULL && pvalloc(TOO_MUCH) == NULL);
    CHECK(pvalloc(SIZE_MAX) == NULL);
}

static void limits(void) {
    CHECK(malloc(TOO_MUCH) == NULL);
    CHECK(malloc(BEYOND_PTRDIFF) == NULL);
    CHECK(malloc(SIZE_MAX) == NULL);
    CHECK(malloc(SIZE_MAX - 4096) == NULL);
    CHECK(malloc((size_t)PTRDIFF_MAX) == NULL);
    CHECK(calloc(1, TOO_MUCH) == NULL);
}

static void reports(void) {
    CHECK(mallopt(M_MMAP_THRESHOLD, 1 << 20) == 1);
    CHECK(mallopt(M_TRIM_THRESHOLD, 1 << 20) == 1);
    CHECK(mallopt(M_ARENA_MAX, 1) == 1);
    void *small = malloc(100), *large = malloc(100 << 20);
    memset(large, 1, 100 << 20);
    struct mallinfo2 info = mallinfo2();
    CHECK(info.uordblks + info.hblkhd >= (100u << 20) + 100);
    CHECK(info.arena + info.hblkhd >= info.uordblks);
    free(large);
    struct mallinfo2 after = mallinfo2();
    CHECK(after.uordblks + after.hblkhd + (99u << 20) < info.uordblks + info.hblkhd);
    free(small);
    FILE *out = tmpfile();
    CHECK(out);
    CHECK(malloc_info(0, out) == 0);
    CHECK(malloc_info(1, out) == EINVAL);
    char text[64] = "";
    rewind(out);
    CHECK(fread(text, 1, 8, out) == 8 && strncmp(text, "<malloc ", 8) == 0);
    fclose(out);
}

int main(void) {
    sizes_of_zero();
    reallocs();
    products();
    alignments();
    limits();
    reports();
    return 0;
}
