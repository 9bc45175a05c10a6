//! The history of the lab's runs: kept, listed, exported and imported, searched for steps, and added to by a monitor.

use crate::cli::Said;
use crate::support::{STUCK, WARDIAN, base, mounts, signal};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A small experiment that needs no server.
const TEARDOWN: [&str; 6] = ["teardown", "--mounts", "2", "--mb", "1", "--volatile"];

/// A directory with a history.
struct Place {
    base: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { base: base() }
    }

    fn file(&self) -> PathBuf {
        self.base.path().join("lab/history.sqlite")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(WARDIAN);
        command.arg("lab").args(args).env("WARDIAN_LAB_HISTORY", self.file()).stdin(Stdio::null());
        command
    }

    fn lab(&self, args: &[&str]) -> Said {
        self.command(args).output().unwrap().into()
    }

    /// It must succeed. What it says.
    fn say(&self, args: &[&str]) -> String {
        let said = self.lab(args);
        assert_eq!(said.code, Some(0), "{args:?}: {said:?}");
        said.out
    }

    /// The words of the experiment on this directory.
    fn experiment<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        [&TEARDOWN[..], &["--fs", self.base.path().to_str().unwrap()], more].concat()
    }

    fn runs(&self) -> Vec<Value> {
        serde_json::from_str(&self.say(&["history", "--json"])).unwrap()
    }

    fn import(&self, text: &str) -> Said {
        let file = self.base.path().join("import");
        std::fs::write(&file, text).unwrap();
        self.lab(&["history", "import", file.to_str().unwrap()])
    }

    fn nothing_is_left(&self) {
        assert_eq!(mounts(&[&self.base.path().join("wardian-lab-")]), Vec::<String>::new());
    }
}

/// Waits until it says this.
fn hears(child: &mut Child, words: &str) -> BufReader<std::process::ChildStderr> {
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains(words) {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "it ended before it said {words:?}");
    }
    said
}

#[test]
fn runs_are_kept_and_come_back() {
    let place = Place::new();
    let said = place.lab(&["history"]);
    assert!(said.code == Some(1) && said.err.contains("there is no history"), "{said:?}");
    for _ in 0..2 {
        place.say(&place.experiment(&[]));
    }
    place.say(&place.experiment(&["--no-history"]));
    let runs = place.runs();
    assert_eq!(runs.len(), 2, "{runs:#?}");
    for run in &runs {
        assert_eq!(
            (&run["experiment"], &run["mode"], &run["complete"]),
            (&json!("teardown"), &json!("volatile"), &json!(true))
        );
        assert!(run["figures"]["unmount_max_ms"].as_f64().unwrap() > 0.0, "{run:#}");
        assert!(!run["machine"]["kernel"].as_str().unwrap().is_empty());
        assert_eq!(&run["command"].as_array().unwrap()[..3], ["wardian", "lab", "teardown"]);
    }
    let list = place.say(&["history"]);
    assert!(list.lines().count() == 3 && list.contains("teardown volatile"), "{list}");
    // Nothing is cut where it is piped.
    assert!(list.contains("unmount max") && list.contains("mb=") && !list.contains('…'), "{list}");
    let series = place.say(&["history", "series"]);
    assert!(series.contains("2 of 2") && series.contains("|teardown|kernel|volatile|"), "{series}");
    let export = place.lab(&["history", "export", place.file().to_str().unwrap()]);
    assert!(export.code == Some(1) && export.err.contains("is a database"), "{export:?}");
    assert!(place.say(&["history", "show", "2"]).contains("unmount_max_ms"));
    assert!(place.say(&["history", "compare", "1", "2"]).contains("RUN 2"));
    let said = place.lab(&["history", "compare"]);
    assert!(
        said.code == Some(1) && said.err.contains("no complete runs that differ in their kernel"),
        "{said:?}"
    );
    assert!(place.say(&["history", "steps"]).contains("1 series not looked at"));
    let said = place.lab(&["history", "--mode", "nonsense"]);
    assert!(said.code == Some(1) && said.err.contains("|teardown|kernel|volatile|"), "{said:?}");
    assert_eq!(place.say(&["history", "--since", "1h", "-n", "1"]).lines().count(), 2);

    for form in ["--jsonl", "--csv"] {
        let other = Place::new();
        let text = place.say(&["history", "export", form]);
        let said = other.import(&text);
        assert!(said.code == Some(0) && said.out.contains("2 runs imported"), "{said:?}");
        assert_eq!(other.runs(), runs, "{form}");
        assert!(other.import(&text).out.contains("2 were there already"));
    }
    let said = place.import("{\"id\": 1}\n");
    assert!(said.code == Some(1) && said.err.contains("line 1: this is no run"), "{said:?}");
    assert!(place.say(&["history", "prune", "--keep", "1"]).contains("1 run deleted, 1 left"));
    place.nothing_is_left();
}

