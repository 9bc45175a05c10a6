//! Who comes in through the server's sockets, and what clients that owe something take from others.

use crate::support::{STUCK, Server, WARDIAN, digest, end, listen, noise, run, say, script, tar_of};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt as _;
use wardian_garden::wire::{ContainerSpec, ProcessSpec};
use wardian_garden::{Client, Io, TlsFiles};

/// Time in which nothing is expected to happen.
const PAUSE: Duration = Duration::from_millis(500);

/// A port that nobody listens on.
fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// A server that listens on TCP as well.
pub async fn on_tcp(args: &[&str]) -> (Server, SocketAddr) {
    let mut server = Server::start().await;
    let address = free();
    server.terminate().await;
    server.args = words(args);
    server.args.extend(words(&["--listen", &format!("tcp:{address}")]));
    server.restart().await;
    (server, address)
}

/// All that a server says to this, until it closes; `None`: it says nothing, and does not close.
fn ask(address: SocketAddr, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let _ = stream.write_all(request.as_bytes());
    let mut reply = Vec::new();
    match stream.read_to_end(&mut reply) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && reply.is_empty() => None,
        _ => Some(String::from_utf8_lossy(&reply).into_owned()),
    }
}

fn get(host: &str, headers: &str) -> String {
    format!("GET /ping HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n")
}

fn until_closed(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(STUCK)).unwrap();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("it is not closed"),
            Err(_) => return,
            Ok(_) => {}
        }
    }
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(STUCK, work).await.expect("root is locked out")
}

fn ps(program: &Path, socket: &Path) -> Output {
    Command::new("timeout").arg("60").arg(program).arg("ps").arg("--socket").arg(socket).output().unwrap()
}

