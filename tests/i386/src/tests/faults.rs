//! Page faults and exceptions: rows O1 to O5, O12 to O15.

use alloc::format;
use core::ptr::with_exposed_provenance_mut as pointer;

use slabwright::gfp::Gfp;
use slabwright::machine::i386::fault::{copy_checked, faults, fixups, read_byte, search_exception_table, write_byte};
use slabwright::machine::i386::fixmap::{FixedAddress, clear_fixmap, set_fixmap};
use slabwright::machine::i386::layout::fix_to_virt;
use slabwright::machine::i386::paging::{self, Space};
use slabwright::machine::i386::user::{self, End, Task};
use slabwright::machine::i386::{I386, cpu, interrupt, memory};
use slabwright::machine::{Frames, Mapping};
use slabwright::paging::{Access, Area, FaultCode, Flags, Signal};
use slabwright::types::{PAGE_SIZE, Pfn, PhysAddr};

use super::{Test, free_pages};
use crate::kernel::HEAP;

pub const TESTS: &[Test] = &[
    ("O1 X1 all eight codes are told apart", decoded),
    ("O1 X1 faults of the kernel: codes 0, 2 and 3", kernel_codes),
    ("O1 O2 O3 O4 faults of ring 3: codes 4 to 7", user_codes),
    ("O2 O3 O4 O5 areas of a program: faults are served in them, and end it outside or against their rights", areas),
    ("O2 ring 3 may not run what is the kernel's alone", privileged),
    ("I10 a program calls the system through the page at its fixed address, which it may only run and read", vsyscall),
    ("O5 one fault after the other, a thousand times", many),
    ("O12 vmalloc fault: a space made before sees a mapping made later", vmalloc_fault),
    ("O13 O14 a copy that faults says how much is left", partial_copies),
    ("O13 general protection faults have fixups, too", other_exceptions),
];

fn page(gfp: Gfp) -> Pfn {
    HEAP.alloc_pages(gfp, 0, None).expect("a page")
}

fn free(pfn: Pfn) {
    free_pages(pfn, 0);
}

/// That the last fault of this CPU was at `address` with `code`.
fn expect(address: usize, code: u32) {
    let last = faults();
    assert_eq!((last.address, last.code), (address, FaultCode(code)));
}

fn decoded() {
    let said = [
        "0x0: no page, read, kernel",
        "0x1: protection, read, kernel",
        "0x2: no page, write, kernel",
        "0x3: protection, write, kernel",
        "0x4: no page, read, user",
        "0x5: protection, read, user",
        "0x6: no page, write, user",
        "0x7: protection, write, user",
    ];
    for (code, said) in (0..).zip(said) {
        assert_eq!(format!("{}", FaultCode(code)), said);
    }
}

fn kernel_codes() {
    const SCRATCH: usize = FixedAddress::Scratch as usize;
    let unmapped = 0x1000;
    assert_eq!(read_byte(unmapped), None);
    expect(unmapped, 0);
    // SAFETY: nothing is mapped there.
    assert!(!unsafe { write_byte(unmapped, 1) });
    expect(unmapped, FaultCode::WRITE);
    let pfn = page(Gfp::KERNEL.with(Gfp::ZERO));
    let at = set_fixmap::<SCRATCH>(PhysAddr::of(pfn), Flags::NONE);
    assert_eq!(read_byte(at + 5), Some(0), "it may be read");
    // SAFETY: it must fail.
    assert!(!unsafe { write_byte(at + 5, 1) }, "ring 0 heeds write protection");
    expect(at + 5, FaultCode::PROTECTION | FaultCode::WRITE);
    // SAFETY: the page is this test's.
    assert_eq!(unsafe { I386.virt(pfn).add(5).read_volatile() }, 0);
    clear_fixmap::<SCRATCH>();
    free(pfn);
}

/// Where user code, user data and a user page that may only be read lie.
const CODE: usize = 0x0804_8000;
const DATA: usize = 0x4000_0000;
const CONSTANT: usize = 0x4000_1000;
const NOTHING: usize = 0x4000_2000;

/// Runs `code` in ring 3, in a space of its own with a page for each of the above.
fn in_ring_3(code: &[u8]) -> End {
    let frames =
        [page(Gfp::KERNEL.with(Gfp::ZERO)), page(Gfp::KERNEL.with(Gfp::ZERO)), page(Gfp::KERNEL.with(Gfp::ZERO))];
    // SAFETY: the page is this test's, and the code fits.
    unsafe { I386.virt(frames[0]).copy_from_nonoverlapping(code.as_ptr(), code.len()) };
    let space = Space::new().expect("a table");
    for (at, frame, flags) in
        [(CODE, frames[0], Flags::NONE), (DATA, frames[1], Flags::WRITE), (CONSTANT, frames[2], Flags::NONE)]
    {
        space.map(at, frame, flags).expect("tables");
    }
    let end = space.with(|| user::run(CODE, DATA + PAGE_SIZE));
    drop(space);
    frames.into_iter().for_each(free);
    end
}

