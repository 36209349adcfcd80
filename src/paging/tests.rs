//! The walker on every format against a `BTreeMap` of leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use super::i386::{I386, Pae};
use super::x86_64::{Slot, SlotState, X86_64};
use super::{Absent, Flags, Format, Level, MapError, PageTable, TableMemory};
use crate::types::{Pfn, VirtAddr};

/// Tables at frame numbers that are no indices, so that a mix-up shows; `limit` of them at most.
struct Memory {
    tables: BTreeMap<u32, (Level, Vec<u64>)>,
    next: u32,
    limit: usize,
}

const BASE: u32 = 0x40;

impl Memory {
    fn new(limit: usize) -> Memory {
        let mut memory = Memory { tables: BTreeMap::new(), next: BASE, limit: usize::MAX };
        memory.alloc(Level::Pgd);
        memory.limit = limit;
        memory
    }
}

impl TableMemory for Memory {
    fn read(&self, table: Pfn, index: usize) -> u64 {
        self.tables[&table.0].1[index]
    }
    fn write(&mut self, table: Pfn, index: usize, entry: u64) {
        self.tables.get_mut(&table.0).unwrap().1[index] = entry;
    }
    fn alloc(&mut self, level: Level) -> Option<Pfn> {
        if self.tables.len() > self.limit {
            return None;
        }
        let pfn = self.next;
        self.next += 3;
        self.tables.insert(pfn, (level, std::vec![0; 1024]));
        Some(Pfn(pfn))
    }
    fn free(&mut self, level: Level, table: Pfn) {
        let (of, entries) = self.tables.remove(&table.0).expect("a table that was never made");
        assert_eq!(of, level);
        assert!(entries.iter().all(|e| *e == 0), "freed in use");
    }
}

struct Rng(u64);
impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

fn bytes<F: Format>(level: Level) -> u64 {
    1 << F::shift(level)
}

/// Random maps, unmaps and translations; the oracle keeps `start -> (bytes, frame, flags, level)`.
fn against_oracle<F: Format>(seed: u64) {
    let mut rng = Rng(seed);
    let mut memory = Memory::new(usize::MAX);
    let table = PageTable::<F>::new(Pfn(BASE));
    let mut oracle: BTreeMap<u64, (u64, u32, Flags, Level)> = BTreeMap::new();
    let leaves: Vec<Level> = [Level::Pte, Level::Pmd, Level::Pud]
        .into_iter()
        .filter(|l| F::LEAF[*l as usize] && !(F::folded(*l) && *l == Level::Pud))
        .collect();
    // A few regions spread over the whole address space, so that upper tables come and go.
    let regions: Vec<u64> = (0..6).map(|_| rng.below(1 << (F::address_bits() - 22)) << 22).collect();
    let top = 1u64 << F::address_bits();
    let frame_limit = ((F::FRAME_MASK >> 12) + 1).min(1 << 31);
    for _ in 0..20_000 {
        let level = leaves[rng.below(leaves.len() as u64) as usize];
        let size = bytes::<F>(level);
        let address = (regions[rng.below(6) as usize] + rng.below(4096) * 4096) % top;
        let aligned = address / size * size;
        let covering = oracle.range(..=address).next_back().filter(|(s, v)| address < *s + v.0).map(|(s, v)| (*s, *v));
        match rng.below(3) {
            0 => {
                let frame = (rng.below(frame_limit) as u32) / (size >> 12) as u32 * (size >> 12) as u32;
                let flags = Flags(rng.below(1 << 10) as u16);
                let free = oracle.range(..aligned + size).next_back().is_none_or(|(s, v)| s + v.0 <= aligned);
                let made = table.map(&mut memory, VirtAddr(aligned as usize), level, Pfn(frame), flags);
                if free {
                    made.unwrap();
                    oracle.insert(aligned, (size, frame, flags, level));
                } else {
                    assert_eq!(made, Err(MapError::Occupied));
                }
            }
            1 => {
                let removed = table.unmap(&mut memory, VirtAddr(address as usize));
                assert_eq!(removed.is_some(), covering.is_some());
                if let Some((start, (_, frame, flags, level))) = covering {
                    assert_eq!(removed, Some((level, F::leaf(level, Pfn(frame), flags))));
                    oracle.remove(&start);
                }
            }
            _ => {
                let probe = address + rng.below(4096);
                let found = table.translate(&memory, VirtAddr(probe as usize));
                let wanted = covering.map(|(start, (_, frame, flags, level))| {
                    let within = probe - start;
                    (Pfn(frame + (within >> 12) as u32), (within & 4095) as usize, level, flags)
                });
                assert_eq!(found.map(|t| (t.frame, t.offset, t.level, t.flags)), wanted);
            }
        }
    }
    assert!(oracle.len() > 20, "the test mapped too little");
    for (start, _) in oracle {
        assert!(table.unmap(&mut memory, VirtAddr(start as usize)).is_some());
    }
    assert_eq!(memory.tables.len(), 1, "only the root is left");
}

