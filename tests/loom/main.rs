//! loom models of the protocols that need no lock, or are one: `RUSTFLAGS="--cfg loom" cargo test --release --test
//! loom`.
//!
//! | module | what runs | mutants that must fail |
//! |---|---|---|
//! | `lock` | [`slabwright::sync::Lock`] itself | weakened orderings, a holder that forgets its sleepers |
//! | `deferred` | [`slabwright::sync::Deferred`] itself | weakened orderings, a list put back without a look |
//! | `hands` | [`slabwright::sync::Hands`] itself | weakened orderings, who takes without being counted |
//! | `stack` | [`slabwright::sync::Stack`] itself | weakened orderings, a head without its tag |
//! | `startup` | [`slabwright::sync::Startup`] itself | weakened orderings, a chain of wakes that is cut |
//! | `sheaf` | a small model of the slab layer's sheaf exchange over restartable sections | commit before payload, exchange without comparing |
//! | `drain` | a small model of taking another CPU's row | no barrier, giving the row back without Release |
//! | `areas` | a small model of vmalloc's ranges in transit, over the real lock | work outside the lock without transit, a free in two steps, weakened orderings of lock and root |
//! | `lists` | a small model of the per-CPU page lists, over the real lock | using a list that is taken, eviction and claim in two steps, weakened orderings |
//!
//! Mutants of real code are its source compiled a second time over atomics that misbehave on demand (`mutated`).
//!
//! Not covered: the assembly of the sections, its signature, and the barrier's system call; stress and single-stepping
//! tests do that. Loom knows 5 threads, and does not reorder Relaxed accesses in every way that hardware may.
#![cfg(loom)]
// Loom runs a model's threads in turns on one thread and checks the sharing itself. Its own `Arc` cannot be used:
// dropping it while a deadlock is reported panics again.
#![allow(clippy::arc_with_non_send_sync)]

mod areas;
mod deferred;
mod drain;
mod hands;
mod lists;
mod lock;
mod mutated;
mod sheaf;
mod stack;
mod startup;

use loom::sync::{Condvar, Mutex};
use mutated::Mutant;

/// Runs every execution of `body` with up to `preemptions` involuntary switches.
fn explore(preemptions: usize, body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(body);
}

/// A futex for one word: sleeping and changing the word exclude each other, and one wake ends one sleep.
struct Futex {
    /// Wakes so far.
    bucket: Mutex<u32>,
    queue: Condvar,
}

impl Futex {
    fn new() -> Futex {
        Futex { bucket: Mutex::new(0), queue: Condvar::new() }
    }

    fn wait(&self, changed: impl Fn() -> bool) {
        let bucket = self.bucket.lock().unwrap();
        if !changed() {
            drop(self.queue.wait(bucket).unwrap());
        }
    }

    fn wake(&self) {
        let wakes = {
            let mut bucket = self.bucket.lock().unwrap();
            *bucket += 1;
            *bucket
        };
        if wakes == 1 || !Mutant::NoChain.on() {
            self.queue.notify_one();
        }
    }
}

macro_rules! park {
    ($park:path, $word:path) => {
        impl $park for crate::Futex {
            const SPINS: u32 = 0;
            fn wait(&self, word: &$word, seen: u32) {
                self.wait(|| word.load(loom::sync::atomic::Ordering::Relaxed) != seen);
            }
            fn nap(&self, _word: &$word, _seen: u32) {
                loom::thread::yield_now();
            }
            fn wake(&self, _word: &$word) {
                self.wake();
            }
        }
    };
}

park!(slabwright::sync::Park, loom::sync::atomic::AtomicU32);
park!(mutated::lock::Park, mutated::atomic::AtomicU32);
