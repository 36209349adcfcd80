//! Every fallible call fails in turn; and particular ways through the layer.

use std::vec;
use std::vec::Vec;

use super::model::{Op, step};
use super::{Live, Rng, World, check, fill, is_zero};
use crate::gfp::Gfp;
use crate::machine::sim::{Bare, Call, Flavour, Hosted};
use crate::machine::{Frames, Machine};
use crate::types::{Order, PAGE_SIZE};

/// A short story with every kind of step, in which the `k`-th call fails (or all from then on). Nothing is lost or
/// leaked.
fn story<F: Flavour>(k: u64, all_after: bool, ops: &[Op]) -> bool {
    let w = World::<F>::new(2048, if F::OWNS_FRAMES { 300 } else { 48 }, u64::MAX);
    let mut live = Vec::new();
    if all_after {
        w.m.fail_from(k);
    } else {
        w.m.fail_at(k);
    }
    for (i, op) in ops.iter().enumerate() {
        step(&w, &mut live, *op, i as u64 + 1, 8);
        w.v.verify(&w.m).unwrap_or_else(|wrong| panic!("{wrong} with call {k} failing, after step {i}: {op:?}"));
        for area in &live {
            check(area, area.size);
        }
    }
    let failed = w.m.failed_calls() > 0;
    w.m.fail_at(0);
    w.end(live);
    failed
}

fn every_call<F: Flavour>(most: usize, steps: usize, seed: u64) {
    let mut rng = Rng(seed);
    let mut ops: Vec<Op> = (0..steps).map(|_| Op::random(&mut rng, most)).collect();
    let slot = World::<F>::slot() / PAGE_SIZE;
    // Sure to be there: old memory donated, an area grown in place, one that must move, one that is cut.
    ops.extend([
        Op::Alloc { pages: 3 * slot, align: 0, zero: false },
        Op::Free { which: 0 },
        Op::Alloc { pages: 7 * slot, align: 0, zero: false },
        Op::Realloc { which: 0, pages: 9 * slot, zero: true },
        Op::Alloc { pages: 2 * slot, align: 0, zero: true },
        Op::Realloc { which: 0, pages: 14 * slot, zero: false },
        Op::Realloc { which: 1, pages: slot, zero: false },
    ]);
    for all_after in [false, true] {
        let mut k = 1;
        while story::<F>(k, all_after, &ops) {
            // All of the beginning, then a sample.
            k += if k < 60 { 1 } else { k / 16 };
        }
        assert!(k > 10, "the story makes too few calls");
    }
}

#[test]
fn any_call_may_fail_with_owned_frames() {
    every_call::<Bare>(24, 24, 0x4242);
}

#[test]
fn any_call_may_fail_hosted() {
    every_call::<Hosted>(2500, 12, 0x4243);
}

#[test]
fn a_freed_range_is_reused_without_a_call() {
    let w = World::<Hosted>::new(1024, 64, u64::MAX);
    let size = 6 << 20;
    let first = w.alloc(size, 1, Gfp::KERNEL).unwrap();
    w.free(first).unwrap();
    w.m.forbid_calls(|| {
        let p = w.v.alloc(&w.m, &w.pages, size, 1, Gfp::ATOMIC).unwrap().as_ptr();
        assert_eq!(p.addr(), first);
        (unsafe { w.v.free(&w.m, &w.pages, p, false) }).unwrap();
    });
    assert_eq!(w.m.calls(Call::MapFresh), 1);
    w.end(vec![]);
}

/// A request without leave for I/O gets its zeroes without a call, too: they are written.
#[test]
fn old_memory_is_zeroed_without_a_call_for_who_may_make_none() {
    let w = World::<Hosted>::new(1024, 64, u64::MAX);
    let size = 6 << 20;
    let first = Live { at: w.alloc(size, 1, Gfp::KERNEL).unwrap(), size, seed: 7 };
    fill(&first);
    w.free(first.at).unwrap();
    w.m.forbid_calls(|| {
        assert_eq!(w.alloc(size / 2, 1, Gfp::NOIO | Gfp::ZERO), Some(first.at));
        assert!(is_zero(first.at, 0, size / 2));
    });
    w.end(vec![Live { at: first.at, size: 0, seed: 0 }]);
}

