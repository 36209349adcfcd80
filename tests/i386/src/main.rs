//! A kernel on the i386 machine. It shows what it runs on, tests itself, and ends QEMU with status 33 where all is
//! well.
#![cfg_attr(target_arch = "x86", no_std, no_main)]

#[cfg(target_arch = "x86")]
extern crate alloc;

#[cfg(target_arch = "x86")]
mod kernel;
#[cfg(target_arch = "x86")]
mod runtime;
#[cfg(target_arch = "x86")]
#[path = "../../suite/mod.rs"]
#[allow(dead_code)] // hosts use more of it
mod suite;
#[cfg(target_arch = "x86")]
mod tests;

/// Refused by the compiler: there is no such fixed address. The tests build this and look for its words.
#[cfg(feature = "no-such-fixmap")]
const _: usize = slabwright::machine::i386::layout::fix_to_virt::<{ slabwright::machine::i386::layout::NR_FIXED }>();

/// On a host the workspace builds this in passing.
#[cfg(not(target_arch = "x86"))]
fn main() {
    eprintln!("this is a kernel for x86: `cargo xtask i386` builds and boots it");
}
