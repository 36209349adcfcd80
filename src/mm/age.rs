//! What lies idle goes back in time: the clock, and who looks at it.
//!
//! Slow paths do. While memory lies idle, that would not do: a program that has freed its peak may stay on the fast path for ever. So a slow path
//! that sees memory become idle, or still be, *knocks*: it closes the fast path of `malloc` for the next [`KNOCKS`] calls, at most every
//! [`KNOCK_MS`]. Each of them looks at the clock, and the one that finds it time [`Mm::age`]s. Frees go on undisturbed, so that the end of a long row
//! of them is as closed as its beginning. A program gets away with idle memory if it makes more calls than that within [`INTERVAL_MS`] of the last knock,
//! and none but fast ones ever after.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use super::{Mm, TINY};
use crate::gfp::Gfp;
use crate::machine::Machine;
use crate::slab::classes::MAX_SMALL;

/// Milliseconds between two looks at what has become old.
const INTERVAL_MS: u64 = 100;
/// Calls that a knock lasts, 30 ns each, and milliseconds between two knocks: a thousandth of the time.
const KNOCKS: u32 = 1024;
const KNOCK_MS: u64 = 25;
/// Milliseconds after which free memory is old where memory is short, if it would not be old earlier.
const PRESSED_DECAY_MS: u32 = 200;
/// The part of the time since the last look that may be spent on giving back, and least and most milliseconds: nobody should wait long.
const PART: u64 = 4;
const LIMIT_MS: (u64, u64) = (20, 500);

/// The clock's hands, in milliseconds.
pub(super) struct Age {
    /// Of [`KNOCKS`], those that are left.
    knocks: AtomicU32,
    /// The last knock.
    knocked: AtomicU64,
    /// The last look.
    looked: AtomicU64,
    /// The end of the last window of time (see [`crate::zone::Demand`]).
    turned: AtomicU64,
    /// What two windows last.
    decay: AtomicU32,
}

impl Age {
    pub(super) const fn new() -> Age {
        Age {
            knocks: AtomicU32::new(0),
            knocked: AtomicU64::new(0),
            looked: AtomicU64::new(0),
            turned: AtomicU64::new(0),
            decay: AtomicU32::new(0),
        }
    }

    pub(super) fn start(&self, now: u64, decay: u32) {
        self.looked.store(now, Relaxed);
        self.knocked.store(now.wrapping_sub(KNOCK_MS), Relaxed);
        self.turned.store(now, Relaxed);
        self.decay.store(decay, Relaxed);
    }

    /// How far `hand` is behind, if that is `interval` or more; then it is put on `now`, by one thread.
    fn due(hand: &AtomicU64, now: u64, interval: u64) -> Option<u64> {
        let last = hand.load(Relaxed);
        let since = now.wrapping_sub(last);
        (since >= interval && hand.compare_exchange(last, now, Relaxed, Relaxed).is_ok()).then_some(since)
    }
}

impl<M: Machine> Mm<M> {
    /// Gives back what has been of no use for a while, if it is time to look at that.
    pub(super) fn age(&self) {
        let (m, pages, now) = (&self.machine, &self.pages, self.machine.now_ms());
        if !self.is_up() {
            return;
        }
        let Some(since) = Age::due(&self.age.looked, now, INTERVAL_MS) else { return };
        let decay = self.age.decay.load(Relaxed);
        let decay = if pages.pressed() { decay.min(PRESSED_DECAY_MS) } else { decay };
        if now.wrapping_sub(self.age.turned.load(Relaxed)) >= u64::from(decay / 2) {
            self.age.turned.store(now, Relaxed);
            self.slab.age(m, pages);
            self.vmalloc.turn(m);
            pages.turn(m);
        }
        pages.age(m);
        let until = now + (since / PART).clamp(LIMIT_MS.0, LIMIT_MS.1);
        let mut gone = self.vmalloc.give_back_excess(m, pages, until) + pages.give_back_excess(m, until);
        if pages.is_strewn(m) {
            // Objects in sheaves hold on to a slab each.
            self.slab.shrink(m, pages, None);
            gone += pages.give_back_strewn(m, until);
        }
        self.returned.fetch_add(gone, Relaxed);
        pages.set_idles(M::LENT && (pages.will_idle(m) || self.vmalloc.will_idle(m)));
    }

    /// Closes the fast path of `malloc` for some calls, if that was not done lately: memory lies idle, and somebody has to look at the clock.
    pub(super) fn knock(&self) {
        if TINY || !M::LENT || Age::due(&self.age.knocked, self.machine.now_ms(), KNOCK_MS).is_none() {
            return;
        }
        self.pages.set_idles(false);
        self.age.knocks.store(KNOCKS, Relaxed);
        self.small.store(0, Relaxed);
    }

    /// Whether there is a fast path. A knock is answered.
    #[inline]
    pub(super) fn is_open(&self, gfp: Gfp) -> bool {
        self.small.load(Acquire) != 0 || self.answer(gfp)
    }

    /// A call found the fast path closed. False where there is none, or not yet.
    #[cold]
    fn answer(&self, gfp: Gfp) -> bool {
        if TINY || !self.is_up() {
            return false;
        }
        let left = self.age.knocks.load(Relaxed);
        self.age.knocks.store(left.saturating_sub(1), Relaxed);
        // Also where two threads were at the end of one knock and the beginning of the next, and it stayed closed.
        if left <= 1 {
            // Release as at the start: see there.
            self.small.store(MAX_SMALL + 1, Release);
        }
        let waited = self.machine.now_ms().wrapping_sub(self.age.looked.load(Relaxed));
        if waited >= INTERVAL_MS && gfp.may_block() && gfp.may_io() {
            self.bracket(gfp, |_| ());
        }
        true
    }
}
