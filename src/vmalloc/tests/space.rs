//! The bookkeeping of the window against a map of slots.

use std::vec;
use std::vec::Vec;

use super::Rng;
use super::tree::pool;
use crate::vmalloc::node::{Ref, State};
use crate::vmalloc::space::Space;

const SLOT: usize = 1 << 12;
const BASE: usize = 0x70_0000;

fn open(slots: usize) -> Space {
    let mut space = Space::new();
    space.pool = pool(400);
    space.open(BASE + 1, BASE + (slots + 1) * SLOT + 17, 12, 0);
    space
}

#[test]
fn every_slot_has_one_owner() {
    const SLOTS: usize = 300;
    let mut space = open(SLOTS);
    // The window begins at the first whole slot.
    let base = BASE + SLOT;
    assert_eq!(space.window(), SLOTS * SLOT);
    let mut rng = Rng(0xabcdef);
    let mut owner = vec![0usize; SLOTS];
    let mut live: Vec<Ref> = Vec::new();
    let mark = |owner: &mut [usize], area: Ref, old: bool| {
        for slot in &mut owner[(area.start.get() - base) / SLOT..(area.end() - base) / SLOT] {
            assert_eq!(*slot != 0, old);
            *slot = usize::from(!old);
        }
    };
    let longest_run = |owner: &[usize]| {
        let mut best = 0;
        let mut run = 0;
        for o in owner {
            run = if *o == 0 { run + 1 } else { 0 };
            best = best.max(run);
        }
        best
    };
    for _ in 0..20_000 {
        match rng.below(6) {
            0 | 1 => {
                let len = 1 + rng.below(12);
                let align = SLOT << rng.below(4);
                let room = rng.below(3) * SLOT;
                match space.find(len * SLOT, align, room) {
                    Some(start) => {
                        assert_eq!(start % align, 0);
                        let area = space.carve(start, len * SLOT).unwrap();
                        area.mapped.set(len * SLOT);
                        mark(&mut owner, area, false);
                        space.hand_out(area, len * SLOT);
                        live.push(area);
                    }
                    None => assert!(longest_run(&owner) < len + align / SLOT - 1, "there was room"),
                }
            }
            2 if !live.is_empty() => {
                let area = live.swap_remove(rng.below(live.len()));
                mark(&mut owner, area, true);
                space.take(area);
                space.release(area);
            }
            3 if !live.is_empty() => {
                let area = live.swap_remove(rng.below(live.len()));
                space.take(area);
                area.stamp.set(rng.next() % 100);
                space.retain(area);
            }
            4 => {
                if let Some(area) = space.oldest() {
                    space.take(area);
                    if area.len.get() > SLOT {
                        let rest = space.split(area, SLOT * (1 + rng.below(area.len.get() / SLOT - 1)), 12).unwrap();
                        if rng.below(2) == 0 {
                            space.retain(rest);
                        } else {
                            space.join(area, rest);
                        }
                    }
                    mark(&mut owner, area, true);
                    space.release(area);
                }
            }
            _ if !live.is_empty() => {
                let area = live[rng.below(live.len())];
                let by = (1 + rng.below(4)) * SLOT;
                let room = space.room_behind(area);
                assert_eq!(space.extend(area, by), room >= by);
                if room >= by {
                    if rng.below(2) == 0 {
                        let spare = space.pool.take().unwrap();
                        space.retract(area, by, spare);
                    } else {
                        area.mapped.set(area.len.get());
                        for slot in 0..by / SLOT {
                            let at = (area.end() - base) / SLOT - 1 - slot;
                            assert_eq!(core::mem::replace(&mut owner[at], 1), 0);
                        }
                    }
                }
            }
            _ => {}
        }
        space.verify(|_| Ok(())).unwrap();
        let at = rng.below(SLOTS);
        let found = space.area_of(base + at * SLOT + 7);
        assert_eq!(found.is_some(), owner[at] != 0);
    }
}