// rows: N1 N2 N3 N4
#[test]
fn walker_agrees_with_the_oracle_on_x86_64() {
    against_oracle::<X86_64>(0x1234_5678_9abc);
}

// rows: N1 N2
#[test]
fn walker_agrees_with_the_oracle_on_i386() {
    against_oracle::<I386>(0x9876_5432_1fed);
}

#[test]
fn walker_agrees_with_the_oracle_on_pae() {
    against_oracle::<Pae>(0x5555_aaaa_1111);
}

// rows: N3 N4
/// N3: a folded level returns the entry of the level above.
#[test]
fn folded_levels_return_the_pgd_entry() {
    let mut memory = Memory::new(usize::MAX);
    let table = PageTable::<I386>::new(Pfn(BASE));
    let address = VirtAddr(0xc012_3000);
    table.map(&mut memory, address, Level::Pte, Pfn(7), Flags::KERNEL).unwrap();
    let pgd = table.pgd_offset(address);
    let pud = table.pud_offset(&memory, pgd, address).unwrap();
    let pmd = table.pmd_offset(&memory, pud, address).unwrap();
    assert_eq!((pud, pmd), (pgd, pgd));
    let pte = table.pte_offset(&memory, pmd, address).unwrap();
    assert_ne!(pte.table, pgd.table);
    assert_eq!((pgd.index, pte.index), (0x300, 0x123));

    let mut memory = Memory::new(usize::MAX);
    let table = PageTable::<X86_64>::new(Pfn(BASE));
    let address = VirtAddr(0x7fff_1234_5000_u64 as usize);
    table.map(&mut memory, address, Level::Pte, Pfn(7), Flags::KERNEL).unwrap();
    let mut tables = BTreeSet::new();
    let pgd = table.pgd_offset(address);
    let pud = table.pud_offset(&memory, pgd, address).unwrap();
    let pmd = table.pmd_offset(&memory, pud, address).unwrap();
    let pte = table.pte_offset(&memory, pmd, address).unwrap();
    tables.extend([pgd.table.0, pud.table.0, pmd.table.0, pte.table.0]);
    assert_eq!(tables.len(), 4, "nothing is folded");
}

// rows: N4
/// N4: a PSE leaf is a pmd leaf in the pgd's entry, with the huge bit, covering 4 MiB.
#[test]
fn pse_leaf_is_seen_at_the_folded_pmd() {
    let mut memory = Memory::new(usize::MAX);
    let table = PageTable::<I386>::new(Pfn(BASE));
    let address = VirtAddr(0xc040_0000);
    table.map(&mut memory, address, Level::Pmd, Pfn(0x400), Flags::WRITE).unwrap();
    assert_eq!(memory.read(Pfn(BASE), 0x301), 0x40_0000 | 1 << 7 | 1 << 1 | 1);
    let walked = table.walk(&memory, VirtAddr(0xc07f_ffff));
    assert_eq!((walked.level, walked.place.table), (Level::Pmd, Pfn(BASE)));
    let pmd = table.pgd_offset(address);
    assert_eq!(table.pte_offset(&memory, pmd, address), None);
    let last = table.translate(&memory, VirtAddr(0xc07f_f123)).unwrap();
    assert_eq!((last.frame, last.offset), (Pfn(0x7ff), 0x123));
    assert_eq!(table.map(&mut memory, VirtAddr(0xc040_1000), Level::Pte, Pfn(1), Flags::NONE), Err(MapError::Occupied));
    assert_eq!(
        table.map(&mut memory, VirtAddr(0xc080_1000), Level::Pmd, Pfn(0), Flags::NONE),
        Err(MapError::Misaligned)
    );
    assert_eq!(
        table.map(&mut memory, VirtAddr(0xc080_0000), Level::Pmd, Pfn(1), Flags::NONE),
        Err(MapError::Misaligned)
    );
    assert_eq!(table.map(&mut memory, VirtAddr(0), Level::Pud, Pfn(0), Flags::NONE), Err(MapError::Misaligned));
}

/// Running out of table memory at each step changes no translation, and `missing` predicts what is needed.
#[test]
fn no_memory_for_tables() {
    let address = VirtAddr(0x12_3456_7000_u64 as usize);
    for limit in 0..3 {
        let mut memory = Memory::new(limit);
        let table = PageTable::<X86_64>::new(Pfn(BASE));
        let end = VirtAddr(address.0 + 4096);
        assert_eq!(table.missing(&memory, address, end, Level::Pte), 3);
        assert_eq!(table.map(&mut memory, address, Level::Pte, Pfn(1), Flags::NONE), Err(MapError::NoMemory));
        assert_eq!(table.missing(&memory, address, end, Level::Pte), 3 - limit);
        assert_eq!(table.translate(&memory, address), None);
        memory.limit = 3;
        table.map(&mut memory, address, Level::Pte, Pfn(1), Flags::NONE).unwrap();
        assert_eq!(table.missing(&memory, address, end, Level::Pte), 0);
    }
}

