//! Balanced trees of nodes, augmented with the largest length below each: the kernel's `free_vmap_area_root` and
//! `vmap_area_root` in one type. AVL rather than red-black: the same bounds, half the cases.

use core::cell::Cell;
use core::cmp::Ordering;

use super::node::{Node, Ref};

/// Links and augmentation of a node in one tree.
pub struct Links {
    parent: Cell<Option<Ref>>,
    left: Cell<Option<Ref>>,
    right: Cell<Option<Ref>>,
    /// Largest `len` of the subtree.
    largest: Cell<usize>,
    height: Cell<u8>,
}

impl Links {
    pub(super) const fn new() -> Links {
        Links {
            parent: Cell::new(None),
            left: Cell::new(None),
            right: Cell::new(None),
            largest: Cell::new(0),
            height: Cell::new(0),
        }
    }
}

/// Order by address; by the first of the links.
pub const BY_ADDRESS: usize = 0;
/// Order by length, then address; by the second of the links.
pub const BY_SIZE: usize = 1;

/// A tree over the `BY` links of its nodes.
pub struct Tree<const BY: usize> {
    root: Option<Ref>,
    len: usize,
}

impl<const BY: usize> Tree<BY> {
    /// An empty tree.
    pub const fn new() -> Tree<BY> {
        Tree { root: None, len: 0 }
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.len
    }

    fn key(node: &Node) -> (usize, usize) {
        if BY == BY_SIZE { (node.len.get(), node.start.get()) } else { (node.start.get(), 0) }
    }

    fn links(node: &Node) -> &Links {
        &node.links[BY]
    }

    fn height(node: Option<Ref>) -> u8 {
        node.map_or(0, |n| Self::links(n).height.get())
    }

    fn largest(node: Option<Ref>) -> usize {
        node.map_or(0, |n| Self::links(n).largest.get())
    }

    /// Recomputes a node's height and largest length from its children.
    fn refresh(node: Ref) {
        let links = Self::links(node);
        let (left, right) = (links.left.get(), links.right.get());
        links.height.set(1 + Self::height(left).max(Self::height(right)));
        links.largest.set(node.len.get().max(Self::largest(left)).max(Self::largest(right)));
    }

    /// Puts `new` where `old` hangs under `parent`.
    fn replace(&mut self, parent: Option<Ref>, old: Ref, new: Option<Ref>) {
        match parent {
            None => self.root = new,
            Some(p) if Self::links(p).left.get().is_some_and(|l| l.is(old)) => Self::links(p).left.set(new),
            Some(p) => Self::links(p).right.set(new),
        }
        if let Some(new) = new {
            Self::links(new).parent.set(parent);
        }
    }

    /// Turns `node` down to the left (or right, with `mirror`); its child that takes its place.
    fn rotate(&mut self, node: Ref, mirror: bool) -> Ref {
        let links = Self::links(node);
        let far = if mirror { &links.left } else { &links.right };
        let Some(up) = far.get() else { return node };
        let up_links = Self::links(up);
        let inner = if mirror { &up_links.right } else { &up_links.left };
        far.set(inner.get());
        if let Some(moved) = inner.get() {
            Self::links(moved).parent.set(Some(node));
        }
        self.replace(links.parent.get(), node, Some(up));
        inner.set(Some(node));
        links.parent.set(Some(up));
        Self::refresh(node);
        Self::refresh(up);
        up
    }

    /// Restores the balance of `node`, whose children are balanced; the top of its subtree.
    fn balance(&mut self, node: Ref) -> Ref {
        let links = Self::links(node);
        let (left, right) = (links.left.get(), links.right.get());
        let (lh, rh) = (Self::height(left), Self::height(right));
        if lh.abs_diff(rh) <= 1 {
            Self::refresh(node);
            return node;
        }
        let mirror = lh > rh;
        if let Some(heavy) = if mirror { left } else { right } {
            let (l, r) = (Self::links(heavy).left.get(), Self::links(heavy).right.get());
            let (inner, outer) = if mirror { (r, l) } else { (l, r) };
            if Self::height(inner) > Self::height(outer) {
                self.rotate(heavy, !mirror);
            }
        }
        self.rotate(node, mirror)
    }

    fn rebalance(&mut self, mut from: Option<Ref>) {
        while let Some(node) = from {
            from = Self::links(self.balance(node)).parent.get();
        }
    }

    /// Adds `node`, which is not in the tree.
    pub fn insert(&mut self, node: Ref) {
        let links = Self::links(node);
        let mut parent: Option<Ref> = None;
        let mut at = self.root;
        let mut less = false;
        while let Some(here) = at {
            parent = at;
            less = Self::key(node) < Self::key(here);
            at = if less { Self::links(here).left.get() } else { Self::links(here).right.get() };
        }
        links.left.set(None);
        links.right.set(None);
        links.parent.set(parent);
        match parent {
            None => self.root = Some(node),
            Some(p) if less => Self::links(p).left.set(Some(node)),
            Some(p) => Self::links(p).right.set(Some(node)),
        }
        self.len += 1;
        self.rebalance(Some(node));
    }

