//! Blobs and manifests sent to registries that misbehave.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::credentials::{basic, field, identity, tokens, unauthorized};
use super::*;
use crate::RegistryError;
use crate::bounds::stop::Stop;
use crate::registry::{Content, Outgoing, Pusher, Sent};

const SESSION: &str = "/v2/r/blobs/uploads/1?state=a";

/// A blob of this many bytes.
fn made(size: usize) -> Vec<u8> {
    (0..size).map(|at| b'a' + u8::try_from(at % 23).unwrap()).collect()
}

/// What an ordinary registry answers that has nothing yet.
pub(super) fn taking(request: &str) -> Reply {
    let path = path_of(request);
    match request.split(' ').next().unwrap() {
        "HEAD" => Reply { status: 404, ..Reply::of(b"{}") },
        "POST" => Reply { status: 202, ..Reply::of(b"") }.with("Location", SESSION),
        "PATCH" => Reply { status: 202, ..Reply::of(b"") }.with("Location", &path.replace("=a", "=b")),
        "PUT" => Reply { status: 201, ..Reply::of(b"") },
        _ => Reply::of(b"{}"),
    }
}

fn serve(script: impl Fn(&str) -> Option<Reply> + Send + Sync + 'static) -> Server {
    Server::by(
        move |requests| {
            let request = requests.last().unwrap();
            script(request).unwrap_or_else(|| taking(request))
        },
        None,
    )
}

fn pusher(client: &Client, server: &Server, login: Option<Login>, from: Option<&str>) -> Pusher {
    Pusher::new(&client.remote, &name(&server.host()), endpoint(server), login, from).unwrap()
}

fn send(pusher: &Pusher, blob: &Vec<u8>) -> Result<Sent, Error> {
    send_watched(pusher, &Digest::of(blob), blob.len(), blob, &Watch::default())
}

fn send_watched(
    pusher: &Pusher,
    digest: &Digest,
    size: usize,
    content: &dyn Content,
    watch: &Watch,
) -> Result<Sent, Error> {
    let (stop, sent) = (Stop::new(watch), AtomicU64::new(5));
    match pusher.have(digest, &stop)? {
        Ok(how) => Ok(how),
        Err(upload) => {
            let blob = Outgoing { digest, size: size as u64, content };
            pusher.send(blob, upload, &stop, &sent)?;
            assert_eq!(sent.into_inner(), 5 + size as u64);
            Ok(Sent::Sent)
        }
    }
}

/// The requests without those that look for the scheme: method and path each.
fn lines(server: &Server) -> Vec<String> {
    let requests = server.requests();
    let lines = requests.iter().map(|request| request.split(" HTTP").next().unwrap().to_owned());
    lines.filter(|line| line != "GET /v2/" && !line.contains('\u{fffd}')).collect()
}

fn last(server: &Server, method: &str) -> String {
    server.requests().into_iter().rfind(|request| request.starts_with(method)).unwrap()
}

#[track_caller]
fn refused<T>(result: Result<T, Error>, parts: &[&str]) -> Error {
    let error = result.err().expect("it was taken");
    let text = all_text(&error);
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    assert!(!text.contains("SECRET"), "{text}");
    error
}

