//! Per-CPU rows of sheaves by restartable sequences, or by locks where there are none.
//!
//! A *section* is a run of instructions that the kernel restarts if the thread is preempted, migrated or signalled in
//! it (Documentation: `rseq(2)`; the idea goes back to Turner and Hunter's "user-level per-CPU operations"). Each of
//! the sections below stores its descriptor's address in `rseq_cs`, reads `cpu_id`, finds the CPU's row in [`ROWTAB`],
//! and commits by its *last* instruction, one 8-byte store. Aborted before that, it has changed nothing that anybody
//! sees (a push has written its object above the top slot, where nobody looks). An aborted section does not go round
//! again by itself: it counts the abort in [`tls::ABORTS`] and answers "none", and the cold path tries [`TRIES`] times,
//! so that under a debugger, which aborts every attempt, the caller ends up going past the sheaves instead of nowhere.
//!
//! `ROWTAB[-1]` and `ROWTAB[-2]` (threads without registration), CPUs without a row and rows being drained show
//! [`DUMMY`], whose words are at the end of the zero sheaf and read as empty and as full at once.
//!
//! Measured (2 CPUs, Linux 6.18): a pop and a push inlined 1.5–1.7 ns, under locks 26–34 ns; a drain 0.25 µs of the
//! caller's own row, 0.35–0.43 µs of a busy CPU's. Rejected: labels out of the pop (outputs and labels together are not
//! stable Rust), and retrying in the section itself (under single-stepping it would never end).
//!
//! Of a call of `malloc` and one of `free` (Zen 5, in a model of the two: 3.9 ns, of which two empty functions take
//! 2.3) the sections take 0.3 ns, the class map 0.5, the check for the start of an object 0.35, marks and the look at
//! the top 0.45. Instructions are not what counts: both written in assembly throughout (57 in place of 64), with the
//! word naming the next free slot and changed by one instruction (51), take as long, and a list through the objects in
//! place of the sheaf gains a tenth. In the library, with 10 000 live blocks of 16 to 64 bytes, 60 instead of 66
//! instructions take 0 to 2 % less; left out, the comparison of marks is 7 % of the time, the check for the start 6.5,
//! the CPU's row 2, the descriptor of the section and the look at the top nothing, and all of them 17, which makes it
//! as fast as snmalloc. Rejected, too: the spare sheaf taken before anything else of a slow path is done (400 blocks in
//! turn 6 % less, 1000 blocks the same).
//!
//! A pair of calls in turn waits for its chain through the sheaf's word: twice a load of what was stored a moment ago
//! and an addition, 12 to 15 cycles, and no fewer without marks, descriptors or the look at the top. Which of these
//! figures it is, is what the processor learned of the loads and stores when it first saw them (with that speculation
//! off a pair takes 70), and lasts until another process runs: after various first calls 12.0, 13.1, 14.1 or 15.0 with
//! the same code, registers and addresses. So figures of a tight loop differ by a tenth and more between two builds
//! where calls of a whole program do not.
//!
//! Without restartable sequences `ROWTAB` stays all dummies, and the cold paths do the same work under a lock in the
//! row, which is only ever tried: its holder may be the very thread that a signal handler interrupted.

use core::arch::asm;
use core::mem::transmute;
use core::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use super::rseq::{self, Mode};
use super::{Linux, limits, membarrier, sys, tls};
use crate::machine::{Limit, PerCpu, ROW_WORDS, RUN_SHEAF_BYTES, SHEAF_BYTES, TAG_CACHE_BITS, Word, no_sheaf, owner};
use crate::types::{PAGE_SIZE, PAGEBLOCK_SIZE};

/// CPUs the table has room for. On a machine with more, locks are used and CPUs share rows.
const MAX_CPUS: usize = 4096;
/// Attempts at a section before giving up.
const TRIES: u32 = 8;
/// Attempts at a row's lock: longer than its sections last, far shorter than a time slice.
const LOCK_TRIES: u32 = 200;

/// What sections see of a row: they write to the words and read the limits.
#[repr(C)]
struct Seen {
    words: [AtomicUsize; ROW_WORDS],
    /// What [`Limit`] says of the CPU, so that a section has it from where it has the row.
    limits: [AtomicU32; 256],
}

