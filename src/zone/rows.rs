//! Free frames in a row, of any number, in front of the buddy system: where page runs come from and go to.
//!
//! A run of 9 pages cut out of the buddy system is three blocks, and as many merges when it is freed. Here it is one
//! piece of a *row*: a maximal sequence of free pages, with its length in the descriptors at both ends (Knuth's
//! boundary tags), on the list of its length. A run takes the tightest row and leaves what is over; a freed run joins
//! its neighbours. What makes up a whole pageblock again goes back to the buddy system at once, from which new rows are
//! cut: by the pageblock, or by 64 pages in a small heap (`run`).
//!
//! Guard: as for [`super::buddy`], the zone lock's holder. Rows do not cross the borders of the largest blocks, beyond
//! which a frame may have no descriptor.
//!
//! Simulated over random sets of live runs (9-260 KiB; 9-70 KiB; 9 KiB-1.5 MiB), memory ever used over the most in use:
//!
//! | place | | | |
//! |---|---|---|---|
//! | one aligned block, tail given back | 1.41 | 1.42 | 1.73 |
//! | several free blocks of the buddy system in a row, the first 8 of each order tried | 1.10 | 1.08 | 1.13 |
//! | the tightest row (this) | 1.05 | 1.03 | 1.11 |

use super::buddy::{HOME, Map, home};
use super::extent::{Contents, Extent};
use crate::page::{Kind, PageList, flag};
use crate::types::{Order, Pfn, PfnRange};

/// Rows of up to this many pages have a list for each length.
const EXACT: u32 = 64;
/// Lists: above, eight for each doubling, to the largest block.
const BINS: usize = EXACT as usize + 8 * 4 + 1;
/// Rows of a list of several lengths that are looked at for a tight one.
const LOOK: usize = 8;
/// More of them for an aligned run: without a place, a pageblock is opened.
const LOOK_ALIGNED: usize = 32;

/// The list of rows of `pages` pages.
fn bin(pages: u32) -> usize {
    if pages <= EXACT {
        return pages as usize - 1;
    }
    let doubling = pages.ilog2();
    EXACT as usize + ((doubling - EXACT.ilog2()) * 8 + (pages >> (doubling - 3) & 7)) as usize
}

/// Pages after which the grids of [`on_grid`] shift by one.
const UNIT: u32 = 64;

/// The first place from `at` on where runs of up to `align` pages, a power of two, begin; finer grids have the places
/// of the coarser ones and more. Not just the multiples: translations of addresses are kept by the lowest bits of the
/// page's number, so that runs that all begin at multiples would share few places there. Each [`UNIT`] of pages has its
/// multiples one page later than the one before. (500 blocks of 4 to 64 KiB whose first byte is written take 0.038 in
/// place of 0.041 s, which is half of what the misses cost.)
pub fn on_grid(at: Pfn, align: u32) -> u32 {
    let unit = align.max(UNIT);
    let first = |base: u32| base + ((base / UNIT) & (align.min(UNIT) - 1));
    let base = at.0 & !(unit - 1);
    let place = first(base) + at.0.saturating_sub(first(base)).next_multiple_of(align);
    if place < base + unit { place } else { first(base + unit) }
}

/// Rows by length.
struct Bins {
    lists: [PageList; BINS],
    /// A bit for each list that is not empty.
    used: [u32; BINS.div_ceil(32)],
}

impl Bins {
    const fn new() -> Bins {
        Bins { lists: [const { PageList::new() }; BINS], used: [0; BINS.div_ceil(32)] }
    }

    fn push(&mut self, map: &impl Map, row: Pfn, pages: u32) {
        let at = bin(pages);
        self.lists[at].push_front(row, |p| map.page(p));
        self.used[at / 32] |= 1 << (at % 32);
    }

