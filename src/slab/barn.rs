//! The barn: a node's stock of full and empty sheaves of one cache.
//!
//! Giving or taking a sheaf is O(1) under a short lock: a free on another CPU than the allocation's costs one exchange
//! per sheaf, not one per object (arrays that are copied instead cost 2–4 ns an object).
//!
//! Objects of full sheaves come out again in the reverse order of their frees, wherever they lie; those of slabs lowest
//! address first. Where what a program frees and makes goes up and down by less than the barn holds, as in a loop, that
//! saves the way through the slabs. Where it frees more, as when it drops a large structure, what it makes next would
//! lie scattered: a *flood*, in which all sheaves go back to the slabs, from the first for which there was no room to
//! the next request that finds none, some at a time ([`TOGETHER`]). (Frees that may not block begin one, too, but take
//! only their own sheaf along.) Measured (paired rounds in one process, ten times, time without floods in relation to
//! that with them): `documents` 1.00 to 1.3, mostly 1.1, more where others use the caches, too, as it is the program's
//! own code that waits less (a fifth); `tree` and blocks in turn 1.00. Rejected: one full sheaf at most, which does the
//! same, but 1000 blocks in turn take 1.35 times as long; four of them (no difference).
//!
//! Rejected: a CPU that only frees gives its full spare sheaf to the barn, too, where that has one at most
//! (`producer-consumer` 3.6 MiB in place of 4.3, but `server` takes 1.10 and `asymmetric` 1.07 of the time).

use super::sheaf::Sheaf;
use crate::machine::no_sheaf;

/// Full sheaves kept, and empty ones, at most (the kernel's `MAX_FULL_SHEAVES`), and objects that they have room for.
const LIMIT: u32 = 10;
const OBJECTS: u32 = 2560;
/// Sheaves that go back to the slabs together (`slab::window`): in a flood the barn keeps one less.
pub const TOGETHER: usize = 6;

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
    /// More came back than there is room for, and nobody asked for a full sheaf in vain since.
    flood: bool,
}

impl Stack {
    const NEW: Stack = Stack { head: 0, len: 0, low: 0 };

    fn push(&mut self, mut sheaf: Sheaf) -> Result<(), Sheaf> {
        if self.len >= LIMIT.min(OBJECTS / u32::from(sheaf.capacity())) {
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
        Barn { full: Stack::NEW, empty: Stack::NEW, flood: false }
    }

    /// Keeps a sheaf with objects; gives it back where the barn has enough: then a flood begins, in which that is less.
    pub fn put_full(&mut self, sheaf: Sheaf) -> Result<(), Sheaf> {
        debug_assert!(!sheaf.is_empty());
        if self.flood && self.full.len >= TOGETHER as u32 - 1 {
            return Err(sheaf);
        }
        let kept = self.full.push(sheaf);
        self.flood |= kept.is_err();
        kept
    }

    /// Whether sheaves with objects are to go back to the slabs.
    pub fn is_flooded(&self) -> bool {
        self.flood
    }

    /// Keeps an empty sheaf; gives it back where the barn has enough.
    pub fn put_empty(&mut self, sheaf: Sheaf) -> Result<(), Sheaf> {
        debug_assert!(sheaf.is_empty());
        self.empty.push(sheaf)
    }

    /// A sheaf with objects. Where there is none a flood is over.
    pub fn take_full(&mut self, capacity: u16) -> Option<Sheaf> {
        let sheaf = self.full.pop(capacity);
        self.flood &= sheaf.is_some();
        sheaf
    }

    /// A sheaf with objects that a flood is to take along.
    pub fn take_flooded(&mut self, capacity: u16) -> Option<Sheaf> {
        if self.flood { self.full.pop(capacity) } else { None }
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
