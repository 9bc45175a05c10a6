//! What a container can write outside of its own root file system: nothing that the host would miss.

use crate::support::{Server, pea, run, say, sh};
use std::path::Path;
use wardian_garden::wire::{ContainerSpec, Limits, MemoryLimits};

/// Bytes of all files below a directory.
fn bytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}

#[tokio::test]
async fn hosts_and_resolv_conf_fill_nothing_of_the_hosts() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let before = bytes(&server.run());
    for file in ["/etc/hosts", "/etc/resolv.conf"] {
        let full = sh(&client, "c", &format!("dd if=/dev/zero of={file} bs=1M count=300")).await;
        assert!(full.code != 0 && full.err.contains("No space left"), "{full:?}");
        let size: u64 = say(&client, "c", &format!("stat -c %s {file}")).await.parse().unwrap();
        assert!(size < 1 << 20, "{file}: {size}");
    }
    assert!(bytes(&server.run()) <= before + 4096, "{} after {before}", bytes(&server.run()));
    // Records can still be written, and containers made.
    client.set_property("c", "k", "v").await.unwrap();
    server.create("d").await;
    server.finish().await;
}

#[tokio::test]
async fn they_are_written_as_ever_and_shared_with_peas() {
    let mut server = Server::start().await;
    let client = server.create("c").await;
    let image = server.image();
    let image = image.to_str().unwrap();
    assert!(say(&client, "c", "cat /etc/hosts").await.contains("127.0.0.1 localhost\n"));
    let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    assert_eq!(say(&client, "c", "cat /etc/resolv.conf").await, host.trim_end());
    say(&client, "c", "echo 10.0.0.1 db >>/etc/hosts").await;
    let seen = run(&client, "c", &pea(image, "tail -n1 /etc/hosts; echo 10.0.0.2 web >>/etc/hosts")).await;
    assert_eq!((seen.code, seen.out.as_str()), (0, "10.0.0.1 db\n"), "{seen:?}");
    assert_eq!(say(&client, "c", "tail -n1 /etc/hosts").await, "10.0.0.2 web");
    server.kill9();
    server.restart().await;
    let client = server.client();
    let seen = run(&client, "c", &pea(image, "tail -n1 /etc/hosts; echo 10.0.0.3 late >>/etc/hosts")).await;
    assert_eq!((seen.code, seen.out.as_str()), (0, "10.0.0.2 web\n"), "{seen:?}");
    assert_eq!(
        say(&client, "c", "tail -n1 /etc/hosts; stat -c %u:%g:%a /etc/hosts").await,
        "10.0.0.3 late\n0:0:644"
    );
    server.finish().await;
}

#[tokio::test]
async fn memory_that_looks_like_files_is_bounded() {
    const FILL: &str =
        "dd if=/dev/zero of=/dev/shm/f bs=1M count=200 2>/dev/null; stat -c %s /dev/shm/f; rm /dev/shm/f";
    let mut server = Server::start().await;
    let client = server.create("c").await;
    assert_eq!(say(&client, "c", FILL).await, (64 << 20).to_string());
    let done = run(&client, "c", &pea(server.image().to_str().unwrap(), FILL)).await;
    assert_eq!(done.out.trim(), (64 << 20).to_string());
    let limits = Limits { memory_limits: MemoryLimits { limit_in_bytes: 40 << 20 }, ..Default::default() };
    client.create(&ContainerSpec { handle: "small".into(), limits, ..Default::default() }).await.unwrap();
    // The limit of its memory is what stops it: by the size, or by the kernel's search for memory.
    let small = sh(&client, "small", "dd if=/dev/zero of=/dev/shm/f bs=1M count=41").await;
    assert_ne!(small.code, 0, "{small:?}");
    let size = say(&client, "small", "df /dev/shm | tail -n1 | awk '{print $2}'").await;
    assert_eq!(size, (40 * 15 * 64).to_string());
    // The directory that holds the v1 hierarchies is container root's to write to, as in Garden.
    let fill = "mkdir /sys/fs/cgroup/mine && dd if=/dev/zero of=/sys/fs/cgroup/mine/f bs=1M count=9 2>/dev/null; \
                stat -c %s /sys/fs/cgroup/mine/f; i=0; while mkdir /sys/fs/cgroup/d$i; do i=$((i+1)); done; echo $i";
    let done = sh(&client, "c", fill).await;
    let numbers: Vec<u64> = done.out.split_whitespace().map(|n| n.parse().unwrap()).collect();
    assert!(numbers.iter().all(|n| *n <= 65536) && *numbers.last().unwrap() < 100, "{done:?}");
    server.terminate().await;
    server.args = vec!["--shm-size".into(), "1M".into()];
    server.restart().await;
    let client = server.create("d").await;
    assert_eq!(say(&client, "d", FILL).await, (1 << 20).to_string());
    server.finish().await;
}
