// Libraries that allocate in constructors, destructors and thread-local data come and go; one needs 1 KiB of static
// thread-local storage, which the allocator must not have used up.
//: modes: glibc preload norseq so archive
//: plugin: plugin.c
#include <dlfcn.h>
#include <pthread.h>

#include "check.h"

static void *use(void *argument) {
    void *(*work)(size_t) = (void *(*)(size_t))argument;
    for (int i = 0; i < 100; i++)
        free(work((size_t)i * 20));
    return NULL;
}

int main(void) {
    long before = 0;
    for (int i = 0; i < 300; i++) {
        void *library = dlopen(getenv("PLUGIN"), i % 2 ? RTLD_NOW : RTLD_LAZY);
        if (!library)
            fprintf(stderr, "%s\n", dlerror());
        CHECK(library);
        void *work = dlsym(library, "work");
        CHECK(work);
        CHECK(dlsym(library, "no such name") == NULL && dlerror());
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, use, work) == 0);
        use(work);
        CHECK(pthread_join(thread, NULL) == 0);
        // What the library allocated survives it.
        void *kept = ((void *(*)(size_t))work)(500);
        CHECK(dlclose(library) == 0);
        CHECK(marked(kept, 500, 5));
        free(kept);
        if (i == 50)
            before = resident_kb();
    }
    CHECK(resident_kb() - before < 1024);
    return 0;
}
