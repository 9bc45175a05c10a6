//! `wardian ps`.

use super::format::{self, Format};
use super::spec::pair;
use super::status::{STATES, status};
use super::{Server, block_on, network};
use crate::exit::mistake;
use crate::print;
use anyhow::{Result, bail};
use clap::Args as ClapArgs;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::ExitCode;
use wardian_garden::wire::{Container, PortMapping};
use wardian_garden::{Client, Error};

/// The most columns of a command in the table, as docker has it.
const COMMAND: usize = 20;

/// Which to list.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(flatten)]
    server: Server,
    /// Also those that are being made, or could not be unmade
    #[arg(short, long)]
    all: bool,
    /// Print nothing but handles
    #[arg(short, long, conflicts_with_all = ["json", "format"])]
    quiet: bool,
    /// Only those of which this is true: name=TEXT (part of the handle), id=DIGITS, image=NAME, status=WORD (running, exited,
    /// idle, paused, stopped, broken, creating), exited=STATUS, label=KEY[=VALUE], or KEY=VALUE for a property
    #[arg(short, long = "filter", value_name = "KEY=VALUE", value_parser = pair)]
    filters: Vec<(String, String)>,
    /// Print whole ids and commands
    #[arg(long)]
    no_trunc: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print each by a template with the fields of --json, or docker's: '{{.handle}} {{.Status}}', 'table {{.Names}}\t{{.Ports}}';
    /// `json`: an object a line
    #[arg(long, value_name = "TEMPLATE", value_parser = format::parse, conflicts_with = "json")]
    format: Option<Format>,
}

/// What is asked of containers here, and not of the server.
#[derive(Debug, Default)]
struct Filters(BTreeMap<String, Vec<String>>);

impl Filters {
    /// Returns the filters, and the properties that the server looks for.
    fn of(given: Vec<(String, String)>) -> (Self, BTreeMap<String, String>) {
        let (mut own, mut properties) = (BTreeMap::<String, Vec<String>>::new(), BTreeMap::new());
        for (key, value) in given {
            match key.as_str() {
                "name" | "id" | "status" | "exited" => own.entry(key).or_default().push(value),
                "image" | "ancestor" => own.entry("image".to_owned()).or_default().push(value),
                "label" | "property" => match value.split_once('=') {
                    Some((key, value)) => drop(properties.insert(key.to_owned(), value.to_owned())),
                    None => own.entry("label".to_owned()).or_default().push(value),
                },
                _ => drop(properties.insert(key, value)),
            }
        }
        (Self(own), properties)
    }

    /// Refuses a state that no container can have.
    fn check(&self) -> Result<()> {
        let unknown =
            self.0.get("status").into_iter().flatten().find(|word| !STATES.contains(&word.as_str()));
        let number = |text: &&String| text.parse::<u8>().is_err();
        if let Some(text) = self.0.get("exited").into_iter().flatten().find(number) {
            bail!("--filter exited={text}: expected an exit status, 0 to 255");
        }
        match unknown {
            None => Ok(()),
            Some(word) => {
                bail!("--filter status={word}: there is no such state; there are: {}", STATES.join(", "))
            }
        }
    }

    /// Whether a container is meant: of several values for a key one must fit, except for labels.
    fn fit(&self, container: &Container) -> bool {
        self.0.iter().all(|(key, values)| {
            let has = |value: &String| match key.as_str() {
                "name" => container.handle.contains(value.as_str()),
                "id" => container.id.starts_with(value.as_str()),
                "status" => container.state_word() == value,
                "exited" => {
                    let exited = container.main.as_ref().and_then(|main| main.exit_status);
                    exited.is_some_and(|status| status.to_string() == *value)
                }
                "image" => is_of(container, value),
                _ => container.properties.contains_key(value),
            };
            if key == "label" { values.iter().all(has) } else { values.iter().any(has) }
        })
    }
}

/// Whether a container is of the image: by its name, with or without its tag, or by the beginning of its id.
fn is_of(container: &Container, image: &str) -> bool {
    let id = container.image_id.strip_prefix("sha256:").unwrap_or(&container.image_id);
    let wanted = image.strip_prefix("sha256:").unwrap_or(image);
    let name = container.image.as_str();
    let untagged = name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).map(|(name, _)| name);
    name == image || untagged == Some(image) || (wanted.len() >= 4 && id.starts_with(wanted))
}

fn port(port: &PortMapping) -> Value {
    let protocol = if port.protocol.is_empty() { "tcp" } else { &port.protocol };
    json!({"host": port.host_port, "container": port.container_port, "protocol": protocol})
}

/// Returns the JSON of a container.
fn value(container: &Container) -> Value {
    let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    json!({
        "handle": container.handle,
        "id": container.id,
        "image": container.image,
        "image_id": container.image_id,
        "state": container.state_word(),
        "status": status(container),
        "reason": some(&container.reason),
        "created_ms": Some(container.created_ms).filter(|ms| *ms > 0),
        "main": container.main,
        "running": container.running,
        "ended": container.ended,
        "address": some(&container.address),
        "ipv6_address": some(&container.ipv6_address),
        "external_address": some(&container.external_address),
        "ports": container.ports.iter().map(port).collect::<Vec<_>>(),
        "properties": container.properties,
    })
}

