//! Tests on small hostile worlds.
#![allow(unsafe_code, clippy::undocumented_unsafe_blocks)] // the calls under test, on memory of the test's own

mod behaviour;
mod damage;
mod model;
