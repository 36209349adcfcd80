//! Where frames come from: the address map, growth at its frontier, giving back.
//!
//! One reservation (`PROT_NONE`, no swap reserved) holds, in ascending order: the descriptors, the page-class map, the
//! arena, the vmalloc window. It is as large as can be had; what is used of it is opened by `mprotect` at a moving
//! frontier. Where address space itself is rationed (`RLIMIT_AS` counts reservations too) only descriptors and class
//! map are reserved, and the windows are opened by `mmap` as they are needed: *sparse* ([`reservation`]).
//!
//! Frame numbers: below 4 GiB the number is the address's page ([`LOW_PAGES`] of them, for ZONE_DMA and ZONE_DMA32);
//! the arena starts at [`LOW_PAGES`].

use core::arch::asm;
use core::ops::Range;
use core::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};

use super::reservation::{gate, map_at, open, sparse};
use super::{Linux, advice, limits, percpu, remap, reservation, setup, sys};
use crate::machine::{Frames, MAX_NODES, PerCpu, ZoneKind};
use crate::page::Page;
use crate::types::{MAX_ORDER, PAGE_SHIFT, PAGE_SIZE, PAGEBLOCK_PAGES, PAGEBLOCK_SIZE, Pfn, PfnRange};

/// Frames below 4 GiB, numbered by their address.
pub const LOW_PAGES: u32 = 1 << 20;
const LOW_BYTES: usize = (LOW_PAGES as usize) << PAGE_SHIFT;
const DMA_BYTES: usize = 16 << 20;
/// Unit of growth: the largest block of the buddy system.
const CHUNK: usize = PAGE_SIZE << MAX_ORDER;
/// Largest step of the geometric growth.
const STEP_MAX: usize = 64 << 20;
/// The part of a limit on what is mapped that a step takes at most.
const LIMIT_PART: u64 = 64;
/// Sizes of each of the two windows that are tried: 16 TiB, 1 TiB, 64 GiB and 8 GiB altogether.
const WINDOWS: [usize; 4] = [8 << 40, 512 << 30, 32 << 30, 4 << 30];
/// Places for a sparse map, for lack of a reservation that finds one: far from where the kernel maps on its own (the
/// top) and where programs and heaps lie; the second for systems that hand out less than 47 bits.
const SPARSE_BASES: [usize; 4] = [0x1000_0000_0000, 0x2000_0000_0000, 0x08_0000_0000, 0x04_0000_0000];

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// The numbers `free` needs, on one cache line.
#[repr(C, align(64))]
struct Map {
    /// First byte of the arena.
    arena: AtomicUsize,
    /// Bytes of the arena whose descriptors and class bytes are readable.
    online: AtomicUsize,
    /// Address of the class byte of frame 0 (only those of online frames are readable).
    class: AtomicUsize,
    /// Address of the descriptor of frame 0.
    memmap: AtomicUsize,
    /// First byte of the vmalloc window.
    vmalloc: AtomicUsize,
    /// Bytes of either window.
    window: AtomicUsize,
    /// Where the class byte of an arena that began at address 0 would be: an object's is as many bytes on as its
    /// address has pages. `free` knows the word that it will write to a cycle sooner than by its offset in the arena,
    /// and the next `malloc` may wait for that (in cycles: pairs of mixed sizes 21.7 in place of 23.3, two blocks in
    /// turn 13.7 in place of 18.0, others the same).
    class_of_zero: AtomicUsize,
}

static MAP: Map = Map {
    arena: AtomicUsize::new(0),
    online: AtomicUsize::new(0),
    class: AtomicUsize::new(0),
    memmap: AtomicUsize::new(0),
    vmalloc: AtomicUsize::new(0),
    window: AtomicUsize::new(0),
    class_of_zero: AtomicUsize::new(0),
};

