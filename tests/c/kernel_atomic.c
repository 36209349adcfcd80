// GFP_ATOMIC makes no system call, waits for nobody and takes no page fault, and is served while the reserve lasts,
// whoever holds whatever lock: the kernel kills what calls it, and counts the faults.
/* rows: C2 C3 C5 C11 D12 I3 */
//: modes: so archive static
//: run: alone
//: run: SLABWRIGHT_RSEQ=0 alone
//: run: handler
//: run: SLABWRIGHT_RSEQ=0 handler
//: run: load
//: run: SLABWRIGHT_RSEQ=0 load
//: run: GLIBC_TUNABLES=glibc.pthread.rseq=0 unregistered
//: run: preempts
//: run: SLABWRIGHT_RSEQ=0 preempts
//: run: threads
//: run: SLABWRIGHT_RSEQ=0 threads
//: run: fifo
//: run: noio
//: run: SLABWRIGHT_RSEQ=0 noio
//: run: faults
//: run: SLABWRIGHT_RSEQ=0 faults
//: run: SLABWRIGHT_RESERVE=16M faults
//: run: proof => exit 159
#define SLW_KERNEL_NAMES
#include <slabwright.h>

#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "check.h"
#include "filter.h"

#define HELD 400

static struct kmem_cache *cache;

// From here on every system call of the calling thread but leaving the program, or a handler, ends it.
static void kill_on_calls(void) {
    struct sock_filter filter[] = {
        LOAD_CALL,
        ANSWER_CALL(SYS_exit_group, SECCOMP_RET_ALLOW),
        ANSWER_CALL(SYS_rt_sigreturn, SECCOMP_RET_ALLOW),
        ANSWER(SECCOMP_RET_KILL_PROCESS),
    };
    install_filter(filter, sizeof filter);
}

struct held {
    void *p[HELD];
    unsigned char kind[HELD], order[HELD];
    size_t size[HELD];
    unsigned long granted, refused;
    uint64_t random;
};

// Gives the block at `n` back, its bytes checked.
static void give_back(struct held *held, unsigned n) {
    unsigned char *p = held->p[n];
    if (!p)
        return;
    if (p[0] != (unsigned char)n || p[held->size[n] - 1] != (unsigned char)n)
        __builtin_trap();
    held->p[n] = NULL;
    if (held->kind[n] == 0)
        kfree(p);
    else if (held->kind[n] == 1)
        kmem_cache_free(cache, p);
    else
        free_pages((unsigned long)p, held->order[n]);
}

// One step: a block is freed, and another one asked for in its place. No CHECK here: it would call printf.
static void step(struct held *held) {
    uint64_t r = next_random(&held->random);
    unsigned n = r % HELD;
    give_back(held, n);
    r >>= 10;
    unsigned char *p;
    if (r % 8 == 0) {
        held->kind[n] = 2;
        held->order[n] = r / 8 % 3;
        held->size[n] = (size_t)4096 << held->order[n];
        p = (unsigned char *)__get_free_pages(GFP_ATOMIC, held->order[n]);
    } else if (r % 8 < 3) {
        held->kind[n] = 1;
        held->size[n] = 300;
        p = kmem_cache_alloc(cache, GFP_ATOMIC);
    } else {
        held->kind[n] = 0;
        held->size[n] = 1 + (r / 8) % (r & 64 ? 200 : 10000);
        p = kmalloc(held->size[n], r & 128 ? GFP_ATOMIC : GFP_ATOMIC | __GFP_ZERO);
    }
    held->p[n] = p;
    if (!p) {
        held->refused++;
        return;
    }
    held->granted++;
    memset(p, (unsigned char)n, held->size[n]);
}

static struct held mine, handlers;
static volatile sig_atomic_t handled;

static void handler(int signal) {
    (void)signal;
    for (int n = 0; n < 20; n++)
        step(&handlers);
    handled++;
}

static volatile int started, done;

static void *churn(void *seed) {
    uint64_t random = (uint64_t)(uintptr_t)seed;
    void *p[64] = {0};
    while (!done) {
        unsigned n = next_random(&random) % 64;
        free(p[n]);
        p[n] = malloc(1 + next_random(&random) % 20000);
        started = 1;
    }
    return NULL;
}

static void *lone(void *unused) {
    (void)unused;
    kill_on_calls();
    for (long n = 0; n < 100000; n++)
        step(&mine);
    done = 1;
    // Even to end a thread takes system calls.
    for (;;)
        __builtin_ia32_pause();
    return NULL;
}

