//! The shape of a cache's slabs: order, number of objects, colours, and where the free map lies.
//!
//! The free map is never inside the objects: nothing in freed memory can corrupt it, a double free is one bit test, and
//! a constructed object keeps its state while it is free.

use crate::machine::SHEAF_SLOTS;
use crate::types::{Order, PAGE_SIZE};

/// Where a slab's free map lies. A set bit is a free object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapPlace {
    /// Word `i` in the descriptor of the slab's page `i`: 64 bits a page are enough for objects of 64 bytes and more.
    Descriptor,
    /// In a header at the start of the slab: smaller objects.
    OnSlab,
    /// In memory of its own, whose address the head's descriptor keeps: smaller objects that want the whole page.
    OffSlab,
}

/// A slab's shape. Sizes and offsets are bytes.
#[derive(Clone, Copy, Debug)]
pub struct SlabLayout {
    /// Distance from one object to the next.
    pub size: u32,
    /// 2³² divided by the size, rounded up.
    pub(super) reciprocal: u32,
    /// What the user asked for.
    pub object_size: u32,
    /// Alignment of every object.
    pub align: u32,
    /// Offset of the first object at colour 0.
    pub first: u32,
    /// Objects in a slab.
    pub objects: u32,
    /// Number of colours, at least 1: the left-over in units of [`SlabLayout::colour_step`].
    pub colours: u32,
    /// Distance from one colour to the next: a cache line, or the alignment where that is larger.
    pub colour_step: u32,
    /// Pages of a slab.
    pub order: Order,
    /// Where the free map lies.
    pub map: MapPlace,
    /// Objects that a sheaf of this cache holds at most.
    pub capacity: u16,
    /// Empty slabs kept before further ones go back to the page allocator.
    pub min_partial: u16,
}

/// Which distances behind the start of a slab's first object are starts of objects.
#[derive(Clone, Copy)]
pub struct Starts {
    /// As in [`SlabLayout`].
    reciprocal: u32,
    /// The last one, and a byte.
    span: usize,
}

impl Starts {
    /// [`SlabLayout::nth`], with one multiplication.
    ///
    /// The reciprocal times the size is 2³² and an excess below the size. So the product for object `i` is `i` times
    /// 2³² and `i` times the excess, which is less than the reciprocal: with several objects a slab is not larger than
    /// 32 KiB. What is not a start has at least the reciprocal more.
    #[inline(always)]
    pub const fn nth(self, distance: usize) -> Option<u32> {
        if distance >= self.span {
            return None;
        }
        let product = distance as u64 * self.reciprocal as u64;
        if (product as u32) < self.reciprocal { Some((product >> 32) as u32) } else { None }
    }
}

/// A cache line, the unit of colours.
pub(super) const LINE: usize = 64;
/// Slabs are at most this order unless an object needs more. (Rejected: at least four pages for objects whose map lies
/// with them, of which a page is just one sheaf's. The workload `tree` takes 0.066 s in place of 0.070, but
/// `random-100k` and `graph` have 5 % more resident, and `fragmentation` 2 % more and takes a twelfth longer. Nor as
/// few pages as leave little over, whatever the number of objects: after the peak of `idle` 27.4 MiB stay in place of
/// 31.8, but `random-100k` has 2 MiB more in most runs; tails that go back do the same.)
const MAX_SLAB_ORDER: u8 = 3;
/// Fewer objects than this in a slab make its bookkeeping too frequent (until [`MAX_SLAB_ORDER`]).
const MIN_OBJECTS: usize = 8;
/// Bytes that a sheaf's objects should not exceed. (Rejected: 128 KiB of those larger than a page, of which a sheaf
/// holds 8 to 14. 50 of 4 to 8 KiB in turn take 0.73 of the time, 0.76 in 96 KiB and 0.6 in 160, as one call in fifteen
/// takes a slow path; `random-100k` 0.97. Random live sets of 20 000 to 200 000 have as much resident on average, 2 %
/// more in 256 KiB, but `random-100k` itself has a huge page more.)
const SHEAF_TARGET: usize = 64 << 10;

const fn round_up(n: usize, to: usize) -> usize {
    n.div_ceil(to) * to
}

const fn max(a: usize, b: usize) -> usize {
    if a > b { a } else { b }
}

