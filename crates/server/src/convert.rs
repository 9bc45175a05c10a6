//! Conversions between the wire types and the engine's. What the engine does not support is refused here, by
//! the field's name: no part of a request is silently ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use wardian_engine::{self as engine, Transport};
use wardian_garden::{ErrorBody, ErrorKind, wire};
use wardian_sys::text::clip;

type Refusal = String;

/// The most handles of a bulk request: more than fit into its URL, unless they are very short.
const HANDLES: usize = 4096;
/// The most bytes of an unsupported value that an error repeats.
const SHOWN: usize = 200;

/// Refuses a `value` of `field` that is not zero.
fn zero<T: Display + Default + PartialEq>(field: &str, value: &T) -> Result<(), Refusal> {
    if *value == T::default() {
        Ok(())
    } else {
        Err(format!("{field}: {value:?} is not supported yet", value = clip(&value.to_string(), SHOWN)))
    }
}

/// Converts the terms on which an image is had from a registry.
fn pull(image: &wire::ImageRef) -> Result<engine::PullTerms, Refusal> {
    let (user, password) = (image.username.clone(), image.password.clone());
    let when = match image.pull.as_str() {
        "" => None,
        text => Some(
            text.parse().map_err(|why| format!("image.pull: {text:?}: {why}", text = clip(text, SHOWN)))?,
        ),
    };
    match (user.is_empty(), password.is_empty()) {
        (true, true) => Ok(engine::PullTerms { when, login: None }),
        (true, false) => Err("image.password: (hidden) needs image.username".into()),
        (false, _) => Ok(engine::PullTerms { when, login: Some(engine::Login::Basic { user, password }) }),
    }
}

/// Converts a grace time in nanoseconds.
pub(crate) fn grace(nanoseconds: i64) -> Result<Duration, Refusal> {
    let positive =
        u64::try_from(nanoseconds).map_err(|_| format!("grace_time: {nanoseconds} is negative"))?;
    Ok(Duration::from_nanos(positive))
}

pub(crate) fn container(spec: wire::ContainerSpec) -> Result<engine::ContainerSpec, Refusal> {
    let pull = pull(&spec.image)?;
    let grace_time = grace(spec.grace_time)?;
    let limits = &spec.limits;
    let image = match (spec.image.uri, spec.rootfs) {
        (uri, rootfs) if !uri.is_empty() && !rootfs.is_empty() => {
            return Err("Cannot provide both Image.URI and RootFSPath".into());
        }
        (uri, rootfs) if uri.is_empty() => rootfs,
        (uri, _) => uri,
    };
    Ok(engine::ContainerSpec {
        handle: spec.handle,
        image,
        pull,
        privileged: spec.privileged,
        env: spec.env,
        properties: spec.properties,
        bind_mounts: bind_mounts(spec.bind_mounts)?,
        volumes: spec.volumes.into_iter().map(volume_mount).collect(),
        tmpfs: spec.tmpfs.into_iter().map(tmpfs).collect(),
        by_flags: spec.by_flags,
        limits: engine::Limits {
            memory_bytes: limits.memory_limits.limit_in_bytes,
            cpu_shares: shares(&limits.cpu_limits),
            pids: limits.pid_limits.max,
            disk: disk_limit(&limits.disk_limits)?,
        },
        network: engine::Order {
            namespace: None,
            network: spec.network,
            ports: spec.netin.iter().map(net_in).collect::<Result<_, _>>()?,
            egress: spec.netout_rules.into_iter().map(net_out).collect::<Result<_, _>>()?,
            bandwidth: bandwidth(&limits.bandwidth_limits)?,
            // A property, which the engine heeds.
            dns: Vec::new(),
        },
        stop_signal: stop_signal(&spec.stop_signal)?,
        grace_time,
    })
}

fn stop_signal(text: &str) -> Result<engine::StopSignal, Refusal> {
    match text {
        "" => Ok(engine::StopSignal::Term),
        "image" => Ok(engine::StopSignal::OfImage),
        text => signal("stop_signal", text).map(engine::StopSignal::Number),
    }
}

/// Converts a signal's name or number.
pub(crate) fn signal(field: &str, text: &str) -> Result<i32, Refusal> {
    wardian_sys::signal::parse(text).map_err(|error| format!("{field}: {error}"))
}

