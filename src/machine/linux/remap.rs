//! The vmalloc window: opening it, and moving populations into it without copying.
//!
//! Two ways of moving, tried in this order; a refusal that means "never" (`EPERM`, `ENOSYS`, `EINVAL`) ends a way for
//! good:
//! * `UFFDIO_MOVE` (from Linux 6.17 here: 6.8 has it, later releases fixed its races) leaves the mappings alone and
//!   moves huge pages whole. The descriptor lives for one call only; it is unregistered before it is closed, because a
//!   fork in between would keep it open in the child. Where frames turn out to be backed by small pages, the other way
//!   is preferred for a while: see [`SLOW_NS`].
//! * `mremap(DONTUNMAP)` moves page tables, but leaves a mapping of its own per run, of which a process may have only
//!   so many: an eighth of the default limit is ours. [`Moved`] remembers such slots; unmapping them merges their
//!   mappings again.

use core::ops::Range;
use core::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU32, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed},
};

use super::{Linux, limits, memory, reservation, sys};
use crate::machine::{DeviceMapping, Frames, Mapping};
use crate::types::{PAGE_SIZE, PAGEBLOCK_PAGES, PAGEBLOCK_SIZE, Pfn};

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
const SLOT: usize = PAGEBLOCK_SIZE;
/// Mappings that moving may add: an eighth of the kernel's default `max_map_count`.
const MAPPINGS: u32 = 65_530 / 8;
/// First release whose `UFFDIO_MOVE` is trusted.
const UFFD_MOVE_FROM: (u64, u64) = (6, 17);

/// A slot that takes longer was moved by small pages. Measured on 2 CPUs, 64 MiB from 32 scattered frames: by
/// `UFFDIO_MOVE` 100–170 µs where they are huge pages, but 2–120 *milliseconds* by 4 KiB pages (each is flushed on
/// every CPU that the process has run on), which is more than fresh pages cost; by `mremap` 170–350 µs either way.
const SLOW_NS: u64 = 60_000;
/// Calls that go by page tables once a slow move was seen.
const SMALL_PAGES_FOR: u32 = 64;

/// Bits of a slot in [`Moved`].
const FILLED: u32 = 1;
const FIRST: u32 = 2;

const UNKNOWN: u8 = 0;
const YES: u8 = 1;
const NO: u8 = 2;

static UFFD: AtomicU8 = AtomicU8::new(UNKNOWN);
/// Whether a move succeeded.
static UFFD_MOVED: AtomicBool = AtomicBool::new(false);
static MREMAP: AtomicU8 = AtomicU8::new(YES);
/// Calls that are still to prefer page tables.
static SMALL_PAGES: AtomicU32 = AtomicU32::new(0);
/// Address of two bit maps, of the slots that `mremap` filled and of the first slots of its runs; 0 before the first.
static MOVED_BITS: AtomicUsize = AtomicUsize::new(0);
static MOVED_RUNS: AtomicU32 = AtomicU32::new(0);

fn means_never(error: sys::Errno) -> bool {
    matches!(error.0, libc::EPERM | libc::ENOSYS | libc::EINVAL)
}

/// Slots of the window that hold a mapping of their own, made by `mremap` or for small pages: two bits each, *filled*
/// and *first of its run*.
struct Moved;