/// A CPU's row. The words fill a page; the rest lies in another.
#[repr(C, align(4096))]
struct Row {
    seen: Seen,
    /// Guards the words where there are no restartable sequences: 0 free, else [`me`] of its holder.
    lock: AtomicU64,
    /// One of the `ROW_` values; the passing ones with [`me`] of the thread that is at it.
    state: AtomicU64,
    /// Who uses the CPU's copies of per-CPU data ([`super::local`]): 0 or [`me`].
    local: AtomicU64,
}

/// log2 of the distance of rows.
pub(super) const ROW_SHIFT: u32 = size_of::<Row>().trailing_zeros();
const _: () = assert!(size_of::<Row>() == 1 << ROW_SHIFT);
/// Where in a row the local lock is.
pub(super) const LOCAL_LOCK: usize = core::mem::offset_of!(Row, local);

/// Address of the first row; 0 where there are none.
pub(super) fn rows() -> usize {
    ROWS.load(Relaxed)
}

/// Somebody uses local locks: those of CPUs whose rows nobody made, too.
static LOCALS: AtomicBool = AtomicBool::new(false);

/// To be called before a local lock is taken.
#[inline]
pub(super) fn use_locals() {
    if !LOCALS.load(Relaxed) {
        LOCALS.store(true, Relaxed);
    }
}

/// The local lock of `cpu`.
pub(super) fn local_lock(cpu: usize) -> Option<&'static AtomicU64> {
    row(cpu).map(|row| &row.local)
}

const ROW_NONE: u64 = 0;
const ROW_LIVE: u64 = 1;
const ROW_MAKING: u64 = 2;
const ROW_DRAINED: u64 = 3;
/// Bits of [`Row::state`] that say which.
const ROW_BITS: u64 = 31;

/// The calling thread, as its [`tls`] block's address, a multiple of 32. Stays the same in the child of a fork.
pub(super) fn me() -> u64 {
    tls::base() as u64
}

/// Every word [`no_sheaf`], from [`init`] on. (As a constant it would be 512 relocations, 12 KiB for the loader to
/// read.) No place is below its limits.
static DUMMY: Seen =
    Seen { words: [const { AtomicUsize::new(0) }; ROW_WORDS], limits: [const { AtomicU32::new(0) }; 256] };

/// What [`PerCpu::set_limit`] said.
static LIMIT: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// What each section reads, on one line where there are few CPUs.
#[repr(C, align(64))]
struct RowTab {
    /// All bits where a pop compares the mark of the object *below* the one it hands out (`slab::mark` says why); 0
    /// where that of the latter.
    below: AtomicUsize,
    /// Entries -2 and -1.
    unregistered: [AtomicPtr<Seen>; 2],
    cpus: [AtomicPtr<Seen>; MAX_CPUS],
}

/// Where each CPU's sections find their row, from [`init`] on; none runs before.
static ROWTAB: RowTab = RowTab {
    below: AtomicUsize::new(0),
    unregistered: [const { AtomicPtr::new(core::ptr::null_mut()) }; 2],
    cpus: [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_CPUS],
};

/// The first of [`table_cpus`] rows; 0 where there is no memory for them. A row is made when its CPU first needs it.
static ROWS: AtomicUsize = AtomicUsize::new(0);
/// One more than the highest CPU whose row is, or is being, made.
static ROWS_END: AtomicUsize = AtomicUsize::new(0);

/// Entries of the table that are used: no fewer than there can be CPUs.
fn table_cpus() -> usize {
    limits::table_cpus(MAX_CPUS)
}

const fn dummy() -> *mut Seen {
    (&raw const DUMMY).cast_mut()
}

/// Rows are mapped for CPUs that there can be only.
static TRIMMED: AtomicBool = AtomicBool::new(false);

