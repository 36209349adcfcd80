//! What lies idle goes back in time: the clock, and who looks at it.
//!
//! Slow paths do. While memory lies idle, that would not do: a program that has freed its peak may stay on the fast
//! path for ever. So a slow path that sees memory become idle, or still be, *knocks*: it closes the fast path of
//! `malloc` for the next [`KNOCKS`] calls, at most every [`KNOCK_MS`]. Of them every one looks at the clock where they
//! are seldom, one in [`STRIDE`] where they are many, and the one that finds it time [`Mm::age`]s. Frees go on
//! undisturbed, so that the end of a long row of them is as closed as its beginning. If none of those calls would have
//! taken a slow path on its own, nor did one of another thread, this is a program that stays on the fast path, and the
//! knock goes on until nothing lies idle any more: a second or two after a fall. Where demand swings slow paths abound,
//! and the fast path opens again. A fall may be over before the next knock is due, and the last one used up by then: so
//! one more comes whenever half of what was in use has gone. (64 threads that free all in the end and then ask for a
//! block a second kept 120 MiB for good in one of three runs, now 6.) Not seen: what lies in sheaves after a fall that
//! left little to the zone, as of 8 threads with 20 MiB. Nor is knocked for what lies in sheaves of runs in which there
//! was little at the last look ([`Slab::will_idle`](crate::slab::Slab::will_idle)): to a program that goes through a
//! few of them again and again each `malloc` would take 3 ns more for ever. What comes to lie there later stays until
//! somebody takes a slow path. (Where that was asked at the end of windows of time only, ten buffers of 8 to 32 KiB
//! took 11.7 in place of 8.6 ns each for the first half second.)
//!
//! A pair of `malloc` and `free` takes 5.8 in place of 3.2 ns meanwhile, 82 in place of 30 instructions for the
//! `malloc`; 12.5 ns and 218 instructions where each call looks at the clock and pops as slow paths do.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use super::{Mm, TINY};
use crate::gfp::Gfp;
use crate::machine::Machine;
use crate::slab::classes::MAX_SMALL;
use crate::sync::wide::AtomicU64;

/// Milliseconds between two looks at what has become old.
const INTERVAL_MS: u64 = 100;
/// Calls that a knock lasts, 6 to 12 ns each, and milliseconds between two knocks: at most half a thousandth of the
/// time where slow paths are taken.
const KNOCKS: u32 = 1024;
const KNOCK_MS: u64 = 25;
/// Of so many calls of a knock one looks at the clock where that has not moved between two looks: a look is 3 ns. A
/// program that calls seldom looks each time, but for so many calls after many in a row: a block each second for ten
/// seconds is to be enough, so that 16 are too many.
const STRIDE: u32 = 4;
/// Milliseconds after which free memory is old where memory is short, if it would not be old earlier.
const PRESSED_DECAY_MS: u32 = 200;
/// The part of the time since the last look that may be spent on giving back, and least and most milliseconds: nobody
/// should wait long.
const PART: u64 = 4;
const LIMIT_MS: (u64, u64) = (20, 500);

/// The clock's hands, in milliseconds.
pub(super) struct Age {
    /// Of [`KNOCKS`], those that are left.
    knocks: AtomicU32,
    /// What the last of them to look saw, and how many of the next do not look.
    seen: AtomicU32,
    skips: AtomicU32,
    /// The last knock.
    knocked: AtomicU64,
    /// A slow path of `malloc` was taken since.
    came: AtomicBool,
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
            seen: AtomicU32::new(0),
            skips: AtomicU32::new(0),
            knocked: AtomicU64::new(0),
            came: AtomicBool::new(false),
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

    /// How far behind `now` a hand at `last` is; 0 where another thread has seen a later time.
    fn since(last: u64, now: u64) -> u64 {
        now.wrapping_sub(last).cast_signed().max(0).cast_unsigned()
    }

    /// How far `hand` is behind, if that is `interval` or more; then it is put on `now`, by one thread.
    fn due(hand: &AtomicU64, now: u64, interval: u64) -> Option<u64> {
        let last = hand.load(Relaxed);
        let since = Age::since(last, now);
        (since >= interval && hand.compare_exchange(last, now, Relaxed, Relaxed).is_ok()).then_some(since)
    }
}

