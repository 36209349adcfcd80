//! Simulated programs: loads and stores at a privilege level, faults and what comes of them.

use core::fmt::Write;
use std::string::String;
use std::sync::Arc;

use super::{Faults, Flavour, Mmu, Simulated, Space, Tables, locked};
use crate::machine::i386::layout::PAGE_OFFSET;
use crate::machine::{Context, PerCpu, Report};
use crate::paging::i386::I386 as Arch;
use crate::paging::{
    Area, Fault, FaultCode, Faulting, Fixup, Format, Outcome, PageTable, Signal, TableMemory, Translation,
    do_page_fault,
};
use crate::types::{PAGE_SIZE, Pfn, VirtAddr};

/// The privilege of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Ring 0.
    Kernel,
    /// Ring 3.
    User,
}

/// Why an access did not happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interrupted {
    /// The kernel goes on at this instruction instead, which is the task's now.
    Fixup(u32),
    /// The task got this signal and is no more.
    Signal(Signal),
    /// The kernel made a mistake, which was reported; the task is no more.
    Oops,
}

/// A simulated program on the CPU of the thread that runs it.
pub struct Task<F: Flavour> {
    sim: Simulated<F>,
    space: Option<Arc<Space<F>>>,
    mode: Mode,
    /// The instruction that makes the accesses.
    pub ip: u32,
    end: Option<Interrupted>,
}

impl<F: Flavour> Simulated<F> {
    /// A task of the kernel's, without user addresses.
    pub fn kernel_task(&self) -> Task<F> {
        Task { sim: self.clone(), space: None, mode: Mode::Kernel, ip: 0, end: None }
    }
}

impl<F: Flavour> Task<F> {
    /// A task in `space`.
    pub fn new(space: &Arc<Space<F>>, mode: Mode) -> Task<F> {
        let sim = space.machine().clone();
        Task { sim, space: Some(space.clone()), mode, ip: 0, end: None }
    }

    /// Goes to another privilege level: a system call, or its end.
    pub fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// What ended it.
    pub fn end(&self) -> Option<Interrupted> {
        self.end
    }

    /// Loads `N` bytes, which may lie in several pages.
    ///
    /// # Errors
    /// [`Interrupted`].
    pub fn load<const N: usize>(&mut self, address: usize) -> Result<[u8; N], Interrupted> {
        let mut bytes = [0; N];
        self.access(address, N, 0, |sim, found, part| {
            sim.state.memory.read_frame(found.frame, found.offset, &mut bytes[part]);
        })?;
        Ok(bytes)
    }

    /// Stores `bytes`.
    ///
    /// # Errors
    /// [`Interrupted`]; bytes in the pages before the one that faulted may have been stored.
    pub fn store(&mut self, address: usize, bytes: &[u8]) -> Result<(), Interrupted> {
        self.access(address, bytes.len(), FaultCode::WRITE, |sim, found, part| {
            sim.state.memory.write_frame(found.frame, found.offset, &bytes[part]);
        })
    }

    /// Copies byte by byte, as `rep movsb` of the instruction at `ip`; how many bytes were not copied where a fixup
    /// ended it.
    ///
    /// # Errors
    /// What ended the task.
    pub fn copy(&mut self, to: usize, from: usize, len: usize) -> Result<usize, Interrupted> {
        for done in 0..len {
            let copied = self.load::<1>(from + done).and_then(|byte| self.store(to + done, &byte));
            match copied {
                Ok(()) => {}
                Err(Interrupted::Fixup(_)) => return Ok(len - done),
                Err(end) => return Err(end),
            }
        }
        Ok(0)
    }

    fn access(
        &mut self,
        address: usize,
        len: usize,
        kind: u32,
        mut each: impl FnMut(&Simulated<F>, Translation, core::ops::Range<usize>),
    ) -> Result<(), Interrupted> {
        let mut done = 0;
        while done < len {
            // Addresses have 32 bits, and wrap.
            let at = (address + done) & 0xffff_ffff;
            let part = (PAGE_SIZE - at % PAGE_SIZE).min(len - done);
            let found = self.reach(at, kind)?;
            each(&self.sim, found, done..done + part);
            done += part;
        }
        Ok(())
    }

