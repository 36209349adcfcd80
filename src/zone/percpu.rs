//! Per-CPU page lists: what one CPU freed last, to be had again without the zone lock.
//!
//! Lists are by order, 0 to 5 and 9, and migrate type, as in the kernel. The head of a list is hot, its tail cold:
//! frees go to the head, refills to the tail, and what is too much goes back from the tail, one block per list in turn.
//!
//! A free block here is [`Kind::Pcp`]; its descriptor's `word` is its number of pages. Guard: the list's lock, taken by
//! trying: whoever finds it taken goes past it to the zone.

use super::fallback::MigrateType;
use super::stats::PcpInfo;
use crate::page::{Kind, Page, PageList};
use crate::types::{Order, Pfn, PfnRange};

/// Orders kept: 0 to this, and a pageblock.
const MAX_SMALL: u8 = 5;
const ORDERS: usize = MAX_SMALL as usize + 2;
/// Migrate types kept apart.
const TYPES: usize = 3;
const LISTS: usize = ORDERS * TYPES;

/// Most pages of one CPU's lists.
const MAX_HIGH: u32 = 4096;
/// Fewest.
const MIN_HIGH: u32 = 8;

/// Which list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bin(u8);

impl Bin {
    /// For blocks of `order`; `None` where such are not kept.
    #[inline]
    pub fn block(order: Order, list: MigrateType) -> Option<Bin> {
        let slot = match order.get() {
            small @ 0..=MAX_SMALL => small,
            _ if order == Order::PAGEBLOCK => MAX_SMALL + 1,
            _ => return None,
        };
        list.mixes().then(|| Bin((slot as usize * TYPES + list.index()) as u8))
    }

    /// Blocks to fetch at once where the list is empty.
    pub fn batch(self) -> u32 {
        match self.0 as usize / TYPES {
            0 => 16,
            1 => 8,
            2 => 4,
            3 => 2,
            _ => 1,
        }
    }
}

/// One CPU's lists for one zone. All zeroes is a valid one, without pages.
///
/// Invariants: a bit of `set` is set iff the list has blocks; `pages` is the sum of the blocks' pages; `idle <= pages`.
pub struct Pcp {
    pages: u32,
    high: u32,
    /// Fewest pages since the last [`Pcp::age`]: that many were of no use.
    idle: u32,
    cursor: u8,
    node: u8,
    /// Requests served.
    pub hits: u64,
    /// Requests that found the list empty.
    pub misses: u64,
    set: u32,
    lists: [PageList; LISTS],
}

impl Pcp {
    /// Sets the node and the number of pages to keep.
    pub fn set_up(&mut self, node: usize, high: u32) {
        (self.node, self.high) = (node as u8, high);
    }

    /// The node whose frames it keeps.
    #[inline]
    pub fn node(&self) -> usize {
        self.node as usize
    }

    /// Pages kept.
    #[inline]
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// Whether there is room for `pages` more, once as much has been evicted.
    #[inline]
    pub fn takes(&self, pages: u32) -> bool {
        pages <= self.high
    }

    /// Pages above what it should keep. Some more than needed, so that the next frees find room.
    #[inline]
    pub fn excess(&self) -> u32 {
        if self.pages <= self.high { 0 } else { self.pages - (self.high - self.high / 8) }
    }

    /// The hottest block of a list.
    #[inline]
    pub fn pop<'p>(&mut self, bin: Bin, page: impl Fn(Pfn) -> &'p Page) -> Option<Pfn> {
        let Some(pfn) = self.lists[bin.0 as usize].first() else {
            self.misses += 1;
            return None;
        };
        self.hits += 1;
        self.unlink(bin, pfn, page);
        Some(pfn)
    }

    #[inline]
    fn unlink<'p>(&mut self, bin: Bin, pfn: Pfn, page: impl Fn(Pfn) -> &'p Page) {
        let list = &mut self.lists[bin.0 as usize];
        list.remove(pfn, &page);
        if list.is_empty() {
            self.set &= !(1 << bin.0);
        }
        self.pages -= page(pfn).word() as u32;
        self.idle = self.idle.min(self.pages);
        page(pfn).set_kind(Kind::Isolated, page(pfn).order());
    }

    /// Keeps a block of `range`, hot or cold. Its descriptor's flags are set.
    #[inline]
    pub fn push<'p>(&mut self, bin: Bin, range: PfnRange, order: Order, hot: bool, page: impl Fn(Pfn) -> &'p Page) {
        let head = page(range.start);
        head.set_word(u64::from(range.pages));
        head.set_kind(Kind::Pcp, order);
        let list = &mut self.lists[bin.0 as usize];
        if hot {
            list.push_front(range.start, &page);
        } else {
            list.push_back(range.start, &page);
        }
        self.set |= 1 << bin.0;
        self.pages += range.pages;
    }

    /// Takes the coldest block of the next list that has one.
    pub fn evict<'p>(&mut self, page: impl Fn(Pfn) -> &'p Page) -> Option<PfnRange> {
        let bin = self.next(self.cursor).or_else(|| self.next(0))?;
        self.cursor = (bin.0 + 1) % LISTS as u8;
        let pfn = self.lists[bin.0 as usize].last()?;
        self.unlink(bin, pfn, &page);
        Some(PfnRange::new(pfn, page(pfn).word() as u32))
    }

    /// The first list from `from` on that has blocks.
    fn next(&self, from: u8) -> Option<Bin> {
        let bits = self.set & u32::MAX << from;
        (bits != 0).then(|| Bin(bits.trailing_zeros() as u8))
    }

    /// For reports.
    pub fn info(&self) -> PcpInfo {
        PcpInfo { count: self.pages, high: self.high, batch: Bin(0).batch() }
    }

    /// Pages that were of no use since the last call.
    pub fn age(&mut self) -> u32 {
        let idle = self.idle;
        self.idle = self.pages - idle;
        idle
    }

    /// Checks the lists against their counts.
    pub fn verify<'p>(&self, zone: usize, page: impl Fn(Pfn) -> &'p Page) -> Result<(), &'static str> {
        let mut pages = 0;
        for (index, list) in self.lists.iter().enumerate() {
            if (self.set >> index & 1 != 0) == list.is_empty() {
                return Err("set of lists disagrees with a per-CPU list");
            }
            let mut n = 0;
            for pfn in list.iter(&page) {
                let head = page(pfn);
                if head.kind() != Kind::Pcp || (head.zone(), head.node()) != (zone, self.node()) {
                    return Err("frame on a per-CPU list that is not its own");
                }
                let order = [0, 1, 2, 3, 4, 5, Order::PAGEBLOCK.get()][index / TYPES];
                let fits = head.order().get() == order && head.word() == 1 << order;
                if !fits {
                    return Err("block on a per-CPU list of another size");
                }
                pages += head.word() as u32;
                n += 1;
                if n > list.len() {
                    break;
                }
            }
            if n != list.len() {
                return Err("per-CPU list miscounted");
            }
        }
        if pages != self.pages || self.idle > self.pages {
            return Err("pages of per-CPU lists miscounted");
        }
        Ok(())
    }
}

/// Pages that each CPU keeps of a zone of `managed` pages: an eighth of its share, as the kernel does.
pub fn high(managed: u32, cpus: usize) -> u32 {
    (managed / (8 * cpus.max(1) as u32)).clamp(MIN_HIGH, MAX_HIGH)
}
