//! What the machine found out about the system and made of it, for a look at it.

use core::fmt;

use super::{Linux, limits, remap, rseq, sys};
use crate::machine::PerCpu;
use crate::types::PAGE_SHIFT;

/// When the system backs memory by huge pages (`/sys/kernel/mm/transparent_hugepage/enabled`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HugePages {
    /// Wherever it can.
    Always,
    /// Where a program asks for it.
    Madvise,
    /// Never, or it cannot.
    Never,
}

/// The set-up of the process's machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setup {
    /// Bytes of a page of the system's.
    pub page_size: usize,
    /// CPUs that can ever run.
    pub cpus: usize,
    /// Memory nodes that are kept apart.
    pub nodes: usize,
    /// How per-CPU critical sections are made.
    pub sections: rseq::Mode,
    /// Bytes of the area of restartable sequences that the kernel fills in; 0 where it knows none.
    pub rseq_bytes: u64,
    /// Whether the kernel writes the node there, too.
    pub rseq_node: bool,
    /// When memory is backed by huge pages.
    pub huge_pages: HugePages,
    /// Whether the population of frames can be moved, so that large blocks are mapped without copying.
    pub moves: bool,
    /// Bytes that the option allows at most; `u64::MAX` for no limit.
    pub budget: u64,
    /// The least of the resource limits and the limits of the control groups, in bytes; `u64::MAX` for none.
    pub limit: u64,
}

pub(super) fn huge_pages() -> HugePages {
    let mut buffer = [0; 64];
    let text = sys::read_file(c"/sys/kernel/mm/transparent_hugepage/enabled", &mut buffer).unwrap_or_default();
    // All are listed, the one that holds in brackets.
    let chosen = text.split(|&c| c == b'[').nth(1).and_then(|rest| rest.split(|&c| c == b']').next());
    match chosen {
        Some(b"always") => HugePages::Always,
        Some(b"madvise") => HugePages::Madvise,
        _ => HugePages::Never,
    }
}

impl Linux {
    /// What was found out; asks the system again for what is not kept. *Syscall.*
    pub fn setup(&self) -> Setup {
        Setup {
            page_size: sys::auxv(libc::AT_PAGESZ) as usize,
            cpus: self.nr_cpus(),
            nodes: self.nr_nodes(),
            sections: rseq::mode(),
            rseq_bytes: sys::auxv(rseq::AT_RSEQ_FEATURE_SIZE),
            rseq_node: rseq::node_id().is_some(),
            huge_pages: huge_pages(),
            moves: remap::can_move(),
            budget: match limits::budget() {
                u64::MAX => u64::MAX,
                pages => pages << PAGE_SHIFT,
            },
            limit: limits::system_limit(),
        }
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = |bytes: u64, f: &mut fmt::Formatter<'_>| match bytes {
            u64::MAX => f.write_str("none"),
            bytes => write!(f, "{} KiB", bytes >> 10),
        };
        let sections = match self.sections {
            rseq::Mode::None => "not decided",
            rseq::Mode::Libc => "restartable sequences of the C library",
            rseq::Mode::Own => "restartable sequences of its own",
            rseq::Mode::Lock => "locks",
        };
        let huge = match self.huge_pages {
            HugePages::Always => "always",
            HugePages::Madvise => "madvise",
            HugePages::Never => "never",
        };
        writeln!(f, "pages: {} bytes, huge ones {huge}", self.page_size)?;
        writeln!(f, "CPUs: {} on {} nodes", self.cpus, self.nodes)?;
        writeln!(
            f,
            "sections: {sections}, {} bytes, node {}",
            self.rseq_bytes,
            if self.rseq_node { "in" } else { "not in" }
        )?;
        writeln!(f, "large blocks: {}", if self.moves { "moved" } else { "copied or fresh" })?;
        f.write_str("budget: ")?;
        bytes(self.budget, f)?;
        f.write_str("; limit of the system: ")?;
        bytes(self.limit, f)?;
        f.write_str("\n")
    }
}
