//! Typed caches.

use core::fmt;
use core::marker::PhantomData;
use core::mem::{align_of, needs_drop, size_of};
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use crate::error::AllocError;
use crate::gfp::Gfp;
use crate::machine::Machine;
use crate::mm::{Mm, Named};
use crate::slab::{Constructor, SlabFlags};

/// What both kinds of cache are made of. Dropping it gives the name up.
struct Handle<'m, M: Machine> {
    mm: &'m Mm<M>,
    named: Named,
}

impl<'m, M: Machine> Handle<'m, M> {
    fn make<T>(mm: &'m Mm<M>, name: &str, flags: SlabFlags, ctor: Option<Constructor>) -> Result<Self, AllocError> {
        let size = size_of::<T>().max(1);
        let named = mm.kmem_cache_create(name, size, align_of::<T>(), flags, ctor)?;
        Ok(Handle { mm, named })
    }

    fn find<T>(mm: &'m Mm<M>, name: &str, constructed: bool) -> Result<Self, AllocError> {
        let named = mm.kmem_cache_find(name).ok_or(AllocError::Invalid)?;
        let handle = Handle { mm, named };
        let (_, size, align, ctor) = mm.slab().made_with(named.cache());
        if size < size_of::<T>() || align < align_of::<T>() || ctor != constructed {
            return Err(AllocError::Invalid);
        }
        Ok(handle)
    }

    #[inline]
    fn alloc<T>(&self, gfp: Gfp, caller: usize) -> Result<NonNull<T>, AllocError> {
        self.mm.admit_address(gfp)?;
        let object = self.mm.kmem_cache_alloc(self.named.cache(), gfp, caller);
        NonNull::new(object.cast()).ok_or(AllocError::NoMemory)
    }

    /// # Safety
    /// The object is of this cache and not used any more.
    #[inline]
    unsafe fn free<T>(&self, object: NonNull<T>, caller: usize) {
        // SAFETY: the caller's condition. A defect was reported, and the object left alone.
        let _ = unsafe { self.mm.kmem_cache_free(self.named.cache(), object.as_ptr().cast(), caller) };
    }

    fn shrink(&self) {
        self.mm.kmem_cache_shrink(self.named);
    }
}

impl<M: Machine> Drop for Handle<'_, M> {
    fn drop(&mut self) {
        // SAFETY: the name is this handle's, which nobody has any more. Objects that were leaked are reported, and the
        // cache stays.
        let _ = unsafe { self.mm.kmem_cache_destroy(self.named) };
    }
}

/// A cache of values of one type, each in a [`CacheBox`].
///
/// Safe because a box borrows the cache, which therefore outlives it, and because objects are only ever reached through
/// their box. Giving its name up behind its back is `unsafe`, and so is ending the cache in the layer below:
///
/// ```compile_fail,E0133
/// # use slabwright::{api::Cache, machine::Machine};
/// fn destroy<M: Machine>(mm: &slabwright::mm::Mm<M>, cache: &Cache<'_, M, u64>) {
///     let _ = mm.kmem_cache_destroy(cache.named());
/// }
/// ```
///
/// ```compile_fail,E0133
/// # use slabwright::{api::Cache, machine::Machine};
/// fn destroy<M: Machine>(mm: &slabwright::mm::Mm<M>, cache: &Cache<'_, M, u64>) {
///     let _ = mm.slab().destroy(mm.machine(), mm.pages(), cache.named().cache());
/// }
/// ```
pub struct Cache<'m, M: Machine, T> {
    handle: Handle<'m, M>,
    values: PhantomData<fn() -> T>,
}

impl<'m, M: Machine, T> Cache<'m, M, T> {
    /// A cache by a new name. Objects are as large and as aligned as a `T`.
    ///
    /// # Errors
    /// As for [`Mm::kmem_cache_create`].
    pub fn new(mm: &'m Mm<M>, name: &str, flags: SlabFlags) -> Result<Self, AllocError> {
        Ok(Cache { handle: Handle::make::<T>(mm, name, flags, None)?, values: PhantomData })
    }

