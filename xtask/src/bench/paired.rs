//! `cargo xtask bench --paired`: all allocators in one process, in short rounds in turn (`benches/paired.c`).

use std::fs;
use std::process::{Command, ExitCode};

use super::{Options, allocators, compile, machine};
use crate::{Result, shell};

/// Rounds, each some milliseconds for each allocator.
const ROUNDS: usize = 41;

pub fn paired(options: &Options) -> Result<ExitCode> {
    let program = compile("paired.c")?;
    let known = shell::output(Command::new(&program).arg("--list"))?;
    if options.list {
        print!("{known}");
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(unknown) = options.only.iter().find(|only| !known.lines().any(|name| name == *only)) {
        return Err(format!("there is no workload `{unknown}`; --list names them").into());
    }
    let (mut all, mut notes) = allocators(&options.peers)?;
    all.retain(|allocator| {
        let Some((variable, _)) = &allocator.variable else { return true };
        notes.push(format!("{} is left out: it wants a process of its own, where {variable} is set", allocator.name));
        false
    });
    notes.iter().for_each(|note| eprintln!("{note}"));
    let rounds = options.rounds(ROUNDS, ROUNDS / 4);
    let only = if options.only.is_empty() { "all".to_owned() } else { options.only.join(",") };
    let mut command = Command::new(&program);
    command.args([rounds.to_string(), only]);
    // Some keep more in static thread-local storage than is left for libraries that are opened late.
    command.env("GLIBC_TUNABLES", "glibc.rtld.optional_static_tls=65536");
    for allocator in &all {
        command.arg(format!("{}={}", allocator.name, allocator.library.display()));
    }
    println!(
        "Slabwright's time in relation to each of the others, medians of {rounds} paired rounds on {}.\n",
        machine()
    );
    let mut table = String::new();
    let status = shell::lines(&mut command, |line| {
        println!("{line}");
        table += &format!("{line}\n");
    })?;
    fs::write(shell::target().join("bench/paired.md"), table)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
