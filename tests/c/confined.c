// Programs that confine themselves, or their children, before they end.
//: modes: preload so static
//: run: SLABWRIGHT_VERIFY=0 silent
//: run: wiped
//: run: wiped-raw
//: run: written => says double free, or write to a free object
//: run: no-mask
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "check.h"
#include "filter.h"

int main(int argc, char **argv) {
    CHECK(argc == 2);
    if (!strcmp(argv[1], "no-mask")) {
        cpu_set_t all;
        CHECK(!sched_getaffinity(0, sizeof all, &all));
        int last = CPU_SETSIZE - 1;
        while (!CPU_ISSET(last, &all))
            last--;
        run_on(last);
        // Asking for the process's CPUs gives nothing.
        answer_calls(SYS_sched_getaffinity, SECCOMP_RET_ERRNO, SECCOMP_RET_ALLOW);
        execl("/proc/self/exe", argv[0], "uses", NULL);
        return 1;
    }
    if (!strcmp(argv[1], "uses")) {
        for (size_t i = 0; i < 10000; i++)
            free(veil(malloc(i)));
        return 0;
    }
    if (!strcmp(argv[1], "silent")) {
        for (int i = 0; i < 100; i++)
            free(veil(malloc(100)));
        // No system call but leaving the program.
        answer_calls(SYS_exit_group, SECCOMP_RET_ALLOW, SECCOMP_RET_KILL_PROCESS);
        free(veil(malloc(100)));
        return 0;
    }
    if (!strcmp(argv[1], "written")) {
        // No page was wiped, so the child is told of what it wrote to a block that it had freed.
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (!pid) {
            // Several, as the mark of the one on top is not looked at.
            void *freed[20];
            for (int i = 0; i < 20; i++)
                freed[i] = malloc(100);
            for (int i = 0; i < 20; i++)
                free(freed[i]);
            for (int i = 0; i < 20; i++)
                memset(veil(freed[i]), 1, 100);
            for (int i = 0; i < 1000; i++)
                veil(malloc(100));
            _exit(0);
        }
        int status;
        CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
        return 0;
    }
    // A page that the program wants wiped in children, and gives back all the same.
    enum { MANY = 300 };
    static void *blocks[MANY];
    void *page;
    CHECK(!posix_memalign(&page, 4096, 4096) && !madvise(page, 4096, MADV_WIPEONFORK));
    memset(page, 1, 4096);
    free(page);
    // A `clone` that the C library knows nothing of runs no handlers.
    pid_t pid = strcmp(argv[1], "wiped-raw") ? fork() : (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
    CHECK(pid >= 0);
    if (!pid) {
        for (int i = 0; i < MANY; i++) {
            CHECK(!posix_memalign(&blocks[i], 4096, 4096));
            memset(blocks[i], i, 4096);
        }
        for (int i = 0; i < MANY; i++)
            CHECK(*(unsigned char *)blocks[i] == (unsigned char)i);
        _exit(0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return 0;
}
