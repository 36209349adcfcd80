//! `fork` and the registration of its handlers, as a program calls them: the heap's handlers have to be there before.

use core::arch::{asm, global_asm, naked_asm};
use core::ffi::{CStr, c_int, c_void};
use core::mem::transmute;

use slabwright_core::machine::linux::{fork, next_symbol};

use crate::next::Next;

/// Before all others of this library.
#[used]
#[unsafe(link_section = ".init_array.00099")]
static AT_FIRST: extern "C" fn() = at_first;

/// Where this library's `fork` is, whichever one `fork` means.
fn own_fork() -> usize {
    let at;
    // SAFETY: an address. (As an external static it would be a word for the loader to write.)
    unsafe { asm!("lea {}, [rip + slabwright_fork]", out(reg) at, options(nomem, nostack, preserves_flags, pure)) };
    at
}

extern "C" fn at_first() {
    // Where it was loaded behind the C library, as by `dlopen`, others do not call it.
    if (libc::fork as *const c_void).addr() == own_fork() {
        fork::register_later();
    }
}

static FORK: Next = Next::new();
static REGISTER: Next = Next::new();

/// The function `name` behind this library's, which is at `own`.
fn behind(own: usize, name: &CStr) -> usize {
    // SAFETY: looks for a name.
    next_symbol(own, name).unwrap_or_else(|| unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) }.addr())
}

extern "C" fn registered_fork() -> c_int {
    fork::register();
    // SAFETY: a function of that type.
    let next: Option<extern "C" fn() -> c_int> = unsafe { transmute(FORK.or_look_up(|| behind(own_fork(), c"fork"))) };
    next.map_or_else(|| refuse(libc::ENOSYS), |next| next())
}

fn refuse(error: c_int) -> c_int {
    crate::libc_abi::fail(error);
    -1
}

/// `fork`, once the heap's handlers are registered.
///
/// # Safety
/// As for `fork` of POSIX.
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn fork() -> c_int {
    naked_asm!(
        ".globl slabwright_fork",
        ".hidden slabwright_fork",
        "slabwright_fork:",
        ".cfi_startproc",
        "jmp {fork}",
        ".cfi_endproc",
        fork = sym registered_fork
    )
}

// The library whose handlers go when it is unloaded, which this one is not. Start files would have it.
global_asm!(
    ".pushsection .rodata.__dso_handle, \"a\", @progbits",
    ".balign 8",
    ".globl __dso_handle",
    ".hidden __dso_handle",
    "__dso_handle:",
    ".quad 0",
    ".popsection",
);

type Handler = Option<extern "C" fn()>;

/// What `pthread_atfork` calls, with the library that does.
///
/// # Safety
/// As for `pthread_atfork` of POSIX.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __register_atfork(
    prepare: Handler,
    parent: Handler,
    child: Handler,
    library: *mut c_void,
) -> c_int {
    fork::register();
    let own = __register_atfork as *const c_void;
    // SAFETY: a function of that type, or null.
    let next: Option<extern "C" fn(Handler, Handler, Handler, *mut c_void) -> c_int> =
        unsafe { transmute(REGISTER.or_look_up(|| behind(own.addr(), c"__register_atfork"))) };
    next.map_or(libc::ENOMEM, |next| next(prepare, parent, child, library))
}
