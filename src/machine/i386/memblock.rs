//! The boot-time allocator: what memory there is, and what of it is taken, as two sorted arrays of byte ranges (the
//! kernel's memblock). It serves until the buddy system takes over what is left.

use core::ops::Range;

/// Why the boot-time allocator refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// More separate ranges than the array holds.
    TooManyRanges,
    /// No memory free in the limits.
    NoMemory,
}

/// Sorted, disjoint, non-adjacent ranges.
#[derive(Clone, Copy, Debug)]
struct Ranges<const N: usize> {
    all: [(u64, u64); N],
    len: usize,
}

impl<const N: usize> Ranges<N> {
    const EMPTY: Ranges<N> = Ranges { all: [(0, 0); N], len: 0 };

    fn iter(&self) -> impl DoubleEndedIterator<Item = Range<u64>> + '_ {
        self.all[..self.len].iter().map(|&(start, end)| start..end)
    }

    /// Adds a range, merging it with those it touches.
    fn add(&mut self, mut range: Range<u64>) -> Result<(), Refused> {
        if range.is_empty() {
            return Ok(());
        }
        let first = self.iter().take_while(|r| r.end < range.start).count();
        let touched = self.iter().skip(first).take_while(|r| r.start <= range.end).count();
        if touched > 0 {
            range = range.start.min(self.all[first].0)..range.end.max(self.all[first + touched - 1].1);
        }
        if touched == 0 && self.len == N {
            return Err(Refused::TooManyRanges);
        }
        self.all.copy_within(first + touched..self.len, first + 1);
        self.len = self.len + 1 - touched;
        self.all[first] = (range.start, range.end);
        Ok(())
    }

    /// Takes a range out, splitting what covers it.
    fn remove(&mut self, range: Range<u64>) -> Result<(), Refused> {
        let old = *self;
        self.len = 0;
        for r in old.iter() {
            let parts = [r.start..r.end.min(range.start), r.start.max(range.end)..r.end];
            for part in parts.into_iter().filter(|part| part.start < part.end) {
                if self.len == N {
                    *self = old;
                    return Err(Refused::TooManyRanges);
                }
                self.all[self.len] = (part.start, part.end);
                self.len += 1;
            }
        }
        Ok(())
    }
}

/// Memory and what of it is reserved.
pub struct Memblock {
    memory: Ranges<32>,
    reserved: Ranges<64>,
}

impl Memblock {
    /// No memory.
    pub const fn new() -> Memblock {
        Memblock { memory: Ranges::EMPTY, reserved: Ranges::EMPTY }
    }

    /// There is memory at `range`.
    ///
    /// # Errors
    /// [`Refused::TooManyRanges`].
    pub fn add(&mut self, range: Range<u64>) -> Result<(), Refused> {
        self.memory.add(range)
    }

    /// There is no memory at `range` after all.
    ///
    /// # Errors
    /// [`Refused::TooManyRanges`].
    pub fn remove(&mut self, range: Range<u64>) -> Result<(), Refused> {
        self.memory.remove(range)
    }

    /// `range` is taken, whether or not there is memory.
    ///
    /// # Errors
    /// [`Refused::TooManyRanges`].
    pub fn reserve(&mut self, range: Range<u64>) -> Result<(), Refused> {
        self.reserved.add(range)
    }

    /// `range` is free again.
    ///
    /// # Errors
    /// [`Refused::TooManyRanges`].
    pub fn free(&mut self, range: Range<u64>) -> Result<(), Refused> {
        self.reserved.remove(range)
    }

