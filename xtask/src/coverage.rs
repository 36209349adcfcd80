//! `cargo xtask coverage`: which rows of the coverage table have a test that passes, and which are open.
//!
//! The rows are in `tests/rows.tsv`. A test names those it shows:
//! * in Rust by a comment `rows: A1 B2` in front of the function that is the test, or whose documentation is;
//! * in C (`tests/c`) and in an example by the same comment anywhere in the file;
//! * in the i386 image by the beginning of its printed name: `("A1 B2 descriptors …", …)`; likewise what is only seen
//!   from outside of the image, by the names in `xtask/src/i386.rs`.
//!
//! Tests that name a row are run here, and only one that was seen to pass counts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use crate::{Result, examples, i386, shell};

/// A row of the table.
struct Row {
    id: String,
    item: String,
    /// It means nothing on i386.
    hosted_only: bool,
}

/// What runs a test.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Runner {
    /// A unit test of the library.
    Lib,
    /// An integration test.
    Test(String),
    /// An example in the documentation.
    Doc,
    /// A program in `examples`.
    Example,
}

/// A test and the rows it names.
#[derive(Debug)]
struct Tagged {
    runner: Runner,
    /// The path of the module that the file is, with colons behind it.
    module: String,
    name: String,
    rows: Vec<String>,
}

/// Whether `word` has the form of a row's id: a letter and a number.
fn is_row(word: &str) -> bool {
    let mut chars = word.chars();
    chars.next().is_some_and(|c| c.is_ascii_uppercase())
        && !chars.as_str().is_empty()
        && chars.all(|c| c.is_ascii_digit())
}

/// The rows of a line with the comment.
fn rows_of(line: &str) -> Option<Vec<String>> {
    let comment = line.trim_start().trim_start_matches(['/', '*']).trim_start().strip_prefix("rows:")?;
    let rows: Vec<String> = comment.split_whitespace().take_while(|word| is_row(word)).map(str::to_owned).collect();
    (!rows.is_empty()).then_some(rows)
}

/// The rows that a self-test of the image shows: the words that its name begins with.
fn rows_of_name(name: &str) -> Vec<String> {
    name.split(' ').take_while(|word| is_row(word)).map(str::to_owned).collect()
}

/// The tests of a Rust source.
fn in_rust(text: &str, runner: &Runner, module: &str) -> Vec<Tagged> {
    let mut found = Vec::new();
    let mut pending: Option<(Vec<String>, bool)> = None;
    for line in text.lines() {
        if let Some(rows) = rows_of(line) {
            pending = Some((rows, false));
        } else if let Some((_, test)) = &mut pending {
            *test |= line.trim() == "#[test]";
            let after = line.split_once("fn ").filter(|(before, _)| !before.contains("//"));
            if let Some((_, after)) = after {
                let name = after.split(['(', '<']).next().unwrap_or_default().to_owned();
                let (rows, test) = pending.take().expect("there is one");
                let runner = if test { runner.clone() } else { Runner::Doc };
                found.push(Tagged { runner, module: module.to_owned(), name, rows });
            }
        }
    }
    found
}

/// The module of a file below `src` or of an integration test's folder.
fn module_of(path: &Path) -> String {
    let mut parts: Vec<String> = path.with_extension("").iter().map(|p| p.to_string_lossy().into_owned()).collect();
    if matches!(parts.last().map(String::as_str), Some("mod" | "lib" | "main")) {
        parts.pop();
    }
    parts.iter().map(|part| format!("{part}::")).collect()
}

