//! What stands behind the slots of an area: owned frames, or memory the host lends, moved here or fresh.
#![allow(unsafe_code)]

use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use core::sync::atomic::Ordering::Relaxed;

use super::node::Ref;
use super::usage::Usage;
use super::{FrameSource, Vmalloc, usage};
use crate::gfp::Gfp;
use crate::machine::Machine;
use crate::page::{Kind, Page, flag};
use crate::paging::x86_64::{Slot, SlotState};
use crate::types::{Order, PAGE_SHIFT, Pfn};

/// Slots handled between two takings of the lock.
const BATCH: usize = 32;
/// Pageblocks of the buddy system that one request may empty: beyond that, most requests are sparse.
const FROM_BUDDY: usize = 64;
/// What has fewer than such a part of its pages is not worth to be moved.
const POOR_PART: usize = 8;
/// Refused moves in a row after which only one request in [`RETRY_EVERY`] tries.
const REFUSALS: u32 = 4;
const RETRY_EVERY: u32 = 256;

/// Whether the frame says it is under the area at `start`.
pub fn is_ours(page: &Page, start: usize) -> bool {
    page.kind() == Kind::Vmalloc && page.word() == start as u64
}

/// Writes zeroes.
fn zero(start: usize, len: usize) {
    // SAFETY: callers pass a part of a mapped area in transit, which nobody else uses.
    unsafe { with_exposed_provenance_mut::<u8>(start).write_bytes(0, len) }
}

/// Copies `len` bytes between two mapped areas in transit.
pub fn copy(from: usize, to: usize, len: usize) {
    // SAFETY: callers pass parts of two different mapped areas in transit, which nobody else uses.
    unsafe {
        with_exposed_provenance_mut::<u8>(to).copy_from_nonoverlapping(with_exposed_provenance::<u8>(from), len);
    }
}

impl<M: Machine> Vmalloc<M> {
    /// Backs `[at, at + len)` of the area that begins at `area` by frames of the buddy system (only where frames are
    /// owned; tables exist). False: nothing is backed that was not before.
    pub(super) fn fill<P: FrameSource<M>>(
        &self,
        m: &M,
        pages: &P,
        area: usize,
        at: usize,
        len: usize,
        gfp: Gfp,
    ) -> bool {
        // vmalloc is where memory without a permanent address is good enough; it is zeroed through the area.
        let mut want = gfp.without(Gfp::ZERO);
        if want.0 & (Gfp::DMA.0 | Gfp::DMA32.0) == 0 {
            want = want.with(Gfp::HIGHMEM);
        }
        let mut done = 0;
        while done < len {
            let mut frames = [Pfn::NONE; BATCH];
            let mut count = 0;
            while count < BATCH && done + count * Self::SLOT < len {
                let Some(frame) = pages.alloc_pages(m, want, Self::ORDER, None) else { break };
                frames[count] = frame;
                count += 1;
            }
            let first = at + done;
            let mapped = m.map_frames(first, &frames[..count]);
            for frame in &frames[mapped..count] {
                // SAFETY: allocated above, and mapped nowhere: the machine stopped before it.
                unsafe { pages.free_pages(m, *frame, Self::ORDER, true) };
            }
            count = mapped;
            if count > 0 {
                m.flush_cache(first..first + count * Self::SLOT);
            }
            for (nth, frame) in frames[..count].iter().enumerate() {
                let page = m.page(*frame);
                if gfp.has(Gfp::ZERO) && !page.has(flag::ZERO) {
                    zero(first + nth * Self::SLOT, Self::SLOT);
                }
                page.set_kind(Kind::Vmalloc, Self::ORDER);
                page.set_word(area as u64);
            }
            if count > 0 {
                let mut space = self.space.lock(m);
                space.index.update(m, first, count * Self::SLOT, false, |slot, _| {
                    Slot::zero(Self::LEVEL, frames[(slot - first) / Self::SLOT]).dirtied(0, false)
                });
            }
            done += count * Self::SLOT;
            if count < BATCH && done < len {
                self.drop_slots(m, pages, at, done);
                return false;
            }
        }
        true
    }

