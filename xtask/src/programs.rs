//! Real programs on slabwright: each does real work, whose output is compared with the same work on the C library's
//! malloc.
//!
//! A program is a script `tests/programs/NAME.sh`, run by `sh -eu` in an empty directory, with the library preloaded
//! into all it starts. `$HERE` is the scripts' directory. Compared are the exit code, the standard output and every
//! file that it leaves in `out/`. The error output of the program itself is appended to the file `served`: statistics
//! must be in there, which shows that it was slabwright that served it. Comments at the top of a script say what it
//! wants: `# needs: COMMAND…` (each is in [`PACKAGES`]), `# limit: SECONDS` for one run, `# alone` for one that wants
//! all CPUs, `# modes: MODE…` if not all of [`MODES`].

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::shell::{End, is_command, limited};
use crate::test::{Options, Outcome};
use crate::{Result, shell};

/// The package that has a command.
pub const PACKAGES: &[(&str, &str)] = &[
    ("cc1plus", "g++"),
    ("g++", "g++"),
    ("gcc", "gcc"),
    ("git", "git"),
    ("java", "default-jdk-headless"),
    ("javac", "default-jdk-headless"),
    ("lua", "lua5.4"),
    ("memcached", "memcached"),
    ("nginx", "nginx-light"),
    ("node", "nodejs"),
    ("perl", "perl"),
    ("php", "php-cli"),
    ("python3", "python3"),
    ("redis-benchmark", "redis-tools"),
    ("redis-server", "redis-server"),
    ("rustc", "the Rust toolchain"),
    ("sqlite3", "sqlite3"),
];

/// Seconds that one run may take where the script does not say: many times what it takes on an idle machine, so that
/// only a hang exceeds it.
const LIMIT: u64 = 300;

/// What a run is done under, and its environment.
const MODES: &[(&str, &[(&str, &str)])] = &[
    ("default", &[]),
    ("no-rseq", &[("SLABWRIGHT_RSEQ", "0")]),
    ("no-rseq-glibc", &[("GLIBC_TUNABLES", "glibc.pthread.rseq=0")]),
    ("verify", &[("SLABWRIGHT_VERIFY", "1")]),
];

/// First word of each line that slabwright writes.
const OWN_LINE: &str = "slabwright: ";
/// Begins the statistics, the one such line that is no complaint.
const STATISTICS: &str = "slabwright: statistics";
/// Begins their last line.
const LAST_STATISTIC: &str = "calls: ";

struct Program {
    name: String,
    script: PathBuf,
    needs: Vec<String>,
    limit: Duration,
    alone: bool,
    /// Modes to run in; all where empty.
    modes: Vec<String>,
}

/// What a run left behind.
#[derive(PartialEq, Eq)]
struct Work {
    end: End,
    output: Vec<u8>,
    files: BTreeMap<String, Vec<u8>>,
}

/// One run to do: a program and what it is preloaded with.
struct Job<'a> {
    program: &'a Program,
    mode: Option<usize>,
}

fn load(script: PathBuf) -> Result<Program> {
    let text = fs::read_to_string(&script)?;
    let mut program = Program {
        name: script.file_stem().and_then(|s| s.to_str()).unwrap_or_default().to_owned(),
        script,
        needs: Vec::new(),
        limit: Duration::from_secs(LIMIT),
        alone: false,
        modes: Vec::new(),
    };
    for line in text.lines().take_while(|line| line.starts_with('#')) {
        if let Some(needs) = line.strip_prefix("# needs: ") {
            program.needs = needs.split_whitespace().map(str::to_owned).collect();
        } else if let Some(limit) = line.strip_prefix("# limit: ") {
            program.limit = Duration::from_secs(limit.trim().parse()?);
        } else if let Some(modes) = line.strip_prefix("# modes: ") {
            program.modes = modes.split_whitespace().map(str::to_owned).collect();
        } else if line == "# alone" {
            program.alone = true;
        }
    }
    Ok(program)
}

