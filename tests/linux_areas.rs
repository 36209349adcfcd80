//! Big blocks under several threads, with forks in between, in each way that a process can move memory: contents stay,
//! no block is handed out twice, of two frees of a block one is refused. And requests that cannot be served, or hardly.
#![cfg(all(target_os = "linux", target_arch = "x86_64", feature = "sim"))]
#![allow(clippy::undocumented_unsafe_blocks)] // the calls under test, on memory of the test's own

use std::sync::{Barrier, Mutex};
use std::thread;

use slabwright::error::Defect;
use slabwright::machine::Frames;
use slabwright::machine::linux::{self, Linux};
use slabwright::mm::Mm;
use slabwright::page::Kind;
use slabwright::types::PAGE_SIZE;
use slabwright::vmalloc::FreeError;
use slabwright::zone::Cost;

static MM: Mm<Linux> = Mm::new(Linux);
/// The counts and the ways of moving are the process's.
static ALONE: Mutex<()> = Mutex::new(());

const MIB: usize = 1 << 20;
const THREADS: u64 = 4;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }

    /// Beyond 2 MiB, mostly small: all of it is written and read.
    fn size(&mut self) -> usize {
        let most = if self.below(8) == 0 { 40 } else { 8 };
        2 * MIB + 1 + self.below(most * MIB)
    }
}

/// A block and what it holds: a word of its own in every `step` bytes.
struct Block {
    at: *mut u8,
    size: usize,
    seed: usize,
    step: usize,
}

unsafe impl Send for Block {}

impl Block {
    fn new(random: &mut Random) -> Block {
        let (size, zero) = (random.size(), random.below(2) == 0);
        let at = if zero { MM.alloc_zeroed(size) } else { MM.alloc(size) };
        assert!(!at.is_null());
        let step = if random.below(3) == 0 { 16 * PAGE_SIZE } else { PAGE_SIZE };
        let block = Block { at, size, seed: random.below(usize::MAX), step };
        if zero {
            // A word at another place in each page.
            let word = |page: usize| at.wrapping_add(page * PAGE_SIZE + page % 511 * 8).cast::<u64>();
            assert!((0..size / PAGE_SIZE).all(|page| unsafe { word(page).read() } == 0), "calloc of {size}");
        }
        block.fill(0);
        block
    }

    fn words(&self) -> impl Iterator<Item = (*mut usize, usize)> {
        let (at, seed) = (self.at, self.seed);
        (0..self.size & !7).step_by(self.step).map(move |place| (at.wrapping_add(place).cast(), place ^ seed))
    }

    fn fill(&self, from: usize) {
        self.words().skip(from.div_ceil(self.step)).for_each(|(word, value)| unsafe { word.write(value) });
    }

    fn check(&self) {
        for (word, value) in self.words() {
            assert_eq!(unsafe { word.read() }, value, "a word of {:p}, {} bytes", self.at, self.size);
        }
    }

    fn resize(&mut self, size: usize) {
        let at = unsafe { MM.realloc(self.at, size) };
        assert!(!at.is_null());
        let old = self.size;
        (self.at, self.size) = (at, size.min(old));
        self.check();
        self.size = size;
        self.fill(old.min(size));
    }

    fn free(self) {
        self.check();
        unsafe { MM.free(self.at) };
    }
}

fn work(seed: u64, steps: usize, shared: &Mutex<Option<Block>>) {
    let mut random = Random(seed);
    let mut mine: Vec<Block> = Vec::new();
    for _ in 0..steps {
        let which = random.below(3);
        match random.below(8) {
            0..3 if mine.len() < 3 => mine.push(Block::new(&mut random)),
            0..6 if which < mine.len() => mine[which].resize(random.size()),
            6 if which < mine.len() => mine.swap_remove(which).free(),
            _ => {
                // A block goes to whichever thread comes next.
                let given = mine.pop();
                let taken = std::mem::replace(&mut *shared.lock().unwrap(), given);
                mine.extend(taken);
            }
        }
    }
    mine.into_iter().for_each(Block::free);
}

/// Forks while others are at it. The child finds its own copy of `block`, and all it does stays its own.
fn fork_in_between(block: &mut Block, random: &mut Random) {
    let other = random.size();
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let intact = |block: &Block| block.words().all(|(word, value)| unsafe { word.read() } == value);
        let mut good = intact(block);
        // All but the first pages may be shared with the parent, which therefore cannot be moved.
        let size = block.size;
        block.at = unsafe { MM.realloc(block.at, size + other) };
        good &= !block.at.is_null() && intact(block);
        let more = MM.alloc_zeroed(other);
        good &= !more.is_null() && (0..other).step_by(PAGE_SIZE).all(|at| unsafe { more.add(at).read() } == 0);
        block.seed ^= 0x5a5a;
        block.fill(0);
        unsafe {
            MM.free(more);
            MM.free(block.at);
            libc::_exit(i32::from(!good));
        }
    }
    let mut status = 0;
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "the child's copy, or what it made of it");
    block.check();
    block.resize(random.size());
}