/// `for_entries` visits each entry of a range once, across table borders, and `missing` is exact for it.
#[test]
fn ranges_cross_tables() {
    fn check<F: Format>(level: Level, start: u64, count: u64) {
        let step = bytes::<F>(level);
        let (start, end) = (VirtAddr((start * step) as usize), VirtAddr(((start + count) * step) as usize));
        let mut memory = Memory::new(usize::MAX);
        let table = PageTable::<F>::new(Pfn(BASE));
        let mut seen = 0;
        table.for_entries(&mut memory, start, end, level, false, |_, _| unreachable!()).unwrap();
        let missing = table.missing(&memory, start, end, level);
        table
            .for_entries(&mut memory, start, end, level, true, |at, old| {
                assert_eq!((at.0, old), (start.0 + seen * step as usize, 0));
                seen += 1;
                F::leaf(level, Pfn(0), Flags::WRITE)
            })
            .unwrap();
        assert_eq!((seen as u64, memory.tables.len() - 1), (count, missing));
        let mut again = 0;
        table
            .for_entries(&mut memory, start, end, level, false, |_, old| {
                again += 1;
                assert!(F::is_present(old));
                0
            })
            .unwrap();
        assert_eq!(again as u64, count);
    }
    check::<X86_64>(Level::Pmd, 510, 1030);
    check::<X86_64>(Level::Pte, (1 << 27) - 3, 6);
    check::<I386>(Level::Pte, 1000, 100);
    check::<Pae>(Level::Pte, (1 << 18) - 1, 2);
    check::<Pae>(Level::Pmd, 500, 24);
}

// rows: N5
/// N5: what goes in comes out, and an absent page's record is neither present nor empty.
#[test]
fn entries_decode_as_encoded() {
    fn check<F: Format>() {
        for flags in 0..1 << 10 {
            let entry = F::leaf(Level::Pte, Pfn(0xabcde), Flags(flags));
            assert_eq!((F::frame(entry), F::flags(entry), F::is_present(entry)), (Pfn(0xabcde), Flags(flags), true));
            assert_eq!(F::decode_absent(entry), None);
        }
        for offset in [0, 1, 0x00ab_cdef] {
            for what in
                [Absent::Swap { area: 0, offset }, Absent::Swap { area: 31, offset }, Absent::File { page: offset }]
            {
                let entry = F::absent(what).unwrap();
                assert!(!F::is_present(entry) && entry != 0);
                assert_eq!(F::decode_absent(entry), Some(what));
            }
        }
        assert_eq!(F::absent(Absent::Swap { area: 32, offset: 0 }), None);
        assert_eq!(F::decode_absent(0), None);
    }
    check::<X86_64>();
    check::<I386>();
    check::<Pae>();
    assert_eq!(I386::absent(Absent::File { page: 1 << 24 }), None);
    assert!(Pae::absent(Absent::File { page: 1 << 24 }).is_some());
    assert_eq!(Pae::root_entry(Pae::table(Pfn(5))), 0x5001);
}

// rows: N6
/// N6: every level's index and the offset together are the address.
#[test]
fn addresses_split_and_join() {
    fn check<F: Format>() {
        let mut rng = Rng(77);
        for _ in 0..1000 {
            let address = rng.below(1 << F::address_bits()) as usize;
            let mut joined = VirtAddr(address).offset() as u64;
            for level in Level::DOWN {
                joined += (F::index(level, address) as u64) << F::shift(level);
            }
            assert_eq!(joined, address as u64);
        }
    }
    check::<X86_64>();
    check::<I386>();
    check::<Pae>();
}

#[test]
fn slots_keep_state_generation_and_frame() {
    for level in [Level::Pte, Level::Pmd] {
        let zero = Slot::zero(level, Pfn(0x600));
        assert_eq!((zero.state(), zero.frame()), (SlotState::Zero, Pfn(0x600)));
        let dirty = zero.dirtied(5, true);
        assert_eq!((dirty.state(), dirty.frame(), dirty.huge_likely()), (SlotState::Dirty, Pfn(0x600), true));
        assert!(dirty.of_generation(5) && dirty.of_generation(5 + 128) && !dirty.of_generation(6));
        assert!(!dirty.dirtied(6, false).huge_likely() && dirty.dirtied(6, false).of_generation(6));
        assert!(X86_64::is_leaf(level, dirty.0));
        let counted = dirty.with_count((1 << 40) - 1);
        assert_eq!(
            (counted.count(), counted.state(), counted.with_count(0x600)),
            ((1 << 40) - 1, SlotState::Dirty, dirty)
        );
    }
    assert_eq!((Slot::EMPTY.state(), Slot::FREED.state()), (SlotState::Empty, SlotState::Freed));
    assert_eq!(X86_64::decode_absent(Slot::FREED.0), None);
}
