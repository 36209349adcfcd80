//! One test per promise: orders, zones, marks, types, heat, growth, concurrency.

use std::boxed::Box;
use std::time::Duration;
use std::vec::Vec;

use super::model::Random;
use crate::config::Options;
use crate::gfp::Gfp;
use crate::machine::sim::{Call, Flavour, Sim, SimBare, Simulated};
use crate::machine::{Frames, PerCpu, ZoneKind};
use crate::page::{Kind, flag};
use crate::sync::Fork;
use crate::types::{Order, PAGE_SIZE, PAGEBLOCK_PAGES, Pfn, PfnRange};
use crate::zone::alloc::{GROWTHS, MAX_ZONES};
use crate::zone::lists::RESERVE;
use crate::zone::rows::on_grid;
use crate::zone::{MigrateType, PageAllocator, View};

pub type Zones<F> = Box<PageAllocator<Simulated<F>>>;

pub fn boot<F: Flavour>(sim: &Simulated<F>) -> Zones<F> {
    let zones = Box::new(PageAllocator::new());
    zones.init(sim, &Options::DEFAULT);
    for (node, kind, range) in sim.ram() {
        unsafe { zones.add(sim, *node, *kind, *range) };
    }
    zones
}

fn order(n: u8) -> Order {
    Order::new(n).unwrap()
}

/// Takes pages until there are none.
fn exhaust<F: Flavour>(m: &Simulated<F>, z: &Zones<F>, gfp: Gfp) -> Vec<Pfn> {
    core::iter::from_fn(|| z.alloc_page(m, gfp)).collect()
}

// rows: A4 A10 E1 E2
#[test]
fn every_order_to_the_last_and_none_above() {
    let m = Sim::builder().grow(0, ZoneKind::Normal, 1 << 14, 1 << 13, 1 << 10).build();
    let z = boot(&m);
    for n in 0..=10 {
        let pfn = z.alloc_pages(&m, Gfp::KERNEL, order(n), None).unwrap();
        assert_eq!((pfn.0 % (1 << n), m.page(pfn).order()), (0, order(n)));
        assert!(unsafe { z.free_pages(&m, pfn, order(n), true) });
        z.verify(&m).unwrap();
    }
    assert_eq!(Order::new(11), None);
    assert_eq!(z.alloc_run(&m, Gfp::KERNEL, 1025, None), None);
    assert_eq!(z.alloc_run(&m, Gfp::KERNEL, 0, None), None);
    assert!(z.alloc_pages_exact(&m, Gfp::KERNEL, 4 << 20).addr() != 0);
    assert!(z.alloc_pages_exact(&m, Gfp::KERNEL, (4 << 20) + 1).is_null());
    assert_eq!(z.alloc_page(&m, Gfp::DMA | Gfp::DMA32), None, "flags that contradict each other");
}

// rows: D14
#[test]
fn exact_pages_keep_no_tail() {
    let m = SimBare::builder().ram(0, ZoneKind::Normal, 1024, 4096).build();
    let z = boot(&m);
    let free = || z.stats(&m).all.free;
    let before = free();
    let at = z.alloc_pages_exact(&m, Gfp::KERNEL, 9 * PAGE_SIZE - 1);
    assert_eq!(before - free() - z.stats(&m).own_pages, 9);
    assert!(!unsafe { z.free_pages_exact(&m, at.wrapping_add(PAGE_SIZE), true) }, "not its start");
    assert!(unsafe { z.free_pages_exact(&m, at, true) });
    assert!(!unsafe { z.free_pages_exact(&m, at, true) }, "free already");
}

/// A run takes the tightest row, whatever its alignment; freed runs join to rows, and whole pageblocks go back.
#[test]
fn a_run_takes_the_tightest_row() {
    let m = SimBare::builder().ram(0, ZoneKind::Normal, 1024, 4096).build();
    let z = boot(&m);
    let rows = || z.stats(&m).all.rows;
    let run = |pages| PfnRange::new(z.alloc_run(&m, Gfp::KERNEL, pages, None).unwrap(), pages);
    let free = |range| {
        assert!(unsafe { z.free_run(&m, range, true) });
        z.verify(&m).unwrap();
    };
    let before = z.stats(&m).all.free;
    let held: Vec<_> = [3, 15, 1, 12, 2, 7, 5].map(run).into();
    assert!(held.windows(2).all(|pair| pair[0].end() == pair[1].start), "one behind the other: {held:?}");
    assert!(held[0].start.0.is_multiple_of(512) && rows() == 512 - 45, "a pageblock");
    free(held[1]);
    free(held[3]);
    assert_eq!(run(12), held[3], "the tightest");
    let part = run(11);
    assert_eq!(part.start, held[1].start);
    let inside = |page| matches!(m.page(part.start.add(page)).kind(), Kind::Tail | Kind::Offline);
    assert!((1..11).all(inside));
    let rest = run(4);
    assert_eq!(rest.start, part.end(), "the rest of the row");
    // In an order in which they join before, behind, and on both sides.
    for range in [held[3], held[0], rest, held[2], part, held[6], held[5]] {
        free(range);
    }
    assert_eq!(rows(), 512 - 2);
    free(held[4]);
    assert_eq!((rows(), z.stats(&m).all.free), (0, before), "whole again");
}

