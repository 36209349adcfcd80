//! Taking the row of another CPU: a dummy row is put in its place, a barrier ends the sections that may still be in the
//! real one, and then it is the taker's until it is put back.
//!
//! A small model of what the Linux machine does with plain loads, one store per section and `membarrier`. The barrier
//! is the CPU's mutex taken and given back once: sections before it are over (run to the end, or aborted), those after
//! it see the dummy. The table's word is an atomic, as it is there.

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;

use crate::explore;

/// What is wrong with the model.
#[derive(Clone, Copy, PartialEq)]
enum Mutant {
    None,
    /// The taker does not wait for sections in flight.
    NoBarrier,
    /// The row goes back to the table without Release.
    PutBackRelaxed,
    /// The barrier comes before the dummy.
    BarrierFirst,
}

const DUMMY: usize = 0;
const REAL: usize = 1;

struct World {
    mutant: Mutant,
    /// Which row the CPU has.
    table: AtomicUsize,
    /// The real row: objects of its one sheaf, which has room for two.
    row: UnsafeCell<Vec<usize>>,
    /// Held by whoever runs on the CPU.
    cpu: Mutex<()>,
    abort: AtomicBool,
}

impl World {
    /// A section on the CPU: pushes `object`, or pops where there is none to push.
    fn section(&self, object: Option<usize>) -> Option<usize> {
        let _running = self.cpu.lock().unwrap();
        // Acquire: on x86 every load is, elsewhere the address depends on it. Pairs with the Release in `drain`.
        if self.table.load(Ordering::Acquire) == DUMMY {
            return object;
        }
        if self.abort.swap(false, Ordering::Relaxed) {
            return object;
        }
        // SAFETY: loom checks that accesses do not collide.
        self.row.with_mut(|row| unsafe {
            match object {
                Some(object) => (*row).push(object),
                None => return (*row).pop(),
            }
            None
        })
    }

    fn barrier(&self) {
        if self.mutant != Mutant::NoBarrier {
            self.abort.store(true, Ordering::Relaxed);
            drop(self.cpu.lock().unwrap());
        }
    }

    fn drain(&self) -> Vec<usize> {
        if self.mutant == Mutant::BarrierFirst {
            self.barrier();
        }
        self.table.store(DUMMY, Ordering::Relaxed);
        if self.mutant != Mutant::BarrierFirst {
            self.barrier();
        }
        // SAFETY: as in `section`.
        let taken = self.row.with_mut(|row| unsafe { core::mem::take(&mut *row) });
        let order = if self.mutant == Mutant::PutBackRelaxed { Ordering::Relaxed } else { Ordering::Release };
        self.table.store(REAL, order);
        taken
    }
}

fn model(mutant: Mutant) {
    explore(3, move || {
        let world = Arc::new(World {
            mutant,
            table: AtomicUsize::new(REAL),
            row: UnsafeCell::new(vec![1]),
            cpu: Mutex::new(()),
            abort: AtomicBool::new(false),
        });
        let threads: Vec<_> = [2, 3]
            .map(|object| {
                let world = world.clone();
                thread::spawn(move || {
                    let mut mine: Vec<_> = world.section(Some(object)).into_iter().collect();
                    mine.extend(world.section(None));
                    mine
                })
            })
            .into_iter()
            .collect();
        let mut all = world.drain();
        all.extend(world.drain());
        threads.into_iter().for_each(|t| all.extend(t.join().unwrap()));
        all.extend(world.drain());
        all.sort();
        assert_eq!(all, [1, 2, 3]);
    });
}

#[test]
fn loses_and_doubles_nothing() {
    model(Mutant::None);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn needs_the_barrier() {
    model(Mutant::NoBarrier);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn needs_the_barrier_after_the_dummy() {
    model(Mutant::BarrierFirst);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn needs_release() {
    model(Mutant::PutBackRelaxed);
}
