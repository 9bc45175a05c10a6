use super::*;
use crate::{Filter, Machine, Row as Line, Timeline};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Instant;

/// A run that begins at this time.
pub fn run(begun_ms: i64) -> Run {
    Run {
        begun_ms,
        experiment: "scale".into(),
        mode: "stream".into(),
        engine: "wardian".into(),
        version: "0.1.0".into(),
        revision: Some("abc".into()),
        parameters: [("to".to_owned(), "10".to_owned()), ("empty".to_owned(), String::new())].into(),
        machine: Machine {
            host: "h".into(),
            kernel: "6.12.9".into(),
            cpus: 2,
            memory_bytes: 24 << 30,
            filesystem: "ext4".into(),
            mount_options: "rw,\"quoted\"".into(),
            cgroups: "v2".into(),
            load: 0.5,
        },
        headline: "waiting_ms".into(),
        figures: [("waiting_ms".to_owned(), 100.5), ("written_bytes".to_owned(), -3.0)].into(),
        complete: true,
        command: vec!["wardian".into(), "lab".into(), "scale, with \"quotes\"\nand lines".into()],
        ..Run::default()
    }
}

fn half(begun_ms: i64) -> Run {
    let error = Some("interrupted".to_owned());
    Run { complete: false, error, figures: Default::default(), revision: None, ..run(begun_ms) }
}

/// A directory that only root, or the user of the tests, can write to.
pub fn place() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("history-").tempdir_in("/var/tmp").unwrap()
}

#[test]
fn what_is_appended_is_read_again() {
    let dir = place();
    let path = dir.path().join("lab/h.sqlite");
    assert!(Store::existing(&path).unwrap().is_none());
    let mut store = Store::open(&path).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    let timeline = Timeline {
        length_ms: 5.0,
        rows: vec![Line { name: "app 0".into(), bars: Vec::new() }],
        ..Timeline::default()
    };
    let mut whole = Run { timeline: Some(timeline), ..run(1000) };
    whole.id = store.append(&whole).unwrap();
    let mut broken = half(2000);
    broken.id = store.append(&broken).unwrap();
    assert_eq!((whole.id, broken.id, store.newest().unwrap()), (1, 2, 2));
    assert_eq!(store.run(1).unwrap().unwrap(), whole);
    assert_eq!(store.run(2).unwrap().unwrap(), broken);
    assert_eq!(store.run(3).unwrap(), None);
    let listed = Run { timeline: None, ..whole };
    assert_eq!(store.list(&Filter::default()).unwrap(), [listed, broken]);
    let points = store.points(&run(0).series()).unwrap();
    assert_eq!((points.len(), points[0].value, points[1].value), (2, Some(100.5), None));
    assert_eq!((points[0].machine.kernel.as_str(), points[1].complete), ("6.12.9", false));
    let series = store.series().unwrap();
    assert_eq!((series.len(), series[0].runs, series[0].complete), (1, 2, 1));
    assert_eq!((series[0].oldest_ms, series[0].newest_ms), (1000, 2000));
    drop(store);
    // The last one that closes it leaves one file.
    let names: Vec<_> =
        std::fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["h.sqlite"]);
}

