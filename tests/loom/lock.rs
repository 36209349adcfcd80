//! The lock: mutual exclusion, what its holders did is seen by the next, and nobody sleeps for ever (loom reports that
//! as a deadlock).

use loom::thread;
use std::sync::Arc;

use crate::mutated::{self, Mutant};
use crate::{Futex, explore};

macro_rules! model {
    ($lock:path) => {
        // `threads` threads take the lock twice each, one of them by trying only.
        |threads: usize| {
            use $lock as Lock;
            let shared = Arc::new((Lock::new(0usize), Futex::new()));
            let spawned: Vec<_> = (1..threads)
                .map(|_| {
                    let shared = shared.clone();
                    thread::spawn(move || *shared.0.lock(&shared.1) += 1)
                })
                .collect();
            *shared.0.lock(&shared.1) += 1;
            let mut done = threads;
            if let Some(mut value) = shared.0.try_lock(&shared.1) {
                *value += 1;
                done += 1;
            }
            spawned.into_iter().for_each(|t| t.join().unwrap());
            assert_eq!(*shared.0.lock(&shared.1), done);
        }
    };
}

/// One who may sleep, and one who tries and wakes nobody: neither waits for ever, and both are seen.
#[test]
fn a_brief_holder_is_waited_for_by_looking_again() {
    explore(4, || {
        let shared = Arc::new((slabwright::sync::Lock::new(0usize), Futex::new()));
        let other = shared.clone();
        let sleeper = thread::spawn(move || {
            *other.0.lock(&other.1) += 1;
            *other.0.lock(&other.1) += 1;
        });
        let mut done = 2;
        for _ in 0..2 {
            if let Some(mut value) = shared.0.acquire(&shared.1, false) {
                *value += 1;
                done += 1;
            }
        }
        sleeper.join().unwrap();
        assert_eq!(*shared.0.lock(&shared.1), done);
    });
}

fn mutant(which: Mutant) {
    mutated::with(which, || explore(2, || model!(mutated::lock::Lock)(2)));
}

#[test]
fn excludes_and_wakes_two() {
    explore(4, || model!(slabwright::sync::Lock)(2));
}

#[test]
fn excludes_and_wakes_three() {
    explore(3, || model!(slabwright::sync::Lock)(3));
}

#[test]
fn the_copy_is_sound() {
    mutant(Mutant::None);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn needs_acquire() {
    mutant(Mutant::NoAcquire);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn needs_release() {
    mutant(Mutant::NoRelease);
}

#[test]
#[should_panic(expected = "deadlock")]
fn needs_to_know_its_sleepers() {
    mutant(Mutant::NoSleepers);
}
