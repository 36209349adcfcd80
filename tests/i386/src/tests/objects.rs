//! kmalloc and slab caches, and Rust's own collections on them: rows F and G.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use alloc::{format, vec};
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use slabwright::error::Defect;
use slabwright::gfp::Gfp;
use slabwright::machine::i386::layout::DMA_END;
use slabwright::machine::i386::{I386, memory, paging, reports, set_aborts};
use slabwright::machine::{Frames, Mapping};
use slabwright::mm::Named;
use slabwright::page::Kind;
use slabwright::slab::classes::{MAX_SMALL, class_of, class_size};
use slabwright::slab::{CacheStats, SlabFlags, slob};
use slabwright::types::{Order, PAGE_SIZE};

use super::pages::in_single_pages;
use super::{SLOB, Test, destroy_cache};
use crate::kernel::HEAP;

pub const TESTS: &[Test] = &[
    ("F1 F3 every size from 0 to 4 MiB at the borders", every_size),
    ("F2 misuse is reported: double, interior, foreign", misuse),
    ("G1 G10 G11 G16 objects come back last in, first out", last_in_first_out),
    ("G2 the report counts slabs and objects, and names the cache", report),
    ("G3 a cache is told by its descriptor: name, size, alignment, flags, order", descriptor),
    ("G14 G15 slabs are full, partial and empty in turn, and serve in this order: partial, empty, new", states),
    ("G6 caches of one shape are merged", merged),
    ("G8 a constructor runs once per object, and its work is kept", constructed),
    ("G9 a cache with objects in use is not destroyed", destroy),
    ("G7 flags of caches: checks that find misuse, zones, alignment", flags),
    ("G12 G13 pages for a slab and back; where there is no such block, a smaller one", slab_pages),
    ("G4 G17 G19 G21 objects of any size: free maps in the descriptor, on the slab, off the slab", placements),
    ("G15 partial slabs are filled before new ones are made", partial_first),
    ("G18 G21 the colours of slabs go round", coloured),
    ("G21 a sheaf of objects of another node goes back to its own", alien_objects),
    ("F1 Vec, BTreeMap, String, Box live in the kernel", collections),
];

/// Those that need megabytes.
pub const ROOMY: &[Test] = &[
    ("F3 F5 kmalloc is physically adjacent up to 4 MiB, and refuses what is larger", physically_adjacent),
    ("F1 H1 a Vec of megabytes lies in vmalloc, and grows", large_vec),
];

/// Of small blocks in size classes.
pub const CLASSES: &[Test] = &[("F4 D14 the general caches are the kernel's thirteen", general_caches)];

/// Largest block that is not a run of pages.
const MAX_BLOCK: usize = if SLOB { slob::MAX } else { MAX_SMALL };

fn every_size() {
    let borders =
        [8, 16, 96, 128, 192, 256, 1024, 4096, MAX_SMALL, 64 << 10, 128 << 10, 1 << 20, 2 << 20, 3 << 20, 4 << 20];
    let sizes = borders.into_iter().flat_map(|size| [size - 1, size, size + 1]).chain([0, 1]);
    HEAP.trim();
    for size in sizes.filter(|size| *size <= 4 << 20) {
        let block = HEAP.kmalloc(size, Gfp::KERNEL);
        if block.is_null() && may_lack(size) {
            continue;
        }
        assert!(!block.is_null(), "{size} bytes");
        assert_eq!(block.addr() % if size < 16 { 8 } else { 16 }, 0);
        // SAFETY: the block is live and this test's.
        unsafe {
            let usable = HEAP.usable_size(block);
            assert!(usable >= size, "{usable} of {size} bytes");
            block.write_bytes(0x5a, usable);
            HEAP.kfree(block);
        }
        assert!(size > MAX_SMALL || class_size(class_of(size) as usize) >= size.max(1));
    }
}

