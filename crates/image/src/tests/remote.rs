//! Blobs from servers that fail in various ways.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use super::app::all_text;
use super::is_refused;
use super::server::{Reply, Server};
use crate::bounds::stop::Stop;
use crate::format::stream::stream_error;
use crate::remote::{Fetch, NamedBy, Terms, Validator};
use crate::{Error, Location, Remote, Settings, Source, Watch};

/// A client with few tries and short pauses, but long timeouts for servers on a busy host.
pub(super) fn hasty() -> Remote {
    Remote::new(settings()).unwrap()
}

pub(super) fn settings() -> Settings {
    Settings { tries: 3, backoff: Duration::from_millis(10), ..Settings::default() }
}

/// A client with short timeouts, for servers that hang.
fn impatient(tries: u32) -> Remote {
    let connect = Duration::from_millis(500);
    Remote::new(Settings { connect, patience: Duration::from_millis(200), tries, ..settings() }).unwrap()
}

fn data() -> Vec<u8> {
    (0..200_000u32).flat_map(u32::to_le_bytes).collect()
}

/// Reads all of the blob at these URLs.
struct Wanted<'a> {
    urls: &'a [String],
    size: Option<u64>,
    limit: u64,
    validator: Option<Validator>,
}

impl Wanted<'_> {
    fn fetch(&self, remote: &Remote, watch: &Watch) -> Result<Vec<u8>, Error> {
        let locations: Vec<_> = self.urls.iter().map(|url| Location::parse(url).unwrap()).collect();
        let stop = Stop::new(watch);
        let fetch = Fetch {
            remote,
            locations: (&locations).into(),
            by: NamedBy::Caller,
            mirrors_of: (locations.len() > 1).then_some("blob x"),
            digest: locations.len() > 1,
            size: self.size,
            limit: self.limit,
            validator: self.validator.as_ref(),
            stop: &stop,
            terms: Terms::default(),
        };
        let mut bytes = Vec::new();
        fetch.start().read_to_end(&mut bytes).map_err(|e| stream_error("x", e))?;
        Ok(bytes)
    }
}

fn fetch(server: &Server) -> Result<Vec<u8>, Error> {
    fetch_by(&hasty(), server)
}

pub(super) fn fetch_by(remote: &Remote, server: &Server) -> Result<Vec<u8>, Error> {
    let urls = [server.url("/blob")];
    Wanted { urls: &urls, size: None, limit: u64::MAX, validator: None }.fetch(remote, &Watch::default())
}

#[test]
fn at_once() {
    let server = Server::new(vec![Reply::of(&data())]);
    assert_eq!(fetch(&server).unwrap(), data());
    let requests = server.requests();
    assert!(requests.len() == 1 && requests[0].starts_with("GET /blob "), "{requests:?}");
    assert!(requests[0].contains("accept-encoding: identity") && !requests[0].contains("range"));
}

#[test]
fn resumed() {
    let etag = r#""v1""#;
    let date = "Tue, 15 Nov 1994 12:45:26 GMT";
    let tagged = |reply: Reply| reply.with("ETag", etag).with("Last-Modified", date);
    let weak = |reply: Reply| reply.with("ETag", "W/\"v1\"").with("Last-Modified", date);
    let bare = |reply: Reply| reply;
    type Case<'a> = (&'a str, &'a dyn Fn(Reply) -> Reply, Option<&'a str>);
    let cases: [Case<'_>; 3] =
        [("etag", &tagged, Some(etag)), ("date", &weak, Some(date)), ("nothing", &bare, None)];
    for (what, with, condition) in cases {
        for ranges in [true, false] {
            let whole = || with(Reply { ranges, ..Reply::of(&data()) });
            let server = Server::new(vec![whole().cut(1000), Reply::status(503), whole()]);
            assert_eq!(fetch(&server).unwrap(), data(), "{what} {ranges}");
            let requests = server.requests();
            assert_eq!(requests.len(), 3);
            assert!(requests[2].contains("\r\nrange: bytes=1000-\r\n"), "{requests:?}");
            match condition {
                Some(value) => assert!(requests[2].contains(&format!("\r\nif-range: {value}\r\n"))),
                None => assert!(!requests[2].contains("if-range")),
            }
        }
    }
}

