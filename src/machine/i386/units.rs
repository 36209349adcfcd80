//! First fit over a small fixed number of units: for device mappings.

/// What a unit is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Unit {
    Free,
    /// The first of a block.
    First,
    /// Another one of a block.
    More,
}

/// `N` units.
pub struct Units<const N: usize> {
    units: [Unit; N],
}

impl<const N: usize> Units<N> {
    /// All free.
    pub const fn new() -> Units<N> {
        Units { units: [Unit::Free; N] }
    }

    /// Takes `count` (at least one) adjacent units; the first of them.
    pub fn take(&mut self, count: usize) -> Option<usize> {
        let fits = |at: &usize| self.units[*at..at + count].iter().all(|unit| *unit == Unit::Free);
        let first = (0..(N + 1).checked_sub(count)?).find(fits)?;
        self.units[first..first + count].fill(Unit::More);
        self.units[first] = Unit::First;
        Some(first)
    }

    /// Units of the block that begins at `first`; `None` where none does.
    pub fn len(&self, first: usize) -> Option<usize> {
        if self.units.get(first) != Some(&Unit::First) {
            return None;
        }
        Some(1 + self.units[first + 1..].iter().take_while(|unit| **unit == Unit::More).count())
    }

    /// Gives the block that begins at `first` back. False where none does.
    pub fn give(&mut self, first: usize) -> bool {
        let Some(len) = self.len(first) else { return false };
        self.units[first..first + len].fill(Unit::Free);
        true
    }
}

impl<const N: usize> Default for Units<N> {
    fn default() -> Units<N> {
        Units::new()
    }
}

#[cfg(test)]
mod tests {
    use super::Units;

    #[test]
    fn blocks_are_apart_and_come_back() {
        let mut units = Units::<8>::new();
        assert_eq!((units.take(3), units.take(2), units.take(4)), (Some(0), Some(3), None));
        assert_eq!((units.take(3), units.take(1)), (Some(5), None));
        assert_eq!(
            (units.len(0), units.len(1), units.len(3), units.len(5), units.len(9)),
            (Some(3), None, Some(2), Some(3), None)
        );
        assert!(!units.give(4) && units.give(3) && !units.give(3));
        assert_eq!((units.take(3), units.take(1), units.take(1), units.take(9)), (None, Some(3), Some(4), None));
        assert_eq!(units.len(0), Some(3), "neighbours are not one block");
    }
}
