//! Per-CPU variables, and the rows of sheaves that are one of them.
//!
//! A static variable lives in a section of its own, the template; each CPU has a copy of it, made at boot, and a
//! segment register (fs) whose base is the distance from the template to that copy. (Dynamic ones are the core's
//! business.)
//!
//! A section on a row runs with interrupts off, so nothing on this CPU comes in between, and no other CPU touches it:
//! one that drains it first makes every section see no row, and waits until the CPU has passed a point outside of them.
#![cfg(all(target_arch = "x86", feature = "i386"))]
#![allow(unsafe_code)]

use core::arch::asm;
use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use super::cpu::{IrqOff, Segments};
use super::layout::MAX_CPUS;
use super::{I386, fault, memory, smp};
use crate::machine::{PerCpu, ROW_WORDS, Word, no_sheaf, row};

/// A variable with a copy for each CPU. Declared by [`per_cpu!`](crate::per_cpu).
#[repr(transparent)]
pub struct CpuLocal<T>(UnsafeCell<T>);

// SAFETY: a copy is only reached by its own CPU, or through raw pointers under whatever rule the variable has.
unsafe impl<T> Sync for CpuLocal<T> {}

impl<T> CpuLocal<T> {
    /// The template. Only [`per_cpu!`](crate::per_cpu) puts it where it belongs.
    pub const fn new(value: T) -> CpuLocal<T> {
        CpuLocal(UnsafeCell::new(value))
    }

    /// This CPU's copy (`this_cpu_ptr`). It stays this CPU's as long as the caller is not moved to another one.
    #[inline(always)]
    pub fn this(&self) -> *mut T {
        self.0.get().wrapping_byte_add(offset())
    }

    /// The copy of `cpu` (`per_cpu_ptr`).
    pub fn of(&self, cpu: usize) -> *mut T {
        self.0.get().wrapping_byte_add(OFFSETS[cpu].load(Ordering::Relaxed))
    }

    /// This CPU's copy while preemption is off (`get_cpu_var`; dropping the guard is `put_cpu_var`).
    pub fn get(&self) -> Pinned<T> {
        preempt_disable();
        Pinned { copy: self.this() }
    }
}

/// A CPU's copy of a variable; the holder stays on the CPU.
pub struct Pinned<T> {
    copy: *mut T,
}

impl<T> Pinned<T> {
    /// The copy. An interrupt handler of this CPU may use it, too.
    pub fn as_ptr(&self) -> *mut T {
        self.copy
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        preempt_enable();
    }
}

crate::per_cpu! {
    /// From the template to this CPU's copy; what fs has as its base.
    static OFFSET: usize = 0;
    /// This CPU's number.
    static CPU: usize = 0;
    /// Slow paths that the CPU is in; interrupts count [`IN_IRQ`].
    static DEPTH: u32 = 0;
    /// Calls of [`preempt_disable`] that were not taken back.
    static PREEMPT_COUNT: u32 = 0;
    /// Segments and task state.
    pub static SEGMENTS: Segments = Segments::new();
    static ROW: [usize; ROW_WORDS] = [0; ROW_WORDS];
    /// The row is being drained, or not made yet.
    static AWAY: AtomicBool = AtomicBool::new(true);
    /// Whether the CPU has run.
    static RAN: AtomicBool = AtomicBool::new(false);
}

/// What an interrupt adds to the depth.
pub const IN_IRQ: u32 = 1 << 16;

/// Each CPU's [`OFFSET`].
static OFFSETS: [AtomicUsize; MAX_CPUS] = [const { AtomicUsize::new(0) }; MAX_CPUS];
static CPUS: AtomicUsize = AtomicUsize::new(1);

unsafe extern "C" {
    /// The template (linker script).
    static slabwright_percpu_start: u8;
    static slabwright_percpu_end: u8;
}

#[inline(always)]
fn offset() -> usize {
    let offset;
    // SAFETY: reads this CPU's copy of OFFSET; fs is loaded from the first instruction on.
    unsafe {
        asm!("mov {}, fs:[{}]", out(reg) offset, sym OFFSET, options(pure, readonly, nostack, preserves_flags));
    }
    offset
}

