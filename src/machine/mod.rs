//! The seam: everything the core asks of a machine, on one page.
//!
//! Implementers: [`linux`] (a process), [`sim`] (tests), [`i386`] (bare metal). Methods take `&self` so that many
//! simulated machines fit into one test run; the real ones are zero-sized, so the calls cost nothing.
//!
//! None of these may allocate from the core or call user code. Those marked *syscall* may enter the system and are
//! never called under a lock of the core, nor for a request without [`Gfp::IO`](crate::gfp::Gfp::IO).
#![allow(unsafe_code)]

use core::fmt::{self, Write};
use core::ptr::NonNull;
use core::sync::atomic::AtomicU8;

use crate::config::Options;
use crate::error::Defect;
use crate::page::Page;
use crate::sync::Park;
use crate::types::{Caller, Line, PAGEBLOCK_PAGES, Pfn, PfnRange, PhysAddr};

pub mod i386;
#[cfg(all(target_os = "linux", target_arch = "x86_64", not(loom)))]
pub mod linux;
#[cfg(any(
    all(feature = "i386", target_arch = "x86"),
    all(any(test, feature = "sim"), target_os = "linux", not(loom))
))]
mod row;
#[cfg(all(any(test, feature = "sim"), target_os = "linux", not(loom)))]
pub mod sim;

/// Zones in the order of their addresses; an allocation falls back from a later to an earlier one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum ZoneKind {
    /// Below 16 MiB.
    Dma,
    /// Below 4 GiB (hosted; empty on i386).
    Dma32,
    /// Permanently mapped memory.
    Normal,
    /// Memory without a permanent address (i386 and sim).
    HighMem,
    /// Whole pageblocks for runs that move or are freed whole.
    Movable,
}

/// Number of [`ZoneKind`]s.
pub const NR_ZONES: usize = 5;
/// Most nodes the core keeps apart; a machine folds further ones. Where memory is little what each needs weighs: then
/// there is one.
pub const MAX_NODES: usize = if cfg!(all(feature = "slob", not(any(test, feature = "sim")))) { 1 } else { 4 };
/// Cache ids that have words in the per-CPU rows: 1 to 251. Id 0 is no cache.
pub const MAX_CACHES: usize = 256 - MAX_DENSE;
/// Caches, from id 1 on, that may have a third word ([`Word::Foreign`]).
pub const MAX_DENSE: usize = 4;

/// log2 of the distance in bytes from one CPU's copy of per-CPU data to the next one's: each CPU has pages of its own.
pub const CPU_SHIFT: u32 = 16;

/// Most permanent mappings of frames without an address ([`Mapping::kmap_slots`]).
pub const LAST_PKMAP: usize = 1024;
/// Most temporary ones of one CPU at a time ([`Mapping::kmap_atomic_slots`]).
pub const KM_TYPE_NR: usize = 16;

/// Slots of a sheaf: one is the sentinel, so it holds at most 511 objects, or 255 where addresses are 32 bits.
///
/// Measured (2 CPUs, rounds of allocators in one process, time in relation to that with 256 slots): with 512 slots 1000
/// blocks in turn take 0.93, trees 0.95 to 1.00, 10 000 and 100 000 live blocks 0.97 to 1.00, and resident is the same,
/// on average of live sets of 15 000 to 300 000 and in real programs. With 1024 the blocks in turn take 0.89, the
/// others no less. Rejected: a mark behind the last slot, for which a push looks in place of testing the address, so
/// that sheaves may be of any size and lie anywhere (blocks in turn 1.01 to 1.02); sheaves of large capacity that all
/// begin at a page's start (pairs of sizes that change 1.25, as stores to one and loads from another share the lower
/// bits of the address).
pub const SHEAF_SLOTS: usize = if cfg!(target_pointer_width = "32") { 256 } else { 512 };
/// Bytes and alignment of a sheaf.
pub const SHEAF_BYTES: usize = SHEAF_SLOTS * size_of::<usize>();
/// The same of a sheaf of page runs, which are 63 at most. Eight share a page, and they end at different lines of the
/// cache: `large` takes 0.96 of the time that it does with sheaves of [`SHEAF_BYTES`], and 35 page faults less.
pub const RUN_SHEAF_BYTES: usize = 64 * size_of::<usize>();

