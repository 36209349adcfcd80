//! The start: runs once whoever comes first, all wait for its end and see what it set up, and its own requests are sent
//! away.

use loom::cell::UnsafeCell;
use loom::thread;
use slabwright::sync::Phase;
use std::sync::Arc;

use crate::mutated::{self, Mutant};
use crate::{Futex, explore};

macro_rules! model {
    ($startup:path, $phase:path, $threads:expr, $succeeds:expr) => {
        || {
            use $phase as Phase;
            use $startup as Startup;
            let shared = Arc::new((Startup::new(), Futex::new(), UnsafeCell::new(0u32)));
            let caller = |shared: &(Startup, Futex, UnsafeCell<u32>)| {
                let (startup, park, made) = shared;
                let start = || {
                    let inner = startup.run(park, || true, || panic!("started twice"));
                    assert_eq!(inner, (Phase::Starting, false));
                    // SAFETY: only the starter gets here.
                    made.with_mut(|made| unsafe { *made += 1 });
                    $succeeds
                };
                let (phase, here) = startup.run(park, || false, start);
                assert_eq!(phase, if $succeeds { Phase::Up } else { Phase::Failed });
                // SAFETY: nobody writes once it is up.
                assert_eq!(made.with(|made| unsafe { *made }), 1);
                here
            };
            let threads: Vec<_> = (1..$threads)
                .map(|_| {
                    let shared = shared.clone();
                    thread::spawn(move || caller(&shared))
                })
                .collect();
            let here = caller(&shared);
            let started = threads.into_iter().map(|t| t.join().unwrap()).chain([here]).filter(|here| *here).count();
            assert_eq!(started, 1);
        }
    };
}

fn mutant(which: Mutant) {
    mutated::with(which, || explore(2, model!(mutated::startup::Startup, mutated::startup::Phase, 2, true)));
}

#[test]
fn starts_once_and_wakes_all() {
    explore(3, model!(slabwright::sync::Startup, Phase, 3, true));
}

#[test]
fn fails_once_for_all() {
    explore(3, model!(slabwright::sync::Startup, Phase, 2, false));
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

/// Those who waited do not wake the next: of three callers one sleeps for ever.
#[test]
#[should_panic(expected = "deadlock")]
fn needs_the_chain_of_wakes() {
    mutated::with(Mutant::NoChain, || {
        explore(2, model!(mutated::startup::Startup, mutated::startup::Phase, 3, true));
    });
}
