//! `wardian attach`: attaches to a running process.

use super::session::{self, End, Signals, Wanted, failed, follow, streams};
use super::{MAIN, Server, block_on};
use anyhow::Result;
use clap::Args as ClapArgs;
use std::process::ExitCode;
use wardian_garden::{ErrorKind, Io};

/// To what.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Exit codes: the process's own (128 + signal if one ended it), 125: it cannot be attached to, or \
    output of it is lost."
)]
pub struct Args {
    #[command(flatten)]
    server: Server,
    /// Our standard input is the process's
    #[arg(short, long)]
    interactive: bool,
    /// It has a terminal; with -i, Ctrl-P Ctrl-Q detaches
    #[arg(short, long)]
    tty: bool,
    /// Ctrl-C ends the attaching, not the process
    #[arg(long)]
    no_signals: bool,
    /// The container's handle, or the beginning of its id
    handle: String,
    /// The process's id, as `exec -d` prints it
    #[arg(default_value = MAIN)]
    process: String,
}

/// Runs the command.
pub fn run(args: Args) -> Result<ExitCode> {
    Ok(block_on(work(args)).unwrap_or_else(|error| failed(&error)))
}

async fn work(args: Args) -> Result<ExitCode> {
    let Args { server, interactive, tty, no_signals, handle, process } = args;
    let wanted = Wanted { input: interactive, tty, detachable: true, ours: no_signals };
    wanted.check()?;
    let (client, mut signals) = (server.client()?, Signals::catch()?);
    wanted.foreground(&mut signals).await?;
    let handle = server.named(&client, &handle).await?;
    let (io, left) = streams(wanted);
    // Without -i, the input of the process is not closed either.
    let io = if interactive { io } else { Io { stdin: None, ..io } };
    let attached = match signals.until(client.attach(&handle, &process, io)).await {
        Ok(attached) => attached,
        Err(number) => return Ok(End::Left(number).code()),
    };
    let attached = match attached {
        Err(error) if error.kind() == Some(ErrorKind::ProcessNotFound) => {
            // Garden gives the same error if there is no such container.
            if let Err(missing) = client.info(&handle).await {
                return Err(server.explain(missing));
            }
            return Err(server.no_process(error, &handle, &process));
        }
        attached => attached.map_err(|error| server.explain(error))?,
    };
    let end = follow(attached, wanted, true, left, &mut signals).await;
    let end = end.map_err(|error| server.left(error, &handle, &process))?;
    if end == End::Detached {
        session::detached(&handle, &process);
    }
    Ok(end.code())
}
