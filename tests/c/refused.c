// Programs of which the system refuses, from their start or from some time on, a call that malloc makes: each goes on
// without it.
//: modes: preload norseq so archive static
#include <errno.h>
#include <pthread.h>
#include <sys/wait.h>

#include "check.h"
#include "filter.h"

static const unsigned CALLS[] = {
    SYS_madvise, SYS_membarrier, SYS_rseq, SYS_mremap, SYS_userfaultfd, SYS_mincore, SYS_prlimit64, SYS_sched_getaffinity, SYS_openat, SYS_sysinfo, SYS_prctl, SYS_mbind, SYS_getcpu,
};

static void *work(void *unused) {
    (void)unused;
    enum { MANY = 1000 };
    unsigned char *blocks[MANY];
    for (size_t round = 0; round < 2; round++) {
        for (size_t i = 0; i < MANY; i++) {
            size_t size = i % 250 ? i * 37 % 70000 : (i / 250 + 1) << 21;
            CHECK((blocks[i] = malloc(size + 16)));
            mark(blocks[i], 16, (unsigned)i);
        }
        for (size_t i = 0; i < MANY; i++) {
            CHECK((blocks[i] = realloc(blocks[i], i % 100 ? i * 91 % 90000 + 16 : i << 12 | 16)));
            CHECK(marked(blocks[i], 16, (unsigned)i));
        }
        for (size_t i = 0; i < MANY; i++)
            free(blocks[i]);
        unsigned char *zeroes = calloc(9, 1 << 20);
        CHECK(zeroes);
        for (size_t i = 0; i < 9 << 20; i += 512)
            CHECK(!zeroes[i]);
        memset(zeroes, 1, 9 << 20);
        free(zeroes);
        CHECK((zeroes = calloc(5000, 1)) && !zeroes[0] && !zeroes[4999]);
        free(zeroes);
    }
    return NULL;
}

static void threads(void) {
    pthread_t all[3];
    for (int i = 0; i < 3; i++)
        CHECK(pthread_create(&all[i], NULL, work, NULL) == 0);
    work(NULL);
    for (int i = 0; i < 3; i++)
        CHECK(pthread_join(all[i], NULL) == 0);
    // A child, too.
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        work(NULL);
        _exit(0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

int main(int argc, char **argv) {
    if (argc > 1) {
        threads();
        return 0;
    }
    for (size_t i = 0; i < sizeof CALLS / sizeof *CALLS; i++)
        for (int late = 0; late < 2; late++) {
            pid_t pid = fork();
            CHECK(pid >= 0);
            if (pid == 0) {
                if (late)
                    threads();
                answer_calls(CALLS[i], SECCOMP_RET_ERRNO | EPERM, SECCOMP_RET_ALLOW);
                if (late) {
                    // A thread that cannot have sequences where others do ends the program: the C library says so.
                    if (CALLS[i] == SYS_rseq)
                        work(NULL);
                    else
                        threads();
                    exit(0);
                }
                execl(argv[0], argv[0], "begin", (char *)NULL);
                _exit(100);
            }
            int status;
            CHECK(waitpid(pid, &status, 0) == pid);
            // Without the files of its libraries no program begins.
            if (status != 0 && (late || CALLS[i] != SYS_openat)) {
                fprintf(stderr, "system call %u, late %d: status %x\n", CALLS[i], late, status);
                return 1;
            }
        }
    return 0;
}