fn load_all(wanted: &[String]) -> Result<Vec<Program>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(shell::root().join("tests/programs"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "sh") {
            all.push(load(path)?);
        }
    }
    if let Some(unknown) = wanted.iter().find(|name| !all.iter().any(|program| program.name == **name)) {
        return Err(format!("there is no program `{unknown}` in tests/programs").into());
    }
    all.retain(|program| wanted.is_empty() || wanted.contains(&program.name));
    // The longest first, so that the last to end is a short one.
    all.sort_by(|a, b| (b.limit, &a.name).cmp(&(a.limit, &b.name)));
    Ok(all)
}

/// The search path of the scripts: the system's own programs, then what else there is (the Rust toolchain).
pub fn search_path() -> std::ffi::OsString {
    let mut path = std::ffi::OsString::from("/usr/bin:/bin:/usr/sbin:/sbin");
    if let Some(own) = std::env::var_os("PATH") {
        path.push(":");
        path.push(own);
    }
    path
}

/// Whether Python has its test suite, which Debian packages apart.
fn suite_is_there(path: &std::ffi::OsStr) -> bool {
    let mut import = Command::new("python3");
    import.env("PATH", path).args(["-c", "import test.test_dict"]).stderr(std::process::Stdio::null());
    import.status().is_ok_and(|status| status.success())
}

fn missing(programs: &[Program]) -> Vec<String> {
    let path = search_path();
    let mut missing = Vec::new();
    for program in programs {
        if program.name == "python-tests" && !suite_is_there(&path) {
            missing.push("python-tests needs Python's test suite: apt-get install libpython3.X-testsuite".to_owned());
        }
        for need in program.needs.iter().filter(|need| !is_command(need, &path)) {
            let package = PACKAGES.iter().find(|(command, _)| command == need).map_or("?", |(_, package)| package);
            missing.push(format!("{} needs `{need}`: apt-get install {package}", program.name));
        }
    }
    missing
}

/// Runs `program` in `dir`, made new; under `library` and the variables of a mode, or under neither.
fn perform(program: &Program, dir: &Path, mode: Option<(&Path, &[(&str, &str)])>) -> Result<Work> {
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    fs::create_dir_all(dir.join("out"))?;
    let mut command = Command::new("/bin/sh");
    command.arg("-eu").arg(&program.script).current_dir(dir);
    command.env_clear().env("PATH", search_path()).env("LC_ALL", "C.UTF-8").env("TZ", "UTC");
    command.env("HOME", dir).env("TMPDIR", dir).env("HERE", shell::root().join("tests/programs"));
    for name in ["CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    // A toolchain below the user's home is found by these when HOME is another.
    if let Some(home) = std::env::var_os("HOME") {
        for (name, folder) in [("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup")] {
            if std::env::var_os(name).is_none() {
                command.env(name, Path::new(&home).join(folder));
            }
        }
    }
    if let Some((library, variables)) = mode {
        command.env("LD_PRELOAD", library).env("SLABWRIGHT_STATS", "1").envs(variables.iter().copied());
    }
    command.stdin(std::process::Stdio::null());
    command.stdout(File::create(dir.join("stdout"))?).stderr(File::create(dir.join("stderr"))?);
    let end = limited(&mut command, program.limit)?;
    let mut files = BTreeMap::new();
    collect(&dir.join("out"), "", &mut files)?;
    Ok(Work { end, output: fs::read(dir.join("stdout"))?, files })
}

/// Reads all files below `dir`.
fn collect(dir: &Path, prefix: &str, into: &mut BTreeMap<String, Vec<u8>>) -> Result {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), &format!("{name}/"), into)?;
        } else {
            into.insert(name, fs::read(entry.path())?);
        }
    }
    Ok(())
}

