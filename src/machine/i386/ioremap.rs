//! Device memory, and frames at a second address: mappings in a small range of their own above vmalloc.
//!
//! Each has an unmapped page behind it.
#![allow(unsafe_code)]

use core::ptr;

use super::layout::IOREMAP;
use super::units::Units;
use super::{I386, cpu, paging};
use crate::machine::Frames;
use crate::paging::Flags;
use crate::sync::Lock;
use crate::types::{PAGE_SHIFT, PAGE_SIZE, Pfn, PhysAddr};

const PAGES: usize = (IOREMAP.end - IOREMAP.start) / PAGE_SIZE;

static UNITS: Lock<Units<PAGES>> = Lock::new(Units::new());

/// Maps `pages` frames, which `frame` names, with `flags`.
fn map(pages: usize, flags: Flags, frame: impl Fn(usize) -> Pfn) -> Option<usize> {
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
    if !IOREMAP.contains(&start) {
        return false;
    }
    let first = (start - IOREMAP.start) >> PAGE_SHIFT;
    let Some(units) = UNITS.lock(&I386).len(first) else { return false };
    // No CPU has a translation any more when the addresses are given back.
    paging::unmap_range(start, (units - 1) * PAGE_SIZE);
    UNITS.lock(&I386).give(first)
}

/// Maps `len` bytes of device memory from `physical` on, uncached; the address of the first byte. `None` where addresses lack,
/// and for memory that is the allocator's.
pub fn ioremap(physical: PhysAddr, len: usize) -> Option<*mut u8> {
    let end = physical.0.checked_add(len as u64)?;
    // Frames of the zones are cached through the direct map: the two would disagree. The first MiB is devices' and BIOS's.
    if physical.0 >= 1 << 20 && (physical.pfn().0..=PhysAddr(end - 1).pfn().0).any(is_memory) {
        return None;
    }
    let offset = physical.0 as usize & (PAGE_SIZE - 1);
    let first = physical.pfn();
    // The caches hold nothing of a device.
    cpu::wbinvd();
    let start = map((offset + len).div_ceil(PAGE_SIZE), paging::DEVICE, |nth| first.add(nth as u32))?;
    Some(ptr::with_exposed_provenance_mut(start + offset))
}

fn is_memory(pfn: u32) -> bool {
    pfn < super::memory::frames() && I386.page(Pfn(pfn)).kind() != crate::page::Kind::Offline
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