    /// Removes `node`, which is in the tree. Its key must not have changed in between.
    pub fn remove(&mut self, node: Ref) {
        let links = Self::links(node);
        let parent = links.parent.get();
        let from = match (links.left.get(), links.right.get()) {
            (Some(left), Some(right)) => {
                let next = Self::leftmost(right);
                let next_links = Self::links(next);
                let from = if next.is(right) {
                    next
                } else {
                    let above = next_links.parent.get();
                    self.replace(above, next, next_links.right.get());
                    next_links.right.set(Some(right));
                    Self::links(right).parent.set(Some(next));
                    above.unwrap_or(next)
                };
                next_links.left.set(Some(left));
                Self::links(left).parent.set(Some(next));
                self.replace(parent, node, Some(next));
                Some(from)
            }
            (child, None) | (None, child) => {
                self.replace(parent, node, child);
                parent
            }
        };
        self.len -= 1;
        self.rebalance(from);
    }

    /// Takes note of a changed length, where that is not the key.
    pub fn resized(&mut self, node: Ref) {
        let mut at = Some(node);
        while let Some(here) = at {
            Self::refresh(here);
            at = Self::links(here).parent.get();
        }
    }

    fn leftmost(mut node: Ref) -> Ref {
        while let Some(left) = Self::links(node).left.get() {
            node = left;
        }
        node
    }

    fn rightmost(mut node: Ref) -> Ref {
        while let Some(right) = Self::links(node).right.get() {
            node = right;
        }
        node
    }

    /// The node with the least key.
    pub fn first(&self) -> Option<Ref> {
        self.root.map(Self::leftmost)
    }

    /// The node after `node` in the tree's order.
    pub fn next(&self, node: Ref) -> Option<Ref> {
        if let Some(right) = Self::links(node).right.get() {
            return Some(Self::leftmost(right));
        }
        let mut below = node;
        let mut at = Self::links(node).parent.get();
        while let Some(here) = at {
            if Self::links(here).left.get().is_some_and(|l| l.is(below)) {
                return at;
            }
            below = here;
            at = Self::links(here).parent.get();
        }
        None
    }

    /// The node with the greatest key.
    pub fn last(&self) -> Option<Ref> {
        self.root.map(Self::rightmost)
    }

    /// The node before `node` in the tree's order.
    pub fn previous(&self, node: Ref) -> Option<Ref> {
        if let Some(left) = Self::links(node).left.get() {
            return Some(Self::rightmost(left));
        }
        let mut below = node;
        let mut at = Self::links(node).parent.get();
        while let Some(here) = at {
            if Self::links(here).right.get().is_some_and(|r| r.is(below)) {
                return at;
            }
            below = here;
            at = Self::links(here).parent.get();
        }
        None
    }

    /// The first node in order whose length is at least `len`: the lowest fit by address, the best fit by size.
    pub fn first_fit(&self, len: usize) -> Option<Ref> {
        let mut node = self.root.filter(|root| Self::links(root).largest.get() >= len)?;
        loop {
            let links = Self::links(node);
            if let Some(left) = links.left.get().filter(|left| Self::links(left).largest.get() >= len) {
                node = left;
            } else if node.len.get() >= len {
                return Some(node);
            } else {
                node = links.right.get()?;
            }
        }
    }

    /// The last node whose start is at most `address` (only by address).
    pub fn at_or_below(&self, address: usize) -> Option<Ref> {
        let mut found = None;
        let mut at = self.root;
        while let Some(here) = at {
            match here.start.get().cmp(&address) {
                Ordering::Equal => return Some(here),
                Ordering::Less => {
                    found = Some(here);
                    at = Self::links(here).right.get();
                }
                Ordering::Greater => at = Self::links(here).left.get(),
            }
        }
        found
    }

    /// The node that starts at `address` (only by address).
    pub fn at(&self, address: usize) -> Option<Ref> {
        self.at_or_below(address).filter(|node| node.start.get() == address)
    }

    /// Checks order, balance, links and augmentation of the whole tree.
    pub fn verify(&self) -> Result<(), &'static str> {
        let mut count = 0;
        let mut last: Option<Ref> = None;
        let mut at = self.first();
        if self.root.is_some_and(|root| Self::links(root).parent.get().is_some()) {
            return Err("vmalloc tree: the root has a parent");
        }
        while let Some(node) = at {
            let links = Self::links(node);
            let (left, right) = (links.left.get(), links.right.get());
            if last.is_some_and(|last| Self::key(last) >= Self::key(node)) {
                return Err("vmalloc tree: out of order");
            }
            if Self::height(left).abs_diff(Self::height(right)) > 1
                || links.height.get() != 1 + Self::height(left).max(Self::height(right))
            {
                return Err("vmalloc tree: out of balance");
            }
            if links.largest.get() != node.len.get().max(Self::largest(left)).max(Self::largest(right)) {
                return Err("vmalloc tree: wrong largest length");
            }
            let mine =
                |child: Option<Ref>| child.is_none_or(|c| Self::links(c).parent.get().is_some_and(|p| p.is(node)));
            if !mine(left) || !mine(right) {
                return Err("vmalloc tree: a child names another parent");
            }
            count += 1;
            if count > self.len {
                break;
            }
            last = at;
            at = self.next(node);
        }
        if count == self.len { Ok(()) } else { Err("vmalloc tree: wrong number of nodes") }
    }
}
