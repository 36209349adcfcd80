//! The slab layer on simulated machines, against an oracle that knows every object.
#![allow(clippy::undocumented_unsafe_blocks)] // the calls under test, on memory of the test's own

use core::sync::atomic::AtomicUsize;
use std::collections::BTreeMap;
use std::vec::Vec;

use super::barn::TOGETHER;
use super::classes::{NR_CLASSES, class_of, class_size};
use super::layout::MapPlace;
use super::tag::is_foreign;
use super::*;
use crate::config::Options;
use crate::machine::PerCpu as _;
use crate::machine::sim::{Hostile, Sim};
use crate::machine::{Frames, ZoneKind};
use crate::page::PageList;
use crate::types::{PAGE_SIZE, PfnRange};

struct World {
    m: Sim,
    pages: PageAllocator<Sim>,
    slab: std::boxed::Box<Slab<Sim>>,
}

fn world(cpus: usize, hostile: Hostile) -> World {
    world_of(Sim::builder().cpus(cpus).grow(0, ZoneKind::Normal, 4096, 16384, 1024).hostile(hostile).build())
}

fn world_of(m: Sim) -> World {
    let pages = PageAllocator::new();
    pages.init(&m, &Options::DEFAULT);
    let slab = std::boxed::Box::new(Slab::new());
    slab.set_key(0x6b6b_6b6b);
    World { m, pages, slab }
}

/// Two CPUs, on a node each where there are two.
fn nodes_of(nodes: usize) -> World {
    let builder = Sim::builder().cpus(2).nodes(nodes);
    world_of((0..nodes).fold(builder, |m, node| m.grow(node, ZoneKind::Normal, 4096 << node, 2048, 1024)).build())
}

impl World {
    fn create(&self, name: &str, size: usize) -> CacheId {
        self.slab.create(&self.m, name, size, 0, SlabFlags::default(), None).unwrap()
    }

    fn alloc(&self, id: u8) -> usize {
        let mut object = self.slab.pop(&self.m, id);
        if object.is_null() {
            object = self.slab.alloc_slow(&self.m, &self.pages, id, Gfp::KERNEL);
        }
        object.expose_provenance()
    }

    fn free(&self, id: u8, object: usize) {
        let object = ptr::with_exposed_provenance_mut(object);
        // SAFETY: the object is the test's.
        unsafe {
            let tag = self.m.class_at(object);
            let pushed =
                place(tag, object.addr()).is_some_and(|place| self.slab.push_tagged(&self.m, tag, place, object));
            if !pushed && !self.slab.push_slow(&self.m, tag, object) {
                self.slab.free_slow(&self.m, &self.pages, id, object, Gfp::KERNEL);
            }
        }
    }

    fn verify(&self) {
        if let Err((id, what)) = self.slab.verify(&self.m) {
            panic!("cache {id}: {what}");
        }
    }

    fn slabs(&self, id: u8) -> usize {
        self.slab.cache_stats(&self.m, id, 0).map_or(0, |(_, stats)| stats.slabs)
    }

