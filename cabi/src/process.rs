//! The library in its process: what is said at exit, panics, output without allocation, and calls that it has to know
//! of first: `vfork`, limits, locks, filters.

use core::arch::naked_asm;
use core::ffi::{c_int, c_ulong, c_void};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicI32, Ordering};

use slabwright_core::global as heap;
use slabwright_core::machine::linux;

use crate::libc_abi::export;

/// Where reports go when the program has closed its error output before the end, as coreutils do; -1 for nowhere.
static SPARE_OUTPUT: AtomicI32 = AtomicI32::new(-1);

/// Descriptors below this are left to programs that expect the lowest ones.
const SPARE_FROM: c_int = 200;

#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = at_start;

#[used]
#[unsafe(link_section = ".fini_array")]
static AT_FINI: extern "C" fn() = at_fini;

extern "C" fn at_start() {
    let options = heap::options();
    if let Some(directory) = linux::environment(b"SLABWRIGHT_PROC").filter(|directory| !directory.is_empty())
        && let Err(error) = heap::serve_reports(directory)
    {
        with_error_output(|out| {
            let _ = writeln!(out, "slabwright: SLABWRIGHT_PROC: no reports there, error {error}");
        });
    }
    if options.stats || options.verify {
        // SAFETY: duplicates a descriptor; touches no memory.
        let spare =
            unsafe { libc::syscall(libc::SYS_fcntl, libc::STDERR_FILENO, libc::F_DUPFD_CLOEXEC, SPARE_FROM) as c_int };
        SPARE_OUTPUT.store(spare, Ordering::Relaxed);
    }
}

unsafe extern "C" {
    fn __cxa_atexit(call: extern "C" fn(*mut c_void), argument: *mut c_void, library: *mut c_void) -> c_int;
}

/// Destructors of this library run before those of others. A handler registered while `exit` runs the
/// destructors is called after them all, so that is where the last word is said. (musl calls none then.)
extern "C" fn at_fini() {
    heap::end_reports();
    // SAFETY: a function of the C library; no library is named, so unloading one does not call the handler.
    let register = || unsafe { __cxa_atexit(at_exit, core::ptr::null_mut(), core::ptr::null_mut()) };
    if cfg!(not(target_env = "gnu")) || register() != 0 {
        at_exit(core::ptr::null_mut());
    }
}

extern "C" fn at_exit(_: *mut c_void) {
    heap::check_freed();
    let options = heap::options();
    let verdict = if options.verify { heap::verify() } else { Ok(()) };
    if options.stats || verdict.is_err() {
        // SAFETY: no preconditions.
        let pid = unsafe { libc::syscall(libc::SYS_getpid) };
        with_error_output(|out| {
            if options.stats {
                let _ = writeln!(out, "slabwright: statistics of process {pid} at exit");
                heap::write_stats(out);
            }
            if let Err(violation) = &verdict {
                let _ = writeln!(out, "slabwright: verify at exit of process {pid}: {violation}");
            }
        });
    }
    if verdict.is_err() {
        // SAFETY: no preconditions.
        unsafe { libc::abort() }
    }
}

/// Lets `f` write to the error output.
pub(crate) fn with_error_output(f: impl FnOnce(&mut dyn Write)) {
    with_output(error_output(), |out| f(out));
}

/// Lets `f` write to a descriptor.
pub(crate) fn with_output<R>(fd: c_int, f: impl FnOnce(&mut dyn Write) -> R) -> R {
    let mut out = Output { fd, len: 0, bytes: [0; 1024] };
    let result = f(&mut out);
    out.flush();
    result
}

fn error_output() -> c_int {
    // SAFETY: asks about a descriptor; touches no memory.
    if unsafe { libc::syscall(libc::SYS_fcntl, libc::STDERR_FILENO, libc::F_GETFD) } >= 0 {
        libc::STDERR_FILENO
    } else {
        SPARE_OUTPUT.load(Ordering::Relaxed)
    }
}

/// A descriptor with a buffer on the stack.
struct Output {
    fd: c_int,
    len: usize,
    bytes: [u8; 1024],
}

