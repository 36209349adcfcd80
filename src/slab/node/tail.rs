//! What lies in a slab behind its last object in use, taken out to go back to the system.
//!
//! Objects go lowest first, so what a slab keeps behind the last one in use is of no use until all before is taken. Its
//! objects are taken while their pages go back, and are then such as were never handed out: marked when they are, and
//! not before. A second free of one is found where that is a slow free
//! ([`Slab::is_fresh`](crate::slab::Slab::is_fresh)), or its sheaf goes back before the slab hands it out. (The
//! workload `idle`, of which one small block in fifty stays, has 28.0 MiB resident in place of 31.8. Those blocks lie
//! in 13.6 MiB of pages, and 3.6 are the program's, 3.7 descriptors, 2 what is retained. What is free between objects
//! in use has to stay: its marks lie there.)

use super::{BUCKETS, NodeSlabs, SlabRef, ones};
use crate::machine::Machine;
use crate::page::{PageList, flag};
use crate::slab::layout::SlabLayout;
use crate::types::{PAGE_SIZE, Pfn, PfnRange};

/// The objects of a slab behind the last one in use, all of them taken.
pub struct Tail {
    head: Pfn,
    first: u32,
    /// The pages in which nothing else lies.
    pub pages: PfnRange,
}

impl NodeSlabs {
    /// Partial slabs by occupancy: how many there are of each.
    pub fn partial(&self) -> [u32; BUCKETS] {
        core::array::from_fn(|bucket| self.partial[bucket].len())
    }

    /// The tail of the slab that is last in `from`, if it was written to and has whole pages; else the slab is first
    /// there then. Of a cache without constructor only, all of whose slabs have more than a page.
    pub fn take_tail<M: Machine>(&mut self, m: &M, layout: &SlabLayout, from: usize) -> Option<Tail> {
        let head = self.partial[from].last()?;
        let slab = SlabRef { m, layout, head };
        let page = slab.page();
        self.partial[from].remove(head, |p| m.page(p));
        let words = (0..layout.map_words()).rev();
        let used = words.map(|word| (word, layout.all_free(word) & !slab.map_word(word))).find(|(_, used)| *used != 0);
        let first = used.map_or(0, |(word, used)| word * 64 + 64 - used.leading_zeros());
        let clean = layout.offset(page.colour(), first).div_ceil(PAGE_SIZE) as u32;
        let written = layout.offset(page.colour(), page.mapcount() as u32).div_ceil(PAGE_SIZE) as u32;
        if written <= clean || clean >= layout.order.pages() || page.has(flag::POPULATED) {
            self.partial[from].push_front(head, |p| m.page(p));
            return None;
        }
        self.each_word(&slab, first, |bits, tail| bits & !tail);
        page.set_refs(page.refs() + layout.objects - first);
        // None of them is fresh meanwhile.
        page.set_mapcount(layout.objects as i32);
        self.free -= u64::from(layout.objects - first);
        if page.refs() == layout.objects {
            page.clear(flag::PARTIAL);
        } else {
            self.partial[slab.bucket()].push_front(head, |p| m.page(p));
        }
        Some(Tail { head, first, pages: PfnRange::new(head.add(clean), written.min(layout.order.pages()) - clean) })
    }

    /// Puts a tail back, as objects that were never handed out; as [`NodeSlabs::put`] with `release`.
    pub fn put_tail<M: Machine>(&mut self, m: &M, layout: &SlabLayout, tail: Tail, release: &mut PageList) {
        let slab = SlabRef { m, layout, head: tail.head };
        let mut count = 0;
        self.each_word(&slab, tail.first, |bits, tail| {
            // Who freed one of them, which was free, is not counted.
            count += (tail & !bits).count_ones();
            bits | tail
        });
        slab.page().set_mapcount(tail.first as i32);
        self.count_back(&slab, count, release);
    }

    /// Changes the words of a slab's map, given the bits of the objects from `first` on.
    fn each_word<M: Machine>(&mut self, slab: &SlabRef<'_, M>, first: u32, mut change: impl FnMut(u64, u64) -> u64) {
        let objects = slab.layout.objects;
        for word in first / 64..objects.div_ceil(64) {
            let (start, end) = (first.max(word * 64), objects.min(word * 64 + 64));
            slab.set_map_word(word, change(slab.map_word(word), ones(start % 64, end - start)));
        }
    }
}
