// Reports of a running process as files, read by another one.
/* rows: G2 */
//: modes: preload norseq so archive static
//: run: SLABWRIGHT_RSEQ=1
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "check.h"

static void *busy(void *argument) {
    for (unsigned n = 1;; n = n * 1103515245 + 12345)
        free(malloc(n >> 8 & 0xffff));
    return argument;
}

// Linked in, or not known to the program where it is preloaded.
extern int slw_serve_reports(const char *directory) __attribute__((weak));

static char *read_file(const char *path);

static void own_path(char path[200]) {
    snprintf(path, 200, "%s/%d/slabinfo", getenv("SLABWRIGHT_PROC"), getpid());
}

// A child of a fork has files of its own, after a moment by themselves.
static void has_own(void) {
    char path[200];
    own_path(path);
    for (int n = 0; n < 5; n++)
        CHECK(!strncmp(read_file(path), "slabinfo - version: 2.1", 23));
    exit(0);
}

// It may ask for them at once, and there is one set of them.
static void asks_for_own(void) {
    char path[200];
    own_path(path);
    if (slw_serve_reports) {
        CHECK(!slw_serve_reports(getenv("SLABWRIGHT_PROC")) && !slw_serve_reports(getenv("SLABWRIGHT_PROC")));
        CHECK(slw_serve_reports("/tmp") == -1 && errno == EBUSY);
        CHECK(!strncmp(read_file(path), "slabinfo - version: 2.1", 23));
        usleep(200000);
        CHECK(!strncmp(read_file(path), "slabinfo - version: 2.1", 23));
    }
    exit(0);
}

// Waits for a child that ends well.
static void in_child(void (*what)(void)) {
    int status;
    pid_t forked = fork();
    if (!forked) {
        what();
        exit(0);
    }
    CHECK(waitpid(forked, &status, 0) == forked && !status);
}

static void nothing(void) {
}

// Reads its parent's files until it is told to go.
static void reads_on(void) {
    char path[200];
    snprintf(path, sizeof path, "%s/%d/slabinfo", getenv("SLABWRIGHT_PROC"), getppid());
    for (;;)
        read_file(path);
}

// Says that it is there, and ends when told.
static int child(const char *how) {
    free(malloc(100));
    // Descriptors are the program's: the lowest is free, and closing all disturbs nobody. (Before the other thread,
    // whose heap may grow, for which it reads limits.)
    int lowest = dup(0);
    CHECK(lowest == 3);
    pthread_t thread;
    CHECK(!pthread_create(&thread, NULL, busy, NULL));
    for (int fd = 3; fd < 100; fd++)
        close(fd);
    // A child of a fork leaves its parent's files alone, and does not hang, whatever the thread that it has not was at.
    pid_t reader = fork();
    if (!reader)
        reads_on();
    for (int n = 0; n < 200; n++)
        in_child(nothing);
    CHECK(!kill(reader, SIGKILL) && waitpid(reader, NULL, 0) == reader);
    in_child(has_own);
    in_child(asks_for_own);
    CHECK(write(1, "r", 1) == 1);
    char told;
    CHECK(read(0, &told, 1) == 1);
    return !strcmp(how, "status") ? 7 : 0;
}

static char text[1 << 20];

static char *read_file(const char *path) {
    int fd;
    // It may be a moment until the thread has made it.
    for (int n = 0; (fd = open(path, O_RDONLY)) < 0; n++) {
        CHECK(errno == ENOENT && n < 10000);
        usleep(1000);
    }
    size_t len = 0;
    ssize_t got;
    while ((got = read(fd, text + len, sizeof text - len - 1)) > 0)
        len += (size_t)got;
    CHECK(got == 0);
    close(fd);
    text[len] = 0;
    return text;
}

// A child with its reports in `directory`, once it is ready. It reads what is written to `down`, and writes to `up`.
static pid_t start(const char *name, const char *directory, const char *mode, int down[2], int up[2]) {
    CHECK(!pipe2(down, O_CLOEXEC) && !pipe2(up, O_CLOEXEC));
    pid_t pid = fork();
    if (!pid) {
        setenv("SLABWRIGHT_PROC", directory, 1);
        dup2(down[0], 0);
        dup2(up[1], 1);
        execl("/proc/self/exe", name, mode, NULL);
        _exit(99);
    }
    char ready;
    CHECK(read(up[0], &ready, 1) == 1);
    return pid;
}

int main(int argc, char **argv) {
    if (argc > 1)
        return child(argv[1]);
    alarm(60);
    char directory[] = "/tmp/slabwright-files-XXXXXX", path[200];
    CHECK(mkdtemp(directory));
    static const char *const NAMES[][2] = {
        {"slabinfo", "slabinfo - version: 2.1\n# name "}, {"buddyinfo", "Node 0, zone "},
        {"pagetypeinfo", "Page block order: 9\n"},        {"zoneinfo", "Node 0, zone "},
        {"unusable_index", "Node 0, zone "},              {"vmallocinfo", ""},
        {"iomem", ""},
    };
    for (int status = 0; status < 2; status++) {
        int down[2], up[2];
        pid_t pid = start(argv[0], directory, status ? "status" : "plain", down, up);
        for (int round = 0; round < 20; round++)
            for (size_t n = 0; n < sizeof NAMES / sizeof *NAMES; n++) {
                snprintf(path, sizeof path, "%s/%d/%s", directory, pid, NAMES[n][0]);
                char *got = read_file(path);
                CHECK(!strncmp(got, NAMES[n][1], strlen(NAMES[n][1])));
                // Once, and whole.
                CHECK(!*got || got[strlen(got) - 1] == '\n');
                CHECK((n != 0 && n != 2) || !strstr(got + 1, NAMES[n][1]));
            }
        // One who opens and goes away, and one who does not read, harm nobody.
        int idle = open(path, O_RDONLY);
        CHECK(idle >= 0);
        CHECK(strstr(read_file(path), " : Arena\n"));
        close(idle);
        CHECK(strstr(read_file(path), " : Arena\n"));
        struct stat about;
        CHECK(!stat(path, &about) && S_ISFIFO(about.st_mode) && (about.st_mode & 0777) == 0600);
        CHECK(write(down[1], "e", 1) == 1);
        int ended;
        CHECK(waitpid(pid, &ended, 0) == pid && WIFEXITED(ended) && WEXITSTATUS(ended) == 7 * status);
        close(down[0]), close(down[1]), close(up[0]), close(up[1]);
        // Nothing is left of it: this succeeds for empty directories only.
        CHECK(!rmdir(directory) && !mkdir(directory, 0700));
    }
    // One that is killed leaves its files; the next one takes them away, and only them.
    char other[200];
    for (int round = 0; round < 2; round++) {
        int down[2], up[2];
        pid_t pid = start(argv[0], directory, "plain", down, up);
        snprintf(path, sizeof path, "%s/%d/slabinfo", directory, pid);
        read_file(path);
        if (round == 0) {
            snprintf(other, sizeof other, "%s/%d", directory, pid);
            CHECK(!kill(pid, SIGKILL) && waitpid(pid, NULL, 0) == pid && !access(path, F_OK));
        } else {
            CHECK(access(other, F_OK) && errno == ENOENT);
            CHECK(write(down[1], "e", 1) == 1 && waitpid(pid, NULL, 0) == pid);
        }
        close(down[0]), close(down[1]), close(up[0]), close(up[1]);
    }
    CHECK(!rmdir(directory));
    return 0;
}
