// The programs that people read slabinfo and buddyinfo with, on ours: slabtop and vmstat of procps, with the report in
// the place of /proc/slabinfo in a mount namespace of their own.
/* rows: G2 */
//: modes: so archive
#define SLW_KERNEL_NAMES
#include <slabwright.h>

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/wait.h>

#include "check.h"

static void put(const char *path, const char *text) {
    int fd = open(path, O_WRONLY);
    CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
}

// What the program prints; it must succeed.
static char *output(char *const arguments[]) {
    static char text[1 << 16];
    int ends[2], status;
    CHECK(!pipe(ends));
    pid_t child = fork();
    if (!child) {
        dup2(ends[1], 1);
        dup2(ends[1], 2);
        setenv("TERM", "dumb", 1);
        unsetenv("LD_PRELOAD");
        execvp(arguments[0], arguments);
        _exit(127);
    }
    close(ends[1]);
    size_t len = 0;
    ssize_t got;
    while (len < sizeof text - 1 && (got = read(ends[0], text + len, sizeof text - 1 - len)) > 0)
        len += (size_t)got;
    close(ends[0]);
    text[len] = 0;
    CHECK(waitpid(child, &status, 0) == child);
    if (!WIFEXITED(status) || WEXITSTATUS(status)) {
        fprintf(stderr, "%s ends with %x:\n%s", arguments[0], (unsigned)status, text);
        _exit(1);
    }
    return text;
}

int main(void) {
    struct kmem_cache *cache = kmem_cache_create("procps_test", 500, 0, SLAB_NO_MERGE, NULL);
    for (int n = 0; n < 100; n++)
        CHECK(kmem_cache_alloc(cache, GFP_KERNEL));
    CHECK(malloc(100000));
    char path[] = "/tmp/slabwright-procps-XXXXXX";
    int fd = mkstemp(path);
    CHECK(fd >= 0 && !slw_report_fd("slabinfo", fd));
    close(fd);

    char map[60];
    unsigned user = geteuid(), group = getegid();
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS)) {
        CHECK(errno == EPERM || errno == ENOSPC || errno == EUSERS);
        unlink(path);
        if (getenv("WITHOUT_NAMESPACES")) {
            fputs("told that there are no user namespaces here: slabtop was not tried\n", stderr);
            return 0;
        }
        fputs("no user namespaces here; set WITHOUT_NAMESPACES=1 to leave this test out\n", stderr);
        return 1;
    }
    put("/proc/self/setgroups", "deny");
    snprintf(map, sizeof map, "0 %u 1", user);
    put("/proc/self/uid_map", map);
    snprintf(map, sizeof map, "0 %u 1", group);
    put("/proc/self/gid_map", map);
    CHECK(!mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) && !mount(path, "/proc/slabinfo", NULL, MS_BIND, NULL));

    char *top = output((char *[]){"slabtop", "-o", "-s", "c", NULL});
    // OBJS ACTIVE USE SIZE SLABS OBJ/SLAB CACHE-SIZE NAME
    char *line = strstr(top, " procps_test");
    CHECK(strstr(top, "Active / Total Objects (% used)") && strstr(top, " run-104k") && strstr(top, " sheaf") && line);
    while (line > top && line[-1] != '\n')
        line--;
    unsigned objects, active, use;
    CHECK(sscanf(line, " %u %u %u%%", &objects, &active, &use) == 3 && active == 100 && objects >= 100);
    char *stat = output((char *[]){"vmstat", "-m", NULL});
    line = strstr(stat, "procps_test");
    CHECK(line && sscanf(line, "procps_test %u %u %u", &active, &objects, &use) == 3 && active == 100 && use >= 500);
    unlink(path);
    return 0;
}
