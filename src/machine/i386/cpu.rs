//! Instructions that Rust has no words for: control registers, ports, interrupts, segments.
#![cfg(all(target_arch = "x86", feature = "i386"))]
#![allow(unsafe_code)]

use core::arch::asm;

macro_rules! control_register {
    ($($(#[$doc:meta])* $read:ident, $write:ident: $name:literal;)*) => {$(
        $(#[$doc])*
        #[inline]
        pub fn $read() -> u32 {
            let value;
            // SAFETY: reading a control register changes nothing.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }

        #[doc = concat!("Writes what [`", stringify!($read), "`] reads.")]
        ///
        /// # Safety
        /// The code that runs stays mapped and valid under the new value.
        #[inline]
        pub unsafe fn $write(value: u32) {
            // SAFETY: the caller's condition.
            unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags)) };
        }
    )*};
}

control_register! {
    /// Protection, paging and write-protect bits.
    cr0, set_cr0: "cr0";
    /// The address of the last page fault.
    cr2, set_cr2: "cr2";
    /// The page directory.
    cr3, set_cr3: "cr3";
    /// Extensions: PSE (bit 4), PAE (5), PGE (7).
    cr4, set_cr4: "cr4";
}

/// Huge pages.
pub const CR4_PSE: u32 = 1 << 4;
/// Three-level tables.
pub const CR4_PAE: u32 = 1 << 5;
/// Global pages.
pub const CR4_PGE: u32 = 1 << 7;

/// Reads a byte from a port.
///
/// # Safety
/// The device behind the port may be read now.
#[inline]
pub unsafe fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: the caller's condition.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes a byte to a port.
///
/// # Safety
/// What the device does on it is harmless.
#[inline]
pub unsafe fn outb(port: u16, value: u8) {
    // SAFETY: the caller's condition.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
}

/// The time stamp counter.
#[inline]
pub fn rdtsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Feature bits (edx of leaf 1).
pub fn features() -> u32 {
    core::arch::x86::__cpuid(1).edx
}

/// Huge pages exist.
pub const FEATURE_PSE: u32 = 1 << 3;
/// Three-level tables exist.
pub const FEATURE_PAE: u32 = 1 << 6;
/// A local APIC exists.
pub const FEATURE_APIC: u32 = 1 << 9;
/// Global pages exist.
pub const FEATURE_PGE: u32 = 1 << 13;
/// Physical addresses have 36 bits.
pub const FEATURE_PSE36: u32 = 1 << 17;

/// Bit of the flags register: interrupts are let in.
pub const FLAG_IF: u32 = 1 << 9;

/// The flags register.
#[inline]
pub fn flags() -> u32 {
    let flags;
    // SAFETY: pushes and pops.
    unsafe { asm!("pushfd", "pop {}", out(reg) flags, options(nomem, preserves_flags)) };
    flags
}

/// Lets interrupts in.
///
/// # Safety
/// The descriptor table is set up, and the caller is not inside something that a handler must not see half done.
#[inline]
pub unsafe fn sti() {
    // SAFETY: the caller's condition. It orders memory, as what was guarded ends here.
    unsafe { asm!("sti", options(nostack)) };
}

/// Whether each instruction of this CPU is followed by a debug trap.
///
/// # Safety
/// The descriptor table is set up, and the handler of vector 1 expects it.
#[inline(always)]
pub unsafe fn set_trap_flag(on: bool) {
    const TRAP: u32 = 1 << 8;
    // SAFETY: the caller's condition.
    unsafe {
        asm!("pushfd", "and dword ptr [esp], {keep}", "or dword ptr [esp], {set:e}", "popfd", keep = const !TRAP, set = in(reg) if on { TRAP } else { 0 })
    };
}

/// Interrupts are off as long as it lives; then they are as before (`local_irq_save`, `local_irq_restore`).
pub struct IrqOff {
    flags: u32,
    /// Not to be sent to another CPU.
    here: core::marker::PhantomData<*mut ()>,
}

