//! vmalloc, device memory, permanent, temporary and fixed mappings: rows H and I.

use alloc::vec::Vec;
use core::ptr::with_exposed_provenance_mut as pointer;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use slabwright::api::{self, KmapGuard};
use slabwright::error::{AllocError, Defect};
use slabwright::gfp::Gfp;
use slabwright::machine::i386::fixmap::{FixedAddress, clear_fixmap, set_fixmap};
use slabwright::machine::i386::ioremap::{self, ioremap, iounmap};
use slabwright::machine::i386::layout::{
    FIXADDR_START, FIXADDR_TOP, KM_TYPE_NR, LAST_PKMAP, PKMAP_BASE, fix_to_virt, virt_to_fix,
};
use slabwright::machine::i386::{I386, fault, interrupt, paging, percpu, set_aborts, smp};
use slabwright::machine::{Frames, Mapping};
use slabwright::mm::KmType;
use slabwright::page::PageList;
use slabwright::paging::Flags;
use slabwright::types::{PAGE_SIZE, Pfn, PhysAddr};

use super::{Test, free_pages, has_highmem};
use crate::kernel::HEAP;

pub const TESTS: &[Test] = &[
    ("H1 vmalloc: adjacent addresses over scattered frames", scattered),
    ("H1 a guard page behind each area", guarded),
    ("H2 vfree is lazy; what was purged is mapped no more", lazy),
    ("H7 vmalloc is mapped by pages, low memory by huge leaves", by_pages),
    ("H3 H4 vmap shows frames a second time, and leaves them alive", second_view),
    ("H5 H6 T1 ioremap: the local APIC, uncached, caches written back, a fault after iounmap", local_apic),
    ("H5 ioremap refuses what is memory", no_memory),
    ("H2 T2 what was purged on one CPU is gone on the other, and shows what comes next", purged_elsewhere),
    ("H5 ioremap: text on the screen", screen),
    ("A8 A9 I1 I2 I4 kmap gives a HIGHMEM page an address, and its descriptor knows", permanent),
    ("I1 permanent mappings go round, with a flush", round),
    ("I3 kmap is refused where waiting is", not_in_atomic_context),
    ("I5 I6 I8 kmap_atomic: the descriptor stays as it is", temporary),
    ("I5 kmap_atomic works in an interrupt handler", temporary_in_interrupt),
    ("I7 temporary mappings are undone in reverse order only", reverse_order),
    ("I9 I11 fixed addresses count down from the top", fixed),
    ("I10 the local APIC through its fixed address", apic_fixed),
    ("I13 set_fixmap and clear_fixmap: a fault afterwards", set_and_clear),
];

/// Of memory that only page tables of three levels reach.
pub const WIDE: &[Test] = &[("B12 a frame beyond 4 GiB is mapped, and is none of those below", beyond_4_gib)];

fn page(gfp: Gfp) -> Pfn {
    HEAP.alloc_pages(gfp, 0, None).expect("a page")
}

fn free(pfn: Pfn) {
    free_pages(pfn, 0);
}

/// A page without an address; an ordinary one where all have one.
fn high_page() -> Pfn {
    page(Gfp::KERNEL.with(Gfp::HIGHMEM))
}

/// Bytes of an area.
const AREA: usize = 12 * PAGE_SIZE;

fn area() -> *mut u8 {
    HEAP.vmalloc_bytes(AREA, Gfp::KERNEL).expect("an area")
}

fn vfree(area: *mut u8) {
    // SAFETY: the tests free areas of their own, which they do not use any more.
    unsafe { HEAP.vfree(area) }.expect("an area of this test's");
}

fn kmap_local(pfn: Pfn) -> KmapGuard<'static, I386> {
    api::kmap_local(&HEAP, pfn).expect("a slot")
}