#[test]
fn best_fit_is_the_smallest_aligned() {
    let mut space = open(100);
    let areas: Vec<Ref> = [5, 3, 9, 3]
        .into_iter()
        .map(|slots| {
            let start = space.find(slots * SLOT, SLOT, SLOT).unwrap();
            let area = space.carve(start, slots * SLOT).unwrap();
            area.mapped.set(slots * SLOT);
            area
        })
        .collect();
    for (i, area) in areas.iter().enumerate() {
        area.stamp.set(i as u64);
        space.retain(area);
    }
    assert!(space.best_fit(4 * SLOT, 1).unwrap().is(areas[0]));
    assert!(space.best_fit(2 * SLOT, 1).unwrap().is(areas[1]));
    assert!(space.best_fit(6 * SLOT, 1).unwrap().is(areas[2]));
    assert!(space.best_fit(10 * SLOT, 1).is_none());
    assert!(space.oldest().unwrap().is(areas[0]));
    assert_eq!(areas[0].state.get(), State::Retained);
}

#[test]
fn a_window_holds_a_slot_and_opens_once() {
    let mut space = Space::new();
    space.pool = pool(400);
    space.open(BASE + 1, BASE + SLOT + 1, 12, 0);
    assert_eq!((space.window(), space.find(1, 1, 0)), (0, None), "there is no whole slot");
    space.open(BASE, BASE + 2 * SLOT, 12, 0);
    space.open(BASE, BASE + 9 * SLOT, 12, 0);
    assert_eq!((space.window(), space.find(3 * SLOT, SLOT, 0)), (2 * SLOT, None));
    space.verify(|_| Ok(())).unwrap();
}

#[test]
fn an_area_ends_before_its_end() {
    let mut space = open(50);
    let area = space.carve(BASE + 4 * SLOT, 4 * SLOT).unwrap();
    assert!(space.area_of(area.end() - 1).unwrap().is(area));
    assert!(space.area_of(area.end()).is_none() && space.area_of(area.start.get() - 1).is_none());
}

/// Else memory that was written to could be handed out as zeroed.
#[test]
fn parts_of_a_split_area_know_only_of_their_own_bytes() {
    let mut space = open(50);
    let area = space.carve(BASE + 4 * SLOT, 8 * SLOT).unwrap();
    area.mapped.set(8 * SLOT);
    area.zeroed.set((SLOT, 6 * SLOT));
    area.probe.set((SLOT, 6 * SLOT));
    let rest = space.split(area, 4 * SLOT, 12).unwrap();
    assert_eq!((area.zeroed.get(), area.probe.get()), ((SLOT, 4 * SLOT), (SLOT, 4 * SLOT)));
    assert_eq!((rest.zeroed.get(), rest.probe.get()), ((0, 0), (0, 2 * SLOT)));
    let last = space.split(area, SLOT, 12).unwrap();
    assert_eq!((area.zeroed.get(), area.probe.get()), ((SLOT, SLOT), (SLOT, SLOT)));
    assert_eq!((last.zeroed.get(), last.probe.get()), ((0, 0), (0, 3 * SLOT)));
}

