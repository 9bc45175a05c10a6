//! The HTTP/1.1 server of the page.
//!
//! A client costs a task and a few kilobytes. One that is slow to ask, or to take what it asked for, is cut off; above
//! [`Limits::clients`] connections a new one is told so at once and closed.

use crate::guard::Hosts;
use crate::page::Page;
use crate::patient::Patient;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// What clients may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The most of them at a time.
    pub clients: usize,
    /// How long one may take to send the head of a request, or be idle between two.
    pub head: Duration,
    /// How long one may take nothing of what it is sent.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { clients: 1000, head: Duration::from_secs(10), patience: Duration::from_secs(10) }
    }
}

/// The most bytes of the head of a request, which is also the buffer of a connection.
const BUFFER: usize = 16 << 10;
/// How many clients at a time are told that there is no place, …
const REFUSED: usize = 64;
/// … and how long each of them may take to hear it.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How long the server rests when the host has no descriptors left.
const REST: Duration = Duration::from_millis(100);

const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\nconnection: close\r\n\
    content-type: text/plain; charset=utf-8\r\ncontent-length: 25\r\n\r\nthe monitor has no place\n";

/// Serves the page until `stop` is ready. All connections end with it.
pub async fn serve(
    listener: TcpListener,
    page: Arc<Page>,
    hosts: Hosts,
    limits: Limits,
    stop: impl Future<Output = ()>,
) {
    let (places, hosts) = (Arc::new(Semaphore::new(limits.clients)), Arc::new(hosts));
    let mut clients = JoinSet::new();
    let accept = async {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "monitor.accept");
                    tokio::time::sleep(REST).await;
                    continue;
                }
            };
            // After the wait: those that have ended meanwhile take no place.
            while clients.try_join_next().is_some() {}
            match places.clone().try_acquire_owned() {
                Ok(place) => {
                    let (page, hosts) = (page.clone(), hosts.clone());
                    clients.spawn(async move {
                        let _place = place;
                        if let Err(error) = answer(stream, page, &hosts, limits).await {
                            tracing::debug!(%error, "monitor.client");
                        }
                    });
                }
                Err(_) => {
                    // Above this number they are closed without a word.
                    if clients.len() < limits.clients + REFUSED {
                        clients.spawn(refuse(stream));
                    }
                }
            }
        }
    };
    tokio::select! { () = accept => {}, () = page.run() => {}, () = stop => {} }
}

async fn answer(
    stream: TcpStream,
    page: Arc<Page>,
    hosts: &Hosts,
    limits: Limits,
) -> Result<(), hyper::Error> {
    let _ = stream.set_nodelay(true);
    let stream = TokioIo::new(Patient::new(stream, limits.patience));
    let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
        let page = page.clone();
        async move { Ok::<_, Infallible>(page.answer(&request.into_parts().0, Some(hosts)).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(BUFFER)
        .serve_connection(stream, service)
        .await
}

/// Tells a client that there is no place. What it has sent is read, because a socket that is closed with something unread
/// in it is reset, and the client would not see the answer.
async fn refuse(mut stream: TcpStream) {
    let tell = async {
        stream.write_all(BUSY).await?;
        stream.shutdown().await?;
        let mut head = [0; 1024];
        while stream.read(&mut head).await? > 0 {}
        Ok(())
    };
    let _: Result<io::Result<()>, _> = tokio::time::timeout(LAST_WORDS, tell).await;
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_refusal_is_as_long_as_it_says() {
        let text = std::str::from_utf8(super::BUSY).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{}", body.len());
    }
}
