// 100 000 threads that come, allocate and go leave nothing behind.
#include <pthread.h>

#include "check.h"

static void *worker(void *argument) {
    void *blocks[20];
    for (int i = 0; i < 20; i++) {
        blocks[i] = malloc((size_t)(16 << (i % 8)));
        memset(blocks[i], 1, 16);
    }
    for (int i = 0; i < 20; i++)
        free(blocks[i]);
    // One that another thread frees.
    free(argument);
    return malloc(100);
}

static void round_of(int count) {
    for (int i = 0; i < count; i += 4) {
        pthread_t threads[4];
        for (int j = 0; j < 4; j++) {
            // Stacks of our own: the C library's cache of them grows and shrinks as it likes.
            static char stacks[4][64 << 10] __attribute__((aligned(4096)));
            pthread_attr_t attributes;
            CHECK(pthread_attr_init(&attributes) == 0);
            CHECK(pthread_attr_setstack(&attributes, stacks[j], sizeof stacks[j]) == 0);
            CHECK(pthread_create(&threads[j], &attributes, worker, malloc(50)) == 0);
            CHECK(pthread_attr_destroy(&attributes) == 0);
        }
        for (int j = 0; j < 4; j++) {
            void *result;
            CHECK(pthread_join(threads[j], &result) == 0);
            free(result);
        }
    }
}

int main(void) {
    // Until the CPUs' sheaves hold what they come to hold of the classes that pass between threads, 100 to 200 KiB.
    round_of(50000);
    long before = resident_kb(), virtual_before = status_kb("VmSize");
    round_of(50000);
    long grown = resident_kb() - before;
    // A word of each thread would be 400 KiB.
    if (grown >= 256)
        fprintf(stderr, "%ld KiB grown\n", grown);
    CHECK(grown < 256);
    if (strcmp(getenv("MODE"), "glibc") != 0) // whose arenas come late
        CHECK(status_kb("VmSize") - virtual_before < 64 << 10);
    return 0;
}
