//! The filter of system calls: all that runs in an unprivileged container is under it, and what it refuses is refused.

use crate::support::{Out, Server, end, init, listen, members, pea, run, say, script, tar_of};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::process::Command;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, ReadBuf};
use wardian_garden::Client;
use wardian_garden::wire::{BindMount, ContainerSpec, ProcessSpec};
use wardian_runtime::wire;

const EPERM: i32 = 1;
const ENOSYS: i32 = 38;

/// The program that tries, in a directory to be bound into a container.
fn build_probe(server: &Server) -> String {
    let dir = server.base().join("probe");
    std::fs::create_dir(&dir).unwrap();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/probe.c");
    let built = Command::new("cc").args(["-static", "-O1", "-o"]).arg(dir.join("probe")).arg(source).status();
    assert!(built.expect("a C compiler is needed (build-essential)").success());
    dir.to_str().unwrap().to_owned()
}

fn with_probe(spec: ContainerSpec, dir: &str) -> ContainerSpec {
    let bind = BindMount { src_path: dir.to_owned(), dst_path: "/probe".into(), ..BindMount::default() };
    ContainerSpec { bind_mounts: vec![bind], ..spec }
}

/// What each attempt came to: an errno, or 0.
fn answers(done: &Out) -> BTreeMap<String, i32> {
    assert_eq!(done.code, 0, "{done:?}");
    let answer =
        |line: &str| line.rsplit_once(' ').map(|(what, errno)| (what.to_owned(), errno.parse().unwrap()));
    done.out.lines().filter_map(answer).collect()
}

/// Attempts that must fail, and what with.
const REFUSED: &[(&str, i32)] = &[
    ("unshare(user)", EPERM),
    ("unshare(mount)", EPERM),
    ("clone(user)", EPERM),
    ("clone(cgroup)", EPERM),
    // A C library falls back to clone when it hears this, and to nothing when it hears EPERM.
    ("clone3", ENOSYS),
    ("socket(vsock)", EPERM),
    ("socket(vsock, hidden)", EPERM),
    ("socket(alg)", EPERM),
    ("keyctl(session)", EPERM),
    ("add_key", EPERM),
    ("request_key", EPERM),
    ("io_uring_setup", EPERM),
    ("userfaultfd", EPERM),
    ("personality(no random)", EPERM),
    ("syslog", EPERM),
    ("kcmp", EPERM),
];
/// Those of a 32-bit program.
#[cfg(target_arch = "x86_64")]
const REFUSED_32: &[(&str, i32)] = &[
    ("32: unshare(user)", EPERM),
    ("32: clone(user)", EPERM),
    ("32: keyctl(session)", EPERM),
    ("32: socket(vsock)", EPERM),
    ("32: io_uring_setup", EPERM),
    ("x32: unshare(user)", EPERM),
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_32: &[(&str, i32)] = &[];
/// Attempts that must succeed.
const ALLOWED: &[&str] = &[
    "clone(thread-like)",
    "socket(local)",
    "socket(ipv4)",
    "socket(netlink)",
    "socketpair(local)",
    "personality(query)",
    "membarrier",
    "pidfd_open",
];
/// Numbers of x86-64 that are refused whatever the arguments: keyrings, mounts, handles, namespaces, the kernel's own
/// programs, io_uring, quotas, modules, other processes' memory, the host's name and clock.
const NUMBERS: &[u32] = &[
    153, 155, 163, 164, 165, 166, 167, 168, 169, 170, 171, 173, 175, 176, 179, 227, 237, 246, 248, 249, 250,
    272, 298, 300, 303, 304, 305, 308, 310, 311, 312, 313, 320, 321, 323, 425, 426, 427, 428, 429, 430, 431,
    432, 433,
];

async fn attempts(client: &Client, spec: &ProcessSpec) -> BTreeMap<String, i32> {
    let found = answers(&run(client, "c", spec).await);
    for (what, errno) in REFUSED.iter().chain(REFUSED_32) {
        assert_eq!(found[*what], *errno, "{what}");
    }
    for what in ALLOWED {
        assert_eq!(found[*what], 0, "{what}");
    }
    found
}

#[tokio::test]
async fn what_an_unprivileged_container_may_not_call() {
    let server = Server::start().await;
    let dir = build_probe(&server);
    let client = server.client();
    client
        .create(&with_probe(ContainerSpec { handle: "c".into(), ..Default::default() }, &dir))
        .await
        .unwrap();
    let found = attempts(&client, &script("exec /probe/probe all")).await;
    if cfg!(target_arch = "x86_64") {
        for number in NUMBERS {
            assert_eq!(found[&number.to_string()], EPERM, "{number}");
        }
        // What is newer than the profile does not exist.
        for number in 438..1024 {
            assert_eq!(found[&number.to_string()], ENOSYS, "{number}");
        }
    }
    let spec = ProcessSpec { user: "1000".into(), ..script("exec /probe/probe") };
    attempts(&client, &spec).await;
    let image = server.image_with("marker", "x");
    let bind = BindMount { src_path: dir.clone(), dst_path: "/probe".into(), ..BindMount::default() };
    let spec = ProcessSpec { bind_mounts: vec![bind], ..pea(&image, "exec /probe/probe") };
    attempts(&client, &spec).await;
    server.finish().await;
}

#[tokio::test]
async fn a_privileged_container_may_call_it() {
    let server = Server::start().await;
    let dir = build_probe(&server);
    let client = server.client();
    let spec = ContainerSpec { handle: "c".into(), privileged: true, ..Default::default() };
    client.create(&with_probe(spec, &dir)).await.unwrap();
    let found = answers(&run(&client, "c", &script("exec /probe/probe")).await);
    for what in ["unshare(user)", "clone(user)", "keyctl(session)", "kcmp"].iter().chain(ALLOWED) {
        assert_eq!(found[*what], 0, "{what}");
    }
    server.finish().await;
}

/// `Seccomp` and `Seccomp_filters` of /proc/PID/status.
fn filters(status: &str) -> [u32; 2] {
    ["Seccomp", "Seccomp_filters"].map(|name| {
        let value = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
        value.unwrap_or_else(|| panic!("{status:?}")).trim().parse().unwrap()
    })
}

#[tokio::test]
async fn everything_in_an_unprivileged_container_has_one_filter() {
    let server = Server::start().await;
    let client = server.client();
    let image = server.image_with("marker", "x");
    for (privileged, expected) in [(false, [2, 1]), (true, [0, 0])] {
        let spec = ContainerSpec { handle: "c".into(), privileged, ..Default::default() };
        client.create(&spec).await.unwrap();
        for user in ["root", "1000"] {
            let of_user = |spec| ProcessSpec { user: user.into(), ..spec };
            let done = run(&client, "c", &of_user(script("cat /proc/self/status"))).await;
            assert_eq!(filters(&done.out), expected, "{user}");
        }
        assert_eq!(filters(&run(&client, "c", &pea(&image, "cat /proc/self/status")).await.out), expected);
        assert_eq!(filters(&say(&client, "c", "cat /proc/1/status").await), expected);
        let pid = init(&server, "c").await;
        assert_eq!(filters(&std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap()), expected);
        client.destroy("c").await.unwrap();
    }
    server.finish().await;
}

/// A client that does not go on.
struct Stuck(Vec<u8>);

impl AsyncRead for Stuck {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.0.is_empty() {
            return Poll::Pending;
        }
        let length = self.0.len().min(to.remaining());
        to.put_slice(&self.0.drain(..length).collect::<Vec<_>>());
        Poll::Ready(Ok(()))
    }
}

