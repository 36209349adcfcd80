//! How an instance starts, how the buddy system begins, and its steps one by one.
#![cfg(all(target_os = "linux", feature = "sim"))]
#![allow(clippy::undocumented_unsafe_blocks)] // the calls under test, on memory of the test's own

use std::cell::RefCell;

use slabwright::config::Options;
use slabwright::gfp::Gfp;
use slabwright::machine::sim::{Call, Sim, SimBare};
use slabwright::machine::{Frames, ZoneKind};
use slabwright::mm::{Hooks, Mm};
use slabwright::page::Kind;
use slabwright::types::{Order, Pfn};
use slabwright::zone::{MigrateType, PageAllocator};

thread_local! {
    /// What happened first, once each.
    static LOG: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

fn note(what: String) {
    LOG.with_borrow_mut(|log| {
        if !log.contains(&what) {
            log.push(what);
        }
    });
}

// rows: S1
#[test]
fn the_first_request_sets_everything_up_in_order() {
    let sim = Sim::builder().cpus(2).grow(0, ZoneKind::Normal, 1 << 14, 1 << 13, 1 << 10).build();
    let before = |mm: &Mm<Sim>| {
        assert!(!mm.is_up() && mm.pages().managed() == 0);
        mm.configure(&Options { decay_ms: 77, ..Options::DEFAULT });
        note("options".to_owned());
    };
    let after = |mm: &Mm<Sim>| {
        assert!(mm.is_up() && mm.pages().managed() > 0 && mm.options().decay_ms == 77);
        note("up".to_owned());
    };
    let mm = Box::new(Mm::with_hooks(sim.clone(), Hooks { before: Some(before), after: Some(after) }));
    let hook = |call: Call| {
        if matches!(call, Call::Init | Call::Grow | Call::Replace | Call::Pop) {
            note(format!("{call:?}"));
        }
    };
    let block = sim.with_hook(&hook, || mm.alloc(100));
    assert!(!block.is_null());
    // The machine, then the layers on it; frames and their descriptors; a slab of them, and from there an object.
    // The first frames come before anybody is served: a handler that interrupts finds something.
    assert_eq!(LOG.take(), ["options", "Init", "Grow", "up", "Pop"]);
    // A second request finds all in place.
    let more = sim.with_hook(&hook, || mm.alloc(100));
    assert_eq!(LOG.take(), ["Pop"]);
    assert!(more != block);
    // SAFETY: both were just allocated.
    unsafe {
        mm.free(block);
        mm.free(more);
    }
    mm.verify().unwrap();
}

// rows: S1
#[test]
fn where_the_machine_gives_nothing_nothing_starts() {
    let sim = Sim::builder().cpus(1).grow(0, ZoneKind::Normal, 1 << 14, 1 << 12, 1 << 10).build();
    sim.fail_at(1);
    let mm = Box::new(Mm::new(sim.clone()));
    assert!(mm.alloc(100).is_null() && !mm.is_up());
    assert_eq!((sim.calls(Call::Init), sim.calls(Call::Grow)), (1, 0), "no memory is asked of what is not there");
}

/// A zone of a machine with `pages` frames from 1024 on.
fn zone(pages: u32) -> (SimBare, Box<PageAllocator<SimBare>>) {
    let sim = SimBare::builder().cpus(1).ram(0, ZoneKind::Normal, 1024, pages).build();
    let zones = Box::new(PageAllocator::new());
    zones.init(&sim, &Options::DEFAULT);
    (sim, zones)
}

// rows: S4
#[test]
fn boot_memory_becomes_the_largest_movable_blocks() {
    let (sim, zones) = zone(8 << 10);
    assert_eq!(zones.managed(), 0);
    assert!(zones.alloc_page(&sim, Gfp::KERNEL).is_none());
    for (node, kind, range) in sim.ram() {
        unsafe { zones.add(&sim, *node, *kind, *range) };
    }
    let info = zones.zone(&sim, 0, ZoneKind::Normal);
    assert_eq!((info.managed, info.present, info.free), (8 << 10, 8 << 10, 8 << 10));
    for (order, by_type) in info.blocks.iter().enumerate() {
        let movable = if order == 10 { 8 } else { 0 };
        assert_eq!(by_type[MigrateType::Movable.index()], movable, "order {order}");
        assert_eq!(by_type.iter().sum::<u32>(), movable, "of other types, order {order}");
    }
    // One descriptor is written for 4 MiB.
    for at in 0..8 << 10 {
        let kind = sim.page(Pfn(1024 + at)).kind();
        assert_eq!(kind == Kind::Buddy, at % 1024 == 0, "frame {at}: {kind:?}");
        assert!(at % 1024 == 0 || matches!(kind, Kind::Offline | Kind::Tail));
    }
    zones.verify(&sim).unwrap();
    // What is cut off at the ends becomes smaller blocks.
    let (sim, zones) = zone(8 << 10);
    unsafe {
        zones.add(&sim, 0, ZoneKind::Normal, slabwright::types::PfnRange::new(Pfn(1024 + 3), 1024 + 512 - 3 + 2))
    };
    let info = zones.zone(&sim, 0, ZoneKind::Normal);
    let blocks: Vec<u32> = info.blocks.iter().map(|by_type| by_type.iter().sum()).collect();
    assert_eq!(blocks, [1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 0], "3, 4, 8, 16, ... 512 and a pageblock, 2 pages");
    zones.verify(&sim).unwrap();
}

// rows: D10
#[test]
fn the_buddy_system_in_action() {
    let (sim, zones) = zone(1024);
    for (node, kind, range) in sim.ram() {
        unsafe { zones.add(&sim, *node, *kind, *range) };
    }
    let page = || zones.alloc_page(&sim, Gfp::NOWAIT).unwrap();
    // The block is of the requests' type from here on.
    let first = page();
    assert!(unsafe { zones.free_pages(&sim, first, Order::ZERO, true) });
    assert!(sim.traced(|| ()).is_empty());
    let split = sim.traced(|| assert_eq!(page(), Pfn(1024)));
    let golden = "take 1024 order 10
insert 1025 order 0 Unmovable
insert 1026 order 1 Unmovable
insert 1028 order 2 Unmovable
insert 1032 order 3 Unmovable
insert 1040 order 4 Unmovable
insert 1056 order 5 Unmovable
insert 1088 order 6 Unmovable
insert 1152 order 7 Unmovable
insert 1280 order 8 Unmovable
insert 1536 order 9 Unmovable";
    assert_eq!(split.join("\n"), golden, "one page, by halves from order 10 down");
    let second = sim.traced(|| assert_eq!(page(), Pfn(1025)));
    assert_eq!(second, ["take 1025 order 0"], "its buddy is there already");
    let free = |pfn: u32| sim.traced(|| assert!(unsafe { zones.free_pages(&sim, Pfn(pfn), Order::ZERO, true) }));
    assert_eq!(free(1024), ["insert 1024 order 0 Unmovable"], "its buddy is in use");
    let golden = "merge 1025 with 1024 order 0
take 1024 order 0
merge 1024 with 1026 order 1
take 1026 order 1
merge 1024 with 1028 order 2
take 1028 order 2
merge 1024 with 1032 order 3
take 1032 order 3
merge 1024 with 1040 order 4
take 1040 order 4
merge 1024 with 1056 order 5
take 1056 order 5
merge 1024 with 1088 order 6
take 1088 order 6
merge 1024 with 1152 order 7
take 1152 order 7
merge 1024 with 1280 order 8
take 1280 order 8
merge 1024 with 1536 order 9
take 1536 order 9
insert 1024 order 10 Unmovable";
    assert_eq!(free(1025).join("\n"), golden, "buddy after buddy, up to order 10");
    zones.verify(&sim).unwrap();
}
