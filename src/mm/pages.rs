//! The kernel's page calls with their checks: what is refused with a word of explanation, and what is reported.
#![allow(unsafe_code)]

use core::fmt::Write;
use core::sync::atomic::Ordering::Relaxed;

use super::Mm;
use crate::error::{AllocError, Defect};
use crate::gfp::Gfp;
use crate::machine::{Machine, misuse};
use crate::page::Kind;
use crate::types::{Line, Order, PAGE_SIZE, Pfn, PfnRange};

impl<M: Machine> Mm<M> {
    /// Whether a request with this word makes sense here and now.
    ///
    /// # Errors
    /// [`AllocError::Invalid`]: flags that contradict each other ([`Gfp::check`]), said in one line unless
    /// `__GFP_NOWARN` is set; or a request that may sleep where the thread has forbidden itself to, which is reported
    /// as a defect.
    #[inline]
    pub fn admit(&self, gfp: Gfp) -> Result<(), AllocError> {
        if gfp.check().is_err() {
            return self.contradiction(gfp);
        }
        if gfp.may_block() && self.machine.preempt_count() > 0 {
            return self.sleeping(gfp);
        }
        Ok(())
    }

    #[cold]
    fn contradiction(&self, gfp: Gfp) -> Result<(), AllocError> {
        if !gfp.has(Gfp::NOWARN) {
            let mut line = Line::new();
            let _ = write!(line, "slabwright: GFP flags that contradict each other: {gfp:?}");
            self.machine.line(line.as_str());
        }
        Err(AllocError::Invalid)
    }

    #[cold]
    fn sleeping(&self, gfp: Gfp) -> Result<(), AllocError> {
        let mut line = Line::new();
        let _ = write!(line, "{gfp:?}");
        misuse(&self.machine, Defect::SleepingInAtomic, gfp.0 as usize, line.as_str());
        Err(AllocError::Invalid)
    }

    /// [`Mm::admit`] for calls that return an address, which HIGHMEM has none of.
    ///
    /// # Errors
    /// As for [`Mm::admit`].
    pub fn admit_address(&self, gfp: Gfp) -> Result<(), AllocError> {
        if gfp.has(Gfp::HIGHMEM) { self.contradiction(gfp) } else { self.admit(gfp) }
    }

    /// A block of `2^order` pages; see [`crate::zone::PageAllocator::alloc_pages`].
    ///
    /// # Errors
    /// [`AllocError::Invalid`]: no such order, or as for [`Mm::admit`]. [`AllocError::NoMemory`].
    pub fn alloc_pages(&self, gfp: Gfp, order: u32, node: Option<usize>) -> Result<Pfn, AllocError> {
        let order = u8::try_from(order).ok().and_then(Order::new).ok_or(AllocError::Invalid)?;
        self.admit(gfp)?;
        let node = node.map(|node| node % self.machine.nr_nodes().max(1));
        let get = |gfp| self.pages.alloc_pages(&self.machine, gfp, order, node);
        let block = self.with_reclaim(gfp, |gfp| get(gfp).or_else(|| self.compact_for(gfp, order, node, get)));
        block.ok_or(AllocError::NoMemory)
    }

    /// At least `bytes` bytes in whole pages, not of a power of two; see [`crate::zone::PageAllocator::alloc_run`].
    ///
    /// # Errors
    /// As for [`Mm::alloc_pages`]; [`AllocError::Invalid`] also above 4 MiB.
    pub fn alloc_pages_exact(&self, gfp: Gfp, bytes: usize) -> Result<Pfn, AllocError> {
        let pages = bytes.div_ceil(PAGE_SIZE).max(1);
        let pages =
            u32::try_from(pages).ok().filter(|pages| *pages <= Order::MAX.pages()).ok_or(AllocError::Invalid)?;
        self.admit_address(gfp)?;
        let run = self.with_reclaim(gfp, |gfp| self.pages.alloc_run(&self.machine, gfp, pages, None));
        let run = run.ok_or(AllocError::NoMemory)?;
        self.machine.page(run).set_mapcount(0);
        Ok(run)
    }

    fn with_reclaim(&self, gfp: Gfp, get: impl Fn(Gfp) -> Option<Pfn>) -> Option<Pfn> {
        self.expect_atomic(gfp);
        self.bracket(gfp, |gfp| {
            if !self.is_up() {
                return None;
            }
            let first = get(gfp);
            if first.is_none() && gfp.may_block() && gfp.may_io() && !gfp.has(Gfp::NORETRY) && self.reclaim(gfp) {
                return get(gfp);
            }
            first
        })
    }

    /// Takes one more reference to a block that is allocated.
    ///
    /// # Errors
    /// [`Defect::DoubleFree`] or [`Defect::Foreign`]: it is not; reported.
    pub fn get_page(&self, pfn: Pfn) -> Result<(), Defect> {
        match self.machine.page(pfn).kind() {
            Kind::Allocated => {
                self.pages.get_page(&self.machine, pfn);
                Ok(())
            }
            kind => self.wrong_page(pfn, kind, 0),
        }
    }

