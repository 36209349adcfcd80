//! How areas are used, which decides whether the system is asked for huge pages: pure bookkeeping, no machine.
//!
//! A huge page costs 100–150 µs, the 512 small ones in its place 750–900 µs; but where a program touches one page in
//! 16, huge pages are 16 times the memory. Nobody tells which it will be, so it is learned from what was seen:
//! * An area of which nothing is known gets huge pages, all but a slot in its middle: what `malloc` returns has to be
//!   written before it is of use. All such areas together are no more than 1 GiB and a sixteenth of the memory; of what
//!   `calloc` returns much may stay as it is, so that zeroed ones get them up to 32 MiB only. The others get small
//!   pages. So do a few slots of each area that is believed to be dense (one in [`PROBE_EVERY`]): a huge page does not
//!   show what of it is used.
//! * An area is looked at when it grows, when it is freed, when another one is made, and now and then. Slots that are
//!   full, or empty but for the one that is being filled, speak for huge pages, all others against.
//! * A dense area that grows gets huge pages from there on. An area of a size (to a power of two) that was dense of
//!   late gets them at once, also where it is the first of its size and the nearest known one, up to eight times
//!   smaller or larger, was dense. Sparse use weighs more.
//! * Where two areas of a size (to a power of two) were freed with less than a quarter of their first probed slot
//!   written to, and none was dense meanwhile or since, those of that size get small pages.
//! * Whether zeroed areas are written to throughout is learned when they are freed, from four slots of what the system
//!   gave for them, by size, too. Where they are, zeroes are written to old memory, which takes a third of the time of
//!   fresh pages, but for a slot in 64 to 256 that shows whether that is still right. Where they are not, one area in
//!   16 is looked at.
//!
//! Measured on 2 CPUs, the best of three runs in turn, each after a program that had the machine's host back as much
//! memory (else that is all that is measured: a virtual machine that gives free memory back waits 2–3 ms for 2 MiB of
//! it, whatever the page size). "All" and "none" are the policies that need no knowledge. Milliseconds, and MiB
//! resident at most where they differ:
//!
//! | program | learned | all | none | glibc | mimalloc 2 | jemalloc | tcmalloc |
//! |---|---|---|---|---|---|---|---|
//! | 1 GiB, a page in each 64 KiB | 33, 66 | 118, 1026 | 73, 66 | 27, 66 | 53, 66 | 28, 68 | 33, 73 |
//! | the same by `calloc` | 27, 66 | 78, 1026 | 47, 66 | 25, 66 | 504, 1026 | 26, 68 | 533, 1031 |
//! | 200 of 8–64 MiB in turn, 8 at a time, a page in each 64 KiB of 8 MiB | 60, 6 | 27, 304 | 16, 22 | 34, 12 | 42, 9 | 45, 8 | 11, 34 |
//! | 1 GiB written once | 541 | 95 | 620 | 543 | 1227 | 526 | 497 |
//! | 64 times 16 MiB, written | 325 | 91 | 808 | 1701 | 1606 | 1275 | 1227 |
//! | 10 times 256 MiB, written, freed | 520 | 193 | 698 | 2544 | 1877 | 1612 | 1098 |
//! | doubled to 1 GiB by `realloc`, written | 144 | 293 | 1800 | 1640 | 2770 | 2583 | 4488 |
//!
//! (Measured when no unknown area got huge pages. That they do by `malloc` took seconds of CPU, in workloads of
//! `benches/workloads.c`: from `huge-same` 0.021 to 0.010, from `huge-touched` 0.048 to 0.031, from `huge-changing`
//! 0.33 to 0.07, from `grow-half` 0.076 to 0.046, where mimalloc 3 took 0.007, 0.032, 0.08 and 0.07. It costs a single
//! sparse array of 300 MiB by `malloc` 298 MiB resident instead of 20, as with mimalloc, and the second one nothing.)
//!
//! (`calloc-huge-touched`, 30 zeroed blocks of 4 to 64 MiB that are written to: 57 ms where all was fresh, 36 where
//! what is filled takes old memory, 26 where the first one has huge pages, too; mimalloc 2 24. A first sparse table of
//! 25 MiB by `calloc` is 28 MiB resident instead of 3.)
//!
//! Rejected: huge pages for whatever is not known to be sparse (a single sparse table of 1 GiB by `calloc`); small
//! pages for the first part of an area and huge ones beyond it, regardless of use (a sparse area touches all of its
//! slots); the first slot in place of the middle one to tell of an unknown area (a filled header, and sparse use behind
//! it); advising huge pages whenever a freed range is used again (right for dense ranges, which are resident by then
//! anyway, and wrong for those that were cleaned); one verdict for all sizes (a program with dense buffers of 64 MiB
//! and a sparse table of 1 GiB: 1026 MiB resident instead of 126); `MADV_COLLAPSE` of areas that turned out dense (it
//! copies; the system's own scan does it later, unhurried); `MADV_POPULATE_WRITE` ahead of the user (resident though
//! not touched).

