//! Tags: what the page-class map says of a page, and the check that `free` makes with it.
//!
//! A tag is a size class in 6 bits and the slab's colour in 2. (Pairs that no slab has are of page runs, whose first page
//! alone has a tag: [`super::runs`].) With the tag's row of a small table, whether an address is the
//! start of an object takes one multiplication and no look at the slab: a pointer into the middle of an object never
//! gets into a sheaf, from where it would be handed out again.

use super::cache::STATIC_LAYOUTS;
use super::classes::NR_CLASSES;

/// Colours of a size class's slabs.
pub(super) const CLASS_COLOURS: usize = 4;

const CLASS_BITS: u32 = 6;

const _: () = assert!(NR_CLASSES < 1 << CLASS_BITS && CLASS_COLOURS <= 1 << (8 - CLASS_BITS));

/// The tag of the pages of a slab.
pub(super) const fn tag(class: u8, colour: usize) -> u8 {
    class | (colour as u8) << CLASS_BITS
}

/// The size class in a tag; 0 for tag 0, a page of no class.
#[inline(always)]
pub const fn class_of_tag(tag: u8) -> u8 {
    tag & ((1 << CLASS_BITS) - 1)
}

/// Whether no slab's pages have this tag, nor those of no class: it may be one of runs.
pub(super) const fn is_spare(tag: u8) -> bool {
    let (class, colour) = (class_of_tag(tag) as usize, tag >> CLASS_BITS);
    tag != 0 && (class == 0 || class > NR_CLASSES || colour as u32 >= STATIC_LAYOUTS[class].colours)
}

/// What the check needs to know of each tag, a table for each number so that a tag indexes them all as it is.
struct Checks {
    /// Bytes of the slab, less one: slabs are aligned to their size.
    mask: [u32; 256],
    /// A little more than 2³² divided by the object size: multiplied by the size it is 2³² and an excess.
    factor: [u32; 256],
    /// The product for the first object.
    first: [u32; 256],
    /// As many times the excess as there are objects. 0 for a tag that no slab has.
    limit: [u32; 256],
}

const fn checks() -> Checks {
    let mut checks = Checks { mask: [0; 256], factor: [0; 256], first: [0; 256], limit: [0; 256] };
    let mut class = 1;
    while class <= NR_CLASSES {
        let layout = STATIC_LAYOUTS[class];
        let factor = ((1 << 32) / layout.size as u64) as u32 + 1;
        let excess = factor.wrapping_mul(layout.size);
        // The product of no other offset in the slab is below the limit.
        assert!(factor > 2 * excess * layout.order.bytes() as u32 / layout.size);
        let mut colour = 0;
        while colour < layout.colours as usize {
            let tag = tag(class as u8, colour) as usize;
            checks.mask[tag] = layout.order.bytes() as u32 - 1;
            checks.factor[tag] = factor;
            checks.first[tag] = factor.wrapping_mul(layout.offset(colour, 0) as u32);
            checks.limit[tag] = excess * layout.objects;
            colour += 1;
        }
        class += 1;
    }
    checks
}

static CHECKS: Checks = checks();

/// Whether an object starts at `address` in a page of `tag`.
///
/// One multiplication, after D. Lemire et al., *Faster remainder by direct computation* (2019): times the factor, the offset of object `i`
/// is `i` times the excess modulo 2³², so that one comparison with the limit finds out both that the offset is a multiple of the
/// size and that it is one of an object. Every other offset, before, between and behind the objects, gives more.
#[inline(always)]
pub fn starts_object(tag: u8, address: usize) -> bool {
    let tag = tag as usize;
    let offset = address as u32 & CHECKS.mask[tag];
    offset.wrapping_mul(CHECKS.factor[tag]).wrapping_sub(CHECKS.first[tag]) < CHECKS.limit[tag]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::PAGE_SIZE;

    #[test]
    fn only_starts_of_objects_pass() {
        for (class, layout) in STATIC_LAYOUTS.iter().enumerate().take(NR_CLASSES + 1).skip(1) {
            for colour in 0..layout.colours as usize {
                let tag = tag(class as u8, colour);
                assert_eq!(class_of_tag(tag) as usize, class);
                for offset in 0..layout.order.bytes() {
                    let base = layout.order.bytes() * 5;
                    assert_eq!(starts_object(tag, base + offset), layout.index(colour, offset).is_some());
                }
            }
        }
        let none = (0..=255).filter(|tag| *tag == 0 || is_spare(*tag));
        none.for_each(|tag| (0..PAGE_SIZE).for_each(|address| assert!(!starts_object(tag, address), "{tag}")));
    }
}
