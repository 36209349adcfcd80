//! Which pageblocks are to be huge pages: pure bookkeeping, no machine.
//!
//! Where a pageblock is filled, as slabs fill theirs, a huge page is one fault instead of 512, and random accesses need
//! a fraction of the translations. Where parts of it are handed out and not used, as with blocks of which a program
//! only writes the beginning, it is memory for nothing. Pageblocks of page runs and of slabs are kept apart by their
//! migrate type anyway, so each type goes through its own *phases*: its first pageblocks have small pages; when another
//! one is opened, the one before the last is looked at. If that turns out full, the new one is to be a huge page, and
//! so are those that follow, but for one in [`PROBE_EVERY`], which stays small to be looked at a little later, and then
//! becomes a huge page, too. If not, they have small pages.
//!
//! Those that stayed small were most of what a `fork` took its time for, and the child's end: 16 000 pages of a heap of
//! 1 GiB, where all else is 500 huge ones. Ten children of it take 26 ms with one in 16 that stays small; fewer, which
//! become huge pages once they were seen full, 16.2; and as one mapping
//! ([`PageAllocator::add`](super::PageAllocator::add)) 14.5 (mimalloc 2 and 3 16.6 and 18.2). To make one of small
//! pages takes 240 us, page faults for 512 small ones 310, for a huge one 110: with one in 16 filling 400 MiB takes a
//! twentieth longer, with one in 32 as long as without. (Measured anew on Linux 6.18: 180, 400 and 37 us, so that each
//! that stays small costs half a millisecond. Once in half of what is in use in place of an eighth: `idle` 55.4 in
//! place of 58.8 ms of CPU time, `fragmentation` one hundredth less; none small at all 49.3 ms, and two hundredths.)
//! The first ones, which small heaps leave small, become huge pages from [`GATHER`] pageblocks in use on: most of what
//! a program looks up all the time was made first. 1 to 2 ms for a process that grows so far, a hundredth of
//! `fragmentation`; perl takes a twentieth less (0.72 in place of 0.76 s, fastest of 24 runs in turn; all pageblocks
//! huge from the start take as long, but graph 35.6 in place of 32.5 MiB), `string-map`, `search`, `live-1m` and `fork`
//! as long as before. (The kernel has every CPU put down pages at hand for it, so that it waits where a thread of
//! real-time priority never yields one; page faults of the process wait meanwhile.) With several threads, who all wait,
//! they do from [`GATHER_THREADS`] on: `threads-16`, -32 and -64 took 119, 150 and 187 ms of CPU time before, and take
//! 115, 140 and 170 since (mimalloc 2 113, 138 and 188).
//!
//! No more pageblocks become huge pages once an atomic request was seen
//! ([`PageAllocator::expects_atomic`](super::PageAllocator::expects_atomic)).
//!
//! Runs leave room between them that others fill later: of their pageblocks a quarter may lack, on average of those
//! looked at. (60 live runs of 64 KiB to 2 MiB that are written to: 250 to 512 of 512 pages while it grows, 83 % in
//! all, and all of them in the end. With every one to be full 17 000 page faults, 0.086 s and 104 MiB; so 4 700, 0.059
//! s and 102 MiB.)
//!
//! Where less than half of what is in use is written to, addresses are cheaper than pages: runs then begin at about the
//! multiples of their size rounded up to a power of two ([`on_grid`](super::rows::on_grid)), where others have begun
//! before, instead of in the tightest row, where it is another page that is written first. And nothing is populated
//! ahead of its use unless nearly all is written to. Objects larger than a page go with the runs: they are few to a
//! slab, and mixed with small ones they would deny these their huge pages.
//!
//! Measured (2 CPUs, medians of 3 runs in turn: CPU seconds, MiB resident at most): huge pages from 4 MiB of addresses
//! on, which came first; phases, with runs in the tightest rows; no huge pages; these phases; and jemalloc 5.3 and
//! tcmalloc 2.10, which have none.
//!
//! | workload | all | phases, runs in the tightest rows | none | phases | jemalloc | tcmalloc |
//! |---|---|---|---|---|---|---|
//! | 100 000 live blocks, sizes as measured, first byte written | 0.30, 91 | 0.26, 55 | 0.28, 52 | 0.23, 49 | 0.17, 45 | 0.16, 46 |
//! | a million of them | 2.58, 742 | 0.67, 406 | 0.91, 405 | 0.55, 332 | 0.52, 329 | 0.56, 326 |
//! | a million of 16 to 64 bytes | 0.61, 56 | 0.63, 56 | 0.72, 56 | 0.62, 56 | 0.35, 58 | 0.39, 60 |
//! | 60 blocks of 64 KiB to 2 MiB in turn, first byte written | 0.08, 105 | 0.12, 64 | 0.12, 63 | 0.07, 5 | 0.15, 61 | 0.07, 37 |
//! | the same, every page written | 0.05, 104 | 0.09, 104 | 0.12, 102 | 0.09, 102 | 0.16, 99 | 0.08, 103 |
//! | 500 blocks of 4 to 64 KiB in turn, first byte written | 0.14, 30 | 0.16, 25 | 0.15, 25 | 0.13, 10 | 0.49, 28 | 0.02, 11 |
//!
//! Rejected: huge pages from 32 MiB of addresses in use on and not from 8. What the last pageblock wastes is then a
//! thirtieth at most (MiB resident at most: `strings` 10.6 instead of 11.8, `graph` 31.2 and 32.4, `server` 26.6 and
//! 28.4, perl 28.7 and 30.4), but twice as many page faults take as much CPU time again as that saves memory (`graph`,
//! `server`, perl 5 to 6 %). Pageblocks that are opened for runs while types are not grouped yet judged as those of
//! runs (`large-touched` 4200 page faults instead of 4700 and 3 % less time, `large-same` 9600 instead of 4500 and 12 %
//! more); that, and by what is written of what is in use (4200 and 4000, 1 to 2 % less; but `live-100k` takes 0.07
//! instead of 0.045 s). A look at every fourth pageblock of runs only, where hardly anything of them is written to: a
//! look takes 1.4 us, and `large` 3 % less CPU time (5.13 in place of 5.30 ms), but `random-100k` has 45 MiB instead of
//! 43.

