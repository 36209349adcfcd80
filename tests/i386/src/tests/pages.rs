//! Frames, zones, flags, the buddy system, page calls: rows A to E.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::array::from_fn;
use core::cell::RefCell;
use core::ptr::with_exposed_provenance_mut as pointer;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use slabwright::error::AllocError;
use slabwright::gfp::Gfp;
use slabwright::machine::i386::layout::{DMA_END, PAGE_OFFSET};
use slabwright::machine::i386::{I386, boot, memory, paging, reports};
use slabwright::machine::{Frames, MAX_NODES, NR_ZONES, ZoneKind};
use slabwright::mm::ShrinkControl;
use slabwright::page::{Kind, Page, PageList, flag};
use slabwright::printk;
use slabwright::slab::SlabFlags;
use slabwright::sync::Lock;
use slabwright::types::{MAX_ORDER, NR_ORDERS, Order, PAGE_SHIFT, PAGE_SIZE, Pfn, PhysAddr};
use slabwright::zone::buddy::{Buddy, Event, Map, Need, Want};
use slabwright::zone::{MigrateType, Watermarks, ZONES, ZoneInfo, ZoneStats};

use super::{Test, destroy_cache, free_pages, has_highmem, put_page};
use crate::kernel::HEAP;

pub const TESTS: &[Test] = &[
    ("A1 descriptors of 32 bytes, at the place of their frame", descriptors),
    ("A6 A7 A8 address, frame and descriptor lead to each other", inverse),
    ("A10 F5 blocks are physically adjacent", adjacent),
    ("A11 E4 E9 E11 what was had as an address is freed by its descriptor, and the other way round", either_way),
    ("B1 B2 B3 E3 nodes as the command line divides memory", nodes),
    ("B4 B5 B6 B7 B8 zones between their borders", zone_borders),
    ("B9 ZONE_MOVABLE is for what can be moved only", movable_zone),
    ("B10 C5 below min only __GFP_HIGH is served, and not to the end", marks),
    ("C6 C7 C8 zone flags lead to their zones", zone_flags),
    ("C9 E6 zeroed pages are zero", zeroed),
    ("C1 flags that contradict each other are refused", contradictions),
    ("C12 who wants an address is not served from HIGHMEM", addresses),
    ("D1 D2 D9 splitting and merging leave what was there", buddy_restores),
    ("D14 a run of five pages takes five", exact),
    ("C3 C4 C13 modifiers: which go together", modifiers),
    ("D4 memory that is free in single pages is useless for larger orders", fragmentation),
    ("E2 E4 E5 E7 E8 E10 E11 E12 the calls by their names", calls),
];

/// Those that need megabytes.
pub const ROOMY: &[Test] = &[
    ("A4 E1 E9 every order to 10, none above", orders),
    ("A5 D13 zones, buddy system and per-CPU lists account for each frame", accounts),
    ("B10 below low the idle loop makes room, up to high", balanced),
    ("B11 hot pages come back first, cold ones last", hot_and_cold),
    ("D10 a split and its undoing, step by step", buddy_in_action),
    ("D3 D5 D6 requests of different mobility use different pageblocks", mobility),
    ("D5 where no pageblock is left a type claims another's, or steals from it", claims_and_steals),
    ("D13 single pages come from per-CPU lists", percpu_lists),
    ("D12 C13 who is served when memory runs out, and who is refused", forced_failure),
    ("C2 C3 C4 C10 D7 a shrinker gives blocks back, to requests with __GFP_FS only", reclaimable),
];

fn pages() -> &'static slabwright::zone::PageAllocator<I386> {
    HEAP.pages()
}

/// Drops a reference of a test's own to a block, which it does not use any more. What it gives back twice, to see that
/// refused, nobody has meanwhile.
fn put_pages(pfn: Pfn, order: Order) -> bool {
    // SAFETY: see above.
    unsafe { pages().put_pages(&I386, pfn, order, true) }
}

/// The same by address.
fn free_at(address: *mut u8, order: Order) -> bool {
    // SAFETY: see above.
    unsafe { pages().free_pages_at(&I386, address, order, true) }
}

/// Frees a run of a test's own.
fn free_exact(address: *mut u8) -> bool {
    // SAFETY: see above.
    unsafe { pages().free_pages_exact(&I386, address, true) }
}

/// Frees a page of a test's own that is in no cache.
fn free_cold(pfn: Pfn) -> bool {
    // SAFETY: see above.
    unsafe { pages().free_cold(&I386, pfn, Order::ZERO, true) }
}

/// The figures once nothing is kept on per-CPU lists.
fn drained() -> ZoneStats {
    HEAP.trim();
    pages().drain(&I386);
    pages().stats(&I386)
}

fn zone(kind: ZoneKind) -> ZoneInfo {
    pages().zone(&I386, 0, kind)
}

