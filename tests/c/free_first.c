// free(NULL), then realloc(NULL, n), as the first calls of a process.
#include <malloc.h>

#include "check.h"

static void *first;

static void earliest(int argc, char **argv, char **environment) {
    (void)argc, (void)argv, (void)environment;
    free(NULL);
    if (malloc_usable_size(NULL) != 0)
        _exit(1);
    first = realloc(NULL, 33);
}

__attribute__((section(".preinit_array"), used)) static void (*preinit)(int, char **, char **) = earliest;

int main(void) {
    CHECK(first);
    memset(first, 1, 33);
    free(first);
    return 0;
}