/// Bytes of the arena that growth has claimed.
static NEXT: AtomicUsize = AtomicUsize::new(0);
/// Bytes that the process might have mapped when the arena grew last; `u64::MAX` for any number.
static ADDRESSES: AtomicU64 = AtomicU64::new(u64::MAX);
/// Bytes of arena descriptors and class bytes that are open.
static MEMMAP_OPEN: AtomicUsize = AtomicUsize::new(0);
static CLASS_OPEN: AtomicUsize = AtomicUsize::new(0);
/// Bytes of the arena whose descriptors and class bytes are reserved. Beyond, they are free addresses.
static META_RESERVED: AtomicUsize = AtomicUsize::new(0);
/// The class bytes of low memory, of which chunks share pages: [`RESERVED`], [`FREE`] addresses, or [`OPEN`] all of
/// them.
static LOW_CLASS: AtomicU8 = AtomicU8::new(RESERVED);
const RESERVED: u8 = 0;
const FREE: u8 = 1;
const OPEN: u8 = 2;
/// The program locks its memory: what is opened is backed at once.
static LOCKED: AtomicBool = AtomicBool::new(false);
/// Pageblocks below 4 GiB that are online, a bit each.
static LOW_ONLINE: [AtomicU32; LOW_BYTES / PAGEBLOCK_SIZE / 32] =
    [const { AtomicU32::new(0) }; LOW_BYTES / PAGEBLOCK_SIZE / 32];
/// Where DMA32 memory is looked for: last where programs that are not relocated have their heap, and before that where
/// `MAP_32BIT` maps.
const LOW_RANGES: [Range<usize>; 3] = [1 << 31..LOW_BYTES, 1 << 30..1 << 31, DMA_BYTES..1 << 30];
/// Where the next probe of each starts.
static LOW_NEXT: [AtomicUsize; 3] = [
    AtomicUsize::new(LOW_RANGES[0].start),
    AtomicUsize::new(LOW_RANGES[1].start),
    AtomicUsize::new(LOW_RANGES[2].start),
];
pub(super) static HUGE: AtomicBool = AtomicBool::new(true);
/// Whether the system has huge pages: [`UNKNOWN`], or 0 or 1. Asked along with the first [`Frames::pressure`], as a
/// program may have forbidden itself to open files later.
static HUGE_SYSTEM: AtomicU8 = AtomicU8::new(UNKNOWN);
const UNKNOWN: u8 = 2;

const fn round_up(value: usize, unit: usize) -> usize {
    value.next_multiple_of(unit)
}

/// Sizes and offsets of an address map with windows of `window` bytes.
struct Layout {
    low_memmap: usize,
    memmap: usize,
    class: usize,
    window: usize,
}

impl Layout {
    const fn of(window: usize) -> Layout {
        Layout {
            low_memmap: LOW_PAGES as usize * size_of::<Page>(),
            memmap: (window >> PAGE_SHIFT) * size_of::<Page>(),
            class: LOW_PAGES as usize + round_up(window >> PAGE_SHIFT, PAGE_SIZE),
            window,
        }
    }

    /// Bytes from the start to the end of the class map.
    const fn meta(&self) -> usize {
        self.low_memmap + self.memmap + self.class
    }

    /// All of it, with a guard before each window, from a start that is aligned to a chunk.
    const fn total(&self) -> usize {
        self.vmalloc() + self.window
    }

    const fn arena(&self) -> usize {
        round_up(self.meta() + PAGE_SIZE, CHUNK)
    }

    const fn vmalloc(&self) -> usize {
        self.arena() + self.window + CHUNK
    }

    /// The descriptors and class bytes of the first `reserved` bytes of the arena are reserved.
    fn publish(&self, base: usize, reserved: usize) {
        META_RESERVED.store(reserved, Relaxed);
        MAP.memmap.store(base, Relaxed);
        let class = base + self.low_memmap + self.memmap;
        MAP.class.store(class, Relaxed);
        let first = (base + self.arena()) >> PAGE_SHIFT;
        MAP.class_of_zero.store((class + LOW_PAGES as usize).wrapping_sub(first), Relaxed);
        MAP.arena.store(base + self.arena(), Relaxed);
        MAP.vmalloc.store(base + self.vmalloc(), Relaxed);
        // Release, pairs with the Acquire in `window`: the bases are set where the size is not 0.
        MAP.window.store(self.window, Release);
    }
}

/// Whether the program locks its memory.
pub(super) fn locks() -> bool {
    LOCKED.load(Relaxed)
}

