// Shrinkers are asked before a request fails, and a pool has something left when nothing else has.
/* rows: C4 D7 D12 */
//: modes: so archive static
//: run: SLABWRIGHT_LIMIT=64M shrinkers
//: run: SLABWRIGHT_LIMIT=64M SLABWRIGHT_RSEQ=0 shrinkers
//: run: SLABWRIGHT_LIMIT=64M pools
//: run: pools
//: run: waiting
//: run: interrupted
#define SLW_KERNEL_NAMES
#include <slabwright.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/time.h>

#include "check.h"

#define BLOCK 100000

struct cached {
    struct cached *next;
    char rest[BLOCK - sizeof(void *)];
};

static struct cached *volatile list;
static volatile size_t cached;
static volatile unsigned counted, scanned, nested;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static size_t count(struct shrinker *shrinker, struct shrink_control *control) {
    CHECK(shrinker->batch == 10 && control->gfp_mask & __GFP_FS);
    counted++;
    return cached ? cached : SHRINK_EMPTY;
}

static size_t scan(struct shrinker *shrinker, struct shrink_control *control) {
    (void)shrinker;
    scanned++;
    if (pthread_mutex_trylock(&mutex))
        return SHRINK_STOP;
    // A callback may allocate, even what cannot be had: it is not called again for that.
    nested++;
    CHECK(!kmalloc(60 << 20, GFP_KERNEL));
    free(malloc(1000));
    nested--;
    CHECK(nested == 0 && control->nr_to_scan <= 10);
    size_t freed = 0;
    while (freed < control->nr_to_scan && list) {
        struct cached *next = list->next;
        kfree(list);
        list = next;
        cached--;
        freed++;
    }
    pthread_mutex_unlock(&mutex);
    return freed;
}

static void fill(void) {
    // Until the next one would not be had without help: these do not call shrinkers.
    for (;;) {
        struct cached *one = kmalloc(BLOCK, GFP_NOFS);
        if (!one)
            break;
        memset(one, 1, BLOCK);
        one->next = list;
        list = one;
        cached++;
    }
}

static mempool_t *pool;
static void *volatile held[8];

static void *later(void *unused) {
    (void)unused;
    usleep(50000);
    void *element = held[0];
    held[0] = NULL;
    mempool_free(element, pool);
    return NULL;
}

static int may_make = 1;

static void *make(gfp_t gfp, void *data) {
    CHECK(data == &may_make);
    return may_make ? kmalloc(64, gfp) : NULL;
}

static void unmake(void *element, void *data) {
    CHECK(data == &may_make);
    kfree(element);
}

// Has elements, which are nobody else's meanwhile, and gives them back.
static void use_pool(int most) {
    int *mine[4], n = 0;
    while (n < most && (mine[n] = mempool_alloc(pool, GFP_ATOMIC))) {
        CHECK(*mine[n] == 0);
        *mine[n++] = 1;
    }
    while (n-- > 0) {
        *mine[n] = 0;
        mempool_free(mine[n], pool);
    }
}

static volatile sig_atomic_t handled;

static void handler(int signal) {
    static int *mine;
    (void)signal;
    // What it has from before goes back first.
    if (mine) {
        *mine = 0;
        mempool_free(mine, pool);
    }
    mine = handled < 2999 ? mempool_alloc(pool, GFP_ATOMIC) : NULL;
    if (mine) {
        CHECK(*mine == 0);
        *mine = 1;
    }
    handled++;
}

