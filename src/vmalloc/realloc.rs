//! Changing the size of an area without copying.

use core::ptr::NonNull;

use super::node::{Ref, State};
use super::space::round_up;
use super::usage::Usage;
use super::{FrameSource, Since, Vmalloc, backing};
use crate::gfp::Gfp;
use crate::machine::{Machine, non_null};
use crate::paging::x86_64::{Slot, SlotState};
use crate::types::{PAGE_SHIFT, PAGE_SIZE, Pfn};

/// Most bytes that an area is mapped ahead of its size when it grows.
const AHEAD: usize = 64 << 20;

impl<M: Machine> Vmalloc<M> {
    /// Makes the area at `address` `new_size` bytes long (rounded up to pages), where it is or elsewhere; its contents up
    /// to the smaller size stay. With [`Gfp::ZERO`] what is added reads zero. `None`: not possible, and the area is as it was.
    pub fn realloc<P: FrameSource<M>>(
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
            self.blank(m, start + old, start + size);
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
        Self::publish(m, &mut space, area, size);
        if cut {
            self.purge_excess(m, pages, space, may_act);
        }
        non_null(start)
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
            // The rest of the last slot first: all else works on whole slots. What is absorbed may lack the rest of its own.
            self.complete(m, area)
                && (len <= area.len.get() || self.absorb(m, area, len) || self.grow_fresh(m, pages, area, size, gfp))
                && (size <= area.mapped.get() || self.complete(m, area))
        };
        let (grown, copied) = if in_place {
            (area, 0)
        } else if let Some(moved) = if M::OWNS_FRAMES {
            self.move_frames(m, pages, area, size, gfp).map(|to| (to, 0))
        } else {
            self.move_memory(m, pages, area, old, size, gfp)
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
            self.blank(m, start + old, start + if M::OWNS_FRAMES { had } else { size });
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

    /// Takes what lacks from a retained range directly behind `area`. False: nothing changed.
    fn absorb(&self, m: &M, area: Ref, len: usize) -> bool {
        let mut space = self.space.lock(m);
        let need = len - area.len.get();
        let Some(behind) = space.areas.next(area).filter(|next| {
            next.start.get() == area.end() && next.state.get() == State::Retained && next.len.get() >= need
        }) else {
            return false;
        };
        space.take(behind);
        if behind.len.get() > need
            && let Some(rest) = space.split(behind, need, PAGE_SHIFT)
        {
            space.retain(rest);
        }
        space.join(area, behind);
        true
    }

    /// Maps more fresh memory behind `area`, ahead of the need where there is room, so that growing by small steps is
    /// seldom a system call. False: nothing changed.
    fn grow_fresh<P: FrameSource<M>>(&self, m: &M, pages: &P, area: Ref, size: usize, gfp: Gfp) -> bool {
        let had = area.len.get();
        let need = size.next_multiple_of(Self::SLOT) - had;
        let Some(mut space) = self.prepare(m, pages, gfp, 1) else { return false };
        let room = space.room_behind(area);
        if room < need {
            return false;
        }
        let ahead = (area.len.get() / 4).min(AHEAD) & !(Self::SLOT - 1);
        let by = need.max(ahead).min(room);
        let end = area.end();
        let Some(spare) = space.pool.take() else { return false };
        if !space.extend(area, by) {
            space.pool.put(spare);
            return false;
        }
        drop(space);
        let mapped = if by > need { had + by } else { Self::mapped_for(size) };
        let opened = m.map_fresh(end, mapped - had);
        if opened && area.is_dense() {
            m.advise(end, mapped - had, true);
        }
        let done = opened && self.tables(m, pages, gfp, end, by);
        if opened && !done {
            m.unmap(end, by);
        }
        let mut space = self.space.lock(m);
        if done {
            area.mapped.set(mapped);
            space.index.update(m, end, by, false, |_, _| Slot::zero(Self::LEVEL, Pfn(0)));
            space.pool.put(spare);
        } else {
            space.retract(area, by, spare);
        }
        done
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

    /// Moves the memory of `area` to a new area for `size` bytes, in transit, and gives `area` up. What cannot be moved (pages
    /// shared after a fork, no way of moving at all) is copied: by then the memory is there, and copying cannot
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

    /// The same where frames are owned: they are mapped at the new addresses as well, which can be undone at any step, before
    /// they are unmapped at the old ones.
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
