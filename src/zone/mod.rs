//! Page frames: zones, the buddy system, per-CPU page lists, watermarks, growth and return to the system.
//!
//! A request walks its *zonelist* (nodes by distance, in each node the zones from the highest that suits downwards) and
//! takes a block (or, for a run of pages, a part of a row) from the first zone that keeps its watermark. When none
//! does, the slow path grows a zone (`m.grow`), goes down to the min mark and the reserves, drains the per-CPU lists,
//! gives idle memory back where the budget is what lacks, and returns `None` in the end: never a panic, never a wait
//! for another thread to free some.
//!
//! Locks, outer to inner: `growing` > `making` > `pcp` > `zone`. No zone lock is held while another is taken (but for
//! `fork`). `growing` alone is held during system calls, and waited for only by who may block. The algorithms (`buddy`,
//! `fallback`, `watermark`, `budget`) know no machine and hold no `unsafe`.

mod alloc;
mod api;
pub mod buddy;
mod budget;
mod compact;
mod demand;
mod emergency;
mod extent;
mod fallback;
mod hotplug;
mod lists;
mod percpu;
mod phase;
mod raw;
mod reclaim;
mod rows;
mod run;
mod stats;
#[cfg(all(test, target_os = "linux"))]
mod tests;
mod watermark;

use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed};

pub use compact::Compacted;
pub use demand::Demand;
pub use fallback::{MIGRATE_TYPES, MigrateType};
pub use phase::Cost;
pub use stats::{PcpInfo, ZoneInfo, ZoneStats};
pub use watermark::Watermarks;

use self::buddy::{Buddy, Event, Map, STATE};
use self::budget::Budget;
use self::emergency::Emergency;
use self::hotplug::Offline;
use self::phase::Phases;
use self::raw::{BlockMap, Owner, PcpTable};
use self::rows::Rows;
use crate::config::Options;
use crate::machine::{MAX_NODES, Machine, NR_ZONES, ZoneKind};
use crate::page::{Kind, Page, flag};
use crate::sync::wide::AtomicU64;
use crate::sync::{CachePadded, Fork, Guard, Lock};
use crate::types::{Order, PAGE_SHIFT, PAGEBLOCK_PAGES, Pfn, PfnRange};

/// All zones, from the lowest.
pub const ZONES: [ZoneKind; NR_ZONES] =
    [ZoneKind::Dma, ZoneKind::Dma32, ZoneKind::Normal, ZoneKind::HighMem, ZoneKind::Movable];

/// Pages from which on mobility grouping is worth it, as in the kernel: a pageblock for each migrate type. With fewer
/// every other request would claim the pageblock of the one before.
const GROUPED: u64 = MIGRATE_TYPES as u64 * PAGEBLOCK_PAGES as u64;

/// What a zone's lock guards. In this order: what every program uses comes first.
#[repr(C)]
struct Zone {
    marks: Watermarks,
    /// Frames that exist, the table's own included.
    present: u32,
    /// First frame and end of all that exists; the end is 0 where nothing does.
    span: (Pfn, Pfn),
    allocs: u64,
    frees: u64,
    /// Of the pages in use.
    demand: Demand,
    /// The most of them since half of them had gone ([`PageAllocator::take_fallen`]).
    high: u64,
    /// Which pageblocks are to be huge pages.
    phases: Phases,
    /// Backed free pages up to which strewn ones are left alone.
    quiet: u64,
    /// Pages that are on their way back to the system: neither free nor in use.
    away: u32,
    buddy: Buddy,
    /// What is free for page runs.
    rows: Rows,
    /// What went offline: none of the zone's pages.
    offline: Offline,
}

/// One zone of one node.
#[repr(C)]
struct Cell {
    /// Frames the buddy system was given. Written under the lock.
    managed: AtomicU32,
    /// The machine had no more frames when asked last.
    exhausted: AtomicBool,
    /// Something went offline.
    shrunk: AtomicBool,
    /// Pages in the reserve of atomic requests. Written under the lock.
    reserve: AtomicU32,
    lock: Lock<Zone>,
}

impl Cell {
    const fn new() -> Cell {
        let zone = Zone {
            buddy: Buddy::new(),
            rows: Rows::new(),
            marks: Watermarks::NONE,
            present: 0,
            span: (Pfn(0), Pfn(0)),
            allocs: 0,
            frees: 0,
            demand: Demand::new(),
            high: 0,
            phases: Phases::new(),
            quiet: 0,
            away: 0,
            offline: Offline::new(),
        };
        Cell {
            lock: Lock::new(zone),
            managed: AtomicU32::new(0),
            exhausted: AtomicBool::new(false),
            shrunk: AtomicBool::new(false),
            reserve: AtomicU32::new(0),
        }
    }
}

