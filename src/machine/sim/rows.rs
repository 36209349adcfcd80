//! Per-CPU rows: a critical section is a mutex per CPU.

use core::ptr;
use std::boxed::Box;

use super::{Call, Flavour, Simulated, locked};
use crate::machine::{PerCpu, ROW_WORDS, SHEAF_BYTES, Word, no_sheaf};

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

    fn node(&self) -> usize {
        self.current() % self.state.nodes
    }

    fn nr_nodes(&self) -> usize {
        self.state.nodes
    }

    unsafe fn pop(&self, cache: u8) -> *mut u8 {
        let popped = self.on_row(Call::Pop, |row| {
            let word = &mut row[Word::Main(cache).index()];
            // SAFETY: words point at a slot of a valid sheaf (the caller's condition), where the sentinel stops the
            // descent; the row's mutex is held.
            let object = unsafe { ptr::with_exposed_provenance::<usize>(*word).read() };
            if object != 0 {
                *word -= size_of::<usize>();
            }
            object
        });
        ptr::with_exposed_provenance_mut(popped.unwrap_or(0))
    }

    unsafe fn push(&self, cache: u8, object: *mut u8) -> bool {
        let pushed = self.on_row(Call::Push, |row| {
            let word = &mut row[Word::Main(cache).index()];
            let top = *word + size_of::<usize>();
            if top.is_multiple_of(SHEAF_BYTES) {
                return false;
            }
            // SAFETY: `top` is a slot of the same valid sheaf, which the row owns; the row's mutex is held.
            unsafe { ptr::with_exposed_provenance_mut::<usize>(top).write(object.expose_provenance()) };
            *word = top;
            true
        });
        pushed.unwrap_or(false)
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
        let replaced = self.on_row(Call::Replace, |row| {
            let now = &mut row[word.index()];
            let same = *now == old;
            if same {
                *now = new;
            }
            same
        });
        replaced.unwrap_or(false)
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
                    return false;
                }
            }
        };
        f(&mut words);
        *locked(row) = Row::Here(words);
        true
    }
}
