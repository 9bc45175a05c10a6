//! Clients and containers that hold what others need: uploads that send nothing, helpers that stand still, output that
//! nobody reads, input that nobody takes.

use crate::support::{STUCK, Server, end, init, listen, members, noise, say, script, sh, signal, tar_of};
use rustix::process::Signal;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use wardian_garden::Io;
use wardian_garden::wire::ProcessSpec;

const FILES: &str =
    "PUT /containers/c/files?user=&destination=%2Fin HTTP/1.1\r\nHost: api\r\nConnection: close\r\n";

async fn until(what: &str, server: &Server, mut ready: impl FnMut() -> bool) {
    let started = Instant::now();
    while !ready() {
        assert!(started.elapsed() < STUCK, "{what}\n{}", server.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Everything that still comes on a connection.
fn rest(mut stream: UnixStream) -> String {
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    String::from_utf8_lossy(&reply).into_owned()
}

/// The process of a transfer.
async fn helper(server: &Server) -> u32 {
    let id = server.id("c").await;
    // Pid 1 has its name a moment after its start, and must not be taken for a helper before.
    init(server, "c").await;
    let mut found = Vec::new();
    until("no helper", server, || {
        let is_helper = |pid: &u32| {
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            comm.trim() != "garden-init"
        };
        found = members(&id).into_iter().filter(is_helper).collect::<Vec<_>>();
        found.len() == 1
    })
    .await;
    found[0]
}

/// Begin a request that takes its connection over: the connection, and its stream's number.
fn begin(server: &Server, request: &str) -> (UnixStream, String) {
    let mut stream = server.connect();
    stream.write_all(request.as_bytes()).unwrap();
    let mut reply = String::new();
    while !reply.contains("stream_id") || !reply.ends_with('\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error}: {reply}"));
        reply.push(char::from(byte[0]));
    }
    let number = reply.rsplit_once("\"stream_id\":\"").unwrap().1.split('"').next().unwrap().to_owned();
    (stream, number)
}

fn attach(server: &Server, id: &str) -> (UnixStream, String) {
    begin(server, &format!("GET /containers/c/processes/{id} HTTP/1.1\r\nHost: api\r\n\r\n"))
}

#[tokio::test]
async fn uploads_that_send_nothing_hold_nobody_up() {
    // More than the threads that a runtime has for work that blocks.
    const UPLOADS: usize = 600;
    let server = Server::start_with(&["--transfer-patience", "1h"]).await;
    let client = server.create("c").await;
    let before = server.settled_descriptors().await;
    let mut idle = Vec::new();
    for _ in 0..UPLOADS {
        let mut stream = server.connect();
        write!(stream, "{FILES}Content-Length: 1000000\r\n\r\n").unwrap();
        idle.push(stream);
    }
    // Each has its connection and its pipe.
    until("not all uploads begin", &server, || server.descriptors() >= before + 2 * UPLOADS).await;
    let other = async {
        server.create("other").await;
        assert_eq!(say(&client, "other", "echo works").await, "works");
        client
            .stream_in("other", "", "/in", std::io::Cursor::new(tar_of(&[("f", b"x")])), None)
            .await
            .unwrap();
        client.metrics("other").await.unwrap();
        client.destroy("other").await.unwrap();
    };
    tokio::time::timeout(STUCK, other).await.expect("a create waits for clients that send nothing");
    drop(idle);
    server.until_idle("c").await;
    server.finish().await;
}

#[tokio::test]
async fn a_tar_that_does_not_come_is_cancelled() {
    let server = Server::start_with(&["--transfer-patience", "1s"]).await;
    let client = server.create("c").await;
    let tar = tar_of(&[("a", &noise(40_000)), ("b", &noise(40_000))]);
    for chunked in [false, true] {
        // Nothing at all, the half, and everything but its end.
        for sent in [0, tar.len() / 2, tar.len() - 1] {
            let mut stream = server.connect();
            if chunked {
                write!(stream, "{FILES}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", tar.len()).unwrap();
            } else {
                write!(stream, "{FILES}Content-Length: {}\r\n\r\n", tar.len()).unwrap();
            }
            stream.write_all(&tar[..sent]).unwrap();
            let reply = rest(stream);
            assert!(reply.starts_with("HTTP/1.1 500 "), "{chunked} {sent}: {reply}");
            let reason = "stream-in: error streaming in: the client has sent nothing of the tar for 1s";
            assert!(reply.contains(reason), "{chunked} {sent}: {reply}");
            server.until_idle("c").await;
        }
    }
    // One that gets on has all the time it wants.
    let mut stream = server.connect();
    write!(stream, "{FILES}Content-Length: {}\r\n\r\n", tar.len()).unwrap();
    for piece in tar.chunks(tar.len() / 4 + 1) {
        stream.write_all(piece).unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let mut reply = [0; 15];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b"HTTP/1.1 200 OK");
    assert_eq!(say(&client, "c", "wc -c </in/b").await, "40000");
    server.finish().await;
}

#[tokio::test]
async fn a_tar_that_the_container_does_not_take_is_cancelled() {
    let server = Server::start_with(&["--transfer-patience", "1s"]).await;
    server.create("c").await;
    let (large, small) = (tar_of(&[("a", &vec![7; 32 << 20])]), tar_of(&[("a", &[7; 20_000])]));
    for chunked in [false, true] {
        for (tar, reason) in [
            (&large, "the container has taken nothing of the tar for 1s"),
            (&small, "the container's side has the whole tar and has not ended for 1s"),
        ] {
            let mut stream = server.connect();
            let (first, last) = tar.split_at(1000);
            if chunked {
                write!(stream, "{FILES}Transfer-Encoding: chunked\r\n\r\n").unwrap();
                write!(stream, "{:x}\r\n", first.len()).unwrap();
            } else {
                write!(stream, "{FILES}Content-Length: {}\r\n\r\n", tar.len()).unwrap();
            }
            stream.write_all(first).unwrap();
            // The container's root may do that.
            let helper = helper(&server).await;
            signal(helper, Signal::STOP);
            if chunked {
                write!(stream, "\r\n{:x}\r\n", last.len()).unwrap();
            }
            // It may not be read to its end.
            let _ = stream
                .write_all(last)
                .and_then(|()| stream.write_all(if chunked { b"\r\n0\r\n\r\n" } else { b"" }));
            let reply = rest(stream);
            assert!(reply.starts_with("HTTP/1.1 500 ") && reply.contains(reason), "{chunked}: {reply}");
            // It is killed though it is stopped.
            server.until_idle("c").await;
        }
    }
    server.finish().await;
}

/// Whether a chunked body has come to its end.
fn is_whole(reply: &str) -> bool {
    reply.ends_with("\r\n0\r\n\r\n")
}

#[tokio::test]
async fn a_tar_that_does_not_come_out_is_not_whole() {
    let server = Server::start_with(&["--transfer-patience", "1s"]).await;
    let client = server.create("c").await;
    say(&client, "c", "head -c 50000000 /dev/zero >/big; echo small >/small").await;
    let get = |path: &str| {
        let mut stream = server.connect();
        write!(
            stream,
            "GET /containers/c/files?source={path}&user= HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        stream
    };
    let whole = rest(get("%2Fsmall"));
    assert!(whole.starts_with("HTTP/1.1 200 ") && is_whole(&whole), "{whole:?}");
    assert!(is_whole(&rest(get("%2Fbig"))));

    // The container stops it.
    let mut stream = get("%2Fbig");
    stream.read_exact(&mut [0; 1000]).unwrap();
    let stopped = helper(&server).await;
    signal(stopped, Signal::STOP);
    let reply = rest(stream);
    assert!(reply.len() < 50_000_000 && !is_whole(&reply), "{}", reply.len());
    assert!(server.log().contains("the container has sent nothing of the tar for 1s"), "{}", server.log());
    server.until_idle("c").await;

    // The client does not read it.
    let before = server.settled_descriptors().await;
    let mut stream = get("%2Fbig");
    stream.read_exact(&mut [0; 1000]).unwrap();
    until("it waits for its client", &server, || {
        server.log().contains("the client has taken nothing of the tar for 1s")
    })
    .await;
    server.until_idle("c").await;
    until("its connection stays", &server, || server.descriptors() <= before).await;
    let reply = rest(stream);
    assert!(reply.len() < 50_000_000 && !is_whole(&reply), "{}", reply.len());
    server.finish().await;
}

#[tokio::test]
async fn who_attaches_and_goes_leaves_nothing() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let spec = ProcessSpec { id: "endless".into(), ..script("yes") };
    let process = client.run("c", &spec, Io::default()).await.unwrap();
    for n in 0..200 {
        let (control, number) = attach(&server, "endless");
        // Some have begun to read.
        let mut reader = server.connect();
        if n % 2 == 0 {
            let path = format!("/containers/c/processes/endless/attaches/{number}/stdout");
            write!(reader, "GET {path} HTTP/1.1\r\nHost: api\r\n\r\n").unwrap();
            reader.read_exact(&mut [0; 100_000]).unwrap();
        }
        // Time for its queue to become full.
        tokio::time::sleep(Duration::from_millis(40)).await;
        drop((control, reader));
    }
    let most = server.memory("VmHWM") / 1024;
    assert!(most < 300, "{most} MiB");
    process.signal(true).await.unwrap();
    assert_eq!(process.wait().await.unwrap(), 137);
    server.finish().await;
}

#[tokio::test]
async fn who_attaches_and_reads_nothing_takes_little_and_others_still_get_everything() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let mut deaf = Vec::new();
    let mut endless = Vec::new();
    for n in 0..8 {
        let spec = ProcessSpec { id: format!("endless{n}"), ..script("yes") };
        endless.push(client.run("c", &spec, Io::default()).await.unwrap());
    }
    for _ in 0..10 {
        deaf.extend((0..8).map(|n| attach(&server, &format!("endless{n}"))));
        // Each waits with other bytes, once the processes do not wait any more for those before it.
        tokio::time::sleep(Duration::from_millis(1200)).await;
    }
    // It reads at once, so it loses nothing, though memory is short.
    let spec = script("head -c 33554432 /dev/zero; exit 6");
    let done = tokio::time::timeout(STUCK, async {
        let process = client.run("c", &spec, listen()).await.unwrap();
        end(process).await
    });
    let done = done.await.expect("a reader waits for those that do not read");
    assert_eq!((done.code, done.out.len()), (6, 32 << 20));
    let most = server.memory("VmHWM") / 1024;
    assert!(most < 500, "{most} MiB");
    for process in &endless {
        process.signal(true).await.unwrap();
        assert_eq!(process.wait().await.unwrap(), 137);
    }
    drop(deaf);
    server.finish().await;
}

#[tokio::test]
async fn output_is_found_after_the_end_but_not_by_a_client_that_went_before() {
    let server = Server::start().await;
    let client = server.create("c").await;
    let read = |id: &str, number: &str| {
        let path = format!("/containers/c/processes/{id}/attaches/{number}/stdout");
        let mut stream = server.connect();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: api\r\n\r\n").unwrap();
        stream
    };
    let run = |id: &str, text: &str| {
        let body = format!("{{\"id\":\"{id}\",\"path\":\"sh\",\"args\":[\"-c\",\"{text}\"]}}");
        let length = body.len();
        begin(
            &server,
            &format!(
                "POST /containers/c/processes HTTP/1.1\r\nHost: api\r\nContent-Length: {length}\r\n\r\n{body}"
            ),
        )
    };
    let (control, number) = run("short", "echo late");
    assert!(rest(control).contains("\"exit_status\":0"));
    assert!(rest(read("short", &number)).ends_with("\r\n\r\nlate\n"));

    // Whoever reads already goes on after its control connection has gone; nobody else comes in.
    let (control, number) = run("long", "echo early; sleep 1000");
    let mut reader = read("long", &number);
    let mut reply = String::new();
    while !reply.ends_with("early\n") {
        let mut byte = [0];
        reader.read_exact(&mut byte).unwrap();
        reply.push(char::from(byte[0]));
    }
    drop(control);
    assert_eq!(rest(reader), "");
    let gone = rest(read("long", &number));
    assert!(gone.starts_with("HTTP/1.1 200 ") && gone.ends_with("\r\n\r\n"), "{gone}");
    client.attach("c", "long", Io::default()).await.unwrap().signal(true).await.unwrap();
    server.finish().await;
}

#[tokio::test]
async fn input_that_nobody_takes_holds_neither_its_client_nor_others() {
    let server = Server::start_with(&["--transfer-patience", "1s"]).await;
    let client = server.create("c").await;
    let spec = ProcessSpec { id: "deaf".into(), ..script("sleep 1000") };
    let process = client.run("c", &spec, listen()).await.unwrap();
    sh(&client, "c", "true").await;
    let before = server.settled_descriptors().await;
    // More than its pipe holds.
    let payload = format!("{{\"source\":0,\"data\":\"{}\"}}\n", "x".repeat(300_000));
    let (mut control, _) = attach(&server, "deaf");
    control.write_all(payload.as_bytes()).unwrap();
    // Another one writes behind it, a third only says that it has no input, or signals.
    let (mut second, _) = attach(&server, "deaf");
    second.write_all(payload.as_bytes()).unwrap();
    let (mut third, _) = attach(&server, "deaf");
    third.write_all(b"{\"source\":0}\n{\"signal\":7}\n").unwrap();
    until("the third waits for the first", &server, || server.log().contains("unknown signal 7")).await;
    drop((control, second, third));
    until("connections of clients that have gone stay", &server, || server.descriptors() <= before).await;
    client.attach("c", "deaf", Io::default()).await.unwrap().signal(false).await.unwrap();
    let done = tokio::time::timeout(STUCK, end(process)).await.unwrap();
    assert_eq!(done.code, 143);
    server.finish().await;
}
