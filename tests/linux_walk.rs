//! Every instruction of every critical section, interrupted on purpose.
//!
//! A trap on an instruction is a signal, and a signal aborts the section that it arrives in. So each instruction in
//! turn gets a breakpoint (its first byte replaced); the handler then works on the same row as the interrupted section.
//! Inside a section the kernel must have gone to the abort handler, outside it must not, and no object may be lost or
//! doubled. Which instructions there are is found by single-stepping the same calls over an area that the kernel does
//! not know.
#![cfg(all(target_os = "linux", target_arch = "x86_64", feature = "sim"))]
#![allow(clippy::undocumented_unsafe_blocks)] // the calls under test, on memory of the test's own

use std::arch::asm;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};

use slabwright::machine::linux::testing::{
    Section, compare_below, is_local_held, pop_again, push_again, sections, unabortable,
};
use slabwright::machine::linux::{Linux, Mode, mode};
use slabwright::machine::{Context, Limit, Machine, PerCpu, SHEAF_BYTES, Word, no_sheaf};

const CACHE: u8 = 5;
const OBJECTS: usize = 40;
const TRAP_FLAG: u64 = 1 << 8;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Call {
    Pop,
    PopRun,
    Push,
    PushRun,
    PopMarked,
    PopMarkedBelow,
    PushMarked,
    PushTagged,
    PopAgain,
    PushAgain,
    Replace,
}

const CALLS: [Call; 11] = [
    Call::Pop,
    Call::PopRun,
    Call::Push,
    Call::PushRun,
    Call::PopMarked,
    Call::PopMarkedBelow,
    Call::PushMarked,
    Call::PushTagged,
    Call::PopAgain,
    Call::PushAgain,
    Call::Replace,
];

/// A tag of the cache, and its limit on every CPU.
const TAG: u8 = CACHE | 1 << 7;
const LIMIT: Limit = |_, tag| if tag == TAG { 6 } else { 0 };

/// What marks an object that is in the sheaf, in its first word.
const KEY: usize = 77;

#[repr(align(4096))]
struct Sheaf([usize; SHEAF_BYTES / 8]);

static mut SHEAVES: [Sheaf; 2] = [const { Sheaf([0; SHEAF_BYTES / 8]) }; 2];

fn sheaf(which: usize) -> usize {
    unsafe { (&raw mut SHEAVES[which]).expose_provenance() }
}

/// Puts sheaf 0 with objects 1 to OBJECTS into the row for `call`; object 0 is out.
fn set_up(call: Call) {
    unsafe {
        SHEAVES = [const { Sheaf([0; SHEAF_BYTES / 8]) }; 2];
        OBJECT_MEMORY = [[KEY, 0]; OBJECTS + 1];
        OBJECT_MEMORY[0][0] = 0;
        for n in 1..=OBJECTS {
            SHEAVES[0].0[n] = object(n).expose_provenance();
        }
    }
    let row = take_row();
    assert!(row == no_sheaf());
    assert!(unsafe { Linux.replace(Word::Main(CACHE), no_sheaf(), sheaf(0) + 8 * OBJECTS) });
    compare_below(call == Call::PopMarkedBelow);
}

fn take_row() -> usize {
    let mut word = None;
    assert!(Linux.drain_row(0, &mut |words| {
        word = Some(std::mem::replace(&mut words[Word::Main(CACHE).index()], no_sheaf()));
    }));
    word.or_else(|| Linux.read(Word::Main(CACHE))).unwrap_or(no_sheaf())
}

static mut OBJECT_MEMORY: [[usize; 2]; OBJECTS + 1] = [[0; 2]; OBJECTS + 1];

fn object(n: usize) -> *mut u8 {
    (&raw mut OBJECT_MEMORY).cast::<[usize; 2]>().wrapping_add(n).cast()
}

fn mark(n: usize) -> *mut usize {
    object(n).cast()
}

fn number(object: *mut u8) -> usize {
    number_at(object.addr())
}

fn number_at(address: usize) -> usize {
    (address - (&raw const OBJECT_MEMORY).addr()) / 16
}