fn scattered() {
    // No area of before is to serve.
    HEAP.trim();
    // Every other page of a block is taken, so that what is free there is scattered.
    let block = HEAP.alloc_pages(Gfp::KERNEL.with(Gfp::HIGHMEM), 5, None).expect("a block");
    free_pages(block, 5);
    let held: Vec<Pfn> = (0..30).map(|_| high_page()).collect();
    held.iter().step_by(2).for_each(|pfn| free(*pfn));
    HEAP.pages().drain(&I386);
    let area = area();
    assert!(I386.window().contains(&area.addr()));
    let frames: Vec<Pfn> = (0..AREA / PAGE_SIZE)
        .map(|n| paging::translate(area.addr() + n * PAGE_SIZE).expect("it is mapped").frame)
        .collect();
    assert!(frames.windows(2).any(|pair| pair[1].0 != pair[0].0 + 1), "the frames happen to be adjacent");
    for n in 0..frames.len() {
        // SAFETY: the area is this test's.
        unsafe { area.add(n * PAGE_SIZE).cast::<u32>().write_volatile(n as u32) };
    }
    for (n, frame) in frames.iter().enumerate() {
        let view = kmap_local(*frame);
        // SAFETY: the frame is the area's.
        let found = unsafe { view.as_ptr().cast::<u32>().read_volatile() };
        assert_eq!(found, n as u32, "the table says otherwise than the hardware");
    }
    vfree(area);
    held.iter().skip(1).step_by(2).for_each(|pfn| free(*pfn));
}

fn guarded() {
    let (a, b) = (area(), area());
    for area in [a, b] {
        let end = area.addr() + AREA;
        assert_eq!(fault::read_byte(end - 1).map(|_| ()), Some(()));
        assert_eq!(fault::read_byte(end), None, "behind the area there is something");
        assert_eq!(fault::faults().address, end);
    }
    vfree(a);
    vfree(b);
}

fn lazy() {
    HEAP.trim();
    let first = area();
    vfree(first);
    assert!(HEAP.vmalloc().stats(&I386).retained >= 1);
    assert!(paging::translate(first.addr()).is_some(), "it stays mapped for a while");
    let again = area();
    assert_eq!(again, first, "and serves the next request");
    vfree(again);
    HEAP.trim();
    assert_eq!(HEAP.vmalloc().stats(&I386).retained, 0);
    assert_eq!(fault::read_byte(first.addr()), None, "the translation outlived the mapping");
}

fn by_pages() {
    let area = area();
    let found = paging::translate(area.addr()).expect("it is mapped");
    assert_eq!(found.level, slabwright::paging::Level::Pte);
    let low = HEAP.alloc(100);
    assert_eq!(paging::translate(low.addr()).expect("it is mapped").level, slabwright::paging::Level::Pmd);
    // SAFETY: the block is live and this test's.
    unsafe { HEAP.free(low) };
    vfree(area);
}

fn second_view() {
    let frames = [page(Gfp::KERNEL), page(Gfp::KERNEL), page(Gfp::KERNEL)];
    let order = [frames[2], frames[0], frames[1]];
    let view = HEAP.vmap(&order).expect("addresses");
    assert!(I386.window().contains(&view.addr()));
    for (n, pfn) in order.iter().enumerate() {
        // SAFETY: the frames are this test's.
        unsafe {
            view.add(n * PAGE_SIZE).write_volatile(n as u8 + 1);
            assert_eq!(I386.virt(*pfn).read_volatile(), n as u8 + 1, "two views of one frame");
            I386.virt(*pfn).add(9).write_volatile(0x77);
            assert_eq!(view.add(n * PAGE_SIZE + 9).read_volatile(), 0x77);
        }
    }
    // SAFETY: a mapping of this test's, up to the misuse, which must be found out.
    let vunmap = |at: *mut u8| unsafe { HEAP.vunmap(at) };
    assert_eq!(misused(|| vunmap(view.wrapping_add(PAGE_SIZE))), Err(Defect::Foreign), "not where it begins");
    assert_eq!((vunmap(view), misused(|| vunmap(view))), (Ok(()), Err(Defect::Foreign)));
    HEAP.trim();
    assert_eq!(fault::read_byte(view.addr()), None);
    // SAFETY: the frames are still this test's.
    assert_eq!(unsafe { I386.virt(order[2]).read_volatile() }, 3, "the frames live on");
    frames.into_iter().for_each(free);
}

