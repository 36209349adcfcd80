//! The source of `slabwright::sync` over atomics that misbehave on demand.
#![allow(dead_code, unsafe_code)]

use std::cell::Cell;

/// What is wrong with the atomics.
#[derive(Clone, Copy, PartialEq)]
pub enum Mutant {
    /// Nothing.
    None,
    /// Acquire is Relaxed.
    NoAcquire,
    /// Release is Relaxed.
    NoRelease,
    /// Who gives the lock back does not see that there are sleepers.
    NoSleepers,
    /// Of all wakes only the first arrives.
    NoChain,
    /// A head is compared without its tag.
    NoTag,
    /// Who expects nothing does not look.
    NoLook,
}

std::thread_local! {
    // Loom runs all threads of a model on the thread that started it.
    static MUTANT: Cell<Mutant> = const { Cell::new(Mutant::None) };
}

impl Mutant {
    /// Whether the atomics are of this kind at present.
    pub fn on(self) -> bool {
        MUTANT.get() == self
    }
}

/// Runs `model` with misbehaving atomics.
pub fn with(mutant: Mutant, model: impl FnOnce()) {
    MUTANT.set(mutant);
    model();
}

pub mod atomic {
    pub use loom::sync::atomic::Ordering;

    use super::{MUTANT, Mutant};

    fn weaken(ordering: Ordering) -> Ordering {
        match (MUTANT.get(), ordering) {
            (Mutant::NoAcquire, Ordering::Acquire) | (Mutant::NoRelease, Ordering::Release) => Ordering::Relaxed,
            (Mutant::NoAcquire, Ordering::AcqRel) => Ordering::Release,
            (Mutant::NoRelease, Ordering::AcqRel) => Ordering::Acquire,
            _ => ordering,
        }
    }

    macro_rules! atomic {
        ($name:ident, $value:ty) => {
            pub struct $name(loom::sync::atomic::$name);

            impl $name {
                pub fn new(value: $value) -> $name {
                    $name(loom::sync::atomic::$name::new(value))
                }
                pub fn load(&self, ordering: Ordering) -> $value {
                    self.0.load(weaken(ordering))
                }
                pub fn store(&self, value: $value, ordering: Ordering) {
                    self.0.store(value, weaken(ordering));
                }
                pub fn fetch_add(&self, value: $value, ordering: Ordering) -> $value {
                    self.0.fetch_add(value, weaken(ordering))
                }
                pub fn fetch_or(&self, value: $value, ordering: Ordering) -> $value {
                    self.0.fetch_or(value, weaken(ordering))
                }
                pub fn swap(&self, value: $value, ordering: Ordering) -> $value {
                    let old = self.0.swap(value, weaken(ordering));
                    if Mutant::NoSleepers.on() && old == 2 { 1 } else { old }
                }
                pub fn compare_exchange(
                    &self,
                    old: $value,
                    new: $value,
                    done: Ordering,
                    failed: Ordering,
                ) -> Result<$value, $value> {
                    if Mutant::NoLook.on() && old == 0 {
                        return Ok(self.0.swap(new, weaken(done)));
                    }
                    let tagless = |value: $value| if Mutant::NoTag.on() { value & u32::MAX as $value } else { value };
                    self.0.compare_exchange(tagless(old), tagless(new), weaken(done), weaken(failed))
                }
                pub fn compare_exchange_weak(
                    &self,
                    old: $value,
                    new: $value,
                    done: Ordering,
                    failed: Ordering,
                ) -> Result<$value, $value> {
                    self.compare_exchange(old, new, done, failed)
                }
            }
        };
    }

    atomic!(AtomicU32, u32);
    atomic!(AtomicU64, u64);
    atomic!(AtomicUsize, usize);
}

#[path = "../../src/sync/cell.rs"]
pub mod cell;
#[path = "../../src/sync/deferred.rs"]
pub mod deferred;
#[path = "../../src/sync/hands.rs"]
pub mod hands;
#[path = "../../src/sync/lock.rs"]
pub mod lock;
#[path = "../../src/sync/stack.rs"]
pub mod stack;
#[path = "../../src/sync/startup.rs"]
pub mod startup;
