//! Page runs in front of the zone: what a CPU freed last of each size, in sheaves like small objects.
//!
//! A run has a class by its number of pages: 3 to 16 each, then eight per doubling to 2 MiB, so that at most an eighth
//! is rounded away. A class is a cache id whose "objects" are whole runs, named by their first page's address: the same
//! rows and sections serve them, but there are no slabs behind, no barn, and no spare sheaf. A CPU keeps up to 2 MiB of
//! a class, 63 runs at most; above 64 KiB a run it keeps 256 KiB, or 16 runs where they cost only addresses. All
//! sheaves together have such room up to 16 MiB; beyond that, up to a 64th of the memory there is, new ones have it
//! only where runs cost only addresses, else for 256 KiB or one run. What is more goes back to the zone one by one, and
//! all of it at the end of a window of time that somebody sees. Where a CPU has none of a class, one of the next larger
//! serves, if at most a fifth is wasted (but of small ones that cost only addresses, where the zone gives one more of
//! the class); now and then the zone is asked, as a class that borrows would do so for ever: what is borrowed goes back
//! to its own.
//!
//! Of runs of a class the first page has a *tag* in the page-class map while it is a block's, which says the class and
//! how far into the page the block starts. So neither `malloc` nor `free` looks at the descriptor, which lies on a
//! cache line of its own for every run, where the map has 64 pages on one; and `free` knows by the tag, exactly,
//! whether a block starts at the address and whether it is live. Four starts are told apart up to 256 KiB, two above,
//! each a mask for a hash of the page's number. The tags are what slabs leave of the 256: pairs of class and colour
//! that none has. Of larger runs that are no class's, and such as others made, the descriptor knows.
//!
//! Runs above 256 KiB are kept by classes, sixteen each, only where hardly any of what runs hold is written to
//! ([`PageAllocator::cost`]), as what they cost then is addresses; once more is, all go back; else they have just as
//! many pages as they need, and a CPU keeps one, whatever its size, which serves loops, or none where all is written
//! to, which takes longer anyway.
//!
//! Measured (2 CPUs, medians of 9 runs in turn; CPU milliseconds and MiB resident of the workloads `pages`,
//! `pages-touched` and `large`):
//!
//! | | `pages` | `pages-touched` | `large` |
//! |---|---|---|---|
//! | sheaves of 512 KiB a class up to 64 KiB, and of 4 runs above 256 KiB | 44.8, 6.9 | 32.9, 27.8 | 12.2, 4.1 |
//! | of 2 MiB, and of 16 runs | 26.7, 5.2 | 27.3, 27.3 | 9.8, 3.6 |
//! | of 4 MiB, and of 512 KiB up to 256 | 25.9, 5.0 | 27.1, 27.3 | 9.7, 3.5 |
//! | of 2 MiB; no neighbours of small ones that cost little; these without descriptor, too | 22.0, 5.9 | 27.0, 27.3 | 9.8, 3.5 |
//! | classes' pages looked up, and large kept runs known to have no tag | 22.4, 6.0 | 26.7, 27.3 | 8.4, 3.5 |
//! | rpmalloc | 55.9, 18.6 | 43.5, 28.0 | 4.9, 3.1 |
//! | gperftools' tcmalloc | 17.0, 10.7 | 71.7, 35.1 | 70.1, 37.3 |
//!
//! Tags for the classes above 256 KiB, too, where the descriptor told the class before: a block of `large` and its free
//! take two thirds (0.58 to 0.72 of four runs; rpmalloc 0.54), medians of 41 short rounds in turn in one process, and
//! the whole program 9 in place of 11 ms (rpmalloc 7). Class, tag and start from one table by KiB, and what `free`
//! knows of the page passed on where it is no object's: 42 and 47 instructions in place of 60 and 57, `pages` takes
//! 0.91 and `large` 0.92 of the time, in rounds in turn. (Of what is left to gperftools' tcmalloc a sixth of the
//! instructions are more, a third was objects between 4 and 8 KiB, before their sheaves were halved: with sheaves of
//! 128 KiB for these `pages` took 0.96, and `random-10k` had 6 % more resident.) (Since then 0.87 and 0.88: the free
//! fetches the block's line, and sheaves of runs share pages. Rejected: starts that differ less, so that more blocks
//! begin at the line that was fetched: `pages` 0.98 to 1.00, but half as many colours.) Rejected: the tag from one
//! table and its start from another (40 KiB 0 to 10 % slower). Rejected beside it: to look at the last pageblock that
//! was opened, not the one before, and huge pages from two in use on (`large-same` 19 700 page faults in place of 5
//! 400: it is not full yet).
//!
//! Programs that go on and on, each with some live blocks of sizes at random, of which the first byte is written (ns a
//! block and its free; lower quartiles):
//!
//! | | 8–32 KiB, 1 live | 10 | 32–128 KiB, 1 | 100 | 1000 | 128–512 KiB, 100 | 1000 |
//! |---|---|---|---|---|---|---|---|
//! | borrowing for ever, no sheaf beyond 16 MiB of room, 256 KiB of a class from 64 KiB on, closed fast path | 16 | 8.3 | 16 | 36 | 43 | 36 | 46 |
//! | this | 9.2 | 7.9 | 8.3 | 6.2 | 14 | 6.7 | 18 |
//! | rpmalloc | 15 | 20 | 9.2 | 15 | 23 | 11 | 22 |
//! | gperftools' tcmalloc | 5.3 | 5.6 | 4.8 | 8.0 | 8.3 | 94 | 407 |
//!
//! Rejected beside it: none kept from 64 KiB on unless that costs little (32–128 KiB, all written to: a quarter more
//! time); one of the own after 16 borrowed where memory is written to (`pages-touched` 29.8 MiB resident instead of
//! 27.5), and above 64 KiB at all (`large-same` 83 instead of 79); as much room for each class once 16 MiB are exceeded
//! (29.5).
//!
//! Two sheaves, exchanged and flushed as a whole, miss three times as often as one of their bytes, as they swing. Half
//! of a miss was the wait of the first atomic instruction, a count, for the program's own writes to cold memory: counts
//! are plain stores now. A fifth of the rest was a prefetch of the run below the one that is handed out: it waits for a
//! translation; a quarter the descriptors. Rejected: classes above 256 KiB where memory is written to, whose caches
//! raised the peak of random live runs (9 KiB to 1.5 MiB) from 1.13 to 1.31 of what is live; more than 256 KiB of a
//! class from 64 KiB on (60 live runs of 64 KiB to 2 MiB, all written to: 108 in place of 102 MiB); none of another
//! class for large ones, either (`large` 11.4, 4.6).
#![allow(unsafe_code)]

