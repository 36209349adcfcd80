//! `fork`, and children that came about without it.
//!
//! `fork` runs the handlers of [`install`], which the shared library registers when it first sees a `fork`, another's
//! handlers or a second thread come, or before it changes the C library's table for what is bound past this library
//! (`RTLD_DEEPBIND`). A raw `clone` does not: its child finds out by [`generation`], which reads a word that the kernel
//! wipes in children. A process of one thread has no such word: its child has all that it had, and only what the
//! program had the kernel wipe may differ (`is_other`).

use core::sync::atomic::{
    AtomicBool, AtomicU32, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};

use super::rseq::{self, Mode};
use super::{Linux, device, percpu, proc, reservation, sys, tls};
use crate::sync::{Fork, Park};
use crate::types::PAGE_SIZE;

static HANDLERS: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];
static INSTALLED: AtomicBool = AtomicBool::new(false);
static GENERATION: AtomicU32 = AtomicU32::new(1);
/// Address of a word that reads 0 in a child that has not looked yet; 0 where there is none, as the kernel (before
/// 4.14) cannot wipe or there is one thread only.
static WORD: AtomicUsize = AtomicUsize::new(0);

/// The process that the heap began in.
static PID: AtomicU32 = AtomicU32::new(0);

/// Not by the C library's function, which lies 64 KiB from all else of it that a small program touches.
fn pid() -> u32 {
    // SAFETY: no arguments.
    unsafe { sys::call(libc::SYS_getpid, [0; 6]) }.map_or(0, |pid| pid as u32)
}

/// Sets up the word, where there may be several threads.
pub(super) fn init() {
    PID.store(pid(), Relaxed);
    if !is_single() || rseq::mode() == Mode::Lock {
        watch();
    }
}

/// Somebody has set up the word, or is at it.
static WATCHED: AtomicBool = AtomicBool::new(false);

/// Sets up the word, once; without memory for it, raw children are not noticed. (At the start of every program it would
/// be 4 µs of 200.)
#[inline]
pub(super) fn watch() {
    if !WATCHED.load(Relaxed) && !WATCHED.swap(true, Relaxed) {
        set_up();
    }
}

#[cold]
fn set_up() {
    const WIPEONFORK: i32 = libc::MADV_WIPEONFORK;
    if let Ok(page) = sys::mmap(0, PAGE_SIZE, libc::PROT_READ | libc::PROT_WRITE, 0) {
        if sys::madvise(page, PAGE_SIZE, WIPEONFORK).is_ok() {
            word(page).store(1, Relaxed);
            WORD.store(page, Release);
        } else {
            sys::munmap(page, PAGE_SIZE);
        }
    }
}

fn word(at: usize) -> &'static AtomicU32 {
    // SAFETY: a page mapped for ever.
    unsafe { &*core::ptr::with_exposed_provenance(at) }
}

/// How many forks this process is away from the one that initialised, plus one. Two loads; a slow path that finds
/// another value than its locks were last used with is in a child of a raw clone and alone in it.
#[inline]
pub fn generation() -> u32 {
    let at = WORD.load(Acquire);
    if at != 0 && word(at).load(Relaxed) == 0 && word(at).swap(1, Relaxed) == 0 {
        begin();
    }
    GENERATION.load(Relaxed)
}

/// Whether this process is the child of another one that used the heap, also where it has no word. A system call.
pub(super) fn is_other() -> bool {
    generation() > 1 || PID.load(Relaxed) != pid()
}

/// This is another process than before.
fn begin() {
    percpu::after_fork();
    reservation::after_fork();
    if ![NOBODY, DONE, tls::base()].contains(&REGISTRAR.load(Relaxed)) {
        REGISTRAR.store(NOBODY, Relaxed);
    }
    GENERATION.fetch_add(1, Relaxed);
}

pub(super) use streams::is_single;

/// The handler before the fork; its answer.
fn run_before(needs_all: bool) -> bool {
    let handler = HANDLERS[0].load(Acquire);
    // SAFETY: only `install` stores there, and it stores a function of this type.
    handler == 0 || unsafe { core::mem::transmute::<usize, fn(bool) -> bool>(handler) }(needs_all)
}

/// The handler after the fork, in the parent or in the child.
fn run_after(which: usize) {
    let handler = HANDLERS[which].load(Acquire);
    if handler != 0 {
        // SAFETY: only `install` stores there, and it stores functions of this type.
        let handler: fn() = unsafe { core::mem::transmute(handler) };
        handler();
    }
}

/// The lock of glibc's list of streams. Its `fork` takes that after all handlers have run; who holds it then
/// (`fflush(NULL)` does, and opens memory streams) may be waiting for a lock of ours. So it is taken first. And who
/// holds a lock of ours may be waiting for it, in a handler that forks: so it is not kept for long without all locks.
#[cfg(target_env = "gnu")]
mod streams {
    use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

    unsafe extern "C" {
        fn _IO_list_lock();
        fn _IO_list_unlock();
        fn _IO_list_resetlock();
        static __libc_single_threaded: core::ffi::c_char;
    }

    /// Whether the process has one thread only, as far as the C library knows.
    #[inline(always)]
    pub(in crate::machine::linux) fn is_single() -> bool {
        // SAFETY: a byte of the C library; it changes when this thread creates another.
        unsafe { (&raw const __libc_single_threaded).read_volatile() != 0 }
    }

    /// Written and read by the holder only.
    static HELD: AtomicBool = AtomicBool::new(false);

