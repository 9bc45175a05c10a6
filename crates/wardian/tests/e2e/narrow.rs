//! A server with little memory, to which everything is given that is to use it up.

use crate::attacks;
use crate::support::{STUCK, Server, end, listen, say, script};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use wardian_garden::wire::{ContainerSpec, ImageRef, Limits, MemoryLimits, PidLimits, ProcessSpec};
use wardian_garden::{Client, Io};

/// What the server has, page cache, sockets and pipes included.
const ROOM: u64 = 128 << 20;

/// A memory cgroup for a server.
struct Narrow {
    dir: PathBuf,
    v2: bool,
}

impl Narrow {
    fn make(name: &str) -> Self {
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let field = |line: &str, n: usize| line.split(' ').nth(n).unwrap_or_default().to_owned();
        let find = |kind: &str, option: &str| {
            let is = |line: &&str| line.contains(&format!(" - {kind} ")) && line.contains(option);
            text.lines().find(is).map(|line| PathBuf::from(field(line, 4)))
        };
        let v1 = find("cgroup", "memory");
        let v2 = v1.is_none();
        let dir = v1.or_else(|| find("cgroup2", "")).expect("a memory controller").join(name);
        std::fs::create_dir(&dir).unwrap();
        let narrow = Self { dir, v2 };
        let (limit, swap) = if v2 {
            ("memory.max", "memory.swap.max")
        } else {
            ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
        };
        narrow.write(limit, &ROOM.to_string());
        // There may be no swap to limit.
        let _ = std::fs::write(narrow.dir.join(swap), if v2 { "0".to_owned() } else { ROOM.to_string() });
        narrow
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.dir.join(file), text).unwrap_or_else(|e| panic!("{file}: {e}"));
    }

    /// Processes that were killed because there was no memory.
    fn killed(&self) -> u64 {
        let file = if self.v2 { "memory.events" } else { "memory.oom_control" };
        let text = std::fs::read_to_string(self.dir.join(file)).unwrap();
        let line = text.lines().find(|line| line.starts_with("oom_kill ")).unwrap();
        line.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// The command, which begins within.
    fn command(&self, wrapped: &Command) -> Command {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg("echo $$ >$0/cgroup.procs && exec \"$@\"").arg(&self.dir);
        command.arg(wrapped.get_program()).args(wrapped.get_args());
        command
    }
}