/// Tables and nodes are zeroed pages, whatever lay there.
#[test]
fn own_pages_are_zeroed() {
    let w = World::<Hosted>::new(1024, 64, u64::MAX);
    let all: Vec<_> = core::iter::from_fn(|| w.pages.alloc_page(&w.m, Gfp::KERNEL)).collect();
    for pfn in &all {
        unsafe { w.m.virt(*pfn).write_bytes(0xaa, PAGE_SIZE) };
    }
    all.iter().for_each(|pfn| assert!(unsafe { w.pages.free_pages(&w.m, *pfn, Order::ZERO, true) }));
    let area = w.alloc(6 << 20, 1, Gfp::KERNEL).unwrap();
    w.verify();
    w.end(vec![Live { at: area, size: 0, seed: 0 }]);
}

// rows: H1
#[test]
fn old_memory_moves_into_a_larger_area() {
    let w = World::<Hosted>::new(1024, 64, u64::MAX);
    let small = Live { at: w.alloc(4 << 20, 1, Gfp::KERNEL).unwrap(), size: 4 << 20, seed: 1 };
    fill(&small);
    let wall = w.alloc(2 << 20, 1, Gfp::KERNEL).unwrap();
    assert_eq!(wall, small.at + small.size, "the window is too small for room");
    w.free(small.at).unwrap();
    let backed = w.m.backed_at(small.at, small.size);
    let big = w.alloc(10 << 20, 1, Gfp::KERNEL).unwrap();
    assert_ne!(big, small.at);
    assert!(w.v.stats(&w.m).donated >= 2);
    assert!(w.m.backed_at(big, 10 << 20) >= backed, "the old memory is there");
    w.end(vec![Live { at: big, size: 0, seed: 0 }, Live { at: wall, size: 0, seed: 0 }]);
}

/// What a freed range lacks for a larger area is moved behind it, its last slot, too; what is there stays.
#[test]
fn a_freed_range_is_made_longer() {
    let w = World::<Hosted>::new(1024, 64, u64::MAX);
    let sizes = [2, 2, 6, 2].map(|slots| slots << 21);
    let areas = sizes.map(|size| Live { at: w.alloc(size, 1, Gfp::KERNEL).unwrap(), size, seed: 5 });
    areas.iter().for_each(fill);
    let [other, _, long, wall] = areas;
    // The last one leaves a hole behind the longest.
    w.free(wall.at).unwrap();
    w.v.purge(&w.m, &w.pages);
    w.free(other.at).unwrap();
    w.free(long.at).unwrap();
    let size = (7 << 21) + PAGE_SIZE;
    let donated = w.v.stats(&w.m).donated;
    let before = (w.m.calls(Call::MapFresh), w.m.calls(Call::MoveMapping));
    let at = w.alloc(size, 1, Gfp::KERNEL).unwrap();
    assert_eq!((at, w.v.stats(&w.m).donated - donated), (long.at, 2));
    assert_eq!((w.m.calls(Call::MapFresh), w.m.calls(Call::MoveMapping)), (before.0 + 1, before.1 + 1));
    assert_eq!(w.m.backed_at(at + long.size, 2 << 21), w.m.backed_at(at, 2 << 21), "nothing is fresh");
    w.verify();
    w.end(vec![areas[1], Live { at, size: 0, seed: 0 }]);
}

/// An area grows over what lies behind it, freed ranges and holes in turn, and does not move; where the system refuses
/// it does, and all is as it was.
#[test]
fn an_area_grows_over_ranges_and_holes() {
    for refused in [false, true] {
        let w = World::<Hosted>::new(1024, 64, u64::MAX);
        let sizes = [2, 2, 1, 3, 2, 1].map(|slots| slots << 21);
        let areas = sizes.map(|size| Live { at: w.alloc(size - PAGE_SIZE, 1, Gfp::KERNEL).unwrap(), size, seed: 5 });
        let [first, hole, kept, second_hole, last, wall] = areas;
        areas.iter().zip(&areas[1..]).for_each(|(front, behind)| assert_eq!(front.at + front.size, behind.at));
        let filled = Live { size: first.size - PAGE_SIZE, ..first };
        fill(&filled);
        w.free(hole.at).unwrap();
        w.free(second_hole.at).unwrap();
        w.v.purge(&w.m, &w.pages);
        w.free(kept.at).unwrap();
        w.free(last.at).unwrap();
        // A slot of the last one stays.
        let size = wall.at - first.at - (1 << 21);
        w.m.fail_at(if refused { 2 } else { 0 });
        let at = w.realloc(first.at, size, Gfp::KERNEL | Gfp::ZERO).unwrap();
        check(&Live { at, ..filled }, filled.size);
        assert!(is_zero(at, first.size, size));
        let stats = w.v.stats(&w.m);
        assert_eq!((at == first.at, stats.moved), (!refused, u64::from(refused)));
        assert_eq!(stats.retained_bytes, 1 << 21);
        w.verify();
        w.end(vec![Live { at, size: 0, seed: 0 }, Live { at: wall.at, size: 0, seed: 0 }]);
    }
}