/// What lies in rows serves other requests before they fail.
#[test]
fn rows_are_given_up_for_blocks() {
    let m = SimBare::builder().ram(0, ZoneKind::Normal, 1024, 4096).build();
    let z = boot(&m);
    let run = z.alloc_run(&m, Gfp::KERNEL, 5, None).unwrap();
    let held = exhaust(&m, &z, Gfp::ATOMIC | Gfp::MEMALLOC);
    z.verify(&m).unwrap();
    let stats = z.stats(&m);
    assert_eq!(stats.all.free, 0);
    assert_eq!(held.len() as u64 + 5 + stats.own_pages, stats.all.managed);
    assert!(unsafe { z.free_run(&m, PfnRange::new(run, 5), true) });
    assert!(z.alloc_page(&m, Gfp::ATOMIC | Gfp::MEMALLOC).is_some(), "out of the freed run");
    z.verify(&m).unwrap();
}

// rows: A11 E9 E11
#[test]
fn calls_by_address_count_references() {
    let m = Sim::builder().grow(0, ZoneKind::Normal, 1 << 14, 1 << 12, 512).build();
    let z = boot(&m);
    let at = z.get_zeroed_page(&m, Gfp::KERNEL);
    let pfn = m.pfn(at).unwrap();
    assert!(m.page(pfn).has(flag::ZERO));
    z.get_page(&m, pfn);
    assert!(unsafe { z.put_page(&m, pfn, true) });
    assert_eq!(m.page(pfn).kind(), Kind::Allocated, "one reference is left");
    assert!(!unsafe { z.free_pages_at(&m, at, order(1), true) }, "wrong order");
    assert!(!unsafe { z.free_pages_at(&m, at.wrapping_add(8), order(0), true) }, "inside");
    assert!(unsafe { z.free_pages_at(&m, at, order(0), true) });
    assert!(!unsafe { z.free_pages_at(&m, at, order(0), true) }, "double free");
    assert!(unsafe { z.free_pages_at(&m, core::ptr::null_mut(), order(0), true) });
}

// rows: B10 C5 C13
#[test]
fn the_reserves_are_for_those_who_may() {
    let m = SimBare::builder().ram(0, ZoneKind::Normal, 1024, 2048).build();
    let z = boot(&m);
    let held = exhaust(&m, &z, Gfp::KERNEL);
    let info = || z.zone(&m, 0, ZoneKind::Normal);
    assert_eq!(info().free, u64::from(info().marks.min), "ordinary requests end at min");
    assert_eq!(z.alloc_page(&m, Gfp::NOWAIT), None);
    assert_eq!(z.alloc_page(&m, Gfp::ATOMIC | Gfp::NOMEMALLOC), None);
    let high = exhaust(&m, &z, Gfp::KERNEL | Gfp::HIGH).len();
    assert_eq!(high as u64, u64::from(info().marks.min / 2), "HIGH to half of it");
    assert!(!exhaust(&m, &z, Gfp::ATOMIC).is_empty(), "atomic further");
    assert_ne!(info().free, 0);
    exhaust(&m, &z, Gfp::KERNEL | Gfp::MEMALLOC);
    assert_eq!(info().free, 0, "MEMALLOC to the end");
    z.verify(&m).unwrap();
    held.iter().for_each(|pfn| assert!(unsafe { z.free_pages(&m, *pfn, order(0), true) }));
    assert!(z.alloc_page(&m, Gfp::KERNEL).is_some());
}

// rows: B5 B7 D12
#[test]
fn low_zones_keep_something_from_those_who_need_not() {
    let m = SimBare::builder().ram(0, ZoneKind::Dma, 512, 2048).ram(0, ZoneKind::Normal, 1 << 14, 1 << 15).build();
    let z = boot(&m);
    exhaust(&m, &z, Gfp::KERNEL);
    let dma = z.zone(&m, 0, ZoneKind::Dma);
    assert_eq!(dma.free, u64::from(dma.marks.min) + (1 << 15) / 256);
    let pfn = z.alloc_page(&m, Gfp::KERNEL | Gfp::DMA).expect("kept for this");
    assert!(pfn.0 < 4096);
    assert!(exhaust(&m, &z, Gfp::KERNEL | Gfp::DMA).iter().all(|pfn| pfn.0 < 4096), "below 16 MiB");
}

// rows: C7
#[test]
fn dma32_is_ordinary_memory_where_that_lies_low() {
    let m = SimBare::builder().ram(0, ZoneKind::Normal, 1 << 14, 1 << 11).build();
    assert!(boot(&m).alloc_page(&m, Gfp::KERNEL | Gfp::DMA32).is_some());
    let high = SimBare::builder().ram(0, ZoneKind::Normal, 1 << 20, 1 << 11).build();
    assert!(boot(&high).alloc_page(&high, Gfp::KERNEL | Gfp::DMA32).is_none());
}

// rows: A8 B8 B9 C8
#[test]
fn highmem_has_no_address_and_movable_is_asked_for() {
    let m = SimBare::builder()
        .ram(0, ZoneKind::Normal, 1024, 2048)
        .ram(0, ZoneKind::HighMem, 4096, 1024)
        .ram(0, ZoneKind::Movable, 8192, 1024)
        .build();
    let z = boot(&m);
    let high = z.alloc_page(&m, Gfp::HIGHUSER).unwrap();
    assert!(m.virt(high).is_null());
    let movable = z.alloc_page(&m, Gfp::HIGHUSER_MOVABLE).unwrap();
    assert_eq!(m.page(movable).zone(), ZoneKind::Movable as usize);
    for pfn in exhaust(&m, &z, Gfp::HIGHUSER) {
        assert_ne!(m.page(pfn).zone(), ZoneKind::Movable as usize, "unmovable in ZONE_MOVABLE");
    }
    // Nor does one lie on the lists of a CPU for those who may not have it.
    unsafe { z.free_pages(&m, movable, order(0), true) };
    assert_eq!((z.alloc_page(&m, Gfp::HIGHUSER), z.alloc_page(&m, Gfp::HIGHUSER_MOVABLE)), (None, Some(movable)));
}

