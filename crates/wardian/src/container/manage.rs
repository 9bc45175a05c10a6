//! `wardian stop` and `wardian rm`.

use super::session::Signals;
use super::{Server, block_on, each};
use crate::print;
use anyhow::Result;
use clap::Args as ClapArgs;
use std::process::ExitCode;
use wardian_garden::ErrorKind;

/// What to stop.
#[derive(Debug, ClapArgs)]
pub struct Stop {
    #[command(flatten)]
    server: Server,
    /// Do not ask the processes first, nor give them ten seconds
    #[arg(long)]
    kill: bool,
    /// Handles
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
    /// Handles
    #[arg(required = true, value_name = "HANDLE")]
    handles: Vec<String>,
}

/// Ends the processes; the containers stay.
pub fn stop(args: Stop) -> Result<ExitCode> {
    let Stop { server, kill, handles } = args;
    block_on(async {
        let (client, mut signals) = (server.client()?, Signals::catch()?);
        each(&handles, &mut signals, "stopped", async |handle| {
            client.stop(handle, kill).await.map_err(|error| server.explain(error))?;
            print::text(&format!("{handle}\n"))
        })
        .await
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Destroys containers, with everything in them.
pub fn rm(args: Rm) -> Result<ExitCode> {
    let Rm { server, force, handles } = args;
    block_on(async {
        let (client, mut signals) = (server.client()?, Signals::catch()?);
        each(&handles, &mut signals, "destroyed", async |handle| match client.destroy(handle).await {
            Err(error) if force && error.kind() == Some(ErrorKind::ContainerNotFound) => Ok(()),
            Err(error) => Err(server.explain(error)),
            Ok(()) => print::text(&format!("{handle}\n")),
        })
        .await
    })?;
    Ok(ExitCode::SUCCESS)
}