fn local_apic() {
    let written_back = ioremap::written_back();
    let registers = ioremap(PhysAddr(0xfee0_0030), 4).expect("addresses");
    assert_eq!(registers.addr() % PAGE_SIZE, 0x30);
    // SAFETY: the version register may be read.
    let version = unsafe { registers.cast::<u32>().read_volatile() };
    assert!((0x10..=0x1f).contains(&(version & 0xff)), "version {version:#x}");
    let found = paging::translate(registers.addr()).expect("it is mapped");
    assert!(found.flags.has(Flags::NO_CACHE.with(Flags::WRITE_THROUGH)));
    assert_eq!(ioremap::written_back(), written_back + 1);
    assert!(iounmap(registers) && !iounmap(registers));
    assert_eq!(fault::read_byte(registers.addr()), None);
}

fn no_memory() {
    // Allocated, free as the head of a block, free inside of one, and taken at boot.
    let block = HEAP.alloc_pages(Gfp::KERNEL, 3, None).expect("a block");
    let at = PhysAddr::of(block).0;
    assert_eq!(ioremap(PhysAddr(at), PAGE_SIZE), None);
    free_pages(block, 3);
    for page in 0..8 {
        assert_eq!(ioremap(PhysAddr(at + page * PAGE_SIZE as u64), PAGE_SIZE), None, "page {page} of a free block");
    }
    assert_eq!(ioremap(PhysAddr(1 << 20), PAGE_SIZE), None, "the image");
    // What begins in front of memory, or is nothing, or beyond what an entry can name.
    assert_eq!(ioremap(PhysAddr(0xf_f000), 2 * PAGE_SIZE), None);
    assert_eq!((ioremap(PhysAddr(0xfee0_0000), 0), ioremap(PhysAddr(0), 0)), (None, None));
    assert_eq!((ioremap(PhysAddr(1 << 36), 4), ioremap(PhysAddr(u64::MAX), 4)), (None, None));
}

/// What the other CPU (or this one, where there is no other) reads at an address; `None` for a fault.
fn read_elsewhere(at: usize) -> Option<u8> {
    static SEEN: AtomicU32 = AtomicU32::new(0);
    fn look(at: usize) {
        SEEN.store(fault::read_byte(at).map_or(u32::MAX, u32::from), Relaxed);
    }
    if smp::run(1, look, at) {
        smp::wait_idle(1);
    } else {
        look(at);
    }
    u8::try_from(SEEN.load(Relaxed)).ok()
}

fn purged_elsewhere() {
    // Few pages are forgotten one by one, many by dropping all.
    for pages in [3, 40] {
        HEAP.trim();
        for round in 1..=4u8 {
            // Twice, so that the addresses are those of the round before, and its frames another's.
            let frames: Vec<Pfn> = (0..pages).map(|_| page(Gfp::KERNEL)).collect();
            let at = I386.window().end - 256 * PAGE_SIZE;
            for (nth, frame) in frames.iter().enumerate() {
                // SAFETY: the page is this test's.
                unsafe { I386.virt(*frame).write_volatile(round) };
                assert!(I386.map_frame(at + nth * PAGE_SIZE, *frame));
            }
            assert_eq!((read_elsewhere(at), read_elsewhere(at + (pages - 1) * PAGE_SIZE)), (Some(round), Some(round)));
            I386.unmap(at, pages * PAGE_SIZE);
            assert_eq!((read_elsewhere(at), read_elsewhere(at + (pages - 1) * PAGE_SIZE)), (None, None));
            frames.into_iter().for_each(free);
        }
        // The same through vmalloc.
        let area = area();
        // SAFETY: the area is live and this test's.
        unsafe { area.write_volatile(0x66) };
        assert_eq!(read_elsewhere(area.addr()), Some(0x66));
        vfree(area);
        HEAP.trim();
        assert_eq!(read_elsewhere(area.addr()), None, "the other CPU's translation outlived the area");
    }
}

