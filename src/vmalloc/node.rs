//! Nodes: one per hole, area or retained range, and the pool they come from.
//!
//! The pool's pages are never given back and nodes never move, so a node is a `&'static`: its memory lives as long as
//! the machine's frames do.
#![allow(unsafe_code)]

use core::cell::Cell;
use core::ptr::NonNull;

use super::tree::Links;
use super::usage::Usage;
use crate::types::{Caller, PAGE_SIZE};

/// What an address range is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// A hole, or a node in the pool.
    Free,
    /// Handed out.
    Busy,
    /// Freed, still mapped, with old contents.
    Retained,
    /// Some thread works on it outside the lock; nobody else may touch it.
    Transit,
}

/// An address range. All fields are guarded by the vmalloc lock.
pub struct Node {
    /// First byte.
    pub start: Cell<usize>,
    /// Bytes of address space, guard included.
    pub len: Cell<usize>,
    /// Bytes from `start` that are usable; hosted the last slot may be so in part.
    pub mapped: Cell<usize>,
    /// Bytes handed out, whole pages.
    pub size: Cell<usize>,
    /// Pages charged to the budget for it.
    pub charged: Cell<usize>,
    /// When it was freed, or gave memory back as it shrank, in milliseconds.
    pub stamp: Cell<u64>,
    pub state: Cell<State>,
    /// Who asked for it, of areas that somebody said so of.
    pub caller: Cell<Caller>,
    /// How it is used, as far as that is known; `Dense`, also where it is only expected, and `Hoped`: huge pages were
    /// asked for, but for the probe.
    pub usage: Cell<Usage>,
    /// The part whose pages tell how the area is used, as offsets of whole slots; empty where none does, or it was
    /// looked at.
    pub probe: Cell<(usize, usize)>,
    /// The part that its user was given as zeroes of the system's, to be looked at when it is freed, as offsets of
    /// whole slots.
    pub zeroed: Cell<(usize, usize)>,
    pub(super) links: [Links; 2],
    /// Neighbours in the order of their freeing; `newer` also links the pool.
    pub(super) older: Cell<Option<Ref>>,
    pub(super) newer: Cell<Option<Ref>>,
}

/// A node.
pub type Ref = &'static Node;

// SAFETY: the cells are accessed only with the lock of the one `Vmalloc` (or by the one test) that the node belongs to.
unsafe impl Sync for Node {}

impl Node {
    const fn new() -> Node {
        Node {
            start: Cell::new(0),
            len: Cell::new(0),
            mapped: Cell::new(0),
            size: Cell::new(0),
            charged: Cell::new(0),
            stamp: Cell::new(0),
            state: Cell::new(State::Free),
            caller: Cell::new(Caller::Unknown),
            usage: Cell::new(Usage::Unknown),
            probe: Cell::new((0, 0)),
            zeroed: Cell::new((0, 0)),
            links: [Links::new(), Links::new()],
            older: Cell::new(None),
            newer: Cell::new(None),
        }
    }

    /// The byte after the last.
    pub fn end(&self) -> usize {
        self.start.get() + self.len.get()
    }

    /// Whether huge pages are asked for.
    pub fn is_dense(&self) -> bool {
        matches!(self.usage.get(), Usage::Dense | Usage::Hoped)
    }

    /// Whether this is the node `other`.
    pub fn is(&self, other: &Node) -> bool {
        core::ptr::eq(self, other)
    }
}

/// Nodes in a page.
pub const NODES_PER_PAGE: usize = PAGE_SIZE / size_of::<Node>();

/// Unused nodes.
pub struct Pool {
    free: Option<Ref>,
    len: usize,
    total: usize,
}

impl Pool {
    /// An empty pool.
    pub const fn new() -> Pool {
        Pool { free: None, len: 0, total: 0 }
    }

    /// Nodes ready to be taken.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Nodes ever added.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Adds a page's worth of nodes.
    ///
    /// # Safety
    /// `page` is a page of memory, aligned as one, that belongs to the pool from now on for ever.
    pub unsafe fn add(&mut self, page: NonNull<u8>) {
        for i in 0..NODES_PER_PAGE {
            // SAFETY: 1. the page holds so many nodes and is aligned for them; 2. it is the pool's for ever, so
            // that the reference may be `'static`; 3. it is written before it is shared.
            let node: Ref = unsafe {
                let at = page.cast::<Node>().add(i);
                at.write(Node::new());
                at.as_ref()
            };
            self.put(node);
        }
        self.total += NODES_PER_PAGE;
    }

    /// A node with all fields reset.
    pub fn take(&mut self) -> Option<Ref> {
        let node = self.free?;
        self.free = node.newer.take();
        self.len -= 1;
        Some(node)
    }

    /// Takes a node back that is in no tree.
    pub fn put(&mut self, node: Ref) {
        node.state.set(State::Free);
        node.caller.set(Caller::Unknown);
        node.mapped.set(0);
        node.size.set(0);
        node.charged.set(0);
        node.usage.set(Usage::Unknown);
        node.probe.set((0, 0));
        node.zeroed.set((0, 0));
        node.older.set(None);
        node.newer.set(self.free);
        self.free = Some(node);
        self.len += 1;
    }
}
