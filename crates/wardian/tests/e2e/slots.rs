//! Places that processes and their output need at the same time, and requests of clients that have gone.

use crate::door::{Papers, on_tcp, with_tls};
use crate::fake_server::{fake, wardian};
use crate::support::{STUCK, Server, WARDIAN, names, parent, say, script, signal};
use rustix::process::Signal;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use wardian_garden::Io;
use wardian_garden::wire::ContainerSpec;

/// Time in which nothing is expected to happen.
const PAUSE: Duration = Duration::from_millis(500);

/// All at once, each in a thread of its own.
fn all(count: usize, command: impl Fn() -> Output + Sync) -> Vec<Output> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(&command)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[track_caller]
fn have_all_printed(outputs: &[Output]) {
    for output in outputs {
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said == "start\nok\n", "{output:?}");
    }
}

/// Clients with processes that want two more connections each, while others wait for their first one.
#[tokio::test(flavor = "multi_thread")]
async fn more_processes_than_places_all_end() {
    let mut server = Server::start().await;
    server.terminate().await;
    let dir = tempfile::Builder::new().prefix("wardian-e2e-").tempdir_in("/dev/shm").unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o711)).unwrap();
    let socket = dir.path().join("open.sock");
    let listen = format!("unix:{}", socket.display());
    let args = ["--max-connections", "8", "--socket-mode", "0666", "--listen", &listen];
    server.args = args.map(str::to_owned).into();
    server.restart().await;
    let client = server.create("l").await;
    // The program as nobody finds it.
    let program = dir.path().join("wardian");
    crate::support::copy_program(WARDIAN, &program);
    let exec = |uid: u32, pause: &str| {
        let mut command = Command::new(&program);
        command.args(["exec", "l", "--", "sh", "-c", &format!("echo start; sleep {pause}; echo ok")]);
        command.env("WARDIAN_SOCKET", &socket).uid(uid).gid(uid).stdin(Stdio::null()).output().unwrap()
    };
    // Those that stand still do so for a minute.
    let begun = Instant::now();
    have_all_printed(&all(12, || exec(65534, "1")));
    have_all_printed(&all(64, || exec(65534, "0.2")));
    // More of the administrator's own than have places, and than may wait with others.
    have_all_printed(&all(150, || exec(0, "0.2")));
    assert!(begun.elapsed() < STUCK, "{:?}", begun.elapsed());
    // Nothing is held after their end.
    assert_eq!(say(&client, "l", "echo works").await, "works");
    server.finish().await;
}

/// What the requests are is seen inside TLS as well.
#[tokio::test(flavor = "multi_thread")]
async fn more_processes_than_places_all_end_with_tls() {
    let papers = Papers::new();
    let (server, address) = with_tls(&papers, "ours.server", &["--max-connections", "8"]).await;
    server.create("l").await;
    let tcp = format!("tcp:{address}");
    let exec = || {
        let args = ["exec", "l", "--", "sh", "-c", "echo start; sleep 1; echo ok"];
        papers.wardian(&tcp, "ours.client", &args, Path::new("/dev/null"))
    };
    let begun = Instant::now();
    have_all_printed(&all(12, exec));
    assert!(begun.elapsed() < STUCK, "{:?}", begun.elapsed());
    server.finish().await;
}

