//! Which kernel to measure next, and between which two the figure changed. Pure: nothing is booted here.
//!
//! The kernels are in an order in which the figure changes once. The first and the last are the ends; if their figures are
//! on different sides of the bound, the kernel in the middle of what is left is measured, until two neighbours remain.
//! A kernel that cannot be measured is skipped: its neighbours are measured instead, and it stays a suspect.

use serde::Serialize;

/// What is known of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// It was not measured.
    Unknown,
    /// Its figure is at most the bound.
    Below,
    /// Its figure is above the bound.
    Above,
    /// It could not be measured.
    Skipped,
}

/// What the search has found; kernels are given by their position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Verdict {
    /// The figure changed between these two.
    Changed {
        /// The last kernel with a figure on the side of the first one.
        before: usize,
        /// The first kernel with a figure on the other side.
        after: usize,
        /// Kernels between these two that could not be measured: one of them may have the change.
        suspects: Vec<usize>,
    },
    /// Both ends are on this side, so there is nothing to look for.
    Same {
        /// The side.
        side: Side,
    },
    /// Fewer than two kernels could be measured.
    TooFew,
    /// The search was broken off.
    Unfinished,
}

/// Positions to be measured next, at most `most` at once; none if the search has ended.
pub fn next(sides: &[Side], most: usize) -> Vec<usize> {
    let most = most.max(1);
    let Some((first, last)) = ends(sides) else { return Vec::new() };
    let unknown_ends = [first, last].into_iter().filter(|end| sides[*end] == Side::Unknown);
    let mut unknown: Vec<usize> = unknown_ends.take(most).collect();
    unknown.dedup();
    if !unknown.is_empty() {
        return unknown;
    }
    if sides[first] == sides[last] {
        return Vec::new();
    }
    let (before, after) = narrowed(sides, first, last);
    let candidates: Vec<usize> = (before + 1..after).filter(|at| sides[*at] == Side::Unknown).collect();
    // One is the middle; several divide what is left into parts of equal size.
    let parts = most.min(candidates.len());
    (1..=parts).filter_map(|part| candidates.get(candidates.len() * part / (parts + 1)).copied()).collect()
}

/// What the search has found so far.
pub fn verdict(sides: &[Side]) -> Verdict {
    let Some((first, last)) = ends(sides) else { return Verdict::TooFew };
    if !next(sides, 1).is_empty() {
        return Verdict::Unfinished;
    }
    if first == last {
        return Verdict::TooFew;
    }
    if sides[first] == sides[last] {
        return Verdict::Same { side: sides[first] };
    }
    let (before, after) = narrowed(sides, first, last);
    Verdict::Changed { before, after, suspects: (before + 1..after).collect() }
}

/// The first and the last kernel that was not skipped.
fn ends(sides: &[Side]) -> Option<(usize, usize)> {
    let usable = |side: &Side| *side != Side::Skipped;
    Some((sides.iter().position(usable)?, sides.iter().rposition(usable)?))
}

