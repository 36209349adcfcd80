//! Dynamic per-CPU data: `alloc_percpu`. A chunk is a unit of 64 KiB for each CPU, all with the same layout; an
//! object's copies lie at the same offset in each unit, so that a CPU's copy is the first one's address plus a shifted
//! number.
#![allow(unsafe_code)]

mod map;

use core::ptr;

pub use map::UNIT;
use map::{GRANULE, Map};

use super::Mm;
use crate::error::{AllocError, Defect};
use crate::gfp::Gfp;
use crate::machine::{CPU_SHIFT, Machine, misuse};
use crate::types::PAGE_SIZE;

/// Most chunks.
const CHUNKS: usize = 32;
/// Largest object, in bytes: the kernel's `PCPU_MIN_UNIT_SIZE`.
pub const MAX_PERCPU: usize = 32 << 10;

/// The chunks; their maps lie behind their units. 0 is no chunk.
pub(super) struct Chunks {
    bases: [usize; CHUNKS],
}

impl Chunks {
    pub(super) const fn new() -> Chunks {
        Chunks { bases: [0; CHUNKS] }
    }

    /// The map of the chunk at `base`.
    fn map(&mut self, base: usize, units: usize) -> &mut Map {
        // SAFETY: a chunk in the table is mapped, and behind its units there is room for the map, zeroed at first; the
        // table's lock is held.
        unsafe { &mut *ptr::with_exposed_provenance_mut(base + units * UNIT) }
    }
}

const _: () = assert!(size_of::<Map>() <= PAGE_SIZE);

impl<M: Machine> Mm<M> {
    fn units(&self) -> usize {
        self.machine.nr_cpus().max(1)
    }

    /// Bytes of memory that read zero on every CPU, aligned to `align` (a power of two up to a page); the address of
    /// CPU 0's copy. That of CPU `n` is `n <<` [`CPU_SHIFT`] bytes further on.
    ///
    /// # Errors
    /// [`AllocError::Invalid`]: size 0 or above 32 KiB, a bad alignment, or as for [`Mm::admit`].
    /// [`AllocError::NoMemory`]: also where a new chunk is needed and `gfp` does not allow to sleep.
    pub fn alloc_percpu(&self, size: usize, align: usize, gfp: Gfp) -> Result<*mut u8, AllocError> {
        if size == 0 || size > MAX_PERCPU || !align.is_power_of_two() || align > PAGE_SIZE {
            return Err(AllocError::Invalid);
        }
        self.admit_address(gfp)?;
        self.bracket(gfp, |gfp| {
            if !self.is_up() {
                return Err(AllocError::NoMemory);
            }
            let m = &self.machine;
            let units = self.units();
            loop {
                let mut chunks = self.percpu.acquire(m, gfp.may_block()).ok_or(AllocError::NoMemory)?;
                for base in chunks.bases.into_iter().filter(|base| *base != 0) {
                    let map = chunks.map(base, units);
                    if let Some(offset) = map.alloc(size, align) {
                        let end = offset + size.next_multiple_of(GRANULE);
                        let used = map.touched.min(end).max(offset);
                        map.touched = map.touched.max(end);
                        for unit in 0..units {
                            let at: *mut u8 = ptr::with_exposed_provenance_mut(base + unit * UNIT + offset);
                            // SAFETY: a part of the chunk that is nobody's yet. What was never touched reads zero.
                            unsafe { at.write_bytes(0, used - offset) };
                        }
                        return Ok(ptr::with_exposed_provenance_mut(base + offset));
                    }
                }
                drop(chunks);
                // Outside the lock: under pressure this may run the program's code.
                self.add_chunk(units, gfp)?;
            }
        })
    }

    /// One more chunk, all of it free.
    fn add_chunk(&self, units: usize, gfp: Gfp) -> Result<(), AllocError> {
        if !gfp.may_block() {
            return Err(AllocError::NoMemory);
        }
        // Page-aligned, so that no two CPUs share a line.
        let bytes = units * UNIT + PAGE_SIZE;
        let memory = self.alloc_large(bytes, PAGE_SIZE, (gfp | Gfp::ZERO).without(Gfp::DMA | Gfp::DMA32));
        if memory.is_null() {
            return Err(AllocError::NoMemory);
        }
        let mut chunks = self.percpu.lock(&self.machine);
        match chunks.bases.iter_mut().find(|base| **base == 0) {
            Some(slot) => {
                *slot = memory.expose_provenance();
                Ok(())
            }
            None => {
                drop(chunks);
                let _ = self.free_large(memory, gfp);
                Err(AllocError::NoMemory)
            }
        }
    }

    /// Gives such memory back, by CPU 0's address; null is nothing. A chunk that is empty then goes. Never waits where
    /// it must not.
    ///
    /// # Safety
    /// The copies are the caller's and not used any more. (Violations that are noticed are reported; not all can be.)
    ///
    /// # Errors
    /// What is wrong with the address; it was reported. (What was deferred is reported later, and no error.)
    pub unsafe fn free_percpu(&self, address: *mut u8) -> Result<(), Defect> {
        if address.is_null() {
            return Ok(());
        }
        let gfp = if self.machine.preempt_count() > 0 { Gfp::ATOMIC } else { Gfp::KERNEL };
        // SAFETY: the caller's condition.
        self.bracket(gfp, |gfp| unsafe { self.free_percpu_as(address, gfp) })
    }

    /// [`Mm::free_percpu`] of what is not null, in a slow path.
    ///
    /// # Safety
    /// As there.
    pub(super) unsafe fn free_percpu_as(&self, address: *mut u8, gfp: Gfp) -> Result<(), Defect> {
        let (m, units) = (&self.machine, self.units());
        let Some(mut chunks) = self.percpu.acquire(m, gfp.may_block()) else {
            if !address.addr().is_multiple_of(GRANULE) {
                misuse(m, Defect::Interior, address.addr(), "per-CPU data");
                return Err(Defect::Interior);
            }
            self.defer_percpu(address);
            return Ok(());
        };
        let inside = |base: usize| base != 0 && (base..base + units * UNIT).contains(&address.addr());
        let Some(slot) = chunks.bases.iter().position(|base| inside(*base)) else {
            drop(chunks);
            misuse(m, Defect::Foreign, address.addr(), "per-CPU data");
            return Err(Defect::Foreign);
        };
        let base = chunks.bases[slot];
        let offset = address.addr() - base;
        let map = chunks.map(base, units);
        if offset >= UNIT || map.free(offset).is_none() {
            drop(chunks);
            misuse(m, Defect::DoubleFree, address.addr(), "per-CPU data");
            return Err(Defect::DoubleFree);
        }
        if map.is_empty() {
            chunks.bases[slot] = 0;
            drop(chunks);
            let _ = self.free_large(ptr::with_exposed_provenance_mut(base), gfp);
        }
        Ok(())
    }

    /// CPU `cpu`'s copy of what CPU 0 has at `address` (`per_cpu_ptr`).
    #[inline]
    pub fn per_cpu_ptr(&self, address: *mut u8, cpu: usize) -> *mut u8 {
        address.wrapping_add(cpu << CPU_SHIFT)
    }
}
