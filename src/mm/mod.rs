//! The allocator: routes requests by size to the layers, and holds what spans them.
//!
//! | request | served by |
//! |---|---|
//! | up to 8 KiB | slab caches: [`crate::slab`] |
//! | to 2 MiB | exact page runs: [`crate::zone`] |
//! | above | [`crate::vmalloc`] |
//!
//! Slow paths are bracketed by [`Context::enter`](crate::machine::Context::enter): a signal or interrupt handler that comes in between
//! is nested, and gets on with tried locks only. What it cannot free then is deferred to the next call that may block.
#![allow(unsafe_code)]

mod age;
mod balance;
mod caches;
mod global_alloc;
mod highmem;
mod kmalloc;
mod large;
mod mapping;
mod mempool;
mod migrate;
mod pages;
mod percpu;
mod realloc;
mod report;
mod reserve;
mod shrinker;
mod stats;

use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

pub use caches::Named;
pub use highmem::{KMAP_CPUS, KmType};
pub use large::RUN_STEP;
pub use mempool::{Mempool, PoolSource};
pub use migrate::{OwnerId, PageOwner};
pub use percpu::MAX_PERCPU;
pub use report::Report;
pub use shrinker::{SHRINK_EMPTY, SHRINK_STOP, ShrinkCall, ShrinkControl};
pub use stats::{Stats, Violation};

use self::caches::Names;
use self::kmalloc::LowClasses;
use self::reserve::Reserve;
use crate::config::Options;
use crate::error::Defect;
use crate::gfp::Gfp;
use crate::machine::{Machine, misuse};
use crate::slab::classes::{
    MAX_SMALL, NR_CLASSES, class_align, class_aligned, class_of, class_of_layout, class_of_small, class_size,
};
use crate::slab::slob::{self, Slob};
use crate::slab::{LIMITS, Slab, class_of_tag, clear_mark, is_dense, mark_of, place, run_of_tag, starts_object};
use crate::sync::wide::AtomicU64;
use crate::sync::{Deferred, Fork, Lock, Phase, Startup};
use crate::types::{PAGE_SIZE, PAGEBLOCK_SIZE, Pfn};
use crate::vmalloc::Vmalloc;
use crate::zone::PageAllocator;

/// Largest request served as a page run, in bytes.
pub const MAX_RUN: usize = PAGEBLOCK_SIZE;
/// Small blocks come from first fit (SLOB), not from size classes: the feature `slob`.
const TINY: bool = cfg!(feature = "slob");

/// An allocator on a machine. In this order: what every program uses comes first and takes few pages.
#[repr(C)]
pub struct Mm<M: Machine> {
    machine: M,
    startup: Startup,
    /// Sizes below are small: one more than [`MAX_SMALL`], and 0 until the instance is up, and where somebody is to look at the clock
    /// ([`age`]), so that the calls fall into the slow path without a branch of its own.
    small: AtomicUsize,
    options: Lock<Options>,
    /// The options are set.
    configured: AtomicBool,
    vmalloc: Vmalloc<M>,
    /// Blocks freed where a lock was not to be had, linked through their first word.
    deferred: Deferred,
    age: age::Age,
    /// Pages given back to the system.
    returned: AtomicU64,
    /// What [`Context::generation`](crate::machine::Context::generation) said last.
    generation: AtomicU32,
    /// The fork in progress that took no lock, by its token; 0 for none.
    unlocked: AtomicUsize,
    /// The process lost the holder of a lock.
    crippled: AtomicBool,
    reserve: Reserve,
    hooks: Hooks<M>,
    slab: Slab<M>,
    pages: PageAllocator<M>,
    names: Lock<Names>,
    low: LowClasses,
    percpu: Lock<percpu::Chunks>,
    highmem: highmem::Highmem,
    owners: Lock<migrate::Owners>,
    shrinkers: shrinker::Shrinkers,
    slob: Slob<M>,
}

/// What [`Mm::free_fast`] leaves to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// [`Mm::free_run_at`], of what lies in that page with that tag.
    Run(Pfn, u8),
    /// [`Mm::free_rest`].
    Rest,
}

