//! What the built libraries must look like from outside, by `nm` and `readelf`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use crate::{Result, shell};

/// Every symbol that both libraries define, apart from their own `slw_…`: no fewer, so that no call reaches another
/// allocator, and no more, so that nothing else is overridden.
const SYMBOLS: &[&str] = &[
    // C and POSIX
    "malloc",
    "free",
    "calloc",
    "realloc",
    "reallocarray",
    "posix_memalign",
    "aligned_alloc",
    "memalign",
    "valloc",
    "pvalloc",
    "free_sized",
    "free_aligned_sized",
    "cfree",
    // glibc
    "malloc_usable_size",
    "mallopt",
    "mallinfo",
    "mallinfo2",
    "malloc_trim",
    "malloc_stats",
    "malloc_info",
    "__libc_malloc",
    "__libc_free",
    "__libc_calloc",
    "__libc_realloc",
    "__libc_memalign",
    "__libc_valloc",
    "__libc_pvalloc",
    "__libc_cfree",
    "__libc_reallocarray",
    "__libc_mallopt",
    "__libc_mallinfo",
    "__posix_memalign",
    // Its child must not allocate on the parent's memory unseen.
    "vfork",
    "__vfork",
    // They limit or lock addresses that are only reserved.
    "setrlimit",
    "setrlimit64",
    "prlimit",
    "prlimit64",
    "mlockall",
    // It announces filters of system calls.
    "prctl",
    // BSD, macOS, jemalloc
    "reallocf",
    "malloc_size",
    "malloc_good_size",
    "mallocx",
    "rallocx",
    "xallocx",
    "sallocx",
    "nallocx",
    "dallocx",
    "sdallocx",
    // operator new: plain, array, nothrow, aligned
    "_Znwm",
    "_Znam",
    "_ZnwmRKSt9nothrow_t",
    "_ZnamRKSt9nothrow_t",
    "_ZnwmSt11align_val_t",
    "_ZnamSt11align_val_t",
    "_ZnwmSt11align_val_tRKSt9nothrow_t",
    "_ZnamSt11align_val_tRKSt9nothrow_t",
    // operator delete: plain, array, sized, nothrow, aligned
    "_ZdlPv",
    "_ZdaPv",
    "_ZdlPvm",
    "_ZdaPvm",
    "_ZdlPvRKSt9nothrow_t",
    "_ZdaPvRKSt9nothrow_t",
    "_ZdlPvSt11align_val_t",
    "_ZdaPvSt11align_val_t",
    "_ZdlPvmSt11align_val_t",
    "_ZdaPvmSt11align_val_t",
    "_ZdlPvSt11align_val_tRKSt9nothrow_t",
    "_ZdaPvSt11align_val_tRKSt9nothrow_t",
];

/// What only the shared library has: with the static one the handlers of fork are registered as the heap begins, and
/// what a program is linked with is bound to its malloc.
const SHARED_ONLY: &[&str] = &[
    // The heap's handlers of fork are registered before.
    "fork",
    "__register_atfork",
    // Libraries get this malloc, however they are bound.
    "dlopen",
    "dlsym",
];

/// Static TLS that a preloaded or dlopened library may take: the loader's surplus is small and shared.
const MOST_STATIC_TLS: u64 = 64;

/// All checks; each is a name and what was wrong.
pub fn check(library: &Path) -> Vec<(&'static str, Result)> {
    let archive = library.with_extension("a");
    vec![
        ("the shared library exports every symbol and no other", exports(library)),
        ("the static library defines C in one object, and C++ in one", objects(&archive)),
        ("the shared library needs only libc and the loader", needed(library)),
        ("no relocations in code, never unloaded", dynamic(library)),
        ("at most 64 bytes of static TLS, none by call", tls(library)),
        ("no version or symbol of the C library newer than 2.34 needed", versions(library)),
    ]
}

fn readelf(option: &str, file: &Path) -> Result<String> {
    shell::output(Command::new("readelf").args(["--wide", option]).arg(file).env("LC_ALL", "C"))
}

fn nm(options: &[&str], file: &Path) -> Result<String> {
    shell::output(Command::new("nm").arg("--quiet").args(options).arg(file).env("LC_ALL", "C"))
}

