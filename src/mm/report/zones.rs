//! `/proc/buddyinfo`, `/proc/pagetypeinfo`, `/proc/zoneinfo`, and `extfrag/unusable_index` of debugfs.

use core::fmt::{self, Write};

use crate::machine::{MAX_NODES, Machine, ZoneKind};
use crate::mm::Mm;
use crate::types::{NR_ORDERS, Order, PAGEBLOCK_ORDER, PAGEBLOCK_PAGES};
use crate::zone::{MIGRATE_TYPES, MigrateType, ZONES, ZoneInfo};

/// The kernel's name of a zone.
pub(super) const fn zone_name(kind: ZoneKind) -> &'static str {
    match kind {
        ZoneKind::Dma => "DMA",
        ZoneKind::Dma32 => "DMA32",
        ZoneKind::Normal => "Normal",
        ZoneKind::HighMem => "HighMem",
        ZoneKind::Movable => "Movable",
    }
}

/// The kernel's name of a migrate type.
const fn type_name(list: MigrateType) -> &'static str {
    match list {
        MigrateType::Unmovable => "Unmovable",
        MigrateType::Movable => "Movable",
        MigrateType::Reclaimable => "Reclaimable",
        MigrateType::HighAtomic => "HighAtomic",
        MigrateType::Cma => "CMA",
        MigrateType::Isolate => "Isolate",
    }
}

impl<M: Machine> Mm<M> {
    fn zone(&self, node: usize, kind: ZoneKind) -> ZoneInfo {
        self.figures(|m| self.pages.zone(m, node, kind))
    }

    /// The zones that have frames, by node.
    pub(in crate::mm) fn populated(&self) -> impl Iterator<Item = (usize, ZoneKind, ZoneInfo)> {
        let zones = (0..MAX_NODES).flat_map(|node| ZONES.into_iter().map(move |kind| (node, kind)));
        zones.map(|(node, kind)| (node, kind, self.zone(node, kind))).filter(|(.., info)| info.present > 0)
    }

    pub(super) fn buddyinfo(&self, out: &mut dyn Write) -> fmt::Result {
        for (node, kind, info) in self.populated() {
            write!(out, "Node {node}, zone {:>8} ", zone_name(kind))?;
            for lists in &info.blocks {
                write!(out, "{:>6} ", lists.iter().sum::<u32>())?;
            }
            out.write_char('\n')?;
        }
        Ok(())
    }

    pub(super) fn unusable_index(&self, out: &mut dyn Write) -> fmt::Result {
        for (node, kind, info) in self.populated() {
            write!(out, "Node {node}, zone {:>8} ", zone_name(kind))?;
            for order in (0..NR_ORDERS as u8).filter_map(Order::new) {
                let index = if info.free == 0 { 0 } else { info.unusable(order) };
                write!(out, "{}.{:03} ", index / 1000, index % 1000)?;
            }
            out.write_char('\n')?;
        }
        Ok(())
    }

    pub(super) fn pagetypeinfo(&self, out: &mut dyn Write) -> fmt::Result {
        writeln!(out, "Page block order: {PAGEBLOCK_ORDER}\nPages per block:  {PAGEBLOCK_PAGES}\n")?;
        write!(out, "{:<43} ", "Free pages count per migrate type at order")?;
        for order in 0..NR_ORDERS {
            write!(out, "{order:>6} ")?;
        }
        out.write_char('\n')?;
        for (node, kind, info) in self.populated() {
            for list in MigrateType::ALL {
                write!(out, "Node {node:>4}, zone {:>8}, type {:>12} ", zone_name(kind), type_name(list))?;
                for lists in &info.blocks {
                    write!(out, "{:>6} ", lists[list.index()])?;
                }
                out.write_char('\n')?;
            }
        }
        write!(out, "\n{:<23}", "Number of blocks type ")?;
        for list in MigrateType::ALL {
            write!(out, "{:>12} ", type_name(list))?;
        }
        out.write_char('\n')?;
        for (node, kind, _) in self.populated() {
            write!(out, "Node {node}, zone {:>8} ", zone_name(kind))?;
            let counts: [u32; MIGRATE_TYPES] = self.pages.pageblocks(node, kind);
            for count in counts {
                write!(out, "{count:>12} ")?;
            }
            out.write_char('\n')?;
        }
        Ok(())
    }

    pub(super) fn zoneinfo(&self, out: &mut dyn Write) -> fmt::Result {
        for node in 0..MAX_NODES {
            let first = ZONES.into_iter().find(|kind| self.zone(node, *kind).present > 0);
            for kind in first.iter().flat_map(|_| ZONES) {
                let info = self.zone(node, kind);
                writeln!(out, "Node {node}, zone {:>8}", zone_name(kind))?;
                if Some(kind) == first {
                    let (reclaimable, unreclaimable) = self.figures(|m| self.slab.node_pages(m, node));
                    writeln!(out, "  per-node stats")?;
                    writeln!(out, "      {:<12} {reclaimable}", "nr_slab_reclaimable")?;
                    writeln!(out, "      {:<12} {unreclaimable}", "nr_slab_unreclaimable")?;
                }
                bounds(out, &info)?;
                if info.present > 0 {
                    writeln!(out, "      {:<12} {}\n  pagesets", "nr_free_pages", info.free)?;
                    for cpu in 0..self.machine.nr_cpus() {
                        let Some(lists) = self.figures(|m| self.pages.pageset(m, cpu, node, kind)) else { continue };
                        writeln!(out, "    cpu: {cpu}")?;
                        for (name, value) in [("count:", lists.count), ("high:", lists.high), ("batch:", lists.batch)] {
                            writeln!(out, "              {name:<8} {value}")?;
                        }
                    }
                    writeln!(out, "  node_unreclaimable:  0\n  start_pfn:           {}", info.start.0)?;
                }
            }
        }
        Ok(())
    }
}

/// The block of a zone that also an empty one has.
fn bounds(out: &mut dyn Write, info: &ZoneInfo) -> fmt::Result {
    writeln!(out, "  pages {:<8} {}", "free", info.free)?;
    for (name, pages) in [
        ("boost", 0),
        ("min", u64::from(info.marks.min)),
        ("low", u64::from(info.marks.low)),
        ("high", u64::from(info.marks.high)),
        ("spanned", info.spanned),
        ("present", info.present),
        ("managed", info.managed),
        ("cma", 0),
    ] {
        writeln!(out, "        {name:<8} {pages}")?;
    }
    out.write_str("        protection: (")?;
    for (n, pages) in info.protection.iter().enumerate() {
        write!(out, "{}{pages}", if n > 0 { ", " } else { "" })?;
    }
    out.write_str(")\n")
}
