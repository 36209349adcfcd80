//! The 4-level x86-64 format, and the software entries of the vmalloc area that live in tables of this format.

use super::{Flags, Format, Level};
use crate::types::Pfn;

/// 4 × 9 bits, 64-bit entries, leaves of 4 KiB, 2 MiB and 1 GiB.
pub struct X86_64;

impl Format for X86_64 {
    const BITS: [u32; 4] = [9, 9, 9, 9];
    const ENTRY_BYTES: usize = 8;
    const LEAF: [bool; 4] = [true, true, true, false];
    const FRAME_MASK: u64 = 0xf_ffff_ffff_f000;
}

/// What a slot of the vmalloc area holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotState {
    /// Not usable.
    Empty,
    /// Not usable; an area that began here was freed and purged (so that a second free of it is told from a foreign
    /// one).
    Freed,
    /// Usable, never handed out since it was mapped: reads zero.
    Zero,
    /// Usable, with old contents.
    Dirty,
}

/// A software entry of the vmalloc table. It is a legal x86-64 entry: DIRTY is the dirty bit, the rest lies in bits
/// that hardware leaves to software (9–11, 52–58).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot(pub u64);

impl Slot {
    /// The slot was touched as a whole on a machine with huge pages: it is probably backed by one.
    const HUGE_LIKELY: u64 = 1 << 10;
    /// In a non-present entry: [`SlotState::Freed`]. Bit 7 stays clear, so it is no swap entry.
    const TOMBSTONE: u64 = 1 << 9;
    const GENERATION_SHIFT: u32 = 52;
    const GENERATION_MASK: u64 = 0x7f << Self::GENERATION_SHIFT;

    /// An unusable slot.
    pub const EMPTY: Slot = Slot(0);
    /// [`SlotState::Freed`].
    pub const FREED: Slot = Slot(Self::TOMBSTONE);

    /// A usable slot at `level` that reads zero, backed by `frame` (0 where the host backs it).
    pub fn zero(level: Level, frame: Pfn) -> Slot {
        Slot(X86_64::leaf(level, frame, Flags::WRITE))
    }

    /// This slot, with contents written in fork generation `generation` (7 bits are kept: a wrap after 128 forks
    /// only costs a failed move).
    #[must_use]
    pub fn dirtied(self, generation: u32, huge_likely: bool) -> Slot {
        let mut entry = self.0 & !(Self::GENERATION_MASK | Self::HUGE_LIKELY);
        entry |= 1 << 6 | (u64::from(generation) << Self::GENERATION_SHIFT & Self::GENERATION_MASK);
        if huge_likely {
            entry |= Self::HUGE_LIKELY;
        }
        Slot(entry)
    }

    /// What it holds.
    pub fn state(self) -> SlotState {
        if !X86_64::is_present(self.0) {
            if self.0 & Self::TOMBSTONE != 0 { SlotState::Freed } else { SlotState::Empty }
        } else if self.0 & 1 << 6 != 0 {
            SlotState::Dirty
        } else {
            SlotState::Zero
        }
    }

    /// This slot, with `count` (below 2^40) where the frame would be: for slots that the host backs.
    #[must_use]
    pub fn with_count(self, count: usize) -> Slot {
        Slot(self.0 & !X86_64::FRAME_MASK | (count as u64) << 12 & X86_64::FRAME_MASK)
    }

    /// What [`Slot::with_count`] put there.
    pub fn count(self) -> usize {
        ((self.0 & X86_64::FRAME_MASK) >> 12) as usize
    }

    /// The frame behind it.
    pub fn frame(self) -> Pfn {
        X86_64::frame(self.0)
    }

    /// Whether it is probably backed by a huge page.
    pub fn huge_likely(self) -> bool {
        self.0 & Self::HUGE_LIKELY != 0
    }

    /// Whether its contents were written in fork generation `generation`, so that nobody shares the pages.
    pub fn of_generation(self, generation: u32) -> bool {
        u64::from(generation) << Self::GENERATION_SHIFT & Self::GENERATION_MASK == self.0 & Self::GENERATION_MASK
    }
}
