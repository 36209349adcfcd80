//! Changing the size of an area without copying.

use core::ptr::NonNull;

use super::node::Ref;
use super::slots::Since;
use super::space::{Space, round_up};
use super::usage::Usage;
use super::{FrameSource, TAIL_UNIT, Vmalloc, backing};
use crate::gfp::Gfp;
use crate::machine::{Machine, non_null};
use crate::paging::x86_64::{Slot, SlotState};
use crate::sync::Guard;
use crate::types::{PAGE_SHIFT, PAGE_SIZE, Pfn};

/// Most bytes that an area is mapped ahead of its size when it grows.
const AHEAD: usize = 64 << 20;
/// Milliseconds between two times that an area which shrinks gives memory back.
const TAIL_MS: u64 = 500;
/// Most retained ranges and holes that an area grows over at once.
const PARTS: usize = 8;
/// Retained ranges looked at for one that can be lengthened.
const LOOKS: usize = 16;

impl<M: Machine> Vmalloc<M> {
    /// Makes the area at `address` `new_size` bytes long (rounded up to pages), where it is or elsewhere; its contents
    /// up to the smaller size stay. With [`Gfp::ZERO`] what is added reads zero. `None`: not possible, and the area is
    /// as it was.
    ///
    /// # Safety
    /// If an area begins there it is the caller's. Nobody uses it by its old addresses if others are returned, or, if
    /// it became shorter, what was cut off.
    #[allow(unsafe_code)]
    pub unsafe fn realloc<P: FrameSource<M>>(
        &self,
        m: &M,
        pages: &P,
        address: *mut u8,
        new_size: usize,
        gfp: Gfp,
    ) -> Option<NonNull<u8>> {
        let size = round_up(new_size.max(1), PAGE_SIZE)?;
        let mapped = round_up(size, Self::SLOT)?;
        let len = mapped.checked_add(Self::GUARD).filter(|len| *len <= m.window().len())?;
        let may_act = gfp.may_block() && (M::OWNS_FRAMES || gfp.may_io());
        let mut space = self.space.acquire(m, gfp.may_block())?;
        let area = Self::find(m, &mut space, address.addr()).ok()?;
        let (start, old) = (area.start.get(), area.size.get());
        let has = area.mapped.get();

        if size > has {
            if !may_act {
                return None;
            }
            // From here on the area is in transit, and handed out again on every way out.
            Self::withdraw(m, &mut space, area);
            drop(space);
            let grown = self.grow(m, pages, area, old, size, len, gfp);
            if grown.is_none() {
                Self::publish(m, &mut self.space.lock(m), area, old);
            }
            return grown.and_then(non_null);
        }

        let lacking = if M::OWNS_FRAMES { 0 } else { (size >> PAGE_SHIFT).saturating_sub(area.charged.get()) };
        if lacking > 0 && !pages.charge(lacking as u64) {
            return None;
        }
        if size > old && gfp.has(Gfp::ZERO) {
            if !gfp.may_block() {
                if lacking > 0 {
                    pages.uncharge(lacking as u64);
                }
                return None;
            }
            Self::withdraw(m, &mut space, area);
            drop(space);
            self.blank(m, start + old, start + size, gfp.may_io());
            space = self.space.lock(m);
        } else {
            Self::withdraw(m, &mut space, area);
        }
        space.charge(area, lacking as isize);
        if size > old {
            self.mark(m, &mut space, start + old, start + size, Since::Then);
        }
        let mut cut = false;
        if size < old && has > mapped {
            if M::OWNS_FRAMES {
                if gfp.may_block()
                    && let Some(spare) = space.pool.take()
                {
                    drop(space);
                    self.drop_slots(m, pages, start + mapped, has - mapped);
                    space = self.space.lock(m);
                    area.mapped.set(mapped);
                    space.retract(area, has - mapped, spare);
                }
            } else if let Some(rest) = space.split(area, mapped, PAGE_SHIFT) {
                rest.stamp.set(m.now_ms());
                space.retain(rest);
                cut = true;
            }
        }
        if may_act && size < old && size < Self::SLOT / 2 {
            space = self.give_tail_back(m, space, area, size);
        }
        Self::publish(m, &mut space, area, size);
        if cut {
            self.purge_excess(m, pages, space, may_act);
        }
        non_null(start)
    }

