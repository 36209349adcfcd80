//! What the system says about itself: limits, CPUs, nodes, the clock, random bits, options.

use core::ffi::CStr;
use core::num::NonZero;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};

use once_cell::race::OnceNonZeroUsize;

use super::{rseq, sys};
use crate::config::Options;
use crate::machine::MAX_NODES;
use crate::types::{PAGE_SHIFT, PAGE_SIZE};

static LIMIT: AtomicU64 = AtomicU64::new(0);
/// Bytes that the system lets the process have, `usize::MAX` for no limit.
static SYSTEM: OnceNonZeroUsize = OnceNonZeroUsize::new();
/// Bytes of memory that the machine had when it was asked.
static INSTALLED: OnceNonZeroUsize = OnceNonZeroUsize::new();
static ABORTS: AtomicBool = AtomicBool::new(Options::DEFAULT.abort);
static CPUS: OnceNonZeroUsize = OnceNonZeroUsize::new();
/// What [`table_cpus`] says.
static TABLE_CPUS: OnceNonZeroUsize = OnceNonZeroUsize::new();
/// One more than the highest CPU that the process might use when it began.
static ALLOWED: AtomicUsize = AtomicUsize::new(1);
static NODES: OnceNonZeroUsize = OnceNonZeroUsize::new();
/// Nodes to pretend to have (option), 0 for none.
static FAKE_NODES: AtomicU32 = AtomicU32::new(0);

/// What `ask` says at first; at least 1.
fn once(cell: &OnceNonZeroUsize, ask: impl FnOnce() -> usize) -> usize {
    cell.get_or_init(|| NonZero::new(ask()).unwrap_or(NonZero::<usize>::MIN)).get()
}

/// Keeps the parts of `options` that concern the machine.
pub(super) fn configure(options: &Options) {
    LIMIT.store(options.limit_bytes, Relaxed);
    FAKE_NODES.store(options.fake_nodes, Relaxed);
    ABORTS.store(options.abort, Relaxed);
}

/// Whether a defect ends the program (option).
pub(super) fn aborts() -> bool {
    ABORTS.load(Relaxed)
}

/// CPUs that can ever run, at least 1 and at most `most`. Asked along with the other limits, or before: opening the
/// file takes 10 µs, a twentieth of the life of a small program.
pub(super) fn cpus(most: usize) -> usize {
    once(&CPUS, || {
        let mut buffer = [0; 64];
        let possible = sys::read_file(c"/sys/devices/system/cpu/possible", &mut buffer).and_then(sys::list_max);
        let (bits, allowed) = masks::<128>();
        // The table that there is has no room for more, also where the masks are not to be read any more.
        let most = TABLE_CPUS.get().map_or(most, |table| table.get().min(most));
        count(possible, bits, allowed).clamp(1, most)
    })
}

/// How many CPUs there can be, of which the file names `possible` as the highest. A sandbox may show a file that is not
/// of this machine, so it is no fewer than the process may use, and where the file is not to be read as many as the
/// kernel's CPU masks have bits.
fn count(possible: Option<u64>, bits: Option<usize>, allowed: usize) -> usize {
    let most = bits.unwrap_or(usize::MAX);
    possible.map_or(most, |highest| (highest as usize).saturating_add(1).max(allowed)).min(most)
}

/// No fewer than [`cpus`], and cheap: what a table of all CPUs needs room for.
pub(super) fn table_cpus(most: usize) -> usize {
    once(&TABLE_CPUS, || {
        // Only where masks have 512 bits at most: a table for as many is small.
        let (bits, allowed) = masks::<8>();
        ALLOWED.store(allowed, Relaxed);
        bits.unwrap_or_else(|| cpus(most))
    })
}

/// As many CPUs as [`cpus`] says, if that was asked; else as many as the process might use when it began.
pub(super) fn known_cpus() -> usize {
    CPUS.get().map_or_else(|| ALLOWED.load(Relaxed), NonZero::get)
}

