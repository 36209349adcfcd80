// vmalloc, device memory, kmap: what of the kernel's mappings a process can have, and a clear refusal of what it
// cannot.
/* rows: H1 H2 H3 H4 H5 H6 I1 I2 I3 I5 I7 A8 */
//: modes: so archive static
//: run: use
//: run: kmap-atomic => abort says sleeping allocation in atomic context
//: run: vfree-foreign => abort says never allocated
//: run: vfree-twice => abort says double free
//: run: vunmap => abort says never allocated
//: run: iounmap => abort says never allocated
//: run: kunmap-atomic => abort says double free
#define SLW_KERNEL_NAMES
#include <slabwright.h>

#include <errno.h>
#include <sys/mman.h>

#include "check.h"

int main(int argc, char **argv) {
    CHECK(argc == 2);
    const char *what = argv[1];
    struct page *page = alloc_page(GFP_KERNEL);
    char *area = vmalloc(5000);
    CHECK(page && area);
    if (!strcmp(what, "use")) {
        for (size_t size = 1; size <= 64 << 20; size = size * 5 + 1) {
            unsigned char *zero = vzalloc(size);
            CHECK(zero && aligned_to(zero, 4096));
            for (size_t at = 0; at < size; at += 511)
                CHECK(zero[at] == 0);
            mark(zero, size, 3);
            CHECK(marked(zero, size, 3));
            vfree(zero);
        }
        vfree(NULL);
        CHECK(!vmalloc(0) && errno == EINVAL);
        CHECK(!vmalloc((size_t)1 << 60) && errno == ENOMEM);

        errno = 0;
        CHECK(!vmap(&page, 1, VM_MAP, PAGE_KERNEL) && errno == ENOTSUP);
        errno = 0;
        CHECK(!vmalloc_to_page(area) && errno == ENOTSUP);
        vunmap(NULL);

        // The simulated device, seen twice: what is written through one mapping is read through the other.
        volatile unsigned *apic = ioremap(0xfee00000, 4096), *again = ioremap(0xfee00030, 4);
        CHECK(apic && again && apic[0x30 / 4] == 0x50014 && *again == 0x50014);
        apic[0x80 / 4] = 0x55;
        iounmap((void *)apic);
        apic = ioremap(0xfee00080, 8);
        CHECK(apic && *apic == 0x55);
        iounmap((void *)apic);
        iounmap((void *)again);
        errno = 0;
        CHECK(!ioremap(0x1000, 4096) && errno == EINVAL);
        CHECK(!ioremap(0xfee00ff8, 16) && errno == EINVAL);
        // A device of one's own.
        int fd = memfd_create("device", 0);
        CHECK(fd >= 0 && !ftruncate(fd, 16384));
        CHECK(slw_add_resource(0xd0000000, 8192, fd, 8192) == 0);
        CHECK(slw_add_resource(0xd0001000, 8192, fd, 0) == EINVAL && slw_add_resource(0xe0000000, 0, fd, 0) == EINVAL);
        char *device = ioremap(0xd0001010, 16), byte;
        CHECK(device);
        device[0] = 'x';
        CHECK(pread(fd, &byte, 1, 8192 + 0x1010) == 1 && byte == 'x');
        // Then the addresses are nobody's.
        char *whole = device - 0x10;
        CHECK(!msync(whole, 4096, MS_ASYNC));
        iounmap(device);
        errno = 0;
        CHECK(msync(whole, 4096, MS_ASYNC) && errno == ENOMEM);

        char *at = kmap(page);
        CHECK(at && at == page_address(page));
        strcpy(at, "seen");
        char *atomic = kmap_atomic(page);
        CHECK(atomic && !strcmp(atomic, "seen") && in_atomic());
        // What does not sleep is allowed meanwhile.
        kfree(kmalloc(100, GFP_ATOMIC));
        kunmap_atomic(atomic);
        kunmap(page);
        CHECK(!in_atomic());
    } else if (!strcmp(what, "kmap-atomic")) {
        CHECK(kmap_atomic(page));
        kmap(page);
    } else if (!strcmp(what, "vfree-foreign")) {
        vfree(veil(&page));
    } else if (!strcmp(what, "vfree-twice")) {
        vfree(area);
        vfree(veil(area));
    } else if (!strcmp(what, "vunmap")) {
        vunmap(area);
    } else if (!strcmp(what, "iounmap")) {
        iounmap(area);
    } else {
        kunmap_atomic(page_address(page));
    }
    return 0;
}