impl Moved {
    fn bits(create: bool) -> Option<&'static [AtomicU32]> {
        let words = memory::vmalloc_window().len() / SLOT / 16 + 1;
        let mut at = MOVED_BITS.load(Acquire);
        if at == 0 && create {
            let fresh = sys::mmap(0, words * 4, RW, 0).ok()?;
            match MOVED_BITS.compare_exchange(0, fresh, AcqRel, Acquire) {
                Ok(_) => at = fresh,
                Err(other) => {
                    sys::munmap(fresh, words * 4);
                    at = other;
                }
            }
        }
        // SAFETY: mapped for ever with so many words, all valid.
        (at != 0).then(|| unsafe { core::slice::from_raw_parts(core::ptr::with_exposed_provenance(at), words) })
    }

    fn slots(start: usize, len: usize) -> Range<usize> {
        let base = memory::vmalloc_window().start;
        (start - base) / SLOT..(start + len - base).div_ceil(SLOT)
    }

    /// Whether another run may be moved; its slots are marked.
    fn reserve(start: usize, len: usize) -> bool {
        let Some(bits) = Moved::bits(true) else { return false };
        if MOVED_RUNS.fetch_add(1, Relaxed) >= MAPPINGS {
            MOVED_RUNS.fetch_sub(1, Relaxed);
            return false;
        }
        for (nth, slot) in Moved::slots(start, len).enumerate() {
            let as_what = if nth == 0 { FILLED | FIRST } else { FILLED };
            bits[slot / 16].fetch_or(as_what << (slot % 16 * 2), Relaxed);
        }
        true
    }

    fn any(start: usize, len: usize) -> bool {
        Moved::bits(false).is_some_and(|bits| {
            Moved::slots(start, len).any(|s| bits[s / 16].load(Relaxed) & FILLED << (s % 16 * 2) != 0)
        })
    }

    /// Forgets the slots of a range. What remains of a run behind the range is a run of its own.
    fn forget(start: usize, len: usize) {
        let Some(bits) = Moved::bits(false) else { return };
        let slots = Moved::slots(start, len);
        let (mut any, mut runs) = (false, 0);
        for slot in slots.clone() {
            let shift = slot % 16 * 2;
            let was = bits[slot / 16].fetch_and(!((FILLED | FIRST) << shift), Relaxed) >> shift;
            any |= was & FILLED != 0;
            runs += was >> 1 & 1;
        }
        // Another thread may have that slot in hand: then the count is off by one for a while, and no more.
        if any && let Some(word) = bits.get(slots.end / 16) {
            let shift = slots.end % 16 * 2;
            if word.load(Relaxed) >> shift & (FILLED | FIRST) == FILLED {
                word.fetch_or(FIRST << shift, Relaxed);
                MOVED_RUNS.fetch_add(1, Relaxed);
            }
        }
        let _ = MOVED_RUNS.fetch_update(Relaxed, Relaxed, |known| Some(known.saturating_sub(runs)));
    }
}

/// Moves what is mapped at `from`, with its mappings. Linux moves several from 6.17 on, one after the other, and may
/// stop between two.
///
/// # Safety
/// Both ranges are the caller's, and of what is mapped at `to` nothing is needed.
unsafe fn move_mappings(from: usize, to: usize, len: usize) -> Result<usize, sys::Errno> {
    const MAYMOVE_FIXED: usize = 1 | 2;
    // SAFETY: the caller's condition.
    unsafe { sys::call(libc::SYS_mremap, [from, len, len, MAYMOVE_FIXED, to, 0]) }
}

/// Bytes at the start of a range that are not mapped, where all that follow are.
fn unmapped_part(start: usize, len: usize) -> usize {
    let (mut low, mut high) = (0, len / PAGE_SIZE);
    while low < high {
        let mid = low.midpoint(high);
        // Advice that changes nothing, but for a range that is not mapped.
        match sys::madvise(start + mid * PAGE_SIZE, PAGE_SIZE, libc::MADV_NORMAL) {
            Ok(_) => high = mid,
            Err(_) => low = mid + 1,
        }
    }
    low * PAGE_SIZE
}

/// A userfault descriptor with one range registered, for one move.
struct Uffd {
    fd: usize,
    start: usize,
    len: usize,
}

impl Uffd {
    const API: usize = 0xc018_aa3f;
    const REGISTER: usize = 0xc020_aa00;
    const UNREGISTER: usize = 0x8010_aa01;
    const MOVE: usize = 0xc028_aa05;
    const FEATURE_MOVE: u64 = 1 << 16;
    const USER_MODE_ONLY: usize = 1;
    const MODE_MISSING: u64 = 1;
    const ALLOW_SRC_HOLES: u64 = 2;

