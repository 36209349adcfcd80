//! The per-CPU page lists at work: served from, filled, emptied; and the reserve of atomic requests
//! ([`super::emergency`] has the half of it that takes no lock).

use core::sync::atomic::Ordering::Relaxed;

use super::alloc::{Request, Taken};
use super::buddy::{Need, STATE, Want};
use super::percpu::{self, Bin, Pcp};
use super::watermark::{self, Mark};
use super::{Cell, MigrateType, PageAllocator};
use crate::gfp::Gfp;
use crate::machine::{Frames, Machine, ZoneKind};
use crate::page::{Kind, flag};
use crate::sync::Guard;
use crate::types::{NR_ORDERS, Order, Pfn, PfnRange};

/// Most blocks fetched besides the one asked for.
const MOST_EXTRA: usize = 15;
/// Below this many committed pages a process counts as small: nothing is populated ahead of need.
const SMALL_PROCESS: u64 = 512;
/// Below this many, where memory is lent, CPUs have no lists yet: they take a page, and more for what they hold.
const TINY_PROCESS: u64 = 64;
/// Pages of the reserve in a zone at first, populated and kept for requests that may not fault.
pub(super) const RESERVE: u32 = 32;
/// Most pages to populate at once.
const STEP: u32 = 1024;

/// What a request brings along for the per-CPU lists.
pub(super) struct Extra {
    /// Blocks of the request's size wanted besides it.
    pub wanted: u32,
    /// What is cut from a clean block is likely to be written to as a whole.
    pub dense: bool,
    /// Cut from one clean block, whose first part is the request's: adjacent, in this range.
    pub chunk: Option<PfnRange>,
    /// Or picked one by one.
    found: [Pfn; MOST_EXTRA],
    count: usize,
}

impl Extra {
    pub fn new(wanted: u32) -> Extra {
        Extra {
            wanted: wanted.min(MOST_EXTRA as u32),
            dense: true,
            chunk: None,
            found: [Pfn::NONE; MOST_EXTRA],
            count: 0,
        }
    }

    pub fn add(&mut self, pfn: Pfn) {
        self.found[self.count] = pfn;
        self.count += 1;
    }
}

/// Pages in the zone of a reserve of `all`. Where memory is lent the rest is in the emergency pool: there a lock's
/// holder may be interrupted.
fn part_in_zone<L: Frames>(all: u32) -> u32 {
    if L::LENT { all.div_ceil(2) } else { all }
}

impl<M: Machine> PageAllocator<M> {
    /// Takes a block from this CPU's lists.
    #[inline]
    pub(super) fn take_listed(&self, m: &M, gfp: Gfp, pages: u32, node: Option<usize>, bin: Bin) -> Option<Taken> {
        let kind = self.home_zone(gfp);
        let mut pcp = self.pcps.get(m.cpu(), kind as usize)?.try_lock_as(m, gfp.may_block())?;
        if node.is_some_and(|node| node != pcp.node()) {
            return None;
        }
        let range = PfnRange::new(pcp.pop(bin, |p| m.page(p))?, pages);
        Some(Taken { range, state: m.page(range.start).flags() & STATE, opened: PfnRange::EMPTY })
    }

    /// The zone whose lists serve a request: the highest that suits, but not an empty one above NORMAL.
    #[inline]
    fn home_zone(&self, gfp: Gfp) -> ZoneKind {
        let top = super::alloc::top_zone(gfp);
        if top <= ZoneKind::Normal {
            return top;
        }
        let has = |kind: &ZoneKind| self.zones.iter().any(|node| node[*kind as usize].managed.load(Relaxed) != 0);
        let kinds = [ZoneKind::Movable, ZoneKind::HighMem];
        kinds.into_iter().filter(|kind| *kind <= top).find(has).unwrap_or(ZoneKind::Normal)
    }

