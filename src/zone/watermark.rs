//! Watermarks: how much must stay free, for whom, and against what.
//!
//! Two quantities are watched with the same three marks: the free pages of a zone (as in the kernel), and the pages
//! that the process's budget still allows to be backed. Below low the allocator gives memory back, below min only those
//! who promise to free memory (`__GFP_HIGH`, `__GFP_MEMALLOC`) are served.

use crate::gfp::Gfp;

/// The marks, in pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Watermarks {
    /// Below it only the reserves' users are served.
    pub min: u32,
    /// Below it memory is taken back from the caches or grown.
    pub low: u32,
    /// Up to it.
    pub high: u32,
}

/// Which mark a request has to leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// First try.
    Low,
    /// Slow path.
    Min,
}

/// Largest min mark in KiB, the kernel's.
const MAX_KB: u64 = 256 << 10;

impl Watermarks {
    /// No marks.
    pub const NONE: Watermarks = Watermarks { min: 0, low: 0, high: 0 };

    /// Marks for `pages` of memory: the kernel's `4 * sqrt(KiB)` KiB up to 256 MiB, but at most an eighth. (Where that
    /// is less than the kernel's least, 128 KiB, the eighth is less still.)
    pub const fn of(pages: u64) -> Watermarks {
        let kb = if pages > u64::MAX >> 8 { u64::MAX >> 6 } else { pages * 4 };
        let mut min = isqrt(kb * 16);
        if min > MAX_KB {
            min = MAX_KB;
        }
        let mut min = min / 4;
        if min > pages / 8 {
            min = pages / 8;
        }
        let min = min as u32;
        Watermarks { min, low: min + min / 4, high: min + min / 2 }
    }

    /// The mark's pages for a request with `gfp`: `__GFP_HIGH` may go to half of min, and without blocking to three
    /// eighths; `__GFP_MEMALLOC` to nothing.
    pub const fn mark(&self, mark: Mark, gfp: Gfp) -> u32 {
        if gfp.has(Gfp::MEMALLOC) && !gfp.has(Gfp::NOMEMALLOC) {
            return 0;
        }
        let mut pages = match mark {
            Mark::Low => self.low,
            Mark::Min => self.min,
        };
        if gfp.has(Gfp::HIGH) && !gfp.has(Gfp::NOMEMALLOC) && matches!(mark, Mark::Min) {
            pages -= pages / 2;
            if !gfp.may_block() {
                pages -= pages / 4;
            }
        }
        pages
    }
}

/// Whether taking `pages` from `free` leaves `mark` and the part kept for requests that cannot go elsewhere.
pub const fn passes(free: u64, pages: u64, mark: u64, lowmem_reserve: u64) -> bool {
    free >= pages && free - pages >= mark + lowmem_reserve
}

/// Pages of a zone kept from requests that could be served by a higher zone of `above` pages: the kernel's
/// `lowmem_reserve_ratio`.
pub const fn lowmem_reserve(zone: crate::machine::ZoneKind, above: u64) -> u64 {
    use crate::machine::ZoneKind::{Dma, Dma32, HighMem, Movable, Normal};
    match zone {
        Dma | Dma32 => above / 256,
        Normal => above / 32,
        HighMem | Movable => 0,
    }
}

/// Integer square root. (That of `core` reads a table of half a KiB.)
const fn isqrt(n: u64) -> u64 {
    let (mut root, mut bit) = (0, 1 << 31);
    while bit > 0 {
        if (root | bit) * (root | bit) <= n {
            root |= bit;
        }
        bit >>= 1;
    }
    root
}

#[cfg(test)]
mod tests {
    use super::*;

    // rows: B10
    #[test]
    fn marks_follow_the_kernel() {
        // 16 MiB: 512 KiB; 1 GiB: 4096 KiB; table in Documentation/admin-guide/sysctl/vm and mm/page_alloc.c.
        assert_eq!(Watermarks::of(4096).min, 512 / 4);
        assert_eq!(Watermarks::of(1 << 18).min, 4096 / 4);
        assert_eq!(Watermarks::of(u64::MAX).min, (256 << 10) / 4);
        assert_eq!(Watermarks::of(80).min, 10);
        assert_eq!(Watermarks::of(0), Watermarks::NONE);
        let marks = Watermarks::of(4096);
        assert_eq!((marks.low, marks.high), (160, 192));
    }

    // rows: C5 C13
    #[test]
    fn who_may_go_below() {
        let marks = Watermarks { min: 80, low: 100, high: 120 };
        assert_eq!(marks.mark(Mark::Low, Gfp::KERNEL), 100);
        assert_eq!(marks.mark(Mark::Min, Gfp::KERNEL), 80);
        assert_eq!(marks.mark(Mark::Min, Gfp::KERNEL | Gfp::HIGH), 40);
        assert_eq!(marks.mark(Mark::Min, Gfp::ATOMIC), 30);
        assert_eq!(marks.mark(Mark::Min, Gfp::NOWAIT), 80);
        assert_eq!(marks.mark(Mark::Low, Gfp::ATOMIC), 100);
        assert_eq!(marks.mark(Mark::Low, Gfp::KERNEL | Gfp::MEMALLOC), 0);
        assert_eq!(marks.mark(Mark::Min, Gfp::ATOMIC | Gfp::NOMEMALLOC), 80);
    }

    #[test]
    fn borders() {
        assert!(passes(10, 4, 6, 0));
        assert!(!passes(10, 5, 6, 0));
        assert!(!passes(10, 4, 6, 1));
        assert!(!passes(3, 4, 0, 0));
    }
}
