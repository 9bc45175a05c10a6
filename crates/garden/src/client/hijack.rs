//! Connections that leave HTTP: run, attach and the output streams.
//!
//! The head of the reply says `chunked`, but raw bytes follow. No HTTP library reads that, so these requests
//! are written, and the heads of their replies read, here.

use super::answering::{Course, again, send};
use super::connection::{Duplex, Server, dial};
use crate::error::{Error, Result, clip};
use crate::wire::{INPUT_HEADER, WAIT_HEADER};
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

/// The most bytes of a reply's head.
const HEAD_LIMIT: u64 = 64 << 10;
/// The most bytes of an error's body.
pub(crate) const ERROR_LIMIT: u64 = 1 << 20;
/// How long the body of an error may take: the part that has arrived by then is shown.
pub(crate) const ERROR_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
/// The most interim replies (1xx) to one request. Garden's servers send one at most.
pub(crate) const PROVISIONAL: usize = 32;
/// A connection that has left HTTP.
pub(crate) struct Hijacked {
    pub(crate) stream: BufReader<Box<dyn Duplex>>,
    /// The server accepts input that is not UTF-8.
    pub(crate) binary: bool,
}

/// The head of a reply.
#[derive(Debug, Default, PartialEq)]
struct Head {
    status: u16,
    length: Option<u64>,
    binary: bool,
}

/// Sends a request, and takes the connection over once the server has accepted it. `waits`: the value of
/// [`WAIT_HEADER`](crate::wire::WAIT_HEADER).
pub(crate) async fn hijack(
    server: &Server,
    method: &str,
    path: &str,
    waits: &str,
    body: &[u8],
) -> Result<Hijacked> {
    let request = request(method, path, waits, body);
    again(method == "GET", |course| take_over(server, &request, course)).await
}

fn request(method: &str, path: &str, waits: &str, body: &[u8]) -> Vec<u8> {
    let (ours, base64) = INPUT_HEADER;
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: api\r\n{ours}: {base64}\r\n");
    if !waits.is_empty() {
        request += &format!("{WAIT_HEADER}: {waits}\r\n");
    }
    if !body.is_empty() {
        request += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    }
    request += "\r\n";
    let mut request = request.into_bytes();
    request.extend_from_slice(body);
    request
}

async fn take_over(server: &Server, request: &[u8], course: Arc<Course>) -> Result<Hijacked> {
    let mut stream = BufReader::with_capacity(64 << 10, dial(server).await?);
    let failure = send(&mut stream, request, &course).await;
    match stream.fill_buf().await {
        Ok([]) => {}
        Ok(_) => course.is_answered(),
        Err(error) => return Err(failure.unwrap_or(error).into()),
    }
    let Head { status, length, binary } = match (read_final(&mut stream).await, failure) {
        (Err(Error::Disconnected | Error::Io(_)), Some(failure)) => return Err(failure.into()),
        (head, _) => head?,
    };
    if (200..300).contains(&status) {
        return Ok(Hijacked { stream, binary });
    }
    let mut body = Vec::new();
    let mut rest = stream.take(length.unwrap_or(ERROR_LIMIT).min(ERROR_LIMIT));
    // The part that has arrived is shown, however the body ended.
    let _ = tokio::time::timeout(ERROR_TIMEOUT, rest.read_to_end(&mut body)).await;
    Err(Error::from_reply(status, &body))
}

/// Makes the error for too many interim replies.
pub(crate) fn endless() -> Error {
    Error::Response(format!(
        "more than {PROVISIONAL} replies that announce another one (status 1xx), and no other"
    ))
}

/// Reads the head of the final reply, after the interim ones.
async fn read_final<R: AsyncBufReadExt + Unpin>(stream: &mut R) -> Result<Head> {
    for _ in 0..=PROVISIONAL {
        let head = read_head(stream).await?;
        // 101 is the last HTTP reply of its connection (RFC 9110, section 15.2.2).
        if !(100..200).contains(&head.status) || head.status == 101 {
            return Ok(head);
        }
    }
    Err(endless())
}

async fn read_head<R: AsyncBufReadExt + Unpin>(stream: &mut R) -> Result<Head> {
    let mut head = stream.take(HEAD_LIMIT);
    let mut line = Vec::new();
    // The first bytes need not be text: a server that speaks TLS sends an alert.
    head.read_until(b'\n', &mut line).await?;
    let mut line = String::from_utf8_lossy(&line).into_owned();
    if line.is_empty() {
        return Err(Error::Disconnected);
    }
    let status =
        line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| Error::NotHttp(clip(line.trim_end())))?;
    let mut found = Head { status, ..Head::default() };
    loop {
        line.clear();
        if head.read_line(&mut line).await? == 0 {
            return Err(Error::Response("the reply's head ends early".into()));
        }
        let Some((name, value)) = line.trim_end().split_once(':') else {
            if line.trim_end().is_empty() {
                return Ok(found);
            }
            return Err(Error::NotHttp(clip(line.trim_end())));
        };
        if name.eq_ignore_ascii_case("content-length") {
            found.length = value.trim().parse().ok();
        }
        let (ours, base64) = INPUT_HEADER;
        found.binary |= name.eq_ignore_ascii_case(ours) && value.trim() == base64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn heads_are_read_to_their_last_byte() {
        let mut reply: &[u8] = b"HTTP/1.1 201 Created\r\nContent-length: 7\r\nDate: x\r\n\r\n{\"a\":1}";
        let head = Head { status: 201, length: Some(7), binary: false };
        assert_eq!(read_head(&mut reply).await.unwrap(), head);
        assert_eq!(reply, b"{\"a\":1}");
        let mut ours: &[u8] = b"HTTP/1.1 200 OK\r\nwardian-input: base64\r\n\r\n";
        assert!(read_head(&mut ours).await.unwrap().binary);
        for bad in ["", "hello\r\n", "HTTP/1.1 200 OK\r\nX: y\r\n", "HTTP/1.1 200 OK\r\nnonsense\r\n\r\n"] {
            assert!(read_head(&mut bad.as_bytes()).await.is_err(), "{bad:?}");
        }
        assert!(matches!(read_head(&mut &b"\x15\x03\x03\0\x02\x02\x32"[..]).await, Err(Error::NotHttp(_))));
    }

    #[tokio::test]
    async fn replies_that_announce_another_one_are_counted() {
        let early = "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n";
        let meant = "HTTP/1.1 201 Created\r\n\r\n";
        let reply = early.repeat(PROVISIONAL) + meant;
        assert_eq!(read_final(&mut reply.as_bytes()).await.unwrap().status, 201);
        let endless = early.repeat(PROVISIONAL + 1) + meant;
        assert!(read_final(&mut endless.as_bytes()).await.is_err());
    }
}
