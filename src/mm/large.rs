//! Page runs and vmalloc areas: requests above 8 KiB.
#![allow(unsafe_code)]

use core::ptr;
use core::sync::atomic::Ordering::{Acquire, Relaxed};

use super::{MAX_RUN, Mm, TINY};
use crate::error::Defect;
use crate::gfp::Gfp;
use crate::machine::{Machine, misuse};
use crate::page::{Kind, Page};
use crate::slab::runs::{
    EXACT, Fit, LAST_RUN, MAX_CACHED, block_start, class_of_run, is_tagged, kind_kept, last_serves, near_classes,
    pages_of, run_class, run_pages, starts_run, tag_run, tagged_block, tagged_start,
};
use crate::slab::slob::Slob;
use crate::types::{Order, PAGE_SIZE, PAGEBLOCK_PAGES, Pfn, PfnRange};
use crate::vmalloc::FreeError;
use crate::zone::Cost;

/// Distance of start colours: a cache line. A run of a size that is a multiple of it is wholly usable.
pub const RUN_STEP: usize = 64;

/// What stands at an address.
pub(super) enum Block {
    /// An object of a cache.
    Object(u8),
    /// A page run, and the bytes its block starts into the first page.
    Run(PfnRange, usize),
    /// A block of first fit, and its usable bytes.
    Tiny(usize),
    /// A vmalloc area.
    Area,
}

impl<M: Machine> Mm<M> {
    /// `size` bytes, more than a class serves or at an alignment that none has.
    pub(super) fn alloc_large(&self, size: usize, align: usize, gfp: Gfp) -> *mut u8 {
        // What no window holds is refused before anything is given up for it.
        let most = if gfp.is_low() { 0 } else { self.machine.window().len() }.max(Order::MAX.bytes());
        if size.max(align) > most || !self.is_up() {
            return ptr::null_mut();
        }
        let block = self.try_large(size, align, gfp);
        if !block.is_null() || !gfp.may_block() || !self.reclaim(gfp) {
            return block;
        }
        let block = self.try_large(size, align, gfp);
        let more = block.is_null() && self.make_room(size, gfp);
        if more { self.try_large(size, align, gfp) } else { block }
    }

    /// Where the system counts addresses, gives up those of free memory, so that a block of `bytes` may be had.
    /// Whether it gave up any.
    pub(super) fn make_room(&self, bytes: usize, gfp: Gfp) -> bool {
        let (m, pages) = (&self.machine, &self.pages);
        let wanted = (bytes.div_ceil(PAGE_SIZE) as u64).next_multiple_of(PAGEBLOCK_PAGES.into());
        gfp.may_block() && gfp.may_io() && m.is_rationed(bytes) && pages.take_offline(m, wanted) > 0
    }

    fn try_large(&self, size: usize, align: usize, gfp: Gfp) -> *mut u8 {
        let mut block = ptr::null_mut();
        if size <= MAX_RUN && align <= Order::MAX.bytes() {
            block = self.alloc_run(size, align, gfp, None);
        }
        if block.is_null() && gfp.is_low() {
            return if size > MAX_RUN { self.alloc_run(size, align, gfp, None) } else { block };
        }
        if block.is_null() {
            // Also where no run is free: scattered frames, or fresh addresses, may still be had.
            let area = self.vmalloc.alloc(&self.machine, &self.pages, size, align, gfp);
            block = area.map_or(ptr::null_mut(), |a| a.as_ptr());
        }
        if block.is_null() && (MAX_RUN + 1..=Order::MAX.bytes()).contains(&size) && align <= PAGE_SIZE {
            // The system gives no more addresses, but free blocks of the largest order may be there.
            block = self.alloc_run(size, align, gfp, None);
        }
        block
    }

