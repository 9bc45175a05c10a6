//! `wardian run`: creates a container and runs a process in it.

use super::create::{create, destroy, tell};
use super::session::{self, End, Signals, Wanted, failed, follow, streams};
use super::spec::{Making, command};
use super::{MAIN, Server, block_on};
use crate::exit::mistake;
use crate::store::size;
use anyhow::{Result, anyhow, ensure};
use clap::Args as ClapArgs;
use std::process::ExitCode;
use wardian_engine::MOST_KEPT;
use wardian_garden::wire::ProcessSpec;
use wardian_garden::{Error, Io};
use wardian_lab::Interrupted;

/// What to run, and in what.
#[derive(Debug, ClapArgs)]
#[command(override_usage = "wardian run [OPTIONS] [IMAGE] [--] [COMMAND...]", after_help = session::EXIT_CODES)]
pub struct Args {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    making: Making,
    /// Destroy the container when the process has ended
    #[arg(long)]
    rm: bool,
    #[command(flatten)]
    streams: Streams,
    #[command(flatten)]
    place: Place,
    /// Run this program instead of the image's entrypoint, with COMMAND as its arguments; "": no entrypoint
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// A name that `wardian image ls` shows, an image at a registry (alpine, HOST:PORT/REPOSITORY:TAG), a file or directory of
    /// the server's host (a relative one begins with ./), or an address such as oci:///DIR [default: the server's
    /// --default-rootfs]
    image: Option<String>,
    /// What to run, or the arguments of the image's entrypoint; after a -- also if there is no IMAGE [default: the image's
    /// own command]
    #[arg(value_name = "COMMAND", allow_hyphen_values = true)]
    words: Vec<String>,
    #[arg(last = true, hide = true, value_name = "COMMAND")]
    last: Vec<String>,
}

/// What a process has to do with us.
#[derive(Debug, ClapArgs)]
pub struct Streams {
    /// Our standard input is the process's
    #[arg(short, long)]
    interactive: bool,
    /// It has a terminal; with -i, Ctrl-P Ctrl-Q detaches
    #[arg(short, long)]
    tty: bool,
    /// Detach: do not attach to the process. With -i its standard input stays open for `wardian attach -i`
    #[arg(short, long)]
    pub detach: bool,
    /// Keep this much of its newest output for `wardian logs`, at most 64M; 0: nothing [default: 1M with -d, and for `run`
    /// without --rm; else 0]
    #[arg(long, value_name = "BYTES", value_parser = kept)]
    keep_output: Option<u64>,
}

/// The output that is kept of a process, in bytes, unless it is said how much.
const KEPT: u64 = 1 << 20;

fn kept(text: &str) -> Result<u64, String> {
    match size(text)? {
        bytes if bytes > MOST_KEPT => {
            Err("at most 64M are kept; have the program write more into a volume".to_owned())
        }
        bytes => Ok(bytes),
    }
}

impl Streams {
    /// Converts the flags.
    pub fn wanted(&self, detachable: bool) -> Wanted {
        Wanted { input: self.interactive && !self.detach, tty: self.tty, detachable, ours: false }
    }

    /// Enters into the spec of a process what the server is to do with its streams; `stays`: its output is of interest later
    /// although somebody is attached to it.
    pub fn enter(&self, spec: &mut ProcessSpec, stays: bool) {
        let usual = if self.detach || stays { KEPT } else { 0 };
        spec.keep_output = self.keep_output.unwrap_or(usual);
        spec.hold_input = self.detach && self.interactive;
    }
}

/// Who runs, and where.
#[derive(Debug, ClapArgs)]
pub struct Place {
    /// Working directory, made if it is missing [default: the image's, or else /]
    #[arg(short, long, value_name = "DIR", value_parser = directory)]
    workdir: Option<String>,
    /// Name, uid, uid:gid or name:group [default: the image's, or else root]
    #[arg(short, long)]
    user: Option<String>,
}

/// Parses a working directory.
fn directory(text: &str) -> Result<String, String> {
    if text.starts_with('/') {
        return Ok(text.to_owned());
    }
    Err("the path in the container must be absolute".to_owned())
}

impl Place {
    /// Returns the spec of a process with this user and working directory; `of_image` says what the image adds.
    pub fn process(self, command: (String, Vec<String>), of_image: &str) -> ProcessSpec {
        let (path, args) = command;
        let (dir, user) = (self.workdir.unwrap_or_default(), self.user.unwrap_or_default());
        ProcessSpec { path, args, dir, user, of_image: of_image.to_owned(), ..ProcessSpec::default() }
    }
}

/// Runs the command.
pub fn run(args: Args) -> Result<ExitCode> {
    Ok(block_on(work(args)).unwrap_or_else(|error| failed(&error)))
}

async fn work(args: Args) -> Result<ExitCode> {
    let Args { server, making, rm, streams: wanted, place, entrypoint, image, words, last } = args;
    let of_image = if entrypoint.is_some() { "place" } else { "command" };
    let program = entrypoint.filter(|program| !program.is_empty());
    let mut words = program.into_iter().chain(command(words, last));
    let first = words.next();
    ensure!(
        of_image == "command" || first.is_some(),
        mistake(anyhow!("--entrypoint \"\": say what to run: wardian run IMAGE -- COMMAND"))
    );
    let command = (first.unwrap_or_default(), words.collect());
    let detach = wanted.detach;
    let mut process = ProcessSpec { id: MAIN.to_owned(), ..place.process(command, of_image) };
    wanted.enter(&mut process, !rm);
    process.remove_container = rm && detach;
    // With --rm, the keys do not detach: this process must stay to destroy the container.
    let wanted = wanted.wanted(!rm);
    wanted.check()?;
    let spec = making.spec(image.as_deref(), server.is_local())?;
    let (client, mut signals) = (server.client()?, Signals::catch()?);
    wanted.foreground(&mut signals).await?;
    wanted.prepare(&mut process);
    let handle = create(&server, &client, &spec, &mut signals).await?;
    let (streams, left) = streams(wanted);
    let io = if detach { Io::default() } else { streams };
    let started = match signals.begun(None, client.run(&handle, &process, io)).await {
        // The process goes on without its output; with --rm, the container is destroyed now.
        Ok(Err(error @ Error::Output { .. })) if !rm => return Err(server.unheard(error, &handle)),
        Ok(started) => started.map_err(|error| server.explain(error)),
        Err(number) => Err(Interrupted(number).into()),
    };
    let started = match started {
        Ok(started) => started,
        // A new container without its process is useless, and destroyed.
        Err(error) => {
            destroy(&client, &handle, &mut signals).await;
            return Err(error);
        }
    };
    if detach {
        return tell(&client, &spec, &handle, &mut signals).await;
    }
    let end = follow(started, wanted, !rm, left, &mut signals).await;
    if rm {
        destroy(&client, &handle, &mut signals).await;
    }
    let end = end.map_err(|error| server.left(error, &handle, MAIN))?;
    if end == End::Detached {
        session::detached(&handle, MAIN);
    }
    Ok(end.code())
}
