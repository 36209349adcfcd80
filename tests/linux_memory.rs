//! Frames and mappings of a process.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::undocumented_unsafe_blocks)] // the calls under test, on memory of the test's own

#[path = "linux/smaps.rs"]
mod smaps;

use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;

use slabwright::machine::linux::{HugePages, LOW_PAGES, Linux};
use slabwright::machine::{Frames, Machine, Mapping, Report, ZoneKind};
use slabwright::page::Kind;
use slabwright::types::{Order, PAGE_SIZE, PAGEBLOCK_PAGES, PAGEBLOCK_SIZE, Pfn, PfnRange};
use smaps::{has_flag, mapping};

fn machine() -> Linux {
    static INIT: std::sync::Once = std::sync::Once::new();
    INIT.call_once(|| assert!(Linux.init()));
    Linux
}

/// Slots of the window for one test, apart from the other tests'.
fn slots(n: usize) -> usize {
    static NEXT: Mutex<usize> = Mutex::new(0);
    let mut next = NEXT.lock().unwrap();
    let at = machine().window().start + *next * PAGEBLOCK_SIZE;
    *next += n;
    assert!(at + n * PAGEBLOCK_SIZE <= machine().window().end);
    at
}

fn bytes<'a>(at: usize, len: usize) -> &'a mut [u8] {
    unsafe { std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut(at), len) }
}

fn frame_bytes<'a>(m: &Linux, range: PfnRange) -> &'a mut [u8] {
    bytes(m.virt(range.start).expose_provenance(), range.bytes())
}

fn resident(at: usize, len: usize) -> usize {
    let mut map = vec![0u8; len / PAGE_SIZE];
    let result = unsafe { libc::mincore(std::ptr::with_exposed_provenance_mut(at), len, map.as_mut_ptr()) };
    assert_eq!(result, 0);
    map.iter().filter(|&&page| page & 1 != 0).count()
}

fn check_frames(m: &Linux, range: PfnRange) {
    assert_eq!(range.start.0 % Order::MAX.pages(), 0);
    assert_eq!(range.pages % Order::MAX.pages(), 0);
    for pfn in range.iter() {
        let at = m.virt(pfn);
        assert_eq!(m.pfn(at), Some(pfn));
        assert_eq!(m.pfn(unsafe { at.add(PAGE_SIZE - 1) }), Some(pfn));
        assert_eq!(m.page(pfn).kind(), Kind::Offline);
        assert_eq!(m.page(pfn).word(), 0);
        m.page(pfn).set_word(pfn.0 as u64);
        assert_eq!(m.class(pfn).load(Relaxed), 0);
    }
    for pfn in range.iter() {
        assert_eq!(m.page(pfn).word(), u64::from(pfn.0));
        m.page(pfn).set_word(0);
    }
    // Not everywhere: what is touched is backed, by huge pages.
    for page in frame_bytes(m, range).chunks_mut(PAGE_SIZE).take(600).step_by(97) {
        assert!(page.iter().all(|&b| b == 0));
        page.fill(0xa5);
    }
}

// rows: A6 A7 A8
#[test]
fn arena_frames() {
    let m = machine();
    for pages in [1, 1024, 1025, 3000, 20_000] {
        let range = m.grow(0, ZoneKind::Normal, pages).unwrap();
        assert!(range.pages >= pages);
        assert!(range.start.0 >= LOW_PAGES);
        check_frames(&m, range);
        let at = m.virt(range.start);
        m.class(range.start).store(9, Relaxed);
        assert_eq!(m.class_at(unsafe { at.add(100) }), 9);
        assert_eq!(m.class_at(unsafe { at.add(PAGE_SIZE) }), 0);
        m.class(range.start).store(0, Relaxed);
        assert!(m.discard(range));
        assert!(frame_bytes(&m, range).iter().step_by(4096).all(|&b| b == 0));
    }
    assert_eq!(m.grow(0, ZoneKind::HighMem, 1), None);
}

#[test]
fn addresses_that_are_not_ours() {
    let m = machine();
    let range = m.grow(0, ZoneKind::Normal, 1).unwrap();
    let local = 0u8;
    let start = m.virt(Pfn(LOW_PAGES)).addr();
    let window = m.window();
    for address in [0, 1, 4096, (&raw const local).addr(), start - 1, window.start, window.end, usize::MAX, 1 << 47] {
        let address = std::ptr::without_provenance(address);
        assert_eq!(m.class_at(address), 0);
        assert_eq!(m.pfn(address), None, "{address:?}");
    }
    assert!(m.pfn(m.virt(range.start)).is_some());
}