/// The page allocator of one machine. In this order: what every program uses comes first.
#[repr(C)]
pub struct PageAllocator<M: Machine> {
    /// Held while a zone grows: who finds the same zone short meanwhile waits, and looks again.
    growing: Lock<()>,
    /// Held while per-CPU lists are made known, so that `fork` finds none half locked.
    making: Lock<()>,
    budget: Budget,
    /// The machine was asked when memory is short.
    pressure_known: AtomicBool,
    /// An atomic request was made: the reserve is worth its memory.
    atomic_seen: AtomicBool,
    /// Pages to keep for atomic requests: half of them in a node's reserve, half in the emergency pool.
    reserve_goal: AtomicU32,
    emergency: Emergency,
    /// Requests are kept apart by migrate type: there are enough pageblocks for it.
    grouping: AtomicBool,
    /// What page runs cost, as a [`Cost`].
    cost: AtomicU8,
    /// They cost more than addresses since [`PageAllocator::take_dearer`], which they did not before.
    dearer: AtomicBool,
    /// Half of what was in use has gone since [`PageAllocator::take_fallen`].
    fallen: AtomicBool,
    /// Frames of all zones.
    managed: AtomicU64,
    /// Complement of [`PageAllocator::retained`], so that it starts as 0.
    not_retained: AtomicU64,
    /// More lies idle than may if nothing is wanted from now on.
    idles: AtomicBool,
    /// Pages of pageblocks opened since [`PageAllocator::take_opened`]; an eighth of them where hardly any is written
    /// to.
    opened: AtomicU32,
    /// The system does not take back what is idle (it is locked, or the like).
    refused: AtomicBool,
    /// Nodes that have, or had, a zone with memory, as a count from 0.
    nodes: AtomicU32,
    /// Pages given back to the system so far.
    discarded: AtomicU64,
    zones: [[CachePadded<Cell>; NR_ZONES]; MAX_NODES],
    pcps: PcpTable,
    blocks: BlockMap,
    machine: PhantomData<fn(&M)>,
}

/// The buddy algorithm's view of a machine.
struct View<'a, M> {
    m: &'a M,
    blocks: &'a BlockMap,
}

impl<M: Machine> Map for View<'_, M> {
    #[inline]
    fn page(&self, pfn: Pfn) -> &Page {
        self.m.page(pfn)
    }

    #[inline]
    fn block_type(&self, pfn: Pfn) -> MigrateType {
        self.blocks.get(pfn)
    }

    fn set_block_type(&self, pfn: Pfn, to: MigrateType) {
        self.blocks.set(pfn, to);
    }

    #[inline]
    fn trace(&self, event: Event) {
        if M::TRACES {
            self.m.trace(format_args!("{event}"));
        }
    }
}

impl<M: Machine> PageAllocator<M> {
    /// An allocator without memory.
    pub const fn new() -> PageAllocator<M> {
        PageAllocator {
            zones: [const { [const { CachePadded::new(Cell::new()) }; NR_ZONES] }; MAX_NODES],
            blocks: BlockMap::new(),
            pcps: PcpTable::new(),
            growing: Lock::new(()),
            making: Lock::new(()),
            budget: Budget::new(),
            pressure_known: AtomicBool::new(false),
            atomic_seen: AtomicBool::new(false),
            reserve_goal: AtomicU32::new(0),
            emergency: Emergency::new(),
            grouping: AtomicBool::new(false),
            cost: AtomicU8::new(Cost::Some as u8),
            dearer: AtomicBool::new(false),
            fallen: AtomicBool::new(false),
            managed: AtomicU64::new(0),
            not_retained: AtomicU64::new(0),
            idles: AtomicBool::new(false),
            opened: AtomicU32::new(0),
            refused: AtomicBool::new(false),
            nodes: AtomicU32::new(0),
            discarded: AtomicU64::new(0),
            machine: PhantomData,
        }
    }

    /// Takes over the options and the machine's budget. Before it there is no limit.
    pub fn init(&self, m: &M, options: &Options) {
        let limit = match options.limit_bytes >> PAGE_SHIFT {
            0 => u64::MAX,
            pages => pages,
        };
        self.budget.set_limit(limit.min(m.budget()));
        if !M::LENT {
            self.learn_pressure(m);
        }
        self.set_reserve((options.reserve_bytes >> PAGE_SHIFT).try_into().unwrap_or(u32::MAX));
        self.set_retained(options.retain_bytes);
    }

