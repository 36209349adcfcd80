//! Nodes and page tables for what an area will need, got before the lock is taken; and what tables say of slots, read
//! and written.

use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::Ordering::{Relaxed, Release};

use super::Vmalloc;
use super::node::Ref;
use super::source::FrameSource;
use super::space::Space;
use crate::gfp::Gfp;
use crate::machine::Machine;
use crate::page::Kind;
use crate::paging::x86_64::{Slot, SlotState};
use crate::sync::Guard;
use crate::types::{Order, PAGE_SHIFT, Pfn};

/// What [`Vmalloc::survey`] found.
pub(super) struct Survey {
    /// Slots with old contents.
    pub(super) dirty: usize,
    /// Addresses from the first of them to the last.
    pub(super) range: Range<usize>,
    /// Some of them are from before a fork, so that writing to them may copy pages.
    pub(super) shared: bool,
}

/// Since when slots have their memory.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Since {
    /// All of them since the last fork.
    Now,
    /// As is noted of dirty ones, the others since the last fork.
    Then,
    /// The same, the others from before the last fork, maybe.
    Before,
}

impl<M: Machine> Vmalloc<M> {
    /// The lock, with the window open and at least `nodes` nodes in the pool. Memory for them is taken outside the
    /// lock.
    pub(super) fn prepare<'a, P: FrameSource<M>>(
        &'a self,
        m: &'a M,
        pages: &P,
        gfp: Gfp,
        nodes: usize,
    ) -> Option<Guard<'a, Space, M>> {
        let window = m.window();
        if window.len() < Self::SLOT {
            return None;
        }
        loop {
            let mut space = self.space.acquire(m, gfp.may_block())?;
            space.open(window.start, window.end, M::SLOT_SHIFT, Self::GUARD);
            let table = space.index.root().is_some();
            if table && space.window() > 0 && space.pool.len() >= nodes {
                return Some(space);
            }
            drop(space);
            if !gfp.may_block() {
                return None;
            }
            let page = Self::own_page(m, pages, gfp)?;
            let mut space = self.space.lock(m);
            self.adopt(m, &mut space, page, table);
        }
    }

    /// Makes the tables for the slots of a range. False where there is no memory for them.
    pub(super) fn tables<P: FrameSource<M>>(&self, m: &M, pages: &P, gfp: Gfp, start: usize, len: usize) -> bool {
        loop {
            let mut space = self.space.lock(m);
            let lacking = space.index.lacking(m, start, len);
            if lacking == 0 && space.index.update(m, start, len, true, |_, slot| slot) {
                return true;
            }
            drop(space);
            for _ in 0..lacking.max(1) {
                let Some(page) = Self::own_page(m, pages, gfp) else { return false };
                let mut space = self.space.lock(m);
                self.adopt(m, &mut space, page, false);
            }
        }
    }

    /// A page for nodes or tables, zeroed.
    fn own_page<P: FrameSource<M>>(m: &M, pages: &P, gfp: Gfp) -> Option<Pfn> {
        let allowed = gfp.0 & (Gfp::RECLAIM.0 | Gfp::IO.0 | Gfp::FS.0 | Gfp::NORETRY.0 | Gfp::HIGH.0);
        pages.alloc_pages(m, Gfp(allowed | Gfp::ZERO.0), Order::ZERO, None)
    }

    /// Uses a page for nodes, or for tables.
    #[allow(unsafe_code)]
    fn adopt(&self, m: &M, space: &mut Space, page: Pfn, for_nodes: bool) {
        space.figures.own_pages += 1;
        m.page(page).set_kind(Kind::Reserved, Order::ZERO);
        if for_nodes {
            if let Some(at) = NonNull::new(m.virt(page)) {
                // SAFETY: the page was just allocated and is given to the pool for ever.
                unsafe { space.pool.add(at) }
            }
        } else {
            // SAFETY: the page was just allocated, zeroed, and is given to the index for ever.
            unsafe { space.index.put_by(m, page) }
            if let Some(root) = space.index.root() {
                // Release, pairs with the Acquire in `usable_size`.
                self.not_root.store(!root.0, Release);
            }
        }
    }

    /// Hands `area` out with `size` bytes.
    pub(super) fn publish(m: &M, space: &mut Space, area: Ref, size: usize) {
        space.hand_out(area, size);
        space.index.set_pages(m, area.start.get(), size >> PAGE_SHIFT);
    }

    /// Takes a busy `area` back: it is in transit.
    pub(super) fn withdraw(m: &M, space: &mut Space, area: Ref) {
        space.index.set_pages(m, area.start.get(), 0);
        space.take(area);
    }

    /// Counts the slots of a range by what they hold.
    pub(super) fn survey(&self, m: &M, space: &mut Space, start: usize, len: usize) -> Survey {
        let generation = self.generation.load(Relaxed);
        let mut survey = Survey { dirty: 0, range: start..start, shared: false };
        space.index.look(m, start, len, |at, slot| {
            if slot.state() == SlotState::Dirty {
                survey.dirty += 1;
                survey.range = if survey.dirty == 1 { at } else { survey.range.start }..at + Self::SLOT;
                survey.shared |= !M::OWNS_FRAMES && !slot.of_generation(generation);
            }
        });
        survey
    }

    /// Marks the slots of `[from, to)` as handed out.
    pub(super) fn mark(&self, m: &M, space: &mut Space, from: usize, to: usize, since: Since) {
        let generation = self.generation.load(Relaxed).wrapping_sub(u32::from(since == Since::Before));
        let first = from & !(Self::SLOT - 1);
        space.index.update(m, first, to - first, false, |at, slot| match slot.state() {
            SlotState::Dirty if since != Since::Now => slot,
            SlotState::Dirty | SlotState::Zero => slot.dirtied(generation, at + Self::SLOT <= to),
            _ => Slot::zero(Self::LEVEL, Pfn(0)).dirtied(generation, at + Self::SLOT <= to),
        });
    }
}
