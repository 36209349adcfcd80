//! `cargo xtask bench`: slabwright and other allocators on the same workloads.
//!
//! Each workload (`benches/workloads.c`) is one process under one allocator, all preloaded as shared libraries in the same way. A
//! round runs it under each allocator in turn, so that what disturbs the machine disturbs all of them. Reported are medians.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use crate::{Result, shell};
use peers::Allocator;

mod peers;

#[derive(Default)]
pub struct Options {
    /// Fewer rounds.
    pub quick: bool,
    /// Rounds; 0 for 7, or 3 where quick.
    pub rounds: usize,
    /// Names of workloads or groups; all where empty.
    pub only: Vec<String>,
    /// Names of peers; all where empty.
    pub peers: Vec<String>,
}

const OWN: &str = "slabwright";

/// Most seconds for one run.
const LIMIT: u64 = 120;

/// What one run cost.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cost {
    /// Seconds of the work.
    time: f64,
    /// Seconds of CPU, user and system.
    cpu: f64,
    /// Most resident KiB.
    peak: f64,
    /// Resident KiB when the work was done.
    last: f64,
}

/// Names and units of the figures, and how to get at them.
type Figure = (&'static str, &'static str, fn(&Cost) -> f64);
const FIGURES: &[Figure] = &[
    ("time", "ms", |cost| cost.time * 1e3),
    ("CPU time", "ms", |cost| cost.cpu * 1e3),
    ("peak resident", "MiB", |cost| cost.peak / 1024.0),
    ("resident at the end", "MiB", |cost| cost.last / 1024.0),
];

/// Slabwright and the peers asked for, slabwright last.
fn allocators(wanted: &[String]) -> Result<Vec<Allocator>> {
    let (mut all, missing) = peers::peers(wanted)?;
    missing.iter().for_each(|line| eprintln!("{line}"));
    let library = shell::build_library(false)?;
    let own = Allocator::new(OWN, Some(library));
    peers::probe(&own)?;
    all.push(own);
    Ok(all)
}

/// Compiles `benches/SOURCE`; the program.
fn compile(source: &str) -> Result<PathBuf> {
    let dir = shell::target().join("bench");
    std::fs::create_dir_all(&dir)?;
    let program = dir.join(Path::new(source).file_stem().unwrap_or_default());
    let compiler = if source.ends_with(".cc") { "g++" } else { "gcc" };
    let source = shell::root().join("benches").join(source);
    shell::run(Command::new(compiler).args(["-O2", "-Wall", "-pthread"]).arg(source).arg("-o").arg(&program))?;
    Ok(program)
}

/// Runs `name` once.
fn measure(program: &Path, name: &str, allocator: &Allocator) -> Result<Cost> {
    let result = program.with_file_name("result");
    let mut command = Command::new(program);
    command.arg(name).stdout(std::fs::File::create(&result)?).stderr(Stdio::inherit());
    allocator.serve(&mut command);
    match shell::limited(&mut command, Duration::from_secs(LIMIT))? {
        shell::End::Status(status) if status.success() => {}
        shell::End::Status(status) => return Err(format!("{status}").into()),
        shell::End::TimeLimit => return Err(format!("more than {LIMIT} s").into()),
    }
    let text = std::fs::read_to_string(&result)?;
    let numbers: Vec<f64> = text.split_whitespace().map(str::parse).collect::<std::result::Result<_, _>>()?;
    match numbers[..] {
        [time, cpu, peak, last] => Ok(Cost { time, cpu, peak, last }),
        _ => Err(format!("cannot read `{text}`").into()),
    }
}

/// The value in the middle, and half the distance between the quartiles relative to it.
fn median(values: &[f64]) -> (f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |part: f64| {
        let place = part * (sorted.len() - 1) as f64;
        let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
        low + (high - low) * place.fract()
    };
    let middle = at(0.5);
    (middle, if middle > 0.0 { (at(0.75) - at(0.25)) / 2.0 / middle } else { 0.0 })
}

/// A row of a table: what it costs under each allocator, and the spread.
type Row = (String, Vec<Option<(f64, f64)>>);

/// Slabwright's ratio to the best of the others.
fn ratio(cells: &[Option<(f64, f64)>]) -> Option<f64> {
    let (own, others) = cells.split_last()?;
    let best = others.iter().flatten().map(|(value, _)| *value).min_by(f64::total_cmp)?;
    Some((*own)?.0 / best).filter(|ratio| ratio.is_finite())
}

