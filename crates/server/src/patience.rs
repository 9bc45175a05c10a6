//! Timeouts for tars that stand still, and which side is at fault.

use std::fmt;
use std::future::Future;
use std::time::Duration;

/// What a tar that stands still waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stall {
    /// The client sends nothing of its tar.
    ClientSends,
    /// The client takes nothing of the tar it has asked for.
    ClientTakes,
    /// No process in the container reads the tar.
    ContainerTakes,
    /// No process in the container writes the tar.
    ContainerSends,
    /// The tar is complete, and the container's side does not end.
    ContainerEnds,
}

/// A tar has stood still for too long.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{stall} for {time:?}")]
pub(crate) struct Stalled {
    pub(crate) stall: Stall,
    time: Duration,
}

impl fmt::Display for Stall {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Self::ClientSends => "the client has sent nothing of the tar",
            Self::ClientTakes => "the client has taken nothing of the tar",
            Self::ContainerTakes => "the container has taken nothing of the tar",
            Self::ContainerSends => "the container has sent nothing of the tar",
            Self::ContainerEnds => "the container's side has the whole tar and has not ended",
        })
    }
}

/// The longest time for each step of a tar; `None`: without a bound.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience(pub(crate) Option<Duration>);

impl Patience {
    /// Waits for the next step.
    ///
    /// # Errors
    /// The step was not done in time; its future has been dropped.
    pub(crate) async fn wait<T>(self, stall: Stall, step: impl Future<Output = T>) -> Result<T, Stalled> {
        match self.0 {
            Some(time) => tokio::time::timeout(time, step).await.map_err(|_| Stalled { stall, time }),
            None => Ok(step.await),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;

    #[tokio::test(start_paused = true)]
    async fn each_step_has_the_whole_time() {
        let patience = Patience(Some(Duration::from_secs(60)));
        let step = || tokio::time::sleep(Duration::from_secs(59));
        for _ in 0..3 {
            patience.wait(Stall::ClientSends, step()).await.unwrap();
        }
        let stalled = patience.wait(Stall::ContainerTakes, pending::<()>()).await.unwrap_err();
        assert_eq!(stalled.to_string(), "the container has taken nothing of the tar for 60s");
        let year = Duration::from_secs(31_536_000);
        Patience(None).wait(Stall::ClientSends, tokio::time::sleep(year)).await.unwrap();
    }
}
