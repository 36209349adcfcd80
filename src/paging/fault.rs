//! Page faults: the error code, as the x86 family pushes it, and what is to be done about one ([`do_page_fault`]).
//!
//! What to do is the same on every machine, so it is decided here; a machine says what it has by [`Faulting`]. After
//! Linux's `do_page_fault` of the i386, without what the modern one knows besides (protection keys, spurious faults,
//! SMAP).

use core::fmt;

use super::{Access, Area};
use crate::types::PAGE_SIZE;

/// Why an access faulted. Bit 0: the page was there and did not allow it; bit 1: it was a write; bit 2: it came from
/// user mode. (Some texts swap the heads of the first two columns; this is what the hardware does.)
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FaultCode(pub u32);

impl FaultCode {
    /// The page is present: its protection refused the access. Else nothing is mapped.
    pub const PROTECTION: u32 = 1 << 0;
    /// A write. Else a read, or an instruction fetch.
    pub const WRITE: u32 = 1 << 1;
    /// From user mode. Else from the kernel.
    pub const USER: u32 = 1 << 2;

    /// Whether a present page refused the access.
    pub const fn is_protection(self) -> bool {
        self.0 & FaultCode::PROTECTION != 0
    }

    /// Whether it was a write.
    pub const fn is_write(self) -> bool {
        self.0 & FaultCode::WRITE != 0
    }

    /// Whether it came from user mode.
    pub const fn is_user(self) -> bool {
        self.0 & FaultCode::USER != 0
    }
}

impl fmt::Display for FaultCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = if self.is_protection() { "protection" } else { "no page" };
        let access = if self.is_write() { "write" } else { "read" };
        let mode = if self.is_user() { "user" } else { "kernel" };
        write!(f, "{:#x}: {why}, {access}, {mode}", self.0)
    }
}

impl fmt::Debug for FaultCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A fault as the processor reports it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The address that was touched.
    pub address: usize,
    /// Why that failed.
    pub code: FaultCode,
    /// The instruction that did it.
    pub at: u32,
}

/// An entry of the exception table (`__ex_table`): where to go on after a fault of the instruction at `at`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fixup {
    /// Address of an instruction that may fault.
    pub at: u32,
    /// Address of what to do then.
    pub to: u32,
}

/// Where to go on after a fault at `at`, by a table in ascending order (`search_exception_table`).
pub fn search_exception_table(table: &[Fixup], at: u32) -> Option<u32> {
    let index = table.binary_search_by_key(&at, |fixup| fixup.at).ok()?;
    Some(table[index].to)
}

/// What ends a program that faulted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// No area there (`SEGV_MAPERR`).
    NoArea,
    /// The area does not allow it (`SEGV_ACCERR`).
    NotAllowed,
    /// The area's page could not be made present (`SIGBUS`).
    Bus,
}

/// What became of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// What lacked is there now: the instruction is to be tried again.
    Again,
    /// The kernel foresaw it, and goes on at this instruction.
    Fixup(u32),
    /// The program made a mistake.
    Signal(Signal),
    /// The kernel did: an oops. Its words for the report.
    Oops(&'static str),
}

/// What the handler of page faults asks of a machine and of the task that faulted.
pub trait Faulting {
    /// Where the kernel's addresses begin (`PAGE_OFFSET`).
    const KERNEL: usize;

    /// Copies the kernel's own top-level entry for `address` to the page table in use, where it lacks
    /// (`vmalloc_fault`). False where that is not what lacked.
    fn sync_kernel_entry(&mut self, address: usize) -> bool;

    /// Whether the code that faulted has no address space, or may not wait for one: it is in an interrupt, or
    /// preemption is off.
    fn is_atomic(&self) -> bool;

    /// The first area that ends above `address`.
    fn find_area(&self, address: usize) -> Option<Area>;

    /// Lets a stack begin at the page of `address`.
    fn grow(&mut self, area: Area, address: usize) -> bool;

    /// Makes the page present so that the access succeeds (`handle_mm_fault`).
    ///
    /// # Errors
    /// The signal that says why not.
    fn make_present(&mut self, area: Area, fault: Fault) -> Result<(), Signal>;

    /// The exception table, ascending.
    fn fixups(&self) -> &[Fixup];
}

/// Decides about a page fault, and does what can be done about it.
pub fn do_page_fault<T: Faulting>(task: &mut T, fault: Fault) -> Outcome {
    let (address, code) = (fault.address, fault.code);
    // 1. The kernel touched a kernel address without a page: perhaps only the table in use lacks it.
    if address >= T::KERNEL && !code.is_user() && !code.is_protection() && task.sync_kernel_entry(address) {
        return Outcome::Again;
    }
    let failed = if address >= T::KERNEL || task.is_atomic() {
        Signal::NoArea
    } else {
        match good_area(task, fault).and_then(|area| task.make_present(area, fault)) {
            Ok(()) => return Outcome::Again,
            Err(signal) => signal,
        }
    };
    if code.is_user() {
        return Outcome::Signal(failed);
    }
    // The kernel's: foreseen, or a mistake.
    match search_exception_table(task.fixups(), fault.at) {
        Some(to) => Outcome::Fixup(to),
        None if address < PAGE_SIZE => Outcome::Oops("null pointer"),
        None => Outcome::Oops("page fault"),
    }
}

/// The area that allows the access.
fn good_area<T: Faulting>(task: &mut T, fault: Fault) -> Result<Area, Signal> {
    // 2. Does a mapping exist?
    let mut area = task.find_area(fault.address).ok_or(Signal::NoArea)?;
    if fault.address < area.start {
        if !area.access.has(Access::GROWS_DOWN) || !task.grow(area, fault.address) {
            return Err(Signal::NoArea);
        }
        area.start = fault.address & !(PAGE_SIZE - 1);
    }
    // 3. Does it allow the access? The hardware knows no right to execute alone, and a page that is present may be
    //    read.
    let allowed = if fault.code.is_write() {
        area.access.has(Access::WRITE)
    } else {
        !fault.code.is_protection() && area.access.0 & (Access::READ.0 | Access::EXEC.0) != 0
    };
    if allowed { Ok(area) } else { Err(Signal::NotAllowed) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn all_eight_codes() {
        let expected = [
            "0x0: no page, read, kernel",
            "0x1: protection, read, kernel",
            "0x2: no page, write, kernel",
            "0x3: protection, write, kernel",
            "0x4: no page, read, user",
            "0x5: protection, read, user",
            "0x6: no page, write, user",
            "0x7: protection, write, user",
        ];
        for (code, text) in expected.iter().enumerate() {
            assert_eq!(FaultCode(code as u32).to_string(), *text);
        }
    }
}
