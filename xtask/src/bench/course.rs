//! A workload through the rounds of a run: under each allocator in turn, each run with memory at hand and within a
//! limit of time.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::peers::Allocator;
use super::table::{Fault, Row};
use super::{Cost, programs, read};
use crate::Result;
use crate::shell::{self, End};

/// MiB made ready for a run of which nothing is known yet, and at most.
const WARM: (usize, usize) = (256, 2048);

/// Something to run.
pub struct Workload {
    pub group: String,
    pub name: String,
    pub runs: Runs,
}

/// How it is run.
pub enum Runs {
    /// By this program, called with the workload's name.
    Program(PathBuf),
    Script(programs::Script),
}

impl Workload {
    /// What the last run printed, where that is the same in every run.
    fn printed(&self) -> Option<Vec<u8>> {
        match &self.runs {
            Runs::Program(_) => None,
            Runs::Script(script) => fs::read(script.output()).ok(),
        }
    }

    /// Runs it once, with its result in `result`.
    fn measure(&self, allocator: &Allocator, result: &Path, limit: Duration) -> std::result::Result<Cost, Fault> {
        let end = || {
            let mut command = match &self.runs {
                Runs::Program(program) => {
                    let mut command = Command::new(program);
                    allocator.serve(command.arg(&self.name));
                    command.stdout(File::create(result)?);
                    command
                }
                Runs::Script(script) => script.command(allocator, result)?,
            };
            shell::limited(command.stdin(Stdio::null()), limit)
        };
        match end()? {
            End::Status(status) if status.success() => Ok(read(&fs::read_to_string(result)?)?),
            End::Status(status) => Err(Fault::Failed(status.to_string())),
            End::TimeLimit => Err(Fault::TooLong(limit)),
        }
    }
}

/// How many runs have to have ended before they say what is long.
const KNOWN: usize = 3;

/// How long a run may take where those that ended took so long: one that hangs must not cost the others their turn, and
/// one on a machine that is slow is none that hangs. (Measured by the longest of them, one that crawls would let the
/// next one hang for twenty minutes.)
fn limit(ended: &[Duration]) -> Duration {
    if ended.len() < KNOWN {
        return Duration::from_secs(300);
    }
    let mut sorted = ended.to_vec();
    sorted.sort();
    Duration::from_secs(10) + 10 * sorted[sorted.len() / 2]
}

pub struct Course {
    workload: Workload,
    /// MiB that a run finds at hand (`benches/warm.c`).
    needed: usize,
    /// How long the runs took that ended.
    ended: Vec<Duration>,
    /// What the first run printed and under which allocator.
    printed: Option<(Vec<u8>, &'static str)>,
    /// What the last round took.
    pub took: Duration,
    /// It goes through no further round.
    pub is_over: bool,
}

impl Course {
    pub fn new(workload: Workload) -> Course {
        Course { workload, needed: WARM.0, ended: Vec::new(), printed: None, took: Duration::ZERO, is_over: false }
    }

    pub fn name(&self) -> &str {
        &self.workload.name
    }

    /// A row with nothing in it yet.
    pub fn row(&self, allocators: &[Allocator]) -> Row {
        let Workload { group, name, .. } = &self.workload;
        Row { group: group.clone(), name: name.clone(), cells: allocators.iter().map(|_| Ok(Vec::new())).collect() }
    }

    /// Runs the workload once under each allocator, each time beginning with another one. One under which it failed or
    /// took too long is not asked again.
    pub fn round(
        &mut self,
        round: usize,
        allocators: &[Allocator],
        row: &mut Row,
        csv: &mut File,
        mut before: impl FnMut(&Allocator),
    ) -> Result {
        let (begin, warm, result) = (Instant::now(), super::compile("warm.c")?, shell::target().join("bench/result"));
        for at in (0..allocators.len()).map(|at| (at + round) % allocators.len()) {
            let (allocator, cell) = (&allocators[at], &mut row.cells[at]);
            let Ok(costs) = cell else { continue };
            shell::run(Command::new(&warm).arg(self.needed.to_string()))?;
            before(allocator);
            match self.once(allocator, &result) {
                Ok(cost) => {
                    let (Workload { group, name, .. }, Cost { time, cpu, peak, last, .. }) = (&self.workload, &cost);
                    self.needed = self.needed.max(*peak as usize / 1024 * 5 / 4).min(WARM.1);
                    writeln!(csv, "{group},{name},{},{round},{time},{cpu},{peak},{last}", allocator.name)?;
                    costs.push(cost);
                }
                Err(fault) => *cell = Err(fault),
            }
        }
        self.took = begin.elapsed();
        Ok(())
    }

