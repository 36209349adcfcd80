//! The fourth gigabyte: what lies where in the kernel's part of the address space, as arithmetic that every host can
//! check.
//!
//! ```text
//! C0000000  direct map of low memory          PAGE_OFFSET .. high_memory
//!           8 MiB hole                        VMALLOC_OFFSET: a stray access past low memory faults
//!           vmalloc                           .. VMALLOC_END, its last 8 MiB for ioremap
//!           2 pages hole
//!           PKMAP: kmap                       a page table's worth of slots
//!           fixmap, with the kernel stacks     .. FIXADDR_TOP = FFFFF000
//! ```

use core::ops::Range;

pub use crate::machine::KM_TYPE_NR;
use crate::types::{PAGE_SHIFT, PAGE_SIZE};

/// Entries of a page table, and so slots of PKMAP: 512 with PAE, 1024 without.
pub const TABLE_ENTRIES: usize = if cfg!(feature = "pae") { 512 } else { 1024 };
/// Bytes that one page table maps: 2 MiB with PAE, 4 MiB without. Also the size of a huge leaf.
pub const TABLE_BYTES: usize = TABLE_ENTRIES * PAGE_SIZE;

/// Where the kernel's part begins; physical address 0 is mapped here.
pub const PAGE_OFFSET: usize = 0xC000_0000;
/// What of the fourth gigabyte is kept for vmalloc and the mappings above it.
pub const VMALLOC_RESERVE: usize = 128 << 20;
/// Most low memory: 896 MiB. Frames above are HIGHMEM.
pub const MAX_LOWMEM: usize = 0xFFFF_FFFF - PAGE_OFFSET + 1 - VMALLOC_RESERVE;
/// End of ZONE_DMA.
pub const DMA_END: u64 = 16 << 20;
/// The hole between low memory and vmalloc, and the alignment of vmalloc's start.
pub const VMALLOC_OFFSET: usize = 8 << 20;

/// First address above the fixmap: one page below the top, so that no address computation wraps.
pub const FIXADDR_TOP: usize = 0xFFFF_F000;
/// Pages of a kernel stack.
pub const STACK_PAGES: usize = 16;
/// Most CPUs.
pub const MAX_CPUS: usize = 8;

/// Compile-time linear addresses, counted downwards from [`FIXADDR_TOP`] (`enum fixed_addresses`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
#[allow(missing_docs)]
pub enum FixedAddress {
    /// Not used, so that the top page stays unmapped.
    Hole = 0,
    /// The page that every task finds the stub of a system call in.
    Vsyscall,
    /// The local APIC.
    ApicBase,
    /// The first I/O APIC.
    IoApicBase0,
    /// Temporary mappings: `KM_TYPE_NR` for each CPU.
    KmapBegin,
    KmapEnd = FixedAddress::KmapBegin as usize + KM_TYPE_NR * MAX_CPUS - 1,
    /// Kernel stacks, each with an unmapped page below it.
    StackBegin,
    StackEnd = FixedAddress::StackBegin as usize + (STACK_PAGES + 1) * MAX_CPUS - 1,
    /// For tests and early boot code.
    Scratch,
    /// How many there are.
    EndOfFixedAddresses,
}

/// How many fixed addresses there are.
pub const NR_FIXED: usize = FixedAddress::EndOfFixedAddresses as usize;
/// Lowest address of the fixmap.
pub const FIXADDR_START: usize = FIXADDR_TOP - (NR_FIXED << PAGE_SHIFT);

// rows: I12
/// The address of fixed address `INDEX`. An index that does not exist is refused by the compiler, as the kernel's
/// `__this_fixmap_does_not_exist` refuses it at link time:
///
/// ```
/// use slabwright::machine::i386::layout::{FixedAddress, fix_to_virt};
/// assert_eq!(fix_to_virt::<{ FixedAddress::ApicBase as usize }>(), 0xFFFF_D000);
/// ```
///
/// ```compile_fail,E0080
/// use slabwright::machine::i386::layout::{NR_FIXED, fix_to_virt};
/// fix_to_virt::<NR_FIXED>();
/// ```
pub const fn fix_to_virt<const INDEX: usize>() -> usize {
    const { assert!(INDEX < NR_FIXED, "this fixmap does not exist") }
    FIXADDR_TOP - (INDEX << PAGE_SHIFT)
}

