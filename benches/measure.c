/*
 * measure PROGRAM ARGUMENTS...: runs a program on the library that $PRELOAD names, with the setting $VARIABLE (NAME=VALUE), both
 * where they are not empty, and writes to the file $RESULT what harness.h says of a workload's first line: seconds, those of CPU of
 * all that it started, and resident KiB, at most and at its end, of the one of its processes that had most.
 *
 * The sizes are read when a process is about to end, for which it is traced; it is stopped at no other point, but for signals.
 */
#include "harness.h"
#include <errno.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

static size_t figure(pid_t pid, const char *name)
{
    char path[64], text[4096];
    snprintf(path, sizeof path, "/proc/%d/status", pid);
    FILE *file = fopen(path, "r");
    size_t length = file ? fread(text, 1, sizeof text - 1, file) : 0;
    if (file)
        fclose(file);
    text[length] = 0;
    const char *line = strstr(text, name);
    return line ? strtoul(line + strlen(name) + 1, NULL, 10) : 0;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

int main(int argc, char **argv)
{
    const char *preload = getenv("PRELOAD"), *result = getenv("RESULT");
    char *variable = getenv("VARIABLE");
    int ready[2];
    if (argc < 2 || !result) {
        fprintf(stderr, "usage: RESULT=FILE measure PROGRAM ARGUMENTS...\n");
        return 2;
    }
    if (pipe(ready))
        fail("pipe");
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (child == 0) {
        char byte;
        close(ready[1]);
        if (read(ready[0], &byte, 1) != 1)
            _exit(126);
        close(ready[0]);
        if (preload && *preload)
            setenv("LD_PRELOAD", preload, 1);
        if (variable && *variable)
            putenv(variable);
        execvp(argv[1], argv + 1);
        perror(argv[1]);
        _exit(127);
    }
    long follow = PTRACE_O_TRACEEXIT | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK;
    if (ptrace(PTRACE_SEIZE, child, NULL, follow))
        fail("ptrace");
    double begin = now();
    if (write(ready[1], "", 1) != 1)
        fail("write");
    close(ready[0]);
    close(ready[1]);
    size_t peak = 0, last = 0;
    for (;;) {
        int status;
        struct rusage usage;
        pid_t pid = wait4(-1, &status, __WALL, &usage);
        if (pid < 0 && errno != EINTR)
            fail("wait4");
        if (pid < 0)
            continue;
        if (pid == child && (WIFEXITED(status) || WIFSIGNALED(status))) {
            double seconds = now() - begin;
            if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
                fprintf(stderr, "%s ended with status %#x\n", argv[1], status);
                return 1;
            }
            double cpu = usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + 1e-6 * (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
            FILE *file = fopen(result, "w");
            if (!file || fprintf(file, "%.9f %.6f %zu %zu\n", seconds, cpu, peak, last) < 0 || fclose(file))
                fail(result);
            return 0;
        }
        if (!WIFSTOPPED(status))
            continue;
        int event = status >> 16, signal = 0;
        if (event == PTRACE_EVENT_EXIT && figure(pid, "VmHWM") > peak) {
            peak = figure(pid, "VmHWM");
            last = figure(pid, "VmRSS");
        }
        if (event == 0)
            signal = WSTOPSIG(status); /* on its way to the program */
        if (event == PTRACE_EVENT_STOP && WSTOPSIG(status) != SIGTRAP)
            ptrace(PTRACE_LISTEN, pid, NULL, 0);
        else
            ptrace(PTRACE_CONT, pid, NULL, (long)signal);
    }
}