impl IrqOff {
    /// Turns interrupts off.
    #[inline(always)]
    #[allow(clippy::new_without_default)]
    pub fn new() -> IrqOff {
        let flags;
        // SAFETY: turning interrupts off is always sound. It orders memory, as what is guarded begins here.
        unsafe { asm!("pushfd", "pop {}", "cli", out(reg) flags) };
        IrqOff { flags, here: core::marker::PhantomData }
    }
}

impl Drop for IrqOff {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the flags are those of the caller before.
        unsafe { asm!("push {}", "popfd", in(reg) self.flags) };
    }
}

/// Waits for an interrupt. Interrupts are on afterwards.
///
/// # Safety
/// As for [`sti`].
#[inline]
pub unsafe fn wait_for_interrupt() {
    // SAFETY: the caller's condition; `sti` takes effect after `hlt` began, so no interrupt is missed.
    unsafe { asm!("sti", "hlt", options(nostack)) };
}

/// Forgets what the TLB says of the page at `address` on this CPU.
#[inline]
pub fn invlpg(address: usize) {
    // SAFETY: only a translation is forgotten. It orders memory, so that the entry is written before.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) };
}

/// Writes back and invalidates the caches.
pub fn wbinvd() {
    // SAFETY: changes no contents.
    unsafe { asm!("wbinvd", options(nostack, preserves_flags)) };
}

/// A code, data, per-CPU or task segment.
const fn descriptor(base: usize, limit: u32, access: u8, granular: u8) -> u64 {
    let (base, limit) = (base as u64, limit as u64);
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | (access as u64) << 40
        | (limit >> 16 & 0xf) << 48
        | (granular as u64) << 52
        | (base >> 24) << 56
}

/// Segment of kernel code.
pub const KERNEL_CODE: u16 = 0x08;
/// Segment of kernel data and stacks.
pub const KERNEL_DATA: u16 = 0x10;
/// Segment of user code, with its privilege level.
pub const USER_CODE: u16 = 0x1b;
/// Segment of user data, with its privilege level.
pub const USER_DATA: u16 = 0x23;
/// Segment in fs: its base makes the address of a per-CPU variable that of this CPU's copy.
pub const PERCPU_DATA: u16 = 0x28;
const TASK: u16 = 0x30;
/// The task that a double fault switches to.
pub const FAULT_TASK: u16 = 0x38;

/// The segments and the tasks of one CPU.
#[repr(C, align(16))]
pub struct Segments {
    table: [u64; 8],
    /// What the CPU runs in. Of use are the stack on which ring 0 is entered from ring 3, and the registers after a
    /// double fault.
    task: TaskState,
    /// Where a double fault goes to: the stack of before may be of no use any more.
    fault_task: TaskState,
    fault_stack: [u8; FAULT_STACK],
}

const FAULT_STACK: usize = 8192;

/// A task's registers, as the processor loads and stores them when it switches.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct TaskState {
    link: u32,
    esp0: u32,
    ss0: u32,
    inner: [u32; 4],
    pub cr3: u32,
    pub eip: u32,
    pub flags: u32,
    pub eax: u32,
    pub ecx: u32,
    pub edx: u32,
    pub ebx: u32,
    pub esp: u32,
    pub ebp: u32,
    pub esi: u32,
    pub edi: u32,
    pub es: u32,
    pub cs: u32,
    pub ss: u32,
    pub ds: u32,
    pub fs: u32,
    pub gs: u32,
    ldt: u32,
    io_map: u32,
}

const _: () = assert!(size_of::<TaskState>() == 104);

impl TaskState {
    // SAFETY: numbers, of which zero is one.
    const ZERO: TaskState = unsafe { core::mem::zeroed() };
}

#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u32,
}

impl Segments {
    /// Empty tables.
    pub const fn new() -> Segments {
        let (task, fault_task) = (TaskState::ZERO, TaskState::ZERO);
        Segments { table: [0; 8], task, fault_task, fault_stack: [0; FAULT_STACK] }
    }

