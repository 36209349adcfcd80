//! Page descriptors: one [`Page`] of 32 bytes per frame, in the memmap.
//!
//! A descriptor's fields are guarded by whoever owns the frame: the zone lock while it is on a free list, the per-CPU
//! list's lock while it is there, the cache's list lock while it is a slab, the holder of the run otherwise. They are
//! atomics because `free` of an arbitrary address reads `kind` before it knows the owner; all accesses but those of
//! references are Relaxed, the locks order them.

mod list;

use core::sync::atomic::{AtomicI32, AtomicU8, AtomicU16, AtomicU32, Ordering::AcqRel, Ordering::Relaxed};

pub use list::PageList;

use crate::sync::wide::AtomicU64;
use crate::types::{Order, Pfn};

/// What a frame is at present. Zero is a descriptor that was never initialised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Never initialised: offline.
    Offline = 0,
    /// Head of a free block in the buddy system; `order` is the block's.
    Buddy = 1,
    /// Not a head: interior page of a block whose head says what it is.
    Tail = 2,
    /// Head of a free block on a per-CPU page list; `order` is the block's.
    Pcp = 3,
    /// Handed out by `alloc_pages`; `order` is the block's, `refs` counts references.
    Allocated = 4,
    /// Head of an exact page run of the large-allocation path; `word` is its number of pages.
    Run = 5,
    /// A page of a slab (every page of it): `cache` and `order` are set, the head is at the block's aligned start.
    Slab = 6,
    /// A page table.
    Table = 7,
    /// A frame under a vmalloc area; `word` is the area's first address.
    Vmalloc = 8,
    /// Kept by the machine or the core for itself, never handed out.
    Reserved = 9,
    /// Taken off the free lists for the moment, e.g. while it is given back to the system; or freed while its zone was
    /// locked (`mm::deferred`).
    Isolated = 10,
    /// Head of a freed page run that a CPU keeps for the next request of its size; `word` is its number of pages.
    Kept = 11,
    /// First page of a row of free pages from which runs are cut; `word` is its number of pages.
    Row = 12,
    /// Last page of a row of several; `word` is the row's number of pages.
    RowEnd = 13,
    /// Head of a page run of a class that `free` knows from the page-class map; `word` is its number of pages. Its tag
    /// there says that it is a block, and how far into the page that starts; 0 that it was freed, and a CPU keeps it
    /// for the next request of its size.
    Tagged = 14,
}

impl Kind {
    /// Whether a frame that says so is free, or on its way: who frees it does so for the second time. (Of
    /// [`Kind::Tagged`] the page-class map knows.)
    pub const fn is_free(self) -> bool {
        matches!(self, Kind::Buddy | Kind::Pcp | Kind::Isolated | Kind::Kept | Kind::Row | Kind::RowEnd)
    }

    /// Whether a frame that says so heads nothing that could be freed.
    pub const fn heads_nothing(self) -> bool {
        matches!(self, Kind::Offline | Kind::Buddy | Kind::Tail | Kind::Pcp | Kind::Row | Kind::RowEnd)
    }

    const fn from(raw: u8) -> Kind {
        match raw {
            1 => Kind::Buddy,
            2 => Kind::Tail,
            3 => Kind::Pcp,
            4 => Kind::Allocated,
            5 => Kind::Run,
            6 => Kind::Slab,
            7 => Kind::Table,
            8 => Kind::Vmalloc,
            9 => Kind::Reserved,
            10 => Kind::Isolated,
            11 => Kind::Kept,
            12 => Kind::Row,
            13 => Kind::RowEnd,
            14 => Kind::Tagged,
            _ => Kind::Offline,
        }
    }
}

/// Flag bits of [`Page::flags`]. Bits 8–15 are the zone, 16–23 the node, 24–31 the slab's colour.
pub mod flag {
    /// The whole block reads zero.
    pub const ZERO: u32 = 1 << 0;
    /// The block was never backed, or given back: touching it faults. Implies [`ZERO`].
    pub const UNBACKED: u32 = 1 << 1;
    /// The slab is on its node's partial list.
    pub const PARTIAL: u32 = 1 << 2;
    /// The block is one compound page (`__GFP_COMP`).
    pub const COMPOUND: u32 = 1 << 3;
    /// The block came from the reserve.
    pub const RESERVE: u32 = 1 << 4;
    /// Every page of the block was touched since it holds memory: touching it takes no fault.
    pub const POPULATED: u32 = 1 << 6;
    /// Free for the owner of the frame.
    pub const OWNER_PRIV: u32 = 1 << 5;
    /// The contents may move to another frame: `cache` says whose page it is, `word` what it is to that owner.
    pub const MIGRATABLE: u32 = 1 << 7;
}