/// This CPU's number.
#[inline(always)]
pub fn cpu() -> usize {
    let cpu;
    // SAFETY: as in `offset`.
    unsafe { asm!("mov {}, fs:[{}]", out(reg) cpu, sym CPU, options(pure, readonly, nostack, preserves_flags)) };
    cpu
}

/// CPUs that have an area, running or not.
pub fn cpus() -> usize {
    CPUS.load(Ordering::Relaxed)
}

/// Counts the caller in, or an interrupt with [`IN_IRQ`]; the depth before. As below one instruction finds the CPU's
/// copy and changes it, so that nothing comes in between: a handler, or being moved to another CPU.
#[inline]
pub fn enter_depth(by: u32) -> u32 {
    let mut depth = by;
    // SAFETY: a variable of this CPU's.
    unsafe { asm!("xadd dword ptr fs:[{}], {}", sym DEPTH, inout(reg) depth, options(nostack)) };
    depth
}

/// Counts the caller out.
#[inline]
pub fn leave_depth(by: u32) {
    // SAFETY: as above.
    unsafe { asm!("sub dword ptr fs:[{}], {}", sym DEPTH, in(reg) by, options(nostack)) };
}

/// The caller is not to be preempted until [`preempt_enable`].
#[inline]
pub fn preempt_disable() {
    // SAFETY: as above.
    unsafe { asm!("inc dword ptr fs:[{}]", sym PREEMPT_COUNT, options(nostack)) };
}

/// Takes back one [`preempt_disable`].
#[inline]
pub fn preempt_enable() {
    // SAFETY: as above.
    unsafe { asm!("dec dword ptr fs:[{}]", sym PREEMPT_COUNT, options(nostack)) };
}

/// Reasons not to be preempted: calls of [`preempt_disable`], and interrupts. A scheduler has to look at the depth,
/// too: who is in a slow path of the allocator stays on its CPU.
pub fn preempt_count() -> u32 {
    // SAFETY: variables of this CPU's.
    unsafe { PREEMPT_COUNT.this().read_volatile() + DEPTH.this().read_volatile() / IN_IRQ }
}

/// Whether the caller is in an interrupt handler.
pub fn in_interrupt() -> bool {
    // SAFETY: a variable of this CPU's.
    unsafe { DEPTH.this().read_volatile() >= IN_IRQ }
}

/// Makes the areas of `cpus` CPUs and moves the boot CPU to its own.
pub fn init(cpus: usize) {
    let start = &raw const slabwright_percpu_start;
    let len = (&raw const slabwright_percpu_end).addr() - start.addr();
    let cpus = cpus.clamp(1, MAX_CPUS);
    for (cpu, slot) in OFFSETS.iter().enumerate().take(cpus) {
        // CPUs do not share cache lines.
        let area = memory::phys_to_virt(memory::take_low(len, 64).0);
        let offset = area.wrapping_sub(start.addr());
        slot.store(offset, Ordering::Relaxed);
        // SAFETY: the memory was just given; the template holds plain values, and nobody else knows the copy.
        unsafe {
            let copy = ptr::with_exposed_provenance_mut::<u8>(area);
            copy.copy_from_nonoverlapping(start, len);
            OFFSET.of(cpu).write(offset);
            CPU.of(cpu).write(cpu);
            ROW.of(cpu).write([no_sheaf(); ROW_WORDS]);
        }
    }
    CPUS.store(cpus, Ordering::Relaxed);
    // SAFETY: the boot CPU; its copy was just made, and its row filled.
    unsafe { enter(0) };
}

/// Makes the area of `cpu` that of the CPU which runs this, and opens its row.
///
/// # Safety
/// Once for each CPU, by that CPU.
pub unsafe fn enter(cpu: usize) {
    // SAFETY: the caller's condition: the area is this CPU's alone.
    unsafe {
        Segments::load(SEGMENTS.of(cpu), OFFSETS[cpu].load(Ordering::Relaxed), fault::double_fault);
        (*AWAY.of(cpu)).store(false, Ordering::Release);
        (*RAN.of(cpu)).store(true, Ordering::Release);
    }
}

