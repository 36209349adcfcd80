//! Tags: what the page-class map says of a page, and the check that `free` makes with it.
//!
//! A tag is a size class in 6 bits and the slab's colour in 2. With the tag's row of a small table, whether an address is the
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

/// One tag's numbers.
#[derive(Clone, Copy)]
struct Row {
    /// Bytes of the slab, less one: slabs are aligned to their size.
    mask: u32,
    /// Offset of the first object.
    start: u32,
    /// 2³² divided by the object size, rounded up.
    reciprocal: u32,
    /// Bytes from the first object to the end of the last.
    span: u32,
}

const fn rows() -> [Row; 256] {
    let mut rows = [Row { mask: 0, start: 0, reciprocal: 0, span: 0 }; 256];
    let mut class = 1;
    while class <= NR_CLASSES {
        let layout = STATIC_LAYOUTS[class];
        let mut colour = 0;
        while colour < layout.colours as usize {
            rows[tag(class as u8, colour) as usize] = Row {
                mask: layout.order.bytes() as u32 - 1,
                start: layout.offset(colour, 0) as u32,
                reciprocal: u32::MAX / layout.size + 1,
                span: layout.objects * layout.size,
            };
            colour += 1;
        }
        class += 1;
    }
    rows
}

static ROWS: [Row; 256] = rows();

/// Whether an object starts at `address` in a page of `tag`.
///
/// Divisibility by one multiplication: D. Lemire et al., *Faster remainder by direct computation* (2019). Exact for
/// offsets below 2¹⁹ and sizes to 2¹³.
#[inline(always)]
pub fn starts_object(tag: u8, address: usize) -> bool {
    let row = &ROWS[tag as usize];
    let offset = (address as u32 & row.mask).wrapping_sub(row.start);
    // An offset before the first object wraps to a huge one.
    offset < row.span && offset.wrapping_mul(row.reciprocal) < row.reciprocal
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(!starts_object(0, 64));
    }
}