    fn in_use(&self) -> usize {
        let mut n = 0;
        self.slab.for_each_cache(&self.m, |_, c| {
            if !sheaf::holds_sheaves(c.id) {
                n += c.in_use;
            }
        });
        n
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Alloc(u8),
    Free(usize),
    RunOn(usize),
    Flush(Option<u8>),
    Shrink,
    Tails,
}

fn op(rng: &mut u64, live: usize, cpus: usize, bias: u64) -> Op {
    *rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    let r = *rng >> 33;
    match r % 64 {
        0 => Op::RunOn(r as usize / 64 % cpus),
        1 if (r / 64).is_multiple_of(8) => Op::Flush(Some((r / 512 % NR_CLASSES as u64) as u8 + 1)),
        2 if (r / 64).is_multiple_of(32) => Op::Shrink,
        3 if (r / 64).is_multiple_of(32) => Op::Flush(None),
        4 if (r / 64).is_multiple_of(16) => Op::Tails,
        n if n < bias || live == 0 => {
            // Few classes at a time, so that their slabs fill and empty.
            let id = [1u8, 4, 5, 9, 21, 33][(r / 64 % 6) as usize];
            Op::Alloc(id)
        }
        _ => Op::Free(r as usize / 64 % live),
    }
}

/// The first and the last word of an object.
fn ends(object: usize, id: u8) -> [*mut usize; 2] {
    [object, object + class_size(id as usize) - size_of::<usize>()].map(ptr::with_exposed_provenance_mut)
}

fn write_ends(object: usize, id: u8, value: usize) {
    for word in ends(object, id) {
        // SAFETY: the object is the test's.
        unsafe { word.write(value) };
    }
}

fn ends_are(object: usize, id: u8, value: usize) -> bool {
    // SAFETY: as above.
    ends(object, id).into_iter().all(|word| unsafe { word.read() } == value)
}

fn model(cpus: usize, hostile: Hostile, seed: u64, steps: usize) {
    let w = world(cpus, hostile);
    w.m.set_looks_below(seed.is_multiple_of(2));
    let mut live: Vec<(usize, u8)> = Vec::new();
    let mut spans: BTreeMap<usize, usize> = BTreeMap::new();
    let mut rng = seed;
    for step in 0..steps {
        // Phases of growth and of decline.
        let bias = if step / 2000 % 2 == 0 { 40 } else { 24 };
        match op(&mut rng, live.len(), cpus, bias) {
            Op::Alloc(id) => {
                let (object, size) = (w.alloc(id), class_size(id as usize));
                assert_ne!(object, 0);
                assert_eq!(object % classes::class_align(id as usize), 0);
                if let Some((start, end)) = spans.range(..object + size).next_back() {
                    assert!(*end <= object, "{object:#x}+{size} overlaps {start:#x}..{end:#x}");
                }
                spans.insert(object, object + size);
                live.push((object, id));
                write_ends(object, id, object);
            }
            Op::Free(i) => {
                let (object, id) = live.swap_remove(i);
                spans.remove(&object);
                assert!(ends_are(object, id, object), "an object's contents are gone");
                w.free(id, object);
            }
            Op::RunOn(cpu) => w.m.set_cpu(cpu),
            Op::Flush(only) => w.slab.flush(&w.m, &w.pages, only),
            Op::Shrink => {
                w.slab.shrink(&w.m, &w.pages, None);
            }
            Op::Tails => {
                w.m.advance(COLD_MS as u64);
                w.slab.shrink(&w.m, &w.pages, None);
                w.slab.give_back_tails(&w.m, &w.pages, u64::MAX);
            }
        }
        if step % 64 == 0 {
            w.verify();
            w.slab.drain_deferred(&w.m, &w.pages);
            assert_eq!(w.in_use(), live.len());
        }
    }
    for (object, id) in live {
        w.free(id, object);
    }
    w.slab.shrink(&w.m, &w.pages, None);
    w.verify();
    w.slab.for_each_cache(&w.m, |name, c| assert_eq!(c.slabs, 0, "{name} {c:?}"));
    assert!(w.m.reports().is_empty());
}

// rows: G1 G10 G11
#[test]
fn objects_are_exclusive_and_come_back() {
    for seed in [1, 2] {
        model(1, Hostile::default(), seed, 20_000);
        model(3, Hostile::default(), seed + 2, 20_000);
    }
}

#[test]
fn aborted_and_migrated_sections_lose_nothing() {
    let hostile = Hostile { migrate: 8, abort: 8, fail: 0 };
    model(2, hostile, 3, 30_000);
    model(4, Hostile { migrate: 2, abort: 3, fail: 0 }, 4, 30_000);
}

#[test]
fn what_lies_behind_the_last_object_in_use_goes_back() {
    let w = world(1, Hostile::default());
    let id = NR_CLASSES as u8;
    let layout = *w.slab.layout(id);
    let all: Vec<usize> = (0..layout.objects).map(|_| w.alloc(id)).collect();
    let (lowest, slab) = (*all.iter().min().unwrap(), layout.order.bytes());
    all.iter().for_each(|object| write_ends(*object, id, 7));
    let range = PfnRange::block(slab_of(&w.m, ptr::with_exposed_provenance(lowest)).unwrap().0, layout.order);
    assert_eq!(w.m.backed_in(range), layout.order.pages());
    // The lowest and the one behind it stay.
    let kept: Vec<usize> = [lowest, lowest + layout.size as usize].into();
    all.iter().filter(|object| !kept.contains(object)).for_each(|object| w.free(id, *object));
    w.slab.shrink(&w.m, &w.pages, None);
    assert_eq!(w.slab.give_back_tails(&w.m, &w.pages, u64::MAX), 0, "some were wanted a moment ago");
    w.m.advance(COLD_MS as u64);
    let pages = (2 * layout.size as usize / PAGE_SIZE) as u32;
    assert_eq!(w.slab.give_back_tails(&w.m, &w.pages, u64::MAX), u64::from(layout.order.pages() - pages));
    assert_eq!(w.m.backed_in(range), pages);
    assert_eq!(w.slab.give_back_tails(&w.m, &w.pages, u64::MAX), 0, "once");
    w.verify();
    assert_eq!(w.in_use(), 2);
    assert!(kept.iter().all(|object| ends_are(*object, id, 7)));
    // They are had again, and none of them twice.
    let mut again: Vec<usize> = (2..layout.objects).map(|_| w.alloc(id)).chain(kept).collect();
    again.sort_unstable();
    again.dedup();
    assert_eq!(again.len(), all.len());
    assert_eq!((again[0], again[again.len() - 1] - lowest), (lowest, slab - layout.size as usize));
    w.verify();
    assert!(w.m.reports().is_empty());
}

// rows: G16
#[test]
fn free_then_alloc_returns_the_same_object() {
    let w = world(1, Hostile::default());
    for id in 1..=NR_CLASSES as u8 {
        let a = w.alloc(id);
        w.free(id, a);
        assert_eq!(w.alloc(id), a, "the sheaf is last in, first out");
    }
}

/// Fresh objects of more slabs than are written down at once: no slot is left out, and all are marked.
#[test]
fn fresh_objects_of_many_slabs_are_marked_and_exclusive() {
    let w = world(1, Hostile::default());
    for id in (1..=NR_CLASSES as u8).step_by(4) {
        let per_slab = w.slab.layout(id).objects as usize;
        // One freed object in between: the request begins with what was handed out before.
        let first = w.slab.alloc_direct(&w.m, &w.pages, id, Gfp::KERNEL).expose_provenance();
        w.slab.free_one(&w.m, &w.pages, first, Gfp::KERNEL);
        let mut slots = std::vec![0; per_slab * 40];
        let got = w.slab.take_objects(&w.m, &w.pages, id, &mut slots, Gfp::KERNEL, 0);
        let taken = &slots[..got];
        assert!(got >= per_slab * 16 && got < slots.len(), "class {id}: {got}");
        let unique: std::collections::BTreeSet<usize> = taken.iter().copied().collect();
        assert_eq!(unique.len(), got, "class {id}");
        assert_eq!(taken.last(), Some(&first), "the lowest comes out first");
        for object in taken {
            assert_eq!(w.slab.cache_of(&w.m, ptr::with_exposed_provenance(*object), true), Ok(id));
            assert!(w.slab.is_marked(id, *object), "class {id}");
        }
        w.slab.free_objects(&w.m, &w.pages, taken, Gfp::KERNEL);
        w.verify();
    }
    assert_eq!(w.in_use(), 0);
}

/// What goes up and down stays in the barn; what comes back in a flood does not, and comes out by address.
#[test]
fn a_flood_takes_all_sheaves_along() {
    let w = world(1, Hostile::default());
    let id = (1..=NR_CLASSES as u8).find(|id| class_size(*id as usize) == 64).unwrap();
    let sheaf = w.slab.capacity(id) as usize;
    let in_barns = || {
        let mut n = 0;
        w.slab.for_each_cache(&w.m, |_, c| n += if c.id == id { c.in_barns } else { 0 });
        n
    };
    let live: Vec<usize> = (0..20 * sheaf).map(|_| w.alloc(id)).collect();
    live.iter().for_each(|object| w.free(id, *object));
    assert!(in_barns() < TOGETHER * sheaf, "there was a flood");
    let mut live: Vec<usize> = (0..20 * sheaf).map(|_| w.alloc(id)).collect();
    let rising = live[2 * sheaf..].windows(2).filter(|two| two[1] == two[0] + 64).count();
    assert!(rising > 17 * sheaf, "{rising}");
    live.drain(15 * sheaf..).for_each(|object| w.free(id, object));
    assert!(in_barns() >= 3 * sheaf, "it was over");
    live.iter().for_each(|object| w.free(id, *object));
    w.verify();
}

/// Half of a short sheaf is moved, so that it takes half of one to come to its end again.
#[test]
fn demand_swings_about_the_end_of_a_short_sheaf() {
    let w = world(1, Hostile::default());
    let id = (1..=NR_CLASSES as u8).find(|id| class_size(*id as usize) == 8192).unwrap();
    let slow = || {
        let cache = w.slab.cache(id);
        cache.slow_allocs.load(Ordering::Relaxed) + cache.slow_frees.load(Ordering::Relaxed)
    };
    let mut live: Vec<usize> = (0..6 * w.slab.capacity(id)).map(|_| w.alloc(id)).collect();
    let mut calls = Vec::new();
    // Some of these depths are such ends.
    while live.len() > 2 {
        let before = slow();
        for _ in 0..100 {
            live.drain(live.len() - 2..).for_each(|object| w.free(id, object));
            live.extend([(); 2].map(|()| w.alloc(id)));
        }
        calls.push(slow() - before);
        w.free(id, live.pop().unwrap());
    }
    assert!(calls.iter().all(|calls| *calls < 10), "{calls:?}");
    live.iter().for_each(|object| w.free(id, *object));
    w.verify();
}

/// Two sheaves that go back in one flood have a copy each of an object whose slab is empty then.
#[test]
fn a_flood_finds_an_object_that_two_sheaves_have() {
    let w = world(1, Hostile::default());
    w.m.set_aborts(false);
    let id = (1..=NR_CLASSES as u8).find(|id| class_size(*id as usize) == 64).unwrap();
    let sheaf = w.slab.capacity(id) as usize;
    let live: Vec<usize> = (0..20 * sheaf).map(|_| w.alloc(id)).collect();
    // The slabs of newer sheaves are emptied first.
    for (nth, object) in live.iter().enumerate() {
        if nth == 2 * sheaf {
            w.free(id, live[5 * sheaf]);
        }
        w.free(id, *object);
    }
    let reports = w.m.take_reports();
    assert!(reports.len() == 1 && reports[0].contains("double free"), "{reports:?}");
    w.slab.flush(&w.m, &w.pages, None);
    assert_eq!(w.m.take_reports().len(), 0);
    w.verify();
}

#[test]
fn a_cache_ends_though_another_thread_has_its_sheaves_in_hand() {
    let w = world(1, Hostile::default());
    let cache = w.create("short-lived", 100);
    let id = cache.get();
    let object = w.alloc(id);
    w.free(id, object);
    // As `flush_where` does it, in the middle.
    let in_hand = w.slab.hands.begin();
    let sheaf = w.slab.take_sheaf(&w.m, id, Word::Main(id), |_, _| true).unwrap();
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while w.slab.hands.begun() < 2 {
                std::thread::yield_now();
            }
            w.slab.dissolve(&w.m, &w.pages, sheaf, Gfp::KERNEL);
            drop(in_hand);
        });
        assert_eq!(unsafe { w.slab.destroy(&w.m, &w.pages, cache) }, Ok(()));
    });
    w.verify();
}

