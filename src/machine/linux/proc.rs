//! Reports as files that are filled when they are read, of a process that goes on meanwhile.
//!
//! They are FIFOs in DIR/PID. A thread of the allocator's own holds each open, so that who opens one need not wait for
//! a writer, and learns of the reader by inotify. It then puts a new FIFO in the old one's place, writes the report
//! into the old one and closes it, which ends what the reader reads. One who opens a FIFO in the microseconds before it
//! is replaced shares the text with the other reader.
//!
//! The program notices little of it: the thread has all signals blocked and a table of descriptors of its own (with
//! none of the program's in it), it sleeps until somebody reads, and a reader who does not read on is given up after a
//! second. But a process with a second thread may not do all that one without may: `unshare(CLONE_NEWUSER)` and `setns`
//! to such a namespace fail.
//!
//! A process that is killed leaves its FIFOs behind; the next one that comes to the same directory removes them.
//!
//! The child of a fork gets files of its own, by a thread that its handler starts and that waits a moment first: most
//! children execute another program at once, or are gone. None in a child whose fork came from a handler that
//! interrupted the allocator, nor in one that came about without the C library's `fork`.
//!
//! Rejected: a signal, which the program may use itself and whose handler could only try locks; a later slow path that
//! writes the files, which an idle program never comes to.

use core::ffi::{CStr, c_void};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicI32, AtomicPtr, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use super::sys::{self, Errno};
use super::{Linux, locked, tls};
use crate::machine::Context;
use crate::sync::Lock;

/// What is in the files.
pub struct Files {
    /// Their names.
    pub names: &'static [&'static str],
    /// Writes the file with that index.
    pub write: fn(usize, &mut dyn Write) -> fmt::Result,
}

/// A path, with a zero behind it.
struct Path {
    bytes: [u8; 512],
    len: usize,
}

impl Path {
    const NONE: Path = Path { bytes: [0; 512], len: 0 };

    fn push(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        // One byte stays zero.
        let end = self.len + bytes.len();
        let room = self.bytes[..511].get_mut(self.len..end).ok_or(Errno(libc::ENAMETOOLONG))?;
        room.copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }

    fn arg(&self) -> usize {
        self.bytes.as_ptr().expose_provenance()
    }
}

impl Write for Path {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes()).map_err(|_| fmt::Error)
    }
}

/// Where the files are.
pub(super) struct Place {
    /// Their directory, DIR/PID; empty before there are any and after they are gone.
    path: Path,
    /// Bytes of DIR.
    directory: usize,
}

/// Held while files are made.
pub(super) static PLACE: Lock<Place> = Lock::new(Place { path: Path::NONE, directory: 0 });
/// The process that it is for, or whose end removed the files: a child of a fork has the memory, but not the thread.
static OWNER: AtomicI32 = AtomicI32::new(0);
static FILES: AtomicPtr<Files> = AtomicPtr::new(core::ptr::null_mut());

const CWD: usize = libc::AT_FDCWD as isize as usize;
/// Milliseconds until the child of a fork has files.
const MOMENT: usize = 100;
/// The least that the thread needs with room for a report's figures.
const STACK: usize = 256 << 10;

/// A call whose arguments are numbers and strings of this module.
fn call(number: i64, args: [usize; 4]) -> Result<usize, Errno> {
    // SAFETY: callers pass descriptors of their own, numbers, and strings that end in a zero or buffers of the given
    // length.
    unsafe { sys::call(number, [args[0], args[1], args[2], args[3], 0, 0]) }
}

fn process() -> i32 {
    call(libc::SYS_getpid, [0; 4]).map_or(0, |pid| pid as i32)
}

/// Keeps `files` in `directory`/PID from now on, until [`end`]; to be called when the C library is up. Again, it has no
/// effect, but in a child that has no files yet.
///
/// # Errors
/// Why the thread or the directory could not be made; `EBUSY`: they are kept in another directory.
pub fn serve(directory: &[u8], files: &'static Files) -> Result<(), Errno> {
    let mut path = Path::NONE;
    if directory.first() != Some(&b'/') {
        // The program may go elsewhere. The call counts the zero.
        path.len = call(libc::SYS_getcwd, [path.arg(), path.bytes.len() - 1, 0, 0])?.saturating_sub(1);
        path.push(b"/")?;
    }
    path.push(directory)?;
    let started = locked(&PLACE, |mut place| {
        if place.path.len > 0 && OWNER.load(Relaxed) == process() {
            let same = place.path.bytes[..place.directory] == path.bytes[..path.len];
            return if same { Ok(false) } else { Err(Errno(libc::EBUSY)) };
        }
        FILES.store(core::ptr::from_ref(files).cast_mut(), Release);
        settle(&mut place, path, files).map(|()| true)
    })?;
    if started { start_thread(run).inspect_err(|_| end()) } else { Ok(()) }
}

