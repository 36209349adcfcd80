//! SLOB: first fit, for machines with hardly any memory (K. Knowlton's scheme as the kernel's `mm/slob.c` had it until
//! 6.4).
//!
//! Pages hold blocks of any size, free ones on a list by address, whose links lie in the blocks themselves. Three lists
//! of pages with room, by the size they are asked for, keep small blocks from cutting up what larger ones need. A block
//! carries its size in the word in front of it. There are no sheaves, no classes and no slabs: a program's every block
//! costs one word, and a page is all that is ever held in reserve. What that costs is time: a search under one lock for
//! each call.
//!
//! Left out: the kernel's next-fit start (the lists are short where this is of use) and its node lists.
//!
//! A page of it says [`Kind::Slab`] of cache 0; `refs` of its descriptor is the number of free units, `word` the first
//! free block.
#![allow(unsafe_code)]

#[cfg(test)]
mod tests;

use core::marker::PhantomData;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::error::Defect;
use crate::gfp::Gfp;
use crate::machine::{Frames, Machine};
use crate::page::{Kind, Page, PageList};
use crate::sync::{Deferred, Fork, Lock};
use crate::types::{Order, PAGE_SIZE, Pfn};
use crate::zone::PageAllocator;

/// Bytes of a unit: sizes are multiples, and a block starts one behind its header.
const UNIT: usize = 8;
const UNITS: u16 = (PAGE_SIZE / UNIT) as u16;
/// Behind the last free block of a page.
const END: u16 = u16::MAX;
/// In the upper half of a header, before the units.
const MARK: u32 = 0x510b << 16;
/// Blocks below these sizes are kept apart from larger ones.
const BREAKS: [usize; 2] = [256, 1024];

/// The largest request; larger ones are pages.
pub const MAX: usize = PAGE_SIZE / 2;

/// The allocator of one machine.
pub struct Slob<M> {
    /// Pages with room, by the sizes that they serve.
    lists: Lock<[PageList; BREAKS.len() + 1]>,
    pages: AtomicU32,
    /// Empty pages that could not be given back at once, linked through their first words.
    orphans: Deferred,
    machine: PhantomData<fn(&M)>,
}

/// Units from a page's start on.
#[derive(Clone, Copy)]
struct Free {
    at: u16,
    units: u16,
    next: u16,
}

/// A page and its free blocks. Whoever has one holds the lock.
struct Blocks<'a, M> {
    m: &'a M,
    pfn: Pfn,
}

impl<M: Frames> Blocks<'_, M> {
    fn page(&self) -> &Page {
        self.m.page(self.pfn)
    }

    fn address(&self, at: u16) -> *mut u8 {
        self.m.virt(self.pfn).wrapping_add(usize::from(at) * UNIT)
    }

    fn get(&self, at: u16) -> Option<Free> {
        if at == END {
            return None;
        }
        let words: *const u16 = self.address(at).cast();
        // SAFETY: a free block of the page, which its links lie in; the lock is held.
        unsafe { Some(Free { at, units: words.read(), next: words.add(1).read() }) }
    }

    fn set(&self, block: Free) {
        let words: *mut u16 = self.address(block.at).cast();
        // SAFETY: as in `get`.
        unsafe {
            words.write(block.units);
            words.add(1).write(block.next);
        }
    }

    /// Makes `next` follow the block `before`, or be the first.
    fn link(&self, before: Option<Free>, next: u16) {
        match before {
            Some(before) => self.set(Free { next, ..before }),
            None => self.page().set_word(u64::from(next)),
        }
    }

    fn first(&self) -> u16 {
        self.page().word() as u16
    }

    /// The first place for `units` units whose second begins at a multiple of `align`.
    fn take(&self, units: u16, align: usize) -> Option<*mut u8> {
        let (mut before, mut at) = (None, self.first());
        while let Some(block) = self.get(at) {
            let start = self.address(at).addr() + UNIT;
            let lead = ((start.next_multiple_of(align) - start) / UNIT) as u16;
            if block.units >= lead + units {
                let rest = block.units - lead - units;
                let mut next = block.next;
                if rest > 0 {
                    next = at + lead + units;
                    self.set(Free { at: next, units: rest, next: block.next });
                }
                if lead > 0 {
                    self.set(Free { at, units: lead, next });
                } else {
                    self.link(before, next);
                }
                self.page().set_refs(self.page().refs() - u32::from(units));
                let header = self.address(at + lead);
                // SAFETY: the units were free and are taken now.
                unsafe { header.cast::<u32>().write(MARK | u32::from(units)) };
                return Some(header.wrapping_add(UNIT));
            }
            (before, at) = (Some(block), block.next);
        }
        None
    }

    /// Units of the block at `address`.
    fn units_at(&self, address: *const u8) -> Result<u16, Defect> {
        let unit = (address.addr() % PAGE_SIZE / UNIT).wrapping_sub(1) as u16;
        let mut free = self.get(self.first());
        while let Some(block) = free {
            if (block.at..block.at + block.units).contains(&unit) {
                return Err(Defect::DoubleFree);
            }
            free = self.get(block.next);
        }
        header_units(address)
    }

    /// Puts the block at `address` back, merged with its neighbours.
    fn put(&self, address: *mut u8) -> Result<(), Defect> {
        let units = self.units_at(address)?;
        let at = (address.addr() % PAGE_SIZE / UNIT - 1) as u16;
        let (mut before, mut next) = (None, self.first());
        while let Some(block) = self.get(next).filter(|block| block.at < at) {
            (before, next) = (Some(block), block.next);
        }
        let mut block = Free { at, units, next };
        if let Some(behind) = self.get(next).filter(|behind| behind.at == at + units) {
            block = Free { at, units: units + behind.units, next: behind.next };
        }
        match before {
            Some(before) if before.at + before.units == at => {
                self.set(Free { units: before.units + block.units, next: block.next, ..before });
            }
            before => {
                self.set(block);
                self.link(before, at);
            }
        }
        self.page().set_refs(self.page().refs() + u32::from(units));
        Ok(())
    }
}

