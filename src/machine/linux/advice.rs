//! Which pageblocks of the arena the kernel was told to back by huge pages.
//!
//! Advice is kept by mapping: a pageblock that is advised otherwise than its neighbours splits one, and a process may have 65530. So it
//! is remembered what was said, the borders are counted, and beyond [`BORDERS`] of them no more are made.

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::sys;
use crate::types::PAGEBLOCK_SIZE;

/// Borders at most: an eighth of the kernel's default `max_map_count`.
const BORDERS: u32 = 8192;
/// Pageblocks of which it is remembered: 1 TiB. Those beyond keep the kernel's default.
const BLOCKS: u32 = 1 << 19;

/// A bit for each that is to be a huge page.
static HUGE: [AtomicU32; BLOCKS as usize / 32] = [const { AtomicU32::new(0) }; BLOCKS as usize / 32];
/// Pageblocks that were advised otherwise than the one before. Not exact while two threads advise neighbours.
static MADE: AtomicU32 = AtomicU32::new(0);

fn is_huge(nth: u32) -> bool {
    HUGE.get(nth as usize / 32).is_some_and(|word| word.load(Relaxed) & 1 << (nth % 32) != 0)
}

/// Says whether the `nth` pageblock of the arena, at `address`, is to be a huge page.
pub(super) fn set(address: usize, nth: u32, huge: bool) {
    if nth >= BLOCKS || is_huge(nth) == huge {
        return;
    }
    let unlike = |of: bool| {
        let before = nth > 0 && is_huge(nth - 1) != of;
        u32::from(before) + u32::from(is_huge(nth + 1) != of)
    };
    let (new, old) = (unlike(huge), unlike(!huge));
    let made = MADE.load(Relaxed);
    if made + new > BORDERS + old {
        return;
    }
    let advice = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
    if sys::madvise(address, PAGEBLOCK_SIZE, advice).is_ok() {
        HUGE[nth as usize / 32].fetch_xor(1 << (nth % 32), Relaxed);
        let _ = MADE.fetch_update(Relaxed, Relaxed, |made| Some((made + new).saturating_sub(old)));
    }
}
