//! Which pageblocks of the arena the kernel was told to back by huge pages.
//!
//! Advice is kept by mapping: a pageblock that is advised otherwise than its neighbours splits one, and a process may
//! have 65530. So it is remembered what was said, the borders are counted, and beyond [`BORDERS`] of them no more are
//! made.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use super::sys;
use crate::types::PAGEBLOCK_SIZE;

/// Borders at most: an eighth of the kernel's default `max_map_count`.
const BORDERS: u32 = 8192;
/// Pageblocks of which it is remembered: 1 TiB. Those beyond keep the kernel's default.
const BLOCKS: u32 = 1 << 19;

/// Of each pageblock what was said, two bits: nothing, [`SMALL`] or [`HUGE`].
static SAID: [AtomicU32; BLOCKS as usize / 16] = [const { AtomicU32::new(0) }; BLOCKS as usize / 16];
const SMALL: u32 = 1;
const HUGE: u32 = 2;
/// Pageblocks that were advised otherwise than the one before. Not exact while two threads advise neighbours.
static MADE: AtomicU32 = AtomicU32::new(0);
/// Something was said, so that it is worth a look at what.
static SPOKEN: AtomicBool = AtomicBool::new(false);

fn said(nth: u32) -> u32 {
    SAID.get(nth as usize / 16).map_or(0, |word| word.load(Relaxed) >> (nth % 16 * 2) & 3)
}

/// Whether the `nth` pageblock of the arena is to be a huge page.
pub(super) fn is_huge(nth: u32) -> bool {
    said(nth) == HUGE
}

/// Says whether the `nth` pageblock of the arena, at `address`, is to be a huge page. What is not by default is not
/// told so.
pub(super) fn set(address: usize, nth: u32, huge: bool) {
    if huge || SPOKEN.load(Relaxed) && said(nth) == HUGE {
        say(address, nth, huge);
    }
}

/// Says it in any case.
pub(super) fn say(address: usize, nth: u32, huge: bool) {
    let old = said(nth);
    let new = if huge { HUGE } else { SMALL };
    if nth >= BLOCKS || old == new {
        return;
    }
    let (more, less) = (unlike(nth, new), unlike(nth, old));
    let made = MADE.load(Relaxed);
    if made + more > BORDERS + less {
        return;
    }
    SPOKEN.store(true, Relaxed);
    let advice = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
    if sys::madvise(address, PAGEBLOCK_SIZE, advice).is_ok() {
        note(nth, old, new);
    }
}

/// How many of the neighbours of the `nth` pageblock something else was said of.
fn unlike(nth: u32, of: u32) -> u32 {
    let before = nth > 0 && said(nth - 1) != of;
    u32::from(before) + u32::from(said(nth + 1) != of)
}

/// The mapping of the `nth` pageblock is gone, and what was said of it.
pub(super) fn forget(nth: u32) {
    let old = said(nth);
    if old != 0 {
        note(nth, old, 0);
    }
}

fn note(nth: u32, old: u32, new: u32) {
    let (more, less) = (unlike(nth, new), unlike(nth, old));
    let shift = nth % 16 * 2;
    let say = |word: u32| (word >> shift & 3 == old).then_some(word ^ (old ^ new) << shift);
    // Who says the same at the same time is not counted.
    if SAID[nth as usize / 16].fetch_update(Relaxed, Relaxed, say).is_ok() {
        let _ = MADE.fetch_update(Relaxed, Relaxed, |made| Some((made + more).saturating_sub(less)));
    }
}
