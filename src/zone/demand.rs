//! What was wanted of late: how much free memory is worth keeping.
//!
//! Giving memory back and having it again costs a page fault for each page, so what becomes free stays as long as a
//! program may want it again soon: as much as it had in use at once in this *window* of time or the last. What is
//! beyond that was of no use for a whole window, and goes. A program that frees its peak in order to end gives nothing
//! back, nor does one whose demand swings within a window (half of
//! [`Options::decay_ms`](crate::config::Options::decay_ms)).
//!
//! But who looks at the clock in a program that has freed its peak, and from then on allocates a little now and then,
//! all of it on the fast path? While memory lies idle that is closed for some calls now and then (`mm/age.rs`).
//!
//! Measured (2 CPUs, CPU time in one run with mimalloc 2 and 3, tcmalloc, jemalloc, glibc): against giving back at once
//! what the program had not been seen to want again, a million blocks of which all are freed at the end take 0.44 in
//! place of 0.51 s, blocks of changing sizes up to 1 GiB 0.41 in place of 1.56 (the others 0.12 to 2.1), an array
//! doubled to 1 GiB 0.10 in place of 2.5 (1.0 to 2.5); peaks are the same.
//!
//! Rejected: a thread (the program did not ask for one), a timer (it would interrupt system calls), a clock on the fast
//! path, keeping the fast path closed all the time that memory lies idle (4 ns a call), and to decide when memory
//! becomes free (the first fall was paid for in each program, and no second one was noticed).

/// The most of something in this window of time and the last.
#[derive(Clone, Copy, Debug)]
pub struct Demand([u64; 2]);

impl Demand {
    /// Nothing was wanted.
    pub const fn new() -> Demand {
        Demand([0; 2])
    }

    /// Demand is at `level` now.
    #[inline]
    pub fn at(&mut self, level: u64) {
        self.0[0] = self.0[0].max(level);
    }

    /// A window ends with demand at `level`.
    pub fn turn(&mut self, level: u64) {
        self.0 = [level, self.0[0].max(level)];
    }

    /// What may be wanted again.
    #[inline]
    pub fn wanted(&self) -> u64 {
        self.0[0].max(self.0[1])
    }
}

impl Default for Demand {
    fn default() -> Demand {
        Demand::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_is_wanted_until_a_whole_window_did_without() {
        let mut demand = Demand::new();
        [10, 100, 20].into_iter().for_each(|level| demand.at(level));
        assert_eq!(demand.wanted(), 100);
        demand.turn(20);
        demand.at(30);
        assert_eq!(demand.wanted(), 100, "the window that ended had it");
        demand.turn(5);
        assert_eq!(demand.wanted(), 30);
        demand.turn(5);
        assert_eq!(demand.wanted(), 5);
    }
}