    fn remove(&mut self, map: &impl Map, row: Pfn, pages: u32) {
        let at = bin(pages);
        self.lists[at].remove(row, |p| map.page(p));
        if self.lists[at].is_empty() {
            self.used[at / 32] &= !(1 << (at % 32));
        }
    }

    /// The first list from `at` on that has a row.
    fn next(&self, at: usize) -> Option<usize> {
        let first = self.used.get(at / 32)? & (u32::MAX << (at % 32));
        let words = core::iter::once(first).chain(self.used[at / 32 + 1..].iter().copied());
        let (word, bits) = words.enumerate().find(|(_, bits)| *bits != 0)?;
        Some((at / 32 + word) * 32 + bits.trailing_zeros() as usize)
    }

    /// A row of at least `pages` pages, of the shortest there are.
    fn tightest(&self, map: &impl Map, pages: u32) -> Option<Pfn> {
        let mut at = bin(pages);
        if pages > EXACT {
            // Some rows here may be too short.
            let rows = self.lists[at].iter(|p| map.page(p)).take(LOOK).map(|row| (map.page(row).word() as u32, row));
            if let Some((_, row)) = rows.filter(|(found, _)| *found >= pages).min() {
                return Some(row);
            }
            at += 1;
        }
        let list = self.next(at)?;
        if list < EXACT as usize {
            return self.lists[list].first();
        }
        let rows = self.lists[list].iter(|p| map.page(p)).take(LOOK).map(|row| (map.page(row).word() as u32, row));
        rows.min().map(|(_, row)| row)
    }

    /// One of the longest rows, if it has at least `least` pages.
    fn longest(&self, map: &impl Map, least: u32) -> Option<Pfn> {
        let (word, bits) = self.used.iter().enumerate().rev().find(|(_, bits)| **bits != 0)?;
        let row = self.lists[word * 32 + bits.ilog2() as usize].last()?;
        (map.page(row).word() >= u64::from(least)).then_some(row)
    }
}

/// A place for a run.
#[derive(Clone, Copy)]
pub struct Fit {
    row: Pfn,
    /// Pages into the row.
    at: u32,
    /// Pages of the run that hold no memory yet.
    pub fresh: u32,
}

/// Free frames in a row, with what is known of them.
#[derive(Clone, Copy)]
pub struct Row {
    pub range: PfnRange,
    pub contents: Contents,
}

impl Row {
    /// Where in it to take `pages` pages, so that most of them hold memory, and how many of them do not.
    pub fn place(&self, pages: u32) -> (u32, u32) {
        let last = self.range.pages - pages;
        let [low, high] = [0, last].map(|at| self.contents.extent.cut(at, pages).len());
        if low >= high { (0, pages - low) } else { (last, pages - high) }
    }

    /// That place `at` for `pages` pages, and how many of them hold no memory.
    pub fn place_at(&self, at: u32, pages: u32) -> (u32, u32) {
        (at, pages - self.contents.extent.cut(at, pages).len())
    }

    /// `pages` pages of it from page `at` on.
    #[must_use]
    pub fn cut(&self, at: u32, pages: u32) -> Row {
        Row { range: PfnRange::new(self.range.start.add(at), pages), contents: self.contents.cut(at, pages) }
    }
}

/// The rows of a zone.
///
/// Invariants ([`Rows::verify`]): rows are maximal within a block of the largest order; both ends say how long a row
/// is; it is on the list of its length, with the clean ones iff it holds no memory; `free` and `clean` are the sums.
#[repr(C)]
pub struct Rows {
    home: u32,
    free: u32,
    clean_pages: u32,
    backed: Bins,
    clean: Bins,
}

impl Rows {
    /// None.
    pub const fn new() -> Rows {
        Rows { backed: Bins::new(), clean: Bins::new(), home: 0, free: 0, clean_pages: 0 }
    }

    /// Sets the zone and node of its frames.
    pub fn set_home(&mut self, zone: usize, node: usize) {
        self.home = home(zone, node);
    }

