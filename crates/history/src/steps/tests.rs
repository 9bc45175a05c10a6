//! On recorded series (tests/data/README.md): what is no step is not found, and what is one is.

use super::*;
use crate::Machine;

/// A column of a recorded series.
fn recorded(file: &str, column: &str) -> Vec<f64> {
    let path = format!("{}/tests/data/{file}.csv", env!("CARGO_MANIFEST_DIR"));
    let mut reader = csv::Reader::from_path(path).unwrap();
    let at = reader.headers().unwrap().iter().position(|name| name == column).unwrap();
    reader.records().map(|record| record.unwrap()[at].parse().unwrap()).collect()
}

/// All recorded series.
const ALL: [(&str, &str); 18] = [
    ("scale-stream", "waiting_ms"),
    ("scale-stream", "story_ms"),
    ("scale-stream", "slowest_destroy_ms"),
    ("scale-stream", "create_ms"),
    ("teardown-durable", "unmount_max_ms"),
    ("teardown-durable", "write_ms"),
    ("teardown-durable", "remove_ms"),
    ("teardown-volatile", "unmount_max_ms"),
    ("teardown-volatile", "write_ms"),
    ("teardown-volatile", "remove_ms"),
    ("teardown-calm", "unmount_max_ms"),
    ("teardown-calm", "write_ms"),
    ("teardown-calm", "remove_ms"),
    ("teardown-p50", "unmount_max_ms"),
    ("teardown-p50", "mount_p50_ms"),
    ("teardown-p50", "write_p50_ms"),
    ("teardown-p50", "unmount_p50_ms"),
    ("teardown-p50", "remove_p50_ms"),
];

/// Those that scatter as on a host that does little else.
const CALM: (&str, &str) = ("teardown-p50", "remove_p50_ms");

/// Puts blocks of successive values in another order: neighbours still resemble each other.
fn shuffled(values: &[f64], block: usize, random: &mut fastrand::Rng) -> Vec<f64> {
    let offset = random.usize(..values.len());
    let turned: Vec<f64> = values[offset..].iter().chain(&values[..offset]).copied().collect();
    let mut blocks: Vec<&[f64]> = turned.chunks(block).collect();
    random.shuffle(&mut blocks);
    blocks.concat()
}

#[test]
fn runs_of_the_same_thing_have_no_step() {
    let mut random = fastrand::Rng::with_seed(11);
    let (mut looks, mut alarms) = (0, 0);
    for (file, column) in ALL {
        let values = recorded(file, column);
        let mut own = 0;
        for begin in (0..=values.len() - 200).step_by(25) {
            own += usize::from(!in_values(&values[begin..begin + 200]).is_empty());
        }
        let mut of_series = 0;
        for block in [1, 2, 5, 10] {
            for _ in 0..100 {
                let values = shuffled(&values, block, &mut random);
                of_series += usize::from(!in_values(&values[..200]).is_empty());
                looks += 1;
            }
        }
        alarms += of_series;
        println!("{file} {column}: {own} as recorded, {of_series} of 400");
    }
    println!("{alarms} of {looks}");
    assert!(alarms * 100 <= looks, "{alarms} of {looks}");
}

/// Puts steps of this size into 60 runs of a series: tries, and those of which exactly this step was found.
fn put_in(
    (file, column): (&str, &str),
    size: f64,
    blocks: &[usize],
    places: std::ops::RangeInclusive<usize>,
) -> (usize, usize) {
    let values = recorded(file, column);
    let mut random = fastrand::Rng::with_seed(12);
    let (mut tries, mut found, mut exact) = (0, 0, 0);
    for place in places.step_by(3) {
        for way in [size, 1.0 / size] {
            for &block in blocks {
                for _ in 0..10 {
                    let mut values = shuffled(&values, block, &mut random)[..60].to_vec();
                    values[place..].iter_mut().for_each(|value| *value *= way);
                    let changes = in_values(&values);
                    tries += 1;
                    let [change] = &changes[..] else { continue };
                    found += 1;
                    exact += usize::from(change.index.abs_diff(place) <= 3);
                    assert_eq!(change.ratio.value > 1.0, way > 1.0);
                }
            }
        }
    }
    println!("{file} {column} × {size}: {found} found, {exact} at the place, of {tries}");
    (tries, exact)
}