#[test]
fn filters() {
    let dir = place();
    let mut store = Store::open(&dir.path().join("h")).unwrap();
    for n in 0..6 {
        let engine = if n % 2 == 0 { "wardian" } else { "podman" };
        store.append(&Run { engine: engine.into(), ..run(n * 100) }).unwrap();
    }
    store.append(&half(50)).unwrap();
    let begun = |filter: Filter| -> Vec<i64> {
        store.list(&filter).unwrap().iter().map(|run| run.begun_ms).collect()
    };
    let all = Filter::default();
    assert_eq!(begun(all.clone()), [0, 50, 100, 200, 300, 400, 500]);
    assert_eq!(begun(Filter { engine: Some("podman".into()), ..all.clone() }), [100, 300, 500]);
    assert_eq!(begun(Filter { since_ms: Some(100), until_ms: Some(400), ..all.clone() }), [100, 200, 300]);
    assert_eq!(begun(Filter { limit: Some(2), ..all.clone() }), [400, 500]);
    assert_eq!(begun(Filter { complete: true, limit: Some(6), ..all.clone() }), [0, 100, 200, 300, 400, 500]);
    assert_eq!(begun(Filter { series: Some(run(0).series()), ..all.clone() }), [0, 50, 200, 400]);
    assert_eq!(begun(Filter { mode: Some("oci".into()), ..all.clone() }), [0; 0]);
    assert_eq!(
        begun(Filter { kernel: Some("6.12.9".into()), experiment: Some("scale".into()), ..all }).len(),
        7
    );
    assert_eq!(store.series_since(6).unwrap(), [run(0).series()]);
    assert_eq!(store.prune(2).unwrap(), 3);
    let left: Vec<i64> = store.list(&Filter::default()).unwrap().iter().map(|run| run.begun_ms).collect();
    assert_eq!(left, [200, 300, 400, 500]);
    assert_eq!(store.delete(&[2, 4, 6, 99]).unwrap(), 2);
    assert_eq!(store.series().unwrap().len(), 1);
}

#[test]
fn a_file_of_version_1_is_migrated() {
    let dir = place();
    let path = dir.path().join("h");
    let db = Connection::open(&path).unwrap();
    schema::tests::first(&db);
    db.execute_batch(
        "INSERT INTO runs VALUES (7, 1000, 'h|scale|wardian|stream|to=10', 'scale', 'stream', 'wardian', '0.1.0', NULL,
             '{\"to\":\"10\"}', 'h', '6.1', 2, 1024, 'xfs', 'rw', 'v1', 0.5, 'waiting_ms', 1, NULL, '[\"wardian\"]');
         INSERT INTO figures VALUES (7, 'waiting_ms', 12.5), (7, 'other_ms', 1.0);",
    )
    .unwrap();
    drop(db);
    let store = Store::open(&path).unwrap();
    let runs = store.list(&Filter::default()).unwrap();
    assert_eq!((runs.len(), runs[0].id, runs[0].value(), runs[0].figures.len()), (1, 7, Some(12.5), 2));
    assert_eq!(store.points("h|scale|wardian|stream|to=10").unwrap()[0].value, Some(12.5));
    assert_eq!(store.series().unwrap()[0].name, runs[0].series());
    drop(store);
    let version: i64 =
        Connection::open(&path).unwrap().pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(version, schema::VERSION);
}

#[test]
fn what_is_no_history_is_refused_and_kept() {
    let dir = place();
    let path = dir.path().join("h");
    Store::open(&path).unwrap().append(&run(1)).unwrap();
    let good = std::fs::read(&path).unwrap();
    let refused = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let error = match Store::open(&path) {
            Ok(store) => store.list(&Filter::default()).map(drop).expect_err("it was read"),
            Err(error) => error,
        };
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "it was changed: {error}");
        error.to_string()
    };
    for bytes in [b"this is no database, but a text that somebody has put there".to_vec(), vec![0xff; 8192]] {
        let said = refused(&bytes);
        assert!(said.contains("is damaged") && said.contains("move it away"), "{said}");
        assert!(said.contains(path.to_str().unwrap()), "{said}");
    }
    // The pages after the first are gone.
    assert!(refused(&good[..4096]).contains("is damaged"));
    let mut newer = good.clone();
    newer[60..64].copy_from_slice(&99_u32.to_be_bytes());
    assert!(refused(&newer).contains("has version 99, and this program knows versions up to 2"));
    let mut foreign = good;
    foreign[68..72].copy_from_slice(b"XXXX");
    assert!(refused(&foreign).contains("database of another program"));
}