use core::sync::atomic::Ordering::Relaxed;

use super::classes::{MAX_SMALL, NR_CLASSES};
use super::layout::SlabLayout;
use super::tag::is_spare;
use super::{RUN_SHEAF_CACHE, Slab};
use crate::gfp::Gfp;
use crate::machine::{Machine, RUN_SHEAF_BYTES, Word, ZoneKind, no_sheaf};
use crate::page::{Kind, Page, flag};
use crate::types::{Order, PAGE_SIZE, Pfn, PfnRange};
use crate::zone::{Cost, PageAllocator};

/// Largest run, in pages, that is kept whether or not memory is plenty.
pub const MAX_CACHED: u32 = 64;
/// Largest run kept at all, in pages.
const MAX_LAST: u32 = 512;
/// Number of classes, the one of larger runs included.
pub const NR_RUNS: usize = 55;
/// Fewest pages of a run: less is small.
const MIN_CACHED: u32 = 3;
/// Runs up to this many pages have a class each.
pub const EXACT: u32 = 16;
/// Bytes that a sheaf's runs should not exceed, up to [`EXACT`] pages and up to [`MAX_CACHED`].
const SHEAF_TARGETS: [usize; 2] = [2 << 20, 256 << 10];
/// Most runs in a sheaf.
const MOST: usize = RUN_SHEAF_BYTES / size_of::<usize>() - 1;
/// All sheaves of runs have room for a 64th of the memory there is: so many times as much is still little of it
/// ([`PageAllocator::affords`]).
const KEPT_PART: u64 = 4;
/// The same of the frames, where these are the machine's own.
const BARE_PART: u64 = 16;
/// Pages that they may have room for in any case: what memory there is is not known of a small process.
const KEPT_UNASKED: u64 = 4096;
/// Such a part of all memory is much to keep where more is begun.
const MUCH_PART: u64 = 4;
/// The same where there are threads, from so many pages on: what a small program's sheaves hold it asks for again, and
/// what is taken out of them is cut (20.6 MiB in place of 17.5 of git's repack).
const MUCH_PART_THREADS: u64 = 10;
const MUCH_THREADS: u64 = 1024;
/// Pages in sheaves of runs, or such a part of all memory, that are not worth closing the fast path for, so that
/// somebody looks at the clock.
const KEPT_IDLE: u32 = 1024;
const IDLE_PART: u64 = 8;
/// Of so many requests that find none of their class one goes to the zone, though a larger run would serve: about what
/// that costs in page faults; where it costs little.
const OWN_AFTER: [usize; 2] = [256, 16];
/// Runs in a sheaf of those above [`MAX_CACHED`] pages; of those from [`EXACT`] on, too, where they cost little.
const LARGE: usize = 16;

