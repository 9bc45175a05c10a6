//! `wardian monitor`.

use crate::container::session::{End, Signals};
use crate::container::{Server, block_on};
use crate::lab::kept::{self, Place};
use crate::print;
use anyhow::{Context as _, Result, bail};
use clap::Args as ClapArgs;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use wardian_garden::{Address, Client};
use wardian_monitor::live::{Garden, Nowhere};
use wardian_monitor::runs::{Lines, Runs, Stored};
use wardian_monitor::{Hosts, Limits, Page, is_public, serve};

/// Descriptors beside those of the clients: of the program itself, of its connections to the server, and of the history.
const FILES: u64 = 64;

/// What the page shows, and where it is.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(flatten)]
    server: Server,
    /// Serve the page at this address; port 0: a free one
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Allow an address that other hosts can reach. Nobody is asked who they are: whoever reaches it sees the history, and all
    /// containers with their commands
    #[arg(long)]
    insecure_listen: bool,
    /// A name by which browsers may call this host, besides localhost and the address; may be repeated
    #[arg(long = "host", value_name = "NAME", value_parser = name)]
    hosts: Vec<String>,
    #[command(flatten)]
    history: Place,
    /// Show the runs of a file instead, with a run as JSON in each line, as `wardian lab history` exports them
    #[arg(long, value_name = "FILE", conflicts_with = "history", help_heading = "History")]
    runs: Option<PathBuf>,
}

/// Parses a name of a host, without a port.
fn name(text: &str) -> Result<String, String> {
    let is_name = !text.is_empty()
        && text.len() <= 253
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if is_name { Ok(text.to_owned()) } else { Err("expected the name of a host, without a port".to_owned()) }
}

/// Whether a server is on this host, so that the host's figures belong to it.
fn is_here(address: &Address) -> bool {
    match address {
        Address::Unix(_) => true,
        Address::Tcp(at) => {
            let host = at.rsplit_once(':').map_or(at.as_str(), |(host, _)| host);
            let host = host.trim_start_matches('[').trim_end_matches(']');
            host == "localhost" || host.parse().is_ok_and(|address| !is_public(address))
        }
    }
}

/// Lets this process open as many descriptors as clients may need, as far as its hard limit allows.
fn make_room(clients: usize) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = clients as u64 + FILES;
    if current.is_some_and(|current| current < wanted) {
        let current = maximum.map_or(Some(wanted), |maximum| Some(maximum.min(wanted)));
        if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current, maximum }) {
            tracing::debug!(%error, "monitor.room");
        }
    }
}

/// Returns the page of a server that listens on this unix socket, for its own `/monitor`.
pub fn of_server(socket: Option<&Path>) -> Arc<Page> {
    let runs: Arc<dyn Runs> = match kept::usual() {
        Some(file) => Arc::new(Stored::at(&file)),
        None => Arc::new(Lines::default()),
    };
    let address = socket.map(|socket| Address::Unix(socket.to_owned()).to_string());
    match address.and_then(|address| Some((Client::new(&address).ok()?, address))) {
        Some((client, address)) => Page::new(runs, Garden::new(client, address, true)),
        None => Page::new(runs, Nowhere("it has no unix socket, by which its monitor would ask it")),
    }
}

/// Serves the page, until Ctrl-C.
pub fn run(args: Args) -> Result<ExitCode> {
    let Args { server, listen, insecure_listen, hosts, history, runs } = args;
    if is_public(listen.ip()) && !insecure_listen {
        bail!(
            "--listen {listen} can be reached from other hosts, and the page asks nobody who they are: use 127.0.0.1 and a \
             tunnel (ssh -L 8080:localhost:8080), or allow it with --insecure-listen"
        );
    }
    let limits = Limits::default();
    make_room(limits.clients);
    let named = runs.clone().or_else(|| history.flag());
    let runs: Arc<dyn Runs> = match (runs, history.path()) {
        (Some(file), _) => Arc::new(Lines::of_file(&file)),
        (None, Some(file)) => Arc::new(Stored::at(&file)),
        (None, None) => Arc::new(Lines::default()),
    };
    // A damaged file is told now, and not first on the page.
    runs.version()?;
    if let Some(file) = named.filter(|file| !file.exists()) {
        print::note(&format!(
            "there is no {} yet: the page shows its runs as soon as there is",
            file.display()
        ));
    }
    let live = Garden::new(server.client()?, server.address().to_string(), is_here(server.address()));
    block_on(async {
        let mut signals = Signals::catch()?;
        let listener = match tokio::net::TcpListener::bind(listen).await {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                bail!("port {} of {} is in use: choose another one with --listen", listen.port(), listen.ip())
            }
            bound => bound.with_context(|| format!("listen on {listen}"))?,
        };
        let address = listener.local_addr().context("look at the address")?;
        if !print::line(&format!("The monitor is at http://{address}/ (Ctrl-C ends it)"))? {
            return Ok(ExitCode::SUCCESS);
        }
        let page = Page::new(runs, live);
        let hosts = Hosts::new(address, &hosts);
        let ended = signals.until(serve(listener, page, hosts, limits, std::future::pending())).await;
        Ok(ended.map_or_else(|number| End::Left(number).code(), |()| ExitCode::SUCCESS))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_this_host_are_shown_beside_its_own_server_only() {
        for (address, is) in [
            ("unix:/run/x", true),
            ("tcp:[::1]:7", true),
            ("tcp:localhost:7", true),
            ("tcp:10.0.0.1:7", false),
        ] {
            assert_eq!(is_here(&address.parse().unwrap()), is, "{address}");
        }
    }

    #[test]
    fn names_of_hosts() {
        assert_eq!(name("wall-1.example.com"), Ok("wall-1.example.com".to_owned()));
        for bad in ["", "a:80", "http://a", "a b", "[::1]"] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }
}
