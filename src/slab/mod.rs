//! Slab caches: small objects.
//!
//! An allocation pops from the current CPU's *main* sheaf ([`crate::machine::PerCpu::pop`]), a free pushes there: no lock, no atomic, no
//! system call. Here is what happens when that sheaf is empty or full:
//!
//! ```text
//! empty: spare sheaf -> barn's full sheaf -> refill from partial slabs -> kept empty slab -> new slab from the buddy
//! full:  spare sheaf -> barn's empty sheaf -> new sheaf; the full one becomes the spare, goes to the barn, or is flushed,
//!        and those of the barn with it
//! (a short sheaf and the spare are not exchanged, but half of one moved to the other)
//! ```
//!
//! (Small objects that share cache lines with those of other CPUs go a way of their own: `foreign`.)
//!
//! While it exchanges sheaves a thread owns them privately; rows change only by [`crate::machine::PerCpu::replace`], which happens on one CPU or
//! not at all, so being migrated in between costs at most a sheaf in the wrong CPU's barn.
//!
//! Lock order, outer to inner: registry > (barn | room > list lock, barn never with either) > page allocator. Under a drained row,
//! inner locks are only tried. No system call and no constructor under any of them. Rooms (`window`) are only tried, ever, and the process's, not the
//! instance's: a `fork` does not take them, and the child frees them.
//!
//! Techniques: J. Bonwick, *The Slab Allocator* (1994) and *Magazines and Vmem* (2001); Linux `mm/slab.c` (colours), `mm/slub.c`
//! (partial lists, sheaves and barn of 6.18).
#![allow(unsafe_code)]

pub mod barn;
mod cache;
pub mod classes;
mod create;
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
mod window;

use core::marker::PhantomData;
use core::ptr;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering};

use barn::TOGETHER;
pub use cache::{Cache, CacheNode, Constructor, FIRST_CREATED, SHEAF_CACHE, SlabFlags};
use cache::{Far, State};
use classes::NR_CLASSES;
pub use create::CacheId;
use layout::{MapPlace, SlabLayout};
pub use mark::{clear_mark, mark_of};
use node::{Fresh, slab_of};
pub use report::{CacheStats, SlabStats};
pub use runs::run_of_tag;
use sheaf::Sheaf;
use tag::is_foreign;
pub use tag::{LIMITS, class_of_tag, is_dense, place, starts_object};

use crate::error::Defect;
use crate::gfp::Gfp;
use crate::machine::{MAX_CACHES, Machine, Word, misuse, no_sheaf};
use crate::page::{Kind, Page, PageList, flag};
use crate::sync::{Deferred, Fork, Lock};
use crate::types::{Order, PAGE_SIZE, Pfn, PfnRange};
use crate::zone::PageAllocator;

/// Capacity of sheaves that are halved rather than exchanged.
const SHORT: u16 = 32;
/// Attempts at the rows before a request goes past them.
const TRIES: usize = 3;
/// Of a class of which none was wanted for so many milliseconds more goes back than empty slabs.
const COLD_MS: usize = 500;
/// Objects of a cache's first refill, and their bytes.
const FIRST_REFILL: u16 = 8;
const FIRST_REFILL_BYTES: u32 = 4096;
/// Two refills are in quick succession where so many milliseconds lie between them.
const QUICK_MS: usize = 10;
/// Where fewer objects than this in a row are of one slab, what will be looked at of the slab of one that comes so many later is fetched.
const SHORT_RUN: usize = 4;
const AHEAD: usize = 8;
/// How often who has to know of every object waits for others to put down what they took out of sheaves.
const FLUSH_TRIES: u32 = 10_000;
/// So many full sheaves hold the objects of a cache that has few.
const FEW_SHEAVES: usize = 8;

/// Sheaves are gathered once so much of all memory was begun, and so many pages for each CPU, whose row takes microseconds to empty.
const GATHER_PART: u64 = 64;
const GATHER_CPU: u64 = 64;
/// Milliseconds that the request which does it may be held up.
const GATHER_MS: u64 = 4;

