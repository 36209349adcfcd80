//! The in-process paths by criterion: what one call costs, without the rest of a process around it (`cargo bench`).
//!
//! Each group runs slabwright as a Rust program has it, inlined with the layouts known, and the C library's `malloc`, or whatever is
//! preloaded, called through its symbol; for blocks of 64 bytes also the least that a cache of the thread can cost. Whole programs are
//! compared by `cargo xtask bench`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;

use criterion::{Bencher, Criterion, criterion_group, criterion_main};
use slabwright::Slabwright;
use slabwright::kernel::{Cache, Gfp, PageRun, PerCpu, SlabFlags};

/// Blocks that live at a time in the groups with many.
const LIVE: usize = 1000;

const SMALL: Layout = Layout::new::<[u64; 8]>();

/// A list of free blocks of one size for each thread and nothing else: the bound that a thread-local allocator comes near.
struct ThreadCache;

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

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).expect("a size of the bench")
}

/// A block allocated and freed.
fn pair<A: GlobalAlloc>(heap: &A, layout: Layout) -> impl FnMut(&mut Bencher) {
    move |b| {
        b.iter(|| {
            // SAFETY: no layout here is of size 0, and blocks are freed with theirs.
            unsafe { heap.dealloc(black_box(heap.alloc(layout)), layout) };
        });
    }
}

/// Many blocks allocated, then freed, the last one first or the first one.
fn many<A: GlobalAlloc>(heap: &A, last_first: bool) -> impl FnMut(&mut Bencher) {
    let mut blocks = vec![std::ptr::null_mut(); LIVE];
    move |b| {
        b.iter(|| {
            // SAFETY: as in `pair`.
            unsafe {
                blocks.iter_mut().for_each(|block| *block = heap.alloc(SMALL));
                if last_first {
                    blocks.iter().rev().for_each(|block| heap.dealloc(*block, SMALL));
                } else {
                    blocks.iter().for_each(|block| heap.dealloc(*block, SMALL));
                }
            }
        });
    }
}

/// A block that doubles until it is `to` bytes long, and is not written to.
fn growth<A: GlobalAlloc>(heap: &A, to: usize) -> impl FnMut(&mut Bencher) {
    move |b| {
        b.iter(|| {
            // SAFETY: as in `pair`.
            unsafe {
                let (mut block, mut size) = (heap.alloc(layout(64)), 64);
                while size < to {
                    block = black_box(heap.realloc(block, layout(size), 2 * size));
                    size *= 2;
                }
                heap.dealloc(block, layout(size));
            }
        });
    }
}

fn heap(c: &mut Criterion) {
    let mut group = c.benchmark_group("pair");
    for size in [16, 64, 1000, 8000, 40 << 10, 1 << 20, 16 << 20] {
        group.bench_function(format!("{size} bytes, slabwright"), pair(&Slabwright, layout(size)));
        group.bench_function(format!("{size} bytes, system"), pair(&System, layout(size)));
    }
    group.bench_function("64 bytes, a cache of the thread", pair(&ThreadCache, SMALL));
    group.finish();
    let mut group = c.benchmark_group("1000 of 64 bytes");
    for (name, last_first) in [("last in, first out", true), ("first in, first out", false)] {
        group.bench_function(format!("{name}, slabwright"), many(&Slabwright, last_first));
        group.bench_function(format!("{name}, system"), many(&System, last_first));
    }
    group.finish();
    let mut group = c.benchmark_group("doubled to 64 MiB");
    group.bench_function("slabwright", growth(&Slabwright, 64 << 20));
    group.bench_function("system", growth(&System, 64 << 20));
    group.finish();
}

fn kernel_calls(c: &mut Criterion) {
    let mut group = c.benchmark_group("kernel calls");
    let cache = Cache::<[u64; 8]>::create("bench", SlabFlags::default()).expect("a cache");
    group.bench_function("kmem_cache_alloc, kmem_cache_free", |b| {
        b.iter(|| drop(black_box(cache.insert([0; 8], Gfp::KERNEL))));
    });
    for order in [0, 3, 9] {
        group.bench_function(format!("alloc_pages, __free_pages, order {order}"), |b| {
            b.iter(|| drop(black_box(PageRun::alloc(Gfp::KERNEL, order))));
        });
    }
    let counter = PerCpu::alloc(0u64).expect("per-CPU data");
    group.bench_function("this_cpu_add", |b| b.iter(|| counter.add(black_box(1))));
    group.finish();
}

criterion_group!(paths, heap, kernel_calls);
criterion_main!(paths);
