//! `wardian inspect`.

use super::format::{self, Format};
use super::status;
use super::{Server, block_on};
use crate::print;
use anyhow::Result;
use clap::Args as ClapArgs;
use serde_json::{Value, json};
use std::process::ExitCode;
use wardian_garden::Client;

/// Which to show.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(flatten)]
    server: Server,
    /// Show the environment too: secrets may be in it
    #[arg(long)]
    show_env: bool,
    /// Print by a template with the fields of the JSON, or docker's: '{{.image}} {{.State.ExitCode}}'
    #[arg(short, long, value_name = "TEMPLATE", value_parser = format::parse)]
    format: Option<Format>,
    /// Handles, or beginnings of ids
    #[arg(required = true, value_name = "HANDLE")]
    handles: Vec<String>,
}

/// Runs the command. One container is printed as an object, several as an array.
pub fn run(args: Args) -> Result<ExitCode> {
    let Args { server, show_env, format, handles } = args;
    let client = server.client()?;
    let all = block_on(async {
        let mut all = Vec::new();
        for handle in &handles {
            all.push(known(&server, &client, handle, show_env).await?);
        }
        Ok(all)
    })?;
    match (format, &all[..]) {
        (Some(format), _) => format.print(&all.into_iter().map(with_docker).collect::<Vec<_>>())?,
        (None, [one]) => print::json(one)?,
        (None, _) => print::json(&all)?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn known(server: &Server, client: &Client, name: &str, show_env: bool) -> Result<Value> {
    let handle = &server.named(client, name).await?;
    let info = client.info(handle).await.map_err(|error| server.explain(error))?;
    // A broken container has no metrics, and other Garden servers do not know wardian's own requests.
    let (memory, cpu) = (client.memory_limits(handle).await.ok(), client.cpu_limits(handle).await.ok());
    let bandwidth = client.bandwidth_limits(handle).await.ok();
    let disk = client.disk_limits(handle).await.ok();
    let egress = client.net_out_rules(handle).await.ok();
    let (metrics, history) = (client.metrics(handle).await.ok(), client.history(handle).await.ok());
    let details = client.container(handle, show_env).await.ok();
    let mut all = json!({"handle": handle});
    if let Some(details) = details {
        let status = status::status(&details.container);
        all = serde_json::to_value(details)?;
        all["status"] = status.into();
    }
    for (key, value) in [
        ("info", json!(info)),
        ("limits", json!({"memory": memory, "cpu": cpu, "bandwidth": bandwidth, "disk": disk})),
        ("egress_rules", json!(egress)),
        ("metrics", json!(metrics)),
        ("history", json!(history)),
    ] {
        all[key] = value;
    }
    Ok(all)
}

/// Adds what docker's users look for at its place.
fn with_docker(mut all: Value) -> Value {
    let main = all["main"].clone();
    let is_running = main.is_object() && main["exit_status"].is_null();
    let is_paused = all["state"] == "paused";
    let status = match (is_paused, is_running, main.is_object()) {
        (true, ..) => "paused",
        (_, true, _) => "running",
        (_, _, true) => "exited",
        _ => "created",
    };
    let docker = json!({
        "Id": all["id"],
        "Name": all["handle"],
        "Image": all["image_id"],
        "State": {
            "Status": status,
            "Running": is_running,
            "Paused": is_paused,
            "ExitCode": if is_running { 0.into() } else { main["exit_status"].clone() },
            "OOMKilled": main["out_of_memory"].as_bool().unwrap_or_default(),
        },
        "Config": {"Image": all["image"], "Cmd": all["command"], "Entrypoint": all["entrypoint"], "Env": all["env"],
            "User": all["user"], "WorkingDir": all["working_dir"], "Labels": all["properties"],
            "ExposedPorts": all["image_says"]["ExposedPorts"], "StopSignal": all["image_says"]["StopSignal"],
            "Healthcheck": all["image_says"]["Healthcheck"], "Volumes": all["image_says"]["Volumes"]},
        "Mounts": all["mounts"],
        "NetworkSettings": {"IPAddress": all["address"]},
    });
    if let (Value::Object(all), Value::Object(docker)) = (&mut all, docker) {
        all.extend(docker);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_finds_its_fields() {
        let all = with_docker(json!({"handle": "h", "address": "10.1.2.3", "main": {"exit_status": 4}}));
        assert_eq!((&all["Name"], &all["State"]["ExitCode"]), (&"h".into(), &4.into()));
        assert_eq!(
            (&all["State"]["Running"], &all["NetworkSettings"]["IPAddress"]),
            (&false.into(), &"10.1.2.3".into())
        );
        let all = with_docker(json!({"main": {"exit_status": null}}));
        assert_eq!((&all["State"]["Status"], &all["State"]["ExitCode"]), (&"running".into(), &0.into()));
        let all = with_docker(json!({"state": "paused", "main": {"exit_status": null}}));
        assert_eq!((&all["State"]["Status"], &all["State"]["Paused"]), (&"paused".into(), &true.into()));
        let all = with_docker(json!({"state": "active", "main": null}));
        assert_eq!((&all["State"]["Status"], &all["State"]["ExitCode"]), (&"created".into(), &Value::Null));
    }
}
