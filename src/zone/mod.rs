//! (under construction)
#![allow(unsafe_code, missing_docs, clippy::all)]
use crate::{config::Options, gfp::Gfp, machine::*, page::Kind, sync::Lock, types::*};
pub struct PageAllocator<M> {
    l: Lock<Option<PfnRange>>,
    p: core::marker::PhantomData<fn(&M)>,
}
impl<M: Machine> PageAllocator<M> {
    pub const fn new() -> Self {
        Self { l: Lock::new(None), p: core::marker::PhantomData }
    }
    pub fn init(&self, _m: &M, _o: &Options) {}
    pub fn alloc_pages(&self, m: &M, _g: Gfp, o: Order, _n: Option<usize>) -> Option<Pfn> {
        let mut l = self.l.lock(m);
        loop {
            if let Some(r) = l.as_mut() {
                let s = Pfn((r.start.0 + o.pages() - 1) & !(o.pages() - 1));
                if s.0 + o.pages() <= r.end().0 {
                    *r = PfnRange::new(s.add(o.pages()), r.end().0 - s.0 - o.pages());
                    m.page(s).set_home(2, 0);
                    for i in 0..o.pages() {
                        m.page(s.add(i)).set_home(2, 0);
                    }
                    m.page(s).set_kind(Kind::Allocated, o);
                    m.page(s).set_refs(1);
                    return Some(s);
                }
            }
            *l = Some(m.grow(0, ZoneKind::Normal, 1024)?);
        }
    }
    pub fn free_pages(&self, _m: &M, _p: Pfn, _o: Order, _b: bool) -> bool {
        true
    }
    pub fn alloc_run(&self, m: &M, g: Gfp, pages: u32, n: Option<usize>) -> Option<Pfn> {
        let p = self.alloc_pages(m, g, Order::holding(pages as usize)?, n)?;
        m.page(p).set_kind(Kind::Run, Order::ZERO);
        m.page(p).set_word(pages as u64);
        Some(p)
    }
    pub fn free_run(&self, _m: &M, _r: PfnRange, _b: bool) -> bool {
        true
    }
    pub fn resize_run(&self, _m: &M, _r: PfnRange, _p: u32) -> bool {
        false
    }
    pub fn drain(&self, _m: &M) {}
    pub fn age(&self, _m: &M, _n: u64) -> u64 {
        0
    }
    pub fn trim(&self, _m: &M, _e: bool) -> u64 {
        0
    }
    pub fn lock_all(&self, _m: &M) {}
    pub unsafe fn unlock_all(&self, _m: &M) {}
}
