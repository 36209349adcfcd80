// A C program that loads a C++ library, and with it the C++ runtime, long after the start.
//: modes: glibc preload norseq so archive
//: plugin: plugin_cxx.cc
#include <dlfcn.h>

#include "check.h"

int main(void) {
    free(malloc(10));
    void *library = dlopen(getenv("PLUGIN"), RTLD_NOW | RTLD_LOCAL);
    CHECK(library);
    int (*late)(void) = (int (*)(void))dlsym(library, "late");
    CHECK(late && late() == 0);
    CHECK(dlclose(library) == 0);
    return 0;
}
