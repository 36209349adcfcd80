//! Interrupt handlers that allocate, and two CPUs: rows C11, J, T2, and the sheaves of G.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use slabwright::gfp::Gfp;
use slabwright::machine::i386::fixmap::{FixedAddress, clear_fixmap, set_fixmap};
use slabwright::machine::i386::{I386, fault, interrupt, percpu, reports, smp};
use slabwright::machine::{Context, Frames, PerCpu, Word, no_sheaf};
use slabwright::paging::Flags;
use slabwright::slab::SlabFlags;
use slabwright::sync::Lock;
use slabwright::types::PhysAddr;

use super::{SLOB, Test, destroy_cache, free_pages};
use crate::kernel::HEAP;

pub const TESTS: &[Test] = &[
    ("C10 C11 the timer's handler allocates with GFP_ATOMIC while the main loop allocates", atomic_in_handler),
    ("C11 G10 G11 a handler that allocates after each instruction of the allocator", stepped),
    ("C2 a request that may sleep is refused in a handler", sleeping_in_handler),
    ("G10 G11 each CPU has sheaves of its own", own_sheaves),
    ("J1 G1 two CPUs allocate, and free each other's objects: none is handed out twice", exchange),
    ("T2 a mapping that is taken away is gone on every CPU", shootdown),
];

/// Of small blocks in sheaves.
pub const SHEAVES: &[Test] = &[("G9 a row is drained while its CPU works on it", drained_at_work)];

/// Objects under test carry who has them: an owner's stamp in each word, so that two owners at once see each other.
const WORDS: usize = 8;

/// Takes an object and stamps it; null is allowed where `may_fail`.
fn take(size: usize, gfp: Gfp, stamp: usize) -> *mut usize {
    let object = HEAP.kmalloc(size, gfp).cast::<usize>();
    if !object.is_null() {
        // SAFETY: the object is ours, and at least that long.
        (0..WORDS).for_each(|n| unsafe { object.add(n).write_volatile(stamp ^ object.addr()) });
    }
    object
}

/// Checks the stamp and gives the object back.
fn give(object: *mut usize, stamp: usize) {
    for n in 0..WORDS {
        // SAFETY: the object is ours.
        let found = unsafe { object.add(n).read_volatile() };
        assert_eq!(found, stamp ^ object.addr(), "word {n} of {object:?}: somebody else has it, too");
    }
    // SAFETY: it is ours and not used any more.
    unsafe { HEAP.kfree(object.cast()) };
}

/// Objects that the handler holds: with first fit each may have to be a page, as whom it interrupts has the lock.
const IN_HANDLER: usize = if SLOB { 20 } else { 64 };
/// What the handler holds. Only the boot CPU's handler is at it.
static HELD: [AtomicUsize; IN_HANDLER] = [const { AtomicUsize::new(0) }; IN_HANDLER];
static HANDLED: AtomicU32 = AtomicU32::new(0);
static REFUSED: AtomicU32 = AtomicU32::new(0);
static NESTED: AtomicU32 = AtomicU32::new(0);

fn allocating_handler() {
    if percpu::cpu() != 0 {
        return;
    }
    assert!(percpu::in_interrupt());
    if I386.enter() & 0xffff != 0 {
        NESTED.fetch_add(1, Ordering::Relaxed);
    }
    I386.leave();
    let n = HANDLED.fetch_add(1, Ordering::Relaxed) as usize;
    for n in [2 * n, 2 * n + 1] {
        let slot = &HELD[n % IN_HANDLER];
        let old = slot.swap(0, Ordering::Relaxed);
        if old != 0 {
            give(core::ptr::with_exposed_provenance_mut(old), 0x1111);
        }
        let new = take([32, 64, 500, 3000, if SLOB { 5000 } else { 20_000 }][n % 5], Gfp::ATOMIC, 0x1111);
        if new.is_null() {
            REFUSED.fetch_add(1, Ordering::Relaxed);
        }
        slot.store(new.expose_provenance(), Ordering::Relaxed);
    }
}

fn atomic_in_handler() {
    const MAIN: usize = 128;
    let mut held = [core::ptr::null_mut::<usize>(); MAIN];
    let sizes = if super::is_roomy() { 8 } else { 3 };
    HANDLED.store(0, Ordering::Relaxed);
    interrupt::on_tick(Some(allocating_handler));
    let mut seed = 1u32;
    let mut done = 0u32;
    while HANDLED.load(Ordering::Relaxed) < 400 {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let slot = &mut held[(seed >> 16) as usize % MAIN];
        if !slot.is_null() {
            give(*slot, 0x2222);
        }
        let size = [32, 64, 200, 500, 3000, 8192, 20_000, 100_000][(seed >> 8) as usize % sizes];
        *slot = take(size, Gfp::KERNEL, 0x2222);
        assert!(!slot.is_null(), "the main loop was refused {size} bytes");
        done += 1;
        if done.is_multiple_of(1024)
            && let Err(violation) = HEAP.verify()
        {
            panic!("{violation}");
        }
    }
    interrupt::on_tick(None);
    held.into_iter().filter(|object| !object.is_null()).for_each(|object| give(object, 0x2222));
    for slot in &HELD {
        let object = slot.swap(0, Ordering::Relaxed);
        if object != 0 {
            give(core::ptr::with_exposed_provenance_mut(object), 0x1111);
        }
    }
    let (handled, refused) = (HANDLED.load(Ordering::Relaxed), REFUSED.load(Ordering::Relaxed));
    assert!(refused < handled, "{refused} of {} requests of the handler were refused", 2 * handled);
    assert!(NESTED.load(Ordering::Relaxed) > 0, "no tick in {handled} came in a slow path: the test shows nothing");
    if let Err(violation) = HEAP.verify() {
        panic!("{violation}");
    }
}

