//! A cache's descriptor (`kmem_cache`): its shape, and per node its slabs and its barn.
#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicUsize, Ordering};

use super::barn::Barn;
use super::classes::{NR_CLASSES, class_align, class_size};
use super::layout::SlabLayout;
use super::node::NodeSlabs;
use super::runs::{self, FIRST_RUN, NR_RUNS};
use super::tag::CLASS_COLOURS;
use crate::gfp::Gfp;
use crate::machine::{MAX_CACHES, MAX_NODES, Machine, RUN_SHEAF_BYTES, SHEAF_BYTES};
use crate::sync::{CachePadded, Deferred, Guard, Lock};

/// Cache id of the sheaves themselves; the first id behind the size classes.
pub const SHEAF_CACHE: u8 = NR_CLASSES as u8 + 1;
/// The same for those of page runs.
pub const RUN_SHEAF_CACHE: u8 = SHEAF_CACHE + 1;
/// First id of a cache made by `kmem_cache_create`, behind the classes of runs.
pub const FIRST_CREATED: u8 = FIRST_RUN + NR_RUNS as u8;
/// Number of boot-static caches, and the id 0 that is none.
const NR_STATIC: usize = FIRST_CREATED as usize;

/// What runs on an object before it is handed out for the first time.
pub type Constructor = unsafe extern "C" fn(object: *mut u8);

/// Flags of `kmem_cache_create`, with the kernel's names.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SlabFlags(pub u32);

impl SlabFlags {
    /// No flag.
    pub const NONE: SlabFlags = SlabFlags(0);
    /// Frees are checked: they are here in any case.
    pub const CONSISTENCY_CHECKS: SlabFlags = SlabFlags(0x100);
    /// What lies in front of an object and behind its end is checked when it is freed, and when it is handed out again.
    pub const RED_ZONE: SlabFlags = SlabFlags(0x400);
    /// Freed objects are filled with 0x6b, and checked when they are handed out again. Objects with a constructor are
    /// not.
    pub const POISON: SlabFlags = SlabFlags(0x800);
    /// Objects start at a cache line; small ones share a line evenly.
    pub const HWCACHE_ALIGN: SlabFlags = SlabFlags(0x2000);
    /// Objects below 16 MiB.
    pub const CACHE_DMA: SlabFlags = SlabFlags(0x4000);
    /// Objects below 4 GiB.
    pub const CACHE_DMA32: SlabFlags = SlabFlags(0x8000);
    /// Who allocated an object last, and who freed it, is kept, and named in reports.
    pub const STORE_USER: SlabFlags = SlabFlags(0x1_0000);
    /// The objects' pages count as reclaimable.
    pub const RECLAIM_ACCOUNT: SlabFlags = SlabFlags(0x2_0000);
    /// If the cache cannot be made the program ends.
    pub const PANIC: SlabFlags = SlabFlags(0x4_0000);
    /// The cache never shares its slabs with another one of the same shape.
    pub const NO_MERGE: SlabFlags = SlabFlags(0x100_0000);
    /// Charged to the control group: all memory of a process is.
    pub const ACCOUNT: SlabFlags = SlabFlags(0x400_0000);
    /// The free map lies outside the slab, so that small objects fill whole pages.
    pub const OFF_SLAB: SlabFlags = SlabFlags(0x8000_0000);

    /// Flags that keep something behind the objects; such caches are not merged.
    pub(super) const CHECKED: SlabFlags =
        SlabFlags(SlabFlags::RED_ZONE.0 | SlabFlags::POISON.0 | SlabFlags::STORE_USER.0);
    /// All that mean something.
    const ALL: SlabFlags = SlabFlags(
        SlabFlags::CONSISTENCY_CHECKS.0
            | SlabFlags::CHECKED.0
            | SlabFlags::HWCACHE_ALIGN.0
            | SlabFlags::CACHE_DMA.0
            | SlabFlags::CACHE_DMA32.0
            | SlabFlags::RECLAIM_ACCOUNT.0
            | SlabFlags::PANIC.0
            | SlabFlags::NO_MERGE.0
            | SlabFlags::ACCOUNT.0
            | SlabFlags::OFF_SLAB.0,
    );
    /// Those that two merged caches must have in common.
    const SHAPING: u32 = SlabFlags::HWCACHE_ALIGN.0
        | SlabFlags::CACHE_DMA.0
        | SlabFlags::CACHE_DMA32.0
        | SlabFlags::RECLAIM_ACCOUNT.0
        | SlabFlags::OFF_SLAB.0;

