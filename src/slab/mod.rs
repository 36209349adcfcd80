//! Slab caches: small objects.
//!
//! An allocation pops from the current CPU's *main* sheaf ([`crate::machine::PerCpu::pop`]), a free pushes there: no
//! lock, no atomic, no system call. What happens when that sheaf is empty or full (`exchange`; `transfer` has the way
//! to slabs and back, `flush` what goes back in time):
//!
//! ```text
//! empty: spare sheaf -> barn's full sheaf -> refill from partial slabs -> kept empty slab -> new slab from the buddy
//! full:  spare sheaf -> barn's empty sheaf -> new sheaf; the full one becomes the spare, goes to the barn, or is
//!        flushed, and those of the barn with it
//! (a short sheaf and the spare are not exchanged, but half of one moved to the other; with no sheaf yet the first four
//! requests of a size class and their frees go to slabs and back)
//! ```
//!
//! (Small objects that share cache lines with those of other CPUs go a way of their own: `foreign`.)
//!
//! While it exchanges sheaves a thread owns them privately; rows change only by [`crate::machine::PerCpu::replace`],
//! which happens on one CPU or not at all, so being migrated in between costs at most a sheaf in the wrong CPU's barn.
//!
//! Lock order, outer to inner: registry > (barn | room > list lock, barn never with either) > page allocator. Under a
//! drained row, inner locks are only tried. No system call and no constructor under any of them. Rooms (`window`) are
//! only tried, ever, and the process's, not the instance's: a `fork` does not take them, and the child frees them.
//!
//! Techniques: J. Bonwick, *The Slab Allocator* (1994) and *Magazines and Vmem* (2001); Linux `mm/slab.c` (colours),
//! `mm/slub.c` (partial lists, sheaves and barn of 6.18).
#![allow(unsafe_code)]

pub mod barn;
mod cache;
pub mod classes;
mod create;
mod exchange;
mod flush;
mod foreign;
pub mod layout;
mod mark;
mod node;
mod object;
mod report;
pub mod runs;
pub mod sheaf;
pub mod slob;
mod tag;
#[cfg(test)]
mod tests;
mod transfer;
mod window;

use core::marker::PhantomData;
use core::ptr;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering};

pub use cache::{Cache, CacheNode, Constructor, FIRST_CREATED, RUN_SHEAF_CACHE, SHEAF_CACHE, SlabFlags};
use cache::{Far, State};
use classes::NR_CLASSES;
pub use create::CacheId;
use layout::SlabLayout;
pub use mark::{clear_mark, mark_of};
use node::slab_of;
pub use report::{CacheStats, SlabStats};
pub use runs::run_of_tag;
use sheaf::Sheaf;
pub use tag::{class_of_tag, is_dense, limit, place, starts_object};

use crate::error::Defect;
use crate::gfp::Gfp;
use crate::machine::{MAX_CACHES, Machine, Word, no_sheaf};
use crate::page::Page;
use crate::sync::{Deferred, Fork, Hands, Lock};
use crate::zone::PageAllocator;

/// Attempts at the rows before a request goes past them.
const TRIES: usize = 3;
/// Of a class of which none was wanted for so many milliseconds more goes back than empty slabs.
const COLD_MS: usize = 500;

/// All caches of an instance. In this order: what every program uses comes first.
#[repr(C)]
pub struct Slab<M> {
    /// Objects freed where a lock was not to be had, linked through their own memory; freed by the next who may block.
    deferred: Deferred,
    /// Empty slabs that could not be given back for the same reason, linked through their first words.
    orphans: Deferred,
    /// What the mark of a free object says.
    key: AtomicUsize,
    /// The highest id that a cache was created with so far; 0 where none was. Those above are not looked at: their
    /// memory was never touched.
    highest: AtomicU8,
    /// Pages of fresh memory begun since it was last time for [`Slab::gather`].
    opened: AtomicU32,
    /// Pages begun since objects were gathered, too, where there are threads.
    opened_objects: AtomicU32,
    /// Pages that the sheaves of page runs have room for, as many as were made since they were last emptied.
    kept: AtomicU32,
    /// The value of `kept` when little was in them at the last look; 0 where there was more.
    calm: AtomicU32,
    /// Those who empty sheaves of others, as what they took is nowhere to be found, or look at caches that are not
    /// theirs: neither is gone before they are done.
    hands: Hands,
    /// Serialises making and destroying caches.
    registry: Lock<()>,
    caches: [Cache; MAX_CACHES],
    far: Far,
    machine: PhantomData<fn(&M)>,
}

