//! System calls, made directly: they are counted, can be made to fail for tests, and never touch `errno`.

use core::arch::asm;
use core::ffi::{CStr, c_char, c_long};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};

/// An error number as the kernel returns it, positive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

static CALLS: AtomicU64 = AtomicU64::new(0);
/// The number of the call that fails with `ENOMEM`; 0 for none.
#[cfg(any(test, feature = "sim"))]
static FAIL_AT: AtomicU64 = AtomicU64::new(0);

/// System calls made so far by the allocator.
pub fn calls() -> u64 {
    CALLS.load(Relaxed)
}

/// Makes the `k`-th system call from now fail with `ENOMEM` (1 = the next one); 0 clears. For tests.
#[cfg(any(test, feature = "sim"))]
#[doc(hidden)]
pub fn fail_after(k: u64) {
    FAIL_AT.store(if k == 0 { 0 } else { calls() + k }, Relaxed);
}

/// A system call of up to six arguments.
///
/// # Safety
/// Whatever the call `number` demands of its arguments.
pub(super) unsafe fn call(number: c_long, args: [usize; 6]) -> Result<usize, Errno> {
    let _nth = CALLS.fetch_add(1, Relaxed) + 1;
    #[cfg(any(test, feature = "sim"))]
    if FAIL_AT.load(Relaxed) == _nth {
        return Err(Errno(libc::ENOMEM));
    }
    let result: isize;
    // SAFETY: the caller's; the kernel changes rax, rcx and r11 and the memory the arguments point to.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    if (-4095..0).contains(&result) { Err(Errno(-result as i32)) } else { Ok(result as usize) }
}

/// Whether the program restricts its system calls.
static CONFINED: AtomicBool = AtomicBool::new(false);

/// From now on [`ask`] makes no call.
pub(super) fn confine() {
    CONFINED.store(true, Relaxed);
}

/// A system call that can be done without, and that nobody expects of a malloc: a filter may end the program for the
/// attempt.
///
/// # Safety
/// As for [`call`].
pub(super) unsafe fn ask(number: c_long, args: [usize; 6]) -> Result<usize, Errno> {
    if CONFINED.load(Relaxed) {
        return Err(Errno(libc::ENOSYS));
    }
    // SAFETY: the caller's.
    unsafe { call(number, args) }
}

/// 0: not known; 1: no; 2: yes.
static FILTERED: AtomicU8 = AtomicU8::new(0);

/// Whether system calls went through a filter when this was first asked.
pub(super) fn is_filtered() -> bool {
    if FILTERED.load(Relaxed) == 0 {
        // SAFETY: asks; touches no memory.
        let mode = unsafe { ask(libc::SYS_prctl, [libc::PR_GET_SECCOMP as usize, 0, 0, 0, 0, 0]) };
        FILTERED.store(if mode == Ok(0) { 1 } else { 2 }, Relaxed);
    }
    FILTERED.load(Relaxed) == 2
}

/// Flags of a private anonymous mapping that reserves nothing.
const PRIVATE: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Maps `len` private zero bytes; `extra` are further `MAP_` flags.
///
/// With `MAP_FIXED` in `extra` the caller must own `[at, at + len)`; hence it is only passed by this module's
/// siblings, for ranges of their own reservation.
pub(super) fn mmap(at: usize, len: usize, prot: i32, extra: i32) -> Result<usize, Errno> {
    // SAFETY: without MAP_FIXED a new mapping harms nobody; with it the range is the caller's own.
    unsafe { call(libc::SYS_mmap, [at, len, prot as usize, (PRIVATE | extra) as usize, usize::MAX, 0]) }
}

/// Unmaps a range of the caller's own.
pub(super) fn munmap(at: usize, len: usize) -> bool {
    // SAFETY: the range is the caller's own (siblings only).
    unsafe { call(libc::SYS_munmap, [at, len, 0, 0, 0, 0]) }.is_ok()
}

/// Changes the protection of a range of the caller's own.
pub(super) fn mprotect(at: usize, len: usize, prot: i32) -> bool {
    // SAFETY: as for `munmap`.
    unsafe { call(libc::SYS_mprotect, [at, len, prot as usize, 0, 0, 0]) }.is_ok()
}

/// Advises on a range of the caller's own.
pub(super) fn madvise(at: usize, len: usize, advice: i32) -> Result<(), Errno> {
    // SAFETY: as for `munmap`; what DONTNEED drops is the caller's to drop.
    unsafe { call(libc::SYS_madvise, [at, len, advice as usize, 0, 0, 0]) }.map(|_| ())
}

/// Shows the lines of a file, those that are not too long for the name of a file to be in them whole.
pub(super) fn lines(path: &CStr, mut each: impl FnMut(&[u8])) {
    let Some(fd) = open(path) else { return };
    let mut buffer = [0u8; 2048];
    let (mut held, mut skipping) = (0, false);
    loop {
        let rest = &mut buffer[held..];
        // SAFETY: the buffer is valid for its length; the descriptor is ours.
        let got = unsafe { call(libc::SYS_read, [fd, rest.as_mut_ptr().expose_provenance(), rest.len(), 0, 0, 0]) };
        let got = match got {
            Err(Errno(libc::EINTR)) => continue,
            Ok(got) if got > 0 => got,
            _ => break,
        };
        let mut text = &buffer[..held + got];
        while let Some(end) = text.iter().position(|&c| c == b'\n') {
            if !skipping {
                each(&text[..end]);
            }
            skipping = false;
            text = &text[end + 1..];
        }
        (held, skipping) = if text.len() < buffer.len() { (text.len(), skipping) } else { (0, true) };
        let from = buffer.len().min(text.as_ptr().addr() - buffer.as_ptr().addr());
        buffer.copy_within(from..from + held, 0);
    }
    close(fd);
}

