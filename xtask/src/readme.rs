//! Every command that `README.md` shows is run as written.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::test::Outcome;
use crate::{Result, shell};

/// A fenced block: what stands before it, its language and its lines.
struct Block<'a> {
    before: &'a str,
    language: &'a str,
    text: &'a str,
}

impl Block<'_> {
    /// The name of the source that the block shows: the last one in backquotes before it.
    fn source(&self, extension: &str) -> &str {
        let mut names = self.before.rsplit('`').filter(|word| word.ends_with(extension) && !word.contains([' ', '/']));
        names.next().unwrap_or("hello")
    }
}

fn blocks(readme: &str) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    let mut rest = readme;
    while let Some((before, after)) = rest.split_once("\n```") {
        let Some((language, body)) = after.split_once('\n') else { break };
        let Some((text, after)) = body.split_once("```\n") else { break };
        blocks.push(Block { before, language, text });
        rest = after;
    }
    blocks
}

/// Runs the `sh` blocks line by line: cargo's in the workspace, the others in a folder where the sources shown, by the
/// names that stand before them, lie beside the workspace's own folders. Rust's are run by the tests of the
/// documentation.
pub fn test() -> Outcome {
    let mut outcome = Outcome::default();
    if let Err(error) = test_all(&mut outcome) {
        outcome.add("README.md", Err(error));
    }
    outcome
}

fn test_all(outcome: &mut Outcome) -> Result {
    let readme = fs::read_to_string(shell::root().join("README.md"))?;
    shell::build_library(false)?;
    let dir = shell::target().join("readme");
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    symlink(shell::target(), dir.join("target"))?;
    symlink(shell::root().join("include"), dir.join("include"))?;
    for block in blocks(&readme) {
        match block.language {
            "c" => fs::write(dir.join(block.source(".c")), block.text)?,
            "cpp" => fs::write(dir.join(block.source(".cc")), block.text)?,
            "sh" => {
                // This is `cargo xtask test` already.
                for line in block.text.lines().filter(|line| !line.starts_with("cargo xtask test")) {
                    let dir: &Path = if line.starts_with("cargo ") { shell::root() } else { &dir };
                    let mut command = Command::new("sh");
                    outcome.add(line, shell::run(command.args(["-euc", line]).current_dir(dir).env("PWD", dir)));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_blocks() {
        let found = blocks("text\n```sh\na b\nc\n```\nmore\n\n```c\nint x;\n```\n");
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].language, found[0].text), ("sh", "a b\nc\n"));
        assert_eq!((found[1].language, found[1].text), ("c", "int x;\n"));
    }
}
