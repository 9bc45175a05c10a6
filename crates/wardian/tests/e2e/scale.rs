//! `wardian lab scale`: stories on servers of its own and on one that is there, what is no story, and an end at any moment.

use crate::cli::Said;
use crate::support::{NETWORK, STUCK, Server, WARDIAN, base, ended_within, names, signal};
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use wardian_lab::code::Code;
use wardian_lab::drive::Instance;
use wardian_needs::needs;

/// A place for the stores of a test's stories.
struct Place {
    base: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { base: base() }
    }

    /// With room for 64 MB.
    fn small() -> Self {
        let place = Self::new();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64m", "tmpfs"])
            .arg(place.base.path())
            .status();
        assert!(mounted.unwrap().success());
        place
    }

    fn report(&self) -> PathBuf {
        self.base.path().join("report")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(WARDIAN);
        command.env(NETWORK, "none").args(["lab", "scale", "--json"]).arg(self.report()).args(args);
        if !args.contains(&"--addr") {
            command.arg("--root").arg(self.base.path());
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn start(&self, args: &[&str]) -> Child {
        self.command(args).spawn().unwrap()
    }

    /// It must succeed. What it said, and the figures.
    fn good(&self, args: &[&str]) -> (String, Value) {
        let said: Said = self.command(args).output().unwrap().into();
        assert_eq!(said.code, Some(0), "{args:?}: {said:?}");
        let report = serde_json::from_slice(&fs::read(self.report()).unwrap()).unwrap();
        fs::remove_file(self.report()).unwrap();
        self.nothing_is_left();
        (said.out, report)
    }

    /// A story was cut off. What there is of it, marked as incomplete, is all that is left.
    fn half(&self) -> Value {
        let report: Value = serde_json::from_slice(&fs::read(self.report()).unwrap()).unwrap();
        fs::remove_file(self.report()).unwrap();
        self.nothing_is_left();
        report
    }

    fn nothing_is_left(&self) {
        assert_eq!(names(self.base.path()), Vec::<String>::new());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.base.path()).stderr(Stdio::null()).status();
    }
}

fn phases(of: &Value) -> Vec<(&str, usize)> {
    let all = of["phases"].as_array().unwrap().iter();
    all.map(|phase| (phase["name"].as_str().unwrap(), phase["each_ms"].as_array().unwrap().len())).collect()
}

#[test]
fn a_story_of_two_steps() {
    let place = Place::new();
    let (said, report) = place.good(&["--to", "2,4", "--code-mb", "2"]);
    assert_eq!((&report["mode"], &report["run"]), (&"stream".into(), &1.into()));
    let steps = report["steps"].as_array().unwrap();
    let bounds: Vec<_> = steps.iter().map(|step| (&step["from"], &step["to"])).collect();
    assert_eq!(bounds, [(&1.into(), &2.into()), (&2.into(), &4.into())]);
    let up = |n| ["create", "stream_in", "start_app", "pea"].map(|name| (name, n));
    assert_eq!(phases(&steps[0]), up(1));
    assert_eq!(phases(&steps[1]), up(2));
    assert_eq!(phases(&report), [&up(1)[..], &up(2), &[("destroy", 4)]].concat());
    let waited: Vec<f64> = steps.iter().map(|step| step["waiting_ms"].as_f64().unwrap()).collect();
    assert!((report["waiting_ms"].as_f64().unwrap() - waited[0] - waited[1]).abs() < 1e-6, "{report:#}");
    assert!((steps[1]["per_instance_ms"].as_f64().unwrap() - waited[1] / 2.0).abs() < 1e-6, "{report:#}");
    for name in ["fetches", "fetched_bytes", "droplet_bytes", "layer_bytes"] {
        assert_eq!(report[name], 0, "{name}");
    }
    assert!(said.contains("2 → 4: ") && said.contains("The developer waited"), "{said}");
}

