//! `wardian limit`, `wardian stop` and `wardian rm`.

use super::session::Signals;
use super::spec::DiskScope;
use super::{Server, block_on, each};
use crate::print;
use crate::store::size;
use clap::Args as ClapArgs;
use std::process::ExitCode;
use wardian_garden::{ErrorKind, wire};

/// What to limit. What is not given stays as it is.
#[derive(Debug, ClapArgs)]
#[command(
    group(clap::ArgGroup::new("limit").required(true).multiple(true)),
    override_usage = "wardian limit [OPTIONS] HANDLE"
)]
pub struct Limit {
    #[command(flatten)]
    server: Server,
    /// Most bytes of its root file system on the disk: 500M, 2G (2^30), 2GB (10^9), or `none`
    #[arg(long, value_name = "BYTES", value_parser = limited, group = "limit")]
    disk: Option<u64>,
    /// Most files, directories and links that it makes, or `none`
    #[arg(long, value_name = "N", value_parser = limited, group = "limit")]
    inodes: Option<u64>,
    /// What counts towards --disk: the image and what is written (total), or what is written alone (exclusive)
    #[arg(long, value_name = "SCOPE", group = "limit")]
    disk_scope: Option<DiskScope>,
    /// Its handle, or the beginning of its id
    #[arg(value_name = "HANDLE")]
    handle: String,
}

/// Parses a limit; `none` is 0, as in Garden.
fn limited(text: &str) -> Result<u64, String> {
    match text {
        "none" => Ok(0),
        text => size(text).and_then(|limit| match limit {
            0 => Err("nothing could be written; `none` takes the limit away".to_owned()),
            limit => Ok(limit),
        }),
    }
}

/// Changes the limits of a container.
pub fn limit(args: Limit) -> anyhow::Result<ExitCode> {
    let Limit { server, disk, inodes, disk_scope, handle } = args;
    block_on(async {
        let client = server.client()?;
        let (name, handle) = (handle.clone(), server.named(&client, &handle).await?);
        // Before it, the container's absence would look like a container without limits.
        client.info(&handle).await.map_err(|error| server.explain(error))?;
        let mut limits = client.disk_limits(&handle).await.map_err(|error| server.explain(error))?;
        limits.byte_hard = disk.unwrap_or(limits.byte_hard);
        limits.inode_hard = inodes.unwrap_or(limits.inode_hard);
        limits.scope = disk_scope.map_or(limits.scope, DiskScope::number);
        client.set_disk_limits(&handle, &limits).await.map_err(|error| server.explain(error))?;
        print::text(&format!("{name}\n"))
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What to stop.
#[derive(Debug, ClapArgs)]
pub struct Stop {
    #[command(flatten)]
    server: Server,
    /// Kill the processes at once
    #[arg(long, conflicts_with_all = ["time", "signal"])]
    kill: bool,
    /// How long the processes have after the first signal, in seconds [default: 10]
    #[arg(short, long, visible_alias = "timeout", value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(0..=86_400))]
    time: Option<u64>,
    /// The first signal, by name or number [default: the container's, see `run --stop-signal`]
    #[arg(short, long, value_name = "SIGNAL", value_parser = super::signal::named)]
    signal: Option<String>,
    /// Handles, or beginnings of ids
    #[arg(required = true, value_name = "HANDLE")]
    handles: Vec<String>,
}

/// What to destroy.
#[derive(Debug, ClapArgs)]
pub struct Rm {
    #[command(flatten)]
    server: Server,
    /// One that is not there is no error
    #[arg(short, long)]
    force: bool,
    /// Handles, or beginnings of ids
    #[arg(required = true, value_name = "HANDLE")]
    handles: Vec<String>,
}

/// Ends the processes; the containers stay.
pub fn stop(args: Stop) -> anyhow::Result<ExitCode> {
    let Stop { server, kill, time, signal, handles } = args;
    let stop = wire::Stop {
        kill,
        signal: signal.unwrap_or_default(),
        grace_ms: time.map(|seconds| seconds.saturating_mul(1000)),
    };
    block_on(async {
        let (client, mut signals) = (server.client()?, Signals::catch()?);
        each(&handles, &mut signals, "stopped", |handle| {
            let (client, server, stop) = (client.clone(), server.clone(), stop.clone());
            async move {
                let (name, handle) = (handle.clone(), server.named(&client, &handle).await?);
                client
                    .stop_so(&handle, &stop)
                    .await
                    .map(|()| Some(name))
                    .map_err(|error| server.explain(error))
            }
        })
        .await
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Destroys containers, with everything in them.
pub fn rm(args: Rm) -> anyhow::Result<ExitCode> {
    let Rm { server, force, handles } = args;
    block_on(async {
        let (client, mut signals) = (server.client()?, Signals::catch()?);
        each(&handles, &mut signals, "destroyed", |handle| {
            let (client, server) = (client.clone(), server.clone());
            async move {
                let (name, handle) = (handle.clone(), server.named(&client, &handle).await?);
                match client.destroy(&handle).await {
                    Err(error) if force && error.kind() == Some(ErrorKind::ContainerNotFound) => Ok(None),
                    Err(error) => Err(server.explain(error)),
                    Ok(()) => Ok(Some(name)),
                }
            }
        })
        .await
    })?;
    Ok(ExitCode::SUCCESS)
}
