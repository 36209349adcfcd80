//! The kernel's calls on simulated machines: what a process cannot have (HIGHMEM, two addresses for one frame) and what
//! must hold anywhere. Each test is named after the row of the coverage table that it shows.
#![cfg(all(target_os = "linux", feature = "sim"))]
#![allow(clippy::undocumented_unsafe_blocks)] // the calls under test, on memory of the test's own

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use slabwright::api::{Cache, Construct, ObjectCache, Page, PageRun, PerCpu, Pool, Shrink, Shrinker, VmArea, Zone};
use slabwright::error::{AllocError, Defect};
use slabwright::gfp::Gfp;
use slabwright::machine::sim::{Flavour, Hostile, Sim, SimBare, SimHosted, Simulated};
use slabwright::machine::{Frames, ZoneKind};
use slabwright::mm::{Hooks, Mm};
use slabwright::page::Kind;
use slabwright::slab::SlabFlags;
use slabwright::types::{PAGE_SIZE, Pfn};

/// An allocator on `sim`, with the memory that is there from the start.
fn heap<F: Flavour>(sim: &Simulated<F>) -> Box<Mm<Simulated<F>>> {
    let after = |mm: &Mm<Simulated<F>>| {
        for (node, zone, range) in mm.machine().ram() {
            unsafe { mm.pages().add(mm.machine(), *node, *zone, *range) };
        }
    };
    let mm = Box::new(Mm::with_hooks(sim.clone(), Hooks { before: None, after: Some(after) }));
    assert!(mm.start());
    mm
}

fn plain() -> Box<Mm<Sim>> {
    heap(&Sim::builder().cpus(2).grow(0, ZoneKind::Normal, 1 << 14, 1 << 14, 1 << 10).build())
}

/// As a small i386 machine: DMA, NORMAL, and frames without an address.
fn with_highmem() -> Box<Mm<SimBare>> {
    let sim = SimBare::builder()
        .cpus(2)
        .ram(0, ZoneKind::Dma, 3, 1021)
        .ram(0, ZoneKind::Normal, 1 << 12, 4096)
        .ram(0, ZoneKind::HighMem, 1 << 14, 2048)
        .build();
    heap(&sim)
}

/// Everything is back and in order.
fn finish<F: Flavour>(mm: &Mm<Simulated<F>>) {
    mm.verify().unwrap();
    mm.trim();
    mm.verify().unwrap();
    let stats = mm.stats();
    assert_eq!((stats.slab.in_use_bytes, stats.vmalloc_bytes), (0, 0), "{stats:?}");
    assert_eq!(mm.machine().reports(), Vec::<String>::new());
}

// rows: A6 A7
#[test]
fn a6_a7_virt_to_page_is_the_inverse_of_page_address() {
    let mm = plain();
    for order in 0..=10 {
        let run = PageRun::new(&mm, Gfp::KERNEL, order).unwrap();
        let start = run.as_ptr().unwrap().as_ptr();
        assert_eq!(start.addr() % (PAGE_SIZE << order), 0);
        for n in 0..1 << order {
            let page = Page::containing(&mm, start.wrapping_add(n * PAGE_SIZE + 123)).unwrap();
            assert_eq!(page.address(), start.wrapping_add(n * PAGE_SIZE));
            assert_eq!(Page::of(&mm, page.pfn()), Some(page));
            assert_eq!(page.pfn().since(run.page().pfn()), n as u32, "adjacent frames (A10)");
        }
        assert_eq!((run.page().refs(), run.page().kind()), (1, Kind::Allocated));
    }
    let local = 0u8;
    assert!(Page::containing(&mm, &raw const local).is_none());
    finish(&mm);
}

// rows: A4
#[test]
fn a4_order_eleven_is_refused() {
    let mm = plain();
    assert_eq!(PageRun::new(&mm, Gfp::KERNEL, 11).unwrap_err(), AllocError::Invalid);
    assert_eq!(PageRun::exact(&mm, Gfp::KERNEL, (4 << 20) + 1).unwrap_err(), AllocError::Invalid);
    finish(&mm);
}

// rows: B5 B7
#[test]
fn b5_b7_zones_bound_their_addresses() {
    let mm = with_highmem();
    let dma = Zone::new(&mm, 0, ZoneKind::Dma).alloc(Gfp::KERNEL, 3).unwrap();
    assert!(dma.page().pfn() < Pfn(1 << 12));
    let normal = Zone::new(&mm, 0, ZoneKind::Normal).alloc(Gfp::KERNEL, 0).unwrap();
    assert_eq!(normal.page().zone().kind(), ZoneKind::Normal);
    // C12: what returns an address is never HIGHMEM.
    let refused = mm.alloc_pages_exact(Gfp::KERNEL | Gfp::HIGHMEM | Gfp::NOWARN, 1);
    assert_eq!(refused, Err(AllocError::Invalid));
    assert!(Zone::new(&mm, 0, ZoneKind::Dma).info().managed > 0);
    // C8: from HIGHMEM a request falls back to lower zones, and never the other way round.
    let zone = Zone::new(&mm, 0, ZoneKind::HighMem);
    let all: Vec<_> = std::iter::from_fn(|| zone.alloc(Gfp::KERNEL | Gfp::NORETRY, 4).ok()).collect();
    let kinds: BTreeSet<_> = all.iter().map(|run| run.page().zone().kind()).collect();
    assert!(kinds.contains(&ZoneKind::HighMem) && kinds.contains(&ZoneKind::Normal), "{kinds:?}");
    drop((all, dma, normal));
    finish(&mm);
}

