//! The names of functions, for reports: what the loader knows of them.
//!
//! It knows what is exported, so a program's own functions are named only if it was linked with `-rdynamic`; of others
//! the object and the offset in it are told, which `addr2line` takes. A static program has no loader to ask.
//!
//! The loader's lock is waited for, which is why this is for reports only. A `fork` meanwhile is harmless: the child's
//! copy of the lock is reset by the C library, and looking names up changes nothing. The loader's answer lies in the
//! library, which another thread may unload at once: it is read by the kernel ([`copy`]), for which memory that is gone
//! is no fault.

use core::ffi::{CStr, c_char};
use core::fmt::{self, Write};

use super::sys;
use crate::types::PAGE_SIZE;

/// As much of a name as is shown.
const NAME: usize = 128;

/// `function+0x1d/0x30 [library]`, in the program itself without the last; `object+0x1234` where the function is not
/// known, `0x1234` where nothing is.
pub(super) fn write(address: usize, out: &mut dyn Write) -> fmt::Result {
    // SAFETY: a structure of pointers; null is a value of each.
    let mut found: libc::Dl_info = unsafe { core::mem::zeroed() };
    if sys::auxv(libc::AT_BASE) == 0 || !look_up(address, &mut found) {
        return write!(out, "{address:#x}");
    }
    let mut names = [[0; NAME]; 2];
    let [path, function] = &mut names;
    let (path, function) = (string(found.dli_fname, path), string(found.dli_sname, function));
    let object = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
    if function.is_empty() {
        word(object, out)?;
        return write!(out, "+{:#x}", address - found.dli_fbase.addr());
    }
    word(function, out)?;
    write!(out, "+{:#x}", address - found.dli_saddr.addr())?;
    if let Some(size) = size(address) {
        write!(out, "/{size:#x}")?;
    }
    if is_program(&found) {
        return Ok(());
    }
    out.write_str(" [")?;
    word(object, out)?;
    out.write_str("]")
}

fn look_up(address: usize, found: &mut libc::Dl_info) -> bool {
    // SAFETY: the loader writes to the structure.
    unsafe { libc::dladdr(core::ptr::without_provenance(address), found) != 0 }
}

/// The size of the function at `address`.
#[cfg(target_env = "gnu")]
fn size(address: usize) -> Option<u64> {
    const SYMBOL: core::ffi::c_int = 1;
    let mut symbol: *const libc::Elf64_Sym = core::ptr::null();
    // SAFETY: structures of numbers and pointers; 0 is a value of each.
    let (mut info, mut copied): (libc::Dl_info, libc::Elf64_Sym) = unsafe { core::mem::zeroed() };
    // SAFETY: the loader writes to the structure and, asked for the symbol, one pointer.
    let known = unsafe {
        libc::dladdr1(core::ptr::without_provenance(address), &mut info, (&raw mut symbol).cast(), SYMBOL) != 0
    };
    let len = size_of::<libc::Elf64_Sym>();
    // SAFETY: a structure of numbers, which may be any.
    let bytes = unsafe { core::slice::from_raw_parts_mut((&raw mut copied).cast::<u8>(), len) };
    (known && !symbol.is_null() && copy(symbol.addr(), bytes) == len).then_some(copied.st_size)
}

/// The loader does not say.
#[cfg(not(target_env = "gnu"))]
fn size(_address: usize) -> Option<u64> {
    None
}

/// Whether it is in the program itself, whose headers the system has told of.
fn is_program(found: &libc::Dl_info) -> bool {
    let headers = sys::auxv(libc::AT_PHDR) as usize;
    headers.wrapping_sub(found.dli_fbase.addr()) < PAGE_SIZE
}

/// Copies what is at `at`; how many bytes there are to be copied.
fn copy(at: usize, to: &mut [u8]) -> usize {
    let local = libc::iovec { iov_base: to.as_mut_ptr().cast(), iov_len: to.len() };
    let remote = libc::iovec { iov_base: core::ptr::without_provenance_mut(at), iov_len: to.len() };
    let [local, remote] = [&raw const local, &raw const remote].map(|vector| vector.expose_provenance());
    // SAFETY: the call writes to `to` only, and reads what can be read.
    unsafe {
        let process = sys::call(libc::SYS_getpid, [0; 6]).unwrap_or(0);
        sys::call(libc::SYS_process_vm_readv, [process, local, 1, remote, 1, 0]).unwrap_or(0)
    }
}

/// The string at `at`, cut off at the end of the buffer; empty for null.
fn string(at: *const c_char, buffer: &mut [u8; NAME]) -> &[u8] {
    if !at.is_null() {
        // The next page may not be there. The last byte stays zero.
        let here = (PAGE_SIZE - at.addr() % PAGE_SIZE).min(NAME - 1);
        if copy(at.addr(), &mut buffer[..here]) == here && !buffer[..here].contains(&0) {
            copy(at.addr() + here, &mut buffer[here..NAME - 1]);
        }
    }
    CStr::from_bytes_until_nul(buffer).map_or(&[], CStr::to_bytes)
}

/// Writes a name as one word.
fn word(name: &[u8], out: &mut dyn Write) -> fmt::Result {
    name.iter().try_for_each(|&byte| out.write_char(if byte.is_ascii_graphic() { byte.into() } else { '_' }))
}
