//! Marks: what a free object of a size class has in its first word, in sheaves and in its slab, if it was ever handed
//! out.
//!
//! A free writes the mark; a malloc compares it, clears it, and hands the object out. A refill of a sheaf marks what
//! was never handed out, and leaves the others as they are. Of an object that was freed twice there are two copies
//! about, in sheaves or one in its slab: the first that is handed out has the mark, the second has not, is reported and
//! set aside. So no object has two owners, and one that was written to while it was free is found as well; but not
//! where two CPUs take the two copies in the same instant, nor what is named below, nor where the memory went back to
//! the system between the two frees and the second one was a fast one.
//!
//! A free does not *read* the mark, but a slow one does: an object that is freed was often last used long ago, and a
//! load that misses the caches holds up the retirement of all that follows, which a store does not. Measured (2 CPUs,
//! preloaded, time of the user's code, medians, with such a load in `free` / without / mimalloc 2): 100 000 objects
//! replaced at random 0.13 / 0.065 / 0.05 s, a million 0.48 / 0.33 / 0.25 s.
//!
//! A `malloc` that reads the mark of what it hands out waits, too, if that was freed a moment ago and lay in no cache:
//! the processor does not answer the load from the buffered store, but when the line has come. So where there is one
//! thread only, it compares the mark of the object *below* instead, whose line came long ago. What a free puts on top
//! it has marked itself; whatever a slow path hands out may have a copy on top, which is compared then
//! ([`Slab::hand_out`]). Measured (paired rounds of allocators in one process: the time where what is handed out is
//! compared; in relation to it this one's, and snmalloc's): 100 000 live objects of 16 to 64 bytes 40 ns, 0.79, 0.67; a
//! million 81 ns, 0.82, 0.9; 100 000 of all sizes 63 ns, 0.91, 1.0; pairs the same. What that lets pass: one thread
//! frees an object on two CPUs, none of which sees another free or request of the class before each hands it out; and a
//! write to the object on top. With two threads the former is how most second frees come about, so there what is handed
//! out is compared itself. (The C library tells whether there are several,
//! [`sees_threads`](crate::machine::PerCpu::sees_threads): it asks for zeroed memory for a new one. Where it asks
//! another allocator, as in a Rust program, the next slow path sees it.)
//!
//! Rejected: the same with several threads; no comparison at all (as fast); the newest object kept back until the next
//! free, which would do for several threads (13 to 17 % of a pair for the second section, or the commit of two words at
//! once that it takes); two sheaves in turn, one to pop from and one to push to (a fifth less there, a quarter more for
//! pairs); prefetching the next object (nothing); a prefetch for writing at the start of `free` (nothing). A map of who
//! is free, outside the objects, needs a byte for each (two CPUs change neighbouring bits at once), which is up to a
//! sixteenth of the memory.
//!
//! So a second free is reported when it happens only where it comes right after the first one (of the class, on the
//! CPU), where the free is a slow one (without restartable sequences every free is), or where the first one has reached
//! the slab by then. Otherwise it is reported when the object would be handed out for the second time, when its sheaf
//! goes back to the slabs, or at exit.

use core::ptr;
use core::sync::atomic::Ordering::Relaxed;

use super::Slab;
use super::classes::{NR_CLASSES, class_size};
use super::node::slab_of;
use super::sheaf::{self, Sheaf};
use super::tag::limit;
use crate::error::Defect;
use crate::gfp::Gfp;
use crate::machine::{Machine, Word, misuse, no_sheaf};
use crate::zone::PageAllocator;

/// The word of a free object that holds the mark: the first. A program that writes there after the free fares no better
/// with allocators that keep the link to the next free object there.
#[inline(always)]
pub fn mark_of(object: *mut u8) -> *mut usize {
    object.cast()
}

/// Clears the word that would mark an object as free.
///
/// # Safety
/// The object is of a size class, and the caller's.
#[inline(always)]
pub unsafe fn clear_mark(object: *mut u8) {
    // SAFETY: objects are aligned to a word, and one long or longer.
    unsafe { mark_of(object).write(0) };
}

