//! `cargo xtask i386`: builds the bare-metal image and boots it under QEMU.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::test::Outcome;
use crate::{Result, shell};

/// A target that the compiler knows: no SSE, nothing of it but the instruction set is used.
pub const TARGET: &str = "i586-unknown-linux-gnu";
/// What QEMU's status is when the image says that all is well: twice its code, and one. A reset gives 0.
const SUCCESS: i32 = 33;
/// How long a run may take before it counts as hanging, in seconds. Most take ten, on a machine that is busy with other
/// tests more.
const LIMIT: u64 = 300;

/// What to boot.
#[derive(Clone, Debug)]
pub struct Options {
    /// QEMU's `-m`.
    pub memory: String,
    /// QEMU's `-smp`.
    pub cpus: u32,
    /// What the image is built with.
    pub features: Vec<&'static str>,
    /// Whether the BIOS tells of the CPUs by ACPI's tables, else by those of the MultiProcessor Specification.
    pub acpi: bool,
    /// The kernel's command line.
    pub append: String,
    /// Seconds after which it counts as hanging.
    pub limit: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            memory: "64M".to_owned(),
            cpus: 2,
            features: Vec::new(),
            acpi: true,
            append: String::new(),
            limit: LIMIT,
        }
    }
}

/// Whether rustup has the target's `core`.
fn has_target() -> bool {
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    let libraries = rustc.args(["--print", "target-libdir", "--target", TARGET]).stderr(Stdio::null()).output();
    libraries.is_ok_and(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir())
}

/// A compiler that has the sources of `core` beside it: Debian's packages `rustc-web` and `rust-web-src`.
const DEBIAN: &str = "/usr/bin/rustc";
/// Its clippy, of the package `rust-web-clippy`.
const CLIPPY: &str = "/usr/bin/cargo-clippy";

fn has_sources() -> bool {
    let sysroot = Command::new(DEBIAN).args(["--print", "sysroot"]).output();
    sysroot.is_ok_and(|output| {
        let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        sysroot.join("lib/rustlib/src/rust/library/core").is_dir()
    })
}

/// Three-level page tables.
pub const PAE: &str = "pae";
/// Small blocks by first fit.
pub const SLOB: &str = "slob";
/// What the compiler must refuse.
const BAD: &str = "no-such-fixmap";

/// The folder of builds: of its own, for another compiler and other features. What is refused leaves nothing in it.
fn folder(features: &[&str]) -> PathBuf {
    let features: Vec<&str> = features.iter().copied().filter(|feature| *feature != BAD).collect();
    shell::target().join([&["i386"], &features[..]].concat().join("-"))
}

/// Has a command of cargo's use the compiler that has a `core` for the target.
pub fn with_core(cargo: &mut Command) -> Result {
    cargo.env("RUSTFLAGS", "-C relocation-model=static");
    if has_target() {
        return Ok(());
    }
    if !has_sources() {
        return Err(format!(
            "no `core` for {TARGET}: `rustup target add {TARGET}`, or Debian's packages rustc-web and rust-web-src"
        )
        .into());
    }
    cargo.arg("-Zbuild-std=core,alloc,compiler_builtins");
    cargo.env("RUSTC", DEBIAN).env("RUSTC_BOOTSTRAP", "1").env_remove("RUSTUP_TOOLCHAIN");
    Ok(())
}

/// A command of cargo's on the image.
fn cargo(command: &str, features: &[&str]) -> Result<Command> {
    let mut cargo = shell::cargo();
    if command == "clippy" && !has_target() {
        // The one that belongs to that compiler.
        if !Path::new(CLIPPY).exists() {
            return Err(format!("no {CLIPPY}: Debian's package rust-web-clippy").into());
        }
        cargo = Command::new(CLIPPY);
        cargo.current_dir(shell::root());
    }
    cargo.args([command, "--quiet", "--package", "slabwright-i386", "--profile", "kernel", "--target", TARGET]);
    cargo.args(["--features", &features.join(",")]).arg("--target-dir").arg(folder(features));
    with_core(&mut cargo)?;
    Ok(cargo)
}