fn low_zones() -> impl Iterator<Item = ZoneKind> {
    ZONES.into_iter().filter(|kind| *kind <= ZoneKind::Normal)
}

fn order(n: u8) -> Order {
    Order::new(n).expect("an order")
}

fn descriptors() {
    assert_eq!(size_of::<Page>(), 32);
    let first = &raw const *I386.page(Pfn(0));
    for pfn in [1, 255, memory::frames() - 1] {
        assert_eq!((&raw const *I386.page(Pfn(pfn))).addr() - first.addr(), 32 * pfn as usize);
    }
    let pfn = pages().alloc_page(&I386, Gfp::KERNEL).expect("a page");
    let page = I386.page(pfn);
    assert_eq!((page.kind(), page.refs(), page.order()), (Kind::Allocated, 1, Order::ZERO));
    page.set(flag::OWNER_PRIV);
    assert!(page.has(flag::OWNER_PRIV));
    page.clear(flag::OWNER_PRIV);
    assert!(!page.has(flag::OWNER_PRIV));
    assert!(put_page(pfn));
}

fn orders() {
    // What earlier tests left in sheaves may lie in the last whole block of a small machine.
    HEAP.trim();
    for n in 0..=MAX_ORDER {
        let Some(pfn) = pages().alloc_pages(&I386, Gfp::KERNEL, order(n), None) else {
            panic!("no block of order {n}");
        };
        assert_eq!(pfn.0 % order(n).pages(), 0, "a block is aligned to its size");
        assert!(put_pages(pfn, order(n)));
        assert!(!put_pages(pfn, order(n)), "freed twice");
    }
    assert_eq!(Order::new(11), None);
    assert_eq!(HEAP.alloc_pages(Gfp::KERNEL, 11, None), Err(AllocError::Invalid));
    assert_eq!(Order::holding(1025), None);
}

fn inverse() {
    let low = (memory::high_memory() - PAGE_OFFSET) >> PAGE_SHIFT;
    for n in 0..low {
        let pfn = Pfn(n as u32);
        let address = I386.virt(pfn);
        assert_eq!(address.addr(), PAGE_OFFSET + n * PAGE_SIZE);
        assert_eq!(I386.pfn(address.wrapping_add(PAGE_SIZE - 1)), Some(pfn));
    }
    assert_eq!(I386.pfn(core::ptr::with_exposed_provenance(memory::high_memory())), None);
    assert_eq!(I386.pfn(core::ptr::with_exposed_provenance(PAGE_OFFSET - 1)), None);
    if has_highmem() {
        assert!(I386.virt(Pfn(low as u32)).is_null(), "HIGHMEM has no address");
    }
}

fn adjacent() {
    let block = pages().alloc_pages(&I386, Gfp::KERNEL, order(5), None).expect("a block");
    let start = I386.virt(block).addr();
    for n in 0..32 {
        let found = paging::translate(start + n * PAGE_SIZE).expect("it is mapped");
        assert_eq!(found.frame, block.add(n as u32));
    }
    assert!(put_pages(block, order(5)));
}

/// Takes and gives blocks at random, and compares what is free with what is not held.
fn accounts() {
    let mut held = [(Pfn::NONE, Order::ZERO); 48];
    let base = drained();
    let missing = |stats: &ZoneStats| pages().managed() - stats.all.free - stats.pcp_pages - stats.own_pages;
    let (others, mut taken, mut seed) = (missing(&base), 0, 7u32);
    for round in 0..3000 {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let slot = &mut held[(seed >> 16) as usize % 48];
        if slot.0.is_some() {
            assert!(put_pages(slot.0, slot.1));
            taken -= u64::from(slot.1.pages());
            slot.0 = Pfn::NONE;
        } else {
            let n = order([0, 0, 0, 1, 2, 3, 5][(seed >> 8) as usize % 7]);
            let gfp = [Gfp::KERNEL, Gfp::KERNEL.with(Gfp::MOVABLE), Gfp::HIGHUSER_MOVABLE][(seed >> 4) as usize % 3];
            *slot = (pages().alloc_pages(&I386, gfp, n, None).expect("a block"), n);
            taken += u64::from(n.pages());
        }
        assert_eq!(missing(&pages().stats(&I386)), others + taken, "in round {round}");
    }
    if let Err(what) = pages().verify(&I386) {
        panic!("{what}");
    }
    let live = held.into_iter().filter(|(pfn, _)| pfn.is_some());
    live.for_each(|(pfn, n)| assert!(put_pages(pfn, n)));
    assert_eq!(missing(&drained()), others);
}