#[test]
fn what_is_no_history_is_refused_before_the_experiment() {
    let place = Place::new();
    place.say(&place.experiment(&[]));
    let good = std::fs::read(place.file()).unwrap();
    let mut newer = good.clone();
    newer[60..64].copy_from_slice(&99_u32.to_be_bytes());
    for (bytes, words) in
        [(&b"a text that is no database at all"[..], "is damaged"), (&newer[..], "has version 99")]
    {
        std::fs::write(place.file(), bytes).unwrap();
        for args in [place.experiment(&[]), vec!["history"], vec!["history", "import", "/dev/null"]] {
            let said = place.lab(&args);
            assert!(said.code == Some(1) && said.err.contains(words), "{args:?}: {said:?}");
            assert!(said.err.contains(place.file().to_str().unwrap()) && said.out.is_empty(), "{said:?}");
        }
        assert_eq!(std::fs::read(place.file()).unwrap(), bytes, "it was changed");
        // Without the history the experiment can be run.
        place.say(&place.experiment(&["--no-history"]));
    }
}

#[test]
fn an_interrupted_run_is_kept_as_such() {
    let place = Place::new();
    let mut child = place.command(&place.experiment(&["--age", "600"]));
    let mut child = child.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut rest = hears(&mut child, "grows old");
    signal(child.id(), Signal::INT);
    rest.read_to_string(&mut String::new()).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let runs = place.runs();
    assert_eq!((runs.len(), &runs[0]["complete"]), (1, &json!(false)), "{runs:#?}");
    assert!(runs[0]["error"].as_str().unwrap().contains("interrupted"), "{runs:#?}");
    assert!(runs[0]["figures"]["write_ms"].as_f64().is_some(), "what was measured is kept: {runs:#?}");
    assert!(place.say(&["history"]).contains("failed"));
    place.nothing_is_left();
}

/// Runs like this one, with other times and values.
fn copies(run: &Value, values: impl Iterator<Item = (i64, f64, &'static str)>) -> String {
    values
        .map(|(begun_ms, value, kernel)| {
            let mut copy = run.clone();
            copy["begun_ms"] = json!(begun_ms);
            copy["machine"]["kernel"] = json!(kernel);
            let headline = copy["headline"].as_str().unwrap().to_owned();
            copy["figures"][headline] = json!(value);
            copy.to_string() + "\n"
        })
        .collect()
}

/// Scatters a little, and always in the same way.
fn near(value: f64, n: i64) -> f64 {
    value * (1.0 + 0.01 * ((n * 37) % 11) as f64)
}

#[test]
fn a_step_is_told_with_what_changed() {
    let place = Place::new();
    place.say(&place.experiment(&[]));
    let run = place.runs().remove(0);
    let other = Place::new();
    let day = 86_400_000;
    let runs = (0..60).map(|n| {
        (n * day, near(if n < 31 { 100.0 } else { 121.0 }, n), if n < 31 { "6.12.9" } else { "6.12.12" })
    });
    let imported = other.import(&copies(&run, runs));
    assert_eq!(imported.code, Some(0), "{imported:?}");
    let said = other.lab(&["history", "steps"]);
    assert_eq!(said.code, Some(3), "{said:?}");
    assert!(said.out.starts_with("The slowest unmount of `teardown volatile` rose by 2"), "{said:?}");
    let words = "on 1970-02-01, between run 31 and 32: kernel 6.12.9 → 6.12.12.";
    assert!(said.out.contains(words), "{said:?}");
    let found: Value = serde_json::from_str(&other.lab(&["history", "steps", "--json"]).out).unwrap();
    assert_eq!(
        (&found[0]["steps"][0]["run"], &found[0]["steps"][1]),
        (&json!(32), &Value::Null),
        "{found:#}"
    );
    let compared = other.say(&["history", "compare", "6.12.9", "6.12.12"]);
    assert!(compared.contains("6.12.12 against 6.12.9: differs, 1.2"), "{compared}");
    let said = other.lab(&["history", "compare", "6.12.9", "6.12.12", "--until", "1970-02-04"]);
    assert!(said.code == Some(1) && said.out.contains("too few complete runs for a ratio"), "{said:?}");
}

#[test]
fn a_monitor_tells_a_new_step_once() {
    let place = Place::new();
    place.say(&place.experiment(&[]));
    let run = place.runs().remove(0);
    let begun = run["begun_ms"].as_i64().unwrap();
    // So far they took a hundredth.
    let value = run["figures"]["unmount_max_ms"].as_f64().unwrap() / 100.0;
    std::fs::remove_file(place.file()).unwrap();
    let said = place.import(&copies(&run, (0..60).map(|n| (begun - 1_000_000 + n, near(value, n), "5.0"))));
    assert_eq!(said.code, Some(0), "{said:?}");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let told = std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        connection.set_read_timeout(Some(STUCK)).unwrap();
        let mut reader = BufReader::new(connection.try_clone().unwrap());
        let (mut line, mut length) = (String::new(), 0);
        while line != "\r\n" {
            line.clear();
            reader.read_line(&mut line).unwrap();
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        serde_json::from_slice::<Value>(&body).unwrap()
    });
    let args =
        [&["run", "--every", "1s", "--count", "12", "--webhook", &url, "--"], &place.experiment(&[])[..]]
            .concat();
    let said = place.lab(&args);
    assert_eq!(said.code, Some(3), "{said:?}");
    assert_eq!(said.out.matches("The slowest unmount").count(), 1, "{said:?}");
    let told = told.join().unwrap();
    assert!(told["text"].as_str().unwrap().contains("rose to"), "{told:#}");
    assert_eq!(
        told["series"],
        place.runs()[0]["machine"]["host"]
            .as_str()
            .map(|host| {
                format!("{host}|teardown|kernel|volatile|fs={} mb=1 mounts=2", place.base.path().display())
            })
            .unwrap()
    );
    // The same step is not new again; nobody listens to the webhook any more, and nobody needs to.
    let once = [&["run", "--once", "--webhook", &url, "--"], &place.experiment(&[])[..]].concat();
    let said = place.lab(&once);
    assert!(said.code == Some(0) && said.err.is_empty(), "{said:?}");
    place.nothing_is_left();
}