fn general_caches() {
    const KERNEL: [usize; 13] = [8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192];
    let mut rest = &KERNEL[..];
    for size in 0..=MAX_SMALL {
        if size > rest[0] {
            rest = &rest[1..];
        }
        assert_eq!(class_size(class_of(size) as usize), rest[0], "{size} bytes");
        if size % 37 == 0 {
            let block = HEAP.kmalloc(size, Gfp::KERNEL);
            // SAFETY: the block is live and this test's.
            unsafe {
                assert_eq!(HEAP.usable_size(block), rest[0]);
                HEAP.kfree(block);
            }
        }
    }
    assert_eq!(rest, [MAX_SMALL]);
}

fn misuse() {
    set_aborts(false);
    let before = reports();
    let area = HEAP.vmalloc_bytes(20_000, Gfp::KERNEL).expect("an area");
    for block in [HEAP.alloc(64), HEAP.alloc(20_000), area] {
        // SAFETY: misuse, which must be found out and change nothing.
        unsafe {
            HEAP.free(block.wrapping_add(24));
            HEAP.free(block);
            HEAP.free(block);
        }
    }
    let foreign = (&raw const before).cast_mut().cast();
    // SAFETY: as above.
    unsafe { HEAP.free(foreign) };
    set_aborts(true);
    assert_eq!(reports() - before, 7);
    if let Err(violation) = HEAP.verify() {
        panic!("{violation}");
    }
}

/// Whether no frames are free that are adjacent for so long, as on a small machine.
fn may_lack(size: usize) -> bool {
    let order = Order::holding(size.div_ceil(PAGE_SIZE)).expect("at most 4 MiB");
    let stats = HEAP.pages().stats(&I386);
    stats.all.blocks[order.index()..].as_flattened().iter().all(|n| *n == 0)
}

/// That the frames behind a block follow each other.
fn assert_adjacent(block: *mut u8, size: usize) {
    assert!(!block.is_null(), "{size} bytes");
    let first = paging::translate(block.addr()).expect("it is mapped");
    let start = (first.frame.index() << 12) + first.offset;
    for at in (0..size).step_by(512).chain([size - 1]) {
        let found = paging::translate(block.addr() + at).expect("it is mapped");
        assert_eq!((found.frame.index() << 12) + found.offset, start + at, "{at} of {size} bytes");
    }
}

fn physically_adjacent() {
    const MOST: usize = 4 << 20;
    HEAP.trim();
    let from_a_run = |size| {
        let block = HEAP.kmalloc(size, Gfp::KERNEL);
        if block.is_null() && may_lack(size) {
            return block;
        }
        assert_adjacent(block, size);
        let kind = I386.page(I386.pfn(block).expect("low memory")).kind();
        assert_eq!(size > MAX_BLOCK, matches!(kind, Kind::Run | Kind::Tagged), "{size} bytes");
        block
    };
    let small = [1, 100, MAX_BLOCK, MAX_BLOCK + 1, 5000, MAX_SMALL, MAX_SMALL + 1, 100_000];
    for size in small.into_iter().chain([1 << 20, 2 << 20, (2 << 20) + 1, 3 << 20, MOST - 1, MOST]) {
        let block = from_a_run(size);
        // SAFETY: the block is null, or live and this test's.
        unsafe { HEAP.kfree(block) };
    }
    assert!(HEAP.kmalloc(MOST + 1, Gfp::KERNEL).is_null() && HEAP.kmalloc_node(MOST + 1, Gfp::KERNEL, 0).is_null());
    // Growing keeps it so, also beyond what `realloc` would move to scattered frames.
    let mut block = from_a_run(6000);
    for size in [900_000, 1_500_000, MOST].into_iter().filter(|size| !may_lack(*size)) {
        // SAFETY: the block is live and this test's.
        unsafe {
            block.write(0x42);
            block = HEAP.krealloc(block, size, Gfp::KERNEL);
            assert_adjacent(block, size);
            assert_eq!(block.read(), 0x42);
        }
    }
    // SAFETY: as above.
    unsafe {
        assert!(HEAP.krealloc(block, MOST + 1, Gfp::KERNEL).is_null(), "and the block is as it was");
        assert_eq!(block.read(), 0x42);
        HEAP.kfree(block);
    }
    // What need not be adjacent is served at any size.
    let area = HEAP.alloc(MOST + 1);
    assert!(I386.window().contains(&area.addr()));
    // SAFETY: as above.
    unsafe { HEAP.free(area) };
}

