//! The buddy system of one zone: free blocks of 2^order frames, split on demand, merged with their buddy when freed.
//!
//! Guard: all of it, and the descriptors of free blocks, belong to the zone lock's holder.
//!
//! Two lists per order and migrate type keep blocks that hold memory (*backed*, at least in part: `extent`) apart from
//! those that were never touched or were given back to the host (*clean*: they read zero, and the first touch faults).
//! Reusing backed memory costs no fault and no new memory, so small requests take backed blocks first, then clean
//! remainders of pageblocks that are in use anyway, and break a whole pageblock last.
//!
//! Two frames are buddies, and merge, iff (a) they differ in bit `order` alone, (b) the other one heads a free block,
//! (c) of the same order, (d) in the same zone and node, (e) both or neither belong to the reserve, (f) beyond a
//! pageblock, their pageblocks' types mix.
//!
//! Interior pages are [`Kind::Tail`], or [`Kind::Offline`] where their descriptor was never written: only heads are
//! touched, so that bringing memory online costs one descriptor for 4 MiB.

use core::fmt;

use super::extent::{Contents, Extent};
use super::fallback::{self, MIGRATE_TYPES, MigrateType};
use crate::page::{Kind, Page, PageList, flag};
use crate::types::{NR_ORDERS, Order, PAGEBLOCK_ORDER, PAGEBLOCK_PAGES, Pfn, PfnRange};

/// What the algorithm needs to know of the world.
pub trait Map {
    /// The descriptor of an online frame, or of a frame in the same largest block as one.
    fn page(&self, pfn: Pfn) -> &Page;
    /// Type of the pageblock that holds the frame.
    fn block_type(&self, pfn: Pfn) -> MigrateType;
    /// Sets it.
    fn set_block_type(&self, pfn: Pfn, to: MigrateType);
    /// Hears of every step.
    fn trace(&self, _event: Event) {}
}

/// A step of the buddy system, for traces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A block left its free list.
    Take(Pfn, Order),
    /// A block joined a free list.
    Insert(Pfn, Order, MigrateType),
    /// A freed block met its buddy.
    Merge(Pfn, Pfn, Order),
    /// A pageblock changed its type.
    Claim(Pfn, MigrateType),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Take(pfn, order) => write!(f, "take {} order {}", pfn.0, order.get()),
            Event::Insert(pfn, order, list) => write!(f, "insert {} order {} {list:?}", pfn.0, order.get()),
            Event::Merge(pfn, buddy, order) => write!(f, "merge {} with {} order {}", pfn.0, buddy.0, order.get()),
            Event::Claim(pfn, list) => write!(f, "claim {} {list:?}", pfn.0),
        }
    }
}

/// What a request prefers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Want {
    /// Memory that costs least.
    Any,
    /// Memory that reads zero.
    Zero,
    /// Only memory whose touch does not fault.
    Backed,
}

/// Room that is asked for: `pages` pages from a multiple of `order`'s on, in pageblocks of type `list`.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// What the first page's number is a multiple of.
    pub order: Order,
    /// Pages, at most as many as a block of that order has.
    pub pages: u32,
    /// Whose lists.
    pub list: MigrateType,
    /// Which memory.
    pub want: Want,
}

impl Need {
    /// A block.
    pub fn block(order: Order, list: MigrateType, want: Want) -> Need {
        Need { order, pages: order.pages(), list, want }
    }

    fn on(self, list: MigrateType) -> Need {
        Need { list, ..self }
    }
}

/// Where [`Buddy::find`] found room for a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// The block that the room is in.
    block: Pfn,
    order: Order,
    /// Pages into the block.
    at: u32,
    /// Pages of it that hold no memory yet: handing them out makes the host back them.
    pub fresh: u32,
    /// Pages without memory from there on, where the request's are all without.
    pub room: u32,
}

/// The state bits of a block: [`flag::ZERO`] and [`flag::UNBACKED`].
pub const STATE: u32 = flag::ZERO | flag::UNBACKED;

