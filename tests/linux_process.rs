//! The machine in processes that are not as usual: forked, vforked, interrupted by signals, short of address space,
//! with failing system calls. Each test runs again in a process of its own.
#![cfg(all(target_os = "linux", target_arch = "x86_64", feature = "sim"))]
#![allow(clippy::undocumented_unsafe_blocks)] // the calls under test, on memory of the test's own

#[path = "linux/stress.rs"]
mod stress;

use std::arch::naked_asm;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Barrier, OnceLock};
use std::thread;

use slabwright::config::Options;
use slabwright::machine::linux::{Linux, Mode, allow_moves, calls, fail_after, fork, mode, vfork};
use slabwright::machine::{Context, Frames, Machine, Mapping, PerCpu, Word, ZoneKind};
use slabwright::sync::{Fork, Lock};
use slabwright::types::{Order, PAGE_SIZE, PAGEBLOCK_PAGES, PAGEBLOCK_SIZE, Pfn, PfnRange};
use stress::World;

const IN_CHILD: &str = "LINUX_PROCESS_TEST";

/// Runs test `name` in a new process, prepared by `prepare`, unless this is that process: then true.
fn child(name: &str, arguments: &str, prepare: impl Fn(&mut Command)) -> bool {
    if std::env::var_os(IN_CHILD).is_some() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(IN_CHILD, arguments);
    prepare(&mut command);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} ({arguments}): {:?}\n{text}", output.status);
    assert!(text.contains("1 passed"), "{text}");
    println!("{}", text.lines().filter(|line| line.starts_with("::")).collect::<String>());
    false
}

fn argument() -> String {
    std::env::var(IN_CHILD).unwrap()
}