    /// Keeps a freed block on this CPU's lists. False where they do not take it.
    #[inline]
    pub(super) fn keep(&self, m: &M, range: PfnRange, order: Order, bin: Bin, hot: bool, may_block: bool) -> bool {
        let page = m.page(range.start);
        let (kind, node) = (page.zone(), page.node());
        let Some(mut pcp) = self.pcps.get(m.cpu(), kind).and_then(|pcp| pcp.try_lock_as(m, may_block)) else {
            return false;
        };
        if node != pcp.node() || !(pcp.takes(range.pages) || self.widen(m, &mut pcp, kind, range.pages)) {
            return false;
        }
        page.set_home(kind, node);
        pcp.push(bin, range, order, hot, |p| m.page(p));
        let excess = pcp.excess();
        if excess > 0 {
            self.evict(m, &mut pcp, kind, excess, may_block);
        }
        true
    }

    /// Sets what a CPU's lists may keep by what the zone has now; whether that has room for `pages`.
    #[cold]
    fn widen(&self, m: &M, pcp: &mut Guard<'_, Pcp, M>, kind: usize, pages: u32) -> bool {
        let node = pcp.node();
        let Some(cell) = self.zones.get(node).map(|zones| &zones[kind]) else { return false };
        pcp.set_up(node, percpu::high(cell.managed.load(Relaxed), m.known_cpus()));
        pcp.takes(pages)
    }

    /// Puts at least `pages` pages from the cold ends of a CPU's lists back into the buddy system.
    #[cold]
    pub(super) fn evict(&self, m: &M, pcp: &mut Guard<'_, Pcp, M>, kind: usize, pages: u32, may_block: bool) {
        if pages == 0 {
            return;
        }
        let Some(cell) = self.zones.get(pcp.node()).map(|zones| &zones[kind]) else { return };
        let Some(mut zone) = cell.lock.acquire(m, may_block) else { return };
        let mut left = pages;
        while left > 0
            && let Some(range) = pcp.evict(|p| m.page(p))
        {
            let state = m.page(range.start).flags() & STATE;
            self.free_locked(m, &mut zone, range, state, false, 0);
            left = left.saturating_sub(range.pages);
        }
        let node = pcp.node();
        // By what is in use, not by what there is: after a fall the lists are not to keep a part of the peak.
        let used = u32::try_from(zone.used()).unwrap_or(u32::MAX);
        pcp.set_up(node, percpu::high(used, m.known_cpus()));
    }

    /// What a request that the lists did not serve should bring along for them. Makes the lists, if there are none.
    #[cold]
    pub(super) fn plan(&self, m: &M, request: &Request, bin: Bin) -> Extra {
        let kind = self.home_zone(request.gfp) as usize;
        let cpu = m.cpu();
        // What does not fit after all must be freed, which may take a wait.
        if !request.gfp.may_block() || self.pcps.get(cpu, kind).is_none() && !self.make_lists(m, request, cpu, kind) {
            return Extra::new(0);
        }
        Extra::new(bin.batch() - 1)
    }

    /// Makes the lists of a CPU for a zone.
    fn make_lists(&self, m: &M, request: &Request, cpu: usize, kind: usize) -> bool {
        let node = m.node();
        let Some(cell) = self.zones.get(node).map(|zones| &zones[kind]) else { return false };
        let managed = cell.managed.load(Relaxed);
        // No growth for this: a machine without memory has nothing to keep either.
        let gfp = request.gfp.without(Gfp::IO | Gfp::HIGHMEM | Gfp::MOVABLE).with(Gfp::ZERO);
        let order = super::raw::PCP_ORDER;
        if managed < 4 * order.pages() || M::LENT && self.budget.committed() < TINY_PROCESS {
            return false;
        }
        let own = Request::new(gfp, order, order.pages(), node);
        let Some(taken) = self.try_low(m, &own) else { return false };
        let page = m.page(taken.range.start);
        let making = self.making.lock(m);
        let made = self.pcps.give(m, cpu, kind, &taken, node, percpu::high(managed, m.known_cpus()));
        drop(making);
        if made {
            page.set_kind(Kind::Reserved, order);
        } else {
            self.free_frames(m, taken.range, 0, true);
        }
        made
    }

