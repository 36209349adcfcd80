//! Who has something in hand: a cache that ends is looked at by nobody who is not waited for, and who has to know of
//! every object finds them all, though others take them from here to there.

use loom::cell::UnsafeCell;
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use std::sync::Arc;

use crate::mutated::{self, Mutant};
use crate::{Futex, explore};

/// `destroy` of a cache while two others go through all caches: its shape changes only when they are done with it.
macro_rules! ends {
    ($hands:path) => {
        || {
            use $hands as Hands;
            let shared = Arc::new((Hands::new(), AtomicBool::new(true), UnsafeCell::new(1)));
            let threads = [(), ()].map(|()| {
                let shared = shared.clone();
                thread::spawn(move || {
                    let (hands, live, shape) = &*shared;
                    let _in_hand = hands.begin();
                    if live.load(Ordering::Relaxed) {
                        // SAFETY: loom checks that accesses do not collide.
                        shape.with(|shape| assert_eq!(unsafe { *shape }, 1));
                    }
                })
            });
            let (hands, live, shape) = &*shared;
            live.store(false, Ordering::Relaxed);
            hands.announce();
            if hands.wait(&Futex::new()) {
                // SAFETY: as above.
                shape.with_mut(|shape| unsafe { *shape = 2 });
            }
            threads.into_iter().for_each(|t| t.join().unwrap());
        }
    };
}

/// A flush that is to find both objects, one of which another thread takes out of its sheaf and puts into its slab.
fn finds_all(counted: bool) {
    explore(3, move || {
        let shared = Arc::new((slabwright::sync::Hands::new(), Mutex::new(vec![1, 2]), Mutex::new(Vec::new())));
        let other = shared.clone();
        let thread = thread::spawn(move || {
            let (hands, sheaf, slab) = &*other;
            let in_hand = counted.then(|| hands.begin());
            let taken = sheaf.lock().unwrap().pop();
            slab.lock().unwrap().extend(taken);
            drop(in_hand);
        });
        let (hands, sheaf, slab) = &*shared;
        let alone = hands.repeat_alone(&Futex::new(), || {
            let _in_hand = hands.begin();
            let taken = core::mem::take(&mut *sheaf.lock().unwrap());
            slab.lock().unwrap().extend(taken);
            false
        });
        if alone {
            assert_eq!(slab.lock().unwrap().len(), 2, "every object is in its slab");
        }
        thread.join().unwrap();
    });
}

fn mutant(which: Mutant) {
    mutated::with(which, || explore(2, ends!(mutated::hands::Hands)));
}

#[test]
fn what_ends_is_in_nobodys_hands() {
    explore(3, ends!(slabwright::sync::Hands));
}

#[test]
fn a_flush_finds_what_others_had_in_hand() {
    finds_all(true);
}

#[test]
#[should_panic(expected = "every object is in its slab")]
fn who_takes_must_be_counted() {
    finds_all(false);
}

/// A count of those who began that is older than that of those who are done, too: one who begins and ends in between
/// is then taken for one who is at it.
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
