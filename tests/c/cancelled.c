// Calls of the heap are no points of cancellation: a thread that is to be cancelled comes back from all of them.
#include <malloc.h>
#include <pthread.h>

#include "check.h"

static volatile int came_back;

static void *cancelled(void *argument) {
    CHECK(pthread_cancel(pthread_self()) == 0);
    void *p = malloc(100);
    p = realloc(p, 100000);
    p = realloc(p, 10 << 20);
    CHECK(p);
    free(p);
    malloc_trim(0);
    malloc_stats();
    came_back = 1;
    pthread_testcancel();
    return argument;
}

int main(void) {
    for (int i = 0; i < 10; i++) {
        pthread_t thread;
        void *result;
        came_back = 0;
        CHECK(pthread_create(&thread, NULL, cancelled, NULL) == 0 && pthread_join(thread, &result) == 0);
        CHECK(result == PTHREAD_CANCELED && came_back);
    }
    malloc_stats();
    return 0;
}
