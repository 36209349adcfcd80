//! `cargo xtask bench`: slabwright and other allocators on the same workloads.
//!
//! Each workload is one run of a program under one allocator, all preloaded as shared libraries in the same way: those
//! written for this project (`benches/workloads.c`, `benches/containers.cc`) and real programs (`benches/programs`). A
//! round runs a workload under each allocator in turn, beginning with another one each time, so that what disturbs the
//! machine disturbs all of them; all workloads have their first round before one has its second, so that a run that is
//! broken off has something to say of each. Reported are medians, what they say to each target (`targets.rs`), and
//! where slabwright falls short, why (`benches/reasons.tsv`).

use std::fs;
use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use crate::{Result, golden, shell};
use course::{Course, Runs, Workload};
use peers::Allocator;
use table::Row;

mod course;
mod paired;
mod peers;
mod plot;
mod programs;
mod reasons;
mod table;
mod targets;

#[derive(Default)]
pub struct Options {
    /// Fewer rounds.
    pub quick: bool,
    /// Rounds; 0 for 7, or 3 where quick.
    pub rounds: usize,
    /// Minutes that it may take; 0 for as many as it does.
    pub minutes: u64,
    /// Names of workloads or groups; all where empty.
    pub only: Vec<String>,
    /// Names of peers; all where empty.
    pub peers: Vec<String>,
    /// Only name the workloads.
    pub list: bool,
    /// All allocators in one process.
    pub paired: bool,
}

impl Options {
    /// Refuses what says two things at once.
    fn check(&self) -> Result<()> {
        if self.paired && self.minutes > 0 {
            return Err("--paired takes --rounds, and no --minutes".into());
        }
        Ok(())
    }

    /// Rounds, where `usual` many are without options, and `quick` many where it is to be quick.
    fn rounds(&self, usual: usize, quick: usize) -> usize {
        match self.rounds {
            0 if self.quick => quick,
            0 => usual,
            rounds => rounds,
        }
    }
}

const OWN: &str = "slabwright";
/// Rounds that each workload goes through, however long they take.
const LEAST_ROUNDS: usize = 3;

/// What one run cost.
#[derive(Clone, Debug, Default, PartialEq)]
struct Cost {
    /// Seconds of the work.
    time: f64,
    /// Seconds of CPU, user and system.
    cpu: f64,
    /// Most resident KiB.
    peak: f64,
    /// Resident KiB when the work was done.
    last: f64,
    /// How many calls the work was, and KiB that the program still held; 0 where it does not say.
    operations: f64,
    live: f64,
    /// Seconds, the least that the work can take; 0 where it does not say.
    bound: f64,
    /// Resident KiB over time.
    resident: Vec<f64>,
}

/// Reads what `benches/harness.h` describes.
fn read(text: &str) -> Result<Cost> {
    let number = |word: &str| word.parse::<f64>().map_err(|_| format!("cannot read `{text}`"));
    let mut lines = text.lines();
    let first: Vec<f64> =
        lines.next().unwrap_or_default().split(' ').map(number).collect::<std::result::Result<_, _>>()?;
    let [time, cpu, peak, last] = first[..] else { return Err(format!("cannot read `{text}`").into()) };
    let mut cost = Cost { time, cpu, peak, last, ..Cost::default() };
    for line in lines {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["operations", count] => cost.operations = number(count)?,
            ["live", kib] => cost.live = number(kib)?,
            ["bound", seconds] => cost.bound = number(seconds)?,
            ["resident", _, kib] => cost.resident.push(number(kib)?),
            _ => return Err(format!("cannot read `{line}`").into()),
        }
    }
    Ok(cost)
}

/// Compiles `benches/SOURCE`; the program.
pub fn compile(source: &str) -> Result<PathBuf> {
    let dir = shell::target().join("bench");
    fs::create_dir_all(&dir)?;
    let program = dir.join(Path::new(source).file_stem().unwrap_or_default());
    let compiler = if source.ends_with(".cc") { "g++" } else { "gcc" };
    let source = shell::root().join("benches").join(source);
    shell::run(Command::new(compiler).args(["-O2", "-Wall", "-pthread"]).arg(source).arg("-o").arg(&program))?;
    Ok(program)
}

/// All workloads.
fn workloads() -> Result<Vec<Workload>> {
    let mut all = Vec::new();
    for source in ["workloads.c", "containers.cc"] {
        let program = compile(source)?;
        for line in shell::output(Command::new(&program).arg("--list"))?.lines() {
            let (group, name) = line.split_once(' ').ok_or("a workload has a group and a name")?;
            let runs = Runs::Program(program.clone());
            all.push(Workload { group: group.to_owned(), name: name.to_owned(), runs });
        }
    }
    for (name, script) in programs::scripts()? {
        all.push(Workload { group: script.group().to_owned(), name, runs: Runs::Script(script) });
    }
    Ok(all)
}

/// Slabwright and the peers asked for, slabwright last, and a line for each peer that cannot be had.
fn allocators(wanted: &[String]) -> Result<(Vec<Allocator>, Vec<String>)> {
    let (mut all, missing) = peers::peers(wanted)?;
    let own = Allocator::new(OWN, shell::build_library(false)?);
    peers::probe(&own)?;
    all.push(own);
    Ok((all, missing))
}