/// All caches of an instance. In this order: what every program uses comes first.
#[repr(C)]
pub struct Slab<M> {
    /// Objects freed where a lock was not to be had, linked through their own memory; freed by the next who may block.
    deferred: Deferred,
    /// Empty slabs that could not be given back for the same reason, linked through their first words.
    orphans: Deferred,
    /// What the mark of a free object says.
    key: AtomicUsize,
    /// The highest id that a cache was created with so far; 0 where none was. Those above are not looked at: their memory was never touched.
    highest: AtomicU8,
    /// Pages of fresh memory begun since [`Slab::gather`] did something.
    opened: AtomicU32,
    /// Pages that the sheaves of page runs have room for, as many as were made since they were last emptied.
    kept: AtomicU32,
    /// The value of `kept` when little was in them at the end of a window of time; 0 where there was more.
    calm: AtomicU32,
    /// How often somebody began to empty sheaves of others, and was done with it: what is in between is nowhere to be found.
    flushes: [AtomicU32; 2],
    /// Serialises making and destroying caches.
    registry: Lock<()>,
    caches: [Cache; MAX_CACHES],
    far: Far,
    machine: PhantomData<fn(&M)>,
}

/// Lasts as long as somebody has sheaves of others in hand.
struct InHand<'a>(&'a [AtomicU32; 2]);

impl<'a> InHand<'a> {
    fn new(flushes: &'a [AtomicU32; 2]) -> InHand<'a> {
        flushes[0].fetch_add(1, Ordering::AcqRel);
        InHand(flushes)
    }
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        // Release, pairs with the Acquire in `destroy`: what was taken is where it belongs.
        self.0[1].fetch_add(1, Ordering::AcqRel);
    }
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
            kept: AtomicU32::new(0),
            calm: AtomicU32::new(0),
            flushes: [const { AtomicU32::new(0) }; 2],
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

    /// An object of cache `id` when the current CPU's main sheaf had none. Null where there is no memory.
    #[cold]
    #[inline(never)]
    pub fn alloc_slow(&self, m: &M, pages: &PageAllocator<M>, id: u8, gfp: Gfp) -> *mut u8 {
        self.cache(id).slow_allocs.fetch_add(1, Ordering::Relaxed);
        if gfp.may_block() {
            self.drain_deferred(m, pages);
        }
        for _ in 0..TRIES {
            let object = self.pop_again(m, id);
            if !object.is_null() {
                return object;
            }
            let Some(main) = m.read(Word::Main(id)) else { break };
            // SAFETY: `main` was in a row.
            if unsafe { sheaf::len(main, self.capacity(id)) } > 0 {
                continue;
            }
            let spare = self.take_spare(m, id, |len, _| len > 0);
            let short = spare.as_ref().and_then(|_| self.take_short(m, id, main));
            let stored = || self.barn_full(m, pages, id, gfp).inspect(|sheaf| self.adopt_all(m, id, sheaf));
            if let Some(mut own) = spare.or_else(stored) {
                let object = if let Some(mut empty) = short {
                    own.move_top(own.len().div_ceil(2), &mut empty);
                    let object = empty.pop();
                    self.install(m, pages, id, no_sheaf(), empty, gfp);
                    self.stow(m, pages, id, own, gfp);
                    object
                } else {
                    let object = own.pop();
                    self.install(m, pages, id, main, own, gfp);
                    object
                };
                let object = object.unwrap_or(ptr::null_mut());
                let object = self.hand_out(m, id, object);
                if !object.is_null() {
                    return object;
                }
                continue;
            }
            let own = if main == no_sheaf() {
                self.empty_sheaf(m, pages, id, gfp)
            // SAFETY: `main` was read from the row; "no sheaf" is always a valid word.
            } else if unsafe { m.replace(Word::Main(id), main, no_sheaf()) } {
                // SAFETY: the successful replace made it ours.
                unsafe { Sheaf::from_word(main, self.capacity(id)) }
            } else {
                continue;
            };
            let Some(mut own) = own else { break };
            let size = self.refill_size(m, pages, id, gfp);
            own.fill(size, |slots| {
                let got = self.take_objects(m, pages, id, slots, gfp, m.node());
                // The first objects of slabs are those of pages, which share a set of the CPU's cache: a cache of which few are wanted begins with
                // another one, which its number says (blocks of 20 sizes, one at a time: 3 % less, and of 314 misses 19).
                if (1..=FIRST_REFILL as usize).contains(&got) {
                    let last = got - 1;
                    slots.swap(last, last - id as usize % got);
                }
                got
            });
            let object = own.pop();
            self.install(m, pages, id, no_sheaf(), own, gfp);
            let Some(object) = object else { return self.foreign_object(m, pages, id, gfp) };
            let object = self.hand_out(m, id, object);
            if !object.is_null() {
                return object;
            }
        }
        self.alloc_direct(m, pages, id, gfp)
    }

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

