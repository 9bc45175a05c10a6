//! `wardian create`.

use super::session::Signals;
use super::spec::Making;
use super::{Server, block_on};
use crate::print;
use anyhow::Result;
use clap::Args as ClapArgs;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;
use wardian_garden::Client;
use wardian_garden::wire::ContainerSpec;
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
        print::text(&format!("{handle}\n"))
    })?;
    Ok(ExitCode::SUCCESS)
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
                client.destroy(&handle).await.map_err(|error| server.explain(error))?;
                return Err(Interrupted(number).into());
            }
            number = signals.next() => match interrupted.replace(number) {
                None => eprintln!("wardian: the container is being made; it is destroyed then"),
                Some(_) => {
                    eprintln!("wardian: `wardian ps` shows whether it was made");
                    std::process::exit(128 + number);
                }
            },
            () = &mut slow, if !told => {
                told = true;
                match wardian_image::shown(&spec.image.uri).as_str() {
                    "" => eprintln!("importing the server's default image ..."),
                    image => eprintln!("importing {} ...", print::tame(image)),
                }
            }
        }
    }
}
