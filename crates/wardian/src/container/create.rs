//! `wardian create`.

use super::session::{End, PATIENCE, PIPE, Signals};
use super::spec::Making;
use super::status::status;
use super::{Server, block_on};
use crate::exit::interrupted;
use crate::print;
use crate::watch::Bars;
use anyhow::{Context as _, Result};
use clap::Args as ClapArgs;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;
use wardian_garden::wire::ContainerSpec;
use wardian_garden::{Client, Error, ErrorKind};
use wardian_lab::Interrupted;
use wardian_store::Phase;

/// No progress is printed for creates up to this duration.
const QUICK: Duration = Duration::from_millis(500);
/// How long a server may take to say which images it brings into its store.
const ANSWER: Duration = Duration::from_secs(1);
/// After this time a server has noticed that a client has gone.
const LEFT: Duration = Duration::from_millis(400);
/// Where the kernel gives a new identifier at each read (`random(4)`).
pub const UUID: &str = "/proc/sys/kernel/random/uuid";
/// The interval of progress updates.
const LOOK: Duration = Duration::from_millis(200);

/// What to make.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    making: Making,
    /// A name that `wardian image ls` shows, an image at a registry (alpine, HOST:PORT/REPOSITORY:TAG), a file or directory of
    /// the server's host (a relative one begins with ./), or an address such as oci:///DIR [default: the server's
    /// --default-rootfs]
    image: Option<String>,
}

/// Creates a container, and prints its handle.
pub fn run(args: Args) -> Result<ExitCode> {
    let Args { server, making, image } = args;
    let spec = making.spec(image.as_deref(), server.is_local())?;
    block_on(async {
        let (client, mut signals) = (server.client()?, Signals::catch()?);
        let handle = create(&server, &client, &spec, &mut signals).await?;
        tell(&client, &spec, &handle, &mut signals).await
    })
}

/// Prints a new container's handle. If a handle chosen by the server cannot be printed, the container is destroyed,
/// because nobody else would know of it.
pub async fn tell(
    client: &Client,
    spec: &ContainerSpec,
    handle: &str,
    signals: &mut Signals,
) -> Result<ExitCode> {
    let told = match print::line(handle) {
        Ok(true) => return Ok(ExitCode::SUCCESS),
        // A handle given by the caller is known to the caller.
        told if !spec.handle.is_empty() => return told.map(|_| ExitCode::SUCCESS),
        told => told,
    };
    destroy(client, handle, signals).await;
    told.context("the container is destroyed again, for its handle can be told to nobody")?;
    Ok(End::Left(PIPE).code())
}

/// Destroys an unneeded container, and prints a note on failure, or on a signal before the answer: a signal must not
/// wait for a server that hangs.
pub async fn destroy(client: &Client, handle: &str, signals: &mut Signals) {
    // An earlier signal is the reason for the destroy, and must not interrupt it.
    let _ = signals.take_kept();
    let why = match signals.until(client.destroy(handle)).await {
        Ok(Err(error)) if error.kind() != Some(ErrorKind::ContainerNotFound) => error.to_string(),
        Ok(_) => return,
        Err(_) => "a signal has come before the server's answer".to_owned(),
    };
    print::note(&format!(
        "the container {handle} was perhaps not destroyed: {why}; `wardian rm {handle}` does it"
    ));
}

/// Creates a container. The server does not cancel a create in progress, so after a signal the container is awaited
/// and destroyed; but the fetch of an image may take long, and is given up once its client goes.
pub async fn create(
    server: &Server,
    client: &Client,
    spec: &ContainerSpec,
    signals: &mut Signals,
) -> Result<String> {
    // The handle is known before the server's answer, to destroy a container that it makes without one.
    let mut spec = spec.clone();
    if spec.handle.is_empty() {
        spec.handle =
            std::fs::read_to_string(UUID).with_context(|| format!("read {UUID}"))?.trim().to_owned();
    }
    let (handle, image) = (&spec.handle, &wardian_image::shown(&spec.image.uri));
    let mut made = Box::pin(importing(client, client.create_told(&spec), image));
    let made = match signals.until(&mut made).await {
        Err(number) => match signals.until(is_brought(client, image)).await {
            Ok(true) => {
                drop(made);
                return Err(leave(client, signals, handle, number).await);
            }
            Ok(false) => {
                signals.rest(number, Some("the container is being made; it is destroyed then"), made).await
            }
            Err(second) => Err(second),
        },
        made => made,
    };
    let made = match made {
        Ok(Err(error)) if matches!(&error, Error::Garden(body) if body.message.contains(IN_USE)) => {
            return Err(taken(client, handle, error).await);
        }
        Ok(made) => made.map_err(|error| server.explain(error))?,
        Err(number) => {
            let text = format!(
                "the server has not said whether the container {handle} was made: `wardian rm {handle}`"
            );
            return Err(interrupted(number, &text));
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
            let text = format!(
                "interrupted: the container {made} was perhaps not destroyed; `wardian rm {made}` does it"
            );
            Err(interrupted(second, &text))
        }
    }
}

