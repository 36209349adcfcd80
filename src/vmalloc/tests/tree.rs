//! The tree against a sorted list.

use std::boxed::Box;
use std::vec::Vec;

use super::Rng;
use crate::types::PAGE_SIZE;
use crate::vmalloc::node::{NODES_PER_PAGE, Pool, Ref};
use crate::vmalloc::tree::{BY_ADDRESS, BY_SIZE, Tree};

#[repr(align(4096))]
struct Page(#[allow(dead_code)] [u8; PAGE_SIZE]);

/// A pool of `nodes` nodes at least. Their memory is never given back, which is what a pool demands.
pub fn pool(nodes: usize) -> Pool {
    let mut pool = Pool::new();
    for _ in 0..nodes.div_ceil(NODES_PER_PAGE) {
        let page = core::ptr::NonNull::from(Box::leak(Box::new(Page([0; PAGE_SIZE])))).cast();
        // SAFETY: a leaked page.
        unsafe { pool.add(page) }
    }
    pool
}

#[test]
fn a_hundred_thousand_steps() {
    let mut pool = pool(600);
    let mut rng = Rng(0xfeed_beef_1234);
    let mut by_address = Tree::<BY_ADDRESS>::new();
    let mut by_size = Tree::<BY_SIZE>::new();
    let mut list: Vec<(usize, usize, Ref)> = Vec::new();
    for step in 0..100_000 {
        // Grows to some hundreds, then shrinks to nothing, and again.
        let growing = step / 5000 % 2 == 0;
        match rng.below(if growing { 5 } else { 6 }) {
            0..=2 if list.len() < 500 && growing || list.is_empty() => {
                let start = rng.below(10_000);
                if let Err(place) = list.binary_search_by_key(&start, |x| x.0) {
                    let node = pool.take().unwrap();
                    node.start.set(start);
                    node.len.set(1 + rng.below(50));
                    by_address.insert(node);
                    by_size.insert(node);
                    list.insert(place, (start, node.len.get(), node));
                }
            }
            3 if !list.is_empty() => {
                // A new length keeps the place by address and changes that by size.
                let i = rng.below(list.len());
                let node = list[i].2;
                by_size.remove(node);
                node.len.set(1 + rng.below(50));
                list[i].1 = node.len.get();
                by_address.resized(node);
                by_size.insert(node);
            }
            _ if !list.is_empty() => {
                let (_, _, node) = list.remove(rng.below(list.len()));
                by_address.remove(node);
                by_size.remove(node);
                pool.put(node);
            }
            _ => {}
        }
        let len = 1 + rng.below(55);
        let lowest = list.iter().find(|x| x.1 >= len).map(|x| x.0);
        assert_eq!(by_address.first_fit(len).map(|n| n.start.get()), lowest);
        let best = list.iter().filter(|x| x.1 >= len).min_by_key(|x| (x.1, x.0)).map(|x| x.0);
        assert_eq!(by_size.first_fit(len).map(|n| n.start.get()), best);
        let at = rng.below(10_000);
        let below = list.iter().rev().find(|x| x.0 <= at).map(|x| x.0);
        assert_eq!(by_address.at_or_below(at).map(|n| n.start.get()), below);
        if step % 64 == 0 {
            by_address.verify().unwrap();
            by_size.verify().unwrap();
            let mut at = by_address.first();
            for entry in &list {
                assert_eq!(at.map(|n| n.start.get()), Some(entry.0));
                at = at.and_then(|n| by_address.next(n));
            }
            assert!(at.is_none());
            let mut at = by_address.last();
            for entry in list.iter().rev() {
                assert_eq!(at.map(|n| n.start.get()), Some(entry.0));
                at = at.and_then(|n| by_address.previous(n));
            }
            assert!(at.is_none());
            assert_eq!((by_address.len(), by_size.len()), (list.len(), list.len()));
        }
    }
}

#[test]
fn verify_sees_damage() {
    let mut pool = pool(32);
    let mut tree = Tree::<BY_ADDRESS>::new();
    let mut nodes = Vec::new();
    for i in 0..20 {
        let node = pool.take().unwrap();
        node.start.set(i * 10);
        node.len.set(5);
        tree.insert(node);
        nodes.push(node);
    }
    tree.verify().unwrap();
    nodes[7].len.set(9);
    assert_eq!(tree.verify(), Err("vmalloc tree: wrong largest length"));
    nodes[7].len.set(5);
    nodes[3].start.set(75);
    assert_eq!(tree.verify(), Err("vmalloc tree: out of order"));
}
