//! Addresses for frames that have none: permanent mappings (`kmap`) and temporary ones (`kmap_atomic`).
//!
//! A permanent mapping is a slot of PKMAP, counted; a slot that nobody uses any more keeps its translation until the slots
//! were gone through once, and then all unused ones are taken away with one flush of the TLB. A temporary mapping is
//! one of the CPU's own slots of the fixmap, taken like a stack.
#![allow(unsafe_code)]

use core::marker::PhantomData;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::fixmap::kmap_slot;
use super::layout::{KM_TYPE_NR, LAST_PKMAP, PKMAP_BASE};
use super::{I386, paging, percpu};
use crate::machine::Frames;
use crate::paging::Flags;
use crate::sync::Lock;
use crate::types::{PAGE_SHIFT, PAGE_SIZE, Pfn};

/// Slots of PKMAP.
struct Pkmap {
    /// 0: free. 1: nobody's, but translations may be about. Above: users and one.
    counts: [u16; LAST_PKMAP],
    last: usize,
}

static PKMAP: Lock<Pkmap> = Lock::new(Pkmap { counts: [0; LAST_PKMAP], last: 0 });

/// The frame in each slot, for as long as it has users; changed under the lock.
static FRAMES: [AtomicU32; LAST_PKMAP] = [const { AtomicU32::new(Pfn::NONE.0) }; LAST_PKMAP];

/// Why a frame could not be mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KmapError {
    /// Every slot is in use.
    NoSlot,
    /// Permanent mappings may wait for a lock: they are not for interrupt handlers, nor where preemption is off.
    Atomic,
}

fn slot_address(slot: usize) -> usize {
    PKMAP_BASE + slot * PAGE_SIZE
}

/// The slot that the descriptor of a HIGHMEM frame names. Its word was somebody else's before, so the slot has to agree.
fn slot_of(pfn: Pfn) -> Option<usize> {
    let offset = (I386.page(pfn).word() as usize).wrapping_sub(PKMAP_BASE);
    let slot = offset >> PAGE_SHIFT;
    (slot < LAST_PKMAP && offset & (PAGE_SIZE - 1) == 0 && FRAMES[slot].load(Relaxed) == pfn.0).then_some(slot)
}

/// The address of a frame, null for one of HIGHMEM without a permanent mapping (`page_address`).
pub fn page_address(pfn: Pfn) -> *mut u8 {
    let low = I386.virt(pfn);
    if low.is_null() { slot_of(pfn).map_or(low, |slot| ptr::with_exposed_provenance_mut(slot_address(slot))) } else { low }
}

/// Maps `pfn`, an allocated frame of the caller's, for as long as it is not unmapped as often as it was mapped. The descriptor's `virtual` is set.
///
/// # Errors
/// [`KmapError`].
pub fn kmap(pfn: Pfn) -> Result<*mut u8, KmapError> {
    let low = I386.virt(pfn);
    if !low.is_null() {
        return Ok(low);
    }
    if percpu::preempt_count() > 0 {
        return Err(KmapError::Atomic);
    }
    let mut pkmap = PKMAP.lock(&I386);
    let slot = match slot_of(pfn) {
        Some(slot) => slot,
        None => {
            let slot = pkmap.free_slot().ok_or(KmapError::NoSlot)?;
            paging::set_fixed(slot_address(slot), Some((pfn, Flags::KERNEL)));
            pkmap.counts[slot] = 1;
            FRAMES[slot].store(pfn.0, Relaxed);
            I386.page(pfn).set_word(slot_address(slot) as u64);
            slot
        }
    };
    pkmap.counts[slot] += 1;
    Ok(ptr::with_exposed_provenance_mut(slot_address(slot)))
}

impl Pkmap {
    /// The next free slot. At the end of the slots all unused ones become free by one flush.
    fn free_slot(&mut self) -> Option<usize> {
        for _ in 0..LAST_PKMAP {
            self.last = (self.last + 1) % LAST_PKMAP;
            if self.last == 0 {
                self.flush_unused();
            }
            if self.counts[self.last] == 0 {
                return Some(self.last);
            }
        }
        None
    }

    /// Takes away what nobody uses (`flush_all_zero_pkmaps`).
    fn flush_unused(&mut self) {
        let mut any = false;
        for slot in 0..LAST_PKMAP {
            if self.counts[slot] == 1 {
                paging::set_fixed(slot_address(slot), None);
                self.counts[slot] = 0;
                any = true;
            }
        }
        if any {
            paging::flush_all();
        }
    }
}