    /// Whether all bits of `other` are set.
    #[inline]
    pub const fn has(self, other: SlabFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any bit of `other` is set.
    #[inline]
    pub const fn any(self, other: SlabFlags) -> bool {
        self.0 & other.0 != 0
    }

    /// Both words' bits.
    #[must_use]
    pub const fn with(self, other: SlabFlags) -> SlabFlags {
        SlabFlags(self.0 | other.0)
    }

    /// Whether every flag means something here and none contradicts another.
    pub const fn is_valid(self) -> bool {
        self.0 & !SlabFlags::ALL.0 == 0
            && !(self.has(SlabFlags::CACHE_DMA) && self.has(SlabFlags::CACHE_DMA32))
            && !(self.has(SlabFlags::OFF_SLAB) && self.any(SlabFlags::CHECKED))
    }

    /// Whether caches with these flags may share slabs with others.
    pub(super) const fn merges(self) -> bool {
        !self.any(SlabFlags(SlabFlags::NO_MERGE.0 | SlabFlags::CHECKED.0))
    }

    /// Whether two caches' objects may lie in the same slabs.
    pub(super) const fn alike(self, other: SlabFlags) -> bool {
        self.merges() && other.merges() && (self.0 ^ other.0) & SlabFlags::SHAPING == 0
    }

    /// The zone modifier of the objects' pages.
    pub(super) const fn gfp(self) -> Gfp {
        let mut gfp = Gfp::NONE;
        if self.has(SlabFlags::CACHE_DMA) {
            gfp = gfp.with(Gfp::DMA);
        }
        if self.has(SlabFlags::CACHE_DMA32) {
            gfp = gfp.with(Gfp::DMA32);
        }
        if self.has(SlabFlags::RECLAIM_ACCOUNT) {
            gfp = gfp.with(Gfp::RECLAIMABLE);
        }
        gfp
    }
}

/// Life of a cache id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum State {
    /// Not in use.
    Vacant = 0,
    /// Being made: only its maker may touch it.
    Changing = 1,
    /// In use.
    Live = 2,
    /// About to be vacant: who came upon it while it was live may go on, and is waited for.
    Ending = 3,
}

/// A node's part of a cache.
pub struct CacheNode {
    /// Slabs; the list lock. Inner to nothing but a taken row; never together with `barn`.
    pub slabs: Lock<NodeSlabs>,
    /// Stock of sheaves.
    pub barn: Lock<Barn>,
    /// Slabs that were made without the list lock: `slabs` does not count them yet.
    pub(super) born: AtomicU32,
}

impl CacheNode {
    const fn new() -> CacheNode {
        CacheNode { slabs: Lock::new(NodeSlabs::new()), barn: Lock::new(Barn::new()), born: AtomicU32::new(0) }
    }

    /// The slabs, all of them counted; `None` where the lock is not to be had without blocking.
    pub(super) fn list<'a, M: Machine>(&'a self, m: &'a M, may_block: bool) -> Option<Guard<'a, NodeSlabs, M>> {
        let mut slabs = self.slabs.acquire(m, may_block)?;
        // Relaxed: who has an object of such a slab got it from who counted it.
        if self.born.load(Ordering::Relaxed) != 0 {
            slabs.slabs += self.born.swap(0, Ordering::Relaxed);
        }
        Some(slabs)
    }

    /// The same, waited for.
    pub(super) fn locked<'a, M: Machine>(&'a self, m: &'a M) -> Guard<'a, NodeSlabs, M> {
        let mut slabs = self.slabs.lock(m);
        slabs.slabs += self.born.swap(0, Ordering::Relaxed);
        slabs
    }
}

/// What a created cache was made with. Written while the state is [`State::Changing`], constant while it is live.
pub(super) struct Shape {
    pub layout: SlabLayout,
    pub ctor: Option<Constructor>,
    pub flags: SlabFlags,
    /// Offset of the allocator's words behind an object; 0 where they are the object's own first words.
    pub meta: u32,
    pub name: [u8; 32],
    pub name_len: usize,
}

impl Shape {
    pub fn name(&self) -> &str {
        core::str::from_utf8(&self.name[..self.name_len]).unwrap_or("?")
    }
}

/// A cache, as far as every program uses it: those of the size classes lie in few pages.
#[repr(align(64))]
pub struct Cache {
    state: AtomicU8,
    shape: UnsafeCell<Shape>,
    /// `kmem_cache_create` calls that share it.
    pub(super) users: AtomicU32,
    /// Objects of the next refill; doubles up to the capacity while they come quickly, so that a program that needs
    /// three objects makes few.
    pub(super) refill: AtomicU16,
    /// When the last one was, in milliseconds (wrapping).
    pub(super) refilled_ms: AtomicUsize,
    /// Calls that reached the slow path.
    pub(super) slow_allocs: AtomicUsize,
    pub(super) slow_frees: AtomicUsize,
    /// Their sum when [`Slab::gather`](super::Slab::gather) emptied the sheaves last.
    pub(super) gathered: AtomicUsize,
    /// Somebody asked for its objects atomically: new slabs are populated.
    pub(super) atomic: AtomicBool,
    /// Free populated objects, for atomic requests alone.
    pub(super) stash: Deferred,
    /// Node 0's part.
    pub(super) home: CacheNode,
}