/// A page descriptor.
#[repr(C)]
pub struct Page {
    flags: AtomicU32,
    kind: AtomicU8,
    order: AtomicU8,
    cache: AtomicU16,
    /// References (allocated pages) or objects in use (slabs).
    refs: AtomicU32,
    /// Mappings of the page, counted from -1.
    mapcount: AtomicI32,
    next: AtomicU32,
    prev: AtomicU32,
    /// By kind: free map word (slab), pages (run), address (vmalloc), `virtual` (highmem).
    word: AtomicU64,
}

const _: () = assert!(size_of::<Page>() == 32);

macro_rules! fields {
    ($($(#[$doc:meta])* $get:ident, $set:ident: $ty:ty = $field:ident;)*) => {
        $($(#[$doc])*
        #[inline]
        pub fn $get(&self) -> $ty {
            self.$field.load(Relaxed)
        }
        #[doc = concat!("Sets what [`Page::", stringify!($get), "`] returns.")]
        #[inline]
        pub fn $set(&self, value: $ty) {
            self.$field.store(value, Relaxed);
        })*
    };
}

impl Page {
    /// A descriptor as a fresh memmap holds it (all zero).
    pub const fn new() -> Page {
        Page {
            flags: AtomicU32::new(0),
            kind: AtomicU8::new(0),
            order: AtomicU8::new(0),
            cache: AtomicU16::new(0),
            refs: AtomicU32::new(0),
            mapcount: AtomicI32::new(0),
            next: AtomicU32::new(0),
            prev: AtomicU32::new(0),
            word: AtomicU64::new(0),
        }
    }

    fields! {
        /// All flag bits with zone, node and colour.
        flags, set_flags: u32 = flags;
        /// Cache id of a slab page.
        cache, set_cache: u16 = cache;
        /// References or objects in use.
        refs, set_refs: u32 = refs;
        /// Mappings, from -1.
        mapcount, set_mapcount: i32 = mapcount;
        /// The word whose meaning depends on the kind.
        word, set_word: u64 = word;
    }

    /// What the frame is.
    #[inline]
    pub fn kind(&self) -> Kind {
        Kind::from(self.kind.load(Relaxed))
    }

    /// Sets the kind and the order of the block it heads.
    #[inline]
    pub fn set_kind(&self, kind: Kind, order: Order) {
        self.kind.store(kind as u8, Relaxed);
        self.order.store(order.get(), Relaxed);
    }

    /// Changes the kind from `from` to `to` in one step; false where it was something else. Two frees of one block race
    /// here, and one of them loses.
    #[inline]
    pub fn claim(&self, from: Kind, to: Kind) -> bool {
        self.kind.compare_exchange(from as u8, to as u8, Relaxed, Relaxed).is_ok()
    }

    /// Takes the only reference there is away, so that nobody can take another one meanwhile; false where there are
    /// more.
    #[inline]
    pub fn freeze(&self) -> bool {
        // Acquire of what former holders released.
        self.refs.compare_exchange(1, 0, AcqRel, Relaxed).is_ok()
    }

    /// Counts one more reference.
    #[inline]
    pub fn add_ref(&self) {
        self.refs.fetch_add(1, Relaxed);
    }

    /// Counts one reference less and returns how many are left. The last holder sees what the others wrote.
    #[inline]
    pub fn drop_ref(&self) -> u32 {
        // AcqRel: Release for what this holder wrote, Acquire of what the others released.
        self.refs.fetch_sub(1, AcqRel) - 1
    }

    /// Order of the block.
    #[inline]
    pub fn order(&self) -> Order {
        Order::new(self.order.load(Relaxed)).unwrap_or(Order::ZERO)
    }

    /// Whether all bits of `mask` are set.
    #[inline]
    pub fn has(&self, mask: u32) -> bool {
        self.flags() & mask == mask
    }

    /// Sets the bits of `mask`. Only for the frame's owner: a plain load and store.
    #[inline]
    pub fn set(&self, mask: u32) {
        self.set_flags(self.flags() | mask);
    }

    /// Clears the bits of `mask`. Only for the frame's owner.
    #[inline]
    pub fn clear(&self, mask: u32) {
        self.set_flags(self.flags() & !mask);
    }

    /// Zone index.
    #[inline]
    pub fn zone(&self) -> usize {
        (self.flags() >> 8 & 0xff) as usize
    }

    /// Node index.
    #[inline]
    pub fn node(&self) -> usize {
        (self.flags() >> 16 & 0xff) as usize
    }

    /// Sets zone and node, clearing all else.
    pub fn set_home(&self, zone: usize, node: usize) {
        self.set_flags((zone as u32) << 8 | (node as u32) << 16);
    }

    /// Colour of a slab's first object.
    #[inline]
    pub fn colour(&self) -> usize {
        (self.flags() >> 24) as usize
    }

    /// Sets the slab's colour, below 256.
    #[inline]
    pub fn set_colour(&self, colour: usize) {
        self.set_flags(self.flags() & 0x00ff_ffff | (colour as u32) << 24);
    }

    /// Next page of the list it is on.
    #[inline]
    pub fn next(&self) -> Pfn {
        Pfn(self.next.load(Relaxed))
    }

    /// Previous page of the list it is on.
    #[inline]
    pub fn prev(&self) -> Pfn {
        Pfn(self.prev.load(Relaxed))
    }

    fn set_next(&self, pfn: Pfn) {
        self.next.store(pfn.0, Relaxed);
    }

    fn set_prev(&self, pfn: Pfn) {
        self.prev.store(pfn.0, Relaxed);
    }
}

impl Default for Page {
    fn default() -> Page {
        Page::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // rows: A1
    #[test]
    fn each_field_is_its_own() {
        let page = Page::new();
        let fields = || (page.cache(), page.refs(), page.mapcount(), page.word(), page.next(), page.prev());
        assert_eq!((page.kind(), page.flags(), fields()), (Kind::Offline, 0, (0, 0, 0, 0, Pfn(0), Pfn(0))));
        page.set_cache(u16::MAX);
        page.set_refs(u32::MAX - 1);
        page.set_mapcount(-1);
        page.set_word(u64::MAX - 2);
        page.set_next(Pfn(u32::MAX - 3));
        page.set_prev(Pfn(u32::MAX - 4));
        page.set_kind(Kind::RowEnd, Order::MAX);
        page.set_home(3, 2);
        page.set_colour(255);
        page.set(flag::ZERO | flag::MIGRATABLE);
        page.clear(flag::ZERO);
        assert_eq!((page.zone(), page.node(), page.colour()), (3, 2, 255));
        assert!(page.has(flag::MIGRATABLE) && !page.has(flag::ZERO) && !page.has(flag::MIGRATABLE | flag::PARTIAL));
        assert_eq!((page.kind(), page.order()), (Kind::RowEnd, Order::MAX));
        let most = u32::MAX;
        assert_eq!(fields(), (u16::MAX, most - 1, -1, u64::MAX - 2, Pfn(most - 3), Pfn(most - 4)));
        page.set_home(1, 0);
        assert_eq!((page.flags(), page.kind()), (1 << 8, Kind::RowEnd), "set_home clears the other flags");
    }

    // rows: A1
    #[test]
    fn a_kind_is_read_as_it_was_set_and_claimed_once() {
        let page = Page::new();
        let kinds: std::vec::Vec<Kind> = (0..=Kind::Tagged as u8).map(Kind::from).collect();
        for (raw, kind) in kinds.iter().enumerate() {
            assert_eq!(*kind as usize, raw);
            page.set_kind(*kind, Order::ZERO);
            assert_eq!(page.kind(), *kind);
            assert!(page.claim(*kind, Kind::Isolated) && (*kind == Kind::Isolated || !page.claim(*kind, Kind::Buddy)));
        }
    }
}