/// Cache id of the first class.
pub const FIRST_RUN: u8 = RUN_SHEAF_CACHE + 1;

/// Cache id of the larger runs, of various sizes.
pub const LAST_RUN: u8 = FIRST_RUN + NR_RUNS as u8 - 1;

/// Whether cache `id` is one of runs.
#[inline]
pub const fn is_run(id: u8) -> bool {
    id >= FIRST_RUN && id <= LAST_RUN
}

/// Pages of a run of cache `id`, the most for [`LAST_RUN`].
pub const fn run_pages(id: u8) -> u32 {
    if id == LAST_RUN {
        return MAX_LAST;
    }
    let n = (id - FIRST_RUN) as u32;
    let exact = EXACT - MIN_CACHED + 1;
    if n < exact {
        return MIN_CACHED + n;
    }
    let (doubling, step) = ((n - exact) / 8, (n - exact) % 8);
    (EXACT << doubling) / 8 * (9 + step)
}

/// [`run_pages`] of each class of runs, 0 of other caches.
static RUN_PAGES: [u16; 256] = {
    let (mut pages, mut id) = ([0; 256], FIRST_RUN);
    while is_run(id) {
        pages[id as usize] = run_pages(id) as u16;
        id += 1;
    }
    pages
};

/// [`run_pages`], looked up.
#[inline(always)]
pub fn pages_of(id: u8) -> u32 {
    RUN_PAGES[usize::from(id)].into()
}

const fn table() -> [u8; MAX_LAST as usize + 1] {
    let mut table = [0; MAX_LAST as usize + 1];
    let (mut id, mut pages) = (FIRST_RUN, 1);
    while pages <= MAX_LAST {
        if run_pages(id) < pages {
            id += 1;
        }
        table[pages as usize] = id;
        pages += 1;
    }
    table
}

static CLASS_OF: [u8; MAX_LAST as usize + 1] = table();

/// The class whose runs hold `pages` pages each; 0 where there is none.
#[inline]
pub fn run_class(pages: usize) -> u8 {
    CLASS_OF.get(pages).copied().unwrap_or(0)
}

const fn near() -> [u8; NR_RUNS] {
    let mut near = [0; NR_RUNS];
    let mut id = FIRST_RUN;
    while id < LAST_RUN {
        let mut last = id;
        while last + 1 < LAST_RUN && run_pages(last + 1) * 4 <= run_pages(id) * 5 {
            last += 1;
        }
        near[(id - FIRST_RUN) as usize] = last;
        id += 1;
    }
    near
}

/// The classes whose runs serve for one of class `id`, for lack of it: they waste a fifth at most.
#[inline]
pub fn near_classes(id: u8) -> core::ops::RangeInclusive<u8> {
    static NEAR: [u8; NR_RUNS] = near();
    id..=NEAR[usize::from(id - FIRST_RUN) % NR_RUNS]
}

/// What a class's sheaves and reports go by.
pub(super) const fn layout(id: u8) -> SlabLayout {
    let size = run_pages(id) as usize * PAGE_SIZE;
    let fits = SHEAF_TARGETS[(run_pages(id) > EXACT) as usize] / size;
    let capacity = if id == LAST_RUN {
        1
    } else if run_pages(id) > MAX_CACHED {
        LARGE
    } else if fits > MOST {
        MOST
    } else {
        fits
    };
    SlabLayout {
        size: size as u32,
        object_size: size as u32,
        align: PAGE_SIZE as u32,
        objects: 1,
        colours: 1,
        order: Order::ZERO,
        capacity: capacity as u16,
        ..SlabLayout::NONE
    }
}

/// Runs that a sheaf of class `id` holds where there are many sheaves already.
fn few(id: u8) -> u16 {
    layout(id).capacity.min((SHEAF_TARGETS[1] / (run_pages(id) as usize * PAGE_SIZE)) as u16).max(1)
}

/// The class that the run headed by `head` may be kept in, where such cost so much; 0 where none: it is of another
/// size, or of scarce memory.
#[inline]
pub fn class_of_run(head: &Page, cost: Cost) -> u8 {
    if head.zone() < ZoneKind::Normal as usize || head.has(flag::RESERVE) {
        return 0;
    }
    let pages = head.word() as u32;
    match run_class(pages as usize) {
        0 => 0,
        id if (pages <= MAX_CACHED || cost == Cost::Little) && pages_of(id) == pages => id,
        _ if pages > MAX_CACHED && cost != Cost::All => LAST_RUN,
        _ => 0,
    }
}

