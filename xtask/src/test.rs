//! `cargo xtask test`: every test of the project, in parts.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use crate::{Result, elf, examples, golden, i386, programs, readme, shell, width};

#[derive(Default)]
pub struct Options {
    /// Names of parts to run; all where empty.
    pub parts: Vec<String>,
    /// Only name the parts.
    pub list: bool,
    /// Names of programs to run; all where empty.
    pub programs: Vec<String>,
    /// Another allocator's library for the programs.
    pub library: Option<PathBuf>,
}

/// Tests that passed, and a line for each that failed.
#[derive(Default)]
pub struct Outcome {
    pub passed: usize,
    pub failed: Vec<String>,
}

impl Outcome {
    pub fn add(&mut self, name: &str, result: Result) {
        match result {
            Ok(()) => {
                println!("  ok      {name}");
                self.passed += 1;
            }
            Err(error) => {
                println!("  FAILED  {name}: {error}");
                let error = error.to_string();
                self.failed.push(format!("{name}: {}", error.lines().next().unwrap_or_default()));
            }
        }
    }

    fn one(name: &str, result: Result) -> Outcome {
        let mut outcome = Outcome::default();
        outcome.add(name, result);
        outcome
    }
}

type Part = (&'static str, &'static str, fn(&Options) -> Outcome);

/// The parts in the order they run: what fails quickest comes first.
const PARTS: &[Part] = &[
    ("format", "the sources are formatted, comments too", |_| {
        let mut outcome = Outcome::one("cargo fmt", shell::run(shell::cargo().args(["fmt", "--all", "--check"])));
        outcome.add("width of comments", width::check());
        outcome
    }),
    ("lint", "no warning, with and without the simulated machine", |_| {
        let mut outcome = Outcome::default();
        for features in [&["--all-targets", "--features", "sim"][..], &[]] {
            let mut clippy = shell::cargo();
            clippy.args(["clippy", "--quiet", "--workspace"]).args(features);
            clippy.args(["--", "-D", "warnings", "-D", "clippy::undocumented_unsafe_blocks"]);
            outcome.add(&format!("cargo clippy {}", features.join(" ")), shell::run(&mut clippy));
        }
        outcome
    }),
    ("doc", "the documentation builds without a warning", |_| {
        let mut doc = shell::cargo();
        doc.args([
            "doc",
            "--quiet",
            "--no-deps",
            "--document-private-items",
            "--features",
            "sim",
            "--package",
            "slabwright",
        ]);
        Outcome::one("cargo doc", shell::run(doc.env("RUSTDOCFLAGS", "-D warnings")))
    }),
    ("build", "the release libraries", |_| Outcome::one("cargo build --release", shell::build_library(true).map(drop))),
    ("elf", "what the libraries export and need", |_| {
        let mut outcome = Outcome::default();
        match shell::build_library(false) {
            Ok(library) => elf::check(&library).into_iter().for_each(|(name, result)| outcome.add(name, result)),
            Err(error) => outcome.add("build", Err(error)),
        }
        outcome
    }),
    ("core", "unit and integration tests", |_| {
        let mut test = shell::cargo();
        test.args(["test", "--quiet", "--no-fail-fast", "--package", "slabwright", "--features", "sim", "--lib"]);
        for name in test_files().iter().filter(|name| !APART.contains(&name.as_str())) {
            test.args(["--test", name]);
        }
        cargo_test(&mut test)
    }),
    ("slob", "the same with first fit in the place of caches, where that makes a difference", |_| {
        let mut test = shell::cargo();
        test.args(["test", "--quiet", "--no-fail-fast", "--package", "slabwright", "--features", "sim,slob", "--lib"]);
        for name in WITH_SLOB {
            test.args(["--test", name]);
        }
        cargo_test(&mut test)
    }),
    ("members", "tests of the other packages of the workspace", |_| {
        cargo_test(shell::cargo().args(["test", "--quiet", "--no-fail-fast", "--workspace", "--exclude", "slabwright"]))
    }),
    ("examples", "the examples in the documentation and in `examples`", |_| {
        let mut outcome = cargo_test(shell::cargo().args(["test", "--quiet", "--package", "slabwright", "--doc"]));
        examples::test(&mut outcome);
        outcome
    }),
    ("loom", "every interleaving of the lock-free protocols", |_| {
        let mut test = shell::cargo();
        test.args(["test", "--quiet", "--release", "--package", "slabwright", "--test", "loom"]);
        test.arg("--target-dir").arg(shell::target().join("loom"));
        cargo_test(test.env("RUSTFLAGS", "--cfg loom"))
    }),
    ("cabi", "the C and C++ interface", |_| match shell::build_library(false) {
        Ok(_) => cargo_test(shell::cargo().args(["test", "--quiet", "--package", "slabwright", "--test", "cabi"])),
        Err(error) => Outcome::one("build", Err(error)),
    }),
    ("golden", "the fast paths take no more instructions than noted", |_| golden::test()),
    ("i386", "the bare-metal image under QEMU", |_| i386::test()),
    ("readme", "the commands of README.md, as written", |_| readme::test()),
    ("programs", "real programs, compared with their run on the C library's malloc", programs::test),
];