fn either_way() {
    for n in [0, 3] {
        let block = pages().alloc_pages(&I386, Gfp::KERNEL, order(n), None).expect("a block");
        assert!(free_at(I386.virt(block), order(n)));
        assert!(!put_pages(block, order(n)), "it is free already");
        let at = pages().get_free_pages(&I386, Gfp::KERNEL, order(n));
        let block = I386.pfn(at).expect("low memory");
        assert!(put_pages(block, order(n)));
        assert!(!free_at(at, order(n)), "it is free already");
    }
    // With two references it takes two.
    let block = pages().alloc_pages(&I386, Gfp::KERNEL, order(1), None).expect("a block");
    HEAP.get_page(block).expect("it is allocated");
    assert!(put_pages(block, order(1)));
    assert_eq!((I386.page(block).kind(), I386.page(block).refs()), (Kind::Allocated, 1));
    assert!(put_pages(block, order(1)) && !put_pages(block, order(1)));
}

fn nodes() {
    let asked = boot::options().nodes;
    let present_at = |node| ZONES.into_iter().map(|kind| pages().zone(&I386, node, kind).present).sum();
    let present: Vec<u64> = (0..MAX_NODES).map(present_at).collect();
    let free: [[u64; NR_ZONES]; MAX_NODES] =
        from_fn(|node| from_fn(|kind| pages().zone(&I386, node, ZONES[kind]).free));
    let with_memory = present.iter().filter(|pages| **pages > 0).count();
    assert_eq!(with_memory, memory::nodes());
    if asked > 1 && memory::frames() >= 1 << 14 {
        assert_eq!(with_memory, asked);
    }
    let from = |node, gfp| pages().alloc_pages_node(&I386, node, gfp, Order::ZERO);
    for (node, free) in free.iter().enumerate().take(with_memory) {
        let pfn = from(node, Gfp::KERNEL).expect("a page");
        // Low memory of a node may be none: then a neighbour's serves.
        let low = low_zones().any(|kind| free[kind as usize] > 64);
        assert!(!low || I386.page(pfn).node() == node, "a page of node {}", I386.page(pfn).node());
        assert!(put_page(pfn));
    }
    if with_memory > 1 {
        // Node 1 to its end: then the near one serves, but not those who want no other.
        let here = Gfp::KERNEL.with(Gfp::THISNODE).with(Gfp::NORETRY);
        let mut taken = PageList::new();
        while let Some(pfn) = from(1, here) {
            assert_eq!(I386.page(pfn).node(), 1);
            taken.push_front(pfn, |pfn| I386.page(pfn));
        }
        assert!(!taken.is_empty());
        let other = from(1, Gfp::KERNEL.with(Gfp::NORETRY)).expect("a page of another node");
        assert_ne!(I386.page(other).node(), 1);
        assert!(put_page(other));
        give_back(taken);
    }
}

fn zone_borders() {
    let low = (memory::high_memory() - PAGE_OFFSET) as u64;
    let mut seen = [0u64; 5];
    for n in 0..memory::frames() {
        let page = I386.page(Pfn(n));
        if !matches!(page.kind(), Kind::Buddy | Kind::Pcp) {
            continue;
        }
        let at = PhysAddr::of(Pfn(n)).0;
        let expected = match at {
            _ if n >= memory::movable_start().0 => ZoneKind::Movable,
            at if at >= low => ZoneKind::HighMem,
            at if at >= DMA_END => ZoneKind::Normal,
            _ => ZoneKind::Dma,
        };
        assert_eq!(page.zone(), expected as usize, "frame {n:#x}");
        seen[page.zone()] += 1;
    }
    assert!(seen[ZoneKind::Dma as usize] > 0);
    assert_eq!(zone(ZoneKind::Dma32).present, 0, "B6: there is no ZONE_DMA32 here");
    if memory::movable_start().0 == u32::MAX {
        assert_eq!(seen[ZoneKind::HighMem as usize] > 0, has_highmem());
    }
}

fn movable_zone() {
    let present: u64 = (0..MAX_NODES).map(|node| pages().zone(&I386, node, ZoneKind::Movable).present).sum();
    let asked = boot::options().movable;
    assert_eq!(present > 0, asked > 0 && memory::movable_start().0 < memory::frames());
    let movable = pages().alloc_page(&I386, Gfp::HIGHUSER_MOVABLE).expect("a page");
    assert_eq!(
        I386.page(movable).zone() == ZoneKind::Movable as usize,
        present > 0,
        "B9: where movable pages come from"
    );
    assert!(put_page(movable));
    let mut taken = exhaust(Gfp::KERNEL.with(Gfp::HIGHMEM).with(Gfp::NORETRY));
    let mut left = PageList::new();
    while let Some(pfn) = taken.pop_front(|pfn| I386.page(pfn)) {
        assert_ne!(I386.page(pfn).zone(), ZoneKind::Movable as usize, "an unmovable page in ZONE_MOVABLE");
        left.push_front(pfn, |pfn| I386.page(pfn));
    }
    give_back(left);
}

/// Takes pages until there are none. They are linked by their descriptors: a list elsewhere would need memory itself.
fn exhaust(gfp: Gfp) -> PageList {
    let mut taken = PageList::new();
    while let Some(pfn) = pages().alloc_page(&I386, gfp) {
        taken.push_front(pfn, |pfn| I386.page(pfn));
    }
    taken
}

