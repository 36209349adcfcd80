//! The deferred list: pushed to by two, taken by two, or popped from while it is pushed to; no block lost or taken
//! twice, links seen.

use loom::cell::UnsafeCell;
use loom::thread;
use std::sync::Arc;

use crate::explore;
use crate::mutated::{self, Mutant};

macro_rules! model {
    ($list:path) => {
        || {
            use $list as Deferred;
            // Block `n` is named `n + 1`; its link is `links[n]`.
            let shared = Arc::new((Deferred::new(), [0, 1, 2].map(|_| UnsafeCell::new(0usize))));
            let push = |shared: &(Deferred, [UnsafeCell<usize>; 3]), block: usize| {
                // SAFETY: the block is the pusher's until it is on the list.
                shared.0.push(block, |link| shared.1[block - 1].with_mut(|at| unsafe { *at = link }));
            };
            let take = |shared: &(Deferred, [UnsafeCell<usize>; 3])| {
                let mut taken = Vec::new();
                let mut block = if shared.0.is_empty() { 0 } else { shared.0.take() };
                while block != 0 {
                    taken.push(block);
                    // SAFETY: taken blocks are the taker's. It writes to them too, as their new owner does.
                    block = shared.1[block - 1].with_mut(|at| unsafe { core::mem::replace(&mut *at, 77) });
                }
                taken
            };
            let threads: Vec<_> = [vec![1, 2], vec![3]]
                .into_iter()
                .map(|blocks| {
                    let shared = shared.clone();
                    thread::spawn(move || {
                        let two = blocks.len() == 2;
                        blocks.into_iter().for_each(|block| push(&shared, block));
                        if two { take(&shared) } else { Vec::new() }
                    })
                })
                .collect();
            let mut all = take(&shared);
            threads.into_iter().for_each(|t| all.extend(t.join().unwrap()));
            all.extend(take(&shared));
            all.sort();
            assert_eq!(all, [1, 2, 3]);
        }
    };
}

/// One pops while another pushes and takes: what the first puts back, and what came meanwhile, are both there.
macro_rules! popped {
    ($list:path) => {
        || {
            use $list as Deferred;
            let shared = Arc::new((Deferred::new(), [0, 1, 2].map(|_| UnsafeCell::new(0usize))));
            let set = |shared: &(Deferred, [UnsafeCell<usize>; 3]), block: usize, link: usize| {
                // SAFETY: loom checks that accesses do not collide.
                shared.1[block - 1].with_mut(|at| unsafe { *at = link });
            };
            let get = |shared: &(Deferred, [UnsafeCell<usize>; 3]), block: usize| {
                // SAFETY: as above.
                shared.1[block - 1].with(|at| unsafe { *at })
            };
            let push = move |shared: &(Deferred, _), block| shared.0.push(block, |link| set(shared, block, link));
            let pop = move |shared: &(Deferred, _)| {
                let block = shared.0.pop(|block| get(shared, block), |block, to| set(shared, block, to));
                if block != 0 {
                    // It is its new owner's.
                    set(shared, block, 77);
                }
                block
            };
            push(&shared, 1);
            push(&shared, 2);
            let other = shared.clone();
            let thread = thread::spawn(move || {
                push(&other, 3);
                pop(&other)
            });
            let mut all = vec![pop(&shared), thread.join().unwrap()];
            all.retain(|block| *block != 0);
            let mut block = shared.0.take();
            while block != 0 {
                all.push(block);
                assert!(all.len() < 4, "a block is there twice: {all:?}");
                block = get(&shared, block);
            }
            all.sort();
            assert_eq!(all, [1, 2, 3], "every block once");
        }
    };
}

fn mutant(which: Mutant) {
    mutated::with(which, || explore(2, model!(mutated::deferred::Deferred)));
}

fn popped_mutant(which: Mutant) {
    mutated::with(which, || explore(2, popped!(mutated::deferred::Deferred)));
}

#[test]
fn keeps_every_block_once() {
    explore(3, model!(slabwright::sync::Deferred));
}

#[test]
fn what_is_put_back_is_not_lost() {
    explore(3, popped!(slabwright::sync::Deferred));
}

#[test]
#[should_panic(expected = "every block once")]
fn looks_before_it_puts_back() {
    popped_mutant(Mutant::NoLook);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_pop_needs_acquire() {
    popped_mutant(Mutant::NoAcquire);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_pop_needs_release() {
    popped_mutant(Mutant::NoRelease);
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
