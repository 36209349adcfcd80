//! `kmem_cache_create` and `kmem_cache_destroy`.
#![allow(unsafe_code)]

use core::fmt::Write;
use core::sync::atomic::Ordering::Relaxed;

use super::Slab;
use super::cache::{Constructor, FIRST_CREATED, Shape, SlabFlags, State};
use super::layout::SlabLayout;
use crate::error::{AllocError, Defect};
use crate::gfp::Gfp;
use crate::machine::{MAX_CACHES, Machine, misuse};
use crate::types::{Line, Order, PAGE_SIZE};
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

/// Most objects named in the report of a cache that is destroyed too early.
const NAMED: usize = 6;

impl<M: Machine> Slab<M> {
    /// Makes a cache of objects of `size` bytes at `align` (0, or a power of two up to a page). A constructor runs once
    /// per object, before it is first handed out; what it set up is kept while the object is free. Caches without one,
    /// of the same shape and flags, share their slabs unless [`SlabFlags::NO_MERGE`] or a check is set.
    ///
    /// # Errors
    /// [`AllocError::Invalid`]: size 0 or above 4 MiB, a bad alignment, an empty name, flags that do not exist or
    /// contradict each other. [`AllocError::NoMemory`]: all ids are taken.
    pub fn create(
        &self,
        m: &M,
        name: &str,
        size: usize,
        align: usize,
        flags: SlabFlags,
        ctor: Option<Constructor>,
    ) -> Result<CacheId, AllocError> {
        let made = self.try_create(m, name, size, align, flags, ctor);
        if let Err(error) = made
            && flags.has(SlabFlags::PANIC)
        {
            let mut line = Line::new();
            let _ = write!(line, "slabwright: cannot make cache {name}: {error}");
            m.line(line.as_str());
            m.abort();
        }
        made
    }

