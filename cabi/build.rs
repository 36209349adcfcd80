//! Compiles the C++ part and sets the link arguments of the shared library.

fn main() {
    println!("cargo::rerun-if-changed=src/cxx.cc");
    cc::Build::new()
        .cpp(true)
        .cpp_link_stdlib(None)
        .file("src/cxx.cc")
        .define("SLW_SHARED", None)
        .std("c++17")
        .opt_level(2)
        .pic(true)
        .debug(false)
        .flag("-fomit-frame-pointer")
        .flag("-fno-plt")
        .flag("-fvisibility=hidden")
        .compile("slabwright_cxx");
    // A critical section's descriptor may still be registered with the kernel when the library would be unmapped.
    println!("cargo::rustc-link-arg-cdylib=-Wl,-z,nodelete");
    // Nothing is bound lazily: a lazy binding can call malloc.
    println!("cargo::rustc-link-arg-cdylib=-Wl,-z,now");
    println!("cargo::rustc-link-arg-cdylib=-Wl,-soname,libslabwright.so");
    // No start files: what they bring calls `__cxa_finalize` at the end, and has the loader look for five names; there
    // is nothing for it to do.
    println!("cargo::rustc-link-arg-cdylib=-nostartfiles");
    // What is written at the start begins with a page, so that it is as few of them as can be. (GNU ld warns that it
    // does not know the word.)
    println!("cargo::rustc-link-arg-cdylib=-Wl,-z,separate-loadable-segments");
    // What every program runs lies close together. Linkers that know no such scripts go without.
    let flags = std::env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    if !["mold", "gold", "wild"].iter().any(|linker| flags.contains(linker)) {
        println!("cargo::rustc-link-arg-cdylib=-Wl,-T,{}/order.ld", std::env::var("CARGO_MANIFEST_DIR").unwrap());
    }
    println!("cargo::rerun-if-changed=order.ld");
    println!("cargo::rerun-if-env-changed=CARGO_ENCODED_RUSTFLAGS");
}
