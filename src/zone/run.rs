//! Exact page runs: a block's tail pages go back at once, so that 36 KiB cost nine pages and not sixteen.

use core::sync::atomic::Ordering::Relaxed;

use super::PageAllocator;
use super::alloc::Request;
use super::watermark::Mark;
use crate::gfp::Gfp;
use crate::machine::{MAX_NODES, Machine};
use crate::page::{Kind, flag};
use crate::types::{Order, Pfn, PfnRange};

impl<M: Machine> PageAllocator<M> {
    /// Allocates `pages` adjacent frames, 1 to 1024; [`Kind::Run`], whose `word` is the number. A run is freed whole, so it counts as movable unless the flags
    /// say otherwise. Flags and failure as for [`PageAllocator::alloc_pages`].
    pub fn alloc_run(&self, m: &M, gfp: Gfp, pages: u32, node: Option<usize>) -> Option<Pfn> {
        let order = Order::holding(pages as usize).filter(|_| pages > 0)?;
        let fixed = gfp.has(Gfp::DMA) || gfp.has(Gfp::RECLAIMABLE) || gfp.has(Gfp::HIGHMEM);
        let gfp = if fixed { gfp } else { gfp.with(Gfp::MOVABLE) };
        if gfp.check().is_err() {
            return None;
        }
        let node = node.unwrap_or_else(|| m.node()).min(MAX_NODES - 1);
        let mut request = Request::new(gfp, order, pages, node);
        request.run = true;
        let taken = self.get_slow(m, request, None)?;
        m.page(taken.range.start).set_word(u64::from(taken.range.pages));
        Some(self.hand_out(m, &taken, gfp.without(Gfp::COMP), Kind::Run, order))
    }

    /// Frees a run. Failure as for [`PageAllocator::free_pages`].
    pub fn free_run(&self, m: &M, range: PfnRange, may_block: bool) -> bool {
        match m.page(range.start).kind() {
            Kind::Offline | Kind::Buddy | Kind::Tail | Kind::Pcp => true,
            _ => self.free_frames(m, range, 0, may_block),
        }
    }

    /// Makes the run `range` one of `pages` pages without moving it: gives its tail back, or takes the free blocks behind it.
    /// False where those are in use (or the lock is: it does not block); the run is unchanged then. Grown pages have unknown
    /// contents, and the head's state flags go.
    pub fn resize_run(&self, m: &M, range: PfnRange, pages: u32) -> bool {
        if pages == range.pages {
            return true;
        }
        if pages == 0 || Order::holding(pages as usize).is_none() {
            return false;
        }
        let head = m.page(range.start);
        let Some(cell) = self.cell_of(head) else { return false };
        let Some(mut zone) = cell.lock.try_lock(m) else { return false };
        let view = self.view(m);
        if pages < range.pages {
            head.set_word(u64::from(pages));
            let tail = PfnRange::new(range.start.add(pages), range.pages - pages);
            self.free_locked(m, &mut zone, tail, 0, false, 0);
            return true;
        }
        let goal = range.start.add(pages);
        let (mut at, mut fresh) = (range.end(), 0);
        // First look, then take: the blocks behind the run start where the last one ends.
        while at < goal {
            if !self.blocks.online(at) {
                return false;
            }
            let Some((found, part)) = zone.buddy.find_at(&view, at, goal.since(at)) else { return false };
            fresh += found.fresh;
            at = at.add(part);
        }
        if zone.buddy.free_pages() < goal.since(range.end()) + zone.marks.min
            || fresh > 0 && !self.budget.try_charge(u64::from(fresh), Mark::Min, Gfp::KERNEL)
        {
            return false;
        }
        let mut at = range.end();
        while at < goal
            && let Some((found, part)) = zone.buddy.find_at(&view, at, goal.since(at))
        {
            zone.buddy.take(&view, found, part);
            m.page(at).set_kind(Kind::Tail, Order::ZERO);
            at = at.add(part);
        }
        debug_assert_eq!(at, goal, "a free block vanished under the zone lock");
        head.set_word(u64::from(pages));
        // Not all of it was populated.
        head.clear(flag::ZERO | flag::UNBACKED | flag::RESERVE);
        zone.allocs += 1;
        true
    }

    /// Frames of all zones.
    pub fn managed(&self) -> u64 {
        self.managed.load(Relaxed)
    }
}
