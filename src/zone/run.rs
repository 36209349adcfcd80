//! Exact page runs: 36 KiB cost nine pages and not sixteen.
//!
//! Those at multiples of more than a page, too. They were blocks of the buddy system before, whose tails went to the
//! rows and were of no use to the next of them: 64 MiB of live blocks of 16 bytes to 600 KB at multiples of 16 bytes to
//! 2 MiB, all written to, had 1.8 million page faults in 200 000 requests and took 1.77 s of CPU, now 0.24 to 0.55
//! million and 0.30 to 0.64 (jemalloc 0.29, mimalloc 3 1.13); of 8 KB to 4 MB 30 000 took 1.39 s, now 0.15. With 8 rows
//! looked at in place of 32 0.40 and 0.20.

use core::sync::atomic::Ordering::Relaxed;

use super::alloc::{Refused, Request, Taken};
use super::buddy::{Map, Need, Want, blocks};
use super::extent::Contents;
use super::phase::Cost;
use super::rows::{Row, Rows, on_grid};
use super::watermark::Mark;
use super::{MigrateType, PageAllocator, Zone};
use crate::gfp::Gfp;
use crate::machine::{MAX_NODES, Machine, ZoneKind};
use crate::page::{Kind, flag};
use crate::sync::Guard;
use crate::types::{Order, PAGE_SIZE, PAGEBLOCK_PAGES, Pfn, PfnRange};

/// What rows are cut from where pageblocks are too few to be kept apart: as many pages as have their classes on one
/// cache line. Each run that is taken or freed changes its tag there, for which other CPUs would wait as they free
/// objects (`threads-2`, whose heap is 10 MiB: 88.9 in place of 97.0 ms of CPU time; a tag map of its own 88.1, but 4 %
/// more for `pages`).
const APART: Order = Order::new(6).unwrap();

/// The part of the addresses which the system lets the process have that zones may have of which runs only begin.
const MANY: u64 = 8;

impl<M: Machine> PageAllocator<M> {
    /// Allocates `pages` adjacent frames, 1 to 1024; [`Kind::Run`], whose `word` is the number. A run is freed whole,
    /// so it counts as movable unless the flags say otherwise. Flags and failure as for [`PageAllocator::alloc_pages`].
    pub fn alloc_run(&self, m: &M, gfp: Gfp, pages: u32, node: Option<usize>) -> Option<Pfn> {
        self.alloc_aligned_run(m, gfp, pages, 1, node)
    }

    /// [`PageAllocator::alloc_run`] from a multiple of `align` pages on, a power of two up to 1024.
    pub fn alloc_aligned_run(&self, m: &M, gfp: Gfp, pages: u32, align: u32, node: Option<usize>) -> Option<Pfn> {
        let order = Order::holding(pages.max(align) as usize).filter(|_| pages > 0)?;
        let fixed = gfp.has(Gfp::DMA) || gfp.has(Gfp::RECLAIMABLE) || gfp.has(Gfp::HIGHMEM);
        let gfp = if fixed { gfp } else { gfp.with(Gfp::MOVABLE) };
        if gfp.check().is_err() {
            return None;
        }
        #[allow(clippy::unnecessary_min_or_max)] // where there is one node
        let node = node.unwrap_or_else(|| m.node()).min(MAX_NODES - 1);
        let mut request = Request::new(gfp, order, pages, node);
        (request.run, request.align) = (!fixed, align);
        let taken = self.get_slow(m, request, None)?;
        m.page(taken.range.start).set_word(u64::from(taken.range.pages));
        Some(self.hand_out(m, &taken, gfp.without(Gfp::COMP), Kind::Run, order))
    }