/// Shows where the rows are.
pub(super) fn region(each: &mut dyn FnMut(&'static str, core::ops::Range<u64>)) {
    let start = ROWS.load(Relaxed) as u64;
    if start != 0 {
        let cpus = if TRIMMED.load(Relaxed) { limits::cpus(MAX_CPUS) } else { table_cpus() };
        each("Per-CPU rows", start..start + (cpus * size_of::<Row>()) as u64);
    }
}

/// Prepares table and rows. Rows are address space until they are made.
pub(super) fn init() {
    // What is mapped while the program locks its memory is backed at once.
    let locks = super::memory::locks();
    TRIMMED.store(locks, Relaxed);
    let cpus = if locks { limits::cpus(MAX_CPUS) } else { table_cpus() };
    for word in &DUMMY.words {
        word.store(no_sheaf(), Relaxed);
    }
    for entry in ROWTAB.unregistered.iter().chain(&ROWTAB.cpus[..cpus]) {
        entry.store(dummy(), Relaxed);
    }
    // A page more than they take: the system aligns what has the size of huge pages, which takes a page table of its
    // own.
    let len = cpus * size_of::<Row>() + PAGE_SIZE;
    if ROWS.load(Relaxed) == 0
        && let Ok(rows) = sys::mmap(0, len, libc::PROT_READ | libc::PROT_WRITE, 0)
    {
        if rows.next_multiple_of(PAGEBLOCK_SIZE) + PAGEBLOCK_SIZE <= rows + len {
            // A huge page would find room, and few of them are ever touched.
            let _ = sys::madvise(rows, len, libc::MADV_NOHUGEPAGE);
        }
        ROWS.store(rows, Relaxed);
    }
    rseq::init(cpus < MAX_CPUS);
    if !super::fork::is_single() {
        UNTOLD.store(true, Relaxed);
    }
}

/// Gives the addresses of rows back that no CPU will have: before the program locks its memory, and would have them
/// backed, or where the system counts them.
pub(super) fn trim_rows() {
    let rows = ROWS.load(Relaxed);
    let unused = limits::cpus(MAX_CPUS) * size_of::<Row>()..table_cpus() * size_of::<Row>() + PAGE_SIZE;
    if rows != 0 && !TRIMMED.swap(true, Relaxed) {
        sys::munmap(rows + unused.start, unused.len());
    }
}

fn row(cpu: usize) -> Option<&'static Row> {
    let rows = core::ptr::with_exposed_provenance::<Row>(ROWS.load(Relaxed));
    // SAFETY: the rows of all CPUs that there can be are mapped there for ever; all fields are atomics, valid when
    // zero.
    (!rows.is_null()).then(|| unsafe { &*rows.add(cpu) })
}

/// The row of `cpu`, made if it was not.
fn live_row(cpu: usize) -> Option<&'static Row> {
    let row = row(cpu)?;
    if TRIMMED.load(Relaxed) && cpu >= limits::cpus(MAX_CPUS) {
        // The system did not say that there is such a CPU.
        return None;
    }
    if core::ptr::eq(ROWTAB.cpus[cpu].load(Acquire), &raw const row.seen) {
        return Some(row);
    }
    if ROWS_END.load(Relaxed) <= cpu {
        ROWS_END.fetch_max(cpu + 1, Relaxed);
    }
    // Not read first: a page that was never touched would fault twice.
    match row.state.compare_exchange(ROW_NONE, ROW_MAKING | me(), Acquire, Acquire) {
        Ok(_) => {}
        Err(ROW_LIVE) => return Some(row),
        Err(_) => return None,
    }
    for word in &row.seen.words {
        word.store(no_sheaf(), Relaxed);
    }
    // SAFETY: null, or a function of this type.
    if let Some(limit) = unsafe { transmute::<*mut (), Option<Limit>>(LIMIT.load(Acquire)) } {
        row.seen.limits.iter().zip(0..=u8::MAX).for_each(|(to, tag)| to.store(limit(owner(cpu), tag), Relaxed));
    }
    // Published before it is live: a drain that takes a live row out of the table must not find it put in again.
    publish(cpu, row);
    // Release, pairs with the Acquire above; sections see the words because `publish` is a Release, too.
    row.state.store(ROW_LIVE, Release);
    Some(row)
}

/// Makes the rows of all CPUs.
pub(super) fn make_rows() {
    for cpu in 0..limits::cpus(MAX_CPUS) {
        live_row(cpu);
    }
}

fn publish(cpu: usize, row: &'static Row) {
    if rseq::mode() != Mode::Lock {
        ROWTAB.cpus[cpu].store((&raw const row.seen).cast_mut(), Release);
    }
}

/// In the child of a fork: puts rows in order whose making, draining or locked section another thread was at, which is
/// no more. The single commits leave every row whole. What this thread was itself at, before the handler that forked
/// interrupted it, it will finish.
pub(super) fn after_fork() {
    // A child's one thread is no news of what there was before.
    UNTOLD.store(false, Relaxed);
    let end = if LOCALS.load(Relaxed) { limits::cpus(MAX_CPUS) } else { ROWS_END.load(Relaxed) };
    for cpu in 0..end {
        let Some(row) = row(cpu) else { return };
        if ![0, me()].contains(&row.local.load(Relaxed)) {
            row.local.store(0, Relaxed);
        }
        let state = row.state.load(Relaxed);
        match state & ROW_BITS {
            ROW_NONE => continue,
            ROW_MAKING if state & !ROW_BITS != me() => {
                // Sections may have used it already.
                let published = core::ptr::eq(ROWTAB.cpus[cpu].load(Relaxed), &raw const row.seen);
                row.state.store(if published { ROW_LIVE } else { ROW_NONE }, Relaxed);
            }
            ROW_DRAINED if state & !ROW_BITS != me() => {
                publish(cpu, row);
                row.state.store(ROW_LIVE, Relaxed);
            }
            _ => {}
        }
        if ![0, me()].contains(&row.lock.load(Relaxed)) {
            row.lock.store(0, Relaxed);
        }
    }
}

