//! Objects that go back to their slabs together.
//!
//! What a program frees in a flood lies close together, but not in order: with a tree the objects of a sheaf change
//! slabs nine times, and words of the maps 28 times, and each change is a jump that the processor does not foresee. So
//! for the objects of some sheaves a byte is set for each that lies in a *window* of 64 KiB, whosever it is, and then
//! the bytes of each slab become bits of its map, all at once. Objects beside windows go back one by one
//! ([`NodeSlabs::put`](super::node::NodeSlabs::put)), and so do all where anything is odd: that path can report it.
//!
//! Measured (`tree`, rounds of allocators in one process, CPU time in relation to that without): with a window for each
//! sheaf 0.99; with one for six of them 0.94, as their slabs are gone through once (18 instructions an object in place
//! of 32); for eleven the same. Rejected: pages with objects found by a look at all bytes (1.05); a window where only
//! half of a sample lies in it (`graph` takes as long).
#![allow(unsafe_code)]

use super::layout::SlabLayout;
use crate::sync::{CachePadded, Guard, Lock, Park};
use crate::types::{Order, PAGE_SIZE, Pfn};

/// What a byte stands for: objects are as long as some of it, and start at multiples.
const GRAIN: usize = 16;
/// Bytes of a window, which is aligned to as much.
const WINDOW: usize = 64 << 10;
/// Bits in which addresses of a window differ.
const INSIDE: usize = WINDOW - GRAIN;
/// Slabs of one page in a window.
pub const PAGES: usize = WINDOW / PAGE_SIZE;
/// Grains of a page.
const GRAINS: usize = PAGE_SIZE / GRAIN;
/// Words of the largest map.
const WORDS: usize = GRAINS / 64;
/// Fewer objects than this, in all and for each slab, are not worth it.
const FEW: usize = 64;
const FEW_OF_SLAB: usize = 8;
/// Objects that are looked at together.
const TOGETHER: usize = 8;
/// Bytes that become bits at a time.
const STEP: usize = 16;

/// Whether `count` objects of a cache of `layout` may be worth a window.
pub fn is_worth(layout: &SlabLayout, count: usize) -> bool {
    let grains = layout.size > 0 && ((layout.size | layout.first) as usize).is_multiple_of(GRAIN);
    count >= FEW && layout.order == Order::ZERO && grains
}

/// Windows are static: with them on the stack a flood of frees took 6.6 KiB of it in place of 1.6. One of four, by CPU;
/// who finds his taken does without.
static ROOMS: [CachePadded<Lock<Window>>; ROOM_COUNT] =
    [const { CachePadded::new(Lock::new(Window::NONE)) }; ROOM_COUNT];
const ROOM_COUNT: usize = 4;

/// A room for a thread on `cpu`, who may block.
pub fn room<P: Park>(park: &P, cpu: usize) -> Option<Guard<'_, Window, P>> {
    ROOMS[cpu % ROOM_COUNT].try_lock(park)
}

/// In a child, whose only thread the caller is, with no room: those of others are free, whatever is in them.
pub fn begin_child() {
    for room in ROOMS.iter().filter(|room| room.is_held()) {
        // SAFETY: the caller's condition; a window is begun before it is used.
        unsafe { room.abandon() };
    }
}

/// The objects of a window.
pub struct Window {
    base: usize,
    /// All bits for each grain where an object starts. Behind it is what the last step may reach.
    starts: [u8; WINDOW / GRAIN + STEP],
    /// 1 for each page with such.
    pages: [u8; PAGES],
    /// Its slabs, and what their maps are to be: [`NodeSlabs::put_window`](super::node::NodeSlabs::put_window)'s.
    pub slabs: [(Pfn, [u64; WORDS]); PAGES],
}

impl Window {
    const NONE: Window =
        Window { base: 0, starts: [0; WINDOW / GRAIN + STEP], pages: [0; PAGES], slabs: [(Pfn(0), [0; WORDS]); PAGES] };

    /// Begins the window that most of `objects`, which are of a cache of `layout`, lie in; false where there is none,
    /// or it would not be worth it.
    pub fn begin(&mut self, layout: &SlabLayout, objects: &[usize]) -> bool {
        let len = objects.len();
        if !is_worth(layout, len) {
            return false;
        }
        self.base = objects[len / 2] & !(WINDOW - 1);
        let begun = [1, 3, 5, 7].iter().filter(|nth| self.holds(objects[len * **nth / 8])).count() >= 3;
        if begun {
            self.starts.fill(0);
            self.pages.fill(0);
        }
        begun
    }

    #[inline(always)]
    fn holds(&self, object: usize) -> bool {
        (object ^ self.base) & !INSIDE == 0
    }

    /// Whether some of `objects` may lie in the window.
    pub fn has_some(&self, objects: &[usize]) -> bool {
        let len = objects.len();
        len > 0 && [0, len / 2, len - 1].iter().any(|nth| self.holds(objects[*nth]))
    }

    /// Takes in those of `objects` that lie in the window, and moves the others to the front. Returns how many those
    /// are.
    #[inline(always)]
    pub fn take(&mut self, objects: &mut [usize]) -> usize {
        let (mut outside, mut at) = (0, 0);
        while at < objects.len() {
            let (eights, _) = objects[at..].as_chunks::<TOGETHER>();
            at += TOGETHER * eights.iter().take_while(|eight| self.set_all(eight)).count();
            let end = objects.len().min(at + TOGETHER);
            (at..end).for_each(|at| outside = self.set_or_move(objects, outside, at));
            at = end;
        }
        outside
    }

