//! The k-th system call fails, for every k of a run: once, and from there on.

use slabwright::machine::ZoneKind::{Dma, Normal};
use slabwright::machine::sim::{Bare, Flavour, Hosted, Lent, Simulated};

use crate::hosts::heap;
use crate::ops::{Mix, Op};
use crate::world::World;

fn machine<F: Flavour>() -> Simulated<F> {
    let sim =
        Simulated::builder().ram(0, Dma, 3, 600).grow(0, Normal, 1 << 14, 1 << 14, 1 << 9).window(64 << 20).build();
    // Thousands of page table entries would drown the other calls; they fail in `random`.
    sim.count_entries(false);
    sim
}

/// A run with something of everything: requests refused, and calls that could fail.
fn run<F: Flavour>(sim: &Simulated<F>) -> (usize, u64) {
    let mm = heap(sim);
    let mut world = World::new(&mm, 3);
    world.may_fail = true;
    world.verify_every = 8;
    for size in [100, 9000, 100_000, 3 << 20] {
        world.apply(Op::Alloc { size, align: 1, zero: false });
        world.apply(Op::Alloc { size, align: 64, zero: true });
    }
    for pick in 0..4 {
        world.apply(Op::Realloc { pick, size: 5 << 20 });
        world.apply(Op::Realloc { pick, size: 300_000 });
        world.apply(Op::Free { pick, sized: false });
    }
    world.run(40, &Mix { max_size: 5 << 20, failures: false });
    world.apply(Op::Advance { ms: 20_000 });
    world.run(40, &Mix { max_size: 5 << 20, failures: false });
    let outcome = (world.refused, sim.fallible_calls());
    world.finish();
    outcome
}

fn every_call_fails<F: Flavour>() {
    let sim = machine::<F>();
    let (refused, calls) = run(&sim);
    assert!(calls > 5, "only {calls} calls that can fail");
    for k in 1..=calls {
        let sim = machine::<F>();
        sim.fail_at(k);
        run(&sim);
        assert_eq!(sim.failed_calls(), 1, "call {k}");
    }
    let mut worse = 0;
    for k in (1..=calls).step_by(3) {
        let sim = machine::<F>();
        sim.fail_from(k);
        worse += usize::from(run(&sim).0 > refused);
        assert!(sim.failed_calls() >= 1, "call {k}");
    }
    assert!(worse > 0, "no run noticed that no call succeeds any more");
}

#[test]
fn lent() {
    every_call_fails::<Lent>();
}

#[test]
fn bare() {
    every_call_fails::<Bare>();
}

#[test]
fn hosted() {
    every_call_fails::<Hosted>();
}

/// A size that no window holds costs nothing that was kept.
#[test]
fn the_impossible_is_refused_at_once() {
    let sim = machine::<Lent>();
    let mm = heap(&sim);
    let blocks: Vec<_> = (0..3).map(|_| mm.alloc(4 << 20)).collect();
    for block in blocks {
        assert!(!block.is_null());
        // SAFETY: allocated above, freed once.
        unsafe { mm.free(block) };
    }
    let (returned, free) = (mm.stats().pages_returned, mm.stats().pages_free);
    for size in [isize::MAX as usize, 1 << 40, (64 << 20) + 1] {
        assert!(mm.alloc(size).is_null());
        assert!(mm.alloc_aligned(size, 64, false).is_null());
    }
    assert!(mm.alloc_aligned(64, 1 << 40, true).is_null());
    assert_eq!((mm.stats().pages_returned, mm.stats().pages_free), (returned, free));
    mm.verify().expect("heap");
}