fn give_back(mut taken: PageList) {
    while let Some(pfn) = taken.pop_front(|pfn| I386.page(pfn)) {
        assert!(put_page(pfn));
    }
    if let Err(what) = pages().verify(&I386) {
        panic!("{what}");
    }
}

fn marks() {
    let before = drained();
    let normal = exhaust(Gfp::KERNEL.with(Gfp::NORETRY));
    for kind in [ZoneKind::Dma, ZoneKind::Normal] {
        let info = zone(kind);
        assert!(
            info.free >= u64::from(info.marks.min),
            "{kind:?} went below its mark: {} of {}",
            info.free,
            info.marks.min
        );
    }
    let more = exhaust(Gfp::ATOMIC);
    assert!(!more.is_empty(), "__GFP_HIGH may use the reserve");
    assert!(!normal.is_empty());
    give_back(more);
    give_back(normal);
    let after = drained();
    assert_eq!(after.all.free, before.all.free);
}

/// Objects that a shrinker may have back, linked through their first words; and how many.
static KEPT: Lock<(usize, usize)> = Lock::new((0, 0));
static KEPT_IN: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" fn count_kept(_: *mut u8, _: &mut ShrinkControl) -> usize {
    KEPT.lock(&I386).1
}

unsafe extern "C" fn scan_kept(_: *mut u8, control: &mut ShrinkControl) -> usize {
    let cache = HEAP.kmem_cache_from_raw(KEPT_IN.load(Relaxed)).expect("the cache").cache();
    for n in 0..control.nr_to_scan {
        let mut kept = KEPT.lock(&I386);
        if kept.1 == 0 {
            return n;
        }
        let object = pointer::<usize>(kept.0);
        // SAFETY: objects in the list are live, and hold the next one's address; this one leaves it.
        unsafe {
            *kept = (object.read(), kept.1 - 1);
            drop(kept);
            HEAP.kmem_cache_free(cache, object.cast(), 0).expect("an object of the cache");
        }
    }
    control.nr_to_scan
}

/// Runs `body` with a cache of `objects` objects of 2000 bytes, which a shrinker may have back.
fn with_shrinker(objects: usize, body: impl FnOnce()) {
    let flags = SlabFlags::RECLAIM_ACCOUNT.with(SlabFlags::NO_MERGE);
    let cache = HEAP.kmem_cache_create("inode", 2000, 0, flags, None).expect("a cache");
    KEPT_IN.store(cache.to_raw(), Relaxed);
    for _ in 0..objects {
        let object = HEAP.kmem_cache_alloc(cache.cache(), Gfp::KERNEL, 0).cast::<usize>();
        assert!(!object.is_null());
        let mut kept = KEPT.lock(&I386);
        // SAFETY: the object is this test's.
        unsafe { object.write(kept.0) };
        *kept = (object.expose_provenance(), kept.1 + 1);
    }
    let data = (&raw const KEPT).cast_mut().cast::<u8>();
    // SAFETY: the callbacks may be called at any time.
    unsafe { HEAP.register_shrinker(data, count_kept, scan_kept, 64) }.expect("a place");
    body();
    assert!(HEAP.unregister_shrinker(data));
    let mut control = ShrinkControl { gfp: 0, node: 0, nr_to_scan: usize::MAX >> 1, nr_scanned: 0 };
    // SAFETY: as the allocator calls it.
    unsafe { scan_kept(data, &mut control) };
    assert_eq!(destroy_cache(cache), Ok(()));
}

/// Objects that the shrinker still keeps.
fn kept() -> usize {
    KEPT.lock(&I386).1
}

fn balanced() {
    const OBJECTS: usize = 1200;
    with_shrinker(OBJECTS, || {
        drained();
        assert!(!HEAP.balance(), "no node lacks anything");
        let is_short = |mark: fn(&Watermarks) -> u32| pages().is_short(&I386, mark);
        let gfp = Gfp::KERNEL.with(Gfp::NORETRY).with(Gfp::THISNODE);
        let take = || pages().alloc_pages_node(&I386, 0, gfp, Order::ZERO);
        let mut taken = PageList::new();
        // Also with what the per-CPU lists have.
        while !is_short(|marks| marks.low) {
            let pfn = take().expect("there is more than the low mark");
            taken.push_front(pfn, |pfn| I386.page(pfn));
            if is_short(|marks| marks.low) {
                pages().drain(&I386);
            }
        }
        // Between low and min everybody is served.
        let pfn = take().expect("a page above the min mark");
        taken.push_front(pfn, |pfn| I386.page(pfn));
        assert!(HEAP.balance(), "a node is below its low mark");
        assert!(!is_short(|marks| marks.high), "{} of {OBJECTS} objects are left, but it lacks pages", kept());
        assert!(
            (1..OBJECTS).contains(&kept()),
            "{} of {OBJECTS} objects are left: it went on beyond the high mark",
            kept()
        );
        assert!(!HEAP.balance(), "and nothing until the next time");
        give_back(taken);
    });
}

