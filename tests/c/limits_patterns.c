// Within a limit on data or addresses a program gets along in which what it has in use is small, then large, and the
// other way about: what is free in the one form is not in the way of the other.
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "check.h"

#define MIB ((size_t)1 << 20)
// What a program has in use at once.
#define USED (48 * MIB)

static void *list;

static bool fill(size_t bytes, size_t size) {
    for (size_t i = 0; i < bytes / size; i++) {
        void **p = malloc(size);
        if (!p)
            return false;
        memset(p, 1, size);
        *p = list;
        list = p;
    }
    return true;
}

static void drop(void) {
    for (void **next; list; list = next) {
        next = *(void **)list;
        free(list);
    }
}

static bool large(size_t size) {
    unsigned char *p = malloc(size);
    if (!p)
        return false;
    // What comes back reads as it should, and can be written to.
    memset(p, 2, size);
    free(p);
    p = calloc(size / 2, 1);
    if (!p)
        return false;
    for (size_t at = 0; at < size / 2; at += 1000)
        CHECK(p[at] == 0);
    memset(p, 3, size / 2);
    free(p);
    return true;
}

static void small_then_large(size_t size) {
    for (int round = 0; round < 3; round++) {
        CHECK(fill(USED, size));
        drop();
        CHECK(large(USED));
    }
}

static void small_and_large(void) {
    // Half of it stays: whole pageblocks, as those that were filled first.
    CHECK(fill(USED / 2, 100));
    void *kept = list;
    list = NULL;
    CHECK(fill(USED / 2, 100));
    drop();
    CHECK(large(USED / 2));
    list = kept;
    drop();
    CHECK(large(USED));
}

static void growing(int blocks, size_t most) {
    // The contents stay, wherever it grows.
    unsigned char *block[2] = {NULL, NULL};
    size_t had = 0;
    for (size_t size = 1000; size < most; had = size, size += size / 4)
        for (int i = 0; i < blocks; i++) {
            unsigned char *p = realloc(block[i], size);
            CHECK(p);
            for (size_t at = 0; at < had; at += 999)
                CHECK(p[at] == (unsigned char)(at / 999 + i));
            for (size_t at = 0; at < size; at += 999)
                p[at] = (unsigned char)(at / 999 + i);
            block[i] = p;
        }
    for (int i = 0; i < blocks; i++)
        free(block[i]);
}

static void *thread(void *unused) {
    (void)unused;
    void *mine = NULL;
    for (int i = 0; i < 80000; i++) {
        void **p = malloc(100);
        CHECK(p);
        memset(p, 1, 100);
        *p = mine;
        mine = p;
    }
    for (void **next; mine; mine = next) {
        next = *(void **)mine;
        free(mine);
    }
    return NULL;
}

static void threads(void) {
    pthread_attr_t attributes;
    CHECK(pthread_attr_init(&attributes) == 0 && pthread_attr_setstacksize(&attributes, 256 << 10) == 0);
    for (int round = 0; round < 3; round++) {
        pthread_t all[4];
        for (int i = 0; i < 4; i++)
            CHECK(pthread_create(&all[i], &attributes, thread, NULL) == 0);
        for (int i = 0; i < 4; i++)
            CHECK(pthread_join(all[i], NULL) == 0);
        CHECK(large(USED - 12 * MIB));
    }
}

static void *forker(void *stop) {
    while (!__atomic_load_n((int *)stop, __ATOMIC_RELAXED)) {
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0)
            // Of what went offline in the parent the child knows.
            _exit(!fill(2 * MIB, 100) || !large(4 * MIB));
        int status;
        CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    }
    return NULL;
}

static void beside_forks(void) {
    int stop = 0;
    pthread_t other;
    CHECK(pthread_create(&other, NULL, forker, &stop) == 0);
    for (int round = 0; round < 10; round++) {
        // Bounded, so that the child has some room.
        void *mine = NULL;
        for (int i = 0; i < 200000; i++) {
            void **p = malloc(100);
            CHECK(p);
            *p = mine;
            mine = p;
        }
        for (void **next; mine; mine = next) {
            next = *(void **)mine;
            free(mine);
        }
        unsigned char *p = malloc(36 * MIB);
        CHECK(p);
        p[0] = p[36 * MIB - 1] = 1;
        free(p);
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    CHECK(pthread_join(other, NULL) == 0);
}

static void own_mappings(void) {
    // What the heap has open the program cannot map: it grows by little where there is a limit.
    size_t mapped = 0;
    CHECK(fill(24 * MIB, 100));
    while (mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED)
        mapped += MIB;
    CHECK(mapped >= 32 * MIB);
    drop();
    // Until nothing at all is left, and again when there is.
    CHECK(!large(USED));
    CHECK(fill(24 * MIB, 3000));
}

static void run(int pattern) {
    switch (pattern) {
    case 0:
        small_then_large(100);
        break;
    case 1:
        small_then_large(3000);
        break;
    case 2:
        small_then_large(20000);
        break;
    case 3:
        for (size_t size = 11 * MIB; size > 10000; size /= 3) {
            CHECK(fill(USED - 12 * MIB, size));
            drop();
        }
        CHECK(large(USED));
        CHECK(fill(USED, 100));
        break;
    case 4:
        small_and_large();
        break;
    case 5:
        CHECK(fill(USED, 100));
        drop();
        growing(1, USED);
        break;
    case 6:
        growing(2, USED / 2);
        break;
    case 7:
        threads();
        break;
    case 8:
        beside_forks();
        break;
    default:
        own_mappings();
    }
}

// Each limit is a quarter more than what is in use. Where addresses are counted, what grows may need as much again, and
// the C library gives each thread 64 MiB.
static bool applies(int pattern, int resource) {
    const char *mode = getenv("MODE");
    return resource == RLIMIT_DATA || pattern != (mode && !strcmp(mode, "glibc") ? 7 : 6);
}

int main(int argc, char **argv) {
    if (argc > 1) {
        run(atoi(argv[1]));
        return 0;
    }
    const int resources[] = {RLIMIT_DATA, RLIMIT_AS};
    for (int pattern = 0; pattern < 10; pattern++)
        for (int i = 0; i < 2; i++) {
            if (!applies(pattern, resources[i]))
                continue;
            char text[4] = {(char)('0' + pattern)};
            pid_t pid = fork();
            CHECK(pid >= 0);
            if (pid == 0) {
                // Stacks of threads, code of libraries.
                size_t more = (pattern >= 7 ? 12 : 0) + (resources[i] == RLIMIT_AS ? 10 : 0);
                struct rlimit limit = {USED / 4 * 5 + 4 * MIB + more * MIB, RLIM_INFINITY};
                CHECK(setrlimit(resources[i], &limit) == 0);
                execl(argv[0], argv[0], text, (char *)NULL);
                _exit(100);
            }
            int status;
            CHECK(waitpid(pid, &status, 0) == pid);
            if (status != 0)
                fprintf(stderr, "pattern %d resource %d: status %x\n", pattern, resources[i], status);
            CHECK(status == 0);
        }
    return 0;
}