    /// Takes the frames of a run from the rows of a zone, cutting a new one out of a pageblock where none is long
    /// enough.
    pub(super) fn take_run(&self, m: &M, zone: &mut Zone, request: &Request, mark: Mark) -> Result<Taken, Refused> {
        let (view, pages) = (self.view(m), request.pages);
        let clean = zone.clean_pages();
        let charge = |fresh: u32| fresh == 0 || self.budget.try_charge(u64::from(fresh), mark, request.gfp);
        let mut opened = PfnRange::EMPTY;
        let written = zone.phases.of(MigrateType::Movable).is_written();
        let begun = zone.phases.of(MigrateType::Movable).is_begun() && self.has_addresses(m);
        // Where fresh memory costs page faults zeroes are written to memory that is there. (60 zeroed blocks of 64 KiB
        // to 2 MiB in turn, every page written, a page in 16: 170 and 215 MiB resident at most where all came out of
        // fresh memory, 98 and 96 so; 0.20 and 0.20 s, 0.18 and 0.13 so.)
        let request = Request { want: if M::LENT { Want::Any } else { request.want }, ..*request };
        // More addresses are cheaper than more pages then.
        let align = if begun { request.order.pages().min(PAGEBLOCK_PAGES) } else { 1 };
        let find = |rows: &Rows, either: bool| {
            let fit = if request.align > 1 {
                rows.find_at_multiple(&view, pages, request.align)
            } else {
                let on_grid = if begun { rows.find_aligned(&view, pages, align) } else { None };
                on_grid.or_else(|| if begun && mark == Mark::Low { None } else { rows.find(&view, pages, either) })
            };
            fit.map(|fit| if charge(fit.fresh) { Ok(fit) } else { Err(Refused::Budget) })
        };
        // Where memory is short, what is backed comes first.
        let either = written && !self.pressed();
        let mut fit = find(&zone.rows, either);
        if either && matches!(fit, Some(Err(_))) {
            fit = find(&zone.rows, false);
        }
        let (run, fresh) = if let Some(fit) = fit {
            let fit = fit?;
            (zone.rows.take(&view, fit, pages), fit.fresh)
        } else {
            let whole = self.grouping.load(Relaxed);
            let (row, new) = zone.new_row(&view, &request, whole).ok_or(Refused::Empty)?;
            opened = new;
            let (at, fresh) = if request.align > 1 {
                // It begins at a multiple of its length, or of a pageblock's.
                row.place_at(0, pages)
            } else if begun {
                let at = on_grid(row.range.start, align) - row.range.start.0;
                row.place_at(if at + pages <= row.range.pages { at } else { 0 }, pages)
            } else {
                row.place(pages)
            };
            if !charge(fresh) {
                zone.put_run(&view, row.range, row.contents);
                self.settle(clean, zone.clean_pages());
                return Err(Refused::Budget);
            }
            for part in [row.cut(0, at), row.cut(at + pages, row.range.pages - at - pages)] {
                zone.put_run(&view, part.range, part.contents);
            }
            let run = row.cut(at, pages);
            zone.rows.isolate(&view, run);
            (run, fresh)
        };
        // Joining rows may have made more count as backed.
        self.settle(clean - fresh, zone.clean_pages());
        zone.note_taken();
        Ok(Taken { range: run.range, state: run.contents.state(), opened })
    }

    /// Whether addresses are cheap: the system does not count them, or lets the process have many more than the zones
    /// have. (40 000-byte blocks of which the first byte is written, in 100 MiB of addresses of which 10 hold small
    /// blocks: 80 MiB of them in place of 52, as many as where all of them is written; glibc 86. To give the grid up
    /// only where the system refuses to grow does not help: what lies between the runs by then is too short for the
    /// next.)
    fn has_addresses(&self, m: &M) -> bool {
        self.managed() * PAGE_SIZE as u64 <= m.address_limit() / MANY
    }

    /// Frees a run. Failure as for [`PageAllocator::free_pages`].
    pub(super) fn give_back_run(&self, m: &M, range: PfnRange, may_block: bool) -> bool {
        let head = m.page(range.start);
        if head.kind().heads_nothing() {
            return true;
        }
        let Some(cell) = self.cell_of(head) else { return true };
        if head.has(flag::RESERVE) {
            return self.free_frames(m, range, 0, may_block);
        }
        let Some(mut zone) = cell.lock.acquire(m, may_block) else { return false };
        self.free_run_locked(m, &mut zone, range);
        true
    }

    /// Frees the frames of a run into the rows, which are of ordinary memory, or else into the buddy system: scarce
    /// zones', and those of a pageblock that is kept for something else.
    fn free_run_locked(&self, m: &M, zone: &mut Guard<'_, Zone, M>, range: PfnRange) {
        let ends = [range.start, range.start.add(range.pages - 1)];
        let ordinary = m.page(range.start).zone() >= ZoneKind::Normal as usize;
        if !ordinary || ends.iter().any(|pfn| !self.blocks.get(*pfn).mixes()) {
            return self.free_locked(m, zone, range, 0, false, 0);
        }
        let clean = zone.clean_pages();
        zone.put_run(&self.view(m), range, Contents::of(0, range.pages));
        zone.frees += 1;
        self.settle(clean, zone.clean_pages());
        self.note_idle(zone);
    }

    /// Puts what lies in the rows of a zone back into the buddy system.
    pub(super) fn flush_rows(&self, m: &M, zone: &mut Zone) {
        let (view, clean) = (self.view(m), zone.clean_pages());
        while let Some(row) = zone.rows.take_any(&view) {
            for (block, order) in blocks(row.range) {
                let part = row.cut(block.since(row.range.start), order.pages());
                zone.buddy.free_known(&view, block, order, part.contents);
            }
        }
        self.settle(clean, zone.clean_pages());
    }

