//! The kernel's page calls by their names: by address, by reference count, for one page, of an exact size.
//!
//! And all by which frames come in from outside, as memory or freed: whose they are nothing in this layer can know, so
//! each such call is `unsafe`. What it does with frames that are its own by then needs no `unsafe`.
#![allow(unsafe_code)]

use core::ptr;

use super::buddy::STATE;
use super::{PageAllocator, ZoneKind};
use crate::gfp::Gfp;
use crate::machine::Machine;
use crate::page::{Kind, flag};
use crate::types::{Order, PAGE_SIZE, Pfn, PfnRange};

impl<M: Machine> PageAllocator<M> {
    /// Adds memory present at boot: any run of frames of one zone, with contents unknown. Zones do
    /// not share pageblocks: frames in a pageblock that is another zone's already are left out.
    ///
    /// # Safety
    /// The frames are the machine's (it has descriptors of them, and memory at their addresses but for HIGHMEM), nobody
    /// uses them, and none was added before.
    pub unsafe fn add(&self, m: &M, node: usize, kind: ZoneKind, range: PfnRange) {
        self.add_range(m, node, kind, range, 0);
    }

    /// Frees the block at `pfn`. False, and nothing done, where that needs a wait and `may_block` is not set. A block
    /// that is free already is left alone (whoever can tell the user checks before).
    ///
    /// # Safety
    /// The `2^order` frames at `pfn` are a block that this allocator handed out and the caller's to give: nobody reads
    /// or writes its memory from now on, by whatever address, holds a reference to it or frees it, too.
    pub unsafe fn free_pages(&self, m: &M, pfn: Pfn, order: Order, may_block: bool) -> bool {
        self.free_as(m, pfn, order, None, true, may_block)
    }

    /// [`PageAllocator::free_pages`] for a block that reads zero and holds no memory.
    ///
    /// # Safety
    /// As for [`PageAllocator::free_pages`]; and the block does read zero, as who gets it next with `__GFP_ZERO` is
    /// told so.
    pub unsafe fn free_clean(&self, m: &M, pfn: Pfn, order: Order, may_block: bool) -> bool {
        let state = if M::LENT { STATE } else { flag::ZERO };
        self.free_as(m, pfn, order, Some(state), false, may_block)
    }

    /// [`PageAllocator::free_pages`] for a block whose contents are in no cache: it is handed out again after all
    /// others.
    ///
    /// # Safety
    /// As for [`PageAllocator::free_pages`].
    pub unsafe fn free_cold(&self, m: &M, pfn: Pfn, order: Order, may_block: bool) -> bool {
        self.free_as(m, pfn, order, None, false, may_block)
    }

    /// Frees a run. Failure as for [`PageAllocator::free_pages`].
    ///
    /// # Safety
    /// `range` is what [`PageAllocator::alloc_run`] handed out (or [`PageAllocator::resize_run`] made of it), whole;
    /// otherwise as for [`PageAllocator::free_pages`].
    pub unsafe fn free_run(&self, m: &M, range: PfnRange, may_block: bool) -> bool {
        self.give_back_run(m, range, may_block)
    }

    /// Makes the run `range` one of `pages` pages without moving it: gives its tail back, or takes the free blocks
    /// behind it. False where those are in use (or the lock is: it does not block); the run is unchanged then. Grown
    /// pages have unknown contents, and the head's state flags go.
    ///
    /// # Safety
    /// `range` is a whole run of the caller's, and what lies behind its first `pages` pages is used by nobody from now
    /// on.
    pub unsafe fn resize_run(&self, m: &M, range: PfnRange, pages: u32) -> bool {
        self.resize(m, range, pages)
    }

    /// One page from the caller's node. See [`PageAllocator::alloc_pages`].
    pub fn alloc_page(&self, m: &M, gfp: Gfp) -> Option<Pfn> {
        self.alloc_pages(m, gfp, Order::ZERO, None)
    }

    /// A block that starts its search at `node`; with `__GFP_THISNODE` it ends there, too.
    pub fn alloc_pages_node(&self, m: &M, node: usize, gfp: Gfp, order: Order) -> Option<Pfn> {
        self.alloc_pages(m, gfp, order, Some(node))
    }

    /// Takes one more reference to the block at `pfn`, which is allocated.
    pub fn get_page(&self, m: &M, pfn: Pfn) {
        m.page(pfn).add_ref();
    }