/// How many bits the kernel's CPU masks have, if they fit into so many words; and one more than the highest that is set
/// in the process's.
fn masks<const WORDS: usize>() -> (Option<usize>, usize) {
    let mut mask = [0u64; WORDS];
    let address = (&raw mut mask).expose_provenance();
    // SAFETY: the buffer is as long as said.
    let bytes = unsafe { sys::ask(libc::SYS_sched_getaffinity, [0, size_of_val(&mask), address, 0, 0, 0]) };
    // A filter of system calls may answer no bytes and no error.
    (bytes.ok().filter(|bytes| *bytes > 0).map(|bytes| bytes * 8), highest(&mask).map_or(1, |cpu| cpu + 1))
}

/// The highest bit that is set.
fn highest(mask: &[u64]) -> Option<usize> {
    let (nth, word) = mask.iter().enumerate().rev().find(|(_, word)| **word != 0)?;
    Some(nth * 64 + 63 - word.leading_zeros() as usize)
}

/// Memory nodes, folded to [`MAX_NODES`].
pub(super) fn nodes() -> usize {
    once(&NODES, || {
        let fake = FAKE_NODES.load(Relaxed) as usize;
        if fake > 0 {
            return fake.min(MAX_NODES);
        }
        const MEMS_ALLOWED: usize = 1 << 2;
        // The kernel wants room for all nodes it could have: up to 1024.
        let mut mask = [0u64; 16];
        let at = (&raw mut mask).expose_provenance();
        // SAFETY: the kernel writes at most as many bits as said.
        let done = unsafe { sys::ask(libc::SYS_get_mempolicy, [0, at, size_of_val(&mask) * 8, 0, MEMS_ALLOWED, 0]) };
        highest(&mask).filter(|_| done.is_ok()).map_or(1, |node| node + 1).min(MAX_NODES)
    })
}

/// The memory node the caller runs on, folded to [`MAX_NODES`]. CPUs take turns on nodes that are pretended.
pub(super) fn current_node() -> usize {
    let fake = FAKE_NODES.load(Relaxed) as usize;
    if fake > 0 {
        return rseq::current_cpu() % fake.min(MAX_NODES);
    }
    if let Some(node) = rseq::node_id() {
        return node as usize % MAX_NODES;
    }
    let mut node = 0u32;
    // SAFETY: the kernel writes one word.
    let done = unsafe { sys::ask(libc::SYS_getcpu, [0, (&raw mut node).expose_provenance(), 0, 0, 0, 0]) };
    if done.is_ok() { node as usize % MAX_NODES } else { 0 }
}

/// Asks for memory of `node` in `[at, at + len)`, where there are several.
pub(super) fn bind(at: usize, len: usize, node: usize) {
    const MPOL_PREFERRED_MANY: usize = 5;
    if nodes() == 1 || FAKE_NODES.load(Relaxed) > 0 {
        return;
    }
    // All nodes that are folded onto this one.
    let mask = (0..64).filter(|n| n % MAX_NODES == node).fold(0u64, |mask, n| mask | 1 << n);
    let mask = (&raw const mask).expose_provenance();
    // SAFETY: the range is the caller's, the mask of 64 bits is readable.
    let _ = unsafe { sys::ask(libc::SYS_mbind, [at, len, MPOL_PREFERRED_MANY, mask, 64, 0]) };
}

/// Pages that may be used at most: the option. Resource limits are the kernel's to enforce, where memory is mapped.
pub(super) fn budget() -> u64 {
    match LIMIT.load(Relaxed) {
        0 => u64::MAX,
        bytes => bytes >> PAGE_SHIFT,
    }
}

/// Pages beyond which memory is short: seven eighths of the least of the resource limits and the limits of the control
/// groups, which count more than the heap (page tables, the program itself, its neighbours). The system is asked once:
/// a dozen system calls, and callers hold locks.
pub(super) fn pressure() -> u64 {
    match system_limit() {
        u64::MAX => u64::MAX,
        limit => (limit - limit / 8) >> PAGE_SHIFT,
    }
}

