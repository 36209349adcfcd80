//! The two formats of the i386: classic 2-level tables of 32-bit entries, and PAE.

use super::Format;

/// 1024 × 1024 entries of 32 bits; a pgd entry may map 4 MiB (PSE), which shows at the folded pmd as in the kernel.
pub struct I386;

impl Format for I386 {
    const BITS: [u32; 4] = [10, 0, 0, 10];
    const ENTRY_BYTES: usize = 4;
    const LEAF: [bool; 4] = [true, true, false, false];
    const FRAME_MASK: u64 = 0xffff_f000;
}

/// 4 × 512 × 512 entries of 64 bits with 36-bit physical addresses; a pmd entry may map 2 MiB. (The four entries of the
/// directory pointer table ignore most flag bits; [`Pae::root_entry`] strips what the processor demands to be zero.)
pub struct Pae;

impl Pae {
    /// A table entry as it must stand in the directory pointer table: present bit and address only.
    pub const fn root_entry(entry: u64) -> u64 {
        entry & (Self::FRAME_MASK | 1)
    }
}

impl Format for Pae {
    const BITS: [u32; 4] = [9, 9, 0, 2];
    const ENTRY_BYTES: usize = 8;
    const LEAF: [bool; 4] = [true, true, false, false];
    const FRAME_MASK: u64 = 0xf_ffff_f000;
}