fn limit(command: &mut Command, resource: u32, bytes: u64) {
    unsafe {
        command.pre_exec(move || {
            let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
            if libc::setrlimit(resource, &limit) == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
}

/// Initialises with sections by restartable sequences where `argument` says so, else by locks.
fn start(rseq: bool) -> Linux {
    Linux.configure(&Options { rseq, ..Options::DEFAULT });
    assert!(Linux.init());
    assert_eq!(mode() == Mode::Lock, !rseq, "{:?}", mode());
    Linux
}

fn modes(name: &str) -> Option<Linux> {
    if std::env::var_os(IN_CHILD).is_some() {
        return Some(start(argument() != "lock"));
    }
    for mode in ["rseq", "own", "lock"] {
        child(name, mode, |command| {
            if mode == "own" {
                command.env("GLIBC_TUNABLES", "glibc.pthread.rseq=0");
            }
        });
    }
    None
}

#[test]
fn own_registration() {
    let tunable = |command: &mut Command| {
        command.env("GLIBC_TUNABLES", "glibc.pthread.rseq=0");
    };
    if child("own_registration", "", tunable) {
        assert!(Linux.init());
        assert_eq!(mode(), Mode::Own);
        stress::contract(&Linux, 3);
        for round in 0..20 {
            stress::storm(&Linux, 10 + round, 4, 20_000);
        }
    }
}

/// Takes arena memory until there is none, checking each piece.
fn exhaust(m: &Linux) -> usize {
    let mut total = 0;
    let mut last = None;
    while let Some(range) = m.grow(0, ZoneKind::Normal, 1) {
        assert!(last.is_none_or(|last| last < range.start));
        last = Some(range.start);
        for page in [0, range.pages / 2, range.pages - 1] {
            let at = m.virt(range.start.add(page));
            unsafe {
                assert_eq!(at.read_volatile(), 0);
                at.write_volatile(1);
            }
            assert_eq!(m.page(range.start.add(page)).word(), 0);
            m.class(range.start.add(page)).store(1, SeqCst);
            assert_eq!(m.class_at(at), 1);
        }
        total += range.bytes();
        if total > 1 << 34 {
            break;
        }
    }
    total
}

#[test]
fn little_address_space() {
    for megabytes in [64u64, 256, 4096] {
        let rationed = |command: &mut Command| limit(command, libc::RLIMIT_AS, megabytes << 20);
        if child("little_address_space", &megabytes.to_string(), rationed) {
            let m = start(true);
            let limit = argument().parse::<usize>().unwrap() << 20;
            // Some areas first: the arena leaves nothing.
            let at = m.window().start + 4 * PAGEBLOCK_SIZE;
            assert!(m.map_fresh(at, PAGEBLOCK_SIZE));
            unsafe { std::ptr::with_exposed_provenance_mut::<u8>(at).write_bytes(1, PAGEBLOCK_SIZE) };
            m.unmap(at, PAGEBLOCK_SIZE);
            assert!(m.map_fresh(at, PAGEBLOCK_SIZE));
            assert_eq!(unsafe { std::ptr::with_exposed_provenance::<u8>(at).read() }, 0);
            m.unmap(at, PAGEBLOCK_SIZE);
            assert!(m.pressure() < (limit / PAGE_SIZE) as u64);
            if limit >= 256 << 20 {
                assert!(
                    m.grow(0, ZoneKind::Dma32, 1).is_some(),
                    "address space below 4 GiB costs no more than it holds"
                );
            }
            let total = exhaust(&m);
            assert!(total < limit && total >= limit / 2, "{total} of {limit} bytes");
            return;
        }
    }
}

#[test]
fn little_data() {
    if child("little_data", "", |command| limit(command, libc::RLIMIT_DATA, 100 << 20)) {
        let m = start(true);
        let total = exhaust(&m);
        assert!((20 << 20..100 << 20).contains(&total), "{total} bytes");
        assert_eq!(m.pressure(), (100 << 20) / 8 * 7 / PAGE_SIZE as u64);
    }
}

fn mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().count()
}

#[test]
fn each_way_of_moving() {
    for way in ["uffd", "mremap", "none"] {
        if child("each_way_of_moving", way, |_| ()) {
            let m = start(true);
            let way = argument();
            allow_moves(way == "uffd", way == "mremap");
            let n = 20;
            let len = n * PAGEBLOCK_SIZE;
            let range = m.grow(0, ZoneKind::Movable, 2 * n as u32 * PAGEBLOCK_PAGES).unwrap();
            // Every second block, backwards: no two adjoin.
            let frames: Vec<Pfn> = (0..n as u32).rev().map(|k| range.start.add(2 * k * PAGEBLOCK_PAGES)).collect();
            let (from, to) = (m.window().start + len, m.window().start + 3 * len);
            let byte = |at: usize| unsafe { &mut *std::ptr::with_exposed_provenance_mut::<u8>(at) };
            let before = mappings();
            for round in 0..3 {
                for (nth, &frame) in frames.iter().enumerate() {
                    let at = m.virt(frame).expose_provenance();
                    (0..PAGEBLOCK_SIZE).step_by(PAGE_SIZE).for_each(|page| *byte(at + page) = nth as u8 + 1);
                }
                assert!(m.map_fresh(from, len) && m.map_fresh(to, len));
                let mapped = m.map_frames(from, &frames);
                if way == "none" {
                    assert_eq!(mapped, 0);
                    assert_eq!(m.move_mapping(from, to, len), Err(0));
                } else if mapped == n {
                    for at in (0..len).step_by(PAGE_SIZE) {
                        assert_eq!(*byte(from + at), (at / PAGEBLOCK_SIZE) as u8 + 1);
                    }
                    assert_eq!(m.move_mapping(from, to, len), Ok(()));
                    for at in (0..len).step_by(PAGE_SIZE) {
                        assert_eq!(*byte(to + at), (at / PAGEBLOCK_SIZE) as u8 + 1);
                        assert_eq!(*byte(from + at), 0);
                    }
                }
                println!("\n:: {way}: {mapped} of {n} moved, {} mappings more", mappings() as isize - before as isize);
                m.unmap(from, len);
                m.unmap(to, len);
                // The runs' own mappings are gone, but for the window's border that huge pages were advised for.
                assert!(mappings() <= before + 4, "round {round}: {} mappings, {before} before", mappings());
            }
            return;
        }
    }
}

/// A bit of everything. What succeeds must hold; what fails must leave the rest whole.
fn everything(m: &Linux) -> u64 {
    let mut ranges = Vec::new();
    for zone in [ZoneKind::Normal, ZoneKind::Movable, ZoneKind::Dma32] {
        for pages in [1, 2000] {
            ranges.extend(m.grow(0, zone, pages));
        }
    }
    for &range in &ranges {
        let at = m.virt(range.start);
        unsafe {
            at.write_bytes(7, range.bytes());
            assert_eq!(m.pfn(at), Some(range.start));
            assert!(m.page(range.start).word() == 0);
        }
        m.populate(PfnRange::block(range.start, Order::ZERO));
        if m.discard(PfnRange::new(range.start, PAGEBLOCK_PAGES)) {
            assert_eq!(unsafe { at.read() }, 0);
        }
        unsafe { at.write_bytes(7, range.bytes()) };
    }
    let window = m.window();
    let (from, to) = (window.start, window.start + 16 * PAGEBLOCK_SIZE);
    let len = 3 * PAGEBLOCK_SIZE;
    let pointer = std::ptr::with_exposed_provenance_mut::<u8>;
    if !window.is_empty() && m.map_fresh(from, len) {
        if let Some(range) = ranges.first()
            && m.map_frame(from, range.start)
        {
            assert!((0..PAGEBLOCK_SIZE).step_by(4096).all(|at| unsafe { pointer(from + at).read() } == 7));
        }
        unsafe { pointer(from).write_bytes(9, len) };
        if m.map_fresh(to, len) {
            let moved = m.move_mapping(from, to, len).map_or_else(|prefix| prefix, |()| len);
            for at in (0..len).step_by(4096) {
                let (old, new) = unsafe { (pointer(from + at).read(), pointer(to + at).read()) };
                assert_eq!((old, new), if at < moved { (0, 9) } else { (9, 0) }, "{at:#x} of {moved:#x}");
            }
            m.unmap(to, len);
        }
        m.clean(from, len);
        m.unmap(from, len);
    }
    let _ = m.pressure();
    let made = calls();
    stress::storm(m, 9, 2, 2000);
    let _ = fork::generation();
    made
}

#[test]
fn every_system_call_failing_in_turn() {
    const NAME: &str = "every_system_call_failing_in_turn";
    if std::env::var_os(IN_CHILD).is_some() {
        let k = argument().parse().unwrap();
        fail_after(k);
        if Linux.init() {
            let first = everything(&Linux);
            everything(&Linux);
            // Without a failure the first round makes about as many calls as there are to fail.
            assert!(k != 0 || first < FAILURES, "{first} calls");
        }
        return;
    }
    for k in 0..FAILURES {
        child(NAME, &k.to_string(), |_| ());
    }
}

/// More system calls than [`everything`] makes on a fresh machine, but for those of its drains, whose number depends on
/// what else runs.
const FAILURES: u64 = 120;

#[test]
fn errno_stays() {
    if child("errno_stays", "", |_| ()) {
        unsafe { *libc::__errno_location() = 1234 };
        let m = start(true);
        let range = m.grow(0, ZoneKind::Normal, 1).unwrap();
        for k in 0..8 {
            fail_after(k);
            m.discard(range);
            m.populate(range);
            m.map_fresh(m.window().start, PAGEBLOCK_SIZE);
            m.map_frame(m.window().start, range.start);
            m.unmap(m.window().start, PAGEBLOCK_SIZE);
            m.read(Word::Main(3));
            m.drain_row(0, &mut |_| ());
            m.now_ms();
            m.random();
            m.pressure();
            fail_after(0);
        }
        assert_eq!(unsafe { *libc::__errno_location() }, 1234);
    }
}

static WORLD: OnceLock<World> = OnceLock::new();
static STOP: AtomicBool = AtomicBool::new(false);

/// Runs `f` while `threads` threads pass objects about.
fn meanwhile(m: &'static Linux, threads: usize, f: impl FnOnce()) {
    let world = WORLD.get_or_init(|| World::new(7));
    std::thread::scope(|scope| {
        for n in 0..threads {
            scope.spawn(move || {
                let mut seed = n as u64 + 1;
                while !STOP.load(SeqCst) {
                    seed += 100;
                    world.run(m, 5000, seed.wrapping_mul(0x1234_5678_9abd));
                }
            });
        }
        let result = catch_unwind(AssertUnwindSafe(f));
        STOP.store(true, SeqCst);
        if let Err(panic) = result {
            resume_unwind(panic);
        }
    });
    world.drain(m);
    world.check();
}

static INTERRUPTS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn on_alarm(_: i32) {
    INTERRUPTS.fetch_add(1, SeqCst);
    WORLD.get().unwrap().touch(&Linux, 20);
}

#[test]
fn signal_handlers_use_the_same_rows() {
    static M: Linux = Linux;
    if modes("signal_handlers_use_the_same_rows").is_some() {
        WORLD.get_or_init(|| World::new(7));
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_alarm as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            assert_eq!(libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut()), 0);
            let every = libc::timeval { tv_sec: 0, tv_usec: 100 };
            let timer = libc::itimerval { it_interval: every, it_value: every };
            meanwhile(&M, 3, || {
                libc::syscall(libc::SYS_setitimer, libc::ITIMER_REAL, &timer, 0);
                std::thread::sleep(std::time::Duration::from_millis(400));
                let off: libc::itimerval = std::mem::zeroed();
                libc::syscall(libc::SYS_setitimer, libc::ITIMER_REAL, &off, 0);
            });
        }
        assert!(INTERRUPTS.load(SeqCst) > 20);
        println!("\n:: {:?}: {} interrupts, {} restarts", mode(), INTERRUPTS.load(SeqCst), M.restarts());
    }
}