impl SlabLayout {
    /// The layout of a cache that does not exist: all zeroes.
    pub const NONE: SlabLayout = SlabLayout {
        size: 0,
        reciprocal: 0,
        object_size: 0,
        align: 0,
        first: 0,
        objects: 0,
        colours: 0,
        colour_step: 0,
        order: Order::ZERO,
        map: MapPlace::Descriptor,
        capacity: 0,
        min_partial: 0,
    };

    /// The layout for objects of `object_size` bytes at `align` (a power of two), with `extra` bytes behind each for
    /// the allocator's own use. At most `max_colours` (2 to 256) colours. `None` where an object does not fit into the
    /// largest block.
    pub const fn compute(
        object_size: usize,
        align: usize,
        extra: usize,
        off_slab: bool,
        max_colours: usize,
    ) -> Option<SlabLayout> {
        let align = max(align, size_of::<usize>());
        if object_size > Order::MAX.bytes() || align > PAGE_SIZE * 2 {
            return None;
        }
        let size = round_up(max(object_size + extra, size_of::<usize>()), align);
        let map = if size >= LINE {
            MapPlace::Descriptor
        } else if off_slab {
            MapPlace::OffSlab
        } else {
            MapPlace::OnSlab
        };
        // The kernel's calculate_order: the smallest order with at most 1/32 (there 1/16) left over, then twice as
        // much, and so on. (Of 320, 384, 640 and 768 bytes that saves 4 %, as each of them leaves just 1/16 of a page;
        // no other size class changes.)
        let mut fraction = 32;
        while fraction >= 1 {
            let mut order = 0;
            while order <= Order::MAX.get() {
                let Some(o) = Order::new(order) else { return None };
                let bytes = o.bytes();
                let (first, objects) = fit(bytes, size, align, map);
                let wants_more = objects < MIN_OBJECTS && order < MAX_SLAB_ORDER;
                let too_big = order > MAX_SLAB_ORDER && objects > 1;
                if objects > 0 && !wants_more && !too_big {
                    let left = bytes - first - objects * size;
                    if left * fraction <= bytes || fraction == 1 {
                        return Some(
                            SlabLayout::with(o, size, object_size, align, first, objects, map).coloured(max_colours),
                        );
                    }
                }
                order += 1;
            }
            fraction /= 2;
        }
        None
    }

    const fn with(
        order: Order,
        size: usize,
        object_size: usize,
        align: usize,
        first: usize,
        objects: usize,
        map: MapPlace,
    ) -> SlabLayout {
        let capacity = SHEAF_TARGET / size;
        let capacity = if capacity > SHEAF_SLOTS - 1 {
            SHEAF_SLOTS - 1
        } else if capacity < 4 {
            4
        } else {
            capacity
        };
        let log2 = (usize::BITS - size.leading_zeros() - 1) / 2;
        SlabLayout {
            size: size as u32,
            reciprocal: u32::MAX / size as u32 + 1,
            object_size: object_size as u32,
            align: align as u32,
            first: first as u32,
            objects: objects as u32,
            colours: 1,
            colour_step: LINE as u32,
            order,
            map,
            capacity: capacity as u16,
            min_partial: if log2 < 5 {
                5
            } else if log2 > 10 {
                10
            } else {
                log2 as u16
            },
        }
    }

    /// Spreads up to `most` colours over the left-over.
    const fn coloured(mut self, most: usize) -> SlabLayout {
        let step = max(LINE, self.align as usize);
        let left = self.order.bytes() - self.first as usize - self.objects as usize * self.size as usize;
        let colours = left / step + 1;
        if colours > most {
            self.colours = most as u32;
            self.colour_step = (left / (most - 1) / step * step) as u32;
        } else {
            self.colours = colours as u32;
            self.colour_step = step as u32;
        }
        self
    }

    /// Words of 64 bits in the free map.
    #[inline(always)]
    pub const fn map_words(&self) -> u32 {
        match self.map {
            MapPlace::Descriptor => self.order.pages(),
            MapPlace::OnSlab | MapPlace::OffSlab => self.objects.div_ceil(64),
        }
    }

    /// Offset of object `index` in a slab of `colour`.
    #[inline(always)]
    pub const fn offset(&self, colour: usize, index: u32) -> usize {
        self.first as usize + colour * self.colour_step as usize + index as usize * self.size as usize
    }

