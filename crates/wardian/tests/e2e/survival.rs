//! Servers, keepers and processes that are killed.

use crate::support::{STUCK, Server, end, init, listen, message, parent, pea, run, say, script, sh, signal};
use rustix::process::Signal;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use wardian_garden::Io;
use wardian_garden::wire::{ContainerSpec, ProcessSpec};

#[tokio::test]
async fn processes_survive_their_server() {
    let mut server = Server::start().await;
    let client = server.create("s").await;
    client.set_property("s", "kept", "yes").await.unwrap();
    let ticks = ProcessSpec {
        id: "ticks".into(),
        ..script("n=0; while [ ! -e /stop ]; do n=$((n+1)); echo tick $n; sleep 0.02; done; exit 4")
    };
    let mut process = client.run("s", &ticks, listen()).await.unwrap();
    let mut lines = BufReader::new(process.take_stdout().unwrap()).lines();
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "tick 1");
    let waits = ProcessSpec { id: "waits".into(), ..script("cat; echo end; exit 8") };
    let (mut ours, theirs) = tokio::io::duplex(64);
    let io = Io { stdin: Some(Box::new(theirs)), ..listen() };
    let mut waiting = client.run("s", &waits, io).await.unwrap();
    let mut echo = BufReader::new(waiting.take_stdout().unwrap()).lines();
    ours.write_all(b"before\n").await.unwrap();
    assert_eq!(echo.next_line().await.unwrap().unwrap(), "before");
    let image = server.image_with("marker", "x");
    let beside = ProcessSpec {
        id: "pea".into(),
        ..pea(&image, "cat /marker; while [ ! -e /proc/1/root/stop ]; do sleep 0.02; done; exit 5")
    };
    let _pea = client.run("s", &beside, listen()).await.unwrap();
    for _ in 0..2 {
        server.kill9();
        server.restart().await;
    }
    let client = server.client();
    assert_eq!(client.list(&std::collections::BTreeMap::new()).await.unwrap(), ["s"]);
    assert_eq!(client.property("s", "kept").await.unwrap(), "yes");
    assert_eq!(client.info("s").await.unwrap().state, "active");

    let mut again = client.attach("s", "ticks", listen()).await.unwrap();
    let mut lines = BufReader::new(again.take_stdout().unwrap()).lines();
    // Perhaps none comes after it.
    let mut last = lines.next_line().await.unwrap().unwrap();
    assert!(last.starts_with("tick "), "{last:?}");
    let beside = client.attach("s", "pea", listen()).await.unwrap();
    say(&client, "s", "touch /stop").await;
    let rest = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            last = line;
        }
        last
    };
    let (last, done) = tokio::join!(rest, end(again));
    assert!(last.starts_with("tick "), "{last:?}");
    assert_eq!(done.code, 4);

    let (mut ours, theirs) = tokio::io::duplex(64);
    let io = Io { stdin: Some(Box::new(theirs)), ..listen() };
    let waiting = client.attach("s", "waits", io).await.unwrap();
    ours.write_all(b"after\n").await.unwrap();
    drop(ours);
    let done = end(waiting).await;
    assert_eq!(done.code, 8);
    assert!(done.out.ends_with("after\nend\n"), "{done:?}");
    signal_pea(&server, &client, beside).await;
    server.finish().await;
}

