//! Objects of created caches: handed out, taken back, checked.
//!
//! A free object carries a mark, like those of the size classes: its second word, or, where the object's state is kept
//! or checked, a word behind it. What a cache keeps behind its objects, from the first multiple of a word on:
//!
//! | word | for | what |
//! |---|---|---|
//! | 1 | [`SlabFlags::RED_ZONE`] | 0xcc in use, 0xbb free; so are the bytes up to there |
//! | 2 | a constructor, or any check | link of the deferred list, the mark |
//! | 4 | [`SlabFlags::STORE_USER`] | who allocated it, and on which thread; who freed it, likewise |
//!
//! In front of an object with [`SlabFlags::RED_ZONE`] there is such a zone, too: a word, or as much as the alignment
//! asks for.
#![allow(unsafe_code)]

use core::fmt::Write;
use core::sync::atomic::Ordering;

use super::cache::{Shape, SlabFlags};
use super::create::CacheId;
use super::layout::SlabLayout;
use super::node::slab_of;
use super::{FIRST_CREATED, Slab};
use crate::error::Defect;
use crate::gfp::Gfp;
use crate::machine::{Machine, misuse};
use crate::page::flag;
use crate::types::Line;
use crate::zone::PageAllocator;

const WORD: usize = size_of::<usize>();
const RED_ACTIVE: u8 = 0xcc;
const RED_INACTIVE: u8 = 0xbb;
/// What a poisoned object holds, and its last byte: the kernel's values.
const POISON_FREE: u8 = 0x6b;
const POISON_END: u8 = 0xa5;

/// The words behind an object of `object_size` bytes: where they begin, and bytes up to the end of all.
pub(super) const fn words_behind(object_size: usize, flags: SlabFlags, ctor: bool) -> (usize, usize) {
    if !ctor && !flags.any(SlabFlags::CHECKED) {
        // The mark is the object's own second word.
        return (0, if object_size < 2 * WORD { 2 * WORD } else { object_size });
    }
    let red = if flags.has(SlabFlags::RED_ZONE) { WORD } else { 0 };
    let users = if flags.has(SlabFlags::STORE_USER) { 4 * WORD } else { 0 };
    let meta = object_size.next_multiple_of(WORD) + red;
    (meta, meta + 2 * WORD + users)
}

/// Bytes in front of an object.
const fn words_before(align: usize, flags: SlabFlags) -> usize {
    if !flags.has(SlabFlags::RED_ZONE) {
        0
    } else if align > WORD {
        align
    } else {
        WORD
    }
}

/// The parts of one object of a created cache.
struct Parts<'a> {
    object: *mut u8,
    shape: &'a Shape,
}

