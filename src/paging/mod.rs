//! Page tables: entry formats as data, built on every host, and one walker for all of them.
//!
//! The walker knows the kernel's four levels (pgd, pud, pmd, pte). A format that has fewer folds the missing ones, as
//! the kernel's `pgtable-nop?d.h` do: the folded level's entry *is* the entry of the level above. Tables are reached
//! through [`TableMemory`], so the same code walks hardware tables, a simulated machine's and the software tables of
//! the hosted vmalloc area, where an entry says what a slot holds (see [`x86_64::Slot`]). What a fault leads to is
//! decided here, too ([`do_page_fault`]).

mod area;
mod fault;
pub mod i386;
mod walk;
pub mod x86_64;

#[cfg(test)]
mod tests;

pub use area::{Access, Area, Areas};
pub use fault::{Fault, FaultCode, Faulting, Fixup, Outcome, Signal, do_page_fault, search_exception_table};
pub use walk::{Entry, MapError, PageTable, TableMemory, Translation, Walked};

use crate::types::Pfn;

/// The levels, leaves first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(usize)]
pub enum Level {
    /// Page table: entries map pages.
    Pte = 0,
    /// Page middle directory.
    Pmd = 1,
    /// Page upper directory.
    Pud = 2,
    /// Page global directory, the root.
    Pgd = 3,
}

impl Level {
    /// All levels, root first: the order of a walk.
    pub const DOWN: [Level; 4] = [Level::Pgd, Level::Pud, Level::Pmd, Level::Pte];

    /// The level below, `None` under [`Level::Pte`].
    pub const fn down(self) -> Option<Level> {
        match self {
            Level::Pgd => Some(Level::Pud),
            Level::Pud => Some(Level::Pmd),
            Level::Pmd => Some(Level::Pte),
            Level::Pte => None,
        }
    }
}

/// What an entry allows and says, independent of where a format keeps the bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Flags(pub u16);

impl Flags {
    /// Writable.
    pub const WRITE: Flags = Flags(1 << 0);
    /// Reachable from user mode.
    pub const USER: Flags = Flags(1 << 1);
    /// Writes go through to memory.
    pub const WRITE_THROUGH: Flags = Flags(1 << 2);
    /// Not cached.
    pub const NO_CACHE: Flags = Flags(1 << 3);
    /// Was accessed.
    pub const ACCESSED: Flags = Flags(1 << 4);
    /// Was written.
    pub const DIRTY: Flags = Flags(1 << 5);
    /// Survives a switch of address spaces.
    pub const GLOBAL: Flags = Flags(1 << 6);
    /// First of the three bits hardware leaves to software.
    pub const SOFT0: Flags = Flags(1 << 7);
    /// Second software bit.
    pub const SOFT1: Flags = Flags(1 << 8);
    /// Third software bit.
    pub const SOFT2: Flags = Flags(1 << 9);

    /// No flag: readable by the kernel.
    pub const NONE: Flags = Flags(0);
    /// An ordinary kernel page.
    pub const KERNEL: Flags = Flags(Flags::WRITE.0 | Flags::ACCESSED.0 | Flags::DIRTY.0);

    /// Whether all of `other` are set.
    pub const fn has(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets.
    #[must_use]
    pub const fn with(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }

    /// This set without `other`.
    #[must_use]
    pub const fn without(self, other: Flags) -> Flags {
        Flags(self.0 & !other.0)
    }
}

/// Where the flag bits lie in the entries of the x86 family: bits 1–6 and 8–11, in all three formats.
pub(crate) const X86_FLAGS: [(u16, u64); 10] = [
    (Flags::WRITE.0, 1 << 1),
    (Flags::USER.0, 1 << 2),
    (Flags::WRITE_THROUGH.0, 1 << 3),
    (Flags::NO_CACHE.0, 1 << 4),
    (Flags::ACCESSED.0, 1 << 5),
    (Flags::DIRTY.0, 1 << 6),
    (Flags::GLOBAL.0, 1 << 8),
    (Flags::SOFT0.0, 1 << 9),
    (Flags::SOFT1.0, 1 << 10),
    (Flags::SOFT2.0, 1 << 11),
];

/// The present bit of the x86 family.
pub(crate) const X86_PRESENT: u64 = 1 << 0;
/// The bit that makes an upper entry a leaf in the x86 family (PS).
pub(crate) const X86_HUGE: u64 = 1 << 7;
/// What an entry that points to a table allows: the leaf alone decides.
pub(crate) const X86_TABLE: u64 = X86_PRESENT | 1 << 1 | 1 << 2 | 1 << 5;

/// What a non-present, non-empty entry says (kernel before 4.0: nonlinear file mappings still have their own kind).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Absent {
    /// Swapped out: area (`type`, below 32) and page within it.
    Swap {
        /// Number of the swap area.
        area: u8,
        /// Page within the area.
        offset: u32,
    },
    /// A page of a nonlinear file mapping.
    File {
        /// Page within the file.
        page: u32,
    },
}