/// Runs `f` on what `row` shows under its lock; `None` where the lock is not to be had.
fn locked<R>(row: &Row, f: impl FnOnce(&Seen) -> R) -> Option<R> {
    for _ in 0..LOCK_TRIES {
        // Acquire, pairs with the Release below.
        if row.lock.load(Relaxed) == 0 && row.lock.compare_exchange(0, me(), Acquire, Relaxed).is_ok() {
            let result = f(&row.seen);
            row.lock.store(0, Release);
            return Some(result);
        }
        core::hint::spin_loop();
    }
    None
}

/// The CPU for the locked variant: any will do, the current one is best.
pub(super) fn lock_cpu() -> usize {
    // SAFETY: no arguments. Answered by the vDSO; it can only fail where there is no such call.
    let cpu = unsafe { libc::sched_getcpu() };
    usize::try_from(cpu).unwrap_or(0) % table_cpus()
}

/// Text of a section's start: descriptor, `rseq_cs`, row of this CPU in `t`. Labels: 2 descriptor, 3 first instruction,
/// 4 after the commit, 5 abort handler. Operands: o offset of the area, tab the row table, t scratch.
macro_rules! section {
    ($($line:literal),* ; abort $($abort:literal),* ; $($operands:tt)*) => {
        asm!(
            ".pushsection __rseq_cs, \"aw\", @progbits",
            ".balign 32",
            "2:",
            ".long 0, 0",
            ".quad 3f, 4f - 3f, 5f",
            ".popsection",
            "lea {t}, [rip + 2b]",
            "mov qword ptr fs:[{o} + 8], {t}",
            "3:",
            "movsxd {t}, dword ptr fs:[{o} + 4]",
            "mov {t}, qword ptr [{tab} + {t}*8]",
            $($line,)*
            "4:",
            // The signature in front of the handler reads as `ud1 edi, [rip + signature]`.
            ".pushsection .text.unlikely.slabwright, \"ax\", @progbits",
            ".byte 0x0f, 0xb9, 0x3d",
            ".long 0x53053053",
            "5:",
            "mov {t}, qword ptr [rip + slabwright_tls@gottpoff]",
            "inc dword ptr fs:[{t} + {aborts}]",
            $($abort,)*
            ".popsection",
            o = in(reg) rseq::OFFSET.load(Relaxed),
            tab = in(reg) (&raw const ROWTAB.cpus),
            t = out(reg) _,
            aborts = const tls::ABORTS,
            $($operands)*
        )
    };
}

/// Text of a section that pops from the sheaf of the cache in `cache` into `object`; `check` comes before anything is
/// written, and `abort` first of all where it is aborted.
macro_rules! pop_section {
    ($($check:literal),* ; abort $($abort:literal),* ; $($operands:tt)*) => {
        section!(
            // `lea` first: an index register in the access to the word makes store forwarding slow and erratic.
            "lea {t}, [{t} + {cache}*8]",
            "mov {top}, qword ptr [{t}]",
            "mov {object}, qword ptr [{top}]",
            "test {object}, {object}",
            "jz 4f",
            $($check,)*
            "sub {top}, 8",
            "mov qword ptr [{t}], {top}";
            abort $($abort,)* "xor {object:e}, {object:e}", "jmp 4b";
            top = out(reg) _,
            $($operands)*
            options(nostack)
        )
    };
}