#[test]
fn a_blob() {
    let (small, large) = (made(1000), made(200_000));
    let query = |blob: &Vec<u8>| format!("digest=sha256%3A{}", Digest::of(blob).as_hex());
    let (client, server) = (Client::new(), serve(|_| None));
    assert_eq!(send(&pusher(&client, &server, None, None), &small).unwrap(), Sent::Sent);
    let head = |blob: &Vec<u8>| format!("HEAD /v2/r/{}", super::blob(blob));
    let begin = "POST /v2/r/blobs/uploads/".to_owned();
    let expected = [head(&small), begin.clone(), format!("PUT {SESSION}&{}", query(&small))];
    assert_eq!(lines(&server), expected);
    assert!(last(&server, "PUT").ends_with(std::str::from_utf8(&small).unwrap()));
    let server = serve(|_| None);
    assert_eq!(send(&pusher(&client, &server, None, None), &large).unwrap(), Sent::Sent);
    let put = format!("PUT {}&{}", SESSION.replace("=a", "=b"), query(&large));
    assert_eq!(lines(&server), [head(&large), begin, format!("PATCH {SESSION}"), put]);
    let patch = last(&server, "PATCH");
    assert!(patch.ends_with(std::str::from_utf8(&large).unwrap()));
    assert_eq!(field(&patch, "content-length"), Some("200000"));
    assert_eq!(field(&patch, "content-type"), Some("application/octet-stream"));
    assert_eq!((field(&patch, "content-range"), field(&patch, "transfer-encoding")), (None, None));
    // What is there is not sent.
    let server = serve(|request| request.starts_with("HEAD").then(|| Reply::of(b"")));
    assert_eq!(send(&pusher(&client, &server, None, Some("other")), &large).unwrap(), Sent::There);
    assert_eq!(lines(&server), [head(&large)]);
}

#[test]
fn a_mount() {
    let (client, blob) = (Client::new(), made(200_000));
    let mount =
        format!("POST /v2/r/blobs/uploads/?mount=sha256%3A{}&from=some%2Fother", Digest::of(&blob).as_hex());
    for (reply, how, count) in [
        (Reply { status: 201, ..Reply::of(b"") }, Sent::Mounted, 2),
        // The upload that is begun instead is used.
        (Reply { status: 202, ..Reply::of(b"") }.with("Location", SESSION), Sent::Sent, 4),
        (Reply::status(403), Sent::Sent, 5),
        (Reply::status(404), Sent::Sent, 5),
        (Reply::status(405), Sent::Sent, 5),
    ] {
        let server = serve(move |request| request.contains("?mount=").then(|| reply.clone()));
        let pusher = pusher(&client, &server, None, Some("some/other"));
        assert_eq!(send(&pusher, &blob).unwrap(), how);
        let lines = lines(&server);
        assert!(lines.len() == count && lines[1] == mount, "{lines:?}");
    }
}

#[test]
fn refusals() {
    let (client, blob) = (Client::with(Settings { tries: 2, ..settings() }), made(200_000));
    let body = br#"{"errors":[{"code":"NAME_UNKNOWN","message":"no such project"}]}"#;
    for (method, reply, parts) in [
        (
            "POST",
            Reply::status(403),
            &["does not let you push to 127.0.0.1:", "answered 403", "image login"][..],
        ),
        (
            "POST",
            unauthorized("Basic realm=\"x\""),
            &["does not let you push", "answered 401", "image login"],
        ),
        (
            "POST",
            Reply { status: 404, ..Reply::of(body) },
            &["has no repository r", "no such project", "make it"],
        ),
        ("POST", Reply::status(405), &["the registry answered 405", "it only reads"]),
        ("POST", Reply::status(202), &["no usable address for an upload: its answer names none"]),
        ("POST", Reply::status(201), &["no usable address", "as if it had got everything"]),
        ("POST", Reply::status(307).with("Location", "/x"), &["the registry answered 307"]),
        ("POST", Reply::status(202).with("Location", "ftp://127.0.0.1/SECRET"), &["neither http nor https"]),
        (
            "POST",
            Reply::status(202).with("Location", "http://u:SECRET@127.0.0.1/"),
            &["a user or a password"],
        ),
        ("POST", Reply::status(202).with("Location", "http://[/SECRET"), &["it is no URL"]),
        ("POST", Reply::status(503), &["the registry answered 503"]),
        ("POST", Reply::status(429), &["limits how often images are pushed to it"]),
        ("PATCH", Reply::status(413), &["the registry answered 413", "a proxy in front of the registry"]),
        ("PATCH", Reply::status(202), &["its answer names none"]),
        ("PATCH", Reply::status(416), &["the registry answered 416"]),
        ("PATCH", Reply::status(404), &["has no repository r"]),
        (
            "PATCH",
            Reply::status(202).with("Location", SESSION).with("Range", "0-999999"),
            &["more than was sent"],
        ),
        ("PATCH", Reply::status(202).with("Location", SESSION).with("Range", "0-9"), &["is truncated"]),
        ("PUT", Reply::status(400), &["the registry answered 400"]),
        (
            "PUT",
            Reply::status(201).with("Docker-Content-Digest", &Digest::of(b"other").to_string()),
            &["header", &Digest::of(b"other").to_string(), &Digest::of(&blob).to_string()],
        ),
    ] {
        let server = serve(move |request| request.starts_with(method).then(|| reply.clone()));
        refused(send(&pusher(&client, &server, None, None), &blob), parts);
        assert!(server.requests().len() < 20, "{:?}", lines(&server));
    }
    let with_digest = ImageName::parse(&format!("h.x/r@{}", Digest::of(b""))).unwrap();
    let result = Pusher::new(&client.remote, &with_digest, Endpoint::of(&with_digest), None, None);
    refused(result, &["is pushed to a tag"]);
}

