use core::cell::Cell;
use core::sync::atomic::Ordering::Relaxed;
use std::boxed::Box;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::string::ToString;
use std::{thread, vec};

use super::*;
use crate::machine::{PerCpu, SHEAF_BYTES, SHEAF_SLOTS, Word, no_sheaf};
use crate::page::Kind;
use crate::sync::Lock;

const SLOT: usize = PAGE_SIZE;

fn small<F: Flavour>() -> Simulated<F> {
    Simulated::builder()
        .ram(0, ZoneKind::Dma, 0x101, 0x2f)
        .ram(0, ZoneKind::Normal, 0x140, 0x333)
        .ram(0, ZoneKind::HighMem, 0x900, 0x11)
        .grow(0, ZoneKind::Normal, 0x1001, 0x1200, 0x400)
        .window(8 << 20)
        .build()
}

fn panics<R>(f: impl FnOnce() -> R) -> bool {
    catch_unwind(AssertUnwindSafe(|| {
        f();
    }))
    .is_err()
}

/// Fills the frame through `address`.
fn write(address: *mut u8, value: u8) {
    // SAFETY: the tests pass addresses of whole mapped pages that they alone use.
    unsafe { address.write_bytes(value, PAGE_SIZE) };
}

/// The byte all of the page holds.
fn read(address: *const u8) -> u8 {
    // SAFETY: as in `write`.
    let bytes = unsafe { core::slice::from_raw_parts(address, PAGE_SIZE) };
    assert!(bytes.iter().all(|b| *b == bytes[0]));
    bytes[0]
}

fn at(address: usize) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut(address)
}

// rows: A1 A6 A7 A8
#[test]
fn frames_and_addresses_are_inverse() {
    let sim: Sim = small();
    for (_, zone, range) in sim.ram() {
        for pfn in range.iter() {
            assert_eq!(sim.page(pfn).kind(), Kind::Offline);
            assert_eq!(sim.class(pfn).load(Relaxed), 0);
            let virt = sim.virt(pfn);
            if *zone == ZoneKind::HighMem {
                assert!(virt.is_null());
                continue;
            }
            assert_eq!(virt.addr() >> PAGE_SHIFT & 0x3ff, pfn.index() & 0x3ff, "blocks are naturally aligned");
            assert_ne!(virt.addr() >> PAGE_SHIFT, pfn.index(), "physical and virtual addresses differ");
            assert_eq!(sim.pfn(virt), Some(pfn));
            assert_eq!(sim.pfn(virt.wrapping_add(PAGE_SIZE - 1)), Some(pfn));
            sim.class(pfn).store(7, Relaxed);
            assert_eq!(sim.class_at(virt.wrapping_add(1)), 7);
            assert_eq!(read(virt), 0);
        }
    }
    assert_eq!(sim.pfn(&raw const sim as *const u8), None);
    assert_eq!(sim.class_at(core::ptr::null()), 0);
    let hole = sim.virt(Pfn(0x12f)).wrapping_add(PAGE_SIZE);
    assert_eq!((sim.pfn(hole), sim.class_at(hole)), (None, 0));
}

#[test]
fn offline_frames_are_out_of_reach() {
    let sim: Sim = small();
    assert_eq!(sim.page(Pfn(0x130)).kind(), Kind::Offline, "a hole beside memory has a descriptor");
    assert!(panics(|| sim.class(Pfn(0x130))));
    assert!(panics(|| sim.virt(Pfn(0x130))));
    for pfn in [0xc00, 0x1400, 0x10_0000] {
        assert!(panics(|| sim.page(Pfn(pfn))));
    }
    assert!(panics(|| sim.discard(PfnRange::new(Pfn(0x100), 2))));
}

