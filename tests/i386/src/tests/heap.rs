//! The suites that every machine runs: the contract of the seam, and the heap against its oracle, on one CPU and on
//! two.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use slabwright::gfp::Gfp;
use slabwright::machine::Mapping;
use slabwright::machine::i386::{I386, memory, paging, percpu, smp};
use slabwright::sync::Lock;
use slabwright::types::{Order, PAGE_SIZE, Pfn, PfnRange};

use super::{Test, free_pages};
use crate::kernel::HEAP;
use crate::suite::machine;
use crate::suite::ops::{Mix, Rng};
use crate::suite::walks::{MIX, around_every_order, every_alignment, every_size, starve, walk};
use crate::suite::world::{Block, Host, World};

pub const TESTS: &[Test] = &[
    ("J1 G10 G11 contract of the machine: rows", rows),
    ("A1 A6 A7 A8 contract of the machine: frames", frames),
    ("H1 N1 contract of the machine: mapping", mapping),
    ("J4 C11 contract of the machine: contexts", || machine::contexts(&I386)),
    ("F1 F2 G1 H1 D1 heap: random walks against the oracle", random_walks),
    ("D1 F1 H1 heap: sizes around every order", orders),
    ("F1 D1 H1 heap: every alignment to 4 MiB", alignments),
    ("F1 G1 H1 J1 heap: two CPUs walk and free each other's blocks", two_cpus),
];

/// Those that need megabytes.
pub const ROOMY: &[Test] =
    &[("F1 F3 F4 heap: every size to 2000", sizes), ("F1 G1 H1 heap: the same where memory is short", short_of_memory)];

impl Host for I386 {
    const SHARED: bool = true;
}

fn rows() {
    // Nobody else's row is touched, and nothing in a slow path of this CPU's.
    percpu::preempt_disable();
    machine::rows(&I386, 250);
    percpu::preempt_enable();
}

fn frames() {
    let block = HEAP.alloc_pages(Gfp::KERNEL, 4, None).expect("a block");
    machine::frames(&I386, PfnRange::block(block, Order::new(4).expect("an order")));
    free_pages(block, 4);
}

fn mapping() {
    let frames: Vec<Pfn> = (0..40).map(|_| HEAP.alloc_pages(Gfp::KERNEL, 0, None).expect("a page")).collect();
    // The end of the window, which the allocator uses last.
    let end = I386.window().end;
    let (at, other) = (end - (40 * PAGE_SIZE), end - (2 << 20));
    assert!(paging::translate(at).is_none() && paging::translate(other).is_none());
    machine::mapping(&I386, at, other, &frames);
    frames.into_iter().for_each(|pfn| free_pages(pfn, 0));
}

/// So many bytes, or what leaves room for the test itself, which lives on the same heap.
fn at_most(bytes: usize) -> usize {
    (bytes as u64).min(HEAP.stats().pages_free * PAGE_SIZE as u64 / 2) as usize
}

/// That `body` leaves nothing live behind.
fn leaves_nothing(body: impl FnOnce()) {
    HEAP.trim();
    let before = HEAP.stats();
    body();
    HEAP.trim();
    let after = HEAP.stats();
    let live = |stats: &slabwright::mm::Stats| (stats.slab.in_use_bytes, stats.vmalloc_bytes);
    assert_eq!(live(&after), live(&before));
}

/// Bytes of memory.
fn memory() -> u64 {
    u64::from(memory::frames()) * PAGE_SIZE as u64
}

fn random_walks() {
    leaves_nothing(|| {
        for seed in 1..=2 {
            if memory() >= 500 << 20 {
                walk(&HEAP, seed, 300, 16 << 20);
            } else {
                starve(&HEAP, seed, 500, at_most(8 << 20), false);
            }
        }
    });
}

fn short_of_memory() {
    leaves_nothing(|| {
        // All but 6 MiB of low memory is held.
        let mut held = Vec::with_capacity(1024);
        while HEAP.stats().pages_free > 1536
            && let Ok(block) = HEAP.alloc_pages(Gfp::KERNEL.with(Gfp::HIGHMEM).with(Gfp::NORETRY), 10, None)
        {
            held.push(block);
            if held.len() == held.capacity() {
                break;
            }
        }
        starve(&HEAP, 5, 300, 12 << 20, false);
        held.into_iter().for_each(|block| free_pages(block, 10));
    });
}

fn sizes() {
    leaves_nothing(|| every_size(&HEAP, 2000));
}

/// Walks that have tens of megabytes live.
fn with_much_memory(body: fn()) {
    if memory() >= 500 << 20 {
        leaves_nothing(body);
    } else {
        // The same operations, as far as they are served.
        leaves_nothing(|| starve(&HEAP, 9, 100, at_most(4 << 20), false));
    }
}

fn orders() {
    with_much_memory(|| around_every_order(&HEAP));
}

fn alignments() {
    with_much_memory(|| every_alignment(&HEAP));
}

/// Blocks on their way from one CPU to the other.
static EXCHANGE: Lock<Vec<Block>> = Lock::new(Vec::new());
static REFUSED: AtomicUsize = AtomicUsize::new(0);

fn work(seed: usize) {
    let mut world = World::new(&HEAP, 100 + seed as u64);
    world.verify_every = 0;
    world.cap = at_most(4 << 20) / 2;
    world.may_fail = true;
    let mut rng = Rng(seed as u64);
    for _ in 0..12 {
        world.run(40, &Mix { max_size: 1 << 20, ..MIX });
        for _ in 0..8 {
            if let Some(block) = world.take(rng.below(1000)) {
                EXCHANGE.lock(&I386).push(block);
            }
            let other = EXCHANGE.lock(&I386).pop();
            match other {
                Some(block) if rng.one_in(2) => world.free(block, rng.one_in(2)),
                Some(block) => world.add(block),
                None => {}
            }
        }
    }
    while let Some(block) = world.take(0) {
        world.free(block, false);
    }
    REFUSED.fetch_add(world.refused, Relaxed);
}

fn two_cpus() {
    leaves_nothing(|| {
        let two = smp::run(1, work, 1);
        assert_eq!(two, smp::online() > 1);
        work(2);
        smp::wait_idle(1);
        let mut world = World::new(&HEAP, 0);
        for block in core::mem::take(&mut *EXCHANGE.lock(&I386)) {
            world.free(block, false);
        }
        world.finish();
    });
}