    /// Puts what a request brought along on the lists of the CPU that it is on now.
    #[cold]
    pub(super) fn stash(&self, m: &M, request: &Request, taken: &mut Taken, extra: &Extra, bin: Bin) {
        let first = taken.range.start;
        let pages = request.pages;
        if let Some(chunk) = extra.chunk
            && extra.dense
            && taken.state & flag::UNBACKED != 0
            && request.gfp.may_io()
            && request.gfp.may_block()
            && self.budget.committed() > SMALL_PROCESS
        {
            // One call for 16 pages costs 0.6 µs a page, a fault for each 1.3 to 1.6 µs. A huge page takes one fault.
            if !m.is_huge(chunk.start) {
                m.populate(chunk);
            }
            taken.state &= !flag::UNBACKED;
        }
        let page = m.page(first);
        let (kind, node) = (page.zone(), page.node());
        let mut pcp = self
            .pcps
            .get(m.cpu(), kind)
            .and_then(|pcp| pcp.try_lock_as(m, request.gfp.may_block()))
            .filter(|pcp| pcp.node() == node);
        let mut place = |at: Pfn, state: u32| {
            let head = m.page(at);
            head.set_home(kind, node);
            head.set(state);
            let range = PfnRange::new(at, pages);
            match &mut pcp {
                Some(pcp) => pcp.push(bin, range, request.order, false, |p| m.page(p)),
                None => {
                    self.free_frames(m, range, state, true);
                }
            }
        };
        if let Some(chunk) = extra.chunk {
            (1..chunk.pages / pages).for_each(|i| place(first.add(i * pages), taken.state));
        }
        for at in &extra.found[..extra.count] {
            place(*at, m.page(*at).flags() & STATE);
        }
    }

    /// Fills up the reserve of the node's NORMAL zone, where it is worth it: from the second MiB on, or once an atomic
    /// request was seen. Populates, so only for requests that may do so.
    pub(super) fn top_up(&self, m: &M, node: usize) {
        let part = match self.atomic_seen.load(Relaxed) {
            true => 1,
            false if self.budget.committed() > SMALL_PROCESS => 2,
            false => return,
        };
        let cell: &Cell = &self.zones[node][ZoneKind::Normal as usize];
        if cell.managed.load(Relaxed) < 8 * RESERVE {
            return;
        }
        // Read once: it may be set meanwhile.
        let all = self.reserve_goal.load(Relaxed);
        let goal = part_in_zone::<M>(all);
        self.emergency.set_goal((all - goal) / part);
        if self.emergency.is_low() {
            self.fill_emergency(m, node, (all - goal) / part);
        }
        if self.emergency.overflows() {
            self.empty_emergency(m);
        }
        let (goal, has) = (goal / part, cell.reserve.load(Relaxed));
        if has <= goal / 2 && has < goal {
            self.fill_reserve(m, cell, (goal - has).min(STEP));
        }
    }

    pub(super) fn set_reserve(&self, pages: u32) {
        self.reserve_goal.store(pages, Relaxed);
    }

    /// The part of the reserve that lies in the zone.
    pub(super) fn zone_reserve(&self) -> u32 {
        part_in_zone::<M>(self.reserve_goal.load(Relaxed))
    }

    /// Whether the reserve for atomic requests is kept up already.
    #[inline]
    pub fn expects_atomic(&self) -> bool {
        self.atomic_seen.load(Relaxed)
    }

    /// Fills the reserve for atomic requests, of which there may be some from now on. Called with leave to enter the
    /// system.
    pub fn expect_atomic(&self, m: &M) {
        self.keep_reserve(m, self.reserve_goal.load(Relaxed));
    }

