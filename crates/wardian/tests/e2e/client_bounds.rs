//! Clients that ask for much, or for what is another's, or whose names hurt a log or a terminal.

use crate::support::{STUCK, Server, WARDIAN, listen, message, say, script};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt as _;
use wardian_garden::Io;
use wardian_garden::wire::{ContainerSpec, ProcessSpec};

/// The most memory the server has ever had, in MiB.
fn peak(server: &Server) -> u64 {
    server.memory("VmHWM") / 1024
}

/// Properties of 1 MB. One letter of a reply takes six bytes there.
async fn create_with_properties(server: &Server, handle: &str) {
    let properties = (0..7).map(|n| (format!("long{n}"), "x".repeat(128_000))).collect();
    let (client, spec) =
        (server.client(), ContainerSpec { handle: handle.into(), properties, ..Default::default() });
    client.create(&spec).await.unwrap();
    client.set_property(handle, "last", &"<".repeat(128_000)).await.unwrap();
}

/// The JSON of a chunked reply.
fn chunked(reply: &str) -> Value {
    let (head, mut rest) = reply.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("ransfer-Encoding: chunked"), "{head}");
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n").expect("the reply is broken off");
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return serde_json::from_str(&body).unwrap();
        }
        body.push_str(&after[..size]);
        rest = &after[size + 2..];
    }
}

#[tokio::test]
async fn a_bulk_request_costs_no_more_than_its_client_takes() {
    let server = Server::start().await;
    for n in 0..16 {
        create_with_properties(&server, &format!("c{n:02}")).await;
    }
    let before = peak(&server);
    // The same one many times over.
    let repeated = vec!["c00"; 2000].join(",");
    let reply = chunked(&server.http(&format!("GET /containers/bulk_info?handles={repeated}"), "", ""));
    assert_eq!(reply.as_object().unwrap().len(), 1);
    assert_eq!(reply["c00"]["Info"]["Properties"]["last"], "<".repeat(128_000));
    // All of them, whose reply is 27 MB.
    let all: Vec<String> = (0..16).map(|n| format!("c{n:02}")).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).chain(["none"]).collect();
    let infos = server.client().bulk_info(&all).await.unwrap();
    assert_eq!(infos.len(), 17);
    for (handle, entry) in &infos {
        let message = entry.err.as_ref().map(|error| error.message.as_str());
        assert_eq!(message, (handle == "none").then_some("unknown handle: none"));
    }
    let last = infos["c15"].info.properties.as_ref().unwrap();
    assert_eq!((last.len(), last["long6"].len(), last["last"].as_str()), (9, 128_000, &*"<".repeat(128_000)));
    // Many who ask and do not read: in one list, in all properties, in one of them.
    let mut deaf = Vec::new();
    for n in 0..200 {
        let path = match n % 3 {
            0 => format!("bulk_info?handles={}", all.join(",")),
            1 => "c01/properties".to_owned(),
            _ => "c02/properties/long0".to_owned(),
        };
        let mut stream = server.connect();
        write!(stream, "GET /containers/{path} HTTP/1.1\r\nHost: api\r\n\r\n").unwrap();
        deaf.push(stream);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    // Small requests do not wait for them.
    let quick = Instant::now();
    server.client().list(&BTreeMap::new()).await.unwrap();
    assert!(quick.elapsed() < Duration::from_secs(5), "{:?}", quick.elapsed());
    assert!(peak(&server) < before + 32, "{} MiB after {before}", peak(&server));
    drop(deaf);
    // All of them in time: those that have gone hold no room.
    let readers: Vec<_> = (0..60)
        .map(|_| {
            let client = server.client();
            tokio::spawn(async move { client.info("c03").await.unwrap().properties.unwrap().len() })
        })
        .collect();
    for reader in readers {
        assert_eq!(tokio::time::timeout(STUCK, reader).await.unwrap().unwrap(), 9);
    }
    assert!(peak(&server) < before + 48, "{} MiB after {before}", peak(&server));
    server.finish().await;
}

