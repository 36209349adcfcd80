//! The other allocators, each as a library to preload: a distribution's package, or sources of a package of crates.io
//! that `benches/peers/NAME.sh` builds the way their authors do.
//!
//! A script is run by `sh -eu` in an empty folder, with `$SOURCE`, the unpacked package, `$VERSION`, `$OUT`, the
//! library to make, and `$JOBS`. Comments at its top say `# package: NAME`, `# needs: COMMAND…` and, for what must be
//! set where it runs, `# env: NAME=VALUE`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Result, shell};

/// Where an allocator comes from.
enum From {
    /// The C library itself: preloaded like the others, since a program may be linked with another malloc.
    Libc,
    /// File name of a library, and the package of Debian that has it.
    Installed(&'static str, &'static str),
    /// A script in `benches/peers`.
    Built,
}

const PEERS: &[(&str, From)] = &[
    ("glibc", From::Libc),
    ("jemalloc", From::Built),
    ("mimalloc2", From::Built),
    ("mimalloc3", From::Built),
    ("snmalloc", From::Built),
    ("rpmalloc", From::Built),
    ("tcmalloc", From::Installed("libtcmalloc_minimal.so.4", "libtcmalloc-minimal4")),
    ("tcmalloc-google", From::Built),
];

/// An allocator to run under.
#[derive(Clone)]
pub struct Allocator {
    pub name: &'static str,
    /// What is preloaded.
    pub library: PathBuf,
    /// A variable and its value.
    pub variable: Option<(String, String)>,
}

impl Allocator {
    pub fn new(name: &'static str, library: PathBuf) -> Allocator {
        Allocator { name, library, variable: None }
    }

    /// Makes what `command` starts run on this allocator.
    pub fn serve<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("LD_PRELOAD", &self.library).envs(self.variable.clone())
    }
}

/// The allocators, with libraries in new files of the folder `dir`: how fast a program is depends on the pages of
/// memory that the file happens to lie in, as long as it lies there. (`server` took half as long again with one of two
/// equal files, whatever its name.)
pub fn lay_anew(allocators: &[Allocator], dir: &Path) -> Result<Vec<Allocator>> {
    fs::create_dir_all(dir)?;
    let lay = |allocator: &Allocator| {
        let mut laid = allocator.clone();
        // Of the C library a program has one.
        if !is_libc(laid.name) {
            laid.library = dir.join(allocator.library.file_name().ok_or("a library has a name")?);
            fs::copy(&allocator.library, &laid.library)?;
            // Not while something is measured.
            File::open(&laid.library)?.sync_all()?;
        }
        Ok(laid)
    };
    allocators.iter().map(lay).collect()
}

fn is_libc(name: &str) -> bool {
    PEERS.iter().any(|(peer, from)| *peer == name && matches!(from, From::Libc))
}

/// Whether there are peers of these names.
pub fn check(wanted: &[String]) -> Result {
    let Some(unknown) = wanted.iter().find(|name| !PEERS.iter().any(|(peer, _)| peer == name)) else { return Ok(()) };
    let known: Vec<&str> = PEERS.iter().map(|(name, _)| *name).collect();
    Err(format!("there is no peer `{unknown}`, only {}", known.join(", ")).into())
}

/// The peers in `wanted`, all where it is empty, as far as they can be had, and a line for each that cannot.
pub fn peers(wanted: &[String]) -> Result<(Vec<Allocator>, Vec<String>)> {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for (name, from) in PEERS.iter().filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|w| w == name)) {
        let allocator = match from {
            From::Libc => libc().map(|library| Allocator::new(name, library)),
            From::Installed(file, package) => installed(file)
                .map(|library| Allocator::new(name, library))
                .ok_or_else(|| format!("apt-get install {package}").into()),
            From::Built => build(name),
        };
        match allocator.and_then(|allocator| probe(&allocator).map(|()| allocator)) {
            Ok(allocator) => found.push(allocator),
            Err(error) => missing.push(format!("{name} is left out: {error}")),
        }
    }
    Ok((found, missing))
}

/// The library `file` in the folders where distributions put them.
fn installed(file: &str) -> Option<PathBuf> {
    ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib"]
        .iter()
        .map(|folder| Path::new(folder).join(file))
        .find(|path| path.exists())
}

/// Peer `name`, whose library is made if it is not there, or was made by another script or of another version.
fn build(name: &'static str) -> Result<Allocator> {
    let script = shell::root().join(format!("benches/peers/{name}.sh"));
    let text = fs::read_to_string(&script)?;
    let head = |key| head(&text, key).ok_or_else(|| format!("no `# {key}:` in {}", script.display()));
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(need) = head("needs")?.split(' ').find(|need| !shell::is_command(need, &path)) {
        return Err(format!("there is no `{need}`").into());
    }
    let target = shell::target().join("peers");
    let (library, stamp) = (target.join(format!("lib{name}.so")), target.join(format!("{name}.stamp")));
    let source = sources()?.join(head("package")?);
    let version = version(&fs::read_to_string(source.join("Cargo.toml"))?)?.to_owned();
    let made_of = format!("{version}\n{text}");
    let mut allocator = Allocator::new(name, library.clone());
    let variable = head("env").ok().and_then(|setting| setting.split_once('='));
    allocator.variable = variable.map(|(variable, value)| (variable.to_owned(), value.to_owned()));
    if library.exists() && fs::read_to_string(&stamp).is_ok_and(|stamp| stamp == made_of) {
        return Ok(allocator);
    }
    eprintln!("building {name} from {} {version}, once", source.display());
    let dir = target.join(name);
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    let log = target.join(format!("{name}.log"));
    let jobs = std::env::var("CARGO_BUILD_JOBS").ok();
    let jobs = jobs.or_else(|| std::thread::available_parallelism().ok().map(|cpus| cpus.to_string()));
    let mut shell = Command::new("sh");
    shell.arg("-eu").arg(&script).current_dir(&dir);
    shell
        .env("SOURCE", &source)
        .env("VERSION", version)
        .env("OUT", &library)
        .env("JOBS", jobs.unwrap_or("1".to_owned()));
    let output = File::create(&log)?;
    shell.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    if !shell.status()?.success() || !library.exists() {
        return Err(format!("it cannot be built, see {}", log.display()).into());
    }
    fs::remove_dir_all(&dir)?;
    fs::write(&stamp, made_of)?;
    Ok(allocator)
}

