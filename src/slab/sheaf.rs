//! Sheaves: fixed arrays of object pointers (Bonwick's magazines, 2001; the kernel's sheaves, 6.18).
//!
//! A sheaf is [`SHEAF_BYTES`] long, one of page runs [`RUN_SHEAF_BYTES`], and aligned to its size. Its objects fill
//! slots from a *sentinel* slot upwards; the sentinel reads 0. A sheaf is named by the address of its top slot: the top
//! slot reading 0 is "empty", the slot after it crossing the alignment is "full", so neither needs a count or a compare
//! with a limit. A smaller capacity is the sentinel placed higher.
#![allow(unsafe_code)]

use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::cache::{RUN_SHEAF_CACHE, SHEAF_CACHE};
use crate::machine::{RUN_SHEAF_BYTES, SHEAF_BYTES, no_sheaf};

const SLOT: usize = size_of::<usize>();

/// In place of a capacity: the sheaf is one of page runs. Those of a class differ: the first slot from the top down
/// that reads 0 is the sentinel.
pub const OF_RUNS: u16 = 0;

/// A sheaf that nobody else can reach: it is in no row and no barn.
///
/// Dropping one leaks its objects; it is installed in a row, kept in a barn, or flushed and freed.
#[derive(Debug)]
#[must_use]
pub struct Sheaf {
    top: usize,
    capacity: u16,
    /// [`OF_RUNS`] for a sheaf of page runs, else its capacity.
    kind: u16,
}

impl Sheaf {
    /// Takes over the sheaf whose top slot is `word`; `None` for [`no_sheaf`].
    ///
    /// # Safety
    /// `word` came out of a row (by a successful `replace` or a drain) or [`Sheaf::into_word`], and is given up there.
    #[inline]
    pub unsafe fn from_word(word: usize, capacity: u16) -> Option<Sheaf> {
        // SAFETY: the caller's condition.
        (word != no_sheaf()).then(|| Sheaf { top: word, capacity: unsafe { resolved(word, capacity) }, kind: capacity })
    }

    /// Makes an empty sheaf of `memory`.
    ///
    /// # Safety
    /// `memory` is [`SHEAF_BYTES`] long, aligned to as much, writable and the caller's; `capacity` is less than the
    /// slots that it has.
    pub unsafe fn new(memory: *mut u8, capacity: u16) -> Sheaf {
        // SAFETY: the caller's condition.
        unsafe { Sheaf::within(memory, capacity, capacity) }
    }

    /// Makes an empty sheaf of page runs.
    ///
    /// # Safety
    /// As for [`Sheaf::new`], with [`RUN_SHEAF_BYTES`].
    pub unsafe fn of_runs(memory: *mut u8, capacity: u16) -> Sheaf {
        // SAFETY: the caller's condition.
        unsafe { Sheaf::within(memory, capacity, OF_RUNS) }
    }

    /// # Safety
    /// As for [`Sheaf::new`], with as many bytes as sheaves of that `kind` have.
    unsafe fn within(memory: *mut u8, capacity: u16, kind: u16) -> Sheaf {
        let sheaf = Sheaf { top: memory.expose_provenance() + sentinel(capacity, kind), capacity, kind };
        // SAFETY: the sentinel slot lies in `memory`.
        unsafe { sheaf.write(sheaf.top, 0) };
        sheaf
    }

    /// The memory of one that was emptied, for one of any capacity.
    pub fn into_memory(self) -> *mut u8 {
        ptr::with_exposed_provenance_mut(self.base())
    }

    /// The word that names it in a row; the sheaf is given up to the row.
    pub fn into_word(self) -> usize {
        self.top
    }

    /// The word that would name it.
    pub fn word(&self) -> usize {
        self.top
    }

    /// [`OF_RUNS`] for a sheaf of page runs, else its capacity.
    pub fn kind(&self) -> u16 {
        self.kind
    }

    /// Objects that it holds at most.
    pub fn capacity(&self) -> u16 {
        self.capacity
    }

