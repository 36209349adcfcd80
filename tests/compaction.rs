//! Pages that move: compaction of fragmented zones, and what stays the same when a page gets another frame.
#![cfg(all(target_os = "linux", feature = "sim"))]
#![allow(clippy::undocumented_unsafe_blocks)] // the calls under test, on memory of the test's own

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use slabwright::api::kmap_local;
use slabwright::error::AllocError;
use slabwright::gfp::Gfp;
use slabwright::machine::sim::{Bare, Call, Mode, Sim, SimBare, SimHosted, Simulated, Space, Task};
use slabwright::machine::{Frames, ZoneKind};
use slabwright::mm::{Hooks, Mm, OwnerId, PageOwner};
use slabwright::paging::Flags;
use slabwright::types::{Order, PAGE_SIZE, PAGEBLOCK_PAGES, Pfn};

type Machine = SimBare;

fn heap(sim: Machine) -> &'static Mm<Machine> {
    let after = |mm: &Mm<Machine>| {
        for (node, zone, range) in mm.machine().ram() {
            unsafe { mm.pages().add(mm.machine(), *node, *zone, *range) };
        }
    };
    let mm = Box::leak(Box::new(Mm::with_hooks(sim, Hooks { before: None, after: Some(after) })));
    assert!(mm.start());
    mm
}

/// Two CPUs, `pages` pages of NORMAL and as many without an address.
fn machine(pages: u32, high: u32) -> &'static Mm<Machine> {
    let sim = SimBare::builder().cpus(2).tables(0, 64).ram(0, ZoneKind::Normal, 1 << 12, pages);
    heap(if high > 0 { sim.ram(0, ZoneKind::HighMem, 1 << 14, high).build() } else { sim.build() })
}

/// Pages by number, each filled with its number.
struct Book {
    mm: &'static Mm<Machine>,
    id: OwnerId,
    pages: Mutex<BTreeMap<u64, Pfn>>,
    /// It lets none of them go.
    stubborn: Mutex<bool>,
}

