//! The reports, into a buffer or a descriptor.

use core::ffi::{CStr, c_char, c_int, c_long};
use core::fmt::{self, Write};

use slabwright_core::global as heap;
use slabwright_core::mm::Report;

use crate::libc_abi::{export, fail};
use crate::process::with_output;

/// As much of what is written as fits, and how much there was.
struct Buffer {
    at: *mut c_char,
    size: usize,
    len: usize,
}

impl Write for Buffer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.size.saturating_sub(self.len + 1).min(text.len());
        if room > 0 {
            // SAFETY: the caller of `slw_report` promises `size` bytes, and one stays for the zero.
            unsafe { self.at.add(self.len).cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), room) };
        }
        self.len += text.len();
        Ok(())
    }
}

/// # Safety
/// `name` is null or a string.
unsafe fn by_name(name: *const c_char) -> Option<Report> {
    if name.is_null() {
        return None;
    }
    // SAFETY: by contract.
    Report::by_name(unsafe { CStr::from_ptr(name) }.to_str().ok()?)
}

/// -1, and why.
fn refused(error: c_int) -> c_int {
    fail(error);
    -1
}

/// # Safety
/// `name` is a string; `buffer` has room for `size` bytes.
unsafe fn report(name: *const c_char, buffer: *mut c_char, size: usize) -> c_long {
    // SAFETY: by contract.
    let Some(report) = (unsafe { by_name(name) }) else { return refused(libc::ENOENT).into() };
    let mut out = Buffer { at: buffer, size, len: 0 };
    let written = heap::report(report, &mut out);
    if size > 0 {
        // SAFETY: within the buffer.
        unsafe { buffer.add(out.len.min(size - 1)).write(0) };
    }
    if written.is_err() { refused(libc::EDEADLK).into() } else { out.len as c_long }
}

/// # Safety
/// `name` is a string.
unsafe fn report_fd(name: *const c_char, descriptor: c_int) -> c_int {
    // SAFETY: by contract.
    let Some(report) = (unsafe { by_name(name) }) else { return refused(libc::ENOENT) };
    match with_output(descriptor, |out| heap::report(report, out)) {
        Ok(()) => 0,
        Err(fmt::Error) => refused(libc::EDEADLK),
    }
}

/// # Safety
/// `directory` is a string.
unsafe fn serve_reports(directory: *const c_char) -> c_int {
    if directory.is_null() {
        return refused(libc::EINVAL);
    }
    // SAFETY: by contract.
    match heap::serve_reports(unsafe { CStr::from_ptr(directory) }.to_bytes()) {
        Ok(()) => 0,
        Err(error) => refused(error),
    }
}

export! {
    slw_serve_reports(directory: *const c_char) -> c_int = serve_reports;
    slw_report(name: *const c_char, buffer: *mut c_char, size: usize) -> c_long = report;
    slw_report_fd(name: *const c_char, descriptor: c_int) -> c_int = report_fd;
}