#[test]
fn a_step_of_20_percent_in_60_runs_is_found() {
    let steady = ("teardown-p50", "mount_p50_ms");
    let (tries, exact) = put_in(steady, 1.2, &[1], 21..=39);
    assert!(exact * 100 >= tries * 97, "{exact} of {tries}");
    // With a fifth of the runs on one side there is less to go by.
    let (tries, exact) = put_in(steady, 1.2, &[1], 12..=48);
    assert!(exact * 100 >= tries * 90, "{exact} of {tries}");
    // Where neighbours resemble each other, sixty runs say less than sixty.
    let (tries, exact) = put_in(steady, 1.2, &[3, 5], 12..=48);
    assert!(exact * 100 >= tries * 50, "{exact} of {tries}");
    // This one scatters by 9 %.
    let (tries, exact) = put_in(CALM, 1.2, &[1], 21..=39);
    assert!(exact * 100 >= tries * 90, "{exact} of {tries}");
}

/// What scatters more hides larger steps.
#[test]
fn larger_steps_are_found_in_what_scatters_more() {
    let (tries, exact) = put_in(("teardown-calm", "unmount_max_ms"), 1.8, &[1, 5], 12..=48);
    assert!(exact * 100 >= tries * 90, "{exact} of {tries}");
    let (tries, exact) = put_in(("scale-stream", "waiting_ms"), 4.0, &[1], 12..=48);
    assert!(exact * 100 >= tries * 80, "{exact} of {tries}");
}

/// Sixty values that scatter as the calm series does.
fn sixty(random: &mut fastrand::Rng) -> Vec<f64> {
    shuffled(&recorded(CALM.0, CALM.1), 1, random)[..60].to_vec()
}

#[test]
fn outliers_and_bursts_are_no_steps() {
    let mut random = fastrand::Rng::with_seed(13);
    for length in [1, 2, 3] {
        for place in 0..=60 - length {
            let mut values = sixty(&mut random);
            values[place..place + length].iter_mut().for_each(|value| *value *= 50.0);
            assert_eq!(in_values(&values), [], "{length} at {place}");
        }
    }
}

#[test]
fn two_steps_are_two() {
    let mut random = fastrand::Rng::with_seed(14);
    let mut good = 0;
    for _ in 0..50 {
        // Up and down again, which one test of the whole series would hardly see; and up twice.
        for (second, third) in [(1.6, 1.0), (1.6, 2.5)] {
            let mut values = sixty(&mut random);
            values[20..40].iter_mut().for_each(|value| *value *= second);
            values[40..].iter_mut().for_each(|value| *value *= third);
            let found = in_values(&values);
            let near =
                |n: usize, place: usize| found.get(n).is_some_and(|step| step.index.abs_diff(place) <= 3);
            good += usize::from(
                found.len() == 2 && near(0, 20) && near(1, 40) && found.iter().all(|f| !f.gradual),
            );
        }
    }
    println!("{good} of 100");
    assert!(good >= 75, "{good} of 100");
}

#[test]
fn a_drift_is_told_as_one_change_little_by_little() {
    let mut random = fastrand::Rng::with_seed(15);
    let mut good = 0;
    for _ in 0..50 {
        let mut values = shuffled(&recorded(CALM.0, CALM.1), 1, &mut random)[..120].to_vec();
        values.iter_mut().enumerate().for_each(|(n, value)| *value *= 1.0 + n as f64 / 120.0);
        let found = in_values(&values);
        good += usize::from(found.len() == 1 && found[0].gradual && found[0].ratio.value > 1.2);
    }
    println!("{good} of 50");
    assert!(good >= 40, "{good} of 50");
}