/// Finds the address map.
pub(super) fn reserve() {
    if MAP.window.load(Acquire) != 0 {
        return;
    }
    // Random bits of the address, as the kernel's own choice would have.
    let slide = (limits::random() as usize & 0xffff) * CHUNK;
    if !locks() {
        for window in WINDOWS {
            let layout = Layout::of(window);
            if let Some(start) = reservation::reserve(layout.total() + CHUNK) {
                return layout.publish(round_up(start, CHUNK), window);
            }
        }
        if reserve_little(slide) {
            return;
        }
    }
    // Whatever is reserved would count as locked, or cannot be had: as if it had been given back.
    reservation::begin_sparse();
    LOW_CLASS.store(FREE, Relaxed);
    Layout::of(WINDOWS[1]).publish(SPARSE_BASES[0] + slide, 0);
}

/// Reserves descriptors and class bytes, for as many addresses as there may be; false where that cannot be had either.
fn reserve_little(slide: usize) -> bool {
    let space = sys::rlimit(libc::RLIMIT_AS);
    let smallest = WINDOWS[WINDOWS.len() - 1];
    let window = usize::try_from(space).map_or(smallest, |s| s.clamp(64 << 20, smallest).next_power_of_two());
    let layout = Layout::of(window);
    for (nth, base) in SPARSE_BASES.into_iter().enumerate() {
        let base = if nth < 2 { base + slide } else { base };
        // The low descriptors are opened piecewise like the windows: they would be a tenth of a small ration.
        if map_at(base + layout.low_memmap, layout.meta() - layout.low_memmap, libc::PROT_NONE).is_ok() {
            reservation::begin_sparse();
            layout.publish(base, window);
            return true;
        }
    }
    false
}

/// Unmaps what is reserved and not open, since addresses are rationed: the program is to get by with `limit` bytes of
/// them. What describes as much memory stays reserved, a hundredth of that: other mappings must not get in its way.
pub(super) fn retreat(limit: u64) {
    let Some(_gate) = gate() else { return };
    let window = MAP.window.load(Acquire);
    let layout = Layout::of(window);
    let limit = usize::try_from(limit).map_or(window, |limit| limit.min(window));
    let arena = round_up(limit, CHUNK).max(2 * NEXT.load(Relaxed)).min(window);
    let pages = arena >> PAGE_SHIFT;
    let memmap = MAP.memmap.load(Relaxed) + layout.low_memmap;
    let class = MAP.class.load(Relaxed);
    let low = class + LOW_PAGES as usize;
    let in_use = LOW_ONLINE.iter().any(|word| word.load(Relaxed) != 0);
    let keep = [
        memmap..memmap + round_up(pages * size_of::<Page>(), META_UNIT),
        if in_use { class } else { low }..low + round_up(pages, META_UNIT),
    ];
    reservation::release(&keep, || {
        META_RESERVED.store(arena, Relaxed);
        LOW_CLASS.store(if in_use { RESERVED } else { FREE }, Relaxed);
    });
}

/// From now on the program locks what it maps; it may lock `limit` bytes.
pub(super) fn lock(limit: u64) {
    retreat(limit);
    percpu::trim_rows();
    LOCKED.store(true, Relaxed);
}

/// The vmalloc window; empty before [`reserve`].
pub(super) fn vmalloc_window() -> Range<usize> {
    // Acquire, pairs with the Release in `publish`.
    let len = MAP.window.load(Acquire);
    let start = MAP.vmalloc.load(Relaxed);
    start..start + len
}

/// Whether huge pages are advised (option).
pub(super) fn huge_pages() -> bool {
    HUGE.load(Relaxed)
}

/// Descriptors and class bytes are opened by so many bytes. (Rejected: descriptors as huge pages beyond the first 2 MiB
/// of them. Ten million blocks and a fork of 1 GiB take as long, in 0.4 to 2 MiB more.)
const META_UNIT: usize = 64 << 10;

/// Opens one metadata array of `len` bytes at `base`, of which `reserved` are reserved, up to `need` bytes.
fn open_meta(base: usize, len: usize, reserved: usize, opened: &AtomicUsize, need: usize) -> bool {
    let start = opened.load(Relaxed);
    if start >= need {
        return true;
    }
    let end = round_up(need, META_UNIT).min(len);
    let border = round_up(reserved, META_UNIT).clamp(start, end);
    let done = (border == start || sys::mprotect(base + start, border - start, RW))
        && (border == end || map_at(base + border, end - border, RW).is_ok());
    if done {
        opened.store(end, Relaxed);
    }
    done
}

