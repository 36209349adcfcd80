//! Kernel stacks: mapped among the fixed addresses, each with an unmapped page below it, so that one which overflows
//! faults instead of overwriting what lies there. The processor then has no room to push that fault, which makes it a
//! double fault; that one has a task, and with it a stack, of its own
//! ([`fault::double_fault`](super::fault::double_fault)).
#![cfg(all(target_arch = "x86", feature = "i386"))]

use super::layout::{FixedAddress, MAX_CPUS, STACK_PAGES, fixed_address, virt_to_fix};
use super::paging;
use crate::paging::Flags;
use crate::types::{PAGE_SIZE, PhysAddr};

/// Bytes of a stack.
pub const STACK: usize = STACK_PAGES * PAGE_SIZE;

/// Index of the topmost page of a CPU's stack; indices go down in the address space.
const fn first(cpu: usize) -> usize {
    FixedAddress::StackBegin as usize + cpu * (STACK_PAGES + 1)
}

/// Maps `STACK` bytes at `physical` as the stack of `cpu`; the address that it begins at, downwards.
pub fn map(cpu: usize, physical: PhysAddr) -> usize {
    for page in 0..STACK_PAGES {
        let at = fixed_address(first(cpu) + page);
        paging::set_fixed(at, Some((physical.pfn().add((STACK_PAGES - 1 - page) as u32), Flags::KERNEL)));
    }
    fixed_address(first(cpu)) + PAGE_SIZE
}

/// The page below the stack of `cpu`, which is not mapped.
pub fn guard(cpu: usize) -> usize {
    fixed_address(first(cpu) + STACK_PAGES)
}

/// Whether `address` lies just below a stack.
pub fn is_guard(address: usize) -> bool {
    virt_to_fix(address).is_some_and(|index| (0..MAX_CPUS).any(|cpu| index == first(cpu) + STACK_PAGES))
}
