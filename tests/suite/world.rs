//! The oracle: every live block and its bytes.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;

use slabwright::gfp::Gfp;
use slabwright::machine::Machine;
use slabwright::mm::Mm;

use super::ops::{Mix, Op, Rng};

/// A machine and what a test can make it do.
pub trait Host: Machine {
    /// Whether the heap under test serves the test, too: then something is always live on it.
    const SHARED: bool = false;
    /// Puts the thread on a CPU.
    fn set_cpu(&self, _cpu: usize) {}
    /// Moves the clock on.
    fn advance(&self, _ms: u64) {}
    /// Makes the `k`-th system call fail; 0 takes it back.
    fn fail_next(&self, _k: u64) {}
    /// Runs `body`, where entering the system panics.
    fn without_calls<R>(&self, body: impl FnOnce() -> R) -> R {
        body()
    }
    /// Looks at every frame; nobody else uses the heap meanwhile, and with `empty` nothing is live on it.
    fn census(_mm: &Mm<Self>, _empty: bool) {}
    /// Reports of misuse so far.
    fn reported(&self) -> Vec<String> {
        Vec::new()
    }
    /// A world of `seed` ends after `steps`, the last of which were `history`: to be told if that is for a failure.
    fn ended(_seed: u64, _steps: usize, _history: &VecDeque<Op>) {}
}

/// A live block.
pub struct Block {
    pub address: *mut u8,
    size: usize,
    align: usize,
    usable: usize,
    id: u64,
}

// SAFETY: a block is memory that whoever holds the value owns.
unsafe impl Send for Block {}

const CHUNK: usize = 256;

/// `CHUNK` bytes of the pattern of block `id` from byte `at`, a multiple of `CHUNK`.
fn pattern(id: u64, at: usize) -> [u8; CHUNK] {
    let mut bytes = [0; CHUNK];
    let base = id.wrapping_mul(0xa076_1d64_78bd_642f) ^ (at as u64).wrapping_mul(0xe703_7ed1_a0b4_28db);
    for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&base.wrapping_add((i as u64) << 56 | 0x5b).rotate_left(i as u32).to_le_bytes());
    }
    bytes
}

impl Block {
    fn bytes(&self) -> &[u8] {
        // SAFETY: the block is live, ours, and `usable` bytes long.
        unsafe { core::slice::from_raw_parts(self.address, self.usable) }
    }

    fn fill(&mut self) {
        // SAFETY: as in `bytes`, and borrowed exclusively.
        let bytes = unsafe { core::slice::from_raw_parts_mut(self.address, self.usable) };
        for (n, chunk) in bytes.chunks_mut(CHUNK).enumerate() {
            chunk.copy_from_slice(&pattern(self.id, n * CHUNK)[..chunk.len()]);
        }
    }

    /// Checks the first `len` bytes against the pattern of `id`.
    fn check(&self, id: u64, len: usize) {
        for (n, chunk) in self.bytes()[..len].chunks(CHUNK).enumerate() {
            let expected = &pattern(id, n * CHUNK)[..chunk.len()];
            if chunk != expected {
                let at = chunk.iter().zip(expected).position(|(a, b)| a != b).unwrap();
                let (got, wanted) = (chunk[at], expected[at]);
                panic!("byte {} of {self:?}: {got:#x}, not {wanted:#x}", n * CHUNK + at);
            }
        }
    }
}

impl core::fmt::Debug for Block {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Block { address, size, align, usable, id } = self;
        write!(f, "block {id} at {address:?}, size {size}, align {align}, usable {usable}")
    }
}

/// A heap under test with all that is live on it.
pub struct World<'m, M: Host> {
    pub mm: &'m Mm<M>,
    live: BTreeMap<usize, Block>,
    addresses: Vec<usize>,
    next_id: u64,
    /// Whether a request may be refused.
    pub may_fail: bool,
    /// Most bytes to have live.
    pub cap: usize,
    /// Steps between two checks of the whole heap; 0 for never.
    pub verify_every: usize,
    bytes: usize,
    steps: usize,
    seed: u64,
    history: VecDeque<Op>,
    /// Requests refused.
    pub refused: usize,
    /// Requests granted.
    pub granted: usize,
}

