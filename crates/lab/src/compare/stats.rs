//! Ratios of two engines, with 95 % confidence intervals, and when none is given.
//!
//! Rounds are paired: in each one every engine had its turn, so what slowed the machine down for a while is in both
//! values of a pair. The logarithms of the pairs' ratios are evaluated:
//!
//! - The estimate is that of Hodges and Lehmann: the median of the means of all pairs of values (Walsh averages).
//! - From 6 rounds on the interval is the exact one of Wilcoxon's signed-rank test, which assumes no distribution. Of 5
//!   rounds it would reach 93.75 % only; there it is Student's t of the logarithms.

use crate::report::median;
use serde::Serialize;

/// The fewest rounds of which a ratio is given.
pub const FEWEST: usize = 5;
/// The widest interval of which a ratio is given: its upper end by its lower one.
pub const WIDEST: f64 = 2.0;
/// Student's t for 95 % in the middle and 4 degrees of freedom, of [`FEWEST`] rounds.
const T4: f64 = 2.776_445;

/// A ratio with its interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// The estimate.
    pub ratio: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

/// What can be said of the ratio of two engines.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "verdict")]
pub enum Ratio {
    /// It is known.
    Known(Interval),
    /// Its interval is wider than [`WIDEST`].
    TooNoisy(Interval),
    /// There are fewer than [`FEWEST`] pairs.
    TooFew {
        /// Number of pairs.
        pairs: usize,
    },
    /// A value is 0 or less: it was not measurable.
    NotMeasurable,
}

impl Ratio {
    /// The ratio of `these` to `those`, which are pairs of the same rounds.
    pub fn of(pairs: &[(f64, f64)]) -> Self {
        if pairs.len() < FEWEST {
            return Self::TooFew { pairs: pairs.len() };
        }
        let usable = |value: f64| value.is_finite() && value > 0.0;
        if !pairs.iter().all(|(this, that)| usable(*this) && usable(*that)) {
            return Self::NotMeasurable;
        }
        let logs: Vec<f64> = pairs.iter().map(|(this, that)| (this / that).ln()).collect();
        let walsh = walsh(&logs);
        let (low, high) = if logs.len() == FEWEST { student(&logs) } else { signed_rank(logs.len(), &walsh) };
        let interval = Interval { ratio: median(&walsh).exp(), low: low.exp(), high: high.exp() };
        if interval.high / interval.low > WIDEST { Self::TooNoisy(interval) } else { Self::Known(interval) }
    }

    /// The interval, if the ratio is known.
    pub fn known(&self) -> Option<Interval> {
        match self {
            Self::Known(interval) => Some(*interval),
            _ => None,
        }
    }
}

/// The means of all pairs of values, each with itself included, sorted.
fn walsh(values: &[f64]) -> Vec<f64> {
    let pairs =
        values.iter().enumerate().flat_map(|(n, a)| values[n..].iter().map(|b| f64::midpoint(*a, *b)));
    let mut all: Vec<f64> = pairs.collect();
    all.sort_by(f64::total_cmp);
    all
}

/// Student's interval of [`FEWEST`] values.
fn student(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let half = T4 * (variance / n).sqrt();
    (mean - half, mean + half)
}

/// The interval of the signed-rank test: as many Walsh averages are cut off at each end as 2.5 % allow.
fn signed_rank(n: usize, walsh: &[f64]) -> (f64, f64) {
    let cut = cut(n).min(walsh.len().saturating_sub(1) / 2);
    (walsh[cut], walsh[walsh.len() - 1 - cut])
}

