// A program lowers its own limit on addresses: what the allocator merely reserves must not count, what it holds goes
// on, the limit holds for the heap as for the program's own mappings, and other threads notice nothing.
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "check.h"

enum { SETRLIMIT, PRLIMIT, RAW };

static void lower(int how, rlim_t limit) {
    struct rlimit value = {limit, RLIM_INFINITY}, old;
    if (how == SETRLIMIT)
        CHECK(setrlimit(RLIMIT_AS, &value) == 0);
    else if (how == PRLIMIT)
        CHECK(prlimit(getpid(), RLIMIT_AS, &value, &old) == 0 && old.rlim_cur == RLIM_INFINITY);
    else
        CHECK(syscall(SYS_prlimit64, 0, RLIMIT_AS, &value, NULL) == 0);
}

static bool maps(size_t size) {
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p != MAP_FAILED && munmap(p, size) == 0;
}

static void alone(int how, size_t limit) {
    // Areas, holes between them, retained ranges, small blocks and runs, all with contents.
    enum { N = 24 };
    unsigned char *blocks[N];
    size_t sizes[N];
    for (int i = 0; i < N; i++) {
        sizes[i] = i % 3 == 0 ? 100u + i : i % 3 == 1 ? 30000u * i : (3u << 20) + 100000u * i;
        blocks[i] = malloc(sizes[i]);
        CHECK(blocks[i]);
        memset(blocks[i], i + 1, sizes[i]);
    }
    for (int i = 2; i < N; i += 6) {
        free(blocks[i]);
        blocks[i] = NULL;
    }
    lower(how, limit);
    if (how != RAW)
        CHECK(maps(limit / 4));
    errno = 0;
    CHECK(malloc(limit + 1) == NULL && errno == ENOMEM);
    errno = 0;
    CHECK(calloc(1, limit) == NULL && errno == ENOMEM);
    CHECK(maps(limit / 4));
    // To the end, small and large.
    size_t total = 0;
    void *list = NULL;
    for (size_t size = limit / 16; size >= 1000; size = size / 4) {
        void *p;
        errno = 0;
        while ((p = malloc(size))) {
            memset(p, 1, 1000);
            *(void **)p = list;
            list = p;
            total += size;
            CHECK(total < limit);
        }
        CHECK(errno == ENOMEM);
    }
    if (total < limit / 2)
        fprintf(stderr, "%zu of %zu bytes\n", total, limit);
    CHECK(total > limit / 2);
    for (void *next; list; list = next) {
        next = *(void **)list;
        free(list);
    }
    for (int i = 0; i < N; i++) {
        for (size_t at = 0; blocks[i] && at < sizes[i]; at += 500)
            CHECK(blocks[i][at] == i + 1);
        // Areas move and grow as before.
        blocks[i] = realloc(blocks[i], sizes[i] + 4000000);
        CHECK(blocks[i] && (i % 6 == 2 || blocks[i][sizes[i] - 1] == i + 1));
    }
    for (int i = 0; i < N; i++)
        free(blocks[i]);
    // And up again.
    lower(SETRLIMIT, RLIM_INFINITY);
    void *p = malloc(2 * limit);
    CHECK(p);
    free(p);
}

static volatile bool stop;

static void *worker(void *argument) {
    unsigned seed = (unsigned)(size_t)argument;
    while (!stop) {
        unsigned char *blocks[8];
        size_t sizes[8];
        for (int i = 0; i < 8; i++) {
            seed = seed * 1103515245 + 12345;
            sizes[i] = 1 + (seed >> 8) % ((seed >> 4) % 4 == 0 ? 9000000 : 60000);
            blocks[i] = malloc(sizes[i]);
            CHECK(blocks[i]);
            blocks[i][0] = blocks[i][sizes[i] - 1] = 7;
        }
        for (int i = 0; i < 8; i++) {
            CHECK(blocks[i][0] == 7 && blocks[i][sizes[i] - 1] == 7);
            free(blocks[i]);
        }
    }
    return NULL;
}

static void among_threads(int delay) {
    pthread_t threads[3];
    for (size_t i = 0; i < 3; i++)
        CHECK(pthread_create(&threads[i], NULL, worker, (void *)(i + 1)) == 0);
    usleep((useconds_t)delay);
    lower(SETRLIMIT, (rlim_t)4 << 30);
    usleep(3000);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        void *p = malloc(5 << 20);
        _exit(p == NULL);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    stop = true;
    for (int i = 0; i < 3; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
}

int main(void) {
    for (int round = 0; round < 26; round++) {
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0) {
            if (round < 6)
                alone(round % 3, round < 3 ? 256 << 20 : (size_t)2 << 30);
            else
                among_threads(round * 200);
            exit(0);
        }
        int status;
        CHECK(waitpid(pid, &status, 0) == pid);
        if (status != 0)
            fprintf(stderr, "round %d: status %x\n", round, status);
        CHECK(status == 0);
    }
    return 0;
}
