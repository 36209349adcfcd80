//! What the caches hold, and whether it all adds up.
#![allow(unsafe_code)]

use core::fmt::Write;
use core::ptr;
use core::sync::atomic::Ordering;

use super::exchange::FIRST_REFILL;
use super::node::slab_of;
use super::{CacheNode, FIRST_CREATED, Slab, SlabFlags};
use super::{runs, sheaf};
use crate::machine::{MAX_CACHES, Machine, Word};
use crate::types::Line;

/// A cache's numbers. Objects in sheaves count as neither free nor in use by the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Cache id.
    pub id: u8,
    /// Bytes from one object to the next.
    pub size: usize,
    /// Objects a slab holds.
    pub objects_per_slab: usize,
    /// Pages of a slab.
    pub pages_per_slab: usize,
    /// Slabs, and those of them that are partial and empty.
    pub slabs: usize,
    /// Slabs with free and used objects.
    pub partial: usize,
    /// Slabs without used objects.
    pub empty: usize,
    /// Objects with the program.
    pub in_use: usize,
    /// Objects in sheaves, on CPUs and in barns.
    pub in_sheaves: usize,
    /// Of these, in barns.
    pub in_barns: usize,
    /// Objects that a sheaf holds.
    pub capacity: usize,
    /// Objects of the next refill from the slabs.
    pub batch: usize,
    /// Objects free in their slabs.
    pub free: usize,
    /// Allocations that found the main sheaf empty.
    pub slow_allocs: usize,
    /// Frees that found the main sheaf full.
    pub slow_frees: usize,
}

/// Totals over all caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlabStats {
    /// Bytes of all slabs.
    pub slab_bytes: usize,
    /// Bytes of objects with the program.
    pub in_use_bytes: usize,
    /// Objects and page runs that were freed and lie ready in sheaves.
    pub in_sheaves: usize,
    /// Their bytes.
    pub in_sheaves_bytes: usize,
    /// The bytes among them that are page runs, which the page layer counts as in use.
    pub in_sheaves_runs: usize,
    /// Allocations and frees that reached the slow path.
    pub slow_calls: usize,
}

impl<M: Machine> Slab<M> {
    /// Calls `f` for every cache in use, without any lock, with copies: it may allocate, and make and destroy caches.
    pub fn for_each_cache(&self, m: &M, mut f: impl FnMut(&str, &CacheStats)) {
        let in_rows = self.objects_in_rows(m);
        for id in self.ids() {
            if let Some((name, stats)) = self.cache_stats(m, id, in_rows[id as usize]) {
                f(name.as_str(), &stats);
            }
        }
    }

    /// Copies of the name and the numbers of cache `id`, if it is in use; `in_rows` of its objects lie in CPUs'
    /// sheaves.
    pub fn cache_stats(&self, m: &M, id: u8, in_rows: u32) -> Option<(Line, CacheStats)> {
        // No name or shape changes while it is held.
        let _registry = self.registry.lock(m);
        if !self.ids().any(|live| live == id) {
            return None;
        }
        let stats = self.stats_of(m, id, in_rows)?;
        let mut name = Line::new();
        let _ = name.write_str(self.name(id));
        Some((name, stats))
    }

    /// Objects in the CPUs' sheaves, by cache.
    pub fn objects_in_rows(&self, m: &M) -> [u32; MAX_CACHES] {
        // Counted, as who destroys a cache does not find what a drained row holds, and has to try again.
        let _in_hand = self.hands.begin();
        let mut in_rows = [0u32; MAX_CACHES];
        for cpu in 0..m.rows_end() {
            m.drain_row(cpu, &mut |row| {
                for id in self.ids() {
                    for word in Word::all(id) {
                        // SAFETY: it is in the row.
                        in_rows[id as usize] += unsafe { sheaf::len(row[word.index()], self.capacity(id)) } as u32;
                    }
                }
            });
        }
        in_rows
    }

    /// The numbers of live cache `id`; `None` for a size class that was never used.
    fn stats_of(&self, m: &M, id: u8, in_rows: u32) -> Option<CacheStats> {
        let layout = self.layout(id);
        let cache = self.cache(id);
        let capacity = layout.capacity;
        let mut stats = CacheStats {
            id,
            size: layout.size as usize,
            objects_per_slab: layout.objects as usize,
            pages_per_slab: layout.order.pages() as usize,
            capacity: capacity as usize,
            batch: cache.refill.load(Ordering::Relaxed).max(FIRST_REFILL).min(capacity) as usize,
            slow_allocs: cache.slow_allocs.load(Ordering::Relaxed),
            slow_frees: cache.slow_frees.load(Ordering::Relaxed),
            ..CacheStats::default()
        };
        for node in self.nodes_of(m, id) {
            stats.in_barns += self.in_barn(m, id, node);
            let slabs = node.locked(m);
            let (partial, empty) = slabs.counts();
            stats.slabs += slabs.slabs as usize;
            stats.partial += partial as usize;
            stats.empty += empty as usize;
            stats.free += slabs.free as usize;
        }
        stats.in_sheaves = in_rows as usize + stats.in_barns;
        stats.in_use = (stats.slabs * stats.objects_per_slab).saturating_sub(stats.free + stats.in_sheaves);
        (stats.slabs > 0 || stats.slow_allocs + stats.slow_frees > 0 || id >= FIRST_CREATED).then_some(stats)
    }

