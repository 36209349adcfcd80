//! slabwright: a memory allocator built like the Linux kernel's memory management.
//!
//! Small requests are served from per-CPU slab caches, page-sized ones from a zoned buddy system, big ones
//! from a vmalloc-style region that maps scattered frames through explicit page tables. The core is `no_std`
//! and generic over a [`machine::Machine`]; `machine::linux` hosts it as a malloc replacement.
//!
//! Layers, lowest first; a module imports its own layer's folder or a lower one (`tests/layering.rs` holds it):
//!
//! | layer | modules | what |
//! |---|---|---|
//! | L0 | [`config`], [`error`], [`gfp`], [`types`], [`paging`] | words, options, and page tables as data with their walker |
//! | L1 | [`sync`] | atomics, locks, once |
//! | L2 | [`page`] | page descriptors and the lists through them |
//! | L3 | [`machine`] | the seam: memory, mapping, CPU, report |
//! | L4 | [`zone`] | buddy system, zones, per-CPU page lists |
//! | L5 | [`slab`], [`vmalloc`] | siblings that never import each other |
//! | L6 | [`mm`] | routing by size, realloc, reclaim, verify, statistics |
//! | L7 | [`api`] | the kernel's calls as types that own what they stand for |
//! | L7 | `global` | the process's instance and its `GlobalAlloc` |
//! | L8 | `kernel` | the kernel's calls on that instance |
//!
//! Under `--cfg loom` only L0 to L3 are built: loom's primitives have no `const` constructors, which the upper layers
//! need to live in statics. `tests/loom` models the protocols.
#![no_std]
#![deny(unsafe_code)]

#[cfg(any(test, feature = "sim", loom))]
extern crate std;

#[cfg(not(loom))]
pub mod api;
pub mod config;
pub mod error;
pub mod gfp;
#[cfg(all(target_os = "linux", target_arch = "x86_64", not(loom)))]
pub mod global;
#[cfg(all(target_os = "linux", target_arch = "x86_64", not(loom)))]
pub mod kernel;
pub mod machine;
#[cfg(not(loom))]
pub mod mm;
pub mod page;
pub mod paging;
#[cfg(not(loom))]
pub mod slab;
pub mod sync;
pub mod types;
#[cfg(not(loom))]
pub mod vmalloc;
#[cfg(not(loom))]
pub mod zone;
#[cfg(all(target_os = "linux", target_arch = "x86_64", not(loom)))]
pub use global::Slabwright;

/// Its contents where this crate brings no `std` along, which has a panic handler of its own; the simulated machine
/// does.
#[cfg(not(any(test, feature = "sim", loom)))]
#[doc(hidden)]
#[macro_export]
macro_rules! without_std {
    ($($item:item)*) => { $($item)* };
}

/// See above.
#[cfg(any(test, feature = "sim", loom))]
#[doc(hidden)]
#[macro_export]
macro_rules! without_std {
    ($($item:item)*) => {};
}

/// The examples of the README are tests too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
