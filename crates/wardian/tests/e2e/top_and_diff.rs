//! What is in a container, seen from the host: its processes, what it has changed, all of its files.

use crate::commands::{command, fails, ok};
use crate::support::{STUCK, Server, run, script};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;

#[tokio::test]
async fn the_processes_of_a_container() {
    let server = Server::start().await;
    let client = server.create("t").await;
    ok(&server, &["run", "-d", "--name", "main", "--", "sh", "-c", "sleep 1234 & exec sleep 4321"]);
    ok(&server, &["exec", "-d", "-u", "1000:1000", "main", "sleep", "777"]);
    let begin = std::time::Instant::now();
    let all: Value = loop {
        let text = ok(&server, &["top", "--json", "main"]);
        if ["sleep 4321", "sleep 1234", "sleep 777"].iter().all(|one| text.contains(one))
            || begin.elapsed() > STUCK
        {
            break serde_json::from_str(&text).unwrap();
        }
    };
    let find = |text: &str| {
        let found = all.as_array().unwrap().iter().find(|one| one["command"] == text);
        found.unwrap_or_else(|| panic!("no {text}: {all:#}")).clone()
    };
    let (first, second, third) = (find("sleep 4321"), find("sleep 1234"), find("sleep 777"));
    assert_eq!(second["parent"], first["pid"]);
    assert_eq!((&first["user"], &third["user"], &first["state"]), (&0.into(), &1000.into(), &"S".into()));
    assert_eq!(all[0]["pid"], 1, "{all:#}");
    let numbers = ok(&server, &["exec", "main", "sh", "-c", "grep -l 1234 /proc/[0-9]*/cmdline"]);
    assert!(numbers.contains(&format!("/proc/{}/", second["pid"])), "{numbers} {second}");
    // None of another container's.
    assert!(!ok(&server, &["top", "t"]).contains("sleep"));
    let table = ok(&server, &["top", "main"]);
    assert!(table.starts_with("PID  PARENT  USER  STATE  CPU TIME  COMMAND\n"), "{table}");

    // A process calls itself what it likes.
    let odd = "exec sh -c 'sleep 55; :' \"$(printf 'a\\n\\033[2Jb\\tc')\"";
    ok(&server, &["exec", "-d", "t", "sh", "-c", odd]);
    let begin = std::time::Instant::now();
    let table = loop {
        let table = ok(&server, &["top", "t"]);
        if table.contains("a\\n\\u{1b}[2Jb") || begin.elapsed() > STUCK {
            break table;
        }
    };
    assert!(table.contains("a\\n\\u{1b}[2Jb") && !table.contains('\u{1b}'), "{table:?}");
    let refused = fails(&server, 2, &["top", "main", "-o", "pid"]);
    assert!(refused.contains("`wardian exec main -- ps -o pid`"), "{refused}");
    assert!(fails(&server, 1, &["top", "nope"]).contains("unknown handle: nope"));
    // Of a paused one too.
    client.pause("main").await.unwrap();
    assert!(ok(&server, &["top", "main"]).contains("sleep 4321"));
    server.finish().await;
}