const _: () = assert!(FIRST_RUN as usize == NR_CLASSES + 3);

/// Whether the page-class map tells the runs of class `id`.
#[inline(always)]
pub const fn is_tagged(id: u8) -> bool {
    id != 0 && id != LAST_RUN
}

/// What the head of a run of class `id` is that a CPU keeps.
pub const fn kind_kept(id: u8) -> Kind {
    if is_tagged(id) { Kind::Tagged } else { Kind::Kept }
}

/// The most bytes of a request that a tagged class serves.
pub const MAX_TAGGED: usize = run_pages(LAST_RUN - 1) as usize * PAGE_SIZE;

/// KiB of `room` that a run leaves, at most four: by that goes how far the block may start into it.
#[inline(always)]
const fn spare_kib(room: usize) -> usize {
    let kib = room >> 10;
    if kib < 4 { kib } else { 4 }
}

/// How far blocks may start into their first page, by [`spare_kib`]: masks for a hash.
const STARTS: [u16; 5] = [0, 960, 1984, 1984, 4032];

/// Where in the words below the class or the tag is.
const ABOVE_START: u32 = 16;

/// A power of two above all classes: the table of their tags starts with some that are unused, which takes less than a
/// subtraction.
const TAGGED: usize = (LAST_RUN as usize + 1).next_power_of_two();

/// What the tags of runs are, and what they say.
struct Tags {
    /// By class and [`spare_kib`]. Large classes have two tags: their runs leave hardly any room or more than any start
    /// needs. Each with how far a block may start into its first page below it.
    of: [[u32; 8]; TAGGED],
    /// Of each tag how far that is, and above it the class; of others than runs' what is beyond the page.
    runs: [u32; 256],
}

static TAGS: Tags = {
    let mut tags = Tags { of: [[0; 8]; TAGGED], runs: [PAGE_SIZE as u32; 256] };
    let (mut tag, mut id) = (0, FIRST_RUN);
    while is_tagged(id) {
        let (of, mut kib) = (&mut tags.of[id as usize], 0);
        while kib < STARTS.len() {
            if kib > 0 && (STARTS[kib] == STARTS[kib - 1] || run_pages(id) > MAX_CACHED && kib < 4) {
                of[kib] = of[kib - 1];
            } else {
                tag += 1;
                while !is_spare(tag) {
                    tag += 1;
                }
                of[kib] = STARTS[kib] as u32 | (tag as u32) << ABOVE_START;
                tags.runs[tag as usize] = STARTS[kib] as u32 | (id as u32) << ABOVE_START;
            }
            kib += 1;
        }
        id += 1;
    }
    tags
};

/// What a request is given that a tagged class serves.
#[derive(Clone, Copy)]
pub struct Fit(u32);

/// By the size in KiB, less one: the class, its tag and, from [`FIT_START`] on, how far the block may start into the
/// run. All 0 for small sizes: no cache has that id, and its sheaf is always empty.
static FITS: [u32; MAX_TAGGED >> 10] = {
    let (mut fits, mut kib) = ([0; MAX_TAGGED >> 10], MAX_SMALL >> 10);
    while kib < fits.len() {
        let size = (kib + 1) << 10;
        let id = CLASS_OF[size.div_ceil(PAGE_SIZE)];
        let tag = TAGS.of[id as usize][spare_kib(run_pages(id) as usize * PAGE_SIZE - size)];
        fits[kib] = id as u32 | tag >> ABOVE_START << FIT_TAG | (tag & STARTS_MASK) << FIT_START;
        kib += 1;
    }
    fits
};

/// Where the parts of [`Fit`] are. The start is where the hash is that it is a mask for.
const FIT_TAG: u32 = 8;
const FIT_START: u32 = HASH_SHIFT;
const STARTS_MASK: u32 = (1 << ABOVE_START) - 1;

impl Fit {
    /// What serves `size` bytes; `None` where no tagged class holds so many.
    #[inline(always)]
    pub fn of(size: usize) -> Option<Fit> {
        FITS.get(size.wrapping_sub(1) >> 10).map(|fit| Fit(*fit))
    }

    /// The class; 0 of a small size.
    #[inline(always)]
    pub fn class(self) -> u8 {
        self.0 as u8
    }

