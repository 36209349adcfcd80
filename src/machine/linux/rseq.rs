//! Restartable sequences: who registered the area, and how a thread gets one.
//!
//! glibc from 2.35 on registers an area for every thread; it is found by `__rseq_offset`, looked up at run time in the
//! loader's tables ([`super::elf`]; a reference to the symbol, even a weak one, would make the library demand that
//! glibc). Where nobody registered one, each thread registers the one in [`super::tls`] at its first slow path. Nothing
//! but `rseq_cs` is ever written.

use core::ptr::with_exposed_provenance;
use core::sync::atomic::{AtomicBool, AtomicIsize, AtomicU8, AtomicU32, Ordering::Relaxed};

use super::{static_rseq, sys, tls};

/// What precedes an abort handler, and what an area is registered with.
const SIGNATURE: usize = 0x5305_3053;
/// Bytes of the area as first defined; later kernels take it too.
const AREA_BYTES: usize = 32;
const UNREGISTER: usize = 1;

/// `cpu_id` in the area.
pub(super) const CPU_ID: usize = 4;
/// `node_id` in the area.
const NODE_ID: usize = 20;

/// The entry of the auxiliary vector that says how many bytes of the area the kernel fills in.
pub(super) const AT_RSEQ_FEATURE_SIZE: libc::c_ulong = 27;

/// How critical sections are made, for the whole process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Mode {
    /// Not decided yet.
    None,
    /// Restartable sequences on libc's area.
    Libc,
    /// Restartable sequences on our own area.
    Own,
    /// A lock per row.
    Lock,
}

static MODE: AtomicU8 = AtomicU8::new(Mode::None as u8);
/// Offset of the area from the thread pointer. Without restartable sequences it is that of our own area, where `cpu_id`
/// stays -1, so that every section finds no sheaf.
pub(super) static OFFSET: AtomicIsize = AtomicIsize::new(0);
/// Whether sequences may be used at all (option).
pub(super) static ALLOWED: AtomicBool = AtomicBool::new(true);
/// Sections that were aborted and noticed it.
pub(super) static RESTARTS: AtomicU32 = AtomicU32::new(0);

const FRESH: u32 = 0;
const REGISTERED: u32 = 1;
const REFUSED: u32 = 2;

/// The mode decided on.
#[inline]
pub fn mode() -> Mode {
    match MODE.load(Relaxed) {
        1 => Mode::Libc,
        2 => Mode::Own,
        3 => Mode::Lock,
        _ => Mode::None,
    }
}

fn area(offset: isize) -> usize {
    tls::base().wrapping_sub(tls::offset() as usize).wrapping_add_signed(offset)
}

/// `cpu_id` of the calling thread; negative where it has no registration.
#[inline]
pub(super) fn cpu_id() -> i32 {
    let at = area(OFFSET.load(Relaxed)) + CPU_ID;
    // SAFETY: the area is static thread-local storage of this thread; the kernel writes it, hence volatile.
    unsafe { with_exposed_provenance::<i32>(at).read_volatile() }
}

/// [`cpu_id`] in one instruction.
#[inline(always)]
pub(super) fn cpu_guess() -> usize {
    let cpu: u32;
    // SAFETY: as in `cpu_id`; volatile, as that it is not `pure`.
    unsafe {
        core::arch::asm!("mov {:e}, dword ptr fs:[{} + 4]", out(reg) cpu, in(reg) OFFSET.load(Relaxed),
            options(nostack, readonly, preserves_flags));
    }
    cpu as usize
}

/// The CPU the calling thread is on, at this moment.
pub(super) fn current_cpu() -> usize {
    usize::try_from(cpu_id()).unwrap_or_else(|_| {
        // SAFETY: no arguments; answered by the vDSO.
        usize::try_from(unsafe { libc::sched_getcpu() }).unwrap_or(0)
    })
}

/// The memory node of that CPU, where the kernel writes it into the area (from 6.3 on).
pub(super) fn node_id() -> Option<u32> {
    if cpu_id() < 0 || sys::auxv(AT_RSEQ_FEATURE_SIZE) < (NODE_ID + 4) as u64 {
        return None;
    }
    let at = area(OFFSET.load(Relaxed)) + NODE_ID;
    // SAFETY: as in `cpu_id`.
    Some(unsafe { with_exposed_provenance::<u32>(at).read_volatile() })
}

fn rseq(area: usize, len: usize, flags: usize) -> Result<(), sys::Errno> {
    // SAFETY: the area is static thread-local storage; it lives until the thread has left user space for good.
    unsafe { sys::call(libc::SYS_rseq, [area, len, flags, SIGNATURE, 0, 0]) }.map(|_| ())
}

