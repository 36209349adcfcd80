//! Who has which part of the window: pure bookkeeping, no machine.
//!
//! Invariants: holes and areas together cover the window without overlap; no two holes touch; retained nodes, and only
//! they, are in `retained` and on the list by age; `figures` are the sums over the nodes.

use super::index::Index;
use super::node::{Pool, Ref, State};
use super::tree::{BY_ADDRESS, BY_SIZE, Tree};
use super::usage::{History, Usage};
use crate::types::Caller;
use crate::zone::Demand;

/// Sums over all areas, and counts of events.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Figures {
    /// Areas handed out.
    pub busy: usize,
    /// Bytes handed out (whole pages).
    pub busy_bytes: usize,
    /// Bytes of memory that these may hold: whole slots, as far as they are mapped.
    pub held_bytes: usize,
    /// Bytes among them that may turn out to be sparsely used, and have huge pages.
    pub hoped_bytes: usize,
    /// Freed ranges that are still mapped.
    pub retained: usize,
    /// Their bytes.
    pub retained_bytes: usize,
    /// Pages charged to the budget.
    pub charged: usize,
    /// Allocations served from a retained range.
    pub reused: u64,
    /// Allocations given a fresh address range.
    pub placed: u64,
    /// Slots filled by moving old memory there.
    pub donated: u64,
    /// Times an area grew where it was.
    pub grown: u64,
    /// Times an area was moved by its page tables.
    pub moved: u64,
    /// Bytes copied because moving failed.
    pub copied: u64,
    /// Pages given back.
    pub purged: u64,
    /// Pages the layer keeps for its nodes and tables.
    pub own_pages: usize,
}

/// Areas made of late that are looked at now and then.
pub const WATCHED: usize = 4;

/// The window.
pub struct Space {
    start: usize,
    end: usize,
    slot: usize,
    /// Address space kept free behind each area.
    guard: usize,
    pub holes: Tree<BY_ADDRESS>,
    pub areas: Tree<BY_ADDRESS>,
    pub retained: Tree<BY_SIZE>,
    oldest: Option<Ref>,
    newest: Option<Ref>,
    pub pool: Pool,
    pub index: Index,
    pub history: History,
    /// First bytes of areas made of late whose use is not known; 0 for none.
    pub watched: [usize; WATCHED],
    pub figures: Figures,
    /// Of the bytes handed out.
    pub demand: Demand,
}

/// `n` rounded up to a multiple of `unit`, a power of two; `None` on overflow.
pub fn round_up(n: usize, unit: usize) -> Option<usize> {
    n.checked_add(unit - 1).map(|n| n & !(unit - 1))
}

impl Space {
    /// A space that was not opened yet: nothing fits.
    pub const fn new() -> Space {
        Space {
            start: 0,
            end: 0,
            slot: 0,
            guard: 0,
            holes: Tree::new(),
            areas: Tree::new(),
            retained: Tree::new(),
            oldest: None,
            newest: None,
            pool: Pool::new(),
            index: Index::new(),
            history: History::new(),
            watched: [0; WATCHED],
            figures: Figures {
                busy: 0,
                busy_bytes: 0,
                held_bytes: 0,
                hoped_bytes: 0,
                retained: 0,
                retained_bytes: 0,
                charged: 0,
                reused: 0,
                placed: 0,
                donated: 0,
                grown: 0,
                moved: 0,
                copied: 0,
                purged: 0,
                own_pages: 0,
            },
            demand: Demand::new(),
        }
    }

    /// Opens the window `[start, end)` for areas of `slot`-sized units with `guard` bytes behind each. Takes a node.
    pub fn open(&mut self, start: usize, end: usize, slot_shift: u32, guard: usize) {
        let slot = 1 << slot_shift;
        let (start, end) = (start.next_multiple_of(slot), end & !(slot - 1));
        if self.slot != 0 || start >= end {
            return;
        }
        if let Some(hole) = self.pool.take() {
            (self.start, self.end, self.slot, self.guard) = (start, end, slot, guard);
            self.index.open(start, slot_shift);
            hole.start.set(start);
            hole.len.set(end - start);
            self.holes.insert(hole);
        }
    }

