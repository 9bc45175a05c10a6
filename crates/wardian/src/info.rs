//! `wardian info` and `wardian version`: this program and the server that it speaks to.

use crate::container::{Server, block_on};
use crate::context::{self, Sourced, Status};
use crate::print;
use anyhow::Result;
use clap::Args as ClapArgs;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;
use wardian_garden::wire::ServerInfo;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Which server, and how to answer.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(flatten)]
    server: Server,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Info {
    client: ClientInfo,
    /// `None`: it does not answer.
    server: Option<ServerInfo>,
}

#[derive(Debug, Serialize)]
struct ClientInfo {
    version: &'static str,
    config: Config,
    settings: BTreeMap<&'static str, Sourced>,
}

#[derive(Debug, Serialize)]
struct Config {
    path: String,
    status: Status,
}

#[derive(Debug, Serialize)]
struct Versions {
    client: Version,
    server: Option<Version>,
}

#[derive(Debug, Serialize)]
struct Version {
    version: String,
}

/// Prints what the two are. Without a server it prints the client's half, and fails.
pub fn info(args: &Args) -> Result<ExitCode> {
    let (server, failed) = ask(&args.server)?;
    let file = context::file();
    let settings =
        [("root", context::place(file, context::ROOT)), ("run", context::place(file, context::RUN))];
    let config = Config {
        path: file.map(|file| file.path.display().to_string()).unwrap_or_default(),
        status: file.map_or(Status::Off, |file| file.status),
    };
    let settings = settings.into_iter().chain(args.server.settings()).collect();
    let info = Info { client: ClientInfo { version: VERSION, config, settings }, server };
    if args.json {
        print::json(&info)?;
    } else {
        print::text(&text(&info))?;
    }
    failed.map_or(Ok(ExitCode::SUCCESS), Err)
}

/// Prints the versions of the two. Without a server it prints the client's, and fails.
pub fn version(args: &Args) -> Result<ExitCode> {
    let (server, failed) = ask(&args.server)?;
    let versions = Versions {
        client: Version { version: VERSION.to_owned() },
        server: server.map(|server| Version { version: server.version }),
    };
    if args.json {
        print::json(&versions)?;
    } else {
        let mut text = format!("client  {VERSION}\n");
        if let Some(server) = &versions.server {
            let _ = writeln!(text, "server  {}", print::tame(&server.version));
        }
        print::text(&text)?;
    }
    failed.map_or(Ok(ExitCode::SUCCESS), Err)
}

/// Returns what the server says, or why it says nothing.
fn ask(server: &Server) -> Result<(Option<ServerInfo>, Option<anyhow::Error>)> {
    let client = server.client()?;
    Ok(match block_on(async { Ok(client.info_of_server().await) })? {
        Ok(info) => (Some(info), None),
        Err(error) => (None, Some(server.explain(error))),
    })
}

fn text(info: &Info) -> String {
    let client = &info.client;
    let config = match client.config.status {
        Status::Read => "",
        Status::Missing => " (there is none)",
        Status::Unreadable => " (you may not read it: it is left out)",
        Status::Off => "none (WARDIAN_CONFIG is empty)",
    };
    let mut rows =
        vec![("version", client.version.to_owned()), ("config", format!("{}{config}", client.config.path))];
    for (name, Sourced { value, source }) in &client.settings {
        rows.push((name, format!("{value} ({source})")));
    }
    let mut text = half("Client", &rows);
    if let Some(server) = &info.server {
        let list = |words: &[String]| if words.is_empty() { "none".to_owned() } else { words.join(", ") };
        let conf = Some(&server.registries.conf).filter(|conf| !conf.is_empty());
        text += &half(
            "Server",
            &[
                ("version", format!("{} (process {})", server.version, server.pid)),
                ("root", server.root.clone()),
                ("run", server.run.clone()),
                ("kernel", server.kernel.clone()),
                ("cgroups", server.cgroups.clone()),
                ("disk limits", server.disk_driver.clone()),
                ("network", server.network.clone()),
                ("features", list(&server.features)),
                (
                    "containers",
                    format!("{} running, {} stopped", server.containers.running, server.containers.stopped),
                ),
                (
                    "store",
                    format!(
                        "{}, layers of {}, {} free",
                        print::count(server.store.images, "image"),
                        print::bytes(server.store.layers_bytes),
                        print::bytes(server.store.available_bytes)
                    ),
                ),
                ("registries", conf.map_or("no registries.conf", String::as_str).to_owned()),
                ("insecure", list(&server.registries.insecure)),
            ],
        );
    }
    text
}

fn half(title: &str, rows: &[(&str, String)]) -> String {
    let mut text = format!("{title}:\n");
    for (name, value) in rows {
        let _ = writeln!(text, "  {name:<12}{}", print::tame(value));
    }
    text
}