impl Parts<'_> {
    fn flags(&self) -> SlabFlags {
        self.shape.flags
    }

    fn bytes(&self) -> usize {
        self.shape.layout.object_size as usize
    }

    fn word(&self, offset: usize) -> *mut usize {
        self.object.wrapping_add(offset).cast()
    }

    fn mark(&self) -> *mut usize {
        self.word(self.shape.meta as usize + WORD)
    }

    /// The user of kind 0 (who allocated) or 1 (who freed).
    fn user(&self, which: usize) -> *mut usize {
        self.word(self.shape.meta as usize + (2 + 2 * which) * WORD)
    }

    /// # Safety
    /// The object is the caller's, or nobody's.
    unsafe fn set_user(&self, which: usize, caller: usize, thread: usize) {
        // SAFETY: the words lie behind the object, and are the allocator's.
        unsafe {
            self.user(which).write(caller);
            self.user(which).add(1).write(thread);
        }
    }

    /// The bytes from the object's end to the words behind it.
    fn red(&self) -> core::ops::Range<usize> {
        self.bytes()..self.shape.meta as usize
    }

    /// The red zone in front of the object, as an object of its own.
    fn front(&self) -> (Parts<'_>, core::ops::Range<usize>) {
        let bytes = words_before(self.shape.layout.align as usize, self.flags());
        (Parts { object: self.object.wrapping_sub(bytes), shape: self.shape }, 0..bytes)
    }

    /// # Safety
    /// As for [`Parts::set_user`].
    unsafe fn fill_red(&self, byte: u8) {
        let (front, bytes) = self.front();
        // SAFETY: both zones lie in the object's slot.
        unsafe {
            front.fill(bytes, byte);
            self.fill(self.red(), byte);
        }
    }

    /// The first byte of the red zones that is not `byte`, counted from the object's start.
    ///
    /// # Safety
    /// As for [`Parts::set_user`].
    unsafe fn red_differs(&self, byte: u8) -> Option<isize> {
        let (front, bytes) = self.front();
        let len = bytes.len() as isize;
        // SAFETY: both zones lie in the object's slot.
        unsafe {
            let before = front.differs(bytes, byte).map(|at| at as isize - len);
            before.or_else(|| self.differs(self.red(), byte).map(|at| at as isize))
        }
    }

    /// # Safety
    /// As for [`Parts::set_user`].
    unsafe fn fill(&self, range: core::ops::Range<usize>, byte: u8) {
        // SAFETY: the range lies in the object's slot.
        unsafe { self.object.add(range.start).write_bytes(byte, range.len()) };
    }

    /// The first byte of `range` that is not `byte`.
    ///
    /// # Safety
    /// As for [`Parts::set_user`].
    unsafe fn differs(&self, mut range: core::ops::Range<usize>, byte: u8) -> Option<usize> {
        // SAFETY: as in `fill`.
        range.find(|at| unsafe { self.object.add(*at).read() } != byte)
    }

    /// The object was never constructed and its contents are nobody's while it is free.
    fn poisoned(&self) -> bool {
        self.flags().has(SlabFlags::POISON) && self.shape.ctor.is_none()
    }
}

impl<M: Machine> Slab<M> {
    /// Sets what marks a free object. At the start of the instance.
    pub fn set_key(&self, key: usize) {
        self.key.store(key, Ordering::Relaxed);
    }