    /// A block in a page run: one that this CPU kept, or one from the zone.
    pub(super) fn alloc_run(&self, size: usize, align: usize, gfp: Gfp, node: Option<usize>) -> *mut u8 {
        let (m, pages) = (&self.machine, &self.pages);
        // HIGHMEM has no address to return.
        let gfp = gfp.without(Gfp::HIGHMEM);
        let count = size.max(1).div_ceil(PAGE_SIZE);
        if align > PAGE_SIZE {
            let head = pages.alloc_aligned_run(m, gfp, count as u32, (align / PAGE_SIZE) as u32, node);
            return head.map_or(ptr::null_mut(), |head| self.run_block(head, m.virt(head), count, size, align));
        }
        // What was kept may lie anywhere and hold no memory.
        let any = node.is_none() && !gfp.is_low() && !gfp.no_fault() && !TINY;
        let count = match self.class_for(count) {
            id if any && id != 0 => {
                // SAFETY: rows hold valid sheaves.
                let run = unsafe { m.pop_again(id) };
                if !run.is_null() {
                    return self.kept_run(run, id, size, align, gfp);
                }
                run_pages(id) as usize
            }
            _ => count,
        };
        let head = pages.alloc_run(m, gfp, count as u32, node);
        head.map_or(ptr::null_mut(), |head| self.run_block(head, m.virt(head), count, size, align))
    }

    /// The class of a run of `pages` pages; 0 where it is to have just these.
    #[inline]
    pub(super) fn class_for(&self, pages: usize) -> u8 {
        if pages <= MAX_CACHED as usize || self.pages.cost() == Cost::Little { run_class(pages) } else { 0 }
    }

    /// A block of `size` bytes in a run of its class that this CPU kept and the page-class map tells; null where
    /// another path has to be asked.
    #[inline(always)]
    pub fn alloc_run_fast(&self, size: usize) -> *mut u8 {
        let m = &self.machine;
        let Some(fit) = Fit::of(size).filter(|_| self.small.load(Acquire) != 0) else { return ptr::null_mut() };
        // SAFETY: rows hold valid sheaves.
        let run = unsafe { m.pop_run(fit.class()) };
        if run.is_null() { run } else { fit.block(m, m.known_pfn(run), run) }
    }

    /// A block at the start of a page in a run of its class that this CPU kept; null where there is none. The caller
    /// has seen that the fast path is open.
    pub(super) fn alloc_run_at_page(&self, size: usize) -> *mut u8 {
        let (m, id) = (&self.machine, run_class(size.div_ceil(PAGE_SIZE)));
        if !is_tagged(id) {
            return ptr::null_mut();
        }
        // SAFETY: rows hold valid sheaves.
        let run = unsafe { m.pop_run(id) };
        if run.is_null() { run } else { tagged_block(m, id, m.known_pfn(run), run, pages_of(id) as usize * PAGE_SIZE) }
    }

    /// A block of `size` bytes, more than a class serves, in a run that this CPU kept; null where the slow path has to
    /// be asked.
    #[inline]
    pub(super) fn alloc_kept_run(&self, size: usize, gfp: Gfp) -> *mut u8 {
        let pages = size.div_ceil(PAGE_SIZE);
        let id = run_class(pages);
        if id == 0 {
            return ptr::null_mut();
        }
        // SAFETY: rows hold valid sheaves.
        let run = unsafe { self.machine.pop_run(id) };
        if run.is_null() { self.alloc_near_run(size, id, gfp) } else { self.kept_run(run, id, size, 1, gfp) }
    }

    /// The same for want of a run of class `id`: a slightly larger one.
    #[inline(never)]
    fn alloc_near_run(&self, size: usize, id: u8, gfp: Gfp) -> *mut u8 {
        let pages = size.div_ceil(PAGE_SIZE);
        // Of small ones hardly any of which is written to, one more of the class, once, is cheaper than one that the
        // other will lack.
        let little = self.pages.cost() == Cost::Little;
        if pages <= EXACT as usize && little {
            return ptr::null_mut();
        }
        let classes = if self.slab.wants_own(id, little) { id..=id } else { near_classes(id) };
        for near in classes {
            // SAFETY: rows hold valid sheaves.
            let run = unsafe { self.machine.pop_run(near) };
            if !run.is_null() {
                return self.kept_run(run, near, size, 1, gfp);
            }
        }
        if pages > MAX_CACHED as usize { self.alloc_last_run(size, pages, gfp) } else { ptr::null_mut() }
    }