    /// Takes in objects that all lie in the window; false, and nothing done, where they do not.
    #[inline(always)]
    fn set_all(&mut self, &[a, b, c, d, e, f, g, h]: &[usize; TOGETHER]) -> bool {
        let beside = |object| object ^ self.base;
        if (beside(a) | beside(b) | beside(c) | beside(d) | beside(e) | beside(f) | beside(g) | beside(h)) & !INSIDE
            != 0
        {
            return false;
        }
        // Not in a loop, which would stay one.
        self.set(a);
        self.set(b);
        self.set(c);
        self.set(d);
        self.set(e);
        self.set(f);
        self.set(g);
        self.set(h);
        true
    }

    #[inline(always)]
    fn set(&mut self, object: usize) {
        let grain = object % WINDOW / GRAIN;
        self.starts[grain] = u8::MAX;
        self.pages[grain / GRAINS] = 1;
    }

    #[inline(never)]
    fn set_or_move(&mut self, objects: &mut [usize], outside: usize, at: usize) -> usize {
        if self.holds(objects[at]) {
            self.set(objects[at]);
            return outside;
        }
        objects.swap(outside, at);
        outside + 1
    }

    /// The address of page `nth` of the window, if there are objects.
    #[inline(always)]
    pub fn page(&self, nth: usize) -> Option<usize> {
        (self.pages[nth] != 0).then_some(self.base + nth * PAGE_SIZE)
    }

    /// Whether `count` objects are enough for their slabs to be gone through.
    pub fn is_dense(&self, count: usize) -> bool {
        count >= self.pages.iter().map(|page| usize::from(*page)).sum::<usize>() * FEW_OF_SLAB
    }

    /// Word `nth` of the bits of those objects of the slab that is page `page`, of `layout` and `colour`, that are in
    /// the window.
    #[inline(always)]
    pub fn bits(&self, layout: &SlabLayout, colour: usize, page: usize, nth: u32) -> u64 {
        let (all, stride) = (layout.all_free(nth), layout.size as usize / GRAIN);
        let mut at = page * GRAINS + layout.offset(colour, nth * 64) / GRAIN;
        let mut word = 0;
        if stride == 1 {
            for first in (0..64).step_by(STEP) {
                let bytes = self.starts.get(at + first..).and_then(|rest| rest.first_chunk());
                word |= bytes.map_or(0, high_bits) << first;
            }
            return word & all;
        }
        let mut bit = 1;
        while all & bit != 0 {
            word |= if self.starts.get(at).is_some_and(|start| *start != 0) { bit } else { 0 };
            at += stride;
            bit <<= 1;
        }
        word
    }
}

/// The highest bit of each byte.
#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
#[inline(always)]
fn high_bits(bytes: &[u8; STEP]) -> u64 {
    use core::arch::x86_64::{_mm_loadu_si128, _mm_movemask_epi8};
    // SAFETY: the target has the instructions; they read as many bytes as there are, wherever they lie.
    unsafe { _mm_movemask_epi8(_mm_loadu_si128(bytes.as_ptr().cast())) as u64 }
}

/// The same elsewhere.
#[cfg(not(all(target_arch = "x86_64", target_feature = "sse2")))]
fn high_bits(bytes: &[u8; STEP]) -> u64 {
    bytes.iter().rev().fold(0, |bits, byte| bits << 1 | u64::from(byte >> 7))
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::super::cache::STATIC_LAYOUTS;
    use super::super::classes::NR_CLASSES;
    use super::*;

    #[test]
    fn bits_are_those_of_the_objects() {
        let (mut windows, mut window) = (0, Window::NONE);
        for layout in &STATIC_LAYOUTS[1..=NR_CLASSES] {
            for colour in 0..layout.colours as usize {
                let base = 5 * WINDOW;
                let kept =
                    |page: usize, index: u32| page % 4 != 3 && !(page * 7 + index as usize * 5).is_multiple_of(3);
                let all = (0..PAGES).flat_map(|page| (0..layout.objects).map(move |index| (page, index)));
                let address = |page, index| base + page * PAGE_SIZE + layout.offset(colour, index);
                let inside: Vec<usize> = all.filter(|(p, i)| kept(*p, *i)).map(|(p, i)| address(p, i)).collect();
                // One in fifty lies beside the window, or starts nowhere.
                let beside = |object: usize| {
                    if (object / GRAIN).is_multiple_of(2) { object + WINDOW } else { object + GRAIN / 2 }
                };
                let mut objects = inside.clone();
                let odd: Vec<usize> = inside.iter().step_by(50).map(|object| beside(*object)).collect();
                odd.iter().enumerate().for_each(|(nth, odd)| objects.insert(nth * 51, *odd));
                if !window.begin(layout, &objects) {
                    continue;
                }
                windows += 1;
                let outside = window.take(&mut objects);
                assert_eq!(objects[..outside], odd);
                objects.sort_unstable();
                assert!(inside.iter().chain(&odd).all(|object| objects.binary_search(object).is_ok()));
                assert!((0..PAGES).all(|page| window.page(page).is_some() == (page % 4 != 3)));
                for (page, word) in (0..PAGES).flat_map(|page| (0..layout.map_words()).map(move |word| (page, word))) {
                    let indices = (word * 64..layout.objects.min(word * 64 + 64)).filter(|index| kept(page, *index));
                    let bits = indices.fold(0, |bits, index| bits | 1 << (index % 64));
                    assert_eq!(window.bits(layout, colour, page, word), bits, "{layout:?}");
                }
            }
        }
        assert!(windows > 10);
    }

    #[test]
    fn what_lies_far_apart_has_no_window() {
        let far: Vec<usize> = (0..255).map(|nth| nth * WINDOW).collect();
        let mut window = Window::NONE;
        assert!(!window.begin(&STATIC_LAYOUTS[2], &far));
        assert!(!window.begin(&SlabLayout::NONE, &[WINDOW; 255]));
    }
}
