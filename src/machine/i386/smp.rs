//! More than one CPU: finding them, starting them, calling a function on them.
//!
//! They are found in the firmware's tables ([`firmware`]) and started one after the other by INIT and STARTUP through
//! the local APIC. Nothing here waits for a time: a CPU that is listed comes up.
#![cfg(all(target_arch = "x86", feature = "i386"))]
#![allow(unsafe_code)]

use core::arch::global_asm;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use super::cpu::{self, IrqOff};
use super::firmware::{self, Source};
use super::layout::{MAX_CPUS, PAGE_OFFSET};
use super::stack::{self, STACK};
use super::{I386, interrupt, memory, percpu};
use crate::types::PAGE_SIZE;

/// Where the code of a starting CPU lies: below 1 MiB, and reserved.
const TRAMPOLINE: usize = 0x8000;

global_asm!(
    ".pushsection .boot, \"awx\"",
    ".code16",
    // Rust names them from other object files.
    ".globl slabwright_trampoline, slabwright_trampoline_end",
    ".globl slabwright_other_cr3, slabwright_other_cr4, slabwright_other_stack",
    "slabwright_trampoline:",
    "jmp 4f",
    ".balign 4",
    ".word 23",
    ".long slabwright_boot_segments",
    "4:",
    "cli",
    "cld",
    "xor ax, ax",
    "mov ds, ax",
    // The pointer as it lies in the copy.
    "lgdt [{trampoline} + 4]",
    "mov eax, cr0",
    "or eax, 1",
    "mov cr0, eax",
    // A far jump with a 32-bit offset.
    ".byte 0x66, 0xea",
    ".long slabwright_protected",
    ".word {code}",
    "slabwright_trampoline_end:",
    ".code32",
    "slabwright_protected:",
    "mov eax, {data}",
    "mov ds, ax",
    "mov es, ax",
    "mov fs, ax",
    "mov ss, ax",
    "mov eax, [slabwright_other_cr4]",
    "mov cr4, eax",
    "mov eax, [slabwright_other_cr3]",
    "mov cr3, eax",
    "mov eax, cr0",
    "or eax, 0x80010000",
    "and eax, 0x9fffffff",
    "mov cr0, eax",
    "mov esp, [slabwright_other_stack]",
    "fninit",
    "xor ebp, ebp",
    "lea eax, [{start}]",
    "call eax",
    "ud2",
    ".balign 4",
    "slabwright_other_cr3: .long 0",
    "slabwright_other_cr4: .long 0",
    "slabwright_other_stack: .long 0",
    ".popsection",
    trampoline = const TRAMPOLINE,
    code = const cpu::KERNEL_CODE,
    data = const cpu::KERNEL_DATA,
    start = sym start_other,
);

unsafe extern "C" {
    static slabwright_trampoline: u8;
    static slabwright_trampoline_end: u8;
    static mut slabwright_other_cr3: u32;
    static mut slabwright_other_cr4: u32;
    static mut slabwright_other_stack: u32;
}

/// Local APIC ids, by CPU number.
static APIC_IDS: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
static FOUND: AtomicUsize = AtomicUsize::new(1);
static SOURCE: AtomicUsize = AtomicUsize::new(Source::None as usize);
/// The CPU that is being started.
static STARTING: AtomicUsize = AtomicUsize::new(0);
/// CPUs that run, as bits.
static ONLINE: AtomicU32 = AtomicU32::new(1);

/// Looks for the CPUs there are.
pub fn find() {
    let cpus = firmware::find();
    for (slot, id) in APIC_IDS.iter().zip(cpus.ids) {
        slot.store(u32::from(id), Ordering::Relaxed);
    }
    FOUND.store(cpus.len, Ordering::Relaxed);
    SOURCE.store(cpus.source as usize, Ordering::Relaxed);
}

/// Who told of the CPUs.
pub fn source() -> Source {
    [Source::Acpi, Source::MultiProcessor, Source::None][SOURCE.load(Ordering::Relaxed)]
}

/// CPUs there are.
pub fn found() -> usize {
    FOUND.load(Ordering::Relaxed)
}

/// CPUs that run.
pub fn online() -> usize {
    ONLINE.load(Ordering::Relaxed).count_ones() as usize
}

/// Starts the other CPUs that have an area; each waits for work then ([`run`]).
pub fn start_others() {
    if percpu::cpus() == 1 {
        return;
    }
    let code = &raw const slabwright_trampoline;
    let len = (&raw const slabwright_trampoline_end).addr() - code.addr();
    // SAFETY: the frames below 64 KiB are reserved. The image's first section is read and written through the direct
    // map, since its symbols have physical addresses.
    unsafe {
        let high = |address: usize| ptr::with_exposed_provenance_mut::<u8>(PAGE_OFFSET + address);
        high(TRAMPOLINE).copy_from_nonoverlapping(high(code.addr()), len);
        high((&raw const slabwright_other_cr3).addr()).cast::<u32>().write_volatile(cpu::cr3());
        high((&raw const slabwright_other_cr4).addr()).cast::<u32>().write_volatile(cpu::cr4());
        for (number, id) in APIC_IDS.iter().enumerate().take(percpu::cpus()).skip(1) {
            let top = stack::map(number, memory::take_low(STACK, PAGE_SIZE));
            high((&raw const slabwright_other_stack).addr()).cast::<u32>().write_volatile(top as u32);
            STARTING.store(number, Ordering::Release);
            let id = id.load(Ordering::Relaxed);
            interrupt::send(id, interrupt::INIT);
            // Twice, as the specification has it: an early processor may miss the first.
            interrupt::send(id, interrupt::STARTUP | (TRAMPOLINE >> 12) as u32);
            interrupt::pause();
            if ONLINE.load(Ordering::Acquire) & 1 << number == 0 {
                interrupt::send(id, interrupt::STARTUP | (TRAMPOLINE >> 12) as u32);
            }
            while ONLINE.load(Ordering::Acquire) & 1 << number == 0 {
                core::hint::spin_loop();
            }
        }
    }
}