/// Two threads free the same block; one of them is told.
fn free_twice(random: &mut Random) {
    for _ in 0..150 {
        let size = random.size() / 2 + MIB;
        let block = MM.alloc(size);
        if random.below(2) == 0 {
            unsafe { block.write_bytes(1, MIB) };
        }
        let (barrier, at) = (Barrier::new(2), block.expose_provenance());
        let free = || {
            barrier.wait();
            unsafe { MM.vmalloc().free(&Linux, MM.pages(), std::ptr::with_exposed_provenance_mut(at), true) }
        };
        let mut results = thread::scope(|scope| {
            let other = scope.spawn(free);
            [free(), other.join().unwrap()]
        });
        results.sort_by_key(Result::is_err);
        assert_eq!(results, [Ok(()), Err(FreeError::Defect(Defect::DoubleFree))]);
    }
}

/// Blocks one behind the other grow beyond the next one, so that they have to move: in so many rounds one did.
fn outgrow_neighbours(random: &mut Random) {
    let moved = || MM.vmalloc().stats(&Linux).moved;
    let before = moved();
    for _ in 0..20 {
        let mut blocks: Vec<Block> = (0..4).map(|_| Block::new(random)).collect();
        blocks.iter_mut().for_each(|block| block.resize(block.size + 40 * MIB));
        blocks.into_iter().for_each(Block::free);
        if moved() > before {
            return;
        }
    }
    panic!("idle test: {:?}", MM.vmalloc().stats(&Linux));
}

#[test]
fn threads_in_every_way_of_moving() {
    let _alone = ALONE.lock().unwrap();
    assert!(MM.start());
    let done = || unsafe { MM.fork_done() };
    linux::fork::install(|needs_all| MM.fork_prepare(needs_all), done, done);
    for (mode, (uffd, mremap)) in [(true, true), (false, true), (false, false)].into_iter().enumerate() {
        linux::allow_moves(uffd, mremap);
        let shared = Mutex::new(None);
        let mut random = Random(0x5eed + mode as u64);
        let mut own = Block::new(&mut random);
        thread::scope(|scope| {
            let shared = &shared;
            for seed in 1..=THREADS {
                scope.spawn(move || work(seed * 0x9e37_79b9 + mode as u64, 40, shared));
            }
            for _ in 0..6 {
                fork_in_between(&mut own, &mut random);
            }
        });
        own.free();
        shared.into_inner().unwrap().into_iter().for_each(Block::free);
        free_twice(&mut random);
        outgrow_neighbours(&mut random);
        assert!(MM.verify().is_ok(), "{:?}", MM.verify());
        let figures = MM.vmalloc().stats(&Linux);
        assert_eq!((figures.busy, figures.busy_bytes), (0, 0), "mode {mode}: {figures:?}");
        MM.trim();
        let figures = MM.vmalloc().verify(&Linux).unwrap();
        assert_eq!((figures.retained, figures.charged), (0, 0), "mode {mode}: {figures:?}");
    }
    linux::allow_moves(true, true);
    let figures = MM.vmalloc().stats(&Linux);
    assert!(figures.donated > 10 && figures.copied > 0, "idle test: {figures:?}");
}

#[test]
fn requests_beyond_all_reason_are_refused_and_change_nothing() {
    let _alone = ALONE.lock().unwrap();
    assert!(MM.start());
    let block = MM.alloc(5 * MIB);
    unsafe { block.write_bytes(9, 5 * MIB) };
    let before = MM.vmalloc().stats(&Linux);
    for shift in 44..64 {
        for size in [1usize << shift, (1 << shift) + 1, (1usize << shift).wrapping_mul(2).wrapping_sub(1)] {
            if size < 1 << 44 {
                continue;
            }
            assert!(MM.alloc(size).is_null(), "{size:#x}");
            assert!(MM.alloc_zeroed(size).is_null());
            assert!(MM.alloc_aligned(size, 2 * MIB, false).is_null());
            assert!(unsafe { MM.realloc(block, size) }.is_null());
            // The alignment is more than any window has.
            assert!(MM.alloc_aligned(3 * MIB, 1 << shift, false).is_null());
        }
    }
    let after = MM.vmalloc().stats(&Linux);
    assert_eq!((after.busy, after.busy_bytes, after.charged), (before.busy, before.busy_bytes, before.charged));
    assert!((0..5 * MIB).step_by(511).all(|at| unsafe { block.add(at).read() } == 9));
    unsafe { MM.free(block) };
    MM.vmalloc().verify(&Linux).unwrap();
}

