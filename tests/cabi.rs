//! The C ABI from C and C++: each program of `tests/c` is built and run with every way of getting slabwright into a
//! process, and with glibc's own malloc where it promises the same, which shows that the test itself is right.
//!
//! Lines `//: ...` in a source say what is wanted:
//! * `modes: A B ...` the [`Mode`]s it is for (all of them without this line);
//! * `flags: ...` more flags for the compiler;
//! * `plugin: FILE` a source beside it to be built as a shared library; its path is the program's `PLUGIN` variable;
//! * `run: [NAME=VALUE ...] [ARGUMENT ...] [=> EXPECTED ...]` a run (without such a line: one run that must succeed).
//!   EXPECTED: `abort` (killed by SIGABRT), `says TEXT`, `silent` (nothing on the error output), `exit N`.
#![cfg(target_os = "linux")]

use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How a program gets its malloc.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    /// The C library's own.
    Glibc,
    /// libslabwright.so in LD_PRELOAD.
    Preload,
    /// The same without restartable sequences.
    Norseq,
    /// Linked with libslabwright.so.
    So,
    /// A dynamic executable with libslabwright.a in it.
    Archive,
    /// A static executable.
    Static,
}

const MODES: [(Mode, &str); 6] = [
    (Mode::Glibc, "glibc"),
    (Mode::Preload, "preload"),
    (Mode::Norseq, "norseq"),
    (Mode::So, "so"),
    (Mode::Archive, "archive"),
    (Mode::Static, "static"),
];

/// A run takes far less; one that takes this long hangs.
const LIMIT: Duration = Duration::from_secs(240);

/// Where libslabwright.so and .a are, built first.
fn libraries() -> &'static Path {
    static AT: OnceLock<PathBuf> = OnceLock::new();
    AT.get_or_init(|| {
        if let Some(given) = std::env::var_os("SLW_TEST_LIBRARIES") {
            return given.into();
        }
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target directory").to_path_buf();
        let status = Command::new(env!("CARGO"))
            .args([
                "build",
                "--quiet",
                "--release",
                "--package",
                "slabwright-cabi",
                "--package",
                "slabwright-cabi-static",
            ])
            .arg("--target-dir")
            .arg(&target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .expect("cargo runs");
        assert!(status.success(), "the libraries do not build");
        target.join("release")
    })
}

/// A run that a source asks for.
#[derive(Default, Clone, Debug)]
struct Run {
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
    abort: bool,
    silent: bool,
    exit: i32,
    says: Option<String>,
}

impl Run {
    fn parse(line: &str) -> Run {
        let (command, expected) = line.split_once("=>").unwrap_or((line, ""));
        let mut run = Run::default();
        for word in command.split_whitespace() {
            match word.split_once('=') {
                Some((name, value)) if run.arguments.is_empty() => {
                    run.environment.push((name.to_string(), value.to_string()));
                }
                _ => run.arguments.push(word.to_string()),
            }
        }
        let mut rest = expected.trim();
        while !rest.is_empty() {
            let (word, tail) = rest.split_once(' ').unwrap_or((rest, ""));
            rest = tail.trim();
            match word {
                "abort" => run.abort = true,
                "silent" => run.silent = true,
                "exit" => {
                    let (number, tail) = rest.split_once(' ').unwrap_or((rest, ""));
                    run.exit = number.parse().expect("exit N");
                    rest = tail.trim();
                }
                "says" => run.says = Some(std::mem::take(&mut rest).to_string()),
                _ => panic!("unknown expectation {word:?} in {line:?}"),
            }
        }
        run
    }

    fn failure(&self, output: &Output) -> Option<String> {
        let errors = String::from_utf8_lossy(&output.stderr);
        if self.abort && output.status.signal() != Some(libc::SIGABRT) {
            return Some(format!("{} instead of an abort", output.status));
        }
        if !self.abort && output.status.code() != Some(self.exit) {
            return Some(output.status.to_string());
        }
        if self.silent && !output.stderr.is_empty() {
            return Some("not silent".to_string());
        }
        match &self.says {
            Some(text) if !errors.contains(text.as_str()) => Some(format!("does not say {text:?}")),
            _ => None,
        }
    }
}

