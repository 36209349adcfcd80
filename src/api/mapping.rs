//! Areas of the vmalloc window, temporary mappings of pages.

use core::fmt;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ptr::NonNull;

use crate::error::AllocError;
use crate::gfp::Gfp;
use crate::machine::Machine;
use crate::mm::Mm;
use crate::types::{Caller, PAGE_SIZE, Pfn};

/// What an area stands on.
enum Backing {
    /// Memory of its own: `vmalloc`.
    Own,
    /// Frames that are somebody else's: `vmap`.
    Mapped,
}

/// Adjacent addresses over memory that need not be adjacent; freed, or unmapped, when dropped.
///
/// Safe because it alone owns its addresses. The bytes of an area over somebody else's frames are reached through raw
/// pointers only: they are seen elsewhere, too. Freeing either behind its back is `unsafe`, in this layer and in
/// those below but the machine's own, which knows no owners:
///
/// ```compile_fail,E0133
/// # use slabwright::{api::VmArea, machine::Machine};
/// fn free<M: Machine>(mm: &slabwright::mm::Mm<M>, area: &VmArea<'_, M>) {
///     let _ = mm.vfree(area.as_ptr().as_ptr());
/// }
/// ```
///
/// ```compile_fail,E0133
/// # use slabwright::{api::VmArea, machine::Machine};
/// fn unmap<M: Machine>(mm: &slabwright::mm::Mm<M>, area: &VmArea<'_, M>) {
///     let _ = mm.vmalloc().unmap(mm.machine(), area.as_ptr().as_ptr());
/// }
/// ```
pub struct VmArea<'m, M: Machine> {
    mm: &'m Mm<M>,
    start: NonNull<u8>,
    bytes: usize,
    backing: Backing,
}

// SAFETY: memory is no thread's in particular.
unsafe impl<M: Machine> Send for VmArea<'_, M> {}
// SAFETY: by a shared reference its bytes are only read.
unsafe impl<M: Machine> Sync for VmArea<'_, M> {}

impl<'m, M: Machine> VmArea<'m, M> {
    /// At least `bytes` bytes, whole pages (`vmalloc`; `vzalloc` with `__GFP_ZERO`).
    ///
    /// # Errors
    /// As for [`Mm::vmalloc_bytes`].
    #[track_caller]
    pub fn new(mm: &'m Mm<M>, bytes: usize, gfp: Gfp) -> Result<Self, AllocError> {
        let start = NonNull::new(mm.vmalloc_bytes(bytes, gfp)?).ok_or(AllocError::NoMemory)?;
        mm.note_caller(start.as_ptr(), Caller::here());
        Ok(VmArea { mm, start, bytes: bytes.next_multiple_of(PAGE_SIZE), backing: Backing::Own })
    }

    /// Somebody else's frames at adjacent addresses (`vmap`).
    ///
    /// # Safety
    /// The frames stay allocated for as long as the area is there.
    ///
    /// # Errors
    /// As for [`Mm::vmap`]: in a process there is no such thing.
    #[track_caller]
    pub unsafe fn of_frames(mm: &'m Mm<M>, frames: &[Pfn]) -> Result<Self, AllocError> {
        let start = NonNull::new(mm.vmap(frames)?).ok_or(AllocError::NoMemory)?;
        mm.note_caller(start.as_ptr(), Caller::here());
        Ok(VmArea { mm, start, bytes: frames.len() * PAGE_SIZE, backing: Backing::Mapped })
    }

    /// The first byte.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.start
    }

    /// Bytes of it.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Never: an area has a page at least.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Its bytes; `None` over somebody else's frames.
    pub fn bytes_mut(&mut self) -> Option<&mut [MaybeUninit<u8>]> {
        match self.backing {
            // SAFETY: the area is this value's, borrowed exclusively, and so long; nothing is said about its contents.
            Backing::Own => Some(unsafe { core::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.bytes) }),
            Backing::Mapped => None,
        }
    }

    /// The frame behind byte `at` (`vmalloc_to_page`).
    ///
    /// # Errors
    /// As for [`Mm::vmalloc_to_page`].
    pub fn frame(&self, at: usize) -> Result<Pfn, AllocError> {
        self.mm.vmalloc_to_page(self.start.as_ptr().wrapping_add(at))
    }
}

impl<M: Machine> Drop for VmArea<'_, M> {
    fn drop(&mut self) {
        // SAFETY: the area is this value's, which nobody has any more. It came from there, so nothing can be wrong with
        // it.
        let _ = unsafe {
            match self.backing {
                Backing::Own => self.mm.vfree(self.start.as_ptr()),
                Backing::Mapped => self.mm.vunmap(self.start.as_ptr()),
            }
        };
    }
}

impl<M: Machine> fmt::Debug for VmArea<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {:p}", self.bytes, self.start)
    }
}

/// A temporary mapping of a page: an address that only its CPU uses. Undone when dropped; the last one made goes first.
pub struct KmapGuard<'m, M: Machine> {
    mm: &'m Mm<M>,
    at: NonNull<u8>,
    /// The mapping is the CPU's, so its holder stays there.
    here: PhantomData<*mut ()>,
}

// rows: I8
/// An address for the page, which has none of its own perhaps (`kmap_local_page`, `kmap_atomic`); whoever holds it may
/// not sleep. It is of use where it was made only, so it cannot be given to another thread:
///
/// ```compile_fail,E0277
/// # use slabwright::{api::kmap_local, machine::Machine, mm::Mm, types::Pfn};
/// fn elsewhere<M: Machine>(mm: &'static Mm<M>, pfn: Pfn) {
///     let page = kmap_local(mm, pfn);
///     std::thread::spawn(move || drop(page));
/// }
/// ```
///
/// Another thread makes its own:
///
/// ```
/// # use slabwright::{api::kmap_local, machine::Machine, mm::Mm, types::Pfn};
/// fn there<M: Machine>(mm: &'static Mm<M>, pfn: Pfn) {
///     std::thread::spawn(move || drop(kmap_local(mm, pfn)));
/// }
/// ```
///
/// # Errors
/// As for [`Mm::kmap_atomic`].
pub fn kmap_local<M: Machine>(mm: &Mm<M>, pfn: Pfn) -> Result<KmapGuard<'_, M>, AllocError> {
    let at = NonNull::new(mm.kmap_atomic(pfn)?).ok_or(AllocError::NoMemory)?;
    Ok(KmapGuard { mm, at, here: PhantomData })
}

impl<M: Machine> KmapGuard<'_, M> {
    /// The page's first byte.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.at
    }
}

impl<M: Machine> Drop for KmapGuard<'_, M> {
    fn drop(&mut self) {
        // Where it is not the last one that was reported.
        let _ = self.mm.kunmap_atomic(self.at.as_ptr());
    }
}
