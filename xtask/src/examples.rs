//! The programs in `examples`: each is built and run, and must print what its `//>` lines say, in this order.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::test::Outcome;
use crate::{Result, shell};

/// Runs the examples that are `wanted` by file name; what came of each.
pub fn run(wanted: impl Fn(&str) -> bool) -> Vec<(String, bool)> {
    let mut results = Vec::new();
    for (name, result) in run_all(wanted) {
        if let Err(error) = &result {
            println!("{name}: {error}");
        }
        results.push((name, result.is_ok()));
    }
    results
}

/// All of them as a part of the tests.
pub fn test(outcome: &mut Outcome) {
    run_all(|_| true).into_iter().for_each(|(name, result)| outcome.add(&name, result));
}

fn run_all(wanted: impl Fn(&str) -> bool) -> Vec<(String, Result)> {
    let entries = fs::read_dir(shell::root().join("examples")).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    let named = paths.iter().filter_map(|path| Some((path.file_name()?.to_str()?.to_owned(), path)));
    named.filter(|(name, _)| wanted(name)).map(|(name, path)| (name, check(path))).collect()
}

fn check(path: &Path) -> Result {
    let source = fs::read_to_string(path)?;
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let output = match path.extension().and_then(|e| e.to_str()) {
        Some("rs") => shell::output(shell::cargo().args(["run", "--quiet", "--example", stem]))?,
        Some("c") => {
            let library = shell::build_library(false)?;
            let dir = library.parent().unwrap_or(Path::new("."));
            let program = shell::target().join(format!("example-{stem}"));
            let mut cc = Command::new("cc");
            cc.args(["-Wall", "-Wextra", "-Werror", "-O1", "-pthread", "-I"]).arg(shell::root().join("include"));
            cc.arg("-o").arg(&program).arg(path).arg(format!("-L{}", dir.display())).arg("-lslabwright");
            // The old tag: the new one gives way to LD_LIBRARY_PATH, which cargo points at whatever else was built.
            shell::run(cc.arg(format!("-Wl,--disable-new-dtags,-rpath,{}", dir.display())))?;
            shell::output(Command::new(program).env("SLABWRIGHT_VERIFY", "1"))?
        }
        _ => return Err("an example is a .rs or a .c".into()),
    };
    says(&source, &output)
}

/// Whether `output` has the lines that `source` promises.
fn says(source: &str, output: &str) -> Result {
    let promised: Vec<&str> = source.lines().filter_map(|line| line.trim().strip_prefix("//> ")).collect();
    if promised.is_empty() {
        return Err("it promises no line (`//> …`)".into());
    }
    let mut lines = output.lines();
    for wanted in promised {
        if !lines.any(|line| line.contains(wanted)) {
            return Err(format!("it does not print `{wanted}` there, but\n{output}").into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_in_order() {
        let source = "//> one\ncode();\n    //> two\n";
        assert!(says(source, "one\nbetween\nand two\n").is_ok());
        assert!(says(source, "two\none\n").is_err());
        assert!(says("code();", "anything\n").is_err());
    }
}