#[test]
fn what_is_handed_out_is_counted() {
    let m = SimBare::builder().ram(0, ZoneKind::Normal, 1024, 4096).build();
    let z = boot(&m);
    let counted = || {
        let zone = z.zone(&m, 0, ZoneKind::Normal);
        (zone.allocs, zone.frees)
    };
    let (allocs, frees) = counted();
    // The lists of a CPU keep none of this order.
    let block = z.alloc_pages(&m, Gfp::KERNEL, order(8), None).unwrap();
    assert_eq!(counted(), (allocs + 1, frees));
    assert!(unsafe { z.free_pages(&m, block, order(8), true) });
    assert_eq!(counted(), (allocs + 1, frees + 1));
}

/// What is above that goes back, with a part of it so that the next frees find room, but not all.
#[test]
fn a_cpu_keeps_no_more_than_its_share() {
    let m = SimBare::builder().ram(0, ZoneKind::Normal, 1024, 8192).build();
    let z = boot(&m);
    let kept = || z.pageset(&m, m.cpu(), 0, ZoneKind::Normal).unwrap();
    let pages: Vec<_> = (0..6000).map(|_| z.alloc_page(&m, Gfp::KERNEL).unwrap()).collect();
    let mut evictions = 0;
    for pfn in pages {
        let before = kept();
        assert!(unsafe { z.free_pages(&m, pfn, order(0), true) });
        let after = kept();
        if after.count != before.count + 1 {
            let least = before.high - before.high / 8;
            assert!((least.saturating_sub(1)..=before.high).contains(&after.count), "{before:?}, {after:?}");
            evictions += 1;
        }
    }
    assert!(evictions > 10, "the lists were full");
    z.verify(&m).unwrap();
}

// rows: B2 E3 C13
#[test]
fn nodes_are_preferred_then_bound() {
    let m =
        SimBare::builder().nodes(2).ram(0, ZoneKind::Normal, 1024, 1024).ram(1, ZoneKind::Normal, 4096, 1024).build();
    let z = boot(&m);
    let node = |pfn: Pfn| m.page(pfn).node();
    assert_eq!(z.alloc_pages_node(&m, 1, Gfp::KERNEL, order(0)).map(node), Some(1));
    while z
        .alloc_pages_node(&m, 1, Gfp::KERNEL | Gfp::THISNODE, order(0))
        .map(node)
        .inspect(|n| assert_eq!(*n, 1))
        .is_some()
    {}
    assert_eq!(z.alloc_pages_node(&m, 1, Gfp::KERNEL, order(0)).map(node), Some(0), "falls back to the other");
}

// rows: B11 D13
#[test]
fn hot_pages_come_back_first_and_cold_ones_last() {
    let m = SimBare::builder().ram(0, ZoneKind::Normal, 1024, 4096).build();
    let z = boot(&m);
    let p: Vec<_> = (0..4).map(|_| z.alloc_page(&m, Gfp::KERNEL).unwrap()).collect();
    z.drain(&m);
    unsafe { z.free_pages(&m, p[0], order(0), true) };
    unsafe { z.free_pages(&m, p[1], order(0), true) };
    unsafe { z.free_cold(&m, p[2], order(0), true) };
    let kept = z.stats(&m).pcp_pages;
    assert_eq!(z.alloc_page(&m, Gfp::KERNEL), Some(p[1]));
    let rest: Vec<_> = (1..kept).map(|_| z.alloc_page(&m, Gfp::KERNEL).unwrap()).collect();
    assert_eq!((rest[0], *rest.last().unwrap()), (p[0], p[2]));
}

// rows: D3 D5 D6
#[test]
fn types_are_grouped_claimed_and_stolen() {
    let m = SimBare::builder().ram(0, ZoneKind::Normal, 1024, 8192).build();
    let z = boot(&m);
    let block = |pfn: Pfn| pfn.0 / 512;
    let a = z.alloc_pages(&m, Gfp::KERNEL, order(0), None).unwrap();
    let b = z.alloc_pages(&m, Gfp::KERNEL | Gfp::MOVABLE, order(0), None).unwrap();
    let c = z.alloc_pages(&m, Gfp::KERNEL | Gfp::RECLAIMABLE, order(0), None).unwrap();
    assert!(block(a) != block(b) && block(b) != block(c) && block(a) != block(c), "types share a pageblock");
    assert!(z.stats(&m).all.claims >= 2);
    // Movable memory in every pageblock: what is left is stolen.
    let movable: Vec<_> = core::iter::from_fn(|| z.alloc_run(&m, Gfp::KERNEL, 1, None)).collect();
    for pfn in movable.iter().step_by(3) {
        unsafe { z.free_run(&m, PfnRange::new(*pfn, 1), true) };
    }
    z.drain(&m);
    exhaust(&m, &z, Gfp::KERNEL);
    assert!(z.stats(&m).all.steals > 0);
    z.verify(&m).unwrap();
}

/// A pageblock that holds memory serves another type before one of that type's own that would have to be backed.
#[test]
fn backed_pageblocks_are_claimed_before_fresh_ones_are_opened() {
    let m = Sim::builder().grow(0, ZoneKind::Normal, 1 << 15, 1 << 13, 1 << 13).build();
    let z = boot(&m);
    let pageblock = |gfp| z.alloc_pages(&m, gfp, Order::PAGEBLOCK, None).unwrap();
    let free = |pfn| {
        assert!(unsafe { z.free_pages(&m, pfn, Order::PAGEBLOCK, true) });
        z.drain(&m);
    };
    let movable = Gfp::KERNEL | Gfp::MOVABLE;
    // Of the two pageblocks that are claimed for it one stays fresh.
    let first = pageblock(movable);
    let backed = pageblock(Gfp::KERNEL);
    free(backed);
    let second = pageblock(movable);
    assert_eq!(second, backed);
    free(first);
    assert_eq!(pageblock(Gfp::KERNEL), first);
    let zeroed = pageblock(movable | Gfp::ZERO);
    assert!(zeroed != first && zeroed != backed, "who asks for zeroes has fresh ones");
    z.verify(&m).unwrap();
}

