//! The exchange of sheaves between the rows of two CPUs, a barn and the slabs: a small model of
//! `slab::Slab::alloc_slow` and `free_slow` over restartable sections. It follows the real code step by step, with
//! sheaves of one object.
//!
//! A section holds its CPU's mutex, since a CPU runs one thread at a time. A kernel thread may order a section to be
//! aborted: it then ends before its next store, so that only a prefix of its stores happened. (A section modelled as
//! loads and a compare-exchange gives false alarms: the stale store of a preempted section never happens.) The kernel
//! also migrates.

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use loom::thread;

use crate::explore;

/// What is wrong with the model.
#[derive(Clone, Copy, PartialEq)]
enum Mutant {
    None,
    /// A push moves the top before it stores the object.
    CommitFirst,
    /// `replace` does not compare.
    Blind,
    /// A sheaf that could not be installed is believed to be.
    Believing,
}

const CPUS: usize = 2;
const CAPACITY: usize = 1;
const SHEAVES: usize = 6;
const TRIES: usize = 3;
const MAIN: usize = 0;
const SPARE: usize = 1;

/// A sheaf's number and how many objects it holds, as the address of its top slot says both.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Top {
    sheaf: usize,
    len: usize,
}

/// Reads as empty and as full.
const NO_SHEAF: Top = Top { sheaf: usize::MAX, len: 0 };

impl Top {
    fn is_full(self) -> bool {
        self == NO_SHEAF || self.len == CAPACITY
    }
}

type Row = [Top; 2];

struct World {
    mutant: Mutant,
    rows: [Mutex<Row>; CPUS],
    /// The memory of all sheaves; object 0 is none.
    slots: Vec<[UnsafeCell<usize>; CAPACITY]>,
    barn: Mutex<Vec<Top>>,
    /// Free objects in slabs, and unused sheaves.
    slabs: Mutex<(Vec<usize>, Vec<usize>)>,
    /// Where the scheduler has put each thread, and whether it orders its section to be aborted.
    cpu: [AtomicUsize; 2],
    abort: [AtomicBool; 2],
}

impl World {
    /// CPU 0 has a full main sheaf with object 1, CPU 1 an empty one; object 2 is in a slab.
    fn new(mutant: Mutant) -> World {
        let world = World {
            mutant,
            rows: [0, 1].map(|cpu| Mutex::new([Top { sheaf: cpu, len: 1 - cpu }, NO_SHEAF])),
            slots: (0..SHEAVES).map(|_| [0; CAPACITY].map(UnsafeCell::new)).collect(),
            barn: Mutex::new(Vec::new()),
            slabs: Mutex::new((vec![2], (2..SHEAVES).collect())),
            cpu: [0, 0].map(AtomicUsize::new),
            abort: [false, false].map(AtomicBool::new),
        };
        world.set_slot(0, 0, 1);
        world
    }

    fn slot(&self, sheaf: usize, at: usize) -> usize {
        // SAFETY: loom checks that accesses do not collide.
        self.slots[sheaf][at].with(|slot| unsafe { *slot })
    }

    fn set_slot(&self, sheaf: usize, at: usize, object: usize) {
        // SAFETY: as in `slot`.
        self.slots[sheaf][at].with_mut(|slot| unsafe { *slot = object });
    }

    /// Whether the kernel ordered the section of thread `me` to be aborted; asked before each store.
    fn aborted(&self, me: usize) -> bool {
        self.abort[me].swap(false, Relaxed)
    }

    fn section<R>(&self, me: usize, body: impl FnOnce(&mut Row) -> R) -> R {
        body(&mut self.rows[self.cpu[me].load(Relaxed)].lock().unwrap())
    }

    fn pop(&self, me: usize) -> Option<usize> {
        self.section(me, |row| {
            let top = row[MAIN];
            if top.len == 0 {
                return None;
            }
            let object = self.slot(top.sheaf, top.len - 1);
            if self.aborted(me) {
                return None;
            }
            row[MAIN].len -= 1;
            Some(object)
        })
    }

    fn push(&self, me: usize, object: usize) -> bool {
        self.section(me, |row| {
            let top = row[MAIN];
            if top.is_full() {
                return false;
            }
            if self.mutant == Mutant::CommitFirst {
                row[MAIN].len += 1;
                if self.aborted(me) {
                    return false;
                }
                self.set_slot(top.sheaf, top.len, object);
                return true;
            }
            self.set_slot(top.sheaf, top.len, object);
            if self.aborted(me) {
                return false;
            }
            row[MAIN].len += 1;
            true
        })
    }

    fn read(&self, me: usize, word: usize) -> Top {
        self.section(me, |row| row[word])
    }

    fn replace(&self, me: usize, word: usize, old: Top, new: Top) -> bool {
        self.section(me, |row| {
            if row[word] != old && self.mutant != Mutant::Blind || self.aborted(me) {
                return false;
            }
            row[word] = new;
            true
        })
    }

    fn own_pop(&self, own: &mut Top) -> usize {
        own.len -= 1;
        self.slot(own.sheaf, own.len)
    }

