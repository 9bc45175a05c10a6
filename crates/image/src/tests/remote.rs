//! Blobs from servers that fail in all ways.

use std::io::Read;
use std::time::Duration;

use super::server::{Reply, Server};
use crate::remote::{Fetch, Stop, Validator};
use crate::stream::stream_error;
use crate::{Error, Location, Remote, Settings, Watch};

/// Short waits, for servers that are known to fail.
pub(super) fn settings() -> Settings {
    Settings {
        patience: Duration::from_millis(300),
        tries: 3,
        backoff: Duration::from_millis(10),
        ..Settings::default()
    }
}

pub(super) fn hasty() -> Remote {
    Remote::new(settings()).unwrap()
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
            locations: &locations,
            mirrors_of: (locations.len() > 1).then_some("blob x"),
            size: self.size,
            limit: self.limit,
            validator: self.validator.as_ref(),
            stop: &stop,
        };
        let mut bytes = Vec::new();
        fetch.start().read_to_end(&mut bytes).map_err(|e| stream_error("x", e))?;
        Ok(bytes)
    }
}

fn fetch(server: &Server) -> Result<Vec<u8>, Error> {
    let urls = [server.url("/blob")];
    Wanted { urls: &urls, size: None, limit: u64::MAX, validator: None }.fetch(&hasty(), &Watch::default())
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
