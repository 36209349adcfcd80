//! Requests with a GFP word of their own: what `kmalloc` has beyond `malloc`.
#![allow(unsafe_code)]

use core::fmt::Write;
use core::ptr;
use core::sync::atomic::{AtomicU8, Ordering};

use super::{Left, Mm, TINY};
use crate::gfp::Gfp;
use crate::machine::Machine;
use crate::slab::classes::{MAX_SMALL, NR_CLASSES, class_align, class_of, class_size};
use crate::slab::slob;
use crate::slab::{CacheId, SlabFlags, clear_mark, run_of_tag};
use crate::types::{Line, Order, PAGE_SIZE};

/// The caches of small objects with low addresses, by zone (DMA, DMA32) and size class: made when first asked for. 0 is
/// none yet.
pub(super) struct LowClasses([[AtomicU8; NR_CLASSES + 1]; 2]);

impl LowClasses {
    pub(super) const fn new() -> LowClasses {
        LowClasses([const { [const { AtomicU8::new(0) }; NR_CLASSES + 1] }; 2])
    }
}

impl<M: Machine> Mm<M> {
    /// `size` bytes (0 is served as 1) from where and how `gfp` says, aligned as by [`Mm::alloc`]; null where there are
    /// none. The word was checked ([`Gfp::check`]). Where the machine's frames are its own they are adjacent, as a
    /// kernel's are, so that no more than [`Mm::MOST_ADJACENT`] can be had; hosted only the addresses are, and any size
    /// may be had.
    #[inline]
    pub fn kmalloc(&self, size: usize, gfp: Gfp) -> *mut u8 {
        let special = gfp.no_fault() || gfp.is_low();
        let mut block = if special { ptr::null_mut() } else { self.alloc_fast(size) };
        if block.is_null() {
            self.expect_atomic(gfp);
            block = if gfp.is_low() {
                self.alloc_low(size, gfp)
            } else if M::OWNS_FRAMES && size > MAX_SMALL {
                self.alloc_adjacent(size, gfp)
            } else {
                self.alloc_slow(size, gfp)
            };
        }
        if gfp.has(Gfp::ZERO) && size <= MAX_SMALL && !block.is_null() {
            // All of it, as `krealloc` may grow it in place.
            // SAFETY: the block is ours, and as long as that.
            unsafe { ptr::write_bytes(block, 0, self.usable_size(block)) };
        }
        block
    }

    /// [`Mm::kmalloc`] preferably from `node`; with `__GFP_THISNODE` from nowhere else.
    pub fn kmalloc_node(&self, size: usize, gfp: Gfp, node: usize) -> *mut u8 {
        let node = node % self.machine.nr_nodes().max(1);
        let block = self.bracket(gfp, |gfp| {
            let (m, pages) = (&self.machine, &self.pages);
            if !self.is_up() {
                ptr::null_mut()
            } else if gfp.no_fault() && !gfp.has(Gfp::THISNODE) {
                self.alloc_atomic(size, gfp)
            } else if TINY && size <= slob::MAX && (m.nr_nodes() == 1 || !gfp.has(Gfp::THISNODE)) {
                // First fit knows no nodes: a machine so small has one. Who insists gets pages.
                self.alloc_tiny(size, 16, gfp)
            } else if !TINY && size <= MAX_SMALL {
                let id = class_of(size);
                let object = self.slab.alloc_node(m, pages, id, gfp, node);
                if !object.is_null() {
                    // SAFETY: the object is ours and of that class.
                    unsafe { clear_mark(object) };
                }
                object
            } else if size <= Self::MOST_ADJACENT {
                self.alloc_run(size, 1, gfp, Some(node))
            } else if M::OWNS_FRAMES {
                ptr::null_mut()
            } else {
                self.alloc_large(size, 1, gfp)
            }
        });
        if gfp.has(Gfp::ZERO) && size <= MAX_SMALL && !block.is_null() {
            // SAFETY: as in `kmalloc`.
            unsafe { ptr::write_bytes(block, 0, self.usable_size(block)) };
        }
        block
    }

