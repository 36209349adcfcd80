//! The shape of the crate, held against its sources: who may name whom, and where `unsafe` may stand.
//!
//! The checker reads the sources as text: comments and literals are blanked, code under `#[cfg(test)]` is left out,
//! then every path that starts with `crate::`, `super::` or `self::` is resolved to the module it names. That is enough
//! because the crate names its own modules in no other way.
//!
//! That each `unsafe` block has its SAFETY comment is clippy's `undocumented_unsafe_blocks` (denied in `Cargo.toml`).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The layers, lowest first. A module names its own folder or a lower layer; the words of layer 0 may name each other.
const LAYERS: &[(&str, u32)] = &[
    ("config", 0),
    ("error", 0),
    ("gfp", 0),
    ("types", 0),
    ("paging", 0),
    ("sync", 1),
    ("page", 2),
    ("machine", 3),
    ("zone", 4),
    ("slab", 5),
    ("vmalloc", 5),
    ("mm", 6),
    ("api", 7),
    ("global", 7),
    ("kernel", 8),
];

/// Modules of a low layer that only the named ones may use: the core is generic over its machine.
const RESERVED: &[(&str, &[&str])] = &[
    ("machine::linux", &["machine", "global", "kernel"]),
    ("machine::sim", &["machine"]),
    ("machine::i386", &["machine", "global"]),
];

/// Folders (with a slash at the end) and files that may hold `unsafe` code, and why they must.
const UNSAFE: &[(&str, &str)] = &[
    ("sync/lock.rs", "the guarded cell"),
    ("machine/", "memory, system calls, assembly"),
    ("zone/raw.rs", "the table of pageblocks, clearing pages"),
    ("zone/api.rs", "takes frames in: whose they were the caller says"),
    ("slab/", "objects are raw memory"),
    ("mm/malloc.rs", "routing of raw addresses to the layers"),
    ("mm/fork.rs", "locks across a fork"),
    ("mm/mod.rs", "objects of the reserve"),
    ("mm/deferred.rs", "links in freed blocks"),
    ("mm/large.rs", "zeroes runs and pushes them into sheaves"),
    ("mm/realloc.rs", "copies"),
    ("mm/global_alloc.rs", "GlobalAlloc"),
    ("vmalloc/node.rs", "nodes in raw pages"),
    ("vmalloc/index.rs", "tables in raw pages"),
    ("vmalloc/backing.rs", "zeroes and copies what the areas hold"),
    ("vmalloc/slots.rs", "gives pages to nodes and tables"),
    ("vmalloc/mod.rs", "locks across a fork; frees areas by their address"),
    ("vmalloc/realloc.rs", "moves areas by their address"),
    ("vmalloc/mapping.rs", "unmaps by address"),
    ("vmalloc/source.rs", "gives frames back"),
    ("mm/migrate.rs", "copies pages"),
    ("mm/mempool.rs", "elements behind the pool; the program's functions"),
    ("mm/shrinker.rs", "the program's functions"),
    ("mm/kmalloc.rs", "clears and marks objects"),
    ("mm/caches.rs", "frees raw objects, ends caches"),
    ("mm/pages.rs", "frees raw pages"),
    ("mm/mapping.rs", "frees and unmaps raw areas"),
    ("mm/percpu/mod.rs", "maps and copies in raw memory"),
    ("kernel/percpu.rs", "copies of static variables"),
    ("kernel/mod.rs", "takes over caches that C constructs"),
    ("api/", "owns what raw addresses stand for"),
    ("global.rs", "the static instance and GlobalAlloc"),
];

/// A source file: its path below `src/` and its text.
struct Source {
    path: String,
    text: String,
}

/// The module path of a file: `slab/mod.rs` is `slab`, `slab/cache.rs` is `slab::cache`, `lib.rs` is the root.
fn module_of(path: &str) -> Vec<String> {
    let path = path.strip_suffix(".rs").unwrap_or(path);
    let mut parts: Vec<String> = path.split('/').map(str::to_owned).collect();
    if matches!(parts.last().map(String::as_str), Some("mod" | "lib")) {
        parts.pop();
    }
    parts
}

