//! The project's commands, called as `cargo xtask COMMAND`.

mod bench;
mod coverage;
mod elf;
mod examples;
mod golden;
mod i386;
mod kernel;
mod programs;
mod readme;
mod run;
mod shell;
mod test;
mod width;

use std::path::PathBuf;
use std::process::ExitCode;

use lexopt::prelude::*;

const USAGE: &str = "\
cargo xtask COMMAND

  run -- PROGRAM ARGS...   build slabwright and run PROGRAM on it (LD_PRELOAD)
  test                     run every test; the last line tells how many passed and failed
      --part NAME          only this part (repeatable); --list names them
      --program NAME       only this program of the part `programs` (repeatable)
      --library PATH       another allocator's shared library for the part `programs`
  bench                    compare with other allocators; tables, all figures and plots in target/bench
      --paired             calls only, all allocators in one process in short rounds in turn: for machines that others use, too
      --quick              3 rounds instead of 7; --rounds N for another number
      --minutes N          what takes longest goes through fewer rounds than others, 3 at least, to be done by then
      --only A,B           only these workloads or groups (repeatable); --list names them
      --peers A,B          only these allocators besides slabwright
  coverage                 which rows of tests/rows.tsv have a test that passes; the others are open
  i386                     build and boot the bare-metal image under QEMU
      --memory SIZE        its memory (64M); --cpus N, its CPUs (2)
      --pae                page tables of three levels; --slob, small blocks by first fit
      --append TEXT        its command line: lowmem=SIZE, movablecore=SIZE, numa=fake=N, maxcpus=N
      --limit SECONDS      after which it counts as hanging (300)
";

/// What a command comes to: an error is a message for the user.
type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> ExitCode {
    match command() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> Result<ExitCode> {
    print!("{USAGE}");
    Ok(ExitCode::SUCCESS)
}

fn command() -> Result<ExitCode> {
    let mut args = lexopt::Parser::from_env();
    let name = match args.next()? {
        Some(Value(name)) => name.string()?,
        Some(Short('h') | Long("help")) => {
            return usage();
        }
        Some(other) => return Err(other.unexpected().into()),
        None => return Err(format!("which command?\n\n{USAGE}").into()),
    };
    match name.as_str() {
        "run" => run::run(args.raw_args()?.collect()),
        "test" => {
            let mut options = test::Options::default();
            while let Some(arg) = args.next()? {
                match arg {
                    Long("part") => options.parts.push(args.value()?.string()?),
                    Long("program") => options.programs.push(args.value()?.string()?),
                    Long("library") => options.library = Some(PathBuf::from(args.value()?)),
                    Long("list") => options.list = true,
                    other => return Err(other.unexpected().into()),
                }
            }
            test::test(&options)
        }
        "bench" => {
            let mut options = bench::Options::default();
            while let Some(arg) = args.next()? {
                match arg {
                    Long("quick") => options.quick = true,
                    Long("paired") => options.paired = true,
                    Long("list") => options.list = true,
                    Long("minutes") => options.minutes = args.value()?.parse()?,
                    Long("rounds") => options.rounds = args.value()?.parse()?,
                    Long("only") => options.only.extend(args.value()?.string()?.split(',').map(str::to_owned)),
                    Long("peers") => options.peers.extend(args.value()?.string()?.split(',').map(str::to_owned)),
                    Short('h') | Long("help") => return usage(),
                    other => return Err(other.unexpected().into()),
                }
            }
            bench::bench(&options)
        }
        "coverage" => match args.next()? {
            Some(other) => Err(other.unexpected().into()),
            None => coverage::coverage(),
        },
        "i386" => {
            let mut options = i386::Options::default();
            while let Some(arg) = args.next()? {
                match arg {
                    Long("memory") => options.memory = args.value()?.string()?,
                    Long("cpus") => options.cpus = args.value()?.parse()?,
                    Long("pae") => options.features.push(i386::PAE),
                    Long("slob") => options.features.push(i386::SLOB),
                    Long("append") => options.append = args.value()?.string()?,
                    Long("limit") => options.limit = args.value()?.parse()?,
                    other => return Err(other.unexpected().into()),
                }
            }
            i386::i386(&options)
        }
        other => Err(format!("there is no command `{other}`\n\n{USAGE}").into()),
    }
}
