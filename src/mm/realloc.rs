//! Changing a block's size: in place, by moving frames, and by copying only where little is to be copied.
//!
//! Whether an object may pass for one of a smaller class is a bit of a table; to work out the alignments of both at
//! each call took a tenth of what `strings` spends in the allocator (72.3 in place of 74.7 ms). The whole of it inlined
//! in C's `realloc`: no faster.
//!
//! A run keeps its pages while more than half of them is wanted, and an area stays one down to 512 KiB, half of what a
//! block has to exceed to become one by growing. Blocks that are given sizes at random again and again (ns a call, MiB
//! resident at most; of what is new the first byte is written, or all; medians of rounds in turn):
//!
//! | | 8–32 KiB, 10 live | 1000, all | 32–128 KiB, 100 | all | 512 KiB–2 MiB, 10 | all | 8 KiB–2 MiB, 30, all |
//! |---|---|---|---|---|---|---|---|
//! | runs always just as long, areas above 1 MiB only | 54, 2.2 | 135, 42 | 76, 35 | 231, 36 | 13 600, 26 | 13 600, 31 | 48 600, 81 |
//! | this | 34, 2.2 | 92, 44 | 44, 19 | 184, 26 | 146, 15 | 4 380, 27 | 37 200, 89 |
//! | rpmalloc | 13, 3.4 | 93, 36 | 354, 13 | 570, 16 | 16 800, 47 | | |
//! | jemalloc | 181, 7.7 | 497, 40 | 476, 17 | 600, 17 | 1 690, 37 | 6 720, 38 | 38 600, 76 |
//!
//! Rejected: a run that grows gets a quarter more (as long, and as much memory); from 64 KiB on until less than three
//! quarters are wanted (8 KiB–2 MiB 85 MiB, but 32–128 KiB 28 in place of 26, and a third more time).

#![allow(unsafe_code)]

use core::ptr;

use super::large::Block;
use super::{MAX_RUN, Mm};
use crate::error::Defect;
use crate::gfp::Gfp;
use crate::machine::{Machine, misuse};
use crate::slab::classes::{MAX_SMALL, class_of, class_size, stands_for};
use crate::slab::runs::{pages_of, run_pages, starts_run};
use crate::slab::{class_of_tag, run_of_tag, starts_object};
use crate::types::PAGE_SIZE;

/// A block that grows beyond this becomes a vmalloc area, which from then on moves without copying.
const COPY_LIMIT: usize = 1 << 20;
/// An area that shrinks to this becomes a page run again. Less than [`COPY_LIMIT`], so that one around that is not
/// copied to and fro.
const AREA_LIMIT: usize = COPY_LIMIT / 2;