fn last_in_first_out() {
    let cache = HEAP.kmem_cache_create("lifo", 72, 0, SlabFlags::NO_MERGE, None).expect("a cache");
    let id = cache.cache();
    let take = || HEAP.kmem_cache_alloc(id, Gfp::KERNEL, 0);
    let give = |object| {
        // SAFETY: the objects are live and this test's.
        unsafe { HEAP.kmem_cache_free(id, object, 0) }.expect("an object of the cache");
    };
    let objects: Vec<*mut u8> = (0..500).map(|_| take()).collect();
    assert!(objects.iter().all(|object| !object.is_null()));
    let mut sorted: Vec<usize> = objects.iter().map(|object| object.addr()).collect();
    sorted.sort_unstable();
    assert!(sorted.windows(2).all(|pair| pair[0] + 72 <= pair[1]), "objects overlap");
    let last = objects[250];
    give(last);
    assert_eq!(take(), last);
    set_aborts(false);
    let other = HEAP.alloc(72);
    // SAFETY: misuse, which must be found out.
    assert_eq!(unsafe { HEAP.kmem_cache_free(id, other, 0) }, Err(Defect::WrongCache));
    set_aborts(true);
    // SAFETY: a live block of this test's.
    unsafe { HEAP.free(other) };
    objects.into_iter().for_each(give);
    assert_eq!(destroy_cache(cache), Ok(()));
}

/// The figures of a cache.
fn stats(name: &str) -> Option<CacheStats> {
    let mut found = None;
    HEAP.slab().for_each_cache(&I386, |cache, stats| {
        if cache == name {
            found = Some(*stats);
        }
    });
    found
}

fn report() {
    let cache = HEAP.kmem_cache_create("report", 200, 0, SlabFlags::NO_MERGE, None).expect("a cache");
    let objects: Vec<*mut u8> = (0..100).map(|_| HEAP.kmem_cache_alloc(cache.cache(), Gfp::KERNEL, 0)).collect();
    let full = stats("report").expect("the cache is in the report");
    assert_eq!(full.in_use, 100);
    assert_eq!(full.slabs * full.objects_per_slab, full.in_use + full.free + full.in_sheaves);
    for object in objects {
        // SAFETY: the object is live and this test's.
        unsafe { HEAP.kmem_cache_free(cache.cache(), object, 0) }.expect("an object of the cache");
    }
    assert_eq!(stats("report").expect("still there").in_use, 0);
    HEAP.kmem_cache_shrink(cache);
    assert_eq!(stats("report").map_or(0, |stats| stats.slabs), 0, "all slabs went back");
    assert_eq!(destroy_cache(cache), Ok(()));
}

fn descriptor() {
    let flags = SlabFlags::HWCACHE_ALIGN.with(SlabFlags::NO_MERGE);
    let cache = HEAP.kmem_cache_create("described", 100, 32, flags, None).expect("a cache");
    let id = cache.cache();
    assert_eq!(HEAP.slab().name(id.get()), "described");
    let (made_with, size, align, constructed) = HEAP.slab().made_with(id);
    assert_eq!((made_with, size, constructed), (flags, 100, false));
    assert!(align >= 64, "as the flag has it");
    let (order, least, gfp) = HEAP.slab().slab_order(id);
    assert!(least <= order && gfp == Gfp::NONE);
    let object = HEAP.kmem_cache_alloc(id, Gfp::KERNEL, 0);
    assert_eq!((object.addr() % align, HEAP.slab().cache_of(&I386, object, true)), (0, Ok(id.get())));
    let page = I386.page(I386.pfn(object).expect("low memory"));
    assert_eq!((page.kind(), page.order()), (Kind::Slab, order));
    let described = stats("described").expect("it is in the report");
    assert_eq!((described.id, described.pages_per_slab), (id.get(), 1 << order.get()));
    // SAFETY: the object is live and this test's.
    unsafe { HEAP.kmem_cache_free(id, object, 0) }.expect("an object of the cache");
    assert_eq!(destroy_cache(cache), Ok(()));
    assert_eq!(stats("described"), None);
}

