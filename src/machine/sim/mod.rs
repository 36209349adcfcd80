//! A simulated machine for tests: any number of CPUs and nodes, little memory, failures on demand.
//!
//! Many live in one test run; a [`Simulated`] is a handle to one and clones cheaply. Three flavours differ in the
//! constants of the seam: [`Sim`] (frames are mapped one by one and lent by a host), [`SimBare`] (as bare metal: frames
//! are owned) and [`SimHosted`] (as a process: frames donate their population to 2 MiB slots).
//!
//! ```
//! use slabwright::machine::sim::{Call, Sim};
//! use slabwright::machine::{Frames, ZoneKind};
//! let sim = Sim::builder().cpus(2).ram(0, ZoneKind::Normal, 3, 1021);
//! let sim = sim.grow(0, ZoneKind::Normal, 4096, 8192, 1024).build();
//! sim.fail_at(2);
//! let first = sim.grow(0, ZoneKind::Normal, 1).unwrap();
//! assert_eq!((first.start.0, first.pages), (4096, 1024));
//! assert!(sim.grow(0, ZoneKind::Normal, 1).is_none());
//! assert_eq!(sim.calls(Call::Grow), 2);
//! ```
//!
//! With page tables ([`Builder::tables`]) it has a processor's view, too: 4 GiB of simulated addresses, a TLB for each
//! CPU, and programs ([`Task`]) whose loads and stores fault with the i386's error codes.
//!
//! Faithful to the seam, and strict: descriptors of offline frames panic (but for holes beside online frames in the
//! same largest block, which read [`Kind::Offline`](crate::page::Kind::Offline)), offline memory faults, mapping what
//! is mapped panics. Not modelled: caches, reordering of memory accesses (loom does that), and a *read* of an unbacked
//! page backs it here, where a host would show its zero page.
//!
//! Needs `std`, Linux and 4 KiB host pages.

mod builder;
mod control;
mod memory;
mod mmu;
mod rows;

use core::marker::PhantomData;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use core::time::Duration;
use std::collections::BTreeSet;
use std::string::String;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::vec::Vec;

pub use builder::Builder;
pub use control::{Call, Hostile};
pub use mmu::{AREAS, Faults, Flushes, Interrupted, Mode, Pager, Space, Task};

use self::builder::Growth;
use self::control::Control;
use self::memory::Memory;
use self::mmu::Mmu;
use self::rows::Row;
use super::i386::layout;
use super::{Context, Frames, Machine, Mapping, Owner, PerCpu, Report, ZoneKind};
use crate::page::Page;
use crate::sync::Park;
use crate::sync::atomic::AtomicU32;
use crate::types::{MAX_ORDER, PAGE_SHIFT, PAGE_SIZE, PAGEBLOCK_ORDER, PAGEBLOCK_PAGES, Pfn, PfnRange};

/// The constants of the seam as a type.
pub trait Flavour: Send + Sync + 'static {
    /// [`Mapping::SLOT_SHIFT`].
    const SLOT_SHIFT: u32;
    /// [`Mapping::OWNS_FRAMES`].
    const OWNS_FRAMES: bool;
    /// [`Frames::LENT`].
    const LENT: bool;
}

/// Frames are mapped one by one, and a host lends them.
pub struct Lent;
/// Frames are mapped one by one and owned, as on bare metal.
pub struct Bare;
/// Frames donate their population to 2 MiB slots, as in a process.
pub struct Hosted;

impl Flavour for Lent {
    const SLOT_SHIFT: u32 = PAGE_SHIFT;
    const OWNS_FRAMES: bool = true;
    const LENT: bool = true;
}

impl Flavour for Bare {
    const SLOT_SHIFT: u32 = PAGE_SHIFT;
    const OWNS_FRAMES: bool = true;
    const LENT: bool = false;
}

impl Flavour for Hosted {
    const SLOT_SHIFT: u32 = PAGE_SHIFT + PAGEBLOCK_ORDER as u32;
    const OWNS_FRAMES: bool = false;
    const LENT: bool = true;
}

/// The simulator in its most general flavour.
pub type Sim = Simulated<Lent>;
/// As bare metal: nothing goes back to a host.
pub type SimBare = Simulated<Bare>;
/// As a process.
pub type SimHosted = Simulated<Hosted>;

