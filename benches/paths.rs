//! The in-process paths by criterion: what one call costs, without the rest of a process around it (`cargo bench`).
//!
//! Each group runs slabwright as a Rust program has it, inlined with the layouts known, and the C library's `malloc`;
//! for blocks of 64 bytes also the least that a cache of the thread can cost. Then all of it starts once more with the
//! shared library preloaded, for the C interface, called through the same symbols as the C library's was. Whole
//! programs are compared by `cargo xtask bench`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::env;
use std::hint::black_box;
use std::path::Path;
use std::process::Command;

use criterion::{Bencher, Criterion, criterion_group};
use slabwright::Slabwright;
use slabwright::kernel::{Cache, Gfp, PageRun, PerCpu, SlabFlags};
use thread_cache::ThreadCache;

/// Blocks that live at a time in the groups with many.
const LIVE: usize = 1000;

#[path = "rust/src/thread_cache.rs"]
mod thread_cache;

const SMALL: Layout = Layout::new::<[u64; 8]>();
const SIZES: [usize; 7] = [16, 64, 1000, 8000, 40 << 10, 1 << 20, 16 << 20];
/// Whether what was allocated last is freed first.
const ORDERS: [(&str, bool); 2] = [("last in, first out", true), ("first in, first out", false)];

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

/// What the system's calls come to: the C library, or what was preloaded.
fn system() -> &'static str {
    if env::var_os("LD_PRELOAD").is_some() { "preloaded" } else { "system" }
}

fn inlined(c: &mut Criterion) {
    let mut group = c.benchmark_group("pair");
    for size in SIZES {
        group.bench_function(format!("{size} bytes, slabwright"), pair(&Slabwright, layout(size)));
    }
    group.bench_function("64 bytes, a cache of the thread", pair(&ThreadCache, SMALL));
    group.finish();
    let mut group = c.benchmark_group("1000 of 64 bytes");
    for (name, last_first) in ORDERS {
        group.bench_function(format!("{name}, slabwright"), many(&Slabwright, last_first));
    }
    group.finish();
    let mut group = c.benchmark_group("doubled to 64 MiB");
    group.bench_function("slabwright", growth(&Slabwright, 64 << 20));
    group.finish();
}

fn called(c: &mut Criterion) {
    let mut group = c.benchmark_group("pair");
    for size in SIZES {
        group.bench_function(format!("{size} bytes, {}", system()), pair(&System, layout(size)));
    }
    group.finish();
    let mut group = c.benchmark_group("1000 of 64 bytes");
    for (name, last_first) in ORDERS {
        group.bench_function(format!("{name}, {}", system()), many(&System, last_first));
    }
    group.finish();
    let mut group = c.benchmark_group("doubled to 64 MiB");
    group.bench_function(system(), growth(&System, 64 << 20));
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

criterion_group!(here, inlined, called, kernel_calls);
criterion_group!(preloaded, called);

/// Runs this program again on the shared library, which is built first.
fn run_preloaded() {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target directory");
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--release", "--package", "slabwright-cabi", "--target-dir"]).arg(target);
    assert!(
        build.current_dir(env!("CARGO_MANIFEST_DIR")).status().expect("cargo runs").success(),
        "the library is built"
    );
    let mut again = Command::new(env::current_exe().expect("a path of this program"));
    again.args(env::args_os().skip(1)).env("LD_PRELOAD", target.join("release/libslabwright.so"));
    assert!(again.status().expect("this program runs").success(), "it runs preloaded too");
}

fn main() {
    if env::var_os("LD_PRELOAD").is_some() {
        preloaded();
    } else {
        here();
        run_preloaded();
    }
    Criterion::default().configure_from_args().final_summary();
}