/// Bytes of the smallest object.
const _: () = assert!(class_size(1) >= size_of::<usize>());

impl<M: Machine> Slab<M> {
    /// What marks a free object.
    #[inline(always)]
    pub fn key(&self) -> usize {
        self.key.load(Relaxed)
    }

    /// Pops an object of size class `id`, its mark cleared; null where the slow path has to be asked.
    #[inline(always)]
    pub fn pop(&self, m: &M, id: u8) -> *mut u8 {
        // SAFETY: rows hold valid sheaves; the object is then the caller's.
        unsafe {
            let object = m.pop_marked(id, self.key());
            if !object.is_null() {
                clear_mark(object);
            }
            object
        }
    }

    /// [`Slab::pop`] for slow paths.
    pub fn pop_again(&self, m: &M, id: u8) -> *mut u8 {
        // SAFETY: rows hold valid sheaves.
        self.hand_out(m, id, unsafe { m.pop_again(id) })
    }

    /// Clears the mark of an object that a slow path took for its caller, as [`Slab::unmark`], and compares that of
    /// what lies on the main sheaf then: it may be the same object, and no pop will do it.
    pub(super) fn hand_out(&self, m: &M, id: u8, object: *mut u8) -> *mut u8 {
        let handed = self.unmark(m, id, object);
        if !object.is_null() {
            self.look_at_top(m, id);
        }
        handed
    }

    /// Compares the marks of the two topmost objects of the main sheaf, where a slow path pushed one.
    pub fn look_at_pushed(&self, m: &M, id: u8) {
        if m.looks_below() {
            let object = self.pop_again(m, id);
            self.put_on_top(m, id, object);
        }
    }

    fn look_at_top(&self, m: &M, id: u8) {
        if id as usize > NR_CLASSES || !m.looks_below() {
            return;
        }
        loop {
            // SAFETY: rows hold valid sheaves.
            let object = unsafe { m.pop_again(id) };
            if object.is_null() {
                return;
            }
            let object = self.unmark(m, id, object);
            if !object.is_null() {
                return self.put_on_top(m, id, object);
            }
        }
    }

    /// Puts back what was popped for a look.
    fn put_on_top(&self, m: &M, id: u8, object: *mut u8) {
        // SAFETY: of the class, and nobody's.
        if !object.is_null() && !unsafe { self.push_again(m, id, object) } {
            self.defer(id, object.expose_provenance());
        }
    }

    /// Pushes an object of size class `id`, marked; false, and nothing done, where the slow path has to be asked.
    ///
    /// # Safety
    /// `object` is of that class, or of a larger one, and given up by the caller.
    #[inline(always)]
    pub unsafe fn push(&self, m: &M, id: u8, object: *mut u8) -> bool {
        // SAFETY: rows hold valid sheaves; the rest is the caller's condition.
        unsafe { m.push_marked(id, object, self.key()) }
    }

    /// [`Slab::push`] of what lies at `place` (`tag::place`) of a page of `tag`, if an object starts there, and is no
    /// foreign one.
    ///
    /// # Safety
    /// As for [`Slab::push`], if it is one.
    #[inline(always)]
    pub unsafe fn push_tagged(&self, m: &M, tag: u8, place: u32, object: *mut u8) -> bool {
        // SAFETY: rows hold valid sheaves; the rest is the caller's condition.
        unsafe { m.push_tagged(tag, place, object, self.key(), limit) }
    }

    /// [`Slab::push`] for slow paths.
    ///
    /// # Safety
    /// As for [`Slab::push`].
    pub unsafe fn push_again(&self, m: &M, id: u8, object: *mut u8) -> bool {
        self.mark_all(id, &[object.expose_provenance()]);
        // SAFETY: as in `push`.
        unsafe { m.push_again(id, object) }
    }

