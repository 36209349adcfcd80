/*
 * The workloads in C of `cargo xtask bench`; what a run of this program prints is told in harness.h.
 */
#include "harness.h"
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/wait.h>

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

/* Whether what `touch` wrote is there. */
static int is_touched(const char *block, size_t size)
{
    size_t at = 0;
    while (at < size && block[at] == 1)
        at += 4096;
    return at >= size;
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

/* With a barrier, nobody gives back what it holds before all have come there. */
static void live_set_until(uint64_t seed, size_t live, size_t steps, pthread_barrier_t *all)
{
    Random random = {seed};
    void **blocks = calloc(live, sizeof *blocks);
    for (size_t step = 0; step < steps; step++) {
        size_t at = below(&random, live);
        free(blocks[at]);
        blocks[at] = take(common_size(&random));
    }
    if (all)
        pthread_barrier_wait(all);
    for (size_t i = 0; i < live; i++)
        free(blocks[i]);
    free(blocks);
}
static void live_set(uint64_t seed, size_t live, size_t steps) { live_set_until(seed, live, steps, NULL); }
static void random_10k(void) { live_set(1, 10000, 4000000); }
static void random_100k(void) { live_set(1, 100000, 2000000); }
static void random_1m(void) { live_set(1, 1000000, 2500000); }

/* Cost per operation with ever more live blocks: of small sizes, so that ten million of them fit. They are made first, which does not
   count: fresh pages are no cost of an operation. */
static void live(size_t count)
{
    Random random = {2};
    pause_clock();
    void **blocks = malloc(count * sizeof *blocks);
    for (size_t i = 0; i < count; i++)
        blocks[i] = take(between(&random, 16, 64));
    resume_clock();
    const size_t steps = 5000000 + count / 2;
    for (size_t step = 0; step < steps; step++) {
        size_t at = below(&random, count);
        free(blocks[at]);
        blocks[at] = take(between(&random, 16, 64));
    }
    said.operations = steps;
    pause_clock();
    for (size_t i = 0; i < count; i++)
        free(blocks[i]);
    free(blocks);
}
static void live_10k(void) { live(10000); }
static void live_100k(void) { live(100000); }
static void live_1m(void) { live(1000000); }
static void live_10m(void) { live(10000000); }

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
    insist(count == 6 * ((1u << 20) - 1), "all nodes are there");
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
        insist(blocks[at] && (uintptr_t)blocks[at] % align == 0, "blocks are aligned");
        *(volatile char *)blocks[at] = 1;
    }
    for (size_t i = 0; i < 1024; i++)
        free(blocks[i]);
}

/* --- pages and more */

/* `live` blocks, replaced at random; of any size in the bounds, or of as many sizes as `kinds` says, which come again and again. */
static void sized(uint64_t seed, size_t low, size_t high, size_t kinds, size_t live, size_t steps, int touched)
{
    Random random = {seed};
    void **blocks = calloc(live, sizeof *blocks);
    size_t sizes[8];
    for (size_t i = 0; i < kinds; i++)
        sizes[i] = between(&random, low, high);
    for (size_t step = 0; step < steps; step++) {
        size_t at = below(&random, live), size = kinds ? sizes[below(&random, kinds)] : between(&random, low, high);
        free(blocks[at]);
        blocks[at] = touched ? take_touched(size) : take(size);
    }
    for (size_t i = 0; i < live; i++)
        free(blocks[i]);
    free(blocks);
}
static void pages(void) { sized(7, 4 * KIB, 64 * KIB, 0, 500, 1500000, 0); }
static void pages_touched(void) { sized(7, 4 * KIB, 64 * KIB, 0, 500, 600000, 1); }
static void pages_same(void) { sized(7, 4 * KIB, 64 * KIB, 8, 500, 600000, 1); }
static void large(void) { sized(8, 64 * KIB, 2 * MIB, 0, 60, 200000, 0); }
static void large_touched(void) { sized(8, 64 * KIB, 2 * MIB, 0, 60, 10000, 1); }
static void large_same(void) { sized(8, 64 * KIB, 2 * MIB, 8, 60, 10000, 1); }
static void huge_touched(void) { sized(9, 2 * MIB, 128 * MIB, 0, 4, 30, 1); }

/* Sizes from 2 MiB to 1 GiB, each doubling as likely; one block at a time, and then three. */
static void huge_changing(void)
{
    Random random = {35};
    void *blocks[3] = {0};
    for (int step = 0; step < 16; step++) {
        int at = step < 8 ? 0 : step % 3;
        size_t size = (2 * MIB) << below(&random, 9);
        free(blocks[at]);
        blocks[at] = take_touched(between(&random, size, 2 * size));
    }
    for (int at = 0; at < 3; at++)
        free(blocks[at]);
}