static long faults(void) {
    struct rusage usage;
    CHECK(!getrusage(RUSAGE_THREAD, &usage));
    return usage.ru_minflt + usage.ru_majflt;
}

static volatile long handler_faults;

static void counting_handler(int signal) {
    long before = faults();
    handler(signal);
    handler_faults += faults() - before;
}

__attribute__((noinline)) static void touch_stack(void) {
    volatile char stack[128 << 10];
    for (size_t n = 0; n < sizeof stack; n += 1024)
        stack[n] = 1;
}

// The handler interrupts threads that allocate and free as fast as they can, wherever they are; the kernel sends the
// signal to one that runs.
static void loaded(void) {
    // What is the test's own: its code, and the stack that signals come in on.
    touch_stack();
    for (int n = 0; n < 20; n++)
        counting_handler(0);
    handler_faults = 0;
    struct sigaction action = {.sa_handler = counting_handler, .sa_flags = SA_RESTART};
    struct itimerval timer = {{0, 200}, {0, 200}};
    sigset_t alarms;
    sigemptyset(&alarms);
    sigaddset(&alarms, SIGALRM);
    pthread_t other;
    CHECK(!sigaction(SIGALRM, &action, NULL) && !pthread_sigmask(SIG_BLOCK, &alarms, NULL));
    CHECK(!pthread_create(&other, NULL, churn, (void *)1234));
    CHECK(!pthread_sigmask(SIG_UNBLOCK, &alarms, NULL) && !setitimer(ITIMER_REAL, &timer, NULL));
    uint64_t random = 4711;
    void *p[200] = {0};
    for (unsigned n = 0; handled < 5000; n++) {
        unsigned at = next_random(&random) % 200;
        free(p[at]);
        // Slow paths most of all: classes and runs that come and go, blocks of pages, caches flushed.
        p[at] = malloc(1 + next_random(&random) % (n % 64 ? 9000 : 600000));
        if (n % 1000 == 0)
            kmem_cache_shrink(cache);
    }
    timer = (struct itimerval){{0, 0}, {0, 0}};
    CHECK(!setitimer(ITIMER_REAL, &timer, NULL));
    done = 1;
    pthread_join(other, NULL);
    for (int n = 0; n < 200; n++)
        free(p[n]);
    if (handlers.refused || handler_faults)
        fprintf(stderr, "%lu granted, %lu refused, %ld faults\n", handlers.granted, handlers.refused, handler_faults);
    CHECK(!handlers.refused && !handler_faults);
}

static sem_t go, gone;

static void *urgent(void *unused) {
    (void)unused;
    for (int round = 0; round < 400; round++) {
        sem_wait(&go);
        for (int n = 0; n < 50; n++)
            step(&mine);
        sem_post(&gone);
    }
    return NULL;
}