static STEPS: AtomicUsize = AtomicUsize::new(0);
/// First fit works under its lock nearly all the time, and what a handler frees then waits for the next call: so the
/// handler must come less often than blocks are freed.
const EVERY: usize = if SLOB { 1009 } else { 1 };

/// Takes an object of the class that is being worked on, and gives back the one of the step before.
fn stepping_handler() {
    let step = STEPS.fetch_add(1, Ordering::Relaxed);
    if !step.is_multiple_of(EVERY) {
        return;
    }
    let slot = &HELD[step / EVERY % 3];
    let old = slot.swap(0, Ordering::Relaxed);
    if old != 0 {
        give(core::ptr::with_exposed_provenance_mut(old), 0x3333);
    }
    slot.store(take(64, Gfp::ATOMIC, 0x3333).expose_provenance(), Ordering::Relaxed);
}

fn stepped() {
    let mut held = [core::ptr::null_mut::<usize>(); 24];
    // The fast paths, and now and then a slow one.
    interrupt::step_through(stepping_handler, || {
        for round in 0..if SLOB { 600 } else { 120 } {
            let slot = &mut held[round * 7 % 24];
            if !slot.is_null() {
                give(*slot, 0x4444);
            }
            *slot = take(64, Gfp::KERNEL, 0x4444);
        }
    });
    held.into_iter().filter(|object| !object.is_null()).for_each(|object| give(object, 0x4444));
    for slot in &HELD {
        let object = slot.swap(0, Ordering::Relaxed);
        if object != 0 {
            give(core::ptr::with_exposed_provenance_mut(object), 0x3333);
        }
    }
    let steps = STEPS.load(Ordering::Relaxed);
    assert!(steps > 5000, "only {steps} instructions were stepped through");
    if let Err(violation) = HEAP.verify() {
        panic!("{violation}");
    }
}

static SLEPT: AtomicBool = AtomicBool::new(false);

fn sleeping_handler() {
    if percpu::cpu() == 0 && !SLEPT.swap(true, Ordering::Relaxed) {
        assert!(HEAP.alloc_pages(Gfp::KERNEL, 0, None).is_err());
    }
}

fn sleeping_in_handler() {
    slabwright::machine::i386::set_aborts(false);
    let before = reports();
    SLEPT.store(false, Ordering::Relaxed);
    interrupt::on_tick(Some(sleeping_handler));
    while !SLEPT.load(Ordering::Relaxed) {
        core::hint::spin_loop();
    }
    interrupt::on_tick(None);
    slabwright::machine::i386::set_aborts(true);
    assert_eq!(reports(), before + 1, "it is reported");
}

fn own_sheaves() {
    let cache = HEAP.kmem_cache_create("sheaves", 128, 0, SlabFlags::NO_MERGE, None).expect("a cache");
    let id = cache.cache();
    static ID: AtomicUsize = AtomicUsize::new(0);
    ID.store(cache.to_raw(), Ordering::Relaxed);
    let touch = |_: usize| {
        let id = HEAP.kmem_cache_from_raw(ID.load(Ordering::Relaxed)).expect("the cache").cache();
        let object = HEAP.kmem_cache_alloc(id, Gfp::KERNEL, 0);
        // SAFETY: the object is live and ours.
        unsafe { HEAP.kmem_cache_free(id, object, 0) }.expect("an object of the cache");
    };
    touch(0);
    let used = smp::run(1, touch, 0);
    smp::wait_idle(1);
    let mut words = alloc::vec::Vec::new();
    for cpu in 0..percpu::cpus() {
        assert!(I386.drain_row(cpu, &mut |row| words.push(row[Word::Main(id.get()).index()])));
    }
    assert_ne!(words[0], no_sheaf());
    assert!(!used || (words[1] != no_sheaf() && words[1] != words[0]), "{words:x?}");
    assert!(I386.drain_row(percpu::cpus(), &mut |_| panic!("no such CPU")));
    assert_eq!(destroy_cache(cache), Ok(()));
}

/// Objects on their way from one CPU to the other, with their stamps.
static MAIL: Lock<([(usize, usize); 64], usize)> = Lock::new(([(0, 0); 64], 0));
const ROUNDS: usize = if SLOB { 20_000 } else { 60_000 };