    /// Frees `object` of cache `id` when the current CPU's main sheaf was full.
    ///
    /// # Safety
    /// `object` is of that cache (or of a larger size class) and the caller gives it up.
    #[cold]
    #[inline(never)]
    pub unsafe fn free_slow(&self, m: &M, pages: &PageAllocator<M>, id: u8, object: *mut u8, gfp: Gfp) {
        self.cache(id).slow_frees.fetch_add(1, Ordering::Relaxed);
        if gfp.may_block() {
            self.drain_deferred(m, pages);
        }
        let foreign = is_dense(id) && is_foreign(m.class_at(object), m.cpu_guess());
        let which = if foreign { Word::Foreign(id) } else { Word::Main(id) };
        for _ in 0..TRIES {
            self.mark_all(id, &[object.expose_provenance()]);
            // SAFETY: the object is the caller's to give.
            if unsafe { m.push_again(which.as_cache(), object) } {
                return;
            }
            if !gfp.may_io() && !m.is_attached() {
                break;
            }
            let Some(old) = m.read(which) else { break };
            if !sheaf::is_full(old) {
                continue;
            }
            let spare = if foreign { None } else { self.take_spare(m, id, |_, full| !full) };
            let short = spare.as_ref().and_then(|_| self.take_short(m, id, old));
            let own = spare.or_else(|| self.empty_sheaf(m, pages, id, gfp));
            let Some(mut own) = own else { break };
            if let Some(mut full) = short {
                full.move_bottom(full.len() / 2, &mut own);
                let pushed = full.push(object).is_ok();
                self.install(m, pages, id, no_sheaf(), full, gfp);
                self.stow(m, pages, id, own, gfp);
                if pushed {
                    return;
                }
                continue;
            }
            if own.push(object).is_err() {
                self.stow(m, pages, id, own, gfp);
                continue;
            }
            self.put_in_row(m, which, old, own, |lost| match which {
                Word::Foreign(_) => self.store(m, pages, id, lost, gfp),
                _ => self.stow(m, pages, id, lost, gfp),
            });
            return;
        }
        self.free_one(m, pages, object.expose_provenance(), gfp);
    }

    /// Frees `object` straight into its slab.
    ///
    /// # Safety
    /// `object` came from [`Slab::alloc_direct`] and the caller gives it up.
    pub unsafe fn free_direct(&self, m: &M, pages: &PageAllocator<M>, object: *mut u8, gfp: Gfp) {
        self.free_one(m, pages, object.expose_provenance(), gfp);
    }

    /// Objects that a sheaf of cache `id` holds, if all hold as many.
    #[inline]
    fn capacity(&self, id: u8) -> u16 {
        if runs::varies(id) { sheaf::VARIES } else { self.layout(id).capacity }
    }

    /// Objects to take for the next refill: few where the last one was long ago, and then none that other CPUs have too many of.
    fn refill_size(&self, m: &M, pages: &PageAllocator<M>, id: u8, gfp: Gfp) -> usize {
        let (cache, layout) = (self.cache(id), self.layout(id));
        let now = m.now_ms() as usize;
        let quick = now.wrapping_sub(cache.refilled_ms.swap(now, Ordering::Relaxed)) < QUICK_MS;
        if !quick && gfp.may_block() && gfp.may_io() {
            self.recall(m, pages, id);
        }
        let first = ((FIRST_REFILL_BYTES / layout.size) as u16).clamp(2, FIRST_REFILL);
        let last = if quick { cache.refill.load(Ordering::Relaxed) } else { 0 };
        let size = last.max(first).min(layout.capacity);
        cache.refill.store(size.saturating_mul(2), Ordering::Relaxed);
        size as usize
    }

    /// Empties all sheaves of a cache that has few objects, and none in its slabs. Objects that are allocated on one CPU and freed on
    /// another would else, in time, fill the sheaves of both.
    fn recall(&self, m: &M, pages: &PageAllocator<M>, id: u8) {
        let (mut objects, mut free) = (0, 0);
        for node in self.nodes_of(m, id) {
            let slabs = node.locked(m);
            objects += slabs.slabs as usize * self.layout(id).objects as usize;
            free += slabs.free as usize;
        }
        if free == 0 && (1..=FEW_SHEAVES * self.capacity(id) as usize).contains(&objects) {
            self.flush(m, pages, Some(id));
        }
    }

