// Programs that are ended for a system call that the C library's malloc would not make, as sshd's and chronyd's filters
// have it.
//: modes: preload norseq so archive static
//: run: used
//: run: fresh
//: run: inherited
#include <malloc.h>
#include <pthread.h>

#include "check.h"
#include "filter.h"

#define ALLOW(call) ANSWER_CALL(SYS_##call, SECCOMP_RET_ALLOW)

static void confine(void) {
    struct sock_filter filter[] = {
        LOAD_CALL,
        // Memory and locks.
        ALLOW(brk), ALLOW(mmap), ALLOW(munmap), ALLOW(mremap), ALLOW(mprotect), ALLOW(madvise), ALLOW(futex),
        // Threads, and the end.
        ALLOW(clone), ALLOW(clone3), ALLOW(rseq), ALLOW(set_robust_list), ALLOW(rt_sigprocmask), ALLOW(rt_sigaction), ALLOW(exit), ALLOW(exit_group),
        ALLOW(write), ALLOW(getpid), ALLOW(clock_gettime), ALLOW(getrandom),
        ANSWER(SECCOMP_RET_KILL_PROCESS),
    };
    install_filter(filter, sizeof filter);
}

static void work(void) {
    enum { MANY = 2000 };
    static __thread char *blocks[MANY];
    for (size_t round = 0; round < 3; round++) {
        for (size_t i = 0; i < MANY; i++) {
            size_t size = i % 500 ? i * 37 % 70000 : (i / 500 + 1) << 23;
            CHECK((blocks[i] = malloc(size + 16)));
            mark(blocks[i], 16, (int)i);
        }
        for (size_t i = 0; i < MANY; i++) {
            CHECK((blocks[i] = realloc(blocks[i], i % 100 ? i * 91 % 90000 + 16 : i << 12 | 16)));
            CHECK(marked(blocks[i], 16, (int)i));
        }
        for (size_t i = 0; i < MANY; i++)
            free(blocks[i]);
        malloc_trim(0);
    }
    void *zeroes = calloc(1, 100 << 20);
    CHECK(zeroes);
    free(zeroes);
}

static void *on_cpu(void *cpu) {
    if (cpu)
        run_on((int)(long)cpu - 1);
    work();
    return NULL;
}

int main(int count, char **arguments) {
    CHECK(count == 2);
    if (!strcmp(arguments[1], "inherited")) {
        // As in a service of systemd's with `SystemCallFilter=@system-service`.
        answer_calls(SYS_mincore, SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_ALLOW);
        execl("/proc/self/exe", arguments[0], "confined before", NULL);
        return 1;
    }
    if (!strcmp(arguments[1], "confined before")) {
        work();
        return 0;
    }
    if (!strcmp(arguments[1], "used"))
        for (long cpu = 0; cpu < 2; cpu++) {
            pthread_t thread;
            CHECK(pthread_create(&thread, NULL, on_cpu, (void *)(cpu + 1)) == 0 && pthread_join(thread, NULL) == 0);
        }
    confine();
    work();
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        CHECK(pthread_create(&threads[i], NULL, on_cpu, NULL) == 0);
    for (int i = 0; i < 4; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    return 0;
}
