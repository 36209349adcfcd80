// A program that allocates ten blocks has no more of the library's code and constants resident than what such programs
// use, which lies together.
//: modes: preload so
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>

#include "check.h"

// Of the first mapping of code and, by the 64 KiB that the kernel maps at a time, beyond it, were the linker to put the
// rest next to it.
#define MOST_KB 84
// The same of constants, with what the loader writes.
#define MOST_CONSTANTS_KB 84

// Resident code of the library, or its constants, by the rights. Allocates nothing: that would be more than ten blocks,
// and later.
static long library_kb(const char *rights) {
    static char text[1 << 18];
    size_t length = 0;
    ssize_t more;
    int file = open("/proc/self/smaps", O_RDONLY), counts = 0;
    CHECK(file >= 0);
    while ((more = read(file, text + length, sizeof text - 1 - length)) > 0)
        length += (size_t)more;
    close(file);
    long kb = 0;
    for (char *line = text, *end; (end = strchr(line, '\n')); line = end + 1) {
        *end = 0;
        const char *space = strchr(line, ' ');
        // `FROM-TO RIGHTS … PATH`, and then `NAME: …`.
        if (space && space > line && space[-1] != ':')
            counts = strstr(line, rights) && strstr(line, "libslabwright.so");
        else if (counts && strncmp(line, "Rss:", 4) == 0)
            kb += atol(line + 4);
    }
    return kb;
}

int main(int argc, char **argv) {
    extern char **environ;
    if (argc == 2) {
        void *blocks[10];
        for (size_t i = 0; i < 10; i++)
            CHECK((blocks[i] = malloc(50 * (i + 1))));
        for (size_t i = 0; i < 10; i++)
            free(blocks[i]);
        long code = library_kb(" r-xp "), constants = library_kb(" r--p ");
        CHECK(code > 0 && constants > 0);
        return code > MOST_KB || constants > MOST_CONSTANTS_KB ? 3 : 0;
    }
    // What reads an option is not what every program runs.
    unsetenv("SLABWRIGHT_VERIFY");
    // A program that is kept waiting comes to look at what lies idle. One of some is not.
    int status = -1;
    for (int attempt = 0; attempt < 20 && status != 0; attempt++) {
        pid_t child;
        char *const arguments[] = {argv[0], "small", NULL};
        CHECK(posix_spawn(&child, "/proc/self/exe", NULL, NULL, arguments, environ) == 0);
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
    }
    CHECK(status == 0);
    return 0;
}
