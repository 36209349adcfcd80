//! Per-CPU page lists: a list's lock is tried, and who finds it taken goes past it to the zone; what a list has too
//! much of, or another thread drains, goes to the zone with the list's lock held.
//!
//! A small model: one CPU's list and the zone behind it, both under the real lock, pages whose owners write to them,
//! and the kind in each page's descriptor, where of two frees of one page one loses. Several threads on one CPU are
//! what preemption makes.

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU8, Ordering};
use loom::thread;

use crate::mutated::{self, lock};
use crate::{Futex, explore};

/// What is wrong with the model.
#[derive(Clone, Copy, PartialEq)]
enum Mutant {
    None,
    /// Who finds the list taken uses it all the same.
    PastTheLock,
    /// What leaves the list for the zone is on neither, or both, while no lock is held.
    EvictedInTwoSteps,
    /// A free looks at the page's kind first and changes it then.
    ClaimedInTwoSteps,
}

const RUN: u8 = 1;
const ISOLATED: u8 = 2;
const LISTED: u8 = 3;
const FREE: u8 = 4;
const PAGES: usize = 2;
/// Pages the list keeps.
const HIGH: usize = 1;

struct World {
    mutant: Mutant,
    futex: Futex,
    list: lock::Lock<Vec<usize>>,
    zone: lock::Lock<Vec<usize>>,
    kinds: [AtomicU8; PAGES],
    pages: [UnsafeCell<u32>; PAGES],
}

impl World {
    fn new(mutant: Mutant) -> World {
        World {
            mutant,
            futex: Futex::new(),
            list: lock::Lock::new(vec![0]),
            zone: lock::Lock::new(vec![1]),
            kinds: [LISTED, FREE].map(AtomicU8::new),
            pages: [0; PAGES].map(|_| UnsafeCell::new(0)),
        }
    }

    /// The list, if it is to be had.
    fn with_list<R>(&self, body: impl FnOnce(&mut Vec<usize>) -> R) -> Option<R> {
        match self.list.try_lock(&self.futex) {
            Some(mut list) => Some(body(&mut list)),
            // A copy of what its holder is at, as good as a look without the lock.
            None if self.mutant == Mutant::PastTheLock => Some(body(&mut vec![0])),
            None => None,
        }
    }

    fn alloc(&self) -> Option<usize> {
        let listed = self.with_list(|list| list.pop()).flatten();
        let page = listed.or_else(|| self.zone.lock(&self.futex).pop())?;
        self.kinds[page].store(RUN, Ordering::Relaxed);
        // SAFETY: loom checks that accesses do not collide.
        self.pages[page].with_mut(|at| unsafe { *at += 1 });
        Some(page)
    }

    /// Frees a page; false where it is free.
    fn free(&self, page: usize) -> bool {
        let kind = &self.kinds[page];
        let claimed = if self.mutant == Mutant::ClaimedInTwoSteps {
            let was = kind.load(Ordering::Relaxed);
            kind.store(ISOLATED, Ordering::Relaxed);
            was == RUN
        } else {
            kind.compare_exchange(RUN, ISOLATED, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        };
        if !claimed {
            return false;
        }
        let kept = self.with_list(|list| {
            kind.store(LISTED, Ordering::Relaxed);
            list.push(page);
            if list.len() > HIGH && self.mutant != Mutant::EvictedInTwoSteps {
                self.give_back(list.remove(0));
            }
        });
        match kept {
            None => self.give_back(page),
            Some(()) if self.mutant == Mutant::EvictedInTwoSteps => {
                let coldest = self.with_list(|list| list.first().copied()).flatten();
                coldest.into_iter().for_each(|page| self.give_back(page));
                self.with_list(|list| list.drain(..list.len().min(1)).for_each(drop));
            }
            Some(()) => {}
        }
        true
    }

    fn give_back(&self, page: usize) {
        self.kinds[page].store(FREE, Ordering::Relaxed);
        self.zone.lock(&self.futex).push(page);
    }

    /// What another thread does before it gives up: all lists are emptied.
    fn drain(&self) {
        let mut list = self.list.lock(&self.futex);
        list.drain(..).for_each(|page| self.give_back(page));
    }
}

fn handed_out(mutant: Mutant) {
    explore(3, move || {
        let world = Arc::new(World::new(mutant));
        let threads: Vec<_> = [false, true]
            .into_iter()
            .map(|drains| {
                let world = world.clone();
                thread::spawn(move || {
                    if let Some(page) = world.alloc() {
                        assert!(world.free(page), "every owner's page is its own");
                    }
                    if drains {
                        world.drain();
                    }
                })
            })
            .collect();
        let mine = world.alloc();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(mine.is_none_or(|page| world.free(page)), "every owner's page is its own");
        world.drain();
        let mut all = std::mem::take(&mut *world.zone.lock(&world.futex));
        all.sort_unstable();
        assert_eq!(all, [0, 1], "every page once");
    });
}

fn freed_twice(mutant: Mutant) {
    explore(3, move || {
        let world = Arc::new(World::new(mutant));
        let page = world.alloc().unwrap();
        let other = world.clone();
        let freeing = thread::spawn(move || other.free(page));
        let frees = usize::from(world.free(page)) + usize::from(freeing.join().unwrap());
        assert_eq!(frees, 1, "one of two frees is refused");
    });
}

#[test]
fn no_page_is_lost_or_doubled() {
    handed_out(Mutant::None);
}

#[test]
fn one_of_two_frees_is_refused() {
    freed_twice(Mutant::None);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_taken_list_is_left_alone() {
    handed_out(Mutant::PastTheLock);
}

#[test]
#[should_panic(expected = "every owner's page")]
fn eviction_is_one_step() {
    handed_out(Mutant::EvictedInTwoSteps);
}

#[test]
#[should_panic(expected = "refused")]
fn a_claim_is_one_step() {
    freed_twice(Mutant::ClaimedInTwoSteps);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn pages_need_the_locks_acquire() {
    mutated::with(mutated::Mutant::NoAcquire, || handed_out(Mutant::None));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn pages_need_the_locks_release() {
    mutated::with(mutated::Mutant::NoRelease, || handed_out(Mutant::None));
}