#[test]
fn streamed_and_as_a_layer_side_by_side() {
    let place = Place::new();
    let (said, report) = place.good(&["--mode", "stream,oci", "--to", "3", "--code-mb", "2", "--runs", "2"]);
    let stories = report["stories"].as_array().unwrap();
    let order: Vec<_> = stories
        .iter()
        .map(|story| (story["mode"].as_str().unwrap(), story["run"].as_u64().unwrap()))
        .collect();
    assert_eq!(order, [("stream", 1), ("oci", 1), ("stream", 2), ("oci", 2)]);
    let unpacked = stories[1]["layer_bytes"].as_u64().unwrap();
    assert!(unpacked > 2 << 20, "{unpacked}");
    for story in stories {
        let figure = |name: &str| story[name].as_u64().unwrap();
        let names: Vec<&str> = phases(story).into_iter().map(|(name, _)| name).collect();
        if story["mode"] == "oci" {
            assert_eq!(names, ["create", "start_app", "pea", "destroy"]);
            // Three instances with three URLs, and it was fetched once.
            assert_eq!((figure("fetches"), figure("fetched_bytes")), (1, figure("droplet_bytes")));
            assert!(figure("droplet_bytes") > 2 << 20, "{story:#}");
            assert_eq!(figure("layer_bytes"), unpacked);
        } else {
            assert_eq!(names, ["create", "stream_in", "start_app", "pea", "destroy"]);
            assert_eq!((figure("fetches"), figure("droplet_bytes")), (0, 0));
        }
    }
    let summary = &report["summary"];
    let rows = summary["rows"].as_array().unwrap();
    let modes: Vec<_> = rows.iter().map(|row| (&row["mode"], &row["runs"])).collect();
    assert_eq!(modes, [(&"stream".into(), &2.into()), (&"oci".into(), &2.into())]);
    assert_eq!(rows[1]["fetches"], serde_json::json!({"median": 1.0, "least": 1.0, "most": 1.0}));
    let ratio = &summary["oci_by_stream"][0];
    let waited = |n: usize| stories[n]["waiting_ms"].as_f64().unwrap();
    for (n, each) in ratio["each"].as_array().unwrap().iter().enumerate() {
        assert!((each.as_f64().unwrap() - waited(2 * n + 1) / waited(2 * n)).abs() < 1e-6, "{summary:#}");
    }
    assert_eq!(ratio["each"].as_array().unwrap().len(), 2);
    assert!(said.contains("oci     1 → 3") && said.contains("with the code as a layer"), "{said}");
}

#[test]
fn with_and_without_a_disk_limit_by_turns() {
    needs!(Loop);
    let place = Place::new();
    let (said, report) = place.good(&["--to", "2", "--code-mb", "2", "--disk", "64M", "--runs", "2"]);
    let stories = report["stories"].as_array().unwrap();
    let order: Vec<_> =
        stories.iter().map(|story| (&story["run"], story["disk_limit_bytes"].as_u64())).collect();
    let limit = Some(64 << 20);
    assert_eq!(order, [(&1.into(), None), (&1.into(), limit), (&2.into(), None), (&2.into(), limit)]);
    let ratio = &report["summary"]["limited_by_unlimited"][0];
    assert_eq!((&ratio["mode"], &ratio["disk_limit_bytes"]), (&"stream".into(), &(64 << 20).into()));
    let took = |n: usize| stories[n]["story_ms"].as_f64().unwrap();
    for (n, each) in ratio["each"].as_array().unwrap().iter().enumerate() {
        assert!((each.as_f64().unwrap() - took(2 * n + 1) / took(2 * n)).abs() < 1e-6, "{ratio:#}");
    }
    assert_eq!(ratio["each"].as_array().unwrap().len(), 2);
    assert!(said.contains("stream: with a disk limit of 67.1 MB for each instance the story took"), "{said}");
}

/// The limit reaches the containers: it holds the image, but not the code as well.
#[test]
fn a_story_whose_limit_is_too_small_fails() {
    needs!(Loop);
    let place = Place::new();
    let args = ["--to", "2", "--code-mb", "3", "--disk", "4M"];
    let said: Said = place.command(&args).output().unwrap().into();
    assert!(said.code == Some(1) && said.err.contains("stream the code into lab-"), "{said:?}");
    let report = place.half();
    let stories = report["stories"].as_array().unwrap();
    let complete: Vec<_> = stories.iter().map(|story| story["complete"].as_bool().unwrap()).collect();
    assert_eq!(complete, [true, false]);
    assert!(stories[1]["error"].as_str().unwrap().contains("stream the code into"), "{report:#}");
    assert_eq!(phases(&stories[1])[0], ("create", 1));
}

#[tokio::test]
async fn what_was_written_over_is_noticed() {
    let server = Server::start().await;
    let image = server.image().to_str().unwrap().to_owned();
    let code = Code::generate(1).unwrap();
    let instance = Instance::create(server.client(), "app".into(), image).await.unwrap();
    instance.stream_in(&code).await.unwrap();
    instance.verify(&code.sample).await.unwrap();
    instance.scribble().await.unwrap();
    let error = instance.verify(&code.sample).await.unwrap_err().to_string();
    assert!(error.contains("the code in app is not what was put there"), "{error}");
    instance.stream_in(&code).await.unwrap();
    // The health page is as it was, but there is a file more.
    let error = instance.verify(&code.sample).await.unwrap_err().to_string();
    assert!(error.contains("scribbled"), "{error}");
    server.finish().await;
}

