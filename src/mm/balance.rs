//! What the kernel's kswapd does: memory is got ready before somebody has to wait for it.

use super::Mm;
use crate::gfp::Gfp;
use crate::machine::Machine;

impl<M: Machine> Mm<M> {
    /// A step for an idle loop. If a node's low memory has fallen below the low mark, what is kept for later goes back,
    /// the cheapest first, until it is at the high mark again or nothing is left. Whether there was something to do: it
    /// is done before anybody asks for memory and would have to do it then. (Where the system lends memory, the low
    /// mark is where more of it is asked for, and there is nothing to do here.)
    pub fn balance(&self) -> bool {
        let (m, pages) = (&self.machine, &self.pages);
        if M::LENT || !self.is_up() || !pages.is_short(m, |marks| marks.low) {
            return false;
        }
        self.bracket(Gfp::KERNEL, |gfp| {
            if !gfp.may_block() {
                return false;
            }
            let lacking = || pages.is_short(m, |marks| marks.high);
            pages.drain(m);
            if lacking() {
                self.slab.shrink(m, pages, None);
                self.vmalloc.purge(m, pages);
                pages.drain(m);
            }
            // What they free lies in sheaves.
            while lacking() && self.shrink(gfp, 1) > 0 {
                self.slab.shrink(m, pages, None);
                pages.drain(m);
            }
            true
        })
    }
}
