//! Containers whose processes are frozen.

use crate::commands::{fails, ok};
use crate::support::{STUCK, Server, listen, pea, run};
use std::time::{Duration, Instant};
use wardian_garden::Client;
use wardian_garden::wire::{MemoryLimits, ProcessLimits, ProcessSpec};

/// Processor time of a container or a pea, in nanoseconds.
async fn used(client: &Client, handle: &str) -> u64 {
    client.metrics(handle).await.unwrap().cpu_stat.usage
}

/// Whether something in it runs.
async fn goes_on(client: &Client, handle: &str) -> bool {
    let before = used(client, handle).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    used(client, handle).await > before
}

const BUSY: &str = "while :; do :; done";

#[tokio::test]
async fn a_paused_container_does_nothing_until_it_goes_on() {
    let mut server = Server::start().await;
    let client = server.client();
    ok(&server, &["run", "-d", "--name", "p", "--", "sh", "-c", BUSY]);
    ok(&server, &["create", "--name", "other"]);
    assert!(goes_on(&client, "p").await);
    assert_eq!(ok(&server, &["pause", "p", "other"]), "p\nother\n");
    assert_eq!(ok(&server, &["pause", "p"]), "p\n", "it is paused, and that is all");
    assert!(!goes_on(&client, "p").await);
    assert!(ok(&server, &["ps"]).lines().any(|line| line.ends_with(" p") && line.contains("paused")));
    let info = client.info("p").await.unwrap();
    assert!(info.paused && info.state == "active", "{info:?}");
    ok(&server, &["stats", "--no-stream", "p"]);

    // Nothing starts in it, and nothing is copied: the helper would be frozen too.
    let refused = "container p is paused: `wardian unpause p` lets it go on";
    assert!(fails(&server, 125, &["exec", "p", "true"]).contains(refused));
    assert!(fails(&server, 1, &["cp", "p:/bin", "-"]).contains(refused));
    assert!(fails(&server, 1, &["cp", "/etc/hostname", "p:/tmp"]).contains(refused));

    // The next server finds it paused.
    server.kill9();
    server.restart().await;
    let client = server.client();
    assert!(client.info("p").await.unwrap().paused && !goes_on(&client, "p").await);
    assert!(fails(&server, 125, &["exec", "p", "true"]).contains(refused));
    assert_eq!(ok(&server, &["unpause", "p"]), "p\n");
    assert_eq!(ok(&server, &["unpause", "p"]), "p\n");
    assert!(!client.info("p").await.unwrap().paused && goes_on(&client, "p").await);
    assert_eq!(ok(&server, &["exec", "p", "echo", "here"]), "here\n");
    assert!(fails(&server, 1, &["pause", "nope"]).contains("unknown handle: nope"));
    server.finish().await;
}

#[tokio::test]
async fn peas_are_paused_with_their_container() {
    let server = Server::start().await;
    let client = server.create("p").await;
    let image = server.image_with("marker", "x");
    let limits = ProcessLimits {
        memory_limits: MemoryLimits { limit_in_bytes: 64 << 20 },
        ..ProcessLimits::default()
    };
    let own = ProcessSpec { id: "own".into(), limits: Some(limits), ..pea(&image, BUSY) };
    let below = ProcessSpec { id: "below".into(), ..pea(&image, BUSY) };
    let _own = client.run("p", &own, listen()).await.unwrap();
    let _below = client.run("p", &below, listen()).await.unwrap();
    assert!(goes_on(&client, "own").await && goes_on(&client, "below").await);
    client.pause("p").await.unwrap();
    assert!(!goes_on(&client, "own").await && !goes_on(&client, "below").await);
    let error = client.run("p", &pea(&image, "true"), listen()).await.unwrap_err();
    assert!(error.to_string().contains("is paused"), "{error}");
    client.unpause("p").await.unwrap();
    assert!(goes_on(&client, "own").await && goes_on(&client, "below").await);
    client.pause("p").await.unwrap();
    client.destroy("p").await.unwrap();
    server.finish().await;
}

#[tokio::test]
async fn a_paused_container_is_stopped_and_destroyed() {
    let server = Server::start().await;
    let client = server.client();
    // One that ends well when it is asked to gets the chance.
    let polite = "trap 'echo ended >/how; exit 0' TERM; echo up; while :; do sleep 0.01; done";
    for handle in ["polite", "killed", "removed"] {
        ok(&server, &["run", "-d", "--name", handle, "--", "sh", "-c", polite]);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    ok(&server, &["pause", "polite", "killed", "removed"]);
    let started = Instant::now();
    assert_eq!(ok(&server, &["stop", "polite"]), "polite\n");
    assert_eq!(ok(&server, &["kill", "killed"]), "killed\n");
    assert_eq!(ok(&server, &["rm", "removed"]), "removed\n");
    assert!(started.elapsed() < Duration::from_secs(9), "{:?}", started.elapsed());
    for (handle, how) in [("polite", "ended\n"), ("killed", "")] {
        assert!(!client.info(handle).await.unwrap().paused, "{handle}");
        assert_eq!(ok(&server, &["exec", handle, "sh", "-c", "cat /how 2>/dev/null; true"]), how);
    }
    server.finish().await;
}

#[tokio::test]
async fn the_grace_time_goes_on_in_a_pause() {
    let server = Server::start().await;
    let client = server.create("p").await;
    ok(&server, &["exec", "-d", "p", "sh", "-c", BUSY]);
    client.pause("p").await.unwrap();
    client.set_grace_time("p", Duration::from_millis(300)).await.unwrap();
    let started = Instant::now();
    while client.list(&Default::default()).await.unwrap().contains(&"p".to_owned()) {
        assert!(started.elapsed() < STUCK);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.finish().await;
}

#[tokio::test]
async fn a_container_cannot_thaw_itself() {
    let server = Server::start().await;
    let client = server.create("p").await;
    let files = "for file in /sys/fs/cgroup/cgroup.freeze /sys/fs/cgroup/*/cgroup.freeze /sys/fs/cgroup/freezer/freezer.state; do \
        echo 0 >$file; echo 1 >$file; echo FROZEN >$file; done 2>/dev/null; echo done";
    assert_eq!(run(&client, "p", &crate::support::script(files)).await.out, "done\n");
    assert!(!client.info("p").await.unwrap().paused);
    assert_eq!(ok(&server, &["exec", "p", "echo", "goes on"]), "goes on\n");
    server.finish().await;
}