fn hot_and_cold() {
    // The per-CPU lists are those of the zone that a request names; ZONE_DMA alone has them for requests that name it.
    let normal = zone(ZoneKind::Normal).present > 0;
    let gfp = if normal { Gfp::KERNEL } else { Gfp::KERNEL.with(Gfp::DMA) };
    let take = || pages().alloc_page(&I386, gfp).expect("a page");
    let [a, b, cold] = [take(), take(), take()];
    assert!(put_page(a) && put_page(b));
    assert_eq!([take(), take()], [b, a], "last in, first out");
    assert!(put_page(a) && put_page(b));
    assert!(free_cold(cold));
    assert_eq!([take(), take()], [b, a], "the cold page waits, though it was freed last");
    assert!(put_page(a) && put_page(b));
}

fn zone_flags() {
    let take = |gfp: Gfp| {
        let pfn = pages().alloc_page(&I386, gfp).expect("a page");
        let zone = I386.page(pfn).zone();
        assert!(put_page(pfn));
        (zone, pfn)
    };
    let (zone, pfn) = take(Gfp::KERNEL.with(Gfp::DMA));
    assert_eq!(zone, ZoneKind::Dma as usize);
    assert!(PhysAddr::of(pfn).0 < DMA_END);
    assert!(take(Gfp::KERNEL.with(Gfp::DMA32)).0 <= ZoneKind::Normal as usize);
    let highest = if has_highmem() { ZoneKind::HighMem } else { ZoneKind::Normal };
    if memory::high_memory() - PAGE_OFFSET > DMA_END as usize {
        assert_eq!(take(Gfp::KERNEL.with(Gfp::HIGHMEM)).0, highest as usize);
        assert_eq!(take(Gfp::KERNEL).0, ZoneKind::Normal as usize);
    }
}

fn zeroed() {
    for n in [0, 3] {
        let dirty = pages().get_free_pages(&I386, Gfp::KERNEL, order(n));
        let len = order(n).bytes();
        // SAFETY: the block is this test's.
        unsafe { dirty.write_bytes(0xa5, len) };
        assert!(free_at(dirty, order(n)));
        let clean = pages().get_free_pages(&I386, Gfp::KERNEL.with(Gfp::ZERO), order(n));
        // SAFETY: as above.
        let bytes = unsafe { core::slice::from_raw_parts(clean, len) };
        assert!(bytes.iter().all(|byte| *byte == 0));
        assert!(free_at(clean, order(n)));
    }
}

fn contradictions() {
    for gfp in [Gfp::KERNEL.with(Gfp::DMA).with(Gfp::HIGHMEM), Gfp::KERNEL.with(Gfp::DMA).with(Gfp::DMA32)] {
        assert!(gfp.check().is_err());
        assert_eq!(pages().alloc_page(&I386, gfp), None);
    }
    assert_eq!(Gfp::ATOMIC.0, 0x820, "the kernel's own bits");
}

fn addresses() {
    let gfp = Gfp::KERNEL.with(Gfp::HIGHMEM);
    let before = reports();
    assert_eq!(HEAP.alloc_pages_exact(gfp, PAGE_SIZE), Err(AllocError::Invalid));
    assert_eq!(HEAP.admit_address(gfp), Err(AllocError::Invalid));
    assert_eq!(reports(), before + 2, "and that is said");
    let cache = HEAP.kmem_cache_create("low", 300, 0, SlabFlags::NO_MERGE, None).expect("a cache");
    assert_eq!(HEAP.kmem_getpages(cache.cache(), gfp, None), Err(AllocError::Invalid));
    for size in [1, 300, 5000, 20_000, 100_000] {
        let block = HEAP.kmalloc(size, gfp);
        assert!(I386.pfn(block).is_some(), "{size} bytes at {block:?}");
        // SAFETY: the block is this test's.
        unsafe {
            block.write_bytes(1, size);
            HEAP.kfree(block);
        }
    }
    let object = HEAP.kmem_cache_alloc(cache.cache(), gfp, 0);
    assert!(I386.pfn(object).is_some(), "an object at {object:?}");
    // SAFETY: the object is this test's.
    unsafe { HEAP.kmem_cache_free(cache.cache(), object, 0) }.expect("an object of the cache");
    assert_eq!(destroy_cache(cache), Ok(()));
}

fn free_blocks(stats: &ZoneStats) -> [u64; NR_ORDERS] {
    stats.all.blocks.map(|order| order.iter().map(|n| u64::from(*n)).sum())
}