#[test]
fn an_isolated_pageblock_is_nobodys() {
    let m = SimBare::builder().ram(0, ZoneKind::Normal, 1024, 4096).build();
    let z = boot(&m);
    let change = |to| {
        let cell = &z.zones[0][ZoneKind::Normal as usize];
        cell.lock.lock(&m).buddy.set_block_type(&View { m: &m, blocks: &z.blocks }, Pfn(2048), to);
    };
    for to in [MigrateType::Isolate, MigrateType::Cma] {
        change(to);
        z.verify(&m).unwrap();
        let held = exhaust(&m, &z, Gfp::KERNEL);
        assert!(held.iter().all(|pfn| pfn.0 / 512 != 4), "taken from a pageblock of type {to:?}");
        // Nor do its pages count for the mark.
        let zone = z.zones[0][ZoneKind::Normal as usize].lock.lock(&m);
        assert!(zone.buddy.free_pages() - zone.buddy.free_of(to) >= zone.marks.min);
        drop(zone);
        held.iter().for_each(|pfn| assert!(unsafe { z.free_pages(&m, *pfn, order(0), true) }));
        z.drain(&m);
        z.verify(&m).unwrap();
    }
    assert!(exhaust(&m, &z, Gfp::KERNEL | Gfp::MOVABLE).iter().any(|pfn| pfn.0 / 512 == 4), "movable borrows from CMA");
}

// rows: D12
#[test]
fn growth_may_fail_at_any_call() {
    for k in 1..12 {
        let m = Sim::builder().grow(0, ZoneKind::Normal, 1 << 14, 1 << 12, 512).build();
        let z = boot(&m);
        m.fail_at(k);
        let mut held = Vec::new();
        for n in (0..=10).cycle().take(60) {
            held.extend(z.alloc_pages(&m, Gfp::MALLOC, order(n), None).map(|pfn| (pfn, order(n))));
        }
        z.verify(&m).unwrap();
        assert!(held.len() > 11, "one failure is not the end");
        held.iter().for_each(|(pfn, order)| assert!(unsafe { z.free_pages(&m, *pfn, *order, true) }));
        m.fail_from(1);
        z.trim(&m, true);
        z.verify(&m).unwrap();
    }
}

// rows: B10
#[test]
fn a_budget_holds() {
    let m = Sim::builder().grow(0, ZoneKind::Normal, 1 << 14, 1 << 13, 1024).budget(1000).build();
    let z = boot(&m);
    let mut r = Random(1);
    let mut held: Vec<PfnRange> = Vec::new();
    for _ in 0..3000 {
        let pages = 1 + r.below(64) as u32;
        match z.alloc_run(&m, Gfp::MALLOC, pages, None) {
            Some(pfn) => {
                let range = PfnRange::new(pfn, m.page(pfn).word() as u32);
                m.populate(range);
                held.push(range);
            }
            None => assert!(held.iter().map(|h| h.pages).sum::<u32>() > 500, "refused with half of the budget left"),
        }
        assert!(m.backed() <= 1000, "{} pages backed", m.backed());
        while held.iter().map(|h| h.pages).sum::<u32>() > 800 {
            let range = held.swap_remove(r.below(held.len() as u64) as usize);
            assert!(unsafe { z.free_run(&m, range, true) });
        }
    }
    z.verify(&m).unwrap();
}

#[test]
fn idle_pageblocks_go_back_when_a_window_did_without() {
    let m = Sim::builder().grow(0, ZoneKind::Normal, 1 << 14, 1 << 13, 1024).build();
    let z = boot(&m);
    z.set_retained(0);
    let held: Vec<_> = (0..4).map(|_| z.alloc_pages(&m, Gfp::KERNEL, Order::MAX, None).unwrap()).collect();
    held.iter().for_each(|pfn| m.populate(PfnRange::block(*pfn, Order::MAX)));
    held.iter().for_each(|pfn| assert!(unsafe { z.free_pages(&m, *pfn, Order::MAX, true) }));
    assert!(z.idles(), "the clock is to be looked at");
    assert_eq!(z.give_back_excess(&m, u64::MAX), 0, "wanted in this window");
    z.turn(&m);
    assert_eq!(z.give_back_excess(&m, u64::MAX), 0, "wanted in the last one");
    assert!(z.will_idle(&m));
    z.turn(&m);
    assert_eq!(z.give_back_excess(&m, u64::MAX), 4096);
    assert_eq!(z.give_back_excess(&m, u64::MAX), 0, "twice");
    assert!(m.backed() <= u64::from(RESERVE), "{} pages still backed", m.backed());
    z.verify(&m).unwrap();
}

// rows: C11
#[test]
fn atomic_requests_get_backed_memory_without_a_call() {
    let m = Sim::builder().grow(0, ZoneKind::Normal, 1 << 14, 1 << 13, 1024).build();
    let z = boot(&m);
    // The first such request has the reserve made by the next ordinary one.
    z.alloc_page(&m, Gfp::ATOMIC);
    for n in 0..4 {
        z.alloc_run(&m, Gfp::KERNEL, 513 + n, None).unwrap();
    }
    for _ in 0..8 {
        let pfn = m.forbid_calls(|| z.alloc_page(&m, Gfp::ATOMIC)).expect("the reserve is there");
        assert_eq!(m.backed_in(PfnRange::new(pfn, 1)), 1, "{pfn:?} would fault");
    }
    assert!(m.calls(Call::Populate) > 0);
    z.verify(&m).unwrap();
}