impl Output {
    fn flush(&mut self) {
        let mut rest = &self.bytes[..self.len];
        while !rest.is_empty() {
            // Not `write`, where a thread that is to be cancelled would end.
            // SAFETY: `rest` is readable for its length.
            let written = unsafe { libc::syscall(libc::SYS_write, self.fd, rest.as_ptr(), rest.len()) };
            if written > 0 {
                rest = &rest[written as usize..];
            } else if written == 0 || error() != libc::EINTR {
                break;
            }
        }
        self.len = 0;
    }
}

fn error() -> c_int {
    // SAFETY: the address of the calling thread's own errno.
    unsafe { *libc::__errno_location() }
}

impl Write for Output {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.len == self.bytes.len() {
                self.flush();
            }
            self.bytes[self.len] = byte;
            self.len += 1;
        }
        Ok(())
    }
}

macro_rules! vfork {
    ($($name:ident)*) => {$(
        /// `vfork`, whose child must not allocate on its parent's restartable sequences.
        ///
        /// # Safety
        /// As for `vfork` of POSIX.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() -> c_int {
            naked_asm!(".cfi_startproc", "jmp {vfork}", ".cfi_endproc", vfork = sym linux::vfork)
        }
    )*};
}

vfork!(vfork __vfork);

/// # Safety
/// As for `prlimit(2)`.
unsafe fn limit(pid: libc::pid_t, resource: c_int, new: *const libc::rlimit64, old: *mut libc::rlimit64) -> c_int {
    // SAFETY: the caller's; no preconditions.
    unsafe {
        if resource == libc::RLIMIT_AS as c_int
            && !new.is_null()
            && (pid == 0 || libc::c_long::from(pid) == libc::syscall(libc::SYS_getpid))
        {
            heap::before_address_limit((*new).rlim_cur);
        }
        libc::syscall(libc::SYS_prlimit64, pid, resource, new, old) as c_int
    }
}

/// # Safety
/// As for `setrlimit(2)`.
unsafe fn set_limit(resource: c_int, new: *const libc::rlimit64) -> c_int {
    // SAFETY: the caller's.
    unsafe { limit(0, resource, new, core::ptr::null_mut()) }
}

fn lock_all(flags: c_int) -> c_int {
    heap::before_lock();
    // SAFETY: touches no memory.
    unsafe { libc::syscall(libc::SYS_mlockall, flags) as c_int }
}

/// # Safety
/// As for `prctl(2)`.
unsafe fn control(option: c_int, one: c_ulong, two: c_ulong, three: c_ulong, four: c_ulong) -> c_int {
    // Who calls `seccomp(2)` itself promises this before.
    if matches!(option, libc::PR_SET_SECCOMP | libc::PR_SET_NO_NEW_PRIVS) {
        heap::before_filter();
    }
    // SAFETY: the caller's.
    unsafe { libc::syscall(libc::SYS_prctl, option, one, two, three, four) as c_int }
}

// Calls that count reserved addresses against the program, which it knows nothing of: they are given back first. And
// `prctl`, which announces filters.
export! {
    setrlimit(resource: c_int, new: *const libc::rlimit64) -> c_int = set_limit;
    setrlimit64(resource: c_int, new: *const libc::rlimit64) -> c_int = set_limit;
    prlimit(pid: libc::pid_t, resource: c_int, new: *const libc::rlimit64, old: *mut libc::rlimit64) -> c_int = limit;
    prlimit64(pid: libc::pid_t, resource: c_int, new: *const libc::rlimit64, old: *mut libc::rlimit64) -> c_int = limit;
    mlockall(flags: c_int) -> c_int = lock_all;
    prctl(option: c_int, one: c_ulong, two: c_ulong, three: c_ulong, four: c_ulong) -> c_int = control;
}

slabwright_core::without_std! {
    #[panic_handler]
    fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
        with_error_output(|out| {
            let _ = writeln!(out, "slabwright: {info}");
        });
        // SAFETY: no preconditions.
        unsafe { libc::abort() }
    }
}

// The precompiled `core` names the personality of Rust's exceptions in its unwind tables. Nothing unwinds here.
// Weak and hidden, so that a program with Rust's standard library in it keeps its own.
core::arch::global_asm!(
    ".weak rust_eh_personality",
    ".hidden rust_eh_personality",
    ".type rust_eh_personality, @function",
    "rust_eh_personality:",
    "ud2",
);
