//! The commands on containers, as a user types them.

use crate::cli::Said;
use crate::support::{STUCK, Server, WARDIAN, digest, noise, signal, tar_of};
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

pub fn command(server: &Server, args: &[&str]) -> Command {
    let mut command = Command::new(WARDIAN);
    command.args(args).env("WARDIAN_SOCKET", server.socket()).env_remove("WARDIAN_LOG").stdin(Stdio::null());
    command
}

fn wardian(server: &Server, args: &[&str]) -> Said {
    command(server, args).output().unwrap().into()
}

/// It must succeed. What it says.
pub fn ok(server: &Server, args: &[&str]) -> String {
    let said = wardian(server, args);
    assert!(said.code == Some(0) && said.err.is_empty(), "{args:?}: {said:?}\n{}", server.log());
    said.out
}

/// It must fail with this code. The message.
pub fn fails(server: &Server, code: i32, args: &[&str]) -> String {
    let said = wardian(server, args);
    assert_eq!((said.code, said.out.as_str()), (Some(code), ""), "{args:?}: {said:?}");
    said.err
}

fn json(server: &Server, args: &[&str]) -> Value {
    let out = ok(server, args);
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{args:?}: {error}: {out}"))
}

/// The handles that there are, in whatever state.
fn handles(server: &Server) -> Vec<String> {
    ok(server, &["ps", "-aq"]).lines().map(str::to_owned).collect()
}

fn with_input(server: &Server, args: &[&str], input: &[u8]) -> std::process::Output {
    fed(command(server, args), input)
}

/// What a command says that has this on standard input.
pub fn fed(mut command: Command, input: &[u8]) -> std::process::Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let feeding = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    feeding.join().unwrap();
    output
}

/// One that says `up` and is left to be signalled.
fn started(server: &Server, args: &[&str]) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = command(server, args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    if line != "up\n" {
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        panic!("{line:?} {err}\n{}", server.log());
    }
    (child, out)
}