#[test]
fn verify_sees_damage() {
    const COVER: &str = "vmalloc: holes and areas do not cover the window";
    const TREE: &str = "vmalloc: a node's state is not that of its tree";
    const SIZE: &str = "vmalloc: an area is smaller than its size";
    const MAPPED: &str = "vmalloc: an area is not mapped as long as it is";
    const SUMS: &str = "vmalloc: the figures are not the sums over the areas";
    const AGE: &str = "vmalloc: the list by age is broken";
    /// Of `old`, which are retained, the second was freed later.
    struct Nodes {
        hole: Ref,
        busy: Ref,
        old: [Ref; 2],
    }
    type Damage = fn(&mut Space, &Nodes);
    let damages: &[(&str, Damage)] = &[
        (COVER, |space, n| {
            n.busy.len.set(5 * SLOT);
            n.busy.mapped.set(5 * SLOT);
            space.areas.resized(n.busy);
        }),
        ("vmalloc: an area is not made of slots", |space, n| {
            // A hole of no length, where no hole is near.
            let none = space.pool.take().unwrap();
            none.start.set(n.old[1].start.get());
            none.len.set(0);
            space.holes.insert(none);
        }),
        ("vmalloc: an area is not made of slots", |space, n| {
            n.hole.len.set(n.hole.len.get() - 8);
            space.holes.resized(n.hole);
        }),
        ("vmalloc: two holes touch", |space, n| {
            let rest = space.pool.take().unwrap();
            rest.start.set(n.hole.start.get() + SLOT);
            rest.len.set(n.hole.len.get() - SLOT);
            n.hole.len.set(SLOT);
            space.holes.resized(n.hole);
            space.holes.insert(rest);
        }),
        (TREE, |_, n| n.hole.state.set(State::Busy)),
        (TREE, |_, n| n.busy.state.set(State::Free)),
        (SIZE, |_, n| n.busy.size.set(0)),
        (SIZE, |_, n| n.busy.size.set(4 * SLOT + 1)),
        (MAPPED, |_, n| n.busy.mapped.set(5 * SLOT)),
        (MAPPED, |_, n| n.old[0].mapped.set(3 * SLOT)),
        (MAPPED, |_, n| n.old[0].mapped.set(SLOT)),
        ("vmalloc: a node lies outside the window", |space, _| {
            let beyond = space.pool.take().unwrap();
            beyond.start.set(BASE + 51 * SLOT);
            beyond.len.set(SLOT);
            space.areas.insert(beyond);
        }),
        ("vmalloc: a node lies outside the window", |space, _| {
            let beyond = space.pool.take().unwrap();
            beyond.start.set(BASE + 51 * SLOT);
            beyond.len.set(SLOT);
            space.holes.insert(beyond);
        }),
        (SUMS, |space, _| space.figures.busy += 1),
        (SUMS, |space, _| space.figures.busy_bytes += 1),
        (SUMS, |space, _| space.figures.held_bytes += 1),
        (SUMS, |space, _| space.figures.hoped_bytes += 1),
        (SUMS, |space, _| space.figures.retained_bytes += 1),
        (SUMS, |space, n| space.retained.remove(n.old[0])),
        ("vmalloc: the charge is not the sum over the areas", |_, n| n.busy.charged.set(1)),
        (AGE, |_, n| n.old[0].stamp.set(9)),
        (AGE, |_, n| n.old[1].older.set(None)),
        (AGE, |_, n| n.old[0].newer.set(Some(n.busy))),
        (AGE, |_, n| n.old[0].newer.set(None)),
        (AGE, |_, n| n.old[1].newer.set(Some(n.old[0]))),
        ("vmalloc: more nodes than were made", |space, _| space.pool.put(pool(1).take().unwrap())),
    ];
    for (i, (error, damage)) in damages.iter().enumerate() {
        let mut space = open(50);
        let mut area = |at, slots| {
            let area = space.carve(BASE + at * SLOT, slots * SLOT).unwrap();
            area.mapped.set(slots * SLOT);
            area
        };
        let (busy, old) = (area(4, 4), [area(12, 2), area(14, 2)]);
        space.hand_out(busy, 3 * SLOT + 1);
        for (stamp, area) in old.into_iter().enumerate() {
            area.stamp.set(stamp as u64);
            space.retain(area);
        }
        space.verify(|_| Ok(())).unwrap();
        let hole = space.holes.at(busy.end()).unwrap();
        damage(&mut space, &Nodes { hole, busy, old });
        assert_eq!(space.verify(|_| Ok(())), Err(*error), "damage {i}");
    }
}
