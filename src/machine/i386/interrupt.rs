//! The interrupt descriptor table, the interrupt controllers and the timers.
//!
//! The boot CPU gets the PIT's ticks through the old controllers, each other CPU those of its local APIC.
#![cfg(all(target_arch = "x86", feature = "i386"))]
#![allow(unsafe_code)]

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::layout::{FixedAddress, fix_to_virt};
use super::{cpu, fault, fixmap, percpu, smp, user};
use crate::sync::wide::AtomicU64;
use crate::types::PhysAddr;

/// Vector of the PIT, the first of the old controllers.
const TICK: u32 = 0x20;
/// Vector of a system call.
pub const SYSTEM_CALL: u32 = 0x80;
const LOCAL_TICK: u32 = 0xef;
/// Vector of a call from another CPU.
pub const CALL: u32 = 0xf0;
/// Vector that ends a halt.
pub const WAKE: u32 = 0xf1;
const SPURIOUS: u32 = 0xff;
/// Resets a CPU: an interrupt command.
pub const INIT: u32 = 0x4500;
/// Starts a CPU at the page in the low bits: an interrupt command.
pub const STARTUP: u32 = 0x4600;

/// Ticks a second.
const HZ: u32 = 1000;

/// What an interrupt leaves on the stack.
#[repr(C)]
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Frame {
    pub gs: u32,
    pub fs: u32,
    pub es: u32,
    pub ds: u32,
    pub edi: u32,
    pub esi: u32,
    pub ebp: u32,
    /// Of no use: where `pushad` began.
    pub unused: u32,
    pub ebx: u32,
    pub edx: u32,
    pub ecx: u32,
    pub eax: u32,
    pub vector: u32,
    pub error: u32,
    pub eip: u32,
    pub cs: u32,
    pub flags: u32,
    /// Only where the interrupt came from ring 3, and so `user_ss`.
    pub user_esp: u32,
    pub user_ss: u32,
}

impl Frame {
    /// The stack pointer before the interrupt.
    pub fn esp(&self) -> u32 {
        if self.is_user() { self.user_esp } else { (&raw const self.user_esp).addr() as u32 }
    }

    /// Whether the interrupt came from ring 3.
    pub fn is_user(&self) -> bool {
        self.cs & 3 != 0
    }
}

// A stub of 16 bytes for each vector: those without an error code push 0.
global_asm!(
    ".pushsection .text",
    ".balign 16",
    ".globl slabwright_stubs",
    "slabwright_stubs:",
    ".set slabwright_vector, 0",
    ".rept 256",
    ".balign 16",
    ".if (slabwright_vector == 8) || ((slabwright_vector >= 10) && (slabwright_vector <= 14)) || (slabwright_vector == 17)",
    ".else",
    "push 0",
    ".endif",
    // push imm32
    ".byte 0x68",
    ".long slabwright_vector",
    "jmp slabwright_entry",
    ".set slabwright_vector, slabwright_vector + 1",
    ".endr",
    ".balign 16",
    "slabwright_entry:",
    "pushad",
    // push ds, es, fs, gs: by name the assembler takes the 16-bit forms.
    ".byte 0x1e, 0x06, 0x0f, 0xa0, 0x0f, 0xa8",
    "mov eax, {data}",
    "mov ds, eax",
    "mov es, eax",
    "mov eax, {percpu}",
    "mov fs, eax",
    "cld",
    "mov eax, esp",
    "push eax",
    "call {dispatch}",
    "add esp, 4",
    // pop gs, fs, es, ds
    ".byte 0x0f, 0xa9, 0x0f, 0xa1, 0x07, 0x1f",
    "popad",
    "add esp, 8",
    "iretd",
    ".popsection",
    data = const cpu::KERNEL_DATA,
    percpu = const cpu::PERCPU_DATA,
    dispatch = sym dispatch,
);

unsafe extern "C" {
    static slabwright_stubs: u8;
}