/// How many doublings away a size is that speaks for one that is not known.
const NEAR: usize = 3;
/// Slots with huge pages for each that is left to small pages as a probe.
const PROBE_EVERY: usize = 64;
/// Most probes of an area.
const PROBES: usize = 4;

/// What the pages of some slots say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Usage {
    /// Nothing.
    Unknown,
    /// Nothing, but huge pages were asked for: of an area, never of slots.
    Hoped,
    /// Slots that are used are used as a whole.
    Dense,
    /// Parts of slots are used.
    Sparse,
}

/// A count of slots by how they are used.
#[derive(Clone, Copy, Default, Debug)]
pub struct Count {
    full: usize,
    /// Backed from the beginning to some place, and no further.
    begun: usize,
    scattered: usize,
}

impl Count {
    /// Adds a slot of `all` pages, `pages` of which are backed, `leading` of them without a gap from the first on.
    pub fn add(&mut self, pages: usize, leading: usize, all: usize) {
        if pages >= all - all / 16 {
            self.full += 1;
        } else if leading < pages {
            self.scattered += 1;
        } else if pages > 0 {
            self.begun += 1;
        }
    }

    /// Whether no slot said anything yet.
    pub fn is_silent(self) -> bool {
        self.full + self.scattered == 0 && self.begun < 2
    }

    /// The verdict. One slot may be on its way to be filled.
    pub fn usage(self) -> Usage {
        let against = self.scattered + self.begun.saturating_sub(1);
        if self.full > against {
            Usage::Dense
        } else if against > self.full {
            Usage::Sparse
        } else {
            Usage::Unknown
        }
    }
}

/// Which of `slots` slots to look at: the ends first.
pub fn samples(slots: usize) -> impl Iterator<Item = usize> {
    let all = [0, slots.wrapping_sub(1), 1, slots / 4, slots / 2];
    (0..all.len()).filter(move |&nth| all[nth] < slots && !all[..nth].contains(&all[nth])).map(move |nth| all[nth])
}

/// How many of `slots` slots to look at, and which, to tell how much of all of them was written to.
pub fn spread(slots: usize) -> impl Iterator<Item = usize> {
    let looks = slots.min(4);
    (0..looks).map(move |nth| (2 * nth + 1) * slots / (2 * looks))
}

/// What was seen of areas by their size, to powers of two: positive where it speaks for something, negative where
/// against it.
struct Scores([i8; usize::BITS as usize]);

impl Scores {
    const MOST: i8 = 2;

    const fn new() -> Scores {
        Scores([0; usize::BITS as usize])
    }

    fn add(&mut self, size: usize, by: i8) {
        let score = &mut self.0[size.max(1).ilog2() as usize];
        *score = (*score + by).clamp(-Scores::MOST, Scores::MOST);
    }

    /// The score of such a size.
    fn of(&self, size: usize) -> i8 {
        self.0[size.max(1).ilog2() as usize]
    }

    /// The score of the nearest size that has one; 0 where none has.
    fn near(&self, size: usize) -> i8 {
        let class = size.max(1).ilog2() as usize;
        let near = (0..=NEAR).flat_map(|by| [class.wrapping_sub(by), class + by]);
        near.filter_map(|class| self.0.get(class)).find(|score| **score != 0).map_or(0, |score| *score)
    }
}

