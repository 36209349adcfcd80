//! Random operations on the whole layer against a plain map of what is handed out, with every invariant checked after
//! each.

use std::boxed::Box;
use std::collections::BTreeMap;
use std::vec::Vec;

use crate::config::Options;
use crate::gfp::Gfp;
use crate::machine::sim::{Builder, Flavour, Sim, SimBare, SimHosted, Simulated};
use crate::machine::{Frames, ZoneKind};
use crate::page::{Kind, flag};
use crate::types::{Order, PAGE_SIZE, Pfn, PfnRange};
use crate::zone::PageAllocator;
use crate::zone::extent::Extent;

/// What can be done to the allocator; numbers are taken modulo what there is.
#[derive(Clone, Copy, Debug)]
enum Op {
    Alloc { gfp: Gfp, order: u8, node: usize },
    Run { gfp: Gfp, pages: u32, align: u32 },
    Free { which: usize },
    FreeClean { which: usize },
    Resize { which: usize, pages: u32 },
    TakeBacked,
    Age { ms: u64 },
    Trim { everything: bool },
    Drain,
    Cpu { cpu: usize },
}

const GFPS: [Gfp; 12] = [
    Gfp::KERNEL,
    Gfp::MALLOC,
    Gfp::ATOMIC,
    Gfp::NOWAIT,
    Gfp::NOIO,
    Gfp(Gfp::KERNEL.0 | Gfp::ZERO.0),
    Gfp(Gfp::KERNEL.0 | Gfp::RECLAIMABLE.0),
    Gfp(Gfp::KERNEL.0 | Gfp::MOVABLE.0),
    Gfp(Gfp::KERNEL.0 | Gfp::MOVABLE.0 | Gfp::ZERO.0),
    Gfp(Gfp::HIGHUSER_MOVABLE.0),
    Gfp(Gfp::KERNEL.0 | Gfp::DMA.0),
    Gfp(Gfp::KERNEL.0 | Gfp::THISNODE.0),
];

/// A small generator of random numbers (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

fn random_op(r: &mut Random) -> Op {
    let gfp = GFPS[r.below(GFPS.len() as u64) as usize];
    // Small sizes more often than big ones.
    let order = (r.below(11).min(r.below(11))) as u8;
    let most = 1 << r.below(11);
    let pages = 1 + r.below(most) as u32;
    let which = r.next() as usize;
    match r.below(40) {
        0..10 => Op::Alloc { gfp, order, node: which },
        10..18 => Op::Run { gfp, pages, align: 1 << (which % 40).saturating_sub(30) },
        18..31 => Op::Free { which },
        31 => Op::FreeClean { which },
        32..35 => Op::Resize { which, pages },
        35 => Op::TakeBacked,
        36 => Op::Age { ms: r.below(20_000) },
        37 => Op::Trim { everything: which.is_multiple_of(2) },
        38 => Op::Drain,
        _ => Op::Cpu { cpu: which },
    }
}

/// A machine, its allocator, and what the oracle knows.
struct World<F: Flavour> {
    sim: Simulated<F>,
    zones: Box<PageAllocator<Simulated<F>>>,
    /// Handed out: start, pages, kind, and the byte its first and last page hold.
    held: BTreeMap<u32, (u32, Kind, u8)>,
    cpus: usize,
    nodes: usize,
    tag: u8,
}

impl<F: Flavour> World<F> {
    fn new(builder: Builder<F>, cpus: usize, nodes: usize, limit: u64) -> World<F> {
        let sim = builder.cpus(cpus).nodes(nodes).build();
        let zones = Box::new(PageAllocator::new());
        zones.init(&sim, &Options { limit_bytes: limit, ..Options::DEFAULT });
        for (node, kind, range) in sim.ram() {
            unsafe { zones.add(&sim, *node, *kind, *range) };
        }
        World { sim, zones, held: BTreeMap::new(), cpus, nodes, tag: 0 }
    }

