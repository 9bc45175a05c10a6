//! A process or pea as its callers see it: output, input, exit status.

use crate::Result;
use bytes::Bytes;
use tokio::sync::mpsc;

/// A handle on a process; clones name the same process.
#[derive(Debug, Clone)]
pub struct Process {
    pub(crate) id: String,
}

/// Output from the moment of subscription on. A channel ends when the stream has ended.
/// Bounded: a reader that does not keep up loses chunks (counted), the process is never held up.
#[derive(Debug)]
pub struct Output {
    /// Chunks of standard output.
    pub stdout: mpsc::Receiver<Bytes>,
    /// Chunks of standard error.
    pub stderr: mpsc::Receiver<Bytes>,
}

impl Process {
    /// Its id, unique in its container.
    pub fn id(&self) -> &str {
        &self.id
    }
    /// Receive what it prints from now on.
    pub fn subscribe(&self) -> Output {
        let (_, stdout) = mpsc::channel(1);
        let (_, stderr) = mpsc::channel(1);
        Output { stdout, stderr }
    }
    /// Write all of `data` to its standard input; waits while the pipe is full.
    pub async fn write_stdin(&self, _data: &[u8]) -> Result<()> {
        Ok(())
    }
    /// End of file on its standard input.
    pub async fn close_stdin(&self) {}
    /// Its exit status (128 + signal when killed), after all its output has been queued.
    pub async fn wait(&self) -> Result<i32> {
        Ok(0)
    }
    /// Send a signal (number).
    pub async fn signal(&self, _signal: i32) -> Result<()> {
        Ok(())
    }
}
