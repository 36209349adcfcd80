//! Pages that move: rows A2 and D8.

use alloc::vec::Vec;

use slabwright::api::{self, KmapGuard};
use slabwright::gfp::Gfp;
use slabwright::machine::Frames;
use slabwright::machine::i386::layout::DMA_END;
use slabwright::machine::i386::{I386, memory};
use slabwright::mm::PageOwner;
use slabwright::sync::Lock;
use slabwright::types::{Order, PAGE_SHIFT, PAGEBLOCK_PAGES, Pfn};

use super::{Test, free_pages};
use crate::kernel::HEAP;

/// These need megabytes.
pub const ROOMY: &[Test] = &[
    ("A2 contents move, their frame is used anew", moved),
    ("D8 compaction makes a block of order 9 of a fragmented zone", compacted),
];

const GFP: Gfp = Gfp(Gfp::HIGHUSER_MOVABLE.0 | Gfp::NORETRY.0);

/// Pages by their cookies. Those that are gone are [`Pfn::NONE`].
struct Book(Lock<Vec<Pfn>>);

static BOOK: Book = Book(Lock::new(Vec::new()));

impl PageOwner for Book {
    fn migrate(&self, cookie: u64, from: Pfn, to: Pfn, copy: &mut dyn FnMut() -> bool) -> bool {
        let mut pages = self.0.lock(&I386);
        if pages.get(cookie as usize) != Some(&from) || !copy() {
            return false;
        }
        pages[cookie as usize] = to;
        true
    }
}

fn view(pfn: Pfn) -> KmapGuard<'static, I386> {
    api::kmap_local(&HEAP, pfn).expect("a slot")
}

fn mark(pfn: Pfn, with: u32) {
    let view = view(pfn);
    // SAFETY: the page is this test's; its first and its last word.
    unsafe {
        view.as_ptr().cast::<u32>().write_volatile(with);
        view.as_ptr().add(4092).cast::<u32>().write_volatile(!with);
    }
}

fn check(pfn: Pfn, with: u32) {
    let view = view(pfn);
    // SAFETY: as above.
    let found =
        unsafe { (view.as_ptr().cast::<u32>().read_volatile(), view.as_ptr().add(4092).cast::<u32>().read_volatile()) };
    assert_eq!(found, (with, !with), "{pfn:?}");
}

fn moved() {
    let id = HEAP.register_owner(&BOOK).expect("room for an owner");
    BOOK.0.lock(&I386).reserve(1);
    let first = HEAP.alloc_movable(GFP, id, 0).expect("a page");
    BOOK.0.lock(&I386).push(first);
    mark(first, 0x5157);
    let second = HEAP.migrate_page(first, GFP).expect("it may move");
    assert!(second != first && BOOK.0.lock(&I386)[0] == second);
    // The frame that was left is handed out again.
    let mut held = Vec::with_capacity(memory::frames() as usize);
    while held.last() != Some(&first) {
        held.push(HEAP.alloc_pages(GFP, 0, None).expect("a page, until it is that one"));
    }
    held.iter().for_each(|pfn| mark(*pfn, 0));
    check(second, 0x5157);
    // Held by somebody else it stays.
    HEAP.get_page(second).expect("it is allocated");
    assert!(HEAP.migrate_page(second, GFP).is_err());
    free_pages(second, 0);
    held.into_iter().chain([second]).for_each(|pfn| free_pages(pfn, 0));
    *BOOK.0.lock(&I386) = Vec::new();
}

fn compacted() {
    let id = HEAP.register_owner(&BOOK).expect("room for an owner");
    let mut pages = Vec::with_capacity(memory::frames() as usize);
    while let Ok(pfn) = HEAP.alloc_movable(GFP, id, pages.len() as u64) {
        mark(pfn, pages.len() as u32);
        pages.push(pfn);
    }
    // Every other page of what is not ZONE_DMA, which the requests above had not all of, either; unless there is
    // nothing else.
    let dma_end = (DMA_END >> PAGE_SHIFT) as u32;
    let first = if memory::frames() > dma_end { dma_end } else { 0 };
    for pfn in pages.iter_mut().step_by(2).filter(|pfn| pfn.0 >= first) {
        free_pages(core::mem::replace(pfn, Pfn::NONE), 0);
    }
    let before = pages.clone();
    *BOOK.0.lock(&I386) = pages;
    let plain = || HEAP.pages().alloc_pages(&I386, GFP, Order::PAGEBLOCK, None);
    let whole: Vec<Pfn> = core::iter::from_fn(plain).collect();
    // With nothing but ZONE_DMA each of a few pageblocks may hold something that does not move.
    let made = HEAP.alloc_pages(GFP, 9, None).ok();
    assert!(made.is_some() || first == 0, "compaction makes a block");
    let pages = core::mem::take(&mut *BOOK.0.lock(&I386));
    let moved = pages.iter().zip(&before).filter(|(now, then)| now != then).count();
    if let Some(made) = made {
        assert_eq!((made.0 % PAGEBLOCK_PAGES, I386.page(made).order().get()), (0, 9));
        assert!(moved > 0, "no page moved");
        free_pages(made, 9);
    }
    whole.into_iter().for_each(|block| free_pages(block, 9));
    for (nth, pfn) in pages.into_iter().enumerate().filter(|(_, pfn)| pfn.is_some()) {
        check(pfn, nth as u32);
        free_pages(pfn, 0);
    }
    HEAP.verify().expect("all is in order");
}