fn buddy_restores() {
    let room = Vec::<Pfn>::with_capacity(pages().managed() as usize);
    let before = drained();
    let mut taken = room;
    while let Some(pfn) = pages().alloc_page(&I386, Gfp::KERNEL.with(Gfp::HIGHMEM).with(Gfp::NORETRY)) {
        taken.push(pfn);
        // Enough, where there is much.
        if taken.len() == 1 << 16 {
            break;
        }
    }
    // Neighbours come back far apart in time: 7 is prime to the number of pages, or leaves few out.
    let len = taken.len();
    let mut freed = 0;
    for start in 0..7 {
        for nth in (start..len).step_by(7) {
            assert!(put_page(taken[nth]));
            freed += 1;
        }
    }
    assert_eq!(freed, len);
    taken.clear();
    let after = drained();
    assert_eq!(free_blocks(&after), free_blocks(&before), "all merged again");
    drop(taken);
}

/// A buddy system of its own on one block, which writes down what it does.
struct Traced {
    first: Pfn,
    steps: RefCell<Vec<String>>,
}

impl Map for Traced {
    fn page(&self, pfn: Pfn) -> &Page {
        I386.page(pfn)
    }

    fn block_type(&self, _: Pfn) -> MigrateType {
        MigrateType::Unmovable
    }

    fn set_block_type(&self, _: Pfn, _: MigrateType) {}

    fn trace(&self, event: Event) {
        let at = |pfn: Pfn| pfn.0 - self.first.0;
        self.steps.borrow_mut().push(match event {
            Event::Take(pfn, order) => format!("take {} of order {}", at(pfn), order.get()),
            Event::Insert(pfn, order, _) => format!("insert {} of order {}", at(pfn), order.get()),
            Event::Merge(pfn, buddy, order) => format!("merge {} and {} of order {}", at(pfn), at(buddy), order.get()),
            Event::Claim(..) => "claim".into(),
        });
    }
}

/// Figure 1.5: eight pages of a block of 1024, and back.
const ACTION: &[&str] = &[
    "take 0 of order 10",
    "insert 8 of order 3",
    "insert 16 of order 4",
    "insert 32 of order 5",
    "insert 64 of order 6",
    "insert 128 of order 7",
    "insert 256 of order 8",
    "insert 512 of order 9",
    "merge 0 and 8 of order 3",
    "take 8 of order 3",
    "merge 0 and 16 of order 4",
    "take 16 of order 4",
    "merge 0 and 32 of order 5",
    "take 32 of order 5",
    "merge 0 and 64 of order 6",
    "take 64 of order 6",
    "merge 0 and 128 of order 7",
    "take 128 of order 7",
    "merge 0 and 256 of order 8",
    "take 256 of order 8",
    "merge 0 and 512 of order 9",
    "take 512 of order 9",
    "insert 0 of order 10",
];

fn buddy_in_action() {
    drained();
    let gfp = Gfp::KERNEL.with(Gfp::HIGHMEM).with(Gfp::MOVABLE);
    let block = pages().alloc_pages(&I386, gfp, Order::MAX, None).expect("a largest block");
    let head = I386.page(block);
    let before = (head.flags(), head.cache(), head.refs(), head.mapcount());
    let map = Traced { first: block, steps: RefCell::default() };
    let mut buddy = Buddy::new();
    buddy.set_home(head.zone(), head.node());
    buddy.free(&map, block, Order::MAX, 0, false);
    map.steps.take();
    let found = buddy.find(&map, Need::block(order(3), MigrateType::Unmovable, Want::Any)).expect("it is free");
    assert_eq!(buddy.take(&map, found, 8).0, block);
    buddy.free(&map, block, order(3), 0, false);
    let steps = map.steps.take();
    steps.iter().for_each(|step| printk!("buddy: {step}\n"));
    assert_eq!(steps, ACTION);
    let found = buddy.find(&map, Need::block(Order::MAX, MigrateType::Unmovable, Want::Any)).expect("all is free");
    assert_eq!(buddy.take(&map, found, 1024).0, block);
    // As the zone gave it.
    head.set_flags(before.0);
    head.set_cache(before.1);
    head.set_refs(before.2);
    head.set_mapcount(before.3);
    head.set_kind(Kind::Allocated, Order::MAX);
    assert!(put_pages(block, Order::MAX));
    if let Err(what) = pages().verify(&I386) {
        panic!("{what}");
    }
}

fn mobility() {
    drained();
    let block_of = |pfn: Pfn| pfn.0 >> 9;
    let take = |gfp: Gfp| pages().alloc_pages(&I386, gfp, order(3), None).expect("a block");
    let unmovable: Vec<Pfn> = (0..8).map(|_| take(Gfp::KERNEL)).collect();
    let movable: Vec<Pfn> = (0..8).map(|_| take(Gfp::KERNEL.with(Gfp::MOVABLE))).collect();
    // Below twelve megabytes of memory they are not kept apart.
    assert!(pages().managed() >= 6 * 512);
    let mixed = movable.iter().filter(|m| unmovable.iter().any(|u| block_of(*u) == block_of(**m))).count();
    assert_eq!(mixed, 0, "movable and unmovable pages in one pageblock");
    unmovable.into_iter().chain(movable).for_each(|pfn| assert!(put_pages(pfn, order(3))));
}