#[tokio::test]
async fn run_ends_as_its_process_does() {
    let server = Server::start().await;
    let image = server.image();
    let image = image.to_str().unwrap();
    let said = wardian(&server, &["run", "--rm", image, "sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (Some(3), "out\n", "err\n"));
    // The server's default image, options after the image, options of the command, a -- that belongs to it.
    assert_eq!(ok(&server, &["run", "--rm", "--", "echo", "-n", "--", "x"]), "-- x");
    assert_eq!(ok(&server, &["run", image, "--rm", "--", "echo", "-e", "a"]), "a\n");
    assert_eq!(ok(&server, &["run", "--rm", image, "echo", "--rm", "-i", "--", "x"]), "--rm -i -- x\n");
    assert_eq!(wardian(&server, &["run", "--rm", "--", "sh", "-c", "kill -9 $$"]).code, Some(137));
    // Not the process's.
    for (code, command, says) in [
        (127, "nope", "executable file not found in $PATH"),
        (127, "/nope", "no such file or directory"),
        (126, "/etc/passwd", "permission denied"),
    ] {
        for rm in [&["run", "--rm", "--"][..], &["run", "--"]] {
            let error = fails(&server, code, &[rm, &[command]].concat());
            assert!(error.starts_with("wardian: ") && error.contains(says), "{error}");
        }
    }
    assert!(fails(&server, 125, &["run", "--rm", "/nope.tar", "true"]).contains("/nope.tar"));
    assert!(fails(&server, 125, &["run", "-u", "nobody-here", "--", "true"]).contains("unable to find user"));
    assert!(fails(&server, 125, &["run", image]).contains("no command of its own"));
    assert!(fails(&server, 2, &["run", "-it", "--", "sh"]).contains("-t needs a terminal"));
    // Where nothing was run nothing is left, with or without --rm.
    assert_eq!(handles(&server), Vec::<String>::new());
    server.finish().await;
}

#[tokio::test]
async fn a_container_that_is_kept() {
    let server = Server::start().await;
    ok(&server, &["run", "--name", "k", "--property", "color=blue", "--", "sh", "-c", "echo kept >/f"]);
    assert_eq!(ok(&server, &["exec", "k", "cat", "/f"]), "kept\n");
    assert_eq!(wardian(&server, &["exec", "k", "sh", "-c", "exit 9"]).code, Some(9));
    fails(&server, 127, &["exec", "k", "--", "nope"]);
    assert_eq!(ok(&server, &["create", "--name", "c"]), "c\n");
    assert_eq!(ok(&server, &["ps", "-q"]), "c\nk\n");
    assert_eq!(ok(&server, &["ps", "-q", "--filter", "color=blue"]), "k\n");

    let table = ok(&server, &["ps"]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert!(lines[0].starts_with("ID ") && lines[0].ends_with("HANDLE"), "{table}");
    assert!(lines[1].ends_with(" c") && lines[1].contains(" ago ") && lines[1].contains("idle"), "{table}");
    let all = json(&server, &["ps", "--json"]);
    assert_eq!((&all[1]["handle"], &all[1]["properties"]["color"]), (&"k".into(), &"blue".into()));
    assert!(all[0]["created_ms"].as_u64().unwrap() > 1_600_000_000_000, "{all}");
    let one = json(&server, &["inspect", "k"]);
    assert_eq!((&one["handle"], &one["info"]["State"]), (&"k".into(), &"active".into()));
    assert_eq!(one["history"]["create"]["handle"], "k");
    assert!(one["metrics"]["Age"].as_i64().unwrap() > 0 && one["limits"]["memory"].is_object(), "{one}");
    let stats = json(&server, &["stats", "--no-stream", "--json"]);
    assert_eq!(stats.as_array().unwrap().len(), 2);
    assert!(stats[0]["cpu_percent"].is_number() && stats[0]["memory_bytes"].is_u64(), "{stats}");
    let table = ok(&server, &["stats", "--no-stream", "k"]);
    assert!(table.starts_with("HANDLE  CPU %") && table.lines().count() == 2, "{table}");

    assert_eq!(ok(&server, &["stop", "--kill", "k"]), "k\n");
    assert_eq!(json(&server, &["inspect", "k"])["info"]["State"], "stopped");
    // What can be done is done.
    let said = wardian(&server, &["rm", "nope", "k"]);
    assert_eq!((said.code, said.out.as_str()), (Some(1), "k\n"));
    assert!(said.err.contains("unknown handle: nope"), "{said:?}");
    assert_eq!(ok(&server, &["rm", "-f", "nope", "c"]), "c\n");
    assert_eq!(handles(&server), Vec::<String>::new());
    server.finish().await;
}

#[tokio::test]
async fn left_alone_from_the_beginning_and_attached_to_later() {
    let server = Server::start().await;
    let handle = ok(
        &server,
        &["run", "-d", "--", "sh", "-c", "while test ! -e /go; do sleep 0.01; done; echo gone; exit 6"],
    );
    let handle = handle.trim();
    let mut child = command(&server, &["attach", handle]);
    let mut child = child.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    // Somebody who only listens, and goes, disturbs nobody.
    let mut other =
        command(&server, &["attach", "--no-signals", handle]).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    signal(other.id(), Signal::INT);
    assert!(other.wait().unwrap().code().is_none_or(|code| code == 130));
    ok(&server, &["exec", handle, "touch", "/go"]);
    assert_eq!(child.wait().unwrap().code(), Some(6));
    let mut text = String::new();
    out.read_to_string(&mut text).unwrap();
    assert!(text == "gone\n" || text.is_empty(), "{text:?}");
    // Whoever comes late hears how it ended.
    assert_eq!(wardian(&server, &["attach", handle]).code, Some(6));
    let id = ok(&server, &["exec", "-d", handle, "sh", "-c", "exit 8"]);
    assert_eq!(wardian(&server, &["attach", handle, id.trim()]).code, Some(8));
    ok(&server, &["rm", handle]);
    server.finish().await;
}

#[tokio::test]
async fn input_of_any_bytes() {
    let server = Server::start().await;
    let said: Said = with_input(&server, &["run", "--rm", "-i", "--", "cat"], "grüße\n".as_bytes()).into();
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (Some(0), "grüße\n", ""));
    ok(&server, &["create", "--name", "i"]);
    let data = noise(1_000_003);
    let output = with_input(&server, &["exec", "-i", "i", "--", "cat"], &data);
    assert_eq!((output.status.code(), digest(&output.stdout)), (Some(0), digest(&data)));
    // Letters that are cut in two by a read, and a last one that is cut off.
    let letters = [&"€".repeat(40_000).into_bytes()[..], &b"\xe2\x82"[..]].concat();
    assert_eq!(digest(&with_input(&server, &["exec", "-i", "i", "cat"], &letters).stdout), digest(&letters));
    // Without -i it has ended from the beginning.
    assert_eq!(with_input(&server, &["exec", "i", "--", "cat"], b"x").stdout, b"");
    server.finish().await;
}

#[tokio::test]
async fn what_a_container_is_made_of() {
    let server = Server::start().await;
    let dir = server.base().join("shared");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    let file = server.base().join("env");
    fs::write(&file, "# comment\nA=file\nB=file\n").unwrap();
    let shared = dir.to_str().unwrap();
    let (rw, ro) = (format!("{shared}:/rw"), format!("{shared}:/ro:ro"));
    let script = "echo $A $B $C; pwd; id -u; echo there >/rw/f; cat /ro/f; echo x 2>/dev/null >/ro/g || echo read-only";
    let said = command(
        &server,
        &[
            "run",
            "--name",
            "m",
            "--env-file",
            file.to_str().unwrap(),
            "-e",
            "A=flag",
            "-e",
            "C",
            "-w",
            "/work",
            "-u",
            "1000:1000",
        ],
    )
    .args([
        "-v",
        &rw,
        "-v",
        &ro,
        "--memory",
        "64M",
        "--cpu-shares",
        "512",
        "--pids",
        "50",
        "--",
        "sh",
        "-c",
        script,
    ])
    .env("C", "ours")
    .output()
    .unwrap();
    let said = Said::from(said);
    assert_eq!(said.out, "flag file ours\n/work\n1000\nthere\nread-only\n", "{said:?}");
    assert_eq!(fs::read_to_string(dir.join("f")).unwrap(), "there\n");
    let one = json(&server, &["inspect", "m"]);
    assert_eq!(one["limits"]["memory"]["limit_in_bytes"], 64 << 20);
    assert_eq!(one["limits"]["cpu"]["limit_in_shares"], 512);
    assert_eq!(one["metrics"]["PidStat"]["Max"], 50);
    // What the container was given its later processes have too, and what they are given comes on top.
    assert_eq!(ok(&server, &["exec", "-e", "B=exec", "m", "--", "sh", "-c", "echo $A $B"]), "flag exec\n");
    // A relative image is one of ours, not of the server's directory.
    let said =
        command(&server, &["run", "--rm", "./image.tar", "--", "true"]).current_dir(server.base()).status();
    assert!(said.unwrap().success());
    server.finish().await;
}

#[tokio::test]
async fn whoever_is_told_to_end_ends_in_good_order() {
    let server = Server::start().await;
    let polite = "trap 'exit 5' TERM; trap 'exit 6' QUIT; echo up; while :; do sleep 0.02; done";
    // INT, TERM and HUP ask the process to end; other signals arrive as they are.
    for (number, code) in [(Signal::INT, 5), (Signal::TERM, 5), (Signal::HUP, 5), (Signal::QUIT, 6)] {
        let (mut child, _out) = started(&server, &["run", "--rm", "--", "sh", "-c", polite]);
        signal(child.id(), number);
        assert_eq!(child.wait().unwrap().code(), Some(code), "{number:?}");
        assert_eq!(handles(&server), Vec::<String>::new(), "{number:?}");
    }
    let deaf = "trap '' TERM; echo up; while :; do sleep 0.02; done";
    let (mut child, _out) = started(&server, &["run", "--rm", "--", "sh", "-c", deaf]);
    // The second one may come while the first is being passed on: it is repeated until it was heard.
    let begun = Instant::now();
    let status = loop {
        signal(child.id(), Signal::INT);
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(begun.elapsed() < STUCK);
        std::thread::sleep(std::time::Duration::from_millis(200));
    };
    assert!(matches!(status.code(), Some(137 | 130)), "{status}");
    assert_eq!(handles(&server), Vec::<String>::new());
    // A job that nohup has started is not told.
    let mut child = Command::new("nohup");
    child.arg(WARDIAN).args(["run", "--rm", "-i", "--", "sh", "-c", "echo up; cat"]);
    child.env("WARDIAN_SOCKET", server.socket()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = child.stderr(Stdio::null()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut String::new()).unwrap();
    signal(child.id(), Signal::HUP);
    child.stdin.take().unwrap().write_all(b"still there\n").unwrap();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), child.wait().unwrap().code()), ("still there\n", Some(0)));
    // A reader that has seen enough.
    let (mut child, out) = started(&server, &["run", "--rm", "--", "sh", "-c", "echo up; exec yes"]);
    drop(out);
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert_eq!(handles(&server), Vec::<String>::new());
    server.finish().await;
}