#[test]
fn blocks_larger_than_the_machine_serve_what_is_touched() {
    let _alone = ALONE.lock().unwrap();
    assert!(MM.start());
    let memory = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) } as usize * PAGE_SIZE;
    let size = 2 * memory;
    let block = MM.alloc(size);
    if block.is_null() {
        // Strict accounting, or a limit on addresses: refused it must be, by NULL and no other way.
        assert!(!MM.alloc(5 * MIB).is_null());
        return;
    }
    for at in (0..size).step_by(size / 100) {
        unsafe { block.add(at).write(1) };
    }
    let grown = unsafe { MM.realloc(block, size + size / 2) };
    assert!(!grown.is_null());
    assert!((0..size).step_by(size / 100).all(|at| unsafe { grown.add(at).read() } == 1));
    unsafe { MM.free(grown) };
    MM.trim();
    MM.vmalloc().verify(&Linux).unwrap();
}

#[test]
fn alignments_up_to_a_gigabyte() {
    let _alone = ALONE.lock().unwrap();
    assert!(MM.start());
    let mut live = Vec::new();
    for shift in 12..=30 {
        for size in [1, PAGE_SIZE + 1, 2 * MIB - 1, 2 * MIB + 1, 9 * MIB] {
            let (align, zero) = (1usize << shift, shift % 2 == 0);
            let at = MM.alloc_aligned(size, align, zero);
            assert!(!at.is_null() && at.addr().is_multiple_of(align), "{size} bytes at {align:#x}: {at:p}");
            assert!(!zero || (0..size).step_by(997).all(|i| unsafe { at.add(i).read() } == 0));
            unsafe {
                at.write(1);
                at.add(size - 1).write(2);
                assert!(MM.usable_size(at) >= size);
            }
            live.push((at, size));
            if live.len() == 20 {
                // The first of them grows to another place, or stays.
                let (at, size) = live.swap_remove(0);
                let at = unsafe { MM.realloc(at, size + 3 * MIB) };
                assert_eq!(unsafe { at.add(size - 1).read() }, 2);
                unsafe { MM.free(at) };
            }
        }
    }
    for (at, size) in live {
        assert_eq!(unsafe { at.add(size - 1).read() }, 2);
        unsafe { MM.free(at) };
    }
    MM.vmalloc().verify(&Linux).unwrap();
}

/// Runs above 256 KiB are kept by classes as long as nothing but addresses is kept; what became a block then is freed
/// when that is over.
#[test]
fn large_runs_that_cost_addresses_and_then_memory() {
    let _alone = ALONE.lock();
    let mut random = Random(7);
    let mut live: Vec<(*mut usize, usize)> = Vec::new();
    let check = |(at, size): (*mut usize, usize)| unsafe {
        assert_eq!(at.read(), at.addr() ^ size, "the start of {size} bytes at {at:?}");
        MM.free(at.cast());
    };
    let mut round = |live: &mut Vec<(*mut usize, usize)>, touched: bool| {
        let size = 300 * 1024 + random.below(2 * MIB - 300 * 1024);
        let at = MM.alloc(size);
        assert!(!at.is_null());
        let pages = if touched { size / PAGE_SIZE } else { 0 };
        (0..pages).for_each(|page| unsafe { at.add(page * PAGE_SIZE).write(1) });
        let word = at.cast::<usize>();
        unsafe { word.write(word.addr() ^ size) };
        live.push((word, size));
        if live.len() > 40 {
            check(live.swap_remove(random.below(40)));
        }
    };
    (0..4000).for_each(|_| round(&mut live, false));
    MM.verify().unwrap();
    assert_eq!(MM.pages().cost(), Cost::Little);
    let kind = |at: *mut usize| Linux.page(Linux.pfn(at.cast()).unwrap()).kind();
    assert!(live.iter().any(|(at, _)| kind(*at) == Kind::Tagged), "there are blocks of classes");
    let mut more = 0;
    while MM.pages().cost() == Cost::Little {
        more += 1;
        assert!(more < 400, "what is written to is noticed");
        // The old ones stay for now.
        let mut fresh = Vec::new();
        round(&mut fresh, true);
        live.append(&mut fresh);
    }
    MM.verify().unwrap();
    // They do not lie in sheaves then.
    let free_all = |live: &mut Vec<(*mut usize, usize)>| {
        let blocks = core::mem::take(live);
        blocks.iter().copied().for_each(check);
        assert!(blocks.iter().all(|(at, _)| kind(*at) != Kind::Tagged), "dear runs are kept by classes");
    };
    free_all(&mut live);
    (0..200).for_each(|_| round(&mut live, true));
    MM.verify().unwrap();
    free_all(&mut live);
    MM.verify().unwrap();
}
