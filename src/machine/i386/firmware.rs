//! Which CPUs there are, as the firmware tells: in ACPI's table of interrupt controllers (MADT), else in the older
//! tables of the MultiProcessor Specification, which name only one CPU of each package.
//!
//! Sources: Advanced Configuration and Power Interface Specification, 5.2; Intel MultiProcessor Specification 1.4, 4.
#![cfg(all(target_arch = "x86", feature = "i386"))]
#![allow(unsafe_code)]

use core::ops::Range;
use core::ptr::with_exposed_provenance as pointer;

use super::layout::{FixedAddress, MAX_CPUS, PAGE_OFFSET, fix_to_virt};
use super::paging;
use crate::paging::Flags;
use crate::types::{PAGE_SIZE, PhysAddr};

/// Where the CPUs were found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The MADT.
    Acpi,
    /// The tables of the MultiProcessor Specification.
    MultiProcessor,
    /// Neither is there: the one that runs.
    None,
}

/// The CPUs' local APICs.
#[derive(Clone, Copy, Debug)]
pub struct Cpus {
    /// Who said so.
    pub source: Source,
    /// Ids, that of the boot CPU first.
    pub ids: [u8; MAX_CPUS],
    /// How many.
    pub len: usize,
}

/// Looks for all CPUs that can run, as far as there is room for them. Before any other runs.
pub fn find() -> Cpus {
    let me = (core::arch::x86::__cpuid(1).ebx >> 24) as u8;
    let mut cpus = Cpus { source: Source::None, ids: [me; MAX_CPUS], len: 1 };
    for (source, tell) in [(Source::Acpi, acpi as fn(&mut dyn FnMut(u8)) -> bool), (Source::MultiProcessor, mp)] {
        let found = tell(&mut |id| {
            if id != me && cpus.len < MAX_CPUS {
                cpus.ids[cpus.len] = id;
                cpus.len += 1;
            }
        });
        if found {
            cpus.source = source;
            break;
        }
    }
    paging::set_fixed(WINDOW, None);
    cpus
}

const WINDOW: usize = fix_to_virt::<{ FixedAddress::Scratch as usize }>();

/// The byte at a physical address, wherever that is.
fn byte(physical: u32) -> u8 {
    let frame = PhysAddr(u64::from(physical)).pfn();
    paging::set_fixed(WINDOW, Some((frame, Flags::NONE)));
    // SAFETY: it is mapped now, for this alone.
    unsafe { pointer::<u8>(WINDOW + physical as usize % PAGE_SIZE).read_volatile() }
}

fn bytes<const N: usize>(physical: u32) -> [u8; N] {
    core::array::from_fn(|nth| byte(physical.wrapping_add(nth as u32)))
}

fn word(physical: u32) -> u32 {
    u32::from_le_bytes(bytes(physical))
}

/// Whether `len` bytes add up to zero, as those of every table do.
fn sums_up(physical: u32, len: u32) -> bool {
    (0..len).fold(0, |sum: u8, at| sum.wrapping_add(byte(physical.wrapping_add(at)))) == 0
}

/// The first multiple of 16 in the BIOS's areas at which `mark` stands and `len` bytes add up.
fn find_mark(mark: &[u8], len: u32) -> Option<u32> {
    // SAFETY: the direct map has the first MiB.
    let at = |physical: u32| unsafe { pointer::<u8>(PAGE_OFFSET + physical as usize).read_volatile() };
    let extended = (u32::from(at(0x40f)) << 8 | u32::from(at(0x40e))) << 4;
    let places = [extended..extended + 1024, 0x9_fc00..0xa_0000, 0xe_0000..0x10_0000];
    let mut candidates = places.into_iter().flat_map(|place| place.step_by(16)).filter(|place| *place <= 0xf_ffe0);
    candidates.find(|&place| (0..).zip(mark).all(|(nth, byte)| at(place + nth) == *byte) && sums_up(place, len))
}

/// What is behind the header of the ACPI table at `start`, if it is one with this signature.
fn table(start: u32, signature: &[u8; 4]) -> Option<Range<u32>> {
    const HEADER: u32 = 36;
    if start == 0 || bytes(start) != *signature {
        return None;
    }
    let len = word(start + 4);
    ((HEADER..1 << 16).contains(&len) && sums_up(start, len)).then(|| start + HEADER..start.saturating_add(len))
}

/// The local APICs of ACPI's tables; false where there are none.
fn acpi(each: &mut dyn FnMut(u8)) -> bool {
    let Some(root) = find_mark(b"RSD PTR ", 20).and_then(|pointer| table(word(pointer + 16), b"RSDT")) else {
        return false;
    };
    let Some(madt) = root.step_by(4).find_map(|at| table(word(at), b"APIC")) else { return false };
    // Behind the address of the local APICs and a word of flags.
    let mut at = madt.start + 8;
    while at + 2 <= madt.end {
        let [kind, len] = bytes(at);
        // A processor, whose flags say that it is there.
        if kind == 0 && len >= 8 && word(at + 4) & 1 != 0 {
            each(byte(at + 3));
        }
        at += u32::from(len.max(2));
    }
    true
}

/// The local APICs of the tables of the MultiProcessor Specification; false where there are none.
fn mp(each: &mut dyn FnMut(u8)) -> bool {
    let Some(start) = find_mark(b"_MP_", 16).map(|pointer| word(pointer + 4)) else { return false };
    if start == 0 || bytes(start) != *b"PCMP" {
        return false;
    }
    let [low, high] = bytes(start + 34);
    let mut at = start + 44;
    for _ in 0..u16::from_le_bytes([low, high]) {
        // Processors are entries of 20 bytes, all others of 8.
        let is_cpu = byte(at) == 0;
        if is_cpu && byte(at + 3) & 1 != 0 {
            each(byte(at + 1));
        }
        at += if is_cpu { 20 } else { 8 };
    }
    true
}
