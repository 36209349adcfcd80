//! vmalloc: requests above 2 MiB get contiguous addresses over memory that need not be adjacent.
//!
//! * Addresses come from an augmented free tree (`tree`); an explicit page table (`index`) says what each slot holds.
//! * `free` is lazy: the range stays mapped (*retained*) and serves a later request of its size without any system call, until it is
//!   too old, or there is too much of it; then it is purged in batches.
//! * A request that no retained range fits gets the longest of those that have free addresses behind them, and as many of these as it lacks, else fresh
//!   addresses only. Old memory is *moved* there where there is some (retained ranges, free pageblocks of the buddy system): that costs 1–3 µs
//!   per 2 MiB against 250–350 µs for fresh pages.
//! * Freed ranges stay as long as they may be wanted again ([`crate::zone::Demand`]). Where such zeroed areas were filled before
//!   a calloc takes old memory, too, and writes zeroes to it; what is fresh of one has as much old memory given up, so that no more is resident than
//!   was in use at the peak.
//! * Which areas get huge pages is learned (`usage`).
//! * `realloc` cuts, grows over the free addresses and retained ranges behind the area, or moves the memory to a larger range.
//!
//! Programs that go on and on, each with some live blocks of sizes at random, of which a byte in each page is written (µs a block and its free, MiB
//! resident at most; one by one in turn):
//!
//! | | 2–8 MiB, 3 live | 10 | 8–32 MiB, 3 | `realloc` of one to 2–8 MiB | 8–32 MiB |
//! |---|---|---|---|---|---|
//! | fresh addresses only, last slots in part, freed ranges kept by what was asked for | 45, 27 | 34, 77 | 94, 95 | 22 | 234 |
//! | this | 10, 26 | 12, 72 | 43, 94 | 11 | 40 |
//! | mimalloc 2 | 10, 34 | 10, 98 | 41, 162 | 66 | 365 |
//! | gperftools' tcmalloc | 10, 43 | 11, 101 | 41, 137 | 69 | 489 |
//!
//! Most of the difference were page faults: of last slots that were mapped as far as needed, given up when they were moved and made anew, and of ranges that
//! went back since the rest of last slots counted where they were free, and not where they were in use. `realloc` to 8–32 MiB of what is not
//! written to takes 0.17 in place of 17 µs. Rejected: areas side by side, so that freed ones make longer ranges (of requests that find none 5 to 12 in place of 7 to 20 %, as long).
//!
//! Where frames are owned (bare metal, the simulator) slots are pages, and each is backed by a frame of the buddy system.
//!
//! Lock order: one lock, inside those of slab and mm, outside those of the zones, with which it is never held together: no
//! call to the machine's mapping and no allocation happens under it. A range that is being worked on is *in transit*: found
//! by nobody else, and freeing it is a double free.

mod backing;
mod index;
mod mapping;
mod node;
mod realloc;
mod source;
mod space;
#[cfg(test)]
mod tests;
mod tree;
mod usage;

use core::marker::PhantomData;
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{
    AtomicU32, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};

pub use source::FrameSource;
pub use space::Figures;

use crate::error::Defect;
use crate::gfp::Gfp;
use crate::machine::{Machine, non_null};
use crate::page::Kind;
use crate::paging::Level;
use crate::paging::x86_64::{Slot, SlotState};
use crate::sync::{Fork, Guard, Lock};
use crate::types::{Caller, Order, PAGE_SHIFT, PAGE_SIZE, Pfn};
use index::Index;
use node::{Ref, State};
use space::{Space, WATCHED, round_up};
use usage::{Count, Usage};

/// Areas above which new ones are placed without room to grow, so that neighbouring mappings merge: a sixteenth of the
/// usual limit on mappings.
const COMPACT: usize = 4096;
/// Least and most room to grow that is left between areas.
const ROOM: (usize, usize) = (16 << 20, 1 << 30);
/// Freed ranges kept at most.
const RETAINED_RANGES: usize = 512;
/// The part of what is in use that is kept besides what may be wanted again.
const RETAINED_PART: usize = 32;
/// The last slot of an area is mapped only as far as it is needed, in this unit (the largest page of a host), where more than half
/// of it is not: a huge page there would be mostly waste. The rest follows when the area grows.
const TAIL_UNIT: usize = 64 << 10;
/// Most bytes in areas that have huge pages and of whose kind nothing is known. Who reserves more without meaning to fill it often does.
const HOPED: usize = 1 << 30;
/// The same where zeroes are asked for, much of which may be left as they are.
const HOPED_ZEROED: usize = 32 << 20;
/// Bytes given back between two looks at the clock.
const PIECE: usize = 64 << 20;
/// Ranges purged between two takings of the lock.
const BATCH: usize = 16;

/// Why an area could not be freed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FreeError {
    /// The address is not an area's.
    Defect(Defect),
    /// The lock was not to be had; nothing was done.
    Busy,
}

/// An area, as [`Vmalloc::for_each_area`] shows it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Area {
    /// First byte.
    pub start: usize,
    /// Bytes of address space.
    pub len: usize,
    /// Bytes handed out; 0 for a range that is retained or in transit.
    pub size: usize,
    /// Whether it shows frames that are somebody else's (`vmap`).
    pub vmap: bool,
    /// Whether it was freed and is kept for reuse.
    pub retained: bool,
    /// Who asked for it, if [`Vmalloc::note_caller`] was told.
    pub caller: Caller,
}

