// A handler that interrupts a `fork` forks, too, and its child ends with `exit`, whose destructors run with the locks
// of the interrupted `fork` held.
#include <errno.h>
#include <signal.h>
#include <sys/wait.h>

#include "check.h"

enum { TURNS = 40 };
static volatile sig_atomic_t handled;

static void wait_for(pid_t pid) {
    int status;
    while (waitpid(pid, &status, 0) != pid)
        CHECK(errno == EINTR);
    CHECK(status == 0);
}

static void handler(int number) {
    (void)number;
    int error = errno;
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0)
        exit(0);
    wait_for(pid);
    handled++;
    errno = error;
}

int main(void) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    pid_t parent = getpid();
    free(malloc(10));
    for (int i = 0; i < TURNS; i++) {
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0) {
            // Often before the parent is back from the system call.
            CHECK(kill(parent, SIGALRM) == 0);
            _exit(0);
        }
        wait_for(pid);
    }
    CHECK(handled == TURNS);
    return 0;
}
