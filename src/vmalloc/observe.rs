//! Which areas get huge pages, and where zeroes are written to old memory: areas are looked at when they are freed, and
//! while they live.

use super::node::{Ref, State};
use super::source::FrameSource;
use super::space::{Space, WATCHED};
use super::usage::{Count, Usage};
use super::{COMPACT, Vmalloc, usage};
use crate::gfp::Gfp;
use crate::machine::Machine;
use crate::types::{PAGE_SHIFT, PAGE_SIZE};

/// Most bytes in areas that have huge pages and of whose kind nothing is known. Who reserves more without meaning to
/// fill it often does.
const HOPED: usize = 1 << 30;
/// The same where zeroes are asked for, much of which may be left as they are.
const HOPED_ZEROED: usize = 32 << 20;

impl<M: Machine> Vmalloc<M> {
    /// Settles how `area`, in transit and fresh from offset `from` on (or `cleaned`), is to be backed there, and which
    /// part of it is to tell whether that was right.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn foresee<P: FrameSource<M>>(
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
        // The first slots tell of areas like it that fill from the front; where there was none yet, one in the middle
        // tells more.
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

    /// How an area of `size` bytes is likely to be used; `Unknown` also where it is to have small pages for other
    /// reasons.
    pub(super) fn outlook<P: FrameSource<M>>(pages: &P, space: &Space, size: usize, gfp: Gfp) -> Usage {
        // Where more is asked for than there is, not all of it will be touched. And each such area is a mapping of its
        // own.
        if pages.pressed() || space.areas.len() > COMPACT {
            return Usage::Unknown;
        }
        let hoped = space.figures.hoped_bytes.saturating_add(size);
        match space.history.expects(size) {
            Usage::Dense => Usage::Dense,
            // Who wants it zeroed may be about to leave much of it that way; who does not will write what is to be
            // read.
            Usage::Unknown if hoped <= if gfp.has(Gfp::ZERO) { HOPED_ZEROED } else { HOPED } => {
                let hopeless = gfp.has(Gfp::ZERO) && space.history.leaves_zero(size);
                if !hopeless && pages.affords((hoped >> PAGE_SHIFT) as u64) { Usage::Hoped } else { Usage::Unknown }
            }
            _ => Usage::Unknown,
        }
    }

    /// Looks at how `area`, of `size` bytes and in transit, was used, learns from it, and asks for huge pages, or for
    /// none, in all of it.
    pub(super) fn judge(&self, m: &M, area: Ref, size: usize) -> Usage {
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

    /// Takes note, where `area` of `size` bytes and in transit is freed and its probe said nothing, that it was hardly
    /// used.
    pub(super) fn judge_last(&self, m: &M, area: Ref, size: usize) {
        let (first, end) = area.probe.get();
        // There is none left where the area was cut in front of it.
        if self.judge(m, area, size) == Usage::Unknown && first < end {
            let (pages, _) = m.backed_pages(area.start.get() + first);
            if pages < Self::SLOT / PAGE_SIZE / 4 {
                self.space.lock(m).history.learn_unused(size);
            }
        }
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

    /// Takes note that `area`, in transit, reads zero from offset `from` on without having been written to, if that is
    /// to be looked at.
    pub(super) fn remember_zeroes(&self, m: &M, area: Ref, size: usize, from: usize) {
        if from < size && self.space.lock(m).history.looks_at_zeroed(size) {
            area.zeroed.set((from, size.next_multiple_of(Self::SLOT)));
        }
    }

    /// Looks at how much of what `area`, of `size` bytes and in transit, was given as zeroes of the system's was
    /// written to, and learns from it.
    pub(super) fn judge_zeroed(&self, m: &M, area: Ref, size: usize) {
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
    pub(super) fn watch(space: &mut Space, area: Ref) {
        if area.probe.get() != (0, 0) {
            space.watched.rotate_right(1);
            space.watched[0] = area.start.get();
        }
    }

    /// Looks at the areas made of late. They may be freed meanwhile: then what is learned was true a moment ago, and
    /// the worst is advice to a range that has no use for it.
    pub(super) fn observe(&self, m: &M) {
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
}
