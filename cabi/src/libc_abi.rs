//! The malloc family of the C library, and of others who extended it.
//!
//! What the C standard and POSIX leave open is as in glibc: `realloc(p, 0)` frees and returns NULL, `memalign` rounds
//! its alignment up to a power of two, `malloc(0)` gives a pointer of its own. `errno` is set where a call fails and
//! says so through `errno`, and by nothing else; but that `posix_memalign` finds no memory is there, too, as in glibc.

use core::ffi::{c_char, c_int, c_void};
use core::fmt::{self, Write};

use slabwright_core::global as heap;
use slabwright_core::types::PAGE_SIZE;

type Ptr = *mut c_void;

const NULL: Ptr = core::ptr::null_mut();

/// Fails with `error` in `errno`.
#[cold]
#[inline(never)]
pub(crate) fn fail(error: c_int) -> Ptr {
    // SAFETY: the address of the calling thread's own errno, valid as long as the thread.
    unsafe { *libc::__errno_location() = error };
    NULL
}

/// `p`, or the failure of having no memory.
#[inline(always)]
pub(crate) fn or_no_memory(p: *mut u8) -> Ptr {
    if p.is_null() { fail(libc::ENOMEM) } else { p.cast() }
}

#[inline(always)]
pub(crate) fn alloc(size: usize) -> Ptr {
    let p = heap::malloc_fast(size);
    if p.is_null() { alloc_run(size) } else { p.cast() }
}

/// Behind a jump, so that [`alloc`] needs no stack frame; and so [`alloc_slow`].
#[cold]
#[inline(never)]
fn alloc_run(size: usize) -> Ptr {
    let p = heap::malloc_run(size);
    if p.is_null() { alloc_slow(size) } else { p.cast() }
}

#[cold]
#[inline(never)]
fn alloc_slow(size: usize) -> Ptr {
    or_no_memory(heap::malloc_rest(size))
}

/// # Safety
/// `p` is null or a live block.
#[inline(always)]
pub(crate) unsafe fn dealloc(p: Ptr) {
    // SAFETY: by contract.
    unsafe { heap::free(p.cast()) }
}

/// The size is not believed: C++ passes a wrong one where a base class lacks its virtual destructor, and looking the
/// block up costs less than handing out a foreign one.
///
/// # Safety
/// `p` is null or a live block.
#[inline(always)]
pub(crate) unsafe fn dealloc_sized(p: Ptr, _size: usize) {
    // SAFETY: by contract.
    unsafe { heap::free(p.cast()) }
}

#[inline(always)]
fn zeroed(count: usize, size: usize) -> Ptr {
    match count.checked_mul(size) {
        Some(total) => {
            // The C library asks so for what a new thread needs.
            let p = if heap::sees_threads() { core::ptr::null_mut() } else { heap::malloc_fast(total) };
            if p.is_null() {
                return zeroed_slow(total);
            }
            // To the last byte that `malloc_usable_size` admits to.
            // SAFETY: a new block of a small request, as long as its class.
            unsafe { p.write_bytes(0, heap::good_size(total)) };
            p.cast()
        }
        None => fail(libc::ENOMEM),
    }
}

#[cold]
#[inline(never)]
fn zeroed_slow(total: usize) -> Ptr {
    or_no_memory(heap::calloc(total))
}

/// # Safety
/// As for [`dealloc`].
#[inline(always)]
unsafe fn resize(p: Ptr, size: usize) -> Ptr {
    if p.is_null() {
        return alloc(size);
    }
    if size == 0 {
        // SAFETY: by contract.
        unsafe { dealloc(p) };
        return NULL;
    }
    // SAFETY: `p` is a live block, `size` is not 0.
    or_no_memory(unsafe { heap::realloc(p.cast(), size) })
}

/// # Safety
/// As for [`dealloc`].
unsafe fn resize_array(p: Ptr, count: usize, size: usize) -> Ptr {
    match count.checked_mul(size) {
        // SAFETY: by contract.
        Some(total) => unsafe { resize(p, total) },
        None => fail(libc::ENOMEM),
    }
}

/// # Safety
/// As for [`dealloc`].
unsafe fn resize_or_free(p: Ptr, size: usize) -> Ptr {
    // SAFETY: by contract.
    let new = unsafe { resize(p, size) };
    if new.is_null() && size != 0 {
        // SAFETY: a failed realloc leaves the block alone.
        unsafe { dealloc(p) };
    }
    new
}

