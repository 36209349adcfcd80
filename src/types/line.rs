//! Text without allocation.

use core::fmt::{self, Write};

/// A line of text on the stack; what does not fit is cut off.
pub struct Line {
    text: [u8; 240],
    len: usize,
}

impl Line {
    /// An empty line.
    pub const fn new() -> Line {
        Line { text: [0; 240], len: 0 }
    }

    /// What was written.
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.text[..self.len]).unwrap_or("")
    }
}

impl Default for Line {
    fn default() -> Line {
        Line::new()
    }
}

impl Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let mut n = s.len().min(self.text.len() - self.len);
        while !s.is_char_boundary(n) {
            n -= 1;
        }
        self.text[self.len..self.len + n].copy_from_slice(&s.as_bytes()[..n]);
        self.len += n;
        if n == s.len() { Ok(()) } else { Err(fmt::Error) }
    }
}