    pub(super) fn lock() {
        let needed = !is_single();
        if needed {
            // SAFETY: a recursive lock, given back by `unlock` or `reset` of this fork.
            unsafe { _IO_list_lock() };
        }
        if HELD.load(Relaxed) != needed {
            HELD.store(needed, Relaxed);
        }
    }

    pub(super) fn unlock() {
        if HELD.load(Relaxed) {
            // SAFETY: `lock` took it.
            unsafe { _IO_list_unlock() };
        }
    }

    /// In the child, where `fork` has reset it once already. A fork that this one interrupted has it no more.
    pub(super) fn reset() {
        if HELD.swap(false, Relaxed) {
            // SAFETY: this thread is the only one, and its copy of the lock was taken by `lock`.
            unsafe { _IO_list_resetlock() };
        }
    }
}

#[cfg(not(target_env = "gnu"))]
mod streams {
    /// There is no telling.
    #[inline(always)]
    pub(in crate::machine::linux) fn is_single() -> bool {
        false
    }

    pub(super) fn lock() {}

    pub(super) fn unlock() {}

    pub(super) fn reset() {}
}

/// The fork that this thread is at, which was counted in for it.
fn this_fork() -> Fork {
    let depth = tls::get(tls::DEPTH);
    Fork { token: tls::base() + depth as usize % 32, needs_all: depth <= 1 }
}

/// Rounds of a fork for all locks, each some milliseconds. Who is in the way for longer waits for something that this
/// fork has and cannot give back (before glibc 2.36 the C library's lock of the handlers), or is not there any more.
const ROUNDS: u32 = 100;

extern "C" fn prepare() {
    for round in 0.. {
        let needs_all = round < ROUNDS;
        streams::lock();
        if run_before(needs_all) {
            let fork = this_fork();
            if is_single() || lock_all(Fork { needs_all: fork.needs_all && needs_all, ..fork }) {
                return;
            }
            done();
            run_after(1);
        }
        streams::unlock();
        Linux.nap(&AtomicU32::new(0), 0);
    }
}

/// Takes the locks of this layer: see [`Lock::lock_for_fork`](crate::sync::Lock::lock_for_fork).
fn lock_all(fork: Fork) -> bool {
    device::TABLE.lock_for_fork(&Linux, fork)
        && proc::PLACE.lock_for_fork(&Linux, fork)
        && reservation::fork_prepare(fork)
}

fn done() {
    let fork = this_fork();
    reservation::fork_done(fork);
    // SAFETY: the fork is this thread's, or that of the one it is the copy of.
    unsafe {
        proc::PLACE.unlock_after_fork(&Linux, fork);
        device::TABLE.unlock_after_fork(&Linux, fork);
    }
}

extern "C" fn parent() {
    done();
    run_after(1);
    streams::unlock();
}

extern "C" fn child() {
    if WORD.load(Relaxed) == 0 {
        begin();
        // Another thread may have been at it.
        WATCHED.store(false, Relaxed);
    } else {
        generation();
    }
    done();
    run_after(2);
    streams::reset();
    proc::after_fork();
}

/// Has `fork` call these: before it (told whether it needs all locks; false: it has not, and is to be called again),
/// after it in the parent, after it in the child (where rows are in order again by then). The first call counts. It may
/// allocate, so it comes after initialisation.
pub fn install(before: fn(bool) -> bool, in_parent: fn(), in_child: fn()) {
    if INSTALLED.swap(true, Relaxed) {
        return;
    }
    for (place, handler) in HANDLERS.iter().zip([before as usize, in_parent as usize, in_child as usize]) {
        // Release, pairs with the Acquire in `run_before` and `run_after`.
        place.store(handler, Release);
    }
    if !LATER.load(Relaxed) {
        register();
    }
}

/// Who forks, registers handlers, or loads what does so past this library, calls [`register`] first.
static LATER: AtomicBool = AtomicBool::new(false);
/// [`NOBODY`], the thread that is at registering ([`tls::base`]), or [`DONE`].
static REGISTRAR: AtomicUsize = AtomicUsize::new(NOBODY);
const NOBODY: usize = 0;
const DONE: usize = 1;

/// From now on [`register`] is called before the program forks, before other handlers are registered or a library is
/// bound past this one, and where there are several threads: the heap's are to be the first, as those run with all its
/// locks held. At the start they would bring 100 KiB of the C library's pages into a small program.
pub fn register_later() {
    LATER.store(true, Relaxed);
}

/// There are several threads now, and the C library has forks of its own (`forkpty`, `daemon`) that nobody announces.
#[inline]
pub(super) fn register_for_threads() {
    if LATER.load(Relaxed) && REGISTRAR.load(Relaxed) != DONE {
        register();
    }
}

/// Registers what [`install`] was given, or will be, if nobody did. Not for a thread that is at it: its `fork` is like
/// a raw `clone`.
pub fn register() {
    let me = tls::base();
    loop {
        match REGISTRAR.compare_exchange(NOBODY, me, Acquire, Acquire) {
            Ok(_) => break,
            Err(DONE) => return,
            Err(other) if other == me => return,
            // It takes a microsecond, once.
            Err(_) => Linux.nap(&AtomicU32::new(0), 0),
        }
    }
    unsafe extern "C" {
        fn pthread_atfork(
            prepare: extern "C" fn(),
            parent: extern "C" fn(),
            child: extern "C" fn(),
        ) -> core::ffi::c_int;
    }
    // SAFETY: the functions live as long as the program (the library is linked never to be unloaded).
    unsafe { pthread_atfork(prepare, parent, child) };
    REGISTRAR.store(DONE, Release);
}
