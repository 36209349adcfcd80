//! Shrinkers: the program's own caches, asked to give memory back before a request fails.
//!
//! They are called without any lock, and counted out of the slow path that needs them, so that they may allocate and
//! free like anybody else. A thread that is in one already calls none: what it lacks it will not get by asking again.
//! Only requests with `__GFP_FS` call them, which `malloc` is one of: a callback must not wait for a lock that its
//! program holds while it allocates.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::Mm;
use crate::error::AllocError;
use crate::gfp::Gfp;
use crate::machine::Machine;

/// Most shrinkers.
const SLOTS: usize = 32;
/// Most threads in callbacks at once; further ones go without.
const THREADS: usize = 16;
/// Objects asked for at a time where the shrinker does not say.
const BATCH: usize = 128;
/// What a scan returns that cannot get on.
pub const SHRINK_STOP: usize = usize::MAX;
/// What a count returns that has nothing, and perhaps never will.
pub const SHRINK_EMPTY: usize = usize::MAX - 1;

/// What a callback is told (`struct shrink_control`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ShrinkControl {
    /// Flags of the request that needs memory.
    pub gfp: u32,
    /// The node that needs it.
    pub node: i32,
    /// Objects to look at.
    pub nr_to_scan: usize,
    /// Objects looked at, where that is not as many.
    pub nr_scanned: usize,
}

/// A callback: how many objects could be freed, or were.
pub type ShrinkCall = unsafe extern "C" fn(data: *mut u8, control: &mut ShrinkControl) -> usize;

struct Slot {
    /// 0 free, 1 being filled, else in use: the shrinker's data.
    data: AtomicUsize,
    count: AtomicUsize,
    scan: AtomicUsize,
    batch: AtomicUsize,
    /// Threads that are at it.
    users: AtomicU32,
}

/// All shrinkers of an instance.
pub(super) struct Shrinkers {
    slots: [Slot; SLOTS],
    /// Threads that are in a callback, each with the number of its slot.
    inside: [AtomicUsize; THREADS],
}

impl Shrinkers {
    pub(super) const fn new() -> Shrinkers {
        Shrinkers {
            slots: [const {
                Slot {
                    data: AtomicUsize::new(0),
                    count: AtomicUsize::new(0),
                    scan: AtomicUsize::new(0),
                    batch: AtomicUsize::new(0),
                    users: AtomicU32::new(0),
                }
            }; SLOTS],
            inside: [const { AtomicUsize::new(0) }; THREADS],
        }
    }
}

/// A thread's name is a multiple of 32.
const _: () = assert!(SLOTS == 32);

impl Shrinkers {
    /// In a child, whose only thread `me` is: the others are in no callback.
    pub(super) fn begin_child(&self, me: usize) {
        let mut own = SLOTS;
        for place in &self.inside {
            let inside = place.load(Ordering::Relaxed);
            if inside & !(SLOTS - 1) == me {
                own = inside % SLOTS;
            } else if inside != 0 {
                place.store(0, Ordering::Relaxed);
            }
        }
        for (nth, slot) in self.slots.iter().enumerate() {
            if slot.users.load(Ordering::Relaxed) != 0 {
                slot.users.store((nth == own).into(), Ordering::Relaxed);
            }
        }
    }
}

impl<M: Machine> Mm<M> {
    /// Registers callbacks to be asked under pressure. `data` names them, and is what they are called with; `batch` is
    /// how many objects to ask for at once, 0 for 128.
    ///
    /// # Safety
    /// The callbacks may be called with `data` from any thread that allocates, until [`Mm::unregister_shrinker`] has
    /// returned.
    ///
    /// # Errors
    /// [`AllocError::Invalid`]: null, or registered already. [`AllocError::NoMemory`]: there are too many.
    pub unsafe fn register_shrinker(
        &self,
        data: *mut u8,
        count: ShrinkCall,
        scan: ShrinkCall,
        batch: usize,
    ) -> Result<(), AllocError> {
        let name = data.expose_provenance();
        let slots = &self.shrinkers.slots;
        if name <= 1 || slots.iter().any(|slot| slot.data.load(Ordering::Relaxed) == name) {
            return Err(AllocError::Invalid);
        }
        let free = |slot: &&Slot| slot.data.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok();
        let slot = slots.iter().find(free).ok_or(AllocError::NoMemory)?;
        slot.count.store(count as usize, Ordering::Relaxed);
        slot.scan.store(scan as usize, Ordering::Relaxed);
        slot.batch.store(if batch == 0 { BATCH } else { batch }, Ordering::Relaxed);
        // Release, pairs with the Acquire in `shrink_slot`.
        slot.data.store(name, Ordering::Release);
        Ok(())
    }

    /// Takes a registration back, and waits until no thread is in its callbacks. Not to be called from one of them.
    /// False where there was none.
    pub fn unregister_shrinker(&self, data: *const u8) -> bool {
        let name = data.addr();
        let slots = &self.shrinkers.slots;
        let Some(slot) = slots.iter().find(|slot| name > 1 && slot.data.load(Ordering::Relaxed) == name) else {
            return false;
        };
        // Sequentially consistent, as in `shrink_slot`: either the other side sees the name gone, or this one sees the
        // user.
        if slot.data.compare_exchange(name, 1, Ordering::SeqCst, Ordering::Relaxed).is_err() {
            return false;
        }
        loop {
            let users = slot.users.load(Ordering::SeqCst);
            if users == 0 {
                break;
            }
            self.machine.nap(&AtomicU32::new(0), 0);
        }
        slot.data.store(0, Ordering::Release);
        true
    }

