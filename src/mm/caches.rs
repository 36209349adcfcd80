//! Caches by name: `kmem_cache_create` and what goes with it, shared by all who know the name.

use core::fmt::Write;

use super::Mm;
use crate::error::{AllocError, Defect};
use crate::gfp::Gfp;
use crate::machine::{MAX_CACHES, Machine, misuse};
use crate::slab::{CacheId, Constructor, SlabFlags};
use crate::types::{Line, Pfn};

/// Bytes of a name that are kept.
const NAME: usize = 32;

/// One name. Several may stand for one cache: those that were merged.
#[derive(Clone, Copy)]
struct Name {
    text: [u8; NAME],
    len: u8,
    /// The cache's id; 0 for a name that is not in use.
    cache: u8,
    /// Who made it or found it, and has not destroyed it yet.
    users: u16,
}

/// All names in use.
pub(super) struct Names([Name; MAX_CACHES]);

impl Names {
    pub(super) const fn new() -> Names {
        Names([Name { text: [0; NAME], len: 0, cache: 0, users: 0 }; MAX_CACHES])
    }

    fn find(&self, name: &str) -> Option<usize> {
        let name = cut(name);
        self.0.iter().position(|n| n.cache != 0 && &n.text[..n.len as usize] == name)
    }
}

/// As much of a name as is kept.
fn cut(name: &str) -> &[u8] {
    let mut len = name.len().min(NAME);
    while !name.is_char_boundary(len) {
        len -= 1;
    }
    &name.as_bytes()[..len]
}

/// A cache that somebody has by a name: what `struct kmem_cache *` is in C.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Named {
    slot: u8,
    cache: CacheId,
}

impl Named {
    /// The cache; several names may have the same.
    pub fn cache(self) -> CacheId {
        self.cache
    }

    /// Both as a number, not 0.
    pub fn to_raw(self) -> usize {
        (self.slot as usize) << 8 | self.cache.get() as usize
    }
}

impl<M: Machine> Mm<M> {
    /// Makes a cache by a name; see [`crate::slab::Slab::create`]. Where there is one by that name already, of the same
    /// size, alignment and flags and without constructors, both share it.
    ///
    /// # Errors
    /// As for [`crate::slab::Slab::create`]; [`AllocError::Invalid`] also in a context that may not sleep.
    pub fn kmem_cache_create(
        &self,
        name: &str,
        size: usize,
        align: usize,
        flags: SlabFlags,
        ctor: Option<Constructor>,
    ) -> Result<Named, AllocError> {
        self.admit(Gfp::KERNEL)?;
        self.expect_atomic(Gfp::KERNEL);
        self.bracket(Gfp::KERNEL, |gfp| {
            if !self.is_up() || !gfp.may_block() {
                return Err(AllocError::NoMemory);
            }
            let m = &self.machine;
            let mut names = self.names.lock(m);
            let Some(slot) = names.0.iter().position(|name| name.cache == 0) else { return Err(AllocError::NoMemory) };
            let cache = self.slab.create(m, name, size, align, flags, ctor)?;
            if let Some(slot) = names.find(name).filter(|slot| names.0[*slot].cache == cache.get()) {
                names.0[slot].users += 1;
                return Ok(Named { slot: slot as u8, cache });
            }
            let kept = cut(name);
            let entry = &mut names.0[slot];
            entry.text[..kept.len()].copy_from_slice(kept);
            (entry.len, entry.cache, entry.users) = (kept.len() as u8, cache.get(), 1);
            Ok(Named { slot: slot as u8, cache })
        })
    }

    /// The cache that somebody made by this name, shared with him; `None` where there is none. It is destroyed like
    /// one's own.
    pub fn kmem_cache_find(&self, name: &str) -> Option<Named> {
        self.admit(Gfp::KERNEL).ok()?;
        self.bracket(Gfp::KERNEL, |gfp| {
            let m = &self.machine;
            let mut names = self.names.acquire(m, gfp.may_block())?;
            let slot = names.find(name)?;
            let cache = self.slab.created(names.0[slot].cache)?;
            names.0[slot].users += 1;
            self.slab.share(m, cache);
            Some(Named { slot: slot as u8, cache })
        })
    }

    /// Calls `f` for every name in use with its cache, without any lock: it may allocate, and make and destroy caches.
    /// Names that share one were merged. Where it may not wait (in a handler that interrupted the allocator, in a
    /// child that lost a lock) it leaves out names whose lock is taken.
    pub fn for_each_name(&self, mut f: impl FnMut(&str, CacheId)) {
        for slot in 0..MAX_CACHES {
            let copy = self.bracket(Gfp::NOIO, |gfp| {
                let name = self.names.acquire(&self.machine, gfp.may_block())?.0[slot];
                Some((name, self.slab.created(name.cache)?))
            });
            if let Some((name, cache)) = copy {
                f(core::str::from_utf8(&name.text[..name.len as usize]).unwrap_or("?"), cache);
            }
        }
    }

    /// What [`Named::to_raw`] was made of, if it still is in use.
    pub fn kmem_cache_from_raw(&self, raw: usize) -> Option<Named> {
        let cache = self.slab.created(raw as u8).filter(|_| raw >> 8 < MAX_CACHES)?;
        Some(Named { slot: (raw >> 8) as u8, cache })
    }

