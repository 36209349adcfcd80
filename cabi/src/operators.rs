//! The operators new and delete of the shared library.
//!
//! `new` throws, and no exception may pass a Rust frame. So the fast path, which is `malloc`'s, has no frame (a test
//! looks at the instructions): what it cannot serve it passes on by a jump to assembly, which asks the slow path and,
//! where that has nothing either, jumps into `cxx.cc`. The caller of what throws is then the C++ program itself.

use core::arch::naked_asm;
use core::ffi::c_void;

use slabwright_core::global as heap;

use crate::libc_abi::{dealloc, dealloc_sized, export};

type Ptr = *mut c_void;

/// The slow path without a word to `errno`.
extern "C" fn slow(size: usize) -> *mut u8 {
    heap::malloc_slow(size)
}

unsafe extern "C" {
    // Never called as functions from Rust: jumped to with the registers of the operator.
    fn slw_cxx_new_failed();
    fn slw_cxx_new_nothrow_failed();
    fn slw_cxx_new_aligned();
    fn slw_cxx_new_aligned_nothrow();
}

macro_rules! slow {
    ($($name:ident, $failed:path;)*) => {$(
        #[cold]
        #[unsafe(naked)]
        extern "C" fn $name(size: usize) -> Ptr {
            naked_asm!(
                ".cfi_startproc",
                "push rdi",
                ".cfi_adjust_cfa_offset 8",
                "call {slow}",
                "pop rdi",
                ".cfi_adjust_cfa_offset -8",
                "test rax, rax",
                "jz {failed}",
                "ret",
                ".cfi_endproc",
                slow = sym slow,
                failed = sym $failed,
            )
        }
    )*};
}

slow! {
    new_slow, slw_cxx_new_failed;
    new_nothrow_slow, slw_cxx_new_nothrow_failed;
}

#[inline(always)]
fn new(size: usize) -> Ptr {
    let p = heap::malloc_fast(size);
    if p.is_null() { new_slow(size) } else { p.cast() }
}

#[inline(always)]
fn new_nothrow(size: usize, _tag: usize) -> Ptr {
    let p = heap::malloc_fast(size);
    if p.is_null() { new_nothrow_slow(size) } else { p.cast() }
}

export! {
    _Znwm(size: usize) -> Ptr = new;
    _Znam(size: usize) -> Ptr = new;
    _ZnwmRKSt9nothrow_t(size: usize, tag: usize) -> Ptr = new_nothrow;
    _ZnamRKSt9nothrow_t(size: usize, tag: usize) -> Ptr = new_nothrow;
}

macro_rules! jump {
    ($($name:ident, $to:path;)*) => {$(
        #[doc(hidden)]
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            naked_asm!(".cfi_startproc", "jmp {to}", ".cfi_endproc", to = sym $to)
        }
    )*};
}

jump! {
    _ZnwmSt11align_val_t, slw_cxx_new_aligned;
    _ZnamSt11align_val_t, slw_cxx_new_aligned;
    _ZnwmSt11align_val_tRKSt9nothrow_t, slw_cxx_new_aligned_nothrow;
    _ZnamSt11align_val_tRKSt9nothrow_t, slw_cxx_new_aligned_nothrow;
}

/// # Safety
/// As for [`dealloc`].
unsafe fn delete_with(p: Ptr, _tag: usize) {
    // SAFETY: by contract.
    unsafe { dealloc(p) }
}

/// # Safety
/// As for [`dealloc`].
unsafe fn delete_with_two(p: Ptr, _first: usize, _second: usize) {
    // SAFETY: by contract. The class of an aligned block does not follow from its size alone, so it is looked up.
    unsafe { dealloc(p) }
}

export! {
    _ZdlPv(p: Ptr) = dealloc;
    _ZdaPv(p: Ptr) = dealloc;
    _ZdlPvm(p: Ptr, size: usize) = dealloc_sized;
    _ZdaPvm(p: Ptr, size: usize) = dealloc_sized;
    _ZdlPvRKSt9nothrow_t(p: Ptr, tag: usize) = delete_with;
    _ZdaPvRKSt9nothrow_t(p: Ptr, tag: usize) = delete_with;
    _ZdlPvSt11align_val_t(p: Ptr, align: usize) = delete_with;
    _ZdaPvSt11align_val_t(p: Ptr, align: usize) = delete_with;
    _ZdlPvmSt11align_val_t(p: Ptr, size: usize, align: usize) = delete_with_two;
    _ZdaPvmSt11align_val_t(p: Ptr, size: usize, align: usize) = delete_with_two;
    _ZdlPvSt11align_val_tRKSt9nothrow_t(p: Ptr, align: usize, tag: usize) = delete_with_two;
    _ZdaPvSt11align_val_tRKSt9nothrow_t(p: Ptr, align: usize, tag: usize) = delete_with_two;
}