/// Zeroing less than this costs less than the faults of fresh memory (50–100 ns against 500–1300 ns a page).
const ZERO_WORTH: u8 = 4;
/// Blocks of one list that are looked at for one with enough memory in it.
const LOOK: usize = 8;
/// Orders below a pageblock, as a set.
const SMALL: u16 = (1 << PAGEBLOCK_ORDER) - 1;

/// The free blocks of one order.
pub struct FreeArea {
    /// By migrate type; the most recently freed first, those that read zero last.
    pub backed: [PageList; MIGRATE_TYPES],
    /// By migrate type.
    pub clean: [PageList; MIGRATE_TYPES],
}

/// Free blocks of a zone.
///
/// Invariants ([`crate::zone::PageAllocator::verify`]): a bit of `backed`/`clean` is set iff the list has blocks;
/// `free[t]` is the sum of the blocks' pages on the lists of type `t`; `clean_pages` of those outside the blocks'
/// extents; `whole_pages` of those inside the extents of blocks of a pageblock and more.
pub struct Buddy {
    areas: [FreeArea; NR_ORDERS],
    backed: [u16; MIGRATE_TYPES],
    clean: [u16; MIGRATE_TYPES],
    free: [u32; MIGRATE_TYPES],
    free_pages: u32,
    clean_pages: u32,
    whole_pages: u32,
    home: u32,
    /// Pageblocks claimed by another type so far.
    pub claims: u32,
    /// Blocks stolen from another type's pageblock so far.
    pub steals: u32,
}

impl Buddy {
    /// Nothing free.
    pub const fn new() -> Buddy {
        const AREA: FreeArea = FreeArea {
            backed: [const { PageList::new() }; MIGRATE_TYPES],
            clean: [const { PageList::new() }; MIGRATE_TYPES],
        };
        Buddy {
            areas: [AREA; NR_ORDERS],
            backed: [0; MIGRATE_TYPES],
            clean: [0; MIGRATE_TYPES],
            free: [0; MIGRATE_TYPES],
            free_pages: 0,
            clean_pages: 0,
            whole_pages: 0,
            home: 0,
            claims: 0,
            steals: 0,
        }
    }

    /// Sets the zone and node of its frames.
    pub fn set_home(&mut self, zone: usize, node: usize) {
        self.home = home(zone, node);
    }

    /// Free pages.
    #[inline]
    pub fn free_pages(&self) -> u32 {
        self.free_pages
    }

    /// Free pages that hold no memory.
    #[inline]
    pub fn clean_pages(&self) -> u32 {
        self.clean_pages
    }

    /// Free pages that hold memory, in whole pageblocks.
    #[inline]
    pub fn whole_pages(&self) -> u32 {
        self.whole_pages
    }

    /// Free pages on the lists of a type.
    #[inline]
    pub fn free_of(&self, list: MigrateType) -> u32 {
        self.free[list.index()]
    }

    /// The free area of an order.
    pub fn area(&self, order: Order) -> &FreeArea {
        &self.areas[order.index()]
    }

    /// Whether a block of at least `order` is free for an ordinary request.
    pub fn has_block(&self, order: Order) -> bool {
        let lists = MigrateType::ALL.into_iter().filter(|list| list.mixes()).map(MigrateType::index);
        lists.map(|list| self.backed[list] | self.clean[list]).any(|set| set >> order.get() != 0)
    }

    /// Puts the block on its list.
    fn insert(&mut self, map: &impl Map, pfn: Pfn, order: Order, contents: Contents, list: MigrateType) {
        let page = map.page(pfn);
        let reserve = if list == MigrateType::HighAtomic { flag::RESERVE } else { 0 };
        page.set_flags(self.home | contents.state() | reserve);
        page.set_cache(list as u16);
        page.set_refs(contents.extent.pack());
        let (t, bit) = (list.index(), 1 << order.get());
        let area = &mut self.areas[order.index()];
        if contents.extent.is_empty() {
            area.clean[t].push_front(pfn, |p| map.page(p));
            self.clean[t] |= bit;
        } else {
            if order >= Order::PAGEBLOCK {
                self.whole_pages += contents.extent.len();
            }
            if contents.zero {
                area.backed[t].push_back(pfn, |p| map.page(p));
            } else {
                area.backed[t].push_front(pfn, |p| map.page(p));
            }
            self.backed[t] |= bit;
        }
        page.set_kind(Kind::Buddy, order);
        self.free[t] += order.pages();
        self.free_pages += order.pages();
        self.clean_pages += order.pages() - contents.extent.len();
        map.trace(Event::Insert(pfn, order, list));
    }