/// A block at a multiple of `align`, a power of two; null without memory.
pub(crate) fn aligned(align: usize, size: usize) -> *mut u8 {
    if size > isize::MAX as usize - align.min(isize::MAX as usize) {
        return core::ptr::null_mut();
    }
    heap::aligned(align, size)
}

fn strictly_aligned(align: usize, size: usize) -> Ptr {
    if align.is_power_of_two() { or_no_memory(aligned(align, size)) } else { fail(libc::EINVAL) }
}

pub(crate) fn loosely_aligned(align: usize, size: usize) -> Ptr {
    match align.checked_next_power_of_two() {
        Some(align) => or_no_memory(aligned(align, size)),
        None => fail(libc::EINVAL),
    }
}

/// POSIX leaves `errno` open; a lack of memory says so there as in glibc, as callers look (glibc's own tests do).
///
/// # Safety
/// `out` can be written.
unsafe fn posix_aligned(out: *mut Ptr, align: usize, size: usize) -> c_int {
    if !align.is_power_of_two() || align < size_of::<Ptr>() {
        return libc::EINVAL;
    }
    let p = or_no_memory(aligned(align, size));
    if p.is_null() {
        return libc::ENOMEM;
    }
    // SAFETY: by contract.
    unsafe { *out = p };
    0
}

fn page_size() -> usize {
    // SAFETY: no preconditions; the entry is there on every Linux.
    unsafe { libc::getauxval(libc::AT_PAGESZ) as usize }
}

fn page_aligned(size: usize) -> Ptr {
    or_no_memory(aligned(page_size(), size))
}

fn whole_pages(size: usize) -> Ptr {
    match size.max(1).checked_next_multiple_of(page_size()) {
        Some(size) => page_aligned(size),
        None => fail(libc::ENOMEM),
    }
}

/// # Safety
/// As for [`dealloc`].
unsafe fn usable(p: *const c_void) -> usize {
    if p.is_null() {
        return 0;
    }
    // SAFETY: by contract.
    unsafe { heap::usable_size(p.cast()) }
}

fn good_size(size: usize) -> usize {
    if size > isize::MAX as usize { size } else { heap::good_size(size) }
}

/// # Safety
/// As for [`dealloc_sized`].
unsafe fn dealloc_aligned_sized(p: Ptr, _align: usize, _size: usize) {
    // SAFETY: by contract. The class of an aligned block does not follow from its size alone, so it is looked up.
    unsafe { dealloc(p) }
}

/// jemalloc's `MALLOCX_LG_ALIGN`: the low six bits of its flags are log2 of the alignment.
fn alignment_of(flags: c_int) -> usize {
    1 << (flags & 0x3f)
}

fn size_with_flags(size: usize, flags: c_int) -> usize {
    match size.max(1).checked_next_multiple_of(alignment_of(flags)) {
        Some(size) if size <= isize::MAX as usize => heap::good_size(size),
        _ => 0,
    }
}

/// jemalloc's `MALLOCX_ZERO`. Its other flags choose caches and arenas, which are not here.
const ZERO: c_int = 0x40;

fn alloc_with_flags(size: usize, flags: c_int) -> Ptr {
    match alignment_of(flags) {
        1 if flags & ZERO == 0 => alloc(size),
        1 => zeroed(1, size),
        align => {
            let p = or_no_memory(aligned(align, size));
            if !p.is_null() && flags & ZERO != 0 {
                // SAFETY: a new block of that size at least.
                unsafe { p.write_bytes(0, usable(p)) };
            }
            p
        }
    }
}

/// # Safety
/// As for [`dealloc`].
unsafe fn resize_with_flags(p: Ptr, size: usize, flags: c_int) -> Ptr {
    if p.is_null() || flags & (0x3f | ZERO) != 0 {
        let new = alloc_with_flags(size, flags);
        if !p.is_null() && !new.is_null() {
            // All that the old block could be used for, as in jemalloc: only what is beyond it reads zero.
            // SAFETY: both are live, and as long as said.
            unsafe {
                new.copy_from_nonoverlapping(p, usable(new).min(usable(p)));
                dealloc(p);
            }
        }
        return new;
    }
    // SAFETY: by contract. As much as nothing is still a block.
    unsafe { resize(p, size.max(1)) }
}

