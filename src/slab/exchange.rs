//! What `malloc` and `free` do where the current CPU's sheaf is empty, or full: sheaves are exchanged between the row,
//! its spare, and the node's barn.
#![allow(unsafe_code)]

use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::cache::{RUN_SHEAF_CACHE, SHEAF_CACHE};
use super::classes::NR_CLASSES;
use super::sheaf::Sheaf;
use super::tag::{is_dense, is_foreign};
use super::{Slab, TRIES, runs, sheaf};
use crate::gfp::Gfp;
use crate::machine::{Machine, Word, no_sheaf};
use crate::types::PAGE_SIZE;
use crate::zone::PageAllocator;

/// Capacity of sheaves that are halved rather than exchanged.
const SHORT: u16 = 32;
/// Objects of a cache's first refill, and their bytes.
pub(super) const FIRST_REFILL: u16 = 8;
const FIRST_REFILL_BYTES: u32 = 4096;
/// The first slow requests of a size class, on all CPUs together, are served straight from slabs where the CPU has no
/// sheaf yet, and as many frees go straight back. A sheaf takes a page and its fault, and small programs want most
/// sizes once or twice (a program of ten blocks: 9 pages less, and 6 of 290 µs).
pub(super) const FIRST_DIRECT: usize = 4;
/// As the first ones of a slab share a set of the CPU's cache, one of so many is taken then, which the cache's number
/// says.
const FIRST_SPREAD: usize = 4;
/// Two refills are in quick succession where so many milliseconds lie between them.
const QUICK_MS: usize = 10;
/// So many full sheaves hold the objects of a cache that has few.
const FEW_SHEAVES: usize = 8;

/// Counts a slow call for cache `id`; whether it is one of a size class's first ([`FIRST_DIRECT`]).
#[inline(always)]
fn is_first(id: u8, calls: &AtomicUsize) -> bool {
    calls.fetch_add(1, Ordering::Relaxed) < FIRST_DIRECT && id as usize <= NR_CLASSES
}

