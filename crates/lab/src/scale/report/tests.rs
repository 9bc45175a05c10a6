use super::*;

/// A story with steps of these durations, starting from 1 instance.
fn story(run: usize, mode: Mode, steps: &[(usize, u64)]) -> Report {
    limited(run, Kind { mode, disk_limit_bytes: None }, steps)
}

fn limited(run: usize, kind: Kind, steps: &[(usize, u64)]) -> Report {
    let mut from = 1;
    let steps = steps.iter().map(|(to, waited)| {
        let phase = Phase::new("create", Duration::from_millis(5), &[Duration::from_millis(4)]);
        let step = Step::new(from, *to, Duration::from_millis(*waited), vec![phase]);
        from = *to;
        step
    });
    let steps: Vec<Step> = steps.collect();
    let mut phases: Vec<Phase> = steps.iter().flat_map(|step| step.phases.clone()).collect();
    phases.push(Phase::new("destroy", Duration::from_millis(7), &[]));
    let oci = u64::from(kind.mode == Mode::Oci);
    Report {
        run,
        kind,
        complete: true,
        error: None,
        length_ms: 2_000.0,
        waiting_ms: steps.iter().map(|step| step.waiting_ms).sum(),
        story_ms: steps.iter().map(|step| step.waiting_ms).sum::<f64>() + 100.0,
        slowest_destroy_ms: 3.0 + run as f64,
        slowest_pea_destroy_ms: 4.0,
        dirty_at_destroy_bytes: 5_000_000,
        written_bytes: 6_000_000,
        idle_written_bytes: 7_500_000 - run as u64,
        disk_written_bytes: Some(5_000_000),
        idle_disk_written_bytes: Some(1_000_000),
        fetches: oci,
        fetched_bytes: oci * 2_100_000,
        droplet_bytes: oci * 2_100_000,
        layer_bytes: oci * 2_000_000,
        begin: Some(Step::new(0, 1, Duration::from_millis(250), Vec::new())),
        steps,
        phases,
        marks: Vec::new(),
        samples: vec![Sample { t_ms: 1.5, dirty_bytes: 1, writeback_bytes: 2 }],
        host: Host::default(),
    }
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-9
}

#[test]
fn the_json_of_one_story_has_the_promised_names() {
    let stories = Stories(vec![story(1, Mode::Stream, &[(10, 900)])]);
    let json = serde_json::to_value(&stories).unwrap();
    assert_eq!(json["phases"][0]["each_ms"][0], 4.0);
    assert_eq!(json["samples"][0]["writeback_bytes"], 2);
    assert_eq!((&json["waiting_ms"], &json["mode"]), (&900.0.into(), &"stream".into()));
    let step = &json["steps"][0];
    assert_eq!((&step["from"], &step["to"], &step["waiting_ms"]), (&1.into(), &10.into(), &900.0.into()));
    assert_eq!((&step["per_instance_ms"], &step["phases"][0]["name"]), (&100.0.into(), &"create".into()));
    for name in [
        "disk_limit_bytes",
        "story_ms",
        "slowest_destroy_ms",
        "slowest_pea_destroy_ms",
        "written_bytes",
        "idle_written_bytes",
        "disk_written_bytes",
        "idle_disk_written_bytes",
        "fetches",
        "fetched_bytes",
        "droplet_bytes",
        "layer_bytes",
        "host",
    ] {
        assert!(json.get(name).is_some(), "{name}");
    }
}

#[test]
fn one_story_is_told_by_its_phases() {
    let table = Stories(vec![story(1, Mode::Stream, &[(10, 900)])]).table();
    assert!(table.contains("create") && table.contains("5.0 MB dirty"), "{table}");
    assert!(!table.contains("→") && !table.contains("fetched"), "{table}");

    let table = Stories(vec![story(1, Mode::Oci, &[(10, 900), (100, 3600)])]).table();
    for words in [
        "1 → 10: 0.90 s, 100.0 ms for each of 9\n",
        "10 → 100: 3.60 s, 40.0 ms for each of 90\n",
        "waited 4.50 s",
        "fetched 2.1 MB in 1 request for a layer of 2.0 MB (2.1 MB gzipped), while 1 to begin with came up in 0.25 s.",
    ] {
        assert!(table.contains(words), "{words}: {table}");
    }
    assert_eq!(table.matches("create").count(), 2);
    assert_eq!(table.matches("destroy  ").count(), 1);
}

