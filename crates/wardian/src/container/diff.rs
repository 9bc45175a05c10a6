//! `wardian diff`.

use super::{Server, block_on};
use crate::print;
use clap::Args as ClapArgs;
use std::fmt::Write as _;
use std::process::ExitCode;

/// Of which container.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(flatten)]
    server: Server,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Its handle, or the beginning of its id
    handle: String,
}

/// Lists what a container has changed in its root file system.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args { server, json, handle } = args;
    let found = block_on(async {
        let client = server.client()?;
        let handle = server.named(&client, &handle).await?;
        client.changes(&handle).await.map_err(|error| server.explain_own(error, "lists no changes"))
    })?;
    if json {
        print::json(&found.changes)?;
    } else {
        let mut lines = String::new();
        for change in &found.changes {
            let _ = writeln!(lines, "{} {}", print::tame(&change.kind), print::tame(&change.path));
        }
        print::text(&lines)?;
    }
    if found.cut {
        print::note("there are more changes than are listed: there are too many, or they are too deep");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}