/// Figures are of one cache or of the next one of the same id, whole; who gathers them keeps none from ending.
#[test]
fn caches_end_while_others_look_at_all_of_them() {
    let w = world(1, Hostile::default());
    let shapes = [("first", 104), ("the-second-one", 3000)];
    std::thread::scope(|threads| {
        let looking = threads.spawn(|| {
            for _ in 0..10_000 {
                w.slab.for_each_cache(&w.m, |name, c| {
                    let made = shapes.iter().find(|(made, _)| *made == name);
                    assert_eq!(made.is_some(), c.id >= FIRST_CREATED, "{name}");
                    assert!(made.is_none_or(|(_, size)| c.size == *size), "{name} {c:?}");
                });
                w.slab.node_pages(&w.m, 0);
                w.slab.verify(&w.m).unwrap();
            }
        });
        for (name, size) in shapes.into_iter().cycle().take_while(|_| !looking.is_finished()) {
            let cache = w.create(name, size);
            let object = w.alloc(cache.get());
            w.free(cache.get(), object);
            assert_eq!(unsafe { w.slab.destroy(&w.m, &w.pages, cache) }, Ok(()));
        }
    });
    w.verify();
}

/// A name that was shown stays what it was, though its cache ends and another takes its place meanwhile.
#[test]
fn who_is_shown_a_cache_may_end_it() {
    let w = world(1, Hostile::default());
    let make = |name, size| w.create(name, size);
    let first = make("first", 100);
    let mut other = None;
    w.slab.for_each_cache(&w.m, |name, c| {
        if c.id == first.get() && other.is_none() {
            assert_eq!(unsafe { w.slab.destroy(&w.m, &w.pages, first) }, Ok(()));
            other = Some(make("other", 3000));
            assert_eq!((name, other), ("first", Some(first)), "the id is given again");
        }
    });
    assert_eq!(unsafe { w.slab.destroy(&w.m, &w.pages, other.unwrap()) }, Ok(()));
    w.verify();
}

/// Where a row is not to be had, as somebody else drains it, an empty sheaf of the cache may be left there: a cache of
/// another capacity would take it for one with objects, so that none gets the id.
#[test]
fn an_id_is_kept_where_a_row_was_not_looked_at() {
    let w = world(2, Hostile::default());
    let make = || w.create("short-lived", 3000);
    let cache = make();
    // All of the first refill, so that the sheaf is empty; freed elsewhere.
    let mut objects = std::vec![w.alloc(cache.get())];
    while w.slab.objects_in_rows(&w.m)[usize::from(cache.get())] > 0 {
        objects.push(w.alloc(cache.get()));
    }
    w.m.set_cpu(1);
    objects.into_iter().for_each(|object| w.free(cache.get(), object));
    assert!(w.m.drain_row(0, &mut |_| {
        assert_eq!(unsafe { w.slab.destroy(&w.m, &w.pages, cache) }, Ok(()));
    }));
    assert_ne!(make(), cache);
    w.verify();
}