/// One section: the top object of this CPU's main sheaf of `cache`; null where there is none or the section was
/// aborted. The object below it is fetched.
///
/// # Safety
/// As [`PerCpu::pop`].
#[inline(always)]
unsafe fn pop_section(cache: u8) -> *mut u8 {
    let object: *mut u8;
    let next: *mut u8;
    // SAFETY: the words of rows are tops of valid sheaves (caller's), or of the zero sheaf; the section has the row to
    // itself until its commit. Prefetching an address that is null or garbage does nothing.
    unsafe {
        pop_section!(
            "mov {next}, qword ptr [{top} - 8]";
            abort "xor {next:e}, {next:e}";
            cache = in(reg) cache as usize,
            next = out(reg) next,
            object = out(reg) object,
        );
    }
    // SAFETY: a hint; it faults on no address.
    unsafe { core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(next.cast()) };
    object
}

/// One section: [`pop_section()`] that fetches nothing.
///
/// # Safety
/// As [`PerCpu::pop_run`].
#[inline(always)]
unsafe fn pop_run_section(cache: u8) -> *mut u8 {
    let run: *mut u8;
    // SAFETY: as in `pop_section`.
    unsafe {
        pop_section!(; abort ; cache = in(reg) cache as usize, object = out(reg) run,);
    }
    run
}

/// There were several threads: what lies on top in rows was not compared, so it is not begun with again.
static SEVERAL: AtomicBool = AtomicBool::new(false);

/// The C library did not say when the heap began that there is one thread: it had not started, or there were several.
static UNTOLD: AtomicBool = AtomicBool::new(false);

/// Sees whether the process has one thread only. (The C library does not know before it has started.) No system call.
fn count_threads() {
    // That it says so later means that it had not started.
    if UNTOLD.load(Relaxed) && super::fork::is_single() {
        UNTOLD.store(false, Relaxed);
        SEVERAL.store(false, Relaxed);
    }
    see_threads();
    if ROWTAB.below.load(Relaxed) == 0 && !SEVERAL.load(Relaxed) && rseq::mode() != Mode::Lock {
        ROWTAB.below.store(usize::MAX, Relaxed);
    }
}

/// Notes it if the process has, or is about to have, another thread.
#[inline]
fn see_threads() {
    if Linux.sees_threads() || !SEVERAL.load(Relaxed) && !super::fork::is_single() {
        ROWTAB.below.store(0, Relaxed);
        SEVERAL.store(true, Relaxed);
    }
}

/// Says what pops compare, until threads are counted again.
#[cfg(any(test, feature = "sim"))]
pub(super) fn compare_below(below: bool) {
    ROWTAB.below.store(if below { usize::MAX } else { 0 }, Relaxed);
}

/// One section: [`pop_section()`] that answers null also where the top object's first word is not `key`.
///
/// # Safety
/// As [`PerCpu::pop_marked`].
#[inline(always)]
unsafe fn pop_marked_section(cache: u8, key: usize) -> *mut u8 {
    let object: *mut u8;
    // SAFETY: as in `pop_section`; what lies in a sheaf can be read.
    unsafe {
        pop_section!(
            // No more registers than these: every caller would have to save one.
            "mov {cache}, qword ptr [{top} - 8]",
            "test {cache}, qword ptr [rip + {rowtab} + {below}]",
            "cmovz {cache}, {object}",
            "cmp qword ptr [{cache}], {key}",
            "jne 6f";
            abort "6:";
            cache = inout(reg) cache as usize => _,
            key = in(reg) key,
            rowtab = sym ROWTAB,
            below = const core::mem::offset_of!(RowTab, below),
            object = out(reg) object,
        );
    }
    object
}

/// What a pop does that found nothing: under the row's lock where that is the mode, once more where it was aborted.
#[cold]
#[inline(never)]
pub(super) unsafe fn pop_cold(cache: u8) -> *mut u8 {
    if rseq::mode() == Mode::Lock {
        let Some(row) = row(lock_cpu()).filter(|row| row.state.load(Acquire) == ROW_LIVE) else {
            return core::ptr::null_mut();
        };
        let pop = |seen: &Seen| {
            let word = &seen.words[cache as usize];
            let top = core::ptr::with_exposed_provenance::<*mut u8>(word.load(Relaxed));
            // SAFETY: as in `pop_section`; the lock gives this thread the row.
            let object = unsafe { *top };
            if !object.is_null() {
                word.store(top.wrapping_sub(1).expose_provenance(), Relaxed);
            }
            object
        };
        return locked(row, pop).unwrap_or(core::ptr::null_mut());
    }
    // SAFETY: the caller's.
    again(|| unsafe { pop_section(cache) }, |object| !object.is_null()).unwrap_or(core::ptr::null_mut())
}