impl Drop for Narrow {
    fn drop(&mut self) {
        for _ in 0..100 {
            if std::fs::remove_dir(&self.dir).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A client that asks to be waited for, and reads no output.
fn waiter(server: &Server, text: &str) -> UnixStream {
    let body = format!("{{\"path\":\"sh\",\"args\":[\"-c\",\"{text}\"]}}");
    let mut stream = server.connect();
    write!(
        stream,
        "POST /containers/h/processes HTTP/1.1\r\nHost: api\r\nWardian-Wait-For: stdout,stderr\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut line = [0; 12];
    stream.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"HTTP/1.1 201");
    stream
}

#[tokio::test]
async fn clients_that_are_waited_for_and_read_nothing() {
    let (server, narrow, client) = start(&[]).await;
    let spec = ContainerSpec { handle: "h".into(), ..Default::default() };
    client.create(&spec).await.unwrap();
    let mut held = Vec::new();
    for n in 0..120 {
        held.push(waiter(&server, "cat /dev/zero >&2 & exec cat /dev/zero"));
        if n % 40 == 39 {
            lives(&server, &narrow, &format!("{} clients", n + 1)).await;
        }
    }
    // Who reads meanwhile gets everything, whether it is waited for or not.
    let much = "head -c 20000000 /dev/zero";
    let said = crate::commands::command(&server, &["exec", "h", "sh", "-c", much]).output().unwrap();
    assert_eq!((said.status.code(), said.stdout.len()), (Some(0), 20_000_000));
    let said = client.run("h", &script(much), listen()).await.unwrap();
    assert_eq!(end(said).await.out.len(), 20_000_000);
    client.stop("h", true).await.unwrap();
    lives(&server, &narrow, "a stop").await;
    drop(held);
    server.finish().await;
}

/// Requests whose buffers would stay with their connections, which the clients keep.
#[tokio::test]
async fn what_was_read_stays_with_no_connection() {
    let (server, narrow, _client) = start(&[]).await;
    let mut held: Vec<UnixStream> = Vec::new();
    let mut send = |request: &str, body: &[u8], answer: &[u8]| {
        let mut stream = server.connect();
        write!(stream, "{request} HTTP/1.1\r\nHost: api\r\nContent-Length: {}\r\n\r\n", body.len()).unwrap();
        // A refused body may be cut off.
        let _ = stream.write_all(body);
        let mut line = vec![0; answer.len()];
        stream.read_exact(&mut line).unwrap();
        assert_eq!(line, answer);
        held.push(stream);
    };
    // A head as long as it may be.
    let head =
        |path: &str| format!("GET {path} HTTP/1.1\r\nHost: api\r\nX: {}\r\n\r\n", "x".repeat(60 << 10));
    for n in 0..300 {
        let mut stream = server.connect();
        stream.write_all(head("/ping").as_bytes()).unwrap();
        let mut line = [0; 12];
        stream.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"HTTP/1.1 200", "{n}");
        send("PUT /containers/c/properties/k", &vec![b'x'; 1_048_000], b"HTTP/1.1 500");
        send("PUT /containers/c/stop", &vec![b' '; 32 << 10], b"HTTP/1.1 500");
    }
    lives(&server, &narrow, "answers").await;
    // Values cost more than their bytes.
    let keys: String = (0..250_000).map(|n| format!("\"{n}\":0,")).collect();
    for _ in 0..4 {
        send("POST /containers", format!("{{\"zz\":{{{keys}\"a\":0}}}}").as_bytes(), b"HTTP/1.1 500");
    }
    lives(&server, &narrow, "values").await;
    // Connections that have left HTTP, with bytes that came early, and with a long payload behind them.
    let mut listening = Vec::new();
    let payload = format!("{{\"signal\":0,\"x\":\"{}\"}}", "x".repeat(4_000_000));
    for n in 0..120 {
        let path = if n % 2 == 0 { "/wardian/events" } else { "/containers/c/processes/p" };
        let mut stream = server.connect();
        stream.write_all(head(path).as_bytes()).unwrap();
        let mut line = [0; 12];
        stream.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"HTTP/1.1 200");
        if n % 2 == 1 {
            stream.write_all(payload.as_bytes()).unwrap();
            stream.write_all(b"{}").unwrap();
        }
        listening.push(stream);
    }
    lives(&server, &narrow, "listeners").await;
    drop((held, listening));
    server.finish().await;
}

/// A server within, with a container `c` that has a process `p`.
async fn start(args: &[&str]) -> (Server, Narrow, Client) {
    let mut server = Server::start().await;
    server.terminate().await;
    let narrow = Narrow::make(&format!("narrow-{}", server.base().file_name().unwrap().display()));
    server.args = args.iter().map(|arg| (*arg).to_owned()).collect();
    let log = std::fs::OpenOptions::new().append(true).open(server.base().join("log")).unwrap();
    let mut command = narrow.command(&server.command());
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null()).stderr(log);
    server.restart_as(command).await;
    let client = server.create("c").await;
    let spec = ProcessSpec { id: "p".into(), ..script("sleep 100000") };
    client.run("c", &spec, Io::default()).await.unwrap();
    say(&client, "c", "head -c 30000000 /dev/zero >/dev/shm/f").await;
    (server, narrow, client)
}

/// The server is the same one, and does its work.
async fn lives(server: &Server, narrow: &Narrow, after: &str) {
    let client = server.client();
    let work = async { say(&client, "c", "echo works").await };
    let said = tokio::time::timeout(STUCK, work).await;
    assert_eq!(said.as_deref(), Ok("works"), "after {after}\n{}", server.log());
    assert_eq!(narrow.killed(), 0, "after {after}");
}

#[tokio::test]
async fn requests_and_replies() {
    let (server, narrow, _client) = start(&[]).await;
    for request in attacks::requests() {
        let shown = String::from_utf8_lossy(&request[..request.len().min(80)]).into_owned();
        let mut stream = server.connect();
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let _ = stream.write_all(&request);
        // Nobody reads it all.
        let _ = stream.read(&mut [0; 4096]);
        assert_eq!(narrow.killed(), 0, "after {shown}");
    }
    lives(&server, &narrow, "requests").await;
    let mut held = Vec::new();
    for half in attacks::halves() {
        for _ in 0..60 {
            let stream = server.connect();
            stream.set_nonblocking(true).unwrap();
            let _ = (&stream).write(&half);
            held.push((stream, half.clone()));
        }
        lives(&server, &narrow, &String::from_utf8_lossy(&half[..half.len().min(80)])).await;
    }
    // They go on as far as they are let.
    for _ in 0..200 {
        for (stream, half) in &mut held {
            if let Ok(sent) = stream.write(half) {
                half.drain(..sent.min(half.len()));
            }
        }
    }
    lives(&server, &narrow, "halves of requests").await;
    drop(held);
    server.finish().await;
}

#[tokio::test]
async fn containers_with_large_properties() {
    let (server, narrow, client) = start(&[]).await;
    let value = "v".repeat(100_000);
    let properties: BTreeMap<String, String> = (0..9).map(|n| (format!("k{n}"), value.clone())).collect();
    let mut made = 0;
    for n in 0..100 {
        let handle = format!("large{n}");
        let spec = ContainerSpec { handle, properties: properties.clone(), ..Default::default() };
        made += u32::from(client.create(&spec).await.is_ok());
    }
    assert!(made > 0);
    lives(&server, &narrow, "creates").await;
    let mut held = Vec::new();
    for _ in 0..100 {
        let mut stream = server.connect();
        stream.write_all(b"GET /containers/bulk_info HTTP/1.1\r\nHost: api\r\n\r\n").unwrap();
        held.push(stream);
    }
    lives(&server, &narrow, "a hundred bulk replies").await;
    drop(held);
    server.finish().await;
}

