//! What a test does to a simulated machine: choose the CPU, count and fail calls, forbid them, interrupt.

use core::cell::RefCell;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::vec::Vec;

use super::{Flavour, Simulated};

/// The calls of the seam that a simulated machine counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
#[allow(missing_docs)]
pub enum Call {
    Pop,
    Push,
    Read,
    Replace,
    DrainRow,
    /// Only for hooks, not counted.
    Page,
    Grow,
    Discard,
    Populate,
    MapFresh,
    /// `map_frame` of a page table entry.
    MapFrame,
    /// `map_frame` of a hosted machine.
    MovePopulation,
    MoveMapping,
    Clean,
    /// `unmap` of page table entries.
    UnmapFrame,
    /// `unmap` of a hosted machine.
    Unmap,
    Enter,
    Leave,
    Wait,
    Wake,
    Line,
    /// Any flush of TLBs.
    FlushTlb,
    /// Any flush of caches that go by virtual addresses.
    FlushCache,
    Init,
}

const CALLS: usize = Call::Init as usize + 1;

impl Call {
    /// Whether the call can fail. Beside these, making the row of a CPU can, which is the first `Read` on it.
    pub const fn may_fail(self) -> bool {
        use Call::*;
        matches!(self, Grow | Discard | Populate | MapFresh | MapFrame | MovePopulation | MoveMapping | Clean | Init)
    }

    /// Whether the call may enter the system or sleep, which requests without `Gfp::IO` must not do. `Wake` is not
    /// among them: who gives a lock back must wake its sleepers.
    pub const fn is_syscall(self) -> bool {
        use Call::*;
        matches!(
            self,
            DrainRow
                | Grow
                | Discard
                | Populate
                | MapFresh
                | MovePopulation
                | MoveMapping
                | Clean
                | Unmap
                | Wait
                | Line
        )
    }
}

/// How often the machine disturbs per-CPU operations: one in so many, 0 for never.
#[derive(Clone, Copy, Default, Debug)]
pub struct Hostile {
    /// The thread finds itself on a random CPU.
    pub migrate: u32,
    /// The section is aborted: `read` gives `None`, `pop` null, `push` and `replace` false.
    pub abort: u32,
    /// A fallible call fails ([`Call::may_fail`]).
    pub fail: u32,
}

pub(super) struct Control {
    counts: [AtomicU64; CALLS],
    migrate: AtomicU32,
    abort: AtomicU32,
    fail: AtomicU32,
    random: AtomicU64,
    /// Fallible calls until the one that fails; 0 for none.
    fail_at: AtomicU64,
    fail_from: AtomicBool,
    failed: AtomicU64,
    fallible: AtomicU64,
    partial: AtomicBool,
    /// Whether `MapFrame` counts among the calls that can be told to fail.
    entries: AtomicBool,
    /// Threads with a hook, so that the others need not look.
    hooks: AtomicU32,
}

impl Control {
    pub(super) fn new(seed: u64, hostile: Hostile) -> Control {
        Control {
            counts: [const { AtomicU64::new(0) }; CALLS],
            migrate: AtomicU32::new(hostile.migrate),
            abort: AtomicU32::new(hostile.abort),
            fail: AtomicU32::new(hostile.fail),
            random: AtomicU64::new(seed),
            fail_at: AtomicU64::new(0),
            fail_from: AtomicBool::new(false),
            failed: AtomicU64::new(0),
            fallible: AtomicU64::new(0),
            partial: AtomicBool::new(true),
            entries: AtomicBool::new(true),
            hooks: AtomicU32::new(0),
        }
    }