/// Returns the JSON for a template: it has docker's names beside ours.
fn row(container: &Container, whole: bool) -> Value {
    let mut row = value(container);
    let labels: Vec<String> =
        container.properties.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let docker = json!({
        "ID": id(container, whole),
        "Names": container.handle,
        "Image": container.image,
        "Command": command(container, whole),
        "RunningFor": created(container),
        "State": container.state_word(),
        "Status": status(container),
        "Ports": network::summary(&container.ports),
        "Labels": labels.join(","),
    });
    if let (Value::Object(row), Value::Object(docker)) = (&mut row, docker) {
        row.extend(docker);
    }
    row
}

fn id(container: &Container, whole: bool) -> String {
    if whole { container.id.clone() } else { print::short(&container.id).to_owned() }
}

fn created(container: &Container) -> String {
    if container.created_ms == 0 { "-".to_owned() } else { print::age(container.created_ms) }
}

fn command(container: &Container, whole: bool) -> String {
    let words = container.main.as_ref().map(|main| main.command.join(" ")).unwrap_or_default();
    match words.as_str() {
        "" => "-".to_owned(),
        words if whole => words.to_owned(),
        words => print::ellipsis(words, COMMAND),
    }
}

/// Returns the containers that have these properties. An ordinary Garden server does not tell what is asked here.
pub async fn containers(
    server: &Server,
    client: &Client,
    properties: &BTreeMap<String, String>,
) -> Result<Vec<Container>> {
    client.containers(properties).await.map_err(|error| match error {
        Error::Status { status: 404, .. } => anyhow::Error::new(error).context(
            "this server does not tell what runs in its containers: it is no wardian, or an earlier one",
        ),
        error => server.explain(error),
    })
}

/// Runs `wardian ps`.
pub fn run(args: Args) -> Result<ExitCode> {
    let Args { server, all, quiet, filters, no_trunc, json, format } = args;
    let client = server.client()?;
    let (filters, properties) = Filters::of(filters);
    filters.check().map_err(mistake)?;
    let mut found = block_on(containers(&server, &client, &properties))?;
    let is_created = |container: &Container| {
        container.properties.get("garden.state").is_some_and(|state| state == "created")
    };
    found.retain(|container| (all || is_created(container)) && filters.fit(container));
    if quiet {
        print::text(&found.iter().map(|container| format!("{}\n", container.handle)).collect::<String>())?;
    } else if json {
        print::json(&found.iter().map(value).collect::<Vec<_>>())?;
    } else if let Some(format) = format {
        let rows: Vec<_> = found.iter().map(|container| row(container, no_trunc)).collect();
        format.print(&rows)?;
    } else {
        let cells = |container: &Container| {
            [
                id(container, no_trunc),
                container.image.clone(),
                command(container, no_trunc),
                created(container),
                status(container),
                network::summary(&container.ports),
                container.handle.clone(),
            ]
        };
        let rows: Vec<_> = found.iter().map(cells).collect();
        let head = ["ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "HANDLE"];
        print::text(&print::table(head, &rows))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wardian_garden::wire::ProcessState;

    fn container() -> Container {
        Container {
            handle: "web-1".into(),
            id: "0123456789abcdef".into(),
            image: "docker.io/library/nginx:1.27".into(),
            image_id: "sha256:feed1234".into(),
            state: "active".into(),
            main: Some(ProcessState {
                command: ["nginx", "-g", "daemon off; and more"].map(String::from).into(),
                exit_status: Some(4),
                ..ProcessState::default()
            }),
            properties: [("a".to_owned(), "b".to_owned())].into(),
            ..Container::default()
        }
    }

    #[test]
    fn filters() {
        let fits = |filters: &[(&str, &str)]| {
            let given = filters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let (filters, properties) = Filters::of(given);
            (filters.fit(&container()), properties.len())
        };
        for (filters, expected) in [
            (&[("name", "web")][..], (true, 0)),
            (&[("name", "x"), ("name", "-1")], (true, 0)),
            (&[("name", "x")], (false, 0)),
            (&[("id", "0123")], (true, 0)),
            (&[("status", "exited"), ("exited", "4")], (true, 0)),
            (&[("status", "running")], (false, 0)),
            (&[("exited", "0")], (false, 0)),
            (&[("ancestor", "docker.io/library/nginx")], (true, 0)),
            (&[("image", "docker.io/library/nginx:1.27")], (true, 0)),
            (&[("image", "feed")], (true, 0)),
            (&[("image", "nginx")], (false, 0)),
            (&[("label", "a")], (true, 0)),
            (&[("label", "a"), ("label", "z")], (false, 0)),
            (&[("label", "a=b"), ("property", "c=d"), ("e", "f")], (true, 3)),
        ] {
            assert_eq!(fits(filters), expected, "{filters:?}");
        }
    }

    #[test]
    fn rows() {
        let row = row(&container(), false);
        assert_eq!((&row["ID"], &row["handle"]), (&"0123456789ab".into(), &"web-1".into()));
        assert_eq!(row["Command"], "nginx -g daemon off…");
        assert_eq!(
            (&row["state"], &row["Status"], &row["Labels"]),
            (&"exited".into(), &"exited (4)".into(), &"a=b".into())
        );
        assert_eq!(command(&container(), true), "nginx -g daemon off; and more");
    }
}