#[test]
fn a_manifest() {
    let (client, watch) = (Client::new(), Watch::default());
    let stop = Stop::new(&watch);
    let digest = Digest::of(b"{}");
    let server = serve(|_| None);
    assert_eq!(pusher(&client, &server, None, None).tag(b"{}", OCI, &stop).unwrap(), digest);
    let put = last(&server, "PUT");
    assert!(put.starts_with("PUT /v2/r/manifests/latest HTTP") && put.ends_with("\r\n\r\n{}"), "{put}");
    assert_eq!(field(&put, "content-type"), Some(OCI));
    let wrong = Digest::of(b"other").to_string();
    let reply = Reply::status(201).with("Docker-Content-Digest", &wrong);
    let server = serve(move |request| request.starts_with("PUT").then(|| reply.clone()));
    let parts = ["the registry's header", &wrong, &digest.to_string()];
    refused(pusher(&client, &server, None, None).tag(b"{}", OCI, &stop), &parts);
    let body = br#"{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","message":"it lacks one"}]}"#;
    let server =
        serve(move |request| request.starts_with("PUT").then(|| Reply { status: 404, ..Reply::of(body) }));
    let parts = ["the registry answered 404: MANIFEST_BLOB_UNKNOWN: it lacks one; ", "push it once more"];
    refused(pusher(&client, &server, None, None).tag(b"{}", OCI, &stop), &parts);
    let server = serve(|request| request.starts_with("PUT").then(|| Reply::status(403)));
    refused(pusher(&client, &server, None, None).tag(b"{}", OCI, &stop), &["does not let you push"]);
}

