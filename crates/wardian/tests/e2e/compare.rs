//! `wardian lab compare`: with podman and containerd, with an engine that hangs or fails, and an end at any moment.

use crate::cli::Said;
use crate::support::{STUCK, WARDIAN, base, cgroups, ended_within, mounts, names, signal};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use wardian_needs::needs;

/// A place for the stores of a test's engines.
struct Place {
    base: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { base: base() };
        fs::create_dir(place.fs()).unwrap();
        fs::create_dir(place.bin()).unwrap();
        place
    }

    fn fs(&self) -> PathBuf {
        self.base.path().join("fs")
    }

    fn bin(&self) -> PathBuf {
        self.base.path().join("bin")
    }

    /// A podman that tells a version, and for everything else runs this script.
    fn podman(&self, script: &str) {
        let path = self.bin().join("podman");
        fs::write(
            &path,
            format!(
                "#!/bin/sh\n[ \"$1\" != --version ] || {{ echo podman version 9.8.7; exit; }}\n{script}\n"
            ),
        )
        .unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(WARDIAN);
        let path = format!("{}:{}", self.bin().display(), std::env::var("PATH").unwrap());
        command.env("PATH", path).args(["lab", "compare", "--json"]).arg(self.base.path().join("report"));
        command.arg("--fs").arg(self.fs()).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str]) -> (Said, Value) {
        let child = self.command(args).spawn().unwrap();
        let said: Said = child.wait_with_output().unwrap().into();
        self.nothing_is_left();
        (said, self.json())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&fs::read(self.base.path().join("report")).unwrap_or_default())
            .unwrap_or_default()
    }

    fn start(&self, args: &[&str]) -> Child {
        self.command(args).spawn().unwrap()
    }

    /// Processes whose command line has the place.
    fn processes(&self) -> Vec<String> {
        let here = self.fs().display().to_string();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&here) {
                found.push(line);
            }
        }
        found
    }

    /// Names of the experiments' directories, which are those of their control groups too.
    fn groups(&self) -> Vec<String> {
        let entries = fs::read_dir(self.fs()).unwrap().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
    }

    fn nothing_is_left(&self) {
        assert_eq!(self.processes(), Vec::<String>::new());
        assert_eq!(mounts(&[self.base.path()]), Vec::<String>::new());
        assert_eq!(names(&self.fs()), Vec::<String>::new());
    }
}

fn turns(report: &Value) -> Vec<(u64, &str, &str)> {
    let turns = report["turns"].as_array().unwrap().iter();
    turns
        .map(|turn| {
            (
                turn["round"].as_u64().unwrap(),
                turn["engine"].as_str().unwrap(),
                turn["mode"].as_str().unwrap(),
            )
        })
        .collect()
}

fn phases(turn: &Value) -> Vec<&str> {
    turn["phases"].as_array().unwrap().iter().map(|phase| phase["name"].as_str().unwrap()).collect()
}

#[test]
fn podman_beside_wardian() {
    needs!(Podman);
    let place = Place::new();
    let args = ["--engines", "wardian,podman", "--experiment", "scale", "--mode", "stream", "--to", "2"];
    let (said, report) = place.run(&[&args[..], &["--code-mb", "1", "--runs", "5", "--seed", "3"]].concat());
    assert_eq!(said.code, Some(0), "{said:?}");
    let turns = turns(&report);
    for (n, round) in turns.chunks(2).enumerate() {
        let mut engines = [round[0].1, round[1].1];
        engines.sort_unstable();
        assert_eq!((round[0].0, round[1].0, engines), (n as u64 + 1, n as u64 + 1, ["podman", "wardian"]));
    }
    assert_eq!(turns.len(), 10);
    // The order is not the same in each round.
    assert!(
        turns.chunks(2).any(|round| round[0].1 == "podman")
            && turns.chunks(2).any(|round| round[0].1 == "wardian")
    );
    for turn in report["turns"].as_array().unwrap() {
        assert_eq!(phases(turn), ["create", "stream_in", "start_app", "pea", "destroy"]);
    }
    let rows = report["comparisons"][0]["rows"].as_array().unwrap();
    let waiting: Vec<&Value> = rows.iter().filter(|row| row["measure"] == "waiting").collect();
    assert_eq!((&waiting[0]["engine"], &waiting[0]["ratio"]), (&"wardian".into(), &Value::Null));
    let verdict = waiting[1]["ratio"]["verdict"].as_str().unwrap();
    assert!(["known", "too_noisy"].contains(&verdict), "{waiting:?}");
    assert!(said.out.trim_start().starts_with("An app scaled from 1 to 2 waits"), "{said:?}");
    assert!(said.out.lines().all(|line| line.chars().count() <= 80), "{said:?}");
}

