//! `wardian create`.

use super::session::{End, PIPE, Signals};
use super::spec::Making;
use super::{Server, block_on};
use crate::exit::interrupted as interrupted_by;
use crate::print;
use anyhow::{Context as _, Result};
use clap::Args as ClapArgs;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;
use wardian_garden::wire::ContainerSpec;
use wardian_garden::{Client, ErrorKind};
use wardian_lab::Interrupted;

/// Nobody is told that something is made if that takes no longer than this.
const QUICK: Duration = Duration::from_secs(1);

/// What to make.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    making: Making,
    /// A name that `wardian image ls` shows, a file or directory of the server's host (a relative one begins with ./), or
    /// an address such as oci:///DIR [default: the server's --default-rootfs]
    image: Option<String>,
}

/// Makes it, and prints its handle.
pub fn run(args: Args) -> Result<ExitCode> {
    let Args { server, making, image } = args;
    let spec = making.spec(image.as_deref())?;
    block_on(async {
        let (client, mut signals) = (server.client()?, Signals::catch()?);
        let handle = create(&server, &client, &spec, &mut signals).await?;
        tell(&client, &spec, &handle, &mut signals).await
    })
}

/// Prints a new container's handle. If nobody can be told of one that the server has made up the container is destroyed: nobody else would do that.
pub async fn tell(
    client: &Client,
    spec: &ContainerSpec,
    handle: &str,
    signals: &mut Signals,
) -> Result<ExitCode> {
    let told = match print::line(handle) {
        Ok(true) => return Ok(ExitCode::SUCCESS),
        // Who has given it does not need to read it.
        told if !spec.handle.is_empty() => return told.map(|_| ExitCode::SUCCESS),
        told => told,
    };
    destroy(client, handle, signals).await;
    told.context("the container is destroyed again, for its handle can be told to nobody")?;
    Ok(End::Left(PIPE).code())
}

/// Destroys a container that nobody needs. A failure is told, and so is a signal, which is not to wait for a server that does not answer.
pub async fn destroy(client: &Client, handle: &str, signals: &mut Signals) {
    // That is what a signal from before has asked for.
    signals.forget();
    let why = match signals.until(client.destroy(handle)).await {
        Ok(Err(error)) if error.kind() != Some(ErrorKind::ContainerNotFound) => error.to_string(),
        Ok(_) => return,
        Err(_) => "a signal has come before the server's answer".to_owned(),
    };
    print::note(&format!("the container {handle} may not be destroyed: {why}"));
}

/// Makes a container. The server finishes what it has begun: after a signal the new one is waited for and destroyed.
pub async fn create(
    server: &Server,
    client: &Client,
    spec: &ContainerSpec,
    signals: &mut Signals,
) -> Result<String> {
    let mut making = std::pin::pin!(client.create(spec));
    let slow = tokio::time::sleep(QUICK);
    let mut slow = std::pin::pin!(slow);
    let (mut told, mut interrupted) = (!std::io::stderr().is_terminal(), None);
    loop {
        tokio::select! {
            made = &mut making => {
                let handle = made.map_err(|error| server.explain(error))?;
                let Some(number) = interrupted else { return Ok(handle) };
                return match signals.until(client.destroy(&handle)).await {
                    Ok(destroyed) => {
                        destroyed.map_err(|error| server.explain(error))?;
                        Err(Interrupted(number).into())
                    }
                    Err(second) => {
                        Err(interrupted_by(second, &format!("interrupted: the container {handle} may not be destroyed")))
                    }
                };
            }
            number = signals.next() => match interrupted.replace(number) {
                None => print::note("the container is being made; it is destroyed then"),
                Some(_) => {
                    print::note("`wardian ps` shows whether it was made");
                    std::process::exit(128 + number);
                }
            },
            () = &mut slow, if !told => {
                told = true;
                match wardian_image::shown(&spec.image.uri).as_str() {
                    "" => print::say("importing the server's default image ..."),
                    image => print::say(&format!("importing {} ...", print::tame(image))),
                }
            }
        }
    }
}