    /// Objects in it.
    pub fn len(&self) -> usize {
        (self.top - self.bottom()) / SLOT
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.top == self.bottom()
    }

    /// Whether it holds as many as it can.
    pub fn is_full(&self) -> bool {
        is_full(self.top, self.kind)
    }

    /// Takes the top object out.
    pub fn pop(&mut self) -> Option<*mut u8> {
        if self.is_empty() {
            return None;
        }
        // SAFETY: the top slot is above the sentinel, in the sheaf.
        let object = unsafe { self.read(self.top) };
        self.top -= SLOT;
        Some(ptr::with_exposed_provenance_mut(object))
    }

    /// Puts an object on top; gives it back where the sheaf is full.
    pub fn push(&mut self, object: *mut u8) -> Result<(), *mut u8> {
        if self.is_full() {
            return Err(object);
        }
        self.top += SLOT;
        // SAFETY: the sheaf was not full, so the new top slot is inside.
        unsafe { self.write(self.top, object.expose_provenance()) };
        Ok(())
    }

    /// Moves as many objects as `to` has room for, `n` at most, from the bottom of this one on top of it.
    pub fn move_bottom(&mut self, n: usize, to: &mut Sheaf) {
        let all = self.drain();
        let (moved, left) = all.split_at(n.min(all.len()).min(to.capacity as usize - to.len()));
        to.append(moved);
        let (from, n) = (moved.len(), left.len());
        all.copy_within(from.., 0);
        self.top += n * SLOT;
    }

    /// Moves the top `n` objects, which it has, to `to`, which is empty.
    pub fn move_top(&mut self, n: usize, to: &mut Sheaf) {
        let all = self.drain();
        let left = all.len() - n;
        to.append(&all[left..]);
        self.top += left * SLOT;
    }

    /// Puts objects on top, which it has room for.
    fn append(&mut self, objects: &[usize]) {
        for object in objects {
            self.top += SLOT;
            // SAFETY: there is room, so the new top slot is inside.
            unsafe { self.write(self.top, *object) };
        }
    }

    /// All objects, bottom first, and none of them any more in the sheaf.
    pub fn drain(&mut self) -> &mut [usize] {
        let len = self.len();
        let first = self.bottom() + SLOT;
        self.top = self.bottom();
        // SAFETY: slots `first` to the old top are in the sheaf, which is exclusively borrowed.
        unsafe { core::slice::from_raw_parts_mut(ptr::with_exposed_provenance_mut(first), len) }
    }

    /// Lets `fill` write up to `want` objects into the empty slots, and takes in as many as it says. They come out
    /// again last one first.
    pub fn fill(&mut self, want: usize, fill: impl FnOnce(&mut [usize]) -> usize) {
        debug_assert!(self.is_empty());
        let want = want.min(self.capacity as usize);
        let first = self.bottom() + SLOT;
        // SAFETY: the slots above the sentinel are in the sheaf and initialised to something (memory of the page
        // allocator is always readable); it is exclusively borrowed.
        let slots: &mut [usize] =
            unsafe { core::slice::from_raw_parts_mut(ptr::with_exposed_provenance_mut(first), want) };
        self.top += fill(slots) * SLOT;
    }

    /// Keeps `link` in the sentinel slot while the sheaf lies in a barn.
    pub(super) fn set_link(&mut self, link: usize) {
        // SAFETY: the sentinel slot is in the sheaf.
        unsafe { self.write(self.bottom(), link) };
    }

    /// The kept link; the sentinel reads 0 again.
    pub(super) fn take_link(&mut self) -> usize {
        let bottom = self.bottom();
        // SAFETY: as in `set_link`.
        unsafe {
            let link = self.read(bottom);
            self.write(bottom, 0);
            link
        }
    }

    fn base(&self) -> usize {
        self.top & !(bytes(self.kind) - 1)
    }

    fn bottom(&self) -> usize {
        self.base() + sentinel(self.capacity, self.kind)
    }

