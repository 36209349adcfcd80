//! Several threads at once, that also free each other's blocks.

use std::sync::Mutex;
use std::thread;

use slabwright::machine::ZoneKind::Normal;
use slabwright::machine::linux::Linux;
use slabwright::machine::sim::{Hostile, Sim, SimHosted};
use slabwright::mm::Mm;

use crate::hosts::heap;
use crate::ops::{Mix, Rng};
use crate::world::{Block, Host, World};

const MIX: Mix = Mix { max_size: 3 << 20, failures: false };

fn together<M: Host>(mm: &Mm<M>, threads: usize, rounds: usize) {
    // Blocks on their way from one thread to another.
    let exchange: Mutex<Vec<Block>> = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for thread in 0..threads {
            let exchange = &exchange;
            scope.spawn(move || {
                mm.machine().set_cpu(thread % mm.machine().nr_cpus());
                let mut world = World::new(mm, 100 + thread as u64);
                world.verify_every = 0;
                world.cap = 4 << 20;
                let mut rng = Rng(thread as u64);
                for _ in 0..rounds {
                    world.run(50, &MIX);
                    for _ in 0..8 {
                        if let Some(block) = world.take(rng.below(1000)) {
                            exchange.lock().unwrap().push(block);
                        }
                        let other = exchange.lock().unwrap().pop();
                        match other {
                            Some(block) if rng.one_in(2) => world.free(block, rng.one_in(2)),
                            Some(block) => world.add(block),
                            None => {}
                        }
                    }
                }
                while let Some(block) = world.take(0) {
                    world.free(block, false);
                }
            });
        }
    });
    let mut world = World::new(mm, 0);
    for block in exchange.into_inner().unwrap() {
        world.free(block, false);
    }
    world.finish();
}

// rows: G10 G11
#[test]
fn more_threads_than_cpus() {
    let sim = Sim::builder().cpus(2).grow(0, Normal, 1 << 14, 1 << 15, 1 << 10).build();
    together(&heap(&sim), 4, 25);
}

#[test]
fn more_cpus_than_threads() {
    let hostile = Hostile { migrate: 20, abort: 30, fail: 0 };
    let sim = SimHosted::builder()
        .cpus(16)
        .nodes(2)
        .grow(0, Normal, 1 << 14, 1 << 15, 1 << 10)
        .grow(1, Normal, 1 << 16, 1 << 15, 1 << 10)
        .window(256 << 20)
        .hostile(hostile)
        .build();
    together(&heap(&sim), 4, 25);
}

#[test]
fn the_real_machine() {
    static MM: Mm<Linux> = Mm::new(Linux);
    together(&MM, 4, 50);
}