/// A handler frees while another has the zone's lock: what it puts into the pool does not stay there for good.
#[test]
fn the_pool_of_atomic_requests_does_not_grow() {
    let m = Sim::builder().grow(0, ZoneKind::Normal, 1 << 14, 1 << 14, 1024).build();
    let z = boot(&m);
    z.expect_atomic(&m);
    z.verify(&m).unwrap();
    let goal = z.stats(&m).emergency_pages;
    let fork = Fork { token: 1, needs_all: true };
    for _ in 0..200 {
        let taken: Vec<Pfn> = (0..8).map(|_| z.alloc_page(&m, Gfp::ATOMIC).unwrap()).collect();
        assert!(z.lock_all(&m, fork));
        assert!(taken.into_iter().all(|pfn| unsafe { z.free_pages(&m, pfn, Order::ZERO, false) }), "into the pool");
        unsafe { z.unlock_all(&m, fork) };
        // Fills the zone's part up again.
        z.alloc_run(&m, Gfp::KERNEL, 1, None).unwrap();
    }
    z.verify(&m).unwrap();
    let now = z.stats(&m).emergency_pages;
    assert!(now <= goal + 32, "{now} pages, {goal} at first");
}

/// What is not to be kept for atomic requests any more serves others, and goes back.
#[test]
fn a_reserve_can_become_smaller() {
    fn kept<F: Flavour>(m: &Simulated<F>, z: &Zones<F>) -> (u64, u64) {
        z.verify(m).unwrap();
        let stats = z.stats(m);
        let blocks = stats.all.blocks.iter().enumerate();
        let in_zone = blocks.map(|(order, types)| u64::from(types[MigrateType::HighAtomic.index()]) << order).sum();
        (in_zone, stats.emergency_pages)
    }
    let m = Sim::builder().grow(0, ZoneKind::Normal, 1 << 14, 1 << 14, 1024).build();
    let z = boot(&m);
    assert!(z.keep_reserve(&m, 1024) >= 1000);
    let (in_zone, in_pool) = kept(&m, &z);
    assert!(in_zone >= 500 && in_pool >= 500, "{in_zone} and {in_pool}");
    z.keep_reserve(&m, 100);
    let (in_zone, in_pool) = kept(&m, &z);
    assert!((40..=50).contains(&in_zone) && (40..=57).contains(&in_pool), "{in_zone} and {in_pool}");
    z.keep_reserve(&m, 0);
    assert_eq!(kept(&m, &z), (0, 0));
    z.trim(&m, true);
    assert_eq!(z.committed(), z.stats(&m).own_pages);
    let m = SimBare::builder().ram(0, ZoneKind::Normal, 1024, 8192).build();
    let z = boot(&m);
    assert_eq!(z.keep_reserve(&m, 512), 512);
    z.keep_reserve(&m, 0);
    assert_eq!(kept(&m, &z), (0, 0));
}

/// What the last growth that is tried brings is handed out.
#[test]
fn memory_that_comes_late_is_not_lost() {
    let most = GROWTHS + MAX_ZONES;
    let block = Order::MAX.pages();
    let mut sim = Sim::builder();
    // Each is half of what is wanted, the last one all of it.
    for nth in 1..most {
        sim = sim.grow(0, ZoneKind::Normal, nth * 2 * block, PAGEBLOCK_PAGES, PAGEBLOCK_PAGES);
    }
    let m = sim.grow(0, ZoneKind::Normal, most * 2 * block, block, block).build();
    let z = boot(&m);
    let pfn = z.alloc_pages(&m, Gfp::KERNEL, Order::MAX, None).expect("it is there");
    assert_eq!(pfn, Pfn(most * 2 * block));
    assert!(unsafe { z.free_pages(&m, pfn, Order::MAX, true) });
    z.verify(&m).unwrap();
    let stats = z.stats(&m);
    assert_eq!(stats.all.free, stats.all.managed);
}

/// Aligned runs come out of rows, too.
#[test]
fn aligned_runs_use_what_others_left() {
    let m = SimBare::builder().ram(0, ZoneKind::Normal, 1024, 16384).build();
    let z = boot(&m);
    let run = |pages, align| {
        let range = PfnRange::new(z.alloc_aligned_run(&m, Gfp::KERNEL, pages, align, None).unwrap(), pages);
        assert!(range.start.0.is_multiple_of(align));
        range
    };
    let free = |range| {
        assert!(unsafe { z.free_run(&m, range, true) });
        z.verify(&m).unwrap();
    };
    let before = z.stats(&m).all.free;
    let held: Vec<_> = (0..8).map(|_| run(3, 16)).collect();
    assert!(
        held.windows(2).all(|pair| pair[0].start.0.abs_diff(pair[1].start.0) < PAGEBLOCK_PAGES),
        "in one pageblock"
    );
    let hole = held[3];
    free(hole);
    assert_eq!(run(3, 16), hole);
    held.into_iter().for_each(free);
    // At random, a bounded number of them.
    let (mut random, mut held) = (Random(3), std::collections::VecDeque::new());
    let mut rows = 0;
    for _ in 0..3000 {
        held.push_back(run(1 + random.below(40) as u32, 1 << random.below(10)));
        if held.len() > 40 {
            free(held.pop_front().unwrap());
        }
        rows = z.stats(&m).all.rows.max(rows);
    }
    assert!(rows < 12 * 512, "{rows} pages in rows, beside 820 in use");
    held.into_iter().for_each(free);
    assert_eq!(z.stats(&m).all.free, before, "whole again");
    assert_eq!(run(1024, 1024).pages, 1024);
    assert_eq!(z.alloc_aligned_run(&m, Gfp::KERNEL, 1, 2048, None), None);
}