/// Opens descriptors and class bytes of the first `bytes` of the arena. The caller holds the gate.
fn open_arena_meta(bytes: usize) -> bool {
    let pages = bytes >> PAGE_SHIFT;
    let low = LOW_PAGES as usize;
    let layout = Layout::of(MAP.window.load(Relaxed));
    let memmap = MAP.memmap.load(Relaxed) + layout.low_memmap;
    let class = MAP.class.load(Relaxed) + low;
    let reserved = META_RESERVED.load(Relaxed) >> PAGE_SHIFT;
    let page = size_of::<Page>();
    open_meta(class, layout.class - low, reserved, &CLASS_OPEN, pages)
        && open_meta(memmap, layout.memmap, reserved * page, &MEMMAP_OPEN, pages * page)
}

/// Claims `bytes` at the frontier of the arena, whole chunks on their grid; their offset.
fn claim(bytes: usize) -> Option<usize> {
    let window = MAP.window.load(Acquire);
    let start = |next: usize| if bytes.is_multiple_of(CHUNK) { round_up(next, CHUNK) } else { next };
    let end = |next: usize| start(next).checked_add(bytes).filter(|end| *end <= window);
    NEXT.fetch_update(Relaxed, Relaxed, end).ok().map(start)
}

/// Opens `bytes` more of the arena; their offset.
fn grow_arena(bytes: usize, node: usize) -> Option<usize> {
    // The start has looked just before it grows.
    if NEXT.load(Relaxed) > 0 {
        reservation::check_ration();
    }
    let _gate = gate()?;
    // Chunks that something else sits in (sparse only) are passed by, not too many.
    for _ in 0..64 {
        let start = claim(bytes)?;
        let end = start + bytes;
        let at = MAP.arena.load(Relaxed) + start;
        let opened = if open_arena_meta(end) { open(at, bytes) } else { Err(sys::Errno(libc::ENOMEM)) };
        match opened {
            Ok(()) => {
                limits::bind(at, bytes, node);
                // Release, pairs with the Acquire loads of `online`: the arrays are readable so far.
                MAP.online.fetch_max(end, Release);
                return Some(start);
            }
            Err(sys::Errno(libc::EEXIST)) => {}
            Err(_) => {
                // Give the claim back unless somebody else has claimed behind it.
                let _ = NEXT.compare_exchange(end, start, Relaxed, Relaxed);
                return None;
            }
        }
    }
    None
}

/// Sizes that a step of growth after the first is tried with: half of what is there, within bounds; whole chunks; and
/// half of one, where the system has no more.
#[inline(never)] // As for `grow_low`.
fn steps(chunks: usize, least: usize) -> [usize; 3] {
    let most = if locks() {
        CHUNK
    } else if sparse() {
        STEP_MAX / 8
    } else {
        STEP_MAX
    };
    let step = (NEXT.load(Relaxed) / 2 / CHUNK * CHUNK).clamp(CHUNK, most).max(chunks);
    let addresses = if sparse() { sys::rlimit(libc::RLIMIT_AS) } else { u64::MAX };
    let limit = sys::rlimit(libc::RLIMIT_DATA).min(addresses);
    ADDRESSES.store(limit, Relaxed);
    match limit {
        u64::MAX => [step, chunks, least],
        // What the heap has open the program cannot map.
        limit => {
            percpu::trim_rows();
            let part = usize::try_from(limit / LIMIT_PART).unwrap_or(step) / PAGEBLOCK_SIZE * PAGEBLOCK_SIZE;
            [step.min(part).max(least), least, least]
        }
    }
}

/// Opens descriptors and class bytes of low memory, which is claimed already.
fn open_low_meta(at: usize, bytes: usize) -> bool {
    let first = at >> PAGE_SHIFT;
    let pages = bytes >> PAGE_SHIFT;
    let memmap = MAP.memmap.load(Relaxed) + first * size_of::<Page>();
    let len = pages * size_of::<Page>();
    let opened = if sparse() { map_at(memmap, len, RW).is_ok() } else { sys::mprotect(memmap, len, RW) };
    let class = MAP.class.load(Relaxed) + first;
    let class_start = class / PAGE_SIZE * PAGE_SIZE;
    opened
        && match LOW_CLASS.load(Relaxed) {
            RESERVED => sys::mprotect(class_start, round_up(class + pages, PAGE_SIZE) - class_start, RW),
            FREE if map_at(MAP.class.load(Relaxed), LOW_PAGES as usize, RW).is_err() => false,
            _ => {
                LOW_CLASS.store(OPEN, Relaxed);
                true
            }
        }
}