/// What the owner of an instance wants to do at its start, beyond what its machine's [`Owner`](crate::machine::Owner) does.
pub struct Hooks<M: Machine> {
    /// Runs before the machine is prepared: the place to set options.
    pub before: Option<fn(&Mm<M>)>,
    /// Runs when all is up; may allocate.
    pub after: Option<fn(&Mm<M>)>,
}

impl<M: Machine> Mm<M> {
    /// An allocator that starts itself at the first request.
    pub const fn new(machine: M) -> Mm<M> {
        Mm::with_hooks(machine, Hooks { before: None, after: None })
    }

    /// An allocator that starts itself at the first request and runs `hooks` then.
    pub const fn with_hooks(machine: M, hooks: Hooks<M>) -> Mm<M> {
        Mm {
            machine,
            hooks,
            generation: AtomicU32::new(0),
            unlocked: AtomicUsize::new(0),
            crippled: AtomicBool::new(false),
            reserve: Reserve::new(),
            names: Lock::new(Names::new()),
            low: LowClasses::new(),
            percpu: Lock::new(percpu::Chunks::new()),
            highmem: highmem::Highmem::new(),
            owners: Lock::new(migrate::Owners::new()),
            shrinkers: shrinker::Shrinkers::new(),
            startup: Startup::new(),
            small: AtomicUsize::new(0),
            options: Lock::new(Options::UNSET),
            configured: AtomicBool::new(false),
            pages: PageAllocator::new(),
            slab: Slab::new(),
            slob: Slob::new(),
            vmalloc: Vmalloc::new(),
            deferred: Deferred::new(),
            age: age::Age::new(),
            returned: AtomicU64::new(0),
        }
    }

    /// The machine it runs on.
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// The page layer.
    pub fn pages(&self) -> &PageAllocator<M> {
        &self.pages
    }

    /// The slab layer.
    pub fn slab(&self) -> &Slab<M> {
        &self.slab
    }

    /// The vmalloc layer.
    pub fn vmalloc(&self) -> &Vmalloc<M> {
        &self.vmalloc
    }

    /// The options it was started with; the defaults in a handler that interrupted what holds their lock (a fork).
    pub fn options(&self) -> Options {
        let nested = self.machine.enter() > 0;
        let options = self.options.acquire(&self.machine, !nested && !self.is_crippled());
        let set = options.filter(|_| self.configured.load(Ordering::Relaxed));
        let copy = set.map_or(Options::DEFAULT, |options| *options);
        self.machine.leave();
        copy
    }

    /// Sets the options; only before the start.
    pub fn configure(&self, options: &Options) {
        *self.options.lock(&self.machine) = *options;
        self.configured.store(true, Ordering::Relaxed);
    }

    /// Sets how many bytes of free memory stay in any case ([`Options::retain_bytes`]); `u64::MAX` for all.
    pub fn set_retained(&self, bytes: u64) {
        self.vmalloc.set_retained(usize::try_from(bytes).unwrap_or(usize::MAX));
        self.pages.set_retained(bytes);
    }

    /// Starts the instance if that was not done yet; every slow path does. False where the system gives nothing, and for
    /// a request that the start itself makes.
    #[cold]
    pub fn start(&self) -> bool {
        let m = &self.machine;
        // The starter is counted in, so a caller who is, too, is the starter or in a handler that interrupted it.
        let nested = || {
            let depth = m.enter();
            m.leave();
            depth > 0
        };
        let (phase, starter) = self.startup.run(m, nested, || {
            m.enter();
            if !self.configured.load(Ordering::Relaxed)
                && let Some(options) = m.options()
            {
                self.configure(&options);
            }
            if let Some(before) = self.hooks.before {
                before(self);
            }
            let up = m.init();
            if up {
                if !self.configured.load(Ordering::Relaxed) {
                    self.configure(&Options::DEFAULT);
                }
                let options = *self.options.lock(m);
                self.pages.init(m, &options);
                self.vmalloc.set_retained(usize::try_from(options.retain_bytes).unwrap_or(usize::MAX));
                // Odd, so that it is no address and no small number that a program might store.
                self.slab.set_key(m.random() as usize | 1);
                m.set_limits(&LIMITS);
                self.age.start(m.now_ms(), options.decay_ms);
                self.generation.store(m.generation(), Ordering::Relaxed);
                // Release, pairs with the Acquire in `alloc`: who finds the fast path open sees the machine prepared.
                self.small.store(if TINY { 0 } else { MAX_SMALL + 1 }, Ordering::Release);
            }
            m.leave();
            up
        });
        if starter && phase == Phase::Up {
            // So that a handler that interrupts the first growth finds something.
            self.bracket(Gfp::KERNEL, |gfp| self.fill_reserve(gfp));
            if let Some(after) = self.hooks.after {
                after(self);
            }
            m.started();
        }
        phase == Phase::Up
    }

