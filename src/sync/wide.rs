//! Atomic integers of 64 bits that leave the coprocessor alone.
//!
//! On an i586 the compiler loads and stores such integers through an x87 register, which an interrupt handler must not
//! touch: what lies there is whom it interrupted's. `cmpxchg8b` does the same in ordinary registers, and writes back
//! what was there where it only reads. Elsewhere they are `core`'s.

#[cfg(not(target_arch = "x86"))]
pub use core::sync::atomic::AtomicU64;

#[cfg(any(target_arch = "x86", test))]
mod exchange {
    use core::sync::atomic::Ordering::{self, AcqRel, Acquire, Relaxed, Release};
    use core::sync::atomic::{self};

    /// An integer of 64 bits that is only ever compared and exchanged. The methods are those of
    /// [`core::sync::atomic::AtomicU64`].
    #[repr(transparent)]
    pub struct AtomicU64(atomic::AtomicU64);

    /// The order of a loop's successful exchange, and of its last failed one.
    fn failed(order: Ordering) -> Ordering {
        match order {
            AcqRel => Acquire,
            Release => Relaxed,
            order => order,
        }
    }

    #[allow(missing_docs)]
    impl AtomicU64 {
        pub const fn new(value: u64) -> AtomicU64 {
            AtomicU64(atomic::AtomicU64::new(value))
        }

        #[inline]
        pub fn load(&self, order: Ordering) -> u64 {
            self.0.compare_exchange(0, 0, order, order).unwrap_or_else(|value| value)
        }

        #[inline]
        pub fn store(&self, value: u64, order: Ordering) {
            self.update(order, |_| value);
        }

        #[inline]
        pub fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
            self.update(order, |old| old.wrapping_add(value))
        }

        #[inline]
        pub fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
            self.update(order, |old| old.wrapping_sub(value))
        }

        #[inline]
        pub fn fetch_min(&self, value: u64, order: Ordering) -> u64 {
            self.update(order, |old| old.min(value))
        }

        #[inline]
        pub fn compare_exchange(&self, old: u64, new: u64, good: Ordering, bad: Ordering) -> Result<u64, u64> {
            self.0.compare_exchange(old, new, good, bad)
        }

        #[inline]
        pub fn compare_exchange_weak(&self, old: u64, new: u64, good: Ordering, bad: Ordering) -> Result<u64, u64> {
            self.0.compare_exchange(old, new, good, bad)
        }

        #[inline]
        pub fn fetch_update(
            &self,
            good: Ordering,
            bad: Ordering,
            mut change: impl FnMut(u64) -> Option<u64>,
        ) -> Result<u64, u64> {
            // A guess costs a round; it need not be right.
            let mut old = 0;
            loop {
                let seen = self.0.compare_exchange(old, old, bad, bad).unwrap_or_else(|value| value);
                let new = change(seen).ok_or(seen)?;
                match self.0.compare_exchange(seen, new, good, bad) {
                    Ok(seen) => return Ok(seen),
                    Err(other) => old = other,
                }
            }
        }

        /// Replaces the value by `change` of it; what it was.
        #[inline]
        fn update(&self, order: Ordering, change: impl Fn(u64) -> u64) -> u64 {
            let mut old = 0;
            loop {
                match self.0.compare_exchange(old, change(old), order, failed(order)) {
                    Ok(seen) => return seen,
                    Err(other) => old = other,
                }
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use std::thread;

        use super::AtomicU64;
        use super::Ordering::{Acquire, Relaxed, Release};

        #[test]
        fn does_what_the_ordinary_one_does() {
            let word = AtomicU64::new(5);
            assert_eq!((word.load(Acquire), word.fetch_add(u64::MAX, Relaxed), word.load(Relaxed)), (5, 5, 4));
            word.store(1 << 40, Release);
            assert_eq!(
                (word.fetch_sub(1, Relaxed), word.fetch_min(7, Relaxed), word.load(Relaxed)),
                (1 << 40, (1 << 40) - 1, 7)
            );
            assert_eq!(word.fetch_min(9, Relaxed), 7);
            assert_eq!((word.compare_exchange(6, 1, Relaxed, Relaxed), word.load(Relaxed)), (Err(7), 7));
            assert_eq!((word.compare_exchange_weak(6, 1, Relaxed, Relaxed), word.load(Relaxed)), (Err(7), 7));
            assert_eq!((word.fetch_update(Relaxed, Relaxed, |_| None), word.load(Relaxed)), (Err(7), 7));
            assert_eq!((word.fetch_update(Relaxed, Relaxed, |n| Some(n * 2)), word.load(Relaxed)), (Ok(7), 14));
        }

        #[test]
        fn loses_nothing_between_threads() {
            let word = AtomicU64::new(0);
            thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        (0..5000).for_each(|_| {
                            word.fetch_add(1 << 31 | 1, Relaxed);
                        })
                    });
                }
            });
            assert_eq!(word.load(Relaxed), 10_000 * (1 << 31 | 1));
        }
    }
}

#[cfg(target_arch = "x86")]
pub use exchange::AtomicU64;
