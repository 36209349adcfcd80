//! The emergency pool: populated blocks that are had without a lock.
//!
//! An atomic request may come from a handler that interrupted the holder of a zone's lock, or from a thread before
//! which that holder does not run. Neither may wait. So half of the reserve lies here, on a stack for each order,
//! linked through the descriptors. A larger block is split by pushing its other half. Nothing merges here: small blocks
//! are exchanged for large ones of the zone, of which half of the pool should be.

use core::ops::Range;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::alloc::{Request, Taken};
use super::buddy::{Need, Want};
use super::{MigrateType, PageAllocator, Zone, buddy};
use crate::gfp::Gfp;
use crate::machine::{Frames, Machine};
use crate::page::{Kind, Page, flag};
use crate::sync::Stack;
use crate::types::{Order, Pfn, PfnRange};

/// The largest order kept, that of the largest slabs.
const LARGEST: Order = match Order::new(3) {
    Some(order) => order,
    None => panic!(),
};

/// Large blocks that one request exchanges at most.
const BALANCED: usize = 2;

/// The stacks.
pub(super) struct Emergency {
    /// By order; blocks are numbered by their first frames.
    stacks: [Stack; LARGEST.index() + 1],
    /// Pages on all of them.
    pages: AtomicU32,
    /// Pages in blocks of the largest order.
    large: AtomicU32,
    /// As many are wanted.
    goal: AtomicU32,
}

impl Emergency {
    pub const fn new() -> Emergency {
        Emergency {
            stacks: [const { Stack::new() }; LARGEST.index() + 1],
            pages: AtomicU32::new(0),
            large: AtomicU32::new(0),
            goal: AtomicU32::new(0),
        }
    }

    pub fn pages(&self) -> u32 {
        self.pages.load(Relaxed)
    }

    pub fn set_goal(&self, pages: u32) {
        self.goal.store(pages, Relaxed);
    }

    /// Whether `range` is wanted: a block, a small one for half of the pool at most; the other half is for large
    /// blocks.
    pub fn wants(&self, range: PfnRange) -> bool {
        let (all, goal, pages) = (self.pages(), self.goal.load(Relaxed), range.pages);
        let small = all.saturating_sub(self.large.load(Relaxed));
        let room = if pages < LARGEST.pages() { small + pages <= goal / 2 } else { all + pages <= goal };
        room && pages.is_power_of_two() && range.start.0.is_multiple_of(pages)
    }

    /// Whether half of it is large blocks.
    fn has_large(&self, goal: u32) -> bool {
        self.large.load(Relaxed) + LARGEST.pages() > goal / 2
    }

    /// Whether there is too little in it, or too much in small pieces.
    #[inline]
    pub fn is_low(&self) -> bool {
        let goal = self.goal.load(Relaxed);
        self.pages() < goal / 2 || !self.has_large(goal)
    }

    /// Whether more is in it than is wanted: what was put by as the zone's lock was not to be had.
    #[inline]
    pub fn overflows(&self) -> bool {
        self.pages() > self.goal.load(Relaxed) + LARGEST.pages()
    }

    fn count(&self, order: Order) {
        if order == LARGEST {
            self.large.fetch_add(order.pages(), Relaxed);
        }
        self.pages.fetch_add(order.pages(), Relaxed);
    }

    fn discount(&self, order: Order) {
        if order == LARGEST {
            self.large.fetch_sub(order.pages(), Relaxed);
        }
        self.pages.fetch_sub(order.pages(), Relaxed);
    }

    fn push<M: Frames>(&self, m: &M, pfn: Pfn, order: Order) {
        let page = m.page(pfn);
        page.set(flag::RESERVE);
        page.set_kind(Kind::Isolated, order);
        self.count(order);
        self.stacks[order.index()].push(pfn.0, |next| page.set_word(u64::from(next)));
    }

    fn pop<M: Frames>(&self, m: &M, order: Order) -> Option<Pfn> {
        let pfn = self.stacks[order.index()].pop(|block| m.page(Pfn(block)).word() as u32)?;
        self.discount(order);
        Some(Pfn(pfn))
    }

    /// Takes in populated frames that nobody owns, of the zone and node that `home` is of.
    pub fn put<M: Frames>(&self, m: &M, range: PfnRange, home: &Page) {
        let (zone, node) = (home.zone(), home.node());
        for (pfn, order) in buddy::blocks(range) {
            let part = order.min(LARGEST);
            for at in (0..order.pages()).step_by(part.pages() as usize) {
                m.page(pfn.add(at)).set_home(zone, node);
                self.push(m, pfn.add(at), part);
            }
        }
    }

    /// A block of `order`.
    pub fn take<M: Frames>(&self, m: &M, order: Order) -> Option<PfnRange> {
        let mut sizes = (order.get()..=LARGEST.get()).filter_map(Order::new);
        let (pfn, size) = sizes.find_map(|size| Some((self.pop(m, size)?, size)))?;
        // A block of each order between.
        self.put(m, PfnRange::new(pfn.add(order.pages()), size.pages() - order.pages()), m.page(pfn));
        Some(PfnRange::block(pfn, order))
    }
}

impl<M: Machine> PageAllocator<M> {
    /// Serves an atomic request that found every lock taken, or nothing.
    #[cold]
    pub(super) fn take_emergency(&self, m: &M, request: &Request) -> Option<Taken> {
        if !request.gfp.no_fault() || request.gfp.is_low() {
            return None;
        }
        // A run is as long as its block then: what comes back in pieces would be of no use for others.
        let range = self.emergency.take(m, request.order)?;
        let page = m.page(range.start);
        if request.gfp.has(Gfp::THISNODE) && page.node() != request.node {
            self.emergency.put(m, range, page);
            return None;
        }
        Some(Taken { range, state: 0, opened: PfnRange::EMPTY })
    }

