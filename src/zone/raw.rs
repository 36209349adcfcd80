//! The unsafe parts of the layer: tables that lie in frames, and zeroing frames.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicPtr, AtomicU8, Ordering};

use super::PageAllocator;
use super::alloc::Taken;
use super::fallback::MigrateType;
use super::percpu::Pcp;
use crate::machine::{Frames, MAX_NODES, Machine, NR_ZONES};
use crate::page::flag;
use crate::sync::{Fork, Lock};
use crate::types::{Order, PAGE_SIZE, PAGEBLOCK_ORDER, PAGEBLOCK_PAGES, Pfn};

/// Pageblocks that one leaf of the table describes: a page of bytes, 8 GiB of memory.
const LEAF: usize = PAGE_SIZE;
/// Frames that one leaf describes.
pub const LEAF_PAGES: u32 = LEAF as u32 * PAGEBLOCK_PAGES;
/// Leaves that 2^32 frames need.
const LEAVES: usize = (1 << (32 - PAGEBLOCK_ORDER)) / LEAF;

/// Bits of the migrate type; above them the owner, 0 for a pageblock that was never online.
const TYPE: u8 = 7;
const OWNER_SHIFT: u32 = 3;

/// A zone of a node as the owner of a pageblock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner(u8);

impl Owner {
    /// Zone and node.
    pub const fn new(zone: usize, node: usize) -> Owner {
        Owner((1 + node * NR_ZONES + zone) as u8)
    }

    /// Its zone.
    pub const fn zone(self) -> usize {
        (self.0 as usize - 1) % NR_ZONES
    }

    /// Its node.
    pub const fn node(self) -> usize {
        (self.0 as usize - 1) / NR_ZONES
    }
}

const _: () = assert!((1 + MAX_NODES * NR_ZONES) << OWNER_SHIFT <= 256);

/// One byte per pageblock: its migrate type and the zone it belongs to. Not in a descriptor, because descriptors in use
/// belong to their owners, who write all of their fields without the zone lock.
///
/// A byte is written under the lock of the zone whose frames it describes. The first leaf, which is all that small
/// machines and small processes ever use, is part of the table; the others are pages that are taken from the frames
/// they describe, once and for ever.
pub struct BlockMap {
    first: [AtomicU8; LEAF],
    more: [AtomicPtr<[AtomicU8; LEAF]>; LEAVES - 1],
}

impl BlockMap {
    pub const fn new() -> BlockMap {
        BlockMap {
            first: [const { AtomicU8::new(0) }; LEAF],
            more: [const { AtomicPtr::new(core::ptr::null_mut()) }; LEAVES - 1],
        }
    }

    fn leaf(&self, index: usize) -> Option<&[AtomicU8; LEAF]> {
        if index == 0 {
            return Some(&self.first);
        }
        // Acquire, pairs with the Release in `give`: the leaf is zeroed.
        let leaf = self.more[index - 1].load(Ordering::Acquire);
        // SAFETY: a pointer in the table came through `give`, whose caller gave the page away for ever; atomics may be
        // shared.
        unsafe { leaf.as_ref() }
    }

    fn byte(&self, pfn: Pfn) -> Option<&AtomicU8> {
        let block = pfn.index() >> PAGEBLOCK_ORDER;
        Some(&self.leaf(block / LEAF)?[block % LEAF])
    }

    /// Whether the table can describe this frame's pageblock.
    pub fn covers(&self, pfn: Pfn) -> bool {
        self.byte(pfn).is_some()
    }

    /// Takes the memory of frame `pfn`, which the machine has just given and nobody uses, for the leaf that describes
    /// it. False where there is a leaf already, or the frame has no address, and the frame remains the caller's.
    pub fn give<M: Frames>(&self, m: &M, pfn: Pfn) -> bool {
        let index = pfn.index() / LEAF_PAGES as usize;
        let page = m.virt(pfn);
        if index == 0 || page.is_null() {
            return false;
        }
        // SAFETY: `Frames` promises memory at `virt` of an online frame, and the caller that nobody else uses it.
        unsafe { page.write_bytes(0, PAGE_SIZE) };
        // Release, pairs with the Acquire in `leaf`.
        self.more[index - 1]
            .compare_exchange(core::ptr::null_mut(), page.cast(), Ordering::Release, Ordering::Relaxed)
            .is_ok()
    }

    /// Type of the pageblock; unmovable for one that was never online.
    pub fn get(&self, pfn: Pfn) -> MigrateType {
        self.byte(pfn).map_or(MigrateType::Unmovable, |b| MigrateType::from_raw(b.load(Ordering::Relaxed) & TYPE))
    }

    /// Sets the type of an online pageblock. Under the lock of the zone that owns it.
    pub fn set(&self, pfn: Pfn, to: MigrateType) {
        if let Some(byte) = self.byte(pfn) {
            byte.store(byte.load(Ordering::Relaxed) & !TYPE | to as u8, Ordering::Relaxed);
        }
    }

