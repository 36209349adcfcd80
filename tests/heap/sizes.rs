//! Every size and alignment at the boundaries.

use slabwright::machine::ZoneKind::Normal;
use slabwright::machine::sim::{Sim, SimHosted};

use crate::hosts::heap;
use crate::ops::Op;
use crate::walks::{around_every_order, every_alignment, every_size, world};
use crate::world::{Host, World};

fn sim() -> Sim {
    Sim::builder().grow(0, Normal, 1 << 14, 1 << 15, 1 << 10).build()
}

fn hosted() -> SimHosted {
    SimHosted::builder().grow(0, Normal, 1 << 14, 1 << 15, 1 << 10).window(128 << 20).build()
}

// rows: F1 F3 F4
#[test]
fn every_size_to_9000() {
    every_size(&heap(&sim()), 9000);
}

// rows: D14
// First fit has no classes.
#[cfg(not(feature = "slob"))]
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
        // Smaller ones than the largest that fit into a slab in the same number would save nothing.
        let bound = size.next_multiple_of(16).max(size + size / 3);
        assert!(usable >= size && usable <= bound, "{size} bytes take {usable}");
    }
}

/// A block moves only to one of another class, and shrinks where it stands unless that would waste half.
#[cfg(not(feature = "slob"))]
#[test]
fn small_blocks_stay_where_they_fit() {
    let mm = heap(&sim());
    for size in 1..=8192usize {
        let block = mm.alloc(size);
        // SAFETY: the block is live, and each call has its latest address.
        unsafe {
            let usable = mm.usable_size(block);
            assert_eq!(mm.realloc(block, usable), block, "{size} to all of its {usable} bytes");
            assert_eq!(mm.realloc(block, size), block, "{size} back");
            let half = mm.realloc(block, usable / 2);
            assert!(usable == 8 || mm.usable_size(half) < usable, "{size} to half of {usable}");
            mm.free(half);
        }
    }
}

#[test]
fn null_has_no_size() {
    let mm = heap(&sim());
    // SAFETY: null is allowed.
    assert_eq!(unsafe { mm.usable_size(core::ptr::null()) }, 0);
    assert_eq!(mm.machine().take_reports(), Vec::<String>::new());
}

// rows: F1 F3
#[test]
fn sizes_around_every_order() {
    around_every_order(&heap(&sim()));
    around_every_order(&heap(&hosted()));
}

// rows: F1
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
