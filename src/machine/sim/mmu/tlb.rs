//! Translations that a CPU remembers, and how they are forgotten.

use core::ops::Range;
use std::collections::BTreeMap;

use super::{Call, Flavour, Simulated, Space};
use crate::paging::{Flags, Level, Translation};
use crate::types::{PAGE_SHIFT, PAGE_SIZE};

/// One CPU's. It has room for everything, so that nothing is forgotten by chance.
#[derive(Default)]
pub(super) struct Tlb {
    /// By page number. A huge leaf is remembered page by page, as a processor may.
    pages: BTreeMap<usize, Translation>,
}

impl Tlb {
    pub(super) fn get(&self, address: usize) -> Option<Translation> {
        let found = *self.pages.get(&(address >> PAGE_SHIFT))?;
        Some(Translation { offset: address & (PAGE_SIZE - 1), ..found })
    }

    pub(super) fn insert(&mut self, address: usize, found: Translation) {
        self.pages.insert(address >> PAGE_SHIFT, Translation { level: Level::Pte, ..found });
    }

    /// Forgets the pages of a range.
    pub(super) fn forget(&mut self, range: Range<usize>) {
        let pages = range.start >> PAGE_SHIFT..((range.end - 1) >> PAGE_SHIFT) + 1;
        self.pages.retain(|page, _| !pages.contains(page));
    }

    /// What a load of `cr3` does: only global translations stay.
    pub(super) fn switch(&mut self) {
        self.pages.retain(|_, found| found.flags.has(Flags::GLOBAL));
    }

    /// Forgets everything.
    fn flush(&mut self) {
        self.pages.clear();
    }
}

/// Flushes so far, by kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flushes {
    /// Of whole TLBs, on all CPUs.
    pub all: u64,
    /// Of one address space.
    pub space: u64,
    /// Of a range or a page, on all CPUs.
    pub range: u64,
}

/// Pages above which a flush drops the whole TLB.
const FLUSH_PAGES: usize = 32;

impl<F: Flavour> Simulated<F> {
    /// Flushes so far.
    pub fn flushes(&self) -> Flushes {
        self.mmu().flushes
    }

    /// Drops every translation on every CPU (`flush_tlb_all`).
    pub fn flush_tlb_all(&self) {
        self.call(Call::FlushTlb);
        let mmu = &mut *self.mmu();
        mmu.flushes.all += 1;
        mmu.cpus.iter_mut().for_each(|(_, tlb)| tlb.flush());
    }

    /// Drops the translations of a space where it is in use (`flush_tlb_mm`); elsewhere they went when it was left.
    pub fn flush_tlb_mm(&self, space: &Space<F>) {
        self.call(Call::FlushTlb);
        let mmu = &mut *self.mmu();
        mmu.flushes.space += 1;
        mmu.cpus.iter_mut().filter(|(root, _)| *root == space.root()).for_each(|(_, tlb)| tlb.switch());
    }

    /// Drops the translations of `range` on every CPU (`flush_tlb_range`, `flush_tlb_kernel_range`).
    pub fn flush_tlb_range(&self, range: Range<usize>) {
        if range.len() > FLUSH_PAGES * PAGE_SIZE {
            return self.flush_tlb_all();
        }
        self.call(Call::FlushTlb);
        let mmu = &mut *self.mmu();
        mmu.flushes.range += 1;
        mmu.cpus.iter_mut().for_each(|(_, tlb)| tlb.forget(range.clone()));
    }

    /// Drops the translation of one page on every CPU (`flush_tlb_page`).
    pub fn flush_tlb_page(&self, address: usize) {
        let page = address & !(PAGE_SIZE - 1);
        self.flush_tlb_range(page..page + PAGE_SIZE);
    }
}
