//! What is learned of the use of areas, and which of them huge pages are asked for.

use std::vec;
use std::vec::Vec;

use super::{World, pointer};
use crate::gfp::Gfp;
use crate::machine::sim::Hosted;
use crate::types::PAGE_SIZE;
use crate::vmalloc::usage::{Count, History, Usage, samples, spread};

const SLOT: usize = 2 << 20;

fn world() -> World<Hosted> {
    World::new(1024, 1024, u64::MAX)
}

/// Writes to a byte in each `step` of the first `len` bytes at `at`.
fn touch(at: usize, len: usize, step: usize) {
    for at in (at..at + len).step_by(step) {
        // SAFETY: callers pass a live area.
        unsafe { pointer(at).write(1) }
    }
}

/// Slots of `len` bytes at `at` for which huge pages were asked.
fn advised(w: &World<Hosted>, at: usize, len: usize) -> usize {
    (at..at + len).step_by(SLOT).filter(|slot| w.m.is_advised(*slot)).count()
}

#[test]
fn verdicts() {
    let verdict = |slots: &[(usize, usize)]| {
        let mut count = Count::default();
        slots.iter().for_each(|&(pages, leading)| count.add(pages, leading, 512));
        count.usage()
    };
    assert_eq!(verdict(&[]), Usage::Unknown);
    assert_eq!(verdict(&[(0, 0), (0, 0)]), Usage::Unknown);
    assert_eq!(verdict(&[(512, 512), (0, 0)]), Usage::Dense);
    assert_eq!(verdict(&[(480, 3)]), Usage::Dense);
    assert_eq!(verdict(&[(479, 3)]), Usage::Sparse);
    // The slot that is being filled says nothing; two such slots are not being filled.
    assert_eq!(verdict(&[(1, 1)]), Usage::Unknown);
    assert_eq!(verdict(&[(512, 512), (100, 100)]), Usage::Dense);
    assert_eq!(verdict(&[(1, 1), (1, 1)]), Usage::Sparse);
    assert_eq!(verdict(&[(512, 512), (32, 1)]), Usage::Unknown);
    assert_eq!(verdict(&[(512, 512), (32, 1), (32, 1)]), Usage::Sparse);
}

#[test]
fn samples_are_slots_from_the_ends() {
    for slots in 0..100 {
        let chosen: Vec<usize> = samples(slots).collect();
        let mut sorted = chosen.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert!(sorted.len() == chosen.len() && chosen.iter().all(|slot| *slot < slots), "{chosen:?}");
        assert_eq!(chosen.first(), (slots > 0).then_some(&0));
        assert!(slots < 2 || chosen[1] == slots - 1);
    }
}

#[test]
fn one_sparse_area_outweighs_dense_ones() {
    use Usage::*;
    let mut history = History::new();
    let expects = |history: &History, sizes: &[usize], usage| {
        for mib in sizes {
            assert_eq!(history.expects(mib << 20), usage, "{mib} MiB");
        }
    };
    expects(&history, &[64], Unknown);
    history.learn(70 << 20, Dense);
    // Up to eight times smaller or larger.
    expects(&history, &[8, 1023], Dense);
    expects(&history, &[7, 1024], Unknown);
    history.learn(300 << 20, Sparse);
    // The nearest counts.
    expects(&history, &[64], Dense);
    expects(&history, &[512], Sparse);
    history.learn(64 << 20, Unknown);
    expects(&history, &[64], Dense);
    history.learn(64 << 20, Sparse);
    for _ in 0..2 {
        expects(&history, &[64, 128], Sparse);
        history.learn(64 << 20, Dense);
    }
    history.learn(64 << 20, Dense);
    expects(&history, &[64], Dense);
}

#[test]
fn probes_are_few() {
    let mut history = History::new();
    let probes: usize = (0..1000).map(|_| history.probes(8)).sum();
    assert!((100..=125).contains(&probes), "{probes} of 8000 slots");
    assert!((1..=4).contains(&history.probes(5000)));
    assert_eq!(history.probes(1), 0);
}