#[test]
fn low_frames() {
    let m = machine();
    let mut got = Vec::new();
    for (zone, below) in [(ZoneKind::Dma, 16 << 20), (ZoneKind::Dma32, 1usize << 32)] {
        for _ in 0..2 {
            // Something else may sit in the few places below 16 MiB.
            let Some(range) = m.grow(0, zone, 300) else {
                assert_eq!(zone, ZoneKind::Dma);
                continue;
            };
            assert!(m.virt(range.end()).addr() <= below);
            assert_eq!(m.virt(range.start).addr(), range.start.index() * PAGE_SIZE);
            check_frames(&m, range);
            assert!(m.discard(range));
            got.push(range);
        }
    }
    got.sort_by_key(|range| range.start);
    assert!(got.windows(2).all(|w| w[0].end() <= w[1].start));
}

#[test]
fn populating() {
    let m = machine();
    let range = m.grow(0, ZoneKind::Normal, 1024).unwrap();
    let part = PfnRange::new(range.start.add(16), 48);
    m.populate(part);
    assert!(resident(m.virt(part.start).expose_provenance(), part.bytes()) == 48);
    assert!(m.discard(range));
    assert_eq!(resident(m.virt(part.start).expose_provenance(), part.bytes()), 0);
}

#[test]
fn a_pageblock_that_goes_back_in_part_is_no_huge_page_from_then_on() {
    let m = machine();
    let range = m.grow(0, ZoneKind::Normal, 4 * PAGEBLOCK_PAGES).unwrap();
    let blocks: [PfnRange; 4] =
        std::array::from_fn(|nth| PfnRange::new(range.start.add(nth as u32 * PAGEBLOCK_PAGES), PAGEBLOCK_PAGES));
    let huge = || blocks.map(|block| has_flag(m.virt(block.start).addr(), "hg"));
    blocks.iter().for_each(|block| m.advise_frames(*block, true));
    if huge() != [true; 4] {
        // The kernel has none.
        assert_eq!(huge(), [false; 4]);
        return;
    }
    assert!(m.discard(blocks[3]));
    assert_eq!(huge(), [true; 4], "whole");
    assert!(m.discard(PfnRange::new(blocks[0].start.add(500), 20)));
    assert_eq!(huge(), [false, false, true, true], "the end of one and the beginning of the next");
    assert!(m.discard(PfnRange::new(blocks[2].start.add(7), 1)));
    m.advise_frames(blocks[1], true);
    assert_eq!(huge(), [false, true, false, true]);
}

#[test]
fn a_pageblock_in_use_becomes_a_huge_page() {
    let m = machine();
    let range = m.grow(0, ZoneKind::Normal, 2 * PAGEBLOCK_PAGES).unwrap();
    let block = PfnRange::new(range.start, PAGEBLOCK_PAGES);
    m.populate(range);
    let at = m.virt(block.start);
    frame_bytes(&m, block)[5 * PAGE_SIZE] = 7;
    // Until limits were asked for it is not known whether the system has huge pages.
    m.gather_frames(block);
    assert!(!has_flag(at.addr(), "hg"));
    m.pressure();
    m.gather_frames(block);
    assert_eq!(frame_bytes(&m, block)[5 * PAGE_SIZE], 7);
    if m.setup().huge_pages == HugePages::Never {
        return;
    }
    assert!(has_flag(at.addr(), "hg"));
    assert!(!has_flag(at.addr() + block.bytes(), "hg"), "the next one is left as it is");
    // Since Linux 6.1, where there is a huge page to be had.
    if unsafe { libc::madvise(at.add(block.bytes()).cast(), block.bytes(), 25) } == 0 {
        assert_eq!(mapping(at.addr(), "AnonHugePages:"), "2048 kB");
    }
}

#[test]
fn growing_from_many_threads() {
    let m = machine();
    let mut all: Vec<PfnRange> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| (0..8).map(|_| m.grow(0, ZoneKind::Movable, 100).unwrap()).collect::<Vec<_>>()))
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    all.sort_by_key(|range| range.start);
    assert!(all.windows(2).all(|w| w[0].end() <= w[1].start));
    all.into_iter().for_each(|range| check_frames(&m, range));
}

#[test]
fn fresh_mappings() {
    let m = machine();
    let at = slots(4);
    let len = 3 * PAGEBLOCK_SIZE + 5 * PAGE_SIZE;
    assert!(m.map_fresh(at, len));
    assert!(bytes(at, len).iter().all(|&b| b == 0));
    bytes(at, len).fill(1);
    assert!(m.clean(at + PAGE_SIZE, PAGE_SIZE));
    assert_eq!(bytes(at, len)[PAGE_SIZE - 1..2 * PAGE_SIZE + 1].iter().map(|&b| b as usize).sum::<usize>(), 2);
    m.unmap(at, len);
    assert!(m.map_fresh(at, len));
    assert!(bytes(at, len).iter().all(|&b| b == 0));
    m.unmap(at, len);
}

