//! What boot sets up: rows S, B7, B12, B14.

use slabwright::machine::i386::fault::read_byte;
use slabwright::machine::i386::firmware::Source;
use slabwright::machine::i386::layout::{
    FIXADDR_START, FIXADDR_TOP, IOREMAP, LAST_PKMAP, MAX_LOWMEM, PAGE_OFFSET, PKMAP_BASE, VMALLOC_END, VMALLOC_OFFSET,
};
use slabwright::machine::i386::{I386, boot, cpu, memory, paging, percpu, smp, stack};
use slabwright::machine::{Frames, Mapping};
use slabwright::page::Kind;
use slabwright::types::{PAGE_SHIFT, PAGE_SIZE, Pfn};

use super::Test;
use crate::kernel::{HEAP, memory_was_taken};

pub const TESTS: &[Test] = &[
    ("S1 G5 set up in order: memory, tables, memmap, per-CPU areas, zones, caches", in_order),
    ("S2 the processor is set up: huge and global pages, write protection", processor),
    ("S3 what memblock had free is what the zones manage", handed_over),
    ("S4 D11 no frame is free that boot took", boot_keeps_its_own),
    ("B7 B12 B14 the fourth gigabyte: regions in order and apart, low memory as long as `lowmem=` says", address_map),
    ("B14 below each stack lies a page that is not mapped", stack_guards),
];

fn in_order() {
    let block = boot::MEMBLOCK.lock(&I386);
    // All but what lies under the BIOS and its devices, and what the BIOS keeps at the end.
    let there = boot::option("memory", |memory| memory.and_then(boot::bytes)).unwrap_or(0);
    assert!((there.saturating_sub(1 << 20)..).contains(&block.total()), "{} of {there} bytes found", block.total());
    assert!(memory::high_memory() > PAGE_OFFSET && u64::from(memory::frames()) << PAGE_SHIFT >= block.end());
    let expected = boot::option("cpus", |cpus| cpus.and_then(|cpus| cpus.parse::<usize>().ok()));
    assert_eq!(
        (percpu::cpus(), smp::online()),
        (expected.unwrap_or(1), expected.unwrap_or(1)),
        "CPUs of the machine that run"
    );
    let told = |by| boot::option("tables", |tables| tables.is_none_or(|tables| tables == by));
    match smp::source() {
        Source::Acpi => assert!(told("acpi")),
        Source::MultiProcessor => assert!(told("mp")),
        Source::None => panic!("nobody tells of the CPUs"),
    }
    assert!(HEAP.is_up() && HEAP.start() && memory_was_taken() && HEAP.pages().managed() > 0);
    // The first caches lie in the image: nothing had to be allocated for them.
    let image = boot::image();
    let heap = (&raw const HEAP).addr() - PAGE_OFFSET;
    assert!(image.contains(&(heap as u64)) && image.contains(&((heap + size_of_val(&HEAP)) as u64)));
    // memmap, page classes and per-CPU areas were taken from memblock before the rest was handed over.
    let reserved = |address: usize| block.reserved().any(|range| range.contains(&((address - PAGE_OFFSET) as u64)));
    assert!(reserved((&raw const *I386.page(Pfn(0))).addr()) && reserved((&raw const *I386.class(Pfn(0))).addr()));
    assert!((0..percpu::cpus()).all(|cpu| reserved(percpu::SEGMENTS.of(cpu).addr())));
}

fn processor() {
    assert_eq!(cpu::cr0() & (1 << 31 | 1 << 16 | 1), 1 << 31 | 1 << 16 | 1, "paging, write protection, protected mode");
    let mut wanted = cpu::CR4_PSE;
    if cpu::features() & cpu::FEATURE_PGE != 0 {
        wanted |= cpu::CR4_PGE;
    }
    if cfg!(feature = "pae") {
        wanted |= cpu::CR4_PAE;
    }
    assert_eq!(cpu::cr4() & wanted, wanted);
    assert_ne!(cpu::flags() & cpu::FLAG_IF, 0, "interrupts are on");
}

fn handed_over() {
    let free: u64 = boot::MEMBLOCK
        .lock(&I386)
        .free_ranges()
        .map(|range| (range.end >> PAGE_SHIFT).saturating_sub(range.start.div_ceil(PAGE_SIZE as u64)))
        .sum();
    assert_eq!(HEAP.pages().managed(), free);
}

fn boot_keeps_its_own() {
    let block = boot::MEMBLOCK.lock(&I386);
    let mut reserved = 0;
    for range in block.reserved() {
        for pfn in range.start >> PAGE_SHIFT..range.end.div_ceil(PAGE_SIZE as u64) {
            let (start, end) = (pfn << PAGE_SHIFT, (pfn + 1) << PAGE_SHIFT);
            if block.memory().any(|memory| memory.start <= start && end <= memory.end) {
                assert_eq!(I386.page(Pfn(pfn as u32)).kind(), Kind::Reserved, "frame {pfn:#x}");
                reserved += 1;
            }
        }
    }
    assert!(reserved > 128, "the image and the memmap are {reserved} pages");
}

fn address_map() {
    let window = I386.window();
    let low = memory::high_memory() - PAGE_OFFSET;
    assert!(low <= MAX_LOWMEM && boot::image().end < low as u64);
    // All memory, but no more than the command line says (or the address space allows); the BIOS keeps some at the end.
    let wanted = boot::option("lowmem", |size| size.and_then(boot::bytes)).unwrap_or(MAX_LOWMEM as u64);
    let memory = boot::MEMBLOCK.lock(&I386).end();
    assert_eq!(low as u64, wanted.min(memory & !(PAGE_SIZE as u64 - 1)), "low memory");
    assert!(window.start >= memory::high_memory() + VMALLOC_OFFSET && window.end < IOREMAP.start);
    assert_eq!((IOREMAP.end, VMALLOC_END + 2 * PAGE_SIZE, FIXADDR_TOP), (VMALLOC_END, PKMAP_BASE, 0xFFFF_F000));
    const { assert!(PKMAP_BASE + LAST_PKMAP * PAGE_SIZE <= FIXADDR_START) }
    let here = (&raw const window).addr();
    assert!((stack::guard(0) + PAGE_SIZE..).contains(&here) && here < stack::guard(0) + PAGE_SIZE + stack::STACK);
}

fn stack_guards() {
    for cpu in 0..percpu::cpus() {
        let guard = stack::guard(cpu);
        assert!(
            stack::is_guard(guard) && stack::is_guard(guard + PAGE_SIZE - 1) && !stack::is_guard(guard + PAGE_SIZE)
        );
        assert_eq!((paging::translate(guard), read_byte(guard + PAGE_SIZE - 1)), (None, None));
        assert!(paging::translate(guard + PAGE_SIZE).is_some() && paging::translate(guard + stack::STACK).is_some());
    }
}
