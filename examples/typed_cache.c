// A cache of objects of one type: a constructor that runs once for each object, and state that outlives a free.
/* rows: G6 G8 G9 G16 */
//> 1000 uses of one object, whose lock was made once: yes
//> the cache is gone: yes
#define SLW_KERNEL_NAMES
#include <slabwright.h>

#include <pthread.h>
#include <stdio.h>

struct session {
    pthread_mutex_t lock; // made once, whoever uses the object
    char name[600];
};

static int made;

static void construct(void *object) {
    struct session *session = object;
    pthread_mutex_init(&session->lock, NULL);
    made++;
}

int main(void) {
    struct kmem_cache *cache = kmem_cache_create("session", sizeof(struct session), 0, SLAB_HWCACHE_ALIGN, construct);
    struct session *first = NULL;
    int same = 1, before = 0;
    for (int use = 0; use < 1000; use++) {
        struct session *session = kmem_cache_alloc(cache, GFP_KERNEL);
        if (!session)
            return 1;
        if (!first)
            first = session, before = made;
        same &= session == first;
        pthread_mutex_lock(&session->lock);
        pthread_mutex_unlock(&session->lock);
        kmem_cache_free(cache, session);
    }
    printf("1000 uses of one object, whose lock was made once: %s\n", same && made == before ? "yes" : "no");
    printf("the cache is gone: %s\n", kmem_cache_destroy(cache) == 0 ? "yes" : "no");
    return 0;
}
