//! Static per-CPU variables: `DEFINE_PER_CPU`, in Rust and for modules in C.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use crate::api::{Count, PerCpuGuard};
use crate::gfp::Gfp;
use crate::global::mm;
use crate::machine::linux::Linux;
use crate::machine::{CPU_SHIFT, Machine, PerCpu as _};

/// A static variable with a copy for each CPU. Its copies are made when it is first used; without memory for them the
/// program ends.
///
/// ```
/// use slabwright::kernel::StaticPerCpu;
/// static HITS: StaticPerCpu<u64> = StaticPerCpu::new(0);
/// HITS.add(3);
/// HITS.get().update(|hits| hits + 1);
/// assert_eq!(HITS.sum(), 4);
/// ```
pub struct StaticPerCpu<T: Copy> {
    init: T,
    first: AtomicPtr<T>,
}

// SAFETY: as for `api::PerCpu`.
unsafe impl<T: Copy + Send> Sync for StaticPerCpu<T> {}

impl<T: Copy> StaticPerCpu<T> {
    /// A variable that is `init` on every CPU at first.
    pub const fn new(init: T) -> StaticPerCpu<T> {
        StaticPerCpu { init, first: AtomicPtr::new(core::ptr::null_mut()) }
    }

    #[inline]
    fn first(&self) -> *mut T {
        // Acquire, pairs with the Release in `make`: the copies hold the value.
        let first = self.first.load(Ordering::Acquire);
        if first.is_null() { self.make() } else { first }
    }

    #[cold]
    fn make(&self) -> *mut T {
        let Ok(made) = mm().alloc_percpu(size_of::<T>().max(1), align_of::<T>(), Gfp::KERNEL) else {
            panic!("no memory for a per-CPU variable");
        };
        let made: *mut T = made.cast();
        for cpu in 0..Linux.nr_cpus() {
            // SAFETY: the copies are new and nobody else's, large and aligned enough.
            unsafe { made.wrapping_byte_add(cpu << CPU_SHIFT).write(self.init) };
        }
        // Release, pairs with the Acquire in `first`.
        match self.first.compare_exchange(core::ptr::null_mut(), made, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => made,
            Err(other) => {
                // SAFETY: the copies are this thread's, which tells nobody of them.
                let _ = unsafe { mm().free_percpu(made.cast()) };
                other
            }
        }
    }

    /// This CPU's copy, for the thread alone until the guard goes (`get_cpu_var`, `put_cpu_var`).
    #[inline]
    pub fn get(&self) -> PerCpuGuard<'_, Linux, T> {
        let first = self.first();
        let cpu = Linux.get_cpu();
        // SAFETY: the call before this one; the copies are for ever.
        unsafe { PerCpuGuard::of(mm(), first, cpu) }
    }

    /// The copy of `cpu`: see [`api::PerCpu::copy_ptr`](crate::api::PerCpu::copy_ptr).
    pub fn copy_ptr(&self, cpu: usize) -> Option<*mut T> {
        (cpu < Linux.nr_cpus()).then(|| self.first().wrapping_byte_add(cpu << CPU_SHIFT))
    }
}

impl<T: Count> StaticPerCpu<T> {
    /// The copy of `cpu` as it is at this moment, or was; `None` where there is no such CPU.
    pub fn read(&self, cpu: usize) -> Option<T> {
        // SAFETY: the CPU has a copy. It is read and written as a whole, and whatever is read is a value.
        self.copy_ptr(cpu).map(|copy| unsafe { copy.read_volatile() })
    }

    /// Adds to this CPU's copy, wrapping; nothing is lost (`this_cpu_add`).
    #[inline]
    pub fn add(&self, value: T) {
        // SAFETY: CPU 0's copy of an integer of which each CPU has one.
        unsafe { Linux.this_cpu_add(self.first().cast(), size_of::<T>(), value.bits()) };
    }

    /// The sum over all CPUs, wrapping: exact once nobody adds.
    pub fn sum(&self) -> T {
        (0..Linux.nr_cpus()).filter_map(|cpu| self.read(cpu)).fold(T::default(), T::plus)
    }
}

/// Modules (executables and shared libraries) that may have static per-CPU variables in C.
const MODULES: usize = 64;

/// A module's section of templates, and its copies.
struct Module {
    /// The section; 0 where there is no module, [`CHANGING`] while it becomes another one's place. Written last.
    start: AtomicUsize,
    /// 0 where there never was a module: nor is there one behind it.
    end: AtomicUsize,
    first: AtomicUsize,
}

/// No address is above it.
const CHANGING: usize = usize::MAX;

static TABLE: [Module; MODULES] =
    [const { Module { start: AtomicUsize::new(0), end: AtomicUsize::new(0), first: AtomicUsize::new(0) } }; MODULES];

/// Makes the copies of a module's static variables, whose templates are at `[start, end)`; once, however often it is
/// called. False without memory, where they are more than 32 KiB, or where there are too many modules: then they must
/// not be used.
///
/// # Safety
/// The templates are readable and stay until the module is unloaded.
pub unsafe fn register_module(start: *const u8, end: *const u8) -> bool {
    let (from, to) = (start.addr(), end.addr());
    let range = |module: &Module| (module.start.load(Ordering::Acquire), module.end.load(Ordering::Relaxed));
    if from == to || TABLE.iter().any(|module| range(module) == (from, to)) {
        return true;
    }
    let Ok(first) = mm().alloc_percpu(to - from, 64, Gfp::KERNEL) else { return false };
    for cpu in 0..Linux.nr_cpus() {
        // SAFETY: the copies are new and as long as the templates, which are readable.
        unsafe { first.wrapping_add(cpu << CPU_SHIFT).copy_from_nonoverlapping(start, to - from) };
    }
    // Where another one was, which was unloaded since, or else the first place that is free: claimed by its end, found
    // by its start.
    let replaces = |module: &Module| {
        let old = range(module);
        let overlaps = old.0 != 0 && old.0 < to && from < old.1;
        overlaps && module.start.compare_exchange(old.0, CHANGING, Ordering::Acquire, Ordering::Relaxed).is_ok()
    };
    let claims = |module: &Module| module.end.compare_exchange(0, to, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    let place = TABLE.iter().find(|module| replaces(module)).or_else(|| TABLE.iter().find(|module| claims(module)));
    let Some(module) = place else {
        // SAFETY: the copies are new, and nobody knows them.
        let _ = unsafe { mm().free_percpu(first) };
        return false;
    };
    module.end.store(to, Ordering::Relaxed);
    let old = module.first.swap(first.expose_provenance(), Ordering::Relaxed);
    // Release, pairs with the Acquire of who looks for it.
    module.start.store(from, Ordering::Release);
    // SAFETY: the copies were those of a module that is unloaded; null where the place was free.
    let _ = unsafe { mm().free_percpu(core::ptr::with_exposed_provenance_mut(old)) };
    true
}

/// CPU 0's copy of what is at `address`: of a module's static variable, or of dynamic data, which is there itself.
#[inline]
pub fn first_copy(address: *mut u8) -> *mut u8 {
    for module in &TABLE {
        let start = module.start.load(Ordering::Acquire);
        if start == 0 {
            // One that is just being made is no end: others may be behind it.
            if module.end.load(Ordering::Relaxed) == 0 {
                break;
            }
            continue;
        }
        if address.addr() >= start && address.addr() < module.end.load(Ordering::Relaxed) {
            let first = module.first.load(Ordering::Relaxed);
            return core::ptr::with_exposed_provenance_mut(first + (address.addr() - start));
        }
    }
    address
}