    /// Pages in rows.
    #[inline]
    pub fn free_pages(&self) -> u32 {
        self.free
    }

    /// Of these, without memory.
    #[inline]
    pub fn clean_pages(&self) -> u32 {
        self.clean_pages
    }

    /// A tight place on the grid of `align` ([`on_grid`]) for a run of `pages` pages; as for [`Rows::find`].
    pub fn find_aligned(&self, map: &impl Map, pages: u32, align: u32) -> Option<Fit> {
        // A row of this length has such a place wherever it begins.
        self.find_at(map, pages, LOOK, pages + align + align.div_ceil(UNIT), |row| on_grid(row, align))
    }

    /// A tight place at a multiple of `align` for a run of `pages` pages; as for [`Rows::find`].
    pub fn find_at_multiple(&self, map: &impl Map, pages: u32, align: u32) -> Option<Fit> {
        self.find_at(map, pages, LOOK_ALIGNED, pages + align - 1, |row| row.0.next_multiple_of(align))
    }

    /// A row with room for `pages` pages from `place(row)` on, the first of `looks` rows that has it; else one of
    /// `sure` pages, which always has.
    fn find_at(&self, map: &impl Map, pages: u32, looks: usize, sure: u32, place: impl Fn(Pfn) -> u32) -> Option<Fit> {
        let fit = |bins: &Bins| {
            let mut looks = looks;
            let mut at = bin(pages);
            while let Some(list) = bins.next(at).filter(|_| looks > 0) {
                for row in bins.lists[list].iter(|p| map.page(p)).take(looks) {
                    looks -= 1;
                    let skip = place(row) - row.0;
                    if u64::from(skip + pages) <= map.page(row).word() {
                        return Some((row, skip));
                    }
                }
                at = list + 1;
            }
            // No row is longer than a largest block.
            let row = if sure <= Order::MAX.pages() { bins.tightest(map, sure) } else { None }?;
            Some((row, place(row) - row.0))
        };
        let (row, at) = fit(&self.backed).or_else(|| fit(&self.clean))?;
        let (at, fresh) = self.row_at(map, row)?.place_at(at, pages);
        Some(Fit { row, at, fresh })
    }

    /// The tightest place for a run of `pages` pages, in memory that is there, or else in fresh memory; in `either`
    /// where all of it will be written to in the end.
    ///
    /// (60 blocks of 64 KiB to 2 MiB, every page written, at most 77 MiB in use: 98 to 102 MiB resident at most, 104 to
    /// 108 where memory that is there always comes first and its row is just of about the right length; 95 by a
    /// simulation of the very tightest rows.)
    pub fn find(&self, map: &impl Map, pages: u32, either: bool) -> Option<Fit> {
        let backed = self.backed.tightest(map, pages);
        let fresh = if backed.is_none() || either { self.clean.tightest(map, pages) } else { None };
        let row = [backed, fresh].into_iter().flatten().min_by_key(|row| map.page(*row).word())?;
        let (at, fresh) = self.row_at(map, row)?.place(pages);
        Some(Fit { row, at, fresh })
    }

    /// Takes what was found, and puts back what is around it. The pages are [`Kind::Isolated`] then.
    pub fn take(&mut self, map: &impl Map, fit: Fit, pages: u32) -> Row {
        let row = self.remove(map, fit.row);
        self.insert_rest(map, row, fit.at, pages);
        let run = row.cut(fit.at, pages);
        self.isolate(map, run);
        run
    }

    /// Makes pages that are on no list [`Kind::Isolated`] ones of this zone.
    pub fn isolate(&self, map: &impl Map, run: Row) {
        let page = map.page(run.range.start);
        page.set_flags(self.home | run.contents.state());
        page.set_kind(Kind::Isolated, Order::ZERO);
    }

