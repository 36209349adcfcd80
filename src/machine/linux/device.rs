//! Device memory in a process: `ioremap` maps *resources*, ranges of physical addresses that stand for parts of files:
//! `/dev/mem`, a PCI device's resource file, a UIO device, a memfd. One is always there: a simulated local APIC at its
//! usual address, its identification at byte 0x20 and its version at 0x30, for code that wants some device.
#![allow(unsafe_code)]

use core::ops::Range;

use super::{locked, sys};
use crate::error::AllocError;
use crate::machine::DeviceMapping;
use crate::sync::Lock;
use crate::types::{Caller, PAGE_SIZE};

/// Physical address of the simulated device.
pub const APIC_BASE: u64 = 0xfee0_0000;
/// Version register of the simulated device: 6 entries, version 0x14.
const APIC_VERSION: u32 = 0x0005_0014;
/// Most resources, and most mappings at once.
const RESOURCES: usize = 16;
const MAPPINGS: usize = 64;

/// A range of physical addresses in a file.
#[derive(Clone, Copy)]
struct Resource {
    start: u64,
    /// Bytes; 0 for an unused place.
    len: u64,
    fd: i32,
    offset: u64,
}

#[derive(Clone, Copy)]
struct Mapping {
    /// First byte handed out; 0 for an unused place.
    address: usize,
    start: usize,
    len: usize,
    /// The physical address of `start`.
    physical: u64,
    caller: Caller,
}

pub(super) struct Table {
    resources: [Resource; RESOURCES],
    mappings: [Mapping; MAPPINGS],
}

pub(super) static TABLE: Lock<Table> = Lock::new(Table {
    resources: [Resource { start: 0, len: 0, fd: 0, offset: 0 }; RESOURCES],
    mappings: [Mapping { address: 0, start: 0, len: 0, physical: 0, caller: Caller::Unknown }; MAPPINGS],
});

fn add(table: &mut Table, new: Resource) -> Result<(), AllocError> {
    let overlaps = |old: &Resource| old.len != 0 && old.start < new.start + new.len && new.start < old.start + old.len;
    if table.resources.iter().any(overlaps) {
        return Err(AllocError::Invalid);
    }
    let place = table.resources.iter_mut().find(|old| old.len == 0).ok_or(AllocError::NoMemory)?;
    *place = new;
    Ok(())
}

/// Makes `[start, start + len)` stand for the bytes of `fd` from `offset` on. The descriptor stays the caller's, and
/// open.
///
/// # Errors
/// [`AllocError::Invalid`]: an empty range, one that overlaps another, or not at whole pages. [`AllocError::NoMemory`]:
/// too many.
pub fn add_resource(start: u64, len: u64, fd: i32, offset: u64) -> Result<(), AllocError> {
    let page = PAGE_SIZE as u64;
    if len == 0
        || fd < 0
        || start.checked_add(len).is_none()
        || !start.is_multiple_of(page)
        || !offset.is_multiple_of(page)
    {
        return Err(AllocError::Invalid);
    }
    locked(&TABLE, |mut table| add(&mut table, Resource { start, len, fd, offset }))
}

/// The simulated device, made at first use.
fn add_simulated(table: &mut Table) -> Result<(), AllocError> {
    const NAME: &core::ffi::CStr = c"slabwright-device";
    // SAFETY: the name is a string.
    let made = unsafe {
        sys::call(libc::SYS_memfd_create, [NAME.as_ptr().expose_provenance(), libc::MFD_CLOEXEC as usize, 0, 0, 0, 0])
    };
    let fd = made.map_err(|_| AllocError::NoMemory)?;
    let done = fill_simulated(fd)
        .and_then(|()| add(table, Resource { start: APIC_BASE, len: PAGE_SIZE as u64, fd: fd as i32, offset: 0 }));
    if done.is_err() {
        // No resource has it.
        sys::close(fd);
    }
    done
}

/// Writes the device's registers to its file.
fn fill_simulated(fd: usize) -> Result<(), AllocError> {
    let write = |at: usize, value: u32| {
        let bytes = (&raw const value).expose_provenance();
        // SAFETY: the value is readable.
        unsafe { sys::call(libc::SYS_pwrite64, [fd, bytes, size_of::<u32>(), at, 0, 0]) }.is_ok()
    };
    let done = write(PAGE_SIZE - 4, 0) && write(0x20, 0) && write(0x30, APIC_VERSION);
    if done { Ok(()) } else { Err(AllocError::NoMemory) }
}

