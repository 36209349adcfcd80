//! The serial line COM1, and QEMU's `isa-debug-exit`.
#![cfg(all(target_arch = "x86", feature = "i386"))]
#![allow(unsafe_code)]

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use super::cpu::{self, IrqOff};

const COM1: u16 = 0x3f8;
const EXIT: u16 = 0xf4;

/// A CPU is writing a line.
static BUSY: AtomicBool = AtomicBool::new(false);
/// Rounds after which a line is written in spite of another CPU's: it may have stopped.
const PATIENCE: u32 = 10_000_000;

/// 38400 baud, 8 bits, no parity, no interrupts.
pub fn init() {
    // SAFETY: COM1 is a serial port, on every PC.
    unsafe {
        for (register, value) in [(1, 0x00), (3, 0x80), (0, 3), (1, 0), (3, 0x03), (2, 0xc7), (4, 0x0b)] {
            cpu::outb(COM1 + register, value);
        }
    }
}

struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: as in `init`. The line is ready for a byte when bit 5 of its status is set.
            unsafe {
                while cpu::inb(COM1 + 5) & 0x20 == 0 {}
                if byte == b'\n' {
                    cpu::outb(COM1, b'\r');
                }
                cpu::outb(COM1, byte);
            }
        }
        Ok(())
    }
}

/// Writes without a word of another CPU's in between.
pub fn print(text: fmt::Arguments<'_>) {
    let _off = IrqOff::new();
    let mut rounds = 0;
    // Acquire, pairs with the Release below.
    while BUSY.swap(true, Ordering::Acquire) && rounds < PATIENCE {
        core::hint::spin_loop();
        rounds += 1;
    }
    // The serial line takes everything.
    let _ = Serial.write_fmt(text);
    BUSY.store(false, Ordering::Release);
}

/// A `fmt::Write` on the console.
pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        print(format_args!("{text}"));
        Ok(())
    }
}

/// How the image ends. QEMU's exit status is twice the value and one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// All is well: status 33.
    Success = 0x10,
    /// A self-test or an assertion failed: status 35.
    Failure = 0x11,
    /// A fault that nobody handles: status 37.
    Oops = 0x12,
}

/// Ends QEMU; without its device it stops this CPU.
pub fn exit(how: Exit) -> ! {
    // SAFETY: the port is QEMU's, and nobody's elsewhere.
    unsafe { cpu::outb(EXIT, how as u8) };
    halt()
}

/// Stops this CPU for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: with interrupts off nothing ends it but a reset.
        unsafe { core::arch::asm!("cli", "hlt") };
    }
}