impl<'m, M: Host> World<'m, M> {
    pub fn new(mm: &'m Mm<M>, seed: u64) -> World<'m, M> {
        World {
            mm,
            live: BTreeMap::new(),
            addresses: Vec::new(),
            next_id: seed << 32,
            may_fail: false,
            cap: 8 << 20,
            verify_every: 1,
            bytes: 0,
            steps: 0,
            seed,
            history: VecDeque::new(),
            refused: 0,
            granted: 0,
        }
    }

    /// Applies `steps` random operations.
    pub fn run(&mut self, steps: usize, mix: &Mix) {
        let mut rng = Rng(self.seed);
        for _ in 0..steps {
            self.apply(Op::random(&mut rng, mix, self.mm.machine().nr_cpus()));
        }
    }

    /// Some live block.
    pub fn any(&self) -> Option<*mut u8> {
        self.live.values().next().map(|block| block.address)
    }

    pub fn live(&self) -> usize {
        self.addresses.len()
    }

    /// Applies one operation and checks what it did.
    pub fn apply(&mut self, op: Op) {
        self.history.push_back(op);
        if self.history.len() > 12 {
            self.history.pop_front();
        }
        self.steps += 1;
        let m = self.mm.machine();
        match op {
            Op::Alloc { size, align, zero } => {
                if size <= isize::MAX as usize && self.bytes.saturating_add(size) > self.cap {
                    return self.apply(Op::Free { pick: self.steps, sized: zero });
                }
                let address = if align > 1 {
                    self.mm.alloc_aligned(size, align, zero)
                } else if zero {
                    self.mm.alloc_zeroed(size)
                } else {
                    self.mm.alloc(size)
                };
                self.admit(address, size, align, zero, self.may_fail);
            }
            Op::Atomic { size } => {
                let address = m.without_calls(|| self.mm.alloc_slow(size, Gfp::ATOMIC));
                self.admit(address, size, 1, false, true);
            }
            Op::Free { pick, sized } => {
                if let Some(block) = self.take(pick) {
                    self.free(block, sized);
                }
            }
            Op::Realloc { pick, size } => {
                if let Some(block) = self.take(pick) {
                    self.realloc(block, size);
                }
            }
            Op::Usable { pick } => {
                if let Some(address) = self.picked(pick) {
                    let block = &self.live[&address];
                    // SAFETY: the block is live.
                    assert_eq!(unsafe { self.mm.usable_size(block.address) }, block.usable, "{block:?}");
                }
            }
            Op::Trim => drop(self.mm.trim()),
            Op::RunOn { cpu } => m.set_cpu(cpu),
            Op::Advance { ms } => m.advance(ms),
            Op::FailNext { k } => m.fail_next(k),
        }
        if self.verify_every != 0 && self.steps.is_multiple_of(self.verify_every) {
            self.verify();
            if self.steps.is_multiple_of(self.verify_every * 16) {
                M::census(self.mm, false);
            }
        }
    }

    pub fn verify(&self) {
        if let Err(violation) = self.mm.verify() {
            panic!("{violation}");
        }
    }

    /// Takes in what an allocation returned.
    fn admit(&mut self, address: *mut u8, size: usize, align: usize, zero: bool, may_fail: bool) {
        if address.is_null() {
            assert!(may_fail || size > isize::MAX as usize, "refused {size} bytes at {align}");
            self.refused += 1;
            return;
        }
        assert!(size <= isize::MAX as usize, "granted {size} bytes");
        self.granted += 1;
        // SAFETY: the block is live.
        let usable = unsafe { self.mm.usable_size(address) };
        self.next_id += 1;
        let block = Block { address, size, align, usable, id: self.next_id };
        self.check_place(&block);
        if zero {
            let wrong = block.bytes()[..size].iter().position(|b| *b != 0);
            assert_eq!(wrong, None, "byte of zeroed {block:?} that is not zero");
        }
        self.add(block);
    }

    fn check_place(&self, block: &Block) {
        let natural = if block.size < 16 { 8 } else { 16 };
        assert_eq!(block.address.addr() % block.align.max(natural), 0, "alignment of {block:?}");
        assert!(block.usable >= block.size, "{block:?}");
        let (start, end) = (block.address.addr(), block.address.addr() + block.usable);
        if let Some((_, below)) = self.live.range(..end).next_back() {
            assert!(below.address.addr() + below.usable <= start, "{block:?} overlaps {below:?}");
        }
    }

    /// Fills a block with its pattern and keeps it.
    pub fn add(&mut self, mut block: Block) {
        block.fill();
        self.bytes += block.usable;
        self.addresses.push(block.address.addr());
        self.live.insert(block.address.addr(), block);
    }

    fn picked(&self, pick: usize) -> Option<usize> {
        (!self.addresses.is_empty()).then(|| self.addresses[pick % self.addresses.len()])
    }

    /// Takes a block out, its bytes checked.
    pub fn take(&mut self, pick: usize) -> Option<Block> {
        let address = self.picked(pick)?;
        let at = pick % self.addresses.len();
        self.addresses.swap_remove(at);
        let block = self.live.remove(&address)?;
        self.bytes -= block.usable;
        block.check(block.id, block.usable);
        Some(block)
    }

    pub fn free(&mut self, block: Block, sized: bool) {
        // SAFETY: the block is live and not used any more.
        unsafe {
            if sized {
                self.mm.free_sized(block.address, block.size, block.align);
            } else {
                self.mm.free(block.address);
            }
        }
    }

    fn realloc(&mut self, old: Block, size: usize) {
        if self.bytes.saturating_add(size) > self.cap {
            return self.free(old, false);
        }
        // SAFETY: the block is live and used only through what comes back.
        let address = unsafe { self.mm.realloc(old.address, size) };
        if address.is_null() {
            assert!(self.may_fail, "refused to make {old:?} {size} bytes long");
            self.refused += 1;
            old.check(old.id, old.usable);
            self.bytes += old.usable;
            self.addresses.push(old.address.addr());
            self.live.insert(old.address.addr(), old);
            return;
        }
        self.granted += 1;
        // SAFETY: the block is live.
        let usable = unsafe { self.mm.usable_size(address) };
        self.next_id += 1;
        let block = Block { address, size, align: 1, usable, id: self.next_id };
        self.check_place(&block);
        block.check(old.id, old.usable.min(size));
        self.add(block);
    }

    /// Frees everything and checks that nothing is left.
    pub fn finish(mut self) {
        self.mm.machine().fail_next(0);
        while let Some(block) = self.take(0) {
            self.free(block, false);
        }
        self.verify();
        M::census(self.mm, false);
        self.mm.trim();
        self.verify();
        M::census(self.mm, true);
        assert_eq!(self.mm.machine().reported(), Vec::<String>::new());
        let stats = self.mm.stats();
        assert!(M::SHARED || (stats.slab.slab_bytes, stats.vmalloc_bytes) == (0, 0), "left over: {stats:?}");
    }
}

impl<M: Host> Drop for World<'_, M> {
    fn drop(&mut self) {
        M::ended(self.seed, self.steps, &self.history);
    }
}
