//! Objects of which several share a cache line, and the CPUs they are for.
//!
//! Two CPUs that write to one cache line wait for each other, up to a hundred times as long as for a line of their own.
//! So a slab of a *dense* class (up to 48 bytes) has an owner: the CPU for which a refill took objects from it last,
//! kept in its page's tag. A refill takes from the CPU's own slabs first, then from empty ones, then from a new one,
//! and from others' only where there is more free than a slab for each owner. What is freed on another CPU than its
//! slab's owner is *foreign*: it is not handed out there next, beside what the owner hands out, but goes into a third
//! sheaf of the CPU, and that, when it is full, to the barn.
//!
//! So threads that each write to small blocks of their own, and are moved from CPU to CPU, do not come to share lines
//! for good, nor does who frees what another thread made. The slabs of a sheaf that comes from the barn become the
//! CPU's, so that what moved for good is not foreign for ever; in a program of one thread that of an object does when
//! it is freed.
//!
//! The check is that for the start of an object ([`super::tag`]), whose limits each CPU has in its row: `free` takes no
//! instruction more for it. (In front of the section, with the number of the CPU, it was five, and a pair of 64 bytes 7
//! % longer.) Four threads that write to blocks of their own (`sharing-active`, `sharing-passive`) took 0.2 to 0.9 s
//! before, and take 0.09 s since, as with those who give a block back to its owner.
//!
//! Not kept apart: larger objects that are no multiple of a line, which share one with a neighbour at most; what a
//! refill left to this CPU of a slab that is another one's since, a line or two; and more than a sheaf of foreign
//! objects, which comes back by the barn to whoever asks.
#![allow(unsafe_code)]

use core::ptr::{null_mut, with_exposed_provenance};
use core::sync::atomic::Ordering::Relaxed;

use super::Slab;
use super::node::Owner;
use super::sheaf::{self, Sheaf};
use super::tag::{class_of_tag, is_dense, is_foreign, tag};
use crate::gfp::Gfp;
use crate::machine::{Machine, OWNERS, Word, no_sheaf, owner};
use crate::zone::PageAllocator;

/// Of so many objects of a sheaf one has its slab looked at: as they were freed together, those beside it may well be
/// of the same.
const ADOPTS: usize = 8;

impl<M: Machine> Slab<M> {
    /// For whom objects of cache `id` are taken now; `None` where that does not matter.
    pub(super) fn owner(&self, m: &M, id: u8) -> Option<Owner> {
        is_dense(id).then(|| {
            // A single thread shares lines with nobody.
            let apart = if m.looks_below() { 0 } else { m.known_cpus().min(OWNERS) as u32 };
            let owner = owner(m.cpu_guess());
            Owner { tag: tag(id, owner), slabs_apart: apart }
        })
    }

    /// Frees an object that is foreign; false, and nothing done, where it is not, or the slow path has to be asked.
    ///
    /// # Safety
    /// As for [`Slab::push`].
    #[inline]
    pub unsafe fn push_foreign(&self, m: &M, tag: u8, object: *mut u8) -> bool {
        // SAFETY: rows hold valid sheaves; the rest is the caller's condition.
        is_foreign(tag, m.cpu_guess())
            && !m.looks_below()
            && unsafe { m.push_marked(Word::Foreign(class_of_tag(tag)).as_cache(), object, self.key()) }
    }

    /// [`Slab::push_tagged`] for slow paths, of an object that [`Slab::push_foreign`] did not take.
    ///
    /// # Safety
    /// As for [`Slab::push`].
    pub unsafe fn push_slow(&self, m: &M, tag: u8, object: *mut u8) -> bool {
        let id = class_of_tag(tag);
        // SAFETY: rows hold valid sheaves; the rest is the caller's condition.
        unsafe {
            if is_foreign(tag, m.cpu_guess()) {
                if !m.looks_below() {
                    return false;
                }
                self.adopt(m, id, object);
            }
            let pushed = self.push_again(m, id, object);
            if pushed {
                self.look_at_pushed(m, id);
            }
            pushed
        }
    }

    /// Makes the slab of an object of size class `id` this CPU's.
    fn adopt(&self, m: &M, id: u8, object: *const u8) {
        let Some(pfn) = m.pfn(object) else { return };
        let (class, own) = (m.class(pfn), tag(id, owner(m.cpu_guess())));
        let old = class.load(Relaxed);
        // Of an object that was freed twice the slab may have gone back, and the page be another one's.
        if class_of_tag(old) == id && old != own {
            // Somebody else's change is as good.
            let _ = class.compare_exchange(old, own, Relaxed, Relaxed);
        }
    }

    /// For a sheaf of cache `id` that another CPU may have filled: its objects lie in that CPU's cache, and `malloc`,
    /// which compares marks, would wait for one line after the other; fetched together they take less.
    /// (`producer-consumer`, with a thread on each of two CPUs: 190 in place of 318 ms, jemalloc 223; the last 64 alone
    /// 293, the last 128 265; `asymmetric` 22 in place of 26 ms, but 160 to 170 in place of 150 to 160 where each block
    /// is waited for, once in thirty runs. On one CPU, and where sheaves come back to their CPU, it makes no
    /// difference.)
    pub(super) fn receive(&self, m: &M, id: u8, sheaf: &Sheaf) {
        if !m.looks_below() {
            // SAFETY: the sheaf is the caller's.
            let objects = unsafe { sheaf::objects(sheaf.word(), sheaf.capacity()) };
            objects.iter().rev().for_each(|object| m.prefetch(*object));
        }
        self.adopt_all(m, id, sheaf);
    }

    /// Makes the slabs of a sheaf of cache `id` this CPU's, where they have owners. That of one thread does so as it
    /// goes.
    pub(super) fn adopt_all(&self, m: &M, id: u8, sheaf: &Sheaf) {
        if is_dense(id) && !m.looks_below() {
            // SAFETY: the sheaf is the caller's.
            let objects = unsafe { sheaf::objects(sheaf.word(), sheaf.capacity()) };
            objects.iter().step_by(ADOPTS).for_each(|object| self.adopt(m, id, with_exposed_provenance(*object)));
        }
    }

    /// Takes the current CPU's foreign sheaf of cache `id` if there is an object in it.
    pub(super) fn take_foreign(&self, m: &M, id: u8) -> Option<Sheaf> {
        if is_dense(id) { self.take_sheaf(m, id, Word::Foreign(id), |len, _| len > 0) } else { None }
    }

    /// An object of the current CPU's foreign sheaf, for a request that cannot be had otherwise; the others are handed
    /// out next.
    #[cold]
    pub(super) fn foreign_object(&self, m: &M, pages: &PageAllocator<M>, id: u8, gfp: Gfp) -> *mut u8 {
        let Some(mut own) = self.take_foreign(m, id) else { return null_mut() };
        self.adopt_all(m, id, &own);
        let object = own.pop().unwrap_or(null_mut());
        self.install(m, pages, id, no_sheaf(), own, gfp);
        self.hand_out(m, id, object)
    }
}