    /// Bytes of the window.
    pub fn window(&self) -> usize {
        self.end - self.start
    }

    /// Where an area of `len` bytes (guard included) aligned to `align` would go, preferably with `room` free before
    /// and behind it: the lowest place.
    pub fn find(&self, len: usize, align: usize, room: usize) -> Option<usize> {
        let slack = align.saturating_sub(self.slot);
        let wanted = len.checked_add(slack)?;
        let (hole, room) = match wanted.checked_add(2 * room).and_then(|all| self.holes.first_fit(all)) {
            Some(hole) => (hole, room),
            None => (self.holes.first_fit(wanted)?, 0),
        };
        let from = hole.start.get() + if hole.start.get() == self.start { 0 } else { room };
        round_up(from, align.max(self.slot))
    }

    /// Makes the free range `[start, start + len)` an area in transit. Takes up to two nodes; `None` without them.
    pub fn carve(&mut self, start: usize, len: usize) -> Option<Ref> {
        let hole = self.holes.at_or_below(start).filter(|hole| start + len <= hole.end())?;
        if self.pool.len() < 2 {
            return None;
        }
        let area = self.pool.take()?;
        let (before, behind) = (start - hole.start.get(), hole.end() - (start + len));
        if before > 0 {
            hole.len.set(before);
            self.holes.resized(hole);
        } else {
            self.holes.remove(hole);
            self.pool.put(hole);
        }
        if behind > 0 {
            let rest = self.pool.take()?;
            rest.start.set(start + len);
            rest.len.set(behind);
            self.holes.insert(rest);
        }
        area.start.set(start);
        area.len.set(len);
        area.state.set(State::Transit);
        self.areas.insert(area);
        Some(area)
    }

    /// Makes `area`, in transit and charged nothing, a hole again.
    pub fn release(&mut self, area: Ref) {
        self.areas.remove(area);
        self.free_range(area.start.get(), area.len.get(), area);
    }

    /// Makes the range a hole, merging it with its neighbours. `spare` becomes its node or goes to the pool.
    pub fn free_range(&mut self, start: usize, len: usize, spare: Ref) {
        let before = start.checked_sub(1).and_then(|at| self.holes.at_or_below(at)).filter(|hole| hole.end() == start);
        let behind = self.holes.at(start + len);
        let behind_len = behind.map_or(0, |hole| hole.len.get());
        if let Some(hole) = behind {
            self.holes.remove(hole);
            self.pool.put(hole);
        }
        if let Some(hole) = before {
            hole.len.set(hole.len.get() + len + behind_len);
            self.holes.resized(hole);
            self.pool.put(spare);
        } else {
            spare.start.set(start);
            spare.len.set(len + behind_len);
            spare.state.set(State::Free);
            spare.caller.set(Caller::Unknown);
            spare.size.set(0);
            spare.mapped.set(0);
            spare.usage.set(Usage::Unknown);
            spare.probe.set((0, 0));
            spare.zeroed.set((0, 0));
            self.holes.insert(spare);
        }
    }

    /// Lengthens `area` by `by` bytes of the hole directly behind it. False where there are not so many.
    pub fn extend(&mut self, area: Ref, by: usize) -> bool {
        let Some(hole) = self.holes.at(area.end()).filter(|hole| hole.len.get() >= by) else { return false };
        self.holes.remove(hole);
        hole.start.set(hole.start.get() + by);
        hole.len.set(hole.len.get() - by);
        if hole.len.get() > 0 {
            self.holes.insert(hole);
        } else {
            self.pool.put(hole);
        }
        area.len.set(area.len.get() + by);
        self.areas.resized(area);
        true
    }

