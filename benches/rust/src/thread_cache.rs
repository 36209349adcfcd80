//! The least that a thread-local allocator can cost, for what measures slabwright in Rust programs.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// A list of free blocks of one size for each thread and nothing else: the bound that a thread-local allocator comes
/// near.
pub struct ThreadCache;

thread_local! {
    /// The first free block; each holds the address of the next.
    static FREE: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
}

// SAFETY: blocks are the system's, all of `SMALL`, and in the list only while they are free.
unsafe impl GlobalAlloc for ThreadCache {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let block = FREE.get();
        if block.is_null() {
            // SAFETY: the caller's.
            return unsafe { System.alloc(layout) };
        }
        // SAFETY: a free block holds the next one's address.
        FREE.set(unsafe { block.cast::<*mut u8>().read() });
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, _: Layout) {
        // SAFETY: the block is free, large enough and aligned for an address.
        unsafe { block.cast::<*mut u8>().write(FREE.get()) };
        FREE.set(block);
    }
}