fn states() {
    let cache = HEAP.kmem_cache_create("states", 1000, 0, SlabFlags::NO_MERGE, None).expect("a cache");
    let id = cache.cache();
    let (slab, pages) = (HEAP.slab(), HEAP.pages());
    // Past the sheaves, so that each step shows in the slabs.
    let take = || slab.alloc_direct(&I386, pages, id.get(), Gfp::KERNEL);
    let counts = || {
        slab.flush(&I386, pages, Some(id.get()));
        stats("states").map(|stats| (stats.slabs, stats.partial, stats.empty)).expect("the cache")
    };
    let first = take();
    let per_slab = stats("states").expect("the cache").objects_per_slab;
    assert_eq!(counts(), (1, 1, 0));
    let mut objects: Vec<*mut u8> = (1..2 * per_slab).map(|_| take()).collect();
    objects.push(first);
    assert_eq!(counts(), (2, 0, 0), "both are full");
    let base = |object: *mut u8| object.addr() / (PAGE_SIZE * stats("states").expect("the cache").pages_per_slab);
    let free = |object: *mut u8| {
        // SAFETY: the objects are live and this test's.
        unsafe { HEAP.kmem_cache_free(id, object, 0) }.expect("an object of the cache");
    };
    let (ours, others): (Vec<_>, Vec<_>) = objects.into_iter().partition(|object| base(*object) == base(first));
    free(ours[0]);
    assert_eq!(counts(), (2, 1, 0), "full and partial");
    ours[1..].iter().for_each(|object| free(*object));
    assert_eq!(counts(), (2, 0, 1), "full and empty");
    let again = take();
    assert_eq!((counts(), base(again)), ((2, 1, 0), base(first)), "the empty one serves before a new one");
    free(again);
    free(others[0]);
    assert_eq!(counts(), (2, 1, 1), "partial and empty");
    let again = take();
    assert_eq!((counts(), base(again)), ((2, 0, 1), base(others[1])), "the partial one serves before the empty one");
    HEAP.kmem_cache_shrink(cache);
    assert_eq!(counts(), (1, 0, 0), "empty ones go back");
    others[1..].iter().for_each(|object| free(*object));
    free(again);
    assert_eq!(destroy_cache(cache), Ok(()));
}

fn merged() {
    let make = |name, flags| HEAP.kmem_cache_create(name, 88, 0, flags, None).expect("a cache");
    let (a, b, c) = (make("one", SlabFlags::NONE), make("two", SlabFlags::NONE), make("apart", SlabFlags::NO_MERGE));
    assert_eq!(a.cache(), b.cache());
    assert_ne!(a.cache(), c.cache());
    for cache in [a, b, c] {
        assert_eq!(destroy_cache(cache), Ok(()));
    }
    assert!(HEAP.kmem_cache_create("bad", 0, 0, SlabFlags::NONE, None).is_err());
    assert!(HEAP.kmem_cache_create("bad", 64, 3, SlabFlags::NONE, None).is_err());
}

static CONSTRUCTED: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" fn construct(object: *mut u8) {
    CONSTRUCTED.fetch_add(1, Relaxed);
    // SAFETY: an object of 48 bytes.
    unsafe { object.write_bytes(0xc7, 48) };
}

