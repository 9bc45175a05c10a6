//! Present and future problems of this host, and their remedies. Each id is explained in docs/doctor.md.

use super::features::{Feature, State};
use super::filesystem::{LoopFile, ThinPool};
use super::{Facts, plural};
use crate::report::bytes;
use serde::Serialize;

/// Severity of a hazard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A remark.
    Note,
    /// Performance is bad, or data is lost once something else fails.
    Warning,
    /// Containers do not run here.
    Error,
}

/// A problem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hazard {
    /// Its stable name.
    pub id: &'static str,
    /// Its severity.
    pub severity: Severity,
    /// The observation.
    pub evidence: String,
    /// The remedy.
    pub remedy: String,
}

/// Free space below this, in percent, is low.
const LITTLE: u64 = 10;
/// Free space below this, in percent, counts as none.
const NONE: u64 = 1;
/// A pool that is fuller than this, in percent, is nearly full.
const POOL_FULL: u64 = 90;
/// A sync of this many seconds or more is long.
const LONG_SYNC: f64 = 5.0;
/// How many names of a long list are shown.
const SHOWN: usize = 3;

/// All hazards, the worst first.
pub fn find(facts: &Facts) -> Vec<Hazard> {
    let mut hazards = Vec::new();
    let mut add = |id, severity, evidence: String, remedy: &str| {
        hazards.push(Hazard { id, severity, evidence, remedy: remedy.to_owned() });
    };
    privileges(facts, &mut add);
    space(facts, &mut add);
    disks(facts, &mut add);
    writes(facts, &mut add);
    network(facts, &mut add);
    host(facts, &mut add);
    hazards.sort_by_key(|hazard| std::cmp::Reverse(hazard.severity));
    hazards
}

/// Adds a hazard: id, severity, evidence and remedy.
type Add<'a> = dyn FnMut(&'static str, Severity, String, &str) + 'a;

fn privileges(facts: &Facts, add: &mut Add<'_>) {
    if !facts.root {
        let what = "this was not run as root: what only root can try is not known".to_owned();
        add("not-probed", Severity::Warning, what, "run it as root");
    }
    for feature in facts.features.0.iter().filter(|feature| feature.needed && feature.state == State::No) {
        let what = format!("{}: {}", feature.name, feature.detail);
        add(
            "missing-feature",
            Severity::Error,
            what,
            "no container runs without it: use a kernel that has it",
        );
    }
    for missing in facts.missing_capabilities.iter().filter(|_| facts.root) {
        let severity = if missing.optional { Severity::Note } else { Severity::Error };
        let what = format!("{} is missing: {}", missing.name, missing.without);
        add("missing-capability", severity, what, "give it to whatever starts the server");
    }
    let missing = facts.cgroups.missing();
    if !missing.is_empty() {
        let what = format!("no cgroup controller for {}", missing.join(", "));
        let remedy = "mount it, or enable it in cgroup.subtree_control: limits on it are refused";
        add("missing-controller", Severity::Warning, what, remedy);
    }
}

fn space(facts: &Facts, add: &mut Add<'_>) {
    let fs = &facts.filesystem;
    if let Some(doubt) = &facts.store_doubt {
        add("open-store", Severity::Error, doubt.evidence.clone(), &doubt.remedy);
    }
    let at = fs.looked_at.display();
    if fs.read_only {
        let remedy = format!(
            "mount it writable, or give the store another place (--root): mount -o remount,rw {}",
            fs.mount_point.display()
        );
        add("read-only", Severity::Error, format!("the file system at {at} is read-only"), &remedy);
    }
    for (id, free, total, what) in [
        ("low-space", fs.available_bytes, fs.total_bytes, "bytes"),
        ("low-inodes", fs.available_inodes, fs.inodes, "inodes"),
    ] {
        let Some(percent) = (u128::from(free) * 100).checked_div(u128::from(total)) else { continue };
        let severity = match percent {
            p if p < u128::from(NONE) => Severity::Error,
            p if p < u128::from(LITTLE) => Severity::Warning,
            _ => continue,
        };
        let what = match id {
            "low-space" => format!("{} of {} are free ({percent} %)", bytes(free), bytes(total)),
            _ => format!("{free} of {total} {what} are free ({percent} %)"),
        };
        let remedy = "`wardian store usage` says what takes it, `wardian store gc` gives layers without a name back, and with --threshold unused images";
        add(id, severity, format!("{at}: {what}"), remedy);
    }
}

