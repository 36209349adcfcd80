//! Page frame numbers and addresses.

/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Bytes of a page frame, the unit of the buddy system. A host page may be larger; the machine rounds to it.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
/// Mask of the page number bits of an address (`addr & PAGE_MASK` is the page's first byte).
pub const PAGE_MASK: usize = !(PAGE_SIZE - 1);

/// A page frame number: index of a frame, and of its descriptor in the memmap.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct Pfn(pub u32);

impl Pfn {
    /// The value that stands for "none" in descriptor links.
    pub const NONE: Pfn = Pfn(u32::MAX);

    /// The number as an index.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The frame `n` after this one.
    #[inline]
    #[must_use]
    pub const fn add(self, n: u32) -> Pfn {
        Pfn(self.0 + n)
    }

    /// Frames from `base` up to this one.
    #[inline]
    pub const fn since(self, base: Pfn) -> u32 {
        self.0 - base.0
    }

    /// Whether this is a frame (not [`Pfn::NONE`]).
    #[inline]
    pub const fn is_some(self) -> bool {
        self.0 != u32::MAX
    }
}

/// A physical address in bytes. 64 bits wide also on 32-bit machines (PAE).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct PhysAddr(pub u64);

impl PhysAddr {
    /// First byte of frame `pfn` where frames are numbered from physical address 0.
    pub const fn of(pfn: Pfn) -> PhysAddr {
        PhysAddr((pfn.0 as u64) << PAGE_SHIFT)
    }

    /// The frame that holds this address.
    pub const fn pfn(self) -> Pfn {
        Pfn((self.0 >> PAGE_SHIFT) as u32)
    }
}

/// A virtual address in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct VirtAddr(pub usize);

impl VirtAddr {
    /// Bytes into the page.
    pub const fn offset(self) -> usize {
        self.0 & !PAGE_MASK
    }

    /// First byte of the page.
    #[must_use]
    pub const fn page_base(self) -> VirtAddr {
        VirtAddr(self.0 & PAGE_MASK)
    }

    /// Whether the address is a multiple of `align`, a power of two.
    pub const fn is_aligned(self, align: usize) -> bool {
        self.0 & (align - 1) == 0
    }

    /// Rounded up to a multiple of `align`, a power of two; `None` on overflow.
    pub const fn align_up(self, align: usize) -> Option<VirtAddr> {
        match self.0.checked_add(align - 1) {
            Some(a) => Some(VirtAddr(a & !(align - 1))),
            None => None,
        }
    }
}
