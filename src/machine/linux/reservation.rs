//! Reserved addresses: opening them, and giving them back where addresses are rationed.
//!
//! `RLIMIT_AS` and `mlockall` count reserved addresses like memory. Where they are rationed from the start (`ulimit
//! -v`), little is reserved: the map is *sparse*, and windows are opened by `mmap` instead of `mprotect`. Where the
//! program rations them later, the map [turns](super::memory::retreat) sparse: what was not opened by then is unmapped.
//! The C ABI does so before it passes `setrlimit`, `prlimit` and `mlockall` on; limits set without it, or from outside,
//! are noticed at the next growth ([`check_ration`]), until when only the program's own mappings are refused; that
//! memory was locked is not. Where it was locked before the heap began, nothing is reserved.
//!
//! Which addresses are open is asked of the kernel (`/proc/self/maps`), once, rather than kept in books on every call.
//! So opening and closing are kept out meanwhile, by one lock, the innermost of all. The kernel has a lock of its own
//! around each of these calls, so this one costs nothing but its two atomic operations.

use core::ops::Range;
use core::sync::atomic::{
    AtomicBool, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};

use super::{Linux, sys, tls};
use crate::sync::{Fork, Guard, Lock};

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
/// A limit on addresses below so many times the reservation makes them rationed: they are the program's, then.
const RATION: u64 = 16;

static GATE: Lock<()> = Lock::new(());
/// [`tls::base`] of the thread that has the gate; 0 where none has, and in the instant before it says so, or gives it
/// back.
static HOLDER: AtomicUsize = AtomicUsize::new(0);
static SPARSE: AtomicBool = AtomicBool::new(false);
/// What was reserved: first byte and end, both 0 where nothing is.
static START: AtomicUsize = AtomicUsize::new(0);
static END: AtomicUsize = AtomicUsize::new(0);

/// Whether windows are opened by `mmap` instead of `mprotect`.
pub(super) fn sparse() -> bool {
    // Acquire, pairs with the Release in `begin_sparse`.
    SPARSE.load(Acquire)
}

/// From now on windows are opened by `mmap`.
pub(super) fn begin_sparse() {
    SPARSE.store(true, Release);
}

/// Reserves `len` bytes of addresses, if they are not rationed; the first.
pub(super) fn reserve(len: usize) -> Option<usize> {
    if is_ration(sys::rlimit(libc::RLIMIT_AS), len) {
        return None;
    }
    let start = sys::mmap(0, len, libc::PROT_NONE, 0).ok()?;
    START.store(start, Relaxed);
    END.store(start + len, Relaxed);
    Some(start)
}

fn is_ration(limit: u64, reserved: usize) -> bool {
    limit / RATION < reserved as u64
}

