//! Retained ranges go back to the system: what nobody is likely to want, what is too much, or all of it where memory is
//! short.

use core::sync::atomic::Ordering::Relaxed;

use super::Vmalloc;
use super::node::Ref;
use super::source::FrameSource;
use super::space::{Figures, Space};
use crate::machine::Machine;
use crate::sync::Guard;
use crate::types::{PAGE_SHIFT, PAGE_SIZE};

/// Freed ranges kept at most.
const RETAINED_RANGES: usize = 512;
/// The part of what is in use that is kept besides what may be wanted again.
const RETAINED_PART: usize = 32;
/// Bytes given back between two looks at the clock.
const PIECE: usize = 64 << 20;
/// Ranges purged between two takings of the lock.
const BATCH: usize = 16;

impl<M: Machine> Vmalloc<M> {
    /// Gives ranges back, oldest first, that are more than may be kept.
    pub(super) fn purge_excess<P: FrameSource<M>>(&self, m: &M, pages: &P, space: Guard<Space, M>, may_block: bool) {
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

    /// Bytes of freed ranges that may be kept: as many as may be wanted again, within limits, and a few. Owned frames
    /// are scarcer.
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

    /// Gives ranges back, the oldest first, that are more than may be wanted again, until the clock says `until`.
    /// Returns pages.
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
}
