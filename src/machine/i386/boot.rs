//! From the boot loader to the kernel: multiboot entry, and the order in which the machine is set up.
//!
//! The loader enters `_start` without paging. A directory of huge pages maps the first 16 MiB at their own addresses
//! and at [`PAGE_OFFSET`]; with it [`start`] runs, reads what memory there is, builds the real tables and calls
//! `kernel_main`.
#![cfg(all(target_arch = "x86", feature = "i386"))]
#![allow(unsafe_code)]

use core::arch::{asm, global_asm};
use core::ops::Range;

use super::layout::{MAX_LOWMEM, PAGE_OFFSET, TABLE_BYTES, vmalloc_window};
use super::memblock::Memblock;
use super::stack::{self, STACK};
use super::{I386, console, cpu, fault, interrupt, memory, paging, percpu, smp, user};
use crate::sync::Lock;
use crate::types::{PAGE_SIZE, PhysAddr};

/// What a boot loader leaves in eax.
const MULTIBOOT: u32 = 0x2BAD_B002;
/// Physical memory that the boot directory maps.
pub const BOOT_MAPPED: u64 = 16 << 20;

global_asm!(
    ".pushsection .boot, \"awx\"",
    ".balign 4",
    "multiboot_header:",
    // Memory information is asked for; the addresses are in the ELF headers.
    ".long 0x1BADB002, 0x2, -(0x1BADB002 + 0x2)",
    "",
    ".globl _start",
    "_start:",
    "cli",
    "cld",
    "mov esi, eax",
    "mov edi, ebx",
    // Four huge pages at 0 and at PAGE_OFFSET.
    "lea edx, [slabwright_boot_directory - {offset}]",
    "mov ecx, 0",
    "2:",
    "mov eax, ecx",
    "shl eax, 22",
    "or eax, 0x83",
    "mov [edx + ecx * 4], eax",
    "mov [edx + ecx * 4 + {kernel}], eax",
    "inc ecx",
    "cmp ecx, 4",
    "jb 2b",
    "mov eax, cr4",
    "or eax, {pse}",
    "mov cr4, eax",
    "mov cr3, edx",
    "mov eax, cr0",
    "or eax, 0x80010000",
    "mov cr0, eax",
    "lgdt [slabwright_boot_pointer]",
    "mov eax, {data}",
    "mov ds, ax",
    "mov es, ax",
    "mov fs, ax",
    "mov ss, ax",
    "lea esp, [slabwright_boot_stack + {stack}]",
    "push {code}",
    "lea eax, [3f]",
    "push eax",
    "retf",
    "3:",
    "fninit",
    "xor ebp, ebp",
    "push edi",
    "push esi",
    "lea eax, [{start}]",
    "call eax",
    "ud2",
    "",
    // void slabwright_switch_tables(u32 cr3, u32 cr4): runs at its physical address, so that paging may be off
    // meanwhile.
    ".globl slabwright_switch_tables",
    "slabwright_switch_tables:",
    "mov ecx, [esp + 4]",
    "mov edx, [esp + 8]",
    "mov eax, cr0",
    "and eax, 0x7fffffff",
    "mov cr0, eax",
    "mov cr4, edx",
    "mov cr3, ecx",
    "mov eax, cr0",
    "or eax, 0x80010000",
    "mov cr0, eax",
    "ret",
    "",
    ".balign 8",
    ".globl slabwright_boot_segments",
    "slabwright_boot_segments:",
    ".quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff",
    ".globl slabwright_boot_pointer",
    "slabwright_boot_pointer:",
    ".word 23",
    ".long slabwright_boot_segments",
    ".popsection",
    "",
    ".pushsection .bss",
    ".balign 4096",
    "slabwright_boot_directory: .skip 4096",
    ".globl slabwright_boot_stack",
    "slabwright_boot_stack: .skip {stack}",
    ".popsection",
    offset = const PAGE_OFFSET,
    kernel = const (PAGE_OFFSET >> 22) * 4,
    pse = const cpu::CR4_PSE,
    code = const cpu::KERNEL_CODE,
    data = const cpu::KERNEL_DATA,
    stack = const STACK,
    start = sym start,
);

