//! Figures of the zones, and the check of all their invariants.

use core::sync::atomic::Ordering::Relaxed;

use super::raw::Owner;
use super::{Cell, MIGRATE_TYPES, MigrateType, PageAllocator, Watermarks, ZONES, Zone};
use crate::machine::{Machine, NR_ZONES, ZoneKind};
use crate::page::Kind;
use crate::types::{NR_ORDERS, Order, PAGEBLOCK_PAGES, Pfn};

/// One zone of one node. Sizes in pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ZoneInfo {
    /// The first frame that exists; [`Pfn::NONE`] where there is none.
    pub start: Pfn,
    /// Frames from there to the last one that exists, holes included.
    pub spanned: u64,
    /// Frames that exist.
    pub present: u64,
    /// Frames the buddy system was given.
    pub managed: u64,
    /// Free in the buddy system and in rows (not on per-CPU lists).
    pub free: u64,
    /// Of these, in rows for page runs.
    pub rows: u64,
    /// Of these, holding memory.
    pub backed: u64,
    /// The marks.
    pub marks: Watermarks,
    /// Pages kept from requests that a higher zone would suit, by the highest zone that suits them (`lowmem_reserve`).
    pub protection: [u64; NR_ZONES],
    /// Free blocks by order and migrate type.
    pub blocks: [[u32; MIGRATE_TYPES]; NR_ORDERS],
    /// Requests the buddy system served.
    pub allocs: u64,
    /// Frees it took.
    pub frees: u64,
    /// Pageblocks that changed their type for a request.
    pub claims: u64,
    /// Blocks taken from another type's pageblock.
    pub steals: u64,
}

impl ZoneInfo {
    const NONE: ZoneInfo = ZoneInfo {
        start: Pfn::NONE,
        spanned: 0,
        present: 0,
        managed: 0,
        free: 0,
        rows: 0,
        backed: 0,
        marks: Watermarks::NONE,
        protection: [0; NR_ZONES],
        blocks: [[0; MIGRATE_TYPES]; NR_ORDERS],
        allocs: 0,
        frees: 0,
        claims: 0,
        steals: 0,
    };

    fn add(&mut self, zone: &ZoneInfo) {
        for (sum, part) in [
            (&mut self.spanned, zone.spanned),
            (&mut self.present, zone.present),
            (&mut self.managed, zone.managed),
            (&mut self.free, zone.free),
            (&mut self.rows, zone.rows),
            (&mut self.backed, zone.backed),
            (&mut self.allocs, zone.allocs),
            (&mut self.frees, zone.frees),
            (&mut self.claims, zone.claims),
            (&mut self.steals, zone.steals),
        ] {
            *sum += part;
        }
        for (sum, part) in self.blocks.as_flattened_mut().iter_mut().zip(zone.blocks.as_flattened()) {
            *sum += part;
        }
    }

    /// The share of the buddy system's free memory that a request of `order` cannot use, in thousandths: the kernel's
    /// unusable free space index, its measure of external fragmentation.
    pub fn unusable(&self, order: Order) -> u32 {
        let pages = |o: usize| self.blocks[o].iter().map(|n| u64::from(*n)).sum::<u64>() << o;
        let usable: u64 = (order.index()..NR_ORDERS).map(pages).sum();
        let free = self.free.saturating_sub(self.rows);
        (free.saturating_sub(usable) * 1000).checked_div(free).unwrap_or(1000) as u32
    }
}

/// One CPU's page lists for one zone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PcpInfo {
    /// Pages on them.
    pub count: u32,
    /// Pages from which on some go back.
    pub high: u32,
    /// Pages fetched at once.
    pub batch: u32,
}

/// All zones together: reports run on stacks that do not hold each zone's figures ([`PageAllocator::zone`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ZoneStats {
    /// Sums; nothing where these say nothing: `start`, `marks`, `protection`.
    pub all: ZoneInfo,
    /// Pages free on per-CPU lists.
    pub pcp_pages: u64,
    /// Requests that per-CPU lists served.
    pub pcp_hits: u64,
    /// Requests that found them empty.
    pub pcp_misses: u64,
    /// Pages that hold per-CPU lists.
    pub own_pages: u64,
    /// Free pages of the pool for atomic requests that find locks taken.
    pub emergency_pages: u64,
    /// Pages that may hold memory.
    pub committed: u64,
    /// The budget, `u64::MAX` for none.
    pub budget: u64,
    /// Pages given back to the system so far.
    pub discarded: u64,
}

impl<M: Machine> PageAllocator<M> {
    /// Shows the heads of all slabs of cache `id`, by looking at every descriptor: for reports.
    pub fn for_each_slab(&self, m: &M, id: u16, mut each: impl FnMut(Pfn)) {
        for block in self.blocks.iter() {
            let mut at = 0;
            while at < PAGEBLOCK_PAGES {
                let pfn = block.add(at);
                let page = m.page(pfn);
                let slab = page.kind() == Kind::Slab;
                if slab && page.cache() == id && pfn.0.is_multiple_of(page.order().pages()) {
                    each(pfn);
                }
                at += if slab { page.order().pages() } else { 1 };
            }
        }
    }