/// Whether the system counts addresses that may be written to, and as much as `bytes` of them may be had at all.
pub(super) fn is_rationed(bytes: usize) -> bool {
    match sys::rlimit(libc::RLIMIT_DATA).min(sys::rlimit(libc::RLIMIT_AS)) {
        u64::MAX => {
            sys::read_file(c"/proc/sys/vm/overcommit_memory", &mut [0; 4]).is_some_and(|mode| mode[..1] == *b"2")
        }
        limit => bytes as u64 <= limit,
    }
}

/// Pages that there are at most: of the machine, or within the limits.
pub(super) fn memory() -> u64 {
    let installed = once(&INSTALLED, || usize::try_from(sys::installed()).unwrap_or(usize::MAX));
    (installed as u64).min(system_limit()) >> PAGE_SHIFT
}

/// That least limit in bytes; `u64::MAX` for none.
pub(super) fn system_limit() -> u64 {
    let limit = once(&SYSTEM, || {
        let rlimits = sys::rlimit(libc::RLIMIT_DATA).min(sys::rlimit(libc::RLIMIT_AS));
        usize::try_from(rlimits.min(groups(c"/proc/self/cgroup", b"/sys/fs/cgroup"))).unwrap_or(usize::MAX)
    });
    limit as u64
}

/// The least memory limit of the control groups that the file `list` names and of those above them, which are mounted
/// at `root`; `u64::MAX` for none.
#[inline(never)] // Not every program comes here.
fn groups(list: &CStr, root: &[u8]) -> u64 {
    let mut buffer = [0; PAGE_SIZE / 2];
    let Some(groups) = sys::read_file(list, &mut buffer) else { return u64::MAX };
    let mut least = u64::MAX;
    for line in groups.split(|&c| c == b'\n') {
        let mut fields = line.splitn(3, |&c| c == b':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let (mount, files): (&[u8], &[&[u8]]) = if controllers.is_empty() {
            (b"", &[b"/memory.max\0", b"/memory.high\0"])
        } else if controllers.split(|&c| c == b',').any(|c| c == b"memory") {
            (b"/memory", &[b"/memory.limit_in_bytes\0"])
        } else {
            continue;
        };
        let mut path = path;
        loop {
            for file in files {
                least = least.min(group_limit(&[root, mount, if path == b"/" { b"" } else { path }, file]));
            }
            match path.iter().rposition(|&c| c == b'/') {
                Some(at) if path.len() > 1 => path = &path[..at.max(1)],
                _ => break,
            }
        }
    }
    least
}

/// The number in one limit file, whose name is made of `parts`; `u64::MAX` where there is none (or version 1's "none",
/// a number near 2^63).
fn group_limit(parts: &[&[u8]]) -> u64 {
    let mut path = [0; 512];
    let mut len = 0;
    for part in parts {
        let Some(to) = path.get_mut(len..len + part.len()) else { return u64::MAX };
        to.copy_from_slice(part);
        len += part.len();
    }
    let Ok(path) = CStr::from_bytes_with_nul(&path[..len]) else { return u64::MAX };
    let mut buffer = [0; 32];
    let limit = sys::read_file(path, &mut buffer).and_then(sys::number);
    limit.filter(|&limit| limit < 1 << 60).unwrap_or(u64::MAX)
}

/// Milliseconds of the monotonic clock, to the tick (4 ms): the cheap variant suffices for ageing.
pub(super) fn now_ms() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel's page answers without a system call; this clock cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut time) };
    time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}

