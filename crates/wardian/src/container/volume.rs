//! `wardian volume`: named volumes.

use super::{Server, block_on};
use crate::print;
use anyhow::{Result, bail};
use clap::{Args as ClapArgs, Subcommand};
use std::process::ExitCode;
use wardian_garden::ErrorKind;
use wardian_garden::wire::Volume;

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List volumes
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Make volumes; one that is there stays as it is
    Create(Create),
    /// Print a volume's path and its containers as JSON
    Inspect(Inspect),
    /// Remove volumes, with all that is in them
    #[command(visible_alias = "remove")]
    Rm(Rm),
    /// Remove all volumes that no container uses
    Prune(Prune),
}

/// How to list them.
#[derive(Debug, ClapArgs)]
pub struct Ls {
    #[command(flatten)]
    server: Server,
    /// Print nothing but names
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What to make.
#[derive(Debug, ClapArgs)]
pub struct Create {
    #[command(flatten)]
    server: Server,
    /// Names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// What to show.
#[derive(Debug, ClapArgs)]
pub struct Inspect {
    #[command(flatten)]
    server: Server,
    /// Its name
    name: String,
}

/// What to remove.
#[derive(Debug, ClapArgs)]
pub struct Rm {
    #[command(flatten)]
    server: Server,
    /// One that is not there is no error
    #[arg(short, long)]
    force: bool,
    /// Names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Whether to remove.
#[derive(Debug, ClapArgs)]
pub struct Prune {
    #[command(flatten)]
    server: Server,
    /// Remove them; without it they are only named
    #[arg(short, long)]
    force: bool,
}

/// Runs the command.
pub fn run(command: Command) -> Result<ExitCode> {
    block_on(async {
        match command {
            Command::Ls(args) => ls(args).await,
            Command::Create(Create { server, names }) => {
                let client = server.client()?;
                each(&names, async |name| {
                    client.make_volume(name).await.map_err(|error| server.explain(error))?;
                    print::text(&format!("{name}\n"))
                })
                .await
            }
            Command::Inspect(Inspect { server, name }) => {
                let volume = server.client()?.volume(&name).await.map_err(|error| server.explain(error))?;
                print::json(&volume)
            }
            Command::Rm(Rm { server, force, names }) => {
                let client = server.client()?;
                each(&names, async |name| match client.remove_volume(name).await {
                    Err(error) if force && error.kind() == Some(ErrorKind::VolumeNotFound) => Ok(()),
                    Err(error) => Err(server.explain(error)),
                    Ok(()) => print::text(&format!("{name}\n")),
                })
                .await
            }
            Command::Prune(args) => prune(args).await,
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn ls(Ls { server, quiet, json }: Ls) -> Result<()> {
    let volumes = server.client()?.volumes().await.map_err(|error| server.explain(error))?;
    if json {
        return print::json(&volumes);
    }
    if quiet {
        return print::text(&volumes.iter().map(|volume| format!("{}\n", volume.name)).collect::<String>());
    }
    let row = |volume: &Volume| {
        let made = if volume.created_ms > 0 { print::age(volume.created_ms) } else { "-".to_owned() };
        let by = if volume.used_by.is_empty() { "-".to_owned() } else { volume.used_by.join(", ") };
        [volume.name.clone(), made, by]
    };
    let rows: Vec<_> = volumes.iter().map(row).collect();
    print::text(&print::table(["VOLUME", "MADE", "USED BY"], &rows))
}

async fn prune(Prune { server, force }: Prune) -> Result<()> {
    let client = server.client()?;
    if force {
        let removed = client.prune_volumes().await.map_err(|error| server.explain(error))?;
        return print::text(&removed.iter().map(|name| format!("{name}\n")).collect::<String>());
    }
    let volumes = client.volumes().await.map_err(|error| server.explain(error))?;
    let unused: Vec<&str> =
        volumes.iter().filter(|volume| volume.used_by.is_empty()).map(|volume| &*volume.name).collect();
    if unused.is_empty() {
        return Ok(());
    }
    bail!(
        "nothing was removed; `wardian volume prune -f` removes these, with all that is in them: {}",
        unused.join(", ")
    );
}

/// Does the work for each name, also after a failure; the last failure is returned, the others are printed.
async fn each(names: &[String], mut work: impl AsyncFnMut(&str) -> Result<()>) -> Result<()> {
    let mut failure = None;
    for name in names {
        if let Err(error) = work(name).await
            && let Some(earlier) = failure.replace(error)
        {
            print::failure(&earlier);
        }
    }
    failure.map_or(Ok(()), Err)
}
