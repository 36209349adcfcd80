//! Functions that the shared library stands in front of: where the one is that a program would call without it.

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The address of such a function, looked up when it is first needed.
pub(crate) struct Next(AtomicUsize);

impl Next {
    pub(crate) const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// What `look_up` finds; 0 where there is none.
    pub(crate) fn or_look_up(&self, look_up: impl FnOnce() -> usize) -> usize {
        let known = self.0.load(Relaxed);
        if known != 0 {
            return known;
        }
        let found = look_up();
        self.0.store(found, Relaxed);
        found
    }
}
