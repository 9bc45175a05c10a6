//! `wardian create`.

use super::session::{End, PIPE, Signals};
use super::spec::Making;
use super::{Server, block_on};
use crate::exit::interrupted;
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
    let _ = signals.take_kept();
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
    let made = importing(client.create_told(spec), &spec.image.uri);
    let made = match signals.begun(Some("the container is being made; it is destroyed then"), made).await {
        Ok(made) => made.map_err(|error| server.explain(error))?,
        Err(number) => {
            return Err(interrupted(
                number,
                "the server has not said whether the container was made: `wardian ps` shows it",
            ));
        }
    };
    made.warnings.iter().for_each(|warning| print::note(warning));
    let made = made.handle;
    let Some(number) = signals.take_kept() else { return Ok(made) };
    match signals.until(client.destroy(&made)).await {
        Ok(destroyed) => {
            destroyed.map_err(|error| server.explain(error))?;
            Err(Interrupted(number).into())
        }
        Err(second) => {
            Err(interrupted(second, &format!("interrupted: the container {made} may not be destroyed")))
        }
    }
}

/// Says on a terminal what takes so long.
async fn importing<T>(made: impl Future<Output = T>, image: &str) -> T {
    let mut made = std::pin::pin!(made);
    if std::io::stderr().is_terminal() {
        if let Ok(made) = tokio::time::timeout(QUICK, &mut made).await {
            return made;
        }
        match wardian_image::shown(image).as_str() {
            "" => print::say("importing the server's default image ..."),
            image => print::say(&format!("importing {} ...", print::tame(image))),
        }
    }
    made.await
}