    /// Unmaps `[at, at + len)`, marks its slots empty and gives owned frames back.
    pub(super) fn drop_slots<P: FrameSource<M>>(&self, m: &M, pages: &P, at: usize, len: usize) {
        if len == 0 {
            return;
        }
        m.flush_cache(at..at + len);
        m.unmap(at, len);
        self.drop_unmapped(m, pages, at, len);
    }

    /// [`Vmalloc::drop_slots`] where the slots are unmapped already.
    fn drop_unmapped<P: FrameSource<M>>(&self, m: &M, pages: &P, at: usize, len: usize) {
        self.forget(m, at, len, |frame| {
            let page = m.page(frame);
            page.set_kind(Kind::Allocated, Self::ORDER);
            page.set_refs(1);
            // SAFETY: the slot that showed the frame is unmapped on every CPU, and no table names it any more; its area
            // is in transit, so nobody else takes it out as well.
            unsafe { pages.free_pages(m, frame, Self::ORDER, true) };
        });
    }

    /// Marks the slots of `[at, at + len)` empty and hands the owned frames behind them to `each`, outside the lock.
    pub(super) fn forget(&self, m: &M, at: usize, len: usize, mut each: impl FnMut(Pfn)) {
        if !M::OWNS_FRAMES {
            self.space.lock(m).index.update(m, at, len, false, |_, _| Slot::EMPTY);
            return;
        }
        let mut done = 0;
        while done < len {
            let mut frames = [Pfn::NONE; BATCH];
            let mut count = 0;
            let part = (len - done).min(BATCH * Self::SLOT);
            self.space.lock(m).index.update(m, at + done, part, false, |_, slot| {
                if slot.state() == SlotState::Dirty {
                    frames[count] = slot.frame();
                    count += 1;
                }
                Slot::EMPTY
            });
            frames[..count].iter().for_each(|frame| each(*frame));
            done += part;
        }
    }

    /// Takes `area`, in transit with `mapped` bytes mapped, out of the window: its memory goes back, its addresses
    /// become free, its first slot remembers that an area was freed here. Returns the pages it may have held.
    pub(super) fn vacate<P: FrameSource<M>>(&self, m: &M, pages: &P, area: Ref, mapped: usize) -> u64 {
        // What was never mapped may be somebody else's.
        let open = mapped.min(area.mapped.get());
        if open > 0 {
            m.flush_cache(area.start.get()..area.start.get() + open);
            m.unmap(area.start.get(), open);
        }
        self.vacate_unmapped(m, pages, area, mapped)
    }

    /// [`Vmalloc::vacate`] where the slots are unmapped already.
    pub(super) fn vacate_unmapped<P: FrameSource<M>>(&self, m: &M, pages: &P, area: Ref, mapped: usize) -> u64 {
        let start = area.start.get();
        self.drop_unmapped(m, pages, start, mapped);
        let charged = area.charged.get();
        let mut space = self.space.lock(m);
        space.index.update(m, start, Self::SLOT, false, |_, _| Slot::FREED);
        space.charge(area, -(charged as isize));
        space.release(area);
        drop(space);
        if M::OWNS_FRAMES {
            return (mapped >> PAGE_SHIFT) as u64;
        }
        if charged > 0 {
            pages.uncharge(charged as u64);
        }
        charged as u64
    }