/// A simulated machine; clones are handles to the same one.
pub struct Simulated<F: Flavour = Lent> {
    state: Arc<State>,
    flavour: PhantomData<F>,
}

impl<F: Flavour> Clone for Simulated<F> {
    fn clone(&self) -> Simulated<F> {
        Simulated { state: self.state.clone(), flavour: PhantomData }
    }
}

/// What a slot of the window shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Slot {
    Unmapped,
    Fresh,
    Frame(Pfn),
}

struct State {
    /// Tells the instances apart in what each thread keeps.
    id: u64,
    memory: Memory,
    /// The processor's view, where the machine has page tables.
    mmu: Option<Mutex<Mmu>>,
    /// Slots of permanent mappings.
    kmap_slots: usize,
    rows: Vec<Mutex<Row>>,
    /// Whether somebody uses a CPU's copies of per-CPU data.
    local: Vec<AtomicBool>,
    nodes: usize,
    ram: Vec<(usize, ZoneKind, PfnRange)>,
    growth: Mutex<Vec<Growth>>,
    grown: Mutex<Vec<PfnRange>>,
    slots: Mutex<Vec<Slot>>,
    /// Slots of the window for which huge pages were asked.
    advised: Mutex<Vec<bool>>,
    /// Pageblocks for which huge pages were asked, by their first frames.
    huge: Mutex<BTreeSet<u32>>,
    /// Those that became huge pages later, in use.
    gathered: Mutex<BTreeSet<u32>>,
    budget: u64,
    pressure: u64,
    address_limit: u64,
    now: AtomicU64,
    seed: u64,
    control: Control,
    reports: Mutex<Vec<String>>,
    /// Steps of the buddy systems, where they are wanted.
    steps: Mutex<Vec<String>>,
    traced: AtomicBool,
    aborts: AtomicBool,
    looks_below: AtomicBool,
    aborted: AtomicBool,
    asleep: Mutex<()>,
    woken: Condvar,
}