    /// The same for a larger run: the last one freed, if its size suits.
    fn alloc_last_run(&self, size: usize, pages: usize, gfp: Gfp) -> *mut u8 {
        let m = &self.machine;
        // SAFETY: rows hold valid sheaves.
        let run = unsafe { m.pop_run(LAST_RUN) };
        let Some(head) = m.pfn(run).filter(|_| !run.is_null()) else { return ptr::null_mut() };
        let found = m.page(head).word() as u32;
        if last_serves(found, pages) {
            return self.kept_run(run, LAST_RUN, size, 1, gfp);
        }
        // SAFETY: the run came from there.
        if !unsafe { m.push_run(LAST_RUN, run) } {
            self.give_run(LAST_RUN, run, gfp);
        }
        ptr::null_mut()
    }

    /// Makes a run that came out of a sheaf of class `id` a block.
    #[inline]
    fn kept_run(&self, run: *mut u8, id: u8, size: usize, align: usize, gfp: Gfp) -> *mut u8 {
        let m = &self.machine;
        let Some(head) = m.pfn(run) else { return ptr::null_mut() };
        let pages = if id == LAST_RUN { m.page(head).word() as u32 } else { pages_of(id) };
        if gfp.has(Gfp::ZERO) {
            // SAFETY: the run is ours and as many pages long.
            unsafe { ptr::write_bytes(run, 0, pages as usize * PAGE_SIZE) };
        }
        if align > RUN_STEP {
            return self.run_block(head, run, pages as usize, size, align);
        }
        if is_tagged(id) {
            return tagged_block(m, id, head, run, size);
        }
        let offset = block_start(head, pages as usize * PAGE_SIZE - size);
        Self::set_start(m.page(head), offset);
        run.wrapping_add(offset)
    }

    /// Frees the block at `block`; false, and nothing done, where that is no block of a run that the map tells.
    #[inline(always)]
    pub(super) fn free_tagged(&self, block: *mut u8, gfp: Gfp) -> bool {
        let page = self.machine.mapped_page_at(block);
        page.is_some_and(|(head, tag)| self.free_tagged_at(block, head, tag, gfp))
    }

    /// The same where the block lies in the page `head`, of which the map says `tag`.
    #[inline(always)]
    pub(super) fn free_tagged_at(&self, block: *mut u8, head: Pfn, tag: u8, gfp: Gfp) -> bool {
        let m = &self.machine;
        let start = block.addr() % PAGE_SIZE;
        let Some(id) = starts_run(head, tag, start) else { return false };
        // Before anybody else can have it. (As for objects, two threads that free one block at the same moment are not
        // told apart here; one after the other they are.)
        m.class(head).store(0, Relaxed);
        // Who has it next writes there, and would wait for its translation: up to 5 % of the time, where blocks are
        // many.
        m.prefetch(block.addr());
        let run = block.wrapping_sub(start);
        // SAFETY: the run is of that class, and the caller of `free` gives it up.
        if !unsafe { m.push_run(id, run) } {
            self.give_run(id, run, gfp);
        }
        true
    }

    /// Keeps a run of class `id` that is nobody's any more, or gives it back to the zone.
    #[inline(never)]
    fn give_run(&self, id: u8, run: *mut u8, gfp: Gfp) {
        // SAFETY: the caller's run to give.
        self.bracket(gfp, |gfp| unsafe { self.slab.give_run(&self.machine, &self.pages, id, run, gfp) });
    }

    /// Keeps a block's run, which the map does not tell, on this CPU; false where the slow path has to be asked, and
    /// nothing is done then.
    #[inline]
    pub(super) fn free_run_fast(&self, block: *mut u8) -> bool {
        let m = &self.machine;
        let Some(head) = m.pfn(block).map(|pfn| m.page(pfn)) else { return false };
        let offset = head.mapcount() as usize;
        if head.kind() != Kind::Run || block.addr() % PAGE_SIZE != offset {
            return false;
        }
        let id = class_of_run(head, self.pages.cost());
        if id == 0 {
            return false;
        }
        let run = block.wrapping_sub(offset);
        // As in `free_tagged`.
        head.set_kind(kind_kept(id), Order::ZERO);
        // SAFETY: the run is of that class, and the caller of `free` gives it up.
        if !unsafe { m.push_run(id, run) } {
            self.give_run(id, run, Gfp::MALLOC);
        }
        true
    }

