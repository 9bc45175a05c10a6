//! Tars on their way into and out of a living container.

use crate::admission::bounds;
use crate::{Engine, Error, Result};
use rustix::pipe::PipeFlags;
use std::os::fd::{AsFd, OwnedFd};
use tokio::net::unix::pipe;
use wardian_runtime::wire;
use wardian_sys::failpoint::{self, Point};

/// Bytes a tar's pipe holds: fewer changes between writer and reader.
const PIPE: usize = 1 << 20;

/// A tar on its way into or out of a container. Dropping it unfinished cancels it.
#[derive(Debug)]
pub struct Transfer<P> {
    /// The tar. `None` once taken.
    pub pipe: Option<P>,
    task: tokio::task::JoinHandle<Result<()>>,
    /// Its drop cancels the transfer: the keeper kills the helper, even one that is stopped.
    _wanted: tokio::sync::oneshot::Sender<std::convert::Infallible>,
}

impl<P> Transfer<P> {
    /// How it went, after the pipe has been dropped or read to its end.
    ///
    /// # Errors
    /// What the container's side says.
    pub async fn finish(self) -> Result<()> {
        let Self { pipe, task, _wanted } = self;
        drop(pipe);
        task.await.map_err(Error::task("transfer"))?
    }
}

impl Engine {
    /// Unpack a tar inside the container: write it to the pipe, drop the pipe, then `finish`.
    ///
    /// # Errors
    /// Unknown or broken container; what the unpacking says comes from `finish`.
    pub async fn stream_in(
        &self,
        handle: &str,
        user: &str,
        destination: &str,
    ) -> Result<Transfer<pipe::Sender>> {
        let (reader, writer) = tar_pipe()?;
        let writer = pipe::Sender::from_owned_fd(writer).map_err(Error::system("stream-in"))?;
        self.transfer(handle, true, user, destination, reader, writer)
    }

    /// Pack a path inside the container: read the tar from the pipe to its end, then `finish`.
    ///
    /// # Errors
    /// Unknown or broken container; what the packing says comes from `finish`.
    pub async fn stream_out(
        &self,
        handle: &str,
        user: &str,
        source: &str,
    ) -> Result<Transfer<pipe::Receiver>> {
        let (reader, writer) = tar_pipe()?;
        let reader = pipe::Receiver::from_owned_fd(reader).map_err(Error::system("stream-out"))?;
        self.transfer(handle, false, user, source, writer, reader)
    }

    fn transfer<P>(
        &self,
        handle: &str,
        inward: bool,
        user: &str,
        path: &str,
        theirs: OwnedFd,
        ours: P,
    ) -> Result<Transfer<P>> {
        // Clients look for these words.
        let step = if inward { "stream-in: error streaming in" } else { "stream-out" };
        bounds::transfer(user, path)?;
        let container = self.find(handle)?;
        let keeper = container.keeper()?;
        let entry = self.shared.cgroups.enter_v2(&container.id)?;
        let (user, path) = (user.to_owned(), path.to_owned());
        let can_cancel = keeper.has(wire::Feature::Confinement);
        let (wanted, dropped) = tokio::sync::oneshot::channel::<std::convert::Infallible>();
        let task = tokio::spawn(async move {
            let tar = theirs.as_fd();
            let asked =
                keeper.transfer(wire::Transfer { inward, user, path, tar, place: entry.as_fds() }).await;
            // Our copy of their end must go while they work, or nobody would see it close.
            drop((theirs, entry));
            failpoint::reach(if inward { Point::StreamInBegun } else { Point::StreamOutBegun });
            let answer = async {
                let asked = asked?;
                let transfer = asked.seq;
                let mut answer = std::pin::pin!(asked.answer());
                tokio::select! {
                    answer = &mut answer => answer,
                    // Nobody wants it any more. The end of the pipe does not end a helper that container root has stopped.
                    _ = dropped, if can_cancel => {
                        keeper.cancel(transfer).await?;
                        answer.await
                    }
                }
            };
            answer.await.map_err(Error::keeper(step))
        });
        Ok(Transfer { pipe: Some(ours), task, _wanted: wanted })
    }
}

fn tar_pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(Error::system("pipe"))?;
    // Above the host's limit for pipes it stays as it is: slower, not wrong.
    let _ = rustix::pipe::fcntl_setpipe_size(&writer, PIPE);
    Ok((reader, writer))
}
