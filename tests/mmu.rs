//! Page faults, the TLB and the fixmap on simulated machines with page tables: programs whose loads and stores are
//! translated.
#![cfg(all(target_os = "linux", feature = "sim"))]
#![allow(clippy::undocumented_unsafe_blocks)] // the calls under test, on memory of the test's own

use std::sync::{Arc, Mutex};

use slabwright::machine::i386::layout::{FIXADDR_TOP, FixedAddress, PAGE_OFFSET};
use slabwright::machine::sim::{Bare, Call, Interrupted, Mode, SimBare, Space, Task};
use slabwright::machine::{Context, Frames, Mapping, ZoneKind};
use slabwright::mm::{Hooks, Mm};
use slabwright::paging::{Access, Area, FaultCode, Flags, Signal};
use slabwright::types::{PAGE_SIZE, Pfn, PhysAddr};

const PROTECTION: u32 = FaultCode::PROTECTION;
const WRITE: u32 = FaultCode::WRITE;
const USER: u32 = FaultCode::USER;

/// Two CPUs, 16 MiB of low memory, some without an address, and frames for tables.
fn machine() -> SimBare {
    SimBare::builder()
        .cpus(2)
        .tables(64, 128)
        .ram(0, ZoneKind::Dma, 256, 768)
        .ram(0, ZoneKind::Normal, 4096, 4096)
        .ram(0, ZoneKind::HighMem, 1 << 14, 1024)
        .build()
}

/// Frames of the tests that use no allocator.
const FRAME: Pfn = Pfn(5000);

const CODE: usize = 0x0804_8000;
const DATA: usize = 0x4000_0000;
const CONSTANT: usize = 0x4000_1000;
const NOTHING: usize = 0x4000_2000;

fn area(start: usize, pages: usize, access: Access) -> Area {
    Area { start, end: start + pages * PAGE_SIZE, access }
}

/// A space with an area for each of the above, their pages present.
fn space(sim: &SimBare) -> Arc<Space<Bare>> {
    let space = sim.space().unwrap();
    for (nth, (at, access, flags)) in [
        (CODE, Access::READ.with(Access::EXEC), Flags::NONE),
        (DATA, Access::READ.with(Access::WRITE), Flags::WRITE),
        (CONSTANT, Access::READ, Flags::NONE),
    ]
    .into_iter()
    .enumerate()
    {
        assert!(space.with_areas(|areas| areas.insert(area(at, 1, access))));
        space.map(at, FRAME.add(nth as u32), flags).unwrap();
    }
    Arc::new(space)
}

fn code(sim: &SimBare) -> (usize, u32) {
    (sim.faults().address, sim.faults().code.0)
}

// rows: O1 O2
#[test]
fn the_codes_of_all_accesses() {
    let sim = machine();
    let space = space(&sim);
    let low = PAGE_OFFSET + (FRAME.index() << 12);
    const SCRATCH: usize = FixedAddress::Scratch as usize;
    let constant = sim.set_fixmap::<SCRATCH>(PhysAddr::of(FRAME), Flags::NONE);
    let cases = [
        (Mode::User, NOTHING, false, USER),
        (Mode::User, NOTHING, true, USER | WRITE),
        (Mode::User, low, false, USER | PROTECTION),
        (Mode::User, low, true, USER | PROTECTION | WRITE),
        (Mode::User, CONSTANT, true, USER | PROTECTION | WRITE),
        (Mode::Kernel, NOTHING, false, 0),
        (Mode::Kernel, NOTHING, true, WRITE),
        (Mode::Kernel, constant, true, PROTECTION | WRITE),
        (Mode::Kernel, CONSTANT + 4092, true, PROTECTION | WRITE),
    ];
    let mut seen = [false; 8];
    for (mode, address, write, expected) in cases {
        let mut task = Task::new(&space, mode);
        let failed = if write { task.store(address, &[1]) } else { task.load::<1>(address).map(|_| ()) };
        assert!(failed.is_err(), "{mode:?} {address:#x}");
        assert_eq!(code(&sim), (address, expected), "{mode:?} {address:#x} write {write}");
        seen[expected as usize] = true;
    }
    // Code 1 cannot be provoked: the kernel may read whatever is present.
    assert_eq!(seen, [true, false, true, true, true, true, true, true]);
    // What is allowed faults not.
    let before = sim.faults().count;
    let mut user = Task::new(&space, Mode::User);
    user.store(DATA + 8, &42u32.to_le_bytes()).unwrap();
    assert_eq!(user.load(DATA + 8), Ok(42u32.to_le_bytes()));
    assert!(user.load::<4>(CONSTANT).is_ok() && user.load::<4>(CODE).is_ok());
    let mut kernel = Task::new(&space, Mode::Kernel);
    assert_eq!(kernel.load(low + PAGE_SIZE + 8), Ok(42u32.to_le_bytes()), "the same frame, by its own address");
    assert_eq!(kernel.load(DATA + 8), Ok(42u32.to_le_bytes()), "the kernel reaches what is the user's");
    assert_eq!(sim.faults().count, before);
    assert!(space.lookup(DATA).unwrap().1.has(Flags::ACCESSED.with(Flags::DIRTY)));
    assert!(!space.lookup(CONSTANT).unwrap().1.has(Flags::DIRTY));
}

