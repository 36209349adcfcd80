//! The check of the whole heap finds what is broken on purpose; otherwise the other tests would prove little.

use slabwright::gfp::Gfp;
use slabwright::machine::Frames;
use slabwright::machine::ZoneKind::Normal;
use slabwright::machine::sim::Sim;
use slabwright::mm::Mm;
use slabwright::page::{Kind, Page, flag};
use slabwright::slab::SlabFlags;
use slabwright::types::{Order, Pfn};

use crate::hosts::heap;

/// A heap with something of everything on it.
fn used() -> Box<Mm<Sim>> {
    let sim = Sim::builder().grow(0, Normal, 1 << 14, 1 << 13, 1 << 10).build();
    let mm = heap(&sim);
    let blocks: Vec<_> = (0..400).map(|i| mm.alloc(i * 20)).chain((0..20).map(|i| mm.alloc(10_000 * i))).collect();
    for block in blocks.into_iter().step_by(2) {
        // SAFETY: live, and freed once.
        unsafe { mm.free(block) };
    }
    // With first fit only created caches have slabs.
    let cache = mm.kmem_cache_create("broken", 100, 0, SlabFlags::NO_MERGE, None).unwrap();
    (0..3).for_each(|_| assert!(!mm.kmem_cache_alloc(cache.cache(), Gfp::KERNEL, 0).is_null()));
    mm.verify().expect("sound before it is broken");
    mm
}

/// The first frame that `wanted` likes.
fn find(mm: &Mm<Sim>, wanted: impl Fn(&Page) -> bool) -> Pfn {
    let sim = mm.machine();
    sim.online().iter().flat_map(|range| range.iter()).find(|pfn| wanted(sim.page(*pfn))).expect("such a frame")
}

fn found(mm: &Mm<Sim>) {
    assert!(mm.verify().is_err(), "not noticed");
}

#[test]
fn a_free_block_that_says_it_is_something_else() {
    for kind in [Kind::Run, Kind::Tagged, Kind::Tail, Kind::Slab, Kind::Allocated] {
        let mm = used();
        let page = mm.machine().page(find(&mm, |page| page.kind() == Kind::Buddy));
        page.set_kind(kind, page.order());
        found(&mm);
    }
}

#[test]
fn a_free_block_of_another_order() {
    let mm = used();
    let page = mm.machine().page(find(&mm, |page| page.kind() == Kind::Buddy && page.order() > Order::ZERO));
    page.set_kind(Kind::Buddy, Order::ZERO);
    found(&mm);
}

#[test]
fn a_free_block_whose_state_is_wrong() {
    for mask in [flag::UNBACKED, flag::RESERVE] {
        let mm = used();
        let page = mm.machine().page(find(&mm, |page| page.kind() == Kind::Buddy));
        page.set_flags(page.flags() ^ mask);
        found(&mm);
    }
}

#[test]
fn a_frame_inside_a_free_block() {
    let mm = used();
    let head = find(&mm, |page| page.kind() == Kind::Buddy && page.order() > Order::ZERO);
    mm.machine().page(head.add(1)).set_kind(Kind::Run, Order::ZERO);
    found(&mm);
}

#[test]
fn a_slab_whose_count_is_wrong() {
    let mm = used();
    let page = mm.machine().page(find(&mm, |page| page.kind() == Kind::Slab && page.has(flag::PARTIAL)));
    page.set_refs(page.refs() + 1);
    found(&mm);
}

#[test]
fn a_slab_that_belongs_to_another_cache() {
    let mm = used();
    let page = mm.machine().page(find(&mm, |page| page.kind() == Kind::Slab && page.has(flag::PARTIAL)));
    page.set_cache(page.cache() + 1);
    found(&mm);
}

#[test]
fn a_slab_that_is_not_marked() {
    let mm = used();
    let page = mm.machine().page(find(&mm, |page| page.kind() == Kind::Slab && page.has(flag::PARTIAL)));
    page.clear(flag::PARTIAL);
    found(&mm);
}

// First fit has none.
#[cfg(not(feature = "slob"))]
mod sheaves {
    use slabwright::machine::{PerCpu, Word, no_sheaf};

    use super::*;

    /// Lets `f` at the word of a sheaf that holds at least two objects.
    fn with_sheaf(mm: &Mm<Sim>, f: impl Fn(&mut usize)) {
        let mut done = false;
        for cpu in 0..mm.machine().nr_cpus() {
            mm.machine().drain_row(cpu, &mut |row| {
                for id in 1..40 {
                    let word = &mut row[Word::Main(id).index()];
                    let top: *const usize = core::ptr::with_exposed_provenance(*word);
                    // SAFETY: a sheaf's slot; the sentinel below stops at 0, and is not at the first slot of a small
                    // sheaf.
                    let filled = *word != no_sheaf() && unsafe { *top != 0 && *top.sub(1) != 0 };
                    if filled && !done {
                        done = true;
                        f(word);
                    }
                }
            });
        }
        assert!(done, "no sheaf with two objects");
    }

    fn slot(word: usize) -> *mut usize {
        core::ptr::with_exposed_provenance_mut(word)
    }

    #[test]
    fn an_object_twice_in_a_sheaf() {
        let mm = used();
        // SAFETY: both slots are in the sheaf.
        with_sheaf(&mm, |word| unsafe { *slot(*word) = *slot(*word).sub(1) });
        found(&mm);
    }

    #[test]
    fn a_pointer_in_a_sheaf_that_is_no_object() {
        let mm = used();
        // SAFETY: the slot is in the sheaf.
        with_sheaf(&mm, |word| unsafe { *slot(*word) += 4 });
        found(&mm);
        let mm = used();
        // SAFETY: the slot is in the sheaf.
        with_sheaf(&mm, |word| unsafe { *slot(*word) = (&raw const mm).addr() });
        found(&mm);
    }
}
