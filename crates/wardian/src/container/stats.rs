//! `wardian stats`.

use super::session::{End, Signals};
use super::{Server, block_on};
use crate::print;
use anyhow::Result;
use clap::Args as ClapArgs;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;
use wardian_garden::wire::{BulkMetrics, Metrics};
use wardian_garden::{Client, Error, ErrorKind};

/// The maximum number of handles in one bulk request, since they are in its URL.
const BULK: usize = 100;
/// The sampling interval.
const PERIOD: Duration = Duration::from_secs(1);

/// Which to watch.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(flatten)]
    server: Server,
    /// Look once, for a second
    #[arg(long)]
    no_stream: bool,
    /// Print JSON, an array a line
    #[arg(long)]
    json: bool,
    /// Handles [default: all]
    #[arg(value_name = "HANDLE")]
    handles: Vec<String>,
}

/// Fetches the metrics of containers in few requests. A handle that contains a comma needs a request of its own, because
/// bulk requests separate handles by commas.
async fn metrics(client: &Client, handles: &[String]) -> Result<BTreeMap<String, BulkMetrics>, Error> {
    let mut all = BTreeMap::new();
    for chunk in plain(handles).chunks(BULK) {
        all.extend(client.bulk_metrics(chunk).await?);
    }
    for handle in odd(handles) {
        if let Some(metrics) = there(client.metrics(handle).await)? {
            all.insert(handle.clone(), BulkMetrics { metrics, ..BulkMetrics::default() });
        }
    }
    Ok(all)
}

/// Returns `None` for a container that has disappeared since it was listed.
fn there<T>(known: Result<T, Error>) -> Result<Option<T>, Error> {
    match known {
        Err(error) if error.kind() == Some(ErrorKind::ContainerNotFound) => Ok(None),
        known => known.map(Some),
    }
}

fn plain(handles: &[String]) -> Vec<&str> {
    handles.iter().map(String::as_str).filter(|handle| !handle.contains(',')).collect()
}

fn odd(handles: &[String]) -> impl Iterator<Item = &String> {
    handles.iter().filter(|handle| handle.contains(','))
}

/// One line of the table of `wardian stats`.
#[derive(Debug, PartialEq)]
struct Use {
    handle: String,
    cpu_percent: f64,
    memory_bytes: u64,
    pids: u64,
    written_bytes: u64,
}

type Sample = BTreeMap<String, Metrics>;

/// Returns the usage of containers that are in both samples.
fn uses(before: &Sample, after: &Sample) -> Vec<Use> {
    let line = |(handle, now): (&String, &Metrics)| {
        let then = before.get(handle)?;
        // A smaller age shows a new container with the same handle.
        let elapsed = u64::try_from(now.age.checked_sub(then.age)?).ok().filter(|ns| *ns > 0)?;
        let used = now.cpu_stat.usage.saturating_sub(then.cpu_stat.usage);
        #[allow(clippy::cast_precision_loss)]
        let cpu_percent = used as f64 / elapsed as f64 * 100.0;
        Some(Use {
            handle: handle.clone(),
            cpu_percent,
            memory_bytes: now.memory_stat.total_usage_toward_limit,
            pids: now.pid_stat.current,
            written_bytes: now.disk_stat.exclusive_bytes_used,
        })
    };
    after.iter().filter_map(line).collect()
}

fn table(uses: &[Use]) -> String {
    let row = |one: &Use| {
        let (memory, written) = (print::bytes(one.memory_bytes), print::bytes(one.written_bytes));
        [one.handle.clone(), format!("{:.1}", one.cpu_percent), memory, one.pids.to_string(), written]
    };
    let rows: Vec<_> = uses.iter().map(row).collect();
    print::table(["HANDLE", "CPU %", "MEMORY", "PIDS", "WRITTEN"], &rows)
}

fn as_json(uses: &[Use]) -> Value {
    let entry = |one: &Use| {
        json!({
            "handle": one.handle,
            "cpu_percent": (one.cpu_percent * 100.0).round() / 100.0,
            "memory_bytes": one.memory_bytes,
            "pids": one.pids,
            "written_bytes": one.written_bytes,
        })
    };
    uses.iter().map(entry).collect()
}

/// Takes a sample of the metrics.
async fn sample(client: &Client, handles: &[String]) -> Result<Sample, Error> {
    let wanted = if handles.is_empty() { client.list(&BTreeMap::new()).await? } else { handles.to_owned() };
    let all = metrics(client, &wanted).await?;
    Ok(all
        .into_iter()
        .filter(|(_, entry)| entry.err.is_none())
        .map(|(handle, entry)| (handle, entry.metrics))
        .collect())
}

/// Prints what containers use: once, or each second until Ctrl-C.
pub fn run(args: Args) -> Result<ExitCode> {
    let Args { server, no_stream, json, handles } = args;
    block_on(async {
        let (client, mut signals) = (server.client()?, Signals::catch()?);
        let explain = |error| server.explain(error);
        let look = async {
            let mut named = Vec::new();
            for handle in &handles {
                named.push(server.named(&client, handle).await?);
            }
            let handles = named;
            let mut before = sample(&client, &handles).await.map_err(explain)?;
            if let Some(unknown) = handles.iter().find(|handle| !before.contains_key(*handle)) {
                // Fails with the reason.
                client.metrics(unknown).await.map_err(explain)?;
            }
            let live = !no_stream && !json && std::io::stdout().is_terminal();
            loop {
                tokio::time::sleep(PERIOD).await;
                let after = sample(&client, &handles).await.map_err(explain)?;
                let uses = uses(&before, &after);
                if live {
                    print::raw("\x1b[H\x1b[J")?;
                }
                let table = || table(&uses);
                let goes_on =
                    if json { print::json_line(&as_json(&uses))? } else { print::line(table().trim_end())? };
                if no_stream || !goes_on || (!handles.is_empty() && after.is_empty()) {
                    return Ok(ExitCode::SUCCESS);
                }
                before = after;
            }
        };
        signals.until(look).await.unwrap_or_else(|number| Ok(End::Left(number).code()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use wardian_garden::wire::{CPUStat, PidStat};

    fn of(age: i64, usage: u64) -> Metrics {
        Metrics {
            age,
            cpu_stat: CPUStat { usage, ..CPUStat::default() },
            pid_stat: PidStat { current: 2, max: 0 },
            ..Metrics::default()
        }
    }

    #[test]
    fn use_is_counted_between_two_looks() {
        let before = Sample::from([
            ("a".into(), of(1_000, 500)),
            ("gone".into(), of(1, 1)),
            ("again".into(), of(9, 9)),
        ]);
        let after = Sample::from([
            ("a".into(), of(2_000, 1_250)),
            ("new".into(), of(1, 1)),
            ("again".into(), of(1, 1)),
        ]);
        let uses = uses(&before, &after);
        assert_eq!(uses.len(), 1);
        assert_eq!((uses[0].handle.as_str(), uses[0].pids), ("a", 2));
        assert!((uses[0].cpu_percent - 75.0).abs() < 1e-9);
        assert!(table(&uses).contains("a       75.0"));
        assert_eq!(as_json(&uses)[0]["cpu_percent"], 75.0);
    }
}
