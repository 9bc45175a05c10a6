//! What is mounted in a container beside its own files: its cgroups, and bind mounts of a host whose mounts are shared.

use crate::support::{Server, pea, run, script};
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use wardian_garden::Client;
use wardian_garden::wire::{BindMount, ContainerSpec, MemoryLimits, ProcessLimits, ProcessSpec};
use wardian_runtime::wire;

/// Tells of each mount of a cgroup where it is, which directory it shows, its root, its options and its peers, and tries
/// to leave something in it.
const LOOK: &str =
    "grep ' - cgroup' /proc/self/mountinfo | while read -r _ _ _ root where options peers _; do
        echo $where $(stat -c %i $where) $root $options $peers
        mkdir $where/mine 2>/dev/null && echo made a cgroup in $where
        (echo $$ >$where/cgroup.procs) 2>/dev/null && echo entered $where
    done; true";

/// A pea with a cgroup of its own, and one below its container's.
fn peas(server: &Server) -> [ProcessSpec; 2] {
    let below = pea(&server.image_with("marker", "x"), LOOK);
    let memory_limits = MemoryLimits { limit_in_bytes: 64 << 20 };
    let limits = Some(ProcessLimits { memory_limits, ..Default::default() });
    [ProcessSpec { limits, ..below.clone() }, below]
}

/// Each process is shown the container's cgroup in every hierarchy, read-only, and nothing above it.
async fn shown(server: &Server, client: &Client, handle: &str, spec: &ProcessSpec) {
    let below = format!("{}/{}", server.group(), server.id(handle).await);
    let done = run(client, handle, spec).await;
    let lines: Vec<&str> = done.out.lines().collect();
    assert!(!lines.is_empty(), "{done:?}");
    for line in lines {
        let place = line.split(' ').next().unwrap();
        let own = std::fs::metadata(format!("{place}/{below}")).unwrap().ino();
        assert_eq!(line, format!("{place} {own} / ro,nosuid,nodev,noexec,relatime -"), "{done:?}");
    }
}

#[tokio::test]
async fn a_process_is_shown_its_containers_cgroups() {
    let mut server = Server::start().await;
    for handle in ["before", "c"] {
        server.create(handle).await;
    }
    for round in ["by the server that made it", "by the next one"] {
        println!("{round}");
        let client = server.client();
        for spec in std::iter::once(script(LOOK)).chain(peas(&server)) {
            shown(&server, &client, "c", &spec).await;
        }
        server.kill9();
        server.restart().await;
    }
    server.finish().await;
}

/// A keeper that knows no mounts that are made ahead makes them for its peas.
#[tokio::test]
async fn a_pea_of_an_older_keeper_is_shown_them_too() {
    let mut server = Server::start().await;
    server.kill9();
    server.env = vec![(wire::SPEAKS.to_owned(), (wire::Feature::Mounts.since() - 1).to_string())];
    server.restart().await;
    server.create("c").await;
    server.kill9();
    server.env.clear();
    server.restart().await;
    let client = server.client();
    for spec in std::iter::once(script(LOOK)).chain(peas(&server)) {
        shown(&server, &client, "c", &spec).await;
    }
    server.finish().await;
}

/// Privileged containers have no cgroups mounted, and mount their own.
#[tokio::test]
async fn a_privileged_container_has_none() {
    let server = Server::start().await;
    let client = server.client();
    let spec = ContainerSpec { handle: "c".into(), privileged: true, ..Default::default() };
    client.create(&spec).await.unwrap();
    for spec in std::iter::once(script(LOOK)).chain(peas(&server)) {
        let done = run(&client, "c", &spec).await;
        assert_eq!((done.code, done.out.as_str()), (0, ""), "{done:?}");
    }
    server.finish().await;
}

/// Where the host's mounts are shared, as systemd makes them, a clone is a peer of what it was cloned from.
#[tokio::test]
async fn no_mount_inside_is_a_peer_of_one_of_the_host() {
    let mut server = Server::start().await;
    server.terminate().await;
    let command = server.command();
    let mut shared = Command::new("unshare");
    shared.args(["--mount", "--propagation", "private", "/bin/sh", "-c"]);
    shared.args(["mount --make-rshared / && exec \"$@\"", "sh"]);
    shared.arg(command.get_program()).args(command.get_args());
    server.restart_as(shared).await;
    let client = server.client();
    let source = server.base().join("source");
    std::fs::create_dir_all(source.join("sub")).unwrap();
    let table = || std::fs::read_to_string(format!("/proc/{}/mountinfo", server.pid())).unwrap();
    assert!(table().contains(" shared:"));
    for privileged in [false, true] {
        let handle = if privileged { "p" } else { "u" };
        let bind = BindMount {
            src_path: source.to_str().unwrap().to_owned(),
            dst_path: "/bound".to_owned(),
            mode: 1,
            origin: 0,
            idmap: false,
        };
        let spec = ContainerSpec {
            handle: handle.into(),
            privileged,
            bind_mounts: vec![bind],
            ..Default::default()
        };
        client.create(&spec).await.unwrap();
        let bind_mounts = spec.bind_mounts;
        let text = "cat /proc/self/mountinfo; mount -t tmpfs wardian-e2e-below /bound/sub";
        let in_pea = ProcessSpec { bind_mounts, ..pea(&server.image_with("marker", "x"), text) };
        for spec in [script(text), in_pea] {
            let done = run(&client, handle, &spec).await;
            assert_eq!(done.code == 0, privileged, "{done:?}");
            let peers = |line: &&str| ["shared:", "master:"].iter().any(|word| line.contains(word));
            assert_eq!(done.out.lines().find(peers), None);
            assert!(!table().contains("wardian-e2e-below"), "a mount of the container's is the host's");
        }
    }
    server.finish().await;
}