/// Each experiment once, by two engines of which one is containerd: no ratio of so few.
#[test]
fn containerd_and_every_experiment() {
    needs!(Containerd);
    let place = Place::new();
    let (csv, html) = (place.base.path().join("csv"), place.base.path().join("html"));
    let files = ["--csv", csv.to_str().unwrap(), "--report", html.to_str().unwrap()];
    let args = ["--engines", "wardian,containerd", "--to", "2", "--code-mb", "1", "--runs", "1"];
    let (said, report) = place.run(&[&args[..], &files].concat());
    assert_eq!(said.code, Some(0), "{said:?}");
    // Of each engine: 4 phases of the new instance and 2 destroys, 3 and 2, and 3 phases of 2 containers; and a header.
    assert_eq!(fs::read_to_string(csv).unwrap().lines().count(), 1 + 2 * (6 + 5 + 6));
    let html = fs::read_to_string(html).unwrap();
    for text in ["containerd, round 1", "1 of 5 rounds", "data-row=\"instance 1\""] {
        assert!(html.contains(text), "{text}");
    }
    let mut all = turns(&report);
    all.sort_unstable();
    let expected = |engine| ["dirty", "oci", "stream"].map(|mode| (1, engine, mode));
    assert_eq!(all, [expected("containerd"), expected("wardian")].concat());
    for turn in report["turns"].as_array().unwrap() {
        let expected = match turn["mode"].as_str().unwrap() {
            "dirty" => &["create", "write", "destroy"][..],
            "oci" => &["create", "start_app", "pea", "destroy"],
            _ => &["create", "stream_in", "start_app", "pea", "destroy"],
        };
        assert_eq!(phases(turn), expected);
    }
    let flat = said.out.replace("\n  ", " ");
    assert!(flat.contains("1 round; a ratio needs 5"), "{said:?}");
    assert!(!said.out.contains("times, "), "{said:?}");
}

#[test]
fn an_engine_that_hangs_does_not_stop_the_others() {
    let place = Place::new();
    place.podman("exec sleep 1000");
    let args =
        ["--engines", "wardian,podman", "--to", "2", "--code-mb", "1", "--runs", "2", "--timeout", "3"];
    let (said, report) = place.run(&args);
    assert_eq!(said.code, Some(1), "{said:?}");
    let turns = turns(&report);
    assert_eq!(turns.iter().filter(|(_, engine, _)| *engine == "wardian").count(), 6);
    assert_eq!(turns.len(), 6);
    let failures = report["failures"].as_array().unwrap();
    assert_eq!(
        (failures.len(), &failures[0]["engine"], &failures[0]["silent"]),
        (1, &"podman".into(), &true.into())
    );
    assert!(
        said.out.contains("podman failed in round 1") && said.out.contains("did not end within 3 s"),
        "{said:?}"
    );
    assert_eq!((&report["complete"], &report["engines"][1]["version"]), (&true.into(), &"9.8.7".into()));
}