/// Offset of the area that libc registered; `None` where it registered none.
#[cfg(target_env = "gnu")]
fn libc_area() -> Option<isize> {
    // The loader has them, in a static program there is none.
    let loader = sys::auxv(libc::AT_BASE) as usize;
    if loader == 0 {
        return None;
    }
    // SAFETY: the loader's header lies at its base; both are objects of libc: a `ptrdiff_t` and an `unsigned int`,
    // constant once the loader has run.
    unsafe {
        let offset = super::elf::symbol(loader, c"__rseq_offset")?;
        let size = super::elf::symbol(loader, c"__rseq_size")?;
        (*with_exposed_provenance::<u32>(size) != 0).then(|| *with_exposed_provenance::<isize>(offset))
    }
}

#[cfg(not(target_env = "gnu"))]
fn libc_area() -> Option<isize> {
    None
}

/// Decides on the mode. `usable` says whether the rows' table covers every CPU.
pub(super) fn init(usable: bool) {
    let own = tls::offset();
    OFFSET.store(own, Relaxed);
    let mode = if !usable || !ALLOWED.load(Relaxed) || !super::membarrier::register() {
        Mode::Lock
    } else if let Some(offset) = static_rseq::area().or_else(libc_area) {
        OFFSET.store(offset, Relaxed);
        if cpu_id() >= 0 {
            Mode::Libc
        } else {
            OFFSET.store(own, Relaxed);
            Mode::Lock
        }
    } else if exit::prepare() && register_area() {
        Mode::Own
    } else {
        Mode::Lock
    };
    MODE.store(mode as u8, Relaxed);
}

/// Registers the calling thread where that is ours to do; whether it has just become registered.
#[cold]
pub(super) fn register_thread() -> bool {
    if mode() != Mode::Own || tls::get(tls::STATE) != FRESH {
        return false;
    }
    register_area()
}

fn register_area() -> bool {
    let done = rseq(tls::base(), AREA_BYTES, 0).is_ok() && exit::attach();
    tls::set(tls::STATE, if done { REGISTERED } else { REFUSED });
    done
}

/// Where libc keeps a thread's storage until the thread has left user space, an area may stay registered.
#[cfg(target_env = "gnu")]
mod exit {
    pub(super) fn prepare() -> bool {
        true
    }

    pub(super) fn attach() -> bool {
        true
    }
}

/// musl unmaps the storage of a detached thread a moment before it exits; the kernel would write to it in between. So
/// the destructor of a key takes the registration back. (Setting a key's value does not allocate there.)
#[cfg(not(target_env = "gnu"))]
mod exit {
    use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use super::{AREA_BYTES, REFUSED, UNREGISTER, rseq, tls};

    static KEY: AtomicU32 = AtomicU32::new(0);

    unsafe extern "C" fn detach(_: *mut core::ffi::c_void) {
        if rseq(tls::base(), AREA_BYTES, UNREGISTER).is_ok() {
            tls::set(tls::STATE, REFUSED);
        }
    }

    pub(super) fn prepare() -> bool {
        let mut key = 0;
        // SAFETY: `key` is written; the destructor lives as long as the program.
        let done = unsafe { libc::pthread_key_create(&mut key, Some(detach)) } == 0;
        KEY.store(key, Relaxed);
        done
    }

    pub(super) fn attach() -> bool {
        // SAFETY: a key of our own; the value only has to differ from null.
        let done = unsafe { libc::pthread_setspecific(KEY.load(Relaxed), tls::base() as *const _) } == 0;
        if !done {
            // SAFETY: it looks at no argument.
            unsafe { detach(core::ptr::null_mut()) };
        }
        done
    }
}

/// What [`suspend`] took away: the length it was registered with, 0 for nothing.
pub(super) struct Suspended(pub(super) usize);

/// Takes the calling thread's registration away, after which its `cpu_id` reads -1 and it goes past the sheaves, and so
/// does whoever shares its thread-local storage. `None` where that cannot be done.
pub(super) fn suspend() -> Option<Suspended> {
    if mode() == Mode::Lock || cpu_id() < 0 {
        return Some(Suspended(0));
    }
    // Newer libcs register what the kernel says it knows, rounded to the area's alignment.
    let feature = (sys::auxv(27) as usize).next_multiple_of((sys::auxv(28) as usize).max(32));
    let at = area(OFFSET.load(Relaxed));
    let len = [AREA_BYTES, feature].into_iter().find(|&len| len != 0 && rseq(at, len, UNREGISTER).is_ok())?;
    Some(Suspended(len))
}

/// Gives the registration back. Where that fails the thread goes past the sheaves for the rest of its life.
pub(super) fn resume(suspended: Suspended) {
    if suspended.0 != 0 {
        let _ = rseq(area(OFFSET.load(Relaxed)), suspended.0, 0);
    }
}
