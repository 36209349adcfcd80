//! `malloc`, `calloc`, `aligned_alloc` and `free`: which layer a request goes to.
#![allow(unsafe_code)]

use core::ptr;
use core::sync::atomic::Ordering;

use super::large::RUN_STEP;
use super::reserve::Reserve;
use super::{Left, Mm, TINY};
use crate::error::Defect;
use crate::gfp::Gfp;
use crate::machine::{Machine, misuse};
use crate::slab::classes::{
    MAX_SMALL, NR_CLASSES, class_align, class_aligned, class_of, class_of_layout, class_of_small, class_size,
};
use crate::slab::{class_of_tag, clear_mark, is_dense, mark_of, place, run_of_tag, slob, starts_object};
use crate::types::PAGE_SIZE;

impl<M: Machine> Mm<M> {
    /// `size` bytes (0 is served as 1), aligned to 16 from 16 bytes on, to 8 below; null where there is no memory.
    #[inline(always)]
    pub fn alloc(&self, size: usize) -> *mut u8 {
        let object = self.alloc_fast(size);
        if object.is_null() { self.alloc_rest(size) } else { object }
    }

    /// What is left of [`Mm::alloc`]. (The process's allocator does the two things itself, so that neither needs a
    /// stack frame.)
    #[cold]
    #[inline(never)]
    fn alloc_rest(&self, size: usize) -> *mut u8 {
        let block = self.alloc_run_fast(size);
        if block.is_null() { self.alloc_slow(size, Gfp::MALLOC) } else { block }
    }

    /// [`Mm::alloc`] as far as this CPU's main sheaf serves it; null where the slow path has to be asked.
    #[inline(always)]
    pub fn alloc_fast(&self, size: usize) -> *mut u8 {
        if size < self.small.load(Ordering::Acquire) {
            // SAFETY: `small` is never more than one above the largest small size.
            return self.slab.pop(&self.machine, unsafe { class_of_small(size) });
        }
        ptr::null_mut()
    }

    /// [`Mm::alloc`] past the fast path, with the caller's GFP word.
    #[cold]
    #[inline(never)]
    pub fn alloc_slow(&self, size: usize, gfp: Gfp) -> *mut u8 {
        let closed = self.small.load(Ordering::Acquire) == 0;
        let small = if gfp.no_fault() || closed && !self.answers(gfp) { 0 } else { MAX_SMALL + 1 };
        if size < small {
            let id = class_of(size);
            // What a knock kept from the fast path; else a disturbed section, or a machine whose sections are locks: no
            // need for more than another attempt.
            let object = if closed { self.slab.pop(&self.machine, id) } else { ptr::null_mut() };
            if !object.is_null() {
                return object;
            }
            let object = self.slab.pop_again(&self.machine, id);
            if !object.is_null() {
                return object;
            }
        } else if small != 0 {
            let block = self.alloc_kept_run(size, gfp);
            if !block.is_null() {
                return block;
            }
        }
        self.come();
        self.bracket(gfp, |gfp| {
            if gfp.no_fault() {
                return self.alloc_atomic(size, gfp);
            }
            if TINY && size <= slob::MAX {
                return self.alloc_tiny(size, if size < 16 { 8 } else { 16 }, gfp);
            }
            if !TINY && size <= MAX_SMALL {
                return self.alloc_class(class_of(size), gfp);
            }
            self.alloc_large(size, 1, gfp)
        })
    }

    /// A small block by first fit.
    pub(super) fn alloc_tiny(&self, size: usize, align: usize, gfp: Gfp) -> *mut u8 {
        if !self.is_up() {
            return ptr::null_mut();
        }
        let block = self.slob.alloc(&self.machine, &self.pages, size, align, gfp);
        if block.is_null() && gfp.may_block() && self.reclaim(gfp) {
            return self.slob.alloc(&self.machine, &self.pages, size, align, gfp);
        }
        block
    }

    /// See [`PerCpu::sees_threads`](crate::machine::PerCpu::sees_threads).
    #[inline(always)]
    pub fn sees_threads(&self) -> bool {
        self.machine.sees_threads()
    }

    /// [`Mm::alloc_zeroed`] where several threads were just seen.
    #[cold]
    #[inline(never)]
    fn alloc_for_threads(&self, size: usize) -> *mut u8 {
        self.machine.notice_threads();
        self.alloc_zeroed(size)
    }

    /// `size` zeroed bytes, aligned as by [`Mm::alloc`]. Memory that is known to read zero is not written to.
    #[inline]
    pub fn alloc_zeroed(&self, size: usize) -> *mut u8 {
        if size > MAX_SMALL {
            return self.alloc_slow(size, Gfp::MALLOC | Gfp::ZERO);
        }
        if self.sees_threads() {
            return self.alloc_for_threads(size);
        }
        let object = self.alloc(size);
        if !object.is_null() {
            // All that `usable_size` admits to, as other allocators do it.
            // SAFETY: the object is ours, of that class, or as long as that.
            unsafe {
                let usable = match class_of_tag(self.machine.class_at(object)) {
                    // First fit's, or one of a low zone, which the map does not know.
                    0 => self.usable_size(object),
                    id => class_size(id as usize),
                };
                ptr::write_bytes(object, 0, usable);
            }
        }
        object
    }

