//! A process as the client sees it.

use crate::hijack::{Duplex, hijack};
use crate::wire::{Payload, Tty, WindowSize};
use crate::{Address, Decoder, Error, Result, encode};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::{Mutex, watch};
use tokio::task::AbortHandle;

/// What of a process's input and output the caller wants.
#[derive(Default)]
pub struct Io {
    /// Where its standard input comes from; its end is passed on. `None`: it stays open and empty.
    pub stdin: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Receive standard output: [`Process::take_stdout`].
    pub stdout: bool,
    /// Receive standard error: [`Process::take_stderr`].
    pub stderr: bool,
}

impl std::fmt::Debug for Io {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { stdin, stdout, stderr } = self;
        write!(to, "Io {{ stdin: {}, stdout: {stdout}, stderr: {stderr} }}", stdin.is_some())
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

type Writer = Arc<Mutex<WriteHalf<BufReader<Box<dyn Duplex>>>>>;

/// How a process ended, for everybody who waits.
#[derive(Debug, Clone)]
enum End {
    Exit { status: i32, lost: u64 },
    Failed(String),
    Disconnected,
}

/// A running process. Dropping it lets go of the connections; the process lives on (its input ends).
#[derive(Debug)]
pub struct Process {
    id: String,
    stdout: Option<OutputReader>,
    stderr: Option<OutputReader>,
    writer: Writer,
    end: watch::Receiver<Option<End>>,
    tasks: Vec<AbortHandle>,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Process {
    pub(crate) async fn start(
        address: &Address,
        method: &str,
        path: &str,
        body: &[u8],
        io: Io,
    ) -> Result<Self> {
        let (mut reader, writer) = tokio::io::split(hijack(address, method, path, body).await?);
        let mut decoder = Decoder::default();
        let first = payload(&mut reader, &mut decoder).await?.ok_or(Error::Disconnected)?;
        // Whatever handle and process the URL of an output stream names, the server looks at the stream id only.
        let base = match method {
            "POST" => format!("{path}/{}", crate::client::escape(&first.process_id)),
            _ => path.to_owned(),
        };
        let stream_id = &first.stream_id;
        let open = |wanted: bool, name: &'static str| {
            let path = format!("{base}/attaches/{stream_id}/{name}");
            async move {
                if !wanted {
                    return Ok::<_, Error>(None);
                }
                hijack(address, "GET", &path, &[]).await.map(|stream| Some(OutputReader(stream)))
            }
        };
        let (stdout, stderr) = tokio::try_join!(open(io.stdout, "stdout"), open(io.stderr, "stderr"))?;

        let writer = Arc::new(Mutex::new(writer));
        let (tell, end) = watch::channel(None);
        let mut tasks = vec![
            tokio::spawn(async move {
                let end = follow(&mut reader, &mut decoder).await;
                tell.send_replace(Some(end));
            })
            .abort_handle(),
        ];
        if let Some(stdin) = io.stdin {
            tasks.push(tokio::spawn(feed(stdin, writer.clone(), first.process_id.clone())).abort_handle());
        }
        Ok(Self { id: first.process_id, stdout, stderr, writer, end, tasks })
    }

    /// Its id, unique in its container.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its standard output; `None` when not asked for or already taken.
    pub fn take_stdout(&mut self) -> Option<OutputReader> {
        self.stdout.take()
    }

    /// Its standard error; `None` when not asked for or already taken.
    pub fn take_stderr(&mut self) -> Option<OutputReader> {
        self.stderr.take()
    }

    /// Its exit status. Output may still be on its way: read the streams to their ends.
    pub async fn wait(&self) -> Result<i32> {
        let mut end = self.end.clone();
        let end = end.wait_for(Option::is_some).await.map_err(|_| Error::Disconnected)?.clone();
        match end {
            Some(End::Exit { status, .. }) => Ok(status),
            Some(End::Failed(message)) => Err(Error::Process(message)),
            Some(End::Disconnected) | None => Err(Error::Disconnected),
        }
    }