    /// Drops a reference to a block of `2^order` pages and frees it with the last one (`__free_pages`, `put_page`).
    /// Never waits.
    ///
    /// # Safety
    /// The reference is the caller's to drop, and where it is the last one nobody uses the pages any more. (Violations
    /// that are noticed are reported; not all can be.)
    ///
    /// # Errors
    /// What is wrong with that; it was reported and nothing done.
    pub unsafe fn free_pages(&self, pfn: Pfn, order: u32) -> Result<(), Defect> {
        let page = self.machine.page(pfn);
        let kind = page.kind();
        if kind != Kind::Allocated || u32::from(page.order().get()) != order {
            return self.wrong_page(pfn, kind, order);
        }
        let order = page.order();
        let done = self.bracket(Gfp::ATOMIC, |gfp| {
            // SAFETY: the caller's condition, which is the same; that it is a block of this order was looked at.
            unsafe { self.pages.put_pages(&self.machine, pfn, order, gfp.may_block()) }
        });
        if !done {
            self.defer_pages(pfn, order);
        }
        Ok(())
    }

    /// [`Mm::free_pages`] by address; null is nothing.
    ///
    /// # Safety
    /// As for [`Mm::free_pages`].
    ///
    /// # Errors
    /// As for [`Mm::free_pages`].
    pub unsafe fn free_pages_at(&self, address: *mut u8, order: u32) -> Result<(), Defect> {
        if address.is_null() {
            return Ok(());
        }
        let found = self
            .page_of(address)
            .and_then(|pfn| if self.machine.virt(pfn) == address { Ok(pfn) } else { Err(Defect::Interior) });
        match found {
            // SAFETY: the caller's condition.
            Ok(pfn) => unsafe { self.free_pages(pfn, order) },
            Err(defect) => {
                misuse(&self.machine, defect, address.addr(), "pages");
                Err(defect)
            }
        }
    }

    /// Frees what [`Mm::alloc_pages_exact`] returned, by its address; null is nothing.
    ///
    /// # Safety
    /// The run is the caller's and not used any more.
    ///
    /// # Errors
    /// As for [`Mm::free_pages`]; [`Defect::WrongOrder`] where the block has not as many pages as `bytes` need.
    pub unsafe fn free_pages_exact(&self, address: *mut u8, bytes: usize) -> Result<(), Defect> {
        if address.is_null() {
            return Ok(());
        }
        let m = &self.machine;
        let wrong = match self.page_of(address) {
            Err(defect) => defect,
            Ok(pfn) if m.virt(pfn) != address => Defect::Interior,
            Ok(pfn) => {
                let page = m.page(pfn);
                let range = PfnRange::new(pfn, page.word() as u32);
                let wanted = bytes.div_ceil(PAGE_SIZE).max(1);
                match page.kind() {
                    // A run may be up to an eighth longer than was asked for.
                    Kind::Run if wanted > range.pages as usize => Defect::WrongOrder,
                    Kind::Run if page.claim(Kind::Run, Kind::Isolated) => {
                        // SAFETY: the caller gives the run up, whose length is that of its descriptor; claimed, so
                        // nobody else frees it, too.
                        let free = |gfp: Gfp| unsafe { self.pages.free_run(m, range, gfp.may_block()) };
                        if !self.bracket(Gfp::ATOMIC, free) {
                            self.defer(address);
                        }
                        return Ok(());
                    }
                    kind => self.page_defect(pfn, kind),
                }
            }
        };
        misuse(m, wrong, address.addr(), "pages");
        Err(wrong)
    }

    /// The frame that holds `address`.
    ///
    /// # Errors
    /// [`Defect::Foreign`]: none of this allocator's does.
    pub fn page_of(&self, address: *const u8) -> Result<Pfn, Defect> {
        if self.is_up() { self.machine.pfn(address).ok_or(Defect::Foreign) } else { Err(Defect::Foreign) }
    }

    /// Whether `pfn` is a frame that is online.
    pub fn frame_exists(&self, pfn: Pfn) -> bool {
        self.is_up() && self.machine.pfn(self.machine.virt(pfn)) == Some(pfn)
    }

    /// What a free of a page of this kind is.
    fn page_defect(&self, pfn: Pfn, kind: Kind) -> Defect {
        match kind {
            kind if kind.is_free() => Defect::DoubleFree,
            Kind::Tagged if self.machine.class(pfn).load(Relaxed) == 0 => Defect::DoubleFree,
            Kind::Tail | Kind::Offline => self.tail_defect(pfn),
            _ => Defect::Foreign,
        }
    }

    #[cold]
    fn wrong_page(&self, pfn: Pfn, kind: Kind, order: u32) -> Result<(), Defect> {
        let page = self.machine.page(pfn);
        let mut line = Line::new();
        let defect = if kind == Kind::Allocated { Defect::WrongOrder } else { self.page_defect(pfn, kind) };
        if defect == Defect::WrongOrder {
            let _ = write!(line, "order {order}, allocated with {}", page.order().get());
        } else {
            let _ = write!(line, "page frame {}, {kind:?}", pfn.0);
        }
        misuse(&self.machine, defect, self.machine.virt(pfn).addr(), line.as_str());
        Err(defect)
    }
}