/// A new descriptor for reading a file.
#[inline(always)]
pub(super) fn open(path: &CStr) -> Option<usize> {
    const AT_FDCWD: usize = libc::AT_FDCWD as isize as usize;
    let flags = (libc::O_RDONLY | libc::O_CLOEXEC) as usize;
    // SAFETY: `path` ends in a zero byte.
    unsafe { ask(libc::SYS_openat, [AT_FDCWD, path.as_ptr().expose_provenance(), flags, 0, 0, 0]) }.ok()
}

/// Closes a descriptor of our own.
pub(super) fn close(fd: usize) {
    // SAFETY: the descriptor is ours.
    let _ = unsafe { call(libc::SYS_close, [fd, 0, 0, 0, 0, 0]) };
}

/// Reads the start of a file into `buffer`; the bytes read.
pub(super) fn read_file<'a>(path: &CStr, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    let fd = open(path)?;
    // SAFETY: the buffer is valid for its length; the descriptor is ours.
    let got = unsafe { call(libc::SYS_read, [fd, buffer.as_mut_ptr().expose_provenance(), buffer.len(), 0, 0, 0]) };
    close(fd);
    Some(&buffer[..got.ok()?])
}

/// What libc's `RLIMIT_` constants are.
#[cfg(target_env = "gnu")]
type Resource = u32;
#[cfg(not(target_env = "gnu"))]
type Resource = i32;

/// The soft limit of `resource` in bytes; `u64::MAX` for none.
pub(super) fn rlimit(resource: Resource) -> u64 {
    let mut limit = [u64::MAX; 2];
    // SAFETY: the kernel writes a `struct rlimit64` of two words.
    let done =
        unsafe { ask(libc::SYS_prlimit64, [0, resource as usize, 0, (&raw mut limit).expose_provenance(), 0, 0]) };
    if done.is_ok() { limit[0] } else { u64::MAX }
}

/// Bytes of memory that the machine has; `u64::MAX` where it does not tell.
pub(super) fn installed() -> u64 {
    let mut info = core::mem::MaybeUninit::<libc::sysinfo>::zeroed();
    // SAFETY: the kernel writes a `struct sysinfo`, whose fields are numbers: zeroes are valid.
    let (done, info) =
        unsafe { (ask(libc::SYS_sysinfo, [info.as_mut_ptr().expose_provenance(), 0, 0, 0, 0, 0]), info.assume_init()) };
    if done.is_ok() { info.totalram.saturating_mul(u64::from(info.mem_unit)) } else { u64::MAX }
}

/// Lets another thread run.
pub(super) fn pause() {
    // SAFETY: no arguments.
    let _ = unsafe { ask(libc::SYS_sched_yield, [0; 6]) };
}

/// A value of the auxiliary vector; 0 where there is none.
pub(super) fn auxv(kind: u64) -> u64 {
    // SAFETY: reads the process's own vector. It sets errno where there is no such entry.
    unsafe {
        let errno = libc::__errno_location();
        let old = *errno;
        let value = libc::getauxval(kind);
        *errno = old;
        value
    }
}

unsafe extern "C" {
    static environ: *const *const c_char;
}

/// The environment as names and values; empty in a program that runs with raised privileges, as for
/// `secure_getenv`. To be read at start, before the program changes it; the bytes live as long as it leaves them alone.
pub fn variables() -> impl Iterator<Item = (&'static [u8], &'static [u8])> {
    // SAFETY: libc's variable; null before libc is initialised.
    let mut next = if auxv(libc::AT_SECURE) == 0 { unsafe { environ } } else { core::ptr::null() };
    core::iter::from_fn(move || {
        // SAFETY: `environ` is null or a null-terminated array of strings.
        unsafe {
            if next.is_null() || (*next).is_null() {
                return None;
            }
            let text = CStr::from_ptr(*next).to_bytes();
            next = next.add(1);
            let equals = text.iter().position(|&c| c == b'=').unwrap_or(text.len());
            Some((&text[..equals], text.get(equals + 1..).unwrap_or(&[])))
        }
    })
}

/// The value of the environment variable `name`, by the rules of [`variables`].
pub fn environment(name: &[u8]) -> Option<&'static [u8]> {
    variables().find(|variable| variable.0 == name).map(|variable| variable.1)
}

/// The decimal number at the start of `text`.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    let digits = text.iter().take_while(|c| c.is_ascii_digit());
    let mut value = None;
    for digit in digits {
        value = Some(value.unwrap_or(0u64).saturating_mul(10).saturating_add(u64::from(digit - b'0')));
    }
    value
}

/// The largest number in a kernel list such as `0-3,8`.
pub(super) fn list_max(text: &[u8]) -> Option<u64> {
    text.split(|c| matches!(c, b',' | b'-')).filter_map(number).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_lists() {
        assert_eq!(number(b"123\n"), Some(123));
        assert_eq!(number(b"max"), None);
        assert_eq!(number(b"99999999999999999999999"), Some(u64::MAX));
        assert_eq!(list_max(b"0-3,8\n"), Some(8));
        assert_eq!(list_max(b"0\n"), Some(0));
        assert_eq!(list_max(b"\n"), None);
    }

    #[test]
    fn environment_is_read_by_whole_names() {
        assert!(environment(b"PATH").is_some_and(|v| !v.is_empty()));
        assert_eq!(environment(b"PAT"), None);
    }

    #[test]
    fn failing_calls_report_the_kernels_number() {
        // SAFETY: closing a descriptor that cannot exist.
        assert_eq!(unsafe { call(libc::SYS_close, [usize::MAX, 0, 0, 0, 0, 0]) }, Err(Errno(libc::EBADF)));
    }
}
