//! The error code of a page fault, as the x86 family pushes it.

use core::fmt;

/// Why an access faulted. Bit 0: the page was there and did not allow it; bit 1: it was a write; bit 2: it came from user
/// mode. (Some texts swap the heads of the first two columns; this is what the hardware does.)
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

#[cfg(test)]
mod tests {
    use super::FaultCode;
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
