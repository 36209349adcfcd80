//! Per-CPU data.

use core::marker::PhantomData;
use core::mem::{align_of, size_of};

use crate::error::AllocError;
use crate::gfp::Gfp;
use crate::machine::{CPU_SHIFT, Machine};
use crate::mm::Mm;

mod sealed {
    pub trait Sealed {}
}

/// Integers that a CPU adds to in one step.
pub trait Count: Copy + Default + sealed::Sealed {
    /// Its bits, extended.
    fn bits(self) -> u64;
    /// The sum, wrapping.
    #[must_use]
    fn plus(self, other: Self) -> Self;
}

macro_rules! count {
    ($($int:ty)*) => {$(
        impl sealed::Sealed for $int {}
        impl Count for $int {
            #[inline]
            fn bits(self) -> u64 {
                self as u64
            }
            #[inline]
            fn plus(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
        }
    )*};
}

count!(u8 i8 u16 i16 u32 i32 u64 i64 usize isize);

/// A copy of a value for each CPU: `alloc_percpu`.
///
/// Safe because copies are only read and written as wholes, like a `Cell`'s, under their CPU's lock or by one
/// instruction that happens on that CPU; no reference to one is ever given out. Freeing what it has behind its back is
/// `unsafe`, and so is freeing the run or the area that the copies lie in, in the layers below:
///
/// ```compile_fail,E0133
/// # use slabwright::{machine::Machine, mm::Mm};
/// fn free<M: Machine>(mm: &Mm<M>, copies: *mut u8) {
///     let _ = mm.free_percpu(copies);
/// }
/// ```
pub struct PerCpu<'m, M: Machine, T: Copy> {
    mm: &'m Mm<M>,
    first: *mut T,
}

// SAFETY: values cross threads with the CPUs that they lie on, by copying; there are no references to them.
unsafe impl<M: Machine, T: Copy + Send> Send for PerCpu<'_, M, T> {}
// SAFETY: likewise; accesses exclude each other by CPU.
unsafe impl<M: Machine, T: Copy + Send> Sync for PerCpu<'_, M, T> {}

impl<'m, M: Machine, T: Copy> PerCpu<'m, M, T> {
    /// A copy of `value` for each CPU that there can ever be.
    ///
    /// # Errors
    /// As for [`Mm::alloc_percpu`].
    pub fn new(mm: &'m Mm<M>, value: T) -> Result<Self, AllocError> {
        let first: *mut T = mm.alloc_percpu(size_of::<T>().max(1), align_of::<T>(), Gfp::KERNEL)?.cast();
        for cpu in 0..mm.machine().nr_cpus() {
            // SAFETY: the copies are new and nobody else's, large and aligned enough.
            unsafe { copy_of(first, cpu).write(value) };
        }
        Ok(PerCpu { mm, first })
    }

    /// The copy of the CPU that the thread is on, for it alone until the guard goes (`get_cpu_ptr`, `put_cpu_ptr`).
    /// Wherever the thread is moved to meanwhile, it stays that copy.
    #[inline]
    pub fn get(&self) -> PerCpuGuard<'_, M, T> {
        let cpu = self.mm.machine().get_cpu();
        PerCpuGuard { mm: self.mm, copy: copy_of(self.first, cpu), cpu, data: PhantomData }
    }

    /// The copy of `cpu` (`per_cpu_ptr`), which the CPU may be writing: what is read there may be half of one value and
    /// half of another. `None` where there is no such CPU.
    pub fn copy_ptr(&self, cpu: usize) -> Option<*mut T> {
        (cpu < self.mm.machine().nr_cpus()).then(|| copy_of(self.first, cpu))
    }

    /// The first CPU's copy.
    pub fn as_ptr(&self) -> *mut T {
        self.first
    }
}

impl<M: Machine, T: Count> PerCpu<'_, M, T> {
    /// The copy of `cpu` as it is at this moment, or was (`*per_cpu_ptr`). `None` where there is no such CPU. Of other
    /// values than integers this would not be safe:
    ///
    /// ```compile_fail,E0599
    /// # use slabwright::{api::PerCpu, machine::Machine};
    /// fn of_another_cpu<M: Machine>(names: &PerCpu<'_, M, &'static str>) -> Option<&'static str> {
    ///     names.read(1)
    /// }
    /// ```
    pub fn read(&self, cpu: usize) -> Option<T> {
        // SAFETY: the CPU has a copy. It is read and written as a whole, and whatever is read is a value.
        self.copy_ptr(cpu).map(|copy| unsafe { copy.read_volatile() })
    }

    /// Adds to this CPU's copy, wrapping; nothing is lost, wherever the thread is moved and whatever interrupts it
    /// (`this_cpu_add`).
    #[inline]
    pub fn add(&self, value: T) {
        // SAFETY: CPU 0's copy of an integer of which each CPU has one.
        unsafe { self.mm.machine().this_cpu_add(self.first.cast(), size_of::<T>(), value.bits()) };
    }

    /// The sum over all CPUs, wrapping: exact once nobody adds.
    pub fn sum(&self) -> T {
        (0..self.mm.machine().nr_cpus()).filter_map(|cpu| self.read(cpu)).fold(T::default(), T::plus)
    }
}

#[inline]
fn copy_of<T>(first: *mut T, cpu: usize) -> *mut T {
    first.wrapping_byte_add(cpu << CPU_SHIFT)
}

impl<M: Machine, T: Copy> Drop for PerCpu<'_, M, T> {
    fn drop(&mut self) {
        // SAFETY: the copies are this value's, which nobody has any more. They came from there, so nothing can be wrong
        // with them.
        let _ = unsafe { self.mm.free_percpu(self.first.cast()) };
    }
}

/// One CPU's copy, held. Not `Send`: the thread that took it gives it back.
pub struct PerCpuGuard<'p, M: Machine, T: Copy> {
    mm: &'p Mm<M>,
    copy: *mut T,
    cpu: usize,
    data: PhantomData<&'p T>,
}

impl<'p, M: Machine, T: Copy> PerCpuGuard<'p, M, T> {
    /// The guard of CPU `cpu`'s copy, where CPU 0's is `first`.
    ///
    /// # Safety
    /// The calling thread has just called [`Machine::get_cpu`], which said `cpu` and which the guard will take back;
    /// `first` has a copy for each CPU for `'p`.
    pub unsafe fn of(mm: &'p Mm<M>, first: *mut T, cpu: usize) -> Self {
        PerCpuGuard { mm, copy: copy_of(first, cpu), cpu, data: PhantomData }
    }

    /// The value.
    #[inline]
    pub fn get(&self) -> T {
        // SAFETY: the copy is valid, and no other thread's while the guard is there.
        unsafe { self.copy.read() }
    }

    /// Makes it `value`.
    #[inline]
    pub fn set(&self, value: T) {
        // SAFETY: as in `get`.
        unsafe { self.copy.write(value) };
    }

    /// Makes it what `change` says.
    #[inline]
    pub fn update(&self, change: impl FnOnce(T) -> T) {
        self.set(change(self.get()));
    }

    /// Whose copy it is.
    pub fn cpu(&self) -> usize {
        self.cpu
    }
}

impl<M: Machine, T: Copy> Drop for PerCpuGuard<'_, M, T> {
    #[inline]
    fn drop(&mut self) {
        self.mm.machine().put_cpu();
    }
}
