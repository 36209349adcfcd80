//! The general caches' size classes: 8, 16, then 16-byte steps to 128, then four per doubling up to 8 KiB, from 1 KiB
//! on those that fill their slabs: 32 KiB hold seven objects of 4672 bytes, and of 5 KiB only six.
//!
//! 33 classes waste 9.3 % on average over uniformly distributed sizes, what slabs have left over included; four even
//! steps per doubling 12.4 % (8.0 % without the slabs), the kernel's 13 powers of two (with 96 and 192) 25 %. Machines
//! of 32 bits have the kernel's: each class that is used holds two sheaves for each CPU and slabs that are not full,
//! which on a machine with a few megabytes is more than what finer steps save.
#![allow(unsafe_code)]

/// Number of classes; ids are 1 to this.
pub const NR_CLASSES: usize = if cfg!(target_pointer_width = "32") { KERNEL.len() } else { 33 };
/// Largest size served from a class, in bytes.
pub const MAX_SMALL: usize = 8192;

/// The classes of machines of 64 bits. Multiples of 64 from 320 on, for requests that ask for a cache line.
#[rustfmt::skip]
static FINE: [usize; 33] = [
    8, 16, 32, 48, 64, 80, 96, 112, 128,
    160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024,
    1344, 1600, 1792, 2048, 2688, 3264, 3584, 4096, 4672, 5440, 6528, 8192,
];

/// The kernel's classes.
const KERNEL: [usize; 13] = [8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192];

/// Size in bytes of class `id`, 1 to [`NR_CLASSES`].
pub const fn class_size(id: usize) -> usize {
    if cfg!(target_pointer_width = "32") {
        return KERNEL[id - 1];
    }
    FINE[id - 1]
}

/// Alignment in bytes that every object of class `id` has: the size itself for powers of two, else its lowest set bit
/// up to 64 (slab headers and colours are multiples of what a class promises).
pub const fn class_align(id: usize) -> usize {
    let size = class_size(id);
    let low = size & size.wrapping_neg();
    if low == size || low < 64 { low } else { 64 }
}

/// For each class a bit for each smaller one for which its objects are aligned well enough to pass for.
static STANDS_FOR: [u64; NR_CLASSES + 1] = {
    let mut table = [0; NR_CLASSES + 1];
    let mut id = 1;
    while id <= NR_CLASSES {
        let mut smaller = 1;
        while smaller < id {
            if class_align(smaller) <= class_align(id) {
                table[id] |= 1 << smaller;
            }
            smaller += 1;
        }
        id += 1;
    }
    table
};

/// Whether objects of class `id` may pass for those of class `smaller`, which is a smaller one: they are as aligned.
#[inline(always)]
pub fn stands_for(id: u8, smaller: u8) -> bool {
    STANDS_FOR[id as usize] >> smaller & 1 != 0
}

const fn search(size: usize) -> u8 {
    let mut id = 1;
    while class_size(id) < size {
        id += 1;
    }
    id as u8
}

const TABLE_LEN: usize = MAX_SMALL / 8 + 1;

/// A power of two, so that a mask stands for the check of an index.
const TABLE_ALLOC: usize = TABLE_LEN.next_power_of_two();

const fn table() -> [u8; TABLE_ALLOC] {
    let mut table = [0; TABLE_ALLOC];
    let mut i = 0;
    while i < TABLE_LEN {
        table[i] = if i == 0 { 1 } else { search(i * 8) };
        i += 1;
    }
    table
}

static CLASS_OF: [u8; TABLE_ALLOC] = table();

/// The smallest class that holds `size` bytes, which is at most [`MAX_SMALL`]. Size 0 is served as 1.
#[inline(always)]
pub fn class_of(size: usize) -> u8 {
    let index = (size + 7) >> 3;
    debug_assert!(index < TABLE_LEN);
    // The mask keeps no index that is in range from itself: it only shows that the table is never left.
    CLASS_OF[index & (TABLE_ALLOC - 1)]
}

/// [`class_of`] without a mask.
///
/// # Safety
/// `size` is at most [`MAX_SMALL`].
#[inline(always)]
pub unsafe fn class_of_small(size: usize) -> u8 {
    // SAFETY: the table reaches to the caller's condition.
    unsafe { *CLASS_OF.get_unchecked((size + 7) >> 3) }
}

