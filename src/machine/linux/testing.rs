//! Ways into the sections for tests that walk them instruction by instruction.

use core::ops::Range;
use core::sync::atomic::Ordering::Relaxed;

use super::{local, percpu, rseq, tls};
use crate::machine::SHEAF_BYTES;

/// A critical section of the program.
#[derive(Clone, Debug)]
pub struct Section {
    /// Its instructions, up to and including the commit.
    pub body: Range<usize>,
    /// Where the kernel goes on when it aborts it.
    pub abort: usize,
}

/// All sections of the program, each copy that was inlined somewhere.
pub fn sections() -> impl Iterator<Item = Section> {
    #[repr(C)]
    struct Descriptor {
        version_and_flags: u64,
        start: usize,
        len: usize,
        abort: usize,
    }
    unsafe extern "C" {
        static __start___rseq_cs: [Descriptor; 0];
        static __stop___rseq_cs: [Descriptor; 0];
    }
    // SAFETY: the linker's bounds of the section that holds only descriptors; padding between them is whole descriptors
    // of zero, as each object file aligns to their size.
    let all = unsafe {
        let start = (&raw const __start___rseq_cs).cast::<Descriptor>();
        let bytes = (&raw const __stop___rseq_cs).addr() - start.addr();
        core::slice::from_raw_parts(start, bytes / size_of::<Descriptor>())
    };
    all.iter()
        .filter(|each| each.start != 0 && each.version_and_flags == 0)
        .map(|each| Section { body: each.start..each.start + each.len, abort: each.abort })
}

/// Runs `f` with sections working on the row of `cpu` by an area that the kernel does not know, so that nothing aborts
/// them. Only in a program of one thread.
pub fn unabortable(cpu: usize, f: impl FnOnce()) {
    let area = core::ptr::with_exposed_provenance_mut::<i32>(tls::base() + rseq::CPU_ID);
    let offset = rseq::OFFSET.swap(tls::offset(), Relaxed);
    // SAFETY: this thread's own area, which is not registered.
    unsafe { area.write_volatile(cpu as i32) };
    f();
    // SAFETY: as above.
    unsafe { area.write_volatile(-1) };
    rseq::OFFSET.store(offset, Relaxed);
}

/// Has pops compare the mark of the object below the one they hand out, or that of the latter, until threads are
/// counted again.
pub fn compare_below(below: bool) {
    percpu::compare_below(below);
}

/// What a pop does after its first attempt was aborted.
///
/// # Safety
/// As for `PerCpu::pop`.
pub unsafe fn pop_again(cache: u8) -> *mut u8 {
    tls::set(tls::ABORTS, 1);
    // SAFETY: the caller's.
    unsafe { percpu::pop_cold(cache) }
}

/// What a push does after its first attempt was aborted.
///
/// # Safety
/// As for `PerCpu::push`.
pub unsafe fn push_again(cache: u8, object: *mut u8) -> bool {
    tls::set(tls::ABORTS, 1);
    // SAFETY: the caller's.
    unsafe { percpu::push_cold::<SHEAF_BYTES>(cache, object) }
}

/// Takes the lock of the per-CPU data of `cpu` from wherever the calling thread is, if it is free; `put_cpu` gives it
/// back.
pub fn get_cpu_from_outside(cpu: usize) -> bool {
    local::get_cpu_from_outside(cpu)
}

/// Whether somebody has the lock of the per-CPU data of `cpu`.
pub fn is_local_held(cpu: usize) -> bool {
    percpu::local_lock(cpu).is_some_and(|lock| lock.load(Relaxed) != 0)
}
