//! `/proc/iomem`.

use core::cmp::Reverse;
use core::fmt::{self, Write};
use core::ops::Range;

use super::zones::zone_name;
use crate::machine::{MAX_NODES, Machine, NR_ZONES, ZoneKind};
use crate::mm::Mm;
use crate::types::{PAGE_SIZE, Pfn};

/// Regions that a machine may name besides the zones.
const NAMED: usize = 16;
const MOST: usize = MAX_NODES * NR_ZONES + NAMED;

/// A range of addresses.
#[derive(Clone, Copy)]
enum Region {
    /// The machine's name for it.
    Named(&'static str),
    /// Frames of a zone.
    Ram(usize, ZoneKind),
}

impl<M: Machine> Mm<M> {
    pub(super) fn iomem(&self, out: &mut dyn Write) -> fmt::Result {
        let mut regions: [(u64, u64, Region); MOST] = [(0, 0, Region::Named("")); MOST];
        let mut count = 0;
        let mut add = |range: Range<u64>, region| {
            if range.start < range.end && count < MOST {
                regions[count] = (range.start, range.end, region);
                count += 1;
            }
        };
        for (node, kind, info) in self.populated() {
            let last = Pfn(info.start.0 + info.spanned as u32 - 1);
            add(self.machine.phys(info.start)..self.machine.phys(last) + PAGE_SIZE as u64, Region::Ram(node, kind));
        }
        self.machine.regions(&mut |name, range| add(range, Region::Named(name)));
        let regions = &mut regions[..count];
        regions.sort_unstable_by_key(|(start, end, _)| (*start, Reverse(*end)));
        for (n, (start, end, region)) in regions.iter().enumerate() {
            // Indented once for each region that it lies in.
            let depth = regions[..n].iter().filter(|(_, outer, _)| outer >= end).count();
            write!(out, "{:indent$}{start:08x}-{:08x} : ", "", end - 1, indent = 2 * depth)?;
            match region {
                Region::Named(name) => writeln!(out, "{name}")?,
                Region::Ram(node, kind) => writeln!(out, "System RAM (node {node}, zone {})", zone_name(*kind))?,
            }
        }
        Ok(())
    }
}