    /// The frame behind `address`; faults until there is one.
    fn reach(&mut self, address: usize, kind: u32) -> Result<Translation, Interrupted> {
        if let Some(end) = self.end {
            return Err(end);
        }
        let access = kind | if self.mode == Mode::User { FaultCode::USER } else { 0 };
        // Each fault may bring an entry or a page; more than that is a handler that does nothing.
        for _ in 0..4 {
            let code = {
                let mmu = &mut *self.sim.mmu();
                let root = self.space.as_ref().map_or(mmu.master, |space| space.root());
                match mmu.translate(&self.sim.state.memory, self.sim.cpu(), root, address, access) {
                    Ok(found) => return Ok(found),
                    Err(code) => {
                        mmu.faults = Faults { count: mmu.faults.count + 1, address, code };
                        code
                    }
                }
            };
            let interrupted = match self.fault(Fault { address, code, at: self.ip }) {
                Outcome::Again => continue,
                Outcome::Fixup(to) => {
                    self.ip = to;
                    return Err(Interrupted::Fixup(to));
                }
                Outcome::Signal(signal) => Interrupted::Signal(signal),
                Outcome::Oops(what) => self.oops(what, address, code),
            };
            self.end = Some(interrupted);
            return Err(interrupted);
        }
        panic!("the access to {address:#x} faults again and again");
    }

    fn fault(&mut self, fault: Fault) -> Outcome {
        let mmu = self.sim.mmu();
        let fixups = mmu.fixups.clone();
        drop(mmu);
        do_page_fault(&mut Handler { sim: &self.sim, space: self.space.as_deref(), fixups }, fault)
    }

    /// Reports a mistake of the kernel's.
    fn oops(&self, what: &str, address: usize, code: FaultCode) -> Interrupted {
        let mut line = String::new();
        let _ = write!(line, "Oops: {what} at {address:#010x} ({code}), CPU {}, ip {:08x}", self.sim.cpu(), self.ip);
        self.sim.line(&line);
        Interrupted::Oops
    }
}

/// The task that faulted, as the handler of page faults sees it.
struct Handler<'a, F: Flavour> {
    sim: &'a Simulated<F>,
    space: Option<&'a Space<F>>,
    fixups: std::vec::Vec<Fixup>,
}

impl<F: Flavour> Faulting for Handler<'_, F> {
    const KERNEL: usize = PAGE_OFFSET;

    fn sync_kernel_entry(&mut self, address: usize) -> bool {
        let Some(space) = self.space else { return false };
        self.sim.mmu().sync_kernel_entry(self.sim, space.root(), address)
    }

    fn is_atomic(&self) -> bool {
        self.space.is_none() || self.sim.preempt_count() > 0
    }

    fn find_area(&self, address: usize) -> Option<Area> {
        locked(&self.space?.areas).find(address)
    }

    fn grow(&mut self, area: Area, address: usize) -> bool {
        self.space.is_some_and(|space| locked(&space.areas).grow(area.start, address))
    }

    fn make_present(&mut self, area: Area, fault: Fault) -> Result<(), Signal> {
        let space = self.space.ok_or(Signal::NoArea)?;
        let mut pager = locked(&space.pager);
        let (frame, flags) = pager.as_mut().ok_or(Signal::Bus)?(area, fault)?;
        let page = fault.address & !(PAGE_SIZE - 1);
        if fault.code.is_protection() {
            // Another page takes the place of the one that did not allow it.
            space.unmap(page);
        }
        space.map(page, frame, flags).map_err(|_| Signal::Bus)
    }

    fn fixups(&self) -> &[Fixup] {
        &self.fixups
    }
}

impl Mmu {
    /// Copies the kernel's top-level entry for `address` to the table at `root`, where it lacks.
    fn sync_kernel_entry<F: Flavour>(&mut self, sim: &Simulated<F>, root: Pfn, address: usize) -> bool {
        let mut tables = Tables { memory: &sim.state.memory, pool: None };
        let place = PageTable::<Arch>::new(self.master).pgd_offset(VirtAddr(address));
        let entry = tables.read(place.table, place.index);
        if !Arch::is_present(entry) || Arch::is_present(tables.read(root, place.index)) {
            return false;
        }
        tables.write(root, place.index, entry);
        self.synced += 1;
        true
    }
}
