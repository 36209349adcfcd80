//! The kernel's page table in hardware, address spaces that share it, and the TLB.
//!
//! The tables are those of the generic walker ([`crate::paging`]): two levels of 1024 entries, or three with the
//! feature `pae`. Table pages for all of the vmalloc window are set aside at boot, since the machine may not ask the
//! allocator that it carries; they are hooked in when they are first needed. A space that was made before does not have
//! them then: its first access faults, and [`sync_kernel_entry`] copies the entry from the kernel's own table.
#![cfg(all(target_arch = "x86", feature = "i386"))]
#![allow(unsafe_code)]

use core::ops::Range;
use core::ptr;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};

use super::boot::{BOOT_MAPPED, MEMBLOCK};
use super::layout::{
    FIXADDR_TOP, IOREMAP, LAST_PKMAP, MAX_CPUS, PAGE_OFFSET, PKMAP_BASE, TABLE_BYTES, kmap_atomic_slots,
};
use super::{I386, cpu, smp};
use crate::machine::Mapping;
use crate::paging::{Entry, Flags, Format, Level, MapError, PageTable, TableMemory, Translation};
use crate::sync::{Guard, Lock};
use crate::types::{PAGE_SHIFT, PAGE_SIZE, Pfn, VirtAddr};

/// The entry format.
#[cfg(not(feature = "pae"))]
pub type Arch = crate::paging::i386::I386;
/// The entry format.
#[cfg(feature = "pae")]
pub type Arch = crate::paging::i386::Pae;

/// Flags of device memory: neither cached nor written behind.
pub const DEVICE: Flags = Flags::KERNEL.with(Flags::NO_CACHE).with(Flags::WRITE_THROUGH);

/// Pages above which a flush drops the whole TLB.
const FLUSH_PAGES: usize = 32;

/// Zeroed pages for tables, linked through their first word.
pub struct Pool {
    head: Pfn,
    len: usize,
}

/// The pool; who changes tables holds it ([`take_pool`]).
static POOL: Lock<Pool> = Lock::new(Pool { head: Pfn::NONE, len: 0 });

/// Takes the pool, and turns interrupts off until it is given back (the guards go in this order, the last first): a
/// handler that maps something must not find the lock with whom it interrupted.
fn take_pool() -> (cpu::IrqOff, Guard<'static, Pool, I386>) {
    (cpu::IrqOff::new(), POOL.lock(&I386))
}

static ROOT: AtomicU32 = AtomicU32::new(0);
static WINDOW: (AtomicUsize, AtomicUsize) = (AtomicUsize::new(0), AtomicUsize::new(0));
/// Times the whole TLB of this or all CPUs was dropped.
static FULL_FLUSHES: AtomicU32 = AtomicU32::new(0);
/// Kernel entries that were copied to a space on a fault.
static SYNCED: AtomicU32 = AtomicU32::new(0);

/// Page tables in frames of low memory.
pub struct Hardware<'a> {
    pool: Option<&'a mut Pool>,
}

/// An entry as the processor reads it: whole.
#[cfg(not(feature = "pae"))]
type Raw = AtomicU32;
/// An entry as the processor reads it: whole.
#[cfg(feature = "pae")]
type Raw = crate::sync::wide::AtomicU64;

fn raw(table: Pfn, index: usize) -> *const Raw {
    ptr::with_exposed_provenance(PAGE_OFFSET + (table.index() << PAGE_SHIFT) + index * size_of::<Raw>())
}

/// The first word of a page of the pool.
fn link(table: Pfn) -> *const AtomicU32 {
    raw(table, 0).cast()
}