fn disks(facts: &Facts, add: &mut Add<'_>) {
    let fs = &facts.filesystem;
    if fs.discard {
        let slow = facts.dirty.disk.as_ref().filter(|disk| disk.delete_ms >= 10.0);
        let slow = slow.map(|disk| format!("; deleting {} took {:.0} ms", bytes(disk.bytes), disk.delete_ms));
        let what =
            format!("{} is mounted with `discard`{}", fs.mount_point.display(), slow.unwrap_or_default());
        let remedy = "deleting waits for the disk: mount with `nodiscard` (btrfs: `discard=async`) and run fstrim now and then (fstrim.timer)";
        add("discard", Severity::Warning, what, remedy);
    }
    if fs.journal == Some(false) {
        let what = format!("the {} on {} has no journal", fs.kind, fs.source.display());
        let remedy = "a power cut may cost the whole store, and asks for an fsck: tune2fs -O has_journal while unmounted";
        add("no-journal", Severity::Warning, what, remedy);
    }
    if let Some(file) = &fs.loop_file {
        loop_file(file, add);
    }
    let may_take = facts.remains.images_may_take;
    if may_take > fs.available_bytes {
        let what = format!(
            "containers whose disk limits are images may still write {}, and {} are free",
            bytes(may_take),
            bytes(fs.available_bytes)
        );
        let remedy = "once the file system is full their writes are lost: make room, lower the limits (`wardian limit`), or choose another driver";
        add("limits-overcommitted", Severity::Warning, what, remedy);
    }
    for pool in &fs.thin_pools {
        thin_pool(pool, fs.available_bytes, add);
    }
}

fn loop_file(file: &LoopFile, add: &mut Add<'_>) {
    let unwritten = file.size_bytes.saturating_sub(file.allocated_bytes);
    if unwritten > file.available_bytes {
        let what = format!(
            "{} has {} not written yet, and its file system {} free",
            file.path.display(),
            bytes(unwritten),
            bytes(file.available_bytes)
        );
        let remedy =
            "writes are lost when it is full: make room there, or reserve it (fallocate), or shrink the file";
        add("loop-overcommitted", Severity::Warning, what, remedy);
    }
}

fn thin_pool(pool: &ThinPool, fs_available: u64, add: &mut Add<'_>) {
    let name = &pool.name;
    let hang = if pool.errors_when_full { "fail" } else { "hang for a minute and then fail" };
    let remedy =
        format!("extend the pool (lvextend, or autoextend in lvm.conf): writes {hang} once it is full");
    if pool.mode != "rw" || pool.data_percent.max(pool.metadata_percent) >= POOL_FULL {
        let severity = if pool.mode == "rw" { Severity::Warning } else { Severity::Error };
        let what = format!(
            "thin pool {name}: {} % of data and {} % of metadata in use, {}",
            pool.data_percent, pool.metadata_percent, pool.mode
        );
        add("thin-pool-full", severity, what, &remedy);
    } else if fs_available > pool.free_bytes {
        let what = format!(
            "thin pool {name} has {} left, the file system believes in {}",
            bytes(pool.free_bytes),
            bytes(fs_available)
        );
        add("thin-pool-overcommitted", Severity::Warning, what, &remedy);
    }
}

fn writes(facts: &Facts, add: &mut Add<'_>) {
    let fs = &facts.filesystem;
    if facts.unseen_error {
        let what = format!("{} has lost a write, and nobody has asked since", fs.mount_point.display());
        let remedy = "look for the cause (dmesg); a running server has it reported by itself, otherwise `sync -f` there: until then no container is volatile";
        add("unseen-writeback-error", Severity::Warning, what, remedy);
    }
    if !facts.remains.lost_writes.is_empty() {
        let what = format!("a write was lost under {}", some(&facts.remains.lost_writes));
        add(
            "lost-writes",
            Severity::Warning,
            what,
            "every fsync in them fails: destroy them and create them again",
        );
    }
    if !facts.remains.markers.is_empty() {
        let names: Vec<String> = facts.remains.markers.iter().map(|dir| dir.display().to_string()).collect();
        let what = format!("writable layers of an earlier life: {}", some(&names));
        let remedy = "they may lack data and are never mounted again: `wardian store reap` deletes them, and so does the next server";
        add("volatile-markers", Severity::Warning, what, remedy);
    }
    let worst = facts.dirty.sync_worst_s.filter(|worst| *worst >= LONG_SYNC);
    let worst = worst.map(|worst| format!("a sync may take {worst:.0} s here"));
    let syncing = &facts.overlays;
    if syncing.count() > 0 {
        let whose: Vec<String> = syncing.syncing.iter().map(|(owner, n)| format!("{n} of {owner}")).collect();
        let mut what = format!(
            "{} that sync on {}: {}",
            plural(syncing.count(), "overlay"),
            fs.mount_point.display(),
            whose.join(", ")
        );
        if let Some(worst) = &worst {
            what += &format!("; {worst}");
        }
        let remedy = "each unmount of one writes back everything that is dirty there: give the store a file system of its own, or those overlays `volatile`";
        add("syncing-overlays", Severity::Warning, what, remedy);
    }
    if let Some(worst) = worst {
        let what = format!("{worst}: up to {} may be dirty", bytes(facts.dirty.threshold_bytes));
        let remedy = "no container of wardian waits for that, but whatever syncs does: a smaller vm.dirty_bytes bounds it";
        add("long-sync", Severity::Note, what, remedy);
    }
}