/// What a child exits with that found no object to work on.
const IDLE: i32 = 2;

/// Waits for a child, which must have gone well; whether it had objects to work on.
fn wait_for(pid: i32) -> bool {
    let mut status = 0;
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    assert!(libc::WIFEXITED(status) && [0, IDLE].contains(&libc::WEXITSTATUS(status)), "the child: {status:#x}");
    libc::WEXITSTATUS(status) == 0
}

fn exit(ok: bool, worked: bool) -> ! {
    unsafe {
        libc::_exit(if !ok {
            1
        } else if worked {
            0
        } else {
            IDLE
        })
    }
}

#[test]
fn children_of_a_threaded_parent() {
    static M: Linux = Linux;
    static FORKS: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];
    if modes("children_of_a_threaded_parent").is_some() {
        fork::install(
            |_| FORKS[0].fetch_add(1, SeqCst) < 1000,
            || _ = FORKS[1].fetch_add(1, SeqCst),
            || _ = FORKS[2].fetch_add(1, SeqCst),
        );
        let generation = fork::generation();
        meanwhile(&M, 3, || {
            let mut worked = 0;
            for round in 0..100 {
                let raw = round % 2 == 1;
                let pid = if raw { unsafe { libc::syscall(libc::SYS_fork) as i32 } } else { unsafe { libc::fork() } };
                if pid == 0 {
                    let world = WORLD.get().unwrap();
                    let ok = fork::generation() == generation + 1
                        && FORKS[2].load(SeqCst) == usize::from(!raw)
                        && M.read(Word::Main(7)).is_some();
                    let touched = world.touch(&M, 1000);
                    exit(ok && world.drain_in_child(&M), touched > 0);
                }
                assert!(pid > 0);
                worked += usize::from(wait_for(pid));
            }
            println!("\n:: {worked} of 100 children worked");
            assert!(worked > 0);
        });
        assert_eq!(fork::generation(), generation);
        assert_eq!(FORKS.each_ref().map(|n| n.load(SeqCst)), [50, 50, 0]);
    }
}

