// mallinfo2 and malloc_info say the same, and what both say follows what is allocated and freed.
//: modes: preload norseq so archive static
#include <malloc.h>
#include <stdbool.h>

#include "check.h"

#pragma GCC diagnostic ignored "-Wdeprecated-declarations" // mallinfo

// The value of `name` in the last element that begins with `element`; and that all elements are closed.
static size_t last(const char *xml, const char *element, const char *name) {
    size_t value = SIZE_MAX;
    char key[32];
    snprintf(key, sizeof key, " %s=\"", name);
    for (const char *at = xml; (at = strstr(at, element)); at++) {
        const char *found = strstr(at, key), *end = strchr(at, '>');
        if (found && end && found < end)
            value = strtoull(found + strlen(key), NULL, 10);
    }
    CHECK(value != SIZE_MAX);
    return value;
}

static void well_formed(const char *xml) {
    char open[8][16];
    int depth = 0;
    bool any = false;
    for (const char *at = xml; (at = strchr(at, '<')); at++) {
        const char *end = strchr(at, '>');
        CHECK(end && !memchr(at + 1, '<', (size_t)(end - at - 1)));
        size_t name = strcspn(at + 1, " />");
        if (at[1] == '/') {
            depth--;
            CHECK(depth >= 0 && strncmp(open[depth], at + 2, strlen(open[depth])) == 0);
        } else if (end[-1] != '/') {
            CHECK(depth < 8 && name < 16 && (depth > 0 || !any));
            memcpy(open[depth], at + 1, name);
            open[depth++][name] = 0;
            any = true;
        }
        int quotes = 0;
        for (const char *c = at; c < end; c++)
            quotes += *c == '"';
        CHECK(quotes % 2 == 0);
    }
    CHECK(any && depth == 0);
}

static void agree(void) {
    // Something lies in a sheaf, which the first few blocks of a size do without.
    void *few[20];
    for (int i = 0; i < 20; i++)
        few[i] = malloc(100);
    for (int i = 0; i < 20; i++)
        free(few[i]);
    static char xml[1 << 16];
    FILE *out = fmemopen(xml, sizeof xml, "w");
    CHECK(out);
    setbuf(out, NULL);
    struct mallinfo2 info = mallinfo2();
    CHECK(malloc_info(0, out) == 0);
    fclose(out);
    well_formed(xml);
    CHECK(strncmp(xml, "<malloc version=\"1\">", 20) == 0);
    CHECK(last(xml, "<total type=\"mmap\"", "size") == info.hblkhd);
    CHECK(last(xml, "<total type=\"mmap\"", "count") == info.hblks);
    CHECK(last(xml, "<system type=\"current\"", "size") == info.arena);
    CHECK(last(xml, "<total type=\"fast\"", "count") > 0);
    CHECK(last(xml, "<total type=\"fast\"", "size") + last(xml, "<total type=\"rest\"", "size") == info.fordblks);
    CHECK(info.uordblks + info.fordblks == info.arena);
    CHECK(info.usmblks == 0 && info.ordblks > 0);
    struct mallinfo narrow = mallinfo();
    CHECK((size_t)narrow.arena == info.arena && (size_t)narrow.hblks == info.hblks);
}

int main(void) {
    agree();
    struct mallinfo2 before = mallinfo2();
    void *large[3], *small[5000], *runs[50];
    for (int i = 0; i < 3; i++)
        large[i] = malloc(5 << 20);
    for (int i = 0; i < 5000; i++)
        small[i] = malloc(100);
    for (int i = 0; i < 50; i++)
        runs[i] = malloc(40000);
    struct mallinfo2 full = mallinfo2();
    agree();
    CHECK(full.hblks == before.hblks + 3 && full.hblkhd >= before.hblkhd + (15 << 20));
    CHECK(full.uordblks >= before.uordblks + 500000 + 2000000);
    for (int i = 0; i < 5000; i++)
        free(small[i]);
    for (int i = 0; i < 50; i++)
        free(runs[i]);
    struct mallinfo2 after = mallinfo2();
    agree();
    CHECK(after.uordblks + 2000000 < full.uordblks && after.fordblks >= full.fordblks + 2000000);
    // There are no fast bins; what lies in sheaves is free, and malloc_info tells it apart.
    CHECK(after.smblks == 0 && after.fsmblks == 0);
    CHECK(after.keepcost > 256 << 10);
    malloc_trim(0);
    CHECK(mallinfo2().keepcost < after.keepcost);
    for (int i = 0; i < 3; i++)
        free(large[i]);
    CHECK(mallinfo2().hblks == before.hblks);

    // What may stay after a fall, as long as nobody wants it.
    CHECK(mallopt(M_TRIM_THRESHOLD, -1) == 1);
    void *p = malloc(50 << 20);
    memset(p, 1, 50 << 20);
    free(p);
    idle(10);
    CHECK(resident_kb() > 40 << 10);
    malloc_trim(0);
    CHECK(mallopt(M_TRIM_THRESHOLD, 1 << 20) == 1);
    p = malloc(200 << 20);
    memset(p, 1, 200 << 20);
    free(p);
    idle(10);
    CHECK(resident_kb() < 100 << 10);
    CHECK(mallopt(M_MMAP_THRESHOLD, 1 << 20) == 1 && mallopt(M_PERTURB, 7) == 1 && mallopt(77, 1) == 0);
    return 0;
}
