//! Disk limits through the API and the commands, with the driver that this host has: images on loop devices, if its
//! file systems have no quota.

use crate::commands::{fails, ok};
use crate::support::{Server, pea, run, sh, tar_of};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use wardian_garden::wire::{ContainerSpec, DiskLimits, DiskStat, Limits, ProcessLimits, ProcessSpec};
use wardian_garden::{Client, ErrorKind};
use wardian_needs::needs;

const MIB: u64 = 1 << 20;
/// Garden's checks of figures of disk usage allow as much.
const SLACK: u64 = MIB;

/// What is written alone may take this many bytes.
fn written(bytes: u64) -> DiskLimits {
    DiskLimits { byte_hard: bytes, scope: 1, ..DiskLimits::default() }
}

fn spec(handle: &str, privileged: bool, disk_limits: DiskLimits) -> ContainerSpec {
    let limits = Limits { disk_limits, ..Limits::default() };
    ContainerSpec { handle: handle.into(), privileged, limits, ..Default::default() }
}

async fn write(client: &Client, handle: &str, file: &str, mib: u64) -> bool {
    let text = format!("head -c {} /dev/zero | cat > {file} 2>/dev/null", mib * MIB);
    sh(client, handle, &text).await.code == 0
}

async fn used(client: &Client, handle: &str) -> DiskStat {
    client.metrics(handle).await.unwrap().disk_stat
}

async fn assert_written(client: &Client, handle: &str, bytes: u64) {
    let disk = used(client, handle).await;
    assert!(disk.exclusive_bytes_used.abs_diff(bytes) <= SLACK, "{handle}: {disk:?}, not {bytes}");
}

#[tokio::test]
async fn bound_what_containers_of_both_kinds_write() {
    needs!(Loop);
    let server = Server::start().await;
    let client = server.client();
    for (handle, privileged) in [("plain", false), ("root", true)] {
        client.create(&spec(handle, privileged, written(20 * MIB))).await.unwrap();
        // Counted at once: 3 and 10 MiB more.
        assert_written(&client, handle, 0).await;
        assert!(write(&client, handle, "/one", 3).await);
        assert_written(&client, handle, 3 * MIB).await;
        assert!(write(&client, handle, "/two", 10).await);
        assert_written(&client, handle, 13 * MIB).await;
        assert!(!write(&client, handle, "/three", 11).await);
        assert_eq!(sh(&client, handle, "rm /three").await.code, 0);
        assert!(write(&client, handle, "/three", 5).await);
    }
    // The one's limit is not the other's, and whoever has none has none.
    client.create(&spec("free", false, DiskLimits::default())).await.unwrap();
    assert!(write(&client, "free", "/a", 40).await);
    assert_eq!(client.disk_limits("plain").await.unwrap(), written(20 * MIB));
    assert_eq!(client.disk_limits("free").await.unwrap(), DiskLimits::default());
    server.finish().await;
}

#[tokio::test]
async fn bound_files_and_count_the_image_if_they_are_to() {
    needs!(Loop);
    let server = Server::start().await;
    let client = server.client();
    let files = DiskLimits { inode_hard: 100, ..DiskLimits::default() };
    client.create(&spec("files", false, files)).await.unwrap();
    let make = |range: &str| format!("for n in $(seq {range}); do : > /f$n || exit 1; done 2>/dev/null");
    assert_eq!(sh(&client, "files", &make("70")).await.code, 0);
    assert_ne!(sh(&client, "files", &make("71 120")).await.code, 0);

    let disk = used(&client, "files").await;
    let image = disk.total_bytes_used - disk.exclusive_bytes_used;
    let total = |bytes| DiskLimits { byte_hard: bytes, ..DiskLimits::default() };
    client.create(&spec("total", false, total(image + 5 * MIB))).await.unwrap();
    assert!(write(&client, "total", "/a", 4).await);
    assert!(!write(&client, "total", "/b", 2).await);
    for (limits, says) in [
        (total(image), "disk limit is smaller than volume size"),
        (total(1), "disk limit is smaller than volume size"),
        (DiskLimits { byte_soft: 9, ..DiskLimits::default() }, "byte_soft"),
        (DiskLimits { byte_hard: 9, scope: 7, ..DiskLimits::default() }, "scope"),
    ] {
        let error = client.create(&spec("bad", false, limits)).await.unwrap_err();
        assert!(format!("{error:#}").contains(says), "{error:#}");
        assert_eq!(client.info("bad").await.unwrap_err().kind(), Some(ErrorKind::ContainerNotFound));
    }
    server.finish().await;
}