use super::MigrateType;
use super::buddy::Used;
use crate::types::{PAGEBLOCK_PAGES, Pfn};

/// A pageblock in so many stays small, to be looked at; where more than 64 are in use, one in as many
/// as half of them: so much at most is had as huge pages before a change of habits shows.
const PROBE_EVERY: u64 = 32;
const PROBE_PART: u64 = 2;
/// Pageblocks that are opened after a probe before it is looked at.
const SETTLED: u32 = 4;
/// Huge pages come from so many pageblocks in use on: what the last one wastes is a small part then.
const WORTH: u64 = 4;
/// Those that stayed small to be looked at become huge pages, once they were, from so many pageblocks in use on.
const GATHER: u64 = 16;
/// The same where there are threads.
const GATHER_THREADS: u64 = 256;
/// So many of those that were seen full before wait for it.
const EARLY: usize = 6;
/// Pages of a full pageblock that may lack: the last slabs of many caches are on their way to be filled.
const LACKING: u32 = PAGEBLOCK_PAGES / 16;
/// Pages that may lack of pageblocks of runs, on average: between large runs there is room that others will fill.
const LACKING_RUNS: u32 = PAGEBLOCK_PAGES / 4;
/// Pages in use of a pageblock that say how such are used.
const TELLING: u32 = PAGEBLOCK_PAGES / 8;

/// What page runs cost that lie idle.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Cost {
    /// Not known, or in between.
    Some = 0,
    /// Addresses, as hardly any of what is handed out is written to.
    Little = 1,
    /// Their memory.
    All = 2,
}

/// Whether a pageblock of which so many pages hold memory is full.
pub fn is_full(backed: u32) -> bool {
    backed >= PAGEBLOCK_PAGES - LACKING
}

/// The phases of one type of pageblocks.
#[derive(Clone, Copy, Debug)]
pub struct Phase {
    /// Pageblocks with small pages that were opened last, the younger one first.
    small: [Option<Pfn>; 2],
    /// Full ones that are to become huge pages once the heap is large.
    early: [Option<Pfn>; EARLY],
    /// Pages that hold memory of those looked at, averaged over the last few; 0 before the first.
    fill: u32,
    /// Pageblocks seen full of late, less those that were not.
    score: i8,
    /// Pageblocks opened since the youngest of these.
    since: u32,
    /// Sixteenths of what was in use of the last pageblock that was looked at that were not written to.
    unwritten: u32,
}

