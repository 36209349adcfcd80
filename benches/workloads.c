/*
 * The workloads of `cargo xtask bench`: each is one run of this program, `workloads NAME`, under one allocator.
 * It prints the seconds that the work took, those of CPU of the whole process, and resident KiB, at most and at the end.
 * Names: `workloads --list`.
 *
 * Work is bounded by counts, never by time, and random numbers are the same in every run. Blocks are written to as a program
 * would write to them: the first word of small ones, every page of large ones where the name says "touched".
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

/* A figure of /proc/self/status in KiB: what is resident (VmRSS), and was at most (VmHWM; that of getrusage is the parent's
   until it is exceeded). */
static size_t status_kib(const char *name)
{
    char line[200];
    size_t kib = 0;
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file))
        if (strncmp(line, name, strlen(name)) == 0 && sscanf(line + strlen(name), ": %zu", &kib) == 1)
            break;
    if (file)
        fclose(file);
    return kib;
}

/* Seconds of CPU that this process and its children used. */
static double cpu_seconds(void)
{
    struct rusage own, children;
    getrusage(RUSAGE_SELF, &own);
    getrusage(RUSAGE_CHILDREN, &children);
    return own.ru_utime.tv_sec + own.ru_stime.tv_sec + children.ru_utime.tv_sec + children.ru_stime.tv_sec +
           1e-6 * (own.ru_utime.tv_usec + own.ru_stime.tv_usec + children.ru_utime.tv_usec + children.ru_stime.tv_usec);
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
static size_t between(Random *random, size_t low, size_t high) { return low + below(random, high - low + 1); }

/* Sizes as programs ask for them: half below 64 bytes, nine tenths below 512, a few of several pages. */
static size_t common_size(Random *random)
{
    size_t dice = below(random, 1000);
    if (dice < 500)
        return between(random, 8, 64);
    if (dice < 900)
        return between(random, 65, 512);
    if (dice < 985)
        return between(random, 513, 4 * KIB);
    if (dice < 998)
        return between(random, 4 * KIB, 16 * KIB);
    return between(random, 16 * KIB, 64 * KIB);
}

static void *take(size_t size)
{
    void *block = malloc(size);
    if (!block) {
        fprintf(stderr, "no memory for %zu bytes\n", size);
        exit(1);
    }
    *(volatile char *)block = 1;
    return block;
}

static void touch(char *block, size_t from, size_t size)
{
    for (size_t at = from; at < size; at += 4096)
        ((volatile char *)block)[at] = 1;
}

static void *take_touched(size_t size)
{
    char *block = take(size);
    touch(block, 0, size);
    return block;
}

/* --- one thread, small blocks */

static void pairs(size_t size, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(take(size));
}
static void pair_64(void) { pairs(64, 20000000); }
static void pair_1k(void) { pairs(1024, 20000000); }

static void pair_mixed(void)
{
    Random random = {1};
    size_t sizes[4096];
    for (size_t i = 0; i < 4096; i++)
        sizes[i] = between(&random, 8, 1024);
    for (size_t i = 0; i < 15000000; i++)
        free(take(sizes[i % 4096]));
}

static void lifo(void)
{
    void *blocks[1000];
    for (int round = 0; round < 20000; round++) {
        for (int i = 0; i < 1000; i++)
            blocks[i] = take(64);
        for (int i = 999; i >= 0; i--)
            free(blocks[i]);
    }
}

static void fifo(void)
{
    void *blocks[1000];
    for (int round = 0; round < 20000; round++) {
        for (int i = 0; i < 1000; i++)
            blocks[i] = take(64);
        for (int i = 0; i < 1000; i++)
            free(blocks[i]);
    }
}

static void live_set(uint64_t seed, size_t live, size_t steps)
{
    Random random = {seed};
    void **blocks = calloc(live, sizeof *blocks);
    for (size_t step = 0; step < steps; step++) {
        size_t at = below(&random, live);
        free(blocks[at]);
        blocks[at] = take(common_size(&random));
    }
    for (size_t i = 0; i < live; i++)
        free(blocks[i]);
    free(blocks);
}
static void random_10k(void) { live_set(1, 10000, 4000000); }
static void random_100k(void) { live_set(1, 100000, 2000000); }
static void random_1m(void) { live_set(1, 1000000, 2500000); }

typedef struct Node {
    struct Node *left, *right;
} Node;

static Node *grow_tree(int depth)
{
    Node *node = take(sizeof *node);
    node->left = depth ? grow_tree(depth - 1) : NULL;
    node->right = depth ? grow_tree(depth - 1) : NULL;
    return node;
}

static size_t fell_tree(Node *node)
{
    size_t count = 1;
    if (node->left)
        count += fell_tree(node->left) + fell_tree(node->right);
    free(node);
    return count;
}

static void tree(void)
{
    size_t count = 0;
    for (int round = 0; round < 6; round++)
        count += fell_tree(grow_tree(19));
    if (count != 6 * ((1u << 20) - 1))
        exit(1);
}

static void strings(void)
{
    enum { SLOTS = 1 << 16 };
    Random random = {5};
    char **slots = calloc(SLOTS, sizeof *slots);
    for (size_t step = 0; step < 1500000; step++) {
        char **slot = &slots[below(&random, SLOTS)];
        size_t length = *slot ? strlen(*slot) : 0;
        if (*slot && (length > 400 || below(&random, 4) == 0)) {
            free(*slot);
            *slot = NULL;
        } else {
            size_t more = between(&random, 1, 60);
            *slot = realloc(*slot, length + more + 1);
            memset(*slot + length, 'x', more);
            (*slot)[length + more] = 0;
        }
    }
    for (size_t i = 0; i < SLOTS; i++)
        free(slots[i]);
    free(slots);
}

static void aligned(void)
{
    Random random = {6};
    void *blocks[1024] = {0};
    for (size_t step = 0; step < 3000000; step++) {
        size_t at = below(&random, 1024), align = (size_t)16 << below(&random, 6);
        free(blocks[at]);
        blocks[at] = aligned_alloc(align, align * between(&random, 1, 8));
        *(volatile char *)blocks[at] = 1;
    }
    for (size_t i = 0; i < 1024; i++)
        free(blocks[i]);
}

/* --- pages and more */

static void sized(uint64_t seed, size_t low, size_t high, size_t live, size_t steps, int touched)
{
    Random random = {seed};
    void **blocks = calloc(live, sizeof *blocks);
    for (size_t step = 0; step < steps; step++) {
        size_t at = below(&random, live), size = between(&random, low, high);
        free(blocks[at]);
        blocks[at] = touched ? take_touched(size) : take(size);
    }
    for (size_t i = 0; i < live; i++)
        free(blocks[i]);
    free(blocks);
}
static void pages(void) { sized(7, 4 * KIB, 64 * KIB, 500, 1500000, 0); }
static void pages_touched(void) { sized(7, 4 * KIB, 64 * KIB, 500, 600000, 1); }
static void large(void) { sized(8, 64 * KIB, 2 * MIB, 60, 200000, 0); }
static void large_touched(void) { sized(8, 64 * KIB, 2 * MIB, 60, 10000, 1); }
static void huge_touched(void) { sized(9, 2 * MIB, 128 * MIB, 4, 30, 1); }

static void huge_same(void)
{
    for (int i = 0; i < 50; i++)
        free(take_touched(32 * MIB));
}

static void grow_doubling(void)
{
    for (int round = 0; round < 2; round++) {
        char *block = NULL;
        size_t have = 0;
        for (size_t size = 64; size <= 512 * MIB; size *= 2) {
            block = realloc(block, size);
            touch(block, have, size);
            have = size;
        }
        free(block);
    }
}

static void grow_stepwise(void)
{
    char *block = NULL;
    size_t have = 0;
    for (size_t size = 4 * KIB; size <= 256 * MIB; size += 4 * KIB) {
        block = realloc(block, size);
        touch(block, have, size);
        have = size;
    }
    free(block);
}

static void grow_half(void)
{
    char *blocks[4] = {0};
    size_t have = 0;
    for (size_t size = 64; size <= 128 * MIB; size += size / 2) {
        for (int i = 0; i < 4; i++) {
            blocks[i] = realloc(blocks[i], size);
            touch(blocks[i], have, size);
        }
        have = size;
    }
    for (int i = 0; i < 4; i++)
        free(blocks[i]);
}

static void calloc_small(void)
{
    Random random = {10};
    void *blocks[1024] = {0};
    for (size_t step = 0; step < 4000000; step++) {
        size_t at = below(&random, 1024);
        free(blocks[at]);
        blocks[at] = calloc(1, between(&random, 8, 1024));
    }
    for (size_t i = 0; i < 1024; i++)
        free(blocks[i]);
}

static void calloc_huge(void)
{
    for (int i = 0; i < 20000; i++) {
        char *block = calloc(1, between(&(Random){(uint64_t)i + 1}, 4, 400) * MIB);
        *(volatile char *)block = 1;
        free(block);
    }
}

static void calloc_huge_touched(void)
{
    for (int i = 0; i < 30; i++) {
        size_t size = between(&(Random){(uint64_t)i + 1}, 4, 64) * MIB;
        char *block = calloc(1, size);
        touch(block, 0, size);
        free(block);
    }
}

/* --- threads */

static void run_threads(int count, void *(*work)(void *), void *const *arguments)
{
    pthread_t threads[64];
    for (int i = 0; i < count; i++)
        if (pthread_create(&threads[i], NULL, work, arguments ? arguments[i] : (void *)(intptr_t)(i + 1)))
            exit(1);
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
}

/* The same number of steps, whatever the number of threads. */
static size_t thread_steps;

static void *live_set_thread(void *seed)
{
    live_set((uint64_t)(intptr_t)seed, 5000, thread_steps);
    return NULL;
}

static void threads(int count)
{
    thread_steps = 4800000 / (size_t)count;
    run_threads(count, live_set_thread, NULL);
}
static void threads_1(void) { threads(1); }
static void threads_2(void) { threads(2); }
static void threads_8(void) { threads(8); }
static void threads_32(void) { threads(32); }

/* A bounded queue of blocks. */
enum { QUEUE = 4096, BATCH = 64 };
typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t filled, drained;
    void *blocks[QUEUE];
    size_t head, tail;
} Queue;

