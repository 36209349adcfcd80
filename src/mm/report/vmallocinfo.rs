//! `/proc/vmallocinfo`.

use core::fmt::{self, Write};

use crate::machine::Machine;
use crate::mm::Mm;
use crate::types::{Caller, PAGE_SHIFT};
use crate::vmalloc::Area;

/// Areas copied at a time.
const BATCH: usize = 16;
/// Digits of an address.
const DIGITS: usize = size_of::<usize>() * 2;

impl<M: Machine> Mm<M> {
    pub(super) fn vmallocinfo(&self, out: &mut dyn Write) -> fmt::Result {
        let mut from = 0;
        loop {
            let mut areas = [Area::default(); BATCH];
            let found = self.figures(|m| self.vmalloc.areas_from(m, from, &mut areas));
            for area in &areas[..found] {
                from = area.start + area.len;
                // On its way, or addresses that others sit in.
                if area.size == 0 && !area.retained {
                    continue;
                }
                write!(out, "0x{:0DIGITS$x}-0x{from:0DIGITS$x} {:>7}", area.start, area.len)?;
                self.caller(area.caller, out)?;
                let pages = area.size >> PAGE_SHIFT;
                match (area.retained, area.vmap) {
                    (true, _) => out.write_str(" unpurged vm_area\n")?,
                    (false, true) => writeln!(out, " pages={pages} vmap")?,
                    (false, false) => writeln!(out, " pages={pages} vmalloc")?,
                }
            }
            if found < BATCH {
                break;
            }
        }
        for nth in 0.. {
            let Some(mapping) = self.machine().device_mapping(nth) else { break };
            let (start, end) = (mapping.range.start, mapping.range.end);
            write!(out, "0x{start:0DIGITS$x}-0x{end:0DIGITS$x} {:>7}", end - start)?;
            self.caller(mapping.caller, out)?;
            writeln!(out, " phys={:#018x} ioremap", mapping.physical)?;
        }
        Ok(())
    }

    /// Who asked, with a space in front.
    fn caller(&self, caller: Caller, out: &mut dyn Write) -> fmt::Result {
        match caller {
            Caller::Unknown => Ok(()),
            Caller::Code(address) => {
                out.write_str(" ")?;
                self.machine().symbol(address, out)
            }
            Caller::Source(place) => write!(out, " {}:{}", place.file(), place.line()),
        }
    }
}
