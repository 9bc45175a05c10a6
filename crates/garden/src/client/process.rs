//! Processes in the client.

use super::address::escape;
use super::connection::{Duplex, Server};
use super::hijack::{Hijacked, hijack};
use super::requests::Client;
use crate::error::{Error, Result, clip};
use crate::json::{Decoder, encode};
use crate::wire::{Payload, Signal, Tty, WAIT_STREAMS, WindowSize};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::{Mutex, watch};
use tokio::task::AbortHandle;

/// Which of a process's standard streams the caller uses.
#[derive(Default)]
pub struct Io {
    /// The source of its standard input, whose end is passed on. `None`: the input stays open and empty.
    pub stdin: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Receive standard output: [`Process::take_stdout`].
    pub stdout: bool,
    /// Receive standard error: [`Process::take_stderr`].
    pub stderr: bool,
    /// Hold the process up while the caller does not read its output, instead of losing output. Both streams
    /// must be read to their ends, or dropped: the end of the process is reported only after that. A server
    /// of Garden's ignores this.
    pub wait: bool,
}

impl std::fmt::Debug for Io {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { stdin, stdout, stderr, wait } = self;
        write!(to, "Io {{ stdin: {}, stdout: {stdout}, stderr: {stderr}, wait: {wait} }}", stdin.is_some())
    }
}

/// Output of a process, to its end.
pub struct OutputReader(BufReader<Box<dyn Duplex>>);

impl std::fmt::Debug for OutputReader {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str("OutputReader")
    }
}

impl AsyncRead for OutputReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, to)
    }
}

/// `None` once a message was sent in part: no other can follow it.
type Writer = Arc<Mutex<Option<WriteHalf<BufReader<Box<dyn Duplex>>>>>>;

/// How long a signal waits for input that is being sent before it, which the process may never take.
const OVERTAKE: Duration = Duration::from_millis(500);

/// How long a server may take to pass a signal on.
const PASSED_ON: Duration = Duration::from_secs(3);

/// How a process ended, for all callers of `wait`.
#[derive(Debug, Clone)]
enum End {
    Exit {
        status: i32,
        lost: u64,
    },
    Failed(String),
    /// Its input cannot be sent, or not be read; the process has not ended.
    BinaryInput,
    Unread(Arc<std::io::Error>),
    Disconnected,
}

/// A running process. Dropping this closes the connections; the process lives on (its input ends).
#[derive(Debug)]
pub struct Process {
    id: String,
    server: Arc<Server>,
    /// The path to attach to the process.
    path: String,
    stdout: Option<OutputReader>,
    stderr: Option<OutputReader>,
    writer: Writer,
    end: watch::Receiver<Option<End>>,
    ended: watch::Receiver<Option<i32>>,
    tasks: Vec<AbortHandle>,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Process {
    pub(crate) async fn start(
        server: &Arc<Server>,
        method: &str,
        path: &str,
        body: &[u8],
        io: Io,
    ) -> Result<Self> {
        let waits = [io.stdout, io.stderr].into_iter().zip(WAIT_STREAMS);
        let waits: Vec<_> = waits.filter_map(|(wanted, name)| (wanted && io.wait).then_some(name)).collect();
        let Hijacked { stream, binary } = hijack(server, method, path, &waits.join(","), body).await?;
        let (mut reader, writer) = tokio::io::split(stream);
        let mut decoder = Decoder::default();
        let first = payload(&mut reader, &mut decoder).await?.ok_or(Error::Disconnected)?;
        let base = match method {
            "POST" => format!("{path}/{}", escape(&first.process_id)),
            _ => path.to_owned(),
        };
        let stream_id = escape(&first.stream_id);
        let stream_id = &stream_id;
        let open = |wanted: bool, name: &'static str| {
            let path = format!("{base}/attaches/{stream_id}/{name}");
            async move {
                if !wanted {
                    return Ok::<_, Error>(None);
                }
                hijack(server, "GET", &path, "", &[]).await.map(|taken| Some(OutputReader(taken.stream)))
            }
        };
        let (stdout, stderr) = match tokio::try_join!(open(io.stdout, "stdout"), open(io.stderr, "stderr")) {
            Err(error) if method == "POST" => {
                return Err(Error::Output { process: first.process_id, source: Box::new(error) });
            }
            opened => opened?,
        };

        let writer = Arc::new(Mutex::new(Some(writer)));
        let (tell, end) = watch::channel(None);
        let first_word = |tell: &watch::Sender<Option<End>>, end: End| {
            tell.send_if_modified(|told| {
                let first = told.is_none();
                told.get_or_insert(end);
                first
            });
        };
        let told = tell.clone();
        let (tell_ended, ended) = watch::channel(None);
        let mut tasks = vec![
            tokio::spawn(async move {
                let end = follow(&mut reader, &mut decoder, &tell_ended).await;
                first_word(&told, end);
            })
            .abort_handle(),
        ];
        if let Some(stdin) = io.stdin {
            let (writer, id) = (writer.clone(), first.process_id.clone());
            let feed = async move {
                if let Err(end) = feed(stdin, writer, id, binary).await {
                    first_word(&tell, end);
                }
            };
            tasks.push(tokio::spawn(feed).abort_handle());
        }
        let server = server.clone();
        Ok(Self { id: first.process_id, server, path: base, stdout, stderr, writer, end, ended, tasks })
    }

