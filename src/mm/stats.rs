//! Statistics and the whole-heap check.

use core::fmt::{self, Write};
use core::sync::atomic::Ordering;

use super::Mm;
use crate::machine::Machine;
use crate::slab::SlabStats;
use crate::types::PAGE_SIZE;

/// What the allocator holds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Slab caches.
    pub slab: SlabStats,
    /// Pages handed out by the page layer, to slabs and as runs.
    pub pages_in_use: u64,
    /// Pages free in the page layer.
    pub pages_free: u64,
    /// Bytes of live vmalloc areas.
    pub vmalloc_bytes: u64,
    /// Pages given back to the system.
    pub pages_returned: u64,
}

/// What [`Mm::verify`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The layer: a cache's name, or "pages" or "vmalloc".
    pub place: &'static str,
    /// The cache, where it is one.
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
    /// What the allocator holds.
    pub fn stats(&self) -> Stats {
        Stats {
            slab: self.slab.stats(&self.machine),
            pages_returned: self.returned.load(Ordering::Relaxed),
            ..Stats::default()
        }
    }

    /// Writes the statistics as text.
    ///
    /// # Errors
    /// The sink's.
    pub fn write_stats(&self, out: &mut dyn Write) -> fmt::Result {
        let _ = PAGE_SIZE;
        writeln!(out, "{:?}", self.stats())
    }

    /// Checks the whole heap.
    ///
    /// # Errors
    /// What contradicts what.
    pub fn verify(&self) -> Result<(), Violation> {
        self.slab.verify(&self.machine).map_err(|(cache, what)| Violation { place: "cache", cache, what })
    }
}