/// One that is about to go is nobody's twin, and its id is not given away before who shrinks all caches is done with
/// its slabs.
#[test]
fn a_cache_that_ends_is_shared_by_nobody_and_waits_for_its_slabs() {
    let w = world(1, Hostile::default());
    let make = || w.create("short-lived", 3000);
    let cache = make();
    let object = w.alloc(cache.get());
    w.free(cache.get(), object);
    w.slab.flush(&w.m, &w.pages, Some(cache.get()));
    // As `age` does it, in the middle: its empty slabs are on no list, and not back yet.
    let in_hand = w.slab.hands.begin();
    let mut release = PageList::new();
    w.slab.node(cache.get(), 0).locked(&w.m).shrink(&w.m, w.slab.layout(cache.get()), &mut release);
    assert!(!release.is_empty());
    std::thread::scope(|threads| {
        let end = threads.spawn(|| unsafe { w.slab.destroy(&w.m, &w.pages, cache) });
        while !end.is_finished() && w.slab.cache(cache.get()).users.load(Ordering::Relaxed) > 0 {
            std::thread::yield_now();
        }
        let other = make();
        assert_ne!(other, cache);
        w.slab.release(&w.m, &w.pages, release, Gfp::KERNEL);
        drop(in_hand);
        assert_eq!(end.join().unwrap(), Ok(()));
        assert_eq!(unsafe { w.slab.destroy(&w.m, &w.pages, other) }, Ok(()));
    });
    w.verify();
}

/// What was deferred is freed by any slow path, which has it in hand while the cache ends.
#[test]
fn a_cache_ends_though_another_thread_frees_what_was_deferred() {
    let w = world(1, Hostile::default());
    let cache = w.create("short-lived", 100);
    let class = class_of(100);
    let objects = [cache.get(), class].map(|id| (id, w.alloc(id)));
    objects.iter().for_each(|(id, object)| w.slab.defer(*id, *object));
    std::thread::scope(|threads| {
        // The first of the deferred objects has to wait.
        let list = w.slab.node(class, 0).slabs.lock(&w.m);
        threads.spawn(|| w.slab.drain_deferred(&w.m, &w.pages));
        while !w.slab.deferred.is_empty() {
            std::thread::yield_now();
        }
        let end = threads.spawn(|| unsafe { w.slab.destroy(&w.m, &w.pages, cache) });
        while !end.is_finished() && w.slab.hands.begun() < 3 {
            std::thread::yield_now();
        }
        drop(list);
        assert_eq!(end.join().unwrap(), Ok(()));
    });
    w.verify();
}

/// What other threads had in hand at a fork is nowhere in the child.
#[test]
fn a_child_does_not_wait_for_what_its_parents_threads_had_in_hand() {
    let w = world(1, Hostile::default());
    std::mem::forget(w.slab.hands.begin());
    w.slab.begin_child();
    let mut tries = 0;
    w.slab.hands.repeat_alone(&w.m, || {
        tries += 1;
        w.slab.flush(&w.m, &w.pages, None);
        false
    });
    assert_eq!(tries, 1);
}

// rows: G14 G15
#[test]
fn partial_slabs_go_before_empty_ones_and_those_before_new_ones() {
    let w = world(1, Hostile::default());
    let id = 33; // 8 KiB: few objects in a slab
    let per_slab = w.slab.layout(id).objects as usize;
    let objects: Vec<usize> =
        (0..per_slab * 4).map(|_| w.slab.alloc_direct(&w.m, &w.pages, id, Gfp::KERNEL).addr()).collect();
    let slab = |o: usize| slab_of(&w.m, ptr::with_exposed_provenance(o)).unwrap().0;
    let free = |o: usize| w.slab.free_one(&w.m, &w.pages, o, Gfp::KERNEL);
    // Slab 0 wholly free, slab 1 with one object left, slab 2 with one free.
    objects[..per_slab].iter().for_each(|o| free(*o));
    objects[per_slab + 1..per_slab * 2].iter().for_each(|o| free(*o));
    free(objects[per_slab * 2]);
    let mut order = Vec::new();
    for _ in 0..per_slab * 2 + 1 {
        let head = slab(w.slab.alloc_direct(&w.m, &w.pages, id, Gfp::KERNEL).addr());
        if order.last() != Some(&head) {
            order.push(head);
        }
    }
    let known = [slab(objects[per_slab * 2]), slab(objects[per_slab]), slab(objects[0])];
    assert_eq!(order[..3], known);
    assert_eq!(order.len(), 4, "then a new slab");
}

// rows: F2
#[test]
fn a_second_free_is_found_wherever_the_object_lies() {
    let w = world(2, Hostile::default());
    w.m.set_aborts(false);
    let id = 5;
    let a = w.alloc(id);
    assert!(!w.slab.is_free(&w.m, &w.pages, id, ptr::with_exposed_provenance(a)));
    w.m.set_cpu(1);
    w.free(id, a);
    w.m.set_cpu(0);
    assert!(w.slab.is_free(&w.m, &w.pages, id, ptr::with_exposed_provenance(a)));
    w.slab.free_objects(&w.m, &w.pages, &[a], Gfp::KERNEL);
    assert!(w.m.take_reports()[0].contains("double free"));
    let b = w.alloc(id);
    w.slab.free_objects(&w.m, &w.pages, &[b + 8], Gfp::KERNEL);
    assert!(w.m.take_reports()[0].contains("middle of a block"));
    w.verify();
}

