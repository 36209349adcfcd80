//! Addresses for frames that have none (HIGHMEM): permanent mappings (`kmap`) and temporary ones (`kmap_atomic`).
//!
//! A permanent mapping is one of the machine's slots ([`Mapping::kmap_slots`](crate::machine::Mapping::kmap_slots)),
//! counted. One that nobody uses any more keeps its translation until the slots were gone through once; then all such
//! are taken away with one flush of the TLBs.
//!
//! A temporary mapping is one of the CPU's own slots, taken like a stack: an interrupt handler takes the next one, and
//! has given it back before the interrupted code goes on. Neither waits nor takes a lock.

use core::ptr;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};

use super::Mm;
use crate::error::{AllocError, Defect};
use crate::gfp::Gfp;
use crate::machine::{KM_TYPE_NR, LAST_PKMAP, Machine, misuse};
use crate::page::{Kind, flag};
use crate::sync::Lock;
use crate::types::{PAGE_SHIFT, PAGE_SIZE, Pfn};

/// CPUs that have slots for temporary mappings.
pub const KMAP_CPUS: usize = 8;

/// The types of temporary mappings that old callers name (`enum km_type`). Each was a slot of its own once, so that a
/// type is used once at a time on a CPU; today slots are taken like a stack, and the type is checked only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum KmType {
    Bounce = 1,
    User0,
    User1,
    BioSource,
    BioDestination,
    Pte0,
    Pte1,
    Irq0,
    Irq1,
    SoftIrq0,
    SoftIrq1,
}

/// Permanent mappings.
pub(super) struct Pkmap {
    /// 0: free. 1: nobody's, but translations may be about. Above: users and one.
    counts: [u32; LAST_PKMAP],
    last: usize,
}

/// The temporary mappings of a CPU. Written by that CPU only.
struct Stack {
    depth: AtomicU32,
    /// What each was called with: 0, or a [`KmType`].
    types: [AtomicU8; KM_TYPE_NR],
}

/// All of it.
pub(super) struct Highmem {
    /// Guards `frames`, too, which are read without it.
    pub pkmap: Lock<Pkmap>,
    /// The frame in each slot and one, for as long as it has users.
    frames: [AtomicU32; LAST_PKMAP],
    stacks: [Stack; KMAP_CPUS],
}

impl Highmem {
    pub(super) const fn new() -> Highmem {
        let pkmap = Pkmap { counts: [0; LAST_PKMAP], last: 0 };
        Highmem {
            pkmap: Lock::new(pkmap),
            frames: [const { AtomicU32::new(0) }; LAST_PKMAP],
            stacks: [const { Stack { depth: AtomicU32::new(0), types: [const { AtomicU8::new(0) }; KM_TYPE_NR] } };
                KMAP_CPUS],
        }
    }

    fn shows(&self, slot: usize, pfn: Pfn) -> bool {
        self.frames.get(slot).is_some_and(|frame| frame.load(Relaxed) == pfn.0.wrapping_add(1))
    }
}

/// Whether the word of a frame's descriptor is there for `page.virtual`; else it is its owner's, and the slots are
/// searched.
fn has_virtual<M: Machine>(m: &M, pfn: Pfn) -> bool {
    matches!(m.page(pfn).kind(), Kind::Allocated | Kind::Tail) && !m.page(pfn).has(flag::MIGRATABLE)
}

/// Slots of the machine's for permanent mappings.
fn slots<M: Machine>(m: &M) -> usize {
    (m.kmap_slots().len() >> PAGE_SHIFT).min(LAST_PKMAP)
}

impl Pkmap {
    /// The next free slot. At the end of the slots all unused ones become free by one flush.
    fn free_slot<M: Machine>(&mut self, m: &M) -> Option<usize> {
        let slots = slots(m);
        // Twice: the flush may free one that was passed already.
        for _ in 0..2 * slots {
            self.last = (self.last + 1) % slots;
            if self.last == 0 {
                self.flush_unused(m);
            }
            if self.counts[self.last] == 0 {
                return Some(self.last);
            }
        }
        None
    }

    /// Takes away what nobody uses (`flush_all_zero_pkmaps`).
    fn flush_unused<M: Machine>(&mut self, m: &M) {
        let (window, mut any) = (m.kmap_slots(), false);
        for (slot, count) in self.counts[..slots(m)].iter_mut().enumerate().filter(|(_, count)| **count == 1) {
            let at = window.start + (slot << PAGE_SHIFT);
            m.flush_cache(at..at + PAGE_SIZE);
            m.set_slot(at, None);
            *count = 0;
            any = true;
        }
        if any {
            m.flush_slots();
        }
    }
}

