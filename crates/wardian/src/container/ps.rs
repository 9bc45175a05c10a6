//! `wardian ps`, `wardian inspect` and `wardian stats`.

use super::session::{End, Signals};
use super::spec::pair;
use super::{Server, block_on, network};
use crate::print;
use anyhow::Result;
use clap::Args as ClapArgs;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use wardian_garden::wire::{BulkInfo, BulkMetrics, ContainerInfo, Metrics, PortMapping};
use wardian_garden::{Client, Error, ErrorKind};

/// The maximum number of handles in one bulk request, since they are in its URL.
const BULK: usize = 100;
/// The sampling interval.
const PERIOD: Duration = Duration::from_secs(1);

/// Which to list.
#[derive(Debug, ClapArgs)]
pub struct Ps {
    #[command(flatten)]
    server: Server,
    /// Also those that are being made, or could not be unmade
    #[arg(short, long)]
    all: bool,
    /// Print nothing but handles
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
    /// Only those with this property
    #[arg(short, long = "filter", value_name = "KEY=VALUE", value_parser = pair)]
    filters: Vec<(String, String)>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Which to show.
#[derive(Debug, ClapArgs)]
pub struct Inspect {
    #[command(flatten)]
    server: Server,
    /// The container's handle
    handle: String,
}

/// Which to watch.
#[derive(Debug, ClapArgs)]
pub struct Stats {
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

/// Fetches the info of containers in few requests. A handle that contains a comma needs a request of its own, because
/// bulk requests separate handles by commas.
async fn infos(client: &Client, handles: &[String]) -> Result<BTreeMap<String, BulkInfo>, Error> {
    let mut all = BTreeMap::new();
    let plain = plain(handles);
    let mut chunks: Vec<&[&str]> = plain.chunks(BULK).collect();
    while let Some(chunk) = chunks.pop() {
        match client.bulk_info(chunk).await {
            Ok(some) => all.extend(some),
            // The response may be too long for containers with many properties, so the request is split.
            Err(Error::Http(_) | Error::Response(_) | Error::Status { .. }) if chunk.len() > 1 => {
                let (first, second) = chunk.split_at(chunk.len() / 2);
                chunks.extend([first, second]);
            }
            Err(error) => return Err(error),
        }
    }
    for handle in odd(handles) {
        if let Some(info) = there(client.info(handle).await)? {
            all.insert(handle.clone(), BulkInfo { info, ..BulkInfo::default() });
        }
    }
    Ok(all)
}

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

fn is_broken(info: &ContainerInfo) -> bool {
    info.events.iter().flatten().any(|event| event.starts_with("broken: "))
}

fn port(port: &PortMapping) -> Value {
    let protocol = if port.protocol.is_empty() { "tcp" } else { &port.protocol };
    json!({"host": port.host_port, "container": port.container_port, "protocol": protocol})
}

fn age_ms(metrics: &Metrics) -> u64 {
    u64::try_from(metrics.age).unwrap_or_default() / 1_000_000
}

/// Returns the creation time for this age, in milliseconds since 1970.
fn made_ms(age_ms: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    u64::try_from(now).unwrap_or_default().saturating_sub(age_ms)
}

/// Runs `wardian ps`.
pub fn ps(args: Ps) -> Result<ExitCode> {
    let Ps { server, all, quiet, filters, json } = args;
    let client = server.client()?;
    let mut filter: BTreeMap<String, String> = filters.into_iter().collect();
    if all {
        filter.insert("garden.state".into(), "all".into());
    }
    let listed = block_on(async {
        let explain = |error| server.explain(error);
        let mut handles = client.list(&filter).await.map_err(explain)?;
        if quiet {
            return Ok((handles, BTreeMap::new(), BTreeMap::new()));
        }
        let infos = infos(&client, &handles).await.map_err(explain)?;
        if !all {
            // Without `--all` no containers in creation are listed, so one without info has disappeared.
            let is_known = |entry: &BulkInfo| entry.err.is_none();
            handles.retain(|handle| infos.get(handle).map_or(!handle.contains(','), is_known));
        }
        let metrics = metrics(&client, &handles).await.map_err(explain)?;
        Ok((handles, infos, metrics))
    });
    let (handles, infos, metrics) = listed?;
    if quiet {
        print::text(&handles.iter().map(|handle| format!("{handle}\n")).collect::<String>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let known = |handle: &String| {
        let info = infos.get(handle).filter(|entry| entry.err.is_none()).map(|entry| &entry.info);
        let metrics = metrics.get(handle).filter(|entry| entry.err.is_none()).map(|entry| &entry.metrics);
        let state = match info {
            Some(info) if is_broken(info) => "broken",
            Some(info) => info.state.as_str(),
            // Still being created, or destroyed meanwhile.
            None => "unknown",
        };
        (info, metrics, state.to_owned())
    };
    if json {
        let entry = |handle: &String| {
            let (info, metrics, state) = known(handle);
            let address = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
            let ports = info.and_then(|info| info.mapped_ports.as_deref()).unwrap_or_default();
            json!({
                "handle": handle,
                "state": state,
                "address": info.and_then(|info| address(&info.container_ip)),
                "ipv6_address": info.and_then(|info| address(&info.container_ipv6)),
                "external_address": info.and_then(|info| address(&info.external_ip)),
                "ports": ports.iter().map(port).collect::<Vec<_>>(),
                "created_ms": metrics.map(|metrics| made_ms(age_ms(metrics))),
                "pids": metrics.map(|metrics| metrics.pid_stat.current),
                "memory_bytes": metrics.map(|metrics| metrics.memory_stat.total_usage_toward_limit),
                "written_bytes": metrics.map(|metrics| metrics.disk_stat.exclusive_bytes_used),
                "properties": info.and_then(|info| info.properties.clone()).unwrap_or_default(),
                "events": info.and_then(|info| info.events.clone()).unwrap_or_default(),
            })
        };
        print::json(&handles.iter().map(entry).collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let row = |handle: &String| {
        let (info, metrics, state) = known(handle);
        let made = metrics.map_or_else(|| "-".to_owned(), |metrics| print::age(made_ms(age_ms(metrics))));
        let pids = metrics.map_or_else(|| "-".to_owned(), |metrics| metrics.pid_stat.current.to_string());
        let memory = metrics.map_or_else(
            || "-".to_owned(),
            |metrics| print::bytes(metrics.memory_stat.total_usage_toward_limit),
        );
        let address = info.map(|info| info.container_ip.clone()).filter(|ip| !ip.is_empty());
        let ports = info.map_or_else(|| "-".to_owned(), network::summary);
        [handle.clone(), state, made, pids, memory, address.unwrap_or_else(|| "-".to_owned()), ports]
    };
    let rows: Vec<_> = handles.iter().map(row).collect();
    print::text(&print::table(["HANDLE", "STATE", "CREATED", "PIDS", "MEMORY", "ADDRESS", "PORTS"], &rows))?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `wardian inspect`.
pub fn inspect(args: Inspect) -> Result<ExitCode> {
    let Inspect { server, handle } = args;
    let client = server.client()?;
    let known = block_on(async {
        let info = client.info(&handle).await.map_err(|error| server.explain(error))?;
        // A broken container has no metrics, and other Garden servers have no history and tell no egress rules.
        let (memory, cpu) = (client.memory_limits(&handle).await.ok(), client.cpu_limits(&handle).await.ok());
        let bandwidth = client.bandwidth_limits(&handle).await.ok();
        let disk = client.disk_limits(&handle).await.ok();
        let egress = client.net_out_rules(&handle).await.ok();
        let (metrics, history) = (client.metrics(&handle).await.ok(), client.history(&handle).await.ok());
        Ok(json!({
            "handle": handle,
            "info": info,
            "limits": {"memory": memory, "cpu": cpu, "bandwidth": bandwidth, "disk": disk},
            "egress_rules": egress,
            "metrics": metrics,
            "history": history,
        }))
    });
    print::json(&known?)?;
    Ok(ExitCode::SUCCESS)
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
pub fn stats(args: Stats) -> Result<ExitCode> {
    let Stats { server, no_stream, json, handles } = args;
    block_on(async {
        let (client, mut signals) = (server.client()?, Signals::catch()?);
        let explain = |error| server.explain(error);
        let look = async {
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