#[test]
fn threads_that_lack_memory_grow_the_zone_once() {
    let m = Sim::builder().grow(0, ZoneKind::Normal, 1 << 14, 1 << 13, 1024).build();
    let (z, all) = (boot(&m), std::sync::Barrier::new(4));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let (m, z, all) = (m.clone(), &z, &all);
            scope.spawn(move || {
                all.wait();
                // Long enough that the others ask meanwhile.
                let slow = |call| {
                    if call == Call::Grow {
                        std::thread::sleep(Duration::from_millis(100))
                    }
                };
                m.with_hook(&slow, || z.alloc_page(&m, Gfp::KERNEL)).unwrap();
            });
        }
    });
    assert_eq!(m.calls(Call::Grow), 1);
    z.verify(&m).unwrap();
}

#[test]
fn threads_lose_no_frame() {
    let m = Sim::builder().cpus(3).grow(0, ZoneKind::Normal, 1 << 14, 3072, 512).build();
    let z = boot(&m);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (m, z) = (m.clone(), &z);
            scope.spawn(move || {
                let mut r = Random(thread);
                let mut held: Vec<PfnRange> = Vec::new();
                for _ in 0..4000 {
                    m.set_cpu(r.below(3) as usize);
                    match r.below(64) {
                        0 => z.drain(&m),
                        1 => drop(z.trim(&m, r.below(2) == 0)),
                        2 => {
                            z.age(&m);
                            z.turn(&m);
                            z.give_back_excess(&m, u64::MAX);
                            z.give_back_strewn(&m, u64::MAX);
                        }
                        3..34 => {
                            let most = 1 << r.below(9);
                            let pages = 1 + r.below(most) as u32;
                            if let Some(pfn) = z.alloc_run(&m, Gfp::MALLOC, pages, None) {
                                m.page(pfn).set_mapcount(thread as i32);
                                held.push(PfnRange::new(pfn, m.page(pfn).word() as u32));
                            }
                        }
                        _ if !held.is_empty() => {
                            let range = held.swap_remove(r.below(held.len() as u64) as usize);
                            let page = m.page(range.start);
                            assert_eq!((page.kind(), page.mapcount()), (Kind::Run, thread as i32), "handed out twice");
                            assert!(unsafe { z.free_run(&m, range, true) });
                        }
                        _ => {}
                    }
                }
                held.iter().for_each(|range| assert!(unsafe { z.free_run(&m, *range, true) }));
            });
        }
    });
    z.drain(&m);
    z.verify(&m).unwrap();
    let stats = z.stats(&m);
    assert_eq!(stats.all.free + stats.own_pages + stats.emergency_pages, stats.all.managed);
    assert_eq!(stats.committed, stats.all.managed - stats.all.free + stats.all.backed);
}

/// A process that never grows beyond its first memory asks nobody when memory is short.
#[test]
fn the_mark_of_pressure_is_asked_for_when_a_zone_grows_again() {
    let m = Sim::builder().pressure(16).grow(0, ZoneKind::Normal, 1 << 14, 1 << 12, 1 << 10).build();
    let z = boot(&m);
    (0..32).for_each(|_| _ = z.alloc_page(&m, Gfp::KERNEL).unwrap());
    assert!(!z.pressed());
    (0..1024).for_each(|_| _ = z.alloc_page(&m, Gfp::KERNEL).unwrap());
    assert!(z.pressed());
}

/// Runs that are only begun lie where others were begun before: there are as many pages with memory as places to begin
/// at.
#[test]
fn runs_that_are_only_begun_begin_at_the_same_pages() {
    for touched in [1, 20] {
        let m = Sim::builder().grow(0, ZoneKind::Normal, 1 << 15, 1 << 14, 1 << 12).build();
        let z = boot(&m);
        let mut random = Random(7);
        let mut live = Vec::new();
        let mut aligned = 0;
        for step in 0..2000 {
            let pages = 17 + random.below(15) as u32;
            let run = z.alloc_run(&m, Gfp::KERNEL, pages, None).unwrap();
            (0..pages.min(touched)).for_each(|page| m.populate(PfnRange::new(run.add(page), 1)));
            if step >= 1000 && on_grid(run, 32) == run.0 {
                aligned += 1;
            }
            live.push(PfnRange::new(run, pages));
            if live.len() > 300 {
                let old = live.swap_remove(random.below(300) as usize);
                assert!(unsafe { z.free_run(&m, old, true) });
            }
        }
        z.verify(&m).unwrap();
        assert_eq!(aligned == 1000, touched == 1, "{aligned} of 1000 runs are on the grid");
        let free = z.stats(&m).all.free;
        if touched == 1 {
            assert!(m.backed() < 1200, "{} pages are backed", m.backed());
        }
        for pages in [513, 1000, 1024] {
            let run = z.alloc_run(&m, Gfp::KERNEL, pages, None).unwrap();
            assert!(unsafe { z.free_run(&m, PfnRange::new(run, pages), true) });
        }
        // It is no more than a preference: all of memory can be had.
        let rest = exhaust(&m, &z, Gfp::KERNEL).len() as u64;
        assert!(rest + 300 > free, "{rest} of {free}");
        z.verify(&m).unwrap();
    }
}