    /// Returns the process's id, which is unique in its container.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns its standard output; `None` if it was not requested, or was taken already.
    pub fn take_stdout(&mut self) -> Option<OutputReader> {
        self.stdout.take()
    }

    /// Returns its standard error; `None` if it was not requested, or was taken already.
    pub fn take_stderr(&mut self) -> Option<OutputReader> {
        self.stderr.take()
    }

    /// Waits for the end of the process and returns its exit status, from 0 to 255. Output may still be on
    /// its way: the streams must be read to their ends. After [`Error::BinaryInput`] and [`Error::Input`] the
    /// process still waits for the rest of its input, and the caller decides what to do with it.
    pub async fn wait(&self) -> Result<i32> {
        let mut end = self.end.clone();
        let end = end.wait_for(Option::is_some).await.map_err(|_| Error::Disconnected)?.clone();
        match end {
            Some(End::Exit { status, .. }) => Ok(status),
            Some(End::Failed(message)) => Err(Error::Process(message)),
            Some(End::BinaryInput) => Err(Error::BinaryInput),
            Some(End::Unread(error)) => Err(Error::Input(error)),
            Some(End::Disconnected) | None => Err(Error::Disconnected),
        }
    }

    /// Returns the exit status of a program that has ended while a descendant still holds its output open.
    /// Pending for ever if the server does not report that, or not before [`Process::wait`] is ready.
    /// Wardian's servers report it to clients that wait ([`Io::wait`]).
    pub async fn ended(&self) -> i32 {
        let mut ended = self.ended.clone();
        let status = ended.wait_for(Option::is_some).await.ok().and_then(|status| *status);
        match status {
            Some(status) => status,
            None => std::future::pending().await,
        }
    }

    /// Returns the bytes of output that the server dropped because this client did not take them in time;
    /// known after the end of the process.
    pub fn lost(&self) -> u64 {
        match &*self.end.borrow() {
            Some(End::Exit { lost, .. }) => *lost,
            _ => 0,
        }
    }

    /// Asks the process to end (TERM), or with `kill` kills it. If input that the process does not take is in
    /// the way, the signal is sent on a connection of its own, and the rest of the input is not sent.
    ///
    /// # Errors
    /// The connection is gone, or no other one can be made.
    pub async fn signal(&self, kill: bool) -> Result<()> {
        let payload =
            Payload { process_id: self.id.clone(), signal: Some(i64::from(kill)), ..Payload::default() };
        if let Ok(mut writer) = tokio::time::timeout(OVERTAKE, self.writer.lock()).await {
            if let Ok(sent) = tokio::time::timeout(OVERTAKE, write(writer.as_mut(), &payload)).await {
                return sent;
            }
            *writer = None;
        }
        let Hijacked { mut stream, .. } = hijack(&self.server, "GET", &self.path, "", &[]).await?;
        stream.write_all(&encode(&payload)).await?;
        Ok(stream.shutdown().await?)
    }
}

impl Process {
    /// Sends the process a signal by its name; false if the server has not done so: Garden's can only send TERM and
    /// KILL, see [`Process::signal`].
    pub async fn pass_on(&self, signal: &str) -> bool {
        let client = Client { server: self.server.clone() };
        let body = encode(&Signal { signal: signal.to_owned() });
        let path = format!("/wardian{}/signal", self.path);
        let sent = client.call("POST", &path, Some(body));
        matches!(tokio::time::timeout(PASSED_ON, sent).await, Ok(Ok(_)))
    }

    /// Sets the size of the process's terminal.
    ///
    /// # Errors
    /// The connection is gone. For a process without a terminal the server ignores the size.
    pub async fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let tty = Some(Tty { window_size: Some(WindowSize { columns, rows }) });
        send(&self.writer, &Payload { process_id: self.id.clone(), tty, ..Payload::default() }).await
    }
}

