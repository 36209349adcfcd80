//! Free memory whose addresses go back to the system, too (the kernel's memory hotplug).
//!
//! Where a system counts addresses that may be written to (`RLIMIT_DATA`, `RLIMIT_AS`, `vm.overcommit_memory` = 2) what
//! a zone has free is counted, and a large block may be refused for it. So, when one is, free blocks go *offline*: out
//! of the buddy system and of the zone's figures, with nothing there that may be written to, large ones first. A zone
//! that grows takes them first.
//!
//! The least limits in MiB with which programs ran, of `RLIMIT_DATA` and of `RLIMIT_AS`:
//!
//! | | 48 MiB small, then large | python | sqlite | lua | cc1plus | ruby |
//! |---|---|---|---|---|---|---|
//! | before | 128, 112 | 61, 72 | 19, 26 | 59, 65 | 64, 108 | 100, 118 |
//! | whole pageblocks only | 60, 63 | 58, 70 | 17, 24 | 55, 60 | 64, 108 | 96, 114 |
//! | this | 58, 61 | 51, 61 | 16, 23 | 45, 51 | 60, 104 | 92, 110 |
//! | glibc | 54, 57 | 49, 58 | 11, 16 | 45, 49 | 58, 100 | 90, 106 |

use core::sync::atomic::Ordering::Relaxed;

use super::{Cell, PageAllocator, Watermarks, Zone};
use crate::machine::Machine;
use crate::page::{Kind, PageList, flag};
use crate::types::{NR_ORDERS, Order, Pfn, PfnRange};

/// Order of the smallest block that goes offline (64 KiB): each is a mapping of its own, and a call of the system.
const SMALLEST: u8 = 4;
/// Blocks of less than a pageblock that may be offline at a time in a zone, for a process may have 65530 mappings.
const SMALL_BLOCKS: u32 = 2048;

/// What is offline, by order.
pub(super) struct Offline([PageList; NR_ORDERS]);

impl Offline {
    pub const fn new() -> Offline {
        Offline([const { PageList::new() }; NR_ORDERS])
    }

    fn put<M: Machine>(&mut self, m: &M, pfn: Pfn, order: Order) {
        let head = m.page(pfn);
        head.set_kind(Kind::Isolated, order);
        head.set_flags(flag::UNBACKED);
        self.0[order.index()].push_back(pfn, |pfn| m.page(pfn));
    }

    /// The smallest block of at least `order`.
    fn take<M: Machine>(&mut self, m: &M, order: Order) -> Option<PfnRange> {
        let list = self.0[order.index()..].iter_mut().find(|list| !list.is_empty())?;
        let pfn = list.first()?;
        list.remove(pfn, |pfn| m.page(pfn));
        Some(PfnRange::block(pfn, m.page(pfn).order()))
    }

    fn has_room(&self, order: Order) -> bool {
        order >= Order::PAGEBLOCK
            || self.0[..Order::PAGEBLOCK.index()].iter().map(PageList::len).sum::<u32>() < SMALL_BLOCKS
    }
}

impl<M: Machine> PageAllocator<M> {
    /// Takes free memory offline, `pages` pages or somewhat more, or what there is; how many. The caller holds no lock.
    #[cold]
    pub fn take_offline(&self, m: &M, pages: u64) -> u64 {
        if !M::LENT {
            return 0;
        }
        // A fork waits for it, so that the child knows where all of them are.
        let _growing = self.growing.lock(m);
        let mut gone = 0;
        for order in (SMALLEST..NR_ORDERS as u8).rev().filter_map(Order::new) {
            for cell in self.used_cells() {
                while gone < pages && self.take_block_offline(m, cell, order) {
                    gone += u64::from(order.pages());
                }
            }
        }
        gone
    }

    /// Takes a free block of `order` offline, if there is one.
    fn take_block_offline(&self, m: &M, cell: &Cell, order: Order) -> bool {
        let mut zone = cell.lock.lock(m);
        if !zone.offline.has_room(order) {
            return false;
        }
        let Some((pfn, contents)) = zone.buddy.take_free(&self.view(m), order) else { return false };
        zone.away += order.pages();
        drop(zone);
        let done = m.offline(PfnRange::block(pfn, order));
        let mut zone = cell.lock.lock(m);
        zone.away -= order.pages();
        let backed = contents.extent.len();
        if done {
            zone.offline.put(m, pfn, order);
            cell.shrunk.store(true, Relaxed);
            self.shrink_zone(cell, &mut zone, order.pages());
            self.budget.uncharge(backed.into());
            self.discarded.fetch_add(backed.into(), Relaxed);
        } else {
            let clean = zone.clean_pages() + order.pages() - backed;
            zone.buddy.free_known(&self.view(m), pfn, order, contents);
            self.settle(clean, zone.clean_pages());
        }
        done
    }

    /// A zone has `pages` pages less.
    fn shrink_zone(&self, cell: &Cell, zone: &mut Zone, pages: u32) {
        zone.present -= pages;
        let managed = cell.managed.load(Relaxed) - pages;
        cell.managed.store(managed, Relaxed);
        zone.marks = Watermarks::of(managed.into());
        self.managed.fetch_sub(pages.into(), Relaxed);
    }

    /// Opens a block of a zone that went offline again, of `order` at least; it is nobody's then. `None` where there is
    /// none, or the system refuses. Called without the zone's lock.
    #[cold]
    #[inline(never)]
    pub(super) fn bring_online(&self, m: &M, node: usize, cell: &Cell, order: Order) -> Option<PfnRange> {
        let mut range = cell.lock.lock(m).offline.take(m, order)?;
        let mut part = m.page(range.start).order();
        while !m.online(range, node) {
            // There may be room for half of it.
            let Some(half) = part.down().filter(|half| *half >= order && half.get() >= SMALLEST) else {
                // Another one may be had, where somebody else sits in this.
                cell.lock.lock(m).offline.put(m, range.start, part);
                return None;
            };
            part = half;
            range.pages = half.pages();
            cell.lock.lock(m).offline.put(m, range.end(), half);
        }
        Some(range)
    }
}