/// What differs between the work `want` and the work `have`, in a line.
fn difference(want: &Work, have: &Work) -> Option<String> {
    if have.end != want.end {
        return Some(match have.end {
            End::TimeLimit => "did not end in time".to_owned(),
            End::Status(status) => format!("ended with {status}"),
        });
    }
    if have.output != want.output {
        let (want, have) = (String::from_utf8_lossy(&want.output), String::from_utf8_lossy(&have.output));
        let at = want.lines().zip(have.lines()).take_while(|(a, b)| a == b).count();
        let line = |text: &str| text.lines().nth(at).unwrap_or("(nothing)").chars().take(100).collect::<String>();
        return Some(format!("printed in line {} `{}` and not `{}`", at + 1, line(&have), line(&want)));
    }
    let names = want.files.keys().chain(have.files.keys());
    let name = names.into_iter().find(|name| want.files.get(*name) != have.files.get(*name))?;
    Some(format!("left another file {name}"))
}

/// Whether the run in `dir` shows that slabwright served it, and that it had nothing to complain about.
fn served(dir: &Path) -> Result {
    let served = fs::read(dir.join("served")).unwrap_or_default();
    let served = String::from_utf8_lossy(&served);
    let errors = fs::read(dir.join("stderr"))?;
    let errors = String::from_utf8_lossy(&errors);
    if let Some(line) =
        served.lines().chain(errors.lines()).find(|line| line.contains(OWN_LINE) && !line.contains(STATISTICS))
    {
        return Err(format!("reported `{line}`").into());
    }
    if !served.contains(STATISTICS) {
        return Err("no statistics of slabwright: something else served it".into());
    }
    Ok(())
}

/// The last lines of what a run wrote to its error output, without the statistics.
fn tail(dir: &Path) -> String {
    let mut text = String::new();
    for name in ["stderr", "served"] {
        let bytes = fs::read(dir.join(name)).unwrap_or_default();
        let all = String::from_utf8_lossy(&bytes);
        let mut statistics = false;
        let mut lines = Vec::new();
        for line in all.lines() {
            statistics |= line.contains(STATISTICS);
            if !statistics {
                lines.push(line);
            }
            statistics &= !line.starts_with(LAST_STATISTIC);
        }
        for line in &lines[lines.len().saturating_sub(8)..] {
            text.push_str("\n            | ");
            text.extend(line.chars().take(200));
        }
    }
    text
}

/// All programs in all modes.
pub fn test(options: &Options) -> Outcome {
    let mut outcome = Outcome::default();
    if let Err(error) = test_all(options, &mut outcome) {
        outcome.add("programs", Err(error));
    }
    outcome
}

