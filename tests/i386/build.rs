//! How the image is linked; on a host the package is an empty program.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() != Ok("x86") {
        return;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../src/machine/i386/link.ld");
    println!("cargo:rerun-if-changed={script}");
    let script = format!("-Wl,-T,{script}");
    for argument in
        ["-nostdlib", "-nostartfiles", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,norelro", &script]
    {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}
