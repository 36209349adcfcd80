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
fn verify_sees_damage() {
    let mut space = open(50);
    let area = space.carve(BASE + 4 * SLOT, 4 * SLOT).unwrap();
    area.mapped.set(4 * SLOT);
    space.hand_out(area, 3 * SLOT);
    space.verify(|_| Ok(())).unwrap();
    space.figures.busy_bytes += 1;
    assert!(space.verify(|_| Ok(())).is_err());
    space.figures.busy_bytes -= 1;
    area.len.set(5 * SLOT);
    area.mapped.set(5 * SLOT);
    space.areas.resized(area);
    assert_eq!(space.verify(|_| Ok(())), Err("vmalloc: holes and areas do not cover the window"));
    area.len.set(4 * SLOT);
    area.mapped.set(4 * SLOT);
    space.areas.resized(area);
    area.state.set(State::Retained);
    assert!(space.verify(|_| Ok(())).is_err());
}