/// Complains about `wrong`, if there is any.
fn none(what: &str, wrong: impl IntoIterator<Item = impl AsRef<str>>) -> Result {
    let wrong: Vec<String> = wrong.into_iter().map(|w| w.as_ref().to_owned()).collect();
    if wrong.is_empty() { Ok(()) } else { Err(format!("{what}: {}", wrong.join(", ")).into()) }
}

/// Name of a symbol without its version.
fn plain(name: &str) -> &str {
    name.split('@').next().unwrap_or(name)
}

fn exports(library: &Path) -> Result {
    let listing = nm(&["--dynamic", "--defined-only", "--format=posix"], library)?;
    let have: BTreeSet<&str> = listing.lines().filter_map(|line| line.split(' ').next()).map(plain).collect();
    let want: BTreeSet<&str> = SYMBOLS.iter().chain(SHARED_ONLY).copied().collect();
    none("missing", &want - &have)?;
    none("exported too", have.difference(&want).filter(|name| !name.starts_with("slw_")))
}

/// A linker that takes one symbol of a family from the archive must get the whole family, or it would take the others
/// from the C library, or the C++ library, and define some twice.
fn objects(archive: &Path) -> Result {
    let listing = nm(&["--print-file-name", "--defined-only", "--extern-only", "--format=posix"], archive)?;
    let mut members: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in listing.lines() {
        // libslabwright.a[member.o]: symbol T 0 0
        let Some((member, rest)) = line.split_once(": ") else { continue };
        let Some(symbol) = rest.split(' ').next() else { continue };
        if SYMBOLS.contains(&symbol) || SHARED_ONLY.contains(&symbol) {
            members.entry(symbol).or_default().push(member);
        }
    }
    none("missing", SYMBOLS.iter().filter(|&symbol| !members.contains_key(symbol)))?;
    none("for the shared library only", SHARED_ONLY.iter().filter(|&symbol| members.contains_key(symbol)))?;
    none("defined twice", members.iter().filter(|(_, m)| m.len() > 1).map(|(s, _)| s))?;
    for cxx in [false, true] {
        let family = members.iter().filter(|(symbol, _)| symbol.starts_with("_Z") == cxx);
        let objects: BTreeSet<&str> = family.flat_map(|(_, members)| members.iter().copied()).collect();
        if objects.len() > 1 {
            none("several objects", objects)?;
        }
    }
    Ok(())
}

fn needed(library: &Path) -> Result {
    let listing = readelf("--dynamic", library)?;
    let names = listing.lines().filter(|l| l.contains("(NEEDED)")).filter_map(|l| l.split(['[', ']']).nth(1));
    none("needed", names.filter(|name| !name.starts_with("libc.so.") && !name.starts_with("ld-linux")))
}

fn dynamic(library: &Path) -> Result {
    let listing = readelf("--dynamic", library)?;
    if listing.contains("(TEXTREL)") {
        return Err("has relocations in its code (TEXTREL)".into());
    }
    // A thread may be inside a restartable sequence whose descriptor lies in the library.
    if !listing.contains("NODELETE") {
        return Err("may be unloaded by dlclose (not linked with -z nodelete)".into());
    }
    Ok(())
}

fn tls(library: &Path) -> Result {
    let headers = readelf("--program-headers", library)?;
    for segment in headers.lines().map(str::trim_start).filter(|line| line.starts_with("TLS ")) {
        // TLS Offset VirtAddr PhysAddr FileSiz MemSiz Flg Align
        let size =
            segment.split_whitespace().nth(5).and_then(|s| u64::from_str_radix(s.trim_start_matches("0x"), 16).ok());
        match size {
            Some(size) if size <= MOST_STATIC_TLS => {}
            Some(size) => return Err(format!("{size} bytes of static TLS").into()),
            None => return Err(format!("cannot read `{segment}`").into()),
        }
    }
    let undefined = nm(&["--dynamic", "--undefined-only", "--format=posix"], library)?;
    none("thread-local storage is reached by", undefined.lines().filter(|l| l.contains("__tls_get_addr")))
}

fn versions(library: &Path) -> Result {
    let undefined = nm(&["--dynamic", "--undefined-only", "--format=posix", "--with-symbol-versions"], library)?;
    let newer = undefined.lines().filter_map(|line| line.split(' ').next()).filter(|symbol| {
        let version = symbol.rsplit_once("@GLIBC_").and_then(|(_, v)| v.split('.').nth(1)).and_then(|v| v.parse().ok());
        version.is_some_and(|v: u32| v > 34)
    });
    none("newer than 2.34", newer)
}