/// The descriptor table, for all CPUs.
struct Gates(UnsafeCell<[u64; 256]>);
// SAFETY: written by the boot CPU before any other runs.
unsafe impl Sync for Gates {}
static GATES: Gates = Gates(UnsafeCell::new([0; 256]));

/// Fills the table on the boot CPU, and makes it the one of this CPU.
///
/// # Safety
/// First on the boot CPU, alone; then on each other one.
pub unsafe fn load() {
    let stubs = (&raw const slabwright_stubs).addr() as u64;
    // SAFETY: the caller's condition; the other CPUs write nothing, since the table is filled then.
    unsafe {
        if (*GATES.0.get())[0] == 0 {
            for (vector, gate) in (*GATES.0.get()).iter_mut().enumerate() {
                // A double fault switches to a task of its own: this stack may be used up.
                if vector == 8 {
                    *gate = u64::from(cpu::FAULT_TASK) << 16 | 0x8500 << 32;
                    continue;
                }
                let entry = stubs + 16 * vector as u64;
                // An interrupt gate; ring 3 may use that of system calls only.
                let access = if vector as u32 == SYSTEM_CALL { 0xee00 } else { 0x8e00 };
                *gate = entry & 0xffff | u64::from(cpu::KERNEL_CODE) << 16 | access << 32 | (entry >> 16) << 48;
            }
        }
        cpu::load_interrupts(&*GATES.0.get());
    }
}

/// A function that runs in each tick of each CPU, in the handler.
static HOOK: AtomicUsize = AtomicUsize::new(0);
static TICKS: AtomicU64 = AtomicU64::new(0);

/// Sets what runs in each tick of each CPU, as an interrupt handler; `None` for nothing.
pub fn on_tick(hook: Option<fn()>) {
    HOOK.store(hook.map_or(0, |hook| hook as usize), Relaxed);
}

/// Milliseconds that the timer has counted.
pub fn now_ms() -> u64 {
    TICKS.load(Relaxed) * 1000 / u64::from(HZ)
}

/// A function that runs after each instruction which lets interrupts in, while the CPU steps.
static STEP: AtomicUsize = AtomicUsize::new(0);

/// Runs `body` step by step on this CPU, with `hook` as an interrupt handler after each instruction at which one could
/// come: what a timer hits once in a million times, this hits each time.
pub fn step_through(hook: fn(), body: impl FnOnce()) {
    STEP.store(hook as usize, Relaxed);
    // SAFETY: the trap leads to `step`; the flag is taken back before the hook is.
    unsafe {
        cpu::set_trap_flag(true);
        body();
        cpu::set_trap_flag(false);
    }
    STEP.store(0, Relaxed);
}

fn step(frame: &Frame) {
    let hook = STEP.load(Relaxed);
    if hook == 0 || frame.flags & cpu::FLAG_IF == 0 {
        return;
    }
    percpu::enter_depth(percpu::IN_IRQ);
    // SAFETY: only `step_through` stores here, and a function of this type.
    let hook: fn() = unsafe { core::mem::transmute(hook) };
    hook();
    percpu::leave_depth(percpu::IN_IRQ);
}

fn tick() {
    let hook = HOOK.load(Relaxed);
    if hook != 0 {
        // SAFETY: only `on_tick` stores here, and a function of this type.
        let hook: fn() = unsafe { core::mem::transmute(hook) };
        hook();
    }
}