/// Another thread's handler forks, which interrupted the holder of a lock: the C library's `fork` waits for its list of
/// streams, and who has that, being at a fork, too, for the lock.
#[test]
fn two_forks_of_which_one_interrupted_the_holder_of_a_lock() {
    static M: Linux = Linux;
    static LOCK: Lock<()> = Lock::new(());
    static BEGUN: AtomicUsize = AtomicUsize::new(0);
    fn this() -> Fork {
        let depth = M.enter() as usize;
        M.leave();
        Fork { token: M.thread() + depth, needs_all: depth == 0 }
    }
    fn before(needs_all: bool) -> bool {
        BEGUN.fetch_add(1, SeqCst);
        let fork = this();
        LOCK.lock_for_fork(&M, Fork { needs_all: fork.needs_all && needs_all, ..fork })
    }
    fn after() {
        // SAFETY: the fork is this thread's, or that of its parent.
        unsafe { LOCK.unlock_after_fork(&M, this()) };
    }
    fn works() -> bool {
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            exit(true, true);
        }
        wait_for(pid)
    }
    if modes("two_forks_of_which_one_interrupted_the_holder_of_a_lock").is_some() {
        unsafe { libc::alarm(20) };
        fork::install(before, after, after);
        let held = LOCK.lock(&M);
        M.enter();
        let other = thread::spawn(works);
        while BEGUN.load(SeqCst) == 0 {
            thread::yield_now();
        }
        assert!(works(), "in the handler");
        M.leave();
        drop(held);
        assert!(other.join().unwrap(), "beside it");
        // In a child that lost the holder.
        let (held, wait) = (Barrier::new(2), Barrier::new(2));
        thread::scope(|scope| {
            scope.spawn(|| {
                let _guard = LOCK.lock(&M);
                held.wait();
                wait.wait();
            });
            held.wait();
            let pid = unsafe { libc::syscall(libc::SYS_fork) as i32 };
            if pid == 0 {
                unsafe { libc::alarm(20) };
                exit(works(), true);
            }
            assert!(wait_for(pid), "without the lock");
            wait.wait();
        });
    }
}

