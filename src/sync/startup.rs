//! The one start of an instance, by whichever caller comes first. It may fail, for good.

use super::atomic::{AtomicU32, Ordering};
use super::lock::Park;

/// How far the start has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Phase {
    /// Nobody has called yet.
    Down = 0,
    /// The first caller is at it.
    Starting = 1,
    /// Done.
    Up = 2,
    /// Tried in vain; not tried again.
    Failed = 3,
}

/// Beside [`Phase::Starting`]: somebody waits.
const WAITED: u32 = 4;

/// Runs a start once. Others wait for its end.
pub struct Startup {
    word: AtomicU32,
}

impl Startup {
    /// Not started.
    #[cfg(not(loom))]
    pub const fn new() -> Startup {
        Startup { word: AtomicU32::new(Phase::Down as u32) }
    }

    /// Not started (loom's atomics have no `const` constructor).
    #[cfg(loom)]
    pub fn new() -> Startup {
        Startup { word: AtomicU32::new(Phase::Down as u32) }
    }

    /// How far it is. Who sees [`Phase::Up`] sees everything that the start set up.
    #[inline]
    pub fn phase(&self) -> Phase {
        // Acquire, pairs with the Release in `run`.
        match self.word.load(Ordering::Acquire) & !WAITED {
            0 => Phase::Down,
            1 => Phase::Starting,
            2 => Phase::Up,
            _ => Phase::Failed,
        }
    }

    /// Whether it is [`Phase::Up`].
    #[inline]
    pub fn is_up(&self) -> bool {
        self.phase() == Phase::Up
    }

    /// Runs `start` if nobody did; it says whether it succeeded. Who comes meanwhile sleeps until it is done, but where
    /// `nested` says that the caller is the starter itself (or a handler that interrupted it): that one is sent away.
    /// Returns the phase at the end, and whether this call was the starter.
    pub fn run<P: Park>(&self, park: &P, nested: impl Fn() -> bool, start: impl FnOnce() -> bool) -> (Phase, bool) {
        loop {
            // Not read first: a page that was never touched would fault twice.
            let (down, starting) = (Phase::Down as u32, Phase::Starting as u32);
            if self.word.compare_exchange(down, starting, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                let phase = if start() { Phase::Up } else { Phase::Failed };
                // Release, pairs with the Acquire in `phase`.
                if self.word.swap(phase as u32, Ordering::Release) & WAITED != 0 {
                    park.wake(&self.word);
                }
                return (phase, true);
            }
            match self.phase() {
                phase @ (Phase::Up | Phase::Failed) => return (phase, false),
                Phase::Down | Phase::Starting => {
                    if nested() {
                        return (Phase::Starting, false);
                    }
                    let (starting, waited) = (Phase::Starting as u32, Phase::Starting as u32 | WAITED);
                    while self.phase() == Phase::Starting {
                        let _ = self.word.compare_exchange(starting, waited, Ordering::Relaxed, Ordering::Relaxed);
                        park.wait(&self.word, waited);
                    }
                    // The starter wakes one, and each who was woken the next.
                    park.wake(&self.word);
                }
            }
        }
    }
}

impl Default for Startup {
    fn default() -> Startup {
        Startup::new()
    }
}
