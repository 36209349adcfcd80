//! Operations as data, run against a model that knows what each area must hold.

use std::vec::Vec;

use super::{Live, Rng, World, check, fill, is_zero, pointer};
use crate::error::Defect;
use crate::gfp::Gfp;
use crate::machine::sim::{Bare, Flavour, Hosted, Lent};
use crate::sync::Fork;
use crate::types::PAGE_SIZE;
use crate::vmalloc::FreeError;

const FORK: Fork = Fork { token: 1, needs_all: true };

/// One step; indices are taken modulo what there is.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    Alloc {
        pages: usize,
        align: u32,
        zero: bool,
    },
    Free {
        which: usize,
    },
    Realloc {
        which: usize,
        pages: usize,
        zero: bool,
    },
    Purge,
    Age {
        ms: u64,
    },
    Fork,
    /// Frees something again, its inside, or nothing of ours.
    Misuse {
        which: usize,
    },
    /// A request and a free that may not block or enter the system.
    Atomic {
        pages: usize,
    },
}

impl Op {
    pub fn random(rng: &mut Rng, most: usize) -> Op {
        let bound = if rng.below(4) == 0 { most } else { most / 4 };
        let pages = 1 + rng.below(bound);
        match rng.below(32) {
            0..=9 => Op::Alloc { pages, align: rng.below(3) as u32, zero: rng.below(2) == 0 },
            10..=17 => Op::Free { which: rng.below(64) },
            18..=25 => Op::Realloc { which: rng.below(64), pages, zero: rng.below(4) == 0 },
            26 => Op::Purge,
            27 => Op::Age { ms: rng.below(9000) as u64 },
            28 => Op::Fork,
            29 => Op::Misuse { which: rng.below(64) },
            _ => Op::Atomic { pages },
        }
    }
}

/// Runs `op`. Failures are allowed, losses are not.
pub fn step<F: Flavour>(w: &World<F>, live: &mut Vec<Live>, op: Op, seed: u64, most_live: usize) {
    let pick = |which: usize, live: &[Live]| (!live.is_empty()).then(|| which % live.len());
    match op {
        Op::Alloc { pages, align, zero } if live.len() < most_live => {
            let align = World::<F>::slot() << align;
            let gfp = if zero { Gfp::KERNEL | Gfp::ZERO } else { Gfp::KERNEL };
            if let Some(at) = w.alloc(pages * PAGE_SIZE - 5, align, gfp) {
                assert_eq!((at % align, w.size(at)), (0, pages * PAGE_SIZE));
                assert!(live.iter().all(|l| at + pages * PAGE_SIZE <= l.at || l.at + l.size <= at), "overlap");
                assert!(!zero || is_zero(at, 0, pages * PAGE_SIZE), "not zero: {op:?}");
                let area = Live { at, size: pages * PAGE_SIZE, seed };
                fill(&area);
                live.push(area);
            }
        }
        Op::Alloc { .. } => {}
        Op::Free { which } => {
            if let Some(i) = pick(which, live) {
                let area = live.swap_remove(i);
                check(&area, area.size);
                w.free(area.at).unwrap();
            }
        }
        Op::Realloc { which, pages, zero } => {
            if let Some(i) = pick(which, live) {
                let (old, size) = (live[i], pages * PAGE_SIZE);
                let gfp = if zero { Gfp::KERNEL | Gfp::ZERO } else { Gfp::KERNEL };
                match w.realloc(old.at, size, gfp) {
                    Some(at) => {
                        check(&Live { at, ..old }, size.min(old.size));
                        assert_eq!(w.size(at), size);
                        assert!(!zero || size <= old.size || is_zero(at, old.size, size), "not zero: {op:?}");
                        live[i] = Live { at, size, seed };
                        fill(&live[i]);
                    }
                    None => {
                        check(&old, old.size);
                        assert_eq!(w.size(old.at), old.size);
                    }
                }
            }
        }
        Op::Purge => {
            w.v.purge(&w.m, &w.pages);
            let stats = w.v.stats(&w.m);
            assert_eq!(stats.retained_bytes, 0);
        }
        Op::Age { ms } => {
            w.m.advance(ms);
            if ms % 2 == 0 {
                w.v.turn(&w.m);
            }
            w.v.give_back_excess(&w.m, &w.pages, u64::MAX);
        }
        Op::Fork => {
            assert!(w.v.lock_all(&w.m, FORK));
            w.v.note_fork();
            // SAFETY: taken above.
            unsafe { w.v.unlock_all(&w.m, FORK) }
        }
        Op::Misuse { which } => {
            if let Some(i) = pick(which, live) {
                let area = live[i];
                assert_eq!(w.free(area.at + 8), Err(FreeError::Defect(Defect::Interior)));
                if area.size > PAGE_SIZE {
                    assert_eq!(w.free(area.at + PAGE_SIZE), Err(FreeError::Defect(Defect::Interior)));
                }
                check(&area, area.size);
                live.swap_remove(i);
                w.free(area.at).unwrap();
                assert_eq!(w.free(area.at), Err(FreeError::Defect(Defect::DoubleFree)));
                assert_eq!(w.v.usable_size(&w.m, pointer(area.at), true), Err(Defect::DoubleFree));
            }
            assert_eq!(w.free(16), Err(FreeError::Defect(Defect::Foreign)));
        }
        Op::Atomic { pages } => w.m.forbid_calls(|| {
            if live.len() >= most_live {
                return;
            }
            let gfp = Gfp::ATOMIC;
            if let Some(p) = w.v.alloc(&w.m, &w.pages, pages * PAGE_SIZE, 1, gfp) {
                let area = Live { at: p.as_ptr().expose_provenance(), size: pages * PAGE_SIZE, seed };
                fill(&area);
                check(&area, area.size);
                (unsafe { w.v.free(&w.m, &w.pages, p.as_ptr(), false) }).unwrap();
            }
        }),
    }
}

fn run<F: Flavour>(w: World<F>, seed: u64, steps: usize, most: usize, most_live: usize) {
    let mut rng = Rng(seed);
    let mut live = Vec::new();
    for i in 0..steps {
        let op = Op::random(&mut rng, most);
        step(&w, &mut live, op, i as u64 + 1, most_live);
        w.v.verify(&w.m).unwrap_or_else(|wrong| panic!("{wrong} after step {i}: {op:?}"));
    }
    for area in &live {
        check(area, area.size);
    }
    let stats = w.v.stats(&w.m);
    assert!(stats.reused > 20 && stats.placed > 20 && stats.grown > 5 && stats.moved > 0, "idle test: {stats:?}");
    w.end(live);
}

// rows: H1 H2
#[test]
fn model_of_owned_frames() {
    run(World::<Bare>::new(900, 700, u64::MAX), 0x1111_2222, 4000, 120, 12);
    run(World::<Lent>::new(300, 400, u64::MAX), 0x3333_2222, 4000, 90, 12);
}

// rows: H1 H2
#[test]
fn model_of_hosted_memory() {
    run(World::<Hosted>::new(4096, 40, u64::MAX), 0x5555_2222, 1200, 3000, 8);
    // A window so large that areas get room to grow.
    run(World::<Hosted>::new(2048, 2048, u64::MAX), 0x7777_2222, 1200, 3000, 8);
    // A budget that binds.
    run(World::<Hosted>::new(2048, 64, 9000), 0x9999_2222, 800, 3000, 8);
}
