//! Threads pass objects through the rows of the process's machine; each object has a mark that says whether somebody
//! holds it, so that one handed out twice is seen at once. Used for both kinds of critical sections.

use std::alloc::{Layout, alloc_zeroed};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering::SeqCst};

#[path = "../suite/machine.rs"]
#[allow(dead_code)] // of the contract, only what sections do
mod machine;

use slabwright::machine::linux::Linux;
use slabwright::machine::{PerCpu, SHEAF_BYTES, SHEAF_SLOTS, Word, no_sheaf};

pub const OBJECTS: usize = 4000;
/// Objects a sheaf is filled with when it is refilled from the pool.
const BATCH: usize = 32;

/// The shared side: objects and empty sheaves that nobody has.
pub struct World {
    pub cache: u8,
    held: Vec<AtomicU8>,
    pool: Mutex<Vec<usize>>,
    empty: Mutex<Vec<usize>>,
    refused: AtomicBool,
    /// Objects that somebody who may not lock or allocate had left over, and how many.
    spilled: Vec<AtomicUsize>,
    spill: AtomicUsize,
}

fn object(index: usize) -> *mut u8 {
    std::ptr::without_provenance_mut((index + 1) * 16)
}

fn new_sheaf() -> usize {
    let layout = Layout::from_size_align(SHEAF_BYTES, SHEAF_BYTES).unwrap();
    unsafe { alloc_zeroed(layout) }.expose_provenance()
}

/// Objects in the sheaf whose top slot is at `word`, taken out of it; it is empty afterwards.
fn empty_out(word: usize) -> (usize, Vec<usize>) {
    let mut top = word;
    let mut out = Vec::new();
    loop {
        let value = unsafe { *std::ptr::with_exposed_provenance::<usize>(top) };
        if value == 0 {
            return (top, out);
        }
        out.push(value / 16 - 1);
        top -= size_of::<usize>();
    }
}

fn fill(mut word: usize, objects: impl Iterator<Item = usize>) -> usize {
    for index in objects {
        word += size_of::<usize>();
        assert_ne!(word % SHEAF_BYTES, 0, "overfilled");
        unsafe { *std::ptr::with_exposed_provenance_mut(word) = object(index) };
    }
    word
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

impl World {
    pub fn new(cache: u8) -> World {
        World {
            cache,
            held: (0..OBJECTS).map(|_| AtomicU8::new(0)).collect(),
            pool: Mutex::new((0..OBJECTS).collect()),
            empty: Mutex::new(Vec::new()),
            refused: AtomicBool::new(false),
            spilled: (0..OBJECTS).map(|_| AtomicUsize::new(0)).collect(),
            spill: AtomicUsize::new(0),
        }
    }

    fn take(&self, index: usize) {
        assert_eq!(self.held[index].swap(1, SeqCst), 0, "object {index} handed out twice");
    }

    fn give(&self, index: usize) {
        assert_eq!(self.held[index].swap(0, SeqCst), 1, "object {index} was not held");
    }

    /// Empties what the caller owns of sheaf `word` into the pool.
    fn retire(&self, word: usize) {
        if word == no_sheaf() {
            return;
        }
        let (bottom, objects) = empty_out(word);
        self.pool.lock().unwrap().extend(objects);
        self.empty.lock().unwrap().push(bottom);
    }

    /// Puts a sheaf with a random number of objects in place of what `word` has.
    fn exchange(&self, m: &Linux, word: Word, seed: &mut u64) {
        let Some(old) = m.read(word) else {
            self.refused.store(true, SeqCst);
            return;
        };
        let sheaf = self.empty.lock().unwrap().pop().unwrap_or_else(|| {
            // A small capacity is a sentinel placed high.
            new_sheaf() + (SHEAF_SLOTS - 1 - BATCH * 2) * size_of::<usize>()
        });
        let mut pool = self.pool.lock().unwrap();
        let count = (random(seed) as usize % BATCH).min(pool.len());
        let keep = pool.len() - count;
        let new = fill(sheaf, pool.drain(keep..));
        drop(pool);
        let done = unsafe { m.replace(word, old, new) };
        self.retire(if done { old } else { new });
    }

    pub fn run(&self, m: &Linux, rounds: usize, mut seed: u64) {
        let mut mine = Vec::new();
        for _ in 0..rounds {
            match random(&mut seed) % 64 {
                0 => self.exchange(m, Word::Main(self.cache), &mut seed),
                1 => self.exchange(m, Word::Spare(self.cache), &mut seed),
                n if n % 2 == 0 || mine.is_empty() => {
                    let got = unsafe { m.pop_again(self.cache) };
                    if !got.is_null() {
                        let index = got.addr() / 16 - 1;
                        self.take(index);
                        mine.push(index);
                    }
                }
                _ => {
                    let index = mine.pop().unwrap();
                    self.give(index);
                    if !unsafe { m.push_again(self.cache, object(index)) } {
                        self.take(index);
                        mine.push(index);
                        if mine.len() > 200 {
                            let rest = mine.drain(100..).inspect(|&index| self.give(index)).collect::<Vec<_>>();
                            self.pool.lock().unwrap().extend(rest);
                        }
                    }
                }
            }
        }
        for &index in &mine {
            self.give(index);
        }
        self.pool.lock().unwrap().extend(mine);
    }

    /// Takes what the rows hold of this cache back to the pool.
    pub fn drain(&self, m: &Linux) -> usize {
        let mut rows = 0;
        for cpu in 0..m.nr_cpus() {
            let mut found = Vec::new();
            let _ = m.drain_row(cpu, &mut |words| {
                rows += 1;
                for word in [Word::Main(self.cache), Word::Spare(self.cache)] {
                    found.push(std::mem::replace(&mut words[word.index()], no_sheaf()));
                }
            });
            found.into_iter().for_each(|word| self.retire(word));
        }
        rows
    }

    /// Every object is in the pool exactly once.
    pub fn check(&self) {
        let mut pool = self.pool.lock().unwrap().clone();
        pool.extend(self.spilled[..self.spill.load(SeqCst)].iter().map(|index| index.load(SeqCst)));
        pool.sort_unstable();
        assert!(pool.iter().copied().eq(0..OBJECTS), "{} objects in the pool", pool.len());
        assert!(self.held.iter().all(|held| held.load(SeqCst) == 0));
    }
}

/// `threads` threads at it, while another drains the rows under them; how many rows it drained.
pub fn storm(m: &Linux, cache: u8, threads: usize, rounds: usize) -> usize {
    let world = World::new(cache);
    let done = AtomicBool::new(false);
    let mut drains = 0;
    std::thread::scope(|scope| {
        let drainer = scope.spawn(|| {
            let mut drains = 0;
            while !done.load(SeqCst) {
                drains += world.drain(m);
                std::thread::sleep(std::time::Duration::from_micros(200));
            }
            drains
        });
        let workers: Vec<_> = (0..threads)
            .map(|n| {
                let world = &world;
                scope.spawn(move || world.run(m, rounds, 0x9e37_79b9 + n as u64 * 0x1234_5677))
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
        done.store(true, SeqCst);
        drains = drainer.join().unwrap();
    });
    // Twice: where a system call is made to fail, a row may be refused once.
    world.drain(m);
    world.drain(m);
    world.check();
    drains
}

/// The words of a fresh row, and each operation alone.
pub fn contract(m: &Linux, cache: u8) {
    let world = World::new(cache);
    unsafe {
        assert!(m.pop_again(cache).is_null());
        assert!(!m.push_again(cache, object(0)));
        for class in [0, cache] {
            assert!(m.pop_again(class).is_null());
            assert!(!m.push_again(class, object(0)));
        }
    }
    // One CPU for the whole of it: pinned.
    pin(m.cpu());
    machine::rows(m, cache);
    assert!(m.drain_row(usize::MAX, &mut |_| panic!("no such CPU")));
    drop(world);
}

fn pin(cpu: usize) {
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &set), 0);
    }
}