    /// Takes up to `pages` pages from the beginning of the row that begins at `pfn`; how many, or `None` where none
    /// does.
    pub fn take_at(&mut self, map: &impl Map, pfn: Pfn, pages: u32) -> Option<u32> {
        let row = self.row_at(map, pfn)?;
        let part = pages.min(row.range.pages);
        self.take(map, Fit { row: pfn, at: 0, fresh: 0 }, part);
        Some(part)
    }

    /// Puts back what is left of `row`, which is on no list, without `pages` pages from `at` on.
    pub fn insert_rest(&mut self, map: &impl Map, row: Row, at: u32, pages: u32) {
        let end = at + pages;
        for rest in [row.cut(0, at), row.cut(end, row.range.pages - end)] {
            if rest.range.pages > 0 {
                self.insert(map, rest);
            }
        }
    }

    /// The row that begins at `pfn`.
    pub fn row_at(&self, map: &impl Map, pfn: Pfn) -> Option<Row> {
        let page = map.page(pfn);
        if page.kind() != Kind::Row || page.flags() & HOME != self.home {
            return None;
        }
        let contents = Contents { zero: page.has(flag::ZERO), extent: Extent::unpack(page.refs()) };
        Some(Row { range: PfnRange::new(pfn, page.word() as u32), contents })
    }

    /// The row that ends before `pfn`.
    fn row_before(&self, map: &impl Map, pfn: Pfn) -> Option<Row> {
        let last = map.page(Pfn(pfn.0 - 1));
        match last.kind() {
            Kind::Row => self.row_at(map, Pfn(pfn.0 - 1)),
            Kind::RowEnd => self.row_at(map, Pfn(pfn.0 - last.word() as u32)),
            _ => None,
        }
    }

    /// Takes the rows on both sides of `row`, which nobody owns, off their lists, and returns all in one.
    pub fn join(&mut self, map: &impl Map, row: Row) -> Row {
        let mut all = row;
        let is_border = |pfn: Pfn| pfn.0 & (Order::MAX.pages() - 1) == 0;
        map.page(row.range.start).set_kind(Kind::Tail, Order::ZERO);
        if !is_border(row.range.end())
            && let Some(behind) = self.row_at(map, row.range.end())
        {
            let behind = self.remove(map, behind.range.start);
            all.contents = all.contents.join(all.range.pages, behind.contents);
            all.range.pages += behind.range.pages;
        }
        if !is_border(row.range.start)
            && let Some(before) = self.row_before(map, row.range.start)
        {
            let before = self.remove(map, before.range.start);
            all.contents = before.contents.join(before.range.pages, all.contents);
            all.range = PfnRange::new(before.range.start, before.range.pages + all.range.pages);
        }
        all
    }

    /// Puts a row, which has no neighbours, on its list.
    pub fn insert(&mut self, map: &impl Map, row: Row) {
        let (start, pages) = (row.range.start, row.range.pages);
        let page = map.page(start);
        page.set_flags(self.home | row.contents.state());
        page.set_refs(row.contents.extent.pack());
        page.set_word(u64::from(pages));
        page.set_kind(Kind::Row, Order::ZERO);
        if pages > 1 {
            let last = map.page(start.add(pages - 1));
            last.set_word(u64::from(pages));
            last.set_kind(Kind::RowEnd, Order::ZERO);
        }
        let bins = if row.contents.extent.is_empty() { &mut self.clean } else { &mut self.backed };
        bins.push(map, start, pages);
        self.free += pages;
        self.clean_pages += pages - row.contents.extent.len();
    }

    /// Takes the row at `pfn` off its list.
    fn remove(&mut self, map: &impl Map, pfn: Pfn) -> Row {
        let page = map.page(pfn);
        let pages = page.word() as u32;
        let contents = Contents { zero: page.has(flag::ZERO), extent: Extent::unpack(page.refs()) };
        let bins = if contents.extent.is_empty() { &mut self.clean } else { &mut self.backed };
        bins.remove(map, pfn, pages);
        map.page(pfn.add(pages - 1)).set_kind(Kind::Tail, Order::ZERO);
        page.set_kind(Kind::Tail, Order::ZERO);
        self.free -= pages;
        self.clean_pages -= pages - contents.extent.len();
        Row { range: PfnRange::new(pfn, pages), contents }
    }