    /// Drops a reference and frees the block with the last one (the kernel's `__free_pages`). False where nothing was
    /// done: the block is free already, or the lock was not to be had and the reference is still the caller's.
    ///
    /// # Safety
    /// `pfn` is a frame of this allocator, the reference is the caller's to drop (from the allocation, or
    /// [`PageAllocator::get_page`]), and where it is the last one nobody uses the block's memory any more.
    pub unsafe fn put_pages(&self, m: &M, pfn: Pfn, order: Order, may_block: bool) -> bool {
        let page = m.page(pfn);
        if page.kind() != Kind::Allocated || page.order() != order {
            return false;
        }
        if page.drop_ref() > 0 {
            return true;
        }
        let freed = self.free_as(m, pfn, order, None, true, may_block);
        if !freed {
            page.add_ref();
        }
        freed
    }

    /// [`PageAllocator::put_pages`] for one page (the kernel's `put_page`, `__free_page`).
    ///
    /// # Safety
    /// As for [`PageAllocator::put_pages`].
    pub unsafe fn put_page(&self, m: &M, pfn: Pfn, may_block: bool) -> bool {
        // SAFETY: the caller's condition, which is the same.
        unsafe { self.put_pages(m, pfn, Order::ZERO, may_block) }
    }

    /// The address of a block of `2^order` pages, null without memory (the kernel's `__get_free_pages`). Never HIGHMEM,
    /// which has no address: asking for it is a mistake.
    pub fn get_free_pages(&self, m: &M, gfp: Gfp, order: Order) -> *mut u8 {
        debug_assert!(!gfp.has(Gfp::HIGHMEM), "HIGHMEM has no address");
        let block = self.alloc_pages(m, gfp.without(Gfp::HIGHMEM), order, None);
        block.map_or(ptr::null_mut(), |pfn| m.virt(pfn))
    }

    /// The address of one zeroed page (the kernel's `get_zeroed_page`; `get_free_page` in the days of 2.2).
    pub fn get_zeroed_page(&self, m: &M, gfp: Gfp) -> *mut u8 {
        self.get_free_pages(m, gfp.with(Gfp::ZERO), Order::ZERO)
    }

    /// The address of a block below 16 MiB.
    pub fn get_dma_pages(&self, m: &M, gfp: Gfp, order: Order) -> *mut u8 {
        self.get_free_pages(m, gfp.with(Gfp::DMA), order)
    }

    /// Frees a block by its address; null is no block. False as for [`PageAllocator::put_pages`], and for an address
    /// that is not the start of an allocated block of that order.
    ///
    /// # Safety
    /// As for [`PageAllocator::put_pages`], of the block that starts there, if one does.
    pub unsafe fn free_pages_at(&self, m: &M, address: *mut u8, order: Order, may_block: bool) -> bool {
        if address.is_null() {
            return true;
        }
        match m.pfn(address) {
            // SAFETY: the machine knows the frame, and the block that starts at its address is the one that the caller
            // speaks of.
            Some(pfn) if m.virt(pfn) == address => unsafe { self.put_pages(m, pfn, order, may_block) },
            _ => false,
        }
    }

    /// The address of at least `bytes` bytes in pages of a run ([`PageAllocator::alloc_run`]), not of a power of two;
    /// null without memory or above 4 MiB.
    pub fn alloc_pages_exact(&self, m: &M, gfp: Gfp, bytes: usize) -> *mut u8 {
        debug_assert!(!gfp.has(Gfp::HIGHMEM), "HIGHMEM has no address");
        let pages = bytes.div_ceil(PAGE_SIZE);
        let run = u32::try_from(pages)
            .ok()
            .and_then(|pages| self.alloc_run(m, gfp.without(Gfp::HIGHMEM), pages.max(1), None));
        run.map_or(ptr::null_mut(), |pfn| m.virt(pfn))
    }

    /// Frees what [`PageAllocator::alloc_pages_exact`] returned. False for anything else, or without the lock.
    ///
    /// # Safety
    /// If a run starts there it is the caller's, and nobody uses its memory any more.
    pub unsafe fn free_pages_exact(&self, m: &M, address: *mut u8, may_block: bool) -> bool {
        if address.is_null() {
            return true;
        }
        let Some(pfn) = m.pfn(address).filter(|pfn| m.virt(*pfn) == address) else { return false };
        let page = m.page(pfn);
        page.kind() == Kind::Run && self.give_back_run(m, PfnRange::new(pfn, page.word() as u32), may_block)
    }
}
