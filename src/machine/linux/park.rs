//! Sleeping and waking on a lock word.

use core::sync::atomic::AtomicU32;

use super::{Linux, sys};
use crate::sync::Park;

fn futex(word: &AtomicU32, operation: i32, value: u32) {
    let op = (operation | libc::FUTEX_PRIVATE_FLAG) as usize;
    // SAFETY: the word is valid for the call; every outcome (woken, changed, interrupted) is allowed by the contract.
    let _ = unsafe { sys::call(libc::SYS_futex, [word.as_ptr().expose_provenance(), op, value as usize, 0, 0, 0]) };
}

impl Park for Linux {
    /// About a microsecond: the length of the longest section, but no descheduled holder's time slice.
    const SPINS: u32 = 40;

    fn wait(&self, word: &AtomicU32, seen: u32) {
        futex(word, libc::FUTEX_WAIT, seen);
    }

    fn wake(&self, word: &AtomicU32) {
        futex(word, libc::FUTEX_WAKE, 1);
    }
}