/// A sparse area is given back when it is freed, a dense one kept, and only the latter's successors get huge pages.
#[test]
fn the_next_area_of_a_size_is_as_the_last() {
    let w = world();
    let len = 8 * SLOT;
    let sparse = w.alloc(len, 1, Gfp::KERNEL).unwrap();
    touch(sparse, len, 16 * PAGE_SIZE);
    w.free(sparse).unwrap();
    assert_eq!(w.v.stats(&w.m).retained, 0);
    let dense = w.alloc(len, 1, Gfp::KERNEL).unwrap();
    assert_eq!(advised(&w, dense, len), 0);
    touch(dense, len, PAGE_SIZE);
    // Dense use after sparse use has to be seen more than once, each time in an area of its own.
    let mut all = vec![dense];
    for n in 0..4 {
        let next = w.alloc(len, 1, Gfp::KERNEL).unwrap();
        assert_eq!(advised(&w, next, len), [0, 7, 8, 8][n], "area {n}");
        touch(next, len, PAGE_SIZE);
        all.push(next);
    }
    assert_eq!(advised(&w, dense, len), 8, "it turned out dense, and the system may make it huge");
    let twice = w.alloc(2 * len, 1, Gfp::KERNEL).unwrap();
    assert!(advised(&w, twice, 2 * len) >= 15);
    all.push(twice);
    let larger = w.alloc(32 * len, 1, Gfp::KERNEL | Gfp::ZERO).unwrap();
    assert_eq!(advised(&w, larger, 32 * len), 0, "nothing is known of so large a one");
    all.push(larger);
    for at in all {
        w.free(at).unwrap();
    }
    w.v.purge(&w.m, &w.pages);
    assert_eq!(
        advised(&w, crate::machine::Mapping::window(&w.m).start, 1024 * SLOT),
        0,
        "advice ends with the mapping"
    );
    w.end(vec![]);
}

/// Slots that a first area of `slots` slots gets no huge pages in (besides what old memory was moved to), on a machine
/// of so little memory.
fn left_small(pressure: u64, slots: usize, gfp: Gfp) -> usize {
    let w: World<Hosted> = World::under_pressure(1024, 2048, u64::MAX, pressure);
    let at = w.alloc(slots * SLOT, 1, gfp).unwrap();
    let small = slots - w.v.stats(&w.m).donated as usize - advised(&w, at, slots * SLOT);
    touch(at, slots * SLOT, 16 * PAGE_SIZE);
    let next = w.alloc(slots * SLOT, 1, gfp).unwrap();
    assert_eq!(advised(&w, at, slots * SLOT) + advised(&w, next, slots * SLOT), 0, "it turned out sparse");
    w.free(at).unwrap();
    w.free(next).unwrap();
    w.end(vec![]);
    small
}

/// Nothing is known: all but a slot, by which it is learned, where what may be wasted is bearable: less of it where
/// zeroes are asked for.
#[test]
fn the_first_area_of_its_kind() {
    assert_eq!(left_small(u64::MAX, 8, Gfp::KERNEL), 1);
    assert_eq!(left_small(u64::MAX, 512, Gfp::KERNEL), 1);
    assert_eq!(left_small(u64::MAX, 513, Gfp::KERNEL), 513 - 1);
    assert_eq!(left_small(u64::MAX, 16, Gfp::KERNEL | Gfp::ZERO), 1);
    assert_eq!(left_small(u64::MAX, 17, Gfp::KERNEL | Gfp::ZERO), 17);
    let pages = (8 * SLOT / PAGE_SIZE) as u64;
    assert_eq!(left_small(16 * pages, 8, Gfp::KERNEL), 1);
    assert_eq!(left_small(16 * pages - 1, 8, Gfp::KERNEL), 8 - 1);
}

/// Pages of the slots at `at` that hold memory.
fn backed(w: &World<Hosted>, at: usize, slots: usize) -> usize {
    (0..slots).map(|slot| crate::machine::Mapping::backed_pages(&w.m, at + slot * SLOT).0).sum()
}

/// A zeroed area, every word of which is looked at, in as many slots as hold memory then.
fn zeroed(w: &World<Hosted>, slots: usize) -> (usize, usize) {
    let at = w.alloc(slots * SLOT, 1, Gfp::KERNEL | Gfp::ZERO).unwrap();
    let held = backed(w, at, slots);
    for word in (at..at + slots * SLOT).step_by(8) {
        // SAFETY: a live area.
        assert_eq!(unsafe { pointer(word).cast::<u64>().read() }, 0, "{word:#x}");
    }
    (at, held * PAGE_SIZE / SLOT)
}

/// A [`zeroed`] area that is filled and freed; the slots that held memory.
fn filled(w: &World<Hosted>, slots: usize) -> usize {
    let (at, held) = zeroed(w, slots);
    touch(at, slots * SLOT, PAGE_SIZE);
    w.free(at).unwrap();
    held
}

