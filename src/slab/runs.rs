//! Page runs in front of the zone: what a CPU freed last of each size, in sheaves like small objects.
//!
//! A run of up to 256 KiB has a class by its number of pages: 3 to 16 each, then eight per doubling, so that at most an
//! eighth is rounded away. A class is a cache id whose "objects" are whole runs, named by their first page's address: the same
//! rows and sections serve them, but there are no slabs behind, and no barn. A CPU keeps two sheaves of 128 KiB
//! a class, or the last run freed where that is larger; what is more goes back to the zone, and what lies for a while does, too. Of
//! the runs above, to 2 MiB, it keeps one, whatever its size: that serves loops.
//!
//! Measured (2 CPUs; ns for allocating and freeing a run of 9 to 200 KB in turn): lists under a lock per CPU 56, this 8; glibc 12,
//! mimalloc 12 to 165, jemalloc 10 to 280, tcmalloc 5. By the bytes of a sheaf, with the zone's rows behind: 500 live runs of 4 to
//! 64 KiB that change at random, ns a change and MiB resident where all pages are touched: 64 KiB 160 and 26.0, 128 KiB 105 and 28.1, 256 KiB
//! 60 and 30.1 (jemalloc 350 and 28.2, mimalloc 31 and 30.1, tcmalloc 11 and 35.2). What is left is the first atomic instruction of the
//! slow path, which waits for the program's own writes to cold memory. Rejected: classes of the sizes above, whose caches raised the
//! peak of random live runs (9 KiB to 1.5 MiB) from 1.13 to 1.31 of what is live.
#![allow(unsafe_code)]

use super::layout::SlabLayout;
use super::sheaf;
use super::{SHEAF_CACHE, Slab};
use crate::gfp::Gfp;
use crate::machine::{Machine, Word, ZoneKind, no_sheaf};
use crate::page::{Kind, Page, flag};
use crate::types::{Order, PAGE_SIZE, PfnRange};
use crate::zone::PageAllocator;

/// Largest run kept, in pages.
pub const MAX_CACHED: u32 = 64;
/// Largest run kept at all, in pages.
const MAX_LAST: u32 = 512;
/// Number of classes, the one of larger runs included.
pub const NR_RUNS: usize = 31;
/// Fewest pages of a run: less is small.
const MIN_CACHED: u32 = 3;
/// Runs up to this many pages have a class each.
const EXACT: u32 = 16;
/// Bytes that a sheaf's runs should not exceed.
const SHEAF_TARGET: usize = 128 << 10;
/// Most runs in a sheaf.
const MOST: usize = 16;

/// Cache id of the first class.
pub const FIRST_RUN: u8 = SHEAF_CACHE + 1;

/// Cache id of the larger runs, of various sizes.
pub const LAST_RUN: u8 = FIRST_RUN + NR_RUNS as u8 - 1;

/// Whether cache `id` is one of runs.
#[inline]
pub const fn is_run(id: u8) -> bool {
    id >= FIRST_RUN && id <= LAST_RUN
}

/// Pages of a run of cache `id`, the most for [`LAST_RUN`].
pub const fn run_pages(id: u8) -> u32 {
    if id == LAST_RUN {
        return MAX_LAST;
    }
    let n = (id - FIRST_RUN) as u32;
    let exact = EXACT - MIN_CACHED + 1;
    if n < exact {
        return MIN_CACHED + n;
    }
    let (doubling, step) = ((n - exact) / 8, (n - exact) % 8);
    (EXACT << doubling) / 8 * (9 + step)
}

const fn table() -> [u8; MAX_CACHED as usize + 1] {
    let mut table = [0; MAX_CACHED as usize + 1];
    let (mut id, mut pages) = (FIRST_RUN, 1);
    while pages <= MAX_CACHED {
        if run_pages(id) < pages {
            id += 1;
        }
        table[pages as usize] = id;
        pages += 1;
    }
    table
}

static CLASS_OF: [u8; MAX_CACHED as usize + 1] = table();

/// The class whose runs hold `pages` pages each; 0 where there is none.
#[inline]
pub fn run_class(pages: usize) -> u8 {
    CLASS_OF.get(pages).copied().unwrap_or(0)
}

/// What a class's sheaves and reports go by.
pub(super) const fn layout(id: u8) -> SlabLayout {
    let size = run_pages(id) as usize * PAGE_SIZE;
    let fits = SHEAF_TARGET / size;
    let capacity = if fits > MOST {
        MOST
    } else if fits == 0 {
        1
    } else {
        fits
    };
    SlabLayout {
        size: size as u32,
        object_size: size as u32,
        align: PAGE_SIZE as u32,
        objects: 1,
        order: Order::ZERO,
        capacity: capacity as u16,
        ..SlabLayout::NONE
    }
}

/// The class that the run headed by `head` may be kept in; 0 where none: it is of another size, or of scarce memory.
#[inline]
pub fn class_of_run(head: &Page) -> u8 {
    if head.zone() < ZoneKind::Normal as usize || head.has(flag::RESERVE) {
        return 0;
    }
    let pages = head.word() as u32;
    match run_class(pages as usize) {
        0 if pages > MAX_CACHED && pages <= MAX_LAST => LAST_RUN,
        id if id != 0 && run_pages(id) == pages => id,
        _ => 0,
    }
}

/// Whether a run of `found` pages, the last larger one, serves for `pages` pages: it wastes at most an eighth.
#[inline]
pub fn last_serves(found: u32, pages: usize) -> bool {
    (pages..=pages + pages / 8).contains(&(found as usize))
}