impl<M: Machine> Mm<M> {
    /// The slot of a permanent mapping of the frame.
    fn kmap_slot(&self, pfn: Pfn) -> Option<usize> {
        let m = &self.machine;
        if !has_virtual(m, pfn) {
            return (0..slots(m)).find(|slot| self.highmem.shows(*slot, pfn));
        }
        // The word was somebody else's before, so the slot has to agree.
        let offset = (m.page(pfn).word() as usize).wrapping_sub(m.kmap_slots().start);
        let slot = offset >> PAGE_SHIFT;
        (offset & (PAGE_SIZE - 1) == 0 && self.highmem.shows(slot, pfn)).then_some(slot)
    }

    fn kmap_address(&self, slot: usize) -> *mut u8 {
        ptr::with_exposed_provenance_mut(self.machine.kmap_slots().start + (slot << PAGE_SHIFT))
    }

    /// The address of a page at this moment: its own, or that of its [`Mm::kmap`] (`page_address`); null where it has
    /// none.
    pub fn page_address(&self, pfn: Pfn) -> *mut u8 {
        let address = self.machine.virt(pfn);
        if address.is_null() {
            return self.kmap_slot(pfn).map_or(address, |slot| self.kmap_address(slot));
        }
        address
    }

    /// An address for the page, which is allocated: its own, or where it has none one of the machine's slots for as
    /// long as somebody uses it (`page.virtual` says so). May sleep.
    ///
    /// # Errors
    /// [`AllocError::NoMemory`]: all slots are in use. [`AllocError::Invalid`]: in a context that may not sleep.
    pub fn kmap(&self, pfn: Pfn) -> Result<*mut u8, AllocError> {
        self.admit(Gfp::KERNEL)?;
        let address = self.machine.virt(pfn);
        if !address.is_null() {
            return Ok(address);
        }
        self.bracket(Gfp::KERNEL, |gfp| {
            let m = &self.machine;
            let mut pkmap = self.highmem.pkmap.acquire(m, gfp.may_block()).ok_or(AllocError::Invalid)?;
            let slot = match self.kmap_slot(pfn) {
                Some(slot) => slot,
                None => {
                    let slot = pkmap.free_slot(m).ok_or(AllocError::NoMemory)?;
                    let at = self.kmap_address(slot).addr();
                    m.set_slot(at, Some(pfn));
                    pkmap.counts[slot] = 1;
                    self.highmem.frames[slot].store(pfn.0.wrapping_add(1), Relaxed);
                    if has_virtual(m, pfn) {
                        m.page(pfn).set_word(at as u64);
                    }
                    slot
                }
            };
            pkmap.counts[slot] += 1;
            Ok(self.kmap_address(slot))
        })
    }

    /// Gives one use of a [`Mm::kmap`] back.
    ///
    /// # Errors
    /// [`Defect::DoubleFree`]: the page was not mapped; reported.
    pub fn kunmap(&self, pfn: Pfn) -> Result<(), Defect> {
        let m = &self.machine;
        if !m.virt(pfn).is_null() {
            return Ok(());
        }
        let given = self.bracket(Gfp::KERNEL, |gfp| {
            let mut pkmap = self.highmem.pkmap.acquire(m, gfp.may_block())?;
            let slot = self.kmap_slot(pfn)?;
            pkmap.counts[slot] -= 1;
            if pkmap.counts[slot] == 1 {
                // The word goes back to the frame's owner: a frame that is freed and handed out anew has no address.
                self.highmem.frames[slot].store(0, Relaxed);
                if has_virtual(m, pfn) {
                    m.page(pfn).set_word(0);
                }
            }
            Some(())
        });
        given.ok_or_else(|| {
            misuse(m, Defect::DoubleFree, pfn.index(), "kmap");
            Defect::DoubleFree
        })
    }

    /// Slots of [`Mm::kmap`] that are in use, and that wait for a flush.
    pub fn kmap_counts(&self) -> (usize, usize) {
        let pkmap = self.highmem.pkmap.lock(&self.machine);
        let count = |what: fn(&&u32) -> bool| pkmap.counts.iter().filter(what).count();
        (count(|count| **count > 1), count(|count| **count == 1))
    }

    /// An address for the page that only this CPU uses, without sleeping, until [`Mm::kunmap_atomic`]; the caller stays
    /// on the CPU. They nest, last in, first out, and may be made in interrupt handlers. The descriptor is not touched.
    ///
    /// # Errors
    /// [`AllocError::NoMemory`]: more at a time than the CPU has slots.
    pub fn kmap_atomic(&self, pfn: Pfn) -> Result<*mut u8, AllocError> {
        self.push_kmap(pfn, 0)
    }