/// What the `//:` lines of a source say.
struct Wanted {
    modes: Vec<Mode>,
    flags: Vec<String>,
    plugin: Option<String>,
    runs: Vec<Run>,
}

impl Wanted {
    fn read(source: &Path) -> Wanted {
        let text = fs::read_to_string(source).expect("the source");
        let mut wanted = Wanted { modes: Vec::new(), flags: Vec::new(), plugin: None, runs: Vec::new() };
        for line in text.lines().filter_map(|line| line.strip_prefix("//: ")) {
            let (key, value) =
                line.split_once(": ").or(line.strip_suffix(':').map(|key| (key, ""))).expect("KEY: VALUE");
            let words = value.split_whitespace();
            match key {
                "modes" => wanted.modes.extend(words.map(|word| {
                    MODES.iter().find(|(_, name)| *name == word).unwrap_or_else(|| panic!("no mode {word}")).0
                })),
                "flags" => wanted.flags.extend(words.map(str::to_string)),
                "plugin" => wanted.plugin = Some(value.to_string()),
                "run" => wanted.runs.push(Run::parse(value)),
                _ => panic!("unknown key {key:?} in {}", source.display()),
            }
        }
        if wanted.modes.is_empty() {
            wanted.modes.extend(MODES.iter().map(|(mode, _)| *mode));
        }
        if wanted.runs.is_empty() {
            wanted.runs.push(Run::default());
        }
        wanted
    }
}

fn compiler(source: &Path) -> Command {
    let cpp = source.extension().is_some_and(|extension| extension == "cc");
    let mut command = Command::new(if cpp { "c++" } else { "cc" });
    if cpp {
        command.arg("-Wno-mismatched-new-delete");
    }
    command
        .arg(if cpp { "-std=c++17" } else { "-std=gnu17" })
        // Builtins would fold calls to malloc away; a warning fails the test, but these two are of the tests' trade.
        .args([
            "-O1",
            "-g",
            "-Wall",
            "-Wextra",
            "-Wno-alloc-size-larger-than",
            "-Wno-use-after-free",
            "-fno-builtin",
            "-D_GNU_SOURCE",
            "-pthread",
        ])
        .arg("-I")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("include"));
    command
}

fn must(mut command: Command) {
    let output = command.output().expect("the compiler runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{command:?}:\n{errors}");
}

fn build(source: &Path, object: &Path, wanted: &Wanted, mode: Mode, to: &Path) {
    let libraries = libraries();
    let mut command = compiler(source);
    command.arg("-o").arg(to).arg(object);
    match mode {
        Mode::Glibc | Mode::Preload | Mode::Norseq => {}
        Mode::So => {
            let path = libraries.display();
            command.arg("-Wl,--no-as-needed").arg(format!("-L{path}")).arg("-l:libslabwright.so");
            // The old tag: the new one gives way to LD_LIBRARY_PATH, which cargo points at whatever else was built.
            command.arg(format!("-Wl,--disable-new-dtags,-rpath,{path}"));
        }
        Mode::Archive => {
            command.arg(libraries.join("libslabwright.a"));
        }
        Mode::Static => {
            command.arg(libraries.join("libslabwright.a")).arg("-static");
        }
    }
    command.args(&wanted.flags);
    must(command);
}

/// Runs `command` within [`LIMIT`]; one that takes longer is killed, which is no expected outcome.
fn run(mut command: Command) -> Output {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("spawn");
    let drain = |mut pipe: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.read_to_end(&mut bytes);
            bytes
        })
    };
    let stdout = drain(Box::new(child.stdout.take().expect("piped")));
    let stderr = drain(Box::new(child.stderr.take().expect("piped")));
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("wait") {
            break status;
        }
        if start.elapsed() > LIMIT {
            let _ = child.kill();
            break child.wait().expect("wait");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Output { status, stdout: stdout.join().expect("reader"), stderr: stderr.join().expect("reader") }
}

