//! The kernel's names, each with `slw_` before it. Marshalling only: descriptors, caches and flags become the core's
//! types, and what it refuses becomes NULL and `errno`.

use core::arch::naked_asm;
use core::ffi::{CStr, c_char, c_int, c_uint, c_ulong, c_void};
use core::ptr;

use slabwright_core::error::AllocError;
use slabwright_core::gfp::Gfp;
use slabwright_core::global::{frame_of, mm};
use slabwright_core::kernel::{first_copy, register_module};
use slabwright_core::machine::linux::device;
use slabwright_core::machine::{Context, Frames, Machine, PerCpu, Report};
use slabwright_core::mm::{Mempool, Named, PoolSource, ShrinkCall};
use slabwright_core::page::Page;
use slabwright_core::slab::{Constructor, SlabFlags};
use slabwright_core::types::{Caller, Pfn};

use crate::libc_abi::{export, fail, or_no_memory};

type Ptr = *mut c_void;
/// `struct page *`: a descriptor.
type PagePtr = *mut c_void;
/// `struct kmem_cache *`: [`Named::to_raw`].
type CachePtr = *mut c_void;

const NULL: Ptr = ptr::null_mut();

/// NULL, and why.
#[cold]
fn refused(error: AllocError) -> Ptr {
    fail(match error {
        AllocError::NoMemory => libc::ENOMEM,
        AllocError::Invalid => libc::EINVAL,
        AllocError::Unsupported => libc::ENOTSUP,
    })
}

fn descriptor(pfn: Pfn) -> PagePtr {
    ptr::from_ref(mm().machine().page(pfn)).cast_mut().cast()
}

fn address_of(pfn: Pfn) -> Ptr {
    mm().machine().virt(pfn).cast()
}

/// The frame of a descriptor; what is none is reported as a free of it.
fn frame(page: PagePtr) -> Option<Pfn> {
    let found = frame_of(page.cast::<Page>());
    if found.is_none() {
        slabwright_core::machine::misuse(
            mm().machine(),
            slabwright_core::error::Defect::Foreign,
            page.addr(),
            "no page descriptor",
        );
    }
    found
}

// Pages.

fn node_of(node: c_int) -> Option<usize> {
    usize::try_from(node).ok()
}

fn alloc_pages_node(node: c_int, gfp: c_uint, order: c_uint) -> PagePtr {
    match mm().alloc_pages(Gfp(gfp), order, node_of(node)) {
        Ok(pfn) => descriptor(pfn),
        Err(error) => refused(error),
    }
}

fn alloc_pages(gfp: c_uint, order: c_uint) -> PagePtr {
    alloc_pages_node(-1, gfp, order)
}

fn alloc_page(gfp: c_uint) -> PagePtr {
    alloc_pages(gfp, 0)
}

fn get_free_pages(gfp: c_uint, order: c_uint) -> c_ulong {
    let pages = mm().admit_address(Gfp(gfp)).and_then(|()| mm().alloc_pages(Gfp(gfp), order, None));
    match pages {
        Ok(pfn) => address_of(pfn).expose_provenance() as c_ulong,
        Err(error) => refused(error).addr() as c_ulong,
    }
}

fn get_free_page(gfp: c_uint) -> c_ulong {
    get_free_pages(gfp, 0)
}

fn get_zeroed_page(gfp: c_uint) -> c_ulong {
    get_free_pages((Gfp(gfp) | Gfp::ZERO).0, 0)
}

fn get_dma_pages(gfp: c_uint, order: c_uint) -> c_ulong {
    get_free_pages((Gfp(gfp) | Gfp::DMA).0, order)
}

/// # Safety
/// There is no block, or the reference to it is the caller's to drop; where it is the last one nobody uses the pages
/// any more.
unsafe fn free_block(page: PagePtr, order: c_uint) {
    if !page.is_null()
        && let Some(pfn) = frame(page)
    {
        // SAFETY: by contract. What is wrong with it was reported.
        let _ = unsafe { mm().free_pages(pfn, order) };
    }
}

/// # Safety
/// As for [`free_block`].
unsafe fn free_block_page(page: PagePtr) {
    // SAFETY: by contract.
    unsafe { free_block(page, 0) };
}

fn get_page(page: PagePtr) {
    if let Some(pfn) = frame(page) {
        let _ = mm().get_page(pfn);
    }
}