    /// Takes a free block off its list and returns what it holds. The descriptor still says [`Kind::Buddy`].
    fn remove(&mut self, map: &impl Map, pfn: Pfn) -> Contents {
        let page = map.page(pfn);
        let order = page.order();
        let contents = Contents { zero: page.has(flag::ZERO), extent: Extent::unpack(page.refs()) };
        let t = MigrateType::from_raw(page.cache() as u8).index();
        let area = &mut self.areas[order.index()];
        if contents.extent.is_empty() {
            area.clean[t].remove(pfn, |p| map.page(p));
            if area.clean[t].is_empty() {
                self.clean[t] &= !(1 << order.get());
            }
        } else {
            area.backed[t].remove(pfn, |p| map.page(p));
            if area.backed[t].is_empty() {
                self.backed[t] &= !(1 << order.get());
            }
            if order >= Order::PAGEBLOCK {
                self.whole_pages -= contents.extent.len();
            }
        }
        self.free[t] -= order.pages();
        self.free_pages -= order.pages();
        self.clean_pages -= order.pages() - contents.extent.len();
        map.trace(Event::Take(pfn, order));
        contents
    }

    /// Whether `page` heads a free block that merges with one of `order` on the lists of type `list`.
    fn is_buddy(&self, page: &Page, order: Order, list: MigrateType) -> bool {
        page.kind() == Kind::Buddy
            && page.order() == order
            && page.flags() & HOME == self.home
            && (page.cache() == MigrateType::HighAtomic as u16) == (list == MigrateType::HighAtomic)
    }

    /// Frees the block at `pfn`, which nobody owns any more, merging it as far as it goes. `state` says what its
    /// contents are known to be; `reserve` puts it into the reserve instead of its pageblock's lists.
    pub fn free(&mut self, map: &impl Map, pfn: Pfn, order: Order, state: u32, reserve: bool) {
        let list = if reserve { MigrateType::HighAtomic } else { map.block_type(pfn) };
        self.merge(map, pfn, order, Contents::of(state, order.pages()), list);
    }

    /// [`Buddy::free`] for a block of which more is known.
    pub fn free_known(&mut self, map: &impl Map, pfn: Pfn, order: Order, contents: Contents) {
        self.merge(map, pfn, order, contents, map.block_type(pfn));
    }

    /// Whether the block at `pfn`, if it was free, would merge with its buddy.
    pub fn would_merge(&self, map: &impl Map, pfn: Pfn, order: Order) -> bool {
        self.is_buddy(map.page(Pfn(pfn.0 ^ order.pages())), order, map.block_type(pfn))
    }

    /// Puts a block on the lists of type `list`, merging it as far as it goes.
    fn merge(&mut self, map: &impl Map, pfn: Pfn, order: Order, contents: Contents, list: MigrateType) {
        let (mut pfn, mut order, mut contents) = (pfn, order, contents);
        while let Some(up) = order.up() {
            let buddy = Pfn(pfn.0 ^ order.pages());
            let page = map.page(buddy);
            if !self.is_buddy(page, order, list) {
                break;
            }
            if order >= Order::PAGEBLOCK && list != MigrateType::HighAtomic {
                let other = map.block_type(buddy);
                if other != list {
                    if !(other.mixes() && list.mixes()) {
                        break;
                    }
                    // Both are wholly free, so the type of either is as good.
                    map.set_block_type(buddy, list);
                }
            }
            map.trace(Event::Merge(pfn, buddy, order));
            let other = self.remove(map, buddy);
            let (lower, upper) = if buddy < pfn { (other, contents) } else { (contents, other) };
            contents = lower.join(order.pages(), upper);
            map.page(Pfn(pfn.0 | order.pages())).set_kind(Kind::Tail, Order::ZERO);
            pfn = Pfn(pfn.0 & !order.pages());
            order = up;
        }
        self.insert(map, pfn, order, contents, list);
    }

