//! Mappings that are not of one piece with their memory: vmalloc under its own name, `vmap`, `kmap`.

use core::ptr;

use super::Mm;
use crate::error::{AllocError, Defect};
use crate::gfp::Gfp;
use crate::machine::{Machine, misuse};
use crate::types::{PAGE_SIZE, Pfn};

/// Pages mapped by [`Mm::kmap`] at once.
pub const LAST_PKMAP: usize = 64;

/// A permanent mapping of a page without an address.
#[derive(Clone, Copy)]
struct Kmap {
    pfn: Pfn,
    address: usize,
    /// Users; a mapping without any stays until its slot is needed.
    users: u32,
}

/// The table of [`Mm::kmap`].
pub(super) struct Kmaps([Kmap; LAST_PKMAP]);

impl Kmaps {
    pub(super) const fn new() -> Kmaps {
        Kmaps([Kmap { pfn: Pfn::NONE, address: 0, users: 0 }; LAST_PKMAP])
    }
}

impl<M: Machine> Mm<M> {
    /// Contiguous addresses for `size` bytes over memory that need not be adjacent.
    ///
    /// # Errors
    /// [`AllocError::NoMemory`]; [`AllocError::Invalid`]: size 0, a zone modifier, or as for [`Mm::admit`].
    pub fn vmalloc_bytes(&self, size: usize, gfp: Gfp) -> Result<*mut u8, AllocError> {
        if size == 0 || gfp.is_low() {
            return Err(AllocError::Invalid);
        }
        self.admit(gfp)?;
        let area = self.bracket(gfp, |gfp| {
            if !self.is_up() {
                return None;
            }
            let (m, pages) = (&self.machine, &self.pages);
            let area = self.vmalloc.alloc(m, pages, size, PAGE_SIZE, gfp);
            if area.is_none() && gfp.may_block() && self.reclaim(gfp) {
                return self.vmalloc.alloc(m, pages, size, PAGE_SIZE, gfp);
            }
            area
        });
        area.map(|area| area.as_ptr()).ok_or(AllocError::NoMemory)
    }

    /// Frees what [`Mm::vmalloc_bytes`] returned; null is nothing.
    ///
    /// # Errors
    /// What is wrong with that; it was reported.
    pub fn vfree(&self, address: *mut u8) -> Result<(), Defect> {
        if address.is_null() {
            return Ok(());
        }
        if !self.is_up() || !self.vmalloc.contains(&self.machine, address) {
            misuse(&self.machine, Defect::Foreign, address.addr(), "vmalloc");
            return Err(Defect::Foreign);
        }
        self.bracket(Gfp::KERNEL, |gfp| self.free_large(address, gfp));
        Ok(())
    }

    /// The frame behind an address of a vmalloc area.
    ///
    /// # Errors
    /// [`AllocError::Unsupported`] on a machine whose areas are not made of frames (a process); [`AllocError::Invalid`]: no area is there.
    pub fn vmalloc_to_page(&self, address: *const u8) -> Result<Pfn, AllocError> {
        if !M::OWNS_FRAMES {
            return Err(AllocError::Unsupported);
        }
        self.vmalloc.frame_at(&self.machine, address).ok_or(AllocError::Invalid)
    }

    /// Maps the given frames, whose owner keeps them, to adjacent addresses as well.
    ///
    /// # Errors
    /// [`AllocError::Unsupported`] on a machine that cannot have one frame at two addresses (a process). [`AllocError::NoMemory`];
    /// [`AllocError::Invalid`]: no frames, or as for [`Mm::admit`].
    pub fn vmap(&self, frames: &[Pfn]) -> Result<*mut u8, AllocError> {
        if !M::OWNS_FRAMES {
            return Err(AllocError::Unsupported);
        }
        if frames.is_empty() {
            return Err(AllocError::Invalid);
        }
        self.admit(Gfp::KERNEL)?;
        let area = self.bracket(Gfp::KERNEL, |gfp| self.vmalloc.map(&self.machine, &self.pages, frames, gfp));
        area.map(|area| area.as_ptr()).ok_or(AllocError::NoMemory)
    }

    /// Takes a [`Mm::vmap`] back; the frames stay their owner's. Null is nothing.
    ///
    /// # Errors
    /// [`Defect::Foreign`]: nothing was mapped there so; it was reported.
    pub fn vunmap(&self, address: *const u8) -> Result<(), Defect> {
        if address.is_null() || self.bracket(Gfp::KERNEL, |_| self.vmalloc.unmap(&self.machine, address)) {
            return Ok(());
        }
        misuse(&self.machine, Defect::Foreign, address.addr(), "vmap");
        Err(Defect::Foreign)
    }