fn pointer(address: c_ulong) -> *mut u8 {
    ptr::with_exposed_provenance_mut(address as usize)
}

/// # Safety
/// As for [`free_block`].
unsafe fn free_pages(address: c_ulong, order: c_uint) {
    // SAFETY: by contract.
    let _ = unsafe { mm().free_pages_at(pointer(address), order) };
}

/// # Safety
/// As for [`free_block`].
unsafe fn free_page(address: c_ulong) {
    // SAFETY: by contract.
    unsafe { free_pages(address, 0) };
}

fn alloc_pages_exact(size: usize, gfp: c_uint) -> Ptr {
    match mm().alloc_pages_exact(Gfp(gfp), size) {
        Ok(pfn) => address_of(pfn),
        Err(error) => refused(error),
    }
}

/// # Safety
/// The run at `address` is not used any more, if there is one.
unsafe fn free_pages_exact(address: Ptr, size: usize) {
    // SAFETY: by contract.
    let _ = unsafe { mm().free_pages_exact(address.cast(), size) };
}

fn page_address(page: PagePtr) -> Ptr {
    frame_of(page.cast::<Page>()).map_or(NULL, address_of)
}

fn virt_to_page(address: *const c_void) -> PagePtr {
    mm().page_of(address.cast()).map_or(NULL, descriptor)
}

fn page_to_pfn(page: PagePtr) -> c_ulong {
    frame_of(page.cast::<Page>()).map_or(c_ulong::MAX, |pfn| c_ulong::from(pfn.0))
}

fn pfn_to_page(pfn: c_ulong) -> PagePtr {
    let pfn = u32::try_from(pfn).ok().map(Pfn).filter(|pfn| mm().frame_exists(*pfn));
    pfn.map_or(NULL, descriptor)
}

fn page_to_nid(page: PagePtr) -> c_int {
    frame_of(page.cast::<Page>()).map_or(-1, |pfn| mm().machine().page(pfn).node() as c_int)
}

fn page_count(page: PagePtr) -> c_int {
    frame_of(page.cast::<Page>()).map_or(0, |pfn| mm().machine().page(pfn).refs() as c_int)
}

export! {
    slw_alloc_pages(gfp: c_uint, order: c_uint) -> PagePtr = alloc_pages;
    slw_alloc_page(gfp: c_uint) -> PagePtr = alloc_page;
    slw_alloc_pages_node(node: c_int, gfp: c_uint, order: c_uint) -> PagePtr = alloc_pages_node;
    slw___get_free_pages(gfp: c_uint, order: c_uint) -> c_ulong = get_free_pages;
    slw___get_free_page(gfp: c_uint) -> c_ulong = get_free_page;
    slw_get_zeroed_page(gfp: c_uint) -> c_ulong = get_zeroed_page;
    slw_get_free_page(gfp: c_uint) -> c_ulong = get_zeroed_page;
    slw___get_dma_pages(gfp: c_uint, order: c_uint) -> c_ulong = get_dma_pages;
    slw___free_pages(page: PagePtr, order: c_uint) = free_block;
    slw___free_page(page: PagePtr) = free_block_page;
    slw_free_pages(address: c_ulong, order: c_uint) = free_pages;
    slw_free_page(address: c_ulong) = free_page;
    slw_get_page(page: PagePtr) = get_page;
    slw_put_page(page: PagePtr) = free_block_page;
    slw_alloc_pages_exact(size: usize, gfp: c_uint) -> Ptr = alloc_pages_exact;
    slw_free_pages_exact(address: Ptr, size: usize) = free_pages_exact;
    slw_page_address(page: PagePtr) -> Ptr = page_address;
    slw_virt_to_page(address: *const c_void) -> PagePtr = virt_to_page;
    slw_page_to_pfn(page: PagePtr) -> c_ulong = page_to_pfn;
    slw_pfn_to_page(pfn: c_ulong) -> PagePtr = pfn_to_page;
    slw_page_to_nid(page: PagePtr) -> c_int = page_to_nid;
    slw_page_count(page: PagePtr) -> c_int = page_count;
}

// Objects of any size.

#[inline]
fn kmalloc(size: usize, gfp: c_uint) -> Ptr {
    let gfp = Gfp(gfp);
    match mm().admit_address(gfp) {
        Ok(()) => or_no_memory(mm().kmalloc(size, gfp)),
        Err(error) => refused(error),
    }
}