impl TableMemory for Hardware<'_> {
    fn read(&self, table: Pfn, index: usize) -> u64 {
        // SAFETY: tables lie in low memory, which is mapped, and the index is below the number of entries.
        #[allow(clippy::useless_conversion)]
        u64::from(unsafe { (*raw(table, index)).load(Relaxed) })
    }

    fn write(&mut self, table: Pfn, index: usize, entry: u64) {
        #[cfg(feature = "pae")]
        let entry = if table.0 == ROOT.load(Relaxed) { Arch::root_entry(entry) } else { entry };
        // SAFETY: as in `read`.
        unsafe { (*raw(table, index)).store(entry as _, Relaxed) };
    }

    fn alloc(&mut self, _level: Level) -> Option<Pfn> {
        let pool = self.pool.as_mut()?;
        let table = pool.head;
        if !table.is_some() {
            return None;
        }
        // SAFETY: pages of the pool are in low memory and nobody else's.
        unsafe {
            pool.head = Pfn((*link(table)).swap(0, Relaxed));
        }
        pool.len -= 1;
        Some(table)
    }

    fn free(&mut self, _level: Level, table: Pfn) {
        if let Some(pool) = self.pool.as_mut() {
            // SAFETY: the caller gives the table up; its entries are zero.
            unsafe { (*link(table)).store(pool.head.0, Relaxed) };
            pool.head = table;
            pool.len += 1;
        }
    }
}

/// For looking only: it makes no tables.
pub const READ_ONLY: Hardware<'static> = Hardware { pool: None };

/// The kernel's table.
pub fn kernel() -> PageTable<Arch> {
    PageTable::new(Pfn(ROOT.load(Relaxed)))
}

/// Sets the vmalloc window.
pub fn set_window(window: &Range<usize>) {
    WINDOW.0.store(window.start, Relaxed);
    WINDOW.1.store(window.end, Relaxed);
}

/// Takes `count` pages of the memblock's for tables, below `limit`.
pub fn fill_pool(count: usize, limit: u64) {
    let mut block = MEMBLOCK.lock(&I386);
    let (_off, mut pool) = take_pool();
    for _ in 0..count {
        let page = block.alloc(PAGE_SIZE as u64, PAGE_SIZE as u64, 0..limit).expect("no memory for page tables");
        // SAFETY: the memblock just gave the page, which is mapped.
        unsafe { ptr::with_exposed_provenance_mut::<u8>(PAGE_OFFSET + page as usize).write_bytes(0, PAGE_SIZE) };
        Hardware { pool: Some(&mut pool) }.free(Level::Pte, Pfn((page >> PAGE_SHIFT) as u32));
    }
}

/// Pages for the tables that [`build`] makes.
pub const BUILD_TABLES: usize = (FIXADDR_TOP - IOREMAP.start) / TABLE_BYTES + 8;

/// Makes the kernel's table: `low` bytes of low memory at [`PAGE_OFFSET`] by huge pages, the first of them at its own
/// address, too, and tables without entries for the mappings at fixed addresses. Returns what cr3 and cr4 are to be.
pub fn build(low: u64) -> (u32, u32) {
    let features = cpu::features();
    assert!(features & cpu::FEATURE_PSE != 0, "the processor has no huge pages");
    assert!(!cfg!(feature = "pae") || features & cpu::FEATURE_PAE != 0, "the processor has no three-level tables");
    let mut cr4 = cpu::cr4() | cpu::CR4_PSE;
    let mut flags = Flags::KERNEL;
    if features & cpu::FEATURE_PGE != 0 {
        cr4 |= cpu::CR4_PGE;
        flags = flags.with(Flags::GLOBAL);
    }
    if cfg!(feature = "pae") {
        cr4 |= cpu::CR4_PAE;
    }
    let (_off, mut pool) = take_pool();
    let mut memory = Hardware { pool: Some(&mut pool) };
    let root = memory.alloc(Level::Pgd).expect("the pool was just filled");
    ROOT.store(root.0, Relaxed);
    let table = kernel();
    let done = (|| {
        for at in (0..low.max(BOOT_MAPPED) as usize).step_by(TABLE_BYTES) {
            let frame = Pfn((at >> PAGE_SHIFT) as u32);
            table.map(&mut memory, VirtAddr(PAGE_OFFSET + at), Level::Pmd, frame, flags)?;
        }
        table.map(&mut memory, VirtAddr(0), Level::Pmd, Pfn(0), Flags::KERNEL)?;
        for at in (IOREMAP.start..FIXADDR_TOP).step_by(TABLE_BYTES) {
            table.make(&mut memory, VirtAddr(at), Level::Pte)?;
        }
        Ok::<(), MapError>(())
    })();
    done.expect("the pool holds tables enough");
    (root.0 << PAGE_SHIFT, cr4)
}

/// Takes the mapping of low memory at its own address away: null pointers fault from here on.
pub fn drop_identity() {
    let (_off, mut pool) = take_pool();
    kernel().unmap(&mut Hardware { pool: Some(&mut pool) }, VirtAddr(0));
    drop(pool);
    flush_all();
}