/// Nanoseconds of one pop and one push in turn, for the log.
#[allow(dead_code)] // not for the tests of processes
pub fn measure(m: &Linux, cache: u8) -> f64 {
    let sheaf = new_sheaf();
    while let Some(old) = m.read(Word::Main(cache)) {
        if unsafe { m.replace(Word::Main(cache), old, fill(sheaf, 0..100)) } {
            break;
        }
    }
    const ROUNDS: u32 = 2_000_000;
    let start = std::time::Instant::now();
    for _ in 0..ROUNDS {
        unsafe {
            let mut object = std::hint::black_box(m.pop(cache));
            if object.is_null() {
                object = m.pop_again(cache);
            }
            if !object.is_null() && !m.push(cache, object) {
                m.push_again(cache, object);
            }
        }
    }
    f64::from(start.elapsed().as_nanos() as u32) / f64::from(ROUNDS)
}

#[allow(dead_code)] // for the tests of processes
impl World {
    /// Pops objects and pushes them back, without allocating; how many. For signal handlers and children.
    pub fn touch(&self, m: &Linux, times: usize) -> usize {
        let mut done = 0;
        for _ in 0..times {
            let got = unsafe { m.pop_again(self.cache) };
            if got.is_null() {
                continue;
            }
            let index = got.addr() / 16 - 1;
            self.take(index);
            self.give(index);
            if !unsafe { m.push_again(self.cache, got) } {
                self.spilled[self.spill.fetch_add(1, SeqCst)].store(index, SeqCst);
            }
            done += 1;
        }
        done
    }

    /// Puts a sheaf with objects into the row of the current CPU.
    pub fn refill(&self, m: &Linux) {
        self.exchange(m, Word::Main(self.cache), &mut 12345);
    }

    /// Whether every row can be drained and no object is in two places.
    pub fn drain_in_child(&self, m: &Linux) -> bool {
        let mut seen = [false; OBJECTS];
        let mut ok = true;
        for cpu in 0..m.nr_cpus() {
            m.drain_row(cpu, &mut |words| {
                for word in [Word::Main(self.cache), Word::Spare(self.cache)] {
                    let mut top = words[word.index()];
                    loop {
                        let value = unsafe { *std::ptr::with_exposed_provenance::<usize>(top) };
                        if value == 0 {
                            break;
                        }
                        ok &= !std::mem::replace(&mut seen[value / 16 - 1], true);
                        top -= size_of::<usize>();
                    }
                }
            });
        }
        ok
    }
}