    /// The cache that somebody, perhaps in C, made by this name. Its objects may be larger than a `T`; whose box one is
    /// does not concern the others.
    ///
    /// # Errors
    /// [`AllocError::Invalid`]: there is none, its objects are too small or not aligned enough, or it has a
    /// constructor.
    pub fn find(mm: &'m Mm<M>, name: &str) -> Result<Self, AllocError> {
        Ok(Cache { handle: Handle::find::<T>(mm, name, false)?, values: PhantomData })
    }

    /// Puts `value` into an object of the cache.
    ///
    /// # Errors
    /// [`AllocError::NoMemory`], or [`AllocError::Invalid`] as for [`Mm::admit`]; the value is dropped.
    #[inline]
    #[track_caller]
    pub fn insert(&self, value: T, gfp: Gfp) -> Result<CacheBox<'_, M, T>, AllocError> {
        let object = self.handle.alloc::<T>(gfp, caller())?;
        // SAFETY: the object is ours, large and aligned enough.
        unsafe { object.write(value) };
        Ok(CacheBox { cache: self, object })
    }

    /// Gives back what is free ([`Mm::kmem_cache_shrink`]).
    pub fn shrink(&self) {
        self.handle.shrink();
    }

    /// The cache under its name.
    pub fn named(&self) -> Named {
        self.handle.named
    }

    /// The instance that it is a cache of.
    pub(super) fn mm(&self) -> &'m Mm<M> {
        self.handle.mm
    }
}

/// Where the Rust code stands that called: the address of a `Location`.
#[inline]
#[track_caller]
fn caller() -> usize {
    core::ptr::from_ref(core::panic::Location::caller()).addr()
}

/// A value in an object of a [`Cache`]; dropped, and the object freed, with it.
pub struct CacheBox<'c, M: Machine, T> {
    cache: &'c Cache<'c, M, T>,
    object: NonNull<T>,
}

// SAFETY: it owns its value, like a `Box`; the cache may be used from any thread.
unsafe impl<M: Machine, T: Send> Send for CacheBox<'_, M, T> {}
// SAFETY: likewise.
unsafe impl<M: Machine, T: Sync> Sync for CacheBox<'_, M, T> {}

impl<M: Machine, T> Deref for CacheBox<'_, M, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the object holds a value and is this box's.
        unsafe { self.object.as_ref() }
    }
}

impl<M: Machine, T> DerefMut for CacheBox<'_, M, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and the box is borrowed exclusively.
        unsafe { self.object.as_mut() }
    }
}

impl<M: Machine, T> Drop for CacheBox<'_, M, T> {
    #[inline]
    #[track_caller]
    fn drop(&mut self) {
        // SAFETY: the object holds a value that nobody uses any more.
        unsafe {
            self.object.drop_in_place();
            self.cache.handle.free(self.object, caller());
        }
    }
}

impl<M: Machine, T: fmt::Debug> fmt::Debug for CacheBox<'_, M, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        T::fmt(self, f)
    }
}

/// A type whose values are made once and used many times.
pub trait Construct: Sized {
    /// A value as its first user finds it.
    fn construct() -> Self;
}

unsafe extern "C" fn construct<T: Construct>(object: *mut u8) {
    // SAFETY: the cache gives objects of a `T`'s size and alignment that are nobody's yet.
    unsafe { object.cast::<T>().write(T::construct()) };
}

/// A cache of objects that are constructed once and keep their state while they are free: who gets one finds it as the
/// one before left it.
///
/// Safe because every object is a valid `T` from its construction on (its user can only leave a valid one behind), and
/// because it is never dropped, which types that would have to be are refused for at compile time. What is left behind
/// in one comes out of it again, so a cache is no cache of values that live shorter:
///
/// ```compile_fail
/// # use slabwright::{api::ObjectCache, machine::Machine};
/// fn shorter<'a, M: Machine>(names: &'a ObjectCache<'a, M, &'static str>) -> &'a ObjectCache<'a, M, &'a str> {
///     names
/// }
/// ```
///
/// One of values that are dropped is:
///
/// ```
/// # use slabwright::{api::Cache, machine::Machine};
/// fn shorter<'a, M: Machine>(names: &'a Cache<'a, M, &'static str>) -> &'a Cache<'a, M, &'a str> {
///     names
/// }
/// ```
pub struct ObjectCache<'m, M: Machine, T> {
    handle: Handle<'m, M>,
    values: PhantomData<fn(T) -> T>,
}

