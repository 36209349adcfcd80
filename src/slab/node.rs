//! A node's slabs of one cache: partial lists by occupancy, kept empties, and the free maps.
//!
//! Full slabs are on no list. Allocation takes from the fullest partial slabs first, so that the emptiest drain and go
//! back; then from kept empties; then the caller makes a new slab. Inside a slab the lowest free object goes first:
//! untouched pages stay unbacked, and the objects that were ever handed out, or were since the memory behind them went
//! back ([`tail`]), are always a prefix (what [`Page::mapcount`] of the head counts), so a constructor runs once per
//! object without a flag per object.
//!
//! What an object costs between sheaf and slab was 40 % of the workload `tree` (0.075 s of the user's code, fastest
//! fifth of interleaved runs). Objects that lie one behind the other are written into the sheaf by addition, not by a
//! search for bits; those never handed out need no look at the map, and are written into the sheaf and marked in one go
//! outside of the lock. Who marks them, or compares their marks, waits for as many cache lines as the buffers reach; so
//! all are fetched here. Putting back takes one multiplication for whether and where an object starts. Where hardly two
//! in a row are of one slab, the descriptors of slabs to come are fetched (`random-1m`, with the above: 0.37 to 0.30
//! s). Of objects that go back one by one, four fifths are the only ones of their slab in a row in `random-1m` and
//! `string-map` (`graph`: two fifths of the objects, four fifths of the visits): they take no loop. With that, the
//! first eight slabs of a list fetched at once, and the next slab of a list while objects are taken of one, samples of
//! putting back are, in ms (interleaved at real-time priority): `random-1m` 20 to 16, `graph` 10 to 8.4,
//! `fragmentation` 17.9 to 16.2, and there 6.7 in place of 7.9 of taking.
//!
//! Rejected (`tree`, CPU seconds): more full sheaves in the barn, as many as slabs that went back have room for: 0.11
//! instead of 0.075, as objects that do not go through a free map come out in the order of their frees, and what the
//! program makes next lies all over its memory. Empty slabs that stay with the cache: 0.070 instead of 0.066, as their
//! marks are in no cache any more. Two slabs open while objects are put back, as the sheaves of a tree go back and
//! forth nine times: no difference (sheaves together make one: [`window`](super::window)). Nor is there one where one
//! comparison says that an object is of the slab and of the word; nor where descriptors and maps of every eighth
//! object's slab are fetched first, or of one to come at each change of slabs. Nor (putting back, ms) fetching the slab
//! of each object twelve ahead that lies in another page than the one before it, however long runs are: `fragmentation`
//! 19 in place of 17.6, `graph` 11.8 in place of 10.3.
#![allow(unsafe_code)]

mod tail;

use core::ptr;
use core::sync::atomic::Ordering::Relaxed;

use super::classes::NR_CLASSES;
use super::layout::{LINE, MapPlace, SlabLayout};
use super::tag::tag;
use super::window::{PAGES, Window};
use crate::error::Defect;
use crate::machine::Machine;
use crate::page::{Kind, Page, PageList, flag};
use crate::types::{PAGE_SIZE, Pfn, PfnRange};

/// Objects that are handed out for the first time: neither constructed nor marked. Each run of them lies one behind the
/// other. They are written down under the list lock, and all that touches them, and as much memory as they take, is
/// done outside of it.
pub struct Fresh {
    runs: [Run; FRESH_RUNS],
    len: usize,
}

/// `count` objects from address `first` on, whose place is the slots below slot `end`, the last one first.
#[derive(Clone, Copy)]
struct Run {
    first: usize,
    count: usize,
    end: usize,
}

/// Slabs of which a request gets fresh objects at most: the objects of a sheaf are those of 17 new slabs or less.
const FRESH_RUNS: usize = 17;

