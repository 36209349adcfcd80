//! The check of the zones finds what is broken on purpose; otherwise the models would prove little.

use std::boxed::Box;
use std::vec::Vec;

use core::sync::atomic::Ordering::Relaxed;

use super::behaviour::boot;
use crate::gfp::Gfp;
use crate::machine::sim::{Sim, SimBare};
use crate::machine::{Frames, ZoneKind};
use crate::page::{Kind, Page, PageList, flag};
use crate::types::{Order, Pfn, PfnRange};
use crate::zone::extent::Extent;
use crate::zone::{Cell, MigrateType, PageAllocator};

struct World {
    m: SimBare,
    z: Box<PageAllocator<SimBare>>,
}

impl World {
    /// Rows of several lengths, two of them alike; blocks of each order; pages on the lists of a CPU.
    fn new() -> World {
        let m = SimBare::builder().ram(0, ZoneKind::Normal, 1024, 4096).build();
        let z = boot(&m);
        let pages: Vec<_> = (0..64).map(|_| z.alloc_page(&m, Gfp::KERNEL).unwrap()).collect();
        let free = |pages: &[Pfn]| {
            pages.iter().step_by(2).for_each(|page| assert!(unsafe { z.free_pages(&m, *page, Order::ZERO, true) }));
        };
        free(&pages[..32]);
        z.drain(&m);
        free(&pages[32..]);
        let run = |pages| PfnRange::new(z.alloc_run(&m, Gfp::KERNEL, pages, None).unwrap(), pages);
        let runs = [3, 9, 3, 9, 3, 12, 3].map(run);
        for range in runs.iter().skip(1).step_by(2) {
            assert!(unsafe { z.free_run(&m, *range, true) });
        }
        z.verify(&m).expect("sound before it is broken");
        World { m, z }
    }

    fn cell(&self) -> &Cell {
        &self.z.zones[0][ZoneKind::Normal as usize]
    }

    fn page(&self, pfn: Pfn) -> &Page {
        self.m.page(pfn)
    }

    /// The first frame that `wanted` likes.
    #[track_caller]
    fn find(&self, wanted: impl Fn(&Page) -> bool) -> Pfn {
        let online = self.m.online();
        online.iter().flat_map(|range| range.iter()).find(|pfn| wanted(self.page(*pfn))).expect("such a frame")
    }

    /// The first frame of a row that holds memory.
    fn row(&self) -> Pfn {
        self.find(|page| page.kind() == Kind::Row && page.word() == 9)
    }

    fn kept(&self) -> &Page {
        self.page(self.find(|page| page.kind() == Kind::Pcp))
    }

    /// A page that is free on its own.
    fn single(&self) -> Pfn {
        self.find(|page| page.kind() == Kind::Buddy && page.order() == Order::ZERO)
    }

    /// Makes a frame the only one of its list.
    fn unlink(&self, pfn: Pfn) {
        PageList::new().push_back(pfn, |pfn| self.page(pfn));
    }
}