    /// Takes the current CPU's main sheaf, if it is still `word` and one of few objects: half of it, or of the spare, is moved then instead of the two
    /// exchanged, which a program whose demand swings about the end of such a sheaf would do again and again (three times in ten with blocks of 8 KiB;
    /// ten live blocks of 4 to 8 KiB take 0.6 of the time, a hundred 0.9).
    fn take_short(&self, m: &M, id: u8, word: usize) -> Option<Sheaf> {
        let short = word != no_sheaf() && self.layout(id).capacity <= SHORT;
        // SAFETY: `word` was read from the row; a successful replace makes the sheaf ours.
        unsafe {
            if short && m.replace(Word::Main(id), word, no_sheaf()) {
                Sheaf::from_word(word, self.capacity(id))
            } else {
                None
            }
        }
    }

    /// Takes the current CPU's spare sheaf if `wanted` likes its length and fullness.
    fn take_spare(&self, m: &M, id: u8, wanted: impl Fn(usize, bool) -> bool) -> Option<Sheaf> {
        self.take_sheaf(m, id, Word::Spare(id), wanted)
    }

    /// Takes the sheaf that is at `which` of cache `id` in the current CPU's row, if `wanted` likes its length and fullness.
    fn take_sheaf(&self, m: &M, id: u8, which: Word, wanted: impl Fn(usize, bool) -> bool) -> Option<Sheaf> {
        let word = m.read(which)?;
        // SAFETY: `word` was in a row.
        if word == no_sheaf() || !wanted(unsafe { sheaf::len(word, self.capacity(id)) }, sheaf::is_full(word)) {
            return None;
        }
        // SAFETY: `word` was read from the row; a successful replace makes the sheaf ours.
        unsafe { if m.replace(which, word, no_sheaf()) { Sheaf::from_word(word, self.capacity(id)) } else { None } }
    }

    /// A sheaf with objects from the barn. A flood ends: what it was to take along goes back to the slabs.
    fn barn_full(&self, m: &M, pages: &PageAllocator<M>, id: u8, gfp: Gfp) -> Option<Sheaf> {
        let node = self.node(id, m.node());
        let mut barn = node.barn.acquire(m, gfp.may_block())?;
        if gfp.may_block() && barn.is_flooded() {
            drop(barn);
            self.put_flood(m, pages, id, None, gfp);
            barn = node.barn.acquire(m, true)?;
        }
        barn.take_full(self.capacity(id))
    }

    /// An empty sheaf from the barn, or a new one.
    fn empty_sheaf(&self, m: &M, pages: &PageAllocator<M>, id: u8, gfp: Gfp) -> Option<Sheaf> {
        let node = self.node(id, m.node());
        if let Some(sheaf) = node.barn.acquire(m, gfp.may_block())?.take_empty(self.capacity(id)) {
            return Some(sheaf);
        }
        self.new_sheaf(m, pages, self.capacity(id), gfp)
    }

    fn new_sheaf(&self, m: &M, pages: &PageAllocator<M>, capacity: u16, gfp: Gfp) -> Option<Sheaf> {
        let memory = if gfp.no_fault() {
            self.alloc_atomic(m, pages, SHEAF_CACHE, gfp)
        } else {
            self.alloc_direct(m, pages, SHEAF_CACHE, gfp)
        };
        // SAFETY: an object of the sheaf cache has a sheaf's size and alignment.
        (!memory.is_null()).then(|| unsafe { Sheaf::new(memory, capacity) })
    }

    /// Makes `own` the current CPU's main sheaf in place of `old`, and finds a place for the one that lost.
    fn install(&self, m: &M, pages: &PageAllocator<M>, id: u8, old: usize, own: Sheaf, gfp: Gfp) {
        self.put_in_row(m, Word::Main(id), old, own, |lost| self.stow(m, pages, id, lost, gfp));
    }

    /// Makes `own` what `which` of the current CPU's row is, in place of `old`, which was read from there or is "no sheaf"; `stow` gets the one that
    /// lost.
    fn put_in_row(&self, m: &M, which: Word, old: usize, own: Sheaf, stow: impl FnOnce(Sheaf)) {
        let capacity = own.capacity();
        let word = own.into_word();
        // SAFETY: `old` is as said; `word` names a sheaf of this cache that we own.
        let lost = if unsafe { m.replace(which, old, word) } { old } else { word };
        // SAFETY: the loser is ours: either it was replaced, or it was never installed.
        if let Some(sheaf) = unsafe { Sheaf::from_word(lost, capacity) } {
            stow(sheaf);
        }
    }

