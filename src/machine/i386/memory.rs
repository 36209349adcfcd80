//! Frames: the memmap, the map of page classes, the direct map.
#![cfg(all(target_arch = "x86", feature = "i386"))]
#![allow(unsafe_code)]

use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicUsize, Ordering::Relaxed};

use super::I386;
use super::boot::{MEMBLOCK, Options};
use super::layout::{DMA_END, PAGE_OFFSET};
use crate::machine::{Frames, ZoneKind};
use crate::page::{Kind, Page};
use crate::types::{Order, PAGE_SHIFT, PAGE_SIZE, Pfn, PfnRange, PhysAddr};

/// One descriptor for each frame below [`FRAMES`].
static MEMMAP: AtomicPtr<Page> = AtomicPtr::new(ptr::null_mut());
static FRAMES: AtomicU32 = AtomicU32::new(0);
/// One byte for each frame of low memory.
static CLASSES: AtomicPtr<AtomicU8> = AtomicPtr::new(ptr::null_mut());
/// Bytes of low memory.
static LOW: AtomicUsize = AtomicUsize::new(0);
/// Nodes, and the first frame of each but the first (`numa=fake=`).
static NODES: AtomicUsize = AtomicUsize::new(1);
static BORDERS: [AtomicU32; crate::machine::MAX_NODES] =
    [const { AtomicU32::new(u32::MAX) }; crate::machine::MAX_NODES];

/// First frame of ZONE_MOVABLE (`movablecore=`).
static MOVABLE: AtomicU32 = AtomicU32::new(u32::MAX);

/// First frame of ZONE_MOVABLE; beyond all frames where there is no such zone.
pub fn movable_start() -> Pfn {
    Pfn(MOVABLE.load(Relaxed))
}

/// Where low memory ends as an address (`high_memory`).
pub fn high_memory() -> usize {
    PAGE_OFFSET + LOW.load(Relaxed)
}

/// Frames that have a descriptor.
pub fn frames() -> u32 {
    FRAMES.load(Relaxed)
}

/// Nodes that memory is divided into.
pub fn nodes() -> usize {
    NODES.load(Relaxed)
}

/// The address of physical memory in the direct map.
pub fn phys_to_virt(physical: u64) -> usize {
    PAGE_OFFSET + physical as usize
}

/// Low memory for the machine itself, before the rest is handed over.
pub(super) fn take_low(bytes: usize, align: usize) -> PhysAddr {
    let low = LOW.load(Relaxed) as u64;
    let taken = MEMBLOCK.lock(&I386).alloc(bytes as u64, align as u64, 0..low);
    PhysAddr(taken.expect("no low memory is left to boot with"))
}

/// Makes the memmap and the map of page classes, in memory of the memblock's.
pub fn init(memory_end: u64, low: u64, options: &Options) {
    let frames = (memory_end >> PAGE_SHIFT).next_multiple_of(u64::from(Order::MAX.pages()));
    let map_bytes = frames * size_of::<Page>() as u64;
    LOW.store(low as usize, Relaxed);
    let map = phys_to_virt(take_low(map_bytes as usize, PAGE_SIZE).0);
    let classes = phys_to_virt(take_low(low as usize >> PAGE_SHIFT, PAGE_SIZE).0);
    // SAFETY: the memblock just gave the memory, which the direct map reaches; zero is a valid value of both.
    unsafe {
        ptr::with_exposed_provenance_mut::<u8>(map).write_bytes(0, map_bytes as usize);
        ptr::with_exposed_provenance_mut::<u8>(classes).write_bytes(0, (low >> PAGE_SHIFT) as usize);
    }
    MEMMAP.store(ptr::with_exposed_provenance_mut(map), Relaxed);
    CLASSES.store(ptr::with_exposed_provenance_mut(classes), Relaxed);
    FRAMES.store(frames as u32, Relaxed);
    if options.movable > 0 {
        // Whole blocks, and ZONE_DMA is too dear for it.
        let start = memory_end.saturating_sub(options.movable).max(DMA_END) >> PAGE_SHIFT;
        MOVABLE.store((start as u32).next_multiple_of(Order::MAX.pages()), Relaxed);
    }
    let nodes = options.nodes;
    // Nodes of equal size, at borders of the largest blocks.
    let part = (frames as u32 / nodes as u32) & !(Order::MAX.pages() - 1);
    let nodes = if part < 4 * Order::MAX.pages() { 1 } else { nodes };
    NODES.store(nodes, Relaxed);
    (1..nodes).for_each(|node| BORDERS[node].store(part * node as u32, Relaxed));
}