    /// Frees any run of frames: as the aligned blocks it is made of.
    pub fn free_range(&mut self, map: &impl Map, range: PfnRange, state: u32) {
        for (pfn, order) in blocks(range) {
            self.free(map, pfn, order, state, false);
        }
    }

    /// The cheapest place for a request on the lists of its type.
    pub fn find(&self, map: &impl Map, need: Need) -> Option<Found> {
        let Need { order, pages, list, want } = need;
        let at_least = u16::MAX << order.get();
        let (backed, clean) = (self.backed[list.index()] & at_least, self.clean[list.index()] & at_least);
        if backed | clean == 0 {
            return None;
        }
        let pick = |set: u16, unbacked: bool| {
            let size = Order::new(set.trailing_zeros() as u8)?;
            let area = &self.areas[size.index()];
            let lists = if unbacked { &area.clean } else { &area.backed };
            let list = &lists[list.index()];
            // Backed blocks that are known to read zero are at the end.
            let block = if want == Want::Zero { list.last()? } else { list.first()? };
            Some((block, size))
        };
        let reuse = |(block, size): (Pfn, Order)| {
            let extent = Extent::unpack(map.page(block).refs());
            let at = extent.inside(order.pages(), pages, size.pages());
            let fresh = pages - extent.cut(at, pages).len();
            let room = if extent.is_empty() { size.pages() - at } else { 0 };
            Found { block, order: size, at, fresh, room }
        };
        let avoid = |(block, size): (Pfn, Order)| {
            let extent = Extent::unpack(map.page(block).refs());
            let (at, room) = extent.outside(order.pages(), pages, size.pages())?;
            Some(Found { block, order: size, at, fresh: pages, room })
        };
        match want {
            Want::Backed => {
                let sizes = (order.index()..NR_ORDERS).filter(|size| backed >> size & 1 != 0);
                let blocks = sizes.filter_map(|size| Order::new(size as u8)).flat_map(|size| {
                    let blocks = self.areas[size.index()].backed[list.index()].iter(|p| map.page(p));
                    blocks.take(LOOK).map(move |block| (block, size))
                });
                blocks.map(reuse).find(|found| found.fresh == 0)
            }
            Want::Zero if order.get() >= ZERO_WORTH => pick(clean & SMALL, true)
                .map(reuse)
                .or_else(|| avoid(pick(backed, false)?))
                .or_else(|| pick(clean, true).or_else(|| pick(backed, false)).map(reuse)),
            _ => pick(backed & SMALL, false)
                .or_else(|| pick(clean & SMALL, true))
                .or_else(|| pick(backed, false))
                .or_else(|| pick(clean, true))
                .map(reuse),
        }
    }

    /// The pageblocks that taking `pages` pages of what was found would open: free as a whole, and no page of them
    /// holds memory.
    pub fn opens(&self, map: &impl Map, found: Found, pages: u32) -> PfnRange {
        let Found { block, order, at, .. } = found;
        let extent = Extent::unpack(map.page(block).refs());
        let blocks = (0..order.pages()).step_by(PAGEBLOCK_PAGES as usize).filter(|from| {
            let inside = at < from + PAGEBLOCK_PAGES && *from < at + pages;
            order >= Order::PAGEBLOCK && inside && extent.cut(*from, PAGEBLOCK_PAGES).is_empty()
        });
        blocks.fold(PfnRange::EMPTY, |all, from| match all.pages {
            0 => PfnRange::block(block.add(from), Order::PAGEBLOCK),
            pages => PfnRange::new(all.start, pages + PAGEBLOCK_PAGES),
        })
    }

    /// Takes `pages` pages of what was found, gives back what is around them, and returns them with their state bits.
    /// They are [`Kind::Isolated`] then: off the lists, nobody's yet.
    pub fn take(&mut self, map: &impl Map, found: Found, pages: u32) -> (Pfn, u32) {
        let (pfn, contents) = self.carve(map, found, pages);
        (pfn, contents.state())
    }