    /// Asks the machine from which mark on memory is short, once. Not at the start, where memory is lent: a process of
    /// a few megabytes would spend a tenth of its life on the limits of its control groups. Called without locks, with
    /// leave to enter the system.
    #[inline]
    pub fn learn_pressure(&self, m: &M) {
        if !self.pressure_known.load(Relaxed) {
            self.pressure_known.store(true, Relaxed);
            self.budget.set_pressure(m.pressure());
            self.budget.set_memory(m.memory());
        }
    }

    /// Adds frames whose contents are known to be `state`.
    fn add_range(&self, m: &M, node: usize, kind: ZoneKind, range: PfnRange, state: u32) {
        let mut at = range.start;
        while at < range.end() {
            // By 8 GiB: what one leaf of the pageblock table describes.
            let border = Pfn((at.0 | (raw::LEAF_PAGES - 1)).saturating_add(1).min(range.end().0));
            let mut part = PfnRange::new(at, border.since(at));
            at = border;
            if !self.blocks.covers(part.start) && self.blocks.give(m, part.start) {
                m.page(part.start).set_home(kind as usize, node);
                m.page(part.start).set_kind(Kind::Reserved, Order::ZERO);
                part = PfnRange::new(part.start.add(1), part.pages - 1);
            }
            // Without a page for the table the frames cannot be used; only HIGHMEM beyond 8 GiB could come here.
            if !self.blocks.covers(part.start) {
                continue;
            }
            self.add_part(m, node, kind, part, state);
        }
    }

    /// Adds frames that one leaf of the pageblock table describes.
    fn add_part(&self, m: &M, node: usize, kind: ZoneKind, range: PfnRange, state: u32) {
        let cell = &self.zones[node][kind as usize];
        let mut zone = cell.lock.lock(m);
        zone.buddy.set_home(kind as usize, node);
        zone.rows.set_home(kind as usize, node);
        let (mut end, mut added) = (range.end(), 0);
        let clean = zone.clean_pages();
        // From the end on, as what is put back last is taken first: pageblocks that are opened one behind the other,
        // and told alike to be huge pages, are one mapping.
        while end > range.start {
            let block = Pfn((end.0 - 1) & !(Order::MAX.pages() - 1));
            let start = block.max(range.start);
            // A pageblock belongs to one zone: what lies in another's is lost.
            let mut mine = PfnRange::new(start, end.since(start));
            let middle = block.add(PAGEBLOCK_PAGES);
            let owner = Owner::new(kind as usize, node);
            if start < middle && !self.blocks.claim(start, owner) {
                let first = middle.min(end);
                mine = PfnRange::new(first, end.since(first));
            }
            if end > middle && !self.blocks.claim(middle, owner) {
                mine.pages = middle.0.saturating_sub(mine.start.0);
            }
            zone.buddy.free_range(&self.view(m), mine, state);
            added += mine.pages;
            end = start;
        }
        zone.present += range.pages;
        let start = if zone.present > range.pages { zone.span.0.min(range.start) } else { range.start };
        zone.span = (start, zone.span.1.max(range.end()));
        let managed = cell.managed.load(Relaxed) + added;
        cell.managed.store(managed, Relaxed);
        zone.marks = Watermarks::of(u64::from(managed));
        // What was clean and merged with backed memory counts as backed from now on.
        let fresh = if state & flag::UNBACKED != 0 { added } else { 0 };
        self.budget.charge(u64::from(added - fresh));
        self.settle(clean + fresh, zone.clean_pages());
        self.nodes.fetch_max(node as u32 + 1, Relaxed);
        let all = self.managed.fetch_add(u64::from(added), Relaxed) + u64::from(added);
        self.grouping.fetch_or(all >= GROUPED, Relaxed);
    }

    #[inline]
    fn view<'a>(&'a self, m: &'a M) -> View<'a, M> {
        View { m, blocks: &self.blocks }
    }

    /// Books that a zone's clean pages went from `before` to `after`.
    #[inline]
    fn settle(&self, before: u32, after: u32) {
        if before > after {
            self.budget.charge(u64::from(before - after));
        } else if after > before {
            self.budget.uncharge(u64::from(after - before));
        }
    }

    /// The zone that a frame handed out by this allocator belongs to.
    #[inline]
    fn cell_of(&self, page: &Page) -> Option<&Cell> {
        Some(self.zones.get(page.node())?.get(page.zone())?)
    }

