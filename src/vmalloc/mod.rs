//! vmalloc: requests above 2 MiB, and blocks that grow beyond 1 MiB, get contiguous addresses over memory that need not
//! be adjacent.
//!
//! * Addresses come from an augmented free tree (`tree`); an explicit page table (`index`) says what each slot holds.
//! * `free` is lazy: the range stays mapped (*retained*) and serves a later request of its size without any system
//!   call, until it is too old, or there is too much of it; then it is purged in batches (`purge`).
//! * A request that no retained range fits gets the longest of those that have free addresses behind them, and as many
//!   of these as it lacks, else fresh addresses only. Old memory is *moved* there where there is some that is more than
//!   hardly backed (retained ranges, free pageblocks of the buddy system): that costs 1–3 µs per 2 MiB against 250–350
//!   µs for fresh pages.
//! * Freed ranges stay as long as they may be wanted again ([`crate::zone::Demand`]). Where such zeroed areas were
//!   filled before a calloc takes old memory, too, and writes zeroes to it; what is fresh of one has as much old memory
//!   given up, so that no more is resident than was in use at the peak.
//! * Which areas get huge pages is learned (`usage`) from what is seen of them (`observe`).
//! * `realloc` cuts, grows over the free addresses and retained ranges behind the area, or moves the memory to a larger
//!   range; of a block that shrank below half a slot what lies behind it is given back now and then.
//!
//! Programs that go on and on, each with some live blocks of sizes at random, of which a byte in each page is written
//! (µs a block and its free, MiB resident at most; one by one in turn):
//!
//! | | 2–8 MiB, 3 live | 10 | 8–32 MiB, 3 | `realloc` of one to 2–8 MiB | 8–32 MiB |
//! |---|---|---|---|---|---|
//! | fresh addresses only, last slots in part, freed ranges kept by what was asked for | 45, 27 | 34, 77 | 94, 95 | 22 | 234 |
//! | this | 10, 26 | 12, 72 | 43, 94 | 11 | 40 |
//! | mimalloc 2 | 10, 34 | 10, 98 | 41, 162 | 66 | 365 |
//! | gperftools' tcmalloc | 10, 43 | 11, 101 | 41, 137 | 69 | 489 |
//!
//! Most of the difference were page faults: of last slots that were mapped as far as needed, given up when they were
//! moved and made anew, and of ranges that went back since the rest of last slots counted where they were free, and not
//! where they were in use. `realloc` to 8–32 MiB of what is not written to takes 0.17 in place of 17 µs. Rejected:
//! areas side by side, so that freed ones make longer ranges (of requests that find none 5 to 12 in place of 7 to 20 %,
//! as long).
//!
//! The same where only the first byte of each is written, on a busy machine. What is hardly backed is given up instead
//! of moved, page by page, which takes longer than fresh pages do; and sizes of which areas were hardly used get small
//! pages (`usage`).
//!
//! | | 2–8 MiB, 10 live | 100 | 8–32 MiB, 3 | 10 |
//! |---|---|---|---|---|
//! | all is moved, huge pages | 4.1, 28 | 12.9, 181 | 11.8, 20 | 23.4, 55 |
//! | this | 1.6, 18 | 2.2, 42 | 0.9, 24 | 4.5, 12 |
//! | gperftools' tcmalloc | 0.8, 18 | 1.1, 34 | 0.6, 26 | 1.1, 16 |
//! | jemalloc | 1.9, 6 | 2.8, 21 | 8.1, 4 | 8.2, 5 |
//!
//! Rejected: nothing moved at all (two thirds of the time, but 87 in place of 78 MiB where a byte of each page is
//! written); huge pages as before (the peaks twice as high, as what is kept has them).
//!
//! Where frames are owned (bare metal, the simulator) slots are pages, and each is backed by a frame of the buddy
//! system.
//!
//! Lock order: one lock, inside those of slab and mm, outside those of the zones, with which it is never held together:
//! no call to the machine's mapping and no allocation happens under it. A range that is being worked on is *in
//! transit*: found by nobody else, and freeing it is a double free.

mod backing;
mod index;
mod mapping;
mod node;
mod observe;
mod purge;
mod realloc;
mod slots;
mod source;
mod space;
#[cfg(test)]
mod tests;
mod tree;
mod usage;

use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{
    AtomicU32, AtomicUsize,
    Ordering::{Acquire, Relaxed},
};

pub use source::FrameSource;
pub use space::Figures;

