//! Handlers that interrupt: at each call the allocator makes of the machine, locks held or not, a handler may run that
//! allocates and frees too. It must neither wait nor enter the system, and disturb nothing.

use std::cell::{Cell, RefCell};

use slabwright::gfp::Gfp;
use slabwright::machine::ZoneKind::{Dma, Normal};
use slabwright::machine::sim::{Call, Flavour, Hosted, Lent, Simulated};

use crate::hosts::heap;
use crate::ops::{Mix, Op, Rng, size};
use crate::random::seeds;
use crate::world::World;

const MIX: Mix = Mix { max_size: 5 << 20, failures: false };

fn interrupted<F: Flavour>(seed: u64, one_in: usize) {
    let sim: Simulated<F> = Simulated::builder()
        .cpus(2)
        .ram(0, Dma, 3, 1021)
        .grow(0, Normal, 1 << 14, 1 << 15, 1 << 10)
        .window(128 << 20)
        .seed(seed)
        .build();
    let mm = heap(&sim);
    mm.start();
    let mut program = World::new(&mm, seed);
    // While a handler keeps what it has, the program may find less.
    program.may_fail = true;
    program.verify_every = 0;
    let mut handler = World::new(&mm, seed + 1000);
    handler.may_fail = true;
    handler.verify_every = 0;
    handler.cap = 4 << 20;
    let handler = RefCell::new(handler);
    let rng = RefCell::new(Rng(seed));
    let (within, nested) = (Cell::new(0u32), Cell::new(0u32));
    let hook = |call: Call| {
        let mut rng = rng.borrow_mut();
        if !rng.one_in(one_in) {
            return;
        }
        within.set(within.get() + u32::from(call == Call::Page));
        nested.set(nested.get() + u32::from(sim.depth() > 0));
        let op = match rng.below(8) {
            0..=3 => Op::Alloc { size: size(&mut rng, 3 << 20), align: 1 << rng.below(7), zero: rng.one_in(3) },
            4 => Op::Realloc { pick: rng.below(1000), size: size(&mut rng, 1 << 20).max(1) },
            _ => Op::Free { pick: rng.below(1000), sized: rng.one_in(3) },
        };
        if sim.depth() > 0 {
            sim.forbid_calls(|| handler.borrow_mut().apply(op));
        } else {
            handler.borrow_mut().apply(op);
        }
    };
    sim.with_hook(&hook, || {
        for _ in 0..20 {
            program.run(60, &MIX);
        }
    });
    assert!(within.get() > 100 && nested.get() > 100, "{} {}", within.get(), nested.get());
    assert!(handler.borrow().granted > 20, "handlers got {} blocks", handler.borrow().granted);
    program.verify();
    let mut handler = handler.into_inner();
    while let Some(block) = handler.take(0) {
        handler.free(block, false);
    }
    program.finish();
}

// rows: C11
#[test]
fn handlers_interrupt_everything() {
    for seed in seeds(6) {
        interrupted::<Lent>(seed, 25);
        interrupted::<Hosted>(seed, 25);
    }
}

#[test]
fn handlers_interrupt_all_the_time() {
    for seed in seeds(2) {
        interrupted::<Lent>(seed, 3);
    }
}

/// As [`handlers_interrupt_everything`], with other threads that hold the locks a handler wants.
#[test]
fn handlers_interrupt_several_threads() {
    for seed in seeds(2) {
        let sim = Simulated::<Lent>::builder()
            .cpus(2)
            .grow(0, Normal, 1 << 14, 1 << 16, 1 << 10)
            .window(256 << 20)
            .seed(seed)
            .build();
        let mm = heap(&sim);
        mm.start();
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (sim, mm) = (&sim, &mm);
                scope.spawn(move || {
                    sim.set_cpu(thread as usize % 2);
                    let mut program = World::new(mm, seed * 10 + thread);
                    program.may_fail = true;
                    program.verify_every = 0;
                    let mut handler = World::new(mm, seed * 10 + thread + 1000);
                    handler.may_fail = true;
                    handler.verify_every = 0;
                    handler.cap = 1 << 20;
                    let handler = RefCell::new(handler);
                    let rng = RefCell::new(Rng(seed * 10 + thread));
                    let hook = |_: Call| {
                        let mut rng = rng.borrow_mut();
                        if sim.depth() == 0 || !rng.one_in(10) {
                            return;
                        }
                        let op = match rng.below(2) {
                            0 => Op::Alloc { size: size(&mut rng, 1 << 15), align: 1, zero: false },
                            _ => Op::Free { pick: rng.below(1000), sized: false },
                        };
                        sim.forbid_calls(|| handler.borrow_mut().apply(op));
                    };
                    sim.with_hook(&hook, || program.run(2500, &MIX));
                    for world in [&mut program, &mut handler.into_inner()] {
                        while let Some(block) = world.take(0) {
                            world.free(block, false);
                        }
                    }
                });
            }
        });
        World::new(&*mm, 0).finish();
    }
}

// rows: C11 C3
/// A request without `Gfp::IO` enters no system, waits for nothing and, as a page run, is served from memory that is
/// backed: touching it would otherwise be a page fault. There is a reserve for that once a program is beyond its first
/// megabytes.
#[test]
fn atomic_requests_take_no_fault() {
    let sim = Simulated::<Lent>::builder().grow(0, Normal, 1 << 14, 1 << 14, 1 << 10).build();
    let mm = heap(&sim);
    let warm: Vec<_> = (0..100).map(|_| mm.alloc(100_000)).collect();
    // A slow path that may enter the system fills the reserve.
    for _ in 0..2 {
        let runs: Vec<_> = sim.forbid_calls(|| {
            let backed = sim.backed();
            let runs: Vec<_> = [9000, 12_000, 16_000, 9000].map(|size| mm.alloc_slow(size, Gfp::ATOMIC)).into();
            for run in &runs {
                assert!(!run.is_null());
                // SAFETY: the run is live and 9000 bytes long at least.
                unsafe { run.write_bytes(1, 9000) };
            }
            assert_eq!(sim.backed(), backed, "pages were backed on touch");
            runs
        });
        for run in runs {
            // SAFETY: live, and freed once.
            sim.forbid_calls(|| unsafe { mm.free(run) });
        }
    }
    for size in [1, 30, 100, 500, 1000] {
        // The next slow path that may enter the system fills the reserve up again.
        // SAFETY: live, and freed once.
        unsafe { mm.free(mm.alloc(300_000)) };
        for n in 0..20 {
            assert!(!sim.forbid_calls(|| mm.alloc_slow(size, Gfp::ATOMIC)).is_null(), "{size} bytes, number {n}");
        }
    }
    assert!(warm.iter().all(|block| !block.is_null()));
    mm.verify().unwrap();
}