/// The call under test; the objects that it leaves with the caller. It starts with object 0 in the caller's hands.
#[inline(never)]
fn perform(call: Call) -> Vec<usize> {
    let (mut got, mut pushed) = (std::ptr::null_mut(), false);
    match call {
        Call::Pop => got = unsafe { Linux.pop(CACHE) },
        Call::PopRun => got = unsafe { Linux.pop_run(CACHE) },
        Call::PopMarked | Call::PopMarkedBelow => got = unsafe { Linux.pop_marked(CACHE, KEY) },
        Call::PushMarked => pushed = unsafe { Linux.push_marked(CACHE, object(0), KEY) },
        Call::PushTagged => pushed = unsafe { Linux.push_tagged(TAG, 5, object(0), KEY, LIMIT) },
        Call::PopAgain => got = unsafe { pop_again(CACHE) },
        Call::Push => pushed = unsafe { Linux.push(CACHE, object(0)) },
        Call::PushRun => pushed = unsafe { Linux.push_run(CACHE, object(0)) },
        Call::PushAgain => pushed = unsafe { push_again(CACHE, object(0)) },
        Call::Replace => {
            // Where it has changed meanwhile, it fails; then the sheaf that stays must be whole.
            let _ = unsafe { Linux.replace(Word::Main(CACHE), sheaf(0) + 8 * OBJECTS, sheaf(1)) };
        }
    }
    let mut held = Vec::new();
    if !pushed {
        held.push(0);
    }
    if !got.is_null() {
        held.push(number(got));
    }
    held
}

static STEPS: [AtomicUsize; 20_000] = [const { AtomicUsize::new(0) }; 20_000];
static STEP: AtomicUsize = AtomicUsize::new(0);
static BREAKPOINT: AtomicUsize = AtomicUsize::new(0);
static ORIGINAL: AtomicUsize = AtomicUsize::new(0);
/// Where the program was to go on when the breakpoint's handler ran.
static RESUMED: AtomicUsize = AtomicUsize::new(0);
static HANDLER_POP: AtomicUsize = AtomicUsize::new(usize::MAX);
/// Whether the handler of single steps uses the row itself.
static NESTED: AtomicBool = AtomicBool::new(false);

/// Whether the handler uses per-CPU data instead of the row.
static LOCAL: AtomicBool = AtomicBool::new(false);
/// Whether it does so on another CPU.
static ELSEWHERE: AtomicBool = AtomicBool::new(false);
/// CPU 0's copy of a counter; the test stays on that CPU.
static COPY: AtomicU64 = AtomicU64::new(0);

/// A use of per-CPU data.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Local {
    /// An addition to an integer of so many bytes.
    Add(usize),
    /// Taking the CPU's lock, and giving it back.
    Take,
}

const LOCALS: [Local; 5] = [Local::Add(1), Local::Add(2), Local::Add(4), Local::Add(8), Local::Take];

#[inline(never)]
fn perform_local(local: Local) {
    match local {
        Local::Add(size) => unsafe { Linux.this_cpu_add(COPY.as_ptr().cast(), size, 100) },
        Local::Take => {
            assert_eq!(Linux.get_cpu(), 0);
            COPY.fetch_add(100, SeqCst);
            Linux.put_cpu();
        }
    }
}

fn patch(address: usize, byte: u8) -> u8 {
    let page = address & !4095;
    unsafe {
        let rwx = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        assert_eq!(libc::mprotect(std::ptr::with_exposed_provenance_mut(page), 8192, rwx), 0, "text cannot be patched");
        let place = std::ptr::with_exposed_provenance_mut::<u8>(address);
        let old = place.read_volatile();
        place.write_volatile(byte);
        old
    }
}

extern "C" fn on_trap(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let at = registers[libc::REG_RIP as usize] as usize;
    let breakpoint = BREAKPOINT.load(SeqCst);
    if breakpoint == 0 {
        // A single step.
        let step = STEP.fetch_add(1, SeqCst);
        if let Some(place) = STEPS.get(step) {
            place.store(at, SeqCst);
        }
        if NESTED.load(SeqCst) {
            let got = unsafe { Linux.pop(CACHE) };
            if !got.is_null() {
                assert!(unsafe { Linux.push(CACHE, got) });
            }
        }
        return;
    }
    patch(breakpoint, ORIGINAL.load(SeqCst) as u8);
    BREAKPOINT.store(0, SeqCst);
    if at == breakpoint + 1 {
        registers[libc::REG_RIP as usize] = breakpoint as i64;
        RESUMED.store(breakpoint, SeqCst);
    } else {
        RESUMED.store(at, SeqCst);
    }
    if ELSEWHERE.load(SeqCst) {
        // Moved, and back.
        assert!(run_on(1));
        Linux.get_cpu();
        Linux.put_cpu();
        assert!(run_on(0));
        return;
    }
    if LOCAL.load(SeqCst) {
        // A use of this CPU's copy under its lock, and one without.
        assert_eq!(Linux.get_cpu(), 0);
        COPY.fetch_add(1, SeqCst);
        Linux.put_cpu();
        unsafe { Linux.this_cpu_add(COPY.as_ptr().cast(), 8, 1) };
        return;
    }
    // Pop two, give the second back: the row differs from what the section saw, in address and in contents.
    unsafe {
        let first = Linux.pop(CACHE);
        let second = Linux.pop(CACHE);
        if !second.is_null() {
            assert!(Linux.push(CACHE, second));
        }
        HANDLER_POP.store(if first.is_null() { usize::MAX } else { number(first) }, SeqCst);
    }
}

