//! Runs of frames.

use super::{Order, PAGE_SHIFT, Pfn};

/// `pages` consecutive frames from `start`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PfnRange {
    /// First frame.
    pub start: Pfn,
    /// Number of frames.
    pub pages: u32,
}

impl PfnRange {
    /// No frames.
    pub const EMPTY: PfnRange = PfnRange { start: Pfn(0), pages: 0 };

    /// `pages` frames from `start`.
    #[inline]
    pub const fn new(start: Pfn, pages: u32) -> PfnRange {
        PfnRange { start, pages }
    }

    /// The block of `order` at `start`.
    #[inline]
    pub const fn block(start: Pfn, order: Order) -> PfnRange {
        PfnRange { start, pages: order.pages() }
    }

    /// The frame after the last.
    #[inline]
    pub const fn end(self) -> Pfn {
        Pfn(self.start.0 + self.pages)
    }

    /// Bytes of the run.
    #[inline]
    pub const fn bytes(self) -> usize {
        (self.pages as usize) << PAGE_SHIFT
    }

    /// Whether there are none.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.pages == 0
    }

    /// Whether `pfn` lies inside.
    #[inline]
    pub const fn contains(self, pfn: Pfn) -> bool {
        pfn.0 >= self.start.0 && pfn.0 - self.start.0 < self.pages
    }

    /// The frames, ascending.
    pub fn iter(self) -> impl Iterator<Item = Pfn> {
        (self.start.0..self.end().0).map(Pfn)
    }
}
