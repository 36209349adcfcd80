//! Tags: what the page-class map says of a page, and the check that `free` makes with it.
//!
//! A tag is a size class in 6 bits and the slab's colour in 2, or the CPUs that its objects are for
//! ([`super::foreign`]). (Pairs that no slab has are of page runs, whose first page alone has a tag: [`super::runs`].)
//! With the tag's row of a small table, whether an address is the start of an object takes one multiplication and no
//! look at the slab: a pointer into the middle of an object never gets into a sheaf, from where it would be handed out
//! again.

use super::cache::STATIC_LAYOUTS;
use super::classes::{NR_CLASSES, class_size};
use super::layout::LINE;
use crate::machine::{MAX_DENSE, OWNERS, TAG_CACHE_BITS, owner};

/// Colours of a size class's slabs.
pub(super) const CLASS_COLOURS: usize = 4;

const CLASS_BITS: u32 = TAG_CACHE_BITS;

/// Size classes up to this one are dense: several objects share a cache line.
pub const LAST_DENSE: u8 = {
    let mut last = 0;
    while class_size(last + 1) < LINE {
        last += 1;
    }
    last as u8
};

const _: () = assert!(NR_CLASSES < 1 << CLASS_BITS && CLASS_COLOURS <= 1 << (8 - CLASS_BITS));
const _: () = {
    assert!(LAST_DENSE as usize <= MAX_DENSE);
    let mut class = 1;
    while class <= LAST_DENSE as usize {
        // One page, whose tag has room for the owner.
        assert!(STATIC_LAYOUTS[class].order.get() == 0 && STATIC_LAYOUTS[class].colours == 1);
        class += 1;
    }
};

/// Whether slabs of cache `id` have owners.
#[inline(always)]
pub const fn is_dense(id: u8) -> bool {
    OWNERS > 1 && id.wrapping_sub(1) < LAST_DENSE
}

/// The owner in the tag of a slab of a dense class.
#[inline(always)]
pub(super) const fn owner_of_tag(tag: u8) -> usize {
    owner((tag >> CLASS_BITS) as usize)
}

/// Whether the objects of a page of `tag` share cache lines with those of another CPU than `cpu`.
#[inline(always)]
pub const fn is_foreign(tag: u8, cpu: usize) -> bool {
    is_dense(class_of_tag(tag)) && owner_of_tag(tag) != owner(cpu)
}

/// The tag of the pages of a slab, of which `colour` is the owner where it is of a dense class.
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
    let dense = is_dense(class as u8);
    tag != 0 && (class == 0 || class > NR_CLASSES || colour as u32 >= STATIC_LAYOUTS[class].colours && !dense)
}

/// What the check needs to know of each tag, a table for each number so that a tag indexes them all as it is.
struct Checks {
    /// Bytes of the slab, less one: slabs are aligned to their size.
    mask: [u32; 256],
    /// A little more than 2³² divided by the object size: multiplied by the size it is 2³² and an excess.
    factor: [u32; 256],
    /// The product for the first object; for a tag that no slab has 1, and all products are 0.
    first: [u32; 256],
    /// As many times the excess as there are objects. 0 for a tag that no slab has.
    limit: [u32; 256],
}

const fn checks() -> Checks {
    let mut checks = Checks { mask: [0; 256], factor: [0; 256], first: [1; 256], limit: [0; 256] };
    let mut class = 1;
    while class <= NR_CLASSES {
        let layout = STATIC_LAYOUTS[class];
        let factor = ((1 << 32) / layout.size as u64) as u32 + 1;
        let excess = factor.wrapping_mul(layout.size);
        // The product of no other offset in the slab is below the limit.
        assert!(factor > 2 * excess * layout.order.bytes() as u32 / layout.size);
        let dense = is_dense(class as u8);
        let mut colour = 0;
        while colour < if dense { OWNERS } else { layout.colours as usize } {
            let tag = tag(class as u8, colour) as usize;
            checks.mask[tag] = layout.order.bytes() as u32 - 1;
            checks.factor[tag] = factor;
            checks.first[tag] = factor.wrapping_mul(layout.offset(if dense { 0 } else { colour }, 0) as u32);
            checks.limit[tag] = excess * layout.objects;
            colour += 1;
        }
        class += 1;
    }
    checks
}

static CHECKS: Checks = checks();

/// The limit of `tag` for a CPU: 0, too, where the slab is another one's. (As a table by CPU it would be another page
/// of constants.)
#[inline(always)]
pub fn limit(owner: usize, tag: u8) -> u32 {
    if is_foreign(tag, owner) { 0 } else { CHECKS.limit[usize::from(tag)] }
}

/// Where `address` is in a page of `tag`, as a number that is below the tag's limit where an object starts there;
/// `None` for a tag that no slab has, which saves `free` of those a section.
///
/// One multiplication, after D. Lemire et al., *Faster remainder by direct computation* (2019): times the factor, the
/// offset of object `i` is `i` times the excess modulo 2³², so that one comparison with the limit finds out both that
/// the offset is a multiple of the size and that it is one of an object. Every other offset, before, between and behind
/// the objects, gives more.
#[inline(always)]
pub fn place(tag: u8, address: usize) -> Option<u32> {
    let tag = tag as usize;
    let offset = address as u32 & CHECKS.mask[tag];
    offset.wrapping_mul(CHECKS.factor[tag]).checked_sub(CHECKS.first[tag])
}

/// Whether an object starts at `address` in a page of `tag`, whosever it is.
#[inline(always)]
pub fn starts_object(tag: u8, address: usize) -> bool {
    place(tag, address).is_some_and(|place| place < CHECKS.limit[tag as usize])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::PAGE_SIZE;

    #[test]
    fn objects_of_other_owners_do_not_pass() {
        for (class, cpu) in (1..=NR_CLASSES as u8).flat_map(|class| (0..OWNERS).map(move |cpu| (class, cpu))) {
            for owner in 0..if is_dense(class) { OWNERS } else { 1 } {
                let tag = tag(class, owner);
                let first = STATIC_LAYOUTS[usize::from(class)].offset(0, 0);
                let own = place(tag, first).unwrap() < limit(cpu, tag);
                assert_eq!(own, !is_dense(class) || owner == cpu);
                assert_eq!(is_foreign(tag, cpu + 8 * OWNERS), !own);
                assert!(starts_object(tag, first) && !starts_object(tag, first + 1));
            }
        }
    }

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
