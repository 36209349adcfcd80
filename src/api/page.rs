//! Pages, runs of pages, zones.

use core::fmt;
use core::mem::{ManuallyDrop, MaybeUninit};
use core::ptr::NonNull;

use crate::error::AllocError;
use crate::gfp::Gfp;
use crate::machine::{Machine, ZoneKind};
use crate::mm::Mm;
use crate::page::Kind;
use crate::types::{Order, PAGE_SIZE, Pfn};
use crate::zone::{ZONES, ZoneInfo};

/// A page frame, by its descriptor: `struct page *`.
///
/// It does not keep the frame: what it says is what the descriptor says at that moment.
pub struct Page<'m, M: Machine> {
    mm: &'m Mm<M>,
    pfn: Pfn,
}

impl<M: Machine> Clone for Page<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: Machine> Copy for Page<'_, M> {}

impl<M: Machine> PartialEq for Page<'_, M> {
    fn eq(&self, other: &Self) -> bool {
        self.pfn == other.pfn
    }
}

impl<M: Machine> fmt::Debug for Page<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {} at {:p}: {:?}", self.pfn.0, self.address(), self.kind())
    }
}

impl<'m, M: Machine> Page<'m, M> {
    /// The page that holds `address` (`virt_to_page`); `None` for a foreign address.
    pub fn containing(mm: &'m Mm<M>, address: *const u8) -> Option<Self> {
        Some(Page { mm, pfn: mm.page_of(address).ok()? })
    }

    /// The page of a frame (`pfn_to_page`); `None` where the frame is not online.
    pub fn of(mm: &'m Mm<M>, pfn: Pfn) -> Option<Self> {
        mm.frame_exists(pfn).then_some(Page { mm, pfn })
    }

    /// Its number (`page_to_pfn`).
    pub fn pfn(&self) -> Pfn {
        self.pfn
    }

    /// The address of its first byte (`page_address`); null for a HIGHMEM page that is not mapped.
    pub fn address(&self) -> *mut u8 {
        self.mm.machine().virt(self.pfn)
    }

    /// What it is at this moment.
    pub fn kind(&self) -> Kind {
        self.mm.machine().page(self.pfn).kind()
    }

    /// References to the block that it heads.
    pub fn refs(&self) -> u32 {
        self.mm.machine().page(self.pfn).refs()
    }

    /// The node it lies on.
    pub fn node(&self) -> usize {
        self.mm.machine().page(self.pfn).node()
    }

    /// The zone it belongs to, as its block's head says.
    pub fn zone(&self) -> Zone<'m, M> {
        let page = self.mm.machine().page(self.pfn);
        Zone { mm: self.mm, node: page.node(), kind: ZONES[page.zone().min(ZONES.len() - 1)] }
    }
}

/// Pages of one's own, adjacent, freed when dropped.
///
/// Safe because it alone owns them: it is neither copied nor are its parts handed out but by borrowing, and what was
/// never written is `MaybeUninit`. Freeing them behind its back is `unsafe`, in this layer and in those below but
/// the machine's own, which knows no owners:
///
/// ```compile_fail,E0133
/// # use slabwright::{api::PageRun, machine::Machine};
/// fn free<M: Machine>(mm: &slabwright::mm::Mm<M>, run: &PageRun<'_, M>) {
///     let _ = mm.free_pages(run.page().pfn(), 0);
/// }
/// ```
///
/// ```compile_fail,E0133
/// # use slabwright::{api::PageRun, machine::Machine};
/// fn free<M: Machine>(mm: &slabwright::mm::Mm<M>, run: &PageRun<'_, M>) {
///     let _ = mm.pages().put_page(mm.machine(), run.page().pfn(), true);
/// }
/// ```
pub struct PageRun<'m, M: Machine> {
    mm: &'m Mm<M>,
    pfn: Pfn,
    /// A block of this order; `None` for exactly so many pages.
    order: Option<Order>,
    bytes: usize,
}

// SAFETY: frames are no thread's in particular.
unsafe impl<M: Machine> Send for PageRun<'_, M> {}
// SAFETY: by a shared reference its bytes are only read.
unsafe impl<M: Machine> Sync for PageRun<'_, M> {}

impl<'m, M: Machine> PageRun<'m, M> {
    /// `2^order` pages, aligned to as much (`alloc_pages`).
    ///
    /// # Errors
    /// As for [`Mm::alloc_pages`].
    pub fn new(mm: &'m Mm<M>, gfp: Gfp, order: u32) -> Result<Self, AllocError> {
        let pfn = mm.alloc_pages(gfp, order, None)?;
        Ok(Self::block(mm, pfn))
    }

    /// [`PageRun::new`] preferably from `node`; with `__GFP_THISNODE` from nowhere else (`alloc_pages_node`).
    ///
    /// # Errors
    /// As for [`Mm::alloc_pages`].
    pub fn on_node(mm: &'m Mm<M>, node: usize, gfp: Gfp, order: u32) -> Result<Self, AllocError> {
        let pfn = mm.alloc_pages(gfp, order, Some(node))?;
        Ok(Self::block(mm, pfn))
    }