impl<M: Machine> Slab<M> {
    /// The size classes, empty. Nothing else needs to be prepared: their shapes are compile-time constants.
    pub const fn new() -> Slab<M> {
        Slab {
            caches: [const { Cache::new() }; MAX_CACHES],
            deferred: Deferred::new(),
            orphans: Deferred::new(),
            key: AtomicUsize::new(0),
            highest: AtomicU8::new(0),
            opened: AtomicU32::new(0),
            opened_objects: AtomicU32::new(0),
            kept: AtomicU32::new(0),
            calm: AtomicU32::new(0),
            hands: Hands::new(),
            registry: Lock::new(()),
            far: Far::new(),
            machine: PhantomData,
        }
    }

    #[inline]
    fn cache(&self, id: u8) -> &Cache {
        &self.caches[id as usize]
    }

    fn layout(&self, id: u8) -> &SlabLayout {
        cache::layout(&self.caches, id)
    }

    /// Name of a live cache.
    pub fn name(&self, id: u8) -> &str {
        cache::name(&self.caches, id)
    }

    /// Bytes that may be used of an object of cache `id`.
    pub fn object_size(&self, id: u8) -> usize {
        if id as usize <= NR_CLASSES { classes::class_size(id as usize) } else { self.layout(id).object_size as usize }
    }

    /// [`Slab::drain_deferred`] by who is counted in for it.
    fn free_deferred(&self, m: &M, pages: &PageAllocator<M>) {
        let mut slab = self.orphans.take();
        while slab != 0 {
            let link: *const usize = ptr::with_exposed_provenance(slab);
            // SAFETY: `free_slab` wrote the link, and the slab was nobody's since.
            let next = unsafe { link.read() };
            if let Some(head) = m.pfn(link.cast()) {
                // SAFETY: `free_slab` could not free it and left it to who takes the list, which is taken whole; its
                // link was read.
                unsafe { pages.free_pages(m, head, m.page(head).order(), true) };
            }
            slab = next;
        }
        let mut object = self.deferred.take();
        while object != 0 {
            let id = slab_of(m, ptr::with_exposed_provenance(object)).map_or(0, |(head, _)| m.page(head).cache() as u8);
            let next = self.link(id, object);
            self.free_one(m, pages, object, Gfp::KERNEL);
            object = next;
        }
    }

    /// The cache of the object at `address`, which lies in a page of kind slab; checks that an object starts there and
    /// is not free in its slab (it may still lie in a sheaf).
    ///
    /// # Errors
    /// [`Defect::Foreign`], [`Defect::Interior`], [`Defect::DoubleFree`].
    pub fn cache_of(&self, m: &M, address: *const u8, may_block: bool) -> Result<u8, Defect> {
        let (head, offset) = slab_of(m, address).ok_or(Defect::Foreign)?;
        let (id, node) = (m.page(head).cache() as u8, m.page(head).node());
        let layout = self.layout(id);
        let Some(slabs) = self.node(id, node).list(m, may_block) else {
            return layout.index(m.page(head).colour(), offset).map(|_| id).ok_or(Defect::Interior);
        };
        if slabs.is_free(m, layout, head, offset)? { Err(Defect::DoubleFree) } else { Ok(id) }
    }

    /// Whether an object starts at `address`; a look at descriptors that do not change while the object is out.
    pub fn starts_object(&self, m: &M, address: *const u8) -> bool {
        self.place_of(m, address).is_some()
    }

    /// Whether its slab counts the object at `address` as never handed out: what was freed, and went back to the system
    /// since.
    pub fn is_fresh(&self, m: &M, address: *const u8) -> bool {
        self.place_of(m, address).is_some_and(|(head, index)| index >= head.mapcount() as u32)
    }