/// Builds the image; its path.
pub fn build(features: &[&str]) -> Result<PathBuf> {
    shell::run(&mut cargo("build", features)?)?;
    let image = folder(features).join(TARGET).join("kernel/slabwright-i386");
    if image.exists() { Ok(image) } else { Err(format!("the build left no {}", image.display()).into()) }
}

/// No warning in the image, and in the machine that it runs on.
fn lint(features: &[&str]) -> Result {
    let mut clippy = cargo("clippy", features)?;
    clippy.args(["--", "-D", "warnings", "-D", "clippy::undocumented_unsafe_blocks"]);
    shell::run(&mut clippy)
}

/// That the image leaves the coprocessor alone: what is in its registers is a process's, also while a handler runs.
fn no_coprocessor(image: &Path) -> Result {
    let code = shell::output(Command::new("objdump").args(["--disassemble", "--no-show-raw-insn"]).arg(image))?;
    let mut function = "";
    let mut seen = 0;
    for line in code.lines() {
        if let Some(name) = line.strip_suffix(">:") {
            function = name;
        } else if let Some((_, instruction)) = line.split_once(":\t") {
            seen += 1;
            // Where it is set up, and where its state is told to be none.
            let is_x87 = instruction.starts_with('f') && !instruction.starts_with("fninit");
            if is_x87 || instruction.contains("%mm") || instruction.contains("%xmm") {
                return Err(format!("`{instruction}` in {function}").into());
            }
        }
    }
    if seen > 10_000 { Ok(()) } else { Err(format!("only {seen} instructions were seen").into()) }
}

/// How a boot ended, and what was on the console.
struct Run {
    /// QEMU's exit status; `None` after the time limit.
    status: Option<i32>,
    console: Vec<String>,
}

