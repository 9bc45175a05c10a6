//! A web server that apps are fetched from.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::support::STUCK;

/// How it answers a GET.
#[derive(Debug, Clone, Copy)]
pub enum Answer {
    /// With everything.
    Whole,
    /// With half of the body, and then nothing until it is told otherwise or the other side hangs up.
    Half,
    /// With half of the body, and the end of the connection.
    Cut,
    /// With a length that is one more than what it sends.
    Longer,
    Status(u16),
}

struct Shared {
    body: Vec<u8>,
    answer: Mutex<Answer>,
    /// First lines of all requests.
    requests: Mutex<Vec<String>>,
    done: AtomicBool,
}

pub struct Web {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Web {
    pub fn serve(body: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            body,
            answer: Mutex::new(Answer::Whole),
            requests: Mutex::default(),
            done: AtomicBool::new(false),
        });
        let theirs = shared.clone();
        let thread = thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if theirs.done.load(Ordering::Acquire) {
                    return;
                }
                let theirs = theirs.clone();
                // Whoever asked may be gone, killed by a test.
                thread::spawn(move || drop(theirs.reply(stream)));
            }
        });
        Self { address, shared, thread: Some(thread) }
    }

    /// `path` begins with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// From now on; those that wait go on.
    pub fn answer(&self, answer: Answer) {
        *self.shared.answer.lock().unwrap() = answer;
    }

    /// How many bodies were asked for.
    pub fn gets(&self) -> usize {
        self.requests().iter().filter(|line| line.starts_with("GET ")).count()
    }

    pub fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// Until so many bodies were asked for.
    pub async fn until_gets(&self, count: usize) {
        let started = Instant::now();
        while self.gets() < count {
            assert!(started.elapsed() < STUCK, "{:?}", self.requests());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

impl Shared {
    fn reply(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let mut head = Vec::new();
        for line in lines.by_ref() {
            match line? {
                line if line.is_empty() => break,
                line => head.push(line),
            }
        }
        let Some(first) = head.first() else { return Ok(()) };
        self.requests.lock().unwrap().push(first.clone());
        let from = head.iter().find_map(|line| {
            let range = line.to_ascii_lowercase();
            range.strip_prefix("range: bytes=")?.strip_suffix('-')?.parse::<usize>().ok()
        });
        let answer = *self.answer.lock().unwrap();
        let (status, body) = match (answer, from) {
            (Answer::Status(status), _) => (status, &b"no"[..]),
            (_, Some(from)) => (206, &self.body[from.min(self.body.len())..]),
            (_, None) => (200, &self.body[..]),
        };
        let mut length = body.len();
        if matches!(answer, Answer::Longer) {
            length += 1;
        }
        let mut reply = format!("HTTP/1.1 {status} x\r\nConnection: close\r\nETag: \"one\"\r\n");
        reply += &format!("Content-Length: {length}\r\n");
        if let (206, Some(from)) = (status, from) {
            let total = self.body.len();
            reply += &format!("Content-Range: bytes {from}-{}/{total}\r\n", total - 1);
        }
        stream.write_all(format!("{reply}\r\n").as_bytes())?;
        if first.starts_with("HEAD ") {
            return Ok(());
        }
        match answer {
            Answer::Whole | Answer::Status(_) | Answer::Longer => stream.write_all(body),
            Answer::Cut => stream.write_all(&body[..body.len() / 2]),
            Answer::Half => {
                let (first, rest) = body.split_at(body.len() / 2);
                stream.write_all(first)?;
                stream.set_read_timeout(Some(Duration::from_millis(5)))?;
                while matches!(*self.answer.lock().unwrap(), Answer::Half) {
                    // It says nothing more, unless it hangs up.
                    if matches!(stream.read(&mut [0]), Ok(0)) || self.done.load(Ordering::Acquire) {
                        return Ok(());
                    }
                }
                stream.write_all(rest)
            }
        }
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.shared.done.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
