//! Per-CPU rows by restartable sequences.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::undocumented_unsafe_blocks)] // the calls under test, on memory of the test's own

#[path = "linux/stress.rs"]
mod stress;

use slabwright::machine::Machine;
use slabwright::machine::linux::{Linux, Mode, mode};

fn machine() -> Linux {
    static INIT: std::sync::Once = std::sync::Once::new();
    INIT.call_once(|| assert!(Linux.init()));
    // Where a sandbox or an old kernel has no restartable sequences, `linux_lock.rs` is the test.
    assert_ne!(mode(), Mode::None);
    Linux
}

// One after the other: under locks an operation may be refused because somebody else is at the row.
#[test]
fn rows() {
    let m = machine();
    std::thread::spawn(move || stress::contract(&m, 3)).join().unwrap();
    for (nth, threads) in [1, 2, 4, 16].into_iter().enumerate() {
        let drained = stress::storm(&m, 10 + nth as u8, threads, 400_000 / threads);
        assert!(drained > 0);
    }
    println!("{:?}: {} restarts, a pair in {:.2} ns", mode(), m.restarts(), stress::measure(&m, 4));
}
