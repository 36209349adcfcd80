//! Intrusive doubly linked lists of frames through their descriptors.

use super::Page;
use crate::types::Pfn;

/// A list of frames; its lock is its owner's. The links are those of the frames' descriptors, which `page` finds.
pub struct PageList {
    head: Link,
    tail: Link,
    len: u32,
}

/// A frame number stored inverted, so that an empty list is all zeroes and large tables of lists lie in `.bss`.
#[derive(Clone, Copy)]
struct Link(u32);

impl Link {
    const NONE: Link = Link(!Pfn::NONE.0);

    #[inline]
    const fn to(pfn: Pfn) -> Link {
        Link(!pfn.0)
    }

    #[inline]
    const fn pfn(self) -> Pfn {
        Pfn(!self.0)
    }
}

impl PageList {
    /// An empty list.
    pub const fn new() -> PageList {
        PageList { head: Link::NONE, tail: Link::NONE, len: 0 }
    }

    /// Number of frames on it.
    #[inline]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether it holds none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first (hot) frame.
    #[inline]
    pub fn first(&self) -> Option<Pfn> {
        Some(self.head.pfn()).filter(|pfn| pfn.is_some())
    }

    /// The last (cold) frame.
    #[inline]
    pub fn last(&self) -> Option<Pfn> {
        Some(self.tail.pfn()).filter(|pfn| pfn.is_some())
    }

    /// Adds `pfn`, which is on no list, at the head.
    pub fn push_front<'p>(&mut self, pfn: Pfn, page: impl Fn(Pfn) -> &'p Page) {
        page(pfn).set_prev(Pfn::NONE);
        page(pfn).set_next(self.head.pfn());
        match self.first() {
            Some(head) => page(head).set_prev(pfn),
            None => self.tail = Link::to(pfn),
        }
        self.head = Link::to(pfn);
        self.len += 1;
    }

    /// Adds `pfn`, which is on no list, at the tail.
    pub fn push_back<'p>(&mut self, pfn: Pfn, page: impl Fn(Pfn) -> &'p Page) {
        page(pfn).set_next(Pfn::NONE);
        page(pfn).set_prev(self.tail.pfn());
        match self.last() {
            Some(tail) => page(tail).set_next(pfn),
            None => self.head = Link::to(pfn),
        }
        self.tail = Link::to(pfn);
        self.len += 1;
    }

    /// Removes `pfn`, which is on this list.
    pub fn remove<'p>(&mut self, pfn: Pfn, page: impl Fn(Pfn) -> &'p Page) {
        let (prev, next) = (page(pfn).prev(), page(pfn).next());
        if prev.is_some() {
            page(prev).set_next(next);
        } else {
            debug_assert_eq!(self.first(), Some(pfn));
            self.head = Link::to(next);
        }
        if next.is_some() {
            page(next).set_prev(prev);
        } else {
            debug_assert_eq!(self.last(), Some(pfn));
            self.tail = Link::to(prev);
        }
        self.len -= 1;
    }

    /// Removes and returns the first frame.
    pub fn pop_front<'p>(&mut self, page: impl Fn(Pfn) -> &'p Page) -> Option<Pfn> {
        let pfn = self.first()?;
        self.remove(pfn, page);
        Some(pfn)
    }

    /// Removes and returns the last frame.
    pub fn pop_back<'p>(&mut self, page: impl Fn(Pfn) -> &'p Page) -> Option<Pfn> {
        let pfn = self.last()?;
        self.remove(pfn, page);
        Some(pfn)
    }

    /// The frames from head to tail. The list must not change meanwhile.
    pub fn iter<'p>(&self, page: impl Fn(Pfn) -> &'p Page) -> impl Iterator<Item = Pfn> {
        let mut at = self.head.pfn();
        core::iter::from_fn(move || {
            let pfn = at.is_some().then_some(at)?;
            at = page(pfn).next();
            Some(pfn)
        })
    }
}

impl Default for PageList {
    fn default() -> PageList {
        PageList::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn behaves_like_a_deque() {
        let pages: Vec<Page> = (0..64).map(|_| Page::new()).collect();
        let page = |pfn: Pfn| &pages[pfn.index()];
        let mut list = PageList::new();
        let mut oracle = VecDeque::new();
        let mut seed = 1u32;
        for _ in 0..10_000 {
            seed = seed.wrapping_mul(1_103_515_245).wrapping_add(12_345);
            let pfn = Pfn(seed >> 8 & 63);
            let at = oracle.iter().position(|p| *p == pfn);
            match (seed >> 20 & 3, at) {
                (0, None) => {
                    list.push_front(pfn, page);
                    oracle.push_front(pfn);
                }
                (1, None) => {
                    list.push_back(pfn, page);
                    oracle.push_back(pfn);
                }
                (2, _) => assert_eq!(list.pop_front(page), oracle.pop_front()),
                (3, None) => assert_eq!(list.pop_back(page), oracle.pop_back()),
                (_, Some(at)) => {
                    list.remove(pfn, page);
                    oracle.remove(at);
                }
                _ => {}
            }
            assert_eq!(list.len() as usize, oracle.len());
            assert!(list.iter(page).eq(oracle.iter().copied()));
        }
    }
}
