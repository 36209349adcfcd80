//! The operators new and delete of the shared library.
//!
//! `new` throws, and no exception may pass a Rust frame. So these entry points are assembly without a frame: they call the
//! allocator and, where it has nothing, jump into `cxx.cc`, whose caller is then the C++ program itself.

use core::arch::naked_asm;
use core::ffi::c_void;

use slabwright_core::global as heap;

use crate::libc_abi::{align_to_cache_line, dealloc, dealloc_sized, export};

type Ptr = *mut c_void;

/// The allocator without a word to `errno`.
#[unsafe(link_section = ".text.slw_plain")]
extern "C" fn plain(size: usize) -> *mut u8 {
    heap::malloc(size)
}

unsafe extern "C" {
    // Never called as functions from Rust: jumped to with the registers of the operator.
    fn slw_cxx_new_failed();
    fn slw_cxx_new_nothrow_failed();
    fn slw_cxx_new_aligned();
    fn slw_cxx_new_aligned_nothrow();
}

align_to_cache_line!(slw_plain);

macro_rules! new {
    ($($name:ident, $failed:path;)*) => {align_to_cache_line!($($name)*); $(
        #[doc(hidden)]
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            naked_asm!(
                ".cfi_startproc",
                "push rdi",
                ".cfi_adjust_cfa_offset 8",
                "call {plain}",
                "pop rdi",
                ".cfi_adjust_cfa_offset -8",
                "test rax, rax",
                "jz {failed}",
                "ret",
                ".cfi_endproc",
                plain = sym plain,
                failed = sym $failed,
            )
        }
    )*};
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

new! {
    _Znwm, slw_cxx_new_failed;
    _Znam, slw_cxx_new_failed;
    _ZnwmRKSt9nothrow_t, slw_cxx_new_nothrow_failed;
    _ZnamRKSt9nothrow_t, slw_cxx_new_nothrow_failed;
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
