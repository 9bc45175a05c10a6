use super::*;
use crate::code::{Code, HEALTHY};
use std::io::Read as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

fn small() -> Droplet {
    let gzip = Bytes::from((0..=255).collect::<Vec<u8>>());
    let sample = Sample { file: "x".into(), digest: String::new() };
    Droplet { gzip, digest: "abc".into(), unpacked_bytes: 1, sample }
}

/// Sends a request. Returns status, headers in lower case, and body.
async fn ask(server: &DropletServer, method: &str, path: &str, headers: &str) -> (u16, String, Vec<u8>) {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).await.unwrap();
    let end = reply.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(reply[..end].to_vec()).unwrap().to_lowercase();
    (head[9..12].parse().unwrap(), head, reply[end + 4..].to_vec())
}

#[test]
fn ranges() {
    for (range, wanted) in [
        ("bytes=0-0", Asked::Part(0..1)),
        ("bytes=10-19", Asked::Part(10..20)),
        ("Bytes= 10-", Asked::Part(10..100)),
        ("bytes=99-1000", Asked::Part(99..100)),
        ("bytes=0-99999999999999999999999", Asked::Part(0..100)),
        ("bytes=-1", Asked::Part(99..100)),
        ("bytes=-1000", Asked::Part(0..100)),
        ("bytes=-0", Asked::Beyond),
        ("bytes=100-", Asked::Beyond),
        ("bytes=100-200", Asked::Beyond),
        ("bytes=99999999999999999999999-", Asked::Beyond),
        ("bytes=20-10", Asked::Whole),
        ("bytes=0-1,5-6", Asked::Whole),
        ("bytes=-", Asked::Whole),
        ("bytes=", Asked::Whole),
        ("bytes=+1-2", Asked::Whole),
        ("bytes=a-b", Asked::Whole),
        ("lines=0-1", Asked::Whole),
        ("", Asked::Whole),
    ] {
        assert_eq!(asked(range, 100), wanted, "{range}");
    }
    assert_eq!(asked("bytes=0-", 0), Asked::Beyond);
}

#[test]
fn the_droplet_is_the_code_that_is_streamed_one_directory_up() {
    let (droplet, code) = (Droplet::pack(2, 5).unwrap(), Code::salted(2, 5).unwrap());
    assert_eq!(droplet.digest, hex(&Sha256::digest(&droplet.gzip)));
    assert_eq!((&droplet.sample.file, &droplet.sample.digest), (&code.sample.file, &code.sample.digest));

    let files = |tar: &mut dyn std::io::Read| {
        let mut files = Vec::new();
        for entry in tar::Archive::new(tar).entries().unwrap() {
            let mut entry = entry.unwrap();
            let (name, header) = (entry.path().unwrap().display().to_string(), entry.header().clone());
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
            files.push((name, header.mode().unwrap(), header.uid().unwrap(), data));
        }
        files
    };
    let mut packed = files(&mut flate2::read::GzDecoder::new(&droplet.gzip[..]));
    let streamed = files(&mut &code.tar[..]);
    assert_eq!(packed.remove(0), ("app/".to_owned(), 0o755, USER_ID, Vec::new()));
    assert_eq!(packed.iter().map(|file| file.3.len() as u64).sum::<u64>(), droplet.unpacked_bytes);
    assert!(streamed.iter().any(|file| file.3 == HEALTHY.as_bytes()));
    let streamed: Vec<_> = streamed.into_iter().map(|(n, m, u, d)| (format!("app/{n}"), m, u, d)).collect();
    assert!(packed == streamed);
}

#[tokio::test]
async fn what_is_sent_is_counted() {
    let server = DropletServer::start(small()).await.unwrap();
    let counted = || (server.fetches(), server.fetched_bytes());

    let (status, head, body) = ask(&server, "HEAD", PATH, "range: bytes=0-1\r\n").await;
    assert_eq!((status, body.len()), (200, 0));
    assert!(head.contains("content-length: 256") && head.contains("etag: \"abc\""), "{head}");
    assert_eq!(counted(), (0, 0));

    let (status, head, body) = ask(&server, "GET", &format!("{PATH}?signature=1"), "").await;
    assert_eq!((status, &body[..]), (200, &server.droplet().gzip[..]));
    assert!(head.contains("content-length: 256") && head.contains("accept-ranges: bytes"), "{head}");
    assert_eq!(counted(), (1, 256));

    let (status, head, body) = ask(&server, "GET", PATH, "range: bytes=250-\r\nif-range: \"abc\"\r\n").await;
    assert_eq!((status, &body[..]), (206, &[250, 251, 252, 253, 254, 255][..]));
    assert!(head.contains("content-range: bytes 250-255/256"), "{head}");
    assert_eq!(counted(), (2, 262));

    // The range is of another version of the file.
    let (status, _, body) = ask(&server, "GET", PATH, "range: bytes=250-\r\nif-range: \"old\"\r\n").await;
    assert_eq!((status, body.len()), (200, 256));
    assert_eq!(counted(), (3, 518));

    for (method, path, headers, wanted) in [
        ("GET", PATH, "range: bytes=256-\r\n", 416),
        ("GET", PATH, "if-none-match: \"x\", \"abc\"\r\n", 304),
        ("GET", "/", "", 404),
        ("PUT", PATH, "content-length: 0\r\n", 405),
    ] {
        let (status, head, body) = ask(&server, method, path, headers).await;
        assert_eq!((status, body.len()), (wanted, 0), "{head}");
    }
    assert_eq!(counted(), (3, 518));
}

#[tokio::test]
async fn an_ended_server_leaves_nobody_waiting() {
    let server = DropletServer::start(small()).await.unwrap();
    let mut kept = TcpStream::connect(server.address).await.unwrap();
    kept.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut reply = [0; 12];
    kept.read_exact(&mut reply).await.unwrap();
    assert_eq!(&reply, b"HTTP/1.1 404");
    drop(server);
    // Either side may close the connection, but it must be closed.
    let _ = kept.read_to_end(&mut Vec::new()).await;
}

#[tokio::test]
async fn the_address_of_the_image() {
    let server = DropletServer::start(small()).await.unwrap();
    let port = server.address.port();
    let image = server.image("/var/tmp/a b/image.tar", "a+b").unwrap();
    // The signature is encoded twice: in its own URL, and with that in the image's address.
    assert_eq!(
        image,
        format!(
            "preloaded+layer:///var/tmp/a%20b/image.tar?layer=http%3A%2F%2F127.0.0.1%3A{port}%2Fdroplet.tgz%3Fsignature\
             %3Da%252Bb&layer_path=%2Fhome%2Fvcap&layer_digest=abc"
        )
    );
    for bad in ["image.tar", "docker:///busybox", ""] {
        assert!(server.image(bad, "").unwrap_err().to_string().contains("--image"), "{bad}");
    }
}