/// Locks also after a panic elsewhere: the tests expect panics.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl<F: Flavour> Simulated<F> {
    /// A machine of 2 CPUs without memory at start, whose NORMAL zone may grow by 64 MiB, 4 MiB at a time.
    pub fn new() -> Simulated<F> {
        Simulated::builder().grow(0, ZoneKind::Normal, 1 << 14, 1 << 14, 1 << 10).build()
    }

    /// The memory present at start: node, zone and frames. Whoever sets up the zones adds it.
    pub fn ram(&self) -> &[(usize, ZoneKind, PfnRange)] {
        &self.state.ram
    }

    /// Whether the frame is online.
    pub fn is_online(&self, pfn: Pfn) -> bool {
        self.state.memory.is_online(pfn)
    }

    /// The online frames, ascending.
    pub fn online(&self) -> Vec<PfnRange> {
        let mut all: Vec<_> = self.state.ram.iter().map(|(_, _, range)| *range).collect();
        all.extend(locked(&self.state.grown).iter());
        all.sort_by_key(|range| range.start);
        all.dedup_by(|next, before| {
            let adjacent = before.end() == next.start;
            before.pages += if adjacent { next.pages } else { 0 };
            adjacent
        });
        all
    }

    /// Whether the frame has memory behind it.
    pub fn is_backed(&self, pfn: Pfn) -> bool {
        self.state.memory.frame_backed(pfn)
    }

    /// Frames that [`Frames::grow`] may still bring online.
    pub fn growable(&self) -> u64 {
        locked(&self.state.growth).iter().map(|g| u64::from(g.end - g.next)).sum()
    }

    /// Pages with memory behind them, frames and (hosted) the window together.
    pub fn backed(&self) -> u64 {
        self.state.memory.backed()
    }

    /// Pages of `range` with memory behind them.
    pub fn backed_in(&self, range: PfnRange) -> u32 {
        range.iter().filter(|pfn| self.state.memory.frame_backed(*pfn)).count() as u32
    }

    /// Pages with memory behind them under `len` bytes at `address` of the window.
    pub fn backed_at(&self, address: usize, len: usize) -> u32 {
        let slots = locked(&self.state.slots);
        (address..address + len)
            .step_by(PAGE_SIZE)
            .filter(|at| match slots[self.slot(*at)] {
                Slot::Unmapped => false,
                Slot::Fresh => self.state.memory.window_backed(*at),
                Slot::Frame(pfn) => self.state.memory.frame_backed(pfn),
            })
            .count() as u32
    }

    /// Whether huge pages were asked for at `address` of the window.
    pub fn is_advised(&self, address: usize) -> bool {
        locked(&self.state.advised)[self.slot(address)]
    }

    /// Pageblocks that became huge pages when they were in use.
    pub fn gathered_blocks(&self) -> usize {
        locked(&self.state.gathered).len()
    }

    /// Pageblocks that are to be huge pages.
    pub fn huge_blocks(&self) -> usize {
        locked(&self.state.huge).len()
    }

    /// The frame mapped at `address` of the window, where slots show frames.
    pub fn mapped(&self, address: usize) -> Option<Pfn> {
        match locked(&self.state.slots)[self.slot(address)] {
            Slot::Frame(pfn) => Some(pfn),
            _ => None,
        }
    }

    /// Slots of the window in use.
    pub fn slots_used(&self) -> usize {
        locked(&self.state.slots).iter().filter(|s| **s != Slot::Unmapped).count()
    }

    /// Sets the clock.
    pub fn set_now(&self, ms: u64) {
        self.state.now.store(ms, Ordering::Relaxed);
    }

    /// Moves the clock on.
    pub fn advance(&self, ms: u64) {
        self.state.now.fetch_add(ms, Ordering::Relaxed);
    }

    /// The lines reported so far.
    pub fn reports(&self) -> Vec<String> {
        locked(&self.state.reports).clone()
    }

    /// Takes the lines reported so far.
    pub fn take_reports(&self) -> Vec<String> {
        core::mem::take(&mut *locked(&self.state.reports))
    }

    /// Runs `body`; the steps of the buddy systems meanwhile.
    pub fn traced(&self, body: impl FnOnce()) -> Vec<String> {
        self.state.traced.store(true, Ordering::Relaxed);
        body();
        self.state.traced.store(false, Ordering::Relaxed);
        core::mem::take(&mut *locked(&self.state.steps))
    }

    /// Whether pops compare the mark of the object below ([`PerCpu::looks_below`]); at first they do not.
    pub fn set_looks_below(&self, below: bool) {
        self.state.looks_below.store(below, Ordering::Relaxed);
    }

    /// Whether defects end the program ([`Report::aborts`]); at first they do.
    pub fn set_aborts(&self, aborts: bool) {
        self.state.aborts.store(aborts, Ordering::Relaxed);
    }

    /// Whether [`Report::abort`] was called.
    pub fn aborted(&self) -> bool {
        self.state.aborted.load(Ordering::Relaxed)
    }

    /// Unmaps a range of the window; CPUs may go on using it until their TLBs are flushed.
    fn clear(&self, start: usize, len: usize) {
        self.call(if F::OWNS_FRAMES { Call::UnmapFrame } else { Call::Unmap });
        // What is mapped of a last slot stands for all of it.
        let range = self.slots(start, len.next_multiple_of(1 << F::SLOT_SHIFT));
        locked(&self.state.slots)[range].fill(Slot::Unmapped);
        if !F::OWNS_FRAMES {
            self.state.memory.punch_window(start, len);
        }
        self.state.memory.unmap_window(start, len);
        if self.has_mmu() {
            self.mmu().unmap(&self.state.memory, start, len);
        }
        self.advise(start, len, false);
    }

    /// Makes every CPU forget what it knew of a range of the window.
    fn flush_window(&self, start: usize, len: usize) {
        if self.has_mmu() {
            let start = self.simulated(core::ptr::without_provenance(start));
            self.flush_tlb_range(start..start + len);
        }
    }

    fn slot(&self, address: usize) -> usize {
        let window = self.state.memory.window();
        assert!(window.contains(&address), "{address:#x} is outside the vmalloc window");
        (address - window.start) >> F::SLOT_SHIFT
    }

    /// The slots of a slot-aligned range of the window.
    fn slots(&self, start: usize, len: usize) -> Range<usize> {
        let size = 1 << F::SLOT_SHIFT;
        assert!(
            start.is_multiple_of(size) && len.is_multiple_of(size) && len > 0,
            "{start:#x}+{len:#x} is not made of slots"
        );
        let first = self.slot(start);
        let last = self.slot(start + len - size);
        first..last + 1
    }
}

