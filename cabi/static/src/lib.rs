//! libslabwright.a: the C ABI as a static library. Its Rust part is one object, so that a program gets all of the
//! malloc family from here or none of it; the operators new and delete are another (see `cabi/src/lib.rs`).
#![cfg_attr(not(test), no_std)]
#![cfg(not(test))]

#[path = "../../src/libc_abi.rs"]
mod libc_abi;
#[path = "../../src/process.rs"]
mod process;