fn screen() {
    let text = ioremap(PhysAddr(0xb_8000), 80 * 25 * 2).expect("addresses");
    for (n, letter) in b"slabwright".iter().enumerate() {
        // SAFETY: the text memory of the screen.
        unsafe { text.cast::<u16>().add(n).write_volatile(0x0700 | u16::from(*letter)) };
    }
    let low = pointer::<u16>(slabwright::machine::i386::layout::PAGE_OFFSET + 0xb_8000);
    // SAFETY: as above, through the direct map.
    assert_eq!(unsafe { low.read_volatile() }, 0x0700 | u16::from(b's'));
    assert!(iounmap(text));
}

fn permanent() {
    let pfn = high_page();
    if I386.virt(pfn).is_null() {
        assert!(HEAP.page_address(pfn).is_null());
        let at = HEAP.kmap(pfn).expect("a slot");
        assert!((PKMAP_BASE..PKMAP_BASE + LAST_PKMAP * PAGE_SIZE).contains(&at.addr()));
        assert_eq!((HEAP.page_address(pfn), I386.page(pfn).word()), (at, at.addr() as u64));
        assert_eq!(HEAP.kmap(pfn), Ok(at), "counted, not mapped again");
        // SAFETY: the page is this test's.
        unsafe { at.write_bytes(0x3c, PAGE_SIZE) };
        assert_eq!(HEAP.kunmap(pfn), Ok(()));
        assert_eq!(HEAP.page_address(pfn), at, "one user is left");
        // SAFETY: as above.
        assert_eq!(unsafe { kmap_local(pfn).as_ptr().add(4095).read_volatile() }, 0x3c);
        assert_eq!(HEAP.kunmap(pfn), Ok(()));
        assert_eq!(misused(|| HEAP.kunmap(pfn)), Err(Defect::DoubleFree));
        assert!(HEAP.page_address(pfn).is_null());
    } else {
        assert!(!has_highmem(), "a HIGHMEM request got a page with an address");
        assert_eq!(HEAP.kmap(pfn), Ok(I386.virt(pfn)), "low memory has its address");
        assert_eq!(HEAP.kunmap(pfn), Ok(()));
    }
    free(pfn);
}

fn round() {
    if !has_highmem() {
        return no_slots_taken();
    }
    let flushes = paging::full_flushes();
    let pages: Vec<Pfn> = (0..3).map(|_| high_page()).collect();
    for n in 0..2 * LAST_PKMAP {
        let pfn = pages[n % 3];
        let at = HEAP.kmap(pfn).expect("a slot");
        // SAFETY: the page is this test's.
        unsafe {
            at.cast::<usize>().write_volatile(n);
            // A stale translation would show another page here.
            assert_eq!(kmap_local(pfn).as_ptr().cast::<usize>().read_volatile(), n);
        }
        assert_eq!(HEAP.kunmap(pfn), Ok(()));
    }
    assert!(paging::full_flushes() >= flushes + 2, "once in each round");
    let (used, stale) = HEAP.kmap_counts();
    assert!(used == 0 && stale <= LAST_PKMAP);
    pages.into_iter().for_each(free);
}

/// Without HIGHMEM no slot is ever used.
fn no_slots_taken() {
    let pfn = high_page();
    assert_eq!(HEAP.kmap(pfn), Ok(I386.virt(pfn)));
    assert_eq!(HEAP.kmap_counts(), (0, 0));
    free(pfn);
}

fn not_in_atomic_context() {
    let pfn = high_page();
    percpu::preempt_disable();
    let refused = misused(|| HEAP.kmap(pfn));
    percpu::preempt_enable();
    assert_eq!(refused, Err(AllocError::Invalid));
    free(pfn);
}

/// What comes of a mistake, which otherwise ends the machine.
fn misused<R>(body: impl FnOnce() -> R) -> R {
    set_aborts(false);
    let result = body();
    set_aborts(true);
    result
}