/// Makes this process's directory in `directory`.
fn settle(place: &mut Place, directory: Path, files: &Files) -> Result<(), Errno> {
    let mut path = directory;
    let _ = call(libc::SYS_mkdirat, [CWD, path.arg(), 0o755, 0]);
    sweep(&path, files);
    let (len, pid) = (path.len, process());
    write!(path, "/{pid}").map_err(|_| Errno(libc::ENAMETOOLONG))?;
    // Of a process that had the number before, or of this one before it executed another program.
    remove(&path, files);
    call(libc::SYS_mkdirat, [CWD, path.arg(), 0o700, 0])?;
    *place = Place { path, directory: len };
    OWNER.store(pid, Relaxed);
    Ok(())
}

/// In the child of a fork: what its parent had it gets, too.
pub(super) fn after_fork() {
    let wanted = OWNER.load(Relaxed) != 0 && tls::get(tls::DEPTH) == 0;
    if wanted && locked(&PLACE, |place| place.path.len > 0) {
        // Without a thread it has none.
        let _ = start_thread(run_later);
    }
}

/// Removes the files; those of a process that ends in a handler which interrupted their making stay.
pub fn end() {
    if FILES.load(Relaxed).is_null() {
        return;
    }
    let nested = Linux.enter() > 0;
    if let Some(mut place) = PLACE.acquire(&Linux, !nested) {
        // SAFETY: `serve` stored a `&'static`.
        if let Some(files) = unsafe { FILES.load(Acquire).as_ref() }
            && OWNER.swap(process(), Relaxed) == process()
            && place.path.len > 0
        {
            remove(&place.path, files);
        }
        place.path = Path::NONE;
    }
    Linux.leave();
}

/// Removes what processes left in `directory` that are no more.
fn sweep(directory: &Path, files: &Files) {
    let flags = (libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC) as usize;
    let Ok(fd) = call(libc::SYS_openat, [CWD, directory.arg(), flags, 0]) else { return };
    let mut entries = Events([0; 4096]);
    while let Ok(got @ 1..) =
        call(libc::SYS_getdents64, [fd, entries.0.as_mut_ptr().expose_provenance(), entries.0.len(), 0])
    {
        entries.each_entry(got, |name| {
            let pid = core::str::from_utf8(name).ok().and_then(|name| name.parse::<i32>().ok());
            let gone = |pid: i32| call(libc::SYS_kill, [pid as usize, 0, 0, 0]) == Err(Errno(libc::ESRCH));
            let mut path = Path { bytes: directory.bytes, len: directory.len };
            if pid.is_some_and(gone)
                && path.push(b"/").and_then(|()| path.push(name)).is_ok()
                && !files.names.iter().any(|name| is_served(&path, name))
            {
                remove(&path, files);
            }
        });
    }
    let _ = call(libc::SYS_close, [fd, 0, 0, 0]);
}

/// Whether somebody holds the FIFO `name` open, perhaps in another PID namespace.
fn is_served(directory: &Path, name: &str) -> bool {
    let mut path = Path { bytes: directory.bytes, len: directory.len };
    let flags = (libc::O_WRONLY | libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOFOLLOW) as usize;
    if write!(path, "/{name}").is_err() {
        return true;
    }
    match call(libc::SYS_openat, [CWD, path.arg(), flags, 0]) {
        Ok(fd) => {
            let _ = call(libc::SYS_close, [fd, 0, 0, 0]);
            true
        }
        Err(error) => ![libc::ENXIO, libc::ENOENT].contains(&error.0),
    }
}

