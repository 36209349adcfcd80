/*
 * Calls of several allocators in one process, in short rounds in turn: `paired ROUNDS ONLY NAME=LIBRARY...`, where ONLY is a list of
 * workloads or `all`. On a machine that others use, too, two runs of a program differ by more than two allocators do; of rounds of
 * milliseconds that follow upon each other the ratio differs by a hundredth or two. What a whole process costs, its page faults and its
 * memory, does not show here.
 *
 * Printed is a Markdown table: nanoseconds of an operation with the last allocator, and how long it takes in relation to each other one, as
 * the median of the ratios of all rounds. `paired --list` names the workloads.
 */
#include <dlfcn.h>

#include "harness.h"

typedef struct {
    const char *name;
    void *(*malloc)(size_t);
    void (*free)(void *);
    void *(*realloc)(void *, size_t);
    void *(*aligned_alloc)(size_t, size_t);
    /* What lives from round to round. */
    void **blocks;
    Random random;
} Allocator;

typedef struct Paired {
    const char *name;
    size_t (*work)(Allocator *, const struct Paired *);
    /* A size, a number of blocks or a depth, as `work` takes it. */
    size_t argument;
    /* Blocks that live from round to round. */
    size_t kept;
    /* Their sizes, 0 for such as programs have, and their alignment if it is asked for. */
    size_t low, high, align;
} Paired;

enum { WARM = 2, MOST_ROUNDS = 1001, MOST_ALLOCATORS = 16 };

static void *begun(char *block)
{
    insist(block != NULL, "there is memory");
    *(volatile char *)block = 1;
    return block;
}

static void *take(Allocator *a, size_t size) { return begun(a->malloc(size)); }

/* Each does its work on the allocator, and says how many operations that was. */

static size_t pairs(Allocator *a, const Paired *with)
{
    for (int i = 0; i < 100000; i++)
        a->free(take(a, with->argument));
    return 100000;
}

static size_t mixed_pairs(Allocator *a, const Paired *with)
{
    static size_t sizes[4096];
    size_t kinds = with->argument;
    for (size_t i = 0; sizes[kinds - 1] == 0 && i < kinds; i++)
        sizes[i] = between(&a->random, 8, 1024);
    for (size_t i = 0; i < 100000; i++)
        a->free(take(a, sizes[i % kinds]));
    return 100000;
}

static size_t in_turn(Allocator *a, size_t count, int last_first)
{
    static void *blocks[100000];
    size_t rounds = 200000 / count;
    for (size_t round = 0; round < rounds; round++) {
        for (size_t i = 0; i < count; i++)
            blocks[i] = take(a, 64);
        for (size_t i = 0; i < count; i++)
            a->free(blocks[last_first ? count - 1 - i : i]);
    }
    return rounds * count;
}

static size_t lifo(Allocator *a, const Paired *with) { return in_turn(a, with->argument, 1); }
static size_t fifo(Allocator *a, const Paired *with) { return in_turn(a, with->argument, 0); }

static void *replacement(Allocator *a, const Paired *with)
{
    size_t size = with->high ? between(&a->random, with->low, with->high) : common_size(&a->random);
    return with->align ? begun(a->aligned_alloc(with->align, size / with->align * with->align)) : take(a, size);
}

/* Blocks replaced at random. The first time they are made, and replaced until they lie as they come to lie. */
static size_t replaced(Allocator *a, const Paired *with)
{
    size_t count = with->kept, steps = count > 400000 ? count / 4 : 100000;
    if (!a->blocks) {
        a->blocks = calloc(count, sizeof *a->blocks);
        for (size_t i = 0; i < count; i++)
            a->blocks[i] = replacement(a, with);
        steps = 2 * count;
    }
    for (size_t step = 0; step < steps; step++) {
        void **block = &a->blocks[below(&a->random, count)];
        a->free(*block);
        *block = replacement(a, with);
    }
    return steps;
}

typedef struct Node {
    struct Node *left, *right;
} Node;

static Node *grow(Allocator *a, size_t depth)
{
    Node *node = take(a, sizeof *node);
    node->left = depth ? grow(a, depth - 1) : NULL;
    node->right = depth ? grow(a, depth - 1) : NULL;
    return node;
}

static size_t fell(Allocator *a, Node *node)
{
    size_t count = 1;
    if (node->left)
        count += fell(a, node->left) + fell(a, node->right);
    a->free(node);
    return count;
}

static size_t tree(Allocator *a, const Paired *with) { return fell(a, grow(a, with->argument)); }

static size_t strings(Allocator *a, const Paired *with)
{
    size_t count = with->kept;
    if (!a->blocks)
        a->blocks = calloc(count, sizeof *a->blocks);
    for (int step = 0; step < 200000; step++) {
        char **string = (char **)&a->blocks[below(&a->random, count)];
        size_t length = *string ? strlen(*string) : 0;
        if (*string && (length > 400 || below(&a->random, 4) == 0)) {
            a->free(*string);
            *string = NULL;
        } else {
            size_t more = between(&a->random, 1, 60);
            *string = a->realloc(*string, length + more + 1);
            memset(*string + length, 'x', more);
            (*string)[length + more] = 0;
        }
    }
    return 200000;
}

