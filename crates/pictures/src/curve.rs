//! Curves with few points.

/// Thins points, ordered by x and in px, to at most two per px of x: the smallest and the largest y, in their order.
/// What is drawn is the same, because one px shows no more. The first and the last point stay.
pub(crate) fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut out: Vec<(f64, f64)> = Vec::new();
    let mut rest = points;
    while let Some(first) = rest.first() {
        let column = first.0.floor();
        let length = rest.iter().take_while(|point| point.0.floor() == column).count().max(1);
        let (here, after) = rest.split_at(length);
        rest = after;
        let by_y = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let (Some(low), Some(high)) = (here.iter().min_by(by_y), here.iter().max_by(by_y)) else { continue };
        match low.0.total_cmp(&high.0) {
            std::cmp::Ordering::Less => out.extend([*low, *high]),
            std::cmp::Ordering::Greater => out.extend([*high, *low]),
            std::cmp::Ordering::Equal if low.1 < high.1 => out.extend([*low, *high]),
            std::cmp::Ordering::Equal => out.push(*low),
        }
    }
    let (first, last) = (points.first(), points.last());
    if let Some(first) = first.filter(|first| out.first() != Some(first)) {
        out.insert(0, *first);
    }
    out.extend(last.filter(|last| out.last() != Some(last)));
    out
}

/// Running median over `window` values, an odd number; shorter at the ends.
pub(crate) fn running_median(values: &[f64], window: usize) -> Vec<f64> {
    let half = window / 2;
    let around = |n: usize| &values[n.saturating_sub(half)..(n + half + 1).min(values.len())];
    (0..values.len()).map(|n| median(around(n))).collect()
}

/// The median; 0 of no values.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extremes_stay() {
        let points: Vec<(f64, f64)> = (0..20_000)
            .map(|n| {
                (
                    f64::from(n) / 20.0,
                    if n == 7_777 {
                        99.0
                    } else if n == 11 {
                        -5.0
                    } else {
                        f64::from(n % 10)
                    },
                )
            })
            .collect();
        let thinned = thin(&points);
        assert!(thinned.len() <= 2_002, "{}", thinned.len());
        assert!(thinned.iter().any(|p| p.1 == 99.0) && thinned.iter().any(|p| p.1 == -5.0));
        assert_eq!((thinned.first(), thinned.last()), (points.first(), points.last()));
        assert!(thinned.windows(2).all(|two| two[0].0 <= two[1].0));
        assert_eq!(thin(&[]), []);
        assert_eq!(thin(&[(1.0, 2.0), (900.0, 3.0)]), [(1.0, 2.0), (900.0, 3.0)]);
    }

    #[test]
    fn medians_ignore_outliers() {
        let mut values = vec![10.0; 50];
        (values[0], values[20]) = (900.0, 900.0);
        assert_eq!(running_median(&values, 9), vec![10.0; 50]);
        assert_eq!(running_median(&[], 9), Vec::<f64>::new());
        assert_eq!(running_median(&[3.0], 9), [3.0]);
    }
}