/// Repeats a section that answered "none", if that was because it was aborted. (A thread that is not registered is by
/// [`PerCpu::read`], which no atomic request comes to.)
pub(super) fn again<R>(mut section: impl FnMut() -> R, done: impl Fn(&R) -> bool) -> Option<R> {
    for _ in 0..TRIES {
        let aborts = tls::get(tls::ABORTS);
        if aborts == 0 {
            return None;
        }
        rseq::RESTARTS.fetch_add(aborts, Relaxed);
        tls::set(tls::ABORTS, 0);
        let result = section();
        if done(&result) {
            return Some(result);
        }
    }
    None
}

/// One section: pushes `object` on a sheaf of `BYTES`; false where there is no room or the section was aborted.
///
/// # Safety
/// As [`PerCpu::push`].
#[inline(always)]
unsafe fn push_section<const BYTES: usize>(cache: u8, object: *mut u8) -> bool {
    // SAFETY: as in `pop_section`; the slot above the top belongs to the sheaf unless it starts the next one.
    unsafe {
        section!(
            "lea {t}, [{t} + {cache}*8]",
            "mov {top}, qword ptr [{t}]",
            "add {top}, 8",
            "test {top:e}, {mask}",
            "jz {none}",
            "mov qword ptr [{top}], {object}",
            "mov qword ptr [{t}], {top}";
            abort "jmp {none}";
            cache = in(reg) cache as usize,
            object = in(reg) object,
            top = out(reg) _,
            mask = const BYTES - 1,
            none = label { return false },
            options(nostack)
        );
    }
    true
}

/// Text of a section that pushes on the sheaf of the cache in `cache` and writes `key` to the object's first word,
/// unless `object` lies on top already; `before` comes first. Aborted, the mark is taken back where it was written;
/// where it was not there may be no object, nor all of a word at its end.
macro_rules! push_marked_section {
    ($($before:literal),* ; $($operands:tt)*) => {
        section!(
            $($before,)*
            "lea {t}, [{t} + {cache}*8]",
            "mov {top}, qword ptr [{t}]",
            "cmp qword ptr [{top}], {object}",
            "je {none}",
            "add {top}, 8",
            "test {top:e}, {mask}",
            "jz {none}",
            "mov qword ptr [{object}], {key}",
            "mov qword ptr [{top}], {object}",
            "mov qword ptr [{t}], {top}";
            abort "test {object:l}, 7", "jnz {none}", "cmp qword ptr [{object}], {key}", "jne {none}",
                "mov qword ptr [{object}], 0", "jmp {none}";
            top = out(reg) _,
            mask = const SHEAF_BYTES - 1,
            none = label { return false },
            $($operands)*
            options(nostack)
        )
    };
}

/// One section: [`push_section`] that writes `key` to the object's first word, unless `object` lies on top already.
///
/// # Safety
/// As [`PerCpu::push_marked`].
#[inline(always)]
unsafe fn push_marked_section(cache: u8, object: *mut u8, key: usize) -> bool {
    // SAFETY: as in `push_section`. An aborted section may have written the mark: the object is the caller's to write
    // to.
    unsafe { push_marked_section!(; cache = in(reg) cache as usize, object = in(reg) object, key = in(reg) key,) };
    true
}

/// One section: [`push_marked_section()`] on the main sheaf of the cache in `tag`, if `place` is below the limit.
///
/// # Safety
/// As [`PerCpu::push_tagged`].
#[inline(always)]
unsafe fn push_tagged_section(tag: u8, place: u32, object: *mut u8, key: usize) -> bool {
    // SAFETY: as in `push_marked_section`; a tag has a limit in every row, the dummy included.
    unsafe {
        push_marked_section!(
            "cmp {place:e}, dword ptr [{t} + {cache}*4 + {limits}]",
            "jae {none}",
            // Where this is aborted the tag is not looked at again.
            "and {cache:e}, {bits}";
            cache = inout(reg) tag as usize => _,
            place = in(reg) place,
            object = in(reg) object,
            key = in(reg) key,
            limits = const core::mem::offset_of!(Seen, limits),
            bits = const (1 << TAG_CACHE_BITS) - 1,
        );
    }
    true
}