    fn ioctl<T>(fd: usize, request: usize, argument: &mut T) -> Result<usize, sys::Errno> {
        // SAFETY: each request above takes a structure of 8-byte words, as given by its callers.
        unsafe { sys::call(libc::SYS_ioctl, [fd, request, (&raw mut *argument).expose_provenance(), 0, 0, 0]) }
    }

    /// Opens a descriptor for moves into `[start, start + len)`.
    fn open(start: usize, len: usize) -> Option<Uffd> {
        if UFFD.load(Relaxed) == UNKNOWN {
            let known = release() >= UFFD_MOVE_FROM;
            let _ = UFFD.compare_exchange(UNKNOWN, if known { YES } else { NO }, Relaxed, Relaxed);
        }
        if UFFD.load(Relaxed) != YES {
            return None;
        }
        let flags = Uffd::USER_MODE_ONLY | libc::O_CLOEXEC as usize;
        // SAFETY: a new descriptor of our own.
        let fd = unsafe { sys::ask(libc::SYS_userfaultfd, [flags, 0, 0, 0, 0, 0]) };
        let fd = fd.inspect_err(|&error| Uffd::refused(error)).ok()?;
        let set_up = Uffd::ioctl(fd, Uffd::API, &mut [0xaa_u64, Uffd::FEATURE_MOVE, 0])
            .and_then(|_| Uffd::ioctl(fd, Uffd::REGISTER, &mut [start as u64, len as u64, Uffd::MODE_MISSING, 0]));
        if let Err(error) = set_up {
            Uffd::refused(error);
            sys::close(fd);
            return None;
        }
        Some(Uffd { fd, start, len })
    }

    /// Notes a refusal; `EINVAL` is about one range where others were moved before.
    fn refused(error: sys::Errno) {
        if means_never(error) && !(error.0 == libc::EINVAL && UFFD_MOVED.load(Relaxed)) {
            UFFD.store(NO, Relaxed);
        }
    }

    /// Moves what is at `from` to `to`; the bytes that moved, which are fewer than `len` where the kernel refused some
    /// page, or where it is slow and the caller not `patient`. The first slot is moved alone to find that out.
    fn pull(&self, to: usize, from: usize, len: usize, patient: bool) -> usize {
        let (mut moved, mut tries, mut most) = (0, 0, if patient { len } else { SLOT });
        while moved < len {
            let part = most.min(len - moved);
            let mut request = [(to + moved) as u64, (from + moved) as u64, part as u64, Uffd::ALLOW_SRC_HOLES, 0];
            let start = limits::now_ns();
            let result = Uffd::ioctl(self.fd, Uffd::MOVE, &mut request);
            let step = if result.is_ok() { part } else { (request[4] as i64).max(0) as usize };
            moved += step;
            match result {
                Ok(_) => {
                    UFFD_MOVED.store(true, Relaxed);
                    if !patient && part == SLOT && moved == SLOT {
                        if limits::now_ns().saturating_sub(start) > SLOW_NS {
                            SMALL_PAGES.store(SMALL_PAGES_FOR, Relaxed);
                            break;
                        }
                        most = len;
                    }
                }
                // Interrupted, or the address space is changing: a few more times.
                Err(sys::Errno(libc::EAGAIN)) if step > 0 || tries < 16 => tries += 1,
                // The range spans mappings that the kernel did not merge: slot by slot, each lies in one.
                Err(sys::Errno(libc::EINVAL)) if part > SLOT => most = SLOT,
                Err(error) => {
                    if moved == 0 {
                        Uffd::refused(error);
                    }
                    break;
                }
            }
        }
        moved
    }
}

impl Drop for Uffd {
    fn drop(&mut self) {
        let _ = Uffd::ioctl(self.fd, Uffd::UNREGISTER, &mut [self.start as u64, self.len as u64]);
        sys::close(self.fd);
    }
}

