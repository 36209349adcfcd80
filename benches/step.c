/*
 * step FILE PROGRAM: single-steps PROGRAM from each mark (`int3`, with the address of a name in rax) to the next (null in rax) and
 * prints each name with the fewest instructions that its passages took: those in FILE's mapping where it is not "-".
 *
 * A restartable sequence never ends under single-stepping, since the kernel aborts it at each stop. So the address of its descriptor
 * is taken out of the thread's area (`rseq_cs`) after each step, and the kernel sees no sequence. The instructions are the
 * same; the protection is not needed, as there is one thread and it stays on one CPU.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/rseq.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

/* Where the code of `file` is mapped: from the first such mapping to the last. */
static void mapping(pid_t pid, const char *file, unsigned long *from, unsigned long *to)
{
    char path[64], line[512];
    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    FILE *maps = fopen(path, "r");
    *from = *to = 0;
    while (maps && fgets(line, sizeof line, maps)) {
        unsigned long start, end;
        if (strstr(line, " r-xp ") && strstr(line, file) && sscanf(line, "%lx-%lx", &start, &end) == 2) {
            *from = *from ? *from : start;
            *to = end;
        }
    }
    if (maps)
        fclose(maps);
    if (*to == 0) {
        fprintf(stderr, "%s is not mapped\n", file);
        exit(1);
    }
}

static void name_at(pid_t pid, unsigned long address, char *name, size_t size)
{
    for (size_t at = 0; at + 8 < size; at += 8) {
        long word = ptrace(PTRACE_PEEKDATA, pid, (void *)(address + at), NULL);
        memcpy(name + at, &word, 8);
        name[at + 8] = 0;
        if (strlen(name) < at + 8)
            return;
    }
}

/* Goes on by `request` until the program stops by a trap; whether it did, and did not end. */
static int stopped(pid_t pid, int request)
{
    int status;
    if (ptrace(request, pid, NULL, NULL))
        fail("ptrace");
    if (waitpid(pid, &status, 0) != pid)
        fail("waitpid");
    if (WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP)
        return 1;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    fprintf(stderr, "the program ended or stopped with status %#x\n", status);
    exit(1);
}

int main(int argc, char **argv)
{
    struct {
        char name[64];
        unsigned long count;
    } counted[64];
    int names = 0, status;
    if (argc != 3) {
        fprintf(stderr, "usage: step FILE PROGRAM\n");
        return 2;
    }
    cpu_set_t one;
    if (sched_getaffinity(0, sizeof one, &one))
        fail("sched_getaffinity");
    for (int cpu = 0, found = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &one) && found++)
            CPU_CLR(cpu, &one);
    pid_t pid = fork();
    if (pid == 0) {
        if (sched_setaffinity(0, sizeof one, &one) || ptrace(PTRACE_TRACEME, 0, NULL, NULL))
            fail("ptrace");
        execl(argv[2], argv[2], (char *)NULL);
        fail(argv[2]);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status))
        fail("fork");
    unsigned long from = 0, to = 0;
    while (stopped(pid, PTRACE_CONT)) {
        struct user_regs_struct registers;
        char name[64];
        unsigned long count = 0;
        if (ptrace(PTRACE_GETREGS, pid, NULL, &registers))
            fail("ptrace");
        name_at(pid, registers.rax, name, sizeof name);
        if (strcmp(argv[1], "-") != 0 && to == 0)
            mapping(pid, argv[1], &from, &to);
        for (;;) {
            unsigned long at = registers.rip;
            unsigned char code = (unsigned char)ptrace(PTRACE_PEEKTEXT, pid, (void *)at, NULL);
            if (!stopped(pid, PTRACE_SINGLESTEP) || ptrace(PTRACE_GETREGS, pid, NULL, &registers))
                fail("ptrace");
            if (code == 0xcc && registers.rax == 0)
                break;
            count += to == 0 || (at >= from && at < to);
            unsigned long area = registers.fs_base + (unsigned long)__rseq_offset + offsetof(struct rseq, rseq_cs);
            if (ptrace(PTRACE_POKEDATA, pid, (void *)area, NULL))
                fail("ptrace");
        }
        int slot = 0;
        while (slot < names && strcmp(counted[slot].name, name) != 0)
            slot++;
        if (slot == names) {
            if (names == 64)
                fail("too many names");
            strcpy(counted[names].name, name);
            counted[names++].count = count;
        } else if (count < counted[slot].count) {
            counted[slot].count = count;
        }
    }
    for (int slot = 0; slot < names; slot++)
        printf("%s\t%lu\n", counted[slot].name, counted[slot].count);
    return 0;
}
