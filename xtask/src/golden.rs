//! The instructions of the fast paths against `benches/golden.tsv`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::test::Outcome;
use crate::{Result, bench, shell};

/// Counts by name, from lines `NAME<tab>COUNT`.
fn read(text: &str) -> Result<BTreeMap<String, u64>> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, count) = line.split_once('\t').ok_or_else(|| format!("`{line}` is no name and count"))?;
            Ok((name.to_owned(), count.parse()?))
        })
        .collect()
}

/// What the paths take now.
fn count() -> Result<BTreeMap<String, u64>> {
    let library = shell::build_library(false)?;
    let step = bench::compile("step.c")?;
    let mut build = shell::cargo();
    build.args(["build", "--quiet", "--release", "--package", "slabwright-bench-programs"]);
    shell::run(build.args(["--features", "slabwright", "--bin", "golden"]))?;
    let name = library.file_name().unwrap_or_default();
    let c = shell::output(Command::new(&step).arg(name).arg(bench::compile("golden.cc")?).env("LD_PRELOAD", &library))?;
    let rust = shell::output(Command::new(&step).arg("-").arg(shell::target().join("release/golden")))?;
    read(&(c + &rust))
}

/// Instructions of `malloc(64)` and the `free` of it.
pub fn pair() -> Result<u64> {
    let counts = count()?;
    let of = |name| counts.get(name).ok_or_else(|| format!("{name} was not counted"));
    Ok(of("malloc-64")? + of("free-64")?)
}

/// What is wrong with a count.
fn fault(counted: Option<u64>, golden: Option<u64>) -> Option<String> {
    match (counted, golden) {
        (Some(counted), Some(golden)) if counted > golden => {
            Some(format!("{counted} instructions, {golden} in benches/golden.tsv"))
        }
        (Some(0), _) => Some("no instruction was counted".to_owned()),
        (Some(counted), None) => Some(format!("{counted} instructions, not in benches/golden.tsv")),
        (None, _) => Some("in benches/golden.tsv, but not counted".to_owned()),
        _ => None,
    }
}

pub fn test() -> Outcome {
    let mut outcome = Outcome::default();
    if let Err(error) = test_all(&shell::root().join("benches/golden.tsv"), &mut outcome) {
        outcome.add("instructions", Err(error));
    }
    outcome
}

fn test_all(golden: &Path, outcome: &mut Outcome) -> Result {
    let (counted, golden) = (count()?, read(&fs::read_to_string(golden)?)?);
    let mut names: Vec<&String> = counted.keys().chain(golden.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let (counted, golden) = (counted.get(name).copied(), golden.get(name).copied());
        match fault(counted, golden) {
            Some(fault) => outcome.add(name, Err(fault.into())),
            None => outcome.add(&format!("{name}: {} instructions", counted.unwrap_or_default()), Ok(())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_golden_fails_and_fewer_does_not() {
        assert_eq!(fault(Some(5), Some(5)), None);
        assert_eq!(fault(Some(4), Some(5)), None);
        assert_eq!(fault(Some(6), Some(5)).unwrap(), "6 instructions, 5 in benches/golden.tsv");
        assert!(fault(None, Some(5)).is_some());
        assert!(fault(Some(6), None).is_some() && fault(Some(0), Some(5)).is_some());
    }

    #[test]
    fn reads_names_and_counts() {
        let counts = read("# comment\na-1\t5\nb\t7\n").unwrap();
        assert_eq!((counts["a-1"], counts["b"]), (5, 7));
        assert!(read("a 5\n").is_err());
    }
}
