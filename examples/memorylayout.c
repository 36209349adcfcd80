// What lies where in the running process: text, data, bss, heap, mappings, stack, in the flexible layout (mappings
// downwards from below the stack) and in the classical one (upwards from a third of the address space); then the
// allocator's own part.
/* rows: L9 L8 */
//> flexible layout
//> text < data < bss < heap < stack: yes
//> mappings grow downwards: yes
//> classical layout
//> text < data < bss < heap < stack: yes
//> mappings grow upwards, from a third of the address space: yes
//> : Arena
//> : System RAM
#define _GNU_SOURCE
#include <slabwright.h>

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <unistd.h>

extern char __executable_start, etext, edata, end;

static int data = 1;
static int bss;

static void line(const char *name, const void *from, const void *to) {
    printf("  %-10s %#16lx - %#16lx\n", name, (unsigned long)(uintptr_t)from, (unsigned long)(uintptr_t)to);
}

int main(int argc, char **argv) {
    int classical = argc > 1;
    char *stack = (char *)&argc, *heap = sbrk(0);
    // malloc leaves the break alone; this is what other programs use it for.
    if (sbrk(4096) == (void *)-1)
        return 1;
    char *first = mmap(NULL, 1 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *second = mmap(NULL, 1 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *block = malloc(100);

    printf("%s layout\n", classical ? "classical" : "flexible");
    line("text", &__executable_start, &etext);
    line("data", &data, &edata);
    line("bss", &bss, &end);
    line("heap", heap, sbrk(0));
    line("mappings", first < second ? first : second, (first < second ? second : first) + (1 << 20));
    line("stack", stack, argv[0]);
    line("malloc", block, block + 100);
    int order = &etext < (char *)&data && (char *)&data < (char *)&bss && (char *)&bss < heap && heap < stack;
    printf("  text < data < bss < heap < stack: %s\n", order ? "yes" : "no");
    if (classical) {
        uintptr_t third = ((UINT64_C(1) << 47) - 4096) / 3;
        int above = (uintptr_t)first >= third && (uintptr_t)first < third * 2;
        printf("  mappings grow upwards, from a third of the address space: %s\n", above && second > first ? "yes" : "no");
        fflush(stdout);
        puts("the allocator's memory, as /proc/iomem shows a machine's");
        fflush(stdout);
        return slw_report_fd("iomem", STDOUT_FILENO);
    }
    printf("  mappings grow downwards: %s\n", second < first ? "yes" : "no");
    fflush(stdout);
    // The layout is chosen when a program is executed.
    if (personality(ADDR_COMPAT_LAYOUT) < 0)
        return 1;
    execl("/proc/self/exe", argv[0], "classical", (char *)NULL);
    return 1;
}
