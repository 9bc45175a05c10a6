//! What the kernel counts for a user: what one container uses up is missing neither to others nor to the host's root.

use crate::support::{STUCK, Server, cgroups, end, header, listen, members, pea, run, say, sh, tar_of};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use wardian_garden::wire::{ContainerSpec, Limits, PidLimits, ProcessLimits, ProcessSpec, Tty};
use wardian_garden::{Client, Process};

/// The first id of `--id-ranges` in these tests, and the size of a range.
const FIRST: u32 = 700_000;
const SIZE: u32 = 65_536;
/// Container root on the host, without `--id-ranges`.
const COMMON_ROOT: u32 = 4_294_967_294;

async fn start(args: &[&str]) -> Server {
    let mut server = Server::start().await;
    server.kill9();
    server.args = args.iter().map(|arg| (*arg).to_owned()).collect();
    server.restart().await;
    server
}

async fn start_with_ranges() -> Server {
    start(&["--id-ranges", &format!("{FIRST}:{SIZE}")]).await
}

/// The probe, for the host.
fn probe(server: &Server) -> PathBuf {
    let (source, program) = (server.base().join("probe.c"), server.base().join("probe"));
    if !program.exists() {
        std::fs::write(&source, include_str!("quotas.c")).unwrap();
        let compiled =
            Command::new("cc").arg("-static").arg("-o").args([&program, &source]).status().unwrap();
        assert!(compiled.success(), "cc -static: {compiled}");
    }
    program
}

/// A container with the probe in it.
async fn create(server: &Server, handle: &str) -> Client {
    let client = server.create(handle).await;
    put_probe(server, &client, handle).await;
    client
}

async fn put_probe(server: &Server, client: &Client, handle: &str) {
    let program = std::fs::read(probe(server)).unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = header(program.len());
    header.set_mode(0o755);
    tar.append_data(&mut header, "probe", program.as_slice()).unwrap();
    let tar = tar.into_inner().unwrap();
    let length = Some(tar.len() as u64);
    client.stream_in(handle, "", "/in", std::io::Cursor::new(tar), length).await.unwrap();
}

fn takes(kind: &str, how: &str) -> ProcessSpec {
    ProcessSpec { path: "/in/probe".into(), args: vec![kind.into(), how.into()], ..Default::default() }
}

/// Takes all that there is, keeps it, and says how much that was.
async fn take_all(client: &Client, handle: &str, kind: &str) -> (Process, u32) {
    let mut process = client.run(handle, &takes(kind, "all"), listen()).await.unwrap();
    let mut lines = BufReader::new(process.take_stdout().unwrap()).lines();
    let line = tokio::time::timeout(STUCK, lines.next_line()).await.expect("it takes for ever");
    let line = line.unwrap().unwrap_or_default();
    (process, line.split(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("{kind}: {line:?}")))
}

/// Container `a` uses everything up; is there any left for `b`, and for the host's root?
async fn others_have_some(server: &Server, client: &Client, kind: &str, host: bool) {
    let (process, count) = take_all(client, "a", kind).await;
    assert!(count > 0, "{kind}");
    // Nothing is left to itself: the test tests something.
    let own = run(client, "a", &takes(kind, "one")).await;
    assert_eq!(own.code, 1, "{kind} after {count}: {own:?}");
    let other = run(client, "b", &takes(kind, "one")).await;
    assert_eq!(other.code, 0, "{kind}: {count} in one container, and in another one {other:?}");
    if host {
        let root = Command::new(probe(server)).args([kind, "one"]).output().unwrap();
        assert!(root.status.success(), "{kind}: {count} in a container, and on the host {root:?}");
    }
    process.signal(true).await.unwrap();
    end(process).await;
}

#[tokio::test]
async fn what_a_container_uses_up_others_and_the_host_still_have() {
    let server = Server::start().await;
    let client = create(&server, "a").await;
    create(&server, "b").await;
    for (kind, host) in [("inotify", true), ("mqueue", true), ("sigpending", true), ("shmlock", false)] {
        others_have_some(&server, &client, kind, host).await;
    }
    // Containers of an earlier server too.
    let mut server = server;
    server.kill9();
    server.restart().await;
    let client = create(&server, "c").await;
    let (process, _) = take_all(&client, "c", "inotify").await;
    assert_eq!(run(&client, "b", &takes("inotify", "one")).await.code, 0);
    process.signal(true).await.unwrap();
    end(process).await;
    let owners = owners(&server);
    assert_eq!(owners.len(), 3, "{owners:?}");
    assert!(owners.iter().all(|owner| (1 << 31..COMMON_ROOT).contains(owner)), "{owners:?}");
    server.finish().await;
}