#[tokio::test]
async fn change_while_the_container_lives_and_outlive_the_server() {
    needs!(Loop);
    let mut server = Server::start().await;
    let client = server.client();
    client.create(&spec("c", false, written(20 * MIB))).await.unwrap();
    assert!(write(&client, "c", "/a", 12).await);
    assert_eq!(ok(&server, &["limit", "c", "--disk", "14M"]), "c\n");
    assert!(!write(&client, "c", "/b", 4).await);
    assert_eq!(client.disk_limits("c").await.unwrap(), written(14 * MIB));
    for flags in [&[][..], &["--disk", "0"], &["--inodes", "x"], &["--disk-scope", "both"]] {
        fails(&server, 2, &[&["limit", "c"], flags].concat());
    }
    server.kill9();
    server.restart().await;
    let client = server.client();
    assert_eq!(sh(&client, "c", "rm -f /b").await.code, 0);
    assert_written(&client, "c", 12 * MIB).await;
    assert!(!write(&client, "c", "/b", 4).await);
    client.set_disk_limits("c", &written(20 * MIB)).await.unwrap();
    assert!(write(&client, "c", "/b", 6).await);
    let error = client.set_disk_limits("nobody", &written(MIB)).await.unwrap_err();
    assert_eq!(error.kind(), Some(ErrorKind::ContainerNotFound));
    server.finish().await;
}

#[tokio::test]
async fn of_a_pea_are_its_own() {
    needs!(Loop);
    let server = Server::start().await;
    let client = server.create("c").await;
    let image = server.image().to_str().unwrap().to_owned();
    let text = "head -c 12000000 /dev/zero | cat > /a 2>/dev/null && exit 1; rm /a; \
                head -c 4000000 /dev/zero | cat > /a || exit 2";
    let limits = Some(ProcessLimits { disk_limits: written(8 * MIB), ..ProcessLimits::default() });
    let out = run(&client, "c", &ProcessSpec { limits, ..pea(&image, text) }).await;
    assert_eq!(out.code, 0, "{out:?}");
    assert!(write(&client, "c", "/b", 12).await);
    server.finish().await;
}

#[tokio::test]
async fn that_are_refused_name_the_container() {
    let server = Server::start_with(&["--disk-driver", "none"]).await;
    let client = server.create("c").await;
    let why = "a limit on what is written cannot be enforced here";
    let said = fails(&server, 125, &["run", "--name", "job", "--disk", "100M", "--", "true"]);
    assert!(said.contains(&format!("cannot limit the root file system of container job: {why}")), "{said}");
    let said = fails(&server, 1, &["limit", "c", "--disk", "100M"]);
    assert!(said.contains(&format!("cannot limit the root file system of container c: {why}")), "{said}");
    let limits = Some(ProcessLimits { disk_limits: written(MIB), ..ProcessLimits::default() });
    let spec = ProcessSpec { limits, ..pea(server.image().to_str().unwrap(), "true") };
    let error = client.run("c", &spec, wardian_garden::Io::default()).await.unwrap_err();
    let said = format!("{error:#}");
    assert!(
        said.contains(&format!("cannot limit the root file system of a pea in container c: {why}")),
        "{said}"
    );
    let said = fails(&server, 2, &["run", "--disk", "0", "--", "true"]);
    assert!(said.contains("leave --disk out for no limit"), "{said}");
    let said = fails(&server, 125, &["run", "--name", "small", "--disk", "1K", "--", "true"]);
    assert!(said.contains("container small: disk limit is smaller than volume size"), "{said}");
    server.finish().await;
}

