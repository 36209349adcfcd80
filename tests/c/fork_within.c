// The C library forks on its own, as in `forkpty`, in a program that has neither forked before nor registered handlers: the child has the heap all the same.
//: modes: preload norseq so
#include <pthread.h>
#include <pty.h>
#include <sys/wait.h>

#include "check.h"

enum { THREADS = 3, FORKS = 150 };
static volatile int stop;

// Takes and gives back locks.
static void *noise(void *argument) {
    uint64_t random = 4711 + (uintptr_t)argument;
    void *blocks[64] = {0};
    while (!stop) {
        unsigned i = next_random(&random) % 64;
        free(blocks[i]);
        blocks[i] = malloc(next_random(&random) % 300000);
    }
    for (unsigned i = 0; i < 64; i++)
        free(blocks[i]);
    return NULL;
}

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