impl<F: Flavour> Default for Simulated<F> {
    fn default() -> Simulated<F> {
        Simulated::new()
    }
}

// SAFETY: 1. memmap, page-class map and direct map of a frame live as long as the state, which every handle keeps; they
// are zero at first; 2. a frame's bytes are its page of the memory file alone; 3. `virt` and `pfn` are the same linear
// map.
unsafe impl<F: Flavour> Frames for Simulated<F> {
    fn grow(&self, node: usize, zone: ZoneKind, pages: u32) -> Option<PfnRange> {
        if self.call(Call::Grow) {
            return None;
        }
        let mut growth = locked(&self.state.growth);
        let range = growth.iter_mut().filter(|g| g.node == node && g.zone == zone).find_map(|g| g.take(pages))?;
        self.state.memory.bring_online(range, zone == ZoneKind::HighMem);
        if self.has_mmu() && zone != ZoneKind::HighMem {
            self.mmu().bring_online(&self.state.memory, range);
        }
        locked(&self.state.grown).push(range);
        Some(range)
    }

    fn page(&self, pfn: Pfn) -> &Page {
        self.interrupt(Call::Page);
        self.state.memory.page(pfn).unwrap_or_else(|| panic!("descriptor of offline frame {pfn:?}"))
    }

    fn class(&self, pfn: Pfn) -> &AtomicU8 {
        self.state.memory.class(pfn).unwrap_or_else(|| panic!("class of offline frame {pfn:?}"))
    }

    fn class_at(&self, address: *const u8) -> u8 {
        let class = self.state.memory.pfn(address.addr()).and_then(|pfn| self.state.memory.class(pfn));
        class.map_or(0, |class| class.load(Ordering::Relaxed))
    }

    fn virt(&self, pfn: Pfn) -> *mut u8 {
        self.state.memory.virt(pfn).unwrap_or_else(|| panic!("address of offline frame {pfn:?}"))
    }

    fn pfn(&self, address: *const u8) -> Option<Pfn> {
        self.state.memory.pfn(address.addr())
    }

    fn discard(&self, range: PfnRange) -> bool {
        if self.call(Call::Discard) || !F::LENT {
            return false;
        }
        assert!(range.iter().all(|pfn| self.is_online(pfn)), "discard of offline frames in {range:?}");
        self.state.memory.punch_frames(range);
        true
    }

    fn offline(&self, range: PfnRange) -> bool {
        // What lies there is lost, though it can be touched.
        self.discard(range)
    }

    fn online(&self, _range: PfnRange, _node: usize) -> bool {
        !self.call(Call::Grow)
    }

    fn is_rationed(&self, _bytes: usize) -> bool {
        true
    }

    fn address_limit(&self) -> u64 {
        self.state.address_limit
    }

    fn populate(&self, range: PfnRange) {
        if self.call(Call::Populate) {
            return;
        }
        for pfn in range.iter() {
            let address = self.virt(pfn);
            if !address.is_null() {
                self.state.memory.touch(address.addr());
            }
        }
    }

    fn advise_frames(&self, block: PfnRange, huge: bool) {
        let mut blocks = locked(&self.state.huge);
        if huge {
            blocks.insert(block.start.0);
        } else {
            blocks.remove(&block.start.0);
        }
    }

    fn is_huge(&self, pfn: Pfn) -> bool {
        locked(&self.state.huge).contains(&(pfn.0 & !(PAGEBLOCK_PAGES - 1)))
    }

    fn gather_frames(&self, block: PfnRange) {
        locked(&self.state.gathered).insert(block.start.0);
    }

    fn backed(&self, block: Pfn) -> Option<[u64; PAGEBLOCK_PAGES as usize / 64]> {
        let is_backed = |nth: usize| u64::from(self.state.memory.frame_backed(block.add(nth as u32)));
        Some(core::array::from_fn(|word| (0..64).fold(0, |bits, bit| bits | is_backed(word * 64 + bit) << bit)))
    }

    const LENT: bool = F::LENT;

    fn budget(&self) -> u64 {
        self.state.budget
    }