    /// What the page-class map says of the run's first page.
    #[inline(always)]
    fn tag(self) -> u8 {
        (self.0 >> FIT_TAG) as u8
    }

    /// Bytes that the block starts into the run at `head`.
    #[inline(always)]
    fn start(self, head: Pfn) -> usize {
        ((hash(head) & self.0) >> FIT_START) as usize
    }

    /// The block in the run at `run`, whose head is `head`, of the class. The map says so from then on.
    #[inline(always)]
    pub fn block<M: Machine>(self, m: &M, head: Pfn, run: *mut u8) -> *mut u8 {
        m.class(head).store(self.tag(), Relaxed);
        let block = run.wrapping_add(self.start(head));
        // So that callers do not look once more.
        // SAFETY: it lies in the run.
        unsafe { core::hint::assert_unchecked(!block.is_null()) };
        block
    }
}

/// The tag of the first page of a block that leaves `room` in a run of the tagged class `id`, and below it how far the
/// block may start.
#[inline(always)]
fn run_tag(id: u8, room: usize) -> u32 {
    TAGS.of[usize::from(id) % TAGGED][spare_kib(room)]
}

/// The class of runs in a tag, if it is one.
#[inline(always)]
pub fn run_of_tag(tag: u8) -> Option<u8> {
    Some((TAGS.runs[usize::from(tag)] >> ABOVE_START) as u8).filter(|id| *id != 0)
}

/// Bytes that a block starts into the run at `head` as far as `mask` lets it, a number of cache lines: starts that are
/// all equal modulo the page alias in the caches. By the place, not in turn: a counter would be one cache line for all
/// CPUs. Of the mask that no run has, the bytes of a page.
#[inline(always)]
fn start(head: Pfn, mask: u32) -> usize {
    ((hash(head) >> HASH_SHIFT) | PAGE_SIZE as u32) as usize & (mask as usize & (2 * PAGE_SIZE - 1))
}

/// Of the lower 20 bits of a page's number; bits from [`HASH_SHIFT`] on count. So what machines begin their numbers at
/// need not be added first.
#[inline(always)]
fn hash(head: Pfn) -> u32 {
    head.0.wrapping_mul(0x9e37_79b1u32.wrapping_shl(HASH_BITS))
}

const HASH_BITS: u32 = 12;

const HASH_SHIFT: u32 = 20;

/// Bytes that a block starts into the run at `head`, which has no tag and leaves so much `room`.
#[inline]
pub fn block_start(head: Pfn, room: usize) -> usize {
    start(head, STARTS[spare_kib(room)].into())
}

/// The block of `size` bytes in the run at `run`, whose head is `head`, of the tagged class `id`. The map says so from
/// then on.
#[inline(always)]
pub fn tagged_block<M: Machine>(m: &M, id: u8, head: Pfn, run: *mut u8, size: usize) -> *mut u8 {
    let tag = run_tag(id, pages_of(id) as usize * PAGE_SIZE - size);
    m.class(head).store((tag >> ABOVE_START) as u8, Relaxed);
    run.wrapping_add(start(head, tag))
}

/// Makes the run headed by `head`, of class `id`, whose block starts `offset` bytes into it, one that the map tells;
/// false where it cannot be.
pub fn tag_run<M: Machine>(m: &M, id: u8, head: Pfn, offset: usize) -> bool {
    let mut tags = (0..STARTS.len()).map(|kib| (run_tag(id, kib << 10) >> ABOVE_START) as u8);
    let found = tags.find(|tag| tagged_start(head, *tag) == Some(offset));
    let Some(tag) = found.filter(|_| is_tagged(id)) else { return false };
    m.page(head).set_kind(Kind::Tagged, Order::ZERO);
    m.class(head).store(tag, Relaxed);
    true
}

/// Where the block in the run headed by `head` starts, of which the map says `tag`; `None` where that is no run's.
#[inline(always)]
pub fn tagged_start(head: Pfn, tag: u8) -> Option<usize> {
    let start = start(head, TAGS.runs[usize::from(tag)]);
    (start < PAGE_SIZE).then_some(start)
}

/// The class of the run of which the map says `tag`, if in the page at `head` a block starts `offset` bytes into it.
#[inline(always)]
pub fn starts_run(head: Pfn, tag: u8, offset: usize) -> Option<u8> {
    let run = TAGS.runs[usize::from(tag)];
    // That of another tag is beyond the page.
    if start(head, run) == offset % PAGE_SIZE { Some((run >> ABOVE_START) as u8) } else { None }
}