/// `text` with comments and the insides of string and character literals made blank; lines keep their numbers.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    let keep = |byte: u8| if byte == b'\n' { b'\n' } else { b' ' };
    while at < bytes.len() {
        let end = if bytes[at..].starts_with(b"//") {
            at + bytes[at..].iter().position(|&b| b == b'\n').unwrap_or(bytes.len() - at)
        } else if bytes[at..].starts_with(b"/*") {
            let (mut depth, mut end) = (1, at + 2);
            while depth > 0 && end < bytes.len() {
                match &bytes[end..] {
                    [b'/', b'*', ..] => (depth, end) = (depth + 1, end + 2),
                    [b'*', b'/', ..] => (depth, end) = (depth - 1, end + 2),
                    _ => end += 1,
                }
            }
            end
        } else {
            literal_end(bytes, at)
        };
        if end == at {
            out.push(bytes[at]);
            at += 1;
        } else {
            out.extend(bytes[at..end].iter().map(|&b| keep(b)));
            at = end;
        }
    }
    String::from_utf8(out).expect("blanking keeps or removes whole characters")
}

/// Where the string or character literal at `at` ends; `at` where there is none.
fn literal_end(bytes: &[u8], at: usize) -> usize {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let quoted = |open: usize, quote: u8| {
        let mut end = open + 1;
        while end < bytes.len() && bytes[end] != quote {
            end += if bytes[end] == b'\\' { 2 } else { 1 };
        }
        (end + 1).min(bytes.len())
    };
    match bytes[at] {
        b'"' => quoted(at, b'"'),
        b'r' if at == 0 || !word(bytes[at - 1]) || bytes[at - 1] == b'b' || bytes[at - 1] == b'c' => {
            let hashes = bytes[at + 1..].iter().take_while(|&&b| b == b'#').count();
            if bytes.get(at + 1 + hashes) != Some(&b'"') {
                return at;
            }
            let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
            let body = at + 2 + hashes;
            let found = bytes[body..].windows(close.len()).position(|window| window == close);
            found.map_or(bytes.len(), |found| body + found + close.len())
        }
        // 'a' and '\n' are characters, 'a without a closing quote is a lifetime.
        b'\'' if bytes.get(at + 1) == Some(&b'\\') => quoted(at, b'\''),
        b'\'' => {
            let text = &bytes[at + 1..bytes.len().min(at + 6)];
            let len = match text.first() {
                Some(0xF0..) => 4,
                Some(0xE0..) => 3,
                Some(0xC0..) => 2,
                _ => 1,
            };
            if text.get(len) == Some(&b'\'') { at + len + 2 } else { at }
        }
        _ => at,
    }
}

/// `code` (blanked) without the items under `#[cfg(test)]` and its like, and the names of the modules declared there.
fn without_tests(code: &str) -> (String, Vec<String>) {
    let mut out = code.to_owned();
    let mut modules = Vec::new();
    let mut from = 0;
    while let Some(found) = out[from..].find("#[cfg(") {
        let start = from + found;
        let Some(close) = out[start..].find(")]") else { break };
        let condition = &out[start + 6..start + close];
        from = start + close;
        if !(condition == "test" || condition.starts_with("all(test")) {
            continue;
        }
        // The item ends with the brace that closes its body, or with a semicolon before any brace.
        let (mut depth, mut end) = (0, from + 2);
        for (offset, byte) in out[from + 2..].bytes().enumerate() {
            end = from + 3 + offset;
            match byte {
                b'{' => depth += 1,
                b'}' => depth -= 1,
                b';' if depth == 0 => break,
                _ => continue,
            }
            if byte == b'}' && depth == 0 {
                break;
            }
        }
        let item = out[from + 2..end].trim_start().trim_start_matches("pub(crate) ").trim_start_matches("pub ");
        if let Some(name) = item.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';')) {
            modules.push(name.trim().to_owned());
        }
        let hidden: String = out[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        out.replace_range(start..end, &hidden);
        from = end;
    }
    (out, modules)
}

/// Every path of the crate's own modules that `code` (blanked) names, absolute, with its line.
fn paths(module: &[String], code: &str) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    for root in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(root) {
            let before = code[..at].bytes().next_back();
            if before.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':' || b == b'$') {
                continue;
            }
            let line = code[..at].matches('\n').count() + 1;
            let mut base = if root == "crate::" { Vec::new() } else { module.to_vec() };
            let mut rest = &code[at..];
            loop {
                if let Some(tail) = rest.strip_prefix("super::") {
                    base.pop();
                    rest = tail;
                } else if let Some(tail) = rest.strip_prefix("crate::").or_else(|| rest.strip_prefix("self::")) {
                    rest = tail;
                } else {
                    break;
                }
            }
            expand(&base, rest, &mut |path| found.push((line, path)));
        }
    }
    found
}