    /// Gives a block another size (`krealloc`): null is an allocation, size 0 a free (null is returned then).
    /// With `__GFP_ZERO` what lies behind the old contents, or behind the new size, reads zero, if that was so before
    /// (each call for the block had the flag). Null without memory, and then the block is as it was. May copy where
    /// [`Mm::realloc`] would not: if the word asks for low addresses, or does not allow to enter the system.
    ///
    /// # Safety
    /// As for [`Mm::free`].
    pub unsafe fn krealloc(&self, block: *mut u8, size: usize, gfp: Gfp) -> *mut u8 {
        if block.is_null() {
            return self.kmalloc(size, gfp);
        }
        // SAFETY: the caller's condition; what is copied or zeroed lies in blocks that are live and ours.
        unsafe {
            if size == 0 {
                self.kfree(block);
                return ptr::null_mut();
            }
            let old = self.usable_size(block);
            let adjacent = M::OWNS_FRAMES && size > MAX_SMALL;
            let copies = adjacent || gfp.is_low() || gfp.no_fault() || !gfp.may_io() || !gfp.may_block();
            let new = if copies && size <= old && !gfp.is_low() {
                block
            } else if copies {
                let new = self.kmalloc(size, gfp.without(Gfp::ZERO));
                if !new.is_null() {
                    ptr::copy_nonoverlapping(block, new, old.min(size));
                    self.kfree(block);
                }
                new
            } else {
                self.realloc(block, size)
            };
            if gfp.has(Gfp::ZERO) && !new.is_null() {
                let kept = old.min(size);
                ptr::write_bytes(new.add(kept), 0, self.usable_size(new) - kept);
            }
            new
        }
    }

    /// Frees a block; null is nothing. Unlike [`Mm::free`] it never waits and never enters the system, but where a free
    /// looks wrong: it is for any context, as `kfree` is.
    ///
    /// # Safety
    /// As for [`Mm::free`].
    #[inline]
    pub unsafe fn kfree(&self, block: *mut u8) {
        // SAFETY: the caller's condition.
        unsafe {
            if self.free_fast(block) == Left::Nothing {
                return;
            }
            match self.machine.class_at(block) {
                0 if block.is_null() => {}
                _ if self.free_tagged(block, Gfp::ATOMIC) => {}
                tag if tag == 0 || run_of_tag(tag).is_some() => {
                    let _ = self.bracket(Gfp::ATOMIC, |gfp| self.free_large(block, gfp));
                }
                tag => self.free_small(tag, block, Gfp::ATOMIC),
            }
        }
    }

    /// A program that uses the kernel's calls may make atomic requests: the first call that may sleep fills the reserve
    /// for them.
    #[inline]
    pub(super) fn expect_atomic(&self, gfp: Gfp) {
        if gfp.may_block() && gfp.may_io() && !self.pages.expects_atomic() {
            self.fill_atomic_reserve();
        }
    }

    #[cold]
    fn fill_atomic_reserve(&self) {
        self.bracket(Gfp::KERNEL, |gfp| {
            if self.is_up() && gfp.may_block() {
                self.pages.expect_atomic(&self.machine);
            }
        });
    }

    /// An atomic request: from what is populated, or nothing.
    #[cold]
    pub(super) fn alloc_atomic(&self, size: usize, gfp: Gfp) -> *mut u8 {
        let (m, pages) = (&self.machine, &self.pages);
        if !self.is_up() {
            return ptr::null_mut();
        }
        if TINY && size <= slob::MAX {
            let block = self.alloc_tiny(size, 16, gfp);
            if !block.is_null() {
                return block;
            }
            // Whom we interrupted has the lock: a whole page, then.
        }
        if TINY || size > MAX_SMALL {
            return if size <= Order::MAX.bytes() { self.alloc_run(size, 1, gfp, None) } else { ptr::null_mut() };
        }
        let first = class_of(size);
        // Whom we interrupted may hold what this class needs; a larger one, as well aligned, may have something.
        let align = class_align(first as usize);
        let classes = (first..=NR_CLASSES as u8).filter(|id| class_align(*id as usize) >= align);
        for id in classes.take(ATOMIC_CLASSES) {
            let object = self.slab.alloc_atomic(m, pages, id, gfp);
            if !object.is_null() {
                // SAFETY: the object is ours and of that class.
                unsafe { clear_mark(object) };
                return object;
            }
        }
        ptr::null_mut()
    }