/// Converts the request to stop a container.
pub(crate) fn stop(stop: &wire::Stop) -> Result<engine::Stop, Refusal> {
    let number = Some(stop.signal.as_str()).filter(|text| !text.is_empty());
    Ok(engine::Stop {
        kill: stop.kill,
        signal: number.map(|text| signal("signal", text)).transpose()?,
        grace: stop.grace_ms.map(Duration::from_millis),
    })
}

/// Converts a time in milliseconds since 1970.
pub(crate) fn time(field: &str, text: &str) -> Result<u64, Refusal> {
    text.parse()
        .map_err(|_| format!("{field}: {:?} is no time in milliseconds since 1970", clip(text, SHOWN)))
}

pub(crate) fn top(top: engine::Top) -> wire::Top {
    let process = |row: engine::Row| wire::TopProcess {
        pid: row.pid,
        parent: row.parent,
        host_pid: row.host_pid,
        user: row.user,
        state: row.state.to_string(),
        cpu_ns: row.cpu_ns,
        command: row.command,
    };
    wire::Top { processes: top.processes.into_iter().map(process).collect(), cut: top.cut }
}

pub(crate) fn changes(changes: &engine::Changes) -> wire::Changes {
    let change = |change: &engine::Change| wire::Change {
        kind: match change.kind {
            engine::ChangeKind::Added => "A",
            engine::ChangeKind::Changed => "C",
            engine::ChangeKind::Deleted => "D",
        }
        .to_owned(),
        path: String::from_utf8_lossy(&change.path).into_owned(),
    };
    wire::Changes { changes: changes.changes.iter().map(change).collect(), cut: changes.cut }
}

fn bandwidth(limits: &wire::BandwidthLimits) -> Result<Option<engine::Bandwidth>, Refusal> {
    match (limits.rate, limits.burst) {
        (0, 0) => Ok(None),
        (0, burst) => Err(format!("limits.bandwidth_limits: a burst of {burst} bytes needs a rate")),
        // A larger burst than that is none.
        (rate, burst) => {
            Ok(Some(engine::Bandwidth { rate, burst: u32::try_from(burst).unwrap_or(u32::MAX) }))
        }
    }
}

/// Converts a request for a port mapping.
pub(crate) fn net_in(wanted: &wire::NetIn) -> Result<engine::Wanted, Refusal> {
    let transport = match wanted.protocol.as_str() {
        "" | "tcp" => Transport::Tcp,
        "udp" => Transport::Udp,
        other => return Err(format!("netin.protocol: {:?} is neither tcp nor udp", clip(other, SHOWN))),
    };
    Ok(engine::Wanted { transport, host: wanted.host_port, container: wanted.container_port })
}

/// Converts a mapping for the reply to a request for it.
pub(crate) fn mapped(mapping: engine::Mapping) -> wire::NetIn {
    wire::NetIn {
        host_port: mapping.host.into(),
        container_port: mapping.container.into(),
        protocol: protocol(mapping),
    }
}

fn protocol(mapping: engine::Mapping) -> String {
    match mapping.transport {
        Transport::Tcp => String::new(),
        Transport::Udp => "udp".to_owned(),
    }
}

/// Converts an egress rule.
pub(crate) fn net_out(rule: wire::NetOutRule) -> Result<engine::Rule, Refusal> {
    let address = |text: &str| {
        let parsed = text.parse::<IpAddr>();
        parsed.map_err(|_| format!("netout_rules.networks: {:?} is no IP address", clip(text, SHOWN)))
    };
    let end = |text: &str| if text.is_empty() { Ok(None) } else { address(text).map(Some) };
    let ends = rule.networks.iter().map(|range| Ok((end(&range.start)?, end(&range.end)?)));
    // A range without an end is one port.
    let port = |range: &wire::PortRange| {
        if range.end == 0 { (range.start, range.start) } else { (range.start, range.end) }
    };
    Ok(engine::Rule {
        protocol: engine::Protocol::from_garden(rule.protocol).map_err(|error| error.to_string())?,
        networks: engine::networks(ends.collect::<Result<Vec<_>, Refusal>>()?),
        ports: rule.ports.iter().map(port).collect(),
        icmp: rule.icmps.map(|icmp| (icmp.kind, icmp.code)),
        log: rule.log,
    })
}