impl<M: Machine> Slab<M> {
    /// An object of cache `id` when the current CPU's main sheaf had none. Null where there is no memory.
    #[cold]
    #[inline(never)]
    pub fn alloc_slow(&self, m: &M, pages: &PageAllocator<M>, id: u8, gfp: Gfp) -> *mut u8 {
        let few = is_first(id, &self.cache(id).slow_allocs);
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
            let stored = || self.barn_full(m, pages, id, gfp).inspect(|sheaf| self.receive(m, id, sheaf));
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
            if few && main == no_sheaf() {
                let object = self.alloc_first(m, pages, id, gfp);
                if !object.is_null() {
                    return object;
                }
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
                // The first objects of slabs are those of pages, which share a set of the CPU's cache: a cache of which
                // few are wanted begins with another one, which its number says (blocks of 20 sizes, one at a time: 3 %
                // less, and of 314 misses 19).
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

    /// One of a size class's first objects, straight from the slabs.
    fn alloc_first(&self, m: &M, pages: &PageAllocator<M>, id: u8, gfp: Gfp) -> *mut u8 {
        // Those in front of it go back.
        let want = 1 + id as usize % FIRST_SPREAD;
        if self.layout(id).size as usize * want > PAGE_SIZE || !gfp.may_block() {
            return self.alloc_direct(m, pages, id, gfp);
        }
        let mut objects = [0; FIRST_SPREAD];
        let got = self.take_objects(m, pages, id, &mut objects[..want], gfp, m.node());
        let (object, others) = objects[..got].split_first().map_or((0, &[][..]), |(object, others)| (*object, others));
        if !others.is_empty() {
            self.free_objects(m, pages, others, gfp);
        }
        self.hand_out(m, id, ptr::with_exposed_provenance_mut(object))
    }

    /// Frees `object` of cache `id` when the current CPU's main sheaf was full.
    ///
    /// # Safety
    /// `object` is of that cache (or of a larger size class) and the caller gives it up.
    #[cold]
    #[inline(never)]
    pub unsafe fn free_slow(&self, m: &M, pages: &PageAllocator<M>, id: u8, object: *mut u8, gfp: Gfp) {
        let few = is_first(id, &self.cache(id).slow_frees);
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
            if !sheaf::is_full(old, self.capacity(id)) {
                continue;
            }
            let spare = if foreign { None } else { self.take_spare(m, id, |_, full| !full) };
            let short = spare.as_ref().and_then(|_| self.take_short(m, id, old));
            if few && old == no_sheaf() && spare.is_none() && !foreign {
                break;
            }
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

    /// Objects that a sheaf of cache `id` holds; `sheaf::OF_RUNS` for page runs, whose sheaves differ.
    #[inline]
    pub(super) fn capacity(&self, id: u8) -> u16 {
        if runs::is_run(id) { sheaf::OF_RUNS } else { self.layout(id).capacity }
    }

    /// Objects to take for the next refill: few where the last one was long ago, and then none that other CPUs have too
    /// many of.
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

    /// Empties all sheaves of a cache that has few objects, and none in its slabs. Objects that are allocated on one
    /// CPU and freed on another would else, in time, fill the sheaves of both.
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

    /// Takes the current CPU's main sheaf, if it is still `word` and one of few objects: half of it, or of the spare,
    /// is moved then instead of the two exchanged, which a program whose demand swings about the end of such a sheaf
    /// would do again and again (three times in ten with blocks of 8 KiB; ten live blocks of 4 to 8 KiB take 0.6 of the
    /// time, a hundred 0.9).
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
    pub(super) fn take_spare(&self, m: &M, id: u8, wanted: impl Fn(usize, bool) -> bool) -> Option<Sheaf> {
        self.take_sheaf(m, id, Word::Spare(id), wanted)
    }

    /// Takes the sheaf that is at `which` of cache `id` in the current CPU's row, if `wanted` likes its length and
    /// fullness.
    pub(super) fn take_sheaf(&self, m: &M, id: u8, which: Word, wanted: impl Fn(usize, bool) -> bool) -> Option<Sheaf> {
        let word = m.read(which)?;
        // SAFETY: `word` was in a row.
        let wanted = |capacity| wanted(unsafe { sheaf::len(word, capacity) }, sheaf::is_full(word, capacity));
        if word == no_sheaf() || !wanted(self.capacity(id)) {
            return None;
        }
        // SAFETY: `word` was read from the row; a successful replace makes the sheaf ours.
        unsafe { if m.replace(which, word, no_sheaf()) { Sheaf::from_word(word, self.capacity(id)) } else { None } }
    }

    /// A sheaf with objects from the barn. A flood ends: what it was to take along goes back to the slabs.
    pub(super) fn barn_full(&self, m: &M, pages: &PageAllocator<M>, id: u8, gfp: Gfp) -> Option<Sheaf> {
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
        let memory = self.sheaf_memory(m, pages, SHEAF_CACHE, gfp)?;
        // SAFETY: an object of the sheaf cache has a sheaf's size and alignment.
        Some(unsafe { Sheaf::new(memory, capacity) })
    }

    /// A sheaf of so many page runs.
    pub(super) fn new_run_sheaf(&self, m: &M, pages: &PageAllocator<M>, capacity: u16, gfp: Gfp) -> Option<Sheaf> {
        let memory = self.sheaf_memory(m, pages, RUN_SHEAF_CACHE, gfp)?;
        // SAFETY: as in `new_sheaf`.
        Some(unsafe { Sheaf::of_runs(memory, capacity) })
    }

    fn sheaf_memory(&self, m: &M, pages: &PageAllocator<M>, id: u8, gfp: Gfp) -> Option<*mut u8> {
        let memory =
            if gfp.no_fault() { self.alloc_atomic(m, pages, id, gfp) } else { self.alloc_direct(m, pages, id, gfp) };
        (!memory.is_null()).then_some(memory)
    }

    /// Makes `own` the current CPU's main sheaf in place of `old`, and finds a place for the one that lost.
    pub(super) fn install(&self, m: &M, pages: &PageAllocator<M>, id: u8, old: usize, own: Sheaf, gfp: Gfp) {
        self.put_in_row(m, Word::Main(id), old, own, |lost| self.stow(m, pages, id, lost, gfp));
    }

    /// Makes `own` what `which` of the current CPU's row is, in place of `old`, which was read from there or is "no
    /// sheaf"; `stow` gets the one that lost.
    pub(super) fn put_in_row(&self, m: &M, which: Word, old: usize, own: Sheaf, stow: impl FnOnce(Sheaf)) {
        let capacity = own.kind();
        let word = own.into_word();
        // SAFETY: `old` is as said; `word` names a sheaf of this cache that we own.
        let lost = if unsafe { m.replace(which, old, word) } { old } else { word };
        // SAFETY: the loser is ours: either it was replaced, or it was never installed.
        if let Some(sheaf) = unsafe { Sheaf::from_word(lost, capacity) } {
            stow(sheaf);
        }
    }

    /// Finds a place for a sheaf: spare, barn, or back to the slabs.
    pub(super) fn stow(&self, m: &M, pages: &PageAllocator<M>, id: u8, sheaf: Sheaf, gfp: Gfp) {
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
    pub(super) fn store(&self, m: &M, pages: &PageAllocator<M>, id: u8, sheaf: Sheaf, gfp: Gfp) {
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
}