/// Reads eax from `address` in ring 3 (mov eax, [address]; int 0x80).
fn user_reads(address: usize) -> End {
    let a = (address as u32).to_le_bytes();
    in_ring_3(&[0xa1, a[0], a[1], a[2], a[3], 0xcd, 0x80])
}

/// Writes 42 to `address` in ring 3, reads it back, and ends with a system call.
fn user_writes(address: usize) -> End {
    in_ring_3(&write_and_read(address))
}

fn user_codes() {
    let ok = user_writes(DATA + 8);
    assert_eq!((ok.vector, ok.eax), (interrupt::SYSTEM_CALL, 42), "what is allowed works: {ok:?}");
    assert_eq!(user_reads(CONSTANT).vector, interrupt::SYSTEM_CALL);
    let kernel = memory::high_memory() - PAGE_SIZE;
    let (p, w, u) = (FaultCode::PROTECTION, FaultCode::WRITE, FaultCode::USER);
    for (end, address, code) in [
        (user_reads(NOTHING), NOTHING, u),
        (user_writes(NOTHING), NOTHING, u | w),
        (user_reads(kernel), kernel, u | p),
        (user_writes(kernel), kernel, u | p | w),
        (user_writes(CONSTANT), CONSTANT, u | p | w),
    ] {
        assert_eq!((end.vector, end.address, end.error & 7), (14, address, code), "{end:?}");
    }
    expect(CONSTANT, u | p | w);
}

/// The machine code of "write 42 to `address`, read it back into eax, end with a system call".
fn write_and_read(address: usize) -> [u8; 19] {
    let a = (address as u32).to_le_bytes();
    [0xb8, 42, 0, 0, 0, 0xa3, a[0], a[1], a[2], a[3], 0x31, 0xc0, 0xa1, a[0], a[1], a[2], a[3], 0xcd, 0x80]
}

/// Runs ring 3 in a space with a page of code and, without pages, areas of data, of constants, and of a stack that
/// grows; one page is at hand for faults. How it ended, the pages served, and where the stack begins then.
fn in_areas(address: usize) -> (End, usize, usize) {
    let rights = Access::READ.with(Access::WRITE);
    let code = page(Gfp::KERNEL.with(Gfp::ZERO));
    // The second is only there for the table that the third may need.
    let frames = [code, page(Gfp::KERNEL), page(Gfp::KERNEL.with(Gfp::ZERO))];
    let program = write_and_read(address);
    // SAFETY: the page is this test's, and the program fits.
    unsafe { I386.virt(code).copy_from_nonoverlapping(program.as_ptr(), program.len()) };
    let space = Space::new().expect("a table");
    space.map(CODE, code, Flags::NONE).expect("tables");
    space.map(DATA + 64 * PAGE_SIZE, frames[1], Flags::NONE).expect("tables");
    let mut served = 0;
    let mut pager = |_: Area, fault: slabwright::paging::Fault| {
        served += 1;
        let at = fault.address & !(PAGE_SIZE - 1);
        if served > 1 { Err(Signal::Bus) } else { space.map(at, frames[2], Flags::WRITE).map_err(|_| Signal::Bus) }
    };
    let mut task = Task::new(&mut pager);
    for (start, pages, access) in [
        (CODE, 1, Access::READ.with(Access::EXEC)),
        (DATA, 2, rights),
        (DATA + 4 * PAGE_SIZE, 1, Access::READ),
        (DATA + 16 * PAGE_SIZE, 2, rights.with(Access::GROWS_DOWN)),
    ] {
        assert!(task.areas().insert(Area { start, end: start + pages * PAGE_SIZE, access }));
    }
    let end = space.with(|| task.run(CODE, DATA + 18 * PAGE_SIZE));
    let stack = task.areas().as_slice()[3].start;
    drop(space);
    frames.into_iter().for_each(free);
    (end, served, stack)
}

fn areas() {
    let stack = DATA + 16 * PAGE_SIZE;
    for (address, begins) in [(DATA + 8, stack), (DATA + PAGE_SIZE + 8, stack), (stack - 100, stack - PAGE_SIZE)] {
        let (end, served, begin) = in_areas(address);
        assert_eq!(
            (end.vector, end.eax, served, begin),
            (interrupt::SYSTEM_CALL, 42, 1, begins),
            "{address:#x}: {end:?}"
        );
    }
    for (address, signal) in [
        (DATA + 2 * PAGE_SIZE, Signal::NoArea),
        (DATA + 18 * PAGE_SIZE, Signal::NoArea),
        // The stack does not grow to where the next area ends.
        (DATA + 5 * PAGE_SIZE + 8, Signal::NoArea),
        (DATA + 4 * PAGE_SIZE, Signal::NotAllowed),
        (CODE + 8, Signal::NotAllowed),
        (memory::high_memory() - PAGE_SIZE, Signal::NoArea),
    ] {
        let (end, served, begin) = in_areas(address);
        let found = (end.vector, end.address, end.signal, served, begin);
        assert_eq!(found, (14, address, Some(signal), 0, stack), "{end:?}");
    }
}

