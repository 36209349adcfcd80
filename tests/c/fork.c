// Forks of a program whose threads allocate all the time: the child allocates at once, with threads of its own too,
// and neither sees what the other writes.
#include <pthread.h>
#include <sys/wait.h>

#include "check.h"

enum { THREADS = 4, FORKS = 200, BLOCKS = 64 };
static volatile int stop;

static void *noise(void *argument) {
    uint64_t state = 77 + (uintptr_t)argument;
    void *blocks[BLOCKS] = {0};
    while (!stop) {
        int i = (int)(next_random(&state) % BLOCKS);
        free(blocks[i]);
        size_t size = next_random(&state) % (next_random(&state) % 64 == 0 ? 300000 : 3000);
        blocks[i] = next_random(&state) % 4 ? malloc(size) : calloc(1, size);
        CHECK(blocks[i]);
    }
    for (int i = 0; i < BLOCKS; i++)
        free(blocks[i]);
    return NULL;
}

static void *small_work(void *argument) {
    for (int i = 0; i < 200; i++) {
        void *p = malloc((size_t)i * 50);
        CHECK(p);
        memset(p, 1, (size_t)i * 50);
        free(p);
    }
    return argument;
}

static void child(unsigned char **shared, int turn) {
    for (int i = 0; i < BLOCKS; i++) {
        CHECK(marked(shared[i], 2000, (unsigned)i));
        memset(shared[i], 0xcc, 2000);
        if (i % 2)
            free(shared[i]);
    }
    for (int i = 0; i < BLOCKS; i++) {
        void *p = malloc(2000);
        CHECK(p);
        memset(p, 0xdd, 2000);
    }
    void *large = malloc(5 << 20);
    CHECK(large);
    memset(large, 1, 5 << 20);
    free(large);
    if (turn % 8 == 0) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, small_work, NULL) == 0);
        small_work(NULL);
        CHECK(pthread_join(thread, NULL) == 0);
        // A grandchild.
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0) {
            small_work(NULL);
            _exit(0);
        }
        int status;
        CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    }
    if (turn % 4 == 0)
        exit(0); // with the check of the whole heap
    _exit(0);
}

int main(void) {
    pthread_t threads[THREADS];
    unsigned char *shared[BLOCKS];
    for (int i = 0; i < BLOCKS; i++)
        mark(shared[i] = malloc(2000), 2000, (unsigned)i);
    for (intptr_t i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, noise, (void *)i) == 0);
    for (int turn = 0; turn < FORKS; turn++) {
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0)
            child(shared, turn);
        free(malloc(1000));
        int status;
        CHECK(waitpid(pid, &status, 0) == pid);
        CHECK(status == 0);
        for (int i = 0; i < BLOCKS; i++)
            CHECK(marked(shared[i], 2000, (unsigned)i));
    }
    stop = 1;
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < BLOCKS; i++)
        free(shared[i]);
    return 0;
}