/// Units of the block at `address` as its header says, which does not change while the block is in use.
fn header_units(address: *const u8) -> Result<u16, Defect> {
    let at = address.addr() % PAGE_SIZE;
    if at < UNIT || !at.is_multiple_of(UNIT) {
        return Err(Defect::Interior);
    }
    // SAFETY: a word of a page that is the allocator's, in front of the address.
    let header = unsafe { address.wrapping_sub(UNIT).cast::<u32>().read() };
    let (end, units) = (at / UNIT - 1 + (header & 0xffff) as usize, header as u16);
    if header & !0xffff != MARK || units < 2 || end > UNITS.into() { Err(Defect::Interior) } else { Ok(units) }
}

impl<M: Machine> Slob<M> {
    /// One without pages.
    pub const fn new() -> Slob<M> {
        Slob {
            lists: Lock::new([const { PageList::new() }; BREAKS.len() + 1]),
            pages: AtomicU32::new(0),
            orphans: Deferred::new(),
            machine: PhantomData,
        }
    }

    fn list(size: usize) -> usize {
        BREAKS.iter().take_while(|limit| size >= **limit).count()
    }

    /// `size` bytes, at most [`MAX`], at a multiple of `align`, at most a page; null without memory, or where the lock
    /// may not be waited for.
    pub fn alloc(&self, m: &M, pages: &PageAllocator<M>, size: usize, align: usize, gfp: Gfp) -> *mut u8 {
        let units = (size.div_ceil(UNIT) as u16).max(1) + 1;
        let align = align.max(UNIT);
        let which = Self::list(size);
        let mut fresh = None;
        loop {
            let Some(mut lists) = self.lists.acquire(m, gfp.may_block()) else { break };
            if let Some(pfn) = fresh.take() {
                lists[which].push_front(pfn, |p| m.page(p));
            }
            let found = lists[which].iter(|p| m.page(p)).find_map(|pfn| {
                let room = m.page(pfn).refs() >= u32::from(units);
                Some((pfn, room.then(|| Blocks { m, pfn }.take(units, align))??))
            });
            if let Some((pfn, block)) = found {
                if m.page(pfn).refs() == 0 {
                    lists[which].remove(pfn, |p| m.page(p));
                }
                return block;
            }
            drop(lists);
            let asked = gfp.without(Gfp::ZERO | Gfp::HIGHMEM | Gfp::MOVABLE);
            let Some(pfn) = pages.alloc_pages(m, asked, Order::ZERO, None) else { break };
            let page = m.page(pfn);
            page.set_cache(0);
            page.set_refs(u32::from(UNITS));
            page.set_mapcount(which as i32);
            page.set_kind(Kind::Slab, Order::ZERO);
            let blocks = Blocks { m, pfn };
            blocks.link(None, 0);
            blocks.set(Free { at: 0, units: UNITS, next: END });
            self.pages.fetch_add(1, Relaxed);
            fresh = Some(pfn);
        }
        if let Some(pfn) = fresh {
            self.release(m, pages, pfn, gfp.may_block());
        }
        ptr::null_mut()
    }

    /// Gives an empty page that is on no list back.
    fn release(&self, m: &M, pages: &PageAllocator<M>, pfn: Pfn, may_block: bool) {
        m.page(pfn).set_refs(1);
        m.page(pfn).set_kind(Kind::Allocated, Order::ZERO);
        self.pages.fetch_sub(1, Relaxed);
        // SAFETY: no block of the page is out, and no list has it, so that none will be; it came from this page
        // allocator.
        if !unsafe { pages.free_pages(m, pfn, Order::ZERO, may_block) } {
            let link: *mut usize = m.virt(pfn).cast();
            // SAFETY: the page is empty and ours, so its memory is free to be written to.
            self.orphans.push(link.expose_provenance(), |next| unsafe { link.write(next) });
        }
    }

