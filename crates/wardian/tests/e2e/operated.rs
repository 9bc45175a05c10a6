//! What an operator has come upon: exit codes after signals, what cp takes the place of and what it makes of links, the order of
//! volumes.

use crate::cli::Said;
use crate::commands::command;
use crate::host_files::{cp, cp_out, place};
use crate::support::{Server, ended_within, message, say, script, sh, signal, tar_of};
use crate::tty::handles;
use rustix::process::Signal;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener;
use std::process::{Child, Stdio};
use std::time::Duration;
use wardian_garden::Io;
use wardian_garden::wire::{BindMount, ContainerSpec};

/// A command that has printed a first line.
fn begun(server: &Server, args: &[&str]) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = command(server, args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    (child, out)
}

/// Its exit code, which must come long before the ten seconds after which the process would be killed.
fn code(child: &mut Child) -> Option<i32> {
    let limit = Duration::from_secs(8);
    ended_within(child, limit).unwrap_or_else(|| panic!("still there after {limit:?}")).code()
}

/// What the program has left behind holds its output.
#[tokio::test]
async fn who_ends_after_a_signal_gives_its_exit_code() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let text = "trap 'echo bye; exit 7' TERM; sleep 4720 & echo up; wait";
    for with in [Signal::TERM, Signal::INT] {
        for args in [&["exec", "c", "--"][..], &["run", "--rm", "--"]] {
            let (mut child, mut out) = begun(&server, &[args, &["sh", "-c", text]].concat());
            signal(child.id(), with);
            assert_eq!(code(&mut child), Some(7), "{with:?} {args:?}");
            let mut rest = String::new();
            out.read_to_string(&mut rest).unwrap();
            assert_eq!(rest, "bye\n");
        }
    }
    assert_eq!(handles(&server), "c\n");
    // It has ended before: what it has left behind is not killed.
    let (mut child, _out) = begun(&server, &["exec", "c", "--", "sh", "-c", "sleep 4721 & echo up; exit 3"]);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(child.try_wait().unwrap().is_none(), "a background job is waited for");
    signal(child.id(), Signal::TERM);
    assert_eq!(code(&mut child), Some(3));
    assert_eq!(sh(&client, "c", "ps -o args | grep -q '^sleep 4721'").await.code, 0);
    server.finish().await;
}

#[tokio::test]
async fn a_signal_that_would_end_a_client_leaves_nothing_behind() {
    let server = Server::start().await;
    for with in [Signal::USR1, Signal::USR2, Signal::ALARM, Signal::VTALARM, Signal::PROF, Signal::XCPU] {
        let (mut child, _out) = begun(&server, &["run", "--rm", "--", "sh", "-c", "echo up; exec sleep 300"]);
        signal(child.id(), with);
        // It arrives as it is, and ends the process.
        assert_eq!(code(&mut child), Some(128 + with.as_raw()), "{with:?}");
        assert_eq!(handles(&server), "", "{with:?}");
    }
    server.finish().await;
}

#[test]
fn who_is_interrupted_says_that_the_server_has_not_answered() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    for (args, done) in [
        (&["rm", "a", "b"][..], "these are destroyed: a, b: `wardian ps` shows it"),
        (&["rm", "-f", "a"], "these are destroyed: a: `wardian ps` shows it\n"),
        (&["stop", "a"], "these are stopped: a: `wardian ps` shows it\n"),
    ] {
        let mut child = std::process::Command::new(crate::support::WARDIAN);
        child.args(args).env("WARDIAN_SOCKET", &socket).stdin(Stdio::null());
        let child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let _connection = listener.accept().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        signal(child.id(), Signal::TERM);
        let said = Said::from(child.wait_with_output().unwrap());
        assert_eq!(said.code, Some(143), "{said:?}");
        assert!(said.err.contains(&format!("the server has not said whether {done}")), "{said:?}");
    }
}