fn request(to: SocketAddr, line: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(to).unwrap();
    let length = body.len();
    let head = format!("{line} HTTP/1.1\r\nHost: api\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

/// Whether it answers in this time, with what the answer begins.
fn answer(stream: &mut TcpStream, within: Duration) -> Option<String> {
    stream.set_read_timeout(Some(within)).unwrap();
    let mut buffer = [0; 4096];
    match stream.read(&mut buffer) {
        Ok(n) => Some(String::from_utf8_lossy(&buffer[..n]).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}

/// Who has connected and has no processor for a while before it asks loses nothing to those that are faster.
#[tokio::test]
async fn a_slow_client_is_not_closed_for_fast_ones() {
    let (server, address) = on_tcp(&["--insecure-listen", "--max-connections", "4"]).await;
    let mut slow: Vec<_> = (0..4).map(|_| TcpStream::connect(address).unwrap()).collect();
    let begun = Instant::now();
    while begun.elapsed() < PAUSE {
        let mut fast: Vec<_> = (0..8).map(|_| request(address, "GET /ping", "")).collect();
        for stream in &mut fast {
            assert!(answer(stream, STUCK).unwrap().starts_with("HTTP/1.1 200"));
        }
    }
    for stream in &mut slow {
        stream.write_all(b"GET /ping HTTP/1.1\r\nHost: api\r\n\r\n").unwrap();
        assert!(answer(stream, STUCK).unwrap().starts_with("HTTP/1.1 200"));
    }
    server.finish().await;
}

/// Each stream of one's own process is let in beside the others, once, and nothing else is.
#[tokio::test]
async fn only_the_streams_of_processes_are_let_in_beside_the_others() {
    let (server, address) = on_tcp(&["--insecure-listen", "--max-connections", "4"]).await;
    let client = server.create("c").await;
    let spec = serde_json::json!({ "path": "sh", "args": ["-c", "echo hello; cat"] }).to_string();
    let process = request(address, "POST /containers/c/processes", &spec);
    let mut lines = BufReader::new(process.try_clone().unwrap()).lines();
    let first = lines.find(|line| line.as_ref().is_ok_and(|line| line.starts_with('{'))).unwrap().unwrap();
    let first: serde_json::Value = serde_json::from_str(&first).unwrap();
    let (pid, id) = (first["process_id"].as_str().unwrap(), first["stream_id"].as_str().unwrap());
    let mut listening: Vec<_> = (0..3).map(|_| request(address, "GET /wardian/events", "")).collect();
    for stream in &mut listening {
        assert!(answer(stream, STUCK).unwrap().starts_with("HTTP/1.1 200"));
    }
    let at = |id: &str, name: &str| format!("GET /containers/c/processes/{pid}/attaches/{id}/{name}");
    let invented = format!("{:032x}", 1);
    let waiting = [
        "GET /ping".to_owned(),
        at(&invented, "stdout"),
        at(id, "stdin"),
        at(id, "stdout").replace("/c/", "/other/"),
        at(id, "stdout").replace("GET", "PUT"),
    ];
    let mut waiting: Vec<_> = waiting.iter().map(|line| request(address, line, "")).collect();
    std::thread::sleep(PAUSE);
    assert!(waiting.iter_mut().all(|stream| answer(stream, Duration::from_millis(10)).is_none()));
    let mut streams = ["stdout", "stderr"].map(|name| request(address, &at(id, name), ""));
    for stream in &mut streams {
        assert!(answer(stream, STUCK).unwrap().starts_with("HTTP/1.1 200"));
    }
    // A second time they are nothing special.
    let mut again = ["stdout", "stderr"].map(|name| request(address, &at(id, name), ""));
    std::thread::sleep(PAUSE);
    assert!(again.iter_mut().all(|stream| answer(stream, Duration::from_millis(10)).is_none()));
    // When the process has ended there is a place, and then one after the other has it.
    let (_, mut input) = (lines, process);
    input.write_all(format!("{{\"process_id\":\"{pid}\",\"source\":0}}\n").as_bytes()).unwrap();
    let mut rest = Vec::new();
    streams[0].set_read_timeout(Some(STUCK)).unwrap();
    streams[0].read_to_end(&mut rest).unwrap();
    drop((streams, input, listening));
    for stream in waiting.iter_mut().chain(&mut again) {
        answer(stream, STUCK).expect("it waits for ever");
        stream.shutdown(std::net::Shutdown::Both).unwrap();
    }
    assert_eq!(say(&client, "c", "echo works").await, "works");
    server.finish().await;
}

/// Who cannot have the output of a process is told that there is a process.
#[test]
fn output_that_is_refused_does_not_hide_the_process() {
    let address = fake(|line, stream| {
        if line.starts_with("POST /containers/c/processes ") {
            let first = "HTTP/1.1 201 Created\r\n\r\n{\"process_id\":\"p1\",\"stream_id\":\"s\"}\n";
            stream.write_all(first.as_bytes()).unwrap();
            let _ = std::io::copy(stream, &mut std::io::sink());
        }
    });
    let output = wardian(&address, &["exec", "c", "true"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(said.contains("was started") && said.contains("`wardian attach c p1`"), "{said}");
}

/// A server that has stood still does not work for those who have given up meanwhile, and does for who still waits.
#[tokio::test]
async fn nothing_is_begun_for_a_client_that_has_gone() {
    let server = Server::start().await;
    let client = server.create("old").await;
    let sleeper = client.run("old", &script("exec sleep 1000"), Io::default()).await.unwrap();
    signal(server.pid(), Signal::STOP);
    let given_up = |args: &[&str]| {
        let mut command = Command::new("timeout");
        command.args(["-s", "KILL", "1", &WARDIAN]).args(args).env("WARDIAN_SOCKET", server.socket());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let mut gone = [
        given_up(&["create", "--name", "nv"]),
        given_up(&["destroy", "old"]),
        given_up(&["exec", "-d", "--user", "root", "old", "touch", "/begun"]),
    ];
    for child in &mut gone {
        assert!(!child.wait().unwrap().success());
    }
    // One that has said all, and closed its side, is still there.
    let mut half = server.connect();
    let body = "{\"handle\":\"half\"}";
    let length = body.len();
    let create = format!(
        "POST /containers HTTP/1.1\r\nHost: api\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    half.write_all(create.as_bytes()).unwrap();
    half.shutdown(std::net::Shutdown::Write).unwrap();
    // timeout(1) ends with its child, whose connections may be closed a moment later.
    tokio::time::sleep(PAUSE).await;
    signal(server.pid(), Signal::CONT);
    let mut reply = String::new();
    half.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    tokio::time::sleep(PAUSE).await;
    let mut handles = client.list(&[].into()).await.unwrap();
    handles.sort();
    assert_eq!(handles, ["half", "old"]);
    assert_eq!(names(&server.run().join("containers")).len(), 2);
    assert_eq!(say(&client, "old", "ls /begun 2>/dev/null || echo none").await, "none");
    drop(sleeper);
    server.finish().await;
}

/// Nor when it has gone while its create waited for others.
#[tokio::test]
async fn a_create_whose_client_has_gone_gives_its_turn_away() {
    let server = Server::start_with(&["--max-concurrent-creates", "1"]).await;
    server.settled_descriptors().await;
    // One is held up by its keeper, whichever of those that have been started ahead it gets.
    let keepers: Vec<u32> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .filter(|pid| parent(*pid) == Some(server.pid()))
        .collect();
    assert!(!keepers.is_empty());
    keepers.iter().for_each(|keeper| signal(*keeper, Signal::STOP));
    let client = server.client();
    let first = tokio::spawn(async move {
        client.create(&ContainerSpec { handle: "first".into(), ..Default::default() }).await
    });
    tokio::time::sleep(PAUSE).await;
    let mut gone = server.connect();
    let body = "{\"handle\":\"gone\"}";
    let head = format!("POST /containers HTTP/1.1\r\nHost: api\r\nContent-Length: {}\r\n\r\n", body.len());
    gone.write_all((head + body).as_bytes()).unwrap();
    tokio::time::sleep(PAUSE).await;
    drop(gone);
    tokio::time::sleep(2 * PAUSE).await;
    assert!(!first.is_finished());
    keepers.iter().for_each(|keeper| signal(*keeper, Signal::CONT));
    first.await.unwrap().unwrap();
    let client = server.create("last").await;
    let mut handles = client.list(&[].into()).await.unwrap();
    handles.sort();
    assert_eq!(handles, ["first", "last"]);
    server.finish().await;
}