/// A word of a per-CPU row. Each holds the address of the top slot of a sheaf (see [`crate::slab::sheaf`]), or
/// [`no_sheaf`] where there is no sheaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Word {
    /// The sheaf that allocations pop and frees push.
    Main(u8),
    /// The sheaf kept in reserve.
    Spare(u8),
    /// The sheaf of objects that were freed on this CPU but share cache lines with another one's. Of the first four
    /// caches.
    Foreign(u8),
}

impl Word {
    /// Index into a row.
    #[inline]
    pub const fn index(self) -> usize {
        match self {
            Word::Main(id) => id as usize,
            Word::Foreign(id) => MAX_CACHES - 1 + id as usize,
            Word::Spare(id) => ROW_WORDS / 2 + id as usize,
        }
    }

    /// What stands for a cache where one is asked for ([`PerCpu::push`]), so that this sheaf is used. Not for a spare
    /// one.
    #[inline]
    pub const fn as_cache(self) -> u8 {
        self.index() as u8
    }

    /// Words that a cache has at most.
    pub const OF_CACHE: usize = 3;

    /// All words of cache `id`.
    pub fn all(id: u8) -> impl Iterator<Item = Word> {
        let third = (1..=MAX_DENSE).contains(&id.into()).then_some(Word::Foreign(id));
        [Word::Main(id), Word::Spare(id)].into_iter().chain(third)
    }
}

/// Bits of a tag of the page-class map ([`Frames::class`]) that are the cache of the page's objects.
pub const TAG_CACHE_BITS: u32 = 6;
/// CPUs that objects sharing a cache line are told apart by; further ones are counted as these again. (On machines of
/// 32 bits they are not.)
pub const OWNERS: usize = if cfg!(target_pointer_width = "32") { 1 } else { 1 << (u8::BITS - TAG_CACHE_BITS) };

/// The owner that `cpu` is, below [`OWNERS`].
#[inline(always)]
#[allow(clippy::modulo_one)] // Where there is one.
pub const fn owner(cpu: usize) -> usize {
    cpu % OWNERS
}

/// By [`owner`], and by tag: what the place of an object has to be below ([`PerCpu::push_tagged`]).
pub type Limit = fn(owner: usize, tag: u8) -> u32;

/// Words of a row.
pub const ROW_WORDS: usize = 2 * (MAX_CACHES + MAX_DENSE);

/// A sheaf of zeroes. The address of its last slot stands for "no sheaf": the slot reads 0, which is empty, and the
/// slot after it crosses the alignment, which is full, so that every exception falls into the slow path without a
/// branch.
#[cfg_attr(target_pointer_width = "32", repr(C, align(1024)))]
#[cfg_attr(not(target_pointer_width = "32"), repr(C, align(4096)))]
pub struct ZeroSheaf([usize; SHEAF_SLOTS]);

const _: () = assert!(align_of::<ZeroSheaf>() == SHEAF_BYTES);

/// The one zero sheaf. Never written.
pub static ZERO_SHEAF: ZeroSheaf = ZeroSheaf([0; SHEAF_SLOTS]);

/// The word that stands for "no sheaf".
#[inline]
pub fn no_sheaf() -> usize {
    (&raw const ZERO_SHEAF).addr() + SHEAF_BYTES - size_of::<usize>()
}

/// Per-CPU rows of sheaves. Each operation is one critical section: it happens wholly on one CPU, or not at all.
///
/// # Safety
/// An implementer guarantees: 1. no two threads are in a section on the same row at once, signal and interrupt handlers
/// included (a section they interrupt is restarted or was finished first); 2. a row taken by [`PerCpu::drain_row`]
/// is touched by nobody else until it is given back; 3. a row's words start out as [`no_sheaf`].
pub unsafe trait PerCpu {
    /// CPUs that can ever run (rows that can exist), at least 1. *Syscall* at first.
    fn nr_cpus(&self) -> usize;

    /// As many as are known of by now, to share something among: never more.
    fn known_cpus(&self) -> usize {
        self.nr_cpus()
    }

    /// Rows are those of CPUs below this.
    fn rows_end(&self) -> usize {
        self.nr_cpus()
    }

    /// The CPU the caller is on at this moment: a hint, outdated at once.
    fn cpu(&self) -> usize;