/// What was seen of late, by the size of areas.
pub struct History {
    /// For huge pages.
    dense: Scores,
    /// Against them: areas that were hardly used by the time they were freed.
    unused: Scores,
    /// For writing zeroes to old memory.
    filled: Scores,
    /// Slots advised since the last probe.
    unprobed: usize,
    /// Slots that zeroes were written to since the last one that was left to the system, and how many were.
    washed: usize,
    left: usize,
    /// Cleaned ranges used again.
    cleaned: u32,
    /// Areas that are expected to be left as they are.
    unfilled: u32,
}

impl History {
    /// Nothing was seen.
    pub const fn new() -> History {
        let (dense, unused, filled) = (Scores::new(), Scores::new(), Scores::new());
        History { dense, unused, filled, unprobed: 0, washed: 0, left: 0, cleaned: 0, unfilled: 0 }
    }

    /// Takes note of how an area of `size` bytes was used.
    pub fn learn(&mut self, size: usize, usage: Usage) {
        match usage {
            Usage::Unknown | Usage::Hoped => {}
            Usage::Dense => {
                self.dense.add(size, 1);
                self.unused.add(size, -2 * Scores::MOST);
            }
            Usage::Sparse => self.dense.add(size, -2 * Scores::MOST),
        }
    }

    /// Takes note that an area of `size` bytes was freed and hardly used.
    pub fn learn_unused(&mut self, size: usize) {
        self.unused.add(size, 1);
    }

    /// How an area of `size` bytes is likely to be used.
    pub fn expects(&self, size: usize) -> Usage {
        match self.dense.near(size) {
            _ if self.unused.of(size) == Scores::MOST => Usage::Sparse,
            0 => Usage::Unknown,
            1.. => Usage::Dense,
            _ => Usage::Sparse,
        }
    }

    /// Takes note of whether most of a zeroed area of `size` bytes was written to.
    pub fn learn_filled(&mut self, size: usize, filled: bool) {
        self.filled.add(size, if filled { 1 } else { -1 });
    }

    /// Whether most of a zeroed area of `size` bytes is likely to be written to.
    pub fn fills(&self, size: usize) -> bool {
        self.filled.near(size) > 0
    }

    /// Whether most of a zeroed area of `size` bytes is likely to be left as it is.
    pub fn leaves_zero(&self, size: usize) -> bool {
        self.filled.near(size) < 0
    }

    /// Whether to look at how much of a zeroed area of `size` bytes was written to: one in 16 where it is known not to
    /// be much.
    pub fn looks_at_zeroed(&mut self, size: usize) -> bool {
        self.unfilled = self.unfilled.wrapping_add(1);
        self.filled.near(size) > -Scores::MOST || self.unfilled.is_multiple_of(16)
    }

    /// Which of the first `slots` slots of an area of `size` bytes, that zeroes are to be written to, is to be left to
    /// the system instead, to show whether it is written to: one in [`PROBE_EVERY`], or in four times as many where
    /// that is known well.
    pub fn leaves(&mut self, size: usize, slots: usize) -> Option<usize> {
        self.washed += slots;
        // Counted for areas of all sizes: it may be due where there is no slot to leave.
        if slots == 0 || self.washed < if self.filled.near(size) < Scores::MOST { PROBE_EVERY } else { 4 * PROBE_EVERY }
        {
            return None;
        }
        self.washed = 0;
        self.left = self.left.wrapping_add(1);
        Some(self.left.wrapping_mul(0x9e37_79b1) % slots)
    }

    /// Whether a range that was cleaned and is used again should be looked at: one in 64, as looking takes longer than
    /// cleaning one that was hardly used.
    pub fn looks_at_cleaned(&mut self) -> bool {
        self.cleaned = self.cleaned.wrapping_add(1);
        self.cleaned % 64 == 1
    }

    /// How many of `slots` slots that are to get huge pages are to be probes.
    pub fn probes(&mut self, slots: usize) -> usize {
        self.unprobed += slots;
        let probes = (self.unprobed / PROBE_EVERY).min(PROBES).min(slots);
        if probes > 0 {
            self.unprobed = 0;
        }
        probes
    }
}
