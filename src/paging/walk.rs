//! The walker: one body for every format.

use core::marker::PhantomData;

use super::{Flags, Format, Level};
use crate::types::{Pfn, VirtAddr};

/// Memory that holds page tables. A table is one frame (or less) of entries.
pub trait TableMemory {
    /// Entry `index` of `table`, widened to 64 bits.
    fn read(&self, table: Pfn, index: usize) -> u64;
    /// Stores an entry. Publishing it to hardware (ordering, TLB) is the implementer's or the caller's business.
    fn write(&mut self, table: Pfn, index: usize, entry: u64);
    /// A zeroed table for `level`; `None` where there is no memory.
    fn alloc(&mut self, level: Level) -> Option<Pfn>;
    /// Takes back an empty table of `level`.
    fn free(&mut self, level: Level, table: Pfn);
}

/// Why a mapping could not be made; nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// No memory for a table.
    NoMemory,
    /// Something is mapped there already, or a table stands where the leaf would.
    Occupied,
    /// The address or the frame is not a multiple of the leaf's size, or the format has no leaf at that level.
    Misaligned,
}

/// Place of an entry: a table and an index into it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The table.
    pub table: Pfn,
    /// Index of the entry.
    pub index: usize,
}

/// What an address translates to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// The frame that holds the address (for a huge leaf the one inside it).
    pub frame: Pfn,
    /// Bytes into the frame.
    pub offset: usize,
    /// Level of the leaf.
    pub level: Level,
    /// The leaf's flags.
    pub flags: Flags,
}

/// Where a walk down ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Walked {
    /// The last entry there is on the way to the address.
    pub place: Entry,
    /// Its level.
    pub level: Level,
    /// Its value: a leaf, or not present.
    pub entry: u64,
}

/// A page table of format `F`, by its root. All methods take the memory that holds the tables.
pub struct PageTable<F> {
    root: Pfn,
    format: PhantomData<F>,
}

impl<F> Clone for PageTable<F> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<F> Copy for PageTable<F> {}

impl<F: Format> PageTable<F> {
    /// The table whose root (pgd) is the zeroed or filled frame `root`.
    pub const fn new(root: Pfn) -> PageTable<F> {
        PageTable { root, format: PhantomData }
    }

    /// The root frame.
    pub const fn root(self) -> Pfn {
        self.root
    }

    /// Place of the pgd entry for `address` (the kernel's `pgd_offset`).
    pub fn pgd_offset(self, address: VirtAddr) -> Entry {
        Entry { table: self.root, index: F::index(Level::Pgd, address.0) }
    }

    /// Place of the pud entry, given the pgd entry at `pgd`: that same place where the pud is folded. `None` where
    /// `pgd` points to no table.
    pub fn pud_offset<M: TableMemory>(self, memory: &M, pgd: Entry, address: VirtAddr) -> Option<Entry> {
        Self::offset(memory, Level::Pud, pgd, address)
    }

    /// Place of the pmd entry, given the pud entry's.
    pub fn pmd_offset<M: TableMemory>(self, memory: &M, pud: Entry, address: VirtAddr) -> Option<Entry> {
        Self::offset(memory, Level::Pmd, pud, address)
    }

    /// Place of the pte, given the pmd entry's; `None` also where that is a huge leaf.
    pub fn pte_offset<M: TableMemory>(self, memory: &M, pmd: Entry, address: VirtAddr) -> Option<Entry> {
        Self::offset(memory, Level::Pte, pmd, address)
    }

    fn offset<M: TableMemory>(memory: &M, level: Level, above: Entry, address: VirtAddr) -> Option<Entry> {
        if F::folded(level) {
            return Some(above);
        }
        let entry = memory.read(above.table, above.index);
        // A leaf of any level above carries the huge bit, so asking at the pmd is asking at all of them.
        if !F::is_present(entry) || F::is_leaf(Level::Pmd, entry) {
            return None;
        }
        Some(Entry { table: F::frame(entry), index: F::index(level, address.0) })
    }

