//! What systemd and its like tell a service and want to be told (`sd_notify(3)`, `sd_listen_fds(3)`), and the socket of
//! whoever starts a server with `SOCKET2ME_FD`.

use anyhow::{Context as _, Result};
use sd_notify::NotifyState;
use std::os::fd::OwnedFd;

/// A socket's number, as the original server's starter gives it.
const SOCKET2ME: &str = "SOCKET2ME_FD";

/// Listening sockets that whoever started us has opened. To be called once, before anything else has descriptors.
pub fn listeners() -> Result<Vec<OwnedFd>> {
    let mut numbers: Vec<i32> = sd_notify::listen_fds().context("LISTEN_FDS")?.collect();
    if let Ok(text) = std::env::var(SOCKET2ME) {
        numbers.push(text.parse().with_context(|| format!("{SOCKET2ME}={text}"))?);
    }
    let own = |number: i32| {
        wardian_sys::spawn::inherited(number).with_context(|| format!("descriptor {number}, given to us"))
    };
    numbers.into_iter().map(own).collect()
}

/// Requests are answered from now on.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The end has begun.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    // Nobody listens, mostly; whoever does notices that nothing comes.
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd.not-told");
    }
}