/// The node that a frame lies on.
fn node_of(pfn: Pfn) -> usize {
    BORDERS[1..].iter().filter(|border| border.load(Relaxed) <= pfn.0).count()
}

/// Hands what memory is left to `add`, cut at the borders of zones and nodes (`memblock_free_all`); the descriptors of
/// what is taken say so. Once, when nothing more is asked of the memblock. Returns the pages handed over.
pub fn hand_over(mut add: impl FnMut(usize, ZoneKind, PfnRange)) -> u64 {
    let block = MEMBLOCK.lock(&I386);
    for range in block.memory() {
        let (start, end) = (range.start.div_ceil(PAGE_SIZE as u64), range.end >> PAGE_SHIFT);
        (start..end).for_each(|pfn| I386.page(Pfn(pfn as u32)).set_kind(Kind::Reserved, Order::ZERO));
    }
    let low = LOW.load(Relaxed) as u64;
    let borders = [(DMA_END >> PAGE_SHIFT) as u32, (low >> PAGE_SHIFT) as u32, movable_start().0];
    let mut pages = 0;
    for range in block.free_ranges() {
        let mut at = range.start.div_ceil(PAGE_SIZE as u64) as u32;
        let end = (range.end >> PAGE_SHIFT) as u32;
        while at < end {
            let nodes = BORDERS[1..].iter().map(|border| border.load(Relaxed));
            let stop = borders.into_iter().chain(nodes).filter(|border| *border > at).fold(end, u32::min);
            let zone = match u64::from(at) << PAGE_SHIFT {
                _ if at >= movable_start().0 => ZoneKind::Movable,
                start if start >= low => ZoneKind::HighMem,
                start if start >= DMA_END => ZoneKind::Normal,
                _ => ZoneKind::Dma,
            };
            let part = PfnRange::new(Pfn(at), stop - at);
            // As a fresh memmap has it, which is what the zones expect.
            part.iter().for_each(|pfn| I386.page(pfn).set_kind(Kind::Offline, Order::ZERO));
            add(node_of(part.start), zone, part);
            pages += u64::from(part.pages);
            at = stop;
        }
    }
    pages
}

// SAFETY: 1. the memmap covers all frames that `hand_over` gives, for ever, and was zeroed; 2. their memory is mapped
// by the direct map and free in the memblock, which gives it to nobody else; 3. `virt` and `pfn` are the same sum.
unsafe impl Frames for I386 {
    fn grow(&self, _node: usize, _zone: ZoneKind, _pages: u32) -> Option<PfnRange> {
        // All there is was there from the start.
        None
    }

    #[inline]
    fn page(&self, pfn: Pfn) -> &Page {
        assert!(pfn.0 < FRAMES.load(Relaxed), "descriptor of frame {:#x}, which there is none of", pfn.0);
        // SAFETY: the memmap has a descriptor for it.
        unsafe { &*MEMMAP.load(Relaxed).add(pfn.index()) }
    }

    #[inline]
    fn class(&self, pfn: Pfn) -> &AtomicU8 {
        assert!(pfn.index() < LOW.load(Relaxed) >> PAGE_SHIFT, "class of frame {:#x}, which has no address", pfn.0);
        // SAFETY: the map has a byte for it.
        unsafe { &*CLASSES.load(Relaxed).add(pfn.index()) }
    }

    #[inline]
    fn class_at(&self, address: *const u8) -> u8 {
        let offset = address.addr().wrapping_sub(PAGE_OFFSET);
        if offset >= LOW.load(Relaxed) {
            return 0;
        }
        // SAFETY: the map has a byte for each frame of low memory.
        unsafe { (*CLASSES.load(Relaxed).add(offset >> PAGE_SHIFT)).load(Relaxed) }
    }

    #[inline]
    fn virt(&self, pfn: Pfn) -> *mut u8 {
        if pfn.index() >= LOW.load(Relaxed) >> PAGE_SHIFT {
            return ptr::null_mut();
        }
        ptr::with_exposed_provenance_mut(PAGE_OFFSET + (pfn.index() << PAGE_SHIFT))
    }

    #[inline]
    fn pfn(&self, address: *const u8) -> Option<Pfn> {
        let offset = address.addr().wrapping_sub(PAGE_OFFSET);
        let pfn = Pfn((offset >> PAGE_SHIFT) as u32);
        (offset < LOW.load(Relaxed)).then_some(pfn)
    }

    fn discard(&self, _range: PfnRange) -> bool {
        false
    }

    fn populate(&self, _range: PfnRange) {}

    const LENT: bool = false;

    fn budget(&self) -> u64 {
        u64::MAX
    }
}