    fn parts(&self, id: u8, object: *mut u8) -> Parts<'_> {
        Parts { object, shape: self.cache(id).shape() }
    }

    /// An object of a created cache as far as this CPU's main sheaf serves; null where it does not.
    #[inline]
    pub fn cache_pop(&self, m: &M, cache: CacheId, caller: usize) -> *mut u8 {
        // SAFETY: rows hold valid sheaves.
        let object = unsafe { m.pop(cache.get()) };
        if !object.is_null() {
            self.handed_out(m, cache.get(), object, caller);
        }
        object
    }

    /// An object of the cache, from wherever there is one; null where there is no memory. `caller` is who asks, for
    /// [`SlabFlags::STORE_USER`].
    pub fn cache_alloc(&self, m: &M, pages: &PageAllocator<M>, cache: CacheId, gfp: Gfp, caller: usize) -> *mut u8 {
        let id = cache.get();
        let object = if gfp.no_fault() {
            self.alloc_atomic(m, pages, id, gfp)
        } else {
            let object = self.cache_pop(m, cache, caller);
            if !object.is_null() {
                return object;
            }
            self.alloc_slow(m, pages, id, gfp)
        };
        if !object.is_null() {
            self.handed_out(m, id, object, caller);
        }
        object
    }

    /// An object of a created cache is about to be handed out for the first time.
    pub(super) fn first_time(&self, id: u8, object: *mut u8) {
        let parts = self.parts(id, object);
        // SAFETY: the object is the caller's, of the cache's size, and was never constructed.
        unsafe {
            if let Some(ctor) = parts.shape.ctor {
                ctor(object);
            }
            // What lay there before may look like a mark.
            parts.mark().write(0);
        }
    }

    /// Clears the mark, and does the checks that the cache asks for.
    #[inline]
    fn handed_out(&self, m: &M, id: u8, object: *mut u8, caller: usize) {
        let parts = self.parts(id, object);
        if parts.flags().any(SlabFlags::CHECKED) {
            self.check_out(m, &parts, caller);
        }
        // SAFETY: the object was just taken, and is at least two words long or has the mark behind it.
        unsafe { parts.mark().write(0) };
    }

    #[cold]
    fn check_out(&self, m: &M, parts: &Parts<'_>, caller: usize) {
        let size = parts.bytes();
        // SAFETY: the object was just taken; all that is touched lies in its slot.
        unsafe {
            // One that was never freed has neither poison nor red zone yet.
            if parts.mark().read() == self.key.load(Ordering::Relaxed) {
                if parts.poisoned() {
                    let wrong = parts.differs(0..size - 1, POISON_FREE).or(parts.differs(size - 1..size, POISON_END));
                    if let Some(at) = wrong {
                        self.report(m, Defect::Corrupt, parts, "written to after it was freed", Some(at as isize));
                    }
                }
                if parts.flags().has(SlabFlags::RED_ZONE)
                    && let Some(at) = parts.red_differs(RED_INACTIVE)
                {
                    let what = if at < 0 {
                        "written to before its start while it was free"
                    } else {
                        "written to behind its end while it was free"
                    };
                    self.report(m, Defect::Corrupt, parts, what, Some(at));
                }
            }
            if parts.poisoned() {
                parts.fill(0..size - 1, POISON_FREE);
                parts.fill(size - 1..size, POISON_END);
            }
            if parts.flags().has(SlabFlags::RED_ZONE) {
                parts.fill_red(RED_ACTIVE);
            }
            if parts.flags().has(SlabFlags::STORE_USER) {
                parts.set_user(0, caller, m.thread());
                parts.set_user(1, 0, 0);
            }
        }
    }

    #[cold]
    fn check_in(&self, m: &M, parts: &Parts<'_>, caller: usize) {
        let size = parts.bytes();
        // SAFETY: the caller of `free` gave the object up; all that is touched lies in its slot.
        unsafe {
            if parts.flags().has(SlabFlags::RED_ZONE) {
                if let Some(at) = parts.red_differs(RED_ACTIVE) {
                    let what = if at < 0 { "written to before its start" } else { "written to behind its end" };
                    self.report(m, Defect::Corrupt, parts, what, Some(at));
                }
                parts.fill_red(RED_INACTIVE);
            }
            if parts.poisoned() {
                parts.fill(0..size - 1, POISON_FREE);
                parts.fill(size - 1..size, POISON_END);
            }
            if parts.flags().has(SlabFlags::STORE_USER) {
                parts.set_user(1, caller, m.thread());
            }
        }
    }

    /// Reports a defect of an object, with its users where the cache keeps them.
    #[cold]
    fn report(&self, m: &M, defect: Defect, parts: &Parts<'_>, what: &str, at: Option<isize>) {
        let mut line = Line::new();
        let _ = write!(line, "{}", parts.shape.name());
        if !what.is_empty() {
            let _ = write!(line, ": {what}");
        }
        if let Some(at) = at {
            let _ = write!(line, " at byte {at}");
        }
        self.write_users(&mut line, parts);
        misuse(m, defect, parts.object.addr(), line.as_str());
    }

    fn write_users(&self, line: &mut Line, parts: &Parts<'_>) {
        if !parts.flags().has(SlabFlags::STORE_USER) {
            return;
        }
        for (which, word) in ["allocated", "freed"].into_iter().enumerate() {
            // SAFETY: the words lie behind the object, whose slab stays while it is looked at.
            let caller = unsafe { parts.user(which).read() };
            if caller != 0 {
                let _ = write!(line, ", {word} at {caller:#x}");
            }
        }
    }

    /// Whether `object` is one of cache `id` and not free in its slab as far as a glance tells.
    ///
    /// # Errors
    /// [`Defect::Foreign`], [`Defect::WrongCache`], [`Defect::Interior`].
    fn belongs(&self, m: &M, id: u8, object: *mut u8) -> Result<(), Defect> {
        let (head, offset) = slab_of(m, object).ok_or(Defect::Foreign)?;
        let page = m.page(head);
        if page.cache() != u16::from(id) {
            return Err(Defect::WrongCache);
        }
        self.layout(id).index(page.colour(), offset).map(|_| ()).ok_or(Defect::Interior)
    }

    /// Gives an object back to its cache as far as this CPU's main sheaf takes it. `Ok(false)`: the slow path has to be
    /// asked, all checks are done. An object of another cache, or one that is free already, is reported and otherwise
    /// left alone.
    ///
    /// # Safety
    /// `object` is from this allocator and not used any more.
    ///
    /// # Errors
    /// The defect that was reported.
    #[inline]
    pub unsafe fn cache_push(
        &self,
        m: &M,
        pages: &PageAllocator<M>,
        cache: CacheId,
        object: *mut u8,
        caller: usize,
    ) -> Result<bool, Defect> {
        let id = cache.get();
        let parts = self.parts(id, object);
        if let Err(defect) = self.belongs(m, id, object) {
            misuse(m, defect, object.addr(), self.name(id));
            return Err(defect);
        }
        let key = self.key.load(Ordering::Relaxed);
        // SAFETY: the object is one of the cache, so the mark is the allocator's or, while it is in use, the user's
        // second word.
        if unsafe { parts.mark().read() } == key && self.is_free(m, pages, id, object) {
            self.report(m, Defect::DoubleFree, &parts, "", None);
            return Err(Defect::DoubleFree);
        }
        if parts.flags().any(SlabFlags::CHECKED) {
            self.check_in(m, &parts, caller);
        }
        // SAFETY: rows hold valid sheaves; the object is of this cache and the caller gives it up.
        unsafe {
            parts.mark().write(key);
            Ok(m.push(id, object))
        }
    }

    /// [`Slab::cache_push`], and the slow path where that is needed.
    ///
    /// # Safety
    /// As for [`Slab::cache_push`].
    ///
    /// # Errors
    /// As for [`Slab::cache_push`].
    pub unsafe fn cache_free(
        &self,
        m: &M,
        pages: &PageAllocator<M>,
        cache: CacheId,
        object: *mut u8,
        gfp: Gfp,
    ) -> Result<(), Defect> {
        // SAFETY: the caller's condition.
        unsafe {
            if !self.cache_push(m, pages, cache, object, 0)? {
                self.free_slow(m, pages, cache.get(), object, gfp);
            }
        }
        Ok(())
    }

    /// Shows every object of a created cache that is in use, by walking all memory: for reports. The sheaves were
    /// emptied.
    pub fn for_each_live(&self, m: &M, pages: &PageAllocator<M>, cache: CacheId, each: &mut dyn FnMut(*mut u8)) {
        let id = cache.get();
        let layout = self.layout(id);
        pages.for_each_slab(m, u16::from(id), |head| {
            let node = m.page(head).node();
            let slabs = self.node(id, node).locked(m);
            for index in 0..layout.objects {
                let offset = layout.offset(m.page(head).colour(), index);
                if slabs.is_free(m, layout, head, offset) == Ok(false) {
                    each(m.virt(head).wrapping_add(offset));
                }
            }
        });
    }

    /// Writes where a live object was allocated, if its cache keeps that.
    pub(super) fn write_origin(&self, id: u8, object: *mut u8, line: &mut Line) {
        self.write_users(line, &self.parts(id, object));
    }

    /// An object for a request that may not fault: only from slabs that were populated, and no sheaf is made for it.
    #[cold]
    pub fn alloc_atomic(&self, m: &M, pages: &PageAllocator<M>, id: u8, gfp: Gfp) -> *mut u8 {
        let cache = self.cache(id);
        if !cache.atomic.load(Ordering::Relaxed) {
            cache.atomic.store(true, Ordering::Relaxed);
        }
        // SAFETY: rows hold valid sheaves.
        let object = unsafe { m.pop_again(id) };
        if !object.is_null() {
            if slab_of(m, object).is_some_and(|(head, _)| Self::is_populated(m, head)) {
                return self.hand_out(m, id, object);
            }
            // SAFETY: it is ours, just popped.
            if !unsafe { m.push_again(id, object) } {
                self.free_one(m, pages, object.expose_provenance(), gfp);
            }
        }
        let object = self.unstash(m, id);
        if !object.is_null() {
            return object;
        }
        let object = self.alloc_direct(m, pages, id, gfp);
        if object.is_null() { self.sheaf_object(m, pages, id, gfp) } else { object }
    }

    /// A populated object of a sheaf that is not this CPU's main one.
    #[cold]
    fn sheaf_object(&self, m: &M, pages: &PageAllocator<M>, id: u8, gfp: Gfp) -> *mut u8 {
        let spare = if m.is_attached() { self.take_spare(m, id, |len, _| len > 0) } else { None };
        let foreign = || if m.is_attached() { self.take_foreign(m, id) } else { None };
        let sheaf = spare.or_else(foreign).or_else(|| self.barn_full(m, pages, id, gfp));
        let Some(mut sheaf) = sheaf else { return core::ptr::null_mut() };
        let object = sheaf.pop().unwrap_or(core::ptr::null_mut());
        self.stow(m, pages, id, sheaf, gfp);
        if object.is_null() || slab_of(m, object).is_some_and(|(head, _)| Self::is_populated(m, head)) {
            return self.hand_out(m, id, object);
        }
        self.free_one(m, pages, object.expose_provenance(), gfp);
        core::ptr::null_mut()
    }

    /// Touches what a request touches of the caches themselves, so that later none faults for it.
    pub fn touch(&self, m: &M) {
        self.ids().for_each(|id| self.touch_cache(m, id));
    }

    /// The same for one.
    pub(super) fn touch_cache(&self, m: &M, id: u8) {
        let cache = self.cache(id);
        cache.slow_allocs.fetch_add(0, Ordering::Relaxed);
        cache.stash.touch();
        for node in self.nodes_of(m, id) {
            drop(node.locked(m));
            drop(node.barn.lock(m));
        }
    }

    /// Whether touching the slab's objects takes no fault.
    pub(super) fn is_populated(m: &M, head: crate::types::Pfn) -> bool {
        !M::LENT || m.page(head).flags() & (flag::POPULATED | flag::RESERVE) != 0
    }

    /// Whether new slabs of cache `id` are populated: somebody asked for its objects atomically.
    pub(super) fn populates(&self, id: u8, gfp: Gfp) -> bool {
        M::LENT && gfp.may_io() && gfp.may_block() && self.cache(id).atomic.load(Ordering::Relaxed)
    }

    /// Where a free object of cache `id` may have a link: behind the mark where there is room, or behind a created
    /// cache's object, whose contents may be kept.
    pub(super) fn link_offset(&self, id: u8) -> usize {
        match id {
            FIRST_CREATED.. => self.cache(id).shape().meta as usize,
            _ if self.layout(id).size as usize > WORD => WORD,
            _ => 0,
        }
    }
}

impl SlabLayout {
    /// The layout of a created cache's objects.
    pub(super) fn created(size: usize, align: usize, flags: SlabFlags, ctor: bool) -> Option<(SlabLayout, usize)> {
        let (meta, end) = words_behind(size, flags, ctor);
        let front = words_before(align.max(WORD), flags);
        let mut layout = SlabLayout::compute(size, align, front + end - size, flags.has(SlabFlags::OFF_SLAB), 256)?;
        layout.first += front as u32;
        Some((layout, meta))
    }
}
