//! Start, report, self-tests, end.

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use slabwright::machine::i386::console::{Console, Exit, exit};
use slabwright::machine::i386::layout::{
    DMA_END, FIXADDR_START, FIXADDR_TOP, IOREMAP, LAST_PKMAP, PAGE_OFFSET, PKMAP_BASE,
};
use slabwright::machine::i386::{I386, boot, cpu, fault, interrupt, memory, percpu, smp};
use slabwright::machine::{MAX_NODES, Mapping, ZoneKind};
use slabwright::mm::{Hooks, Mm};
use slabwright::printk;
use slabwright::slab::SlabFlags;
use slabwright::types::{PAGE_SIZE, PfnRange};
use slabwright::zone::ZONES;

use crate::tests;

/// The kernel's heap. Its memory is what is left after boot.
#[global_allocator]
pub static HEAP: Mm<I386> = Mm::with_hooks(I386, Hooks { before: None, after: Some(take_memory) });

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Whether the heap has asked for its memory, which it does once, when it starts.
pub fn memory_was_taken() -> bool {
    TAKEN.load(Relaxed)
}

fn take_memory(heap: &Mm<I386>) {
    assert!(!TAKEN.swap(true, Relaxed), "memory is handed over twice");
    // SAFETY: this is what the boot left over, handed over once.
    let add = |node: usize, zone: ZoneKind, range: PfnRange| unsafe { heap.pages().add(&I386, node, zone, range) };
    let pages = memory::hand_over(add);
    printk!("memblock: {pages} pages handed over\n");
}

#[unsafe(no_mangle)]
extern "C" fn kernel_main() -> ! {
    boot::with_command_line(|line| printk!("slabwright on i386: {line}\n"));
    show_memory();
    // Before: nothing is served, and nothing is known.
    assert!(!HEAP.is_up() && HEAP.pages().managed() == 0 && !memory_was_taken());
    assert!(HEAP.start() && memory_was_taken(), "the heap did not start");
    show_address_map();
    show_zones();
    // SAFETY: the descriptor table is loaded, and nothing is half done.
    unsafe { cpu::sti() };
    misbehave();
    forbid_coprocessor(0);
    smp::on_others(forbid_coprocessor, 0);
    tests::run();
    let _ = HEAP.write_stats(&mut Console);
    exit(Exit::Success)
}

/// From here on an instruction of the coprocessor's is a fault on this CPU: what is in its registers would be a
/// process's.
fn forbid_coprocessor(_: usize) {
    const EMULATE: u32 = 1 << 2;
    // SAFETY: nothing here uses the coprocessor.
    unsafe { cpu::set_cr0(cpu::cr0() | EMULATE) };
}

/// The memory map of the loader, and what of it boot has taken.
fn show_memory() {
    let block = boot::MEMBLOCK.lock(&I386);
    for range in block.memory() {
        printk!("memory   {:09x}..{:09x} {:>8} KiB\n", range.start, range.end, (range.end - range.start) >> 10);
    }
    for range in block.reserved() {
        printk!("reserved {:09x}..{:09x} {:>8} KiB\n", range.start, range.end, (range.end - range.start) >> 10);
    }
    printk!(
        "CPUs: {} of {} run, by {:?}; page tables of {} levels\n",
        smp::online(),
        smp::found(),
        smp::source(),
        if cfg!(feature = "pae") { 3 } else { 2 }
    );
}

/// The fourth gigabyte.
fn show_address_map() {
    let window = I386.window();
    let image = boot::image();
    let image = image.start as usize + PAGE_OFFSET..image.end as usize + PAGE_OFFSET;
    for (name, range) in [
        ("low memory", PAGE_OFFSET..memory::high_memory()),
        ("  image", image),
        ("vmalloc", window),
        ("ioremap", IOREMAP),
        ("pkmap", PKMAP_BASE..PKMAP_BASE + LAST_PKMAP * PAGE_SIZE),
        ("fixmap", FIXADDR_START..FIXADDR_TOP),
    ] {
        printk!("{name:<11} {:08x}..{:08x} {:>8} KiB\n", range.start, range.end, range.len() >> 10);
    }
}

/// Zones with their marks, and the free blocks by order.
fn show_zones() {
    for node in 0..MAX_NODES {
        for kind in ZONES {
            let zone = HEAP.pages().zone(&I386, node, kind);
            if zone.present == 0 {
                continue;
            }
            printk!(
                "node {node} zone {kind:?}: present {} managed {} free {}, marks {:?}\n",
                zone.present,
                zone.managed,
                zone.free,
                zone.marks
            );
            // Free blocks by order, as `/proc/buddyinfo` shows them.
            printk!("Node {node}, zone {kind:?}");
            zone.blocks.iter().for_each(|order| printk!(" {:>6}", order.iter().sum::<u32>()));
            printk!("\n");
        }
    }
    printk!("DMA below {:#x}; {} fixups; per-CPU areas: {}\n", DMA_END, fault::fixups(), percpu::cpus());
}

/// Goes on until the stack is used up.
#[allow(unconditional_recursion)]
fn dig(depth: usize) {
    core::hint::black_box([depth; 64]);
    dig(core::hint::black_box(depth + 1));
    core::hint::black_box(depth);
}

/// Ends in a way that `cargo xtask i386` must take for a failure, where the command line asks for it (`fail=`).
fn misbehave() {
    boot::option("fail", |how| match how {
        Some("panic") => panic!("as asked for"),
        Some("oops") => {
            let null: *mut u8 = core::ptr::null_mut();
            // SAFETY: none; it is the fault that is asked for.
            unsafe { null.write_volatile(1) };
        }
        Some("hang") => loop {
            // SAFETY: interrupts are on.
            unsafe { cpu::wait_for_interrupt() };
        },
        Some("triple") => {
            static NOTHING: [u64; 256] = [0; 256];
            // SAFETY: none: the next interrupt resets the machine, as is asked for.
            unsafe { cpu::load_interrupts(&NOTHING) };
            interrupt::pause();
            loop {
                core::hint::spin_loop();
            }
        }
        // No cache is of objects of no bytes.
        Some("cache") => drop(HEAP.kmem_cache_create("impossible", 0, 0, SlabFlags::PANIC, None)),
        Some("exit") => exit(Exit::Failure),
        // SAFETY: none; it is the exception that is asked for.
        Some("exception") => unsafe { core::arch::asm!("ud2") },
        Some("overflow") => dig(0),
        Some("overflow-elsewhere") => {
            assert!(smp::run(1, dig, 0));
            smp::wait_idle(1);
        }
        _ => {}
    });
}