fn test_all(options: &Options, outcome: &mut Outcome) -> Result {
    let programs = load_all(&options.programs)?;
    let missing = missing(&programs);
    if !missing.is_empty() {
        return Err(missing.join("\n").into());
    }
    let (library, own) = match &options.library {
        Some(other) => (fs::canonicalize(other)?, false),
        None => (shell::build_library(false)?, true),
    };
    let modes = if own { MODES } else { &MODES[..1] };
    let root = shell::target().join("programs");
    fs::create_dir_all(&root)?;

    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
    let baseline: Mutex<BTreeMap<String, Work>> = Mutex::default();
    let outcome = Mutex::new(outcome);
    let run = |job: &Job| {
        let program = job.program;
        let start = Instant::now();
        let (label, result) = match job.mode {
            None => {
                let dir = root.join(&program.name).join("libc");
                let result = perform(program, &dir, None).and_then(|work| match work.end {
                    End::Status(status) if status.success() => {
                        baseline.lock().unwrap().insert(program.name.clone(), work);
                        Ok(())
                    }
                    _ => Err(format!("fails without slabwright too{}", tail(&dir)).into()),
                });
                (format!("{} on the C library's malloc", program.name), result)
            }
            Some(mode) => {
                let (mode, variables) = modes[mode];
                let dir = root.join(&program.name).join(mode);
                let result = perform(program, &dir, Some((&library, variables))).and_then(|work| {
                    let all = baseline.lock().unwrap();
                    let Some(want) = all.get(program.name.as_str()) else {
                        return Err("nothing to compare with".into());
                    };
                    let fault = difference(want, &work);
                    let fault = fault.or_else(|| if own { served(&dir).err().map(|e| e.to_string()) } else { None });
                    fault.map_or(Ok(()), |fault| Err(format!("{fault}; see {}{}", dir.display(), tail(&dir)).into()))
                });
                (format!("{} {mode}", program.name), result)
            }
        };
        let seconds = start.elapsed().as_secs_f64();
        outcome.lock().unwrap().add(&format!("{label} ({seconds:.1} s)"), result);
    };
    let run_all = |jobs: Vec<Job>| {
        let (alone, together): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(|job| job.program.alone);
        let queue = Mutex::new(together.into_iter());
        std::thread::scope(|scope| {
            for _ in 0..cpus {
                scope.spawn(|| {
                    loop {
                        let job = queue.lock().unwrap().next();
                        let Some(job) = job else { break };
                        run(&job);
                    }
                });
            }
        });
        alone.iter().for_each(run);
    };
    run_all(programs.iter().map(|program| Job { program, mode: None }).collect());
    let pairs = programs.iter().flat_map(|program| {
        let wanted = |mode: &usize| program.modes.is_empty() || program.modes.iter().any(|name| name == modes[*mode].0);
        (0..modes.len()).filter(wanted).map(move |mode| Job { program, mode: Some(mode) })
    });
    run_all(pairs.collect());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(name: &str, script: &str, limit: u64) -> (Program, PathBuf) {
        let dir = std::env::temp_dir().join(format!("slabwright-xtask-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let file = dir.join("script.sh");
        fs::write(&file, script).unwrap();
        let mut program = load(file).unwrap();
        program.limit = Duration::from_secs(limit);
        (program, dir)
    }

    fn work(name: &str, script: &str, limit: u64) -> Work {
        let (program, dir) = program(name, script, limit);
        let work = perform(&program, &dir.join("run"), None).unwrap();
        fs::remove_dir_all(dir).unwrap();
        work
    }

    #[test]
    fn reads_the_head_of_a_script() {
        let (read, dir) =
            program("head", "# What it does.\n# needs: sh cat\n# alone\n# modes: verify\necho\n# needs: no\n", 7);
        assert_eq!((read.needs, read.alone), (vec!["sh".to_owned(), "cat".to_owned()], true));
        assert_eq!(read.modes, ["verify"]);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn sees_every_difference() {
        let want = work("want", "echo a; echo b; echo c > out/file", 20);
        let same = work("same", "echo a; echo b; echo c > out/file; echo noise >&2", 20);
        assert_eq!(difference(&want, &same), None);
        let text = work("text", "echo a; echo x; echo c > out/file", 20);
        assert_eq!(difference(&want, &text).unwrap(), "printed in line 2 `x` and not `b`");
        let file = work("file", "echo a; echo b; echo d > out/file", 20);
        assert_eq!(difference(&want, &file).unwrap(), "left another file file");
        let code = work("code", "echo a; echo b; echo c > out/file; exit 3", 20);
        assert!(difference(&want, &code).unwrap().contains("3"));
        let hang = work("hang", "echo a; echo b; echo c > out/file; sleep 1000", 1);
        assert_eq!(difference(&want, &hang).unwrap(), "did not end in time");
        let crash = work("crash", "echo a; echo b; echo c > out/file; kill -SEGV $$", 20);
        assert!(difference(&want, &crash).unwrap().contains("signal"));
    }

    #[test]
    fn wants_statistics_and_no_report() {
        let dir = std::env::temp_dir().join(format!("slabwright-xtask-{}-served", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("stderr"), "").unwrap();
        assert!(served(&dir).is_err());
        fs::write(dir.join("served"), format!("noise\n{STATISTICS} of process 1\n")).unwrap();
        assert!(served(&dir).is_ok());
        fs::write(dir.join("stderr"), format!("{OWN_LINE}double free\n")).unwrap();
        assert!(served(&dir).is_err());
        fs::remove_dir_all(dir).unwrap();
    }
}
