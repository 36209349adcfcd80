//! vmalloc on a process: contents survive growing and moving, and freed memory serves larger areas.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::undocumented_unsafe_blocks)] // the calls under test, on memory of the test's own

use std::time::Instant;

use slabwright::config::Options;
use slabwright::gfp::Gfp;
use slabwright::machine::Machine;
use slabwright::machine::linux::Linux;
use slabwright::types::{PAGE_SIZE, PAGEBLOCK_SIZE};
use slabwright::vmalloc::Vmalloc;
use slabwright::zone::PageAllocator;

static PAGES: PageAllocator<Linux> = PageAllocator::new();
static AREAS: Vmalloc<Linux> = Vmalloc::new();

fn fill(at: *mut u8, size: usize) {
    for page in 0..size / PAGE_SIZE {
        unsafe { at.add(page * PAGE_SIZE).cast::<usize>().write(page ^ 0x5a5a) };
    }
}

fn check(at: *mut u8, size: usize) {
    for page in 0..size / PAGE_SIZE {
        assert_eq!(unsafe { at.add(page * PAGE_SIZE).cast::<usize>().read() }, page ^ 0x5a5a);
    }
}

// rows: H1 H2 H7
#[test]
fn areas_of_a_process() {
    let m = &Linux;
    assert!(m.init());
    PAGES.init(m, &Options::DEFAULT);
    let size = 64 << 20;
    let timed = |what: &str, f: &mut dyn FnMut()| {
        let start = Instant::now();
        f();
        println!("{what}: {:?}", start.elapsed());
    };
    let mut at = std::ptr::null_mut();
    timed("alloc 64 MiB fresh, fill", &mut || {
        at = AREAS.alloc(m, &PAGES, size, 1, Gfp::KERNEL).unwrap().as_ptr();
        fill(at, size);
    });
    (unsafe { AREAS.free(m, &PAGES, at, true) }).unwrap();
    timed("10000 pairs of 64 MiB", &mut || {
        for _ in 0..10_000 {
            let p = AREAS.alloc(m, &PAGES, size, 1, Gfp::KERNEL).unwrap().as_ptr();
            (unsafe { AREAS.free(m, &PAGES, p, true) }).unwrap();
        }
    });
    timed("alloc 80 MiB over 64 MiB of old memory", &mut || {
        at = AREAS.alloc(m, &PAGES, 80 << 20, 1, Gfp::KERNEL).unwrap().as_ptr();
    });
    fill(at, 80 << 20);
    timed("realloc by pages from 80 MiB to 320 MiB", &mut || {
        for pages in (80 << 20) / PAGE_SIZE..=(320 << 20) / PAGE_SIZE {
            at = unsafe { AREAS.realloc(m, &PAGES, at, pages * PAGE_SIZE, Gfp::KERNEL) }.unwrap().as_ptr();
        }
    });
    check(at, 80 << 20);
    (unsafe { AREAS.free(m, &PAGES, at, true) }).unwrap();
    // An area with another one behind it has to move.
    let odd = PAGEBLOCK_SIZE + 5 * PAGE_SIZE;
    let mut p = AREAS.alloc(m, &PAGES, odd, 1, Gfp::KERNEL).unwrap().as_ptr();
    fill(p, odd);
    let mut grown = odd;
    let mut walls = Vec::new();
    for big in [100 << 20, 400 << 20, (1usize << 30) + PAGE_SIZE] {
        let old = grown;
        walls.push(AREAS.alloc(m, &PAGES, 3 << 20, 1, Gfp::KERNEL).unwrap().as_ptr());
        timed("realloc to a multiple", &mut || {
            p = unsafe { AREAS.realloc(m, &PAGES, p, big, Gfp::KERNEL) }.unwrap().as_ptr();
        });
        check(p, old);
        fill(p, big);
        grown = big;
        AREAS.verify(m).unwrap();
    }
    (unsafe { AREAS.free(m, &PAGES, p, true) }).unwrap();
    walls.into_iter().for_each(|wall| unsafe { AREAS.free(m, &PAGES, wall, true) }.unwrap());
    let zeroed = AREAS.alloc(m, &PAGES, 90 << 20, 1, Gfp::KERNEL | Gfp::ZERO).unwrap().as_ptr();
    assert!((0..90 << 20).step_by(PAGE_SIZE / 2).all(|i| unsafe { zeroed.add(i).read() } == 0));
    (unsafe { AREAS.free(m, &PAGES, zeroed, true) }).unwrap();
    let stats = AREAS.verify(m).unwrap();
    println!("{stats:?}");
    assert!(stats.reused >= 10_000 && stats.moved > 0, "{stats:?}");
    AREAS.purge(m, &PAGES);
    assert_eq!(AREAS.verify(m).unwrap().charged, 0);
}
