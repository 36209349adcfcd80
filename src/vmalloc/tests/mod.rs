//! vmalloc on the simulator, with real zones below it.
#![allow(unsafe_code, clippy::undocumented_unsafe_blocks)] // the calls under test, on memory of the test's own

mod failures;
mod model;
mod space;
mod tree;
mod usage;

use std::vec::Vec;

use super::Vmalloc;
use crate::config::Options;
use crate::gfp::Gfp;
use crate::machine::ZoneKind;
use crate::machine::sim::{Flavour, Simulated};
use crate::types::{Order, PAGE_SIZE};
use crate::zone::PageAllocator;

pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() >> 11) as usize % n
    }
}

/// A machine, its zones and the layer under test.
pub struct World<F: Flavour> {
    pub m: Simulated<F>,
    pub pages: PageAllocator<Simulated<F>>,
    pub v: Vmalloc<Simulated<F>>,
    /// Pages that the zones took for themselves.
    zones_own: u64,
}

/// A live area: what a model knows of it.
#[derive(Clone, Copy, Debug)]
pub struct Live {
    pub at: usize,
    pub size: usize,
    pub seed: u64,
}

impl<F: Flavour> World<F> {
    /// `frames` of memory and a window of `slots`. Where slots are frames, half the memory has no address of its own.
    pub fn new(frames: u32, slots: usize, budget: u64) -> World<F> {
        World::under_pressure(frames, slots, budget, u64::MAX)
    }

    /// [`World::new`] on a machine that is short of memory beyond `pressure` pages.
    pub fn under_pressure(frames: u32, slots: usize, budget: u64, pressure: u64) -> World<F> {
        let slot = 1 << F::SLOT_SHIFT;
        let m = Simulated::<F>::builder()
            .ram(0, ZoneKind::Normal, 1024, frames)
            .ram(0, ZoneKind::HighMem, 1 << 16, if F::OWNS_FRAMES { frames } else { 512 })
            .window(slots * slot)
            .budget(budget)
            .pressure(pressure)
            .build();
        let pages = PageAllocator::new();
        pages.init(&m, &Options::DEFAULT);
        for (node, zone, range) in m.ram() {
            unsafe { pages.add(&m, *node, *zone, *range) };
        }
        // The zones' own pages are taken with the first request.
        for gfp in [Gfp::KERNEL, Gfp::KERNEL | Gfp::HIGHMEM] {
            let page = pages.alloc_pages(&m, gfp, Order::ZERO, None).unwrap();
            unsafe { pages.free_pages(&m, page, Order::ZERO, true) };
        }
        let mut world = World { m, pages, v: Vmalloc::new(), zones_own: 0 };
        world.zones_own = world.pages_out();
        world
    }

    pub fn slot() -> usize {
        1 << F::SLOT_SHIFT
    }

    pub fn alloc(&self, size: usize, align: usize, gfp: Gfp) -> Option<usize> {
        self.v.alloc(&self.m, &self.pages, size, align, gfp).map(|p| p.as_ptr().expose_provenance())
    }

    pub fn realloc(&self, at: usize, size: usize, gfp: Gfp) -> Option<usize> {
        (unsafe { self.v.realloc(&self.m, &self.pages, pointer(at), size, gfp) })
            .map(|p| p.as_ptr().expose_provenance())
    }

    pub fn free(&self, at: usize) -> Result<(), super::FreeError> {
        unsafe { self.v.free(&self.m, &self.pages, pointer(at), true) }
    }

    pub fn size(&self, at: usize) -> usize {
        self.v.usable_size(&self.m, pointer(at), true).unwrap()
    }

    pub fn verify(&self) {
        self.v.verify(&self.m).unwrap();
        self.pages.verify(&self.m).unwrap();
    }

    /// Pages that are neither free nor the layer's own.
    pub fn pages_out(&self) -> u64 {
        let stats = self.pages.stats(&self.m);
        stats.all.managed
            - stats.all.free
            - stats.pcp_pages
            - stats.emergency_pages
            - self.v.stats(&self.m).own_pages as u64
    }

    /// Gives everything back and checks that it came back.
    pub fn end(self, live: Vec<Live>) {
        for area in live {
            check(&area, area.size);
            self.free(area.at).unwrap();
        }
        self.v.purge(&self.m, &self.pages);
        self.verify();
        let stats = self.v.stats(&self.m);
        assert_eq!((stats.busy, stats.retained, stats.charged), (0, 0, 0));
        assert_eq!((self.m.slots_used(), self.pages_out()), (0, self.zones_own));
    }
}

pub fn pointer(at: usize) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut(at)
}

/// Bytes that are written and checked: all of a page, or of big areas a word at a place of its own in each.
fn places(size: usize) -> impl Iterator<Item = usize> {
    let all = size <= 64 * PAGE_SIZE;
    (0..size)
        .step_by(if all { 8 } else { PAGE_SIZE })
        .map(move |at| if all { at } else { at + at / PAGE_SIZE * 72 % 4088 / 8 * 8 })
}

fn word(seed: u64, at: usize) -> u64 {
    (seed ^ at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

pub fn fill(area: &Live) {
    for at in places(area.size) {
        // SAFETY: a live area of the test's.
        unsafe { pointer(area.at).add(at).cast::<u64>().write(word(area.seed, at)) }
    }
}

/// Checks the first `size` bytes of what `fill` wrote.
pub fn check(area: &Live, size: usize) {
    for at in places(area.size).filter(|at| at + 8 <= size) {
        // SAFETY: as in `fill`.
        let found = unsafe { pointer(area.at).add(at).cast::<u64>().read() };
        assert_eq!(found, word(area.seed, at), "byte {at:#x} of {area:x?}");
    }
}

pub fn is_zero(at: usize, from: usize, size: usize) -> bool {
    // Every byte: leftovers can be anywhere.
    // SAFETY: as in `fill`; areas are aligned to pages.
    let words = unsafe { core::slice::from_raw_parts(pointer(at + from).cast::<u64>(), (size - from) / 8) };
    words.iter().all(|w| *w == 0)
}
