//! libslabwright.a: the C ABI as a static library. Its Rust part is one object, so that a program gets all of the
//! malloc family from here or none of it; the operators new and delete are another (see `cabi/src/lib.rs`).
#![cfg_attr(not(test), no_std)]
#![cfg(not(test))]

#[path = "../../src/kernel.rs"]
mod kernel;
#[path = "../../src/libc_abi.rs"]
mod libc_abi;
#[path = "../../src/process.rs"]
mod process;
#[path = "../../src/report.rs"]
mod report;

// Where libc's area of restartable sequences is (`machine/linux/static_rseq.rs` in the core). Weak: an older libc has
// none.
core::arch::global_asm!(
    ".weak __rseq_offset",
    ".weak __rseq_size",
    ".weak slabwright_static_rseq",
    ".hidden slabwright_static_rseq",
    ".pushsection .data.rel.ro, \"aw\", @progbits",
    ".balign 8",
    "slabwright_static_rseq:",
    ".quad __rseq_offset, __rseq_size",
    ".popsection",
);