    /// # Safety
    /// `slot` is the address of a slot of this sheaf.
    unsafe fn read(&self, slot: usize) -> usize {
        // SAFETY: the caller's condition, and the sheaf is this thread's alone.
        unsafe { ptr::read(ptr::with_exposed_provenance(slot)) }
    }

    /// # Safety
    /// As for `read`.
    unsafe fn write(&self, slot: usize, value: usize) {
        // SAFETY: as in `read`.
        unsafe { ptr::write(ptr::with_exposed_provenance_mut(slot), value) }
    }
}

/// Bytes of a sheaf of that kind.
const fn bytes(kind: u16) -> usize {
    if kind == OF_RUNS { RUN_SHEAF_BYTES } else { SHEAF_BYTES }
}

/// Whether cache `id` is that of sheaves' memory.
pub const fn holds_sheaves(id: u8) -> bool {
    id == SHEAF_CACHE || id == RUN_SHEAF_CACHE
}

/// Offset of the sentinel slot in a sheaf of that capacity and `kind`.
const fn sentinel(capacity: u16, kind: u16) -> usize {
    bytes(kind) - (1 + capacity as usize) * SLOT
}

/// Whether the sheaf named `word`, whose capacity is `capacity`, is full ([`no_sheaf`] is).
pub fn is_full(word: usize, capacity: u16) -> bool {
    (word + SLOT).is_multiple_of(bytes(capacity))
}

/// Number of objects in the sheaf named `word`, whose capacity is `capacity`; any, where it is one [`OF_RUNS`] and
/// somebody else changes the sheaf.
///
/// # Safety
/// `word` was in a row or a barn.
#[inline]
pub unsafe fn len(word: usize, capacity: u16) -> usize {
    if word == no_sheaf() {
        return 0;
    }
    // SAFETY: the caller's condition.
    let sentinel = sentinel(unsafe { resolved(word, capacity) }, capacity);
    (word % bytes(capacity) - sentinel) / SLOT
}

/// The capacity of the sheaf named `word`, which may be one [`OF_RUNS`].
///
/// # Safety
/// `word` was in a row or a barn: it names a slot of a sheaf, whose memory can be read even if it is none any more (and
/// was given back: then a page fault makes it zeros, and who took it to be a sheaf's fails to replace the word).
#[inline]
unsafe fn resolved(word: usize, capacity: u16) -> u16 {
    // SAFETY: the caller's condition.
    if capacity == OF_RUNS { unsafe { look_up(word) } } else { capacity }
}

/// # Safety
/// As for [`resolved`].
#[cold]
#[inline(never)]
unsafe fn look_up(word: usize) -> u16 {
    // SAFETY: the slots from the sheaf's first one to its top are its memory. Others may write to them, where it is not
    // the caller's.
    let read = |slot| unsafe { AtomicUsize::from_ptr(ptr::with_exposed_provenance_mut(slot)) }.load(Relaxed);
    let mut slot = word;
    while !slot.is_multiple_of(RUN_SHEAF_BYTES) && read(slot) != 0 {
        slot -= SLOT;
    }
    ((RUN_SHEAF_BYTES - slot % RUN_SHEAF_BYTES) / SLOT - 1) as u16
}

/// The objects of the sheaf named `word`, bottom first.
///
/// # Safety
/// The sheaf is valid and held still (a drained row, a barn under its lock).
pub unsafe fn objects<'a>(word: usize, capacity: u16) -> &'a [usize] {
    // SAFETY: the caller's condition.
    let n = unsafe { len(word, capacity) };
    // SAFETY: the `n` slots up to `word` belong to the sheaf.
    unsafe { core::slice::from_raw_parts(ptr::with_exposed_provenance(word - (n.max(1) - 1) * SLOT), n) }
}