    /// Whether the instance is up.
    #[inline]
    pub fn is_up(&self) -> bool {
        self.startup.is_up()
    }

    /// `size` bytes (0 is served as 1), aligned to 16 from 16 bytes on, to 8 below; null where there is no memory.
    #[inline(always)]
    pub fn alloc(&self, size: usize) -> *mut u8 {
        let object = self.alloc_fast(size);
        if object.is_null() { self.alloc_rest(size) } else { object }
    }

    /// What is left of [`Mm::alloc`]. (The process's allocator does the two things itself, so that neither needs a stack frame.)
    #[cold]
    #[inline(never)]
    fn alloc_rest(&self, size: usize) -> *mut u8 {
        let block = self.alloc_run_fast(size);
        if block.is_null() { self.alloc_slow(size, Gfp::MALLOC) } else { block }
    }

    /// [`Mm::alloc`] as far as this CPU's main sheaf serves it; null where the slow path has to be asked.
    #[inline(always)]
    pub fn alloc_fast(&self, size: usize) -> *mut u8 {
        if size < self.small.load(Ordering::Acquire) {
            // SAFETY: `small` is never more than one above the largest small size.
            return self.slab.pop(&self.machine, unsafe { class_of_small(size) });
        }
        ptr::null_mut()
    }

    /// [`Mm::alloc`] past the fast path, with the caller's GFP word.
    #[cold]
    #[inline(never)]
    pub fn alloc_slow(&self, size: usize, gfp: Gfp) -> *mut u8 {
        let small = if gfp.no_fault() || !self.is_open(gfp) { 0 } else { MAX_SMALL + 1 };
        if size < small {
            let id = class_of(size);
            // A disturbed section, or a machine whose sections are locks: no need for more than another attempt.
            let object = self.slab.pop_again(&self.machine, id);
            if !object.is_null() {
                return object;
            }
        } else if small != 0 {
            let block = self.alloc_kept_run(size, gfp);
            if !block.is_null() {
                return block;
            }
        }
        self.come();
        self.bracket(gfp, |gfp| {
            if gfp.no_fault() {
                return self.alloc_atomic(size, gfp);
            }
            if TINY && size <= slob::MAX {
                return self.alloc_tiny(size, if size < 16 { 8 } else { 16 }, gfp);
            }
            if !TINY && size <= MAX_SMALL {
                return self.alloc_class(class_of(size), gfp);
            }
            self.alloc_large(size, 1, gfp)
        })
    }

    /// A small block by first fit.
    fn alloc_tiny(&self, size: usize, align: usize, gfp: Gfp) -> *mut u8 {
        if !self.is_up() {
            return ptr::null_mut();
        }
        let block = self.slob.alloc(&self.machine, &self.pages, size, align, gfp);
        if block.is_null() && gfp.may_block() && self.reclaim(gfp) {
            return self.slob.alloc(&self.machine, &self.pages, size, align, gfp);
        }
        block
    }

    /// See [`PerCpu::sees_threads`](crate::machine::PerCpu::sees_threads).
    #[inline(always)]
    pub fn sees_threads(&self) -> bool {
        self.machine.sees_threads()
    }