// One thread takes the processor from others that may hold anything, and keeps it until it has what it wants.
static void preempting(void) {
    run_on(sched_getcpu());
    CHECK(!sem_init(&go, 0, 0) && !sem_init(&gone, 0, 0));
    pthread_t others[2], thread;
    for (uintptr_t n = 0; n < 2; n++)
        CHECK(!pthread_create(&others[n], NULL, churn, (void *)(n * 1000 + 77)));
    CHECK(!pthread_create(&thread, NULL, urgent, NULL));
    struct sched_param param = {.sched_priority = 1};
    // Without the right to it, it takes turns.
    pthread_setschedparam(thread, SCHED_FIFO, &param);
    for (int round = 0; round < 400; round++) {
        usleep(300);
        sem_post(&go);
        sem_wait(&gone);
    }
    done = 1;
    pthread_join(thread, NULL);
    for (int n = 0; n < 2; n++)
        pthread_join(others[n], NULL);
    if (mine.refused)
        fprintf(stderr, "%lu granted, %lu refused\n", mine.granted, mine.refused);
    CHECK(!mine.refused);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    const char *what = argv[1];
    // On a machine so busy that this takes ten seconds the kernel comes by to make huge pages of what is in use, and
    // who touches that meanwhile has to wait for it, by a page fault.
    CHECK(!prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
    cache = kmem_cache_create("atomic", 300, 0, SLAB_NO_MERGE, NULL);
    CHECK(cache && slw_atomic_reserve(16 << 20) >= 15 << 20);
    mine.random = 88172645463325252;
    handlers.random = 9241867421;
    for (int n = 0; n < HELD; n++)
        mine.p[n] = handlers.p[n] = NULL;
    if (!strcmp(what, "alone")) {
        kill_on_calls();
        for (long n = 0; n < 500000; n++)
            step(&mine);
        _exit(mine.refused > 0 ? 2 : 0);
    } else if (!strcmp(what, "handler")) {
        struct sigaction action = {.sa_handler = handler};
        struct itimerval timer = {{0, 300}, {0, 300}};
        CHECK(!sigaction(SIGALRM, &action, NULL) && !setitimer(ITIMER_REAL, &timer, NULL));
        kill_on_calls();
        // The handler interrupts what it itself does, at any point.
        while (handled < 2000)
            step(&mine);
        _exit(mine.refused + handlers.refused > 0 ? 2 : 0);
    } else if (!strcmp(what, "threads")) {
        // The others hold the locks that it wants, and sleep on those that it holds.
        pthread_t others[3], thread;
        for (uintptr_t n = 0; n < 3; n++)
            CHECK(!pthread_create(&others[n], NULL, churn, (void *)(n * 1000 + 77)));
        while (!started)
            sched_yield();
        CHECK(!pthread_create(&thread, NULL, lone, NULL));
        for (int n = 0; n < 3; n++)
            pthread_join(others[n], NULL);
        _exit(mine.refused > 0 ? 2 : 0);
    } else if (!strcmp(what, "load")) {
        loaded();
        return 0;
    } else if (!strcmp(what, "unregistered")) {
        // A thread whose first calls these are.
        pthread_t thread;
        CHECK(!pthread_create(&thread, NULL, lone, NULL));
        while (!done)
            sched_yield();
        _exit(mine.refused > 0 ? 2 : 0);
    } else if (!strcmp(what, "preempts")) {
        preempting();
        return 0;
    } else if (!strcmp(what, "fifo")) {
        struct sched_param param = {.sched_priority = 1};
        // Without the right to it, it runs as it is.
        sched_setscheduler(0, SCHED_FIFO, &param);
        kill_on_calls();
        for (long n = 0; n < 500000; n++)
            step(&mine);
        _exit(mine.refused > 0 ? 2 : 0);
    } else if (!strcmp(what, "noio")) {
        // Without __GFP_IO nothing enters the system either, to the last byte that is there: it is refused then, or
        // served by what comes back.
        static void *many[100000];
        static const gfp_t KINDS[] = {GFP_NOIO, GFP_NOWAIT, GFP_NOIO | __GFP_ZERO, GFP_NOIO | __GFP_NORETRY};
        unsigned got = 0, refusals = 0;
        kill_on_calls();
        for (unsigned n = 0; refusals < 1000 && got < 100000; n++) {
            size_t size = n % 3 ? 1 + n * 977 % 9000 : 1 + n * 977 % 300000;
            void *p = n % 5 == 4 ? kmem_cache_alloc(cache, KINDS[n % 4]) : kmalloc(size, KINDS[n % 4]);
            if (p)
                many[got++] = p;
            else
                refusals++;
        }
        unsigned held = got;
        while (got)
            kfree(many[--got]);
        for (unsigned n = 0; n < 1000; n++)
            if ((many[n] = kmalloc(1 + n % 2000, GFP_NOIO)))
                got++;
        _exit(held < 30 || refusals < 1000 || got < 900 ? 2 : 0);
    } else if (!strcmp(what, "faults")) {
        // The code, and this function's data, are touched first; what is measured is held, so that nothing is used
        // twice.
        static void *many[3000];
        memset(many, 1, sizeof many);
        for (int n = 0; n < 100; n++)
            step(&mine);
        long before = faults();
        for (unsigned n = 0; n < 3000; n++) {
            size_t size = 1 + n * 7 % 900;
            unsigned char *p = n % 2 ? kmalloc(size, GFP_ATOMIC) : kmem_cache_alloc(cache, GFP_ATOMIC);
            if (p)
                memset(p, 1, n % 2 ? size : 300);
            many[n] = p;
        }
        long after = faults();
        unsigned long got = 0;
        for (unsigned n = 0; n < 3000; n++) {
            got += many[n] != NULL;
            kfree(many[n]);
        }
        CHECK(got == 3000);
        if (after != before) {
            fprintf(stderr, "%ld page faults\n", after - before);
            return 1;
        }
        return 0;
    } else {
        // The filter does what it should: an ordinary request is killed by it.
        int status;
        pid_t child = fork();
        if (child == 0) {
            kill_on_calls();
            for (;;)
                if (!kmalloc(3 << 20, GFP_KERNEL))
                    _exit(0);
        }
        CHECK(waitpid(child, &status, 0) == child);
        return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : 0;
    }
}
