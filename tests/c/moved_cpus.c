// CPUs are taken from a program and given back, by itself and by its control group, while its threads allocate: no
// block is had twice or lost, whatever lies in the row of a CPU that is not there any more.
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/stat.h>

#include "check.h"

enum { THREADS = 4, HELD = 64, ROUNDS = 60 };

static pid_t ids[THREADS];
static bool stop;
// Handed from one thread to the next.
static unsigned char *handed[THREADS];

static void *worker(void *argument) {
    size_t nth = (size_t)argument;
    __atomic_store_n(&ids[nth], gettid(), __ATOMIC_RELEASE);
    uint64_t seed = nth + 1;
    unsigned char *held[HELD] = {NULL};
    size_t sizes[HELD];
    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED))
        for (int i = 0; i < HELD; i++) {
            if (held[i]) {
                CHECK(marked(held[i], sizes[i] < 32 ? sizes[i] : 32, (unsigned)(nth * HELD + (size_t)i)));
                free(held[i]);
            }
            uint64_t random = next_random(&seed);
            sizes[i] = 1 + (random >> 8) % (random % 64 == 0 ? 300000 : random % 8 == 0 ? 20000 : 300);
            CHECK((held[i] = malloc(sizes[i])));
            mark(held[i], sizes[i] < 32 ? sizes[i] : 32, (unsigned)(nth * HELD + (size_t)i));
            if (random % 16 == 0) {
                unsigned char *mine = malloc(sizes[i]);
                CHECK(mine);
                free(__atomic_exchange_n(&handed[(nth + 1) % THREADS], mine, __ATOMIC_ACQ_REL));
            }
        }
    for (int i = 0; i < HELD; i++)
        free(held[i]);
    return NULL;
}

static bool put(const char *directory, const char *file, const char *text) {
    char path[200];
    snprintf(path, sizeof path, "%s/%s", directory, file);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool done = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    if (fd >= 0)
        close(fd);
    return done;
}

int main(void) {
    cpu_set_t all, one;
    CHECK(!sched_getaffinity(0, sizeof all, &all));
    int first = 0, last = CPU_SETSIZE - 1;
    while (!CPU_ISSET(first, &all))
        first++;
    while (!CPU_ISSET(last, &all))
        last--;
    // It begins with one CPU: others were unknown then.
    run_on(first);
    free(veil(malloc(100)));
    pthread_t threads[THREADS];
    for (size_t i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, worker, (void *)i) == 0);
    for (int i = 0; i < THREADS; i++)
        while (!__atomic_load_n(&ids[i], __ATOMIC_ACQUIRE))
            usleep(1000);
    for (int round = 0; round < ROUNDS; round++) {
        CPU_ZERO(&one);
        CPU_SET(round % 2 ? first : last, &one);
        for (int i = 0; i < THREADS; i++)
            CHECK(!sched_setaffinity(ids[i], sizeof all, (round + i) % 3 ? &one : &all));
        // What lies in the rows of all CPUs goes back, also of those on which no thread may run now.
        if (round % 8 == 0)
            CHECK(!sched_setaffinity(0, sizeof one, &one) && malloc_trim(0) >= 0);
        usleep(3000);
    }
    char group[100];
    snprintf(group, sizeof group, "/sys/fs/cgroup/cpuset/slabwright-%d", getpid());
    if (last > first && mkdir(group, 0755) == 0) {
        char pid[20], cpus[2][20], both[40];
        snprintf(pid, sizeof pid, "%d", getpid());
        snprintf(cpus[0], 20, "%d", first);
        snprintf(cpus[1], 20, "%d", last);
        snprintf(both, sizeof both, "%d,%d", first, last);
        if (put(group, "cpuset.mems", "0") && put(group, "cpuset.cpus", both) && put(group, "cgroup.procs", pid)) {
            for (int round = 0; round < ROUNDS; round++) {
                CHECK(put(group, "cpuset.cpus", round % 3 == 2 ? both : cpus[round % 2]));
                if (round % 8 == 0)
                    malloc_trim(0);
                usleep(3000);
            }
            CHECK(put("/sys/fs/cgroup/cpuset", "cgroup.procs", pid));
        }
        rmdir(group);
    }
    __atomic_store_n(&stop, true, __ATOMIC_RELAXED);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    for (int i = 0; i < THREADS; i++)
        free(handed[i]);
    return 0;
}