    /// The same where a wrong number does no harm, for next to nothing. A machine on which it does not matter which
    /// CPUs' objects share a cache line says 0.
    #[inline(always)]
    fn cpu_guess(&self) -> usize {
        0
    }

    /// The memory node of that CPU, below [`MAX_NODES`].
    fn node(&self) -> usize;

    /// Memory nodes in use, 1 to [`MAX_NODES`].
    fn nr_nodes(&self) -> usize;

    /// Pops the top object of the current CPU's main sheaf of `cache`; null where it is empty, where there is none, and
    /// where the section was disturbed: one attempt, so that it is short where it is inlined.
    ///
    /// # Safety
    /// All sheaves in rows are valid: sized and aligned [`SHEAF_BYTES`], those of page runs [`RUN_SHEAF_BYTES`], a 0
    /// sentinel below the objects.
    unsafe fn pop(&self, cache: u8) -> *mut u8;

    /// [`PerCpu::pop`] of a page run: the one below is not fetched ahead, which would wait for the translation of its
    /// address.
    ///
    /// # Safety
    /// As for [`PerCpu::pop`].
    #[inline(always)]
    unsafe fn pop_run(&self, cache: u8) -> *mut u8 {
        // SAFETY: the caller's.
        unsafe { self.pop(cache) }
    }

    /// Pushes `object` on the current CPU's main sheaf of `cache`; false where it is full or there is none.
    ///
    /// # Safety
    /// As for [`PerCpu::pop`]; `object` is the caller's to give, from `cache`, which is none of page runs.
    unsafe fn push(&self, cache: u8, object: *mut u8) -> bool;

    /// [`PerCpu::push`] of a page run.
    ///
    /// # Safety
    /// As for [`PerCpu::push`], of a cache of page runs.
    unsafe fn push_run(&self, cache: u8, run: *mut u8) -> bool;

    /// [`PerCpu::pop`] that leaves the object, and answers null, where its first word is not `key`. Where there is one
    /// thread only, a machine may compare that of the object below instead, if there is one.
    ///
    /// # Safety
    /// As for [`PerCpu::pop`].
    unsafe fn pop_marked(&self, cache: u8, key: usize) -> *mut u8;

    /// [`PerCpu::push`] that, if it happens, writes `key` to the object's first word before. False also where `object`
    /// lies on top already: it is freed twice, and the caller should look more closely. One attempt, as for a pop.
    ///
    /// # Safety
    /// As for [`PerCpu::push`].
    unsafe fn push_marked(&self, cache: u8, object: *mut u8, key: usize) -> bool;

    /// [`PerCpu::push_marked`] for the cache in `tag`; false also where `place` is not below what `limit` says of this
    /// CPU and the tag.
    ///
    /// # Safety
    /// As for [`PerCpu::push`] where the place is below; else `object` need not be one, but its first word can be read
    /// if it is aligned.
    #[inline(always)]
    unsafe fn push_tagged(&self, tag: u8, place: u32, object: *mut u8, key: usize, limit: Limit) -> bool {
        let cache = tag & ((1 << TAG_CACHE_BITS) - 1);
        // SAFETY: the caller's condition.
        place < limit(owner(self.cpu_guess()), tag) && unsafe { self.push_marked(cache, object, key) }
    }

    /// Says what the limit of every [`PerCpu::push_tagged`] will be, for machines that keep those of a CPU in its row.
    /// Before rows are used.
    fn set_limit(&self, _limit: Limit) {}

    /// [`PerCpu::pop`] for slow paths: tries again when disturbed, as often as is sensible.
    ///
    /// # Safety
    /// As for [`PerCpu::pop`].
    unsafe fn pop_again(&self, cache: u8) -> *mut u8 {
        // SAFETY: the caller's condition.
        unsafe { self.pop(cache) }
    }

    /// [`PerCpu::push`] for slow paths.
    ///
    /// # Safety
    /// As for [`PerCpu::push`].
    unsafe fn push_again(&self, cache: u8, object: *mut u8) -> bool {
        // SAFETY: the caller's condition.
        unsafe { self.push(cache, object) }
    }

