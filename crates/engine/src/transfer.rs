//! Transfers of tars into and out of a living container.

use crate::admission::bounds;
use crate::failpoints::Point;
use crate::{Engine, Error, Result};
use rustix::pipe::PipeFlags;
use std::os::fd::{AsFd, OwnedFd};
use tokio::net::unix::pipe;
use wardian_runtime::wire;
use wardian_sys::failpoint;

/// The capacity of a tar's pipe in bytes: a larger pipe means fewer switches between writer and reader.
const PIPE: usize = 1 << 20;

/// A tar on its way into or out of a container. Dropping it unfinished cancels it.
#[derive(Debug)]
pub struct Transfer<P> {
    /// The server's end of the tar's pipe. `None` once taken.
    pub pipe: Option<P>,
    task: tokio::task::JoinHandle<Result<()>>,
    /// Dropping this cancels the transfer: the keeper kills the helper, even one that is stopped.
    _wanted: tokio::sync::oneshot::Sender<std::convert::Infallible>,
}

impl<P> Transfer<P> {
    /// Returns the result, after the pipe has been dropped or read to its end.
    ///
    /// # Errors
    /// The container's side has failed.
    pub async fn finish(self) -> Result<()> {
        let Self { pipe, task, _wanted } = self;
        drop(pipe);
        task.await.map_err(Error::task("transfer"))?
    }
}

impl Engine {
    /// Unpacks a tar inside the container: the caller writes it to the pipe, drops the pipe, then calls
    /// `finish`.
    ///
    /// # Errors
    /// Unknown or broken container; errors of the unpacking come from `finish`.
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

    /// Packs a path inside the container: the caller reads the tar from the pipe to its end, then calls
    /// `finish`.
    ///
    /// # Errors
    /// Unknown or broken container; errors of the packing come from `finish`.
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
        if container.is_paused() {
            return Err(Error::Paused(container.handle.clone()));
        }
        let entry = self.shared.cgroups.enter_v2(&container.id)?;
        let (user, path) = (user.to_owned(), path.to_owned());
        let can_cancel = keeper.has(wire::Feature::Confinement);
        let (wanted, dropped) = tokio::sync::oneshot::channel::<std::convert::Infallible>();
        let task = tokio::spawn(async move {
            let tar = theirs.as_fd();
            let going = container.going().await?;
            let asked =
                keeper.transfer(wire::Transfer { inward, user, path, tar, place: entry.as_fds() }).await;
            // This process's copy of the helper's pipe end must be closed while the helper works, or the end
            // of the pipe would never be seen.
            drop((theirs, entry, going));
            failpoint::reach(if inward { Point::StreamInBegun } else { Point::StreamOutBegun });
            let answer = async {
                let asked = asked?;
                let transfer = asked.seq;
                let mut answer = std::pin::pin!(asked.answer());
                tokio::select! {
                    answer = &mut answer => answer,
                    // The transfer was dropped. Closing the pipe does not end a helper that container root
                    // has stopped (SIGSTOP).
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
    // Fails above the host's limit (/proc/sys/fs/pipe-max-size): the smaller pipe is slower, not wrong.
    let _ = rustix::pipe::fcntl_setpipe_size(&writer, PIPE);
    Ok((reader, writer))
}
