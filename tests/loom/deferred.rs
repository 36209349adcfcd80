//! The deferred list: pushed to by two, taken by two, no block lost or taken twice, links seen.

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

fn mutant(which: Mutant) {
    mutated::with(which, || explore(2, model!(mutated::deferred::Deferred)));
}

#[test]
fn keeps_every_block_once() {
    explore(3, model!(slabwright::sync::Deferred));
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