    /// Bytes of output that the server dropped because we did not take them in time; known after its end.
    pub fn lost(&self) -> u64 {
        match &*self.end.borrow() {
            Some(End::Exit { lost, .. }) => *lost,
            _ => 0,
        }
    }

    /// Ask it to end, or with `kill` end it.
    pub async fn signal(&self, kill: bool) -> Result<()> {
        let payload =
            Payload { process_id: self.id.clone(), signal: Some(i64::from(kill)), ..Payload::default() };
        send(&self.writer, &payload).await
    }
}

impl Process {
    /// Tell it the size of its terminal.
    ///
    /// # Errors
    /// When the connection is gone. A process without a terminal takes no notice.
    pub async fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let tty = Some(Tty { window_size: Some(WindowSize { columns, rows }) });
        send(&self.writer, &Payload { process_id: self.id.clone(), tty, ..Payload::default() }).await
    }
}

async fn send(writer: &Writer, payload: &Payload) -> Result<()> {
    let bytes = encode(payload);
    let mut writer = writer.lock().await;
    writer.write_all(&bytes).await?;
    Ok(writer.flush().await?)
}

/// The next payload; `None` at the end of the connection.
async fn payload(
    reader: &mut ReadHalf<BufReader<Box<dyn Duplex>>>,
    decoder: &mut Decoder,
) -> Result<Option<Payload>> {
    let mut buffer = vec![0; 4096];
    loop {
        match decoder.next_value() {
            Ok(Some(payload)) => return Ok(Some(payload)),
            Ok(None) => {}
            Err(error) => return Err(Error::Response(error.to_string())),
        }
        match reader.read(&mut buffer).await? {
            0 => return Ok(None),
            n => decoder.push(&buffer[..n]),
        }
    }
}

async fn follow(reader: &mut ReadHalf<BufReader<Box<dyn Duplex>>>, decoder: &mut Decoder) -> End {
    loop {
        match payload(reader, decoder).await {
            Ok(Some(Payload { error: Some(message), .. })) => return End::Failed(message),
            Ok(Some(Payload { exit_status: Some(status), lost, .. })) => {
                return i32::try_from(status).map_or(
                    End::Failed(format!("exit status {status}")),
                    |status| End::Exit { status, lost },
                );
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return End::Disconnected,
        }
    }
}

/// Pass input on. The protocol carries text: a letter cut in two by a read waits for its rest, what is not
/// UTF-8 is replaced.
async fn feed(mut stdin: Box<dyn AsyncRead + Send + Unpin>, writer: Writer, process_id: String) {
    let input =
        |data| Payload { process_id: process_id.clone(), source: Some(0), data, ..Payload::default() };
    let mut buffer = vec![0; 32 << 10];
    let mut held = 0;
    loop {
        let n = match stdin.read(&mut buffer[held..]).await {
            Ok(0) | Err(_) => break,
            Ok(n) => held + n,
        };
        let whole = n - cut_letter(&buffer[..n]);
        let data = String::from_utf8_lossy(&buffer[..whole]).into_owned();
        buffer.copy_within(whole..n, 0);
        held = n - whole;
        if !data.is_empty() && send(&writer, &input(Some(data))).await.is_err() {
            return;
        }
    }
    if held > 0 {
        let data = String::from_utf8_lossy(&buffer[..held]).into_owned();
        let _ = send(&writer, &input(Some(data))).await;
    }
    let _ = send(&writer, &input(None)).await;
}

/// How many bytes at the end begin a letter that is not finished.
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
    use super::cut_letter;

    #[test]
    fn only_an_unfinished_letter_is_held_back() {
        assert_eq!(cut_letter("aé".as_bytes()), 0);
        assert_eq!(cut_letter(&"aé".as_bytes()[..2]), 1);
        assert_eq!(cut_letter(&"€".as_bytes()[..2]), 2);
        assert_eq!(cut_letter(b"a\xff"), 0);
        assert_eq!(cut_letter(b""), 0);
    }
}