/// The other nodes' parts of all caches.
pub(super) struct Far([[CachePadded<CacheNode>; MAX_CACHES]; MAX_NODES - 1]);

impl Far {
    pub const fn new() -> Far {
        Far([const { [const { CachePadded::new(CacheNode::new()) }; MAX_CACHES] }; MAX_NODES - 1])
    }

    /// The part of `node`, 1 or more, of cache `id`.
    pub fn node(&self, id: u8, node: usize) -> &CacheNode {
        &self.0[node - 1][id as usize]
    }
}

// SAFETY: `shape` is written only in state Changing by the one thread that made that transition, and read only by who
// has the cache, or saw it in state Live, which is published with Release and read with Acquire, and is counted in
// (`Hands`) or holds the registry lock: `destroy` waits for both between Live and Vacant. Everything else is atomics
// and locks.
unsafe impl Sync for Cache {}

const fn class_layouts() -> [SlabLayout; NR_STATIC] {
    let mut layouts = [SlabLayout::NONE; NR_STATIC];
    let mut id = 1;
    while id <= NR_CLASSES {
        layouts[id] = match SlabLayout::compute(class_size(id), class_align(id), 0, false, CLASS_COLOURS) {
            Some(layout) => layout,
            None => panic!("a size class has a layout"),
        };
        id += 1;
    }
    let mut sheaves = [(SHEAF_CACHE, SHEAF_BYTES), (RUN_SHEAF_CACHE, RUN_SHEAF_BYTES)].as_slice();
    while let [(id, bytes), rest @ ..] = sheaves {
        layouts[*id as usize] = match SlabLayout::compute(*bytes, *bytes, 0, false, CLASS_COLOURS) {
            Some(layout) => layout,
            None => panic!("sheaves have a layout"),
        };
        sheaves = rest;
    }
    let mut id = FIRST_RUN;
    while id < FIRST_CREATED {
        layouts[id as usize] = runs::layout(id);
        id += 1;
    }
    layouts
}

/// Layouts of the boot-static caches, known at compile time: the first allocation needs no set-up of theirs.
pub(super) const STATIC_LAYOUTS: [SlabLayout; NR_STATIC] = class_layouts();

#[cfg(target_pointer_width = "32")]
#[rustfmt::skip]
const CLASS_NAMES: [&str; NR_CLASSES] = [
    "kmalloc-8", "kmalloc-16", "kmalloc-32", "kmalloc-64", "kmalloc-96", "kmalloc-128", "kmalloc-192",
    "kmalloc-256", "kmalloc-512", "kmalloc-1k", "kmalloc-2k", "kmalloc-4k", "kmalloc-8k",
];
#[cfg(not(target_pointer_width = "32"))]
#[rustfmt::skip]
const CLASS_NAMES: [&str; NR_CLASSES] = [
    "kmalloc-8", "kmalloc-16", "kmalloc-32", "kmalloc-48", "kmalloc-64", "kmalloc-80", "kmalloc-96", "kmalloc-112",
    "kmalloc-128", "kmalloc-160", "kmalloc-192", "kmalloc-224", "kmalloc-256", "kmalloc-320", "kmalloc-384",
    "kmalloc-448", "kmalloc-512", "kmalloc-640", "kmalloc-768", "kmalloc-896", "kmalloc-1k", "kmalloc-1344",
    "kmalloc-1600", "kmalloc-1792", "kmalloc-2k", "kmalloc-2688", "kmalloc-3264", "kmalloc-3584", "kmalloc-4k",
    "kmalloc-4672", "kmalloc-5440", "kmalloc-6528", "kmalloc-8k",
];
#[rustfmt::skip]
const RUN_NAMES: [&str; NR_RUNS] = [
    "run-12k", "run-16k", "run-20k", "run-24k", "run-28k", "run-32k", "run-36k", "run-40k", "run-44k", "run-48k",
    "run-52k", "run-56k", "run-60k", "run-64k", "run-72k", "run-80k", "run-88k", "run-96k", "run-104k", "run-112k",
    "run-120k", "run-128k", "run-144k", "run-160k", "run-176k", "run-192k", "run-208k", "run-224k", "run-240k",
    "run-256k", "run-288k", "run-320k", "run-352k", "run-384k", "run-416k", "run-448k", "run-480k", "run-512k",
    "run-576k", "run-640k", "run-704k", "run-768k", "run-832k", "run-896k", "run-960k", "run-1024k", "run-1152k",
    "run-1280k", "run-1408k", "run-1536k", "run-1664k", "run-1792k", "run-1920k", "run-2048k", "run-last",
];

