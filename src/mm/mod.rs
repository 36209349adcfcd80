//! The allocator: routes requests by size to the layers (`malloc`, `kmalloc`), and holds what spans them.
//!
//! | request | served by |
//! |---|---|
//! | up to 8 KiB | slab caches: [`crate::slab`] |
//! | to 2 MiB | exact page runs: [`crate::zone`] |
//! | above | [`crate::vmalloc`] |
//!
//! Slow paths are bracketed by [`Context::enter`](crate::machine::Context::enter): a signal or interrupt handler that
//! comes in between is nested, and gets on with tried locks only. What it cannot free then is deferred to the next call
//! that may block.
#![allow(unsafe_code)]

mod age;
mod balance;
mod caches;
mod deferred;
mod fork;
mod global_alloc;
mod highmem;
mod kmalloc;
mod large;
mod malloc;
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
use crate::config::{DEFAULTS, Options};
use crate::gfp::Gfp;
use crate::machine::Machine;
use crate::slab::classes::MAX_SMALL;
use crate::slab::slob::Slob;
use crate::slab::{Slab, limit};
use crate::sync::wide::AtomicU64;
use crate::sync::{Deferred, Lock, Phase, Startup};
use crate::types::{PAGE_SIZE, PAGEBLOCK_SIZE};
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
    /// Sizes below are small: one more than [`MAX_SMALL`], and 0 until the instance is up, and where somebody is to
    /// look at the clock ([`age`]), so that the calls fall into the slow path without a branch of its own.
    small: AtomicUsize,
    options: Lock<Options>,
    /// The options are set.
    configured: AtomicBool,
    vmalloc: Vmalloc<M>,
    /// What was freed where a lock was not to be had ([`deferred`]).
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
    /// [`Mm::free_run_at`], of what lies in a page with that tag.
    Run(u8),
    /// [`Mm::free_rest`].
    Rest,
}

/// What the owner of an instance wants to do at its start, beyond what its machine's [`Owner`](crate::machine::Owner)
/// does.
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
        let copy = set.map_or(DEFAULTS, |options| *options);
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

    /// Starts the instance if that was not done yet; every slow path does. False where the system gives nothing, and
    /// for a request that the start itself makes.
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
                    self.configure(&DEFAULTS);
                }
                let options = *self.options.lock(m);
                self.pages.init(m, &options);
                self.vmalloc.set_retained(usize::try_from(options.retain_bytes).unwrap_or(usize::MAX));
                // Odd, so that it is no address and no small number that a program might store.
                self.slab.set_key(m.random() as usize | 1);
                m.set_limit(limit);
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

    /// Runs a slow path: counted in, with what `gfp` is worth there, and with the work that slow paths share.
    fn bracket<R>(&self, gfp: Gfp, body: impl FnOnce(Gfp) -> R) -> R {
        if !self.is_up() && gfp.may_io() {
            self.start();
        }
        let nested = self.count_in();
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

    /// Memory is short, without a limit that refuses: what is free goes back, as much as is needed, in the order of
    /// what it costs to have it again.
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

    /// Asks the shrinkers, and frees what the allocator itself keeps: sheaves, empty slabs, retained ranges, per-CPU
    /// page lists. Whether anything can have come of it.
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
        // Where memory is lent, other CPUs' sheaves are not to be had without entering the system, and ranges go back
        // to it.
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
}

const _: () = assert!(PAGE_SIZE > MAX_SMALL / 8);