static const Paired WORKLOADS[] = {
    {"pair-64", pairs, .argument = 64},
    {"pair-1k", pairs, .argument = 1024},
    {"pair-mixed", mixed_pairs, .argument = 4096},
    {"lifo-100", lifo, .argument = 100},
    {"lifo-1000", lifo, .argument = 1000},
    {"fifo-1000", fifo, .argument = 1000},
    {"live-10k", replaced, .kept = 10000, .low = 16, .high = 64},
    {"live-100k", replaced, .kept = 100000, .low = 16, .high = 64},
    {"live-1m", replaced, .kept = 1000000, .low = 16, .high = 64},
    {"random-10k", replaced, .kept = 10000},
    {"random-100k", replaced, .kept = 100000},
    {"pages", replaced, .kept = 500, .low = 4 * KIB, .high = 64 * KIB},
    {"large", replaced, .kept = 60, .low = 64 * KIB, .high = 2 * MIB},
    /* Programs that go on and on with a few buffers. */
    {"few-8k", replaced, .kept = 10, .low = 4 * KIB, .high = 8 * KIB},
    {"few-32k", replaced, .kept = 10, .low = 8 * KIB, .high = 32 * KIB},
    {"few-128k", replaced, .kept = 100, .low = 32 * KIB, .high = 128 * KIB},
    {"few-512k", replaced, .kept = 100, .low = 128 * KIB, .high = 512 * KIB},
    {"few-aligned", replaced, .kept = 10, .low = 8 * KIB, .high = 32 * KIB, .align = 64},
    {"tree", tree, .argument = 17},
    {"strings", strings, .kept = 65536},
};

static int order(const void *a, const void *b) { return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b); }

static double median(double *values, size_t count)
{
    qsort(values, count, sizeof *values, order);
    return values[count / 2];
}

static double times[MOST_ALLOCATORS][MOST_ROUNDS];

static void compare(size_t workload, Allocator *all, size_t count, size_t rounds)
{
    for (size_t i = 0; i < count; i++)
        all[i].random.state = 1;
    for (size_t round = 0; round < WARM + rounds; round++)
        for (size_t i = 0; i < count; i++) {
            size_t at = (i + round) % count;
            double start = now();
            size_t operations = WORKLOADS[workload].work(&all[at], &WORKLOADS[workload]);
            if (round >= WARM)
                times[at][round - WARM] = (now() - start) / operations * 1e9;
        }
    for (size_t i = 0; i < count; i++) {
        for (size_t block = 0; all[i].blocks && block < WORKLOADS[workload].kept; block++)
            all[i].free(all[i].blocks[block]);
        free(all[i].blocks);
        all[i].blocks = NULL;
    }
    double *own = times[count - 1];
    for (size_t i = 0; i + 1 < count; i++)
        for (size_t round = 0; round < rounds; round++)
            times[i][round] = own[round] / times[i][round];
    printf("| %s | %.1f |", WORKLOADS[workload].name, median(own, rounds));
    for (size_t i = 0; i + 1 < count; i++)
        printf(" %.2f |", median(times[i], rounds));
    printf("\n");
    fflush(stdout);
}

static int is_named(const char *name, const char *only)
{
    size_t length = strlen(name);
    for (const char *at = only; at; at = strchr(at, ',')) {
        at += *at == ',';
        if (strncmp(at, name, length) == 0 && (at[length] == 0 || at[length] == ','))
            return 1;
    }
    return strcmp(only, "all") == 0;
}

int main(int argc, char **argv)
{
    enum { COUNT = sizeof WORKLOADS / sizeof *WORKLOADS };
    if (argc == 2 && strcmp(argv[1], "--list") == 0) {
        for (size_t i = 0; i < COUNT; i++)
            printf("%s\n", WORKLOADS[i].name);
        return 0;
    }
    Allocator all[MOST_ALLOCATORS] = {0};
    size_t rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : 0, count = argc > 3 ? argc - 3 : 0;
    insist(rounds > 0 && rounds <= MOST_ROUNDS && count > 0 && count <= MOST_ALLOCATORS, "paired ROUNDS ONLY NAME=LIBRARY...");
    printf("| workload | ns |");
    for (size_t i = 0; i < count; i++) {
        char *library = strchr(argv[3 + i], '=');
        insist(library != NULL, "NAME=LIBRARY");
        *library++ = 0;
        void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
        if (!handle) {
            fprintf(stderr, "%s\n", dlerror());
            return 1;
        }
        all[i].name = argv[3 + i];
        *(void **)&all[i].malloc = dlsym(handle, "malloc");
        *(void **)&all[i].free = dlsym(handle, "free");
        *(void **)&all[i].realloc = dlsym(handle, "realloc");
        *(void **)&all[i].aligned_alloc = dlsym(handle, "aligned_alloc");
        insist(all[i].malloc && all[i].free && all[i].realloc && all[i].aligned_alloc, "a library of an allocator");
        if (i + 1 < count)
            printf(" %s |", all[i].name);
    }
    printf("\n|---|--:|");
    for (size_t i = 0; i + 1 < count; i++)
        printf("--:|");
    printf("\n");
    for (size_t i = 0; i < COUNT; i++)
        if (is_named(WORKLOADS[i].name, argv[2]))
            compare(i, all, count, rounds);
    return 0;
}