    /// The block of `size` bytes in the run of `count` pages at `run`. It starts some cache lines into the first page
    /// where the last page leaves room ([`block_start`]).
    #[inline]
    fn run_block(&self, head: Pfn, run: *mut u8, count: usize, size: usize, align: usize) -> *mut u8 {
        let m = &self.machine;
        let id = class_of_run(m.page(head), self.pages.cost());
        if align <= RUN_STEP && is_tagged(id) {
            m.page(head).set_kind(Kind::Tagged, Order::ZERO);
            return tagged_block(m, id, head, run, size);
        }
        let room = count * PAGE_SIZE - size;
        let offset = if align <= RUN_STEP { block_start(head, room) } else { 0 };
        self.make_block(head, offset);
        run.wrapping_add(offset)
    }

    /// Makes the run headed by `head` a block that starts `offset` bytes into it.
    pub(super) fn make_block(&self, head: Pfn, offset: usize) {
        let m = &self.machine;
        let id = class_of_run(m.page(head), self.pages.cost());
        if !tag_run(m, id, head, offset) {
            Self::set_start(m.page(head), offset);
            m.class(head).store(0, Relaxed);
        }
    }

    /// Makes the run with this head, which has no tag, a block that starts `offset` bytes into it.
    #[inline]
    fn set_start(head: &Page, offset: usize) {
        head.set_mapcount(offset as i32);
        head.set_kind(Kind::Run, Order::ZERO);
    }

    /// What stands at `address`.
    ///
    /// # Errors
    /// What is wrong with a free of it.
    pub(super) fn block_at(&self, address: *const u8, may_block: bool) -> Result<Block, Defect> {
        let (m, vmalloc) = (&self.machine, &self.vmalloc);
        if vmalloc.contains(m, address) {
            return Ok(Block::Area);
        }
        let pfn = m.pfn(address).ok_or(Defect::Foreign)?;
        let page = m.page(pfn);
        match page.kind() {
            Kind::Slab if TINY && Slob::<M>::owns(page) => self.slob.usable(m, address, may_block).map(Block::Tiny),
            Kind::Slab => self.slab.cache_of(m, address, may_block).map(Block::Object),
            kind @ (Kind::Run | Kind::Tagged) => {
                let range = PfnRange::new(pfn, page.word() as u32);
                let offset = if kind == Kind::Run {
                    page.mapcount() as usize
                } else {
                    tagged_start(pfn, m.class(pfn).load(Relaxed)).ok_or(Defect::DoubleFree)?
                };
                if m.virt(pfn).addr() + offset == address.addr() {
                    Ok(Block::Run(range, offset))
                } else {
                    Err(Defect::Interior)
                }
            }
            Kind::Tail | Kind::Offline => Err(self.tail_defect(pfn)),
            kind if kind.is_free() => Err(Defect::DoubleFree),
            _ => Err(Defect::Foreign),
        }
    }

    /// The page is inside of something: of a live block, or of a free one. (A tail that was never a head says
    /// "offline".)
    pub(super) fn tail_defect(&self, pfn: Pfn) -> Defect {
        let m = &self.machine;
        let at = m.virt(pfn);
        // A run that grew may begin in the largest block before this one.
        for back in 1..Order::MAX.pages() as usize {
            let Some(head) = m.pfn(at.wrapping_sub(back * PAGE_SIZE)) else { break };
            match m.page(head).kind() {
                Kind::Tail | Kind::Offline => {}
                kind if kind.is_free() => return Defect::DoubleFree,
                Kind::Tagged if m.class(head).load(Relaxed) == 0 => return Defect::DoubleFree,
                _ => return Defect::Interior,
            }
        }
        Defect::Foreign
    }

    /// Frees a block that was deferred.
    pub(super) fn free_deferred(&self, address: *mut u8) {
        if let Some(pfn) = self.machine.pfn(address) {
            self.machine.page(pfn).claim(Kind::Isolated, Kind::Run);
        }
        let _ = self.free_large(address, Gfp::MALLOC);
    }