/// Implemented in one way by what must stay on its CPU, in two by what may be sent to another: then no method could be
/// told.
trait NotSend<Way> {
    fn holds() {}
}
struct Sendable;
impl<T> NotSend<()> for T {}
impl<T: Send> NotSend<Sendable> for T {}

fn temporary() {
    <KmapGuard<'static, I386> as NotSend<_>>::holds();

    let (a, b) = (high_page(), high_page());
    let word = I386.page(a).word();
    {
        let (first, second) = (kmap_local(a), kmap_local(b));
        assert!(percpu::preempt_count() >= 2, "who holds one stays on its CPU");
        // SAFETY: both pages are this test's.
        unsafe {
            first.as_ptr().write_bytes(1, PAGE_SIZE);
            second.as_ptr().write_bytes(2, PAGE_SIZE);
            assert_eq!((first.as_ptr().read_volatile(), second.as_ptr().read_volatile()), (1, 2));
        }
        if I386.virt(a).is_null() {
            assert_eq!((I386.page(a).word(), HEAP.page_address(a).addr()), (word, 0), "the descriptor is not touched");
            assert!((FIXADDR_START..FIXADDR_TOP).contains(&first.as_ptr().addr().get()));
            assert_eq!(HEAP.kmap_depth(), 2);
        }
        drop(second);
    }
    assert_eq!((HEAP.kmap_depth(), percpu::preempt_count()), (0, 0));
    let at = HEAP.kmap_atomic_type(a, KmType::User0).expect("a slot");
    // SAFETY: as above.
    assert_eq!(unsafe { at.read_volatile() }, 1);
    if I386.virt(a).is_null() {
        assert_eq!(misused(|| HEAP.kmap_atomic_type(b, KmType::User0)), Err(AllocError::Invalid), "it is in use");
        assert_eq!(misused(|| HEAP.kunmap_atomic_type(at, KmType::User1)), Err(Defect::Nesting));
    }
    assert_eq!(HEAP.kunmap_atomic_type(at, KmType::User0), Ok(()));
    free(a);
    free(b);
}

static SHARED: AtomicU32 = AtomicU32::new(0);
static SEEN: AtomicU32 = AtomicU32::new(0);

fn in_handler() {
    let pfn = Pfn(SHARED.load(Relaxed));
    if percpu::cpu() == 0 {
        let view = kmap_local(pfn);
        // SAFETY: the page is the test's, which only looks at its first bytes.
        unsafe { view.as_ptr().add(PAGE_SIZE - 4).cast::<u32>().write_volatile(SEEN.fetch_add(1, Relaxed) + 1) };
    }
}

fn temporary_in_interrupt() {
    let (shared, own) = (high_page(), high_page());
    SHARED.store(shared.0, Relaxed);
    SEEN.store(0, Relaxed);
    interrupt::on_tick(Some(in_handler));
    let mut rounds = 0u32;
    while SEEN.load(Relaxed) < 20 {
        rounds += 1;
        let view = kmap_local(own);
        // SAFETY: the page is this test's. A handler that took this slot would show the other page.
        unsafe {
            view.as_ptr().cast::<u32>().write_volatile(rounds);
            assert_eq!(view.as_ptr().cast::<u32>().read_volatile(), rounds);
        }
    }
    interrupt::on_tick(None);
    let view = kmap_local(shared);
    // SAFETY: as above.
    assert!(unsafe { view.as_ptr().add(PAGE_SIZE - 4).cast::<u32>().read_volatile() } >= 20);
    drop(view);
    free(shared);
    free(own);
}

