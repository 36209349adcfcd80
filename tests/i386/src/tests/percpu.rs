//! Per-CPU variables: row J.

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use slabwright::machine::i386::percpu::{alloc_percpu, cpu, cpus, free_percpu, preempt_count};
use slabwright::machine::i386::{interrupt, smp};
use slabwright::per_cpu;

use super::Test;

pub const TESTS: &[Test] = &[
    ("J1 J2 each CPU has its copy of a static variable, set up like the template", statics),
    ("J3 J4 get_cpu_var keeps the CPU, put_cpu_var gives it back", get_and_put),
    ("J5 J6 J7 dynamic variables: zeroed, apart, until there is no room", dynamics),
    ("J8 counting in the main loop and in interrupts loses nothing", counting),
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
    // SAFETY: zero is a value of both types.
    let (a, b) = unsafe { (alloc_percpu::<u64>().expect("room"), alloc_percpu::<[u8; 100]>().expect("room")) };
    for other in 0..cpus() {
        // SAFETY: nobody else knows the variables.
        unsafe {
            assert_eq!(a.of(other).read(), 0);
            a.of(other).write(other as u64 + 1);
            b.of(other).write([0xff; 100]);
        }
    }
    for other in 0..cpus() {
        // SAFETY: as above.
        assert_eq!(unsafe { a.of(other).read() }, other as u64 + 1, "copies overlap");
    }
    assert_eq!((a.get().as_ptr(), a.this()), (a.of(cpu()), a.of(cpu())));
    let mut many = alloc::vec::Vec::new();
    // SAFETY: zero is a value.
    while let Some(one) = unsafe { alloc_percpu::<[u32; 64]>() } {
        // SAFETY: as above.
        assert_eq!(unsafe { one.this().read() }, [0; 64]);
        many.push(one);
    }
    assert!(many.len() >= 8, "only {} variables of 256 bytes", many.len());
    many.into_iter().for_each(free_percpu);
    free_percpu(b);
    // SAFETY: as above.
    let again = unsafe { alloc_percpu::<[u8; 100]>().expect("what was freed is free") };
    // SAFETY: as above.
    assert_eq!(unsafe { again.this().read() }, [0; 100], "zeroed again");
    free_percpu(again);
    free_percpu(a);
}

static TICKS: AtomicU32 = AtomicU32::new(0);

/// `this_cpu_add`: one instruction.
fn count() {
    let counter = COUNT.get();
    // SAFETY: this CPU's copy, changed by one instruction, so that a handler comes before or after it.
    unsafe { core::arch::asm!("inc dword ptr [{}]", in(reg) counter.as_ptr(), options(nostack)) };
}

fn tick() {
    count();
    TICKS.fetch_add(1, Relaxed);
}

fn counting() {
    for other in 0..cpus() {
        // SAFETY: nobody counts yet.
        unsafe { COUNT.of(other).write_volatile(0) };
    }
    TICKS.store(0, Relaxed);
    interrupt::on_tick(Some(tick));
    let other = smp::run(1, |n| (0..n).for_each(|_| count()), 50_000);
    let mut counted = if other { 50_000 } else { 0 };
    while TICKS.load(Relaxed) < 30 {
        count();
        counted += 1;
    }
    smp::wait_idle(1);
    interrupt::on_tick(None);
    // The other CPU is out of its last tick when it answers.
    smp::on_others(|_| {}, 0);
    // SAFETY: nobody counts any more.
    let sum: u32 = (0..cpus()).map(|other| unsafe { COUNT.of(other).read_volatile() }).sum();
    assert_eq!(sum, counted + TICKS.load(Relaxed));
}
