//! Sets of addresses: sorted ranges `[first, last)` that neither overlap nor touch.

use std::ffi::c_void;
use std::ops::Range;

pub type Span = Range<usize>;

/// The part that two ranges share, which may be empty.
pub fn overlap(a: &Span, b: &Span) -> Span {
    let first = a.start.max(b.start);
    first..a.end.min(b.end).max(first)
}

/// An address, as the functions of C take it.
pub fn pointer(address: usize) -> *mut c_void {
    std::ptr::with_exposed_provenance_mut(address)
}

pub fn align_up(value: usize, unit: usize) -> usize {
    value.next_multiple_of(unit)
}

pub fn align_down(value: usize, unit: usize) -> usize {
    value - value % unit
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<Span>);

impl Ranges {
    pub fn of(span: Span) -> Self {
        let mut ranges = Self::default();
        ranges.add(&span);
        ranges
    }

    pub fn iter(&self) -> impl Iterator<Item = &Span> {
        self.0.iter()
    }

    pub fn add(&mut self, span: &Span) {
        if span.is_empty() {
            return;
        }
        let mut whole = span.clone();
        self.0.retain(|old| {
            let is_apart = old.end < span.start || span.end < old.start;
            if !is_apart {
                whole = whole.start.min(old.start)..whole.end.max(old.end);
            }
            is_apart
        });
        let at = self.0.partition_point(|old| old.start < whole.start);
        self.0.insert(at, whole);
    }

    pub fn remove(&mut self, span: &Span) {
        if span.is_empty() {
            return;
        }
        let cut = |old: &Span| {
            let head = old.start..old.end.min(span.start);
            let tail = old.start.max(span.end)..old.end;
            [head, tail]
                .into_iter()
                .filter(|part| part.start < part.end)
        };
        self.0 = self.0.iter().flat_map(cut).collect();
    }

    /// The parts inside a range.
    pub fn within(&self, span: &Span) -> Vec<Span> {
        let parts = self.0.iter().map(|old| overlap(old, span));
        parts.filter(|part| !part.is_empty()).collect()
    }

    /// The parts of a range that are not in the set.
    pub fn gaps(&self, span: &Span) -> Vec<Span> {
        let mut rest = Self::of(span.clone());
        for old in &self.0 {
            rest.remove(old);
        }
        rest.0
    }

    pub fn covers(&self, span: &Span) -> bool {
        self.gaps(span).is_empty()
    }

    pub fn touches(&self, span: &Span) -> bool {
        !self.within(span).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spans() -> impl Strategy<Value = Vec<(bool, Span)>> {
        let span = (0usize..64, 0usize..64).prop_map(|(a, b)| a.min(b)..a.max(b));
        prop::collection::vec((any::<bool>(), span), 0..40)
    }

    proptest! {
        #[test]
        fn a_set_of_ranges_equals_a_set_of_numbers(steps in spans(), asked in (0usize..64, 0usize..64)) {
            let mut ranges = Ranges::default();
            let mut bits = [false; 64];
            for (is_added, span) in steps {
                bits[span.clone()].fill(is_added);
                if is_added {
                    ranges.add(&span);
                } else {
                    ranges.remove(&span);
                }
                prop_assert!(ranges.0.windows(2).all(|pair| pair[0].end < pair[1].start), "{ranges:?}");
                prop_assert!(ranges.0.iter().all(|span| !span.is_empty()), "{ranges:?}");
            }
            let asked = asked.0.min(asked.1)..asked.0.max(asked.1);
            let inside = |parts: &[Span]| (0..64).map(|at| parts.iter().any(|part| part.contains(&at))).collect::<Vec<_>>();
            let expected: Vec<bool> = (0..64).map(|at| bits[at] && asked.contains(&at)).collect();
            prop_assert_eq!(inside(&ranges.within(&asked)), expected);
            let expected: Vec<bool> = (0..64).map(|at| !bits[at] && asked.contains(&at)).collect();
            prop_assert_eq!(inside(&ranges.gaps(&asked)), expected);
            prop_assert_eq!(ranges.covers(&asked), asked.clone().all(|at| bits[at]));
            prop_assert_eq!(ranges.touches(&asked), asked.clone().any(|at| bits[at]));
        }
    }
}