fn claims_and_steals() {
    let info = || {
        let stats = drained();
        let counts = (stats.all.claims, stats.all.steals);
        let of = |kind| -> u64 {
            let zones = ZONES.into_iter();
            let nodes = |zone| (0..memory::nodes()).map(move |node| pages().pageblocks(node, zone)[kind as usize]);
            zones.flat_map(nodes).map(u64::from).sum()
        };
        (counts, of(MigrateType::Unmovable), of(MigrateType::Movable))
    };
    let ((claims, steals), unmovable, movable) = info();
    assert!(movable > 0, "what nobody uses is movable");
    // All of low memory: each pageblock that was another's is claimed, and what is in blocks of which too much is in
    // use is stolen.
    let taken = exhaust(Gfp::KERNEL.with(Gfp::NORETRY));
    let ((claims_now, steals_now), unmovable_now, movable_now) = info();
    assert!(claims_now > claims && claims_now + steals_now > claims + steals);
    assert!(unmovable_now > unmovable && movable_now < movable, "{unmovable} and {movable} pageblocks");
    give_back(taken);
}

fn percpu_lists() {
    let gfp = if zone(ZoneKind::Normal).present > 0 { Gfp::KERNEL } else { Gfp::KERNEL.with(Gfp::DMA) };
    let hits = pages().stats(&I386).pcp_hits;
    for _ in 0..50 {
        let pfn = pages().alloc_page(&I386, gfp).expect("a page");
        assert!(put_page(pfn));
    }
    assert!(pages().stats(&I386).pcp_hits >= hits + 49);
}

fn forced_failure() {
    let gfp = Gfp::KERNEL.with(Gfp::HIGHMEM).with(Gfp::NORETRY);
    // HIGHMEM, and then of low memory what is kept from those who could use that.
    let held = [exhaust(gfp), exhaust(gfp.without(Gfp::HIGHMEM))];
    let served = |gfp: Gfp, n| match pages().alloc_pages(&I386, gfp, order(n), None) {
        Some(pfn) => put_pages(pfn, order(n)),
        None => false,
    };
    let urgent = Gfp::KERNEL.with(Gfp::MEMALLOC);
    // At the min mark of the zones that KERNEL may use.
    for (gfp, n, expected) in [
        (gfp, 0, false),
        (gfp, 4, false),
        (Gfp::KERNEL, 0, false),
        (Gfp::NOWAIT, 0, false),
        (Gfp::NOIO, 0, false),
        (Gfp::ATOMIC.with(Gfp::NOMEMALLOC), 0, false),
        (Gfp::ATOMIC, 0, true),
        (Gfp::KERNEL.with(Gfp::HIGH), 0, true),
        (urgent, 0, true),
        (urgent.with(Gfp::NOMEMALLOC), 0, false),
    ] {
        assert_eq!(served(gfp, n), expected, "{gfp:?} of order {n}");
    }
    let atomic = exhaust(Gfp::ATOMIC);
    for (gfp, expected) in [(Gfp::ATOMIC, false), (urgent, true)] {
        assert_eq!(served(gfp, 0), expected, "{gfp:?} at the end of the reserve");
    }
    let last = exhaust(urgent);
    assert!(!last.is_empty() && !served(urgent, 0), "not even a page is left");
    // The same one that was refused is served when there is memory again.
    give_back(last);
    give_back(atomic);
    held.into_iter().for_each(give_back);
    assert!(served(gfp, 4) && served(Gfp::NOWAIT, 0) && served(Gfp::KERNEL, 10));
}

fn reclaimable() {
    const OBJECTS: usize = 1200;
    let of_type = || -> u32 {
        let zones = ZONES.into_iter();
        let nodes = |zone| (0..memory::nodes()).map(move |node| pages().pageblocks(node, zone));
        zones.flat_map(nodes).map(|types| types[MigrateType::Reclaimable as usize]).sum()
    };
    let before = of_type();
    with_shrinker(OBJECTS, || {
        assert!(of_type() > before, "the slabs lie in pageblocks of their own");
        // Single pages are all that is left, and none of them for this.
        let held = exhaust(Gfp::KERNEL.with(Gfp::NORETRY));
        for gfp in [Gfp::NOFS, Gfp::NOIO, Gfp::NOWAIT, Gfp::KERNEL.with(Gfp::NORETRY)] {
            assert!(HEAP.alloc_pages(gfp, 5, None).is_err(), "{gfp:?}");
            assert_eq!(kept(), OBJECTS, "{gfp:?} called the shrinker");
        }
        let block = HEAP.alloc_pages(Gfp::KERNEL, 5, None).expect("the slabs' pages, merged to a block");
        assert_eq!(kept(), 0);
        free_pages(block, 5);
        give_back(held);
    });
}

