//! Allocation: zonelists, watermarks and the slow path.

use core::sync::atomic::Ordering::Relaxed;

use super::buddy::{STATE, Want};
use super::watermark::{self, Mark, Watermarks};
use super::{Cell, MigrateType, PageAllocator, Zone, raw};
use crate::gfp::Gfp;
use crate::machine::{Machine, ZoneKind};
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
    /// The highest zone that suits.
    top: ZoneKind,
    /// The node it starts at.
    node: usize,
    list: MigrateType,
    want: Want,
}

/// Frames just taken off the free lists: nobody else knows them.
pub(super) struct Taken {
    pub range: PfnRange,
    /// Their state bits.
    pub state: u32,
}

/// Why a zone did not serve a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Refused {
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

/// Growth in a row for one request. More than one where the new range is not aligned for the largest order.
const GROWTHS: u32 = 4;

impl<M: Machine> PageAllocator<M> {
    /// Allocates a block of `2^order` adjacent frames, aligned to its size; [`Kind::Allocated`] with one reference. `node` is
    /// the node to start at (default: the caller's).
    ///
    /// The head carries [`flag::ZERO`] where the whole block reads zero, which `__GFP_ZERO` makes sure of (but for HIGHMEM,
    /// which has no address to write to: the caller looks at the flag), and [`flag::UNBACKED`] where touching it faults.
    /// `None` where there is no memory within the limits, or the flags contradict each other.
    pub fn alloc_pages(&self, m: &M, gfp: Gfp, order: Order, node: Option<usize>) -> Option<Pfn> {
        let taken = self.get(m, gfp, order, order.pages(), node)?;
        Some(self.hand_out(m, &taken, gfp, Kind::Allocated, order))
    }

    /// Frees the block at `pfn`. False, and nothing done, where that needs a wait and `may_block` is not set. A block that is
    /// free already is left alone (whoever can tell the user checks before).
    pub fn free_pages(&self, m: &M, pfn: Pfn, order: Order, may_block: bool) -> bool {
        self.free_as(m, pfn, order, 0, may_block)
    }

    /// [`PageAllocator::free_pages`] for a block that reads zero and holds no memory.
    pub fn free_clean(&self, m: &M, pfn: Pfn, order: Order, may_block: bool) -> bool {
        self.free_as(m, pfn, order, if M::LENT { STATE } else { flag::ZERO }, may_block)
    }

    fn free_as(&self, m: &M, pfn: Pfn, order: Order, state: u32, may_block: bool) -> bool {
        let page = m.page(pfn);
        match page.kind() {
            Kind::Offline | Kind::Buddy | Kind::Tail | Kind::Pcp => return true,
            // A slab marks every page of its block.
            Kind::Slab => PfnRange::block(pfn, order).iter().for_each(|p| m.page(p).set_kind(Kind::Tail, Order::ZERO)),
            _ => {}
        }
        self.free_frames(m, PfnRange::block(pfn, order), state, false, may_block)
    }

    /// Makes frames just taken the caller's.
    pub(super) fn hand_out(&self, m: &M, taken: &Taken, gfp: Gfp, kind: Kind, order: Order) -> Pfn {
        let mut state = taken.state;
        if gfp.has(Gfp::ZERO) && state & flag::ZERO == 0 && raw::zero(m, taken) {
            state = flag::ZERO;
        }
        let page = m.page(taken.range.start);
        let compound = if gfp.has(Gfp::COMP) && order > Order::ZERO { flag::COMPOUND } else { 0 };
        page.set_home(page.zone(), page.node());
        page.set(state | compound);
        page.set_refs(1);
        page.set_mapcount(-1);
        page.set_kind(kind, order);
        taken.range.start
    }

    /// Takes frames for a request.
    pub(super) fn get(&self, m: &M, gfp: Gfp, order: Order, pages: u32, node: Option<usize>) -> Option<Taken> {
        if gfp.check().is_err() {
            return None;
        }
        let atomic = gfp.has(Gfp::HIGH) && !gfp.may_block();
        let request = Request {
            gfp,
            order,
            pages,
            top: top_zone(gfp),
            node: node.unwrap_or_else(|| m.node()).min(crate::machine::MAX_NODES - 1),
            list: MigrateType::of(gfp),
            want: match gfp.has(Gfp::ZERO) {
                // Clean memory faults when touched, which atomic requests promise not to.
                _ if atomic && M::LENT => Want::Backed,
                true => Want::Zero,
                false => Want::Any,
            },
        };
        match self.walk(m, &request, Mark::Low) {
            Walk::Taken(taken) => Some(taken),
            ended => self.slow(m, &request, ended),
        }
    }