/// jemalloc's `xallocx`, which may change the size of a block where it lies: this does not. The size it has.
///
/// # Safety
/// As for [`usable`].
unsafe fn resize_in_place(p: Ptr, _size: usize, _extra: usize, _flags: c_int) -> usize {
    // SAFETY: by contract.
    unsafe { usable(p) }
}

/// # Safety
/// As for [`usable`].
unsafe fn usable_with_flags(p: *const c_void, _flags: c_int) -> usize {
    // SAFETY: by contract.
    unsafe { usable(p) }
}

/// # Safety
/// As for [`dealloc`].
unsafe fn dealloc_by_flags(p: Ptr, _flags: c_int) {
    // SAFETY: by contract.
    unsafe { dealloc(p) }
}

/// # Safety
/// As for [`dealloc_sized`].
unsafe fn dealloc_with_flags(p: Ptr, size: usize, flags: c_int) {
    // SAFETY: by contract.
    unsafe { if flags & 0x3f == 0 { dealloc_sized(p, size) } else { dealloc(p) } }
}

/// glibc's; other C libraries have no such call.
const M_TRIM_THRESHOLD: c_int = -1;

/// `mallopt`: 1 for the parameters that glibc knows. Of them `M_TRIM_THRESHOLD` has an effect: so much free memory
/// stays in any case, and with a negative value all of it. The others tune what is not here: arenas, bins, a heap that
/// grows at its end (`M_MMAP_THRESHOLD`, `M_MMAP_MAX`, `M_TOP_PAD`, `M_ARENA_MAX`, …). What they cannot change is no
/// error, as in glibc. `M_PERTURB` would cost every allocation, `M_CHECK_ACTION` does nothing in glibc either.
fn set_option(option: c_int, value: c_int) -> c_int {
    if option == M_TRIM_THRESHOLD {
        heap::set_retained(u64::try_from(value).unwrap_or(u64::MAX));
    }
    matches!(option, -8..=-1 | 1..=4) as c_int
}

fn give_back(_pad: usize) -> c_int {
    heap::trim() as c_int
}

fn print_statistics() {
    crate::process::with_error_output(|out| heap::write_stats(out));
}

/// glibc's `struct mallinfo2`, and with `c_int` `struct mallinfo`.
#[repr(C)]
pub struct Mallinfo<T> {
    arena: T,
    ordblks: T,
    smblks: T,
    hblks: T,
    hblkhd: T,
    usmblks: T,
    fsmblks: T,
    uordblks: T,
    fordblks: T,
    keepcost: T,
}

/// `mallinfo2`, and in `int` `mallinfo`. As in glibc, large blocks (vmalloc areas) count in `hblks` and `hblkhd` only.
///
/// | field | what |
/// |---|---|
/// | `arena` | bytes of the page layer, of which what was never touched holds no memory |
/// | `ordblks` | its free blocks |
/// | `smblks`, `fsmblks` | 0: glibc's fast bins, which its caches of threads, the like of sheaves, are none of either |
/// | `hblks`, `hblkhd` | large blocks, and their bytes |
/// | `usmblks` | 0, as in glibc |
/// | `uordblks`, `fordblks` | bytes handed out, and the rest of `arena` |
/// | `keepcost` | bytes of free memory that `malloc_trim` could give back now |
fn totals() -> Mallinfo<usize> {
    let stats = heap::stats();
    let slab = &stats.slab;
    let bytes = |pages: u64| pages as usize * PAGE_SIZE;
    let arena = bytes(stats.pages_in_use) + bytes(stats.pages_free);
    let runs = bytes(stats.pages_in_use).saturating_sub(slab.slab_bytes + slab.in_sheaves_runs);
    let used = runs + slab.in_use_bytes;
    Mallinfo {
        arena,
        ordblks: stats.free_blocks.iter().sum::<u64>() as usize,
        smblks: 0,
        hblks: stats.vmalloc_areas as usize,
        hblkhd: stats.vmalloc_bytes as usize,
        usmblks: 0,
        fsmblks: 0,
        uordblks: used,
        fordblks: arena.saturating_sub(used),
        keepcost: bytes(stats.pages_backed) + stats.vmalloc_retained as usize,
    }
}

