//! A processor's view of a simulated machine: 4 GiB of addresses translated by page tables of the i386's format that
//! lie in frames.
//!
//! [`Builder::tables`](super::Builder::tables) turns it on. The addresses are the i386 image's
//! ([`layout`](crate::machine::i386::layout)): low memory from `PAGE_OFFSET` on, then what the core maps ([`Mapping`]),
//! permanent and temporary mappings, the fixmap. The core itself reaches all of that by host addresses; a simulated
//! program ([`Task`]) loads and stores by these, through its CPU's TLB and the tables.
//!
//! The TLB never forgets a translation by itself, as a hostile one would not: what a kernel forgets to flush stays
//! visible.

mod space;
mod task;
mod tlb;

use core::ops::Range;
use std::sync::MutexGuard;
use std::vec::Vec;

pub use space::{AREAS, Pager, Space};
pub use task::{Interrupted, Mode, Task};
pub use tlb::Flushes;

use self::tlb::Tlb;
use super::memory::Memory;
use super::{Call, Flavour, Simulated, locked};
use crate::machine::i386::layout::{
    DMA_END, FIXADDR_TOP, MAX_LOWMEM, PAGE_OFFSET, PKMAP_BASE, TABLE_BYTES, fix_to_virt, vmalloc_window,
};
use crate::machine::{Mapping, PerCpu};
use crate::paging::i386::I386 as Arch;
use crate::paging::{FaultCode, Fixup, Flags, Format, Level, MapError, PageTable, TableMemory, Translation};
use crate::types::{Order, PAGE_SHIFT, PAGE_SIZE, Pfn, PfnRange, PhysAddr, VirtAddr};

/// A kernel page that survives a switch of address spaces.
const KERNEL: Flags = Flags::KERNEL.with(Flags::GLOBAL);

/// The page faults so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Faults {
    /// How many there were.
    pub count: u64,
    /// The address of the last one.
    pub address: usize,
    /// Its error code.
    pub code: FaultCode,
}

/// What the view consists of; behind a lock of the machine's.
pub(super) struct Mmu {
    /// Zeroed frames for tables.
    pool: Vec<Pfn>,
    /// The root of the kernel's own table.
    master: Pfn,
    /// The root in use on each CPU (`cr3`), and its TLB.
    cpus: Vec<(Pfn, Tlb)>,
    fixups: Vec<Fixup>,
    /// First simulated and first host address of the vmalloc window.
    window: (usize, usize),
    faults: Faults,
    synced: u64,
    flushes: Flushes,
}

/// Tables in frames of low memory.
struct Tables<'a> {
    memory: &'a Memory,
    pool: Option<&'a mut Vec<Pfn>>,
}

impl TableMemory for Tables<'_> {
    fn read(&self, table: Pfn, index: usize) -> u64 {
        let mut entry = [0; 4];
        self.memory.read_frame(table, index * Arch::ENTRY_BYTES, &mut entry);
        u32::from_le_bytes(entry).into()
    }

    fn write(&mut self, table: Pfn, index: usize, entry: u64) {
        self.memory.write_frame(table, index * Arch::ENTRY_BYTES, &(entry as u32).to_le_bytes());
    }

    fn alloc(&mut self, _level: Level) -> Option<Pfn> {
        self.pool.as_mut()?.pop()
    }

    fn free(&mut self, _level: Level, table: Pfn) {
        if let Some(pool) = &mut self.pool {
            pool.push(table);
        }
    }
}