fn exact() {
    drained();
    let free = |stats: &ZoneStats| stats.all.free + stats.pcp_pages;
    let before = free(&pages().stats(&I386));
    let run = pages().alloc_pages_exact(&I386, Gfp::KERNEL, 5 * PAGE_SIZE);
    assert_eq!(before - free(&pages().stats(&I386)), 5);
    assert!(free_exact(run));
}

fn modifiers() {
    assert!(Gfp::KERNEL.may_block() && Gfp::KERNEL.may_io() && Gfp::KERNEL.has(Gfp::FS));
    assert!(Gfp::NOIO.may_block() && !Gfp::NOIO.may_io());
    assert!(Gfp::NOFS.may_io() && !Gfp::NOFS.has(Gfp::FS));
    assert!(!Gfp::ATOMIC.may_block() && Gfp::ATOMIC.has(Gfp::HIGH));
    assert!(Gfp::ATOMIC.with(Gfp::NOFAIL).check().is_err());
    assert!(Gfp::KERNEL.with(Gfp::MEMALLOC).with(Gfp::NOMEMALLOC).check().is_err());
    // Where a node has no memory left THISNODE fails and nothing else does.
    let here = Gfp::KERNEL.with(Gfp::THISNODE);
    let pfn = pages().alloc_pages_node(&I386, 0, here, Order::ZERO);
    assert!(pfn.is_none_or(|pfn| I386.page(pfn).node() == 0));
    if let Some(pfn) = pfn {
        assert!(put_page(pfn));
    }
}

fn fragmentation() {
    drained();
    let zones = |kind| (0..MAX_NODES).map(move |node| pages().zone(&I386, node, kind));
    for zone in ZONES.into_iter().flat_map(zones).filter(|zone| zone.present > 0) {
        assert_eq!(zone.unusable(Order::ZERO), 0, "a single page is never useless");
        assert!(zone.unusable(Order::MAX) >= zone.unusable(order(5)));
    }
    in_single_pages(|| {
        for zone in low_zones().flat_map(zones).filter(|zone| zone.free > 64) {
            assert_eq!(zone.unusable(Order::ZERO), 0);
            assert!(
                zone.unusable(order(1)) > 900,
                "{} of 1000 free pages are of no use for pairs",
                zone.unusable(order(1))
            );
        }
        let gfp = Gfp::KERNEL.with(Gfp::MEMALLOC).with(Gfp::NORETRY);
        assert_eq!(pages().alloc_pages(&I386, gfp, order(4), None), None);
    });
}

/// Runs `body` where every other page of low memory is free.
pub fn in_single_pages(body: impl FnOnce()) {
    HEAP.trim();
    let mut taken = exhaust(Gfp::KERNEL.with(Gfp::MEMALLOC));
    let mut odd = PageList::new();
    while let Some(pfn) = taken.pop_front(|pfn| I386.page(pfn)) {
        if pfn.0 % 2 == 0 {
            assert!(put_page(pfn));
        } else {
            odd.push_front(pfn, |pfn| I386.page(pfn));
        }
    }
    pages().drain(&I386);
    body();
    give_back(odd);
}

fn calls() {
    let p = pages();
    let page = p.get_free_pages(&I386, Gfp::KERNEL, Order::ZERO);
    assert!(!page.is_null() && page.addr().is_multiple_of(PAGE_SIZE));
    assert!(!free_at(page.wrapping_add(1), Order::ZERO), "not a page's start");
    assert!(free_at(page, Order::ZERO));
    assert!(!free_at(page, Order::ZERO), "E12: freed twice");
    // SAFETY: the page is this test's.
    unsafe {
        let dirty = p.get_free_pages(&I386, Gfp::KERNEL, Order::ZERO);
        dirty.write_bytes(0xa5, PAGE_SIZE);
        assert!(free_at(dirty, Order::ZERO));
    }
    let zeroed = p.get_zeroed_page(&I386, Gfp::KERNEL);
    // SAFETY: as above.
    assert!(unsafe { core::slice::from_raw_parts(zeroed, PAGE_SIZE) }.iter().all(|byte| *byte == 0));
    assert!(free_at(zeroed, Order::ZERO));
    let dma = p.get_dma_pages(&I386, Gfp::KERNEL, order(2));
    assert!(dma.addr() - PAGE_OFFSET < DMA_END as usize);
    assert!(free_at(dma, order(2)));
    let exact = p.alloc_pages_exact(&I386, Gfp::KERNEL, 5 * PAGE_SIZE);
    assert!(!exact.is_null());
    assert!(free_exact(exact));
    assert!(free_at(core::ptr::null_mut(), Order::ZERO));
}
