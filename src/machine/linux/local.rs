//! Per-CPU data of the program: copies a fixed distance apart, added to by restartable sequences, or used under their
//! CPU's lock.
//!
//! Nothing keeps a thread on its CPU, so who wants a CPU's copies for more than one instruction takes that CPU's *local
//! lock* and keeps it wherever the thread goes meanwhile. The lock is taken by a section too, and a section that adds
//! looks at it first: whoever takes it on its own CPU has thereby ended every section there. Taken from elsewhere (a
//! thread without a registration) it takes a membarrier, or where that is refused a nap.
//!
//! The lock's word lies in the CPU's row, behind the words: the thread that holds it, 0 for none. A thread holds at
//! most one, and [`tls::HELD`] says of which CPU and counts how often, in one word, as a handler may take another CPU's
//! in between; a handler that finds its own thread's name in a lock while that count is 0 came in the middle of taking
//! or giving it back, and uses the copies as they are, as an interrupt does in the kernel.
#![allow(unsafe_code)]

use core::arch::asm;
use core::sync::atomic::{
    AtomicU32, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};

use super::percpu::{LOCAL_LOCK, ROW_SHIFT, again, local_lock, lock_cpu, me, rows, use_locals};
use super::rseq::{self, Mode};
use super::{Linux, membarrier, sys, tls};
use crate::machine::{CPU_SHIFT, Machine};
use crate::sync::Park;

/// Looks at a lock before sleeping a while.
const YIELDS: u32 = 20;
/// Where in [`tls::HELD`] the number of the CPU is, above the count.
const HELD_CPU: u32 = 20;

/// One section: runs `$commit` with `{t}` the distance to this CPU's copies, `{c}` the address of its lock, which is
/// free; `{r}` is then this CPU's number, and -1 where the section did not get through.
macro_rules! cpu_section {
    ($commit:literal; $($operands:tt)*) => {{
        let result: isize;
        asm!(
            ".pushsection __rseq_cs, \"aw\", @progbits",
            ".balign 32",
            "2:",
            ".long 0, 0",
            ".quad 3f, 4f - 3f, 5f",
            ".popsection",
            "mov {r}, -1",
            "lea {t}, [rip + 2b]",
            "mov qword ptr fs:[{o} + 8], {t}",
            "3:",
            "movsxd {t}, dword ptr fs:[{o} + 4]",
            "test {t}, {t}",
            "js 6f",
            "mov {c}, {t}",
            "shl {c}, {row_shift}",
            "add {c}, {rows}",
            "cmp qword ptr [{c}], 0",
            "jne 6f",
            "shl {t}, {shift}",
            $commit,
            "4:",
            "mov {r}, {t}",
            "shr {r}, {shift}",
            "6:",
            // The signature in front of the handler reads as `ud1 edi, [rip + signature]`.
            ".pushsection .text.unlikely.slabwright, \"ax\", @progbits",
            ".byte 0x0f, 0xb9, 0x3d",
            ".long 0x53053053",
            "5:",
            "mov {t}, qword ptr [rip + slabwright_tls@gottpoff]",
            "inc dword ptr fs:[{t} + {aborts}]",
            "jmp 6b",
            ".popsection",
            o = in(reg) rseq::OFFSET.load(Relaxed),
            rows = in(reg) rows() + LOCAL_LOCK,
            row_shift = const ROW_SHIFT,
            shift = const CPU_SHIFT,
            aborts = const tls::ABORTS,
            t = out(reg) _,
            c = out(reg) _,
            r = out(reg) result,
            $($operands)*
        );
        result
    }};
}

/// One section: adds to this CPU's copy of the word of `size` bytes at `word`; whether it got through.
///
/// # Safety
/// Every CPU has a copy of the word.
#[inline]
unsafe fn add_section(word: *mut u8, size: usize, value: u64) -> bool {
    if rows() == 0 {
        return false;
    }
    // SAFETY: the caller's: `word + t` is this CPU's copy; the locks of all CPUs are mapped. One instruction adds and
    // commits.
    let cpu = unsafe {
        match size {
            1 => {
                cpu_section!("add byte ptr [{w} + {t}], {v}"; w = in(reg) word, v = in(reg_byte) value as u8, options(nostack))
            }
            2 => cpu_section!("add word ptr [{w} + {t}], {v:x}"; w = in(reg) word, v = in(reg) value, options(nostack)),
            4 => {
                cpu_section!("add dword ptr [{w} + {t}], {v:e}"; w = in(reg) word, v = in(reg) value, options(nostack))
            }
            _ => cpu_section!("add qword ptr [{w} + {t}], {v}"; w = in(reg) word, v = in(reg) value, options(nostack)),
        }
    };
    cpu >= 0
}

/// One section: takes this CPU's lock; its number.
fn take_section() -> Option<usize> {
    if rows() == 0 {
        return None;
    }
    // SAFETY: the locks of all CPUs are mapped.
    let cpu = unsafe { cpu_section!("mov qword ptr [{c}], {me}"; me = in(reg) me(), options(nostack)) };
    usize::try_from(cpu).ok()
}