/// Integration tests that are run with the feature `slob`, too: those that ask for small blocks.
const WITH_SLOB: &[&str] = &["global_alloc", "heap", "kernel_api"];

/// Integration tests that have a part of their own.
const APART: &[&str] = &["loom", "cabi"];

/// The integration tests of the root package.
fn test_files() -> Vec<String> {
    let entries = std::fs::read_dir(shell::root().join("tests")).into_iter().flatten().flatten();
    let is_test = |path: &PathBuf| path.extension().is_some_and(|e| e == "rs") || path.join("main.rs").exists();
    let files = entries.map(|entry| entry.path()).filter(is_test);
    let mut names: Vec<String> = files.filter_map(|p| Some(p.file_stem()?.to_str()?.to_owned())).collect();
    names.sort();
    names
}

/// Runs `cargo test` and adds up what its test programs report.
fn cargo_test(command: &mut Command) -> Outcome {
    let mut outcome = Outcome::default();
    let mut failed = 0;
    let status = shell::lines(command, |line| {
        println!("{line}");
        if let Some((p, f)) = totals(line) {
            outcome.passed += p;
            failed += f;
        } else if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            outcome.failed.push(name.to_owned());
        }
    });
    while outcome.failed.len() < failed {
        outcome.failed.push("a test".to_owned());
    }
    match status {
        Ok(status) if status.success() => {}
        Ok(status) if failed == 0 => outcome.failed.push(format!("{}: {status}", shell::line(command))),
        Ok(_) => {}
        Err(error) => outcome.failed.push(error.to_string()),
    }
    outcome
}

/// Passed and failed of a line `test result: ok. 3 passed; 0 failed; …`.
fn totals(line: &str) -> Option<(usize, usize)> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let count = |word: &str| counts.split("; ").find_map(|part| part.strip_suffix(word)?.trim().parse().ok());
    Some((count("passed")?, count("failed")?))
}

/// Runs the parts asked for. Failures do not stop the later parts; they are listed at the end.
pub fn test(options: &Options) -> Result<ExitCode> {
    if options.list {
        PARTS.iter().for_each(|(name, what, _)| println!("{name:<10} {what}"));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(unknown) = options.parts.iter().find(|part| !PARTS.iter().any(|(name, ..)| name == part)) {
        return Err(format!("there is no part `{unknown}`; --list names them").into());
    }
    let mut total = Outcome::default();
    let mut summary = Vec::new();
    for (name, what, part) in PARTS {
        if !options.parts.is_empty() && !options.parts.iter().any(|wanted| wanted == name) {
            continue;
        }
        println!("\n=== {name}: {what}");
        let start = Instant::now();
        let outcome = part(options);
        let seconds = start.elapsed().as_secs_f64();
        let line =
            format!("{name:<10} {:>5} passed {:>3} failed {seconds:>7.1} s", outcome.passed, outcome.failed.len());
        println!("--- {line}");
        summary.push(line);
        total.passed += outcome.passed;
        total.failed.extend(outcome.failed.into_iter().map(|failure| format!("{name}: {failure}")));
    }
    println!("\n=== summary");
    summary.iter().for_each(|line| println!("{line}"));
    total.failed.iter().for_each(|failure| println!("FAILED {failure}"));
    println!("{} passed, {} failed", total.passed, total.failed.len());
    Ok(if total.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_totals_of_cargo_test() {
        let line = "test result: FAILED. 8 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.06s";
        assert_eq!(totals(line), Some((8, 1)));
        assert_eq!(totals("test result: ok. 12 passed; 0 failed; 0 ignored"), Some((12, 0)));
        assert_eq!(totals("test layering ... ok"), None);
    }
}