/// Whether a run of `found` pages, the last larger one, serves for `pages` pages: it wastes at most an eighth.
#[inline]
pub fn last_serves(found: u32, pages: usize) -> bool {
    (pages..=pages + pages / 8).contains(&(found as usize))
}

impl<M: Machine> Slab<M> {
    /// Runs of class `id` that a CPU keeps at most.
    pub fn run_capacity(&self, pages: &PageAllocator<M>, id: u8) -> u16 {
        let most = layout(id).capacity;
        if is_tagged(id) && pages.cost() == Cost::Little { most.max(LARGE as u16) } else { most }
    }

    /// Keeps the run at `run` of class `id`, or gives it back to the zone: the current CPU's sheaf seemed full.
    ///
    /// # Safety
    /// The run is off all lists ([`Kind::Kept`], or [`Kind::Tagged`] without a tag), of that class, and the caller
    /// gives it up.
    #[cold]
    #[inline(never)]
    pub unsafe fn give_run(&self, m: &M, pages: &PageAllocator<M>, id: u8, run: *mut u8, gfp: Gfp) {
        // No atomic addition: it would wait for what the program just wrote to memory, and no count needs to be exact.
        let count = &self.cache(id).slow_frees;
        count.store(count.load(Relaxed).wrapping_add(1), Relaxed);
        let id = self.class_kept(m, pages, id, run);
        // SAFETY: the caller's condition.
        if id == 0 || !unsafe { self.keep_run(m, pages, id, run, gfp) } {
            self.free_objects(m, pages, &[run.expose_provenance()], gfp);
        }
    }

    /// Whether a request for a run of class `id` is to have one of its own, where others may serve: a class that
    /// borrows again and again would do so for ever, as what is borrowed goes back to its own class. (Of runs above 64
    /// KiB that are written to the time does not count, and the memory does.)
    #[inline]
    pub fn wants_own(&self, id: u8, little: bool) -> bool {
        // No atomic addition: it would wait for what the program just wrote to memory, and no count needs to be exact.
        let count = &self.cache(id).slow_allocs;
        let often = count.load(Relaxed).wrapping_add(1);
        count.store(often, Relaxed);
        (little || run_pages(id) <= EXACT) && often.is_multiple_of(OWN_AFTER[usize::from(little)])
    }

    /// The class that the run at `run`, of class `id`, is kept in: what large ones cost may be more than when it became
    /// a block.
    fn class_kept(&self, m: &M, pages: &PageAllocator<M>, id: u8, run: *mut u8) -> u8 {
        let cost = pages.cost();
        if cost == Cost::Little || pages_of(id) <= MAX_CACHED || id == LAST_RUN {
            return id;
        }
        let Some(head) = m.pfn(run).map(|pfn| m.page(pfn)) else { return id };
        let id = class_of_run(head, cost);
        head.set_kind(kind_kept(id), Order::ZERO);
        id
    }

    /// # Safety
    /// As for [`Slab::give_run`].
    unsafe fn keep_run(&self, m: &M, pages: &PageAllocator<M>, id: u8, run: *mut u8, gfp: Gfp) -> bool {
        // SAFETY: rows hold valid sheaves; the caller's condition.
        if unsafe { m.push_run_again(id, run) } {
            return true;
        }
        if id == LAST_RUN {
            // The new one in the place of the old one.
            // SAFETY: rows hold valid sheaves; what is popped is ours.
            unsafe {
                let old = m.pop_again(id);
                if !old.is_null() {
                    let pushed = m.push_run_again(id, run);
                    self.free_objects(m, pages, &[old.expose_provenance()], gfp);
                    return pushed;
                }
            }
        }
        if !gfp.may_io() && !m.is_attached() || cfg!(feature = "slob") {
            return false;
        }
        // One that was made for few runs, when what they cost was not known yet, makes room for one of more.
        let narrow = |len, full| full && pages.cost() == Cost::Little && len < self.run_capacity(pages, id).into();
        let old = self.take_sheaf(m, id, Word::Main(id), narrow);
        if old.is_none() && m.read(Word::Main(id)) != Some(no_sheaf()) {
            return false;
        }
        let room = self.room_for(m, pages, id, gfp);
        let room = room.filter(|(capacity, _)| old.as_ref().is_none_or(|old| *capacity > old.capacity()));
        let made = room.and_then(|(capacity, room)| Some((self.new_run_sheaf(m, pages, capacity, gfp)?, room)));
        let Some((mut own, room)) = made else {
            if let Some(old) = old {
                self.install(m, pages, id, no_sheaf(), old, gfp);
            }
            return false;
        };
        self.kept.fetch_add(room, Relaxed);
        if let Some(mut old) = old {
            old.move_bottom(old.len(), &mut own);
            self.dissolve(m, pages, old, gfp);
        }
        let pushed = own.push(run).is_ok();
        self.install(m, pages, id, no_sheaf(), own, gfp);
        // Somebody has to come by and look at it.
        if M::LENT && self.may_idle() {
            pages.set_idles(true);
        }
        pushed
    }