    fn bytes(&self, pfn: Pfn) -> Option<&'static mut [u8]> {
        let at = self.sim.virt(pfn);
        // SAFETY: the frame was handed out to this test, which drops the slice before it frees the frame.
        (!at.is_null()).then(|| unsafe { core::slice::from_raw_parts_mut(at, PAGE_SIZE) })
    }

    /// Takes note of a block: it overlaps no other, and reads zero where that was promised.
    fn got(&mut self, pfn: Pfn, pages: u32, kind: Kind, gfp: Gfp) {
        let range = PfnRange::new(pfn, pages);
        let before = self.held.range(..range.end().0).next_back();
        assert!(before.is_none_or(|(start, (n, ..))| start + n <= pfn.0), "{range:?} overlaps {before:?}");
        assert!(range.iter().all(|p| self.sim.is_online(p)), "{range:?} is not online");
        let page = self.sim.page(pfn);
        assert_eq!(page.kind(), kind);
        assert_eq!((page.refs(), page.mapcount()), (1, -1));
        let zero = page.has(flag::ZERO);
        if let Some(first) = self.bytes(pfn) {
            assert!(zero || !gfp.has(Gfp::ZERO), "__GFP_ZERO without the flag");
            if zero {
                assert!(range.iter().all(|p| self.bytes(p).unwrap().iter().all(|b| *b == 0)), "{range:?} not zero");
            }
            self.tag = self.tag.wrapping_add(1) | 1;
            first.fill(self.tag);
            self.bytes(pfn.add(pages - 1)).unwrap().fill(self.tag);
        }
        self.held.insert(pfn.0, (pages, kind, self.tag));
    }

    fn pick(&self, which: usize) -> Option<(Pfn, u32, Kind, u8)> {
        let (start, (pages, kind, tag)) = self.held.iter().nth(which.checked_rem(self.held.len())?)?;
        Some((Pfn(*start), *pages, *kind, *tag))
    }

    fn intact(&self, pfn: Pfn, pages: u32, tag: u8) {
        for p in [pfn, pfn.add(pages - 1)] {
            assert!(self.bytes(p).is_none_or(|b| b.iter().all(|b| *b == tag)), "{p:?} was overwritten");
        }
    }

    fn apply(&mut self, op: Op) {
        let (m, z) = (self.sim.clone(), &self.zones);
        match op {
            Op::Alloc { gfp, order, node } => {
                let order = Order::new(order).unwrap();
                let node = (node % 3 != 0).then_some(node % self.nodes);
                let got = if gfp.may_io() {
                    z.alloc_pages(&m, gfp, order, node)
                } else {
                    // No system call may come of it.
                    m.forbid_calls(|| z.alloc_pages(&m, gfp, order, node))
                };
                if let Some(pfn) = got {
                    assert_eq!(pfn.0 % order.pages(), 0, "{pfn:?} is not aligned to {order:?}");
                    assert_eq!(m.page(pfn).order(), order);
                    assert!(!gfp.has(Gfp::THISNODE) || node.is_none_or(|n| m.page(pfn).node() == n));
                    assert!(!gfp.has(Gfp::DMA) || m.page(pfn).zone() == ZoneKind::Dma as usize);
                    self.got(pfn, order.pages(), Kind::Allocated, gfp);
                }
            }
            Op::Run { gfp, pages, align } => {
                if let Some(pfn) = z.alloc_aligned_run(&m, gfp, pages, align, None) {
                    assert!(pfn.0.is_multiple_of(align), "{pfn:?} is no multiple of {align}");
                    let word = m.page(pfn).word() as u32;
                    // The pool for atomic requests knows whole blocks only.
                    let most = if gfp.no_fault() { pages.max(align).next_power_of_two() } else { pages };
                    assert!((pages..=most + pages / 8).contains(&word), "{word} pages for {pages}");
                    self.got(pfn, word, Kind::Run, gfp);
                }
            }
            Op::Free { which } => {
                let Some((pfn, pages, kind, tag)) = self.pick(which) else { return };
                self.intact(pfn, pages, tag);
                self.held.remove(&pfn.0);
                let done = match kind {
                    Kind::Run => unsafe { z.free_run(&m, PfnRange::new(pfn, pages), which % 2 == 0) },
                    _ => unsafe { z.free_pages(&m, pfn, Order::holding(pages as usize).unwrap(), which % 2 == 0) },
                };
                assert!(done, "nobody else holds the lock");
            }
            Op::FreeClean { which } => {
                let Some((pfn, pages, kind, _)) = self.pick(which) else { return };
                if kind == Kind::Run {
                    return;
                }
                let range = PfnRange::new(pfn, pages);
                for p in range.iter() {
                    if let Some(bytes) = self.bytes(p) {
                        bytes.fill(0);
                    }
                }
                m.discard(range);
                self.held.remove(&pfn.0);
                assert!(unsafe { z.free_clean(&m, pfn, Order::holding(pages as usize).unwrap(), true) });
            }
            Op::Resize { which, pages } => {
                let Some((pfn, old, Kind::Run, tag)) = self.pick(which) else { return };
                let done = unsafe { z.resize_run(&m, PfnRange::new(pfn, old), pages) };
                assert!(done || pages > old, "shrinking always works");
                if done {
                    assert_eq!(m.page(pfn).word(), u64::from(pages));
                    if let Some(bytes) = self.bytes(pfn) {
                        assert!(bytes.iter().all(|b| *b == tag));
                        self.bytes(pfn.add(pages - 1)).unwrap().fill(tag);
                    }
                    self.held.insert(pfn.0, (pages, Kind::Run, tag));
                    let next = self.held.range(pfn.0 + 1..).next();
                    assert!(next.is_none_or(|(start, _)| pfn.0 + pages <= *start), "grew into {next:?}");
                }
            }
            Op::TakeBacked => {
                if let Some(pfn) = z.take_backed(&m) {
                    assert_eq!((m.page(pfn).kind(), pfn.0 % 512), (Kind::Isolated, 0));
                    assert!(m.discard(PfnRange::new(pfn, 512)) || !<Simulated<F> as Frames>::LENT);
                    if <Simulated<F> as Frames>::LENT {
                        assert!(unsafe { z.free_clean(&m, pfn, Order::PAGEBLOCK, true) });
                    } else {
                        assert!(unsafe { z.free_pages(&m, pfn, Order::PAGEBLOCK, true) });
                    }
                }
            }
            Op::Age { ms } => {
                m.advance(ms);
                z.age(&m);
                if ms % 2 == 0 {
                    z.turn(&m);
                }
                z.give_back_excess(&m, u64::MAX);
                if z.is_strewn(&m) {
                    z.give_back_strewn(&m, u64::MAX);
                }
            }
            Op::Trim { everything } => {
                z.trim(&m, everything);
            }
            Op::Drain => z.drain(&m),
            Op::Cpu { cpu } => m.set_cpu(cpu % self.cpus),
        }
    }

    /// All pages are free, handed out, or nowhere: the equation of the layer.
    fn check(&self) {
        self.zones.verify(&self.sim).unwrap_or_else(|e| panic!("{e}"));
        let stats = self.zones.stats(&self.sim);
        let held: u64 = self.held.values().map(|(pages, ..)| u64::from(*pages)).sum();
        assert_eq!(
            stats.all.managed,
            stats.all.free + stats.pcp_pages + stats.own_pages + stats.emergency_pages + held,
            "frames lost or won"
        );
        let clean = stats.all.free - stats.all.backed;
        if <Simulated<F> as Frames>::LENT {
            assert!(
                self.sim.backed() <= stats.committed,
                "{} pages backed, {} committed",
                self.sim.backed(),
                stats.committed
            );
        }
        assert_eq!(stats.committed, stats.all.managed - clean, "committed pages miscounted");
    }

    /// Frames that are free and said to read zero do so.
    fn check_zeroes(&self) {
        for pfn in self.zones.blocks.iter().flat_map(|block| PfnRange::new(block, 512).iter()) {
            let page = self.sim.page(pfn);
            let pages = match page.kind() {
                Kind::Buddy => page.order().pages(),
                Kind::Row => page.word() as u32,
                _ => continue,
            };
            let hull = Extent::unpack(page.refs());
            for at in 0..pages {
                let claimed = page.has(flag::ZERO) || hull.cut(at, 1).is_empty();
                let range = PfnRange::new(pfn.add(at), 1);
                if hull.cut(at, 1).is_empty() && <Simulated<F> as Frames>::LENT {
                    assert_eq!(self.sim.backed_in(range), 0, "{range:?} is backed");
                } else if claimed && self.sim.backed_in(range) != 0 {
                    let zero = self.bytes(range.start).is_none_or(|bytes| bytes.iter().all(|b| *b == 0));
                    assert!(zero, "{range:?} does not read zero");
                }
            }
        }
    }

    fn run(&mut self, seed: u64, steps: usize) {
        let mut r = Random(seed);
        let mut log = Vec::new();
        for step in 0..steps {
            let op = random_op(&mut r);
            log.push(op);
            self.apply(op);
            if step % 8 == 0 {
                self.check();
            }
            if step % 128 == 0 {
                self.check_zeroes();
            }
        }
        while let Some((pfn, ..)) = self.pick(0) {
            self.apply(Op::Free { which: 0 });
            assert!(!self.held.contains_key(&pfn.0));
        }
        self.zones.drain(&self.sim);
        self.check();
        let stats = self.zones.stats(&self.sim);
        let free = stats.all.free + stats.emergency_pages;
        assert_eq!(free + stats.own_pages, stats.all.managed);
        assert_eq!(stats.pcp_pages, 0);
    }
}

