//! Allocation: zonelists, watermarks and the slow path.

use core::sync::atomic::Ordering::Relaxed;

use super::buddy::{self, Need, STATE, Want};
use super::lists::Extra;
use super::percpu::Bin;
use super::phase::{self, Cost};
use super::watermark::{self, Mark, Watermarks};
use super::{Cell, MigrateType, PageAllocator, Zone, raw};
use crate::gfp::Gfp;
use crate::machine::{MAX_NODES, Machine, ZoneKind};
use crate::page::{Kind, flag};
use crate::types::{Order, PAGEBLOCK_PAGES, Pfn, PfnRange};

/// A request, taken apart once.
#[derive(Clone, Copy)]
pub(super) struct Request {
    pub gfp: Gfp,
    /// Order of the block it is cut from.
    pub order: Order,
    /// Pages it keeps.
    pub pages: u32,
    /// What the number of the first one is a multiple of, where they are a run out of rows.
    pub align: u32,
    /// The highest zone that suits.
    pub top: ZoneKind,
    /// The node it starts at.
    pub node: usize,
    pub list: MigrateType,
    pub want: Want,
    /// A run out of rows, which needs no alignment but `align`.
    pub run: bool,
}

impl Request {
    pub fn new(gfp: Gfp, order: Order, pages: u32, node: usize) -> Request {
        let want = if gfp.has(Gfp::ZERO) { Want::Zero } else { Want::Any };
        Request { gfp, order, pages, align: 1, top: top_zone(gfp), node, list: MigrateType::of(gfp), want, run: false }
    }

    /// Whether it promises not to fault, block or call the system: an atomic one.
    fn no_fault(&self) -> bool {
        self.gfp.no_fault()
    }
}

/// Frames just taken off the free lists: nobody else knows them.
pub(super) struct Taken {
    pub range: PfnRange,
    /// Their state bits.
    pub state: u32,
    /// The pageblocks that were opened for them: none of their pages held memory.
    pub opened: PfnRange,
}

/// Why a zone did not serve a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// No block, or not above the mark.
    Empty,
    /// Only clean blocks, and the budget has no room for them.
    Budget,
    /// The lock was not to be had.
    Busy,
}

/// How a walk of the zonelist ended.
enum Walk {
    Taken(Taken),
    /// This zone should be grown first.
    Grow(usize, ZoneKind),
    /// Nothing; whether for the budget's sake.
    Nothing {
        budget: bool,
    },
}

/// The highest zone that suits a request (the kernel's `gfp_zone`).
pub(super) const fn top_zone(gfp: Gfp) -> ZoneKind {
    if gfp.has(Gfp::DMA) {
        ZoneKind::Dma
    } else if gfp.has(Gfp::DMA32) {
        ZoneKind::Dma32
    } else if gfp.has(Gfp::HIGHMEM) {
        if gfp.has(Gfp::MOVABLE) { ZoneKind::Movable } else { ZoneKind::HighMem }
    } else {
        ZoneKind::Normal
    }
}

/// Whether a request whose highest zone is `top` may grow `kind`: not the scarce low zones on another's behalf.
fn grows(top: ZoneKind, kind: ZoneKind) -> bool {
    kind == top || (top > ZoneKind::Normal && kind >= ZoneKind::Normal)
}

/// Frames below this number lie below 4 GiB.
const DMA32_END: Pfn = Pfn(1 << 20);

/// The part of what is in use that may lie idle besides.
const IDLE_PART: u64 = 32;
/// The part of what is in use that may lie strewn between it besides.
const STREWN_PART: u64 = 16;

/// Growth in a row for one request. More than one where the new range is not aligned for the largest order.
pub(super) const GROWTHS: u32 = 4;

