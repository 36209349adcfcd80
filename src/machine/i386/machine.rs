//! The rest of the seam: contexts, reports, waiting, time.
#![cfg(all(target_arch = "x86", feature = "i386"))]
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::{console, cpu, interrupt, percpu, smp};
use crate::machine::{CPU_SHIFT, Context, Machine, Owner, PerCpu, Report, add_to};
use crate::sync::Park;
use crate::sync::wide::AtomicU64;

/// The machine. Zero-sized: there is one.
#[derive(Clone, Copy, Debug, Default)]
pub struct I386;

impl Context for I386 {
    #[inline]
    fn enter(&self) -> u32 {
        percpu::enter_depth(1)
    }

    #[inline]
    fn leave(&self) {
        percpu::leave_depth(1);
    }

    fn preempt_disable(&self) {
        percpu::preempt_disable();
    }

    fn preempt_enable(&self) {
        percpu::preempt_enable();
    }

    fn preempt_count(&self) -> u32 {
        percpu::preempt_count()
    }

    fn thread(&self) -> usize {
        (self.cpu() + 1) * 32
    }
}

impl Report for I386 {
    fn line(&self, text: &str) {
        REPORTS.fetch_add(1, Relaxed);
        console::print(format_args!("{text}\n"));
    }

    fn aborts(&self) -> bool {
        ABORTS.load(Relaxed) != 0
    }

    fn abort(&self) -> ! {
        console::exit(console::Exit::Failure)
    }
}

/// Lines that the allocator reported.
static REPORTS: AtomicU32 = AtomicU32::new(0);

/// Lines that the allocator reported so far.
pub fn reports() -> u32 {
    REPORTS.load(Relaxed)
}

/// Whether a defect ends the machine after its report.
static ABORTS: AtomicU32 = AtomicU32::new(1);

/// Sets whether a defect ends the machine after its report.
pub fn set_aborts(aborts: bool) {
    ABORTS.store(u32::from(aborts), Relaxed);
}

impl Park for I386 {
    /// For handlers, who only try: the holder is on another CPU, or is whom they interrupted.
    const SPINS: u32 = 100;

    fn wait(&self, word: &AtomicU32, seen: u32) {
        // The holder runs on another CPU, and it may be waiting for this one to answer a call.
        while word.load(Relaxed) == seen {
            smp::answer();
            core::hint::spin_loop();
        }
    }

    fn wake(&self, _word: &AtomicU32) {}
}

/// Drawn at start.
static RANDOM: AtomicU64 = AtomicU64::new(0);

impl Owner for I386 {}

impl Machine for I386 {
    fn now_ms(&self) -> u64 {
        interrupt::now_ms()
    }

    fn random(&self) -> u64 {
        RANDOM.load(Relaxed)
    }

    unsafe fn this_cpu_add(&self, word: *mut u8, size: usize, value: u64) {
        let _off = cpu::IrqOff::new();
        let copy = word.wrapping_add(self.cpu() << CPU_SHIFT);
        // SAFETY: the caller's condition; with interrupts off nothing on this CPU comes in between.
        unsafe { add_to(copy, size, value) };
    }

    fn init(&self) -> bool {
        // A hash of the cycles that booting took: no secret, but not the same each time.
        let mut mixed = cpu::rdtsc().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^= mixed >> 29;
        RANDOM.store(mixed, Relaxed);
        true
    }
}