#[test]
fn fresh_zeroed_memory_is_not_written() {
    let w = World::<Hosted>::new(1024, 64, u64::MAX);
    let at = w.alloc(8 << 20, 1, Gfp::KERNEL | Gfp::ZERO).unwrap();
    assert_eq!(w.m.backed_at(at, 8 << 20), 0);
    assert!(is_zero(at, 0, 8 << 20));
    w.end(vec![Live { at, size: 0, seed: 0 }]);
}

/// Growing by 4 KiB steps takes few calls, and none of the contents are copied; the usable size stays exact.
#[test]
fn growing_by_pages_is_cheap() {
    let w = World::<Hosted>::new(1024, 512, u64::MAX);
    let mut area = Live { at: w.alloc(2 << 20, 1, Gfp::KERNEL).unwrap(), size: 2 << 20, seed: 7 };
    fill(&area);
    // A neighbour stands in the way sooner or later.
    let other = w.alloc(2 << 20, 1, Gfp::KERNEL).unwrap();
    let marker = area;
    while area.size < 256 << 20 {
        area.size += PAGE_SIZE;
        area.at = w.realloc(area.at, area.size, Gfp::KERNEL).unwrap();
    }
    assert_eq!(w.size(area.at), area.size);
    check(&Live { at: area.at, ..marker }, marker.size);
    let calls = w.m.calls(Call::MapFresh) + w.m.calls(Call::MoveMapping);
    assert!(calls < 60, "{calls} calls for 65024 steps");
    assert_eq!(w.v.stats(&w.m).copied, 0);
    w.v.verify(&w.m).unwrap();
    w.end(vec![Live { at: area.at, size: 0, seed: 0 }, Live { at: other, size: 0, seed: 0 }]);
}

/// After a refused move the contents are complete all the same.
#[test]
fn refused_moves_are_copied() {
    for partial in [false, true] {
        let w = World::<Hosted>::new(1024, 64, u64::MAX);
        w.m.set_partial_moves(partial);
        let area = Live { at: w.alloc(8 << 20, 1, Gfp::KERNEL).unwrap(), size: 8 << 20, seed: 3 };
        let wall = w.alloc(2 << 20, 1, Gfp::KERNEL).unwrap();
        assert_eq!(wall, area.at + area.size, "the window is too small for room");
        fill(&area);
        // Fails the move, which is the call after that for the fresh range.
        w.m.fail_at(2);
        let at = w.realloc(area.at, 12 << 20, Gfp::KERNEL).unwrap();
        assert_eq!(w.m.failed_calls(), 1);
        check(&Live { at, ..area }, area.size);
        assert!(w.v.stats(&w.m).copied > 0);
        w.verify();
        w.end(vec![Live { at, size: 0, seed: 0 }, Live { at: wall, size: 0, seed: 0 }]);
    }
}

/// Areas that end in the middle of a slot are kept like others when they are freed: what they may hold counts in use
/// and free alike.
#[test]
fn ranges_with_rests_of_slots_are_kept() {
    let w = World::<Hosted>::new(1024, 512, u64::MAX);
    w.v.set_retained(0);
    let size = (2 << 21) + (5 << 18);
    let mut areas: Vec<usize> = (0..20).map(|_| w.alloc(size, 1, Gfp::KERNEL).unwrap()).collect();
    let placed = w.v.stats(&w.m).placed;
    for _ in 0..2 {
        areas.drain(..).for_each(|at| w.free(at).unwrap());
        areas.extend((0..20).map(|_| w.alloc(size, 1, Gfp::KERNEL).unwrap()));
    }
    assert_eq!((w.v.stats(&w.m).purged, w.v.stats(&w.m).placed), (0, placed));
    w.end(areas.into_iter().map(|at| Live { at, size: 0, seed: 0 }).collect());
}

