//! `kmem_cache_create` and `kmem_cache_destroy`.
#![allow(unsafe_code)]

use super::Slab;
use super::cache::{Cache, Constructor, FIRST_CREATED, Shape, SlabFlags, State};
use super::layout::SlabLayout;
use crate::error::{AllocError, Defect};
use crate::gfp::Gfp;
use crate::machine::{Machine, misuse};
use crate::types::PAGE_SIZE;
use crate::zone::PageAllocator;

/// A cache made by [`Slab::create`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CacheId(u8);

impl CacheId {
    /// The id as the per-CPU rows know it.
    pub fn get(self) -> u8 {
        self.0
    }
}

impl<M: Machine> Slab<M> {
    /// Makes a cache of objects of `size` bytes at `align` (0, or a power of two up to a page). A constructor runs once
    /// per object, before it is first handed out; what it set up is kept while the object is free. Caches without one, of
    /// the same shape and flags, share their slabs unless [`SlabFlags::NO_MERGE`] is set.
    ///
    /// # Errors
    /// [`AllocError::Invalid`]: size 0 or above 4 MiB, a bad alignment, an empty name. [`AllocError::NoMemory`]: all ids
    /// are taken.
    pub fn create(
        &self,
        m: &M,
        name: &str,
        size: usize,
        align: usize,
        flags: SlabFlags,
        ctor: Option<Constructor>,
    ) -> Result<CacheId, AllocError> {
        if size == 0 || name.is_empty() || !(align == 0 || align.is_power_of_two()) || align > PAGE_SIZE {
            return Err(AllocError::Invalid);
        }
        let mut align = align.max(size_of::<usize>());
        if flags.has(SlabFlags::HWCACHE_ALIGN) {
            // As the kernel does: small objects share a line evenly rather than fill one each.
            let mut line = 64;
            while size <= line / 2 {
                line /= 2;
            }
            align = align.max(line);
        }
        // A constructed object must not be written to while it is free: the deferred list's link goes behind it.
        let extra = if ctor.is_some() { 2 * size_of::<usize>() } else { 0 };
        let layout =
            SlabLayout::compute(size, align, extra, flags.has(SlabFlags::OFF_SLAB), 256).ok_or(AllocError::Invalid)?;
        let _registry = self.registry.lock(m);
        if ctor.is_none() && !flags.has(SlabFlags::NO_MERGE) {
            let twin = (FIRST_CREATED..=u8::MAX).find(|id| {
                let cache = &self.caches[*id as usize];
                cache.state() == State::Live && {
                    let shape = cache.shape();
                    shape.ctor.is_none()
                        && shape.flags == flags
                        && shape.layout.size == layout.size
                        && shape.layout.align == layout.align
                        && shape.layout.object_size as usize >= size
                }
            });
            if let Some(id) = twin {
                self.caches[id as usize].users.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
                return Ok(CacheId(id));
            }
        }
        let vacant = |id: &u8| self.caches[*id as usize].state() == State::Vacant;
        let id = (FIRST_CREATED..=u8::MAX).find(vacant).ok_or(AllocError::NoMemory)?;
        let cache = &self.caches[id as usize];
        cache.set_state(State::Changing);
        let mut text = [0; 32];
        let mut len = name.len().min(text.len());
        while !name.is_char_boundary(len) {
            len -= 1;
        }
        text[..len].copy_from_slice(&name.as_bytes()[..len]);
        // SAFETY: the state is Changing and the registry lock keeps every other maker out.
        unsafe { cache.set_shape(Shape { layout, ctor, flags, name: text, name_len: len }) };
        cache.users.store(1, core::sync::atomic::Ordering::Relaxed);
        cache.refill.store(0, core::sync::atomic::Ordering::Relaxed);
        cache.set_state(State::Live);
        Ok(CacheId(id))
    }

    /// An object of the cache; null where there is no memory.
    pub fn cache_alloc(&self, m: &M, pages: &PageAllocator<M>, cache: CacheId, gfp: Gfp) -> *mut u8 {
        // SAFETY: rows hold valid sheaves.
        let object = unsafe { m.pop(cache.0) };
        if object.is_null() { self.alloc_slow(m, pages, cache.0, gfp) } else { object }
    }

    /// Gives an object back to its cache. One of another cache is reported and otherwise left alone.
    ///
    /// # Safety
    /// `object` is from this allocator and not used any more.
    pub unsafe fn cache_free(&self, m: &M, pages: &PageAllocator<M>, cache: CacheId, object: *mut u8, gfp: Gfp) {
        match self.cache_of(m, object, gfp.may_block()) {
            Ok(id) if id == cache.0 => {
                // SAFETY: rows hold valid sheaves; the object is of this cache and the caller gives it up.
                unsafe {
                    if !m.push(cache.0, object) {
                        self.free_slow(m, pages, cache.0, object, gfp);
                    }
                }
            }
            Ok(_) => misuse(m, Defect::WrongCache, object.addr(), self.name(cache.0)),
            Err(defect) => misuse(m, defect, object.addr(), self.name(cache.0)),
        }
    }

    /// Ends one user's share in a cache; with the last one its memory goes back.
    ///
    /// # Errors
    /// The number of objects still out; they are reported, and the cache stays.
    pub fn destroy(&self, m: &M, pages: &PageAllocator<M>, cache: CacheId) -> Result<(), usize> {
        let descriptor = &self.caches[cache.0 as usize];
        {
            let _registry = self.registry.lock(m);
            let users = descriptor.users.load(core::sync::atomic::Ordering::Relaxed);
            if users > 1 {
                descriptor.users.store(users - 1, core::sync::atomic::Ordering::Relaxed);
                return Ok(());
            }
        }
        self.shrink(m, pages, Some(cache.0));
        let objects = self.layout(cache.0).objects as u64;
        let out = |cache: &Cache| -> u64 {
            cache
                .nodes()
                .map(|node| {
                    let slabs = node.slabs.lock(m);
                    u64::from(slabs.slabs) * objects - slabs.free
                })
                .sum()
        };
        let remain = out(descriptor) as usize;
        if remain > 0 {
            misuse(m, Defect::ObjectsRemain, remain, self.name(cache.0));
            return Err(remain);
        }
        let _registry = self.registry.lock(m);
        descriptor.set_state(State::Vacant);
        Ok(())
    }
}