impl<M: Machine> PageAllocator<M> {
    /// Allocates a block of `2^order` adjacent frames, aligned to its size; [`Kind::Allocated`] with one reference.
    /// `node` is the node to start at (default: the caller's).
    ///
    /// The head carries [`flag::ZERO`] where the whole block reads zero, which `__GFP_ZERO` makes sure of (but for
    /// HIGHMEM, which has no address to write to: the caller looks at the flag), and [`flag::UNBACKED`] where touching
    /// it faults. `None` where there is no memory within the limits, or the flags contradict each other.
    pub fn alloc_pages(&self, m: &M, gfp: Gfp, order: Order, node: Option<usize>) -> Option<Pfn> {
        let bin = Bin::block(order, MigrateType::of(gfp));
        let taken = self.get(m, gfp, order, order.pages(), node, bin)?;
        Some(self.hand_out(m, &taken, gfp, Kind::Allocated, order))
    }

    /// Frees a block that is known to be in `state`, or keeps it on this CPU's lists where nothing is known. False, and
    /// nothing done, where that needs a wait and `may_block` is not set. A block that is free already is left alone
    /// (whoever can tell the user checks before).
    pub(super) fn free_as(
        &self,
        m: &M,
        pfn: Pfn,
        order: Order,
        state: Option<u32>,
        hot: bool,
        may_block: bool,
    ) -> bool {
        let page = m.page(pfn);
        let range = PfnRange::block(pfn, order);
        match page.kind() {
            kind if kind.heads_nothing() => return true,
            // A slab marks every page of its block.
            Kind::Slab => range.iter().for_each(|p| m.page(p).set_kind(Kind::Tail, Order::ZERO)),
            _ => {}
        }
        let Some(state) = state else {
            return (!page.has(flag::RESERVE)
                && Bin::block(order, self.blocks.get(pfn))
                    .is_some_and(|bin| self.keep(m, range, order, bin, hot, may_block)))
                || self.free_frames(m, range, 0, may_block);
        };
        self.free_frames(m, range, state, may_block)
    }

    /// Makes frames just taken the caller's.
    pub(super) fn hand_out(&self, m: &M, taken: &Taken, gfp: Gfp, kind: Kind, order: Order) -> Pfn {
        let mut state = taken.state;
        if gfp.has(Gfp::ZERO) && state & flag::ZERO == 0 && raw::zero(m, taken) {
            state = flag::ZERO;
        }
        let page = m.page(taken.range.start);
        let compound = if gfp.has(Gfp::COMP) && order > Order::ZERO { flag::COMPOUND } else { 0 };
        let reserve = page.flags() & flag::RESERVE;
        page.set_home(page.zone(), page.node());
        page.set(state | compound | reserve);
        page.set_refs(1);
        page.set_mapcount(-1);
        page.set_kind(kind, order);
        taken.range.start
    }

    /// Takes frames for a request: from this CPU's lists, where `bin` says which, else from a zone.
    #[inline]
    pub(super) fn get(
        &self,
        m: &M,
        gfp: Gfp,
        order: Order,
        pages: u32,
        node: Option<usize>,
        bin: Option<Bin>,
    ) -> Option<Taken> {
        if gfp.check().is_err() {
            return None;
        }
        // An atomic request looks into the reserve first; where memory is lent, only what lies there is sure to take no
        // fault.
        let first = bin.filter(|_| !gfp.no_fault());
        let cached = first.and_then(|bin| self.take_listed(m, gfp, pages, node, bin));
        cached.or_else(|| {
            #[allow(clippy::unnecessary_min_or_max)] // where there is one node
            let node = node.unwrap_or_else(|| m.node()).min(MAX_NODES - 1);
            self.get_slow(m, Request::new(gfp, order, pages, node), bin)
        })
    }