/// Maps `[physical, physical + len)`, shared with all who map it. `caller` is shown in reports.
///
/// # Errors
/// [`AllocError::Invalid`]: no resource holds all of it. [`AllocError::NoMemory`].
pub fn ioremap(physical: u64, len: usize, caller: Caller) -> Result<*mut u8, AllocError> {
    let end = physical.checked_add(len as u64).filter(|_| len > 0).ok_or(AllocError::Invalid)?;
    locked(&TABLE, |mut table| map(&mut table, physical..end, caller))
}

fn map(table: &mut Table, wanted: Range<u64>, caller: Caller) -> Result<*mut u8, AllocError> {
    let find = |table: &Table| {
        let holds = |r: &&Resource| r.len != 0 && r.start <= wanted.start && wanted.end <= r.start + r.len;
        table.resources.iter().find(holds).copied()
    };
    let mut found = find(table);
    if found.is_none() && (APIC_BASE..APIC_BASE + PAGE_SIZE as u64).contains(&wanted.start) {
        add_simulated(table)?;
        found = find(table);
    }
    let resource = found.ok_or(AllocError::Invalid)?;
    let place = table.mappings.iter().position(|mapping| mapping.address == 0).ok_or(AllocError::NoMemory)?;
    let inside = wanted.start as usize % PAGE_SIZE;
    let physical = wanted.start - inside as u64;
    let len = ((wanted.end - physical) as usize).next_multiple_of(PAGE_SIZE);
    let offset = resource.offset + (physical - resource.start);
    let prot = (libc::PROT_READ | libc::PROT_WRITE) as usize;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let mapped = unsafe {
        sys::call(libc::SYS_mmap, [0, len, prot, libc::MAP_SHARED as usize, resource.fd as usize, offset as usize])
    };
    let start = mapped.map_err(|_| AllocError::NoMemory)?;
    table.mappings[place] = Mapping { address: start + inside, start, len, physical, caller };
    Ok(core::ptr::with_exposed_provenance_mut(start + inside))
}

/// The `nth` mapping.
pub(super) fn mapping(nth: usize) -> Option<DeviceMapping> {
    let found = locked(&TABLE, |table| table.mappings.iter().filter(|mapping| mapping.address != 0).nth(nth).copied());
    let Mapping { start, len, physical, caller, .. } = found?;
    Some(DeviceMapping { range: start..start + len, physical, caller })
}

/// Takes an [`ioremap`] back; false where nothing was mapped there so.
pub fn iounmap(address: *const u8) -> bool {
    locked(&TABLE, |mut table| {
        let here = |mapping: &&mut Mapping| mapping.address != 0 && mapping.address == address.addr();
        let Some(mapping) = table.mappings.iter_mut().find(here) else { return false };
        sys::munmap(mapping.start, mapping.len);
        mapping.address = 0;
        true
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_for_which_there_is_no_place_leaves_no_file_open() {
        let devices = || {
            let open = std::fs::read_dir("/proc/self/fd")
                .unwrap()
                .filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
            open.filter(|to| to.to_string_lossy().contains("slabwright-device")).count()
        };
        let place = |nth| Resource { start: nth * PAGE_SIZE as u64, len: PAGE_SIZE as u64, fd: 0, offset: 0 };
        let none = Mapping { address: 0, start: 0, len: 0, physical: 0, caller: Caller::Unknown };
        let mut table = Table { resources: core::array::from_fn(|nth| place(nth as u64)), mappings: [none; MAPPINGS] };
        let before = devices();
        assert_eq!(add_simulated(&mut table), Err(AllocError::NoMemory));
        assert_eq!(devices(), before);
        table.resources[0].len = 0;
        assert_eq!(add_simulated(&mut table), Ok(()));
        assert_eq!(devices(), before + 1);
        // SAFETY: the descriptor is this test's.
        assert_eq!(unsafe { libc::close(table.resources[0].fd) }, 0);
    }
}