    /// Fills the tables and makes them this CPU's; `percpu` is the base of fs. A double fault enters `fault`, on a
    /// stack of its own and in the address space that is in use now.
    ///
    /// # Safety
    /// `this` stays where it is and is used by this CPU alone; `percpu` is right for it.
    pub unsafe fn load(this: *mut Segments, percpu: usize, fault: extern "C" fn() -> !) {
        // SAFETY: the caller gives the tables; the descriptors are flat ones, so all addresses stay what they were.
        unsafe {
            let (task, fault_task) = ((&raw const (*this).task).addr(), (&raw const (*this).fault_task).addr());
            let limit = size_of::<TaskState>() as u32 - 1;
            (*this).table = [
                0,
                descriptor(0, 0xf_ffff, 0x9a, 0xc),
                descriptor(0, 0xf_ffff, 0x92, 0xc),
                descriptor(0, 0xf_ffff, 0xfa, 0xc),
                descriptor(0, 0xf_ffff, 0xf2, 0xc),
                descriptor(percpu, 0xf_ffff, 0x92, 0xc),
                descriptor(task, limit, 0x89, 0),
                descriptor(fault_task, limit, 0x89, 0),
            ];
            let data = u32::from(KERNEL_DATA);
            // Beyond the limit: no port is for ring 3.
            let io_map = (limit + 1) << 16;
            (*this).task = TaskState { ss0: data, io_map, ..TaskState::ZERO };
            (*this).fault_task = TaskState {
                cr3: cr3(),
                eip: fault as usize as u32,
                flags: 2,
                esp: ((&raw const (*this).fault_stack).addr() + FAULT_STACK) as u32,
                cs: u32::from(KERNEL_CODE),
                ss: data,
                ds: data,
                es: data,
                fs: u32::from(PERCPU_DATA),
                io_map,
                ..TaskState::ZERO
            };
            let pointer = TablePointer { limit: 8 * 8 - 1, base: (&raw const (*this).table).addr() as u32 };
            asm!(
                "lgdt [{pointer}]",
                "push {code}",
                "lea {scratch}, [2f]",
                "push {scratch}",
                "retf",
                "2:",
                "mov ds, {data:x}",
                "mov es, {data:x}",
                "mov ss, {data:x}",
                "mov fs, {percpu:x}",
                "xor {scratch}, {scratch}",
                "mov gs, {scratch:x}",
                "ltr {task:x}",
                pointer = in(reg) &raw const pointer,
                code = const KERNEL_CODE,
                scratch = out(reg) _,
                data = in(reg) u32::from(KERNEL_DATA),
                percpu = in(reg) u32::from(PERCPU_DATA),
                task = in(reg) u32::from(TASK),
            );
        }
    }

    /// The registers at a double fault, for its handler.
    ///
    /// # Safety
    /// `this` is this CPU's.
    pub unsafe fn interrupted(this: *const Segments) -> TaskState {
        // SAFETY: the caller's condition; the processor stored them when it switched.
        unsafe { (&raw const (*this).task).read_volatile() }
    }

    /// Where the processor finds the stack on which it enters ring 0 from ring 3.
    ///
    /// # Safety
    /// `this` is this CPU's.
    pub unsafe fn kernel_stack(this: *mut Segments) -> *mut u32 {
        // SAFETY: the caller's condition.
        unsafe { &raw mut (*this).task.esp0 }
    }
}

impl Default for Segments {
    fn default() -> Segments {
        Segments::new()
    }
}

/// Makes `gates` the interrupt descriptor table of this CPU.
///
/// # Safety
/// Every gate that is present leads to a handler, for ever.
pub unsafe fn load_interrupts(gates: &'static [u64; 256]) {
    let pointer = TablePointer { limit: 256 * 8 - 1, base: gates.as_ptr().addr() as u32 };
    // SAFETY: the caller's condition.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(readonly, nostack, preserves_flags)) };
}
