//! The allocator's 64 bytes of static thread-local storage.
//!
//! They are laid out by hand because `thread_local!` in a shared library calls `__tls_get_addr`, which may allocate.
//! The initial-exec model costs one load of an offset and works from the first instruction on, in every thread.
//!
//! | offset | what |
//! |---|---|
//! | 0 | rseq area of threads for which nobody else registered one; `cpu_id` starts as -1, "not registered" |
//! | 32 | depth of nesting in slow paths |
//! | 36 | state of this thread's registration ([`super::rseq`]) |
//! | 40 | sections aborted since the last one that was looked after; left set where they never get through |
//! | 44 | how often the thread forbade itself to sleep |
//! | 48 | of which CPU it holds the lock of per-CPU data, and how often ([`super::local`]) |

use core::arch::{asm, global_asm};

global_asm!(
    ".pushsection .tdata, \"awT\", @progbits",
    ".balign 32",
    ".hidden slabwright_tls",
    ".globl slabwright_tls",
    ".type slabwright_tls, @tls_object",
    ".size slabwright_tls, 64",
    "slabwright_tls:",
    ".long 0, -1",
    ".zero 56",
    ".popsection",
);

/// Offset of the nesting depth.
pub(super) const DEPTH: usize = 32;
/// Offset of the registration state.
pub(super) const STATE: usize = 36;
/// Offset of the count of aborted sections.
pub(super) const ABORTS: usize = 40;
/// Offset of the count of `preempt_disable` calls in force.
pub(super) const PREEMPT: usize = 44;
/// Offset of whose per-CPU data it uses, and how often.
pub(super) const HELD: usize = 48;

/// Offset of the block from the thread pointer: the same in every thread.
#[inline(always)]
pub(super) fn offset() -> isize {
    let offset: isize;
    // SAFETY: loads a link-time constant.
    unsafe {
        asm!("mov {}, qword ptr [rip + slabwright_tls@gottpoff]", out(reg) offset, options(pure, readonly, nostack, preserves_flags));
    }
    offset
}

/// Address of the block of the calling thread.
#[inline]
pub(super) fn base() -> usize {
    let pointer: usize;
    // SAFETY: x86-64 ABI: the word at fs:0 is the thread pointer.
    unsafe {
        asm!("mov {}, fs:[0]", out(reg) pointer, options(pure, readonly, nostack, preserves_flags));
    }
    pointer.wrapping_add_signed(offset())
}

/// Reads a 32-bit field of the thread whose thread pointer is in fs.
#[inline(always)]
pub(super) fn get(field: usize) -> u32 {
    let value: u32;
    // SAFETY: the field lies in this thread's own block.
    unsafe {
        asm!("mov {v:e}, fs:[{o}]", v = out(reg) value, o = in(reg) offset().wrapping_add_unsigned(field),
            options(readonly, nostack, preserves_flags));
    }
    value
}

/// Writes a 32-bit field.
#[inline(always)]
pub(super) fn set(field: usize, value: u32) {
    // SAFETY: as in `get`.
    unsafe {
        asm!("mov fs:[{o}], {v:e}", v = in(reg) value, o = in(reg) offset().wrapping_add_unsigned(field),
            options(nostack, preserves_flags));
    }
}

/// Adds to a field in one instruction, so that a signal comes before or after it; the value before.
#[inline(always)]
pub(super) fn add(field: usize, amount: u32) -> u32 {
    let mut value = amount;
    // SAFETY: as in `get`.
    unsafe {
        asm!("xadd fs:[{o}], {v:e}", v = inout(reg) value, o = in(reg) offset().wrapping_add_unsigned(field),
            options(nostack));
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thread_has_its_own_block() {
        assert_eq!(base() % 32, 0);
        let here = base();
        let before = get(DEPTH);
        assert_eq!(add(DEPTH, 3), before);
        let there = std::thread::spawn(|| (base(), get(DEPTH))).join().unwrap();
        assert_ne!(here, there.0);
        assert_eq!(there.1, 0);
        set(DEPTH, before);
        assert_eq!(get(DEPTH), before);
    }
}
