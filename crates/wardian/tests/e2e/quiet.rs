//! What the log says while nothing is wrong with the server: little of a container's life, and no error for the
//! mistakes of clients.

use crate::support::{Server, listen, message, names, run, script, tar_of};
use serde_json::Value;
use std::io::Write as _;
use wardian_garden::wire::{ContainerSpec, ProcessSpec};

/// The lines after this length of the log.
fn lines(server: &Server, before: usize) -> Vec<Value> {
    server.log()[before..].lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Messages of this level.
fn of<'a>(lines: &'a [Value], level: &str) -> Vec<&'a str> {
    let of = lines.iter().filter(|line| line["level"] == level);
    of.map(|line| line["message"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_life_is_two_lines() {
    let server = Server::start().await;
    // The layer of the default image is unpacked once for all.
    let client = server.create("first").await;
    let before = server.log().len();
    let image = server.image_with("marker", "x");
    let spec = ContainerSpec { handle: "c".into(), rootfs: image.clone(), ..ContainerSpec::default() };
    client.create(&spec).await.unwrap();
    for n in 0..10 {
        assert_eq!(run(&client, "c", &script(&format!("echo {n}; exit {n}"))).await.code, n);
    }
    let beside = crate::support::pea(&image, "exit 0");
    assert_eq!(run(&client, "c", &beside).await.code, 0);
    let tar = String::from_utf8(tar_of(&[("file", b"text")])).unwrap();
    let put = server.http("PUT /containers/c/files?user=root&destination=/tmp", "", &tar);
    assert!(put.starts_with("HTTP/1.1 200 "), "{put}");
    assert!(server.http("GET /containers/c/files?user=root&source=/tmp/file", "", "").contains("text"));
    for line in ["info", "metrics", "limits/memory", "properties"] {
        assert!(
            server.http(&format!("GET /containers/c/{line}"), "", "").starts_with("HTTP/1.1 200 "),
            "{line}"
        );
    }
    client.set_property("c", "k", "v").await.unwrap();
    let process = client.run("c", &script("sleep 1000"), listen()).await.unwrap();
    let stop =
        server.http("PUT /containers/c/stop", "Content-Type: application/json\r\n", r#"{"kill":true}"#);
    assert!(stop.starts_with("HTTP/1.1 200 "), "{stop}");
    drop(process);
    client.destroy("c").await.unwrap();
    // One that ends by its grace time.
    let spec = ContainerSpec { handle: "g".into(), grace_time: 50_000_000, ..ContainerSpec::default() };
    client.create(&spec).await.unwrap();
    let alive = || {
        let reply = server.http("GET /containers", "", "");
        if reply.contains("\"g\"") { vec!["g".to_owned()] } else { vec![] }
    };
    server.until_empty("containers with a grace time", alive).await;
    client.destroy("first").await.unwrap();
    // What is left of it is deleted after the reply.
    let told =
        |lines: &[Value]| lines.iter().filter(|line| line["message"] == "wardian.destroy.done").count();
    server
        .until_empty("lines to come", || {
            if told(&lines(&server, before)) == 3 { vec![] } else { vec!["done".into()] }
        })
        .await;
    server.until_empty("root file systems", || server.rootfs()).await;
    let lines = lines(&server, before);
    assert_eq!(of(&lines, "error"), Vec::<&str>::new());
    let (create, destroy) = ("wardian.create.done", "wardian.destroy.done");
    assert_eq!(of(&lines, "info"), [create, destroy, create, destroy, destroy], "{lines:#?}");
    // Why it ended is with its end.
    let ended =
        lines.iter().rfind(|line| line["message"] == destroy && line["data"]["handle"] == "g").unwrap();
    assert_eq!(ended["data"]["grace_s"], 0.05);
    server.finish().await;
}

#[tokio::test]
async fn a_restart_is_one_line_for_all_containers() {
    let mut server = Server::start().await;
    for handle in ["a", "b", "c"] {
        server.create(handle).await;
    }
    server.kill9();
    let before = server.log().len();
    server.restart().await;
    let lines = lines(&server, before);
    let found: Vec<&Value> = lines.iter().filter(|line| line["message"] == "wardian.restore.done").collect();
    assert_eq!(found.len(), 1, "{lines:#?}");
    assert_eq!((&found[0]["level"], &found[0]["data"]["count"]), (&"info".into(), &3.into()));
    assert!(lines.iter().all(|line| line["data"]["handle"].is_null()), "{lines:#?}");
    server.finish().await;
}

/// The requests of a client that makes mistakes: line, body, and what the reply has.
const MISTAKES: [(&str, &str, &str); 32] = [
    ("GET /containers/nope/info", "", "unknown handle: nope"),
    ("GET /containers/nope/metrics", "", "unknown handle"),
    ("GET /containers/nope/limits/memory", "", "unknown handle"),
    ("GET /containers/nope/properties/k", "", "property does not exist"),
    ("PUT /containers/nope/properties/k", r#"{"value":"v"}"#, "unknown handle"),
    ("PUT /containers/nope/stop", "{}", "unknown handle"),
    ("PUT /containers/nope/files?destination=/", "x", "unknown handle"),
    ("GET /containers/nope/files?source=/", "", "unknown handle"),
    ("POST /containers/nope/processes", r#"{"path":"sh"}"#, "unknown handle"),
    ("POST /containers/nope/net/in", "{}", "unknown handle"),
    ("DELETE /containers/nope", "", "unknown handle"),
    ("DELETE /containers/nope", "", "unknown handle"),
    ("POST /containers", "{", "json"),
    ("POST /containers", r#"{"handle":7}"#, "json"),
    ("POST /containers", r#"{"handle":"c"}"#, "already in use"),
    ("POST /containers", r#"{"handle":"a/b"}"#, "invalid handle"),
    ("POST /containers", r#"{"rootfs":"/no/such.tar"}"#, "cannot open the image"),
    ("POST /containers", r#"{"rootfs":"/etc/passwd"}"#, "is no image: neither"),
    ("POST /containers", r#"{"rootfs":"foo://x"}"#, "cannot open the image"),
    ("POST /containers", r#"{"rootfs":"/a","image":{"uri":"/b"}}"#, ""),
    ("POST /containers", r#"{"bind_mounts":[{"src_path":"/no/such","dst_path":"/x"}]}"#, "/no/such"),
    ("POST /containers", r#"{"network":"10.0.0.0/30"}"#, "no network here"),
    ("POST /containers", r#"{"netin":[{"host_port":1,"container_port":2}]}"#, "no network here"),
    ("POST /containers", r#"{"grace_time":-1}"#, ""),
    ("POST /containers", r#"{"properties":{"wardian.x":"y"}}"#, ""),
    ("POST /containers", r#"{"limits":{"disk_limits":{"byte_soft":1}}}"#, ""),
    ("GET /containers/c/properties/none", "", "property does not exist"),
    ("GET /containers/c/processes/none", "", "unknown process"),
    ("PUT /containers/c/files?destination=/tmp", "this is no tar at all", "error streaming in"),
    ("PUT /containers/c/files?user=nobody-here", "x", "unable to find user"),
    ("GET /containers/c/files?source=/no/such/file", "", "No such file"),
    ("PUT /containers/c/grace_time", "null", "json"),
];

#[tokio::test]
async fn mistakes_of_clients_are_no_errors() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let before = server.log().len();
    for _ in 0..4 {
        for (line, body, says) in MISTAKES {
            let reply = server.http(line, "Content-Type: application/json\r\n", body);
            let is_refused = ["HTTP/1.1 4", "HTTP/1.1 500 "].iter().any(|status| reply.starts_with(status));
            assert!(is_refused && reply.contains(says), "{line} {body}: {reply}");
        }
    }
    // Processes that cannot be started, and what makes no sense to those that run.
    for path in ["/no/such/program", "/etc/passwd", "/tmp"] {
        let spec = ProcessSpec { path: path.into(), ..ProcessSpec::default() };
        message(client.run("c", &spec, listen()).await);
    }
    for spec in [
        ProcessSpec { user: "nobody-here".into(), ..script("exit 0") },
        ProcessSpec { dir: "/etc/passwd".into(), ..script("exit 0") },
    ] {
        message(client.run("c", &spec, listen()).await);
    }
    let running = ProcessSpec { id: "cat".into(), path: "cat".into(), ..ProcessSpec::default() };
    let process = client.run("c", &running, listen()).await.unwrap();
    message(client.run("c", &running, listen()).await);
    for (n, nonsense) in ["nonsense\n", "{\"process_id\":\"cat\",\"signal\":7}\n"].iter().enumerate() {
        let mut stream = server.connect();
        let attach = "GET /containers/c/processes/cat HTTP/1.1\r\nHost: api\r\n\r\n";
        stream.write_all(format!("{attach}{nonsense}").as_bytes()).unwrap();
        let told = ["process.nonsense-from-client", "process.refused"][n];
        let missing = || if server.log().contains(told) { vec![] } else { vec![told.to_owned()] };
        server.until_empty("lines to come", missing).await;
    }
    drop(process);
    let lines = lines(&server, before);
    assert_eq!(of(&lines, "error"), Vec::<&str>::new(), "{lines:#?}");
    let failed = lines.iter().filter(|line| line["message"] == "wardian.server.request-failed").count();
    assert!(failed > 100, "{failed}");
    client.destroy("c").await.unwrap();
    server.until_empty("records", || names(&server.run().join("containers"))).await;
    server.finish().await;
}