    /// The object at `offset` bytes into a slab of `colour`; `None` where no object starts.
    #[inline(always)]
    pub const fn index(&self, colour: usize, offset: usize) -> Option<u32> {
        self.nth(offset.wrapping_sub(self.offset(colour, 0)))
    }

    /// The object that starts `distance` bytes behind the start of the first; `None` where none does. Any distance will
    /// do.
    #[inline(always)]
    pub const fn nth(&self, distance: usize) -> Option<u32> {
        self.starts().nth(distance)
    }

    /// What tells the starts of objects.
    #[inline(always)]
    pub const fn starts(&self) -> Starts {
        Starts { reciprocal: self.reciprocal, span: (self.objects as usize).saturating_sub(1) * self.size as usize + 1 }
    }

    /// Which word of the free map holds object `index`, and its bit. Descriptor maps fill each page's word before the
    /// next.
    #[inline(always)]
    pub const fn bit(&self, index: u32) -> (u32, u64) {
        (index / 64, 1 << (index % 64))
    }

    /// The free bits of word `word` of an empty slab.
    pub const fn all_free(&self, word: u32) -> u64 {
        let before = word * 64;
        if self.objects <= before {
            0
        } else if self.objects - before >= 64 {
            u64::MAX
        } else {
            (1 << (self.objects - before)) - 1
        }
    }
}

/// Offset of the first object and number of objects in `bytes`.
const fn fit(bytes: usize, size: usize, align: usize, map: MapPlace) -> (usize, usize) {
    match map {
        MapPlace::Descriptor | MapPlace::OffSlab => (0, bytes / size),
        MapPlace::OnSlab => {
            let mut objects = bytes / size;
            loop {
                let first = round_up(objects.div_ceil(64) * 8, max(align, 16));
                if first + objects * size <= bytes {
                    return (first, objects);
                }
                objects -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::classes::{NR_CLASSES, class_align, class_size};
    use super::*;

    // rows: G17 D14
    #[test]
    fn classes_waste_little_and_stay_aligned() {
        for id in 1..=NR_CLASSES {
            let layout = SlabLayout::compute(class_size(id), class_align(id), 0, false, 4).unwrap();
            let used = layout.objects as usize * layout.size as usize;
            assert_eq!(layout.size as usize, class_size(id));
            assert!((layout.order.bytes() - used) * 8 <= layout.order.bytes(), "class {id}: {layout:?}");
            assert!(layout.order.get() <= MAX_SLAB_ORDER);
            for colour in 0..layout.colours as usize {
                for index in 0..layout.objects {
                    let offset = layout.offset(colour, index);
                    assert_eq!(offset % class_align(id), 0);
                    assert!(offset + layout.size as usize <= layout.order.bytes());
                    assert_eq!(layout.index(colour, offset), Some(index));
                    assert_eq!(layout.index(colour, offset + 4), None);
                }
            }
            if layout.map == MapPlace::Descriptor {
                assert!(layout.objects <= 64 * layout.order.pages());
            } else {
                assert!(layout.map_words() * 8 <= layout.first);
            }
            let bits: u32 = (0..layout.map_words()).map(|w| layout.all_free(w).count_ones()).sum();
            assert_eq!(bits, layout.objects);
        }
    }

    #[test]
    fn odd_caches_fit() {
        for size in [1, 7, 9, 33, 63, 65, 100, 333, 4095, 4097, 9000, 70_000, 1 << 20] {
            for shift in 0..=12 {
                for off in [false, true] {
                    let layout = SlabLayout::compute(size, 1 << shift, 8, off, 256).unwrap();
                    assert!(layout.objects >= 1);
                    let last = layout.offset(layout.colours as usize - 1, layout.objects - 1);
                    assert!(last + layout.size as usize <= layout.order.bytes());
                    assert_eq!(last % (1 << shift), 0);
                    let size = layout.size as usize;
                    for index in 0..layout.objects + 2 {
                        let start = index as usize * size;
                        assert_eq!(layout.nth(start), (index < layout.objects).then_some(index), "{layout:?}");
                        for beside in [1, 7, size / 2, size - 8, size - 1].into_iter().filter(|d| (1..size).contains(d))
                        {
                            assert_eq!(layout.nth(start + beside), None, "{layout:?}, {beside} behind {index}");
                        }
                    }
                }
            }
        }
        assert!(SlabLayout::compute(5 << 20, 8, 0, false, 256).is_none());
    }
}