/// Builds and runs `tests/c/NAME` as its `//:` lines say, and reports all failures together.
fn check(name: &str) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c").join(name);
    let wanted = Wanted::read(&source);
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cabi").join(name);
    fs::create_dir_all(&directory).expect("a directory to build in");
    let object = directory.join("object.o");
    let mut command = compiler(&source);
    command.arg("-c").arg("-o").arg(&object).arg(&source);
    must(command);
    let plugin = wanted.plugin.as_ref().map(|plugin| {
        let source = source.with_file_name(plugin);
        let to = directory.join("plugin.so");
        let mut command = compiler(&source);
        command.args(["-shared", "-fPIC", "-o"]).arg(&to).arg(&source);
        must(command);
        to
    });
    let only = std::env::var("SLW_TEST_MODE").ok();
    let mut failures = String::new();
    let mut plain_built = false;
    for (mode, mode_name) in MODES.iter().filter(|(mode, _)| wanted.modes.contains(mode)) {
        if only.as_ref().is_some_and(|only| only != mode_name) {
            continue;
        }
        let plain = matches!(mode, Mode::Glibc | Mode::Preload | Mode::Norseq);
        let program = directory.join(if plain { "plain" } else { mode_name });
        if !(plain && plain_built) {
            build(&source, &object, &wanted, *mode, &program);
            plain_built |= plain;
        }
        for wish in &wanted.runs {
            let mut command = Command::new(&program);
            // The whole heap is checked at the end of every run.
            command.env("SLABWRIGHT_VERIFY", "1").env("MODE", mode_name);
            if matches!(mode, Mode::Preload | Mode::Norseq) {
                command.env("LD_PRELOAD", libraries().join("libslabwright.so"));
            }
            if *mode == Mode::Norseq {
                command.env("GLIBC_TUNABLES", "glibc.pthread.rseq=0").env("SLABWRIGHT_RSEQ", "0");
            }
            if let Some(plugin) = &plugin {
                command.env("PLUGIN", plugin);
            }
            command.envs(wish.environment.iter().map(|(name, value)| (name, value))).args(&wish.arguments);
            let output = run(command);
            if let Some(failure) = wish.failure(&output) {
                let said = String::from_utf8_lossy(&output.stderr);
                let said = said.lines().take(12).collect::<Vec<_>>().join("\n    ");
                failures +=
                    &format!("\n{name} {mode_name} {:?} {:?}: {failure}\n    {said}", wish.environment, wish.arguments);
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

macro_rules! programs {
    ($($name:ident: $file:literal;)*) => {
        $(
            #[test]
            fn $name() {
                check($file);
            }
        )*

        /// The files that have a test above.
        const FILES: &[&str] = &[$($file),*];
    };
}

programs! {
    semantics: "semantics.c";
    errno: "errno.c";
    small: "small.c";
    small_stack: "small_stack.c";
    small_stack_reports: "small_stack_reports.c";
    suites: "suites.c";
    extensions: "extensions.c";
    sizes: "sizes.c";
    aligned: "aligned.c";
    zeroed: "zeroed.c";
    resized: "resized.c";
    operators: "operators.cc";
    operators_alone: "operators_alone.cc";
    operators_late: "operators_late.c";
    containers: "containers.cc";
    threads: "threads.c";
    shared_lines: "shared_lines.c";
    short_threads: "short_threads.c";
    thread_keys: "thread_keys.c";
    fork_under_load: "fork.c";
    fork_alone: "fork_alone.c";
    fork_in_handler: "fork_in_handler.c";
    fork_beside_another_thread: "fork_beside.c";
    fork_handlers: "fork_handlers.c";
    fork_within: "fork_within.c";
    fork_and_streams: "fork_and_streams.c";
    exit_in_handler: "exit_in_handler.c";
    cancelled: "cancelled.c";
    signal_storm: "signal_storm.c";
    vfork_in_threads: "vfork.c";
    spawn: "spawn.c";
    libraries_come_and_go: "libraries.c";
    libraries_bound_deep: "libraries_deep.c";
    libraries_of_an_older_libc: "libraries_older.c";
    first_and_last: "first_and_last.c";
    first_call_is_early: "early.c";
    first_call_is_free: "free_first.c";
    info: "info.c";
    limits: "limits.c";
    limits_late: "limits_late.c";
    limits_patterns: "limits_patterns.c";
    many_mappings: "many_mappings.c";
    not_ours: "not_ours.c";
    group: "group.c";
    moved_cpus: "moved_cpus.c";
    registered: "registered.c";
    refused: "refused.c";
    locked: "locked.c";
    given_back: "given_back.c";
    idle: "idle.c";
    misuse: "misuse.c";
    options: "options.c";
    at_exit: "at_exit.c";
    secure: "secure.c";
    confined: "confined.c";
    filtered: "filtered.c";
    descriptors: "descriptors.c";
    reports: "reports.c";
    report_files: "report_files.c";
    procps: "procps.c";
    kernel_low: "kernel_low.c";
    kernel_pages: "kernel_pages.c";
    kernel_objects: "kernel_objects.c";
    kernel_misuse: "kernel_misuse.c";
    kernel_atomic: "kernel_atomic.c";
    kernel_nodes: "kernel_nodes.c";
    kernel_percpu: "kernel_percpu.c";
    percpu_large: "percpu_large.c";
    kernel_mappings: "kernel_mappings.c";
    kernel_pressure: "kernel_pressure.c";
}

#[test]
fn every_source_has_a_test() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c");
    for entry in fs::read_dir(directory).expect("tests/c") {
        let name = entry.expect("an entry").file_name().into_string().expect("a plain name");
        if name.ends_with(".h") || name.starts_with("plugin") {
            continue;
        }
        assert!(FILES.contains(&name.as_str()), "{name} is run by no test");
    }
}

/// The names the C ABI promises, as `nm -D` shows them.
#[test]
fn symbols() {
    let output = Command::new("nm").args(["-D", "--defined-only"]).arg(libraries().join("libslabwright.so")).output();
    let output = String::from_utf8(output.expect("nm").stdout).expect("text");
    let defined: Vec<&str> = output.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    let names = "malloc free calloc realloc reallocarray posix_memalign aligned_alloc memalign valloc pvalloc \
        malloc_usable_size free_sized free_aligned_sized cfree mallopt mallinfo mallinfo2 malloc_trim malloc_stats \
        malloc_info reallocf malloc_size malloc_good_size mallocx rallocx xallocx sallocx nallocx dallocx sdallocx __libc_malloc __libc_free __libc_calloc \
        __libc_realloc __libc_memalign __libc_valloc __libc_pvalloc __libc_cfree __posix_memalign \
        setrlimit setrlimit64 prlimit prlimit64 mlockall prctl fork __register_atfork dlopen dlsym";
    for name in names.split_whitespace() {
        assert!(defined.contains(&name), "{name} is missing");
    }
    for array in ["w", "a"] {
        for tail in ["m", "mRKSt9nothrow_t", "mSt11align_val_t", "mSt11align_val_tRKSt9nothrow_t"] {
            let name = format!("_Zn{array}{tail}");
            assert!(defined.contains(&name.as_str()), "{name} is missing");
        }
    }
    for array in ["l", "a"] {
        let tails = "Pv Pvm PvRKSt9nothrow_t PvSt11align_val_t PvmSt11align_val_t PvSt11align_val_tRKSt9nothrow_t";
        for tail in tails.split_whitespace() {
            let name = format!("_Zd{array}{tail}");
            assert!(defined.contains(&name.as_str()), "{name} is missing");
        }
    }
    // The header declares what is there, and all of it.
    let header =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("include/slabwright.h")).expect("header");
    // Functions are words before a parenthesis, outside of the preprocessor's lines.
    let code: Vec<&str> = header.lines().filter(|line| !line.starts_with('#')).collect();
    let code = code.join("\n");
    let mut declared: Vec<&str> = code
        .match_indices('(')
        .filter_map(|(at, _)| code[..at].rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '_').next())
        .filter(|word| word.starts_with("slw_"))
        .collect();
    declared.sort_unstable();
    declared.dedup();
    let mut own: Vec<&str> = defined.iter().copied().filter(|name| name.starts_with("slw_")).collect();
    own.sort_unstable();
    assert_eq!(declared, own);
    let strange: Vec<_> = defined
        .iter()
        .filter(|name| !names.split_whitespace().any(|n| n == **name))
        .filter(|name| {
            !["_Zn", "_Zd", "slw_", "__libc_", "vfork", "__vfork"].iter().any(|prefix| name.starts_with(prefix))
        })
        .collect();
    assert!(strange.is_empty(), "{strange:?} leave the library");
}

