// The allocator keeps no descriptor open, so that programs find the numbers they expect.
//: run: SLABWRIGHT_VERIFY=0
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/syscall.h>

#include "check.h"

static void *work(void *argument) {
    for (size_t size = 16; size < 64 << 20; size *= 2) {
        void *p = malloc(size);
        p = realloc(p, size * 2);
        memset(p, 1, 1);
        free(p);
    }
    return argument;
}

int main(int argc, char **argv) {
    if (argc == 1) {
        // Leaves behind what whoever started this had open.
        CHECK(syscall(SYS_close_range, 3u, ~0u, 0u) == 0);
        execl(argv[0], argv[0], "again", (char *)NULL);
        _exit(100);
    }
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, work, NULL) == 0);
    work(NULL);
    pthread_join(thread, NULL);
    int next = open("/dev/null", O_RDONLY);
    CHECK(next == 3);
    close(next);
    for (int fd = 3; fd < 1024; fd++)
        CHECK(fcntl(fd, F_GETFD) < 0);
    return 0;
}
