//! What the machine says of the system it runs on, against what the system says itself.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::undocumented_unsafe_blocks)] // plain queries

use std::fs::read_to_string;

use slabwright::config::Options;
use slabwright::machine::linux::{HugePages, Linux, Mode};
use slabwright::machine::{Frames, Machine, PerCpu};

/// The least limit of this process's control groups and those above, as far as files say.
fn group_limit() -> u64 {
    let mut least = u64::MAX;
    for line in read_to_string("/proc/self/cgroup").unwrap_or_default().lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().unwrap(), fields.next().unwrap());
        let (mount, files): (_, &[&str]) = match controllers {
            "" => ("/sys/fs/cgroup", &["memory.max", "memory.high"]),
            list if list.split(',').any(|c| c == "memory") => ("/sys/fs/cgroup/memory", &["memory.limit_in_bytes"]),
            _ => continue,
        };
        for above in std::path::Path::new(path).ancestors() {
            for file in files {
                let name = format!("{mount}{}/{file}", above.display());
                let text = read_to_string(name).unwrap_or_default();
                least = least.min(text.trim().parse().ok().filter(|limit| *limit < 1 << 60).unwrap_or(u64::MAX));
            }
        }
    }
    least
}

// rows: S2
#[test]
fn the_setup_is_what_the_system_says() {
    // A limit that this process has for sure, and an option.
    let limit = libc::rlimit { rlim_cur: 24 << 30, rlim_max: 24 << 30 };
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_DATA, &limit) }, 0);
    Linux.configure(&Options { limit_bytes: 8 << 30, ..Options::DEFAULT });
    assert!(Linux.init());
    let calls = Linux.system_calls();
    assert!(Linux.known_cpus() <= Linux.nr_cpus());
    assert!(Linux.system_calls() > calls, "a start does not read how many CPUs there can be");
    assert_eq!(Linux.known_cpus(), Linux.nr_cpus());
    let setup = Linux.setup();
    println!("{setup}");
    assert_eq!(setup.page_size as i64, unsafe { libc::sysconf(libc::_SC_PAGESIZE) });
    let possible = read_to_string("/sys/devices/system/cpu/possible").unwrap();
    let last: usize = possible.trim().rsplit([',', '-']).next().unwrap().parse().unwrap();
    assert_eq!((setup.cpus, setup.cpus), (last + 1, Linux.nr_cpus()));
    let nodes = (0..64).filter(|n| std::path::Path::new(&format!("/sys/devices/system/node/node{n}")).exists()).count();
    assert!(setup.nodes <= nodes.max(1) && setup.nodes == Linux.nr_nodes());
    let huge = read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let expected = match () {
        () if huge.contains("[always]") => HugePages::Always,
        () if huge.contains("[madvise]") => HugePages::Madvise,
        () => HugePages::Never,
    };
    assert_eq!(setup.huge_pages, expected);
    assert_eq!(setup.rseq_bytes, unsafe { libc::getauxval(27) });
    assert_eq!(setup.sections, slabwright::machine::linux::mode());
    assert_ne!(setup.sections, Mode::None);
    if matches!(setup.sections, Mode::Libc) {
        assert_eq!(setup.rseq_node, setup.rseq_bytes >= 24, "the node is a word at 20");
    }
    assert_eq!((setup.budget, Linux.budget()), (8 << 30, 8 << 18));
    assert_eq!(setup.limit, group_limit().min(24 << 30));
    assert_eq!(Linux.pressure(), (setup.limit - setup.limit / 8) >> 12);
    // The words for people say the same.
    let text = setup.to_string();
    assert_eq!(text.lines().count(), 5);
    let huge = format!("{expected:?}").to_lowercase();
    assert!(text.starts_with(&format!("pages: {} bytes, huge ones {huge}\nCPUs: {} on", setup.page_size, setup.cpus)));
    assert!(text.ends_with(&format!("budget: {} KiB; limit of the system: {} KiB\n", 8 << 20, setup.limit >> 10)));
}
