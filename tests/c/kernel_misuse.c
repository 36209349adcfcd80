// Wrong use of the kernel's calls ends with one line that says what it was.
/* rows: E12 F2 G9 G11 C11 */
//: modes: so archive static
//: run: order => abort says free with the wrong order
//: run: pages-twice => abort says double free
//: run: page-inside => abort says middle of a block
//: run: foreign-page => abort says never allocated
//: run: foreign-descriptor => abort says no page descriptor
//: run: exact-twice => abort says double free
//: run: twice => abort says double free
//: run: later => abort says double free
//: run: kfree-twice => abort says double free
//: run: constructed-twice => abort says double free
//: run: wrong-cache => abort says free to the wrong cache
//: run: inside => abort says middle of a block
//: run: foreign => abort says never allocated
//: run: live => abort says live: 2 left, 0x
//: run: SLABWRIGHT_ABORT=0 live => says cache destroyed with objects in use
//: run: live-origin => abort says allocated at 0x
//: run: destroyed => abort says no cache, or one that was destroyed
//: run: sleeping => abort says sleeping allocation in atomic context
//: run: overflow => abort says written to behind its end
//: run: underflow => abort says written to before its start at byte -1, allocated at 0x
//: run: freed-twice => abort says , freed at 0x
//: run: low-free => abort says written to before its start while it was free
//: run: after-free => abort says written to after it was freed
//: run: panic => abort says cannot make cache
#define SLW_KERNEL_NAMES
#include <slabwright.h>

#include "check.h"

static void construct(void *object) {
    memset(object, 0x11, 50);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    const char *what = argv[1];
    struct kmem_cache *cache = kmem_cache_create("live", 50, 0, SLAB_NO_MERGE, NULL);
    struct kmem_cache *other = kmem_cache_create("other", 50, 0, SLAB_NO_MERGE, NULL);
    struct kmem_cache *built = kmem_cache_create("built", 50, 0, 0, construct);
    struct kmem_cache *checked = kmem_cache_create("checked", 50, 0, SLAB_RED_ZONE | SLAB_POISON | SLAB_STORE_USER, NULL);
    unsigned long pages = __get_free_pages(GFP_KERNEL, 2);
    char *object = veil(kmem_cache_alloc(cache, GFP_KERNEL));
    char *more = veil(kmem_cache_alloc(cache, GFP_KERNEL));
    char *made = veil(kmem_cache_alloc(built, GFP_KERNEL));
    char *watched = veil(kmem_cache_alloc(checked, GFP_KERNEL));
    CHECK(cache && other && built && checked && pages && object && more && made && watched);
    if (!strcmp(what, "order")) {
        free_pages(pages, 1);
    } else if (!strcmp(what, "pages-twice")) {
        free_pages(pages, 2);
        free_pages(pages, 2);
    } else if (!strcmp(what, "page-inside")) {
        free_pages(pages + 4096, 0);
    } else if (!strcmp(what, "foreign-page")) {
        free_page((unsigned long)main & ~4095ul);
    } else if (!strcmp(what, "foreign-descriptor")) {
        __free_page((struct page *)veil(&argc));
    } else if (!strcmp(what, "exact-twice")) {
        void *run = veil(alloc_pages_exact(20000, GFP_KERNEL));
        free_pages_exact(run, 20000);
        free_pages_exact(run, 20000);
    } else if (!strcmp(what, "twice")) {
        kmem_cache_free(cache, object);
        kmem_cache_free(cache, veil(object));
    } else if (!strcmp(what, "later")) {
        // Others are freed and allocated in between: the object still lies in a sheaf.
        kmem_cache_free(cache, object);
        kmem_cache_free(cache, more);
        CHECK(kmem_cache_alloc(cache, GFP_KERNEL) == more);
        kmem_cache_free(cache, veil(object));
    } else if (!strcmp(what, "kfree-twice")) {
        kfree(object);
        kfree(veil(object));
    } else if (!strcmp(what, "constructed-twice")) {
        kmem_cache_free(built, made);
        kmem_cache_free(built, veil(made));
    } else if (!strcmp(what, "wrong-cache")) {
        kmem_cache_free(other, object);
    } else if (!strcmp(what, "inside")) {
        kmem_cache_free(cache, object + 8);
    } else if (!strcmp(what, "foreign")) {
        kmem_cache_free(cache, veil(&argc));
    } else if (!strcmp(what, "live")) {
        CHECK(kmem_cache_destroy(cache) != 0);
        // Nothing was lost: the cache is there, and goes once its objects are back.
        kmem_cache_free(cache, object);
        kmem_cache_free(cache, more);
        CHECK(kmem_cache_destroy(cache) == 0);
        return 0;
    } else if (!strcmp(what, "live-origin")) {
        kmem_cache_destroy(checked);
    } else if (!strcmp(what, "destroyed")) {
        kmem_cache_destroy(other);
        kmem_cache_alloc(other, GFP_KERNEL);
    } else if (!strcmp(what, "sleeping")) {
        preempt_disable();
        CHECK(in_atomic() && !in_atomic() == 0);
        kfree(kmalloc(10, GFP_ATOMIC));
        kfree(kmalloc(10, GFP_KERNEL));
    } else if (!strcmp(what, "overflow")) {
        watched[50] = 1;
        kmem_cache_free(checked, watched);
    } else if (!strcmp(what, "underflow")) {
        watched[-1] = 1;
        kmem_cache_free(checked, watched);
    } else if (!strcmp(what, "low-free")) {
        kmem_cache_free(checked, watched);
        watched[-2] = 1;
        CHECK(kmem_cache_alloc(checked, GFP_KERNEL) == watched);
    } else if (!strcmp(what, "freed-twice")) {
        // Both tracks are in the report.
        kmem_cache_free(checked, watched);
        kmem_cache_free(checked, veil(watched));
    } else if (!strcmp(what, "after-free")) {
        kmem_cache_free(checked, watched);
        watched[20] = 1;
        CHECK(kmem_cache_alloc(checked, GFP_KERNEL) == watched);
    } else if (!strcmp(what, "panic")) {
        kmem_cache_create("none", 0, 0, SLAB_PANIC, NULL);
    }
    puts("nothing was noticed");
    return 1;
}