    /// Takes frames for a request from a zone.
    #[cold]
    pub(super) fn get_slow(&self, m: &M, mut request: Request, bin: Option<Bin>) -> Option<Taken> {
        // Nothing there, as at the start: a look at every zone and list would be five page faults in vain.
        if !may_grow(&request) && self.managed.load(Relaxed) == 0 {
            return None;
        }
        if !self.grouping.load(Relaxed) {
            request.list = MigrateType::Unmovable;
        }
        if request.no_fault() {
            self.atomic_seen.store(true, Relaxed);
        } else if M::LENT && may_grow(&request) {
            self.top_up(m, request.node);
        }
        let mut extra = match bin {
            Some(bin) => self.plan(m, &request, bin),
            None => Extra::new(0),
        };
        let mut taken = match self.walk(m, &request, Mark::Low, &mut extra) {
            Walk::Taken(taken) => taken,
            ended => {
                let listed = bin.filter(|_| request.no_fault() && !M::LENT);
                let node = Some(request.node).filter(|_| request.gfp.has(Gfp::THISNODE));
                let listed = listed.and_then(|bin| self.take_listed(m, request.gfp, request.pages, node, bin));
                listed.or_else(|| self.slow(m, &request, ended)).or_else(|| self.take_emergency(m, &request))?
            }
        };
        if !taken.opened.is_empty() && may_grow(&request) {
            self.open(m, &taken);
        }
        if let Some(bin) = bin {
            self.stash(m, &request, &mut taken, &extra, bin);
        }
        Some(taken)
    }

    /// Says whether the pageblocks that were opened for a request are to be huge pages.
    #[cold]
    fn open(&self, m: &M, taken: &Taken) {
        let Some(cell) = self.cell_of(m.page(taken.range.start)) else { return };
        let list = self.blocks.get(taken.range.start);
        // An eighth counts where at most an eighth is written to.
        let little = list == MigrateType::Movable && self.cost() == Cost::Little;
        self.opened.fetch_add(taken.opened.pages / if little { 8 } else { 1 }, Relaxed);
        for at in taken.opened.iter().step_by(PAGEBLOCK_PAGES as usize) {
            let look = cell.lock.lock(m).phases.of(list).look();
            // One of another type by now says nothing of this one.
            let look = look.filter(|block| self.blocks.get(*block) == list);
            let seen = look.and_then(|block| Some((block, m.backed(block)?)));
            let mut zone = cell.lock.lock(m);
            let used = zone.used();
            let seen = seen.map(|(block, backed)| buddy::count_backed(&self.view(m), block, &backed));
            let phase = zone.phases.of(list);
            let mut full = None;
            if let Some(seen) = seen {
                full = look.filter(|_| phase.learn(list, seen));
                if list == MigrateType::Movable {
                    let before = self.cost.swap(phase.cost() as u8, Relaxed);
                    self.dearer.fetch_or(before == Cost::Little as u8 && phase.cost() != Cost::Little, Relaxed);
                }
            }
            // While the system makes a huge page of small ones they are away, and an atomic request would fault.
            let may = !self.expects_atomic();
            let huge = phase.open(at, used, may);
            let gather = if may && !self.pressed() { phase.gather(full, used, !m.looks_below()) } else { None };
            drop(zone);
            m.advise_frames(PfnRange::block(at, Order::PAGEBLOCK), huge);
            let Some(block) = gather else { continue };
            // One that was looked at a while ago may be something else by now.
            if full.is_some() || self.is_full_still(m, block, list) {
                m.gather_frames(PfnRange::block(block, Order::PAGEBLOCK));
            }
        }
    }

    /// Whether the pageblock at `block`, which was full, is, and still of type `list`.
    fn is_full_still(&self, m: &M, block: Pfn, list: MigrateType) -> bool {
        let full = |backed: [u64; _]| phase::is_full(backed.iter().map(|word| word.count_ones()).sum());
        (self.blocks.get(block) == MigrateType::Movable) == (list == MigrateType::Movable)
            && m.backed(block).is_some_and(full)
    }

    /// Takes frames from a zone that keeps its low mark, without trying harder.
    pub(super) fn try_low(&self, m: &M, request: &Request) -> Option<Taken> {
        match self.walk(m, request, Mark::Low, &mut Extra::new(0)) {
            Walk::Taken(taken) => Some(taken),
            _ => None,
        }
    }

