//! The reports of simulated machines, against the kernel's formats.
#![allow(clippy::undocumented_unsafe_blocks)] // the calls under test, on memory of the test's own

use std::fmt::Write as _;

use slabwright::api::VmArea;
use slabwright::gfp::Gfp;
use slabwright::machine::ZoneKind;
use slabwright::machine::sim::{Flavour, Sim, SimBare, SimHosted, Simulated};
use slabwright::mm::{Hooks, Mm, Report};
use slabwright::slab::SlabFlags;
use slabwright::types::Order;

fn heap<F: Flavour>(sim: Simulated<F>) -> Mm<Simulated<F>> {
    let after = |mm: &Mm<Simulated<F>>| {
        for (node, zone, range) in mm.machine().ram() {
            unsafe { mm.pages().add(mm.machine(), *node, *zone, *range) };
        }
    };
    Mm::with_hooks(sim, Hooks { before: None, after: Some(after) })
}

fn text<F: Flavour>(mm: &Mm<Simulated<F>>, report: Report) -> String {
    let mut text = String::new();
    mm.report(report, &mut text).expect("a string takes everything");
    assert!(text.is_empty() || text.ends_with('\n'));
    text
}

/// A machine of 2 nodes: DMA, NORMAL and HIGHMEM on the one, NORMAL on the other.
fn machine() -> Mm<Sim> {
    let sim = Sim::builder()
        .nodes(2)
        .ram(0, ZoneKind::Dma, 1, 1023)
        .ram(0, ZoneKind::Normal, 4096, 2048)
        .ram(0, ZoneKind::HighMem, 8192, 1024)
        .ram(1, ZoneKind::Normal, 16384, 512);
    heap(sim.build())
}

// rows: B3 D2 D9
#[test]
fn buddyinfo() {
    // Node 0 has frames 1 to 1023 of DMA: one block of each order.
    let expected = "\
Node 0, zone      DMA      1      1      1      1      1      1      1      1      1      1      0 
Node 0, zone   Normal      0      0      0      0      0      0      0      0      0      0      2 
Node 0, zone  HighMem      0      0      0      0      0      0      0      0      0      0      1 
Node 1, zone   Normal      0      0      0      0      0      0      0      0      0      1      0 
";
    let mm = machine();
    assert_eq!(text(&mm, Report::Buddyinfo), expected);
    // 256 KiB split a block, and leave one of each order below; the first request also sets 16 pages aside for atomic
    // ones: 8 are free, but merge with nothing, and 8 are in a pool of their own.
    let normal = |mm| text(mm, Report::Buddyinfo).lines().nth(1).unwrap().to_owned();
    let order = Order::new(6).unwrap();
    let head = mm.pages().alloc_pages(mm.machine(), Gfp::KERNEL, order, None).unwrap();
    let split = "Node 0, zone   Normal      0      0      0      1      1      1      0      1      1      1      1 ";
    assert_eq!(normal(&mm), split);
    assert!(unsafe { mm.pages().free_pages(mm.machine(), head, order, true) });
    let merged = "Node 0, zone   Normal      0      0      0      1      1      1      1      1      1      1      1 ";
    assert_eq!(normal(&mm), merged);
}

