//! The locks of per-CPU data, taken on their own CPU and from others.
#![cfg(all(target_os = "linux", target_arch = "x86_64", feature = "sim"))]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use slabwright::machine::Machine;
use slabwright::machine::linux::testing::{get_cpu_from_outside, is_local_held};
use slabwright::machine::linux::{Linux, Mode, mode};

/// Moves the calling thread to `cpu`; false where it may not run there.
fn run_on(cpu: usize) -> bool {
    // SAFETY: all zeroes is a set without CPUs; the call reads it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set) == 0
    }
}

// rows: J4
/// A section takes the lock by a plain store, one on another CPU by an exchange in between: only one of the two has it.
#[test]
fn a_lock_that_is_taken_on_its_cpu_and_from_another_one_has_one_holder() {
    assert!(Linux.init());
    if !run_on(1) || !run_on(0) || !matches!(mode(), Mode::Libc | Mode::Own) {
        println!("one CPU, or no restartable sequences: nothing was tried");
        return;
    }
    assert_eq!(Linux.get_cpu(), 0);
    Linux.put_cpu();
    let [done, met] = [const { AtomicBool::new(false) }; 2];
    let (inside, taken) = (AtomicUsize::new(0), [const { AtomicUsize::new(0) }; 2]);
    let hold = |who: usize| {
        met.fetch_or(inside.fetch_add(1, SeqCst) != 0, SeqCst);
        (0..who * 100).for_each(|_| std::hint::spin_loop());
        inside.fetch_sub(1, SeqCst);
        Linux.put_cpu();
        taken[who].fetch_add(1, SeqCst);
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            run_on(1);
            let mut tries = 0;
            while !done.load(SeqCst) {
                // Who tries all the time has the lock as soon as it is free, before a section can have seen that.
                tries += 1;
                (0..tries % 97).for_each(|_| std::hint::spin_loop());
                if get_cpu_from_outside(0) {
                    hold(1);
                }
            }
        });
        let end = Instant::now() + Duration::from_millis(500);
        while Instant::now() < end && !met.load(SeqCst) {
            Linux.get_cpu();
            hold(0);
        }
        done.store(true, SeqCst);
    });
    assert!(!met.load(SeqCst), "two had the lock");
    assert!(!is_local_held(0));
    assert!(taken.iter().all(|taken| taken.load(SeqCst) > 100), "{taken:?}");
}
