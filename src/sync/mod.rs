//! Atomics, locks and one-time values: the only place that names the primitives, so that loom can stand in.

mod cell;
mod deferred;
mod hands;
mod lock;
mod stack;
mod startup;
pub mod wide;

pub use crossbeam_utils::CachePadded;
pub use deferred::Deferred;
pub use hands::{Hands, InHand};
pub use lock::{Fork, Guard, Lock, Park};
pub use stack::Stack;
pub use startup::{Phase, Startup};

/// The atomics of protocols that loom models. Descriptors of static size use `core::sync::atomic` themselves:
/// loom's have another size and no `const` constructor.
pub mod atomic {
    #[cfg(not(loom))]
    pub use core::sync::atomic::*;
    #[cfg(loom)]
    pub use loom::sync::atomic::*;
}