#[tokio::test]
async fn that_leave_no_room_for_mount_points_say_how_many_inodes_are_enough() {
    needs!(Loop);
    let server = Server::start().await;
    let bare = server.base().join("bare.tar");
    // Without a directory of its own: each mount point has to be made.
    let busybox = fs::read("/bin/busybox").or_else(|_| fs::read("/usr/bin/busybox")).unwrap();
    fs::write(&bare, tar_of(&[("busybox", &busybox)])).unwrap();
    let bare = bare.to_str().unwrap();
    let run = |inodes: &str| {
        let args = ["run", "--rm", "--inodes", inodes, bare, "/busybox", "true"];
        crate::commands::command(&server, &args).output().unwrap()
    };
    let said = run("5");
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    assert_eq!(said.status.code(), Some(125), "{text}");
    assert!(text.contains("a limit of 5 inodes") && text.contains("16 are enough"), "{text}");
    let said = run("16");
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    // The file in this image may not be executed; it is found, so the container was made.
    assert!(said.status.success() || text.contains("ermission denied"), "{text}");
    server.finish().await;
}

#[tokio::test]
async fn with_a_field_that_does_not_exist_change_nothing() {
    needs!(Loop);
    let server = Server::start().await;
    let client = server.client();
    client.create(&spec("c", false, written(20 * MIB))).await.unwrap();
    let put = |body: &str| server.http("PUT /wardian/containers/c/limits/disk", "", body);
    for (body, names) in [
        (r#"{"byte_hart":1000000}"#, r#"unknown fields: \"byte_hart\""#),
        (r#"{"disk_limits":{"byte_hard":9},"bytes":null}"#, r#"unknown fields: \"bytes\", \"disk_limits\""#),
        ("null", "json: "),
        ("", "EOF"),
    ] {
        let reply = put(body);
        assert!(reply.starts_with("HTTP/1.1 400 ") && reply.contains(names), "{body}: {reply}");
        assert_eq!(client.disk_limits("c").await.unwrap(), written(20 * MIB), "{body}");
    }
    let reply = put(r#"{"Byte_Hard":10485760,"scope":1}"#);
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    assert_eq!(client.disk_limits("c").await.unwrap(), written(10 * MIB));
    server.finish().await;
}

/// What the store makes for a limit of a new size is made before a create takes its place among the others.
#[tokio::test]
async fn of_new_sizes_do_not_hold_up_other_creates() {
    needs!(Loop);
    const SIZES: u64 = 8;
    let server = Server::start_with(&["--max-concurrent-creates", "1", "--disk-driver", "image"]).await;
    let client = server.client();
    client.create(&spec("first", false, DiskLimits::default())).await.unwrap();
    let made = Arc::new(AtomicU64::new(0));
    let creates = (0..SIZES).map(|number| {
        let (client, made) = (server.client(), made.clone());
        let spec = spec(&format!("size-{number}"), false, written((20 + 10 * number) * MIB));
        tokio::spawn(async move {
            client.create(&spec).await.unwrap();
            made.fetch_add(1, Ordering::Relaxed);
        })
    });
    let creates: Vec<_> = creates.collect();
    // Each of them has arrived by then, and none can be served in less than it takes to format a file system.
    tokio::time::sleep(Duration::from_millis(30)).await;
    client.create(&spec("plain", false, DiskLimits::default())).await.unwrap();
    let before = made.load(Ordering::Relaxed);
    for create in creates {
        create.await.unwrap();
    }
    assert!(before < SIZES / 2, "{before} of {SIZES} were made before it");
    server.finish().await;
}
