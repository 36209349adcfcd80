//! The machines of a host.

use std::collections::VecDeque;

use slabwright::machine::linux::Linux;
use slabwright::machine::sim::{Flavour, Simulated};
use slabwright::mm::{Hooks, Mm};
use slabwright::types::PAGE_SIZE;

use crate::census;
use crate::ops::Op;
use crate::world::Host;

impl<F: Flavour> Host for Simulated<F> {
    fn set_cpu(&self, cpu: usize) {
        Simulated::set_cpu(self, cpu);
    }
    fn advance(&self, ms: u64) {
        Simulated::advance(self, ms);
    }
    fn fail_next(&self, k: u64) {
        self.fail_at(k);
    }
    fn without_calls<R>(&self, body: impl FnOnce() -> R) -> R {
        self.forbid_calls(body)
    }
    fn census(mm: &Mm<Simulated<F>>, empty: bool) {
        if !mm.is_up() {
            return;
        }
        let census = census::take(mm);
        let stats = mm.stats();
        assert_eq!(stats.pages_free, census.free, "{census:?}");
        assert_eq!(stats.slab.slab_bytes as u64, census.slabs * PAGE_SIZE as u64, "{census:?}");
        assert!(!empty || (census.slabs, census.runs, census.other) == (0, 0, 0), "left over: {census:?}");
    }
    fn reported(&self) -> Vec<String> {
        self.reports()
    }
    fn ended(seed: u64, steps: usize, history: &VecDeque<Op>) {
        tell(seed, steps, history);
    }
}

impl Host for Linux {
    fn ended(seed: u64, steps: usize, history: &VecDeque<Op>) {
        tell(seed, steps, history);
    }
}

/// How to see a failure again.
fn tell(seed: u64, steps: usize, history: &VecDeque<Op>) {
    if std::thread::panicking() {
        eprintln!("HEAP_SEED={seed} failed at step {steps}; last operations:");
        history.iter().for_each(|op| eprintln!("  {op:?}"));
    }
}

/// An allocator on `sim`, with the memory that is there from the start.
pub fn heap<F: Flavour>(sim: &Simulated<F>) -> Box<Mm<Simulated<F>>> {
    let after = |mm: &Mm<Simulated<F>>| {
        for (node, zone, range) in mm.machine().ram() {
            // SAFETY: the machine was made with these frames, which go to this allocator alone, at its start.
            unsafe { mm.pages().add(mm.machine(), *node, *zone, *range) };
        }
    };
    Box::new(Mm::with_hooks(sim.clone(), Hooks { before: None, after: Some(after) }))
}