    /// Makes a pageblock movable memory of `owner`, unless it has an owner already. Whether it is `owner`'s now.
    pub fn claim(&self, pfn: Pfn, owner: Owner) -> bool {
        let fresh = owner.0 << OWNER_SHIFT | MigrateType::Movable as u8;
        let claim = |byte: &AtomicU8| byte.compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed);
        match self.byte(pfn).map(claim) {
            Some(Ok(_)) => true,
            Some(Err(byte)) => byte >> OWNER_SHIFT == owner.0,
            None => false,
        }
    }

    /// Whether the pageblock is `owner`'s.
    pub fn is_of(&self, pfn: Pfn, owner: Owner) -> bool {
        self.byte(pfn).is_some_and(|byte| byte.load(Ordering::Relaxed) >> OWNER_SHIFT == owner.0)
    }

    /// Whether the pageblock has online frames.
    pub fn online(&self, pfn: Pfn) -> bool {
        self.byte(pfn).is_some_and(|b| b.load(Ordering::Relaxed) != 0)
    }

    /// The types of the pageblocks that `owner` has.
    pub fn of(&self, owner: Owner) -> impl Iterator<Item = MigrateType> {
        let bytes = (0..LEAVES).filter_map(|leaf| self.leaf(leaf)).flatten().map(|byte| byte.load(Ordering::Relaxed));
        bytes.filter(move |byte| byte >> OWNER_SHIFT == owner.0).map(|byte| MigrateType::from_raw(byte & TYPE))
    }

    /// First frames of all pageblocks with online frames, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Pfn> {
        (0..LEAVES).filter_map(|leaf| Some((leaf, self.leaf(leaf)?))).flat_map(|(index, leaf)| {
            let online = leaf.iter().enumerate().filter(|(_, b)| b.load(Ordering::Relaxed) != 0);
            online.map(move |(i, _)| Pfn((index * LEAF + i) as u32 * PAGEBLOCK_PAGES))
        })
    }
}

/// CPUs with lists of their own; those beyond share.
const MAX_PCPS: usize = 128;
/// Order of the block that holds one CPU's lists.
pub const PCP_ORDER: Order = match Order::holding(size_of::<Lock<Pcp>>().div_ceil(PAGE_SIZE)) {
    Some(order) => order,
    None => panic!(),
};

/// The per-CPU page lists, by CPU and zone. Each is made on first use, in frames of its own that are never given back:
/// most machines have few CPUs and one zone that matters.
pub struct PcpTable {
    slots: [[AtomicPtr<Lock<Pcp>>; NR_ZONES]; MAX_PCPS],
}

impl PcpTable {
    pub const fn new() -> PcpTable {
        PcpTable { slots: [const { [const { AtomicPtr::new(core::ptr::null_mut()) }; NR_ZONES] }; MAX_PCPS] }
    }

    /// The lists of a CPU for a zone.
    #[inline]
    pub fn get(&self, cpu: usize, zone: usize) -> Option<&Lock<Pcp>> {
        // Acquire, pairs with the Release in `give`.
        let slot = self.slots[cpu % MAX_PCPS].get(zone)?.load(Ordering::Acquire);
        // SAFETY: a pointer in the table came through `give`: it is valid for ever.
        unsafe { slot.as_ref() }
    }

    /// [`PcpTable::get`] of a CPU whose lists are its own.
    pub fn own(&self, cpu: usize, zone: usize) -> Option<&Lock<Pcp>> {
        if cpu < MAX_PCPS { self.get(cpu, zone) } else { None }
    }

    /// All lists, with their zone.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Lock<Pcp>)> {
        let all = (0..MAX_PCPS * NR_ZONES).map(|i| (i / NR_ZONES, i % NR_ZONES));
        all.filter_map(|(cpu, zone)| Some((zone, self.get(cpu, zone)?)))
    }

    /// Makes a CPU's lists in frames just taken, at least a block of [`PCP_ORDER`]. False where there are some
    /// already, or the frames have no address: they remain the caller's.
    pub fn give<M: Machine>(&self, m: &M, cpu: usize, zone: usize, taken: &Taken, node: usize, high: u32) -> bool {
        let at: *mut Lock<Pcp> = m.virt(taken.range.start).cast();
        if at.is_null() || taken.range.bytes() < size_of::<Lock<Pcp>>() {
            return false;
        }
        // SAFETY: 1. the frames are online and the caller's; 2. a page is aligned enough; 3. all zeroes is a free lock
        // around lists without pages.
        let lock = unsafe {
            if taken.state & flag::ZERO == 0 {
                at.write_bytes(0, 1);
            }
            &*at
        };
        lock.lock(m).set_up(node, high);
        // Release, pairs with the Acquire in `get`.
        self.slots[cpu % MAX_PCPS][zone]
            .compare_exchange(core::ptr::null_mut(), at, Ordering::Release, Ordering::Relaxed)
            .is_ok()
    }
}

/// Zeroes frames that were just taken off the free lists: being `Taken` proves that nobody else uses them. False for
/// memory without an address.
pub fn zero<M: Frames>(m: &M, taken: &Taken) -> bool {
    let at = m.virt(taken.range.start);
    if at.is_null() {
        return false;
    }
    // SAFETY: 1. the frames are online and, being taken, the caller's; 2. `Frames` promises memory at `virt`, and
    // adjacent frames of one zone have adjacent addresses.
    unsafe { at.write_bytes(0, taken.range.bytes()) };
    true
}

impl<M: Machine> PageAllocator<M> {
    /// Gives back what [`PageAllocator::lock_all`] took.
    ///
    /// # Safety
    /// The caller, or the parent it was forked from, holds all locks through `lock_all`.
    pub unsafe fn unlock_all(&self, m: &M, fork: Fork) {
        // SAFETY: as the caller promises; no reference into what a lock guards outlives a call. While `making` is held
        // no per-CPU lists are made, so these are the ones that were locked.
        unsafe {
            self.zones.as_flattened().iter().for_each(|cell| cell.lock.unlock_after_fork(m, fork));
            self.pcps.iter().for_each(|(_, pcp)| pcp.unlock_after_fork(m, fork));
            self.making.unlock_after_fork(m, fork);
            self.growing.unlock_after_fork(m, fork);
        }
    }

    /// In a child, whose only thread the caller is, with nothing in hand: who grew a zone is not there, and left it
    /// whole.
    pub fn begin_child(&self) {
        if self.growing.is_held() {
            // SAFETY: the caller's condition; the lock guards nothing but time.
            unsafe { self.growing.abandon() };
        }
    }
}