    /// Shows the length of every run in use, in pages, by looking at every descriptor: for reports. Runs come and go
    /// meanwhile.
    pub fn for_each_run(&self, m: &M, mut each: impl FnMut(u32)) {
        for block in self.blocks.iter() {
            let mut at = 0;
            while at < PAGEBLOCK_PAGES {
                let page = m.page(block.add(at));
                at += match page.kind() {
                    kind @ (Kind::Run | Kind::Tagged) => {
                        let pages = page.word() as u32;
                        if kind == Kind::Run || m.class(block.add(at)).load(Relaxed) != 0 {
                            each(pages);
                        }
                        pages.max(1)
                    }
                    Kind::Buddy | Kind::Slab | Kind::Allocated => page.order().pages(),
                    _ => 1,
                };
            }
        }
    }

    /// The figures of one zone.
    pub fn zone(&self, m: &M, node: usize, kind: ZoneKind) -> ZoneInfo {
        let cell = &self.zones[node][kind as usize];
        let mut info = zone_info(cell, &cell.lock.lock(m));
        if info.present > 0 {
            for top in &ZONES[kind as usize + 1..] {
                info.protection[*top as usize] = self.lowmem_reserve(node, kind, *top);
            }
        }
        info
    }

    /// The figures of this moment.
    pub fn stats(&self, m: &M) -> ZoneStats {
        let mut stats = self.frame();
        for cell in self.zones.as_flattened() {
            stats.all.add(&zone_info(cell, &cell.lock.lock(m)));
        }
        for (_, pcp) in self.pcps.iter() {
            let pcp = pcp.lock(m);
            stats.pcp_pages += u64::from(pcp.pages());
            stats.pcp_hits += pcp.hits;
            stats.pcp_misses += pcp.misses;
            stats.own_pages += u64::from(super::raw::PCP_ORDER.pages());
        }
        stats
    }

    /// The pageblocks of a zone by their migrate type.
    pub fn pageblocks(&self, node: usize, kind: ZoneKind) -> [u32; MIGRATE_TYPES] {
        let mut counts = [0; MIGRATE_TYPES];
        self.blocks.of(Owner::new(kind as usize, node)).for_each(|list| counts[list.index()] += 1);
        counts
    }

    /// The page lists of `cpu` for a zone; `None` where it has none.
    pub fn pageset(&self, m: &M, cpu: usize, node: usize, kind: ZoneKind) -> Option<PcpInfo> {
        let pcp = self.pcps.own(cpu, kind as usize)?.lock(m);
        (pcp.node() == node).then(|| pcp.info())
    }

    /// Checks every invariant of the layer; the first one that does not hold is the error.
    pub fn verify(&self, m: &M) -> Result<(), &'static str> {
        for cell in self.zones.as_flattened() {
            let zone = cell.lock.lock(m);
            zone.buddy.verify(&self.view(m))?;
            zone.rows.verify(&self.view(m))?;
            if zone.free_pages() > cell.managed.load(Relaxed) {
                return Err("more pages free than managed");
            }
            if cell.reserve.load(Relaxed) != zone.buddy.free_of(MigrateType::HighAtomic) {
                return Err("pages of the reserve miscounted");
            }
            if cell.managed.load(Relaxed) > zone.present {
                return Err("more pages managed than present");
            }
        }
        for (zone, pcp) in self.pcps.iter() {
            pcp.lock(m).verify(zone, |pfn| m.page(pfn))?;
        }
        let blocks: u64 = self.blocks.iter().map(|_: Pfn| 1).sum();
        if self.managed() > blocks << crate::types::PAGEBLOCK_ORDER {
            return Err("managed pages outside the online pageblocks");
        }
        Ok(())
    }

    fn frame(&self) -> ZoneStats {
        ZoneStats {
            all: ZoneInfo::NONE,
            pcp_pages: 0,
            pcp_hits: 0,
            pcp_misses: 0,
            own_pages: 0,
            emergency_pages: u64::from(self.emergency.pages()),
            committed: self.budget.committed(),
            budget: self.budget.limit().unwrap_or(u64::MAX),
            discarded: self.discarded.load(Relaxed),
        }
    }
}

fn zone_info(cell: &Cell, zone: &Zone) -> ZoneInfo {
    let mut blocks = [[0; MIGRATE_TYPES]; NR_ORDERS];
    for (order, lists) in (0..NR_ORDERS).filter_map(|o| Order::new(o as u8)).zip(&mut blocks) {
        let area = zone.buddy.area(order);
        for list in MigrateType::ALL {
            lists[list.index()] = area.backed[list.index()].len() + area.clean[list.index()].len();
        }
    }
    let exists = zone.span.1 != Pfn(0);
    ZoneInfo {
        start: if exists { zone.span.0 } else { Pfn::NONE },
        spanned: if exists { u64::from(zone.span.1.since(zone.span.0)) } else { 0 },
        present: u64::from(zone.present),
        managed: u64::from(cell.managed.load(Relaxed)),
        free: u64::from(zone.free_pages()),
        rows: u64::from(zone.rows.free_pages()),
        backed: u64::from(zone.free_pages() - zone.clean_pages()),
        marks: zone.marks,
        protection: [0; NR_ZONES],
        blocks,
        allocs: zone.allocs,
        frees: zone.frees,
        claims: u64::from(zone.buddy.claims),
        steals: u64::from(zone.buddy.steals),
    }
}