/// What the shared library needs of others: the C library and nothing else, no dynamic thread-local storage, and it
/// stays.
#[test]
fn dependencies() {
    let library = libraries().join("libslabwright.so");
    let output = Command::new("readelf").args(["-dW", "--dyn-syms"]).arg(&library).output().expect("readelf");
    let output = String::from_utf8(output.stdout).expect("text");
    let needed: Vec<_> = output.lines().filter(|line| line.contains("(NEEDED)")).collect();
    assert!(needed.len() == 1 && needed[0].contains("[libc.so.6]"), "{needed:?}");
    assert!(output.contains("NODELETE"), "{output}");
    assert!(!output.contains("__tls_get_addr"), "{output}");
}

/// malloc and free are in one member of the archive, the operators in another one that C programs do not need.
#[test]
fn archive_members() {
    let output = Command::new("nm").args(["-A", "--defined-only"]).arg(libraries().join("libslabwright.a")).output();
    let output = String::from_utf8(output.expect("nm").stdout).expect("text");
    let member = |name: &str| {
        let mut found = output.lines().filter(|line| line.split_whitespace().last() == Some(name));
        let line = found.next().unwrap_or_else(|| panic!("{name} is missing"));
        assert!(found.next().is_none(), "{name} is defined twice");
        line.split(':').nth(1).expect("member").to_string()
    };
    let first = member("malloc");
    for name in ["free", "calloc", "realloc", "posix_memalign", "malloc_usable_size", "__libc_memalign", "slw_verify"] {
        assert_eq!(member(name), first, "{name}");
    }
    assert_ne!(member("_Znwm"), first);
    assert_eq!(member("_ZdaPvmSt11align_val_t"), member("_Znwm"));
}

