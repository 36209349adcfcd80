//! Memory pools: some elements kept back, so that a request that may wait never fails (Ingo Molnár's `mm/mempool.c`).
//!
//! The kernel's pool has a lock with interrupts off. Here each place for an element is taken and filled by one
//! exchange, so that handlers may use a pool whatever they interrupted, and no other thread's fate matters to them.
#![allow(unsafe_code)]

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use super::Mm;
use crate::error::AllocError;
use crate::gfp::Gfp;
use crate::machine::Machine;

/// Makes an element with the flags given; null where it cannot.
pub type PoolAlloc = unsafe extern "C" fn(gfp: u32, data: *mut u8) -> *mut u8;
/// Takes an element back.
pub type PoolFree = unsafe extern "C" fn(element: *mut u8, data: *mut u8);

/// Where a pool has its elements from.
#[derive(Clone, Copy)]
pub struct PoolSource {
    /// Makes one.
    pub alloc: PoolAlloc,
    /// Takes one back.
    pub free: PoolFree,
    /// What both are called with.
    pub data: *mut u8,
}

/// A pool; behind it in memory lie the elements that it keeps.
#[repr(C)]
pub struct Mempool {
    /// Places behind it that are empty, or more: counted before one is emptied, and after it was filled.
    lacking: AtomicUsize,
    least: usize,
    source: PoolSource,
    /// Changes with every element that comes back.
    returned: AtomicU32,
    /// Threads that wait for one.
    waiting: AtomicU32,
}

// SAFETY: the places behind it are atomics; `source` is constant, and its functions are called from any thread by
// contract.
unsafe impl Sync for Mempool {}
// SAFETY: likewise.
unsafe impl Send for Mempool {}

impl Mempool {
    /// The places of the kept elements.
    fn places(&self) -> &[AtomicPtr<u8>] {
        let behind = ptr::from_ref(self).wrapping_add(1).cast();
        // SAFETY: `mempool_create` made so many behind the pool, null at first.
        unsafe { core::slice::from_raw_parts(behind, self.least) }
    }

    /// Puts an element by, if the pool lacks one.
    fn keep(&self, element: *mut u8) -> bool {
        // Acquire and Release: who takes it sees what was written to it.
        let fill = |place: &AtomicPtr<u8>| {
            place.compare_exchange(ptr::null_mut(), element, Ordering::Release, Ordering::Relaxed).is_ok()
        };
        let kept = self.lacking.load(Ordering::Relaxed) > 0 && self.places().iter().any(fill);
        if kept {
            self.lacking.fetch_sub(1, Ordering::Relaxed);
        }
        kept
    }

    /// A kept element, or null.
    fn take(&self) -> *mut u8 {
        // Before: who frees the element that this one gets must not find the pool full.
        self.lacking.fetch_add(1, Ordering::Relaxed);
        let full = self.places().iter().filter(|place| !place.load(Ordering::Relaxed).is_null());
        let taken = full.map(|place| place.swap(ptr::null_mut(), Ordering::Acquire)).find(|element| !element.is_null());
        if taken.is_none() {
            self.lacking.fetch_sub(1, Ordering::Relaxed);
        }
        taken.unwrap_or(ptr::null_mut())
    }

    /// Elements it keeps at least.
    pub fn least(&self) -> usize {
        self.least
    }
}

impl<M: Machine> Mm<M> {
    /// A pool that keeps `least` elements.
    ///
    /// # Safety
    /// The source's functions may be called with its data from any thread that uses the pool.
    ///
    /// # Errors
    /// [`AllocError::NoMemory`], [`AllocError::Invalid`] as for [`Mm::admit`].
    pub unsafe fn mempool_create(&self, least: usize, source: PoolSource) -> Result<NonNull<Mempool>, AllocError> {
        self.admit(Gfp::KERNEL)?;
        let bytes = least.checked_mul(size_of::<usize>()).and_then(|b| b.checked_add(size_of::<Mempool>()));
        let memory = self.kmalloc(bytes.ok_or(AllocError::Invalid)?, Gfp::KERNEL | Gfp::ZERO);
        let pool: NonNull<Mempool> = NonNull::new(memory.cast()).ok_or(AllocError::NoMemory)?;
        let [returned, waiting] = [0; 2].map(AtomicU32::new);
        let new = Mempool { lacking: AtomicUsize::new(least), least, source, returned, waiting };
        // SAFETY: new memory of that size, aligned to 16, with null behind the pool; the source is the caller's
        // promise.
        unsafe {
            pool.write(new);
            for _ in 0..least {
                let element = (source.alloc)(Gfp::KERNEL.0, source.data);
                if element.is_null() {
                    self.mempool_destroy(pool);
                    return Err(AllocError::NoMemory);
                }
                pool.as_ref().keep(element);
            }
        }
        Ok(pool)
    }

