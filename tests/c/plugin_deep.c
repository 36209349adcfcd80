// Loaded by libraries_deep.c.
#include <malloc.h>

#include "check.h"

void *swap(void *old) {
    free(old);
    void *new = realloc(malloc(100), 5000);
    CHECK(new);
    CHECK(malloc_usable_size(new) >= 5000);
    mark(new, 5000, 3);
    return new;
}