/// Boots `image` and hands each line of the console to `each`.
fn boot(image: &Path, options: &Options, each: impl Fn(&str)) -> Result<Run> {
    let mut qemu = Command::new("qemu-system-i386");
    qemu.args(["-accel", "tcg", "-display", "none", "-monitor", "none", "-serial", "stdio"]);
    // With PAE 36 bits of physical address, which this processor has only when asked.
    qemu.args(["-cpu", if options.features.contains(&PAE) { "qemu32,+pse36" } else { "qemu32" }]);
    qemu.args(["-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]);
    // The older tables name only the first CPU of a package. The image is told what there is, and who says so, so that
    // a CPU that does not start, or memory that is not found, is a failure.
    let Options { memory, cpus, append, .. } = options;
    let (machine, topology, tables) = if options.acpi {
        ("pc", format!("sockets=1,cores={cpus}"), "acpi")
    } else {
        ("pc,acpi=off", format!("sockets={cpus},cores=1"), "mp")
    };
    qemu.args(["-machine", machine, "-m", memory, "-smp", &format!("cpus={cpus},{topology},threads=1")]);
    qemu.args(["-append", &format!("memory={memory} cpus={cpus} tables={tables} {append}"), "-kernel"]).arg(image);
    qemu.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = qemu.spawn().map_err(|e| format!("qemu-system-i386: {e} (Debian's package qemu-system-x86)"))?;
    let stdout = child.stdout.take().expect("stdout is piped");
    let (send, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(|line| line.ok()) {
            if send.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
        }
    });
    let end = std::time::Instant::now() + Duration::from_secs(options.limit);
    let mut console = Vec::new();
    loop {
        match lines.recv_timeout(end.saturating_duration_since(std::time::Instant::now())) {
            Ok(line) => {
                each(&line);
                console.push(line);
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                child.kill()?;
                child.wait()?;
                return Ok(Run { status: None, console });
            }
            // QEMU closed its output, so it ends.
            Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(Run { status: child.wait()?.code(), console }),
        }
    }
}

/// Whether the run was one in which all is well.
fn judge(run: &Run) -> Result {
    match run.status {
        Some(SUCCESS) => Ok(()),
        None => Err(format!("no end: it hangs (after `{}`)", last(run)).into()),
        // A triple fault resets, and `-no-reboot` turns that into an ordinary end.
        Some(0) => Err(format!("the machine was reset (after `{}`)", last(run)).into()),
        Some(status) => Err(format!("status {status}, not {SUCCESS}: {}", last(run)).into()),
    }
}

fn last(run: &Run) -> &str {
    run.console.iter().rev().find(|line| !line.is_empty()).map_or("no output", String::as_str)
}

/// Builds, boots, shows the console; success only where the image said so.
pub fn i386(options: &Options) -> Result<ExitCode> {
    let image = build(&options.features)?;
    let run = boot(&image, options, |line| println!("{line}"))?;
    judge(&run)?;
    Ok(ExitCode::SUCCESS)
}

/// A machine that the self-tests run on: memory, CPUs, what the image is built with, whether ACPI tells of the CPUs,
/// command line.
type Machine = (&'static str, u32, &'static [&'static str], bool, &'static str);

const MACHINES: &[Machine] = &[
    ("16M", 1, &[], true, ""),
    LAID_OUT,
    ("512M", 2, &[], false, "numa=fake=2"),
    ("2G", 2, &[], true, ""),
    TINY,
    ("16M", 2, &[SLOB], true, ""),
    ("64M", 2, &[PAE], true, "lowmem=24M"),
    ("4608M", 1, &[PAE], true, ""),
];

/// What images are built with.
const IMAGES: &[&[&str]] = &[&[], &[SLOB], &[PAE]];

/// The smallest one: of its memory the BIOS has 128 KiB, the image 808 KiB, what boot sets aside 236 KiB; 99 pages are
/// left.
const TINY: Machine = ("2M", 2, &[SLOB], true, "");

/// The one whose memory layout is in `tests/i386/memorylayout.txt`.
const LAID_OUT: Machine = ("64M", 2, &[], true, "lowmem=32M movablecore=12M");

impl Options {
    fn of(&(memory, cpus, features, acpi, append): &Machine) -> Options {
        Options {
            memory: memory.to_owned(),
            cpus,
            features: features.to_vec(),
            acpi,
            append: append.to_owned(),
            limit: LIMIT,
        }
    }
}

/// What the console of every machine shows, in this order, by the beginnings of lines: memory map, what boot took of
/// it, its hand-over, the address map, zones, the buddy system's lists, self-tests, caches.
const STAGES: &[&str] = &[
    "memory   ",
    "reserved ",
    "CPUs: ",
    "memblock: ",
    "low memory ",
    "vmalloc ",
    "ioremap ",
    "pkmap ",
    "fixmap ",
    "node 0 zone Dma: ",
    "Node 0, zone Dma ",
    "ok S1 ",
    "cache ",
];
/// And what comes behind, without and with first fit.
const CLASSES: &[&str] = &["kmalloc-8 ", "kmalloc-8k ", "Node 0, zone Dma "];
const FIRST_FIT: &[&str] = &["first fit: ", "Node 0, zone Dma "];

/// Boots that must be taken for failures: the command line, which asks for it, QEMU's status, and what lines of the
/// console begin with, in this order. The names that begin with rows show these.
const FAILURES: &[(&str, &str, Option<i32>, &[&str])] = &[
    ("a panic", "fail=panic", Some(35), &["panicked at", "as asked for"]),
    ("a self-test that fails", "fail=test", Some(35), &["ok S1", "FAILED a test that fails", "panicked at"]),
    ("another status", "fail=exit", Some(35), &["slabwright on i386"]),
    (
        "G7 SLAB_PANIC ends the image where there is no such cache",
        "fail=cache",
        Some(35),
        &["slabwright: cannot make cache impossible"],
    ),
    (
        "O14 O15 a fault without a fixup: registers, stack and code, and the status of an oops",
        "fail=oops",
        Some(37),
        &[
            "Oops: null pointer at 0x00000000 (0x2: no page, write, kernel)",
            "CPU 0, eip c0",
            "eax ",
            "esi ",
            "ds 0010 es 0010 fs 0028",
            "the kernel's table: ",
            "stack: ",
            "code: c6 05 00 00 00 00",
        ],
    ),
    (
        "O15 an exception without a fixup",
        "fail=exception",
        Some(37),
        &["Oops: invalid opcode (vector 6, error 0x0)", "CPU 0, eip c0", "eax ", "code: 0f 0b"],
    ),
    (
        "O15 a stack that overflows meets its guard page",
        "fail=overflow",
        Some(37),
        &["Oops: kernel stack overflow at 0xfff", "CPU 0, eip c0", "eax "],
    ),
    (
        "O15 the same on another CPU",
        "fail=overflow-elsewhere",
        Some(37),
        &["Oops: kernel stack overflow at 0xfff", "CPU 1, eip c0", "eax "],
    ),
    ("a triple fault", "fail=triple", Some(0), &["slabwright on i386"]),
    ("a hang", "fail=hang", None, &["slabwright on i386"]),
];

/// Boots that the command itself must fail for, and what it says then.
const COMMAND_FAILS: &[(&str, &str)] =
    &[("test", "status 35, not 33"), ("hang", "no end: it hangs"), ("triple", "the machine was reset")];

/// Tests of what is seen from outside only: of the compiler, and of a boot without PAE.
const BAD_INDEX: &str = "I12 a fixed address that does not exist is refused by the compiler";
const LAYOUT: &str = "L9 the memory layout is that of tests/i386/memorylayout.txt";
const IN_LITTLE: &str = "G20 first fit in 2 MiB, on two CPUs: every suite but what needs megabytes";

/// The part `i386` of the tests: every self-test of the image on every machine, and that failures are noticed.
pub fn test() -> Outcome {
    let mut outcome = Outcome::default();
    for features in IMAGES {
        let with: String = features.iter().map(|feature| format!(" with {feature}")).collect();
        let image = match build(features) {
            Ok(image) => image,
            Err(error) => {
                outcome.add(&format!("build{with}"), Err(error));
                continue;
            }
        };
        outcome.add(&format!("clippy{with}"), lint(features));
        outcome.add(&format!("no instruction of the coprocessor{with}"), no_coprocessor(&image));
        for machine in MACHINES.iter().filter(|machine| machine.2 == *features) {
            let (memory, cpus, _, _, append) = machine;
            let name = format!("{memory}, {cpus} CPUs{with} {append}");
            match boot(&image, &Options::of(machine), |_| {}) {
                Ok(run) => {
                    let passed = run.console.iter().filter(|line| line.starts_with("ok ")).count();
                    outcome.add(&format!("{name}: {passed} self-tests"), succeeded(&run, features));
                    // Each is a test; the run as a whole was counted already.
                    outcome.passed += passed.saturating_sub(1);
                    if *machine == LAID_OUT {
                        outcome.add(LAYOUT, is_laid_out(&run));
                    }
                }
                Err(error) => outcome.add(&name, Err(error)),
            }
        }
        if features.is_empty() {
            outcome.add(BAD_INDEX, refuses_bad_index());
            FAILURES.iter().for_each(|failure| outcome.add(failure.0, is_noticed(&image, failure)));
            for (how, says) in COMMAND_FAILS {
                outcome.add(&format!("cargo xtask i386 --append fail={how} fails"), command_fails(how, says));
            }
            outcome.add("a kernel of one's own, as README.md says", own_kernel());
        }
    }
    outcome
}

/// The tests that passed without PAE: the image's own on every machine, and those of what is seen from outside.
pub fn passed() -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for machine in MACHINES.iter().filter(|machine| !machine.2.contains(&PAE)) {
        let run = boot(&build(machine.2)?, &Options::of(machine), |_| {})?;
        succeeded(&run, machine.2)?;
        all.extend(run.console.iter().filter_map(|line| line.strip_prefix("ok ")).map(str::to_owned));
        if *machine == LAID_OUT {
            is_laid_out(&run)?;
            all.insert(LAYOUT.to_owned());
        }
        if *machine == TINY {
            all.insert(IN_LITTLE.to_owned());
        }
    }
    refuses_bad_index()?;
    all.insert(BAD_INDEX.to_owned());
    let image = build(&[])?;
    for failure in FAILURES {
        is_noticed(&image, failure)?;
        all.insert(failure.0.to_owned());
    }
    Ok(all)
}

/// Whether all is well: the status says so, as many self-tests passed as were named, and the console shows what it
/// should.
fn succeeded(run: &Run, features: &[&str]) -> Result {
    judge(run)?;
    let named = run.console.iter().filter(|line| line.starts_with("ok ")).count();
    counted(run, named)?;
    let end = if features.contains(&SLOB) { FIRST_FIT } else { CLASSES };
    shows(run, &[STAGES, end].concat())
}

/// Whether lines that begin with these are on the console, in this order.
fn shows(run: &Run, beginnings: &[&str]) -> Result {
    let mut lines = run.console.iter();
    match beginnings.iter().find(|beginning| !lines.any(|line| line.starts_with(**beginning))) {
        None => Ok(()),
        Some(lacking) => Err(format!("the console does not show `{lacking}`, or not in its place").into()),
    }
}

/// Compares what the image says of its memory layout with the golden text.
fn is_laid_out(run: &Run) -> Result {
    let golden = std::fs::read_to_string(shell::root().join("tests/i386/memorylayout.txt"))?;
    let begin = run.console.iter().position(|line| line == "memory layout").ok_or("no memory layout")?;
    let shown = run.console[begin..].iter().take_while(|line| *begin_of(line) != *"ok");
    let mut pairs = golden.lines().zip(shown.map(String::as_str).chain(std::iter::repeat("nothing")));
    match pairs.find(|(golden, shown)| golden != shown) {
        None => Ok(()),
        Some((golden, shown)) => Err(format!("`{shown}` instead of `{golden}`").into()),
    }
}

fn begin_of(line: &str) -> &str {
    line.split(' ').next().unwrap_or_default()
}

/// That an index beyond the fixed addresses ends in an error of the compiler's, of its own words.
fn refuses_bad_index() -> Result {
    let output = cargo("check", &[BAD])?.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Err("it was compiled".into())
    } else if said.contains("this fixmap does not exist") {
        Ok(())
    } else {
        Err(format!("refused for another reason: {said}").into())
    }
}