#[test]
fn resumed_from_something_else() {
    let whole = |etag: &str| Reply { ranges: true, ..Reply::of(&data()) }.with("ETag", etag);
    let cut = || whole("\"a\"").cut(1000);
    let part = |range: &str| Reply { status: 206, ..whole("\"a\"") }.with("Content-Range", range);
    let changed = |e: &Error| matches!(e, Error::Changed { .. });
    let corrupt = |e: &Error| matches!(e, Error::Corrupt { .. });
    // Without ranges the server sends its Content-Range as it is.
    let part = |range| Reply { ranges: false, ..part(range) };
    type Fits<'a> = &'a dyn Fn(&Error) -> bool;
    let cases: [(&str, Reply, Fits<'_>); 10] = [
        ("another tag", whole("\"b\""), &changed),
        ("a weak tag", whole("W/\"a\""), &changed),
        ("no tag", Reply::of(&data()), &changed),
        ("shorter", Reply::of(&data()[..2000]).with("ETag", "\"a\""), &changed),
        ("shorter than what is there", Reply::status(416), &changed),
        ("another total", part("bytes 1000-1999/2000"), &changed),
        ("another part", part("bytes 0-799999/800000"), &corrupt),
        ("no part", Reply { status: 206, ..Reply::of(b"x") }, &corrupt),
        ("nonsense", part("bytes 1000-999/800000"), &corrupt),
        ("other units", part("lines 1000-1001/800000"), &corrupt),
    ];
    for (what, then, fits) in cases {
        let server = Server::new(vec![cut(), then]);
        let error = fetch(&server).expect_err(what);
        assert!(fits(&error), "{what}: {error:?}");
        assert_eq!(server.requests().len(), 2, "{what}");
    }
    // A part of another file is detected by its tag or its date, whichever If-Range has used.
    let (date, later) = ("Tue, 15 Nov 1994 12:45:26 GMT", "Tue, 15 Nov 1994 12:45:27 GMT");
    let rest = || {
        let part = Reply { status: 206, ..Reply::of(&data()[1000..]) };
        part.with("Content-Range", "bytes 1000-799999/800000")
    };
    let dated = || Reply::of(&data()).with("Last-Modified", date).cut(1000);
    let both = || cut().with("Last-Modified", date);
    for (what, first, then, same) in [
        ("another tag", cut(), rest().with("ETag", "\"b\""), false),
        ("no tag", cut(), rest(), false),
        ("nothing in common", cut(), rest().with("Last-Modified", date), false),
        ("another date", dated(), rest().with("Last-Modified", later), false),
        ("no date", dated(), rest(), false),
        ("only the date is another", both(), cut().with("Last-Modified", later), false),
        ("the date", dated(), rest().with("Last-Modified", date), true),
        ("the tag", both(), rest().with("ETag", "\"a\""), true),
        ("one date more", cut(), rest().with("ETag", "\"a\"").with("Last-Modified", date), true),
        ("nothing, and nothing", Reply::of(&data()).cut(1000), rest(), true),
    ] {
        let result = fetch(&Server::new(vec![first, then]));
        assert_eq!(result.as_ref().ok(), same.then(data).as_ref(), "{what}");
        assert!(same || changed(&result.unwrap_err()), "{what}");
    }
    // Only headers of both responses are compared: the first did not have the length.
    let open = Reply { no_length: true, ..Reply::of(b"abc").with("ETag", "\"a\"") };
    let open = open.with("Transfer-Encoding", "chunked");
    let open = Reply { body: b"1\r\na\r\n".to_vec(), ..open };
    let server = Server::new(vec![open, Reply::of(b"abc").with("ETag", "\"a\"")]);
    assert_eq!(fetch(&server).unwrap(), b"abc");
    // A file that has shrunk to the received size is reported as changed.
    let end = Reply::status(416).with("Content-Range", "bytes */1000");
    let error = fetch(&Server::new(vec![cut(), end])).unwrap_err();
    assert!(changed(&error), "{error:?}");
    // More bytes than the total.
    let more = Reply { ranges: false, status: 206, no_length: true, ..Reply::of(&data()[999..]) };
    let more = more.with("Content-Range", "bytes 1000-799999/800000").with("ETag", "\"a\"");
    let error = fetch(&Server::new(vec![cut(), more])).unwrap_err();
    assert!(matches!(error, Error::SizeMismatch { expected: 800_000, .. }), "{error:?}");
    // All bytes were received, only the end of the response was lost.
    let open = Reply {
        status: 200,
        headers: vec![("Transfer-Encoding", "chunked".into())],
        no_length: true,
        ..cut()
    };
    let open = Reply { body: b"3\r\nabc\r\n".to_vec(), cut: None, ..open };
    for (range, whole) in [("bytes */3", true), ("bytes */4", false), ("3", false)] {
        let end = Reply::status(416).with("Content-Range", range);
        let result = fetch(&Server::new(vec![open.clone(), end]));
        assert_eq!(result.as_deref().ok(), whole.then_some(&b"abc"[..]), "{result:?}");
        assert!(whole || changed(&result.unwrap_err()));
    }
    // A part that was not requested.
    let error = fetch(&Server::new(vec![part("bytes 0-799999/800000")])).unwrap_err();
    assert!(matches!(error, Error::Refused { status: 206, .. }), "{error:?}");
}

#[test]
fn tried_again() {
    let ok = || Reply::of(&data());
    let later = |status, seconds| Reply::status(status).with("Retry-After", seconds);
    let past = "Tue, 15 Nov 1994 12:45:26 GMT";
    for failures in [
        [later(429, "0"), later(503, past)],
        [Reply::status(408), Reply::status(500)],
        [Reply::status(502), later(504, "nonsense")],
        [ok().cut(0), Reply::status(599)],
    ] {
        let server = Server::new([&failures[..], &[ok()]].concat());
        assert_eq!(fetch(&server).unwrap(), data());
        assert_eq!(server.requests().len(), 3);
    }
    let server = Server::new(vec![Reply::status(503)]);
    let error = fetch(&server).unwrap_err();
    assert!(matches!(&error, Error::Fetch { why, .. } if why.contains("503")), "{error:?}");
    assert!(server.requests().len() == 3 && !is_refused(&error));
    // Enough new bytes reset the failures, so more connections may break than there are tries.
    const PIECE: usize = 64 << 10;
    let bytes = &data()[..10 * PIECE];
    let drops = |n: usize| Reply { ranges: true, ..Reply::of(bytes) }.cut(n);
    let server = Server::new(vec![vec![drops(PIECE), drops(0)]; 9].concat());
    assert!(is_truncated(&server));
    assert_eq!(server.requests().len(), 19, "nine pieces, and after the last three failures in a row");
    let server = Server::new(vec![vec![drops(PIECE), drops(0)]; 10].concat());
    assert_eq!(fetch(&server).unwrap(), bytes);
    // A few bytes do not: a server could go on like that for ever.
    let server = Server::new(vec![drops(1)]);
    assert!(is_truncated(&server));
    assert_eq!(server.requests().len(), 3);
    // Bytes sent again do not count as new.
    let again = Reply::of(bytes).cut(5);
    let server = Server::new(vec![again]);
    assert!(is_truncated(&server));
    assert_eq!(server.requests().len(), 1 + 2);
    // No server listens.
    let url = Server::new(vec![Reply::status(200)]).url("/");
    let wanted = Wanted { urls: &[url], size: None, limit: 9, validator: None };
    let error = wanted.fetch(&hasty(), &Watch::default()).unwrap_err();
    assert!(matches!(&error, Error::Fetch { why, .. } if why.contains("refused")), "{error:?}");
}

fn is_truncated(server: &Server) -> bool {
    fetch(server)
        .is_err_and(|e| matches!(&e, Error::Truncated { what } if what.starts_with(&server.url("/blob"))))
}

#[test]
fn refused() {
    for status in [400, 401, 403, 404, 410, 204, 304] {
        let server = Server::new(vec![Reply::status(status)]);
        let error = fetch(&server).unwrap_err();
        assert!(matches!(&error, Error::Refused { status: shown, .. } if *shown == status), "{error:?}");
        assert!(is_refused(&error) && server.requests().len() == 1, "{status}");
    }
}

#[test]
fn a_server_that_hangs() {
    let bytes = &data()[..5000];
    let etag = |reply: Reply| reply.with("ETag", "\"a\"");
    let whole = || etag(Reply { ranges: true, ..Reply::of(bytes) });
    for first in [
        whole().hang(0),
        whole().hang(4000),
        Reply { silent: true, ..whole() },
        Reply { drip: true, ..whole() },
    ] {
        let server = Server::new(vec![first, whole()]);
        // Many tries, because a slow test host looks like a server that hangs.
        assert_eq!(fetch_by(&impatient(50), &server).unwrap(), bytes);
        assert!(server.requests().len() >= 2);
    }
    for always in [whole().hang(0), Reply { silent: true, ..whole() }] {
        let server = Server::new(vec![always]);
        let error = fetch_by(&impatient(2), &server).unwrap_err();
        assert!(matches!(&error, Error::Fetch { .. }), "{error:?}");
    }
}

/// The deadline ends the fetch whatever the server does, and whatever other URLs there are.
#[test]
fn a_server_that_takes_too_long() {
    let hour = Duration::from_secs(3600);
    let deadline = Duration::from_millis(300);
    let remote =
        Remote::new(Settings { patience: hour, backoff: hour, tries: 1000, deadline, ..settings() }).unwrap();
    let ok = || Reply::of(&data());
    for reply in [
        Reply { drip: true, ..ok() },
        Reply { silent: true, ..ok() },
        ok().hang(100),
        Reply::status(503),
        Reply { ranges: true, ..ok() }.cut(1),
    ] {
        let server = Server::new(vec![reply]);
        let urls = vec![server.url("/?SECRET"); 2];
        let wanted = Wanted { urls: &urls, size: None, limit: u64::MAX, validator: None };
        let error = wanted.fetch(&remote, &Watch::default()).unwrap_err();
        assert!(matches!(&error, Error::Deadline { url, .. } if *url == server.url("/")), "{error:?}");
        assert!(error.to_string().contains("longer than 300ms"), "{error}");
    }
    // Unlimited settings cause no overflow.
    let max = Duration::MAX;
    let settings = Settings { connect: max, patience: max, backoff: max, deadline: max, ..settings() };
    let server = Server::new(vec![ok()]);
    assert_eq!(fetch_by(&Remote::new(settings).unwrap(), &server).unwrap(), data());
}

/// Interim answers are no answer, however many there are.
#[test]
fn a_flood_of_interim_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            while stream.write_all(&b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n".repeat(100)).is_ok() {}
        }
    });
    let urls = [format!("http://{address}/")];
    let wanted = Wanted { urls: &urls, size: None, limit: u64::MAX, validator: None };
    let start = Instant::now();
    let error = wanted.fetch(&impatient(2), &Watch::default()).unwrap_err();
    assert!(matches!(&error, Error::Fetch { why, .. } if why.contains("no answer in 700ms")), "{error:?}");
    let deadline = Duration::from_millis(300);
    let remote = Remote::new(Settings { deadline, tries: 1000, ..settings() }).unwrap();
    let error = wanted.fetch(&remote, &Watch::default()).unwrap_err();
    assert!(matches!(&error, Error::Deadline { .. }), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn sizes() {
    let bytes = &data()[..5000];
    for (size, limit, no_length, fits) in [
        (Some(5000), 5000, false, None),
        (None, 5000, true, None),
        (Some(4999), 9999, false, Some("expected 4999 bytes, got 5000")),
        (Some(5001), 9999, false, Some("expected 5001 bytes, got 5000")),
        (None, 4999, false, Some("exceeds the limit of 4999 bytes; `--max-layer-bytes` allows more")),
        (None, 4999, true, Some("exceeds the limit of 4999 bytes; `--max-layer-bytes` allows more")),
        (None, 0, true, Some("exceeds the limit of 0 bytes; `--max-layer-bytes` allows more")),
    ] {
        let server = Server::new(vec![Reply { no_length, ..Reply::of(bytes) }]);
        let urls = [server.url("/x")];
        let result = Wanted { urls: &urls, size, limit, validator: None }.fetch(&hasty(), &Watch::default());
        match fits {
            None => assert_eq!(result.unwrap(), bytes),
            Some(text) => assert!(result.as_ref().unwrap_err().to_string().ends_with(text), "{result:?}"),
        }
        assert_eq!(server.requests().len(), 1);
    }
    // A part's Content-Range tells the total size.
    let first = Reply { no_length: true, ..Reply::of(bytes) };
    let server = Server::new(vec![first.cut(10)]);
    let urls = [server.url("/x")];
    let wanted = Wanted { urls: &urls, size: None, limit: 9999, validator: None };
    assert_eq!(wanted.fetch(&hasty(), &Watch::default()).unwrap(), &bytes[..10], "nobody promised more");
}

#[test]
fn redirects() {
    let target = Server::new(vec![Reply::of(&data())]);
    let to = target.url("/there?sig=2");
    let server = Server::new(vec![Reply::status(302).with("Location", &to)]);
    let urls = [server.url("/blob?sig=1")];
    let wanted = Wanted { urls: &urls, size: None, limit: u64::MAX, validator: None };
    assert_eq!(wanted.fetch(&hasty(), &Watch::default()).unwrap(), data());
    let request = &target.requests()[0];
    assert!(request.starts_with("GET /there?sig=2 ") && !request.contains("sig=1"), "{request}");
    let endless = Server::new(vec![Reply::status(307).with("Location", "/blob")]);
    let error = fetch(&endless).unwrap_err();
    assert!(matches!(&error, Error::Fetch { why, .. } if why.contains("too many redirects")), "{error:?}");
    assert_eq!(endless.requests().len(), 11);
    for nowhere in ["ftp://127.0.0.1/SECRET", "file:///etc/passwd", "http://[SECRET"] {
        let server = Server::new(vec![Reply::status(302).with("Location", nowhere)]);
        let error = fetch(&server).unwrap_err();
        assert!(!all_text(&error).contains("SECRET"), "{error:?}");
    }
}

/// Cancelled while the server is silent, while it hangs, and during the pause before a retry.
#[test]
fn cancelled() {
    let hour = Duration::from_secs(3600);
    let ok = || Reply::of(&data());
    let patient = Remote::new(Settings { patience: hour, backoff: hour, ..settings() }).unwrap();
    for reply in [
        Reply { silent: true, ..ok() },
        ok().hang(0),
        ok().hang(100),
        Reply::status(503),
        Reply::status(429).with("Retry-After", "30"),
    ] {
        let server = Server::new(vec![reply]);
        let (urls, watch) = ([server.url("/")], Watch::default());
        let wanted = Wanted { urls: &urls, size: None, limit: u64::MAX, validator: None };
        let result = std::thread::scope(|scope| {
            let fetch = scope.spawn(|| wanted.fetch(&patient, &watch));
            server.wait_for_requests(1);
            watch.cancel();
            fetch.join().unwrap()
        });
        assert!(matches!(result, Err(Error::Cancelled { .. })), "{result:?}");
    }
}

/// No part of an error shows more of a URL than scheme, host and path.
#[test]
fn secrets() {
    let url = "https://SECRET:SECRET@h.example:8443/a%20b?X-Amz-Signature=SECRET#SECRET";
    let location = Location::parse(url).unwrap();
    assert_eq!(location.to_string(), "https://h.example:8443/a%20b");
    assert_eq!(format!("{location:?}"), "Location(https://h.example:8443/a%20b)");
    let long = Location::parse(&format!("http://h/{}", "a".repeat(9999))).unwrap().to_string();
    assert!(long.len() < 300 && long.ends_with("a…"));
    for text in [
        "SECRET",
        "://SECRET",
        "http://SECRET:x:y/",
        "http://h:SECRET/",
        "x://SECRET",
        "file://SECRET/x",
        "file:///x?SECRET",
    ] {
        let error = Location::parse(text).unwrap_err();
        assert!(matches!(error, Error::Url { .. }) && !all_text(&error).contains("SECRET"), "{error:?}");
    }
    let whole = || Reply { ranges: true, ..Reply::of(&data()) }.with("ETag", "\"a\"");
    let scripts = [
        vec![Reply::status(403)],
        vec![Reply::status(503)],
        vec![whole().hang(0)],
        vec![whole().cut(0)],
        vec![Reply { silent: true, ..whole() }],
        vec![whole().cut(10), Reply::of(b"SECRET")],
        vec![whole().cut(10), Reply { status: 206, ..Reply::of(b"SECRET") }],
        vec![Reply::status(302).with("Location", "http://127.0.0.1:1/?SECRET")],
        vec![Reply::status(302).with("Location", "https://127.0.0.1:1/?SECRET")],
        vec![Reply::status(302).with("Location", "/blob?SECRET")],
        vec![Reply::status(302).with("Location", "gopher://x/?SECRET")],
        vec![Reply::of(b"way too long, and SECRET")],
    ];
    let remote = impatient(2);
    for (index, script) in scripts.into_iter().enumerate() {
        for mirrors in [1, 2] {
            let server = Server::new(script.clone());
            let url = server.url("/d?sig=SECRET#SECRET").replace("http://", "http://SECRET:SECRET@");
            let urls = vec![url.clone(); mirrors];
            let wanted = Wanted { urls: &urls, size: None, limit: 20, validator: None };
            let limit = if index < 11 { u64::MAX } else { wanted.limit };
            let error = Wanted { limit, ..wanted }.fetch(&remote, &Watch::default()).unwrap_err();
            let text = all_text(&error);
            assert!(!text.contains("SECRET"), "{index}: {text}");
            assert!(text.contains("http://127.0.0.1"), "{index}: {text}");
        }
    }
    let uri = Source::parse("https://SECRET:SECRET@h/x?SECRET#SECRET").unwrap_err();
    assert!(!all_text(&uri).contains("SECRET") && uri.to_string().contains("https://h/x"), "{uri}");
}

#[test]
fn by_a_name() {
    let server = Server::new(vec![Reply::of(&data())]);
    let urls = [server.url("/").replace("127.0.0.1", "localhost")];
    let wanted = Wanted { urls: &urls, size: None, limit: u64::MAX, validator: None };
    assert_eq!(wanted.fetch(&hasty(), &Watch::default()).unwrap(), data());
    let urls = [server.url("/?SECRET").replace("127.0.0.1", "no-such-host.invalid")];
    let error = Wanted { urls: &urls, ..wanted }.fetch(&impatient(1), &Watch::default()).unwrap_err();
    assert!(matches!(&error, Error::Fetch { url, .. } if url.contains("no-such-host")), "{error:?}");
    assert!(!all_text(&error).contains("SECRET"));
}

/// The proxy is set in the environment, so this test runs itself in another process.
#[test]
fn through_a_proxy() {
    const CHILD: &str = "WARDIAN_TEST_THROUGH_A_PROXY";
    if std::env::var_os(CHILD).is_some() {
        let urls = ["http://no-such-host.invalid/blob".to_owned()];
        let wanted = Wanted { urls: &urls, size: None, limit: u64::MAX, validator: None };
        assert_eq!(wanted.fetch(&hasty(), &Watch::default()).unwrap(), data());
        return;
    }
    let proxy = Server::new(vec![Reply::of(&data())]);
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::remote::through_a_proxy"])
        .env(CHILD, "")
        .env("http_proxy", proxy.url(""))
        .env_remove("no_proxy")
        .env_remove("NO_PROXY")
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    assert!(proxy.requests()[0].starts_with("GET http://no-such-host.invalid/blob "));
}