// rows: B2 E3
#[test]
fn b2_e3_memory_comes_from_the_node_asked_for() {
    let sim = Sim::builder()
        .cpus(4)
        .nodes(2)
        .grow(0, ZoneKind::Normal, 1 << 14, 1 << 12, 1 << 10)
        .grow(1, ZoneKind::Normal, 1 << 15, 1 << 12, 1 << 10)
        .build();
    let mm = heap(&sim);
    for node in [0, 1, 0, 1] {
        let run = PageRun::on_node(&mm, node, Gfp::KERNEL | Gfp::THISNODE, 2).unwrap();
        assert_eq!(run.page().node(), node);
        let object = mm.kmalloc_node(300, Gfp::KERNEL | Gfp::THISNODE, node);
        assert_eq!(Page::containing(&mm, object).unwrap().node(), node);
        unsafe { mm.kfree(object) };
    }
    for cpu in 0..4 {
        sim.set_cpu(cpu);
        assert_eq!(PageRun::new(&mm, Gfp::KERNEL, 0).unwrap().page().node(), cpu % 2, "the caller's own");
    }
    finish(&mm);
}

// rows: C1
#[test]
fn c1_contradictions_are_refused_with_one_line() {
    let mm = plain();
    let bad = [
        Gfp::KERNEL | Gfp::DMA | Gfp::DMA32,
        Gfp::KERNEL | Gfp::MOVABLE | Gfp::RECLAIMABLE,
        Gfp::ATOMIC | Gfp::NOFAIL,
        Gfp::KERNEL | Gfp(1 << 30),
    ];
    for gfp in bad {
        assert_eq!(PageRun::new(&mm, gfp, 0).unwrap_err(), AllocError::Invalid, "{gfp:?}");
        assert!(mm.machine().take_reports()[0].contains("contradict"));
        assert_eq!(PageRun::new(&mm, gfp | Gfp::NOWARN, 0).unwrap_err(), AllocError::Invalid);
    }
    finish(&mm);
}

/// Every request of an atomic kind, from cold and from warm memory: no call of the machine, and no page gets backed by
/// being touched.
// rows: C5 C11
#[test]
fn c5_c11_atomic_requests_neither_call_nor_fault() {
    let mm = plain();
    let sim = mm.machine();
    let cache = Cache::<_, [u8; 300]>::new(&mm, "atomic", SlabFlags::NO_MERGE).unwrap();
    drop(PageRun::new(&mm, Gfp::KERNEL, 5).unwrap());
    assert!(mm.keep_reserve(4 << 20) >= 3 << 20);
    let backed = sim.backed();
    sim.forbid_calls(|| {
        let mut held = Vec::new();
        for n in 0..600usize {
            let size = 1 + n * 37 % 5000;
            let block = mm.kmalloc(size, if n % 3 == 0 { Gfp::ATOMIC | Gfp::ZERO } else { Gfp::ATOMIC });
            assert!(!block.is_null(), "{size} bytes, number {n}");
            unsafe { block.write_bytes(1, size) };
            held.push(block);
        }
        let objects: Vec<_> = (0..300).map(|_| cache.insert([1; 300], Gfp::ATOMIC).unwrap()).collect();
        let runs: Vec<_> = (0..3).map(|order| PageRun::new(&mm, Gfp::ATOMIC, order).unwrap()).collect();
        assert_eq!(sim.backed(), backed, "something was not populated");
        drop((objects, runs));
        for block in held {
            unsafe { mm.kfree(block) };
        }
    });
    drop(cache);
    mm.verify().unwrap();
}

/// At every call that the allocator makes of its machine, under whatever lock, a handler makes atomic requests of every
/// kind. None waits, enters the system or has a page backed, and none is refused: the reserve is refilled by those who
/// may do so.
// rows: C2
#[test]
fn c2_atomic_requests_are_served_whatever_they_interrupt() {
    let mm = plain();
    let sim = mm.machine();
    let cache = Cache::<_, [u8; 300]>::new(&mm, "interrupted", SlabFlags::NO_MERGE).unwrap();
    assert!(mm.keep_reserve(1 << 20) >= 1 << 20);
    let (asked, nested) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let in_handler = AtomicUsize::new(0);
    let handler = |_| {
        // Not every call, or it would take minutes; and no handler interrupts itself.
        let n = asked.fetch_add(1, Relaxed);
        if n % 7 != 0 || in_handler.swap(1, Relaxed) != 0 {
            return;
        }
        nested.fetch_add(usize::from(sim.depth() > 0), Relaxed);
        sim.forbid_calls(|| {
            let backed = sim.backed();
            let size = [8, 100, 700, 1500, 4000, 9000][n / 7 % 6];
            let block = mm.kmalloc(size, Gfp::ATOMIC);
            assert!(!block.is_null(), "{size} bytes");
            unsafe { block.write_bytes(1, size) };
            let object = mm.kmem_cache_alloc(cache.named().cache(), Gfp::ATOMIC, 0);
            assert!(!object.is_null(), "an object");
            unsafe { object.write_bytes(1, 300) };
            let pages = mm.alloc_pages(Gfp::ATOMIC, n as u32 / 7 % 3, None).expect("pages");
            assert_eq!(sim.backed(), backed, "something was not populated");
            unsafe { mm.free_pages(pages, n as u32 / 7 % 3).unwrap() };
            unsafe {
                mm.kmem_cache_free(cache.named().cache(), object, 0).unwrap();
                mm.kfree(block);
            }
        });
        in_handler.store(0, Relaxed);
    };
    sim.with_hook(&handler, || {
        let mut held = Vec::new();
        for n in 0..400usize {
            held.push(mm.kmalloc(1 + n * 997 % 20_000, Gfp::KERNEL));
            if held.len() > 40 {
                unsafe { mm.kfree(held.swap_remove(n % 40)) };
            }
            if n % 50 == 0 {
                mm.kmem_cache_shrink(cache.named());
            }
        }
        held.into_iter().for_each(|block| unsafe { mm.kfree(block) });
    });
    assert!(nested.load(Relaxed) > 300, "{} nested handlers", nested.load(Relaxed));
    drop(cache);
    finish(&mm);
}