impl Area {
    fn of(node: Ref) -> Area {
        let state = node.state.get();
        let vmap = state == State::Transit && node.stamp.get() == mapping::MAPPING;
        Area {
            start: node.start.get(),
            len: node.len.get(),
            size: if vmap {
                node.mapped.get()
            } else if state == State::Busy {
                node.size.get()
            } else {
                0
            },
            vmap,
            retained: state == State::Retained,
            caller: node.caller.get(),
        }
    }
}

/// The vmalloc layer of one instance.
pub struct Vmalloc<M: Machine> {
    space: Lock<Space>,
    /// Complement of the freed bytes that are kept in any case, so that it starts as 0.
    not_retained: AtomicUsize,
    /// Complement of the number of the page table's root, for readers without the lock; 0 before there is one.
    not_root: AtomicU32,
    /// Forks so far, in parent and child: memory from before may be shared.
    generation: AtomicU32,
    /// Moves refused in a row; after some, only every so many requests try again.
    refusals: AtomicU32,
    machine: PhantomData<fn() -> M>,
}

impl<M: Machine> Default for Vmalloc<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: Machine> Vmalloc<M> {
    const SLOT: usize = 1 << M::SLOT_SHIFT;
    /// Unmapped bytes behind each area. Hosted, the room to grow does that service, and 2 MiB would be much.
    const GUARD: usize = if M::OWNS_FRAMES { Self::SLOT } else { 0 };
    /// Where a slot's leaf stands.
    const LEVEL: Level = if M::SLOT_SHIFT >= 21 { Level::Pmd } else { Level::Pte };
    /// Order of a slot's frames.
    const ORDER: Order = match Order::new((M::SLOT_SHIFT - PAGE_SHIFT) as u8) {
        Some(order) => order,
        None => panic!("slots are blocks of the buddy system"),
    };