    /// Goes down to the leaf of `address`, or to the entry that says there is none. An entry seen at folded levels is
    /// reported at the lowest of them, as in the kernel (a PSE leaf is a pmd leaf).
    pub fn walk<M: TableMemory>(self, memory: &M, address: VirtAddr) -> Walked {
        let mut place = self.pgd_offset(address);
        let mut level = Level::Pgd;
        while let Some(below) = level.down() {
            if !F::folded(below) {
                let entry = memory.read(place.table, place.index);
                if !F::is_present(entry) || F::is_leaf(level, entry) {
                    return Walked { place, level, entry };
                }
                place = Entry { table: F::frame(entry), index: F::index(below, address.0) };
            }
            level = below;
        }
        Walked { place, level, entry: memory.read(place.table, place.index) }
    }

    /// The frame, offset and flags behind `address`; `None` where nothing is mapped.
    pub fn translate<M: TableMemory>(self, memory: &M, address: VirtAddr) -> Option<Translation> {
        let found = self.walk(memory, address);
        if !F::is_present(found.entry) {
            return None;
        }
        let within = address.0 & leaf_bytes::<F>(found.level).wrapping_sub(1);
        Some(Translation {
            frame: F::frame(found.entry).add((within >> F::PAGE_SHIFT) as u32),
            offset: within & ((1 << F::PAGE_SHIFT) - 1),
            level: found.level,
            flags: F::flags(found.entry),
        })
    }

    /// Maps the frames from `frame` on at `address` by one leaf of `level`.
    ///
    /// # Errors
    /// [`MapError`]; nothing is mapped then, though empty tables may have been added on the way.
    pub fn map<M: TableMemory>(
        self,
        memory: &mut M,
        address: VirtAddr,
        level: Level,
        frame: Pfn,
        flags: Flags,
    ) -> Result<(), MapError> {
        let bytes = if level == Level::Pte || F::LEAF[level as usize] { leaf_bytes::<F>(level) } else { 0 };
        if bytes == 0
            || address.0 & (bytes - 1) != 0
            || frame.index() & ((bytes >> F::PAGE_SHIFT) - 1) != 0
            || u64::from(frame.0) << 12 & !F::FRAME_MASK != 0
        {
            return Err(MapError::Misaligned);
        }
        let place = self.make(memory, address, level)?;
        if memory.read(place.table, place.index) != 0 {
            return Err(MapError::Occupied);
        }
        memory.write(place.table, place.index, F::leaf(level, frame, flags));
        Ok(())
    }

    /// The place of the entry of `level` for `address`, making the tables on the way.
    ///
    /// # Errors
    /// [`MapError::NoMemory`], or [`MapError::Occupied`] where a leaf stands above.
    pub fn make<M: TableMemory>(self, memory: &mut M, address: VirtAddr, level: Level) -> Result<Entry, MapError> {
        let mut place = self.pgd_offset(address);
        let mut at = Level::Pgd;
        while at > level {
            let Some(below) = at.down() else { break };
            if !F::folded(below) {
                let entry = memory.read(place.table, place.index);
                let table = if F::is_present(entry) {
                    if F::is_leaf(at, entry) {
                        return Err(MapError::Occupied);
                    }
                    F::frame(entry)
                } else if entry != 0 {
                    return Err(MapError::Occupied);
                } else {
                    let table = memory.alloc(below).ok_or(MapError::NoMemory)?;
                    memory.write(place.table, place.index, F::table(table));
                    table
                };
                place = Entry { table, index: F::index(below, address.0) };
            }
            at = below;
        }
        Ok(place)
    }

