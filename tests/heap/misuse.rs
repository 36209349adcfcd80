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
            one_report(&mm, block, "double free");
            // The block is not handed out twice.
            let (a, b) = (mm.alloc(size), mm.alloc(size));
            assert!(!a.is_null() && a != b, "size {size}");
        }
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
