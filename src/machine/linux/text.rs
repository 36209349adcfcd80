//! The allocator's own code and constants, and what it calls of the C library: backed before somebody needs them who
//! may take no fault.
#![allow(unsafe_code)]

use core::ffi::{c_int, c_void};

use super::sys;

/// Bytes before and behind a function that are worth it: a program with the allocator linked in may be large.
const AROUND: usize = 1 << 20;
/// `MADV_POPULATE_READ`, of Linux 5.14.
const POPULATE_READ: i32 = 22;

/// Maps the pages. Best effort.
pub(super) fn populate() {
    for function in [populate as *const (), libc::memset as *const (), libc::sched_getcpu as *const ()] {
        // SAFETY: the callback is called before this returns, with what it expects.
        unsafe { libc::dl_iterate_phdr(Some(populate_object), function.cast_mut().cast()) };
    }
}

/// Populates what is read of the object that `function` lies in, near it.
unsafe extern "C" fn populate_object(info: *mut libc::dl_phdr_info, _: usize, function: *mut c_void) -> c_int {
    // SAFETY: the C library passes a valid description of an object, with as many headers as it says.
    let (base, headers) = unsafe {
        let info = &*info;
        (info.dlpi_addr as usize, core::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()))
    };
    let (function, page) = (function.addr(), crate::types::PAGE_SIZE);
    let loaded = || headers.iter().filter(|header| header.p_type == libc::PT_LOAD);
    let range = |header: &libc::Elf64_Phdr| {
        let start = base + header.p_vaddr as usize;
        start..start + header.p_memsz as usize
    };
    if !loaded().any(|header| range(header).contains(&function)) {
        return 0;
    }
    for header in loaded().filter(|header| header.p_flags & libc::PF_W == 0) {
        let range = range(header);
        let start = range.start.max(function.saturating_sub(AROUND)) & !(page - 1);
        let end = range.end.min(function + AROUND).next_multiple_of(page);
        if start < end {
            let _ = sys::madvise(start, end - start, POPULATE_READ);
        }
    }
    1
}