    /// [`PageAllocator::resize_run`].
    pub(super) fn resize(&self, m: &M, range: PfnRange, pages: u32) -> bool {
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
            m.page(tail.start).set_home(head.zone(), head.node());
            self.free_run_locked(m, &mut zone, tail);
            return true;
        }
        let goal = range.start.add(pages);
        let (mut at, mut fresh) = (range.end(), 0);
        // First look, then take: the blocks behind the run start where the last one ends.
        while at < goal {
            if !self.blocks.online(at) {
                return false;
            }
            let (part, lacking) = match zone.rows.row_at(&view, at) {
                Some(row) => {
                    let part = row.range.pages.min(goal.since(at));
                    (part, part - row.contents.extent.cut(0, part).len())
                }
                None => match zone.buddy.find_at(&view, at, goal.since(at)) {
                    Some((found, part)) => (part, found.fresh),
                    None => return false,
                },
            };
            fresh += lacking;
            at = at.add(part);
        }
        if zone.free_pages() < goal.since(range.end()) + zone.marks.min
            || fresh > 0 && !self.budget.try_charge(u64::from(fresh), Mark::Min, Gfp::KERNEL)
        {
            return false;
        }
        let mut at = range.end();
        while at < goal {
            let part = match zone.rows.take_at(&view, at, goal.since(at)) {
                Some(part) => part,
                None => {
                    let Some((found, part)) = zone.buddy.find_at(&view, at, goal.since(at)) else { break };
                    zone.buddy.take(&view, found, part);
                    part
                }
            };
            m.page(at).set_kind(Kind::Tail, Order::ZERO);
            at = at.add(part);
        }
        debug_assert_eq!(at, goal, "a free block vanished under the zone lock");
        head.set_word(u64::from(pages));
        // Not all of it was populated.
        head.clear(flag::ZERO | flag::UNBACKED | flag::RESERVE);
        zone.note_taken();
        true
    }

    /// What page runs cost that are kept and not used.
    #[inline]
    pub fn cost(&self) -> Cost {
        match self.cost.load(Relaxed) {
            0 => Cost::Some,
            1 => Cost::Little,
            _ => Cost::All,
        }
    }

    /// Says what page runs cost.
    #[cfg(test)]
    pub fn set_cost(&self, cost: Cost) {
        self.cost.store(cost as u8, Relaxed);
    }

    /// Frames of all zones.
    pub fn managed(&self) -> u64 {
        self.managed.load(Relaxed)
    }
}

impl Zone {
    /// Puts a run, which nobody owns any more, into the rows.
    pub(super) fn put_run(&mut self, map: &impl Map, range: PfnRange, contents: Contents) {
        let run = Row { range, contents };
        let mut at = 0;
        while at < range.pages {
            // A run that grew may cross the border of a largest block; rows do not.
            let start = range.start.add(at);
            let part = (Order::MAX.pages() - (start.0 & (Order::MAX.pages() - 1))).min(range.pages - at);
            let row = self.rows.join(map, run.cut(at, part));
            self.put_row(map, row);
            at += part;
        }
    }

    /// Puts a row on its list; whole pageblocks of it, and what merges there, go back to the buddy system.
    fn put_row(&mut self, map: &impl Map, row: Row) {
        let (start, pages) = (row.range.start, row.range.pages);
        let first = start.0.next_multiple_of(PAGEBLOCK_PAGES) - start.0;
        if first + PAGEBLOCK_PAGES <= pages {
            let whole = (pages - first) & !(PAGEBLOCK_PAGES - 1);
            self.rows.insert_rest(map, row, first, whole);
            for at in (first..first + whole).step_by(PAGEBLOCK_PAGES as usize) {
                self.buddy.free_known(map, start.add(at), Order::PAGEBLOCK, row.contents.cut(at, PAGEBLOCK_PAGES));
            }
        } else if let Some(order) = Order::holding(pages as usize)
            && order.pages() == pages
            && start.0 & (pages - 1) == 0
            && self.buddy.would_merge(map, start, order)
        {
            self.buddy.free_known(map, start, order, row.contents);
        } else {
            self.rows.insert(map, row);
        }
    }

    /// A new row, off the lists, and the pageblocks opened for it: a pageblock where there are enough of them (`whole`)
    /// and one is free, at least what the request needs. Where there are too few it is a free block that holds memory,
    /// else [`APART`] of what is fresh.
    fn new_row(&mut self, map: &impl Map, request: &Request, whole: bool) -> Option<(Row, PfnRange)> {
        let there = Need::block(request.order, request.list, Want::Backed);
        let there = if whole { None } else { self.buddy.find(map, there) };
        let (order, found) = if let Some(found) = there {
            (request.order, found)
        } else {
            let mut order = request.order.max(if whole { Order::PAGEBLOCK } else { APART });
            loop {
                let need = Need::block(order, request.list, request.want);
                let claims = order >= Order::PAGEBLOCK || order == request.order;
                let found = if claims { self.buddy.find_anywhere(map, need) } else { self.buddy.find(map, need) };
                if let Some(found) = found {
                    break (order, found);
                }
                order = order.down().filter(|less| *less >= request.order)?;
            }
        };
        let opened = self.buddy.opens(map, found, order.pages());
        let (start, contents) = self.buddy.carve(map, found, order.pages());
        Some((Row { range: PfnRange::new(start, order.pages()), contents }, opened))
    }
}