/// The kernel's slab_state goes DOWN, PARTIAL, UP, FULL. Here a request finds the instance down until the machine is
/// prepared (its start is refused what it asks for itself), then the caches that live in static memory serve without
/// being made, and caches can be made of them.
// rows: G5
// First fit makes none of them.
#[cfg(not(feature = "slob"))]
#[test]
fn g5_caches_come_up_in_order() {
    type M = Sim;
    fn before(mm: &Mm<M>) {
        assert!(!mm.is_up() && mm.alloc(8).is_null() && mm.kmalloc(8, Gfp::ATOMIC).is_null());
        let made = mm.kmem_cache_create("early", 64, 0, SlabFlags::NONE, None);
        assert_eq!(made.err(), Some(AllocError::NoMemory));
    }
    fn after(mm: &Mm<M>) {
        assert!(mm.is_up());
        // Up, without memory yet.
        assert!(mm.kmalloc(8, Gfp::KERNEL | Gfp::NORETRY).is_null());
        for (node, zone, range) in mm.machine().ram() {
            unsafe { mm.pages().add(mm.machine(), *node, *zone, *range) };
        }
        assert_eq!(caches(mm), [] as [String; 0], "nothing is made for the static caches");
    }
    fn caches(mm: &Mm<M>) -> Vec<String> {
        let mut names = Vec::new();
        mm.slab().for_each_cache(mm.machine(), |name, cache| {
            if cache.slabs > 0 {
                names.push(name.to_owned());
            }
        });
        names
    }
    let sim = Sim::builder().ram(0, ZoneKind::Normal, 4096, 1024).build();
    let mm = Box::new(Mm::with_hooks(sim, Hooks { before: Some(before), after: Some(after) }));
    assert!(!mm.is_up());
    // The first request starts it.
    let block = mm.alloc(100);
    assert!(mm.is_up() && !block.is_null());
    // Its slab, and that of what is kept for handlers: caches in static memory.
    assert_eq!(caches(&mm), ["kmalloc-112", "kmalloc-1k"]);
    // Once there are some there is a sheaf.
    let more = [(); 4].map(|()| mm.alloc(100));
    assert_eq!(caches(&mm), ["kmalloc-112", "kmalloc-1k", "sheaf"]);
    more.into_iter().for_each(|block| unsafe { mm.free(block) });
    let named = mm.kmem_cache_create("late", 64, 0, SlabFlags::NO_MERGE, None).unwrap();
    let object = mm.kmem_cache_alloc(named.cache(), Gfp::KERNEL, 0);
    assert_eq!(caches(&mm), ["kmalloc-112", "kmalloc-1k", "sheaf", "late"]);
    unsafe {
        mm.kmem_cache_free(named.cache(), object, 0).unwrap();
        mm.free(block);
    }
    unsafe { mm.kmem_cache_destroy(named).unwrap() };
    finish(&mm);
}

// rows: G3
#[test]
fn g3_a_descriptor_says_what_its_cache_is() {
    // Descriptors are static, one for each id: their number times their size is what the instance needs before anything
    // is allocated.
    assert!(size_of::<slabwright::slab::Cache>() <= 2048, "{}", size_of::<slabwright::slab::Cache>());
    let mm = plain();
    assert_eq!((mm.slab().name(1), mm.slab().object_size(1)), ("kmalloc-8", 8));
    let flags = SlabFlags::HWCACHE_ALIGN.with(SlabFlags::NO_MERGE);
    let named = mm.kmem_cache_create("described", 200, 16, flags, None).unwrap();
    let id = named.cache();
    assert_eq!(mm.slab().made_with(id), (flags, 200, 64, false));
    assert_eq!((mm.slab().name(id.get()), mm.slab().object_size(id.get())), ("described", 200));
    let (order, least, zone) = mm.slab().slab_order(id);
    assert!(order >= least && least.get() == 0 && zone == Gfp::NONE);
    unsafe { mm.kmem_cache_destroy(named).unwrap() };
    assert!(mm.slab().created(id.get()).is_none(), "the descriptor is free for another cache");
    finish(&mm);
}

// rows: E9
#[test]
fn e9_references_keep_a_block() {
    let mm = plain();
    let pfn = mm.alloc_pages(Gfp::KERNEL, 3, None).unwrap();
    mm.get_page(pfn).unwrap();
    unsafe { mm.free_pages(pfn, 3).unwrap() };
    assert_eq!(mm.machine().page(pfn).kind(), Kind::Allocated);
    unsafe { mm.free_pages(pfn, 3).unwrap() };
    mm.machine().set_aborts(false);
    assert_eq!(unsafe { mm.free_pages(pfn, 3) }, Err(Defect::DoubleFree));
    assert_eq!(mm.get_page(pfn), Err(Defect::DoubleFree));
    let pfn = mm.alloc_pages(Gfp::KERNEL, 3, None).unwrap();
    assert_eq!(unsafe { mm.free_pages(pfn, 2) }, Err(Defect::WrongOrder));
    assert_eq!(unsafe { mm.free_pages(pfn.add(1), 0) }, Err(Defect::Interior));
    unsafe { mm.free_pages(pfn, 3).unwrap() };
    assert_eq!(mm.machine().take_reports().len(), 4);
    finish(&mm);
}

/// Frees in atomic context while the zone's lock is held elsewhere: kept for later, and a second free is still found
/// out.
// rows: E11
#[test]
fn e11_frees_never_wait() {
    let mm = plain();
    let blocks: Vec<_> = (0..300).map(|n| mm.alloc_pages(Gfp::KERNEL, n % 7, None).unwrap()).collect();
    mm.machine().forbid_calls(|| {
        for (n, pfn) in blocks.iter().enumerate() {
            unsafe { mm.free_pages(*pfn, n as u32 % 7).unwrap() };
        }
    });
    finish(&mm);
}

