//! What the compiler asks of a program without a C library.

use core::arch::asm;
use core::panic::PanicInfo;

use slabwright::machine::i386::console::{Exit, exit};
use slabwright::printk;

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    if let Some(test) = crate::tests::current() {
        printk!("FAILED {test}\n");
    }
    printk!("{info}\n");
    exit(Exit::Failure)
}

/// Named by the precompiled `core`, never called: nothing unwinds.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// As above.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    exit(Exit::Failure)
}

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller's condition.
    unsafe {
        asm!("xchg esi, {from}", "rep movsb", "mov esi, {from}", inout("edi") to => _, from = inout(reg) from => _, inout("ecx") len => _)
    };
    to
}

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= len {
        // SAFETY: a copy upwards does not overwrite what it has yet to read.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: from the last byte downwards; the direction is as it was afterwards.
    unsafe {
        asm!(
            "xchg esi, {from}", "std", "rep movsb", "cld", "mov esi, {from}",
            inout("edi") to.wrapping_add(len).wrapping_sub(1) => _,
            from = inout(reg) from.wrapping_add(len).wrapping_sub(1) => _,
            inout("ecx") len => _,
        );
    }
    to
}

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller's condition.
    unsafe { asm!("rep stosb", inout("edi") to => _, in("al") value as u8, inout("ecx") len => _, options(nostack)) };
    to
}

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // Volatile, or the compiler would see a call of this very function in the loop.
    for i in 0..len {
        // SAFETY: the caller's condition.
        let (a, b) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // SAFETY: the caller's condition.
    unsafe { memcmp(a, b, len) }
}