async fn send(writer: &Writer, payload: &Payload) -> Result<()> {
    write(writer.lock().await.as_mut(), payload).await
}

async fn write(writer: Option<&mut WriteHalf<BufReader<Box<dyn Duplex>>>>, payload: &Payload) -> Result<()> {
    let writer = writer.ok_or(Error::Disconnected)?;
    writer.write_all(&encode(payload)).await?;
    Ok(writer.flush().await?)
}

/// Reads the next payload; `None` at the end of the connection.
async fn payload(
    reader: &mut ReadHalf<BufReader<Box<dyn Duplex>>>,
    decoder: &mut Decoder,
) -> Result<Option<Payload>> {
    let mut buffer = vec![0; 4096];
    loop {
        match decoder.next_value() {
            Ok(Some(payload)) => return Ok(Some(payload)),
            Ok(None) => {}
            Err(error) => return Err(Error::response(&error)),
        }
        match reader.read(&mut buffer).await? {
            0 => return Ok(None),
            n => decoder.push(&buffer[..n]),
        }
    }
}

async fn follow(
    reader: &mut ReadHalf<BufReader<Box<dyn Duplex>>>,
    decoder: &mut Decoder,
    tell_ended: &watch::Sender<Option<i32>>,
) -> End {
    loop {
        match payload(reader, decoder).await {
            Ok(Some(Payload { error: Some(message), .. })) => return End::Failed(clip(&message)),
            Ok(Some(Payload { exit_status: Some(status), lost, .. })) => {
                // A shell would see eight bits of a larger status: 256 would be a success.
                return match u8::try_from(status) {
                    Ok(status) => End::Exit { status: status.into(), lost },
                    Err(_) => End::Failed(format!(
                        "the server tells the exit status {status}, and no process ends with more than 255"
                    )),
                };
            }
            Ok(Some(Payload { ended: Some(status), .. })) => {
                if let Ok(status) = u8::try_from(status) {
                    tell_ended.send_replace(Some(status.into()));
                }
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return End::Disconnected,
        }
    }
}

/// Passes input on. The protocol carries UTF-8: a character that a read has cut in two waits for its rest.
/// Other input is sent in base64, to a server that accepts that. An error says why the input is incomplete:
/// then its end is not sent, because the process would take the input for complete.
async fn feed(
    mut stdin: Box<dyn AsyncRead + Send + Unpin>,
    writer: Writer,
    process_id: String,
    binary: bool,
) -> std::result::Result<(), End> {
    let input = || Payload { process_id: process_id.clone(), source: Some(0), ..Payload::default() };
    let data = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => Ok(Payload { data: Some(text.to_owned()), ..input() }),
        Err(_) if binary => Ok(Payload { base64: Some(BASE64.encode(bytes)), ..input() }),
        Err(_) => Err(End::BinaryInput),
    };
    let mut buffer = vec![0; 32 << 10];
    let mut held = 0;
    loop {
        let n = match stdin.read(&mut buffer[held..]).await {
            Ok(0) => break,
            Ok(n) => held + n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(End::Unread(Arc::new(error))),
        };
        let whole = n - cut_letter(&buffer[..n]);
        let payload = data(&buffer[..whole])?;
        buffer.copy_within(whole..n, 0);
        held = n - whole;
        if whole > 0 && send(&writer, &payload).await.is_err() {
            return Ok(());
        }
    }
    if held > 0 {
        let _ = send(&writer, &data(&buffer[..held])?).await;
    }
    let _ = send(&writer, &input()).await;
    Ok(())
}