impl Book {
    fn new(mm: &'static Mm<Machine>) -> &'static Book {
        // The id is known once the owner is: an owner that delegates.
        struct Shelf(Mutex<Option<&'static Book>>);
        impl PageOwner for Shelf {
            fn migrate(&self, cookie: u64, from: Pfn, to: Pfn, copy: &mut dyn FnMut() -> bool) -> bool {
                let book = self.0.lock().unwrap().expect("pages come later");
                book.migrate(cookie, from, to, copy)
            }
        }
        let shelf: &'static Shelf = Box::leak(Box::new(Shelf(Mutex::new(None))));
        let id = mm.register_owner(shelf).unwrap();
        let book = Book { mm, id, pages: Mutex::new(BTreeMap::new()), stubborn: Mutex::new(false) };
        let book: &'static Book = Box::leak(Box::new(book));
        *shelf.0.lock().unwrap() = Some(book);
        book
    }

    fn migrate(&self, cookie: u64, from: Pfn, to: Pfn, copy: &mut dyn FnMut() -> bool) -> bool {
        let mut pages = self.pages.lock().unwrap();
        if *self.stubborn.lock().unwrap() || pages.get(&cookie) != Some(&from) || !copy() {
            return false;
        }
        pages.insert(cookie, to);
        true
    }

    /// One more page; false where there is no memory.
    fn add(&self, number: u64, gfp: Gfp) -> bool {
        let mut pages = self.pages.lock().unwrap();
        let Ok(pfn) = self.mm.alloc_movable(gfp | Gfp::NORETRY, self.id, number) else { return false };
        let view = kmap_local(self.mm, pfn).unwrap();
        unsafe { view.as_ptr().cast::<[u64; PAGE_SIZE / 8]>().write([number ^ 0x5157; PAGE_SIZE / 8]) };
        pages.insert(number, pfn);
        true
    }

    fn check(&self, number: u64, pfn: Pfn) {
        let view = kmap_local(self.mm, pfn).unwrap();
        let words = unsafe { view.as_ptr().cast::<[u64; PAGE_SIZE / 8]>().read() };
        assert!(words.iter().all(|word| *word == number ^ 0x5157), "page {number} in {pfn:?} holds something else");
        let page = self.mm.machine().page(pfn);
        assert_eq!((page.word(), page.refs()), (number, 1));
    }

    fn check_all(&self) {
        self.pages.lock().unwrap().iter().for_each(|(number, pfn)| self.check(*number, *pfn));
    }

    fn remove(&self, number: u64) {
        let mut pages = self.pages.lock().unwrap();
        let pfn = pages.remove(&number).unwrap();
        self.check(number, pfn);
        unsafe { self.mm.free_pages(pfn, 0).unwrap() };
    }

    /// Fills the memory, then frees all pages but each `nth`.
    fn fragment(&self, gfp: Gfp, nth: u64) -> u64 {
        let count = (0..).take_while(|number| self.add(*number, gfp)).count() as u64;
        (0..count).filter(|number| number % nth != 0).for_each(|number| self.remove(number));
        count
    }
}

/// A block of `order` without compaction.
fn plain(mm: &Mm<Machine>, gfp: Gfp, order: u8) -> Option<Pfn> {
    let (m, order) = (mm.machine(), Order::new(order).unwrap());
    let block = mm.pages().alloc_pages(m, gfp, order, None)?;
    unsafe { mm.pages().free_pages(m, block, order, true) };
    Some(block)
}

const MOVABLE: Gfp = Gfp(Gfp::KERNEL.0 | Gfp::MOVABLE.0);
const HIGH: Gfp = Gfp(Gfp::HIGHUSER_MOVABLE.0);

// rows: D8 D12
#[test]
fn a_block_is_made_of_a_fragmented_zone() {
    for (normal, high, gfp) in [(8192, 0, MOVABLE), (4096, 4096, HIGH)] {
        let mm = machine(normal, high);
        let book = Book::new(mm);
        let count = book.fragment(gfp, 2);
        assert!(count > 6000, "{count} pages");
        let before = book.pages.lock().unwrap().clone();
        assert_eq!(plain(mm, gfp, 9), None, "no block of order 9 before");
        let caches = mm.machine().calls(Call::FlushCache);
        let block = mm.alloc_pages(gfp, 9, None).expect("direct compaction makes one");
        assert_eq!(block.0 % PAGEBLOCK_PAGES, 0);
        book.check_all();
        let moved = before.iter().filter(|(number, pfn)| book.pages.lock().unwrap()[number] != **pfn).count();
        assert!((1..=count as usize / 2).contains(&moved));
        assert!(mm.machine().calls(Call::FlushCache) >= caches + moved as u64, "hooks of caches");
        mm.verify().unwrap();
        // A quarter of the memory at least can be had in such blocks.
        let more: Vec<Pfn> = std::iter::from_fn(|| mm.alloc_pages(gfp, 9, None).ok()).collect();
        assert!(more.len() >= 4, "{} more", more.len());
        book.check_all();
        mm.verify().unwrap();
        more.into_iter().chain([block]).for_each(|block| unsafe { mm.free_pages(block, 9).unwrap() });
        let left: Vec<u64> = book.pages.lock().unwrap().keys().copied().collect();
        left.into_iter().for_each(|number| book.remove(number));
        mm.verify().unwrap();
        assert!(plain(mm, gfp, 10).is_some(), "all is in one piece again");
    }
}

// rows: D8 D6
#[test]
fn what_may_not_move_stays() {
    let mm = machine(4096, 0);
    let book = Book::new(mm);
    let count = book.fragment(MOVABLE, 4);
    // One page of a pageblock that is held elsewhere keeps the pageblock.
    let pinned: Vec<Pfn> = {
        let pages = book.pages.lock().unwrap();
        let mut by_block = BTreeMap::new();
        pages.values().for_each(|pfn| _ = by_block.insert(pfn.0 / PAGEBLOCK_PAGES, *pfn));
        by_block.into_values().collect()
    };
    pinned.iter().for_each(|pfn| mm.get_page(*pfn).unwrap());
    let before = book.pages.lock().unwrap().clone();
    let done = mm.compact(MOVABLE, 9);
    assert_eq!((done.moved, done.done), (0, false), "moving the others would gain nothing");
    assert_eq!(mm.alloc_pages(MOVABLE, 9, None), Err(AllocError::NoMemory));
    // For a smaller order the others move.
    let done = mm.compact(MOVABLE, 8);
    assert!(done.done && done.moved > 0, "{done:?}");
    assert!(pinned.iter().all(|pfn| book.pages.lock().unwrap().values().any(|at| at == pfn)), "one in use moved");
    pinned.iter().for_each(|pfn| unsafe { mm.free_pages(*pfn, 0).unwrap() });
    book.check_all();
    // An owner that says no.
    *book.stubborn.lock().unwrap() = true;
    let before = (before.len(), book.pages.lock().unwrap().clone());
    let done = mm.compact(MOVABLE, 9);
    assert!(done.refused > 0 && done.moved == 0 && !done.done, "{done:?}");
    assert_eq!(*book.pages.lock().unwrap(), before.1);
    book.check_all();
    *book.stubborn.lock().unwrap() = false;
    assert!(mm.compact(MOVABLE, 9).done);
    mm.verify().unwrap();
    assert!(count as usize >= before.0);
    // Atomic requests do not compact, nor do those without leave.
    let sim = mm.machine();
    sim.forbid_calls(|| assert!(!mm.compact(Gfp::ATOMIC, 10).done));
}

/// A space as the owner of its pages: the cookie is the address.
struct Program(Arc<Space<Bare>>);

impl PageOwner for Program {
    fn migrate(&self, address: u64, from: Pfn, to: Pfn, copy: &mut dyn FnMut() -> bool) -> bool {
        let at = address as usize;
        let Some((frame, flags)) = self.0.lookup(at).filter(|(frame, _)| *frame == from) else { return false };
        // Unmapped on all CPUs, so that nothing is written while it is copied.
        self.0.unmap(at).expect("it was there");
        let copied = copy();
        self.0.map(at, if copied { to } else { frame }, flags.without(Flags::USER)).unwrap();
        copied
    }
}

// rows: A2
#[test]
fn contents_move_and_the_frame_is_used_anew() {
    let mm = machine(4096, 1024);
    let space = Arc::new(mm.machine().space().unwrap());
    let id = mm.register_owner(Box::leak(Box::new(Program(space.clone())))).unwrap();
    let at = 0x0804_8000usize;
    let first = mm.alloc_movable(MOVABLE, id, at as u64).unwrap();
    space.map(at, first, Flags::WRITE).unwrap();
    let mut task = Task::new(&space, Mode::User);
    task.store(at + 100, b"what a descriptor describes is the frame").unwrap();
    // To memory without an address, and on.
    let second = mm.migrate_page(first, HIGH).unwrap();
    assert!(second != first && mm.machine().virt(second).is_null());
    assert_eq!(space.lookup(at).unwrap().0, second);
    assert_eq!(&task.load::<20>(at + 100).unwrap(), b"what a descriptor de");
    // The first frame is somebody else's now, and the program does not see that.
    let held: Vec<Pfn> = (0..64).map(|_| mm.alloc_pages(MOVABLE, 0, None).unwrap()).collect();
    assert!(held.contains(&first), "the frame that was left is handed out again");
    held.iter().for_each(|pfn| unsafe { mm.machine().virt(*pfn).write_bytes(0xee, PAGE_SIZE) });
    task.store(at + 105, b"WAS").unwrap();
    assert_eq!(&task.load::<12>(at + 100).unwrap(), b"what WASescr");
    let third = mm.migrate_page(second, MOVABLE).unwrap();
    assert!(third != second && third != first);
    assert_eq!(&task.load::<8>(at + 100).unwrap(), b"what WAS");
    // Held by somebody else it does not move.
    mm.get_page(third).unwrap();
    assert_eq!(mm.migrate_page(third, MOVABLE), Err(AllocError::Invalid));
    assert_eq!(&task.load::<8>(at + 100).unwrap(), b"what WAS");
    unsafe { mm.free_pages(third, 0).unwrap() };
    assert_eq!(mm.migrate_page(held[0], MOVABLE), Err(AllocError::Invalid), "an ordinary page");
    mm.verify().unwrap();
}

/// Compaction against two threads that allocate, look and free.
#[test]
fn pages_move_while_others_come_and_go() {
    let mm = machine(4096, 0);
    let book = Book::new(mm);
    std::thread::scope(|s| {
        for thread in 0..2u64 {
            s.spawn(move || {
                mm.machine().set_cpu(thread as usize);
                let mut live = Vec::new();
                for n in 0..3000u64 {
                    let number = n << 1 | thread;
                    if live.len() < 1200 && book.add(number, MOVABLE) {
                        live.push(number);
                    }
                    if n % 3 == 0 || live.len() >= 1200 {
                        book.remove(live.swap_remove((n * 7919) as usize % live.len()));
                    }
                }
            });
        }
        s.spawn(move || {
            for _ in 0..12 {
                mm.compact(MOVABLE, 10);
                std::thread::yield_now();
            }
        });
    });
    book.check_all();
    mm.verify().unwrap();
    assert!(mm.compact(MOVABLE, 9).done);
    book.check_all();
    mm.verify().unwrap();
}

// rows: D8
#[test]
fn lent_memory_is_compacted_and_a_process_moves_nothing() {
    let sim: Simulated<_> = Sim::builder().cpus(1).ram(0, ZoneKind::Normal, 1 << 12, 4096).build();
    let after = |mm: &Mm<Sim>| {
        for (node, zone, range) in mm.machine().ram() {
            unsafe { mm.pages().add(mm.machine(), *node, *zone, *range) };
        }
    };
    struct Nothing;
    impl PageOwner for Nothing {
        fn migrate(&self, _: u64, _: Pfn, _: Pfn, _: &mut dyn FnMut() -> bool) -> bool {
            false
        }
    }
    static NOTHING: Nothing = Nothing;
    let lent: Box<Mm<Sim>> = Box::new(Mm::with_hooks(sim, Hooks { before: None, after: Some(after) }));
    assert!(lent.start() && lent.register_owner(&NOTHING).is_ok());
    assert!(lent.compact(MOVABLE, 9).done, "nothing has to move where a block is free");
    let hosted = Mm::new(SimHosted::builder().grow(0, ZoneKind::Normal, 1 << 14, 1 << 12, 1 << 10).build());
    assert_eq!(hosted.register_owner(&NOTHING).map(|_| ()), Err(AllocError::Unsupported));
    assert_eq!(hosted.compact(MOVABLE, 9).moved, 0);
}
