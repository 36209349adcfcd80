// Counters with a copy for each CPU: threads add without a lock or an atomic instruction, and no addition is lost.
/* rows: J1 J2 J3 J5 */
//> 4 threads, 1000000 events each: 4000000 counted
//> bytes: 400000000
#define SLW_KERNEL_NAMES
#include <slabwright.h>

#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

static DEFINE_PER_CPU(unsigned long, events);
static unsigned long *bytes;

static void *work(void *argument) {
    for (int n = 0; n < 1000000; n++) {
        this_cpu_inc(events);
        this_cpu_add(*bytes, 100);
    }
    return argument;
}

int main(void) {
    bytes = alloc_percpu(unsigned long);
    if (!bytes)
        return 1;
    pthread_t threads[4];
    for (int n = 0; n < 4; n++)
        pthread_create(&threads[n], NULL, work, NULL);
    for (int n = 0; n < 4; n++)
        pthread_join(threads[n], NULL);
    unsigned long all = 0, sum = 0;
    for (int cpu = 0; cpu < sysconf(_SC_NPROCESSORS_CONF); cpu++) {
        all += per_cpu(events, cpu);
        sum += *per_cpu_ptr(bytes, cpu);
    }
    printf("4 threads, 1000000 events each: %lu counted\nbytes: %lu\n", all, sum);
    free_percpu(bytes);
    return 0;
}
