//! Page runs and vmalloc areas: requests above 8 KiB.

use core::ptr;

use super::{MAX_RUN, Mm};
use crate::error::Defect;
use crate::gfp::Gfp;
use crate::machine::{Machine, misuse};
use crate::page::Kind;
use crate::types::{Order, PAGE_SIZE, Pfn, PfnRange};
use crate::vmalloc::FreeError;

/// Distance of start colours: a cache line. A run of a size that is a multiple of it is wholly usable.
pub const RUN_STEP: usize = 64;

/// What stands at an address.
pub(super) enum Block {
    /// An object of a cache.
    Object(u8),
    /// A page run, and the bytes its block starts into the first page.
    Run(PfnRange, usize),
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
        if block.is_null() && gfp.may_block() && self.reclaim(gfp) { self.try_large(size, align, gfp) } else { block }
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

    /// A page run. Its block starts some cache lines into the first page where the last page leaves room: starts that are
    /// all equal modulo the page alias in the caches.
    pub(super) fn alloc_run(&self, size: usize, align: usize, gfp: Gfp, node: Option<usize>) -> *mut u8 {
        let (m, pages) = (&self.machine, &self.pages);
        let count = size.max(1).div_ceil(PAGE_SIZE);
        let head = if align <= PAGE_SIZE {
            pages.alloc_run(m, gfp, count as u32, node)
        } else {
            self.aligned_run(count, align, gfp)
        };
        let Some(head) = head else { return ptr::null_mut() };
        let room = count * PAGE_SIZE - size;
        let offset = if align <= RUN_STEP && room >= RUN_STEP {
            // By the place, not in turn: a counter would be one cache line for all CPUs.
            let colour = (head.0.wrapping_mul(0x9e37_79b1) >> 16) as usize;
            colour % (room.min(PAGE_SIZE - RUN_STEP) / RUN_STEP + 1) * RUN_STEP
        } else {
            0
        };
        m.page(head).set_mapcount(offset as i32);
        m.virt(head).wrapping_add(offset)
    }

    /// A run at an alignment above the page: a whole block, whose alignment is its size, less its tail.
    fn aligned_run(&self, count: usize, align: usize, gfp: Gfp) -> Option<Pfn> {
        let (m, pages) = (&self.machine, &self.pages);
        let order = Order::holding(count.max(align / PAGE_SIZE))?;
        let head = pages.alloc_pages(m, gfp, order, None)?;
        m.page(head).set_word(u64::from(order.pages()));
        m.page(head).set_kind(Kind::Run, Order::ZERO);
        for tail in 1..order.pages() {
            m.page(head.add(tail)).set_kind(Kind::Tail, Order::ZERO);
        }
        // Where the tail cannot be given back the run is simply longer.
        pages.resize_run(m, PfnRange::block(head, order), count as u32);
        Some(head)
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
            Kind::Slab => self.slab.cache_of(m, address, may_block).map(Block::Object),
            Kind::Run => {
                let range = PfnRange::new(pfn, page.word() as u32);
                let offset = page.mapcount() as usize;
                if m.virt(pfn).addr() + offset == address.addr() {
                    Ok(Block::Run(range, offset))
                } else {
                    Err(Defect::Interior)
                }
            }
            Kind::Tail | Kind::Offline => Err(self.tail_defect(pfn)),
            Kind::Buddy | Kind::Pcp | Kind::Isolated => Err(Defect::DoubleFree),
            _ => Err(Defect::Foreign),
        }
    }

    /// The page is inside of something: of a live block, or of a free one. (A tail that was never a head says "offline".)
    pub(super) fn tail_defect(&self, pfn: Pfn) -> Defect {
        let m = &self.machine;
        let at = m.virt(pfn);
        // A run that grew may begin in the largest block before this one.
        for back in 1..Order::MAX.pages() as usize {
            let Some(head) = m.pfn(at.wrapping_sub(back * PAGE_SIZE)) else { break };
            match m.page(head).kind() {
                Kind::Tail | Kind::Offline => {}
                Kind::Buddy | Kind::Pcp | Kind::Isolated => return Defect::DoubleFree,
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
        self.free_large(address, Gfp::MALLOC);
    }

    /// Frees what is no object of a size class.
    pub(super) fn free_large(&self, address: *mut u8, gfp: Gfp) {
        let (m, pages) = (&self.machine, &self.pages);
        let done = match self.block_at(address, gfp.may_block()) {
            Err(defect) => Err(defect),
            Ok(Block::Object(id)) => {
                // SAFETY: an object of that cache that is not free; the caller of `free` gives it up. What is wrong with one of a
                // created cache is reported there.
                unsafe {
                    match self.slab.created(id) {
                        Some(cache) => drop(self.slab.cache_free(m, pages, cache, address, gfp)),
                        None => self.slab.free_slow(m, pages, id, address, gfp),
                    }
                }
                Ok(())
            }
            Ok(Block::Run(range, _)) => {
                let head = m.page(range.start);
                if !head.claim(Kind::Run, Kind::Isolated) {
                    Err(Defect::DoubleFree)
                } else {
                    if !pages.free_run(m, range, gfp.may_block()) {
                        // Isolated meanwhile: a second free is still found out.
                        self.defer(address);
                    }
                    Ok(())
                }
            }
            Ok(Block::Area) => match self.vmalloc.free(m, pages, address, gfp.may_block()) {
                Ok(()) => Ok(()),
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
    }
}
