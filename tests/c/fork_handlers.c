// Handlers of fork that the program registers allocate while other threads do: those of the heap were there before, and
// run with all else done.
//: modes: glibc preload norseq so archive
#include <pthread.h>
#include <sys/wait.h>

#include "check.h"
#include "noise.h"

static int prepared, returned;
static void *kept;

// Of all sizes, and ever more of them, so that every lock is needed. Without those there is no memory.
static void allocate(void) {
    static void *blocks[20];
    static size_t more;
    more += 100;
    for (int i = 0; i < 20; i++)
        CHECK((blocks[i] = malloc(((size_t)16 << i) + more)));
    for (int i = 0; i < 20; i++)
        free(blocks[i]);
}

static void prepare(void) {
    prepared++;
    kept = malloc(1000);
    allocate();
}

static void finish(void) {
    returned++;
    allocate();
    free(kept);
}

static void fork_some(int count) {
    for (int i = 1; i <= count; i++) {
        prepared = returned = 0;
        pid_t pid = fork();
        if (pid == 0) {
            allocate();
            _exit(prepared == 1 && returned == 1 ? 0 : 1);
        }
        int status;
        CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0 && prepared == 1 && returned == 1);
    }
}

int main(void) {
    CHECK(pthread_atfork(prepare, finish, finish) == 0);
    fork_some(3);
    pthread_t threads[3];
    for (uintptr_t i = 0; i < 3; i++)
        CHECK(pthread_create(&threads[i], NULL, noise, (void *)(i + 1)) == 0);
    fork_some(100);
    stop = 1;
    for (int i = 0; i < 3; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    return 0;
}