    /// Tries the zones that suit, in order.
    fn walk(&self, m: &M, request: &Request, mark: Mark, extra: &mut Extra) -> Walk {
        let mut budget = false;
        let nodes = (self.nodes.load(Relaxed) as usize).max(request.node + 1);
        // The preferred node first, then by number: the distances that a machine folds into its numbering.
        let others = (0..nodes).filter(|n| *n != request.node && !request.gfp.has(Gfp::THISNODE));
        for node in core::iter::once(request.node).chain(others) {
            for kind in super::ZONES.into_iter().rev() {
                let cell = &self.zones[node][kind as usize];
                if !self.suits(m, request, node, kind) {
                    continue;
                }
                if cell.managed.load(Relaxed) != 0 {
                    match self.take(m, node, kind, request, mark, extra) {
                        Ok(taken) => return Walk::Taken(taken),
                        Err(Refused::Budget) => {
                            budget = true;
                            continue;
                        }
                        Err(Refused::Busy) => continue,
                        Err(Refused::Empty) => {}
                    }
                }
                if mark == Mark::Low && may_grow(request) && grows(request.top, kind) && !cell.exhausted.load(Relaxed) {
                    return Walk::Grow(node, kind);
                }
            }
        }
        Walk::Nothing { budget }
    }

    /// Whether the request may be served from this zone.
    fn suits(&self, m: &M, request: &Request, node: usize, kind: ZoneKind) -> bool {
        if kind <= request.top {
            return true;
        }
        // A machine whose ordinary memory lies wholly below 4 GiB (i386) has no DMA32 zone: the flag means nothing
        // there.
        request.top == ZoneKind::Dma32
            && kind == ZoneKind::Normal
            && self.zones[node][kind as usize].managed.load(Relaxed) != 0
            && self.zones[node][kind as usize]
                .lock
                .acquire(m, request.gfp.may_block())
                .is_some_and(|zone| zone.span.1 <= DMA32_END)
    }

    /// Takes frames from one zone. Where the zone cannot grow instead, what lies in rows serves all requests.
    fn take(
        &self,
        m: &M,
        node: usize,
        kind: ZoneKind,
        request: &Request,
        mark: Mark,
        extra: &mut Extra,
    ) -> Result<Taken, Refused> {
        let cell: &Cell = &self.zones[node][kind as usize];
        let lowmem = if kind < request.top { self.lowmem_reserve(node, kind, request.top) } else { 0 };
        let mut zone = cell.lock.acquire(m, request.gfp.may_block()).ok_or(Refused::Busy)?;
        let taken = self.take_locked(m, cell, &mut zone, request, mark, lowmem, extra);
        let grows = mark == Mark::Low && may_grow(request) && !cell.exhausted.load(Relaxed);
        let reserve_only = M::LENT && request.no_fault();
        let rows_help = !grows && !reserve_only && zone.rows.free_pages() > 0;
        if matches!(taken, Err(Refused::Empty)) && rows_help {
            self.flush_rows(m, &mut zone);
            return self.take_locked(m, cell, &mut zone, request, mark, lowmem, extra);
        }
        taken
    }

