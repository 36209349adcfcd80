//! Pages that move: their owners are told, and a zone can be compacted.
//!
//! Only on machines whose frames are theirs. In a process a page *is* its address, which the program holds; what moves
//! there are the host's frames behind it, by the host's own compaction.
#![allow(unsafe_code)]

use super::Mm;
use crate::error::AllocError;
use crate::gfp::Gfp;
use crate::machine::{Machine, ZoneKind};
use crate::page::{Kind, flag};
use crate::types::{Order, PAGE_SIZE, Pfn};
use crate::zone::{Compacted, ZONES};

/// Most owners.
const OWNERS: usize = 8;

/// Whoever holds pages that may move, and can find its references to them (what `movable_operations`, or a reverse
/// mapping, is in the kernel).
pub trait PageOwner: Sync {
    /// Moves page `from`, which is `cookie` to the owner, to `to`: makes sure that `from` is still what `cookie` names
    /// and that nobody reaches it, calls `copy`, and if that returns true lets all its references name `to`. The frame
    /// `from` is not the owner's any more then. Returns whether it was so done; else all is as it was.
    ///
    /// The owner must serialise this with its own frees of the page. It allocates nothing here.
    fn migrate(&self, cookie: u64, from: Pfn, to: Pfn, copy: &mut dyn FnMut() -> bool) -> bool;
}

/// A registered owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OwnerId(u16);

