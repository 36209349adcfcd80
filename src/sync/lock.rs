//! A lock that spins briefly and then sleeps: its holder may be descheduled at any time, so spinning on is no
//! option (measured on other allocators: milliseconds under 8 threads on 2 CPUs).
//!
//! The word is 0 free, 1 held, 2 held with sleepers (Drepper, "Futexes Are Tricky", mutex 2). How to sleep is the
//! machine's business ([`Park`]): a futex hosted; on bare metal, where the holder is on another CPU, a loop that
//! answers that one's calls.
//!
//! Who may not wait may not enter the system to wake others either. Such a holder says 3: who finds that does not go to
//! sleep on the word but naps and looks again.
#![allow(unsafe_code)]

use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};
// Never contended, so nothing for loom; and a mutant's atomics lack it.
use core::sync::atomic::AtomicUsize;

use super::atomic::{AtomicU32, Ordering};
use super::cell::{Access, UnsafeCell, access};

const FREE: u32 = 0;
const HELD: u32 = 1;
const SLEEPERS: u32 = 2;
const BRIEF: u32 = 3;

/// Tries of a `fork` for a lock, which its thread may hold itself. Behind each is a nap, so that a holder who lost the
/// CPU can go on; together they last longer than others hold it.
const FORK_TRIES: u32 = 100;

/// How a machine lets a thread wait for a lock word.
pub trait Park {
    /// Tries before sleeping.
    const SPINS: u32;
    /// Sleeps while `*word == seen`; may return early.
    fn wait(&self, word: &AtomicU32, seen: u32);
    /// Lets some time pass while `*word == seen`, which nobody will wake the caller from.
    fn nap(&self, _word: &AtomicU32, _seen: u32) {
        core::hint::spin_loop();
    }
    /// Wakes one sleeper on `word`.
    fn wake(&self, word: &AtomicU32);
}

/// A fork in progress. Two may be at it at once: one on another thread, or one in a handler that interrupted the other.
#[derive(Clone, Copy, Debug)]
pub struct Fork {
    /// Not 0, and no other fork's: made of thread and depth of nesting.
    pub token: usize,
    /// Whether it needs all locks; else one that is not to be had is left to its holder.
    pub needs_all: bool,
}

/// A value guarded by a sleeping lock. The word comes first, so that it shares a cache line with the beginning of the
/// value.
#[repr(C)]
pub struct Lock<T> {
    word: AtomicU32,
    /// The fork in progress that holds it, 0 for none.
    fork: AtomicUsize,
    value: UnsafeCell<T>,
}

// SAFETY: 1. the value is reached only through a `Guard` (or `&mut self`), of which there is at most one;
// 2. taking the lock acquires what releasing it released. `T: Send` because the guard's holder may be any thread.
unsafe impl<T: Send> Sync for Lock<T> {}
// SAFETY: owning the lock owns the value.
unsafe impl<T: Send> Send for Lock<T> {}

impl<T> Lock<T> {
    /// An unlocked lock around `value`.
    #[cfg(not(loom))]
    pub const fn new(value: T) -> Lock<T> {
        Lock { word: AtomicU32::new(FREE), fork: AtomicUsize::new(0), value: UnsafeCell::new(value) }
    }

    /// An unlocked lock around `value` (loom's atomics have no `const` constructor).
    #[cfg(loom)]
    pub fn new(value: T) -> Lock<T> {
        Lock { word: AtomicU32::new(FREE), fork: AtomicUsize::new(0), value: UnsafeCell::new(value) }
    }

    /// Takes the lock, sleeping where it must.
    #[inline]
    pub fn lock<'a, P: Park>(&'a self, park: &'a P) -> Guard<'a, T, P> {
        self.raw_lock(park);
        self.guard(park)
    }

    /// Takes the lock if that needs no sleep (giving it back may wake one who sleeps): spins as briefly as
    /// [`Lock::lock`] does before it sleeps.
    #[inline]
    pub fn try_lock<'a, P: Park>(&'a self, park: &'a P) -> Option<Guard<'a, T, P>> {
        if self.try_word(HELD) || self.spin::<P>(HELD) { Some(self.guard(park)) } else { None }
    }

    /// [`Lock::try_lock`] by one who will not wake others when he gives the lock back, unless `may_wake`.
    #[inline]
    pub fn try_lock_as<'a, P: Park>(&'a self, park: &'a P, may_wake: bool) -> Option<Guard<'a, T, P>> {
        let word = if may_wake { HELD } else { BRIEF };
        if self.try_word(word) || self.spin::<P>(word) { Some(self.guard(park)) } else { None }
    }

    /// [`Lock::lock`] where `may_block`, else tries, and enters the system neither now nor when giving the lock back.
    #[inline]
    pub fn acquire<'a, P: Park>(&'a self, park: &'a P, may_block: bool) -> Option<Guard<'a, T, P>> {
        if may_block { Some(self.lock(park)) } else { self.try_lock_as(park, false) }
    }

