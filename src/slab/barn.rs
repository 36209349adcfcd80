//! The barn: a node's stock of full and empty sheaves of one cache.
//!
//! Giving or taking a sheaf is O(1) under a short lock: a free on another CPU than the allocation's costs one exchange per
//! sheaf, not one per object (arrays that are copied instead cost 2–4 ns an object).

use super::sheaf::Sheaf;
use crate::machine::no_sheaf;

/// Full sheaves kept, and empty ones, at most (the kernel's `MAX_FULL_SHEAVES`).
const LIMIT: u32 = 10;

/// A stack of sheaves linked through their sentinel slots.
struct Stack {
    head: usize,
    len: u32,
    /// Least length since the last [`Barn::idle`]: so many were not needed.
    low: u32,
}

/// Full and empty sheaves. Guarded by the lock around it.
pub struct Barn {
    full: Stack,
    empty: Stack,
}

impl Stack {
    const NEW: Stack = Stack { head: 0, len: 0, low: 0 };

    fn push(&mut self, mut sheaf: Sheaf) -> Result<(), Sheaf> {
        if self.len >= LIMIT {
            return Err(sheaf);
        }
        sheaf.set_link(self.head);
        self.head = sheaf.into_word();
        self.len += 1;
        Ok(())
    }

    #[allow(unsafe_code)]
    fn pop(&mut self, capacity: u16) -> Option<Sheaf> {
        if self.head == 0 {
            return None;
        }
        debug_assert_ne!(self.head, no_sheaf());
        // SAFETY: `head` was given up by `into_word` in `push`.
        let mut sheaf = unsafe { Sheaf::from_word(self.head, capacity) }?;
        self.head = sheaf.take_link();
        self.len -= 1;
        self.low = self.low.min(self.len);
        Some(sheaf)
    }
}

impl Barn {
    /// An empty barn.
    pub const fn new() -> Barn {
        Barn { full: Stack::NEW, empty: Stack::NEW }
    }

    /// Keeps a sheaf with objects; gives it back where the barn has enough.
    pub fn put_full(&mut self, sheaf: Sheaf) -> Result<(), Sheaf> {
        debug_assert!(!sheaf.is_empty());
        self.full.push(sheaf)
    }

    /// Keeps an empty sheaf; gives it back where the barn has enough.
    pub fn put_empty(&mut self, sheaf: Sheaf) -> Result<(), Sheaf> {
        debug_assert!(sheaf.is_empty());
        self.empty.push(sheaf)
    }

    /// A sheaf with objects.
    pub fn take_full(&mut self, capacity: u16) -> Option<Sheaf> {
        self.full.pop(capacity)
    }

    /// An empty sheaf.
    pub fn take_empty(&mut self, capacity: u16) -> Option<Sheaf> {
        self.empty.pop(capacity)
    }

    /// How many sheaves with objects, and empty ones, lay here all the time since the last call.
    pub fn idle(&mut self) -> (u32, u32) {
        let idle = (self.full.low, self.empty.low);
        self.full.low = self.full.len;
        self.empty.low = self.empty.len;
        idle
    }

    /// Sheaves with objects, and empty ones.
    pub fn len(&self) -> (u32, u32) {
        (self.full.len, self.empty.len)
    }

    /// The words of the sheaves with objects. They must not change meanwhile; each sentinel holds a link, not 0.
    pub fn full_words(&self, capacity: u16) -> impl Iterator<Item = usize> {
        let mut at = self.full.head;
        core::iter::from_fn(move || {
            if at == 0 {
                return None;
            }
            let word = at;
            at = super::sheaf::link(word, capacity);
            Some(word)
        })
    }
}

impl Default for Barn {
    fn default() -> Barn {
        Barn::new()
    }
}