/// Every second page is free: half of memory, of which next to no larger block can be had, and the index says so.
// rows: D4
#[test]
fn unusable_index() {
    let dma = "Node 0, zone      DMA 0.000 0.000 0.002 0.006 0.014 0.030 0.061 0.124 0.249 0.499 1.000 \n";
    let got = text(&machine(), Report::UnusableIndex);
    assert!(got.starts_with(dma), "{got}");
    let mm = heap(SimBare::builder().ram(0, ZoneKind::Normal, 4096, 2048).build());
    mm.start();
    let light = Gfp::KERNEL | Gfp::NORETRY | Gfp::NOWARN;
    let all: Vec<_> = std::iter::from_fn(|| mm.alloc_pages(light | Gfp::MEMALLOC, 0, None).ok()).collect();
    let free =
        |odd: u32| all.iter().filter(|pfn| pfn.0 % 2 == odd).for_each(|pfn| unsafe { mm.free_pages(*pfn, 0).unwrap() });
    let zone = || mm.pages().zone(mm.machine(), 0, ZoneKind::Normal);
    let index = |order| zone().unusable(Order::new(order).unwrap());
    free(1);
    mm.trim();
    assert!(zone().free > 900 && index(0) == 0 && index(4) > 900, "{:?}", zone().blocks);
    assert!(mm.alloc_pages(light, 4, None).is_err(), "{:?}", zone().blocks);
    let line = text(&mm, Report::UnusableIndex);
    assert!(line.starts_with("Node 0, zone   Normal 0.000 "), "{line}");
    assert_eq!(line.split_whitespace().nth(8), Some(&*format!("{}.{:03}", index(4) / 1000, index(4) % 1000)));
    free(0);
    mm.trim();
    assert!(index(4) < 50 && index(9) < 700, "{:?}", zone().blocks);
    unsafe { mm.free_pages(mm.alloc_pages(light, 4, None).unwrap(), 4).unwrap() };
}

// rows: D3 D5
#[test]
fn pagetypeinfo() {
    let mm = machine();
    let got = text(&mm, Report::Pagetypeinfo);
    let head = "\
Page block order: 9
Pages per block:  512

Free pages count per migrate type at order       0      1      2      3      4      5      6      7      8      9     10 
Node    0, zone      DMA, type    Unmovable      0      0      0      0      0      0      0      0      0      0      0 
Node    0, zone      DMA, type      Movable      1      1      1      1      1      1      1      1      1      1      0 
Node    0, zone      DMA, type  Reclaimable      0      0      0      0      0      0      0      0      0      0      0 
Node    0, zone      DMA, type   HighAtomic      0      0      0      0      0      0      0      0      0      0      0 
Node    0, zone      DMA, type          CMA      0      0      0      0      0      0      0      0      0      0      0 
Node    0, zone      DMA, type      Isolate      0      0      0      0      0      0      0      0      0      0      0 
Node    0, zone   Normal, type    Unmovable ";
    assert!(got.starts_with(head), "{got}");
    let tail = "
Number of blocks type     Unmovable      Movable  Reclaimable   HighAtomic          CMA      Isolate 
Node 0, zone      DMA            0            2            0            0            0            0 
Node 0, zone   Normal            0            4            0            0            0            0 
Node 0, zone  HighMem            0            2            0            0            0            0 
Node 1, zone   Normal            0            1            0            0            0            0 
";
    assert!(got.ends_with(tail), "{got}");
}

// rows: B4 B7 B8 B10
#[test]
fn zoneinfo() {
    let mm = machine();
    let got = text(&mm, Report::Zoneinfo);
    let dma = "\
Node 0, zone      DMA
  per-node stats
      nr_slab_reclaimable 0
      nr_slab_unreclaimable 0
  pages free     1023
        boost    0
        min      63
        low      78
        high     94
        spanned  1023
        present  1023
        managed  1023
        cma      0
        protection: (0, 0, 8, 12, 12)
      nr_free_pages 1023
  pagesets
  node_unreclaimable:  0
  start_pfn:           1
Node 0, zone    DMA32
  pages free     0
        boost    0
        min      0
        low      0
        high     0
        spanned  0
        present  0
        managed  0
        cma      0
        protection: (0, 0, 0, 0, 0)
Node 0, zone   Normal
  pages free     2048
";
    assert!(got.starts_with(dma), "{got}");
    assert!(got.contains("\nNode 1, zone   Normal\n  per-node stats\n"), "{got}");
    // A CPU's lists show up once it has used them.
    let page = mm.pages().alloc_page(mm.machine(), Gfp::KERNEL).unwrap();
    assert!(unsafe { mm.pages().put_page(mm.machine(), page, true) });
    let got = text(&mm, Report::Zoneinfo);
    assert!(got.contains("  pagesets\n    cpu: 0\n              count:   16\n              high:    "), "{got}");
    assert!(got.contains("\n              batch:   16\n"), "{got}");
}