    /// [`Buddy::take`], with all that is known of their contents.
    pub fn carve(&mut self, map: &impl Map, found: Found, pages: u32) -> (Pfn, Contents) {
        let Found { block, at, .. } = found;
        let head = map.page(block);
        let (list, whole) = (MigrateType::from_raw(head.cache() as u8), head.order().pages());
        let contents = self.remove(map, block);
        head.set_kind(Kind::Tail, Order::ZERO);
        let before = PfnRange::new(block, at);
        let behind = PfnRange::new(block.add(at + pages), whole - at - pages);
        // Nothing of this can merge: what is taken is between them.
        for (rest, order) in blocks(before).chain(blocks(behind)) {
            let part = contents.cut(rest.since(block), order.pages());
            self.insert(map, rest, order, part, list);
        }
        let (pfn, contents) = (block.add(at), contents.cut(at, pages));
        let page = map.page(pfn);
        let reserve = if list == MigrateType::HighAtomic { flag::RESERVE } else { 0 };
        page.set_flags(self.home | contents.state() | reserve);
        page.set_kind(Kind::Isolated, Order::ZERO);
        (pfn, contents)
    }

    /// Room for a request: on its own lists, or else on others'. Where only a pageblock that holds no memory is left of
    /// its own, one of another type that does hold some comes first. May change the type of pageblocks. (sqlite3, which
    /// frees what it had in use at most and then takes half of it in another class: 46.2 MiB resident at most, 54.2
    /// where each type opened its own.)
    pub fn find_anywhere(&mut self, map: &impl Map, need: Need) -> Option<Found> {
        let own = self.find(map, need);
        let opens = |found: Found| found.order >= Order::PAGEBLOCK && found.fresh == need.pages;
        if own.is_none_or(opens)
            && need.want == Want::Any
            && let Some(found) = self.find_claimed(map, need, false)
        {
            return Some(found);
        }
        own.or_else(|| self.fall_back(map, need))
    }

    /// Room for a request whose own lists are empty. May change the type of pageblocks.
    pub fn fall_back(&mut self, map: &impl Map, need: Need) -> Option<Found> {
        if need.list == MigrateType::Movable
            && let Some(found) = self.find(map, need.on(MigrateType::Cma))
        {
            return Some(found);
        }
        // A request that must have backed memory is in no position to rearrange things.
        if need.want != Want::Backed
            && let Some(found) = self.find_claimed(map, need, true)
        {
            return Some(found);
        }
        // Nothing to claim: the smallest block that fits.
        let smallest = |from: &MigrateType| self.find(map, need.on(*from));
        let found = fallback::fallbacks(need.list).iter().filter_map(smallest).min_by_key(|found| found.order)?;
        self.steals += 1;
        Some(found)
    }

    /// Claims a pageblock, with no memory too where `clean` blocks will do. The largest block first: it claims most,
    /// and splits least often.
    fn find_claimed(&mut self, map: &impl Map, need: Need, clean: bool) -> Option<Found> {
        let mut size = Some(Order::MAX);
        while let Some(at) = size.filter(|at| *at >= need.order && fallback::may_claim(need.list, *at)) {
            for from in fallback::fallbacks(need.list) {
                let area = &self.areas[at.index()];
                let backed = area.backed[from.index()].first();
                let first = backed.or(area.clean[from.index()].first().filter(|_| clean));
                if let Some(pfn) = first
                    && self.claim(map, pfn, at, need.list)
                    && let Some(found) = self.find(map, need)
                {
                    self.claims += 1;
                    return Some(found);
                }
            }
            size = at.down();
        }
        None
    }

    /// Makes the pageblocks of the free block at `pfn` pageblocks of type `to`, if they are free or compatible enough.
    fn claim(&mut self, map: &impl Map, pfn: Pfn, order: Order, to: MigrateType) -> bool {
        if order < Order::PAGEBLOCK {
            let (free, compatible) = census(map, pfn, to, self.home);
            if !fallback::claims(free, compatible) {
                return false;
            }
        }
        self.set_block_type(map, pfn, to);
        if order == Order::MAX {
            // Both pageblocks are wholly free: the first took the second along when it merged again, or they differ for
            // good.
            self.set_block_type(map, pfn.add(PAGEBLOCK_PAGES), to);
        }
        true
    }