    /// splitmix64 over a shared counter.
    fn random(&self) -> u64 {
        let mut z = self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn one_in(&self, n: &AtomicU32) -> bool {
        let n = n.load(Ordering::Relaxed);
        n != 0 && self.random().is_multiple_of(u64::from(n))
    }

    fn fails(&self, call: Call) -> bool {
        let mut fails = self.one_in(&self.fail);
        if call == Call::MapFrame && !self.entries.load(Ordering::Relaxed) {
            self.failed.fetch_add(u64::from(fails), Ordering::Relaxed);
            return fails;
        }
        self.fallible.fetch_add(1, Ordering::Relaxed);
        let hit = self.fail_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| match left {
            0 => None,
            1 if self.fail_from.load(Ordering::Relaxed) => Some(1),
            _ => Some(left - 1),
        });
        fails |= hit == Ok(1);
        if fails {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        fails
    }
}

/// A hook and the time for which it may be called are the scope of [`Simulated::with_hook`].
type Hook = *const dyn Fn(Call);

/// What one thread is to one machine.
pub(super) struct Here {
    id: u64,
    cpu: usize,
    pub(super) depth: u32,
    pub(super) preempt: u32,
    pub(super) held: u32,
    pub(super) held_cpu: usize,
    forbidden: u32,
    hook: Option<Hook>,
}

std::thread_local! {
    static HERE: RefCell<Vec<Here>> = const { RefCell::new(Vec::new()) };
}

/// Runs `undo` when dropped, so also when a test panics.
struct Finally<U: FnMut()>(U);

impl<U: FnMut()> Drop for Finally<U> {
    fn drop(&mut self) {
        (self.0)();
    }
}

impl<F: Flavour> Simulated<F> {
    pub(super) fn here<R>(&self, f: impl FnOnce(&mut Here) -> R) -> R {
        let id = self.state.id;
        HERE.with_borrow_mut(|all| {
            let at = all.iter().position(|here| here.id == id).unwrap_or_else(|| {
                all.push(Here { id, cpu: 0, depth: 0, preempt: 0, held: 0, held_cpu: 0, forbidden: 0, hook: None });
                all.len() - 1
            });
            f(&mut all[at])
        })
    }

    /// The thread's CPU at this moment.
    pub(super) fn current(&self) -> usize {
        self.here(|here| here.cpu)
    }

    /// Runs `body` on CPU `cpu`. A hostile machine migrates it at will, also afterwards.
    pub fn run_on<R>(&self, cpu: usize, body: impl FnOnce() -> R) -> R {
        assert!(cpu < self.state.rows.len());
        let before = self.here(|here| core::mem::replace(&mut here.cpu, cpu));
        let _back = Finally(|| self.here(|here| here.cpu = before));
        body()
    }

    /// Puts the calling thread on CPU `cpu` for good.
    pub fn set_cpu(&self, cpu: usize) {
        assert!(cpu < self.state.rows.len());
        self.here(|here| here.cpu = cpu);
    }

    /// Depth of [`Context::enter`](crate::machine::Context::enter) on the calling thread.
    pub fn depth(&self) -> u32 {
        self.here(|here| here.depth)
    }

    /// Calls of one kind so far.
    pub fn calls(&self, call: Call) -> u64 {
        self.state.control.counts[call as usize].load(Ordering::Relaxed)
    }

    /// Calls so far that could have failed.
    pub fn fallible_calls(&self) -> u64 {
        self.state.control.fallible.load(Ordering::Relaxed)
    }

    /// Calls so far that were made to fail.
    pub fn failed_calls(&self) -> u64 {
        self.state.control.failed.load(Ordering::Relaxed)
    }

    /// The `k`-th fallible call from now on fails, `k` from 1; 0 takes the order back.
    pub fn fail_at(&self, k: u64) {
        self.state.control.fail_from.store(false, Ordering::Relaxed);
        self.state.control.fail_at.store(k, Ordering::Relaxed);
    }

    /// The `k`-th fallible call from now on and all after it fail, `k` from 1.
    pub fn fail_from(&self, k: u64) {
        self.state.control.fail_from.store(true, Ordering::Relaxed);
        self.state.control.fail_at.store(k, Ordering::Relaxed);
    }