fn handle_traps() {
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_trap as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        assert_eq!(libc::sigaction(libc::SIGTRAP, &action, std::ptr::null_mut()), 0);
    }
}

fn stepping<R>(f: impl FnOnce() -> R) -> R {
    unsafe { asm!("pushfq", "or qword ptr [rsp], {}", "popfq", const TRAP_FLAG) };
    let result = f();
    unsafe { asm!("pushfq", "and qword ptr [rsp], {}", "popfq", const !(TRAP_FLAG as i32)) };
    result
}

/// The instructions that `call` executes, in no order.
fn trace(call: Call) -> BTreeSet<usize> {
    set_up(call);
    let instructions = steps_of(|| drop(perform(call)));
    take_row();
    instructions
}

fn steps_of(call: impl FnOnce()) -> BTreeSet<usize> {
    STEP.store(0, SeqCst);
    unabortable(0, || stepping(call));
    let steps = STEP.load(SeqCst);
    assert!((10..STEPS.len()).contains(&steps), "{steps} single steps");
    STEPS[..steps].iter().map(|step| step.load(SeqCst)).collect()
}

/// The one section among `instructions`, and those of them in it.
fn section_of(instructions: &BTreeSet<usize>, all: &[Section], call: &str) -> (Section, usize) {
    let inside = |at: usize| all.iter().find(|section| section.body.contains(&at));
    let sections: BTreeSet<usize> = instructions.iter().filter_map(|&at| inside(at)).map(|s| s.body.start).collect();
    assert_eq!(sections.len(), 1, "{call}");
    let section = inside(*sections.first().unwrap()).unwrap().clone();
    let body: Vec<usize> = instructions.iter().copied().filter(|at| section.body.contains(at)).collect();
    assert!(section.body.end - body.last().unwrap() <= 8, "the trace ends before the commit of {call}");
    (section, body.len())
}

/// Interrupts a use of per-CPU data at each instruction: whatever the handler does with the same copy, nothing is lost
/// or counted twice.
fn walk_local(local: Local, all: &[Section]) -> usize {
    let instructions = steps_of(|| perform_local(local));
    let (section, len) = section_of(&instructions, all, &format!("{local:?}"));
    LOCAL.store(true, SeqCst);
    let mut outside = 0;
    for &at in instructions.range(section.body.start - 60..section.body.end + 60) {
        COPY.store(0, SeqCst);
        let restarts = Linux.restarts();
        ORIGINAL.store(usize::from(patch(at, 0xcc)), SeqCst);
        BREAKPOINT.store(at, SeqCst);
        perform_local(local);
        assert_eq!(BREAKPOINT.load(SeqCst), 0, "{local:?} did not come to {at:#x}");
        if section.body.contains(&at) {
            assert_eq!(RESUMED.load(SeqCst), section.abort, "{local:?} went on in its section at {at:#x}");
            assert!(Linux.restarts() > restarts);
        } else {
            assert_eq!(RESUMED.load(SeqCst), at, "{local:?} was aborted outside of its section at {at:#x}");
            outside += 1;
        }
        assert_eq!((COPY.load(SeqCst), Linux.preempt_count()), (102, 0), "{local:?} at {at:#x}");
    }
    assert!(outside >= 2, "no instruction around the section was tried");
    LOCAL.store(false, SeqCst);
    len
}

/// Interrupts the taking of CPU 0's lock, and its giving back, at each instruction, by a handler that takes another
/// CPU's meanwhile.
fn walk_held() -> usize {
    let instructions = steps_of(|| perform_local(Local::Take));
    ELSEWHERE.store(true, SeqCst);
    for &at in &instructions {
        ORIGINAL.store(usize::from(patch(at, 0xcc)), SeqCst);
        BREAKPOINT.store(at, SeqCst);
        perform_local(Local::Take);
        if BREAKPOINT.swap(0, SeqCst) != 0 {
            // Of the steps around the call.
            patch(at, ORIGINAL.load(SeqCst) as u8);
        }
        assert!(!is_local_held(0) && !is_local_held(1), "interrupted at {at:#x}, a lock stays");
        assert_eq!(Linux.preempt_count(), 0);
    }
    ELSEWHERE.store(false, SeqCst);
    instructions.len()
}

