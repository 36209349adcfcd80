// Memory in a signal handler: GFP_ATOMIC makes no system call, waits for nothing and takes no page fault.
/* rows: C10 C11 */
//> the handler ran 200 times; refused: 0
//> messages and refusals: 200, all whole
#define SLW_KERNEL_NAMES
#include <slabwright.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

struct message {
    struct message *next;
    int number;
    char text[40];
};

static struct message *messages;
static volatile sig_atomic_t ran, refused;

static void handler(int signal) {
    (void)signal;
    if (ran == 200)
        return;
    // malloc would work here, too; this also never enters the system.
    struct message *message = kmalloc(sizeof *message, GFP_ATOMIC);
    ran++;
    if (!message) {
        refused++;
        return;
    }
    message->number = ran;
    memset(message->text, 'x', sizeof message->text);
    message->next = messages;
    messages = message;
}

int main(void) {
    slw_atomic_reserve(256 << 10); // half of it is had without a lock, whoever is interrupted
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    struct itimerval every = {{0, 500}, {0, 500}};
    setitimer(ITIMER_REAL, &every, NULL);
    // Interrupted anywhere in here.
    for (unsigned n = 1; ran < 200; n = n * 1103515245 + 12345)
        free(malloc(n >> 8 & 0xfffff));
    every = (struct itimerval){{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &every, NULL);
    printf("the handler ran %d times; refused: %d\n", (int)ran, (int)refused);
    int whole = 0;
    for (struct message *next, *message = messages; message; message = next) {
        next = message->next;
        whole += message->number > 0 && message->text[39] == 'x';
        kfree(message);
    }
    printf("messages and refusals: %d, all whole\n", whole + (int)refused);
    return refused > 0;
}
