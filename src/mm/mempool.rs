//! Memory pools: some elements kept back, so that a request that may wait never fails (Ingo Molnár's `mm/mempool.c`).
#![allow(unsafe_code)]

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU32, Ordering};

use super::Mm;
use crate::error::AllocError;
use crate::gfp::Gfp;
use crate::machine::Machine;
use crate::sync::Lock;

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
    /// Elements kept at this moment.
    kept: Lock<usize>,
    least: usize,
    source: PoolSource,
    /// Changes with every element that comes back.
    returned: AtomicU32,
    /// Threads that wait for one.
    waiting: AtomicU32,
}

// SAFETY: the elements behind it are guarded by `kept`; `source` is constant, and its functions are called from any thread by contract.
unsafe impl Sync for Mempool {}
// SAFETY: likewise.
unsafe impl Send for Mempool {}

impl Mempool {
    /// The place of the `n`-th kept element.
    fn slot(&self, n: usize) -> *mut *mut u8 {
        let behind = ptr::from_ref(self).wrapping_add(1).cast::<*mut u8>();
        behind.cast_mut().wrapping_add(n)
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
        let memory = self.kmalloc(bytes.ok_or(AllocError::Invalid)?, Gfp::KERNEL);
        let pool: NonNull<Mempool> = NonNull::new(memory.cast()).ok_or(AllocError::NoMemory)?;
        let new =
            Mempool { kept: Lock::new(0), least, source, returned: AtomicU32::new(0), waiting: AtomicU32::new(0) };
        // SAFETY: new memory of that size, aligned to 16; the source is the caller's promise.
        unsafe {
            pool.write(new);
            for _ in 0..least {
                let element = (source.alloc)(Gfp::KERNEL.0, source.data);
                if element.is_null() {
                    self.mempool_destroy(pool);
                    return Err(AllocError::NoMemory);
                }
                let _ = self.keep_element(pool.as_ref(), element);
            }
        }
        Ok(pool)
    }

    /// Puts an element by, if the pool lacks one.
    ///
    /// # Safety
    /// The element is the caller's to give.
    unsafe fn keep_element(&self, pool: &Mempool, element: *mut u8) -> bool {
        let mut kept = pool.kept.lock(&self.machine);
        if *kept == pool.least {
            return false;
        }
        // SAFETY: there are `least` places behind the pool, guarded by the lock.
        unsafe { pool.slot(*kept).write(element) };
        *kept += 1;
        true
    }

    fn take_element(&self, pool: &Mempool, gfp: Gfp) -> *mut u8 {
        let Some(mut kept) = pool.kept.acquire(&self.machine, gfp.may_block()) else { return ptr::null_mut() };
        if *kept == 0 {
            return ptr::null_mut();
        }
        *kept -= 1;
        // SAFETY: as in `keep_element`; the place holds an element.
        unsafe { pool.slot(*kept).read() }
    }

    /// An element: a new one if that is easy, else a kept one, else a new one the hard way. A request that may block then waits
    /// until somebody gives one back, and so never fails; others get null.
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
            let element = self.take_element(pool, gfp);
            if !element.is_null() || !gfp.may_block() {
                return element;
            }
            let element = make(gfp);
            if !element.is_null() {
                return element;
            }
            // Sequentially consistent, as in `mempool_free`: either that sees who waits, or this sees that something came.
            pool.waiting.fetch_add(1, Ordering::SeqCst);
            if pool.returned.load(Ordering::SeqCst) == seen {
                self.machine.wait(&pool.returned, seen);
            }
            pool.waiting.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Gives an element back: the pool keeps it if it lacks one; null is nothing. Enters the system only to wake who waits.
    ///
    /// # Safety
    /// The element is the pool's, and not used any more.
    pub unsafe fn mempool_free(&self, pool: &Mempool, element: *mut u8) {
        if element.is_null() {
            return;
        }
        // SAFETY: the caller's condition.
        unsafe {
            if !self.keep_element(pool, element) {
                (pool.source.free)(element, pool.source.data);
                return;
            }
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
                let element = self.take_element(pool.as_ref(), Gfp::KERNEL);
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