/* A few sizes again and again, one block at a time. */
static void huge_same(void)
{
    static const size_t sizes[] = {32, 8, 96, 32, 2};
    for (size_t i = 0; i < 50; i++)
        free(take_touched(sizes[i % 5] * MIB));
}

static void *grow(void *block, size_t have, size_t size)
{
    block = realloc(block, size);
    insist(block != NULL, "there is memory to grow into");
    touch(block, have, size);
    return block;
}

static void grow_doubling(void)
{
    char *block = NULL;
    size_t have = 0;
    for (size_t size = 64; size <= 1024 * MIB; size *= 2) {
        block = grow(block, have, size);
        have = size;
    }
    insist(is_touched(block + 4096, have - 4096), "contents move along");
    free(block);
}

static void grow_stepwise(void)
{
    char *block = NULL;
    size_t have = 0;
    for (size_t size = 4 * KIB; size <= 1024 * MIB; size += 4 * KIB) {
        block = grow(block, have, size);
        have = size;
    }
    insist(is_touched(block, have), "contents move along");
    free(block);
}

static void grow_half(void)
{
    char *blocks[4] = {0};
    size_t have = 0;
    for (size_t size = 64; size <= 128 * MIB; size += size / 2) {
        for (int i = 0; i < 4; i++)
            blocks[i] = grow(blocks[i], have, size);
        have = size;
    }
    for (int i = 0; i < 4; i++) {
        insist(blocks[i][0] == 1 && blocks[i][64] == 1, "contents move along");
        free(blocks[i]);
    }
}

/* Blocks are found zero, at both ends, and left otherwise. */
static void zeroed(char *block, size_t size)
{
    insist(block && !block[0] && !block[size / 2] && !block[size - 1], "calloc's blocks are zero");
    block[0] = block[size / 2] = block[size - 1] = 1;
}

static void calloc_small(void)
{
    Random random = {10};
    void *blocks[1024] = {0};
    for (size_t step = 0; step < 4000000; step++) {
        size_t at = below(&random, 1024);
        size_t size = between(&random, 8, 1024);
        free(blocks[at]);
        zeroed(blocks[at] = calloc(1, size), size);
    }
    for (size_t i = 0; i < 1024; i++)
        free(blocks[i]);
}

/* Of each block one page is used. */
static void calloc_huge(void)
{
    Random random = {16};
    for (int i = 0; i < 400; i++) {
        size_t size = between(&random, 4 * MIB, 40 * MIB);
        char *block = calloc(1, size);
        insist(block && !block[size / 2], "calloc's blocks are zero");
        block[size / 2] = 1;
        free(block);
    }
}

static void calloc_huge_touched(void)
{
    Random random = {17};
    for (int i = 0; i < 30; i++) {
        size_t size = between(&random, 4 * MIB, 64 * MIB);
        char *block = calloc(1, size);
        insist(block != NULL, "there is memory");
        for (size_t at = 0; at < size; at += 4096) {
            insist(!block[at], "calloc's blocks are zero");
            block[at] = 1;
        }
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

/* The same number of steps, whatever the number of threads. They end together: else it were up to the scheduler how many live sets there
   are at a time, and the resident size at most would differ fourfold from run to run. */
static size_t thread_steps;
static pthread_barrier_t threads_done;

static void *live_set_thread(void *seed)
{
    live_set_until((uint64_t)(intptr_t)seed, 5000, thread_steps, &threads_done);
    return NULL;
}

static void threads(int count)
{
    thread_steps = 4800000 / (size_t)count;
    said.operations = 4800000;
    pthread_barrier_init(&threads_done, NULL, (unsigned)count);
    run_threads(count, live_set_thread, NULL);
}
static void threads_1(void) { threads(1); }
static void threads_2(void) { threads(2); }
static void threads_4(void) { threads(4); }
static void threads_8(void) { threads(8); }
static void threads_16(void) { threads(16); }
static void threads_32(void) { threads(32); }
static void threads_64(void) { threads(64); }

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

/* One thread only allocates, the other one only frees, each block as soon as it comes. Each knows of the other's place in the ring
   what it saw last, so that they look at it once in a while only. */
enum { RING = 1024, PASSED = 4000000 };
typedef struct {
    void *blocks[RING];
    _Alignas(128) atomic_size_t head;
    _Alignas(128) atomic_size_t tail;
} Ring;

static void *free_passed(void *argument)
{
    Ring *ring = argument;
    size_t filled = 0;
    for (size_t tail = 0; tail < PASSED; tail++) {
        while (filled == tail) {
            filled = atomic_load_explicit(&ring->head, memory_order_acquire);
            if (filled == tail)
                sched_yield();
        }
        free(ring->blocks[tail % RING]);
        atomic_store_explicit(&ring->tail, tail + 1, memory_order_release);
    }
    return NULL;
}

static void asymmetric(void)
{
    static Ring ring;
    Random random = {18};
    pthread_t other;
    size_t drained = 0;
    if (pthread_create(&other, NULL, free_passed, &ring))
        exit(1);
    for (size_t head = 0; head < PASSED; head++) {
        void *block = take(between(&random, 16, 256));
        while (head - drained == RING) {
            drained = atomic_load_explicit(&ring.tail, memory_order_acquire);
            if (head - drained == RING)
                sched_yield();
        }
        ring.blocks[head % RING] = block;
        atomic_store_explicit(&ring.head, head + 1, memory_order_release);
    }
    pthread_join(other, NULL);
}

/* One thread allocates, the next one frees all of it and ends. */
enum { LEFT = 200000 };

static void *free_all(void *blocks)
{
    for (size_t i = 0; i < LEFT; i++)
        free(((void **)blocks)[i]);
    return NULL;
}

static void free_and_exit(void)
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

/* A server after P. Larson: each thread replaces random blocks of its array for a while, then leaves the array to a new thread and
   ends. Blocks of the array come from all threads that had it. */
enum { SLOTS = 5000, STEPS = 100000, HANDOVERS = 25, SERVERS = 8 };
typedef struct {
    Random random;
    void *slots[SLOTS];
    int handovers;
} Served;

static sem_t served_last;

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
        if (pthread_create(&heir, NULL, serve, served) || pthread_detach(heir))
            exit(1);
    } else {
        sem_post(&served_last);
    }
    return NULL;
}