/// The link kept in a sheaf that lies in a barn.
pub(super) fn link(word: usize, capacity: u16) -> usize {
    let bottom = (word & !(bytes(capacity) - 1)) + sentinel(capacity, capacity);
    // SAFETY: the barn's lock is held by whoever walks its stack, so the sheaf stays and its sentinel slot is readable.
    unsafe { ptr::read(ptr::with_exposed_provenance(bottom)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::SHEAF_SLOTS;

    #[repr(C, align(4096))]
    struct Memory([u8; SHEAF_BYTES]);

    /// Of an empty sheaf.
    fn halves_keep_their_order(sheaf: &mut Sheaf) {
        let (mut memory, capacity) = (Memory([0; SHEAF_BYTES]), sheaf.capacity as usize);
        // SAFETY: as below.
        let mut other = unsafe { Sheaf::within(memory.0.as_mut_ptr(), sheaf.capacity, sheaf.kind) };
        let numbers = |range: core::ops::RangeInclusive<usize>| range.map(|i| i * 8).collect::<std::vec::Vec<_>>();
        for i in 1..=capacity {
            sheaf.push(ptr::without_provenance_mut(i * 8)).unwrap();
        }
        let half = capacity / 2;
        sheaf.move_bottom(half, &mut other);
        assert_eq!((sheaf.len(), other.len()), (capacity - half, half));
        // SAFETY: both are ours.
        unsafe {
            assert_eq!(objects(sheaf.word(), sheaf.kind()), numbers(half + 1..=capacity));
            assert_eq!(objects(other.word(), sheaf.kind()), numbers(1..=half));
        }
        sheaf.move_bottom(capacity, &mut other);
        assert!(sheaf.is_empty() && other.is_full());
        other.move_top(1, sheaf);
        assert_eq!((sheaf.pop().map(|object| object.addr()), other.len()), (Some(capacity * 8), capacity - 1));
        other.drain();
        let _ = other.into_memory();
    }

    #[test]
    fn holds_its_capacity_last_in_first_out() {
        let of_objects = [1, 2, 4, 100, 255, SHEAF_SLOTS as u16 - 1].map(|capacity| (capacity, capacity));
        let of_runs = [1, 2, 16, (RUN_SHEAF_BYTES / SLOT - 1) as u16].map(|capacity| (capacity, OF_RUNS));
        for (capacity, kind) in of_objects.into_iter().chain(of_runs) {
            let mut memory = Memory([0xa5; SHEAF_BYTES]);
            // SAFETY: the memory is a sheaf's size and alignment and ours.
            let mut sheaf = unsafe { Sheaf::within(memory.0.as_mut_ptr(), capacity, kind) };
            assert!(sheaf.is_empty());
            for i in 1..=capacity as usize {
                assert!(!sheaf.is_full());
                sheaf.push(ptr::without_provenance_mut(i * 8)).unwrap();
                assert_eq!(sheaf.len(), i);
            }
            assert!(sheaf.is_full() && is_full(sheaf.word(), kind));
            assert!(sheaf.word() - memory.0.as_ptr().addr() < bytes(kind));
            assert!(sheaf.push(ptr::without_provenance_mut(8)).is_err());
            // SAFETY: the sheaf is ours.
            let found = unsafe { objects(sheaf.word(), kind) };
            assert_eq!((found.len(), found[0]), (capacity.into(), 8));
            for i in (1..=capacity as usize).rev() {
                assert_eq!(sheaf.pop().map(|p| p.addr()), Some(i * 8));
            }
            assert!(sheaf.pop().is_none());
            halves_keep_their_order(&mut sheaf);
            sheaf.fill(usize::MAX, |slots| {
                assert_eq!(slots.len(), capacity as usize);
                slots.iter_mut().enumerate().for_each(|(i, s)| *s = (i + 1) * 8);
                slots.len().min(3)
            });
            let taken = capacity.min(3) as usize;
            assert_eq!(sheaf.pop().map(|p| p.addr()), Some(taken * 8), "the last slot comes out first");
            assert_eq!(sheaf.drain().len(), taken - 1, "and only the first ones were taken in");
            let _ = sheaf.into_memory();
        }
    }
}