static void put(Queue *queue, void **blocks, size_t count)
{
    pthread_mutex_lock(&queue->lock);
    while (queue->head + count - queue->tail > QUEUE)
        pthread_cond_wait(&queue->drained, &queue->lock);
    for (size_t i = 0; i < count; i++)
        queue->blocks[queue->head++ % QUEUE] = blocks[i];
    pthread_cond_signal(&queue->filled);
    pthread_mutex_unlock(&queue->lock);
}

static void get(Queue *queue, void **blocks, size_t count)
{
    pthread_mutex_lock(&queue->lock);
    while (queue->head - queue->tail < count)
        pthread_cond_wait(&queue->filled, &queue->lock);
    for (size_t i = 0; i < count; i++)
        blocks[i] = queue->blocks[queue->tail++ % QUEUE];
    pthread_cond_signal(&queue->drained);
    pthread_mutex_unlock(&queue->lock);
}

enum { HANDED = 6400000 };

static void *produce(void *queue)
{
    Random random = {11};
    void *blocks[BATCH];
    for (size_t i = 0; i < HANDED / BATCH; i++) {
        for (size_t j = 0; j < BATCH; j++)
            blocks[j] = take(between(&random, 16, 256));
        put(queue, blocks, BATCH);
    }
    return NULL;
}