#[derive(Clone, Copy)]
struct Counted {
    magic: u64,
    uses: u64,
    rest: [u64; 3],
}

static CONSTRUCTED: AtomicUsize = AtomicUsize::new(0);

impl Construct for Counted {
    fn construct() -> Counted {
        CONSTRUCTED.fetch_add(1, Relaxed);
        Counted { magic: 0xc0ffee, uses: 0, rest: [7; 3] }
    }
}

// rows: G8 G16
#[test]
fn g8_g16_constructed_once_and_kept_over_free() {
    let mm = plain();
    let cache = ObjectCache::<_, Counted>::new(&mm, "counted", SlabFlags::HWCACHE_ALIGN).unwrap();
    let mut seen = BTreeSet::new();
    for _ in 0..5 {
        let objects: Vec<_> = (0..300)
            .map(|_| {
                let mut object = cache.get(Gfp::KERNEL).unwrap();
                assert_eq!((object.magic, object.rest), (0xc0ffee, [7; 3]));
                object.uses += 1;
                object
            })
            .collect();
        seen.extend(objects.iter().map(|object| (&raw const **object).addr()));
    }
    let constructed = CONSTRUCTED.load(Relaxed);
    assert!(constructed >= seen.len() && constructed < 1200, "{constructed} for {}", seen.len());
    // The last one freed comes back first, as it was left.
    let mut last = cache.get(Gfp::KERNEL).unwrap();
    last.uses = 4711;
    drop(last);
    assert_eq!(cache.get(Gfp::KERNEL).unwrap().uses, 4711);
    cache.shrink();
    drop(cache);
    finish(&mm);
}

struct Noisy<'a>(&'a AtomicUsize, [u64; 5]);

impl Drop for Noisy<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Relaxed);
    }
}

// rows: G6
#[test]
fn g6_values_are_dropped_and_names_shared() {
    let mm = plain();
    let dropped = AtomicUsize::new(0);
    let cache = Cache::<_, Noisy<'_>>::new(&mm, "noisy", SlabFlags::NONE).unwrap();
    let boxes: Vec<_> = (0..100).map(|n| cache.insert(Noisy(&dropped, [n; 5]), Gfp::KERNEL).unwrap()).collect();
    assert!(boxes.iter().enumerate().all(|(n, noisy)| noisy.1 == [n as u64; 5]));
    drop(boxes);
    assert_eq!(dropped.load(Relaxed), 100);
    // Somebody else finds it by its name, and it lives as long as either has it.
    let other = Cache::<_, [u64; 6]>::find(&mm, "noisy").unwrap();
    assert_eq!(other.named().cache(), cache.named().cache());
    assert!(Cache::<_, [u64; 7]>::find(&mm, "noisy").is_err(), "its objects are too small for that");
    assert!(Cache::<_, u8>::find(&mm, "nobody").is_err());
    drop(cache);
    drop(other.insert([1; 6], Gfp::KERNEL).unwrap());
    // The same shape under another name shares the slabs, and both names are found.
    let twin = Cache::<_, [u64; 6]>::new(&mm, "twin", SlabFlags::NONE).unwrap();
    assert_eq!(twin.named().cache(), other.named().cache());
    let mut names = Vec::new();
    mm.for_each_name(|name, _| {
        // No lock is held meanwhile.
        drop(Cache::<_, [u64; 6]>::find(&mm, name).unwrap());
        names.push(name.to_owned());
    });
    names.sort();
    assert_eq!(names, ["noisy", "twin"]);
    drop((twin, other));
    assert!(mm.kmem_cache_find("twin").is_none());
    finish(&mm);
}

// rows: G9
#[test]
fn g9_destroy_names_what_lives() {
    let mm = plain();
    let named = mm.kmem_cache_create("leaky", 64, 0, SlabFlags::STORE_USER, None).unwrap();
    let objects: Vec<_> = (0..3).map(|_| mm.kmem_cache_alloc(named.cache(), Gfp::KERNEL, 0xabc0)).collect();
    mm.machine().set_aborts(false);
    assert_eq!(unsafe { mm.kmem_cache_destroy(named) }, Err(3));
    let line = mm.machine().take_reports().remove(0);
    assert!(line.contains("leaky: 3 left") && line.contains("allocated at 0xabc0"), "{line}");
    assert!(objects.iter().any(|object| line.contains(&format!("{:p}", *object))), "{line}");
    for object in objects {
        unsafe { mm.kmem_cache_free(named.cache(), object, 0).unwrap() };
    }
    assert_eq!(unsafe { mm.kmem_cache_destroy(named) }, Ok(()));
    assert_eq!(unsafe { mm.kmem_cache_destroy(named) }, Err(0), "twice");
    assert_eq!(mm.machine().take_reports().len(), 1);
    finish(&mm);
}

/// A second free is noticed wherever the object lies: in this CPU's sheaf, in another's, in a barn, in its slab.
// rows: G11
#[test]
fn g11_a_second_free_is_noticed_in_a_sheaf() {
    extern "C" fn construct(object: *mut u8) {
        unsafe { object.write_bytes(0x77, 40) };
    }
    let mm = plain();
    let sim = mm.machine();
    sim.set_aborts(false);
    for ctor in [None, Some(construct as unsafe extern "C" fn(*mut u8))] {
        for size in [1, 8, 13, 40, 700, 9000] {
            let size = if ctor.is_some() { 40 } else { size };
            let named = mm.kmem_cache_create("twice", size, 0, SlabFlags::NO_MERGE, ctor).unwrap();
            let objects: Vec<_> = (0..200).map(|_| mm.kmem_cache_alloc(named.cache(), Gfp::KERNEL, 0)).collect();
            for (n, object) in objects.iter().enumerate() {
                sim.set_cpu(n % 2);
                unsafe { mm.kmem_cache_free(named.cache(), *object, 0).unwrap() };
                if n % 40 == 7 {
                    sim.set_cpu(n / 40 % 2);
                    let again = unsafe { mm.kmem_cache_free(named.cache(), objects[n - 5], 0) };
                    assert_eq!(again, Err(Defect::DoubleFree), "{size} bytes, number {n}");
                    assert!(sim.take_reports()[0].contains("twice"));
                }
            }
            let wrong = unsafe { mm.kmem_cache_free(named.cache(), objects[0].wrapping_add(1), 0) };
            assert!(wrong.is_err());
            sim.take_reports();
            mm.verify().unwrap();
            assert_eq!(unsafe { mm.kmem_cache_destroy(named) }, Ok(()));
        }
    }
    finish(&mm);
}