/// Takes `bytes` of address space somewhere in `range`, aligned to a chunk.
fn probe_low(range: Range<usize>, bytes: usize) -> Option<usize> {
    let mut at = range.start;
    while at + bytes <= range.end {
        if map_at(at, bytes, RW).is_ok() {
            return Some(at);
        }
        at += CHUNK;
    }
    None
}

#[inline(never)] // Not every program comes here.
fn grow_low(zone: ZoneKind, bytes: usize) -> Option<usize> {
    reservation::check_ration();
    let _gate = gate()?;
    let at = if zone == ZoneKind::Dma {
        // Frame 0 is never ours: its address is null.
        probe_low(CHUNK..DMA_BYTES, bytes)?
    } else {
        let probe = |(range, next): (&Range<usize>, &AtomicUsize)| {
            let found = probe_low(next.load(Relaxed)..range.end, bytes);
            next.store(found.map_or(range.end, |at| at + bytes), Relaxed);
            found
        };
        LOW_RANGES.iter().zip(&LOW_NEXT).find_map(probe)?
    };
    if !open_low_meta(at, bytes) {
        sys::munmap(at, bytes);
        return None;
    }
    for block in at / PAGEBLOCK_SIZE..(at + bytes) / PAGEBLOCK_SIZE {
        // Release, pairs with the Acquire in `low_online`.
        LOW_ONLINE[block / 32].fetch_or(1 << (block % 32), Release);
    }
    Some(at)
}

fn low_online(address: usize) -> bool {
    let block = address / PAGEBLOCK_SIZE;
    // Acquire, pairs with the Release in `grow_low`.
    LOW_ONLINE[block / 32].load(Acquire) & 1 << (block % 32) != 0
}

/// Says something of a pageblock, given by its address and number, if it is none below 4 GiB and there are to be huge
/// pages.
fn advise(m: &Linux, block: PfnRange, say: impl Fn(usize, u32)) {
    if HUGE.load(Relaxed) && block.start.0 >= LOW_PAGES {
        say(m.virt(block.start).expose_provenance(), (block.start.0 - LOW_PAGES) / PAGEBLOCK_PAGES);
    }
}

/// The offset in the arena of an address that the map of class bytes reaches, and what it says there.
#[inline(always)]
fn mapped_at(address: *const u8) -> Option<(usize, u8)> {
    let offset = address.addr().wrapping_sub(MAP.arena.load(Relaxed));
    let class: u64;
    // Two loads that the compiler, from atomics, would not make operands of what it does with them. SAFETY: the
    // class bytes of the first `online` bytes of the arena are open. Loads are Acquire here, pairs with the Release
    // in `grow_arena`.
    unsafe {
        asm!(
            "cmp {offset}, qword ptr [rip + {map} + {online}]",
            "jae {none}",
            offset = in(reg) offset,
            map = sym MAP,
            online = const core::mem::offset_of!(Map, online),
            none = label { return None },
            // Not `readonly`: the load below stays behind it.
            options(nostack)
        );
        asm!(
            "movzx {class:e}, byte ptr [{bytes} + {page}]",
            bytes = in(reg) MAP.class_of_zero.load(Relaxed),
            page = in(reg) address.addr() >> PAGE_SHIFT,
            class = lateout(reg) class,
            options(nostack, readonly, preserves_flags)
        );
        // So that it is not extended once more.
        core::hint::assert_unchecked(class <= u8::MAX as u64);
    }
    Some((offset, class as u8))
}

/// The page at `offset` in the arena.
#[inline(always)]
fn arena_pfn(offset: usize) -> Pfn {
    let nth = offset >> PAGE_SHIFT;
    // So that the addition becomes a displacement.
    // SAFETY: no arena has so many pages that numbers would wrap.
    unsafe { core::hint::assert_unchecked(nth < (u32::MAX - LOW_PAGES) as usize) };
    Pfn(LOW_PAGES + nth as u32)
}

// SAFETY: 1. descriptors are opened before a range is returned and never closed; an anonymous mapping reads zero at
// first;
// 2. a range is claimed by one caller and opened by it; 3. both are the same linear map, by halves.
unsafe impl Frames for Linux {
    const LENT: bool = true;