static void server(void)
{
    static Served served[SERVERS];
    void *arguments[SERVERS];
    sem_init(&served_last, 0, 0);
    for (int i = 0; i < SERVERS; i++) {
        served[i].random.state = (uint64_t)i + 1;
        served[i].handovers = HANDOVERS;
        arguments[i] = &served[i];
    }
    run_threads(SERVERS, serve, arguments);
    for (int i = 0; i < SERVERS; i++)
        while (sem_wait(&served_last))
            ;
    for (int i = 0; i < SERVERS; i++)
        for (size_t j = 0; j < SLOTS; j++)
            free(served[i].slots[j]);
}

/* False sharing: threads write to small blocks of their own. Active: an allocator hands parts of one cache line to several threads.
   Passive: one thread made the blocks side by side, and each is freed by the thread that was given it, which then allocates. */
static void scribble(volatile char *block)
{
    for (int i = 0; i < 100000; i++)
        block[i % 8]++;
}

static void *scribble_on_own(void *unused)
{
    (void)unused;
    for (int round = 0; round < 1000; round++) {
        void *block = take(8);
        scribble(block);
        free(block);
    }
    return NULL;
}

static void *scribble_on_given(void *given)
{
    scribble(given);
    free(given);
    return scribble_on_own(NULL);
}

static void sharing_active(void) { run_threads(4, scribble_on_own, NULL); }

static void sharing_passive(void)
{
    void *blocks[4];
    for (int i = 0; i < 4; i++)
        blocks[i] = take(8);
    run_threads(4, scribble_on_given, blocks);
}

/* --- memory over time */

/* Fill, free nine in ten at random, fill with blocks of other sizes. What is left at the end stays. */
static void fragmentation(void)
{
    enum { COUNT = 1000000 };
    Random random = {13};
    struct {
        void *block;
        size_t size;
    } *all = calloc(COUNT, sizeof *all);
    said.live = COUNT * sizeof *all;
    sample();
    for (int round = 0; round < 4; round++) {
        size_t low = (size_t)16 << round, high = low * 4;
        for (size_t i = 0; i < COUNT; i++)
            if (!all[i].block) {
                all[i].size = between(&random, low, high);
                all[i].block = memset(take(all[i].size), 1, all[i].size);
                said.live += all[i].size;
            }
        sample();
        for (size_t i = 0; i < COUNT; i++)
            if (below(&random, 10) != 0) {
                free(all[i].block);
                all[i].block = NULL;
                said.live -= all[i].size;
            }
        sample();
    }
}

/* A peak of 200 MiB in large blocks and about as much in small ones, of which one in fifty stays; then ten seconds with one small
   allocation each. */
static void idle(void)
{
    enum { LARGE = 200, SMALL = 300000, LEAVE = 50 };
    static void *large[LARGE], *small[SMALL];
    Random random = {15};
    said.live = sizeof large + sizeof small;
    sample();
    for (size_t i = 0; i < LARGE; i++)
        large[i] = take_touched(MIB);
    for (size_t i = 0; i < SMALL; i++) {
        size_t size = common_size(&random);
        small[i] = memset(take(size), 1, size);
        said.live += i % LEAVE == 0 ? size : 0;
    }
    sample();
    for (size_t i = 0; i < LARGE; i++)
        free(large[i]);
    for (size_t i = 0; i < SMALL; i++)
        if (i % LEAVE != 0)
            free(small[i]);
    sample();
    for (int second = 0; second < 10; second++) {
        pause_clock();
        sleep(1);
        resume_clock();
        free(take(100));
        sample();
    }
}

