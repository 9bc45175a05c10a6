//! What the server's log says, and what it never says.

use crate::support::{NETWORK, Server, WARDIAN, end, listen, message, pea, script};
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use wardian_garden::wire::{ContainerSpec, ProcessSpec};

fn lines(server: &Server) -> Vec<Value> {
    let line = |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    server.log().lines().map(line).collect()
}

#[tokio::test]
async fn every_line_has_the_known_shape() {
    let mut server = Server::start().await;
    server.kill9();
    server.env = vec![("WARDIAN_LOG".into(), "debug".into())];
    server.restart().await;
    let client = server.create("h").await;
    let id = server.id("h").await;
    client.destroy("h").await.unwrap();
    message(client.destroy("h").await);
    let lines = lines(&server);
    for line in &lines {
        let mut keys: Vec<&str> = line.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["data", "level", "message", "source", "timestamp"], "{line}");
        assert_eq!(line["source"], "wardian");
        let (timestamp, message) = (line["timestamp"].as_str().unwrap(), line["message"].as_str().unwrap());
        assert!(timestamp.len() == "2026-01-02T03:04:05.000000000Z".len(), "{timestamp}");
        assert!(message.starts_with("wardian.") && !message.contains(' '), "{message}");
        assert!(["debug", "info", "error"].contains(&line["level"].as_str().unwrap()), "{line}");
    }
    let find = |message: &str| {
        lines.iter().find(|l| l["message"] == message).unwrap_or_else(|| panic!("no {message}: {lines:#?}"))
    };
    for message in ["wardian.create.done", "wardian.destroy.done", "wardian.rootfs.unmounted"] {
        let data = &find(message)["data"];
        assert_eq!((&data["handle"], &data["id"]), (&"h".into(), &id.as_str().into()), "{message}");
        assert!(data["ms"].as_f64().unwrap() >= 0.0);
    }
    assert!(lines.iter().any(|l| l["level"] == "info" && l["data"]["error"] == "unknown handle: h"));
    assert_eq!(find("wardian.serve.listening")["level"], "info");
    server.finish().await;
}

#[tokio::test]
async fn secrets_are_not_in_it() {
    const SECRET: &str = "hunter2";
    let mut server = Server::start().await;
    server.kill9();
    server.env = vec![("WARDIAN_LOG".into(), "trace".into())];
    server.restart().await;
    let client = server.client();
    let secret = |name: &str| format!("{name}-{SECRET}");
    let spec = ContainerSpec {
        handle: "s".into(),
        env: vec![format!("TOKEN={SECRET}")],
        properties: BTreeMap::from([("secret".into(), secret("property"))]),
        ..Default::default()
    };
    client.create(&spec).await.unwrap();
    client.set_property("s", "late", &secret("property")).await.unwrap();
    let process = ProcessSpec {
        args: vec!["-c".into(), format!("echo {SECRET}; exit 3")],
        env: vec![format!("PASSWORD={SECRET}")],
        ..script("")
    };
    assert_eq!(end(client.run("s", &process, listen()).await.unwrap()).await.code, 3);
    let image = server.image_with("marker", "x");
    let beside = ProcessSpec { env: vec![format!("PASSWORD={SECRET}")], ..pea(&image, "exit 0") };
    assert_eq!(end(client.run("s", &beside, listen()).await.unwrap()).await.code, 0);
    // What fails is logged: not with what was in it.
    let missing = ProcessSpec { path: "/no/such/program".into(), ..process.clone() };
    message(client.run("s", &missing, listen()).await);
    let mut with_password = beside.clone();
    with_password.image.username = "someone".into();
    with_password.image.password = SECRET.into();
    message(client.run("s", &with_password, listen()).await);
    for body in [
        format!("{{\"handle\":\"x\",\"env\":\"TOKEN={SECRET}\"}}"),
        format!("{{\"handle\":\"x\",\"properties\":\"{SECRET}\"}}"),
        format!("{{\"handle\":\"x\",\"env\":[\"A={SECRET}\" 5"),
        format!(
            "{{\"handle\":\"x\",\"limits\":{{\"memory_limits\":{{\"limit_in_bytes\":\"a\\\", {SECRET}\"}}}}}}"
        ),
    ] {
        let reply = server.http("POST /containers", "Content-Type: application/json\r\n", &body);
        assert!(reply.starts_with("HTTP/1.1 500"), "{reply}");
    }
    client.destroy("s").await.unwrap();
    let log = server.log();
    assert!(log.contains("wardian.create.done"));
    let told: Vec<&str> = log.lines().filter(|line| line.contains(SECRET)).collect();
    assert_eq!(told, Vec::<&str>::new());
    server.finish().await;
}

#[tokio::test]
async fn the_format_can_be_chosen() {
    let mut server = Server::start().await;
    server.kill9();
    server.args = vec!["--log-format".into(), "text".into()];
    let before = server.log().len();
    server.restart().await;
    let text = server.log()[before..].to_owned();
    assert!(text.contains("serve.listening") && !text.contains('{'), "{text}");
    let bad = Command::new(WARDIAN)
        .env(NETWORK, "none")
        .args(["serve", "--log-format", "xml"])
        .stderr(Stdio::piped())
        .output();
    assert_eq!(bad.unwrap().status.code(), Some(2));
    server.finish().await;
}