impl Fresh {
    /// None.
    pub const fn new() -> Fresh {
        Fresh { runs: [Run { first: 0, count: 0, end: 0 }; FRESH_RUNS], len: 0 }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether no further slab's will be taken in.
    pub fn is_full(&self) -> bool {
        self.len == FRESH_RUNS
    }

    /// Moves their slots down by `by`. How many they are.
    pub fn lower(&mut self, by: usize) -> usize {
        self.runs[..self.len].iter_mut().map(|run| (run.end -= by, run.count).1).sum()
    }

    /// Writes the objects, `size` apart, into their slots of `out`, and shows each of them.
    #[inline(always)]
    pub fn fill(&self, out: &mut [usize], size: usize, mut each: impl FnMut(*mut u8)) {
        for run in &self.runs[..self.len] {
            let mut object = run.first;
            for slot in out[run.end - run.count..run.end].iter_mut().rev() {
                *slot = object;
                each(ptr::with_exposed_provenance_mut(object));
                object += size;
            }
        }
    }
}

/// For whom objects of a dense class are taken.
#[derive(Clone, Copy)]
pub struct Owner {
    /// The tag of slabs that are.
    pub tag: u8,
    /// Slabs that may be free before those of others are taken from.
    pub slabs_apart: u32,
}

/// Slabs of one list that are looked at for a suitable one.
const LOOK: usize = 16;

/// A cache of fewer pages is never sparse.
const SPARSE_PAGES: u64 = 128;

/// Occupancy buckets of the partial list: up to a quarter in use, a half, three quarters, more.
const BUCKETS: usize = 4;

/// What a node holds of one cache. Guarded by the list lock around it.
///
/// Invariant: objects in slabs = free bits + objects out (with users, in sheaves, in barns); a slab has
/// [`flag::PARTIAL`] exactly while it is on one of these lists.
pub struct NodeSlabs {
    partial: [PageList; BUCKETS],
    empty: PageList,
    /// All slabs, full ones included.
    pub slabs: u32,
    /// Objects with a free bit, over all slabs.
    pub free: u64,
    next_colour: u32,
    /// Fewest kept empties since the last [`NodeSlabs::age`].
    empty_low: u32,
}

/// One slab, by its head.
struct SlabRef<'a, M> {
    m: &'a M,
    layout: &'a SlabLayout,
    head: Pfn,
}

// Inlined in any case: they are what every object costs that goes to a slab or comes from one.
impl<M: Machine> SlabRef<'_, M> {
    #[inline(always)]
    fn page(&self) -> &Page {
        self.m.page(self.head)
    }

    #[inline(always)]
    fn map_word(&self, i: u32) -> u64 {
        match self.layout.map {
            MapPlace::Descriptor => self.m.page(self.head.add(i)).word(),
            // SAFETY: the map's words lie in the slab's header or its off-slab memory; the list lock is held.
            _ => unsafe { ptr::read(self.map_memory().add(i as usize)) },
        }
    }

    #[inline(always)]
    fn set_map_word(&self, i: u32, value: u64) {
        match self.layout.map {
            MapPlace::Descriptor => self.m.page(self.head.add(i)).set_word(value),
            // SAFETY: as in `map_word`.
            _ => unsafe { ptr::write(self.map_memory().add(i as usize), value) },
        }
    }

    #[inline(always)]
    fn map_memory(&self) -> *mut u64 {
        match self.layout.map {
            MapPlace::OffSlab => ptr::with_exposed_provenance_mut(self.page().word() as usize),
            _ => self.m.virt(self.head).cast(),
        }
    }

    #[inline(always)]
    fn address(&self, index: u32) -> usize {
        self.m.virt(self.head).expose_provenance() + self.layout.offset(self.page().colour(), index)
    }

    /// Fetches the lines of the marks of `count` objects from address `first` on: who writes or compares them would
    /// wait for each of them.
    #[inline(always)]
    fn fetch(&self, first: usize, count: usize) {
        let size = self.layout.size as usize;
        (first..first + count * size).step_by(size.max(LINE)).for_each(|mark| self.m.prefetch(mark));
    }

    /// Fetches what will be looked at of the next one on its list.
    #[inline(always)]
    fn fetch_next(&self) {
        let next = self.page().next();
        if next.is_some() {
            self.m.prefetch(ptr::from_ref(self.m.page(next)).addr());
            if self.layout.map == MapPlace::OnSlab {
                self.m.prefetch(self.m.virt(next).addr());
            }
        }
    }

    /// Sets the colour, the class bytes and where the map is.
    fn describe(&self, id: u8, colour: usize, map: *mut u8) {
        self.page().set_colour(colour);
        if id as usize <= NR_CLASSES {
            for pfn in PfnRange::block(self.head, self.layout.order).iter() {
                self.m.class(pfn).store(tag(id, colour), Relaxed);
            }
        }
        if self.layout.map == MapPlace::OffSlab {
            self.page().set_word(map.expose_provenance() as u64);
        }
    }

    fn bucket(&self) -> usize {
        bucket(self.layout, self.page().refs())
    }
}