// rows: G2 G4 G7
#[test]
fn slabinfo() {
    let mm = machine();
    assert_eq!(text(&mm, Report::Slabinfo).lines().count(), 2);
    let flags = SlabFlags::NO_MERGE.with(SlabFlags::RECLAIM_ACCOUNT);
    let cache = mm.kmem_cache_create("inode cache", 1000, 8, flags, None).unwrap();
    let objects: Vec<_> = (0..5).map(|_| mm.kmem_cache_alloc(cache.cache(), Gfp::KERNEL, 0)).collect();
    let got = text(&mm, Report::Slabinfo);
    let mut lines = got.lines();
    assert_eq!(lines.next(), Some("slabinfo - version: 2.1"));
    assert_eq!(
        lines.next().unwrap(),
        "# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit> <batchcount> \
         <sharedfactor> : slabdata <active_slabs> <num_slabs> <sharedavail>"
    );
    // 8 objects for the sheaf's first filling, of which 5 were handed out; 8 fit a slab of two pages.
    let line = got.lines().find(|line| line.starts_with("inode")).unwrap();
    assert_eq!(
        line,
        "inode_cache            5      8   1000    8    2 : tunables   65   16    0 : slabdata      1      1      0",
        "{got}"
    );
    // A run of pages is an object, too, active until it is freed and kept.
    let run = mm.alloc(40 << 10);
    let line = |text: &str| text.lines().find(|line| line.starts_with("run-40k")).map(str::to_owned);
    let active =
        "run-40k                1      1  40960    1   10 : tunables   51    1    0 : slabdata      1      1      0";
    assert_eq!(line(&text(&mm, Report::Slabinfo)).as_deref(), Some(active));
    // SAFETY: the block is live and not used any more.
    unsafe { mm.free(run) };
    let kept =
        "run-40k                0      1  40960    1   10 : tunables   51    1    0 : slabdata      0      1      0";
    assert_eq!(line(&text(&mm, Report::Slabinfo)).as_deref(), Some(kept));
    // Sheaves are objects of a cache, too.
    assert!(got.lines().any(|line| line.starts_with("sheaf             ")), "{got}");
    assert!(text(&mm, Report::Zoneinfo).contains("nr_slab_reclaimable 2\n"));
    for object in objects {
        // SAFETY: the objects are live and not used any more.
        unsafe { mm.kmem_cache_free(cache.cache(), object, 0) }.unwrap();
    }
    let line = text(&mm, Report::Slabinfo).lines().find(|line| line.starts_with("inode")).unwrap().to_owned();
    assert!(line.starts_with("inode_cache            0      8 "), "{line}");
    unsafe { mm.kmem_cache_destroy(cache).unwrap() };
    assert!(!text(&mm, Report::Slabinfo).contains("inode"));
}

// rows: H3 H4
#[test]
fn vmallocinfo_tells_mappings_from_areas() {
    let mm = heap(SimBare::builder().ram(0, ZoneKind::Normal, 4096, 2048).build());
    mm.start();
    let frames = [0, 1].map(|_| mm.alloc_pages(Gfp::KERNEL, 0, None).unwrap());
    let view = mm.vmap(&frames).unwrap();
    let line = text(&mm, Report::Vmallocinfo);
    assert!(line.starts_with(&format!("0x{:016x}-", view.addr())) && line.ends_with(" pages=2 vmap\n"), "{line}");
    unsafe { mm.vunmap(view).unwrap() };
    assert!(!text(&mm, Report::Vmallocinfo).contains("vmap\n"));
    // By its type it knows who asked; so does an area, and it is the line of the caller.
    // SAFETY: the frames stay until the end.
    let (view, line) = (unsafe { VmArea::of_frames(&mm, &frames).unwrap() }, line!());
    let area = VmArea::new(&mm, 5 << 12, Gfp::KERNEL).unwrap();
    let lines = text(&mm, Report::Vmallocinfo);
    assert!(lines.contains(&format!("  12288 {}:{line} pages=2 vmap\n", file!())), "{lines}");
    assert!(lines.contains(&format!("  24576 {}:{} pages=5 vmalloc\n", file!(), line + 1)), "{lines}");
    drop((view, area));
    // The next one there is not theirs.
    let bytes = mm.vmalloc_bytes(5 << 12, Gfp::KERNEL).unwrap();
    assert!(!text(&mm, Report::Vmallocinfo).contains(file!()));
    unsafe { mm.vfree(bytes).unwrap() };
    frames.iter().for_each(|pfn| unsafe { mm.free_pages(*pfn, 0).unwrap() });
}