    /// [`Mm::kmap_atomic`] as it was called once, with a type.
    ///
    /// # Errors
    /// As there. [`AllocError::Invalid`]: the type is in use on this CPU; reported.
    pub fn kmap_atomic_type(&self, pfn: Pfn, slot: KmType) -> Result<*mut u8, AllocError> {
        self.push_kmap(pfn, slot as u8)
    }

    fn push_kmap(&self, pfn: Pfn, of: u8) -> Result<*mut u8, AllocError> {
        let m = &self.machine;
        let address = m.virt(pfn);
        if !address.is_null() {
            m.preempt_disable();
            return Ok(address);
        }
        let cpu = m.get_cpu();
        let slots = m.kmap_atomic_slots(cpu);
        let pushed = self.highmem.stacks.get(cpu).ok_or(AllocError::NoMemory).and_then(|stack| {
            // The slot is taken before it is filled, so that a handler in between takes the next one.
            let nth = stack.depth.fetch_add(1, Relaxed) as usize;
            let refused = if nth >= slots.len() >> PAGE_SHIFT {
                Some(AllocError::NoMemory)
            } else if of != 0 && stack.types[..nth].iter().any(|used| used.load(Relaxed) == of) {
                Some(AllocError::Invalid)
            } else {
                None
            };
            match refused {
                Some(error) => {
                    stack.depth.fetch_sub(1, Relaxed);
                    Err(error)
                }
                None => {
                    stack.types[nth].store(of, Relaxed);
                    Ok(slots.start + (nth << PAGE_SHIFT))
                }
            }
        });
        match pushed {
            Ok(at) => {
                m.set_slot(at, Some(pfn));
                Ok(ptr::with_exposed_provenance_mut(at))
            }
            Err(error) => {
                m.put_cpu();
                if error == AllocError::Invalid {
                    misuse(m, Defect::Nesting, pfn.index(), "kmap_atomic");
                }
                Err(error)
            }
        }
    }

    /// Takes the last [`Mm::kmap_atomic`] of this CPU back; `address` is any in its page.
    ///
    /// # Errors
    /// [`Defect::DoubleFree`]: there was none; [`Defect::Nesting`]: it is not the last one. Reported.
    pub fn kunmap_atomic(&self, address: *const u8) -> Result<(), Defect> {
        self.pop_kmap(address, None)
    }

    /// Takes back the last mapping of this CPU, made by [`Mm::kmap_atomic_type`] with the same type.
    ///
    /// # Errors
    /// As for [`Mm::kunmap_atomic`]; [`Defect::Nesting`] also where the last one is of another type.
    pub fn kunmap_atomic_type(&self, address: *const u8, slot: KmType) -> Result<(), Defect> {
        self.pop_kmap(address, Some(slot as u8))
    }

    fn pop_kmap(&self, address: *const u8, of: Option<u8>) -> Result<(), Defect> {
        let m = &self.machine;
        let is_slot = (0..KMAP_CPUS).any(|cpu| m.kmap_atomic_slots(cpu).contains(&address.addr()));
        // A page with an address of its own is on no stack: only the number is looked at.
        let undone = if is_slot {
            let cpu = m.get_cpu();
            let undone = self.pop_slot(cpu, address.addr() & !(PAGE_SIZE - 1), of);
            m.put_cpu();
            undone.inspect(|()| m.put_cpu())
        } else if m.preempt_count() > 0 {
            m.preempt_enable();
            Ok(())
        } else {
            Err(Defect::DoubleFree)
        };
        if let Err(defect) = undone {
            misuse(m, defect, address.addr(), "kmap_atomic");
        }
        undone
    }

    fn pop_slot(&self, cpu: usize, at: usize, of: Option<u8>) -> Result<(), Defect> {
        let stack = self.highmem.stacks.get(cpu).ok_or(Defect::Nesting)?;
        let depth = stack.depth.load(Relaxed) as usize;
        let top = depth.checked_sub(1).ok_or(Defect::DoubleFree)?;
        let last = self.machine.kmap_atomic_slots(cpu).start + (top << PAGE_SHIFT);
        if last != at || of.is_some_and(|of| stack.types[top].load(Relaxed) != of) {
            return Err(Defect::Nesting);
        }
        self.machine.flush_cache(at..at + PAGE_SIZE);
        self.machine.set_slot(at, None);
        // Given back after it was emptied: a handler in between takes the next one.
        stack.depth.store(top as u32, Relaxed);
        Ok(())
    }

    /// Temporary mappings of the caller's CPU that are in slots.
    pub fn kmap_depth(&self) -> usize {
        self.highmem.stacks.get(self.machine.cpu()).map_or(0, |stack| stack.depth.load(Relaxed) as usize)
    }
}
