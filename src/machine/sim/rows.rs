//! Per-CPU rows: a critical section is a mutex per CPU.

use core::ptr;
use core::sync::atomic::Ordering::Relaxed;
use std::boxed::Box;

use super::{Call, Flavour, Simulated, locked};
use crate::machine::{PerCpu, ROW_WORDS, Word, no_sheaf, row};

/// A CPU's row.
pub(super) enum Row {
    /// Never made.
    None,
    /// In use.
    Here(Box<[usize; ROW_WORDS]>),
    /// Taken by `drain_row`.
    Away,
}

impl<F: Flavour> Simulated<F> {
    /// Runs `section` on the current CPU's words; `None` where it is aborted or there are none.
    fn on_row<R>(&self, call: Call, section: impl FnOnce(&mut [usize; ROW_WORDS]) -> R) -> Option<R> {
        let cpu = self.section(call)?;
        match &mut *locked(&self.state.rows[cpu]) {
            Row::Here(words) => Some(section(words)),
            Row::None | Row::Away => None,
        }
    }
}

// SAFETY: 1. every section holds the CPU's mutex and calls nothing; 2. a drained row is away, out of every section's
// reach; 3. rows are made full of `no_sheaf`.
unsafe impl<F: Flavour> PerCpu for Simulated<F> {
    fn nr_cpus(&self) -> usize {
        self.state.rows.len()
    }

    fn cpu(&self) -> usize {
        self.current()
    }

    fn cpu_guess(&self) -> usize {
        self.current()
    }

    fn node(&self) -> usize {
        self.current() % self.state.nodes
    }

    fn nr_nodes(&self) -> usize {
        self.state.nodes
    }

    unsafe fn pop(&self, cache: u8) -> *mut u8 {
        // SAFETY: the caller's condition; the row's mutex is held.
        self.on_row(Call::Pop, |row| unsafe { row::pop(row, cache) }).unwrap_or(ptr::null_mut())
    }

    unsafe fn pop_marked(&self, cache: u8, key: usize) -> *mut u8 {
        // SAFETY: as above.
        self.on_row(Call::Pop, |row| unsafe { row::pop_marked(row, cache, key, self.looks_below()) })
            .unwrap_or(ptr::null_mut())
    }

    fn looks_below(&self) -> bool {
        self.state.looks_below.load(Relaxed)
    }

    unsafe fn push(&self, cache: u8, object: *mut u8) -> bool {
        // SAFETY: as above.
        self.on_row(Call::Push, |row| unsafe { row::push(row, cache, object) }).unwrap_or(false)
    }

    unsafe fn push_run(&self, cache: u8, run: *mut u8) -> bool {
        // SAFETY: as above.
        self.on_row(Call::Push, |row| unsafe { row::push_run(row, cache, run) }).unwrap_or(false)
    }

    unsafe fn push_marked(&self, cache: u8, object: *mut u8, key: usize) -> bool {
        // SAFETY: as above.
        self.on_row(Call::Push, |row| unsafe { row::push_marked(row, cache, object, key) }).unwrap_or(false)
    }

    fn read(&self, word: Word) -> Option<usize> {
        let cpu = self.section(Call::Read)?;
        let mut row = locked(&self.state.rows[cpu]);
        if matches!(*row, Row::None) && !self.row_fails() {
            *row = Row::Here(Box::new([no_sheaf(); ROW_WORDS]));
        }
        match &*row {
            Row::Here(words) => Some(words[word.index()]),
            Row::None | Row::Away => None,
        }
    }

    unsafe fn replace(&self, word: Word, old: usize, new: usize) -> bool {
        assert_eq!(new % size_of::<usize>(), 0, "a sheaf's slot has the alignment of a pointer");
        self.on_row(Call::Replace, |row| row::replace(row, word, old, new)).unwrap_or(false)
    }

    fn drain_row(&self, cpu: usize, f: &mut dyn FnMut(&mut [usize; ROW_WORDS])) -> bool {
        self.call(Call::DrainRow);
        let row = &self.state.rows[cpu];
        let mut words = {
            let mut row = locked(row);
            match core::mem::replace(&mut *row, Row::Away) {
                Row::Here(words) => words,
                other => {
                    *row = other;
                    return matches!(*row, Row::None);
                }
            }
        };
        f(&mut words);
        *locked(row) = Row::Here(words);
        true
    }
}