/// An entry format: the geometry of the levels and the coding of entries. Entries are passed as `u64` whatever their
/// width in memory.
pub trait Format {
    /// Index bits by level (index: [`Level`]); 0 for a folded level.
    const BITS: [u32; 4];
    /// log2 of a page.
    const PAGE_SHIFT: u32 = 12;
    /// Bytes of an entry in memory.
    const ENTRY_BYTES: usize;
    /// Levels at which a leaf may stand (index: [`Level`]).
    const LEAF: [bool; 4];
    /// Address bits of frames and tables in an entry.
    const FRAME_MASK: u64;

    /// log2 of the bytes that one entry of `level` covers.
    fn shift(level: Level) -> u32 {
        Self::PAGE_SHIFT + Self::BITS[..level as usize].iter().sum::<u32>()
    }

    /// Bits of an address that the tables translate.
    fn address_bits() -> u32 {
        Self::PAGE_SHIFT + Self::BITS.iter().sum::<u32>()
    }

    /// Whether `level` does not exist in the format.
    fn folded(level: Level) -> bool {
        Self::BITS[level as usize] == 0
    }

    /// Index of `address` into a table of `level`; 0 where the level is folded.
    fn index(level: Level, address: usize) -> usize {
        (address as u64 >> Self::shift(level)) as usize & ((1 << Self::BITS[level as usize]) - 1)
    }

    /// Whether the entry maps something or points to a table.
    fn is_present(entry: u64) -> bool {
        entry & X86_PRESENT != 0
    }

    /// Whether a present entry found at `level` maps memory (rather than pointing to a table).
    fn is_leaf(level: Level, entry: u64) -> bool {
        level == Level::Pte || (Self::LEAF[level as usize] && entry & X86_HUGE != 0)
    }

    /// The entry that points to the table in `frame`.
    fn table(frame: Pfn) -> u64 {
        (u64::from(frame.0) << 12) | X86_TABLE
    }

    /// The leaf of `level` that maps the frames from `frame` on.
    fn leaf(level: Level, frame: Pfn, flags: Flags) -> u64 {
        let mut entry = (u64::from(frame.0) << 12) & Self::FRAME_MASK | X86_PRESENT;
        if level != Level::Pte {
            entry |= X86_HUGE;
        }
        for (flag, bit) in X86_FLAGS {
            if flags.0 & flag != 0 {
                entry |= bit;
            }
        }
        entry
    }

    /// The frame a present entry names.
    fn frame(entry: u64) -> Pfn {
        Pfn(((entry & Self::FRAME_MASK) >> 12) as u32)
    }

    /// The flags of a present entry.
    fn flags(entry: u64) -> Flags {
        let set = X86_FLAGS.iter().filter(|(_, bit)| entry & bit != 0);
        Flags(set.fold(0, |all, (flag, _)| all | flag))
    }

    /// The entry that records where an absent page is: bit 6 tells files from swap, bits 1–5 the swap area, the number
    /// begins above bit 7, as in the kernel's 2-level tables. `None` where the number does not fit the entry.
    fn absent(what: Absent) -> Option<u64> {
        let (low, number) = match what {
            Absent::Swap { area, offset } if area < 32 => (u64::from(area) << 1, offset),
            Absent::Swap { .. } => return None,
            Absent::File { page } => (1 << 6, page),
        };
        // Bit 7 keeps swap page 0 of area 0 from being the empty entry.
        let entry = u64::from(number) << 8 | 1 << 7 | low;
        (Self::ENTRY_BYTES == 8 || entry >> 32 == 0).then_some(entry)
    }

    /// What a non-present entry records; `None` for an empty or a present one.
    fn decode_absent(entry: u64) -> Option<Absent> {
        if entry & (X86_PRESENT | 1 << 7) != 1 << 7 {
            return None;
        }
        let number = (entry >> 8) as u32;
        Some(if entry & 1 << 6 != 0 {
            Absent::File { page: number }
        } else {
            Absent::Swap { area: (entry >> 1 & 31) as u8, offset: number }
        })
    }
}
