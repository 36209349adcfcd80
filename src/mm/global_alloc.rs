//! An instance as Rust's allocator: `#[global_allocator] static HEAP: Mm<Kernel> = Mm::new(Kernel);`
#![allow(unsafe_code)]

use core::alloc::{GlobalAlloc, Layout};

use super::{Mm, TINY};
use crate::machine::Machine;
use crate::slab::classes::class_of_layout;

// SAFETY: 1. blocks are at least as long and as aligned as the layout says and nobody else's until they are given back;
// 2. no method unwinds.
unsafe impl<M: Machine> GlobalAlloc for Mm<M> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.alloc_aligned(layout.size(), layout.align(), false)
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.alloc_aligned(layout.size(), layout.align(), true)
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's condition: the layout is the allocation's.
        unsafe { self.free_sized(block, layout.size(), layout.align()) }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let class = |size| if TINY { 0 } else { class_of_layout(size, layout.align()) };
        let (old, new) = (class(layout.size()), class(size));
        // A block's class is told by its layout when it is freed, so a small one stays only where that stays true.
        if old == new && old != 0 {
            return block;
        }
        if old == 0 && new == 0 && (layout.align() <= 8 || layout.align() == 16 && size >= 16) {
            // SAFETY: the caller's condition.
            return unsafe { self.realloc(block, size) };
        }
        let moved = self.alloc_aligned(size, layout.align(), false);
        if !moved.is_null() {
            // SAFETY: both blocks are live and distinct, and at least the smaller size long.
            unsafe {
                core::ptr::copy_nonoverlapping(block, moved, layout.size().min(size));
                self.free_sized(block, layout.size(), layout.align());
            }
        }
        moved
    }
}