/// What the kernel's table says of `address`.
pub fn translate(address: usize) -> Option<Translation> {
    kernel().translate(&READ_ONLY, VirtAddr(address))
}

/// Whether the kernel's table has a table for pages at `address`.
pub fn has_table(address: usize) -> bool {
    kernel().missing(&READ_ONLY, VirtAddr(address), VirtAddr(address + 1), Level::Pte) == 0
}

/// Writes the entry of a page whose table exists from the start (fixmap, PKMAP), without a lock, and forgets the old
/// translation on this CPU. `None` takes the mapping away.
pub fn set_fixed(address: usize, to: Option<(Pfn, Flags)>) {
    write_entry(address, to.map_or(0, |(frame, flags)| Arch::leaf(Level::Pte, frame, flags)));
    cpu::invlpg(address);
}

/// Writes the entry of such a page and leaves the TLB as it is.
pub fn write_entry(address: usize, entry: u64) {
    let place = fixed_place(address);
    Hardware { pool: None }.write(place.table, place.index, entry);
}

fn fixed_place(address: usize) -> Entry {
    debug_assert!(address >= IOREMAP.start, "{address:#x} has no table of its own");
    let table = kernel();
    let pgd = table.pgd_offset(VirtAddr(address));
    let pud = table.pud_offset(&READ_ONLY, pgd, VirtAddr(address));
    let pmd = pud.and_then(|pud| table.pmd_offset(&READ_ONLY, pud, VirtAddr(address)));
    pmd.and_then(|pmd| table.pte_offset(&READ_ONLY, pmd, VirtAddr(address))).expect("the table was made at boot")
}

/// Drops every translation on this CPU, global ones included.
fn flush_local() {
    // SAFETY: only translations are forgotten; the table stays.
    unsafe {
        let cr4 = cpu::cr4();
        if cr4 & cpu::CR4_PGE != 0 {
            cpu::set_cr4(cr4 & !cpu::CR4_PGE);
            cpu::set_cr4(cr4);
        } else {
            cpu::set_cr3(cpu::cr3());
        }
    }
}

/// Drops every translation on every CPU (`flush_tlb_all`).
pub fn flush_all() {
    FULL_FLUSHES.fetch_add(1, Relaxed);
    flush_local();
    smp::on_others(|_| flush_local(), 0);
}

/// Times the whole TLB was dropped.
pub fn full_flushes() -> u32 {
    FULL_FLUSHES.load(Relaxed)
}

/// Forgets on this CPU what it keeps of a user address, and of the tables on the way there.
fn forget_user(at: usize) {
    cpu::invlpg(at);
    if cfg!(feature = "pae") {
        // The entries of the root are read when cr3 is loaded, and kept.
        // SAFETY: the same table as before.
        unsafe { cpu::set_cr3(cpu::cr3()) };
    }
}

/// Pages to forget, as one word: the first page and their number.
fn flush_packed(packed: usize) {
    let (start, pages) = (packed & !(PAGE_SIZE - 1), packed & (PAGE_SIZE - 1));
    (0..pages).for_each(|page| cpu::invlpg(start + page * PAGE_SIZE));
}

/// Forgets the translations of kernel addresses on every CPU (`flush_tlb_kernel_range`).
pub fn flush_kernel_range(start: usize, len: usize) {
    let pages = len.div_ceil(PAGE_SIZE);
    if pages > FLUSH_PAGES {
        return flush_all();
    }
    let packed = start & !(PAGE_SIZE - 1) | pages;
    flush_packed(packed);
    smp::on_others(flush_packed, packed);
}

/// Maps `frame` at the kernel address `at`. False where there is no table, or the page is mapped.
pub fn map_page(at: usize, frame: Pfn, flags: Flags) -> bool {
    let (_off, mut pool) = take_pool();
    kernel().map(&mut Hardware { pool: Some(&mut pool) }, VirtAddr(at), Level::Pte, frame, flags).is_ok()
}

/// Clears the entries of a range of kernel addresses. CPUs may go on using them until their TLBs are flushed.
fn clear_range(start: usize, len: usize) {
    let (off, pool) = take_pool();
    let (from, to) = (VirtAddr(start), VirtAddr(start + len));
    // No table is made, so there is none to lack.
    let _ = kernel().for_entries(&mut Hardware { pool: None }, from, to, Level::Pte, false, |_, _| 0);
    drop(pool);
    drop(off);
}

