//! Mappings at compile-time addresses.
#![cfg(all(target_arch = "x86", feature = "i386"))]

use super::layout::fix_to_virt;
use super::{paging, smp};
use crate::paging::Flags;
use crate::types::PhysAddr;

pub use super::layout::FixedAddress;

/// Maps the page at `physical` at fixed address `INDEX`, for all CPUs; returns its address. What was there is replaced;
/// another CPU may see that until its TLB is flushed, so a slot is reused only after [`clear_fixmap`].
pub fn set_fixmap<const INDEX: usize>(physical: PhysAddr, flags: Flags) -> usize {
    let at = fix_to_virt::<INDEX>();
    paging::set_fixed(at, Some((physical.pfn(), flags)));
    at
}

/// Takes the mapping at fixed address `INDEX` away, on all CPUs.
pub fn clear_fixmap<const INDEX: usize>() {
    let at = fix_to_virt::<INDEX>();
    paging::set_fixed(at, None);
    smp::on_others(super::cpu::invlpg, at);
}
