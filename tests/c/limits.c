// Within limits on addresses and data the program starts, allocates until NULL with ENOMEM, frees and goes on.
#include <errno.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "check.h"

static void exhaust(size_t size) {
    void *list = NULL;
    size_t count = 0;
    for (;;) {
        errno = 0;
        void *p = malloc(size);
        if (!p) {
            CHECK(errno == ENOMEM);
            break;
        }
        memset(p, 1, size < 4096 ? size : 4096);
        *(void **)p = list;
        list = p;
        count++;
    }
    CHECK(count * size > 8 << 20);
    // realloc fails too, and leaves the block alone.
    void *p = list;
    CHECK(realloc(p, (size_t)1 << 40) == NULL && errno == ENOMEM);
    for (void *next; list; list = next) {
        next = *(void **)list;
        free(list);
    }
    // What was given back can be had again, in another size.
    p = malloc(4 << 20);
    CHECK(p);
    memset(p, 1, 4 << 20);
    free(p);
}

static void child(char *self, int resource, rlim_t limit, const char *size) {
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        struct rlimit value = {limit, limit};
        CHECK(setrlimit(resource, &value) == 0);
        execl(self, self, size, (char *)NULL);
        _exit(100);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    if (status != 0)
        fprintf(stderr, "resource %d limit %lu size %s: status %x\n", resource, (unsigned long)limit, size, status);
    CHECK(status == 0);
}

int main(int argc, char **argv) {
    if (argc > 1) {
        exhaust((size_t)atol(argv[1]));
        return 0;
    }
    const rlim_t limits[] = {64 << 20, 256 << 20, (rlim_t)4 << 30};
    const char *sizes[] = {"100", "3000", "70000", "1000000", "5000000"};
    for (int i = 0; i < 5; i++) {
        for (int j = 0; j < 3; j++)
            if (limits[j] <= 256 << 20 || i == 4)
                child(argv[0], RLIMIT_AS, limits[j], sizes[i]);
        for (int j = 0; j < 2; j++)
            child(argv[0], RLIMIT_DATA, limits[j], sizes[i]);
    }
    return 0;
}
