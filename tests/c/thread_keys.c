// Thread-specific data beyond the first 32 keys: the C library callocs inside pthread_setspecific, and destructors
// allocate and free while their thread ends.
#include <pthread.h>

#include "check.h"

enum { KEYS = 100 };
static pthread_key_t keys[KEYS];
static int destroyed;

static void destructor(void *value) {
    CHECK(*(int *)value == 7);
    free(value);
    void *more = malloc(300);
    memset(more, 1, 300);
    free(more);
    __atomic_add_fetch(&destroyed, 1, __ATOMIC_RELAXED);
}

static void *worker(void *argument) {
    for (int i = 0; i < KEYS; i++) {
        int *value = malloc(sizeof *value);
        *value = 7;
        CHECK(pthread_setspecific(keys[i], value) == 0);
    }
    return argument;
}

int main(void) {
    for (int i = 0; i < KEYS; i++)
        CHECK(pthread_key_create(&keys[i], destructor) == 0);
    for (int round = 0; round < 200; round++) {
        pthread_t threads[4];
        for (int i = 0; i < 4; i++)
            CHECK(pthread_create(&threads[i], NULL, worker, NULL) == 0);
        for (int i = 0; i < 4; i++)
            CHECK(pthread_join(threads[i], NULL) == 0);
    }
    CHECK(destroyed == 200 * 4 * KEYS);
    return 0;
}