fn constructed() {
    let cache = HEAP.kmem_cache_create("constructed", 48, 0, SlabFlags::NONE, Some(construct)).expect("a cache");
    let mut seen = Vec::new();
    let mut first = 0;
    for round in 0..3 {
        let objects: Vec<*mut u8> = (0..200).map(|_| HEAP.kmem_cache_alloc(cache.cache(), Gfp::KERNEL, 0)).collect();
        for object in &objects {
            // SAFETY: a live object of this test's.
            let bytes = unsafe { core::slice::from_raw_parts(*object, 48) };
            assert!(bytes.iter().all(|byte| *byte == 0xc7), "round {round}");
            seen.push(object.addr());
        }
        for object in objects {
            // SAFETY: as above.
            unsafe { HEAP.kmem_cache_free(cache.cache(), object, 0) }.expect("an object of the cache");
        }
        if round == 0 {
            first = CONSTRUCTED.load(Relaxed);
        }
    }
    seen.sort_unstable();
    seen.dedup();
    // Those that wait in a sheaf are constructed, too.
    assert!((seen.len()..seen.len() + 256).contains(&first), "{first} for {} objects", seen.len());
    assert_eq!(CONSTRUCTED.load(Relaxed), first, "none a second time");
    assert_eq!(destroy_cache(cache), Ok(()));
}

fn destroy() {
    let cache = HEAP.kmem_cache_create("leaky", 64, 0, SlabFlags::NO_MERGE, None).expect("a cache");
    let object = HEAP.kmem_cache_alloc(cache.cache(), Gfp::KERNEL, 0);
    let before = reports();
    set_aborts(false);
    assert_eq!(destroy_cache(cache), Err(1));
    set_aborts(true);
    assert!(reports() > before);
    // SAFETY: the object is live and this test's.
    unsafe { HEAP.kmem_cache_free(cache.cache(), object, 0) }.expect("an object of the cache");
    assert_eq!(destroy_cache(cache), Ok(()));
}

fn flags() {
    let make = |name, flags: SlabFlags| {
        let cache = HEAP.kmem_cache_create(name, 100, 0, flags.with(SlabFlags::NO_MERGE), None).expect("a cache");
        (cache, HEAP.kmem_cache_alloc(cache.cache(), Gfp::KERNEL, 0x1234))
    };
    // SAFETY: the objects are this test's, up to the misuse, which must be found out.
    let free = |cache: Named, object| unsafe { HEAP.kmem_cache_free(cache.cache(), object, 0) };
    set_aborts(false);
    let before = reports();
    let (cache, object) = make("red", SlabFlags::RED_ZONE);
    // SAFETY: as above: a byte behind the object.
    unsafe { object.add(100).write(7) };
    assert_eq!((free(cache, object), reports()), (Ok(()), before + 1), "reported, and freed all the same");
    assert_eq!(destroy_cache(cache), Ok(()));
    let (cache, object) = make("poison", SlabFlags::POISON);
    assert_eq!(free(cache, object), Ok(()));
    // SAFETY: as above: a write to what is free.
    unsafe {
        assert_eq!(object.add(50).read(), 0x6b);
        object.add(50).write(7);
    }
    HEAP.kmem_cache_alloc(cache.cache(), Gfp::KERNEL, 0);
    assert_eq!(reports(), before + 2, "the write is found when it is handed out");
    let _ = free(cache, object);
    let _ = destroy_cache(cache);
    set_aborts(true);
    let (cache, object) = make("dma", SlabFlags::CACHE_DMA);
    assert!(I386.phys(I386.pfn(object).expect("low memory")) < DMA_END);
    assert_eq!((free(cache, object), destroy_cache(cache)), (Ok(()), Ok(())));
    let (cache, object) = make("line", SlabFlags::HWCACHE_ALIGN);
    assert_eq!(object.addr() % 64, 0);
    assert_eq!((free(cache, object), destroy_cache(cache)), (Ok(()), Ok(())));
    let contradiction = SlabFlags::CACHE_DMA.with(SlabFlags::CACHE_DMA32);
    assert!(HEAP.kmem_cache_create("both", 100, 0, contradiction, None).is_err());
}

