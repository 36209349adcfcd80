// Loaded by operators_late.c.
#include <new>
#include <string>
#include <vector>

#include "check.h"

static int calls = 0;

static void handler() {
    calls++;
    std::set_new_handler(nullptr);
}

extern "C" int late() {
    std::vector<std::string> words;
    for (int i = 0; i < 1000; i++)
        words.push_back(std::string(i, 'x'));
    bool caught = false;
    std::set_new_handler(handler);
    try {
        veil(::operator new(TOO_MUCH));
    } catch (const std::bad_alloc &) {
        caught = true;
    }
    CHECK(caught && calls == 1);
    CHECK(!::operator new(TOO_MUCH, std::nothrow));
    caught = false;
    try {
        veil(::operator new(TOO_MUCH, std::align_val_t(128)));
    } catch (const std::bad_alloc &) {
        caught = true;
    }
    CHECK(caught);
    return 0;
}