    /// Finds a place for a sheaf: spare, barn, or back to the slabs.
    fn stow(&self, m: &M, pages: &PageAllocator<M>, id: u8, sheaf: Sheaf, gfp: Gfp) {
        if runs::is_run(id) {
            return self.dissolve(m, pages, sheaf, gfp);
        }
        let word = sheaf.word();
        // SAFETY: the sheaf is of this cache and ours to give.
        if m.read(Word::Spare(id)) == Some(no_sheaf()) && unsafe { m.replace(Word::Spare(id), no_sheaf(), word) } {
            let _ = sheaf.into_word();
            return;
        }
        self.store(m, pages, id, sheaf, gfp);
    }

    /// Finds a place for a sheaf that is not on this CPU: barn, or back to the slabs.
    fn store(&self, m: &M, pages: &PageAllocator<M>, id: u8, sheaf: Sheaf, gfp: Gfp) {
        let node = self.node(id, m.node());
        // In a flood they go to the slabs in any case, soon.
        let ask = !sheaf.is_empty() && gfp.may_block() && !node.barn.lock(m).is_flooded();
        if ask && node.locked(m).is_sparse(self.layout(id)) {
            self.dissolve(m, pages, sheaf, gfp);
            while let Some(sheaf) = self.barn_full(m, pages, id, gfp) {
                self.dissolve(m, pages, sheaf, gfp);
            }
            return;
        }
        let put = match node.barn.acquire(m, gfp.may_block()) {
            None => Err(sheaf),
            Some(mut barn) if sheaf.is_empty() => barn.put_empty(sheaf),
            Some(mut barn) => barn.put_full(sheaf),
        };
        if let Err(sheaf) = put {
            self.put_flood(m, pages, id, Some(sheaf), gfp);
        }
    }