/// The bucket of a slab that has so many objects in use: the quotient, at most the last one, without a division.
#[inline(always)]
fn bucket(layout: &SlabLayout, used: u32) -> usize {
    const { assert!(BUCKETS == 4) };
    let (used, objects) = (used * BUCKETS as u32, layout.objects);
    usize::from(used >= objects) + usize::from(used >= 2 * objects) + usize::from(used >= 3 * objects)
}

/// The slab page that holds `address`: the slab's head and the address's offset in the slab.
#[inline(always)]
pub fn slab_of<M: Machine>(m: &M, address: *const u8) -> Option<(Pfn, usize)> {
    let pfn = m.pfn(address)?;
    let page = m.page(pfn);
    if page.kind() != Kind::Slab {
        return None;
    }
    let pages = page.order().pages();
    let head = Pfn(pfn.0 & !(pages - 1));
    Some((head, (pfn.since(head) as usize) * PAGE_SIZE + address.addr() % PAGE_SIZE))
}

/// Makes a new slab (as for [`NodeSlabs::add`]) one whose objects were all taken; `each` gets them. It is on no list,
/// so that needs no lock.
pub fn new_full<M: Machine>(m: &M, id: u8, layout: &SlabLayout, head: Pfn, map: *mut u8, each: impl FnMut(usize)) {
    let slab = SlabRef { m, layout, head };
    slab.page().set_refs(layout.objects);
    slab.page().set_mapcount(layout.objects as i32);
    slab.describe(id, 0, map);
    (0..layout.map_words()).for_each(|word| slab.set_map_word(word, 0));
    (0..layout.objects).map(|index| slab.address(index)).for_each(each);
}

/// The first object of no word of a map.
const NO_WORD: u32 = 1 << 31;

/// `count` bits from bit `first` on; at least one, and none beyond the word.
#[inline(always)]
fn ones(first: u32, count: u32) -> u64 {
    u64::MAX >> (64 - count) << first
}

/// Writes `count` addresses, `size` apart from `first` on, into the slots of `out` below `left`, downwards; where that
/// ends.
#[inline(always)]
fn fill(out: &mut [usize], left: usize, count: usize, first: usize, size: usize) -> usize {
    let mut object = first;
    for slot in out[left - count..left].iter_mut().rev() {
        *slot = object;
        object += size;
    }
    left - count
}

impl NodeSlabs {
    /// No slabs.
    pub const fn new() -> NodeSlabs {
        NodeSlabs {
            partial: [const { PageList::new() }; BUCKETS],
            empty: PageList::new(),
            slabs: 0,
            free: 0,
            next_colour: 0,
            empty_low: 0,
        }
    }

    /// Whether less than half of many slabs is in use: then each object that is kept from its slab may keep that from
    /// going back.
    pub fn is_sparse(&self, layout: &SlabLayout) -> bool {
        let objects = u64::from(self.slabs) * u64::from(layout.objects);
        u64::from(self.slabs) << layout.order.get() > SPARSE_PAGES && self.free > objects / 2
    }