    /// [`Mm::alloc_aligned`] as far as this CPU's main sheaf serves it; null where the slow path has to be asked.
    #[inline(always)]
    pub fn alloc_aligned_fast(&self, size: usize, align: usize) -> *mut u8 {
        if size < self.small.load(Ordering::Acquire)
            && let Some(id) = class_aligned(size, align)
        {
            return self.slab.pop(&self.machine, id);
        }
        ptr::null_mut()
    }

    /// `size` bytes at a multiple of `align`, a power of two; null where there is no memory.
    #[inline]
    pub fn alloc_aligned(&self, size: usize, align: usize, zero: bool) -> *mut u8 {
        debug_assert!(align.is_power_of_two());
        // Runs and areas start at cache lines.
        if align <= 8 || align == 16 && size >= 16 || align <= RUN_STEP && size > MAX_SMALL {
            return if zero { self.alloc_zeroed(size) } else { self.alloc(size) };
        }
        let Some(id) = class_aligned(size, align).filter(|_| !TINY) else {
            let gfp = if zero { Gfp::MALLOC | Gfp::ZERO } else { Gfp::MALLOC };
            if !TINY && !zero && align <= PAGE_SIZE && self.is_open(gfp) {
                let block = self.alloc_run_at_page(size);
                if !block.is_null() {
                    return block;
                }
            }
            self.come();
            return self.bracket(gfp, |gfp| {
                if !TINY || size > slob::MAX || align > slob::MAX {
                    return self.alloc_large(size, align, gfp);
                }
                let block = self.alloc_tiny(size, align, gfp);
                if zero && !block.is_null() {
                    // SAFETY: the block is ours and at least `size` bytes long.
                    unsafe { ptr::write_bytes(block, 0, size) };
                }
                block
            });
        };
        let mut object = self.alloc_aligned_fast(size, align);
        if object.is_null() && self.is_open(Gfp::MALLOC) {
            object = self.slab.pop_again(&self.machine, id);
        }
        if object.is_null() {
            self.come();
            object = self.bracket(Gfp::MALLOC, |gfp| self.alloc_class(id, gfp));
        }
        if zero && !object.is_null() {
            // SAFETY: the object is ours, of that class, and at least `size` bytes long.
            unsafe { ptr::write_bytes(object, 0, size) };
        }
        object
    }

    /// Frees a block. Null is nothing to free; misuse is reported.
    ///
    /// # Safety
    /// `block` came from this allocator and is not used any more. (Violations that are noticed are reported; not all
    /// can be.)
    #[inline(always)]
    pub unsafe fn free(&self, block: *mut u8) {
        // SAFETY: the caller's condition.
        unsafe {
            match self.free_fast(block) {
                Left::Nothing => {}
                Left::Run(tag) => self.free_run_at(block, tag),
                Left::Rest => self.free_rest(block),
            }
        }
    }

    /// [`Mm::free`] as far as the current CPU's main sheaf takes the block, and what has to be asked where it does not.
    ///
    /// # Safety
    /// As for [`Mm::free`].
    #[inline(always)]
    pub unsafe fn free_fast(&self, block: *mut u8) -> Left {
        let Some(tag) = self.machine.mapped_class_at(block) else { return Left::Rest };
        let Some(place) = place(tag, block.addr()) else { return Left::Run(tag) };
        // SAFETY: the caller's condition.
        if unsafe { self.slab.push_tagged(&self.machine, tag, place, block) } { Left::Nothing } else { Left::Rest }
    }

    /// [`Mm::free`] of a block in a page of which the map says `tag`: that of no slab.
    ///
    /// # Safety
    /// As for [`Mm::free`].
    #[inline(always)]
    pub unsafe fn free_run_at(&self, block: *mut u8, tag: u8) {
        let head = self.machine.known_pfn(block);
        if !self.free_tagged_at(block, head, tag, Gfp::MALLOC) {
            // SAFETY: the caller's condition.
            unsafe { self.free_rest(block) }
        }
    }

    /// [`Mm::free_fast`] for a block of `size` bytes at `align`, as they were asked for: the class needs no look-up,
    /// unless CPUs may share its cache lines.
    ///
    /// # Safety
    /// As for [`Mm::free`], and `size` and `align` are those of the allocation.
    #[inline(always)]
    pub unsafe fn free_sized_fast(&self, block: *mut u8, size: usize, align: usize) -> bool {
        let id = if TINY { 0 } else { class_of_layout(size, align) };
        if is_dense(id) && !self.machine.looks_below() {
            // It may be another CPU's, which the page tells.
            // SAFETY: the caller's condition.
            return matches!(unsafe { self.free_fast(block) }, Left::Nothing);
        }
        // SAFETY: the caller's condition: the block is an object of that class (or of a larger one, which serves as
        // well).
        id != 0 && unsafe { self.slab.push(&self.machine, id, block) }
    }