/// What the records say.
fn owners(server: &Server) -> BTreeSet<u32> {
    let dirs = std::fs::read_dir(server.run().join("containers")).unwrap().flatten();
    let owner = |dir: std::fs::DirEntry| {
        let record = std::fs::read(dir.path().join("state.json")).ok()?;
        let record: serde_json::Value = serde_json::from_slice(&record).ok()?;
        Some(u32::try_from(record["owner"].as_u64()?).unwrap())
    };
    dirs.filter_map(owner).collect()
}

#[tokio::test]
async fn no_user_namespaces_within() {
    let server = Server::start().await;
    let client = create(&server, "a").await;
    for user in ["root", "1000"] {
        let nested = run(&client, "a", &ProcessSpec { user: user.into(), ..takes("userns", "one") }).await;
        assert_eq!(nested.code, 1, "{user}: {nested:?}");
    }
    let limit = "cat /proc/sys/user/max_user_namespaces";
    assert_eq!(say(&client, "a", limit).await, "0");
    assert_ne!(sh(&client, "a", "echo 10 >/proc/sys/user/max_user_namespaces").await.code, 0);
    assert_eq!(say(&client, "a", limit).await, "0");
    let image = server.image_with("marker", "x");
    assert_eq!(run(&client, "a", &pea(&image, limit)).await.out, "0\n");
    server.finish().await;
}

async fn map(client: &Client, handle: &str) -> Vec<u32> {
    let map = say(client, handle, "cat /proc/self/uid_map").await;
    assert_eq!(say(client, handle, "cat /proc/self/gid_map").await, map);
    map.split_whitespace().map(|number| number.parse().unwrap()).collect()
}

/// Owners on the host of a file that lies somewhere in a root file system.
fn owners_of(server: &Server, name: &str) -> Vec<(u32, u32)> {
    let find = |dir: String| std::fs::symlink_metadata(Path::new(&dir).join("upper").join(name)).ok();
    server.rootfs().into_iter().filter_map(find).map(|file| (file.uid(), file.gid())).collect()
}

