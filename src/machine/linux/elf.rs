//! Symbols of objects that are loaded, found in their own tables, and changed there.
//!
//! `dlsym` finds them too, but brings 140 KiB of the C library's pages into a small program, and may allocate.

use core::ffi::CStr;
use core::ptr::with_exposed_provenance as at;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use libc::{Elf64_Ehdr, Elf64_Phdr, Elf64_Sym, PF_X, PROT_EXEC, PROT_READ, PROT_WRITE, PT_DYNAMIC, PT_LOAD};

use super::sys;
use crate::types::PAGE_SIZE;

const DT_NULL: usize = 0;
const DT_STRTAB: usize = 5;
const DT_SYMTAB: usize = 6;
const DT_GNU_HASH: usize = 0x6fff_fef5;

/// What [`find`] found of a symbol.
#[derive(Clone, Copy)]
struct Found {
    entry: *const Elf64_Sym,
    /// How far the object lies from the addresses it was linked for.
    slide: usize,
    /// Flags of the segment with the header, where the tables are, too.
    flags: u32,
}

/// What the object whose header lies at `base` says of `name`; `None` where it does not define it, or has no GNU hash
/// table.
///
/// # Safety
/// At `base` lies the header of a shared object as the kernel or the loader mapped it, for good.
#[inline(always)]
unsafe fn find(base: usize, name: &CStr) -> Option<Found> {
    // SAFETY: the caller's; the tables are where the format has them, and agree with each other.
    unsafe {
        let header = &*at::<Elf64_Ehdr>(base);
        let segments = at::<Elf64_Phdr>(base + header.e_phoff as usize);
        let segments = core::slice::from_raw_parts(segments, header.e_phnum.into());
        let first = segments.iter().find(|segment| segment.p_type == PT_LOAD && segment.p_offset == 0)?;
        let flags = first.p_flags;
        let slide = base.wrapping_sub(first.p_vaddr as usize);
        let dynamic = segments.iter().find(|segment| segment.p_type == PT_DYNAMIC)?;
        let entry = entry_of(slide, slide.wrapping_add(dynamic.p_vaddr as usize), name)?;
        Some(Found { entry, slide, flags })
    }
}

/// What the object says of `name` that lies `slide` bytes from where its file says, with its dynamic section at
/// `dynamic`.
///
/// # Safety
/// There is such an object, for good.
#[inline(always)]
unsafe fn entry_of(slide: usize, dynamic: usize, name: &CStr) -> Option<*const Elf64_Sym> {
    // SAFETY: the caller's; the tables are where the format has them, and agree with each other.
    unsafe {
        let mut entry = at::<[usize; 2]>(dynamic);
        let (mut strings, mut symbols, mut hashes) = (0, 0, 0);
        while (*entry)[0] != DT_NULL {
            let [tag, value] = *entry;
            // Some loaders have made addresses of them, some have not.
            let address = if value < slide { slide.wrapping_add(value) } else { value };
            match tag {
                DT_STRTAB => strings = address,
                DT_SYMTAB => symbols = address,
                DT_GNU_HASH => hashes = address,
                _ => {}
            }
            entry = entry.add(1);
        }
        if strings == 0 || symbols == 0 || hashes == 0 {
            return None;
        }
        let hash = name.to_bytes().iter().fold(5381u32, |hash, &byte| hash.wrapping_mul(33).wrapping_add(byte.into()));
        let [buckets, first, bloom, _] = *at::<[u32; 4]>(hashes);
        let bucket = at::<u32>(hashes + 16 + bloom as usize * size_of::<usize>());
        let chain = bucket.add(buckets as usize);
        let mut index = *bucket.add((hash % buckets) as usize);
        // An empty bucket is 0.
        while index >= first {
            let found = *chain.add((index - first) as usize);
            let symbol = &*at::<Elf64_Sym>(symbols).add(index as usize);
            // The lowest bit says whether the chain ends.
            // Byte by byte: `memcmp` is 64 KiB of the C library away.
            let text = at::<u8>(strings + symbol.st_name as usize);
            let mut letters = name.to_bytes_with_nul().iter().enumerate();
            if found | 1 == hash | 1 && symbol.st_shndx != 0 && letters.all(|(nth, letter)| *text.add(nth) == *letter) {
                return Some(symbol);
            }
            if found & 1 != 0 {
                break;
            }
            index += 1;
        }
        None
    }
}

