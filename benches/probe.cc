/*
 * Names the file that each function of an allocator's interface comes from, as the dynamic linker binds it for this program.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <string>

int main()
{
    static const char *const names[] = {
        "malloc", "free", "calloc", "realloc", "memalign", "aligned_alloc", "posix_memalign", "malloc_usable_size",
        "_Znwm", "_Znam", "_ZnwmRKSt9nothrow_t", "_ZnwmSt11align_val_t", "_ZdlPv", "_ZdaPv", "_ZdlPvm",
        "_ZdlPvmSt11align_val_t",
    };
    std::string text(1000, 'x'); /* operator new is bound: libstdc++ is there to take it */
    for (const char *name : names) {
        Dl_info info;
        void *address = dlsym(RTLD_DEFAULT, name);
        if (!address || !dladdr(address, &info))
            return 1;
        printf("%s: %s\n", name, info.dli_fname);
    }
    return text.size() != 1000;
}
