//! The process's allocator: one instance on the Linux machine, and `GlobalAlloc` for it.
//!
//! ```
//! #[global_allocator]
//! static ALLOCATOR: slabwright::Slabwright = slabwright::Slabwright;
//!
//! fn main() {
//!     let words: Vec<String> = (0..1000).map(|n| format!("word {n}")).collect();
//!     assert_eq!(words[7], "word 7");
//!     assert!(slabwright::Slabwright.stats().slab.in_use_bytes > 0);
//! }
//! ```
//!
//! # What a small program pays
//!
//! One that allocates ten blocks, with the library preloaded: about 256 KiB of resident memory and 31 page faults
//! beyond glibc's, and a third as much CPU time again (300 µs from start to end, glibc 222, an empty library beside it
//! 230, mimalloc 2 346). Of the memory 128 KiB are the library's code and constants, 12 what the loader writes, 32
//! words of this module and the machine, 40 arena, 28 descriptors, classes and rows, the rest the C library, whose
//! pages the kernel maps by 64 KiB. What was found to cost, and is gone: tables in `.data` (112 KiB more), code in the
//! order of its modules (160), `dlsym` (140), what is used rarely between what every program uses (40 KiB and ten
//! faults), a look at caches that nobody created (14 faults in all that live 10 ms), code that other programs run next
//! to that of all (44 KiB; `tests/c/small.c` fails where a function is missing in `cabi/order.ld`), tables for
//! unwinding behind the constants (12 to 24), words that the start writes to on pages of their own (20 KiB and six
//! faults), the file of the CPUs that are possible (7 to 10 µs), a page that forks wipe in programs of one thread (4),
//! handlers of `fork` before anybody forks (2.5 µs, 100 KiB of the C library's pages), start files of the compiler, for
//! which the loader looks for five names and which have the C library look for handlers of `fork` at the end (2), a
//! sixth mapping of the file (2), a request that cannot be served before the first growth but looked at every zone (4
//! faults), advice about rows among which no huge page finds room (1.5), clearing a sheaf's room for each class at the
//! end (3), words that are read before they are written to (a fault each), a sheaf for a size of which a few blocks are
//! wanted (a page and its fault each: the first four come straight from slabs; a write to one of these after its free
//! is seen when it is handed out again), lists of pages for a CPU of a program that holds less than 64 of them, names
//! of caches that the loader relocates. What the loader writes to takes two pages less 96 bytes (a place that can panic
//! takes 24).
//!
//! What is left of the faults: one for each class whose first block is taken, four of descriptors, since the heads of
//! the free blocks of 512 KiB and more lie on other pages than the first ones. That descriptors, classes and arena lie
//! far apart costs 6 to 9 µs of page tables; descriptors that go downwards from the classes would spare a third of it,
//! but programs count on those of a block to follow each other.
//!
//! Rejected: code and constants in one mapping (4 µs less, 70 KiB more); strings behind the code (the start reads one
//! of them: 60 KiB more); pages populated in one call (as long); tables of runs between the two parts of the code (40
//! KiB more: each `malloc` that goes the slow way looks at one).
//!
//! Rejected: registering the handlers of `fork` when a second thread comes. They would run before those that the
//! program registered earlier, which then would allocate under every lock. (The shared library does, where there were
//! none before, as it has `fork` and `__register_atfork` itself.) Short sheaves at first: the end of a sheaf is told by
//! its alignment, so that a short one takes as much room. Descriptors and classes that can be written to from the start
//! would spare two calls of `mprotect` of 1.6 µs, but be 66 GiB of a core dump, and of what `mlockall` locks.
#![allow(unsafe_code)]

use core::alloc::{GlobalAlloc, Layout};
use core::fmt::{self, Write};

use crate::config::{self, Options};
use crate::gfp::Gfp;
use crate::machine::linux::{self, Linux};
use crate::machine::{Frames, Owner, Report as _};
use crate::mm::{Left, MAX_RUN, Mm, RUN_STEP, Report, Stats, Violation};
use crate::page::Page;
use crate::slab::classes::{MAX_SMALL, class_of, class_size};
use crate::types::{PAGE_SIZE, Pfn};

