//! A lock-free list of blocks to free later: pushed to from any context, taken as a whole by one who may block.

use super::atomic::{AtomicUsize, Ordering};

/// The list. Blocks are named by a number that is not 0, and linked through memory of their own or their descriptor.
pub struct Deferred {
    head: AtomicUsize,
}

impl Deferred {
    /// An empty list.
    #[cfg(not(loom))]
    pub const fn new() -> Deferred {
        Deferred { head: AtomicUsize::new(0) }
    }

    /// An empty list (loom's atomics have no `const` constructor).
    #[cfg(loom)]
    pub fn new() -> Deferred {
        Deferred { head: AtomicUsize::new(0) }
    }

    /// Adds `block`, which is the caller's; `set_link` writes its argument into the block, perhaps several times.
    pub fn push(&self, block: usize, mut set_link: impl FnMut(usize)) {
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            set_link(head);
            // Release, pairs with the Acquire in `take`: who takes the list sees the links. A block pushed on top of
            // others continues their release sequence, so one Acquire is enough for all.
            match self.head.compare_exchange_weak(head, block, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Takes one block, or 0. `link` reads a block's link, `set_link(block, to)` writes it. While this one has the list
    /// others find it empty.
    #[must_use]
    pub fn pop(&self, link: impl Fn(usize) -> usize, set_link: impl Fn(usize, usize)) -> usize {
        let first = self.take();
        let rest = if first == 0 { 0 } else { link(first) };
        // Release, as in `push`.
        if rest != 0 && self.head.compare_exchange(0, rest, Ordering::Release, Ordering::Relaxed).is_err() {
            // Something was pushed meanwhile: the rest goes on top of it.
            let mut last = rest;
            while link(last) != 0 {
                last = link(last);
            }
            self.push(rest, |next| set_link(last, next));
        }
        first
    }

    /// Writes to the list's own memory without changing it, so that the next who uses it takes no page fault.
    pub fn touch(&self) {
        self.head.fetch_or(0, Ordering::Relaxed);
    }

    /// Whether there is nothing to take; a hint.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.head.load(Ordering::Relaxed) == 0
    }

    /// Takes all blocks: the first, or 0; its link leads to the next, and so on to 0. Taking the whole list leaves no
    /// ABA.
    #[must_use]
    pub fn take(&self) -> usize {
        // Acquire, pairs with the Release in `push`.
        self.head.swap(0, Ordering::Acquire)
    }
}

impl Default for Deferred {
    fn default() -> Deferred {
        Deferred::new()
    }
}
