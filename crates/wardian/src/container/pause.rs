//! `wardian pause` and `wardian unpause`.

use super::session::Signals;
use super::{Server, block_on, each};
use clap::Args as ClapArgs;
use std::process::ExitCode;

/// Which containers.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(flatten)]
    server: Server,
    /// Handles, or beginnings of ids
    #[arg(required = true, value_name = "HANDLE")]
    handles: Vec<String>,
}

/// Freezes the processes of containers.
pub fn pause(args: &Args) -> anyhow::Result<ExitCode> {
    work(args, true)
}

/// Lets them go on.
pub fn unpause(args: &Args) -> anyhow::Result<ExitCode> {
    work(args, false)
}

fn work(Args { server, handles }: &Args, pause: bool) -> anyhow::Result<ExitCode> {
    block_on(async {
        let (client, mut signals) = (server.client()?, Signals::catch()?);
        each(handles, &mut signals, if pause { "paused" } else { "going on" }, |handle| {
            let (client, server) = (client.clone(), server.clone());
            async move {
                let (name, handle) = (handle.clone(), server.named(&client, &handle).await?);
                let done = if pause { client.pause(&handle).await } else { client.unpause(&handle).await };
                done.map(|()| Some(name)).map_err(|error| server.explain_own(error, "pauses no containers"))
            }
        })
        .await
    })?;
    Ok(ExitCode::SUCCESS)
}
