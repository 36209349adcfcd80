// mlockall: what is merely reserved neither becomes memory nor counts as locked, so that it works within a small limit,
// for a user without rights too, and what is allocated afterwards is bounded as for everybody. Nor where it comes
// before the heap's first use.
//: run:
//: run: first
#include <errno.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "check.h"

static void use(long most_kb) {
    void *blocks[1000];
    for (int i = 0; i < 1000; i++) {
        blocks[i] = malloc((size_t)i * 2);
        CHECK(blocks[i]);
    }
    void *large = malloc(8 << 20);
    if (large)
        memset(large, 1, 8 << 20);
    else
        CHECK(errno == ENOMEM);
    CHECK(resident_kb() < most_kb);
    free(large);
    for (int i = 0; i < 1000; i++)
        free(blocks[i]);
}

// The rights that lift the limit: none, until the call, for ever.
enum { NEVER, BEFORE, ALWAYS };

static void child(int flags, int rights) {
    free(malloc(10));
    struct rlimit limit = {8 << 20, 8 << 20};
    CHECK(setrlimit(RLIMIT_MEMLOCK, &limit) == 0 || errno == EPERM);
    CHECK(getrlimit(RLIMIT_MEMLOCK, &limit) == 0);
    if (rights == NEVER && geteuid() == 0)
        CHECK(setuid(65534) == 0);
    if (mlockall(flags) != 0) {
        // What the C library alone takes is within the limit, but in a program with more libraries or a smaller limit.
        CHECK(errno == EPERM || errno == ENOMEM);
        CHECK(limit.rlim_cur < 8 << 20);
        return;
    }
    if (rights == BEFORE && geteuid() == 0)
        CHECK(setuid(65534) == 0);
    // A few MB of which the programs and libraries are one half; not gigabytes.
    CHECK(status_kb("VmLck") < 16 << 10);
    if (flags & MCL_FUTURE && rights == ALWAYS) {
        // In steps that are no waste when they are backed at once.
        void *list = NULL;
        for (int i = 0; i < 40000; i++) {
            void **block = malloc(1000);
            CHECK(block);
            *block = list;
            list = block;
        }
        CHECK(resident_kb() < 64 << 10);
        for (void *next; list; list = next) {
            next = *(void **)list;
            free(list);
        }
    }
    use(128 << 10);
}

static int locked_first;

// Before the allocator's own, where that is in the program.
__attribute__((constructor(101))) static void lock_first(int argc, char **argv) {
    (void)argv;
    locked_first = argc == 2 && mlockall(MCL_CURRENT | MCL_FUTURE) == 0;
}

int main(int argc, char **argv) {
    (void)argv;
    if (argc == 2) {
        // Who may not lock this much is refused.
        CHECK(locked_first || geteuid() != 0);
        if (locked_first)
            CHECK(status_kb("VmLck") < 16 << 10);
        if (geteuid() == 0)
            use(128 << 10);
        return 0;
    }
    const int flags[] = {MCL_CURRENT, MCL_CURRENT | MCL_FUTURE, MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT};
    for (int i = 0; i < 3; i++) {
        for (int rights = NEVER; rights <= ALWAYS; rights++) {
            if (rights != NEVER && geteuid() != 0)
                continue;
            pid_t pid = fork();
            CHECK(pid >= 0);
            if (pid == 0) {
                child(flags[i], rights);
                exit(0);
            }
            int status;
            CHECK(waitpid(pid, &status, 0) == pid);
            if (status != 0)
                fprintf(stderr, "flags %d rights %d: status %x\n", flags[i], rights, status);
            CHECK(status == 0);
        }
    }
    return 0;
}