    /// Keeps `bytes` of memory populated for atomic requests from now on, and touches what such requests touch of the
    /// allocator's own. Returns the bytes that are kept now.
    pub fn keep_reserve(&self, bytes: usize) -> usize {
        self.bracket(Gfp::KERNEL, |gfp| {
            if !self.is_up() || !gfp.may_block() {
                return 0;
            }
            self.slab.touch(&self.machine);
            self.machine.populate_own();
            let pages = u32::try_from(bytes.div_ceil(PAGE_SIZE)).unwrap_or(u32::MAX);
            self.pages.keep_reserve(&self.machine, pages) as usize * PAGE_SIZE
        })
    }

    /// Most bytes that adjacent frames may serve: the kernel's `KMALLOC_MAX_SIZE`.
    pub const MOST_ADJACENT: usize = Order::MAX.bytes();

    /// More than a class serves, in adjacent frames.
    fn alloc_adjacent(&self, size: usize, gfp: Gfp) -> *mut u8 {
        if size > Self::MOST_ADJACENT {
            return ptr::null_mut();
        }
        let run = || self.alloc_run(size, 1, gfp, None);
        self.bracket(gfp, |gfp| {
            let block = if self.is_up() { run() } else { ptr::null_mut() };
            if block.is_null() && gfp.may_block() && self.reclaim(gfp) { run() } else { block }
        })
    }

    /// A block with a low address.
    #[cold]
    fn alloc_low(&self, size: usize, gfp: Gfp) -> *mut u8 {
        self.bracket(gfp, |gfp| {
            if !self.is_up() {
                return ptr::null_mut();
            }
            if size > MAX_SMALL {
                return self.alloc_large(size, 1, gfp);
            }
            match self.low_class(size, gfp) {
                Some(cache) => self.slab.cache_alloc(&self.machine, &self.pages, cache, gfp.without(Gfp::ZERO), 0),
                None => ptr::null_mut(),
            }
        })
    }

    /// The cache for small objects of `size` bytes with low addresses (the kernel's `dma-kmalloc-*`).
    fn low_class(&self, size: usize, gfp: Gfp) -> Option<CacheId> {
        let dma = gfp.has(Gfp::DMA);
        // Two words at least, for the mark.
        let class = class_of(size.max(16)) as usize;
        let slot = &self.low.0[usize::from(!dma)][class];
        if let Some(cache) = self.slab.created(slot.load(Ordering::Acquire)) {
            return Some(cache);
        }
        if !gfp.may_block() {
            return None;
        }
        let mut name = Line::new();
        let _ = write!(name, "{}-kmalloc-{}", if dma { "dma" } else { "dma32" }, class_size(class));
        let zone = if dma { SlabFlags::CACHE_DMA } else { SlabFlags::CACHE_DMA32 };
        let flags = zone.with(SlabFlags::NO_MERGE);
        // A created cache aligns to a page at most; larger powers of two fill their slabs, and so are aligned to
        // themselves.
        let align = class_align(class).min(PAGE_SIZE);
        let made = self.slab.create(&self.machine, name.as_str(), class_size(class), align, flags, None);
        let made = made.ok()?;
        match slot.compare_exchange(0, made.get(), Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Some(made),
            Err(other) => {
                // SAFETY: made above, and nobody was told of it.
                let _ = unsafe { self.slab.destroy(&self.machine, &self.pages, made) };
                self.slab.created(other)
            }
        }
    }
}

/// Classes that an atomic request tries.
const ATOMIC_CLASSES: usize = 4;