/// The name of a boot-static cache, its bytes and not where they are: that would be a relocation each, and a page more
/// that the loader writes to.
#[derive(Clone, Copy)]
struct Name {
    len: u8,
    text: [u8; 15],
}

impl Name {
    const fn new(name: &str) -> Name {
        let mut text = [0; 15];
        text.split_at_mut(name.len()).0.copy_from_slice(name.as_bytes());
        Name { len: name.len() as u8, text }
    }

    fn as_str(&self) -> &str {
        core::str::from_utf8(&self.text[..usize::from(self.len)]).unwrap_or("?")
    }
}

const fn static_names() -> [Name; NR_STATIC] {
    let mut names = [const { Name::new("") }; NR_STATIC];
    let mut id = 1;
    while id < NR_STATIC {
        names[id] = Name::new(if id <= NR_CLASSES {
            CLASS_NAMES[id - 1]
        } else if id == SHEAF_CACHE as usize {
            "sheaf"
        } else if id == RUN_SHEAF_CACHE as usize {
            "run-sheaf"
        } else {
            RUN_NAMES[id - FIRST_RUN as usize]
        });
        id += 1;
    }
    names
}

/// Names of the boot-static caches, by id.
static STATIC_NAMES: [Name; NR_STATIC] = static_names();

impl Cache {
    pub(super) const fn new() -> Cache {
        Cache {
            state: AtomicU8::new(State::Vacant as u8),
            shape: UnsafeCell::new(Shape {
                layout: SlabLayout::NONE,
                ctor: None,
                flags: SlabFlags(0),
                meta: 0,
                name: [0; 32],
                name_len: 0,
            }),
            users: AtomicU32::new(0),
            refill: AtomicU16::new(0),
            refilled_ms: AtomicUsize::new(0),
            slow_allocs: AtomicUsize::new(0),
            slow_frees: AtomicUsize::new(0),
            gathered: AtomicUsize::new(0),
            atomic: AtomicBool::new(false),
            stash: Deferred::new(),
            home: CacheNode::new(),
        }
    }

    pub(super) fn state(&self) -> State {
        // Acquire, pairs with the Release in `set_state`: who sees Live sees the shape.
        match self.state.load(Ordering::Acquire) {
            1 => State::Changing,
            2 => State::Live,
            3 => State::Ending,
            _ => State::Vacant,
        }
    }

    pub(super) fn set_state(&self, state: State) {
        // Release, pairs with the Acquire in `state`.
        self.state.store(state as u8, Ordering::Release);
    }

    /// The shape, to be read.
    pub(super) fn shape(&self) -> &Shape {
        debug_assert!(matches!(self.state(), State::Live | State::Ending));
        // SAFETY: the cache is live, or the caller came upon it while it was and is waited for, so nobody writes the
        // shape.
        unsafe { &*self.shape.get() }
    }

    /// Sets the shape of a cache in state Changing.
    ///
    /// # Safety
    /// The caller moved the state to Changing and is the only one to touch the cache.
    pub(super) unsafe fn set_shape(&self, shape: Shape) {
        // SAFETY: the caller's condition.
        unsafe { *self.shape.get() = shape };
    }
}

/// Layout of cache `id`, which is boot-static or live.
pub(super) fn layout(caches: &[Cache], id: u8) -> &SlabLayout {
    static LAYOUTS: [SlabLayout; NR_STATIC] = STATIC_LAYOUTS;
    match LAYOUTS.get(id as usize) {
        Some(layout) => layout,
        None => &caches[id as usize].shape().layout,
    }
}

/// Name of cache `id`, which is boot-static or live.
pub(super) fn name(caches: &[Cache], id: u8) -> &str {
    match STATIC_NAMES.get(id as usize) {
        Some(name) => name.as_str(),
        None => caches[id as usize].shape().name(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_sizes() {
        for (id, name) in STATIC_NAMES.iter().enumerate().take(NR_CLASSES + 1).skip(1) {
            let name = name.as_str();
            let text = name.strip_prefix("kmalloc-").unwrap();
            let size = match text.strip_suffix('k') {
                Some(k) => k.parse::<usize>().unwrap() * 1024,
                None => text.parse().unwrap(),
            };
            assert_eq!(size, class_size(id), "{name}");
        }
        for id in FIRST_RUN..FIRST_CREATED {
            if id == runs::LAST_RUN {
                continue;
            }
            assert_eq!(STATIC_NAMES[id as usize].as_str(), std::format!("run-{}k", runs::layout(id).size / 1024));
        }
    }
}