/// Alignments that a class may have: 8 to [`MAX_SMALL`].
const ALIGNS: usize = MAX_SMALL.ilog2() as usize - 2;

const fn aligned() -> [[u8; NR_CLASSES + 1]; ALIGNS] {
    let mut table = [[0; NR_CLASSES + 1]; ALIGNS];
    let mut shift = 0;
    while shift < ALIGNS {
        let mut id = NR_CLASSES;
        while id > 0 {
            table[shift][id] = if class_align(id) >= 8 << shift {
                id as u8
            } else if id < NR_CLASSES {
                table[shift][id + 1]
            } else {
                0
            };
            id -= 1;
        }
        shift += 1;
    }
    table
}

/// For each alignment, and each class that holds the size, the smallest class that holds it so aligned; 0 where none
/// does. (A search among the classes took half of the time of aligned requests.)
static ALIGNED: [[u8; NR_CLASSES + 1]; ALIGNS] = aligned();

/// The smallest class that holds `size` bytes at `align` (a power of two); `None` where no class does.
#[inline(always)]
pub fn class_aligned(size: usize, align: usize) -> Option<u8> {
    if size > MAX_SMALL {
        return None;
    }
    // A class is a multiple of its alignment.
    let row = ALIGNED.get((align.trailing_zeros() as usize).saturating_sub(3))?;
    // SAFETY: the size is small. The index stays in the row, of which there is one for each class.
    let id = unsafe { *row.get_unchecked(class_of_small(size) as usize) };
    (id != 0).then_some(id)
}

/// The class of a layout, whatever its size; 0 where none serves it. An allocation and its sized free agree by this.
#[inline(always)]
pub fn class_of_layout(size: usize, align: usize) -> u8 {
    if align <= 8 || align == 16 && size >= 16 {
        if size <= MAX_SMALL { class_of(size) } else { 0 }
    } else {
        class_aligned(size, align).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::SlabLayout;
    use super::*;

    // rows: F4
    #[test]
    fn every_size_gets_the_smallest_class_that_holds_it() {
        assert_eq!(class_size(NR_CLASSES), MAX_SMALL);
        for id in 2..=NR_CLASSES {
            assert!(class_size(id) > class_size(id - 1));
        }
        for size in 0..=MAX_SMALL {
            let id = class_of(size) as usize;
            assert!(class_size(id) >= size);
            assert!(id == 1 || class_size(id - 1) < size);
            assert!(size < 16 || class_align(id) >= 16, "size {size}");
        }
    }

    #[test]
    fn objects_stand_for_smaller_ones_that_are_no_more_aligned() {
        for id in 1..=NR_CLASSES as u8 {
            for other in 1..=NR_CLASSES as u8 {
                let aligned = class_align(other.into()) <= class_align(id.into());
                assert_eq!(stands_for(id, other), other < id && aligned, "{id} for {other}");
            }
        }
    }

    #[test]
    fn aligned_classes_hold_size_and_alignment() {
        for shift in 0..=14 {
            let align = 1usize << shift;
            for size in 0..=MAX_SMALL + 1 {
                match class_aligned(size, align) {
                    Some(id) => {
                        assert!(class_size(id as usize) >= size);
                        assert_eq!(class_size(id as usize) % align, 0);
                        assert!(class_align(id as usize) >= align);
                    }
                    None => assert!(size.max(1).next_multiple_of(align) > MAX_SMALL),
                }
            }
        }
    }

    // rows: D14
    #[test]
    fn mean_waste_is_a_twelfth() {
        let waste: f64 = (1..=MAX_SMALL)
            .map(|size| {
                let held = class_size(class_of(size) as usize);
                (held - size) as f64 / held as f64
            })
            .sum();
        assert!(waste / (MAX_SMALL as f64) < 0.09);
    }

    #[test]
    fn slabs_are_full() {
        for id in (1..=NR_CLASSES).filter(|id| class_size(*id) >= 64) {
            let layout = SlabLayout::compute(class_size(id), class_align(id), 0, false, 4).unwrap();
            let left = layout.order.bytes() - layout.objects as usize * class_size(id);
            assert!(left <= layout.order.bytes() / 32, "{layout:?}");
        }
    }
}
