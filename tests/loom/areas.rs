//! Areas of the vmalloc layer that change hands: who works on one outside the lock has put it *in transit*, so that
//! nobody else finds it and a free of it is a double free.
//!
//! A small model: two ranges, their states under the real lock, their memory as cells that loom watches. One thread
//! frees a block (and maybe another thread the same one), one allocates, which cleans an old range outside the lock,
//! one purges.

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

use crate::mutated::{self, lock};
use crate::{Futex, explore};

/// What is wrong with the model.
#[derive(Clone, Copy, PartialEq)]
enum Mutant {
    None,
    /// A range that is cleaned stays retained meanwhile.
    CleanedInPlace,
    /// A range that is purged stays retained meanwhile.
    PurgedInPlace,
    /// A free looks at the state, and changes it when it has the lock again.
    FreedInTwoSteps,
    /// The root of the tables is given to readers without Release.
    RootRelaxed,
    /// Readers take the root without Acquire.
    RootUnacquired,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum State {
    Hole,
    Busy,
    Retained,
    Transit,
}

const RANGES: usize = 2;
const OLD: u32 = 7;

struct World {
    mutant: Mutant,
    futex: Futex,
    states: lock::Lock<[State; RANGES]>,
    memory: [UnsafeCell<u32>; RANGES],
}

impl World {
    fn new(mutant: Mutant, states: [State; RANGES]) -> World {
        let memory = [0; RANGES].map(|_| UnsafeCell::new(OLD));
        World { mutant, futex: Futex::new(), states: lock::Lock::new(states), memory }
    }

    fn set(&self, range: usize, state: State) {
        self.states.lock(&self.futex)[range] = state;
    }

    /// Puts the first range in `from` in transit.
    fn take(&self, from: State, stays: bool) -> Option<usize> {
        let mut states = self.states.lock(&self.futex);
        let range = states.iter().position(|state| *state == from)?;
        if !stays {
            states[range] = State::Transit;
        }
        Some(range)
    }

    fn write(&self, range: usize, value: u32) {
        // SAFETY: loom checks that accesses do not collide.
        self.memory[range].with_mut(|at| unsafe { *at = value });
    }

    /// A cleared range, from an old one.
    fn calloc(&self) -> Option<usize> {
        let range = self.take(State::Retained, self.mutant == Mutant::CleanedInPlace)?;
        self.write(range, 0);
        self.set(range, State::Busy);
        // SAFETY: as in `write`.
        assert_eq!(self.memory[range].with(|at| unsafe { *at }), 0, "what calloc gives reads zero");
        Some(range)
    }

    /// Frees a range, unless it is free; whether it did. As the real one does, it looks at how the range was used
    /// outside the lock.
    fn free(&self, range: usize) -> bool {
        let mut states = self.states.lock(&self.futex);
        if states[range] != State::Busy {
            return false;
        }
        if self.mutant == Mutant::FreedInTwoSteps {
            drop(states);
            states = self.states.lock(&self.futex);
        }
        states[range] = State::Transit;
        drop(states);
        // SAFETY: as in `write`.
        self.memory[range].with(|at| unsafe { *at });
        self.set(range, State::Retained);
        true
    }

    fn purge(&self) {
        while let Some(range) = self.take(State::Retained, self.mutant == Mutant::PurgedInPlace) {
            self.write(range, u32::MAX);
            self.set(range, State::Hole);
        }
    }
}

fn shared(mutant: Mutant) {
    explore(3, move || {
        let world = Arc::new(World::new(mutant, [State::Busy, State::Retained]));
        let allocator = world.clone();
        let allocating = thread::spawn(move || {
            let range = allocator.calloc();
            if let Some(range) = range {
                // The owner writes as it likes.
                allocator.write(range, OLD);
            }
            range
        });
        let purger = world.clone();
        let purging = thread::spawn(move || purger.purge());
        assert!(world.free(0));
        purging.join().unwrap();
        let mine = allocating.join().unwrap();
        let states = *world.states.lock(&world.futex);
        assert_eq!(states.iter().filter(|state| **state == State::Busy).count(), usize::from(mine.is_some()));
        assert!(!states.contains(&State::Transit), "{states:?}");
    });
}

fn freed_twice(mutant: Mutant) {
    explore(3, move || {
        let world = Arc::new(World::new(mutant, [State::Busy, State::Hole]));
        let other = world.clone();
        let freeing = thread::spawn(move || other.free(0));
        let frees = usize::from(world.free(0)) + usize::from(freeing.join().unwrap());
        assert_eq!(frees, 1, "one of two frees is refused");
    });
}

/// `usable_size` reads the tables without the lock: it finds the root, and behind it a page that is filled.
fn reader(mutant: Mutant) {
    explore(3, move || {
        let shared = Arc::new((AtomicUsize::new(0), UnsafeCell::new(0)));
        let writer = shared.clone();
        let adopting = thread::spawn(move || {
            // SAFETY: as in `World::write`.
            writer.1.with_mut(|page| unsafe { *page = OLD });
            let order = if mutant == Mutant::RootRelaxed { Ordering::Relaxed } else { Ordering::Release };
            writer.0.store(1, order);
        });
        let order = if mutant == Mutant::RootUnacquired { Ordering::Relaxed } else { Ordering::Acquire };
        if shared.0.load(order) != 0 {
            // SAFETY: as in `World::write`.
            assert_eq!(shared.1.with(|page| unsafe { *page }), OLD);
        }
        adopting.join().unwrap();
    });
}

#[test]
fn ranges_in_transit_are_nobody_elses() {
    shared(Mutant::None);
}

#[test]
fn one_of_two_frees_is_refused() {
    freed_twice(Mutant::None);
}

#[test]
fn readers_see_whole_tables() {
    reader(Mutant::None);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn cleaning_needs_transit() {
    shared(Mutant::CleanedInPlace);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn purging_needs_transit() {
    shared(Mutant::PurgedInPlace);
}

#[test]
#[should_panic(expected = "refused")]
fn a_free_is_one_step() {
    freed_twice(Mutant::FreedInTwoSteps);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn transit_needs_the_locks_acquire() {
    mutated::with(mutated::Mutant::NoAcquire, || shared(Mutant::None));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn transit_needs_the_locks_release() {
    mutated::with(mutated::Mutant::NoRelease, || shared(Mutant::None));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn the_root_needs_release() {
    reader(Mutant::RootRelaxed);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn the_root_needs_acquire() {
    reader(Mutant::RootUnacquired);
}
