// mlockall: what is merely reserved must not become memory.
#include <errno.h>
#include <sys/mman.h>

#include "check.h"

int main(void) {
    free(malloc(10));
    if (mlockall(MCL_CURRENT | MCL_FUTURE) != 0) {
        CHECK(errno == EPERM || errno == ENOMEM);
        return 0; // not allowed here
    }
    void *blocks[1000];
    for (int i = 0; i < 1000; i++) {
        blocks[i] = malloc((size_t)i * 10);
        CHECK(blocks[i]);
    }
    void *large = malloc(8 << 20);
    CHECK(large);
    memset(large, 1, 8 << 20);
    CHECK(resident_kb() < 128 << 10);
    free(large);
    for (int i = 0; i < 1000; i++)
        free(blocks[i]);
    return 0;
}