    /// Gives a name up; with its cache's last user the cache goes.
    ///
    /// # Safety
    /// The name is the caller's to give up: whoever made or found it does not use it any more. (Objects that are in use
    /// are noticed, and the cache stays.)
    ///
    /// # Errors
    /// The number of objects in use, which are reported; the cache stays. 0 where it was destroyed before, which is
    /// reported, too, and, with nothing done, where locks may not be waited for: in a handler that interrupted the
    /// allocator, in a child that lost one.
    #[allow(unsafe_code)]
    pub unsafe fn kmem_cache_destroy(&self, named: Named) -> Result<(), usize> {
        if self.admit(Gfp::KERNEL).is_err() {
            return Err(0);
        }
        self.bracket(Gfp::KERNEL, |gfp| {
            if !gfp.may_block() {
                return Err(0);
            }
            let m = &self.machine;
            let mut names = self.names.lock(m);
            let entry = &mut names.0[named.slot as usize];
            if entry.cache != named.cache.get() || entry.users == 0 {
                drop(names);
                let mut line = Line::new();
                let _ = write!(line, "cache {}", named.cache.get());
                misuse(m, Defect::DoubleFree, named.to_raw(), line.as_str());
                return Err(0);
            }
            // The name goes first: nobody shall find what is about to go.
            entry.users -= 1;
            let last = entry.users == 0;
            if last {
                entry.cache = 0;
            }
            drop(names);
            // SAFETY: the caller gives his share in the name up, which stood for one in the cache: each user of a name
            // was counted there, too.
            let done = unsafe { self.slab.destroy(m, &self.pages, named.cache) };
            if done.is_err() {
                let entry = &mut self.names.lock(m).0[named.slot as usize];
                if entry.cache == 0 || entry.cache == named.cache.get() {
                    entry.cache = named.cache.get();
                    entry.users += 1;
                }
            }
            done
        })
    }

    /// A block of pages as a slab of the cache has it, or, where there is none so large, as large as an object needs
    /// (`kmem_getpages`).
    ///
    /// # Errors
    /// As for [`Mm::alloc_pages`].
    pub fn kmem_getpages(&self, cache: CacheId, gfp: Gfp, node: Option<usize>) -> Result<Pfn, AllocError> {
        let (order, least, zone) = self.slab.slab_order(cache);
        self.admit_address(gfp | zone)?;
        let light = gfp.without(Gfp::NOFAIL) | Gfp::NORETRY | Gfp::NOWARN;
        let first = self.alloc_pages(light | zone, u32::from(order.get()), node);
        if first.is_err() && least < order || first.is_err() && !gfp.has(Gfp::NORETRY) {
            return self.alloc_pages(gfp | zone, u32::from(least.get()), node);
        }
        first
    }

    /// Gives such a block back (`kmem_freepages`), by its address; null is nothing.
    ///
    /// # Safety
    /// As for [`Mm::free_pages`].
    ///
    /// # Errors
    /// As for [`Mm::free_pages`].
    #[allow(unsafe_code)]
    pub unsafe fn kmem_freepages(&self, address: *mut u8) -> Result<(), Defect> {
        let order = self.page_of(address).map_or(0, |pfn| self.machine.page(pfn).order().get());
        // SAFETY: the caller's condition.
        unsafe { self.free_pages_at(address, u32::from(order)) }
    }

    /// Gives the cache's sheaves and empty slabs back.
    pub fn kmem_cache_shrink(&self, named: Named) {
        self.bracket(Gfp::KERNEL, |gfp| {
            if gfp.may_block() {
                self.slab.shrink(&self.machine, &self.pages, Some(named.cache.get()));
            }
        });
    }

    /// An object of the cache; null where there is none. `caller` is an address or 0, for
    /// [`SlabFlags::STORE_USER`]. Objects with a constructor are never zeroed.
    #[inline]
    pub fn kmem_cache_alloc(&self, cache: CacheId, gfp: Gfp, caller: usize) -> *mut u8 {
        let object =
            if gfp.no_fault() { core::ptr::null_mut() } else { self.slab.cache_pop(&self.machine, cache, caller) };
        if object.is_null() { self.cache_alloc_slow(cache, gfp, caller) } else { object }
    }

    #[cold]
    #[inline(never)]
    fn cache_alloc_slow(&self, cache: CacheId, gfp: Gfp, caller: usize) -> *mut u8 {
        self.bracket(gfp, |gfp| {
            let (m, pages) = (&self.machine, &self.pages);
            let object = self.slab.cache_alloc(m, pages, cache, gfp, caller);
            if object.is_null() && gfp.may_block() && gfp.may_io() && self.reclaim(gfp) {
                return self.slab.cache_alloc(m, pages, cache, gfp, caller);
            }
            object
        })
    }

    /// Gives an object back to its cache; null is nothing. Never waits, and enters the system only to report what is
    /// wrong.
    ///
    /// # Safety
    /// `object` is from this allocator and not used any more.
    ///
    /// # Errors
    /// What is wrong; it was reported.
    #[allow(unsafe_code)]
    #[inline]
    pub unsafe fn kmem_cache_free(&self, cache: CacheId, object: *mut u8, caller: usize) -> Result<(), Defect> {
        if object.is_null() {
            return Ok(());
        }
        let (m, pages) = (&self.machine, &self.pages);
        // SAFETY: the caller's condition.
        if unsafe { self.slab.cache_push(m, pages, cache, object, caller)? } {
            return Ok(());
        }
        self.bracket(Gfp::ATOMIC, |gfp| {
            // SAFETY: the caller's condition; the checks were made.
            unsafe { self.slab.free_slow(m, pages, cache.get(), object, gfp) }
        });
        Ok(())
    }
}
