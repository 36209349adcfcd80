/*
 * What the workloads of `cargo xtask bench` share. A program of them is run as `PROGRAM NAME` under one allocator, for one workload,
 * and prints the seconds that the work took, those of CPU of the process and its children, and its resident KiB, at most and at the
 * end. Lines after that, where the workload has them: `operations N`, `live KIB` (what the program still holds at the end),
 * `bound SECONDS` (the least that the work can take), and `resident AT KIB` for the resident size over time. `PROGRAM --list` names
 * the workloads and their groups.
 *
 * Work is bounded by counts, never by time, and random numbers are the same in every run. Blocks are written to as a program
 * would write to them: the first byte of small ones, every page of large ones where the name says "touched". What an allocator
 * promises beyond a block (alignment, zeros, contents that move) is checked where that costs no more than the program's own use of it.
 */
#define _GNU_SOURCE 1
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)
#define UNUSED __attribute__((unused))

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

/* A figure of /proc/self/status in KiB: what is resident (VmRSS), and was at most (VmHWM; that of getrusage is the parent's
   until it is exceeded). Allocates nothing. */
static size_t status_kib(const char *name)
{
    char text[4096];
    int file = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    ssize_t length = file < 0 ? -1 : read(file, text, sizeof text - 1);
    close(file);
    if (length < 0)
        return 0;
    text[length] = 0;
    const char *line = strstr(text, name);
    return line ? strtoul(line + strlen(name) + 1, NULL, 10) : 0;
}

static double cpu_seconds(void)
{
    struct rusage own, children;
    getrusage(RUSAGE_SELF, &own);
    getrusage(RUSAGE_CHILDREN, &children);
    return own.ru_utime.tv_sec + own.ru_stime.tv_sec + children.ru_utime.tv_sec + children.ru_stime.tv_sec +
           1e-6 * (own.ru_utime.tv_usec + own.ru_stime.tv_usec + children.ru_utime.tv_usec + children.ru_stime.tv_usec);
}

/* What a workload says of itself; `peak` and `last` where they are not this process's. */
static struct {
    size_t operations, live, resident[128], peak, last;
    int samples;
    /* Of the clock and of CPU: since when nothing counts, and what did not count so far. */
    double paused, paused_cpu, apart, apart_cpu;
} said;

/* The resident size as it is now is a point of the plot over time. */
UNUSED static void sample(void)
{
    if (said.samples < 128)
        said.resident[said.samples++] = status_kib("VmRSS");
}

/* What lies between these is not part of the work: preparation, sleep, tearing down. */
UNUSED static void pause_clock(void)
{
    said.paused = now();
    said.paused_cpu = cpu_seconds();
}

UNUSED static void resume_clock(void)
{
    said.apart += now() - said.paused;
    said.apart_cpu += cpu_seconds() - said.paused_cpu;
    said.paused = 0;
}

UNUSED static void insist(int holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "not so: %s\n", what);
    exit(1);
}

/* xorshift64*: https://vigna.di.unimi.it/ftp/papers/xorshift.pdf */
typedef struct {
    uint64_t state;
} Random;

static uint64_t next(Random *random)
{
    uint64_t x = random->state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    random->state = x;
    return x * 0x2545f4914f6cdd1dull;
}

static size_t below(Random *random, size_t limit) { return (size_t)(((unsigned __int128)next(random) * limit) >> 64); }
UNUSED static size_t between(Random *random, size_t low, size_t high) { return low + below(random, high - low + 1); }

/* Sizes as programs ask for them: the mean of what cc1plus, perl, lua, git log, python3 (PYTHONMALLOC=malloc), node and sqlite3
   asked for in small jobs, each program with the same weight. Within a bucket any size is as likely. */
UNUSED static size_t common_size(Random *random)
{
    static const struct {
        size_t size, permille;
    } buckets[] = {{16, 244},  {32, 291},  {48, 134},  {64, 123},  {128, 56},  {256, 35},   {512, 15},
                   {1024, 15}, {2048, 18}, {4096, 22}, {8192, 28}, {16384, 4}, {32768, 15}};
    size_t dice = below(random, 1000), at = 0;
    while (dice >= buckets[at].permille)
        dice -= buckets[at++].permille;
    return between(random, at ? buckets[at - 1].size + 1 : 1, buckets[at].size);
}

/* Without a group it is part of another one, and not listed. */
typedef struct {
    const char *name, *group;
    void (*work)(void);
} Workload;

UNUSED static int run_workload(int argc, char **argv, const Workload *workloads, size_t count)
{
    for (size_t i = 0; argc == 2 && i < count; i++) {
        if (strcmp(argv[1], "--list") == 0 && workloads[i].group)
            printf("%s %s\n", workloads[i].group, workloads[i].name);
        if (strcmp(argv[1], workloads[i].name) != 0)
            continue;
        double begin = now();
        workloads[i].work();
        if (said.paused)
            resume_clock();
        double seconds = now() - begin - said.apart;
        size_t last = said.last ? said.last : status_kib("VmRSS"), peak = said.peak ? said.peak : status_kib("VmHWM");
        printf("%.9f %.6f %zu %zu\n", seconds, cpu_seconds() - said.apart_cpu, peak, last);
        if (said.operations)
            printf("operations %zu\n", said.operations);
        if (said.live)
            printf("live %zu\n", said.live / KIB);
        for (int at = 0; at < said.samples; at++)
            printf("resident %d %zu\n", at, said.resident[at]);
        return 0;
    }
    if (argc == 2 && strcmp(argv[1], "--list") == 0)
        return 0;
    fprintf(stderr, "usage: %s --list | NAME\n", argv[0]);
    return 2;
}
