//! The kernel's page calls by their names: by address, by reference count, for one page, of an exact size.

use core::ptr;

use super::PageAllocator;
use crate::gfp::Gfp;
use crate::machine::Machine;
use crate::page::Kind;
use crate::types::{Order, PAGE_SIZE, Pfn, PfnRange};

impl<M: Machine> PageAllocator<M> {
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

    /// Drops a reference and frees the block with the last one (the kernel's `__free_pages`). False where nothing was done: the
    /// block is free already, or the lock was not to be had and the reference is still the caller's.
    pub fn put_pages(&self, m: &M, pfn: Pfn, order: Order, may_block: bool) -> bool {
        let page = m.page(pfn);
        if page.kind() != Kind::Allocated || page.order() != order {
            return false;
        }
        if page.drop_ref() > 0 {
            return true;
        }
        let freed = self.free_pages(m, pfn, order, may_block);
        if !freed {
            page.add_ref();
        }
        freed
    }

    /// [`PageAllocator::put_pages`] for one page (the kernel's `put_page`, `__free_page`).
    pub fn put_page(&self, m: &M, pfn: Pfn, may_block: bool) -> bool {
        self.put_pages(m, pfn, Order::ZERO, may_block)
    }

    /// The address of a block of `2^order` pages, null without memory (the kernel's `__get_free_pages`). Never HIGHMEM, which has
    /// no address: asking for it is a mistake.
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

    /// Frees a block by its address; null is no block. False as for [`PageAllocator::put_pages`], and for an address that is
    /// not the start of an allocated block of that order.
    pub fn free_pages_at(&self, m: &M, address: *mut u8, order: Order, may_block: bool) -> bool {
        if address.is_null() {
            return true;
        }
        match m.pfn(address) {
            Some(pfn) if m.virt(pfn) == address => self.put_pages(m, pfn, order, may_block),
            _ => false,
        }
    }

    /// The address of at least `bytes` bytes in pages of a run ([`PageAllocator::alloc_run`]), not of a power of two; null without memory or above 4 MiB.
    pub fn alloc_pages_exact(&self, m: &M, gfp: Gfp, bytes: usize) -> *mut u8 {
        debug_assert!(!gfp.has(Gfp::HIGHMEM), "HIGHMEM has no address");
        let pages = bytes.div_ceil(PAGE_SIZE);
        let run = u32::try_from(pages)
            .ok()
            .and_then(|pages| self.alloc_run(m, gfp.without(Gfp::HIGHMEM), pages.max(1), None));
        run.map_or(ptr::null_mut(), |pfn| m.virt(pfn))
    }

    /// Frees what [`PageAllocator::alloc_pages_exact`] returned. False for anything else, or without the lock.
    pub fn free_pages_exact(&self, m: &M, address: *mut u8, may_block: bool) -> bool {
        if address.is_null() {
            return true;
        }
        let Some(pfn) = m.pfn(address).filter(|pfn| m.virt(*pfn) == address) else { return false };
        let page = m.page(pfn);
        page.kind() == Kind::Run && self.free_run(m, PfnRange::new(pfn, page.word() as u32), may_block)
    }
}