/// The closest two measured kernels with the change between them.
fn narrowed(sides: &[Side], first: usize, last: usize) -> (usize, usize) {
    let after = (first..=last).find(|at| sides[*at] == sides[last]).unwrap_or(last);
    let before = (first..after).rfind(|at| sides[*at] == sides[first]).unwrap_or(first);
    (before, after)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches with an oracle. Returns the verdict, and what was measured, in this order.
    fn search(truth: &[Side], jobs: usize) -> (Verdict, Vec<usize>) {
        let mut sides = vec![Side::Unknown; truth.len()];
        let mut measured = Vec::new();
        loop {
            let round = next(&sides, jobs);
            if round.is_empty() {
                return (verdict(&sides), measured);
            }
            assert!(round.len() <= jobs);
            for at in round {
                assert_eq!(sides[at], Side::Unknown, "{at} is measured twice");
                sides[at] = truth[at];
                measured.push(at);
            }
        }
    }

    fn truth(text: &str) -> Vec<Side> {
        let side = |c| match c {
            '-' => Side::Below,
            '+' => Side::Above,
            _ => Side::Skipped,
        };
        text.chars().map(side).collect()
    }

    fn changed(before: usize, after: usize, suspects: &[usize]) -> Verdict {
        Verdict::Changed { before, after, suspects: suspects.to_vec() }
    }

    #[test]
    fn every_step_is_found_in_few_boots() {
        for length in 2..40_usize {
            for step in 1..length {
                for (first, other) in [(Side::Below, Side::Above), (Side::Above, Side::Below)] {
                    let truth: Vec<Side> =
                        (0..length).map(|at| if at < step { first } else { other }).collect();
                    for jobs in 1..4 {
                        let (verdict, measured) = search(&truth, jobs);
                        assert_eq!(verdict, changed(step - 1, step, &[]), "{truth:?}");
                        if jobs == 1 {
                            let most = 2 + (length - 1).next_power_of_two().ilog2() as usize;
                            assert!(measured.len() <= most, "{} of {length} kernels", measured.len());
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_ends_are_first() {
        assert_eq!(search(&truth("--++"), 1).1[..2], [0, 3]);
        assert_eq!(next(&truth("????"), 1), [0_usize; 0]);
        assert_eq!(next(&[Side::Unknown; 4], 2), [0, 3]);
        assert_eq!(next(&[Side::Unknown; 1], 2), [0]);
    }

    #[test]
    fn kernels_that_do_not_boot_are_skipped() {
        for (text, expected) in [
            // The skipped ones between the two sides stay suspects.
            ("-?+", changed(0, 2, &[1])),
            ("--???++", changed(1, 5, &[2, 3, 4])),
            // Those elsewhere do not matter.
            ("-?-++?+", changed(2, 3, &[])),
            // Nor does an end that does not boot.
            ("?-+?", changed(1, 2, &[])),
            ("??-???+", changed(2, 6, &[3, 4, 5])),
        ] {
            for jobs in 1..4 {
                assert_eq!(search(&truth(text), jobs).0, expected, "{text}");
            }
        }
    }

    #[test]
    fn every_mixture_of_skips_has_an_honest_verdict() {
        for length in 2..7_u32 {
            for step in 1..length {
                for skips in 0..1_u32 << length {
                    let truth: Vec<Side> = (0..length)
                        .map(|at| match at {
                            at if skips >> at & 1 == 1 => Side::Skipped,
                            at if at < step => Side::Below,
                            _ => Side::Above,
                        })
                        .collect();
                    let (verdict, _) = search(&truth, 1);
                    let below = truth.iter().rposition(|side| *side == Side::Below);
                    let above = truth.iter().position(|side| *side == Side::Above);
                    match (below, above) {
                        (Some(before), Some(after)) => {
                            let suspects: Vec<usize> = (before + 1..after).collect();
                            assert_eq!(verdict, changed(before, after, &suspects), "{truth:?}");
                        }
                        _ => assert!(matches!(verdict, Verdict::Same { .. } | Verdict::TooFew), "{truth:?}"),
                    }
                }
            }
        }
    }

    #[test]
    fn ends_of_the_same_side_end_the_search() {
        let (verdict, measured) = search(&truth("-+-"), 1);
        assert_eq!((verdict, measured), (Verdict::Same { side: Side::Below }, vec![0, 2]));
        assert_eq!(search(&truth("++"), 1).0, Verdict::Same { side: Side::Above });
        for few in ["", "?", "-", "??", "-?"] {
            assert_eq!(search(&truth(few), 1).0, Verdict::TooFew, "{few}");
        }
    }

    #[test]
    fn a_search_that_was_broken_off_has_no_result() {
        assert_eq!(verdict(&[Side::Below, Side::Unknown, Side::Above]), Verdict::Unfinished);
        assert_eq!(verdict(&[Side::Below, Side::Unknown]), Verdict::Unfinished);
    }
}
