//! Why slabwright falls short in some rows: `benches/reasons.tsv`, where who finds a reason writes it down.

use std::fs;

use crate::{Result, shell};

/// A row, what is compared there, or a part of its name (`time`, `resident`), and why.
#[derive(Default)]
pub struct Reasons(Vec<[String; 3]>);

impl Reasons {
    pub fn load() -> Result<Reasons> {
        Reasons::read(&fs::read_to_string(shell::root().join("benches/reasons.tsv"))?)
    }

    /// Lines `ROW<tab>FIGURE<tab>REASON`.
    pub fn read(text: &str) -> Result<Reasons> {
        let line = |line: &str| match line.split('\t').collect::<Vec<_>>()[..] {
            [row, figure, reason] => Ok([row, figure, reason].map(str::to_owned)),
            _ => Err(format!("`{line}` is no row, figure and reason").into()),
        };
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.map(line).collect::<Result<_>>().map(Reasons)
    }

    pub fn of(&self, row: &str, figure: &str) -> &str {
        let fits = |[name, part, _]: &&[String; 3]| name == row && figure.contains(part.as_str());
        self.0.iter().find(fits).map_or("not found yet", |[.., reason]| reason)
    }
}

/// Whether the sources have a workload of this name.
#[cfg(test)]
pub fn is_row(name: &str) -> bool {
    let benches = shell::root().join("benches");
    let source = |file: &str| fs::read_to_string(benches.join(file)).unwrap();
    let listed = |file: &str| source(file).contains(&format!("    {{\"{name}\", \""));
    benches.join(format!("programs/{name}.sh")).exists() || listed("workloads.c") || listed("containers.cc")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_found_by_row_and_part_of_the_figure() {
        let reasons = Reasons::read("# comment\nfork\ttime\tslow\nfork\tpeak\tmuch\n").unwrap();
        assert_eq!((reasons.of("fork", "CPU time"), reasons.of("fork", "peak resident")), ("slow", "much"));
        assert_eq!(reasons.of("fork", "resident at the end"), "not found yet");
        assert!(Reasons::read("fork slow\n").is_err());
    }

    #[test]
    fn every_reason_is_for_a_row_and_a_figure_that_there_are() {
        let figures = ["time", "CPU time", "resident", "peak resident", "resident at the end", "instructions"];
        for [row, figure, reason] in Reasons::load().unwrap().0 {
            assert!(is_row(&row) && figures.contains(&figure.as_str()) && !reason.contains('|'), "{row} {figure}");
        }
    }
}