/// [`fix_to_virt`] for an index that is only known at run time.
///
/// # Panics
/// If there is no such fixed address.
pub fn fixed_address(index: usize) -> usize {
    assert!(index < NR_FIXED, "this fixmap does not exist");
    FIXADDR_TOP - (index << PAGE_SHIFT)
}

/// The fixed address that `address` lies in, `None` outside the fixmap.
pub fn virt_to_fix(address: usize) -> Option<usize> {
    let index = FIXADDR_TOP.checked_sub(address & !(PAGE_SIZE - 1))? >> PAGE_SHIFT;
    (index < NR_FIXED).then_some(index)
}

/// The addresses of the temporary mappings of `cpu`.
pub fn kmap_atomic_slots(cpu: usize) -> Range<usize> {
    let first = FixedAddress::KmapBegin as usize + cpu * KM_TYPE_NR;
    fixed_address(first + KM_TYPE_NR - 1)..fixed_address(first) + PAGE_SIZE
}

/// First address of the permanent mappings.
pub const PKMAP_BASE: usize = (FIXADDR_START - TABLE_BYTES) & !(TABLE_BYTES - 1);
/// Permanent mappings at a time.
pub const LAST_PKMAP: usize = TABLE_ENTRIES;
const _: () = assert!(LAST_PKMAP <= crate::machine::LAST_PKMAP);
/// End of vmalloc, two pages below PKMAP.
pub const VMALLOC_END: usize = PKMAP_BASE - 2 * PAGE_SIZE;
/// Addresses for device memory and for frames mapped a second time.
pub const IOREMAP: Range<usize> = (VMALLOC_END - (8 << 20)) & !(TABLE_BYTES - 1)..VMALLOC_END;

const _: () = assert!(PKMAP_BASE + LAST_PKMAP * PAGE_SIZE <= FIXADDR_START);
const _: () = assert!(PAGE_OFFSET + MAX_LOWMEM + 2 * VMALLOC_OFFSET < IOREMAP.start);
const _: () = assert!(IOREMAP.end < PKMAP_BASE && FIXADDR_START < FIXADDR_TOP);
const _: () = assert!(MAX_LOWMEM == 896 << 20);

/// The vmalloc window of a machine with `lowmem` bytes of low memory and `memory` bytes in all. Its page tables are set
/// aside at boot, so that it is no larger than twice the memory, nor than 128 MiB.
pub fn vmalloc_window(lowmem: usize, memory: u64) -> Range<usize> {
    let start = (PAGE_OFFSET + lowmem + VMALLOC_OFFSET).next_multiple_of(VMALLOC_OFFSET);
    let wanted = memory.saturating_mul(2).clamp(32 << 20, VMALLOC_RESERVE as u64) as usize;
    // A page below the next mapping stays free: the guard of the last area.
    start..start + wanted.next_multiple_of(TABLE_BYTES).min(IOREMAP.start - PAGE_SIZE - start)
}

#[cfg(test)]
mod tests {
    use super::*;

    // rows: B12 B14
    #[test]
    fn regions_are_in_order_and_apart() {
        for lowmem in [16 << 20, 64 << 20, 512 << 20, MAX_LOWMEM] {
            let window = vmalloc_window(lowmem, 2 * lowmem as u64);
            assert!(window.start >= PAGE_OFFSET + lowmem + VMALLOC_OFFSET, "{window:x?}");
            assert!(window.len() >= 32 << 20 && window.end < IOREMAP.start, "{window:x?}");
            assert_eq!(window.start % VMALLOC_OFFSET, 0);
        }
    }

    // rows: I9 I10 I11
    #[test]
    fn fixed_addresses_count_down() {
        assert_eq!(fix_to_virt::<0>(), 0xFFFF_F000);
        assert_eq!(fix_to_virt::<{ FixedAddress::KmapBegin as usize }>(), 0xFFFF_B000);
        for index in 0..NR_FIXED {
            assert_eq!(virt_to_fix(fixed_address(index) + 0xFFF), Some(index));
        }
        assert_eq!((virt_to_fix(FIXADDR_START), virt_to_fix(PAGE_OFFSET)), (None, None));
    }
}