    /// Changes the hostility.
    pub fn set_hostile(&self, hostile: Hostile) {
        self.state.control.migrate.store(hostile.migrate, Ordering::Relaxed);
        self.state.control.abort.store(hostile.abort, Ordering::Relaxed);
        self.state.control.fail.store(hostile.fail, Ordering::Relaxed);
    }

    /// Whether [`Call::MapFrame`], a call per page, counts among the fallible calls (the default), or fails only at
    /// random.
    pub fn count_entries(&self, count: bool) {
        self.state.control.entries.store(count, Ordering::Relaxed);
    }

    /// Whether a `move_mapping` that fails has moved a random prefix (the default) or nothing.
    pub fn set_partial_moves(&self, partial: bool) {
        self.state.control.partial.store(partial, Ordering::Relaxed);
    }

    pub(super) fn partial(&self, slots: usize) -> usize {
        let partial = self.state.control.partial.load(Ordering::Relaxed);
        if partial { (self.state.control.random() % slots as u64) as usize } else { 0 }
    }

    /// Runs `body` with calls forbidden to this thread that enter the system or sleep ([`Call::is_syscall`]): they
    /// panic.
    pub fn forbid_calls<R>(&self, body: impl FnOnce() -> R) -> R {
        self.here(|here| here.forbidden += 1);
        let _back = Finally(|| self.here(|here| here.forbidden -= 1));
        body()
    }

    /// Runs `body` and calls `hook` at each call this thread makes of the machine, before it is carried out: where a
    /// signal handler could run. `Call::Page` comes with locks held. Calls from within the hook do not call it again.
    pub fn with_hook<R>(&self, hook: &dyn Fn(Call), body: impl FnOnce() -> R) -> R {
        // SAFETY: only the lifetime is erased; the pointer is taken out of the thread's keep before `hook` goes.
        let hook = unsafe { core::mem::transmute::<*const (dyn Fn(Call) + '_), Hook>(hook) };
        self.state.control.hooks.fetch_add(1, Ordering::Relaxed);
        let before = self.here(|here| here.hook.replace(hook));
        let _back = Finally(|| {
            self.here(|here| here.hook = before);
            self.state.control.hooks.fetch_sub(1, Ordering::Relaxed);
        });
        body()
    }

    /// Calls the thread's hook. What is forbidden to the one it interrupts is not forbidden to it.
    pub(super) fn interrupt(&self, call: Call) {
        if self.state.control.hooks.load(Ordering::Relaxed) == 0 {
            return;
        }
        if let Some(hook) = self.here(|here| here.hook.take()) {
            let forbidden = self.here(|here| core::mem::take(&mut here.forbidden));
            let _back = Finally(|| self.here(|here| (here.hook, here.forbidden) = (Some(hook), forbidden)));
            // SAFETY: `with_hook` is on this thread's stack and keeps the hook borrowed.
            unsafe { (*hook)(call) };
        }
    }

    /// Counts a call; true where it has to fail.
    pub(super) fn call(&self, call: Call) -> bool {
        if call.is_syscall() {
            assert_eq!(self.here(|here| here.forbidden), 0, "{call:?} where system calls are forbidden");
        }
        self.interrupt(call);
        self.state.control.counts[call as usize].fetch_add(1, Ordering::Relaxed);
        call.may_fail() && self.state.control.fails(call)
    }

    /// The start of a per-CPU section: the CPU it runs on, or `None` where it is aborted.
    pub(super) fn section(&self, call: Call) -> Option<usize> {
        let control = &self.state.control;
        self.interrupt(call);
        control.counts[call as usize].fetch_add(1, Ordering::Relaxed);
        if control.one_in(&control.migrate) {
            let cpu = (control.random() % self.state.rows.len() as u64) as usize;
            self.here(|here| here.cpu = cpu);
        }
        (!control.one_in(&control.abort)).then(|| self.current())
    }

    /// Whether making a row has to fail.
    pub(super) fn row_fails(&self) -> bool {
        self.state.control.fails(Call::Read)
    }
}