/// The pea ends by signal, and its root file system with it.
async fn signal_pea(server: &Server, client: &wardian_garden::Client, pea: wardian_garden::Process) {
    let _ = pea.signal(true).await;
    let code = end(pea).await.code;
    assert!(code == 137 || code == 5, "{code}");
    let started = Instant::now();
    while server.rootfs().len() != 1 {
        assert!(started.elapsed() < STUCK, "{:?}", server.rootfs());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    say(client, "s", "true").await;
}

#[tokio::test]
async fn what_ends_without_a_server_is_known_to_the_next() {
    let mut server = Server::start().await;
    let client = server.create("s").await;
    let spec = ProcessSpec { id: "p".into(), ..script("while [ ! -e /go ]; do sleep 0.02; done; exit 6") };
    client.run("s", &spec, listen()).await.unwrap();
    let image = server.image_with("marker", "x");
    let spec = ProcessSpec { id: "pea".into(), ..pea(&image, "sleep 0.3; exit 7") };
    client.run("s", &spec, listen()).await.unwrap();
    say(&client, "s", "(sleep 0.2; touch /go) >/dev/null 2>&1 &").await;
    server.kill9();
    tokio::time::sleep(Duration::from_millis(700)).await;
    server.restart().await;
    let client = server.client();
    for (id, code) in [("p", 6), ("pea", 7)] {
        assert_eq!(end(client.attach("s", id, listen()).await.unwrap()).await.code, code, "{id}");
    }
    server.finish().await;
}

#[tokio::test]
async fn a_server_killed_in_the_middle_of_creates_leaves_nothing_half_made() {
    let mut server = Server::start().await;
    // The layer is there from here on.
    server.create("first").await;
    for round in 0_u32..5 {
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..10 {
            let (client, handle) = (server.client(), format!("r{round}-{n}"));
            tasks.spawn(async move { client.create(&ContainerSpec { handle, ..Default::default() }).await });
        }
        tokio::time::sleep(Duration::from_millis(u64::from(3 + 11 * round))).await;
        server.kill9();
        let mut acknowledged = Vec::new();
        while let Some(done) = tasks.join_next().await {
            acknowledged.extend(done.unwrap());
        }
        server.restart().await;
        let client = server.client();
        let found = client.list(&std::collections::BTreeMap::new()).await.unwrap();
        for handle in &acknowledged {
            assert!(found.contains(handle), "{handle} was promised: {found:?}");
        }
        for handle in found.iter().filter(|handle| *handle != "first") {
            assert_eq!(sh(&client, handle, "true").await.code, 0);
            client.destroy(handle).await.unwrap();
        }
    }
    assert_eq!(sh(&server.client(), "first", "true").await.code, 0);
    server.finish().await;
}

#[tokio::test]
async fn what_a_server_was_making_ends_with_it() {
    let mut server = Server::start().await;
    for round in 0_u32..40 {
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..10 {
            let (client, handle) = (server.client(), format!("r{round}-{n}"));
            tasks.spawn(async move { client.create(&ContainerSpec { handle, ..Default::default() }).await });
        }
        tokio::time::sleep(Duration::from_millis(u64::from(20 + 2 * round))).await;
        server.kill9_alone();
        let started = Instant::now();
        while !server.clones().is_empty() {
            assert!(started.elapsed() < Duration::from_secs(5), "round {round}: {:?}", server.clones());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tasks.shutdown().await;
        server.restart().await;
        let client = server.client();
        for handle in client.list(&std::collections::BTreeMap::new()).await.unwrap() {
            client.destroy(&handle).await.unwrap();
        }
    }
    server.finish().await;
}

#[tokio::test]
async fn a_server_killed_in_the_middle_of_destroys() {
    let mut server = Server::start().await;
    for round in 0_u32..3 {
        for n in 0..6 {
            server.create(&format!("d{round}-{n}")).await;
        }
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..6 {
            let (client, handle) = (server.client(), format!("d{round}-{n}"));
            tasks.spawn(async move { client.destroy(&handle).await.map(|()| handle) });
        }
        tokio::time::sleep(Duration::from_millis(u64::from(1 + round))).await;
        server.kill9();
        let mut gone = Vec::new();
        while let Some(done) = tasks.join_next().await {
            gone.extend(done.unwrap());
        }
        server.restart().await;
        let client = server.client();
        let found = client.list(&std::collections::BTreeMap::new()).await.unwrap();
        assert!(gone.iter().all(|handle| !found.contains(handle)), "{gone:?} came back: {found:?}");
        for handle in found {
            client.destroy(&handle).await.unwrap();
        }
    }
    server.finish().await;
}

#[tokio::test]
async fn a_container_whose_keeper_dies_is_broken_and_can_be_destroyed() {
    let mut server = Server::start().await;
    for restart in [false, true] {
        let client = server.create("k").await;
        let process = client.run("k", &script("exec sleep 1000"), listen()).await.unwrap();
        let keeper = parent(init(&server, "k").await).unwrap();
        assert_eq!(std::fs::read_to_string(format!("/proc/{keeper}/comm")).unwrap().trim(), "wardian-keeper");
        signal(keeper, Signal::KILL);
        let started = Instant::now();
        let info = loop {
            let info = client.info("k").await.unwrap();
            if info.state != "active" {
                break info;
            }
            assert!(started.elapsed() < STUCK);
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        assert_eq!(info.state, "stopped");
        assert!(info.events.unwrap_or_default().iter().any(|event| event.starts_with("broken: ")));
        assert_eq!(end(process).await.code, 137);
        let refused = message(client.run("k", &script("true"), listen()).await);
        assert!(refused.contains("broken"), "{refused}");
        if restart {
            server.kill9();
            server.restart().await;
            assert_eq!(server.client().info("k").await.unwrap().state, "stopped");
        }
        let client = server.client();
        client.destroy("k").await.unwrap();
        server.create("k").await.destroy("k").await.unwrap();
    }
    server.finish().await;
}

#[tokio::test]
async fn a_container_whose_init_dies_is_broken() {
    let server = Server::start().await;
    let client = server.create("i").await;
    signal(init(&server, "i").await, Signal::KILL);
    let started = Instant::now();
    while client.info("i").await.unwrap().state == "active" {
        assert!(started.elapsed() < STUCK);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    client.run("i", &script("true"), listen()).await.unwrap_err();
    client.destroy("i").await.unwrap();
    server.finish().await;
}

#[tokio::test]
async fn processes_cannot_hurt_what_keeps_them() {
    let server = Server::start().await;
    let client = server.create("m").await;
    for malice in ["kill -9 1; kill -STOP 1; kill -TERM 1; kill -INT 1", "kill -9 -1", "kill -STOP -1"] {
        let sleeper = client.run("m", &script("exec sleep 1000"), listen()).await.unwrap();
        assert_eq!(sh(&client, "m", malice).await.code, 0, "{malice}");
        assert_eq!(sh(&client, "m", "true").await.code, 0, "{malice}");
        sleeper.signal(true).await.unwrap();
        assert_eq!(end(sleeper).await.code, 137, "{malice}");
        let user = ProcessSpec { user: "vcap".into(), ..script(malice) };
        let _ = run(&client, "m", &user).await;
        assert_eq!(client.info("m").await.unwrap().state, "active", "{malice}");
    }
    // A loop that stops and kills everything it can, while others run.
    let storm =
        client.run("m", &script("while :; do kill -STOP -1; kill -9 -1; done"), listen()).await.unwrap();
    for _ in 0..5 {
        // Whatever becomes of them: the calls return.
        let ran = tokio::time::timeout(STUCK, client.run("m", &script("true"), listen()))
            .await
            .expect("run is stuck");
        drop(ran);
    }
    client.destroy("m").await.unwrap();
    let _ = tokio::time::timeout(STUCK, storm.wait()).await.expect("wait is stuck");
    server.finish().await;
}

#[tokio::test]
async fn a_stopped_container_can_be_destroyed() {
    let server = Server::start().await;
    let client = server.create("t").await;
    let process =
        client.run("t", &script("sleep 1000 & kill -STOP -1; kill -STOP $$"), listen()).await.unwrap();
    // It may be stopped on its way, but the call returns.
    let spec = script("true");
    let run = tokio::time::timeout(STUCK, client.run("t", &spec, listen()));
    drop(run.await.expect("run is stuck"));
    client.destroy("t").await.unwrap();
    let _ = tokio::time::timeout(STUCK, process.wait()).await.expect("wait is stuck");
    server.finish().await;
}

#[tokio::test]
async fn many_processes_die_with_their_container() {
    let server = Server::start().await;
    let client = server.create("f").await;
    let fork = script("for i in $(seq 200); do (trap '' TERM INT HUP; sleep 1000) & done; echo up; wait");
    let mut process = client.run("f", &fork, listen()).await.unwrap();
    let mut lines = BufReader::new(process.take_stdout().unwrap()).lines();
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "up");
    client.destroy("f").await.unwrap();
    server.finish().await;
}

/// More than fits one message of the keeper's.
#[tokio::test]
async fn a_container_with_a_long_past_is_found_again() {
    const PROCESSES: usize = 1600;
    let mut server = Server::start().await;
    let client = server.create("s").await;
    let id = |number: usize| format!("a-process-with-a-rather-long-name-{number:030}");
    for number in 0..PROCESSES {
        let spec = ProcessSpec { id: id(number), ..script("exit 3") };
        assert_eq!(end(client.run("s", &spec, listen()).await.unwrap()).await.code, 3);
    }
    server.kill9();
    server.restart().await;
    let client = server.client();
    assert_eq!(client.info("s").await.unwrap().state, "active");
    for number in [PROCESSES - 1000, PROCESSES - 1] {
        assert_eq!(end(client.attach("s", &id(number), listen()).await.unwrap()).await.code, 3);
    }
    // The last thousand are remembered; what ended before them is forgotten, and its id is free.
    let error = client.attach("s", &id(PROCESSES - 1001), listen()).await.unwrap_err();
    assert_eq!(message::<()>(Err(error)), format!("unknown process: {}", id(PROCESSES - 1001)));
    let spec = ProcessSpec { id: id(0), ..script("exit 4") };
    assert_eq!(end(client.run("s", &spec, listen()).await.unwrap()).await.code, 4);
    server.finish().await;
}
