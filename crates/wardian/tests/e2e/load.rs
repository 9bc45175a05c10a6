//! Clients that are many, slow, or gone, and bounds that keep the server on its feet.

use crate::support::{STUCK, Server, end, listen, message, say, script, sh, tar_of};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use wardian_garden::wire::{ContainerSpec, ProcessSpec};
use wardian_garden::{Client, ErrorKind};

fn spec(handle: &str) -> ContainerSpec {
    ContainerSpec { handle: handle.into(), ..Default::default() }
}

/// Wait until the server has no more descriptors than this.
async fn until_descriptors(server: &Server, most: usize) {
    let started = Instant::now();
    while server.descriptors() > most {
        assert!(
            started.elapsed() < STUCK,
            "{} descriptors, there were {most}\n{}",
            server.descriptors(),
            server.log()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether the server closes this connection.
async fn until_closed(stream: &mut UnixStream) {
    stream.set_nonblocking(true).unwrap();
    let started = Instant::now();
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return,
            _ => assert!(started.elapsed() < STUCK, "it stays open"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn heads_that_do_not_come() {
    let server = Server::start_with(&["--read-header-timeout", "1s"]).await;
    let before = server.settled_descriptors().await;
    let mut slow: Vec<UnixStream> = (0..50).map(|_| server.connect()).collect();
    let started = Instant::now();
    // A byte now and then, for as long as the server lets them.
    let mut gone = 0;
    for byte in b"GET /containers HTTP/1.1\r\nHost: api\r\nX-Long: ".iter().chain(std::iter::repeat(&b'x')) {
        gone = slow.iter_mut().filter_map(|stream| stream.write_all(&[*byte]).err()).count();
        if gone == slow.len() {
            break;
        }
        assert!(started.elapsed() < STUCK, "{gone} of {} were cut off", slow.len());
        server.client().ping().await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(gone, slow.len());
    drop(slow);
    until_descriptors(&server, before + 1).await;
    server.finish().await;
}

#[tokio::test]
async fn connections_that_say_nothing() {
    let server = Server::start().await;
    let idle: Vec<UnixStream> = (0..1000).map(|_| server.connect()).collect();
    let client = server.create("c").await;
    assert_eq!(say(&client, "c", "echo works").await, "works");
    client.destroy("c").await.unwrap();
    drop(idle);
    server.finish().await;
}

#[tokio::test]
async fn the_longest_idle_makes_room() {
    let server = Server::start_with(&["--max-connections", "20"]).await;
    let client = server.create("c").await;
    // Those that are at work stay.
    let process = client.run("c", &script("read line; echo $line"), listen()).await.unwrap();
    let mut idle: Vec<UnixStream> = (0..100).map(|_| server.connect()).collect();
    for _ in 0..50 {
        client.ping().await.unwrap();
    }
    assert_eq!(say(&client, "c", "echo works").await, "works");
    for stream in &mut idle[..50] {
        until_closed(stream).await;
    }
    drop(idle);
    assert_eq!(process.id().len(), 36);
    client.attach("c", process.id(), listen()).await.unwrap();
    drop(process);
    server.finish().await;
}

#[tokio::test]
async fn what_is_no_text() {
    let server = Server::start().await;
    let client = server.create("u").await;
    let post = |line: &str, body: &[u8]| {
        let head = format!(
            "{line} HTTP/1.1\r\nHost: api\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        server.raw([head.as_bytes(), body].concat())
    };
    // In strings, what is no UTF-8 becomes U+FFFD, as Go's decoder does it; elsewhere it is an error.
    assert!(
        post("PUT /containers/u/properties/k", b"{\"value\":\"a\xed\xa0\x80\"}").starts_with("HTTP/1.1 200 ")
    );
    assert!(client.property("u", "k").await.unwrap().starts_with("a\u{fffd}"));
    for (line, body) in [
        ("POST /containers", &b"\xff\xfe{}"[..]),
        ("POST /containers/u/processes", b"{\"path\":\"\xc3\x28\"}"),
        ("POST /containers/u/processes", b"{\xff}"),
        ("PUT /containers/u/grace_time", b"\xff"),
    ] {
        let reply = post(line, body);
        assert!(reply.starts_with("HTTP/1.1 500 ") && reply.contains("\"Message\":\""), "{line}: {reply}");
    }
    for path in ["/containers/%ff/info", "/containers/u/properties/%c3%28", "/containers/%zz/metrics"] {
        let reply = server.http(&format!("GET {path}"), "", "");
        assert!(reply.starts_with("HTTP/1.1 400 "), "{path}: {reply}");
    }
    for raw in
        [&b"GET /containers/\xff HTTP/1.1\r\nHost: api\r\n\r\n"[..], b"GET /ping HTTP/1.1\r\nX: \x00\r\n\r\n"]
    {
        let reply = server.raw(raw);
        assert!(reply.is_empty() || reply.starts_with("HTTP/1.1 4"), "{reply}");
    }
    // What cannot be decoded is passed over in a query, and names nobody.
    assert!(server.http("GET /containers?%ff=x", "", "").ends_with("{\"Handles\":[\"u\"]}\n"));
    assert_eq!(client.list(&BTreeMap::new()).await.unwrap(), ["u"]);
    server.finish().await;
}

#[tokio::test]
async fn one_id_for_two_processes() {
    let server = Server::start().await;
    let client = server.create("c").await;
    for round in 0..20 {
        let spec = ProcessSpec { id: format!("same{round}"), ..script("sleep 0.1; exit 3") };
        let (a, b) = tokio::join!(client.run("c", &spec, listen()), client.run("c", &spec, listen()));
        let (won, lost) = match (a, b) {
            (Ok(process), Err(error)) | (Err(error), Ok(process)) => (process, error),
            other => panic!("{other:?}"),
        };
        assert_eq!(lost.to_string(), format!("process ID '{}' already in use", spec.id));
        assert_eq!(end(won).await.code, 3);
    }
    let error = client.attach("c", "nope", listen()).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (Some(ErrorKind::ProcessNotFound), "unknown process: nope")
    );
    // Streams that nobody has opened are empty, whatever their names.
    for stream in ["99999", "-1", "x", "18446744073709551616"] {
        let mut connection = server.connect();
        let path = format!("/containers/c/processes/nope/attaches/{stream}/stdout");
        write!(connection, "GET {path} HTTP/1.1\r\nHost: api\r\n\r\n").unwrap();
        let mut reply = String::new();
        connection.read_to_string(&mut reply).unwrap();
        assert!(reply.starts_with("HTTP/1.1 200 ") && reply.ends_with("\r\n\r\n"), "{stream}: {reply}");
    }
    server.finish().await;
}

#[tokio::test]
async fn ten_thousand_properties() {
    let mut server = Server::start().await;
    let client = server.client();
    let many: BTreeMap<String, String> =
        (0..10_000).map(|n| (format!("key{n}"), format!("value{n}"))).collect();
    client.create(&ContainerSpec { properties: many.clone(), ..spec("p") }).await.unwrap();
    client.set_property("p", "key77", "other").await.unwrap();
    client.remove_property("p", "key78").await.unwrap();
    let mut wanted = many;
    wanted.insert("key77".into(), "other".into());
    wanted.remove("key78");
    wanted.insert("garden.state".into(), "created".into());
    for round in 0..2 {
        if round == 1 {
            server.kill9();
            server.restart().await;
        }
        assert_eq!(client.properties("p").await.unwrap(), wanted);
        assert_eq!(client.info("p").await.unwrap().properties.as_ref(), Some(&wanted));
        // More than a request's head may hold.
        assert!(client.list(&wanted).await.is_err());
        let mut filter: BTreeMap<String, String> = [("key77".to_owned(), "other".to_owned())].into();
        assert_eq!(client.list(&filter).await.unwrap(), ["p"]);
        filter.insert("key9999".into(), "no".into());
        assert!(client.list(&filter).await.unwrap().is_empty());
    }
    server.finish().await;
}

/// Sixteen clients make and destroy one and the same container.
#[tokio::test]
async fn one_handle_for_all() {
    let server = Server::start().await;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let client = server.client();
        clients.spawn(async move {
            let mut made = 0;
            for _ in 0..63 {
                match client.create(&spec("one")).await {
                    Ok(_) => made += 1,
                    Err(error) => assert_eq!(error.to_string(), "Handle 'one' already in use"),
                }
                // Whatever state it is in, nobody gets stuck on it.
                drop(client.info("one").await);
                drop(client.run("one", &script("true"), listen()).await);
                if let Err(error) = client.destroy("one").await {
                    let known = ["unknown handle: one", "container already being destroyed"];
                    assert!(known.contains(&error.to_string().as_str()), "{error}");
                }
            }
            made
        });
    }
    let mut made = 0;
    while let Some(done) = clients.join_next().await {
        made += done.unwrap();
    }
    // How often is chance; once it must be.
    assert!(made >= 1, "{made}");
    assert!(server.client().list(&BTreeMap::new()).await.unwrap().len() <= 1);
    server.finish().await;
}

/// What a client sends, and after which of its parts it dies; `Read`: it first waits for the answer's beginning.
enum Part {
    Send(Vec<u8>),
    Read,
}

/// Die after each part, and within each.
async fn die_everywhere(server: &Server, parts: &[Part]) {
    for last in 0..=parts.len() {
        for half in [false, true] {
            let mut stream = server.connect();
            for (n, part) in parts.iter().enumerate().take(last + 1) {
                match part {
                    Part::Send(bytes) if n < last => stream.write_all(bytes).unwrap(),
                    Part::Send(bytes) if half => stream.write_all(&bytes[..bytes.len() / 2]).unwrap(),
                    Part::Read if n < last => stream.read_exact(&mut [0; 1]).unwrap(),
                    _ => {}
                }
            }
            drop(stream);
        }
    }
}

fn head(line: &str, length: Option<usize>) -> Part {
    let length = length.map_or(String::new(), |length| format!("Content-Length: {length}\r\n"));
    Part::Send(format!("{line} HTTP/1.1\r\nHost: api\r\n{length}\r\n").into_bytes())
}

fn text(text: &str) -> Part {
    Part::Send(text.as_bytes().to_vec())
}

#[tokio::test]
async fn clients_that_die_at_every_step() {
    let server = Server::start().await;
    let client = server.create("d").await;
    assert_eq!(sh(&client, "d", "head -c 3000000 /dev/zero > /big").await.code, 0);
    let waiting = ProcessSpec { id: "waiting".into(), ..script("sleep 1000") };
    drop(client.run("d", &waiting, listen()).await.unwrap());
    // What the server opens once and keeps is open by now.
    let before = server.settled_descriptors().await;

    // Each of these ends with its input.
    let run = "{\"path\":\"cat\"}\n";
    let payload = "{\"process_id\":\"p\",\"source\":0,\"data\":\"hello\\n\"}\n";
    let line = "POST /containers/d/processes";
    let control =
        || vec![head(line, Some(run.len())), text(run), Part::Read, text(payload), text("{\"signal\":0}\n")];
    die_everywhere(&server, &control()).await;
    let attach = "GET /containers/d/processes/waiting";
    die_everywhere(&server, &[head(attach, None), Part::Read, text(payload)]).await;

    let spew = ProcessSpec { id: "spew".into(), ..script("yes") };
    let process = client.run("d", &spew, listen()).await.unwrap();
    let started = Instant::now();
    let mut attached = server.connect();
    write!(attached, "GET /containers/d/processes/spew HTTP/1.1\r\nHost: api\r\n\r\n").unwrap();
    let mut reply = String::new();
    while !reply.contains("stream_id") || !reply.ends_with('\n') {
        let mut byte = [0];
        attached.read_exact(&mut byte).unwrap();
        assert!(started.elapsed() < STUCK, "{reply}");
        reply.push(char::from(byte[0]));
    }
    let stream = reply.rsplit_once("\"stream_id\":\"").unwrap().1.split('"').next().unwrap();
    for which in ["stdout", "stderr"] {
        let line = format!("GET /containers/d/processes/spew/attaches/{stream}/{which}");
        let parts =
            if which == "stdout" { vec![head(&line, None), Part::Read] } else { vec![head(&line, None)] };
        die_everywhere(&server, &parts).await;
    }
    drop(attached);
    process.signal(true).await.unwrap();
    end(process).await;

    let tar = tar_of(&[("a", &[7; 300_000]), ("b", b"x")]);
    let line = "PUT /containers/d/files?user=&destination=%2Fin";
    let (first, rest) = tar.split_at(1000);
    let parts =
        [head(line, Some(tar.len())), Part::Send(first.to_vec()), Part::Send(rest.to_vec()), Part::Read];
    die_everywhere(&server, &parts).await;
    let chunk = |data: &[u8]| [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat();
    let chunked = format!("{line} HTTP/1.1\r\nHost: api\r\nTransfer-Encoding: chunked\r\n\r\n");
    let parts =
        [text(&chunked), Part::Send(chunk(first)), Part::Send(chunk(rest)), text("0\r\n\r\n"), Part::Read];
    die_everywhere(&server, &parts).await;
    let out = "GET /containers/d/files?user=&source=%2Fbig";
    die_everywhere(&server, &[head(out, None), Part::Read, Part::Read]).await;

    let calls = [
        ("POST /containers", "{\"handle\":\"made\"}"),
        ("PUT /containers/d/stop", "{\"kill\":tru"),
        ("PUT /containers/d/properties/k", "{\"value\":\"v\"}"),
        ("PUT /containers/d/grace_time", "3600000000000"),
    ];
    for (line, body) in calls {
        die_everywhere(&server, &[head(line, Some(body.len())), text(body)]).await;
    }
    die_everywhere(&server, &[head("GET /containers/d/metrics", None), Part::Read]).await;

    assert_eq!(say(&client, "d", "echo lives").await, "lives");
    client.attach("d", "waiting", listen()).await.unwrap().signal(true).await.unwrap();
    server.until_idle("d").await;
    let started = Instant::now();
    // The last one that asked for it may still get it.
    while client.destroy("made").await.is_err() && started.elapsed() < Duration::from_secs(2) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    until_descriptors(&server, before).await;
    server.finish().await;
}

#[tokio::test]
async fn paths_that_go_in_circles() {
    let server = Server::start().await;
    let client = server.create("c").await;
    say(&client, "c", "ln -s /b /a; ln -s /a /b; ln -s self /self; mkdir /in; ln -s /a /in/loop").await;
    let tar = || std::io::Cursor::new(tar_of(&[("f", b"x")]));
    for path in ["/a", "/a/x", "/self", "/self/x", "/in/loop"] {
        let error = message(client.stream_in("c", "", path, tar(), None).await);
        assert!(error.contains("symbolic link"), "{path}: {error}");
        let out = async {
            let mut all = Vec::new();
            let mut reader = client.stream_out("c", "", path).await?;
            tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut all).await?;
            wardian_garden::Result::Ok(all)
        };
        // A link itself can be packed, what lies behind it cannot.
        if path.ends_with("/x") {
            assert!(out.await.is_err(), "{path}");
        } else {
            drop(out.await);
        }
    }
    // A process whose directory or program is one.
    for spec in [
        ProcessSpec { dir: "/a".into(), ..script("true") },
        ProcessSpec { path: "/a".into(), ..Default::default() },
    ] {
        assert!(client.run("c", &spec, listen()).await.is_err(), "{spec:?}");
    }
    server.until_idle("c").await;
    assert_eq!(say(&client, "c", "echo lives").await, "lives");
    server.finish().await;
}

/// A small file system of our own.
struct Small(PathBuf);

impl Small {
    fn new(at: &Path) -> Self {
        std::fs::create_dir(at).unwrap();
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m,mode=0777", "none"]).arg(at).status();
        assert!(mount.unwrap().success());
        Self(at.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_disk_that_is_full() {
    let server = Server::start().await;
    let client = server.client();
    let small = Small::new(&server.base().join("small"));
    let bind = wardian_garden::wire::BindMount {
        src_path: small.0.to_str().unwrap().into(),
        dst_path: "/small".into(),
        mode: 1,
        origin: 0,
        idmap: false,
    };
    client.create(&ContainerSpec { bind_mounts: vec![bind], ..spec("f") }).await.unwrap();
    let big = tar_of(&[("big", &[1; 8 << 20])]);
    for length in [Some(big.len() as u64), None] {
        let tar = std::io::Cursor::new(big.clone());
        let error = message(client.stream_in("f", "", "/small/in", tar, length).await);
        assert!(error.contains("No space left"), "{error}");
    }
    let full = "head -c 9000000 /dev/zero > /small/more";
    assert_ne!(sh(&client, "f", full).await.code, 0);
    // Elsewhere there is room, and there it is again after some was given back.
    client.stream_in("f", "", "/elsewhere", std::io::Cursor::new(big.clone()), None).await.unwrap();
    say(&client, "f", "rm -r /small/*").await;
    client.stream_in("f", "", "/small/in", std::io::Cursor::new(tar_of(&[("f", b"x")])), None).await.unwrap();
    server.until_idle("f").await;
    client.destroy("f").await.unwrap();
    drop(small);
    server.finish().await;
}

#[tokio::test]
async fn more_creates_than_the_server_will_take() {
    let server = Server::start_with(&["--max-concurrent-creates", "1", "--max-queued-creates", "2"]).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..24 {
        let client = server.client();
        tasks.spawn(async move { (n, client.create(&spec(&format!("c{n}"))).await) });
    }
    let (mut made, mut refused) = (0, Vec::new());
    while let Some(done) = tasks.join_next().await {
        match done.unwrap() {
            (_, Ok(_)) => made += 1,
            (n, Err(error)) => {
                assert_eq!(error.kind(), Some(ErrorKind::ServiceUnavailable), "{error}");
                assert!(error.to_string().contains("try again"), "{error}");
                refused.push(n);
            }
        }
    }
    assert!(made >= 3, "{made}");
    // Whoever was refused has left nothing, and comes again.
    for n in refused {
        server.client().create(&spec(&format!("c{n}"))).await.unwrap();
    }
    assert_eq!(server.client().list(&BTreeMap::new()).await.unwrap().len(), 24);
    server.finish().await;
}

#[tokio::test]
async fn no_more_containers_than_allowed() {
    let server = Server::start_with(&["--max-containers", "2", "--disable-privileged-containers"]).await;
    let client = server.create("a").await;
    server.create("b").await;
    assert_eq!(message(client.create(&spec("c")).await), "max containers reached");
    assert_eq!(client.capacity().await.unwrap().max_containers, 2);
    client.destroy("a").await.unwrap();
    let privileged = ContainerSpec { privileged: true, ..spec("c") };
    assert_eq!(message(client.create(&privileged).await), "privileged container creation is disabled");
    server.create("c").await;
    server.finish().await;
    let server = Server::start().await;
    assert_eq!(server.client().capacity().await.unwrap().max_containers, u64::MAX);
    server.finish().await;
}

/// A request to the debug server; its whole reply.
fn ask(socket: &Path, line: &str, body: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(STUCK)).unwrap();
    let length = body.len();
    let request =
        format!("{line} HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
    // It may answer, and close, before it has read everything.
    let _ = stream.write_all(request.as_bytes());
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    String::from_utf8(reply).unwrap()
}

#[tokio::test]
async fn the_debug_server() {
    let mut server = Server::start().await;
    server.terminate().await;
    let socket = server.run().join("debug.sock");
    server.args = vec!["--debug-listen".into(), format!("unix:{}", socket.display())];
    server.restart().await;
    server.create("c").await;
    let reply = ask(&socket, "GET /debug/vars", "");
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("application/json"), "{head}");
    let vars: serde_json::Value = serde_json::from_str(body).unwrap();
    assert!(vars["memstats"]["Alloc"].as_u64().unwrap() > 1 << 20, "{vars}");
    assert!(vars["numCPUS"].as_u64().unwrap() > 0 && vars["numGoRoutines"].as_u64().unwrap() > 0, "{vars}");
    assert_eq!(
        (vars["depotDirs"].as_u64(), vars["loopDevices"].as_u64(), vars["backingStores"].as_u64()),
        (Some(1), Some(0), Some(0))
    );
    assert!(vars["cmdline"].as_array().unwrap().iter().any(|arg| arg == "--debug-listen"), "{vars}");

    let failure = || server.http("GET /containers/nope/info", "", "");
    let logged = || server.log().matches("unknown handle: nope").count();
    failure();
    assert_eq!(logged(), 1);
    assert!(ask(&socket, "POST /log-level", "fatal").starts_with("HTTP/1.1 200 "));
    failure();
    assert_eq!(logged(), 1);
    for level in ["d", "1", "info\n"] {
        assert!(ask(&socket, "POST /log-level", level).starts_with("HTTP/1.1 200 "), "{level}");
    }
    failure();
    assert_eq!(logged(), 2);
    for (line, body) in [("POST /log-level", "loud"), ("POST /log-level", ""), ("GET /log-level", "info")] {
        assert!(ask(&socket, line, body).starts_with("HTTP/1.1 400 "), "{line} {body}");
    }
    for path in ["/debug/pprof/", "/debug/pprof/heap", "/block-profile-rate", "/mutex-profile-fraction"] {
        let reply = ask(&socket, &format!("GET {path}"), "");
        assert!(reply.starts_with("HTTP/1.1 404 ") && reply.contains("Go's profiler"), "{path}: {reply}");
    }
    // The API is not there.
    assert!(ask(&socket, "GET /containers", "").starts_with("HTTP/1.1 404 "));
    server.finish().await;
}

#[tokio::test]
async fn a_trace_goes_into_the_log() {
    let server = Server::start().await;
    let id = "5be2a88f-a549-464b-74da-a4517e49b3f3";
    server.http("POST /containers", &format!("X-Vcap-Request-Id: {id}\r\n"), "{\"handle\":\"t\"}");
    server.http("GET /containers/nope/info", &format!("x-vcap-request-id: {id}\r\n"), "");
    server.http("GET /containers/nope/info", "X-Vcap-Request-Id: \"evil\r\n", "");
    let log = server.log();
    let lines: Vec<&str> =
        log.lines().filter(|line| line.contains("5be2a88fa549464b74daa4517e49b3f3")).collect();
    assert!(lines.iter().any(|line| line.contains("create.done")), "{log}");
    assert!(lines.iter().any(|line| line.contains("unknown handle: nope")), "{log}");
    assert!(lines.iter().all(|line| line.contains("trace-id") && line.contains("span-id")), "{log}");
    assert!(!log.contains("evil"), "{log}");
    server.finish().await;
}

async fn rounds(client: &Client, range: std::ops::Range<u32>) {
    let numbers = std::sync::Arc::new(std::sync::Mutex::new(range));
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (client, numbers) = (client.clone(), numbers.clone());
        workers.spawn(async move {
            loop {
                let Some(n) = numbers.lock().unwrap().next() else { return };
                let handle = format!("round{n}");
                client.create(&spec(&handle)).await.unwrap();
                let done = sh(&client, &handle, "echo out; echo err >&2; exit 7").await;
                assert_eq!((done.code, done.out.as_str(), done.err.as_str()), (7, "out\n", "err\n"));
                client.destroy(&handle).await.unwrap();
            }
        });
    }
    while let Some(done) = workers.join_next().await {
        done.unwrap();
    }
}

/// Ten minutes: `./dev test --long`.
#[tokio::test]
#[ignore = "long"]
async fn ten_thousand_rounds() {
    // The output of what has ended can be asked for, for so long.
    const LINGER: Duration = Duration::from_secs(65);
    crate::watchdog::allow(Duration::from_secs(3 * 3600));
    let server = Server::start().await;
    let client = server.client();
    let started = Instant::now();
    let mut seen = Vec::new();
    for range in [0..1000, 1000..5000, 5000..10_000] {
        let end = range.end;
        rounds(&client, range).await;
        tokio::time::sleep(LINGER).await;
        seen.push((server.memory("VmRSS"), server.settled_descriptors().await));
        println!(
            "{end} rounds of create, run, destroy: the server has {} KB of memory and {} descriptors after {:.0} s",
            seen[seen.len() - 1].0,
            seen[seen.len() - 1].1,
            started.elapsed().as_secs_f64()
        );
    }
    // What is remembered of the last operations, diagnoses of slow ones included, and the allocator's arenas fill up at
    // first. After that a kilobyte a round would be 5 MB.
    assert!(seen[2].0 < seen[1].0 + 4 * 1024 && seen[2].0 < seen[0].0 + 40 * 1024, "{seen:?}");
    assert!(seen[2].1 <= seen[0].1 + 20, "{seen:?}");
    crate::cached::until_dropped(&server).await;
    let dead = crate::cached::dead(&server);
    assert!(dead <= 20, "{dead} dead memory cgroups");
    server.finish().await;
}
