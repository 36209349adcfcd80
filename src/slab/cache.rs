//! A cache's descriptor (`kmem_cache`): its shape, and per node its slabs and its barn.
#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicUsize, Ordering};

use super::barn::Barn;
use super::classes::{NR_CLASSES, class_align, class_size};
use super::layout::SlabLayout;
use super::node::NodeSlabs;
use super::tag::CLASS_COLOURS;
use crate::machine::{MAX_NODES, SHEAF_BYTES};
use crate::sync::{CachePadded, Lock};

/// Cache id of the sheaves themselves; the first id behind the size classes.
pub const SHEAF_CACHE: u8 = NR_CLASSES as u8 + 1;
/// First id of a cache made by `kmem_cache_create`.
pub const FIRST_CREATED: u8 = SHEAF_CACHE + 1;

/// What runs on an object before it is handed out for the first time.
pub type Constructor = unsafe extern "C" fn(object: *mut u8);

/// Flags of `kmem_cache_create`, with the kernel's names.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SlabFlags(pub u32);

impl SlabFlags {
    /// Objects start at a cache line.
    pub const HWCACHE_ALIGN: SlabFlags = SlabFlags(1 << 0);
    /// The cache never shares its slabs with another one of the same shape.
    pub const NO_MERGE: SlabFlags = SlabFlags(1 << 1);
    /// The free map lies outside the slab, so that small objects fill whole pages.
    pub const OFF_SLAB: SlabFlags = SlabFlags(1 << 2);
    /// The objects' pages count as reclaimable.
    pub const RECLAIM_ACCOUNT: SlabFlags = SlabFlags(1 << 3);

    /// Whether all bits of `other` are set.
    pub const fn has(self, other: SlabFlags) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Life of a cache id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum State {
    /// Not in use.
    Vacant = 0,
    /// Being made or destroyed: only its maker may touch it.
    Changing = 1,
    /// In use.
    Live = 2,
}

/// A node's part of a cache.
pub struct CacheNode {
    /// Slabs; the list lock. Inner to nothing but a taken row; never together with `barn`.
    pub slabs: Lock<NodeSlabs>,
    /// Stock of sheaves.
    pub barn: Lock<Barn>,
}

/// What a created cache was made with. Written while the state is [`State::Changing`], constant while it is live.
pub(super) struct Shape {
    pub layout: SlabLayout,
    pub ctor: Option<Constructor>,
    pub flags: SlabFlags,
    pub name: [u8; 32],
    pub name_len: usize,
}

/// A cache.
pub struct Cache {
    state: AtomicU8,
    shape: UnsafeCell<Shape>,
    /// `kmem_cache_create` calls that share it.
    pub(super) users: AtomicU32,
    /// Objects of the next refill; doubles up to the capacity, so that a program that needs three objects makes few.
    pub(super) refill: AtomicU16,
    /// Calls that reached the slow path.
    pub(super) slow_allocs: AtomicUsize,
    pub(super) slow_frees: AtomicUsize,
    nodes: [CachePadded<CacheNode>; MAX_NODES],
}

// SAFETY: `shape` is written only in state Changing by the one thread that made that transition, and read only in state
// Live, which is published with Release and read with Acquire; everything else is atomics and locks.
unsafe impl Sync for Cache {}

const fn class_layouts() -> [SlabLayout; SHEAF_CACHE as usize + 1] {
    let mut layouts = [SlabLayout::NONE; SHEAF_CACHE as usize + 1];
    let mut id = 1;
    while id <= NR_CLASSES {
        layouts[id] = match SlabLayout::compute(class_size(id), class_align(id), 0, false, CLASS_COLOURS) {
            Some(layout) => layout,
            None => panic!("a size class has a layout"),
        };
        id += 1;
    }
    layouts[SHEAF_CACHE as usize] = match SlabLayout::compute(SHEAF_BYTES, SHEAF_BYTES, 0, false, CLASS_COLOURS) {
        Some(layout) => layout,
        None => panic!("sheaves have a layout"),
    };
    layouts
}

/// Layouts of the boot-static caches, known at compile time: the first allocation needs no set-up of theirs.
pub(super) const STATIC_LAYOUTS: [SlabLayout; SHEAF_CACHE as usize + 1] = class_layouts();

const STATIC_NAMES: [&str; SHEAF_CACHE as usize + 1] = [
    "",
    "kmalloc-8",
    "kmalloc-16",
    "kmalloc-32",
    "kmalloc-48",
    "kmalloc-64",
    "kmalloc-80",
    "kmalloc-96",
    "kmalloc-112",
    "kmalloc-128",
    "kmalloc-160",
    "kmalloc-192",
    "kmalloc-224",
    "kmalloc-256",
    "kmalloc-320",
    "kmalloc-384",
    "kmalloc-448",
    "kmalloc-512",
    "kmalloc-640",
    "kmalloc-768",
    "kmalloc-896",
    "kmalloc-1k",
    "kmalloc-1280",
    "kmalloc-1536",
    "kmalloc-1792",
    "kmalloc-2k",
    "kmalloc-2560",
    "kmalloc-3k",
    "kmalloc-3584",
    "kmalloc-4k",
    "kmalloc-5k",
    "kmalloc-6k",
    "kmalloc-7k",
    "kmalloc-8k",
    "sheaf",
];

impl Cache {
    pub(super) const fn new() -> Cache {
        Cache {
            state: AtomicU8::new(State::Vacant as u8),
            shape: UnsafeCell::new(Shape {
                layout: SlabLayout::NONE,
                ctor: None,
                flags: SlabFlags(0),
                name: [0; 32],
                name_len: 0,
            }),
            users: AtomicU32::new(0),
            refill: AtomicU16::new(0),
            slow_allocs: AtomicUsize::new(0),
            slow_frees: AtomicUsize::new(0),
            nodes: [const {
                CachePadded::new(CacheNode { slabs: Lock::new(NodeSlabs::new()), barn: Lock::new(Barn::new()) })
            }; MAX_NODES],
        }
    }