    /// Undoes the last `by` bytes of [`Space::extend`], or cuts off what is unmapped.
    pub fn retract(&mut self, area: Ref, by: usize, spare: Ref) {
        area.len.set(area.len.get() - by);
        self.areas.resized(area);
        self.free_range(area.end(), by, spare);
    }

    /// Bytes of the hole directly behind `area`.
    pub fn room_behind(&self, area: Ref) -> usize {
        self.holes.at(area.end()).map_or(0, |hole| hole.len.get())
    }

    /// How many retained ranges and holes behind `area` have `len` bytes; `None` where something else is in the way.
    pub fn parts_behind(&self, area: Ref, len: usize) -> Option<usize> {
        let (mut at, goal) = (area.end(), area.end() + len);
        let (mut next, mut parts) = (self.areas.next(area), 0);
        while at < goal {
            match next {
                Some(found) if found.start.get() == at => {
                    if found.state.get() != State::Retained {
                        return None;
                    }
                    at = found.end();
                    next = self.areas.next(found);
                }
                _ => at = self.holes.at(at)?.end(),
            }
            parts += 1;
        }
        Some(parts)
    }

    /// The area that `address` lies in.
    pub fn area_of(&self, address: usize) -> Option<Ref> {
        self.areas.at_or_below(address).filter(|area| address < area.end())
    }

    /// Splits `area`, in transit, at `len` bytes, all of them mapped: the rest becomes an area in transit of its own.
    /// The charge goes with the front as far as its pages reach.
    pub fn split(&mut self, area: Ref, len: usize, page_shift: u32) -> Option<Ref> {
        let rest = self.pool.take()?;
        let charged = area.charged.get();
        let front = charged.min(len >> page_shift);
        rest.start.set(area.start.get() + len);
        rest.len.set(area.len.get() - len);
        rest.mapped.set(area.mapped.get() - len);
        area.mapped.set(len);
        rest.charged.set(charged - front);
        rest.stamp.set(area.stamp.get());
        rest.usage.set(area.usage.get());
        let (from, to) = area.probe.get();
        area.probe.set((from.min(len), to.min(len)));
        let (zeroed, end) = area.zeroed.get();
        area.zeroed.set((zeroed.min(len), end.min(len)));
        rest.probe.set((from.saturating_sub(len), to.saturating_sub(len)));
        rest.state.set(State::Transit);
        area.charged.set(front);
        area.len.set(len);
        self.areas.resized(area);
        self.areas.insert(rest);
        Some(rest)
    }

    /// Joins `behind` (in transit) to `area`, mapped to its end, which it directly follows.
    pub fn join(&mut self, area: Ref, behind: Ref) {
        self.areas.remove(behind);
        area.mapped.set(area.mapped.get() + behind.mapped.get());
        area.len.set(area.len.get() + behind.len.get());
        area.charged.set(area.charged.get() + behind.charged.get());
        if area.usage.get() != behind.usage.get() {
            area.usage.set(Usage::Unknown);
        }
        area.probe.set((0, 0));
        area.zeroed.set((0, 0));
        self.areas.resized(area);
        self.pool.put(behind);
    }

    /// Joins `area`, in transit, with the retained ranges that touch it; the area of all of them, as old as the
    /// largest. Otherwise large areas that were cut up for small ones would be of no use to the next large one.
    pub fn coalesce(&mut self, area: Ref) -> Ref {
        let retained = |found: &Ref| found.state.get() == State::Retained;
        let touch =
            |front: Ref, behind: Ref| front.end() == behind.start.get() && front.mapped.get() == front.len.get();
        let (before, behind) =
            (area.start.get().checked_sub(1).and_then(|at| self.areas.at_or_below(at)), self.areas.next(area));
        let mut join = |front: Ref, behind: Ref, retained: Ref| {
            let largest = if front.len.get() > behind.len.get() { front } else { behind };
            let stamp = largest.stamp.get();
            self.take(retained);
            self.join(front, behind);
            front.stamp.set(stamp);
        };
        if let Some(behind) = behind.filter(retained).filter(|behind| touch(area, behind)) {
            join(area, behind, behind);
        }
        match before.filter(retained).filter(|before| touch(before, area)) {
            Some(before) => {
                join(before, area, before);
                before
            }
            None => area,
        }
    }