/// Nanoseconds of the monotonic clock.
pub(super) fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: as in `now_ms`.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A hash of the random bytes the kernel gives each program. Both words go in, so that the result tells nobody the
/// stack canary, which libc makes of one of them.
pub(super) fn random() -> u64 {
    let bytes = sys::auxv(libc::AT_RANDOM) as usize;
    if bytes == 0 {
        return 0x9e37_79b9_7f4a_7c15;
    }
    // SAFETY: AT_RANDOM is the address of 16 bytes that stay.
    let words: [u64; 2] = unsafe { core::ptr::with_exposed_provenance::<[u64; 2]>(bytes).read_unaligned() };
    let mix = |word: u64| {
        let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    };
    mix(words[0] ^ 0x5851_f42d_4c95_7f2d) ^ mix(words[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_sane() {
        assert!((1..=8192).contains(&cpus(8192)));
        assert!((1..=MAX_NODES).contains(&nodes()));
        assert_eq!(cpus(8192), cpus(1 << 20));
        assert!(masks::<8>().0.is_none_or(|bits| bits >= cpus(8192)));
        assert!(table_cpus(8192) >= cpus(8192));
        assert!((1..=cpus(8192)).contains(&masks::<8>().1));
        assert_eq!(known_cpus(), cpus(8192));
    }

    #[test]
    fn a_file_that_names_too_few_cpus_is_not_believed() {
        assert_eq!(count(Some(7), Some(64), 4), 8);
        assert_eq!(count(Some(0), Some(64), 4), 4, "CPU 3 may run this");
        assert_eq!(count(Some(u64::MAX), Some(64), 4), 64);
        assert_eq!(count(None, Some(64), 4), 64);
        assert_eq!(count(Some(1), None, 1), 2);
        assert_eq!(count(None, None, 1), usize::MAX);
    }

    #[test]
    fn highest_bits() {
        assert_eq!(highest(&[0, 0]), None);
        assert_eq!(highest(&[1, 0]), Some(0));
        assert_eq!(highest(&[!0, 5, 0]), Some(66));
        assert_eq!(highest(&[1, 1 << 63]), Some(127));
    }

    #[test]
    fn the_clock_runs_and_random_stays() {
        let before = now_ms();
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(now_ms() > before);
        assert_eq!(random(), random());
    }

    #[test]
    fn group_limits_are_the_least_of_the_path() {
        let directory = std::env::temp_dir().join(std::format!("slabwright-groups-{}", std::process::id()));
        let list = std::format!("{}/list\0", directory.display());
        let limit = |lines: &str, files: &[(&str, &str)]| {
            let _ = std::fs::remove_dir_all(&directory);
            for (file, text) in files {
                let file = directory.join(file);
                std::fs::create_dir_all(file.parent().unwrap()).unwrap();
                std::fs::write(file, text).unwrap();
            }
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::write(directory.join("list"), lines).unwrap();
            groups(CStr::from_bytes_with_nul(list.as_bytes()).unwrap(), directory.to_str().unwrap().as_bytes())
        };
        // Version 2, in a container of its own and on a host.
        assert_eq!(limit("0::/\n", &[("memory.max", "268435456\n"), ("memory.high", "max\n")]), 256 << 20);
        assert_eq!(limit("0::/\n", &[("memory.max", "max\n"), ("memory.high", "1048576\n")]), 1 << 20);
        assert_eq!(limit("0::/a/b\n", &[("a/memory.max", "5000000\n"), ("a/b/memory.max", "max\n")]), 5_000_000);
        assert_eq!(limit("0::/a/b\n", &[("a/memory.max", "5000000\n"), ("a/b/memory.max", "4000000\n")]), 4_000_000);
        // Version 1, alone and beside the other.
        let v1 = [
            ("memory/x/memory.limit_in_bytes", "77777777\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        assert_eq!(limit("5:cpu:/y\n4:cpuset,memory:/x\n0::/\n", &v1), 77_777_777);
        // A path of the host's that the container does not see: its own group is mounted at the top.
        assert_eq!(limit("4:memory:/docker/77\n", &[("memory/memory.limit_in_bytes", "12345678\n")]), 12_345_678);
        assert_eq!(limit("4:cpu:/\n", &v1), u64::MAX);
        assert_eq!(limit("", &[]), u64::MAX);
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(groups(c"/nowhere", b""), u64::MAX);
    }
}
