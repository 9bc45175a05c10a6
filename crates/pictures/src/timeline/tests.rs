use super::*;
use wardian_history::{Bar, Mark, Sample};

fn bar(phase: &str, begin_ms: f64, ms: f64) -> Bar {
    Bar { phase: phase.into(), begin_ms, ms }
}

/// A teardown of this many mounts.
fn teardown(mounts: u32) -> Timeline {
    let rows = (0..mounts).map(|n| {
        let at = f64::from(n) * 40.0;
        let bars = vec![
            bar("mount", at, 0.2),
            bar("write", at + 0.5, 38.0),
            bar("unmount", 1_700.0, 1_495.0),
            bar("remove", 3_200.0 + at, 14.0),
        ];
        Row { name: format!("mount {n}"), bars }
    });
    let wait = |row: Option<&str>, begin_ms| Wait {
        row: row.map(str::to_owned),
        who: "unmount-2[16700]".into(),
        begin_ms,
        ms: 900.0,
        place: "umount in wb_wait_for_completion".into(),
        on: Some("a sync, asked for by the unmount of mount 0".into()),
    };
    Timeline {
        length_ms: 3_800.0,
        rows: rows.collect(),
        samples: (0..190)
            .map(|n| Sample {
                t_ms: f64::from(n) * 20.0,
                dirty_bytes: u64::try_from(n).unwrap() * 5_000_000,
                writeback_bytes: 1_000_000,
            })
            .collect(),
        marks: vec![Mark { t_ms: 0.0, name: "write".into() }, Mark { t_ms: 1_700.0, name: "unmount".into() }],
        waits: vec![wait(Some("mount 2"), 1_750.0), wait(None, 1_800.0), wait(Some("nobody"), 1_900.0)],
    }
}

fn titles(svg: &str) -> Vec<String> {
    let document = roxmltree::Document::parse(svg).unwrap();
    document
        .descendants()
        .filter(|n| n.has_tag_name("title"))
        .filter_map(|n| n.text().map(str::to_owned))
        .collect()
}

#[test]
fn every_row_phase_and_wait_is_there() {
    for look in [Look::wide(), Look::narrow(), Look::wide().inline()] {
        let svg = timeline(&teardown(10), &look);
        let titles = titles(&svg);
        for n in 0..10 {
            for phase in ["mount", "write", "unmount", "remove"] {
                assert!(titles.iter().any(|t| t.starts_with(&format!("mount {n}: {phase} "))), "{n} {phase}");
            }
        }
        let wait = "unmount-2[16700] waited 900 ms for a sync, asked for by the unmount of mount 0, in umount in wb_wait_for_completion";
        assert_eq!(titles.iter().filter(|t| *t == wait).count(), 3, "{titles:?}");
        let document = roxmltree::Document::parse(&svg).unwrap();
        let texts: Vec<&str> =
            document.descendants().filter(|n| n.has_tag_name("text")).filter_map(|n| n.text()).collect();
        for text in [
            "mount 3",
            "write",
            "unmount",
            "waited in the kernel",
            "Dirty pages of the host",
            "Writeback",
            "others",
            "1.50 s",
        ] {
            // A narrow picture has no room in the bars of all phases.
            assert!(texts.contains(&text) || look.is_narrow(), "{text}: {texts:?}");
        }
        let root = document.root_element();
        assert_eq!(root.attribute("role"), Some("img"));
        assert!(
            root.children().any(|n| n.has_tag_name("desc") && n.text().unwrap().contains("unmount of mount"))
        );
        assert_eq!(svg.contains("<style>"), look.is_alone());
    }
}