#[tokio::test]
async fn a_server_that_goes_leaves_the_container_for_the_next_one() {
    let mut server = Server::start().await;
    let (child, _out) = started(&server, &["run", "--name", "g", "--", "sh", "-c", "echo up; sleep 1000"]);
    server.kill9();
    let output = child.wait_with_output().unwrap();
    let said = Said::from(output);
    assert_eq!(said.code, Some(125), "{said:?}");
    assert!(said.err.contains("the server has gone"), "{said:?}");
    server.restart().await;
    assert_eq!(ok(&server, &["ps", "-q"]), "g\n");
    ok(&server, &["stop", "--kill", "g"]);
    assert_eq!(wardian(&server, &["attach", "g"]).code, Some(137));
    server.finish().await;
}

#[tokio::test]
async fn files_in_and_out() {
    let server = Server::start().await;
    ok(&server, &["create", "--name", "f"]);
    let base = server.base().join("files");
    fs::create_dir_all(base.join("src/sub")).unwrap();
    fs::write(base.join("src/sub/deep"), "deep").unwrap();
    fs::write(base.join("one"), "one").unwrap();
    symlink("sub/deep", base.join("src/link")).unwrap();
    let cp = |from: &str, to: &str| {
        let said = Said::from(command(&server, &["cp", from, to]).current_dir(&base).output().unwrap());
        assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (Some(0), "", ""), "{from} {to}");
    };
    let inside = |script: &str| ok(&server, &["exec", "f", "sh", "-c", script]);
    // A file: into a directory, under another name, over one that is there.
    cp("one", "f:/tmp");
    cp("one", "f:/tmp/");
    cp("./one", "f:/tmp/two");
    assert_eq!(inside("cat /tmp/one /tmp/two; stat -c %u /tmp/two"), "oneone0\n");
    fs::write(base.join("one"), "new").unwrap();
    cp("one", "f:tmp/two");
    assert_eq!(inside("cat /tmp/two"), "new");
    // A directory: into one, as one, its contents.
    cp("src", "f:/tmp");
    cp("src", "f:/named");
    cp("src/.", "f:/made/for/it");
    assert_eq!(inside("cat /tmp/src/link /named/sub/deep /made/for/it/sub/deep"), "deepdeepdeep");
    // And back.
    let read = |path: &str| fs::read_to_string(base.join(path)).unwrap();
    cp("f:/tmp/two", ".");
    cp("f:/tmp/two", "back");
    assert_eq!((read("two"), read("back")), ("new".into(), "new".into()));
    // That something is not there yet is no failure.
    let failed = |line: &str| line.contains("server.request-failed") && line.contains("\"level\":\"error\"");
    assert!(!server.log().lines().any(failed), "{}", server.log());
    cp("f:/named", "dir");
    cp("f:/named", "dir");
    cp("f:/named/.", "contents");
    assert_eq!(
        (read("dir/link"), read("dir/named/sub/deep"), read("contents/sub/deep")),
        ("deep".into(), "deep".into(), "deep".into())
    );
    // Big ones, and their modes.
    let data = noise(3_000_001);
    fs::write(base.join("big"), &data).unwrap();
    fs::set_permissions(base.join("big"), fs::Permissions::from_mode(0o750)).unwrap();
    cp("big", "f:/big");
    cp("f:/big", "big2");
    assert_eq!(digest(&fs::read(base.join("big2")).unwrap()), digest(&data));
    assert_eq!(fs::metadata(base.join("big2")).unwrap().permissions().mode() & 0o7777, 0o750);
    // Tars.
    let said = with_input(&server, &["cp", "-", "f:/tarred"], &tar_of(&[("x/y", b"z")]));
    assert!(said.status.success());
    let tar = command(&server, &["cp", "f:/tarred/.", "-"]).output().unwrap();
    let names: Vec<String> = tar::Archive::new(&tar.stdout[..])
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    assert!(names.iter().any(|name| name.trim_start_matches("./") == "x/y"), "{names:?}");

    // Mistakes.
    let fail = |from: &str, to: &str, says: &str| {
        let said = Said::from(command(&server, &["cp", from, to]).current_dir(&base).output().unwrap());
        assert!(said.code == Some(1) && said.err.contains(says), "{from} {to}: {said:?}");
    };
    fail("nope", "f:/tmp", "find \"nope\"");
    fail("f:/nope", "x", "nope");
    fail("f:/nope/.", "x", "nope");
    assert!(!base.join("x").exists());
    fail("one", "f:/nope/", "there is no directory /nope");
    fail("f:/tmp/two", "nope/", "there is no directory nope/");
    fail("one", "nobody:/tmp", "unknown handle: nobody");
    fail("nobody:/tmp", "x", "unknown handle: nobody");
    fail("src", "f:/tmp/two", "two");
    fail("f:/named", "one", "one");
    fail("one/.", "f:/tmp", "Not a directory");
    server.finish().await;
}