/// All zeroes at first, so that it lies in `.bss`: what a program never uses of it costs nothing. (In the file it was
/// 112 KiB of resident memory more.)
static MM: Mm<Linux> = Mm::new(Linux);

impl Owner for Linux {
    fn options(&self) -> Option<Options> {
        let options = config::from_environment(linux::variables(), &mut |line| self.line(line));
        self.configure(&options);
        Some(options)
    }

    fn started(&self) {
        // There may be further instances on the machine, in tests; their forks are their own affair.
        if MM.is_up() {
            linux::fork::install(fork_prepare, fork_done, fork_done);
        }
    }
}

fn fork_prepare(needs_all: bool) -> bool {
    MM.fork_prepare(needs_all)
}

fn fork_done() {
    // SAFETY: the C library calls it after `fork_prepare`, in parent and child.
    unsafe { MM.fork_done() };
}

/// The instance behind all of this module.
pub fn mm() -> &'static Mm<Linux> {
    &MM
}

/// The frame that the descriptor at `page` describes; `None` where no descriptor of an online frame is.
pub fn frame_of(page: *const Page) -> Option<Pfn> {
    if !MM.is_up() {
        return None;
    }
    let base = core::ptr::from_ref(Linux.page(Pfn(0))).addr();
    let offset = page.addr().checked_sub(base)?;
    let pfn = Pfn(u32::try_from(offset / size_of::<Page>()).ok()?);
    (offset.is_multiple_of(size_of::<Page>()) && MM.frame_exists(pfn)).then_some(pfn)
}

// The instance is generic code, which is compiled anew for each crate that calls it. So callers get the fast paths
// inlined and call the rest as functions of this crate: a program is 200 KiB smaller for it.

/// `size` bytes (0 is served as 1), 16-aligned from 16 bytes on; null without memory.
#[inline(always)]
pub fn malloc(size: usize) -> *mut u8 {
    let block = MM.alloc_fast(size);
    if block.is_null() { malloc_slow(size) } else { block }
}

/// [`malloc`] as far as it goes without a call; null where [`malloc_slow`] has to be asked. A caller that does
/// something about a refusal keeps its fast path free of a stack frame with these two.
#[inline(always)]
pub fn malloc_fast(size: usize) -> *mut u8 {
    MM.alloc_fast(size)
}

/// What is left of [`malloc`] after [`malloc_fast`]; null without memory.
#[cold]
#[inline(never)]
pub fn malloc_slow(size: usize) -> *mut u8 {
    let block = malloc_run(size);
    if block.is_null() { malloc_rest(size) } else { block }
}

/// [`malloc_slow`] as far as a page run that lies at hand serves it, without a call; null where [`malloc_rest`] has to
/// be asked.
#[inline(always)]
pub fn malloc_run(size: usize) -> *mut u8 {
    MM.alloc_run_fast(size)
}

/// What is left of [`malloc`] after [`malloc_run`].
#[cold]
#[inline(never)]
pub fn malloc_rest(size: usize) -> *mut u8 {
    MM.alloc_slow(size, Gfp::MALLOC)
}

/// Whether [`calloc`] has to be called for what it would be asked for otherwise, too: see
/// [`PerCpu::sees_threads`](crate::machine::PerCpu::sees_threads).
#[inline(always)]
pub fn sees_threads() -> bool {
    MM.sees_threads()
}

/// `size` zeroed bytes; null without memory.
#[inline(never)]
pub fn calloc(size: usize) -> *mut u8 {
    MM.alloc_zeroed(size)
}

/// `size` bytes at a multiple of `align`, any power of two; null without memory.
#[inline(always)]
pub fn aligned(align: usize, size: usize) -> *mut u8 {
    let block = MM.alloc_aligned_fast(size, align);
    if block.is_null() { aligned_slow(align, size) } else { block }
}

