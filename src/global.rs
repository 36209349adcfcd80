//! (under construction)

/// The process's allocator.
pub struct Slabwright;