    /// [`Mm::alloc_zeroed`] where several threads were just seen.
    #[cold]
    #[inline(never)]
    fn alloc_for_threads(&self, size: usize) -> *mut u8 {
        self.machine.notice_threads();
        self.alloc_zeroed(size)
    }

    /// `size` zeroed bytes, aligned as by [`Mm::alloc`]. Memory that is known to read zero is not written to.
    #[inline]
    pub fn alloc_zeroed(&self, size: usize) -> *mut u8 {
        if size > MAX_SMALL {
            return self.alloc_slow(size, Gfp::MALLOC | Gfp::ZERO);
        }
        if self.sees_threads() {
            return self.alloc_for_threads(size);
        }
        let object = self.alloc(size);
        if !object.is_null() {
            // All that `usable_size` admits to, as other allocators do it.
            // SAFETY: the object is ours, of that class, or as long as that.
            unsafe {
                let usable = match class_of_tag(self.machine.class_at(object)) {
                    // First fit's, or one of a low zone, which the map does not know.
                    0 => self.usable_size(object),
                    id => class_size(id as usize),
                };
                ptr::write_bytes(object, 0, usable);
            }
        }
        object
    }

    /// [`Mm::alloc_aligned`] as far as this CPU's main sheaf serves it; null where the slow path has to be asked.
    #[inline(always)]
    pub fn alloc_aligned_fast(&self, size: usize, align: usize) -> *mut u8 {
        if size < self.small.load(Ordering::Acquire)
            && let Some(id) = class_aligned(size, align)
        {
            return self.slab.pop(&self.machine, id);
        }
        ptr::null_mut()
    }

    /// `size` bytes at a multiple of `align`, a power of two; null where there is no memory.
    #[inline]
    pub fn alloc_aligned(&self, size: usize, align: usize, zero: bool) -> *mut u8 {
        debug_assert!(align.is_power_of_two());
        // Runs and areas start at cache lines.
        if align <= 8 || align == 16 && size >= 16 || align <= RUN_STEP && size > MAX_SMALL {
            return if zero { self.alloc_zeroed(size) } else { self.alloc(size) };
        }
        let Some(id) = class_aligned(size, align).filter(|_| !TINY) else {
            let gfp = if zero { Gfp::MALLOC | Gfp::ZERO } else { Gfp::MALLOC };
            if !TINY && !zero && align <= PAGE_SIZE && self.is_open(gfp) {
                let block = self.alloc_run_at_page(size);
                if !block.is_null() {
                    return block;
                }
            }
            self.come();
            return self.bracket(gfp, |gfp| {
                if !TINY || size > slob::MAX || align > slob::MAX {
                    return self.alloc_large(size, align, gfp);
                }
                let block = self.alloc_tiny(size, align, gfp);
                if zero && !block.is_null() {
                    // SAFETY: the block is ours and at least `size` bytes long.
                    unsafe { ptr::write_bytes(block, 0, size) };
                }
                block
            });
        };
        let mut object = self.alloc_aligned_fast(size, align);
        if object.is_null() && self.is_open(Gfp::MALLOC) {
            object = self.slab.pop_again(&self.machine, id);
        }
        if object.is_null() {
            self.come();
            object = self.bracket(Gfp::MALLOC, |gfp| self.alloc_class(id, gfp));
        }
        if zero && !object.is_null() {
            // SAFETY: the object is ours, of that class, and at least `size` bytes long.
            unsafe { ptr::write_bytes(object, 0, size) };
        }
        object
    }

    /// Frees a block. Null is nothing to free; misuse is reported.
    ///
    /// # Safety
    /// `block` came from this allocator and is not used any more. (Violations that are noticed are reported; not all can be.)
    #[inline(always)]
    pub unsafe fn free(&self, block: *mut u8) {
        // SAFETY: the caller's condition.
        unsafe {
            match self.free_fast(block) {
                Left::Nothing => {}
                Left::Run(head, tag) => self.free_run_at(block, head, tag),
                Left::Rest => self.free_rest(block),
            }
        }
    }