impl Mmu {
    /// A view whose tables lie in `frames`, which are online and read zero, of a machine of `cpus` CPUs with low memory
    /// up to frame `low`.
    pub(super) fn new(memory: &Memory, frames: PfnRange, cpus: usize, low: Pfn) -> Mmu {
        assert!(low.index() << PAGE_SHIFT <= MAX_LOWMEM, "low memory ends at 896 MiB: {low:?}");
        let host = memory.window();
        let window = vmalloc_window((low.index() << PAGE_SHIFT).max(DMA_END as usize), host.len() as u64);
        assert!(window.len() >= host.len(), "{} bytes of window do not fit under the fixmap", host.len());
        let mut pool: Vec<Pfn> = frames.iter().collect();
        pool.reverse();
        let master = pool.pop().expect("no frame for the kernel's table");
        let mut mmu = Mmu {
            pool,
            master,
            cpus: (0..cpus).map(|_| (master, Tlb::default())).collect(),
            fixups: Vec::new(),
            window: (window.start, host.start),
            faults: Faults { count: 0, address: 0, code: FaultCode(0) },
            synced: 0,
            flushes: Flushes::default(),
        };
        // Tables for the mappings at fixed addresses exist from the start, so that every space shares them.
        for at in (PKMAP_BASE..FIXADDR_TOP).step_by(TABLE_BYTES) {
            let mut tables = Tables { memory, pool: Some(&mut mmu.pool) };
            PageTable::<Arch>::new(master)
                .make(&mut tables, VirtAddr(at), Level::Pte)
                .expect("no frames for page tables");
        }
        mmu
    }

    /// Makes frames that came online part of the direct map: by huge leaves where that is possible, as the i386 does.
    pub(super) fn bring_online(&mut self, memory: &Memory, range: PfnRange) {
        let (mut at, master) = (range.start, PageTable::<Arch>::new(self.master));
        while at < range.end() {
            let huge = at.0.is_multiple_of(Order::MAX.pages()) && range.end().since(at) >= Order::MAX.pages();
            let level = if huge { Level::Pmd } else { Level::Pte };
            let mut tables = Tables { memory, pool: Some(&mut self.pool) };
            let address = VirtAddr(PAGE_OFFSET + (at.index() << PAGE_SHIFT));
            master.map(&mut tables, address, level, at, KERNEL).expect("no frames for page tables");
            at = at.add(if huge { Order::MAX.pages() } else { 1 });
        }
    }

    /// The simulated address of a host address in the window or among the slots of permanent and temporary mappings.
    fn simulated(&self, memory: &Memory, host: usize) -> usize {
        match memory.slot(host) {
            Some(offset) => PKMAP_BASE + offset,
            None => host - self.window.1 + self.window.0,
        }
    }

    /// Writes the kernel's entry for a page. False where no frame is left for its table.
    pub(super) fn map(&mut self, memory: &Memory, host: usize, frame: Pfn) -> bool {
        let at = VirtAddr(self.simulated(memory, host));
        let mut tables = Tables { memory, pool: Some(&mut self.pool) };
        match PageTable::<Arch>::new(self.master).map(&mut tables, at, Level::Pte, frame, KERNEL) {
            Ok(()) => true,
            Err(MapError::NoMemory) => false,
            Err(error) => panic!("{at:x?}: {error:?}"),
        }
    }

    /// Clears the kernel's entries of a range, whose tables stay: other spaces may share them. The TLBs are as they
    /// were.
    pub(super) fn unmap(&mut self, memory: &Memory, host: usize, len: usize) {
        let at = self.simulated(memory, host);
        self.set(memory, at, len, 0);
    }

    /// Makes all entries of a range whose tables exist `entry`.
    fn set(&mut self, memory: &Memory, at: usize, len: usize, entry: u64) {
        let mut tables = Tables { memory, pool: None };
        let (from, to) = (VirtAddr(at), VirtAddr(at + len));
        let done =
            PageTable::<Arch>::new(self.master).for_entries(&mut tables, from, to, Level::Pte, false, |_, _| entry);
        done.expect("no table is made");
    }

    /// [`Mapping::set_slot`].
    pub(super) fn set_slot(&mut self, memory: &Memory, cpu: usize, host: usize, frame: Option<Pfn>) {
        let at = self.simulated(memory, host);
        self.set_fixed(memory, cpu, at, frame.map(|frame| (frame, KERNEL)));
    }

    /// Writes the entry of a page whose table is there from the start, and forgets its translation on one CPU
    /// (`invlpg`).
    fn set_fixed(&mut self, memory: &Memory, cpu: usize, at: usize, to: Option<(Pfn, Flags)>) {
        let entry = to.map_or(0, |(frame, flags)| Arch::leaf(Level::Pte, frame, flags));
        self.set(memory, at, PAGE_SIZE, entry);
        self.cpus[cpu].1.forget(at..at + PAGE_SIZE);
    }

