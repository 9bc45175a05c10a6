//! Containers that go by themselves when nobody calls them.

use crate::support::{STUCK, Server, end, listen, message, script};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use wardian_garden::Io;
use wardian_garden::wire::ContainerSpec;

const SHORT: Duration = Duration::from_millis(300);
/// Long enough for a clock of `SHORT` to run out, if it runs.
const A_WHILE: Duration = Duration::from_millis(1500);

async fn lives(server: &Server, handle: &str) -> bool {
    // What does not touch the clock.
    server.client().list(&BTreeMap::new()).await.unwrap().iter().any(|h| h == handle)
}

async fn until_gone(server: &Server, handle: &str) {
    let started = Instant::now();
    while lives(server, handle).await {
        assert!(started.elapsed() < STUCK, "{handle} stays\n{}", server.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn create(server: &Server, handle: &str, grace: Duration) {
    let grace_time = i64::try_from(grace.as_nanos()).unwrap();
    let spec = ContainerSpec { handle: handle.into(), grace_time, ..Default::default() };
    server.client().create(&spec).await.unwrap();
}

#[tokio::test]
async fn of_the_container_and_set_later() {
    let server = Server::start().await;
    let client = server.client();
    create(&server, "short", SHORT).await;
    create(&server, "long", Duration::from_secs(3600)).await;
    create(&server, "none", Duration::ZERO).await;
    assert_eq!(client.property("long", "garden.grace-time").await.unwrap(), "3600000000000");
    assert_eq!(
        message(client.property("none", "garden.grace-time").await),
        "property does not exist: garden.grace-time"
    );
    until_gone(&server, "short").await;
    assert!(lives(&server, "long").await && lives(&server, "none").await);
    // Zero is now; a new time replaces the old one, an hour here.
    client.set_grace_time("none", Duration::ZERO).await.unwrap();
    client.set_grace_time("long", SHORT).await.unwrap();
    until_gone(&server, "none").await;
    until_gone(&server, "long").await;
    // The handle is free for another one, which the clock of the first does not touch.
    create(&server, "short", Duration::ZERO).await;
    tokio::time::sleep(A_WHILE).await;
    assert!(lives(&server, "short").await);

    client.set_grace_time("nope", SHORT).await.unwrap();
    for body in ["-1", "\"5s\"", "1.5", "{}", "9223372036854775808"] {
        let reply = server.http("PUT /containers/short/grace_time", "", body);
        assert!(reply.starts_with("HTTP/1.1 500 "), "{body}: {reply}");
    }
    let reply = server.http("POST /containers", "", "{\"grace_time\":-1}");
    assert!(reply.contains("grace_time: -1 is negative"), "{reply}");
    assert!(lives(&server, "short").await);
    server.finish().await;
}

#[tokio::test]
async fn calls_stop_the_clock() {
    let server = Server::start().await;
    let client = server.client();
    create(&server, "run", SHORT).await;
    // As long as a client is connected to a process.
    let (stdin, theirs) = tokio::io::duplex(64);
    let process = client
        .run("run", &script("read line"), Io { stdin: Some(Box::new(theirs)), ..listen() })
        .await
        .unwrap();
    // Zero does not end it while it is called, and is none afterwards.
    create(&server, "zero", Duration::ZERO).await;
    let other = client.run("zero", &script("sleep 1000"), listen()).await.unwrap();
    client.set_grace_time("zero", Duration::ZERO).await.unwrap();
    tokio::time::sleep(A_WHILE).await;
    assert!(lives(&server, "run").await && lives(&server, "zero").await);
    drop((stdin, other));
    end(process).await;
    until_gone(&server, "run").await;
    tokio::time::sleep(SHORT).await;
    assert!(lives(&server, "zero").await);

    // An attached client counts like the one that ran it; one that dies does not count any more.
    create(&server, "attach", Duration::ZERO).await;
    let process = client.run("attach", &script("sleep 1000"), listen()).await.unwrap();
    let attached = client.attach("attach", process.id(), listen()).await.unwrap();
    client.set_grace_time("attach", SHORT).await.unwrap();
    drop(process);
    tokio::time::sleep(A_WHILE).await;
    assert!(lives(&server, "attach").await);
    drop(attached);
    until_gone(&server, "attach").await;

    // A tar that nobody reads to its end.
    create(&server, "out", Duration::ZERO).await;
    let write = "head -c 20000000 /dev/zero > /big";
    assert_eq!(crate::support::sh(&client, "out", write).await.code, 0);
    let tar = client.stream_out("out", "", "/big").await.unwrap();
    client.set_grace_time("out", SHORT).await.unwrap();
    tokio::time::sleep(A_WHILE).await;
    assert!(lives(&server, "out").await);
    drop(tar);
    until_gone(&server, "out").await;
    server.finish().await;
}

#[tokio::test]
async fn each_call_gives_the_whole_time_again() {
    let server = Server::start().await;
    let client = server.client();
    create(&server, "c", Duration::from_secs(2)).await;
    // Longer than its time in all, and never so long between two.
    for _ in 0..16 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        client.info("c").await.unwrap();
    }
    assert!(lives(&server, "c").await);
    until_gone(&server, "c").await;
    server.finish().await;
}

#[tokio::test]
async fn the_next_server_goes_on_with_it() {
    let mut server = Server::start().await;
    create(&server, "hour", Duration::from_secs(3600)).await;
    create(&server, "soon", Duration::from_secs(3600)).await;
    server.client().run("hour", &script("sleep 1000"), listen()).await.unwrap();
    server.kill9();
    // As if its time had been set a moment before.
    let record = server.run().join("containers").join(record_of(&server, "soon")).join("state.json");
    let text = std::fs::read_to_string(&record).unwrap();
    std::fs::write(&record, text.replace("3600000000000", "300000000")).unwrap();
    server.restart().await;
    until_gone(&server, "soon").await;
    assert!(lives(&server, "hour").await);
    assert_eq!(server.client().property("hour", "garden.grace-time").await.unwrap(), "3600000000000");
    server.finish().await;
}

fn record_of(server: &Server, handle: &str) -> String {
    let all = std::fs::read_dir(server.run().join("containers")).unwrap().flatten();
    let wanted = format!("\"handle\": \"{handle}\"");
    let found = all.into_iter().find(|entry| {
        std::fs::read_to_string(entry.path().join("state.json")).is_ok_and(|text| text.contains(&wanted))
    });
    found.unwrap().file_name().into_string().unwrap()
}

#[tokio::test]
async fn a_default_for_those_that_come_without() {
    let mut server = Server::start().await;
    server.create("before").await;
    server.terminate().await;
    server.args = ["--default-grace-time", "300ms"].map(str::to_owned).to_vec();
    server.restart().await;
    let client = server.create("c").await;
    create(&server, "own", Duration::from_secs(3600)).await;
    assert_eq!(client.property("own", "garden.grace-time").await.unwrap(), "3600000000000");
    until_gone(&server, "c").await;
    // It was made without.
    assert!(lives(&server, "own").await && lives(&server, "before").await);
    server.finish().await;
}