fn run_on(cpu: usize) -> bool {
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set) == 0
    }
}

/// All objects that are in the sheaf at `word`.
fn contents(word: usize) -> Vec<usize> {
    let mut top = word;
    let mut all = Vec::new();
    loop {
        let value = unsafe { *std::ptr::with_exposed_provenance::<usize>(top) };
        if value == 0 {
            return all;
        }
        all.push(number_at(value));
        top -= 8;
    }
}

fn walk(call: Call, all: &[Section]) -> usize {
    let instructions = trace(call);
    // (The first attempt of `PopAgain` is not made, so each call executes one section.)
    let (section, len) = section_of(&instructions, all, &format!("{call:?}"));
    let near = section.body.start - 60..section.body.end + 30;
    let mut outside = 0;
    for &at in instructions.range(near) {
        set_up(call);
        let restarts = Linux.restarts();
        HANDLER_POP.store(usize::MAX, SeqCst);
        ORIGINAL.store(usize::from(patch(at, 0xcc)), SeqCst);
        BREAKPOINT.store(at, SeqCst);
        let mut held = perform(call);
        assert_eq!(BREAKPOINT.load(SeqCst), 0, "{call:?} did not come to {at:#x}");
        if section.body.contains(&at) {
            assert_eq!(RESUMED.load(SeqCst), section.abort, "{call:?} went on in its section at {at:#x}");
            let counted = matches!(call, Call::PopAgain | Call::PushAgain | Call::Replace);
            assert!(!counted || Linux.restarts() > restarts);
        } else {
            assert_eq!(RESUMED.load(SeqCst), at, "{call:?} was aborted outside of its section at {at:#x}");
            outside += 1;
        }
        let kept = held.clone();
        let handler = HANDLER_POP.load(SeqCst);
        let row = take_row();
        held.extend(contents(row));
        if call == Call::Replace && row & !(SHEAF_BYTES - 1) == sheaf(1) {
            // The handler worked on either sheaf: before the replacement, or after it on the empty one.
            assert_eq!(handler, usize::MAX);
            held.extend(contents(sheaf(0) + 8 * OBJECTS));
        }
        if handler != usize::MAX {
            held.push(handler);
        }
        if matches!(call, Call::PushMarked | Call::PushTagged) {
            let (pushed, marked) = (!kept.contains(&0), unsafe { mark(0).read_volatile() } == KEY);
            assert_eq!(pushed, marked, "the mark after {call:?} at {at:#x}");
        }
        held.sort_unstable();
        assert!(held.iter().copied().eq(0..=OBJECTS), "{call:?} at {at:#x}: {held:?}");
    }
    assert!(outside >= 2, "no instruction around the section was tried");
    len
}

// rows: J3 J8
#[test]
fn every_instruction_of_every_section() {
    assert!(Linux.init());
    Linux.set_limit(LIMIT);
    if std::env::var_os("WITHOUT_RSEQ").is_some() {
        println!("told that there are no restartable sequences here: nothing was walked");
        return;
    }
    assert!(
        matches!(mode(), Mode::Libc | Mode::Own),
        "no restartable sequences here; set WITHOUT_RSEQ=1 to leave this test out"
    );
    let two = run_on(1);
    assert!(run_on(0));
    assert_eq!(Linux.cpu(), 0);
    handle_traps();
    let all: Vec<Section> = sections().collect();
    for call in CALLS {
        println!("{call:?}: {} instructions", walk(call, &all));
    }
    set_up(Call::PushTagged);
    // SAFETY: the object is the test's, and would not be pushed.
    assert!(!unsafe { Linux.push_tagged(TAG, 6, object(0), KEY, LIMIT) });
    take_row();

    for local in LOCALS {
        println!("{local:?}: {} instructions", walk_local(local, &all));
    }
    if two {
        println!("taken and given back: {} instructions", walk_held());
    }

    // Stepped one by one, no section ever ends; every call must all the same.
    set_up(Call::Pop);
    NESTED.store(true, SeqCst);
    for nested in [false, true] {
        NESTED.store(nested, SeqCst);
        for call in CALLS {
            STEP.store(0, SeqCst);
            let held = stepping(|| perform(call));
            assert!(STEP.load(SeqCst) > 10);
            assert_eq!(held, [0], "{call:?} got through while stepped");
            assert_eq!(
                stepping(|| Linux.read(Word::Main(CACHE))),
                None,
                "the caller is not told to go past the sheaves"
            );
        }
    }
    assert_eq!(contents(take_row()).len(), OBJECTS);
}