// rows: D1 D2 A5
#[test]
fn one_growing_zone() {
    for seed in 0..4 {
        World::new(Sim::builder().grow(0, ZoneKind::Normal, 1 << 14, 1 << 13, 1 << 10), 2, 1, 0).run(seed, 1500);
    }
}

// rows: D1 D9 D11
#[test]
fn odd_ranges_and_holes() {
    for seed in 0..4 {
        let builder = SimBare::builder()
            .ram(0, ZoneKind::Dma, 3, 157)
            .ram(0, ZoneKind::Dma, 200, 1800)
            .ram(0, ZoneKind::Normal, 4096 + 7, 1021)
            .ram(0, ZoneKind::Normal, 6144, 512)
            .ram(0, ZoneKind::Normal, 7000, 1)
            .ram(0, ZoneKind::HighMem, 8192 + 512, 1024);
        World::new(builder, 2, 1, 0).run(seed, 1500);
    }
}

// rows: B2 B3 D1
#[test]
fn two_nodes_and_a_budget() {
    for seed in 0..4 {
        let builder = SimHosted::builder()
            .grow(0, ZoneKind::Normal, 1 << 14, 1 << 12, 512)
            .grow(1, ZoneKind::Normal, 1 << 16, 1 << 12, 512)
            .grow(0, ZoneKind::Dma, 1024, 2048, 512)
            .grow(1, ZoneKind::Movable, 1 << 17, 1024, 512);
        World::new(builder, 4, 2, (2500 * PAGE_SIZE) as u64).run(seed, 1500);
    }
}
