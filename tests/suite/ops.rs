//! Operations as data, and where they come from.

/// One step. `pick` chooses among the live blocks, modulo their number.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    Alloc {
        size: usize,
        align: usize,
        zero: bool,
    },
    /// A request that must not enter the system.
    Atomic {
        size: usize,
    },
    Free {
        pick: usize,
        sized: bool,
    },
    Realloc {
        pick: usize,
        size: usize,
    },
    Usable {
        pick: usize,
    },
    Trim,
    RunOn {
        cpu: usize,
    },
    Advance {
        ms: u64,
    },
    /// The `k`-th system call from here on fails.
    FailNext {
        k: u64,
    },
}

/// splitmix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// What a generator may ask for.
#[derive(Clone, Copy)]
pub struct Mix {
    /// Largest request in bytes, apart from impossible ones.
    pub max_size: usize,
    /// Whether calls are made to fail.
    pub failures: bool,
}

/// A size: mostly small, often at a boundary.
pub fn size(rng: &mut Rng, max: usize) -> usize {
    let size = match rng.below(16) {
        0..=4 => rng.below(65),
        5..=8 => rng.below(1025),
        9..=10 => rng.below(8193),
        11 => 8 << rng.below(12),
        12 => (4096 << rng.below(10)) + rng.below(3) - 1,
        13 => rng.below(64 << 10),
        14 => rng.below(2 << 20),
        _ if rng.one_in(4) => rng.below(max),
        _ => rng.below(256),
    };
    size.min(max)
}

impl Op {
    /// The next operation of a run.
    pub fn random(rng: &mut Rng, mix: &Mix, cpus: usize) -> Op {
        match rng.below(100) {
            0..=37 => {
                let align = match rng.below(8) {
                    0 => 1 << rng.below(13),
                    1 if rng.one_in(8) => 1 << rng.below(23),
                    _ => 1,
                };
                Op::Alloc { size: size(rng, mix.max_size), align, zero: rng.one_in(4) }
            }
            38..=39 => Op::Atomic { size: size(rng, mix.max_size.min(1 << 20)) },
            40 if rng.one_in(8) => {
                Op::Alloc { size: usize::MAX - rng.below(1 << 16), align: 1 << rng.below(20), zero: rng.one_in(2) }
            }
            40..=74 => Op::Free { pick: rng.below(usize::MAX), sized: rng.one_in(4) },
            75..=88 => Op::Realloc { pick: rng.below(usize::MAX), size: size(rng, mix.max_size).max(1) },
            89..=92 => Op::Usable { pick: rng.below(usize::MAX) },
            93..=95 => Op::RunOn { cpu: rng.below(cpus) },
            96..=97 => Op::Advance { ms: rng.below(6000) as u64 },
            98 if rng.one_in(3) => Op::Trim,
            _ if mix.failures => Op::FailNext { k: 1 + rng.below(4) as u64 },
            _ => Op::Advance { ms: 1 },
        }
    }
}
