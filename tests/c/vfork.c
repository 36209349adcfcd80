// The child of a vfork, on its parent's memory, allocates while the parent's other threads do.
#include <pthread.h>
#include <sys/wait.h>

#include "check.h"

enum { THREADS = 3, TURNS = 300, BLOCKS = 200 };
static volatile int stop;

static void *noise(void *argument) {
    uint64_t state = 31 + (uintptr_t)argument;
    struct {
        unsigned char *p;
        size_t size;
    } blocks[BLOCKS] = {0};
    while (!stop) {
        int i = (int)(next_random(&state) % BLOCKS);
        if (blocks[i].p) {
            CHECK(marked(blocks[i].p, blocks[i].size, (unsigned)i));
            free(blocks[i].p);
        }
        blocks[i].size = 16 + next_random(&state) % 200;
        blocks[i].p = malloc(blocks[i].size);
        CHECK(blocks[i].p);
        mark(blocks[i].p, blocks[i].size, (unsigned)i);
    }
    for (int i = 0; i < BLOCKS; i++)
        free(blocks[i].p);
    return NULL;
}

__attribute__((noinline)) static void turn(void) {
    pid_t pid = vfork();
    if (pid == 0) {
        void *blocks[50];
        for (int round = 0; round < 20; round++) {
            for (int i = 0; i < 50; i++) {
                blocks[i] = malloc((size_t)(16 + i * 4));
                if (!blocks[i])
                    _exit(3);
                mark(blocks[i], (size_t)(16 + i * 4), (unsigned)(i + round));
            }
            for (int i = 0; i < 50; i++) {
                if (!marked(blocks[i], (size_t)(16 + i * 4), (unsigned)(i + round)))
                    _exit(4);
                free(blocks[i]);
            }
        }
        _exit(0);
    }
    CHECK(pid > 0);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(status == 0);
}

int main(void) {
    pthread_t threads[THREADS];
    for (intptr_t i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, noise, (void *)i) == 0);
    for (int i = 0; i < TURNS; i++)
        turn();
    stop = 1;
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    return 0;
}
