//! Per-CPU variables: row J.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering::Relaxed};

use slabwright::api::PerCpu;
use slabwright::error::AllocError;
use slabwright::gfp::Gfp;
use slabwright::machine::i386::percpu::{cpu, cpus, preempt_count};
use slabwright::machine::i386::{I386, interrupt, set_aborts, smp};
use slabwright::mm::MAX_PERCPU;
use slabwright::per_cpu;

use super::Test;
use crate::kernel::HEAP;

/// It needs megabytes.
pub const ROOMY: &[Test] = &[("J6 alloc_percpu says when there is no more", exhausted)];

pub const TESTS: &[Test] = &[
    ("J1 J2 each CPU has its copy of a static variable, set up like the template", statics),
    ("J3 J4 get_cpu_var keeps the CPU, put_cpu_var gives it back", get_and_put),
    ("J5 J7 dynamic variables: a copy for each CPU, apart", dynamics),
    ("J1 J3 J8 counting in the main loop and in interrupts loses nothing, wherever they come", counting),
];

per_cpu! {
    static START: u32 = 0x5eed;
    static COUNT: u32 = 0;
}

fn statics() {
    for other in 0..cpus() {
        // SAFETY: plain data that nobody writes at the time.
        assert_eq!(unsafe { START.of(other).read_volatile() }, 0x5eed);
    }
    assert_eq!(START.of(cpu()), START.this());
    // SAFETY: as above.
    unsafe { START.this().write_volatile(1) };
    for other in (0..cpus()).filter(|other| *other != cpu()) {
        assert!(START.of(other).addr().abs_diff(START.this().addr()) >= 64, "CPUs do not share cache lines");
        // SAFETY: as above.
        assert_eq!(unsafe { START.of(other).read_volatile() }, 0x5eed);
    }
    // SAFETY: as above.
    unsafe { START.this().write_volatile(0x5eed) };
}

fn get_and_put() {
    assert_eq!(preempt_count(), 0);
    {
        let outer = COUNT.get();
        let inner = START.get();
        assert_eq!(preempt_count(), 2);
        assert_eq!((outer.as_ptr(), inner.as_ptr()), (COUNT.this(), START.this()));
    }
    assert_eq!(preempt_count(), 0);
}

fn dynamics() {
    let a = PerCpu::new(&HEAP, 7u64).expect("memory");
    let b = PerCpu::new(&HEAP, [0xffu8; 100]).expect("memory");
    for other in 0..cpus() {
        // SAFETY: nobody writes to it.
        let read = b.copy_ptr(other).map(|copy| unsafe { copy.read() });
        assert_eq!((a.read(other), read), (Some(7), Some([0xff; 100])));
    }
    assert_eq!((a.read(cpus()), b.copy_ptr(cpus())), (None, None), "there is no such CPU");
    {
        let mine = a.get();
        assert_eq!((mine.cpu(), preempt_count()), (cpu(), 1));
        mine.set(1000);
        let inner = b.get();
        inner.update(|_| [1; 100]);
        assert_eq!(preempt_count(), 2);
    }
    assert_eq!(preempt_count(), 0);
    assert_eq!(a.sum(), 1000 + 7 * (cpus() as u64 - 1), "one copy was written");
    let many: Vec<_> = (0..100).map(|n| PerCpu::new(&HEAP, [n; 64]).expect("memory")).collect();
    // SAFETY: as above.
    let holds =
        |one: &PerCpu<_, [_; 64]>, cpu, n| one.copy_ptr(cpu).is_some_and(|copy| unsafe { copy.read() } == [n; 64]);
    assert!(many.iter().enumerate().all(|(n, one)| (0..cpus()).all(|cpu| holds(one, cpu, n))));
    assert_eq!(HEAP.alloc_percpu(MAX_PERCPU + 1, 8, Gfp::KERNEL), Err(AllocError::Invalid));
    set_aborts(false);
    // SAFETY: misuse, which must be found out.
    assert!(unsafe { HEAP.free_percpu(a.as_ptr().cast::<u8>().wrapping_add(1)) }.is_err());
    set_aborts(true);
}

fn exhausted() {
    let mut taken = Vec::with_capacity(256);
    let last = loop {
        match HEAP.alloc_percpu(MAX_PERCPU, 8, Gfp::KERNEL) {
            Ok(variable) if taken.len() < taken.capacity() => taken.push(variable),
            other => break other,
        }
    };
    assert_eq!(last, Err(AllocError::NoMemory), "after {} of {MAX_PERCPU} bytes", taken.len());
    // One that goes makes room for one.
    let gone = taken.pop().expect("there were some");
    // SAFETY: copies of this test's, not used any more.
    let free = |variable| unsafe { HEAP.free_percpu(variable) }.expect("this test's");
    free(gone);
    taken.push(HEAP.alloc_percpu(MAX_PERCPU, 8, Gfp::KERNEL).expect("its place"));
    taken.into_iter().for_each(free);
}

static TICKS: AtomicU32 = AtomicU32::new(0);
/// Ticks that found the CPU kept by whom they interrupted, and that did not: a scheduler would have let another thread
/// run in the latter.
static KEPT: AtomicU32 = AtomicU32::new(0);
static FREE: AtomicU32 = AtomicU32::new(0);
static COUNTER: AtomicPtr<PerCpu<'static, I386, u32>> = AtomicPtr::new(core::ptr::null_mut());

/// `this_cpu_add`, on a static variable and on a dynamic one.
fn count() {
    // SAFETY: null, or a variable that lives as long as anybody counts.
    if let Some(dynamic) = unsafe { COUNTER.load(Relaxed).as_ref() } {
        dynamic.add(1);
    }
    let counter = COUNT.get();
    // SAFETY: this CPU's copy, changed by one instruction, so that a handler comes before or after it.
    unsafe { core::arch::asm!("inc dword ptr [{}]", in(reg) counter.as_ptr(), options(nostack)) };
}

fn tick() {
    // Its own interrupt counts one.
    let found = if preempt_count() > 1 { &KEPT } else { &FREE };
    found.fetch_add(1, Relaxed);
    count();
    TICKS.fetch_add(1, Relaxed);
}

fn counting() {
    for other in 0..cpus() {
        // SAFETY: nobody counts yet.
        unsafe { COUNT.of(other).write_volatile(0) };
    }
    TICKS.store(0, Relaxed);
    let mut dynamic = PerCpu::new(&HEAP, 0u32).expect("memory");
    COUNTER.store(&raw mut dynamic, Relaxed);
    interrupt::on_tick(Some(tick));
    let other = smp::run(1, |n| (0..n).for_each(|_| count()), 50_000);
    let mut counted = if other { 50_000 } else { 0 };
    while TICKS.load(Relaxed) < 30 || FREE.load(Relaxed) == 0 {
        count();
        counted += 1;
    }
    // The CPU kept for longer than a tick takes.
    {
        let _kept = START.get();
        let before = KEPT.load(Relaxed);
        while KEPT.load(Relaxed) < before + 3 {
            core::hint::spin_loop();
        }
    }
    smp::wait_idle(1);
    interrupt::on_tick(None);
    // The other CPU is out of its last tick when it answers.
    smp::on_others(|_| {}, 0);
    // SAFETY: nobody counts any more.
    let sum: u32 = (0..cpus()).map(|other| unsafe { COUNT.of(other).read_volatile() }).sum();
    assert_eq!(sum, counted + TICKS.load(Relaxed));
    COUNTER.store(core::ptr::null_mut(), Relaxed);
    assert_eq!(dynamic.sum(), sum);
}