fn reverse_order() {
    let (a, b) = (high_page(), high_page());
    let atomic = |pfn| HEAP.kmap_atomic(pfn).expect("a slot");
    let (first, second) = (atomic(a), atomic(b));
    if I386.virt(a).is_null() {
        assert_eq!(misused(|| HEAP.kunmap_atomic(first)), Err(Defect::Nesting), "the other one is still mapped");
    }
    assert_eq!((HEAP.kunmap_atomic(second), HEAP.kunmap_atomic(first)), (Ok(()), Ok(())));
    if I386.virt(a).is_null() {
        assert_eq!(misused(|| HEAP.kunmap_atomic(first)), Err(Defect::DoubleFree), "nothing is mapped any more");
        // As many as there are slots.
        let all: Vec<*mut u8> = (0..KM_TYPE_NR).map(|_| atomic(a)).collect();
        assert_eq!(HEAP.kmap_atomic(a), Err(AllocError::NoMemory));
        assert!(all.windows(2).all(|pair| pair[0] != pair[1]));
        all.into_iter().rev().for_each(|at| assert_eq!(HEAP.kunmap_atomic(at), Ok(())));
    }
    free(a);
    free(b);
}

fn fixed() {
    assert_eq!(fix_to_virt::<{ FixedAddress::Hole as usize }>(), 0xffff_f000);
    assert_eq!(fix_to_virt::<{ FixedAddress::ApicBase as usize }>(), 0xffff_f000 - 2 * PAGE_SIZE);
    assert_eq!(virt_to_fix(0xffff_d123), Some(FixedAddress::ApicBase as usize));
    assert_eq!(fault::read_byte(0xffff_f000), None, "the hole is one");
}

fn apic_fixed() {
    assert!(interrupt::has_apic());
    let id = pointer::<u32>(fix_to_virt::<{ FixedAddress::ApicBase as usize }>() + 0x20);
    let version = pointer::<u32>(fix_to_virt::<{ FixedAddress::ApicBase as usize }>() + 0x30);
    // SAFETY: both registers may be read.
    let (id, version) = unsafe { (id.read_volatile() >> 24, version.read_volatile()) };
    assert!(id < 16 && (0x10..=0x1f).contains(&(version & 0xff)), "id {id}, version {version:#x}");
    let select = pointer::<u32>(fix_to_virt::<{ FixedAddress::IoApicBase0 as usize }>());
    // SAFETY: the I/O APIC's index and data registers; register 1 is its version.
    let version = unsafe {
        select.write_volatile(1);
        select.byte_add(0x10).read_volatile()
    };
    assert!((0x10..=0x20).contains(&(version & 0xff)), "I/O APIC version {version:#x}");
}

fn beyond_4_gib() {
    const FRAMES: u32 = 1 << 20;
    let gfp = Gfp::KERNEL.with(Gfp::HIGHMEM);
    let mut below = PageList::new();
    let block = loop {
        let block = HEAP.alloc_pages(gfp, 10, None).expect("a block beyond 4 GiB");
        if block.0 >= FRAMES {
            break block;
        }
        below.push_front(block, |pfn| I386.page(pfn));
    };
    let view = HEAP.kmap(block).expect("a slot");
    // What an entry of 32 bits would have shown instead.
    let low = kmap_local(Pfn(block.0 - FRAMES));
    // SAFETY: the block is this test's, the other page is only read.
    unsafe {
        let before = low.as_ptr().cast::<u64>().read_volatile();
        view.cast::<u64>().write_volatile(!before);
        assert_eq!(low.as_ptr().cast::<u64>().read_volatile(), before);
        assert_eq!(kmap_local(block).as_ptr().cast::<u64>().read_volatile(), !before);
    }
    drop(low);
    HEAP.kunmap(block).expect("it is mapped");
    free_pages(block, 10);
    while let Some(block) = below.pop_front(|pfn| I386.page(pfn)) {
        free_pages(block, 10);
    }
}

fn set_and_clear() {
    const SCRATCH: usize = FixedAddress::Scratch as usize;
    let pfn = page(Gfp::KERNEL);
    let at = set_fixmap::<SCRATCH>(PhysAddr::of(pfn), Flags::KERNEL);
    // SAFETY: the page is this test's.
    unsafe {
        pointer::<u32>(at).write_volatile(0x1234_5678);
        assert_eq!(I386.virt(pfn).cast::<u32>().read_volatile(), 0x1234_5678);
    }
    clear_fixmap::<SCRATCH>();
    assert_eq!(fault::read_byte(at), None, "a fault after clear_fixmap");
    free(pfn);
}
