//! Real programs as workloads: `benches/programs/NAME.sh`, run by `sh -eu` in a folder of its own, first with the
//! argument `prepare`, once, which makes the input, then with `run` under each allocator.
//!
//! `$MEASURE PROGRAM ARGUMENTS…` in it runs what is measured (`benches/measure.c`), everything else runs on the C
//! library's malloc. `$ROOT` is the workspace, `$TARGET` where its builds go, `$ALLOCATOR` the allocator's name.
//! Comments at the top say `# needs: COMMAND…`, where the input is built from sources `# prepare: always`, and `#
//! group: NAME` where it is no real program. What a script prints must be the same in every run: an allocator under
//! which it is not has failed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::peers::{Allocator, head};
use super::{Runs, Workload};
use crate::programs::{PACKAGES, search_path};
use crate::{Result, shell};

pub struct Script {
    path: PathBuf,
    text: String,
    dir: PathBuf,
    measure: PathBuf,
}

impl Script {
    pub fn group(&self) -> &str {
        head(&self.text, "group").unwrap_or("programs")
    }

    /// Where what it printed last is.
    pub fn output(&self) -> PathBuf {
        self.dir.join("output")
    }

    /// `sh` on the script, with `result` for what is measured.
    pub fn command(&self, allocator: &Allocator, result: &Path) -> Result<Command> {
        // What an earlier run left says nothing about this one.
        fs::write(result, "")?;
        let mut command = self.shell("run")?;
        command.env("RESULT", result).env("ALLOCATOR", allocator.name);
        command.env("PRELOAD", &allocator.library);
        let variable = allocator.variable.as_ref().map(|(name, value)| format!("{name}={value}"));
        command.env("VARIABLE", variable.unwrap_or_default());
        Ok(command)
    }

    fn shell(&self, argument: &str) -> Result<Command> {
        let mut command = Command::new("sh");
        command.arg("-eu").arg(&self.path).arg(argument).current_dir(&self.dir);
        command.env("PATH", search_path()).env("LC_ALL", "C.UTF-8").env("MEASURE", &self.measure);
        command.env("ROOT", shell::root()).env("TARGET", shell::target());
        command
            .stdin(Stdio::null())
            .stdout(File::create(self.output())?)
            .stderr(File::create(self.dir.join("stderr"))?);
        Ok(command)
    }

    fn missing(&self) -> Option<String> {
        let missing = |need: &&str| !shell::is_command(need, &search_path());
        let need = head(&self.text, "needs")?.split(' ').find(missing)?;
        let package = PACKAGES.iter().find(|(command, _)| *command == need).map_or("?", |(_, package)| package);
        Some(format!("there is no `{need}` (package {package})"))
    }

    /// Makes the input, unless this script made it before and sources do not matter.
    fn prepare(&self) -> Result {
        let stamp = self.dir.join("stamp");
        let made = fs::read_to_string(&stamp).is_ok_and(|stamp| stamp == self.text);
        if made && head(&self.text, "prepare").is_none() {
            return Ok(());
        }
        if self.dir.exists() {
            fs::remove_dir_all(&self.dir)?;
        }
        fs::create_dir_all(&self.dir)?;
        if !self.shell("prepare")?.status()?.success() {
            return Err(format!("its input cannot be made, see {}/stderr", self.dir.display()).into());
        }
        fs::write(&stamp, &self.text)?;
        Ok(())
    }
}

/// All scripts by name.
pub fn scripts() -> Result<Vec<(String, Script)>> {
    let measure = super::compile("measure.c")?;
    let mut all = Vec::new();
    for entry in fs::read_dir(shell::root().join("benches/programs"))? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".sh")) else { continue };
        let (text, dir) = (fs::read_to_string(&path)?, shell::target().join("bench/programs").join(name));
        all.push((name.to_owned(), Script { text, dir, measure: measure.clone(), path }));
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(all)
}

/// Prepares the scripts among `workloads`; those that cannot run are taken out and named in `notes`.
pub fn prepare(workloads: &mut Vec<Workload>, notes: &mut Vec<String>) -> Result {
    workloads.retain(|workload| {
        let Runs::Script(script) = &workload.runs else { return true };
        eprintln!("preparing {}", workload.name);
        let fault = script.missing().or_else(|| script.prepare().err().map(|error| error.to_string()));
        notes.extend(fault.iter().map(|fault| format!("{} is not run: {fault}", workload.name)));
        fault.is_none()
    });
    if workloads.is_empty() { Err(format!("nothing to run; {}", notes.join("; ")).into()) } else { Ok(()) }
}