    /// [`Mm::free`] as far as the current CPU's main sheaf takes the block, and what has to be asked where it does not.
    ///
    /// # Safety
    /// As for [`Mm::free`].
    #[inline(always)]
    pub unsafe fn free_fast(&self, block: *mut u8) -> Left {
        let Some((head, tag)) = self.machine.mapped_page_at(block) else { return Left::Rest };
        let Some(place) = place(tag, block.addr()) else { return Left::Run(head, tag) };
        // SAFETY: the caller's condition.
        if unsafe { self.slab.push_tagged(&self.machine, tag, place, block) } { Left::Nothing } else { Left::Rest }
    }

    /// [`Mm::free`] of a block in the page `head`, of which the map says `tag`: that of no slab.
    ///
    /// # Safety
    /// As for [`Mm::free`].
    #[inline(always)]
    pub unsafe fn free_run_at(&self, block: *mut u8, head: Pfn, tag: u8) {
        if !self.free_tagged_at(block, head, tag, Gfp::MALLOC) {
            // SAFETY: the caller's condition.
            unsafe { self.free_rest(block) }
        }
    }

    /// [`Mm::free_fast`] for a block of `size` bytes at `align`, as they were asked for: the class needs no look-up, unless CPUs
    /// may share its cache lines.
    ///
    /// # Safety
    /// As for [`Mm::free`], and `size` and `align` are those of the allocation.
    #[inline(always)]
    pub unsafe fn free_sized_fast(&self, block: *mut u8, size: usize, align: usize) -> bool {
        let id = if TINY { 0 } else { class_of_layout(size, align) };
        if is_dense(id) && !self.machine.looks_below() {
            // It may be another CPU's, which the page tells.
            // SAFETY: the caller's condition.
            return matches!(unsafe { self.free_fast(block) }, Left::Nothing);
        }
        // SAFETY: the caller's condition: the block is an object of that class (or of a larger one, which serves as well).
        id != 0 && unsafe { self.slab.push(&self.machine, id, block) }
    }

    /// Frees a block of `size` bytes at `align`, as they were asked for.
    ///
    /// # Safety
    /// As for [`Mm::free_sized_fast`].
    #[inline(always)]
    pub unsafe fn free_sized(&self, block: *mut u8, size: usize, align: usize) {
        // SAFETY: the caller's condition.
        unsafe {
            if !self.free_sized_fast(block, size, align) {
                self.free_slow(block);
            }
        }
    }

    /// [`Mm::free`] past the fast path.
    ///
    /// # Safety
    /// As for [`Mm::free`].
    #[cold]
    #[inline(never)]
    pub unsafe fn free_slow(&self, block: *mut u8) {
        if self.free_tagged(block, Gfp::MALLOC) {
            return;
        }
        // SAFETY: the caller's condition.
        unsafe { self.free_rest(block) }
    }

    /// Frees what is no run that the page-class map tells. Of its own, as the way of those needs no stack frame.
    ///
    /// # Safety
    /// As for [`Mm::free`].
    #[inline(never)]
    pub unsafe fn free_rest(&self, block: *mut u8) {
        let tag = self.machine.class_at(block);
        if tag == 0 || run_of_tag(tag).is_some() {
            return self.free_other(block);
        }
        // SAFETY: the caller's condition.
        unsafe { self.free_small(tag, block, Gfp::MALLOC) }
    }

    /// Frees an object of a size class that the current CPU's main sheaf did not take.
    ///
    /// # Safety
    /// As for [`Mm::free`]; `tag` is that of the block's page.
    unsafe fn free_small(&self, tag: u8, block: *mut u8, gfp: Gfp) {
        let id = class_of_tag(tag);
        // SAFETY: where an object starts is the word of its mark; the caller gives the object up.
        unsafe {
            let m = &self.machine;
            let starts = starts_object(tag, block.addr());
            // As in the fast path without a look at the mark, which would wait for its line.
            if starts && self.slab.push_foreign(m, tag, block) {
                return;
            }
            let suspect = !starts || mark_of(block).read() == self.slab.key();
            if suspect || self.slab.is_fresh(m, block) {
                return self.free_suspect(id, block);
            }
            // As in `alloc_slow`.
            if !self.slab.push_slow(m, tag, block) {
                self.bracket(gfp, |gfp| self.slab.free_slow(m, &self.pages, id, block, gfp));
            }
        }
    }

