//! A kernel of one's own, made as the section "In a kernel" of `README.md` says: a crate outside of the workspace that
//! has the section's program, and the files that it says to copy.

use std::fs;
use std::path::PathBuf;

use crate::i386::{TARGET, with_core};
use crate::{Result, shell};

const MANIFEST: &str = r#"[workspace]

[package]
name = "own-kernel"
edition = "2024"

[dependencies]
slabwright = { path = "ROOT", features = ["i386"] }

[profile.release]
panic = "abort"
"#;

/// What a copied file says that a copy is to say otherwise.
fn altered(text: &str, from: &str, to: &str) -> Result<String> {
    if text.matches(from).count() == 1 {
        Ok(text.replace(from, to))
    } else {
        Err(format!("`{from}` is not there once").into())
    }
}

/// The program in the section, which is part of a list and so indented.
fn program(readme: &str) -> Result<String> {
    let (_, rest) = readme.split_once("```rust,ignore\n").ok_or("README.md has no such program")?;
    let (text, _) = rest.split_once("```").ok_or("its end is not there")?;
    Ok(text.lines().map(|line| format!("{}\n", line.strip_prefix("   ").unwrap_or(line))).collect())
}

/// Makes and builds it; the path of the image.
pub fn build() -> Result<PathBuf> {
    let (root, own) = (shell::root(), shell::target().join("own-kernel"));
    fs::create_dir_all(own.join("src"))?;
    let path = root.display().to_string();
    fs::write(own.join("Cargo.toml"), altered(MANIFEST, "ROOT", &path)?)?;
    fs::copy(root.join("Cargo.lock"), own.join("Cargo.lock"))?;
    let script = fs::read_to_string(root.join("tests/i386/build.rs"))?;
    let script =
        altered(&script, r#"concat!(env!("CARGO_MANIFEST_DIR"), "/../../src/"#, &format!(r#"concat!("{path}/src/"#))?;
    fs::write(own.join("build.rs"), script)?;
    let runtime = fs::read_to_string(root.join("tests/i386/src/runtime.rs"))?;
    let name = "    if let Some(test) = crate::tests::current() {\n        printk!(\"FAILED {test}\\n\");\n    }\n";
    fs::write(own.join("src/runtime.rs"), altered(&runtime, name, "")?)?;
    let program = program(&fs::read_to_string(root.join("README.md"))?)?;
    fs::write(own.join("src/main.rs"), format!("#![no_std]\n#![no_main]\n\nmod runtime;\n\n{program}"))?;
    let mut cargo = shell::cargo();
    cargo.current_dir(&own).args(["build", "--quiet", "--release", "--target", TARGET]);
    cargo.arg("--target-dir").arg(own.join("target"));
    with_core(&mut cargo)?;
    shell::run(&mut cargo)?;
    Ok(own.join("target").join(TARGET).join("release/own-kernel"))
}
