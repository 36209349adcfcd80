//! Changing a block's size: in place, by moving frames, and by copying only where little is to be copied.
//!
//! Whether an object may pass for one of a smaller class is a bit of a table; to work out the alignments of both at each call took a tenth of what
//! `strings` spends in the allocator (72.3 in place of 74.7 ms). The whole of it inlined in C's `realloc`: no faster.

#![allow(unsafe_code)]

use core::ptr;

use super::Mm;
use super::large::Block;
use crate::error::Defect;
use crate::gfp::Gfp;
use crate::machine::{Machine, misuse};
use crate::slab::classes::{MAX_SMALL, class_of, class_size, stands_for};
use crate::slab::runs::{run_pages, starts_run};
use crate::slab::{class_of_tag, run_of_tag, starts_object};
use crate::types::PAGE_SIZE;

/// A block that grows beyond this becomes a vmalloc area, which from then on moves without copying.
const COPY_LIMIT: usize = 1 << 20;

impl<M: Machine> Mm<M> {
    /// Bytes that may be used at `block`, at least what was asked for; 0 for null. A pointer that is no block is
    /// reported and has 0.
    ///
    /// # Safety
    /// `block` is null or a live block.
    pub unsafe fn usable_size(&self, block: *const u8) -> usize {
        let tag = self.machine.class_at(block);
        if tag != 0 && run_of_tag(tag).is_none() {
            return class_size(class_of_tag(tag).into());
        }
        if block.is_null() {
            return 0;
        }
        self.bracket(Gfp::MALLOC, |gfp| match self.usable_large(block, gfp) {
            Ok(size) => size,
            Err(defect) => {
                misuse(&self.machine, defect, block.addr(), "size of a block");
                0
            }
        })
    }

    fn usable_large(&self, block: *const u8, gfp: Gfp) -> Result<usize, Defect> {
        match self.block_at(block, gfp.may_block())? {
            Block::Object(id) => Ok(self.slab.object_size(id)),
            Block::Run(range, offset) => Ok(range.bytes() - offset),
            Block::Tiny(usable) => Ok(usable),
            Block::Area => self.vmalloc.usable_size(&self.machine, block.cast_mut(), gfp.may_block()),
        }
    }

    /// Gives `block` the size `size`, which is not 0; its contents up to the smaller size stay. Null where there is no
    /// memory: the block is untouched. A null `block` is [`Mm::alloc`].
    ///
    /// # Safety
    /// As for [`Mm::free`].
    pub unsafe fn realloc(&self, block: *mut u8, size: usize) -> *mut u8 {
        if block.is_null() {
            return self.alloc(size);
        }
        let tag = self.machine.class_at(block);
        if tag != 0 && starts_object(tag, block.addr()) {
            let id = class_of_tag(tag);
            let usable = class_size(id as usize);
            if size <= MAX_SMALL {
                let new = class_of(size);
                // In place where it fits, would not waste half, and the object may pass for one of the smaller class, to which a
                // sized free adds it.
                if new == id || size > usable / 2 && stands_for(id, new) {
                    return block;
                }
            }
            // SAFETY: the caller's condition.
            return unsafe { self.copy(block, usable.min(size), size) };
        }
        // A run of the same class, without a look at its descriptor.
        let start = block.addr() % PAGE_SIZE;
        if size > MAX_SMALL
            && size <= COPY_LIMIT
            && let Some((head, tag)) = self.machine.mapped_page_at(block)
            && let Some(id) = starts_run(head, tag, start)
            && self.class_for((size + start).div_ceil(PAGE_SIZE)) == id
        {
            return block;
        }
        // SAFETY: the caller's condition.
        unsafe { self.realloc_large(block, size) }
    }

    #[cold]
    #[inline(never)]
    unsafe fn realloc_large(&self, block: *mut u8, size: usize) -> *mut u8 {
        if size > isize::MAX as usize {
            return ptr::null_mut();
        }
        let (m, pages) = (&self.machine, &self.pages);
        enum Next {
            Done(*mut u8),
            Copy(usize),
        }
        let next = self.bracket(Gfp::MALLOC, |gfp| {
            let old = match self.usable_large(block, gfp) {
                Ok(old) => old,
                Err(defect) => {
                    misuse(m, defect, block.addr(), "realloc");
                    return Next::Done(ptr::null_mut());
                }
            };
            match self.block_at(block, gfp.may_block()) {
                Ok(Block::Run(range, offset)) if size > MAX_SMALL && size <= COPY_LIMIT.max(range.bytes() - offset) => {
                    let count = (size + offset).div_ceil(PAGE_SIZE);
                    let count = match self.class_for(count) {
                        0 => count as u32,
                        id => run_pages(id),
                    };
                    if count == range.pages {
                        return Next::Done(block);
                    }
                    // SAFETY: the block is the caller's, who gives up what lies behind its new size.
                    if gfp.may_block() && unsafe { pages.resize_run(m, range, count) } {
                        self.make_block(range.start, offset);
                        return Next::Done(block);
                    }
                    if count < range.pages {
                        return Next::Done(block);
                    }
                }
                Ok(Block::Area) if size > COPY_LIMIT => {
                    // SAFETY: the block is the caller's, who gives its old addresses up.
                    if let Some(moved) = unsafe { self.vmalloc.realloc(m, pages, block, size, gfp) } {
                        pages.set_idles(true);
                        return Next::Done(moved.as_ptr());
                    }
                }
                Ok(Block::Tiny(usable))
                    if size <= usable && size > usable / 2 && (size < 16 || block.addr().is_multiple_of(16)) =>
                {
                    return Next::Done(block);
                }
                Ok(Block::Object(id)) => {
                    let usable = self.slab.object_size(id);
                    if size <= usable && size > usable / 2 {
                        return Next::Done(block);
                    }
                }
                _ => {}
            }
            if size > COPY_LIMIT && old <= COPY_LIMIT {
                // From here on it grows by moving frames.
                if let Some(area) = self.vmalloc.alloc(m, pages, size, 1, gfp) {
                    // SAFETY: both blocks are live and distinct, and `old` bytes long at least.
                    unsafe { ptr::copy_nonoverlapping(block, area.as_ptr(), old.min(size)) };
                    let _ = self.free_large(block, gfp);
                    return Next::Done(area.as_ptr());
                }
            }
            Next::Copy(old)
        });
        match next {
            Next::Done(block) => block,
            // SAFETY: the caller's condition; `old` bytes are usable.
            Next::Copy(old) => unsafe { self.copy(block, old.min(size), size) },
        }
    }

    /// Moves a block by copying its first `keep` bytes.
    ///
    /// # Safety
    /// `block` is live and `keep` bytes of it are usable.
    unsafe fn copy(&self, block: *mut u8, keep: usize, size: usize) -> *mut u8 {
        let new = self.alloc(size);
        if !new.is_null() {
            // SAFETY: both blocks are live and distinct, `keep` is within both.
            unsafe {
                ptr::copy_nonoverlapping(block, new, keep);
                self.free(block);
            }
        }
        new
    }
}