/// Takes back one [`kmap`]. False for a frame that has no permanent mapping.
pub fn kunmap(pfn: Pfn) -> bool {
    if !I386.virt(pfn).is_null() {
        return true;
    }
    let mut pkmap = PKMAP.lock(&I386);
    let Some(slot) = slot_of(pfn) else { return false };
    pkmap.counts[slot] -= 1;
    if pkmap.counts[slot] == 1 {
        // The descriptor goes back to its owner: a frame that is freed and handed out anew has no address.
        FRAMES[slot].store(Pfn::NONE.0, Relaxed);
        I386.page(pfn).set_word(0);
    }
    true
}

/// Slots of PKMAP that are in use, and that wait for a flush.
pub fn kmap_counts() -> (usize, usize) {
    let pkmap = PKMAP.lock(&I386);
    let count = |what: fn(&&u16) -> bool| pkmap.counts.iter().filter(what).count();
    (count(|count| **count > 1), count(|count| **count == 1))
}

crate::per_cpu! {
    /// Temporary mappings of this CPU.
    static DEPTH: usize = 0;
}

/// The types of temporary mappings that old callers name. Slots are taken like a stack, so the type says nothing more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum KmType {
    Bounce,
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

/// A temporary mapping: the page's address on this CPU. Unmapped when dropped; the last one taken goes first. The holder
/// is not preempted meanwhile, and it stays on its CPU:
pub struct TemporaryMapping {
    at: usize,
    here: PhantomData<*mut ()>,
}

impl TemporaryMapping {
    /// The page's first byte.
    pub fn address(&self) -> *mut u8 {
        ptr::with_exposed_provenance_mut(self.at)
    }
}

impl Drop for TemporaryMapping {
    fn drop(&mut self) {
        // Dropping in another order than the reverse of taking is a mistake in the kernel's code.
        assert!(kunmap_atomic(self.address()), "temporary mappings are undone in reverse order");
    }
}

/// [`kmap_atomic`] with a guard.
pub fn kmap_local(pfn: Pfn) -> TemporaryMapping {
    TemporaryMapping { at: kmap_atomic(pfn).expose_provenance(), here: PhantomData }
}

/// [`kmap_atomic`] as it was called once, with a type.
pub fn kmap_atomic_type(pfn: Pfn, _slot: KmType) -> *mut u8 {
    kmap_atomic(pfn)
}

/// Maps `pfn` on this CPU until [`kunmap_atomic`]: never waits, also in interrupt handlers. The descriptor is not touched.
///
/// # Panics
/// With more mappings at a time than there are slots.
pub fn kmap_atomic(pfn: Pfn) -> *mut u8 {
    percpu::preempt_disable();
    let low = I386.virt(pfn);
    if !low.is_null() {
        return low;
    }
    // The slot is taken before it is filled: a handler in between takes the next one, and has given it back before this goes on.
    // SAFETY: this CPU's copy.
    let nth = unsafe {
        let nth = DEPTH.this().read_volatile();
        assert!(nth < KM_TYPE_NR, "more temporary mappings than slots");
        DEPTH.this().write_volatile(nth + 1);
        nth
    };
    let at = kmap_slot(percpu::cpu(), nth);
    paging::set_fixed(at, Some((pfn, Flags::KERNEL)));
    ptr::with_exposed_provenance_mut(at)
}

/// Takes back the last [`kmap_atomic`] of this CPU, whose address is `address`. False, and nothing done, where it is not the last.
pub fn kunmap_atomic(address: *mut u8) -> bool {
    if address.addr() >= super::layout::FIXADDR_START {
        // SAFETY: this CPU's copy.
        let nth = unsafe { DEPTH.this().read_volatile() };
        if nth == 0 || kmap_slot(percpu::cpu(), nth - 1) != address.addr() & !(PAGE_SIZE - 1) {
            return false;
        }
        paging::set_fixed(kmap_slot(percpu::cpu(), nth - 1), None);
        // SAFETY: as above.
        unsafe { DEPTH.this().write_volatile(nth - 1) };
    }
    percpu::preempt_enable();
    true
}

/// Temporary mappings of this CPU.
pub fn kmap_depth() -> usize {
    // SAFETY: this CPU's copy.
    unsafe { DEPTH.this().read_volatile() }
}
