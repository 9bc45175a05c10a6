//! The test for one step in one window: the largest difference of mean ranks, over all places.

/// The largest statistic of a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peak {
    /// Index of the first value after it, in the window.
    pub place: usize,
    /// The chance of such a value, or a larger one, anywhere in a window without a step.
    pub p: f64,
}

/// Ranks from 1, with the mean rank for equal values; and the factor by which those reduce the ranks' variance.
pub fn ranks(values: &[f64]) -> (Vec<f64>, f64) {
    let n = values.len();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let (mut ranks, mut ties, mut begin) = (vec![0.0; n], 0.0, 0);
    while begin < n {
        let same = |index: &&usize| values[**index].total_cmp(&values[order[begin]]).is_eq();
        let count = order[begin..].iter().take_while(same).count();
        let rank = (begin + 1 + begin + count) as f64 / 2.0;
        order[begin..begin + count].iter().for_each(|index| ranks[*index] = rank);
        let count = count as f64;
        ties += count.powi(3) - count;
        begin += count as usize;
    }
    let n = n as f64;
    (ranks, 1.0 - ties / (n.powi(3) - n).max(1.0))
}

/// Looks for the place where the ranks before differ most from those after: the rank-sum statistic (Wilcoxon), divided
/// by its standard deviation, at every place with at least `shortest` values on both sides. `resemblance` is the
/// factor by which the variance is larger than for independent values, see [`resemblance`].
pub fn peak(values: &[f64], shortest: usize, resemblance: f64) -> Option<Peak> {
    let n = values.len();
    if n < 2 * shortest {
        return None;
    }
    let (ranks, untied) = ranks(values);
    let (mut sum, mut best, mut place) = (0.0, 0.0, 0);
    let all = n as f64;
    for k in 1..=n - shortest {
        sum += ranks[k - 1];
        if k < shortest {
            continue;
        }
        let before = k as f64;
        let variance = before * (all - before) * (all + 1.0) / 12.0 * untied * resemblance;
        let z = (sum - before * (all + 1.0) / 2.0).abs() / variance.sqrt();
        if z > best {
            (best, place) = (z, k);
        }
    }
    (place > 0).then(|| Peak { place, p: chance(best, shortest as f64 / all) })
}

/// The chance that the largest of the standardised differences exceeds `z`, for places from `share` of the window to
/// 1 - `share`. The differences are those of a Brownian bridge that is divided by its standard deviation, for which
/// Miller and Siegmund (1982) gave the tail. It errs on the safe side: the bridge is looked at everywhere and not at
/// whole numbers only, and sums of few ranks have shorter tails than the normal distribution.
pub fn chance(z: f64, share: f64) -> f64 {
    if z < 1.5 {
        return 1.0;
    }
    let density = (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let looks = 2.0 * ((1.0 - share) / share).ln();
    (density * ((z - 1.0 / z) * looks + 4.0 / z)).min(1.0)
}

/// The factor by which sums of these values scatter more than if each were independent of its neighbours: one plus
/// twice the autocorrelations of their ranks, weighted down with the distance (Bartlett, Newey and West 1987). At
/// least 1. Pieces are taken on their own, so that a step between them is no resemblance.
pub fn resemblance(pieces: &[&[f64]]) -> f64 {
    let n: usize = pieces.iter().map(|piece| piece.len()).sum();
    let reach = ((n as f64).cbrt() * 1.5).ceil() as usize;
    let (mut own, mut near) = (0.0, vec![0.0; reach]);
    for piece in pieces {
        let middle = (piece.len() as f64 + 1.0) / 2.0;
        let scale = 1.0 / piece.len().max(1) as f64;
        let ranks: Vec<f64> = ranks(piece).0.into_iter().map(|rank| (rank - middle) * scale).collect();
        own += ranks.iter().map(|rank| rank * rank).sum::<f64>();
        for (distance, near) in near.iter_mut().enumerate() {
            let pairs = ranks.iter().zip(ranks.iter().skip(distance + 1));
            *near += pairs.map(|(a, b)| a * b).sum::<f64>();
        }
    }
    if own <= 0.0 {
        return 1.0;
    }
    let weight = |distance: usize| 1.0 - (distance + 1) as f64 / (reach + 1) as f64;
    let sum: f64 = near.iter().enumerate().map(|(distance, near)| weight(distance) * near / own).sum();
    (1.0 + 2.0 * sum).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_share_their_rank() {
        let (found, untied) = ranks(&[5.0, 1.0, 5.0, 9.0]);
        assert_eq!(found, [2.5, 1.0, 2.5, 4.0]);
        assert!((untied - 0.9).abs() < 1e-9);
        assert_eq!(ranks(&[]).0, Vec::<f64>::new());
        assert_eq!(peak(&[1.0; 40], 6, 1.0), None, "no difference anywhere");
    }

    /// The chance by the formula is not below that by permutation.
    #[test]
    fn chances_are_not_too_small() {
        let mut random = fastrand::Rng::with_seed(7);
        for n in [15, 30, 60, 200] {
            let mut values: Vec<f64> = (0..n).map(f64::from).collect();
            let (mut peaks, tries) = (Vec::new(), 4000);
            for _ in 0..tries {
                random.shuffle(&mut values);
                peaks.push(peak(&values, 6, 1.0).unwrap().p);
            }
            for level in [0.1, 0.01, 0.002] {
                let share = peaks.iter().filter(|p| **p <= level).count() as f64 / f64::from(tries);
                let error = (level / f64::from(tries)).sqrt();
                assert!(share <= level + 3.0 * error, "{n} values: {share} have p <= {level}");
            }
        }
    }

    #[test]
    fn neighbours_that_resemble_each_other_are_seen() {
        let mut random = fastrand::Rng::with_seed(3);
        let single: Vec<f64> = (0..400).map(|_| random.f64()).collect();
        let fourfold: Vec<f64> = (0..400).map(|n| single[n / 4]).collect();
        assert!(resemblance(&[&single]) < 1.4, "{}", resemblance(&[&single]));
        assert!(resemblance(&[&fourfold]) > 2.0, "{}", resemblance(&[&fourfold]));
        // A step alone is no resemblance.
        let step: Vec<f64> = single.iter().enumerate().map(|(n, v)| v + f64::from(n >= 200)).collect();
        assert!(resemblance(&[&step[..200], &step[200..]]) < 1.4);
        assert!(resemblance(&[&[1.0; 9]]) <= 1.0);
    }
}
