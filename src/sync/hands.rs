//! Who has something in hand that is on no list: counted when he begins and when he is done, so that who has to know of
//! everything can wait. Nobody waits to begin.

use super::atomic::{AtomicU32, Ordering};
use super::lock::Park;

/// How often who waits looks again.
#[cfg(not(loom))]
const TRIES: u32 = 10_000;
#[cfg(loom)]
const TRIES: u32 = 3;

/// The counts.
pub struct Hands {
    began: AtomicU32,
    done: AtomicU32,
}

/// Lasts as long as somebody has something in hand.
pub struct InHand<'a>(&'a Hands);

impl Hands {
    /// Nobody has anything.
    #[cfg(not(loom))]
    pub const fn new() -> Hands {
        Hands { began: AtomicU32::new(0), done: AtomicU32::new(0) }
    }

    /// Nobody has anything (loom's atomics have no `const` constructor).
    #[cfg(loom)]
    pub fn new() -> Hands {
        Hands { began: AtomicU32::new(0), done: AtomicU32::new(0) }
    }

    /// Counts the caller in.
    pub fn begin(&self) -> InHand<'_> {
        // Acquire, pairs with the Release in `announce`: who is counted in later sees what changed before.
        self.began.fetch_add(1, Ordering::AcqRel);
        InHand(self)
    }

    /// Makes what the caller changed known to all who begin later. Those who began earlier are waited for
    /// ([`Hands::wait`]).
    pub fn announce(&self) {
        // Changed, not read: then each of the others is before it or behind it.
        self.began.fetch_add(0, Ordering::AcqRel);
    }

    /// Waits until those who began before this are done. False where that took too long.
    pub fn wait<P: Park>(&self, park: &P) -> bool {
        (0..TRIES).any(|_| {
            // In this order: who begins and ends in between is not taken for one who began earlier.
            // Acquire, pairs with the Release in `drop`.
            let done = self.done.load(Ordering::Acquire);
            let alone = self.began.load(Ordering::Acquire) == done;
            if !alone {
                park.nap(&self.done, done);
            }
            alone
        })
    }

    /// Does `work`, which begins once, until it says that it was enough, or nobody else had anything in hand meanwhile.
    /// Whether one of these came about.
    pub fn repeat_alone<P: Park>(&self, park: &P, mut work: impl FnMut() -> bool) -> bool {
        (0..TRIES).any(|_| {
            let [began, done] = [&self.began, &self.done].map(|count| count.load(Ordering::Acquire));
            if work() || began == done && self.began.load(Ordering::Acquire) == began.wrapping_add(1) {
                return true;
            }
            park.nap(&self.done, done);
            false
        })
    }

    /// In a child, whose only thread the caller is, with nothing in hand: what others had is lost, and not waited for.
    pub fn forget(&self) {
        self.done.store(self.began.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// How many have begun so far.
    #[cfg(test)]
    pub fn begun(&self) -> u32 {
        self.began.load(Ordering::Acquire)
    }
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        // Release, pairs with the Acquire in `wait`: what was in hand is where it belongs.
        self.0.done.fetch_add(1, Ordering::AcqRel);
    }
}

impl Default for Hands {
    fn default() -> Hands {
        Hands::new()
    }
}
