//! What a section does to a row, for machines where it is ordinary code that has the row to itself.
#![allow(unsafe_code)]

use core::ptr::{null_mut, with_exposed_provenance, with_exposed_provenance_mut};

use super::{ROW_WORDS, RUN_SHEAF_BYTES, SHEAF_BYTES, Word};

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

/// [`pop`] that leaves the object, and answers null, where its first word is not `key`; or, if `below` and there is
/// one, that of the object below it.
///
/// # Safety
/// As for [`pop`].
pub(super) unsafe fn pop_marked(row: &mut Words, cache: u8, key: usize, below: bool) -> *mut u8 {
    let top = with_exposed_provenance::<usize>(row[Word::Main(cache).index()]);
    // SAFETY: the word points at a slot of a valid sheaf; an object in it is nobody's, so its word can be read.
    unsafe {
        let mut object = top.read();
        if below && object != 0 {
            let next = top.sub(1).read();
            object = if next != 0 { next } else { object };
        }
        let marked = object != 0 && with_exposed_provenance::<usize>(object).read() == key;
        if marked { pop(row, cache) } else { null_mut() }
    }
}

/// Puts `object` on the main sheaf of `cache`; false where that is full.
///
/// # Safety
/// As for [`pop`].
pub(super) unsafe fn push(row: &mut Words, cache: u8, object: *mut u8) -> bool {
    // SAFETY: the caller's condition.
    unsafe { push_within(row, cache, object, SHEAF_BYTES) }
}

/// [`push`] on a sheaf of page runs.
///
/// # Safety
/// As for [`pop`].
pub(super) unsafe fn push_run(row: &mut Words, cache: u8, run: *mut u8) -> bool {
    // SAFETY: the caller's condition.
    unsafe { push_within(row, cache, run, RUN_SHEAF_BYTES) }
}

unsafe fn push_within(row: &mut Words, cache: u8, object: *mut u8, bytes: usize) -> bool {
    let word = &mut row[Word::Main(cache).index()];
    let top = *word + size_of::<usize>();
    if top.is_multiple_of(bytes) {
        return false;
    }
    // SAFETY: `top` is a slot of the same valid sheaf, which the row owns.
    unsafe { with_exposed_provenance_mut::<usize>(top).write(object.expose_provenance()) };
    *word = top;
    true
}

/// [`push`] that writes `key` to the object's first word before; false also where `object` lies on top already.
///
/// # Safety
/// As for [`push`].
pub(super) unsafe fn push_marked(row: &mut Words, cache: u8, object: *mut u8, key: usize) -> bool {
    let top = with_exposed_provenance::<usize>(row[Word::Main(cache).index()]);
    // SAFETY: the word points at a slot of a valid sheaf; the rest is the caller's condition.
    unsafe {
        let pushed = top.read() != object.addr() && push(row, cache, object);
        if pushed {
            object.cast::<usize>().write(key);
        }
        pushed
    }
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