fn totals_in_int() -> Mallinfo<c_int> {
    let wide = totals();
    let int = |value: usize| c_int::try_from(value).unwrap_or(c_int::MAX);
    Mallinfo {
        arena: int(wide.arena),
        ordblks: int(wide.ordblks),
        smblks: int(wide.smblks),
        hblks: int(wide.hblks),
        hblkhd: int(wide.hblkhd),
        usmblks: int(wide.usmblks),
        fsmblks: int(wide.fsmblks),
        uordblks: int(wide.uordblks),
        fordblks: int(wide.fordblks),
        keepcost: int(wide.keepcost),
    }
}

/// Text to a C stream.
struct Stream(*mut libc::FILE);

impl Write for Stream {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // SAFETY: `text` is readable for its length; the stream is the caller's, open.
        let written = unsafe { libc::fwrite(text.as_ptr().cast(), 1, text.len(), self.0) };
        if written == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

/// `malloc_info`: glibc's elements, in its order, so that what reads the one reads the other. There is one heap; its
/// sizes are the free blocks of the page layer, "fast" is what lies in sheaves, "rest" all else that is free.
///
/// # Safety
/// `stream` is an open stream.
unsafe fn write_info(options: c_int, stream: *mut libc::FILE) -> c_int {
    if options != 0 {
        return libc::EINVAL;
    }
    let (stats, totals) = (heap::stats(), totals());
    // What the stream refuses it remembers.
    let _ = write_xml(&mut Stream(stream), &stats, &totals);
    0
}

fn write_xml(out: &mut dyn Write, stats: &slabwright_core::mm::Stats, totals: &Mallinfo<usize>) -> fmt::Result {
    writeln!(out, "<malloc version=\"1\">\n<heap nr=\"0\">\n<sizes>")?;
    for (order, &count) in stats.free_blocks.iter().enumerate().filter(|(_, count)| **count > 0) {
        let size = PAGE_SIZE << order;
        let total = count as usize * size;
        writeln!(out, "  <size from=\"{size}\" to=\"{size}\" total=\"{total}\" count=\"{count}\"/>")?;
    }
    writeln!(out, "</sizes>")?;
    let heap = |out: &mut dyn Write| {
        let (fast, bytes) = (stats.slab.in_sheaves, stats.slab.in_sheaves_bytes);
        let rest = totals.fordblks.saturating_sub(bytes);
        writeln!(out, "<total type=\"fast\" count=\"{fast}\" size=\"{bytes}\"/>")?;
        writeln!(out, "<total type=\"rest\" count=\"{}\" size=\"{rest}\"/>", totals.ordblks)
    };
    let system = |out: &mut dyn Write| {
        for what in
            ["system type=\"current\"", "system type=\"max\"", "aspace type=\"total\"", "aspace type=\"mprotect\""]
        {
            writeln!(out, "<{what} size=\"{}\"/>", totals.arena)?;
        }
        Ok(())
    };
    heap(out)?;
    system(out)?;
    writeln!(out, "</heap>")?;
    heap(out)?;
    writeln!(out, "<total type=\"mmap\" count=\"{}\" size=\"{}\"/>", totals.hblks, totals.hblkhd)?;
    system(out)?;
    writeln!(out, "</malloc>")
}

/// Exports functions under their C names, aligned to cache lines.
macro_rules! export {
    ($($name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)? = $inner:path;)*) => {
        // One that starts at offset 56 of a cache line costs 0.8 ns more a call. Stable Rust has no attribute for
        // alignment; but each function has the section `.text.NAME` to itself, and that can be opened and aligned here.
        core::arch::global_asm!($(
            concat!(".pushsection .text.", stringify!($name), ",\"ax\",@progbits"),
            ".p2align 6",
            ".popsection",
        )*);
        $(
            /// # Safety
            /// As the C function of this name asks.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($arg: $type),*) $(-> $result)? {
                // SAFETY: by contract.
                #[allow(unused_unsafe)]
                unsafe { $inner($($arg),*) }
            }
        )*
    };
}

pub(crate) use export;