/// The image counts as many passed self-tests as it named.
fn counted(run: &Run, passed: usize) -> Result {
    let line = format!("{passed} passed, 0 failed");
    if passed > 0 && run.console.contains(&line) {
        Ok(())
    } else {
        Err(format!("{passed} named, but no `{line}`").into())
    }
}

/// Boots an image that fails as asked, and judges whether that was taken for a failure.
fn is_noticed(image: &Path, &(_, append, status, texts): &(&str, &str, Option<i32>, &[&str])) -> Result {
    let limit = if status.is_none() { 10 } else { LIMIT };
    let options = Options { append: append.to_owned(), limit, ..Options::default() };
    let run = boot(image, &options, |_| {})?;
    if run.status != status {
        return Err(format!("status {:?}, not {status:?}", run.status).into());
    }
    if judge(&run).is_ok() {
        return Err("it was taken for a success".into());
    }
    shows(&run, texts)
}

/// Runs the command as a user would, and judges whether it fails, and for the right reason.
fn command_fails(how: &str, says: &str) -> Result {
    let mut command = Command::new(std::env::current_exe()?);
    let output = command.args(["i386", "--limit", "20", "--append", &format!("fail={how}")]).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Err("it succeeds".into()),
        false if error.contains(says) => Ok(()),
        false => Err(format!("it says `{}`", error.trim()).into()),
    }
}

/// That the crate which `README.md` describes boots, and does what its program says.
fn own_kernel() -> Result {
    let run = boot(&crate::kernel::build()?, &Options::default(), |_| {})?;
    judge(&run)?;
    shows(&run, &["1000 squares"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_is_read_in_order() {
        let run = Run { status: None, console: ["one 1", "two 2", "one 3"].map(str::to_owned).to_vec() };
        assert!(shows(&run, &["one", "two", "one"]).is_ok() && shows(&run, &[]).is_ok());
        assert!(shows(&run, &["two", "two"]).is_err() && shows(&run, &["two", "one", "two"]).is_err());
    }

    #[test]
    fn only_the_success_code_is_success() {
        let run = |status| Run { status, console: vec!["last".to_owned(), String::new()] };
        assert!(judge(&run(Some(33))).is_ok());
        for status in [None, Some(0), Some(1), Some(35), Some(37)] {
            assert!(judge(&run(status)).is_err(), "{status:?}");
        }
        assert!(judge(&run(None)).unwrap_err().to_string().contains("after `last`"));
    }
}