    /// Removes the leaf (or the record of an absent page) that covers `address`, and the tables that become empty by
    /// it. Returns its level and value; `None` where there was nothing.
    pub fn unmap<M: TableMemory>(self, memory: &mut M, address: VirtAddr) -> Option<(Level, u64)> {
        let found = self.walk(memory, address);
        if found.entry == 0 {
            return None;
        }
        memory.write(found.place.table, found.place.index, 0);
        self.prune(memory, address, found.level);
        Some((found.level, found.entry))
    }

    /// Frees the empty tables on the way to `address`, lowest first, from the one that holds entries of `level`
    /// upwards.
    fn prune<M: TableMemory>(self, memory: &mut M, address: VirtAddr, level: Level) {
        let mut way = [None; 4];
        let mut place = self.pgd_offset(address);
        let mut at = Level::Pgd;
        while at > level {
            let Some(below) = at.down() else { break };
            if !F::folded(below) {
                let above = place;
                let entry = memory.read(above.table, above.index);
                place = Entry { table: F::frame(entry), index: F::index(below, address.0) };
                way[below as usize] = Some((above, place.table));
            }
            at = below;
        }
        for level in [Level::Pte, Level::Pmd, Level::Pud] {
            if let Some((above, table)) = way[level as usize] {
                if (0..1usize << F::BITS[level as usize]).any(|i| memory.read(table, i) != 0) {
                    return;
                }
                memory.write(above.table, above.index, 0);
                memory.free(level, table);
            }
        }
    }

    /// Gives each entry of `level` in `[start, end)` to `change`, which returns its new value; missing tables are made
    /// where `make`, else their addresses are passed over.
    ///
    /// # Errors
    /// As [`PageTable::make`]; entries before the failure are changed.
    pub fn for_entries<M: TableMemory>(
        self,
        memory: &mut M,
        start: VirtAddr,
        end: VirtAddr,
        level: Level,
        make: bool,
        mut change: impl FnMut(VirtAddr, u64) -> u64,
    ) -> Result<(), MapError> {
        let step = leaf_bytes::<F>(level);
        let last = (1usize << F::BITS[level as usize]) - 1;
        let mut at = start.0;
        while at < end.0 {
            let place = if make { Some(self.make(memory, VirtAddr(at), level)?) } else { self.find(memory, at, level) };
            let first = F::index(level, at);
            let count = (last - first + 1).min((end.0 - at).div_ceil(step));
            if let Some(place) = place {
                for i in 0..count {
                    let old = memory.read(place.table, first + i);
                    let new = change(VirtAddr(at + i * step), old);
                    if new != old {
                        memory.write(place.table, first + i, new);
                    }
                }
            }
            match at.checked_add(count * step) {
                Some(next) => at = next,
                None => break,
            }
        }
        Ok(())
    }

    /// Tables that [`PageTable::for_entries`] with `make` would have to add for `[start, end)`.
    pub fn missing<M: TableMemory>(self, memory: &M, start: VirtAddr, end: VirtAddr, level: Level) -> usize {
        let mut missing = 0;
        for table_level in [Level::Pte, Level::Pmd, Level::Pud] {
            if table_level < level || F::folded(table_level) {
                continue;
            }
            // A table of this level covers what one entry of the next level does.
            let shift = F::shift(table_level) + F::BITS[table_level as usize];
            for number in start.0 as u64 >> shift..=(end.0 as u64 - 1) >> shift {
                missing += usize::from(self.find(memory, (number << shift) as usize, table_level).is_none());
            }
        }
        missing
    }

    fn find<M: TableMemory>(self, memory: &M, address: usize, level: Level) -> Option<Entry> {
        let mut place = self.pgd_offset(VirtAddr(address));
        let mut at = Level::Pgd;
        while at > level {
            let below = at.down()?;
            place = Self::offset(memory, below, place, VirtAddr(address))?;
            at = below;
        }
        Some(place)
    }
}

fn leaf_bytes<F: Format>(level: Level) -> usize {
    1usize.checked_shl(F::shift(level)).unwrap_or(0)
}