    /// Asks all shrinkers for what they have, at most `batches` batches of each; the objects they freed. The caller is
    /// in a slow path that may block, and holds no lock.
    #[cold]
    pub(super) fn shrink(&self, gfp: Gfp, batches: usize) -> usize {
        let m = &self.machine;
        if !gfp.has(Gfp::FS)
            || !gfp.may_block()
            || self.shrinkers.slots.iter().all(|s| s.data.load(Ordering::Relaxed) <= 1)
        {
            return 0;
        }
        let (me, inside) = (m.thread(), &self.shrinkers.inside);
        if inside.iter().any(|thread| thread.load(Ordering::Relaxed) & !(SLOTS - 1) == me) {
            return 0;
        }
        let enter = |place: &&AtomicUsize| place.compare_exchange(0, me, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        let Some(place) = inside.iter().find(enter) else { return 0 };
        // What the callbacks do is no part of this slow path.
        m.leave();
        let in_slot = |(nth, slot)| {
            place.store(me + nth, Ordering::Relaxed);
            self.shrink_slot(slot, gfp, batches)
        };
        let freed = self.shrinkers.slots.iter().enumerate().map(in_slot).sum();
        m.enter();
        place.store(0, Ordering::Relaxed);
        freed
    }

    fn shrink_slot(&self, slot: &Slot, gfp: Gfp, mut batches: usize) -> usize {
        slot.users.fetch_add(1, Ordering::SeqCst);
        // SeqCst includes the Acquire that pairs with the Release in `register_shrinker`.
        let name = slot.data.load(Ordering::SeqCst);
        let mut freed = 0;
        if name > 1 {
            let data: *mut u8 = core::ptr::with_exposed_provenance_mut(name);
            // SAFETY: both were stored from functions of this type.
            let (count, scan): (ShrinkCall, ShrinkCall) = unsafe {
                (
                    core::mem::transmute::<usize, ShrinkCall>(slot.count.load(Ordering::Relaxed)),
                    core::mem::transmute::<usize, ShrinkCall>(slot.scan.load(Ordering::Relaxed)),
                )
            };
            let batch = slot.batch.load(Ordering::Relaxed);
            let mut control =
                ShrinkControl { gfp: gfp.0, node: self.machine.node() as i32, nr_to_scan: 0, nr_scanned: 0 };
            // SAFETY: registered with this promise, and not taken back while the slot has users.
            let mut left = match unsafe { count(data, &mut control) } {
                SHRINK_EMPTY => 0,
                objects => objects,
            };
            while left > 0 && batches > 0 {
                batches -= 1;
                control.nr_to_scan = left.min(batch);
                control.nr_scanned = control.nr_to_scan;
                // SAFETY: as above.
                match unsafe { scan(data, &mut control) } {
                    SHRINK_STOP => break,
                    objects => freed += objects,
                }
                left = left.saturating_sub(control.nr_scanned.max(1));
            }
        }
        slot.users.fetch_sub(1, Ordering::SeqCst);
        freed
    }
}

#[cfg(test)]
mod tests {
    use std::boxed::Box;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;
    use crate::machine::Context;
    use crate::machine::sim::Sim;

    static INSIDE: AtomicBool = AtomicBool::new(false);
    static GO_ON: AtomicBool = AtomicBool::new(false);

    unsafe extern "C" fn count(_: *mut u8, _: &mut ShrinkControl) -> usize {
        INSIDE.store(true, Ordering::SeqCst);
        while !GO_ON.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        0
    }

    /// What would be waited for when it is unregistered.
    #[test]
    fn a_child_has_no_callback_of_its_parents_other_threads() {
        let mm = Box::new(Mm::new(Sim::builder().build()));
        let data = core::ptr::without_provenance_mut(8);
        // SAFETY: the callback takes anything, from any thread.
        unsafe { mm.register_shrinker(data, count, count, 0).unwrap() };
        let users = || mm.shrinkers.slots[0].users.load(Ordering::SeqCst);
        thread::scope(|scope| {
            let other = scope.spawn(|| {
                mm.machine().enter();
                mm.shrink(Gfp::KERNEL, 1);
                mm.machine().leave();
            });
            while !INSIDE.load(Ordering::SeqCst) && !other.is_finished() {
                thread::yield_now();
            }
            mm.begin_child();
            let left = users();
            // The other thread, which a child would not have, ends.
            mm.shrinkers.slots[0].users.store(1, Ordering::SeqCst);
            GO_ON.store(true, Ordering::SeqCst);
            assert_eq!(left, 0);
        });
        // One that forks in a callback goes on in it.
        mm.shrinkers.slots[3].users.store(2, Ordering::SeqCst);
        mm.shrinkers.inside[5].store(mm.machine().thread() + 3, Ordering::SeqCst);
        mm.begin_child();
        assert_eq!(mm.shrinkers.slots[3].users.load(Ordering::SeqCst), 1);
    }
}
