//! Experiments: they drive a Garden server as a platform would, or only the kernel, and show how the disk affects the
//! result.

#![forbid(unsafe_code)]
#![warn(clippy::print_stderr, clippy::print_stdout)]

pub mod bench;
pub mod bisect;
mod cgroups;
pub mod code;
pub mod compare;
mod crun;
pub mod doctor;
pub mod drive;
pub mod droplet;
mod ground;
pub mod guest;
pub mod host;
pub mod image;
pub mod instances;
pub mod leaks;
pub mod leftovers;
mod links;
pub mod local;
mod loops;
pub mod namespace;
mod processes;
pub mod progress;
pub mod record;
pub mod report;
pub mod results;
pub mod runs;
pub mod scale;
mod search;
pub mod signals;
pub mod teardown;
pub mod timelines;

use signals::{Signals, asking};

/// A signal asked the experiment to stop. Everything that it had made is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interrupted(
    /// The number of the signal.
    pub i32,
);

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "interrupted; everything was cleaned up")
    }
}

impl std::error::Error for Interrupted {}

/// Waits for a signal that asks to end: Ctrl-C, SIGTERM, the end of the terminal. Returns its number.
async fn interrupted() -> std::io::Result<i32> {
    Ok(interruption()?.await)
}

/// The same, but the handlers are installed at once and not only when it is awaited: from then on no such signal ends
/// the process.
fn interruption() -> std::io::Result<impl Future<Output = i32>> {
    let mut signals = Signals::catch(&asking())?;
    Ok(async move { signals.next().await })
}
