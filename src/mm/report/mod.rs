//! The reports that people know from `/proc`, in the kernel's formats, byte for byte.
//!
//! Nothing is held while a line is written: figures are copied first, so that the sink may allocate, block or enter the
//! system. Each line is true by itself; the heap goes on between two of them, as it does in the kernel.

mod iomem;
mod slabinfo;
mod vmallocinfo;
mod zones;

use core::fmt::{self, Write};

use super::Mm;
use crate::machine::Machine;

/// A report.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Report {
    /// Caches with their objects and slabs, version 2.1. Objects that lie in sheaves are not active. The caches of page
    /// runs (`run-12k` and so on) come last: each run is a slab of one object. The tunables are those of the kernel's
    /// SLAB: objects that a CPU's sheaf holds, and of the next refill. The last figure counts objects in barns.
    Slabinfo,
    /// Free blocks by order.
    Buddyinfo,
    /// Free blocks by order and migrate type, and the pageblocks of each type.
    Pagetypeinfo,
    /// For each order the share of free memory that a request of it cannot use: external fragmentation. In the kernel
    /// this is `extfrag/unusable_index` of debugfs.
    UnusableIndex,
    /// Zones: free pages, marks, bounds, what is kept from whom, the CPUs' page lists.
    Zoneinfo,
    /// vmalloc areas and `vmap` mappings by address, those that were freed and are kept as `unpurged vm_area`s; then,
    /// in a process, device memory. Each with its caller: a function of the program, or a line of its source where that
    /// is Rust. Large blocks of `malloc` have none.
    Vmallocinfo,
    /// What lies where: zones (`System RAM`) and the allocator's tables. Hosted these are addresses of the process.
    Iomem,
}

impl Report {
    /// All of them.
    pub const ALL: [Report; 7] = [
        Report::Slabinfo,
        Report::Buddyinfo,
        Report::Pagetypeinfo,
        Report::UnusableIndex,
        Report::Zoneinfo,
        Report::Vmallocinfo,
        Report::Iomem,
    ];

    /// Its name, that of the kernel's file.
    pub const fn name(self) -> &'static str {
        match self {
            Report::Slabinfo => "slabinfo",
            Report::Buddyinfo => "buddyinfo",
            Report::Pagetypeinfo => "pagetypeinfo",
            Report::UnusableIndex => "unusable_index",
            Report::Zoneinfo => "zoneinfo",
            Report::Vmallocinfo => "vmallocinfo",
            Report::Iomem => "iomem",
        }
    }

    /// The report with that name.
    pub fn by_name(name: &str) -> Option<Report> {
        Report::ALL.into_iter().find(|report| report.name() == name)
    }
}

impl<M: Machine> Mm<M> {
    /// Writes a report.
    ///
    /// # Errors
    /// The sink's. Also where nothing can be looked at: in a handler that interrupted the allocator, and in a raw
    /// fork's child whose locks are lost.
    pub fn report(&self, report: Report, out: &mut dyn Write) -> fmt::Result {
        let nested = self.machine.enter() > 0;
        self.machine.leave();
        if nested || self.is_crippled() || !self.start() {
            return Err(fmt::Error);
        }
        match report {
            Report::Slabinfo => self.slabinfo(out),
            Report::Buddyinfo => self.buddyinfo(out),
            Report::Pagetypeinfo => self.pagetypeinfo(out),
            Report::UnusableIndex => self.unusable_index(out),
            Report::Zoneinfo => self.zoneinfo(out),
            Report::Vmallocinfo => self.vmallocinfo(out),
            Report::Iomem => self.iomem(out),
        }
    }

    /// Copies figures out of the layers: a handler that comes in meanwhile may be told nothing, but finds that it must
    /// not wait.
    pub(in crate::mm) fn figures<R>(&self, copy: impl FnOnce(&M) -> R) -> R {
        self.machine.enter();
        let figures = copy(&self.machine);
        self.machine.leave();
        figures
    }
}
