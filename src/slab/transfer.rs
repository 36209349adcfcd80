//! Objects on their way between sheaves and slabs, and slabs on theirs between here and the page allocator.
#![allow(unsafe_code)]

use core::ptr;
use core::sync::atomic::Ordering;

use super::barn::TOGETHER;
use super::cache::FIRST_CREATED;
use super::classes::NR_CLASSES;
use super::layout::{MapPlace, SlabLayout};
use super::mark::mark_of;
use super::node::{Fresh, slab_of};
use super::sheaf::Sheaf;
use super::{Slab, classes, node, window};
use crate::error::Defect;
use crate::gfp::Gfp;
use crate::machine::{Machine, misuse};
use crate::page::{Kind, PageList, flag};
use crate::types::{PAGE_SIZE, Pfn, PfnRange};
use crate::zone::PageAllocator;

/// Where fewer objects than this in a row are of one slab, what will be looked at of the slab of one that comes so many
/// later is fetched.
const SHORT_RUN: usize = 4;
const AHEAD: usize = 8;

impl<M: Machine> Slab<M> {
    /// An object from the slabs of `node`, or with `__GFP_THISNODE` not at all.
    pub fn alloc_node(&self, m: &M, pages: &PageAllocator<M>, id: u8, gfp: Gfp, node: usize) -> *mut u8 {
        let (mut one, mut fresh) = ([0], Fresh::new());
        if self.take_unmarked(m, pages, id, &mut one, &mut fresh, gfp, node) == 0 {
            return ptr::null_mut();
        }
        if fresh.is_empty() {
            return self.hand_out(m, id, ptr::with_exposed_provenance_mut(one[0]));
        }
        // Its memory is not touched.
        fresh.fill(&mut one, 0, |_| ());
        let object = ptr::with_exposed_provenance_mut(one[0]);
        if id >= FIRST_CREATED {
            self.first_time(id, object);
        }
        object
    }

    /// An object straight from the slabs.
    pub fn alloc_direct(&self, m: &M, pages: &PageAllocator<M>, id: u8, gfp: Gfp) -> *mut u8 {
        self.alloc_node(m, pages, id, gfp, m.node())
    }

    /// Frees `object` straight into its slab.
    ///
    /// # Safety
    /// `object` came from [`Slab::alloc_direct`] and the caller gives it up.
    pub unsafe fn free_direct(&self, m: &M, pages: &PageAllocator<M>, object: *mut u8, gfp: Gfp) {
        self.free_one(m, pages, object.expose_provenance(), gfp);
    }

    /// [`Slab::take_unmarked`], those never handed out before constructed, or marked, and all at the start of `out`.
    pub(super) fn take_objects(
        &self,
        m: &M,
        pages: &PageAllocator<M>,
        id: u8,
        out: &mut [usize],
        gfp: Gfp,
        here: usize,
    ) -> usize {
        let (size, mut fresh) = (self.layout(id).size as usize, Fresh::new());
        let got = self.take_unmarked(m, pages, id, out, &mut fresh, gfp, here);
        let short = out.len() - got;
        if short > 0 && fresh.lower(short) < got {
            out.copy_within(short.., 0);
        }
        if id as usize <= NR_CLASSES {
            let key = self.key();
            // SAFETY: objects of the class, just taken.
            fresh.fill(out, size, |object| unsafe { mark_of(object).write(key) });
        } else if id >= FIRST_CREATED {
            fresh.fill(out, size, |object| self.first_time(id, object));
        } else {
            fresh.fill(out, size, |_| ());
        }
        got
    }