    /// Frees what is no object of a size class.
    ///
    /// # Errors
    /// What is wrong with that; it was reported.
    pub(super) fn free_large(&self, address: *mut u8, gfp: Gfp) -> Result<(), Defect> {
        let (m, pages) = (&self.machine, &self.pages);
        let done = match self.block_at(address, gfp.may_block()) {
            Err(defect) => Err(defect),
            Ok(Block::Object(id)) => {
                // SAFETY: an object of that cache that is not free; the caller of `free` gives it up. What is wrong
                // with one of a created cache is reported there.
                unsafe {
                    match self.slab.created(id) {
                        Some(cache) => drop(self.slab.cache_free(m, pages, cache, address, gfp)),
                        None => self.slab.free_slow(m, pages, id, address, gfp),
                    }
                }
                Ok(())
            }
            Ok(Block::Run(range, offset)) => {
                let (head, tag) = (m.page(range.start), m.class(range.start));
                // The tag stands for the kind of those that have one.
                let claimed = match tag.load(Relaxed) {
                    0 => head.claim(Kind::Run, Kind::Isolated),
                    old => tag.compare_exchange(old, 0, Relaxed, Relaxed).is_ok(),
                };
                if !claimed {
                    Err(Defect::DoubleFree)
                } else {
                    // Isolated meanwhile: a second free is still found out.
                    match class_of_run(head, pages.cost()) {
                        // SAFETY: claimed: whoever else frees it is told that it is free. The caller of `free` gives it
                        // up.
                        0 if !unsafe { pages.free_run(m, range, gfp.may_block()) } => {
                            // Until then it is told as one that never had a tag.
                            head.set_mapcount(offset as i32);
                            head.set_kind(Kind::Isolated, Order::ZERO);
                            self.defer(address);
                        }
                        0 => {}
                        id => {
                            head.set_kind(kind_kept(id), Order::ZERO);
                            // SAFETY: the run is of that class, and the caller of `free` gives it up.
                            unsafe { self.slab.give_run(m, pages, id, m.virt(range.start), gfp) }
                        }
                    }
                    Ok(())
                }
            }
            // SAFETY: a block starts there that is not free, and the caller of `free` gives it up.
            Ok(Block::Tiny(_)) => match unsafe { self.slob.free(m, pages, address, gfp.may_block()) } {
                Ok(true) => Ok(()),
                Ok(false) => {
                    self.defer(address);
                    Ok(())
                }
                Err(defect) => Err(defect),
            },
            // SAFETY: an area that begins there is what the caller of `free` gives up; what is none's beginning is
            // told.
            Ok(Block::Area) => match unsafe { self.vmalloc.free(m, pages, address, gfp.may_block()) } {
                Ok(()) => {
                    pages.set_idles(true);
                    Ok(())
                }
                // No area begins elsewhere, and what is deferred is written to.
                Err(FreeError::Busy) if !address.addr().is_multiple_of(1 << M::SLOT_SHIFT) => Err(Defect::Interior),
                Err(FreeError::Busy) => {
                    self.defer(address);
                    Ok(())
                }
                Err(FreeError::Defect(defect)) => Err(defect),
            },
        };
        if let Err(defect) = done {
            let where_ = if self.vmalloc.contains(m, address) { "vmalloc" } else { "pages" };
            misuse(m, defect, address.addr(), where_);
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use std::boxed::Box;

    use super::*;
    use crate::machine::sim::Sim;
    use crate::machine::{Frames, ZoneKind};
    #[cfg(not(feature = "slob"))]
    use crate::slab::classes::class_of;
    use crate::sync::Fork;

    /// Before more memory is begun those that hold memory are given back where they are many, and those that cost only
    /// addresses stay.
    #[cfg(not(feature = "slob"))]
    #[test]
    fn runs_are_gathered_unless_they_cost_little() {
        let sim = Sim::builder().grow(0, ZoneKind::Normal, 1 << 10, 1 << 14, 1 << 10).build();
        let mm = Box::new(Mm::new(sim));
        mm.start();
        let (m, id) = (&mm.machine, run_class(10));
        // In a program of one thread.
        m.set_looks_below(true);
        for (cost, stay) in [(Cost::Little, true), (Cost::Some, false)] {
            mm.pages.set_cost(cost);
            let blocks = [(); 40].map(|()| mm.alloc(10 * PAGE_SIZE));
            // SAFETY: the blocks are ours.
            blocks.iter().for_each(|block| unsafe { mm.free(*block) });
            assert_eq!(mm.slab.objects_in_rows(m)[usize::from(id)], 40);
            mm.slab.gather(m, &mm.pages, 1 << 10);
            assert_eq!(mm.slab.objects_in_rows(m)[usize::from(id)] == 40, stay, "{cost:?}");
        }
        mm.verify().unwrap();
    }

    /// Where there are threads a smaller part of all memory is much, and objects stay in their sheaves mostly.
    #[cfg(not(feature = "slob"))]
    #[test]
    fn runs_are_gathered_sooner_and_objects_seldom_where_there_are_threads() {
        let sim = Sim::builder().grow(0, ZoneKind::Normal, 1 << 14, 1 << 14, 1 << 10).build();
        let mm = Box::new(Mm::new(sim));
        mm.start();
        let (m, sizes, object) = (&mm.machine, [10, 12, 14, 16], usize::from(class_of(1000)));
        let kept = || {
            let rows = mm.slab.objects_in_rows(m);
            [sizes.iter().map(|pages| rows[usize::from(run_class(*pages))]).sum(), rows[object]]
        };
        let live = [(); 50].map(|()| mm.alloc(100 * PAGE_SIZE));
        let runs = sizes.map(|pages| [(); 25].map(|()| mm.alloc(pages * PAGE_SIZE)));
        let (runs, objects) = (runs.as_flattened(), [(); 40].map(|()| mm.alloc(1000)));
        // SAFETY: the blocks are ours.
        runs.iter().chain(&objects).for_each(|block| unsafe { mm.free(*block) });
        let [_, had] = kept();
        m.set_looks_below(true);
        mm.pages.set_cost(Cost::Some);
        mm.slab.gather(m, &mm.pages, 1 << 10);
        assert_eq!(kept(), [100, 0], "in a program of one thread, and {had} objects before");
        let objects = [(); 40].map(|()| mm.alloc(1000));
        // SAFETY: the blocks are ours.
        objects.iter().for_each(|block| unsafe { mm.free(*block) });
        let [_, had] = kept();
        assert!(had > 20);
        m.set_looks_below(false);
        mm.slab.gather(m, &mm.pages, 1 << 8);
        assert_eq!(kept(), [0, had]);
        (0..8).for_each(|_| mm.slab.gather(m, &mm.pages, 1 << 8));
        assert_eq!(kept(), [0, 0]);
        // SAFETY: the blocks are ours.
        live.iter().for_each(|block| unsafe { mm.free(*block) });
        mm.verify().unwrap();
    }

    /// Of a class that became too dear meanwhile, and freed where the zone's lock is not to be had: it is no second
    /// free when it is freed later.
    #[test]
    fn a_run_that_had_a_tag_can_be_deferred() {
        let sim = Sim::builder().grow(0, ZoneKind::Normal, 1 << 14, 1 << 14, 1 << 10).build();
        let mm = Box::new(Mm::new(sim));
        mm.start();
        mm.pages.set_cost(Cost::Little);
        let block = mm.alloc(run_pages(run_class(MAX_CACHED as usize + 1)) as usize * PAGE_SIZE - 1000);
        let before = mm.stats().pages_in_use;
        let pfn = mm.machine.pfn(block).unwrap();
        assert_eq!(mm.machine.page(pfn).kind(), Kind::Tagged);
        mm.pages.set_cost(Cost::All);
        let fork = Fork { token: 1, needs_all: true };
        assert!(mm.pages.lock_all(&mm.machine, fork));
        assert_eq!(mm.free_large(block, Gfp::ATOMIC), Ok(()));
        // SAFETY: taken before.
        unsafe { mm.pages.unlock_all(&mm.machine, fork) };
        assert!(!mm.deferred.is_empty());
        mm.drain_deferred();
        assert!(mm.deferred.is_empty() && mm.stats().pages_in_use < before);
        mm.verify().unwrap();
    }
}