/// What `verify` says, and what is done that it says so of.
type Damage = (&'static str, fn(&World));

#[test]
fn verify_sees_damage() {
    const ENDS: &str = "the ends of a row disagree";
    const NO_ROW: &str = "row on a list that is none, or of another zone";
    const ROW_STATE: &str = "state of a row disagrees with its list";
    const NOT_KEPT: &str = "frame on a per-CPU list that is not its own";
    const KEPT_SIZE: &str = "block on a per-CPU list of another size";
    const NO_BLOCK: &str = "block on a free list that is not its own";
    const STATE: &str = "state of a free block disagrees with its list";
    let damages: &[Damage] = &[
        (ENDS, |w| w.page(w.row().add(8)).set_kind(Kind::Tail, Order::ZERO)),
        (ENDS, |w| w.page(w.row().add(8)).set_word(8)),
        ("interior page of a row heads something", |w| w.page(w.row().add(3)).set_kind(Kind::Run, Order::ZERO)),
        ("two rows were not joined", |w| {
            let behind = w.page(w.row().add(9));
            behind.set_home(ZoneKind::Normal as usize, 0);
            behind.set_kind(Kind::Row, Order::ZERO);
        }),
        (NO_ROW, |w| w.page(w.row()).set_kind(Kind::Run, Order::ZERO)),
        (NO_ROW, |w| w.page(w.row()).set_home(ZoneKind::Dma as usize, 0)),
        ("row on the list of another length", |w| {
            let row = w.row();
            w.page(row).set_word(8);
            w.page(row).set_refs(Extent::first(8).pack());
            w.page(row.add(7)).set_kind(Kind::RowEnd, Order::ZERO);
            w.page(row.add(7)).set_word(8);
        }),
        ("list of rows is shorter than its count", |w| {
            w.unlink(w.find(|p| p.kind() == Kind::Row && p.next() != Pfn::NONE))
        }),
        (ROW_STATE, |w| w.page(w.row()).set(flag::UNBACKED)),
        (ROW_STATE, |w| w.page(w.row()).set_refs(0)),
        (ROW_STATE, |w| w.page(w.row()).set_refs(Extent::first(10).pack())),
        (NOT_KEPT, |w| w.kept().set_kind(Kind::Run, Order::ZERO)),
        (NOT_KEPT, |w| w.kept().set_home(ZoneKind::Dma as usize, 0)),
        (KEPT_SIZE, |w| w.kept().set_kind(Kind::Pcp, Order::PAGEBLOCK)),
        (KEPT_SIZE, |w| w.kept().set_word(2)),
        ("per-CPU list miscounted", |w| w.unlink(w.find(|p| p.kind() == Kind::Pcp && p.next() != Pfn::NONE))),
        (NO_BLOCK, |w| w.page(w.single()).set_kind(Kind::Run, Order::ZERO)),
        (NO_BLOCK, |w| w.page(w.single()).set_kind(Kind::Buddy, Order::PAGEBLOCK)),
        (NO_BLOCK, |w| w.page(w.single()).set_cache(MigrateType::Reclaimable as u16)),
        ("block of another zone on a free list", |w| w.page(w.single()).set_home(ZoneKind::Dma as usize, 0)),
        ("free list is not linked both ways", |w| w.unlink(w.page(w.single()).next())),
        (STATE, |w| w.page(w.single()).set(flag::UNBACKED)),
        (STATE, |w| w.page(w.single()).set(flag::RESERVE)),
        (STATE, |w| w.page(w.single()).set_refs(0)),
        ("backed part of a free block lies outside it", |w| w.page(w.single()).set_refs(Extent::first(2).pack())),
        ("free block on the list of another type than its pageblock's", |w| {
            w.z.blocks.set(w.single(), MigrateType::Reclaimable);
        }),
        ("interior page of a free block heads something", |w| {
            let block = w.find(|page| page.kind() == Kind::Buddy && page.order() > Order::ZERO);
            w.page(block.add(1)).set_kind(Kind::Run, Order::ZERO);
        }),
        ("two free buddies were not merged", |w| {
            let single = w.single();
            let (page, buddy) = (w.page(single), w.page(Pfn(single.0 ^ 1)));
            buddy.set_home(ZoneKind::Normal as usize, 0);
            buddy.set_cache(page.cache());
            buddy.set_kind(Kind::Buddy, Order::ZERO);
        }),
        ("more pages free than managed", |w| w.cell().managed.store(0, Relaxed)),
        ("pages of the reserve miscounted", |w| _ = w.cell().reserve.fetch_add(1, Relaxed)),
        ("more pages managed than present", |w| w.cell().managed.store(w.cell().lock.lock(&w.m).present + 1, Relaxed)),
    ];
    for (i, (error, damage)) in damages.iter().enumerate() {
        let world = World::new();
        damage(&world);
        assert_eq!(world.z.verify(&world.m), Err(*error), "damage {i}");
    }
}

/// Memory that was never there reads zero.
#[test]
fn verify_sees_a_clean_block_that_is_not_zero() {
    let m = Sim::builder().grow(0, ZoneKind::Normal, 1 << 14, 1 << 13, 1 << 10).build();
    let z = boot(&m);
    z.alloc_page(&m, Gfp::KERNEL).unwrap();
    z.verify(&m).expect("sound before it is broken");
    let clean = |pfn: &Pfn| m.page(*pfn).kind() == Kind::Buddy && m.page(*pfn).has(flag::UNBACKED);
    let block = m.online().iter().flat_map(|range| range.iter()).find(clean).unwrap();
    m.page(block).clear(flag::ZERO);
    assert_eq!(z.verify(&m), Err("state of a free block disagrees with its list"));
}