/// Allocates, frees, and exchanges objects with the other CPU.
fn trade(me: usize) {
    let mut held = [(core::ptr::null_mut::<usize>(), 0usize); 48];
    let mut seed = 77 + me as u32;
    let sizes = if super::is_roomy() { 7 } else { 6 };
    for round in 0..ROUNDS {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let slot = &mut held[(seed >> 16) as usize % 48];
        if slot.0.is_null() {
            let stamp = me << 28 | round;
            let size = [32, 40, 64, 120, 500, 1024, 5000][(seed >> 8) as usize % sizes];
            *slot = (take(size, Gfp::KERNEL, stamp), stamp);
            assert!(!slot.0.is_null(), "CPU {me} was refused {size} bytes");
        } else if seed & 0x80 == 0 {
            give(slot.0, slot.1);
            slot.0 = core::ptr::null_mut();
        } else {
            // In exchange for one of the other CPU's, if there is one.
            let mut mail = MAIL.lock(&I386);
            let (boxes, count) = &mut *mail;
            if *count == boxes.len() {
                *count -= 1;
                let (address, stamp) = boxes[*count];
                drop(mail);
                give(core::ptr::with_exposed_provenance_mut(address), stamp);
            } else {
                boxes[*count] = (slot.0.expose_provenance(), slot.1);
                *count += 1;
                let place = (seed >> 4) as usize % *count;
                let (address, stamp) = boxes[place];
                boxes[place] = boxes[*count - 1];
                *count -= 1;
                *slot = (core::ptr::with_exposed_provenance_mut(address), stamp);
                if *count < 32 {
                    boxes[*count] = (slot.0.expose_provenance(), slot.1);
                    *count += 1;
                    slot.0 = core::ptr::null_mut();
                }
            }
        }
    }
    held.into_iter().filter(|(object, _)| !object.is_null()).for_each(|(object, stamp)| give(object, stamp));
}

fn exchange() {
    let two = smp::run(1, trade, 1);
    assert_eq!(two, smp::online() > 1);
    trade(2);
    smp::wait_idle(1);
    let mut mail = MAIL.lock(&I386);
    while mail.1 > 0 {
        mail.1 -= 1;
        let (address, stamp) = mail.0[mail.1];
        give(core::ptr::with_exposed_provenance_mut(address), stamp);
    }
    drop(mail);
    if let Err(violation) = HEAP.verify() {
        panic!("{violation}");
    }
}

/// What the other CPU saw last at the fixed address: 0 nothing, 1 a fault, else the byte and 2.
static SIGHT: AtomicU32 = AtomicU32::new(0);
static LOOK: AtomicUsize = AtomicUsize::new(0);

fn look(_: usize) {
    let at = LOOK.load(Ordering::Relaxed);
    SIGHT.store(fault::read_byte(at).map_or(1, |byte| u32::from(byte) + 2), Ordering::Release);
}

fn seen_elsewhere() -> u32 {
    if smp::run(1, look, 0) {
        smp::wait_idle(1);
    } else {
        look(0);
    }
    SIGHT.load(Ordering::Acquire)
}

fn shootdown() {
    const SCRATCH: usize = FixedAddress::Scratch as usize;
    let frames = [0, 1].map(|n| {
        let pfn = HEAP.alloc_pages(Gfp::KERNEL, 0, None).expect("a page");
        // SAFETY: the page is this test's.
        unsafe { I386.virt(pfn).write_volatile(n + 10) };
        pfn
    });
    let answered = smp::answered();
    for n in 0..40 {
        LOOK.store(set_fixmap::<SCRATCH>(PhysAddr::of(frames[n % 2]), Flags::KERNEL), Ordering::Relaxed);
        assert_eq!(seen_elsewhere(), n as u32 % 2 + 12, "the other CPU sees what was there before");
        clear_fixmap::<SCRATCH>();
        assert_eq!(seen_elsewhere(), 1, "the other CPU sees a page that is mapped no more");
    }
    assert_eq!(smp::answered() - answered >= 40, smp::online() > 1);
    frames.into_iter().for_each(|pfn| free_pages(pfn, 0));
}

static STOP: AtomicBool = AtomicBool::new(false);

fn work(_: usize) {
    let mut n = 0;
    while !STOP.load(Ordering::Relaxed) {
        n += 1;
        let (a, b) = (take(64, Gfp::KERNEL, n), take(64, Gfp::KERNEL, n + 1));
        assert_ne!(a, b);
        give(a, n);
        give(b, n + 1);
    }
}

fn drained_at_work() {
    STOP.store(false, Ordering::Relaxed);
    let two = smp::run(1, work, 0);
    let refused = percpu::refused();
    for _ in 0..300 {
        if let Err(violation) = HEAP.verify() {
            panic!("{violation}");
        }
        if !two {
            // With one CPU the handler is who works on the row meanwhile.
            work_once();
        }
    }
    STOP.store(true, Ordering::Relaxed);
    smp::wait_idle(1);
    assert!(!two || percpu::refused() > refused, "no section met a drained row: the test shows nothing");
}

fn work_once() {
    let object = take(64, Gfp::KERNEL, 5);
    give(object, 5);
}