/// Zeroed areas that are filled come out of memory that is there, but for a slot now and then; where those are no
/// longer written to, they come from the system again.
#[test]
fn zeroed_areas_that_are_filled_take_old_memory() {
    let w = world();
    assert_eq!(filled(&w, 8), 0);
    let mut left = 0;
    for _ in 0..72 {
        let held = filled(&w, 8);
        assert!((7..=8).contains(&held), "{held} slots");
        left += 8 - held;
    }
    assert_eq!(left, 3, "one slot in 64, and then in 256");
    // A larger one: old memory is moved there.
    let (at, held) = zeroed(&w, 12);
    assert_eq!(held, 8);
    w.free(at).unwrap();
    // Reading counts as use.
    let held: Vec<usize> = (0..48)
        .map(|_| {
            let at = w.alloc(8 * SLOT, 1, Gfp::KERNEL | Gfp::ZERO).unwrap();
            let held = backed(&w, at, 8) * PAGE_SIZE / SLOT;
            w.free(at).unwrap();
            held
        })
        .collect();
    assert!(held.iter().any(|held| *held >= 7) && held[40..].iter().all(|held| *held == 0), "{held:?}");
    // And once more the other way: not every area is looked at.
    let learned = (0..48).position(|_| filled(&w, 8) > 0);
    assert!(learned.is_some_and(|areas| areas >= 3), "{learned:?}");
    w.end(vec![]);
}

/// Areas of several sizes, of which some find no old memory: what is counted for all of them is due where there is
/// nothing to leave.
#[test]
fn zeroed_areas_of_several_sizes() {
    let w = world();
    filled(&w, 2);
    // The range that is known of stays in use.
    let mut kept = vec![w.alloc(2 * SLOT, 1, Gfp::KERNEL).unwrap()];
    for _ in 0..60 {
        let (large, _) = zeroed(&w, 8);
        touch(large, 8 * SLOT, PAGE_SIZE);
        kept.push(zeroed(&w, 2).0);
        w.free(large).unwrap();
    }
    kept.into_iter().for_each(|at| w.free(at).unwrap());
    let mut history = History::new();
    history.learn_filled(SLOT, true);
    assert!((0..1000).all(|slots| history.leaves(SLOT, slots % 3).is_none_or(|slot| slot < slots % 3)));
    w.end(vec![]);
}

/// Of what holds no memory none is written to, and what is hardly backed goes back to the system.
#[test]
fn zeroes_are_written_to_what_is_there_only() {
    let w = world();
    filled(&w, 8);
    w.v.purge(&w.m, &w.pages);
    let at = w.alloc(8 * SLOT, 1, Gfp::KERNEL).unwrap();
    touch(at, 3 * SLOT, PAGE_SIZE);
    touch(at + 5 * SLOT, SLOT / 4, PAGE_SIZE);
    w.free(at).unwrap();
    let (at, held) = zeroed(&w, 8);
    assert_eq!(held, 3);
    w.free(at).unwrap();
    w.end(vec![]);
}

#[test]
fn slots_that_are_looked_at_are_spread() {
    for slots in 0..100 {
        let chosen: Vec<usize> = spread(slots).collect();
        assert_eq!(chosen.len(), slots.min(4));
        assert!(chosen.windows(2).all(|two| two[0] < two[1]) && chosen.iter().all(|slot| *slot < slots), "{chosen:?}");
    }
    assert_eq!(spread(16).collect::<Vec<_>>(), [2, 6, 10, 14]);
}

/// However many areas are made before one is used, no more than 1 GiB of them get huge pages.
#[test]
fn hopes_are_bounded_in_all() {
    let w = world();
    let len = 128 * SLOT;
    let all: Vec<usize> = (0..6).map(|_| w.alloc(len, 1, Gfp::KERNEL).unwrap()).collect();
    let advised: Vec<usize> = all.iter().map(|at| advised(&w, *at, len)).collect();
    assert_eq!((advised[0] >= 126, &advised[1..4], &advised[4..]), (true, &[127; 3][..], &[0; 2][..]), "{advised:?}");
    assert_eq!(w.v.verify(&w.m).unwrap().hoped_bytes, 4 * len);
    w.free(all[0]).unwrap();
    assert_eq!(w.v.verify(&w.m).unwrap().hoped_bytes, 3 * len);
    all[1..].iter().for_each(|at| w.free(*at).unwrap());
    w.end(vec![]);
}

/// A header that is filled does not speak for what is behind it.
#[test]
fn a_filled_beginning_says_little_of_the_first_area() {
    let w = world();
    let len = 16 * SLOT;
    let at = w.alloc(len, 1, Gfp::KERNEL).unwrap();
    touch(at, 2 * SLOT, PAGE_SIZE);
    touch(at + 2 * SLOT, len - 2 * SLOT, 16 * PAGE_SIZE);
    let next = w.alloc(len, 1, Gfp::KERNEL).unwrap();
    assert_eq!((advised(&w, at, len), advised(&w, next, len)), (0, 0));
    w.free(at).unwrap();
    w.free(next).unwrap();
    w.end(vec![]);
}