impl Phase {
    /// Nothing was seen.
    pub const fn new() -> Phase {
        Phase { small: [None; 2], early: [None; EARLY], fill: 0, score: 0, since: 0, unwritten: 0 }
    }

    /// The pageblock to look at before another one is opened. It is not to be looked at again.
    pub fn look(&mut self) -> Option<Pfn> {
        let settled = self.since >= SETTLED;
        self.small[1].take().or_else(|| if settled { self.small[0].take() } else { None })
    }

    /// A pageblock of type `list` was looked at. Whether it is full.
    pub fn learn(&mut self, list: MigrateType, seen: Used) -> bool {
        let runs = list == MigrateType::Movable;
        // Else it went back.
        if seen.backed > 0 {
            self.fill = if runs && self.fill > 0 { (3 * self.fill + seen.backed) / 4 } else { seen.backed };
            let full = PAGEBLOCK_PAGES - if runs { LACKING_RUNS } else { LACKING };
            self.score = if self.fill >= full { (self.score + 1).min(2) } else { -1 };
        }
        if seen.taken >= TELLING {
            self.unwritten = 16u32.saturating_sub(seen.written * 16 / seen.taken);
        }
        is_full(seen.backed)
    }

    /// Whether nearly all of what is handed out is written to, so that it may be populated ahead.
    #[inline]
    pub fn is_written(&self) -> bool {
        self.cost() == Cost::All
    }

    /// Whether most of what is handed out is not written to.
    #[inline]
    pub fn is_begun(&self) -> bool {
        self.unwritten >= 8
    }

    /// What it costs to keep some of it unused.
    pub fn cost(&self) -> Cost {
        match self.unwritten {
            0..=2 => Cost::All,
            3..=13 => Cost::Some,
            _ => Cost::Little,
        }
    }

    /// Whether the pageblock at `block`, which is being opened with `used` pages in use, is to be a huge page, if it
    /// `may`.
    #[inline]
    pub fn open(&mut self, block: Pfn, used: u64, may: bool) -> bool {
        let probe = u64::from(self.since) + 1 >= (used / u64::from(PAGEBLOCK_PAGES) / PROBE_PART).max(PROBE_EVERY);
        let huge = may && !probe && self.score > 0 && used >= WORTH * u64::from(PAGEBLOCK_PAGES);
        if huge {
            self.since += 1;
        } else {
            (self.small, self.since) = ([Some(block), self.small[0]], 0);
        }
        huge
    }

    /// The pageblock that is to become a huge page, too, with `used` pages in use: `full`, which was looked at and is,
    /// or one that was earlier. Later where there are `threads`, which wait for it.
    pub fn gather(&mut self, full: Option<Pfn>, used: u64, threads: bool) -> Option<Pfn> {
        let from = if threads { GATHER_THREADS } else { GATHER };
        if self.score > 0 && used >= from * u64::from(PAGEBLOCK_PAGES) {
            return full.or_else(|| self.early.iter_mut().find_map(Option::take));
        }
        if let Some(place) = self.early.iter_mut().find(|place| place.is_none()) {
            *place = full;
        }
        None
    }
}

/// The phases of a zone.
#[derive(Clone, Copy, Debug)]
pub struct Phases([Phase; 2]);

impl Phases {
    /// Nothing was seen.
    pub const fn new() -> Phases {
        Phases([Phase::new(); 2])
    }

    /// That of pageblocks of type `list`: page runs, or all else.
    pub fn of(&mut self, list: MigrateType) -> &mut Phase {
        &mut self.0[usize::from(list == MigrateType::Movable)]
    }
}

