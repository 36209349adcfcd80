//! How a simulated machine is put together.

use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex};
use std::vec::Vec;
use std::{format, vec};

use super::control::Control;
use super::memory::Memory;
use super::mmu::Mmu;
use super::rows::Row;
use super::{Flavour, Hostile, Simulated, Slot, State};
use crate::machine::i386::layout;
use crate::machine::{MAX_NODES, ZoneKind};
use crate::types::{Order, PAGEBLOCK_PAGES, Pfn, PfnRange};

/// Frames that may come online later.
pub(super) struct Growth {
    pub(super) node: usize,
    pub(super) zone: ZoneKind,
    /// Next frame to hand out.
    pub(super) next: u32,
    pub(super) end: u32,
    /// Least frames handed out at once.
    chunk: u32,
}

impl Growth {
    /// At least `pages` frames, a chunk where there are as many, whole pageblocks from a largest-block boundary.
    pub(super) fn take(&mut self, pages: u32) -> Option<PfnRange> {
        let start = self.next.next_multiple_of(Order::MAX.pages());
        let least = pages.max(1).next_multiple_of(PAGEBLOCK_PAGES);
        let left = self.end.saturating_sub(start) / PAGEBLOCK_PAGES * PAGEBLOCK_PAGES;
        if left < least {
            return None;
        }
        let take = least.max(self.chunk.next_multiple_of(PAGEBLOCK_PAGES)).min(left);
        self.next = start + take;
        Some(PfnRange::new(Pfn(start), take))
    }
}

/// Describes a machine; [`Builder::build`] makes it. Starts with 2 CPUs, 1 node, no memory, a window of 64 MiB, no
/// limits and no hostility.
pub struct Builder<F: Flavour> {
    cpus: usize,
    nodes: usize,
    ram: Vec<(usize, ZoneKind, PfnRange)>,
    growth: Vec<Growth>,
    window: usize,
    tables: Option<PfnRange>,
    kmap_slots: usize,
    budget: u64,
    pressure: u64,
    address_limit: u64,
    seed: u64,
    hostile: Hostile,
    flavour: PhantomData<F>,
}

impl<F: Flavour> Simulated<F> {
    /// Starts the description of a machine.
    pub fn builder() -> Builder<F> {
        Builder {
            cpus: 2,
            nodes: 1,
            ram: Vec::new(),
            growth: Vec::new(),
            window: 64 << 20,
            tables: None,
            kmap_slots: 64,
            budget: u64::MAX,
            pressure: u64::MAX,
            address_limit: u64::MAX,
            seed: 1,
            hostile: Hostile::default(),
            flavour: PhantomData,
        }
    }
}

impl<F: Flavour> Builder<F> {
    /// CPUs, 1 to 64; CPU `n` is on node `n % nodes`.
    pub fn cpus(mut self, cpus: usize) -> Builder<F> {
        assert!((1..=64).contains(&cpus));
        self.cpus = cpus;
        self
    }

    /// Nodes, 1 to [`MAX_NODES`].
    pub fn nodes(mut self, nodes: usize) -> Builder<F> {
        assert!((1..=MAX_NODES).contains(&nodes));
        self.nodes = nodes;
        self
    }

    /// `pages` frames of `zone` from `start` that are there from the beginning. Any start and length; leave holes.
    pub fn ram(mut self, node: usize, zone: ZoneKind, start: u32, pages: u32) -> Builder<F> {
        self.ram.push((node, zone, PfnRange::new(Pfn(start), pages)));
        self
    }

    /// Frames `[start, start + pages)` that may come online as `zone` of `node`, `chunk` at a time where that many are
    /// left. May be given several times for one zone: the first that can serves.
    pub fn grow(mut self, node: usize, zone: ZoneKind, start: u32, pages: u32, chunk: u32) -> Builder<F> {
        self.growth.push(Growth { node, zone, next: start, end: start + pages, chunk });
        self
    }

    /// Bytes of the vmalloc window; whole slots.
    pub fn window(mut self, bytes: usize) -> Builder<F> {
        assert_eq!(bytes % (1 << F::SLOT_SHIFT), 0);
        self.window = bytes;
        self
    }

    /// Sets `pages` frames from `start` aside for page tables, which gives the machine a processor's view (see
    /// [`Task`](super::Task)): 3 for the kernel's, one for each 4 MiB of the window that is used and of low memory that
    /// no huge leaf maps, 2 or more a space. Only where slots show frames.
    pub fn tables(mut self, start: u32, pages: u32) -> Builder<F> {
        assert!(F::OWNS_FRAMES, "page tables map frames");
        self.tables = Some(PfnRange::new(Pfn(start), pages));
        self
    }