// rows: G7
#[test]
fn g7_checked_caches_tell_what_was_written_where() {
    let mm = plain();
    let sim = mm.machine();
    sim.set_aborts(false);
    let flags = SlabFlags::RED_ZONE.with(SlabFlags::POISON).with(SlabFlags::STORE_USER);
    let named = mm.kmem_cache_create("checked", 45, 0, flags, None).unwrap();
    let alloc = || mm.kmem_cache_alloc(named.cache(), Gfp::KERNEL, 0x1000);
    let free = |object| unsafe { mm.kmem_cache_free(named.cache(), object, 0x2000).unwrap() };
    let object = alloc();
    unsafe { object.add(45).write(9) };
    free(object);
    let line = sim.take_reports().remove(0);
    assert!(line.contains("behind its end at byte 45") && line.contains("allocated at 0x1000"), "{line}");
    let object = alloc();
    free(object);
    unsafe { object.add(13).write(9) };
    assert_eq!(alloc(), object);
    let line = sim.take_reports().remove(0);
    assert!(line.contains("after it was freed at byte 13") && line.contains("freed at 0x2000"), "{line}");
    free(object);
    assert!(mm.kmem_cache_create("x", 8, 0, SlabFlags(0x80000), None).is_err(), "a flag that means nothing here");
    assert_eq!(unsafe { mm.kmem_cache_destroy(named) }, Ok(()));
    finish(&mm);
}

/// Also where every second page is in use: what kmalloc returns is never put together of frames that lie apart.
// rows: F5
#[test]
fn f5_kmallocs_frames_follow_each_other() {
    let mm = with_highmem();
    let pages: Vec<_> = (0..600).map(|_| PageRun::new(&mm, Gfp::KERNEL, 0).unwrap()).collect();
    let holes: Vec<_> = pages.into_iter().enumerate().filter_map(|(n, page)| (n % 2 == 0).then_some(page)).collect();
    let frame = |at: *mut u8| Page::containing(&mm, at).expect("a frame").pfn();
    for size in [1, 100, 5000, 9000, 40_000, 128 << 10, 300_000, 1 << 20, 2 << 20] {
        for _ in 0..3 {
            let block = mm.kmalloc(size, Gfp::KERNEL);
            assert!(!block.is_null(), "{size} bytes");
            let inside = block.addr() % PAGE_SIZE;
            for at in (0..size).step_by(PAGE_SIZE).chain([size - 1]) {
                let expected = frame(block).add(((inside + at) / PAGE_SIZE) as u32);
                assert_eq!(frame(block.wrapping_add(at)), expected, "byte {at} of {size}");
            }
            unsafe { mm.kfree(block) };
        }
    }
    drop(holes);
    finish(&mm);
}

// rows: G12
#[test]
fn g12_slab_pages_fall_back_to_a_smaller_order() {
    let sim = SimBare::builder().ram(0, ZoneKind::Normal, 1 << 12, 2048).build();
    let mm = heap(&sim);
    let named = mm.kmem_cache_create("big", 3000, 0, SlabFlags::NO_MERGE, None).unwrap();
    let full = mm.kmem_getpages(named.cache(), Gfp::KERNEL, None).unwrap();
    assert!(mm.machine().page(full).order().get() > 0);
    unsafe { mm.kmem_freepages(mm.machine().virt(full)).unwrap() };
    // Every other page in use: no larger block is left.
    let to_the_end = Gfp::KERNEL | Gfp::MEMALLOC | Gfp::NORETRY;
    let all: Vec<_> = std::iter::from_fn(|| mm.alloc_pages(to_the_end, 0, None).ok()).collect();
    for pfn in all.iter().filter(|pfn| pfn.0 % 2 == 0) {
        unsafe { mm.free_pages(*pfn, 0).unwrap() };
    }
    mm.trim();
    let least = mm.kmem_getpages(named.cache(), Gfp::KERNEL, None).unwrap();
    assert_eq!(mm.machine().page(least).order().get(), 0);
    unsafe { mm.kmem_freepages(mm.machine().virt(least)).unwrap() };
    for pfn in all.iter().filter(|pfn| pfn.0 % 2 == 1) {
        unsafe { mm.free_pages(*pfn, 0).unwrap() };
    }
    unsafe { mm.kmem_cache_destroy(named).unwrap() };
    finish(&mm);
}

// rows: H1
#[test]
fn h1_vmalloc_is_contiguous_over_frames_that_are_not() {
    let mm = plain();
    // Every other page in use, so that frames cannot be adjacent.
    let holes: Vec<_> = (0..400).map(|_| PageRun::new(&mm, Gfp::KERNEL, 0).unwrap()).collect();
    let (keep, gone): (Vec<_>, Vec<_>) = holes.into_iter().partition(|run| run.page().pfn().0 % 2 == 0);
    drop(gone);
    let mut area = VmArea::new(&mm, 40 * PAGE_SIZE, Gfp::KERNEL | Gfp::ZERO).unwrap();
    for (n, byte) in area.bytes_mut().unwrap().iter_mut().enumerate() {
        assert_eq!(unsafe { byte.assume_init_read() }, 0);
        byte.write(n as u8);
    }
    let frames: Vec<Pfn> = (0..40).map(|n| area.frame(n * PAGE_SIZE).unwrap()).collect();
    assert!(frames.windows(2).any(|pair| pair[1] != pair[0].add(1)), "{frames:?}");
    for (n, frame) in frames.iter().enumerate() {
        assert_eq!(mm.machine().page(*frame).kind(), Kind::Vmalloc);
        assert_eq!(unsafe { mm.machine().virt(*frame).add(5).read() }, (n * PAGE_SIZE + 5) as u8);
    }
    drop((keep, area));
    finish(&mm);
}

