//! The output that is kept of a process: pieces with their heads, as the engine keeps them, and notes between them.

use crate::reply::{Failure, date};
use crate::state::State;
use crate::taken::{Taken, ended};
use std::sync::Arc;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use wardian_engine::{FoundOutput, KeptReader, Process, kept_note};
use wardian_garden::{encode, wire};

/// A reader of kept output.
pub(crate) struct Output {
    reader: KeptReader,
    /// Also send what is printed later, until the end.
    follow: bool,
}

impl Output {
    /// Reads the output of a process.
    ///
    /// # Errors
    /// It is not kept.
    pub(crate) fn of(process: &Process, follow: bool) -> Result<Self, Failure> {
        let kept = process.kept().ok_or_else(|| {
            Failure::Refused(format!("the output of the process {} is not kept", process.id()))
        })?;
        Ok(Self { reader: kept.reader(), follow })
    }
}

/// Writes the output to the raw connection, no faster than the client takes it: nothing is queued for it here.
pub(crate) async fn run(state: &Arc<State>, taken: Taken, output: Output) {
    drop(taken.early);
    let (mut reader, mut writer) = tokio::io::split(taken.stream);
    tokio::select! {
        told = tell(&mut writer, output) => {
            if let Err(error) = told {
                tracing::info!(%error, "process.kept-output-broken-off");
            }
        }
        () = ended(&mut reader) => {}
        () = state.stopping() => {}
    }
    // The end of the body is the end of the connection.
    drop(writer.shutdown().await);
}

async fn tell(writer: &mut (impl AsyncWrite + Unpin), mut output: Output) -> std::io::Result<()> {
    let date = date(std::time::SystemTime::now());
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nDate: {date}\r\nConnection: close\r\n\r\n"
    );
    writer.write_all(head.as_bytes()).await?;
    let note = |note: wire::OutputNote| kept_note(&encode(&note));
    let mut now = false;
    loop {
        match output.reader.read()? {
            FoundOutput::Pieces(pieces) => writer.write_all(&pieces).await?,
            FoundOutput::Dropped(dropped) => {
                writer.write_all(&note(wire::OutputNote { dropped, ..Default::default() })).await?;
            }
            FoundOutput::Nothing => {
                if !output.follow || (now && !output.reader.more().await) {
                    break;
                }
            }
        }
        if !now && output.reader.is_caught_up() {
            if !output.follow {
                break;
            }
            now = true;
            writer.write_all(&note(wire::OutputNote { now, ..Default::default() })).await?;
        }
    }
    writer.write_all(&note(wire::OutputNote { over: true, ..Default::default() })).await
}
