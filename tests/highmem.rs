//! Addresses for frames that have none: permanent and temporary mappings, on machines whose TLBs remember what was not
//! flushed.
#![cfg(all(target_os = "linux", feature = "sim"))]
#![allow(clippy::undocumented_unsafe_blocks)] // the calls under test, on memory of the test's own

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Arc;

use slabwright::api::kmap_local;
use slabwright::error::{AllocError, Defect};
use slabwright::gfp::Gfp;
use slabwright::machine::i386::layout::{self, FIXADDR_START, FIXADDR_TOP, LAST_PKMAP, PKMAP_BASE};
use slabwright::machine::sim::{Call, SimBare};
use slabwright::machine::{Context, Frames, KM_TYPE_NR, PerCpu, ZoneKind};
use slabwright::mm::{Hooks, KmType, Mm};
use slabwright::types::{PAGE_SIZE, Pfn};

/// Permanent mappings at a time.
const SLOTS: usize = 12;

/// As a small i386: DMA, NORMAL, and frames without an address.
fn machine() -> Box<Mm<SimBare>> {
    let sim = SimBare::builder()
        .cpus(2)
        .kmap_slots(SLOTS)
        .tables(64, 128)
        .ram(0, ZoneKind::Dma, 256, 768)
        .ram(0, ZoneKind::Normal, 1 << 12, 4096)
        .ram(0, ZoneKind::HighMem, 1 << 14, 2048)
        .build();
    let after = |mm: &Mm<SimBare>| {
        for (node, zone, range) in mm.machine().ram() {
            unsafe { mm.pages().add(mm.machine(), *node, *zone, *range) };
        }
    };
    let mm = Box::new(Mm::with_hooks(sim, Hooks { before: None, after: Some(after) }));
    assert!(mm.start());
    mm
}

fn high(mm: &Mm<SimBare>) -> Pfn {
    let pfn = mm.alloc_pages(Gfp::KERNEL | Gfp::HIGHMEM, 0, None).unwrap();
    assert!(mm.machine().virt(pfn).is_null());
    pfn
}

/// The word at `address`.
fn word(address: *mut u8) -> u32 {
    unsafe { address.cast::<u32>().read() }
}

fn set(address: *mut u8, to: u32) {
    unsafe { address.cast::<u32>().write(to) };
}

// rows: A8 A9 I1 I2 I4
#[test]
fn a_page_has_an_address_while_it_is_mapped_and_its_descriptor_knows() {
    let mm = machine();
    let pfn = high(&mm);
    let descriptor = || mm.machine().page(pfn).word();
    assert!(mm.page_address(pfn).is_null());
    let at = mm.kmap(pfn).unwrap();
    assert_eq!((mm.page_address(pfn), descriptor()), (at, at.addr() as u64), "page.virtual");
    let simulated = mm.machine().simulated(at);
    assert!((PKMAP_BASE..PKMAP_BASE + LAST_PKMAP * PAGE_SIZE).contains(&simulated));
    assert_eq!(mm.kmap(pfn), Ok(at), "counted, not mapped again");
    set(at, 0x5a5a_0001);
    // A simulated program sees the same by its own address.
    assert_eq!(mm.machine().kernel_task().load(simulated), Ok(0x5a5a_0001u32.to_le_bytes()));
    assert_eq!((mm.kunmap(pfn), mm.page_address(pfn)), (Ok(()), at), "one user is left");
    // A temporary mapping shows the page elsewhere and leaves `page.virtual` alone.
    let view = mm.kmap_atomic(pfn).unwrap();
    assert_eq!((word(view), descriptor()), (0x5a5a_0001, at.addr() as u64));
    mm.kunmap_atomic(view).unwrap();
    mm.kunmap(pfn).unwrap();
    assert_eq!((mm.page_address(pfn).addr(), descriptor()), (0, 0));
    let view = mm.kmap_atomic(pfn).unwrap();
    assert_eq!((word(view), descriptor(), mm.page_address(pfn).addr()), (0x5a5a_0001, 0, 0), "kmap_atomic leaves it 0");
    mm.kunmap_atomic(view).unwrap();
    // An ordinary page has its address for good.
    let low = mm.alloc_pages(Gfp::KERNEL, 0, None).unwrap();
    assert_eq!(mm.kmap(low), Ok(mm.machine().virt(low)));
    mm.kunmap(low).unwrap();
    assert_eq!(mm.page_address(low), mm.machine().virt(low));
    mm.machine().set_aborts(false);
    assert_eq!(mm.kunmap(pfn), Err(Defect::DoubleFree));
    assert!(mm.machine().take_reports()[0].contains("kmap"));
}

