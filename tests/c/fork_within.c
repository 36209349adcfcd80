// The C library forks on its own, as in `forkpty`, in a program that has neither forked before nor registered handlers:
// the child has the heap all the same.
//: modes: preload norseq so
#include <pthread.h>
#include <pty.h>
#include <sys/wait.h>

#include "check.h"
#include "noise.h"

enum { THREADS = 3, FORKS = 150 };

int main(void) {
    pthread_t threads[THREADS];
    for (intptr_t i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, noise, (void *)i) == 0);
    for (int turn = 0; turn < FORKS; turn++) {
        int terminal;
        pid_t pid = forkpty(&terminal, NULL, NULL, NULL);
        CHECK(pid >= 0);
        if (pid == 0) {
            alarm(10);
            uint64_t random = (uint64_t)turn;
            for (int i = 0; i < 300; i++) {
                size_t size = next_random(&random) % 300000;
                char *block = malloc(size);
                if (!block)
                    _exit(1);
                memset(block, 1, size);
                if (i % 2)
                    free(block);
            }
            _exit(0);
        }
        int status;
        CHECK(waitpid(pid, &status, 0) == pid && status == 0);
        CHECK(close(terminal) == 0);
    }
    stop = 1;
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    return 0;
}
