// What C++ asks of operator new when memory runs out: the new handler and std::bad_alloc.
//
// Compiled twice. In the shared library (SLW_SHARED) the operators themselves are assembly (operators.rs) that comes
// here on failure, and every reference to the C++ runtime is weak. In the archive this object defines the operators,
// and the references are strong, so that a static program that calls new gets what it needs to catch bad_alloc.

#include <cstddef>
#include <cstdlib>
#include <new>

#ifdef SLW_SHARED
#include <dlfcn.h>
#include <unistd.h>
#endif

// The public functions; they set errno, which new is free to do.
extern "C" void *slw_malloc(std::size_t size);
extern "C" void *slw_aligned_alloc(std::size_t align, std::size_t size);
extern "C" void slw_free(void *p);
extern "C" void slw_free_sized(void *p, std::size_t size);

namespace {

void *again(std::size_t size, std::size_t align) noexcept {
    return align == 0 ? slw_malloc(size) : slw_aligned_alloc(align, size);
}

#ifdef SLW_SHARED

asm(".weak __cxa_allocate_exception\n"
    ".weak __cxa_throw\n"
    ".weak __cxa_begin_catch\n"
    ".weak __cxa_end_catch\n"
    ".weak __gxx_personality_v0\n"
    ".weak _Unwind_Resume\n"
    ".weak _ZSt9terminatev\n"
    ".weak _ZSt15get_new_handlerv\n"
    ".weak _ZTISt9bad_alloc\n"
    ".weak _ZTVSt9bad_alloc\n"
    ".weak _ZNSt9bad_allocD1Ev\n");

// The same symbols under names whose absence the compiler believes possible.
extern "C" {
__attribute__((weak)) extern char have_throw asm("__cxa_throw");
__attribute__((weak)) extern char have_bad_alloc asm("_ZTISt9bad_alloc");
__attribute__((weak)) extern char have_get_new_handler asm("_ZSt15get_new_handlerv");
}

// A C++ runtime that was loaded after this library, by dlopen: the weak references were settled before.
void *late(const char *name) noexcept {
    static const char *const libraries[] = {"libstdc++.so.6", "libc++.so.1", "libc++abi.so.1"};
    for (const char *library : libraries)
        if (void *handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD)) {
            void *found = dlsym(handle, name);
            dlclose(handle);
            if (found)
                return found;
        }
    return nullptr;
}

std::new_handler handler() noexcept {
    if (&have_get_new_handler)
        return std::get_new_handler();
    auto get = reinterpret_cast<std::new_handler (*)()>(late("_ZSt15get_new_handlerv"));
    return get ? get() : nullptr;
}

[[noreturn]] void fail() {
    if (&have_throw && &have_bad_alloc)
        throw std::bad_alloc();
    if (auto fail = reinterpret_cast<void (*)()>(late("_ZSt17__throw_bad_allocv")))
        fail();
    static const char text[] = "slabwright: operator new: out of memory, and no C++ runtime to throw bad_alloc with\n";
    if (write(STDERR_FILENO, text, sizeof text - 1) < 0) {
        // Nowhere to say it.
    }
    std::abort();
}

#else

std::new_handler handler() noexcept {
    return std::get_new_handler();
}

[[noreturn]] void fail() {
    throw std::bad_alloc();
}

#endif

bool power_of_two(std::size_t value) noexcept {
    return value != 0 && (value & (value - 1)) == 0;
}

// After a first failure: as the standard says, the handler and another try, until there is no handler.
void *persist(std::size_t size, std::size_t align) {
    for (;;) {
        std::new_handler call = handler();
        if (!call)
            fail();
        call();
        if (void *p = again(size, align))
            return p;
    }
}

void *persist_nothrow(std::size_t size, std::size_t align) noexcept {
    // Without a handler nothing is thrown, and nothing of the runtime is needed.
    if (!handler())
        return nullptr;
    try {
        return persist(size, align);
    } catch (...) {
        return nullptr;
    }
}

void *aligned(std::size_t size, std::align_val_t align) {
    if (!power_of_two(std::size_t(align)))
        fail();
    if (void *p = again(size, std::size_t(align)))
        return p;
    return persist(size, std::size_t(align));
}

void *aligned_nothrow(std::size_t size, std::align_val_t align) noexcept {
    if (!power_of_two(std::size_t(align)))
        return nullptr;
    if (void *p = again(size, std::size_t(align)))
        return p;
    return persist_nothrow(size, std::size_t(align));
}

} // namespace

#ifdef SLW_SHARED

extern "C" void *slw_cxx_new_failed(std::size_t size) {
    return persist(size, 0);
}

extern "C" void *slw_cxx_new_nothrow_failed(std::size_t size) noexcept {
    return persist_nothrow(size, 0);
}

extern "C" void *slw_cxx_new_aligned(std::size_t size, std::align_val_t align) {
    return aligned(size, align);
}

extern "C" void *slw_cxx_new_aligned_nothrow(std::size_t size, std::align_val_t align) noexcept {
    return aligned_nothrow(size, align);
}

#else

void *operator new(std::size_t size) {
    void *p = slw_malloc(size);
    return __builtin_expect(p != nullptr, 1) ? p : persist(size, 0);
}

void *operator new[](std::size_t size) {
    void *p = slw_malloc(size);
    return __builtin_expect(p != nullptr, 1) ? p : persist(size, 0);
}

void *operator new(std::size_t size, const std::nothrow_t &) noexcept {
    void *p = slw_malloc(size);
    return __builtin_expect(p != nullptr, 1) ? p : persist_nothrow(size, 0);
}

void *operator new[](std::size_t size, const std::nothrow_t &) noexcept {
    void *p = slw_malloc(size);
    return __builtin_expect(p != nullptr, 1) ? p : persist_nothrow(size, 0);
}

void *operator new(std::size_t size, std::align_val_t align) {
    return aligned(size, align);
}

void *operator new[](std::size_t size, std::align_val_t align) {
    return aligned(size, align);
}

void *operator new(std::size_t size, std::align_val_t align, const std::nothrow_t &) noexcept {
    return aligned_nothrow(size, align);
}

void *operator new[](std::size_t size, std::align_val_t align, const std::nothrow_t &) noexcept {
    return aligned_nothrow(size, align);
}

void operator delete(void *p) noexcept {
    slw_free(p);
}

void operator delete[](void *p) noexcept {
    slw_free(p);
}

void operator delete(void *p, std::size_t size) noexcept {
    slw_free_sized(p, size);
}

void operator delete[](void *p, std::size_t size) noexcept {
    slw_free_sized(p, size);
}

void operator delete(void *p, const std::nothrow_t &) noexcept {
    slw_free(p);
}

void operator delete[](void *p, const std::nothrow_t &) noexcept {
    slw_free(p);
}

void operator delete(void *p, std::align_val_t) noexcept {
    slw_free(p);
}

void operator delete[](void *p, std::align_val_t) noexcept {
    slw_free(p);
}

void operator delete(void *p, std::size_t, std::align_val_t) noexcept {
    slw_free(p);
}

void operator delete[](void *p, std::size_t, std::align_val_t) noexcept {
    slw_free(p);
}

void operator delete(void *p, std::align_val_t, const std::nothrow_t &) noexcept {
    slw_free(p);
}

void operator delete[](void *p, std::align_val_t, const std::nothrow_t &) noexcept {
    slw_free(p);
}

#endif