// C, POSIX, and glibc.
export! {
    malloc(size: usize) -> Ptr = alloc;
    free(p: Ptr) = dealloc;
    calloc(count: usize, size: usize) -> Ptr = zeroed;
    realloc(p: Ptr, size: usize) -> Ptr = resize;
    reallocarray(p: Ptr, count: usize, size: usize) -> Ptr = resize_array;
    free_sized(p: Ptr, size: usize) = dealloc_sized;
    free_aligned_sized(p: Ptr, align: usize, size: usize) = dealloc_aligned_sized;
    aligned_alloc(align: usize, size: usize) -> Ptr = strictly_aligned;
    posix_memalign(out: *mut Ptr, align: usize, size: usize) -> c_int = posix_aligned;
    memalign(align: usize, size: usize) -> Ptr = loosely_aligned;
    valloc(size: usize) -> Ptr = page_aligned;
    pvalloc(size: usize) -> Ptr = whole_pages;
    cfree(p: Ptr) = dealloc;
    malloc_usable_size(p: *const c_void) -> usize = usable;
    malloc_trim(pad: usize) -> c_int = give_back;
    malloc_stats() = print_statistics;
    malloc_info(options: c_int, stream: *mut libc::FILE) -> c_int = write_info;
    mallopt(option: c_int, value: c_int) -> c_int = set_option;
    mallinfo() -> Mallinfo<c_int> = totals_in_int;
    mallinfo2() -> Mallinfo<usize> = totals;
}

// Names that glibc's own parts and old programs call.
export! {
    __libc_malloc(size: usize) -> Ptr = alloc;
    __libc_free(p: Ptr) = dealloc;
    __libc_cfree(p: Ptr) = dealloc;
    __libc_calloc(count: usize, size: usize) -> Ptr = zeroed;
    __libc_realloc(p: Ptr, size: usize) -> Ptr = resize;
    __libc_reallocarray(p: Ptr, count: usize, size: usize) -> Ptr = resize_array;
    __libc_memalign(align: usize, size: usize) -> Ptr = loosely_aligned;
    __libc_valloc(size: usize) -> Ptr = page_aligned;
    __libc_pvalloc(size: usize) -> Ptr = whole_pages;
    __libc_mallopt(option: c_int, value: c_int) -> c_int = set_option;
    __libc_mallinfo() -> Mallinfo<c_int> = totals_in_int;
    __posix_memalign(out: *mut Ptr, align: usize, size: usize) -> c_int = posix_aligned;
}

// BSD, macOS, jemalloc: all of its calls that take or give blocks, as a program linked with it (BIND) would mix the
// two.
export! {
    reallocf(p: Ptr, size: usize) -> Ptr = resize_or_free;
    malloc_size(p: *const c_void) -> usize = usable;
    malloc_good_size(size: usize) -> usize = good_size;
    mallocx(size: usize, flags: c_int) -> Ptr = alloc_with_flags;
    rallocx(p: Ptr, size: usize, flags: c_int) -> Ptr = resize_with_flags;
    xallocx(p: Ptr, size: usize, extra: usize, flags: c_int) -> usize = resize_in_place;
    sallocx(p: *const c_void, flags: c_int) -> usize = usable_with_flags;
    nallocx(size: usize, flags: c_int) -> usize = size_with_flags;
    dallocx(p: Ptr, flags: c_int) = dealloc_by_flags;
    sdallocx(p: Ptr, size: usize, flags: c_int) = dealloc_with_flags;
}

// The family under slabwright's own names, for programs that keep another malloc (`include/slabwright.h`).
export! {
    slw_malloc(size: usize) -> Ptr = alloc;
    slw_free(p: Ptr) = dealloc;
    slw_calloc(count: usize, size: usize) -> Ptr = zeroed;
    slw_realloc(p: Ptr, size: usize) -> Ptr = resize;
    slw_reallocarray(p: Ptr, count: usize, size: usize) -> Ptr = resize_array;
    slw_free_sized(p: Ptr, size: usize) = dealloc_sized;
    slw_free_aligned_sized(p: Ptr, align: usize, size: usize) = dealloc_aligned_sized;
    slw_aligned_alloc(align: usize, size: usize) -> Ptr = strictly_aligned;
    slw_posix_memalign(out: *mut Ptr, align: usize, size: usize) -> c_int = posix_aligned;
    slw_usable_size(p: *const c_void) -> usize = usable;
    slw_good_size(size: usize) -> usize = good_size;
    slw_trim() -> c_int = trim;
    slw_stats_print() = print_statistics;
    slw_verify() -> c_int = verify;
    slw_version() -> *const c_char = version;
}

fn trim() -> c_int {
    give_back(0)
}

fn verify() -> c_int {
    match heap::verify() {
        Ok(()) => 0,
        Err(violation) => {
            crate::process::with_error_output(|out| {
                let _ = writeln!(out, "slabwright: verify: {violation}");
            });
            -1
        }
    }
}

fn version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}