impl<'m, M: Machine, T: Construct> ObjectCache<'m, M, T> {
    /// A cache by a new name.
    ///
    /// # Errors
    /// As for [`Mm::kmem_cache_create`].
    pub fn new(mm: &'m Mm<M>, name: &str, flags: SlabFlags) -> Result<Self, AllocError> {
        const { assert!(!needs_drop::<T>(), "the values of an ObjectCache are never dropped") };
        Ok(ObjectCache { handle: Handle::make::<T>(mm, name, flags, Some(construct::<T>))?, values: PhantomData })
    }
}

impl<'m, M: Machine, T> ObjectCache<'m, M, T> {
    /// The cache that somebody, perhaps in C, made by this name with a constructor. Its objects may be larger than a
    /// `T`.
    ///
    /// # Safety
    /// Each object, as its constructor made it and as its users leave it, begins with a valid `T`, which may be sent to
    /// other threads if `T` may.
    ///
    /// # Errors
    /// [`AllocError::Invalid`]: there is none, its objects are too small or not aligned enough, or it has no
    /// constructor.
    pub unsafe fn find(mm: &'m Mm<M>, name: &str) -> Result<Self, AllocError> {
        const { assert!(!needs_drop::<T>(), "the values of an ObjectCache are never dropped") };
        Ok(ObjectCache { handle: Handle::find::<T>(mm, name, true)?, values: PhantomData })
    }

    /// An object of the cache.
    ///
    /// # Errors
    /// As for [`Cache::insert`].
    #[inline]
    #[track_caller]
    pub fn get(&self, gfp: Gfp) -> Result<CacheObject<'_, M, T>, AllocError> {
        let object = self.handle.alloc::<T>(gfp, caller())?;
        Ok(CacheObject { cache: self, object })
    }

    /// Gives back what is free ([`Mm::kmem_cache_shrink`]).
    pub fn shrink(&self) {
        self.handle.shrink();
    }

    /// The cache under its name.
    pub fn named(&self) -> Named {
        self.handle.named
    }
}

/// An object of an [`ObjectCache`]; goes back there, as it is, when dropped.
pub struct CacheObject<'c, M: Machine, T> {
    cache: &'c ObjectCache<'c, M, T>,
    object: NonNull<T>,
}

// SAFETY: as for `CacheBox`.
unsafe impl<M: Machine, T: Send> Send for CacheObject<'_, M, T> {}
// SAFETY: as for `CacheBox`.
unsafe impl<M: Machine, T: Sync> Sync for CacheObject<'_, M, T> {}
// SAFETY: objects wait in it between users on any threads, so they must be `Send`.
unsafe impl<M: Machine, T: Send> Sync for ObjectCache<'_, M, T> {}
// SAFETY: likewise.
unsafe impl<M: Machine, T: Send> Send for ObjectCache<'_, M, T> {}

impl<M: Machine, T> Deref for CacheObject<'_, M, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the object is constructed and this guard's.
        unsafe { self.object.as_ref() }
    }
}

impl<M: Machine, T> DerefMut for CacheObject<'_, M, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and the guard is borrowed exclusively.
        unsafe { self.object.as_mut() }
    }
}

impl<M: Machine, T> Drop for CacheObject<'_, M, T> {
    #[inline]
    #[track_caller]
    fn drop(&mut self) {
        // SAFETY: nobody uses the object any more.
        unsafe { self.cache.handle.free(self.object, caller()) };
    }
}

impl<M: Machine, T: fmt::Debug> fmt::Debug for CacheObject<'_, M, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        T::fmt(self, f)
    }
}
