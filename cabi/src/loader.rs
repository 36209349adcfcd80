//! `dlopen` and `dlsym`: a library must not get the C library's `free` for what came from this one's `malloc`.
//!
//! All that is bound in the global order of look-up finds this library first. What is not: a library loaded with
//! `RTLD_DEEPBIND` looks into itself and what it needs before, the C library among it (PHP and Apache load their
//! modules so), and `dlsym` with the handle of a library looks nowhere else (Python's `ctypes`). So, before the first
//! of either, the C library's own table is changed to name the functions that all others call. That takes 40 µs and
//! makes twenty pages the process's own, so it is not done for every library.
//!
//! Taking `RTLD_DEEPBIND` away instead would be less, but what asks for it may have names of its own that it needs.

use core::arch::naked_asm;
use core::ffi::{CStr, c_char, c_int, c_void};
use core::sync::atomic::{AtomicI32, Ordering};

use slabwright_core::machine::linux::{self, fork};

use crate::next::Next;

macro_rules! names {
    ($($name:ident)*) => {
        /// What this library defines in place of the C library, apart from what is defined here, and from `fork` and
        /// `__register_atfork`, whose work [`take_over`] does at once. One text: an array of pointers is for the loader
        /// to write.
        const NAMES: &str = concat!($(stringify!($name), "\0"),*);

        fn is_ours(name: &str) -> bool {
            matches!(name, $(stringify!($name))|*)
        }
    };
}

names! {
    malloc free calloc realloc reallocarray posix_memalign aligned_alloc memalign valloc pvalloc free_sized free_aligned_sized cfree
    malloc_usable_size mallopt mallinfo mallinfo2 malloc_trim malloc_stats malloc_info
    __libc_malloc __libc_free __libc_cfree __libc_calloc __libc_realloc __libc_reallocarray __libc_memalign __libc_valloc __libc_pvalloc
    __libc_mallopt __libc_mallinfo __posix_memalign
    vfork __vfork setrlimit setrlimit64 prlimit prlimit64 mlockall prctl
}

static DLOPEN: Next = Next::new();
static DLSYM: Next = Next::new();

/// The loader's function of this name; null where there is none. By version, as it cannot be asked of `dlsym`; who
/// defines the name without versions is found, too. The second is the version before libdl became a part of the C
/// library.
fn next(known: &Next, name: &CStr) -> *mut c_void {
    let look_up = || {
        let versions = [c"GLIBC_2.34", c"GLIBC_2.2.5"].into_iter();
        // SAFETY: a handle of the loader's own, two strings.
        let mut found =
            versions.map(|version| unsafe { libc::dlvsym(libc::RTLD_NEXT, name.as_ptr(), version.as_ptr()) });
        found.find(|found| !found.is_null()).unwrap_or_default().expose_provenance()
    };
    core::ptr::with_exposed_provenance_mut(known.or_look_up(look_up))
}

/// Before `dlopen`: who is to do it; null for nobody.
extern "C" fn before_dlopen(_file: *const c_char, mode: c_int) -> *mut c_void {
    if mode & libc::RTLD_DEEPBIND != 0 {
        take_over();
    }
    next(&DLOPEN, c"dlopen")
}

/// Before `dlsym`: who is to do it; null for nobody.
extern "C" fn before_dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void {
    if handle != libc::RTLD_DEFAULT && handle != libc::RTLD_NEXT && !name.is_null() {
        // SAFETY: a string, by the contract of `dlsym`.
        let name = unsafe { CStr::from_ptr(name) };
        if name.to_str().is_ok_and(is_ours) {
            take_over();
        }
    }
    next(&DLSYM, c"dlsym")
}

/// 0; the process that is changing the table, for whose thread a child of it does not wait; or [`DONE`].
static TURN: AtomicI32 = AtomicI32::new(0);
const DONE: i32 = -1;

/// Changes the C library's table, once.
fn take_over() {
    // What is bound past this library registers its handlers of `fork` past it, too, and the heap's are to be the
    // first.
    fork::register();
    // Acquire pairs with the Release below: what is looked up next is looked up after the change.
    while TURN.load(Ordering::Acquire) != DONE {
        // SAFETY: no preconditions.
        let own = unsafe { libc::getpid() };
        let turn = TURN.load(Ordering::Relaxed);
        if turn == own {
            // SAFETY: no preconditions.
            unsafe { libc::sched_yield() };
        } else if turn != DONE && TURN.compare_exchange(turn, own, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            change_table();
            TURN.store(DONE, Ordering::Release);
        }
    }
}

fn look_up(handle: *mut c_void, name: &CStr) -> *mut c_void {
    // SAFETY: a handle of the loader's own, a string.
    unsafe { libc::dlsym(handle, name.as_ptr()) }
}

fn change_table() {
    // Where the program has a malloc of its own, it is everybody's, and this library has no part in it.
    if look_up(libc::RTLD_DEFAULT, c"malloc").addr() != crate::libc_abi::malloc as *const () as usize {
        return;
    }
    // Looked up, as the address of a function that the program takes the address of, too, may lie in the program.
    let inside = look_up(libc::RTLD_NEXT, c"gnu_get_libc_version");
    // SAFETY: all zeroes are the absence of an answer.
    let mut object: libc::Dl_info = unsafe { core::mem::zeroed() };
    // SAFETY: asks where an address is.
    if inside.is_null() || unsafe { libc::dladdr(inside, &raw mut object) } == 0 {
        return;
    }
    let names =
        NAMES.as_bytes().split_inclusive(|&byte| byte == 0).filter_map(|name| CStr::from_bytes_with_nul(name).ok());
    let instead =
        |name: &CStr| Some(look_up(libc::RTLD_DEFAULT, name).expose_provenance()).filter(|&address| address != 0);
    // SAFETY: the C library stays; one thread at a time; the functions are what the rest of the process calls by these
    // names.
    unsafe { linux::redefine(object.dli_fbase.expose_provenance(), names, instead) }
}

/// Functions that jump on: who asks is told by the return address, and the order of look-up depends on it. Where there
/// is nobody to jump to they answer null.
macro_rules! forward {
    ($($name:ident($first:ty, $second:ty), after $before:ident;)*) => {$(
        /// # Safety
        /// As for the function of this name in POSIX.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name(_: $first, _: $second) -> *mut c_void {
            naked_asm!(
                ".cfi_startproc",
                "push rdi",
                ".cfi_adjust_cfa_offset 8",
                "push rsi",
                ".cfi_adjust_cfa_offset 8",
                "sub rsp, 8",
                ".cfi_adjust_cfa_offset 8",
                "call {before}",
                "add rsp, 8",
                ".cfi_adjust_cfa_offset -8",
                "pop rsi",
                ".cfi_adjust_cfa_offset -8",
                "pop rdi",
                ".cfi_adjust_cfa_offset -8",
                "test rax, rax",
                "jz 2f",
                "jmp rax",
                "2:",
                "ret",
                ".cfi_endproc",
                before = sym $before,
            )
        }
    )*};
}

forward! {
    dlopen(*const c_char, c_int), after before_dlopen;
    dlsym(*mut c_void, *const c_char), after before_dlsym;
}