impl<M: Machine> Slab<M> {
    /// Runs of class `id` that a CPU keeps at most.
    pub fn run_capacity(&self, id: u8) -> usize {
        self.capacity(id).into()
    }

    /// The first page of a run of class `id` that the current CPU kept, when its main sheaf seemed empty; null where it has none.
    /// The run is still [`Kind::Kept`], its contents are unknown.
    #[cold]
    #[inline(never)]
    pub fn take_run(&self, m: &M, pages: &PageAllocator<M>, id: u8, gfp: Gfp) -> *mut u8 {
        self.caches[id as usize].slow_allocs.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
        // SAFETY: rows hold valid sheaves.
        let run = unsafe { m.pop_again(id) };
        if !run.is_null() {
            return run;
        }
        let Some(mut own) = self.take_spare(m, id, |len, _| len > 0) else { return core::ptr::null_mut() };
        let run = own.pop();
        // Whatever the row has by now: ours is the fuller one.
        let main = m.read(Word::Main(id)).unwrap_or(no_sheaf());
        if sheaf::len(main, self.capacity(id)) == 0 {
            self.install(m, pages, id, main, own, gfp);
        } else {
            self.stow(m, pages, id, own, gfp);
        }
        run.unwrap_or(core::ptr::null_mut())
    }

    /// Keeps the run at `run` of class `id`, when the current CPU's main sheaf seemed full, or gives it back to the zone.
    ///
    /// # Safety
    /// The run is off all lists ([`Kind::Isolated`]), of that class, and the caller gives it up.
    #[cold]
    #[inline(never)]
    pub unsafe fn give_run(&self, m: &M, pages: &PageAllocator<M>, id: u8, run: *mut u8, gfp: Gfp) {
        // SAFETY: the caller's condition.
        if !unsafe { self.keep_run(m, pages, id, run, gfp) } {
            self.free_objects(m, pages, &[run.expose_provenance()], gfp);
        }
    }

    /// # Safety
    /// As for [`Slab::give_run`].
    unsafe fn keep_run(&self, m: &M, pages: &PageAllocator<M>, id: u8, run: *mut u8, gfp: Gfp) -> bool {
        self.caches[id as usize].slow_frees.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
        let Some(head) = m.pfn(run).map(|pfn| m.page(pfn)) else { return false };
        // Before anybody else can have it.
        head.set_kind(Kind::Kept, Order::ZERO);
        let refused = || {
            head.set_kind(Kind::Isolated, Order::ZERO);
            false
        };
        // SAFETY: rows hold valid sheaves; the caller's condition.
        if unsafe { m.push_again(id, run) } {
            return true;
        }
        if self.capacity(id) == 1 {
            // The new one in the place of the old one.
            // SAFETY: rows hold valid sheaves; what is popped is ours.
            unsafe {
                let old = m.pop_again(id);
                if !old.is_null() {
                    let pushed = m.push_again(id, run);
                    self.free_objects(m, pages, &[old.expose_provenance()], gfp);
                    return pushed || refused();
                }
            }
        }
        if !gfp.may_io() && !m.is_attached() {
            return refused();
        }
        let Some(main) = m.read(Word::Main(id)).filter(|main| sheaf::is_full(*main)) else { return refused() };
        let own = self.take_spare(m, id, |_, full| !full).or_else(|| self.empty_sheaf(m, pages, id, gfp));
        let Some(mut own) = own else { return refused() };
        let pushed = own.push(run).is_ok();
        if !pushed {
            refused();
        }
        self.install(m, pages, id, main, own, gfp);
        pushed
    }

    /// Gives the run at `address`, which was in a sheaf, back to the zone; false where the lock was not to be had.
    pub(super) fn free_run(&self, m: &M, pages: &PageAllocator<M>, address: usize, gfp: Gfp) -> bool {
        let Some(pfn) = m.pfn(core::ptr::with_exposed_provenance(address)) else { return true };
        pages.free_run(m, PfnRange::new(pfn, m.page(pfn).word() as u32), gfp.may_block())
    }

    /// Gives all runs in sheaves back to the zone.
    pub fn flush_runs(&self, m: &M, pages: &PageAllocator<M>) {
        self.flush_where(m, pages, is_run);
    }

    /// Checks a sheaf of class `id`.
    pub(super) fn verify_runs(&self, m: &M, id: u8, runs: &[usize]) -> Result<(), &'static str> {
        for (i, run) in runs.iter().enumerate() {
            let head = m.pfn(core::ptr::with_exposed_provenance(*run)).ok_or("run in a sheaf lies in no zone")?;
            if m.virt(head).addr() != *run {
                return Err("address in a sheaf of runs is no page's start");
            }
            if m.page(head).kind() != Kind::Kept || class_of_run(m.page(head)) != id {
                return Err("run in a sheaf is none of its class");
            }
            if runs[..i].contains(run) {
                return Err("run is in a sheaf twice");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_gets_the_smallest_class_that_holds_it() {
        assert_eq!(run_pages(LAST_RUN - 1), MAX_CACHED);
        assert_eq!(run_class(MAX_CACHED as usize + 1), 0);
        for pages in MIN_CACHED..=MAX_CACHED {
            let id = run_class(pages as usize);
            assert!(is_run(id) && run_pages(id) >= pages);
            assert!(id == FIRST_RUN || run_pages(id - 1) < pages);
            assert!((run_pages(id) - pages) * 8 <= pages, "{pages} pages");
            assert!(
                layout(id).capacity >= 1
                    && layout(id).capacity as usize * layout(id).size as usize
                        <= SHEAF_TARGET.max(layout(id).size as usize)
            );
        }
    }
}