fn remove(directory: &Path, files: &Files) {
    for name in files.names {
        for hidden in ["/", "/."] {
            let mut path = Path { bytes: directory.bytes, len: directory.len };
            if write!(path, "{hidden}{name}").is_ok() {
                let _ = call(libc::SYS_unlinkat, [CWD, path.arg(), 0, 0]);
            }
        }
    }
    let _ = call(libc::SYS_unlinkat, [CWD, directory.arg(), libc::AT_REMOVEDIR as usize, 0]);
}

fn start_thread(run: extern "C" fn(*mut c_void) -> *mut c_void) -> Result<(), Errno> {
    // SAFETY: plain calls of the C library on this frame's objects; the thread inherits the mask, which is then
    // restored.
    let error = unsafe {
        let mut all: libc::sigset_t = core::mem::zeroed();
        let mut old: libc::sigset_t = core::mem::zeroed();
        let mut attributes: libc::pthread_attr_t = core::mem::zeroed();
        let mut thread: libc::pthread_t = core::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old);
        let mut error = libc::pthread_attr_init(&raw mut attributes);
        if error == 0 {
            libc::pthread_attr_setstacksize(&raw mut attributes, STACK);
            libc::pthread_attr_setdetachstate(&raw mut attributes, libc::PTHREAD_CREATE_DETACHED);
            error = libc::pthread_create(&raw mut thread, &raw const attributes, run, core::ptr::null_mut());
            libc::pthread_attr_destroy(&raw mut attributes);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old, core::ptr::null_mut());
        error
    };
    if error == 0 { Ok(()) } else { Err(Errno(error)) }
}

extern "C" fn run(_: *mut c_void) -> *mut c_void {
    // SAFETY: `serve` stored a `&'static`.
    if let Some(files) = unsafe { FILES.load(Acquire).as_ref() } {
        let _ = attend(files);
    }
    end();
    core::ptr::null_mut()
}

extern "C" fn run_later(none: *mut c_void) -> *mut c_void {
    let _ = call(libc::SYS_poll, [0, 0, MOMENT, 0]);
    // SAFETY: `serve` stored a `&'static`, in this process or in the one that it is a copy of.
    let Some(files) = (unsafe { FILES.load(Acquire).as_ref() }) else { return none };
    let settled = locked(&PLACE, |mut place| {
        // The program may have asked for them itself, or be at its end.
        if OWNER.load(Relaxed) == process() {
            return false;
        }
        let mut directory = Path::NONE;
        directory.push(&place.path.bytes[..place.directory]).and_then(|()| settle(&mut place, directory, files)).is_ok()
    });
    if settled { run(none) } else { none }
}

/// Most files.
const MOST: usize = 16;

/// The thread's work. Comes back only if something fails.
fn attend(files: &Files) -> Result<(), Errno> {
    // From here on the descriptors are the thread's own: it cannot write into what the program opens, and keeps nothing
    // open.
    call(libc::SYS_close_range, [0, u32::MAX as usize, libc::CLOSE_RANGE_UNSHARE as usize, 0])?;
    let watch = call(libc::SYS_inotify_init1, [libc::IN_CLOEXEC as usize, 0, 0, 0])?;
    {
        let place = PLACE.lock(&Linux);
        call(libc::SYS_inotify_add_watch, [watch, place.path.arg(), (libc::IN_OPEN | libc::IN_ONLYDIR) as usize, 0])?;
    }
    let mut open = [usize::MAX; MOST];
    for (nth, slot) in open.iter_mut().enumerate().take(files.names.len()) {
        *slot = make(files.names[nth])?;
    }
    let mut events = Events([0; 4096]);
    loop {
        let got = match call(libc::SYS_read, [watch, events.0.as_mut_ptr().expose_provenance(), events.0.len(), 0]) {
            Err(Errno(libc::EINTR)) => continue,
            got => got?,
        };
        events.each(got, |name| {
            // No name: events were lost. Everybody who waits gets something then.
            for nth in (0..files.names.len()).filter(|nth| name.is_none_or(|name| name == files.names[*nth].as_bytes()))
            {
                let Ok(fresh) = make(files.names[nth]) else { continue };
                let mut out = Pipe { fd: open[nth], len: 0, bytes: [0; 2048] };
                let _ = (files.write)(nth, &mut out).and_then(|()| out.flush());
                let _ = call(libc::SYS_close, [open[nth], 0, 0, 0]);
                open[nth] = fresh;
            }
        });
    }
}