    /// Takes up to `out.len()` objects into `out`, from its end to its start; those never handed out before are left to
    /// `fresh`. Returns how many.
    pub fn take<M: Machine>(
        &mut self,
        m: &M,
        layout: &SlabLayout,
        out: &mut [usize],
        fresh: &mut Fresh,
        owner: Option<Owner>,
    ) -> usize {
        let mut got = 0;
        let mut apart = owner.filter(|owner| owner.slabs_apart > 0);
        while got < out.len() && !fresh.is_full() {
            let found = match apart {
                Some(owner) => self.find_own(m, owner).or_else(|| self.first_empty()).or_else(|| {
                    // From here on others' are looked through no more.
                    apart = None;
                    let enough = u64::from(owner.slabs_apart) * u64::from(layout.objects);
                    if self.free > enough { self.fullest() } else { None }
                }),
                None => self.fullest().or_else(|| self.first_empty()),
            };
            let Some((bucket, head)) = found else { break };
            if let Some(owner) = owner {
                m.class(head).store(owner.tag, Relaxed);
            }
            let left = out.len() - got;
            got += self.take_of(m, layout, bucket, head, &mut out[..left], fresh);
        }
        got
    }

    /// The fullest partial slab and its bucket.
    fn fullest(&self) -> Option<(Option<usize>, Pfn)> {
        self.partial.iter().enumerate().rev().find_map(|(b, list)| Some((Some(b), list.first()?)))
    }

    fn first_empty(&self) -> Option<(Option<usize>, Pfn)> {
        Some((None, self.empty.first()?))
    }

    /// The fullest partial slab of `owner`; only so many are looked at.
    fn find_own<M: Machine>(&self, m: &M, owner: Owner) -> Option<(Option<usize>, Pfn)> {
        self.partial.iter().enumerate().rev().find_map(|(b, list)| {
            let own = |head: &Pfn| m.class(*head).load(Relaxed) == owner.tag;
            Some((Some(b), list.iter(|p| m.page(p)).take(LOOK).find(own)?))
        })
    }

    /// [`NodeSlabs::take`] from the first slab that `suits`; only so many are looked at.
    pub fn take_from_some<M: Machine>(
        &mut self,
        m: &M,
        layout: &SlabLayout,
        out: &mut [usize],
        fresh: &mut Fresh,
        suits: impl Fn(Pfn) -> bool,
    ) -> usize {
        let lists = self.partial.iter().enumerate().rev().map(|(b, list)| (Some(b), list));
        let found = lists
            .chain([(None, &self.empty)])
            .find_map(|(bucket, list)| Some((bucket, list.iter(|p| m.page(p)).take(LOOK).find(|head| suits(*head))?)));
        found.map_or(0, |(bucket, head)| self.take_of(m, layout, bucket, head, out, fresh))
    }

    /// Takes objects of the slab at `head`, which is on the list of `bucket`.
    fn take_of<M: Machine>(
        &mut self,
        m: &M,
        layout: &SlabLayout,
        bucket: Option<usize>,
        head: Pfn,
        out: &mut [usize],
        fresh: &mut Fresh,
    ) -> usize {
        let slab = SlabRef { m, layout, head };
        // Who takes all of this one wants the next.
        slab.fetch_next();
        let got = Self::take_from(&slab, out, fresh);
        let full = slab.page().refs() == layout.objects;
        let to = (!full).then(|| slab.bucket());
        if bucket != to || full {
            self.list(bucket).remove(head, |p| m.page(p));
            self.empty_low = self.empty_low.min(self.empty.len());
            match to {
                Some(to) => self.partial[to].push_front(head, |p| m.page(p)),
                None => slab.page().clear(flag::PARTIAL),
            }
        }
        self.free -= got as u64;
        got
    }

    fn list(&mut self, bucket: Option<usize>) -> &mut PageList {
        match bucket {
            Some(b) => &mut self.partial[b],
            None => &mut self.empty,
        }
    }