    /// Bytes of memory that the busy `area` may hold. What is mapped ahead of its size was not touched.
    fn held(&self, area: Ref) -> usize {
        area.size.get().next_multiple_of(self.slot).min(area.mapped.get())
    }

    /// Hands `area` out with `size` bytes.
    pub fn hand_out(&mut self, area: Ref, size: usize) {
        area.state.set(State::Busy);
        area.size.set(size);
        self.figures.busy += 1;
        self.figures.busy_bytes += size;
        self.figures.held_bytes += self.held(area);
        if area.usage.get() == Usage::Hoped {
            self.figures.hoped_bytes += size;
        }
        self.demand.at(self.figures.held_bytes as u64);
    }

    /// The use of the busy `area` is about to be known, or no longer of interest.
    pub fn uncount_hope(&mut self, area: Ref) {
        if area.usage.get() == Usage::Hoped {
            self.figures.hoped_bytes -= area.size.get();
        }
    }

    /// Takes `area` back from its user, or off the retained ranges: it is in transit then.
    pub fn take(&mut self, area: Ref) {
        match area.state.get() {
            State::Busy => {
                self.figures.busy -= 1;
                self.figures.busy_bytes -= area.size.get();
                self.figures.held_bytes -= self.held(area);
                self.uncount_hope(area);
            }
            State::Retained => {
                self.figures.retained -= 1;
                self.figures.retained_bytes -= area.mapped.get();
                self.retained.remove(area);
                let (older, newer) = (area.older.take(), area.newer.take());
                match older {
                    Some(node) => node.newer.set(newer),
                    None => self.oldest = newer,
                }
                match newer {
                    Some(node) => node.older.set(older),
                    None => self.newest = older,
                }
            }
            State::Free | State::Transit => {}
        }
        area.state.set(State::Transit);
    }

    /// Keeps `area`, in transit, mapped for later; by its stamp it goes to its place in the order of age.
    pub fn retain(&mut self, area: Ref) {
        area.state.set(State::Retained);
        self.figures.retained += 1;
        self.figures.retained_bytes += area.mapped.get();
        self.retained.insert(area);
        let mut older = self.newest;
        while let Some(node) = older.filter(|node| node.stamp.get() > area.stamp.get()) {
            older = node.older.get();
        }
        let newer = match older {
            Some(node) => node.newer.replace(Some(area)),
            None => self.oldest.replace(area),
        };
        area.older.set(older);
        area.newer.set(newer);
        match newer {
            Some(node) => node.older.set(Some(area)),
            None => self.newest = Some(area),
        }
    }

    /// The retained range that was freed first.
    pub fn oldest(&self) -> Option<Ref> {
        self.oldest
    }

    /// The smallest retained range that holds `len` bytes at `align`, looking at no more than a few.
    pub fn best_fit(&self, len: usize, align: usize) -> Option<Ref> {
        let mut area = self.retained.first_fit(len)?;
        for _ in 0..8 {
            if area.start.get() & (align - 1) == 0 {
                return Some(area);
            }
            area = self.retained.next(area)?;
        }
        None
    }

    /// Counts pages charged (or no longer) to `area`.
    pub fn charge(&mut self, area: Ref, pages: isize) {
        area.charged.set(area.charged.get().wrapping_add_signed(pages));
        self.figures.charged = self.figures.charged.wrapping_add_signed(pages);
    }