#[cold]
#[inline(never)]
fn aligned_slow(align: usize, size: usize) -> *mut u8 {
    MM.alloc_aligned(size, align, false)
}

/// Frees a block; null is nothing. Misuse is reported.
///
/// # Safety
/// As for [`Mm::free`].
#[inline(always)]
pub unsafe fn free(block: *mut u8) {
    // SAFETY: the caller's condition.
    unsafe {
        match MM.free_fast(block) {
            Left::Nothing => {}
            Left::Run(tag) => free_run(block, tag.into()),
            Left::Rest => free_rest(block),
        }
    }
}

/// # Safety
/// As for [`Mm::free_run_at`].
#[cold]
#[inline(never)]
unsafe fn free_run(block: *mut u8, tag: usize) {
    // SAFETY: the caller's condition. A whole register is not cut to a byte's width again.
    unsafe {
        core::hint::assert_unchecked(tag <= usize::from(u8::MAX));
        MM.free_run_at(block, tag as u8);
    }
}

/// # Safety
/// As for [`free`].
#[cold]
#[inline(never)]
unsafe fn free_rest(block: *mut u8) {
    // SAFETY: the caller's condition.
    unsafe { MM.free_rest(block) }
}

/// # Safety
/// As for [`free`].
#[cold]
#[inline(never)]
unsafe fn free_slow(block: *mut u8) {
    // SAFETY: the caller's condition.
    unsafe { MM.free_slow(block) }
}

/// Gives a block another size, which is not 0; null without memory, and then the block is untouched.
///
/// # Safety
/// As for [`Mm::realloc`].
#[inline(never)]
pub unsafe fn realloc(block: *mut u8, size: usize) -> *mut u8 {
    // SAFETY: the caller's condition.
    unsafe { MM.realloc(block, size) }
}

/// Bytes that may be used at `block`; 0 for null.
///
/// # Safety
/// As for [`Mm::usable_size`].
#[inline(never)]
pub unsafe fn usable_size(block: *const u8) -> usize {
    // SAFETY: the caller's condition.
    unsafe { MM.usable_size(block) }
}

/// Bytes that may be used of what a request of `size` is given, at least; `size` itself where it cannot be served. A
/// page run may give more: that depends on its start colour.
pub fn good_size(size: usize) -> usize {
    if size <= MAX_SMALL && cfg!(feature = "slob") {
        return size;
    }
    if size <= MAX_SMALL {
        return class_size(class_of(size) as usize);
    }
    let unit = if size <= MAX_RUN { RUN_STEP } else { PAGE_SIZE };
    size.checked_next_multiple_of(unit).unwrap_or(size)
}

/// Gives everything back to the system that can be given; whether anything went.
pub fn trim() -> bool {
    MM.trim()
}

/// Sets how many bytes of free memory stay in any case; `u64::MAX` for all.
pub fn set_retained(bytes: u64) {
    MM.start();
    MM.set_retained(bytes);
}

/// What the allocator holds.
pub fn stats() -> Stats {
    MM.stats()
}

/// Writes the statistics as text.
pub fn write_stats(out: &mut dyn Write) {
    // The sink's refusal is its own affair.
    let _ = MM.write_stats(out);
}

/// Writes a report in the format of the file in `/proc` that it is named after.
///
/// ```
/// use slabwright::mm::Report;
///
/// #[global_allocator]
/// static ALLOCATOR: slabwright::Slabwright = slabwright::Slabwright;
///
/// let mut text = String::new();
/// slabwright::global::report(Report::Buddyinfo, &mut text)?;
/// assert!(text.starts_with("Node 0, zone"));
/// # Ok::<(), std::fmt::Error>(())
/// ```
///
/// # Errors
/// As for [`Mm::report`].
pub fn report(report: Report, out: &mut dyn Write) -> fmt::Result {
    MM.report(report, out)
}