    /// Runs that one more sheaf of class `id` may hold, so that all of them are a small part of the memory there is,
    /// and as how many pages they count. Of runs above 64 KiB an eighth counts, where at most an eighth is written to.
    fn room_for(&self, m: &M, pages: &PageAllocator<M>, id: u8, gfp: Gfp) -> Option<(u16, u32)> {
        let little = pages.cost() == Cost::Little;
        for (capacity, many) in [(self.run_capacity(pages, id), true), (few(id), false)] {
            let room = u32::from(capacity) * run_pages(id);
            let room = if run_pages(id) > EXACT && little { room / 8 } else { room };
            let kept = u64::from(self.kept.load(Relaxed).saturating_add(room));
            if kept > KEPT_UNASKED && gfp.may_io() && gfp.may_block() {
                pages.learn_pressure(m);
            }
            let affords = if M::LENT {
                kept <= KEPT_UNASKED || (little || !many) && pages.affords(kept * KEPT_PART)
            } else {
                kept * BARE_PART <= pages.managed()
            };
            if affords {
                return Some((capacity, room));
            }
        }
        None
    }

    /// Whether more may lie idle in the sheaves of runs than a program that takes no slow path may keep: they have the
    /// room, and not only that in which there was little at the last look. (A program that goes through a few classes
    /// again and again would have the fast path closed for ever.)
    fn may_idle(&self) -> bool {
        self.kept.load(Relaxed) > KEPT_IDLE.max(self.calm.load(Relaxed))
    }

    /// The same by a look at what lies there: what is little stays so until there is more room, or the next look.
    pub fn will_idle(&self, m: &M, pages: &PageAllocator<M>) -> bool {
        let kept = self.kept.load(Relaxed);
        if kept > KEPT_IDLE {
            let idle = u64::from(KEPT_IDLE).max(pages.committed() / IDLE_PART);
            self.calm.store(if self.pages_kept(m) <= idle { kept } else { 0 }, Relaxed);
        }
        self.may_idle()
    }

    /// Whether a large part of `committed` pages lies in sheaves of runs.
    pub(super) fn keeps_much(&self, m: &M, committed: u64) -> bool {
        let part = if m.looks_below() { u64::MAX } else { (committed / MUCH_PART_THREADS).max(MUCH_THREADS) };
        let much = |pages: u64| pages >= part.min(committed / MUCH_PART);
        if !much(self.kept.load(Relaxed).into()) {
            return false;
        }
        much(self.pages_kept(m))
    }

    /// Gives the run at `address`, which was in a sheaf, back to the zone; false where the lock was not to be had.
    pub(super) fn free_run(&self, m: &M, pages: &PageAllocator<M>, address: usize, gfp: Gfp) -> bool {
        let Some(pfn) = m.pfn(core::ptr::with_exposed_provenance(address)) else { return true };
        // SAFETY: it was freed into a sheaf and taken out of that, whole, by the caller alone. A copy that was freed
        // twice was told by its kind and tag.
        unsafe { pages.free_run(m, PfnRange::new(pfn, m.page(pfn).word() as u32), gfp.may_block()) }
    }

    /// Gives the runs that the current CPU keeps back to the zone, without entering the system.
    pub fn release_runs(&self, m: &M, pages: &PageAllocator<M>, gfp: Gfp) {
        for id in FIRST_RUN..=LAST_RUN {
            if let Some(sheaf) = self.take_sheaf(m, id, Word::Main(id), |len, _| len > 0) {
                self.dissolve(m, pages, sheaf, gfp);
            }
        }
    }

    /// Pages of the runs in sheaves.
    fn pages_kept(&self, m: &M) -> u64 {
        let in_rows = self.objects_in_rows(m);
        (FIRST_RUN..LAST_RUN).map(|id| u64::from(in_rows[id as usize]) * u64::from(run_pages(id))).sum()
    }

    /// Gives what lay in sheaves of runs back to the zone, at the end of a window of time.
    pub(super) fn age_runs(&self, m: &M, pages: &PageAllocator<M>) {
        if M::LENT {
            self.will_idle(m, pages);
        }
        self.flush_runs(m, pages);
    }