    /// Gives the pageblock at `pfn` another type and moves its free blocks to that type's lists.
    pub fn set_block_type(&mut self, map: &impl Map, pfn: Pfn, to: MigrateType) {
        let start = Pfn(pfn.0 & !(PAGEBLOCK_PAGES - 1));
        // A free block of the largest order may begin in the pageblock before: split it, so that the types stay apart.
        let pair = Pfn(start.0 & !(Order::MAX.pages() - 1));
        let head = map.page(pair);
        if head.kind() == Kind::Buddy && head.order() == Order::MAX && self.is_home(head) {
            let (list, contents) = (MigrateType::from_raw(head.cache() as u8), self.remove(map, pair));
            for at in [0, PAGEBLOCK_PAGES] {
                let part = contents.cut(at, PAGEBLOCK_PAGES);
                self.insert(map, pair.add(at), Order::PAGEBLOCK, part, list);
            }
        }
        map.set_block_type(start, to);
        map.trace(Event::Claim(start, to));
        let end = start.add(PAGEBLOCK_PAGES);
        let mut at = start;
        while at < end {
            let page = map.page(at);
            if page.kind() != Kind::Buddy || !self.is_home(page) {
                at = at.add(1);
                continue;
            }
            let order = page.order();
            if page.cache() != MigrateType::HighAtomic as u16 {
                let contents = self.remove(map, at);
                self.merge(map, at, order, contents, to);
            }
            at = at.add(order.pages());
        }
    }

    fn is_home(&self, page: &Page) -> bool {
        page.flags() & HOME == self.home
    }

    /// The free block that `pfn` heads, if it may be taken by its place: room for as many of `pages` pages as it has,
    /// and their number.
    pub fn find_at(&self, map: &impl Map, pfn: Pfn, pages: u32) -> Option<(Found, u32)> {
        let page = map.page(pfn);
        if page.kind() != Kind::Buddy || !self.is_home(page) || !MigrateType::from_raw(page.cache() as u8).mixes() {
            return None;
        }
        let order = page.order();
        let pages = pages.min(order.pages());
        let fresh = pages - Extent::unpack(page.refs()).cut(0, pages).len();
        Some((Found { block: pfn, order, at: 0, fresh, room: 0 }, pages))
    }

    /// A free pageblock at least half of which may hold memory.
    pub fn find_populated(&self, map: &impl Map) -> Option<Found> {
        for list in MigrateType::ALL.into_iter().filter(|list| list.mixes()) {
            for size in [Order::PAGEBLOCK, Order::MAX] {
                for block in self.areas[size.index()].backed[list.index()].iter(|p| map.page(p)).take(LOOK) {
                    let extent = Extent::unpack(map.page(block).refs());
                    let at = extent.inside(PAGEBLOCK_PAGES, PAGEBLOCK_PAGES, size.pages());
                    let fresh = PAGEBLOCK_PAGES - extent.cut(at, PAGEBLOCK_PAGES).len();
                    if fresh <= PAGEBLOCK_PAGES / 2 {
                        return Some(Found { block, order: size, at, fresh, room: 0 });
                    }
                }
            }
        }
        None
    }

