//! Misuse is reported, once and by its name, and the heap stays sound.

use slabwright::machine::ZoneKind::Normal;
use slabwright::machine::sim::Sim;
use slabwright::mm::Mm;

use crate::hosts::heap;

const SIZES: [usize; 11] = [1, 8, 16, 64, 100, 1000, 4096, 8192, 9000, 200_000, 3 << 20];

fn machine() -> Sim {
    let sim = Sim::builder().grow(0, Normal, 1 << 14, 1 << 14, 1 << 10).build();
    sim.set_aborts(false);
    sim
}

/// `size` bytes.
fn alloc(mm: &Mm<Sim>, size: usize) -> *mut u8 {
    let block = mm.alloc(size);
    assert!(!block.is_null(), "{size} bytes");
    block
}

/// Frees `address`, and what was reported.
fn free(mm: &Mm<Sim>, address: *mut u8) -> Vec<String> {
    // SAFETY: none: this is misuse, which the allocator must survive.
    unsafe { mm.free(address) };
    mm.verify().unwrap();
    mm.machine().take_reports()
}

fn one_report(mm: &Mm<Sim>, address: *mut u8, what: &str) {
    let reports = free(mm, address);
    assert_eq!(reports.len(), 1, "{reports:?}");
    assert!(reports[0].contains(what), "{reports:?} should say {what:?}");
}

// rows: F2
#[test]
fn a_double_free_is_one() {
    for size in SIZES {
        for others in [0, 1, 20, 600] {
            if size * others > 4 << 20 {
                continue;
            }
            let mm = heap(&machine());
            let block = alloc(&mm, size);
            let rest: Vec<_> = (0..others).map(|_| alloc(&mm, size)).collect();
            assert_eq!(free(&mm, block), Vec::<String>::new());
            rest.into_iter().for_each(|other| assert_eq!(free(&mm, other), Vec::<String>::new()));
            // At once, or with small blocks when it would be handed out for the second time.
            // SAFETY: none: this is misuse, which the allocator must survive.
            unsafe { mm.free(block) };
            let mut out: Vec<_> = (0..others + 3).map(|_| alloc(&mm, size)).collect();
            let reports = mm.machine().take_reports();
            assert_eq!(reports.len(), 1, "{size} {others}: {reports:?}");
            assert!(reports[0].contains("double free"), "{reports:?}");
            assert!(reports[0].contains(&format!("{:#x}", block.addr())), "{reports:?} names another than {block:?}");
            out.sort();
            assert!(out.is_sorted_by(|a, b| a < b), "a block of {size} bytes was handed out twice");
            mm.verify().unwrap();
        }
    }
}

// rows: F2
#[test]
fn a_double_free_right_after_the_first_is_reported_at_once() {
    for size in SIZES {
        let mm = heap(&machine());
        let block = alloc(&mm, size);
        assert_eq!(free(&mm, block), Vec::<String>::new());
        one_report(&mm, block, "double free");
    }
}

// rows: F2
#[test]
fn a_double_free_is_found_at_exit() {
    for size in SIZES.into_iter().filter(|size| *size <= 8192) {
        let mm = heap(&machine());
        let blocks: Vec<_> = (0..3).map(|_| alloc(&mm, size)).collect();
        blocks.iter().for_each(|block| assert_eq!(free(&mm, *block), Vec::<String>::new()));
        mm.check_freed();
        assert_eq!(mm.machine().take_reports(), Vec::<String>::new());
        // SAFETY: none: misuse.
        unsafe { mm.free(blocks[0]) };
        mm.check_freed();
        let reports = mm.machine().take_reports();
        assert!(reports.len() == 1 && reports[0].contains("double free"), "{reports:?}");
    }
}

// rows: F2
#[test]
#[cfg(not(feature = "slob"))] // which has nothing in free memory that says so
fn a_write_to_a_free_block_is_found() {
    for size in SIZES.into_iter().filter(|size| *size <= 8192) {
        let mm = heap(&machine());
        // The first ones do not lie in a sheaf, where it is looked for.
        (0..4).for_each(|_| assert_eq!(free(&mm, alloc(&mm, size)), Vec::<String>::new()));
        let blocks: Vec<_> = (0..3).map(|_| alloc(&mm, size)).collect();
        blocks.iter().for_each(|block| assert_eq!(free(&mm, *block), Vec::<String>::new()));
        // SAFETY: none: misuse. The memory is the allocator's.
        unsafe { blocks[1].write_bytes(7, size) };
        assert!(mm.verify().is_err());
        let again: Vec<_> = (0..3).map(|_| alloc(&mm, size)).collect();
        let reports = mm.machine().take_reports();
        assert!(reports.len() == 1 && reports[0].contains("write to a free object"), "{reports:?}");
        assert!(!again.contains(&blocks[1]), "it is set aside");
        mm.verify().unwrap();
    }
}

#[test]
fn an_interior_free_is_one() {
    for size in SIZES.into_iter().filter(|size| *size >= 64) {
        let mm = heap(&machine());
        let block = alloc(&mm, size);
        for offset in [1, 8, 16, size / 2, size - 1] {
            one_report(&mm, block.wrapping_add(offset), "middle");
        }
        assert_eq!(free(&mm, block), Vec::<String>::new());
    }
}

#[test]
fn a_foreign_free_is_one() {
    let mm = heap(&machine());
    let mut local = [0u64; 4];
    let boxed = Box::into_raw(Box::new([0u64; 4]));
    // Before the first allocation, too.
    one_report(&mm, (&raw mut local).cast(), "never allocated");
    let block = alloc(&mm, 100);
    for address in [(&raw mut local).cast(), boxed.cast(), core::ptr::without_provenance_mut(16)] {
        one_report(&mm, address, "never allocated");
    }
    assert_eq!(free(&mm, core::ptr::null_mut()), Vec::<String>::new());
    assert_eq!(free(&mm, block), Vec::<String>::new());
    // SAFETY: from `into_raw` above.
    drop(unsafe { Box::from_raw(boxed) });
}

#[test]
#[should_panic(expected = "double free")]
fn misuse_ends_the_program_if_so_configured() {
    let sim = machine();
    sim.set_aborts(true);
    let mm = heap(&sim);
    let block = alloc(&mm, 100);
    free(&mm, block);
    free(&mm, block);
}