    /// An instance that has no addresses yet.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Vmalloc {
            space: Lock::new(Space::new()),
            not_retained: AtomicUsize::new(0),
            not_root: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            refusals: AtomicU32::new(0),
            machine: PhantomData,
        }
    }

    /// An instance that has no addresses yet.
    #[cfg(loom)]
    pub fn new() -> Self {
        Vmalloc {
            space: Lock::new(Space::new()),
            not_retained: AtomicUsize::new(0),
            not_root: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            refusals: AtomicU32::new(0),
            machine: PhantomData,
        }
    }

    /// Whether `address` is in the window: then it is this layer's, or nobody's.
    #[inline]
    pub fn contains(&self, m: &M, address: *const u8) -> bool {
        m.window().contains(&address.addr())
    }

    /// An area of `size` bytes (rounded up to pages) whose address is a multiple of `align`, a power of two. Zeroed for
    /// [`Gfp::ZERO`], without writing where it reads zero anyway. `None`: no memory, no addresses, or the request may not
    /// do what it takes (a system call hosted; blocking anywhere).
    pub fn alloc<P: FrameSource<M>>(
        &self,
        m: &M,
        pages: &P,
        size: usize,
        align: usize,
        gfp: Gfp,
    ) -> Option<NonNull<u8>> {
        let size = round_up(size.max(1), PAGE_SIZE)?;
        let len = round_up(size, Self::SLOT)?.checked_add(Self::GUARD)?;
        let window = m.window().len();
        if len > window || align > window {
            return None;
        }
        if let Some(area) = self.reuse(m, pages, size, len, align, gfp) {
            return non_null(area);
        }
        if !gfp.may_block() || !(M::OWNS_FRAMES || gfp.may_io()) {
            return None;
        }
        pages.learn_pressure(m);
        let mut built = self.build(m, pages, size, len, align, gfp);
        if built.is_none() && !gfp.has(Gfp::NORETRY) && self.purge(m, pages) > 0 {
            built = self.build(m, pages, size, len, align, gfp);
        }
        built.and_then(non_null)
    }

    /// Serves a request from a retained range. Hosted, what is too long is cut off and stays retained.
    fn reuse<P: FrameSource<M>>(
        &self,
        m: &M,
        pages: &P,
        size: usize,
        len: usize,
        align: usize,
        gfp: Gfp,
    ) -> Option<usize> {
        let mut space = self.prepare(m, pages, gfp, 2)?;
        let area = space.best_fit(len, align)?;
        let excess = area.len.get() - len;
        if M::OWNS_FRAMES && excess > len / 8 {
            return None;
        }
        let start = area.start.get();
        let survey = self.survey(m, &mut space, area.start.get(), len - Self::GUARD);
        let unclean = (gfp.has(Gfp::ZERO) && survey.dirty > 0) || (survey.shared && gfp.may_io());
        let short = size > area.mapped.get();
        if (unclean && !gfp.may_block()) || (short && !(gfp.may_block() && gfp.may_io())) {
            return None;
        }
        space.take(area);
        let want = if M::OWNS_FRAMES { 0 } else { size >> PAGE_SHIFT };
        let lacking = want.saturating_sub(area.charged.get());
        if lacking > 0 && !pages.charge(lacking as u64) {
            space.retain(area);
            return None;
        }
        space.charge(area, lacking as isize);
        if excess > 0
            && !M::OWNS_FRAMES
            && let Some(rest) = space.split(area, len, PAGE_SHIFT)
        {
            space.retain(rest);
        }
        let mut cleaned = false;
        let lent = !M::OWNS_FRAMES && gfp.may_io();
        let washed = lent && unclean && !survey.shared && space.history.fills(size);
        if unclean || short {
            drop(space);
            let complete = !short || self.complete(m, area);
            if washed && complete {
                self.wash(m, area, size, size);
            } else if unclean && complete {
                let (from, to) = (survey.range.start, survey.range.end.min(start + area.mapped.get()));
                cleaned = lent && m.clean(from, to - from);
                if cleaned {
                    self.foresee(m, pages, area, size, gfp, 0, true);
                    self.remember_zeroes(m, area, size, 0);
                } else {
                    self.blank(m, start, start + size);
                }
            }
            space = self.space.lock(m);
            if !complete {
                space.charge(area, -(lacking as isize));
                space.retain(area);
                drop(space);
                pages.uncharge(lacking as u64);
                return None;
            }
        }
        // What was cleaned is from after any fork.
        self.mark(m, &mut space, start, start + size, if cleaned { Since::Now } else { Since::Then });
        Self::publish(m, &mut space, area, size);
        Self::watch(&mut space, area);
        space.figures.reused += 1;
        Some(start)
    }

    /// Serves a request by a fresh address range.
    fn build<P: FrameSource<M>>(
        &self,
        m: &M,
        pages: &P,
        size: usize,
        len: usize,
        align: usize,
        gfp: Gfp,
    ) -> Option<usize> {
        let charge = if M::OWNS_FRAMES { 0 } else { size >> PAGE_SHIFT };
        if charge > 0 && !pages.charge(charge as u64) {
            return None;
        }
        self.observe(m);
        let moves = !M::OWNS_FRAMES && !gfp.has(Gfp::ZERO);
        let longer = if moves { self.lengthen(m, pages, size, len, align, gfp) } else { None };
        let open = || {
            // Where there is old memory for all of the last slot, it is had like that for the others, and of use to larger areas later.
            let whole = moves && self.stats(m).retained_bytes >= len;
            Some((self.open(m, pages, if whole { len } else { size }, len, align, gfp)?, 0))
        };
        let built = longer.or_else(open).and_then(|(area, had)| {
            let start = area.start.get();
            let mut donated = 0;
            if M::OWNS_FRAMES {
                if !self.fill(m, pages, start, start, len - Self::GUARD, gfp) {
                    self.close(m, area);
                    return None;
                }
            } else if !gfp.has(Gfp::ZERO) {
                let lacking = (area.mapped.get() & !(Self::SLOT - 1)).saturating_sub(had);
                donated = self.donate(m, pages, start + had, lacking);
            } else {
                let fills = self.space.lock(m).history.fills(size);
                if fills {
                    donated = self.donate(m, pages, start, area.mapped.get() & !(Self::SLOT - 1));
                    if donated > 0 {
                        self.wash(m, area, size, size.min(donated * Self::SLOT));
                    }
                }
                // Old memory that is not used is more than is needed as soon as the new one is touched.
                self.give_up(m, pages, size.saturating_sub(donated * Self::SLOT));
                self.remember_zeroes(m, area, size, donated * Self::SLOT);
            }
            self.foresee(m, pages, area, size, gfp, had + donated * Self::SLOT, false);
            let mut space = self.space.lock(m);
            self.mark(m, &mut space, start, start + size, Since::Then);
            let charged = area.charged.get();
            space.charge(area, charge as isize - charged as isize);
            Self::publish(m, &mut space, area, size);
            Self::watch(&mut space, area);
            space.figures.placed += 1;
            space.figures.donated += donated as u64;
            drop(space);
            if charged > 0 {
                pages.uncharge(charged as u64);
            }
            Some(start)
        });
        if built.is_none() && charge > 0 {
            pages.uncharge(charge as u64);
        }
        built
    }

    /// Settles how `area`, in transit and fresh from offset `from` on (or `cleaned`), is to be backed there, and which part of it
    /// is to tell whether that was right.
    #[allow(clippy::too_many_arguments)]
    fn foresee<P: FrameSource<M>>(
        &self,
        m: &M,
        pages: &P,
        area: Ref,
        size: usize,
        gfp: Gfp,
        from: usize,
        cleaned: bool,
    ) {
        if M::OWNS_FRAMES {
            return;
        }
        let (start, mapped) = (area.start.get(), area.mapped.get());
        let slots = (mapped.next_multiple_of(Self::SLOT) - from) / Self::SLOT;
        let mut space = self.space.lock(m);
        let outlook = Self::outlook(pages, &space, size, gfp);
        // The first slots tell of areas like it that fill from the front; where there was none yet, one in the middle tells more.
        let (first, probes) = match outlook {
            Usage::Hoped => (slots.saturating_sub(1) / 2, slots.min(1)),
            Usage::Dense => (0, space.history.probes(slots)),
            _ if cleaned && !space.history.looks_at_cleaned() => (0, 0),
            _ => (0, slots),
        };
        drop(space);
        let probe = (from + first * Self::SLOT, from + (first + probes) * Self::SLOT);
        if matches!(outlook, Usage::Dense | Usage::Hoped) {
            for (from, to) in [(from, probe.0), (probe.1, mapped)] {
                if from < to {
                    m.advise(start + from, to - from, true);
                }
            }
        } else if area.is_dense() {
            m.advise(start, mapped, false);
        }
        area.usage.set(outlook);
        area.probe.set(if probes > 0 { probe } else { (0, 0) });
    }

    /// How an area of `size` bytes is likely to be used; `Unknown` also where it is to have small pages for other reasons.
    fn outlook<P: FrameSource<M>>(pages: &P, space: &Space, size: usize, gfp: Gfp) -> Usage {
        // Where more is asked for than there is, not all of it will be touched. And each such area is a mapping of its own.
        if pages.pressed() || space.areas.len() > COMPACT {
            return Usage::Unknown;
        }
        let hoped = space.figures.hoped_bytes.saturating_add(size);
        match space.history.expects(size) {
            Usage::Dense => Usage::Dense,
            // Who wants it zeroed may be about to leave much of it that way; who does not will write what is to be read.
            Usage::Unknown if hoped <= if gfp.has(Gfp::ZERO) { HOPED_ZEROED } else { HOPED } => {
                let hopeless = gfp.has(Gfp::ZERO) && space.history.leaves_zero(size);
                if !hopeless && pages.affords((hoped >> PAGE_SHIFT) as u64) { Usage::Hoped } else { Usage::Unknown }
            }
            _ => Usage::Unknown,
        }
    }

    /// Looks at how `area`, of `size` bytes and in transit, was used, learns from it, and asks for huge pages, or for none, in all of
    /// it.
    fn judge(&self, m: &M, area: Ref, size: usize) -> Usage {
        let usage = Self::sample(m, area.start.get(), area.probe.get());
        if usage != Usage::Unknown {
            self.space.lock(m).history.learn(size, usage);
            area.probe.set((0, 0));
            let dense = usage == Usage::Dense;
            if area.is_dense() || dense {
                m.advise(area.start.get(), area.mapped.get(), dense);
            }
            area.usage.set(usage);
        }
        usage
    }

    /// How the slots in `probe`, offsets from `start`, were used.
    fn sample(m: &M, start: usize, probe: (usize, usize)) -> Usage {
        let mut count = Count::default();
        for (nth, slot) in usage::samples((probe.1 - probe.0) / Self::SLOT).enumerate() {
            if nth == 2 && count.is_silent() {
                break;
            }
            let (pages, leading) = m.backed_pages(start + probe.0 + slot * Self::SLOT);
            count.add(pages, leading, Self::SLOT / PAGE_SIZE);
        }
        count.usage()
    }

    /// Takes note that `area`, in transit, reads zero from offset `from` on without having been written to, if that is to be looked at.
    fn remember_zeroes(&self, m: &M, area: Ref, size: usize, from: usize) {
        if from < size && self.space.lock(m).history.looks_at_zeroed(size) {
            area.zeroed.set((from, size.next_multiple_of(Self::SLOT)));
        }
    }

    /// Looks at how much of what `area`, of `size` bytes and in transit, was given as zeroes of the system's was written to, and learns
    /// from it.
    fn judge_zeroed(&self, m: &M, area: Ref, size: usize) {
        let (from, to) = area.zeroed.replace((0, 0));
        let (mut pages, mut all) = (0, 0);
        for (nth, slot) in usage::spread(to.saturating_sub(from) / Self::SLOT).enumerate() {
            if nth == 2 && pages == 0 {
                break;
            }
            let at = from + slot * Self::SLOT;
            let within = size.saturating_sub(at).min(Self::SLOT) / PAGE_SIZE;
            pages += m.backed_pages(area.start.get() + at).0.min(within);
            all += within;
        }
        if all > 0 {
            self.space.lock(m).history.learn_filled(size, 2 * pages > all);
        }
    }

    /// Notes that `area` should be looked at.
    fn watch(space: &mut Space, area: Ref) {
        if area.probe.get() != (0, 0) {
            space.watched.rotate_right(1);
            space.watched[0] = area.start.get();
        }
    }

    /// Looks at the areas made of late. They may be freed meanwhile: then what is learned was true a moment ago, and the worst
    /// is advice to a range that has no use for it.
    fn observe(&self, m: &M) {
        for nth in 0..if M::OWNS_FRAMES { 0 } else { WATCHED } {
            let mut space = self.space.lock(m);
            let start = space.watched[nth];
            let known = |space: &Space| {
                let area = space.areas.at(start).filter(|area| area.state.get() == State::Busy)?;
                (area.probe.get() != (0, 0)).then_some((area, area.probe.get()))
            };
            let Some((_, probe)) = known(&space).filter(|_| start != 0) else {
                space.watched[nth] = 0;
                continue;
            };
            drop(space);
            let usage = Self::sample(m, start, probe);
            if usage == Usage::Unknown {
                continue;
            }
            let mut space = self.space.lock(m);
            space.watched[nth] = 0;
            let Some((area, _)) = known(&space).filter(|known| known.1 == probe) else { continue };
            space.uncount_hope(area);
            space.history.learn(area.size.get(), usage);
            area.probe.set((0, 0));
            let dense = usage == Usage::Dense;
            let advise = area.is_dense() || dense;
            area.usage.set(usage);
            let mapped = area.mapped.get();
            drop(space);
            if advise {
                m.advise(start, mapped, dense);
            }
        }
    }

    /// How many bytes are mapped for an area of `size` bytes.
    fn mapped_for(size: usize) -> usize {
        let tail = size & (Self::SLOT - 1);
        let unit = if tail < Self::SLOT / 2 { TAIL_UNIT.min(Self::SLOT) } else { Self::SLOT };
        size.next_multiple_of(unit)
    }

    /// Maps the rest of the last slot of `area`, in transit. False: nothing changed.
    fn complete(&self, m: &M, area: Ref) -> bool {
        let (mapped, all) = (area.mapped.get(), area.len.get() - Self::GUARD);
        if mapped < all {
            if !m.map_fresh(area.start.get() + mapped, all - mapped) {
                return false;
            }
            if area.is_dense() {
                m.advise(area.start.get() + mapped, all - mapped, true);
            }
            let _space = self.space.lock(m);
            area.mapped.set(all);
        }
        true
    }

    /// A new area in transit for `size` bytes: `len` bytes of address space (guard included), tables made, usable and reading
    /// zero where the host backs it, not yet backed where frames are owned.
    fn open<P: FrameSource<M>>(
        &self,
        m: &M,
        pages: &P,
        size: usize,
        len: usize,
        align: usize,
        gfp: Gfp,
    ) -> Option<Ref> {
        let mapped = Self::mapped_for(size);
        let area = {
            let mut space = self.prepare(m, pages, gfp, 2)?;
            let room = Self::room(&space, len);
            let start = space.find(len, align, room)?;
            let area = space.carve(start, len)?;
            area.mapped.set(mapped);
            area
        };
        let start = area.start.get();
        // Mapped before the tables are made: an absurd length fails here, and cheaply.
        let done = M::OWNS_FRAMES || m.map_fresh(start, mapped);
        if done && self.tables(m, pages, gfp, start, len - Self::GUARD) {
            return Some(area);
        }
        if done && !M::OWNS_FRAMES {
            m.unmap(start, len);
        }
        self.close(m, area);
        None
    }

    /// Gives the addresses of an unmapped area in transit back.
    fn close(&self, m: &M, area: Ref) {
        self.space.lock(m).release(area);
    }

    /// Room to grow around an area of `len` bytes: as much again, where addresses abound.
    fn room(space: &Space, len: usize) -> usize {
        if M::OWNS_FRAMES || space.areas.len() > COMPACT || len.max(ROOM.0) > space.window() / 64 {
            return 0;
        }
        len.clamp(ROOM.0, ROOM.1)
    }

    /// Frees the area that begins at `address`: it is retained. With `may_block` it also purges what is too much.
    ///
    /// # Errors
    /// [`FreeError::Defect`]: a double free, an address inside an area, or one that was never an area's.
    /// [`FreeError::Busy`]: not `may_block`, and the lock is taken.
    pub fn free<P: FrameSource<M>>(
        &self,
        m: &M,
        pages: &P,
        address: *mut u8,
        may_block: bool,
    ) -> Result<(), FreeError> {
        let now = m.now_ms();
        let mut space = self.space.acquire(m, may_block).ok_or(FreeError::Busy)?;
        let area = Self::find(m, &mut space, address.addr()).map_err(FreeError::Defect)?;
        let size = area.size.get();
        Self::withdraw(m, &mut space, area);
        area.caller.set(Caller::Unknown);
        if (area.probe.get() != (0, 0) || area.zeroed.get() != (0, 0)) && may_block {
            drop(space);
            self.judge_zeroed(m, area, size);
            self.judge(m, area, size);
            area.probe.set((0, 0));
            space = self.space.lock(m);
        }
        area.zeroed.set((0, 0));
        if area.usage.get() == Usage::Sparse && may_block {
            // Of little use to anybody else, and the next such area would add to what is resident.
            drop(space);
            let gone = self.vacate(m, pages, area, area.len.get());
            self.space.lock(m).figures.purged += gone;
            return Ok(());
        }
        area.stamp.set(now);
        let area = space.coalesce(area);
        space.retain(area);
        self.purge_excess(m, pages, space, may_block);
        Ok(())
    }

    /// Gives ranges back, oldest first, that are more than may be kept.
    fn purge_excess<P: FrameSource<M>>(&self, m: &M, pages: &P, space: Guard<Space, M>, may_block: bool) {
        let bound = self.bound(m, &space);
        let excess = |figures: &Figures| match figures.retained_bytes.saturating_sub(bound) {
            0 if figures.retained > RETAINED_RANGES => usize::MAX,
            excess => excess,
        };
        let any = excess(&space.figures) > 0;
        drop(space);
        if any && may_block {
            self.purge_while(m, pages, excess);
        }
    }

    /// Bytes of freed ranges that may be kept: as many as may be wanted again, within limits, and a few. Owned frames are scarcer.
    fn bound(&self, m: &M, space: &Space) -> usize {
        let busy = space.figures.held_bytes;
        let wanted = usize::try_from(space.demand.wanted()).unwrap_or(usize::MAX);
        let few = self.few(&space.figures);
        let most = if M::OWNS_FRAMES {
            (space.window() / 8).min(32 << 20)
        } else {
            let pages = usize::try_from(m.budget().min(m.pressure()) / 4).unwrap_or(usize::MAX);
            pages.saturating_mul(PAGE_SIZE).min(space.window() / 2)
        };
        few.saturating_add(wanted.saturating_sub(busy)).min(most)
    }

    /// Freed bytes that are kept whether or not they may be wanted again.
    fn few(&self, figures: &Figures) -> usize {
        (!self.not_retained.load(Relaxed)).saturating_add(figures.busy_bytes / RETAINED_PART)
    }

    /// Sets how many freed bytes are kept in any case; `usize::MAX` for as many as there may be.
    pub fn set_retained(&self, bytes: usize) {
        self.not_retained.store(!bytes, Relaxed);
    }

    /// A window of time ends.
    pub fn turn(&self, m: &M) {
        let mut space = self.space.lock(m);
        let busy = space.figures.held_bytes as u64;
        space.demand.turn(busy);
    }

    /// Whether something will have to go back if nothing is wanted from now on.
    pub fn will_idle(&self, m: &M) -> bool {
        let figures = self.space.lock(m).figures;
        figures.retained_bytes > self.few(&figures)
    }

    /// The busy area that begins at `address`, or what is wrong with the address.
    fn find(m: &M, space: &mut Space, address: usize) -> Result<Ref, Defect> {
        match space.area_of(address) {
            Some(area) => match area.state.get() {
                State::Busy if area.start.get() == address => Ok(area),
                State::Busy => Err(Defect::Interior),
                _ => Err(Defect::DoubleFree),
            },
            None if !m.window().contains(&address) || space.window() == 0 => Err(Defect::Foreign),
            None => {
                let aligned = address & (Self::SLOT - 1) == 0;
                let freed = aligned && space.index.get(m, address).state() == SlotState::Freed;
                Err(if freed { Defect::DoubleFree } else { Defect::Foreign })
            }
        }
    }

    /// Usable bytes of the area at `address`: whole pages, truthfully. For a live area this takes no lock, so that it is
    /// answered everywhere.
    ///
    /// # Errors
    /// The defect that [`Vmalloc::free`] would report ([`Defect::Foreign`] where the lock is not to be had).
    pub fn usable_size(&self, m: &M, address: *mut u8, may_block: bool) -> Result<usize, Defect> {
        let address = address.addr();
        // Acquire, pairs with the Release in `adopt`: the root page is zeroed or filled.
        let root = Pfn(!self.not_root.load(Acquire));
        let window = m.window();
        if root.is_some() && window.contains(&address) {
            let base = window.start.next_multiple_of(Self::SLOT);
            let pages = Index::view(root, base, M::SLOT_SHIFT).pages(m, address);
            if pages > 0 {
                return Ok(pages << PAGE_SHIFT);
            }
        }
        let mut space = self.space.acquire(m, may_block).ok_or(Defect::Foreign)?;
        Self::find(m, &mut space, address).map(|area| area.size.get())
    }

    /// Gives all retained ranges back to the system. Returns pages.
    pub fn purge<P: FrameSource<M>>(&self, m: &M, pages: &P) -> u64 {
        self.purge_while(m, pages, |_| usize::MAX)
    }

    /// Gives retained ranges back, the oldest first, while `short` says that memory is. Returns pages.
    pub fn relieve<P: FrameSource<M>>(&self, m: &M, pages: &P, short: impl Fn() -> bool) -> u64 {
        let mut purged = 0;
        while short() {
            let before = self.stats(m).retained;
            // One at a time: what it gives back counts from when it is gone.
            purged += self.purge_while(m, pages, |figures| if figures.retained == before { usize::MAX } else { 0 });
            if before == 0 {
                break;
            }
        }
        purged
    }

    /// Gives ranges back, the oldest first, that are more than may be wanted again, until the clock says `until`. Returns pages.
    pub fn give_back_excess<P: FrameSource<M>>(&self, m: &M, pages: &P, until: u64) -> u64 {
        self.observe(m);
        let mut gone = 0;
        while m.now_ms() < until {
            let space = self.space.lock(m);
            let (retained, bound) = (space.figures.retained_bytes, self.bound(m, &space));
            drop(space);
            if retained <= bound {
                break;
            }
            let goal = bound.max(retained.saturating_sub(PIECE));
            gone += self.purge_while(m, pages, |figures| figures.retained_bytes.saturating_sub(goal));
        }
        gone
    }

    /// Gives up to `bytes` of retained ranges back, the oldest first. Returns pages.
    pub fn give_up<P: FrameSource<M>>(&self, m: &M, pages: &P, bytes: usize) -> u64 {
        let goal = self.space.lock(m).figures.retained_bytes.saturating_sub(bytes);
        self.purge_while(m, pages, |figures| figures.retained_bytes.saturating_sub(goal))
    }

    /// Purges retained ranges, oldest first, while `more` of the figures says how many bytes are to go.
    fn purge_while<P: FrameSource<M>>(&self, m: &M, pages: &P, more: impl Fn(&Figures) -> usize) -> u64 {
        let mut purged = 0;
        loop {
            let mut batch: [Option<Ref>; BATCH] = [None; BATCH];
            let mut space = self.space.lock(m);
            for place in &mut batch {
                let Some(oldest) = space.oldest() else { break };
                let part = more(&space.figures);
                if part == 0 {
                    break;
                }
                space.take(oldest);
                *place = Some(oldest);
                if !M::OWNS_FRAMES
                    && part < oldest.len.get() - Self::SLOT
                    && let Some(rest) = space.split(oldest, part.next_multiple_of(Self::SLOT), PAGE_SHIFT)
                {
                    space.retain(rest);
                }
            }
            drop(space);
            let mapped = |area: &Ref| area.start.get()..area.start.get() + area.len.get() - Self::GUARD;
            if M::OWNS_FRAMES {
                // One flush of the TLBs for the whole batch; only then do the frames go back.
                batch.iter().flatten().for_each(|area| m.flush_cache(mapped(area)));
                m.unmap_all(batch.iter().flatten().map(mapped));
                for area in batch.iter().flatten() {
                    purged += self.vacate_unmapped(m, pages, area, mapped(area).len());
                }
            } else {
                for area in batch.iter().flatten() {
                    purged += self.vacate(m, pages, area, mapped(area).len());
                }
            }
            if batch[BATCH - 1].is_none() {
                break;
            }
        }
        if purged > 0 {
            self.space.lock(m).figures.purged += purged;
        }
        purged
    }

    /// The sums and counts.
    pub fn stats(&self, m: &M) -> Figures {
        self.space.lock(m).figures
    }

    /// Shows every area by address. `each` runs under the lock: it must not call back here.
    pub fn for_each_area(&self, m: &M, mut each: impl FnMut(Area)) {
        let space = self.space.lock(m);
        let mut next = space.areas.first();
        while let Some(area) = next {
            each(Area::of(area));
            next = space.areas.next(area);
        }
    }

    /// The areas from `address` on, as many as there is room for in `out`; how many those are. Unlike in
    /// [`Vmalloc::for_each_area`] the caller may do anything with them: they are copies.
    pub fn areas_from(&self, m: &M, address: usize, out: &mut [Area]) -> usize {
        let space = self.space.lock(m);
        let mut next = match space.areas.at_or_below(address) {
            Some(area) if area.start.get() < address => space.areas.next(area),
            None => space.areas.first(),
            found => found,
        };
        let mut found = 0;
        while let (Some(area), Some(place)) = (next, out.get_mut(found)) {
            *place = Area::of(area);
            next = space.areas.next(area);
            found += 1;
        }
        found
    }

    /// Takes note of who asked for the area that begins at `address`, if the lock is to be had.
    pub fn note_caller(&self, m: &M, address: usize, caller: Caller, may_block: bool) {
        let Some(space) = self.space.acquire(m, may_block) else { return };
        if let Some(area) = space.areas.at(address) {
            area.caller.set(caller);
        }
    }

    /// Whether the lock is held.
    pub fn any_lock_held(&self) -> bool {
        self.space.is_held()
    }

    /// Takes the lock before a `fork`; see [`Lock::lock_for_fork`].
    pub fn lock_all(&self, m: &M, fork: Fork) {
        self.space.lock_for_fork(m, fork);
    }

    /// Takes note, in parent and child, that what is mapped now may be shared.
    pub fn note_fork(&self) {
        self.generation.fetch_add(1, Relaxed);
    }

    /// Gives the lock back after a fork, in parent and child.
    ///
    /// # Safety
    /// As for [`Lock::unlock_after_fork`].
    #[allow(unsafe_code)]
    pub unsafe fn unlock_all(&self, m: &M, fork: Fork) {
        // SAFETY: as required of the caller.
        unsafe { self.space.unlock_after_fork(m, fork) }
    }

    /// Checks everything that must hold, slots and frames included.
    ///
    /// # Errors
    /// What does not hold.
    pub fn verify(&self, m: &M) -> Result<Figures, &'static str> {
        let mut guard = self.space.lock(m);
        let space: &mut Space = &mut guard;
        // The walk over the nodes borrows the space, the slots need the index: first the one, then the other.
        space.verify(|_| Ok(()))?;
        let mut wrong = None;
        for holes in [true, false] {
            let mut next = if holes { space.holes.first() } else { space.areas.first() };
            while let Some(node) = next {
                let (start, state) = (node.start.get(), node.state.get());
                let mapped = node.len.get() - if holes { 0 } else { Self::GUARD };
                let mut present = 0;
                if state != State::Transit {
                    space.index.look(m, start, node.len.get(), |at, slot| {
                        let usable = !matches!(slot.state(), SlotState::Empty | SlotState::Freed);
                        if holes || at >= start + mapped {
                            if usable {
                                wrong = Some("vmalloc: a usable slot outside the areas");
                            }
                            return;
                        }
                        present += usize::from(usable);
                        if state == State::Busy && at < start + node.size.get() && slot.state() != SlotState::Dirty {
                            wrong = Some("vmalloc: a slot was handed out and is not marked so");
                        }
                        if M::OWNS_FRAMES && usable && !backing::is_ours(m.page(slot.frame()), start) {
                            wrong = Some("vmalloc: a frame does not know its area");
                        }
                    });
                    if !holes && present != mapped / Self::SLOT {
                        wrong = Some("vmalloc: an area has unusable slots");
                    }
                }
                next = if holes { space.holes.next(node) } else { space.areas.next(node) };
            }
        }
        match wrong {
            Some(what) => Err(what),
            None => Ok(space.figures),
        }
    }

    /// The lock, with the window open and at least `nodes` nodes in the pool. Memory for them is taken outside the lock.
    fn prepare<'a, P: FrameSource<M>>(
        &'a self,
        m: &'a M,
        pages: &P,
        gfp: Gfp,
        nodes: usize,
    ) -> Option<Guard<'a, Space, M>> {
        let window = m.window();
        if window.len() < Self::SLOT {
            return None;
        }
        loop {
            let mut space = self.space.acquire(m, gfp.may_block())?;
            space.open(window.start, window.end, M::SLOT_SHIFT, Self::GUARD);
            let table = space.index.root().is_some();
            if table && space.window() > 0 && space.pool.len() >= nodes {
                return Some(space);
            }
            drop(space);
            if !gfp.may_block() {
                return None;
            }
            let page = Self::own_page(m, pages, gfp)?;
            let mut space = self.space.lock(m);
            self.adopt(m, &mut space, page, table);
        }
    }

    /// Makes the tables for the slots of a range. False where there is no memory for them.
    fn tables<P: FrameSource<M>>(&self, m: &M, pages: &P, gfp: Gfp, start: usize, len: usize) -> bool {
        loop {
            let mut space = self.space.lock(m);
            let lacking = space.index.lacking(m, start, len);
            if lacking == 0 && space.index.update(m, start, len, true, |_, slot| slot) {
                return true;
            }
            drop(space);
            for _ in 0..lacking.max(1) {
                let Some(page) = Self::own_page(m, pages, gfp) else { return false };
                let mut space = self.space.lock(m);
                self.adopt(m, &mut space, page, false);
            }
        }
    }

    /// A page for nodes or tables, zeroed.
    fn own_page<P: FrameSource<M>>(m: &M, pages: &P, gfp: Gfp) -> Option<Pfn> {
        let allowed = gfp.0 & (Gfp::RECLAIM.0 | Gfp::IO.0 | Gfp::FS.0 | Gfp::NORETRY.0 | Gfp::HIGH.0);
        pages.alloc_pages(m, Gfp(allowed | Gfp::ZERO.0), Order::ZERO, None)
    }

    /// Uses a page for nodes, or for tables.
    #[allow(unsafe_code)]
    fn adopt(&self, m: &M, space: &mut Space, page: Pfn, for_nodes: bool) {
        space.figures.own_pages += 1;
        m.page(page).set_kind(Kind::Reserved, Order::ZERO);
        if for_nodes {
            if let Some(at) = NonNull::new(m.virt(page)) {
                // SAFETY: the page was just allocated and is given to the pool for ever.
                unsafe { space.pool.add(at) }
            }
        } else {
            // SAFETY: the page was just allocated, zeroed, and is given to the index for ever.
            unsafe { space.index.put_by(m, page) }
            if let Some(root) = space.index.root() {
                // Release, pairs with the Acquire in `usable_size`.
                self.not_root.store(!root.0, Release);
            }
        }
    }

    /// Hands `area` out with `size` bytes.
    fn publish(m: &M, space: &mut Space, area: Ref, size: usize) {
        space.hand_out(area, size);
        space.index.set_pages(m, area.start.get(), size >> PAGE_SHIFT);
    }

    /// Takes a busy `area` back: it is in transit.
    fn withdraw(m: &M, space: &mut Space, area: Ref) {
        space.index.set_pages(m, area.start.get(), 0);
        space.take(area);
    }

    /// Counts the slots of a range by what they hold.
    fn survey(&self, m: &M, space: &mut Space, start: usize, len: usize) -> Survey {
        let generation = self.generation.load(Relaxed);
        let mut survey = Survey { dirty: 0, range: start..start, shared: false };
        space.index.look(m, start, len, |at, slot| {
            if slot.state() == SlotState::Dirty {
                survey.dirty += 1;
                survey.range = if survey.dirty == 1 { at } else { survey.range.start }..at + Self::SLOT;
                survey.shared |= !M::OWNS_FRAMES && !slot.of_generation(generation);
            }
        });
        survey
    }

    /// Marks the slots of `[from, to)` as handed out.
    fn mark(&self, m: &M, space: &mut Space, from: usize, to: usize, since: Since) {
        let generation = self.generation.load(Relaxed).wrapping_sub(u32::from(since == Since::Before));
        let first = from & !(Self::SLOT - 1);
        space.index.update(m, first, to - first, false, |at, slot| match slot.state() {
            SlotState::Dirty if since != Since::Now => slot,
            SlotState::Dirty | SlotState::Zero => slot.dirtied(generation, at + Self::SLOT <= to),
            _ => Slot::zero(Self::LEVEL, Pfn(0)).dirtied(generation, at + Self::SLOT <= to),
        });
    }
}

/// Since when slots have their memory.
#[derive(Clone, Copy, PartialEq)]
enum Since {
    /// All of them since the last fork.
    Now,
    /// As is noted of dirty ones, the others since the last fork.
    Then,
    /// The same, the others from before the last fork, maybe.
    Before,
}

/// What [`Vmalloc::survey`] found.
struct Survey {
    /// Slots with old contents.
    dirty: usize,
    /// Addresses from the first of them to the last.
    range: Range<usize>,
    /// Some of them are from before a fork, so that writing to them may copy pages.
    shared: bool,
}
