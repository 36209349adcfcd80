// The reports, read as the programs of procps read the kernel's.
/* rows: B3 B13 D2 D3 D9 G2 H1 */
//: modes: so archive static
//: flags: -rdynamic
#define SLW_KERNEL_NAMES
#include <slabwright.h>

#include <errno.h>

#include "check.h"

static char text[1 << 20];

// The report's lines.
static char *report(const char *name) {
    long len = slw_report(name, text, sizeof text);
    CHECK(len >= 0 && (size_t)len < sizeof text && strlen(text) == (size_t)len && (!len || text[len - 1] == '\n'));
    return text;
}

static char *next_line(char **from) {
    char *line = *from, *end = strchr(line, '\n');
    if (!*line)
        return NULL;
    CHECK(end);
    *end = 0;
    *from = end + 1;
    return line;
}

// As slabtop and vmstat -m: the format string is libproc's.
static void slabinfo(void) {
    struct kmem_cache *cache = kmem_cache_create("a b", 500, 0, SLAB_NO_MERGE, NULL);
    void *objects[100], *block = malloc(100);
    for (int i = 0; i < 100; i++)
        CHECK((objects[i] = kmem_cache_alloc(cache, GFP_KERNEL)));
    char *rest = report("slabinfo"), *line;
    int major, minor, found = 0, kmalloc = 0;
    CHECK(sscanf(next_line(&rest), "slabinfo - version: %d.%d", &major, &minor) == 2 && major == 2 && minor == 1);
    CHECK(!strncmp(next_line(&rest), "# name            <active_objs> ", 32));
    while ((line = next_line(&rest))) {
        char name[129];
        unsigned active, objects, size, per_slab, pages, active_slabs, slabs;
        CHECK(sscanf(line, "%128s %u %u %u %u %u : tunables %*u %*u %*u : slabdata %u %u %*u", name, &active, &objects, &size,
                     &per_slab, &pages, &active_slabs, &slabs) == 8);
        CHECK(active <= objects && objects == slabs * per_slab && active_slabs <= slabs && size * per_slab <= pages * 4096);
        kmalloc += !strncmp(name, "kmalloc-", 8);
        if (!strcmp(name, "a_b")) {
            CHECK(active == 100 && size >= 500);
            found++;
        }
    }
    CHECK(found == 1 && kmalloc > 0);
    free(block);
    for (int i = 0; i < 100; i++)
        kmem_cache_free(cache, objects[i]);
    CHECK(!kmem_cache_destroy(cache));
    for (rest = report("slabinfo"); (line = next_line(&rest));)
        CHECK(strncmp(line, "a_b ", 4));
}

// As everybody who counts free blocks.
static unsigned long free_pages_of(const char *zone) {
    char *rest = report("buddyinfo"), *line;
    unsigned long sum = 0;
    while ((line = next_line(&rest))) {
        int node, used;
        char name[16];
        CHECK(sscanf(line, "Node %d, zone %15s%n", &node, name, &used) == 2 && node == 0);
        CHECK(used == 21); // names end in the same column
        char *at = line + used;
        for (int order = 0; order <= 10; order++) {
            unsigned long count = strtoul(at, &at, 10);
            sum += !strcmp(name, zone) ? count << order : 0;
        }
        CHECK(!strcmp(at, " "));
    }
    return sum;
}

static void zones(void) {
    struct page *low = alloc_pages(GFP_KERNEL | __GFP_DMA32, 10);
    CHECK(low);
    unsigned long taken = free_pages_of("DMA32");
    __free_pages(low, 10);
    CHECK(free_pages_of("DMA32") == taken + 1024);

    // The same sums once more, by type.
    char *rest = report("pagetypeinfo"), *line;
    CHECK(!strcmp(next_line(&rest), "Page block order: 9") && !strcmp(next_line(&rest), "Pages per block:  512"));
    CHECK(!*next_line(&rest) && !strncmp(next_line(&rest), "Free pages count per migrate type at order ", 43));
    unsigned long sum = 0;
    while (*(line = next_line(&rest))) {
        int node, used;
        char zone[16], type[16];
        CHECK(sscanf(line, "Node %d, zone %15[^,], type %15s%n", &node, zone, type, &used) == 3);
        char *at = line + used;
        for (int order = 0; order <= 10; order++)
            sum += !strcmp(zone, "DMA32") ? strtoul(at, &at, 10) << order : 0;
    }
    CHECK(sum == taken + 1024);
    CHECK(!strncmp(next_line(&rest), "Number of blocks type  ", 23));
    while ((line = next_line(&rest))) {
        unsigned unmovable, movable;
        CHECK(sscanf(line, "Node 0, zone %*s %u %u", &unmovable, &movable) == 2);
        CHECK(unmovable + movable > 0);
    }

    // Marks and bounds as atop and the node exporter read them.
    rest = report("zoneinfo");
    char zone[16] = "";
    long pages = -1, min = -1, low_mark = -1, high = -1, present = -1, managed = -1, value;
    int normal = 0, highmem = 0;
    while ((line = next_line(&rest))) {
        char key[32];
        if (sscanf(line, "Node 0, zone %15s", zone) == 1)
            continue;
        if (sscanf(line, "  pages free %ld", &value) == 1)
            pages = value;
        else if (sscanf(line, " %31s %ld", key, &value) == 2) {
            min = !strcmp(key, "min") ? value : min;
            low_mark = !strcmp(key, "low") ? value : low_mark;
            high = !strcmp(key, "high") ? value : high;
            present = !strcmp(key, "present") ? value : present;
            if (!strcmp(key, "managed")) {
                managed = value;
                CHECK(0 <= min && min <= low_mark && low_mark <= high && pages <= managed && managed <= present);
                normal += !strcmp(zone, "Normal") && present > 0;
                highmem += !strcmp(zone, "HighMem") && present > 0;
            }
        }
    }
    CHECK(normal == 1 && highmem == 0);
}