#[tokio::test]
async fn no_copy_takes_the_place_of_a_device() {
    let server = Server::start().await;
    let client = server.create("c").await;
    say(&client, "c", "mkdir /d; mkfifo /d/fifo; ln -s /proc/self/fd/1 /d/out").await;
    let base = place();
    for name in ["file", "null", "fifo"] {
        fs::write(base.path().join(name), "x").unwrap();
    }
    for (from, to, what) in [
        ("file", "c:/dev/null", "/dev/null in c is a device"),
        ("null", "c:/dev", "/dev/null in c is a device"),
        ("file", "c:/d/fifo", "/d/fifo in c is a FIFO"),
        ("fifo", "c:/d", "/d/fifo in c is a FIFO"),
        ("file", "c:/d/out", "/d/out in c is a link to the files of a process"),
    ] {
        let said = cp(&server, &base.path().join(from), to);
        assert!(said.code == Some(1) && said.err.contains(what), "{said:?}");
    }
    // Whoever speaks to the server himself is told as well.
    for name in ["null", "./null"] {
        let tar = tar_of(&[(name, b"x"), ("other", b"y")]);
        let said = message(client.stream_in("c", "", "/dev", std::io::Cursor::new(tar), None).await);
        assert!(said.contains("null: it is a device"), "{said}");
    }
    assert_eq!(
        say(&client, "c", "test -c /dev/null && test -p /d/fifo && test -L /d/out && cat /dev/other").await,
        "y"
    );
    // One FIFO takes another one's place.
    assert!(std::process::Command::new("mkfifo").arg(base.path().join("p")).status().unwrap().success());
    for _ in 0..2 {
        assert_eq!(cp(&server, &base.path().join("p"), "c:/d/p").code, Some(0));
    }
    assert_eq!(cp(&server, &base.path().join("file"), "c:/d/new").code, Some(0));
    assert_eq!(cp(&server, &base.path().join("file"), "c:/d/new").code, Some(0));
    // Links to open files hold nothing that a container could read.
    for from in ["/dev/stdin", "/proc/self/fd/0"] {
        let said = cp(&server, from.as_ref(), "c:/d/x");
        assert!(said.code == Some(1) && said.err.contains("a link to the files of a process"), "{said:?}");
    }
    assert_eq!(sh(&client, "c", "test -e /d/x -o -L /d/x").await.code, 1);
    server.finish().await;
}

#[tokio::test]
async fn names_of_one_file_stay_names_of_one_file() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let base = place();
    let dir = base.path().join("dir");
    let deep = "n".repeat(120);
    fs::create_dir_all(dir.join(&deep)).unwrap();
    fs::write(dir.join("first"), crate::support::noise(1 << 20)).unwrap();
    for name in ["b", "c", &format!("{deep}/d"), &format!("{deep}/e")] {
        fs::hard_link(dir.join("first"), dir.join(name)).unwrap();
    }
    let count = |text: &str| format!("cd {text}; stat -c %i first b c n*/d n*/e | sort -u | wc -l");
    assert_eq!(cp(&server, &dir, "c:/in").code, Some(0));
    assert_eq!(cp(&server, &dir.join("."), "c:/contents").code, Some(0));
    for path in ["/in", "/contents"] {
        assert_eq!(say(&client, "c", &count(path)).await, "1", "{path}");
    }
    // In the tar, too.
    let tar = command(&server, &["cp", "c:/in", "-"]).output().unwrap();
    assert!(tar.status.success() && tar.stdout.len() < 2 << 20, "{} bytes", tar.stdout.len());
    for (from, to) in [("c:/in", "out"), ("c:/in/.", "dot")] {
        let to = base.path().join(to);
        assert_eq!(cp_out(&server, from, &to).code, Some(0), "{from}");
        let inode = |name: &str| to.join(name).metadata().map(|meta| (meta.ino(), meta.nlink())).unwrap();
        for name in ["b", "c", &format!("{deep}/d"), &format!("{deep}/e")] {
            assert_eq!(inode(name), (inode("first").0, 5), "{from} {name}");
        }
    }
    // A name whose first one is not copied has its content.
    assert_eq!(cp_out(&server, &format!("c:/in/{deep}"), &base.path().join("part")).code, Some(0));
    assert_eq!(fs::read(base.path().join("part/d")).unwrap(), fs::read(dir.join("first")).unwrap());
    // Onto another file system, where there are no such names across its border.
    let volume = base.path().join("volume");
    fs::create_dir(&volume).unwrap();
    // Of the container's root.
    std::os::unix::fs::chown(&volume, Some(u32::MAX - 1), Some(u32::MAX - 1)).unwrap();
    let bind = BindMount {
        src_path: volume.to_str().unwrap().into(),
        dst_path: format!("/t/{deep}"),
        mode: 1,
        origin: 0,
        idmap: false,
    };
    let spec = ContainerSpec { handle: "v".into(), bind_mounts: vec![bind], ..Default::default() };
    client.create(&spec).await.unwrap();
    let said = cp(&server, &dir.join("."), "v:/t");
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(
        say(&client, "v", "cd /t; cmp first n*/d && cmp first n*/e && cmp first b && echo same").await,
        "same"
    );
    server.finish().await;
}