/// All tests that name rows, but for the image's.
fn tagged() -> Result<Vec<Tagged>> {
    let root = shell::root();
    let mut all = Vec::new();
    for path in shell::files(&root.join("src"), &["rs"]) {
        all.extend(in_rust(
            &fs::read_to_string(&path)?,
            &Runner::Lib,
            &module_of(path.strip_prefix(root.join("src"))?),
        ));
    }
    let tests = root.join("tests");
    for path in shell::files(&tests, &["rs"]) {
        let inside = path.strip_prefix(&tests)?;
        let name = inside.iter().next().map(|part| part.to_string_lossy().trim_end_matches(".rs").to_owned());
        let name = name.unwrap_or_default();
        let module = inside.strip_prefix(&name).map(module_of).unwrap_or_default();
        all.extend(in_rust(&fs::read_to_string(&path)?, &Runner::Test(name), &module));
    }
    let cabi = fs::read_to_string(tests.join("cabi.rs"))?;
    for path in shell::files(&tests.join("c"), &["c", "cc"]) {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let rows: Vec<String> = fs::read_to_string(&path)?.lines().filter_map(rows_of).flatten().collect();
        let test = cabi.lines().find_map(|line| line.trim().strip_suffix(&format!(": \"{file}\";")));
        if let Some(name) = test.filter(|_| !rows.is_empty()) {
            let runner = Runner::Test("cabi".to_owned());
            all.push(Tagged { runner, module: String::new(), name: name.to_owned(), rows });
        }
    }
    for path in shell::files(&root.join("examples"), &["rs", "c"]) {
        let rows: Vec<String> = fs::read_to_string(&path)?.lines().filter_map(rows_of).flatten().collect();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !rows.is_empty() {
            all.push(Tagged { runner: Runner::Example, module: String::new(), name, rows });
        }
    }
    Ok(all)
}

/// The outcome of a line of `cargo test`: name and whether it passed.
fn outcome(line: &str) -> Option<(&str, bool)> {
    let (name, result) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let name = name.split(" - should panic").next().unwrap_or(name);
    Some((name, result == "ok"))
}

/// Whether the test named `name` in a run is this one.
fn is(test: &Tagged, name: &str) -> bool {
    match test.runner {
        // `src/a.rs - a::f (line 3) - compile fail`
        Runner::Doc => {
            name.split(" (line").next().is_some_and(|path| path.ends_with(&format!("{}{}", test.module, test.name)))
        }
        _ => name.starts_with(&test.module) && name.rsplit("::").next() == Some(&test.name),
    }
}

/// Runs the tests of `runner`; what came of each.
fn run(runner: &Runner, tests: &[&Tagged]) -> Result<BTreeMap<String, bool>> {
    if *runner == Runner::Example {
        return Ok(examples::run(|name| tests.iter().any(|test| test.name == name)).into_iter().collect());
    }
    let mut cargo = shell::cargo();
    cargo.args(["test", "--package", "slabwright", "--no-fail-fast"]);
    match runner {
        Runner::Lib => cargo.args(["--features", "sim", "--lib"]),
        Runner::Test(name) if name == "cabi" => cargo.args(["--test", "cabi"]),
        Runner::Test(name) => cargo.args(["--features", "sim", "--test", name]),
        _ => cargo.args(["--doc"]),
    };
    cargo.arg("--").args(tests.iter().map(|test| &test.name));
    let mut results = BTreeMap::new();
    println!("{}", shell::line(&cargo));
    collect(&mut cargo, &mut results)?;
    Ok(results)
}

fn collect(cargo: &mut Command, results: &mut BTreeMap<String, bool>) -> Result {
    shell::lines(cargo, |line| {
        if let Some((name, passed)) = outcome(line) {
            // A name that comes twice must pass twice.
            results.entry(name.to_owned()).and_modify(|all| *all &= passed).or_insert(passed);
        }
    })?;
    Ok(())
}