    #[allow(clippy::too_many_arguments)]
    fn take_locked(
        &self,
        m: &M,
        cell: &Cell,
        zone: &mut Zone,
        request: &Request,
        mark: Mark,
        lowmem: u64,
        extra: &mut Extra,
    ) -> Result<Taken, Refused> {
        let view = self.view(m);
        let pages = request.pages;
        if request.no_fault() {
            let need = Need { order: request.order, pages, list: MigrateType::HighAtomic, want: Want::Backed };
            if let Some(found) = zone.buddy.find(&view, need) {
                let block = zone.buddy.take(&view, found, pages);
                if M::LENT && self.emergency.is_low() {
                    self.balance_emergency(m, zone);
                }
                cell.reserve.store(zone.buddy.free_of(MigrateType::HighAtomic), Relaxed);
                zone.allocs += 1;
                return Ok(Taken { range: PfnRange::new(block.0, pages), state: block.1, opened: PfnRange::EMPTY });
            }
            // What counts as backed elsewhere may hold pages that were never touched.
            if M::LENT {
                return Err(Refused::Empty);
            }
        }
        let level = zone.marks.mark(mark, request.gfp);
        let level = if level == 0 { 0 } else { u64::from(level) + lowmem };
        let rows = if request.run { zone.rows.free_pages() } else { 0 };
        let leaves = |zone: &Zone, pages: u32| {
            watermark::passes(u64::from(zone.free_for(request.list) + rows), u64::from(pages), level, 0)
        };
        if !leaves(zone, pages) {
            return Err(Refused::Empty);
        }
        if mark == Mark::Low && may_grow(request) && self.budget.overdrawn() {
            // Extents overestimate what is backed: the slow path finds out what is.
            return Err(Refused::Budget);
        }
        let mut need = Need { order: request.order, pages, list: request.list, want: request.want };
        if request.run {
            match self.take_run(m, zone, request, mark) {
                Err(Refused::Budget) => need.want = Want::Backed,
                taken => return taken,
            }
        }
        let (mut found, mut cut);
        loop {
            let buddy = &mut zone.buddy;
            found = match buddy.find_anywhere(&view, need) {
                Some(found) => found,
                None if need.want == Want::Backed => return Err(Refused::Budget),
                None => return Err(Refused::Empty),
            };
            cut = pages;
            if found.fresh == 0 {
                break;
            }
            if extra.wanted > 0 && found.room >= 2 * pages {
                cut = (pages * (1 + extra.wanted)).min(found.room) / pages * pages;
                if !leaves(zone, cut) {
                    cut = pages;
                }
            }
            if self.budget.try_charge(u64::from(found.fresh + cut - pages), mark, request.gfp) {
                break;
            }
            // The budget has no room for that much more memory, but what is backed already may be used.
            if cut > pages {
                extra.wanted = 0;
            } else {
                need.want = Want::Backed;
            }
        }
        let opened = zone.buddy.opens(&view, found, cut);
        let block = zone.buddy.take(&view, found, cut);
        zone.note_taken();
        if cut > pages {
            extra.chunk = Some(PfnRange::new(block.0, cut));
            extra.dense = zone.phases.of(request.list).is_written();
        } else if found.room == 0 {
            for _ in 0..extra.wanted {
                let more = zone.buddy.find(&view, need);
                let Some(found) = more.filter(|found| found.fresh == 0 && leaves(zone, pages)) else { break };
                extra.add(zone.buddy.take(&view, found, pages).0);
            }
        }
        Ok(Taken { range: PfnRange::new(block.0, pages), state: block.1, opened })
    }

    /// Pages of a zone that a request for a higher zone must leave.
    pub(super) fn lowmem_reserve(&self, node: usize, kind: ZoneKind, top: ZoneKind) -> u64 {
        let above = &self.zones[node][kind as usize + 1..=top as usize];
        watermark::lowmem_reserve(kind, above.iter().map(|cell| u64::from(cell.managed.load(Relaxed))).sum())
    }

    /// Takes frames from a zone that keeps its min mark.
    fn last_try(&self, m: &M, request: &Request) -> Option<Taken> {
        match self.walk(m, request, Mark::Min, &mut Extra::new(0)) {
            Walk::Taken(taken) => Some(taken),
            _ => None,
        }
    }

    /// Where merging has made more count as backed than the limit allows, some of that is not: handing it out would
    /// break the limit, so all that is free goes back first.
    fn rebalance(&self, m: &M, gfp: Gfp) {
        if gfp.may_io() && self.budget.overdrawn() {
            self.trim(m, true);
        }
    }