#[test]
fn where_others_could_interfere_is_no_place() {
    let dir = place();
    let path = dir.path().join("h");
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    assert!(Store::open(&path).unwrap_err().to_string().contains("a link"));
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(Store::open(&path).unwrap_err().to_string().contains("directory"));
    std::fs::remove_dir(&path).unwrap();
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    assert!(matches!(Store::open(&path), Err(Error::Place(Untrusted::Writable { .. }))));
    assert!(
        matches!(Store::open(Path::new("/var/tmp/history-x")), Err(Error::Place(_))),
        "a sticky directory"
    );
    assert!(!Path::new("/var/tmp/history-x").exists());
    assert!(matches!(Store::open(Path::new("/")), Err(Error::NoFile { .. })));
}

#[test]
fn runs_that_are_out_of_bounds_are_refused() {
    let dir = place();
    let mut store = Store::open(&dir.path().join("h")).unwrap();
    let long = "x".repeat(5000);
    for (words, bad) in [
        ("no experiment", Run { experiment: String::new(), ..run(1) }),
        (
            "kernel has 5000 bytes",
            Run { machine: Machine { kernel: long.clone(), ..Machine::default() }, ..run(1) },
        ),
        ("5000 bytes", Run { error: Some(long), ..run(1) }),
        ("waiting_ms is NaN", Run { figures: [("waiting_ms".into(), f64::NAN)].into(), ..run(1) }),
        ("lacks its headline", Run { headline: "other".into(), ..run(1) }),
        ("begun_ms is -1", run(-1)),
        ("begun_ms is 9223372036854775807", run(i64::MAX)),
    ] {
        let said = store.append(&bad).unwrap_err().to_string();
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(store.list(&Filter::default()).unwrap().is_empty() && store.series().unwrap().is_empty());
}

#[test]
fn several_append_at_once_while_others_read() {
    let dir = place();
    let path = dir.path().join("h");
    let threads: Vec<_> = (0..4)
        .map(|n| {
            let path = path.clone();
            std::thread::spawn(move || {
                // Each opens it for itself, the first ones while it is being created.
                for m in 0..10 {
                    let mut store = Store::open(&path).unwrap();
                    store.append(&run(n * 100 + m)).unwrap();
                    assert!(!store.list(&Filter::default()).unwrap().is_empty());
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(Store::open(&path).unwrap().list(&Filter::default()).unwrap().len(), 40);
}

/// A history that somebody else has made: what its schema names is not run, and values have a bound.
#[test]
fn a_hostile_schema_runs_nothing() {
    let dir = place();
    let path = dir.path().join("h");
    let store = Store::open(&path).unwrap();
    store
        .db
        .execute_batch(
            "CREATE TRIGGER t AFTER INSERT ON runs BEGIN INSERT INTO series (name) VALUES ('evil'); END;",
        )
        .unwrap();
    drop(store);
    let mut store = Store::open(&path).unwrap();
    store.append(&run(1)).unwrap();
    store.append(&run(2)).unwrap();
    assert!(store.series().unwrap().iter().all(|series| series.name != "evil"));
    // What goes with a run still goes with it.
    store.delete(&[1]).unwrap();
    let figures: i64 =
        store.db.query_row("SELECT count(DISTINCT run) FROM figures", (), |row| row.get(0)).unwrap();
    assert_eq!(figures, 1);
    store.db.set_limit(Limit::SQLITE_LIMIT_LENGTH, 1 << 30).unwrap();
    store.db.execute("UPDATE runs SET error = printf('%.*c', 40000000, 'x')", ()).unwrap();
    drop(store);
    let said = Store::open(&path).unwrap().list(&Filter::default()).unwrap_err().to_string();
    assert!(said.contains("too big"), "{said}");
}

#[test]
fn what_cannot_be_written_can_be_read() {
    let dir = place();
    let path = dir.path().join("a ?%#b");
    Store::open(&path).unwrap().append(&run(1)).unwrap();
    assert!(is_database(&path) && !is_database(dir.path()) && !is_database(&dir.path().join("none")));
    let store = Store::found(&path, Access::Read).unwrap().unwrap();
    assert_eq!(store.list(&Filter::default()).unwrap().len(), 1);
    let mut store = store;
    assert!(store.append(&run(2)).is_err());
    // With a log that is not merged it would be read as it was before.
    std::fs::write(dir.path().join("a ?%#b-wal"), "x").unwrap();
    let said = Store::found(&path, Access::Read).unwrap_err().to_string();
    assert!(said.contains("cannot be written"), "{said}");
    assert!(Store::readable(&dir.path().join("none")).unwrap().is_none());
}

#[test]
fn a_full_disk_is_told_and_the_file_stays_whole() {
    let dir = place();
    let path = dir.path().join("h");
    let mut store = Store::open(&path).unwrap();
    store.append(&run(1)).unwrap();
    // What a full disk is to a write, the limit of pages is to SQLite.
    let pages: i64 = store.db.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    store.db.pragma_update(None, "max_page_count", pages).unwrap();
    let words = (0..1000).map(|n| format!("{n} {}", "x".repeat(100))).collect::<Vec<_>>();
    let said = store.append(&Run { command: words, ..run(2) }).unwrap_err().to_string();
    assert!(said.contains("was not written: its disk is full"), "{said}");
    drop(store);
    assert_eq!(Store::open(&path).unwrap().list(&Filter::default()).unwrap().len(), 1);
}

/// Not a matter of speed but of size: what is listed does not grow with the timelines.
#[test]
fn ten_thousand_runs() {
    let dir = place();
    let mut store = Store::open(&dir.path().join("h")).unwrap();
    let begun = Instant::now();
    let mut batch = store.batch().unwrap();
    for n in 0..10_000 {
        batch.append(&run(n)).unwrap();
    }
    batch.commit().unwrap();
    let appended = begun.elapsed();
    let begun = Instant::now();
    assert_eq!(store.points(&run(0).series()).unwrap().len(), 10_000);
    let points = begun.elapsed();
    let begun = Instant::now();
    assert_eq!(store.series().unwrap()[0].runs, 10_000);
    let series = begun.elapsed();
    let begun = Instant::now();
    assert_eq!(store.list(&Filter::default()).unwrap().len(), 10_000);
    println!("10,000: append {appended:?}, points {points:?}, series {series:?}, list {:?}", begun.elapsed());
    let plan = "EXPLAIN QUERY PLAN SELECT value FROM runs WHERE series_id = 1 ORDER BY begun_ms";
    let plan: String = store.db.query_row(plan, (), |row| row.get(3)).unwrap();
    assert!(plan.contains("USING INDEX runs_by_series"), "{plan}");
}

#[test]
fn a_step_is_new_once() {
    let dir = place();
    let mut store = Store::open(&dir.path().join("h")).unwrap();
    let series = run(0).series();
    let mut random = fastrand::Rng::with_seed(5);
    let mut append = |store: &mut Store, n: i64, value: f64| {
        let value = value * (1.0 + 0.05 * random.f64());
        store.append(&Run { figures: [("waiting_ms".to_owned(), value)].into(), ..run(n) }).unwrap();
    };
    for n in 0..40 {
        append(&mut store, n, if n < 20 { 100.0 } else { 150.0 });
    }
    assert_eq!(store.new_steps(&series).unwrap(), [], "what the first look finds is old");
    let mut told = Vec::new();
    for n in 40..80 {
        append(&mut store, n, if n < 60 { 150.0 } else { 300.0 });
        for step in store.new_steps(&series).unwrap() {
            store.remember(&series, &step).unwrap();
            told.push((n, step.begun_ms));
        }
    }
    assert_eq!(told.len(), 1, "{told:?}");
    assert!((66..=74).contains(&told[0].0) && told[0].1 == 60, "{told:?}");
}