    fn pressure(&self) -> u64 {
        self.state.pressure
    }

    fn memory(&self) -> u64 {
        self.state.pressure
    }
}

// SAFETY: the window is a reservation of the state's own; a mapped slot shows a page of the memory file until it is
// unmapped.
unsafe impl<F: Flavour> Mapping for Simulated<F> {
    fn window(&self) -> Range<usize> {
        self.state.memory.window()
    }

    const SLOT_SHIFT: u32 = F::SLOT_SHIFT;
    const OWNS_FRAMES: bool = F::OWNS_FRAMES;

    fn map_fresh(&self, start: usize, len: usize) -> bool {
        assert!(!F::OWNS_FRAMES, "map_fresh on a machine whose slots show frames");
        if self.call(Call::MapFresh) {
            return false;
        }
        let unit = (64 << 10).min(1 << F::SLOT_SHIFT);
        assert!(start.is_multiple_of(unit) && len.is_multiple_of(unit) && len > 0, "{start:#x}+{len:#x}");
        let range = self.slot(start)..self.slot(start + len - 1) + 1;
        let mut slots = locked(&self.state.slots);
        if !start.is_multiple_of(1 << F::SLOT_SHIFT) {
            assert_eq!(slots[range.start], Slot::Fresh, "slot {start:#x} is opened from its middle");
        }
        slots[range].fill(Slot::Fresh);
        drop(slots);
        self.state.memory.punch_window(start, len);
        self.state.memory.map_window_own(start, len);
        true
    }

    fn map_frame(&self, at: usize, frame: Pfn) -> bool {
        // Bare metal only writes a page table entry: no system call, yet it may find no table.
        let call = if F::OWNS_FRAMES { Call::MapFrame } else { Call::MovePopulation };
        if self.call(call) {
            return false;
        }
        let size = 1 << F::SLOT_SHIFT;
        let range = self.slots(at, size);
        let mut slots = locked(&self.state.slots);
        let slot = &mut slots[range.start];
        if F::OWNS_FRAMES {
            assert!(self.is_online(frame), "map of offline frame {frame:?}");
            assert_eq!(*slot, Slot::Unmapped, "slot {at:#x} is mapped already");
            if self.has_mmu() && !self.mmu().map(&self.state.memory, at, frame) {
                return false;
            }
            *slot = Slot::Frame(frame);
            self.state.memory.map_window(at, frame, size);
        } else {
            assert_eq!(*slot, Slot::Fresh, "slot {at:#x} is not mapped fresh");
            assert_eq!(frame.0 % PAGEBLOCK_PAGES, 0, "{frame:?} is not the start of a pageblock");
            for i in 0..PAGEBLOCK_PAGES {
                let to = at + ((i as usize) << PAGE_SHIFT);
                assert!(!self.state.memory.window_backed(to), "slot {at:#x} is populated");
                assert!(self.is_online(frame.add(i)), "donation of offline frame {:?}", frame.add(i));
                self.state.memory.move_in(frame.add(i), to);
            }
        }
        true
    }

    fn move_mapping(&self, from: usize, to: usize, len: usize) -> Result<(), usize> {
        let (from_slots, to_slots) = (self.slots(from, len), self.slots(to, len));
        assert!(from_slots.end <= to_slots.start || to_slots.end <= from_slots.start, "move onto itself");
        let size = 1usize << F::SLOT_SHIFT;
        let fails = self.call(Call::MoveMapping);
        let moves = if fails { self.partial(from_slots.len()) } else { from_slots.len() };
        let mut slots = locked(&self.state.slots);
        for i in 0..moves {
            let (source, target) = (from + i * size, to + i * size);
            let (slot, free) = (slots[from_slots.start + i], slots[to_slots.start + i]);
            if F::OWNS_FRAMES {
                let Slot::Frame(pfn) = slot else { panic!("move of unmapped slot {source:#x}") };
                assert_eq!(free, Slot::Unmapped, "slot {target:#x} is mapped already");
                if self.has_mmu() {
                    let mmu = &mut *self.mmu();
                    if !mmu.map(&self.state.memory, target, pfn) {
                        return Err(i * size);
                    }
                    mmu.unmap(&self.state.memory, source, size);
                }
                self.state.memory.unmap_window(source, size);
                self.state.memory.map_window(target, pfn, size);
                slots[from_slots.start + i] = Slot::Unmapped;
                slots[to_slots.start + i] = slot;
            } else {
                assert_eq!((slot, free), (Slot::Fresh, Slot::Fresh), "move between slots that are not mapped");
                for page in (0..size).step_by(PAGE_SIZE) {
                    assert!(!self.state.memory.window_backed(target + page), "slot {target:#x} is populated");
                    self.state.memory.move_within(source + page, target + page);
                }
            }
        }
        self.flush_window(from, len);
        if fails { Err(moves * size) } else { Ok(()) }
    }

