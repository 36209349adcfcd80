//! First fit in the place of size classes: row G20. The other suites run on it as they are, but for what looks at
//! classes and sheaves.

use core::ptr;

use slabwright::gfp::Gfp;
use slabwright::types::PAGE_SIZE;

use super::Test;
use crate::kernel::HEAP;

pub const TESTS: &[Test] = &[
    ("G20 first fit: blocks of all sizes lie in one page, a word apart, and merge", first_fit),
    ("G20 small blocks take little more than their bytes, and no page is kept when they are gone", nothing_kept),
];

/// The word in front of a block.
const HEADER: usize = 8;

fn take(size: usize) -> *mut u8 {
    let block = HEAP.kmalloc(size, Gfp::KERNEL);
    assert!(!block.is_null(), "{size} bytes");
    block
}

fn give(block: *mut u8) {
    // SAFETY: the block is live and this suite's.
    unsafe { HEAP.kfree(block) };
}

fn first_fit() {
    // Until what there was is full, and a new page begins.
    let mut before = [ptr::null_mut(); 2048];
    let mut taken = 0;
    let first = loop {
        let block = take(24);
        if block.addr() % PAGE_SIZE == HEADER.next_multiple_of(16) {
            break block;
        }
        before[taken] = block;
        taken += 1;
    };
    let mut end = first.addr() + 24;
    let blocks = [24, 100, 8, 200, 1, 24].map(|size: usize| {
        let block = take(size);
        assert_eq!(block.addr(), (end + HEADER).next_multiple_of(if size < 16 { 8 } else { 16 }), "{size} bytes");
        end = block.addr() + size.next_multiple_of(8);
        block
    });
    // The hole that three leave, in whatever order, holds what none of them would.
    for nth in [1, 3, 2] {
        give(blocks[nth]);
    }
    let large = take(300);
    assert_ne!(large.addr() / PAGE_SIZE, first.addr() / PAGE_SIZE, "larger ones lie in pages of their own");
    let merged = take(250);
    assert_eq!(merged, blocks[1]);
    [large, merged, first, blocks[0], blocks[4], blocks[5]].into_iter().for_each(give);
    before[..taken].iter().for_each(|block| give(*block));
}

fn nothing_kept() {
    const BLOCKS: usize = 600;
    let bytes = || HEAP.stats().slab.slab_bytes;
    let (before, mut blocks, mut asked) = (bytes(), [ptr::null_mut(); BLOCKS], 0);
    for (nth, block) in blocks.iter_mut().enumerate() {
        let size = 1 + nth * 37 % 160;
        *block = take(size);
        asked += size.next_multiple_of(8) + HEADER;
    }
    let grown = bytes() - before;
    assert!(grown < asked + asked / 16 + PAGE_SIZE, "{grown} bytes for {asked}");
    // From both ends, so that pages empty in no order.
    for nth in 0..BLOCKS / 2 {
        give(blocks[nth]);
        give(blocks[BLOCKS - 1 - nth]);
    }
    assert_eq!(bytes(), before);
}
