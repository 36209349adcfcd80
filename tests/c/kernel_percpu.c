// Per-CPU data: no addition is lost, wherever threads are moved and whatever interrupts them.
/* rows: J1 J2 J3 J4 J5 J6 J7 J8 */
//: modes: so archive static
//: run: sums
//: run: SLABWRIGHT_RSEQ=0 sums
//: run: forked
//: run: SLABWRIGHT_RSEQ=0 forked
//: run: alloc
//: run: sleeping => abort says sleeping allocation in atomic context
//: run: twice => abort says double free
//: run: foreign => abort says never allocated
#define SLW_KERNEL_NAMES
#include <slabwright.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

struct pair {
    unsigned long low, high;
};

static DEFINE_PER_CPU(long, hits) = 7;
DEFINE_PER_CPU(unsigned char, small);
static DEFINE_PER_CPU(struct pair, pairs) = {1, 2};
static unsigned long *words;
static unsigned short *shorts;
static unsigned long handled;

#define THREADS 6
#define ROUNDS 200000

static void handler(int signal) {
    (void)signal;
    this_cpu_inc(*words);
    // An interrupt on this CPU finds the copy as it is, and leaves it whole.
    get_cpu_ptr(words)[0]++;
    put_cpu_ptr(words);
    // Two threads may be in here at once.
    __atomic_fetch_add(&handled, 2, __ATOMIC_RELAXED);
}

static void *add(void *seed) {
    uint64_t random = (uint64_t)(uintptr_t)seed * 77 + 1;
    cpu_set_t all;
    CHECK(!sched_getaffinity(0, sizeof all, &all));
    for (int n = 0; n < ROUNDS; n++) {
        if (n % 500 == 0) {
            // Moved on purpose, also while a copy is held.
            int cpu;
            do {
                cpu = (int)(next_random(&random) % (unsigned)num_possible_cpus());
            } while (!CPU_ISSET(cpu, &all));
            struct pair *held = &get_cpu_var(pairs);
            held->low++;
            run_on(cpu);
            held->high++;
            CHECK(&get_cpu_var(pairs) == held);
            put_cpu_var(pairs);
            put_cpu_var(pairs);
        }
        this_cpu_inc(hits);
        this_cpu_add(*words, 3);
        this_cpu_sub(*words, 1);
        this_cpu_add(small, 1);
        this_cpu_add(*shorts, 5);
        if (n % 16 == 0) {
            get_cpu_var(hits)++;
            put_cpu_var(hits);
        }
    }
    return NULL;
}

static volatile int held, last;

// Keeps the last CPU's copies while the process forks.
static void *hold(void *unused) {
    run_on(last);
    get_cpu_var(hits)++;
    held = 1;
    while (held)
        ;
    put_cpu_var(hits);
    return unused;
}

