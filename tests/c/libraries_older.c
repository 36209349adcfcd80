// The loader's functions where the C library has them by an older version only, as before libdl was a part of it, and
// where it has none.
//: modes: preload so
//: flags: -rdynamic
//: plugin: plugin_deep.c
//: run: older
//: run: none
#include <gnu/lib-names.h>
#include <link.h>
#include <stdbool.h>
#include <string.h>

#include "check.h"
#include "swap.h"

static bool older;
static int refused, answered;

/// The C library's own function of this name.
static void *in_libc(const char *name) {
    struct link_map *map = dlmopen(LM_ID_BASE, LIBC_SO, RTLD_LAZY | RTLD_NOLOAD);
    CHECK(map);
    const ElfW(Sym) *symbol = NULL;
    const char *names = NULL;
    for (const ElfW(Dyn) *entry = map->l_ld; entry->d_tag != DT_NULL; entry++) {
        if (entry->d_tag == DT_SYMTAB)
            symbol = (const ElfW(Sym) *)entry->d_un.d_ptr;
        if (entry->d_tag == DT_STRTAB)
            names = (const char *)entry->d_un.d_ptr;
    }
    CHECK(symbol && names);
    while (!symbol->st_value || strcmp(names + symbol->st_name, name))
        symbol++;
    return (void *)(map->l_addr + symbol->st_value);
}

/// In place of the C library's.
void *dlvsym(void *restrict handle, const char *restrict name, const char *restrict version) {
    CHECK(handle == RTLD_NEXT);
    if (!older || strcmp(version, "GLIBC_2.2.5")) {
        refused++;
        return NULL;
    }
    answered++;
    return in_libc(name);
}

int main(int count, char **arguments) {
    CHECK(count == 2);
    older = !strcmp(arguments[1], "older");
    void *library = dlopen(getenv("PLUGIN"), RTLD_NOW | RTLD_DEEPBIND);
    CHECK(refused > 0);
    if (!older) {
        CHECK(!library && !dlsym(RTLD_DEFAULT, "strdup") && answered == 0);
        return 0;
    }
    CHECK(library);
    swap_by(library);
    release_by(library);
    CHECK(answered == 2);
    return 0;
}