/// Returns the number of bytes at the end that begin an incomplete character.
fn cut_letter(bytes: &[u8]) -> usize {
    match bytes.utf8_chunks().last() {
        Some(last)
            if last.invalid().len() < 4
                && std::str::from_utf8(last.invalid()).is_err_and(|e| e.error_len().is_none()) =>
        {
            last.invalid().len()
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Client;

    /// Returns what a client sends on a control connection whose head has this line.
    async fn sent(line: &str, input: &'static [u8]) -> (Result<i32>, Vec<Payload>) {
        told(line, input, "{\"process_id\":\"p\",\"exit_status\":0}\n").await
    }

    /// Returns the same for a server that answers the end of the input with this.
    async fn told(
        line: &str,
        input: impl AsyncRead + Send + Unpin + 'static,
        last: &str,
    ) -> (Result<i32>, Vec<Payload>) {
        static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("wardian-garden-{}-{count}", std::process::id()));
        drop(std::fs::remove_file(&dir));
        let listener = tokio::net::UnixListener::bind(&dir).unwrap();
        let client = Client::new(&format!("unix:{}", dir.display())).unwrap();
        let head =
            format!("HTTP/1.1 201 Created\r\n{line}\r\n{{\"process_id\":\"p\",\"stream_id\":\"1\"}}\n");
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(head.as_bytes()).await.unwrap();
            let (mut buffer, mut decoder, mut payloads) =
                (vec![0; 4096], Decoder::default(), Vec::<Payload>::new());
            let mut request = Vec::new();
            while let Ok(n) = stream.read(&mut buffer).await
                && n > 0
            {
                request.extend_from_slice(&buffer[..n]);
                let Some(body) = request.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
                decoder = Decoder::default();
                decoder.push(&request[body + 4..]);
                payloads.clear();
                // The first value is the request's body.
                let mut values = std::iter::from_fn(|| decoder.next_value::<Payload>().unwrap());
                values.next();
                payloads.extend(values);
                if payloads.last().is_some_and(|last| last.data.is_none() && last.base64.is_none()) {
                    let _ = stream.write_all(last.as_bytes()).await;
                }
            }
            drop(decoder);
            payloads
        };
        let run = async {
            let io = Io { stdin: Some(Box::new(input)), ..Io::default() };
            let process = client.run("h", &crate::wire::ProcessSpec::default(), io).await.unwrap();
            process.wait().await
        };
        let done = tokio::join!(run, serve);
        std::fs::remove_file(&dir).unwrap();
        done
    }

    #[tokio::test]
    async fn input_that_is_no_text_is_sent_whole_or_not_at_all() {
        let (ended, payloads) = sent("Wardian-Input: base64\r\n", b"a\xffb").await;
        assert_eq!(ended.unwrap(), 0);
        assert_eq!(payloads[0].base64.as_deref(), Some("Yf9i"));
        assert_eq!((payloads.len(), payloads[0].data.as_ref(), payloads[1].source), (2, None, Some(0)));
        // Garden's own server would take such a payload for the end of the input.
        let (ended, payloads) = sent("", b"a\xffb").await;
        assert!(matches!(ended, Err(Error::BinaryInput)), "{ended:?}");
        assert!(payloads.is_empty(), "{payloads:?}");
        let (ended, payloads) = sent("X: y\r\n", "grüße".as_bytes()).await;
        assert_eq!((ended.unwrap(), payloads[0].data.as_deref()), (0, Some("grüße")));
    }

    /// The process must not take a part of the input for all of it.
    #[tokio::test]
    async fn input_that_cannot_be_read_has_no_end() {
        struct Broken;
        impl AsyncRead for Broken {
            fn poll_read(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
                _: &mut ReadBuf<'_>,
            ) -> Poll<std::io::Result<()>> {
                Poll::Ready(Err(std::io::ErrorKind::IsADirectory.into()))
            }
        }
        let (ended, payloads) = told("X: y\r\n", (&b"half"[..]).chain(Broken), "").await;
        assert!(
            matches!(&ended, Err(Error::Input(error)) if error.kind() == std::io::ErrorKind::IsADirectory)
        );
        let ended = ended.unwrap_err().to_string();
        assert!(ended.starts_with("read the input: "), "{ended}");
        assert!(payloads.iter().all(|sent| sent.data.as_deref() == Some("half")), "{payloads:?}");
    }

    #[tokio::test]
    async fn how_a_process_ended_is_not_believed_blindly() {
        let end = async |last: &str| told("X: y\r\n", &b""[..], last).await.0;
        for status in [-1, 256, 1 << 40] {
            let error = end(&format!("{{\"exit_status\":{status}}}\n")).await.unwrap_err();
            assert!(error.to_string().contains(&format!("the exit status {status}")), "{error}");
        }
        assert_eq!(end("{\"exit_status\":255}\n").await.unwrap(), 255);
        let long = "x".repeat(3_000_000);
        for last in
            [format!("{{\"error\":\"{long}\"}}\n"), format!("{{\"process_id\":5,\"data\":\"{long}\"}}\n")]
        {
            let error = end(&last).await.unwrap_err().to_string();
            assert!(error.len() < 16 << 10, "{} bytes", error.len());
        }
    }

    #[test]
    fn only_an_unfinished_letter_is_held_back() {
        assert_eq!(cut_letter("aé".as_bytes()), 0);
        assert_eq!(cut_letter(&"aé".as_bytes()[..2]), 1);
        assert_eq!(cut_letter(&"€".as_bytes()[..2]), 2);
        assert_eq!(cut_letter(b"a\xff"), 0);
        assert_eq!(cut_letter(b""), 0);
    }
}