/// Hot entry points start cache lines.
#[test]
fn entry_points_are_aligned() {
    let output = Command::new("nm").args(["-D", "--defined-only"]).arg(libraries().join("libslabwright.so")).output();
    let output = String::from_utf8(output.expect("nm").stdout).expect("text");
    for name in ["malloc", "free", "calloc", "realloc", "_Znwm", "_ZdlPv", "_ZdlPvm"] {
        let line = output.lines().find(|line| line.split_whitespace().nth(2) == Some(name)).expect(name);
        let address = usize::from_str_radix(line.split_whitespace().next().expect("address"), 16).expect("hex");
        assert_eq!(address % 64, 0, "{name}");
    }
}

/// The fast paths make no call and have no stack frame; for the operators that is what lets an exception pass.
#[test]
fn fast_paths_have_no_frame() {
    let library = libraries().join("libslabwright.so");
    let output = Command::new("nm").args(["-D", "--defined-only"]).arg(&library).output().expect("nm");
    let output = String::from_utf8(output.stdout).expect("text");
    for name in ["malloc", "free", "_Znwm", "_Znam", "_ZnwmRKSt9nothrow_t", "_ZdlPv", "_ZdlPvm"] {
        let line = output.lines().find(|line| line.split_whitespace().nth(2) == Some(name)).expect(name);
        let start = usize::from_str_radix(line.split_whitespace().next().expect("address"), 16).expect("hex");
        let mut command = Command::new("objdump");
        command.args(["-d", "--no-show-raw-insn", &format!("--start-address={start:#x}")]);
        let code = command.arg(format!("--stop-address={:#x}", start + 512)).arg(&library).output().expect("objdump");
        let code = String::from_utf8(code.stdout).expect("text");
        // The function ends where the next one starts: at a symbol, or at the padding before it.
        let body: Vec<&str> = code
            .lines()
            .skip_while(|line| !line.ends_with(">:"))
            .skip(1)
            .take_while(|line| !line.ends_with(">:") && !line.contains("int3"))
            .collect();
        assert!(body.iter().any(|line| line.contains("ret") || line.contains("jmp")), "{name}:\n{code}");
        for word in ["call", "push", "sub    $0x8,%rsp"] {
            assert!(!body.iter().any(|line| line.contains(word)), "{name} has a {word}:\n{}", body.join("\n"));
        }
    }
}

