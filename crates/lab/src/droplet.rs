//! The app's code as a platform stores it: a gzipped tar on a server, which is a layer of the app's image.
//!
//! The address of such an image is `preloaded+layer:///BASE.tar?layer=URL&layer_path=DIR&layer_digest=SHA256`: the
//! base is a plain tar on the host, names in the droplet are relative to the directory, and the digest, in hex, is
//! that of the gzip file. Only the digest identifies the layer: platforms sign the URL anew for every instance.

use crate::code::{Sample, hex, pack};
use crate::image::{HOME, USER_ID, header};
use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{
    ACCEPT_RANGES, ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH,
    IF_RANGE, RANGE,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};

/// Characters that are encoded in a value: everything but RFC 3986's unreserved characters.
const VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Characters that are encoded in a path: slashes stay.
const SLASHES: &AsciiSet = &VALUE.remove(b'/');

/// Path of the droplet on the server.
const PATH: &str = "/droplet.tgz";
/// Bytes are counted as sent in pieces of this size.
const PIECE: usize = 64 << 10;

/// The app's code, packed.
#[derive(Debug, Clone)]
pub struct Droplet {
    /// The gzip file. It is in memory because a file would be dirty data of its own.
    pub gzip: Bytes,
    /// Its SHA-256, in hex.
    pub digest: String,
    /// Size of the files in it, in bytes.
    pub unpacked_bytes: u64,
    /// A file of it.
    pub sample: Sample,
}

impl Droplet {
    /// The same code as [`crate::code::Code::salted`], with names relative to [`HOME`]. The code is random and does
    /// not compress: the fast level makes it a little larger, but encodes it, so that there is something to
    /// decompress. Higher levels would detect that, and store it unencoded.
    pub fn pack(megabytes: usize, salt: u64) -> Result<Self> {
        let gzip = GzEncoder::new(Vec::new(), Compression::fast());
        let mut tar = tar::Builder::new(gzip);
        let mut directory = header(tar::EntryType::Directory, 0o755, USER_ID, 0);
        tar.append_data(&mut directory, "app/", std::io::empty())?;
        let packed = pack(tar, "app/", megabytes, salt)?;
        let gzip = packed.to.finish()?;
        let digest = hex(&Sha256::digest(&gzip));
        Ok(Self { gzip: gzip.into(), digest, unpacked_bytes: packed.bytes, sample: packed.sample })
    }
}

/// Counters of the requests to the server.
#[derive(Debug, Default)]
struct Counts {
    fetches: AtomicU64,
    bytes: AtomicU64,
}

/// Serves one droplet on 127.0.0.1 until it is dropped.
#[derive(Debug)]
pub struct DropletServer {
    droplet: Arc<Droplet>,
    address: SocketAddr,
    counts: Arc<Counts>,
    task: AbortHandle,
}