/// Whether it is open, with nothing to read.
fn is_open(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    matches!(stream.read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

#[tokio::test]
async fn web_pages_come_to_nothing() {
    let debug = free();
    let debug_at = format!("tcp:{debug}");
    let args = ["--insecure-listen", "--host-name", "cell-1.example", "--debug-listen", &debug_at];
    let (server, address) = on_tcp(&args).await;
    let port = address.port();
    let status = |at: SocketAddr, request: &str| {
        let reply = ask(at, request).expect("no answer");
        reply.split(' ').nth(1).unwrap_or_default().to_owned()
    };
    // Names that lead here since a moment ago (DNS rebinding).
    let garden = ["127.0.0.1", "localhost", "[::1]", "cell-1.example"].map(|host| format!("{host}:{port}"));
    for host in garden.iter().map(String::as_str).chain(["api"]) {
        assert_eq!(status(address, &get(host, "")), "200", "{host}");
    }
    let stolen = format!("evil.example:{port}");
    for host in [&stolen, "evil.example", &format!("api:{port}"), "cell-2.example"] {
        assert_eq!(status(address, &get(host, "")), "421", "{host}");
        let vars = get(host, "").replace("/ping", "/debug/vars");
        assert_eq!(status(debug, &vars), "421", "{host}");
    }
    assert_eq!(status(debug, &get("127.0.0.1", "").replace("/ping", "/debug/vars")), "200");
    assert_eq!(status(address, "GET /ping HTTP/1.1\r\nConnection: close\r\n\r\n"), "400");
    // What makes a container, and what leaves HTTP, for a page that is not rebound.
    let client = server.create("c").await;
    for line in [
        "POST /containers",
        "POST /containers/c/processes",
        "GET /containers/c/attaches/1/stdout",
        "GET /wardian/events",
        "PUT /containers/c/files?destination=/tmp",
        "DELETE /containers/c",
    ] {
        for header in ["Origin: http://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site"] {
            let body = "{\"path\":\"true\"}";
            let headers = format!("{header}\r\nUpgrade: x\r\n");
            let unix = server.http(line, &headers, body);
            assert!(unix.starts_with("HTTP/1.1 403 "), "{line} {header}: {unix}");
            let length = body.len();
            let tcp = format!(
                "{line} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
            );
            assert_eq!(status(address, &tcp), "403", "{line} {header}");
        }
        let rebound =
            format!("{line} HTTP/1.1\r\nHost: {stolen}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(status(address, &rebound), "421", "{line}");
    }
    assert_eq!(client.list(&[].into()).await.unwrap(), ["c"]);
    // Garden's clients call the server `api`, also through TCP.
    let garden = Client::new(&format!("tcp:{address}")).unwrap();
    assert_eq!(say(&garden, "c", "echo works").await, "works");
    server.finish().await;
}

/// Requests whose bodies never come.
fn bodies(handle: &str) -> Vec<String> {
    let files = format!("/containers/{handle}/files?destination=/tmp&user=root");
    [
        "POST /containers HTTP/1.1\r\nHost: api\r\nContent-Length: 100\r\n\r\n{\"handle\":".to_owned(),
        "POST /containers HTTP/1.1\r\nHost: api\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"han".to_owned(),
        format!("PUT /containers/{handle}/stop HTTP/1.1\r\nHost: api\r\nContent-Length: 1\r\n\r\n"),
        format!("POST /containers/{handle}/processes HTTP/1.1\r\nHost: api\r\nContent-Length: 9\r\n\r\n"),
        format!("PUT {files} HTTP/1.1\r\nHost: api\r\nContent-Length: 10240\r\n\r\nx"),
        format!("PUT {files} HTTP/1.1\r\nHost: api\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n"),
        format!("PUT {files} HTTP/1.1\r\nHost: api\r\nExpect: 100-continue\r\nContent-Length: 10240\r\n\r\n"),
        "GET /ping HTTP/1.1\r\nHost: api\r\nContent-Length: 100\r\n\r\n".to_owned(),
    ]
    .into()
}

#[tokio::test]
async fn bodies_that_never_come_hold_no_place() {
    let (server, address) = on_tcp(&["--insecure-listen", "--max-connections", "8"]).await;
    let client = server.create("c").await;
    for body in bodies("c") {
        let mut held: Vec<TcpStream> = (0..8)
            .map(|_| {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.write_all(body.as_bytes()).unwrap();
                stream
            })
            .collect();
        tokio::time::sleep(PAUSE).await;
        // Root has places that are kept for it; others get one that somebody does nothing with.
        assert_eq!(soon(client.list(&[].into())).await.unwrap(), ["c"]);
        for _ in 0..3 {
            let reply = ask(address, &get("api", ""));
            assert!(
                reply.as_ref().is_some_and(|reply| reply.starts_with("HTTP/1.1 200 ")),
                "{body}: {reply:?}"
            );
        }
        // By the moment of the last byte: one who sends stays.
        drop(held.split_off(1));
    }
    server.until_idle("c").await;
    server.finish().await;
}

#[tokio::test]
async fn who_reads_nothing_holds_no_place() {
    let (server, address) = on_tcp(&["--insecure-listen", "--max-connections", "6"]).await;
    let client = server.create("c").await;
    let tar = tar_of(&[("big", &vec![0; 32 << 20])]);
    client.stream_in("c", "root", "/tmp", &*tar.leak(), None).await.unwrap();
    let noisy = client.run("c", &script("yes"), Io::default()).await.unwrap();
    let id = noisy.id().to_owned();
    let greedy = [
        // Many answers, none of which is read.
        get("api", "").replace("Connection: close\r\n", "").replace("/ping", "/containers").repeat(20_000),
        "GET /containers/c/files?source=/tmp/big&user=root HTTP/1.1\r\nHost: api\r\n\r\n".to_owned(),
    ];
    for request in greedy {
        let held: Vec<TcpStream> = (0..6)
            .map(|_| {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.set_write_timeout(Some(PAUSE)).unwrap();
                let _ = stream.write_all(request.as_bytes());
                stream
            })
            .collect();
        tokio::time::sleep(PAUSE).await;
        let reply = ask(address, &get("api", ""));
        assert!(reply.as_ref().is_some_and(|reply| reply.starts_with("HTTP/1.1 200 ")), "{reply:?}");
        assert_eq!(soon(client.list(&[].into())).await.unwrap(), ["c"]);
        drop(held);
    }
    // Output that nobody reads: the control connection is at work, the stream's is not.
    let mut control = TcpStream::connect(address).unwrap();
    write!(control, "GET /containers/c/processes/{id} HTTP/1.1\r\nHost: api\r\n\r\n").unwrap();
    let mut said = String::new();
    let stream = loop {
        let mut buffer = [0; 1024];
        let n = control.read(&mut buffer).unwrap();
        assert!(n > 0, "{said}");
        said.push_str(&String::from_utf8_lossy(&buffer[..n]));
        if let Some((_, rest)) = said.split_once("\"stream_id\":\"")
            && let Some((stream, _)) = rest.split_once('"')
        {
            break stream.to_owned();
        }
    };
    let mut outputs: Vec<TcpStream> = (0..5)
        .map(|_| {
            let mut output = TcpStream::connect(address).unwrap();
            let path = format!("/containers/c/processes/{id}/attaches/{stream}/stdout");
            write!(output, "GET {path} HTTP/1.1\r\nHost: api\r\n\r\n").unwrap();
            output
        })
        .collect();
    // The kernel takes some megabytes for each, which the process has to write first.
    let started = Instant::now();
    while !ask(address, &get("api", "")).is_some_and(|reply| reply.starts_with("HTTP/1.1 200 ")) {
        assert!(started.elapsed() < 2 * STUCK, "nobody goes");
    }
    assert!(is_open(&mut control), "whoever waits for a process is at work");
    outputs.clear();
    noisy.signal(true).await.unwrap();
    drop((noisy, control));
    server.finish().await;
}

#[tokio::test]
async fn root_is_not_locked_out_by_those_at_work() {
    let (server, address) = on_tcp(&["--insecure-listen", "--max-connections", "4"]).await;
    let mut listening: Vec<TcpStream> = (0..4)
        .map(|_| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"GET /wardian/events HTTP/1.1\r\nHost: api\r\n\r\n").unwrap();
            let mut head = [0; 64];
            assert!(stream.read(&mut head).unwrap() > 0);
            stream
        })
        .collect();
    // More come than may wait.
    let mut newcomers: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut stream = TcpStream::connect(address).unwrap();
            let _ = stream.write_all(get("api", "").as_bytes());
            stream
        })
        .collect();
    tokio::time::sleep(PAUSE).await;
    let ps = ps(Path::new(&WARDIAN), &server.socket());
    assert!(ps.status.success(), "{ps:?}");
    let client = server.create("c").await;
    assert_eq!(say(&client, "c", "echo works").await, "works");
    client.destroy("c").await.unwrap();
    until_closed(newcomers.last_mut().unwrap());
    // The first of those that wait comes in when somebody goes.
    assert!(is_open(&mut newcomers[0]));
    listening.pop();
    newcomers[0].set_read_timeout(Some(STUCK)).unwrap();
    let mut reply = String::new();
    newcomers[0].read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    drop((listening, newcomers));
    server.finish().await;
}