static void *consume(void *queue)
{
    void *blocks[BATCH];
    for (size_t i = 0; i < HANDED / BATCH; i++) {
        get(queue, blocks, BATCH);
        for (size_t j = 0; j < BATCH; j++)
            free(blocks[j]);
    }
    return NULL;
}

static void producer_consumer(void)
{
    static Queue queue = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, PTHREAD_COND_INITIALIZER, {0}, 0, 0};
    pthread_t consumer;
    if (pthread_create(&consumer, NULL, consume, &queue))
        exit(1);
    produce(&queue);
    pthread_join(consumer, NULL);
}

/* One thread allocates, the next one frees all of it and ends. */
enum { LEFT = 200000 };

static void *free_all(void *blocks)
{
    for (size_t i = 0; i < LEFT; i++)
        free(((void **)blocks)[i]);
    return NULL;
}

static void asymmetric(void)
{
    Random random = {12};
    void **blocks = malloc(LEFT * sizeof *blocks);
    for (int round = 0; round < 20; round++) {
        for (size_t i = 0; i < LEFT; i++)
            blocks[i] = take(between(&random, 16, 256));
        run_threads(1, free_all, (void *const[]){blocks});
    }
    free(blocks);
}

static void *short_life(void *seed)
{
    Random random = {(uint64_t)(intptr_t)seed};
    void *blocks[100];
    for (int i = 0; i < 100; i++)
        blocks[i] = take(common_size(&random));
    for (int i = 0; i < 100; i++)
        free(blocks[i]);
    return NULL;
}