// rows: I1 I2 T2
#[test]
fn slots_go_round_and_are_flushed_once_a_round() {
    let mm = machine();
    let sim = mm.machine();
    let pages: Vec<Pfn> = (0..SLOTS + 2).map(|_| high(&mm)).collect();
    // All slots in use.
    let mapped: BTreeSet<usize> = pages[..SLOTS].iter().map(|pfn| mm.kmap(*pfn).unwrap().addr()).collect();
    assert_eq!(mapped.len(), SLOTS);
    assert_eq!(mm.kmap(pages[SLOTS]), Err(AllocError::NoMemory));
    assert_eq!(mm.kmap_counts(), (SLOTS, 0));
    mm.kunmap(pages[7]).unwrap();
    assert_eq!(mm.kmap_counts(), (SLOTS - 1, 1), "its translations may be about");
    assert!(mm.kmap(pages[SLOTS]).is_ok());
    mm.kunmap(pages[SLOTS]).unwrap();
    (0..SLOTS).filter(|n| *n != 7).for_each(|n| mm.kunmap(pages[n]).unwrap());
    // Round and round: both CPUs look at each mapping, and neither sees the page of the round before.
    let (flushes, caches) = (sim.flushes().all, sim.calls(Call::FlushCache));
    for n in 0..4 * SLOTS {
        let pfn = pages[n * 5 % pages.len()];
        let at = mm.kmap(pfn).unwrap();
        set(at, n as u32);
        let simulated = sim.simulated(at);
        for cpu in [0, 1] {
            let seen = sim.run_on(cpu, || sim.kernel_task().load(simulated));
            assert_eq!(seen, Ok((n as u32).to_le_bytes()), "CPU {cpu} sees what the slot showed before");
        }
        mm.kunmap(pfn).unwrap();
    }
    let rounds = sim.flushes().all - flushes;
    assert!((3..=5).contains(&rounds), "one flush a round, not one a mapping: {rounds}");
    assert!(sim.calls(Call::FlushCache) >= caches + 3 * SLOTS as u64);
    mm.verify().unwrap();
}

// rows: I3
#[test]
fn permanent_mappings_are_refused_where_waiting_is() {
    let mm = machine();
    let pfn = high(&mm);
    mm.machine().set_aborts(false);
    mm.machine().preempt_disable();
    assert_eq!(mm.kmap(pfn), Err(AllocError::Invalid));
    assert!(mm.machine().take_reports()[0].contains("sleeping"));
    mm.machine().preempt_enable();
    // While a temporary mapping is held, too.
    let view = kmap_local(&mm, pfn).unwrap();
    assert_eq!(mm.kmap(pfn), Err(AllocError::Invalid));
    drop(view);
    assert!(mm.kmap(pfn).is_ok());
}

// rows: I5 I7
#[test]
fn temporary_mappings_are_a_stack_of_the_cpus() {
    let mm = machine();
    let sim = mm.machine();
    let pages: Vec<Pfn> = (0..3).map(|_| high(&mm)).collect();
    let views: Vec<_> = pages.iter().map(|pfn| mm.kmap_atomic(*pfn).unwrap()).collect();
    views.iter().zip(1..).for_each(|(at, n)| set(*at, n));
    assert_eq!((mm.kmap_depth(), sim.preempt_count()), (3, 3), "who holds one stays on its CPU");
    let at = sim.simulated(views[1]);
    assert!((FIXADDR_START..FIXADDR_TOP).contains(&at));
    assert_eq!(sim.kernel_task().load(at), Ok(2u32.to_le_bytes()));
    assert!(layout::kmap_atomic_slots(sim.cpu()).contains(&at), "among the fixed addresses of this CPU");
    // Out of order.
    sim.set_aborts(false);
    assert_eq!(mm.kunmap_atomic(views[0]), Err(Defect::Nesting));
    assert!(sim.take_reports()[0].contains("out of order"));
    assert_eq!((word(views[0]), word(views[2])), (1, 3), "nothing was done");
    for at in views.iter().rev() {
        assert_eq!(mm.kunmap_atomic(at.wrapping_add(100)), Ok(()));
    }
    assert_eq!(mm.kunmap_atomic(views[0]), Err(Defect::DoubleFree));
    assert!(sim.kernel_task().load::<1>(at).is_err(), "a fault afterwards");
    // As many as there are slots, and no more.
    let all: Vec<_> = (0..KM_TYPE_NR).map(|_| mm.kmap_atomic(pages[0]).unwrap()).collect();
    assert_eq!(mm.kmap_atomic(pages[0]), Err(AllocError::NoMemory));
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), KM_TYPE_NR);
    assert!(all.iter().all(|at| word(*at) == 1), "one page at many addresses");
    all.into_iter().rev().for_each(|at| mm.kunmap_atomic(at).unwrap());
    assert_eq!((mm.kmap_depth(), sim.preempt_count()), (0, 0));
    // Low memory needs no slot.
    let low = mm.alloc_pages(Gfp::KERNEL, 0, None).unwrap();
    let view = mm.kmap_atomic(low).unwrap();
    assert_eq!((view, mm.kmap_depth(), sim.preempt_count()), (sim.virt(low), 0, 1));
    mm.kunmap_atomic(view).unwrap();
}