    /// Gives all runs in sheaves back to the zone.
    pub fn flush_runs(&self, m: &M, pages: &PageAllocator<M>) {
        self.kept.store(0, Relaxed);
        self.flush_where(m, pages, u64::MAX, is_run);
    }

    /// The same for those above 64 KiB, of which many are kept as long as they cost addresses only.
    pub fn flush_large_runs(&self, m: &M, pages: &PageAllocator<M>) {
        self.flush_where(m, pages, u64::MAX, |id| is_run(id) && run_pages(id) > EXACT);
    }

    /// Checks a sheaf of class `id`.
    pub(super) fn verify_runs(&self, m: &M, id: u8, runs: &[usize]) -> Result<(), &'static str> {
        for (i, run) in runs.iter().enumerate() {
            let head = m.pfn(core::ptr::with_exposed_provenance(*run)).ok_or("run in a sheaf lies in no zone")?;
            if m.virt(head).addr() != *run {
                return Err("address in a sheaf of runs is no page's start");
            }
            let fits = [Cost::Little, Cost::Some].iter().any(|cost| class_of_run(m.page(head), *cost) == id);
            if m.page(head).kind() != kind_kept(id) || m.class(head).load(Relaxed) != 0 || !fits {
                return Err("run in a sheaf is none of its class");
            }
            if runs[..i].contains(run) {
                return Err("run is in a sheaf twice");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn a_block_starts_where_its_tag_says_and_nowhere_else() {
        for tag in 0..=255 {
            let is_run = run_of_tag(tag).is_some_and(is_tagged);
            assert!(!is_run || is_spare(tag));
            for head in (0x10_0000..0x10_0400).map(Pfn) {
                let found: Vec<_> =
                    (0..PAGE_SIZE).step_by(64).filter(|at| starts_run(head, tag, *at).is_some()).collect();
                assert_eq!(found.len(), usize::from(is_run), "tag {tag}: {found:?}");
                assert_eq!(tagged_start(head, tag), found.first().copied());
                if let Some(at) = found.first() {
                    assert_eq!(starts_run(head, tag, *at), run_of_tag(tag));
                }
            }
        }
    }

    #[test]
    fn a_tag_tells_its_class_and_leaves_room_for_the_block() {
        for id in (FIRST_RUN..=LAST_RUN).filter(|id| is_tagged(*id)) {
            for room in (0..PAGE_SIZE * 2).step_by(64) {
                let tag = (run_tag(id, room) >> ABOVE_START) as u8;
                assert_eq!(run_of_tag(tag), Some(id));
                assert!(
                    (0..4096).all(|head| tagged_start(Pfn(head), tag).unwrap() <= room),
                    "{room} bytes of class {id}"
                );
            }
        }
    }

    #[test]
    fn a_request_fits_its_class_and_its_block_starts_where_the_tag_says() {
        for size in (0..MAX_TAGGED + 2).step_by(7).chain([MAX_SMALL, MAX_SMALL + 1, MAX_TAGGED, MAX_TAGGED + 1]) {
            let Some(fit) = Fit::of(size) else {
                assert!(size == 0 || size > MAX_TAGGED, "{size}");
                continue;
            };
            let id = if size > MAX_SMALL { run_class(size.div_ceil(PAGE_SIZE)) } else { 0 };
            assert_eq!(fit.class(), id, "{size}");
            if id == 0 {
                continue;
            }
            assert_eq!(run_of_tag(fit.tag()), Some(id));
            for head in (0x10_0000..0x10_0010).map(|head| Pfn(head + size as u32)) {
                assert_eq!(tagged_start(head, fit.tag()), Some(fit.start(head)));
                assert!(fit.start(head) + size <= pages_of(id) as usize * PAGE_SIZE, "{size}");
            }
        }
    }

    #[test]
    fn every_run_gets_the_smallest_class_that_holds_it() {
        assert_eq!(run_pages(LAST_RUN - 1), MAX_LAST);
        assert_eq!(run_class(MAX_LAST as usize + 1), 0);
        for pages in MIN_CACHED..=MAX_LAST {
            let id = run_class(pages as usize);
            assert!(is_run(id) && run_pages(id) >= pages);
            assert!(id == FIRST_RUN || run_pages(id - 1) < pages);
            assert!((run_pages(id) - pages) * 8 <= pages, "{pages} pages");
            let near = run_pages(*near_classes(id).end());
            assert!(near >= run_pages(id) && near * 4 <= run_pages(id) * 5);
        }
    }
}