    fn once(&mut self, allocator: &Allocator, result: &Path) -> std::result::Result<Cost, Fault> {
        let begin = Instant::now();
        let cost = self.workload.measure(allocator, result, limit(&self.ended))?;
        self.ended.push(begin.elapsed());
        if let Some(now) = self.workload.printed() {
            let (first, of) = self.printed.get_or_insert((now.clone(), allocator.name));
            if *first != now {
                return Err(Fault::Failed(format!("it prints something else than under {of}")));
            }
        }
        Ok(cost)
    }
}

/// What `rounds` rounds of all courses will still take when `done` courses have been through round `round`, where no
/// round takes longer than the last one: a course that has not been through one takes as long as those that have on
/// average.
pub fn left(courses: &[Course], round: usize, done: usize, rounds: usize) -> Duration {
    let known: Vec<Duration> = courses.iter().map(|course| course.took).filter(|took| !took.is_zero()).collect();
    let Some(mean) = known.iter().sum::<Duration>().checked_div(known.len() as u32) else { return Duration::ZERO };
    let one = |(at, course): (usize, &Course)| {
        if course.is_over {
            return Duration::ZERO;
        }
        let times = rounds - round - usize::from(at < done);
        (if course.took.is_zero() { mean } else { course.took }) * times as u32
    };
    courses.iter().enumerate().map(one).sum()
}

/// Ends those courses that take longest, until the rounds from `round` on fit into `time`; their names.
pub fn fit(courses: &mut [Course], round: usize, rounds: usize, time: Duration) -> Vec<String> {
    let mut ended = Vec::new();
    while left(courses, round, 0, rounds) > time {
        let Some(longest) = courses.iter_mut().filter(|course| !course.is_over).max_by_key(|course| course.took) else {
            break;
        };
        longest.is_over = true;
        ended.push(longest.name().to_owned());
    }
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    fn course(seconds: u64) -> Course {
        let runs = Runs::Program(PathBuf::from("sh"));
        let workload = Workload { group: "g".to_owned(), name: "w".to_owned(), runs };
        Course { took: Duration::from_secs(seconds), ..Course::new(workload) }
    }

    #[test]
    fn what_is_left_is_what_the_last_rounds_took() {
        let left = |courses: &[u64], round, done, rounds| {
            let courses: Vec<Course> = courses.iter().map(|seconds| course(*seconds)).collect();
            left(&courses, round, done, rounds).as_secs()
        };
        assert_eq!(left(&[5, 7], 1, 1, 3), 5 + 7 * 2);
        assert_eq!(left(&[5, 7, 0, 0], 0, 2, 2), 5 + 7 + 2 * 6 + 2 * 6);
        assert_eq!(left(&[5, 7], 2, 2, 3), 0);
        assert_eq!(left(&[0], 0, 0, 7), 0);
    }

    #[test]
    fn those_that_take_longest_are_left_out_where_time_is_short() {
        let mut courses = [5, 50, 7].map(course);
        assert_eq!(fit(&mut courses, 3, 7, Duration::from_secs(4 * 62)), [""; 0]);
        assert_eq!(fit(&mut courses, 3, 7, Duration::from_secs(4 * 61)), ["w"]);
        assert!(courses[1].is_over && !courses[2].is_over);
        assert_eq!(left(&courses, 3, 1, 7).as_secs(), 3 * 5 + 4 * 7);
        assert_eq!(fit(&mut courses, 3, 7, Duration::ZERO).len(), 2);
    }

    #[test]
    fn a_run_has_the_more_time_the_longer_others_took() {
        let limit = |seconds: &[u64]| {
            let ended: Vec<Duration> = seconds.iter().map(|seconds| Duration::from_secs(*seconds)).collect();
            limit(&ended).as_secs()
        };
        assert_eq!(limit(&[1, 60, 2]), 30);
        assert_eq!(limit(&[60, 60, 60, 60]), 610);
        assert_eq!((limit(&[]), limit(&[1, 1])), (300, 300));
    }

    /// A program that sleeps for as many seconds as its library's name says, on behalf of an allocator.
    #[test]
    fn one_that_takes_too_long_is_ended() {
        let dir = std::env::temp_dir().join(format!("slabwright-course-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (program, result) = (dir.join("program"), dir.join("result"));
        fs::write(&program, "#!/bin/sh\nsleep ${LD_PRELOAD##*/}\necho 1 1 1 1\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&program, mode).unwrap();
        let runs = Runs::Program(program);
        let workload = Workload { group: "g".to_owned(), name: "w".to_owned(), runs };
        let under = |seconds: &str, limit| {
            workload.measure(&Allocator::new("sleeper", dir.join(seconds)), &result, Duration::from_millis(limit))
        };
        assert!(under("0", 5000).is_ok());
        assert_eq!(under("60", 50), Err(Fault::TooLong(Duration::from_millis(50))));
        fs::remove_dir_all(&dir).unwrap();
    }
}