impl Default for Phases {
    fn default() -> Phases {
        Phases::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u32 = PAGEBLOCK_PAGES;

    /// Opens pageblock `nth`, once those before turned out to have `backed` pages.
    fn open(phase: &mut Phase, nth: u32, backed: u32) -> bool {
        open_as(MigrateType::Unmovable, phase, nth, backed)
    }

    fn open_as(list: MigrateType, phase: &mut Phase, nth: u32, backed: u32) -> bool {
        if phase.look().is_some() {
            phase.learn(list, Used { backed, taken: ALL, written: backed });
        }
        phase.open(Pfn(nth * ALL), 60 * u64::from(ALL), true)
    }

    #[test]
    fn full_pageblocks_are_followed_by_huge_pages() {
        let mut phase = Phase::new();
        let huge: u32 = (0..100).map(|nth| u32::from(open(&mut phase, nth, ALL - LACKING))).sum();
        assert!((90..98).contains(&huge), "{huge} of 100");
    }

    #[test]
    fn others_are_not() {
        let mut phase = Phase::new();
        assert!((0..100).all(|nth| !open(&mut phase, nth, ALL - LACKING - 1)));
    }

    #[test]
    fn of_runs_the_average_counts() {
        let huge = |fills: [u32; 2]| -> u32 {
            let mut phase = Phase::new();
            (0..100).map(|nth| u32::from(open_as(MigrateType::Movable, &mut phase, nth, fills[nth as usize % 2]))).sum()
        };
        assert!((90..98).contains(&huge([ALL, ALL - LACKING_RUNS])));
        assert_eq!(huge([ALL / 2, ALL - LACKING_RUNS]), 0);
    }

    #[test]
    fn one_that_is_not_full_ends_the_phase_once_it_is_seen() {
        let mut phase = Phase::new();
        (0..10).for_each(|nth| _ = open(&mut phase, nth, ALL));
        let huge: u32 = (10..100).map(|nth| u32::from(open(&mut phase, nth, 40))).sum();
        assert!(huge < PROBE_EVERY as u32 + SETTLED, "{huge}");
    }

    #[test]
    fn the_one_being_filled_is_not_looked_at_and_none_twice() {
        let mut phase = Phase::new();
        assert_eq!(phase.look(), None);
        phase.open(Pfn(0), 0, true);
        assert_eq!(phase.look(), None);
        phase.open(Pfn(ALL), 0, true);
        assert_eq!((phase.look(), phase.look()), (Some(Pfn(0)), None));
    }

    #[test]
    fn a_probe_is_looked_at_soon_and_rare_in_large_heaps() {
        let mut phase = Phase::new();
        let full = Used { backed: ALL, taken: ALL, written: ALL };
        assert!(phase.learn(MigrateType::Unmovable, full));
        assert!(!phase.learn(MigrateType::Unmovable, Used { backed: ALL - LACKING - 1, ..full }));
        (0..2).for_each(|_| _ = phase.learn(MigrateType::Unmovable, full));
        let (mut probes, mut last) = (0, 0);
        for nth in 0..1000 {
            match phase.look() {
                Some(block) => assert!(block.0 == last * ALL && nth == last + 1 + SETTLED),
                None => assert!(nth != last + 1 + SETTLED || probes == 0),
            }
            if !phase.open(Pfn(nth * ALL), 200 * u64::from(ALL), true) {
                (probes, last) = (probes + 1, nth);
            }
        }
        assert!((9..=11).contains(&probes), "{probes}");
    }

    #[test]
    fn full_ones_become_huge_pages_once_the_heap_is_large() {
        let (mut phase, large) = (Phase::new(), GATHER * u64::from(ALL));
        phase.learn(MigrateType::Unmovable, Used { backed: ALL, taken: ALL, written: ALL });
        (1..=10).for_each(|nth| assert_eq!(phase.gather(Some(Pfn(nth * ALL)), large - 1, false), None));
        assert_eq!(phase.gather(None, large, true), None);
        assert_eq!(phase.gather(Some(Pfn(20 * ALL)), large, false), Some(Pfn(20 * ALL)));
        for nth in 1..EARLY as u32 {
            assert_eq!(phase.gather(None, large, false), Some(Pfn(nth * ALL)));
        }
        let of_threads = GATHER_THREADS * u64::from(ALL);
        assert_eq!(phase.gather(None, of_threads, true), Some(Pfn(EARLY as u32 * ALL)));
        assert_eq!(phase.gather(None, of_threads, true), None);
    }

    #[test]
    fn small_heaps_have_small_pages() {
        let mut phase = Phase::new();
        phase.learn(MigrateType::Unmovable, Used { backed: ALL, taken: ALL, written: ALL });
        assert!(!phase.open(Pfn(0), WORTH * u64::from(ALL) - 1, true));
        assert!(phase.open(Pfn(ALL), WORTH * u64::from(ALL), true));
        assert!(!phase.open(Pfn(2 * ALL), WORTH * u64::from(ALL), false));
        assert_eq!((phase.look(), phase.look()), (Some(Pfn(0)), None), "the other one is looked at later");
    }
}
