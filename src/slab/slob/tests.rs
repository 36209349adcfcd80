//! First fit on a machine with 64 pages.
#![allow(clippy::undocumented_unsafe_blocks)] // the calls under test, on memory of the test's own

use std::collections::BTreeMap;
use std::vec::Vec;

use super::*;
use crate::machine::ZoneKind::Normal;
use crate::machine::sim::SimBare;
use crate::types::PfnRange;

struct World {
    m: SimBare,
    pages: PageAllocator<SimBare>,
    slob: Slob<SimBare>,
}

fn world(pages: u32) -> World {
    let m = SimBare::builder().ram(0, Normal, 0, pages).build();
    let w = World { m, pages: PageAllocator::new(), slob: Slob::new() };
    unsafe { w.pages.add(&w.m, 0, Normal, PfnRange::new(Pfn(0), pages)) };
    w
}

impl World {
    fn alloc(&self, size: usize, align: usize) -> *mut u8 {
        self.slob.alloc(&self.m, &self.pages, size, align, Gfp::KERNEL)
    }

    fn free(&self, block: *mut u8) -> Result<bool, Defect> {
        unsafe { self.slob.free(&self.m, &self.pages, block, true) }
    }

    fn free_pages(&self) -> u64 {
        let stats = self.pages.stats(&self.m);
        stats.all.free + stats.pcp_pages + stats.own_pages
    }
}

// rows: G20
#[test]
fn blocks_of_all_sizes_come_and_go() {
    let w = world(64);
    let mut live: BTreeMap<usize, (usize, u8)> = BTreeMap::new();
    let mut random = 12345u64;
    for step in 0..20_000u32 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let r = (random >> 33) as usize;
        if r % 5 < 2 && !live.is_empty() {
            let (&at, &(size, fill)) = live.iter().nth(r % live.len()).unwrap();
            live.remove(&at);
            let block: *mut u8 = ptr::with_exposed_provenance_mut(at);
            // SAFETY: the block is live and `size` bytes long.
            assert!((0..size).all(|i| unsafe { block.add(i).read() } == fill), "contents changed");
            assert_eq!(w.free(block), Ok(true));
        } else {
            let (size, align) = (1 + r % [16, 200, MAX][r / 7 % 3], 8 << (r / 64 % 4));
            let block = w.alloc(size, align);
            if block.is_null() {
                assert!(live.len() > 10, "full with {} blocks", live.len());
                continue;
            }
            assert_eq!(block.addr() % align, 0);
            let usable = w.slob.usable(&w.m, block, true).unwrap();
            assert!(usable >= size && usable < size + UNIT);
            let at = block.expose_provenance();
            assert!(live.range(..at).next_back().is_none_or(|(before, (size, _))| before + size <= at), "overlap");
            assert!(live.range(at..).next().is_none_or(|(after, _)| at + usable < *after), "overlap");
            // SAFETY: the block is ours and `size` bytes long.
            unsafe { block.write_bytes(step as u8, size) };
            live.insert(at, (size, step as u8));
        }
        if step % 500 == 0 {
            w.slob.verify(&w.m).unwrap();
        }
    }
    for at in live.into_keys() {
        assert_eq!(w.free(ptr::with_exposed_provenance_mut(at)), Ok(true));
    }
    assert_eq!(w.free_pages(), 64, "every page went back");
}

// rows: G20
#[test]
fn the_first_that_fits_serves_and_neighbours_merge() {
    let w = world(8);
    let blocks: Vec<*mut u8> = (0..10).map(|_| w.alloc(56, 8)).collect();
    // Behind one another, a header between.
    assert!(blocks.windows(2).all(|pair| pair[1].addr() - pair[0].addr() == 64));
    for n in [2, 4, 3] {
        assert_eq!(w.free(blocks[n]), Ok(true));
    }
    // Three that merged hold what none of them would; the rest of the hole serves next.
    let large = w.alloc(120, 8);
    assert_eq!(large, blocks[2]);
    assert_eq!(w.alloc(56, 8), blocks[4]);
    // Larger ones lie on pages of their own.
    assert!(w.alloc(500, 8).addr() / PAGE_SIZE != blocks[0].addr() / PAGE_SIZE);
}

// rows: G20 F2
#[test]
fn misuse_is_noticed() {
    let w = world(8);
    let (a, b) = (w.alloc(100, 8), w.alloc(100, 8));
    assert_eq!(w.free(a.wrapping_add(4)), Err(Defect::Interior));
    // SAFETY: within the block.
    unsafe { b.write_bytes(0, 100) };
    assert_eq!(w.free(b.wrapping_add(16)), Err(Defect::Interior));
    assert_eq!(w.free(a), Ok(true));
    assert_eq!(w.free(a), Err(Defect::DoubleFree));
    assert_eq!(w.free(b), Ok(true));
    assert_eq!(w.free_pages(), 8);
}
