//! Frames, zones, flags, the buddy system, page calls: rows A to E.

use alloc::vec::Vec;

use slabwright::gfp::Gfp;
use slabwright::machine::i386::layout::{DMA_END, PAGE_OFFSET};
use slabwright::machine::i386::{I386, boot, memory, paging};
use slabwright::machine::{Frames, ZoneKind};
use slabwright::page::{Kind, Page, PageList, flag};
use slabwright::types::{MAX_ORDER, NR_ORDERS, Order, PAGE_SHIFT, PAGE_SIZE, Pfn, PhysAddr};
use slabwright::zone::{ZoneInfo, ZoneStats};

use super::{Test, has_highmem};
use crate::kernel::HEAP;

pub const TESTS: &[Test] = &[
    ("A1 descriptors of 32 bytes, at the place of their frame", descriptors),
    ("A4 E1 E9 every order to 10, none above", orders),
    ("A6 A7 A8 address, frame and descriptor lead to each other", inverse),
    ("A10 F5 blocks are physically adjacent", adjacent),
    ("B1 B2 B3 E3 nodes as the command line divides memory", nodes),
    ("B4 B5 B6 B7 B8 zones between their borders", zone_borders),
    ("B9 ZONE_MOVABLE is for what can be moved only", movable_zone),
    ("B10 C5 the marks: refusal above the reserve, which __GFP_HIGH may use", marks),
    ("B11 hot pages come back first, cold ones last", hot_and_cold),
    ("C6 C7 C8 zone flags lead to their zones", zone_flags),
    ("C9 E6 zeroed pages are zero", zeroed),
    ("C1 C12 flags that contradict each other are refused", contradictions),
    ("D1 D2 D9 splitting and merging leave what was there", buddy_restores),
    ("D10 a split and its undoing, order by order", buddy_in_action),
    ("D3 D5 D6 requests of different mobility use different pageblocks", mobility),
    ("D13 single pages come from per-CPU lists", percpu_lists),
    ("D12 a request that cannot be served is refused, and served when there is memory again", forced_failure),
    ("D14 a run of five pages takes five", exact),
    ("C3 C4 C13 modifiers: which go together", modifiers),
    ("D4 the share that fragmentation makes useless", fragmentation),
    ("E2 E4 E5 E7 E8 E10 E11 E12 the calls by their names", calls),
];

fn pages() -> &'static slabwright::zone::PageAllocator<I386> {
    HEAP.pages()
}

/// The figures once nothing is kept on per-CPU lists.
fn drained() -> ZoneStats {
    HEAP.trim();
    pages().drain(&I386);
    pages().stats(&I386)
}

fn zone(stats: &ZoneStats, kind: ZoneKind) -> ZoneInfo {
    stats.zones[0][kind as usize]
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
    assert!(pages().put_page(&I386, pfn, true));
}

fn orders() {
    for n in 0..=MAX_ORDER {
        let Some(pfn) = pages().alloc_pages(&I386, Gfp::KERNEL, order(n), None) else {
            panic!("no block of order {n}");
        };
        assert_eq!(pfn.0 % order(n).pages(), 0, "a block is aligned to its size");
        assert!(pages().put_pages(&I386, pfn, order(n), true));
        assert!(!pages().put_pages(&I386, pfn, order(n), true), "freed twice");
    }
    assert_eq!(Order::new(11), None);
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
    assert!(pages().put_pages(&I386, block, order(5), true));
}

fn nodes() {
    let asked = boot::options().nodes;
    let stats = pages().stats(&I386);
    let present: Vec<u64> = stats.zones.iter().map(|node| node.iter().map(|zone| zone.present).sum()).collect();
    let with_memory = present.iter().filter(|pages| **pages > 0).count();
    assert_eq!(with_memory, memory::nodes());
    if asked > 1 && memory::frames() >= 1 << 14 {
        assert_eq!(with_memory, asked);
    }
    for node in 0..with_memory {
        let pfn = pages().alloc_pages_node(&I386, node, Gfp::KERNEL, Order::ZERO).expect("a page");
        // Low memory of a node may be none: then a neighbour's serves.
        let low = stats.zones[node][..=ZoneKind::Normal as usize].iter().any(|zone| zone.free > 64);
        assert!(!low || I386.page(pfn).node() == node, "a page of node {}", I386.page(pfn).node());
        assert!(pages().put_page(&I386, pfn, true));
    }
}