fn kzalloc(size: usize, gfp: c_uint) -> Ptr {
    kmalloc(size, (Gfp(gfp) | Gfp::ZERO).0)
}

fn kmalloc_array(count: usize, size: usize, gfp: c_uint) -> Ptr {
    match count.checked_mul(size) {
        Some(total) => kmalloc(total, gfp),
        None => fail(libc::ENOMEM),
    }
}

fn kcalloc(count: usize, size: usize, gfp: c_uint) -> Ptr {
    kmalloc_array(count, size, (Gfp(gfp) | Gfp::ZERO).0)
}

fn kmalloc_node(size: usize, gfp: c_uint, node: c_int) -> Ptr {
    let Some(node) = node_of(node) else { return kmalloc(size, gfp) };
    match mm().admit_address(Gfp(gfp)) {
        Ok(()) => or_no_memory(mm().kmalloc_node(size, Gfp(gfp), node)),
        Err(error) => refused(error),
    }
}

/// # Safety
/// `block` is null or live.
unsafe fn krealloc(block: Ptr, size: usize, gfp: c_uint) -> Ptr {
    if let Err(error) = mm().admit_address(Gfp(gfp)) {
        return refused(error);
    }
    // SAFETY: by contract.
    let new = unsafe { mm().krealloc(block.cast(), size, Gfp(gfp)) };
    if size == 0 { new.cast() } else { or_no_memory(new) }
}

/// # Safety
/// `block` is null or live.
#[inline]
unsafe fn kfree(block: Ptr) {
    // SAFETY: by contract.
    unsafe { mm().kfree(block.cast()) }
}

/// # Safety
/// `block` is null or live.
unsafe fn ksize(block: *const c_void) -> usize {
    if block.is_null() {
        return 0;
    }
    // SAFETY: by contract.
    unsafe { mm().usable_size(block.cast()) }
}

export! {
    slw_kmalloc(size: usize, gfp: c_uint) -> Ptr = kmalloc;
    slw_kzalloc(size: usize, gfp: c_uint) -> Ptr = kzalloc;
    slw_kmalloc_array(count: usize, size: usize, gfp: c_uint) -> Ptr = kmalloc_array;
    slw_kcalloc(count: usize, size: usize, gfp: c_uint) -> Ptr = kcalloc;
    slw_kmalloc_node(size: usize, gfp: c_uint, node: c_int) -> Ptr = kmalloc_node;
    slw_krealloc(block: Ptr, size: usize, gfp: c_uint) -> Ptr = krealloc;
    slw_kfree(block: Ptr) = kfree;
    slw_ksize(block: *const c_void) -> usize = ksize;
}

// Caches.

/// The name at `name`; what is not UTF-8 ends it.
///
/// # Safety
/// `name` is null or a string.
unsafe fn text<'a>(name: *const c_char) -> &'a str {
    if name.is_null() {
        return "";
    }
    // SAFETY: by contract.
    let bytes = unsafe { CStr::from_ptr(name) }.to_bytes();
    let valid = core::str::from_utf8(bytes).map_or_else(|error| error.valid_up_to(), str::len);
    core::str::from_utf8(&bytes[..valid]).unwrap_or("")
}

fn handle(named: Named) -> CachePtr {
    ptr::without_provenance_mut(named.to_raw())
}

#[inline]
fn cache(handle: CachePtr) -> Option<Named> {
    mm().kmem_cache_from_raw(handle.addr())
}

/// # Safety
/// `name` is a string; `ctor` is null or constructs objects of `size` bytes.
unsafe fn cache_create(
    name: *const c_char,
    size: c_uint,
    align: c_uint,
    flags: c_uint,
    ctor: Option<Constructor>,
) -> CachePtr {
    // SAFETY: by contract.
    let name = unsafe { text(name) };
    match mm().kmem_cache_create(name, size as usize, align as usize, SlabFlags(flags), ctor) {
        Ok(named) => handle(named),
        Err(error) => refused(error),
    }
}

/// # Safety
/// `name` is a string.
unsafe fn cache_find(name: *const c_char) -> CachePtr {
    // SAFETY: by contract.
    mm().kmem_cache_find(unsafe { text(name) }).map_or_else(|| fail(libc::ENOENT), handle)
}