    /// Takes objects from slabs into `out`, from its end to its start, making new slabs as needed; those never handed
    /// out before are left to `fresh`. The others should have the mark: who hands them out looks. May return fewer than
    /// asked for, also when there is memory left; 0 only where there is none.
    #[allow(clippy::too_many_arguments)]
    fn take_unmarked(
        &self,
        m: &M,
        pages: &PageAllocator<M>,
        id: u8,
        out: &mut [usize],
        fresh: &mut Fresh,
        gfp: Gfp,
        here: usize,
    ) -> usize {
        let (layout, owner) = (self.layout(id), self.owner(m, id));
        let mut got = 0;
        if let Some(mut slabs) = self.node(id, here).list(m, gfp.may_block()) {
            got = Self::take(m, &mut slabs, layout, out, fresh, gfp, owner);
        }
        // Half of what was asked for is enough to go on with; less is topped up with new slabs.
        while got * 2 < out.len() && !fresh.is_full() {
            let Some((node, head, map)) = self.new_slab(m, pages, id, here, gfp) else { break };
            let Some(mut slabs) = self.node(id, node).list(m, gfp.may_block()) else {
                if gfp.no_fault() {
                    got += 1;
                    let at = out.len() - got;
                    out[at] = self.new_full(m, id, head, map);
                    break;
                }
                self.free_slab(m, pages, id, head, map, gfp);
                break;
            };
            slabs.add(m, id, layout, head, map);
            let left = out.len() - got;
            got += Self::take(m, &mut slabs, layout, &mut out[..left], fresh, gfp, owner);
        }
        // There is no memory: whosever slabs they are.
        if got == 0
            && owner.is_some()
            && let Some(mut slabs) = self.node(id, here).list(m, gfp.may_block())
        {
            got = Self::take(m, &mut slabs, layout, out, fresh, gfp, None);
        }
        if got == 0 && !gfp.has(Gfp::THISNODE) && !gfp.no_fault() {
            for node in (0..m.nr_nodes()).filter(|n| *n != here) {
                if let Some(mut slabs) = self.node(id, node).list(m, gfp.may_block()) {
                    got = slabs.take(m, layout, out, fresh, None);
                }
                if got > 0 {
                    break;
                }
            }
        }
        got
    }

    /// Objects of a node's slabs; for atomic requests only of those that were populated.
    fn take(
        m: &M,
        slabs: &mut node::NodeSlabs,
        layout: &SlabLayout,
        out: &mut [usize],
        fresh: &mut Fresh,
        gfp: Gfp,
        owner: Option<node::Owner>,
    ) -> usize {
        if gfp.no_fault() {
            slabs.take_from_some(m, layout, out, fresh, |head| Self::is_populated(m, head))
        } else {
            slabs.take(m, layout, out, fresh, owner)
        }
    }

    /// A block for a new slab of cache `id`, its descriptors set: its node, head, and off-slab map.
    fn new_slab(
        &self,
        m: &M,
        pages: &PageAllocator<M>,
        id: u8,
        node: usize,
        gfp: Gfp,
    ) -> Option<(usize, Pfn, *mut u8)> {
        let layout = self.layout(id);
        let map = if layout.map == MapPlace::OffSlab {
            let class = classes::class_of(layout.map_words() as usize * 8);
            let map = self.alloc_direct(m, pages, class, gfp);
            if map.is_null() {
                return None;
            }
            map
        } else {
            ptr::null_mut()
        };
        let zone = if id >= FIRST_CREATED { self.cache(id).shape().flags.gfp() } else { Gfp::NONE };
        let asked = gfp.without(Gfp::ZERO | Gfp::DMA | Gfp::DMA32 | Gfp::HIGHMEM | Gfp::MOVABLE) | zone;
        // Few large objects come back whole, as runs do, and of these, too, only the beginning may be written to.
        let asked = if M::LENT && layout.size as usize > PAGE_SIZE { asked | Gfp::MOVABLE } else { asked };
        let Some(head) = pages.alloc_pages(m, asked, layout.order, Some(node)) else {
            if !map.is_null() {
                self.free_one(m, pages, map.addr(), gfp);
            }
            return None;
        };
        for pfn in PfnRange::block(head, layout.order).iter() {
            let page = m.page(pfn);
            page.set_cache(u16::from(id));
            page.set_kind(Kind::Slab, layout.order);
        }
        if self.populates(id, gfp) {
            m.populate(PfnRange::block(head, layout.order));
            m.page(head).set(flag::POPULATED);
        } else if gfp.no_fault() {
            m.page(head).set(flag::POPULATED);
        }
        Some((m.page(head).node(), head, map))
    }