#[tokio::test]
async fn who_does_not_read_loses_its_room() {
    let server = Server::start().await;
    create_with_properties(&server, "c").await;
    let mut deaf: Vec<UnixStream> = Vec::new();
    for _ in 0..16 {
        let mut stream = server.connect();
        write!(stream, "GET /containers/c/info HTTP/1.1\r\nHost: api\r\n\r\n").unwrap();
        stream.read_exact(&mut [0; 15]).unwrap();
        deaf.push(stream);
    }
    let info = tokio::time::timeout(STUCK, async { server.client().info("c").await }).await.unwrap();
    assert_eq!(info.unwrap().properties.unwrap().len(), 9);
    // At least one had to go for it, and what was cut does not look whole.
    let is_cut = |stream: &mut UnixStream| {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        !rest.ends_with(b"\r\n0\r\n\r\n")
    };
    assert!(deaf.iter_mut().map(is_cut).filter(|cut| *cut).count() > 0);
    server.finish().await;
}

#[tokio::test]
async fn bodies_that_do_not_end_have_room_among_few() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let before = peak(&server);
    let mut open = Vec::new();
    let body = vec![b' '; (4 << 20) - 10];
    for _ in 0..60 {
        let mut stream = server.connect();
        stream.set_nonblocking(true).unwrap();
        write!(
            stream,
            "POST /containers/c/processes HTTP/1.1\r\nHost: api\r\nContent-Length: {}\r\n\r\n",
            4 << 20
        )
        .unwrap();
        open.push((stream, 0));
    }
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        for (stream, sent) in &mut open {
            *sent += stream.write(&body[*sent..]).unwrap_or(0);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Four at a time; who owes the rest in silence for a second is closed for the next one.
    let whole = open.iter().filter(|(_, sent)| *sent == body.len()).count();
    assert!((4..=16).contains(&whole), "{whole} bodies were taken");
    // Ordinary requests go by, and a long body gets room after those that were there before.
    server.create("d").await;
    assert_eq!(say(&client, "c", "echo works").await, "works");
    client.set_property("c", "long", &"x".repeat(40_000)).await.unwrap();
    assert!(peak(&server) < before + 64, "{} MiB after {before}", peak(&server));
    drop(open);
    // Many values in few bytes are not made objects of.
    let before = peak(&server);
    let body = format!("{{\"x\":[{}0]}}", "0,".repeat((4 << 20) / 2 - 10));
    let reply = server.http("POST /containers/c/processes", "", &body);
    assert!(reply.contains("json: too many values"), "{reply}");
    assert!(peak(&server) < before + 48, "{} MiB after {before}", peak(&server));
    server.finish().await;
}

#[tokio::test]
async fn what_is_too_much_is_refused_by_name() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let long = "x".repeat(131_072);
    for n in 0..7 {
        client.set_property("c", &format!("p{n}"), &long[..131_071]).await.unwrap();
    }
    let said = message(client.set_property("c", "p7", &long).await);
    assert_eq!(said, "properties: p7: 131072 bytes, of which 131071 are allowed");
    let said = message(client.set_property("c", "p8", &long[..131_071]).await);
    assert_eq!(said, "properties: 1048603 bytes, of which 1048576 are allowed");
    // What was refused is not there, and what is may be changed.
    assert!(client.property("c", "p8").await.is_err());
    client.set_property("c", "p0", "short").await.unwrap();
    client.set_property("c", "p8", &long[..1000]).await.unwrap();

    let create = async |spec: ContainerSpec| message(client.create(&spec).await);
    let said = create(ContainerSpec { env: vec![format!("A={long}")], ..Default::default() }).await;
    assert_eq!(said, "env: A: 131074 bytes, of which 131071 are allowed");
    for handle in ["x".repeat(256), "a\u{202e}b".into(), "a\u{200b}".into(), "a\u{9b}".into()] {
        let said = create(ContainerSpec { handle, ..Default::default() }).await;
        assert!(said.starts_with("invalid handle ") && said.is_ascii(), "{said}");
    }
    // A variable as long as the kernel takes arrives; one more byte is refused before the kernel does.
    let process = async |spec: ProcessSpec| client.run("c", &spec, Io::default()).await;
    let variable = format!("A={}", &long[..131_069]);
    let spec = ProcessSpec { env: vec![variable], ..script("echo ${#A}") };
    assert_eq!(crate::support::run(&client, "c", &spec).await.out, "131069\n");
    for (spec, begins) in [
        (ProcessSpec { env: vec![format!("A={long}")], ..script("true") }, "env: A: 131074 bytes"),
        (ProcessSpec { args: vec![long.clone()], ..script("") }, "args: 131072 bytes"),
        (ProcessSpec { args: vec![long[..100_000].into(); 22], ..script("") }, "env and args: 2200"),
        (ProcessSpec { dir: format!("/{long}"), ..script("true") }, "dir: 131073 bytes"),
        (ProcessSpec { user: long.clone(), ..script("true") }, "user: 131072 bytes"),
        (ProcessSpec { id: "a\u{2066}".into(), ..script("true") }, "invalid handle \"a\\u{2066}\""),
    ] {
        let said = message(process(spec).await);
        assert!(said.starts_with(begins) && said.len() < 400, "{begins}: {said}");
    }
    let many: Vec<String> = (0..5000).map(|n| format!("{n:x}")).collect();
    let reply = server.http(&format!("GET /containers/bulk_metrics?handles={}", many.join(",")), "", "");
    assert!(reply.contains("handles: 5000 of them, of which 4096 are allowed"), "{reply}");
    let many = many[..4000].join(",");
    let reply = chunked(&server.http(&format!("GET /containers/bulk_metrics?handles={many},c"), "", ""));
    assert_eq!((reply.as_object().unwrap().len(), &reply["c"]["Err"]), (4001 - 1, &Value::Null));
    server.finish().await;
}