/// # Safety
/// The cache is the caller's to give up.
unsafe fn cache_destroy(handle: CachePtr) -> c_int {
    if handle.is_null() {
        return 0;
    }
    // SAFETY: by contract.
    match cache(handle).map(|named| unsafe { mm().kmem_cache_destroy(named) }) {
        Some(Ok(())) => 0,
        Some(Err(_)) => libc::EBUSY,
        None => {
            report_cache(handle);
            libc::EINVAL
        }
    }
}

/// Reports a cache that is none (any more).
#[cold]
fn report_cache(handle: CachePtr) {
    slabwright_core::machine::misuse(
        mm().machine(),
        slabwright_core::error::Defect::Foreign,
        handle.addr(),
        "no cache, or one that was destroyed",
    );
}

fn cache_shrink(handle: CachePtr) -> c_int {
    match cache(handle) {
        Some(named) => mm().kmem_cache_shrink(named),
        None => report_cache(handle),
    }
    0
}

extern "C" fn cache_alloc(handle: CachePtr, gfp: c_uint, caller: usize) -> Ptr {
    let gfp = Gfp(gfp);
    if let Err(error) = mm().admit_address(gfp) {
        return refused(error);
    }
    let Some(named) = cache(handle) else {
        report_cache(handle);
        return fail(libc::EINVAL);
    };
    or_no_memory(mm().kmem_cache_alloc(named.cache(), gfp, caller))
}

extern "C" fn cache_zalloc(handle: CachePtr, gfp: c_uint, caller: usize) -> Ptr {
    let object = cache_alloc(handle, gfp, caller);
    if !object.is_null()
        && let Some(named) = cache(handle)
    {
        let (_, size, _, constructed) = mm().slab().made_with(named.cache());
        if !constructed {
            // SAFETY: the object is new and of that size.
            unsafe { object.write_bytes(0, size) };
        }
    }
    object
}

/// # Safety
/// `object` is null or a live object.
unsafe extern "C" fn cache_free(handle: CachePtr, object: Ptr, caller: usize) {
    match cache(handle) {
        // SAFETY: by contract. What is wrong with it was reported.
        Some(named) => drop(unsafe { mm().kmem_cache_free(named.cache(), object.cast(), caller) }),
        None => report_cache(handle),
    }
}

fn cache_size(handle: CachePtr) -> c_uint {
    cache(handle).map_or(0, |named| mm().slab().made_with(named.cache()).1 as c_uint)
}

fn getpages(handle: CachePtr, gfp: c_uint, node: c_int) -> Ptr {
    let Some(named) = cache(handle) else {
        report_cache(handle);
        return fail(libc::EINVAL);
    };
    match mm().kmem_getpages(named.cache(), Gfp(gfp), node_of(node)) {
        Ok(pfn) => address_of(pfn),
        Err(error) => refused(error),
    }
}

/// # Safety
/// As for [`free_block`].
unsafe fn freepages(_handle: CachePtr, address: Ptr) {
    // SAFETY: by contract.
    let _ = unsafe { mm().kmem_freepages(address.cast()) };
}

export! {
    slw_kmem_cache_create(name: *const c_char, size: c_uint, align: c_uint, flags: c_uint, ctor: Option<Constructor>) -> CachePtr
        = cache_create;
    slw_kmem_cache_find(name: *const c_char) -> CachePtr = cache_find;
    slw_kmem_cache_destroy(cache: CachePtr) -> c_int = cache_destroy;
    slw_kmem_cache_shrink(cache: CachePtr) -> c_int = cache_shrink;
    slw_kmem_cache_size(cache: CachePtr) -> c_uint = cache_size;
    slw_kmem_getpages(cache: CachePtr, gfp: c_uint, node: c_int) -> Ptr = getpages;
    slw_kmem_freepages(cache: CachePtr, address: Ptr) = freepages;
}

/// Entry points that tell the function behind them who called, as the argument behind their own, whose register is
/// named.
macro_rules! with_caller {
    ($($name:ident[$register:literal] = $inner:path;)*) => {$(
        /// # Safety
        /// As the kernel's function of this name asks.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            naked_asm!(
                ".cfi_startproc",
                concat!("mov ", $register, ", qword ptr [rsp]"),
                "jmp {inner}",
                ".cfi_endproc",
                inner = sym $inner,
            )
        }
    )*};
}

with_caller! {
    slw_kmem_cache_alloc["rdx"] = cache_alloc;
    slw_kmem_cache_zalloc["rdx"] = cache_zalloc;
    slw_kmem_cache_free["rdx"] = cache_free;
    slw_vmalloc["rsi"] = vmalloc;
    slw_vzalloc["rsi"] = vzalloc;
    slw_ioremap["rdx"] = ioremap;
}

