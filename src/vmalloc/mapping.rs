//! Areas over frames that stay their owners': `vmap`. Such an area is in transit for as long as it is there, so that
//! nothing else in this layer touches it; its stamp tells it from areas that somebody works on.

use core::ptr::NonNull;

use super::{FrameSource, Vmalloc};
use crate::gfp::Gfp;
use crate::machine::{Machine, non_null};
use crate::paging::x86_64::{Slot, SlotState};
use crate::types::Pfn;
use crate::vmalloc::node::State;

/// The stamp of a mapping.
pub(super) const MAPPING: u64 = u64::MAX;

impl<M: Machine> Vmalloc<M> {
    /// Maps `frames` to adjacent slots (only where frames are owned). `None` without addresses or tables.
    pub fn map<P: FrameSource<M>>(&self, m: &M, pages: &P, frames: &[Pfn], gfp: Gfp) -> Option<NonNull<u8>> {
        let size = frames.len().checked_mul(Self::SLOT)?;
        let len = size.checked_add(Self::GUARD)?;
        if !M::OWNS_FRAMES || len > m.window().len() {
            return None;
        }
        let area = self.open(m, pages, size, len, Self::SLOT, gfp)?;
        let start = area.start.get();
        let mapped = m.map_frames(start, frames);
        if mapped < frames.len() {
            if mapped > 0 {
                m.unmap(start, mapped * Self::SLOT);
            }
            self.close(m, area);
            return None;
        }
        m.flush_cache(start..start + size);
        let mut space = self.space.lock(m);
        space.index.update(m, start, size, false, |at, _| Slot::zero(Self::LEVEL, frames[(at - start) / Self::SLOT]));
        area.stamp.set(MAPPING);
        non_null(start)
    }

    /// Takes such a mapping back by its first address. False where there is none.
    ///
    /// # Safety
    /// If a mapping begins there it is the caller's, and nobody uses its addresses any more.
    #[allow(unsafe_code)]
    pub unsafe fn unmap(&self, m: &M, address: *const u8) -> bool {
        let mut space = self.space.lock(m);
        let found = space.area_of(address.addr());
        let Some(area) = found.filter(|area| {
            area.state.get() == State::Transit && area.stamp.get() == MAPPING && area.start.get() == address.addr()
        }) else {
            return false;
        };
        // From here on it is in transit like any other.
        area.stamp.set(0);
        let (start, size) = (area.start.get(), area.mapped.get());
        space.index.update(m, start, size, false, |_, _| Slot::EMPTY);
        drop(space);
        m.flush_cache(start..start + size);
        m.unmap(start, size);
        self.close(m, area);
        true
    }

    /// The frame behind `address`, of an area or of a mapping (only where frames are owned).
    pub fn frame_at(&self, m: &M, address: *const u8) -> Option<Pfn> {
        if !M::OWNS_FRAMES || !self.contains(m, address) {
            return None;
        }
        let slot = self.space.lock(m).index.get(m, address.addr());
        (!matches!(slot.state(), SlotState::Empty | SlotState::Freed)).then(|| slot.frame())
    }
}