#[test]
fn locked_memory_goes_when_it_is_unmapped() {
    let m = machine();
    let at = slots(2);
    let len = 2 * PAGEBLOCK_SIZE;
    assert!(m.map_fresh(at, len));
    bytes(at, len).fill(1);
    // The advice that gives pages back is refused for the whole mapping as soon as one page of it is locked.
    let locked = unsafe { libc::mlock(std::ptr::with_exposed_provenance(at + PAGE_SIZE), PAGE_SIZE) };
    assert_eq!(locked, 0, "a page may be locked");
    m.unmap(at, len);
    assert!(m.map_fresh(at, len));
    assert!(bytes(at, len).iter().all(|&b| b == 0));
    m.unmap(at, len);
}

fn block_filled_with(m: &Linux, value: u8) -> PfnRange {
    let range = m.grow(0, ZoneKind::Movable, 1024).unwrap();
    frame_bytes(m, range).fill(value);
    PfnRange::new(range.start, PAGEBLOCK_PAGES)
}

#[test]
fn populations_move() {
    let m = machine();
    let at = slots(1);
    let frame = block_filled_with(&m, 7);
    assert!(m.map_fresh(at, PAGEBLOCK_SIZE));
    if m.map_frame(at, frame.start) {
        assert!(bytes(at, PAGEBLOCK_SIZE).iter().all(|&b| b == 7));
        assert!(frame_bytes(&m, frame).iter().all(|&b| b == 0), "the frame reads zero and is usable");
        frame_bytes(&m, frame).fill(8);
        assert!(bytes(at, PAGEBLOCK_SIZE).iter().all(|&b| b == 7), "nothing is shared");
    } else {
        m.line("this kernel moves no populations");
    }
    m.unmap(at, PAGEBLOCK_SIZE);
    assert!(m.map_fresh(at, PAGEBLOCK_SIZE));
    assert!(bytes(at, PAGEBLOCK_SIZE).iter().all(|&b| b == 0));
    m.unmap(at, PAGEBLOCK_SIZE);
}

// rows: H1
#[test]
fn scattered_populations_move_together() {
    let m = machine();
    let ranges: Vec<PfnRange> = (0..3).map(|n| m.grow(0, ZoneKind::Movable, 2048).map(|r| (n, r)).unwrap().1).collect();
    // Blocks 0 and 1 of one range adjoin, the rest is scattered, backwards.
    let mut frames = vec![ranges[0].start, ranges[0].start.add(PAGEBLOCK_PAGES)];
    frames.extend(ranges.iter().rev().map(|range| range.start.add(3 * PAGEBLOCK_PAGES)));
    for (nth, &frame) in frames.iter().enumerate() {
        frame_bytes(&m, PfnRange::new(frame, PAGEBLOCK_PAGES)).fill(nth as u8 + 1);
    }
    let at = slots(frames.len());
    let len = frames.len() * PAGEBLOCK_SIZE;
    assert!(m.map_fresh(at, len));
    let mapped = m.map_frames(at, &frames);
    for (nth, slot) in bytes(at, len).chunks(PAGEBLOCK_SIZE).enumerate() {
        let value = if nth < mapped { nth as u8 + 1 } else { 0 };
        assert!(slot.iter().all(|&b| b == value));
        let frame = frame_bytes(&m, PfnRange::new(frames[nth], PAGEBLOCK_PAGES));
        assert!(frame[0] == if nth < mapped { 0 } else { nth as u8 + 1 });
    }
    assert_eq!(m.map_frames(at, &[]), 0);
    m.unmap(at, len);
}

#[test]
fn areas_move() {
    let m = machine();
    let n = 8;
    let len = n * PAGEBLOCK_SIZE;
    let (from, to) = (slots(n), slots(n));
    assert!(m.map_fresh(from, len) && m.map_fresh(to, len));
    for (nth, page) in bytes(from, len).chunks_mut(PAGE_SIZE).enumerate() {
        // Some pages stay untouched: holes in the source.
        if nth % 5 != 0 {
            page.fill(nth as u8);
        }
    }
    match m.move_mapping(from, to, len) {
        Ok(()) => {
            for (nth, page) in bytes(to, len).chunks(PAGE_SIZE).enumerate() {
                assert!(page.iter().all(|&b| b == if nth % 5 != 0 { nth as u8 } else { 0 }));
            }
            assert!(bytes(from, len).iter().all(|&b| b == 0));
        }
        Err(prefix) => assert!(prefix < len && prefix % PAGEBLOCK_SIZE == 0),
    }
    m.unmap(from, len);
    m.unmap(to, len);
}

#[test]
fn the_budget_is_positive() {
    assert!(machine().budget() > 1000);
}