    /// Node `node`'s part.
    pub fn node(&self, node: usize) -> &CacheNode {
        &self.nodes[node]
    }

    /// All nodes' parts.
    pub fn nodes(&self) -> impl Iterator<Item = &CacheNode> {
        self.nodes.iter().map(|n| &**n)
    }

    pub(super) fn state(&self) -> State {
        // Acquire, pairs with the Release in `set_state`: who sees Live sees the shape.
        match self.state.load(Ordering::Acquire) {
            1 => State::Changing,
            2 => State::Live,
            _ => State::Vacant,
        }
    }

    pub(super) fn set_state(&self, state: State) {
        // Release, pairs with the Acquire in `state`.
        self.state.store(state as u8, Ordering::Release);
    }

    /// The shape, to be read.
    pub(super) fn shape(&self) -> &Shape {
        debug_assert_eq!(self.state(), State::Live);
        // SAFETY: the cache is live, so nobody writes the shape.
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
    static LAYOUTS: [SlabLayout; SHEAF_CACHE as usize + 1] = STATIC_LAYOUTS;
    match LAYOUTS.get(id as usize) {
        Some(layout) => layout,
        None => &caches[id as usize].shape().layout,
    }
}

/// Name of cache `id`, which is boot-static or live.
pub(super) fn name(caches: &[Cache], id: u8) -> &str {
    match STATIC_NAMES.get(id as usize) {
        Some(name) => name,
        None => {
            let shape = caches[id as usize].shape();
            core::str::from_utf8(&shape.name[..shape.name_len]).unwrap_or("?")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_sizes() {
        for (id, name) in STATIC_NAMES.iter().enumerate().take(NR_CLASSES + 1).skip(1) {
            let text = name.strip_prefix("kmalloc-").unwrap();
            let size = match text.strip_suffix('k') {
                Some(k) => k.parse::<usize>().unwrap() * 1024,
                None => text.parse().unwrap(),
            };
            assert_eq!(size, class_size(id), "{name}");
        }
    }
}