/// Takes the mappings of a range of kernel addresses away, on all CPUs.
pub fn unmap_range(start: usize, len: usize) {
    clear_range(start, len);
    flush_kernel_range(start, len);
}

/// Copies the kernel's top-level entry for `address` into the table in use, where it lacks. False where that was not
/// what lacked.
pub fn sync_kernel_entry(address: usize) -> bool {
    let (current, master) = (Pfn(cpu::cr3() >> PAGE_SHIFT), kernel());
    if current == master.root() || address < PAGE_OFFSET || cfg!(feature = "pae") {
        return false;
    }
    let place = master.pgd_offset(VirtAddr(address));
    let entry = READ_ONLY.read(place.table, place.index);
    if !Arch::is_present(entry) || Arch::is_present(READ_ONLY.read(current, place.index)) {
        return false;
    }
    Hardware { pool: None }.write(current, place.index, entry);
    SYNCED.fetch_add(1, Relaxed);
    true
}

/// Kernel entries copied by [`sync_kernel_entry`].
pub fn synced() -> u32 {
    SYNCED.load(Relaxed)
}

/// An address space: user addresses of its own, the kernel's as they are in the kernel's table.
pub struct Space {
    table: PageTable<Arch>,
}

impl Space {
    /// An empty one; `None` where no table page is left.
    pub fn new() -> Option<Space> {
        let (_off, mut pool) = take_pool();
        let mut memory = Hardware { pool: Some(&mut pool) };
        let root = memory.alloc(Level::Pgd)?;
        let kernel = kernel().root();
        for index in Arch::index(Level::Pgd, PAGE_OFFSET)..1 << Arch::BITS[Level::Pgd as usize] {
            let entry = memory.read(kernel, index);
            memory.write(root, index, entry);
        }
        Some(Space { table: PageTable::new(root) })
    }

    /// Maps `frame` at the user address `at`.
    ///
    /// # Errors
    /// As [`PageTable::map`]; [`MapError::Misaligned`] for a kernel address.
    pub fn map(&self, at: usize, frame: Pfn, flags: Flags) -> Result<(), MapError> {
        if at >= PAGE_OFFSET {
            return Err(MapError::Misaligned);
        }
        let (_off, mut pool) = take_pool();
        let mut memory = Hardware { pool: Some(&mut pool) };
        #[cfg(feature = "pae")]
        self.make_directory(&mut memory, at)?;
        self.table.map(&mut memory, VirtAddr(at), Level::Pte, frame, flags.with(Flags::USER))
    }

    /// An entry of the root must be without flags, and processors, of which several may be in this space, read it when
    /// cr3 is loaded.
    #[cfg(feature = "pae")]
    fn make_directory(&self, memory: &mut Hardware<'_>, at: usize) -> Result<(), MapError> {
        let place = self.table.pgd_offset(VirtAddr(at));
        if memory.read(place.table, place.index) == 0 {
            let directory = memory.alloc(Level::Pmd).ok_or(MapError::NoMemory)?;
            memory.write(place.table, place.index, Arch::root_entry(Arch::table(directory)));
            forget_user(at);
            smp::on_others(forget_user, at);
        }
        Ok(())
    }

    /// Takes the mapping of the user address `at` away, on all CPUs: more than one may be in this space. The frame that
    /// was there.
    pub fn unmap(&self, at: usize) -> Option<Pfn> {
        let (_off, mut pool) = take_pool();
        let (_, entry) = self.table.unmap(&mut Hardware { pool: Some(&mut pool) }, VirtAddr(at))?;
        // The tables that it emptied are in the pool by now. CPUs keep entries that lead to tables, too: none of these
        // is used for something else before all have forgotten it. Who waits for the pool answers.
        forget_user(at);
        smp::on_others(forget_user, at);
        drop(pool);
        Some(Arch::frame(entry))
    }