    /// [`PerCpu::push_run`] for slow paths.
    ///
    /// # Safety
    /// As for [`PerCpu::push_run`].
    unsafe fn push_run_again(&self, cache: u8, run: *mut u8) -> bool {
        // SAFETY: the caller's condition.
        unsafe { self.push_run(cache, run) }
    }

    /// Whether the calling thread can use rows without entering the system for it first.
    fn is_attached(&self) -> bool {
        true
    }

    /// Whether there are several threads by now, which [`PerCpu::notice_threads`] wants to know: for next to nothing,
    /// where a new one's memory may be asked for.
    #[inline(always)]
    fn sees_threads(&self) -> bool {
        false
    }

    /// A chance to see that there are several threads by now, for [`PerCpu::pop_marked`] and who looks after forks.
    /// *Syscall.*
    #[inline]
    fn notice_threads(&self) {}

    /// Whether [`PerCpu::pop_marked`] compares the object below the one it pops. Who puts an object on top, or brings
    /// one there, then has to see to its mark.
    #[inline]
    fn looks_below(&self) -> bool {
        false
    }

    /// Reads `word` of the current CPU, making its row first if it has none; `None` where rows cannot be used here and
    /// now (no memory for the row, a section that is aborted again and again): the caller goes past the sheaves.
    fn read(&self, word: Word) -> Option<usize>;

    /// If `word` of the current CPU is `old`, makes it `new` and returns true. The caller then owns the sheaf `old` and
    /// has given up `new`.
    ///
    /// # Safety
    /// `old` came from [`PerCpu::read`]; `new` is [`no_sheaf`] or a valid sheaf of the word's cache that the caller
    /// owns.
    unsafe fn replace(&self, word: Word, old: usize, new: usize) -> bool;

    /// Takes CPU `cpu`'s row from it (its CPU meanwhile sees none), lets `f` at the words, and gives it back; where the
    /// CPU has no row there is nothing to do. False where the row is not to be had. *Syscall.*
    fn drain_row(&self, cpu: usize, f: &mut dyn FnMut(&mut [usize; ROW_WORDS])) -> bool;
}

/// Frames and their descriptors.
///
/// # Safety
/// An implementer guarantees: 1. [`Frames::page`] of a frame that [`Frames::grow`] returned (or the machine gave the
/// zones at start) is valid for ever, and was zero at first; 2. the memory at [`Frames::virt`] of such a frame is
/// readable and writable and nobody else's; 3. `virt` and `pfn` are inverse.
pub unsafe trait Frames {
    /// Brings at least `pages` more frames of `zone` on `node` online, adjacent whole pageblocks (aligned to the
    /// largest order where the machine is under no limit), reading zero; `None` where there are none. *Syscall.*
    fn grow(&self, node: usize, zone: ZoneKind, pages: u32) -> Option<PfnRange>;

    /// The descriptor of an online frame. Also of an offline one in the same largest buddy block as an online one, as
    /// in the kernel: it reads [`Kind::Offline`](crate::page::Kind::Offline), so that a buddy can be looked at before
    /// it is known.
    fn page(&self, pfn: Pfn) -> &Page;

    /// The byte of the page-class map, for what `free` may push without further look-up: the tag of a slab page, or of
    /// the first page of a block in a run ([`crate::slab`]); else 0.
    fn class(&self, pfn: Pfn) -> &AtomicU8;

    /// The same byte for the frame that holds `address`; 0 where the page-class map does not reach.
    fn class_at(&self, address: *const u8) -> u8;

    /// [`Frames::class_at`] as `free`'s first step, one subtraction, one comparison, one load; `None` where the map
    /// does not reach, so that only those go a way of their own who come from there.
    #[inline(always)]
    fn mapped_class_at(&self, address: *const u8) -> Option<u8> {
        Some(self.class_at(address))
    }

    /// [`Frames::mapped_class_at`] and the frame, for those that go on with it; the frame is any where no class is
    /// mapped.
    #[inline(always)]
    fn mapped_page_at(&self, address: *const u8) -> Option<(Pfn, u8)> {
        // First: only then is the frame known.
        let class = self.mapped_class_at(address)?;
        Some((self.known_pfn(address), class))
    }

    /// The frame that holds `address`, of which it is known that [`Frames::mapped_class_at`] reaches there.
    #[inline(always)]
    fn known_pfn(&self, address: *const u8) -> Pfn {
        self.pfn(address).unwrap_or(Pfn(0))
    }