// rows: O3 O4 O5
#[test]
fn a_mistake_of_a_program_is_its_end() {
    let sim = machine();
    let space = space(&sim);
    // An area that may be written over a page that may not, and no pager.
    assert!(space.with_areas(|areas| areas.insert(area(0x5000_0000, 2, Access::READ))));
    for (address, write, signal) in [
        (NOTHING, false, Signal::NoArea),
        (0x10, true, Signal::NoArea),
        (CONSTANT, true, Signal::NotAllowed),
        (0x5000_0000, true, Signal::NotAllowed),
        (0x5000_0000, false, Signal::Bus),
        (PAGE_OFFSET + (FRAME.index() << 12), false, Signal::NoArea),
    ] {
        let mut task = Task::new(&space, Mode::User);
        task.ip = CODE as u32;
        let end = if write { task.store(address, &[1]) } else { task.load::<1>(address).map(|_| ()) };
        assert_eq!(end, Err(Interrupted::Signal(signal)), "{address:#x}");
        assert_eq!(task.end(), Some(Interrupted::Signal(signal)));
        // It is no more: what would be allowed is not, either.
        let before = sim.faults().count;
        assert_eq!(task.load::<1>(DATA), Err(Interrupted::Signal(signal)));
        assert_eq!(sim.faults().count, before);
    }
    assert!(sim.reports().is_empty(), "a program's mistake is no oops");
}

// rows: O5
#[test]
fn a_fault_in_an_area_brings_its_page() {
    let sim = machine();
    let space = Arc::new(sim.space().unwrap());
    let stack = PAGE_OFFSET - 4 * PAGE_SIZE;
    let grows = Access::READ.with(Access::WRITE).with(Access::GROWS_DOWN);
    space.with_areas(|areas| {
        assert!(areas.insert(area(DATA, 4, Access::READ.with(Access::WRITE))));
        assert!(areas.insert(area(stack, 4, grows)));
    });
    let asked = Arc::new(Mutex::new(Vec::new()));
    let next = asked.clone();
    space.set_pager(move |area, fault| {
        let mut asked = next.lock().unwrap();
        asked.push((area.start, fault.address, fault.code.0));
        Ok((FRAME.add(asked.len() as u32), Flags::WRITE))
    });
    let mut task = Task::new(&space, Mode::User);
    // A store across the border of two pages: two faults, and it is done as a whole.
    task.store(DATA + PAGE_SIZE - 2, &[1, 2, 3, 4]).unwrap();
    assert_eq!(task.load(DATA + PAGE_SIZE - 2), Ok([1, 2, 3, 4]));
    assert_eq!(sim.faults().count, 2, "a page is brought once");
    // The kernel may touch what is the user's, and the page comes.
    let mut kernel = Task::new(&space, Mode::Kernel);
    assert!(kernel.load::<1>(DATA + 3 * PAGE_SIZE).is_ok());
    // A stack grows, and ends where the next area is near.
    task.store(stack - 2 * PAGE_SIZE + 16, &[9]).unwrap();
    assert_eq!(space.with_areas(|areas| areas.find(stack).unwrap().start), stack - 2 * PAGE_SIZE);
    let expected = [
        (DATA, DATA + PAGE_SIZE - 2, USER | WRITE),
        (DATA, DATA + PAGE_SIZE, USER | WRITE),
        (DATA, DATA + 3 * PAGE_SIZE, 0),
        (stack - 2 * PAGE_SIZE, stack - 2 * PAGE_SIZE + 16, USER | WRITE),
    ];
    assert_eq!(*asked.lock().unwrap(), expected);
    // Not where the kernel may not wait.
    sim.preempt_disable();
    assert_eq!(kernel.load::<1>(DATA + 2 * PAGE_SIZE), Err(Interrupted::Oops));
    sim.preempt_enable();
}