    /// The descriptor of the slab that the object at `address` lies in, and which of its objects that is.
    fn place_of<'a>(&self, m: &'a M, address: *const u8) -> Option<(&'a Page, u32)> {
        let (head, offset) = slab_of(m, address)?;
        let page = m.page(head);
        Some((page, self.layout(page.cache() as u8).index(page.colour(), offset)?))
    }

    /// [`Slab::flush_where`] by who is counted in for it.
    fn empty_sheaves(&self, m: &M, pages: &PageAllocator<M>, until: u64, wanted: impl Fn(u8) -> bool) -> bool {
        let mut through = true;
        if !self.deferred.is_empty() || !self.orphans.is_empty() {
            self.free_deferred(m, pages);
        }
        for cpu in 0..m.rows_end() {
            if until != u64::MAX && m.now_ms() > until {
                through = false;
                break;
            }
            // Chunks keep the taken words on a small stack; a row is taken back as often as needed.
            let mut from = 1usize;
            while from < MAX_CACHES {
                let mut taken = [(0u8, 0usize); 64];
                let mut n = 0;
                let start = from;
                through &= m.drain_row(cpu, &mut |row| {
                    n = 0;
                    from = start;
                    while from < MAX_CACHES && n + Word::OF_CACHE <= taken.len() {
                        let id = from as u8;
                        from += 1;
                        if !wanted(id) {
                            continue;
                        }
                        for word in Word::all(id) {
                            let word = core::mem::replace(&mut row[word.index()], no_sheaf());
                            if word != no_sheaf() {
                                taken[n] = (id, word);
                                n += 1;
                            }
                        }
                    }
                });
                if from == start {
                    break;
                }
                for (id, word) in taken[..n].iter().copied() {
                    // SAFETY: it was taken out of the drained row.
                    if let Some(sheaf) = unsafe { Sheaf::from_word(word, self.capacity(id)) } {
                        self.dissolve(m, pages, sheaf, Gfp::KERNEL);
                    }
                }
            }
        }
        for id in self.ids().filter(|id| wanted(*id)) {
            self.drain_stash(m, pages, id);
            for node in self.nodes_of(m, id) {
                loop {
                    let mut barn = node.barn.lock(m);
                    let Some(sheaf) = barn.take_full(self.capacity(id)).or_else(|| barn.take_empty(self.capacity(id)))
                    else {
                        break;
                    };
                    drop(barn);
                    self.dissolve(m, pages, sheaf, Gfp::KERNEL);
                }
            }
        }
        through
    }

    /// Ids of the caches in use: the boot-static ones, and the live ones among those made later. To look at their
    /// shapes takes that the caller is counted in before ([`Hands::begin`]), or the registry.
    fn ids(&self) -> impl Iterator<Item = u8> {
        self.ids_in(|state| state == State::Live)
    }

    fn ids_in(&self, wanted: impl Fn(State) -> bool) -> impl Iterator<Item = u8> {
        // Relaxed: who has objects of a cache got them from who made it.
        let created = FIRST_CREATED..=self.highest.load(Ordering::Relaxed);
        (1..FIRST_CREATED).chain(created.filter(move |id| wanted(self.cache(*id).state())))
    }

    /// Node `node`'s part of cache `id`.
    fn node(&self, id: u8, node: usize) -> &CacheNode {
        if node == 0 { &self.cache(id).home } else { self.far.node(id, node) }
    }

    /// The parts of cache `id` of the nodes in use.
    fn nodes_of(&self, m: &M, id: u8) -> impl Iterator<Item = &CacheNode> {
        (0..m.nr_nodes()).map(move |node| self.node(id, node))
    }

    /// The used nodes of the caches in use, and of those that end, as somebody may still be at them. Others are not
    /// even looked at: their memory was never touched.
    fn nodes<'a>(&'a self, m: &'a M) -> impl Iterator<Item = &'a CacheNode> {
        self.ids_in(|state| state != State::Vacant).flat_map(|id| self.nodes_of(m, id))
    }

    /// In a child, whose only thread the caller is, with no sheaves in hand: what others had is lost, and not waited
    /// for.
    pub fn begin_child(&self) {
        self.hands.forget();
        if M::LENT {
            window::begin_child();
        }
    }

    /// Whether any lock is held.
    pub fn any_lock_held(&self, m: &M) -> bool {
        self.registry.is_held() || self.nodes(m).any(|node| node.barn.is_held() || node.slabs.is_held())
    }

    /// Takes every lock for `fork`: see [`Lock::lock_for_fork`].
    #[must_use]
    pub fn lock_all(&self, m: &M, fork: Fork) -> bool {
        self.registry.lock_for_fork(m, fork)
            && self.nodes(m).all(|node| node.barn.lock_for_fork(m, fork) && node.slabs.lock_for_fork(m, fork))
    }

    /// Gives back every lock.
    ///
    /// # Safety
    /// The caller (or the process it is the fork of) took them by [`Slab::lock_all`].
    pub unsafe fn unlock_all(&self, m: &M, fork: Fork) {
        // All, as one may have ended since.
        for node in self.ids_in(|_| true).flat_map(|id| self.nodes_of(m, id)) {
            // SAFETY: the caller's condition.
            unsafe {
                node.barn.unlock_after_fork(m, fork);
                node.slabs.unlock_after_fork(m, fork);
            }
        }
        // SAFETY: the caller's condition.
        unsafe { self.registry.unlock_after_fork(m, fork) };
    }
}

impl<M: Machine> Default for Slab<M> {
    fn default() -> Slab<M> {
        Slab::new()
    }
}
