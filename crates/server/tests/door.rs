//! The server's door: what is answered before the engine is asked.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::oneshot;
use wardian_engine::{Config, Engine};
use wardian_server::{ListenAddr, Listener, SocketOptions, serve};

/// Run `test` against a server of its own.
fn with_server(test: impl FnOnce(&Path)) {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("wardian-http-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let socket = folder.join("garden.sock");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = runtime.block_on(async {
        let config = Config {
            root: folder.join("root"),
            run: folder.join("run"),
            default_rootfs: None,
            keeper: PathBuf::from("/bin/true"),
            max_containers: 0,
            no_new_privileges: false,
        };
        let engine = Engine::start(config).await.unwrap();
        let address = ListenAddr::Unix(socket.clone());
        let listener = Listener::bind(&address, &SocketOptions::default()).await.unwrap();
        (engine, listener)
    });
    let server = runtime.spawn(serve(server.0, vec![server.1], stopped));
    test(&socket);
    stop.send(()).unwrap();
    runtime.block_on(server).unwrap().unwrap();
    assert!(!socket.exists());
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Send a request; the whole reply without its `Date` line.
fn ask(socket: &Path, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    // The server may answer before it has read everything.
    let _ = stream.write_all(request);
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply.split_inclusive('\n').filter(|line| !line.to_lowercase().starts_with("date:")).collect()
}

fn plain(socket: &Path, line: &str, headers: &str) -> String {
    ask(socket, format!("{line} HTTP/1.1\r\nHost: api\r\nConnection: close\r\n{headers}\r\n").as_bytes())
}

#[test]
fn plain_requests_are_answered_as_go_does() {
    with_server(|socket| {
        let pong = plain(socket, "GET /ping", "");
        assert!(pong.starts_with("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"), "{pong}");
        assert!(pong.ends_with("\r\n\r\n{}\n"), "{pong}");
        let unknown = plain(socket, "GET /nope", "");
        assert!(unknown.starts_with("HTTP/1.1 404 Not Found\r\n"), "{unknown}");
        assert!(unknown.ends_with("\r\n\r\n404 page not found\n"), "{unknown}");
        let wrong = plain(socket, "DELETE /ping", "");
        assert!(wrong.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"), "{wrong}");
        assert!(wrong.contains("\r\nAllow: GET\r\n"), "{wrong}");
        let later = plain(socket, "GET /containers/h/metrics", "");
        assert!(later.starts_with("HTTP/1.1 500 Internal Server Error\r\n"), "{later}");
        assert!(later.contains("\"Message\":\"metrics is not supported yet\""), "{later}");
        let empty = plain(socket, "POST /containers", "Content-Length: 0\r\n");
        assert!(empty.ends_with(
            "\r\n\r\n{\"Type\":\"\",\"Message\":\"EOF\",\"Handle\":\"\",\"ProcessID\":\"\",\"Binary\":\"\"}\n"
        ));
    });
}

#[test]
fn web_pages_are_refused() {
    with_server(|socket| {
        let reply = plain(socket, "GET /ping", "Origin: http://evil.example\r\n");
        assert!(reply.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{reply}");
    });
}

#[test]
fn long_bodies_are_refused() {
    with_server(|socket| {
        let body = format!("{{\"handle\":\"{}\"}}", "a".repeat(1 << 20));
        let request = format!(
            "POST /containers HTTP/1.1\r\nHost: api\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let reply = ask(socket, request.as_bytes());
        assert!(reply.contains("\"Message\":\"request body too large\""), "{reply}");
    });
}