    /// What is left to try when no zone keeps its low mark.
    #[cold]
    fn slow(&self, m: &M, request: &Request, mut ended: Walk) -> Option<Taken> {
        let gfp = request.gfp;
        // More memory from the machine, while it has any.
        for _ in 0..GROWTHS + MAX_ZONES {
            if !matches!(ended, Walk::Grow(..)) {
                break;
            }
            // Who asked meanwhile may have grown it: 32 threads that each did so had eighteen times the addresses that
            // they used, and waited for the address space's lock.
            let _growing = self.growing.lock(m);
            ended = self.walk(m, request, Mark::Low, &mut Extra::new(0));
            if let Walk::Grow(node, kind) = ended {
                self.grow(m, node, kind, request);
                ended = self.walk(m, request, Mark::Low, &mut Extra::new(0));
            }
        }
        if let Walk::Taken(taken) = ended {
            return Some(taken);
        }
        // Below low: what lies idle goes back if the budget is what lacks, then down to the min mark.
        let starved = matches!(ended, Walk::Nothing { budget: true });
        if starved && gfp.may_io() && gfp.may_block() {
            self.trim(m, false);
            self.rebalance(m, gfp);
        }
        if let Some(taken) = self.last_try(m, request) {
            return Some(taken);
        }
        if !gfp.may_block() {
            return None;
        }
        // The other CPUs' lists.
        self.drain(m);
        self.rebalance(m, gfp);
        if let Some(taken) = self.last_try(m, request) {
            return Some(taken);
        }
        if gfp.has(Gfp::NORETRY) {
            return None;
        }
        if gfp.may_io() {
            if M::LENT
                && self.trim(m, true) > 0
                && let Some(taken) = self.last_try(m, request)
            {
                return Some(taken);
            }
            // A zone that was exhausted may not be now.
            for kind in super::ZONES.into_iter().rev().filter(|kind| grows(request.top, *kind)) {
                if self.grow(m, request.node, kind, request)
                    && let Some(taken) = self.last_try(m, request)
                {
                    return Some(taken);
                }
            }
        }
        if gfp.has(Gfp::NOFAIL) {
            // All that is there; then it fails nevertheless: nobody else would ever free anything here.
            let request = Request { gfp: gfp.with(Gfp::MEMALLOC).without(Gfp::NOMEMALLOC), ..*request };
            if let Some(taken) = self.last_try(m, &request) {
                return Some(taken);
            }
        }
        None
    }

    /// Brings more frames of a zone online; called without locks. False where the machine has none.
    fn grow(&self, m: &M, node: usize, kind: ZoneKind, request: &Request) -> bool {
        let cell = &self.zones[node][kind as usize];
        // Enough that the request leaves the low mark of the zone as it will be.
        let managed = cell.managed.load(Relaxed);
        if managed > 0 {
            self.learn_pressure(m);
        }
        let marks = Watermarks::of(u64::from(managed) + 2 * u64::from(request.pages) + u64::from(PAGEBLOCK_PAGES));
        let pages = (request.order.pages() + marks.high).next_multiple_of(PAGEBLOCK_PAGES);
        let online =
            |order: Order| if cell.shrunk.load(Relaxed) { self.bring_online(m, node, cell, order) } else { None };
        let new = || m.grow(node, kind, pages).or_else(|| m.grow(node, kind, PAGEBLOCK_PAGES));
        let mut come = 0;
        while come < pages {
            let mut range = online(request.order);
            let was = range.is_some();
            if come == 0 {
                range = range.or_else(new).or_else(|| online(Order::ZERO));
            }
            let Some(range) = range else { break };
            self.add_range(m, node, kind, range, if M::LENT { STATE } else { flag::ZERO });
            // What is new is enough.
            come = if was { come + range.pages } else { pages };
        }
        cell.exhausted.store(come == 0, Relaxed);
        come > 0
    }
}

