//! GFP words: where memory may come from and what may be done to get it.
//!
//! Bit values and compositions are those of the kernel's 6.x `include/linux/gfp_types.h`, so that a number seen in
//! a kernel trace means the same here.

use crate::error::AllocError;

/// A `gfp_t`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Gfp(pub u32);

macro_rules! bits {
    ($($(#[$doc:meta])* $name:ident = $bit:expr;)*) => {
        impl Gfp {
            $($(#[$doc])* pub const $name: Gfp = Gfp(1 << $bit);)*
            /// All bits that mean something.
            const ALL: u32 = $(1 << $bit)|*;
            const NAMES: &'static [(&'static str, u32)] = &[$((stringify!($name), 1 << $bit)),*];
        }
    };
}

bits! {
    /// Memory below 16 MiB.
    DMA = 0;
    /// Frames without a permanent address are welcome.
    HIGHMEM = 1;
    /// Memory below 4 GiB.
    DMA32 = 2;
    /// The pages can be moved or are freed whole.
    MOVABLE = 3;
    /// The pages can be reclaimed by a shrinker.
    RECLAIMABLE = 4;
    /// May use the reserve below the min watermark.
    HIGH = 5;
    /// May start I/O; hosted: may make system calls.
    IO = 6;
    /// May call into the file system; hosted: may call registered shrinkers.
    FS = 7;
    /// The caller wants zeroed memory.
    ZERO = 8;
    /// May reclaim, and so block, itself.
    DIRECT_RECLAIM = 10;
    /// Wakes background reclaim below the low watermark.
    KSWAPD_RECLAIM = 11;
    /// The caller is going to write to the pages: accepted, and of no consequence.
    WRITE = 12;
    /// Failure is not reported.
    NOWARN = 13;
    /// Keep trying, but fail in the end.
    RETRY_MAYFAIL = 14;
    /// Never fails.
    NOFAIL = 15;
    /// Fails at the first difficulty.
    NORETRY = 16;
    /// May use all of the reserves.
    MEMALLOC = 17;
    /// The block is one compound page.
    COMP = 18;
    /// Never uses the reserves.
    NOMEMALLOC = 19;
    /// Only on the nodes that the process may use: the system sees to that, always.
    HARDWALL = 20;
    /// From the given node only.
    THISNODE = 21;
    /// Charged to the caller's memory account.
    ACCOUNT = 22;
}

impl Gfp {
    /// No flag: no zone modifier, no permission.
    pub const NONE: Gfp = Gfp(0);
    /// Either kind of reclaim.
    pub const RECLAIM: Gfp = Gfp(Gfp::DIRECT_RECLAIM.0 | Gfp::KSWAPD_RECLAIM.0);
    /// The old name of [`Gfp::DIRECT_RECLAIM`].
    pub const WAIT: Gfp = Gfp::DIRECT_RECLAIM;
    /// Ordinary requests.
    pub const KERNEL: Gfp = Gfp(Gfp::RECLAIM.0 | Gfp::IO.0 | Gfp::FS.0);
    /// Never sleeps, never makes a system call, may use the reserve. Requests of more than order 3 are refused while
    /// another holds the zone's lock: what is had without it are blocks up to that order.
    pub const ATOMIC: Gfp = Gfp(Gfp::HIGH.0 | Gfp::KSWAPD_RECLAIM.0);
    /// Never sleeps, no reserve.
    pub const NOWAIT: Gfp = Gfp(Gfp::KSWAPD_RECLAIM.0 | Gfp::NOWARN.0);
    /// May reclaim, without I/O.
    pub const NOIO: Gfp = Gfp::RECLAIM;
    /// May reclaim with I/O, without the file system.
    pub const NOFS: Gfp = Gfp(Gfp::RECLAIM.0 | Gfp::IO.0);
    /// For user pages.
    pub const USER: Gfp = Gfp(Gfp::KERNEL.0 | Gfp::HARDWALL.0);
    /// User pages that may lie in HIGHMEM.
    pub const HIGHUSER: Gfp = Gfp(Gfp::USER.0 | Gfp::HIGHMEM.0);
    /// User pages that may also be moved.
    pub const HIGHUSER_MOVABLE: Gfp = Gfp(Gfp::HIGHUSER.0 | Gfp::MOVABLE.0);
    /// What stands behind `malloc`: try hard, then return NULL.
    pub const MALLOC: Gfp = Gfp(Gfp::KERNEL.0 | Gfp::RETRY_MAYFAIL.0);

    const ZONE_BITS: u32 = Gfp::DMA.0 | Gfp::HIGHMEM.0 | Gfp::DMA32.0 | Gfp::MOVABLE.0;

    /// Whether all bits of `other` are set.
    #[inline]
    pub const fn has(self, other: Gfp) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both words' bits.
    #[inline]
    #[must_use]
    pub const fn with(self, other: Gfp) -> Gfp {
        Gfp(self.0 | other.0)
    }

    /// This word without `other`'s bits.
    #[inline]
    #[must_use]
    pub const fn without(self, other: Gfp) -> Gfp {
        Gfp(self.0 & !other.0)
    }

    /// May block on a lock, reclaim and wait.
    #[inline]
    pub const fn may_block(self) -> bool {
        self.0 & Gfp::DIRECT_RECLAIM.0 != 0
    }

    /// May make system calls (hosted) or start I/O.
    #[inline]
    pub const fn may_io(self) -> bool {
        self.0 & Gfp::IO.0 != 0
    }

    /// Promises to take no page fault, to make no system call and to wait for nobody: an atomic request. Without leave
    /// to use the reserves only the latter two can be promised.
    #[inline]
    pub const fn no_fault(self) -> bool {
        self.has(Gfp::HIGH) && !self.may_block() && !self.has(Gfp::NOMEMALLOC)
    }

    /// Memory whose address is below a limit.
    #[inline]
    pub const fn is_low(self) -> bool {
        self.0 & (Gfp::DMA.0 | Gfp::DMA32.0) != 0
    }

    /// What is left of the word where nothing may block: an interrupt or signal handler, or a nested call.
    #[inline]
    #[must_use]
    pub const fn atomic(self) -> Gfp {
        self.without(Gfp(Gfp::DIRECT_RECLAIM.0 | Gfp::IO.0 | Gfp::FS.0 | Gfp::NOFAIL.0)).with(Gfp::HIGH)
    }

    /// Refuses what the kernel's `GFP_ZONE_BAD` and its NOFAIL checks refuse.
    ///
    /// # Errors
    /// [`AllocError::Invalid`]: more than one of DMA, DMA32 and HIGHMEM; MOVABLE together with DMA; RECLAIMABLE
    /// together with MOVABLE; a bit that is none; NOFAIL without DIRECT_RECLAIM; MEMALLOC with NOMEMALLOC.
    pub const fn check(self) -> Result<(), AllocError> {
        let zone = self.0 & Gfp::ZONE_BITS;
        let address = zone & !Gfp::MOVABLE.0;
        let movable = zone & Gfp::MOVABLE.0 != 0;
        let bad = self.0 & !Gfp::ALL != 0
            || address.count_ones() > 1
            || (movable && address & Gfp::DMA.0 != 0)
            || (movable && self.has(Gfp::RECLAIMABLE))
            || (self.has(Gfp::NOFAIL) && !self.may_block())
            || (self.has(Gfp::MEMALLOC) && self.has(Gfp::NOMEMALLOC));
        if bad { Err(AllocError::Invalid) } else { Ok(()) }
    }
}

impl core::ops::BitOr for Gfp {
    type Output = Gfp;
    fn bitor(self, other: Gfp) -> Gfp {
        self.with(other)
    }
}

impl core::fmt::Debug for Gfp {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let mut rest = self.0;
        let mut first = true;
        for (name, bit) in Gfp::NAMES {
            if rest & bit != 0 {
                rest &= !bit;
                f.write_str(if first { "" } else { "|" })?;
                f.write_str(name)?;
                first = false;
            }
        }
        if rest != 0 || first {
            write!(f, "{}{rest:#x}", if first { "" } else { "|" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // rows: C1
    #[test]
    fn values_are_the_kernels() {
        assert_eq!(Gfp::KERNEL.0, 0xcc0);
        assert_eq!(Gfp::ATOMIC.0, 0x820);
        assert_eq!(Gfp::ZERO.0, 0x100);
        assert_eq!(Gfp::DMA32.0, 0x4);
    }

    // rows: C1 C12
    #[test]
    fn illegal_combinations_are_refused() {
        assert!(Gfp::KERNEL.check().is_ok());
        assert!(Gfp::HIGHUSER_MOVABLE.check().is_ok());
        assert!((Gfp::KERNEL | Gfp(1 << 31)).check().is_err());
        assert!((Gfp::DMA | Gfp::DMA32).check().is_err());
        assert!((Gfp::DMA | Gfp::HIGHMEM).check().is_err());
        assert!((Gfp::MOVABLE | Gfp::DMA).check().is_err());
        assert!((Gfp::MOVABLE | Gfp::RECLAIMABLE).check().is_err());
        assert!((Gfp::ATOMIC | Gfp::NOFAIL).check().is_err());
        assert!((Gfp::MEMALLOC | Gfp::NOMEMALLOC).check().is_err());
    }
}
