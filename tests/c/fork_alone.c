// Forks of a program that has one thread take no lock: what parent and child write to, both copy. Of one that has had
// more, and of children and their children, memory is as usable as ever.
//: modes: preload norseq so archive static
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "check.h"

enum { BLOCKS = 200 };
static unsigned char *blocks[BLOCKS];

static long faults(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_minflt;
}

// Page faults of this process by a fork, at least.
static long copied(void) {
    long least = 1000;
    for (int i = 0; i < 20; i++) {
        long before = faults();
        pid_t pid = fork();
        if (pid == 0)
            _exit(0);
        int status;
        CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
        long by = faults() - before;
        least = by < least ? by : least;
    }
    return least;
}

static void use(int depth) {
    for (int i = 0; i < BLOCKS; i++) {
        CHECK(marked(blocks[i], 1000, (unsigned)i));
        free(blocks[i]);
        CHECK((blocks[i] = malloc(i % 50 == 0 ? 300000 : 1000)));
        mark(blocks[i], 1000, (unsigned)i);
    }
    void *large = malloc(5 << 20);
    CHECK(large);
    memset(large, 1, 5 << 20);
    free(large);
    if (depth > 0) {
        pid_t pid = fork();
        if (pid == 0) {
            use(depth - 1);
            _exit(0);
        }
        int status;
        CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
        use(0);
    }
}

// A fork that the C library knows nothing of.
static void use_in_clone(void) {
    pid_t pid = (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
    if (pid == 0) {
        use(0);
        _exit(0);
    }
    int status;
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
}

// Whether rows are changed by restartable sequences, as far as the kernel has them. Without, a program of one thread is
// watched, too.
static int has_sequences(void) {
    enum { MEMBARRIER = 1 << 7 | 1 << 8 };
    if (getenv("SLABWRIGHT_RSEQ") || (syscall(SYS_rseq, NULL, 0, 0, 0) && errno == ENOSYS))
        return 0;
    long known = syscall(SYS_membarrier, 0, 0, 0);
    return known > 0 && (known & MEMBARRIER) == MEMBARRIER;
}

// Whether there is a page by which such a child sees that it is one.
static int watched(void) {
    char line[256];
    int found = 0;
    FILE *file = fopen("/proc/self/smaps", "r");
    CHECK(file);
    while (fgets(line, sizeof line, file))
        found |= strncmp(line, "VmFlags:", 8) == 0 && strstr(line, " wf");
    fclose(file);
    return found;
}

static void *in_thread(void *unused) {
    CHECK(watched());
    CHECK(copied() > 0);
    use(1);
    return unused;
}

int main(void) {
    for (int i = 0; i < BLOCKS; i++) {
        CHECK((blocks[i] = malloc(1000)));
        mark(blocks[i], 1000, (unsigned)i);
    }
    CHECK(copied() > 0);
    CHECK(copied() < 20);
    use(3);
    use_in_clone();
    CHECK(!has_sequences() || !watched());
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, in_thread, NULL) == 0 && pthread_join(thread, NULL) == 0);
    use(3);
    use_in_clone();
    for (int i = 0; i < BLOCKS; i++)
        free(blocks[i]);
    return 0;
}