    /// Fills the pool up to `goal` pages from what is free on `node`. Called with leave to enter the system.
    #[cold]
    pub(super) fn fill_emergency(&self, m: &M, node: usize, goal: u32) {
        let mut order = LARGEST;
        loop {
            let full = self.emergency.pages() + order.pages() > goal;
            if full && (self.emergency.has_large(goal) || order < LARGEST) {
                return;
            }
            // Without leave for I/O: it does not grow the zone, nor come back here.
            let Some(taken) = self.try_low(m, &Request::new(Gfp::NOIO, order, order.pages(), node)) else {
                match Order::new(order.get().wrapping_sub(1)).filter(|_| !full) {
                    Some(smaller) => order = smaller,
                    None => return,
                }
                continue;
            };
            m.populate(taken.range);
            let home = m.page(taken.range.start);
            // Descriptors and class bytes as well: they are written when the pages are handed out.
            for page in taken.range.iter().skip(1) {
                m.page(page).set_kind(Kind::Tail, Order::ZERO);
            }
            taken.range.iter().for_each(|page| m.class(page).store(0, Relaxed));
            if full {
                self.pop_blocks(m, LARGEST.pages(), 0..LARGEST.get(), |pfn, order| self.release_block(m, pfn, order));
            }
            self.emergency.put(m, taken.range, home);
        }
    }

    /// Exchanges small blocks of the pool for large ones of the zone's reserve.
    #[cold]
    pub(super) fn balance_emergency(&self, m: &M, zone: &mut Zone) {
        let view = self.view(m);
        for _ in 0..BALANCED {
            if self.emergency.pages() > self.emergency.goal.load(Relaxed) / 2 {
                let free = |pfn, order| zone.buddy.free(&view, pfn, order, 0, true);
                self.pop_blocks(m, LARGEST.pages(), 0..LARGEST.get(), free);
            }
            let large = zone.buddy.find(&view, Need::block(LARGEST, MigrateType::HighAtomic, Want::Backed));
            let room = self.emergency.wants(PfnRange::new(Pfn(0), LARGEST.pages()));
            let Some(found) = large.filter(|_| room) else { return };
            let (pfn, _) = zone.buddy.take(&view, found, LARGEST.pages());
            for pfn in PfnRange::block(pfn, LARGEST).iter().skip(1) {
                m.page(pfn).set_kind(Kind::Tail, Order::ZERO);
            }
            self.emergency.put(m, PfnRange::block(pfn, LARGEST), m.page(pfn));
        }
    }

    /// Gives back what is too much of the pool. May wait.
    #[cold]
    pub(super) fn empty_emergency(&self, m: &M) {
        let excess = self.emergency.pages().saturating_sub(self.emergency.goal.load(Relaxed));
        self.pop_blocks(m, excess, 0..LARGEST.get() + 1, |pfn, order| self.release_block(m, pfn, order));
    }

    /// Makes a block of the pool ordinary free memory.
    fn release_block(&self, m: &M, pfn: Pfn, order: Order) {
        m.page(pfn).clear(flag::RESERVE);
        self.free_frames(m, PfnRange::block(pfn, order), 0, true);
    }

    /// Takes up to `pages` pages in blocks of `orders` off the pool.
    fn pop_blocks(&self, m: &M, pages: u32, orders: Range<u8>, mut each: impl FnMut(Pfn, Order)) {
        let mut left = pages;
        for order in orders.filter_map(Order::new) {
            while left >= order.pages()
                && let Some(pfn) = self.emergency.pop(m, order)
            {
                left -= order.pages();
                each(pfn, order);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Mutex;
    use std::vec::Vec;

    use super::*;
    use crate::machine::ZoneKind::Normal;
    use crate::machine::sim::Sim;

    /// Threads take and put as fast as they can; no frame is ever with two of them, and none is lost.
    #[test]
    fn no_frame_is_had_twice() {
        let m = Sim::builder().ram(0, Normal, 0, 256).build();
        let pool = Emergency::new();
        pool.put(&m, PfnRange::new(Pfn(0), 256), m.page(Pfn(0)));
        let out = Mutex::new(BTreeSet::new());
        std::thread::scope(|scope| {
            for seed in 1..=4u32 {
                let (m, pool, out) = (&m, &pool, &out);
                scope.spawn(move || {
                    let mut held: Vec<PfnRange> = Vec::new();
                    let mut random = seed.wrapping_mul(0x9e37_79b1);
                    for _ in 0..20_000 {
                        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        let order = Order::new((random >> 20) as u8 % 4).unwrap();
                        if held.len() > 12 || random >> 31 == 0 && !held.is_empty() {
                            let range = held.swap_remove((random >> 8) as usize % held.len());
                            range.iter().for_each(|pfn| assert!(out.lock().unwrap().remove(&pfn)));
                            pool.put(m, range, m.page(range.start));
                        } else if let Some(range) = pool.take(m, order) {
                            range.iter().for_each(|pfn| assert!(out.lock().unwrap().insert(pfn), "{pfn:?} twice"));
                            held.push(range);
                        }
                    }
                    for range in held {
                        range.iter().for_each(|pfn| assert!(out.lock().unwrap().remove(&pfn)));
                        pool.put(m, range, m.page(range.start));
                    }
                });
            }
        });
        assert_eq!(pool.pages(), 256);
        let all: BTreeSet<Pfn> = core::iter::from_fn(|| Some(pool.take(&m, Order::ZERO)?.start)).collect();
        assert_eq!((all.len(), pool.pages()), (256, 0));
    }
}
