// What is said at exit, and when it is not.
//: modes: preload norseq so archive static
//: run: SLABWRIGHT_STATS=1 return => says statistics
//: run: SLABWRIGHT_STATS=1 exit => says statistics
//: run: SLABWRIGHT_STATS=1 closed => says statistics
//: run: SLABWRIGHT_STATS=1 underscore => silent
//: run: SLABWRIGHT_STATS=1 thread => says statistics
//: run: SLABWRIGHT_STATS=1 status => exit 3 says statistics
#include <pthread.h>

#include "check.h"

static void *noise(void *argument) {
    for (;;)
        free(malloc(100));
    return argument;
}

static void *leave(void *argument) {
    exit(0);
    return argument;
}

int main(int argc, char **argv) {
    const char *how = argc > 1 ? argv[1] : "";
    free(malloc(10));
    if (!strcmp(how, "exit"))
        exit(0);
    if (!strcmp(how, "closed"))
        fclose(stderr);
    if (!strcmp(how, "underscore"))
        _exit(0);
    if (!strcmp(how, "status"))
        return 3;
    if (!strcmp(how, "thread")) {
        // Ends from a thread while others go on allocating.
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, noise, NULL) == 0);
        CHECK(pthread_create(&thread, NULL, noise, NULL) == 0);
        CHECK(pthread_create(&thread, NULL, leave, NULL) == 0);
        noise(NULL);
    }
    return 0;
}