#[test]
fn an_engine_that_fails_says_why() {
    let place = Place::new();
    place.podman("echo the disk is made of cheese >&2; exit 125");
    let args =
        ["--engines", "wardian,podman", "--to", "2", "--code-mb", "1", "--runs", "1", "--mode", "stream"];
    let (said, report) = place.run(&args);
    assert_eq!(said.code, Some(1), "{said:?}");
    let failures = report["failures"].as_array().unwrap();
    // In each of the two experiments.
    assert!(failures.len() == 2 && failures.iter().all(|failure| failure["silent"] == false), "{failures:?}");
    assert!(failures[0]["error"].as_str().unwrap().contains("made of cheese"), "{failures:?}");
}

#[test]
fn an_engine_that_is_not_there() {
    let place = Place::new();
    let only =
        |args: &[&str]| -> Said { place.command(args).env("PATH", place.bin()).output().unwrap().into() };
    let said = only(&["--engines", "podman,containerd"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    for words in ["podman is not here", "apt-get install podman", "apt-get install containerd"] {
        assert!(said.err.contains(words), "{said:?}");
    }
    let said = only(&["--engines", "lxc"]);
    assert!(said.code == Some(2) && said.err.contains("is no engine"), "{said:?}");
    place.nothing_is_left();
}

/// Waits until it says so.
fn wait_for(child: &mut Child, words: &str) -> BufReader<std::process::ChildStderr> {
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains(words) {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "it ended: {:?}", child.wait());
    }
    said
}

#[test]
fn whoever_interrupts_finds_nothing_left() {
    let place = Place::new();
    place.podman("exec sleep 1000");
    let history = place.base.path().join("history");
    let history = history.to_str().unwrap();
    for (asked, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let args = ["--engines", "podman", "--to", "2", "--code-mb", "1", "--experiment", "teardown"];
        let mut child = place.start(&[&args[..], &["--history", history]].concat());
        let mut said = wait_for(&mut child, "round 1 of 5: podman");
        while !place.processes().iter().any(|line| line.contains("podman")) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let group = place.groups().remove(0);
        signal(child.id(), asked);
        let mut rest = String::new();
        said.read_to_string(&mut rest).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code), "{rest}");
        assert_eq!((&place.json()["complete"], turns(&place.json())), (&false.into(), vec![]));
        place.nothing_is_left();
        assert_eq!(cgroups(&group), Vec::<String>::new());
    }
    let kept =
        Command::new(WARDIAN).args(["lab", "history", "--history", history, "--json"]).output().unwrap();
    let kept: Value = serde_json::from_slice(&kept.stdout).unwrap();
    let kept: Vec<_> =
        kept.as_array().unwrap().iter().map(|run| (&run["experiment"], &run["complete"])).collect();
    assert_eq!(kept, [(&"compare".into(), &false.into()); 2]);
}

#[test]
fn after_a_kill_the_next_experiment_cleans_up() {
    needs!(Podman);
    let place = Place::new();
    let args = ["--engines", "podman", "--to", "2", "--code-mb", "1", "--experiment", "teardown"];
    let mut child = place.start(&args);
    drop(wait_for(&mut child, "  create"));
    signal(child.id(), Signal::KILL);
    child.wait().unwrap();
    // What ran there dies with its init, which ends with the lab.
    let until = Instant::now() + STUCK;
    while place.processes().iter().any(|line| !line.contains("lab compare")) {
        assert!(Instant::now() < until, "{:?}", place.processes());
        std::thread::sleep(Duration::from_millis(20));
    }
    let left = place.groups();
    let mut next =
        Command::new(WARDIAN).args(["lab", "record", "--", "true"]).stderr(Stdio::null()).spawn().unwrap();
    assert!(ended_within(&mut next, STUCK).unwrap().success());
    // A test beside this one may have done it already.
    for group in left {
        assert_eq!(cgroups(&group), Vec::<String>::new());
    }
    place.nothing_is_left();
}
