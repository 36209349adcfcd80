//! The contract of the seam on the machines of a host; the bare-metal image runs the same on its own.
#![cfg(all(feature = "sim", target_os = "linux", target_arch = "x86_64"))]

extern crate alloc;

#[path = "suite/mod.rs"]
#[allow(dead_code)] // the heap's tests use more of it
mod suite;

use slabwright::machine::linux::Linux;
use slabwright::machine::sim::{Flavour, Sim, SimBare, SimHosted, Simulated};
use slabwright::machine::{Frames, Machine, Mapping, PerCpu, ZoneKind};
use slabwright::types::{PAGE_SIZE, PfnRange};

use suite::machine;

fn sim<F: Flavour>() -> Simulated<F> {
    let sim = Simulated::builder().cpus(2).ram(0, ZoneKind::Normal, 0x101, 0x2ff).window(8 << 20).build();
    assert!(Machine::init(&sim));
    sim
}

fn all<F: Flavour>() {
    let sim = sim::<F>();
    let range = sim.ram()[0].2;
    for cpu in 0..2 {
        sim.set_cpu(cpu);
        assert!(machine::rows(&sim, 200), "nothing disturbs the sections here");
    }
    machine::frames(&sim, PfnRange::new(range.start, 64));
    machine::contexts(&sim);
    if F::OWNS_FRAMES {
        let frames: Vec<_> = range.iter().step_by(3).take(40).collect();
        let at = sim.window().start;
        machine::mapping(&sim, at, at + (1 << 20), &frames);
    }
}

#[test]
fn simulated_machines() {
    all::<<Sim as HasFlavour>::Flavour>();
    all::<<SimBare as HasFlavour>::Flavour>();
    all::<<SimHosted as HasFlavour>::Flavour>();
}

/// Names the flavour behind an alias.
trait HasFlavour {
    type Flavour: Flavour;
}

impl<F: Flavour> HasFlavour for Simulated<F> {
    type Flavour = F;
}

#[test]
fn the_process() {
    assert!(Linux.init());
    let range = Linux.grow(0, ZoneKind::Normal, 1).expect("memory");
    machine::frames(&Linux, PfnRange::new(range.start, 64));
    machine::contexts(&Linux);
    assert!(Linux.nr_cpus() > 0 && PAGE_SIZE == 4096);
}
