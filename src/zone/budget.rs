//! The process's budget: how many pages may be backed by memory at once.
//!
//! Committed pages are all that may hold memory: what is handed out, what is free but backed, and what other layers
//! charge. Only taking a clean block raises the number, so reuse is never refused.
//!
//! Beside the limit, which refuses, there is a mark of pressure, which does not: a control group's limit is about pages
//! that are touched, and of those asked for nobody knows how many will be. Above the mark the layers above give back
//! what is free. Where that does not help, because all is in use or was never touched, the mark *yields*: it moves up
//! by a part of itself, so that the next attempt comes when as much more has been taken, and not with every request.

use core::sync::atomic::Ordering::Relaxed;

use super::watermark::{self, Mark, Watermarks};
use crate::gfp::Gfp;
use crate::sync::wide::AtomicU64;

/// Accounting against a limit. All accesses are Relaxed: the numbers guard nothing but themselves.
pub struct Budget {
    /// 0 for none.
    limit: AtomicU64,
    committed: AtomicU64,
    /// Committed pages above which memory is short; 0 for none.
    pressure: AtomicU64,
    /// The mark that stands in for it since giving back did not help.
    yielded: AtomicU64,
    /// Pages that there are at most; 0 as long as that is not known.
    memory: AtomicU64,
}

/// Part of the mark of pressure by which it yields.
const YIELD: u64 = 32;
/// Part of the memory that may turn out to have been wasted.
const LITTLE: u64 = 16;

impl Budget {
    pub const fn new() -> Budget {
        Budget {
            limit: AtomicU64::new(0),
            committed: AtomicU64::new(0),
            pressure: AtomicU64::new(0),
            yielded: AtomicU64::new(0),
            memory: AtomicU64::new(0),
        }
    }

    /// Sets the mark of pressure in pages, `u64::MAX` for none.
    pub fn set_pressure(&self, pages: u64) {
        self.pressure.store(if pages == u64::MAX { 0 } else { pages.max(1) }, Relaxed);
    }

    /// Whether memory is short.
    #[inline]
    pub fn pressed(&self) -> bool {
        let mark = self.pressure.load(Relaxed);
        mark != 0 && self.committed() > mark
    }

    /// Sets how many pages there are at most.
    pub fn set_memory(&self, pages: u64) {
        self.memory.store(pages, Relaxed);
    }

    /// Whether so many pages are little of what there is.
    #[inline]
    pub fn affords(&self, pages: u64) -> bool {
        pages <= self.memory.load(Relaxed) / LITTLE
    }

    /// Whether memory is short and what is free should go back.
    #[inline]
    pub fn strained(&self) -> bool {
        self.pressed() && self.committed() > self.yielded.load(Relaxed)
    }

    /// Giving back did not help: the mark moves up.
    pub fn yield_mark(&self) {
        self.yielded.store(self.committed() + self.pressure.load(Relaxed) / YIELD, Relaxed);
    }

    /// The mark follows what is committed down.
    pub fn settle_mark(&self) {
        let to = self.committed() + self.pressure.load(Relaxed) / YIELD;
        self.yielded.fetch_min(to, Relaxed);
    }

    /// Sets the limit in pages, `u64::MAX` for none.
    pub fn set_limit(&self, pages: u64) {
        self.limit.store(if pages == u64::MAX { 0 } else { pages.max(1) }, Relaxed);
    }

    /// The limit in pages.
    pub fn limit(&self) -> Option<u64> {
        Some(self.limit.load(Relaxed)).filter(|limit| *limit != 0)
    }

    /// Committed pages.
    pub fn committed(&self) -> u64 {
        self.committed.load(Relaxed)
    }

    /// Whether more is committed than the limit.
    pub fn overdrawn(&self) -> bool {
        self.limit().is_some_and(|limit| self.committed() > limit)
    }

    /// Charges pages for a request, unless the mark would not be left.
    pub fn try_charge(&self, pages: u64, mark: Mark, gfp: Gfp) -> bool {
        let Some(limit) = self.limit() else {
            self.charge(pages);
            return true;
        };
        let mark = u64::from(Watermarks::of(limit).mark(mark, gfp));
        let fits = |committed: u64| {
            watermark::passes(limit.saturating_sub(committed), pages, mark, 0).then(|| committed + pages)
        };
        self.committed.fetch_update(Relaxed, Relaxed, fits).is_ok()
    }

    /// Charges pages in any case.
    pub fn charge(&self, pages: u64) {
        self.committed.fetch_add(pages, Relaxed);
    }

    /// Takes a charge back.
    pub fn uncharge(&self, pages: u64) {
        let before = self.committed.fetch_sub(pages, Relaxed);
        debug_assert!(before >= pages, "more pages uncharged than charged");
    }
}