#[tokio::test]
async fn an_entry_that_cannot_be_made_does_not_end_the_others() {
    let server = Server::start().await;
    let client = server.create("c").await;
    say(&client, "c", "mkdir -p /t/full/x /t/full2/x").await;
    let big = vec![b'x'; 100_000];
    let tar = tar_of(&[("full", &big), ("a", b"1"), ("full2", b"2"), ("full/y", b"3"), ("z", &big)]);
    let said = message(client.stream_in("c", "", "/t", std::io::Cursor::new(tar), None).await);
    assert!(
        said.contains("full: Directory not empty") && said.contains("full2: Directory not empty"),
        "{said}"
    );
    assert!(said.contains("all else was unpacked"), "{said}");
    assert_eq!(
        say(&client, "c", "cd /t; cat a full/y; wc -c <z; ls -d full/x full2/x").await,
        "13100000\nfull/x\nfull2/x"
    );
    // Only some are named.
    say(&client, "c", "cd /t; for n in $(seq 200); do mkdir -p d$n/x; done").await;
    let names: Vec<String> = (1..=200).map(|n| format!("d{n}")).chain(["last".into()]).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"x"[..])).collect();
    let said = message(client.stream_in("c", "", "/t", std::io::Cursor::new(tar_of(&files)), None).await);
    assert!(said.len() < 4000 && said.contains("and 180 more"), "{said}");
    assert_eq!(say(&client, "c", "cat /t/last").await, "x");
    server.finish().await;
}

#[tokio::test]
async fn volumes_do_not_hide_each_other() {
    let server = Server::start().await;
    let base = place();
    for name in ["a", "b/y"] {
        fs::create_dir_all(base.path().join(name)).unwrap();
    }
    fs::write(base.path().join("a/of-a"), "").unwrap();
    fs::write(base.path().join("b/of-b"), "").unwrap();
    let volume = |name: &str, to: &str| format!("{}/{name}:{to}:ro", base.path().display());
    let run = |volumes: [&str; 2]| {
        let args = ["run", "--rm", "-v", volumes[0], "-v", volumes[1], "--", "ls", "/x", "/x/y"];
        Said::from(command(&server, &args).output().unwrap())
    };
    let (a, b) = (volume("a", "/x/y"), volume("b", "/x"));
    for volumes in [[&*a, &*b], [&*b, &*a]] {
        let said = run(volumes);
        assert!(said.out.contains("of-a") && said.out.contains("of-b"), "{said:?}");
    }
    let said = run([&volume("a", "/x"), &volume("b", "//x/")]);
    assert!(said.code == Some(2) && said.err.contains("two volumes are to be at //x/"), "{said:?}");
    // Garden takes both, and the last one is seen. Peas have an order of their own.
    let bind = |name: &str, to: &str| BindMount {
        src_path: base.path().join(name).to_str().unwrap().into(),
        dst_path: to.into(),
        mode: 0,
        origin: 0,
        idmap: false,
    };
    let binds = vec![bind("b", "/x"), bind("a", "/x")];
    let client = server.client();
    client
        .create(&ContainerSpec { handle: "c".into(), bind_mounts: binds, ..Default::default() })
        .await
        .unwrap();
    assert_eq!(say(&client, "c", "ls /x").await, "of-a");
    let image = server.image().to_str().unwrap().to_owned();
    let mut pea = crate::support::pea(&image, "ls /x /x/y");
    pea.bind_mounts = vec![bind("a", "/x/y"), bind("b", "/x")];
    let said = crate::support::run(&client, "c", &pea).await;
    assert!(said.out.contains("of-a") && said.out.contains("of-b"), "{said:?}");
    server.finish().await;
}

/// What a Garden client sees of the end is what guardian tells.
#[tokio::test]
async fn who_does_not_wait_is_told_nothing_new() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let io = Io { stdout: true, stderr: true, ..Io::default() };
    let process = client.run("c", &script("sleep 1 & exit 4"), io).await.unwrap();
    let told = tokio::time::timeout(Duration::from_millis(800), process.ended()).await;
    assert!(told.is_err());
    assert_eq!(process.wait().await.unwrap(), 4);
    server.finish().await;
}
