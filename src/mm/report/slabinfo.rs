//! `/proc/slabinfo`, version 2.1.

use core::fmt::{self, Write};

use crate::machine::{MAX_CACHES, Machine};
use crate::mm::Mm;
use crate::slab::CacheStats;
use crate::slab::runs::{FIRST_RUN, LAST_RUN, is_run, run_class, run_pages};
use crate::types::PAGE_SIZE;

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
            if is_run(id) {
                continue;
            }
            if let Some((name, stats)) = self.figures(|m| self.slab.cache_stats(m, id, in_rows)) {
                line(out, name.as_str(), &stats)?;
            }
        }
        self.runs(out, &in_rows)
    }

    /// The classes of page runs: a run is a slab of one object, active unless a CPU keeps it.
    fn runs(&self, out: &mut dyn Write, in_rows: &[u32; MAX_CACHES]) -> fmt::Result {
        let mut live = [0u32; MAX_CACHES];
        self.figures(|m| self.pages.for_each_run(m, |pages| live[run_class(pages as usize) as usize] += 1));
        // Of the last class each run has a size of its own.
        for id in FIRST_RUN..LAST_RUN {
            let (in_use, kept) = (live[id as usize] as usize, in_rows[id as usize] as usize);
            if in_use + kept > 0 {
                let (pages, capacity) = (run_pages(id) as usize, self.slab.run_capacity(&self.pages, id).into());
                let runs = CacheStats {
                    in_use,
                    slabs: in_use + kept,
                    empty: kept,
                    size: pages * PAGE_SIZE,
                    objects_per_slab: 1,
                    pages_per_slab: pages,
                    capacity,
                    batch: 1,
                    ..CacheStats::default()
                };
                line(out, self.slab.name(id), &runs)?;
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