/// The same for a push.
#[cold]
#[inline(never)]
pub(super) unsafe fn push_cold<const BYTES: usize>(cache: u8, object: *mut u8) -> bool {
    if rseq::mode() == Mode::Lock {
        let Some(row) = row(lock_cpu()).filter(|row| row.state.load(Acquire) == ROW_LIVE) else { return false };
        let push = |seen: &Seen| {
            let word = &seen.words[cache as usize];
            let slot = word.load(Relaxed) + size_of::<usize>();
            if slot.is_multiple_of(BYTES) {
                return false;
            }
            // SAFETY: as in `push_section`; the lock gives this thread the row.
            unsafe { *core::ptr::with_exposed_provenance_mut(slot) = object };
            word.store(slot, Relaxed);
            true
        };
        return locked(row, push).unwrap_or(false);
    }
    // SAFETY: the caller's.
    again(|| unsafe { push_section::<BYTES>(cache, object) }, |done| *done).unwrap_or(false)
}

/// One section: `word` of this CPU from `old` to `new`; false where it is not `old`, there is no row, or it was
/// aborted.
///
/// # Safety
/// As [`PerCpu::replace`].
#[inline(never)]
unsafe fn replace_section(index: usize, old: usize, new: usize) -> bool {
    // SAFETY: the word is written only in a real row (the dummy is compared away).
    unsafe {
        section!(
            "cmp {t}, {dummy}",
            "je {none}",
            "lea {t}, [{t} + {index}*8]",
            "cmp qword ptr [{t}], {old}",
            "jne {none}",
            "mov qword ptr [{t}], {new}";
            abort "jmp {none}";
            index = in(reg) index,
            old = in(reg) old,
            new = in(reg) new,
            dummy = in(reg) dummy(),
            none = label { return false },
            options(nostack)
        );
    }
    true
}

// SAFETY: 1. sections on a row happen on its CPU alone and are restarted when another thread or a handler ran there in
// between, or else hold the row's lock; 2. `drain_row` takes the row out of the table and makes its CPU leave the
// section before it looks; 3. `live_row` fills a row before anybody can find it.
unsafe impl PerCpu for Linux {
    fn nr_cpus(&self) -> usize {
        limits::cpus(MAX_CPUS)
    }

    fn known_cpus(&self) -> usize {
        limits::known_cpus()
    }

    fn rows_end(&self) -> usize {
        ROWS_END.load(Relaxed)
    }

    #[inline]
    fn cpu(&self) -> usize {
        usize::try_from(rseq::cpu_id()).unwrap_or_else(|_| lock_cpu())
    }

    #[inline(always)]
    fn cpu_guess(&self) -> usize {
        rseq::cpu_guess()
    }

    #[inline]
    fn node(&self) -> usize {
        if limits::nodes() == 1 { 0 } else { limits::current_node() }
    }

    fn nr_nodes(&self) -> usize {
        limits::nodes()
    }

    #[inline(always)]
    unsafe fn pop(&self, cache: u8) -> *mut u8 {
        // SAFETY: the caller's.
        unsafe { pop_section(cache) }
    }

    #[inline(always)]
    unsafe fn pop_run(&self, cache: u8) -> *mut u8 {
        // SAFETY: the caller's.
        unsafe { pop_run_section(cache) }
    }

    #[inline(always)]
    unsafe fn pop_marked(&self, cache: u8, key: usize) -> *mut u8 {
        // SAFETY: the caller's.
        unsafe { pop_marked_section(cache, key) }
    }

    unsafe fn pop_again(&self, cache: u8) -> *mut u8 {
        // SAFETY: the caller's.
        unsafe {
            let object = pop_section(cache);
            if object.is_null() { pop_cold(cache) } else { object }
        }
    }

    #[inline(always)]
    unsafe fn push(&self, cache: u8, object: *mut u8) -> bool {
        // SAFETY: the caller's.
        unsafe { push_section::<SHEAF_BYTES>(cache, object) }
    }

    #[inline(always)]
    unsafe fn push_run(&self, cache: u8, run: *mut u8) -> bool {
        // SAFETY: the caller's.
        unsafe { push_section::<RUN_SHEAF_BYTES>(cache, run) }
    }

    #[inline(always)]
    unsafe fn push_marked(&self, cache: u8, object: *mut u8, key: usize) -> bool {
        // SAFETY: the caller's.
        unsafe { push_marked_section(cache, object, key) }
    }

    #[inline(always)]
    unsafe fn push_tagged(&self, tag: u8, place: u32, object: *mut u8, key: usize, _: Limit) -> bool {
        // SAFETY: the caller's.
        unsafe { push_tagged_section(tag, place, object, key) }
    }

    fn set_limit(&self, limit: Limit) {
        // Release, pairs with the Acquire in `live_row`.
        LIMIT.store(limit as *mut (), Release);
    }

