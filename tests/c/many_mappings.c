// Where addresses are rationed and the process has as many mappings as it may, what the system does not take back for a
// large block is not lost for small ones.
#include <sys/mman.h>
#include <sys/resource.h>

#include "check.h"

#define MIB ((size_t)1 << 20)
#define SIZE 16000
#define PAGE ((size_t)4096)
// Somewhat more than there may be by default.
#define BORDERS 70000

static void *list;

static size_t fill(size_t bytes) {
    size_t have = 0;
    for (void **p; have < bytes && (p = malloc(SIZE)); have += SIZE) {
        *p = list;
        list = p;
    }
    return have;
}

static void drop(void) {
    for (void **next; list; list = next) {
        next = *(void **)list;
        free(list);
    }
}

int main(void) {
    struct rlimit limit = {700 * MIB, RLIM_INFINITY};
    CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
    CHECK(fill(300 * MIB) >= 300 * MIB);
    drop();
    unsigned char *mine = mmap(NULL, BORDERS * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(mine != MAP_FAILED);
    size_t nth = 0;
    while (nth < BORDERS && mprotect(mine + nth * PAGE, PAGE, PROT_READ) == 0)
        nth += 2;
    // Some systems allow more: nothing is shown there.
    if (nth >= BORDERS)
        fprintf(stderr, "not as many mappings as may be\n");
    free(veil(malloc(300 * MIB)));
    CHECK(munmap(mine, BORDERS * PAGE) == 0);
    CHECK(fill(600 * MIB) >= 600 * MIB);
    drop();
    return 0;
}
