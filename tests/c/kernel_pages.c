// The kernel's page calls under their own names.
/* rows: A3 A4 A6 A7 A8 A10 A11 B5 B6 B8 B13 C1 C6 C7 C8 C9 C12 E1 E2 E3 E4 E5 E6 E7 E8 E9 E10 E11 E12 */
//: modes: so archive static
//: run: SLABWRIGHT_RSEQ=0
//: run: => says GFP flags that contradict each other: DMA|DMA32
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

int main(void) {
    // Every order: aligned to its size, adjacent, each page its own descriptor, both ways.
    for (unsigned order = 0; order <= 10; order++) {
        size_t bytes = (size_t)4096 << order;
        struct page *page = alloc_pages(GFP_KERNEL, order);
        CHECK(page);
        char *at = page_address(page);
        CHECK(at && (unsigned long)at % bytes == 0);
        memset(at, 0x5a, bytes);
        CHECK(virt_to_page(at) == page && page_count(page) == 1 && page_to_nid(page) == 0);
        for (unsigned long n = 0; n < 1ul << order; n++) {
            struct page *each = virt_to_page(at + n * 4096 + 7);
            CHECK(each && page_address(each) == at + n * 4096);
            CHECK(page_to_pfn(each) == page_to_pfn(page) + n);
            CHECK(pfn_to_page(page_to_pfn(page) + n) == each);
        }
        get_page(page);
        CHECK(page_count(page) == 2);
        __free_pages(page, order);
        CHECK(page_count(page) == 1 && reads((unsigned char *)at, 0x5a, bytes));
        __free_pages(page, order);
    }
    errno = 0;
    CHECK(!alloc_pages(GFP_KERNEL, 11) && errno == EINVAL);
    CHECK(!virt_to_page(main) && !virt_to_page(&errno) && !pfn_to_page(~0ul) && page_to_pfn(NULL) == ~0ul);

    // One page, by descriptor and by address.
    struct page *one = alloc_page(GFP_KERNEL);
    CHECK(one);
    __free_page(one);
    unsigned long by_address = __get_free_page(GFP_KERNEL);
    CHECK(by_address && by_address % 4096 == 0);
    memset((void *)by_address, 0xff, 4096);
    free_page(by_address);
    for (int n = 0; n < 100; n++) {
        unsigned long zeroed = n % 2 ? get_zeroed_page(GFP_KERNEL) : get_free_page(GFP_KERNEL);
        CHECK(zeroed && reads((unsigned char *)zeroed, 0, 4096));
        memset((void *)zeroed, 0xff, 4096);
        free_page(zeroed);
    }
    unsigned long four = __get_free_pages(GFP_KERNEL | __GFP_ZERO, 2);
    CHECK(four && reads((unsigned char *)four, 0, 16384));
    free_pages(four, 2);
    free_page(0);

    // Zones: an address below the limit, or none at all.
    unsigned long dma = __get_dma_pages(GFP_KERNEL, 1);
    CHECK(dma == 0 ? errno == ENOMEM : dma + 8192 <= 16ul << 20);
    if (dma)
        free_pages(dma, 1);
    for (unsigned order = 0; order <= 10; order++) {
        unsigned long low = __get_free_pages(GFP_KERNEL | __GFP_DMA32 | __GFP_ZERO, order);
        CHECK(low && low + (4096ul << order) <= 1ul << 32);
        CHECK(virt_to_page((void *)low) && page_to_pfn(virt_to_page((void *)low)) == low >> 12);
        memset((void *)low, 1, 4096ul << order);
        free_pages(low, order);
    }
    // A request for a low zone never gets a high address, however much is asked for.
    unsigned long first = 0;
    for (int n = 0; n < 64; n++) {
        unsigned long low = __get_free_pages(GFP_KERNEL | __GFP_DMA, 6);
        if (!low) {
            CHECK(errno == ENOMEM && n > 0);
            break;
        }
        CHECK(low + (4096ul << 6) <= 16ul << 20);
        *(unsigned long *)low = first;
        first = low;
    }
    while (first) {
        unsigned long next = *(unsigned long *)first;
        free_pages(first, 6);
        first = next;
    }

    // HIGHMEM: pages as ever on a machine that has none, but no address can be promised for it.
    struct page *high = alloc_pages(GFP_HIGHUSER_MOVABLE, 0);
    CHECK(high && page_address(high));
    __free_page(high);
    errno = 0;
    CHECK(!__get_free_pages(GFP_KERNEL | __GFP_HIGHMEM | __GFP_NOWARN, 0) && errno == EINVAL);

    // Flags that contradict each other are refused; the line is what the test asks for.
    errno = 0;
    CHECK(!alloc_page(GFP_KERNEL | __GFP_DMA | __GFP_DMA32) && errno == EINVAL);
    CHECK(!alloc_page(GFP_ATOMIC | __GFP_NOFAIL | __GFP_NOWARN));
    CHECK(!alloc_page(GFP_KERNEL | __GFP_NOWARN | 0x80000000u));
    CHECK(!alloc_page(GFP_KERNEL | __GFP_NOWARN | __GFP_MEMALLOC | __GFP_NOMEMALLOC));

    // Nodes.
    struct page *here = alloc_pages_node(0, GFP_KERNEL | __GFP_THISNODE, 0);
    CHECK(here && page_to_nid(here) == 0);
    __free_page(here);

    // Exact runs.
    for (size_t bytes = 1; bytes < 4 << 20; bytes = bytes * 3 / 2 + 1) {
        unsigned char *run = alloc_pages_exact(bytes, GFP_KERNEL | __GFP_ZERO);
        CHECK(run && (unsigned long)run % 4096 == 0 && reads(run, 0, bytes));
        memset(run, 0x77, bytes);
        free_pages_exact(run, bytes);
    }
    CHECK(!alloc_pages_exact((4 << 20) + 1, GFP_KERNEL | __GFP_NOWARN));
    return 0;
}