    /// Takes objects of one slab, lowest address first: those that were handed out before, then what is left of the
    /// others, which lie one behind the other.
    #[inline(always)]
    fn take_from<M: Machine>(slab: &SlabRef<'_, M>, out: &mut [usize], fresh: &mut Fresh) -> usize {
        let page = slab.page();
        let (ever, used, start, size) =
            (page.mapcount() as u32, page.refs(), slab.address(0), slab.layout.size as usize);
        let mut left = out.len();
        let mut word = 0;
        while word * 64 < ever && left > 0 && used != ever {
            let bits = slab.map_word(word);
            let mut some = bits & u64::MAX.checked_shl(ever - word * 64).map_or(u64::MAX, |fresh| !fresh);
            let base = start + word as usize * 64 * size;
            let first = some.trailing_zeros();
            let run = (some >> (first % 64)).trailing_ones();
            if run == some.count_ones() && run > 0 {
                let run = (run as usize).min(left);
                let object = base + first as usize * size;
                slab.fetch(object, run);
                left = fill(out, left, run, object, size);
                slab.set_map_word(word, bits & !ones(first, run as u32));
            } else if some != 0 {
                let all = some;
                while let Some(last) = left.checked_sub(1).filter(|_| some != 0) {
                    let object = base + some.trailing_zeros() as usize * size;
                    slab.fetch(object, 1);
                    out[last] = object;
                    some &= some - 1;
                    left = last;
                }
                slab.set_map_word(word, bits & !(all & !some));
            }
            word += 1;
        }
        let count = left.min((slab.layout.objects - ever) as usize);
        if count > 0 && !fresh.is_full() {
            let first = start + ever as usize * size;
            slab.fetch(first, count);
            fresh.runs[fresh.len] = Run { first, count, end: left };
            fresh.len += 1;
            left -= count;
            let (mut at, end) = (ever, ever + count as u32);
            while at < end {
                let many = (64 - at % 64).min(end - at);
                slab.set_map_word(at / 64, slab.map_word(at / 64) & !ones(at % 64, many));
                at += many;
            }
            page.set_mapcount(end as i32);
        }
        let got = out.len() - left;
        page.set_refs(used + got as u32);
        got
    }

    /// Puts back those at the beginning of `objects` that are of the slab at `head`; how many. A slab that is then
    /// empty and not worth keeping is moved to `release`.
    ///
    /// # Errors
    /// How many were put back before one that could not be, and why: [`Defect::Interior`], [`Defect::DoubleFree`].
    #[inline(always)]
    pub fn put<M: Machine>(
        &mut self,
        m: &M,
        layout: &SlabLayout,
        head: Pfn,
        objects: &[usize],
        release: &mut PageList,
    ) -> Result<usize, (usize, Defect)> {
        let slab = SlabRef { m, layout, head };
        let base = m.virt(head).addr();
        let first = base + layout.offset(slab.page().colour(), 0);
        let starts = layout.starts();
        // The only one of its slab, as the next lies in another page.
        if let [object, rest @ ..] = objects
            && rest.first().is_none_or(|next| (next ^ object) / PAGE_SIZE != 0)
            && let Some(index) = starts.nth(object.wrapping_sub(first))
        {
            let (word, bit) = layout.bit(index);
            let bits = slab.map_word(word);
            if bits & bit == 0 {
                slab.set_map_word(word, bits | bit);
                self.count_back(&slab, 1, release);
                return Ok(1);
            }
        }
        let (mut done, mut defect) = (0, None);
        // Neighbours share a word of the map.
        let (mut from, mut bits) = (NO_WORD, 0);
        for object in objects {
            let Some(index) = starts.nth(object.wrapping_sub(first)) else {
                defect = (object.wrapping_sub(base) < layout.order.bytes()).then_some(Defect::Interior);
                break;
            };
            if index.wrapping_sub(from) >= 64 {
                if from != NO_WORD {
                    slab.set_map_word(from / 64, bits);
                }
                from = index & !63;
                bits = slab.map_word(from / 64);
            }
            let bit = 1 << (index % 64);
            if bits & bit != 0 {
                defect = Some(Defect::DoubleFree);
                break;
            }
            bits |= bit;
            done += 1;
        }
        if from != NO_WORD {
            slab.set_map_word(from / 64, bits);
        }
        if done > 0 {
            self.count_back(&slab, done as u32, release);
        }
        defect.map_or(Ok(done), |defect| Err((done, defect)))
    }

