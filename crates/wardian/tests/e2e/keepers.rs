//! A server among keepers of other versions, and such as do not answer.

use crate::equipped::{ends_well, equip, is_broken, lives_equipped};
use crate::support::{Server, end, init, listen, members, message, parent, say, signal, tar_of};
use rustix::process::Signal;
use tokio::io::AsyncReadExt as _;
use wardian_runtime::wire;

async fn event(server: &Server, handle: &str) -> String {
    server.client().info(handle).await.unwrap().events.unwrap_or_default().join("\n")
}

/// The server that starts next pretends nothing.
async fn next_server(server: &mut Server) {
    server.kill9();
    server.env.clear();
    server.restart().await;
}

#[tokio::test]
async fn an_old_keeper_is_taken_over() {
    let mut server = Server::start().await;
    server.kill9();
    server.env = vec![(wire::SPEAKS.to_owned(), "1".to_owned())];
    server.restart().await;
    for handle in ["a", "b"] {
        equip(&server, handle).await;
    }
    // Also by the server that has started it.
    server.client().destroy("b").await.unwrap();
    next_server(&mut server).await;
    lives_equipped(&server, "a", "hello").await;
    let client = server.client();
    let tar = tar_of(&[("file", b"contents")]);
    let length = Some(tar.len() as u64);
    client.stream_in("a", "", "/in", std::io::Cursor::new(tar), length).await.unwrap();
    assert_eq!(say(&client, "a", "cat /in/file").await, "contents");
    let mut out = Vec::new();
    client.stream_out("a", "", "/in/file").await.unwrap().read_to_end(&mut out).await.unwrap();
    assert!(out.len() >= 1024);
    let sleeper = client.run("a", &crate::support::script("exec sleep 1000"), listen()).await.unwrap();
    sleeper.signal(false).await.unwrap();
    assert_eq!(end(sleeper).await.code, 143);
    // It would start the program without one.
    let with_tty = wardian_garden::wire::ProcessSpec {
        tty: Some(wardian_garden::wire::Tty::default()),
        ..crate::support::script("true")
    };
    let refused = message(client.run("a", &with_tty, listen()).await);
    assert!(refused.contains("earlier version"), "{refused}");
    ends_well(&server, "a").await;
    client.stop("a", true).await.unwrap();
    client.destroy("a").await.unwrap();
    server.finish().await;
}

#[tokio::test]
async fn a_size_for_a_process_of_an_old_keeper_ends_nothing() {
    let mut server = Server::start().await;
    server.kill9();
    server.env = vec![(wire::SPEAKS.to_owned(), "1".to_owned())];
    server.restart().await;
    equip(&server, "a").await;
    // By the server that has started it, which takes it for one of its own version, and by the next one.
    for round in ["first", "second"] {
        let cat = server.client().attach("a", "cat", wardian_garden::Io::default()).await.unwrap();
        cat.resize(10, 10).await.unwrap();
        let begun = std::time::Instant::now();
        while !server.log().contains("it has no terminal") {
            assert!(begun.elapsed() < crate::support::STUCK, "{}", server.log());
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        lives_equipped(&server, "a", round).await;
        next_server(&mut server).await;
        std::fs::write(server.base().join("log"), "").unwrap();
    }
    ends_well(&server, "a").await;
    server.finish().await;
}

#[tokio::test]
async fn a_keeper_of_the_future_is_not_talked_to_but_ended() {
    let mut server = Server::start().await;
    equip(&server, "ours").await;
    server.kill9();
    server.env = vec![(wire::SPEAKS.to_owned(), "1000".to_owned())];
    server.restart().await;
    equip(&server, "theirs").await;
    let id = server.id("theirs").await;
    next_server(&mut server).await;
    is_broken(&server, "theirs").await;
    let said = event(&server, "theirs").await;
    assert!(said.contains("its keeper speaks version 1000, this server understands up to"), "{said}");
    lives_equipped(&server, "ours", "hello").await;
    // It is not touched before somebody says so: a later server can have it.
    assert!(!members(&id).is_empty());
    server.client().destroy("theirs").await.unwrap();
    lives_equipped(&server, "ours", "again").await;
    server.finish().await;
}

#[tokio::test]
async fn a_keeper_that_was_stopped_holds_up_nobody() {
    let mut server = Server::start().await;
    for handle in ["stopped", "other"] {
        equip(&server, handle).await;
    }
    let keeper = parent(init(&server, "stopped").await).unwrap();
    signal(keeper, Signal::STOP);
    next_server(&mut server).await;
    is_broken(&server, "stopped").await;
    assert!(event(&server, "stopped").await.contains("its keeper does not answer"));
    lives_equipped(&server, "other", "hello").await;
    server.client().destroy("stopped").await.unwrap();

    // While the server talks to it.
    equip(&server, "stopped").await;
    let keeper = parent(init(&server, "stopped").await).unwrap();
    signal(keeper, Signal::STOP);
    let client = server.client();
    let (one, other) = tokio::join!(client.destroy("stopped"), client.destroy("stopped"));
    // The second one is refused while the first is at work, which of them it is.
    let (done, refused) = if one.is_ok() { (one, other) } else { (other, one) };
    done.unwrap();
    assert_eq!(message(refused), "container already being destroyed");
    server.finish().await;
}

#[tokio::test]
async fn a_record_of_the_future_ends_no_container() {
    let mut server = Server::start().await;
    equip(&server, "c").await;
    let path = std::path::PathBuf::from(server.client().info("c").await.unwrap().container_path);
    server.kill9();
    let record = std::fs::read_to_string(path.join("state.json")).unwrap();
    let mut later: serde_json::Value = serde_json::from_str(&record).unwrap();
    later["version"] = 1000.into();
    std::fs::write(path.join("state.json"), later.to_string()).unwrap();
    let output = server.command().stderr(std::process::Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("is of version 1000"), "{said}");
    std::fs::write(path.join("state.json"), record).unwrap();
    server.restart().await;
    lives_equipped(&server, "c", "hello").await;
    server.finish().await;
}
