//! A set of numbers as ranges: large pools cost what is taken out of them, not what they hold.

use std::collections::BTreeMap;

/// Disjoint inclusive ranges with gaps between them: first to last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges(BTreeMap<u32, u32>);

impl Ranges {
    /// All numbers from `first` to `last`; none if `last` is smaller.
    pub fn new(first: u32, last: u32) -> Self {
        let mut ranges = Self::default();
        ranges.insert(first, last);
        ranges
    }

    /// Returns whether a number is in.
    pub fn contains(&self, number: u32) -> bool {
        self.0.range(..=number).next_back().is_some_and(|(_, last)| *last >= number)
    }

    /// Takes the lowest number out.
    pub fn take_lowest(&mut self) -> Option<u32> {
        let (first, last) = self.0.pop_first()?;
        if first < last {
            self.0.insert(first + 1, last);
        }
        Some(first)
    }

    /// Takes one number out. Returns whether it was in.
    pub fn take(&mut self, number: u32) -> bool {
        !self.remove(number, number).is_empty()
    }

    /// Takes the numbers from `first` to `last` out. Returns those that were in.
    pub fn remove(&mut self, first: u32, last: u32) -> Vec<(u32, u32)> {
        let mut removed = Vec::new();
        // From the highest range that begins early enough down to the first that ends too early.
        while let Some((&begin, &end)) = self.0.range(..=last).next_back()
            && end >= first
            && first <= last
        {
            self.0.remove(&begin);
            if end > last {
                self.0.insert(last + 1, end);
            }
            removed.push((begin.max(first), end.min(last)));
            if begin < first {
                self.0.insert(begin, first - 1);
                break;
            }
        }
        removed.reverse();
        removed
    }

    /// Puts the numbers from `first` to `last` in. Some may be in already.
    pub fn insert(&mut self, mut first: u32, mut last: u32) {
        if first > last {
            return;
        }
        while let Some((&begin, &end)) = self.0.range(..=last.saturating_add(1)).next_back()
            && end.saturating_add(1) >= first
        {
            self.0.remove(&begin);
            first = first.min(begin);
            last = last.max(end);
        }
        self.0.insert(first, last);
    }

    /// Takes all numbers out. Returns them, lowest first.
    pub fn drain(&mut self) -> impl Iterator<Item = (u32, u32)> {
        std::mem::take(&mut self.0).into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn numbers(ranges: &Ranges) -> BTreeSet<u32> {
        ranges.0.iter().flat_map(|(first, last)| *first..=*last).collect()
    }

    #[test]
    fn ranges_behave_as_a_set() {
        let seed = fastrand::u64(..);
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..200 {
            let (mut ranges, mut set) = (Ranges::new(10, 60), (10..=60).collect::<BTreeSet<u32>>());
            for _ in 0..100 {
                let (a, b) = (random.u32(0..70), random.u32(0..8));
                match random.u32(0..4) {
                    0 => {
                        ranges.insert(a, a + b);
                        set.extend(a..=a + b);
                    }
                    1 => {
                        let out = ranges.remove(a, a + b);
                        let out: Vec<u32> = out.into_iter().flat_map(|(first, last)| first..=last).collect();
                        let expected: Vec<u32> = (a..=a + b).filter(|n| set.remove(n)).collect();
                        assert_eq!(out, expected, "seed {seed}");
                    }
                    2 => assert_eq!(ranges.take(a), set.remove(&a), "seed {seed}"),
                    _ => assert_eq!(ranges.take_lowest(), set.pop_first(), "seed {seed}"),
                }
                assert_eq!(numbers(&ranges), set, "seed {seed}");
                assert_eq!(ranges.contains(a), set.contains(&a), "seed {seed}");
                let bounds: Vec<(u32, u32)> = ranges.0.clone().into_iter().collect();
                assert!(bounds.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "seed {seed}: {bounds:?}");
            }
        }
    }

    #[test]
    fn the_ends_of_the_numbers_are_numbers() {
        let mut ranges = Ranges::new(0, u32::MAX);
        assert!(ranges.take(u32::MAX) && ranges.take(0) && !ranges.take(0));
        ranges.insert(u32::MAX, u32::MAX);
        ranges.insert(0, 0);
        assert_eq!(ranges.drain().collect::<Vec<_>>(), [(0, u32::MAX)]);
        assert_eq!(ranges.remove(0, u32::MAX), []);
        ranges.insert(5, 4);
        assert_eq!(ranges.take_lowest(), None);
    }
}
