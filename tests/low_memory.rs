//! Memory with low addresses, for programs that keep pointers in 32 bits or less.
#![allow(clippy::undocumented_unsafe_blocks)] // the calls under test, on memory of the test's own

use slabwright::gfp::Gfp;
use slabwright::global;
use slabwright::machine::Frames;
use slabwright::types::Order;

// rows: B5 B6 C6 C7
#[test]
fn zones_keep_their_limits() {
    assert!(global::mm().start());
    let (m, pages) = (global::mm().machine(), global::mm().pages());
    for (zone, limit) in [(Gfp::DMA, 16 << 20), (Gfp::DMA32, 4usize << 30)] {
        let blocks: Vec<_> = (0..50)
            .map(|n| {
                let order = Order::new(n % 4).unwrap();
                let head = pages.alloc_pages(m, Gfp::KERNEL | zone, order, None).expect("low memory");
                let start = m.virt(head);
                assert!(start.addr() + order.bytes() <= limit, "{start:?}");
                assert_eq!(m.pfn(start), Some(head));
                // SAFETY: the block is ours and as long as its order says.
                unsafe { start.write_bytes(n, order.bytes()) };
                (head, order, n)
            })
            .collect();
        for (head, order, n) in blocks {
            // SAFETY: as above.
            let bytes = unsafe { std::slice::from_raw_parts(m.virt(head), order.bytes()) };
            assert!(bytes.iter().all(|byte| *byte == n));
            assert!(unsafe { pages.free_pages(m, head, order, true) });
        }
    }
    global::verify().unwrap();
}

#[test]
fn low_blocks_are_freed_and_resized_as_others_are() {
    let mm = global::mm();
    assert!(mm.start());
    let [freed, grown] = [(); 2].map(|()| mm.kmalloc(100, Gfp::KERNEL | Gfp::DMA32));
    assert!([freed, grown].iter().all(|block| !block.is_null() && block.addr() < 4 << 30));
    // SAFETY: blocks of ours.
    unsafe {
        grown.write_bytes(7, 100);
        mm.kfree(freed);
        let block = mm.realloc(grown, 9000);
        assert!(!block.is_null() && std::slice::from_raw_parts(block, 100).iter().all(|byte| *byte == 7));
        mm.kfree(block);
    }
    global::verify().unwrap();
}
