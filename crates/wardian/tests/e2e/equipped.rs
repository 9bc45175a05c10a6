//! A container with everything that one can have, and whether it still has it.

use crate::support::{STUCK, Server, cgroups, end, listen, message, pea, say, script};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use wardian_garden::wire::{ContainerSpec, Limits, MemoryLimits, PidLimits, ProcessSpec};
use wardian_garden::{Client, Io, Process};

/// Lists broken containers too.
pub fn all() -> BTreeMap<String, String> {
    BTreeMap::from([("garden.state".to_owned(), "all".to_owned())])
}

pub fn spec(handle: &str) -> ContainerSpec {
    ContainerSpec {
        handle: handle.into(),
        properties: BTreeMap::from([("color".into(), handle.into())]),
        limits: Limits {
            memory_limits: MemoryLimits { limit_in_bytes: 64 << 20 },
            pid_limits: PidLimits { max: 50 },
            ..Default::default()
        },
        ..Default::default()
    }
}

/// Repeats lines until one says `quit`. Its input ends only when everybody who has written to it hangs up.
const CAT: &str = "while read -r line; do [ $line = quit ] && exit 8; echo $line; done; exit 9";

/// A container with everything: properties, limits, a process that reads, one that waits, and a pea.
pub async fn equip(server: &Server, handle: &str) {
    let client = server.client();
    client.create(&spec(handle)).await.unwrap();
    client.set_property(handle, "late", "yes").await.unwrap();
    let cat = ProcessSpec { id: "cat".into(), ..script(CAT) };
    // Its input ends when whoever has started it hangs up.
    std::mem::forget(client.run(handle, &cat, listen()).await.unwrap());
    let waits =
        ProcessSpec { id: "waits".into(), ..script("while [ ! -e /stop ]; do sleep 0.02; done; exit 4") };
    client.run(handle, &waits, listen()).await.unwrap();
    let image = server.image_with("marker", "x");
    let beside =
        ProcessSpec { id: format!("pea-of-{handle}"), ..pea(&image, "cat /marker; exec sleep 1000") };
    client.run(handle, &beside, listen()).await.unwrap();
}

/// Write a line to a container's `cat` and read it again.
async fn echo(client: &Client, handle: &str, line: &str) {
    let (mut ours, theirs) = tokio::io::duplex(64);
    let io = Io { stdin: Some(Box::new(theirs)), ..listen() };
    let mut cat = client.attach(handle, "cat", io).await.unwrap();
    ours.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    let mut lines = BufReader::new(cat.take_stdout().unwrap()).lines();
    let read = async {
        while let Some(said) = lines.next_line().await.unwrap() {
            if said == line {
                return;
            }
        }
        panic!("{handle}: its cat has ended");
    };
    tokio::time::timeout(STUCK, read).await.expect("no echo");
    // Whoever hangs up closes the input: the stream is held until the end of the test.
    std::mem::forget(ours);
    std::mem::forget(cat);
}

/// It lives, with what `equip` or `spec` gave it.
pub async fn lives(server: &Server, handle: &str) {
    let client = server.client();
    let info = client.info(handle).await.unwrap_or_else(|e| panic!("{handle}: {e}\n{}", server.log()));
    assert_eq!((info.state.as_str(), &info.events), ("active", &None), "{handle}");
    assert_eq!(info.properties.unwrap().get("color").map(String::as_str), Some(handle));
    let dirs = cgroups(&server.id(handle).await);
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default().trim().to_owned();
    for (files, value) in [(["memory.limit_in_bytes", "memory.max"], 64 << 20), (["pids.max"; 2], 51)] {
        let limits: Vec<String> =
            dirs.iter().flat_map(|dir| files.map(|file| read(&format!("{dir}/{file}")))).collect();
        // On v2 no thread of the keeper counts.
        let right = |limit: &String| *limit == value.to_string() || *limit == (value - 1).to_string();
        assert!(limits.iter().any(right), "{handle}: {limits:?}");
    }
    assert_eq!(say(&client, handle, "echo hello").await, "hello");
}

pub async fn lives_equipped(server: &Server, handle: &str, line: &str) {
    lives(server, handle).await;
    let client = server.client();
    assert_eq!(client.property(handle, "late").await.unwrap(), "yes");
    echo(&client, handle, line).await;
    client.attach(handle, "waits", listen()).await.unwrap();
    client.attach(handle, &format!("pea-of-{handle}"), listen()).await.unwrap();
}

/// Its `cat` is told to end.
pub async fn quit(client: &Client, handle: &str) -> wardian_garden::Result<Process> {
    let io = Io { stdin: Some(Box::new(&b"quit\n"[..])), ..listen() };
    client.attach(handle, "cat", io).await
}

/// Its processes end, and their statuses come.
pub async fn ends_well(server: &Server, handle: &str) {
    let client = server.client();
    assert_eq!(end(quit(&client, handle).await.unwrap()).await.code, 8);
    say(&client, handle, "touch /stop").await;
    assert_eq!(end(client.attach(handle, "waits", listen()).await.unwrap()).await.code, 4);
    let beside = client.attach(handle, &format!("pea-of-{handle}"), listen()).await.unwrap();
    beside.signal(true).await.unwrap();
    assert_eq!(end(beside).await.code, 137);
}

/// It is there, says why it cannot be used, and cannot.
pub async fn is_broken(server: &Server, handle: &str) {
    let client = server.client();
    let started = Instant::now();
    let events = loop {
        let info = client.info(handle).await.unwrap();
        if let Some(events) = info.events.filter(|_| info.state == "stopped") {
            break events;
        }
        assert!(started.elapsed() < STUCK, "{handle} is not broken");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(events.iter().any(|event| event.starts_with("broken: ")), "{events:?}");
    assert!(client.list(&all()).await.unwrap().contains(&handle.to_owned()));
    let refused = message(client.run(handle, &script("true"), listen()).await);
    assert!(refused.contains("broken"), "{refused}");
}
