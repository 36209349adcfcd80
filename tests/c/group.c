// In a control group with little memory: what is asked for and hardly touched is not refused, and peaks of different
// kinds one after the other stay within the limit, beyond which the kernel kills.
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "check.h"

#define LIMIT "201326592"

static bool put(const char *directory, const char *file, const char *text) {
    char path[200];
    snprintf(path, sizeof path, "%s/%s", directory, file);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool done = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    if (fd >= 0)
        close(fd);
    return done;
}

// Makes a group of the version that is mounted.
static bool make_group(char *directory, size_t size) {
    const char *const roots[] = {"/sys/fs/cgroup/memory", "/sys/fs/cgroup"};
    const char *const files[] = {"memory.limit_in_bytes", "memory.max"};
    for (int i = 0; i < 2; i++) {
        snprintf(directory, size, "%s/slabwright-%d", roots[i], getpid());
        if (mkdir(directory, 0755) != 0)
            continue;
        if (put(directory, files[i], LIMIT))
            return true;
        rmdir(directory);
    }
    return false;
}

static void peak(size_t size, size_t total) {
    void *list = NULL;
    for (size_t n = 0; n < total; n += size) {
        void **block = malloc(size);
        CHECK(block);
        memset(block, 1, size);
        *block = list;
        list = block;
    }
    for (void *next; list; list = next) {
        next = *(void **)list;
        free(list);
    }
}

static void member(void) {
    // Many times the limit, a page here and there.
    size_t sparse = (size_t)1 << 30;
    char *table = calloc(1, sparse);
    CHECK(table);
    for (size_t i = 0; i < sparse; i += 1 << 20)
        table[i] = 1;
    for (int round = 0; round < 2; round++) {
        peak(40 << 20, 120 << 20);
        peak(1000, 120 << 20);
        peak(100000, 120 << 20);
        peak(3 << 20, 120 << 20);
        peak(64, 60 << 20);
    }
    for (size_t i = 0; i < sparse; i += 1 << 20)
        CHECK(table[i] == 1);
    free(table);
}

int main(int argc, char **argv) {
    if (argc > 1) {
        member();
        return 0;
    }
    char directory[100];
    bool grouped = make_group(directory, sizeof directory);
    if (!grouped)
        fprintf(stderr, "no control group with a memory limit can be made here: running without\n");
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        // 0 is the writer.
        CHECK(!grouped || put(directory, "cgroup.procs", "0"));
        execl(argv[0], argv[0], "member", (char *)NULL);
        _exit(100);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    for (int i = 0; grouped && rmdir(directory) != 0 && i < 100; i++)
        usleep(10000);
    if (status != 0)
        fprintf(stderr, "status %x\n", status);
    CHECK(status == 0);
    return 0;
}