    /// Gives back what a zone's lock kept from it. The caller may block.
    fn release_orphans(&self, m: &M, pages: &PageAllocator<M>) {
        let mut orphan = if self.orphans.is_empty() { 0 } else { self.orphans.take() };
        while orphan != 0 {
            let link: *const usize = ptr::with_exposed_provenance(orphan);
            // SAFETY: `release` wrote the link, and the page was nobody's since.
            orphan = unsafe { link.read() };
            if let Some(pfn) = m.pfn(link.cast()) {
                // SAFETY: `release` could not free it and left it to who takes the list, which is taken whole; its link
                // was read.
                unsafe { pages.free_pages(m, pfn, Order::ZERO, true) };
            }
        }
    }

    /// Pages of all blocks.
    pub fn pages(&self) -> u32 {
        self.pages.load(Relaxed)
    }

    /// Whether the lock is held.
    pub fn is_held(&self) -> bool {
        self.lists.is_held()
    }

    /// Whether a page is one of these.
    pub fn owns(page: &Page) -> bool {
        page.kind() == Kind::Slab && page.cache() == 0
    }

    /// Bytes that may be used of the block at `address`, which lies in a page of these.
    ///
    /// # Errors
    /// [`Defect::Interior`], [`Defect::DoubleFree`]; where the lock is not to be had not all are noticed.
    pub fn usable(&self, m: &M, address: *const u8, may_block: bool) -> Result<usize, Defect> {
        let pfn = m.pfn(address).ok_or(Defect::Foreign)?;
        let units = match self.lists.acquire(m, may_block) {
            Some(_lists) => Blocks { m, pfn }.units_at(address)?,
            None => header_units(address)?,
        };
        Ok((usize::from(units) - 1) * UNIT)
    }

    /// Frees the block at `address`, which lies in a page of these; false, and nothing done, where the lock may not be
    /// waited for.
    ///
    /// # Errors
    /// As for [`Slob::usable`].
    ///
    /// # Safety
    /// If a block starts there it is the caller's, and nobody uses it from now on. (Not all that is no block's start is
    /// noticed.)
    pub unsafe fn free(
        &self,
        m: &M,
        pages: &PageAllocator<M>,
        address: *mut u8,
        may_block: bool,
    ) -> Result<bool, Defect> {
        let Some(pfn) = m.pfn(address) else { return Err(Defect::Foreign) };
        let Some(mut lists) = self.lists.acquire(m, may_block) else { return Ok(false) };
        let page = m.page(pfn);
        let list = &mut lists[page.mapcount() as usize];
        let full = page.refs() == 0;
        (Blocks { m, pfn }).put(address)?;
        if full {
            list.push_front(pfn, |p| m.page(p));
        }
        let empty = page.refs() == u32::from(UNITS);
        if empty {
            list.remove(pfn, |p| m.page(p));
        }
        drop(lists);
        if empty {
            self.release(m, pages, pfn, may_block);
        }
        if may_block {
            self.release_orphans(m, pages);
        }
        Ok(true)
    }

    /// Checks every page with room: its free blocks ascend, do not touch and add up.
    ///
    /// # Errors
    /// What contradicts what.
    pub fn verify(&self, m: &M) -> Result<(), &'static str> {
        let lists = self.lists.lock(m);
        for pfn in lists.iter().flat_map(|list| list.iter(|p| m.page(p))) {
            let blocks = Blocks { m, pfn };
            let (mut sum, mut end, mut at) = (0, None, blocks.first());
            while let Some(block) = blocks.get(at) {
                if end.is_some_and(|end| block.at <= end) || block.units == 0 || block.at + block.units > UNITS {
                    return Err("free blocks of a SLOB page overlap or touch");
                }
                (sum, end, at) = (sum + u32::from(block.units), Some(block.at + block.units), block.next);
            }
            if sum != blocks.page().refs() {
                return Err("free units of a SLOB page miscounted");
            }
        }
        Ok(())
    }

    /// Takes the lock for `fork`: see [`Lock::lock_for_fork`].
    #[must_use]
    pub fn lock_all(&self, m: &M, fork: Fork) -> bool {
        self.lists.lock_for_fork(m, fork)
    }

    /// Gives it back.
    ///
    /// # Safety
    /// The caller (or the process it is the fork of) took it by [`Slob::lock_all`].
    pub unsafe fn unlock_all(&self, m: &M, fork: Fork) {
        // SAFETY: the caller's condition.
        unsafe { self.lists.unlock_after_fork(m, fork) };
    }
}

impl<M: Machine> Default for Slob<M> {
    fn default() -> Slob<M> {
        Slob::new()
    }
}
