//! What lies idle goes back, also in a program that stays on the fast path; what is wanted again stays.

use slabwright::machine::ZoneKind::Normal;
#[cfg(not(feature = "slob"))]
use slabwright::machine::sim::{Bare, Flavour, Hostile};
use slabwright::machine::sim::{Hosted, Simulated};
use slabwright::mm::Mm;
#[cfg(not(feature = "slob"))]
use slabwright::slab::runs::run_class;
use slabwright::types::PAGE_SIZE;

use crate::hosts::heap;

/// Bytes of a peak.
const PEAK: usize = 48 << 20;

/// Bytes of blocks. First fit would look for small ones for minutes.
const SIZES: &[usize] =
    if cfg!(feature = "slob") { &[40_000, 600_000, 5 << 20] } else { &[100, 2000, 40_000, 600_000, 5 << 20] };

fn machine() -> Simulated<Hosted> {
    Simulated::builder().grow(0, Normal, 1 << 14, 1 << 15, 1 << 10).window(512 << 20).build()
}

/// One that has a gibibyte of memory.
#[cfg(not(feature = "slob"))]
fn gibibyte() -> Simulated<Hosted> {
    Simulated::builder().grow(0, Normal, 1 << 14, 1 << 15, 1 << 10).window(512 << 20).pressure(1 << 18).build()
}

/// Blocks of about `size` bytes, written to, and freed again, in some time.
fn peak(mm: &Mm<Simulated<Hosted>>, size: usize) {
    let count = PEAK / size;
    let tick = |n: usize| mm.machine().advance(if n.is_multiple_of(count / 9) { 10 } else { 0 });
    let blocks: Vec<_> = (0..count)
        .map(|n| {
            tick(n);
            let size = size - n % 7 * (size / 16);
            let block = mm.alloc(size);
            // SAFETY: a live block of that size.
            unsafe { block.write_bytes(1, size) };
            block
        })
        .collect();
    for (n, block) in blocks.into_iter().enumerate() {
        tick(n);
        // SAFETY: a live block, freed once.
        unsafe { mm.free(block) };
    }
}

/// MiB that hold memory after some seconds with a small block each.
fn after_idleness(mm: &Mm<Simulated<Hosted>>) -> u64 {
    for _ in 0..6 {
        mm.machine().advance(1000);
        // SAFETY: a live block.
        unsafe { mm.free(mm.alloc(50)) };
    }
    mm.machine().backed() >> 8
}

#[test]
fn a_peak_goes_back_though_nothing_takes_the_slow_path() {
    for &size in SIZES {
        let mm = heap(&machine());
        // The objects that the idle program uses are at hand.
        if !cfg!(feature = "slob") {
            peak(&mm, 50);
        }
        peak(&mm, size);
        assert!(mm.machine().backed() >> 8 > 30, "blocks of {size} bytes: nothing goes back at once");
        let left = after_idleness(&mm);
        assert!(left <= 6, "blocks of {size} bytes: {left} MiB are left");
        mm.verify().unwrap();
    }
}

#[test]
fn what_is_wanted_again_stays() {
    for &size in SIZES {
        let mm = heap(&machine());
        let mut before = 0;
        for round in 0..40 {
            peak(&mm, size);
            if round == 10 {
                before = mm.stats().pages_returned;
            }
        }
        // Runs of changing sizes do not always fit where others were.
        let gone = (mm.stats().pages_returned - before) * PAGE_SIZE as u64;
        assert!(gone <= 30 * PEAK as u64 / 8, "blocks of {size} bytes: {gone} bytes went");
    }
}

/// A busy program: many calls in each tick of the clock, and none of them takes a slow path. First fit has no other.
#[test]
#[cfg(not(feature = "slob"))]
fn a_peak_goes_back_though_calls_are_many() {
    let mm = heap(&machine());
    peak(&mm, 50);
    peak(&mm, 5 << 20);
    for _ in 0..40 {
        mm.machine().advance(50);
        for _ in 0..5000 {
            // SAFETY: a live block.
            unsafe { mm.free(mm.alloc(50)) };
        }
    }
    let left = mm.machine().backed() >> 8;
    assert!(left <= 6, "{left} MiB are left");
}

/// Who looks at the clock seldom while calls are many looks each time once they are few. First fit has no fast path.
#[test]
#[cfg(not(feature = "slob"))]
fn a_busy_program_that_slows_down_looks_at_the_clock() {
    let mm = heap(&machine());
    peak(&mm, 50);
    peak(&mm, 5 << 20);
    let pair = || {
        // SAFETY: a live block.
        unsafe { mm.free(mm.alloc(50)) };
    };
    (0..100).for_each(|_| pair());
    for _ in 0..22 {
        mm.machine().advance(1000);
        pair();
    }
    let left = mm.machine().backed() >> 8;
    assert!(left <= 6, "{left} MiB are left");
}