    fn clean(&self, start: usize, len: usize) -> bool {
        if self.call(Call::Clean) {
            return false;
        }
        assert!(start.is_multiple_of(PAGE_SIZE) && len.is_multiple_of(PAGE_SIZE) && len > 0);
        let slots = locked(&self.state.slots);
        for at in (start..start + len).step_by(PAGE_SIZE) {
            match slots[self.slot(at)] {
                Slot::Unmapped => panic!("clean of unmapped {at:#x}"),
                Slot::Fresh => self.state.memory.punch_window(at, PAGE_SIZE),
                Slot::Frame(pfn) if F::LENT => self.state.memory.punch_frames(PfnRange::new(pfn, 1)),
                Slot::Frame(_) => self.state.memory.zero(at, PAGE_SIZE),
            }
        }
        true
    }

    fn unmap(&self, start: usize, len: usize) {
        self.clear(start, len);
        self.flush_window(start, len);
    }

    fn unmap_all(&self, ranges: impl Iterator<Item = Range<usize>>) {
        let mut all: Option<Range<usize>> = None;
        for range in ranges {
            self.clear(range.start, range.len());
            let hull = all.unwrap_or(range.clone());
            all = Some(hull.start.min(range.start)..hull.end.max(range.end));
        }
        if let Some(all) = all {
            self.flush_window(all.start, all.len());
        }
    }

    fn advise(&self, start: usize, len: usize, huge: bool) {
        if len > 0 {
            let range = self.slot(start)..self.slot(start + len - 1) + 1;
            locked(&self.state.advised)[range].fill(huge);
        }
    }

    fn kmap_slots(&self) -> Range<usize> {
        let start = self.state.memory.slots().start;
        start..start + (self.state.kmap_slots << PAGE_SHIFT)
    }

    fn kmap_atomic_slots(&self, cpu: usize) -> Range<usize> {
        if cpu >= layout::MAX_CPUS {
            return 0..0;
        }
        let (slots, host) = (layout::kmap_atomic_slots(cpu), self.state.memory.slots().start);
        slots.start - layout::PKMAP_BASE + host..slots.end - layout::PKMAP_BASE + host
    }

    fn set_slot(&self, at: usize, frame: Option<Pfn>) {
        assert!(self.state.memory.slots().contains(&at) && at.is_multiple_of(PAGE_SIZE), "{at:#x} is no slot");
        if self.has_mmu() {
            let cpu = self.current();
            self.mmu().set_slot(&self.state.memory, cpu, at, frame);
        }
        self.state.memory.set_slot(at, frame);
    }

    fn flush_cache(&self, range: Range<usize>) {
        self.call(Call::FlushCache);
        let mapped = if self.state.memory.slots().contains(&range.start) {
            self.state.memory.is_shown(range.start)
        } else {
            locked(&self.state.slots)[self.slot(range.start)] != Slot::Unmapped
        };
        assert!(mapped, "caches that go by virtual addresses are flushed while they have one: {range:x?}");
    }

    fn flush_dcache_page(&self, frame: Pfn) {
        self.call(Call::FlushCache);
        assert!(self.is_online(frame), "{frame:?} is offline");
    }

    fn flush_slots(&self) {
        if self.has_mmu() {
            self.flush_tlb_all();
        }
    }

    fn backed_pages(&self, at: usize) -> (usize, usize) {
        let size = 1 << F::SLOT_SHIFT;
        if locked(&self.state.slots)[self.slot(at)] != Slot::Fresh {
            return (0, 0);
        }
        let backed = || (at..at + size).step_by(PAGE_SIZE).map(|page| self.state.memory.window_backed(page));
        (backed().filter(|page| *page).count(), backed().take_while(|page| *page).count())
    }
}

