// Memory of a given node, on nodes that are pretended.
/* rows: B1 B2 B3 E3 C13 */
//: modes: so archive static
//: run: 1
//: run: SLABWRIGHT_FAKE_NODES=2 2
//: run: SLABWRIGHT_FAKE_NODES=4 4
//: run: SLABWRIGHT_FAKE_NODES=2 SLABWRIGHT_RSEQ=0 2
#define SLW_KERNEL_NAMES
#include <slabwright.h>

#include <errno.h>

#include "check.h"

static int node_of(const void *p) {
    return page_to_nid(virt_to_page(p));
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    int nodes = atoi(argv[1]);
    for (int node = 0; node < nodes; node++) {
        for (unsigned order = 0; order <= 10; order++) {
            struct page *page = alloc_pages_node(node, GFP_KERNEL, order);
            CHECK(page && page_to_nid(page) == node);
            memset(page_address(page), 1, 4096ul << order);
            __free_pages(page, order);
        }
        for (size_t size = 1; size < 1 << 20; size = size * 2 + 1) {
            void *p = kmalloc_node(size, GFP_KERNEL | __GFP_THISNODE, node);
            CHECK(p && node_of(p) == node);
            memset(p, 1, size);
            kfree(p);
        }
        struct page *only = alloc_pages_node(node, GFP_KERNEL | __GFP_THISNODE | __GFP_DMA32, 0);
        CHECK(only && page_to_nid(only) == node && (unsigned long)page_address(only) < 1ul << 32);
        __free_page(only);
    }
    // Without a node it is that of the CPU: they take turns.
    cpu_set_t all;
    CHECK(!sched_getaffinity(0, sizeof all, &all));
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &all))
            continue;
        run_on(cpu);
        struct page *page = alloc_page(GFP_KERNEL);
        CHECK(page && page_to_nid(page) == cpu % nodes);
        __free_page(page);
    }
    return 0;
}