/// What goes within milliseconds of a knock that is over by then. First fit has no fast path.
#[test]
#[cfg(not(feature = "slob"))]
fn a_peak_that_falls_between_two_knocks_goes_back() {
    let mm = heap(&machine());
    peak(&mm, 50);
    let blocks: Vec<_> = (0..PEAK / 2000).map(|_| mm.alloc(2000)).collect();
    // SAFETY: live blocks of that size.
    blocks.iter().for_each(|block| unsafe { block.write_bytes(1, 2000) });
    mm.machine().advance(1000);
    let (first, rest) = blocks.split_at(blocks.len() / 4);
    // SAFETY: live blocks, each freed once.
    first.iter().for_each(|block| unsafe { mm.free(*block) });
    // SAFETY: a live block.
    unsafe { mm.free(mm.alloc(5 << 20)) };
    for _ in 0..2000 {
        // SAFETY: a live block.
        unsafe { mm.free(mm.alloc(50)) };
    }
    // SAFETY: as above.
    rest.iter().for_each(|block| unsafe { mm.free(*block) });
    let left = after_idleness(&mm);
    assert!(left <= 6, "{left} MiB are left");
    mm.verify().unwrap();
}

/// A knock is over after some calls where others take slow paths. First fit has no fast path.
#[test]
#[cfg(not(feature = "slob"))]
fn the_fast_path_opens_again() {
    let mm = heap(&machine());
    peak(&mm, 50);
    let fast = || {
        let block = mm.alloc_fast(50);
        // SAFETY: a live block, or null.
        unsafe { mm.free(block) };
        !block.is_null()
    };
    after_idleness(&mm);
    assert!(fast());
    mm.machine().advance(100);
    peak(&mm, 5 << 20);
    assert!(!fast(), "closed");
    // SAFETY: a live block.
    unsafe { mm.free(mm.alloc(5 << 20)) };
    for _ in 0..2000 {
        // SAFETY: a live block.
        unsafe { mm.free(mm.alloc(50)) };
    }
    assert!(fast());
}

// Who is tiny keeps no runs.
#[cfg(not(feature = "slob"))]
#[test]
fn runs_kept_while_they_cost_addresses_go_when_they_cost_memory() {
    runs_kept_by_cost(300 << 10);
    runs_kept_by_cost(100 << 10);
}

#[cfg(not(feature = "slob"))]
fn runs_kept_by_cost(size: usize) {
    let mm = heap(&machine());
    let take = |size: usize, written: usize| {
        let block = mm.alloc(size);
        // SAFETY: a live block of at least that size.
        unsafe { block.write_bytes(1, written) };
        block
    };
    let kept = || mm.slab().objects_in_rows(mm.machine())[run_class(size / PAGE_SIZE) as usize];
    let begun: Vec<_> = (0..(30 << 20) / size).map(|_| take(size, 1)).collect();
    // SAFETY: live blocks, freed once.
    begun.into_iter().for_each(|block| unsafe { mm.free(block) });
    assert!(kept() > 8, "{} runs are kept that hardly hold memory", kept());
    let filled: Vec<_> = (0..60).map(|_| take(600 << 10, 600 << 10)).collect();
    assert_eq!(kept(), 0);
    // SAFETY: live blocks, freed once.
    filled.into_iter().for_each(|block| unsafe { mm.free(block) });
    mm.verify().unwrap();
}

/// Frees `n` runs of each size from 3 to 16 pages; the pages that this CPU keeps of them.
#[cfg(not(feature = "slob"))]
fn keep_runs<F: Flavour>(mm: &Mm<Simulated<F>>, n: usize) -> usize {
    let mut kept = 0;
    for pages in 3..=16 {
        let runs: Vec<_> = (0..n).map(|_| mm.alloc(pages * PAGE_SIZE)).filter(|run| !run.is_null()).collect();
        // SAFETY: live blocks, freed once.
        runs.into_iter().for_each(|run| unsafe { mm.free(run) });
        kept += pages * mm.slab().objects_in_rows(mm.machine())[run_class(pages) as usize] as usize;
    }
    kept
}

