// Before all constructors and after all destructors: every stage allocates, and frees what earlier ones allocated.
#include "check.h"

static void *blocks[8];

static void take(int stage) {
    blocks[stage] = malloc(100 + (size_t)stage);
    CHECK(blocks[stage]);
    mark(blocks[stage], 100, (unsigned)stage);
}

static void check_and_free(int stage) {
    CHECK(marked(blocks[stage], 100, (unsigned)stage));
    free(blocks[stage]);
    free(realloc(malloc(10), 100000));
}

static void earliest(int argc, char **argv, char **environment) {
    (void)argc, (void)argv, (void)environment;
    take(0);
}

__attribute__((section(".preinit_array"), used)) static void (*preinit)(int, char **, char **) = earliest;

__attribute__((constructor(101))) static void early(void) {
    take(1);
}

__attribute__((constructor)) static void late(void) {
    take(2);
}

__attribute__((destructor(101))) static void last(void) {
    check_and_free(0);
    check_and_free(1);
    take(4);
    check_and_free(4);
}

__attribute__((destructor)) static void before_last(void) {
    check_and_free(2);
}

static void at_exit(void) {
    check_and_free(3);
}

int main(void) {
    CHECK(blocks[0] && blocks[1] && blocks[2]);
    take(3);
    CHECK(atexit(at_exit) == 0);
    return 0;
}
