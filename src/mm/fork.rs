//! `fork`: all locks are taken before it, and given back on both sides.
#![allow(unsafe_code)]

use core::sync::atomic::Ordering;

use super::Mm;
use crate::machine::Machine;
use crate::sync::Fork;

impl<M: Machine> Mm<M> {
    /// Whether the process lost the holder of a lock, so that no lock may be waited for.
    pub(super) fn is_crippled(&self) -> bool {
        self.crippled.load(Ordering::Relaxed)
    }

    /// This process is a child, and the caller its only thread, with nothing in hand.
    pub(super) fn begin_child(&self) {
        self.generation.store(self.machine.generation(), Ordering::Relaxed);
        self.slab.begin_child();
        self.pages.begin_child();
        self.shrinkers.begin_child(self.machine.thread());
    }

    /// Counts this thread in for a slow path, which looks first whether this process is another one by now. Whether it
    /// interrupted one.
    #[inline(always)]
    pub(super) fn count_in(&self) -> bool {
        let nested = self.machine.enter() > 0;
        if !nested && self.machine.generation() != self.generation.load(Ordering::Relaxed) {
            self.after_raw_fork();
        }
        nested
    }

    /// This process is the child of a `clone` that ran no handlers, or of a `fork` whose handlers may not have had all
    /// locks, and this thread its only one. A lock that is held now was held by a thread that the child does not have:
    /// it will never be given back, and what it guards may be half changed. From then on locks are only tried; what
    /// they guard is lost, and other classes serve.
    #[cold]
    pub(super) fn after_raw_fork(&self) {
        let m = &self.machine;
        self.begin_child();
        // All that `fork_prepare` takes.
        if self.options.is_held()
            || self.names.is_held()
            || self.percpu.is_held()
            || self.highmem.pkmap.is_held()
            || self.slab.any_lock_held(m)
            || self.slob.is_held()
            || self.vmalloc.any_lock_held()
            || self.pages.any_lock_held()
        {
            self.crippled.store(true, Ordering::Relaxed);
        }
    }

    /// Takes every lock before a `fork`, in lock order, so that the child finds whole structures and no lock of a
    /// thread that it does not have. In a handler that interrupted a slow path of this very thread, the locks that this
    /// one holds are left to it: it goes on in the child, too. So where there is no other thread none is taken: each
    /// that is written to is on a page that parent and child copy. (Left to each lock, all are looked at three times: 4
    /// µs more than the 58 that a small program's fork takes.)
    ///
    /// False: not all were to be had, and all are given back
    /// ([`Lock::lock_for_fork`](crate::sync::Lock::lock_for_fork)); only where it `needs_all`, which it does not where
    /// they were not to be had for too long.
    #[must_use]
    pub fn fork_prepare(&self, needs_all: bool) -> bool {
        let m = &self.machine;
        self.count_in();
        let fork = self.fork();
        let fork = Fork { needs_all: fork.needs_all && needs_all, ..fork };
        if m.is_alone() {
            self.unlocked.store(fork.token, Ordering::Relaxed);
            return true;
        }
        let all = self.options.lock_for_fork(m, fork)
            && self.names.lock_for_fork(m, fork)
            && self.percpu.lock_for_fork(m, fork)
            && self.highmem.pkmap.lock_for_fork(m, fork)
            && self.slab.lock_all(m, fork)
            && self.slob.lock_all(m, fork)
            && self.vmalloc.lock_all(m, fork)
            && self.pages.lock_all(m, fork);
        if !all {
            // SAFETY: only what was taken is given back, and this thread took it.
            unsafe { self.unlock_all(fork) };
            m.leave();
        }
        all
    }

    /// Gives back the locks that `fork` has.
    ///
    /// # Safety
    /// `fork` is this thread's (or that of the parent's that it is the copy of).
    unsafe fn unlock_all(&self, fork: Fork) {
        let m = &self.machine;
        // SAFETY: the caller's condition.
        unsafe {
            self.pages.unlock_all(m, fork);
            self.vmalloc.unlock_all(m, fork);
            self.slob.unlock_all(m, fork);
            self.slab.unlock_all(m, fork);
            self.highmem.pkmap.unlock_after_fork(m, fork);
            self.percpu.unlock_after_fork(m, fork);
            self.names.unlock_after_fork(m, fork);
            self.options.unlock_after_fork(m, fork);
        }
    }

    /// Gives the locks back after a `fork`, in the parent and in the child.
    ///
    /// # Safety
    /// [`Mm::fork_prepare`] ran before on this thread (or the parent's that it is the copy of).
    pub unsafe fn fork_done(&self) {
        let m = &self.machine;
        let fork = self.fork();
        self.vmalloc.note_fork();
        let alone = self.unlocked.load(Ordering::Relaxed) == fork.token;
        if alone {
            self.unlocked.store(0, Ordering::Relaxed);
        } else {
            // SAFETY: the caller's condition.
            unsafe { self.unlock_all(fork) };
        }
        // Where a child's fork came from a handler that interrupted a slow path, what that one holds is its own, and
        // locks that were not to be had may be those of threads that there are no more: the next slow path looks.
        if fork.needs_all && self.generation.load(Ordering::Relaxed) != m.generation() {
            if alone {
                self.begin_child();
            } else {
                // The fork may have gone on without some.
                self.after_raw_fork();
            }
        }
        m.leave();
    }

    /// The fork that this thread is at, being counted in for it.
    fn fork(&self) -> Fork {
        let depth = self.machine.enter() as usize;
        self.machine.leave();
        Fork { token: self.machine.thread() + depth % 32, needs_all: depth == 1 && !self.is_crippled() }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::boxed::Box;

    use super::*;
    use crate::gfp::Gfp;
    use crate::machine::sim::Sim;
    use crate::slab::SlabFlags;

    /// A child whose parent's thread had `take` go on waits for no lock, whichever it was: it does without what that
    /// guards.
    #[track_caller]
    fn goes_on_without<G>(take: impl FnOnce(&'static Mm<Sim>) -> G) {
        let mm: &'static Mm<Sim> = Box::leak(Box::new(Mm::new(Sim::new())));
        assert!(mm.start());
        let named = mm.kmem_cache_create("before", 100, 0, SlabFlags::NONE, None).unwrap();
        let copies = mm.alloc_percpu(64, 8, Gfp::KERNEL).unwrap();
        let held = take(mm);
        mm.after_raw_fork();
        assert!(mm.is_crippled());
        let block = mm.alloc(100);
        assert!(!block.is_null());
        // SAFETY: all three are this test's, which does not use them any more.
        unsafe {
            mm.free(block);
            assert_eq!(mm.kmem_cache_destroy(named), Err(0));
            assert_eq!(mm.free_percpu(copies), Ok(()));
        }
        assert!(mm.kmem_cache_create("after", 100, 0, SlabFlags::NONE, None).is_err());
        mm.for_each_name(|name, _| assert_eq!(name, "before"));
        mm.options();
        drop(held);
    }

    #[test]
    fn a_child_that_lost_a_lock_waits_for_none() {
        goes_on_without(|mm| mm.names.lock(&mm.machine));
        goes_on_without(|mm| mm.percpu.lock(&mm.machine));
        goes_on_without(|mm| mm.options.lock(&mm.machine));
    }
}