#[tokio::test]
async fn a_container_cannot_lead_a_copy_out_of_its_directory() {
    let server = Server::start().await;
    ok(&server, &["create", "--name", "h"]);
    let base = server.base().join("host");
    fs::create_dir_all(base.join("in")).unwrap();
    ok(
        &server,
        &[
            "exec",
            "h",
            "sh",
            "-c",
            "mkdir /d; ln -s ../../../evil /d/l; ln -s / /root-link; echo x >/d/f; chmod 4755 /d/f; mknod /d/p p",
        ],
    );
    let to = base.join("in");
    let to = to.to_str().unwrap();
    ok(&server, &["cp", "h:/d", to]);
    assert_eq!(fs::read_link(base.join("in/d/l")).unwrap(), Path::new("../../../evil"));
    assert_eq!(fs::metadata(base.join("in/d/f")).unwrap().permissions().mode() & 0o7777, 0o755);
    // A link is copied, never what it leads to.
    ok(&server, &["cp", "h:/root-link", to]);
    assert_eq!(fs::read_link(base.join("in/root-link")).unwrap(), Path::new("/"));
    server.finish().await;

    // What a hostile server sends.
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("host");
    fs::create_dir(&base).unwrap();
    let socket = base.join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let hostile: Vec<(Vec<u8>, bool)> = vec![
        (tar_of(&[("../evil", b"x")]), true),
        (tar_of(&[("d/../../evil", b"x")]), true),
        (tar_of(&[("/evil", b"x")]), true),
        (tar_of(&[("other", b"x")]), true),
        (tar_of(&[("d", b"0123456789")])[..600].to_vec(), true),
        (b"not a tar".to_vec(), true),
        (tar_of(&[("d", b"fine")]), false),
    ];
    let replies: Vec<Vec<u8>> = hostile.iter().map(|(tar, _)| tar.clone()).collect();
    let answering = std::thread::spawn(move || {
        for tar in replies {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).unwrap();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", tar.len());
            let _ = stream.write_all(&[head.as_bytes(), &tar].concat());
        }
    });
    let into = base.join("in");
    fs::create_dir_all(&into).unwrap();
    for (n, (_, bad)) in hostile.iter().enumerate() {
        let said = Command::new(WARDIAN)
            .args(["cp", "x:/d", into.to_str().unwrap()])
            .env("WARDIAN_SOCKET", &socket)
            .output()
            .unwrap();
        assert_eq!(said.status.success(), !bad, "{n}: {}", String::from_utf8_lossy(&said.stderr));
        assert!(!base.join("evil").exists() && !Path::new("/evil").exists(), "{n}");
    }
    answering.join().unwrap();
    assert_eq!(fs::read_to_string(into.join("d")).unwrap(), "fine");
}