/// A Markdown table, the worst ratios first; the geometric mean below.
fn table(title: &str, unit: &str, names: &[&str], rows: &[Row]) -> String {
    let mut text = format!("\n### {title} ({unit})\n\n| workload | {} | ratio to best peer |\n", names.join(" | "));
    writeln!(text, "|---|{}", "--:|".repeat(names.len() + 1)).unwrap();
    let mut sorted: Vec<&Row> = rows.iter().collect();
    sorted.sort_by(|a, b| ratio(&b.1).unwrap_or(f64::MAX).total_cmp(&ratio(&a.1).unwrap_or(f64::MAX)));
    for (workload, cells) in sorted {
        let shown = cells.iter().map(|cell| match cell {
            Some((value, spread)) => format!("{value:.1} ±{:.0} %", spread * 100.0),
            None => "failed".to_owned(),
        });
        let shown: Vec<String> = shown.collect();
        let ratio = ratio(cells).map_or("-".to_owned(), |ratio| format!("**{ratio:.2}**"));
        writeln!(text, "| {workload} | {} | {ratio} |", shown.join(" | ")).unwrap();
    }
    let ratios: Vec<f64> = rows.iter().filter_map(|(_, cells)| ratio(cells)).filter(|ratio| *ratio > 0.0).collect();
    if !ratios.is_empty() {
        let mean = (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp();
        writeln!(text, "\nGeometric mean of the ratios: {mean:.2}").unwrap();
    }
    text
}

/// Runs all that is asked for; the tables go to the output and, with the figures of every run, to `target/bench`.
pub fn bench(options: &Options) -> Result<ExitCode> {
    let program = compile("workloads.c")?;
    let allocators = allocators(&options.peers)?;
    let listing = shell::output(Command::new(&program).arg("--list"))?;
    let workloads: Vec<(&str, &str)> = listing
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(group, name)| {
            options.only.is_empty() || options.only.iter().any(|only| only == name || only == group)
        })
        .collect();
    if workloads.is_empty() {
        return Err(format!("no such workload; there are\n{listing}").into());
    }
    let rounds = match options.rounds {
        0 if options.quick => 3,
        0 => 7,
        rounds => rounds,
    };
    let names: Vec<&str> = allocators.iter().map(|allocator| allocator.name).collect();
    let mut tables: Vec<Vec<Row>> = vec![Vec::new(); FIGURES.len()];
    let mut csv = "group,workload,allocator,round,seconds,cpu_seconds,peak_kib,last_kib\n".to_owned();
    for (group, workload) in &workloads {
        let mut costs: BTreeMap<&str, Vec<Cost>> = BTreeMap::new();
        let mut failed: BTreeMap<&str, String> = BTreeMap::new();
        for round in 0..rounds {
            for allocator in &allocators {
                let name = &allocator.name;
                eprint!("\r{workload}: round {} of {rounds}, {name:<12}", round + 1);
                std::io::stderr().flush()?;
                if failed.contains_key(name) {
                    continue;
                }
                match measure(&program, workload, allocator) {
                    Ok(cost) => {
                        let Cost { time, cpu, peak, last } = cost;
                        writeln!(csv, "{group},{workload},{name},{round},{time},{cpu},{peak},{last}")?;
                        costs.entry(name).or_default().push(cost);
                    }
                    Err(error) => {
                        failed.insert(name, error.to_string());
                    }
                }
            }
        }
        for ((_, _, figure), rows) in FIGURES.iter().zip(&mut tables) {
            let cell = |name: &&str| {
                let costs = costs.get(name).filter(|_| !failed.contains_key(name))?;
                Some(median(&costs.iter().map(figure).collect::<Vec<_>>()))
            };
            rows.push(((*workload).to_owned(), names.iter().map(cell).collect()));
        }
        let shown = |rows: &Vec<Row>| {
            rows.last().and_then(|(_, cells)| ratio(cells)).map_or("-".to_owned(), |ratio| format!("{ratio:.2}"))
        };
        eprintln!("\r{workload:<24} time {:>6}  peak {:>6}            ", shown(&tables[0]), shown(&tables[2]));
        failed.iter().for_each(|(name, error)| eprintln!("    {name} failed: {error}"));
    }
    let mut report = String::new();
    for ((title, unit, _), rows) in FIGURES.iter().zip(&tables) {
        report += &table(title, unit, &names, rows);
    }
    let dir = shell::target().join("bench");
    std::fs::write(dir.join("results.csv"), csv)?;
    std::fs::write(dir.join("results.md"), &report)?;
    println!("{report}");
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spread() {
        assert_eq!(median(&[3.0, 1.0, 2.0]).0, 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]).0, 2.5);
        assert_eq!(median(&[5.0]), (5.0, 0.0));
        assert_eq!(median(&[1.0, 2.0, 3.0, 4.0, 5.0]), (3.0, 1.0 / 3.0));
    }

    #[test]
    fn ratio_is_to_the_best_of_the_others() {
        let cells = [Some((4.0, 0.0)), None, Some((2.0, 0.0)), Some((3.0, 0.0))];
        assert_eq!(ratio(&cells), Some(1.5));
        assert_eq!(ratio(&[Some((4.0, 0.0)), None]), None);
    }

    #[test]
    fn the_worst_row_comes_first() {
        let row = |name: &str, own: f64| (name.to_owned(), vec![Some((1.0, 0.0)), Some((own, 0.1))]);
        let text = table("time", "ms", &["peer", OWN], &[row("good", 0.5), row("bad", 2.0)]);
        assert!(text.find("bad").unwrap() < text.find("good").unwrap());
        assert!(text.ends_with("Geometric mean of the ratios: 1.00\n"));
    }
}