#[tokio::test]
async fn what_a_container_has_changed() {
    let server = Server::start().await;
    let client = server.create("d").await;
    assert_eq!(ok(&server, &["diff", "d"]), "");
    let script = script(
        "mkdir -p /new/dir; echo x >/new/dir/file; echo more >>/etc/passwd; rm /etc/group; ln -s /etc/shadow /link; \
         mknod /fifo p; chmod 700 /home; rm -rf /bin/false",
    );
    let done = run(&client, "d", &script).await;
    assert_eq!(done.code, 0, "{done:?}");
    let told = ok(&server, &["diff", "d"]);
    let changes: BTreeMap<&str, &str> = told.lines().map(|line| (&line[2..], &line[..1])).collect();
    for (path, kind) in [
        ("/new", "A"),
        ("/new/dir", "A"),
        ("/new/dir/file", "A"),
        ("/etc", "C"),
        ("/etc/passwd", "C"),
        ("/etc/group", "D"),
        ("/link", "A"),
        ("/fifo", "A"),
        ("/bin/false", "D"),
    ] {
        assert_eq!(changes.get(path), Some(&kind), "{path}: {told}");
    }
    for ours in ["/proc", "/sys", "/dev", "/etc/hosts", "/etc/resolv.conf"] {
        assert!(!changes.contains_key(ours), "{told}");
    }
    let json: Value = serde_json::from_str(&ok(&server, &["diff", "--json", "d"])).unwrap();
    assert!(json.as_array().unwrap().iter().any(|one| one["path"] == "/fifo" && one["kind"] == "A"));
    assert!(fails(&server, 1, &["diff", "nope"]).contains("unknown handle: nope"));
    server.finish().await;
}

#[tokio::test]
async fn a_diff_of_somebody_hostile() {
    let server = Server::start().await;
    let client = server.create("d").await;
    // Deeper than is walked, names that are to be shown tamely, a link to the host's files, many files.
    let deep = "i=0; while [ $i -lt 260 ]; do mkdir d && cd d || exit 1; i=$((i+1)); done; cd /; ln -s / /out; \
        touch \"$(printf '/a\\033[2J\\nb')\"; mkdir /many; cd /many; i=0; while [ $i -lt 3000 ]; do : >$i; i=$((i+1)); done";
    let done = run(&client, "d", &script(deep)).await;
    assert_eq!(done.code, 0, "{done:?}");
    let said = command(&server, &["diff", "d"]).output().unwrap();
    let (out, err) = (String::from_utf8(said.stdout).unwrap(), String::from_utf8(said.stderr).unwrap());
    assert_eq!(said.status.code(), Some(1), "{err}");
    assert!(err.contains("there are more changes than are listed"), "{err}");
    assert!(out.contains("A /a\\u{1b}[2J\\nb") && !out.contains('\u{1b}'));
    // While directories are renamed below it.
    let moving = script(
        "mkdir -p /m/a /m/b; i=0; while [ $i -lt 2000 ]; do mv /m/a /m/b/a; mv /m/b/a /m/a; i=$((i+1)); done",
    );
    let mover = client.run("d", &moving, wardian_garden::Io::default()).await.unwrap();
    for _ in 0..20 {
        let said = command(&server, &["diff", "d"]).output().unwrap();
        assert!(String::from_utf8_lossy(&said.stderr).contains("more changes"), "{said:?}");
    }
    drop(mover);
    server.finish().await;
}

#[tokio::test]
async fn a_container_is_exported() {
    let server = Server::start().await;
    ok(&server, &["create", "--name", "e"]);
    ok(&server, &["exec", "e", "sh", "-c", "mkdir /made; echo text >/made/file"]);
    let file = server.base().join("e.tar");
    let said = command(&server, &["export", "-o"]).arg(&file).arg("e").output().unwrap();
    assert!(said.status.success() && said.stdout.is_empty(), "{said:?}");
    let said = command(&server, &["export", "e"]).output().unwrap();
    assert!(said.status.success(), "{said:?}");
    for bytes in [fs::read(&file).unwrap(), said.stdout] {
        let mut archive = tar::Archive::new(&bytes[..]);
        let names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        let has = |wanted: &str| names.iter().any(|name| name.trim_start_matches("./") == wanted);
        assert!(has("made/file") && has("bin/busybox"), "{names:?}");
        assert!(!names.iter().any(|name| name.contains("proc/self")), "{names:?}");
    }
    // Nothing is left of one that fails.
    fails(&server, 1, &["export", "-o", file.to_str().unwrap(), "nope"]);
    let left = fs::read_dir(server.base())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(".e.tar"));
    assert_eq!((left.count(), file.exists()), (0, true));
    server.finish().await;
}