/// Reads lines until one contains all of this.
fn until(lines: &mut BufReader<std::process::ChildStdout>, parts: &[&str]) -> String {
    loop {
        let mut line = String::new();
        assert!(lines.read_line(&mut line).unwrap() > 0, "the end came before {parts:?}");
        if parts.iter().all(|part| line.contains(part)) {
            return line;
        }
    }
}

#[tokio::test]
async fn events_are_told_as_they_happen() {
    let mut server = Server::start().await;
    let client = server.client();
    // Subscribed once this has returned.
    let mut all = client.events(None, None, None).await.unwrap();
    let mut one = client.events(Some("e"), None, None).await.unwrap();
    ok(&server, &["create", "--name", "other"]);
    assert_eq!(wardian(&server, &["run", "--name", "e", "--", "sh", "-c", "exit 3"]).code, Some(3));
    wardian(&server, &["exec", "e", "--", "nope"]);
    ok(&server, &["exec", "-d", "e", "sleep", "1000"]);
    ok(&server, &["stop", "--kill", "e"]);
    ok(&server, &["exec", "-d", "e", "sleep", "1000"]);
    ok(&server, &["rm", "e"]);
    let mut kinds = Vec::new();
    loop {
        let event = tokio::time::timeout(STUCK, one.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(event.handle, "e");
        assert!(event.time_ms > 1_600_000_000_000 && !event.id.is_empty(), "{event:?}");
        kinds.push((event.event.clone(), event.process.clone().map(|p| p.len()), event.status));
        if event.event == "destroy" {
            break;
        }
    }
    let (main, made_up) = (Some(4), Some(36));
    let expected = [
        ("create", None, None),
        ("process-start", main, None),
        ("process-exit", main, Some(3)),
        ("process-start", made_up, None),
        ("process-exit", made_up, Some(137)),
        ("stop", None, None),
        ("process-start", made_up, None),
        ("process-exit", made_up, Some(137)),
        ("destroy", None, None),
    ];
    assert_eq!(kinds, expected.map(|(kind, process, status)| (kind.to_owned(), process, status)));
    let first = tokio::time::timeout(STUCK, all.next()).await.unwrap().unwrap().unwrap();
    assert_eq!((first.event.as_str(), first.handle.as_str()), ("create", "other"));

    // An idle client that goes is noticed.
    let connections = || {
        let sockets = fs::read_to_string("/proc/net/unix").unwrap();
        // Connected, and bound to a name: the server's ends. Other servers' sockets are called so as well.
        let connected = |line: &&str| line.contains(" 0001 03 ") && line.contains(".garden.sock.");
        let inode = |line: &str| Some(format!("socket:[{}]", line.split_whitespace().nth(6)?));
        let connected: BTreeSet<String> = sockets.lines().filter(connected).filter_map(inode).collect();
        let open = fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().flatten();
        let name = |file: fs::DirEntry| Some(fs::read_link(file.path()).ok()?.to_string_lossy().into_owned());
        open.filter_map(name).filter(|name| connected.contains(name)).count()
    };
    let before = connections();
    assert!(before >= 2, "{before}");
    drop((all, one));
    let begun = Instant::now();
    while connections() + 2 > before {
        assert!(begun.elapsed() < STUCK, "{} {before}", connections());
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }

    // The command: JSON and text.
    for args in [&["events", "--json"][..], &["events", "--handle", "probe"]] {
        let mut child = command(&server, args).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        // Nobody sees when it has begun to listen: something happens until it is told.
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let socket = server.socket();
        let happening = std::thread::spawn(move || {
            while stopped.try_recv().is_err() {
                for args in [&["create", "--name", "probe"][..], &["rm", "probe"]] {
                    let mut command = Command::new(WARDIAN);
                    command.args(args).env("WARDIAN_SOCKET", &socket).stdout(Stdio::null());
                    assert!(command.status().unwrap().success());
                }
            }
        });
        let line = until(&mut lines, &["destroy", "probe"]);
        if args.contains(&"--json") {
            let event: Value = serde_json::from_str(&line).unwrap();
            assert_eq!((&event["event"], &event["handle"]), (&"destroy".into(), &"probe".into()));
        } else {
            assert!(line.contains("Z  destroy        probe"), "{line}");
        }
        stop.send(()).unwrap();
        happening.join().unwrap();
        signal(child.id(), Signal::INT);
        assert_eq!(child.wait().unwrap().code(), Some(130));
    }

    // What an earlier server has started ends under the next one, and is told once.
    let id = ok(&server, &["exec", "-d", "other", "sleep", "1000"]);
    server.kill9();
    server.restart().await;
    let mut after = client.events(None, None, None).await.unwrap();
    ok(&server, &["stop", "--kill", "other"]);
    let ended = tokio::time::timeout(STUCK, after.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(
        (ended.event.as_str(), ended.process.as_deref(), ended.status),
        ("process-exit", Some(id.trim()), Some(137))
    );
    let stopped = tokio::time::timeout(STUCK, after.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(stopped.event, "stop");

    // The end of the server ends it.
    let mut last = client.events(None, None, None).await.unwrap();
    ok(&server, &["rm", "other"]);
    assert!(server.terminate().await.success());
    while let Some(event) = tokio::time::timeout(STUCK, last.next()).await.unwrap().unwrap() {
        assert_eq!(event.handle, "other");
    }
    server.restart().await;
    server.finish().await;
}

#[tokio::test]
async fn whoever_does_not_exist() {
    let server = Server::start().await;
    for (code, args) in [
        (125, &["exec", "nope", "true"][..]),
        (125, &["attach", "nope"]),
        (1, &["inspect", "nope"]),
        (1, &["stop", "nope"]),
        (1, &["rm", "nope"]),
        (1, &["stats", "--no-stream", "nope"]),
        (1, &["cp", "nope:/x", "y"]),
    ] {
        let error = fails(&server, code, args);
        assert!(error.contains("nope") && error.contains("wardian ps"), "{args:?}: {error}");
    }
    ok(&server, &["create", "--name", "a,b"]);
    assert!(ok(&server, &["ps"]).contains("  a,b"));
    ok(&server, &["create", "--name", "p"]);
    assert!(fails(&server, 125, &["attach", "p"]).contains("unknown process: main in p"));
    assert!(fails(&server, 1, &["create", "--name", "p"]).contains("already in use"));
    assert!(fails(&server, 1, &["create", "--name", "x/y"]).contains("invalid handle"));
    server.finish().await;
}

#[test]
fn bad_flags() {
    for args in [
        &["run", "-v", "/a", "x", "true"][..],
        &["run", "-v", "/a:b", "x", "true"],
        &["run", "--memory", "1X", "x", "true"],
        &["run", "--pids", "0", "x", "true"],
        &["run", "--property", "novalue", "x", "true"],
        &["run", "--no-such-flag", "x", "true"],
        &["exec"],
        &["rm"],
        &["ps", "--filter", "x"],
        &["ps", "--socket", "garden.sock"],
    ] {
        let said = Said::from(Command::new(WARDIAN).args(args).stdin(Stdio::null()).output().unwrap());
        assert!(said.code == Some(2) && said.err.starts_with("error: "), "{args:?}: {said:?}");
    }
}

#[test]
fn a_server_that_cannot_be_reached() {
    let base = crate::support::base();
    fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = |name: &str| base.path().join(name).to_str().unwrap().to_owned();
    let program = path("wardian");
    crate::support::copy_program(WARDIAN, &program);
    let says = |socket: &str, user: u32| {
        let mut command = Command::new(&program);
        command.args(["ps", "--socket", socket]).current_dir("/").uid(user).gid(user);
        let said = Said::from(command.output().unwrap());
        assert!(said.code == Some(1) && said.out.is_empty(), "{said:?}");
        assert!(said.err.contains(socket), "{said:?}");
        said.err
    };
    let missing = says(&path("missing"), 0);
    assert!(
        missing.contains(&format!("`sudo wardian serve --listen unix:{}`", path("missing"))),
        "{missing}"
    );
    assert!(missing.contains("WARDIAN_SOCKET") && missing.contains("No such file"), "{missing}");
    drop(UnixListener::bind(path("dead")).unwrap());
    assert!(says(&path("dead"), 0).contains("nobody listens"));
    let _listener = UnixListener::bind(path("shut")).unwrap();
    fs::set_permissions(path("shut"), fs::Permissions::from_mode(0o600)).unwrap();
    let shut = says(&path("shut"), 65534);
    assert!(shut.contains("you may not speak") && shut.contains("for root (mode 0600)"), "{shut}");
    fs::create_dir(path("closed")).unwrap();
    fs::set_permissions(path("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    assert!(says(&path("closed/s"), 65534).contains("its directory is closed to you"));
    let run =
        Command::new(WARDIAN).args(["run", "--socket", &path("missing"), "x", "true"]).output().unwrap();
    assert_eq!(run.status.code(), Some(125));
    let events = Command::new(WARDIAN).args(["events", "--socket", &path("missing")]).output().unwrap();
    assert_eq!(events.status.code(), Some(1));
}

#[test]
fn completion_knows_the_commands() {
    for (words, expected) in [
        (&["wardian", ""][..], &["run", "create", "exec", "logs", "ps", "events"][..]),
        (&["wardian", "run", "--e"], &["--env-file"]),
    ] {
        let mut asked = Command::new(WARDIAN);
        asked.env("WARDIAN_COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string());
        let said = asked.arg("--").args(words).output().unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        let offered: Vec<&str> = said.split_whitespace().collect();
        assert!(expected.iter().all(|word| offered.contains(word)), "{words:?}: {said}");
    }
}
