//! The inlined paths of a Rust program, for `benches/step.c` to count their instructions between two marks.

use std::alloc::{GlobalAlloc, Layout};
use std::arch::asm;
use std::ffi::CStr;
use std::hint::black_box;
use std::ptr;

use slabwright::Slabwright;

/// Stops for whoever traces this: what follows is `name`, up to the next mark, which has none.
#[inline(always)]
fn mark(name: *const i8) {
    // SAFETY: a breakpoint; the tracer goes on after it.
    unsafe { asm!("int3", in("rax") name) }
}

#[inline(always)]
fn counted<T>(name: &CStr, work: impl FnOnce() -> T) -> T {
    mark(name.as_ptr());
    let result = work();
    mark(ptr::null());
    result
}

fn main() {
    const SMALL: Layout = Layout::new::<[u64; 8]>();
    for _ in 0..20 {
        // SAFETY: the layout is of no size 0, and blocks are freed with it.
        unsafe {
            let block = counted(c"rust-alloc-64", || Slabwright.alloc(SMALL));
            let block = black_box(block);
            counted(c"rust-dealloc-64", || Slabwright.dealloc(block, SMALL));
        }
    }
}
