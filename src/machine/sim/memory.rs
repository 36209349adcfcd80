//! The simulator's memory: frames are pages of a memory file, so that one frame can be mapped at several host
//! addresses.
//!
//! The direct map, the vmalloc window, the memmap and the page-class map are reservations of their own; what is offline
//! is `PROT_NONE`, so a stray access ends the test with SIGSEGV. The pages the file really has are the backed ones.

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU8, Ordering};
use std::io::Error;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::machine::i386::layout::{FIXADDR_TOP, PKMAP_BASE};
use crate::page::Page;
use crate::types::{PAGE_SHIFT, PAGE_SIZE, Pfn, PfnRange};

/// Alignment of the direct map and the window: the largest buddy block.
const ALIGN: usize = 4 << 20;

/// A range of host addresses, given back on drop.
struct Region {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: a region is an address range that its owner alone maps and unmaps; what lies in it is reached through
// atomics or by those the core hands it to.
unsafe impl Send for Region {}
// SAFETY: as above; shared access only reads `at` and `len`.
unsafe impl Sync for Region {}

impl Region {
    /// Reserves `len` bytes aligned to [`ALIGN`], zero-filled where `usable`.
    fn new(len: usize, usable: bool) -> Region {
        let len = len.max(1).next_multiple_of(PAGE_SIZE);
        let whole = len + ALIGN;
        let prot = if usable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_NONE };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: no address is asked for, so nothing existing is touched.
        let raw = unsafe { libc::mmap(ptr::null_mut(), whole, prot, flags, -1, 0) };
        assert!(raw != libc::MAP_FAILED, "simulator: no room for {whole} bytes: {}", Error::last_os_error());
        let raw: *mut u8 = raw.cast();
        let head = raw.addr().next_multiple_of(ALIGN) - raw.addr();
        // SAFETY: 1. `head < ALIGN` and `head + len <= whole`, so all three stay inside the mapping made above;
        // 2. nobody knows the parts that are given back. A part of length 0 is left out.
        unsafe {
            if head > 0 {
                libc::munmap(raw.cast(), head);
            }
            if whole > head + len {
                libc::munmap(raw.add(head + len).cast(), whole - head - len);
            }
            Region { at: NonNull::new_unchecked(raw.add(head)), len }
        }
    }

    fn base(&self) -> usize {
        self.at.as_ptr().expose_provenance()
    }

    fn contains(&self, address: usize, len: usize) -> bool {
        let base = self.at.as_ptr().addr();
        address >= base && address - base <= self.len && self.len - (address - base) >= len
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the range was mapped in `new` and is this region's alone; its owner is going away.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.len) };
    }
}

/// All memory of one simulated machine.
pub(super) struct Memory {
    file: OwnedFd,
    /// First frame the maps reach, a multiple of the largest block.
    base: Pfn,
    /// Frames the maps reach, a multiple of the largest block.
    span: u32,
    direct: Region,
    window: Region,
    /// Addresses for permanent and temporary mappings, laid out as from `PKMAP_BASE` to `FIXADDR_TOP`.
    slots: Region,
    /// Whether each of these pages shows a frame.
    shown: Region,
    memmap: Region,
    classes: Region,
    online: Region,
}

/// States of a frame in the `online` map.
const OFFLINE: u8 = 0;
const MAPPED: u8 = 1;
const HIGH: u8 = 2;