/// Converts what the server is for a reply.
pub(crate) fn overall(about: &engine::Overall) -> wire::ServerInfo {
    let path = |path: &std::path::Path| path.to_string_lossy().into_owned();
    wire::ServerInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        root: path(&about.root),
        run: path(&about.run),
        kernel: about.kernel.clone(),
        cgroups: about.cgroups.to_owned(),
        disk_driver: about.disk_driver.to_owned(),
        network: about.network.to_owned(),
        features: about.features.iter().map(|name| (*name).to_owned()).collect(),
        containers: wire::Counts { running: about.running, stopped: about.stopped },
        store: wire::StoreInfo {
            images: about.images,
            layers: about.store.layers,
            layers_bytes: about.store.layers_bytes,
            fragile_layers: about.store.fragile,
            suspect_layers: about.store.suspect,
            trash: about.store.trash,
            available_bytes: about.available_bytes,
        },
        registries: wire::RegistryInfo {
            conf: about.registries_conf.as_deref().map(path).unwrap_or_default(),
            insecure: about.insecure_registries.clone(),
        },
    }
}

pub(crate) fn under_way(image: &engine::Bringing) -> wire::ImageUnderWay {
    let layer = |layer: &Arc<engine::LayerProgress>| wire::LayerUnderWay {
        chain_id: layer.chain_id.clone(),
        size: layer.size,
        read: layer.bytes_read(),
        state: layer.phase().name().to_owned(),
    };
    wire::ImageUnderWay { image: image.image.clone(), layers: image.layers.iter().map(layer).collect() }
}

/// Converts an egress rule for a reply.
pub(crate) fn egress(rule: &engine::Rule) -> wire::NetOutRule {
    let network =
        |(start, end): &(IpAddr, IpAddr)| wire::IpRange { start: start.to_string(), end: end.to_string() };
    wire::NetOutRule {
        protocol: rule.protocol.to_garden(),
        networks: rule.networks.iter().map(network).collect(),
        ports: rule.ports.iter().map(|(start, end)| wire::PortRange { start: *start, end: *end }).collect(),
        icmps: rule.icmp.map(|(kind, code)| wire::IcmpControl { kind, code }),
        log: rule.log,
    }
}

pub(crate) fn process(spec: wire::ProcessSpec) -> Result<engine::ProcessSpec, Refusal> {
    let pull = pull(&spec.image)?;
    let pea = !spec.image.uri.is_empty();
    if !pea && (pull.when.is_some() || pull.login.is_some()) {
        return Err("image: without a uri its other fields have no meaning".into());
    }
    if !pea && !spec.bind_mounts.is_empty() {
        return Err("Running a process with bind mounts and no image provided is not allowed".into());
    }
    let limits = |limits: wire::ProcessLimits| {
        Ok::<_, Refusal>(engine::Limits {
            memory_bytes: limits.memory_limits.limit_in_bytes,
            cpu_shares: shares(&limits.cpu_limits),
            pids: 0,
            disk: disk_limit(&limits.disk_limits)?,
        })
    };
    let limits = spec.limits.map(limits).transpose()?;
    if let Some(given) = limits.filter(|given| !pea && *given != engine::Limits::default()) {
        return Err(format!(
            "limits: memory {} and cpu {} of a process without an image of its own are not supported yet",
            given.memory_bytes, given.cpu_shares
        ));
    }
    if spec.bind_mounts.iter().any(|mount| mount.idmap) {
        return Err("bind_mounts.idmap: a pea has no idmapped mounts".into());
    }
    let of_image = match spec.of_image.as_str() {
        "" => engine::OfImage::Nothing,
        "place" => engine::OfImage::Place,
        "command" => engine::OfImage::Command,
        other => return Err(format!("of_image: {:?} is neither place nor command", clip(other, 32))),
    };
    Ok(engine::ProcessSpec {
        of_image,
        id: spec.id,
        path: spec.path,
        args: spec.args,
        env: spec.env,
        dir: spec.dir,
        user: spec.user,
        rlimits: spec.rlimits.given().into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        image: pea.then_some(spec.image.uri),
        pull,
        bind_mounts: bind_mounts(spec.bind_mounts)?,
        limits: limits.filter(|_| pea),
        tty: spec.tty.map(|tty| window(&tty.window_size.unwrap_or_default())),
        keep_output: spec.keep_output,
        remove_container: spec.remove_container,
        hold_input: spec.hold_input,
    })
}

pub(crate) fn window(size: &wire::WindowSize) -> engine::Window {
    engine::Window { columns: size.columns, rows: size.rows }
}