    /// Makes a new populated slab of cache `id` whose list lock is not to be had one without free objects: one is the
    /// caller's, the others lie in the stash.
    #[cold]
    fn new_full(&self, m: &M, id: u8, head: Pfn, map: *mut u8) -> usize {
        let cache = self.cache(id);
        // First: a free of one of its objects finds it counted.
        self.node(id, m.page(head).node()).born.fetch_add(1, Ordering::Relaxed);
        let mut own = 0;
        node::new_full(m, id, self.layout(id), head, map, |object| {
            if id >= FIRST_CREATED {
                self.first_time(id, ptr::with_exposed_provenance_mut(object));
            }
            self.mark_all(id, &[object]);
            if own == 0 {
                own = object;
            } else {
                cache.stash.push(object, |next| self.set_link(id, object, next));
            }
        });
        own
    }

    /// An object of the stash.
    pub(super) fn unstash(&self, m: &M, id: u8) -> *mut u8 {
        let stash = &self.cache(id).stash;
        if stash.is_empty() {
            return ptr::null_mut();
        }
        let object = stash.pop(|object| self.link(id, object), |object, next| self.set_link(id, object, next));
        // Somebody else may have been faster.
        if object == 0 {
            return ptr::null_mut();
        }
        // In the smallest objects the link was where the mark is.
        if self.link_offset(id) == 0 {
            self.mark_all(id, &[object]);
        }
        self.hand_out(m, id, ptr::with_exposed_provenance_mut(object))
    }

    /// Gives the stash back to the slabs. The caller may block.
    pub(super) fn drain_stash(&self, m: &M, pages: &PageAllocator<M>, id: u8) {
        let mut object = self.cache(id).stash.take();
        while object != 0 {
            let next = self.link(id, object);
            self.free_one(m, pages, object, Gfp::KERNEL);
            object = next;
        }
    }

    /// The link of a free object on a list of them.
    pub(super) fn link(&self, id: u8, object: usize) -> usize {
        let link: *const usize = ptr::with_exposed_provenance(object + self.link_offset(id));
        // SAFETY: the object is free and on a list, so the link was written; it lies in a part that is the allocator's.
        unsafe { link.read() }
    }

    fn set_link(&self, id: u8, object: usize, next: usize) {
        let link: *mut usize = ptr::with_exposed_provenance_mut(object + self.link_offset(id));
        // SAFETY: as in `link`.
        unsafe { link.write(next) };
    }

    /// Gives an empty slab that is on no list back to the page allocator.
    fn free_slab(&self, m: &M, pages: &PageAllocator<M>, id: u8, head: Pfn, map: *mut u8, gfp: Gfp) {
        let layout = self.layout(id);
        for pfn in PfnRange::block(head, layout.order).iter() {
            m.class(pfn).store(0, Ordering::Relaxed);
            m.page(pfn).set_kind(if pfn == head { Kind::Allocated } else { Kind::Tail }, layout.order);
        }
        m.page(head).set_refs(1);
        // SAFETY: none of its objects is out and no list has it, so that none will be; it is the block that `head` was
        // allocated as.
        if !unsafe { pages.free_pages(m, head, layout.order, gfp.may_block()) } {
            // The zone's lock was not to be had. Nor may the list's be waited for: whom we interrupted may hold it.
            let link: *mut usize = m.virt(head).cast();
            // SAFETY: the slab is empty and ours, so its memory is free to be written to.
            self.orphans.push(link.expose_provenance(), |next| unsafe { link.write(next) });
        }
        if !map.is_null() {
            self.free_one(m, pages, map.addr(), gfp);
        }
    }

    /// Gives the objects of `sheaf`, and in a flood those of the barn's full sheaves, back to their slabs.
    pub(super) fn put_flood(&self, m: &M, pages: &PageAllocator<M>, id: u8, mut sheaf: Option<Sheaf>, gfp: Gfp) {
        let (node, capacity) = (self.node(id, m.node()), self.capacity(id));
        let _in_hand = self.hands.begin();
        // Slabs go back at the end: of an object that was freed twice the other copy may be in one of the next sheaves.
        let mut release = PageList::new();
        loop {
            let mut sheaves = [const { None }; TOGETHER];
            sheaves[0] = sheaf.take();
            if gfp.may_block() {
                let mut barn = node.barn.lock(m);
                let free = sheaves.iter_mut().filter(|sheaf| sheaf.is_none());
                free.for_each(|sheaf| *sheaf = barn.take_flooded(capacity));
            }
            let more = sheaves.iter().all(Option::is_some);
            let mut lists = sheaves.each_mut().map(|sheaf| sheaf.as_mut().map_or(&mut [][..], Sheaf::drain));
            self.put_lists(m, pages, id, &mut lists, &mut release, gfp);
            // The next sheaf that fills up wants an empty one in its place.
            if let Some(mut barn) = node.barn.acquire(m, gfp.may_block()) {
                for sheaf in &mut sheaves {
                    *sheaf = sheaf.take().and_then(|sheaf| barn.put_empty(sheaf).err());
                }
            }
            sheaves.into_iter().flatten().for_each(|sheaf| self.dissolve(m, pages, sheaf, gfp));
            if !more {
                break;
            }
        }
        self.release(m, pages, release, gfp);
    }

