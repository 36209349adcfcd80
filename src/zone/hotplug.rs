//! Free memory whose addresses go back to the system, too (the kernel's memory hotplug).
//!
//! Where a system counts addresses that may be written to (`RLIMIT_DATA`, `RLIMIT_AS`, `vm.overcommit_memory` = 2) what
//! a zone has free is counted, and a large block may be refused for it. So, when one is, whole pageblocks go *offline*:
//! out of the buddy system and of the zone's figures, with nothing mapped there. A zone that grows takes them first.

use core::sync::atomic::Ordering::Relaxed;

use super::buddy::STATE;
use super::{Cell, PageAllocator, Watermarks, Zone};
use crate::machine::{Machine, ZoneKind};
use crate::page::Kind;
use crate::types::{Order, PAGEBLOCK_PAGES, PfnRange};

impl<M: Machine> PageAllocator<M> {
    /// Takes free pageblocks offline until `pages` pages are, if there are as many. Returns pages. Called without locks.
    pub fn take_offline(&self, m: &M, pages: u64) -> u64 {
        if !M::LENT {
            return 0;
        }
        // A fork waits for it, so that the child knows where all of them are.
        let _growing = self.growing.lock(m);
        let mut gone = 0;
        for cell in self.used_cells() {
            while gone < pages {
                let mut zone = cell.lock.lock(m);
                let Some((pfn, order, contents)) = zone.buddy.take_whole(&self.view(m)) else { break };
                zone.away += order.pages();
                drop(zone);
                let done = m.offline(PfnRange::block(pfn, order));
                let mut zone = cell.lock.lock(m);
                zone.away -= order.pages();
                let backed = contents.extent.len();
                if !done {
                    let clean = zone.clean_pages() + order.pages() - backed;
                    zone.buddy.free_known(&self.view(m), pfn, order, contents);
                    self.settle(clean, zone.clean_pages());
                    break;
                }
                zone.offline.push_front(pfn, |pfn| m.page(pfn));
                self.shrink_zone(cell, &mut zone, order.pages());
                self.budget.uncharge(backed.into());
                self.discarded.fetch_add(backed.into(), Relaxed);
                gone += u64::from(order.pages());
            }
        }
        gone
    }

    /// A zone has `pages` pages less.
    fn shrink_zone(&self, cell: &Cell, zone: &mut Zone, pages: u32) {
        zone.present -= pages;
        let managed = cell.managed.load(Relaxed) - pages;
        cell.managed.store(managed, Relaxed);
        zone.marks = Watermarks::of(managed.into());
        self.managed.fetch_sub(pages.into(), Relaxed);
    }

    /// Brings pageblocks of a zone that went offline back, about `pages` pages. False where there is none, or the system
    /// refuses. Called without the zone's lock.
    pub(super) fn bring_online(&self, m: &M, node: usize, kind: ZoneKind, pages: u32) -> bool {
        let cell = &self.zones[node][kind as usize];
        let mut come = 0;
        while come < pages {
            let mut zone = cell.lock.lock(m);
            let Some(pfn) = zone.offline.first() else { break };
            zone.offline.remove(pfn, |pfn| m.page(pfn));
            drop(zone);
            let mut range = PfnRange::block(pfn, m.page(pfn).order());
            let mut online = m.online(range, node);
            if !online && range.pages > PAGEBLOCK_PAGES {
                // There may be room for half of it.
                let half = pfn.add(PAGEBLOCK_PAGES);
                m.page(half).set_kind(Kind::Isolated, Order::PAGEBLOCK);
                cell.lock.lock(m).offline.push_back(half, |pfn| m.page(pfn));
                m.page(pfn).set_kind(Kind::Isolated, Order::PAGEBLOCK);
                range = PfnRange::block(pfn, Order::PAGEBLOCK);
                online = m.online(range, node);
            }
            if !online {
                // Another one may be had, where somebody else sits in this.
                cell.lock.lock(m).offline.push_back(pfn, |pfn| m.page(pfn));
                break;
            }
            self.add_range(m, node, kind, range, STATE);
            come += range.pages;
        }
        come > 0
    }
}