    /// Takes the lock before a `fork`, which takes every lock in one function and gives them back in another. It is
    /// tried for a while only. Where the caller may hold it itself (a signal handler that interrupted a slow path) the
    /// fork may not block, and a lock that is not to be had is left to its holder. Any other fork gives back what it
    /// has and begins again, as the holder may be in a handler that waits for something of this fork's. False: that is
    /// to be done.
    pub fn lock_for_fork<P: Park>(&self, park: &P, fork: Fork) -> bool {
        // On a word of its own: asleep on the lock's, it would be woken in the place of one who waits.
        let own = AtomicU32::new(HELD);
        let tried = || {
            let got = self.try_word(HELD) || self.spin::<P>(HELD);
            if !got {
                park.nap(&own, HELD);
            }
            got
        };
        if !(0..FORK_TRIES).any(|_| tried()) {
            return !fork.needs_all;
        }
        self.fork.store(fork.token, Ordering::Relaxed);
        true
    }

    /// Gives the lock back after a `fork`, in parent and child, if [`Lock::lock_for_fork`] took it.
    ///
    /// # Safety
    /// `fork` is this thread's, or that of the thread which this one is the copy of.
    pub unsafe fn unlock_after_fork<P: Park>(&self, park: &P, fork: Fork) {
        if self.is_held_for(fork) {
            self.fork.store(0, Ordering::Relaxed);
            self.release(park);
        }
    }

    /// Whether `fork` has it.
    pub fn is_held_for(&self, fork: Fork) -> bool {
        self.fork.load(Ordering::Relaxed) == fork.token
    }

    /// Frees the lock of a holder that does not exist any more.
    ///
    /// # Safety
    /// The process is the copy of one, with one thread, and that thread does not hold the lock. The value is whole at
    /// any time.
    pub unsafe fn abandon(&self) {
        self.fork.store(0, Ordering::Relaxed);
        self.word.store(FREE, Ordering::Release);
    }

    /// Whether somebody holds it at this moment.
    pub fn is_held(&self) -> bool {
        self.word.load(Ordering::Relaxed) != FREE
    }

    fn raw_lock<P: Park>(&self, park: &P) {
        if self.try_word(HELD) || self.spin::<P>(HELD) {
            return;
        }
        loop {
            // Others may be asleep: who was must assume so.
            match self.exchange(FREE, SLEEPERS) {
                Ok(_) => return,
                Err(BRIEF) => park.nap(&self.word, BRIEF),
                Err(word) => {
                    if word == SLEEPERS || self.exchange(HELD, SLEEPERS).is_ok() {
                        park.wait(&self.word, SLEEPERS);
                    }
                }
            }
        }
    }

    /// The caller has taken the word.
    #[inline]
    fn guard<'a, P: Park>(&'a self, park: &'a P) -> Guard<'a, T, P> {
        Guard { lock: self, park, access: ManuallyDrop::new(access(&self.value)) }
    }

    #[inline]
    fn try_word(&self, word: u32) -> bool {
        self.exchange(FREE, word).is_ok()
    }

    #[inline]
    fn exchange(&self, old: u32, new: u32) -> Result<u32, u32> {
        // Acquire, pairs with the Release in `release`.
        self.word.compare_exchange(old, new, Ordering::Acquire, Ordering::Relaxed)
    }

    #[cold]
    fn spin<P: Park>(&self, word: u32) -> bool {
        for _ in 0..P::SPINS {
            core::hint::spin_loop();
            if self.word.load(Ordering::Relaxed) == FREE && self.try_word(word) {
                return true;
            }
        }
        false
    }

    #[inline]
    fn release<P: Park>(&self, park: &P) {
        // Release, pairs with the Acquire of the next holder.
        if self.word.swap(FREE, Ordering::Release) == SLEEPERS {
            park.wake(&self.word);
        }
    }
}

/// Proof that the lock is held; gives it back when dropped.
pub struct Guard<'a, T, P: Park> {
    lock: &'a Lock<T>,
    park: &'a P,
    /// Ends before the lock is given back.
    access: ManuallyDrop<Access<T>>,
}

impl<T, P: Park> Deref for Guard<'_, T, P> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard exists, so this thread holds the lock.
        unsafe { &*self.access.get(&self.lock.value) }
    }
}

impl<T, P: Park> DerefMut for Guard<'_, T, P> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and the guard is borrowed exclusively.
        unsafe { &mut *self.access.get(&self.lock.value) }
    }
}

impl<T, P: Park> Drop for Guard<'_, T, P> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: dropped once, here, and not used again.
        unsafe { ManuallyDrop::drop(&mut self.access) };
        self.lock.release(self.park);
    }
}