    /// Checks the lists against their counts and the blocks on them against the rules. Returns what is wrong first.
    pub fn verify(&self, map: &impl Map) -> Result<(), &'static str> {
        let (mut free_pages, mut clean_pages) = (0, 0);
        for list in MigrateType::ALL {
            let mut of_type = 0;
            for order in (0..NR_ORDERS).filter_map(|o| Order::new(o as u8)) {
                let area = &self.areas[order.index()];
                for (blocks, set, unbacked) in [(&area.backed, self.backed, false), (&area.clean, self.clean, true)] {
                    let blocks = &blocks[list.index()];
                    if (set[list.index()] >> order.get() & 1 != 0) == blocks.is_empty() {
                        return Err("set of orders disagrees with a free list");
                    }
                    let (mut n, mut before) = (0, Pfn::NONE);
                    for pfn in blocks.iter(|p| map.page(p)) {
                        self.verify_block(map, pfn, order, list, unbacked)?;
                        if map.page(pfn).prev() != before {
                            return Err("free list is not linked both ways");
                        }
                        (n, before) = (n + 1, pfn);
                        if n > blocks.len() {
                            return Err("free list is longer than its count");
                        }
                    }
                    if n != blocks.len() || blocks.last().unwrap_or(Pfn::NONE) != before {
                        return Err("free list is shorter than its count");
                    }
                    of_type += n * order.pages();
                    let clean = |pfn| order.pages() - Extent::unpack(map.page(pfn).refs()).len();
                    clean_pages += blocks.iter(|p| map.page(p)).map(clean).sum::<u32>();
                }
            }
            if of_type != self.free[list.index()] {
                return Err("free pages of a migrate type miscounted");
            }
            free_pages += of_type;
        }
        if (free_pages, clean_pages) != (self.free_pages, self.clean_pages) {
            return Err("free pages miscounted");
        }
        Ok(())
    }

    fn verify_block(
        &self,
        map: &impl Map,
        pfn: Pfn,
        order: Order,
        list: MigrateType,
        unbacked: bool,
    ) -> Result<(), &'static str> {
        let page = map.page(pfn);
        if page.kind() != Kind::Buddy || page.order() != order || page.cache() != list as u16 {
            return Err("block on a free list that is not its own");
        }
        if !self.is_home(page) {
            return Err("block of another zone on a free list");
        }
        if pfn.0 & (order.pages() - 1) != 0 {
            return Err("free block is not aligned");
        }
        let reserve = list == MigrateType::HighAtomic;
        let extent = Extent::unpack(page.refs());
        if page.has(flag::UNBACKED) != unbacked
            || extent.is_empty() != unbacked
            || page.has(flag::UNBACKED) && !page.has(flag::ZERO)
            || page.has(flag::RESERVE) != reserve
        {
            return Err("state of a free block disagrees with its list");
        }
        if extent.cut(0, order.pages()) != extent {
            return Err("backed part of a free block lies outside it");
        }
        for at in (0..order.pages()).step_by(PAGEBLOCK_PAGES as usize) {
            if !reserve && map.block_type(pfn.add(at)) != list {
                return Err("free block on the list of another type than its pageblock's");
            }
        }
        for at in 1..order.pages() {
            if !matches!(map.page(pfn.add(at)).kind(), Kind::Tail | Kind::Offline) {
                return Err("interior page of a free block heads something");
            }
        }
        let buddy = Pfn(pfn.0 ^ order.pages());
        if order < Order::MAX && self.is_buddy(map.page(buddy), order, list) {
            let apart = order >= Order::PAGEBLOCK && !reserve && {
                let other = map.block_type(buddy);
                other != list && !(other.mixes() && list.mixes())
            };
            if !apart {
                return Err("two free buddies were not merged");
            }
        }
        Ok(())
    }

    /// Takes a free block of `order` off the lists of ordinary requests, one that holds no memory if there is one.
    pub fn take_free(&mut self, map: &impl Map, order: Order) -> Option<(Pfn, Contents)> {
        let area = &self.areas[order.index()];
        let mixing = || MigrateType::ALL.into_iter().filter(|list| list.mixes());
        let last = |lists: &[PageList; MIGRATE_TYPES]| mixing().find_map(|list| lists[list.index()].last());
        let pfn = last(&area.clean).or_else(|| last(&area.backed))?;
        let contents = self.remove(map, pfn);
        map.page(pfn).set_kind(Kind::Isolated, order);
        Some((pfn, contents))
    }

    /// Takes the least recently freed block of `order` that holds memory, whole, off any list but the reserve's.
    /// Returns it and how many of its pages hold none.
    pub fn take_oldest(&mut self, map: &impl Map, order: Order) -> Option<(Pfn, u32)> {
        for list in MigrateType::ALL {
            if list == MigrateType::HighAtomic {
                continue;
            }
            if let Some(pfn) = self.areas[order.index()].backed[list.index()].last() {
                let contents = self.remove(map, pfn);
                map.page(pfn).set_kind(Kind::Isolated, order);
                return Some((pfn, order.pages() - contents.extent.len()));
            }
        }
        None
    }
}