    /// Slots of permanent mappings, 64 at first (`LAST_PKMAP`).
    pub fn kmap_slots(mut self, slots: usize) -> Builder<F> {
        assert!(slots <= layout::LAST_PKMAP);
        self.kmap_slots = slots;
        self
    }

    /// What [`Frames::budget`](crate::machine::Frames::budget) says.
    pub fn budget(mut self, pages: u64) -> Builder<F> {
        self.budget = pages;
        self
    }

    /// What [`Frames::pressure`](crate::machine::Frames::pressure) and
    /// [`Frames::memory`](crate::machine::Frames::memory) say.
    pub fn pressure(mut self, pages: u64) -> Builder<F> {
        self.pressure = pages;
        self
    }

    /// What [`Frames::address_limit`](crate::machine::Frames::address_limit) says, in pages.
    pub fn address_limit(mut self, pages: u64) -> Builder<F> {
        self.address_limit = pages * crate::types::PAGE_SIZE as u64;
        self
    }

    /// Seed of the machine's randomness.
    pub fn seed(mut self, seed: u64) -> Builder<F> {
        self.seed = seed;
        self
    }

    /// How the machine disturbs per-CPU sections.
    pub fn hostile(mut self, hostile: Hostile) -> Builder<F> {
        self.hostile = hostile;
        self
    }

    /// The machine. Panics where frames are described twice or a node does not exist.
    pub fn build(self) -> Simulated<F> {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let mut all: Vec<_> = self.ram.iter().map(|(n, _, r)| (*n, r.start.0, r.end().0)).collect();
        all.extend(self.growth.iter().map(|g| (g.node, g.next, g.end)));
        all.extend(self.tables.map(|tables| (0, tables.start.0, tables.end().0)));
        all.sort_by_key(|(_, start, _)| *start);
        assert!(all.windows(2).all(|w| w[0].2 <= w[1].1), "frames described twice: {all:x?}");
        assert!(all.iter().all(|(node, ..)| *node < self.nodes), "{}", format!("only {} nodes", self.nodes));
        let block = Order::MAX.pages();
        let base = all.first().map_or(0, |(_, start, _)| start / block * block);
        let end = all.last().map_or(block, |(_, _, end)| end.next_multiple_of(block));
        let memory = Memory::new(Pfn(base), end - base, self.window);
        for (_, zone, range) in &self.ram {
            memory.bring_online(*range, *zone == ZoneKind::HighMem);
        }
        let low = self.ram.iter().map(|(_, zone, range)| (*zone, range.end().0));
        let low = low.chain(self.growth.iter().map(|g| (g.zone, g.end)));
        let low = low.filter(|(zone, _)| *zone != ZoneKind::HighMem).map(|(_, end)| end).max().unwrap_or(0);
        let mmu = self.tables.map(|tables| {
            memory.bring_online(tables, false);
            let mut mmu = Mmu::new(&memory, tables, self.cpus, Pfn(low.max(tables.end().0)));
            mmu.bring_online(&memory, tables);
            let low = self.ram.iter().filter(|(_, zone, _)| *zone != ZoneKind::HighMem);
            low.for_each(|(_, _, range)| mmu.bring_online(&memory, *range));
            Mutex::new(mmu)
        });
        let state = State {
            id: IDS.fetch_add(1, Ordering::Relaxed),
            memory,
            mmu,
            kmap_slots: self.kmap_slots,
            rows: (0..self.cpus).map(|_| Mutex::new(Row::None)).collect(),
            local: (0..self.cpus).map(|_| AtomicBool::new(false)).collect(),
            nodes: self.nodes,
            ram: self.ram,
            growth: Mutex::new(self.growth),
            grown: Mutex::new(Vec::new()),
            slots: Mutex::new(vec![Slot::Unmapped; self.window >> F::SLOT_SHIFT]),
            advised: Mutex::new(vec![false; self.window >> F::SLOT_SHIFT]),
            huge: Mutex::new(BTreeSet::new()),
            gathered: Mutex::new(BTreeSet::new()),
            budget: self.budget,
            pressure: self.pressure,
            address_limit: self.address_limit,
            now: AtomicU64::new(1),
            seed: self.seed,
            control: Control::new(self.seed, self.hostile),
            reports: Mutex::new(Vec::new()),
            steps: Mutex::new(Vec::new()),
            traced: AtomicBool::new(false),
            aborts: AtomicBool::new(true),
            looks_below: AtomicBool::new(false),
            aborted: AtomicBool::new(false),
            asleep: Mutex::new(()),
            woken: Condvar::new(),
        };
        Simulated { state: Arc::new(state), flavour: PhantomData }
    }
}