/// The header is clean in every dialect, may be included twice, and clashes with no other one, in whatever order they
/// come.
#[test]
fn header() {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cabi");
    fs::create_dir_all(&directory).expect("a directory");
    let plain = "#include <slabwright.h>\n#include <slabwright.h>\n\
        int main(void) { slw_free(slw_malloc(1)); slw_page *page = slw_alloc_page(SLW_GFP_KERNEL);\n\
        slw___free_page(page); return slw_version() == 0; }\n";
    let kernel = "#define SLW_KERNEL_NAMES\n#include <slabwright.h>\n#include <slabwright.h>\n\
        int main(void) { struct page *page = alloc_pages(GFP_KERNEL | __GFP_ZERO, 2); gfp_t gfp = GFP_ATOMIC;\n\
        struct kmem_cache *cache = kmem_cache_create(\"c\", 8, 0, SLAB_HWCACHE_ALIGN, 0);\n\
        kfree(kmalloc(8, gfp)); __free_pages(page, 2); free_page(get_zeroed_page(GFP_DMA32)); kmem_cache_destroy(cache);\n\
        return 0; }\n";
    let names = "#define SLW_KERNEL_NAMES\n#include <slabwright.h>\n";
    let all = |first: &str, system: &str, last: &str| {
        format!(
            "{first}{system}{last}#include <slabwright.h>\nstatic DEFINE_PER_CPU(unsigned long, count) = 3;\n\
            int main(void) {{ int cpu; unsigned long sum = 0; int *own = alloc_percpu(int); if (!own) return 1;\n\
            this_cpu_inc(count); get_cpu_var(count) += 2; put_cpu_var(count); *get_cpu_ptr(own) += 1; put_cpu_ptr(own);\n\
            for_each_possible_cpu(cpu) sum += per_cpu(count, cpu);\n free_percpu(own); return sum == 0; }}\n"
        )
    };
    let c_system: String = [
        "sys/mman.h",
        "linux/types.h",
        "pthread.h",
        "stdio.h",
        "stdlib.h",
        "string.h",
        "malloc.h",
        "unistd.h",
        "sched.h",
        "sys/user.h",
        "sys/shm.h",
        "sys/socket.h",
        "netinet/in.h",
        "linux/fs.h",
        "linux/mman.h",
        "linux/futex.h",
        "linux/perf_event.h",
    ]
    .map(|name| format!("#include <{name}>\n"))
    .concat();
    let cpp_system = "#include <iostream>\n#include <map>\n#include <memory>\n#include <string>\n#include <vector>\n#include <sys/mman.h>\n";
    let (c_first, c_last) = (all(names, &c_system, ""), all("", &c_system, names));
    let (cpp_first, cpp_last) = (all(names, cpp_system, ""), all("", cpp_system, names));
    let (c, cpp) = (["c99", "c11", "c17", "c2x"], ["c++98", "c++11", "c++17", "c++20"]);
    for (file, text, compiler, dialects) in [
        ("header.c", plain, "cc", c),
        ("header.cc", plain, "c++", cpp),
        ("names.c", kernel, "cc", c),
        ("names.cc", kernel, "c++", cpp),
        ("before.c", &c_first, "cc", c),
        ("behind.c", &c_last, "cc", c),
        ("before.cc", &cpp_first, "c++", cpp),
        ("behind.cc", &cpp_last, "c++", cpp),
    ] {
        let source = directory.join(file);
        fs::write(&source, text).expect("written");
        for dialect in dialects {
            let mut command = Command::new(compiler);
            let warnings = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"];
            command.arg(format!("-std={dialect}")).args(warnings).args(["-c", "-I"]);
            command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("include"));
            command.arg("-o").arg(directory.join("header.o")).arg(&source);
            must(command);
        }
    }
}