static void thread_churn(void)
{
    for (int i = 0; i < 5000; i++)
        run_threads(4, short_life, NULL);
}

/* A server after P. Larson: each thread replaces random blocks of its array for a while, then hands the array to a new thread. */
enum { SLOTS = 5000, STEPS = 100000, HANDOVERS = 25 };
typedef struct {
    Random random;
    void *slots[SLOTS];
    int handovers;
} Served;

static void *serve(void *argument)
{
    Served *served = argument;
    for (size_t step = 0; step < STEPS; step++) {
        size_t at = below(&served->random, SLOTS);
        free(served->slots[at]);
        served->slots[at] = take(between(&served->random, 16, 1024));
    }
    if (served->handovers-- > 0) {
        pthread_t heir;
        if (pthread_create(&heir, NULL, serve, served))
            exit(1);
        pthread_join(heir, NULL);
    }
    return NULL;
}

static void server(void)
{
    enum { THREADS = 8 };
    static Served served[THREADS];
    void *arguments[THREADS];
    for (int i = 0; i < THREADS; i++) {
        served[i].random.state = (uint64_t)i + 1;
        served[i].handovers = HANDOVERS;
        arguments[i] = &served[i];
    }
    run_threads(THREADS, serve, arguments);
    for (int i = 0; i < THREADS; i++)
        for (size_t j = 0; j < SLOTS; j++)
            free(served[i].slots[j]);
}

/* False sharing: threads write to small blocks of their own, passively (one thread made them) or actively. */
static void *scribble(void *given)
{
    volatile char *block = given;
    for (int round = 0; round < 200; round++) {
        for (int i = 0; i < 100000; i++)
            block[i % 8]++;
        free((void *)block);
        block = take(8);
    }
    free((void *)block);
    return NULL;
}

static void false_sharing(void)
{
    void *blocks[4];
    for (int i = 0; i < 4; i++)
        blocks[i] = take(8);
    run_threads(4, scribble, blocks);
}

/* --- memory over time */

static void fragmentation(void)
{
    enum { COUNT = 1000000 };
    Random random = {13};
    void **blocks = calloc(COUNT, sizeof *blocks);
    for (int round = 0; round < 4; round++) {
        size_t low = (size_t)16 << round, high = low * 4;
        for (size_t i = 0; i < COUNT; i++)
            if (!blocks[i]) {
                size_t size = between(&random, low, high);
                blocks[i] = take(size);
                memset(blocks[i], 1, size);
            }
        for (size_t i = 0; i < COUNT; i++)
            if (below(&random, 10) != 0) {
                free(blocks[i]);
                blocks[i] = NULL;
            }
    }
    /* The blocks that are left stay: the resident size at the end is what they cost. */
}