    /// Takes `size` bytes at a multiple of `align` (a power of two) inside `limits`, as high as possible: low memory is
    /// scarcer.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn alloc(&mut self, size: u64, align: u64, limits: Range<u64>) -> Result<u64, Refused> {
        let found = self.free_ranges().filter_map(|r| {
            let (start, end) = (r.start.max(limits.start), r.end.min(limits.end));
            let at = end.checked_sub(size)? & !(align - 1);
            (at >= start).then_some(at)
        });
        let at = found.last().ok_or(Refused::NoMemory)?;
        self.reserve(at..at + size)?;
        Ok(at)
    }

    /// All memory, ascending.
    pub fn memory(&self) -> impl DoubleEndedIterator<Item = Range<u64>> + '_ {
        self.memory.iter()
    }

    /// All that is taken, ascending.
    pub fn reserved(&self) -> impl DoubleEndedIterator<Item = Range<u64>> + '_ {
        self.reserved.iter()
    }

    /// Memory that is not reserved, ascending.
    pub fn free_ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.memory.iter().flat_map(move |memory| {
            // The holes between reserved ranges, cut to this range.
            let starts = core::iter::once(0).chain(self.reserved.iter().map(|r| r.end));
            let ends = self.reserved.iter().map(|r| r.start).chain(core::iter::once(u64::MAX));
            starts
                .zip(ends)
                .map(move |(start, end)| start.max(memory.start)..end.min(memory.end))
                .filter(|hole| hole.start < hole.end)
        })
    }

    /// Bytes of memory.
    pub fn total(&self) -> u64 {
        self.memory.iter().map(|r| r.end - r.start).sum()
    }

    /// End of the highest range; 0 without memory.
    pub fn end(&self) -> u64 {
        self.memory.iter().next_back().map_or(0, |r| r.end)
    }
}

impl Default for Memblock {
    fn default() -> Memblock {
        Memblock::new()
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    // rows: S3
    /// Adds, reserves and frees at random; a bitmap knows better.
    #[test]
    fn agrees_with_a_bitmap() {
        for seed in 1..=40u64 {
            let (mut block, mut seed) = (Memblock::new(), seed);
            let mut next = |n: u64| {
                seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                (seed >> 33) % n
            };
            let (mut memory, mut taken) = ([false; 256], [false; 256]);
            for _ in 0..60 {
                let start = next(250);
                let range = start..start + next(256 - start) / 4;
                let cells = range.start as usize..range.end as usize;
                match next(5) {
                    0 if block.add(range.clone()).is_ok() => memory[cells].fill(true),
                    1 if block.reserve(range.clone()).is_ok() => taken[cells].fill(true),
                    2 if block.free(range.clone()).is_ok() => taken[cells].fill(false),
                    3 if next(4) == 0 && block.remove(range.clone()).is_ok() => memory[cells].fill(false),
                    _ => {
                        let (size, align) = (1 + next(20), 1 << next(4));
                        let limits = next(128)..256 - next(100);
                        let fits = |at: u64| {
                            let cells = at as usize..(at + size) as usize;
                            at.is_multiple_of(align)
                                && limits.contains(&at)
                                && at + size <= limits.end
                                && memory[cells.clone()].iter().all(|m| *m)
                                && taken[cells].iter().all(|t| !*t)
                        };
                        let expected = (0..=256 - size).rev().find(|at| fits(*at));
                        match block.alloc(size, align, limits.clone()) {
                            Ok(at) => {
                                assert_eq!(Some(at), expected);
                                taken[at as usize..(at + size) as usize].fill(true);
                            }
                            Err(Refused::NoMemory) => assert_eq!(expected, None),
                            Err(Refused::TooManyRanges) => {}
                        }
                    }
                }
                let free: Vec<u64> = block.free_ranges().flatten().collect();
                let expected: Vec<u64> = (0..256).filter(|i| memory[*i as usize] && !taken[*i as usize]).collect();
                assert_eq!(free, expected);
                assert_eq!(block.total(), memory.iter().filter(|m| **m).count() as u64);
            }
        }
    }

    #[test]
    fn refuses_when_an_array_is_full() {
        let mut block = Memblock::new();
        for i in 0..32 {
            block.add(i * 10..i * 10 + 5).unwrap();
        }
        assert_eq!(block.add(1000..1001), Err(Refused::TooManyRanges));
        assert_eq!(block.remove(1..2), Err(Refused::TooManyRanges));
        assert_eq!(block.total(), 160);
        block.add(5..10).unwrap();
        assert_eq!((block.total(), block.memory().next(), block.end()), (165, Some(0..15), 315));
    }
}