#[test]
fn a_second_vfree_says_what_is_wrong() {
    let mm = plain();
    let area = mm.vmalloc_bytes(3 * PAGE_SIZE, Gfp::KERNEL).unwrap();
    mm.machine().set_aborts(false);
    assert_eq!(unsafe { mm.vfree(area.wrapping_add(PAGE_SIZE)) }, Err(Defect::Interior));
    assert_eq!(unsafe { mm.vfree(area) }, Ok(()));
    assert_eq!(unsafe { mm.vfree(area) }, Err(Defect::DoubleFree));
    assert_eq!(unsafe { mm.vfree(core::ptr::null_mut()) }, Ok(()));
    assert_eq!(mm.machine().take_reports().len(), 2);
    finish(&mm);
}

// rows: H3 H4
#[test]
fn h3_h4_vmap_shows_frames_at_a_second_address() {
    let mm = plain();
    let runs: Vec<_> = (0..5).map(|_| PageRun::new(&mm, Gfp::KERNEL, 0).unwrap()).collect();
    let frames: Vec<Pfn> = runs.iter().rev().map(|run| run.page().pfn()).collect();
    let area = unsafe { VmArea::of_frames(&mm, &frames).unwrap() };
    for (n, frame) in frames.iter().enumerate() {
        let (here, there) = (mm.machine().virt(*frame), area.as_ptr().as_ptr().wrapping_add(n * PAGE_SIZE));
        unsafe {
            here.add(9).write(n as u8 + 1);
            assert_eq!(there.add(9).read(), n as u8 + 1);
            there.add(100).write(0xee);
            assert_eq!(here.add(100).read(), 0xee);
        }
        assert_eq!(area.frame(n * PAGE_SIZE), Ok(*frame));
    }
    mm.verify().unwrap();
    let start = area.as_ptr().as_ptr();
    drop(area);
    // The pages are alive, the addresses are not.
    assert!(runs.iter().all(|run| run.page().kind() == Kind::Allocated));
    assert!(mm.vmalloc_to_page(start).is_err());
    mm.machine().set_aborts(false);
    assert_eq!(unsafe { mm.vunmap(start) }, Err(Defect::Foreign), "twice");
    mm.machine().take_reports();
    drop(runs);
    finish(&mm);
    // A machine that cannot do it says so.
    let sim = SimHosted::builder().grow(0, ZoneKind::Normal, 1 << 14, 1 << 12, 1 << 10).build();
    let mm = heap(&sim);
    let run = PageRun::new(&mm, Gfp::KERNEL, 0).unwrap();
    assert_eq!(mm.vmap(&[run.page().pfn()]), Err(AllocError::Unsupported));
}

/// Every fallible call of the machine fails once: nothing is lost, and what could not be done is told.
// rows: H3
#[test]
fn h3_vmap_survives_every_failure() {
    for k in 1..40 {
        let mm = plain();
        let runs: Vec<_> = (0..20).map(|_| PageRun::new(&mm, Gfp::KERNEL, 0).unwrap()).collect();
        let frames: Vec<Pfn> = runs.iter().map(|run| run.page().pfn()).collect();
        mm.machine().fail_at(k);
        if let Ok(area) = unsafe { VmArea::of_frames(&mm, &frames) } {
            drop(area);
        }
        mm.machine().fail_at(0);
        drop(unsafe { VmArea::of_frames(&mm, &frames).unwrap() });
        drop(runs);
        finish(&mm);
    }
}

// rows: I5 I7
#[test]
fn i5_i7_atomic_mappings_nest_and_forbid_sleep() {
    let mm = plain();
    assert!(mm.keep_reserve(1 << 19) > 0);
    let runs: Vec<_> = (0..2).map(|_| PageRun::new(&mm, Gfp::KERNEL, 0).unwrap()).collect();
    let addresses: Vec<_> = runs.iter().map(|run| mm.kmap_atomic(run.page().pfn()).unwrap()).collect();
    mm.machine().set_aborts(false);
    assert_eq!(PageRun::new(&mm, Gfp::KERNEL, 0).unwrap_err(), AllocError::Invalid);
    assert!(mm.machine().take_reports()[0].contains("sleeping"));
    drop(PageRun::new(&mm, Gfp::ATOMIC, 0).unwrap());
    mm.kunmap_atomic(addresses[1]).unwrap();
    mm.kunmap_atomic(addresses[0]).unwrap();
    assert_eq!(mm.kunmap_atomic(addresses[0]), Err(Defect::DoubleFree));
    mm.machine().take_reports();
    drop(runs);
    finish(&mm);
}

