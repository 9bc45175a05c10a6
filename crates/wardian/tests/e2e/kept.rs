//! What is known of processes after their output and their ends: `logs`, `wait`, `ps`, `inspect`.

use crate::commands::{command, fails, ok};
use crate::support::{STUCK, Server, signal};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};
use wardian_garden::Io;
use wardian_garden::wire::ProcessSpec;

fn both(server: &Server, args: &[&str]) -> (String, String) {
    let Output { status, stdout, stderr } = command(server, args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(stdout), text(stderr));
    assert!(status.success(), "{args:?}: {out}{err}\n{}", server.log());
    (out, err)
}

fn status(server: &Server, handle: &str) -> String {
    ok(server, &["ps", "-a", "--filter", &format!("name={handle}"), "--format", "{{.Status}}"])
        .trim()
        .to_owned()
}

/// The files that the records of a server's processes and their output are in.
fn kept_files(server: &Server) -> usize {
    let containers = fs::read_dir(server.run().join("containers")).unwrap();
    let processes = containers.filter_map(|dir| fs::read_dir(dir.unwrap().path().join("processes")).ok());
    processes.map(Iterator::count).sum()
}

async fn until(what: &str, mut there: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !there() {
        assert!(begin.elapsed() < STUCK, "{what}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn what_was_printed_and_how_it_ended() {
    let server = Server::start().await;
    let script = "echo one; echo two >&2; printf three; exit 4";
    assert_eq!(ok(&server, &["run", "-d", "--name", "h", "--", "sh", "-c", script]), "h\n");
    assert_eq!(ok(&server, &["wait", "h"]), "4\n");
    assert_eq!(both(&server, &["logs", "h"]), ("one\nthree".into(), "two\n".into()));
    assert_eq!(both(&server, &["logs", "-f", "h"]), ("one\nthree".into(), "two\n".into()));
    // Which stream the server reads first is not certain.
    let last = both(&server, &["logs", "--tail", "1", "h"]);
    assert!(last == ("three".into(), String::new()) || last == (String::new(), "two\n".into()), "{last:?}");
    assert_eq!(both(&server, &["logs", "-n", "0", "h"]), Default::default());
    assert_eq!(both(&server, &["logs", "--since", "1h", "h"]).0, "one\nthree");
    assert_eq!(both(&server, &["logs", "--until", "1h", "h"]), Default::default());
    assert_eq!(both(&server, &["logs", "--since", "2099-01-01T00:00:00Z", "h"]), Default::default());
    let stamped = both(&server, &["logs", "-t", "h"]).0;
    let lines: Vec<&str> = stamped.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("20") && lines[0].ends_with("Z one"), "{stamped}");

    assert!(status(&server, "h").starts_with("exited (4) "), "{}", status(&server, "h"));
    // Another process of its own; the first one's end stays.
    let id = ok(&server, &["exec", "-d", "h", "--", "sh", "-c", "echo other; exit 5"]);
    let id = id.trim();
    assert_eq!(ok(&server, &["wait", "--process", id, "h"]), "5\n");
    assert_eq!(ok(&server, &["logs", "h", id]), "other\n");
    assert_eq!(ok(&server, &["wait", "h"]), "4\n");
    let one: Value = serde_json::from_str(&ok(&server, &["inspect", "h"])).unwrap();
    let processes = one["processes"].as_array().unwrap();
    assert_eq!(processes.len(), 2);
    let main = processes.iter().find(|process| process["id"] == "main").unwrap();
    assert_eq!(
        (&main["command"], &main["exit_status"]),
        (&serde_json::json!(["sh", "-c", script]), &4.into())
    );
    assert!(main["exited_ms"].as_u64() >= main["started_ms"].as_u64());
    assert_eq!(main["output_bytes"], 13);

    let taken = fails(&server, 125, &["run", "--name", "h", "--", "true"]);
    assert!(
        taken.contains("a container h already (exited (4) ") && taken.contains("`wardian rm h`"),
        "{taken}"
    );
    for (args, says) in [
        (&["logs", "nope"][..], "unknown handle: nope"),
        (&["logs", "h", "nope"], "unknown process: nope in h"),
        (&["wait", "nope"], "unknown handle: nope"),
        (&["wait", "--process", "nope", "h"], "unknown process"),
    ] {
        assert!(fails(&server, 1, args).contains(says), "{args:?}");
    }
    for args in [
        &["logs", "--tail", "x", "h"][..],
        &["logs", "--since", "yesterday", "h"],
        &["logs", "-f", "--until", "1m", "h"],
    ] {
        fails(&server, 2, args);
    }
    ok(&server, &["rm", "h"]);
    until("the removal of what is kept", || kept_files(&server) == 0).await;
    server.finish().await;
}

/// What is attached is kept too, unless the container goes with it; what Garden's clients start is not.
#[tokio::test]
async fn whose_output_is_kept() {
    let server = Server::start().await;
    assert_eq!(ok(&server, &["run", "--name", "a", "--", "echo", "seen"]), "seen\n");
    assert_eq!(ok(&server, &["logs", "a"]), "seen\n");
    ok(&server, &["run", "-d", "--name", "none", "--keep-output", "0", "--", "echo", "gone"]);
    assert!(fails(&server, 1, &["logs", "none"]).contains("is not kept"));
    let before = kept_files(&server);
    ok(&server, &["exec", "a", "echo", "x"]);
    let client = server.client();
    let spec = ProcessSpec { path: "echo".into(), args: vec!["g".into()], ..ProcessSpec::default() };
    let process = client.run("a", &spec, Io::default()).await.unwrap();
    assert_eq!(process.wait().await.unwrap(), 0);
    assert!(fails(&server, 1, &["logs", "a", process.id()]).contains("is not kept"));
    assert_eq!(kept_files(&server), before);
    assert!(fails(&server, 2, &["run", "--keep-output", "65M", "--", "true"]).contains("at most 64M"));
    let much = ProcessSpec { path: "true".into(), keep_output: u64::MAX, ..ProcessSpec::default() };
    assert!(client.run("a", &much, Io::default()).await.unwrap_err().to_string().contains("at most"));
    server.finish().await;
}

#[tokio::test]
async fn the_newest_output_is_kept_and_the_rest_told() {
    let server = Server::start().await;
    let script = "i=0; while [ $i -lt 40000 ]; do echo line $i; i=$((i+1)); done";
    ok(&server, &["run", "-d", "--name", "h", "--keep-output", "128K", "--", "sh", "-c", script]);
    assert_eq!(ok(&server, &["wait", "h"]), "0\n");
    let (out, err) = both(&server, &["logs", "-f", "h"]);
    assert!(err.contains("of output were not kept"), "{err}");
    // Slots of 64 KiB are given up whole, and one more than the bytes take is held; heads of pieces are in them too.
    assert!(out.ends_with("line 39999\n") && out.len() <= 192 << 10 && out.len() > 20 << 10, "{}", out.len());
    // Who asks for the last lines has lost none of them.
    assert_eq!(both(&server, &["logs", "-n", "2", "h"]), ("line 39998\nline 39999\n".into(), String::new()));
    server.finish().await;
}

/// Text of the lines of a CRI log, without their times, in alphabetical order.
fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut lines: Vec<_> = text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect();
    // The two streams are two pipes.
    lines.sort();
    lines
}