    /// The object looks as if it were free already, or the pointer as if it were none of ours.
    #[cold]
    fn free_suspect(&self, id: u8, block: *mut u8) {
        self.bracket(Gfp::MALLOC, |gfp| {
            let (m, pages) = (&self.machine, &self.pages);
            let double = gfp.may_block() && self.slab.starts_object(m, block) && self.slab.is_free(m, pages, id, block);
            let found = if double { Err(Defect::DoubleFree) } else { self.slab.cache_of(m, block, gfp.may_block()) };
            match found {
                Err(defect) => misuse(m, defect, block.addr(), self.slab.name(id)),
                // SAFETY: an object of that cache that is not free; the caller of `free` gives it up.
                Ok(id) => unsafe { self.slab.free_slow(m, pages, id, block, gfp) },
            }
        });
    }

    /// Frees what is no object of a size class.
    fn free_other(&self, block: *mut u8) {
        if block.is_null() {
            return;
        }
        if !self.is_up() {
            misuse(&self.machine, Defect::Foreign, block.addr(), "nothing was allocated yet");
            return;
        }
        if self.free_run_fast(block) {
            return;
        }
        self.bracket(Gfp::MALLOC, |gfp| self.free_large(block, gfp));
    }

    /// Runs a slow path: counted in, with what `gfp` is worth there, and with the work that slow paths share.
    fn bracket<R>(&self, gfp: Gfp, body: impl FnOnce(Gfp) -> R) -> R {
        if !self.is_up() && gfp.may_io() {
            self.start();
        }
        let nested = self.machine.enter() > 0;
        if !nested && self.machine.generation() != self.generation.load(Ordering::Relaxed) {
            self.after_raw_fork();
        }
        // A nested call may enter the system, but not wait for what the one it interrupted may hold.
        let gfp = if nested || self.is_crippled() { gfp.without(Gfp::DIRECT_RECLAIM) } else { gfp };
        let may_enter = gfp.may_block() && gfp.may_io();
        if may_enter {
            self.machine.notice_threads();
            self.drain_deferred();
            self.age();
            self.fill_reserve(Gfp::NOIO);
        }
        let result = body(gfp);
        if self.pages.idles() {
            self.knock();
        }
        // Memory that is new to the one layer the other has to spare: what it keeps is for its own kind of requests.
        if M::LENT && may_enter {
            let opened = self.pages.take_opened();
            if opened > 0 {
                self.slab.gather(&self.machine, &self.pages, opened);
                let gone = self.vmalloc.give_up(&self.machine, &self.pages, opened as usize * PAGE_SIZE);
                self.returned.fetch_add(gone, Ordering::Relaxed);
            }
            if self.pages.take_dearer() {
                self.slab.flush_large_runs(&self.machine, &self.pages);
            }
        }
        // Before the caller touches what it got.
        if self.pages.strained() && may_enter {
            self.relieve();
        }
        self.machine.leave();
        result
    }

    /// Memory is short, without a limit that refuses: what is free goes back, as much as is needed, in the order of what it costs
    /// to have it again.
    #[cold]
    fn relieve(&self) {
        let (m, pages) = (&self.machine, &self.pages);
        let mut gone = self.vmalloc.relieve(m, pages, || pages.strained());
        if pages.strained() {
            gone += pages.trim(m, false);
        }
        if pages.strained() {
            self.slab.shrink(m, pages, None);
            gone += pages.trim(m, true);
        }
        pages.relieved();
        self.returned.fetch_add(gone, Ordering::Relaxed);
    }

    /// Whether the process lost the holder of a lock, so that no lock may be waited for.
    fn is_crippled(&self) -> bool {
        self.crippled.load(Ordering::Relaxed)
    }

    /// This process is a child, and the caller its only thread, with nothing in hand.
    fn begin_child(&self) {
        self.generation.store(self.machine.generation(), Ordering::Relaxed);
        self.slab.begin_child();
        self.pages.begin_child();
        self.shrinkers.begin_child(self.machine.thread());
    }