/// Converts a disk limit. As in Garden a soft limit has no effect; one without a hard limit would bound nothing.
pub(crate) fn disk_limit(limits: &wire::DiskLimits) -> Result<engine::DiskLimit, Refusal> {
    let hard = |name: &str, soft: u64, hard: u64| match (soft, hard) {
        (1.., 0) => Err(format!("limits.disk_limits.{name}_soft: it bounds nothing without {name}_hard")),
        (_, hard) => Ok((hard > 0).then_some(hard)),
    };
    Ok(engine::DiskLimit {
        bytes: hard("byte", limits.byte_soft, limits.byte_hard)?,
        inodes: hard("inode", limits.inode_soft, limits.inode_hard)?,
        scope: match limits.scope {
            0 => engine::Scope::Total,
            1 => engine::Scope::Exclusive,
            scope => {
                return Err(format!(
                    "limits.disk_limits.scope: {scope} is neither 0 (with the image) nor 1 (what is written alone)"
                ));
            }
        },
    })
}

pub(crate) fn disk_limits(limit: &engine::DiskLimit) -> wire::DiskLimits {
    wire::DiskLimits {
        byte_hard: limit.bytes.unwrap_or_default(),
        inode_hard: limit.inodes.unwrap_or_default(),
        scope: u8::from(limit.scope == engine::Scope::Exclusive),
        ..wire::DiskLimits::default()
    }
}

fn shares(limits: &wire::CpuLimits) -> u64 {
    if limits.weight > 0 { limits.weight } else { limits.limit_in_shares }
}

fn bind_mounts(mounts: Vec<wire::BindMount>) -> Result<Vec<engine::BindMount>, Refusal> {
    mounts
        .into_iter()
        .map(|mount| {
            zero("bind_mounts.origin", &mount.origin)?;
            if mount.mode > 1 {
                return Err(format!("bind_mounts.mode: {} is neither 0 nor 1", mount.mode));
            }
            Ok(engine::BindMount {
                source: mount.src_path.into(),
                destination: mount.dst_path.into(),
                writable: mount.mode == 1,
                idmap: mount.idmap,
            })
        })
        .collect()
}

fn volume_mount(mount: wire::VolumeMount) -> engine::VolumeMount {
    engine::VolumeMount { name: mount.name, destination: mount.dst_path.into(), writable: !mount.read_only }
}

fn tmpfs(mount: wire::Tmpfs) -> engine::Tmpfs {
    let mode = mount.mode.unwrap_or(0o1777);
    engine::Tmpfs { destination: mount.dst_path.into(), bytes: mount.size, mode, exec: mount.exec }
}

/// Converts a named volume for a reply.
pub(crate) fn volume(engine: &engine::Engine, used: &engine::UsedVolume) -> wire::Volume {
    wire::Volume {
        name: used.volume.name.clone(),
        created_ms: used.volume.created_ms,
        path: engine.volume_path(&used.volume.name).display().to_string(),
        used_by: used.by.clone(),
    }
}

/// Returns the handles of a bulk request, which are joined by commas: each once, in the order of the reply.
/// Without a query there are none.
pub(crate) fn handles(query: &BTreeMap<String, String>) -> Result<Vec<String>, Refusal> {
    let joined = query.get("handles").map_or("", String::as_str);
    if joined.is_empty() {
        return Ok(Vec::new());
    }
    let once: BTreeSet<&str> = joined.split(',').collect();
    if once.len() > HANDLES {
        return Err(format!("handles: {} of them, of which {HANDLES} are allowed", once.len()));
    }
    Ok(once.into_iter().map(str::to_owned).collect())
}

type Properties = BTreeMap<String, String>;

fn no_info<'a>() -> wire::ContainerInfo<&'a Properties> {
    wire::ContainerInfo {
        state: String::new(),
        events: None,
        host_ip: String::new(),
        container_ip: String::new(),
        container_ipv6: String::new(),
        external_ip: String::new(),
        container_path: String::new(),
        process_ids: None,
        properties: None,
        mapped_ports: None,
        paused: false,
    }
}

pub(crate) fn port(mapping: &engine::Mapping) -> wire::PortMapping {
    wire::PortMapping {
        host_port: mapping.host.into(),
        container_port: mapping.container.into(),
        protocol: protocol(*mapping),
    }
}

