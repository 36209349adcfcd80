// Where addresses are rationed those that the heap does not use are anybody's: what a program maps beside blocks, or
// where free memory was, stays as it is.
#include <errno.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "check.h"

#define MIB ((size_t)1 << 20)
#define PIECE ((size_t)64 << 10)
#define MOST 4096

static unsigned char *mine[MOST];
static int count;

// Maps a piece at or behind `at`, wherever the system has addresses first.
static void map_behind(unsigned char *at) {
    at = (unsigned char *)(((uintptr_t)at + PIECE - 1) & ~(PIECE - 1));
    for (int i = 0; i < 64; i++, at += PIECE) {
        const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
        unsigned char *p = mmap(at, PIECE, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (p != MAP_FAILED) {
            CHECK(p == at && count < MOST);
            memset(p, 100 + count % 100, PIECE);
            mine[count++] = p;
            return;
        }
        CHECK(errno == EEXIST);
    }
}

static void all_there(void) {
    unsigned char pages[PIECE / 4096];
    for (int i = 0; i < count; i++) {
        // Before it is touched, which would end the program.
        CHECK(mincore(mine[i], PIECE, pages) == 0);
        for (size_t at = 0; at < PIECE; at += 512)
            CHECK(mine[i][at] == 100 + i % 100);
    }
}

static void fill(unsigned char *p, size_t size, int value) {
    CHECK(p);
    memset(p, value, size);
    all_there();
}

static void beside_blocks(size_t size, size_t distance, size_t more) {
    unsigned char *p = malloc(size);
    fill(p, size, 1);
    map_behind(p + size + distance);
    p = realloc(p, size + more);
    fill(p, size + more, 2);
    map_behind(p + size + more);
    unsigned char *q = realloc(p, 2 * size + more);
    fill(q, 2 * size + more, 3);
    free(q);
    all_there();
    // What was kept goes back, too.
    q = malloc(300 * MIB);
    CHECK(q);
    q[0] = 1;
    free(q);
    all_there();
}

static void where_free_memory_was(void) {
    enum { BLOCKS = 100000 };
    static unsigned char *blocks[BLOCKS];
    for (int i = 0; i < BLOCKS; i++) {
        blocks[i] = malloc(1000);
        CHECK(blocks[i]);
        memset(blocks[i], 1, 1000);
    }
    for (int i = 0; i < BLOCKS; i++)
        free(blocks[i]);
    // Needs what they had.
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_AS, &limit) == 0);
    for (size_t size = limit.rlim_cur; size > MIB; size -= MIB) {
        unsigned char *p = malloc(size);
        if (p) {
            free(p);
            break;
        }
    }
    const int before = count;
    for (int i = 0; i < BLOCKS; i += 100)
        map_behind((unsigned char *)((uintptr_t)blocks[i] & ~(PIECE - 1)));
    CHECK(count > before);
    for (int i = 0; i < BLOCKS; i++) {
        blocks[i] = malloc(1000);
        CHECK(blocks[i]);
        memset(blocks[i], 2, 1000);
    }
    all_there();
    for (int i = 0; i < BLOCKS; i++)
        free(blocks[i]);
    all_there();
}

// Where the next blocks would lie: they lie elsewhere.
static void before_blocks(void) {
    unsigned char *p = malloc(16 * MIB);
    CHECK(p);
    for (int i = 1; i <= 6; i++)
        map_behind(p + (size_t)i * 16 * MIB);
    free(p);
    for (int round = 0; round < 2; round++) {
        unsigned char *blocks[8];
        for (int i = 0; i < 8; i++)
            fill(blocks[i] = malloc(20 * MIB), 20 * MIB, 1);
        for (int i = 0; i < 8; i++)
            free(blocks[i]);
    }
}

int main(int argc, char **argv) {
    struct rlimit limit = {512 * MIB, RLIM_INFINITY};
    CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
    before_blocks();
    // And where it is so from the start.
    if (argc > 1)
        return 0;
    for (size_t size = 8 * MIB; size < 18 * MIB; size += MIB * 5 / 4)
        for (size_t distance = 0; distance < 8 * MIB; distance = 2 * distance + PIECE)
            beside_blocks(size, distance, 3 * MIB);
    where_free_memory_was();
    execl(argv[0], argv[0], "again", (char *)NULL);
    return 1;
}
