//! Statistics and the whole-heap check.

use core::fmt::{self, Write};

use super::reserve::Reserve;
use super::{Mm, TINY};
use crate::error::Defect;
use crate::machine::{Machine, misuse};
use crate::slab::SlabStats;
use crate::types::{NR_ORDERS, PAGE_SIZE};

/// What the allocator holds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Slab caches.
    pub slab: SlabStats,
    /// Pages handed out by the page layer, to slabs and as runs.
    pub pages_in_use: u64,
    /// Pages free in the page layer.
    pub pages_free: u64,
    /// Those of them that hold memory.
    pub pages_backed: u64,
    /// Free blocks of the page layer, by order.
    pub free_blocks: [u64; NR_ORDERS],
    /// Live vmalloc areas.
    pub vmalloc_areas: u64,
    /// Their bytes.
    pub vmalloc_bytes: u64,
    /// Bytes of freed vmalloc ranges that are kept.
    pub vmalloc_retained: u64,
    /// Pages given back to the system.
    pub pages_returned: u64,
}

/// What [`Mm::verify`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The layer: "cache", "pages" or "vmalloc".
    pub place: &'static str,
    /// The cache's id, where it is one; else 0.
    pub cache: u8,
    /// What contradicts what.
    pub what: &'static str,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.place)?;
        if self.cache != 0 {
            write!(f, " {}", self.cache)?;
        }
        write!(f, ": {}", self.what)
    }
}

impl core::error::Error for Violation {}

impl<M: Machine> Mm<M> {
    /// What the allocator holds; nothing where that cannot be found out (a raw fork's child whose locks are lost).
    pub fn stats(&self) -> Stats {
        if self.is_crippled() {
            return Stats::default();
        }
        let zones = self.figures(|m| self.pages.stats(m));
        let free = zones.all.free + zones.pcp_pages + zones.emergency_pages;
        let areas = self.figures(|m| self.vmalloc.stats(m));
        let blocks = |order: usize| zones.all.blocks[order].iter().map(|n| u64::from(*n)).sum();
        Stats {
            slab: self.small_stats(),
            pages_in_use: zones.all.managed.saturating_sub(free),
            pages_free: free,
            pages_backed: zones.all.backed + zones.pcp_pages + zones.emergency_pages,
            free_blocks: core::array::from_fn(blocks),
            vmalloc_areas: areas.busy as u64,
            vmalloc_bytes: areas.busy_bytes as u64,
            vmalloc_retained: areas.retained_bytes as u64,
            pages_returned: zones.discarded,
        }
    }

    /// Writes the statistics as text, a table for each layer.
    ///
    /// # Errors
    /// The sink's.
    pub fn write_stats(&self, out: &mut dyn Write) -> fmt::Result {
        let m = &self.machine;
        if self.is_crippled() {
            return writeln!(out, "no statistics: a thread that this process does not have holds a lock");
        }
        writeln!(
            out,
            "{:<14} {:>6} {:>9} {:>9} {:>9} {:>7} {:>7} {:>7} {:>11} {:>9} {:>9}",
            "cache", "size", "in use", "sheaves", "free", "slabs", "partial", "empty", "bytes", "slow get", "slow put"
        )?;
        let mut result = Ok(());
        self.slab.for_each_cache(m, |name, c| {
            if result.is_ok() {
                result = writeln!(
                    out,
                    "{name:<14} {:>6} {:>9} {:>9} {:>9} {:>7} {:>7} {:>7} {:>11} {:>9} {:>9}",
                    c.size,
                    c.in_use,
                    c.in_sheaves,
                    c.free,
                    c.slabs,
                    c.partial,
                    c.empty,
                    c.slabs * c.pages_per_slab * PAGE_SIZE,
                    c.slow_allocs,
                    c.slow_frees,
                );
            }
        });
        result?;
        if TINY {
            writeln!(out, "first fit: {} pages", self.slob.pages())?;
        }
        let stats = self.stats();
        let zones = self.pages.stats(m);
        self.write_blocks(out)?;
        writeln!(
            out,
            "pages: {} in use, {} free ({} on per-CPU lists, {} backed), {} returned to the system",
            stats.pages_in_use, stats.pages_free, zones.pcp_pages, zones.all.backed, zones.discarded,
        )?;
        writeln!(out, "reserve for handlers: {} objects of {} bytes", self.reserve.len(), Reserve::SIZE)?;
        let areas = self.vmalloc.stats(m);
        writeln!(
            out,
            "vmalloc: {} areas of {} bytes in use, {} ranges of {} bytes retained; {} reused, {} placed, {} slots filled by \
             moving, {} grown, {} moved, {} bytes copied",
            areas.busy,
            areas.busy_bytes,
            areas.retained,
            areas.retained_bytes,
            areas.reused,
            areas.placed,
            areas.donated,
            areas.grown,
            areas.moved,
            areas.copied,
        )?;
        writeln!(out, "calls: {} on the slow path, {} to the system", stats.slab.slow_calls, m.system_calls())
    }

    /// Free blocks by order.
    #[inline(never)] // Its frame is not to stand below the rest.
    fn write_blocks(&self, out: &mut dyn Write) -> fmt::Result {
        for (node, kind, info) in self.populated() {
            write!(out, "Node {node}, zone {kind:>8?}")?;
            for order in &info.blocks {
                write!(out, " {:>6}", order.iter().sum::<u32>())?;
            }
            writeln!(out)?;
        }
        Ok(())
    }

    /// Pages of first fit count as slabs, in use wholly.
    fn small_stats(&self) -> SlabStats {
        let mut stats = self.figures(|m| self.slab.stats(m));
        stats.slab_bytes += self.slob.pages() as usize * PAGE_SIZE;
        stats
    }

    /// Reports a small block that was freed twice, as far as a look at this CPU's sheaves finds one: at exit, as one
    /// that the program does not allocate again is not found out otherwise. No system call.
    pub fn check_freed(&self) {
        if !self.is_up() || self.is_crippled() {
            return;
        }
        if let Some((id, object)) = self.slab.freed_twice(&self.machine, &self.pages) {
            misuse(&self.machine, Defect::DoubleFree, object, self.slab.name(id));
        }
    }

    /// Checks the whole heap: every layer's invariants. Threads may go on meanwhile. In a raw fork's child whose locks
    /// are lost nothing can be checked.
    ///
    /// # Errors
    /// What contradicts what.
    pub fn verify(&self) -> Result<(), Violation> {
        if self.is_crippled() {
            return Ok(());
        }
        self.figures(|m| self.slob.verify(m)).map_err(|what| Violation { place: "cache", cache: 0, what })?;
        self.figures(|m| self.slab.verify(m)).map_err(|(cache, what)| Violation { place: "cache", cache, what })?;
        self.figures(|m| self.vmalloc.verify(m)).map_err(|what| Violation { place: "vmalloc", cache: 0, what })?;
        self.figures(|m| self.pages.verify(m)).map_err(|what| Violation { place: "pages", cache: 0, what })?;
        Ok(())
    }
}