#[test]
fn the_same_runs_have_the_same_steps() {
    let mut random = fastrand::Rng::with_seed(16);
    let mut values = sixty(&mut random);
    values[30..].iter_mut().for_each(|value| *value *= 1.5);
    let first = in_values(&values);
    assert_eq!(first.len(), 1);
    assert_eq!(in_values(&values), first);
    // Neither a unit nor a direction matters.
    let seconds: Vec<f64> = values.iter().map(|value| value / 1e3).collect();
    assert_eq!(in_values(&seconds)[0].index, first[0].index);
    let change = &first[0];
    assert!(change.ratio.low <= change.ratio.value && change.ratio.value <= change.ratio.high);
    assert!(change.ratio.low > 1.2 && change.ratio.high < 1.9 && change.confidence > 0.99, "{change:?}");
}

#[test]
fn odd_values() {
    assert_eq!(in_values(&[]), []);
    assert_eq!(in_values(&[0.0; 100]), []);
    assert_eq!(in_values(&[-1.0; 100]), []);
    assert_eq!(in_values(&[7.0; 100]), []);
    assert_eq!(in_values(&[1.0, 2.0, 3.0]), []);
    // Coarse clocks: many equal values.
    let coarse: Vec<f64> = (0..60).map(|n| if n < 30 { 1.0 + f64::from(n % 2) } else { 3.0 }).collect();
    assert!(in_values(&coarse)[0].index.abs_diff(30) <= 1);
    let zeros: Vec<f64> = (0..60).map(|n| if n < 30 { 0.0 } else { 3.0 + f64::from(n % 3) }).collect();
    assert_eq!(in_values(&zeros).len(), 1);
    let many: Vec<f64> =
        (0..10_000).map(|n| if n < 5_000 { 1.0 } else { 1.3 } + f64::from(n * 7 % 13) / 50.0).collect();
    let found = in_values(&many);
    assert_eq!((found.len(), found[0].index), (1, 5000), "{found:?}");
}

#[test]
fn a_step_is_told_with_the_runs_around_it() {
    let mut random = fastrand::Rng::with_seed(17);
    let point = |n: i64, value: f64, kernel: &str| Point {
        id: 100 + n,
        begun_ms: n * 1000,
        value: Some(value),
        complete: true,
        version: "0.1.0".into(),
        revision: None,
        machine: Machine { kernel: kernel.into(), cpus: 2, ..Machine::default() },
    };
    let mut points: Vec<Point> = Vec::new();
    for n in 0..60 {
        let value = if n < 30 { 100.0 } else { 150.0 } * (1.0 + 0.1 * random.f64());
        points.push(point(n, value, if n < 31 { "6.12.9" } else { "6.12.12" }));
    }
    // Half runs do not count, however long they took.
    points.insert(30, Point { id: 999, complete: false, value: Some(1e9), ..point(30, 0.0, "x") });
    points.insert(40, Point { id: 998, value: None, ..point(40, 0.0, "x") });
    let found = find(&points);
    assert_eq!(found.len(), 1);
    let step = &found[0];
    assert_eq!((step.index, step.before, step.run, step.begun_ms), (30, 129, 130, 30_000));
    let kernel = Changed { what: "kernel".into(), from: "6.12.9".into(), to: "6.12.12".into(), run: 131 };
    assert_eq!(step.changed, [kernel]);
    let text = serde_json::to_string(step).unwrap();
    assert_eq!(serde_json::from_str::<Step>(&text).unwrap(), *step);
}

/// A monitor looks after each run: how often is there an alarm in 200 runs of the same thing?
#[test]
fn looks_after_each_run_have_few_alarms() {
    let mut random = fastrand::Rng::with_seed(18);
    let (mut series, mut alarms) = (0, 0);
    for (file, column) in ALL {
        let values = recorded(file, column);
        for _ in 0..12 {
            let values = shuffled(&values, 5, &mut random);
            series += 1;
            // Every third look: neighbouring looks see almost the same.
            alarms += usize::from((12..=200).step_by(3).any(|n| !in_values(&values[..n]).is_empty()));
        }
    }
    println!("{alarms} of {series} series");
    assert!(alarms * 20 <= series, "{alarms} of {series}");
}
