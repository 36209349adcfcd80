//! Page tables by the generic walker, held against what the hardware makes of them: rows N, T2.

use core::ptr::with_exposed_provenance_mut as pointer;

use slabwright::gfp::Gfp;
use slabwright::machine::Frames;
use slabwright::machine::i386::fixmap::{FixedAddress, clear_fixmap, set_fixmap};
use slabwright::machine::i386::layout::{PAGE_OFFSET, TABLE_BYTES, fix_to_virt};
use slabwright::machine::i386::paging::{self, Arch};
use slabwright::machine::i386::{I386, cpu, memory};
use slabwright::paging::{Flags, Format, Level};
use slabwright::types::{PAGE_SIZE, PhysAddr, VirtAddr};

use super::{Test, put_page};
use crate::kernel::HEAP;

pub const TESTS: &[Test] = &[
    ("N1 N2 the directory in cr3 is the walker's", directory),
    ("N3 N4 missing levels fold into the one above; direct map by huge leaves", folded),
    ("N5 entries: the hardware sets accessed and dirty where the walker looks", accessed_and_dirty),
    ("N6 A3 offsets: low 12 bits, pages of 4 KiB", offsets),
    ("T2 a changed entry takes effect with invlpg", invlpg),
    ("T2 flush of everything takes global pages, too", flush_all),
];

fn page() -> slabwright::types::Pfn {
    HEAP.pages().alloc_page(&I386, Gfp::KERNEL).expect("a page")
}

fn free(pfn: slabwright::types::Pfn) {
    assert!(put_page(pfn));
}

fn directory() {
    assert_eq!(cpu::cr3() >> 12, paging::kernel().root().0);
    let levels = Level::DOWN.into_iter().filter(|level| !Arch::folded(*level)).count();
    assert_eq!(levels, if cfg!(feature = "pae") { 3 } else { 2 });
}

fn folded() {
    let table = paging::kernel();
    let at = VirtAddr(PAGE_OFFSET + 0x12_3456);
    let pgd = table.pgd_offset(at);
    let pud = table.pud_offset(&paging::READ_ONLY, pgd, at).expect("a folded level is always there");
    if !cfg!(feature = "pae") {
        assert_eq!(pud, pgd);
        assert_eq!(table.pmd_offset(&paging::READ_ONLY, pud, at), Some(pgd));
    }
    let found = paging::translate(at.0).expect("low memory is mapped");
    assert_eq!((found.level, found.offset, found.frame.0), (Level::Pmd, 0x456, 0x123));
    assert_eq!(Arch::shift(Level::Pmd), TABLE_BYTES.ilog2());
    for at in (PAGE_OFFSET..memory::high_memory()).step_by(PAGE_SIZE) {
        let found = paging::translate(at).expect("low memory is mapped");
        assert_eq!(I386.pfn(pointer::<u8>(at)), Some(found.frame));
        assert!(found.flags.has(Flags::KERNEL) && !found.flags.has(Flags::USER));
    }
    assert_eq!(paging::translate(0x1000), None, "nothing is mapped at its physical address any more");
}

fn accessed_and_dirty() {
    const SCRATCH: usize = FixedAddress::Scratch as usize;
    let pfn = page();
    let at = set_fixmap::<SCRATCH>(PhysAddr::of(pfn), Flags::WRITE);
    let flags = || paging::translate(at).expect("it is mapped").flags;
    assert_eq!(flags(), Flags::WRITE);
    // SAFETY: the page is mapped, and this test's.
    unsafe { pointer::<u8>(at).read_volatile() };
    assert_eq!(flags(), Flags::WRITE.with(Flags::ACCESSED));
    // SAFETY: as above.
    unsafe { pointer::<u8>(at).write_volatile(1) };
    assert_eq!(flags(), Flags::KERNEL);
    clear_fixmap::<SCRATCH>();
    assert_eq!(paging::translate(at), None);
    free(pfn);
}

fn offsets() {
    for at in [PAGE_OFFSET, PAGE_OFFSET + 0xfff, PAGE_OFFSET + 0x20_1234] {
        let found = paging::translate(at).expect("low memory is mapped");
        assert_eq!(PAGE_OFFSET + (found.frame.index() << 12) + found.offset, at);
        assert_eq!(found.offset, at & 0xfff);
    }
    assert_eq!((PAGE_SIZE, Arch::PAGE_SHIFT), (4096, 12));
}

fn invlpg() {
    const SCRATCH: usize = FixedAddress::Scratch as usize;
    let frames = [page(), page()];
    let at = pointer::<u32>(fix_to_virt::<SCRATCH>());
    for (value, pfn) in frames.iter().enumerate() {
        // SAFETY: the page is this test's.
        unsafe { I386.virt(*pfn).cast::<u32>().write_volatile(value as u32) };
    }
    for round in 0..64 {
        set_fixmap::<SCRATCH>(PhysAddr::of(frames[round % 2]), Flags::KERNEL);
        // SAFETY: mapped just now.
        assert_eq!(unsafe { at.read_volatile() }, round as u32 % 2, "a stale translation");
    }
    clear_fixmap::<SCRATCH>();
    frames.into_iter().for_each(free);
}

fn flush_all() {
    const SCRATCH: usize = FixedAddress::Scratch as usize;
    let frames = [page(), page()];
    let at = set_fixmap::<SCRATCH>(PhysAddr::of(frames[0]), Flags::KERNEL.with(Flags::GLOBAL));
    // SAFETY: both pages are this test's.
    unsafe {
        frames.iter().enumerate().for_each(|(i, pfn)| I386.virt(*pfn).write_volatile(i as u8));
        assert_eq!(pointer::<u8>(at).read_volatile(), 0);
        // Behind the TLB's back: the entry alone is changed.
        paging::write_entry(at, Arch::leaf(Level::Pte, frames[1], Flags::KERNEL));
        paging::flush_all();
        assert_eq!(pointer::<u8>(at).read_volatile(), 1, "a global translation outlived the flush");
    }
    clear_fixmap::<SCRATCH>();
    frames.into_iter().for_each(free);
}
