// Every operator new and delete, the new handler, and bad_alloc.
#include <cstddef>
#include <new>

#include "check.h"

namespace {

struct alignas(256) Wide {
    char bytes[300];
};

int calls = 0;

struct Thrown {};

void gives_up() {
    calls++;
    std::set_new_handler(nullptr);
}

void throws() {
    calls++;
    throw Thrown();
}

void throws_bad_alloc() {
    calls++;
    throw std::bad_alloc();
}

template <typename F> bool throws_bad(F f) {
    try {
        f();
    } catch (const std::bad_alloc &) {
        return true;
    }
    return false;
}

const std::align_val_t wide{256};

void pairs() {
    for (std::size_t size = 0; size < 3000; size += 7) {
        void *p = ::operator new(size);
        void *q = ::operator new[](size);
        CHECK(p && q && p != q);
        memset(p, 1, size);
        memset(q, 2, size);
        ::operator delete(p);
        ::operator delete[](q);
        ::operator delete(::operator new(size), size);
        ::operator delete[](::operator new[](size), size);
        ::operator delete(::operator new(size, std::nothrow), std::nothrow);
        ::operator delete[](::operator new[](size, std::nothrow), std::nothrow);
        p = ::operator new(size, wide);
        CHECK(aligned_to(p, 256));
        ::operator delete(p, wide);
        p = ::operator new[](size, wide);
        CHECK(aligned_to(p, 256));
        ::operator delete[](p, wide);
        ::operator delete(::operator new(size, wide), size, wide);
        ::operator delete[](::operator new[](size, wide), size, wide);
        p = ::operator new(size, wide, std::nothrow);
        CHECK(aligned_to(p, 256));
        ::operator delete(p, wide, std::nothrow);
        p = ::operator new[](size, wide, std::nothrow);
        CHECK(aligned_to(p, 256));
        ::operator delete[](p, wide, std::nothrow);
    }
    ::operator delete(nullptr);
    ::operator delete[](nullptr);
    ::operator delete(nullptr, std::size_t(8));
    ::operator delete[](nullptr, std::size_t(8));
    ::operator delete(nullptr, std::nothrow);
    ::operator delete(nullptr, wide);
    ::operator delete(nullptr, std::size_t(8), wide);
    // new and malloc are one heap.
    free(::operator new(100));
    ::operator delete(malloc(100));
    Wide *array = new Wide[10];
    CHECK(aligned_to(array, 256));
    delete[] array;
}

void failures() {
    const std::size_t much = TOO_MUCH;
    CHECK(throws_bad([&] { veil(::operator new(much)); }));
    CHECK(throws_bad([&] { veil(::operator new[](much)); }));
    CHECK(throws_bad([&] { veil(::operator new(SIZE_MAX)); }));
    CHECK(throws_bad([&] { veil(::operator new(much, wide)); }));
    CHECK(throws_bad([&] { veil(::operator new[](much, wide)); }));
    CHECK(throws_bad([&] { veil(::operator new[](BEYOND_PTRDIFF, wide)); }));
    CHECK(throws_bad([&] { veil(new char[much]); }));
    CHECK(!::operator new(much, std::nothrow));
    CHECK(!::operator new[](much, std::nothrow));
    CHECK(!::operator new(much, wide, std::nothrow));
    CHECK(!::operator new[](much, wide, std::nothrow));
    CHECK(!(new (std::nothrow) char[much]));
}

void handlers() {
    const std::size_t much = TOO_MUCH;
    int expected = 0;
    std::set_new_handler(gives_up);
    CHECK(throws_bad([&] { veil(::operator new(much)); }));
    CHECK(calls == ++expected);
    std::set_new_handler(gives_up);
    CHECK(!::operator new(much, std::nothrow));
    CHECK(calls == ++expected);
    std::set_new_handler(gives_up);
    CHECK(throws_bad([&] { veil(::operator new(much, wide)); }));
    CHECK(calls == ++expected);
    std::set_new_handler(gives_up);
    CHECK(!::operator new(much, wide, std::nothrow));
    CHECK(calls == ++expected);
    // What the handler throws goes through new, and not through new (nothrow).
    std::set_new_handler(throws);
    bool caught = false;
    try {
        veil(::operator new(much));
    } catch (const Thrown &) {
        caught = true;
    }
    CHECK(caught && calls == ++expected);
    caught = false;
    try {
        (void)::operator new(much, wide);
    } catch (const Thrown &) {
        caught = true;
    }
    CHECK(caught && calls == ++expected);
    std::set_new_handler(throws_bad_alloc);
    CHECK(!::operator new(much, std::nothrow));
    CHECK(!::operator new[](much, wide, std::nothrow));
    CHECK(calls == (expected += 2));
    // A handler that is not called when all is well.
    delete new int(1);
    CHECK(calls == expected);
    std::set_new_handler(nullptr);
}

} // namespace

int main() {
    pairs();
    failures();
    handlers();
    return 0;
}