    /// Address of the frame's first byte; null for a frame that has no permanent address (HIGHMEM).
    fn virt(&self, pfn: Pfn) -> *mut u8;

    /// Fetches the cache line at `address` for writing. A hint: nothing comes of an address that cannot be written to.
    #[inline(always)]
    fn prefetch(&self, _address: usize) {}

    /// The frame that holds `address`; `None` where no online frame of the machine does.
    fn pfn(&self, address: *const u8) -> Option<Pfn>;

    /// The frame's physical address. Hosted there is none to be known, and zones are limits on addresses: it is the
    /// address.
    fn phys(&self, pfn: Pfn) -> u64 {
        PhysAddr::of(pfn).0
    }

    /// Shows what else lies at physical addresses, by name, for the report `iomem`: regions that hold frames, and the
    /// allocator's own tables.
    fn regions(&self, _each: &mut dyn FnMut(&'static str, core::ops::Range<u64>)) {}

    /// Gives the contents of `range` back to the system; it reads zero afterwards. False where that failed and the
    /// contents may remain. *Syscall.*
    fn discard(&self, range: PfnRange) -> bool;

    /// Gives up the addresses of `range`, which is nobody's, as well: it must not be touched until [`Frames::online`].
    /// Asked for only where [`Frames::is_rationed`] says so. False where it stays as it is. *Syscall.*
    fn offline(&self, _range: PfnRange) -> bool {
        false
    }

    /// Makes what went offline, or a part of it, usable again, reading zero. False where the system refuses, or others
    /// sit there by now. *Syscall.*
    fn online(&self, _range: PfnRange, _node: usize) -> bool {
        false
    }

    /// Whether the system counts addresses, and its limit would allow `bytes` if nothing else were mapped. What the
    /// machine itself has to spare goes back then. *Syscall.*
    fn is_rationed(&self, _bytes: usize) -> bool {
        false
    }

    /// Bytes of addresses that the system was seen to let the process write to; `u64::MAX` where it does not count
    /// them. No system call.
    fn address_limit(&self) -> u64 {
        u64::MAX
    }

    /// Makes sure that `range` is backed, so that touching it takes no page fault. Best effort. *Syscall.*
    fn populate(&self, range: PfnRange);

    /// Says whether a pageblock, none of whose pages is backed, is to be backed as one huge page. Cheap where that was
    /// said of it before. *Syscall.*
    fn advise_frames(&self, _block: PfnRange, _huge: bool) {}

    /// Whether the pageblock around `pfn` is to be backed as one huge page: the first touch backs all of it then.
    fn is_huge(&self, _pfn: Pfn) -> bool {
        false
    }

    /// Makes one huge page of a pageblock, most of whose pages are backed and in use. Best effort. *Syscall.*
    fn gather_frames(&self, _block: PfnRange) {}

    /// Which frames of the pageblock at `block` are backed, a bit each; `None` where the system does not say.
    /// *Syscall.*
    fn backed(&self, _block: Pfn) -> Option<[u64; PAGEBLOCK_PAGES as usize / 64]> {
        Some([u64::MAX; PAGEBLOCK_PAGES as usize / 64])
    }

    /// Whether [`Frames::discard`] gives anything back (a host that lends memory) or frames are simply owned.
    const LENT: bool;

    /// Pages this instance may use at most (option); `u64::MAX` for no limit. What exceeds it is refused.
    fn budget(&self) -> u64;

    /// Pages beyond which the system is short of memory for this instance (limits of a control group or a resource);
    /// `u64::MAX` for none. Nothing is refused for it: pages that are asked for and never touched cost nothing. But
    /// what is free goes back before more is taken.
    fn pressure(&self) -> u64 {
        u64::MAX
    }

    /// Pages that there are for this instance at most, others' use aside; `u64::MAX` where that is not known.
    fn memory(&self) -> u64 {
        u64::MAX
    }
}

/// What a slot of the vmalloc area holds; the page table's software bits keep it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backing {
    /// Nothing was moved there: it reads zero and is backed on first touch.
    Fresh,
    /// A frame with old contents.
    Dirty,
}

/// A mapping of device memory.
#[derive(Clone, Debug)]
pub struct DeviceMapping {
    /// Its addresses.
    pub range: core::ops::Range<usize>,
    /// What they are of.
    pub physical: u64,
    /// Who asked for it.
    pub caller: Caller,
}

/// The address range of the vmalloc area and how frames get there.
///
/// Hosted, a frame is the *population* of a 2 MiB slot: mapping one moves its population from the frame's own address
/// (or from another slot) to the slot, after which the frame reads zero where it was. On bare metal and in the
/// simulator frames are frames, and the core's page table is the hardware's.
///
/// # Safety
/// An implementer guarantees that addresses in [`Mapping::window`] hold nothing but what these calls put there, and
/// that a slot mapped successfully is readable and writable until it is unmapped.
pub unsafe trait Mapping {
    /// Address range for vmalloc areas, aligned to [`Mapping::SLOT_SHIFT`].
    fn window(&self) -> core::ops::Range<usize>;