impl Memory {
    /// Memory for frames in `[base, base + span)`, none online, and a window of `window` bytes.
    pub(super) fn new(base: Pfn, span: u32, window: usize) -> Memory {
        // SAFETY: plain queries and the creation of a file with a constant name.
        let (page, fd) = unsafe {
            (libc::sysconf(libc::_SC_PAGESIZE), libc::memfd_create(c"slabwright-sim".as_ptr(), libc::MFD_CLOEXEC))
        };
        assert_eq!(
            page, PAGE_SIZE as libc::c_long,
            "the simulator maps single frames: it needs a host with 4 KiB pages"
        );
        assert!(fd >= 0, "simulator: memfd_create: {}", Error::last_os_error());
        // SAFETY: the descriptor was just made and is nobody else's.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        let span_bytes = (span as usize) << PAGE_SHIFT;
        // SAFETY: a system call on our own file.
        let rc = unsafe { libc::ftruncate(file.as_raw_fd(), (span_bytes + window) as libc::off_t) };
        assert_eq!(rc, 0, "simulator: ftruncate: {}", Error::last_os_error());
        Memory {
            file,
            base,
            span,
            direct: Region::new(span_bytes, false),
            window: Region::new(window, false),
            slots: Region::new(FIXADDR_TOP - PKMAP_BASE, false),
            shown: Region::new((FIXADDR_TOP - PKMAP_BASE) >> PAGE_SHIFT, true),
            memmap: Region::new(span as usize * size_of::<Page>(), true),
            classes: Region::new(span as usize, true),
            online: Region::new(span as usize, true),
        }
    }

    pub(super) fn window(&self) -> core::ops::Range<usize> {
        self.window.base()..self.window.base() + self.window.len
    }

    fn index(&self, pfn: Pfn) -> Option<usize> {
        (pfn.0 >= self.base.0 && pfn.0 - self.base.0 < self.span).then(|| (pfn.0 - self.base.0) as usize)
    }

    fn byte(map: &Region, index: usize) -> &AtomicU8 {
        assert!(index < map.len);
        // SAFETY: 1. inside the region, which lives as long as `map`; 2. zero-filled at first, accessed as atomics
        // only.
        unsafe { &*map.at.as_ptr().add(index).cast::<AtomicU8>() }
    }

    fn state(&self, pfn: Pfn) -> u8 {
        // Acquire, pairs with the Release in `bring_online`: the frame's mapping is there when its state is.
        self.index(pfn).map_or(OFFLINE, |i| Memory::byte(&self.online, i).load(Ordering::Acquire))
    }

    pub(super) fn is_online(&self, pfn: Pfn) -> bool {
        self.state(pfn) != OFFLINE
    }

    /// Makes the frames usable; those of `high` memory get no address.
    pub(super) fn bring_online(&self, range: PfnRange, high: bool) {
        for pfn in range.iter() {
            assert_eq!(self.state(pfn), OFFLINE, "frame {pfn:?} is online already");
        }
        if !high {
            self.map_file(self.direct_address(range.start), range.bytes(), self.offset(range.start));
        }
        for pfn in range.iter() {
            let index = self.index(pfn).expect("frame outside the maps");
            Memory::byte(&self.online, index).store(if high { HIGH } else { MAPPED }, Ordering::Release);
        }
    }

    /// The descriptor; `None` where the whole largest block around the frame is offline.
    pub(super) fn page(&self, pfn: Pfn) -> Option<&Page> {
        let index = self.index(pfn)?;
        if !self.is_online(pfn) {
            let block = Pfn(pfn.0 & !1023);
            PfnRange::new(block, 1024).iter().find(|p| self.is_online(*p))?;
        }
        // SAFETY: 1. inside the memmap, which lives as long as `self`; 2. a zeroed descriptor is valid; 3. a
        // descriptor consists of atomics.
        Some(unsafe { &*self.memmap.at.as_ptr().cast::<Page>().add(index) })
    }

    pub(super) fn class(&self, pfn: Pfn) -> Option<&AtomicU8> {
        let index = self.index(pfn).filter(|_| self.is_online(pfn))?;
        Some(Memory::byte(&self.classes, index))
    }

    fn direct_address(&self, pfn: Pfn) -> usize {
        self.direct.base() + (((pfn.0 - self.base.0) as usize) << PAGE_SHIFT)
    }

    /// Address in the direct map; null for high memory, `None` offline.
    pub(super) fn virt(&self, pfn: Pfn) -> Option<*mut u8> {
        match self.state(pfn) {
            OFFLINE => None,
            HIGH => Some(ptr::null_mut()),
            _ => Some(ptr::with_exposed_provenance_mut(self.direct_address(pfn))),
        }
    }

    pub(super) fn pfn(&self, address: usize) -> Option<Pfn> {
        if !self.direct.contains(address, 1) {
            return None;
        }
        let pfn = self.base.add(((address - self.direct.base()) >> PAGE_SHIFT) as u32);
        (self.state(pfn) == MAPPED).then_some(pfn)
    }

