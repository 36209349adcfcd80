//! The allocator against a naive oracle: `cargo test --features sim --test heap`.
//!
//! Operations are data ([`ops::Op`]), made from a seed; a [`world::World`] applies them to an `Mm` on any machine and
//! knows every live block: its alignment, that it overlaps no other, and all of its bytes. The whole heap is checked
//! after each step, and on simulated machines a [`census`] looks at every frame now and then. A failing run prints its
//! seed and its last operations; `HEAP_SEED=n` adds a run with that seed.
//!
//! | module | what |
//! |---|---|
//! | `random` | long random runs on machines that are small, hostile, hosted, bare, or the real one |
//! | `sizes` | every size and every alignment at the boundaries of classes, orders and layers |
//! | `failures` | the k-th system call fails, for every k |
//! | `nested` | handlers that interrupt every call of the machine, and requests that must not enter the system |
//! | `threads` | several threads on fewer and on more CPUs, blocks freed by others than made them |
//! | `corrupt` | what is broken on purpose is noticed |
//! | `misuse` | double, interior and foreign frees are reported, and nothing else happens |
//! | `idle` | what lies idle goes back, what is wanted again stays |
//! | `pressure` | a mark of pressure refuses nothing, and what is free goes back before more is taken |

extern crate alloc;

#[path = "../suite/mod.rs"]
#[allow(dead_code)] // other machines use more of it
mod suite;

use suite::{ops, walks, world};

mod census;
mod corrupt;
mod failures;
mod hosts;
mod idle;
mod misuse;
mod nested;
mod pressure;
mod random;
mod sizes;
mod threads;
