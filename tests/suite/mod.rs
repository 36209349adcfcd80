//! What runs on every machine: the suite of the heap and the contract of the machine. Included by `tests/heap`, by
//! `tests/machine.rs` and by the bare-metal image, so it needs no `std`.

pub mod machine;
pub mod ops;
pub mod walks;
pub mod world;