/// Puts a new FIFO in the place of `name`, open for both ends.
fn make(name: &str) -> Result<usize, Errno> {
    let place = PLACE.lock(&Linux);
    if place.path.len == 0 {
        return Err(Errno(libc::ENOENT));
    }
    let [hidden, path] = ["/.", "/"].map(|prefix| {
        let mut path = Path { bytes: place.path.bytes, len: place.path.len };
        // Names are short.
        let _ = write!(path, "{prefix}{name}");
        path
    });
    let _ = call(libc::SYS_unlinkat, [CWD, hidden.arg(), 0, 0]);
    call(libc::SYS_mknodat, [CWD, hidden.arg(), (libc::S_IFIFO | 0o600) as usize, 0])?;
    let flags = (libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOFOLLOW) as usize;
    let fd = call(libc::SYS_openat, [CWD, hidden.arg(), flags, 0])?;
    match call(libc::SYS_renameat, [CWD, hidden.arg(), CWD, path.arg()]) {
        Ok(_) => Ok(fd),
        Err(error) => {
            let _ = call(libc::SYS_close, [fd, 0, 0, 0]);
            Err(error)
        }
    }
}

/// `struct inotify_event`s, or the entries of a directory, as they are read.
#[repr(align(8))]
struct Events([u8; 4096]);

impl Events {
    /// Shows the names of the `struct linux_dirent64`s in the first `len` bytes.
    fn each_entry(&self, len: usize, mut f: impl FnMut(&[u8])) {
        // Inode and offset, 8 bytes each; length of the entry, 2; type, 1; name, with a zero behind it.
        const HEAD: usize = 19;
        let mut at = 0;
        while at + HEAD < len {
            let entry = self.0[at + 16..].first_chunk().map_or(0, |length| usize::from(u16::from_ne_bytes(*length)));
            if let Ok(name) = CStr::from_bytes_until_nul(&self.0[at + HEAD..(at + entry).min(len)]) {
                f(name.to_bytes());
            }
            at += entry.max(HEAD);
        }
    }

    /// Shows the names in the first `len` bytes; `None` where events were lost.
    fn each(&self, len: usize, mut f: impl FnMut(Option<&[u8]>)) {
        const HEAD: usize = size_of::<libc::inotify_event>();
        let word = |at: usize| self.0[at..].first_chunk().map_or(0, |word| u32::from_ne_bytes(*word));
        let mut at = 0;
        while at + HEAD <= len {
            let (mask, name) = (word(at + 4), word(at + 12) as usize);
            let name = &self.0[at + HEAD..(at + HEAD + name).min(len)];
            if mask & libc::IN_Q_OVERFLOW != 0 {
                f(None);
            } else if let Ok(text) = CStr::from_bytes_until_nul(name)
                && mask & libc::IN_OPEN != 0
            {
                f(Some(text.to_bytes()));
            }
            at += HEAD + word(at + 12) as usize;
        }
    }
}

/// The writing end of a FIFO.
struct Pipe {
    fd: usize,
    len: usize,
    bytes: [u8; 2048],
}

impl Pipe {
    fn flush(&mut self) -> fmt::Result {
        let mut from = 0;
        while from < self.len {
            let rest = &self.bytes[from..self.len];
            match call(libc::SYS_write, [self.fd, rest.as_ptr().expose_provenance(), rest.len(), 0]) {
                Ok(written) => from += written,
                Err(Errno(libc::EINTR)) => {}
                Err(Errno(libc::EAGAIN)) => {
                    let mut wait = libc::pollfd { fd: self.fd as i32, events: libc::POLLOUT, revents: 0 };
                    // A second for whoever reads slowly.
                    let ready = call(libc::SYS_poll, [(&raw mut wait).expose_provenance(), 1, 1000, 0]);
                    if !matches!(ready, Ok(1)) {
                        return Err(fmt::Error);
                    }
                }
                Err(_) => return Err(fmt::Error),
            }
        }
        self.len = 0;
        Ok(())
    }
}

impl Write for Pipe {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.len == self.bytes.len() {
                self.flush()?;
            }
            self.bytes[self.len] = byte;
            self.len += 1;
        }
        Ok(())
    }
}
