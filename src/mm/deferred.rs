//! What was freed where a lock was not to be had: kept for the next slow path that may block.
#![allow(unsafe_code)]

use core::ptr;

use super::Mm;
use crate::gfp::Gfp;
use crate::machine::Machine;
use crate::page::Kind;
use crate::types::{Order, Pfn};

/// The lowest bits of a name, which say of what. The rest is an address, or, shifted, the number of a frame.
const WHAT: usize = 3;
/// A block of the page or vmalloc layer, linked through its first word.
const BLOCK: usize = 0;
/// Per-CPU data, linked through the first word of the first copy.
const PERCPU: usize = 1;
/// Pages, linked through their descriptor: they may have no address.
const PAGES: usize = 2;

impl<M: Machine> Mm<M> {
    /// Keeps a block of the page or vmalloc layer for the next slow path that may block.
    pub(super) fn defer(&self, block: *mut u8) {
        self.push_deferred(block.expose_provenance() | BLOCK);
    }

    /// The same for per-CPU data, by the address of the first copy.
    pub(super) fn defer_percpu(&self, first: *mut u8) {
        self.push_deferred(first.expose_provenance() | PERCPU);
    }

    /// The same for a block of pages.
    pub(super) fn defer_pages(&self, pfn: Pfn, order: Order) {
        self.machine.page(pfn).set_kind(Kind::Isolated, order);
        self.push_deferred(pfn.index() << WHAT.count_ones() | PAGES);
    }

    fn push_deferred(&self, name: usize) {
        self.deferred.push(name, |next| match name & WHAT {
            PAGES => self.machine.page(deferred_pages(name)).set_word(next as u64),
            // SAFETY: what is named was freed, is at least a word long, and nobody else's.
            _ => unsafe { deferred_block(name).cast::<usize>().write(next) },
        });
    }

    pub(super) fn drain_deferred(&self) {
        if self.deferred.is_empty() {
            return;
        }
        let mut next = self.deferred.take();
        while next != 0 {
            let name = next;
            // Each link is read once, as what was deferred twice would be a ring.
            next = match name & WHAT {
                PAGES => {
                    let page = self.machine.page(deferred_pages(name));
                    let next = page.word();
                    page.set_word(0);
                    next as usize
                }
                // SAFETY: `push_deferred` wrote the link; what is named was nobody's since.
                _ => unsafe { deferred_block(name).cast::<usize>().replace(0) },
            };
            match name & WHAT {
                BLOCK => self.free_deferred(deferred_block(name)),
                PAGES => {
                    let pfn = deferred_pages(name);
                    let order = self.machine.page(pfn).order();
                    // SAFETY: whoever deferred it gave it up.
                    unsafe { self.pages.free_pages(&self.machine, pfn, order, true) };
                }
                // SAFETY: whoever deferred it gave it up. What is wrong with it was reported.
                _ => drop(unsafe { self.free_percpu_as(deferred_block(name), Gfp::KERNEL) }),
            }
        }
    }
}

fn deferred_block(name: usize) -> *mut u8 {
    ptr::with_exposed_provenance_mut(name & !WHAT)
}

fn deferred_pages(name: usize) -> Pfn {
    Pfn((name >> WHAT.count_ones()) as u32)
}

#[cfg(test)]
mod tests {
    use std::boxed::Box;

    use core::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::error::Defect;
    use crate::machine::sim::{Call, Flavour, Hosted, Sim, SimBare, Simulated};
    use crate::machine::{Context, ZoneKind};
    use crate::sync::Fork;

    fn machine<F: Flavour>(sim: Simulated<F>) -> Box<Mm<Simulated<F>>> {
        let mm = Box::new(Mm::new(sim));
        mm.start();
        for (node, kind, range) in mm.machine.ram() {
            // SAFETY: the simulated machine's memory, added once.
            unsafe { mm.pages.add(&mm.machine, *node, *kind, *range) };
        }
        mm
    }

    /// Runs `body` while another has the locks of the page layer.
    fn while_locked<F: Flavour>(mm: &Mm<Simulated<F>>, body: impl FnOnce()) {
        let fork = Fork { token: 1, needs_all: true };
        assert!(mm.pages.lock_all(&mm.machine, fork));
        body();
        // SAFETY: taken before.
        unsafe { mm.pages.unlock_all(&mm.machine, fork) };
    }