    /// Frees a block of `size` bytes at `align`, as they were asked for.
    ///
    /// # Safety
    /// As for [`Mm::free_sized_fast`].
    #[inline(always)]
    pub unsafe fn free_sized(&self, block: *mut u8, size: usize, align: usize) {
        // SAFETY: the caller's condition.
        unsafe {
            if !self.free_sized_fast(block, size, align) {
                self.free_slow(block);
            }
        }
    }

    /// [`Mm::free`] past the fast path.
    ///
    /// # Safety
    /// As for [`Mm::free`].
    #[cold]
    #[inline(never)]
    pub unsafe fn free_slow(&self, block: *mut u8) {
        if self.free_tagged(block, Gfp::MALLOC) {
            return;
        }
        // SAFETY: the caller's condition.
        unsafe { self.free_rest(block) }
    }

    /// Frees what is no run that the page-class map tells. Of its own, as the way of those needs no stack frame.
    ///
    /// # Safety
    /// As for [`Mm::free`].
    #[inline(never)]
    pub unsafe fn free_rest(&self, block: *mut u8) {
        let tag = self.machine.class_at(block);
        if tag == 0 || run_of_tag(tag).is_some() {
            return self.free_other(block);
        }
        // SAFETY: the caller's condition.
        unsafe { self.free_small(tag, block, Gfp::MALLOC) }
    }

    /// Frees an object of a size class that the current CPU's main sheaf did not take.
    ///
    /// # Safety
    /// As for [`Mm::free`]; `tag` is that of the block's page.
    pub(super) unsafe fn free_small(&self, tag: u8, block: *mut u8, gfp: Gfp) {
        let id = class_of_tag(tag);
        // SAFETY: where an object starts is the word of its mark; the caller gives the object up.
        unsafe {
            let m = &self.machine;
            let starts = starts_object(tag, block.addr());
            // As in the fast path without a look at the mark, which would wait for its line.
            if starts && self.slab.push_foreign(m, tag, block) {
                return;
            }
            let suspect = !starts || mark_of(block).read() == self.slab.key();
            if suspect || self.slab.is_fresh(m, block) {
                return self.free_suspect(id, block);
            }
            // As in `alloc_slow`.
            if !self.slab.push_slow(m, tag, block) {
                self.bracket(gfp, |gfp| self.slab.free_slow(m, &self.pages, id, block, gfp));
            }
        }
    }

    /// The object looks as if it were free already, or the pointer as if it were none of ours.
    #[cold]
    pub(super) fn free_suspect(&self, id: u8, block: *mut u8) {
        self.bracket(Gfp::MALLOC, |gfp| {
            let (m, pages) = (&self.machine, &self.pages);
            let double = gfp.may_block() && self.slab.starts_object(m, block) && self.slab.is_free(m, pages, id, block);
            let found = if double { Err(Defect::DoubleFree) } else { self.slab.cache_of(m, block, gfp.may_block()) };
            match found {
                Err(defect) => misuse(m, defect, block.addr(), self.slab.name(id)),
                // SAFETY: an object of that cache that is not free; the caller of `free` gives it up.
                Ok(id) => unsafe { self.slab.free_slow(m, pages, id, block, gfp) },
            }
        });
    }

    /// Frees what is no object of a size class.
    fn free_other(&self, block: *mut u8) {
        if block.is_null() {
            return;
        }
        if !self.is_up() {
            misuse(&self.machine, Defect::Foreign, block.addr(), "nothing was allocated yet");
            return;
        }
        if self.free_run_fast(block) {
            return;
        }
        let _ = self.bracket(Gfp::MALLOC, |gfp| self.free_large(block, gfp));
    }

    /// An object of size class `id`, its mark cleared.
    fn alloc_class(&self, id: u8, gfp: Gfp) -> *mut u8 {
        if !self.is_up() {
            return ptr::null_mut();
        }
        let (m, pages) = (&self.machine, &self.pages);
        let mut object = self.slab.alloc_slow(m, pages, id, gfp);
        if object.is_null() && gfp.may_block() && self.reclaim(gfp) {
            object = self.slab.alloc_slow(m, pages, id, gfp);
        }
        if object.is_null() && !gfp.may_block() {
            // Whom we interrupted holds what this class needs; a larger class, as well aligned, will have something.
            let align = class_align(id as usize);
            let others = || (id..=NR_CLASSES as u8).filter(|id| class_align(*id as usize) >= align);
            object = others()
                .map(|id| self.slab.pop(m, id))
                .find(|o| !o.is_null())
                .or_else(|| others().skip(1).map(|id| self.slab.alloc_direct(m, pages, id, gfp)).find(|o| !o.is_null()))
                .unwrap_or(ptr::null_mut());
            if object.is_null() && id <= Reserve::class() {
                object = self.reserve.take();
            }
        }
        if !object.is_null() {
            // SAFETY: the object is ours and of that class, or of a larger one.
            unsafe { clear_mark(object) };
        }
        object
    }
}