#[tokio::test]
async fn stories_on_a_server_that_is_there() {
    let (server, place) = (Server::start().await, Place::new());
    let address = format!("unix:{}", server.socket().display());
    let args =
        ["--addr", &address, "--to", "2", "--code-mb", "1", "--runs", "2", "--mode", "oci", "--no-pea"];
    let (said, report) = place.good(&args);
    let stories = report["stories"].as_array().unwrap();
    assert_eq!(stories.iter().map(|story| &story["run"]).collect::<Vec<_>>(), [1, 2]);
    for story in stories {
        assert_eq!(phases(story), [("create", 1), ("start_app", 1), ("destroy", 2)]);
        // The second has new code.
        assert_eq!((&story["fetches"], &story["fetched_bytes"]), (&1.into(), &story["droplet_bytes"]));
    }
    let summary = &report["summary"];
    assert_eq!((&summary["rows"][0]["mode"], &summary["rows"][0]["runs"]), (&"oci".into(), &2.into()));
    assert_eq!(summary["oci_by_stream"], serde_json::json!([]));
    assert!(said.contains("oci   1 → 2"), "{said}");
    assert_eq!(server.client().list(&BTreeMap::new()).await.unwrap(), Vec::<String>::new());
    server.finish().await;
}

#[test]
fn what_is_no_story() {
    let place = Place::small();
    for (args, words) in [
        (&["--to", "1"][..], "--to must be greater than --from"),
        (&["--to", "10,5"], "--to must rise from step to step: 5 comes after 10"),
        (&["--to", "1001"], "more than 1000 instances"),
        (&["--runs", "0"], "--runs must be between 1 and"),
        (&["--mode", "stream", "--mode", "stream"], "--mode names stream twice"),
        (&["--code-mb", "5000"], "--code-mb must be at most"),
        (&["--disk", "100M"], "--disk: 104857600 bytes have no room for the 100 MB of code"),
        (
            &["--mode", "oci,stream", "--to", "4,7", "--code-mb", "20"],
            "7 instances with 20 MB of code take 146.8 MB, and",
        ),
        (&["--mode", "oci"], "--mode oci: 10 instances with 100 MB of code take 209.7 MB, and"),
        (&["--mode", "oci", "--image", "docker:///busybox"], "--image"),
        (&["--addr", "unix:/nowhere/garden.sock"], "does not answer"),
    ] {
        let said: Said = place.command(args).output().unwrap().into();
        assert!(said.code == Some(1) && said.err.contains(words), "{args:?}: {said:?}");
        place.nothing_is_left();
    }
    for args in [["--mode", "docker"], ["--to", "ten"], ["--to", "-1"]] {
        let said: Said = place.command(&args).output().unwrap().into();
        assert_eq!(said.code, Some(2), "{args:?}: {said:?}");
    }
}

#[test]
fn whoever_interrupts_a_second_story_finds_nothing_left() {
    let place = Place::new();
    let mut child = place.start(&["--to", "3", "--code-mb", "1", "--runs", "3"]);
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    // In the second run while its server starts, when nobody waits for a signal yet.
    while !line.contains("run 2 of 3") {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "it ended: {:?}", child.wait());
    }
    signal(child.id(), Signal::INT);
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130), "{rest}");
    assert!(!rest.contains("run 3 of 3"), "{rest}");
    // The first story was told, and the second had not begun.
    let report = place.half();
    assert_eq!((&report["complete"], &report["run"]), (&true.into(), &1.into()), "{report:#}");
}

/// Processes of the place's servers, and of what their containers run.
fn processes(place: &Place) -> Vec<String> {
    let here = place.base.path().display().to_string();
    let all = fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(" serve ") && line.contains(&here)).collect()
}

/// The end of a terminal cleans up as Ctrl-C does; after a kill the server ends, and the next experiment removes the rest.
#[test]
fn a_killed_story_leaves_no_server() {
    let place = Place::new();
    for asked in [Signal::HUP, Signal::KILL] {
        let mut child = place.start(&["--to", "2", "--code-mb", "1"]);
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("create") {
            line.clear();
            assert!(said.read_line(&mut line).unwrap() > 0, "it ended");
        }
        signal(child.id(), asked);
        let mut rest = String::new();
        said.read_to_string(&mut rest).unwrap();
        let code = child.wait().unwrap().code();
        if asked == Signal::HUP {
            assert_eq!(code, Some(129), "{rest}");
            place.half();
            assert_eq!(processes(&place), Vec::<String>::new());
        }
    }
    let until = Instant::now() + STUCK;
    while !processes(&place).is_empty() {
        assert!(Instant::now() < until, "{:?}", processes(&place));
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut next =
        Command::new(WARDIAN).args(["lab", "record", "--", "true"]).stderr(Stdio::null()).spawn().unwrap();
    assert!(ended_within(&mut next, STUCK).unwrap().success());
    // A test beside this one may be about it.
    while !names(place.base.path()).is_empty() {
        assert!(Instant::now() < until, "{:?}", names(place.base.path()));
        std::thread::sleep(Duration::from_millis(20));
    }
}
