//! Device memory: mappings in a small range of their own above vmalloc, each with an unmapped page behind it.
#![cfg(all(target_arch = "x86", feature = "i386"))]

use core::ops::Range;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::boot::MEMBLOCK;
use super::layout::IOREMAP;
use super::units::Units;
use super::{I386, cpu, paging, percpu};
use crate::sync::Lock;
use crate::types::{PAGE_SHIFT, PAGE_SIZE, PhysAddr};

const PAGES: usize = (IOREMAP.end - IOREMAP.start) / PAGE_SIZE;

static UNITS: Lock<Units<PAGES>> = Lock::new(Units::new());

/// Physical addresses that an entry can name.
const REACH: u64 = if cfg!(feature = "pae") { 1 << 36 } else { 1 << 32 };

/// Maps `len` bytes of device memory from `physical` on, uncached; the address of the first byte. `None` where
/// addresses lack, where no entry can name what is asked for, and for ordinary memory.
///
/// # Panics
/// In an interrupt handler, which could wait for whom it interrupted.
pub fn ioremap(physical: PhysAddr, len: usize) -> Option<*mut u8> {
    assert!(!percpu::in_interrupt(), "ioremap in an interrupt handler");
    let end = physical.0.checked_add(len as u64).filter(|end| len > 0 && *end <= REACH)?;
    // Memory is cached through other mappings: the two would disagree.
    let is_memory = |memory: Range<u64>| memory.start < end && physical.0 < memory.end;
    if MEMBLOCK.lock(&I386).memory().any(is_memory) {
        return None;
    }
    let offset = physical.0 as usize & (PAGE_SIZE - 1);
    let pages = (offset + len).div_ceil(PAGE_SIZE);
    let unit = UNITS.lock(&I386).take(pages + 1)?;
    // The caches hold nothing of a device.
    cpu::wbinvd();
    WRITTEN_BACK.fetch_add(1, Relaxed);
    let start = IOREMAP.start + unit * PAGE_SIZE;
    for nth in 0..pages {
        let mapped = paging::map_page(start + nth * PAGE_SIZE, physical.pfn().add(nth as u32), paging::DEVICE);
        assert!(mapped, "boot made the tables, and nothing is mapped at free addresses");
    }
    Some(ptr::with_exposed_provenance_mut(start + offset))
}

/// Takes back an [`ioremap`]. False where nothing is mapped there.
///
/// # Panics
/// As [`ioremap`].
pub fn iounmap(address: *mut u8) -> bool {
    assert!(!percpu::in_interrupt(), "iounmap in an interrupt handler");
    let start = address.addr() & !(PAGE_SIZE - 1);
    if !IOREMAP.contains(&start) {
        return false;
    }
    let unit = (start - IOREMAP.start) >> PAGE_SHIFT;
    let Some(units) = UNITS.lock(&I386).len(unit) else { return false };
    // No CPU has a translation any more when the addresses are given back.
    paging::unmap_range(start, (units - 1) * PAGE_SIZE);
    UNITS.lock(&I386).give(unit)
}

/// Times the caches were written back.
static WRITTEN_BACK: AtomicU32 = AtomicU32::new(0);

/// Times the caches were written back before memory of a device was mapped.
pub fn written_back() -> u32 {
    WRITTEN_BACK.load(Relaxed)
}