/// Sections that were refused because the row was being drained.
static REFUSED: AtomicU32 = AtomicU32::new(0);

/// See [`REFUSED`]; for the log.
pub fn refused() -> u32 {
    REFUSED.load(Ordering::Relaxed)
}

/// Runs `section` on this CPU's words; `None` while they are being drained.
#[inline(always)]
fn on_row<R>(section: impl FnOnce(&mut [usize; ROW_WORDS]) -> R) -> Option<R> {
    let _off = IrqOff::new();
    // SAFETY: interrupts are off, so this is the only section on this CPU; who drains the row waits for its end.
    unsafe {
        // Acquire, pairs with the Release at the end of `drain_row`.
        if (*AWAY.this()).load(Ordering::Acquire) {
            REFUSED.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(section(&mut *ROW.this()))
    }
}

// SAFETY: 1. a section has its CPU for itself, with interrupts off; 2. while a row is drained every section sees none,
// and those that had begun have ended; 3. `init` fills rows with `no_sheaf`.
unsafe impl PerCpu for I386 {
    fn nr_cpus(&self) -> usize {
        cpus()
    }

    #[inline]
    fn cpu(&self) -> usize {
        cpu()
    }

    #[inline]
    fn node(&self) -> usize {
        cpu() % memory::nodes()
    }

    fn nr_nodes(&self) -> usize {
        memory::nodes()
    }

    #[inline]
    unsafe fn pop(&self, cache: u8) -> *mut u8 {
        // SAFETY: the caller's condition; the section has its CPU for itself.
        on_row(|row| unsafe { row::pop(row, cache) }).unwrap_or(ptr::null_mut())
    }

    #[inline]
    unsafe fn pop_marked(&self, cache: u8, key: usize) -> *mut u8 {
        // SAFETY: as above.
        on_row(|row| unsafe { row::pop_marked(row, cache, key, false) }).unwrap_or(ptr::null_mut())
    }

    #[inline]
    unsafe fn push(&self, cache: u8, object: *mut u8) -> bool {
        // SAFETY: as above.
        on_row(|row| unsafe { row::push(row, cache, object) }).unwrap_or(false)
    }

    #[inline]
    unsafe fn push_run(&self, cache: u8, run: *mut u8) -> bool {
        // SAFETY: as above.
        on_row(|row| unsafe { row::push_run(row, cache, run) }).unwrap_or(false)
    }

    #[inline]
    unsafe fn push_marked(&self, cache: u8, object: *mut u8, key: usize) -> bool {
        // SAFETY: as above.
        on_row(|row| unsafe { row::push_marked(row, cache, object, key) }).unwrap_or(false)
    }

    fn read(&self, word: Word) -> Option<usize> {
        on_row(|row| row[word.index()])
    }

    unsafe fn replace(&self, word: Word, old: usize, new: usize) -> bool {
        on_row(|row| row::replace(row, word, old, new)).unwrap_or(false)
    }

    fn drain_row(&self, target: usize, f: &mut dyn FnMut(&mut [usize; ROW_WORDS])) -> bool {
        if target >= cpus() {
            return true;
        }
        // SAFETY: areas are for ever.
        let away = unsafe { &*AWAY.of(target) };
        // One that is away already is another drainer's, or belongs to a CPU that never ran.
        if away.swap(true, Ordering::AcqRel) {
            // SAFETY: as above.
            return !unsafe { &*RAN.of(target) }.load(Ordering::Acquire);
        }
        if target != cpu() {
            smp::wait_for_section(target);
        }
        // SAFETY: no section is on the row, and none begins before it is given back.
        f(unsafe { &mut *ROW.of(target) });
        // Release, pairs with the Acquire in `on_row`.
        away.store(false, Ordering::Release);
        true
    }
}