    /// An element: a new one if that is easy, else a kept one, else a new one the hard way. A request that may block
    /// then waits until somebody gives one back (of a pool that keeps none: tries again until there is memory), and so
    /// never fails; others get null.
    pub fn mempool_alloc(&self, pool: &Mempool, gfp: Gfp) -> *mut u8 {
        if self.admit_address(gfp).is_err() {
            return ptr::null_mut();
        }
        let make = |gfp: Gfp| {
            let gfp = gfp.without(Gfp::MEMALLOC | Gfp::NOFAIL) | Gfp::NOMEMALLOC | Gfp::NORETRY | Gfp::NOWARN;
            // SAFETY: promised when the pool was made.
            unsafe { (pool.source.alloc)(gfp.0, pool.source.data) }
        };
        let element = make(gfp.without(Gfp::DIRECT_RECLAIM | Gfp::IO));
        if !element.is_null() {
            return element;
        }
        loop {
            let seen = pool.returned.load(Ordering::Acquire);
            let element = pool.take();
            if !element.is_null() || !gfp.may_block() {
                return element;
            }
            let element = make(gfp);
            if !element.is_null() {
                return element;
            }
            if pool.least == 0 {
                // Nothing ever comes back to a pool that keeps nothing, so that nobody would wake this one.
                self.machine.nap(&pool.returned, seen);
                continue;
            }
            // Sequentially consistent, as in `mempool_free`: either that sees who waits, or this sees that something
            // came.
            pool.waiting.fetch_add(1, Ordering::SeqCst);
            if pool.returned.load(Ordering::SeqCst) == seen {
                self.machine.wait(&pool.returned, seen);
            }
            pool.waiting.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Gives an element back: the pool keeps it if it lacks one; null is nothing. Enters the system only to wake who
    /// waits.
    ///
    /// # Safety
    /// The element is the pool's, and not used any more.
    pub unsafe fn mempool_free(&self, pool: &Mempool, element: *mut u8) {
        if element.is_null() {
            return;
        }
        if !pool.keep(element) {
            // SAFETY: promised when the pool was made; the element is given up.
            unsafe { (pool.source.free)(element, pool.source.data) };
            return;
        }
        pool.returned.fetch_add(1, Ordering::SeqCst);
        if pool.waiting.load(Ordering::SeqCst) > 0 {
            self.machine.wake(&pool.returned);
        }
    }

    /// Gives the pool up with what it keeps.
    ///
    /// # Safety
    /// Nobody uses it any more, and its elements are back.
    pub unsafe fn mempool_destroy(&self, pool: NonNull<Mempool>) {
        // SAFETY: the caller's condition: the pool is this call's alone.
        unsafe {
            loop {
                let element = pool.as_ref().take();
                if element.is_null() {
                    break;
                }
                let source = pool.as_ref().source;
                (source.free)(element, source.data);
            }
            self.kfree(pool.as_ptr().cast());
        }
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::Ordering::Relaxed;
    use std::boxed::Box;

    use super::*;
    use crate::machine::ZoneKind;
    use crate::machine::sim::Sim;

    /// Of a source that has nothing for a while.
    #[test]
    fn a_pool_that_keeps_nothing_has_who_waits_try_again() {
        static REFUSALS: AtomicU32 = AtomicU32::new(10);
        unsafe extern "C" fn alloc(_: u32, data: *mut u8) -> *mut u8 {
            let left = REFUSALS.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1));
            if left.is_ok() { ptr::null_mut() } else { data }
        }
        unsafe extern "C" fn free(_: *mut u8, _: *mut u8) {}
        let mm = Box::new(Mm::new(Sim::builder().grow(0, ZoneKind::Normal, 1 << 14, 1 << 13, 1024).build()));
        let data = ptr::without_provenance_mut(64);
        // SAFETY: the functions may be called from anywhere; the pool is used until it is destroyed.
        unsafe {
            let pool = mm.mempool_create(0, PoolSource { alloc, free, data }).unwrap();
            assert_eq!(mm.mempool_alloc(pool.as_ref(), Gfp::ATOMIC), ptr::null_mut());
            assert_eq!(mm.mempool_alloc(pool.as_ref(), Gfp::KERNEL), data);
            mm.mempool_free(pool.as_ref(), data);
            mm.mempool_destroy(pool);
        }
    }
}
