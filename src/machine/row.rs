//! What a section does to a row, for machines where it is ordinary code that has the row to itself.
#![allow(unsafe_code)]

use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};

use super::{ROW_WORDS, SHEAF_BYTES, Word};

/// The words of a row.
pub(super) type Words = [usize; ROW_WORDS];

/// Takes the top object of the main sheaf of `cache`; null where there is none.
///
/// # Safety
/// The words name valid sheaves.
pub(super) unsafe fn pop(row: &mut Words, cache: u8) -> *mut u8 {
    let word = &mut row[Word::Main(cache).index()];
    // SAFETY: the word points at a slot of a valid sheaf, where the sentinel stops the descent.
    let object = unsafe { with_exposed_provenance::<usize>(*word).read() };
    if object != 0 {
        *word -= size_of::<usize>();
    }
    with_exposed_provenance_mut(object)
}

/// Puts `object` on the main sheaf of `cache`; false where that is full.
///
/// # Safety
/// As for [`pop`].
pub(super) unsafe fn push(row: &mut Words, cache: u8, object: *mut u8) -> bool {
    let word = &mut row[Word::Main(cache).index()];
    let top = *word + size_of::<usize>();
    if top.is_multiple_of(SHEAF_BYTES) {
        return false;
    }
    // SAFETY: `top` is a slot of the same valid sheaf, which the row owns.
    unsafe { with_exposed_provenance_mut::<usize>(top).write(object.expose_provenance()) };
    *word = top;
    true
}

/// Changes a word from `old` to `new`; false where it is not `old`.
pub(super) fn replace(row: &mut Words, word: Word, old: usize, new: usize) -> bool {
    let now = &mut row[word.index()];
    let same = *now == old;
    if same {
        *now = new;
    }
    same
}
