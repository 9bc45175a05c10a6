//! Results of experiments as files: `--json`, `--csv`, `--svg` and `--report`, of whole runs and of half ones.

use crate::cli::Said;
use crate::support::{NETWORK, STUCK, WARDIAN, base, ended_within, names, signal};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The four files of an experiment, in a directory of a test's own.
struct Drawn {
    base: tempfile::TempDir,
}

impl Drawn {
    fn new() -> Self {
        Self { base: base() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.base.path().join(name)
    }

    fn command(&self, experiment: &str, args: &[&str]) -> Command {
        let mut command = Command::new(WARDIAN);
        command.env(NETWORK, "none").args(["lab", experiment]);
        for (flag, name) in
            [("--json", "a.json"), ("--csv", "a.csv"), ("--svg", "a.svg"), ("--report", "a.html")]
        {
            command.arg(flag).arg(self.path(name));
        }
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, experiment: &str, args: &[&str]) -> Said {
        self.command(experiment, args).output().unwrap().into()
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.text("a.json")).unwrap()
    }

    /// The lines of the CSV, without their header.
    fn csv(&self) -> Vec<Vec<String>> {
        let cells = |line: &str| line.split(',').map(str::to_owned).collect();
        self.text("a.csv").lines().skip(1).map(cells).collect()
    }

    /// The names of the rows in the picture.
    fn rows(&self) -> Vec<String> {
        let text = self.text("a.svg");
        let document = roxmltree::Document::parse(&text).unwrap();
        document.descendants().filter_map(|node| node.attribute("data-row")).map(str::to_owned).collect()
    }