    /// This process is the child of a `clone` that ran no handlers, or of a `fork` whose handlers may not have had all locks, and this thread
    /// its only one. A lock that is held now was held by a thread that the child does not have: it will never be given back, and what it guards may
    /// be half changed. From then on locks are only tried; what they guard is lost, and other classes serve.
    #[cold]
    fn after_raw_fork(&self) {
        let m = &self.machine;
        self.begin_child();
        if self.slab.any_lock_held(m)
            || self.slob.is_held()
            || self.vmalloc.any_lock_held()
            || self.pages.any_lock_held()
        {
            self.crippled.store(true, Ordering::Relaxed);
        }
    }

    /// An object of size class `id`, its mark cleared.
    fn alloc_class(&self, id: u8, gfp: Gfp) -> *mut u8 {
        if !self.is_up() {
            return ptr::null_mut();
        }
        let (m, pages) = (&self.machine, &self.pages);
        let mut object = self.slab.alloc_slow(m, pages, id, gfp);
        if object.is_null() && gfp.may_block() && self.reclaim(gfp) {
            object = self.slab.alloc_slow(m, pages, id, gfp);
        }
        if object.is_null() && !gfp.may_block() {
            // Whom we interrupted holds what this class needs; a larger class, as well aligned, will have something.
            let align = class_align(id as usize);
            let others = || (id..=NR_CLASSES as u8).filter(|id| class_align(*id as usize) >= align);
            object = others()
                .map(|id| self.slab.pop(m, id))
                .find(|o| !o.is_null())
                .or_else(|| others().skip(1).map(|id| self.slab.alloc_direct(m, pages, id, gfp)).find(|o| !o.is_null()))
                .unwrap_or(ptr::null_mut());
            if object.is_null() && id <= Reserve::class() {
                object = self.reserve.take();
            }
        }
        if !object.is_null() {
            // SAFETY: the object is ours and of that class, or of a larger one.
            unsafe { clear_mark(object) };
        }
        object
    }

    /// Keeps objects at hand for handlers, if there is memory left.
    #[inline]
    fn fill_reserve(&self, gfp: Gfp) {
        let gfp = gfp | Gfp::NORETRY;
        if TINY {
            return;
        }
        self.reserve.refill(
            || {
                if !self.is_up() {
                    return ptr::null_mut();
                }
                self.slab.alloc_direct(&self.machine, &self.pages, Reserve::class(), gfp)
            },
            |object| self.unreserve(object),
        );
    }

    /// Gives an object of the reserve back.
    fn unreserve(&self, object: *mut u8) {
        // SAFETY: the object is of that class and nobody's.
        unsafe { self.slab.free_direct(&self.machine, &self.pages, object, Gfp::KERNEL) };
    }

    /// Keeps a block of the page or vmalloc layer for the next slow path that may block.
    fn defer(&self, block: *mut u8) {
        self.deferred.push(block.expose_provenance(), |next| {
            // SAFETY: the block is freed, at least a page long, and nobody else's.
            unsafe { block.cast::<usize>().write(next) };
        });
    }

    fn drain_deferred(&self) {
        if self.deferred.is_empty() {
            return;
        }
        let mut block = self.deferred.take();
        while block != 0 {
            let at: *mut u8 = ptr::with_exposed_provenance_mut(block);
            // SAFETY: `defer` wrote the link; the block was nobody's since.
            block = unsafe { at.cast::<usize>().read() };
            self.free_deferred(at);
        }
    }

    /// Asks the shrinkers, and frees what the allocator itself keeps: sheaves, empty slabs, retained ranges, per-CPU page lists. Whether anything
    /// can have come of it.
    fn reclaim(&self, gfp: Gfp) -> bool {
        if !self.is_up() {
            return false;
        }
        // The program's caches first: what they free lies in sheaves then.
        self.shrink(gfp, usize::MAX);
        self.reserve.drain(|object| self.unreserve(object));
        self.release_kept(gfp);
        true
    }

