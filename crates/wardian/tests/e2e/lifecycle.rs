//! Create, list, info, properties, destroy.

use crate::support::{Server, end, listen, message, pea, script, sh};
use std::collections::BTreeMap;
use wardian_garden::ErrorKind;
use wardian_garden::wire::{ContainerSpec, MemoryLimits, ProcessLimits, ProcessSpec};

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[tokio::test]
async fn a_container_from_create_to_destroy() {
    let server = Server::start().await;
    let client = server.client();
    let spec = ContainerSpec {
        handle: "one".into(),
        properties: map(&[("color", "blue"), ("both", "yes")]),
        ..Default::default()
    };
    assert_eq!(client.create(&spec).await.unwrap(), "one");
    let other = ContainerSpec { properties: map(&[("color", "red"), ("both", "yes")]), ..Default::default() };
    let generated = client.create(&other).await.unwrap();
    assert!(generated.len() >= 8 && generated != "one", "{generated}");

    let mut all = vec!["one".to_owned(), generated.clone()];
    all.sort();
    assert_eq!(client.list(&map(&[])).await.unwrap(), all);
    assert_eq!(client.list(&map(&[("both", "yes")])).await.unwrap(), all);
    assert_eq!(client.list(&map(&[("color", "blue")])).await.unwrap(), ["one"]);
    assert!(client.list(&map(&[("color", "blue"), ("both", "no")])).await.unwrap().is_empty());

    let info = client.info("one").await.unwrap();
    assert_eq!(info.state, "active");
    assert_eq!(info.events, None);
    let properties = info.properties.unwrap();
    assert_eq!(properties.get("color").map(String::as_str), Some("blue"));
    assert_eq!(properties.get("garden.state").map(String::as_str), Some("created"));
    assert!(std::path::Path::new(&info.container_path).join("config.json").is_file());

    let again = client.create(&spec).await;
    assert_eq!(message(again), "Handle 'one' already in use");
    client.destroy("one").await.unwrap();
    let twice = client.destroy("one").await.unwrap_err();
    assert_eq!(
        (twice.kind(), twice.to_string()),
        (Some(ErrorKind::ContainerNotFound), "unknown handle: one".into())
    );
    assert_eq!(client.info("one").await.unwrap_err().kind(), Some(ErrorKind::ContainerNotFound));
    assert_eq!(client.list(&map(&[])).await.unwrap(), [generated]);
    // The handle is free again.
    client.create(&spec).await.unwrap();
    server.finish().await;
}

#[tokio::test]
async fn properties_are_kept_changed_and_removed() {
    let server = Server::start().await;
    let client = server.create("p").await;
    client.set_property("p", "a", "1").await.unwrap();
    client.set_property("p", "a", "<é&\u{2028}>").await.unwrap();
    client.set_property("p", "with/slash and %", "odd").await.unwrap();
    assert_eq!(client.property("p", "a").await.unwrap(), "<é&\u{2028}>");
    assert_eq!(client.property("p", "with/slash and %").await.unwrap(), "odd");
    let all = client.properties("p").await.unwrap();
    assert_eq!(all, map(&[("a", "<é&\u{2028}>"), ("garden.state", "created"), ("with/slash and %", "odd")]));
    client.remove_property("p", "a").await.unwrap();
    client.remove_property("p", "a").await.unwrap();
    assert_eq!(message(client.property("p", "a").await), "property does not exist: a");
    assert!(client.list(&map(&[("a", "1")])).await.unwrap().is_empty());
    server.finish().await;
}

#[tokio::test]
async fn only_one_of_many_creates_gets_a_handle_and_only_one_destroy_succeeds() {
    let server = Server::start().await;
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let client = server.client();
        let spec = ContainerSpec { handle: "same".into(), ..Default::default() };
        tasks.push(tokio::spawn(async move { client.create(&spec).await.is_ok() }));
    }
    let mut made = 0;
    for task in tasks {
        made += usize::from(task.await.unwrap());
    }
    assert_eq!(made, 1);
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let client = server.client();
        tasks.push(tokio::spawn(async move { client.destroy("same").await.is_ok() }));
    }
    let mut destroyed = 0;
    for task in tasks {
        destroyed += usize::from(task.await.unwrap());
    }
    assert_eq!(destroyed, 1);
    assert!(server.client().list(&map(&[])).await.unwrap().is_empty());
    server.finish().await;
}

#[tokio::test]
async fn a_stop_ends_what_is_in_the_containers_cgroup() {
    let server = Server::start().await;
    let client = server.create("s").await;
    let image = server.image_with("marker", "x");
    let process = client.run("s", &script("exec sleep 1000"), listen()).await.unwrap();
    let shared = client.run("s", &pea(&image, "exec sleep 1000"), listen()).await.unwrap();
    let own_limits = ProcessSpec {
        limits: Some(ProcessLimits {
            memory_limits: MemoryLimits { limit_in_bytes: 32 << 20 },
            ..Default::default()
        }),
        ..pea(&image, "while [ ! -e /stop ]; do sleep 0.02; done; exit 5")
    };
    let own = client.run("s", &own_limits, listen()).await.unwrap();
    client.stop("s", true).await.unwrap();
    assert_eq!(end(process).await.code, 137);
    assert_eq!(end(shared).await.code, 137);
    assert_eq!(client.info("s").await.unwrap().state, "stopped");
    // It has a cgroup beside the container's, as with the original server.
    let again = client.attach("s", own.id(), listen()).await.unwrap();
    again.signal(false).await.unwrap();
    assert_eq!(end(own).await.code, 143);
    // Again, with nothing left, and at once.
    client.stop("s", false).await.unwrap();
    assert_eq!(sh(&client, "s", "exit 6").await.code, 6);
    server.finish().await;
}