#[test]
fn grows_by_chunks_until_none_are_left() {
    let sim: Sim = small();
    assert_eq!(sim.grow(0, ZoneKind::Dma, 1), None);
    // 0x1001 to 0x2201: from the next largest block, the last chunk short and whole pageblocks.
    assert_eq!(sim.grow(0, ZoneKind::Normal, 1), Some(PfnRange::new(Pfn(0x1400), 0x400)));
    assert_eq!(sim.grow(0, ZoneKind::Normal, 0x401), Some(PfnRange::new(Pfn(0x1800), 0x600)));
    assert_eq!(sim.grow(0, ZoneKind::Normal, 0x201), None);
    assert_eq!(sim.grow(0, ZoneKind::Normal, 0x200), Some(PfnRange::new(Pfn(0x2000), 0x200)));
    assert_eq!(sim.grow(0, ZoneKind::Normal, 1), None);
    assert_eq!(read(sim.virt(Pfn(0x1dff))), 0);
    assert_eq!(sim.calls(Call::Grow), 6);
}

#[test]
fn discard_zeroes_and_unbacks() {
    let sim: Sim = small();
    let range = PfnRange::new(Pfn(0x150), 3);
    for pfn in range.iter() {
        write(sim.virt(pfn), 9);
    }
    assert_eq!((sim.backed(), sim.backed_in(range)), (3, 3));
    assert!(sim.discard(PfnRange::new(Pfn(0x151), 2)));
    assert_eq!((sim.backed(), sim.backed_in(range)), (1, 1));
    assert_eq!((read(sim.virt(Pfn(0x150))), read(sim.virt(Pfn(0x151)))), (9, 0));
    sim.populate(range);
    assert_eq!(sim.backed_in(range), 3);
    assert_eq!(read(sim.virt(Pfn(0x150))), 9);

    let bare: SimBare = small();
    write(bare.virt(Pfn(0x150)), 9);
    assert!(!bare.discard(range));
    assert_eq!(read(bare.virt(Pfn(0x150))), 9);
}

#[test]
fn a_frame_shows_at_several_addresses() {
    let sim: Sim = small();
    let window = sim.window().start;
    let (low, high) = (Pfn(0x155), Pfn(0x905));
    assert!(sim.map_frame(window, low) && sim.map_frame(window + 5 * SLOT, low) && sim.map_frame(window + SLOT, high));
    write(at(window), 3);
    assert_eq!((read(sim.virt(low)), read(at(window + 5 * SLOT))), (3, 3));
    write(at(window + SLOT), 4);
    assert_eq!(sim.mapped(window + SLOT), Some(high));
    assert!(panics(|| sim.map_frame(window, high)), "the slot is taken");

    assert_eq!(sim.move_mapping(window, window + 8 * SLOT, 2 * SLOT), Ok(()));
    assert_eq!((read(at(window + 8 * SLOT)), read(at(window + 9 * SLOT))), (3, 4));
    assert_eq!((sim.mapped(window), sim.slots_used()), (None, 3));
    assert!(sim.clean(window + 8 * SLOT, SLOT));
    assert_eq!((read(sim.virt(low)), read(at(window + 9 * SLOT))), (0, 4));
    sim.unmap(window + 5 * SLOT, 5 * SLOT);
    assert_eq!(sim.slots_used(), 0);
    // The frame keeps its contents: mapped again it still reads 4.
    assert!(sim.map_frame(window, high));
    assert_eq!(read(at(window)), 4);
    assert!(panics(|| sim.map_fresh(window + SLOT, SLOT)));
}