static void *other_thread(void *unused) {
    while (handled < 3000)
        use_pool(1);
    return unused;
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    const char *what = argv[1];
    if (!strcmp(what, "shrinkers")) {
        struct shrinker shrinker = {.count_objects = count, .scan_objects = scan, .batch = 10, .seeks = DEFAULT_SEEKS};
        CHECK(register_shrinker(&shrinker) == 0 && register_shrinker(&shrinker) == EINVAL);
        fill();
        CHECK(counted == 0 && cached > 300);
        size_t before = cached;
        // malloc gets what the program's cache has.
        char *p = malloc(10 << 20);
        CHECK(p && counted > 0 && scanned > 0 && cached < before);
        memset(p, 1, 10 << 20);
        free(p);
        // Not without __GFP_FS, and not in a context that must not sleep.
        fill();
        unsigned calls = counted;
        CHECK(!kmalloc(20 << 20, GFP_NOFS) && !kmalloc(20 << 20, GFP_NOIO) && !kmalloc(20 << 20, GFP_ATOMIC));
        CHECK(counted == calls);
        // A callback that cannot get on is not waited for.
        pthread_mutex_lock(&mutex);
        CHECK(!malloc(20 << 20) && counted > calls);
        pthread_mutex_unlock(&mutex);
        unregister_shrinker(&shrinker);
        calls = counted;
        CHECK(!malloc(20 << 20) && counted == calls);
        while (list) {
            struct cached *next = list->next;
            kfree(list);
            list = next;
        }
    } else if (!strcmp(what, "pools")) {
        struct kmem_cache *cache = kmem_cache_create("pooled", 200, 0, 0, NULL);
        mempool_t *blocks = mempool_create_kmalloc_pool(4, 3 << 20), *objects = mempool_create_slab_pool(4, cache);
        pool = mempool_create(4, make, unmake, &may_make);
        CHECK(blocks && objects && pool && !mempool_create(1, NULL, NULL, NULL) && errno == EINVAL);
        // With memory it is new; without, the kept ones serve; then it is NULL for who may not wait.
        void *first = mempool_alloc(pool, GFP_KERNEL);
        may_make = 0;
        for (int n = 0; n < 4; n++) {
            held[n] = mempool_alloc(pool, n % 2 ? GFP_KERNEL : GFP_ATOMIC);
            CHECK(held[n]);
            memset(held[n], n, 64);
        }
        errno = 0;
        CHECK(!mempool_alloc(pool, GFP_ATOMIC) && errno == ENOMEM);
        mempool_free(first, pool);
        CHECK(mempool_alloc(pool, GFP_NOWAIT) == first);
        mempool_free(first, pool);
        for (int n = 0; n < 4; n++)
            mempool_free(held[n], pool);
        mempool_free(NULL, pool);
        mempool_destroy(pool);
        void *block = mempool_alloc(blocks, GFP_KERNEL), *object = mempool_alloc(objects, GFP_KERNEL);
        CHECK(block && object);
        memset(block, 1, 3 << 20);
        memset(object, 1, 200);
        mempool_free(block, blocks);
        mempool_free(object, objects);
        mempool_destroy(blocks);
        mempool_destroy(objects);
        CHECK(kmem_cache_destroy(cache) == 0);
        mempool_destroy(NULL);
    } else if (!strcmp(what, "interrupted")) {
        // A pool is for handlers, too, whatever they interrupt.
        pool = mempool_create(4, make, unmake, &may_make);
        CHECK(pool);
        for (int n = 0; n < 4; n++) {
            CHECK((held[n] = mempool_alloc(pool, GFP_KERNEL)));
            *(int *)held[n] = 0;
        }
        may_make = 0;
        for (int n = 0; n < 4; n++) {
            int *kept = mempool_alloc(pool, GFP_KERNEL);
            CHECK(kept);
            *kept = 0;
            mempool_free(held[n], pool);
            held[n] = kept;
        }
        for (int n = 0; n < 4; n++)
            mempool_free(held[n], pool);
        struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
        struct itimerval timer = {{0, 200}, {0, 200}}, stop = {{0, 0}, {0, 0}};
        sigset_t alarms;
        sigemptyset(&alarms);
        sigaddset(&alarms, SIGALRM);
        pthread_t thread;
        CHECK(!sigaction(SIGALRM, &action, NULL) && !pthread_sigmask(SIG_BLOCK, &alarms, NULL));
        CHECK(!pthread_create(&thread, NULL, other_thread, NULL) && !pthread_sigmask(SIG_UNBLOCK, &alarms, NULL));
        CHECK(!setitimer(ITIMER_REAL, &timer, NULL));
        while (handled < 3000)
            use_pool(2);
        CHECK(!setitimer(ITIMER_REAL, &stop, NULL));
        pthread_join(thread, NULL);
        for (int n = 0; n < 4; n++)
            CHECK((held[n] = mempool_alloc(pool, GFP_ATOMIC)));
        CHECK(!mempool_alloc(pool, GFP_ATOMIC));
        for (int n = 0; n < 4; n++)
            mempool_free(held[n], pool);
        mempool_destroy(pool);
    } else {
        pool = mempool_create(2, make, unmake, &may_make);
        may_make = 0;
        held[0] = mempool_alloc(pool, GFP_KERNEL);
        held[1] = mempool_alloc(pool, GFP_KERNEL);
        pthread_t thread;
        CHECK(held[0] && held[1] && !pthread_create(&thread, NULL, later, NULL));
        // It does not fail: it waits until the other thread gives its element back.
        void *waited = mempool_alloc(pool, GFP_KERNEL);
        CHECK(waited && held[0] == NULL);
        pthread_join(thread, NULL);
        mempool_free(waited, pool);
        mempool_free(held[1], pool);
        mempool_destroy(pool);
    }
    return 0;
}