    fn grow(&self, node: usize, zone: ZoneKind, pages: u32) -> Option<PfnRange> {
        match zone {
            ZoneKind::Dma | ZoneKind::Dma32 => {
                let need = round_up((pages.max(1) as usize) << PAGE_SHIFT, CHUNK);
                let at = grow_low(zone, need)?;
                limits::bind(at, need, node);
                Some(PfnRange::new(Pfn((at >> PAGE_SHIFT) as u32), (need >> PAGE_SHIFT) as u32))
            }
            ZoneKind::Normal | ZoneKind::Movable => {
                let bytes = (pages.max(1) as usize) << PAGE_SHIFT;
                let (chunks, least) = (round_up(bytes, CHUNK), round_up(bytes, PAGEBLOCK_SIZE));
                let first = NEXT.load(Relaxed) == 0;
                let sizes = if first { [chunks, least, least] } else { steps(chunks, least) };
                let (start, bytes) = sizes.into_iter().find_map(|bytes| Some((grow_arena(bytes, node)?, bytes)))?;
                let first = LOW_PAGES + (start >> PAGE_SHIFT) as u32;
                Some(PfnRange::new(Pfn(first), (bytes >> PAGE_SHIFT) as u32))
            }
            ZoneKind::HighMem => None,
        }
    }

    #[inline(always)]
    fn page(&self, pfn: Pfn) -> &Page {
        let at = MAP.memmap.load(Relaxed) + pfn.index() * size_of::<Page>();
        // SAFETY: descriptors of online frames are open for ever; all their fields are atomics, valid when zero.
        unsafe { &*core::ptr::with_exposed_provenance(at) }
    }

    #[inline(always)]
    fn class(&self, pfn: Pfn) -> &AtomicU8 {
        // SAFETY: as in `page`.
        unsafe { &*core::ptr::with_exposed_provenance(MAP.class.load(Relaxed) + pfn.index()) }
    }

    #[inline(always)]
    fn class_at(&self, address: *const u8) -> u8 {
        self.mapped_class_at(address).unwrap_or(0)
    }

    #[inline(always)]
    fn mapped_class_at(&self, address: *const u8) -> Option<u8> {
        mapped_at(address).map(|(_, class)| class)
    }

    #[inline(always)]
    fn mapped_page_at(&self, address: *const u8) -> Option<(Pfn, u8)> {
        mapped_at(address).map(|(offset, class)| (arena_pfn(offset), class))
    }

    #[inline(always)]
    fn known_pfn(&self, address: *const u8) -> Pfn {
        arena_pfn(address.addr().wrapping_sub(MAP.arena.load(Relaxed)))
    }

    #[inline(always)]
    fn virt(&self, pfn: Pfn) -> *mut u8 {
        let address = if pfn.0 >= LOW_PAGES {
            MAP.arena.load(Relaxed) + ((pfn.0 - LOW_PAGES) as usize * PAGE_SIZE)
        } else {
            pfn.index() << PAGE_SHIFT
        };
        core::ptr::with_exposed_provenance_mut(address)
    }

    #[inline(always)]
    fn prefetch(&self, address: usize) {
        // SAFETY: a hint; it faults on no address.
        unsafe { core::arch::asm!("prefetchw [{}]", in(reg) address, options(nostack, preserves_flags, readonly)) };
    }

    #[inline(always)]
    fn pfn(&self, address: *const u8) -> Option<Pfn> {
        let offset = address.addr().wrapping_sub(MAP.arena.load(Relaxed));
        // Acquire, pairs with the Release in `grow_arena`.
        if offset < MAP.online.load(Acquire) {
            return Some(Pfn(LOW_PAGES + (offset >> PAGE_SHIFT) as u32));
        }
        (address.addr() < LOW_BYTES && low_online(address.addr())).then(|| Pfn((address.addr() >> PAGE_SHIFT) as u32))
    }

    fn phys(&self, pfn: Pfn) -> u64 {
        self.virt(pfn).addr() as u64
    }

