//! The contract of the seam, as far as all machines keep it alike.

#![allow(clippy::undocumented_unsafe_blocks)] // the calls under test, on memory that callers hand over

use core::ptr::with_exposed_provenance_mut as pointer;
use core::sync::atomic::Ordering::Relaxed;

use slabwright::machine::{Machine, RUN_SHEAF_BYTES, SHEAF_BYTES, SHEAF_SLOTS, Word, no_sheaf};
use slabwright::types::{PAGE_SIZE, Pfn, PfnRange};

/// A sheaf's worth of memory.
#[repr(C, align(4096))]
pub struct Slots([usize; SHEAF_SLOTS]);

const _: () = assert!(align_of::<Slots>() >= SHEAF_BYTES);

/// The words of an unused row, and each operation alone. The caller stays on its CPU; nobody uses `cache`. Whether a
/// section got through, which may always be disturbed on some machines.
pub fn rows<M: Machine>(m: &M, cache: u8) -> bool {
    let mut slots = Slots([0; SHEAF_SLOTS]);
    let object = |n: usize| pointer::<u8>((n + 1) * 16);
    let capacity = 5;
    let bottom = (&raw mut slots).expose_provenance() + (SHEAF_SLOTS - 1 - capacity) * size_of::<usize>();
    let pushed;
    assert!(m.cpu() < m.nr_cpus() && m.node() < m.nr_nodes());
    assert_eq!(m.read(Word::Main(cache)), Some(no_sheaf()));
    assert_eq!(m.read(Word::Spare(cache)), Some(no_sheaf()));
    // SAFETY: the sheaf is valid, and out of the row again at the end; the objects are addresses only, which nobody
    // follows.
    unsafe {
        assert!(m.pop_again(cache).is_null(), "popped from no sheaf");
        assert!(!m.push_again(cache, object(0)), "pushed on no sheaf");
        assert!(!m.replace(Word::Main(cache), bottom, no_sheaf()), "replaced what was not there");
        assert!(m.replace(Word::Main(cache), no_sheaf(), bottom));
        assert!(m.pop_again(cache).is_null(), "popped from an empty sheaf");
        for n in 0..capacity {
            assert!(m.push_again(cache, object(n)));
        }
        assert!(!m.push_again(cache, object(99)), "pushed on a full sheaf");
        assert_eq!(m.read(Word::Main(cache)), Some(bottom + capacity * size_of::<usize>()));
        for n in (0..capacity).rev() {
            assert_eq!(m.pop_again(cache), object(n));
        }
        assert!(m.pop_again(cache).is_null());
        assert!(m.push_again(cache, object(7)));
        pushed = marked(m, cache, object(7));
        push_run(m, cache);
        let mut seen = 0;
        assert!(m.drain_row(m.cpu(), &mut |words| {
            assert!(m.pop_again(cache).is_null(), "the row is out of reach while it is drained");
            assert!(!m.push_again(cache, object(8)));
            assert_eq!(m.read(Word::Main(cache)).unwrap_or(no_sheaf()), no_sheaf());
            assert!(!m.replace(Word::Main(cache), words[Word::Main(cache).index()], no_sheaf()));
            assert!(!m.replace(Word::Main(cache), no_sheaf(), bottom));
            seen = core::mem::replace(&mut words[Word::Main(cache).index()], no_sheaf());
        }));
        assert_eq!(seen, bottom + size_of::<usize>());
        assert_eq!(m.read(Word::Main(cache)), Some(no_sheaf()));
    }
    // Written behind the compiler's back.
    // SAFETY: a slot of the sheaf above.
    assert_eq!(unsafe { (&raw const slots.0[SHEAF_SLOTS - capacity]).read_volatile() }, object(7).addr());
    pushed
}

/// A sheaf of runs is full at the end of fewer bytes. The main sheaf is back afterwards.
///
/// # Safety
/// As for `rows`.
unsafe fn push_run<M: Machine>(m: &M, cache: u8) {
    let mut slots = Slots([0; SHEAF_SLOTS]);
    let bottom = (&raw mut slots).expose_provenance() + RUN_SHEAF_BYTES - 3 * size_of::<usize>();
    let main = m.read(Word::Main(cache)).unwrap();
    // SAFETY: the sheaf is valid, and out of the row again at the end; the runs are addresses only.
    unsafe {
        assert!(m.replace(Word::Main(cache), main, bottom));
        // Without sections only the slow way pushes.
        assert!(m.push_run(cache, pointer(4096)) || m.push_run_again(cache, pointer(4096)));
        assert!(m.push_run_again(cache, pointer(8192)));
        assert!(!m.push_run(cache, pointer(12288)) && !m.push_run_again(cache, pointer(12288)));
        assert_eq!(m.read(Word::Main(cache)), Some(bottom + 2 * size_of::<usize>()));
        let popped = m.pop_run(cache);
        assert_eq!(if popped.is_null() { m.pop_again(cache) } else { popped }, pointer(8192));
        assert!(m.replace(Word::Main(cache), bottom + size_of::<usize>(), main));
    }
}