/// What a server says of a handle that is taken.
const IN_USE: &str = "already in use";

/// Adds to the error for a handle that is taken what has become of its container.
async fn taken(client: &Client, handle: &str, error: Error) -> anyhow::Error {
    let known = tokio::time::timeout(ANSWER, client.container(handle, false)).await;
    let Ok(Ok(known)) = known else { return error.into() };
    let status = print::tame(&status(&known.container));
    anyhow::Error::new(error).context(format!(
        "there is a container {handle} already ({status}): `wardian rm {handle}` destroys it, `wardian exec {handle} -- COMMAND` \
         runs another command in it"
    ))
}

/// Whether the server brings the image into its store at the moment; one that does not answer soon does not say so.
async fn is_brought(client: &Client, image: &str) -> bool {
    let images = tokio::time::timeout(ANSWER, client.images_under_way()).await;
    images.is_ok_and(|images| images.is_ok_and(|images| images.iter().any(|other| other.image == image)))
}

/// Ends a create whose image was not there yet, and whose request was dropped. The image may just have come: the server
/// finishes the container then, and it is destroyed.
async fn leave(client: &Client, signals: &mut Signals, handle: &str, number: i32) -> anyhow::Error {
    for _ in 0..2 {
        tokio::time::sleep(LEFT).await;
        match signals.until(tokio::time::timeout(PATIENCE, client.destroy(handle))).await {
            Ok(Ok(Err(error))) if error.kind() == Some(ErrorKind::ContainerNotFound) => {}
            Ok(Ok(Ok(()))) => return Interrupted(number).into(),
            Ok(_) | Err(_) => {
                let text =
                    format!("interrupted: `wardian rm {handle}` removes the container, if it was made");
                return interrupted(number, &text);
            }
        }
    }
    interrupted(
        number,
        "interrupted: no container was made; what has come of the image is kept for the next time",
    )
}

/// Prints on a terminal what a create waits for if it takes long: that an image is brought into the store, and its layers.
async fn importing<T>(client: &Client, made: impl Future<Output = T>, image: &str) -> T {
    let mut made = std::pin::pin!(made);
    if !std::io::stderr().is_terminal() {
        return made.await;
    }
    if let Ok(made) = tokio::time::timeout(QUICK, &mut made).await {
        return made;
    }
    match image {
        "" => print::say("importing the server's default image ..."),
        image => print::say(&format!("importing {} ...", print::tame(image))),
    }
    let mut bars = Bars::default();
    loop {
        tokio::select! {
            biased;
            made = &mut made => return made,
            () = show_layers(client, image, &mut bars) => {}
        }
    }
}

/// Shows how far the server is with the layers of an image.
async fn show_layers(client: &Client, image: &str, bars: &mut Bars) {
    tokio::time::sleep(LOOK).await;
    // A server of another kind does not know this request.
    let Ok(images) = client.images_under_way().await else { return };
    // Of those that bring the same image, one reads a layer, and the others wait for it.
    let all: Vec<_> = images.iter().filter(|other| other.image == image).collect();
    let Some(longest) = all.iter().max_by_key(|image| image.layers.len()) else { return };
    for (at, layer) in longest.layers.iter().enumerate() {
        let same =
            all.iter().flat_map(|image| &image.layers).filter(|other| other.chain_id == layer.chain_id);
        let Some(first) = same.max_by_key(|layer| layer.read) else { continue };
        let phase = match first.state.as_str() {
            "unpacking" => Phase::Unpacking,
            "present" => Phase::Present,
            "done" => Phase::Done,
            _ => Phase::Waiting,
        };
        bars.show(at, &first.chain_id, first.size, first.read, phase);
    }
}