/// Zones that one request may find exhausted before it stops growing.
pub(super) const MAX_ZONES: u32 = (MAX_NODES * crate::machine::NR_ZONES) as u32;

fn may_grow(request: &Request) -> bool {
    request.gfp.may_io() && request.gfp.may_block()
}

impl Zone {
    /// Pages in use, those on per-CPU lists included.
    pub(super) fn used(&self) -> u64 {
        u64::from(self.present.saturating_sub(self.free_pages() + self.away))
    }

    /// Free pages that hold memory.
    fn backed(&self) -> u64 {
        u64::from(self.free_pages() - self.clean_pages())
    }

    /// Free pages, those in rows included.
    pub(super) fn free_pages(&self) -> u32 {
        self.buddy.free_pages() + self.rows.free_pages()
    }

    /// Free pages that hold no memory.
    pub(super) fn clean_pages(&self) -> u32 {
        self.buddy.clean_pages() + self.rows.clean_pages()
    }

    /// Pages were handed out.
    pub(super) fn note_taken(&mut self) {
        self.allocs += 1;
        let used = self.used();
        self.demand.at(used);
        self.high = self.high.max(used);
    }

    /// Whether half of the most pages in use went since that was so last.
    pub(super) fn has_fallen(&mut self) -> bool {
        let used = self.used();
        let fallen = used < self.high / 2 && self.high - used >= u64::from(PAGEBLOCK_PAGES);
        if fallen {
            self.high = used;
        }
        fallen
    }

    /// Pages that may lie idle in any case.
    fn few(&self, retain: u64) -> u64 {
        retain.saturating_add(self.used() / IDLE_PART)
    }

    /// Pages that may lie idle: as many as may be wanted again, and a few.
    fn may_idle(&self, retain: u64) -> u64 {
        self.few(retain).saturating_add(self.demand.wanted().saturating_sub(self.used()))
    }

    /// Whether more lies idle in whole pageblocks than may.
    pub(super) fn has_excess(&self, retain: u64) -> bool {
        u64::from(self.buddy.whole_pages()) > self.may_idle(retain)
    }

    /// Whether much more lies idle than may, in whatever pieces.
    pub(super) fn is_strewn(&self, retain: u64) -> bool {
        let backed = self.backed();
        backed > self.quiet && backed > self.may_idle(retain).saturating_add(self.used() / STREWN_PART)
    }

    /// Whether more lies idle, in whatever pieces, than may.
    pub(super) fn has_idle(&self, retain: u64) -> bool {
        self.backed() > self.may_idle(retain)
    }

    /// Whether more will lie idle than may, if nothing is wanted from now on.
    pub(super) fn will_idle(&self, retain: u64) -> bool {
        let (backed, few) = (self.backed(), self.few(retain));
        let part = if backed > self.quiet { self.used() / STREWN_PART } else { u64::MAX };
        u64::from(self.buddy.whole_pages()) > few || backed > few.saturating_add(part)
    }

    /// A window of time ends.
    pub(super) fn turn(&mut self) {
        let used = self.used();
        self.demand.turn(used);
        self.quiet = self.quiet.min(self.backed() + self.margin());
    }

    /// What was strewn has gone back as far as that was possible: where something is left, not again before there is
    /// some more.
    pub(super) fn hush(&mut self, retain: u64) {
        self.quiet = if self.has_idle(retain) { self.backed() + self.margin() } else { 0 };
    }

    fn margin(&self) -> u64 {
        (self.used() / 8).max(u64::from(PAGEBLOCK_PAGES))
    }

    /// Free pages of the buddy system that a request of this type can have.
    pub(super) fn free_for(&self, list: MigrateType) -> u32 {
        let mut free = self.buddy.free_pages()
            - self.buddy.free_of(MigrateType::HighAtomic)
            - self.buddy.free_of(MigrateType::Isolate);
        if list != MigrateType::Movable {
            free -= self.buddy.free_of(MigrateType::Cma);
        }
        free
    }
}
