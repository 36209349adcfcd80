//! Address spaces: user addresses of their own, the kernel's as they were in its table when the space was made.

use std::boxed::Box;
use std::sync::Mutex;

use super::{Arch, Flavour, Simulated, Tables, locked};
use crate::machine::i386::layout::PAGE_OFFSET;
use crate::paging::{Area, Areas, Fault, Flags, Format, Level, MapError, PageTable, Signal, TableMemory};
use crate::types::{PAGE_SIZE, Pfn, VirtAddr};

/// Most areas of a space.
pub const AREAS: usize = 32;

/// What makes a page present that an area has and the table lacks: the frame, and how it is mapped.
pub type Pager = Box<dyn FnMut(Area, Fault) -> Result<(Pfn, Flags), Signal> + Send>;

/// An address space.
pub struct Space<F: Flavour> {
    sim: Simulated<F>,
    root: Pfn,
    pub(super) areas: Mutex<Areas<AREAS>>,
    pub(super) pager: Mutex<Option<Pager>>,
}

impl<F: Flavour> Simulated<F> {
    /// A space without areas and pages. `None` where no frame is left for its table.
    pub fn space(&self) -> Option<Space<F>> {
        let mmu = &mut *self.mmu();
        let (master, mut tables) = (mmu.master, Tables { memory: &self.state.memory, pool: Some(&mut mmu.pool) });
        let root = tables.alloc(Level::Pgd)?;
        for index in Arch::index(Level::Pgd, PAGE_OFFSET)..1 << Arch::BITS[Level::Pgd as usize] {
            let entry = tables.read(master, index);
            tables.write(root, index, entry);
        }
        Some(Space { sim: self.clone(), root, areas: Mutex::new(Areas::new()), pager: Mutex::new(None) })
    }
}

impl<F: Flavour> Space<F> {
    /// The machine it belongs to.
    pub fn machine(&self) -> &Simulated<F> {
        &self.sim
    }

    /// The frame of its top-level table.
    pub fn root(&self) -> Pfn {
        self.root
    }

    /// Its areas.
    pub fn with_areas<R>(&self, body: impl FnOnce(&mut Areas<AREAS>) -> R) -> R {
        body(&mut locked(&self.areas))
    }

    /// Sets who makes pages present. Without it every fault in an area is a bus error.
    pub fn set_pager(&self, pager: impl FnMut(Area, Fault) -> Result<(Pfn, Flags), Signal> + Send + 'static) {
        *locked(&self.pager) = Some(Box::new(pager));
    }

    fn with_table<R>(&self, body: impl FnOnce(PageTable<Arch>, &mut Tables<'_>) -> R) -> R {
        let mmu = &mut *self.sim.mmu();
        let mut tables = Tables { memory: &self.sim.state.memory, pool: Some(&mut mmu.pool) };
        body(PageTable::new(self.root), &mut tables)
    }

    /// Maps `frame` at the user address `at`.
    ///
    /// # Errors
    /// As for [`PageTable::map`]; [`MapError::Misaligned`] for a kernel address.
    pub fn map(&self, at: usize, frame: Pfn, flags: Flags) -> Result<(), MapError> {
        if at >= PAGE_OFFSET {
            return Err(MapError::Misaligned);
        }
        self.with_table(|table, tables| table.map(tables, VirtAddr(at), Level::Pte, frame, flags.with(Flags::USER)))
    }

    /// Takes the mapping of the user address `at` away, on all CPUs; the frame and the flags it had.
    pub fn unmap(&self, at: usize) -> Option<(Pfn, Flags)> {
        let entry = self.unmap_lazily(at)?;
        self.sim.flush_tlb_page(at);
        Some(entry)
    }

    /// [`Space::unmap`] without telling the CPUs: they may go on using the translation until their TLBs are flushed.
    pub fn unmap_lazily(&self, at: usize) -> Option<(Pfn, Flags)> {
        assert!(at < PAGE_OFFSET && at.is_multiple_of(PAGE_SIZE));
        let (_, entry) = self.with_table(|table, tables| table.unmap(tables, VirtAddr(at)))?;
        Some((Arch::frame(entry), Arch::flags(entry)))
    }

    /// The frame behind the user address `at` and the entry's flags, by the table.
    pub fn lookup(&self, at: usize) -> Option<(Pfn, Flags)> {
        let found = self.with_table(|table, tables| table.translate(tables, VirtAddr(at)))?;
        Some((found.frame, found.flags))
    }
}

impl<F: Flavour> Drop for Space<F> {
    fn drop(&mut self) {
        let mmu = &mut *self.sim.mmu();
        let mut tables = Tables { memory: &self.sim.state.memory, pool: Some(&mut mmu.pool) };
        for index in 0..1 << Arch::BITS[Level::Pgd as usize] {
            let entry = tables.read(self.root, index);
            tables.write(self.root, index, 0);
            // Tables of user addresses that are left are this space's own.
            if index < Arch::index(Level::Pgd, PAGE_OFFSET) && Arch::is_present(entry) {
                let table = Arch::frame(entry);
                (0..1 << Arch::BITS[Level::Pte as usize]).for_each(|index| tables.write(table, index, 0));
                tables.free(Level::Pte, table);
            }
        }
        tables.free(Level::Pgd, self.root);
        // Its root may be another space's soon.
        let master = mmu.master;
        for (root, tlb) in mmu.cpus.iter_mut().filter(|(root, _)| *root == self.root) {
            *root = master;
            tlb.switch();
        }
    }
}