/// The owners, by their ids.
pub(super) struct Owners([Option<&'static dyn PageOwner>; OWNERS]);

impl Owners {
    pub(super) const fn new() -> Owners {
        Owners([None; OWNERS])
    }
}

impl<M: Machine> Mm<M> {
    /// Makes an owner known, for ever.
    ///
    /// # Errors
    /// [`AllocError::Unsupported`] on a machine whose frames do not move (a process); [`AllocError::NoMemory`]: there
    /// are too many.
    pub fn register_owner(&self, owner: &'static dyn PageOwner) -> Result<OwnerId, AllocError> {
        if !M::OWNS_FRAMES {
            return Err(AllocError::Unsupported);
        }
        let mut owners = self.owners.lock(&self.machine);
        let free = owners.0.iter().position(Option::is_none).ok_or(AllocError::NoMemory)?;
        owners.0[free] = Some(owner);
        Ok(OwnerId(free as u16))
    }

    /// A page that may move, which is `cookie` to `owner`. Who uses it while the owner does not look takes a reference
    /// ([`Mm::get_page`]): a page with more than one does not move.
    ///
    /// # Errors
    /// As for [`Mm::alloc_pages`].
    pub fn alloc_movable(&self, gfp: Gfp, owner: OwnerId, cookie: u64) -> Result<Pfn, AllocError> {
        let pfn = self.alloc_pages(gfp | Gfp::MOVABLE, 0, None)?;
        let page = self.machine.page(pfn);
        page.set_cache(owner.0);
        page.set_word(cookie);
        page.set(flag::MIGRATABLE);
        Ok(pfn)
    }

    /// Moves one page to another frame of what `gfp` allows; the frame.
    ///
    /// # Errors
    /// As for [`Mm::alloc_pages`]; [`AllocError::Invalid`]: it is no page that may move, or its owner did not let it
    /// go.
    pub fn migrate_page(&self, pfn: Pfn, gfp: Gfp) -> Result<Pfn, AllocError> {
        let page = self.machine.page(pfn);
        if page.kind() != Kind::Allocated || !page.has(flag::MIGRATABLE) {
            return Err(AllocError::Invalid);
        }
        let (owner, cookie) = (OwnerId(page.cache()), page.word());
        let to = self.alloc_movable(gfp, owner, cookie)?;
        let moved = self.move_page(pfn, to);
        let left = if moved { pfn } else { to };
        let free = |gfp: Gfp| {
            // SAFETY: where the page moved its owner has let go of it and uses the new one; else that is this
            // function's, whom nobody was told of.
            unsafe { self.pages.free_pages(&self.machine, left, Order::ZERO, gfp.may_block()) }
        };
        if !self.bracket(gfp, free) {
            self.defer_pages(left, Order::ZERO);
        }
        if moved { Ok(to) } else { Err(AllocError::Invalid) }
    }

    /// Compacts the zones that `gfp` allows until each has a free block of `order`.
    pub fn compact(&self, gfp: Gfp, order: u32) -> Compacted {
        let order = Order::new(order.min(u32::from(Order::MAX.get())) as u8).unwrap_or(Order::MAX);
        let mut all = Compacted::default();
        self.bracket(gfp, |gfp| {
            self.compact_zones(gfp, order, None, |one| {
                all.moved += one.moved;
                all.refused += one.refused;
                all.done |= one.done;
                false
            });
        });
        all
    }

    /// Direct compaction for a request that found no block: zone by zone, until it finds one.
    pub(super) fn compact_for(
        &self,
        gfp: Gfp,
        order: Order,
        node: Option<usize>,
        get: impl Fn(Gfp) -> Option<Pfn>,
    ) -> Option<Pfn> {
        let mut block = None;
        if order > Order::ZERO && gfp.may_io() {
            self.compact_zones(gfp, order, node.filter(|_| gfp.has(Gfp::THISNODE)), |one| {
                // Where nothing moved, nothing is different.
                block = if one.moved > 0 { get(gfp) } else { None };
                block.is_some()
            });
        }
        block
    }

    /// Compacts zone after zone until `enough` says so.
    fn compact_zones(&self, gfp: Gfp, order: Order, node: Option<usize>, mut enough: impl FnMut(Compacted) -> bool) {
        // Without owners nothing can move; and who may not wait does not start.
        if !M::OWNS_FRAMES || !gfp.may_block() || self.owners.lock(&self.machine).0[0].is_none() {
            return;
        }
        let nodes = (0..self.machine.nr_nodes()).filter(|n| node.is_none_or(|node| node == *n));
        let zones = nodes.flat_map(|node| ZONES.into_iter().rev().map(move |kind| (node, kind)));
        let _ = zones.filter(|(_, kind)| allows(gfp, *kind)).any(|(node, kind)| {
            enough(self.pages.compact(&self.machine, node, kind, order, |from, to| self.move_page(from, to)))
        });
    }

    /// Lets the owner of `from` move it to `to`, which looks like it.
    fn move_page(&self, from: Pfn, to: Pfn) -> bool {
        let m = &self.machine;
        let page = m.page(from);
        let owner = self.owners.lock(m).0.get(usize::from(page.cache())).copied().flatten();
        let Some(owner) = owner else { return false };
        let mut frozen = false;
        let moved = owner.migrate(page.word(), from, to, &mut || {
            // Nobody else may hold it, nor take it from here on.
            frozen = frozen || page.freeze();
            frozen && self.copy_page(from, to)
        });
        if frozen {
            page.set_refs(1);
        }
        moved && frozen
    }

    /// Copies one page to another, whether they have addresses or not.
    fn copy_page(&self, from: Pfn, to: Pfn) -> bool {
        let Ok(source) = self.kmap_atomic(from) else { return false };
        let target = self.kmap_atomic(to);
        if let Ok(target) = target {
            // SAFETY: both are whole pages, mapped and distinct; `to` is not known to anybody yet, and `from` has no
            // other user.
            unsafe { target.copy_from_nonoverlapping(source, PAGE_SIZE) };
            self.machine.flush_dcache_page(to);
            // The last one made: nothing can be wrong with it.
            let _ = self.kunmap_atomic(target);
        }
        let _ = self.kunmap_atomic(source);
        target.is_ok()
    }
}

/// Whether a request with these flags may be served from the zone.
fn allows(gfp: Gfp, kind: ZoneKind) -> bool {
    match kind {
        ZoneKind::Dma => true,
        ZoneKind::Dma32 => !gfp.has(Gfp::DMA),
        ZoneKind::Normal => !gfp.has(Gfp::DMA) && !gfp.has(Gfp::DMA32),
        ZoneKind::HighMem => gfp.has(Gfp::HIGHMEM),
        ZoneKind::Movable => gfp.has(Gfp::HIGHMEM) && gfp.has(Gfp::MOVABLE),
    }
}
