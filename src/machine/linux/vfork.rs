//! `vfork`: its child runs on the parent's memory, thread-local storage included, but the kernel gives it no
//! registration for restartable sequences. The `cpu_id` it would read is the suspended parent's: its sections would run
//! unprotected.
//!
//! So the parent gives up its own registration over the call: `cpu_id` reads -1 for both, and the child goes past the
//! sheaves. Where it cannot, `vfork` is `fork`, which POSIX allows.

use core::arch::naked_asm;
use core::ffi::c_int;

use super::rseq;

/// What the caller of [`before`] is to do: a registered length to give back, or...
const FORK: usize = usize::MAX;

/// Gives up the registration; its length, or [`FORK`].
extern "C" fn before() -> usize {
    rseq::suspend().map_or(FORK, |suspended| suspended.0)
}

/// Takes the registration back, in the parent; the result of `vfork`.
extern "C" fn after(result: isize, suspended: usize) -> c_int {
    rseq::resume(rseq::Suspended(suspended));
    if result < 0 {
        // SAFETY: the calling thread's errno.
        unsafe { *libc::__errno_location() = -result as c_int };
        return -1;
    }
    result as c_int
}

/// `vfork` as a program calls it. The C ABI exports it under that name.
///
/// The child returns first, on the stack it shares with the suspended parent, and will overwrite the return address: it
/// stays in a register over the call, and is pushed again by each.
///
/// # Safety
/// As for `vfork(2)`.
#[unsafe(naked)]
pub unsafe extern "C" fn vfork() -> c_int {
    naked_asm!(
        "sub rsp, 8",
        "call {before}",
        "add rsp, 8",
        "cmp rax, -1",
        "je 4f",
        "mov rsi, rax",
        "pop rdi",
        "mov eax, {vfork}",
        "syscall",
        "push rdi",
        "test rax, rax",
        "jz 3f",
        "mov rdi, rax",
        "jmp {after}",
        "3:",
        "ret",
        "4:",
        "jmp {fork}",
        before = sym before,
        after = sym after,
        fork = sym fork,
        vfork = const libc::SYS_vfork,
    )
}

extern "C" fn fork() -> c_int {
    // SAFETY: `vfork`'s caller may fork.
    unsafe { libc::fork() }
}
