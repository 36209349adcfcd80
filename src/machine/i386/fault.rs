//! Exceptions: page faults that are put right, faults that a fixup expects, and the report of all others.
#![cfg(all(target_arch = "x86", feature = "i386"))]
#![allow(unsafe_code)]

use core::arch::{asm, global_asm};
use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::console::{self, Exit};
use super::cpu::{Segments, TaskState};
use super::interrupt::Frame;
use super::layout::PAGE_OFFSET;
use super::percpu::{self, SEGMENTS};
use super::{cpu, paging, stack, user};
use crate::paging::{Area, Fault, FaultCode, Faulting, Fixup, Outcome, Signal, do_page_fault};
use crate::printk;
use crate::types::VirtAddr;

unsafe extern "C" {
    static mut slabwright_extable_start: [Fixup; 0];
    static mut slabwright_extable_end: [Fixup; 0];
}

/// First entry and number of entries of the exception table.
fn bounds() -> (*mut Fixup, usize) {
    let start = (&raw mut slabwright_extable_start).cast::<Fixup>();
    (start, ((&raw const slabwright_extable_end).addr() - start.addr()) / size_of::<Fixup>())
}

fn table() -> &'static [Fixup] {
    let (start, len) = bounds();
    // SAFETY: the linker script gathers the entries there; `init` was their last writer.
    unsafe { core::slice::from_raw_parts(start, len) }
}

/// Sorts the exception table.
///
/// # Safety
/// Once, on the boot CPU, while no other runs: who looks into the table reads it without a lock.
pub unsafe fn init() {
    let (start, len) = bounds();
    // SAFETY: the entries are there, and the caller's alone.
    unsafe { core::slice::from_raw_parts_mut(start, len) }.sort_unstable_by_key(|fixup| fixup.at);
}

/// Where to go on after a fault at `eip`.
pub fn search_exception_table(eip: u32) -> Option<u32> {
    crate::paging::search_exception_table(table(), eip)
}

/// Entries of the exception table.
pub fn fixups() -> usize {
    table().len()
}

/// The page faults of a CPU.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// How many there were.
    pub count: u32,
    /// The address of the last one.
    pub address: usize,
    /// Its error code.
    pub code: FaultCode,
}

crate::per_cpu! {
    static FAULTS: Faults = Faults { count: 0, address: 0, code: FaultCode(0) };
}

/// This CPU's page faults.
pub fn faults() -> Faults {
    // SAFETY: this CPU's copy, plain data.
    unsafe { FAULTS.this().read_volatile() }
}

/// The handler of page faults (`do_page_fault`).
pub fn page_fault(frame: &mut Frame) {
    let address = cpu::cr2() as usize;
    let code = FaultCode(frame.error & 7);
    // SAFETY: this CPU's copy; interrupts are off.
    unsafe {
        let count = (*FAULTS.this()).count + 1;
        FAULTS.this().write_volatile(Faults { count, address, code });
    }
    let fault = Fault { address, code, at: frame.eip };
    match do_page_fault(&mut Here, fault) {
        Outcome::Again => {}
        Outcome::Fixup(to) => frame.eip = to,
        Outcome::Signal(signal) => user::end(frame, address, Some(signal)),
        Outcome::Oops(what) => oops(frame, frame.esp(), format_args!("{what} at {address:#010x} ({code})")),
    }
}

/// The task on this CPU.
struct Here;

impl Faulting for Here {
    const KERNEL: usize = PAGE_OFFSET;

    fn sync_kernel_entry(&mut self, address: usize) -> bool {
        paging::sync_kernel_entry(address)
    }

    fn is_atomic(&self) -> bool {
        !user::is_served()
    }

    fn find_area(&self, address: usize) -> Option<Area> {
        user::with_task(|task| task.areas().find(address)).flatten()
    }

    fn grow(&mut self, area: Area, address: usize) -> bool {
        user::with_task(|task| task.areas().grow(area.start, address)).unwrap_or(false)
    }

    fn make_present(&mut self, area: Area, fault: Fault) -> Result<(), Signal> {
        user::with_task(|task| task.make_present(area, fault)).unwrap_or(Err(Signal::NoArea))
    }

    fn fixups(&self) -> &[Fixup] {
        table()
    }
}

/// The handler of the other exceptions.
pub fn exception(frame: &mut Frame) {
    if frame.is_user() {
        user::end(frame, 0, None);
    }
    if !fixup(frame) {
        let name = NAMES.get(frame.vector as usize).copied().unwrap_or("exception");
        oops(frame, frame.esp(), format_args!("{name} (vector {}, error {:#x})", frame.vector, frame.error));
    }
}

/// What a double fault enters, as a task: a fault while one was being handed to its handler, most often as there was no
/// stack left to push it to.
pub extern "C" fn double_fault() -> ! {
    // SAFETY: this CPU's.
    let task = unsafe { Segments::interrupted(SEGMENTS.this()) };
    let TaskState { gs, fs, es, ds, edi, esi, ebp, ebx, edx, ecx, eax, eip, cs, flags, esp, ss, .. } = task;
    let (unused, vector, error, user_esp, user_ss) = (0, 8, 0, esp, ss);
    let frame = Frame {
        gs,
        fs,
        es,
        ds,
        edi,
        esi,
        ebp,
        unused,
        ebx,
        edx,
        ecx,
        eax,
        vector,
        error,
        eip,
        cs,
        flags,
        user_esp,
        user_ss,
    };
    let address = cpu::cr2() as usize;
    if stack::is_guard(address) {
        oops(&frame, esp, format_args!("kernel stack overflow at {address:#010x}"));
    }
    oops(&frame, esp, format_args!("double fault, the last page fault at {address:#010x}"));
}