    /// Frees what lies in sheaves, empty slabs, retained ranges and per-CPU page lists.
    fn release_kept(&self, gfp: Gfp) {
        let (m, pages) = (&self.machine, &self.pages);
        // Where memory is lent, other CPUs' sheaves are not to be had without entering the system, and ranges go back to it.
        if gfp.may_io() || !M::LENT {
            self.slab.shrink(m, pages, None);
            let gone = self.vmalloc.purge(m, pages);
            self.returned.fetch_add(gone, Ordering::Relaxed);
        } else {
            self.slab.release_runs(m, pages, gfp);
        }
        pages.drain(m);
    }

    /// Gives everything back to the system that can be given; whether anything went.
    pub fn trim(&self) -> bool {
        self.bracket(Gfp::KERNEL, |gfp| {
            if !gfp.may_block() || !self.is_up() {
                return false;
            }
            let before = self.returned.load(Ordering::Relaxed);
            self.release_kept(gfp);
            let gone = self.pages.trim(&self.machine, true);
            let any = self.returned.fetch_add(gone, Ordering::Relaxed) + gone > before;
            // Last, and not counted: it was never touched, and the next slow path fills it again.
            self.reserve.drain(|object| self.unreserve(object));
            self.slab.shrink(&self.machine, &self.pages, Some(Reserve::class()));
            self.pages.trim(&self.machine, true);
            any
        })
    }

    /// Takes every lock before a `fork`, in lock order, so that the child finds whole structures and no lock of a thread
    /// that it does not have. In a handler that interrupted a slow path of this very thread, the locks that this one holds
    /// are left to it: it goes on in the child, too. So where there is no other thread none is taken: each that is written to is on a page that parent
    /// and child copy. (Left to each lock, all are looked at three times: 4 µs more than the 58 that a small program's fork takes.)
    pub fn fork_prepare(&self) {
        let m = &self.machine;
        m.enter();
        let fork = self.fork();
        if m.is_alone() {
            self.unlocked.store(fork.token, Ordering::Relaxed);
            return;
        }
        self.options.lock_for_fork(m, fork);
        self.names.lock_for_fork(m, fork);
        self.percpu.lock_for_fork(m, fork);
        self.highmem.pkmap.lock_for_fork(m, fork);
        self.slab.lock_all(m, fork);
        self.slob.lock_all(m, fork);
        self.vmalloc.lock_all(m, fork);
        self.pages.lock_all(m, fork);
    }

    /// Gives the locks back after a `fork`, in the parent and in the child.
    ///
    /// # Safety
    /// [`Mm::fork_prepare`] ran before on this thread (or the parent's that it is the copy of).
    pub unsafe fn fork_done(&self) {
        let m = &self.machine;
        let fork = self.fork();
        self.vmalloc.note_fork();
        if self.unlocked.load(Ordering::Relaxed) == fork.token {
            self.unlocked.store(0, Ordering::Relaxed);
        } else {
            // SAFETY: the caller's condition.
            unsafe {
                self.pages.unlock_all(m, fork);
                self.vmalloc.unlock_all(m, fork);
                self.slob.unlock_all(m, fork);
                self.slab.unlock_all(m, fork);
                self.highmem.pkmap.unlock_after_fork(m, fork);
                self.percpu.unlock_after_fork(m, fork);
                self.names.unlock_after_fork(m, fork);
                self.options.unlock_after_fork(m, fork);
            }
        }
        // Where a child's fork came from a handler that interrupted a slow path, what that one holds is its own, and locks that were not to be had may be
        // those of threads that there are no more: the next slow path looks.
        if fork.may_block && self.generation.load(Ordering::Relaxed) != m.generation() {
            self.begin_child();
        }
        m.leave();
    }

    /// The fork that this thread is at, being counted in for it.
    fn fork(&self) -> Fork {
        let depth = self.machine.enter() as usize;
        self.machine.leave();
        Fork { token: self.machine.thread() + depth % 32, may_block: depth == 1 && !self.is_crippled() }
    }
}

const _: () = assert!(PAGE_SIZE > MAX_SMALL / 8);
