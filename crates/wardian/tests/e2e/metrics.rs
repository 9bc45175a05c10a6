//! What containers and peas use, and their limits.

use crate::support::{STUCK, Server, listen, message, names, pea, say, script, sh};
use std::collections::BTreeMap;
use std::time::Instant;
use wardian_garden::ErrorKind;
use wardian_garden::wire::{
    ContainerSpec, CpuLimits, Limits, MemoryLimits, Metrics, PidLimits, ProcessLimits, ProcessSpec,
};

fn limits(memory: u64, shares: u64, pids: u64) -> Limits {
    Limits {
        memory_limits: MemoryLimits { limit_in_bytes: memory },
        cpu_limits: CpuLimits { limit_in_shares: shares, weight: 0 },
        pid_limits: PidLimits { max: pids },
        ..Limits::default()
    }
}

async fn limited(server: &Server, handle: &str, limits: Limits) -> wardian_garden::Client {
    let client = server.client();
    let spec = ContainerSpec { handle: handle.into(), limits, ..Default::default() };
    client.create(&spec).await.unwrap();
    client
}

/// Kill the server, start another one, and wait until that has cleared away what was made ahead for the first.
async fn replaced(server: &mut Server) {
    let before = names(&server.root().join("rootfs"));
    let living = server.client().list(&BTreeMap::new()).await.unwrap().len();
    server.kill9();
    server.restart().await;
    let started = Instant::now();
    while names(&server.root().join("rootfs")).iter().filter(|dir| before.contains(dir)).count() > living {
        assert!(started.elapsed() < STUCK, "{}", server.log());
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// Ask until it is as wanted.
async fn until(server: &Server, handle: &str, wanted: impl Fn(&Metrics) -> bool) -> Metrics {
    let started = Instant::now();
    loop {
        let metrics = server.client().metrics(handle).await.unwrap();
        if wanted(&metrics) {
            return metrics;
        }
        assert!(started.elapsed() < STUCK, "{metrics:?}\n{}", server.log());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn of_a_container() {
    let server = Server::start().await;
    let client = limited(&server, "m", limits(256 << 20, 200, 77)).await;
    let first = client.metrics("m").await.unwrap();
    assert_eq!((first.pid_stat.current, first.pid_stat.max), (1, 77));
    assert!(first.memory_stat.total_usage_toward_limit > 0, "{first:?}");
    assert!(first.disk_stat.total_bytes_used > 1 << 20, "{first:?}");
    assert_eq!((first.disk_stat.exclusive_bytes_used, first.network_stat), (0, None));
    assert!(first.age > 0 && first.cpu_entitlement > 0, "{first:?}");

    let sleeper = client.run("m", &script("echo; sleep 1000 & wait"), listen()).await.unwrap();
    let busy = "head -c 3000000 /dev/urandom > /tmp/noise; i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done";
    assert_eq!(sh(&client, "m", busy).await.code, 0);
    let written = |m: &Metrics| (3_000_000..4_000_000).contains(&m.disk_stat.exclusive_bytes_used);
    let second = until(&server, "m", |m| written(m) && m.pid_stat.current == 3).await;
    let image = first.disk_stat.total_bytes_used;
    assert_eq!(second.disk_stat.total_bytes_used, image + second.disk_stat.exclusive_bytes_used);
    assert!(second.cpu_stat.usage > first.cpu_stat.usage + 10_000_000, "{first:?} {second:?}");
    assert!(second.age > first.age && second.cpu_entitlement > first.cpu_entitlement);
    // What is entitled to goes with the age.
    let ratio = |m: &Metrics| m.cpu_entitlement as f64 / m.age as f64;
    assert!((ratio(&first) / ratio(&second) - 1.0).abs() < 1e-3, "{first:?} {second:?}");
    drop(sleeper);
    server.finish().await;
}

#[tokio::test]
async fn of_a_pea_by_its_process() {
    let mut server = Server::start().await;
    let client = limited(&server, "m", limits(0, 200, 0)).await;
    let image = server.image().to_str().unwrap().to_owned();
    let long = "head -c 2000000 /dev/urandom > /noise; exec sleep 1000";
    // One below its container, one with limits of its own beside it.
    let limited = ProcessLimits {
        memory_limits: MemoryLimits { limit_in_bytes: 64 << 20 },
        cpu_limits: CpuLimits::default(),
        ..ProcessLimits::default()
    };
    for (id, limits) in [("below", None), ("beside", Some(limited))] {
        let spec = ProcessSpec { id: id.into(), limits, ..pea(&image, long) };
        client.run("m", &spec, listen()).await.unwrap();
        let written = |m: &Metrics| (2_000_000..3_000_000).contains(&m.disk_stat.exclusive_bytes_used);
        let metrics = until(&server, id, |m| written(m) && m.pid_stat.current == 1).await;
        assert_eq!((metrics.cpu_entitlement, metrics.pid_stat.max), (0, 0), "{id}");
        assert!(
            metrics.memory_stat.total_usage_toward_limit > 0 && metrics.cpu_stat.usage > 0,
            "{metrics:?}"
        );
        assert!(metrics.disk_stat.total_bytes_used > 3_000_000 && metrics.age > 0, "{id} {metrics:?}");
    }
    let before = client.metrics("below").await.unwrap();
    server.kill9();
    server.restart().await;
    let after = until(&server, "below", |m| m.disk_stat.exclusive_bytes_used > 0).await;
    assert!(after.age > before.age && after.cpu_stat.usage >= before.cpu_stat.usage, "{before:?} {after:?}");
    assert_eq!(after.disk_stat.total_bytes_used, before.disk_stat.total_bytes_used);
    let both = client.bulk_metrics(&["below", "m", "beside"]).await.unwrap();
    assert!(both.values().all(|entry| entry.err.is_none() && entry.metrics.cpu_stat.usage > 0), "{both:?}");

    client.destroy("m").await.unwrap();
    for gone in ["below", "beside", "m"] {
        let error = client.metrics(gone).await.unwrap_err();
        assert_eq!(error.kind(), Some(ErrorKind::ContainerNotFound), "{gone}: {error}");
    }
    server.finish().await;
}

#[tokio::test]
async fn in_bulk() {
    let server = Server::start().await;
    let client = server.create("a").await;
    server.create("b").await;
    let infos = client.bulk_info(&["a", "nope", "b"]).await.unwrap();
    assert_eq!(infos.keys().collect::<Vec<_>>(), ["a", "b", "nope"]);
    assert_eq!(infos["a"].info, client.info("a").await.unwrap());
    let error = infos["nope"].err.as_ref().unwrap();
    assert_eq!(
        (error.message.as_str(), error.kind.as_str(), error.handle.as_str()),
        ("unknown handle: nope", "", "")
    );
    let metrics = client.bulk_metrics(&["b", "nope"]).await.unwrap();
    assert_eq!(metrics["b"].metrics.pid_stat.current, 1);
    assert_eq!(metrics["nope"].metrics, Metrics::default());
    assert_eq!(metrics["nope"].err.as_ref(), Some(error));
    // Nothing asked, nothing answered.
    assert!(client.bulk_info(&[]).await.unwrap().is_empty());
    for path in ["bulk_info", "bulk_metrics", "bulk_info?handles=", "bulk_metrics?handles="] {
        let reply = server.http(&format!("GET /containers/{path}"), "", "");
        assert!(reply.starts_with("HTTP/1.1 200 ") && reply.ends_with("\r\n\r\n{}\n"), "{path}: {reply}");
    }
    server.finish().await;
}

#[tokio::test]
async fn limits_are_told_and_outlive_the_server() {
    let mut server = Server::start().await;
    let client = limited(&server, "l", limits(64 << 20, 123, 0)).await;
    server.create("none").await;
    for round in 0..2 {
        if round == 1 {
            replaced(&mut server).await;
        }
        // Without cgroup v1 shares are told as the weight that was made of them.
        let shares = client.cpu_limits("l").await.unwrap().limit_in_shares;
        let v2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        assert!(if v2 { (1..123).contains(&shares) } else { shares == 123 }, "{shares}");
        assert_eq!(client.memory_limits("l").await.unwrap().limit_in_bytes, 64 << 20);
        assert_eq!(client.cpu_limits("none").await.unwrap(), CpuLimits::default());
        assert_eq!(client.memory_limits("none").await.unwrap(), MemoryLimits::default());
        let entitled = client.metrics("l").await.unwrap().cpu_entitlement;
        assert!(entitled > 0);
        assert_eq!(client.metrics("none").await.unwrap().cpu_entitlement, 0);
    }
    for handle in ["l", "nope"] {
        for which in ["disk", "bandwidth"] {
            let reply = server.http(&format!("GET /containers/{handle}/limits/{which}"), "", "");
            assert!(reply.starts_with("HTTP/1.1 200 ") && reply.ends_with("\r\n\r\n{}\n"), "{reply}");
        }
    }
    assert_eq!(message(client.cpu_limits("nope").await), "unknown handle: nope");
    assert_eq!(message(client.memory_limits("nope").await), "unknown handle: nope");
    assert_eq!(message(client.metrics("nope").await), "unknown handle: nope");
    server.finish().await;
}

#[tokio::test]
async fn out_of_memory_is_an_event() {
    let mut server = Server::start().await;
    let client = limited(&server, "o", limits(32 << 20, 0, 0)).await;
    limited(&server, "p", limits(0, 0, 0)).await;
    assert_eq!(client.info("o").await.unwrap().events, None);
    // Something that grows: a line without end.
    let grow = "tr '\\0' x < /dev/zero | sed p > /dev/null";
    assert_ne!(sh(&client, "o", grow).await.code, 0);
    let image = server.image().to_str().unwrap().to_owned();
    let limits = Some(ProcessLimits {
        memory_limits: MemoryLimits { limit_in_bytes: 32 << 20 },
        cpu_limits: CpuLimits::default(),
        ..ProcessLimits::default()
    });
    let grows = ProcessSpec { limits, ..pea(&image, grow) };
    assert_ne!(crate::support::run(&client, "p", &grows).await.code, 0);
    for round in 0..2 {
        if round == 1 {
            replaced(&mut server).await;
        }
        for handle in ["o", "p"] {
            let events = client.info(handle).await.unwrap().events;
            assert_eq!(events, Some(vec!["Out of memory".to_owned()]), "{handle}");
        }
    }
    assert_eq!(say(&client, "o", "echo lives").await, "lives");
    server.finish().await;
}