// rows: I5 I8
#[test]
fn each_cpu_has_its_own_and_a_handler_takes_the_next() {
    let mm = Arc::new(machine());
    let pages: Vec<Pfn> = (0..3).map(|_| high(&mm)).collect();
    let mine = kmap_local(&mm, pages[0]).unwrap();
    set(mine.as_ptr().as_ptr(), 10);
    std::thread::scope(|s| {
        let (mm, pages) = (&mm, &pages);
        s.spawn(move || {
            mm.machine().set_cpu(1);
            let theirs = kmap_local(mm, pages[1]).unwrap();
            set(theirs.as_ptr().as_ptr(), 11);
            assert_eq!(mm.kmap_depth(), 1);
        });
    });
    assert_eq!((word(mine.as_ptr().as_ptr()), mm.kmap_depth()), (10, 1));
    drop(mine);
    // A handler that maps in the middle of each mapping of the code it interrupts.
    let runs = Cell::new(0);
    let hook = |_: Call| {
        let view = kmap_local(&mm, pages[2]).unwrap();
        runs.set(runs.get() + 1);
        set(view.as_ptr().as_ptr(), runs.get());
    };
    mm.machine().with_hook(&hook, || {
        for n in 0..20 {
            let view = kmap_local(&mm, pages[0]).unwrap();
            set(view.as_ptr().as_ptr(), 1000 + n);
            assert!(mm.machine().page(pages[1]).refs() > 0, "a call of the machine, so that the handler runs");
            assert_eq!(word(view.as_ptr().as_ptr()), 1000 + n, "the handler took this slot");
        }
    });
    assert!(runs.get() >= 40, "{} handlers ran", runs.get());
    let view = kmap_local(&mm, pages[2]).unwrap();
    assert_eq!(word(view.as_ptr().as_ptr()), runs.get());
}

// rows: I6
#[test]
fn types_are_used_once_at_a_time_and_given_back_in_order() {
    let mm = machine();
    let sim = mm.machine();
    sim.set_aborts(false);
    let (a, b) = (high(&mm), high(&mm));
    let first = mm.kmap_atomic_type(a, KmType::User0).unwrap();
    assert_eq!(mm.kmap_atomic_type(b, KmType::User0), Err(AllocError::Invalid), "its slot is in use");
    assert!(sim.take_reports()[0].contains("out of order"));
    let second = mm.kmap_atomic_type(b, KmType::User1).unwrap();
    assert_eq!(mm.kunmap_atomic_type(first, KmType::User0), Err(Defect::Nesting), "not the last one");
    assert_eq!(mm.kunmap_atomic_type(second, KmType::User0), Err(Defect::Nesting), "of another type");
    assert_eq!(sim.take_reports().len(), 2);
    assert_eq!(mm.kunmap_atomic_type(second, KmType::User1), Ok(()));
    // Another CPU has each type for itself.
    let second = mm.kmap_atomic_type(b, KmType::Irq0).unwrap();
    assert_eq!((mm.kunmap_atomic_type(second, KmType::Irq0), mm.kunmap_atomic(first)), (Ok(()), Ok(())));
    assert_eq!((mm.kmap_depth(), sim.preempt_count()), (0, 0));
    let again = mm.kmap_atomic_type(b, KmType::User0).unwrap();
    assert_eq!(mm.kunmap_atomic_type(again, KmType::User0), Ok(()));
    // Where a page has an address the type is accepted.
    let low = mm.alloc_pages(Gfp::KERNEL, 0, None).unwrap();
    assert_eq!(mm.kmap_atomic_type(low, KmType::Pte0), Ok(sim.virt(low)));
    assert_eq!(mm.kunmap_atomic_type(sim.virt(low), KmType::Pte0), Ok(()));
}