// Atomic contexts.

fn preempt_disable() {
    mm().machine().preempt_disable();
}

fn preempt_enable() {
    mm().machine().preempt_enable();
}

fn in_atomic() -> c_int {
    (mm().machine().preempt_count() > 0) as c_int
}

fn atomic_reserve(bytes: usize) -> usize {
    mm().keep_reserve(bytes)
}

export! {
    slw_preempt_disable() = preempt_disable;
    slw_preempt_enable() = preempt_enable;
    slw_in_atomic() -> c_int = in_atomic;
    slw_atomic_reserve(bytes: usize) -> usize = atomic_reserve;
}

// Per-CPU data.

fn alloc_percpu(size: usize, align: usize, gfp: c_uint) -> Ptr {
    match mm().alloc_percpu(size, align, Gfp(gfp)) {
        Ok(first) => first.cast(),
        Err(error) => refused(error),
    }
}

/// # Safety
/// The copies are not used any more.
unsafe fn free_percpu(address: Ptr) {
    // SAFETY: by contract.
    let _ = unsafe { mm().free_percpu(address.cast()) };
}

fn copy_of(address: Ptr, cpu: usize) -> Ptr {
    mm().per_cpu_ptr(first_copy(address.cast()), cpu).cast()
}

fn per_cpu_ptr(address: Ptr, cpu: c_int) -> Ptr {
    usize::try_from(cpu).map_or(NULL, |cpu| copy_of(address, cpu))
}

fn this_cpu_ptr(address: Ptr) -> Ptr {
    copy_of(address, mm().machine().cpu())
}

fn get_cpu_ptr(address: Ptr) -> Ptr {
    copy_of(address, mm().machine().get_cpu())
}

fn put_cpu_ptr(_address: Ptr) {
    mm().machine().put_cpu();
}

/// # Safety
/// `word` is a per-CPU integer of `size` bytes.
#[inline]
unsafe fn this_cpu_add(word: Ptr, size: usize, value: c_ulong) {
    // SAFETY: by contract.
    unsafe { mm().machine().this_cpu_add(first_copy(word.cast()), size, value) }
}

fn possible_cpus() -> c_int {
    mm().machine().nr_cpus() as c_int
}

fn current_cpu() -> c_int {
    mm().machine().cpu() as c_int
}

/// # Safety
/// The templates are readable and stay.
unsafe fn percpu_module(start: *const c_void, end: *const c_void) {
    // Before anything was allocated nothing is up; this allocates.
    // SAFETY: by contract.
    if !unsafe { register_module(start.cast(), end.cast()) } {
        let machine = mm().machine();
        machine.line("slabwright: no room for the per-CPU variables of a module");
        machine.abort();
    }
}

export! {
    slw___alloc_percpu(size: usize, align: usize, gfp: c_uint) -> Ptr = alloc_percpu;
    slw_free_percpu(address: Ptr) = free_percpu;
    slw___per_cpu_ptr(address: Ptr, cpu: c_int) -> Ptr = per_cpu_ptr;
    slw___this_cpu_ptr(address: Ptr) -> Ptr = this_cpu_ptr;
    slw___get_cpu_ptr(address: Ptr) -> Ptr = get_cpu_ptr;
    slw___put_cpu_ptr(address: Ptr) = put_cpu_ptr;
    slw___this_cpu_add(word: Ptr, size: usize, value: c_ulong) = this_cpu_add;
    slw_num_possible_cpus() -> c_int = possible_cpus;
    slw_smp_processor_id() -> c_int = current_cpu;
    slw___percpu_module(start: *const c_void, end: *const c_void) = percpu_module;
}

// Mappings.

extern "C" fn vmalloc(size: usize, caller: usize) -> Ptr {
    vmalloc_flags(size, Gfp::KERNEL, caller)
}

fn vmalloc_flags(size: usize, gfp: Gfp, caller: usize) -> Ptr {
    match mm().vmalloc_bytes(size, gfp) {
        Ok(start) => {
            mm().note_caller(start, Caller::Code(caller));
            start.cast()
        }
        Err(error) => refused(error),
    }
}

extern "C" fn vzalloc(size: usize, caller: usize) -> Ptr {
    vmalloc_flags(size, Gfp::KERNEL | Gfp::ZERO, caller)
}

