//! Every size and alignment at the boundaries.

use slabwright::machine::ZoneKind::Normal;
use slabwright::machine::sim::{Sim, SimHosted};
use slabwright::mm::Mm;

use crate::ops::Op;
use crate::world::{Host, World, heap};

fn sim() -> Sim {
    Sim::builder().grow(0, Normal, 1 << 14, 1 << 15, 1 << 10).build()
}

fn hosted() -> SimHosted {
    SimHosted::builder().grow(0, Normal, 1 << 14, 1 << 15, 1 << 10).window(128 << 20).build()
}

fn world<M: Host>(mm: &Mm<M>) -> World<'_, M> {
    let mut world = World::new(mm, 1);
    world.cap = usize::MAX;
    world.verify_every = 0;
    world
}

/// Frees down to `keep` blocks and checks the heap.
fn settle<M: Host>(world: &mut World<'_, M>, keep: usize) {
    while world.live() > keep {
        world.apply(Op::Free { pick: world.live() / 2, sized: world.live().is_multiple_of(2) });
    }
    world.verify();
}

#[test]
fn every_size_to_9000() {
    let mm = heap(&sim());
    let mut world = world(&mm);
    for size in 0..=9000 {
        for zero in [false, true] {
            world.apply(Op::Alloc { size, align: 1, zero });
        }
        if size % 500 == 499 {
            settle(&mut world, 100);
        }
    }
    world.finish();
}

#[test]
fn every_class_wastes_little() {
    let mm = heap(&sim());
    for size in 1..=8192usize {
        let block = mm.alloc(size);
        // SAFETY: the block is live, then freed once.
        let usable = unsafe {
            let usable = mm.usable_size(block);
            mm.free(block);
            usable
        };
        let bound = size.next_multiple_of(16).max(size + size / 4);
        assert!(usable >= size && usable <= bound, "{size} bytes take {usable}");
    }
}

fn around_every_order<M: Host>(mm: &Mm<M>) {
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

#[test]
fn sizes_around_every_order() {
    around_every_order(&heap(&sim()));
    around_every_order(&heap(&hosted()));
}

fn every_alignment<M: Host>(mm: &Mm<M>) {
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

#[test]
fn every_alignment_to_4_mib() {
    every_alignment(&heap(&sim()));
    every_alignment(&heap(&hosted()));
}

#[test]
fn impossible_sizes_are_refused() {
    let mm = heap(&sim());
    let mut world = world(&mm);
    for back in [0, 1, 15, 16, 4095, 4096, 1 << 21, 1 << 40] {
        for align in [1, 64, 4096, 1 << 22, 1 << 40] {
            for zero in [false, true] {
                world.apply(Op::Alloc { size: usize::MAX - back, align, zero });
                world.apply(Op::Alloc { size: isize::MAX as usize + 1 + back, align, zero });
            }
        }
    }
    assert!(mm.alloc(isize::MAX as usize).is_null());
    assert!(mm.alloc_aligned(1, 1 << 62, false).is_null());
    world.apply(Op::Alloc { size: 100, align: 1, zero: false });
    world.may_fail = true;
    // SAFETY: the block is live; a refusal leaves it alone, which `finish` checks.
    let grown = unsafe { mm.realloc(world_block(&world), usize::MAX - 4096) };
    assert!(grown.is_null());
    world.finish();
}

fn world_block<M: Host>(world: &World<'_, M>) -> *mut u8 {
    world.any().expect("a live block")
}