// rows: H1 H2
#[test]
fn vmallocinfo() {
    let mm = heap(SimHosted::builder().window(128 << 20).grow(0, ZoneKind::Normal, 4096, 8192, 1024).build());
    // More than are copied at a time.
    let sizes: Vec<usize> = (0..20).map(|n| (2 << 20) + 4096 * (1 + n)).collect();
    let blocks: Vec<_> = sizes.iter().map(|size| mm.alloc(*size)).collect();
    let mut expected: Vec<(usize, String)> = Vec::new();
    for (block, size) in blocks.iter().zip(&sizes) {
        let start = block.addr();
        let end = start + (4 << 20);
        let line = format!("0x{start:016x}-0x{end:016x} 4194304 pages={} vmalloc\n", size / 4096);
        expected.push((start, line));
    }
    expected.sort();
    let lines = |of: &[(usize, String)]| of.iter().map(|(_, line)| line.as_str()).collect::<String>();
    assert_eq!(text(&mm, Report::Vmallocinfo), lines(&expected));
    // SAFETY: live blocks, freed once.
    blocks.iter().for_each(|block| unsafe { mm.free(*block) });
    // What is kept of it is nobody's; some, or parts, may have gone back to the system.
    let kept = text(&mm, Report::Vmallocinfo);
    assert!(kept.lines().all(|line| line.ends_with(" unpurged vm_area")), "{kept}");
}

// rows: B14 B5 B12
#[test]
fn iomem() {
    let expected = "\
00001000-003fffff : System RAM (node 0, zone DMA)
01000000-017fffff : System RAM (node 0, zone Normal)
02000000-023fffff : System RAM (node 0, zone HighMem)
04000000-041fffff : System RAM (node 1, zone Normal)
";
    assert_eq!(text(&machine(), Report::Iomem), expected);
}

/// A sink that uses the heap that it is told of, in every way.
struct Busy<'a> {
    mm: &'a Mm<SimHosted>,
    blocks: Vec<*mut u8>,
}

impl std::fmt::Write for Busy<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let size = text.len() << (self.blocks.len() % 20);
        self.blocks.push(self.mm.alloc(size));
        if self.blocks.len() > 40 {
            // SAFETY: live blocks, freed once.
            self.blocks.drain(..30).for_each(|block| unsafe { self.mm.free(block) });
        }
        Ok(())
    }
}

#[test]
fn nothing_is_held_while_a_line_is_written() {
    let mm = heap(SimHosted::builder().window(1 << 30).grow(0, ZoneKind::Normal, 4096, 65536, 1024).build());
    let mut sink = Busy { mm: &mm, blocks: Vec::new() };
    for report in Report::ALL.into_iter().cycle().take(60) {
        mm.report(report, &mut sink).unwrap();
        mm.verify().unwrap();
    }
}

#[test]
fn handlers_are_refused() {
    use slabwright::machine::Context;
    let mm = machine();
    assert!(mm.start());
    mm.machine().enter();
    let mut text = String::new();
    assert!(mm.report(Report::Slabinfo, &mut text).is_err() && text.is_empty());
    mm.machine().leave();
    assert!(write!(text, "{}", Report::Slabinfo.name()).is_ok());
    assert_eq!(Report::by_name(&text), Some(Report::Slabinfo));
    assert_eq!(Report::by_name("meminfo"), None);
}
