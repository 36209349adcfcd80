// posix_spawn, system and popen from a program with threads; raw clone without the C library's knowledge.
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "check.h"

extern char **environ;
static volatile int stop;

static void *noise(void *argument) {
    while (!stop)
        free(malloc(200));
    return argument;
}

int main(void) {
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, noise, NULL) == 0);
    for (int i = 0; i < 20; i++) {
        char *arguments[] = {"sh", "-c", "exit 7", NULL};
        pid_t pid;
        int status;
        CHECK(posix_spawn(&pid, "/bin/sh", NULL, NULL, arguments, environ) == 0);
        CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 7);
    }
    CHECK(WEXITSTATUS(system("exit 9")) == 9);
    FILE *pipe = popen("echo here", "r");
    char line[32] = "";
    CHECK(pipe && fgets(line, sizeof line, pipe) && strcmp(line, "here\n") == 0);
    CHECK(pclose(pipe) == 0);
    stop = 1;
    pthread_join(thread, NULL);

    // No atfork handler runs for this one.
    void *before = malloc(100);
    mark(before, 100, 1);
    pid_t pid = (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
    CHECK(pid >= 0);
    if (pid == 0) {
        CHECK(marked(before, 100, 1));
        memset(before, 9, 100);
        free(before);
        for (int i = 0; i < 1000; i++) {
            void *p = malloc((size_t)i * 13);
            CHECK(p);
            memset(p, 2, (size_t)i * 13);
            if (i % 3)
                free(p);
        }
        _exit(0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(marked(before, 100, 1));
    free(before);
    return 0;
}
