//! Sleeping and waking on a lock word.

use core::sync::atomic::AtomicU32;

use super::{Linux, sys};
use crate::sync::Park;

/// Several times what anybody holds a lock for.
const NAP_NS: i64 = 20_000;

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

    fn nap(&self, word: &AtomicU32, seen: u32) {
        // Sleeps rather than yields: the holder may run on this CPU and have the lower priority.
        let time = libc::timespec { tv_sec: 0, tv_nsec: NAP_NS };
        let op = (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG) as usize;
        let (word, time) = (word.as_ptr().expose_provenance(), (&raw const time).expose_provenance());
        // SAFETY: word and time are valid for the call.
        let _ = unsafe { sys::call(libc::SYS_futex, [word, op, seen as usize, time, 0, 0]) };
    }

    fn wake(&self, word: &AtomicU32) {
        futex(word, libc::FUTEX_WAKE, 1);
    }
}
