//! The ratio of two medians, with a confidence interval.

use serde::{Deserialize, Serialize};

/// The least number of values on each side: fewer have no 95 % interval of the median at all (the chance that the
/// median lies outside of five values is 2 / 2⁵).
pub const FEWEST: usize = 6;
/// How often the values are drawn again.
const DRAWS: usize = 1000;
/// Of longer lists only so many values are drawn, which bounds the time; the medians are those of all values.
const MOST: usize = 1000;

/// A value with its 95 % confidence interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The value.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// There are too few values for an interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too few complete runs for a ratio: {have}, and {FEWEST} are needed on each side")]
pub struct TooFew {
    /// How many there are, on the side with fewer.
    pub have: usize,
}

/// The median; 0 of no values.
pub fn median(values: &[f64]) -> f64 {
    median_of(&mut values.to_vec())
}

fn median_of(values: &mut [f64]) -> f64 {
    let n = values.len();
    if n == 0 {
        return 0.0;
    }
    let (below, middle, _) = values.select_nth_unstable_by(n / 2, f64::total_cmp);
    let middle = *middle;
    if n % 2 == 1 {
        return middle;
    }
    let lower = below.iter().copied().max_by(f64::total_cmp).unwrap_or(middle);
    f64::midpoint(lower, middle)
}

/// The median of `after` divided by that of `before`, both positive. The interval is a percentile bootstrap with blocks
/// of `block` successive values: values that depend on their neighbours (1: they do not) carry less information. The
/// result is the same for the same values.
///
/// # Errors
/// [`TooFew`] values on one of the sides.
pub fn ratio(before: &[f64], after: &[f64], block: usize) -> Result<Estimate, TooFew> {
    let have = before.len().min(after.len());
    if have < FEWEST {
        return Err(TooFew { have });
    }
    let value = median(after) / median(before);
    let (newest, oldest) = (&before[before.len().saturating_sub(MOST)..], &after[..after.len().min(MOST)]);
    let mut random = fastrand::Rng::with_seed(0x5eed);
    let mut drawn = Vec::with_capacity(DRAWS);
    let mut draw = |values: &[f64]| {
        let mut sample = Vec::with_capacity(values.len() + block);
        while sample.len() < values.len() {
            let begin = random.usize(..values.len());
            // Circular: values at the ends are drawn as often as others.
            sample.extend((0..block.max(1)).map(|n| values[(begin + n) % values.len()]));
        }
        sample.truncate(values.len());
        median_of(&mut sample)
    };
    for _ in 0..DRAWS {
        drawn.push(draw(oldest) / draw(newest));
    }
    drawn.sort_by(f64::total_cmp);
    Ok(Estimate { value, low: drawn[DRAWS / 40], high: drawn[DRAWS - 1 - DRAWS / 40] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert!(median(&[]).abs() < 1e-9);
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 9.0, 3.0]) - 3.5).abs() < 1e-9);
    }

    #[test]
    fn few_values_have_no_interval() {
        assert_eq!(ratio(&[1.0; 5], &[1.0; 50], 1), Err(TooFew { have: 5 }));
        let same = ratio(&[2.0; 6], &[3.0; 6], 1).unwrap();
        assert_eq!(same, Estimate { value: 1.5, low: 1.5, high: 1.5 });
    }

    /// The true ratio lies in 95 % of the intervals, up to what small samples cost.
    #[test]
    fn the_interval_holds_the_ratio() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut normal = || (0..12).map(|_| random.f64()).sum::<f64>() - 6.0;
        let mut hits = 0;
        for _ in 0..200 {
            let before: Vec<f64> = (0..25).map(|_| (0.2 * normal()).exp()).collect();
            let after: Vec<f64> = (0..25).map(|_| 1.3 * (0.2 * normal()).exp()).collect();
            let found = ratio(&before, &after, 1).unwrap();
            hits += usize::from(found.low <= 1.3 && 1.3 <= found.high);
        }
        assert!((180..=199).contains(&hits), "{hits} of 200");
    }
}