// Not static, so that the loader knows them; what they return to is in them.
void *ask_for_area(size_t size);
void *ask_for_area(size_t size) {
    void *area = vmalloc(size);
    CHECK(area);
    return area;
}

volatile char *ask_for_device(void);
volatile char *ask_for_device(void) {
    volatile char *device = ioremap(0xfee00000, 4096);
    CHECK(device);
    return device;
}

// The caller, as the kernel names it: "ask_for_area+0x12/0x34", where there is a loader to ask; else the address.
static int is_caller(const char *text, const char *function, const void *start) {
    unsigned long offset, size;
    void *address;
    int used = 0;
    size_t len = strlen(function);
    if (!strcmp(getenv("MODE"), "static"))
        return sscanf(text, " %p %n", &address, &used) == 1 && used > 0 && (size_t)((char *)address - (char *)start) < 200;
    return text[0] == ' ' && !strncmp(text + 1, function, len) && sscanf(text + 1 + len, "+0x%lx/0x%lx %n", &offset, &size, &used) == 2 &&
           used > 0 && 0 < offset && offset <= size && size < 200;
}

static void callers(void) {
    char *area = ask_for_area(5 << 20), *same, *rest, *line;
    int found = 0;
    for (rest = report("vmallocinfo"); (line = next_line(&rest));) {
        void *start;
        int used;
        CHECK(sscanf(line, "%p-%*p %*d%n", &start, &used) == 1);
        if (start == area) {
            CHECK(is_caller(line + used, "ask_for_area", ask_for_area) && strstr(line + used, " pages=1280 vmalloc"));
            found++;
        }
    }
    CHECK(found == 1);
    // Its next owner did not call that function.
    vfree(area);
    same = malloc(5 << 20);
    CHECK(same && !strstr(report("vmallocinfo"), "ask_for_area"));
    free(same);
}

static void areas(void) {
    char *area = malloc(10 << 20);
    CHECK(area);
    int busy = 0, devices = 0;
    volatile char *device = ask_for_device();
    for (int freed = 0; freed < 2; freed++) {
        char *rest = report("vmallocinfo"), *line;
        while ((line = next_line(&rest))) {
            void *start, *end;
            long size, used;
            CHECK(sscanf(line, "%p-%p %ld%ln", &start, &end, &size, &used) == 3 && (char *)end - (char *)start == size);
            CHECK(line[18] == '-' && !strncmp(line + 19, "0x", 2));
            if (strstr(line + used, " phys=0x00000000fee00000 ioremap"))
                devices += start == (void *)device && size == 4096 && is_caller(line + used, "ask_for_device", ask_for_device);
            else if (freed) // kept, if it did not go back to the system at once
                CHECK(!strcmp(line + used, " unpurged vm_area"));
            else
                busy += start == area && !strncmp(line + used, " pages=", 7) && strstr(line, " vmalloc");
        }
        if (!freed)
            free(area);
    }
    CHECK(busy == 1 && devices == 2);
    iounmap((void *)device);
    CHECK(!strstr(report("vmallocinfo"), "ioremap"));
}

static void memory(void) {
    void *page = page_address(alloc_page(GFP_KERNEL)), *area = malloc(10 << 20);
    char *rest = report("iomem"), *line;
    int in_arena = 0, in_ram = 0, in_vmalloc = 0;
    while ((line = next_line(&rest))) {
        unsigned long start, end;
        char name[64];
        CHECK(sscanf(line, " %lx-%lx : %63[^\n]", &start, &end, name) == 3 && start < end);
        int has_page = start <= (unsigned long)page && (unsigned long)page <= end;
        in_arena += has_page && !strcmp(name, "Arena");
        in_ram += has_page && !strcmp(name, "System RAM (node 0, zone Normal)") && !strncmp(line, "  ", 2);
        in_vmalloc += start <= (unsigned long)area && (unsigned long)area <= end && !strcmp(name, "vmalloc");
    }
    CHECK(in_arena == 1 && in_ram == 1 && in_vmalloc == 1);
    free_page((unsigned long)page);
    free(area);
}

static void borders(void) {
    CHECK(slw_report("meminfo", text, sizeof text) == -1 && errno == ENOENT);
    CHECK(slw_report_fd(NULL, 1) == -1 && errno == ENOENT);
    char small[20];
    memset(small, '#', sizeof small);
    long len = slw_report("pagetypeinfo", small, 10);
    CHECK(len > 500 && !strcmp(small, "Page bloc") && small[10] == '#');
    CHECK(slw_report("pagetypeinfo", NULL, 0) == len);
    int pipe_[2];
    CHECK(!pipe(pipe_) && !slw_report_fd("slabinfo", pipe_[1]));
    CHECK(read(pipe_[0], small, 8) == 8 && !memcmp(small, "slabinfo", 8));
}

int main(void) {
    slabinfo();
    zones();
    areas();
    callers();
    memory();
    borders();
    return 0;
}
