//! Going to ring 3 and back. There is no scheduler yet: a CPU enters ring 3 like a call, and the first system call ends
//! it, or a fault that its [`Task`] has no answer to.
#![cfg(all(target_arch = "x86", feature = "i386"))]
#![allow(unsafe_code)]

use core::arch::global_asm;

use super::cpu::{self, Segments};
use super::fixmap::{FixedAddress, set_fixmap};
use super::interrupt::{self, Frame};
use super::memory;
use super::percpu::{self, SEGMENTS};
use crate::paging::{Area, Areas, Fault, Flags, Signal};
use crate::types::PAGE_SIZE;

// void slabwright_enter_user(u32 eip, u32 esp, u32 *kernel_stack): the stack pointer is kept where the processor takes
// it from when it comes back, so that what is above stays. void slabwright_leave_user(u32 esp): returns from the above.
global_asm!(
    ".pushsection .text",
    ".globl slabwright_enter_user, slabwright_leave_user",
    "slabwright_enter_user:",
    "push ebp",
    "push ebx",
    "push esi",
    "push edi",
    "pushfd",
    "mov eax, [esp + 24]",
    "mov ecx, [esp + 28]",
    "mov edx, [esp + 32]",
    "cli",
    "mov [edx], esp",
    "push {user_data}",
    "push ecx",
    "pushfd",
    "or dword ptr [esp], {interrupts}",
    "push {user_code}",
    "push eax",
    "mov ecx, {user_data}",
    "mov ds, ecx",
    "mov es, ecx",
    // Nothing of the kernel's is left in the registers.
    "xor eax, eax",
    "xor ebx, ebx",
    "xor ecx, ecx",
    "xor edx, edx",
    "xor esi, esi",
    "xor edi, edi",
    "xor ebp, ebp",
    "iretd",
    "",
    "slabwright_leave_user:",
    "mov esp, [esp + 4]",
    "popfd",
    "pop edi",
    "pop esi",
    "pop ebx",
    "pop ebp",
    "ret",
    ".popsection",
    user_data = const cpu::USER_DATA,
    user_code = const cpu::USER_CODE,
    interrupts = const cpu::FLAG_IF,
);

unsafe extern "C" {
    fn slabwright_enter_user(eip: u32, esp: u32, kernel_stack: *mut u32);
    fn slabwright_leave_user(esp: u32) -> !;
}

/// Makes the page in which every task finds how a system call is made, at `FixedAddress::Vsyscall`: `int 0x80; ret`.
/// Once, at boot.
pub(super) fn init() {
    let page = memory::take_low(PAGE_SIZE, PAGE_SIZE);
    let stub = [0xcd, interrupt::SYSTEM_CALL as u8, 0xc3];
    let at = core::ptr::with_exposed_provenance_mut::<u8>(memory::phys_to_virt(page.0));
    // SAFETY: the page was just taken, which the direct map reaches.
    unsafe {
        at.write_bytes(0, PAGE_SIZE);
        at.copy_from_nonoverlapping(stub.as_ptr(), stub.len());
    }
    set_fixmap::<{ FixedAddress::Vsyscall as usize }>(page, Flags::USER);
}

/// Why ring 3 was left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    /// The exception, or [`SYSTEM_CALL`](super::interrupt::SYSTEM_CALL).
    pub vector: u32,
    /// Its error code.
    pub error: u32,
    /// The address that a page fault was at.
    pub address: usize,
    /// Where it happened.
    pub eip: u32,
    /// What was in eax.
    pub eax: u32,
    /// What is wrong with the access that faulted.
    pub signal: Option<Signal>,
}

/// Areas of a task, at most.
pub const AREAS: usize = 8;

/// What ring 3 may touch, and who makes it present. (Whole address spaces, which fill themselves, will stand here.)
pub struct Task<'a> {
    areas: Areas<AREAS>,
    pager: &'a mut dyn FnMut(Area, Fault) -> Result<(), Signal>,
}

crate::per_cpu! {
    static END: End = End { vector: 0, error: 0, address: 0, eip: 0, eax: 0, signal: None };
    /// Address of the [`Task`] that runs; 0 for none.
    static TASK: usize = 0;
}

impl<'a> Task<'a> {
    /// A task without areas. `pager` is called in the handler of page faults, with interrupts off, when an area allows
    /// an access for which there is no page.
    pub fn new(pager: &'a mut dyn FnMut(Area, Fault) -> Result<(), Signal>) -> Task<'a> {
        Task { areas: Areas::new(), pager }
    }

    /// Its areas.
    pub fn areas(&mut self) -> &mut Areas<AREAS> {
        &mut self.areas
    }

    /// Makes the page of a fault in `area` present.
    ///
    /// # Errors
    /// What the pager says.
    pub(super) fn make_present(&mut self, area: Area, fault: Fault) -> Result<(), Signal> {
        (self.pager)(area, fault)
    }

    /// [`run`], with faults in its areas served.
    pub fn run(&mut self, eip: usize, esp: usize) -> End {
        percpu::preempt_disable();
        // SAFETY: this CPU's copy, on which this thread stays.
        let before = unsafe { TASK.this().replace((&raw mut *self).expose_provenance()) };
        let end = run(eip, esp);
        // SAFETY: as above.
        unsafe { TASK.this().write(before) };
        percpu::preempt_enable();
        end
    }
}

/// Gives `body` the task that runs on this CPU, if there is one. For the handler of page faults.
pub(super) fn with_task<R>(body: impl FnOnce(&mut Task<'_>) -> R) -> Option<R> {
    // SAFETY: this CPU's copy. The task is lent to `Task::run`, below which this runs, and nobody else looks at it
    // meanwhile: faults of the kernel itself find it in use only while they are about its own areas, which `is_served`
    // rules out.
    unsafe {
        let task = core::ptr::with_exposed_provenance_mut::<Task<'static>>(TASK.this().read());
        task.as_mut().map(body)
    }
}

/// Whether faults on this CPU are for a task to serve: one runs, and nothing else holds the CPU.
pub(super) fn is_served() -> bool {
    // SAFETY: this CPU's copy.
    let runs = unsafe { TASK.this().read() } != 0;
    // Held by `Task::run` and by `run`.
    runs && percpu::preempt_count() == 2
}

/// Runs ring 3 from `eip` on the stack below `esp` until a system call or a fault, in the address space in use.
pub fn run(eip: usize, esp: usize) -> End {
    percpu::preempt_disable();
    // SAFETY: ring 3 touches only what the space gives it; this CPU's task state and result.
    let end = unsafe {
        slabwright_enter_user(eip as u32, esp as u32, Segments::kernel_stack(SEGMENTS.this()));
        END.this().read_volatile()
    };
    percpu::preempt_enable();
    end
}

/// Goes back to where ring 3 was entered from.
pub fn end(frame: &Frame, address: usize, signal: Option<Signal>) -> ! {
    let Frame { vector, error, eip, eax, .. } = *frame;
    // SAFETY: the frame is one from ring 3, so `run` waits on this CPU, its stack as it left it.
    unsafe {
        END.this().write_volatile(End { vector, error, address, eip, eax, signal });
        slabwright_leave_user(Segments::kernel_stack(SEGMENTS.this()).read_volatile())
    }
}

/// The handler of the one system call there is: the end.
pub fn system_call(frame: &Frame) {
    if frame.is_user() {
        end(frame, 0, None);
    }
}
