// A handler that forks while the main program is inside malloc, and another thread, too. The child comes back to what
// was interrupted and goes on: it waits for no lock of the thread that it has not got.
//: modes: preload norseq so archive static
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "check.h"
#include "noise.h"

static volatile int forks, failed, is_child;

static void handler(int number) {
    (void)number;
    int kept = errno;
    if (forks < 200 && !is_child) {
        forks++;
        pid_t pid = fork();
        if (pid == 0)
            is_child = 1;
        int status = pid < 0;
        while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) {
        }
        failed |= status;
    }
    errno = kept;
}

int main(void) {
    // On one CPU the other thread loses it with locks in hand.
    run_on(sched_getcpu());
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    sigset_t alarms;
    sigemptyset(&alarms);
    sigaddset(&alarms, SIGALRM);
    CHECK(!sigaction(SIGALRM, &action, NULL) && !pthread_sigmask(SIG_BLOCK, &alarms, NULL));
    pthread_t thread;
    CHECK(!pthread_create(&thread, NULL, noise, NULL) && !pthread_sigmask(SIG_UNBLOCK, &alarms, NULL));
    struct itimerval timer = {{0, 700}, {0, 700}};
    CHECK(!setitimer(ITIMER_REAL, &timer, NULL));
    uint64_t random = 5;
    void *blocks[64] = {0};
    while (forks < 200 && !is_child)
        replace_one(blocks, &random, 100000);
    if (is_child) {
        // Ended where it waits for ever.
        signal(SIGALRM, SIG_DFL);
        alarm(20);
        for (unsigned n = 0; n < 3000; n++)
            replace_one(blocks, &random, 100000);
        malloc_trim(0);
        _exit(0);
    }
    timer = (struct itimerval){0};
    CHECK(!setitimer(ITIMER_REAL, &timer, NULL));
    stop = 1;
    pthread_join(thread, NULL);
    for (unsigned i = 0; i < 64; i++)
        free(blocks[i]);
    CHECK(!failed);
    return 0;
}