unsafe extern "C" {
    /// First and end address of the image (linker script).
    static slabwright_image_start: u8;
    static slabwright_image_end: u8;
    /// First addresses of its sections.
    static slabwright_text_start: u8;
    static slabwright_rodata_start: u8;
    static slabwright_data_start: u8;
    static slabwright_bss_start: u8;
    static slabwright_boot_stack: u8;
    fn slabwright_switch_tables(cr3: u32, cr4: u32);
    /// The kernel: what is started when the machine is up.
    fn kernel_main() -> !;
}

/// What the loader tells.
#[repr(C)]
struct MultibootInfo {
    flags: u32,
    lower: u32,
    upper: u32,
    boot_device: u32,
    command_line: u32,
    modules: u32,
    module_list: u32,
    symbols: [u32; 4],
    map_len: u32,
    map: u32,
}

#[repr(C, packed(4))]
struct MapEntry {
    /// Bytes of the entry behind this field.
    size: u32,
    base: u64,
    len: u64,
    kind: u32,
}

/// What the command line says of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// `lowmem=`: most bytes of low memory.
    pub lowmem: usize,
    /// `numa=fake=`: nodes that memory is divided into.
    pub nodes: usize,
    /// `movablecore=`: bytes at the end of memory for what can be moved (ZONE_MOVABLE).
    pub movable: u64,
    /// `maxcpus=`: CPUs to start.
    pub cpus: usize,
}

/// The memory of boot time; what is left of it after boot is the buddy system's.
pub static MEMBLOCK: Lock<Memblock> = Lock::new(Memblock::new());
/// The command line, as long as it fits.
static COMMAND_LINE: Lock<([u8; 256], usize)> = Lock::new(([0; 256], 0));

/// Calls `f` with the command line.
pub fn with_command_line<R>(f: impl FnOnce(&str) -> R) -> R {
    let (text, len) = *COMMAND_LINE.lock(&I386);
    f(core::str::from_utf8(&text[..len]).unwrap_or(""))
}

/// The value of the last option `name=value` on the command line, handed to `f`.
pub fn option<R>(name: &str, f: impl FnOnce(Option<&str>) -> R) -> R {
    with_command_line(|line| {
        let mut values = line.split_ascii_whitespace().filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        f(values.next_back())
    })
}

/// A number of bytes with K, M or G behind it.
pub fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_shl(shift)
}

/// The options of the command line.
pub fn options() -> Options {
    let number = |name, default| option(name, |value| value.and_then(bytes)).unwrap_or(default);
    let nodes = option("numa", |value| value.and_then(|v| bytes(v.strip_prefix("fake=")?))).unwrap_or(1);
    Options {
        lowmem: number("lowmem", MAX_LOWMEM as u64).clamp(BOOT_MAPPED, MAX_LOWMEM as u64) as usize,
        nodes: nodes.clamp(1, crate::machine::MAX_NODES as u64) as usize,
        movable: number("movablecore", 0),
        cpus: number("maxcpus", u64::MAX).max(1) as usize,
    }
}

/// Address at which boot code reads physical memory below [`BOOT_MAPPED`].
fn at<T>(physical: u32) -> *const T {
    core::ptr::with_exposed_provenance(PAGE_OFFSET + physical as usize)
}

/// Physical addresses of the image.
pub fn image() -> Range<u64> {
    let physical = |symbol: *const u8| (symbol.addr() - PAGE_OFFSET) as u64;
    physical(&raw const slabwright_image_start)..physical(&raw const slabwright_image_end)
}