    /// Takes one of the longest rows that hold memory, of `least` pages or more.
    pub fn take_backed(&mut self, map: &impl Map, least: u32) -> Option<Row> {
        let row = self.backed.longest(map, least)?;
        Some(self.remove(map, row))
    }

    /// Takes any row.
    pub fn take_any(&mut self, map: &impl Map) -> Option<Row> {
        let row = self.backed.longest(map, 0).or_else(|| self.clean.longest(map, 0))?;
        Some(self.remove(map, row))
    }

    /// Checks the lists against their counts and the rows on them against the rules. Returns what is wrong first.
    pub fn verify(&self, map: &impl Map) -> Result<(), &'static str> {
        let (mut free, mut clean_pages) = (0, 0);
        for (bins, unbacked) in [(&self.backed, false), (&self.clean, true)] {
            for (at, list) in bins.lists.iter().enumerate() {
                if (bins.used[at / 32] >> (at % 32) & 1 == 0) != list.is_empty() {
                    return Err("set of lengths disagrees with a list of rows");
                }
                let mut rows = 0;
                for pfn in list.iter(|p| map.page(p)) {
                    rows += 1;
                    if rows > list.len() {
                        return Err("list of rows is longer than its count");
                    }
                    let row = self.row_at(map, pfn).ok_or("row on a list that is none, or of another zone")?;
                    self.verify_row(map, row, unbacked)?;
                    if bin(row.range.pages) != at {
                        return Err("row on the list of another length");
                    }
                    free += row.range.pages;
                    clean_pages += row.range.pages - row.contents.extent.len();
                }
                if rows != list.len() {
                    return Err("list of rows is shorter than its count");
                }
            }
        }
        if (free, clean_pages) != (self.free, self.clean_pages) {
            return Err("pages in rows miscounted");
        }
        Ok(())
    }

    fn verify_row(&self, map: &impl Map, row: Row, unbacked: bool) -> Result<(), &'static str> {
        let (start, end, pages) = (row.range.start, row.range.end(), row.range.pages);
        let (head, last) = (map.page(start), map.page(Pfn(end.0 - 1)));
        if pages > 1 && (last.kind() != Kind::RowEnd || last.word() != u64::from(pages)) {
            return Err("the ends of a row disagree");
        }
        let border = Order::MAX.pages() - 1;
        if start.0 & !border != (end.0 - 1) & !border {
            return Err("row crosses a border of the largest blocks");
        }
        if (1..pages.saturating_sub(1)).any(|at| !matches!(map.page(start.add(at)).kind(), Kind::Tail | Kind::Offline))
        {
            return Err("interior page of a row heads something");
        }
        if end.0 & border != 0 && self.row_at(map, end).is_some() {
            return Err("two rows were not joined");
        }
        let extent = row.contents.extent;
        if extent.is_empty() != unbacked
            || head.has(flag::UNBACKED) != unbacked
            || unbacked && !head.has(flag::ZERO)
            || extent.cut(0, pages) != extent
        {
            return Err("state of a row disagrees with its list");
        }
        Ok(())
    }
}

impl Default for Rows {
    fn default() -> Rows {
        Rows::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_ascend_by_length() {
        let mut before = 0;
        for pages in 1..=Order::MAX.pages() {
            let at = bin(pages);
            assert!(
                at < BINS && (at == before || at == before + 1 || pages == 1),
                "{pages} pages: list {at} after {before}"
            );
            assert!(pages > EXACT || at as u32 == pages - 1);
            before = at;
        }
        assert_eq!(before, BINS - 1);
    }
}
