//! libc's area of restartable sequences in a program without a loader that could be asked for it.
//!
//! A reference to `__rseq_offset` would make a shared library demand the libc that has it, so it stands in the static
//! library only (`cabi/static`), in a table that is referred to weakly from here.

use core::arch::asm;

/// Addresses of `__rseq_offset` and `__rseq_size`, null in a libc that has none.
#[repr(C)]
struct Table {
    offset: *const isize,
    size: *const u32,
}

/// Offset of the area that libc registered; `None` where it registered none, or where the table is not linked.
pub(super) fn area() -> Option<isize> {
    let table: *const Table;
    // SAFETY: loads a link-time constant.
    unsafe {
        asm!(
            // Said here, because the object that this is compiled into is the one that has to say it.
            ".weak slabwright_static_rseq",
            ".hidden slabwright_static_rseq",
            "mov {}, qword ptr [rip + slabwright_static_rseq@GOTPCREL]",
            out(reg) table,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    // SAFETY: null or the table, whose pointers are null or libc's objects, constant once the program has started.
    unsafe {
        let table = table.as_ref()?;
        let size = table.size.as_ref().copied()?;
        let offset = table.offset.as_ref().copied()?;
        (size != 0).then_some(offset)
    }
}
