//! Return to the system, and frames lent to the layer above.

use core::sync::atomic::Ordering::Relaxed;

use super::buddy::STATE;
use super::extent::Contents;
use super::{Cell, MigrateType, PageAllocator, Watermarks, ZONES, Zone};
use crate::machine::{Machine, ZoneKind};
use crate::page::Kind;
use crate::types::{NR_ORDERS, Order, PAGE_SHIFT, Pfn, PfnRange};

/// Blocks taken off the lists at a time: while they are away nobody else can have them.
const BATCH: usize = 16;
/// Smallest block that goes back with the first.
const WORTH: Order = Order::new(3).unwrap();

impl<M: Machine> PageAllocator<M> {
    /// Takes a free pageblock that holds memory, for its memory to be moved elsewhere; [`Kind::Isolated`]. It is given
    /// back with [`PageAllocator::free_clean`] (or `free_pages`, with whatever it then holds).
    pub fn take_backed(&self, m: &M) -> Option<Pfn> {
        let here = m.node();
        let nodes = core::iter::once(here).chain((0..self.zones.len()).filter(|n| *n != here));
        for cell in nodes.flat_map(|node| self.zones[node].iter().rev()) {
            if cell.managed.load(Relaxed) == 0 {
                continue;
            }
            let Some(mut zone) = cell.lock.try_lock(m) else { continue };
            if let Some(found) = zone.buddy.find_populated(&self.view(m)) {
                self.budget.charge(u64::from(found.fresh));
                let (pfn, _) = zone.buddy.take(&self.view(m), found, Order::PAGEBLOCK.pages());
                m.page(pfn).set_kind(Kind::Isolated, Order::PAGEBLOCK);
                return Some(pfn);
            }
        }
        None
    }

    /// Puts what the per-CPU lists and the rows hold back into the buddy system.
    pub fn drain(&self, m: &M) {
        self.drain_lists(m);
        self.used_cells().for_each(|cell| self.flush_rows(m, &mut cell.lock.lock(m)));
    }

    /// Puts what the per-CPU lists hold back into the buddy system.
    pub fn drain_lists(&self, m: &M) {
        for (kind, pcp) in self.pcps.iter() {
            let mut pcp = pcp.lock(m);
            let pages = pcp.pages();
            self.evict(m, &mut pcp, kind, pages, true);
        }
    }

    /// Puts back into the buddy system what the per-CPU lists held without use since the last call. To be called now
    /// and then.
    pub fn age(&self, m: &M) {
        self.budget.settle_mark();
        for (kind, pcp) in self.pcps.iter() {
            let mut pcp = pcp.lock(m);
            let idle = pcp.age();
            self.evict(m, &mut pcp, kind, idle, true);
        }
    }

    /// Whether a node has low memory, but no zone of it with as many free pages as `mark` says, beyond what it keeps
    /// for others (the kernel's `pgdat_balanced`). Pages on per-CPU lists do not count.
    pub fn is_short(&self, m: &M, mark: impl Fn(&Watermarks) -> u32) -> bool {
        let top = ZoneKind::Normal;
        let low = ZONES.into_iter().filter(|kind| *kind <= top);
        self.zones.iter().enumerate().any(|(node, zones)| {
            let mut here = low.clone().filter(|kind| zones[*kind as usize].managed.load(Relaxed) != 0).peekable();
            here.peek().is_some()
                && here.all(|kind| {
                    let reserve = if kind < top { self.lowmem_reserve(node, kind, top) } else { 0 };
                    let zone = zones[kind as usize].lock.lock(m);
                    u64::from(zone.free_for(MigrateType::Unmovable)) < u64::from(mark(&zone.marks)) + reserve
                })
        })
    }

    /// Pages that hold memory, free or not.
    #[inline]
    pub fn committed(&self) -> u64 {
        self.budget.committed()
    }

    /// Whether memory is short (see [`Frames::pressure`](crate::machine::Frames::pressure)).
    #[inline]
    pub fn pressed(&self) -> bool {
        self.budget.pressed()
    }

    /// Whether so many pages, if they were wasted, would be little of what there is
    /// ([`Frames::memory`](crate::machine::Frames::memory)).
    #[inline]
    pub fn affords(&self, pages: u64) -> bool {
        self.budget.affords(pages)
    }

    /// Whether memory is short and the caller should see to it that what is free goes back; [`PageAllocator::relieved`]
    /// follows.
    #[inline]
    pub fn strained(&self) -> bool {
        self.budget.strained()
    }

    /// All that was free has gone back. If memory is still short, [`PageAllocator::strained`] is quiet until some more
    /// is taken.
    pub fn relieved(&self) {
        if self.budget.strained() {
            self.budget.yield_mark();
        }
    }

    /// Gives back all free pageblocks, or everything that is free. Returns pages.
    pub fn trim(&self, m: &M, everything: bool) -> u64 {
        if everything {
            self.drain(m);
        }
        self.give_back(m, if everything { Order::ZERO } else { Order::PAGEBLOCK }, u64::MAX, |_| true)
    }

    /// Gives back what lies idle in whole pageblocks beyond what may be wanted again ([`Demand`](super::Demand)), until
    /// [`Machine::now_ms`] is `until`. Returns pages.
    pub fn give_back_excess(&self, m: &M, until: u64) -> u64 {
        let retain = self.retained();
        self.give_back(m, Order::PAGEBLOCK, until, |zone| zone.has_excess(retain))
    }

