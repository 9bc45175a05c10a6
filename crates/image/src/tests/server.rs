//! A scripted web server, with a connection for each request.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A scripted response. By default it is 200 with the body and its length.
#[derive(Clone, Default)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
    /// Sends no Content-Length.
    pub(super) no_length: bool,
    /// Answers range requests with a part, if the validator in If-Range matches the headers.
    pub(super) ranges: bool,
    /// Closes the connection after this many bytes of the body.
    pub(super) cut: Option<usize>,
    /// Sends this many bytes of the body, and then hangs.
    pub(super) hang: Option<usize>,
    /// Sends the body byte by byte, slowly.
    pub(super) drip: bool,
    /// Accepts the request and sends nothing.
    pub(super) silent: bool,
    /// The status of the response to HEAD, if it differs.
    pub(super) head: Option<u16>,
    /// Sends the body again and again, without a length.
    pub(super) endless: bool,
    /// Closes the connection without an answer.
    pub(super) reset: bool,
}

impl Reply {
    pub(super) fn of(body: &[u8]) -> Self {
        Self { status: 200, body: body.to_vec(), ..Self::default() }
    }

    pub(super) fn status(status: u16) -> Self {
        Self { status, body: b"<html>no".to_vec(), ..Self::default() }
    }

    pub(super) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub(super) fn cut(self, after: usize) -> Self {
        Self { cut: Some(after), ..self }
    }

    pub(super) fn hang(self, after: usize) -> Self {
        Self { hang: Some(after), ..self }
    }

    fn send(&self, request: &str, mut stream: impl Read + Write, sent: &AtomicU64) -> std::io::Result<()> {
        if self.reset {
            return Ok(());
        }
        if self.silent {
            return until_closed(stream);
        }
        let field = |name: &str| {
            request.lines().find_map(|line| {
                line.split_once(": ")
                    .filter(|(key, _)| key.eq_ignore_ascii_case(name))
                    .map(|(_, value)| value)
            })
        };
        let is_head = request.starts_with("HEAD ");
        let own = |value: &str| self.headers.iter().any(|(_, own)| own == value);
        let from = field("range")
            .filter(|_| self.ranges && field("if-range").is_none_or(own))
            .map(|range| range.trim_start_matches("bytes=").trim_end_matches('-').parse::<usize>().unwrap());
        let mut status = self.status;
        let mut head = String::from("Connection: close\r\n");
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        let body = &self.body[from.unwrap_or(0)..];
        if let Some(from) = from {
            status = 206;
            let total = self.body.len();
            head += &format!("Content-Range: bytes {from}-{}/{total}\r\n", total - 1);
        }
        if !self.no_length && !self.endless {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        if let Some(other) = self.head.filter(|_| is_head) {
            (status, head) = (other, String::from("Connection: close\r\nContent-Length: 0\r\n"));
        }
        stream.write_all(format!("HTTP/1.1 {status} x\r\n{head}\r\n").as_bytes())?;
        if is_head {
            return stream.flush();
        }
        if self.endless {
            loop {
                stream.write_all(body)?;
                sent.fetch_add(body.len() as u64, Ordering::Relaxed);
            }
        }
        if self.drip {
            for byte in body {
                stream.write_all(&[*byte])?;
                stream.flush()?;
                thread::sleep(Duration::from_millis(20));
            }
            return Ok(());
        }
        let end = self.cut.or(self.hang).unwrap_or(body.len()).min(body.len());
        stream.write_all(&body[..end])?;
        stream.flush()?;
        if self.hang.is_some() { until_closed(stream) } else { Ok(()) }
    }
}

fn until_closed(mut stream: impl Read) -> std::io::Result<()> {
    while stream.read(&mut [0; 100])? > 0 {}
    Ok(())
}

pub(super) struct Server {
    address: SocketAddr,
    scheme: &'static str,
    requests: Arc<Mutex<Vec<String>>>,
    /// Bytes of endless bodies.
    sent: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Returns the response to a request, which is the last one of these.
type Script = Arc<dyn Fn(&[String]) -> Reply + Send + Sync>;
/// Returns after how many bytes of a request's body the connection is closed, from the request's head and the number of
/// requests before it.
type Cut = fn(&str, usize) -> Option<usize>;

impl Server {
    /// Answers the requests in this order; the last answer is for all that follow.
    pub(super) fn new(replies: Vec<Reply>) -> Self {
        Self::start(replies, None)
    }

