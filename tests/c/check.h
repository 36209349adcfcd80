// What all test programs share.
#ifndef CHECK_H
#define CHECK_H

#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            char text_[400];                                                                                           \
            int len_ = snprintf(text_, sizeof text_, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition);     \
            if (write(2, text_, (size_t)len_) < 0) {                                                                   \
            }                                                                                                          \
            _exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)

// A size that cannot be had, unknown to the compiler.
__attribute__((unused)) static volatile size_t TOO_MUCH = (size_t)1 << 60;
__attribute__((unused)) static volatile size_t BEYOND_PTRDIFF = (size_t)PTRDIFF_MAX + 1;

// Hides a pointer's origin from the compiler's warnings.
__attribute__((unused)) static void *veil(void *p) {
    __asm__ volatile("" : "+r"(p));
    return p;
}

__attribute__((unused)) static int aligned_to(const void *p, size_t align) {
    return ((uintptr_t)p & (align - 1)) == 0;
}

// Fills a block with a pattern of its own, and tells whether it is still there.
__attribute__((unused)) static void mark(void *p, size_t size, unsigned seed) {
    unsigned char *bytes = (unsigned char *)p;
    for (size_t i = 0; i < size; i++)
        bytes[i] = (unsigned char)(seed + i * 7);
}

__attribute__((unused)) static int marked(const void *p, size_t size, unsigned seed) {
    const unsigned char *bytes = (const unsigned char *)p;
    for (size_t i = 0; i < size; i++)
        if (bytes[i] != (unsigned char)(seed + i * 7))
            return 0;
    return 1;
}

__attribute__((unused)) static uint64_t next_random(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

// Binds the thread to a CPU.
__attribute__((unused)) static void run_on(int cpu) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    CHECK(!sched_setaffinity(0, sizeof one, &one));
}

// A number in kB out of a file of /proc/self; -1 where there is none.
__attribute__((unused)) static long proc_kb(const char *path, const char *name) {
    char line[256];
    long value = -1;
    FILE *file = fopen(path, "r");
    if (!file)
        return -1;
    while (fgets(line, sizeof line, file))
        if (strncmp(line, name, strlen(name)) == 0 && line[strlen(name)] == ':')
            value = atol(line + strlen(name) + 1);
    fclose(file);
    return value;
}

__attribute__((unused)) static long status_kb(const char *name) {
    return proc_kb("/proc/self/status", name);
}

// A program that hardly does anything: a small block each fifth of a second.
__attribute__((unused)) static void idle(int times) {
    for (int i = 0; i < times; i++) {
        usleep(200000);
        free(malloc(50));
    }
}

// Resident memory that is no file's. The one in status is off by up to some hundred kB; this walks the page tables.
__attribute__((unused)) static long resident_kb(void) {
    return proc_kb("/proc/self/smaps_rollup", "Anonymous");
}

#endif