    /// Offset of a frame in the file.
    fn offset(&self, pfn: Pfn) -> usize {
        ((pfn.0 - self.base.0) as usize) << PAGE_SHIFT
    }

    /// Offset in the file of the memory that hosted machines have under `address` of the window.
    fn window_offset(&self, address: usize) -> usize {
        ((self.span as usize) << PAGE_SHIFT) + (address - self.window.base())
    }

    fn map_file(&self, address: usize, len: usize, offset: usize) {
        let regions = [&self.direct, &self.window, &self.slots];
        assert!(regions.iter().any(|region| region.contains(address, len)));
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let at: *mut u8 = ptr::with_exposed_provenance_mut(address);
        // SAFETY: 1. the range lies in one of our reservations, where nothing is but what we put there; 2. the core
        // holds references only into frames and slots that it was given.
        let got = unsafe { libc::mmap(at.cast(), len, prot, flags, self.file.as_raw_fd(), offset as libc::off_t) };
        assert!(got == at.cast(), "simulator: mmap: {} (vm.max_map_count?)", Error::last_os_error());
    }

    /// Lets `len` bytes at `address` of the window show the frames from `pfn` on.
    pub(super) fn map_window(&self, address: usize, pfn: Pfn, len: usize) {
        self.map_file(address, len, self.offset(pfn));
    }

    /// Lets `len` bytes at `address` of the window show memory of their own.
    pub(super) fn map_window_own(&self, address: usize, len: usize) {
        self.map_file(address, len, self.window_offset(address));
    }

    /// Host addresses of the slots.
    pub(super) fn slots(&self) -> core::ops::Range<usize> {
        self.slots.base()..self.slots.base() + self.slots.len
    }

    /// Bytes from the first slot to `address`; `None` where that is not among the slots.
    pub(super) fn slot(&self, address: usize) -> Option<usize> {
        self.slots.contains(address, 1).then(|| address - self.slots.base())
    }

    /// Whether the slot at `address` shows a frame.
    pub(super) fn is_shown(&self, address: usize) -> bool {
        let slot = self.slot(address).expect("a slot") >> PAGE_SHIFT;
        Memory::byte(&self.shown, slot).load(Ordering::Relaxed) != 0
    }

    /// Lets a slot show a frame, or nothing.
    pub(super) fn set_slot(&self, address: usize, frame: Option<Pfn>) {
        let slot = self.slot(address).expect("a slot") >> PAGE_SHIFT;
        Memory::byte(&self.shown, slot).store(frame.is_some().into(), Ordering::Relaxed);
        match frame {
            Some(pfn) => self.map_file(address, PAGE_SIZE, self.offset(pfn)),
            None => self.unusable(address, PAGE_SIZE),
        }
    }

    /// Reads bytes of a frame, whether it has an address or not.
    pub(super) fn read_frame(&self, pfn: Pfn, at: usize, bytes: &mut [u8]) {
        assert!(at + bytes.len() <= PAGE_SIZE && self.is_online(pfn), "{pfn:?} is offline");
        let (at, len) = ((self.offset(pfn) + at) as libc::off_t, bytes.len());
        // SAFETY: a system call on our own file, into a buffer of that size.
        let got = unsafe { libc::pread(self.file.as_raw_fd(), bytes.as_mut_ptr().cast(), len, at) };
        assert_eq!(got, len as isize, "simulator: pread: {}", Error::last_os_error());
    }