/// An area of a slot that shrinks to less than half of it gives memory back, but not each time.
#[test]
fn a_tail_goes_back_now_and_then() {
    let w = World::<Hosted>::new(1024, 64, u64::MAX);
    let (size, part) = (2 << 20, 600 << 10);
    let mut area = Live { at: w.alloc(size, 1, Gfp::KERNEL).unwrap(), size, seed: 7 };
    let held = w.m.backed_at(area.at, size);
    let mut after = |part: usize, ms: u64| {
        w.m.advance(ms);
        assert_eq!(w.realloc(area.at, size, Gfp::KERNEL), Some(area.at));
        area.size = size;
        fill(&area);
        assert_eq!(w.realloc(area.at, part, Gfp::KERNEL), Some(area.at));
        area.size = part;
        check(&area, part);
        w.verify();
        w.m.backed_at(area.at, size) as usize
    };
    assert_eq!(held, 0);
    let all = size / PAGE_SIZE;
    assert_eq!(after(part, 10_000), (640 << 10) / PAGE_SIZE);
    assert_eq!(after(part, 1), all, "a moment later");
    assert_eq!(after(part, 10_000), (640 << 10) / PAGE_SIZE);
    assert_eq!(after(size / 2, 10_000), all, "half of it");
    w.end(vec![area]);
}

// rows: H2
/// Lazy, bounded, aged.
#[test]
fn retained_ranges_age() {
    let w = World::<Hosted>::new(1024, 512, u64::MAX);
    w.v.set_retained(8 << 20);
    let a = w.alloc(4 << 20, 1, Gfp::KERNEL).unwrap();
    let b = w.alloc(6 << 20, 1, Gfp::KERNEL).unwrap();
    let c = w.alloc(90 << 20, 1, Gfp::KERNEL).unwrap();
    let give_back = || {
        let gone = w.v.give_back_excess(&w.m, &w.pages, u64::MAX);
        (gone, w.v.stats(&w.m).retained_bytes >> 20)
    };
    w.m.set_now(100);
    w.free(a).unwrap();
    w.m.set_now(200);
    w.free(b).unwrap();
    w.free(c).unwrap();
    // All of it was in use in this window, and then in the last one.
    for _ in 0..2 {
        assert_eq!(give_back(), (0, 100));
        assert!(w.v.will_idle(&w.m));
        w.v.turn(&w.m);
    }
    let now = w.m.now_ms();
    assert_eq!(w.v.give_back_excess(&w.m, &w.pages, now), 0, "no time");
    // Then the oldest go, but for a few.
    assert_eq!(give_back(), (92 << 8, 8));
    assert!(!w.v.will_idle(&w.m));
    // What is in use at once in each window stays between.
    for round in 0..3 {
        let areas: Vec<usize> = (0..40).map(|_| w.alloc(8 << 20, 1, Gfp::KERNEL).unwrap()).collect();
        for at in areas {
            w.free(at).unwrap();
        }
        w.v.turn(&w.m);
        assert_eq!(give_back(), (0, 320), "round {round}");
    }
    w.v.turn(&w.m);
    w.v.set_retained(0);
    give_back();
    assert_eq!(w.m.slots_used(), 0);
    w.end(vec![]);
}

// rows: H1
/// H1: frames behind an area need not be adjacent; H2: it is used again only after its purge, or as what it is.
#[test]
fn frames_behind_an_area_are_scattered() {
    let w = World::<Bare>::new(64, 128, u64::MAX);
    // Every second frame is free.
    let held: Vec<_> =
        (0..64).filter_map(|_| w.pages.alloc_pages(&w.m, Gfp::KERNEL, crate::types::Order::ZERO, None)).collect();
    for pfn in held.iter().step_by(2) {
        unsafe { w.pages.free_pages(&w.m, *pfn, crate::types::Order::ZERO, true) };
    }
    let area = Live {
        at: w.alloc(8 * PAGE_SIZE, 1, Gfp::KERNEL.without(Gfp::HIGHMEM)).unwrap(),
        size: 8 * PAGE_SIZE,
        seed: 4,
    };
    fill(&area);
    check(&area, area.size);
    let frames: Vec<_> = (0..8).map(|i| w.m.mapped(area.at + i * PAGE_SIZE).unwrap()).collect();
    let guard = w.m.slots_used();
    assert_eq!(guard, 8, "the guard is not mapped");
    assert!(w.m.mapped(area.at + 8 * PAGE_SIZE).is_none());
    assert!(frames.iter().all(|pfn| crate::machine::Frames::page(&w.m, *pfn).kind() == crate::page::Kind::Vmalloc));
    w.free(area.at).unwrap();
    let again = w.alloc(8 * PAGE_SIZE, 1, Gfp::KERNEL | Gfp::ZERO).unwrap();
    assert_eq!(again, area.at);
    assert!(is_zero(again, 0, 8 * PAGE_SIZE));
    w.free(again).unwrap();
    for pfn in held.iter().skip(1).step_by(2) {
        unsafe { w.pages.free_pages(&w.m, *pfn, crate::types::Order::ZERO, true) };
    }
    w.end(vec![]);
}
