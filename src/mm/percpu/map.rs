//! Which part of a per-CPU chunk is whose: first fit over granules, in one map for the copies of all CPUs (the kernel's
//! `mm/percpu.c`).

use crate::machine::CPU_SHIFT;

/// Bytes of one CPU's part of a chunk.
pub const UNIT: usize = 1 << CPU_SHIFT;
/// Bytes of a granule: the least size and alignment.
pub const GRANULE: usize = 16;
const GRANULES: usize = UNIT / GRANULE;
const WORDS: usize = GRANULES / 64;

/// The map of a chunk. All zeroes is an empty one.
pub struct Map {
    used: [u64; WORDS],
    /// First granules of what is handed out.
    starts: [u64; WORDS],
    /// Bytes from the beginning that were ever handed out: what lies behind still reads zero.
    pub touched: usize,
    /// Granules in use.
    in_use: usize,
}

impl Map {
    #[cfg(test)]
    pub const fn new() -> Map {
        Map { used: [0; WORDS], starts: [0; WORDS], touched: 0, in_use: 0 }
    }

    fn get(bits: &[u64; WORDS], at: usize) -> bool {
        bits[at / 64] & 1 << (at % 64) != 0
    }

    fn set(bits: &mut [u64; WORDS], at: usize, to: bool) {
        let bit = 1 << (at % 64);
        if to {
            bits[at / 64] |= bit;
        } else {
            bits[at / 64] &= !bit;
        }
    }

    /// Whether nothing is handed out.
    pub fn is_empty(&self) -> bool {
        self.in_use == 0
    }

    /// Hands out `size` bytes at a multiple of `align`, a power of two: the lowest place that fits.
    pub fn alloc(&mut self, size: usize, align: usize) -> Option<usize> {
        let want = size.max(1).div_ceil(GRANULE);
        let step = (align / GRANULE).max(1);
        let mut at = 0;
        while at + want <= GRANULES {
            match (at..at + want).rev().find(|granule| Map::get(&self.used, *granule)) {
                None => {
                    (at..at + want).for_each(|granule| Map::set(&mut self.used, granule, true));
                    Map::set(&mut self.starts, at, true);
                    self.in_use += want;
                    return Some(at * GRANULE);
                }
                Some(taken) => at = (taken + 1).next_multiple_of(step),
            }
        }
        None
    }

    /// Takes back what was handed out at `offset`; its bytes. `None` where nothing begins there.
    pub fn free(&mut self, offset: usize) -> Option<usize> {
        let first = offset / GRANULE;
        if !offset.is_multiple_of(GRANULE) || first >= GRANULES || !Map::get(&self.starts, first) {
            return None;
        }
        Map::set(&mut self.starts, first, false);
        let mut end = first;
        while end < GRANULES && Map::get(&self.used, end) && (end == first || !Map::get(&self.starts, end)) {
            Map::set(&mut self.used, end, false);
            end += 1;
        }
        self.in_use -= end - first;
        Some((end - first) * GRANULE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    // rows: J5
    /// Against a list of what is out: aligned, disjoint, lowest place first, and all of it comes back.
    #[test]
    fn j5_first_fit_against_a_list() {
        let mut map = Map::new();
        let mut out: BTreeMap<usize, usize> = BTreeMap::new();
        let mut random = 7u64;
        for step in 0..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let r = (random >> 33) as usize;
            if r.is_multiple_of(2) || step % 4000 < 1000 {
                let (size, align) = (r / 8 % 900 + 1, 1 << (r / 7 % 9));
                let fits = |at: usize| {
                    let before = out.range(..at + size).next_back();
                    at.is_multiple_of(align) && before.is_none_or(|(start, len)| start + len <= at) && at + size <= UNIT
                };
                let rounded = size.next_multiple_of(GRANULE);
                let lowest = (0..UNIT).step_by(GRANULE).find(|at| fits(*at) && at + rounded <= UNIT);
                assert_eq!(map.alloc(size, align), lowest, "{size} at {align}");
                if let Some(at) = lowest {
                    out.insert(at, rounded);
                }
            } else if let Some((at, size)) = out.range(r % UNIT..).next().map(|(a, s)| (*a, *s)) {
                assert_eq!(map.free(at + 8), None);
                assert_eq!(map.free(at), Some(size));
                assert_eq!(map.free(at), None, "twice");
                out.remove(&at);
            }
        }
        for (at, size) in out {
            assert_eq!(map.free(at), Some(size));
        }
        assert!(map.is_empty());
        assert_eq!(map.alloc(UNIT, 4096), Some(0));
        assert_eq!(map.alloc(1, 1), None);
    }
}
