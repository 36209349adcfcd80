// A program that runs with the rights of another user does not listen to the environment of the one who started it.
//: modes: archive static
//: run: => silent
#include <fcntl.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "check.h"

int main(int argc, char **argv) {
    if (argc > 1) {
        free(malloc(100));
        // Where the file system knows no set-user-id bit nothing can be shown, and nothing may be said.
        if (!getauxval(AT_SECURE))
            _exit(0);
        return 0;
    }
    if (geteuid() == 0) {
        char copy[] = "/tmp/slabwright-secure-XXXXXX";
        int to = mkstemp(copy);
        CHECK(to >= 0);
        int from = open(argv[0], O_RDONLY | O_CLOEXEC);
        static char buffer[1 << 16];
        for (ssize_t count; (count = read(from, buffer, sizeof buffer)) > 0;)
            CHECK(write(to, buffer, (size_t)count) == count);
        CHECK(fchmod(to, 04755) == 0 && close(to) == 0);
        int pipes[2];
        CHECK(pipe(pipes) == 0);
        pid_t pid = fork();
        if (pid == 0) {
            dup2(pipes[1], 2);
            setenv("SLABWRIGHT_STATS", "1", 1);
            setenv("SLABWRIGHT_HELP", "1", 1);
            CHECK(setresgid(65534, 65534, 65534) == 0 && setresuid(65534, 65534, 65534) == 0);
            execl(copy, copy, "child", (char *)NULL);
            _exit(100);
        }
        close(pipes[1]);
        int status;
        ssize_t said = read(pipes[0], buffer, sizeof buffer);
        CHECK(waitpid(pid, &status, 0) == pid);
        unlink(copy);
        CHECK(status == 0);
        CHECK(said == 0);
    }
    return 0;
}
