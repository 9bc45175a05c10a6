//! Containers and processes as an operator sees them, on the wire.

use crate::convert::{address, port};
use std::collections::BTreeMap;
use std::sync::Arc;
use wardian_engine::{
    About, Condition, Ending, Engine, Kept, Network, Overview, Process, Result, Scope, Seen, Usage,
};
use wardian_garden::wire;

fn state(condition: &Condition) -> (&str, &str) {
    match condition {
        Condition::Creating => ("creating", ""),
        Condition::Active => ("active", ""),
        Condition::Paused => ("paused", ""),
        Condition::Stopped => ("stopped", ""),
        Condition::Broken(reason) => ("broken", reason),
        Condition::Ending => ("destroying", ""),
    }
}

fn process_state(about: &Arc<About>, ending: Option<Ending>, kept: Option<&Arc<Kept>>) -> wire::ProcessState {
    let size = kept.map(|kept| kept.size());
    let file = kept.and_then(|kept| kept.file());
    wire::ProcessState {
        id: about.id.clone(),
        command: about.command.clone(),
        user: about.user.clone(),
        terminal: about.terminal,
        pea: about.pea,
        started_ms: about.started_ms,
        exit_status: ending.map(|ending| ending.status),
        exited_ms: ending.and_then(|ending| ending.at_ms),
        out_of_memory: ending.is_some_and(|ending| ending.out_of_memory),
        output_bytes: size.map(|(bytes, _)| bytes),
        output_dropped: size.map_or(0, |(_, dropped)| dropped),
        output_file: file.map(|path| path.to_string_lossy().into_owned()),
    }
}

fn seen_process(seen: &Seen) -> wire::ProcessState {
    process_state(&seen.about, seen.ending, seen.kept.as_ref())
}

pub(crate) fn process(process: &Process) -> wire::ProcessState {
    process_state(process.about(), process.ending(), process.kept())
}

pub(crate) fn container(seen: &Overview) -> wire::Container {
    let (state, reason) = state(&seen.condition);
    let (image, image_id) = seen.image();
    let network = seen.network();
    let main = seen.processes.iter().find(|process| process.about.id == wire::MAIN);
    let running = || seen.processes.iter().filter(|process| process.ending.is_none());
    let main = main.or_else(|| running().min_by_key(|process| process.about.started_ms));
    wire::Container {
        handle: seen.handle.clone(),
        id: seen.id.clone(),
        image: image.to_owned(),
        image_id: image_id.to_owned(),
        state: state.to_owned(),
        reason: reason.to_owned(),
        created_ms: seen.created_ms,
        main: main.map(seen_process),
        running: running().count(),
        ended: seen.processes.len() - running().count(),
        address: address(network.and_then(Network::ip)),
        ipv6_address: address(network.and_then(Network::ipv6).map(Into::into)),
        external_address: address(network.and_then(Network::external)),
        ports: network.map(|network| network.mappings().iter().map(port).collect()).unwrap_or_default(),
        properties: BTreeMap::clone(&seen.properties()),
    }
}

pub(crate) fn usage(usage: &Usage) -> wire::Usage {
    let Usage { handle, id, metrics, limits, stalls } = usage;
    let (dirty_bytes, writeback_bytes) = metrics.stats.memory.unwritten();
    // Without a limit nothing counts, and what the container wrote is of interest.
    let of_image = if limits.disk.bytes.is_some() { metrics.disk_image_bytes } else { 0 };
    wire::Usage {
        handle: handle.clone(),
        id: id.clone(),
        age_ms: metrics.age.as_secs_f64() * 1e3,
        memory_bytes: metrics.stats.memory.towards_limit(),
        memory_limit: limits.memory_bytes,
        dirty_bytes,
        writeback_bytes,
        cpu_ns: metrics.stats.cpu.usage,
        cpu_shares: limits.cpu_shares,
        pids: metrics.stats.pids,
        pids_limit: limits.pids,
        rx_bytes: metrics.traffic.map(|(received, _)| received),
        tx_bytes: metrics.traffic.map(|(_, sent)| sent),
        disk_bytes: match limits.disk.scope {
            Scope::Exclusive => metrics.disk_exclusive_bytes,
            Scope::Total => metrics.disk_exclusive_bytes + of_image,
        },
        disk_limit: limits.disk.bytes.unwrap_or(0),
        io_stalled_us: stalls.io,
        memory_stalled_us: stalls.memory,
        cpu_stalled_us: stalls.cpu,
    }
}

/// Returns all that is known of a container.
///
/// # Errors
/// Unknown handle.
pub(crate) fn details(engine: &Engine, handle: &str, with_env: bool) -> Result<wire::Details> {
    let seen = engine.overview(handle)?;
    let defaults = seen.defaults();
    let mount = |mount: wardian_engine::Mounted| wire::Mount {
        kind: mount.kind,
        source: mount.source,
        destination: mount.destination,
        options: mount.options,
    };
    // One that is being created has no bundle yet.
    let mounts = engine.mounts(handle).unwrap_or_default().into_iter().map(mount).collect();
    Ok(wire::Details {
        processes: seen.processes.iter().map(seen_process).collect(),
        env: with_env.then(|| seen.env().to_vec()),
        env_count: seen.env().len(),
        entrypoint: defaults.entrypoint.clone(),
        command: defaults.command.clone(),
        user: defaults.user.clone(),
        working_dir: defaults.working_dir.clone(),
        image_says: engine.image_says(seen.image().1).map(Into::into),
        privileged: seen.is_privileged(),
        mounts,
        container_path: engine.container_path(&seen.id).to_string_lossy().into_owned(),
        rootfs_path: engine.rootfs_path(&seen.id).map(|path| path.to_string_lossy().into_owned()),
        container: container(&seen),
    })
}