    unsafe fn push_again(&self, cache: u8, object: *mut u8) -> bool {
        // SAFETY: the caller's.
        unsafe { push_section::<SHEAF_BYTES>(cache, object) || push_cold::<SHEAF_BYTES>(cache, object) }
    }

    unsafe fn push_run_again(&self, cache: u8, run: *mut u8) -> bool {
        // SAFETY: the caller's.
        unsafe { push_section::<RUN_SHEAF_BYTES>(cache, run) || push_cold::<RUN_SHEAF_BYTES>(cache, run) }
    }

    #[inline]
    fn is_attached(&self) -> bool {
        rseq::cpu_id() >= 0 || rseq::mode() == Mode::Lock
    }

    #[inline(always)]
    fn sees_threads(&self) -> bool {
        ROWTAB.below.load(Relaxed) != 0 && !super::fork::is_single()
    }

    #[inline]
    fn notice_threads(&self) {
        see_threads();
        if SEVERAL.load(Relaxed) {
            super::fork::watch();
            super::fork::register_for_threads();
        }
    }

    #[inline]
    fn looks_below(&self) -> bool {
        ROWTAB.below.load(Relaxed) != 0
    }

    fn read(&self, word: Word) -> Option<usize> {
        count_threads();
        if tls::get(tls::ABORTS) != 0 {
            // The section before this never got through.
            tls::set(tls::ABORTS, 0);
            return None;
        }
        let cpu = match usize::try_from(rseq::cpu_id()) {
            Ok(cpu) => cpu,
            Err(_) if rseq::mode() == Mode::Lock => lock_cpu(),
            Err(_) if rseq::register_thread() => usize::try_from(rseq::cpu_id()).ok()?,
            Err(_) => return None,
        };
        Some(live_row(cpu)?.seen.words[word.index()].load(Relaxed))
    }

    unsafe fn replace(&self, word: Word, old: usize, new: usize) -> bool {
        if rseq::mode() == Mode::Lock {
            let Some(row) = row(lock_cpu()).filter(|row| row.state.load(Acquire) == ROW_LIVE) else { return false };
            let replace = |seen: &Seen| {
                let word = &seen.words[word.index()];
                let same = word.load(Relaxed) == old;
                if same {
                    word.store(new, Relaxed);
                }
                same
            };
            return locked(row, replace).unwrap_or(false);
        }
        // SAFETY: the caller's.
        let section = || unsafe { replace_section(word.index(), old, new) };
        section() || again(section, |done| *done).unwrap_or(false)
    }

    fn drain_row(&self, cpu: usize, f: &mut dyn FnMut(&mut [usize; ROW_WORDS])) -> bool {
        let Some(row) = (cpu < self.rows_end()).then(|| row(cpu)).flatten() else { return true };
        // Somebody else may be draining it. They are soon done, unless a handler interrupted them on this thread.
        let mut tries = 0;
        loop {
            match row.state.compare_exchange(ROW_LIVE, ROW_DRAINED | me(), AcqRel, Relaxed) {
                Ok(_) => break,
                Err(state) if state & ROW_BITS == ROW_DRAINED && state & !ROW_BITS != me() && tries < DRAIN_TRIES => {
                    tries += 1;
                    sys::pause();
                }
                Err(state) => return state & ROW_BITS != ROW_DRAINED,
            }
        }
        let taken = if rseq::mode() == Mode::Lock {
            lock_for_drain(row)
        } else {
            ROWTAB.cpus[cpu].store(dummy(), Release);
            membarrier::restart(cpu)
        };
        if taken {
            // SAFETY: 1. no section finds the row any more and none is left in it (or: the lock is held); 2. other
            // drains and `live_row` see its state; 3. an atomic has the layout of its value.
            let words = unsafe { &mut *(&raw const row.seen.words).cast_mut().cast::<[usize; ROW_WORDS]>() };
            f(words);
        }
        if rseq::mode() == Mode::Lock && taken {
            row.lock.store(0, Release);
        }
        // Published before it is live, as in `live_row`.
        publish(cpu, row);
        row.state.store(ROW_LIVE, Release);
        taken
    }
}

/// How often a drain yields to another of the same row before it gives up.
const DRAIN_TRIES: u32 = 1000;

fn lock_for_drain(row: &Row) -> bool {
    (0..DRAIN_TRIES).any(|_| {
        let taken = row.lock.compare_exchange(0, me(), Acquire, Relaxed).is_ok();
        if !taken {
            sys::pause();
        }
        taken
    })
}