/// The helper that unpacks a tar reads what a client, and writes where the container, has chosen.
#[tokio::test]
async fn the_helper_of_a_transfer_has_the_filter() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let id = server.id("c").await;
    let pid = init(&server, "c").await;
    let mut tar = tar_of(&[("first", &[7; 100_000]), ("second", b"x")]);
    let whole = tar.len() as u64;
    tar.truncate(102_400);
    let streaming = client.stream_in("c", "", "/in", Stuck(tar), Some(whole));
    let look = async {
        let started = Instant::now();
        loop {
            let helpers = members(&id).into_iter().filter(|member| *member != pid);
            let helpers: Vec<_> = helpers
                .filter_map(|helper| std::fs::read_to_string(format!("/proc/{helper}/status")).ok())
                .map(|status| filters(&status))
                .collect();
            // It gets its filter on its way, and has it when the first file is there.
            if helpers == [[2, 1]] {
                return;
            }
            assert!(started.elapsed() < crate::support::STUCK, "{helpers:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        done = streaming => panic!("{done:?}"),
        () = look => {}
    }
    say(&client, "c", "while ! [ -e /in/first ]; do sleep 0.01; done").await;
    server.until_idle("c").await;
    server.finish().await;
}

/// Programs do what they did.
#[tokio::test]
async fn ordinary_programs_run() {
    let server = Server::start().await;
    let client = server.create("c").await;
    for line in [
        "(sleep 0 & wait) && echo $(seq 1 100 | sort -rn | head -1)",
        "mkdir -p /d/e && tar -C / -cf /d.tar d && tar -C /tmp -xf /d.tar && test -d /tmp/d/e",
        "mkfifo /pipe && (echo through >/pipe &) && cat /pipe",
        "echo x >/f && chmod 700 /f && chown 5:6 /f && ln -s /f /l && ln /f /h && touch -d @1 /f && mv /f /g && rm /g",
        "ionice -c 3 true && chroot / true && taskset 1 true && timeout 5 true && linux32 uname -m",
        "ping -c1 -W5 127.0.0.1 && ip address && netstat -an",
        "ps && top -bn1 && free && uptime && df && id && date && uname -a",
        "setsid true && usleep 1 && dd if=/dev/zero of=/z bs=64k count=4 && sync && truncate -s 1 /z",
        "su vcap -c id && gzip -c /bin/busybox | zcat | cmp - /bin/busybox",
    ] {
        say(&client, "c", line).await;
    }
    let shell =
        client.run("c", &script("trap 'exit 3' TERM; while :; do sleep 0.01; done"), listen()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    shell.signal(false).await.unwrap();
    assert_eq!(end(shell).await.code, 3);
    server.finish().await;
}

/// A keeper that is older than filters would refuse the bundle of a pea that asks for one; its container has none either.
#[tokio::test]
async fn a_pea_of_an_older_keeper_runs() {
    let mut server = Server::start().await;
    server.kill9();
    server.env = vec![(wire::SPEAKS.to_owned(), (wire::Feature::Confinement.since() - 1).to_string())];
    server.restart().await;
    server.create("c").await;
    server.kill9();
    server.env.clear();
    server.restart().await;
    let image = server.image_with("marker", "x");
    let done = run(&server.client(), "c", &pea(&image, "cat /proc/self/status")).await;
    assert_eq!(filters(&done.out), [0, 0]);
    server.finish().await;
}