// rows: J3 J5
#[test]
fn j3_j5_sums_are_exact_under_migration() {
    let sim = Sim::builder()
        .cpus(3)
        .grow(0, ZoneKind::Normal, 1 << 14, 1 << 13, 1 << 10)
        .hostile(Hostile { migrate: 7, ..Hostile::default() })
        .build();
    let mm = heap(&sim);
    let (added, held) = (PerCpu::<_, u64>::new(&mm, 0).unwrap(), PerCpu::<_, (u32, u32)>::new(&mm, (1, 2)).unwrap());
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (sim, added, held) = (&sim, &added, &held);
            scope.spawn(move || {
                for n in 0..2000u64 {
                    sim.set_cpu((n * (thread + 1) / 17) as usize % 3);
                    added.add(thread + 1);
                    let guard = held.get();
                    guard.update(|(a, b)| (a + 1, b));
                    // J4: nested, on the same copy, wherever the thread is by then.
                    sim.set_cpu((n + thread) as usize % 3);
                    let inner = held.get();
                    assert_eq!(inner.cpu(), guard.cpu());
                    inner.update(|(a, b)| (a, b + 1));
                    drop(inner);
                    drop(guard);
                }
            });
        }
    });
    assert_eq!(added.sum(), 2000 * (1 + 2 + 3 + 4));
    // SAFETY: nobody writes to them any more.
    let all = (0..3).filter_map(|cpu| held.copy_ptr(cpu)).map(|copy| unsafe { copy.read() });
    let (a, b) = all.fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
    assert_eq!((a, b), (3 + 8000, 6 + 8000));
    assert_eq!((held.copy_ptr(3), added.read(3)), (None, None));
    drop((added, held));
    finish(&mm);
}

// rows: J6
#[test]
fn j6_percpu_memory_runs_out_with_an_error() {
    let sim = SimBare::builder().cpus(2).ram(0, ZoneKind::Normal, 1 << 12, 1024).build();
    let mm = heap(&sim);
    let mut all = Vec::new();
    let error = loop {
        match PerCpu::<_, [u64; 2048]>::new(&mm, [3; 2048]) {
            Ok(one) => all.push(one),
            Err(error) => break error,
        }
    };
    assert_eq!(error, AllocError::NoMemory);
    assert!(all.len() > 10, "{}", all.len());
    // SAFETY: nobody writes to it.
    assert!(all.iter().all(|one| unsafe { one.copy_ptr(1).unwrap().read() } == [3; 2048]));
    assert_eq!(mm.alloc_percpu(0, 8, Gfp::KERNEL), Err(AllocError::Invalid));
    all.pop();
    assert!(PerCpu::<_, u8>::new(&mm, 1).is_ok());
    drop(all);
    finish(&mm);
}

struct Hoard(std::sync::Mutex<Vec<Vec<u8>>>, AtomicUsize);

impl Shrink for Hoard {
    fn count(&self) -> usize {
        self.0.try_lock().map_or(0, |hoard| hoard.len())
    }
    fn scan(&self, objects: usize) -> Option<usize> {
        self.1.fetch_add(1, Relaxed);
        let mut hoard = self.0.try_lock().ok()?;
        let keep = hoard.len().saturating_sub(objects);
        Some(hoard.split_off(keep).len())
    }
}

