//! Compiles the operators new and delete, which are a member of their own in the archive: only C++ programs link it.

fn main() {
    println!("cargo::rerun-if-changed=../src/cxx.cc");
    cc::Build::new()
        .cpp(true)
        .cpp_link_stdlib(None)
        .file("../src/cxx.cc")
        .std("c++17")
        .opt_level(2)
        .pic(true)
        .debug(false)
        .flag("-fomit-frame-pointer")
        .flag("-fno-plt")
        .flag("-falign-functions=64")
        .compile("slabwright_cxx");
}