#[test]
fn hosted_frames_donate_their_population() {
    let sim = SimHosted::builder().ram(0, ZoneKind::Normal, 512, 1024).window(16 << 20).build();
    let slot = 1 << SimHosted::SLOT_SHIFT;
    let window = sim.window().start;
    assert!(panics(|| sim.map_frame(window, Pfn(512))), "not mapped fresh");
    assert!(sim.map_fresh(window, 4 * slot));
    write(sim.virt(Pfn(512)), 1);
    write(sim.virt(Pfn(515)), 2);
    assert!(sim.map_frame(window + slot, Pfn(512)));
    assert_eq!(
        (sim.backed(), sim.backed_in(PfnRange::new(Pfn(512), 512)), sim.backed_at(window + slot, slot)),
        (2, 0, 2)
    );
    assert_eq!((read(at(window + slot)), read(at(window + slot + 3 * SLOT))), (1, 2));
    assert_eq!(read(sim.virt(Pfn(515))), 0);
    assert!(panics(|| sim.map_frame(window + slot, Pfn(1024))), "the slot is populated");

    sim.fail_at(1);
    let moved = sim.move_mapping(window + slot, window + 3 * slot, slot);
    assert_eq!(moved, Err(0), "of one slot only a prefix of none can move");
    assert_eq!(sim.move_mapping(window + slot, window + 3 * slot, slot), Ok(()));
    assert_eq!((sim.backed_at(window + slot, slot), sim.backed_at(window + 3 * slot, slot)), (0, 2));
    assert_eq!(read(at(window + 3 * slot)), 1);
    sim.unmap(window, 4 * slot);
    // Two frames were backed again by the reads above.
    assert_eq!(sim.backed(), 1);
    assert!(sim.map_fresh(window + 3 * slot, slot));
    assert_eq!(read(at(window + 3 * slot)), 0);
}

#[test]
fn a_failed_move_loses_nothing() {
    for seed in 1..20 {
        let sim = Sim::builder().ram(0, ZoneKind::Normal, 0, 64).seed(seed).build();
        let window = sim.window().start;
        for i in 0..8 {
            assert!(sim.map_frame(window + i * SLOT, Pfn(i as u32)));
        }
        sim.fail_at(1);
        let moved = sim.move_mapping(window, window + 8 * SLOT, 8 * SLOT).unwrap_err() / SLOT;
        assert!(moved < 8);
        for i in 0..8 {
            let expected = if i < moved { window + (8 + i) * SLOT } else { window + i * SLOT };
            assert_eq!(sim.mapped(expected), Some(Pfn(i as u32)));
        }
        assert_eq!((sim.slots_used(), sim.failed_calls()), (8, 1));
    }
}

#[test]
fn fails_the_call_asked_for() {
    let sim: Sim = small();
    let range = PfnRange::new(Pfn(0x150), 1);
    sim.fail_at(3);
    assert_eq!([1, 2, 3, 4].map(|_| sim.discard(range)), [true, true, false, true]);
    sim.fail_from(2);
    assert_eq!([1, 2, 3].map(|_| sim.discard(range)), [true, false, false]);
    sim.fail_at(0);
    assert!(sim.discard(range));
    assert_eq!((sim.fallible_calls(), sim.failed_calls(), sim.calls(Call::Discard)), (8, 3, 8));
    sim.fail_at(1);
    assert_eq!(sim.read(Word::Main(1)), None, "no memory for the row");
    assert_eq!(sim.read(Word::Main(1)), Some(no_sheaf()));
}

#[test]
fn forbidden_calls_panic() {
    let sim: Sim = small();
    assert!(panics(|| sim.forbid_calls(|| sim.grow(0, ZoneKind::Normal, 1))));
    assert!(sim.grow(0, ZoneKind::Normal, 1).is_some(), "allowed again after the panic");
    sim.forbid_calls(|| {
        assert_eq!(sim.read(Word::Main(1)), Some(no_sheaf()));
        thread::scope(|s| s.spawn(|| assert!(sim.discard(PfnRange::new(Pfn(0x150), 1)))).join().unwrap());
    });
}

/// An empty sheaf, never given back: the word of its sentinel.
fn sheaf(capacity: usize) -> usize {
    #[repr(align(4096))]
    struct Sheaf([usize; SHEAF_SLOTS]);
    let sheaf = Box::leak(Box::new(Sheaf([0; SHEAF_SLOTS])));
    (&raw mut sheaf.0).expose_provenance() + (SHEAF_SLOTS - 1 - capacity) * size_of::<usize>()
}