    fn try_create(
        &self,
        m: &M,
        name: &str,
        size: usize,
        align: usize,
        flags: SlabFlags,
        ctor: Option<Constructor>,
    ) -> Result<CacheId, AllocError> {
        let aligned = align == 0 || align.is_power_of_two() && align <= PAGE_SIZE;
        if size == 0 || size > Order::MAX.bytes() || name.is_empty() || !aligned || !flags.is_valid() {
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
        let (layout, meta) = SlabLayout::created(size, align, flags, ctor.is_some()).ok_or(AllocError::Invalid)?;
        let _registry = self.registry.lock(m);
        if ctor.is_none() && flags.merges() {
            let twin = (FIRST_CREATED..MAX_CACHES as u8).find(|id| {
                let cache = self.cache(*id);
                // One without users is about to go.
                cache.state() == State::Live && cache.users.load(Relaxed) > 0 && {
                    let shape = cache.shape();
                    shape.ctor.is_none()
                        && shape.flags.alike(flags)
                        && shape.layout.size == layout.size
                        && shape.layout.align == layout.align
                        && shape.layout.object_size as usize >= size
                }
            });
            if let Some(id) = twin {
                self.cache(id).users.fetch_add(1, Relaxed);
                return Ok(CacheId(id));
            }
        }
        let vacant = |id: &u8| self.cache(*id).state() == State::Vacant;
        let id = (FIRST_CREATED..MAX_CACHES as u8).find(vacant).ok_or(AllocError::NoMemory)?;
        let cache = self.cache(id);
        cache.set_state(State::Changing);
        let mut text = [0; 32];
        let mut len = name.len().min(text.len());
        while !name.is_char_boundary(len) {
            len -= 1;
        }
        text[..len].copy_from_slice(&name.as_bytes()[..len]);
        let shape = Shape { layout, ctor, flags, meta: meta as u32, name: text, name_len: len };
        // SAFETY: the state is Changing and the registry lock keeps every other maker out.
        unsafe { cache.set_shape(shape) };
        cache.users.store(1, Relaxed);
        cache.refill.store(0, Relaxed);
        cache.atomic.store(false, Relaxed);
        self.highest.fetch_max(id, Relaxed);
        cache.set_state(State::Live);
        self.touch_cache(m, id);
        Ok(CacheId(id))
    }

    /// The created cache with the id `id`; `None` for a size class and for an id that is not in use.
    pub fn created(&self, id: u8) -> Option<CacheId> {
        let cache = self.caches.get(usize::from(id)).filter(|_| id >= FIRST_CREATED)?;
        (cache.state() == State::Live).then_some(CacheId(id))
    }

    /// Flags, bytes and alignment that a cache was made with, and whether it has a constructor.
    pub fn made_with(&self, cache: CacheId) -> (SlabFlags, usize, usize, bool) {
        let shape = self.cache(cache.0).shape();
        (shape.flags, shape.layout.object_size as usize, shape.layout.align as usize, shape.ctor.is_some())
    }

    /// Pages of a cache's slab as orders, and of the least block that holds an object; and the zone modifier of both.
    pub fn slab_order(&self, cache: CacheId) -> (Order, Order, Gfp) {
        let shape = self.cache(cache.0).shape();
        let least = Order::holding((shape.layout.size as usize).div_ceil(PAGE_SIZE)).unwrap_or(shape.layout.order);
        (shape.layout.order, least.min(shape.layout.order), shape.flags.gfp())
    }

    /// One more user of a cache, who will [`Slab::destroy`] it, too.
    pub fn share(&self, m: &M, cache: CacheId) {
        let _registry = self.registry.lock(m);
        self.cache(cache.0).users.fetch_add(1, Relaxed);
    }

    /// Ends one user's share in a cache; with the last one its memory goes back.
    ///
    /// # Safety
    /// The share is the caller's (from [`Slab::create`] or [`Slab::share`]), who uses neither it nor copies of the id
    /// any more: the next cache may have the same. (Objects that are still out are noticed.)
    ///
    /// # Errors
    /// The number of objects still out; they are reported, and the cache stays.
    pub unsafe fn destroy(&self, m: &M, pages: &PageAllocator<M>, cache: CacheId) -> Result<(), usize> {
        let descriptor = self.cache(cache.0);
        {
            let _registry = self.registry.lock(m);
            let users = descriptor.users.load(Relaxed);
            descriptor.users.store(users.saturating_sub(1), Relaxed);
            if users > 1 {
                return Ok(());
            }
        }
        let (mut remain, mut through) = (0, false);
        self.hands.repeat_alone(m, || {
            through = self.shrink(m, pages, Some(cache.0));
            remain = self.objects_out(m, cache);
            remain == 0 && through
        });
        if remain > 0 && through {
            descriptor.users.store(1, Relaxed);
            self.report_remaining(m, pages, cache, remain);
            return Err(remain);
        }
        {
            let _registry = self.registry.lock(m);
            descriptor.set_state(State::Ending);
        }
        // Who shrinks all caches may still have its last slabs, or be looking at it: by its shape, which the next one
        // of this id changes.
        self.hands.announce();
        // A sheaf that is left in a row would be taken for one of the next cache of this id, and who waited for too
        // long for a hand that goes on with its slabs: the id is not given to another one then. (Rows are out of reach
        // where the program confined itself.)
        if through && self.hands.wait(m) {
            let _registry = self.registry.lock(m);
            descriptor.set_state(State::Vacant);
        }
        Ok(())
    }

    /// Objects that are not free in their slabs: with users, or in sheaves.
    pub fn objects_out(&self, m: &M, cache: CacheId) -> usize {
        let objects = u64::from(self.layout(cache.0).objects);
        let out = self.nodes_of(m, cache.0).map(|node| {
            let slabs = node.locked(m);
            u64::from(slabs.slabs) * objects - slabs.free
        });
        out.sum::<u64>() as usize
    }

    /// Says which objects are still out, and where they were allocated if that is known.
    #[cold]
    fn report_remaining(&self, m: &M, pages: &PageAllocator<M>, cache: CacheId, remain: usize) {
        let mut line = Line::new();
        let _ = write!(line, "{}: {remain} left", self.name(cache.0));
        let (mut first, mut named) = (0, 0);
        self.for_each_live(m, pages, cache, &mut |object| {
            if named < NAMED {
                let _ = write!(line, "{} {object:p}", if named == 0 { "," } else { "" });
                self.write_origin(cache.0, object, &mut line);
            }
            first = if named == 0 { object.addr() } else { first };
            named += 1;
        });
        if named > NAMED {
            let _ = write!(line, " ...");
        }
        misuse(m, Defect::ObjectsRemain, first, line.as_str());
    }
}