/// A registry that wants tokens, and another one for the rest of a blob.
#[test]
fn tokens_of_pushes() {
    let blob = made(300_000);
    for (login, request) in [
        (
            basic(),
            "GET /t?scope=repository%3Ar%3Apull%2Cpush&scope=repository%3Aother%3Apull&account=us+er HTTP",
        ),
        (identity(), "scope=repository%3Ar%3Apull%2Cpush+repository%3Aother%3Apull&"),
    ] {
        let (tokens, client) = (tokens(), Client::new());
        let challenge = format!(r#"Bearer realm="{}""#, tokens.url("/t"));
        let server = Server::by(
            move |requests| {
                let request = requests.last().unwrap();
                let token = field(request, "authorization");
                let patches = requests.iter().filter(|request| request.starts_with("PATCH")).count();
                match token {
                    _ if path_of(request) == "/v2/" => Reply::of(b"{}"),
                    None => unauthorized(&challenge),
                    Some("Bearer SECRET-token0") if patches > 0 => unauthorized(&challenge),
                    Some(_) if request.starts_with("GET") => {
                        Reply { status: 204, ..Reply::of(b"") }.with("Range", "0-99999")
                    }
                    Some(_) => taking(request),
                }
            },
            None,
        );
        send(&pusher(&client, &server, login, Some("other")), &blob).unwrap();
        let asked = tokens.requests();
        assert!(asked.len() == 2 && asked[0].contains(request), "{asked:?}");
        let patch = last(&server, "PATCH");
        assert_eq!(field(&patch, "content-range"), Some("100000-299999"));
        assert!(patch.ends_with(std::str::from_utf8(&blob[100_000..]).unwrap()));
    }
    // One that refuses each token.
    let (tokens, client) = (tokens(), Client::new());
    let challenge = format!(r#"Bearer realm="{}""#, tokens.url("/t"));
    let server = serve(move |request| request.starts_with("PATCH").then(|| unauthorized(&challenge)));
    let parts = ["does not let you push", "answered 401", "with another account"];
    refused(send(&pusher(&client, &server, basic(), None), &blob), &parts);
    assert_eq!(lines(&server).iter().filter(|line| line.starts_with("PATCH")).count(), 2);
}

/// Another server that an upload goes to is shown no credentials, and cannot ask for them.
#[test]
fn uploads_elsewhere() {
    let (blob, client) = (made(200_000), Client::new());
    for (challenges, good) in [(false, true), (true, false)] {
        let evil = tokens();
        let challenge = format!(r#"Bearer realm="{}""#, evil.url("/SECRET"));
        let elsewhere = serve(move |_| challenges.then(|| unauthorized(&challenge)));
        let to = elsewhere.url("/upload?signature=SECRET");
        let server = serve(move |request| match field(request, "authorization") {
            _ if path_of(request) == "/v2/" => None,
            None => Some(unauthorized("Basic realm=\"r\"")),
            Some(_) => request.starts_with("POST").then(|| Reply::status(202).with("Location", &to)),
        });
        let result = send(&pusher(&client, &server, basic(), None), &blob);
        match good {
            true => drop(result.unwrap()),
            false => drop(refused(result, &["this server, which the registry names, answered 401"])),
        }
        let requests = elsewhere.requests();
        assert!(requests.iter().all(|request| field(request, "authorization").is_none()), "{requests:?}");
        assert_eq!((requests.len(), evil.requests().len()), (if good { 2 } else { 1 }, 0));
        let shown =
            server.requests().iter().filter_map(|request| field(request, "authorization").map(drop)).count();
        assert_eq!(shown, 2, "at HEAD and POST");
    }
}

/// The connection breaks in the middle of a blob, which goes on from what the registry has of it.
#[test]
fn broken_off() {
    let (blob, client) = (made(500_000), Client::new());
    let cut: fn(&str, usize) -> Option<usize> =
        |head, _| (head.starts_with("PATCH") && !head.contains("content-range")).then_some(150_000);
    let script = |requests: &[String]| {
        let request = requests.last().unwrap();
        match request.starts_with("GET /v2/r/blobs/uploads/") {
            true => {
                let reply = Reply { status: 204, ..Reply::of(b"") }.with("Range", "0-99999");
                reply.with("Location", &SESSION.replace("=a", "=c"))
            }
            false => taking(request),
        }
    };
    let server = Server::cutting(script, None, cut);
    send(&pusher(&client, &server, None, None), &blob).unwrap();
    let patch = last(&server, "PATCH");
    assert!(patch.starts_with("PATCH /v2/r/blobs/uploads/1?state=c HTTP"));
    assert_eq!(field(&patch, "content-range"), Some("100000-499999"));
    assert!(patch.ends_with(std::str::from_utf8(&blob[100_000..]).unwrap()));
    assert_eq!(lines(&server).iter().filter(|line| line.starts_with("POST")).count(), 1);
    // The registry has forgotten the upload.
    let script = |requests: &[String]| {
        let request = requests.last().unwrap();
        match request.starts_with("GET /v2/r/blobs/uploads/") {
            true => Reply::status(404),
            false => taking(request),
        }
    };
    let cut: fn(&str, usize) -> Option<usize> =
        |head, before| (head.starts_with("PATCH") && before < 6).then_some(150_000);
    let server = Server::cutting(script, None, cut);
    send(&pusher(&client, &server, None, None), &blob).unwrap();
    assert!(last(&server, "PATCH").ends_with(std::str::from_utf8(&blob).unwrap()));
    // It breaks off each time.
    let server = Server::cutting(script, None, |head, _| head.starts_with("PATCH").then_some(150_000));
    refused(send(&pusher(&client, &server, None, None), &blob), &["127.0.0.1"]);
    // The answer to the last request is lost, and the registry has the blob.
    let server = Server::by(
        move |requests| {
            let request = requests.last().unwrap();
            let puts = requests.iter().filter(|request| request.starts_with("PUT")).count();
            match request {
                request if request.starts_with("PUT") => Reply { reset: true, ..Reply::of(b"") },
                request if request.starts_with("GET /v2/r/blobs/uploads/") => Reply::status(404),
                request if request.starts_with("HEAD") && puts > 0 => Reply::of(b""),
                request => taking(request),
            }
        },
        None,
    );
    send(&pusher(&client, &server, None, None), &blob).unwrap();
    assert_eq!(lines(&server).iter().filter(|line| line.starts_with("PATCH")).count(), 1);
}

/// A registry that takes nothing, or does not answer.
#[test]
fn hangs() {
    let blob = made(20 << 20);
    let patience = Duration::from_millis(50);
    let client = Client::with(Settings { patience, tries: 2, ..settings() });
    let server =
        serve(|request| request.starts_with("PATCH").then(|| Reply { silent: true, ..Reply::of(b"") }));
    refused(send(&pusher(&client, &server, None, None), &made(200_000)), &["no answer in 500ms"]);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let to = format!("http://{}/upload", listener.local_addr().unwrap());
    let server =
        serve(move |request| request.starts_with("POST").then(|| Reply::status(202).with("Location", &to)));
    let client = Client::with(Settings { patience, tries: 1, ..settings() });
    let result = send(&pusher(&client, &server, None, None), &blob);
    refused(result, &["the server hangs: it took nothing more in 50ms"]);
    // A push that is cancelled.
    let client = Client::new();
    let (watch, digest) = (Watch::default(), Digest::of(&blob));
    let server =
        serve(|request| request.starts_with("PATCH").then(|| Reply { silent: true, ..Reply::of(b"") }));
    let pusher = pusher(&client, &server, None, None);
    std::thread::scope(|scope| {
        let pushing = scope.spawn(|| send_watched(&pusher, &digest, blob.len(), &blob, &watch));
        while !server.requests().iter().any(|request| request.starts_with("PATCH")) {
            std::thread::sleep(Duration::from_millis(2));
        }
        watch.cancel();
        assert!(matches!(pushing.join().unwrap(), Err(Error::Cancelled { .. })));
    });
}

/// The bytes end before their end, or cannot be read.
#[test]
fn sources() {
    struct Broken(&'static str);
    impl Content for Broken {
        fn open(&self, from: u64) -> Result<Box<dyn std::io::Read + Send + '_>, Error> {
            use std::io::Read as _;
            let rest = std::io::repeat(b'x').take(150_000 - from);
            match self.0 {
                "" => Ok(Box::new(rest)),
                why => Ok(Box::new(rest.chain(Fails(why)))),
            }
        }
    }
    struct Fails(&'static str);
    impl std::io::Read for Fails {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            let source = RegistryError::Blob {
                image: self.0.to_owned(),
                source: Box::new(Error::Missing { path: "the source".into() }),
            };
            Err(std::io::Error::other(Error::from(source)))
        }
    }
    let (client, digest) = (Client::new(), Digest::of(b"any"));
    for (content, part) in [(Broken(""), "150000"), (Broken("the image"), "fetching blob: the image")] {
        for size in [200_000, 1_000_000] {
            let server = serve(|_| None);
            let pusher = pusher(&client, &server, None, None);
            refused(send_watched(&pusher, &digest, size, &content, &Watch::default()), &[part]);
            let lines = lines(&server);
            assert!(!lines.iter().any(|line| line.starts_with("PUT")), "{lines:?}");
        }
    }
}
