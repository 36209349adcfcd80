//! A mark of pressure refuses nothing, and what is free goes back before more is taken.

use slabwright::machine::ZoneKind::Normal;
use slabwright::machine::sim::{Flavour, Hosted, Lent, Simulated};
use slabwright::mm::Mm;
use slabwright::types::PAGE_SIZE;

use crate::hosts::heap;

/// Pages of the mark.
const MARK: u64 = 6000;

fn machine<F: Flavour>(mark: u64) -> Simulated<F> {
    Simulated::builder().grow(0, Normal, 1 << 14, 1 << 15, 1 << 10).window(512 << 20).pressure(mark).build()
}

/// Blocks of `size` bytes until they have `pages` pages, each page of which is touched if `touch` says so.
fn fill<F: Flavour>(mm: &Mm<Simulated<F>>, size: usize, pages: u64, touch: bool) -> Vec<*mut u8> {
    let count = (pages as usize * PAGE_SIZE).div_ceil(size);
    let blocks = (0..count).map(|_| {
        let block = mm.alloc(size);
        assert!(!block.is_null(), "nothing is refused");
        if touch {
            // SAFETY: a live block of that size.
            unsafe { block.write_bytes(1, size) };
            assert_backed(mm);
        }
        block
    });
    blocks.collect()
}

fn free<F: Flavour>(mm: &Mm<Simulated<F>>, blocks: Vec<*mut u8>) {
    // SAFETY: live blocks, freed once.
    blocks.into_iter().for_each(|block| unsafe { mm.free(block) });
}

/// As much as the mark, with what one request may take, what a CPU keeps, and what describes it all.
fn assert_backed<F: Flavour>(mm: &Mm<Simulated<F>>) {
    let backed = mm.machine().backed();
    assert!(backed <= MARK + MARK / 8, "{backed} pages backed");
}

fn peaks_of_different_kinds<F: Flavour>() {
    let sim = machine::<F>(MARK);
    let mm = heap(&sim);
    for size in [3 << 20, 60_000, 500, 5 << 20, 100_000, 2000, 64] {
        let blocks = fill(&mm, size, MARK * 3 / 4, true);
        free(&mm, blocks);
        mm.verify().unwrap();
    }
    assert!(mm.stats().pages_returned > 0);
}

fn more_than_there_is<F: Flavour>() {
    let sim = machine::<F>(MARK);
    let mm = heap(&sim);
    // Owned frames back all of an area at once; there only runs can be untouched.
    let sparse = fill(&mm, if F::OWNS_FRAMES { 200_000 } else { 16 << 20 }, 3 * MARK, false);
    let calls = sim.fallible_calls();
    // Memory stays short, but that is not looked into with each request.
    let small = fill(&mm, 3000, MARK / 16, true);
    assert!(sim.fallible_calls() - calls < MARK / 8, "{} calls", sim.fallible_calls() - calls);
    free(&mm, small);
    free(&mm, sparse);
    mm.verify().unwrap();
}

#[test]
fn peaks_follow_each_other_within_the_mark() {
    peaks_of_different_kinds::<Hosted>();
    peaks_of_different_kinds::<Lent>();
}

#[test]
fn untouched_memory_is_not_refused() {
    more_than_there_is::<Hosted>();
    more_than_there_is::<Lent>();
}

#[test]
fn free_memory_is_old_earlier() {
    for (mark, goes) in [(u64::MAX, false), (2000, true)] {
        let sim = machine::<Hosted>(mark);
        let mm = heap(&sim);
        // Live and untouched, so that memory is short all the time.
        let live = fill(&mm, 16 << 20, 5000, false);
        let blocks = fill(&mm, 1 << 20, 4000, false);
        // SAFETY: live blocks of that size.
        blocks.iter().for_each(|block| unsafe { block.write_bytes(1, 1 << 20) });
        free(&mm, blocks);
        let backed = sim.backed();
        for _ in 0..3 {
            sim.advance(150);
            free(&mm, vec![mm.alloc(20_000)]);
        }
        assert_eq!(sim.backed() < backed / 2, goes, "{} of {backed} pages backed after half a second", sim.backed());
        free(&mm, live);
    }
}
