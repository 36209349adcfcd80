//! Compaction: pages that may move are gathered at one end of a zone, so that whole blocks become free at the other.
//!
//! Two scanners walk the zone's pageblocks, as in the kernel's `mm/compaction.c`: from below one that looks for pages
//! that may move ([`flag::MIGRATABLE`]), from above one that takes free pages for them to move to. Where they meet, or
//! where a block of the order wanted has become free, it is over. What a page holds is moved by whom the caller names;
//! here only frames are found and freed.

use core::sync::atomic::Ordering::Relaxed;

use super::raw::Owner;
use super::{Cell, PageAllocator};
use crate::machine::{Machine, ZoneKind};
use crate::page::{Kind, Page, flag};
use crate::types::{Order, PAGEBLOCK_PAGES, Pfn, PfnRange};

/// Free pages taken at a time (the kernel's `COMPACT_CLUSTER_MAX`).
const CLUSTER: usize = 32;

/// What compaction did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Compacted {
    /// Pages that moved.
    pub moved: u32,
    /// Pages whose owner did not let them go.
    pub refused: u32,
    /// A block of the order wanted is free.
    pub done: bool,
}

/// Free pages to move to, off all lists.
struct Targets {
    pages: [Pfn; CLUSTER],
    len: usize,
    /// End of what the scanner has not been through.
    end: Pfn,
}

/// Whether nothing but its owner stands against moving the page.
fn may_move(page: &Page) -> bool {
    page.kind() == Kind::Allocated && page.has(flag::MIGRATABLE) && page.order() == Order::ZERO && page.refs() == 1
}

impl<M: Machine> PageAllocator<M> {
    /// Moves pages of a zone until it has a free block of `order`. `migrate` moves what a page holds, and everybody's
    /// reference to it, to another one, which is allocated then, with the same [`Page::cache`] and [`Page::word`];
    /// false where that was not possible. It is called without locks.
    pub(crate) fn compact(
        &self,
        m: &M,
        node: usize,
        kind: ZoneKind,
        order: Order,
        mut migrate: impl FnMut(Pfn, Pfn) -> bool,
    ) -> Compacted {
        let mut result = Compacted::default();
        let cell: &Cell = &self.zones[node][kind as usize];
        if cell.managed.load(Relaxed) == 0 {
            return result;
        }
        // What lies on per-CPU lists merges with nothing.
        self.drain(m);
        let owner = Owner::new(kind as usize, node);
        let (start, end) = cell.lock.lock(m).span;
        let mut low = Pfn(start.0 & !(PAGEBLOCK_PAGES - 1));
        let mut targets =
            Targets { pages: [Pfn::NONE; CLUSTER], len: 0, end: Pfn(end.0.next_multiple_of(PAGEBLOCK_PAGES)) };
        result.done = cell.lock.lock(m).buddy.has_block(order);
        'scan: while !result.done && low < targets.end {
            let block = PfnRange::new(low, PAGEBLOCK_PAGES);
            low = block.end();
            if !self.blocks.is_of(block.start, owner) || order >= Order::PAGEBLOCK && !self.empties(m, block) {
                continue;
            }
            for from in block.iter().filter(|pfn| may_move(m.page(*pfn))) {
                if targets.len == 0 && !self.isolate_free(m, cell, owner, block.end(), &mut targets) {
                    break 'scan;
                }
                targets.len -= 1;
                let to = targets.pages[targets.len];
                self.disguise(m, from, to);
                let moved = migrate(from, to);
                result.moved += u32::from(moved);
                result.refused += u32::from(!moved);
                self.free_frames(m, PfnRange::new(if moved { from } else { to }, 1), 0, true);
            }
            result.done = cell.lock.lock(m).buddy.has_block(order);
        }
        targets.pages[..targets.len].iter().for_each(|pfn| {
            self.free_frames(m, PfnRange::new(*pfn, 1), 0, true);
        });
        result.done = result.done || cell.lock.lock(m).buddy.has_block(order);
        result
    }

    /// Whether all of a pageblock is free or may move. A guess: nothing keeps it so.
    fn empties(&self, m: &M, block: PfnRange) -> bool {
        let mut at = block.start;
        while at < block.end() {
            let page = m.page(at);
            at = match page.kind() {
                Kind::Buddy => at.add(page.order().pages()),
                _ if may_move(page) => at.add(1),
                _ => return false,
            };
        }
        true
    }

    /// Takes free pages from the uppermost pageblocks that lie above `floor`. False where there are none.
    fn isolate_free(&self, m: &M, cell: &Cell, owner: Owner, floor: Pfn, targets: &mut Targets) -> bool {
        let grouping = self.grouping.load(Relaxed);
        while targets.len == 0 && targets.end > floor {
            let block = PfnRange::new(Pfn(targets.end.0 - PAGEBLOCK_PAGES), PAGEBLOCK_PAGES);
            let suits = self.blocks.is_of(block.start, owner)
                && (!grouping || self.blocks.get(block.start) == super::MigrateType::Movable);
            let mut at = block.start;
            let mut zone = cell.lock.lock(m);
            while suits && at < block.end() && targets.len < CLUSTER {
                let wanted = (CLUSTER - targets.len) as u32;
                let view = self.view(m);
                // A block that is free as a whole is what others look for.
                let found = zone.buddy.find_at(&view, at, wanted).filter(|_| m.page(at).order() < Order::PAGEBLOCK);
                let Some((found, pages)) = found else {
                    at = at.add(1);
                    continue;
                };
                self.budget.charge(u64::from(found.fresh));
                zone.buddy.take(&view, found, pages);
                for pfn in PfnRange::new(at, pages).iter() {
                    m.page(pfn).set_home(owner.zone(), owner.node());
                    m.page(pfn).set_kind(Kind::Isolated, Order::ZERO);
                    targets.pages[targets.len] = pfn;
                    targets.len += 1;
                }
                at = at.add(pages);
            }
            drop(zone);
            if targets.len == 0 {
                targets.end = block.start;
            }
        }
        targets.len > 0
    }

    /// Makes an isolated page look like the one that is to move there.
    fn disguise(&self, m: &M, from: Pfn, to: Pfn) {
        let (old, new) = (m.page(from), m.page(to));
        new.set(flag::MIGRATABLE);
        new.set_cache(old.cache());
        new.set_word(old.word());
        new.set_refs(1);
        new.set_mapcount(old.mapcount());
        new.set_kind(Kind::Allocated, Order::ZERO);
    }
}