/// Whether a run of `has` pages stays where `pages` are wanted.
#[inline(always)]
fn stays(pages: u32, has: u32) -> bool {
    pages <= has && pages * 2 > has
}

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
        let usable = |gfp: Gfp| self.usable_of(&self.block_at(block, gfp.may_block())?, block, gfp);
        self.bracket(Gfp::MALLOC, |gfp| match usable(gfp) {
            Ok(size) => size,
            Err(defect) => {
                misuse(&self.machine, defect, block.addr(), "size of a block");
                0
            }
        })
    }

    /// The same of `block`, which is what `found` says.
    fn usable_of(&self, found: &Block, block: *const u8, gfp: Gfp) -> Result<usize, Defect> {
        match found {
            Block::Object(id) => Ok(self.slab.object_size(*id)),
            Block::Run(range, offset) => Ok(range.bytes() - offset),
            Block::Tiny(usable) => Ok(*usable),
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
                // In place where it fits, would not waste half, and the object may pass for one of the smaller class,
                // to which a sized free adds it.
                if new == id || size > usable / 2 && stands_for(id, new) {
                    return block;
                }
            }
            // SAFETY: the caller's condition.
            return unsafe { self.copy(block, usable.min(size), size) };
        }
        // A run that holds it and stays, without a look at its descriptor.
        let start = block.addr() % PAGE_SIZE;
        if size > MAX_SMALL
            && size <= MAX_RUN
            && let Some((head, tag)) = self.machine.mapped_page_at(block)
            && let Some(id) = starts_run(head, tag, start)
            && stays((size + start).div_ceil(PAGE_SIZE) as u32, pages_of(id))
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
            let found = self.block_at(block, gfp.may_block());
            let found = found.and_then(|found| self.usable_of(&found, block, gfp).map(|old| (found, old)));
            let (found, old) = match found {
                Ok(found) => found,
                Err(defect) => {
                    misuse(m, defect, block.addr(), "realloc");
                    return Next::Done(ptr::null_mut());
                }
            };
            match found {
                Block::Run(range, offset) if size > MAX_SMALL && size <= COPY_LIMIT.max(range.bytes() - offset) => {
                    let count = (size + offset).div_ceil(PAGE_SIZE);
                    let count = match self.class_for(count) {
                        0 => count as u32,
                        id => run_pages(id),
                    };
                    if stays(count, range.pages) {
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
                Block::Area if size > AREA_LIMIT => {
                    // SAFETY: the block is the caller's, who gives its old addresses up.
                    let again = || unsafe { self.vmalloc.realloc(m, pages, block, size, gfp) };
                    let mut moved = again();
                    if moved.is_none() && gfp.may_block() && gfp.may_io() && m.is_rationed(size) && self.reclaim(gfp) {
                        // Where it is, it needs little more.
                        moved = again();
                        for wanted in [size.saturating_sub(old), size] {
                            if moved.is_none() && self.make_room(wanted, gfp) {
                                moved = again();
                            }
                        }
                    }
                    if let Some(moved) = moved {
                        pages.set_idles(true);
                        return Next::Done(moved.as_ptr());
                    }
                }
                Block::Tiny(usable)
                    if size <= usable && size > usable / 2 && (size < 16 || block.addr().is_multiple_of(16)) =>
                {
                    return Next::Done(block);
                }
                Block::Object(id) => {
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
                    // SAFETY: both blocks are live and distinct, and `old` bytes long at least: `size` is more.
                    unsafe { ptr::copy_nonoverlapping(block, area.as_ptr(), old) };
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

#[cfg(test)]
mod tests {
    use std::boxed::Box;

    use super::*;
    use crate::machine::sim::{Hosted, Sim, Simulated};
    use crate::machine::{Context, ZoneKind};

    /// A run that shrinks keeps its pages until that would waste half.
    #[test]
    fn a_run_stays_while_more_than_half_of_it_is_used() {
        let sim = Sim::builder().grow(0, ZoneKind::Normal, 1 << 14, 1 << 14, 1 << 10).build();
        let mm = Box::new(Mm::new(sim));
        mm.start();
        for pages in [8, 16, 40, 300] {
            let (block, most) = (mm.alloc(pages * PAGE_SIZE), pages * PAGE_SIZE);
            // SAFETY: a live block.
            let (usable, resized) = unsafe { (mm.usable_size(block), |size| mm.realloc(block, size)) };
            assert!(usable >= most);
            let in_use = || mm.stats().pages_in_use;
            let before = in_use();
            for size in [most / 2 + PAGE_SIZE, most, most / 2 + 1, most - 1] {
                assert_eq!((resized(size), in_use()), (block, before), "{pages} pages, {size} bytes");
            }
            let less = most / 2;
            assert_eq!(resized(less), block);
            // SAFETY: as above.
            let left = unsafe { mm.usable_size(block) };
            assert!(in_use() < before && (less..usable - PAGE_SIZE).contains(&left), "{pages} pages: {left}");
            // SAFETY: as above.
            unsafe { mm.free(block) };
        }
        mm.verify().unwrap();
    }

    /// A run takes what is free behind it, and stays where it is when nobody may wait for the zone.
    #[test]
    fn a_run_grows_where_it_is_and_need_not_shrink() {
        let sim = Sim::builder().grow(0, ZoneKind::Normal, 1 << 14, 1 << 14, 1 << 12).build();
        let mm = Box::new(Mm::new(sim));
        mm.start();
        let block = mm.alloc(200 * PAGE_SIZE);
        // SAFETY: a live block.
        unsafe {
            let before = mm.stats().pages_in_use;
            assert_eq!(mm.realloc(block, 230 * PAGE_SIZE), block);
            assert_eq!(mm.realloc(block, 240 * PAGE_SIZE), block);
            assert!(mm.usable_size(block) >= 240 * PAGE_SIZE && mm.stats().pages_in_use >= before + 40);
            // As a signal handler finds it that interrupted a slow path.
            mm.machine.enter();
            assert_eq!(mm.realloc(block, 50 * PAGE_SIZE), block);
            mm.machine.leave();
            assert_eq!(mm.realloc(block, 50 * PAGE_SIZE), block);
            assert!(mm.usable_size(block) < 60 * PAGE_SIZE);
            mm.free(block);
        }
        mm.verify().unwrap();
    }

    /// A block around the size from which on blocks are areas is not copied each time.
    #[test]
    fn an_area_stays_one_below_the_size_where_it_became_one() {
        let m = Simulated::<Hosted>::builder().ram(0, ZoneKind::Normal, 1024, 1 << 12).window(64 << 21).build();
        let mm = Box::new(Mm::new(m));
        mm.start();
        for (node, zone, range) in mm.machine.ram() {
            // SAFETY: the simulated machine's memory, added once.
            unsafe { mm.pages.add(&mm.machine, *node, *zone, *range) };
        }
        let is_area = |block: *mut u8| mm.vmalloc.contains(&mm.machine, block);
        let first = mm.alloc(COPY_LIMIT - PAGE_SIZE);
        assert!(!is_area(first));
        // SAFETY: live blocks, the last one each.
        unsafe {
            first.write(7);
            let area = mm.realloc(first, COPY_LIMIT + PAGE_SIZE);
            assert!(is_area(area));
            for size in [COPY_LIMIT, AREA_LIMIT + 1, COPY_LIMIT * 2, COPY_LIMIT - 1] {
                assert_eq!(mm.realloc(area, size), area, "{size} bytes");
                assert!(mm.usable_size(area) >= size);
            }
            let run = mm.realloc(area, AREA_LIMIT);
            assert!(!is_area(run));
            assert_eq!(run.read(), 7);
            mm.free(run);
        }
        mm.verify().unwrap();
    }
}