impl<F: Flavour> Context for Simulated<F> {
    fn enter(&self) -> u32 {
        self.call(Call::Enter);
        self.here(|here| {
            here.depth += 1;
            here.depth - 1
        })
    }

    fn leave(&self) {
        self.here(|here| here.depth = here.depth.checked_sub(1).expect("leave without enter"));
        self.call(Call::Leave);
    }

    fn preempt_disable(&self) {
        self.here(|here| here.preempt += 1);
    }

    fn preempt_enable(&self) {
        self.here(|here| here.preempt = here.preempt.checked_sub(1).expect("preempt_enable without preempt_disable"));
    }

    fn preempt_count(&self) -> u32 {
        self.here(|here| here.preempt)
    }

    fn thread(&self) -> usize {
        #[repr(align(32))]
        struct Name(u8);
        std::thread_local!(static NAME: Name = const { Name(0) });
        NAME.with(|name| (&raw const name.0).addr())
    }
}

impl<F: Flavour> Report for Simulated<F> {
    fn line(&self, text: &str) {
        self.call(Call::Line);
        locked(&self.state.reports).push(text.into());
    }

    fn aborts(&self) -> bool {
        self.state.aborts.load(Ordering::Relaxed)
    }

    const TRACES: bool = true;

    fn trace(&self, step: core::fmt::Arguments<'_>) {
        if self.state.traced.load(Ordering::Relaxed) {
            locked(&self.state.steps).push(std::format!("{step}"));
        }
    }

    fn abort(&self) -> ! {
        self.state.aborted.store(true, Ordering::Relaxed);
        let last = locked(&self.state.reports).last().cloned();
        panic!("abort: {}", last.as_deref().unwrap_or("nothing reported"));
    }
}

impl<F: Flavour> Park for Simulated<F> {
    const SPINS: u32 = 8;

    fn wait(&self, word: &AtomicU32, seen: u32) {
        self.call(Call::Wait);
        let guard = locked(&self.state.asleep);
        // A waker changes the word first and then takes the mutex, so it cannot slip in between.
        if word.load(Ordering::Relaxed) == seen {
            let (_guard, timeout) = self
                .state
                .woken
                .wait_timeout(guard, Duration::from_secs(60))
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            assert!(
                !timeout.timed_out() || word.load(Ordering::Relaxed) != seen,
                "a lock was not given back for a minute: deadlock"
            );
        }
    }

    fn nap(&self, _word: &AtomicU32, _seen: u32) {
        self.call(Call::Wait);
        // Who is waited for may be off the CPU for a while.
        std::thread::sleep(std::time::Duration::from_micros(10));
    }

    fn wake(&self, _word: &AtomicU32) {
        self.call(Call::Wake);
        drop(locked(&self.state.asleep));
        self.state.woken.notify_all();
    }
}

impl<F: Flavour> Owner for Simulated<F> {}

impl<F: Flavour> Machine for Simulated<F> {
    fn now_ms(&self) -> u64 {
        self.state.now.load(Ordering::Relaxed)
    }

    fn random(&self) -> u64 {
        self.state.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
    }

    fn get_cpu(&self) -> usize {
        self.preempt_disable();
        if let Some(cpu) = self.here(|here| {
            here.held += u32::from(here.held > 0);
            (here.held > 0).then_some(here.held_cpu)
        }) {
            return cpu;
        }
        loop {
            // A hostile machine may move the thread at any time.
            let cpu = self.cpu();
            if self.state.local[cpu].compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                self.here(|here| (here.held, here.held_cpu) = (1, cpu));
                return cpu;
            }
            std::thread::yield_now();
        }
    }

    fn put_cpu(&self) {
        self.preempt_enable();
        let free = self.here(|here| {
            here.held -= 1;
            (here.held == 0).then_some(here.held_cpu)
        });
        if let Some(cpu) = free {
            self.state.local[cpu].store(false, Ordering::Release);
        }
    }

    fn init(&self) -> bool {
        !self.call(Call::Init)
    }
}

const _: () = assert!(PAGEBLOCK_ORDER < MAX_ORDER);

#[cfg(test)]
mod tests;
