use super::*;

const DAY: i64 = 86_400_000;
const NOW: i64 = 1_796_036_400_000;

/// Runs every ten minutes; the second half is 40 % slower.
fn line(name: &str, runs: i64) -> Line {
    let value = |n: i64| {
        (if n < runs / 2 { 2_000.0 } else { 2_800.0 }) + f64::from(u32::try_from(n * 7919 % 100).unwrap())
    };
    let points = (0..runs).map(|n| Point { id: n + 1, at_ms: NOW + n * 600_000, value: value(n) }).collect();
    Line { name: name.into(), points }
}

fn step(line: &str, runs: i64) -> Step {
    let at_ms = NOW + runs / 2 * 600_000;
    Step {
        line: line.into(),
        id: runs / 2 + 1,
        at_ms,
        before: 2_050.0,
        after: 2_850.0,
        what: "kernel 6.1 → 6.12".into(),
    }
}

fn ids(svg: &str) -> BTreeSet<i64> {
    let document = roxmltree::Document::parse(svg).unwrap();
    let dots = document.descendants().filter(|n| n.attribute("class") == Some("wp-dot"));
    dots.map(|n| n.attribute("data-id").unwrap().parse().unwrap()).collect()
}

#[test]
fn every_run_is_a_dot_and_every_step_a_mark() {
    for axis in [Axis::Linear, Axis::Log] {
        for look in [Look::wide(), Look::narrow()] {
            let of = Series {
                axis,
                lines: vec![line("stream", 60), line("oci", 60)],
                steps: vec![step("stream", 60)],
                ..Series::default()
            };
            let svg = series(&of, &look.titled("Waiting time"));
            assert_eq!(ids(&svg), (1..=60).collect());
            let document = roxmltree::Document::parse(&svg).unwrap();
            let step = document.descendants().find(|n| n.attribute("data-step") == Some("0")).unwrap();
            assert_eq!(step.attribute("data-id"), Some("31"));
            let title = step.children().find(|n| n.has_tag_name("title")).unwrap().text().unwrap();
            assert_eq!(
                title,
                "stream 2026-11-30 16:00 UTC: from 2.05 s to 2.85 s (+39 %); kernel 6.1 → 6.12"
            );
            assert!(step.descendants().any(|n| n.text() == Some("stream +39 %")));
            // The median of the line with the step is in two pieces.
            let medians = document.descendants().filter(|n| {
                n.attribute("class").is_some_and(|c| c.starts_with("wp-median"))
                    && n.parent().unwrap().has_tag_name("svg")
            });
            assert_eq!(medians.count(), 3);
        }
    }
}

#[test]
fn many_runs_stay_small_and_extremes_stay() {
    let mut many = line("stream", 10_000);
    many.points[7_777].value = 90_000.0;
    many.points[3_333].value = 0.5;
    for axis in [Axis::Linear, Axis::Log] {
        let of = Series {
            axis,
            lines: vec![many.clone(), line("oci", 10_000)],
            steps: vec![step("stream", 10_000)],
            ..Series::default()
        };
        let svg = series(&of, &Look::wide());
        assert!(svg.len() < 500_000, "{}", svg.len());
        let ids = ids(&svg);
        assert!(ids.contains(&7_778) && ids.contains(&3_334) && ids.len() > 500, "{}", ids.len());
    }
}

#[test]
fn sizes_of_steps() {
    let size = |before, after| Step { before, after, ..Step::default() }.size();
    assert_eq!(size(100.0, 121.0), "+21 %");
    assert_eq!(size(100.0, 70.0), "-30 %");
    assert_eq!(size(100.0, 340.0), "× 3.4");
    assert_eq!(size(100.0, 8_000.0), "× 80");
    assert_eq!(size(100.0, 25.0), "÷ 4.0");
    assert_eq!(size(0.0, 1.0), "step");
}

#[test]
fn hostile_series() {
    let evil = "</title><script>x</script>\"'";
    let mut of = Series {
        lines: vec![line(evil, 5)],
        steps: vec![Step { what: evil.into(), ..step(evil, 5) }],
        ..Series::default()
    };
    let points = &mut of.lines[0].points;
    for value in [f64::NAN, f64::INFINITY, -5.0, 0.0, 1e300] {
        points.push(Point { id: -1, at_ms: i64::MAX, value });
        points.push(Point { id: -1, at_ms: i64::MIN, value });
    }
    for axis in [Axis::Linear, Axis::Log] {
        of.axis = axis;
        let svg = series(&of, &Look::wide().titled(evil));
        let document = roxmltree::Document::parse(&svg).unwrap();
        assert!(document.descendants().all(|n| !n.has_tag_name("script")));
        assert!(!svg.contains("NaN"), "{svg}");
    }
    of.steps = vec![of.steps[0].clone(); 10_000];
    of.lines = vec![of.lines[0].clone(); 100];
    let svg = series(&of, &Look::narrow());
    assert!(svg.len() < 500_000 && svg.contains("88 more lines are not drawn"), "{}", svg.len());
}

#[test]
fn no_runs_say_so() {
    for lines in [vec![], vec![Line { name: "stream".into(), points: vec![] }]] {
        let svg = series(&Series { lines, ..Series::default() }, &Look::narrow());
        roxmltree::Document::parse(&svg).unwrap();
        assert!(svg.contains("There are no runs yet."));
    }
    // One run is a picture.
    let one = Series { lines: vec![line("stream", 1)], ..Series::default() };
    assert_eq!(ids(&series(&one, &Look::wide())).len(), 1);
    let long = Series {
        lines: vec![Line {
            name: "x".into(),
            points: vec![Point::default(), Point { at_ms: 40 * 365 * DAY, value: 1.0, id: 7 }],
        }],
        ..Series::default()
    };
    assert_eq!(ids(&series(&long, &Look::wide())), BTreeSet::from([0, 7]));
}