    /// Whether much of what lies idle beyond that is strewn between what is in use.
    pub fn is_strewn(&self, m: &M) -> bool {
        let retain = self.retained();
        M::LENT && !self.refused.load(Relaxed) && self.used_cells().any(|cell| cell.lock.lock(m).is_strewn(retain))
    }

    /// Gives back what is strewn: huge pages are broken up for it. A call of the system takes 4-6 µs for however little
    /// (many in one vector: 3.5), so long pieces go first. Returns pages.
    #[cold]
    pub fn give_back_strewn(&self, m: &M, until: u64) -> u64 {
        let retain = self.retained();
        self.drain_lists(m);
        let mut pages = self.give_back(m, Order::PAGEBLOCK, until, |zone| zone.has_idle(retain));
        for least in [WORTH, Order::ZERO] {
            pages += self.give_back_rows(m, least.pages(), until, |zone| zone.has_idle(retain));
            pages += self.give_back(m, least, until, |zone| zone.has_idle(retain));
        }
        if m.now_ms() < until {
            self.used_cells().for_each(|cell| cell.lock.lock(m).hush(retain));
        }
        pages
    }

    /// Whether something will have to go back if nothing is wanted from now on.
    pub fn will_idle(&self, m: &M) -> bool {
        let retain = self.retained();
        M::LENT && !self.refused.load(Relaxed) && self.used_cells().any(|cell| cell.lock.lock(m).will_idle(retain))
    }

    /// The zones with memory.
    pub(super) fn used_cells(&self) -> impl Iterator<Item = &Cell> {
        // Of nodes without memory nothing is looked at: each zone lies in a page of its own.
        let nodes = &self.zones[..self.nodes.load(Relaxed) as usize];
        nodes.as_flattened().iter().map(|cell| &**cell).filter(|cell| cell.managed.load(Relaxed) != 0)
    }

    /// Sets how many bytes may lie idle in any case; `u64::MAX` for all.
    pub fn set_retained(&self, bytes: u64) {
        self.not_retained.store(!if bytes == u64::MAX { bytes } else { bytes >> PAGE_SHIFT }, Relaxed);
    }

    /// Pages that may lie idle in any case.
    pub(super) fn retained(&self) -> u64 {
        !self.not_retained.load(Relaxed)
    }

    /// A window of time ends.
    pub fn turn(&self, m: &M) {
        self.refused.store(false, Relaxed);
        self.used_cells().for_each(|cell| cell.lock.lock(m).turn());
    }

    /// Gives the contents of rows of `least` pages or more back, as long as there is `more` to go, the long ones first.
    fn give_back_rows(&self, m: &M, least: u32, until: u64, more: impl Fn(&Zone) -> bool) -> u64 {
        if !M::LENT {
            return 0;
        }
        let mut pages = 0;
        for cell in self.used_cells() {
            while !self.refused.load(Relaxed) && m.now_ms() < until {
                let mut zone = cell.lock.lock(m);
                let row = if more(&zone) { zone.rows.take_backed(&self.view(m), least) } else { None };
                let Some(row) = row else { break };
                zone.away += row.range.pages;
                drop(zone);
                let given = m.discard(row.range);
                let backed = row.contents.extent.len();
                let mut zone = cell.lock.lock(m);
                zone.away -= row.range.pages;
                let clean = zone.clean_pages() + row.range.pages - backed;
                let contents = if given { Contents::of(STATE, row.range.pages) } else { row.contents };
                zone.put_run(&self.view(m), row.range, contents);
                self.settle(clean, zone.clean_pages());
                if given {
                    pages += u64::from(backed);
                } else {
                    // What the system refuses once it would refuse again.
                    self.refused.store(true, Relaxed);
                }
            }
        }
        self.discarded.fetch_add(pages, Relaxed);
        pages
    }

    /// Gives the contents of free blocks of at least `least` back to the system, as long as there is `more` to go.
    /// Small blocks last: what they merge with was given back by then.
    fn give_back(&self, m: &M, least: Order, until: u64, more: impl Fn(&Zone) -> bool) -> u64 {
        if !M::LENT {
            return 0;
        }
        let mut pages = 0;
        for cell in self.used_cells() {
            for order in (least.index()..NR_ORDERS).rev().filter_map(|o| Order::new(o as u8)) {
                loop {
                    let mut batch = [(Pfn::NONE, 0); BATCH];
                    let mut taken = 0;
                    let mut zone = cell.lock.lock(m);
                    while taken < BATCH
                        && more(&zone)
                        && let Some(block) = zone.buddy.take_oldest(&self.view(m), order)
                    {
                        batch[taken] = block;
                        taken += 1;
                        zone.away += order.pages();
                    }
                    drop(zone);
                    let mut refused = false;
                    for (pfn, clean) in &batch[..taken] {
                        // Whole: where the host gave a huge page, all of it is backed.
                        let range = PfnRange::block(*pfn, order);
                        let given = m.discard(range);
                        refused |= !given;
                        pages += if given { u64::from(range.pages - clean) } else { 0 };
                        let state = if given { STATE } else { 0 };
                        let mut zone = cell.lock.lock(m);
                        zone.away -= range.pages;
                        self.free_locked(m, &mut zone, range, state, false, *clean);
                    }
                    // What the system refuses once it would refuse again.
                    if refused {
                        self.refused.store(true, Relaxed);
                    }
                    if refused || taken < BATCH || m.now_ms() >= until {
                        break;
                    }
                }
            }
        }
        self.discarded.fetch_add(pages, Relaxed);
        pages
    }
}