    fn in_barn(&self, m: &M, id: u8, node: &CacheNode) -> usize {
        let barn = node.barn.lock(m);
        // SAFETY: they are in the barn.
        barn.full_words(self.capacity(id)).map(|word| unsafe { sheaf::len(word, self.capacity(id)) }).sum()
    }

    /// Pages of a node's slabs: of those that a shrinker may empty, and of the others.
    pub fn node_pages(&self, m: &M, node: usize) -> (u64, u64) {
        let _in_hand = self.hands.begin();
        let (mut reclaimable, mut unreclaimable) = (0, 0);
        for id in self.ids() {
            let cache = self.cache(id);
            let slabs = self.node(id, node).locked(m).slabs;
            let pages = u64::from(slabs) * u64::from(self.layout(id).order.pages());
            match id >= FIRST_CREATED && cache.shape().flags.has(SlabFlags::RECLAIM_ACCOUNT) {
                true => reclaimable += pages,
                false => unreclaimable += pages,
            }
        }
        (reclaimable, unreclaimable)
    }

    /// Totals.
    pub fn stats(&self, m: &M) -> SlabStats {
        let mut total = SlabStats::default();
        self.for_each_cache(m, |_, c| {
            total.slab_bytes += c.slabs * c.pages_per_slab * crate::types::PAGE_SIZE;
            total.in_use_bytes += c.in_use * c.size;
            total.slow_calls += c.slow_allocs + c.slow_frees;
            // The last class of runs holds one of any size a CPU.
            if c.id != runs::LAST_RUN {
                total.in_sheaves += c.in_sheaves;
                total.in_sheaves_bytes += c.in_sheaves * c.size;
                total.in_sheaves_runs += if runs::is_run(c.id) { c.in_sheaves * c.size } else { 0 };
            }
        });
        total
    }

    /// Checks slabs, free maps, lists, and that every object in a sheaf is one, is not free in its slab, and is in
    /// its CPU's sheaves once.
    ///
    /// # Errors
    /// The cache and what contradicts what.
    pub fn verify(&self, m: &M) -> Result<(), (u8, &'static str)> {
        let _in_hand = self.hands.begin();
        for id in self.ids() {
            for node in self.nodes_of(m, id) {
                let barn = node.barn.lock(m);
                for word in barn.full_words(self.capacity(id)) {
                    // SAFETY: the sheaf lies in the barn, whose lock is held.
                    let objects = unsafe { sheaf::objects(word, self.capacity(id)) };
                    self.verify_objects(m, id, objects).map_err(|e| (id, e))?;
                }
                drop(barn);
                node.locked(m).verify(m, u16::from(id), self.layout(id)).map_err(|e| (id, e))?;
            }
        }
        let mut result = Ok(());
        for cpu in 0..m.rows_end() {
            m.drain_row(cpu, &mut |row| {
                for id in self.ids() {
                    for word in Word::all(id) {
                        // SAFETY: the row is drained, so its sheaves are held still.
                        let objects = unsafe { sheaf::objects(row[word.index()], self.capacity(id)) };
                        if let Err(e) = self.verify_objects(m, id, objects) {
                            result = Err((id, e));
                        }
                    }
                }
            });
            result?;
        }
        Ok(())
    }

    /// Objects of a sheaf of cache `id`. The caller may hold the barn's lock, so descriptors are looked at without the
    /// list lock: the fields read do not change while the object is out.
    fn verify_objects(&self, m: &M, id: u8, objects: &[usize]) -> Result<(), &'static str> {
        if runs::is_run(id) {
            return self.verify_runs(m, id, objects);
        }
        for (i, object) in objects.iter().enumerate() {
            let Some((head, offset)) = slab_of(m, ptr::with_exposed_provenance(*object)) else {
                return Err("object in a sheaf lies in no slab");
            };
            let page = m.page(head);
            let home = page.cache() as u8;
            if self.layout(home).size < self.layout(id).size {
                return Err("object in a sheaf is smaller than the sheaf's cache");
            }
            if self.layout(home).index(page.colour(), offset).is_none() {
                return Err("address in a sheaf is no object's start");
            }
            if objects[..i].contains(object) {
                return Err("object is in a sheaf twice");
            }
            if !self.is_marked(id, *object) {
                return Err("object in a sheaf is not marked as free");
            }
        }
        Ok(())
    }
}