    /// Of memory that has no address.
    #[test]
    fn high_memory_can_be_deferred() {
        let sim = SimBare::builder().ram(0, ZoneKind::Normal, 4096, 4096).ram(0, ZoneKind::HighMem, 8192, 4096);
        let mm = machine(sim.build());
        let before = mm.stats().pages_in_use;
        for order in [0, 3, 9] {
            let blocks = [(); 3].map(|()| mm.alloc_pages(Gfp::HIGHUSER, order, None).unwrap());
            assert!(blocks.iter().all(|pfn| pfn.0 >= 8192));
            // SAFETY: the blocks are the test's.
            while_locked(&mm, || blocks.iter().for_each(|pfn| unsafe { mm.free_pages(*pfn, order).unwrap() }));
            assert!(!mm.deferred.is_empty());
            mm.drain_deferred();
            assert!(mm.deferred.is_empty());
            mm.verify().unwrap();
        }
        mm.pages.drain(&mm.machine);
        assert!(mm.stats().pages_in_use <= before + 8);
    }

    /// A handler moves pages while another CPU has the zone.
    #[test]
    fn the_frame_that_a_page_moved_from_is_not_lost() {
        struct Owner(AtomicBool);
        impl crate::mm::PageOwner for Owner {
            fn migrate(&self, _: u64, _: Pfn, _: Pfn, copy: &mut dyn FnMut() -> bool) -> bool {
                self.0.store(true, Ordering::Relaxed);
                copy()
            }
        }
        static OWNER: Owner = Owner(AtomicBool::new(false));
        let mm = machine(SimBare::builder().cpus(1).ram(0, ZoneKind::Normal, 4096, 4096).build());
        let owner = mm.register_owner(&OWNER).unwrap();
        let page = mm.alloc_movable(Gfp::KERNEL, owner, 1).unwrap();
        mm.pages.drain(&mm.machine);
        let before = mm.stats().pages_in_use;
        let fork = Fork { token: 1, needs_all: true };
        let hook = |call| {
            // The page was copied.
            if call == Call::FlushCache && OWNER.0.swap(false, Ordering::Relaxed) {
                assert!(mm.pages.lock_all(&mm.machine, fork));
            }
        };
        mm.machine.enter();
        let moved = mm.machine.with_hook(&hook, || mm.migrate_page(page, Gfp::ATOMIC));
        mm.machine.leave();
        // SAFETY: taken by the hook.
        unsafe { mm.pages.unlock_all(&mm.machine, fork) };
        assert_ne!(moved, Ok(page));
        assert!(moved.is_ok() && !mm.deferred.is_empty());
        mm.drain_deferred();
        mm.pages.drain(&mm.machine);
        assert_eq!(mm.stats().pages_in_use, before);
        mm.verify().unwrap();
    }

    /// Areas begin at slots, and what is deferred is written to.
    #[test]
    fn a_stray_pointer_into_an_area_is_not_deferred() {
        let sim = Simulated::<Hosted>::builder().ram(0, ZoneKind::Normal, 1024, 1 << 12).window(64 << 21);
        let mm = machine(sim.build());
        mm.machine.set_aborts(false);
        let area = mm.alloc(4 << 20);
        assert!(mm.vmalloc.contains(&mm.machine, area));
        let fork = Fork { token: 1, needs_all: true };
        assert!(mm.vmalloc.lock_all(&mm.machine, fork));
        for stray in [1, 2, 3, 8, 4096] {
            assert_eq!(mm.free_large(area.wrapping_add(stray), Gfp::ATOMIC), Err(Defect::Interior));
        }
        assert_eq!(mm.free_large(area, Gfp::ATOMIC), Ok(()));
        // SAFETY: taken above.
        unsafe { mm.vmalloc.unlock_all(&mm.machine, fork) };
        mm.drain_deferred();
        assert!(mm.deferred.is_empty());
        mm.verify().unwrap();
    }

    /// A handler frees what is per CPU while the one that it interrupted has the map.
    #[test]
    fn per_cpu_data_can_be_deferred() {
        let mm = machine(Sim::builder().grow(0, ZoneKind::Normal, 1 << 14, 1 << 14, 1 << 10).build());
        let [first, second] = [(); 2].map(|()| mm.alloc_percpu(64, 16, Gfp::KERNEL).unwrap());
        let map = mm.percpu.lock(&mm.machine);
        mm.machine.enter();
        // SAFETY: the copies are the test's.
        unsafe { mm.free_percpu(first).unwrap() };
        mm.machine.leave();
        drop(map);
        assert!(!mm.deferred.is_empty());
        mm.drain_deferred();
        assert_eq!(mm.alloc_percpu(64, 16, Gfp::KERNEL), Ok(first), "its place is free again");
        // SAFETY: as above.
        [first, second].into_iter().for_each(|copies| unsafe { mm.free_percpu(copies).unwrap() });
        mm.verify().unwrap();
    }
}
