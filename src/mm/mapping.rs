//! Mappings that are not of one piece with their memory: vmalloc under its own name, and `vmap`.
#![allow(unsafe_code)]

use super::Mm;
use crate::error::{AllocError, Defect};
use crate::gfp::Gfp;
use crate::machine::{Machine, misuse};
use crate::types::{Caller, PAGE_SIZE, Pfn};

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

    /// Takes note of who asked for the area (or the mapping) that begins at `address`, which is the caller's:
    /// `vmallocinfo` names it.
    pub fn note_caller(&self, address: *const u8, caller: Caller) {
        self.bracket(Gfp::KERNEL, |gfp| {
            self.vmalloc.note_caller(&self.machine, address.addr(), caller, gfp.may_block());
        });
    }

    /// Frees what [`Mm::vmalloc_bytes`] returned; null is nothing.
    ///
    /// # Safety
    /// The area is the caller's and not used any more. (Violations that are noticed are reported; not all can be.)
    ///
    /// # Errors
    /// What is wrong with that; it was reported.
    pub unsafe fn vfree(&self, address: *mut u8) -> Result<(), Defect> {
        if address.is_null() {
            return Ok(());
        }
        if !self.is_up() || !self.vmalloc.contains(&self.machine, address) {
            misuse(&self.machine, Defect::Foreign, address.addr(), "vmalloc");
            return Err(Defect::Foreign);
        }
        self.bracket(Gfp::KERNEL, |gfp| self.free_large(address, gfp))
    }

    /// The frame behind an address of a vmalloc area.
    ///
    /// # Errors
    /// [`AllocError::Unsupported`] on a machine whose areas are not made of frames (a process);
    /// [`AllocError::Invalid`]: no area is there.
    pub fn vmalloc_to_page(&self, address: *const u8) -> Result<Pfn, AllocError> {
        if !M::OWNS_FRAMES {
            return Err(AllocError::Unsupported);
        }
        self.vmalloc.frame_at(&self.machine, address).ok_or(AllocError::Invalid)
    }

    /// Maps the given frames, whose owner keeps them, to adjacent addresses as well.
    ///
    /// # Errors
    /// [`AllocError::Unsupported`] on a machine that cannot have one frame at two addresses (a process).
    /// [`AllocError::NoMemory`]; [`AllocError::Invalid`]: no frames, or as for [`Mm::admit`].
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
    /// # Safety
    /// The mapping is the caller's and not used any more.
    ///
    /// # Errors
    /// [`Defect::Foreign`]: nothing was mapped there so; it was reported.
    pub unsafe fn vunmap(&self, address: *const u8) -> Result<(), Defect> {
        // SAFETY: the caller's condition, which is the same.
        if address.is_null() || self.bracket(Gfp::KERNEL, |_| unsafe { self.vmalloc.unmap(&self.machine, address) }) {
            return Ok(());
        }
        misuse(&self.machine, Defect::Foreign, address.addr(), "vmap");
        Err(Defect::Foreign)
    }
}