extern "C" fn dispatch(frame: *mut Frame) {
    // SAFETY: the entry code made the frame, on this stack.
    let frame = unsafe { &mut *frame };
    match frame.vector {
        1 => step(frame),
        14 => fault::page_fault(frame),
        0..32 => fault::exception(frame),
        SYSTEM_CALL => user::system_call(frame),
        vector => {
            percpu::enter_depth(percpu::IN_IRQ);
            match vector {
                TICK => {
                    TICKS.fetch_add(1, Relaxed);
                    // SAFETY: end of interrupt, to the first controller.
                    unsafe { cpu::outb(0x20, 0x20) };
                    tick();
                }
                LOCAL_TICK => {
                    end_of_interrupt();
                    tick();
                }
                CALL => {
                    end_of_interrupt();
                    smp::answer();
                }
                WAKE => end_of_interrupt(),
                // The old controllers' spurious ones, and the APIC's: nothing to end.
                0x27 | 0x2f | SPURIOUS => {}
                vector => panic!("interrupt {vector:#x}, which nobody asked for"),
            }
            percpu::leave_depth(percpu::IN_IRQ);
        }
    }
}

/// A register of the local APIC.
fn apic(register: usize) -> *mut u32 {
    ptr::with_exposed_provenance_mut(fix_to_virt::<{ FixedAddress::ApicBase as usize }>() + register)
}

fn end_of_interrupt() {
    // SAFETY: the APIC is mapped where interrupts come from it.
    unsafe { apic(0xb0).write_volatile(0) };
}

/// Whether there is a local APIC.
pub fn has_apic() -> bool {
    cpu::features() & cpu::FEATURE_APIC != 0
}

/// Sends an interrupt command to the CPU with local APIC `id`.
pub fn send(id: u32, command: u32) {
    let _off = cpu::IrqOff::new();
    // SAFETY: the APIC is mapped; the command is one of this module's.
    unsafe {
        while apic(0x300).read_volatile() & 1 << 12 != 0 {
            core::hint::spin_loop();
        }
        apic(0x310).write_volatile(id << 24);
        apic(0x300).write_volatile(command | 0x4000);
    }
}

/// Takes about as long as a hundred bus cycles.
pub fn pause() {
    // SAFETY: a port that nobody listens to.
    (0..100).for_each(|_| unsafe { cpu::outb(0x80, 0) });
}

/// Sets up the controllers and the timer of the boot CPU. Interrupts stay off.
pub fn init() {
    if has_apic() {
        fixmap::set_fixmap::<{ FixedAddress::ApicBase as usize }>(PhysAddr(0xfee0_0000), super::paging::DEVICE);
        fixmap::set_fixmap::<{ FixedAddress::IoApicBase0 as usize }>(PhysAddr(0xfec0_0000), super::paging::DEVICE);
        // SAFETY: it is mapped now. Enabled, with its spurious vector.
        unsafe { apic(0xf0).write_volatile(0x100 | SPURIOUS) };
    }
    // SAFETY: the controllers and the timer of a PC. Vectors from 0x20; only the timer is let through.
    unsafe {
        let commands = [
            (0x20, 0x11),
            (0xa0, 0x11),
            (0x21, TICK as u8),
            (0xa1, TICK as u8 + 8),
            (0x21, 4),
            (0xa1, 2),
            (0x21, 1),
            (0xa1, 1),
            (0x21, 0xfe),
            (0xa1, 0xff),
            (0x43, 0x34),
        ];
        commands.into_iter().for_each(|(port, value)| cpu::outb(port, value));
        let divisor = 1_193_182 / HZ;
        cpu::outb(0x40, divisor as u8);
        cpu::outb(0x40, (divisor >> 8) as u8);
    }
}

/// Sets up the local APIC of another CPU: interrupts from the boot CPU, and ticks.
///
/// # Safety
/// Once on each, before it lets interrupts in.
pub unsafe fn init_other() {
    // SAFETY: the boot CPU mapped it; every CPU sees its own there. A tick in each 62500 × 16 bus cycles, a millisecond
    // of QEMU's.
    unsafe {
        apic(0xf0).write_volatile(0x100 | SPURIOUS);
        apic(0x3e0).write_volatile(3);
        apic(0x320).write_volatile(1 << 17 | LOCAL_TICK);
        apic(0x380).write_volatile(62_500);
    }
}
