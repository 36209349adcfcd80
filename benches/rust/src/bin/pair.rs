//! Pairs of a Rust program on slabwright, inlined, or on what is preloaded, as a workload, and as its bound the same on
//! a cache of the thread. The two take turns, and of each the turn in the middle counts, so that what else runs
//! meanwhile does not.

use std::alloc::{GlobalAlloc, Layout};
use std::fs;
use std::hint::black_box;
use std::time::Instant;

#[cfg(feature = "slabwright")]
use slabwright::Slabwright as Heap;
#[cfg(not(feature = "slabwright"))]
use std::alloc::System as Heap;

#[path = "../thread_cache.rs"]
mod thread_cache;

const SMALL: Layout = Layout::new::<[u64; 8]>();
const TURNS: usize = 41;
const PAIRS: usize = 500_000;

/// Seconds of a turn.
fn turn<A: GlobalAlloc>(heap: &A) -> f64 {
    let begin = Instant::now();
    for _ in 0..PAIRS {
        // SAFETY: the layout is of no size 0, and blocks are freed with it.
        unsafe { heap.dealloc(black_box(heap.alloc(SMALL)), SMALL) };
    }
    begin.elapsed().as_secs_f64()
}

/// What all turns take where each takes as long as the one in the middle.
fn whole(mut turns: Vec<f64>) -> f64 {
    turns.sort_by(f64::total_cmp);
    turns[TURNS / 2] * TURNS as f64
}

fn main() {
    // The first block of the cache is the system's.
    turn(&thread_cache::ThreadCache);
    turn(&Heap);
    let turns = (0..TURNS).map(|_| (turn(&Heap), turn(&thread_cache::ThreadCache)));
    let (heap, bound): (Vec<f64>, Vec<f64>) = turns.unzip();
    let status = fs::read_to_string("/proc/self/status").expect("/proc is there");
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line of the kernel's");
        line.trim_end_matches("kB").trim().to_owned()
    };
    let time = whole(heap);
    println!("{time:.9} {time:.6} {} {}", kib("VmHWM:"), kib("VmRSS:"));
    println!("bound {:.9}", whole(bound));
}