    /// Makes `[from, to)`, in an area in transit, read zero; what lies behind `to` in the area is of no value. Whole
    /// slots are cleaned by the system, and never written to: that a caller of `calloc` will touch all of it is not
    /// known (where it is likely see `wash`). Measured, `calloc` and free of 4–400 MiB with one byte touched: 90 µs
    /// with writing to up to 16 MiB, 11 µs without; jemalloc 11, glibc 50–60.
    ///
    /// A request that may not enter the system has them written to.
    pub(super) fn blank(&self, m: &M, from: usize, to: usize, may_enter: bool) {
        let mut at = from;
        while at < to {
            // The next run of slots that are all dirty, or all zero.
            let first = at & !(Self::SLOT - 1);
            let (mut dirty, mut end) = (false, first);
            // A slot that is blanked from its middle on is a run of its own: all others may be cleaned.
            let slots = if at > first { 1 } else { (to - first).div_ceil(Self::SLOT).min(512) };
            self.space.lock(m).index.look(m, first, slots * Self::SLOT, |slot, entry| {
                let is_dirty = entry.state() == SlotState::Dirty;
                if slot == first {
                    dirty = is_dirty;
                }
                if slot == end && is_dirty == dirty {
                    end = slot + Self::SLOT;
                }
            });
            let stop = end.max(first + Self::SLOT).min(to);
            if dirty {
                // What the last slot holds beyond `to` is nobody's either.
                let cleaned = !M::OWNS_FRAMES && may_enter && at == first && m.clean(first, end - first);
                if cleaned {
                    self.space
                        .lock(m)
                        .index
                        .update(m, first, end - first, false, |_, _| Slot::zero(Self::LEVEL, Pfn(0)));
                } else {
                    zero(at, stop - at);
                }
            }
            at = stop;
        }
    }

    /// Makes the first `len` of the `size` bytes of `area`, in transit, read zero, which are likely to be written to
    /// throughout. Slots that are backed are written to: 15 µs for 1 MiB, of which fresh huge pages take 45 (9 and 15
    /// for what the caches hold), and by one write for as many as possible, as the processor passes its caches by for
    /// very long ones only. What is hardly backed stays so.
    pub(super) fn wash(&self, m: &M, area: Ref, size: usize, len: usize) {
        let (start, mapped) = (area.start.get(), area.mapped.get());
        let slots = len.div_ceil(Self::SLOT);
        let mut space = self.space.lock(m);
        let (left, dense) = (space.history.leaves(size, slots), space.history.expects(size) == Usage::Dense);
        drop(space);
        let is_kept = |slot: usize| {
            let within = (len - slot * Self::SLOT).min(Self::SLOT) >> PAGE_SHIFT;
            left != Some(slot) && 2 * m.backed_pages(start + slot * Self::SLOT).0 >= within
        };
        let mut first = 0;
        while first < slots {
            let kept = is_kept(first);
            let mut end = first + 1;
            while end < slots && is_kept(end) == kept {
                end += 1;
            }
            let (from, to) = (start + first * Self::SLOT, start + (end * Self::SLOT).min(len));
            // Whole slots, so that no huge page is split.
            if kept || !m.clean(from, (end * Self::SLOT).min(mapped) - first * Self::SLOT) {
                zero(from, to - from);
            } else if dense {
                // What was moved here brought no advice along. All of it, so that mappings are not split.
                m.advise(start, (slots * Self::SLOT).min(mapped), true);
            }
            first = end;
        }
        if let Some(slot) = left {
            let at = slot * Self::SLOT;
            area.zeroed.set((at, size.next_multiple_of(Self::SLOT).min(at + Self::SLOT)));
        }
    }