fn slab_pages() {
    let cache = HEAP.kmem_cache_create("pages", 3000, 0, SlabFlags::NO_MERGE, None).expect("a cache");
    let block = HEAP.kmem_getpages(cache.cache(), Gfp::KERNEL, None).expect("pages");
    let (order, least, _) = HEAP.slab().slab_order(cache.cache());
    assert_eq!(I386.page(block).order(), order);
    // SAFETY: a block of this test's, not used any more.
    assert_eq!(unsafe { HEAP.kmem_freepages(I386.virt(block)) }, Ok(()));
    assert!(least < order);
    in_single_pages(|| {
        let block = HEAP.kmem_getpages(cache.cache(), Gfp::KERNEL, None).expect("a page");
        assert_eq!(I386.page(block).order(), least, "as much as an object needs");
        // SAFETY: a block of this test's, not used any more.
        assert_eq!(unsafe { HEAP.kmem_freepages(I386.virt(block)) }, Ok(()));
    });
    assert_eq!(destroy_cache(cache), Ok(()));
}

fn placements() {
    for (size, flags) in [
        (8, SlabFlags::NO_MERGE),
        (32, SlabFlags::NO_MERGE),
        (64, SlabFlags::NO_MERGE),
        (2048, SlabFlags::NO_MERGE),
        (32, SlabFlags::NO_MERGE.with(SlabFlags::OFF_SLAB)),
    ] {
        let cache = HEAP.kmem_cache_create("placed", size, 0, flags, None).expect("a cache");
        let count = 300.min((96 << 10) / size);
        let objects: Vec<*mut u8> = (0..count).map(|_| HEAP.kmem_cache_alloc(cache.cache(), Gfp::KERNEL, 0)).collect();
        for (n, object) in objects.iter().enumerate() {
            assert!(!object.is_null());
            // SAFETY: a live object of this test's.
            unsafe { object.write_bytes(n as u8, size) };
        }
        let figures = stats("placed").expect("the cache is in the report");
        let bytes = figures.pages_per_slab * PAGE_SIZE;
        // With the map in the descriptors or off the slab all of it is objects, as far as they fit.
        let whole = size >= 64 || flags.has(SlabFlags::OFF_SLAB);
        assert_eq!(figures.objects_per_slab == bytes / figures.size, whole, "{figures:?}");
        assert!(figures.objects_per_slab * figures.size * 8 >= bytes * 7, "an eighth of a slab is wasted: {figures:?}");
        if let Err(violation) = HEAP.verify() {
            panic!("{violation}");
        }
        for (n, object) in objects.into_iter().enumerate() {
            // SAFETY: as above.
            unsafe {
                assert!(
                    (0..size).all(|at| object.add(at).read() == n as u8),
                    "objects overlap each other or the free map"
                );
                HEAP.kmem_cache_free(cache.cache(), object, 0).expect("an object of the cache");
            }
        }
        assert_eq!(destroy_cache(cache), Ok(()));
    }
}

fn partial_first() {
    let cache = HEAP.kmem_cache_create("partial", 1000, 0, SlabFlags::NO_MERGE, None).expect("a cache");
    let take = || HEAP.kmem_cache_alloc(cache.cache(), Gfp::KERNEL, 0);
    let mut objects: Vec<*mut u8> = (0..200).map(|_| take()).collect();
    let slabs = stats("partial").expect("the cache").slabs;
    for nth in (0..200).step_by(2) {
        // SAFETY: the object is live and this test's.
        unsafe { HEAP.kmem_cache_free(cache.cache(), objects[nth], 0) }.expect("an object of the cache");
    }
    (0..200).step_by(2).for_each(|nth| objects[nth] = take());
    assert_eq!(stats("partial").expect("the cache").slabs, slabs, "there was room in the slabs there were");
    for object in objects {
        // SAFETY: as above.
        unsafe { HEAP.kmem_cache_free(cache.cache(), object, 0) }.expect("an object of the cache");
    }
    assert_eq!(destroy_cache(cache), Ok(()));
}

