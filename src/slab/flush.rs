//! What lies in sheaves, in barns and in empty slabs goes back: because somebody wants all of it, memory is short, or
//! it was not needed for a while.

use core::sync::atomic::Ordering;

use super::classes::NR_CLASSES;
use super::sheaf;
use super::{COLD_MS, Slab, runs};
use crate::gfp::Gfp;
use crate::machine::{MAX_CACHES, Machine};
use crate::page::PageList;
use crate::types::Order;
use crate::zone::{Cost, PageAllocator};

/// Sheaves are gathered once so much of all memory was begun, and so many pages for each CPU, whose row takes
/// microseconds to empty.
const GATHER_PART: u64 = 64;
const GATHER_CPU: u64 = 64;
/// So many times as much for objects where there are threads.
const GATHER_THREADS: u64 = 8;
/// Milliseconds that the request which does it may be held up.
const GATHER_MS: u64 = 4;

impl<M: Machine> Slab<M> {
    /// Empties the sheaves of cache `only`, or of all, on every CPU and in the barns, back into the slabs.
    pub fn flush(&self, m: &M, pages: &PageAllocator<M>, only: Option<u8>) {
        self.flush_where(m, pages, u64::MAX, |id| only.is_none_or(|only| only == id));
    }

    /// [`Slab::flush`] for the caches that `wanted` names, or for as many CPUs as there is time for until then. Whether
    /// it got through.
    pub(super) fn flush_where(&self, m: &M, pages: &PageAllocator<M>, until: u64, wanted: impl Fn(u8) -> bool) -> bool {
        let _in_hand = self.hands.begin();
        self.empty_sheaves(m, pages, until, wanted)
    }

