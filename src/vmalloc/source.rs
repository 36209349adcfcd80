//! What vmalloc asks of the zone layer; a trait so that tests can put a miser in its place.
#![allow(unsafe_code)]

use crate::gfp::Gfp;
use crate::machine::Machine;
use crate::types::{Order, Pfn};
use crate::zone::PageAllocator;

/// The part of [`PageAllocator`] that vmalloc uses; see there.
///
/// # Safety
/// Frames are nobody else's when they are handed out, until they are given back.
#[allow(missing_docs, clippy::missing_safety_doc)]
pub unsafe trait FrameSource<M: Machine> {
    fn alloc_pages(&self, m: &M, gfp: Gfp, order: Order, node: Option<usize>) -> Option<Pfn>;
    unsafe fn free_pages(&self, m: &M, pfn: Pfn, order: Order, may_block: bool) -> bool;
    unsafe fn free_clean(&self, m: &M, pfn: Pfn, order: Order, may_block: bool) -> bool;
    fn take_backed(&self, m: &M) -> Option<Pfn>;
    fn charge(&self, pages: u64) -> bool;
    fn uncharge(&self, pages: u64);
    fn pressed(&self) -> bool {
        false
    }
    fn affords(&self, _pages: u64) -> bool {
        true
    }
    fn learn_pressure(&self, _m: &M) {}
}

// SAFETY: they were free, or the CPU's that asks.
unsafe impl<M: Machine> FrameSource<M> for PageAllocator<M> {
    fn alloc_pages(&self, m: &M, gfp: Gfp, order: Order, node: Option<usize>) -> Option<Pfn> {
        PageAllocator::alloc_pages(self, m, gfp, order, node)
    }
    unsafe fn free_pages(&self, m: &M, pfn: Pfn, order: Order, may_block: bool) -> bool {
        // SAFETY: the trait asks of the caller what the zone layer does.
        unsafe { PageAllocator::free_pages(self, m, pfn, order, may_block) }
    }
    unsafe fn free_clean(&self, m: &M, pfn: Pfn, order: Order, may_block: bool) -> bool {
        // SAFETY: the trait asks of the caller what the zone layer does.
        unsafe { PageAllocator::free_clean(self, m, pfn, order, may_block) }
    }
    fn take_backed(&self, m: &M) -> Option<Pfn> {
        PageAllocator::take_backed(self, m)
    }
    fn charge(&self, pages: u64) -> bool {
        PageAllocator::charge(self, pages)
    }
    fn uncharge(&self, pages: u64) {
        PageAllocator::uncharge(self, pages);
    }
    fn pressed(&self) -> bool {
        PageAllocator::pressed(self)
    }
    fn affords(&self, pages: u64) -> bool {
        PageAllocator::affords(self, pages)
    }
    fn learn_pressure(&self, m: &M) {
        PageAllocator::learn_pressure(self, m);
    }
}