fn coloured() {
    let cache = HEAP.kmem_cache_create("coloured", 700, 64, SlabFlags::NO_MERGE, None).expect("a cache");
    let id = cache.cache();
    let take = || HEAP.slab().alloc_direct(&I386, HEAP.pages(), id.get(), Gfp::KERNEL);
    let mut objects = alloc::vec![take()];
    let figures = stats("coloured").expect("the cache");
    objects.extend((1..figures.objects_per_slab * 12).map(|_| take()));
    let bytes = figures.pages_per_slab * PAGE_SIZE;
    // Where the first object of each slab lies, in the order of the slabs' making.
    let mut starts: Vec<(usize, usize)> = Vec::new();
    for object in &objects {
        let (slab, at) = (object.addr() / bytes, object.addr() % bytes);
        match starts.iter_mut().find(|(other, _)| *other == slab) {
            Some((_, first)) => *first = at.min(*first),
            None => starts.push((slab, at)),
        }
    }
    let offsets: Vec<usize> = starts.iter().map(|(_, at)| at / 64).collect();
    let colours = (bytes - figures.objects_per_slab * figures.size) / 64 + 1;
    assert!(colours > 1 && offsets.len() == 12, "{colours} colours, {offsets:?}");
    assert!(offsets.windows(2).all(|pair| pair[1] == (pair[0] + 1) % colours), "{colours} colours, {offsets:?}");
    for object in objects {
        // SAFETY: the object is live and this test's.
        unsafe { HEAP.kmem_cache_free(id, object, 0) }.expect("an object of the cache");
    }
    assert_eq!(destroy_cache(cache), Ok(()));
}

/// What SLAB's alien caches are for: frees on one node of what lies on another come home in batches.
fn alien_objects() {
    let cache = HEAP.kmem_cache_create("alien", 200, 0, SlabFlags::NO_MERGE, None).expect("a cache");
    let id = cache.cache();
    let node = memory::nodes() - 1;
    let of_node = |_| HEAP.slab().alloc_node(&I386, HEAP.pages(), id.get(), Gfp::KERNEL, node);
    let objects: Vec<*mut u8> = (0..300).map(of_node).collect();
    assert!(objects.iter().all(|object| I386.page(I386.pfn(*object).expect("low memory")).node() == node));
    for object in objects {
        // SAFETY: the object is live and this test's.
        unsafe { HEAP.kmem_cache_free(id, object, 0) }.expect("an object of the cache");
    }
    HEAP.slab().flush(&I386, HEAP.pages(), Some(id.get()));
    let figures = stats("alien").expect("the cache");
    assert_eq!((figures.in_use, figures.in_sheaves, figures.partial), (0, 0, 0), "all are back in slabs of their node");
    if let Err(violation) = HEAP.verify() {
        panic!("{violation}");
    }
    assert_eq!(destroy_cache(cache), Ok(()));
}

fn collections() {
    let mut map = BTreeMap::new();
    for n in 0..1000u32 {
        map.insert(n.wrapping_mul(2_654_435_761), format!("the square of {n} is {}", n * n));
    }
    assert_eq!(map[&12u32.wrapping_mul(2_654_435_761)], "the square of 12 is 144");
    map.retain(|key, _| key % 2 == 0);
    let words: Vec<String> = map.into_values().collect();
    let boxed = Box::new([1u8; 5 * PAGE_SIZE]);
    assert!(boxed.iter().all(|byte| *byte == 1) && !words.is_empty());
}

fn large_vec() {
    let mut long = vec![0u32; 3 << 18];
    assert!(I386.window().contains(&long.as_ptr().addr()), "three megabytes come from vmalloc");
    long.iter_mut().enumerate().for_each(|(i, word)| *word = i as u32);
    long.resize(1 << 20, 7);
    assert!(long[..3 << 18].iter().enumerate().all(|(i, word)| *word == i as u32), "growing loses nothing");
}
