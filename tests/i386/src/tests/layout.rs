//! What lies where in the kernel's addresses (`memorylayout`), held against a golden text by `cargo xtask test`: row
//! L9.

use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::AtomicU32;

use slabwright::gfp::Gfp;
use slabwright::machine::Mapping;
use slabwright::machine::i386::ioremap::{ioremap, iounmap};
use slabwright::machine::i386::layout::{
    FIXADDR_START, FIXADDR_TOP, FixedAddress, IOREMAP, LAST_PKMAP, PAGE_OFFSET, PKMAP_BASE, fix_to_virt,
};
use slabwright::machine::i386::{I386, boot, memory, stack};
use slabwright::printk;
use slabwright::types::{PAGE_SIZE, PhysAddr};

use super::{Test, free_pages};
use crate::kernel::HEAP;

pub const ROOMY: &[Test] = &[("L9 B14 memory layout: each thing lies where the address map says", memory_layout)];

static CONSTANT: u32 = 5;
static INITIALISED: AtomicU32 = AtomicU32::new(5);
static ZEROED: AtomicU32 = AtomicU32::new(0);

fn memory_layout() {
    let guard = stack::guard(0);
    let regions = [
        ("low memory", PAGE_OFFSET..memory::high_memory()),
        ("vmalloc", I386.window()),
        ("ioremap", IOREMAP),
        ("pkmap", PKMAP_BASE..PKMAP_BASE + LAST_PKMAP * PAGE_SIZE),
        ("fixmap", FIXADDR_START..FIXADDR_TOP),
    ];
    printk!("memory layout\n");
    for (name, range) in &regions {
        printk!("  {name:<10} {:08x} - {:08x}\n", range.start, range.end);
    }
    assert!(regions.windows(2).all(|pair| pair[0].1.end <= pair[1].1.start), "regions overlap");
    let sections = boot::sections();
    assert!(sections.iter().all(|(_, range)| !range.is_empty() && regions[0].1.contains(&range.start)));
    let order: Vec<&str> = sections.iter().map(|(name, _)| *name).collect();
    printk!("  in low memory: {}\n", order.join(" < "));
    let places: Vec<(&str, Range<usize>)> = sections
        .into_iter()
        .chain([("stack of CPU 0", guard + PAGE_SIZE..guard + PAGE_SIZE + stack::STACK)])
        .chain(regions)
        .collect();
    let show = |what: &str, address: usize| {
        let place = places.iter().find(|(_, range)| range.contains(&address));
        printk!("  {what}: {}\n", place.map_or("nowhere", |(name, _)| *name));
        assert!(place.is_some(), "{what} at {address:#x}");
    };
    let (small, large) = (HEAP.kmalloc(100, Gfp::KERNEL), HEAP.alloc(3 << 20));
    let high = HEAP.alloc_pages(Gfp::KERNEL.with(Gfp::HIGHMEM), 0, None).expect("a page");
    let mapped = HEAP.kmap(high).expect("a slot");
    let device = ioremap(PhysAddr(0xfee0_0000), PAGE_SIZE).expect("addresses");
    let local = 0;
    show("a function", memory_layout as fn() as usize);
    show("a constant", (&raw const CONSTANT).addr());
    show("an initialised variable", (&raw const INITIALISED).addr());
    show("a zeroed variable", (&raw const ZEROED).addr());
    show("a local variable", (&raw const local).addr());
    show("kmalloc of 100 bytes", small.addr());
    show("3 MiB of vmalloc", large.addr());
    show("kmap of a page of HIGHMEM", mapped.addr());
    show("ioremap of the local APIC", device.addr());
    show("its fixed address", fix_to_virt::<{ FixedAddress::ApicBase as usize }>());
    HEAP.kunmap(high).expect("it is mapped");
    assert!(iounmap(device));
    free_pages(high, 0);
    // SAFETY: both blocks are live and this test's.
    unsafe {
        HEAP.kfree(small);
        HEAP.free(large);
    }
}