    fn regions(&self, each: &mut dyn FnMut(&'static str, Range<u64>)) {
        let window = MAP.window.load(Acquire);
        if window == 0 {
            return;
        }
        let range = |start: usize, bytes: usize| start as u64..(start + bytes) as u64;
        let layout = Layout::of(window);
        each("memmap", range(MAP.memmap.load(Relaxed), layout.low_memmap + layout.memmap));
        each("Page classes", range(MAP.class.load(Relaxed), layout.class));
        each("Arena", range(MAP.arena.load(Relaxed), window));
        each("vmalloc", range(MAP.vmalloc.load(Relaxed), window));
        super::percpu::region(each);
    }

    fn discard(&self, range: PfnRange) -> bool {
        // Else the system would, within a minute, make a huge page again of what stays: of 35 MiB after a peak 210.
        for pfn in [range.start, Pfn(range.end().0 - 1)] {
            let block = PfnRange::new(Pfn(pfn.0 & !(PAGEBLOCK_PAGES - 1)), PAGEBLOCK_PAGES);
            if block.start < range.start || range.end() < block.end() {
                advise(self, block, |address, nth| advice::say(address, nth, false));
            }
        }
        sys::madvise(self.virt(range.start).expose_provenance(), range.bytes(), libc::MADV_DONTNEED).is_ok()
    }

    fn offline(&self, range: PfnRange) -> bool {
        if range.start.0 < LOW_PAGES || locks() {
            return false;
        }
        let Some(_gate) = gate() else { return false };
        let closed = reservation::close(self.virt(range.start).expose_provenance(), range.bytes());
        if closed {
            let first = (range.start.0 - LOW_PAGES) / PAGEBLOCK_PAGES;
            (first..first + range.pages / PAGEBLOCK_PAGES).for_each(advice::forget);
        }
        closed
    }

    fn online(&self, range: PfnRange, node: usize) -> bool {
        let Some(_gate) = gate() else { return false };
        let at = self.virt(range.start).expose_provenance();
        let opened = open(at, range.bytes()).is_ok();
        if opened {
            limits::bind(at, range.bytes(), node);
        }
        opened
    }

    fn is_rationed(&self, bytes: usize) -> bool {
        let is = limits::is_rationed(bytes);
        if is {
            percpu::trim_rows();
        }
        is
    }

    fn address_limit(&self) -> u64 {
        ADDRESSES.load(Relaxed)
    }

    fn populate(&self, range: PfnRange) {
        let start = self.virt(range.start);
        if sys::madvise(start.expose_provenance(), range.bytes(), libc::MADV_POPULATE_WRITE).is_ok() {
            return;
        }
        for page in 0..range.pages as usize {
            // SAFETY: the range is the caller's; adding 0 keeps the contents whoever else writes there.
            unsafe { (*start.add(page * PAGE_SIZE).cast::<AtomicU32>()).fetch_or(0, Relaxed) };
        }
    }

    fn advise_frames(&self, block: PfnRange, huge: bool) {
        advise(self, block, |address, nth| advice::set(address, nth, huge));
    }

    fn is_huge(&self, pfn: Pfn) -> bool {
        HUGE.load(Relaxed) && pfn.0 >= LOW_PAGES && advice::is_huge((pfn.0 - LOW_PAGES) / PAGEBLOCK_PAGES)
    }

    fn gather_frames(&self, block: PfnRange) {
        // `MADV_COLLAPSE`, since Linux 6.1. It does not mind what the system's settings say.
        const COLLAPSE: i32 = 25;
        if HUGE_SYSTEM.load(Relaxed) == 1 {
            advise(self, block, |address, nth| {
                advice::say(address, nth, true);
                let _ = sys::madvise(address, PAGEBLOCK_SIZE, COLLAPSE);
            });
        }
    }

    fn backed(&self, block: Pfn) -> Option<[u64; PAGEBLOCK_PAGES as usize / 64]> {
        let pages = remap::resident(self.virt(block).expose_provenance())?;
        let word = |word: usize| (0..64).fold(0, |bits, bit| bits | u64::from(pages[word * 64 + bit] & 1) << bit);
        Some(core::array::from_fn(word))
    }

    fn budget(&self) -> u64 {
        limits::budget()
    }

    fn pressure(&self) -> u64 {
        if HUGE_SYSTEM.load(Relaxed) == UNKNOWN {
            HUGE_SYSTEM.store((setup::huge_pages() != setup::HugePages::Never).into(), Relaxed);
        }
        // For the same reason.
        self.nr_cpus();
        limits::pressure()
    }

    fn memory(&self) -> u64 {
        limits::memory()
    }
}

const _: () = assert!(MAX_NODES <= 64);
