//! What can go wrong: refusals that a caller hears of, and defects in how the allocator was used.

use core::fmt;

/// Why an allocation was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AllocError {
    /// No memory within the limits (C: `ENOMEM`).
    NoMemory,
    /// A size, alignment or combination of flags that cannot be served (C: `EINVAL`).
    Invalid,
    /// What is asked for does not exist on this machine, e.g. two addresses for one hosted frame (C: `ENOTSUP`).
    Unsupported,
}

impl fmt::Display for AllocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AllocError::NoMemory => "out of memory",
            AllocError::Invalid => "invalid request",
            AllocError::Unsupported => "not supported by this machine",
        })
    }
}

impl core::error::Error for AllocError {}

/// A misuse that was found. The report names the address, the cache and this.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Defect {
    /// The object, run or area is free already.
    DoubleFree,
    /// An object that was free has lost its mark: it was freed twice and handed out in between, or written to while it
    /// was free.
    NotFree,
    /// The address was never handed out by this allocator.
    Foreign,
    /// The address lies inside a block but is not its start.
    Interior,
    /// The object belongs to another cache than the one it was given to.
    WrongCache,
    /// The order given on free is not the one allocated.
    WrongOrder,
    /// A cache was destroyed while objects were out.
    ObjectsRemain,
    /// A request that may sleep, made where sleeping is impossible.
    SleepingInAtomic,
    /// Temporary mappings that are not undone in the reverse order of their making.
    Nesting,
    /// The allocator's own data contradicts itself: something wrote where it should not.
    Corrupt,
}

impl Defect {
    /// The words of the report.
    pub const fn as_str(self) -> &'static str {
        match self {
            Defect::DoubleFree => "double free",
            Defect::NotFree => "double free, or write to a free object",
            Defect::Foreign => "free of a pointer that was never allocated",
            Defect::Interior => "free of a pointer into the middle of a block",
            Defect::WrongCache => "free to the wrong cache",
            Defect::WrongOrder => "free with the wrong order",
            Defect::ObjectsRemain => "cache destroyed with objects in use",
            Defect::SleepingInAtomic => "sleeping allocation in atomic context",
            Defect::Nesting => "temporary mapping out of order",
            Defect::Corrupt => "corrupted allocator data",
        }
    }
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
