//! The service manager protocol (`sd_notify(3)`, `sd_listen_fds(3)`), and a listening socket passed in
//! `SOCKET2ME_FD`.

use anyhow::{Context as _, Result};
use sd_notify::NotifyState;
use std::os::fd::OwnedFd;

/// The variable with a listening socket's descriptor, as for the original server.
const SOCKET2ME: &str = "SOCKET2ME_FD";

/// Returns the listening sockets passed by the parent. Must be called once, before other descriptors are opened.
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

/// Reports that requests are answered from now on.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Reports that the shutdown has begun.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    // Mostly there is no service manager; one that waits for the message notices a timeout.
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd.not-told");
    }
}