    /// The frame behind `address` for an access of CPU `cpu` in the space of `root`, by its TLB or by a walk.
    fn translate(
        &mut self,
        memory: &Memory,
        cpu: usize,
        root: Pfn,
        address: usize,
        access: u32,
    ) -> Result<Translation, FaultCode> {
        let (cr3, tlb) = &mut self.cpus[cpu];
        if *cr3 != root {
            *cr3 = root;
            tlb.switch();
        }
        let allowed = |flags: Flags| {
            // CR0.WP is set: the kernel heeds write protection, too.
            (access & FaultCode::WRITE == 0 || flags.has(Flags::WRITE))
                && (access & FaultCode::USER == 0 || flags.has(Flags::USER))
        };
        // Before it faults, and to set the dirty bit, a processor looks at the table again.
        let enough = |found: &Translation| {
            allowed(found.flags) && (access & FaultCode::WRITE == 0 || found.flags.has(Flags::DIRTY))
        };
        if let Some(found) = tlb.get(address).filter(enough) {
            return Ok(found);
        }
        tlb.forget(address..address + 1);
        let (table, mut tables) = (PageTable::<Arch>::new(root), Tables { memory, pool: None });
        let Some(mut found) = table.translate(&tables, VirtAddr(address)) else { return Err(FaultCode(access)) };
        if !allowed(found.flags) {
            return Err(FaultCode(access | FaultCode::PROTECTION));
        }
        let touched = if access & FaultCode::WRITE != 0 { Flags::DIRTY } else { Flags::NONE }.with(Flags::ACCESSED);
        if !found.flags.has(touched) {
            let walked = table.walk(&tables, VirtAddr(address));
            let entry = walked.entry | Arch::leaf(Level::Pte, Pfn(0), touched);
            tables.write(walked.place.table, walked.place.index, entry);
            found.flags = found.flags.with(touched);
        }
        tlb.insert(address, found);
        Ok(found)
    }
}

impl<F: Flavour> Simulated<F> {
    pub(super) fn mmu(&self) -> MutexGuard<'_, Mmu> {
        locked(self.state.mmu.as_ref().expect("a machine without page tables (Builder::tables)"))
    }

    /// Whether it has page tables.
    pub fn has_mmu(&self) -> bool {
        self.state.mmu.is_some()
    }

    /// The simulated addresses of the vmalloc window.
    pub fn simulated_window(&self) -> Range<usize> {
        let start = self.mmu().window.0;
        start..start + self.window().len()
    }

    /// The address that a simulated program finds there what the core finds at `address` of the direct map, the window
    /// or a slot.
    pub fn simulated(&self, address: *const u8) -> usize {
        use crate::machine::Frames;
        match self.pfn(address) {
            Some(pfn) => PAGE_OFFSET + (pfn.index() << PAGE_SHIFT) + address.addr() % PAGE_SIZE,
            None => self.mmu().simulated(&self.state.memory, address.addr()),
        }
    }

    /// The page faults so far.
    pub fn faults(&self) -> Faults {
        self.mmu().faults
    }

    /// Top-level entries of the kernel that were copied to a space on a fault.
    pub fn synced(&self) -> u64 {
        self.mmu().synced
    }

    /// Adds an entry to the exception table: after a fault of the instruction at `at` the kernel goes on at `to`.
    pub fn add_fixup(&self, at: u32, to: u32) {
        let fixups = &mut self.mmu().fixups;
        let place = fixups.partition_point(|fixup| fixup.at < at);
        fixups.insert(place, Fixup { at, to });
    }

    /// Maps the page at `physical` at fixed address `INDEX`; its simulated address. Another CPU may see what was there
    /// before until its TLB is flushed, so a slot is reused only after [`Simulated::clear_fixmap`].
    pub fn set_fixmap<const INDEX: usize>(&self, physical: PhysAddr, flags: Flags) -> usize {
        let at = fix_to_virt::<INDEX>();
        self.mmu().set_fixed(&self.state.memory, self.cpu(), at, Some((physical.pfn(), flags)));
        at
    }

    /// Takes the mapping at fixed address `INDEX` away, on all CPUs.
    pub fn clear_fixmap<const INDEX: usize>(&self) {
        let at = fix_to_virt::<INDEX>();
        self.mmu().set_fixed(&self.state.memory, self.cpu(), at, None);
        self.flush_tlb_page(at);
    }
}