    /// Writes bytes of a frame.
    pub(super) fn write_frame(&self, pfn: Pfn, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= PAGE_SIZE && self.is_online(pfn), "{pfn:?} is offline");
        let at = (self.offset(pfn) + at) as libc::off_t;
        // SAFETY: a system call on our own file; who stores to a frame owns it, or tests what happens when not.
        let put = unsafe { libc::pwrite(self.file.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), at) };
        assert_eq!(put, bytes.len() as isize, "simulator: pwrite: {}", Error::last_os_error());
    }

    /// Makes a part of the window unusable.
    pub(super) fn unmap_window(&self, address: usize, len: usize) {
        assert!(self.window.contains(address, len));
        self.unusable(address, len);
    }

    fn unusable(&self, address: usize, len: usize) {
        let at: *mut u8 = ptr::with_exposed_provenance_mut(address);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: as in `map_file`.
        let got = unsafe { libc::mmap(at.cast(), len, libc::PROT_NONE, flags, -1, 0) };
        assert!(got == at.cast(), "simulator: munmap: {}", Error::last_os_error());
    }

    fn punch(&self, offset: usize, len: usize) {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: a system call on our own file; the caller owns the frames whose contents go.
        let rc = unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset as libc::off_t, len as libc::off_t) };
        assert_eq!(rc, 0, "simulator: fallocate: {}", Error::last_os_error());
    }

    /// Takes the contents of frames: they read zero and are unbacked.
    pub(super) fn punch_frames(&self, range: PfnRange) {
        self.punch(self.offset(range.start), range.bytes());
    }

    /// As [`Memory::punch_frames`] for a hosted machine's window.
    pub(super) fn punch_window(&self, address: usize, len: usize) {
        self.punch(self.window_offset(address), len);
    }

    /// Backs the page that holds `address`, which is mapped.
    pub(super) fn touch(&self, address: usize) {
        // SAFETY: the address is mapped, and this atomic access changes no byte, whoever else writes there.
        let byte = unsafe { &*ptr::with_exposed_provenance::<AtomicU8>(address) };
        // Not `fetch_or(0)`, which compiles to nothing.
        let _ = byte.compare_exchange(0, 0, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn backed_at(&self, offset: usize) -> bool {
        // SAFETY: a system call on our own file; nobody depends on the file position.
        let found = unsafe { libc::lseek(self.file.as_raw_fd(), offset as libc::off_t, libc::SEEK_DATA) };
        found == offset as libc::off_t
    }

    /// Whether the frame has memory behind it.
    pub(super) fn frame_backed(&self, pfn: Pfn) -> bool {
        self.backed_at(self.offset(pfn))
    }

    /// Whether a hosted machine's window page has memory behind it.
    pub(super) fn window_backed(&self, address: usize) -> bool {
        self.backed_at(self.window_offset(address & !(PAGE_SIZE - 1)))
    }

    /// Pages with memory behind them, frames and window together.
    pub(super) fn backed(&self) -> u64 {
        // SAFETY: `stat` is plain data that the call fills.
        let stat = unsafe {
            let mut stat: libc::stat = core::mem::zeroed();
            assert_eq!(libc::fstat(self.file.as_raw_fd(), &mut stat), 0);
            stat
        };
        stat.st_blocks as u64 * 512 / PAGE_SIZE as u64
    }

    /// Moves the contents of a frame to a page of the window, as a hosted machine moves its population: the frame is
    /// left unbacked, and the page stays unbacked where the frame was.
    pub(super) fn move_in(&self, pfn: Pfn, to: usize) {
        if self.frame_backed(pfn) {
            self.copy_page(self.direct_address(pfn), to);
            self.punch_frames(PfnRange::new(pfn, 1));
        }
    }

    /// [`Memory::move_in`] from one page of the window to another.
    pub(super) fn move_within(&self, from: usize, to: usize) {
        if self.window_backed(from) {
            self.copy_page(from, to);
            self.punch_window(from, PAGE_SIZE);
        }
    }

    fn copy_page(&self, from: usize, to: usize) {
        // SAFETY: 1. both are whole mapped pages of ours; 2. they are distinct; 3. their owner called for the move and
        // has no reference into them.
        unsafe {
            ptr::copy_nonoverlapping(
                ptr::with_exposed_provenance::<u8>(from),
                ptr::with_exposed_provenance_mut(to),
                PAGE_SIZE,
            );
        }
    }

    /// Zeroes mapped pages by writing.
    pub(super) fn zero(&self, address: usize, len: usize) {
        // SAFETY: the pages are mapped and their owner called for this.
        unsafe { ptr::write_bytes(ptr::with_exposed_provenance_mut::<u8>(address), 0, len) };
    }
}