/// Begin a process and read its greeting: the connection, and the stream's id.
fn begin(server: &Server, handle: &str, id: &str, command: &str) -> (BufReader<UnixStream>, String) {
    let body = format!("{{\"id\":\"{id}\",\"path\":\"sh\",\"args\":[\"-c\",\"{command}\"]}}");
    let mut stream = server.connect();
    write!(
        stream,
        "POST /containers/{handle}/processes HTTP/1.1\r\nHost: api\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while !line.starts_with('{') {
        line.clear();
        assert!(stream.read_line(&mut line).unwrap() > 0, "no greeting");
    }
    let greeting: Value = serde_json::from_str(&line).unwrap();
    (stream, greeting["stream_id"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn output_is_found_by_its_own_client_alone() {
    let server = Server::start().await;
    server.create("mine").await;
    server.create("other").await;
    let (_control, id) = begin(&server, "mine", "p", "echo secret; sleep 1000");
    let (_theirs, their_id) = begin(&server, "other", "p", "sleep 1000");
    assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()) && id != their_id, "{id}");
    let get = |handle: &str, process: &str, id: &str| {
        let path = format!("/containers/{handle}/processes/{process}/attaches/{id}/stdout");
        let mut stream = server.connect();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n").unwrap();
        stream
    };
    let all = |mut stream: UnixStream| {
        let mut reply = String::new();
        let _ = stream.read_to_string(&mut reply);
        reply
    };
    for (handle, process) in [("other", "p"), ("mine", "q"), ("none", "p"), ("mine", "")] {
        let reply = all(get(handle, process, &id));
        assert!(reply.starts_with("HTTP/1.1 404 ") && reply.contains("ProcessNotFoundError"), "{reply}");
    }
    // What counts up finds nothing.
    for guess in (0..20).map(|n| n.to_string()).chain([format!("{:032x}", 1), format!("+{}", &id[1..])]) {
        let reply = all(get("mine", "p", &guess));
        assert!(reply.starts_with("HTTP/1.1 200 ") && reply.ends_with("\r\n\r\n"), "{guess}: {reply}");
    }
    // Nobody has taken a byte of it.
    let mut stream = get("mine", "p", &id);
    let mut reply = String::new();
    while !reply.ends_with("secret\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error}: {reply}"));
        reply.push(char::from(byte[0]));
    }
    assert!(!server.log().contains(&id));
    let client = server.client();
    for handle in ["mine", "other"] {
        client.attach(handle, "p", Io::default()).await.unwrap().signal(true).await.unwrap();
    }
    // Garden's way still works.
    let mut process = client.run("mine", &script("echo out; echo err >&2"), listen()).await.unwrap();
    let mut out = String::new();
    process.take_stdout().unwrap().read_to_string(&mut out).await.unwrap();
    assert_eq!(out, "out\n");
    server.finish().await;
}

