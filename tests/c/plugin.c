// Loaded by libraries.c.
#include "check.h"

static void *kept;
__attribute__((tls_model("initial-exec"))) static __thread char storage[1024];
static __thread char *dynamic;

__attribute__((constructor)) static void comes(void) {
    kept = malloc(1000);
    mark(kept, 1000, 9);
    storage[0] = 1;
}

__attribute__((destructor)) static void goes(void) {
    CHECK(marked(kept, 1000, 9));
    free(kept);
    free(malloc(10));
}

void *work(size_t size) {
    storage[size % sizeof storage]++;
    free(dynamic);
    dynamic = NULL;
    void *p = malloc(size);
    CHECK(p);
    mark(p, size, 5);
    return p;
}