    /// log2 of the unit of mapping: 21 hosted (a pageblock), the page elsewhere.
    const SLOT_SHIFT: u32;

    /// Whether slots are backed by frames of the buddy system (sim, bare metal), or by the host on first touch with
    /// frames merely *donating* their population (hosted).
    const OWNS_FRAMES: bool;

    /// Makes `[start, start + len)` of the window usable and reading zero, backed on first touch. Both are multiples of
    /// 64 KiB: a slot may be opened from its beginning in steps (moving takes whole slots). Only where `!OWNS_FRAMES`.
    /// *Syscall.*
    fn map_fresh(&self, start: usize, len: usize) -> bool;

    /// Maps `frame` (one slot's worth of frames) at slot `at`. With `OWNS_FRAMES` the page table entry; hosted moves
    /// the population of the pageblock at `frame` to `at`, which is mapped fresh and unpopulated. False where it could
    /// not: nothing changed. *Syscall* hosted.
    fn map_frame(&self, at: usize, frame: Pfn) -> bool;

    /// [`Mapping::map_frame`] of `frames[i]` at slot `i` from `at`, for all `i`; the slots that were mapped, from the
    /// first on. What comes after them is as it was. Hosted this costs a few system calls for all of them together.
    /// *Syscall* hosted.
    fn map_frames(&self, at: usize, frames: &[Pfn]) -> usize {
        let slot = |nth: usize| at + (nth << Self::SLOT_SHIFT);
        frames.iter().enumerate().take_while(|&(nth, &frame)| self.map_frame(slot(nth), frame)).count()
    }

    /// Moves what is mapped at `[from, from + len)` to `[to, to + len)`; both are slot aligned, disjoint, in the
    /// window, `to` is mapped fresh (hosted) or unmapped. Afterwards `from` is as `map_fresh` leaves it (hosted) or
    /// unmapped. False where it could not: nothing is lost, but a prefix of whole slots may have moved (its length in
    /// bytes is returned). *Syscall.*
    fn move_mapping(&self, from: usize, to: usize, len: usize) -> Result<(), usize>;

    /// [`Mapping::move_mapping`] of all or nothing that asks for nothing, not even for a moment, where the system
    /// counts what is mapped: `to` is not mapped, and `from` is not afterwards. The error is that `from` is as it was.
    /// Either says whether the addresses where nothing is mapped then are still the machine's, or others sit there by
    /// now. *Syscall.*
    fn move_addresses(&self, _from: usize, _to: usize, _len: usize) -> Result<bool, bool> {
        Err(true)
    }

    /// Whether somebody else's mapping lies in `[start, start + len)`, which none of these calls has open. *Syscall.*
    fn is_taken(&self, _start: usize, _len: usize) -> bool {
        false
    }

    /// The `nth` mapping of device memory that lies outside of the window; for reports.
    fn device_mapping(&self, _nth: usize) -> Option<DeviceMapping> {
        None
    }

    /// Drops the contents of `[start, start + len)`, which stays usable and reads zero. False where it could not.
    /// *Syscall.*
    fn clean(&self, start: usize, len: usize) -> bool;

    /// Makes `[start, start + len)` unusable and gives back all it held. *Syscall.*
    fn unmap(&self, start: usize, len: usize);