    /// Frees the frames of a run that nobody owns any more, with contents known to be `state`. False, and nothing done,
    /// where the lock is not to be had without blocking.
    fn free_frames(&self, m: &M, range: PfnRange, state: u32, may_block: bool) -> bool {
        let page = m.page(range.start);
        let Some(cell) = self.cell_of(page) else { return true };
        // What came from the reserve goes back there until it is full, and first to the part that takes no lock.
        let reserve = page.has(flag::RESERVE) && state & flag::UNBACKED == 0;
        if reserve && self.emergency.wants(range) {
            self.emergency.put(m, range, page);
            return true;
        }
        let Some(mut zone) = cell.lock.acquire(m, may_block) else {
            if reserve {
                self.emergency.put(m, range, page);
            }
            return reserve;
        };
        let reserve = reserve && zone.buddy.free_of(MigrateType::HighAtomic) + range.pages <= self.zone_reserve();
        self.free_locked(m, &mut zone, range, state, reserve, 0);
        if reserve {
            cell.reserve.store(zone.buddy.free_of(MigrateType::HighAtomic), Relaxed);
        }
        true
    }

    /// Frees frames; `unbooked` of their pages were not committed.
    fn free_locked(
        &self,
        m: &M,
        zone: &mut Guard<'_, Zone, M>,
        range: PfnRange,
        state: u32,
        reserve: bool,
        unbooked: u32,
    ) {
        let clean = zone.clean_pages();
        for (pfn, order) in buddy::blocks(range) {
            zone.buddy.free(&self.view(m), pfn, order, state & STATE, reserve);
        }
        zone.frees += 1;
        self.settle(clean + unbooked, zone.clean_pages());
        self.note_idle(zone);
    }

    /// Pages of a zone were freed.
    fn note_idle(&self, zone: &mut Zone) {
        if M::LENT && !self.idles() && !self.refused.load(Relaxed) && zone.will_idle(self.retained()) {
            self.set_idles(true);
        }
        if M::LENT && zone.has_fallen() {
            self.fallen.store(true, Relaxed);
        }
    }

    /// Whether half of what was in use, and not just a little, has gone. Said once.
    #[inline]
    pub fn take_fallen(&self) -> bool {
        self.fallen.load(Relaxed) && self.fallen.swap(false, Relaxed)
    }

    /// Pages of which none held memory that were begun to be handed out since the last call.
    #[inline]
    pub fn take_opened(&self) -> u32 {
        if self.opened.load(Relaxed) == 0 { 0 } else { self.opened.swap(0, Relaxed) }
    }

    /// Whether what is kept of page runs was kept when it cost only addresses, and costs memory now. Said once.
    #[inline]
    pub fn take_dearer(&self) -> bool {
        self.dearer.load(Relaxed) && self.dearer.swap(false, Relaxed)
    }

    /// Whether something will have to go back if nothing is wanted from now on, so that the clock should be looked at.
    #[inline]
    pub fn idles(&self) -> bool {
        self.idles.load(Relaxed)
    }

    /// Says so.
    pub fn set_idles(&self, idles: bool) {
        self.idles.store(idles, Relaxed);
    }

    /// Charges pages that hold memory but are not frames of the buddy system. False where the budget has no room.
    pub fn charge(&self, pages: u64) -> bool {
        self.budget.try_charge(pages, watermark::Mark::Min, crate::gfp::Gfp::KERNEL)
    }

    /// Takes back a charge.
    pub fn uncharge(&self, pages: u64) {
        self.budget.uncharge(pages);
    }

    /// Whether any lock is held.
    pub fn any_lock_held(&self) -> bool {
        self.making.is_held()
            || self.pcps.iter().any(|(_, pcp)| pcp.is_held())
            || self.zones.as_flattened().iter().any(|cell| cell.lock.is_held())
    }

    /// Takes every lock, in order, for `fork`: see [`crate::sync::Lock::lock_for_fork`].
    #[must_use]
    pub fn lock_all(&self, m: &M, fork: Fork) -> bool {
        self.growing.lock_for_fork(m, fork)
            && self.making.lock_for_fork(m, fork)
            && self.pcps.iter().all(|(_, pcp)| pcp.lock_for_fork(m, fork))
            && self.zones.as_flattened().iter().all(|cell| cell.lock.lock_for_fork(m, fork))
    }
}

impl<M: Machine> Default for PageAllocator<M> {
    fn default() -> PageAllocator<M> {
        PageAllocator::new()
    }
}
