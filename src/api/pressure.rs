//! What helps under pressure: pools that keep something back, and shrinkers that give something back.

use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use super::cache::Cache;
use crate::error::AllocError;
use crate::gfp::Gfp;
use crate::machine::Machine;
use crate::mm::{Mempool, Mm, PoolSource, SHRINK_STOP, ShrinkControl};

/// Objects of a cache of which some are kept back, so that a request that may wait never fails
/// (`mempool_create_slab_pool`).
///
/// Safe as a [`Cache`] is: a box borrows its pool, and the pool its cache.
pub struct Pool<'c, M: Machine, T> {
    cache: &'c Cache<'c, M, T>,
    pool: NonNull<Mempool>,
}

// SAFETY: the pool is made for all threads; values cross them in boxes only.
unsafe impl<M: Machine, T: Send> Send for Pool<'_, M, T> {}
// SAFETY: likewise.
unsafe impl<M: Machine, T: Send> Sync for Pool<'_, M, T> {}

unsafe extern "C" fn alloc_object<M: Machine, T>(gfp: u32, cache: *mut u8) -> *mut u8 {
    // SAFETY: the pool was made with this cache, which it borrows.
    let cache = unsafe { &*cache.cast::<Cache<'_, M, T>>() };
    cache.mm().kmem_cache_alloc(cache.named().cache(), Gfp(gfp), 0)
}

unsafe extern "C" fn free_object<M: Machine, T>(object: *mut u8, cache: *mut u8) {
    // SAFETY: as in `alloc_object`; the object is the cache's and the pool's to give.
    unsafe {
        let cache = &*cache.cast::<Cache<'_, M, T>>();
        let _ = cache.mm().kmem_cache_free(cache.named().cache(), object, 0);
    }
}

impl<'c, M: Machine, T> Pool<'c, M, T> {
    /// A pool that keeps at least `least` objects of `cache`.
    ///
    /// # Errors
    /// As for [`Mm::mempool_create`].
    pub fn new(cache: &'c Cache<'c, M, T>, least: usize) -> Result<Self, AllocError> {
        let data = core::ptr::from_ref(cache).cast_mut().cast();
        let source = PoolSource { alloc: alloc_object::<M, T>, free: free_object::<M, T>, data };
        // SAFETY: the functions take a cache of this type, which stays borrowed, from any thread.
        let pool = unsafe { cache.mm().mempool_create(least, source)? };
        Ok(Pool { cache, pool })
    }

    /// Puts `value` into an object. With leave to wait this does not fail for want of memory: it waits for one to come
    /// back.
    ///
    /// # Errors
    /// As for [`Cache::insert`].
    pub fn insert(&self, value: T, gfp: Gfp) -> Result<PoolBox<'_, M, T>, AllocError> {
        let mm = self.cache.mm();
        mm.admit_address(gfp)?;
        // SAFETY: the pool is there as long as `self`.
        let object = mm.mempool_alloc(unsafe { self.pool.as_ref() }, gfp);
        let object: NonNull<T> = NonNull::new(object.cast()).ok_or(AllocError::NoMemory)?;
        // SAFETY: the object is ours, large and aligned enough.
        unsafe { object.write(value) };
        Ok(PoolBox { pool: self, object })
    }
}

impl<M: Machine, T> Drop for Pool<'_, M, T> {
    fn drop(&mut self) {
        // SAFETY: boxes borrow the pool, so all are back (or leaked, and then they are the cache's affair).
        unsafe { self.cache.mm().mempool_destroy(self.pool) };
    }
}

/// A value in an object of a [`Pool`].
pub struct PoolBox<'p, M: Machine, T> {
    pool: &'p Pool<'p, M, T>,
    object: NonNull<T>,
}

// SAFETY: it owns its value, like a `Box`.
unsafe impl<M: Machine, T: Send> Send for PoolBox<'_, M, T> {}
// SAFETY: likewise.
unsafe impl<M: Machine, T: Send + Sync> Sync for PoolBox<'_, M, T> {}

impl<M: Machine, T> Deref for PoolBox<'_, M, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the object holds a value and is this box's.
        unsafe { self.object.as_ref() }
    }
}

impl<M: Machine, T> DerefMut for PoolBox<'_, M, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and the box is borrowed exclusively.
        unsafe { self.object.as_mut() }
    }
}

impl<M: Machine, T> Drop for PoolBox<'_, M, T> {
    fn drop(&mut self) {
        // SAFETY: the object holds a value that nobody uses any more; the pool is there.
        unsafe {
            self.object.drop_in_place();
            self.pool.cache.mm().mempool_free(self.pool.pool.as_ref(), self.object.as_ptr().cast());
        }
    }
}

impl<M: Machine, T: fmt::Debug> fmt::Debug for PoolBox<'_, M, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        T::fmt(self, f)
    }
}

/// Something that can give memory back.
pub trait Shrink: Sync {
    /// Objects that could be freed.
    fn count(&self) -> usize;
    /// Frees up to `objects`, and says how many; `None` where it cannot get on at present. Called from any thread that
    /// allocates and may: it must not wait for a lock that its program holds while it allocates.
    fn scan(&self, objects: usize) -> Option<usize>;
}

/// A registration of a [`Shrink`]; taken back when dropped.
///
/// Safe because what is registered is borrowed for ever: a guard that is leaked leaves nothing dangling.
pub struct Shrinker<'m, M: Machine, S: Shrink + 'static> {
    mm: &'m Mm<M>,
    what: &'static S,
    kind: PhantomData<S>,
}

unsafe extern "C" fn count<S: Shrink>(what: *mut u8, _: &mut ShrinkControl) -> usize {
    // SAFETY: registered with a reference to an `S` for ever.
    unsafe { &*what.cast::<S>() }.count()
}

unsafe extern "C" fn scan<S: Shrink>(what: *mut u8, control: &mut ShrinkControl) -> usize {
    // SAFETY: as in `count`.
    unsafe { &*what.cast::<S>() }.scan(control.nr_to_scan).unwrap_or(SHRINK_STOP)
}

impl<'m, M: Machine, S: Shrink + 'static> Shrinker<'m, M, S> {
    /// Registers `what`, to be asked before a request fails.
    ///
    /// # Errors
    /// As for [`Mm::register_shrinker`]; `S` must have a size.
    pub fn new(mm: &'m Mm<M>, what: &'static S) -> Result<Self, AllocError> {
        let data = core::ptr::from_ref(what).cast_mut().cast();
        // SAFETY: `what` is there for ever, and `Sync`.
        unsafe { mm.register_shrinker(data, count::<S>, scan::<S>, 0)? };
        Ok(Shrinker { mm, what, kind: PhantomData })
    }
}

impl<M: Machine, S: Shrink + 'static> Drop for Shrinker<'_, M, S> {
    fn drop(&mut self) {
        self.mm.unregister_shrinker(core::ptr::from_ref(self.what).cast());
    }
}