/// The critical value of the signed-rank test for 2.5 % at one end: the largest sum of ranks that is as unlikely. It is
/// also the number of Walsh averages to cut off there.
fn cut(n: usize) -> usize {
    // How likely each sum of ranks is: every rank counts or not, with equal probability.
    let most = n * (n + 1) / 2;
    let mut likely = vec![0.0; most + 1];
    likely[0] = 1.0;
    for rank in 1..=n {
        for sum in (0..=most).rev() {
            let with = if sum >= rank { likely[sum - rank] } else { 0.0 };
            likely[sum] = f64::midpoint(likely[sum], with);
        }
    }
    let (mut tail, mut cut) = (0.0, 0);
    for (sum, likely) in likely.iter().enumerate() {
        tail += likely;
        if tail > 0.025 {
            break;
        }
        cut = sum;
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-4 * b.abs().max(1.0), "{a} is not {b}");
    }

    /// Critical values of the signed-rank test for 2.5 % at one end, from the usual tables: the largest sum of ranks
    /// that is significant.
    #[test]
    fn critical_values_are_those_of_the_tables() {
        for (n, critical) in
            [(6, 0), (7, 2), (8, 3), (9, 5), (10, 8), (15, 25), (20, 52), (25, 89), (30, 137)]
        {
            assert_eq!(cut(n), critical, "{n}");
        }
    }

    /// Darwin's maize: crossed less self-fertilised plants, in eighths of an inch (R. A. Fisher, The Design of
    /// Experiments, 1935, chapter III). The interval is the 26th average from each end, as the tables have it.
    #[test]
    fn a_known_data_set() {
        let darwin = [49., -67., 8., 16., 6., 23., 28., 41., 14., 29., 56., 24., 75., 60., -48.];
        let averages = walsh(&darwin);
        assert_eq!(averages.len(), 120);
        near(median(&averages), 25.0);
        let (low, high) = signed_rank(darwin.len(), &averages);
        near(low, 4.0);
        near(high, 41.5);
    }

    #[test]
    fn five_values_have_students_interval() {
        let (low, high) = student(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        // Standard deviation √2.5, by √5, times 2.776.
        near(low, 3.0 - 1.963_24);
        near(high, 3.0 + 1.963_24);
    }

    #[test]
    fn a_steady_ratio_is_known() {
        let pairs: Vec<(f64, f64)> = [10.0, 11.0, 9.0, 10.5, 9.5].map(|x| (x * 14.0, x)).into();
        let known = Ratio::of(&pairs).known().unwrap();
        near(known.ratio, 14.0);
        near(known.low, 14.0);
        near(known.high, 14.0);
        // One round on a machine that was busy for both: the pair hides it.
        let mut busy = pairs.clone();
        busy.push((1400.0, 100.0));
        near(Ratio::of(&busy).known().unwrap().ratio, 14.0);
    }

    #[test]
    fn too_few_or_too_noisy_is_refused() {
        let pair = (2.0, 1.0);
        assert_eq!(Ratio::of(&[pair; 4]), Ratio::TooFew { pairs: 4 });
        assert_eq!(Ratio::of(&[]), Ratio::TooFew { pairs: 0 });
        assert_eq!(Ratio::of(&[pair, pair, pair, pair, (0.0, 1.0)]), Ratio::NotMeasurable);
        assert_eq!(Ratio::of(&[pair, pair, pair, pair, (1.0, f64::NAN)]), Ratio::NotMeasurable);
        let noisy = [(1.0, 1.0), (3.0, 1.0), (9.0, 1.0), (2.0, 1.0), (14.0, 1.0)];
        let Ratio::TooNoisy(interval) = Ratio::of(&noisy) else { panic!("{:?}", Ratio::of(&noisy)) };
        assert!(interval.low < 1.0 && interval.high > 10.0, "{interval:?}");
        assert_eq!(Ratio::of(&noisy).known(), None);
    }

    /// Of many series of the same ratio about 95 % have it in their interval.
    #[test]
    fn the_interval_covers_the_truth() {
        let mut random = fastrand::Rng::with_seed(21);
        // The sum of 12 uniform numbers, less 6, is nearly normal.
        let mut normal = || (0..12).map(|_| random.f64()).sum::<f64>() - 6.0;
        for n in [5, 6, 10, 20] {
            let mut covered = 0;
            const SERIES: usize = 2000;
            for _ in 0..SERIES {
                let logs: Vec<f64> = (0..n).map(|_| 0.3 * normal()).collect();
                let walsh = walsh(&logs);
                let (low, high) = if n == FEWEST { student(&logs) } else { signed_rank(n, &walsh) };
                covered += usize::from(low <= 0.0 && high >= 0.0);
            }
            assert!(covered * 1000 >= SERIES * 935, "{n}: {covered} of {SERIES}");
        }
    }
}
