//! Every frame has exactly one owner, and what a descriptor says of its memory is so: seen from outside, frame by
//! frame.

use std::sync::atomic::Ordering::Relaxed;

use slabwright::machine::Frames;
use slabwright::machine::sim::{Flavour, Simulated};
use slabwright::mm::Mm;
use slabwright::page::{Kind, Page, flag};
use slabwright::types::{PAGE_SIZE, Pfn, PfnRange};

/// Frames by owner.
#[derive(Default, Debug, PartialEq)]
pub struct Census {
    /// On free lists, per-CPU ones and the pool for atomic requests included.
    pub free: u64,
    pub slabs: u64,
    pub runs: u64,
    /// Kept by the allocator for itself: per-CPU lists, page tables.
    pub kept: u64,
    /// Under vmalloc areas, handed out as pages, or isolated.
    pub other: u64,
}

/// Counts the frames of a machine whose allocator nobody uses at the moment.
pub fn take<F: Flavour>(mm: &Mm<Simulated<F>>) -> Census {
    let sim = mm.machine();
    let mut census = Census::default();
    for range in sim.online() {
        let (mut at, mut before) = (range.start, None);
        while at < range.end() {
            let page = sim.page(at);
            let pages = match page.kind() {
                Kind::Run | Kind::Kept | Kind::Tagged | Kind::Pcp | Kind::Row => page.word() as u32,
                // A run that waits for somebody who may free it.
                Kind::Isolated if !page.has(flag::RESERVE) && !is_offline(page) => page.word() as u32,
                Kind::Tail | Kind::Offline => panic!("frame {at:?} is nobody's ({:?}), behind {before:?}", page.kind()),
                _ => page.order().pages(),
            };
            let block = PfnRange::new(at, pages);
            before = Some((block, page.kind(), page.order(), page.word()));
            assert!(pages > 0 && block.end() <= range.end(), "{block:?} ({:?}) leaves {range:?}", page.kind());
            let tagged = block.iter().filter(|pfn| sim.class(*pfn).load(Relaxed) != 0).count();
            match page.kind() {
                Kind::Slab => {}
                Kind::Tagged => {
                    assert!(tagged <= 1 && (tagged == 0 || sim.class(at).load(Relaxed) != 0), "tags in {block:?}")
                }
                kind => assert_eq!(tagged, 0, "tags in {block:?} ({kind:?})"),
            }
            match page.kind() {
                // Isolated with a mark of the reserve: in the pool for atomic requests.
                Kind::Isolated if page.has(flag::RESERVE) => census.free += u64::from(pages),
                Kind::Isolated if is_offline(page) => {}
                Kind::Buddy | Kind::Pcp | Kind::Row => {
                    census.free += u64::from(pages);
                    check_contents(sim, block, page.flags());
                }
                Kind::Slab => census.slabs += u64::from(pages),
                Kind::Reserved | Kind::Table => census.kept += u64::from(pages),
                Kind::Tagged if sim.class(at).load(Relaxed) == 0 => census.other += u64::from(pages),
                Kind::Run | Kind::Tagged | Kind::Isolated => census.runs += u64::from(pages),
                _ => census.other += u64::from(pages),
            }
            for inner in block.iter().skip(1) {
                let kind = sim.page(inner).kind();
                let fits = match page.kind() {
                    Kind::Slab => kind == Kind::Slab,
                    Kind::Row if inner.add(1) == block.end() => kind == Kind::RowEnd,
                    _ => matches!(kind, Kind::Tail | Kind::Offline),
                };
                assert!(fits, "frame {inner:?} inside {block:?} ({:?}) says {kind:?}", page.kind());
            }
            at = block.end();
        }
    }
    census
}

/// Whether nothing is mapped behind the block, and it is in nobody's figures.
fn is_offline(page: &Page) -> bool {
    page.kind() == Kind::Isolated && page.has(flag::UNBACKED)
}

/// A free block flagged unbacked has no memory behind it; one flagged zero reads zero.
fn check_contents<F: Flavour>(sim: &Simulated<F>, block: PfnRange, flags: u32) {
    let backed: Vec<Pfn> = block.iter().filter(|pfn| sim.is_backed(*pfn)).collect();
    if flags & flag::UNBACKED != 0 {
        assert!(flags & flag::ZERO != 0, "{block:?} is unbacked and not zero");
        assert_eq!(backed, [], "backed frames of {block:?}, which says it is unbacked");
    }
    if flags & flag::ZERO != 0 {
        for pfn in backed.into_iter().filter(|pfn| !sim.virt(*pfn).is_null()) {
            // SAFETY: the frame is online and free: nobody writes to it.
            let bytes = unsafe { core::slice::from_raw_parts(sim.virt(pfn), PAGE_SIZE) };
            assert!(bytes.iter().all(|b| *b == 0), "{pfn:?} of {block:?} should read zero");
        }
    }
}
