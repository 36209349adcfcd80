//! Starting other programs.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::Result;

/// The workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace")
}

/// The files below a folder that have one of these extensions, in order.
pub fn files(dir: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path, extensions));
        } else if path.extension().is_some_and(|e| extensions.iter().any(|wanted| e == *wanted)) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Where builds go.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// The cargo that runs this.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// Builds the release libraries; the path of the shared one.
pub fn build_library(verbose: bool) -> Result<PathBuf> {
    let library = target().join("release/libslabwright.so");
    let mut build = cargo();
    build.args(["build", "--release"]);
    if !verbose && library.exists() {
        build.arg("--quiet");
    }
    run(&mut build)?;
    if !library.exists() {
        return Err(format!("the build left no {}", library.display()).into());
    }
    Ok(library)
}

/// The command as one would type it.
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Runs to success.
pub fn run(command: &mut Command) -> Result {
    let status = command.status().map_err(|e| format!("{}: {e}", line(command)))?;
    if status.success() { Ok(()) } else { Err(format!("{}: {status}", line(command)).into()) }
}

/// Runs to success; what it printed.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.stderr(Stdio::inherit()).output().map_err(|e| format!("{}: {e}", line(command)))?;
    if !output.status.success() {
        return Err(format!("{}: {}", line(command), output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs and hands each line of the standard output to `each`.
pub fn lines(command: &mut Command, mut each: impl FnMut(&str)) -> Result<ExitStatus> {
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(|e| format!("{}: {e}", line(command)))?;
    let stdout = child.stdout.take().expect("stdout is piped");
    for line in BufReader::new(stdout).lines() {
        each(&line?);
    }
    Ok(child.wait()?)
}

/// How a run under a time limit ended.
#[derive(PartialEq, Eq, Debug, Clone, Copy)]
pub enum End {
    /// By itself.
    Status(ExitStatus),
    /// It was ended with all it had started.
    TimeLimit,
}

/// Runs in a process group of its own, which is ended when `limit` is over.
pub fn limited(command: &mut Command, limit: Duration) -> Result<End> {
    let start = Instant::now();
    let mut child = command.process_group(0).spawn().map_err(|e| format!("{}: {e}", line(command)))?;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            end_group(&child);
            return Ok(End::Status(status));
        }
        if start.elapsed() > limit {
            end_group(&child);
            child.wait()?;
            return Ok(End::TimeLimit);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Ends what is left of the process group that `leader` started.
fn end_group(leader: &Child) {
    let group = format!("-{}", leader.id());
    let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
}

/// Whether `name` is a command here.
pub fn is_command(name: &str, path: &OsStr) -> bool {
    name.contains('/') && Path::new(name).exists() || std::env::split_paths(path).any(|dir| dir.join(name).is_file())
}
