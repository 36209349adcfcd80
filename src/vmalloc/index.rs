//! The explicit page table of the vmalloc window: one [`Slot`] per slot, in tables of the x86-64 format.
//!
//! It is the kernel's `vm_struct.pages` and more: which frame backs a slot, whether it reads zero, in which fork
//! generation it was filled. Tables are never given back; the kernel keeps those of its vmalloc area too.
#![allow(unsafe_code)]

use core::sync::atomic::Ordering::Relaxed;

use crate::machine::Machine;
use crate::page::{Kind, PageList};
use crate::paging::x86_64::{Slot, SlotState, X86_64};
use crate::paging::{Format, Level, MapError, PageTable, TableMemory};
use crate::sync::wide::AtomicU64;
use crate::types::{Order, Pfn, VirtAddr};

/// The table, and pages put by to extend it without allocating under the lock.
pub struct Index {
    table: Option<PageTable<X86_64>>,
    stash: PageList,
    base: usize,
    /// log2 of a slot.
    slot_shift: u32,
}

/// Table pages through the machine's addresses.
struct Tables<'a, M> {
    m: &'a M,
    stash: &'a mut PageList,
}

impl<M: Machine> Tables<'_, M> {
    fn entry(&self, table: Pfn, index: usize) -> &AtomicU64 {
        let table = self.m.virt(table).cast::<[AtomicU64; 512]>();
        // SAFETY: tables are frames that `Index::put_by` was given for ever; 512 entries fill one.
        unsafe { &(*table)[index] }
    }
}

impl<M: Machine> TableMemory for Tables<'_, M> {
    fn read(&self, table: Pfn, index: usize) -> u64 {
        self.entry(table, index).load(Relaxed)
    }

    fn write(&mut self, table: Pfn, index: usize, entry: u64) {
        self.entry(table, index).store(entry, Relaxed);
    }

    fn alloc(&mut self, _level: Level) -> Option<Pfn> {
        let m = self.m;
        self.stash.pop_front(|pfn| m.page(pfn))
    }

    fn free(&mut self, _level: Level, table: Pfn) {
        let m = self.m;
        self.stash.push_front(table, |pfn| m.page(pfn));
    }
}

impl Index {
    pub const fn new() -> Index {
        Index { table: None, stash: PageList::new(), base: 0, slot_shift: 0 }
    }

    /// A view of the table with this root, to read a slot without the lock: sound as tables never go away, and of use
    /// for slots that nobody changes at the time.
    pub fn view(root: Pfn, base: usize, slot_shift: u32) -> Index {
        Index { table: Some(PageTable::new(root)), stash: PageList::new(), base, slot_shift }
    }

    /// The root of the table, once it is there.
    pub fn root(&self) -> Option<Pfn> {
        self.table.map(PageTable::root)
    }

    /// Sets the window's first address and the slot size.
    pub fn open(&mut self, base: usize, slot_shift: u32) {
        self.base = base;
        self.slot_shift = slot_shift;
    }

    /// The level of the slots' entries: pages, or 2 MiB leaves.
    fn level(&self) -> Level {
        if self.slot_shift >= X86_64::shift(Level::Pmd) { Level::Pmd } else { Level::Pte }
    }

    /// Where `address` lies in the table: slots of another size than the format's are packed without gaps.
    fn place(&self, address: usize) -> VirtAddr {
        VirtAddr((address - self.base) >> (self.slot_shift - X86_64::shift(self.level())))
    }

    /// Puts by a zeroed page for tables.
    ///
    /// # Safety
    /// `page` is the caller's, zeroed, with an address, and is given up for ever.
    pub unsafe fn put_by<M: Machine>(&mut self, m: &M, page: Pfn) {
        m.page(page).set_kind(Kind::Table, Order::ZERO);
        if self.table.is_none() {
            self.table = Some(PageTable::new(page));
        } else {
            self.stash.push_back(page, |pfn| m.page(pfn));
        }
    }

    /// Pages that must be put by before all slots of the range can be set.
    pub fn lacking<M: Machine>(&mut self, m: &M, start: usize, len: usize) -> usize {
        let Some(table) = self.table else { return 1 };
        let (from, to, level) = (self.place(start), self.place(start + len), self.level());
        let missing = table.missing(&Tables { m, stash: &mut self.stash }, from, to, level);
        missing.saturating_sub(self.stash.len() as usize)
    }

    /// Gives the address and value of each slot in the range to `change`; slots without a table are passed over
    /// unless `make`. False where table pages lacked.
    pub fn update<M: Machine>(
        &mut self,
        m: &M,
        start: usize,
        len: usize,
        make: bool,
        mut change: impl FnMut(usize, Slot) -> Slot,
    ) -> bool {
        let Some(table) = self.table else { return false };
        let (from, to, level) = (self.place(start), self.place(start + len), self.level());
        let (base, scale) = (self.base, self.slot_shift - X86_64::shift(level));
        let mut tables = Tables { m, stash: &mut self.stash };
        let done: Result<(), MapError> = table
            .for_entries(&mut tables, from, to, level, make, |at, old| change(base + (at.0 << scale), Slot(old)).0);
        done.is_ok()
    }

    /// Shows the slots of the range that have tables.
    pub fn look<M: Machine>(&mut self, m: &M, start: usize, len: usize, mut look: impl FnMut(usize, Slot)) {
        self.update(m, start, len, false, |at, slot| {
            look(at, slot);
            slot
        });
    }

    /// The slot of `address`.
    pub fn get<M: Machine>(&mut self, m: &M, address: usize) -> Slot {
        let mut found = Slot::EMPTY;
        let start = address >> self.slot_shift << self.slot_shift;
        self.look(m, start, 1 << self.slot_shift, |_, slot| found = slot);
        found
    }

    /// Records in the slot at `start`, the first of an area, how many pages the area has; 0 when it is nobody's any
    /// more.
    pub fn set_pages<M: Machine>(&mut self, m: &M, start: usize, pages: usize) {
        self.update(m, start, 1 << self.slot_shift, false, |_, slot| {
            if M::OWNS_FRAMES {
                // A frame's reference stands for its being allocated.
                m.page(slot.frame()).set_refs(pages as u32 + 1);
                slot
            } else {
                slot.with_count(pages)
            }
        });
    }

    /// What [`Index::set_pages`] recorded for an area that begins at `start`; 0 where none does.
    pub fn pages<M: Machine>(&mut self, m: &M, start: usize) -> usize {
        let slot = self.get(m, start);
        if start & ((1 << self.slot_shift) - 1) != 0 || slot.state() != SlotState::Dirty {
            0
        } else if M::OWNS_FRAMES {
            let page = m.page(slot.frame());
            if page.word() == start as u64 { page.refs().saturating_sub(1) as usize } else { 0 }
        } else {
            slot.count()
        }
    }
}