    /// Gives a sheaf's objects back to their slabs, and the sheaf's memory too.
    pub(super) fn dissolve(&self, m: &M, pages: &PageAllocator<M>, mut sheaf: Sheaf, gfp: Gfp) {
        self.free_objects(m, pages, sheaf.drain(), gfp);
        let memory = sheaf.into_memory();
        self.free_objects(m, pages, &[memory.addr()], gfp);
    }

    /// Puts an object that did not come out of a sheaf back into its slab.
    pub(super) fn free_one(&self, m: &M, pages: &PageAllocator<M>, object: usize, gfp: Gfp) {
        self.mark_one(m, object);
        self.free_objects(m, pages, &[object], gfp);
    }

    /// Whether what came out of a sheaf, and lies in no slab, is no free run either: an object that was freed twice,
    /// whose page is something else by now.
    fn is_no_run(m: &M, address: usize) -> bool {
        m.pfn(ptr::with_exposed_provenance(address)).is_some_and(|pfn| {
            let kind = m.page(pfn).kind();
            let in_use = kind == Kind::Run || m.class(pfn).load(Ordering::Relaxed) != 0;
            kind.heads_nothing() || in_use || m.virt(pfn).addr() != address
        })
    }

    /// Puts objects, of whatever caches, those of size classes marked, back into their slabs, and runs into their
    /// zones.
    pub(super) fn free_objects(&self, m: &M, pages: &PageAllocator<M>, objects: &[usize], gfp: Gfp) {
        let mut release = PageList::new();
        self.put_objects(m, pages, objects, &mut release, gfp);
        self.release(m, pages, release, gfp);
    }

    /// [`Slab::free_objects`] that leaves it to the caller to give back the slabs that are empty then and not worth
    /// keeping.
    fn put_objects(&self, m: &M, pages: &PageAllocator<M>, objects: &[usize], release: &mut PageList, gfp: Gfp) {
        let mut rest = objects;
        while let Some((&first, others)) = rest.split_first() {
            let Some((mut head, _)) = slab_of(m, ptr::with_exposed_provenance(first)) else {
                rest = others;
                if Self::is_no_run(m, first) {
                    misuse(m, Defect::DoubleFree, first, "an object whose slab went back");
                } else if !self.free_run(m, pages, first, gfp) {
                    self.defer(0, first);
                }
                continue;
            };
            let (id, home) = (m.page(head).cache() as u8, m.page(head).node());
            let layout = self.layout(id);
            // At once: nobody fetched those of the first ones ahead of them.
            others.iter().take(AHEAD).for_each(|ahead| Self::fetch_slab(m, layout, *ahead));
            let Some(mut slabs) = self.node(id, home).list(m, gfp.may_block()) else {
                rest = others;
                if self.cache(id).atomic.load(Ordering::Relaxed) && Self::is_populated(m, head) {
                    self.cache(id).stash.push(first, |next| self.set_link(id, first, next));
                } else {
                    self.defer(id, first);
                }
                continue;
            };
            // Slab by slab, as long as they are of this list.
            let defect = loop {
                match slabs.put(m, layout, head, rest, release) {
                    Ok(done) => {
                        if done < SHORT_RUN {
                            // So is the next, as likely as not.
                            rest.iter().skip(AHEAD).take(done).for_each(|ahead| Self::fetch_slab(m, layout, *ahead));
                        }
                        rest = &rest[done..];
                    }
                    Err((done, defect)) => {
                        let object = rest[done];
                        rest = &rest[done + 1..];
                        break Some((defect, object));
                    }
                }
                let next = rest.first().and_then(|object| slab_of(m, ptr::with_exposed_provenance(*object)));
                match next.filter(|(head, _)| m.page(*head).cache() == u16::from(id) && m.page(*head).node() == home) {
                    Some((next, _)) => head = next,
                    None => break None,
                }
            };
            drop(slabs);
            if let Some((defect, object)) = defect {
                misuse(m, defect, object, self.name(id));
            }
        }
    }