    /// Gives the objects of `sheaf`, and in a flood those of the barn's full sheaves, back to their slabs.
    fn put_flood(&self, m: &M, pages: &PageAllocator<M>, id: u8, mut sheaf: Option<Sheaf>, gfp: Gfp) {
        let (node, capacity) = (self.node(id, m.node()), self.capacity(id));
        let _in_hand = InHand::new(&self.flushes);
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
    fn dissolve(&self, m: &M, pages: &PageAllocator<M>, mut sheaf: Sheaf, gfp: Gfp) {
        self.free_objects(m, pages, sheaf.drain(), gfp);
        let memory = sheaf.into_memory();
        self.free_objects(m, pages, &[memory.addr()], gfp);
    }

    /// [`Slab::take_unmarked`], those never handed out before constructed, or marked, and all at the start of `out`.
    fn take_objects(&self, m: &M, pages: &PageAllocator<M>, id: u8, out: &mut [usize], gfp: Gfp, here: usize) -> usize {
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

    /// Takes objects from slabs into `out`, from its end to its start, making new slabs as needed; those never handed out before are left to
    /// `fresh`. The others should have the mark: who hands them out looks.
    /// May return fewer than asked for, also when there is memory left; 0 only where there is none.
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

    /// Makes a new populated slab of cache `id` whose list lock is not to be had one without free objects: one is the caller's, the others lie in
    /// the stash.
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
    fn unstash(&self, m: &M, id: u8) -> *mut u8 {
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
    fn drain_stash(&self, m: &M, pages: &PageAllocator<M>, id: u8) {
        let mut object = self.cache(id).stash.take();
        while object != 0 {
            let next = self.link(id, object);
            self.free_one(m, pages, object, Gfp::KERNEL);
            object = next;
        }
    }

    /// The link of a free object on a list of them.
    fn link(&self, id: u8, object: usize) -> usize {
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
        if !pages.free_pages(m, head, layout.order, gfp.may_block()) {
            // The zone's lock was not to be had. Nor may the list's be waited for: whom we interrupted may hold it.
            let link: *mut usize = m.virt(head).cast();
            // SAFETY: the slab is empty and ours, so its memory is free to be written to.
            self.orphans.push(link.expose_provenance(), |next| unsafe { link.write(next) });
        }
        if !map.is_null() {
            self.free_one(m, pages, map.addr(), gfp);
        }
    }

    /// Puts an object that did not come out of a sheaf back into its slab.
    fn free_one(&self, m: &M, pages: &PageAllocator<M>, object: usize, gfp: Gfp) {
        self.mark_one(m, object);
        self.free_objects(m, pages, &[object], gfp);
    }

    /// Whether what came out of a sheaf, and lies in no slab, is no free run either: an object that was freed twice, whose page is
    /// something else by now.
    fn is_no_run(m: &M, address: usize) -> bool {
        m.pfn(ptr::with_exposed_provenance(address)).is_some_and(|pfn| {
            let kind = m.page(pfn).kind();
            let in_use = kind == Kind::Run || m.class(pfn).load(Ordering::Relaxed) != 0;
            kind.heads_nothing() || in_use || m.virt(pfn).addr() != address
        })
    }

    /// Puts objects, of whatever caches, those of size classes marked, back into their slabs, and runs into their zones.
    fn free_objects(&self, m: &M, pages: &PageAllocator<M>, objects: &[usize], gfp: Gfp) {
        let mut release = PageList::new();
        self.put_objects(m, pages, objects, &mut release, gfp);
        self.release(m, pages, release, gfp);
    }

    /// [`Slab::free_objects`] that leaves it to the caller to give back the slabs that are empty then and not worth keeping.
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
    fn put_lists(
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

    /// Puts the objects of `lists` that lie close together into their slabs; of each list `left` are left, at its start.
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
    fn release(&self, m: &M, pages: &PageAllocator<M>, mut slabs: PageList, gfp: Gfp) {
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
    fn defer(&self, id: u8, object: usize) {
        self.deferred.push(object, |next| self.set_link(id, object, next));
    }

    /// Frees what was deferred. The caller may block.
    fn drain_deferred(&self, m: &M, pages: &PageAllocator<M>) {
        if !self.deferred.is_empty() || !self.orphans.is_empty() {
            let _in_hand = InHand::new(&self.flushes);
            self.free_deferred(m, pages);
        }
    }

    /// [`Slab::drain_deferred`] by who is counted in for it.
    fn free_deferred(&self, m: &M, pages: &PageAllocator<M>) {
        let mut slab = self.orphans.take();
        while slab != 0 {
            let link: *const usize = ptr::with_exposed_provenance(slab);
            // SAFETY: `free_slab` wrote the link, and the slab was nobody's since.
            let next = unsafe { link.read() };
            if let Some(head) = m.pfn(link.cast()) {
                pages.free_pages(m, head, m.page(head).order(), true);
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

    /// The cache of the object at `address`, which lies in a page of kind slab; checks that an object starts there and is
    /// not free in its slab (it may still lie in a sheaf).
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

    /// Whether its slab counts the object at `address` as never handed out: what was freed, and went back to the system since.
    pub fn is_fresh(&self, m: &M, address: *const u8) -> bool {
        self.place_of(m, address).is_some_and(|(head, index)| index >= head.mapcount() as u32)
    }

    /// The descriptor of the slab that the object at `address` lies in, and which of its objects that is.
    fn place_of<'a>(&self, m: &'a M, address: *const u8) -> Option<(&'a Page, u32)> {
        let (head, offset) = slab_of(m, address)?;
        let page = m.page(head);
        Some((page, self.layout(page.cache() as u8).index(page.colour(), offset)?))
    }

    /// Whether the object at `address` of cache `id` is free, exactly: every sheaf of the cache is emptied first.
    /// For the rare free that looks like a second one.
    pub fn is_free(&self, m: &M, pages: &PageAllocator<M>, id: u8, address: *const u8) -> bool {
        self.drain_deferred(m, pages);
        let mut free = false;
        self.flush_alone(m, || {
            self.flush(m, pages, Some(id));
            // Where the flush gave back its whole slab there is nothing left to find it in.
            free = self.cache_of(m, address, true).is_err();
            free
        });
        free
    }

    /// Flushes until that was enough, or nobody else had sheaves in hand meanwhile.
    fn flush_alone(&self, m: &M, mut flush: impl FnMut() -> bool) {
        for _ in 0..FLUSH_TRIES {
            let [began, done] = [0, 1].map(|at| self.flushes[at].load(Ordering::Acquire));
            if flush() || began == done && self.flushes[0].load(Ordering::Acquire) == began.wrapping_add(1) {
                break;
            }
            m.nap(&self.flushes[1], done);
        }
    }

    /// Waits until what others took out of caches before this is where it belongs.
    fn wait_for_hands(&self, m: &M) {
        for _ in 0..FLUSH_TRIES {
            // In this order: who begins and ends in between is not taken for one who began earlier.
            let done = self.flushes[1].load(Ordering::Acquire);
            if self.flushes[0].load(Ordering::Acquire) == done {
                break;
            }
            m.nap(&self.flushes[1], done);
        }
    }

    /// Empties the sheaves of cache `only`, or of all, on every CPU and in the barns, back into the slabs.
    pub fn flush(&self, m: &M, pages: &PageAllocator<M>, only: Option<u8>) {
        self.flush_where(m, pages, u64::MAX, |id| only.is_none_or(|only| only == id));
    }

    /// [`Slab::flush`] for the caches that `wanted` names, or for as many CPUs as there is time for until then. Whether it got through.
    fn flush_where(&self, m: &M, pages: &PageAllocator<M>, until: u64, wanted: impl Fn(u8) -> bool) -> bool {
        let _in_hand = InHand::new(&self.flushes);
        self.empty_sheaves(m, pages, until, wanted)
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
                m.drain_row(cpu, &mut |row| {
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

    /// Gives back what was not needed since the last call: sheaves that lay in the barns all the time, kept empties.
    pub fn age(&self, m: &M, pages: &PageAllocator<M>) {
        self.age_runs(m, pages);
        let _in_hand = InHand::new(&self.flushes);
        for id in self.ids() {
            let (cache, layout) = (self.cache(id), self.layout(id));
            if cache.slow_allocs.load(Ordering::Relaxed) == 0 && id != SHEAF_CACHE {
                continue;
            }
            for node in self.nodes_of(m, id) {
                let (full, empty) = node.barn.lock(m).idle();
                for n in 0..full + empty {
                    let mut barn = node.barn.lock(m);
                    let sheaf =
                        if n < full { barn.take_full(self.capacity(id)) } else { barn.take_empty(self.capacity(id)) };
                    drop(barn);
                    let Some(sheaf) = sheaf else { continue };
                    self.dissolve(m, pages, sheaf, Gfp::KERNEL);
                }
                let mut release = PageList::new();
                node.locked(m).age(m, layout, &mut release);
                self.release(m, pages, release, Gfp::KERNEL);
            }
        }
    }

    /// `opened` pages of fresh memory had to be begun: after some of it what lies in sheaves, and holds on to a slab for each object, goes
    /// back, so that other caches and runs can have it before more is begun.
    ///
    /// (Arrays that grow in step pass through the classes. MiB resident at most, with this and without: perl 102.1 and 108.5, python3 with
    /// objects 102.2 and 107.3; where only caches of which no slow path was taken since the last time are emptied, 104.1 and 102.2.
    /// Page runs stay, unless a quarter of all memory is in their sheaves: with theirs 104.4 and 104.8 in place of 104.6 and 104.7, but 82.9 instead of
    /// 78.9 of `large-same`, 46.4 instead of 43.3 of `random-100k`. A quarter, and more, it is where one CPU frees what the other allocates: node, whose
    /// buffers a thread of its own frees, 98.9 in place of 118.3, and a fifteenth less time.
    /// It takes 3 % of the CPU time of `threads-32`. Rejected: more seldom, by a sixteenth or an eighth of all memory, or by the objects that the last
    /// time moved (1 to 3 % there and in `random-100k`; perl 104 MiB); caches alone of which no slow path was taken since (the same).)
    pub fn gather(&self, m: &M, pages: &PageAllocator<M>, opened: u32) {
        let opened = self.opened.fetch_add(opened, Ordering::Relaxed).saturating_add(opened);
        let committed = pages.committed();
        let worth = (committed / GATHER_PART).max(m.known_cpus() as u64 * GATHER_CPU);
        // A small program begins its first memory, and there is nothing to gather.
        if u64::from(opened) < worth || committed < worth {
            return;
        }
        // One does it.
        if self.opened.compare_exchange(opened, 0, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        let used = |id: &u8| {
            let cache = self.cache(*id);
            let calls = [&cache.slow_allocs, &cache.slow_frees].map(|calls| calls.load(Ordering::Relaxed));
            let calls = calls[0].wrapping_add(calls[1]);
            cache.gathered.swap(calls, Ordering::Relaxed) != calls
        };
        let mut full = [false; MAX_CACHES];
        let runs = self.keeps_much(m, committed);
        let kept = self.kept.load(Ordering::Relaxed);
        let wanted = |id: &u8| if runs::is_run(*id) { runs } else { used(id) };
        let _in_hand = InHand::new(&self.flushes);
        self.ids().filter(wanted).for_each(|id| full[id as usize] = true);
        if full.contains(&true) && self.empty_sheaves(m, pages, m.now_ms() + GATHER_MS, |id| full[id as usize]) && runs
        {
            let less = |now: u32| Some(now.saturating_sub(kept));
            let _ = self.kept.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
        let caches = self.ids().filter(|id| full[*id as usize] && !runs::is_run(*id));
        caches.for_each(|id| self.shrink_slabs(m, pages, id));
        pages.drain_lists(m);
    }

    /// [`Slab::flush`], then gives every empty slab back to the page allocator.
    pub fn shrink(&self, m: &M, pages: &PageAllocator<M>, only: Option<u8>) {
        let _in_hand = InHand::new(&self.flushes);
        self.empty_sheaves(m, pages, u64::MAX, |id| only.is_none_or(|only| only == id));
        self.ids().filter(|id| only.is_none_or(|o| o == *id)).for_each(|id| self.shrink_slabs(m, pages, id));
    }

    /// Gives the empty slabs of a cache back. The caller is counted in: they are still the cache's when no list has them any more.
    fn shrink_slabs(&self, m: &M, pages: &PageAllocator<M>, id: u8) {
        for node in self.nodes_of(m, id) {
            let mut release = PageList::new();
            node.locked(m).shrink(m, self.layout(id), &mut release);
            self.release(m, pages, release, Gfp::KERNEL);
        }
    }

    /// Gives back what lies behind the last object in use of slabs of size classes of which none was wanted lately, until
    /// [`Machine::now_ms`] is `until`. To be called after [`Slab::shrink`]. Returns pages.
    pub fn give_back_tails(&self, m: &M, pages: &PageAllocator<M>, until: u64) -> u64 {
        let mut gone = 0;
        for id in 1..=NR_CLASSES as u8 {
            let (cache, layout) = (self.cache(id), self.layout(id));
            let since = (m.now_ms() as usize).wrapping_sub(cache.refilled_ms.load(Ordering::Relaxed));
            if layout.order == Order::ZERO || since < COLD_MS {
                continue;
            }
            for node in self.nodes_of(m, id) {
                let partial = node.locked(m).partial();
                for bucket in (0..partial.len()).flat_map(|nth| core::iter::repeat_n(nth, partial[nth] as usize)) {
                    if m.now_ms() >= until {
                        return gone;
                    }
                    let tail = node.locked(m).take_tail(m, layout, bucket);
                    let Some(tail) = tail else { continue };
                    gone += if m.discard(tail.pages) { u64::from(tail.pages.pages) } else { 0 };
                    let mut release = PageList::new();
                    node.locked(m).put_tail(m, layout, tail, &mut release);
                    self.release(m, pages, release, Gfp::KERNEL);
                }
            }
        }
        gone
    }

    /// Ids of the caches in use: the boot-static ones, and the live ones among those made later.
    fn ids(&self) -> impl Iterator<Item = u8> {
        // Relaxed: who has objects of a cache got them from who made it.
        let created = FIRST_CREATED..=self.highest.load(Ordering::Relaxed);
        (1..FIRST_CREATED).chain(created.filter(|id| self.cache(*id).state() == State::Live))
    }

    /// Node `node`'s part of cache `id`.
    fn node(&self, id: u8, node: usize) -> &CacheNode {
        if node == 0 { &self.cache(id).home } else { self.far.node(id, node) }
    }

    /// The parts of cache `id` of the nodes in use.
    fn nodes_of(&self, m: &M, id: u8) -> impl Iterator<Item = &CacheNode> {
        (0..m.nr_nodes()).map(move |node| self.node(id, node))
    }

    /// The used nodes of the caches in use. Others are not even looked at: their memory was never touched.
    fn nodes<'a>(&'a self, m: &'a M) -> impl Iterator<Item = &'a CacheNode> {
        self.ids().flat_map(|id| self.nodes_of(m, id))
    }

    /// In a child, whose only thread the caller is, with no sheaves in hand: what others had is lost, and not waited for.
    pub fn begin_child(&self) {
        self.flushes[1].store(self.flushes[0].load(Ordering::Relaxed), Ordering::Relaxed);
        if M::LENT {
            window::begin_child();
        }
    }

    /// Whether any lock is held.
    pub fn any_lock_held(&self, m: &M) -> bool {
        self.registry.is_held() || self.nodes(m).any(|node| node.barn.is_held() || node.slabs.is_held())
    }

    /// Takes every lock for `fork`: see [`Lock::lock_for_fork`].
    pub fn lock_all(&self, m: &M, fork: Fork) {
        self.registry.lock_for_fork(m, fork);
        for node in self.nodes(m) {
            node.barn.lock_for_fork(m, fork);
            node.slabs.lock_for_fork(m, fork);
        }
    }

    /// Gives back every lock.
    ///
    /// # Safety
    /// The caller (or the process it is the fork of) took them by [`Slab::lock_all`].
    pub unsafe fn unlock_all(&self, m: &M, fork: Fork) {
        for node in self.nodes(m) {
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