    /// Puts back the `count` objects of `window`, which are of this cache, `id`, and node; false, and nothing done,
    /// where that is not so of all, or one is free.
    pub fn put_window<M: Machine>(
        &mut self,
        m: &M,
        (id, home): (u8, usize),
        layout: &SlabLayout,
        window: &mut Window,
        count: usize,
        release: &mut PageList,
    ) -> bool {
        let (mut slabs, mut found) = (0, 0);
        for nth in 0..PAGES {
            let Some(address) = window.page(nth) else { continue };
            let Some((head, _)) = slab_of(m, ptr::with_exposed_provenance(address)) else { return false };
            let slab = SlabRef { m, layout, head };
            let page = slab.page();
            if page.cache() != u16::from(id) || page.node() != home {
                return false;
            }
            for word in 0..layout.map_words() {
                let bits = window.bits(layout, page.colour(), nth, word);
                let free = slab.map_word(word);
                if free & bits != 0 {
                    return false;
                }
                window.slabs[slabs].1[word as usize] = free | bits;
                found += bits.count_ones();
            }
            window.slabs[slabs].0 = head;
            slabs += 1;
        }
        // One is there twice, or lies where no object starts.
        if found != count as u32 {
            return false;
        }
        for (head, bits) in &window.slabs[..slabs] {
            let slab = SlabRef { m, layout, head: *head };
            let mut free = 0;
            for word in 0..layout.map_words() {
                slab.set_map_word(word, bits[word as usize]);
                free += bits[word as usize].count_ones();
            }
            let back = slab.page().refs() - (layout.objects - free);
            self.count_back(&slab, back, release);
        }
        true
    }

    /// Counts `count` objects of a slab that came back, and has it change lists where that is due.
    #[inline(always)]
    fn count_back<M: Machine>(&mut self, slab: &SlabRef<'_, M>, count: u32, release: &mut PageList) {
        let (layout, refs) = (slab.layout, slab.page().refs());
        let left = refs - count;
        slab.page().set_refs(left);
        self.free += u64::from(count);
        let from = (refs != layout.objects).then(|| bucket(layout, refs));
        let to = (left != 0).then(|| bucket(layout, left));
        if to.is_none() || from != to {
            self.relist(slab.m, layout, slab.head, from, to, release);
        }
    }

    /// Puts a slab of which objects came back on the list of bucket `to`, or of those that are empty, where there is
    /// none; it was on that of bucket `from`, or full.
    fn relist<M: Machine>(
        &mut self,
        m: &M,
        layout: &SlabLayout,
        head: Pfn,
        from: Option<usize>,
        to: Option<usize>,
        release: &mut PageList,
    ) {
        match from {
            Some(from) => self.partial[from].remove(head, |p| m.page(p)),
            None => m.page(head).set(flag::PARTIAL),
        }
        if let Some(to) = to {
            self.partial[to].push_front(head, |p| m.page(p));
        } else if self.empty.len() < layout.min_partial as u32 {
            self.empty.push_front(head, |p| m.page(p));
        } else {
            self.forget(m, layout, head);
            release.push_front(head, |p| m.page(p));
        }
    }

    fn forget<M: Machine>(&mut self, m: &M, layout: &SlabLayout, head: Pfn) {
        m.page(head).clear(flag::PARTIAL);
        self.slabs -= 1;
        self.free -= u64::from(layout.objects);
    }

    /// Whether the object at `offset` of the slab at `head` is free.
    ///
    /// # Errors
    /// [`Defect::Interior`]: no object starts there.
    pub fn is_free<M: Machine>(&self, m: &M, layout: &SlabLayout, head: Pfn, offset: usize) -> Result<bool, Defect> {
        let slab = SlabRef { m, layout, head };
        let index = layout.index(slab.page().colour(), offset).ok_or(Defect::Interior)?;
        let (word, bit) = layout.bit(index);
        Ok(slab.map_word(word) & bit != 0)
    }

