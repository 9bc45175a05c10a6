//! `wardian top`.

use super::{Server, block_on};
use crate::print;
use clap::Args as ClapArgs;
use std::process::ExitCode;
use wardian_garden::wire::TopProcess;

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
    /// Options of ps, which docker has here
    #[arg(hide = true, allow_hyphen_values = true, value_name = "PS OPTIONS")]
    options: Vec<String>,
}

/// Lists the processes in a container.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args { server, json, handle, options } = args;
    if !options.is_empty() {
        return Err(crate::exit::mistake(anyhow::anyhow!(
            "top takes no options of ps: `wardian exec {handle} -- ps {}` runs the container's own ps",
            options.join(" ")
        )));
    }
    let top = block_on(async {
        let client = server.client()?;
        let handle = server.named(&client, &handle).await?;
        client.top(&handle).await.map_err(|error| server.explain_own(error, "lists no processes"))
    })?;
    if json {
        print::json(&top.processes)?;
    } else {
        let rows: Vec<_> = top.processes.iter().map(row).collect();
        print::text(&print::table(["PID", "PARENT", "USER", "STATE", "CPU TIME", "COMMAND"], &rows))?;
    }
    if top.cut {
        print::note(&format!("there are more processes than these {}", top.processes.len()));
    }
    Ok(ExitCode::SUCCESS)
}

fn row(process: &TopProcess) -> [String; 6] {
    let parent = if process.parent == 0 { "-".to_owned() } else { process.parent.to_string() };
    [
        process.pid.to_string(),
        parent,
        process.user.to_string(),
        process.state.clone(),
        time(process.cpu_ns),
        process.command.clone(),
    ]
}

/// Formats processor time as `minutes:seconds.hundredths`, as ps(1) and top(1) do.
fn time(ns: u64) -> String {
    let hundredths = ns / 10_000_000;
    format!("{}:{:02}.{:02}", hundredths / 6000, hundredths / 100 % 60, hundredths % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_a_row() {
        let process = TopProcess {
            pid: 3,
            parent: 0,
            host_pid: 77,
            user: 1000,
            state: "S".into(),
            cpu_ns: 3_723_450_000_000,
            command: "sh -c x".into(),
        };
        assert_eq!(row(&process), ["3", "-", "1000", "S", "62:03.45", "sh -c x"]);
    }
}