#[test]
fn several_stories_are_told_side_by_side() {
    let stories = Stories(vec![
        story(1, Mode::Stream, &[(10, 900), (100, 18_000)]),
        story(1, Mode::Oci, &[(10, 90), (100, 900)]),
        story(2, Mode::Stream, &[(10, 1800), (100, 18_000)]),
        story(2, Mode::Oci, &[(10, 360), (100, 2700)]),
        story(3, Mode::Stream, &[(10, 900), (100, 9000)]),
        story(3, Mode::Oci, &[(10, 270), (100, 900)]),
    ]);
    let summary = Summary::of(&stories.0);
    let named: Vec<_> = summary.rows.iter().map(|row| (row.kind.mode, row.from, row.to, row.runs)).collect();
    assert_eq!(
        named,
        [
            (Mode::Stream, 1, 10, 3),
            (Mode::Stream, 10, 100, 3),
            (Mode::Oci, 1, 10, 3),
            (Mode::Oci, 10, 100, 3)
        ]
    );
    assert_eq!(summary.rows[0].waiting_ms, Spread { median: 900.0, least: 900.0, most: 1800.0 });
    assert_eq!(summary.rows[3].per_instance_ms, Spread { median: 10.0, least: 10.0, most: 30.0 });
    assert!(summary.rows[0].story.is_none());
    let whole = summary.rows[3].story.as_ref().unwrap();
    assert_eq!(whole.slowest_destroy_ms, Spread { median: 5.0, least: 4.0, most: 6.0 });
    assert_eq!(whole.fetched_bytes.median, 2_100_000.0);
    assert_eq!(whole.written_less_idle_bytes.least, -1_499_999.0);
    assert_eq!(whole.disk_written_less_idle_bytes.as_ref().unwrap().least, 4_000_000.0);

    // The median of ratios of pairs, which is not the ratio of medians.
    let ratios: Vec<f64> = summary.oci_by_stream.iter().map(|ratio| ratio.median).collect();
    assert!(close(ratios[0], 0.2) && close(ratios[1], 0.1) && ratios.len() == 2, "{ratios:?}");
    let growth: Vec<f64> = summary.growth.iter().map(|growth| growth.median).collect();
    assert!(close(growth[0], 1.0) && close(growth[1], 0.75) && growth.len() == 2, "{growth:?}");
    assert_eq!((summary.growth[1].before, summary.growth[1].step), ((1, 10), (10, 100)));

    let json = serde_json::to_value(&stories).unwrap();
    let order: Vec<_> = json["stories"].as_array().unwrap().iter().map(|s| (&s["run"], &s["mode"])).collect();
    assert_eq!(order[3], (&2.into(), &"oci".into()));
    assert_eq!(json["summary"]["rows"][2]["waiting_ms"]["most"], 360.0);
    assert_eq!(json["summary"]["rows"][3]["fetches"]["median"], 1.0);
    assert_eq!(json["summary"]["oci_by_stream"][1]["each"].as_array().unwrap().len(), 3);

    let table = stories.table();
    for words in [
        "mode    step      runs",
        "oci     10 → 100     3",
        "0.90 (0.90 – 1.80)",
        "5.0 (4.0 – 6.0)   2.1 MB            -1.5 MB       4.0 MB\n",
        "1 → 10: with the code as a layer the developer waited 0.20 × as long as with the code streamed in \
         (0.10 – 0.30 in 3 pairs of runs).",
        "oci, 10 → 100: an instance took 0.75 × as long as one of 1 → 10 (0.33 – 1.00 in 3 runs).",
    ] {
        assert!(table.contains(words), "{words}: {table}");
    }
}

#[test]
fn stories_with_a_limit_are_compared_with_those_without() {
    let kind = |mode, limited: bool| Kind { mode, disk_limit_bytes: limited.then_some(1 << 30) };
    let told = |run, mode, limit, waited| limited(run, kind(mode, limit), &[(10, waited)]);
    let stories = Stories(vec![
        told(1, Mode::Stream, false, 900),
        told(1, Mode::Stream, true, 1000),
        told(1, Mode::Oci, false, 100),
        told(1, Mode::Oci, true, 300),
        told(2, Mode::Stream, false, 900),
        told(2, Mode::Stream, true, 1200),
        told(2, Mode::Oci, false, 100),
        told(2, Mode::Oci, true, 100),
    ]);
    let summary = Summary::of(&stories.0);
    let rows: Vec<String> = summary.rows.iter().map(|row| row.kind.to_string()).collect();
    assert_eq!(rows, ["stream", "stream, limited", "oci", "oci, limited"]);
    assert_eq!(summary.rows[1].story.as_ref().unwrap().story_ms.most, 1300.0);
    let [stream, oci] = &summary.limited_by_unlimited[..] else { panic!("{summary:?}") };
    assert!(
        close(stream.median, 1.2) && close(stream.each[0], 1.1) && close(oci.each[0], 2.0),
        "{summary:?}"
    );
    // A layer is compared with what was streamed in under the same limit.
    let layers: Vec<_> = summary.oci_by_stream.iter().map(|ratio| ratio.disk_limit_bytes).collect();
    assert_eq!(layers, [None, Some(1 << 30)]);
    assert!(close(summary.oci_by_stream[1].each[0], 0.3), "{summary:?}");

    let json = serde_json::to_value(&stories).unwrap();
    assert_eq!(
        (&json["stories"][1]["disk_limit_bytes"], &json["stories"][1]["mode"]),
        (&(1 << 30).into(), &"stream".into())
    );
    assert_eq!(json["summary"]["rows"][0]["disk_limit_bytes"], serde_json::Value::Null);
    assert_eq!(json["summary"]["limited_by_unlimited"][1]["mode"], "oci");
    let table = stories.table();
    for words in [
        "stream, limited  1 → 10     2",
        "stream: with a disk limit of 1.07 GB for each instance the story took 1.20 × as long as without (1.10 – 1.30 in \
         2 pairs of runs).",
        "1 → 10, limited: with the code as a layer",
    ] {
        assert!(table.contains(words), "{words}: {table}");
    }
}

#[test]
fn runs_of_one_mode_are_compared_with_nothing() {
    let stories: Vec<Report> = (1..=2).map(|run| story(run, Mode::Stream, &[(10, 900)])).collect();
    let summary = Summary::of(&stories);
    assert!(summary.limited_by_unlimited.is_empty());
    assert!(summary.oci_by_stream.is_empty() && summary.growth.is_empty());
    assert_eq!(summary.rows.len(), 1);
}