/// A window is chosen by some objects of a list; where none of it is taken in that is not tried for ever.
#[test]
fn a_window_of_nothing_is_the_last() {
    let (w, id) = (world(1, Hostile::default()), class_of(64));
    w.m.set_aborts(false);
    let objects: Vec<usize> =
        (0..4000).map(|_| w.slab.alloc_direct(&w.m, &w.pages, id, Gfp::KERNEL).expose_provenance()).collect();
    w.slab.mark_all(id, &objects);
    let window = |object: &usize| object >> 16;
    let (inside, outside): (Vec<usize>, Vec<usize>) =
        objects.iter().partition(|object| window(object) == window(&objects[2000]));
    assert!(inside.len() >= 200 && outside.len() >= 2);
    let mut list = inside[..200].to_vec();
    list[100] += 8;
    list.insert(0, outside[0]);
    list.push(outside[1]);
    let mut release = PageList::new();
    w.slab.put_lists(&w.m, &w.pages, id, &mut [&mut list[..]], &mut release, Gfp::KERNEL);
    w.slab.release(&w.m, &w.pages, release, Gfp::KERNEL);
    let reports = w.m.take_reports();
    assert!(reports.len() == 1 && reports[0].contains("middle of a block"), "{reports:?}");
    w.verify();
}

/// Objects that go back together, of each class whose objects may, in an order like that of a tree's; and with them one
/// that is there twice, one that its slab has, one whose slab is of another class, and what is no object. Only these
/// are reported.
#[test]
fn objects_that_go_back_together_are_looked_at() {
    for id in 1..=NR_CLASSES as u8 {
        let w = world(1, Hostile::default());
        w.m.set_aborts(false);
        let mut objects: Vec<usize> =
            (0..600).map(|_| w.slab.alloc_direct(&w.m, &w.pages, id, Gfp::KERNEL).expose_provenance()).collect();
        objects.chunks_mut(7).for_each(<[usize]>::reverse);
        let of_another = w.alloc(if id == 1 { 2 } else { 1 });
        w.slab.mark_all(id, &objects);
        let put = |list: &[usize]| {
            let (mut first, mut second) = (list[..list.len() / 2].to_vec(), list[list.len() / 2..].to_vec());
            let mut release = PageList::new();
            let lists = &mut [&mut first[..], &mut second[..]];
            w.slab.put_lists(&w.m, &w.pages, id, lists, &mut release, Gfp::KERNEL);
            w.slab.release(&w.m, &w.pages, release, Gfp::KERNEL);
            w.verify();
            w.m.take_reports()
        };
        let rest = objects.split_off(300);
        assert_eq!(put(&objects[..290]).len(), 0, "class {id}");
        // None of their slabs goes back now, as one object of each stays.
        let (mut odd, kept): (Vec<usize>, Vec<usize>) = (rest[..290].to_vec(), rest[290..].to_vec());
        odd.insert(20, odd[200]);
        odd.push(kept[0] + 4);
        odd.push(of_another);
        let reports = put(&odd);
        let said = |what: &str| reports.iter().filter(|report| report.contains(what)).count();
        assert_eq!((said("double free"), said("middle of a block")), (1, 1), "class {id}: {reports:?}");
        assert_eq!(put(&kept).len() + put(&objects[290..]).len(), 0, "class {id}");
        w.slab.shrink(&w.m, &w.pages, None);
        assert_eq!(w.in_use(), 0, "class {id}");
    }
}

// rows: F2
#[test]
fn an_object_that_its_slab_has_too_is_handed_out_once() {
    for (id, below) in [1, 5, 33].into_iter().flat_map(|id| [(id, false), (id, true)]) {
        let w = world(2, Hostile::default());
        w.m.set_aborts(false);
        w.m.set_looks_below(below);
        // The first ones come from no sheaf.
        (0..=exchange::FIRST_DIRECT).for_each(|_| w.free(id, w.alloc(id)));
        let a = w.alloc(id);
        w.slab.free_one(&w.m, &w.pages, a, Gfp::KERNEL);
        w.free(id, a);
        let first = w.slab.alloc_direct(&w.m, &w.pages, id, Gfp::KERNEL).addr();
        assert_eq!(first, a, "the slab's copy comes first");
        let mut out: Vec<usize> = (0..400).map(|_| w.alloc(id)).chain([first]).collect();
        out.sort();
        assert!(out.is_sorted_by(|a, b| a < b), "cache {id} handed an object out twice");
        let reports = w.m.take_reports();
        assert!(reports.len() == 1 && reports[0].contains("double free"), "{reports:?}");
    }
}

/// Whatever the order of frees and requests: one second free of an object that nobody got meanwhile is reported once,
/// and nobody gets what another has.
// rows: F2
#[test]
fn an_object_that_sheaves_hold_twice_is_handed_out_once() {
    let (mut seed, mut held) = (7u64, 0);
    let mut below = |limit: usize| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as usize % limit
    };
    for round in 0..300 {
        let w = world(1, Hostile::default());
        w.m.set_aborts(false);
        w.m.set_looks_below(round % 2 == 0);
        let id = [1, 5, 33][round % 3];
        let mut out: Vec<usize> = (0..600).map(|_| w.alloc(id)).collect();
        let (first, second) = (below(250), 1 + below(250));
        let others: Vec<usize> = (0..first + second).map(|_| out.swap_remove(below(out.len()))).collect();
        let twice = out.pop().unwrap();
        others[..first].iter().for_each(|other| w.free(id, *other));
        w.free(id, twice);
        others[first..].iter().for_each(|other| w.free(id, *other));
        if class_of_tag(w.m.class_at(ptr::with_exposed_provenance(twice))) != id {
            // Its slab went back: that is found by who looks for the class of what is freed.
            continue;
        }
        held += 1;
        w.free(id, twice);
        out.extend((0..600).map(|_| w.alloc(id)));
        out.sort();
        assert!(out.is_sorted_by(|a, b| a < b), "round {round}: handed out twice");
        let reports = w.m.take_reports();
        assert!(reports.len() == 1 && reports[0].contains("double free"), "round {round}: {reports:?}");
    }
    assert!(held > 280, "{held} rounds of 300");
}

// rows: G18 G21
#[test]
fn colours_cycle_over_the_left_over() {
    let w = world(1, Hostile::default());
    let id = classes::class_of(640);
    let layout = *w.slab.layout(id);
    assert!(layout.colours > 1);
    let mut colours = Vec::new();
    for _ in 0..layout.objects * layout.colours * 2 {
        let object = w.slab.alloc_direct(&w.m, &w.pages, id, Gfp::KERNEL);
        let (head, offset) = slab_of(&w.m, object).unwrap();
        let colour = w.m.page(head).colour();
        assert_eq!((offset - colour * layout.colour_step as usize) % 640, 0);
        if colours.last() != Some(&colour) {
            colours.push(colour);
        }
    }
    let cycle: Vec<usize> = (0..layout.colours as usize).collect();
    assert_eq!(colours, [cycle.clone(), cycle].concat());
}