#[tokio::test]
async fn a_log_does_not_grow_with_what_it_is_told() {
    let server = Server::start().await;
    server.create("c").await;
    let before = server.log().len();
    let (long, turned) = ("x".repeat(60_000), "a%E2%80%AE%C2%9B%1B[2J%0A".repeat(100));
    let mut requests = 0;
    for name in [&long, &turned] {
        for line in [
            format!("GET /containers/{name}/info"),
            format!("DELETE /containers/{name}"),
            format!("GET /containers/c/processes/{name}"),
            format!("GET /containers/c/properties/{name}"),
            format!("GET /containers/c/files?user={name}&source=x"),
            format!("GET /wardian/events?handle={name}"),
            format!("PUT /containers/{name}/stop"),
        ] {
            let reply = server.http(&line, "", "{}");
            assert!(reply.starts_with("HTTP/1.1 404 ") || reply.starts_with("HTTP/1.1 500 "), "{reply:.200}");
            assert!(reply.len() < 8192, "{} bytes", reply.len());
            requests += 1;
        }
        let body = format!("{{\"rootfs\":\"{long}\",\"network\":\"{long}\"}}");
        server.http("POST /containers", "", &body);
        requests += 1;
    }
    let log = server.log()[before..].to_owned();
    assert!(log.len() < requests * 4096, "{} bytes for {requests} requests", log.len());
    let odd: Vec<char> = log.chars().filter(|c| !c.is_ascii_graphic() && !" \n…".contains(*c)).collect();
    assert!(odd.is_empty(), "{odd:?}");
    server.finish().await;
}

/// A server that answers each request with what its path has, for commands to be told by.
fn hostile(
    dir: &std::path::Path,
    replies: &'static [(&'static str, u16, &'static str)],
) -> std::path::PathBuf {
    let socket = dir.join("hostile.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = BufReader::new(stream);
            let (mut first, mut line) = (String::new(), String::new());
            let _ = stream.read_line(&mut first);
            while stream.read_line(&mut line).is_ok_and(|n| n > 2) {
                line.clear();
            }
            let found = replies.iter().find(|(begin, ..)| first.starts_with(begin));
            let (_, status, body) = found.copied().unwrap_or(("", 500, "{}"));
            let _ = write!(
                stream.get_mut(),
                "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    socket
}

#[test]
fn nothing_that_a_terminal_obeys_is_printed() {
    const REPLIES: &[(&str, u16, &str)] = &[
        (
            "GET /wardian/containers ",
            200,
            "[{\"handle\":\"evil\u{202e}gpj.\u{200b}\\u001b[2J\u{9b}\",\"image\":\"a\u{2066}b\",\"state\":\"x\u{2028}y\",\"properties\":\
             {\"garden.state\":\"created\"},\"main\":{\"command\":[\"c\u{e0041}\",\"\\u009b\"]}}]",
        ),
        (
            "GET /containers/bulk_info",
            200,
            "{\"plain\":{\"Info\":{\"State\":\"act\u{2066}ive\",\"Events\":[\"x\u{2028}y\"]},\"Err\":null}}",
        ),
        ("GET /containers/bulk_metrics", 200, "{}"),
        (
            "GET /containers/plain/info",
            200,
            "{\"State\":\"a\u{e0041}\",\"Properties\":{\"k\u{202e}\":\"\\u009b\"}}",
        ),
        (
            "DELETE ",
            500,
            "{\"Type\":\"\",\"Message\":\"no\u{202e}way\u{7f}\\nx\",\"Handle\":\"\",\"ProcessID\":\"\",\"Binary\":\"\"}",
        ),
        ("POST /containers ", 200, "{\"Handle\":\"h\u{202e}\"}"),
    ];
    let dir = tempfile::tempdir().unwrap();
    let socket = hostile(dir.path(), REPLIES);
    for command in [
        &["ps"][..],
        &["ps", "-q"],
        &["ps", "--json"],
        &["inspect", "plain"],
        &["rm", "plain", "other"],
        &["create"],
    ] {
        let done = Command::new(WARDIAN).args(command).arg("--socket").arg(&socket).output().unwrap();
        let said =
            format!("{}{}", String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap());
        assert!(said.len() > 3, "{command:?}");
        let odd: Vec<char> = said.chars().filter(|c| !c.is_ascii_graphic() && !" \n".contains(*c)).collect();
        assert!(odd.is_empty(), "{command:?}: {odd:?} in {said}");
        if command == ["ps", "--json"] {
            // It means the same.
            let said: Value = serde_json::from_str(&said).unwrap();
            assert_eq!(said[0]["handle"], "evil\u{202e}gpj.\u{200b}\u{1b}[2J\u{9b}");
        }
    }
}
