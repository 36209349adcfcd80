//! Addresses, orders and ranges as types of their own: a bare `usize` never means an address here. And what reports are
//! made of.

mod addr;
mod caller;
mod line;
mod order;
mod range;

pub use addr::{PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Pfn, PhysAddr, VirtAddr};
pub use caller::Caller;
pub use line::Line;
pub use order::{MAX_ORDER, NR_ORDERS, Order, PAGEBLOCK_ORDER, PAGEBLOCK_PAGES, PAGEBLOCK_SIZE};
pub use range::PfnRange;