static CONSTRUCTED: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" fn construct(object: *mut u8) {
    CONSTRUCTED.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the object is of 40 bytes.
    unsafe { object.cast::<u64>().write(0xc0ffee) };
}

// rows: G8
/// A program that has a block or two of each of many sizes has them in different sets of the CPU's cache, not all at
/// the start of a page.
#[test]
fn first_objects_of_caches_are_spread_over_a_page() {
    let world = world(1, Hostile::default());
    let ids = 1..=class_of(1024);
    let starts = ids.clone().filter(|id| world.alloc(*id).is_multiple_of(PAGE_SIZE)).count();
    assert!(starts * 4 <= ids.count(), "{starts} at the start of a page");
}

#[test]
fn constructors_run_once_per_object_and_state_is_kept() {
    let w = world(2, Hostile::default());
    let cache = w.slab.create(&w.m, "ctor", 40, 0, SlabFlags::default(), Some(construct)).unwrap();
    let mut live: Vec<*mut u8> = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    let mut rng = 7u64;
    for step in 0..20_000 {
        rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        if rng >> 40 & 15 == 0 {
            w.m.set_cpu(step % 2);
        }
        if rng >> 60 < 9 || live.is_empty() {
            let object = w.slab.cache_alloc(&w.m, &w.pages, cache, Gfp::KERNEL, 0);
            // SAFETY: the object is of 40 bytes and ours.
            unsafe {
                assert_eq!(object.cast::<u64>().read() & 0xff_ffff, 0xc0ffee);
                // State that the user leaves is kept, too.
                object.cast::<u64>().write(0xc0ffee | (step as u64) << 24);
            }
            seen.insert(object.addr());
            live.push(object);
        } else {
            let object = live.swap_remove((rng >> 20) as usize % live.len());
            // SAFETY: it came from the cache.
            unsafe { w.slab.cache_free(&w.m, &w.pages, cache, object, Gfp::KERNEL).unwrap() };
        }
    }
    // Refills take some that were not handed out yet, but none is constructed twice.
    let constructed = CONSTRUCTED.load(Ordering::Relaxed);
    assert!(constructed >= seen.len() && constructed < seen.len() + 600, "{constructed} {}", seen.len());
    w.m.set_aborts(false);
    assert_eq!(unsafe { w.slab.destroy(&w.m, &w.pages, cache) }, Err(live.len()));
    assert!(w.m.take_reports()[0].contains("objects in use"));
    for object in live {
        // SAFETY: it came from the cache.
        unsafe { w.slab.cache_free(&w.m, &w.pages, cache, object, Gfp::KERNEL).unwrap() };
    }
    assert_eq!(unsafe { w.slab.destroy(&w.m, &w.pages, cache) }, Ok(()));
}

// rows: G4 G19
#[test]
fn free_maps_work_in_all_three_places() {
    let w = world(1, Hostile::default());
    let places = [
        ("descriptor", 64, SlabFlags::default(), MapPlace::Descriptor),
        ("on-slab", 32, SlabFlags::default(), MapPlace::OnSlab),
        ("off-slab", 32, SlabFlags::OFF_SLAB, MapPlace::OffSlab),
    ];
    for (name, size, flags, place) in places {
        let cache = w.slab.create(&w.m, name, size, 0, flags, None).unwrap();
        assert_eq!(w.slab.layout(cache.get()).map, place);
        let objects: Vec<*mut u8> =
            (0..1000).map(|_| w.slab.cache_alloc(&w.m, &w.pages, cache, Gfp::KERNEL, 0)).collect();
        let mut sorted: Vec<usize> = objects.iter().map(|o| o.addr()).collect();
        sorted.sort_unstable();
        assert!(sorted.windows(2).all(|w| w[1] - w[0] >= size));
        w.verify();
        for object in objects {
            // SAFETY: it came from the cache.
            unsafe { w.slab.cache_free(&w.m, &w.pages, cache, object, Gfp::KERNEL).unwrap() };
        }
        w.verify();
        assert_eq!(unsafe { w.slab.destroy(&w.m, &w.pages, cache) }, Ok(()));
    }
}

// rows: G6
#[test]
fn caches_of_one_shape_share_their_slabs() {
    let w = world(1, Hostile::default());
    w.m.set_aborts(false);
    let make = |name, flags, ctor| w.slab.create(&w.m, name, 100, 0, flags, ctor).unwrap();
    let a = make("a", SlabFlags::default(), None);
    let b = make("b", SlabFlags::default(), None);
    let c = make("c", SlabFlags::NO_MERGE, None);
    let d = make("d", SlabFlags::default(), Some(construct));
    assert_eq!(a, b);
    assert!(a != c && a != d && c != d);
    let object = w.slab.cache_alloc(&w.m, &w.pages, c, Gfp::KERNEL, 0);
    // SAFETY: wrong on purpose; it is reported and left alone.
    unsafe { w.slab.cache_free(&w.m, &w.pages, a, object, Gfp::KERNEL).unwrap_err() };
    assert!(w.m.take_reports()[0].contains("wrong cache"));
    assert_eq!(unsafe { w.slab.destroy(&w.m, &w.pages, a) }, Ok(()), "b still uses it");
    assert!(!w.slab.cache_alloc(&w.m, &w.pages, b, Gfp::KERNEL, 0).is_null());
    assert!(w.slab.create(&w.m, "", 8, 0, SlabFlags::default(), None).is_err());
    assert!(w.slab.create(&w.m, "x", 0, 0, SlabFlags::default(), None).is_err());
    assert!(w.slab.create(&w.m, "x", 8, 3, SlabFlags::default(), None).is_err());
}

