// kmalloc and caches, under the kernel's names.
/* rows: F1 F2 F3 F4 F5 G6 G7 G8 G9 G10 G11 G12 G13 G16 G18 B5 B6 C6 C7 C9 */
//: modes: so archive static
//: run:
//: run: SLABWRIGHT_RSEQ=0
#define SLW_KERNEL_NAMES
#include <slabwright.h>

#include <errno.h>

#include "check.h"

static int reads(const unsigned char *p, int byte, size_t bytes) {
    for (size_t n = 0; n < bytes; n++)
        if (p[n] != byte)
            return 0;
    return 1;
}

static unsigned constructed;

struct thing {
    unsigned long magic, uses, line[5];
};

static void construct(void *object) {
    struct thing *thing = object;
    thing->magic = 0xc0ffee;
    thing->uses = 0;
    constructed++;
}

int main(void) {
    // Any size, from one byte to beyond every class, every run, every block.
    for (size_t size = 1; size <= 16 << 20; size = size + size / 7 + 1) {
        unsigned char *p = kzalloc(size, GFP_KERNEL);
        CHECK(p && reads(p, 0, size) && ksize(p) >= size);
        memset(p, 0xab, size);
        p = krealloc(p, size * 2, GFP_KERNEL);
        CHECK(p && reads(p, 0xab, size));
        kfree(p);
        p = kmalloc(size, GFP_KERNEL);
        CHECK(p && (size < 16 || (unsigned long)p % 16 == 0));
        free(p);
        p = malloc(size);
        kfree(p);
    }
    kfree(NULL);
    CHECK(krealloc(kmalloc(10, GFP_KERNEL), 0, GFP_KERNEL) == NULL);
    errno = 0;
    CHECK(!kmalloc_array((size_t)-1 / 8, 16, GFP_KERNEL) && errno == ENOMEM);
    unsigned *array = kcalloc(100, sizeof *array, GFP_KERNEL);
    CHECK(array && reads((unsigned char *)array, 0, 400));
    kfree(array);

    // Low addresses for any size, and still low after krealloc.
    for (size_t size = 1; size <= 1 << 20; size *= 3) {
        unsigned char *low = kmalloc(size, GFP_KERNEL | __GFP_DMA32);
        CHECK(low && (unsigned long)low + size <= 1ul << 32 && ksize(low) >= size);
        memset(low, 0x31, size);
        low = krealloc(low, size * 2, GFP_KERNEL | __GFP_DMA32);
        CHECK(low && (unsigned long)low + size * 2 <= 1ul << 32 && reads(low, 0x31, size));
        kfree(low);
        low = kmalloc(size, GFP_KERNEL | __GFP_DMA32);
        free(low);
    }
    CHECK(!kmalloc(8, GFP_KERNEL | __GFP_HIGHMEM | __GFP_NOWARN) && errno == EINVAL);
    errno = 0;
    CHECK(!kmalloc(64 << 20, GFP_KERNEL | __GFP_DMA32) && errno == ENOMEM);
    char *dma = kmalloc(100, GFP_KERNEL | __GFP_DMA);
    CHECK(dma ? (unsigned long)dma < 16ul << 20 : errno == ENOMEM);
    kfree(dma);

    // A cache with a constructor: once an object, and its state is kept over free.
    struct kmem_cache *things = kmem_cache_create("thing", sizeof(struct thing), 0, SLAB_HWCACHE_ALIGN, construct);
    CHECK(things && kmem_cache_size(things) == sizeof(struct thing));
    struct thing *held[500];
    for (int round = 0; round < 4; round++) {
        for (int n = 0; n < 500; n++) {
            held[n] = kmem_cache_alloc(things, GFP_KERNEL);
            CHECK(held[n] && held[n]->magic == 0xc0ffee && (unsigned long)held[n] % 64 == 0);
            held[n]->uses++;
        }
        for (int n = 0; n < 500; n++)
            kmem_cache_free(things, held[n]);
    }
    CHECK(constructed >= 500 && constructed < 1200);
    // Last in, first out.
    struct thing *last = kmem_cache_alloc(things, GFP_KERNEL);
    CHECK(last->uses >= 1);
    kmem_cache_free(things, last);
    CHECK(kmem_cache_alloc(things, GFP_KERNEL) == last);
    kmem_cache_free(things, last);
    kmem_cache_shrink(things);
    CHECK(kmem_cache_destroy(things) == 0);

    // Merging: two caches of one shape share slabs; a flag keeps one apart. Both names are found.
    struct kmem_cache *a = kmem_cache_create("a", 200, 8, 0, NULL);
    struct kmem_cache *b = kmem_cache_create("b", 200, 8, 0, NULL);
    struct kmem_cache *c = kmem_cache_create("c", 200, 8, SLAB_NO_MERGE, NULL);
    CHECK(a && b && c && a != b);
    void *object = kmem_cache_alloc(a, GFP_KERNEL);
    kmem_cache_free(b, object);
    CHECK(kmem_cache_alloc(b, GFP_KERNEL) == object);
    kmem_cache_free(a, object);
    struct kmem_cache *found = kmem_cache_find("b");
    CHECK(found == b && !kmem_cache_find("nobody") && errno == ENOENT);
    CHECK(!kmem_cache_destroy(found) && !kmem_cache_destroy(a) && !kmem_cache_destroy(c));
    object = kmem_cache_zalloc(b, GFP_KERNEL);
    CHECK(object && reads(object, 0, 200));
    kfree(object);
    CHECK(!kmem_cache_destroy(b));

    // Colours: slabs of one cache start their objects at different cache lines.
    struct kmem_cache *coloured = kmem_cache_create("coloured", 700, 0, SLAB_NO_MERGE, NULL);
    unsigned long lines = 0;
    void *many[200];
    for (int n = 0; n < 200; n++) {
        many[n] = kmem_cache_alloc(coloured, GFP_KERNEL);
        lines |= 1ul << ((unsigned long)many[n] % 4096 / 64);
    }
    CHECK(__builtin_popcountl(lines) > 8);
    for (int n = 0; n < 200; n++)
        kmem_cache_free(coloured, many[n]);

    // A slab's pages by hand.
    void *slab = kmem_getpages(coloured, GFP_KERNEL, -1);
    CHECK(slab && (unsigned long)slab % 4096 == 0);
    memset(slab, 1, 4096);
    kmem_freepages(coloured, slab);
    CHECK(!kmem_cache_destroy(coloured));

    // Objects with low addresses.
    struct kmem_cache *low = kmem_cache_create("low", 40, 0, SLAB_CACHE_DMA32, NULL);
    for (int n = 0; n < 200; n++) {
        many[n] = kmem_cache_alloc(low, GFP_KERNEL);
        CHECK(many[n] && (unsigned long)many[n] < 1ul << 32);
    }
    for (int n = 0; n < 200; n++)
        kmem_cache_free(low, many[n]);
    CHECK(!kmem_cache_destroy(low));

    // Refused: what means nothing or contradicts itself.
    CHECK(!kmem_cache_create("", 8, 0, 0, NULL) && errno == EINVAL);
    CHECK(!kmem_cache_create("x", 0, 0, 0, NULL) && !kmem_cache_create("x", 8, 3, 0, NULL));
    CHECK(!kmem_cache_create("x", 8, 0, SLAB_CACHE_DMA | SLAB_CACHE_DMA32, NULL));
    CHECK(!kmem_cache_create("x", 8, 0, 0x80000u /* TYPESAFE_BY_RCU */, NULL));

    // Checked caches work like others as long as nothing is wrong.
    struct kmem_cache *checked =
        kmem_cache_create("checked", 77, 0, SLAB_RED_ZONE | SLAB_POISON | SLAB_STORE_USER | SLAB_PANIC, NULL);
    for (int round = 0; round < 3; round++) {
        for (int n = 0; n < 200; n++) {
            many[n] = kmem_cache_alloc(checked, GFP_KERNEL);
            CHECK(reads(many[n], 0x6b, 76) && ((unsigned char *)many[n])[76] == 0xa5);
            memset(many[n], n, 77);
        }
        for (int n = 0; n < 200; n++) {
            CHECK(reads(many[n], n & 255, 77));
            kmem_cache_free(checked, many[n]);
        }
    }
    CHECK(!kmem_cache_destroy(checked));
    return 0;
}