// rows: O12
#[test]
fn a_space_made_before_sees_a_vmalloc_area_made_later() {
    let sim = machine();
    let heap = heap(&sim);
    let old = Arc::new(sim.space().unwrap());
    let block = heap.alloc(3 << 20);
    unsafe { block.cast::<u32>().add(7).write(0xabcd) };
    let at = sim.simulated(block) + 28;
    assert!(sim.simulated_window().contains(&at));
    let mut task = Task::new(&old, Mode::Kernel);
    assert_eq!(task.load(at), Ok(0xabcdu32.to_le_bytes()));
    assert_eq!((sim.synced(), code(&sim)), (1, (at, 0)), "the entry was copied on the fault");
    assert!(task.load::<4>(at + PAGE_SIZE).is_ok());
    assert_eq!(sim.synced(), 1, "once for each entry and space");
    let new = Arc::new(sim.space().unwrap());
    assert!(Task::new(&new, Mode::Kernel).load::<4>(at).is_ok());
    assert_eq!(sim.synced(), 1, "a space made later has it");
    // Not on behalf of a user, and not where the kernel has nothing, either.
    assert!(matches!(Task::new(&old, Mode::User).load::<4>(at), Err(Interrupted::Signal(_))));
    unsafe { heap.free(block) };
    heap.trim();
    assert_eq!(Task::new(&old, Mode::Kernel).load::<4>(at), Err(Interrupted::Oops));
    assert_eq!(sim.synced(), 1);
}

fn heap(sim: &SimBare) -> Box<Mm<SimBare>> {
    let after = |mm: &Mm<SimBare>| {
        for (node, zone, range) in mm.machine().ram() {
            unsafe { mm.pages().add(mm.machine(), *node, *zone, *range) };
        }
    };
    let mm = Box::new(Mm::with_hooks(sim.clone(), Hooks { before: None, after: Some(after) }));
    assert!(mm.start());
    mm
}

// rows: O13 O14
#[test]
fn a_fault_that_was_foreseen_goes_on_at_its_fixup() {
    let sim = machine();
    let space = space(&sim);
    // Not in order: the table sorts them.
    for (at, to) in [(0xc010_2000, 0xc01f_0020), (0xc010_0000, 0xc01f_0000), (0xc010_1000, 0xc01f_0010)] {
        sim.add_fixup(at, to);
    }
    let mut kernel = Task::new(&space, Mode::Kernel);
    for (at, to) in [(0xc010_0000, 0xc01f_0000), (0xc010_1000, 0xc01f_0010), (0xc010_2000, 0xc01f_0020)] {
        kernel.ip = at;
        assert_eq!(kernel.load::<4>(NOTHING), Err(Interrupted::Fixup(to)));
        assert_eq!((kernel.ip, kernel.end()), (to, None), "it goes on there");
    }
    // copy_from_user: what of a bad pointer is left.
    kernel.ip = 0xc010_1000;
    let target = PAGE_OFFSET + ((FRAME.index() + 9) << 12);
    assert_eq!(kernel.copy(target, CONSTANT + PAGE_SIZE - 100, 160), Ok(60));
    kernel.ip = 0xc010_1000;
    assert_eq!(kernel.copy(CONSTANT, target, 64), Ok(64), "of a page that may not be written nothing");
    kernel.ip = 0xc010_1000;
    assert_eq!(kernel.copy(DATA, target, 64), Ok(0));
    assert!(sim.reports().is_empty());
    // A user's fault at the same instruction is a user's fault.
    let mut user = Task::new(&space, Mode::User);
    user.ip = 0xc010_1000;
    assert_eq!(user.load::<4>(NOTHING), Err(Interrupted::Signal(Signal::NoArea)));
}

