//! What clients of the debug server take from each other.

use crate::support::Server;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// The debug server has places for 32 clients and hears 128 others; one may be silent for 10 s.
/// Those of the kind before, which have just gone, may still be counted.
const MANY: usize = 45;
/// Less than that.
const SOON: Duration = Duration::from_secs(5);

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn vars(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(b"GET /debug/vars HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut reply = String::new();
    match stream.read_to_string(&mut reply) {
        Ok(_) => reply,
        Err(error) => panic!("{error}: {reply}"),
    }
}

#[tokio::test]
async fn clients_that_owe_something_keep_no_client_of_the_debug_server_out() {
    let address = free();
    let server =
        Server::start_with(&["--insecure-listen", "--debug-listen", &format!("tcp:{address}")]).await;
    let long = format!("GET /debug/vars HTTP/1.1\r\nHost: localhost\r\nX: {}", "x".repeat(300 << 10));
    let pipelined = "GET /debug/vars HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(2000);
    let owed = [
        // Nothing at all, half a head, all of a long one but its end, a body, the taking of answers.
        String::new(),
        "GET /debug/vars HTTP/1.1\r\nHost: ".to_owned(),
        long,
        "POST /log-level HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nde".to_owned(),
        pipelined,
    ];
    for what in owed {
        let idle: Vec<_> = (0..MANY)
            .map(|_| {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
                // It may be closed for the next one already.
                let _ = stream.write_all(what.as_bytes());
                stream
            })
            .collect();
        let reply = vars(address);
        assert!(reply.starts_with("HTTP/1.1 200 "), "{what:.60}: {reply}");
        drop(idle);
    }
    server.finish().await;
}
