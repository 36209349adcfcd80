/*
 * Touches as many MiB as its argument says, and ends. A virtual machine that has given free memory back to its host waits
 * milliseconds for 2 MiB of it: without this in front of each run, the allocator that is measured first pays that for those behind it.
 */
#include <stdlib.h>
#include <sys/mman.h>

int main(int argc, char **argv)
{
    size_t bytes = argc == 2 ? (size_t)atol(argv[1]) << 20 : 0;
    if (bytes == 0)
        return 2;
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return 1;
    /* For speed; without huge pages it is slower. */
    madvise(memory, bytes, MADV_HUGEPAGE);
    for (size_t at = 0; at < bytes; at += 4096)
        ((volatile char *)memory)[at] = 1;
    return 0;
}
