//! A process on x86-64 Linux as a machine: memory by `mmap`, per-CPU sections by restartable sequences.
//!
//! | file | what |
//! |---|---|
//! | `memory` | address map, growth, giving back ([`Frames`](super::Frames)) |
//! | `reservation` | reserved addresses, and giving them back where they are rationed |
//! | `advice` | which pageblocks are to be huge pages |
//! | `remap` | the vmalloc window, moving populations ([`Mapping`](super::Mapping)) |
//! | `percpu`, `rseq`, `static_rseq`, `membarrier`, `tls` | rows of sheaves ([`PerCpu`](super::PerCpu)) |
//! | `local` | per-CPU data of the program |
//! | [`fork`], `vfork` | children |
//! | [`proc`] | reports as files |
//! | `text` | the allocator's code, populated |
//! | `elf` | symbols of a loaded object, and others in their place |
//! | `symbol` | names of functions, for reports |
//! | `park` | sleeping on lock words ([`Park`](crate::sync::Park)) |
//! | [`device`] | device memory: `ioremap` of files |
//! | `limits`, `setup` | budgets, CPUs, nodes, clock, random bits; all of it for a look |
//! | `sys` | system calls, the environment |
//!
//! The state is the process's: [`Linux`] is zero-sized and every value of it is the same machine.
#![allow(unsafe_code)]

mod advice;
pub mod device;
mod elf;
pub mod fork;
mod limits;
mod local;
mod membarrier;
mod memory;
mod park;
mod percpu;
pub mod proc;
mod remap;
mod reservation;
mod rseq;
mod setup;
mod static_rseq;
mod symbol;
mod sys;
#[cfg(any(test, feature = "sim"))]
#[doc(hidden)]
pub mod testing;
mod text;
mod tls;
mod vfork;

use core::fmt::{self, Write};
use core::sync::atomic::Ordering::Relaxed;

use super::{Context, Machine, Report};
use crate::config::Options;
use crate::sync::{Guard, Lock};

pub use elf::{next as next_symbol, redefine};
pub use memory::LOW_PAGES;
pub use remap::can_move;
#[cfg(any(test, feature = "sim"))]
#[doc(hidden)]
pub use remap::{allow as allow_moves, moved_runs};
pub use rseq::{Mode, mode};
pub use setup::{HugePages, Setup};
#[cfg(any(test, feature = "sim"))]
#[doc(hidden)]
pub use sys::fail_after;
pub use sys::{Errno, calls, environment, variables};
pub use vfork::vfork;

/// The process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Linux;

impl Linux {
    /// Takes note of the options that concern the machine. Before [`Machine::init`].
    pub fn configure(&self, options: &Options) {
        limits::configure(options);
        memory::HUGE.store(options.huge_pages, Relaxed);
        rseq::ALLOWED.store(options.rseq, Relaxed);
    }

    /// Gives reserved addresses back before the process may have only `bytes` of them (`RLIMIT_AS`), where the
    /// reservation would count against that. Without this the next growth does it, and until then mappings of the
    /// program are refused.
    pub fn before_address_limit(&self, bytes: u64) {
        self.enter();
        if reservation::would_ration(bytes) {
            memory::retreat(bytes);
        }
        self.leave();
    }

    /// Gives reserved addresses back before the process locks its memory (`mlockall`): they would be counted as locked.
    pub fn before_lock(&self) {
        self.enter();
        memory::lock(sys::rlimit(libc::RLIMIT_MEMLOCK));
        self.leave();
    }

    /// Asks the system what there may be need to know before the program restricts its system calls (`seccomp`). From
    /// then on nothing is asked of it but memory: other CPUs keep what they have in their rows, and `userfaultfd` moves
    /// nothing (`mremap` does).
    pub fn before_filter(&self) {
        super::Frames::pressure(self);
        limits::memory();
        limits::nodes();
        sys::confine();
    }

    /// Critical sections that were aborted and tried again so far.
    pub fn restarts(&self) -> u32 {
        rseq::RESTARTS.load(Relaxed)
    }
}

/// Takes a lock of the machine's own, and counts the caller in: a handler that comes in meanwhile, and forks, knows
/// that it must not wait.
fn locked<T, R>(lock: &Lock<T>, body: impl FnOnce(Guard<'_, T, Linux>) -> R) -> R {
    Linux.enter();
    let result = body(lock.lock(&Linux));
    Linux.leave();
    result
}

impl Context for Linux {
    #[inline]
    fn enter(&self) -> u32 {
        tls::add(tls::DEPTH, 1)
    }

    #[inline]
    fn leave(&self) {
        tls::add(tls::DEPTH, u32::MAX);
    }

    #[inline]
    fn preempt_disable(&self) {
        tls::add(tls::PREEMPT, 1);
    }

    #[inline]
    fn preempt_enable(&self) {
        tls::add(tls::PREEMPT, u32::MAX);
    }

    #[inline]
    fn preempt_count(&self) -> u32 {
        tls::get(tls::PREEMPT)
    }

    #[inline]
    fn thread(&self) -> usize {
        tls::base()
    }

    fn is_alone(&self) -> bool {
        fork::is_single()
    }

    #[inline]
    fn generation(&self) -> u32 {
        fork::generation()
    }

    fn is_copy(&self) -> bool {
        fork::is_other()
    }
}

impl Report for Linux {
    fn symbol(&self, address: usize, out: &mut dyn Write) -> fmt::Result {
        symbol::write(address, out)
    }

    fn line(&self, text: &str) {
        let newline = b"\n";
        let parts = [
            libc::iovec { iov_base: text.as_ptr().cast_mut().cast(), iov_len: text.len() },
            libc::iovec { iov_base: newline.as_ptr().cast_mut().cast(), iov_len: 1 },
        ];
        // SAFETY: both buffers are readable; the kernel does not write them.
        let _ =
            unsafe { sys::call(libc::SYS_writev, [2, (&raw const parts).expose_provenance(), parts.len(), 0, 0, 0]) };
    }

    fn aborts(&self) -> bool {
        limits::aborts()
    }

    fn abort(&self) -> ! {
        // SAFETY: ends the program.
        unsafe { libc::abort() }
    }
}

impl Machine for Linux {
    fn system_calls(&self) -> u64 {
        sys::calls()
    }

    fn populate_own(&self) {
        percpu::make_rows();
        text::populate();
    }

    fn now_ms(&self) -> u64 {
        limits::now_ms()
    }

    fn random(&self) -> u64 {
        limits::random()
    }

    fn get_cpu(&self) -> usize {
        local::get_cpu()
    }

    fn put_cpu(&self) {
        local::put_cpu();
    }

    unsafe fn this_cpu_add(&self, word: *mut u8, size: usize, value: u64) {
        // SAFETY: the caller's.
        unsafe { local::add(word, size, value) }
    }

    fn init(&self) -> bool {
        percpu::init();
        fork::init();
        memory::reserve();
        true
    }
}
