// Handlers that allocate and free in the middle of the main program's malloc, which no standard allows: it must neither
// hang nor corrupt anything.
//: modes: preload norseq so archive static
//: run: small
//: run: large
#include <pthread.h>
#include <signal.h>
#include <sys/time.h>

#include "check.h"

static volatile long signals;
static size_t bound = 600;

enum { KEPT = 16 };
static __thread void *kept[KEPT];
static __thread unsigned turn;

static void handler(int number) {
    (void)number;
    signals++;
    // Handlers of different signals interrupt each other, too: who takes a block out of its place owns it.
    unsigned i = turn++ % KEPT;
    void *p = __atomic_exchange_n(&kept[i], NULL, __ATOMIC_SEQ_CST);
    if (p) {
        CHECK(marked(p, 64, i));
        free(p);
    }
    size_t size = 64 + (turn * 37) % bound;
    p = malloc(size);
    // A handler may be refused: it interrupted what it would have to wait for.
    if (p) {
        mark(p, 64, i);
        free(__atomic_exchange_n(&kept[i], p, __ATOMIC_SEQ_CST));
    }
}

static volatile int stop;

static void *worker(void *argument) {
    uint64_t state = 99 + (uintptr_t)argument;
    enum { BLOCKS = 300 };
    struct {
        void *p;
        size_t size;
    } blocks[BLOCKS] = {0};
    while (!stop) {
        int i = (int)(next_random(&state) % BLOCKS);
        if (blocks[i].p) {
            CHECK(marked(blocks[i].p, blocks[i].size, (unsigned)i));
            free(blocks[i].p);
        }
        blocks[i].size = next_random(&state) % bound;
        blocks[i].p = malloc(blocks[i].size);
        CHECK(blocks[i].p);
        mark(blocks[i].p, blocks[i].size, (unsigned)i);
    }
    for (int i = 0; i < BLOCKS; i++)
        free(blocks[i].p);
    return NULL;
}

int main(int argc, char **argv) {
    if (argc > 1 && argv[1][0] == 'l')
        bound = 60000;
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    sigaction(SIGPROF, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
    struct itimerval timer = {{0, 50}, {0, 50}};
    pthread_t threads[2];
    for (intptr_t i = 0; i < 2; i++)
        CHECK(pthread_create(&threads[i], NULL, worker, (void *)i) == 0);
    setitimer(ITIMER_REAL, &timer, NULL);
    setitimer(ITIMER_PROF, &timer, NULL);
    for (int i = 0; i < 6000; i++) {
        pthread_kill(threads[i % 2], SIGUSR1);
        void *p = malloc((size_t)i % bound);
        CHECK(p);
        usleep(100);
        free(p);
    }
    stop = 1;
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    timer = (struct itimerval){0};
    setitimer(ITIMER_REAL, &timer, NULL);
    setitimer(ITIMER_PROF, &timer, NULL);
    CHECK(signals > 3000);
    return 0;
}