    /// [`Mapping::unmap`] of several ranges. Where CPUs have to forget translations, once for all of them. *Syscall.*
    fn unmap_all(&self, ranges: impl Iterator<Item = core::ops::Range<usize>>) {
        ranges.for_each(|range| self.unmap(range.start, range.len()));
    }

    /// Says whether `[start, start + len)` is to be backed by huge pages from now on. A mapped range is not at first,
    /// and advice ends with its mapping. Only where `!OWNS_FRAMES`. *Syscall.*
    fn advise(&self, _start: usize, _len: usize, _huge: bool) {}

    /// Addresses, a page each, for permanent mappings of frames that have none (HIGHMEM): at most [`LAST_PKMAP`] pages.
    /// None where every frame has its address.
    fn kmap_slots(&self) -> core::ops::Range<usize> {
        0..0
    }

    /// Addresses for temporary mappings that CPU `cpu` makes: at most [`KM_TYPE_NR`] pages.
    fn kmap_atomic_slots(&self, _cpu: usize) -> core::ops::Range<usize> {
        0..0
    }

    /// Lets the slot at `at` show `frame`, or nothing. Other CPUs may see what it showed before until
    /// [`Mapping::flush_slots`]. Never waits, so that interrupt handlers may call it.
    fn set_slot(&self, _at: usize, _frame: Option<Pfn>) {}

    /// Makes every CPU see what all slots show now (`flush_tlb_all`).
    fn flush_slots(&self) {}

    /// Makes caches that go by virtual addresses forget a range of the window or of the slots, which is mapped: it was
    /// just, or will be no more (`flush_cache_vmap`, `flush_cache_vunmap`, `flush_cache_kmaps`). Nothing on the x86,
    /// whose caches go by physical addresses.
    fn flush_cache(&self, _range: core::ops::Range<usize>) {}

    /// Makes what was written to a frame by one address visible by all its others (`flush_dcache_page`). Nothing on the
    /// x86.
    fn flush_dcache_page(&self, _frame: Pfn) {}

    /// The pages of the slot at `at` that are backed, and how many of them lead up to the first that is not. The slot
    /// may be anybody's, and in any state: then the answer means nothing. Only where `!OWNS_FRAMES`. *Syscall.*
    fn backed_pages(&self, _at: usize) -> (usize, usize) {
        (0, 0)
    }
}

/// A thread's way into the slow paths.
///
/// The kernel turns interrupts off in such places. A system call for that on each entry costs 200 ns hosted, so instead
/// the entry is counted per thread, and a handler that comes in between sees that it is nested and only tries locks.
pub trait Context {
    /// Counts the caller in; the depth before (0 = not nested). Every `enter` has its `leave` on the same thread.
    fn enter(&self) -> u32;
    /// Counts the caller out.
    fn leave(&self);
    /// Forbids the calling thread to sleep in an allocation; nests. Hosted nothing stops being preempted by it: it is
    /// what wrong use is told by.
    fn preempt_disable(&self);
    /// Takes one [`Context::preempt_disable`] back.
    fn preempt_enable(&self);
    /// How many of them hold for the calling thread.
    fn preempt_count(&self) -> u32;
    /// Names the calling thread: a multiple of 32, not 0, and the same in the copy of it that a fork makes.
    fn thread(&self) -> usize;
    /// Whether no other thread runs, as far as is known, nor will before the calling one makes one: the caller's fork
    /// finds no lock held by another.
    fn is_alone(&self) -> bool {
        false
    }
    /// Changes in a process that is a copy of another one, however it came about. Cheap.
    fn generation(&self) -> u32 {
        0
    }