/// The address of what the object whose header lies at `base` defines as `name`; `None` as for [`find`].
///
/// # Safety
/// As for [`find`].
pub(super) unsafe fn symbol(base: usize, name: &CStr) -> Option<usize> {
    // SAFETY: the caller's; the table stays.
    unsafe { find(base, name).map(|found| found.slide.wrapping_add((*found.entry).st_value as usize)) }
}

/// Changes the table of the object whose header lies at `base`: whoever looks one of `names` up from now on finds what
/// `instead` says. Names that the object does not define, or that `instead` knows nothing of, stay as they are. Each is
/// taken to have one version.
///
/// # Safety
/// At `base` lies the header of a shared object as the loader mapped it, for good; no other thread is in here, and each
/// replacement can stand for what it replaces.
pub unsafe fn redefine<'a>(
    base: usize,
    names: impl Iterator<Item = &'a CStr> + Clone,
    instead: impl Fn(&CStr) -> Option<usize>,
) {
    // SAFETY: the caller's.
    let defined = |name: &CStr| unsafe { find(base, name) };
    let (mut start, mut end, mut protection) = (usize::MAX, 0, PROT_READ);
    for found in names.clone().filter_map(defined) {
        let address = found.entry.expose_provenance();
        start = start.min(address / PAGE_SIZE * PAGE_SIZE);
        end = end.max((address + size_of::<Elf64_Sym>()).next_multiple_of(PAGE_SIZE));
        if found.flags & PF_X != 0 {
            protection |= PROT_EXEC;
        }
    }
    if start >= end || !sys::mprotect(start, end - start, protection | PROT_WRITE) {
        return;
    }
    for name in names {
        if let (Some(found), Some(address)) = (defined(name), instead(name)) {
            // SAFETY: a word of the table, which is writable now; the loader reads it at any time, whole.
            let value = unsafe { AtomicU64::from_ptr((&raw const (*found.entry).st_value).cast_mut()) };
            value.store(address.wrapping_sub(found.slide) as u64, Relaxed);
        }
    }
    sys::mprotect(start, end - start, protection);
}

/// What the loader shows to debuggers.
#[repr(C)]
struct Debug {
    version: i32,
    first: *const Object,
}

/// A loaded object, in the order in which symbols are looked for.
#[repr(C)]
struct Object {
    slide: usize,
    name: *const u8,
    dynamic: usize,
    next: *const Object,
}

/// What the objects behind that which has `own` for `name` have for it, as `dlsym` finds it by `RTLD_NEXT`; without a
/// lock, for handlers. `None` also where the loader was run as the program.
pub fn next(own: usize, name: &CStr) -> Option<usize> {
    let loader = sys::auxv(libc::AT_BASE) as usize;
    if loader == 0 {
        return None;
    }
    // SAFETY: the loader's header lies at its base. Its list has had the program and what that needs from before the
    // first call of a function, and those stay; what comes later comes behind them.
    unsafe {
        let mut object = (*at::<Debug>(symbol(loader, c"_r_debug")?)).first;
        let mut seen = false;
        while let Some(Object { slide, dynamic, next, .. }) = object.as_ref() {
            let found = entry_of(*slide, *dynamic, name).map(|entry| slide.wrapping_add((*entry).st_value as usize));
            match found {
                Some(found) if found == own => seen = true,
                Some(found) if seen => return Some(found),
                _ => {}
            }
            object = *next;
        }
    }
    None
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    #[test]
    fn the_loaders_symbols_are_what_it_says_itself() {
        let loader = sys::auxv(libc::AT_BASE) as usize;
        for name in [c"__rseq_offset", c"__rseq_size", c"_r_debug", c"__tls_get_addr"] {
            // SAFETY: looks a name up; the loader's header lies at its base.
            let (asked, found) = unsafe { (libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()), symbol(loader, name)) };
            assert_eq!(found.unwrap_or(0), asked.addr(), "{name:?}");
        }
        // SAFETY: as above.
        assert_eq!(unsafe { symbol(loader, c"__rseq_nothing") }, None);
    }
}