#[test]
fn a_dense_area_grows_by_huge_pages_and_a_sparse_one_does_not() {
    for (step, huge) in [(PAGE_SIZE, true), (16 * PAGE_SIZE, false)] {
        let w = world();
        let mut at = w.alloc(2 * SLOT, 1, Gfp::KERNEL).unwrap();
        touch(at, 2 * SLOT, step);
        // In the way sooner or later, so that it is moved as well.
        let wall = w.alloc(SLOT, 1, Gfp::KERNEL).unwrap();
        for slots in [3, 20, 100] {
            at = w.realloc(at, slots * SLOT, Gfp::KERNEL).unwrap();
            assert_eq!(advised(&w, at + (slots - 1) * SLOT, SLOT), usize::from(huge), "{slots} slots");
        }
        w.free(at).unwrap();
        w.free(wall).unwrap();
        w.end(vec![]);
    }
}

/// Areas that are freed with hardly anything written to them say so: others of their size get small pages, until one is
/// filled.
#[test]
fn areas_that_are_hardly_used_get_small_pages() {
    let w = world();
    let (len, other) = (3 * SLOT, 5 * SLOT);
    let made = |len: usize, used: usize| {
        let donated = w.v.stats(&w.m).donated;
        let at = w.alloc(len, 1, Gfp::KERNEL).unwrap();
        let huge = advised(&w, at, len) + (w.v.stats(&w.m).donated - donated) as usize;
        touch(at, used, PAGE_SIZE);
        w.free(at).unwrap();
        w.v.purge(&w.m, &w.pages);
        huge
    };
    let huge = [1, PAGE_SIZE, 1].map(|used| made(len, used));
    assert_eq!(huge, [2, 2, 0], "two of them are enough");
    assert_eq!(made(other, 1), 4, "nothing is known of other sizes");
    assert_eq!([len, len].map(|used| made(len, used)), [0, 3]);
    w.end(vec![]);
}

/// What is hardly backed is not moved, page by page, to where a larger area needs memory, but given up.
#[test]
fn what_is_hardly_backed_is_not_moved() {
    for (used, moves) in [(SLOT / 4, true), (SLOT / 16, false)] {
        let w = World::<Hosted>::new(1024, 12, u64::MAX);
        let small = w.alloc(2 * SLOT, 1, Gfp::KERNEL).unwrap();
        let wall = w.alloc(SLOT, 1, Gfp::KERNEL).unwrap();
        [0, SLOT].iter().for_each(|slot| touch(small + slot, used, PAGE_SIZE));
        w.free(small).unwrap();
        let donated = w.v.stats(&w.m).donated;
        let large = w.alloc(4 * SLOT, 1, Gfp::KERNEL).unwrap();
        let moved = w.v.stats(&w.m).donated - donated;
        assert_eq!((moved == 2, backed(&w, large, 4) > 0, backed(&w, small, 2)), (moves, moves, 0), "{used} of a slot");
        w.verify();
        w.free(wall).unwrap();
        w.free(large).unwrap();
        w.end(vec![]);
    }
}

/// Dense expectations are checked: of many areas some slots stay small, and where those are used sparsely the others
/// follow.
#[test]
fn probes_revise_the_expectation() {
    let w = world();
    let len = 8 * SLOT;
    let first = w.alloc(len, 1, Gfp::KERNEL).unwrap();
    touch(first, len, PAGE_SIZE);
    w.free(first).unwrap();
    w.v.purge(&w.m, &w.pages);
    let mut most = 0;
    for _ in 0..40 {
        let at = w.alloc(len, 1, Gfp::KERNEL | Gfp::ZERO).unwrap();
        touch(at, len, 16 * PAGE_SIZE);
        most = most.max(advised(&w, at, len));
        w.free(at).unwrap();
    }
    assert_eq!(most, 8);
    let at = w.alloc(len, 1, Gfp::KERNEL | Gfp::ZERO).unwrap();
    assert_eq!(advised(&w, at, len), 0);
    w.free(at).unwrap();
    w.end(vec![]);
}

/// The clock's tick looks at what was made of late.
#[test]
fn a_live_area_is_looked_at() {
    let w = world();
    let len = 16 * SLOT;
    let at = w.alloc(len, 1, Gfp::KERNEL).unwrap();
    touch(at, 9 * SLOT, PAGE_SIZE);
    w.v.give_back_excess(&w.m, &w.pages, u64::MAX);
    assert_eq!(advised(&w, at, len), 16);
    w.v.verify(&w.m).unwrap();
    w.free(at).unwrap();
    w.end(vec![]);
}
