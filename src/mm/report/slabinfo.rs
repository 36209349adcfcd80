//! `/proc/slabinfo`, version 2.1.

use core::fmt::{self, Write};

use crate::machine::Machine;
use crate::mm::Mm;
use crate::slab::CacheStats;
use crate::slab::runs::{FIRST_RUN, LAST_RUN};

impl<M: Machine> Mm<M> {
    pub(super) fn slabinfo(&self, out: &mut dyn Write) -> fmt::Result {
        out.write_str(
            "slabinfo - version: 2.1\n# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab>",
        )?;
        out.write_str(
            " : tunables <limit> <batchcount> <sharedfactor> : slabdata <active_slabs> <num_slabs> <sharedavail>\n",
        )?;
        let in_rows = self.figures(|m| self.slab.objects_in_rows(m));
        for (id, in_rows) in in_rows.into_iter().enumerate().skip(1) {
            let id = id as u8;
            // Runs are kept like objects, but have no slabs.
            if (FIRST_RUN..=LAST_RUN).contains(&id) {
                continue;
            }
            if let Some((name, stats)) = self.figures(|m| self.slab.cache_stats(m, id, in_rows)) {
                line(out, name.as_str(), &stats)?;
            }
        }
        Ok(())
    }
}

fn line(out: &mut dyn Write, name: &str, cache: &CacheStats) -> fmt::Result {
    // A name is a word.
    for (n, c) in name.chars().enumerate() {
        out.write_char(if c.is_whitespace() || c.is_control() || (n == 0 && c == '#') { '_' } else { c })?;
    }
    let padding = 17usize.saturating_sub(name.chars().count());
    writeln!(
        out,
        "{:padding$} {:>6} {:>6} {:>6} {:>4} {:>4} : tunables {:>4} {:>4} {:>4} : slabdata {:>6} {:>6} {:>6}",
        "",
        cache.in_use,
        cache.slabs * cache.objects_per_slab,
        cache.size,
        cache.objects_per_slab,
        cache.pages_per_slab,
        cache.capacity,
        cache.batch,
        0,
        cache.slabs - cache.empty,
        cache.slabs,
        cache.in_barns,
    )
}