static REPORT_FILES: linux::proc::Files = linux::proc::Files {
    names: &{
        let mut names = [""; Report::ALL.len()];
        let mut nth = 0;
        while nth < names.len() {
            names[nth] = Report::ALL[nth].name();
            nth += 1;
        }
        names
    },
    write: |nth, out| MM.report(Report::ALL[nth], out),
};

/// Keeps the reports as files in `directory`/PID, which are filled when they are read, until [`end_reports`]: by a
/// thread of the allocator's own. The shared and the static library do this at their start where `SLABWRIGHT_PROC`
/// names a directory.
///
/// # Errors
/// The system's number of why the directory or the thread could not be made; `EBUSY`: they are kept in another
/// directory.
pub fn serve_reports(directory: &[u8]) -> Result<(), i32> {
    MM.start();
    linux::proc::serve(directory, &REPORT_FILES).map_err(|error| error.0)
}

/// Removes the files of [`serve_reports`]; nothing in a process that did not call it.
pub fn end_reports() {
    linux::proc::end();
}

/// Reports a small block that was freed twice, for the exit of a program ([`Mm::check_freed`]).
pub fn check_freed() {
    MM.check_freed();
}

/// Checks the whole heap.
///
/// # Errors
/// What contradicts what.
pub fn verify() -> Result<(), Violation> {
    MM.verify()
}

/// The options in force.
pub fn options() -> Options {
    MM.start();
    MM.options()
}

/// To be called before the process limits its addresses to `bytes` (`RLIMIT_AS`): the reservation that the heap grows
/// into counts against such a limit. It is given back then, and from now on the heap grows by mappings as it needs
/// them. The C ABI calls it in `setrlimit` and `prlimit`; without it the next growth of the heap notices the limit.
pub fn before_address_limit(bytes: u64) {
    Linux.before_address_limit(bytes);
}

/// To be called before the process locks its memory (`mlockall`), which would count the reservation as locked. The C
/// ABI calls it in `mlockall`.
pub fn before_lock() {
    Linux.before_lock();
}

/// To be called before the process restricts the system calls that it may make (`seccomp`), as such a filter may end it
/// for one that it does not expect of a malloc. The C ABI calls it in `prctl`.
pub fn before_filter() {
    MM.start();
    Linux.before_filter();
}

/// The process's allocator as a value: zero-sized, for `#[global_allocator]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Slabwright;

impl Slabwright {
    /// What the allocator holds.
    pub fn stats(&self) -> Stats {
        stats()
    }

    /// Gives everything back to the system that can be given; whether anything went.
    pub fn trim(&self) -> bool {
        trim()
    }

    /// Checks the whole heap.
    ///
    /// # Errors
    /// What contradicts what.
    pub fn verify(&self) -> Result<(), Violation> {
        verify()
    }
}

// SAFETY: the instance keeps the conditions.
unsafe impl GlobalAlloc for Slabwright {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() <= 8 || layout.align() == 16 && layout.size() >= 16 {
            let block = MM.alloc_fast(layout.size());
            if !block.is_null() {
                return block;
            }
        }
        alloc_slow(layout)
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        alloc_zeroed(layout)
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's condition.
        unsafe {
            if !MM.free_sized_fast(block, layout.size(), layout.align()) {
                free_slow(block);
            }
        }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's condition.
        unsafe { realloc_of(block, layout, size) }
    }
}

#[inline(never)]
fn alloc_slow(layout: Layout) -> *mut u8 {
    MM.alloc_aligned(layout.size(), layout.align(), false)
}

#[inline(never)]
fn alloc_zeroed(layout: Layout) -> *mut u8 {
    MM.alloc_aligned(layout.size(), layout.align(), true)
}

/// # Safety
/// As for [`GlobalAlloc::realloc`].
#[inline(never)]
unsafe fn realloc_of(block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
    // SAFETY: the caller's condition.
    unsafe { GlobalAlloc::realloc(&MM, block, layout, size) }
}