/// Calls `each` with every path of a use tree (`a::b`, `a::{b, c::d}`) below `base`.
fn expand(base: &[String], tree: &str, each: &mut dyn FnMut(Vec<String>)) {
    let mut path = base.to_vec();
    let mut rest = tree.trim_start();
    loop {
        if let Some(group) = rest.strip_prefix('{') {
            let (mut depth, mut start) = (0, 0);
            for (at, byte) in group.bytes().enumerate() {
                match byte {
                    b'{' => depth += 1,
                    b'}' if depth > 0 => depth -= 1,
                    b',' | b'}' if depth == 0 => {
                        if !group[start..at].trim().is_empty() {
                            expand(&path, &group[start..at], each);
                        }
                        start = at + 1;
                        if byte == b'}' {
                            return;
                        }
                    }
                    _ => {}
                }
            }
            return;
        }
        let len = rest.bytes().take_while(|&b| b.is_ascii_alphanumeric() || b == b'_').count();
        if len > 0 && &rest[..len] != "self" {
            path.push(rest[..len].to_owned());
        }
        match rest[len..].trim_start().strip_prefix("::") {
            Some(tail) if len > 0 => rest = tail.trim_start(),
            _ => return each(path),
        }
    }
}

fn starts_with(path: &[String], prefix: &str) -> bool {
    let mut parts = path.iter();
    prefix.split("::").all(|part| parts.next().is_some_and(|have| have == part))
}

/// All that is wrong with `sources`, one line each.
fn check(sources: &[Source]) -> Vec<String> {
    let layer = |name: &str| LAYERS.iter().find(|(n, _)| *n == name).map(|&(_, layer)| layer);
    let mut faults = Vec::new();
    let mut test_files = BTreeSet::new();
    let mut read = Vec::new();
    for source in sources {
        let module = module_of(&source.path);
        let (code, tests) = without_tests(&blank(&source.text));
        for name in tests {
            test_files.insert([module.clone(), vec![name]].concat());
        }
        read.push((source, module, code));
    }
    for (source, module, code) in &read {
        let path = &source.path;
        let test_only = test_files.iter().any(|t| module.starts_with(t));
        let allows = code.matches("allow(unsafe_code").count();
        let listed =
            UNSAFE.iter().any(|(name, _)| if name.ends_with('/') { path.starts_with(name) } else { path == name });
        if allows > 0 && !listed && !test_only {
            faults.push(format!("{path}: holds unsafe code but is not in the list of tests/layering.rs"));
        }
        // The root declares all modules and names them in its documentation.
        if module.is_empty() || test_only {
            continue;
        }
        let Some(own) = layer(&module[0]) else {
            faults.push(format!("{path}: module `{}` has no layer in tests/layering.rs", module[0]));
            continue;
        };
        for (line, named) in paths(module, code) {
            let Some(first) = named.first() else { continue };
            let Some(theirs) = layer(first) else { continue };
            if *first != module[0] && theirs >= own && (theirs, own) != (0, 0) {
                let how = if theirs == own { "a sibling" } else { "a higher layer" };
                faults.push(format!("{path}:{line}: names `{}`, {how}", named.join("::")));
            }
            for (reserved, users) in RESERVED {
                if starts_with(&named, reserved) && !users.contains(&module[0].as_str()) {
                    faults.push(format!("{path}:{line}: names `{reserved}`, which only {users:?} may"));
                }
            }
        }
    }
    faults
}