    /// Clears the mark of an object that was popped from a sheaf of cache `id`, if that is a size class. Where it has
    /// none, that is reported, and the answer is null: the object is nobody's from then on.
    pub(super) fn unmark(&self, m: &M, id: u8, object: *mut u8) -> *mut u8 {
        if object.is_null() || id as usize > NR_CLASSES {
            return object;
        }
        if self.is_marked(id, object.addr()) {
            // SAFETY: an object of the class, just taken out of a sheaf.
            unsafe { clear_mark(object) };
            return object;
        }
        self.set_aside(m, id, object.addr());
        ptr::null_mut()
    }

    /// A free object has no mark: it stays out for good, and that is reported. Not where it reads zero in the child of
    /// a fork: there the program may have had the page wiped (`MADV_WIPEONFORK`), before it gave back what it had on
    /// it.
    #[cold]
    fn set_aside(&self, m: &M, id: u8, object: usize) {
        // SAFETY: the object is nobody's.
        let word = unsafe { mark_of(ptr::with_exposed_provenance_mut(object)).read() };
        if word != 0 || !m.is_copy() {
            misuse(m, Defect::NotFree, object, self.name(id));
        }
    }

    /// Whether a free object of cache `id` has the mark. Only those of size classes have one here.
    pub(super) fn is_marked(&self, id: u8, object: usize) -> bool {
        // SAFETY: the object is free, which its caller sees to, so it is the allocator's to read.
        id as usize > NR_CLASSES || unsafe { mark_of(ptr::with_exposed_provenance_mut(object)).read() } == self.key()
    }

    /// Marks free objects of cache `id`, if that is a size class.
    pub(super) fn mark_all(&self, id: u8, objects: &[usize]) {
        if id as usize <= NR_CLASSES {
            let key = self.key();
            for object in objects {
                // SAFETY: nobody's objects but the caller's.
                unsafe { mark_of(ptr::with_exposed_provenance_mut(*object)).write(key) };
            }
        }
    }

    /// The same for an object of whatever cache.
    pub(super) fn mark_one(&self, m: &M, object: usize) {
        if let Some((head, _)) = slab_of(m, ptr::with_exposed_provenance(object)) {
            self.mark_all(m.page(head).cache() as u8, &[object]);
        }
    }

    /// An object that lies twice in the sheaves of this CPU where frees go, and its class. Needs no system call, which
    /// a program may have forbidden itself by the time it ends; so those of other CPUs are not looked at.
    pub fn freed_twice(&self, m: &M, pages: &PageAllocator<M>) -> Option<(u8, usize)> {
        if !m.is_attached() {
            return None;
        }
        (1..=NR_CLASSES as u8).find_map(|id| {
            let mut words = Word::all(id).filter(|which| *which != Word::Spare(id));
            let words = [words.next(), words.next()];
            let own = words.map(|which| self.take_sheaf(m, id, which?, |len, _| len > 0));
            let objects = |own: &Option<Sheaf>| match own {
                // SAFETY: our own sheaf.
                Some(own) => unsafe { sheaf::objects(own.word(), own.capacity()) },
                None => &[],
            };
            let again = twice(own.each_ref().map(objects));
            for (which, own) in words.into_iter().zip(own) {
                if let (Some(which), Some(own)) = (which, own) {
                    self.put_in_row(m, which, no_sheaf(), own, |lost| self.store(m, pages, id, lost, Gfp::ATOMIC));
                }
            }
            again.map(|object| (id, object))
        })
    }
}

/// An object that is in `lists` twice. Each is compared only with those before it if a small filter knows its like.
fn twice(lists: [&[usize]; 2]) -> Option<usize> {
    let objects = || lists.into_iter().flatten();
    let mut seen = [0u64; 64];
    let again = |(i, object): &(usize, &usize)| {
        let hash = (**object as u64 >> 3).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52;
        let (word, bit) = (hash as usize / 64, 1 << (hash % 64));
        let known = seen[word] & bit != 0;
        seen[word] |= bit;
        known && objects().take(*i).any(|before| before == *object)
    };
    objects().enumerate().find(again).map(|(_, object)| *object)
}