fn zone_borders() {
    let stats = pages().stats(&I386);
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
    assert_eq!(zone(&stats, ZoneKind::Dma32).present, 0, "B6: there is no ZONE_DMA32 here");
    if memory::movable_start().0 == u32::MAX {
        assert_eq!(seen[ZoneKind::HighMem as usize] > 0, has_highmem());
    }
}

fn movable_zone() {
    let stats = pages().stats(&I386);
    let present: u64 = stats.zones.iter().map(|node| node[ZoneKind::Movable as usize].present).sum();
    let asked = boot::options().movable;
    assert_eq!(present > 0, asked > 0 && memory::movable_start().0 < memory::frames());
    let movable = pages().alloc_page(&I386, Gfp::HIGHUSER_MOVABLE).expect("a page");
    assert_eq!(
        I386.page(movable).zone() == ZoneKind::Movable as usize,
        present > 0,
        "B9: where movable pages come from"
    );
    assert!(pages().put_page(&I386, movable, true));
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
        assert!(pages().put_page(&I386, pfn, true));
    }
    if let Err(what) = pages().verify(&I386) {
        panic!("{what}");
    }
}

fn marks() {
    let before = drained();
    let normal = exhaust(Gfp::KERNEL.with(Gfp::NORETRY));
    let stats = pages().stats(&I386);
    for kind in [ZoneKind::Dma, ZoneKind::Normal] {
        let info = zone(&stats, kind);
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
    assert_eq!(after.total(|zone| zone.free), before.total(|zone| zone.free));
}

fn hot_and_cold() {
    // The per-CPU lists are those of the zone that a request names; ZONE_DMA alone has them for requests that name it.
    let normal = zone(&pages().stats(&I386), ZoneKind::Normal).present > 0;
    let gfp = if normal { Gfp::KERNEL } else { Gfp::KERNEL.with(Gfp::DMA) };
    let take = || pages().alloc_page(&I386, gfp).expect("a page");
    let (a, b) = (take(), take());
    assert!(pages().put_page(&I386, a, true) && pages().put_page(&I386, b, true));
    assert_eq!((take(), take()), (b, a), "last in, first out");
    assert!(pages().free_cold(&I386, a, Order::ZERO, true) && pages().put_page(&I386, b, true));
    let next = take();
    assert_eq!(next, b, "the cold page waits");
    assert!(pages().put_page(&I386, next, true));
}

fn zone_flags() {
    let take = |gfp: Gfp| {
        let pfn = pages().alloc_page(&I386, gfp).expect("a page");
        let zone = I386.page(pfn).zone();
        assert!(pages().put_page(&I386, pfn, true));
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
        assert!(pages().free_pages_at(&I386, dirty, order(n), true));
        let clean = pages().get_free_pages(&I386, Gfp::KERNEL.with(Gfp::ZERO), order(n));
        // SAFETY: as above.
        let bytes = unsafe { core::slice::from_raw_parts(clean, len) };
        assert!(bytes.iter().all(|byte| *byte == 0));
        assert!(pages().free_pages_at(&I386, clean, order(n), true));
    }
}

fn contradictions() {
    for gfp in [Gfp::KERNEL.with(Gfp::DMA).with(Gfp::HIGHMEM), Gfp::KERNEL.with(Gfp::DMA).with(Gfp::DMA32)] {
        assert!(gfp.check().is_err());
        assert_eq!(pages().alloc_page(&I386, gfp), None);
    }
    assert_eq!(Gfp::ATOMIC.0, 0x820, "the kernel's own bits");
}

fn free_blocks(stats: &ZoneStats) -> [u64; NR_ORDERS] {
    let mut blocks = [0; NR_ORDERS];
    for zone in stats.zones.as_flattened() {
        for (sum, order) in blocks.iter_mut().zip(&zone.blocks) {
            *sum += order.iter().map(|n| u64::from(*n)).sum::<u64>();
        }
    }
    blocks
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
            assert!(pages().put_page(&I386, taken[nth], true));
            freed += 1;
        }
    }
    assert_eq!(freed, len);
    taken.clear();
    let after = drained();
    assert_eq!(free_blocks(&after), free_blocks(&before), "all merged again");
    drop(taken);
}