/// The first Rust code of another CPU.
extern "C" fn start_other() -> ! {
    let number = STARTING.load(Ordering::Acquire);
    // The second STARTUP may find the CPU up: then it is ignored, so this runs once.
    // SAFETY: this CPU, once; its area was made at boot.
    unsafe {
        percpu::enter(number);
        interrupt::load();
        interrupt::init_other();
    }
    ONLINE.fetch_or(1 << number, Ordering::AcqRel);
    loop {
        let off = IrqOff::new();
        let job = JOBS[number].lock(&I386).take();
        if let Some((job, argument)) = job {
            drop(off);
            // SAFETY: this CPU is set up, and holds nothing.
            unsafe { cpu::sti() };
            job(argument);
            // Release, pairs with the Acquire in `wait_idle`.
            BUSY.fetch_and(!(1 << number), Ordering::Release);
        } else {
            // A job that comes from here on wakes the CPU by an interrupt.
            // SAFETY: as above. `off` is forgotten: interrupts are to be on.
            unsafe { cpu::wait_for_interrupt() };
            core::mem::forget(off);
        }
    }
}

type Job = (fn(usize), usize);
static JOBS: [crate::sync::Lock<Option<Job>>; MAX_CPUS] = [const { crate::sync::Lock::new(None) }; MAX_CPUS];
/// CPUs with a job, as bits.
static BUSY: AtomicU32 = AtomicU32::new(0);

/// Lets another CPU run `job`. False where there is no such CPU, or it has a job.
pub fn run(cpu: usize, job: fn(usize), argument: usize) -> bool {
    let bit = 1 << cpu;
    if cpu == percpu::cpu() || ONLINE.load(Ordering::Acquire) & bit == 0 {
        return false;
    }
    if BUSY.fetch_or(bit, Ordering::AcqRel) & bit != 0 {
        return false;
    }
    *JOBS[cpu].lock(&I386) = Some((job, argument));
    interrupt::send(APIC_IDS[cpu].load(Ordering::Relaxed), interrupt::WAKE);
    true
}

/// Waits until another CPU has done its job.
pub fn wait_idle(cpu: usize) {
    // Acquire, pairs with the Release after the job.
    while BUSY.load(Ordering::Acquire) & 1 << cpu != 0 {
        answer();
        core::hint::spin_loop();
    }
}

/// A call to other CPUs is under way.
static CALLING: AtomicBool = AtomicBool::new(false);
/// Who has yet to answer, as bits.
static PENDING: AtomicU32 = AtomicU32::new(0);
static CALL: (AtomicUsize, AtomicUsize) = (AtomicUsize::new(0), AtomicUsize::new(0));
/// Calls answered.
static ANSWERED: AtomicU32 = AtomicU32::new(0);

/// Runs `call` on the CPUs of `mask`, interrupts off, and waits for all of them. While it waits this CPU answers
/// others' calls, so that two may call each other. Interrupts are off here, too: a handler that calls must not find the
/// call of whom it interrupted.
fn call(mask: u32, call: fn(usize), argument: usize) {
    if mask == 0 {
        return;
    }
    let _off = IrqOff::new();
    // Acquire, pairs with the Release below: the call before is over.
    while CALLING.swap(true, Ordering::Acquire) {
        answer();
        core::hint::spin_loop();
    }
    CALL.0.store(call as usize, Ordering::Relaxed);
    CALL.1.store(argument, Ordering::Relaxed);
    // Release, pairs with the Acquire in `answer`.
    PENDING.store(mask, Ordering::Release);
    let targets = (0..MAX_CPUS).filter(|cpu| mask & 1 << cpu != 0);
    targets.for_each(|cpu| interrupt::send(APIC_IDS[cpu].load(Ordering::Relaxed), interrupt::CALL));
    // Acquire, pairs with the Release in `answer`: what the others did is done.
    while PENDING.load(Ordering::Acquire) != 0 {
        core::hint::spin_loop();
    }
    CALLING.store(false, Ordering::Release);
}

/// Does what another CPU asked this one to do, if it did.
pub fn answer() {
    let bit = 1 << percpu::cpu();
    let _off = IrqOff::new();
    // Acquire, pairs with the Release in `call`.
    if PENDING.load(Ordering::Acquire) & bit == 0 {
        return;
    }
    // SAFETY: only `call` stores here, and a function of this type.
    let call: fn(usize) = unsafe { core::mem::transmute(CALL.0.load(Ordering::Relaxed)) };
    call(CALL.1.load(Ordering::Relaxed));
    ANSWERED.fetch_add(1, Ordering::Relaxed);
    PENDING.fetch_and(!bit, Ordering::Release);
}

/// Calls answered so far.
pub fn answered() -> u32 {
    ANSWERED.load(Ordering::Relaxed)
}

/// Runs `f` on every other CPU that runs, and waits for it.
pub fn on_others(f: fn(usize), argument: usize) {
    percpu::preempt_disable();
    call(ONLINE.load(Ordering::Acquire) & !(1 << percpu::cpu()), f, argument);
    percpu::preempt_enable();
}

/// Waits until `cpu`, another one, is outside of every section that it was in: it takes interrupts between them.
pub fn wait_for_section(cpu: usize) {
    call(ONLINE.load(Ordering::Acquire) & 1 << cpu, |_| {}, 0);
}