    /// Gives back what was not needed since the last call: sheaves that lay in the barns all the time, kept empties.
    pub fn age(&self, m: &M, pages: &PageAllocator<M>) {
        self.age_runs(m, pages);
        let _in_hand = self.hands.begin();
        for id in self.ids() {
            let (cache, layout) = (self.cache(id), self.layout(id));
            if cache.slow_allocs.load(Ordering::Relaxed) == 0 && !sheaf::holds_sheaves(id) {
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

    /// `opened` pages of fresh memory had to be begun: after some of it what lies in sheaves, and holds on to a slab
    /// for each object, goes back, so that other caches and runs can have it before more is begun.
    ///
    /// (Arrays that grow in step pass through the classes. MiB resident at most, with this and without: perl 102.1 and
    /// 108.5, python3 with objects 102.2 and 107.3; where only caches of which no slow path was taken since the last
    /// time are emptied, 104.1 and 102.2. Page runs stay, with one thread, unless a quarter of all memory is in their
    /// sheaves: with theirs 104.4 and 104.8 in place of 104.6 and 104.7, but 82.9 instead of 78.9 of `large-same`, 46.4
    /// instead of 43.3 of `random-100k`. A quarter, and more, it is where one CPU frees what the other allocates: node,
    /// whose buffers a thread of its own frees, 98.9 in place of 118.3, and a fifteenth less time. Where runs cost only
    /// addresses it would gain none, and what comes next would begin other pages: `large` took 1.5 times as long and
    /// 5.5 MiB in place of 4.1, `pages` 1.07 times and 7.6 in place of 6.3. Rejected where there is one thread: more
    /// seldom, by a sixteenth or an eighth of all memory, or by the objects that the last time moved (1 to 3 % of
    /// `random-100k`; perl 104 MiB); caches alone of which no slow path was taken since (the same). Where there are
    /// threads, which refill at once what another one emptied, it took a tenth and more of the CPU time of `threads-8`
    /// to `threads-64`, and none of their memory less. CPU ms of `threads-32` and `threads-64`, and MiB of perl with a
    /// thread that sleeps: every 64th of all memory 138, 175, 102; that, but only caches of which no slow path was
    /// taken since, 129, 164, 104; an eighth 126, 153, 104; never 120, 151, 110. So objects are gathered seldom there,
    /// and runs as often as where there is one, where a tenth of all memory is in their sheaves: node at most 101 MiB,
    /// 107 with a quarter, however often objects are gathered, 111 with a tenth and an eighth as often, CPU time 0.24 s
    /// of all; a sixteenth is as a tenth. With one thread a tenth is 25.6 MiB in place of 23.5 of `pages-same`.)
    pub fn gather(&self, m: &M, pages: &PageAllocator<M>, opened: u32) {
        let opened = self.opened.fetch_add(opened, Ordering::Relaxed).saturating_add(opened);
        let committed = pages.committed();
        let worth = Self::worth_gathering(m, committed);
        // A small program begins its first memory, and there is nothing to gather.
        if u64::from(opened) < worth || committed < worth {
            return;
        }
        self.gather_all(m, pages, opened, committed);
    }

    /// Pages begun that are worth it, of `committed` ones.
    fn worth_gathering(m: &M, committed: u64) -> u64 {
        (committed / GATHER_PART).max(m.known_cpus() as u64 * GATHER_CPU)
    }

    /// [`Slab::gather`] where it is time. Of its own, as small programs never come here.
    #[cold]
    #[inline(never)]
    fn gather_all(&self, m: &M, pages: &PageAllocator<M>, opened: u32, committed: u64) {
        // One does it.
        if self.opened.compare_exchange(opened, 0, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        // Where there are threads somebody wants soon what was taken out of a sheaf.
        let since = self.opened_objects.fetch_add(opened, Ordering::Relaxed).saturating_add(opened);
        let objects = m.looks_below() || u64::from(since) >= Self::worth_gathering(m, committed) * GATHER_THREADS;
        if objects {
            self.opened_objects.store(0, Ordering::Relaxed);
        }
        let runs = pages.cost() != Cost::Little && self.keeps_much(m, committed);
        if !objects && !runs {
            return;
        }
        let used = |id: &u8| {
            let cache = self.cache(*id);
            let calls = [&cache.slow_allocs, &cache.slow_frees].map(|calls| calls.load(Ordering::Relaxed));
            let calls = calls[0].wrapping_add(calls[1]);
            cache.gathered.swap(calls, Ordering::Relaxed) != calls
        };
        let mut full = [false; MAX_CACHES];
        let kept = self.kept.load(Ordering::Relaxed);
        let wanted = |id: &u8| if runs::is_run(*id) { runs } else { objects && used(id) };
        let _in_hand = self.hands.begin();
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

    /// [`Slab::flush`], then gives every empty slab back to the page allocator. Whether it got at all rows.
    pub fn shrink(&self, m: &M, pages: &PageAllocator<M>, only: Option<u8>) -> bool {
        let _in_hand = self.hands.begin();
        let through = self.empty_sheaves(m, pages, u64::MAX, |id| only.is_none_or(|only| only == id));
        self.ids().filter(|id| only.is_none_or(|o| o == *id)).for_each(|id| self.shrink_slabs(m, pages, id));
        through
    }

    /// Gives the empty slabs of a cache back. The caller is counted in: they are still the cache's when no list has
    /// them any more.
    fn shrink_slabs(&self, m: &M, pages: &PageAllocator<M>, id: u8) {
        for node in self.nodes_of(m, id) {
            let mut release = PageList::new();
            node.locked(m).shrink(m, self.layout(id), &mut release);
            self.release(m, pages, release, Gfp::KERNEL);
        }
    }

    /// Gives back what lies behind the last object in use of slabs of size classes of which none was wanted lately,
    /// until [`Machine::now_ms`] is `until`. To be called after [`Slab::shrink`]. Returns pages.
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

    /// Whether the object at `address` of cache `id` is free, exactly: every sheaf of the cache is emptied first.
    /// For the rare free that looks like a second one.
    pub fn is_free(&self, m: &M, pages: &PageAllocator<M>, id: u8, address: *const u8) -> bool {
        self.drain_deferred(m, pages);
        let mut free = false;
        self.hands.repeat_alone(m, || {
            self.flush(m, pages, Some(id));
            // Where the flush gave back its whole slab there is nothing left to find it in.
            free = self.cache_of(m, address, true).is_err();
            free
        });
        free
    }
}
