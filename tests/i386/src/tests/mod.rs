//! The self-tests. Each name begins with the rows of the coverage table that it shows; one that fails panics, which
//! ends the image.

mod boot;
mod compact;
mod faults;
mod heap;
mod layout;
mod mappings;
mod objects;
mod pages;
mod percpu;
mod slob;
mod smp;
mod tables;

use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use slabwright::machine::i386::{I386, boot as machine, memory};
use slabwright::mm::Named;
use slabwright::printk;
use slabwright::types::Pfn;

use crate::kernel::HEAP;

/// A self-test: its name and its body.
type Test = (&'static str, fn());

/// Frees a block of a test's own, which does not use it any more.
fn free_pages(pfn: Pfn, order: u32) {
    // SAFETY: see above.
    unsafe { HEAP.free_pages(pfn, order) }.expect("a block of this test's");
}

/// Drops a reference of a test's own to a page.
fn put_page(pfn: Pfn) -> bool {
    // SAFETY: see above.
    unsafe { HEAP.pages().put_page(&I386, pfn, true) }
}

/// Destroys a cache of a test's own, which does not use it any more.
fn destroy_cache(cache: Named) -> Result<(), usize> {
    // SAFETY: see above.
    unsafe { HEAP.kmem_cache_destroy(cache) }
}

/// Whether small blocks come from first fit, and not from size classes and sheaves.
pub const SLOB: bool = cfg!(feature = "slob");

const SUITES: &[&[Test]] = &[
    boot::TESTS,
    tables::TESTS,
    pages::TESTS,
    objects::TESTS,
    mappings::TESTS,
    percpu::TESTS,
    faults::TESTS,
    smp::TESTS,
    heap::TESTS,
    if SLOB { slob::TESTS } else { objects::CLASSES },
    if SLOB { &[] } else { smp::SHEAVES },
];

/// What a machine of a few MiB leaves out, being too small for it.
const ROOMY: &[&[Test]] = &[layout::ROOMY, pages::ROOMY, objects::ROOMY, percpu::ROOMY, compact::ROOMY, heap::ROOMY];

/// Whether the machine is large enough for these.
fn is_roomy() -> bool {
    machine::MEMBLOCK.lock(&I386).total() >= 14 << 20
}

/// The test that runs.
static CURRENT: AtomicPtr<&'static str> = AtomicPtr::new(core::ptr::null_mut());

/// The name of the test that runs.
pub fn current() -> Option<&'static str> {
    // SAFETY: null, or a name in a table of tests.
    unsafe { CURRENT.load(Relaxed).as_ref().copied() }
}

/// Runs all. Comes back if none failed.
pub fn run() {
    let mut passed = 0;
    let roomy = if is_roomy() { ROOMY } else { &[] };
    let wide: &[&[Test]] = if memory::frames() > 1 << 20 { &[mappings::WIDE] } else { &[] };
    for (name, test) in SUITES.iter().chain(roomy).chain(wide).copied().flatten() {
        CURRENT.store((&raw const *name).cast_mut(), Relaxed);
        test();
        printk!("ok {name}\n");
        // A test that fails, where the command line asks for it.
        if machine::option("fail", |how| how == Some("test")) {
            static NAME: &str = "a test that fails";
            CURRENT.store((&raw const NAME).cast_mut(), Relaxed);
            panic!("as asked for");
        }
        passed += 1;
    }
    CURRENT.store(core::ptr::null_mut(), Relaxed);
    printk!("{passed} passed, 0 failed\n");
}

/// Whether there is memory without a permanent address.
fn has_highmem() -> bool {
    u64::from(memory::frames()) << 12
        > (memory::high_memory() - slabwright::machine::i386::layout::PAGE_OFFSET + (4 << 20)) as u64
}