/// No page of them is free to the zone, so that nothing lies idle there.
#[cfg(not(feature = "slob"))]
#[test]
fn kept_runs_go_back_though_nothing_takes_the_slow_path() {
    let mm = heap(&machine());
    let small = || {
        // SAFETY: a live block.
        unsafe { mm.free(mm.alloc(50)) };
    };
    // The first ones come from no sheaf.
    (0..5).for_each(|_| small());
    assert!(keep_runs(&mm, 20) > 1000);
    for _ in 0..40 {
        mm.machine().advance(50);
        (0..2000).for_each(|_| small());
    }
    let rows = mm.slab().objects_in_rows(mm.machine());
    let left: u32 = (3..=16).map(|pages| rows[run_class(pages) as usize]).sum();
    assert_eq!(left, 0);
}

/// What comes to lie in sheaves after a look that found little there goes back, too, if anybody takes a slow path then.
#[cfg(not(feature = "slob"))]
#[test]
fn kept_runs_go_back_where_there_were_few_before() {
    let mm = heap(&machine());
    let small = || {
        // SAFETY: a live block.
        unsafe { mm.free(mm.alloc(50)) };
    };
    (0..5).for_each(|_| small());
    for _ in 0..4 {
        mm.machine().advance(50);
        keep_runs(&mm, 1);
        (0..2000).for_each(|_| small());
    }
    assert!(!mm.alloc_fast(50).is_null(), "open");
    assert!(keep_runs(&mm, 20) > 1000);
    mm.machine().advance(100);
    peak(&mm, 5 << 20);
    for _ in 0..40 {
        mm.machine().advance(50);
        (0..2000).for_each(|_| small());
    }
    let rows = mm.slab().objects_in_rows(mm.machine());
    let left: u32 = (3..=16).map(|pages| rows[run_class(pages) as usize]).sum();
    assert_eq!(left, 0);
}

/// A few runs of each size that come and go are no reason to close the fast path for longer than until the first look,
/// nor is there a size that none is kept of.
#[cfg(not(feature = "slob"))]
#[test]
fn few_runs_leave_the_fast_path_open() {
    const FIRSTS: [usize; 9] = [64, 96, 128, 192, 256, 320, 384, 448, 512];
    let mm = heap(&machine());
    // The first ones come from no sheaf.
    // SAFETY: a live block.
    (0..5).for_each(|_| unsafe { mm.free(mm.alloc(50)) });
    let mut open = 0;
    for tick in 0..100 {
        mm.machine().advance(50);
        // Takes the slow path, as the first block of its size.
        // SAFETY: a live block.
        unsafe { mm.free(mm.alloc(FIRSTS[tick.min(FIRSTS.len() - 1)])) };
        for n in 0..3000 {
            let (small, run) = (mm.alloc_fast(50), mm.alloc((3 + n % 14) * PAGE_SIZE));
            open += usize::from(tick >= 3 && !small.is_null());
            // SAFETY: live blocks, or null.
            unsafe { [small, run].into_iter().for_each(|block| mm.free(block)) };
        }
    }
    assert_eq!(open, 97 * 3000);
    let rows = mm.slab().objects_in_rows(mm.machine());
    let kept: Vec<_> = (3..=16).map(|pages| rows[run_class(pages) as usize]).collect();
    assert!(!kept.contains(&0), "{kept:?}");
    mm.verify().unwrap();
}

/// What is borrowed of a class goes back to it: who borrows only would never have one of its own.
#[cfg(not(feature = "slob"))]
#[test]
fn a_class_that_borrows_has_its_own_in_time() {
    let mm = heap(&machine());
    let turn = |pages: usize| {
        // SAFETY: a live block.
        unsafe { mm.free(mm.alloc(pages * PAGE_SIZE)) };
        let rows = mm.slab().objects_in_rows(mm.machine());
        [9, 10].map(|pages| rows[run_class(pages) as usize])
    };
    assert_eq!(turn(10), [0, 1]);
    for _ in 0..100 {
        assert_eq!(turn(9), [0, 1], "borrowed, at first");
    }
    (0..400).for_each(|_| {
        turn(9);
    });
    assert_eq!(turn(9), [1, 1]);
    mm.verify().unwrap();
}

