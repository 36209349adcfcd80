//! The width of comments, which the formatter leaves alone.

use std::fs;

use crate::{Result, shell};

/// As `max_width` in `rustfmt.toml`.
const WIDTH: usize = 120;

/// No comment is wider than code may be.
pub fn check() -> Result {
    let mut wide = Vec::new();
    for folder in ["benches", "cabi", "examples", "include", "src", "tests", "xtask"] {
        for path in shell::files(&shell::root().join(folder), &["rs", "c", "cc", "h"]) {
            let text = fs::read_to_string(&path)?;
            let lines = text.lines().enumerate().filter(|(_, line)| is_wide(line));
            wide.extend(lines.map(|(before, _)| format!("{}:{}", path.display(), before + 1)));
        }
    }
    if wide.is_empty() { Ok(()) } else { Err(format!("over {WIDTH} columns: {}", wide.join(", ")).into()) }
}

/// Rows of tables may be wide.
fn is_wide(line: &str) -> bool {
    let comment = line.trim_start().strip_prefix("//").map(|rest| rest.trim_start_matches(['/', '!', ' ']));
    line.chars().count() > WIDTH && comment.is_some_and(|text| !text.starts_with('|'))
}