/// Calls `f` in a vfork child; its process id.
///
/// By hand, because a compiled function must not be returned from twice.
#[unsafe(naked)]
unsafe extern "C" fn in_vfork_child(f: extern "C" fn() -> !) -> i32 {
    naked_asm!(
        "push rbx",
        "mov rbx, rdi",
        "call {vfork}",
        "test eax, eax",
        "jnz 2f",
        "call rbx",
        "2:",
        "pop rbx",
        "ret",
        vfork = sym vfork,
    )
}

extern "C" fn vfork_child() -> ! {
    let world = WORLD.get().unwrap();
    let done = world.touch(&Linux, 3000);
    // Without the registration, which is the parent's, there are no sheaves to be seen.
    let bypass = mode() != Mode::Lock;
    exit(!bypass || done == 0 && Linux.read(Word::Main(7)).is_none(), bypass || done > 0)
}

#[test]
fn vfork_children_of_a_threaded_parent() {
    static M: Linux = Linux;
    if modes("vfork_children_of_a_threaded_parent").is_some() {
        meanwhile(&M, 3, || {
            let mut worked = 0;
            for _ in 0..200 {
                let pid = unsafe { in_vfork_child(vfork_child) };
                assert!(pid > 0);
                worked += usize::from(wait_for(pid));
                // The registration is back.
                WORLD.get().unwrap().refill(&M);
                assert!(M.read(Word::Main(7)).is_some());
            }
            println!("\n:: {worked} of 200 children worked");
            assert!(worked > 0);
        });
    }
}
