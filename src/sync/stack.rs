//! A lock-free stack of numbered blocks, from which any context takes one at a time.
//!
//! The head is a block's number and a tag in one word, exchanged together: the tag is another one after every exchange,
//! so that a head which went and came back meanwhile (ABA) is noticed. A block is linked through memory of its own that
//! stays readable whoever has it.

use super::atomic::Ordering;

#[cfg(loom)]
use super::atomic::AtomicU64;
#[cfg(not(loom))]
use super::wide::AtomicU64;

/// The stack.
pub struct Stack {
    /// Complement of the first block's number, so that an empty stack is all zeroes, and above it the tag.
    head: AtomicU64,
}

const fn head(block: u32, tag: u64) -> u64 {
    tag << 32 | !block as u64
}

const fn block(head: u64) -> u32 {
    !(head as u32)
}

impl Stack {
    /// No block: an empty stack's head, the last one's link.
    pub const NONE: u32 = u32::MAX;

    /// An empty stack.
    #[cfg(not(loom))]
    pub const fn new() -> Stack {
        Stack { head: AtomicU64::new(head(Stack::NONE, 0)) }
    }

    /// An empty stack (loom's atomics have no `const` constructor).
    #[cfg(loom)]
    pub fn new() -> Stack {
        Stack { head: AtomicU64::new(head(Stack::NONE, 0)) }
    }

    /// Adds `block`, which is the caller's; `set_link` writes its argument into the block, perhaps several times.
    pub fn push(&self, block: u32, mut set_link: impl FnMut(u32)) {
        let mut old = self.head.load(Ordering::Relaxed);
        loop {
            set_link(self::block(old));
            // Release, pairs with the Acquire in `pop`: who has the block sees what was written to it.
            match self.head.compare_exchange(old, head(block, (old >> 32) + 1), Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => old = now,
            }
        }
    }

    /// Takes the block that was added last. `link` reads the link of a block, which may be somebody else's by then:
    /// what it says is of no consequence in that case.
    pub fn pop(&self, link: impl Fn(u32) -> u32) -> Option<u32> {
        // Acquire, pairs with the Release in `push`: its link is seen.
        let mut old = self.head.load(Ordering::Acquire);
        loop {
            let block = block(old);
            if block == Stack::NONE {
                return None;
            }
            let new = head(link(block), (old >> 32) + 1);
            match self.head.compare_exchange(old, new, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return Some(block),
                Err(now) => old = now,
            }
        }
    }
}

impl Default for Stack {
    fn default() -> Stack {
        Stack::new()
    }
}