fn sources() -> Vec<Source> {
    fn collect(root: &Path, dir: &Path, into: &mut Vec<Source>) {
        let mut entries: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for entry in entries {
            if entry.is_dir() {
                collect(root, &entry, into);
            } else if entry.extension().is_some_and(|e| e == "rs") {
                let path = entry.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                into.push(Source { path, text: std::fs::read_to_string(&entry).unwrap() });
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    collect(&root, &root, &mut all);
    all
}

#[test]
fn the_crate_keeps_its_layers() {
    let sources = sources();
    assert!(sources.len() > 10, "the sources are there");
    let mut report = String::new();
    for fault in check(&sources) {
        writeln!(report, "  {fault}").unwrap();
    }
    assert!(report.is_empty(), "\n{report}");
}

#[test]
fn the_list_of_unsafe_modules_names_what_exists() {
    let sources = sources();
    for (name, _) in UNSAFE {
        assert!(sources.iter().any(|s| s.path.starts_with(name)), "{name} is in the list but not in the crate");
    }
}

/// Every root-level module has a layer, and the deny that the list rests on is in force.
#[test]
fn the_root_denies_unsafe() {
    let root = sources().into_iter().find(|s| s.path == "lib.rs").unwrap();
    let code = blank(&root.text);
    assert!(code.contains("#![deny(unsafe_code)]") && code.contains("#![no_std]"));
}

mod checker {
    use super::*;

    fn faults(path: &str, text: &str) -> Vec<String> {
        check(&[Source { path: path.to_owned(), text: text.to_owned() }])
    }

    #[test]
    fn sees_a_higher_layer() {
        assert_eq!(
            faults("zone/mod.rs", "use crate::types::Pfn;\nuse crate::slab::Slab;"),
            ["zone/mod.rs:2: names `slab::Slab`, a higher layer"]
        );
        assert_eq!(faults("page/list.rs", "fn f() { crate::mm::go() }").len(), 1);
        assert_eq!(faults("zone/mod.rs", "use super::mm::Mm;").len(), 1);
        assert_eq!(faults("zone/buddy.rs", "use super::super::mm::Mm;").len(), 1);
        assert_eq!(faults("zone/buddy.rs", "use super::mm::Mm;").len(), 0);
    }

    #[test]
    fn sees_into_groups() {
        assert_eq!(faults("zone/mod.rs", "use crate::{types::{Pfn, Order}, mm::{\n self, Mm}};").len(), 2);
        assert_eq!(faults("zone/mod.rs", "pub(crate) use crate::{page::{A, B}, global::C};").len(), 1);
    }

    #[test]
    fn keeps_siblings_apart() {
        assert_eq!(
            faults("slab/mod.rs", "use crate::vmalloc::Vmalloc;"),
            ["slab/mod.rs:1: names `vmalloc::Vmalloc`, a sibling"]
        );
        assert_eq!(faults("vmalloc/tree.rs", "type T = crate::slab::Slab<()>;").len(), 1);
        assert_eq!(faults("gfp.rs", "use crate::error::AllocError;").len(), 0);
        assert_eq!(faults("slab/cache.rs", "use crate::slab::barn::Barn; use super::node;").len(), 0);
    }

    #[test]
    fn keeps_machines_to_the_instance() {
        assert_eq!(faults("mm/mod.rs", "use crate::machine::linux::Linux;").len(), 1);
        assert_eq!(faults("mm/mod.rs", "use crate::machine::{Machine, sim::Sim};").len(), 1);
        assert_eq!(faults("global.rs", "use crate::machine::linux::Linux;").len(), 0);
    }

    #[test]
    fn ignores_comments_literals_and_tests() {
        let text = r##"
            //! See [`crate::mm`].
            /* crate::mm::Mm /* nested */ crate::mm */
            const A: &str = "crate::mm \" crate::mm"; const B: &str = r#"" crate::mm"#; const C: char = '"';
            fn f<'a>(x: &'a u8) {}
            #[cfg(test)]
            mod tests { use crate::mm::Mm; fn f() { {} } }
            #[cfg(all(test, feature = "sim"))]
            use crate::mm::Other;
        "##;
        assert_eq!(faults("zone/mod.rs", text), [""; 0]);
        assert_eq!(faults("zone/mod.rs", &format!("{text} use crate::mm::Mm;")).len(), 1);
        let tests = Source { path: "zone/tests.rs".into(), text: "use crate::mm::Mm;".into() };
        let parent = Source { path: "zone/mod.rs".into(), text: "#[cfg(test)]\nmod tests;".into() };
        assert_eq!(check(&[parent, tests]).len(), 0);
    }

    #[test]
    fn sees_unlisted_unsafe_and_unknown_modules() {
        assert_eq!(faults("zone/buddy.rs", "#![allow(unsafe_code, missing_docs)]").len(), 1);
        assert_eq!(faults("machine/linux/sys.rs", "#![allow(unsafe_code)]").len(), 0);
        assert_eq!(faults("zone/buddy.rs", "// #![allow(unsafe_code)]").len(), 0);
        assert_eq!(faults("misc/mod.rs", "").len(), 1);
    }
}
