//! Who made a request, for reports.

use core::panic::Location;

/// Who made a request.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub enum Caller {
    /// Nobody said.
    #[default]
    Unknown,
    /// The code that a call in C returns to.
    Code(usize),
    /// The place of a call in Rust.
    Source(&'static Location<'static>),
}

impl Caller {
    /// The caller of the function that this is called in, which must be `#[track_caller]`.
    #[inline]
    #[track_caller]
    pub fn here() -> Caller {
        Caller::Source(Location::caller())
    }
}
