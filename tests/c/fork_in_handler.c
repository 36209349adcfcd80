// A handler that forks while the main program is inside malloc. The child allocates.
//: modes: preload norseq so archive static
#include <errno.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "check.h"

static volatile int forks, failed;

static void handler(int number) {
    (void)number;
    int kept = errno;
    if (forks < 300) {
        forks++;
        pid_t pid = fork();
        if (pid == 0) {
            void *p = malloc(100);
            if (p)
                memset(p, 1, 100);
            free(p);
            _exit(p ? 0 : 1);
        }
        int status = 1;
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
        }
        if (status != 0)
            failed = 1;
    }
    errno = kept;
}

int main(void) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    struct itimerval timer = {{0, 500}, {0, 500}};
    setitimer(ITIMER_REAL, &timer, NULL);
    uint64_t state = 5;
    void *blocks[100] = {0};
    for (long i = 0; forks < 300; i++) {
        int slot = (int)(next_random(&state) % 100);
        free(blocks[slot]);
        blocks[slot] = malloc(next_random(&state) % 20000);
        CHECK(blocks[slot]);
    }
    timer = (struct itimerval){0};
    setitimer(ITIMER_REAL, &timer, NULL);
    for (int i = 0; i < 100; i++)
        free(blocks[i]);
    CHECK(!failed);
    return 0;
}