    /// An area is mapped up to its guard, or into its last slot.
    fn check_mapped(&self, node: Ref) -> Result<(), &'static str> {
        let most = node.len.get() - self.guard;
        let mapped = node.mapped.get();
        let good = mapped <= most && mapped + self.slot > most && (self.guard == 0 || mapped == most);
        if good { Ok(()) } else { Err("vmalloc: an area is not mapped as long as it is") }
    }

    /// Checks the invariants; calls `each` for every node by address, holes included.
    pub fn verify(&self, mut each: impl FnMut(Ref) -> Result<(), &'static str>) -> Result<(), &'static str> {
        self.holes.verify()?;
        self.areas.verify()?;
        self.retained.verify()?;
        let mut at = self.start;
        let mut sums = Figures::default();
        let mut after_hole = false;
        let (mut hole, mut area) = (self.holes.first(), self.areas.first());
        while at < self.end {
            let (node, is_hole) = match (hole, area) {
                (Some(h), _) if h.start.get() == at => (h, true),
                (_, Some(a)) if a.start.get() == at => (a, false),
                _ => return Err("vmalloc: holes and areas do not cover the window"),
            };
            if node.len.get() == 0 || node.len.get() % self.slot != 0 {
                return Err("vmalloc: an area is not made of slots");
            }
            match (node.state.get(), is_hole) {
                (State::Free, true) if after_hole => return Err("vmalloc: two holes touch"),
                (State::Free, true) => {}
                (State::Busy, false) => {
                    sums.busy += 1;
                    sums.busy_bytes += node.size.get();
                    sums.held_bytes += self.held(node);
                    if node.usage.get() == Usage::Hoped {
                        sums.hoped_bytes += node.size.get();
                    }
                    if node.size.get() == 0 || node.size.get() > node.mapped.get() {
                        return Err("vmalloc: an area is smaller than its size");
                    }
                    self.check_mapped(node)?;
                }
                (State::Retained, false) => {
                    sums.retained += 1;
                    sums.retained_bytes += node.mapped.get();
                    self.check_mapped(node)?;
                }
                (State::Transit, false) => {}
                _ => return Err("vmalloc: a node's state is not that of its tree"),
            }
            sums.charged += node.charged.get();
            each(node)?;
            after_hole = is_hole;
            at = node.end();
            if is_hole {
                hole = self.holes.next(node);
            } else {
                area = self.areas.next(node);
            }
        }
        if hole.is_some() || area.is_some() || at != self.end {
            return Err("vmalloc: a node lies outside the window");
        }
        let f = &self.figures;
        if (sums.busy, sums.busy_bytes, sums.hoped_bytes) != (f.busy, f.busy_bytes, f.hoped_bytes)
            || sums.held_bytes != f.held_bytes
            || (sums.retained, sums.retained_bytes) != (f.retained, f.retained_bytes)
            || self.retained.len() != f.retained
        {
            return Err("vmalloc: the figures are not the sums over the areas");
        }
        if sums.charged != f.charged {
            return Err("vmalloc: the charge is not the sum over the areas");
        }
        let (mut listed, mut node, mut last) = (0, self.oldest, None::<Ref>);
        while let Some(here) = node {
            if here.state.get() != State::Retained
                || last.is_some_and(|l| l.stamp.get() > here.stamp.get())
                || here.older.get().map(core::ptr::from_ref) != last.map(core::ptr::from_ref)
                || listed > f.retained
            {
                return Err("vmalloc: the list by age is broken");
            }
            listed += 1;
            last = node;
            node = here.newer.get();
        }
        if listed != f.retained || self.newest.map(core::ptr::from_ref) != last.map(core::ptr::from_ref) {
            return Err("vmalloc: the list by age is broken");
        }
        if self.pool.len() + self.holes.len() + self.areas.len() > self.pool.total() {
            return Err("vmalloc: more nodes than were made");
        }
        Ok(())
    }
}