const NAMES: [&str; 15] = [
    "division error",
    "debug trap",
    "non-maskable interrupt",
    "breakpoint",
    "overflow",
    "bounds exceeded",
    "invalid opcode",
    "no coprocessor",
    "double fault",
    "coprocessor segment",
    "invalid task state",
    "segment not present",
    "stack fault",
    "general protection fault",
    "page fault",
];

fn fixup(frame: &mut Frame) -> bool {
    let Some(to) = search_exception_table(frame.eip) else { return false };
    frame.eip = to;
    true
}

/// The report of a fault that nobody handles, with the stack at `esp`; ends the image.
pub fn oops(frame: &Frame, esp: u32, what: core::fmt::Arguments<'_>) -> ! {
    static AGAIN: AtomicBool = AtomicBool::new(false);
    if AGAIN.swap(true, Relaxed) {
        console::exit(Exit::Oops);
    }
    printk!("Oops: {what}\n");
    printk!("CPU {}, eip {:08x}, cs {:04x}, flags {:08x}\n", percpu::cpu(), frame.eip, frame.cs, frame.flags);
    printk!("eax {:08x} ebx {:08x} ecx {:08x} edx {:08x}\n", frame.eax, frame.ebx, frame.ecx, frame.edx);
    printk!("esi {:08x} edi {:08x} ebp {:08x} esp {esp:08x}\n", frame.esi, frame.edi, frame.ebp);
    printk!(
        "ds {:04x} es {:04x} fs {:04x} gs {:04x}",
        frame.ds as u16,
        frame.es as u16,
        frame.fs as u16,
        frame.gs as u16
    );
    printk!(" cr0 {:08x} cr2 {:08x} cr3 {:08x} cr4 {:08x}\n", cpu::cr0(), cpu::cr2(), cpu::cr3(), cpu::cr4());
    if frame.vector == 14 {
        let walked = paging::kernel().walk(&paging::READ_ONLY, VirtAddr(cpu::cr2() as usize));
        printk!("the kernel's table: {:?} entry {:#x}\n", walked.level, walked.entry);
    }
    printk!("stack:");
    for word in 0..16 {
        match read_word(esp as usize + word * 4) {
            Some(word) => printk!(" {word:08x}"),
            None => break,
        }
    }
    printk!("\ncode:");
    for byte in 0..16 {
        match read_byte(frame.eip as usize + byte) {
            Some(byte) => printk!(" {byte:02x}"),
            None => break,
        }
    }
    printk!("\n");
    console::exit(Exit::Oops)
}

// usize slabwright_copy(u8 *to, const u8 *from, usize len): what could not be copied.
global_asm!(
    ".pushsection .text",
    ".globl slabwright_copy",
    "slabwright_copy:",
    "push edi",
    "push esi",
    "mov edi, [esp + 12]",
    "mov esi, [esp + 16]",
    "mov ecx, [esp + 20]",
    "2:",
    "rep movsb",
    "3:",
    "mov eax, ecx",
    "pop esi",
    "pop edi",
    "ret",
    ".pushsection __ex_table, \"aw\"",
    ".long 2b, 3b",
    ".popsection",
    ".popsection",
);

unsafe extern "C" {
    fn slabwright_copy(to: *mut u8, from: *const u8, len: usize) -> usize;
}

/// Copies `len` bytes between addresses of which one may fault; the bytes that were not copied.
///
/// # Safety
/// What of `to` is mapped writable is the caller's to write.
pub unsafe fn copy_checked(to: usize, from: usize, len: usize) -> usize {
    // SAFETY: a fault is caught by the exception table; the rest is the caller's condition.
    unsafe { slabwright_copy(ptr::with_exposed_provenance_mut(to), ptr::with_exposed_provenance(from), len) }
}

/// The byte at an address that may fault.
pub fn read_byte(address: usize) -> Option<u8> {
    let (value, failed): (u32, u32);
    // SAFETY: a fault is caught by the exception table.
    unsafe {
        asm!(
            "2: movzx {value}, byte ptr [{address}]",
            "xor {failed}, {failed}",
            "3:",
            ".pushsection __ex_table, \"aw\"",
            ".long 2b, 3b",
            ".popsection",
            address = in(reg) address,
            value = out(reg) value,
            failed = inout(reg) 1u32 => failed,
            options(readonly, nostack),
        );
    }
    (failed == 0).then_some(value as u8)
}

/// The word at an address that may fault.
pub fn read_word(address: usize) -> Option<u32> {
    let mut bytes = [0; 4];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = read_byte(address.wrapping_add(index))?;
    }
    Some(u32::from_le_bytes(bytes))
}

/// Writes a byte to an address that may fault; whether it did not.
///
/// # Safety
/// If the address is mapped writable it is the caller's to write.
pub unsafe fn write_byte(address: usize, value: u8) -> bool {
    // SAFETY: the caller's condition.
    unsafe { copy_checked(address, (&raw const value).expose_provenance(), 1) == 0 }
}