#[test]
fn atomic_frees_defer_what_they_cannot_lock() {
    let w = world(1, Hostile::default());
    let id = 9;
    let objects: Vec<usize> = (0..40).map(|_| w.alloc(id)).collect();
    let node = w.slab.node(id, 0);
    let held = node.slabs.lock(&w.m);
    for object in &objects {
        w.slab.free_one(&w.m, &w.pages, *object, Gfp::ATOMIC);
    }
    assert!(w.slab.alloc_direct(&w.m, &w.pages, id, Gfp::ATOMIC).is_null(), "the lock is only tried");
    drop(held);
    assert_eq!(w.in_use(), 40);
    w.slab.flush(&w.m, &w.pages, None);
    assert_eq!(w.in_use(), 0);
    w.verify();
}

#[test]
fn what_lies_idle_goes_back() {
    let w = world(1, Hostile::default());
    let id = 33;
    let objects: Vec<usize> = (0..400).map(|_| w.alloc(id)).collect();
    for object in objects {
        w.free(id, object);
    }
    let slabs = |w: &World| {
        let mut slabs = 0;
        w.slab.for_each_cache(&w.m, |_, c| slabs += if c.id == id { c.slabs } else { 0 });
        slabs
    };
    let before = slabs(&w);
    w.slab.age(&w.m, &w.pages);
    // What was needed since the last look stays; what was not goes at the next.
    w.slab.age(&w.m, &w.pages);
    w.slab.age(&w.m, &w.pages);
    let capacity = w.slab.layout(id).capacity as usize;
    let per_slab = w.slab.layout(id).objects as usize;
    assert!(slabs(&w) <= 2 * capacity.div_ceil(per_slab) + 2, "{} of {before}", slabs(&w));
    assert!(before > slabs(&w));
    w.verify();
}

#[test]
fn objects_that_wander_slowly_fill_no_sheaves() {
    let w = world(2, Hostile::default());
    let id = 8;
    let mut most = 0;
    for round in 0..20_000 {
        w.m.set_cpu(0);
        let object = w.alloc(id);
        w.m.set_cpu(1);
        w.free(id, object);
        w.m.advance(3);
        if round % 100 == 0 {
            w.slab.for_each_cache(&w.m, |_, c| most = if c.id == id { most.max(c.slabs) } else { most });
        }
    }
    // Two CPUs' sheaves alone would take up more than a dozen.
    assert!(most <= 3, "{most} slabs");
    w.verify();
}

/// Whether an object of `id` shares a cache line with one of `others`.
fn shares_line(object: usize, id: u8, others: &[usize]) -> bool {
    let lines = |object: usize| object / 64..=(object + class_size(id as usize) - 1) / 64;
    let own = lines(object);
    others.iter().any(|other| lines(*other).start() <= own.end() && lines(*other).end() >= own.start())
}

#[test]
fn what_another_cpu_freed_is_not_handed_out_beside_what_is_in_use() {
    let w = world(2, Hostile::default());
    for id in (1..=NR_CLASSES as u8).filter(|id| is_dense(*id)) {
        let all: Vec<usize> = w.m.run_on(0, || (0..200).map(|_| w.alloc(id)).collect());
        let (kept, given): (Vec<_>, Vec<_>) = all.iter().enumerate().partition(|(nth, _)| nth % 2 == 0);
        let (kept, given) = (kept.into_iter().map(|(_, o)| *o).collect::<Vec<_>>(), given);
        w.m.run_on(1, || {
            given.iter().for_each(|(_, object)| w.free(id, **object));
            let mine: Vec<usize> = (0..100).map(|_| w.alloc(id)).collect();
            assert!(!mine.iter().any(|object| shares_line(*object, id, &kept)), "class {id}");
            mine.iter().for_each(|object| w.free(id, *object));
        });
        w.verify();
        w.m.run_on(0, || kept.iter().for_each(|object| w.free(id, *object)));
    }
    assert_eq!(w.in_use(), 0);
    w.verify();
}

#[test]
fn foreign_objects_come_back_and_their_slabs_change_hands() {
    let w = world(2, Hostile::default());
    let id = 2;
    let mut all: Vec<usize> = w.m.run_on(0, || (0..2000).map(|_| w.alloc(id)).collect());
    let foreign = |all: &[usize]| {
        let tag = |object: &usize| w.m.class_at(ptr::with_exposed_provenance(*object));
        all.iter().filter(|object| is_foreign(tag(object), 1)).count()
    };
    assert_eq!(foreign(&all), 2000);
    let slabs = || w.slabs(id);
    let before = slabs();
    w.m.run_on(1, || {
        for _ in 0..4 {
            for object in &mut all {
                w.free(id, *object);
                *object = w.alloc(id);
            }
        }
    });
    assert!(foreign(&all) < 500, "{} of 2000", foreign(&all));
    assert!(slabs() <= before + 4, "{} slabs, {before} before", slabs());
    w.m.run_on(1, || all.iter().for_each(|object| w.free(id, *object)));
    w.slab.shrink(&w.m, &w.pages, Some(id));
    assert_eq!((w.in_use(), slabs()), (0, 0));
    w.verify();
}

#[test]
fn slabs_of_others_are_taken_from_where_much_is_free() {
    let w = world(4, Hostile::default());
    let id = 2;
    let all: Vec<usize> = w.m.run_on(0, || (0..4000).map(|_| w.alloc(id)).collect());
    let slabs = || w.slabs(id);
    let before = slabs();
    // Every slab stays with an object in use.
    w.m.run_on(0, || all.iter().skip(1).filter(|o| **o % 4096 > 128).for_each(|object| w.free(id, *object)));
    w.slab.flush(&w.m, &w.pages, Some(id));
    let more: Vec<usize> = w.m.run_on(3, || (0..2500).map(|_| w.alloc(id)).collect());
    assert!(slabs() <= before, "{} slabs, {before} before", slabs());
    w.m.run_on(3, || more.iter().for_each(|object| w.free(id, *object)));
    w.verify();
}