/// Runs what names a row and prints the table; a failure where one of these tests did not pass.
pub fn coverage() -> Result<ExitCode> {
    let text = fs::read_to_string(shell::root().join("tests/rows.tsv"))?;
    let table: Vec<Row> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let mut cells = line.split('\t').map(str::to_owned);
            let mut cell = || cells.next().unwrap_or_default();
            let (id, item, _) = (cell(), cell(), cell());
            Row { id, item, hosted_only: cell() == "i386 -" }
        })
        .collect();
    let tests = tagged()?;
    let known: BTreeSet<&str> = table.iter().map(|row| row.id.as_str()).collect();
    for test in &tests {
        if let Some(unknown) = test.rows.iter().find(|row| !known.contains(row.as_str())) {
            return Err(format!("{} names the row {unknown}, which is not in tests/rows.tsv", test.name).into());
        }
    }
    let mut failed = Vec::new();
    let mut hosted: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let runners: BTreeSet<&Runner> = tests.iter().map(|test| &test.runner).collect();
    for runner in runners {
        let here: Vec<&Tagged> = tests.iter().filter(|test| test.runner == *runner).collect();
        let results = run(runner, &here)?;
        for test in here {
            let mut seen = results.iter().filter(|(name, _)| is(test, name)).peekable();
            if seen.peek().is_none() || seen.any(|(_, passed)| !passed) {
                failed.push(test.name.clone());
                continue;
            }
            test.rows.iter().for_each(|row| hosted.entry(row).or_default().push(&test.name));
        }
    }
    let image = i386::passed().unwrap_or_else(|error| {
        failed.push(format!("the i386 image: {error}"));
        BTreeSet::new()
    });
    let mut bare: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for name in &image {
        rows_of_name(name).into_iter().for_each(|row| bare.entry(row).or_default().push(name));
    }
    println!("\n{:<4} {:<38} {:<7} {:<7} tests", "row", "item", "hosted", "i386");
    let (mut open, mut cells) = (0, 0);
    for row in &table {
        let here = hosted.get(row.id.as_str());
        let there = bare.get(&row.id);
        let state = |found: bool, none: bool| {
            if none {
                "n/a"
            } else if found {
                "yes"
            } else {
                "open"
            }
        };
        let states = [state(here.is_some(), false), state(there.is_some(), row.hosted_only)];
        open += states.iter().filter(|state| **state == "open").count();
        cells += states.iter().filter(|state| **state != "n/a").count();
        let mut names: Vec<&str> = here.into_iter().flatten().copied().collect();
        let more = names.len().saturating_sub(3);
        names.truncate(3);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let image = there.and_then(|names| names.first()).map(|name| format!(" | {name}")).unwrap_or_default();
        let item: String = row.item.chars().take(38).collect();
        println!("{:<4} {item:<38} {:<7} {:<7} {}{more}{image}", row.id, states[0], states[1], names.join(", "));
    }
    println!("\n{} rows; {} of {cells} shown by a test that passed, {open} open", table.len(), cells - open);
    failed.iter().for_each(|name| println!("FAILED or not run: {name}"));
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_names() {
        let rows = |line: &str| rows_of(line).map(|rows| rows.join(" "));
        assert_eq!(rows("    // rows: G8 G9"), Some("G8 G9".to_owned()));
        assert_eq!(rows("/* rows: B1 B10 */"), Some("B1 B10".to_owned()));
        assert_eq!(rows("    rows: [Mutex<Row>; CPUS],"), None);
        assert_eq!(rows("let rows = 1; // G8"), None);
        assert_eq!(rows_of_name("A1 A10 F5 blocks of X"), ["A1", "A10", "F5"]);
        assert!(rows_of_name("UMA and NUMA").is_empty());
    }

    #[test]
    fn a_comment_is_for_the_next_function() {
        let text = "// rows: A1\n/// Why.\n#[test]\nfn one() {\n}\n#[test]\nfn two() {}\n// rows: I12\npub const fn three<T>() {}\n";
        let found = in_rust(text, &Runner::Lib, "a::");
        let found: Vec<_> =
            found.iter().map(|test| (test.runner.clone(), test.name.as_str(), test.rows.concat())).collect();
        assert_eq!(found, [(Runner::Lib, "one", "A1".to_owned()), (Runner::Doc, "three", "I12".to_owned())]);
    }

    #[test]
    fn only_a_pass_counts() {
        assert_eq!(outcome("test a::b ... ok"), Some(("a::b", true)));
        assert_eq!(outcome("test a::b - should panic ... ok"), Some(("a::b", true)));
        for other in ["FAILED", "ignored"] {
            assert_eq!(outcome(&format!("test a::b ... {other}")), Some(("a::b", false)));
        }
        assert_eq!(outcome("test result: ok. 1 passed"), None);
    }

    #[test]
    fn tests_are_found_in_their_modules() {
        let test =
            |runner, module: &str| Tagged { runner, module: module.to_owned(), name: "f".to_owned(), rows: Vec::new() };
        let lib = test(Runner::Lib, "zone::");
        assert!(is(&lib, "zone::tests::f") && !is(&lib, "slab::tests::f") && !is(&lib, "zone::tests::ff"));
        assert!(is(&test(Runner::Doc, "a::"), "src/a.rs - a::f (line 3) - compile fail"));
        assert_eq!(module_of(Path::new("zone/tests/mod.rs")), "zone::tests::");
        assert_eq!(module_of(Path::new("main.rs")), "");
    }
}