    /// Keeps `pages` pages for atomic requests from now on, and populates as many on the caller's node now. Returns how
    /// many it has. What was kept beyond that is ordinary free memory. Called with leave to enter the system.
    pub fn keep_reserve(&self, m: &M, pages: u32) -> u32 {
        let less = pages < self.reserve_goal.swap(pages, Relaxed);
        self.atomic_seen.store(true, Relaxed);
        for cell in self.zones.as_flattened() {
            // Written to, so that a request that comes by takes no fault.
            cell.managed.fetch_add(0, Relaxed);
            drop(cell.lock.lock(m));
        }
        let node = m.node();
        let cell: &Cell = &self.zones[node][ZoneKind::Normal as usize];
        let in_zone = part_in_zone::<M>(pages);
        let in_pool = pages - in_zone;
        self.emergency.set_goal(in_pool);
        if less {
            self.empty_emergency(m);
            self.zones.as_flattened().iter().for_each(|cell| self.release_reserve(m, cell, in_zone));
        }
        let mut before = u32::MAX;
        loop {
            let has = cell.reserve.load(Relaxed) + self.emergency.pages();
            if has >= pages || has == before {
                return has;
            }
            before = has;
            let step = (pages - has).min(STEP);
            // A block of that size, to be freed again, makes the zone grow if it must.
            let order = Order::holding(step as usize).unwrap_or(Order::MAX);
            match self.alloc_pages(m, Gfp::KERNEL, order, Some(node)) {
                Some(block) => self.free_as(m, block, order, None, true, true),
                None => return has,
            };
            self.fill_emergency(m, node, in_pool);
            let more = in_zone.saturating_sub(cell.reserve.load(Relaxed)).min(STEP);
            if more > 0 {
                self.fill_reserve(m, cell, more);
            }
        }
    }

    /// Makes what a zone keeps beyond `goal` pages ordinary free memory.
    fn release_reserve(&self, m: &M, cell: &Cell, goal: u32) {
        let (view, mut zone) = (self.view(m), cell.lock.lock(m));
        for order in (0..NR_ORDERS).rev().filter_map(|order| Order::new(order as u8)) {
            let need = Need::block(order, MigrateType::HighAtomic, Want::Backed);
            while zone.buddy.free_of(MigrateType::HighAtomic) >= goal + order.pages()
                && let Some(found) = zone.buddy.find(&view, need)
            {
                let (pfn, state) = zone.buddy.take(&view, found, order.pages());
                m.page(pfn).clear(flag::RESERVE);
                self.free_locked(m, &mut zone, PfnRange::block(pfn, order), state, false, 0);
            }
        }
        cell.reserve.store(zone.buddy.free_of(MigrateType::HighAtomic), Relaxed);
    }

    #[cold]
    fn fill_reserve(&self, m: &M, cell: &Cell, pages: u32) {
        let Some(order) = Order::holding(pages as usize) else { return };
        let mut zone = cell.lock.lock(m);
        let free = u64::from(zone.free_for(MigrateType::Unmovable));
        if !watermark::passes(free, u64::from(pages), u64::from(zone.marks.low), 0) {
            return;
        }
        let view = self.view(m);
        let buddy = &mut zone.buddy;
        let need = Need { order, pages, list: MigrateType::Unmovable, want: Want::Any };
        let found = buddy.find(&view, need).or_else(|| buddy.fall_back(&view, need));
        let Some(found) = found else { return };
        if found.fresh > 0 && !self.budget.try_charge(u64::from(found.fresh), Mark::Low, Gfp::KERNEL) {
            return;
        }
        let (pfn, state) = buddy.take(&view, found, pages);
        drop(zone);
        let range = PfnRange::new(pfn, pages);
        m.populate(range);
        // Their descriptors and class bytes as well: they are written when the pages are handed out.
        for page in range.iter() {
            m.page(page).set_kind(Kind::Tail, Order::ZERO);
            m.class(page).store(0, Relaxed);
        }
        let mut zone = cell.lock.lock(m);
        self.free_locked(m, &mut zone, range, state & !flag::UNBACKED, true, 0);
        cell.reserve.store(zone.buddy.free_of(MigrateType::HighAtomic), Relaxed);
    }
}
