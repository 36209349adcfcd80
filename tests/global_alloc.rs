//! slabwright as this test program's own allocator: collections, threads, and the layouts that only Rust asks for.

use std::alloc::{GlobalAlloc, Layout};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::mpsc;
use std::thread;

use slabwright::Slabwright;

#[global_allocator]
static ALLOCATOR: Slabwright = Slabwright;

/// A usable constant expression, and nothing to carry around.
const ALSO: Slabwright = Slabwright;

#[test]
fn is_zero_sized_and_const() {
    assert_eq!(size_of_val(&ALSO), 0);
}

#[test]
fn collections_across_threads() {
    let (send, receive) = mpsc::channel::<Vec<String>>();
    let makers: Vec<_> = (0..4)
        .map(|maker| {
            let send = send.clone();
            thread::spawn(move || {
                let mut map = HashMap::new();
                let mut tree = BTreeMap::new();
                let mut queue = VecDeque::new();
                for n in 0..20_000u32 {
                    map.insert(n, format!("{maker}-{n}"));
                    tree.insert(n.wrapping_mul(2_654_435_761), vec![n; n as usize % 37]);
                    queue.push_back(Box::new(n));
                    if n % 3 == 0 {
                        map.remove(&(n / 2));
                        tree.pop_first();
                        queue.pop_front();
                    }
                    if n % 500 == 0 {
                        send.send((0..50).map(|i| "x".repeat(i * n as usize % 3000)).collect()).unwrap();
                    }
                }
                assert!(tree.iter().all(|(_, v)| v.iter().all(|n| *n as usize % 37 == v.len())));
                assert!(map.iter().all(|(n, text)| *text == format!("{maker}-{n}")));
                queue.iter().map(|n| u64::from(**n)).sum::<u64>()
            })
        })
        .collect();
    drop(send);
    // What one thread allocates another frees.
    let batches = receive.iter().filter(|batch| batch.iter().all(|text| text.bytes().all(|b| b == b'x'))).count();
    assert_eq!(batches, 4 * 40);
    let sums: Vec<u64> = makers.into_iter().map(|maker| maker.join().unwrap()).collect();
    assert!(sums.iter().all(|sum| *sum == sums[0]));
    ALLOCATOR.verify().unwrap();
}

#[test]
fn vectors_grow_to_many_megabytes() {
    let mut bytes = Vec::new();
    for n in 0..30_000_000u32 {
        bytes.push(n as u8);
    }
    assert!(bytes.iter().enumerate().all(|(n, byte)| *byte == n as u8));
    bytes.truncate(1000);
    bytes.shrink_to_fit();
    assert!(bytes.iter().enumerate().all(|(n, byte)| *byte == n as u8));
    ALLOCATOR.verify().unwrap();
}

#[test]
fn every_layout_is_aligned_zeroed_and_kept_over_realloc() {
    for align in (0..=22).map(|shift| 1usize << shift) {
        for size in [1, 8, 9, 24, 100, 1000, 4096, 8192, 8193, 40_000, 1 << 20, 3 << 20] {
            let layout = Layout::from_size_align(size, align).unwrap();
            // SAFETY: the layout's size is not 0; the block is used within its size and freed with its layout.
            unsafe {
                let block = ALLOCATOR.alloc_zeroed(layout);
                assert!(!block.is_null() && block.addr().is_multiple_of(align), "{layout:?}");
                let bytes = std::slice::from_raw_parts_mut(block, size);
                assert!(bytes.iter().all(|byte| *byte == 0), "{layout:?}");
                bytes.iter_mut().enumerate().for_each(|(n, byte)| *byte = n as u8);
                let mut layout = layout;
                let mut block = block;
                for grown in [size + 1, size * 2, size * 5 + 3, size / 2 + 1] {
                    let kept = layout.size().min(grown);
                    block = ALLOCATOR.realloc(block, layout, grown);
                    layout = Layout::from_size_align(grown, align).unwrap();
                    assert!(!block.is_null() && block.addr().is_multiple_of(align), "{layout:?}");
                    let bytes = std::slice::from_raw_parts_mut(block, grown);
                    assert!(bytes[..kept].iter().enumerate().all(|(n, byte)| *byte == n as u8), "{layout:?}");
                    bytes.iter_mut().enumerate().for_each(|(n, byte)| *byte = n as u8);
                }
                ALLOCATOR.dealloc(block, layout);
            }
        }
    }
    ALLOCATOR.verify().unwrap();
}

#[test]
fn a_good_size_is_usable() {
    for size in (1..20_000).step_by(7).chain((1 << 20..5 << 20).step_by(99_991)) {
        let good = slabwright::global::good_size(size);
        assert!(good >= size);
        for _ in 0..4 {
            let block = slabwright::global::malloc(size);
            // SAFETY: the block is live, and freed once.
            unsafe {
                assert!(slabwright::global::usable_size(block) >= good, "{size}");
                slabwright::global::free(block);
            }
        }
    }
}

/// A module that was unloaded has no claim to the addresses of the one that comes after it.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn a_module_where_another_one_was_has_copies_of_its_own() {
    use slabwright::kernel::{first_copy, register_module};
    let section: &'static [u64; 64] = Box::leak(Box::new(std::array::from_fn(|n| n as u64)));
    let at = |n: usize| section[n..].as_ptr().cast::<u8>();
    // SAFETY: the templates stay; what `first_copy` says is a copy of them.
    unsafe {
        let value = |n: usize| first_copy(at(n).cast_mut()).cast::<u64>().read();
        assert!(register_module(at(0), at(8)) && register_module(at(0), at(8)));
        let old = first_copy(at(1).cast_mut());
        assert!(old != at(1).cast_mut() && value(7) == 7);
        assert_eq!(first_copy(at(8).cast_mut()), at(8).cast_mut());
        old.cast::<u64>().write(99);
        // Another one's, longer.
        assert!(register_module(at(0), at(32)));
        assert_ne!(first_copy(at(31).cast_mut()), at(31).cast_mut());
        assert_eq!((value(1), value(31)), (1, 31));
        assert!(!register_module(at(0), at(0).wrapping_add(40 << 10)), "more than a module may have");
    }
}
