//! Mobility grouping: which list a request is served from, and where it goes when that list is empty.
//!
//! As in the kernel, a whole pageblock is *claimed* for the new type where at least half of it is free or compatible,
//! so that the next requests of that type find room there; else one block is *stolen* and its pageblock keeps its type.

use crate::gfp::Gfp;
use crate::types::{Order, PAGEBLOCK_ORDER, PAGEBLOCK_PAGES};

/// How the pages of a pageblock come back. One list per type in every free area.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum MigrateType {
    /// Never moved: slabs, page tables.
    Unmovable = 0,
    /// Freed whole, or moved.
    Movable = 1,
    /// Given back by a shrinker.
    Reclaimable = 2,
    /// The pre-faulted reserve of `__GFP_HIGH`. Set per block, not per pageblock: 2 MiB would be too much for a
    /// process.
    HighAtomic = 3,
    /// For contiguous ranges; only movable requests borrow from it.
    Cma = 4,
    /// Handed to nobody.
    Isolate = 5,
}

/// Number of [`MigrateType`]s.
pub const MIGRATE_TYPES: usize = 6;

impl MigrateType {
    /// All of them, in the order of their numbers.
    pub const ALL: [MigrateType; MIGRATE_TYPES] = [
        MigrateType::Unmovable,
        MigrateType::Movable,
        MigrateType::Reclaimable,
        MigrateType::HighAtomic,
        MigrateType::Cma,
        MigrateType::Isolate,
    ];

    /// The type a request belongs to (the kernel's `gfp_migratetype`).
    #[inline]
    pub const fn of(gfp: Gfp) -> MigrateType {
        if gfp.has(Gfp::MOVABLE) {
            MigrateType::Movable
        } else if gfp.has(Gfp::RECLAIMABLE) {
            MigrateType::Reclaimable
        } else {
            MigrateType::Unmovable
        }
    }

    /// The type with number `raw`; what is none reads as unmovable, the type that promises nothing.
    #[inline]
    pub const fn from_raw(raw: u8) -> MigrateType {
        match raw {
            1 => MigrateType::Movable,
            2 => MigrateType::Reclaimable,
            3 => MigrateType::HighAtomic,
            4 => MigrateType::Cma,
            5 => MigrateType::Isolate,
            _ => MigrateType::Unmovable,
        }
    }

    /// Index into tables by type.
    #[inline]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Whether pageblocks of this type may become another type by falling back or merging.
    #[inline]
    pub const fn mixes(self) -> bool {
        matches!(self, MigrateType::Unmovable | MigrateType::Movable | MigrateType::Reclaimable)
    }
}

/// Where a request goes when its own lists are empty, best first.
pub fn fallbacks(of: MigrateType) -> &'static [MigrateType] {
    use MigrateType::{Movable, Reclaimable, Unmovable};
    // A table of its own: one of slices would be a relocation each.
    static FALLBACKS: [[MigrateType; 2]; 3] = [[Reclaimable, Movable], [Reclaimable, Unmovable], [Unmovable, Movable]];
    FALLBACKS.get(of.index()).map_or(&[], |types| types)
}

/// Whether a request of type `start` that finds a free block of `order` elsewhere should try for its whole pageblock.
/// Movable requests do so only for big blocks: they can be moved out again.
pub const fn may_claim(start: MigrateType, order: Order) -> bool {
    order.get() >= PAGEBLOCK_ORDER / 2 || !matches!(start, MigrateType::Movable)
}

/// Whether `free` and `compatible` pages of a pageblock are enough to claim it.
pub const fn claims(free: u32, compatible: u32) -> bool {
    free + compatible >= PAGEBLOCK_PAGES / 2
}