/// # Safety
/// The area is not used any more.
unsafe fn vfree(address: Ptr) {
    // SAFETY: by contract.
    let _ = unsafe { mm().vfree(address.cast()) };
}

fn vmalloc_to_page(address: *const c_void) -> PagePtr {
    match mm().vmalloc_to_page(address.cast()) {
        Ok(pfn) => descriptor(pfn),
        Err(error) => refused(error),
    }
}

/// One frame has one address in a process.
fn vmap(_pages: *const PagePtr, _count: c_uint, _flags: c_ulong, _prot: c_ulong) -> Ptr {
    refused(AllocError::Unsupported)
}

/// # Safety
/// The mapping is not used any more.
unsafe fn vunmap(address: *const c_void) {
    // SAFETY: by contract.
    let _ = unsafe { mm().vunmap(address.cast()) };
}

extern "C" fn ioremap(physical: c_ulong, size: usize, caller: usize) -> Ptr {
    match device::ioremap(physical, size, Caller::Code(caller)) {
        Ok(address) => address.cast(),
        Err(error) => refused(error),
    }
}

fn iounmap(address: *const c_void) {
    if !address.is_null() && !device::iounmap(address.cast()) {
        slabwright_core::machine::misuse(
            mm().machine(),
            slabwright_core::error::Defect::Foreign,
            address.addr(),
            "ioremap",
        );
    }
}

fn add_resource(physical: c_ulong, size: usize, fd: c_int, offset: c_ulong) -> c_int {
    match device::add_resource(physical, size as u64, fd, offset) {
        Ok(()) => 0,
        Err(AllocError::Invalid) => libc::EINVAL,
        Err(_) => libc::ENOMEM,
    }
}

fn kmap_by(page: PagePtr, map: impl FnOnce(Pfn) -> Result<*mut u8, AllocError>) -> Ptr {
    let Some(pfn) = frame(page) else { return NULL };
    match map(pfn) {
        Ok(address) => address.cast(),
        Err(error) => refused(error),
    }
}

fn kmap(page: PagePtr) -> Ptr {
    kmap_by(page, |pfn| mm().kmap(pfn))
}

fn kunmap(page: PagePtr) {
    if let Some(pfn) = frame(page) {
        let _ = mm().kunmap(pfn);
    }
}

fn kmap_atomic(page: PagePtr) -> Ptr {
    kmap_by(page, |pfn| mm().kmap_atomic(pfn))
}

fn kunmap_atomic(address: *const c_void) {
    let _ = mm().kunmap_atomic(address.cast());
}

export! {
    slw_vfree(address: Ptr) = vfree;
    slw_vmalloc_to_page(address: *const c_void) -> PagePtr = vmalloc_to_page;
    slw_vmap(pages: *const PagePtr, count: c_uint, flags: c_ulong, prot: c_ulong) -> Ptr = vmap;
    slw_vunmap(address: *const c_void) = vunmap;
    slw_iounmap(address: *const c_void) = iounmap;
    slw_add_resource(physical: c_ulong, size: usize, fd: c_int, offset: c_ulong) -> c_int = add_resource;
    slw_kmap(page: PagePtr) -> Ptr = kmap;
    slw_kunmap(page: PagePtr) = kunmap;
    slw_kmap_atomic(page: PagePtr) -> Ptr = kmap_atomic;
    slw_kunmap_atomic(address: *const c_void) = kunmap_atomic;
}

// Pools.

/// `mempool_alloc_t` and `mempool_free_t`.
type PoolAlloc = unsafe extern "C" fn(gfp: c_uint, data: *mut u8) -> *mut u8;
type PoolFree = unsafe extern "C" fn(element: *mut u8, data: *mut u8);
type PoolPtr = *mut Mempool;

/// # Safety
/// The functions may be called with `data` from any thread that uses the pool.
unsafe fn mempool_create(least: c_int, alloc: Option<PoolAlloc>, free: Option<PoolFree>, data: Ptr) -> PoolPtr {
    let (Ok(least), Some(alloc), Some(free)) = (usize::try_from(least), alloc, free) else {
        return fail(libc::EINVAL).cast();
    };
    // SAFETY: by contract.
    match unsafe { mm().mempool_create(least, PoolSource { alloc, free, data: data.cast() }) } {
        Ok(pool) => pool.as_ptr(),
        Err(error) => refused(error).cast(),
    }
}