#[test]
fn what_fails_is_told_and_the_watch_goes_on() {
    let place = Place::new();
    let pid = place.base.path().join("pid");
    // What it leaves holds its output open.
    let script = format!("sleep 600 & echo $! > {}; echo why >&2; exit 3", pid.display());
    let said =
        place.lab(&["run", "--count", "2", "--every", "1s", "--", "record", "--", "sh", "-c", &script]);
    let left = std::fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
    assert!(std::path::Path::new(&format!("/proc/{left}")).exists(), "it has waited for it: {said:?}");
    signal(left, Signal::KILL);
    std::fs::remove_file(pid).unwrap();
    assert_eq!(said.code, Some(1), "{said:?}");
    assert_eq!(said.err.matches("the experiment failed (exit status: 3):").count(), 2, "{said:?}");
    assert!(said.err.contains("why"), "{said:?}");
    assert_eq!(place.runs().len(), 2);
    // A run that is not kept is a failure as well.
    let said = place.lab(&["run", "--once", "--", "record", "--", "/nowhere"]);
    assert!(said.code == Some(1) && said.err.contains("cannot run /nowhere"), "{said:?}");
    place.nothing_is_left();
}

#[test]
fn one_monitor_at_a_time_and_it_ends_cleanly() {
    let place = Place::new();
    let args = [&["run", "--every", "1h", "--"], &place.experiment(&["--age", "600"])[..]].concat();
    let mut first = place.command(&args);
    let mut first = first.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = std::time::Instant::now();
    let is_under_way = || {
        std::fs::read_dir(place.base.path())
            .unwrap()
            .any(|entry| entry.unwrap().file_name().to_string_lossy().starts_with("wardian-lab-"))
    };
    while !is_under_way() {
        assert!(begun.elapsed() < STUCK, "it does not begin");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let said = place.lab(&["run", "--once", "--", "teardown", "--mounts", "1"]);
    assert!(said.code == Some(1) && said.err.contains("another `wardian lab run`"), "{said:?}");
    signal(first.id(), Signal::TERM);
    assert_eq!(first.wait().unwrap().code(), Some(143));
    assert!(!is_under_way());
    assert_eq!(place.runs()[0]["complete"], false);
    place.nothing_is_left();
    for (args, words) in [
        (&["run", "--", "history", "list"][..], "cannot be repeated"),
        (&["run", "--", "scale", "--rnus", "1"], "unexpected argument"),
        (&["run", "--every", "0s", "--", "scale"], "not a time of at least a second"),
        (&["run", "--webhook", "file:///x", "--", "scale"], "must begin with http"),
    ] {
        let said = place.lab(args);
        assert!(said.code == Some(2) && said.err.contains(words), "{args:?}: {said:?}");
    }
    let said = place.lab(&["run", "--once", "--", "teardown", "--fs", "/nowhere"]);
    assert!(said.code == Some(1) && said.err.contains("/nowhere"), "{said:?}");
    assert!(Path::new(&place.file()).exists());
}
