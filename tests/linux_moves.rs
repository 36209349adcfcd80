//! Moving memory by page tables, with its budget of mappings; and what the system is asked only once.
#![cfg(all(target_os = "linux", target_arch = "x86_64", feature = "sim"))]
#![allow(clippy::undocumented_unsafe_blocks)] // the calls under test, on memory of the test's own

use std::sync::Mutex;

use slabwright::machine::linux::{self, Linux};
use slabwright::machine::{Frames, Machine, Mapping};
use slabwright::types::PAGEBLOCK_SIZE;

/// The counts are the process's.
static ALONE: Mutex<()> = Mutex::new(());

const SLOT: usize = PAGEBLOCK_SIZE;

#[test]
fn runs_are_counted_as_they_are_cut() {
    let _alone = ALONE.lock().unwrap();
    let m = Linux;
    assert!(m.init());
    linux::allow_moves(false, true);
    let (from, to) = (m.window().start, m.window().start + 64 * SLOT);
    let before = linux::moved_runs();
    let runs = || linux::moved_runs() - before;
    let move_there = |len: usize| {
        assert!(m.map_fresh(from, len) && m.map_fresh(to, len));
        unsafe { std::ptr::with_exposed_provenance_mut::<u8>(from).write_bytes(3, len) };
        m.move_mapping(from, to, len).is_ok()
    };
    for _ in 0..3 {
        if !move_there(8 * SLOT) {
            break;
        }
        assert_eq!(runs(), 1, "one run, however long");
        m.unmap(to + 2 * SLOT, 3 * SLOT);
        assert_eq!(runs(), 2, "a run without its middle is two");
        m.unmap(to, 2 * SLOT);
        assert_eq!(runs(), 1);
        m.unmap(to + 5 * SLOT, 3 * SLOT);
        assert_eq!(runs(), 0);
        m.unmap(from, 8 * SLOT);
    }
    assert_eq!(runs(), 0);
    linux::allow_moves(true, true);
}

#[test]
fn limits_are_asked_for_once() {
    let _alone = ALONE.lock().unwrap();
    let m = Linux;
    assert!(m.init());
    let budget = m.budget();
    let calls = m.system_calls();
    assert_eq!(m.budget(), budget);
    assert_eq!(m.system_calls(), calls, "callers hold locks");
}