    /// Moves old memory into the fresh range `[start, start + len)` of whole slots, from its beginning: retained
    /// ranges, oldest first (they would go back to the system next), then free pageblocks of the buddy system. Returns
    /// the slots filled.
    pub(super) fn donate<P: FrameSource<M>>(&self, m: &M, pages: &P, start: usize, len: usize) -> usize {
        let refusals = self.refusals.load(Relaxed);
        if refusals >= REFUSALS {
            // Not for good: it may have been a fork, or a limit.
            self.refusals.store(refusals + 1, Relaxed);
            if !refusals.is_multiple_of(RETRY_EVERY) {
                return 0;
            }
        }
        let mut at = start;
        let end = start + len;
        while at < end {
            let Some(moved) = self.donate_retained(m, pages, at, end - at) else { break };
            if moved == 0 {
                return (at - start) / Self::SLOT;
            }
            at += moved;
        }
        let mut blocks = [Pfn::NONE; FROM_BUDDY];
        let mut count = 0;
        while count < FROM_BUDDY && at + count * Self::SLOT < end {
            let Some(block) = pages.take_backed(m) else { break };
            blocks[count] = block;
            count += 1;
        }
        if count > 0 {
            let mapped = m.map_frames(at, &blocks[..count]);
            self.refusals.store(if mapped == 0 { refusals.saturating_add(1) } else { 0 }, Relaxed);
            for block in &blocks[..mapped] {
                // SAFETY: taken off the free lists above; what it held is in the slot now, and it reads zero.
                unsafe { pages.free_clean(m, *block, Order::PAGEBLOCK, true) };
            }
            for block in &blocks[mapped..count] {
                // SAFETY: taken off the free lists above, and the machine left it as it was.
                unsafe { pages.free_pages(m, *block, Order::PAGEBLOCK, true) };
            }
            at += mapped * Self::SLOT;
        }
        (at - start) / Self::SLOT
    }

    /// Whether hardly anything of the slots in `[start, start + len)` is backed, by a look at some of them.
    fn is_poor(m: &M, start: usize, len: usize) -> bool {
        let slots = len / Self::SLOT;
        let enough = (Self::SLOT >> PAGE_SHIFT) * usage::spread(slots).count() / POOR_PART;
        let mut pages = 0;
        usage::spread(slots).all(|slot| {
            pages += m.backed_pages(start + slot * Self::SLOT).0;
            pages < enough
        })
    }

    /// Moves up to `len` bytes of the oldest suitable retained range to `at`. `None` where there is no such range; else
    /// the bytes moved, 0 where the machine refused.
    fn donate_retained<P: FrameSource<M>>(&self, m: &M, pages: &P, at: usize, len: usize) -> Option<usize> {
        let source = {
            let mut space = self.space.lock(m);
            let mut candidate = space.oldest();
            // A few tries only; ranges from before a fork may be shared, and are refused.
            let mut chosen = None;
            for _ in 0..8 {
                let Some(area) = candidate else { break };
                let survey = self.survey(m, &mut space, area.start.get(), area.len.get());
                if survey.dirty > 0 && !survey.shared && area.mapped.get() >= Self::SLOT {
                    chosen = Some(area);
                    break;
                }
                candidate = area.newer.get();
            }
            let source = chosen?;
            space.take(source);
            // What is not needed stays. Without a node for the rest all of it is given up.
            if source.len.get() > len
                && let Some(rest) = space.split(source, len, PAGE_SHIFT)
            {
                space.retain(rest);
            }
            source
        };
        let from = source.start.get();
        // Whole slots only: a part of one would split a huge page.
        let part = (source.mapped.get() & !(Self::SLOT - 1)).min(len);
        if Self::is_poor(m, from, part) {
            // Moved page by page it would take longer than fresh pages.
            let cleaned = m.clean(from, part);
            let mut space = self.space.lock(m);
            if cleaned {
                space.index.update(m, from, part, false, |_, _| Slot::zero(Self::LEVEL, Pfn(0)));
                let gone = source.charged.get().min(part >> PAGE_SHIFT);
                space.charge(source, -(gone as isize));
                pages.uncharge(gone as u64);
            }
            space.retain(source);
            return None;
        }
        let moved = match m.move_mapping(from, at, part) {
            Ok(()) => part,
            Err(prefix) => prefix & !(Self::SLOT - 1),
        };
        if moved > 0 {
            self.refusals.store(0, Relaxed);
        } else {
            self.refusals.fetch_add(1, Relaxed);
        }
        if moved == 0 {
            let mut space = self.space.lock(m);
            space.retain(source);
        } else {
            self.vacate(m, pages, source, source.len.get());
        }
        Some(moved)
    }
}
