// The environment's options.
//: modes: preload norseq so archive static
//: run: => silent
//: run: SLABWRIGHT_STATS=1 => says statistics
//: run: SLABWRIGHT_STATS=0 => silent
//: run: SLABWRIGHT_HELP=1 => says SLABWRIGHT_STATS=
//: run: SLABWRIGHT_HELP=1 => says SLABWRIGHT_VERIFY=1 [0]
//: run: SLABWRIGHT_DECAY=soon => says SLABWRIGHT_DECAY=soon ignored
//: run: SLABWRIGHT_DECAY=99999999999 => says ignored: not within
//: run: SLABWRIGHT_NOSUCH=1 => says SLABWRIGHT_NOSUCH ignored: there is no such option
//: run: SLABWRIGHT_DECAY=0 SLABWRIGHT_HUGE_PAGES=no SLABWRIGHT_RSEQ=off => silent
//: run: SLABWRIGHT_LIMIT=32M limited => silent
//: run: SLABWRIGHT_LIMIT=1G unlimited => silent
#include <errno.h>

#include "check.h"

int main(int argc, char **argv) {
    void *p = malloc(64 << 20);
    if (argc > 1 && argv[1][0] == 'l')
        CHECK(!p && errno == ENOMEM);
    else
        CHECK(p);
    free(p);
    return 0;
}