fn privileged() {
    // hlt, and cli: general protection faults.
    assert_eq!(in_ring_3(&[0xf4]).vector, 13);
    assert_eq!(in_ring_3(&[0xfa]).vector, 13);
    // in al, dx: no port is open.
    assert_eq!(in_ring_3(&[0xec]).vector, 13);
    // ud2, and a division by zero.
    assert_eq!(in_ring_3(&[0x0f, 0x0b]).vector, 6);
    assert_eq!(in_ring_3(&[0x31, 0xc9, 0xf7, 0xf1]).vector, 0);
    assert_ne!(cpu::flags() & cpu::FLAG_IF, 0, "interrupts are on again");
}

fn vsyscall() {
    const PAGE: usize = fix_to_virt::<{ FixedAddress::Vsyscall as usize }>();
    let a = (PAGE as u32).to_le_bytes();
    // mov eax, 42; mov ecx, PAGE; call ecx
    let end = in_ring_3(&[0xb8, 42, 0, 0, 0, 0xb9, a[0], a[1], a[2], a[3], 0xff, 0xd1]);
    assert_eq!((end.vector, end.eax, end.eip as usize), (interrupt::SYSTEM_CALL, 42, PAGE + 2), "{end:?}");
    let end = user_reads(PAGE);
    assert_eq!((end.vector, end.eax & 0xff_ffff), (interrupt::SYSTEM_CALL, 0xc3_80cd), "{end:?}");
    let end = user_writes(PAGE);
    assert_eq!((end.vector, end.address, end.error & 7), (14, PAGE, 7), "{end:?}");
    // Nothing else of the fixed addresses is a program's.
    let apic = fix_to_virt::<{ FixedAddress::ApicBase as usize }>();
    assert_eq!(user_reads(apic).error & 7, 5);
}

fn many() {
    let before = faults().count;
    for n in 0..1000 {
        assert_eq!(read_byte(0x2000 + n), None);
    }
    assert_eq!(faults().count, before + 1000);
}

fn vmalloc_fault() {
    let space = Space::new().expect("a table");
    // An area in a part of the window that had no table when the space was made: the search for one ends, as each is
    // kept.
    let mut held = alloc::vec::Vec::new();
    let before = paging::synced();
    let mut fresh = None;
    let window = I386.window();
    for at in (window.start..window.end - PAGE_SIZE).rev().step_by(1 << 20).map(|at| at & !(PAGE_SIZE - 1)) {
        if paging::translate(at).is_none() && !paging::has_table(at) {
            fresh = Some(at);
            break;
        }
    }
    let at = fresh.expect("a part of the window that was never used");
    let pfn = page(Gfp::KERNEL);
    held.push(pfn);
    assert!(I386.map_frame(at, pfn));
    // SAFETY: the page is this test's, mapped in the kernel's table.
    unsafe { pointer::<u32>(at).write_volatile(0xabcd) };
    space.with(|| {
        // SAFETY: as above; here the access faults first.
        assert_eq!(unsafe { pointer::<u32>(at).read_volatile() }, 0xabcd);
    });
    // With PAE all spaces share the kernel's middle directory, so nothing has to be copied.
    let expected = if cfg!(feature = "pae") { 0 } else { 1 };
    assert_eq!(paging::synced() - before, expected);
    space.with(|| {
        // SAFETY: as above.
        assert_eq!(unsafe { pointer::<u32>(at).read_volatile() }, 0xabcd);
    });
    assert_eq!(paging::synced() - before, expected, "once for each space");
    I386.unmap(at, PAGE_SIZE);
    assert_eq!(read_byte(at), None);
    drop(space);
    held.into_iter().for_each(free);
}

fn partial_copies() {
    const BYTES: usize = 4 * PAGE_SIZE;
    let source = HEAP.vmalloc_bytes(BYTES, Gfp::KERNEL).expect("an area");
    let target = HEAP.alloc(2 * PAGE_SIZE);
    // SAFETY: both blocks are this test's. The source ends where its guard page begins.
    unsafe {
        source.write_bytes(0x11, BYTES);
        let end = source.addr() + BYTES;
        for left in [0, 1, 17, 4000] {
            let len = 5000;
            assert_eq!(copy_checked(target.addr(), end - len + left, len), left, "reading");
        }
        assert_eq!(copy_checked(end - 100, target.addr(), 160), 60, "writing");
        assert_eq!(copy_checked(target.addr(), source.addr(), 5000), 0);
        assert_eq!(copy_checked(target.addr(), 0x10, 64), 64, "nothing of a bad user address");
        HEAP.free(source);
        HEAP.free(target);
    }
    assert!(fixups() >= 2);
    assert_eq!(search_exception_table(0xc010_0000), None);
}

fn other_exceptions() {
    let mut failed = 1u32;
    // SAFETY: a segment that does not exist: a general protection fault, which the exception table knows.
    unsafe {
        core::arch::asm!(
            "2: mov gs, {segment:x}",
            "xor {failed}, {failed}",
            "3:",
            ".pushsection __ex_table, \"aw\"",
            ".long 2b, 3b",
            ".popsection",
            segment = in(reg) 0xfff8u32,
            failed = inout(reg) failed,
            options(nostack),
        );
    }
    assert_eq!(failed, 1, "the segment was loaded");
}