/// An object that was freed twice on two CPUs lies in main and foreign sheaf of one of them, after its slab changed
/// hands.
#[test]
fn a_second_free_beside_a_foreign_one_is_found_at_the_end() {
    let w = world(2, Hostile::default());
    w.m.set_aborts(false);
    let id = 2;
    let (object, others) = w.m.run_on(0, || (w.alloc(id), (0..3).map(|_| w.alloc(id)).collect::<Vec<_>>()));
    w.m.run_on(1, || {
        let other = w.alloc(id);
        w.free(id, other);
        w.free(id, object);
        assert!(w.slab.freed_twice(&w.m, &w.pages).is_none());
        // The slab becomes this CPU's.
        let pfn = w.m.pfn(ptr::with_exposed_provenance(object)).unwrap();
        let own = w.m.class_at(ptr::with_exposed_provenance(other));
        w.m.class(pfn).store(own, Ordering::Relaxed);
        w.free(id, object);
        assert_eq!(w.slab.freed_twice(&w.m, &w.pages), Some((id, object)));
    });
    drop(others);
}

#[test]
fn foreign_objects_serve_where_there_is_no_other_memory() {
    let w = world(2, Hostile::default());
    let id = 2;
    let all: Vec<usize> = w.m.run_on(0, || (0..100).map(|_| w.alloc(id)).collect());
    w.m.run_on(1, || {
        all.iter().for_each(|object| w.free(id, *object));
        // Nothing else is left: neither slabs nor pages.
        let mut rest = Vec::new();
        while let Some(object) = Some(w.alloc(3)).filter(|object| *object != 0) {
            rest.push(object);
        }
        let mut got: Vec<usize> = (0..10_000).map(|_| w.alloc(id)).take_while(|object| *object != 0).collect();
        assert!(all.iter().all(|object| got.contains(object)), "{} objects", got.len());
        got.iter().for_each(|object| w.free(id, *object));
        got.clear();
        rest.iter().for_each(|object| w.free(3, *object));
    });
    w.verify();
}

/// What is free in slabs of other CPUs, and of other nodes, is handed out before a request fails, unless it is to be of
/// its own node.
#[test]
fn slabs_of_others_serve_where_there_is_no_other_memory() {
    for nodes in [1, 2] {
        let w = nodes_of(nodes);
        let take = |id, gfp| w.slab.alloc_direct(&w.m, &w.pages, id, gfp).expose_provenance();
        let all = |id, gfp| core::iter::repeat_with(move || take(id, gfp)).take_while(|object| *object != 0);
        let others: Vec<usize> = w.m.run_on(1, || all(2, Gfp::KERNEL).take(2000).collect());
        let given: Vec<usize> = others.into_iter().step_by(2).collect();
        w.slab.mark_all(2, &given);
        w.slab.free_objects(&w.m, &w.pages, &given, Gfp::KERNEL);
        w.m.run_on(0, || {
            assert!(all(3, Gfp::KERNEL).count() > 1000, "nothing else is left");
            let near: Vec<usize> = all(2, Gfp::KERNEL | Gfp::THISNODE).collect();
            assert_eq!(given.iter().all(|object| near.contains(object)), nodes == 1);
            let got: Vec<usize> = all(2, Gfp::KERNEL).chain(near).collect();
            assert!(given.iter().all(|object| got.contains(object)), "{} of {}", got.len(), given.len());
        });
        w.verify();
    }
}

/// Objects of several nodes that go back together go back to their own slabs each, and those to the zone.
#[test]
fn objects_of_several_nodes_go_back_together() {
    let (w, id) = (nodes_of(2), 33);
    let used = || {
        let zones = w.pages.stats(&w.m).all;
        zones.present - zones.free
    };
    let take = |cpu| -> Vec<usize> {
        let object = || w.slab.alloc_direct(&w.m, &w.pages, id, Gfp::KERNEL).expose_provenance();
        w.m.run_on(cpu, || (0..300).map(|_| object()).collect())
    };
    let objects: Vec<usize> = take(0).into_iter().zip(take(1)).flat_map(|(a, b)| [a, b]).collect();
    let most = used();
    w.slab.mark_all(id, &objects);
    w.slab.free_objects(&w.m, &w.pages, &objects, Gfp::KERNEL);
    w.verify();
    let left = used();
    assert!(w.in_use() == 0 && left < most / 4, "{left} of {most} pages");
}

/// Where pops look at the object below, one that was written to after it was freed is found before it is the next.
#[test]
fn a_pop_that_looks_below_finds_what_was_written_to_there() {
    for (below, found) in [(false, 0), (true, 1)] {
        let w = world(1, Hostile::default());
        w.m.set_aborts(false);
        w.m.set_looks_below(below);
        let id = class_of(64);
        (0..=exchange::FIRST_DIRECT).for_each(|_| w.free(id, w.alloc(id)));
        let objects = [(); 4].map(|()| w.alloc(id));
        objects.iter().for_each(|object| w.free(id, *object));
        unsafe { mark_of(ptr::with_exposed_provenance_mut(objects[2])).write(1) };
        assert_eq!(w.alloc(id), objects[3]);
        assert_eq!(w.m.take_reports().len(), found);
        let next = [w.alloc(id), w.alloc(id)];
        assert_eq!((next, w.m.take_reports().len()), ([objects[1], objects[0]], 1 - found));
    }
}

/// The slab of an object that is in two sheaves goes back by the one, and its page is another class's when the other is
/// taken.
#[test]
fn a_page_that_is_something_else_by_now_is_not_adopted() {
    let w = world(2, Hostile::default());
    let object = w.alloc(1) as *const u8;
    let pfn = w.m.pfn(object).unwrap();
    let before = w.m.class(pfn).load(Ordering::Relaxed);
    // SAFETY: only its address counts.
    let sheaf = unsafe {
        let memory = w.slab.alloc_direct(&w.m, &w.pages, SHEAF_CACHE, Gfp::KERNEL);
        let mut sheaf = Sheaf::new(memory, w.slab.capacity(2));
        sheaf.push(object.cast_mut()).unwrap();
        sheaf
    };
    w.m.run_on(1, || w.slab.adopt_all(&w.m, 2, &sheaf));
    assert_eq!(w.m.class(pfn).load(Ordering::Relaxed), before);
    w.m.run_on(1, || w.slab.adopt_all(&w.m, 1, &sheaf));
    assert_ne!(w.m.class(pfn).load(Ordering::Relaxed), before);
    let _ = sheaf.into_memory();
}