// rows: C4 D7
#[test]
fn c4_d7_shrinkers_are_asked_before_a_request_fails() {
    static HOARD: Hoard = Hoard(std::sync::Mutex::new(Vec::new()), AtomicUsize::new(0));
    static BLOCKS: std::sync::Mutex<Vec<usize>> = std::sync::Mutex::new(Vec::new());
    struct Blocks(&'static Mm<SimBare>);
    impl Shrink for Blocks {
        fn count(&self) -> usize {
            HOARD.count() + BLOCKS.try_lock().map_or(0, |blocks| blocks.len())
        }
        fn scan(&self, objects: usize) -> Option<usize> {
            HOARD.scan(objects);
            let mut blocks = BLOCKS.try_lock().ok()?;
            let mut freed = 0;
            while freed < objects
                && let Some(block) = blocks.pop()
            {
                // Allocates in a callback, under the very pressure: it is not called again for that.
                assert!(self.0.kmalloc(16 << 20, Gfp::KERNEL).is_null());
                unsafe { self.0.kfree(std::ptr::with_exposed_provenance_mut(block)) };
                freed += 1;
            }
            Some(freed)
        }
    }
    let sim = SimBare::builder().ram(0, ZoneKind::Normal, 1 << 12, 1024).build();
    let mm: &'static Mm<SimBare> = Box::leak(heap(&sim));
    let blocks: &'static Blocks = Box::leak(Box::new(Blocks(mm)));
    let shrinker = Shrinker::new(mm, blocks).unwrap();
    assert!(Shrinker::new(mm, blocks).is_err(), "registered already");
    let fill = || {
        loop {
            let block = mm.kmalloc(50_000, Gfp::NOFS);
            if block.is_null() {
                break;
            }
            BLOCKS.lock().unwrap().push(block.expose_provenance());
        }
        assert_eq!(HOARD.1.load(Relaxed), 0, "NOFS asks nobody");
    };
    fill();
    let had = BLOCKS.lock().unwrap().len();
    let big = mm.alloc(1 << 20);
    assert!(!big.is_null() && BLOCKS.lock().unwrap().len() < had);
    assert!(HOARD.1.load(Relaxed) > 0);
    unsafe { mm.free(big) };
    drop(shrinker);
    let asked = HOARD.1.load(Relaxed);
    assert!(mm.alloc(16 << 20).is_null());
    assert_eq!(HOARD.1.load(Relaxed), asked, "taken back");
    for block in BLOCKS.lock().unwrap().drain(..) {
        unsafe { mm.kfree(std::ptr::with_exposed_provenance_mut(block)) };
    }
    finish(mm);
}

/// What kswapd does: below the low mark a step of the idle loop asks the shrinkers, and goes on to the high mark and no
/// further.
// rows: B10
#[test]
fn b10_below_low_the_idle_step_makes_room_up_to_high() {
    const OBJECTS: usize = 1200;
    struct Kept(&'static Mm<SimBare>, std::sync::Mutex<Vec<Pfn>>);
    impl Shrink for Kept {
        fn count(&self) -> usize {
            self.1.lock().unwrap().len()
        }
        fn scan(&self, objects: usize) -> Option<usize> {
            let mut kept = self.1.lock().unwrap();
            let from = kept.len().saturating_sub(objects);
            Some(kept.drain(from..).map(|pfn| unsafe { self.0.free_pages(pfn, 0).unwrap() }).count())
        }
    }
    let sim = SimBare::builder().ram(0, ZoneKind::Normal, 1 << 12, 4096).build();
    let mm: &'static Mm<SimBare> = Box::leak(heap(&sim));
    let take = || mm.pages().alloc_page(mm.machine(), Gfp::KERNEL | Gfp::NORETRY).expect("above the min mark");
    let kept = (0..OBJECTS).map(|_| take()).collect();
    let kept: &'static Kept = Box::leak(Box::new(Kept(mm, std::sync::Mutex::new(kept))));
    let shrinker = Shrinker::new(mm, kept).unwrap();
    assert!(!mm.balance(), "nothing lacks");
    let mut taken = Vec::new();
    while !mm.pages().is_short(mm.machine(), |marks| marks.low) {
        taken.push(take());
        if mm.pages().is_short(mm.machine(), |marks| marks.low) {
            // Also with what the per-CPU lists have.
            mm.pages().drain(mm.machine());
        }
    }
    taken.push(take());
    assert_eq!(kept.count(), OBJECTS, "nobody was asked yet");
    assert!(mm.balance(), "the zone is below its low mark");
    assert!(!mm.pages().is_short(mm.machine(), |marks| marks.high));
    assert!((1..OBJECTS).contains(&kept.count()), "{} objects are left", kept.count());
    assert!(!mm.balance(), "and nothing until the next time");
    drop(shrinker);
    let rest = std::mem::take(&mut *kept.1.lock().unwrap());
    taken.into_iter().chain(rest).for_each(|pfn| unsafe { mm.free_pages(pfn, 0).unwrap() });
    finish(mm);
}

// rows: D12
#[test]
fn d12_pools_serve_when_nothing_else_does() {
    let sim = SimBare::builder().ram(0, ZoneKind::Normal, 1 << 12, 1024).build();
    let mm = heap(&sim);
    let cache = Cache::<_, [u64; 100]>::new(&mm, "pooled", SlabFlags::NONE).unwrap();
    let pool = Pool::new(&cache, 3).unwrap();
    // All memory gone: pages, and the cache's own free objects.
    let pages: Vec<_> =
        std::iter::from_fn(|| PageRun::new(&mm, Gfp::KERNEL | Gfp::MEMALLOC | Gfp::NOWARN, 0).ok()).collect();
    let rest: Vec<_> = std::iter::from_fn(|| cache.insert([0; 100], Gfp::KERNEL).ok()).collect();
    assert!(cache.insert([1; 100], Gfp::KERNEL).is_err());
    let mut kept: Vec<_> = (0..3).map(|n| pool.insert([n; 100], Gfp::KERNEL).unwrap()).collect();
    assert_eq!(pool.insert([1; 100], Gfp::ATOMIC).map(|_| ()).unwrap_err(), AllocError::NoMemory);
    // Who may wait gets the one that comes back.
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| pool.insert([9; 100], Gfp::KERNEL).map(|one| one[99]));
        std::thread::sleep(std::time::Duration::from_millis(20));
        drop(kept.pop());
        assert_eq!(waiter.join().unwrap(), Ok(9));
    });
    drop((kept, rest, pages));
    drop(pool);
    drop(cache);
    finish(&mm);
}

// rows: F1
#[test]
fn f1_krealloc_keeps_bytes_and_zone() {
    let mm = with_highmem();
    let mut size = 3;
    let mut block = mm.kmalloc(size, Gfp::KERNEL | Gfp::DMA);
    unsafe { block.write_bytes(0x42, size) };
    while size < 200_000 {
        let new = unsafe { mm.krealloc(block, size * 3, Gfp::KERNEL | Gfp::DMA) };
        assert!(!new.is_null());
        assert!(Page::containing(&mm, new).unwrap().pfn() < Pfn(1 << 12), "{} bytes", size * 3);
        assert!((0..size).all(|at| unsafe { new.add(at).read() } == 0x42));
        size *= 3;
        block = new;
        unsafe { block.write_bytes(0x42, size) };
    }
    assert!(unsafe { mm.krealloc(block, 0, Gfp::KERNEL) }.is_null());
    let zeroed = mm.kmalloc(700, Gfp::KERNEL | Gfp::ZERO);
    assert!((0..700).all(|at| unsafe { zeroed.add(at).read() } == 0));
    unsafe { mm.kfree(zeroed) };
    // What a block grows by reads zero, also where it stays and had old contents there.
    for [first, less, more] in
        [[100, 90, 104], [700, 10, 768], [40 << 10, 24 << 10, 40 << 10], [90_000, 50_000, 200_000]]
    {
        for gfp in [Gfp::KERNEL, Gfp::ATOMIC, Gfp::KERNEL | Gfp::DMA] {
            let dirty = [(); 20].map(|()| mm.kmalloc(more, gfp));
            dirty.iter().filter(|block| !block.is_null()).for_each(|block| unsafe { block.write_bytes(0x55, more) });
            dirty.iter().for_each(|block| unsafe { mm.kfree(*block) });
            let mut block = mm.kmalloc(first, gfp | Gfp::ZERO);
            unsafe { block.write_bytes(0x42, first) };
            for size in [less, more] {
                let new = unsafe { mm.krealloc(block, size, gfp | Gfp::ZERO) };
                assert!(!new.is_null(), "{size} {gfp:?}");
                block = new;
            }
            assert!((0..less).all(|at| unsafe { block.add(at).read() } == 0x42));
            assert!((less..more).all(|at| unsafe { block.add(at).read() } == 0), "{first} {less} {more} {gfp:?}");
            unsafe { mm.kfree(block) };
        }
    }
    mm.verify().unwrap();
}