#[test]
fn nothing_is_drawn_beside_the_picture() {
    for look in [Look::wide(), Look::narrow()] {
        let svg = timeline(&teardown(30), &look);
        let document = roxmltree::Document::parse(&svg).unwrap();
        let number = |n: roxmltree::Node<'_, '_>, name: &str| {
            n.attribute(name).and_then(|v| v.parse::<f64>().ok()).unwrap_or(0.0)
        };
        let (w, h) = (number(document.root_element(), "width"), number(document.root_element(), "height"));
        for rect in document.descendants().filter(|n| n.has_tag_name("rect") && n.attribute("x").is_some()) {
            let (x, y) = (number(rect, "x"), number(rect, "y"));
            assert!(
                x >= 0.0 && x + number(rect, "width") <= w && y >= 0.0 && y + number(rect, "height") <= h,
                "{rect:?}"
            );
        }
    }
}

#[test]
fn names_cannot_leave_their_place() {
    let evil = "</title><script>alert(1)</script>\" onload=\"x\u{202e}\u{0}";
    let mut of = teardown(2);
    of.rows[0].name = evil.into();
    of.rows[0].bars[0].phase = evil.into();
    of.marks[0].name = evil.into();
    of.waits[0] = Wait {
        row: Some(evil.into()),
        who: evil.into(),
        place: evil.into(),
        on: Some(evil.into()),
        ..of.waits[0].clone()
    };
    let svg = timeline(&of, &Look::wide().titled(evil));
    let document = roxmltree::Document::parse(&svg).unwrap();
    assert!(document.descendants().all(|n| !n.has_tag_name("script") && n.attribute("onload").is_none()));
    assert!(!svg.contains('\u{202e}') && svg.contains("&lt;script&gt;"));
}

#[test]
fn large_timelines_stay_small() {
    let mut of = teardown(1_000);
    of.samples = (0..20_000_u32)
        .map(|n| Sample {
            t_ms: f64::from(n) / 5.0,
            dirty_bytes: u64::from(n.wrapping_mul(2_654_435_761)),
            writeback_bytes: u64::from(n),
        })
        .collect();
    let svg = timeline(&of, &Look::wide());
    let document = roxmltree::Document::parse(&svg).unwrap();
    assert_eq!(document.descendants().filter(|n| n.attribute("data-row").is_some()).count(), 1_000);
    assert!(svg.len() < 500_000, "{}", svg.len());
    of.rows = (0..100_000)
        .map(|n| Row { name: "x".repeat(10_000) + &n.to_string(), bars: vec![bar("p", 0.0, 1.0); 3] })
        .collect();
    let svg = timeline(&of, &Look::wide());
    assert!(svg.len() < 2_000_000 && svg.contains("99000 more rows are not drawn"), "{}", svg.len());
    of.rows = vec![Row { name: "x".into(), bars: vec![bar("p", 0.0, 1.0); 100_000] }];
    of.waits = vec![of.waits[0].clone(); 100_000];
    let svg = timeline(&of, &Look::wide());
    assert!(svg.len() < 5_000_000 && svg.contains("88000 more bars"), "{}", svg.len());
}

#[test]
fn strange_times_are_drawn_somewhere() {
    let mut of = teardown(3);
    for (n, value) in [f64::NAN, f64::INFINITY, -1e300, 1e300].into_iter().enumerate() {
        of.rows[n % 3].bars.push(bar("odd", value, value));
        of.samples.push(Sample { t_ms: value, dirty_bytes: u64::MAX, writeback_bytes: 0 });
        of.marks.push(Mark { t_ms: value, name: "odd".into() });
        of.waits.push(Wait { begin_ms: value, ms: value, ..of.waits[0].clone() });
        of.length_ms = value;
        let svg = timeline(&of, &Look::narrow());
        roxmltree::Document::parse(&svg).unwrap();
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}

#[test]
fn nothing_says_so() {
    let svg = timeline(&Timeline::default(), &Look::wide());
    roxmltree::Document::parse(&svg).unwrap();
    assert!(svg.contains("Nothing was recorded."));
    // Rows alone, samples alone.
    let rows = Timeline { rows: teardown(2).rows, ..Timeline::default() };
    let samples = Timeline { samples: teardown(1).samples, ..Timeline::default() };
    for of in [rows, samples] {
        roxmltree::Document::parse(&timeline(&of, &Look::wide())).unwrap();
    }
}
