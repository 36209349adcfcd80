//! Walks through a heap, on any machine.

use slabwright::mm::Mm;

use super::ops::{Mix, Op};
use super::world::{Host, World};

/// What random walks ask for.
pub const MIX: Mix = Mix { max_size: 6 << 20, failures: false };

/// A run where nothing may be refused.
pub fn walk<M: Host>(mm: &Mm<M>, seed: u64, steps: usize, cap: usize) {
    let mut world = World::new(mm, seed);
    world.cap = cap;
    world.run(steps, &MIX);
    world.finish();
}

/// A run where anything may be refused.
pub fn starve<M: Host>(mm: &Mm<M>, seed: u64, steps: usize, cap: usize, failures: bool) {
    let mut world = World::new(mm, seed);
    world.cap = cap;
    world.may_fail = true;
    world.run(steps, &Mix { failures, ..MIX });
    assert!(world.granted > steps / 8, "only {} of {steps} steps got memory", world.granted);
    world.finish();
}

/// A world that is checked when the walk says so.
pub fn world<M: Host>(mm: &Mm<M>) -> World<'_, M> {
    let mut world = World::new(mm, 1);
    world.cap = usize::MAX;
    world.verify_every = 0;
    world
}

/// Frees down to `keep` blocks and checks the heap.
pub fn settle<M: Host>(world: &mut World<'_, M>, keep: usize) {
    while world.live() > keep {
        world.apply(Op::Free { pick: world.live() / 2, sized: world.live().is_multiple_of(2) });
    }
    world.verify();
}

/// Every size to `last`, and all of its bytes.
pub fn every_size<M: Host>(mm: &Mm<M>, last: usize) {
    let mut world = world(mm);
    for size in 0..=last {
        for zero in [false, true] {
            world.apply(Op::Alloc { size, align: 1, zero });
        }
        if size % 500 == 499 {
            settle(&mut world, 100);
        }
    }
    world.finish();
}

/// Sizes around every order, grown and shrunk.
pub fn around_every_order<M: Host>(mm: &Mm<M>) {
    let mut world = world(mm);
    for order in 0..=10 {
        for pages in [1usize, 2, 3, 5, 7].map(|n| (n << order) / 4).into_iter().filter(|n| (1..=1280).contains(n)) {
            for size in [pages * 4096 - 1, pages * 4096, pages * 4096 + 1] {
                world.apply(Op::Alloc { size, align: 1, zero: size % 2 == 1 });
                world.apply(Op::Realloc { pick: world.live() - 1, size: size + 4096 });
                world.apply(Op::Realloc { pick: world.live() - 1, size: size / 2 });
            }
            settle(&mut world, 6);
        }
    }
    world.finish();
}

/// Every alignment to 4 MiB.
pub fn every_alignment<M: Host>(mm: &Mm<M>) {
    let mut world = world(mm);
    for shift in 0..=22 {
        let align = 1usize << shift;
        for size in [0, 1, 8, 24, align - 1, align, align + 1, align * 3 / 2, 4097] {
            world.apply(Op::Alloc { size: size.min(5 << 20), align, zero: size % 3 == 0 });
        }
        settle(&mut world, 2);
    }
    world.finish();
}