/// The same operations with marks; `below` is in the sheaf, and stays there. Whether a section got through.
///
/// # Safety
/// The sheaf in the row is valid and has room for one.
unsafe fn marked<M: Machine>(m: &M, cache: u8, below: *mut u8) -> bool {
    const KEY: usize = 77;
    let mut words = [0usize; 2];
    let object = (&raw mut words).cast::<u8>();
    let mark = object.cast::<usize>();
    unsafe {
        // Sections may be disturbed, even all the time; the slow calls get through.
        let pushed = (0..9).any(|_| m.push_marked(cache, object, KEY));
        assert_eq!(mark.read_volatile() == KEY, pushed, "marked if it was pushed, and only then");
        if pushed {
            assert!((0..9).all(|_| !m.push_marked(cache, object, KEY)), "pushed twice in a row");
            assert!((0..9).all(|_| m.pop_marked(cache, KEY + 1).is_null()), "popped with another mark");
            let got = (0..9).map(|_| m.pop_marked(cache, KEY)).find(|got| !got.is_null());
            assert_eq!(got.unwrap_or_else(|| m.pop_again(cache)), object);
        }
        assert!(m.push_again(cache, object) && m.pop_again(cache) == object && m.pop_again(cache) == below);
        assert!(m.push_again(cache, below));
        pushed
    }
}

/// Frames with addresses, which are the caller's.
pub fn frames<M: Machine>(m: &M, range: PfnRange) {
    let base = m.virt(range.start);
    for (nth, pfn) in range.iter().enumerate() {
        let at = m.virt(pfn);
        assert_eq!(at, base.wrapping_add(nth * PAGE_SIZE), "adjacent frames have adjacent addresses");
        assert_eq!(m.pfn(at), Some(pfn));
        assert_eq!(m.pfn(at.wrapping_add(PAGE_SIZE - 1)), Some(pfn));
        assert_eq!(m.class_at(at), m.class(pfn).load(Relaxed));
        m.page(pfn).set_mapcount(nth as i32);
        // SAFETY: the frame is the caller's.
        unsafe { at.write_bytes(nth as u8, PAGE_SIZE) };
    }
    for (nth, pfn) in range.iter().enumerate() {
        assert_eq!(m.page(pfn).mapcount(), nth as i32, "frames share a descriptor");
        let class = m.class(pfn);
        let before = class.swap(0x5a, Relaxed);
        assert_eq!(m.class_at(m.virt(pfn).wrapping_add(17)), 0x5a);
        class.store(before, Relaxed);
        // SAFETY: as above.
        let bytes = unsafe { core::slice::from_raw_parts(m.virt(pfn), PAGE_SIZE) };
        assert!(bytes.iter().all(|byte| *byte == nth as u8), "frames share memory");
        m.page(pfn).set_mapcount(0);
    }
    assert_eq!((m.pfn(core::ptr::null()), m.class_at(core::ptr::null())), (None, 0));
    assert_eq!(m.class_at(pointer(usize::MAX)), 0);
}

/// Mapping of frames, which are the caller's and have addresses, in two unused parts of the window. For machines that
/// own frames and map page by page.
pub fn mapping<M: Machine>(m: &M, at: usize, other: usize, frames: &[Pfn]) {
    assert!(M::OWNS_FRAMES && m.window().contains(&at) && m.window().contains(&other));
    let len = frames.len() * PAGE_SIZE;
    let word = |at: usize, nth: usize| pointer::<usize>(at + nth * PAGE_SIZE);
    // In reverse, so that it is the table that says what is where.
    let reversed = || frames.iter().rev().enumerate();
    for (nth, pfn) in reversed() {
        assert!(m.map_frame(at + nth * PAGE_SIZE, *pfn));
        // SAFETY: here and below: the frames are the caller's, mapped where the test says.
        unsafe { word(at, nth).write_volatile(nth ^ 0x55aa) };
    }
    for (nth, pfn) in reversed() {
        assert_eq!(unsafe { m.virt(*pfn).cast::<usize>().read_volatile() }, nth ^ 0x55aa);
    }
    assert_eq!(m.move_mapping(at, other, len), Ok(()));
    for (nth, pfn) in reversed() {
        unsafe {
            assert_eq!(word(other, nth).read_volatile(), nth ^ 0x55aa);
            word(other, nth).write_volatile(!nth);
            assert_eq!(m.virt(*pfn).cast::<usize>().read_volatile(), !nth);
        }
    }
    assert!(m.clean(other, len));
    for (nth, pfn) in reversed() {
        assert_eq!(unsafe { (word(other, nth).read_volatile(), m.virt(*pfn).cast::<usize>().read_volatile()) }, (0, 0));
    }
    m.unmap(other, len);
    // Both ranges can be mapped anew, and show what is mapped then.
    for (start, pfn) in [(at, frames[0]), (other, frames[0])] {
        assert!(m.map_frame(start, pfn));
        unsafe { m.virt(pfn).cast::<usize>().write_volatile(start) };
        assert_eq!(unsafe { word(start, 0).read_volatile() }, start, "a stale translation");
    }
    m.unmap(at, PAGE_SIZE);
    m.unmap(other, PAGE_SIZE);
}

/// Contexts nest, and have names.
pub fn contexts<M: Machine>(m: &M) {
    assert_eq!(m.enter(), 0);
    assert_eq!(m.enter(), 1);
    m.leave();
    m.leave();
    assert_eq!(m.enter(), 0);
    m.leave();
    assert_eq!(m.preempt_count(), 0);
    m.preempt_disable();
    assert_eq!((m.preempt_count(), m.enter()), (1, 0), "they are counted apart");
    m.leave();
    m.preempt_enable();
    assert_eq!(m.preempt_count(), 0);
    assert!(m.thread() != 0 && m.thread().is_multiple_of(32));
    assert_eq!((m.thread(), m.generation()), (m.thread(), m.generation()));
    let before = m.now_ms();
    assert!(m.now_ms() >= before);
    assert_eq!(m.random(), m.random());
}
