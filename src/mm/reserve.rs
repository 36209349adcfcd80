//! A few objects for handlers that interrupt the allocator itself, when whatever they try is locked by whom they
//! interrupted.

use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::slab::classes::class_of;

/// Objects kept: as many nested allocations can be served between two slow paths that are not nested.
const OBJECTS: usize = 16;

/// The reserve. Its objects were never touched, so they cost address space only.
pub(super) struct Reserve {
    slots: [AtomicUsize; OBJECTS],
    /// Whether no slot is empty.
    full: AtomicBool,
}

impl Reserve {
    /// Size and alignment of its objects.
    pub(super) const SIZE: usize = 1024;

    pub(super) const fn new() -> Reserve {
        Reserve { slots: [const { AtomicUsize::new(0) }; OBJECTS], full: AtomicBool::new(false) }
    }

    /// Size class of its objects.
    pub(super) fn class() -> u8 {
        class_of(Reserve::SIZE)
    }

    /// An object, or null. Lock-free: a slot is taken by one exchange.
    pub(super) fn take(&self) -> *mut u8 {
        self.full.store(false, Ordering::Relaxed);
        // Acquire, pairs with the Release in `refill`.
        let object = self.slots.iter().map(|slot| slot.swap(0, Ordering::Acquire)).find(|object| *object != 0);
        object.map_or(ptr::null_mut(), ptr::with_exposed_provenance_mut)
    }

    /// Fills empty slots with what `make` gives; what it gives too much it gets back.
    #[inline]
    pub(super) fn refill(&self, make: impl Fn() -> *mut u8, unmake: impl Fn(*mut u8)) {
        if !self.full.load(Ordering::Relaxed) {
            self.refill_slots(make, unmake);
        }
    }

    #[cold]
    fn refill_slots(&self, make: impl Fn() -> *mut u8, unmake: impl Fn(*mut u8)) {
        self.full.store(true, Ordering::Relaxed);
        for slot in self.slots.iter().filter(|slot| slot.load(Ordering::Relaxed) == 0) {
            let object = make();
            if object.is_null() {
                // Perhaps there is memory the next time.
                self.full.store(false, Ordering::Relaxed);
                return;
            }
            // Release, pairs with the Acquire in `take`.
            let put = slot.compare_exchange(0, object.expose_provenance(), Ordering::Release, Ordering::Relaxed);
            if put.is_err() {
                unmake(object);
            }
        }
    }

    /// Objects in it.
    pub(super) fn len(&self) -> usize {
        self.slots.iter().filter(|slot| slot.load(Ordering::Relaxed) != 0).count()
    }

    /// Empties it into `unmake`.
    pub(super) fn drain(&self, unmake: impl Fn(*mut u8)) {
        for slot in &self.slots {
            let object = slot.swap(0, Ordering::Acquire);
            if object != 0 {
                unmake(ptr::with_exposed_provenance_mut(object));
            }
        }
        self.full.store(false, Ordering::Relaxed);
    }
}
