// Low memory goes as far as there are low addresses, and ends with a clear refusal that concerns nobody else.
/* rows: B5 B6 C6 C7 */
//: modes: so archive static
//: run:
//: run: SLABWRIGHT_RSEQ=0
#define SLW_KERNEL_NAMES
#include <slabwright.h>

#include <errno.h>

#include "check.h"

#define CHUNK (4ul << 20)

// Aligned pieces of [from, to) that nobody uses, by the system's own list.
static unsigned long free_chunks(unsigned long from, unsigned long to) {
    static unsigned char used[1024];
    memset(used, 0, sizeof used);
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(maps);
    char line[512];
    unsigned long start, end, chunks = 0;
    while (fgets(line, sizeof line, maps))
        if (sscanf(line, "%lx-%lx", &start, &end) == 2)
            for (unsigned long n = start / CHUNK; n < sizeof used && n * CHUNK < end; n++)
                used[n] = 1;
    fclose(maps);
    for (unsigned long n = from / CHUNK; n < to / CHUNK; n++)
        chunks += !used[n];
    return chunks;
}

// Blocks of 4 MiB until there are none; they are linked through their first words.
static unsigned long take_all(gfp_t zone, unsigned long limit, unsigned long *list) {
    unsigned long taken = 0, block;
    errno = 0;
    while ((block = __get_free_pages(GFP_KERNEL | zone, 10))) {
        CHECK(block + CHUNK <= limit);
        *(unsigned long *)block = *list;
        *list = block;
        taken++;
    }
    CHECK(errno == ENOMEM);
    return taken;
}

static void give_back(unsigned long *list) {
    while (*list) {
        unsigned long next = *(unsigned long *)*list;
        free_pages(*list, 10);
        *list = next;
    }
}

int main(void) {
    unsigned long dma = 0, dma32 = 0, room = free_chunks(16ul << 20, 4ul << 30);
    unsigned long taken = take_all(__GFP_DMA32, 4ul << 30, &dma32);
    if (taken + 8 < room || taken > room + 4)
        fprintf(stderr, "%lu of %lu chunks\n", taken, room);
    // Requests for DMA32 may have taken ZONE_DMA as well; the kernel keeps some of its choices below 2 GiB apart.
    CHECK(taken + 8 >= room && taken <= room + 4);
    // The end, for whatever is asked there: NULL and ENOMEM, quietly.
    errno = 0;
    CHECK(!kmalloc(100000, GFP_KERNEL | __GFP_DMA32) && errno == ENOMEM);
    take_all(__GFP_DMA, 16ul << 20, &dma);
    errno = 0;
    CHECK(!__get_dma_pages(GFP_KERNEL, 10) && errno == ENOMEM);
    errno = 0;
    CHECK(!alloc_pages(GFP_ATOMIC | __GFP_DMA32, 9) && errno == ENOMEM);
    // Nobody else notices.
    void *block = malloc(100 << 20), *page = page_address(alloc_page(GFP_KERNEL));
    CHECK(block && page && (unsigned long)page >= 4ul << 30);
    free(block);
    free_page((unsigned long)page);
    // What comes back is there for others.
    give_back(&dma32);
    give_back(&dma);
    char *small = kmalloc(100, GFP_KERNEL | __GFP_DMA32);
    CHECK(small && (unsigned long)small < 4ul << 30);
    kfree(small);
    unsigned long again = take_all(__GFP_DMA32, 4ul << 30, &dma32);
    CHECK(again + 4 >= taken);
    give_back(&dma32);
    return 0;
}
