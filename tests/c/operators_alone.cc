// A program whose only use of the C++ runtime is this catch: a static executable must still have all it takes to throw.
#include <new>

#include "check.h"

int main() {
    try {
        veil(new char[(std::size_t)1 << 50]);
    } catch (const std::bad_alloc &) {
        return 0;
    }
    return 1;
}