/// Users of the socket that are not root are not kept a place for.
#[tokio::test]
async fn the_socket_of_a_group_is_not_closed_to_root() {
    let mut server = Server::start().await;
    server.terminate().await;
    let dir = tempfile::Builder::new().prefix("wardian-e2e-").tempdir_in("/dev/shm").unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let socket = dir.path().join("open.sock");
    let listen = format!("unix:{}", socket.display());
    server.args = words(&["--max-connections", "4", "--socket-mode", "0666", "--listen", &listen]);
    server.restart().await;
    // The program as nobody finds it.
    let program = dir.path().join("wardian");
    crate::support::copy_program(WARDIAN, &program);
    let mut events: Vec<_> = (0..8)
        .map(|_| {
            let mut command = Command::new(&program);
            command.arg("events").arg("--socket").arg(&socket).uid(65534).gid(65534);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    tokio::time::sleep(PAUSE).await;
    let ps = ps(&program, &socket);
    assert!(ps.status.success(), "{ps:?}");
    for child in &mut events {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    server.finish().await;
}

#[tokio::test]
async fn heads_have_an_end() {
    let args = ["--insecure-listen", "--read-header-timeout", "1s"];
    let (server, address) = on_tcp(&args).await;
    // A byte now and then does not help.
    let mut slow = TcpStream::connect(address).unwrap();
    let mut silent = TcpStream::connect(address).unwrap();
    let mut kept = TcpStream::connect(address).unwrap();
    kept.write_all(get("api", "").replace("Connection: close\r\n", "").as_bytes()).unwrap();
    let started = Instant::now();
    slow.write_all(b"GET /ping HTTP/1.1\r\nHost: api\r\n").unwrap();
    while slow.write_all(b"X: y\r\n").is_ok() {
        assert!(started.elapsed() < STUCK, "a slow head is waited for");
        std::thread::sleep(Duration::from_millis(100));
    }
    until_closed(&mut silent);
    until_closed(&mut kept);
    let filler = "x".repeat(1 << 20);
    let many = "X: y\r\n".repeat(10_000);
    for head in [
        format!("GET /{filler} HTTP/1.1\r\nHost: api\r\n\r\n"),
        format!("GET /ping HTTP/1.1\r\nHost: api\r\nX: {filler}\r\n\r\n"),
        format!("GET /ping HTTP/1.1\r\nHost: api\r\n{many}\r\n"),
    ] {
        let reply = ask(address, &head).expect("a giant head is waited for");
        assert!(reply.is_empty() || reply.starts_with("HTTP/1.1 4"), "{}", &reply[..reply.len().min(200)]);
    }
    let chunked = "POST /containers HTTP/1.1\r\nHost: api\r\nTransfer-Encoding: chunked\r\n\r\n";
    for body in [
        format!("1;{filler}\r\n"),
        "ffffffffffffffffff\r\n".to_owned(),
        format!("2\r\n{{}}\r\n0\r\n{}", "X: y\r\n".repeat(100_000)),
        format!("2\r\n{{}}\r\n0\r\nX: {filler}"),
    ] {
        let reply = ask(address, &format!("{chunked}{body}")).expect("an endless chunk is waited for");
        assert!(!reply.starts_with("HTTP/1.1 200"), "{reply}");
    }
    assert_eq!(server.client().list(&[].into()).await.unwrap(), Vec::<String>::new());
    server.finish().await;
}

/// Certificates of an operator, and of somebody else.
pub struct Papers {
    dir: tempfile::TempDir,
}

impl Papers {
    pub fn new() -> Self {
        let papers = Self { dir: tempfile::tempdir().unwrap() };
        for authority in ["ours", "theirs"] {
            let mut params = CertificateParams::new(vec![]).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(DnType::CommonName, authority);
            let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
            papers.write(&format!("{authority}.ca"), &issuer.pem());
            for (who, name) in [("server", "127.0.0.1"), ("client", "client"), ("other", "localhost")] {
                let key = KeyPair::generate().unwrap();
                let params = CertificateParams::new(vec![name.into()]).unwrap();
                papers.write(&format!("{authority}.{who}"), &params.signed_by(&key, &issuer).unwrap().pem());
                papers.write(&format!("{authority}.{who}.key"), &key.serialize_pem());
            }
        }
        papers
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
        std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Flags of a server with this certificate.
    fn flags(&self, who: &str) -> Vec<String> {
        let path = |name: &str| self.path(name).display().to_string();
        let (certificate, key, authority) = (path(who), path(&format!("{who}.key")), path("ours.ca"));
        words(&["--tls-cert", &certificate, "--tls-key", &key, "--tls-client-ca", &authority])
    }

    fn files(&self, authority: &str, who: &str) -> TlsFiles {
        TlsFiles {
            authorities: self.path(authority),
            certificate: self.path(who),
            key: self.path(&format!("{who}.key")),
        }
    }

    pub fn wardian(&self, address: &str, who: &str, args: &[&str], input: &Path) -> Output {
        let TlsFiles { authorities, certificate, key } = self.files("ours.ca", who);
        let mut command = Command::new(WARDIAN);
        command.args(args).env("WARDIAN_SOCKET", address).env("WARDIAN_TLS_CA", authorities);
        command.env("WARDIAN_TLS_CLIENT_CERT", certificate).env("WARDIAN_TLS_CLIENT_KEY", key);
        command.stdin(std::fs::File::open(input).unwrap()).output().unwrap()
    }
}

pub async fn with_tls(papers: &Papers, who: &str, args: &[&str]) -> (Server, SocketAddr) {
    let flags = papers.flags(who);
    let all: Vec<&str> = flags.iter().map(String::as_str).chain(args.iter().copied()).collect();
    on_tcp(&all).await
}

#[tokio::test]
async fn who_shows_no_certificate_stays_outside() {
    let papers = Papers::new();
    let debug = free();
    let debug_at = format!("tcp:{debug}");
    let (server, address) =
        with_tls(&papers, "ours.server", &["--max-connections", "4", "--debug-listen", &debug_at]).await;
    let tcp = format!("tcp:{address}");
    let client = |files: &TlsFiles| Client::with_tls(&tcp, files).unwrap();
    client(&papers.files("ours.ca", "ours.client")).ping().await.unwrap();
    // A certificate of somebody else; a server that the client does not believe; no TLS at all.
    client(&papers.files("ours.ca", "theirs.client")).ping().await.unwrap_err();
    client(&papers.files("theirs.ca", "ours.client")).ping().await.unwrap_err();
    Client::new(&tcp).unwrap().ping().await.unwrap_err();
    for at in [address, debug] {
        let reply = ask(at, &get("127.0.0.1", "")).unwrap_or_default();
        assert!(!reply.contains("HTTP/1.1"), "{reply}");
    }
    let unix = format!("unix:{}", server.socket().display());
    Client::with_tls(&unix, &papers.files("ours.ca", "ours.client")).unwrap_err();
    // The certificate has to be for the name that was dialled.
    let by_name = Client::with_tls(
        &format!("tcp:localhost:{}", address.port()),
        &papers.files("ours.ca", "ours.client"),
    );
    by_name.unwrap().ping().await.unwrap_err();
    let null = Path::new("/dev/null");
    let ps = papers.wardian(&tcp, "ours.client", &["ps"], null);
    assert!(ps.status.success(), "{ps:?}");
    let refused = papers.wardian(&tcp, "theirs.client", &["ps"], null);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("--tls-client-ca"), "{said}");
    let mut plain = Command::new(WARDIAN);
    let plain = plain.args(["ps", "--socket", &tcp]).output().unwrap();
    let said = String::from_utf8_lossy(&plain.stderr).into_owned();
    assert!(said.contains("it speaks TLS, so give --tls-ca, --tls-cert and --tls-key"), "{said}");
    // Whoever runs the server reads of it without more being logged than usual.
    let log = server.log();
    let is_told =
        |line: &str| line.contains("server.TLS-handshake-failed") && line.contains("\"level\":\"info\"");
    assert!(log.lines().any(is_told), "{log}");
    // Clients that say nothing, or stop in the middle of the handshake, hold no place.
    for hello in [&b""[..], &[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00]] {
        let held: Vec<TcpStream> = (0..4)
            .map(|_| {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.write_all(hello).unwrap();
                stream
            })
            .collect();
        tokio::time::sleep(PAUSE).await;
        client(&papers.files("ours.ca", "ours.client")).ping().await.unwrap();
        drop(held);
    }
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_take_no_output_from_a_client_that_is_waited_for() {
    let papers = Papers::new();
    let (server, address) = with_tls(&papers, "ours.server", &["--max-connections", "16"]).await;
    server.create("c").await;
    let TlsFiles { authorities, certificate, key } = papers.files("ours.ca", "ours.client");
    let mut command = Command::new(WARDIAN);
    command.args(["exec", "c", "sh", "-c", "head -c 20000000 /dev/zero"]);
    command.env("WARDIAN_SOCKET", format!("tcp:{address}")).env("WARDIAN_TLS_CA", authorities);
    command.env("WARDIAN_TLS_CLIENT_CERT", certificate).env("WARDIAN_TLS_CLIENT_KEY", key);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 1]).unwrap();
    // Its reader stops, and strangers come in bursts.
    for _ in 0..3 {
        tokio::time::sleep(PAUSE).await;
        let strangers: Vec<_> = (0..60).map(|_| TcpStream::connect(address)).collect();
        tokio::time::sleep(PAUSE).await;
        drop(strangers);
    }
    let mut rest = Vec::new();
    out.read_to_end(&mut rest).unwrap();
    assert_eq!((child.wait().unwrap().code(), rest.len()), (Some(0), 19_999_999));
    server.finish().await;
}

#[tokio::test]
async fn everything_goes_through_tls() {
    let papers = Papers::new();
    let (server, address) = with_tls(&papers, "ours.server", &[]).await;
    let tcp = format!("tcp:{address}");
    let client = Client::with_tls(&tcp, &papers.files("ours.ca", "ours.client")).unwrap();
    let spec = ContainerSpec { handle: "c".into(), ..Default::default() };
    assert_eq!(client.create(&spec).await.unwrap(), "c");
    let bytes = noise(50 << 20);
    let sum = digest(&bytes);
    // Input to its end, and output.
    let cat = ProcessSpec { path: "cat".into(), ..Default::default() };
    let io = Io { stdin: Some(Box::new(std::io::Cursor::new(bytes.clone()))), ..listen() };
    let mut process = client.run("c", &cat, io).await.unwrap();
    let mut out = Vec::new();
    let mut stdout = process.take_stdout().unwrap();
    tokio::time::timeout(STUCK, stdout.read_to_end(&mut out)).await.unwrap().unwrap();
    assert_eq!((digest(&out), process.wait().await.unwrap()), (sum.clone(), 0));
    let reader = client.run("c", &script("read line; echo got $line"), listen()).await.unwrap();
    let again = client.attach("c", reader.id(), Io { stdin: Some(Box::new(&b"it\n"[..])), ..listen() });
    assert_eq!(end(again.await.unwrap()).await.out, "got it\n");
    drop(reader);
    // Tars in both directions, with a length and without.
    let tar = &*tar_of(&[("big", &bytes)]).leak();
    for length in [None, Some(tar.len() as u64)] {
        client.stream_in("c", "root", "/tmp", tar, length).await.unwrap();
        let done = run(&client, "c", &script("sha256sum /tmp/big; rm /tmp/big")).await;
        assert!(done.out.starts_with(&sum), "{done:?}");
    }
    client.stream_in("c", "root", "/tmp", tar, Some(tar.len() as u64)).await.unwrap();
    let mut back = Vec::new();
    client.stream_out("c", "root", "/tmp/big").await.unwrap().read_to_end(&mut back).await.unwrap();
    let mut archive = tar::Archive::new(&*back);
    let mut content = Vec::new();
    archive.entries().unwrap().next().unwrap().unwrap().read_to_end(&mut content).unwrap();
    assert_eq!(digest(&content), sum);
    // The same by the command line.
    let file = papers.path("big");
    std::fs::write(&file, &bytes).unwrap();
    let done = papers.wardian(&tcp, "ours.client", &["exec", "-i", "c", "--", "cat"], &file);
    assert!(
        done.status.success() && digest(&done.stdout) == sum,
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let back = papers.path("back");
    let (from, to) = (file.to_str().unwrap(), back.to_str().unwrap());
    for args in [["cp", from, "c:/tmp/copy"], ["cp", "c:/tmp/copy", to]] {
        let done = papers.wardian(&tcp, "ours.client", &args, Path::new("/dev/null"));
        assert!(done.status.success(), "{done:?}");
    }
    assert_eq!(digest(&std::fs::read(&back).unwrap()), sum);
    // A client that goes in the middle of its tar leaves nothing that is waited for.
    let (half, whole) = (std::io::Cursor::new(&tar[..tar.len() / 2]), tar.len() as u64);
    client.stream_in("c", "root", "/tmp", half, Some(whole)).await.unwrap_err();
    server.until_idle("c").await;
    client.destroy("c").await.unwrap();
    server.finish().await;
}

#[tokio::test]
async fn a_key_that_others_can_read_is_refused() {
    let papers = Papers::new();
    let mut server = Server::start().await;
    server.terminate().await;
    let start = |flags: &[String]| {
        let mut command = server.command();
        command
            .args(flags)
            .args(["--log-format", "text", "--listen", "tcp:127.0.0.1:0"])
            .stderr(Stdio::piped());
        let done = command.output().unwrap();
        assert!(!done.status.success());
        String::from_utf8_lossy(&done.stderr).into_owned()
    };
    let said = start(&[]);
    assert!(said.contains("--insecure-listen") && said.contains("--tls-client-ca"), "{said}");
    let said = start(&papers.flags("ours.server")[..4]);
    assert!(said.contains("belong together"), "{said}");
    let said = start(&[papers.flags("ours.server"), words(&["--insecure-listen"])].concat());
    assert!(said.contains("give one of the two"), "{said}");
    let key = papers.path("ours.server.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let said = start(&papers.flags("ours.server"));
    assert!(said.contains("chmod 600"), "{said}");
    server.restart().await;
    server.finish().await;
}