    /// An address for the page: its own, or where it has none one of [`LAST_PKMAP`] for as long as somebody uses it. May sleep.
    ///
    /// # Errors
    /// [`AllocError::NoMemory`]: all are in use. [`AllocError::Invalid`]: in a context that may not sleep.
    pub fn kmap(&self, pfn: Pfn) -> Result<*mut u8, AllocError> {
        self.admit(Gfp::KERNEL)?;
        let address = self.machine.virt(pfn);
        if !address.is_null() {
            return Ok(address);
        }
        self.bracket(Gfp::KERNEL, |gfp| {
            let m = &self.machine;
            let mut kmaps = self.kmaps.lock(m);
            if let Some(kmap) = kmaps.0.iter_mut().find(|kmap| kmap.pfn == pfn) {
                kmap.users += 1;
                return Ok(ptr::with_exposed_provenance_mut(kmap.address));
            }
            // Never used before, else one that nobody uses any more: its old page loses the address.
            let unused = kmaps.0.iter().position(|kmap| !kmap.pfn.is_some());
            let slot =
                unused.or_else(|| kmaps.0.iter().position(|kmap| kmap.users == 0)).ok_or(AllocError::NoMemory)?;
            let old = kmaps.0[slot];
            if old.pfn.is_some() {
                m.page(old.pfn).set_word(0);
                self.vmalloc.unmap(m, ptr::with_exposed_provenance(old.address));
                kmaps.0[slot].pfn = Pfn::NONE;
            }
            let area = self.vmalloc.map(m, &self.pages, &[pfn], gfp).ok_or(AllocError::NoMemory)?;
            let address = area.as_ptr().expose_provenance();
            kmaps.0[slot] = Kmap { pfn, address, users: 1 };
            // `page->virtual`.
            m.page(pfn).set_word(address as u64);
            Ok(area.as_ptr())
        })
    }

    /// Gives one use of a [`Mm::kmap`] back.
    ///
    /// # Errors
    /// [`Defect::DoubleFree`]: the page was not mapped; reported.
    pub fn kunmap(&self, pfn: Pfn) -> Result<(), Defect> {
        if !self.machine.virt(pfn).is_null() {
            return Ok(());
        }
        let given = self.bracket(Gfp::KERNEL, |_| {
            let mut kmaps = self.kmaps.lock(&self.machine);
            kmaps.0.iter_mut().find(|kmap| kmap.pfn == pfn && kmap.users > 0).map(|kmap| kmap.users -= 1)
        });
        given.ok_or_else(|| {
            misuse(&self.machine, Defect::DoubleFree, pfn.index(), "kmap");
            Defect::DoubleFree
        })
    }

    /// The address of a page at this moment: its own, or that of its [`Mm::kmap`] (`page_address`); null where it has none.
    pub fn page_address(&self, pfn: Pfn) -> *mut u8 {
        let address = self.machine.virt(pfn);
        if !address.is_null() {
            return address;
        }
        let mut kmaps = self.kmaps.lock(&self.machine);
        let found = kmaps.0.iter_mut().find(|kmap| kmap.pfn == pfn);
        found.map_or(ptr::null_mut(), |kmap| ptr::with_exposed_provenance_mut(kmap.address))
    }

    /// An address for the page that this thread uses without sleeping, until [`Mm::kunmap_atomic`]; they nest, last in, first out.
    ///
    /// # Errors
    /// [`AllocError::Unsupported`]: the page has no address of its own, and is not mapped by [`Mm::kmap`].
    pub fn kmap_atomic(&self, pfn: Pfn) -> Result<*mut u8, AllocError> {
        let address = self.machine.virt(pfn);
        if address.is_null() {
            return Err(AllocError::Unsupported);
        }
        self.machine.preempt_disable();
        Ok(address)
    }

    /// Takes the last [`Mm::kmap_atomic`] back.
    ///
    /// # Errors
    /// [`Defect::DoubleFree`]: there was none; reported.
    pub fn kunmap_atomic(&self, address: *const u8) -> Result<(), Defect> {
        if self.machine.preempt_count() == 0 {
            misuse(&self.machine, Defect::DoubleFree, address.addr(), "kmap_atomic");
            return Err(Defect::DoubleFree);
        }
        self.machine.preempt_enable();
        Ok(())
    }
}