    /// Whether this process is a copy of the one that began with the machine. *Syscall.*
    fn is_copy(&self) -> bool {
        self.generation() != 0
    }
}

/// Telling the user.
pub trait Report {
    /// Writes one line (without the newline) to the error output. Keeps `errno`. *Syscall.*
    fn line(&self, text: &str);
    /// Whether a defect ends the program after its report.
    fn aborts(&self) -> bool;
    /// Ends the program after a defect was reported.
    fn abort(&self) -> !;
    /// Writes where in the program `address` lies, as the kernel's `%pS` does: `function+0x1d/0x30 [library]`, or the
    /// bare number where that is not known. The caller holds no lock. *Syscall.*
    fn symbol(&self, address: usize, out: &mut dyn Write) -> fmt::Result {
        write!(out, "{address:#x}")
    }
    /// Whether it hears of every step of the buddy systems ([`Report::trace`]). Where not, which is everywhere but in
    /// tests, they cost nothing.
    const TRACES: bool = false;
    /// Takes note of a step of a buddy system, whose lock is held.
    fn trace(&self, _step: core::fmt::Arguments<'_>) {}
}

/// Reports a misuse in one line and ends the program, unless it was asked to go on. The caller holds no lock.
#[cold]
pub fn misuse<R: Report>(m: &R, defect: Defect, address: usize, cache: &str) {
    let mut line = Line::new();
    // A line that is cut off at the end is still a report.
    let _ = write!(line, "slabwright: {defect}: {address:#x} ({cache})");
    m.line(line.as_str());
    if m.aborts() {
        m.abort();
    }
}

/// What whoever puts the machine to use wants at the start of an instance: implemented where that instance is.
/// (Functions kept in the instance itself would need relocation, and with that all of its tables would lie in the
/// library's file instead of in `.bss`.)
pub trait Owner {
    /// The options to start with; `None` for those that were set. Called once, before [`Machine::init`].
    fn options(&self) -> Option<Options> {
        None
    }

    /// All is up. May allocate.
    fn started(&self) {}
}

/// All of it.
pub trait Machine: PerCpu + Frames + Mapping + Context + Report + Park + Owner + Sync + Sized + 'static {
    /// Milliseconds of a clock that never goes back.
    fn now_ms(&self) -> u64;

    /// System calls made so far; 0 on a machine that has none.
    fn system_calls(&self) -> u64 {
        0
    }

    /// Makes sure that neither the machine's tables nor the allocator's code take a page fault when used. Best effort.
    /// *Syscall.*
    fn populate_own(&self) {}

    /// Random bits fixed for the life of the process (the key of freed objects).
    fn random(&self) -> u64;

    /// Makes the copies of per-CPU data of one CPU, the one the caller is on, the calling thread's until
    /// [`Machine::put_cpu`]; its number. Nests; no allocation may sleep in between. Hosted this waits for a thread that
    /// was preempted in between.
    fn get_cpu(&self) -> usize {
        self.preempt_disable();
        self.cpu()
    }

    /// Takes one [`Machine::get_cpu`] back.
    fn put_cpu(&self) {
        self.preempt_enable();
    }

    /// Adds `value` to this CPU's copy of the integer of `size` bytes (1, 2, 4 or 8) at `word`, wrapping: no addition
    /// is lost, whether the thread is moved or interrupted meanwhile.
    ///
    /// # Safety
    /// `word` is CPU 0's copy of an aligned integer of which CPU `n` has its own, `n <<` [`CPU_SHIFT`] bytes further
    /// on.
    unsafe fn this_cpu_add(&self, word: *mut u8, size: usize, value: u64) {
        let copy = word.wrapping_add(self.get_cpu() << CPU_SHIFT);
        // SAFETY: the caller's; the CPU's copies are this thread's until `put_cpu`.
        unsafe { add_to(copy, size, value) };
        self.put_cpu();
    }

    /// Prepares the machine: reserves addresses, detects features. Called once, first, by one thread. False where the
    /// system gives nothing at all: every allocation will fail.
    fn init(&self) -> bool;
}

/// Adds `value` to the integer of `size` bytes (1, 2, 4 or 8) at `copy`, wrapping.
///
/// # Safety
/// The integer is there, aligned, and the caller's for the moment.
unsafe fn add_to(copy: *mut u8, size: usize, value: u64) {
    // SAFETY: the caller's condition.
    unsafe {
        match size {
            1 => *copy = (*copy).wrapping_add(value as u8),
            2 => *copy.cast::<u16>() = (*copy.cast::<u16>()).wrapping_add(value as u16),
            4 => *copy.cast::<u32>() = (*copy.cast::<u32>()).wrapping_add(value as u32),
            _ => *copy.cast::<u64>() = (*copy.cast::<u64>()).wrapping_add(value),
        }
    }
}

/// A null-free address helper for implementers.
#[inline]
pub fn non_null(address: usize) -> Option<NonNull<u8>> {
    NonNull::new(core::ptr::with_exposed_provenance_mut(address))
}
