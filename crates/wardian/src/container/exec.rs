//! `wardian exec`: one more process in a container.

use super::run::{Place, Streams};
use super::session::{self, End, Signals, failed, follow, streams};
use super::spec::{Env, command};
use super::{Server, block_on};
use crate::print;
use anyhow::Result;
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
    /// The container's handle
    handle: String,
    /// What to run
    #[arg(value_name = "COMMAND", allow_hyphen_values = true)]
    words: Vec<String>,
    #[arg(last = true, hide = true, value_name = "COMMAND")]
    last: Vec<String>,
}

/// Runs it.
pub fn run(args: Args) -> Result<ExitCode> {
    Ok(block_on(work(args)).unwrap_or_else(|error| failed(&error)))
}

async fn work(args: Args) -> Result<ExitCode> {
    let Args { server, env, streams: wanted, place, handle, words, last } = args;
    let mut process = place.process(command(words, last, "wardian exec HANDLE -- COMMAND")?);
    process.env = env.all()?;
    let detach = wanted.detach;
    let wanted = wanted.wanted(true);
    wanted.check()?;
    wanted.prepare(&mut process);
    let (client, mut signals) = (server.client()?, Signals::catch()?);
    if detach {
        let started = client.run(&handle, &process, Io::default()).await;
        let started = started.map_err(|error| server.explain(error))?;
        print::text(&format!("{}\n", started.id()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let (io, left) = streams(wanted);
    let started = client.run(&handle, &process, io).await.map_err(|error| server.explain(error))?;
    let id = started.id().to_owned();
    let end =
        follow(started, wanted, true, left, &mut signals).await.map_err(|error| server.explain(error))?;
    if end == End::Detached {
        session::detached(&handle, &id);
    }
    Ok(end.code())
}
