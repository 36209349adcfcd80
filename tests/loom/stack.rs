//! The stack of the emergency pool: blocks taken and put back by two, none lost or had by both, and what the one wrote
//! to a block is seen by the next.
//!
//! The links are Relaxed atomics, as the words of the page descriptors are: a link is read of a block that may be
//! another's by then.

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use std::sync::Arc;

use crate::explore;
use crate::mutated::{self, Mutant};

macro_rules! model {
    ($stack:path) => {
        || {
            use $stack as Stack;
            struct Shared {
                stack: Stack,
                links: [AtomicU32; 2],
                contents: [UnsafeCell<u32>; 2],
            }
            impl Shared {
                fn push(&self, block: u32) {
                    self.stack.push(block, |next| self.links[block as usize].store(next, Ordering::Relaxed));
                }
                /// A block, which is then the taker's alone: loom complains where somebody else has it as well.
                fn pop(&self) -> Option<u32> {
                    let block = self.stack.pop(|block| self.links[block as usize].load(Ordering::Relaxed))?;
                    // SAFETY: loom checks that accesses do not collide.
                    self.contents[block as usize].with_mut(|at| unsafe { *at += 1 });
                    Some(block)
                }
            }
            let shared = Arc::new(Shared {
                stack: Stack::new(),
                links: [0, 1].map(|_| AtomicU32::new(Stack::NONE)),
                contents: [0, 1].map(|_| UnsafeCell::new(0)),
            });
            shared.push(1);
            shared.push(0);
            let other = shared.clone();
            // Takes both, and puts back the one that was first: to who looked before it is as if nothing had happened.
            let thread = thread::spawn(move || {
                let (first, second) = (other.pop(), other.pop());
                first.into_iter().for_each(|block| other.push(block));
                second
            });
            let mine = shared.pop();
            let mut all: Vec<u32> = mine.into_iter().chain(thread.join().unwrap()).collect();
            while let Some(block) = shared.pop() {
                all.push(block);
                assert!(all.len() < 3, "a block is there twice: {all:?}");
            }
            all.sort_unstable();
            assert_eq!(all, [0, 1], "every block once");
        }
    };
}

fn mutant(which: Mutant) {
    mutated::with(which, || explore(2, model!(mutated::stack::Stack)));
}

#[test]
fn keeps_every_block_once() {
    explore(3, model!(slabwright::sync::Stack));
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
#[should_panic(expected = "a block is there twice")]
fn needs_the_tag() {
    mutant(Mutant::NoTag);
}
