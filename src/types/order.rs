//! Buddy orders.

use super::{PAGE_SHIFT, PAGE_SIZE};

/// The largest order the buddy system serves (the kernel's `MAX_PAGE_ORDER`): 4 MiB.
pub const MAX_ORDER: u8 = 10;
/// Number of orders, 0 to [`MAX_ORDER`].
pub const NR_ORDERS: usize = MAX_ORDER as usize + 1;
/// Order of a pageblock, the unit of mobility grouping and of a huge page: 2 MiB.
pub const PAGEBLOCK_ORDER: u8 = 9;
/// Pages of a pageblock.
pub const PAGEBLOCK_PAGES: u32 = 1 << PAGEBLOCK_ORDER;
/// Bytes of a pageblock.
pub const PAGEBLOCK_SIZE: usize = PAGE_SIZE << PAGEBLOCK_ORDER;

/// log2 of a number of pages, at most [`MAX_ORDER`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct Order(u8);

impl Order {
    /// One page.
    pub const ZERO: Order = Order(0);
    /// [`MAX_ORDER`].
    pub const MAX: Order = Order(MAX_ORDER);
    /// One pageblock.
    pub const PAGEBLOCK: Order = Order(PAGEBLOCK_ORDER);

    /// `None` above [`MAX_ORDER`].
    #[inline]
    pub const fn new(order: u8) -> Option<Order> {
        if order <= MAX_ORDER { Some(Order(order)) } else { None }
    }

    /// The smallest order that holds `pages` (at least one); `None` where none does.
    #[inline]
    pub const fn holding(pages: usize) -> Option<Order> {
        if pages <= 1 {
            return Some(Order(0));
        }
        let order = usize::BITS - (pages - 1).leading_zeros();
        if order <= MAX_ORDER as u32 { Some(Order(order as u8)) } else { None }
    }

    /// The number itself.
    #[inline]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// The number as an index into per-order tables.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Pages of a block of this order.
    #[inline]
    pub const fn pages(self) -> u32 {
        1 << self.0
    }

    /// Bytes of a block of this order.
    #[inline]
    pub const fn bytes(self) -> usize {
        1 << (PAGE_SHIFT + self.0 as u32)
    }

    /// The next larger order, `None` at [`MAX_ORDER`].
    #[inline]
    pub const fn up(self) -> Option<Order> {
        Order::new(self.0 + 1)
    }

    /// The next smaller order, `None` at zero.
    #[inline]
    pub const fn down(self) -> Option<Order> {
        if self.0 == 0 { None } else { Some(Order(self.0 - 1)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // rows: A4
    #[test]
    fn holding_is_the_smallest_that_fits() {
        for pages in 1..=1024usize {
            let order = Order::holding(pages).unwrap();
            assert!(order.pages() as usize >= pages);
            if let Some(down) = order.down() {
                assert!((down.pages() as usize) < pages);
            }
        }
        assert_eq!(Order::holding(1025), None);
        assert_eq!(Order::holding(usize::MAX), None);
        assert_eq!(Order::new(11), None);
    }
}