static void idle(void)
{
    enum { COUNT = 400 };
    char *blocks[COUNT];
    for (size_t i = 0; i < COUNT; i++)
        blocks[i] = take_touched(MIB);
    for (size_t i = 0; i < COUNT; i++)
        free(blocks[i]);
    for (int second = 0; second < 12; second++) {
        sleep(1);
        free(take(100));
    }
}

static void fork_heap(void)
{
    enum { COUNT = 1024 };
    char *blocks[COUNT];
    for (size_t i = 0; i < COUNT; i++)
        blocks[i] = take_touched(MIB);
    for (int round = 0; round < 10; round++) {
        pid_t child = fork();
        if (child == 0) {
            for (int i = 0; i < 100; i++) {
                free(blocks[i]);
                blocks[i] = take(between(&(Random){(uint64_t)i + 1}, 1000, 1000000));
            }
            _exit(0);
        }
        int status;
        if (child < 0 || waitpid(child, &status, 0) != child || status != 0)
            exit(1);
    }
}

static void start(void)
{
    void *blocks[10];
    for (size_t i = 0; i < 10; i++)
        blocks[i] = take(50 * (i + 1));
    for (size_t i = 0; i < 10; i++)
        free(blocks[i]);
}

static const struct {
    const char *name, *group;
    void (*work)(void);
} WORKLOADS[] = {
    {"pair-64", "small", pair_64},
    {"pair-1k", "small", pair_1k},
    {"pair-mixed", "small", pair_mixed},
    {"lifo", "small", lifo},
    {"fifo", "small", fifo},
    {"random-10k", "small", random_10k},
    {"random-100k", "small", random_100k},
    {"random-1m", "small", random_1m},
    {"tree", "small", tree},
    {"strings", "small", strings},
    {"aligned", "small", aligned},
    {"calloc-small", "small", calloc_small},
    {"pages", "large", pages},
    {"pages-touched", "large", pages_touched},
    {"large", "large", large},
    {"large-touched", "large", large_touched},
    {"huge-same", "large", huge_same},
    {"huge-touched", "large", huge_touched},
    {"grow-doubling", "large", grow_doubling},
    {"grow-half", "large", grow_half},
    {"grow-stepwise", "large", grow_stepwise},
    {"calloc-huge", "large", calloc_huge},
    {"calloc-huge-touched", "large", calloc_huge_touched},
    {"threads-1", "threads", threads_1},
    {"threads-2", "threads", threads_2},
    {"threads-8", "threads", threads_8},
    {"threads-32", "threads", threads_32},
    {"producer-consumer", "threads", producer_consumer},
    {"asymmetric", "threads", asymmetric},
    {"thread-churn", "threads", thread_churn},
    {"server", "threads", server},
    {"false-sharing", "threads", false_sharing},
    {"fragmentation", "memory", fragmentation},
    {"idle", "memory", idle},
    {"fork", "memory", fork_heap},
    {"start", "memory", start},
};

int main(int argc, char **argv)
{
    const size_t count = sizeof WORKLOADS / sizeof *WORKLOADS;
    if (argc == 2 && strcmp(argv[1], "--list") == 0) {
        for (size_t i = 0; i < count; i++)
            printf("%s %s\n", WORKLOADS[i].group, WORKLOADS[i].name);
        return 0;
    }
    for (size_t i = 0; argc == 2 && i < count; i++)
        if (strcmp(argv[1], WORKLOADS[i].name) == 0) {
            double begin = now();
            WORKLOADS[i].work();
            double seconds = now() - begin;
            size_t last = status_kib("VmRSS"), peak = status_kib("VmHWM");
            printf("%.9f %.6f %zu %zu\n", seconds, cpu_seconds(), peak, last);
            return 0;
        }
    fprintf(stderr, "usage: workloads --list | NAME\n");
    return 2;
}
