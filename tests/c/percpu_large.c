// More static per-CPU data than a module may have: said at its start, as the copies would lie in somebody else's
// memory.
/* rows: J1 */
//: modes: so archive static
//: run: => abort says no room for the per-CPU variables
#define SLW_KERNEL_NAMES
#include <slabwright.h>

#include "check.h"

static DEFINE_PER_CPU(long[40 << 7], large);

int main(void) {
    run_on(1);
    this_cpu_inc(large[40]);
    return 0;
}