unsafe extern "C" fn pool_kmalloc(gfp: c_uint, size: *mut u8) -> *mut u8 {
    mm().kmalloc(size.addr(), Gfp(gfp))
}

unsafe extern "C" fn pool_kfree(element: *mut u8, _: *mut u8) {
    // SAFETY: the pool's, and given up.
    unsafe { mm().kfree(element) };
}

unsafe extern "C" fn pool_cache_alloc(gfp: c_uint, handle: *mut u8) -> *mut u8 {
    cache(handle.cast()).map_or(ptr::null_mut(), |named| mm().kmem_cache_alloc(named.cache(), Gfp(gfp), 0))
}

unsafe extern "C" fn pool_cache_free(element: *mut u8, handle: *mut u8) {
    if let Some(named) = cache(handle.cast()) {
        // SAFETY: the pool's, and given up.
        let _ = unsafe { mm().kmem_cache_free(named.cache(), element, 0) };
    }
}

fn mempool_kmalloc(least: c_int, size: usize) -> PoolPtr {
    // SAFETY: the functions take any size.
    unsafe { mempool_create(least, Some(pool_kmalloc), Some(pool_kfree), ptr::without_provenance_mut(size)) }
}

fn mempool_slab(least: c_int, handle: CachePtr) -> PoolPtr {
    // SAFETY: a cache that goes before its pool is found out.
    unsafe { mempool_create(least, Some(pool_cache_alloc), Some(pool_cache_free), handle) }
}

/// # Safety
/// `pool` is a pool.
unsafe fn mempool_alloc(pool: PoolPtr, gfp: c_uint) -> Ptr {
    // SAFETY: by contract.
    or_no_memory(mm().mempool_alloc(unsafe { &*pool }, Gfp(gfp)))
}

/// # Safety
/// `element` is null or the pool's.
unsafe fn mempool_free(element: Ptr, pool: PoolPtr) {
    // SAFETY: by contract.
    unsafe { mm().mempool_free(&*pool, element.cast()) }
}

/// # Safety
/// `pool` is null, or a pool that nobody uses any more.
unsafe fn mempool_destroy(pool: PoolPtr) {
    if let Some(pool) = ptr::NonNull::new(pool) {
        // SAFETY: by contract.
        unsafe { mm().mempool_destroy(pool) };
    }
}

export! {
    slw_mempool_create(least: c_int, alloc: Option<PoolAlloc>, free: Option<PoolFree>, data: Ptr) -> PoolPtr = mempool_create;
    slw_mempool_create_kmalloc_pool(least: c_int, size: usize) -> PoolPtr = mempool_kmalloc;
    slw_mempool_create_slab_pool(least: c_int, cache: CachePtr) -> PoolPtr = mempool_slab;
    slw_mempool_alloc(pool: PoolPtr, gfp: c_uint) -> Ptr = mempool_alloc;
    slw_mempool_free(element: Ptr, pool: PoolPtr) = mempool_free;
    slw_mempool_destroy(pool: PoolPtr) = mempool_destroy;
}

// Shrinkers.

/// `struct shrinker`.
#[repr(C)]
pub struct Shrinker {
    count_objects: Option<ShrinkCall>,
    scan_objects: Option<ShrinkCall>,
    batch: core::ffi::c_long,
    seeks: c_int,
    flags: c_uint,
}

/// # Safety
/// `shrinker` stays, and its functions may be called from any thread, until it is unregistered.
unsafe fn register_shrinker(shrinker: *mut Shrinker) -> c_int {
    // SAFETY: by contract.
    let Some(this) = (unsafe { shrinker.as_ref() }) else { return libc::EINVAL };
    let (Some(count), Some(scan)) = (this.count_objects, this.scan_objects) else { return libc::EINVAL };
    let batch = usize::try_from(this.batch).unwrap_or(0);
    // SAFETY: by contract.
    match unsafe { mm().register_shrinker(shrinker.cast(), count, scan, batch) } {
        Ok(()) => 0,
        Err(AllocError::Invalid) => libc::EINVAL,
        Err(_) => libc::ENOMEM,
    }
}

fn unregister_shrinker(shrinker: *mut Shrinker) {
    mm().unregister_shrinker(shrinker.cast());
}

export! {
    slw_register_shrinker(shrinker: *mut Shrinker) -> c_int = register_shrinker;
    slw_unregister_shrinker(shrinker: *mut Shrinker) = unregister_shrinker;
}