    fn take_spare(&self, me: usize, wanted: impl Fn(Top) -> bool) -> Option<Top> {
        let top = self.read(me, SPARE);
        (top != NO_SHEAF && wanted(top) && self.replace(me, SPARE, top, NO_SHEAF)).then_some(top)
    }

    fn barn(&self, wanted: impl Fn(Top) -> bool) -> Option<Top> {
        let mut barn = self.barn.lock().unwrap();
        let at = barn.iter().position(|top| wanted(*top))?;
        Some(barn.remove(at))
    }

    fn install(&self, me: usize, old: Top, own: Top) {
        let done = self.replace(me, MAIN, old, own);
        let lost = if done || self.mutant == Mutant::Believing { old } else { own };
        if lost != NO_SHEAF {
            self.stow(me, lost);
        }
    }

    fn stow(&self, me: usize, own: Top) {
        if self.read(me, SPARE) == NO_SHEAF && self.replace(me, SPARE, NO_SHEAF, own) {
            return;
        }
        self.barn.lock().unwrap().push(own);
    }

    fn alloc(&self, me: usize) -> usize {
        for _ in 0..TRIES {
            if let Some(object) = self.pop(me) {
                return object;
            }
            let main = self.read(me, MAIN);
            if main.len > 0 {
                continue;
            }
            if let Some(mut own) = self.take_spare(me, |top| top.len > 0).or_else(|| self.barn(|top| top.len > 0)) {
                let object = self.own_pop(&mut own);
                self.install(me, main, own);
                return object;
            }
            let own = if main == NO_SHEAF {
                self.slabs.lock().unwrap().1.pop()
            } else if self.replace(me, MAIN, main, NO_SHEAF) {
                Some(main.sheaf)
            } else {
                continue;
            };
            let Some(sheaf) = own else { break };
            let mut own = Top { sheaf, len: 0 };
            while own.len < CAPACITY {
                let Some(object) = self.slabs.lock().unwrap().0.pop() else { break };
                self.set_slot(sheaf, own.len, object);
                own.len += 1;
            }
            let object = if own.len > 0 { self.own_pop(&mut own) } else { 0 };
            self.install(me, NO_SHEAF, own);
            return object;
        }
        self.slabs.lock().unwrap().0.pop().unwrap_or(0)
    }

    fn free(&self, me: usize, object: usize) {
        if object == 0 {
            return;
        }
        for _ in 0..TRIES {
            if self.push(me, object) {
                return;
            }
            let main = self.read(me, MAIN);
            if !main.is_full() {
                continue;
            }
            let own = self.take_spare(me, |top| !top.is_full()).or_else(|| self.barn(|top| top.len == 0));
            let own = own.or_else(|| self.slabs.lock().unwrap().1.pop().map(|sheaf| Top { sheaf, len: 0 }));
            let Some(mut own) = own else { break };
            self.set_slot(own.sheaf, own.len, object);
            own.len += 1;
            self.install(me, main, own);
            return;
        }
        self.slabs.lock().unwrap().0.push(object);
    }

    /// Every object and every sheaf, wherever it is, is there once.
    fn check(&self) {
        let (mut objects, mut sheaves) = self.slabs.lock().unwrap().clone();
        let rows = self.rows.iter().flat_map(|row| *row.lock().unwrap());
        for top in rows.chain(self.barn.lock().unwrap().iter().copied()).filter(|top| *top != NO_SHEAF) {
            sheaves.push(top.sheaf);
            objects.extend((0..top.len).map(|at| self.slot(top.sheaf, at)));
        }
        objects.sort();
        sheaves.sort();
        assert_eq!(objects, [1, 2], "objects");
        assert_eq!(sheaves, (0..SHEAVES).collect::<Vec<_>>(), "sheaves");
    }
}

/// Two threads on one CPU that allocate and free, and a kernel that moves one to the other CPU and aborts.
fn model(mutant: Mutant, preemptions: usize) {
    explore(preemptions, move || {
        let world = Arc::new(World::new(mutant));
        let other = world.clone();
        let first = thread::spawn(move || {
            let object = other.alloc(0);
            other.free(0, object);
        });
        let other = world.clone();
        let kernel = thread::spawn(move || {
            other.cpu[1].store(1, Relaxed);
            other.abort[1].store(true, Relaxed);
            other.abort[0].store(true, Relaxed);
        });
        let held = [world.alloc(1), world.alloc(1)];
        assert!(held[0] == 0 || held[0] != held[1], "an object was handed out twice");
        held.into_iter().for_each(|object| world.free(1, object));
        first.join().unwrap();
        kernel.join().unwrap();
        world.check();
    });
}

#[test]
fn loses_and_doubles_nothing() {
    model(Mutant::None, 3);
}

#[test]
#[should_panic]
fn needs_the_payload_before_the_commit() {
    model(Mutant::CommitFirst, 2);
}

#[test]
#[should_panic]
fn needs_to_compare() {
    model(Mutant::Blind, 3);
}

#[test]
#[should_panic]
fn needs_to_heed_the_outcome() {
    model(Mutant::Believing, 2);
}
