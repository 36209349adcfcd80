//! Long random runs.

use slabwright::machine::ZoneKind::{Dma, Dma32, HighMem, Normal};
use slabwright::machine::linux::Linux;
use slabwright::machine::sim::{Flavour, Hostile, Sim, SimBare, SimHosted, Simulated};
use slabwright::mm::Mm;

use crate::hosts::heap;
use crate::ops::Mix;
use crate::walks::{MIX, starve, walk};
use crate::world::World;

/// The seeds of a test, and the one asked for.
pub fn seeds(n: u64) -> impl Iterator<Item = u64> {
    let asked = std::env::var("HEAP_SEED").ok().map(|seed| seed.parse().expect("HEAP_SEED is a number"));
    asked.into_iter().chain(1..=n)
}

#[test]
fn plenty_of_memory() {
    for seed in seeds(4) {
        let sim = Sim::builder().grow(0, Normal, 1 << 14, 1 << 15, 1 << 10).window(64 << 20).seed(seed).build();
        walk(&heap(&sim), seed, 1500, 16 << 20);
        // What is left is the reserve and what the layers keep to start quickly.
        assert!(sim.backed() < 1024, "{} pages still backed after a trim", sim.backed());
    }
}

#[test]
fn a_hosted_machine() {
    for seed in seeds(4) {
        let sim = SimHosted::builder().grow(0, Normal, 1 << 14, 1 << 15, 1 << 10).window(128 << 20).seed(seed).build();
        walk(&heap(&sim), seed, 1500, 16 << 20);
        assert!(sim.backed() < 1024, "{} pages still backed after a trim", sim.backed());
    }
}

#[test]
fn threads_migrate_and_sections_abort() {
    for seed in seeds(4) {
        let sim = Sim::builder()
            .cpus(3)
            .nodes(2)
            .ram(0, Dma, 5, 1000)
            .grow(0, Normal, 1 << 14, 1 << 14, 1 << 10)
            .grow(1, Normal, 1 << 15, 1 << 14, 1 << 9)
            .hostile(Hostile { migrate: 3, abort: 4, fail: 0 })
            .seed(seed)
            .build();
        walk(&heap(&sim), seed, 1500, 16 << 20);
    }
}

#[test]
fn a_small_bare_machine() {
    for seed in seeds(6) {
        let sim = SimBare::builder()
            .cpus(1)
            .ram(0, Dma, 1, 0x9e)
            .ram(0, Dma, 0x100, 0x2f3)
            .ram(0, Normal, 0x1003, 0x8fd)
            .ram(0, HighMem, 0x2001, 0x5ff)
            .window(8 << 20)
            .seed(seed)
            .build();
        starve(&heap(&sim), seed, 1500, 12 << 20, false);
    }
}

#[test]
fn a_budget() {
    for seed in seeds(4) {
        let sim = Sim::builder().grow(0, Normal, 1 << 14, 1 << 14, 1 << 9).budget(3000).seed(seed).build();
        let mm = heap(&sim);
        starve(&mm, seed, 1500, 32 << 20, false);
        assert!(sim.backed() <= 3000 + 64, "{} pages backed", sim.backed());
    }
}

fn disturbed<F: Flavour>(sim: Simulated<F>, seed: u64) {
    let mm = heap(&sim);
    assert!(mm.start());
    sim.set_hostile(Hostile { migrate: 7, abort: 9, fail: 5 });
    starve(&mm, seed, 1200, 16 << 20, true);
    assert!(sim.failed_calls() > 0);
}

#[test]
fn calls_fail_at_random() {
    for seed in seeds(6) {
        let hosted = SimHosted::builder().ram(0, Dma32, 0x400, 0x600).grow(0, Normal, 1 << 14, 1 << 14, 1 << 9);
        disturbed(hosted.seed(seed).build(), seed);
        disturbed(Sim::builder().grow(0, Normal, 1 << 14, 1 << 14, 1 << 9).seed(seed).build(), seed);
    }
}

#[test]
fn the_real_machine() {
    static MM: Mm<Linux> = Mm::new(Linux);
    for seed in seeds(2) {
        let mut world = World::new(&MM, seed);
        world.cap = 64 << 20;
        world.verify_every = 16;
        world.run(3000, &Mix { max_size: 24 << 20, ..MIX });
        world.finish();
    }
}
