//! (under construction)
#![allow(unsafe_code, missing_docs, clippy::all)]
use crate::{error::Defect, gfp::Gfp, machine::*, zone::PageAllocator};
use core::ptr::NonNull;
pub enum FreeError {
    Defect(Defect),
    Busy,
}
pub struct Vmalloc<M> {
    p: core::marker::PhantomData<fn(&M)>,
}
impl<M: Machine> Vmalloc<M> {
    pub const fn new() -> Self {
        Self { p: core::marker::PhantomData }
    }
    pub fn init(&self, _m: &M) {}
    pub fn alloc(&self, _m: &M, _p: &PageAllocator<M>, _s: usize, _a: usize, _g: Gfp) -> Option<NonNull<u8>> {
        None
    }
    pub fn free(&self, _m: &M, _p: &PageAllocator<M>, _a: *mut u8, _b: bool) -> Result<(), FreeError> {
        Ok(())
    }
    pub fn usable_size(&self, _m: &M, _a: *mut u8, _b: bool) -> Result<usize, Defect> {
        Ok(0)
    }
    pub fn realloc(&self, _m: &M, _p: &PageAllocator<M>, _a: *mut u8, _s: usize, _g: Gfp) -> Option<NonNull<u8>> {
        None
    }
    pub fn purge(&self, _m: &M, _p: &PageAllocator<M>) -> u64 {
        0
    }
    pub fn age(&self, _m: &M, _p: &PageAllocator<M>, _n: u64) -> u64 {
        0
    }
    pub fn contains(&self, _m: &M, _a: *const u8) -> bool {
        false
    }
    pub fn lock_all(&self, _m: &M, _may_block: bool) {}
    pub unsafe fn unlock_all(&self, _m: &M) {}
}