/// The gate, held.
pub(super) struct Gate(#[allow(dead_code)] Guard<'static, (), Linux>);

impl Drop for Gate {
    fn drop(&mut self) {
        HOLDER.store(0, Relaxed);
    }
}

/// Keeps [`release`] out while addresses are opened or closed. `None` in a handler that may have interrupted its
/// holder.
pub(super) fn gate() -> Option<Gate> {
    let guard = GATE.acquire(&Linux, tls::get(tls::DEPTH) <= 1)?;
    HOLDER.store(tls::base(), Relaxed);
    Some(Gate(guard))
}

/// Takes the gate before a `fork`, as the last lock of all: see [`Lock::lock_for_fork`].
pub(super) fn fork_prepare(fork: Fork) -> bool {
    let go_on = GATE.lock_for_fork(&Linux, fork);
    if GATE.is_held_for(fork) {
        HOLDER.store(tls::base(), Relaxed);
    }
    go_on
}

/// Gives it back after a `fork`, in parent and child.
pub(super) fn fork_done(fork: Fork) {
    if GATE.is_held_for(fork) {
        HOLDER.store(0, Relaxed);
    }
    // SAFETY: the fork is this thread's, or that of the one it is the copy of.
    unsafe { GATE.unlock_after_fork(&Linux, fork) }
}

/// In a child: the gate's holder may be a thread that it does not have.
pub(super) fn after_fork() {
    if GATE.is_held() && HOLDER.load(Relaxed) != tls::base() {
        // SAFETY: this thread is the only one, and either not the holder, or interrupted before it had said that it is,
        // or after it had taken that back: it has begun nothing, or is done.
        unsafe { GATE.abandon() };
    }
}

/// Maps exactly at `at`, where nothing may be mapped yet.
pub(super) fn map_at(at: usize, len: usize, prot: i32) -> Result<(), sys::Errno> {
    let got = sys::mmap(at, len, prot, libc::MAP_FIXED_NOREPLACE)?;
    if got == at {
        return Ok(());
    }
    // A kernel before 4.17 takes the address for a hint.
    sys::munmap(got, len);
    Err(sys::Errno(libc::EEXIST))
}

/// Opens reserved or, in a sparse map, free addresses. The caller holds the [`gate`].
pub(super) fn open(at: usize, len: usize) -> Result<(), sys::Errno> {
    if sparse() {
        map_at(at, len, RW)
    } else if sys::mprotect(at, len, RW) {
        Ok(())
    } else {
        Err(sys::Errno(libc::ENOMEM))
    }
}

/// Does away with what is open, so that nothing of it is counted. A new mapping merges with its neighbours whatever was
/// there, and does away with pages that are locked. False: nothing changed. The caller holds the [`gate`].
pub(super) fn close(at: usize, len: usize) -> bool {
    if sparse() {
        // It fails where that would take a mapping more than a process may have.
        return sys::munmap(at, len);
    }
    sys::mmap(at, len, libc::PROT_NONE, libc::MAP_FIXED).is_ok()
}

/// Makes the map sparse if addresses have become rationed. To be called before growth: a system call.
pub(super) fn check_ration() {
    if !sparse() {
        let reserved = END.load(Relaxed) - START.load(Relaxed);
        let limit = sys::rlimit(libc::RLIMIT_AS);
        if is_ration(limit, reserved) {
            super::memory::retreat(limit);
        }
    }
}

/// Whether a limit on addresses would count the reservation and find it too much.
pub(super) fn would_ration(limit: u64) -> bool {
    !sparse() && is_ration(limit, END.load(Relaxed) - START.load(Relaxed))
}

/// Unmaps what is reserved and not open, but for the ranges in `keep`; from then on the map is sparse, and `first` runs
/// before anything else is opened. Nothing happens where it cannot be found out what is open. The caller holds the
/// [`gate`].
pub(super) fn release(keep: &[Range<usize>], first: impl Fn()) {
    let reserved = START.load(Relaxed)..END.load(Relaxed);
    if sparse() || reserved.is_empty() {
        return;
    }
    sys::lines(c"/proc/self/maps", |line| {
        // There are lines, so the list will be had.
        if !sparse() {
            first();
            begin_sparse();
        }
        let Some(closed) = closed(line) else { return };
        // What is before a kept range, then what is behind all of them.
        let mut at = closed.start.max(reserved.start);
        let end = closed.end.min(reserved.end);
        for kept in keep.iter().filter(|kept| !kept.is_empty()) {
            let stop = kept.start.min(end);
            if at < stop {
                sys::munmap(at, stop - at);
            }
            at = at.max(kept.end);
        }
        if at < end {
            sys::munmap(at, end - at);
        }
    });
}

/// The addresses of a line of `/proc/self/maps` that lets nobody at them and has no file.
fn closed(line: &[u8]) -> Option<Range<usize>> {
    let mut fields = line.split(|&c| c == b' ').filter(|field| !field.is_empty());
    let (range, rights) = (fields.next()?, fields.next()?);
    let inode = fields.nth(2)?;
    if rights != b"---p" || inode != b"0" {
        return None;
    }
    let mut ends = range.split(|&c| c == b'-').map(hexadecimal);
    Some(ends.next()??..ends.next()??)
}

fn hexadecimal(text: &[u8]) -> Option<usize> {
    usize::from_str_radix(core::str::from_utf8(text).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Context;

    /// They play with the one gate.
    static TESTS: std::sync::Mutex<()> = std::sync::Mutex::new(());

    #[test]
    fn lines_of_closed_addresses() {
        let line = b"7f0000000000-7f0000200000 ---p 00000000 00:00 0 ";
        assert_eq!(closed(line), Some(0x7f00_0000_0000..0x7f00_0020_0000));
        assert_eq!(closed(b"7f0000000000-7f0000200000 rw-p 00000000 00:00 0 "), None);
        assert_eq!(closed(b"7f0000000000-7f0000200000 ---p 00001000 fe:00 77   /lib/libc.so.6"), None);
        assert_eq!(closed(b""), None);
        assert_eq!(closed(b"7f00"), None);
    }

    /// Whether the gate is held after `fork` in a handler that interrupted a slow path, while another thread has what
    /// `take` gives.
    fn is_held_after<T>(take: impl FnOnce() -> T + Send, fork: impl FnOnce()) -> bool {
        let (held, done) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let taken = take();
                held.wait();
                done.wait();
                drop(taken);
            });
            held.wait();
            Linux.enter();
            fork();
            let held = GATE.is_held();
            Linux.leave();
            done.wait();
            held
        })
    }

    #[test]
    fn a_fork_that_has_to_leave_the_gate_to_another_thread_does_not_lock_the_child_out() {
        let _one = TESTS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let held = is_held_after(gate, || {
            fork_prepare(Fork { token: tls::base() + 2, needs_all: false });
            after_fork();
        });
        assert!(!held);
    }

    #[test]
    fn a_child_has_the_gate_though_its_holder_had_not_said_so_yet() {
        let _one = TESTS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // This thread had it last.
        drop(gate());
        assert!(!is_held_after(|| GATE.lock(&Linux), after_fork));
    }

    #[test]
    fn a_fork_that_has_the_gate_keeps_it_in_the_child() {
        let _one = TESTS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let fork = Fork { token: tls::base() + 1, needs_all: true };
        fork_prepare(fork);
        after_fork();
        assert!(GATE.is_held_for(fork));
        fork_done(fork);
        assert_eq!((GATE.is_held_for(fork), HOLDER.load(Relaxed)), (false, 0));
    }

    #[test]
    fn rations() {
        assert!(is_ration(1 << 40, 16 << 40));
        assert!(!is_ration(u64::MAX, 16 << 40));
        assert!(is_ration(16 << 30, (1 << 30) + 4096));
        assert!(!is_ration(16 << 30, 1 << 30));
    }
}