/// Where the system counts addresses runs that are only begun lie side by side.
#[test]
fn runs_that_are_only_begun_use_all_addresses_where_there_are_few() {
    const FRAMES: u32 = 1 << 14;
    for limited in [false, true] {
        let m = Sim::builder().grow(0, ZoneKind::Normal, 1 << 15, FRAMES, 1 << 10);
        let m = if limited { m.address_limit(FRAMES.into()) } else { m }.build();
        let z = boot(&m);
        let run = || z.alloc_run(&m, Gfp::KERNEL, 17, None);
        let runs = core::iter::from_fn(run).inspect(|run| m.populate(PfnRange::new(*run, 1))).count() as u32;
        let part = runs * 17 * 100 / FRAMES;
        z.verify(&m).unwrap();
        assert!(if limited { part > 90 } else { part < 70 }, "{part} of 100 pages are in use");
    }
}

/// Pageblocks whose pages are all used are followed by huge pages; those of runs that are only begun by small ones.
#[test]
fn what_is_filled_gets_huge_pages() {
    for touched in [1, 24] {
        let m = Sim::builder().grow(0, ZoneKind::Normal, 1 << 14, 1 << 14, 1 << 12).build();
        let z = boot(&m);
        let touch = |pfn: Pfn, pages: u32| (0..pages).for_each(|page| m.populate(PfnRange::new(pfn.add(page), 1)));
        for _ in 0..300 {
            let run = z.alloc_run(&m, Gfp::KERNEL, 24, None).unwrap();
            touch(run, touched);
        }
        assert_eq!(m.huge_blocks() > 5, touched == 24, "{touched} pages of each run: {}", m.huge_blocks());
        let before = m.huge_blocks();
        for _ in 0..6000 {
            touch(z.alloc_page(&m, Gfp::KERNEL).unwrap(), 1);
        }
        assert!(m.huge_blocks() > before + 5, "pages are a phase of their own");
        z.verify(&m).unwrap();
    }
}

/// Pages for the lists are populated together, but for those in huge pages, which the first touch backs.
#[test]
fn huge_pages_are_not_populated_bit_by_bit() {
    let m = Sim::builder().grow(0, ZoneKind::Normal, 1 << 14, 1 << 14, 1 << 12).build();
    let z = boot(&m);
    let mut populated = [0, 0];
    for _ in 0..8000 {
        let (calls, huge) = (m.calls(Call::Populate), m.huge_blocks());
        let pfn = z.alloc_page(&m, Gfp::KERNEL).unwrap();
        populated[usize::from(m.is_huge(pfn) && m.huge_blocks() == huge)] += m.calls(Call::Populate) - calls;
        m.populate(PfnRange::new(pfn, 1));
    }
    assert!(m.huge_blocks() > 5 && populated[0] > 50, "{populated:?}");
    assert_eq!(populated[1], 0);
    z.verify(&m).unwrap();
}

/// Zeroed runs come out of memory that is there.
#[test]
fn zeroed_runs_take_old_memory() {
    let m = Sim::builder().grow(0, ZoneKind::Normal, 1 << 14, 1 << 14, 1 << 12).build();
    let z = boot(&m);
    for pages in [200, 17, 130, 64].into_iter().cycle().take(100) {
        let run = z.alloc_run(&m, Gfp::KERNEL | Gfp::ZERO, pages, None).unwrap();
        m.populate(PfnRange::new(run, pages));
        assert!(unsafe { z.free_run(&m, PfnRange::new(run, pages), true) });
    }
    assert!(m.backed() < 600, "{} pages hold memory", m.backed());
    z.verify(&m).unwrap();
}

/// A pageblock that stayed small to show how such are used becomes a huge page when it turned out full, and the first
/// ones once the heap is large.
#[test]
fn what_was_looked_at_and_is_full_becomes_a_huge_page() {
    for (touched, threads) in [(1, false), (24, false), (24, true)] {
        let m = Sim::builder().grow(0, ZoneKind::Normal, 1 << 15, 1 << 15, 1 << 12).build();
        m.set_looks_below(!threads);
        let z = boot(&m);
        for _ in 0..950 {
            let run = z.alloc_run(&m, Gfp::KERNEL, 24, None).unwrap();
            m.populate(PfnRange::new(run, touched));
        }
        // Threads would all wait for it.
        let most = if touched == 24 && !threads { 3..=8 } else { 0..=0 };
        assert!(most.contains(&m.gathered_blocks()), "{touched} pages of each run: {}", m.gathered_blocks());
    }
}

/// Runs share no cache line of the page-class map with other pages, in a zone of few pageblocks, too: each of them
/// writes there.
#[test]
fn runs_and_pages_of_a_small_zone_lie_apart() {
    let m = Sim::builder().grow(0, ZoneKind::Normal, 1 << 12, 1 << 12, 1 << 10).build();
    let z = boot(&m);
    let mut holds = std::collections::BTreeMap::new();
    for nth in 0..120 {
        let run = z.alloc_run(&m, Gfp::KERNEL, 3 + nth % 3, None).unwrap();
        let page = z.alloc_page(&m, Gfp::KERNEL).unwrap();
        for (what, pfn) in [run, page].into_iter().enumerate() {
            holds.entry(pfn.0 / 64).or_insert([false; 2])[what] = true;
        }
    }
    assert!(holds.values().any(|holds| *holds == [true, false]));
    // But for a hole where memory was written to already.
    assert!(holds.values().filter(|holds| **holds == [true, true]).count() <= 1, "{holds:?}");
    z.verify(&m).unwrap();
}

