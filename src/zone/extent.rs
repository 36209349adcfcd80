//! Which part of a free block may hold memory: the smallest range of pages that covers all that was ever touched since
//! the block's contents last went back to the system.
//!
//! One range per block, not a set: it lies in the head's descriptor, merging two blocks takes the hull of both, and
//! splitting cuts it exactly. Allocation reuses the inside and leaves the outside clean, so the hull rarely covers much
//! that is not backed. A single bit for the whole block was tried first: one page freed into 4 MiB of fresh memory made
//! all of it count as backed, and a budget of 10 MiB was overdrawn twofold.

use crate::page::flag;

/// Pages `lo..hi` of a block, counted from its first; empty iff `lo == hi`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    lo: u32,
    hi: u32,
}

impl Extent {
    /// No page.
    pub const EMPTY: Extent = Extent { lo: 0, hi: 0 };

    /// The first `pages` pages.
    pub const fn first(pages: u32) -> Extent {
        Extent { lo: 0, hi: pages }
    }

    /// Pages in it.
    #[inline]
    pub const fn len(self) -> u32 {
        self.hi - self.lo
    }

    /// Whether it has none.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.lo == self.hi
    }

    /// As a descriptor's word; blocks have at most 1024 pages.
    #[inline]
    pub const fn pack(self) -> u32 {
        self.lo | self.hi << 16
    }

    /// What [`Extent::pack`] made.
    #[inline]
    pub const fn unpack(word: u32) -> Extent {
        Extent { lo: word & 0xffff, hi: word >> 16 }
    }

    /// The same pages counted from `by` pages before.
    #[inline]
    #[must_use]
    pub const fn later(self, by: u32) -> Extent {
        if self.is_empty() { self } else { Extent { lo: self.lo + by, hi: self.hi + by } }
    }

    /// What covers both.
    #[inline]
    #[must_use]
    pub fn hull(self, other: Extent) -> Extent {
        if self.is_empty() {
            other
        } else if other.is_empty() {
            self
        } else {
            Extent { lo: self.lo.min(other.lo), hi: self.hi.max(other.hi) }
        }
    }

    /// The part in `pages` pages from `at` on, counted from there.
    #[inline]
    #[must_use]
    pub fn cut(self, at: u32, pages: u32) -> Extent {
        let (lo, hi) = (self.lo.max(at), self.hi.min(at + pages));
        if lo < hi { Extent { lo: lo - at, hi: hi - at } } else { Extent::EMPTY }
    }

    /// Where in a block of `of` pages to take `pages` pages, from a multiple of `align`, so that most of them are
    /// inside.
    pub fn inside(self, align: u32, pages: u32, of: u32) -> u32 {
        let down = self.lo & !(align - 1);
        let up = down + align;
        let fits = up < of && self.cut(up, pages).len() > self.cut(down, pages).len();
        if fits { up } else { down }
    }

    /// Where to take them so that none is inside, and how many pages from there on are outside.
    pub fn outside(self, align: u32, pages: u32, of: u32) -> Option<(u32, u32)> {
        let after = self.hi.next_multiple_of(align);
        if pages <= self.lo {
            Some((0, self.lo))
        } else if after + pages <= of {
            Some((after, of - after))
        } else {
            None
        }
    }
}

/// What is known of a block's contents.
#[derive(Clone, Copy)]
pub struct Contents {
    /// All of it reads zero.
    pub zero: bool,
    /// Outside of it the block reads zero and is not backed.
    pub extent: Extent,
}

impl Contents {
    /// Those of `pages` pages of which `state` is known ([`flag::ZERO`], [`flag::UNBACKED`]).
    pub fn of(state: u32, pages: u32) -> Contents {
        let clean = state & flag::UNBACKED != 0;
        let extent = if clean { Extent::EMPTY } else { Extent::first(pages) };
        Contents { zero: clean || state & flag::ZERO != 0, extent }
    }

    /// Those of `pages` pages of it from page `at` on.
    #[must_use]
    pub fn cut(self, at: u32, pages: u32) -> Contents {
        let extent = self.extent.cut(at, pages);
        Contents { zero: self.zero || extent.is_empty(), extent }
    }

    /// As state bits.
    pub fn state(self) -> u32 {
        if self.extent.is_empty() {
            flag::ZERO | flag::UNBACKED
        } else if self.zero {
            flag::ZERO
        } else {
            0
        }
    }

    /// Those of a block of `pages` pages and the one behind it together.
    #[must_use]
    pub fn join(self, pages: u32, behind: Contents) -> Contents {
        Contents { zero: self.zero && behind.zero, extent: self.extent.hull(behind.extent.later(pages)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All extents of a block of 8 pages against sets of pages.
    #[test]
    fn as_sets() {
        let some = (0..8u32).flat_map(|lo| (lo + 1..=8).map(move |hi| Extent { lo, hi }));
        let all = some.chain([Extent::EMPTY]);
        for e in all.clone() {
            let set = |e: Extent| (e.lo..e.hi).fold(0u32, |bits, page| bits | 1 << page);
            assert_eq!(set(Extent::unpack(e.pack())), set(e));
            assert_eq!(set(e.later(3)), set(e) << 3);
            for at in 0..8 {
                for pages in 1..=8 - at {
                    assert_eq!(set(e.cut(at, pages)), set(e) >> at & ((1 << pages) - 1));
                }
            }
            for other in all.clone() {
                let (both, hull) = (set(e) | set(other), e.hull(other));
                assert_eq!(set(hull) & both, both);
                assert!(both == 0 || both >> hull.lo & 1 == 1 && both >> (hull.hi - 1) & 1 == 1, "not the smallest");
            }
            for (align, pages) in [(1, 1), (2, 1), (2, 2), (4, 3), (4, 4), (8, 5), (8, 8)] {
                let places = || (0..8).step_by(align as usize).filter(|at| at + pages <= 8);
                let inside = e.inside(align, pages, 8);
                assert!(places().any(|at| at == inside));
                let most = places().map(|at| e.cut(at, pages).len()).max();
                assert_eq!(Some(e.cut(inside, pages).len()), most, "{e:?} {align} {pages}");
                let any = places().any(|at| e.cut(at, pages).is_empty());
                match e.outside(align, pages, 8) {
                    Some((at, room)) => {
                        assert!(places().any(|place| place == at) && room >= pages);
                        assert!(e.cut(at, room).is_empty());
                    }
                    None => assert!(!any, "{e:?} {align} {pages}"),
                }
            }
        }
    }
}
