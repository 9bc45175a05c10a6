use super::*;

fn entry(name: &str, runs: &[f64]) -> Entry {
    Entry { name: name.into(), runs: runs.to_vec(), ..Entry::default() }
}

#[test]
fn every_row_and_run_is_there() {
    let podman = Entry {
        ratio: "3.2 × (2.9 – 3.6)".into(),
        note: "no peas: podman exec instead".into(),
        ..entry("podman", &[90.0, 110.0, 100.0])
    };
    let of = Comparison {
        unit: Unit::Ms,
        entries: vec![entry("wardian", &[31.0, 30.0, 33.0]), podman, entry("docker", &[])],
        bound: Some(120.0),
    };
    for look in [Look::wide(), Look::narrow()] {
        let svg = comparison(&of, &look.titled("Scaling 1 → 10"));
        let document = roxmltree::Document::parse(&svg).unwrap();
        assert_eq!(document.descendants().filter(|n| n.has_tag_name("circle")).count(), 6);
        assert_eq!(document.descendants().filter(|n| n.attribute("data-entry").is_some()).count(), 3);
        for text in ["wardian", "31.0 ms", "100 ms", "3.2 ×", "no peas", "–", "bound 120 ms"] {
            assert!(svg.contains(text), "{text}");
        }
    }
}

#[test]
fn hostile_and_large_comparisons() {
    let evil = "</title><script>x</script>\"'";
    let all = Entry {
        kind: evil.into(),
        ratio: evil.into(),
        note: evil.into(),
        ..entry(evil, &[f64::NAN, -1.0, f64::INFINITY, 1e300])
    };
    let of = Comparison { unit: Unit::Bytes, entries: vec![all; 1_000], bound: Some(f64::NAN) };
    let svg = comparison(&of, &Look::narrow());
    let document = roxmltree::Document::parse(&svg).unwrap();
    assert!(document.descendants().all(|n| !n.has_tag_name("script")) && !svg.contains("NaN"));
    assert!(svg.contains("940 more rows are not drawn"));
    let many: Vec<f64> = (0..100_000).map(f64::from).collect();
    let svg =
        comparison(&Comparison { entries: vec![entry("x", &many)], ..Comparison::default() }, &Look::wide());
    assert!(svg.len() < 30_000, "{}", svg.len());
}

#[test]
fn nothing_says_so() {
    let svg = comparison(&Comparison::default(), &Look::wide());
    roxmltree::Document::parse(&svg).unwrap();
    assert!(svg.contains("There is nothing to compare."));
}