/// The kernel's release, major and minor.
fn release() -> (u64, u64) {
    // SAFETY: all zero is a valid value of this structure of byte arrays.
    let mut name: libc::utsname = unsafe { core::mem::zeroed() };
    // SAFETY: the kernel fills the structure.
    let done = unsafe { sys::ask(libc::SYS_uname, [(&raw mut name).expose_provenance(), 0, 0, 0, 0, 0]) };
    if done.is_err() {
        return (0, 0);
    }
    // SAFETY: `c_char` and `u8` have the same layout.
    let text = unsafe { &*(&raw const name.release).cast::<[u8; 65]>() };
    let mut parts = text.split(|&c| c == b'.').map(|part| sys::number(part).unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// Moves page tables; the source stays mapped and empty. `to` is open and loses what it had.
fn mremap(from: usize, to: usize, len: usize) -> bool {
    const MAYMOVE_FIXED_DONTUNMAP: usize = 1 | 2 | 4;
    if MREMAP.load(Relaxed) != YES || !Moved::reserve(to, len) {
        return false;
    }
    // SAFETY: both ranges are ours; the destination's old contents are to be lost.
    let result = unsafe { sys::call(libc::SYS_mremap, [from, len, len, MAYMOVE_FIXED_DONTUNMAP, to, 0]) };
    match result {
        Ok(_) => true,
        Err(error) => {
            if means_never(error) {
                MREMAP.store(NO, Relaxed);
            }
            Moved::forget(to, len);
            // Some failures come after the destination was unmapped. Where it was not, this maps nothing.
            let _ = sys::mmap(to, len, RW, libc::MAP_FIXED_NOREPLACE);
            false
        }
    }
}

/// Moves `[from, from + len)` by page tables, whole or by slots; the bytes that moved.
fn move_tables(from: usize, to: usize, len: usize) -> usize {
    if len == 0 || !Moved::any(from, len) && mremap(from, to, len) {
        return len;
    }
    let moved = |&at: &usize| mremap(from + at, to + at, SLOT.min(len - at));
    (0..len).step_by(SLOT).take_while(moved).map(|at| SLOT.min(len - at)).sum()
}

/// Whether moves page by page were found slow lately.
fn small_pages() -> bool {
    SMALL_PAGES.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
}

/// Forbids ways of moving, for tests.
#[cfg(any(test, feature = "sim"))]
#[doc(hidden)]
pub fn allow(uffd: bool, mremap: bool) {
    UFFD.store(if uffd { UNKNOWN } else { NO }, Relaxed);
    MREMAP.store(if mremap { YES } else { NO }, Relaxed);
}

// SAFETY: the window is part of the reservation (or of an address range nobody else asks for by address); only these
// calls open it, and what they open stays open until `unmap`.
unsafe impl Mapping for Linux {
    const SLOT_SHIFT: u32 = 21;
    const OWNS_FRAMES: bool = false;

    #[inline]
    fn window(&self) -> Range<usize> {
        memory::vmalloc_window()
    }

    fn map_fresh(&self, start: usize, len: usize) -> bool {
        reservation::check_ration();
        reservation::gate().is_some_and(|_gate| reservation::open(start, len).is_ok())
    }

    fn map_frame(&self, at: usize, frame: Pfn) -> bool {
        self.map_frames(at, &[frame]) == 1
    }

    fn map_frames(&self, at: usize, frames: &[Pfn]) -> usize {
        let len = frames.len() * SLOT;
        if len == 0 {
            return 0;
        }
        // Page tables left at the destination would make the kernel split huge pages.
        let _ = sys::madvise(at, len, libc::MADV_DONTNEED);
        let address = |frame: Pfn| self.virt(frame).expose_provenance();
        let tables = |first: usize| {
            let slots = (first..frames.len()).map(|nth| (at + nth * SLOT, address(frames[nth])));
            slots.take_while(|&(slot, frame)| mremap(frame, slot, SLOT)).count()
        };
        let mut mapped = if small_pages() { tables(0) } else { 0 };
        if mapped == frames.len() {
            return mapped;
        }
        let start = at + mapped * SLOT;
        if let Some(uffd) = Uffd::open(start, len - mapped * SLOT) {
            let mut moved = 0;
            for run in frames[mapped..].chunk_by(|a, b| b.0 == a.0 + PAGEBLOCK_PAGES) {
                let bytes = uffd.pull(start + moved, address(run[0]), run.len() * SLOT, false);
                moved += bytes;
                if bytes < run.len() * SLOT || SMALL_PAGES.load(Relaxed) != 0 {
                    break;
                }
            }
            drop(uffd);
            let torn = moved % SLOT;
            if torn != 0 {
                // A frame that was given up for its pages has no contents to lose.
                let _ = sys::madvise(start + moved - torn, SLOT, libc::MADV_DONTNEED);
                return mapped + moved / SLOT;
            }
            mapped += moved / SLOT;
        }
        mapped + tables(mapped)
    }

    fn move_mapping(&self, from: usize, to: usize, len: usize) -> Result<(), usize> {
        let _ = sys::madvise(to, len, libc::MADV_DONTNEED);
        let mut done = if small_pages() { move_tables(from, to, len) } else { 0 };
        for patient in [false, true] {
            if done < len
                && let Some(uffd) = Uffd::open(to + done, len - done)
            {
                let moved = done + uffd.pull(to + done, from + done, len - done, patient);
                drop(uffd);
                // A slot that it stopped in is finished by copying.
                done = moved.next_multiple_of(SLOT).min(len);
                if done > moved {
                    // SAFETY: both are open and the caller's; the rest of the slot at `to` is not populated.
                    unsafe {
                        let source = core::ptr::with_exposed_provenance::<u8>(from + moved);
                        let target = core::ptr::with_exposed_provenance_mut::<u8>(to + moved);
                        target.copy_from_nonoverlapping(source, done - moved);
                    }
                    let _ = sys::madvise(from + moved, done - moved, libc::MADV_DONTNEED);
                    break;
                }
            }
            done += move_tables(from + done, to + done, len - done);
        }
        if done == len { Ok(()) } else { Err(done) }
    }

    fn move_addresses(&self, from: usize, to: usize, len: usize) -> Result<bool, bool> {
        let _gate = reservation::gate().ok_or(true)?;
        // Addresses that are not reserved may be somebody else's.
        if reservation::sparse() || !Moved::reserve(to, len) {
            return Err(true);
        }
        // SAFETY: both ranges are ours; at `to` nothing is mapped but the reservation.
        if unsafe { move_mappings(from, to, len) }.is_err() {
            Moved::forget(to, len);
            let moved = unmapped_part(from, len);
            if moved > 0 {
                // SAFETY: as above. No more mappings come about than there were a moment ago, so that it may be done.
                let _ = unsafe { move_mappings(to, from, moved) };
            }
            // Some failures come after what was there was unmapped.
            let hole = moved + unmapped_part(to + moved, len - moved);
            return Err(hole == 0 || reservation::map_at(to, hole, libc::PROT_NONE).is_ok());
        }
        Moved::forget(from, len);
        Ok(reservation::map_at(from, len, libc::PROT_NONE).is_ok())
    }

    fn is_taken(&self, start: usize, len: usize) -> bool {
        let Some(_gate) = reservation::gate().filter(|_| reservation::sparse()) else { return false };
        match reservation::map_at(start, len, libc::PROT_NONE) {
            Ok(()) => {
                sys::munmap(start, len);
                false
            }
            // Told apart before anything is counted.
            Err(error) => error.0 == libc::EEXIST,
        }
    }

    fn device_mapping(&self, nth: usize) -> Option<DeviceMapping> {
        super::device::mapping(nth)
    }

    fn clean(&self, start: usize, len: usize) -> bool {
        sys::madvise(start, len, libc::MADV_DONTNEED).is_ok()
    }

    fn unmap(&self, start: usize, len: usize) {
        Moved::forget(start, len);
        if !reservation::sparse() {
            // What takes long is done before the gate is asked for.
            let _ = sys::madvise(start, len, libc::MADV_DONTNEED);
        }
        let _gate = reservation::gate();
        // Accounting matters where it is strict (`vm.overcommit_memory` = 2, measured on Linux 6.18): reservations are
        // not accounted for; a freed area of 300 MiB, purged, is not any more.
        if !reservation::close(start, len) && sys::mprotect(start, len, RW) {
            // Too many mappings. Contents that stayed would be taken for zero later.
            if sys::madvise(start, len, libc::MADV_DONTNEED).is_err() {
                // SAFETY: the range is the caller's to give up, and it is mapped: changing the protection of a hole
                // fails.
                unsafe { core::ptr::with_exposed_provenance_mut::<u8>(start).write_bytes(0, len) };
            }
            sys::mprotect(start, len, libc::PROT_NONE);
        }
    }

    fn advise(&self, start: usize, len: usize, huge: bool) {
        if memory::huge_pages() && len > 0 {
            let _ = sys::madvise(start, len, if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE });
        }
    }

    fn backed_pages(&self, at: usize) -> (usize, usize) {
        let pages = resident(at).unwrap_or([0; SLOT / PAGE_SIZE]);
        let backed = |&&page: &&u8| page & 1 != 0;
        (pages.iter().filter(backed).count(), pages.iter().take_while(backed).count())
    }
}

/// Which pages of the slot or pageblock at `at`, which may be anybody's, are backed: bit 0 of a byte for each; `None`
/// where the system does not say.
pub(super) fn resident(at: usize) -> Option<[u8; SLOT / PAGE_SIZE]> {
    let mut pages = [0u8; SLOT / PAGE_SIZE];
    // `mincore` is not among what systemd's `@system-service` allows, and services end where they call it.
    if sys::is_filtered() {
        return listed(at, &mut pages).then_some(pages);
    }
    let to = (&raw mut pages).expose_provenance();
    // SAFETY: the vector holds a byte for each page of the range: the kernel only looks at it.
    unsafe { sys::ask(libc::SYS_mincore, [at, SLOT, to, 0, 0, 0]) }.ok().map(|_| pages)
}

/// [`resident`] by reading a file, which takes several times as long; false where it is not to be read.
fn listed(at: usize, pages: &mut [u8]) -> bool {
    let Some(fd) = sys::open(c"/proc/self/pagemap") else { return false };
    let mut whole = true;
    for (nth, part) in pages.chunks_mut(64).enumerate() {
        let mut words = [0u64; 64];
        let from = (at / PAGE_SIZE + nth * 64) * size_of::<u64>();
        let to = (&raw mut words).expose_provenance();
        // SAFETY: the buffer is as long as said; the descriptor is ours.
        whole &= unsafe { sys::call(libc::SYS_pread64, [fd, to, size_of_val(&words), from, 0, 0]) }
            == Ok(size_of_val(&words));
        // The highest bit says that the page is there.
        part.iter_mut().zip(words).for_each(|(page, word)| *page = (word >> 63) as u8);
    }
    sys::close(fd);
    whole
}

/// Mappings that moving is believed to have added so far, for tests.
#[cfg(any(test, feature = "sim"))]
#[doc(hidden)]
pub fn moved_runs() -> u32 {
    MOVED_RUNS.load(Relaxed)
}

/// Whether the process can move populations at all, as far as is known by now.
pub fn can_move() -> bool {
    UFFD.load(Relaxed) != NO || MREMAP.load(Relaxed) == YES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_asking_for_pages_agree() {
        let at = sys::mmap(0, 2 * SLOT, RW, 0).unwrap();
        let slot = at.next_multiple_of(SLOT);
        for page in [0, 1, 63, 64, 100, 511] {
            // SAFETY: a mapping of the test's own.
            unsafe { core::ptr::with_exposed_provenance_mut::<u8>(slot + page * PAGE_SIZE).write_volatile(1) };
        }
        let mut pages = [0; SLOT / PAGE_SIZE];
        assert!(listed(slot, &mut pages));
        assert_eq!(resident(slot), Some(pages));
        assert_ne!(pages, [0; SLOT / PAGE_SIZE]);
        sys::munmap(at, 2 * SLOT);
    }
}