impl Default for Buddy {
    fn default() -> Buddy {
        Buddy::new()
    }
}

/// The zone and node bits of [`Page::flags`].
pub const HOME: u32 = 0x00ff_ff00;

/// Those bits for a zone and node.
pub const fn home(zone: usize, node: usize) -> u32 {
    (zone as u32) << 8 | (node as u32) << 16
}

/// The aligned blocks that a run of frames is made of, ascending.
pub fn blocks(range: PfnRange) -> impl Iterator<Item = (Pfn, Order)> {
    let (mut at, end) = (range.start, range.end());
    core::iter::from_fn(move || {
        let left = end.since(at);
        if left == 0 {
            return None;
        }
        let order = at.0.trailing_zeros().min(left.ilog2()).min(Order::MAX.get() as u32);
        let block = (at, Order::new(order as u8)?);
        at = at.add(block.1.pages());
        Some(block)
    })
}

/// How the pages of a pageblock are used.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Used {
    /// Pages that are backed, those of free blocks as well.
    pub backed: u32,
    /// Pages in use.
    pub taken: u32,
    /// Of these, backed.
    pub written: u32,
}

/// Counts the pages of the pageblock at `start`, of which `backed` says which are backed. What is in use belongs to
/// others, so it is a guess.
pub fn count_backed(map: &impl Map, start: Pfn, backed: &[u64; PAGEBLOCK_PAGES as usize / 64]) -> Used {
    let is_backed = |at: &u32| backed[*at as usize / 64] >> (at % 64) & 1 != 0;
    let mut used = Used { backed: backed.iter().map(|word| word.count_ones()).sum(), ..Used::default() };
    let mut at = 0;
    while at < PAGEBLOCK_PAGES {
        let page = map.page(start.add(at));
        let (pages, taken) = match page.kind() {
            Kind::Buddy => (page.order().pages(), false),
            Kind::Row | Kind::Pcp => (page.word() as u32, false),
            Kind::Run | Kind::Kept | Kind::Tagged => (page.word() as u32, true),
            Kind::Allocated | Kind::Slab | Kind::Table => (page.order().pages(), true),
            _ => (1, false),
        };
        let end = at + pages.clamp(1, PAGEBLOCK_PAGES - at);
        if taken {
            used.taken += end - at;
            used.written += (at..end).filter(is_backed).count() as u32;
        }
        at = end;
    }
    used
}

/// Pages of the pageblock around `pfn` that are free, and that are in use for something of the same mobility as `to`.
/// What is in use belongs to others: its descriptors may change meanwhile, so the second number is a guess.
fn census(map: &impl Map, pfn: Pfn, to: MigrateType, home: u32) -> (u32, u32) {
    let start = Pfn(pfn.0 & !(PAGEBLOCK_PAGES - 1));
    let (mut free, mut compatible, mut at) = (0, 0, 0);
    while at < PAGEBLOCK_PAGES {
        let page = map.page(start.add(at));
        let left = PAGEBLOCK_PAGES - at;
        let (kind, block) = (page.kind(), page.order().pages().min(left));
        at += match kind {
            Kind::Buddy if page.flags() & HOME == home => {
                free += block;
                block
            }
            Kind::Allocated | Kind::Slab | Kind::Table => {
                if to != MigrateType::Movable {
                    compatible += block;
                }
                block
            }
            Kind::Run | Kind::Kept | Kind::Tagged | Kind::Row | Kind::Vmalloc => {
                let block = if kind != Kind::Vmalloc { (page.word() as u32).clamp(1, left) } else { block };
                if to == MigrateType::Movable {
                    compatible += block;
                }
                block
            }
            _ => 1,
        };
    }
    (free, compatible)
}