fn network(facts: &Facts, add: &mut Add<'_>) {
    let network = &facts.network;
    for name in ["network_links", "firewall"] {
        let is_missing = |feature: &&Feature| feature.name == name && feature.state == State::No;
        let Some(feature) = facts.features.0.iter().find(is_missing) else { continue };
        let what = format!("{}: {}", name.replace('_', " "), feature.detail);
        let remedy = "install the package nftables, or use a kernel that has what is missing; until then servers start with --network none, and containers have loopback alone";
        add("no-network", Severity::Warning, what, remedy);
    }
    if network.forwarding == Some(false) {
        let (severity, what) = if network.in_use {
            (
                Severity::Warning,
                "net.ipv4.ip_forward is 0: something has turned it off after the server's start",
            )
        } else {
            (Severity::Note, "net.ipv4.ip_forward is 0: a server with a network sets it to 1")
        };
        let remedy = "containers reach nothing outside the host without it: sysctl -w net.ipv4.ip_forward=1, and a line in /etc/sysctl.d";
        add("no-forwarding", severity, what.to_owned(), remedy);
    }
    for drop in &network.drops {
        let what = format!("{} drops forwarded packets unless a rule of its own accepts them", drop.chain);
        let remedy = format!("if it has no such rule for containers yet: {}", drop.remedy);
        add("foreign-firewall", Severity::Warning, what, &remedy);
    }
    for collision in &network.collisions {
        let at = collision.link.as_ref().map(|link| format!(" ({link})")).unwrap_or_default();
        let (there, pool) = (&collision.network, &network.pool);
        let (severity, what, remedy) = if collision.is_inside {
            (
                Severity::Warning,
                format!("{there}{at} is within the pool {pool} of containers: they get no address of it"),
                "give containers a pool of their own (--network-pool)",
            )
        } else {
            (
                Severity::Note,
                format!(
                    "the pool {pool} of containers is within {there}{at}: hosts there with the addresses of containers cannot be reached from here"
                ),
                "if there are such hosts, give containers a pool of their own (--network-pool)",
            )
        };
        add("address-collision", severity, what, remedy);
    }
    if network.filters_bridges {
        let what = "br_netfilter is on: frames between containers of one subnet pass the host's rules for forwarded packets".to_owned();
        let remedy = "Kubernetes and Docker turn it on; where rules of the host drop forwarded packets they have to accept these as well, or sysctl -w net.bridge.bridge-nf-call-iptables=0";
        add("bridge-filter", Severity::Note, what, remedy);
    }
    if let Some(why) = &network.no_name_server {
        let remedy = "name servers for containers: wardian serve --dns-server IP; they may ask those wherever they are";
        add("no-name-server", Severity::Note, why.clone(), remedy);
    }
    for unknown in &network.unknown {
        let remedy = "the host's network could be looked at in part only: run it as root";
        add("network-unknown", Severity::Note, unknown.clone(), remedy);
    }
}

fn host(facts: &Facts, add: &mut Add<'_>) {
    if facts.run_filesystem != "tmpfs" {
        let what = format!("/run is on {}", facts.run_filesystem);
        add(
            "run-on-disk",
            Severity::Note,
            what,
            "mount a tmpfs there; a server mounts one at /run/wardian meanwhile",
        );
    }
    for limit in facts.limits.iter().filter(|limit| limit.is_small()) {
        let what = format!("{} is {}; a thousand containers want {}", limit.name, limit.value, limit.wanted);
        let remedy = match limit.name {
            "RLIMIT_NOFILE" => {
                format!("when it is reached {}: LimitNOFILE= of the unit, or ulimit -n", limit.reached)
            }
            name => format!("when it is reached {}: sysctl {name}={}", limit.reached, limit.wanted),
        };
        add("small-limit", Severity::Note, what, &remedy);
    }
    for doubt in &facts.certificates {
        let remedy = "have a new one signed, with the name or address that clients dial in its subjectAltName, and restart the server";
        add("certificate", Severity::Warning, doubt.clone(), remedy);
    }
    if facts.leaks > 0 {
        let what = format!("{} belong to no container", plural(facts.leaks, "thing"));
        add("leaks", Severity::Warning, what, "`wardian doctor --leaks` lists them");
    }
}

/// The first few of many names.
fn some(names: &[String]) -> String {
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len() {
        n if n > SHOWN => format!("{shown} and {} more", n - SHOWN),
        _ => shown,
    }
}