    /// As many whole pages as `bytes` bytes need (`alloc_pages_exact`).
    ///
    /// # Errors
    /// As for [`Mm::alloc_pages_exact`].
    pub fn exact(mm: &'m Mm<M>, gfp: Gfp, bytes: usize) -> Result<Self, AllocError> {
        let pfn = mm.alloc_pages_exact(gfp, bytes)?;
        let bytes = bytes.max(1).next_multiple_of(PAGE_SIZE);
        Ok(PageRun { mm, pfn, order: None, bytes })
    }

    fn block(mm: &'m Mm<M>, pfn: Pfn) -> Self {
        let order = mm.machine().page(pfn).order();
        PageRun { mm, pfn, order: Some(order), bytes: order.bytes() }
    }

    /// Its first page.
    pub fn page(&self) -> Page<'m, M> {
        Page { mm: self.mm, pfn: self.pfn }
    }

    /// The order of a block; `None` for an exact run.
    pub fn order(&self) -> Option<Order> {
        self.order
    }

    /// The first byte; `None` for HIGHMEM that is not mapped.
    pub fn as_ptr(&self) -> Option<NonNull<u8>> {
        NonNull::new(self.mm.machine().virt(self.pfn))
    }

    /// Its bytes; none for HIGHMEM that is not mapped.
    pub fn bytes(&self) -> &[MaybeUninit<u8>] {
        match self.as_ptr() {
            // SAFETY: the frames are this value's, adjacent, and `bytes` long; nothing is said about their contents.
            Some(start) => unsafe { core::slice::from_raw_parts(start.as_ptr().cast(), self.bytes) },
            None => &[],
        }
    }

    /// Its bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        match self.as_ptr() {
            // SAFETY: as in `bytes`, and the value is borrowed exclusively.
            Some(start) => unsafe { core::slice::from_raw_parts_mut(start.as_ptr().cast(), self.bytes) },
            None => &mut [],
        }
    }

    /// Writes `byte` to all of them.
    pub fn fill(&mut self, byte: u8) -> &mut [u8] {
        let bytes = self.bytes_mut();
        bytes.fill(MaybeUninit::new(byte));
        // SAFETY: all of them were just written.
        unsafe { &mut *(core::ptr::from_mut(bytes) as *mut [u8]) }
    }

    /// Gives the pages out of hand: their first frame. They are freed by [`Mm::free_pages`] or `free_pages_exact`.
    pub fn into_raw(self) -> Pfn {
        ManuallyDrop::new(self).pfn
    }
}

impl<M: Machine> Drop for PageRun<'_, M> {
    fn drop(&mut self) {
        // SAFETY: the pages are this value's, which nobody has any more. What is wrong with them was reported; there is
        // nothing else to be done about it here.
        let _ = unsafe {
            match self.order {
                Some(order) => self.mm.free_pages(self.pfn, u32::from(order.get())),
                None => self.mm.free_pages_exact(self.mm.machine().virt(self.pfn), self.bytes),
            }
        };
    }
}

impl<M: Machine> fmt::Debug for PageRun<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes from {:?}", self.bytes, self.page())
    }
}

/// A zone of a node.
pub struct Zone<'m, M: Machine> {
    mm: &'m Mm<M>,
    node: usize,
    kind: ZoneKind,
}

impl<M: Machine> fmt::Debug for Zone<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}, zone {:?}", self.node, self.kind)
    }
}

impl<'m, M: Machine> Zone<'m, M> {
    /// The zone `kind` of `node`; it may be empty.
    pub fn new(mm: &'m Mm<M>, node: usize, kind: ZoneKind) -> Self {
        Zone { mm, node: node % mm.machine().nr_nodes().max(1), kind }
    }

    /// Which.
    pub fn kind(&self) -> ZoneKind {
        self.kind
    }

    /// Of which node.
    pub fn node(&self) -> usize {
        self.node
    }

    /// Its figures.
    pub fn info(&self) -> ZoneInfo {
        self.mm.pages().zone(self.mm.machine(), self.node, self.kind)
    }

    /// The flag that asks for it.
    pub fn modifier(&self) -> Gfp {
        match self.kind {
            ZoneKind::Dma => Gfp::DMA,
            ZoneKind::Dma32 => Gfp::DMA32,
            ZoneKind::Normal => Gfp::NONE,
            ZoneKind::HighMem => Gfp::HIGHMEM,
            ZoneKind::Movable => Gfp::HIGHMEM | Gfp::MOVABLE,
        }
    }

    /// Pages from there, or from a lower zone.
    ///
    /// # Errors
    /// As for [`Mm::alloc_pages`].
    pub fn alloc(&self, gfp: Gfp, order: u32) -> Result<PageRun<'m, M>, AllocError> {
        PageRun::on_node(self.mm, self.node, gfp | self.modifier(), order)
    }
}