// rows: J1
#[test]
fn rows_belong_to_cpus() {
    let sim = Sim::builder().cpus(3).build();
    let object = at(0x1230);
    // SAFETY: the words are valid sheaves; the object is never touched.
    unsafe {
        assert!(sim.pop(1).is_null() && !sim.push(1, object), "no row");
        assert!(!sim.replace(Word::Main(1), no_sheaf(), no_sheaf()), "no row");
        sim.set_cpu(2);
        assert_eq!(sim.read(Word::Main(1)), Some(no_sheaf()));
        assert!(sim.pop(1).is_null() && !sim.push(1, object), "no sheaf is both empty and full");
        let empty = sheaf(2);
        assert!(!sim.replace(Word::Main(1), empty, empty));
        assert!(sim.replace(Word::Main(1), no_sheaf(), empty));
        assert!(sim.push(1, object) && sim.push(1, object) && !sim.push(1, object));
        sim.run_on(1, || assert!(sim.pop(1).is_null()));
        assert_eq!(sim.pop(1), object);
        assert_eq!(sim.read(Word::Main(1)), Some(empty + 8));

        assert!(sim.drain_row(0, &mut |_| panic!("CPU 0 has no row")));
        let seen = Cell::new(0);
        assert!(sim.drain_row(2, &mut |row| {
            assert!(sim.pop(1).is_null() && sim.read(Word::Main(1)).is_none());
            assert!(!sim.drain_row(2, &mut |_| panic!("it is away")));
            seen.set(row[1]);
            row[1] = empty;
        }));
        assert_eq!(seen.get(), empty + 8);
        assert!(sim.pop(1).is_null());
        assert_eq!(sim.read(Word::Main(1)), Some(empty));
    }
    assert_eq!(empty_mod(no_sheaf()), SHEAF_BYTES - size_of::<usize>());
}

fn empty_mod(word: usize) -> usize {
    word % SHEAF_BYTES
}

#[test]
fn a_hostile_machine_migrates_and_aborts() {
    let sim = Sim::builder().cpus(4).hostile(Hostile { migrate: 2, abort: 3, fail: 0 }).build();
    let mut seen = vec![0u32; 4];
    let mut aborted = 0;
    for _ in 0..400 {
        aborted += u32::from(sim.read(Word::Spare(3)).is_none());
        seen[sim.cpu()] += 1;
    }
    assert!(seen.iter().all(|n| *n > 0) && aborted > 0 && aborted < 400, "{seen:?} {aborted}");
    sim.set_hostile(Hostile::default());
    sim.run_on(1, || assert!((0..50).all(|_| sim.read(Word::Main(1)).is_some() && sim.cpu() == 1)));
}

#[test]
fn hooks_run_where_handlers_could() {
    let sim: Sim = small();
    let calls = Cell::new(0);
    let hook = |call: Call| {
        calls.set(calls.get() + 1);
        assert_eq!(call, Call::Page);
        // A call from the hook does not come back to it.
        sim.page(Pfn(0x150));
    };
    sim.with_hook(&hook, || {
        sim.page(Pfn(0x150));
        sim.page(Pfn(0x151));
    });
    sim.page(Pfn(0x150));
    assert_eq!(calls.get(), 2);
}

#[test]
fn context_is_the_threads_and_the_machines() {
    let (a, b) = (Sim::new(), Sim::new());
    assert_eq!((a.enter(), a.enter(), b.enter()), (0, 1, 0));
    thread::scope(|s| s.spawn(|| assert_eq!(a.enter(), 0)).join().unwrap());
    a.leave();
    assert_eq!(a.depth(), 1);
    a.leave();
    assert!(panics(|| a.leave()));
}

#[test]
fn reports_are_kept_and_abort_panics() {
    let sim = Sim::new();
    sim.line("first");
    sim.line("second");
    assert_eq!(sim.reports(), ["first", "second"]);
    let panic = catch_unwind(AssertUnwindSafe(|| sim.abort())).expect_err("abort came back");
    assert_eq!(panic.downcast_ref::<String>().map(ToString::to_string), Some("abort: second".into()));
    assert!(sim.aborted());
}

#[test]
fn locks_sleep_on_it() {
    let sim = Sim::new();
    let lock = Lock::new(0u64);
    thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| (0..2000).for_each(|_| *lock.lock(&sim) += 1));
        }
    });
    assert_eq!(*lock.lock(&sim), 8000);
}