    /// [`Slab::put_objects`] of what came out of some sheaves of cache `id`; leaves them in another order.
    pub(super) fn put_lists(
        &self,
        m: &M,
        pages: &PageAllocator<M>,
        id: u8,
        lists: &mut [&mut [usize]],
        release: &mut PageList,
        gfp: Gfp,
    ) {
        let mut left = [0; TOGETHER];
        left.iter_mut().zip(lists.iter()).for_each(|(left, list)| *left = list.len());
        let layout = self.layout(id);
        // Kernels have no room for windows.
        if M::LENT && gfp.may_block() && lists.iter().any(|list| window::is_worth(layout, list.len())) {
            self.put_windows(m, id, lists, &mut left, release);
        }
        for (list, left) in lists.iter().zip(left) {
            self.put_objects(m, pages, &list[..left], release, gfp);
        }
    }

    /// Puts the objects of `lists` that lie close together into their slabs; of each list `left` are left, at its
    /// start.
    #[inline(never)]
    fn put_windows(
        &self,
        m: &M,
        id: u8,
        lists: &mut [&mut [usize]],
        left: &mut [usize; TOGETHER],
        release: &mut PageList,
    ) {
        let (layout, home, mut from) = (self.layout(id), m.node(), 0);
        let Some(mut window) = window::room(m, m.cpu_guess()) else { return };
        while from < lists.len() {
            if !window.begin(layout, &lists[from][..left[from]]) {
                from += 1;
                continue;
            }
            let (mut rest, mut inside) = (*left, 0);
            for (list, left) in lists.iter_mut().zip(&mut rest).skip(from) {
                if window.has_some(&list[..*left]) {
                    let outside = window.take(&mut list[..*left]);
                    inside += *left - outside;
                    *left = outside;
                }
            }
            let slabs = &mut self.node(id, home).locked(m);
            // The objects that a window was chosen by are not always those that say whether to look for more.
            if inside == 0
                || !window.is_dense(inside)
                || !slabs.put_window(m, (id, home), layout, &mut window, inside, release)
            {
                return;
            }
            *left = rest;
        }
    }

    /// Fetches what [`node::NodeSlabs::put`] will look at of the slab of `object`.
    #[inline(always)]
    fn fetch_slab(m: &M, layout: &SlabLayout, object: usize) {
        let Some(pfn) = m.pfn(ptr::with_exposed_provenance(object)) else { return };
        m.prefetch(ptr::from_ref(m.page(pfn)).addr());
        if layout.map == MapPlace::OnSlab {
            m.prefetch(object & !(PAGE_SIZE - 1));
        }
    }

    /// Gives empty slabs, which are on no list any more, back to the page allocator.
    pub(super) fn release(&self, m: &M, pages: &PageAllocator<M>, mut slabs: PageList, gfp: Gfp) {
        while let Some(head) = slabs.pop_front(|p| m.page(p)) {
            let id = m.page(head).cache() as u8;
            let map = match self.layout(id).map {
                MapPlace::OffSlab => ptr::with_exposed_provenance_mut(m.page(head).word() as usize),
                _ => ptr::null_mut(),
            };
            self.free_slab(m, pages, id, head, map, gfp);
        }
    }

    /// Keeps an object for the next who may block.
    pub(super) fn defer(&self, id: u8, object: usize) {
        self.deferred.push(object, |next| self.set_link(id, object, next));
    }

    /// Frees what was deferred. The caller may block.
    pub(super) fn drain_deferred(&self, m: &M, pages: &PageAllocator<M>) {
        if !self.deferred.is_empty() || !self.orphans.is_empty() {
            let _in_hand = self.hands.begin();
            self.free_deferred(m, pages);
        }
    }
}