// rows: O14 O15
#[test]
fn a_fault_that_nobody_foresaw_is_an_oops() {
    let sim = machine();
    let space = space(&sim);
    sim.add_fixup(0xc010_1000, 0xc01f_0000);
    let mut kernel = Task::new(&space, Mode::Kernel);
    kernel.ip = 0xc010_1004;
    assert_eq!(kernel.load::<4>(0x14), Err(Interrupted::Oops));
    assert_eq!(kernel.end(), Some(Interrupted::Oops));
    assert_eq!(
        sim.take_reports(),
        ["Oops: null pointer at 0x00000014 (0x0: no page, read, kernel), CPU 0, ip c0101004"]
    );
    // The task is no more; others go on.
    assert_eq!(kernel.load::<4>(DATA), Err(Interrupted::Oops));
    assert!(Task::new(&space, Mode::Kernel).load::<4>(DATA).is_ok());
    sim.set_cpu(1);
    let mut thread = sim.kernel_task();
    thread.ip = 0xc010_2000;
    assert_eq!(thread.store(FIXADDR_TOP + 8, &[1]), Err(Interrupted::Oops));
    assert_eq!(
        sim.take_reports(),
        ["Oops: page fault at 0xfffff008 (0x2: no page, write, kernel), CPU 1, ip c0102000"]
    );
    assert_eq!(sim.kernel_task().load::<1>(DATA), Err(Interrupted::Oops), "it has no user addresses");
}

// rows: I9 I11 I13
#[test]
fn a_fixed_address_faults_once_it_is_cleared() {
    const SCRATCH: usize = FixedAddress::Scratch as usize;
    let sim = machine();
    let mut task = sim.kernel_task();
    unsafe { sim.virt(FRAME).cast::<u32>().write(0x1234_5678) };
    let at = sim.set_fixmap::<SCRATCH>(PhysAddr::of(FRAME), Flags::KERNEL);
    assert_eq!(at, 0xffff_f000 - SCRATCH * PAGE_SIZE);
    assert_eq!(task.load(at), Ok(0x1234_5678u32.to_le_bytes()));
    // Another CPU has the translation, too; and a space made before.
    sim.run_on(1, || assert_eq!(sim.kernel_task().load(at), Ok(0x1234_5678u32.to_le_bytes())));
    // The page at the top stays free.
    assert_eq!(sim.kernel_task().load::<1>(FIXADDR_TOP), Err(Interrupted::Oops));
    sim.clear_fixmap::<SCRATCH>();
    assert_eq!(task.load::<4>(at), Err(Interrupted::Oops));
    assert_eq!(code(&sim), (at, 0));
    sim.run_on(1, || assert_eq!(sim.kernel_task().load::<4>(at), Err(Interrupted::Oops)));
    // Read only.
    let at = sim.set_fixmap::<SCRATCH>(PhysAddr::of(FRAME), Flags::NONE);
    assert_eq!(sim.kernel_task().store(at, &[0]), Err(Interrupted::Oops));
    assert_eq!(code(&sim), (at, PROTECTION | WRITE));
}

// rows: T2
#[test]
fn what_is_not_flushed_stays_visible() {
    let sim = machine();
    let space = space(&sim);
    unsafe {
        sim.virt(FRAME.add(1)).write(11);
        sim.virt(FRAME.add(7)).write(77);
    }
    let mut tasks = [Task::new(&space, Mode::User), Task::new(&space, Mode::User)];
    let [here, there] = &mut tasks;
    assert_eq!((here.load(DATA), sim.run_on(1, || there.load(DATA))), (Ok([11]), Ok([11])));
    // Another frame without a flush: both CPUs go on with the old one.
    assert_eq!(space.unmap_lazily(DATA).map(|(frame, _)| frame), Some(FRAME.add(1)));
    space.map(DATA, FRAME.add(7), Flags::WRITE).unwrap();
    assert_eq!((here.load(DATA), sim.run_on(1, || there.load(DATA))), (Ok([11]), Ok([11])));
    let before = sim.flushes();
    sim.flush_tlb_page(DATA + 100);
    assert_eq!((here.load(DATA), sim.run_on(1, || there.load(DATA))), (Ok([77]), Ok([77])));
    assert_eq!(sim.flushes().range, before.range + 1);

    // The same by the space; a page of the kernel's, which is global, stays.
    const SCRATCH: usize = FixedAddress::Scratch as usize;
    let global = Flags::KERNEL.with(Flags::GLOBAL);
    let fixed = sim.set_fixmap::<SCRATCH>(PhysAddr::of(FRAME.add(1)), global);
    let mut kernel = Task::new(&space, Mode::Kernel);
    assert_eq!(kernel.load(fixed), Ok([11]));
    sim.run_on(1, || sim.set_fixmap::<SCRATCH>(PhysAddr::of(FRAME.add(7)), global));
    space.unmap_lazily(DATA).unwrap();
    assert_eq!(here.load(DATA), Ok([77]));
    sim.flush_tlb_mm(&space);
    assert_eq!(here.load::<1>(DATA), Err(Interrupted::Signal(Signal::Bus)));
    assert_eq!(kernel.load(fixed), Ok([11]), "global, and this CPU was not told");
    // A switch of address spaces drops what is not global.
    let other = Arc::new(sim.space().unwrap());
    other.map(DATA, FRAME.add(7), Flags::NONE).unwrap();
    assert_eq!(Task::new(&other, Mode::Kernel).load(DATA), Ok([77]));
    assert_eq!(Task::new(&other, Mode::Kernel).load(fixed), Ok([11]));
    sim.flush_tlb_all();
    assert_eq!(kernel.load(fixed), Ok([77]));
    // More than 32 pages at once are all of it.
    let before = sim.flushes();
    sim.flush_tlb_range(DATA..DATA + 33 * PAGE_SIZE);
    sim.flush_tlb_range(DATA..DATA + 32 * PAGE_SIZE);
    assert_eq!((sim.flushes().all, sim.flushes().range), (before.all + 1, before.range + 1));
}

