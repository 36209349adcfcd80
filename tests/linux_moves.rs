//! Moving memory by page tables, with its budget of mappings; and what the system is asked only once.
#![cfg(all(target_os = "linux", target_arch = "x86_64", feature = "sim"))]
#![allow(clippy::undocumented_unsafe_blocks)] // the calls under test, on memory of the test's own

#[path = "linux/smaps.rs"]
mod smaps;

use std::sync::Mutex;

use slabwright::machine::linux::{self, Linux};
use slabwright::machine::{Frames, Machine, Mapping};
use slabwright::mm::Mm;
use slabwright::types::{PAGE_SIZE, PAGEBLOCK_SIZE};
use smaps::has_flag;

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
    let limits = (m.budget(), m.pressure());
    let calls = m.system_calls();
    assert_eq!((m.budget(), m.pressure()), limits);
    assert_eq!(m.system_calls(), calls, "callers hold locks");
}

#[test]
fn a_source_of_several_mappings_moves_without_new_ones() {
    let _alone = ALONE.lock().unwrap();
    let m = Linux;
    assert!(m.init());
    let (from, to) = (m.window().start + 128 * SLOT, m.window().start + 256 * SLOT);
    let before = linux::moved_runs();
    let moves_cleanly = |several: bool| {
        let len = 4 * SLOT;
        assert!(m.map_fresh(from, len) && m.map_fresh(to, len));
        let source = std::ptr::with_exposed_provenance_mut::<u8>(from);
        unsafe { source.write_bytes(5, len) };
        if several {
            // A flag of one half only: the kernel keeps two mappings.
            assert_eq!(unsafe { libc::madvise(source.add(2 * SLOT).cast(), 2 * SLOT, libc::MADV_DONTDUMP) }, 0);
        }
        let moved = m.move_mapping(from, to, len).is_ok();
        if moved {
            let target = std::ptr::with_exposed_provenance::<u8>(to);
            assert!((0..len).step_by(511).all(|at| unsafe { target.add(at).read() } == 5));
        }
        let clean = moved && linux::moved_runs() == before;
        m.unmap(to, len);
        m.unmap(from, len);
        clean
    };
    if !moves_cleanly(false) {
        return; // This kernel moves by mappings only, or not at all.
    }
    // The kernel may have a page in use for a moment, which is refused.
    assert!((0..5).any(|_| moves_cleanly(true)));
    assert!((0..5).any(|_| moves_cleanly(false)), "the refusal of one range is not for good");
}

/// Linux moves several mappings one after the other from 6.17 on, and refuses those that somebody handles the page
/// faults of.
#[test]
fn what_moves_with_its_mappings_moves_whole_or_stays() {
    let _alone = ALONE.lock().unwrap();
    let m = Linux;
    assert!(m.init());
    let (from, to, len) = (m.window().start + 512 * SLOT, m.window().start + 640 * SLOT, 4 * SLOT);
    let full = |at: usize| {
        let memory = std::ptr::with_exposed_provenance::<u8>(at);
        (0..len).step_by(511).all(|at| unsafe { memory.add(at).read() } == 5)
    };
    assert!(m.map_fresh(from, len));
    unsafe { std::ptr::with_exposed_provenance_mut::<u8>(from).write_bytes(5, len) };
    let Some(handler) = userfault(from + 2 * SLOT, 2 * SLOT) else {
        return; // This kernel has none, or not for us.
    };
    assert_eq!((m.move_addresses(from, to, len), full(from)), (Err(true), true));
    assert_eq!(unsafe { libc::close(handler) }, 0);
    assert_eq!((m.move_addresses(from, to, len), full(to)), (Ok(true), true));
    m.unmap(to, len);
}

/// A descriptor that gets the page faults of a range.
fn userfault(start: usize, len: usize) -> Option<i32> {
    const USER_MODE_ONLY: i32 = 1;
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | USER_MODE_ONLY) } as i32;
    if fd < 0 {
        return None;
    }
    let mut api = [0xaau64, 0, 0];
    assert_eq!(unsafe { libc::ioctl(fd, 0xc018_aa3f, &mut api) }, 0);
    // Of pages that are missing.
    let mut register = [start as u64, len as u64, 1, 0];
    assert_eq!(unsafe { libc::ioctl(fd, 0xc020_aa00, &mut register) }, 0);
    Some(fd)
}

#[test]
fn zeroing_an_old_range_gives_its_memory_back() {
    static MM: Mm<Linux> = Mm::new(Linux);
    let _alone = ALONE.lock().unwrap();
    // Not whole slots: what lies behind the size is nobody's and need not be written around.
    let len = 32 * SLOT - 3 * PAGE_SIZE;
    let first = MM.alloc(len);
    unsafe { first.write_bytes(7, len) };
    unsafe { MM.free(first) };
    let again = MM.alloc_zeroed(len);
    assert_eq!(again, first, "a freed range of the size serves");
    let mut map = vec![0u8; len / PAGE_SIZE];
    assert_eq!(unsafe { libc::mincore(again.cast(), len, map.as_mut_ptr()) }, 0);
    let resident = map.iter().filter(|&&page| page & 1 != 0).count();
    assert!(resident <= map.len() / 16, "{resident} pages were written");
    assert!((0..len).step_by(509).all(|at| unsafe { again.add(at).read() } == 0));
    unsafe { MM.free(again) };
}

/// Whether the mapping at `at` counts among the memory that the system has promised.
fn accounted(at: usize) -> bool {
    has_flag(at, "ac")
}

#[test]
fn what_is_unmapped_is_not_accounted_for() {
    let _alone = ALONE.lock().unwrap();
    let m = Linux;
    assert!(m.init());
    let (at, len) = (m.window().start + 400 * SLOT, 3 * SLOT);
    let start = std::ptr::with_exposed_provenance_mut::<u8>(at);
    // Under strict accounting the kernel does not heed MAP_NORESERVE; otherwise it has to be left out to be in the same
    // place.
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    assert_eq!(unsafe { libc::mmap(start.cast(), len, libc::PROT_NONE, flags, -1, 0) }, start.cast());
    assert!(!accounted(at), "reserved only");
    assert!(m.map_fresh(at, len));
    unsafe { start.write_bytes(1, len) };
    assert!(accounted(at));
    m.unmap(at, len);
    assert!(!accounted(at));
    assert!(m.map_fresh(at, len));
    assert_eq!(unsafe { start.read() }, 0);
    m.unmap(at, len);
}