    /// Tries the zones that suit, in order.
    fn walk(&self, m: &M, request: &Request, mark: Mark) -> Walk {
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
                    match self.take(m, node, kind, request, mark) {
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
        // A machine whose ordinary memory lies wholly below 4 GiB (i386) has no DMA32 zone: the flag means nothing there.
        request.top == ZoneKind::Dma32
            && kind == ZoneKind::Normal
            && self.zones[node][kind as usize].managed.load(Relaxed) != 0
            && self.zones[node][kind as usize]
                .lock
                .acquire(m, request.gfp.may_block())
                .is_some_and(|zone| zone.span.1 <= DMA32_END)
    }

    /// Takes frames from one zone.
    fn take(&self, m: &M, node: usize, kind: ZoneKind, request: &Request, mark: Mark) -> Result<Taken, Refused> {
        let cell: &Cell = &self.zones[node][kind as usize];
        let lowmem = if kind < request.top { self.lowmem_reserve(node, kind, request.top) } else { 0 };
        let mut zone = cell.lock.acquire(m, request.gfp.may_block()).ok_or(Refused::Busy)?;
        let zone: &mut Zone = &mut zone;
        let view = self.view(m);
        let pages = request.pages;
        let reserves = request.gfp.has(Gfp::HIGH) && !request.gfp.may_block() && !request.gfp.has(Gfp::NOMEMALLOC);
        if reserves
            && let Some(found) = zone.buddy.find(request.order, MigrateType::HighAtomic, Want::Backed)
            && let Some((pfn, state)) = zone.buddy.take(&view, found, pages, Want::Any)
        {
            zone.allocs += 1;
            return Ok(Taken { range: PfnRange::new(pfn, pages), state });
        }
        let free = zone.free_for(request.list);
        let level = zone.marks.mark(mark, request.gfp);
        let lowmem = if level == 0 { 0 } else { lowmem };
        if !watermark::passes(u64::from(free), u64::from(pages), u64::from(level), lowmem) {
            return Err(Refused::Empty);
        }
        let mut want = request.want;
        loop {
            let buddy = &mut zone.buddy;
            let found =
                match buddy.find(request.order, request.list, want) {
                    Some(found) => found,
                    None => buddy
                        .fall_back(&view, request.order, request.list, want)
                        .ok_or(if want == request.want { Refused::Empty } else { Refused::Budget })?,
                };
            if found.clean && !self.budget.try_charge(u64::from(pages), mark, request.gfp) {
                // The budget has no room for more memory, but what is backed already may be used.
                want = Want::Backed;
                continue;
            }
            let (pfn, state) = buddy.take(&view, found, pages, want).ok_or(Refused::Empty)?;
            zone.allocs += 1;
            return Ok(Taken { range: PfnRange::new(pfn, pages), state });
        }
    }

    /// Pages of a zone that a request for a higher zone must leave.
    fn lowmem_reserve(&self, node: usize, kind: ZoneKind, top: ZoneKind) -> u64 {
        let above = &self.zones[node][kind as usize + 1..=top as usize];
        watermark::lowmem_reserve(kind, above.iter().map(|cell| u64::from(cell.managed.load(Relaxed))).sum())
    }

    /// What is left to try when no zone keeps its low mark.
    #[cold]
    fn slow(&self, m: &M, request: &Request, mut ended: Walk) -> Option<Taken> {
        let gfp = request.gfp;
        // More memory from the machine, while it has any.
        for _ in 0..GROWTHS + MAX_ZONES {
            match ended {
                Walk::Taken(taken) => return Some(taken),
                Walk::Grow(node, kind) => {
                    self.grow(m, node, kind, request);
                    ended = self.walk(m, request, Mark::Low);
                }
                Walk::Nothing { .. } => break,
            }
        }
        // Below low: what lies idle goes back if the budget is what lacks, then down to the min mark.
        let starved = matches!(ended, Walk::Nothing { budget: true });
        if starved && gfp.may_io() && gfp.may_block() {
            self.trim(m, false);
        }
        if let Walk::Taken(taken) = self.walk(m, request, Mark::Min) {
            return Some(taken);
        }
        if !gfp.may_block() {
            return None;
        }
        // The other CPUs' lists.
        self.drain(m);
        if let Walk::Taken(taken) = self.walk(m, request, Mark::Min) {
            return Some(taken);
        }
        if gfp.has(Gfp::NORETRY) {
            return None;
        }
        if gfp.may_io() {
            if M::LENT
                && self.trim(m, true) > 0
                && let Walk::Taken(taken) = self.walk(m, request, Mark::Min)
            {
                return Some(taken);
            }
            // A zone that was exhausted may not be now.
            for kind in super::ZONES.into_iter().rev().filter(|kind| grows(request.top, *kind)) {
                if self.grow(m, request.node, kind, request)
                    && let Walk::Taken(taken) = self.walk(m, request, Mark::Min)
                {
                    return Some(taken);
                }
            }
        }
        if gfp.has(Gfp::NOFAIL) {
            // All that is there; then it fails nevertheless: nobody else would ever free anything here.
            let request = Request { gfp: gfp.with(Gfp::MEMALLOC).without(Gfp::NOMEMALLOC), ..*request };
            if let Walk::Taken(taken) = self.walk(m, &request, Mark::Min) {
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
        let marks = Watermarks::of(u64::from(managed) + 2 * u64::from(request.pages) + u64::from(PAGEBLOCK_PAGES));
        let pages = (request.order.pages() + marks.high).next_multiple_of(PAGEBLOCK_PAGES);
        match m.grow(node, kind, pages).or_else(|| m.grow(node, kind, PAGEBLOCK_PAGES)) {
            Some(range) => {
                cell.exhausted.store(false, Relaxed);
                self.add_range(m, node, kind, range, if M::LENT { STATE } else { flag::ZERO });
                true
            }
            None => {
                cell.exhausted.store(true, Relaxed);
                false
            }
        }
    }
}

/// Zones that one request may find exhausted before it stops growing.
const MAX_ZONES: u32 = (crate::machine::MAX_NODES * crate::machine::NR_ZONES) as u32;

fn may_grow(request: &Request) -> bool {
    request.gfp.may_io() && request.gfp.may_block()
}

impl Zone {
    /// Free pages that a request of this type can have.
    fn free_for(&self, list: MigrateType) -> u32 {
        let mut free = self.buddy.free_pages()
            - self.buddy.free_of(MigrateType::HighAtomic)
            - self.buddy.free_of(MigrateType::Isolate);
        if list != MigrateType::Movable {
            free -= self.buddy.free_of(MigrateType::Cma);
        }
        free
    }
}