/* What counts is ten children of a heap of 1 GiB, which each use it a little, not how the heap came to be. */
static void fork_heap(void)
{
    enum { COUNT = 1024 };
    char *blocks[COUNT];
    pause_clock();
    for (size_t i = 0; i < COUNT; i++)
        blocks[i] = take_touched(MIB);
    resume_clock();
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

/* What `start` runs: a program that allocates ten blocks. */
static void ten_blocks(void)
{
    void *blocks[10];
    for (size_t i = 0; i < 10; i++)
        blocks[i] = take(50 * (i + 1));
    for (size_t i = 0; i < 10; i++)
        free(blocks[i]);
}

static int by_size(const void *one, const void *other)
{
    size_t a = *(const size_t *)one, b = *(const size_t *)other;
    return (a > b) - (a < b);
}

/* Two hundred programs that allocate ten blocks, from their start to their end; the resident size is their median. */
static void start(void)
{
    enum { PROGRAMS = 200 };
    extern char **environ;
    size_t peaks[PROGRAMS], lasts[PROGRAMS];
    char *const arguments[] = {"/proc/self/exe", "ten-blocks", NULL};
    int output[2];
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    if (pipe(output))
        exit(1);
    posix_spawn_file_actions_adddup2(&actions, output[1], 1);
    for (int i = 0; i < PROGRAMS; i++) {
        pid_t child;
        int status;
        char line[200];
        if (posix_spawn(&child, arguments[0], &actions, NULL, arguments, environ) || waitpid(child, &status, 0) != child || status)
            exit(1);
        ssize_t length = read(output[0], line, sizeof line - 1);
        line[length > 0 ? length : 0] = 0;
        if (sscanf(line, "%*f %*f %zu %zu", &peaks[i], &lasts[i]) != 2)
            exit(1);
    }
    posix_spawn_file_actions_destroy(&actions);
    qsort(peaks, PROGRAMS, sizeof *peaks, by_size);
    qsort(lasts, PROGRAMS, sizeof *lasts, by_size);
    said.peak = peaks[PROGRAMS / 2];
    said.last = lasts[PROGRAMS / 2];
}

static const Workload WORKLOADS[] = {
    {"pair-64", "small", pair_64},
    {"pair-1k", "small", pair_1k},
    {"pair-mixed", "small", pair_mixed},
    {"lifo", "small", lifo},
    {"fifo", "small", fifo},
    {"random-10k", "small", random_10k},
    {"random-100k", "small", random_100k},
    {"random-1m", "small", random_1m},
    {"live-10k", "live", live_10k},
    {"live-100k", "live", live_100k},
    {"live-1m", "live", live_1m},
    {"live-10m", "live", live_10m},
    {"tree", "small", tree},
    {"strings", "small", strings},
    {"aligned", "small", aligned},
    {"calloc-small", "small", calloc_small},
    {"pages", "large", pages},
    {"pages-touched", "large", pages_touched},
    {"pages-same", "large", pages_same},
    {"large", "large", large},
    {"large-touched", "large", large_touched},
    {"large-same", "large", large_same},
    {"huge-same", "large", huge_same},
    {"huge-touched", "large", huge_touched},
    {"huge-changing", "large", huge_changing},
    {"grow-doubling", "large", grow_doubling},
    {"grow-half", "large", grow_half},
    {"grow-stepwise", "large", grow_stepwise},
    {"calloc-huge", "large", calloc_huge},
    {"calloc-huge-touched", "large", calloc_huge_touched},
    {"threads-1", "threads", threads_1},
    {"threads-2", "threads", threads_2},
    {"threads-4", "threads", threads_4},
    {"threads-8", "threads", threads_8},
    {"threads-16", "threads", threads_16},
    {"threads-32", "threads", threads_32},
    {"threads-64", "threads", threads_64},
    {"producer-consumer", "threads", producer_consumer},
    {"asymmetric", "threads", asymmetric},
    {"free-and-exit", "threads", free_and_exit},
    {"thread-churn", "threads", thread_churn},
    {"server", "threads", server},
    {"sharing-active", "threads", sharing_active},
    {"sharing-passive", "threads", sharing_passive},
    {"fragmentation", "memory", fragmentation},
    {"idle", "memory", idle},
    {"fork", "memory", fork_heap},
    {"start", "memory", start},
    {"ten-blocks", NULL, ten_blocks},
};

int main(int argc, char **argv) { return run_workload(argc, argv, WORKLOADS, sizeof WORKLOADS / sizeof *WORKLOADS); }
