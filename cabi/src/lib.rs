//! libslabwright.so: the C ABI as a shared library, to be preloaded or linked. Marshalling only.
//!
//! The static library is a package of its own (`cabi/static`), for the sake of C++. An archive needs the operators new
//! and delete in a member that strongly refers to the C++ runtime and is linked into C++ programs only; a shared
//! library must refer to the runtime weakly, because it is preloaded into C programs too.
#![cfg_attr(not(test), no_std)]
#![cfg(not(test))]

#[cfg(target_env = "gnu")]
mod forks;
mod kernel;
mod libc_abi;
#[cfg(target_env = "gnu")]
mod loader;
#[cfg(target_env = "gnu")]
mod next;
mod operators;
mod process;
mod report;
