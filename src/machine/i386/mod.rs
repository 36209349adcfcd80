//! A bare i386 as a machine: ring 0 on real page tables, one or more CPUs, no system below.
//!
//! | file | what |
//! |---|---|
//! | [`layout`] | what lies where in the fourth gigabyte |
//! | [`memblock`] | the allocator of boot time |
//! | `boot` | multiboot entry, the order in which all is set up |
//! | `cpu` | control registers, ports, segments |
//! | `console` | the serial line, the way out of QEMU |
//! | `memory` | memmap and direct map ([`Frames`](super::Frames)) |
//! | `paging` | the kernel's page table, TLB ([`Mapping`](super::Mapping)) |
//! | `units` | first fit for small things |
//! | `fixmap`, `ioremap` | fixed addresses, device memory |
//! | `percpu` | per-CPU variables, rows of sheaves ([`PerCpu`](super::PerCpu)) |
//! | `interrupt` | descriptor table, interrupt controllers, the timer |
//! | `stack` | kernel stacks, and what lies below them |
//! | `fault` | page faults, the exception table, oops |
//! | `firmware` | which CPUs there are |
//! | `smp` | starting CPUs, calls from one to another |
//! | `user` | going to ring 3 and back |
//!
//! `layout`, `memblock` and `units` are plain arithmetic and are built everywhere; the rest needs the feature `i386`
//! and an x86 target of 32 bits. Locks of the core are held with interrupts on: a handler is always *nested* (see
//! [`Context`](super::Context)), so it only tries them.

pub mod boot;
pub mod console;
pub mod cpu;
pub mod fault;
pub mod firmware;
pub mod fixmap;
pub mod interrupt;
pub mod ioremap;
pub mod layout;
mod machine;
pub mod memblock;
pub mod memory;
pub mod paging;
pub mod percpu;
pub mod smp;
pub mod stack;
pub mod units;
pub mod user;

#[cfg(all(target_arch = "x86", feature = "i386"))]
pub use machine::{I386, reports, set_aborts};

/// Writes formatted text to the console.
#[macro_export]
macro_rules! printk {
    ($($text:tt)*) => { $crate::machine::i386::console::print(format_args!($($text)*)) };
}

/// Declares static per-CPU variables (`DEFINE_PER_CPU`).
#[macro_export]
macro_rules! per_cpu {
    ($($(#[$meta:meta])* $vis:vis static $name:ident: $type:ty = $init:expr;)*) => {$(
        $(#[$meta])*
        // The linker script gathers the section, and boot copies it.
        #[unsafe(link_section = ".data..percpu")]
        $vis static $name: $crate::machine::i386::percpu::CpuLocal<$type> =
            $crate::machine::i386::percpu::CpuLocal::new($init);
    )*};
}