use crate::error::Defect;
use crate::gfp::Gfp;
use crate::machine::{Machine, non_null};
use crate::paging::Level;
use crate::paging::x86_64::SlotState;
use crate::sync::{Fork, Lock};
use crate::types::{Caller, Order, PAGE_SHIFT, PAGE_SIZE, Pfn};
use index::Index;
use node::{Ref, State};
use slots::Since;
use space::{Space, round_up};
use usage::Usage;

/// Areas above which new ones are placed without room to grow, so that neighbouring mappings merge: a sixteenth of the
/// usual limit on mappings.
const COMPACT: usize = 4096;
/// Least and most room to grow that is left between areas.
const ROOM: (usize, usize) = (16 << 20, 1 << 30);
/// The last slot of an area is mapped only as far as it is needed, in this unit (the largest page of a host), where
/// more than half of it is not: a huge page there would be mostly waste. The rest follows when the area grows.
const TAIL_UNIT: usize = 64 << 10;
/// Free ranges that a request finds somebody else in before it is refused.
const TAKEN: usize = 64;

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
    /// [`Gfp::ZERO`], without writing where it reads zero anyway. `None`: no memory, no addresses, or the request may
    /// not do what it takes (a system call hosted; blocking anywhere).
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
                    self.blank(m, start, start + size, gfp.may_io());
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
            // Where there is old memory for all of the last slot, it is had like that for the others, and of use to
            // larger areas later.
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

    /// A new area in transit for `size` bytes: `len` bytes of address space (guard included), tables made, usable and
    /// reading zero where the host backs it, not yet backed where frames are owned.
    fn open<P: FrameSource<M>>(
        &self,
        m: &M,
        pages: &P,
        size: usize,
        len: usize,
        align: usize,
        gfp: Gfp,
    ) -> Option<Ref> {
        (0..TAKEN).find_map(|_| match self.try_open(m, pages, size, len, align, gfp) {
            Err(true) => None,
            opened => Some(opened.ok()),
        })?
    }

    /// [`Vmalloc::open`] where there are free addresses first. The error says whether others may suit.
    fn try_open<P: FrameSource<M>>(
        &self,
        m: &M,
        pages: &P,
        size: usize,
        len: usize,
        align: usize,
        gfp: Gfp,
    ) -> Result<Ref, bool> {
        let mapped = Self::mapped_for(size);
        let carve = || {
            let mut space = self.prepare(m, pages, gfp, 2)?;
            let room = Self::room(&space, len);
            let start = space.find(len, align, room)?;
            let area = space.carve(start, len)?;
            area.mapped.set(mapped);
            Some(area)
        };
        let area = carve().ok_or(false)?;
        let start = area.start.get();
        // Mapped before the tables are made: an absurd length fails here, and cheaply.
        let mut done = M::OWNS_FRAMES || m.map_fresh(start, mapped);
        let least = size.next_multiple_of(TAIL_UNIT.min(Self::SLOT));
        if !done && least < mapped {
            // The system may count addresses.
            area.mapped.set(least);
            done = m.map_fresh(start, least);
        }
        if done && self.tables(m, pages, gfp, start, len - Self::GUARD) {
            return Ok(area);
        }
        if done && !M::OWNS_FRAMES {
            m.unmap(start, area.mapped.get());
        }
        let taken = if done || !m.is_taken(start, len) {
            None
        } else {
            (start..start + len).step_by(Self::SLOT).find(|slot| m.is_taken(*slot, Self::SLOT))
        };
        let Some(slot) = taken else {
            self.close(m, area);
            return Err(false);
        };
        // The first slot that others sit in stays in transit, and is not found again.
        let mut space = self.space.lock(m);
        space.release(area);
        let left = space.carve(slot, Self::SLOT);
        left.inspect(|area| area.stamp.set(0));
        Err(left.is_some())
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
    ///
    /// # Safety
    /// If an area begins there it is the caller's: nobody uses its memory, or frees it, from now on. (What is no area's
    /// beginning is refused, and nothing happens.)
    #[allow(unsafe_code)]
    pub unsafe fn free<P: FrameSource<M>>(
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
            self.judge_last(m, area, size);
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

    /// Usable bytes of the area at `address`: whole pages, truthfully. For a live area this takes no lock, so that it
    /// is answered everywhere.
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
    #[must_use]
    pub fn lock_all(&self, m: &M, fork: Fork) -> bool {
        self.space.lock_for_fork(m, fork)
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
}