/// What the figures were taken on.
fn machine() -> String {
    let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or(String::new(), |(_, value)| value.trim().to_owned())
    };
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get());
    let gib = field(&file("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0.0) / 1048576.0;
    let model = field(&file("/proc/cpuinfo"), "model name");
    format!("{cpus} CPUs ({model}), {gib:.0} GiB, Linux {}", file("/proc/sys/kernel/osrelease").trim())
}

/// Runs all that is asked for; the tables go to the output and, with the figures of every run and the plots, to
/// `target/bench`.
pub fn bench(options: &Options) -> Result<ExitCode> {
    options.check()?;
    peers::check(&options.peers)?;
    if options.paired {
        return paired::paired(options);
    }
    let reasons = reasons::Reasons::load()?;
    let mut workloads = workloads()?;
    if options.list {
        workloads.iter().for_each(|workload| println!("{:<12} {}", workload.group, workload.name));
        return Ok(ExitCode::SUCCESS);
    }
    let named = |workload: &Workload, only: &String| *only == workload.name || *only == workload.group;
    if let Some(unknown) = options.only.iter().find(|only| !workloads.iter().any(|workload| named(workload, only))) {
        return Err(format!("there is no workload or group `{unknown}`; --list names them").into());
    }
    workloads.retain(|workload| options.only.is_empty() || options.only.iter().any(|only| named(workload, only)));
    let mut notes = Vec::new();
    programs::prepare(&mut workloads, &mut notes)?;
    let (allocators, missing) = allocators(&options.peers)?;
    notes.extend(missing);
    // The other half of what is said of pairs.
    let pairs = workloads.iter().any(|workload| workload.name == "pair-64");
    let instructions = if pairs {
        golden::pair().map_err(|error| notes.push(format!("no instructions counted: {error}"))).ok()
    } else {
        None
    };
    notes.iter().for_each(|note| eprintln!("{note}"));
    let rounds = options.rounds(7, 3);
    let names: Vec<&str> = allocators.iter().map(|allocator| allocator.name).collect();
    if !options.only.is_empty() || !options.peers.is_empty() {
        notes.push("This is a part: other workloads or peers were not asked for.".to_owned());
    }
    let machine = machine();
    let dir = shell::target().join("bench");
    let mut csv = fs::File::create(dir.join("results.csv"))?;
    writeln!(csv, "group,workload,allocator,round,seconds,cpu_seconds,peak_kib,last_kib")?;
    let mut courses: Vec<Course> = workloads.into_iter().map(Course::new).collect();
    let mut rows: Vec<Row> = Vec::new();
    let mut report = String::new();
    let is_terminal = std::io::stderr().is_terminal();
    let laid = |round: usize| dir.join(format!("libraries.{}", round % 2));
    (0..2).for_each(|round| drop(fs::remove_dir_all(laid(round))));
    let begin = Instant::now();
    for round in 0..rounds {
        let allocators = peers::lay_anew(&allocators, &laid(round + 1))?;
        // Only now, so that the new files do not get its pages.
        let _ = fs::remove_dir_all(laid(round));
        if options.minutes > 0 && round >= LEAST_ROUNDS {
            let time = Duration::from_secs(60 * options.minutes).saturating_sub(begin.elapsed());
            let ended = course::fit(&mut courses, round, rounds, time);
            notes
                .extend(ended.iter().map(|name| format!("{name} went through {round} rounds only, for lack of time.")));
        }
        for at in 0..courses.len() {
            if courses[at].is_over {
                continue;
            }
            if round == 0 {
                rows.push(courses[at].row(&allocators));
            }
            let minutes = course::left(&courses, round, at, rounds).as_secs().div_ceil(60);
            let place = format!("[{}/{rounds} {}/{}, {minutes} min left]", round + 1, at + 1, courses.len());
            let name = courses[at].name().to_owned();
            courses[at].round(round, &allocators, &mut rows[at], &mut csv, |allocator| {
                if is_terminal {
                    eprint!("\r{place} {name:<24} {:<16}", allocator.name);
                }
            })?;
            eprintln!("{}{place} {}", if is_terminal { "\r" } else { "" }, table::line(&rows[at], &names));
        }
        // After each round, so that a run that is broken off has something to show.
        let verdicts = targets::verdicts(&rows, &names, instructions, &reasons);
        report = format!("Medians of {} interleaved rounds on {machine}.\n", round + 1);
        notes.iter().for_each(|note| report += &format!("\n{note}\n"));
        report += &(targets::report(&verdicts) + &table::report(&rows, &names, &reasons));
        fs::write(dir.join("targets.csv"), targets::csv(&verdicts))?;
        fs::write(dir.join("results.md"), &report)?;
        for (name, svg) in plot::plots(&rows, &names) {
            fs::write(dir.join(format!("{name}.svg")), svg)?;
        }
    }
    let _ = fs::remove_dir_all(laid(rounds));
    println!("{report}\nEvery run: {0}/results.csv. Targets: {0}/targets.csv. Plots: {0}/*.svg", dir.display());
    Ok(if rows.iter().any(|row| row.cells.last().is_some_and(|cell| cell.is_err())) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paired_rounds_have_no_minutes() {
        let options = |paired, minutes| Options { paired, minutes, ..Options::default() };
        assert!(options(true, 5).check().is_err());
        assert!(options(true, 0).check().is_ok() && options(false, 5).check().is_ok());
    }

    #[test]
    fn reads_what_a_workload_prints() {
        let cost = read("1.5 2.5 300 200\noperations 10\nlive 7\nbound 0.5\nresident 0 1\nresident 1 2\n").unwrap();
        assert_eq!((cost.time, cost.cpu, cost.peak, cost.last), (1.5, 2.5, 300.0, 200.0));
        assert_eq!((cost.operations, cost.live, cost.bound), (10.0, 7.0, 0.5));
        assert_eq!(cost.resident, [1.0, 2.0]);
        assert!(read("1.5 2.5 300\n").is_err());
        assert!(read("1.5 2.5 300 x\n").is_err());
        assert!(read("1.5 2.5 300 200\nnoise\n").is_err());
    }
}