/// Where there is little memory the last ones made are for a few runs only.
#[cfg(not(feature = "slob"))]
#[test]
fn sheaves_of_large_runs_are_read_as_they_were_made() {
    let mm = heap(&gibibyte());
    // Memory that sheaves come back to is not zero.
    let small: Vec<_> = (0..20_000).map(|_| mm.alloc(64)).collect();
    // SAFETY: live blocks, each freed once.
    small.into_iter().for_each(|block| unsafe { mm.free(block) });
    mm.slab().shrink(mm.machine(), mm.pages(), None);
    let turn = |size: usize, n: usize| {
        let blocks: Vec<_> = (0..n).map(|_| mm.alloc(size)).collect();
        // SAFETY: live blocks, each freed once.
        blocks.into_iter().for_each(|block| unsafe { mm.free(block) });
    };
    // Hardly anything of it is written to.
    turn(300 << 10, 100);
    mm.slab().flush_runs(mm.machine(), mm.pages());
    (3..=16).for_each(|pages| turn(pages * PAGE_SIZE, 1));
    (72..=512).step_by(8).for_each(|pages| turn(pages * PAGE_SIZE, 1));
    mm.verify().unwrap();
    let rows = mm.slab().objects_in_rows(mm.machine());
    let kept: Vec<_> = (72..=512).step_by(8).map(|pages| rows[run_class(pages) as usize]).collect();
    assert!(kept.contains(&1) && kept.iter().all(|kept| *kept <= 2), "{kept:?}");
    mm.slab().flush_runs(mm.machine(), mm.pages());
    mm.verify().unwrap();
}

/// A sheaf of few runs is taken out of its row to make room for one of more; the thread may be on another CPU then.
#[cfg(not(feature = "slob"))]
#[test]
fn sheaves_that_would_be_larger_lose_no_run() {
    let mm = heap(&gibibyte());
    let untouched: Vec<_> = (0..100).map(|_| mm.alloc(300 << 10)).collect();
    // SAFETY: live blocks, each freed once.
    untouched.into_iter().for_each(|block| unsafe { mm.free(block) });
    mm.slab().flush_runs(mm.machine(), mm.pages());
    let used = mm.stats().pages_in_use;
    mm.machine().set_hostile(Hostile { migrate: 2, ..Hostile::default() });
    for _ in 0..10 {
        keep_runs(&mm, 60);
    }
    mm.machine().set_hostile(Hostile::default());
    assert!(keep_runs(&mm, 60) > 500);
    mm.slab().flush_runs(mm.machine(), mm.pages());
    let more = mm.stats().pages_in_use - used;
    // Of sheaves and descriptors.
    assert!(more < 40, "{more} pages more are in use");
    mm.verify().unwrap();
}

#[cfg(not(feature = "slob"))]
#[test]
fn kept_runs_are_a_small_part_of_a_small_memory() {
    let pages = 1 << 13;
    let mm = heap(&Simulated::<Bare>::builder().ram(0, Normal, 1 << 14, pages).build());
    let kept = keep_runs(&mm, 60);
    assert!((1..=pages as usize / 16).contains(&kept), "{kept} pages are kept of {pages}");
    mm.verify().unwrap();
}

// First fit has no sheaves.
#[cfg(not(feature = "slob"))]
#[test]
fn sheaves_are_gathered_while_memory_grows() {
    let mm = heap(&machine());
    // A class that all blocks passed through: one in each slab, and those that the sheaves keep from many others.
    let blocks: Vec<_> = (0..1000).map(|_| mm.alloc(1000)).collect();
    for step in 0..10 {
        // SAFETY: live blocks, each freed once.
        blocks.iter().skip(step).step_by(10).for_each(|block| unsafe { mm.free(*block) });
    }
    assert!(mm.stats().slab.in_sheaves_bytes > 100_000);
    let grown: Vec<_> = (0..200_000).map(|_| mm.alloc(60)).collect();
    let slab = mm.stats().slab;
    assert!(slab.in_sheaves_bytes < 50_000 && slab.slab_bytes - slab.in_use_bytes < 200_000, "{slab:?}");
    mm.verify().unwrap();
    drop(grown);
}

#[cfg(not(feature = "slob"))]
#[test]
fn runs_in_sheaves_go_back_before_much_more_is_begun() {
    let mm = heap(&machine());
    let sizes = (12..=60).step_by(4).flat_map(|kib| [kib << 10; 24]);
    let blocks: Vec<_> = sizes.map(|size| mm.alloc(size)).collect();
    // SAFETY: live blocks, each freed once.
    blocks.iter().for_each(|block| unsafe { mm.free(*block) });
    let kept = mm.stats().slab.in_sheaves_runs;
    assert!(kept > 2 << 20, "{kept} bytes");
    let blocks: Vec<_> = (0..80).map(|_| mm.alloc(200 << 10)).collect();
    let stats = mm.stats().slab;
    assert!(!blocks.contains(&core::ptr::null_mut()) && stats.in_sheaves_runs < kept / 4, "{stats:?}");
    mm.verify().unwrap();
}