/// Everything that has to do with ids works in this container, whose root is `root` on the host.
async fn lives(server: &Server, handle: &str, root: u32) {
    let client = server.client();
    say(&client, handle, &format!("echo mine >/{handle}-root; echo it >/{handle}-7; chown 7:8 /{handle}-7"))
        .await;
    assert_eq!(owners_of(server, &format!("{handle}-root")), [(root, root)]);
    let others = |id: u32| if root == COMMON_ROOT { id } else { root + id };
    assert_eq!(owners_of(server, &format!("{handle}-7")), [(others(7), others(8))]);
    // What is of the image, and is copied up.
    say(&client, handle, "stat -c %u:%g /bin/busybox /etc | sort -u | grep -x 0:0; touch /bin/busybox").await;
    // What the host has made for it.
    let made = "stat -c %u:%g /dev /dev/null /dev/pts /dev/shm /etc/hosts /etc/resolv.conf | sort -u";
    assert_eq!(say(&client, handle, made).await, "0:0");
    say(&client, handle, "echo '#' >>/etc/hosts; mkdir -p /w; chmod 777 /w").await;
    let tar = tar_of(&[("file", b"contents")]);
    let length = Some(tar.len() as u64);
    client.stream_in(handle, "1000", "/w", std::io::Cursor::new(tar), length).await.unwrap();
    assert_eq!(say(&client, handle, "cat /w/file; stat -c %u /w/file").await, "contents1000");
    let tty = ProcessSpec { tty: Some(Tty::default()), ..crate::support::script("stat -c %u:%g $(tty)") };
    assert_eq!(run(&client, handle, &tty).await.out.trim_end(), "0:5");
    let image = server.image_with("marker", "x");
    let links = "readlink /proc/self/ns/user; cat /proc/self/uid_map";
    let inside = say(&client, handle, links).await;
    let beside = run(&client, handle, &pea(&image, links)).await;
    assert_eq!((beside.code, beside.out.trim_end()), (0, inside.as_str()), "{beside:?}");
    let file = format!("{handle}-pea");
    let text = format!("stat -c %u:%g /marker /etc/hosts /dev/null; echo x >/{file}; sleep 1000");
    let mut process = client.run(handle, &pea(&image, &text), listen()).await.unwrap();
    let mut lines = BufReader::new(process.take_stdout().unwrap()).lines();
    for _ in 0..3 {
        assert_eq!(lines.next_line().await.unwrap().unwrap(), "0:0");
    }
    let started = Instant::now();
    while owners_of(server, &file).is_empty() {
        assert!(started.elapsed() < STUCK);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(owners_of(server, &file), [(root, root)]);
    process.signal(true).await.unwrap();
    end(process).await;
}

#[tokio::test]
async fn ranges_of_ids() {
    let mut server = start_with_ranges().await;
    for handle in ["a", "b"] {
        server.create(handle).await;
    }
    let client = server.client();
    let (a, b) = (map(&client, "a").await, map(&client, "b").await);
    for map in [&a, &b] {
        assert_eq!((map[0], map[2], map.len()), (0, SIZE, 3), "{map:?}");
        assert!(map[1] >= FIRST && (map[1] - FIRST).is_multiple_of(SIZE), "{map:?}");
    }
    assert_ne!(a[1], b[1]);
    lives(&server, "a", a[1]).await;
    lives(&server, "b", b[1]).await;
    // An id beyond the range does not exist.
    let beyond = ProcessSpec { user: "65536".into(), ..crate::support::script("true") };
    assert!(client.run("a", &beyond, listen()).await.is_err());

    for _ in 0..2 {
        server.kill9();
        server.restart().await;
    }
    let client = server.create("c").await;
    let c = map(&client, "c").await;
    assert!(c[1] != a[1] && c[1] != b[1], "{a:?} {b:?} {c:?}");
    assert_eq!((map(&client, "a").await, map(&client, "b").await), (a.clone(), b.clone()));
    lives(&server, "a", a[1]).await;

    // A server without ranges goes on with what there is; one with other ranges does not give out theirs.
    server.kill9();
    server.args = Vec::new();
    server.restart().await;
    let client = server.create("d").await;
    assert_eq!(map(&client, "d").await[1], COMMON_ROOT);
    lives(&server, "b", b[1]).await;
    lives(&server, "d", COMMON_ROOT).await;
    server.kill9();
    server.args = vec!["--id-ranges".into(), format!("{}:100000", FIRST + 1000)];
    server.restart().await;
    let client = server.create("e").await;
    let e = map(&client, "e").await;
    for other in [&a, &b, &c] {
        assert!(e[1] + e[2] <= other[1] || e[1] >= other[1] + other[2], "{e:?} {other:?}");
    }
    lives(&server, "a", a[1]).await;
    server.finish().await;
}

#[tokio::test]
async fn with_ranges_nothing_is_counted_together() {
    let server = start_with_ranges().await;
    let client = create(&server, "a").await;
    create(&server, "b").await;
    for kind in ["inotify", "mqueue", "sigpending", "shmlock", "pipes", "inflight"] {
        others_have_some(&server, &client, kind, false).await;
    }
    server.finish().await;
}

#[tokio::test]
async fn bad_ranges_are_refused() {
    let server = Server::start().await;
    for (bad, why) in
        [("0:65536", "root"), ("100000:10", "too few"), ("4000000000:65536", "beyond"), ("x", "START")]
    {
        let output =
            server.command().args(["--id-ranges", bad]).stderr(std::process::Stdio::piped()).output();
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(why), "{bad}: {said}");
    }
    server.finish().await;
}

#[tokio::test]
async fn processes_are_bounded_by_default() {
    const MOST: usize = 40;
    let server = start(&["--default-pids-limit", &MOST.to_string()]).await;
    let client = create(&server, "a").await;
    create(&server, "b").await;
    let id = server.id("a").await;
    let bomb = client.run("a", &takes("forks", "one"), listen()).await.unwrap();
    let started = Instant::now();
    while members(&id).len() < MOST - 2 {
        assert!(started.elapsed() < STUCK, "{:?}", members(&id));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    // The keeper, a thread of which is in the container's cgroups of v1, may be counted.
    assert!(members(&id).len() <= MOST + 1, "{:?}", members(&id).len());
    assert_eq!(client.metrics("a").await.unwrap().pid_stat.max, MOST as u64);
    assert_eq!(sh(&client, "b", "echo fine").await.out, "fine\n");
    client.destroy("a").await.unwrap();
    drop(bomb);

    // What is asked for is given.
    let limits = Limits { pid_limits: PidLimits { max: 1000 }, ..Default::default() };
    client.create(&ContainerSpec { handle: "c".into(), limits, ..Default::default() }).await.unwrap();
    assert_eq!(client.metrics("c").await.unwrap().pid_stat.max, 1000);
    let many = "for i in $(seq 100); do sleep 1000 >/dev/null 2>&1 & done; echo all";
    assert_eq!(say(&client, "c", many).await, "all");
    // A pea whose limits are its own is beside its container.
    let image = server.image_with("marker", "x");
    let beside = ProcessSpec { limits: Some(ProcessLimits::default()), ..pea(&image, many) };
    let done = run(&client, "c", &beside).await;
    assert!(done.code != 0 && done.err.contains("can't fork"), "{done:?}");
    assert!(!cgroups(&server.group()).is_empty());
    server.finish().await;
}
