// Forks while other threads allocate under the lock of the C library's list of streams, which `fork` takes, too, and as
// `fflush(NULL)` does: neither waits for the other.
#include <pthread.h>
#include <stdio.h>
#include <sys/wait.h>

#include "check.h"

// glibc's, exported but in none of its headers.
extern void _IO_list_lock(void);
extern void _IO_list_unlock(void);

enum { THREADS = 3, FORKS = 200, BLOCKS = 400 };
static volatile int stop;

static void *allocate(void *argument) {
    void *blocks[BLOCKS];
    do {
        _IO_list_lock();
        // More than caches of a thread or a CPU hold, so that locks are taken.
        for (int i = 0; i < BLOCKS; i++)
            CHECK(blocks[i] = malloc(i % 20 ? 5000 : 300000));
        for (int i = 0; i < BLOCKS; i++)
            free(blocks[i]);
        _IO_list_unlock();
        // The lock is not a fair one.
        usleep(20);
    } while (!stop);
    return argument;
}

int main(void) {
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, allocate, NULL) == 0);
    for (int i = 0; i < FORKS; i++) {
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0) {
            // The lock is free here: for this thread, and for others.
            pthread_t thread;
            stop = 1;
            fflush(NULL);
            CHECK(pthread_create(&thread, NULL, allocate, NULL) == 0 && pthread_join(thread, NULL) == 0);
            free(malloc(100000));
            _exit(0);
        }
        int status;
        CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    }
    stop = 1;
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    return 0;
}