impl DropletServer {
    /// Starts serving, on a free port.
    pub async fn start(droplet: Droplet) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.context("find a port for the droplet's server")?;
        let address = listener.local_addr().context("ask for the droplet server's port")?;
        let (droplet, counts) = (Arc::new(droplet), Arc::<Counts>::default());
        let task = tokio::spawn(serve(listener, droplet.clone(), counts.clone())).abort_handle();
        Ok(Self { droplet, address, counts, task })
    }

    /// The droplet that is served.
    pub fn droplet(&self) -> &Droplet {
        &self.droplet
    }

    /// URL of the droplet, with a signature.
    pub fn url(&self, signature: &str) -> String {
        format!("http://{}{PATH}?signature={}", self.address, utf8_percent_encode(signature, VALUE))
    }

    /// The address of the image with this tar as its base and the droplet as its last layer.
    ///
    /// # Errors
    /// See [`check_base`].
    pub fn image(&self, base: &str, signature: &str) -> Result<String> {
        check_base(base)?;
        let (url, digest) = (self.url(signature), &self.droplet.digest);
        let base = utf8_percent_encode(base, SLASHES);
        let [layer, path] = [&url, HOME].map(|value| utf8_percent_encode(value, VALUE));
        Ok(format!("preloaded+layer://{base}?layer={layer}&layer_path={path}&layer_digest={digest}"))
    }

    /// Number of requests for the droplet or a part of it.
    pub fn fetches(&self) -> u64 {
        self.counts.fetches.load(Ordering::Relaxed)
    }

    /// Number of bytes of the droplet that were sent.
    pub fn fetched_bytes(&self) -> u64 {
        self.counts.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for DropletServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Checks that an image can be the base of one with the droplet as a layer: it must be the path of a tar.
pub fn check_base(base: &str) -> Result<()> {
    ensure!(
        base.starts_with('/'),
        "--image: with the code as a layer the image must be the absolute path of a tar; {base} is not"
    );
    Ok(())
}

async fn serve(listener: TcpListener, droplet: Arc<Droplet>, counts: Arc<Counts>) {
    let etag = format!("\"{}\"", droplet.digest);
    // Connections end with this task.
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((stream, _)) = accepted else {
            // For example out of descriptors.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        let (gzip, etag, counts) = (droplet.gzip.clone(), etag.clone(), counts.clone());
        let service = service_fn(move |request| {
            let reply = answer(&request, &gzip, &etag, &counts);
            async move { Ok::<_, Infallible>(reply) }
        });
        // A client that disconnects early is no error of the server: the bytes that were sent are counted.
        connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

/// Answers as in RFC 9110: GET and HEAD, a validator, one range.
fn answer(request: &Request<Incoming>, gzip: &Bytes, etag: &str, counts: &Arc<Counts>) -> Response<Sent> {
    let header = |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let mut reply = Response::new(Sent::default());
    if request.uri().path() != PATH {
        *reply.status_mut() = StatusCode::NOT_FOUND;
        return reply;
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        *reply.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        reply.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return reply;
    }
    let put = |reply: &mut Response<Sent>, name, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            reply.headers_mut().insert(name, value);
        }
    };
    put(&mut reply, ETAG, etag);
    put(&mut reply, ACCEPT_RANGES, "bytes");
    if header(IF_NONE_MATCH).is_some_and(|known| known == "*" || known.split(',').any(|k| k.trim() == etag)) {
        *reply.status_mut() = StatusCode::NOT_MODIFIED;
        return reply;
    }
    put(&mut reply, CONTENT_TYPE, "application/gzip");
    if request.method() == Method::HEAD {
        put(&mut reply, CONTENT_LENGTH, &gzip.len().to_string());
        return reply;
    }
    // A range of another version of the file must not be combined with parts of this one.
    let range = header(RANGE).filter(|_| header(IF_RANGE).is_none_or(|wanted| wanted == etag));
    let body = match range.map_or(Asked::Whole, |range| asked(range, gzip.len())) {
        Asked::Whole => gzip.clone(),
        Asked::Part(part) => {
            *reply.status_mut() = StatusCode::PARTIAL_CONTENT;
            let range = format!("bytes {}-{}/{}", part.start, part.end - 1, gzip.len());
            put(&mut reply, CONTENT_RANGE, &range);
            gzip.slice(part)
        }
        Asked::Beyond => {
            *reply.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            put(&mut reply, CONTENT_RANGE, &format!("bytes */{}", gzip.len()));
            return reply;
        }
    };
    counts.fetches.fetch_add(1, Ordering::Relaxed);
    *reply.body_mut() = Sent { left: body, counts: counts.clone() };
    reply
}

/// The result of a `Range` header.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// The whole file: the header is no range, or one that a server may ignore, such as several ranges.
    Whole,
    /// These bytes of the file.
    Part(Range<usize>),
    /// A range beyond the end.
    Beyond,
}

/// Parses a range of a file of `length` bytes.
fn asked(range: &str, length: usize) -> Asked {
    let number = |digits: &str| {
        let all_digits = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        // A number that overflows lies beyond the end in any case.
        all_digits.then(|| digits.parse().unwrap_or(usize::MAX))
    };
    let parts = range.split_once('=').filter(|(unit, _)| unit.trim().eq_ignore_ascii_case("bytes"));
    let Some((first, last)) = parts.and_then(|(_, range)| range.trim().split_once('-')) else {
        return Asked::Whole;
    };
    match (number(first), number(last)) {
        (Some(first), Some(last)) if last < first => Asked::Whole,
        (Some(_), None) if !last.is_empty() => Asked::Whole,
        (Some(first), _) if first >= length => Asked::Beyond,
        (Some(first), last) => {
            Asked::Part(first..last.map_or(length, |last| last.saturating_add(1).min(length)))
        }
        // A suffix range: the last `count` bytes.
        (None, Some(count)) if first.is_empty() => match count.min(length) {
            0 => Asked::Beyond,
            count => Asked::Part(length - count..length),
        },
        _ => Asked::Whole,
    }
}

/// A body that counts the bytes that were handed to the connection.
#[derive(Debug, Default)]
struct Sent {
    left: Bytes,
    counts: Arc<Counts>,
}

impl Body for Sent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let length = self.left.len().min(PIECE);
        if length == 0 {
            return Poll::Ready(None);
        }
        let piece = self.left.split_to(length);
        self.counts.bytes.fetch_add(length as u64, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}

#[cfg(test)]
mod tests;
