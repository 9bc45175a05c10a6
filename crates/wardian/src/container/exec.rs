//! `wardian exec`: runs another process in a container.

use super::run::{Place, Streams};
use super::session::{self, End, PATIENCE, PIPE, Signals, failed, follow, streams};
use super::spec::{Env, command};
use super::{Server, block_on};
use crate::exit::{interrupted, mistake};
use crate::print;
use anyhow::{Context as _, Result};
use clap::Args as ClapArgs;
use std::process::ExitCode;
use wardian_garden::Io;

/// What to run, and where.
#[derive(Debug, ClapArgs)]
#[command(override_usage = "wardian exec [OPTIONS] HANDLE [--] COMMAND...", after_help = session::EXIT_CODES)]
pub struct Args {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    env: Env,
    #[command(flatten)]
    streams: Streams,
    #[command(flatten)]
    place: Place,
    /// The container's handle, or the beginning of its id
    handle: String,
    /// What to run
    #[arg(value_name = "COMMAND", allow_hyphen_values = true)]
    words: Vec<String>,
    #[arg(last = true, hide = true, value_name = "COMMAND")]
    last: Vec<String>,
}

/// Runs the command.
pub fn run(args: Args) -> Result<ExitCode> {
    Ok(block_on(work(args)).unwrap_or_else(|error| failed(&error)))
}

async fn work(args: Args) -> Result<ExitCode> {
    let Args { server, env, streams: wanted, place, handle, words, last } = args;
    let mut words = command(words, last).into_iter();
    let path = words.next().context("say what to run: wardian exec HANDLE -- COMMAND").map_err(mistake)?;
    let mut process = place.process((path, words.collect()), "place");
    process.env = env.all()?;
    let detach = wanted.detach;
    wanted.enter(&mut process, false);
    let wanted = wanted.wanted(true);
    wanted.check()?;
    let (client, mut signals) = (server.client()?, Signals::catch()?);
    wanted.foreground(&mut signals).await?;
    wanted.prepare(&mut process);
    let handle = server.named(&client, &handle).await?;
    let (streams, left) = streams(wanted);
    let io = if detach { Io::default() } else { streams };
    let started = match signals.begun(None, client.run(&handle, &process, io)).await {
        Ok(started) => started.map_err(|error| server.unheard(error, &handle))?,
        Err(number) => {
            return Err(interrupted(number, "the server has not said whether the process was started"));
        }
    };
    let id = started.id().to_owned();
    if detach {
        let told = match print::line(&id) {
            Ok(true) => return Ok(ExitCode::SUCCESS),
            told => told,
        };
        // Nobody could find the process without its id, so it is killed.
        let end = async { started.signal(true).await.and(started.wait().await) };
        let ended = signals.until(tokio::time::timeout(PATIENCE, end)).await;
        let state = match ended {
            Ok(Ok(Ok(_))) => "the process is killed again, for its id can be told to nobody",
            _ => "the process may go on, and its id can be told to nobody",
        };
        told.context(state)?;
        return Ok(End::Left(PIPE).code());
    }
    let end = follow(started, wanted, true, left, &mut signals)
        .await
        .map_err(|error| server.left(error, &handle, &id))?;
    if end == End::Detached {
        session::detached(&handle, &id);
    }
    Ok(end.code())
}
