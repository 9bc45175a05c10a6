//! `wardian kill`.

use super::session::Signals;
use super::{MAIN, Server, block_on, each};
use clap::Args as ClapArgs;
use std::process::ExitCode;
use wardian_garden::ErrorKind;
use wardian_sys::signal;

/// What to kill.
#[derive(Debug, ClapArgs)]
pub struct Kill {
    #[command(flatten)]
    server: Server,
    /// Send this signal to one process, by name or number: HUP, SIGUSR1, 15 [default: KILL, to all processes]
    #[arg(short, long, value_name = "SIGNAL", value_parser = named)]
    signal: Option<String>,
    /// The process's id [default with --signal: main, which `run` has started]
    #[arg(long, value_name = "ID")]
    process: Option<String>,
    /// Handles, or beginnings of ids
    #[arg(required = true, value_name = "HANDLE")]
    handles: Vec<String>,
}

/// Parses a signal; returns its name.
pub fn named(text: &str) -> Result<String, String> {
    signal::parse(text).map(signal::name).map_err(|error| error.to_string())
}

/// Signals a process of each container, or ends all processes.
pub fn kill(args: Kill) -> anyhow::Result<ExitCode> {
    let Kill { server, signal, process, handles } = args;
    let one = (signal.is_some() || process.is_some())
        .then(|| (process.unwrap_or_else(|| MAIN.to_owned()), signal.unwrap_or_else(|| "KILL".to_owned())));
    block_on(async {
        let (client, mut signals) = (server.client()?, Signals::catch()?);
        each(&handles, &mut signals, if one.is_some() { "signalled" } else { "stopped" }, |handle| {
            let (client, server, one) = (client.clone(), server.clone(), one.clone());
            async move {
                let (name, handle) = (handle.clone(), server.named(&client, &handle).await?);
                let Some((process, signal)) = one else {
                    let killed = client.stop(&handle, true).await;
                    return killed.map(|()| Some(name)).map_err(|error| server.explain(error));
                };
                client.signal(&handle, &process, &signal).await.map(|()| Some(name)).map_err(|error| {
                    if error.kind() != Some(ErrorKind::ProcessNotFound) {
                        return server.explain_own(error, "passes on no signals but TERM and KILL");
                    }
                    anyhow::Error::new(error).context(format!(
                        "there is no process {process} in {handle}: what `run` starts is called {MAIN}, and `exec -d` prints \
                         the id for --process"
                    ))
                })
            }
        })
        .await
    })?;
    Ok(ExitCode::SUCCESS)
}