/// Fresh pageblocks are opened one behind the other: those that are huge pages are one mapping then, not hundreds, each
/// of which a fork copies.
#[test]
fn fresh_pageblocks_are_opened_in_the_order_of_their_addresses() {
    let m = Sim::builder().grow(0, ZoneKind::Normal, 1 << 15, 1 << 15, 1 << 13).build();
    let z = boot(&m);
    let runs: [Pfn; 40] = core::array::from_fn(|_| z.alloc_run(&m, Gfp::KERNEL, PAGEBLOCK_PAGES, None).unwrap());
    let next = runs.windows(2).filter(|pair| pair[1] == pair[0].add(PAGEBLOCK_PAGES)).count();
    assert!(next > 30, "{next} of 39: {runs:?}");
}

/// What goes offline is none of the zone's any more, and comes back when the zone lacks something, or not at all where
/// the system refuses.
#[test]
fn what_is_free_goes_offline_and_comes_back() {
    let m = Sim::builder().grow(0, ZoneKind::Normal, 1 << 14, 1 << 13, 1 << 10).build();
    let z = boot(&m);
    let free = |pages: &[Pfn]| {
        for pfn in pages {
            assert!(unsafe { z.free_pages(&m, *pfn, Order::ZERO, true) });
        }
        z.drain(&m);
    };
    let all = exhaust(&m, &z, Gfp::KERNEL);
    // One page of each second pageblock stays.
    let (kept, freed): (Vec<Pfn>, Vec<Pfn>) = all.iter().partition(|pfn| pfn.0 % (2 * PAGEBLOCK_PAGES) == 0);
    free(&freed);
    let (managed, committed) = (z.managed(), z.committed());
    let used = || z.zones[0][ZoneKind::Normal as usize].lock.lock(&m).used();
    let figures = || {
        let zone = z.zone(&m, 0, ZoneKind::Normal);
        [zone.present, zone.marks.min.into()]
    };
    let (before, [present, min]) = (used(), figures());
    // What the system does not take stays.
    m.fail_from(1);
    assert_eq!(z.take_offline(&m, 1 << 11), 0);
    m.fail_from(0);
    assert_eq!((z.managed(), z.committed(), used(), figures()), (managed, committed, before, [present, min]));
    z.verify(&m).unwrap();
    let gone = z.take_offline(&m, 1 << 11);
    assert!((1 << 11..(1 << 11) + 512).contains(&gone), "{gone} pages");
    assert_eq!((z.managed(), z.committed()), (managed - gone, committed - gone));
    let [left, mark] = figures();
    assert!((used(), left) == (before, present - gone) && mark < min, "the mark is {mark}, {min} before");
    assert_eq!(z.stats(&m).discarded, gone);
    z.verify(&m).unwrap();
    // What is left of pageblocks as well.
    let rest = z.take_offline(&m, u64::MAX);
    assert!(gone + rest > managed - managed / 16 - kept.len() as u64 * 32, "{gone} and {rest} of {managed} pages");
    z.verify(&m).unwrap();
    m.fail_from(1);
    let refused = exhaust(&m, &z, Gfp::KERNEL);
    assert!(refused.len() as u64 <= managed - gone - rest);
    m.fail_from(0);
    let back = exhaust(&m, &z, Gfp::KERNEL);
    assert_eq!(kept.len() + refused.len() + back.len(), all.len());
    for pfn in &back {
        assert!(unsafe { m.virt(*pfn).read() } == 0 || m.page(*pfn).flags() & flag::ZERO == 0);
    }
    z.verify(&m).unwrap();
    free(&[kept, refused, back].concat());
    assert_eq!(z.managed(), managed);
    z.verify(&m).unwrap();
}

/// Where the system gives less than what went offline in one piece half of that comes back, if it is enough.
#[test]
fn half_of_what_went_offline_comes_back() {
    let m = Sim::builder().grow(0, ZoneKind::Normal, 1 << 14, 1 << 12, 1 << 10).build();
    let z = boot(&m);
    let all = exhaust(&m, &z, Gfp::KERNEL);
    all.iter().for_each(|pfn| assert!(unsafe { z.free_pages(&m, *pfn, Order::ZERO, true) }));
    z.drain(&m);
    let gone = z.take_offline(&m, u64::MAX);
    let cell = &z.zones[0][ZoneKind::Normal as usize];
    let bring = |order, refused: u64| {
        m.fail_at(refused);
        let range = z.bring_online(&m, 0, cell, order);
        m.fail_at(0);
        range
    };
    assert_eq!(bring(Order::MAX, 1), None);
    // The smallest that is enough comes first.
    let small: u32 =
        core::iter::from_fn(|| bring(order(8), 0)).map(|range| range.pages).take_while(|n| *n < 1024).sum();
    let half = bring(order(8), 1).unwrap();
    assert_eq!((half.pages, bring(Order::PAGEBLOCK, 1)), (512, None));
    assert_eq!(bring(Order::PAGEBLOCK, 0), Some(PfnRange::new(half.end(), 512)));
    let rest: u32 = core::iter::from_fn(|| bring(Order::ZERO, 0)).map(|range| range.pages).sum();
    assert_eq!(u64::from(small + rest) + 2048, gone);
}

/// Each is a mapping of its own, and a process may have so many.
#[test]
fn small_blocks_that_are_offline_are_counted() {
    let m = Sim::builder().grow(0, ZoneKind::Normal, 1 << 17, 9 << 13, 1 << 13).build();
    let z = boot(&m);
    let all = exhaust(&m, &z, Gfp::KERNEL);
    let freed = all.iter().filter(|pfn| pfn.0 % 32 != 0);
    freed.for_each(|pfn| assert!(unsafe { z.free_pages(&m, *pfn, Order::ZERO, true) }));
    z.drain(&m);
    let gone = z.take_offline(&m, u64::MAX);
    assert!((2048 * 16..2048 * 17).contains(&gone), "{gone} pages");
    z.verify(&m).unwrap();
}
