//! What a program may touch: intervals of addresses with their rights (`vm_area_struct`, as far as a fault looks at
//! it).

use crate::types::PAGE_SIZE;

/// Rights and properties of an area (`vm_flags`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Access(pub u16);

impl Access {
    /// May be read.
    pub const READ: Access = Access(1 << 0);
    /// May be written.
    pub const WRITE: Access = Access(1 << 1);
    /// May be executed.
    pub const EXEC: Access = Access(1 << 2);
    /// Grows towards lower addresses when it is touched just below (a stack).
    pub const GROWS_DOWN: Access = Access(1 << 3);

    /// Whether all of `other` are set.
    pub const fn has(self, other: Access) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets.
    #[must_use]
    pub const fn with(self, other: Access) -> Access {
        Access(self.0 | other.0)
    }
}

/// An interval of whole pages, `start..end`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Area {
    /// First address.
    pub start: usize,
    /// First address behind it.
    pub end: usize,
    /// What may be done there.
    pub access: Access,
}

/// At most `N` areas, by address and apart. A table is enough for the few areas of a test or a boot task; searching it
/// costs log2(N) steps.
#[derive(Debug)]
pub struct Areas<const N: usize> {
    all: [Area; N],
    len: usize,
}

impl<const N: usize> Areas<N> {
    /// None.
    pub const fn new() -> Areas<N> {
        Areas { all: [Area { start: 0, end: 0, access: Access(0) }; N], len: 0 }
    }

    /// All of them, ascending.
    pub fn as_slice(&self) -> &[Area] {
        &self.all[..self.len]
    }

    /// Index of the first area that ends above `address`.
    fn index(&self, address: usize) -> usize {
        self.as_slice().partition_point(|area| area.end <= address)
    }

    /// The first area that ends above `address`, which need not lie in it (`find_vma`).
    pub fn find(&self, address: usize) -> Option<Area> {
        self.as_slice().get(self.index(address)).copied()
    }

    /// Adds an area (`insert_vm_struct`). False, and nothing done, where it overlaps another one, is empty or not made
    /// of pages, or where the table is full.
    pub fn insert(&mut self, area: Area) -> bool {
        let at = self.index(area.start);
        let pages = area.start < area.end && (area.start | area.end) & (PAGE_SIZE - 1) == 0;
        let free = self.as_slice().get(at).is_none_or(|next| area.end <= next.start);
        if !pages || !free || self.len == N {
            return false;
        }
        self.all.copy_within(at..self.len, at + 1);
        self.all[at] = area;
        self.len += 1;
        true
    }

    /// Takes the area that begins at `start` out.
    pub fn remove(&mut self, start: usize) -> Option<Area> {
        let at = self.index(start);
        let area = self.as_slice().get(at).copied().filter(|area| area.start == start)?;
        self.all.copy_within(at + 1..self.len, at);
        self.len -= 1;
        Some(area)
    }

    /// Lets the area that begins at `start`, and grows downwards, begin at the page of `address` (`expand_stack`).
    /// False where a page below would not stay free between it and the area before.
    pub fn grow(&mut self, start: usize, address: usize) -> bool {
        let (at, to) = (self.index(start), address & !(PAGE_SIZE - 1));
        let apart = at == 0 || self.all[at - 1].end + PAGE_SIZE <= to;
        match self.all[..self.len].get_mut(at) {
            Some(area) if area.start == start && to < start && apart && area.access.has(Access::GROWS_DOWN) => {
                area.start = to;
                true
            }
            _ => false,
        }
    }
}

impl<const N: usize> Default for Areas<N> {
    fn default() -> Self {
        Areas::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(start: usize, end: usize) -> Area {
        Area { start: start * PAGE_SIZE, end: end * PAGE_SIZE, access: Access::READ.with(Access::GROWS_DOWN) }
    }

    #[test]
    fn as_the_bits_of_a_word() {
        // Random areas among 32 pages against a word of bits.
        let (mut areas, mut bits, mut seed) = (Areas::<6>::new(), 0u32, 9u64);
        for _ in 0..4000 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let (a, b) = ((seed >> 33) as usize % 32, (seed >> 40) as usize % 32);
            let new = area(a.min(b), a.max(b));
            let wanted = (a.min(b)..a.max(b)).fold(0u32, |all, page| all | 1 << page);
            let full = areas.as_slice().len() == 6;
            assert_eq!(areas.insert(new), wanted != 0 && bits & wanted == 0 && !full);
            if wanted != 0 && bits & wanted == 0 && !full {
                bits |= wanted;
            }
            if seed >> 50 & 3 == 0 && !areas.as_slice().is_empty() || full {
                let gone = areas.as_slice()[a % areas.as_slice().len()];
                assert_eq!(areas.remove(gone.start), Some(gone));
                (gone.start / PAGE_SIZE..gone.end / PAGE_SIZE).for_each(|page| bits &= !(1 << page));
            }
            assert!(areas.as_slice().windows(2).all(|pair| pair[0].end <= pair[1].start));
            for page in 0..32 {
                let here = areas.find(page * PAGE_SIZE + 5).is_some_and(|found| found.start <= page * PAGE_SIZE);
                assert_eq!(here, bits >> page & 1 == 1);
            }
        }
    }

    #[test]
    fn a_stack_grows_to_a_page_above_the_next() {
        let mut areas = Areas::<4>::new();
        assert!(areas.insert(area(20, 22)) && areas.insert(area(2, 4)));
        assert!(areas.grow(20 * PAGE_SIZE, 10 * PAGE_SIZE + 9));
        assert_eq!(areas.find(10 * PAGE_SIZE), Some(area(10, 22)));
        assert!(!areas.grow(20 * PAGE_SIZE, 9 * PAGE_SIZE), "it begins elsewhere now");
        assert!(!areas.grow(10 * PAGE_SIZE, 4 * PAGE_SIZE), "no page would stay free between them");
        assert!(areas.grow(10 * PAGE_SIZE, 5 * PAGE_SIZE));
        assert!(!areas.insert(Area { start: 1, end: PAGE_SIZE, access: Access::READ }));
    }
}