// rows: T2 H2
#[test]
fn vfree_flushes_late_and_before_addresses_are_used_anew() {
    let sim = machine();
    let heap = heap(&sim);
    let mut task = sim.kernel_task();
    let block = heap.alloc(3 << 20);
    unsafe { block.write(5) };
    let at = sim.simulated(block);
    assert_eq!(task.load(at), Ok([5]));
    let before = sim.flushes();
    unsafe { heap.free(block) };
    assert_eq!(sim.flushes(), before, "vfree is lazy");
    assert_eq!(task.load(at), Ok([5]), "the translation is still there");
    heap.trim();
    assert!(sim.flushes() != before);
    assert_eq!(task.load::<1>(at), Err(Interrupted::Oops), "a stale translation outlived the purge");
    // What the purge gave back is the tables' as before.
    let again = heap.alloc(3 << 20);
    assert_eq!(sim.kernel_task().load::<1>(sim.simulated(again)).map(|_| ()), Ok(()));
    assert!(sim.mapped(again.addr()).is_some() && sim.window().contains(&again.addr()));
    unsafe { heap.free(again) };
}

// rows: T2 H2
#[test]
fn a_purge_of_many_areas_is_one_flush() {
    let sim = machine();
    let heap = heap(&sim);
    // Of different sizes, so that none serves for another.
    let blocks: Vec<_> = (0..3).map(|n| heap.alloc((9 + n) << 18)).collect();
    assert!(blocks.iter().all(|block| sim.window().contains(&block.addr())));
    let seen: Vec<usize> = blocks.iter().map(|block| sim.simulated(*block)).collect();
    let mut task = sim.kernel_task();
    seen.iter().for_each(|at| assert!(task.load::<1>(*at).is_ok()));
    unsafe { blocks.iter().for_each(|block| heap.free(*block)) };
    let before = sim.flushes();
    heap.trim();
    assert_eq!((sim.flushes().all - before.all, sim.flushes().range), (1, before.range), "lazy, and all at once");
    for at in seen {
        assert_eq!(sim.kernel_task().load::<1>(at), Err(Interrupted::Oops), "{at:#x} outlived the purge");
    }
    heap.verify().unwrap();
}

// rows: T1
#[test]
fn caches_are_told_of_what_is_mapped_and_unmapped() {
    let sim = machine();
    let heap = heap(&sim);
    let calls = || sim.calls(Call::FlushCache);
    // The machine itself checks that the addresses are mapped when it is told.
    let block = heap.alloc(3 << 20);
    let mapped = calls();
    assert!(mapped > 0, "flush_cache_vmap");
    unsafe { heap.free(block) };
    assert_eq!(calls(), mapped, "not before it is unmapped");
    heap.trim();
    assert_eq!(calls(), mapped + 1, "flush_cache_vunmap");
    let frames = [FRAME; 2].map(|_| heap.alloc_pages(slabwright::gfp::Gfp::KERNEL, 0, None).unwrap());
    let view = heap.vmap(&frames).unwrap();
    assert_eq!(calls(), mapped + 2);
    unsafe { heap.vunmap(view).unwrap() };
    assert_eq!(calls(), mapped + 3);
    frames.into_iter().for_each(|pfn| unsafe { heap.free_pages(pfn, 0).unwrap() });
}