/// What stands behind `# KEY: ` in a script.
pub fn head<'a>(script: &'a str, key: &str) -> Option<&'a str> {
    script.lines().find_map(|line| line.strip_prefix("# ")?.strip_prefix(key)?.strip_prefix(": "))
}

/// The folder where the packages of `benches/peers` lie unpacked.
fn sources() -> Result<PathBuf> {
    let (folder, lock) = (shell::target().join("peers/sources"), shell::root().join("benches/peers/Cargo.lock"));
    let (stamp, made_of) = (folder.with_file_name("sources.stamp"), fs::read_to_string(lock)?);
    if !fs::read_to_string(&stamp).is_ok_and(|stamp| stamp == made_of) {
        let mut vendor = shell::cargo();
        vendor.args(["vendor", "--quiet", "--locked", "--manifest-path", "benches/peers/Cargo.toml"]).arg(&folder);
        shell::run(vendor.stdout(Stdio::null()))?;
        fs::write(&stamp, made_of)?;
    }
    Ok(folder)
}

/// The version that a package's `Cargo.toml` states.
fn version(manifest: &str) -> Result<&str> {
    let quoted = manifest.lines().find_map(|line| line.strip_prefix("version = "));
    Ok(quoted.ok_or("a package without a version")?.trim_matches('"'))
}

/// Where each function of an allocator's interface, C++'s too, comes from: its name and the file.
fn served(command: &mut Command) -> Result<Vec<(String, PathBuf)>> {
    let listing = shell::output(command)?;
    let pairs = listing.lines().filter_map(|line| line.split_once(": "));
    Ok(pairs.map(|(name, file)| (name.to_owned(), PathBuf::from(file))).collect())
}

/// The C library.
fn libc() -> Result<PathBuf> {
    let own = served(Command::new(super::compile("probe.cc")?).env_remove("LD_PRELOAD"))?;
    let malloc = own.into_iter().find(|(name, _)| name == "malloc").ok_or("no malloc in the C library")?;
    Ok(malloc.1)
}

/// Whether every function is `allocator`'s where it is preloaded. (The C library leaves C++'s operators to another one,
/// which calls it.)
pub fn probe(allocator: &Allocator) -> Result {
    let served = served(allocator.serve(&mut Command::new(super::compile("probe.cc")?)))?;
    let operators = !is_libc(allocator.name);
    let other =
        |(name, file): &&(String, PathBuf)| *file != allocator.library && (operators || !name.starts_with("_Z"));
    match served.iter().find(other) {
        None => Ok(()),
        Some((name, file)) => Err(format!("preloaded, it does not serve {name}, which is {}'s", file.display()).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_told_the_known_ones() {
        assert!(check(&["glibc".to_owned(), "jemalloc".to_owned()]).is_ok());
        let error = check(&["glibc".to_owned(), "malloc".to_owned()]).unwrap_err().to_string();
        assert!(error.starts_with("there is no peer `malloc`, only glibc, "), "{error}");
    }

    #[test]
    fn libraries_are_laid_anew_but_the_c_library() {
        let dir = std::env::temp_dir().join(format!("slabwright-bench-{}", std::process::id()));
        let file = dir.join("of/libx.so");
        fs::create_dir_all(dir.join("of")).unwrap();
        fs::write(&file, "x").unwrap();
        let all = lay_anew(&["x", "glibc"].map(|name| Allocator::new(name, file.clone())), &dir.join("new")).unwrap();
        assert_eq!(all[0].library, dir.join("new/libx.so"));
        assert_eq!(fs::read(&all[0].library).unwrap(), b"x");
        assert_eq!(all[1].library, file);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn every_built_peer_has_a_script_and_a_package() {
        let manifest = fs::read_to_string(shell::root().join("benches/peers/Cargo.toml")).unwrap();
        for (name, _) in PEERS.iter().filter(|(_, from)| matches!(from, From::Built)) {
            let text = fs::read_to_string(shell::root().join(format!("benches/peers/{name}.sh"))).unwrap();
            let package = head(&text, "package").unwrap();
            assert!(manifest.contains(&format!("\n{package} = ")), "{name}");
            assert!(head(&text, "needs").is_some(), "{name}");
        }
    }

    #[test]
    fn the_first_version_is_the_packages() {
        assert_eq!(version("[package]\nversion = \"1.2\"\n[dependencies.x]\nversion = \"3\"\n").unwrap(), "1.2");
        assert!(version("[package]\n").is_err());
    }
}