#[tokio::test]
async fn images() {
    let (server, narrow, client) = start(&[]).await;
    // In memory: the disk has enough to do.
    let dir = tempfile::Builder::new().prefix("wardian-e2e-").tempdir_in("/dev/shm").unwrap();
    let images = attacks::images(dir.path());
    for uri in &images {
        let shown = &uri[..uri.len().min(120)];
        let image = ImageRef { uri: uri.clone(), ..Default::default() };
        let spec = ContainerSpec { handle: "h".into(), image, ..Default::default() };
        let created = tokio::time::timeout(Duration::from_secs(240), client.create(&spec)).await;
        match created.unwrap_or_else(|_| panic!("{shown} takes for ever\n{}", server.log())) {
            Ok(handle) => client.destroy(&handle).await.unwrap(),
            Err(error) => assert!(error.to_string().len() < 2000, "{shown}: {}", error.to_string().len()),
        }
        lives(&server, &narrow, shown).await;
    }
    create_at_once(&server, images, Duration::from_secs(480)).await;
    lives(&server, &narrow, "all images at once").await;
    server.finish().await;
}

/// Creates a container of each image at the same time; whether that succeeds is not looked at.
async fn create_at_once(server: &Server, uris: impl IntoIterator<Item = String>, patience: Duration) {
    let mut creates = tokio::task::JoinSet::new();
    for uri in uris {
        let client = server.client();
        creates.spawn(async move {
            let image = ImageRef { uri, ..Default::default() };
            drop(client.create(&ContainerSpec { image, ..Default::default() }).await);
        });
    }
    let all = async { while creates.join_next().await.is_some() {} };
    tokio::time::timeout(patience, all).await.expect("they take for ever");
}

/// What takes memory while an image is opened: names, and links whose other names lie outside.
#[tokio::test]
async fn images_that_are_opened() {
    let (server, narrow, _client) = start(&[]).await;
    let dir = tempfile::Builder::new().prefix("wardian-e2e-").tempdir_in("/dev/shm").unwrap();
    for (name, shown) in [(attacks::linked(dir.path()), None), (attacks::names(dir.path()), Some("names"))] {
        let image = ImageRef { uri: name, ..Default::default() };
        let spec = ContainerSpec { handle: "h".into(), image, ..Default::default() };
        let client = server.client();
        let created = tokio::time::timeout(Duration::from_secs(240), client.create(&spec)).await;
        match (created.expect("it takes for ever"), shown) {
            (Ok(handle), None) => client.destroy(&handle).await.unwrap(),
            (Err(error), Some(shown)) => assert!(error.to_string().contains(shown), "{error}"),
            (made, _) => panic!("{made:?}"),
        }
        lives(&server, &narrow, "a directory").await;
    }
    let members: Vec<String> = (0..65_000).map(|n| format!("{n:05}-{}", "m".repeat(90))).collect();
    let members: Vec<(&str, &[u8])> = members.iter().map(|name| (name.as_str(), &[][..])).collect();
    let archive = dir.path().join("many.tar");
    std::fs::write(&archive, crate::support::tar_of(&members)).unwrap();
    let uris = (0..40).map(|n| {
        let scheme = if n % 2 == 0 { "docker-archive" } else { "oci-archive" };
        format!("{scheme}://{}:x{n}", archive.display())
    });
    create_at_once(&server, uris, Duration::from_secs(240)).await;
    lives(&server, &narrow, "forty archives with many names").await;
    server.finish().await;
}

#[tokio::test]
async fn output_of_containers() {
    let (server, narrow, client) = start(&[]).await;
    let limits = Limits {
        memory_limits: MemoryLimits { limit_in_bytes: 64 << 20 },
        pid_limits: PidLimits { max: 100 },
        ..Default::default()
    };
    client.create(&ContainerSpec { handle: "h".into(), limits, ..Default::default() }).await.unwrap();
    let mut held = Vec::new();
    for n in 0..32 {
        let text = if n % 2 == 0 { "yes 0123456789" } else { "while :; do echo; done" };
        held.push(client.run("h", &script(text), listen()).await.unwrap());
    }
    // Nobody reads.
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        lives(&server, &narrow, "output that nobody reads").await;
    }
    for process in &held {
        process.signal(true).await.unwrap();
    }
    for process in held {
        let _ = tokio::time::timeout(STUCK, end(process)).await.expect("it does not end");
    }
    lives(&server, &narrow, "output").await;
    server.finish().await;
}