    /// Gives the memory of `area`, in transit and one slot long, behind `size` bytes back to the system, as most of it
    /// is not used any more. Not if it did so a moment ago: who shrinks and grows in turn would have page faults each
    /// time (30 live blocks of 512 KiB to 2 MiB, all written to: 22 us, but 42 with a tenth of [`TAIL_MS`]).
    fn give_tail_back<'a>(
        &'a self,
        m: &'a M,
        space: Guard<'a, Space, M>,
        area: Ref,
        size: usize,
    ) -> Guard<'a, Space, M> {
        let (now, from) = (m.now_ms(), size.next_multiple_of(TAIL_UNIT));
        if M::OWNS_FRAMES || now.wrapping_sub(area.stamp.get()) < TAIL_MS || from >= area.mapped.get() {
            return space;
        }
        area.stamp.set(now);
        drop(space);
        m.clean(area.start.get() + from, area.mapped.get() - from);
        self.space.lock(m)
    }

    /// Grows `area`, in transit, beyond what is mapped. On success it (or the area that replaces it) is handed out.
    #[allow(clippy::too_many_arguments)]
    fn grow<P: FrameSource<M>>(
        &self,
        m: &M,
        pages: &P,
        area: Ref,
        old: usize,
        size: usize,
        len: usize,
        gfp: Gfp,
    ) -> Option<usize> {
        let want = if M::OWNS_FRAMES { 0 } else { size >> PAGE_SHIFT };
        let charge = want.saturating_sub(area.charged.get());
        if charge > 0 && !pages.charge(charge as u64) {
            self.purge(m, pages);
            if !pages.charge(charge as u64) {
                return None;
            }
        }
        let had = area.mapped.get();
        if !M::OWNS_FRAMES {
            let open = area.probe.get() != (0, 0);
            self.judge(m, area, old);
            if area.usage.get() == Usage::Hoped || (open && area.usage.get() == Usage::Unknown) {
                area.usage.set(Self::outlook(pages, &self.space.lock(m), size, gfp));
            }
        }
        let in_place = if M::OWNS_FRAMES {
            self.grow_frames(m, pages, area, len, gfp)
        } else {
            // The rest of the last slot first: all else works on whole slots.
            let ahead = (area.len.get() / 4).min(AHEAD) & !(Self::SLOT - 1);
            let grow = |ahead: usize| self.grow_behind(m, pages, area, size, len, ahead, gfp);
            self.complete(m, area) && (len <= area.len.get() || grow(ahead) || ahead > 0 && grow(0))
        };
        let (grown, copied) = if in_place {
            (area, 0)
        } else if let Some(moved) = if M::OWNS_FRAMES {
            self.move_frames(m, pages, area, size, gfp).map(|to| (to, 0))
        } else {
            let moved = self.move_memory(m, pages, area, old, size, gfp);
            moved.or_else(|| Some((self.relocate(m, pages, area, size, gfp)?, 0)))
        } {
            moved
        } else {
            if charge > 0 {
                pages.uncharge(charge as u64);
            }
            return None;
        };
        let start = grown.start.get();
        if gfp.has(Gfp::ZERO) {
            // New frames came zeroed; what was mapped behind the old size did not.
            self.blank(m, start + old, start + if M::OWNS_FRAMES { had } else { size }, gfp.may_io());
        }
        let mut space = self.space.lock(m);
        self.mark(m, &mut space, start, start + size, Since::Then);
        // Memory that was absorbed brought its own charge.
        space.charge(grown, charge as isize);
        let excess = grown.charged.get().saturating_sub(want);
        space.charge(grown, -(excess as isize));
        Self::publish(m, &mut space, grown, size);
        if in_place {
            space.figures.grown += 1;
        } else {
            space.figures.moved += 1;
            space.figures.copied += copied as u64;
        }
        drop(space);
        if excess > 0 {
            pages.uncharge(excess as u64);
        }
        Some(start)
    }

    /// Lengthens `area`, mapped to its end, by what lies behind it: retained ranges, and holes, which are mapped. If a
    /// hole is the last of it more of it is taken where there is room, so that growing by small steps is seldom a
    /// system call: `ahead` bytes. False: nothing changed, but that retained ranges may have gone.
    #[allow(clippy::too_many_arguments)]
    fn grow_behind<P: FrameSource<M>>(
        &self,
        m: &M,
        pages: &P,
        area: Ref,
        size: usize,
        len: usize,
        ahead: usize,
        gfp: Gfp,
    ) -> bool {
        let Some(mut space) = self.prepare(m, pages, gfp, 2) else { return false };
        let (had, end, charged) = (area.len.get(), area.end(), area.charged.get());
        let Some(parts) = space.parts_behind(area, len - had).filter(|parts| *parts <= PARTS) else { return false };
        let Some(spare) = space.pool.take() else { return false };
        // Holes, and the rest of last slots of what was absorbed.
        let mut fresh = [(0, 0); PARTS];
        for place in &mut fresh[..parts] {
            let (at, need) = (area.end(), len - area.len.get());
            let room = space.room_behind(area);
            if room > 0 {
                let by = if room < need { room } else { need.max(ahead).min(room) };
                space.extend(area, by);
                *place = (at, by);
            } else if let Some(behind) = space.areas.next(area) {
                space.take(behind);
                if behind.len.get() > need
                    && let Some(rest) = space.split(behind, need, PAGE_SHIFT)
                {
                    space.retain(rest);
                }
                *place = (at + behind.mapped.get(), behind.len.get() - behind.mapped.get());
                space.join(area, behind);
            }
        }
        drop(space);
        let by = area.len.get() - had;
        // The last slot as far as it is needed, where nothing is mapped ahead.
        let excess = if had + by > len { 0 } else { len - Self::mapped_for(size) };
        if let Some((_, part)) = fresh[..parts].last_mut() {
            *part -= excess.min(*part);
        }
        let mapped = |(at, part): &(usize, usize)| *part == 0 || m.map_fresh(*at, *part);
        let count = fresh[..parts].iter().take_while(|place| mapped(place)).count();
        let opened = count == parts;
        if opened && area.is_dense() {
            fresh.iter().filter(|(_, part)| *part > 0).for_each(|(at, part)| m.advise(*at, *part, true));
        }
        let done = opened && self.tables(m, pages, gfp, end, by);
        if !done {
            // What could not be mapped may be somebody else's; what was absorbed lies between.
            let mut from = end;
            for (nth, (at, part)) in fresh[..parts].iter().enumerate() {
                let to = if nth < count { at + part } else { *at };
                if from < to {
                    m.unmap(from, to - from);
                }
                from = at + part;
            }
            self.forget(m, end, by, |_| ());
        }
        let mut space = self.space.lock(m);
        if done {
            // What is mapped ahead reads zero; of what was absorbed the slots are known.
            for (at, part) in fresh.iter().filter(|(at, part)| *part > 0 && at & (Self::SLOT - 1) == 0) {
                space
                    .index
                    .update(m, *at, part.next_multiple_of(Self::SLOT), false, |_, _| Slot::zero(Self::LEVEL, Pfn(0)));
            }
            let (at, part) = fresh[parts - 1];
            area.mapped.set(at + part - area.start.get());
            space.pool.put(spare);
            return true;
        }
        let gone = area.charged.get() - charged;
        space.charge(area, -(gone as isize));
        area.mapped.set(had);
        space.retract(area, by, spare);
        drop(space);
        pages.uncharge(gone as u64);
        false
    }

    /// The longest retained range that has room enough behind it, lengthened by addresses only as far as `size` bytes
    /// need: in transit, and how long it was. `None`: nothing changed.
    pub(super) fn lengthen<P: FrameSource<M>>(
        &self,
        m: &M,
        pages: &P,
        size: usize,
        len: usize,
        align: usize,
        gfp: Gfp,
    ) -> Option<(Ref, usize)> {
        let mut space = self.prepare(m, pages, gfp, 1)?;
        let mut longest = space.retained.last();
        let mut chosen = None;
        for _ in 0..LOOKS {
            let Some(area) = longest else { break };
            let (start, had) = (area.start.get(), area.len.get());
            // A tail that is not mapped would be filled by small pages.
            let fits = had < len && start & (align - 1) == 0 && area.mapped.get() == had;
            if fits && space.room_behind(area) >= len - had && !self.survey(m, &mut space, start, had).shared {
                chosen = Some(area);
                break;
            }
            longest = space.retained.previous(area);
        }
        let area = chosen?;
        let (had, end) = (area.len.get(), area.end());
        let by = len - had;
        let spare = space.pool.take()?;
        space.take(area);
        space.extend(area, by);
        let mapped = if space.figures.retained_bytes >= by { by } else { Self::mapped_for(size) - had };
        drop(space);
        let opened = m.map_fresh(end, mapped);
        let done = opened && self.tables(m, pages, gfp, end, by);
        if opened && !done {
            m.unmap(end, mapped);
        }
        let mut space = self.space.lock(m);
        if !done {
            space.retract(area, by, spare);
            space.retain(area);
            return None;
        }
        space.pool.put(spare);
        area.mapped.set(had + mapped);
        // Of what is behind nothing is known.
        area.usage.set(Usage::Unknown);
        Some((area, had))
    }

    /// Adds frames behind `area`. False: nothing changed.
    fn grow_frames<P: FrameSource<M>>(&self, m: &M, pages: &P, area: Ref, len: usize, gfp: Gfp) -> bool {
        let Some(mut space) = self.prepare(m, pages, gfp, 1) else { return false };
        let has = area.mapped.get();
        let by = len - area.len.get();
        if space.room_behind(area) < by {
            return false;
        }
        let Some(spare) = space.pool.take() else { return false };
        if !space.extend(area, by) {
            space.pool.put(spare);
            return false;
        }
        drop(space);
        let start = area.start.get();
        let done = self.tables(m, pages, gfp, start + has, by) && self.fill(m, pages, start, start + has, by, gfp);
        let mut space = self.space.lock(m);
        if done {
            area.mapped.set(has + by);
            space.pool.put(spare);
        } else {
            space.retract(area, by, spare);
        }
        done
    }

    /// Moves the memory of `area` to a new area for `size` bytes, in transit, and gives `area` up. What cannot be moved
    /// (pages shared after a fork, no way of moving at all) is copied: by then the memory is there, and copying cannot
    /// fail. Returns the new area and the bytes copied. `None`: nothing changed.
    fn move_memory<P: FrameSource<M>>(
        &self,
        m: &M,
        pages: &P,
        area: Ref,
        old: usize,
        size: usize,
        gfp: Gfp,
    ) -> Option<(Ref, usize)> {
        let len = size.next_multiple_of(Self::SLOT);
        // Moving takes whole slots; a source that could not be completed stays.
        let part = old.next_multiple_of(Self::SLOT);
        if area.mapped.get() < part {
            return None;
        }
        let to = self.open(m, pages, size, len, Self::SLOT, gfp)?;
        let (from, target) = (area.start.get(), to.start.get());
        let mut copied = 0;
        if let Err(moved) = m.move_mapping(from, target, part) {
            copied = old.saturating_sub(moved);
            backing::copy(from + moved, target + moved, copied);
        }
        if area.is_dense() {
            m.advise(target + part, to.mapped.get() - part, true);
        }
        to.usage.set(area.usage.get());
        to.probe.set(area.probe.get());
        to.caller.set(area.caller.get());
        let mut space = self.space.lock(m);
        let shared = self.survey(m, &mut space, from, part).shared && copied == 0;
        space.index.update(m, target, len, false, |_, _| Slot::zero(Self::LEVEL, Pfn(0)));
        self.mark(m, &mut space, target, target + part, if shared { Since::Before } else { Since::Then });
        let charged = area.charged.get() as isize;
        space.charge(area, -charged);
        space.charge(to, charged);
        drop(space);
        self.vacate(m, pages, area, area.len.get());
        Some((to, copied))
    }

    /// The same where the system counts what is mapped and does not let both be: with its mapping. An area that grew
    /// and grew could be half of the limit at most otherwise.
    fn relocate<P: FrameSource<M>>(&self, m: &M, pages: &P, area: Ref, size: usize, gfp: Gfp) -> Option<Ref> {
        let (from, had, len) = (area.start.get(), area.mapped.get(), size.next_multiple_of(Self::SLOT));
        if had & (Self::SLOT - 1) != 0 || had >= len {
            return None;
        }
        let to = {
            let mut space = self.prepare(m, pages, gfp, 2)?;
            let start = space.find(len, Self::SLOT, 0)?;
            space.carve(start, len)?
        };
        let target = to.start.get();
        let mapped = size.next_multiple_of(TAIL_UNIT.min(Self::SLOT));
        to.mapped.set(mapped);
        let opened = m.map_fresh(target + had, mapped - had);
        let ready = opened && self.tables(m, pages, gfp, target, len);
        let moved = if ready { m.move_addresses(from, target, had) } else { Err(true) };
        let whole = match moved {
            Ok(whole) => whole,
            Err(whole) => {
                if opened {
                    m.unmap(target + had, mapped - had);
                }
                if whole {
                    self.close(m, to);
                }
                return None;
            }
        };
        if area.is_dense() {
            m.advise(target + had, mapped - had, true);
        }
        to.usage.set(area.usage.get());
        to.probe.set(area.probe.get());
        to.caller.set(area.caller.get());
        let mut space = self.space.lock(m);
        let since = if self.survey(m, &mut space, from, had).shared { Since::Before } else { Since::Then };
        space.index.update(m, target, len, false, |_, _| Slot::zero(Self::LEVEL, Pfn(0)));
        self.mark(m, &mut space, target, target + had, since);
        let charged = area.charged.get() as isize;
        space.charge(area, -charged);
        space.charge(to, charged);
        drop(space);
        // Where others sit it stays in transit.
        if whole {
            self.vacate_unmapped(m, pages, area, had);
        }
        Some(to)
    }

    /// The same where frames are owned: they are mapped at the new addresses as well, which can be undone at any step,
    /// before they are unmapped at the old ones.
    fn move_frames<P: FrameSource<M>>(&self, m: &M, pages: &P, area: Ref, size: usize, gfp: Gfp) -> Option<Ref> {
        let mapped = size.next_multiple_of(Self::SLOT);
        let to = self.open(m, pages, size, mapped + Self::GUARD, Self::SLOT, gfp)?;
        to.caller.set(area.caller.get());
        let (from, target) = (area.start.get(), to.start.get());
        let has = area.mapped.get();
        let added = mapped - has;
        let mut done = 0;
        if self.fill(m, pages, target, target + has, added, gfp) {
            while done < has {
                let mut slot = Slot::EMPTY;
                self.space.lock(m).index.look(m, from + done, Self::SLOT, |_, found| slot = found);
                if slot.state() != SlotState::Dirty || !m.map_frame(target + done, slot.frame()) {
                    break;
                }
                self.space.lock(m).index.update(m, target + done, Self::SLOT, false, |_, _| slot);
                done += Self::SLOT;
            }
            if done == has {
                m.unmap(from, has);
                self.forget(m, from, has, |frame| m.page(frame).set_word(target as u64));
                self.vacate(m, pages, area, 0);
                return Some(to);
            }
            if done > 0 {
                m.unmap(target, done);
                self.forget(m, target, done, |_| ());
            }
            self.drop_slots(m, pages, target + has, added);
        }
        self.close(m, to);
        None
    }
}