// The child has no such thread, and uses the copies as it likes.
static void forked(void) {
    run_on(0);
    last = num_possible_cpus() - 1;
    pthread_t thread;
    CHECK(!pthread_create(&thread, NULL, hold, NULL));
    while (!held)
        sched_yield();
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        alarm(20);
        run_on(last);
        get_cpu_var(hits)++;
        put_cpu_var(hits);
        this_cpu_inc(hits);
        _exit(0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    held = 0;
    pthread_join(thread, NULL);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    const char *what = argv[1];
    int cpus = num_possible_cpus(), cpu;
    CHECK(cpus >= 1 && smp_processor_id() < cpus);
    words = alloc_percpu(unsigned long);
    shorts = alloc_percpu(unsigned short);
    CHECK(words && shorts);
    if (!strcmp(what, "forked")) {
        forked();
        return 0;
    }
    if (!strcmp(what, "sums")) {
        // Each CPU has a copy of its own, far from the others', with the initial value.
        for_each_possible_cpu(cpu) {
            CHECK(per_cpu(hits, cpu) == 7 && per_cpu(small, cpu) == 0 && *per_cpu_ptr(words, cpu) == 0);
            CHECK(per_cpu(pairs, cpu).low == 1 && per_cpu(pairs, cpu).high == 2);
            if (cpu > 0)
                CHECK((char *)per_cpu_ptr(words, cpu) - (char *)per_cpu_ptr(words, cpu - 1) >= 4096);
        }
        struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
        struct itimerval timer = {{0, 200}, {0, 200}}, stop = {{0, 0}, {0, 0}};
        CHECK(!sigaction(SIGALRM, &action, NULL) && !setitimer(ITIMER_REAL, &timer, NULL));
        pthread_t threads[THREADS];
        for (uintptr_t n = 0; n < THREADS; n++)
            CHECK(!pthread_create(&threads[n], NULL, add, (void *)n));
        for (int n = 0; n < THREADS; n++)
            pthread_join(threads[n], NULL);
        CHECK(!setitimer(ITIMER_REAL, &stop, NULL));
        long all_hits = 0;
        unsigned long all_words = 0, low = 0, high = 0;
        unsigned all_small = 0, all_shorts = 0;
        for_each_possible_cpu(cpu) {
            all_hits += per_cpu(hits, cpu) - 7;
            all_words += *per_cpu_ptr(words, cpu);
            all_small += per_cpu(small, cpu);
            all_shorts += *per_cpu_ptr(shorts, cpu);
            low += per_cpu(pairs, cpu).low;
            high += per_cpu(pairs, cpu).high;
        }
        CHECK(all_hits == THREADS * (ROUNDS + ROUNDS / 16));
        CHECK((unsigned char)all_small == (unsigned char)(THREADS * ROUNDS));
        CHECK((unsigned short)all_shorts == (unsigned short)(5 * THREADS * ROUNDS));
        CHECK(low - (unsigned long)cpus == high - 2ul * (unsigned long)cpus && low == (unsigned long)cpus + THREADS * ROUNDS / 500);
        // The handlers' plain increments happen under the lock of a copy, or inside of what they interrupted.
        CHECK(handled > 0 && all_words == 2ul * THREADS * ROUNDS + handled);
        CHECK(!in_atomic());
        free_percpu(words);
        free_percpu(shorts);
    } else if (!strcmp(what, "alloc")) {
        // Written to one copy, whichever.
        unsigned long sum = 0;
        this_cpu_write(*words, 41);
        for_each_possible_cpu(cpu)
            sum += *per_cpu_ptr(words, cpu);
        CHECK(sum == 41 && !in_atomic());
        enum { MANY = 3000 };
        static unsigned char *many[MANY];
        static size_t sizes[MANY];
        uint64_t random = 99;
        for (int round = 0; round < 20000; round++) {
            unsigned n = next_random(&random) % MANY;
            if (many[n]) {
                for_each_possible_cpu(cpu)
                    CHECK(marked(per_cpu_ptr(many[n], cpu), sizes[n], n + (unsigned)cpu));
                free_percpu(many[n]);
            }
            sizes[n] = 1 + next_random(&random) % 300;
            size_t align = (size_t)1 << next_random(&random) % 8;
            many[n] = slw___alloc_percpu(sizes[n], align, GFP_KERNEL);
            CHECK(many[n] && aligned_to(many[n], align));
            for_each_possible_cpu(cpu) {
                unsigned char *copy = per_cpu_ptr(many[n], cpu);
                for (size_t at = 0; at < sizes[n]; at++)
                    CHECK(copy[at] == 0);
                mark(copy, sizes[n], n + (unsigned)cpu);
            }
        }
        for (int n = 0; n < MANY; n++)
            free_percpu(many[n]);
        // What cannot be had is NULL.
        errno = 0;
        CHECK(!slw___alloc_percpu(32769, 8, GFP_KERNEL) && errno == EINVAL);
        CHECK(!slw___alloc_percpu(0, 8, GFP_KERNEL) && !slw___alloc_percpu(8, 3, GFP_KERNEL));
        void *big[200];
        int got = 0;
        while (got < 200 && (big[got] = slw___alloc_percpu(32768, 4096, GFP_KERNEL)))
            got++;
        CHECK(got > 30 && got < 200 && errno == ENOMEM);
        while (got)
            free_percpu(big[--got]);
    } else if (!strcmp(what, "sleeping")) {
        get_cpu_var(hits)++;
        free(kmalloc(10, GFP_KERNEL));
        put_cpu_var(hits);
    } else if (!strcmp(what, "twice")) {
        void *again = veil(shorts);
        free_percpu(shorts);
        free_percpu(again);
    } else {
        free_percpu(veil(&cpu));
    }
    return 0;
}