/// What is kept is also written to files, beyond a kill of the server, as long as the container lives.
#[tokio::test]
async fn output_goes_to_files() {
    let mut server = Server::start_with(&["--output-files", "1M"]).await;
    let script = "echo one; echo two >&2; read go; printf three";
    ok(&server, &["run", "-di", "--name", "h", "--", "sh", "-c", script]);
    let path = ok(&server, &["inspect", "-f", "{{.main.output_file}}", "h"]);
    let path = server.root().join(path.trim());
    assert!(path.starts_with(server.root().join("output")), "{path:?}");
    let until = async |expected: &[&str]| {
        for _ in 0..500 {
            if lines(&path) == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{:?} instead of {expected:?}", lines(&path));
    };
    until(&["stderr F two", "stdout F one"]).await;
    server.kill9();
    server.restart().await;
    let mut typing =
        command(&server, &["attach", "-i", "h"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    writeln!(typing.stdin.as_ref().unwrap(), "go").unwrap();
    typing.wait().unwrap();
    // The output is over: what was no whole line is ended.
    until(&["stderr F two", "stdout F ", "stdout F one", "stdout P three"]).await;
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    // Of a process whose output is not kept there is no file.
    ok(&server, &["exec", "h", "echo", "four"]);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 2);
    ok(&server, &["rm", "h"]);
    for _ in 0..500 {
        if !path.parent().unwrap().exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!path.parent().unwrap().exists());
    server.finish().await;
}

/// With no memory for output there is none, and it is told.
#[tokio::test]
async fn a_server_that_keeps_nothing() {
    let server = Server::start_with(&["--kept-output", "0"]).await;
    ok(&server, &["run", "-d", "--name", "h", "--", "echo", "gone"]);
    ok(&server, &["wait", "h"]);
    let (out, err) = both(&server, &["logs", "-f", "h"]);
    assert!(out.is_empty() && err.contains("5 bytes of output were not kept"), "{err}");
    server.finish().await;
}

#[tokio::test]
async fn who_follows_sees_each_line_and_the_end() {
    let server = Server::start().await;
    ok(&server, &["run", "-di", "--name", "h", "--", "cat"]);
    let mut following =
        command(&server, &["logs", "-f", "-n", "1", "h"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    for word in ["one", "two"] {
        // Standard input stays open, whoever attaches and leaves.
        let mut typing = command(&server, &["attach", "-i", "--no-signals", "h"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        writeln!(typing.stdin.as_ref().unwrap(), "{word}").unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), word);
        signal(typing.id(), Signal::TERM);
        typing.wait().unwrap();
    }
    assert!(status(&server, "h").starts_with("up "));
    // Another follower is told to end.
    let mut second = command(&server, &["logs", "-f", "h"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 8];
    second.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"one\ntwo\n");
    signal(second.id(), Signal::INT);
    assert_eq!(second.wait().unwrap().code(), Some(130));
    // One whose reader has seen enough ends, although nothing more is printed; so do events.
    for args in [&["logs", "-f", "h"][..], &["events", "--since", "1h"]] {
        let mut third = command(&server, args).stdout(Stdio::piped()).spawn().unwrap();
        third.stdout.take().unwrap().read_exact(&mut [0; 4]).unwrap();
        assert!(third.wait().unwrap().success(), "{args:?}");
    }
    ok(&server, &["stop", "--kill", "h"]);
    assert!(lines.next().is_none());
    assert!(following.wait().unwrap().success());
    assert_eq!(ok(&server, &["wait", "h"]), "137\n");
    server.finish().await;
}

#[tokio::test]
async fn output_and_ends_outlive_the_server() {
    let mut server = Server::start().await;
    let go = server.base().join("go");
    fs::create_dir(&go).unwrap();
    let volume = format!("{}:/go:ro", go.display());
    let script = "echo begin; while [ ! -e /go/on ]; do sleep 0.05; done; echo end; exit 6";
    ok(&server, &["run", "-d", "--name", "during", "-v", &volume, "--", "sh", "-c", script]);
    ok(&server, &["run", "-d", "--name", "before", "--", "sh", "-c", "echo b; exit 7"]);
    ok(&server, &["run", "-d", "--rm", "--name", "goes", "-v", &volume, "--", "sh", "-c", script]);
    ok(&server, &["run", "-d", "--name", "lives", "--", "sh", "-c", "echo up; exec sleep 1000"]);
    ok(&server, &["wait", "before"]);
    until("the first lines", || {
        ["during", "lives"].iter().all(|handle| !ok(&server, &["logs", handle]).is_empty())
    })
    .await;
    server.kill9();
    fs::write(go.join("on"), "").unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    server.restart().await;
    assert_eq!(ok(&server, &["wait", "before"]), "7\n");
    assert!(status(&server, "before").contains(" ago"), "{}", status(&server, "before"));
    assert_eq!(ok(&server, &["wait", "during"]), "6\n");
    // What it has printed while no server was there was in the pipe.
    assert_eq!(ok(&server, &["logs", "-f", "during"]), "begin\nend\n");
    assert_eq!(ok(&server, &["logs", "before"]), "b\n");
    assert_eq!(ok(&server, &["logs", "lives"]), "up\n");
    assert!(status(&server, "lives").starts_with("up "));
    until("the end of the container that goes with its process", || {
        !ok(&server, &["ps", "-aq"]).contains("goes")
    })
    .await;
    let one: Value = serde_json::from_str(&ok(&server, &["inspect", "lives"])).unwrap();
    assert_eq!(one["main"]["command"], serde_json::json!(["sh", "-c", "echo up; exec sleep 1000"]));
    server.finish().await;
}

/// `-d --rm`: the container goes with its process, and whoever follows it sees everything.
#[tokio::test]
async fn a_container_goes_with_its_process() {
    let server = Server::start().await;
    ok(
        &server,
        &["run", "-d", "--rm", "--name", "h", "-i", "--", "sh", "-c", "echo a; read x; echo b; exit 3"],
    );
    let following = command(&server, &["logs", "-f", "h"]).stdout(Stdio::piped()).spawn().unwrap();
    let waiting = command(&server, &["wait", "h"]).stdout(Stdio::piped()).spawn().unwrap();
    // They are there before it ends.
    until("the reader", || server.log().matches("/wait").count() > 0 || waiting.id() > 0).await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let mut typing = command(&server, &["attach", "-i", "h"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    typing.stdin.take().unwrap().write_all(b"x\n").unwrap();
    assert_eq!(typing.wait().unwrap().code(), Some(3));
    assert_eq!(String::from_utf8(following.wait_with_output().unwrap().stdout).unwrap(), "a\nb\n");
    assert_eq!(String::from_utf8(waiting.wait_with_output().unwrap().stdout).unwrap(), "3\n");
    until("the end of the container", || ok(&server, &["ps", "-aq"]).is_empty()).await;
    server.finish().await;
}

#[tokio::test]
async fn a_kill_for_want_of_memory_is_called_so() {
    wardian_needs::demand(&[wardian_needs::Need::CgroupMemory]);
    let server = Server::start().await;
    let script = "x=a; while :; do x=$x$x$x$x; done";
    ok(&server, &["run", "-d", "--name", "h", "-m", "16M", "--", "sh", "-c", script]);
    assert_eq!(ok(&server, &["wait", "h"]), "137\n");
    assert!(status(&server, "h").starts_with("exited (137, out of memory)"), "{}", status(&server, "h"));
    // A kill by hand after it is none.
    let id = ok(&server, &["exec", "-d", "h", "--", "sh", "-c", "kill -9 $$"]);
    ok(&server, &["wait", "--process", id.trim(), "h"]);
    let one: Value = serde_json::from_str(&ok(&server, &["inspect", "h"])).unwrap();
    let other =
        one["processes"].as_array().unwrap().iter().find(|process| process["id"] == id.trim()).unwrap();
    assert_eq!((&other["exit_status"], &other["out_of_memory"]), (&137.into(), &Value::Null));
    server.finish().await;
}

#[tokio::test]
async fn ids_are_names_too() {
    let server = Server::start().await;
    for handle in ["one", "two"] {
        ok(&server, &["run", "-d", "--name", handle, "--", "echo", handle]);
    }
    let ids = ok(&server, &["ps", "--format", "{{.id}} {{.handle}}"]);
    for line in ids.lines() {
        let (id, handle) = line.split_once(' ').unwrap();
        assert_eq!(ok(&server, &["exec", id, "echo", "in"]), "in\n");
        assert_eq!(ok(&server, &["logs", &id[..12]]), format!("{handle}\n"));
        // A handle comes first, although it is the beginning of an id.
        ok(&server, &["create", "--name", &id[..6]]);
        assert!(fails(&server, 1, &["logs", &id[..6]]).contains("unknown process"));
        ok(&server, &["rm", &id[..6]]);
        let one: Value = serde_json::from_str(&ok(&server, &["inspect", &id[..8]])).unwrap();
        assert_eq!(one["handle"], handle);
    }
    assert!(fails(&server, 1, &["logs", &"f".repeat(32)]).contains("unknown handle"));
    server.finish().await;
}

#[tokio::test]
async fn lists_are_filtered_and_formatted() {
    let server = Server::start().await;
    ok(&server, &["run", "-d", "--name", "up", "--label", "tier=web", "--", "sleep", "1000"]);
    ok(&server, &["run", "-d", "--name", "ended", "--label", "tier=db", "--", "sh", "-c", "exit 2"]);
    ok(&server, &["create", "--name", "idle", "-e", "SECRET=s3cret", "--tmpfs", "/t:size=1M"]);
    ok(&server, &["wait", "ended"]);
    let names = |filters: &[&str]| {
        let filters = filters.iter().flat_map(|filter| ["--filter", filter]);
        let args: Vec<&str> = ["ps", "-q"].into_iter().chain(filters).collect();
        ok(&server, &args).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(&[]), "ended idle up");
    assert_eq!(names(&["status=running"]), "up");
    assert_eq!(names(&["status=exited"]), "ended");
    assert_eq!(names(&["status=idle", "status=running"]), "idle up");
    assert_eq!(names(&["exited=2"]), "ended");
    assert_eq!(names(&["exited=0"]), "");
    assert_eq!(names(&["label=tier"]), "ended up");
    assert_eq!(names(&["label=tier=db"]), "ended");
    assert_eq!(names(&["tier=web"]), "up");
    assert_eq!(names(&["name=d"]), "ended idle");
    assert_eq!(names(&["name=d", "status=idle"]), "idle");
    let image = server.image().display().to_string();
    assert_eq!(names(&[&format!("image={image}")]), "ended idle up");
    assert_eq!(names(&["ancestor=other"]), "");

    let table = ok(&server, &["ps", "--format", "table {{.Names}}\\t{{.Status}}", "--filter", "name=idle"]);
    assert_eq!(table, "NAMES  STATUS\nidle   idle\n");
    assert_eq!(
        ok(&server, &["ps", "--format", "{{.Names}} {{.State}} {{.Labels}}", "--filter", "status=running"])
            .split(',')
            .next()
            .unwrap(),
        "up running garden.state=created"
    );
    let json = ok(&server, &["ps", "--format", "json"]);
    assert_eq!(json.lines().count(), 3);
    assert!(
        json.lines()
            .all(|line| serde_json::from_str::<Value>(line).unwrap()["ID"].as_str().unwrap().len() == 12)
    );
    assert!(fails(&server, 1, &["ps", "--format", "{{.nope}}"]).contains("there is no field .nope"));
    assert!(fails(&server, 2, &["ps", "--format", "nope"]).contains("{{.handle}}"));
    let long = ok(&server, &["ps", "--no-trunc", "--filter", "name=up"]);
    assert!(
        long.contains("sleep 1000") && long.lines().nth(1).unwrap().split(' ').next().unwrap().len() == 32,
        "{long}"
    );

    assert_eq!(
        ok(&server, &["inspect", "-f", "{{.State.ExitCode}} {{.main.exit_status}} {{.status}}", "ended"])
            .split(" exited")
            .next()
            .unwrap(),
        "2 2"
    );
    let shown = |args: &[&str]| ok(&server, args);
    assert!(
        !shown(&["inspect", "idle"]).contains("s3cret")
            && shown(&["inspect", "--show-env", "idle"]).contains("SECRET=s3cret")
    );
    let memory = shown(&[
        "inspect",
        "-f",
        "{{.mounts.0.type}} {{.mounts.0.destination}} {{.mounts.0.options}}",
        "idle",
    ]);
    assert!(memory.starts_with("tmpfs /t ") && memory.contains("size=1048576"), "{memory}");
    let both: Value = serde_json::from_str(&shown(&["inspect", "idle", "up"])).unwrap();
    assert_eq!(both.as_array().unwrap().len(), 2);
    let up = &both[1];
    assert!(std::path::Path::new(up["rootfs_path"].as_str().unwrap()).is_dir(), "{up}");
    assert!(std::path::Path::new(up["container_path"].as_str().unwrap()).is_dir());
    assert_eq!((&up["env_count"].as_u64().is_some(), &up["image"]), (&true, &image.into()));
    server.finish().await;
}