/// The addresses of the image's sections, by name, ascending.
pub fn sections() -> [(&'static str, Range<usize>); 4] {
    let starts = [
        &raw const slabwright_text_start,
        &raw const slabwright_rodata_start,
        &raw const slabwright_data_start,
        &raw const slabwright_bss_start,
        &raw const slabwright_image_end,
    ];
    let range = |nth: usize| starts[nth].addr()..starts[nth + 1].addr();
    [("text", range(0)), ("rodata", range(1)), ("data", range(2)), ("bss", range(3))]
}

/// Reads what the loader left: memory and command line.
///
/// # Safety
/// `info` is the physical address of a multiboot information structure below [`BOOT_MAPPED`].
unsafe fn read_loader(info: u32) {
    let mut block = MEMBLOCK.lock(&I386);
    let mut full = false;
    // SAFETY: the caller's condition; the structure's pointers are the loader's, and checked to be in mapped memory.
    unsafe {
        let info = &*at::<MultibootInfo>(info);
        if info.flags & 1 << 6 != 0 && u64::from(info.map) + u64::from(info.map_len) <= BOOT_MAPPED {
            let mut next = info.map;
            while next + size_of::<MapEntry>() as u32 <= info.map + info.map_len {
                let entry = at::<MapEntry>(next).read_unaligned();
                next += entry.size + 4;
                // What the tables and the processor can name.
                let wide = cfg!(feature = "pae") && cpu::features() & cpu::FEATURE_PSE36 != 0;
                let reach: u64 = if wide { 1 << 36 } else { 1 << 32 };
                let (base, len) = (entry.base, entry.len);
                let end = base.saturating_add(len).min(reach);
                if entry.kind == 1 && base < end {
                    full |= block.add(base..end).is_err();
                }
            }
        }
        let line = info.command_line;
        if info.flags & 1 << 2 != 0 && u64::from(line) < BOOT_MAPPED {
            let mut text = COMMAND_LINE.lock(&I386);
            let copy = (0..256).map(|i| at::<u8>(line).add(i).read()).take_while(|byte| *byte != 0);
            for byte in copy {
                let len = text.1;
                text.0[len] = byte;
                text.1 += 1;
            }
        }
    }
    // The first page: null pointers, and the BIOS's data; the trampoline of other CPUs behind it.
    full |= block.reserve(0..0x1_0000).is_err() || block.reserve(image()).is_err();
    assert!(!full, "the memory map has too many ranges");
}

/// Where low memory ends: all of it, as far as the address space and the command line allow.
fn low_end(memory_end: u64, options: &Options) -> u64 {
    if memory_end <= options.lowmem as u64 {
        memory_end & !(PAGE_SIZE as u64 - 1)
    } else {
        // The border between zones is one between the largest blocks.
        options.lowmem as u64 & !((TABLE_BYTES as u64).max(4 << 20) - 1)
    }
}

/// The first Rust code.
extern "C" fn start(magic: u32, info: u32) -> ! {
    console::init();
    // SAFETY: the boot CPU, once; the template of the per-CPU variables is its own until the areas are made.
    unsafe {
        cpu::Segments::load(percpu::SEGMENTS.this(), 0, fault::double_fault);
        interrupt::load();
    }
    assert!(magic == MULTIBOOT, "not started by a multiboot loader: {magic:#x}");
    // SAFETY: the loader said that it is one.
    unsafe { read_loader(info) };
    let options = options();
    let memory_end = MEMBLOCK.lock(&I386).end();
    let low = low_end(memory_end, &options);
    let window = vmalloc_window(low as usize, MEMBLOCK.lock(&I386).total());
    paging::set_window(&window);
    paging::fill_pool(paging::BUILD_TABLES, low.min(BOOT_MAPPED));
    let (root, cr4) = paging::build(low);
    // SAFETY: the new tables map what the boot directory did.
    unsafe { slabwright_switch_tables(root, cr4) };
    // For all of the window, and for some user spaces.
    paging::fill_pool(window.len().div_ceil(TABLE_BYTES) + 16, low);
    memory::init(memory_end, low, &options);
    smp::find();
    percpu::init(smp::found().min(options.cpus));
    // SAFETY: no other CPU runs yet.
    unsafe { fault::init() };
    interrupt::init();
    user::init();
    smp::start_others();
    paging::drop_identity();
    // The same memory, at the address that has a guard; what is on it is not needed any more.
    let stack = stack::map(0, PhysAddr(((&raw const slabwright_boot_stack).addr() - PAGE_OFFSET) as u64));
    // SAFETY: the stack is mapped, and the kernel does not return.
    unsafe {
        asm!("mov esp, {}", "xor ebp, ebp", "call {}", "ud2", in(reg) stack, sym kernel_main, options(noreturn));
    }
}
