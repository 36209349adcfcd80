// Wrong use ends with one line that says what it was.
//: modes: preload norseq so archive static
//: run: double 24 => abort says double free
//: run: double 500 => abort says double free
//: run: double 8000 => abort says double free
//: run: double 40000 => abort says double free
//: run: double 5000000 => abort says double free
//: run: between 24 => abort says double free
//: run: between 500 => abort says double free
//: run: between 40000 => abort says double free
//: run: between 5000000 => abort says double free
//: run: later 100 => abort says double free
//: run: SLABWRIGHT_RSEQ=0 prompt 24 => abort says double free
//: run: reused 24 => abort says double free
//: run: interior 24 => abort says middle of a block
//: run: interior 4000 => abort says middle of a block
//: run: interior 40000 => abort says middle of a block
//: run: interior 5000000 => abort says middle of a block
//: run: stack 1 => abort says never allocated
//: run: static 1 => abort says never allocated
//: run: wild 1 => abort says never allocated
//: run: realloc 100 => abort says slabwright:
//: run: realloc 40000 => abort says slabwright:
//: run: size 40000 => abort says slabwright:
//: run: SLABWRIGHT_ABORT=0 double 24 => says double free
//: run: SLABWRIGHT_ABORT=0 interior 40000 => says middle of a block
//: run: SLABWRIGHT_ABORT=0 stack 1 => says never allocated
#include <malloc.h>
#include <unistd.h>

#include "check.h"

static char data[256] __attribute__((aligned(64)));

int main(int argc, char **argv) {
    CHECK(argc == 3);
    const char *what = argv[1];
    size_t size = (size_t)atol(argv[2]);
    char local[256] __attribute__((aligned(64)));
    // Neighbours, so that the block is not alone in what holds it.
    void *before = malloc(size);
    char *p = veil(malloc(size));
    void *after = malloc(size);
    CHECK(before && p && after);
    memset(p, 0x41, size);
    if (!strcmp(what, "double")) {
        free(p);
        free(veil(p));
    } else if (!strcmp(what, "between")) {
        free(p);
        free(before);
        free(veil(p));
    } else if (!strcmp(what, "prompt")) {
        free(p);
        free(before);
        free(veil(p));
        _exit(3);
    } else if (!strcmp(what, "reused")) {
        // No block has two owners: the program ends before that.
        free(p);
        free(before);
        free(veil(p));
        char *one = malloc(size), *two = malloc(size), *three = malloc(size);
        printf("%p %p %p\n", (void *)one, (void *)two, (void *)three);
        _exit(3);
    } else if (!strcmp(what, "later")) {
        free(p);
        for (int i = 0; i < 10000; i++) {
            void *other = malloc(16 + (size_t)i % 3 * size * 2);
            free(other);
        }
        free(veil(p));
    } else if (!strcmp(what, "interior")) {
        free(veil(p + 16));
    } else if (!strcmp(what, "stack")) {
        free(veil(local + 64));
    } else if (!strcmp(what, "static")) {
        free(veil(data + 64));
    } else if (!strcmp(what, "wild")) {
        free(veil((void *)0x123456789abc0));
    } else if (!strcmp(what, "realloc")) {
        free(p);
        p = realloc(veil(p), size * 100);
    } else if (!strcmp(what, "size")) {
        free(p);
        CHECK(malloc_usable_size(veil(p)) < 1 << 30);
    } else {
        CHECK(!"a known misuse");
    }
    return 0;
}
