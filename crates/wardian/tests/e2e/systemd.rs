//! What systemd tells a service, and is told. The tests play systemd.

use crate::support::{NETWORK, STUCK, Server, WARDIAN, signal};
use rustix::process::Signal;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::{Child, Command, Stdio};
use std::time::Instant;
use wardian_garden::Client;

async fn wait(child: &mut Child) -> std::process::ExitStatus {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(started.elapsed() < STUCK, "it does not end");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn it_is_ready_when_it_answers() {
    let mut server = Server::start().await;
    server.create("kept").await;
    server.kill9();
    let path = server.base().join("notify");
    let systemd = UnixDatagram::bind(&path).unwrap();
    systemd.set_read_timeout(Some(STUCK)).unwrap();
    let mut child = server.command().env("NOTIFY_SOCKET", &path).spawn().unwrap();
    let heard = || {
        let mut buffer = [0; 256];
        // A child of another test that ends interrupts it: sockets with a time-out do not begin anew (signal(7)).
        let length = loop {
            match systemd.recv(&mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                other => break other.unwrap(),
            }
        };
        String::from_utf8_lossy(&buffer[..length]).trim().to_owned()
    };
    assert_eq!(heard(), "READY=1");
    server.client().ping().await.unwrap();
    assert_eq!(server.client().info("kept").await.unwrap().state, "active");
    signal(child.id(), Signal::TERM);
    assert_eq!(heard(), "STOPPING=1");
    assert!(wait(&mut child).await.success());
    server.restart().await;
    server.finish().await;
}

/// Start a server that finds a listening socket as descriptor 3.
fn activate(server: &Server, socket: OwnedFd, variables: &str) -> Child {
    // LISTEN_PID must be the server's, and a shell that executes it has the same.
    let script = format!("exec 3<&0 0</dev/null; export {variables}; exec \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, "sh", &WARDIAN, "serve", "--root"]).arg(server.root());
    command.arg("--run").arg(server.run()).arg("--default-rootfs").arg(server.image());
    command.env(NETWORK, "none");
    let log = std::fs::OpenOptions::new().create(true).append(true).open(server.base().join("log")).unwrap();
    command.stdin(socket).stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

#[tokio::test]
async fn a_socket_that_was_opened_for_it_is_served_and_stays() {
    let mut server = Server::start().await;
    server.create("kept").await;
    server.kill9();
    let _ = std::fs::remove_file(server.socket());
    for variables in ["LISTEN_PID=$$ LISTEN_FDS=1", "SOCKET2ME_FD=3"] {
        let path = server.base().join("activated.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let mut child = activate(&server, listener.into(), variables);
        // The socket was there before the server: whoever connects early waits.
        let client = Client::new(&format!("unix:{}", path.display())).unwrap();
        let ping = tokio::time::timeout(STUCK, client.ping()).await.expect("nobody answers");
        ping.unwrap_or_else(|e| panic!("{variables}: {e}\n{}", server.log()));
        assert_eq!(client.info("kept").await.unwrap().state, "active");
        assert!(!server.socket().exists(), "it listens where nobody told it to");
        signal(child.id(), Signal::TERM);
        assert!(wait(&mut child).await.success(), "{}", server.log());
        // It belongs to whoever has opened it.
        assert!(path.exists());
        std::fs::remove_file(&path).unwrap();
    }
    server.restart().await;
    server.finish().await;
}

#[tokio::test]
async fn what_is_no_listening_socket_is_refused() {
    let mut server = Server::start().await;
    server.kill9();
    let file = std::fs::File::open(server.image()).unwrap();
    let mut child = activate(&server, file.into(), "LISTEN_PID=$$ LISTEN_FDS=1");
    assert!(!wait(&mut child).await.success());
    assert!(server.log().contains("the socket that was handed to this server is not a socket"));
    let datagrams = UnixDatagram::bind(server.base().join("datagrams")).unwrap();
    let mut child = activate(&server, datagrams.into(), "SOCKET2ME_FD=3");
    assert!(!wait(&mut child).await.success());
    assert!(server.log().contains("not a listening stream socket"));
    // Meant for another process.
    let listener = UnixListener::bind(server.base().join("others.sock")).unwrap();
    let mut child = activate(&server, listener.into(), "LISTEN_PID=1 LISTEN_FDS=1");
    let started = Instant::now();
    while server.client().ping().await.is_err() {
        assert!(started.elapsed() < STUCK, "{}", server.log());
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    signal(child.id(), Signal::TERM);
    assert!(wait(&mut child).await.success());
    server.restart().await;
    server.finish().await;
}

#[test]
fn the_units_say_what_the_server_relies_on() {
    let packaging = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging");
    let service = std::fs::read_to_string(packaging.join("wardian.service")).unwrap();
    for line in ["Type=notify", "KillMode=process", "Delegate=yes", "Restart=always"] {
        assert!(service.lines().any(|l| l == line), "{line}");
    }
    // What it says can be read is installed with it.
    let documentation = service.lines().find_map(|l| l.strip_prefix("Documentation=")).unwrap();
    let operations = std::fs::read_to_string(packaging.join("../docs/operations.md")).unwrap();
    for uri in documentation.split(' ') {
        let file = uri.strip_prefix("file:/usr/share/doc/wardian/").unwrap_or_else(|| panic!("{uri}"));
        assert!(packaging.join("../docs").join(file).is_file(), "{uri}");
    }
    assert!(operations.contains("install -D -m 644 -t /usr/share/doc/wardian docs/*"));
    // The name under which it is an image plugin leads to the program, from where it is installed.
    let link = operations.lines().find_map(|line| line.strip_prefix("ln -s ")).unwrap();
    let [to, at] = link.split_whitespace().take(2).collect::<Vec<_>>()[..] else { panic!("{link}") };
    assert_eq!((to, at), ("../../bin/wardian", "/usr/lib/wardian/grootfs"));
    assert!(
        operations.contains(" /usr/bin/wardian\n")
            && operations.contains("rm -r /usr/bin/wardian /usr/lib/wardian ")
    );
}