    /// Takes in a new slab of cache `id`: the block at `head`, whose pages' descriptors the caller set to
    /// [`Kind::Slab`] with cache and order, and whose off-slab map, where there is one, `map` is.
    pub fn add<M: Machine>(&mut self, m: &M, id: u8, layout: &SlabLayout, head: Pfn, map: *mut u8) {
        let slab = SlabRef { m, layout, head };
        let page = slab.page();
        page.set_refs(0);
        page.set_mapcount(0);
        slab.describe(id, (self.next_colour % layout.colours) as usize, map);
        self.next_colour = (self.next_colour + 1) % layout.colours;
        for word in 0..layout.map_words() {
            slab.set_map_word(word, layout.all_free(word));
        }
        page.set(flag::PARTIAL);
        self.empty.push_front(head, |p| m.page(p));
        self.slabs += 1;
        self.free += u64::from(layout.objects);
    }

    /// Moves all kept empties to `release`.
    pub fn shrink<M: Machine>(&mut self, m: &M, layout: &SlabLayout, release: &mut PageList) {
        self.release_empties(m, layout, self.empty.len(), release);
    }

    /// Moves the kept empties that were not needed since the last call to `release`.
    pub fn age<M: Machine>(&mut self, m: &M, layout: &SlabLayout, release: &mut PageList) {
        self.release_empties(m, layout, self.empty_low, release);
        self.empty_low = self.empty.len();
    }

    fn release_empties<M: Machine>(&mut self, m: &M, layout: &SlabLayout, count: u32, release: &mut PageList) {
        for _ in 0..count {
            let Some(head) = self.empty.pop_back(|p| m.page(p)) else { break };
            self.forget(m, layout, head);
            release.push_front(head, |p| m.page(p));
        }
    }

    /// Partial slabs and kept empty ones; the rest are full.
    pub fn counts(&self) -> (u32, u32) {
        (self.partial.iter().map(PageList::len).sum(), self.empty.len())
    }

    /// Checks every listed slab's map against its count, its bucket and the totals.
    ///
    /// # Errors
    /// What contradicts what.
    pub fn verify<M: Machine>(&self, m: &M, id: u16, layout: &SlabLayout) -> Result<(), &'static str> {
        let mut free = 0u64;
        let lists = self.partial.iter().enumerate().map(|(b, l)| (Some(b), l)).chain([(None, &self.empty)]);
        for (bucket, list) in lists {
            let mut seen = 0;
            for head in list.iter(|p| m.page(p)) {
                seen += 1;
                if seen > list.len() {
                    return Err("slab list is longer than its count");
                }
                let slab = SlabRef { m, layout, head };
                for pfn in PfnRange::block(head, layout.order).iter() {
                    let page = m.page(pfn);
                    if page.kind() != Kind::Slab || page.cache() != id || page.order() != layout.order {
                        return Err("page of a listed slab does not say so");
                    }
                }
                if !slab.page().has(flag::PARTIAL) {
                    return Err("listed slab is not marked partial");
                }
                let mut bits = 0;
                for word in 0..layout.map_words() {
                    let map = slab.map_word(word);
                    if map & !layout.all_free(word) != 0 {
                        return Err("free map has bits beyond the last object");
                    }
                    bits += map.count_ones();
                }
                if bits + slab.page().refs() != layout.objects {
                    return Err("free bits and objects in use do not add up");
                }
                let fits = match bucket {
                    Some(b) => bits > 0 && slab.page().refs() > 0 && slab.bucket() == b,
                    None => slab.page().refs() == 0,
                };
                if !fits {
                    return Err("slab is on the wrong list for its occupancy");
                }
                free += u64::from(bits);
            }
            if seen != list.len() {
                return Err("slab list is shorter than its count");
            }
        }
        if free != self.free {
            return Err("free bits of all slabs differ from the node's count");
        }
        Ok(())
    }
}

impl Default for NodeSlabs {
    fn default() -> NodeSlabs {
        NodeSlabs::new()
    }
}
