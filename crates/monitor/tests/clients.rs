//! Clients of the page that are many, slow, or not who they should be.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use wardian_monitor::live::{Live, News, Row, Seen};
use wardian_monitor::runs::Lines;
use wardian_monitor::{Hosts, Limits, Page, serve};

/// After this a test is stuck. Nothing is measured with it.
const STUCK: Duration = Duration::from_secs(60);

/// Containers that all change as often as the listeners can take it.
struct Busy;

impl Live for Busy {
    fn tell<'a>(&'a self, to: mpsc::Sender<News>) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(async move {
            for look in 1.. {
                let row = |id: u64| Row { id: id.to_string(), memory: look, ..Row::default() };
                let rows = (0..1000).map(row).collect();
                let seen = Seen { at_ms: look, rows, ..Seen::default() };
                if to.send(News::Seen(Box::new(seen))).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
    }
}

async fn served(limits: Limits) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let page = Page::new(Arc::new(Lines::of(Vec::new())), Busy);
    tokio::spawn(serve(listener, page, Hosts::new(address, &[]), limits, std::future::pending()));
    address
}

fn get(address: SocketAddr, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n")
}

/// Sends a request, and returns the status line of the answer.
async fn status(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    first_line(&mut stream).await
}

async fn first_line(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    while !text.contains(&b'\r') {
        let mut piece = [0; 512];
        let read = timeout(STUCK, stream.read(&mut piece)).await.expect("an answer").unwrap();
        assert!(read > 0, "the connection has ended: {:?}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&piece[..read]);
    }
    String::from_utf8_lossy(&text).lines().next().unwrap().to_owned()
}

/// Returns whether the other side has ended the connection before a test is stuck.
async fn ends(stream: &mut TcpStream) -> bool {
    let mut sink = vec![0; 1 << 16];
    let read = async { while stream.read(&mut sink).await.is_ok_and(|read| read > 0) {} };
    timeout(STUCK, read).await.is_ok()
}

#[tokio::test]
async fn requests_of_strangers_and_requests_to_change_something_are_refused() {
    let address = served(Limits::default()).await;
    let port = address.port();
    for (lines, wanted) in [
        (format!("GET /monitor/ HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"), "200"),
        (format!("GET /monitor/ HTTP/1.1\r\nhost: localhost:{port}\r\n"), "200"),
        (format!("GET /monitor/series HTTP/1.1\r\nhost: rebound.example:{port}\r\n"), "421"),
        ("GET /monitor/series HTTP/1.1\r\n".to_owned(), "400"),
        (format!("GET http://evil.example/monitor/series HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"), "421"),
        (
            format!(
                "GET /monitor/events HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\norigin: http://evil.example\r\n"
            ),
            "403",
        ),
        (format!("POST /monitor/series HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-length: 0\r\n"), "405"),
        (format!("DELETE / HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"), "405"),
        (format!("GET /monitor/{} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n", "x".repeat(20_000)), "4"),
    ] {
        let told = status(address, &format!("{lines}\r\n")).await;
        assert!(told.starts_with(&format!("HTTP/1.1 {wanted}")), "{told}: {lines:.100}");
    }
}

#[tokio::test]
async fn a_client_that_is_slow_to_ask_is_cut_off() {
    let limits = Limits { head: Duration::from_millis(300), ..Limits::default() };
    let address = served(limits).await;
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET /monitor/ HTTP/1.1\r\nhost: x").await.unwrap();
    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(get(address, "/monitor/series").as_bytes()).await.unwrap();
    assert!(first_line(&mut idle).await.contains("200"));
    assert!(ends(&mut silent).await && ends(&mut slow).await && ends(&mut idle).await);
}

#[tokio::test]
async fn a_listener_that_does_not_read_is_cut_off_and_the_others_go_on() {
    let limits = Limits { patience: Duration::from_millis(500), ..Limits::default() };
    let address = served(limits).await;
    // With a small buffer the server's is soon full.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut deaf = socket.connect(address).await.unwrap();
    deaf.write_all(get(address, "/monitor/events").as_bytes()).await.unwrap();
    let mut other = TcpStream::connect(address).await.unwrap();
    other.write_all(get(address, "/monitor/events").as_bytes()).await.unwrap();
    let (begun, mut heard, mut piece) = (Instant::now(), 0, vec![0; 1 << 16]);
    // What is sent to the deaf one meanwhile does not fit into the buffers of the kernel.
    while heard < 40 << 20 {
        let read = timeout(STUCK, other.read(&mut piece)).await.expect("more").unwrap();
        assert!(read > 0, "the other one was cut off after {heard} bytes");
        heard += read;
        assert!(begun.elapsed() < STUCK, "{heard}");
    }
    // What it can still read are the buffers of the kernel.
    assert!(ends(&mut deaf).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_clients_are_served_and_more_are_told_so() {
    let limits = Limits::default();
    // Both ends are in this process.
    let wanted = 2 * limits.clients as u64 + 256;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some_and(|current| current < wanted) {
        setrlimit(
            Resource::Nofile,
            Rlimit { current: maximum.map(|most| most.min(wanted)).or(Some(wanted)), maximum },
        )
        .unwrap();
    }
    let address = served(limits).await;
    let mut clients = Vec::new();
    for _ in 0..limits.clients {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(get(address, "/monitor/events").as_bytes()).await.unwrap();
        clients.push(stream);
    }
    for stream in &mut clients {
        assert!(first_line(stream).await.contains("200"));
    }
    assert_eq!(status(address, &get(address, "/monitor/")).await, "HTTP/1.1 503 Service Unavailable");
    clients.truncate(limits.clients - 10);
    let begun = Instant::now();
    while !status(address, &get(address, "/monitor/")).await.contains("200") {
        assert!(begun.elapsed() < STUCK, "no place was free again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
