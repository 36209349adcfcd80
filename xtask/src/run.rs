//! `cargo xtask run`: a program on slabwright.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use crate::{Result, shell};

/// Builds the library and becomes the program, so that exit codes and signals are the program's own.
pub fn run(mut args: Vec<OsString>) -> Result<ExitCode> {
    if args.first().is_some_and(|first| first == "--") {
        args.remove(0);
    }
    let Some((program, args)) = args.split_first() else {
        return Err("run what? cargo xtask run -- PROGRAM ARGS...".into());
    };
    let library = shell::build_library(false)?;
    let error = Command::new(program).args(args).env("LD_PRELOAD", preload(library.into())).exec();
    Err(format!("{}: {error}", program.display()).into())
}

/// `library` in front of what is preloaded already.
fn preload(library: OsString) -> OsString {
    match std::env::var_os("LD_PRELOAD") {
        Some(others) if !others.is_empty() => {
            let mut all = library;
            all.push(":");
            all.push(others);
            all
        }
        _ => library,
    }
}