    /// The report holds the same data, and asks nobody for anything.
    fn report(&self) -> String {
        let html = self.text("a.html");
        let data = html.split("id=\"data\">").nth(1).unwrap().split("</script>").next().unwrap();
        assert_eq!(serde_json::from_str::<Value>(data).unwrap(), self.json());
        let outside = html.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        let outside = outside.split("<script type=\"application/json\"").next().unwrap();
        for word in ["http:", "https:", "src=", "href=", "url(http", "@import"] {
            assert!(!outside.contains(word), "{word}");
        }
        assert!(html.contains("content=\"default-src 'none';"), "{html}");
        html
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

/// Every line of the CSV is one of these values of the JSON, and none is missing.
fn agree(csv: &[Vec<String>], phases: &[Value], begin: usize) {
    let mut lines = csv.iter();
    for phase in phases {
        let (each, begins) = (numbers(&phase["each_ms"]), numbers(&phase["each_begin_ms"]));
        assert_eq!((each.len(), numbers(&phase["each_of"]).len()), (begins.len(), begins.len()));
        for (n, (ms, begin_ms)) in each.iter().zip(&begins).enumerate() {
            let line = lines.next().unwrap();
            let number = |at: usize| line[begin + at].parse::<f64>().unwrap();
            assert_eq!(
                (line[begin].as_str(), number(2), number(3)),
                (phase["name"].as_str().unwrap(), *begin_ms, *ms)
            );
            assert_eq!(line[begin + 1], phase["each_of"][n].to_string());
        }
    }
    assert_eq!(lines.next(), None);
}

#[test]
fn a_teardown_in_four_files() {
    let drawn = Drawn::new();
    let fs_dir = drawn.base.path().to_str().unwrap().to_owned();
    let said = drawn.run("teardown", &["--mounts", "2", "--mb", "1", "--fs", &fs_dir]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(names(drawn.base.path()).len(), 4);
    let json = drawn.json();
    let phases = json["phases"].as_array().unwrap();
    assert_eq!(
        phases.iter().map(|phase| &phase["name"]).collect::<Vec<_>>(),
        ["mount", "write", "unmount", "remove"]
    );
    agree(&drawn.csv(), phases, 1);
    assert_eq!(drawn.rows(), ["mount 0", "mount 1"]);
    // Times are those of the recording: what follows each other does so there as well.
    let length = json["length_ms"].as_f64().unwrap();
    let span = |name: &str, n: usize| {
        let phase = phases.iter().find(|phase| phase["name"] == name).unwrap();
        let begin = phase["each_begin_ms"][n].as_f64().unwrap();
        (begin, begin + phase["each_ms"][n].as_f64().unwrap())
    };
    for n in 0..2 {
        let order = [span("mount", n), span("write", n), span("unmount", n), span("remove", n)];
        assert!(
            order.windows(2).all(|two| two[0].1 <= two[1].0 + 0.01) && order[3].1 <= length,
            "{order:?} {length}"
        );
    }
    let marks = json["marks"].as_array().unwrap();
    let unmounts = marks.iter().find(|mark| mark["name"] == "unmount").unwrap()["t_ms"].as_f64().unwrap();
    assert!(unmounts <= span("unmount", 0).0 && unmounts >= span("write", 1).1, "{json:#}");
    let html = drawn.report();
    assert!(html.contains(&format!("wardian lab teardown --mounts 2 --mb 1 --fs {fs_dir}</code>")), "{html}");
    assert!(html.contains("data-row=\"mount 1\"") && !html.contains("<strong>Incomplete"));
}

#[test]
fn a_story_in_four_files() {
    let drawn = Drawn::new();
    let root = drawn.path("root");
    fs::create_dir(&root).unwrap();
    let said = drawn.run("scale", &["--to", "2,3", "--code-mb", "1", "--root", root.to_str().unwrap()]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let json = drawn.json();
    let all = |value: &Value| value.as_array().unwrap().clone();
    let phases = [all(&json["begin"]["phases"]), all(&json["phases"])].concat();
    agree(&drawn.csv(), &phases, 3);
    assert_eq!(drawn.rows(), ["instance 0", "instance 1", "instance 2"]);
    let marks: Vec<_> =
        json["marks"].as_array().unwrap().iter().map(|mark| mark["name"].as_str().unwrap()).collect();
    assert_eq!(marks, ["0 → 1", "1 → 2", "2 → 3", "verify", "destroy", "clean up"]);
    // The samples cover the whole story.
    let last = json["samples"].as_array().unwrap().last().unwrap()["t_ms"].as_f64().unwrap();
    let destroyed = phases.last().unwrap()["begin_ms"].as_f64().unwrap();
    assert!(last >= destroyed && json["length_ms"].as_f64().unwrap() >= destroyed, "{last} {destroyed}");
    let html = drawn.report();
    assert!(html.contains("Scaling 1 → 2 → 3, stream, run 1") && html.contains("The developer waited"));
}

#[test]
fn a_recording_in_four_files() {
    let drawn = Drawn::new();
    // A name and an output that would be markup.
    let script = "exec -a '<script>x</script>' sleep 0.2";
    let said = drawn.run("record", &["--", "bash", "-c", script]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let html = drawn.report();
    assert_eq!(html.matches("<script").count(), 1, "{html}");
    assert!(html.contains("exec -a"), "{html}");
    assert_eq!(drawn.json()["command"][2], script);
    roxmltree::Document::parse(&drawn.text("a.svg")).unwrap();
    assert!(drawn.text("a.csv").starts_with("what,thread,call,why,begin_ms,ms,bytes\n"));
}

#[test]
fn half_a_run_is_marked_in_all_files() {
    let drawn = Drawn::new();
    let fs_dir = drawn.base.path().to_str().unwrap().to_owned();
    let args = ["--mounts", "2", "--mb", "1", "--age", "60", "--fs", &fs_dir];
    let mut child = drawn.command("teardown", &args).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("grows old")));
    signal(child.id(), Signal::INT);
    std::thread::spawn(move || lines.for_each(drop));
    assert_eq!(ended_within(&mut child, STUCK).unwrap().code(), Some(130));
    let json = drawn.json();
    assert_eq!(json["complete"], false, "{json:#}");
    let names: Vec<_> = drawn.csv().into_iter().map(|line| line[1].clone()).collect();
    assert_eq!(names, ["mount", "mount", "write", "write"]);
    assert_eq!(drawn.rows(), ["mount 0", "mount 1"]);
    assert!(drawn.report().contains("<strong>Incomplete.</strong> interrupted"));
}

#[test]
fn what_cannot_be_written_is_refused_before_anything_is_done() {
    let drawn = Drawn::new();
    let at = |name: &str| drawn.path(name).to_str().unwrap().to_owned();
    let teardown = |args: &[&str]| -> Said {
        Command::new(WARDIAN)
            .args(["lab", "teardown", "--mounts", "1", "--mb", "1"])
            .args(args)
            .output()
            .unwrap()
            .into()
    };
    for (args, words) in [
        (["--svg", &at("a"), "--csv", &at("a")], "--csv and --svg name the same file"),
        (["--svg", &at("a"), "--report", &at("none/b")], "--report: write"),
        (["--svg", &at("a"), "--json", &at("")], "is a directory"),
    ] {
        let said = teardown(&args);
        assert!(said.code == Some(1) && said.err.contains(words), "{args:?}: {said:?}");
        assert!(!said.err.contains("unmount"), "{said:?}");
    }
    assert_eq!(names(drawn.base.path()), Vec::<String>::new());
    // A file of that name may not be written through a link that somebody else could have placed.
    let shared = drawn.path("shared");
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
    std::os::unix::fs::symlink(drawn.path("victim"), shared.join("a.html")).unwrap();
    let said = teardown(&["--report", &at("shared/a.html"), "--svg", &at("a.svg"), "--fs", &at("")]);
    assert!(said.code == Some(1) && said.err.contains("--report"), "{said:?}");
    assert!(!drawn.path("victim").exists());
    // The other file was written all the same.
    assert_eq!(drawn.rows(), ["mount 0"]);
}