pub(crate) fn address(address: Option<IpAddr>) -> String {
    address.map(|address| address.to_string()).unwrap_or_default()
}

pub(crate) fn info(info: &engine::Info) -> wire::ContainerInfo<&Properties> {
    let network = info.network.as_ref();
    wire::ContainerInfo {
        host_ip: network.map(engine::Network::host_ip).unwrap_or_default(),
        container_ip: address(network.and_then(engine::Network::ip)),
        container_ipv6: address(network.and_then(engine::Network::ipv6).map(IpAddr::from)),
        external_ip: address(network.and_then(engine::Network::external)),
        mapped_ports: Some(
            network.map(|network| network.mappings().iter().map(port).collect()).unwrap_or_default(),
        ),
        state: info.state.clone(),
        paused: info.paused,
        events: Some(info.events.clone()).filter(|events| !events.is_empty()),
        container_path: info.container_path.clone(),
        properties: Some(&info.properties),
        ..no_info()
    }
}

pub(crate) fn metrics(metrics: &engine::Metrics) -> wire::Metrics {
    let stats = &metrics.stats;
    let mut memory_stat = wire::MemoryStat {
        total_usage_toward_limit: stats.memory.towards_limit(),
        ..wire::MemoryStat::default()
    };
    stats.memory.values().for_each(|(name, value)| memory_stat.set(name, value));
    wire::Metrics {
        memory_stat,
        cpu_stat: wire::CPUStat { usage: stats.cpu.usage, user: stats.cpu.user, system: stats.cpu.system },
        disk_stat: wire::DiskStat {
            total_bytes_used: metrics.disk_image_bytes + metrics.disk_exclusive_bytes,
            exclusive_bytes_used: metrics.disk_exclusive_bytes,
            exclusive_inodes_used: metrics.disk_exclusive_inodes.unwrap_or_default(),
            ..wire::DiskStat::default()
        },
        network_stat: metrics.traffic.map(|(rx_bytes, tx_bytes)| wire::NetworkStat { rx_bytes, tx_bytes }),
        pid_stat: wire::PidStat { current: stats.pids, max: metrics.pids_max },
        age: i64::try_from(metrics.age.as_nanos()).unwrap_or(i64::MAX),
        cpu_entitlement: metrics.cpu_entitlement,
    }
}

/// Makes the error of a bulk reply, which has a text and no kind.
fn plain(error: &engine::Error) -> ErrorBody {
    ErrorBody::new(ErrorKind::Other, crate::error::to_wire(error).message)
}

pub(crate) fn bulk_info(result: &engine::Result<engine::Info>) -> wire::BulkInfo<&Properties> {
    match result {
        Ok(found) => wire::BulkInfo { info: info(found), err: None },
        Err(error) => wire::BulkInfo { info: no_info(), err: Some(plain(error)) },
    }
}