impl<M: Machine> Mm<M> {
    /// Gives back what has been of no use for a while, if it is time to look at that.
    pub(super) fn age(&self) {
        let now = self.machine.now_ms();
        if self.is_up()
            && let Some(since) = Age::due(&self.age.looked, now, INTERVAL_MS)
        {
            self.look(now, since);
        }
    }

    /// Looks at what has become old, `since` milliseconds after that was done last. Of its own, as programs that end
    /// soon never come here.
    #[cold]
    #[inline(never)]
    fn look(&self, now: u64, since: u64) {
        let (m, pages) = (&self.machine, &self.pages);
        let decay = self.age.decay.load(Relaxed);
        let decay = if pages.pressed() { decay.min(PRESSED_DECAY_MS) } else { decay };
        if Age::due(&self.age.turned, now, u64::from(decay / 2)).is_some() {
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
            gone += pages.give_back_strewn(m, until) + self.slab.give_back_tails(m, pages, until);
        }
        self.returned.fetch_add(gone, Relaxed);
        let idles = M::LENT && (pages.will_idle(m) || self.vmalloc.will_idle(m) || self.slab.will_idle(m, pages));
        pages.set_idles(idles);
        if !idles && self.age.knocks.load(Relaxed) > 0 {
            self.open();
        }
    }

    /// A `malloc` takes the slow path on its own.
    pub(super) fn come(&self) {
        if !self.age.came.load(Relaxed) {
            self.age.came.store(true, Relaxed);
        }
    }

    /// Ends a knock.
    fn open(&self) {
        self.age.knocks.store(0, Relaxed);
        // Release as at the start: see there.
        self.small.store(MAX_SMALL + 1, Release);
    }

    /// Closes the fast path of `malloc` for some calls, if that was not done lately: memory lies idle, and somebody has
    /// to look at the clock.
    pub(super) fn knock(&self) {
        if TINY || !M::LENT {
            return;
        }
        // The rest of a fall may take less time than is between two knocks, and nobody come by any more.
        let fallen = self.pages.take_fallen();
        if Age::due(&self.age.knocked, self.machine.now_ms(), KNOCK_MS).is_none() && !fallen {
            return;
        }
        self.age.came.store(false, Relaxed);
        self.age.skips.store(0, Relaxed);
        self.age.knocks.store(KNOCKS, Relaxed);
        self.small.store(0, Relaxed);
    }

    /// Whether there is a fast path. A knock is answered.
    #[inline]
    pub(super) fn is_open(&self, gfp: Gfp) -> bool {
        self.small.load(Acquire) != 0 || self.answers(gfp)
    }

    /// The same of one that was found closed.
    #[inline]
    pub(super) fn answers(&self, gfp: Gfp) -> bool {
        self.skip() || self.answer(gfp)
    }

    /// Whether a call that found the fast path closed is one of those that do not look at the clock.
    #[inline]
    fn skip(&self) -> bool {
        let skips = self.age.skips.load(Relaxed);
        if skips > 0 {
            self.age.skips.store(skips - 1, Relaxed);
        }
        skips > 0
    }

    /// A call found the fast path closed. False where there is none, or not yet.
    #[cold]
    fn answer(&self, gfp: Gfp) -> bool {
        if TINY || !self.is_up() {
            return false;
        }
        let now = self.machine.now_ms();
        let calls = if self.age.seen.load(Relaxed) == now as u32 { STRIDE } else { 1 };
        self.age.seen.store(now as u32, Relaxed);
        self.age.skips.store(calls - 1, Relaxed);
        match self.age.knocks.load(Relaxed) {
            left if left > calls => self.age.knocks.store(left - calls, Relaxed),
            1.. if self.pages.idles() && !self.age.came.load(Relaxed) => self.age.knocks.store(KNOCKS, Relaxed),
            // Also where two threads were at the end of one knock and the beginning of the next, and it stayed closed.
            _ => self.open(),
        }
        let waited = Age::since(self.age.looked.load(Relaxed), now);
        if waited >= INTERVAL_MS && gfp.may_block() && gfp.may_io() {
            self.bracket(gfp, |_| ());
        }
        true
    }
}