/// [`again`], and first registers the thread if that was missing.
fn once_more<R>(mut section: impl FnMut() -> R, done: impl Fn(&R) -> bool) -> Option<R> {
    if rseq::cpu_id() < 0 && rseq::register_thread() {
        let result = section();
        if done(&result) {
            return Some(result);
        }
    }
    again(section, done)
}

/// Takes the lock of the CPU that the caller is on or was a moment ago, whichever way that goes; `None` where another
/// thread has it. `Err(cpu)`: this very thread has.
fn try_take() -> Option<Result<usize, usize>> {
    use_locals();
    let sections = matches!(rseq::mode(), Mode::Libc | Mode::Own);
    if sections && let Some(cpu) = take_section().or_else(|| once_more(take_section, Option::is_some).flatten()) {
        return Some(Ok(cpu));
    }
    take_from_outside(usize::try_from(rseq::cpu_id()).unwrap_or_else(|_| lock_cpu()), sections)
}

/// [`try_take`] of the lock of `cpu`, wherever the caller is, where others may take it by `sections`.
fn take_from_outside(cpu: usize, sections: bool) -> Option<Result<usize, usize>> {
    let lock: &AtomicU64 = local_lock(cpu)?;
    // Acquire, pairs with the Release in `put_cpu`.
    match lock.compare_exchange(0, me(), AcqRel, Acquire) {
        Ok(_) if sections => {
            // Sections on that CPU that saw it free are restarted, or done: then one may have taken it, over this
            // thread's name.
            if !membarrier::restart(cpu) {
                // Refused, as by a filter of system calls that came since. Sections are a few instructions long and
                // begin anew where they are interrupted, so those that saw it free are over after a nap.
                Linux.nap(&AtomicU32::new(0), 0);
            }
            (lock.load(Acquire) == me()).then_some(Ok(cpu))
        }
        Ok(_) => Some(Ok(cpu)),
        Err(holder) if holder == me() => Some(Err(cpu)),
        Err(_) => None,
    }
}

/// See [`Machine::get_cpu`].
pub(super) fn get_cpu() -> usize {
    tls::add(tls::PREEMPT, 1);
    let held = tls::get(tls::HELD);
    if held > 0 {
        tls::add(tls::HELD, 1);
        return (held >> HELD_CPU) as usize;
    }
    let mut looks = 0;
    loop {
        match try_take() {
            Some(Ok(cpu)) => {
                note_held(cpu);
                return cpu;
            }
            Some(Err(cpu)) => return cpu,
            None if rows() == 0 => return 0,
            None => {}
        }
        looks += 1;
        if looks < YIELDS {
            sys::pause();
        } else {
            let still = AtomicU32::new(0);
            Linux.nap(&still, 0);
        }
    }
}

fn note_held(cpu: usize) {
    tls::set(tls::HELD, (cpu as u32) << HELD_CPU | 1);
}

/// Takes the lock of `cpu` from wherever the calling thread is, as [`get_cpu`] that of its own; false where another has
/// it.
#[cfg(any(test, feature = "sim"))]
pub(super) fn get_cpu_from_outside(cpu: usize) -> bool {
    use_locals();
    let taken = take_from_outside(cpu, rseq::mode() != Mode::Lock) == Some(Ok(cpu));
    if taken {
        tls::add(tls::PREEMPT, 1);
        note_held(cpu);
    }
    taken
}

/// See [`Machine::put_cpu`].
pub(super) fn put_cpu() {
    tls::add(tls::PREEMPT, u32::MAX);
    let held = tls::get(tls::HELD);
    match held & ((1 << HELD_CPU) - 1) {
        // A handler that was let in without the lock.
        0 => {}
        1 => {
            tls::set(tls::HELD, 0);
            if let Some(lock) = local_lock((held >> HELD_CPU) as usize) {
                // Release, pairs with the Acquire of the next holder; sections of that CPU see it in the same order.
                lock.store(0, Release);
            }
        }
        _ => {
            tls::add(tls::HELD, u32::MAX);
        }
    }
}

/// See [`Machine::this_cpu_add`].
///
/// # Safety
/// As there.
#[inline]
pub(super) unsafe fn add(word: *mut u8, size: usize, value: u64) {
    // SAFETY: the caller's.
    let done = rseq::mode() != Mode::Lock && unsafe { add_section(word, size, value) };
    if !done {
        // SAFETY: the caller's.
        unsafe { add_locked(word, size, value) };
    }
}

#[cold]
unsafe fn add_locked(word: *mut u8, size: usize, value: u64) {
    // SAFETY: the caller's.
    let section = || unsafe { add_section(word, size, value) };
    if rseq::mode() != Mode::Lock && once_more(section, |done| *done).is_some() {
        return;
    }
    let copy = word.wrapping_add(Linux.get_cpu() << CPU_SHIFT);
    // SAFETY: the caller's; the lock keeps all but this thread's handlers out, and the addition is one instruction.
    unsafe {
        match size {
            1 => asm!("add byte ptr [{}], {}", in(reg) copy, in(reg_byte) value as u8),
            2 => asm!("add word ptr [{}], {:x}", in(reg) copy, in(reg) value),
            4 => asm!("add dword ptr [{}], {:e}", in(reg) copy, in(reg) value),
            _ => asm!("add qword ptr [{}], {}", in(reg) copy, in(reg) value),
        }
    }
    Linux.put_cpu();
}