pub(crate) fn bulk_metrics(result: &engine::Result<engine::Metrics>) -> wire::BulkMetrics {
    match result {
        Ok(found) => wire::BulkMetrics { metrics: metrics(found), err: None },
        Err(error) => wire::BulkMetrics { err: Some(plain(error)), ..wire::BulkMetrics::default() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wardian_garden::decode;

    #[test]
    fn an_egress_rule_is_told_as_it_was_given() {
        for text in [
            r#"{"protocol":1,"networks":[{"start":"10.0.0.1","end":"10.0.0.9"}],"ports":[{"start":80,"end":81}],"log":true}"#,
            r#"{"protocol":3,"icmps":{"type":8,"code":0}}"#,
            r#"{"protocol":4}"#,
            "{}",
        ] {
            let rule: wire::NetOutRule = decode(text.as_bytes()).unwrap();
            assert_eq!(egress(&net_out(rule.clone()).unwrap()), rule, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_done_is_named() {
        for (body, says) in [
            (r#"{"grace_time":-5}"#, "grace_time: -5 is negative"),
            (
                r#"{"limits":{"disk_limits":{"byte_soft":9}}}"#,
                "limits.disk_limits.byte_soft: it bounds nothing without byte_hard",
            ),
            (
                r#"{"limits":{"disk_limits":{"inode_soft":9,"byte_hard":9}}}"#,
                "limits.disk_limits.inode_soft: it bounds nothing without inode_hard",
            ),
            (
                r#"{"limits":{"disk_limits":{"scope":2}}}"#,
                "limits.disk_limits.scope: 2 is neither 0 (with the image) nor 1 (what is written alone)",
            ),
            (
                r#"{"netin":[{"host_port":1,"protocol":"icmp"}]}"#,
                "netin.protocol: \"icmp\" is neither tcp nor udp",
            ),
            (r#"{"netout_rules":[{"protocol":9}]}"#, "invalid protocol: 9"),
            (
                r#"{"netout_rules":[{"networks":[{"start":"10.0.0.0/8"}]}]}"#,
                "netout_rules.networks: \"10.0.0.0/8\" is no IP address",
            ),
            (
                r#"{"limits":{"bandwidth_limits":{"burst":5}}}"#,
                "limits.bandwidth_limits: a burst of 5 bytes needs a rate",
            ),
            (r#"{"image":{"password":"secret"}}"#, "image.password: (hidden) needs image.username"),
            (r#"{"bind_mounts":[{"mode":7}]}"#, "bind_mounts.mode: 7 is neither 0 nor 1"),
            (r#"{"rootfs":"a","image":{"uri":"b"}}"#, "Cannot provide both Image.URI and RootFSPath"),
        ] {
            assert_eq!(container(decode(body.as_bytes()).unwrap()).unwrap_err(), says);
        }
        for (body, says) in [
            (r#"{"image":{"username":"u"}}"#, "image: without a uri its other fields have no meaning"),
            (
                r#"{"image":{"uri":"a","pull":"x"}}"#,
                "image.pull: \"x\": expected missing, newer, always or never",
            ),
            (
                r#"{"bind_mounts":[{}]}"#,
                "Running a process with bind mounts and no image provided is not allowed",
            ),
        ] {
            assert_eq!(process(decode(body.as_bytes()).unwrap()).unwrap_err(), says);
        }
        assert!(process(decode(br#"{"limits":{"cpu_limits":{"weight":1}}}"#).unwrap()).is_err());
    }

    #[test]
    fn errors_repeat_little_and_handles_are_taken_once() {
        let long = format!(r#"{{"image":{{"pull":"{}"}}}}"#, "x".repeat(100_000));
        assert!(container(decode(long.as_bytes()).unwrap()).unwrap_err().len() < 400);
        let long = format!(r#"{{"netout_rules":[{{"networks":[{{"end":"{}"}}]}}]}}"#, "1".repeat(100_000));
        assert!(container(decode(long.as_bytes()).unwrap()).unwrap_err().len() < 400);
        let of = |text: String| handles(&BTreeMap::from([("handles".to_owned(), text)]));
        assert_eq!(of("b,a,b,a,b".into()).unwrap(), ["a", "b"]);
        assert_eq!(of("same,".repeat(100_000)).unwrap(), ["", "same"]);
        assert_eq!(of(String::new()).unwrap(), Vec::<String>::new());
        let many: Vec<String> = (0..=HANDLES).map(|n| n.to_string()).collect();
        assert!(of(many.join(",")).is_err() && of(many[1..].join(",")).is_ok());
    }

    #[test]
    fn what_can_be_done_arrives() {
        let body = br#"{"rootfs":"a","limits":{"cpu_limits":{"limit_in_shares":5},"pid_limits":{"max":3},
            "disk_limits":{"scope":1}},"bind_mounts":[{"src_path":"/s","dst_path":"/d","mode":1}]}"#;
        let spec = container(decode(body).unwrap()).unwrap();
        assert_eq!((spec.image.as_str(), spec.limits.cpu_shares, spec.limits.pids), ("a", 5, 3));
        assert!(spec.bind_mounts[0].writable);
        let body = br#"{"path":"x","rlimits":{"nofile":5},"image":{"uri":"i"},"limits":{}}"#;
        let spec = process(decode(body).unwrap()).unwrap();
        assert_eq!(spec.rlimits, [("nofile".to_owned(), 5)]);
        assert_eq!((spec.image.as_deref(), spec.limits), (Some("i"), Some(engine::Limits::default())));
        let spec = process(decode(br#"{"limits":{}}"#).unwrap()).unwrap();
        assert_eq!((spec.limits, spec.tty), (None, None));
        let spec = process(decode(br#"{"tty":{"window_size":{"columns":100}}}"#).unwrap()).unwrap();
        assert_eq!(spec.tty, Some(engine::Window { columns: 100, rows: 0 }));
    }
}