fn buddy_in_action() {
    let before = free_blocks(&drained());
    let block = pages().alloc_pages(&I386, Gfp::KERNEL, Order::MAX, None).expect("a largest block");
    let taken = free_blocks(&pages().stats(&I386));
    assert_eq!(taken[10], before[10] - 1);
    assert!(pages().put_pages(&I386, block, Order::MAX, true));
    assert_eq!(free_blocks(&drained()), before);
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
    unmovable.into_iter().chain(movable).for_each(|pfn| assert!(pages().put_pages(&I386, pfn, order(3), true)));
}

fn percpu_lists() {
    let gfp = if zone(&pages().stats(&I386), ZoneKind::Normal).present > 0 {
        Gfp::KERNEL
    } else {
        Gfp::KERNEL.with(Gfp::DMA)
    };
    let hits = pages().stats(&I386).pcp_hits;
    for _ in 0..50 {
        let pfn = pages().alloc_page(&I386, gfp).expect("a page");
        assert!(pages().put_page(&I386, pfn, true));
    }
    assert!(pages().stats(&I386).pcp_hits >= hits + 49);
}

fn forced_failure() {
    let gfp = Gfp::KERNEL.with(Gfp::HIGHMEM).with(Gfp::NORETRY);
    let held = exhaust(gfp);
    assert_eq!(pages().alloc_pages(&I386, gfp, order(4), None), None);
    give_back(held);
    let block = pages().alloc_pages(&I386, gfp, order(4), None).expect("there is memory again");
    assert!(pages().put_pages(&I386, block, order(4), true));
}

fn exact() {
    drained();
    let free = |stats: &ZoneStats| stats.total(|zone| zone.free) + stats.pcp_pages;
    let before = free(&pages().stats(&I386));
    let run = pages().alloc_pages_exact(&I386, Gfp::KERNEL, 5 * PAGE_SIZE);
    assert_eq!(before - free(&pages().stats(&I386)), 5);
    assert!(pages().free_pages_exact(&I386, run, true));
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
        assert!(pages().put_page(&I386, pfn, true));
    }
}

fn fragmentation() {
    let stats = drained();
    for zone in stats.zones.as_flattened().iter().filter(|zone| zone.present > 0) {
        assert_eq!(zone.unusable(Order::ZERO), 0, "a single page is never useless");
        assert!(zone.unusable(Order::MAX) >= zone.unusable(order(5)));
    }
}

fn calls() {
    let p = pages();
    let page = p.get_free_pages(&I386, Gfp::KERNEL, Order::ZERO);
    assert!(!page.is_null() && page.addr().is_multiple_of(PAGE_SIZE));
    assert!(!p.free_pages_at(&I386, page.wrapping_add(1), Order::ZERO, true), "not a page's start");
    assert!(p.free_pages_at(&I386, page, Order::ZERO, true));
    assert!(!p.free_pages_at(&I386, page, Order::ZERO, true), "E12: freed twice");
    let zeroed = p.get_zeroed_page(&I386, Gfp::KERNEL);
    // SAFETY: the page is this test's.
    assert_eq!(unsafe { zeroed.read() }, 0);
    assert!(p.free_pages_at(&I386, zeroed, Order::ZERO, true));
    let dma = p.get_dma_pages(&I386, Gfp::KERNEL, order(2));
    assert!(dma.addr() - PAGE_OFFSET < DMA_END as usize);
    assert!(p.free_pages_at(&I386, dma, order(2), true));
    let exact = p.alloc_pages_exact(&I386, Gfp::KERNEL, 5 * PAGE_SIZE);
    assert!(!exact.is_null());
    assert!(p.free_pages_exact(&I386, exact, true));
    assert!(p.free_pages_at(&I386, core::ptr::null_mut(), Order::ZERO, true));
}