    pub(super) fn start(replies: Vec<Reply>, tls: Option<Arc<ServerConfig>>) -> Self {
        Self::by(move |requests| replies[requests.len().min(replies.len()) - 1].clone(), tls)
    }

    /// Answers a request by what `script` makes of it and of those before it.
    pub(super) fn by(
        script: impl Fn(&[String]) -> Reply + Send + Sync + 'static,
        tls: Option<Arc<ServerConfig>>,
    ) -> Self {
        Self::cutting(script, tls, |_, _| None)
    }

    /// As [`Server::by`], and closes connections in the middle of requests.
    pub(super) fn cutting(
        script: impl Fn(&[String]) -> Reply + Send + Sync + 'static,
        tls: Option<Arc<ServerConfig>>,
        cut: Cut,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, done) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (scheme, sent) = (if tls.is_some() { "https" } else { "http" }, Arc::default());
        let thread = thread::spawn({
            let serving = Serving {
                script: Arc::new(script),
                cut,
                requests: Arc::clone(&requests),
                sent: Arc::clone(&sent),
            };
            let done = Arc::clone(&done);
            move || accept(&listener, &serving, tls.as_ref(), &done)
        });
        Self { address, scheme, requests, sent, done, thread: Some(thread) }
    }

    pub(super) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// `path` begins with a slash.
    pub(super) fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.address)
    }

    /// The heads of the requests so far.
    pub(super) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    pub(super) fn wait_for_requests(&self, count: usize) {
        while self.requests().len() < count {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.done.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

#[derive(Clone)]
struct Serving {
    script: Script,
    cut: Cut,
    requests: Arc<Mutex<Vec<String>>>,
    sent: Arc<AtomicU64>,
}

fn accept(listener: &TcpListener, serving: &Serving, tls: Option<&Arc<ServerConfig>>, done: &AtomicBool) {
    for stream in listener.incoming() {
        if done.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let (serving, tls) = (serving.clone(), tls.cloned());
        // The thread ends when the client closes the connection.
        thread::spawn(move || match tls {
            None => serve(stream, &serving),
            Some(config) => {
                let stream = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
                serve(stream, &serving);
            }
        });
    }
}

/// The length of a request's body.
fn length(request: &str) -> usize {
    let fields = request.lines().filter_map(|line| line.split_once(": "));
    let mut lengths = fields.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    lengths.next().map_or(0, |(_, length)| length.parse().unwrap())
}

fn serve(stream: impl Read + Write, serving: &Serving) {
    let mut stream = BufReader::new(stream);
    let mut request = String::new();
    while !request.ends_with("\r\n\r\n") {
        if !matches!(stream.read_line(&mut request), Ok(1..)) {
            return;
        }
    }
    let cut = (serving.cut)(&request, serving.requests.lock().unwrap().len());
    let mut body = vec![0; cut.unwrap_or_else(|| length(&request))];
    if stream.read_exact(&mut body).is_err() {
        return;
    }
    request += &String::from_utf8_lossy(&body);
    if cut.is_some() {
        serving.requests.lock().unwrap().push(request);
        return;
    }
    let reply = {
        let mut requests = serving.requests.lock().unwrap();
        requests.push(request.clone());
        (serving.script)(&requests)
    };
    // The client may close the connection early.
    let _ = reply.send(&request, stream.get_mut(), &serving.sent);
}