    /// Runs `body` in this space on this CPU, then goes back to the one before. (A scheduler that lets another task run
    /// meanwhile keeps cr3 with the task.)
    pub fn with<R>(&self, body: impl FnOnce() -> R) -> R {
        let before = cpu::cr3();
        // SAFETY: the kernel's addresses are the same in all spaces.
        unsafe { cpu::set_cr3(self.table.root().0 << PAGE_SHIFT) };
        let result = body();
        // SAFETY: as above.
        unsafe { cpu::set_cr3(before) };
        result
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let (_off, mut pool) = take_pool();
        let mut memory = Hardware { pool: Some(&mut pool) };
        let root = self.table.root();
        for index in 0..1 << Arch::BITS[Level::Pgd as usize] {
            let entry = memory.read(root, index);
            memory.write(root, index, 0);
            // Tables of user addresses that are left are this space's own.
            if index < Arch::index(Level::Pgd, PAGE_OFFSET) && Arch::is_present(entry) {
                clear(&mut memory, Arch::frame(entry), if cfg!(feature = "pae") { Level::Pmd } else { Level::Pte });
            }
        }
        memory.free(Level::Pgd, root);
    }
}

/// Frees a table of `level` and those below it.
fn clear(memory: &mut Hardware<'_>, table: Pfn, level: Level) {
    for index in 0..1 << Arch::BITS[level as usize] {
        let entry = memory.read(table, index);
        if entry != 0 && level == Level::Pmd && Arch::is_present(entry) {
            clear(memory, Arch::frame(entry), Level::Pte);
        }
        memory.write(table, index, 0);
    }
    memory.free(level, table);
}

// SAFETY: the window is kept out of every other mapping; a page that was mapped stays until it is unmapped, and then no
// CPU has a translation of it.
unsafe impl Mapping for I386 {
    fn window(&self) -> Range<usize> {
        WINDOW.0.load(Relaxed)..WINDOW.1.load(Relaxed)
    }

    const SLOT_SHIFT: u32 = PAGE_SHIFT;
    const OWNS_FRAMES: bool = true;

    fn map_fresh(&self, _start: usize, _len: usize) -> bool {
        // Frames are mapped one by one.
        false
    }

    fn map_frame(&self, at: usize, frame: Pfn) -> bool {
        map_page(at, frame, Flags::KERNEL)
    }

    fn move_mapping(&self, from: usize, to: usize, len: usize) -> Result<(), usize> {
        let (_off, mut pool) = take_pool();
        let mut memory = Hardware { pool: Some(&mut pool) };
        let table = kernel();
        let mut moved = 0;
        while moved < len {
            let Some(found) = table.translate(&memory, VirtAddr(from + moved)) else { break };
            if table.map(&mut memory, VirtAddr(to + moved), Level::Pte, found.frame, found.flags).is_err() {
                break;
            }
            let old = table.walk(&memory, VirtAddr(from + moved)).place;
            memory.write(old.table, old.index, 0);
            moved += PAGE_SIZE;
        }
        drop(pool);
        if moved > 0 {
            flush_kernel_range(from, moved);
        }
        if moved == len { Ok(()) } else { Err(moved) }
    }

    fn clean(&self, start: usize, len: usize) -> bool {
        // SAFETY: the caller owns the mapped range.
        unsafe { ptr::with_exposed_provenance_mut::<u8>(start).write_bytes(0, len) };
        true
    }

    fn unmap(&self, start: usize, len: usize) {
        unmap_range(start, len);
    }

    fn unmap_all(&self, ranges: impl Iterator<Item = Range<usize>>) {
        let mut all: Option<Range<usize>> = None;
        for range in ranges {
            clear_range(range.start, range.len());
            let hull = all.unwrap_or(range.clone());
            all = Some(hull.start.min(range.start)..hull.end.max(range.end));
        }
        if let Some(all) = all {
            flush_kernel_range(all.start, all.len());
        }
    }

    fn kmap_slots(&self) -> Range<usize> {
        PKMAP_BASE..PKMAP_BASE + LAST_PKMAP * PAGE_SIZE
    }

    fn kmap_atomic_slots(&self, cpu: usize) -> Range<usize> {
        if cpu < MAX_CPUS { kmap_atomic_slots(cpu) } else { 0..0 }
    }

    fn set_slot(&self, at: usize, frame: Option<Pfn>) {
        set_fixed(at, frame.map(|frame| (frame, Flags::KERNEL)));
    }

    fn flush_slots(&self) {
        flush_all();
    }
}
