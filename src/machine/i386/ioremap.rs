//! Device memory, and frames at a second address: mappings in a small range of their own above vmalloc.
//!
//! Each has an unmapped page behind it.
#![allow(unsafe_code)]

use core::ops::Range;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::boot::MEMBLOCK;
use super::layout::IOREMAP;
use super::units::Units;
use super::{I386, cpu, paging, percpu};
use crate::paging::Flags;
use crate::sync::Lock;
use crate::types::{PAGE_SHIFT, PAGE_SIZE, Pfn, PhysAddr};

const PAGES: usize = (IOREMAP.end - IOREMAP.start) / PAGE_SIZE;

static UNITS: Lock<Units<PAGES>> = Lock::new(Units::new());

/// Maps `pages` frames, which `frame` names, with `flags`.
///
/// # Panics
/// In an interrupt handler, which could wait for whom it interrupted.
fn map(pages: usize, flags: Flags, frame: impl Fn(usize) -> Pfn) -> Option<usize> {
    assert!(!percpu::in_interrupt(), "ioremap or vmap in an interrupt handler");
    if pages == 0 || pages >= PAGES {
        return None;
    }
    let first = UNITS.lock(&I386).take(pages + 1)?;
    let start = IOREMAP.start + first * PAGE_SIZE;
    for nth in 0..pages {
        if !paging::map_page(start + nth * PAGE_SIZE, frame(nth), flags) {
            unmap(start);
            return None;
        }
    }
    Some(start)
}

/// Undoes [`map`]. False where nothing begins at `start`.
fn unmap(start: usize) -> bool {
    assert!(!percpu::in_interrupt(), "iounmap or vunmap in an interrupt handler");
    if !IOREMAP.contains(&start) {
        return false;
    }
    let first = (start - IOREMAP.start) >> PAGE_SHIFT;
    let Some(units) = UNITS.lock(&I386).len(first) else { return false };
    // No CPU has a translation any more when the addresses are given back.
    paging::unmap_range(start, (units - 1) * PAGE_SIZE);
    UNITS.lock(&I386).give(first)
}

/// Physical addresses that an entry can name.
const REACH: u64 = if cfg!(feature = "pae") { 1 << 36 } else { 1 << 32 };

/// Maps `len` bytes of device memory from `physical` on, uncached; the address of the first byte. `None` where addresses lack,
/// where no entry can name what is asked for, and for ordinary memory.
pub fn ioremap(physical: PhysAddr, len: usize) -> Option<*mut u8> {
    let end = physical.0.checked_add(len as u64).filter(|end| len > 0 && *end <= REACH)?;
    // Memory is cached through other mappings: the two would disagree.
    let is_memory = |memory: Range<u64>| memory.start < end && physical.0 < memory.end;
    if MEMBLOCK.lock(&I386).memory().any(is_memory) {
        return None;
    }
    let offset = physical.0 as usize & (PAGE_SIZE - 1);
    let first = physical.pfn();
    // The caches hold nothing of a device.
    cpu::wbinvd();
    WRITTEN_BACK.fetch_add(1, Relaxed);
    let start = map((offset + len).div_ceil(PAGE_SIZE), paging::DEVICE, |nth| first.add(nth as u32))?;
    Some(ptr::with_exposed_provenance_mut(start + offset))
}

/// Times the caches were written back.
static WRITTEN_BACK: AtomicU32 = AtomicU32::new(0);

/// Times the caches were written back before memory of a device was mapped.
pub fn written_back() -> u32 {
    WRITTEN_BACK.load(Relaxed)
}

/// Takes back an [`ioremap`]. False where nothing is mapped there.
pub fn iounmap(address: *mut u8) -> bool {
    unmap(address.addr() & !(PAGE_SIZE - 1))
}

/// Maps allocated frames at adjacent addresses, as well as where they are already; they remain the caller's.
pub fn vmap(frames: &[Pfn], flags: Flags) -> Option<*mut u8> {
    map(frames.len(), flags, |nth| frames[nth]).map(ptr::with_exposed_provenance_mut)
}

/// Takes back a [`vmap`]. False where nothing is mapped there.
pub fn vunmap(address: *mut u8) -> bool {
    unmap(address.addr())
}
