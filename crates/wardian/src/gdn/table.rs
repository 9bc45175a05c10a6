//! Every flag of `gdn server`, and what becomes of it here. The table in docs/garden.md is made from this one.

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// Nothing on the command line; in the file true, false or nothing.
    Nothing,
    /// One value; the last one counts.
    Value,
    /// A value; the flag may be given more than once.
    Values,
}

/// What becomes of a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is this flag of `wardian serve`, with the same values.
    Same(&'static str),
    /// It becomes this flag of `wardian serve`, with other words: see `convert`.
    Becomes(&'static str),
    /// It says what is so here anyway.
    Always,
    /// It has no meaning here, which is told.
    Nothing,
    /// It is refused, but for values that ask for nothing: none, `0`, `false`.
    Refused,
    /// It is refused unless it has one of these values, which say what is so here anyway.
    Unless(&'static [&'static str]),
}

/// A flag.
#[derive(Debug)]
pub struct Flag {
    /// Its name, without dashes.
    pub name: &'static str,
    /// What it takes.
    pub takes: Takes,
    /// What becomes of it.
    pub fate: Fate,
    /// Why, and what to do.
    pub why: &'static str,
}

const fn switch(name: &'static str, fate: Fate, why: &'static str) -> Flag {
    Flag { name, takes: Takes::Nothing, fate, why }
}

const fn value(name: &'static str, fate: Fate, why: &'static str) -> Flag {
    Flag { name, takes: Takes::Value, fate, why }
}

const fn values(name: &'static str, fate: Fate, why: &'static str) -> Flag {
    Flag { name, takes: Takes::Values, fate, why }
}

const NO_PROGRAM: &str = "nothing of this program is run: its work is done in wardian and its keeper";
const KEPT: &str = "what it would keep is in the records of the containers, in the run directory";
const SYSCTL: &str = "containers have the kernel's values: no sysctl is set in them";
const METRON: &str = "no metrics are sent: they are asked for, by `bulk_metrics` and `--debug-listen`";
const IDS: &str = "allowed is the mapping of all ids, which is wardian's: start 1, and as length none, 0 or all the others. \
                   For ranges of ids of each container's own there is `--id-ranges` (WARDIAN_ID_RANGES)";
const QUOTA: &str = "CPU quotas are not here: leave it out if shares alone will do";

/// The flags of Guardian since 2017, those of the image graph that is gone included.
pub static FLAGS: &[Flag] = &[
    // Log
    value(
        "log-level",
        Fate::Becomes("log-level"),
        "`error` is `warn`, whose lines are written as errors; `fatal` is `off`",
    ),
    value(
        "time-format",
        Fate::Unless(&["rfc3339", "unix-epoch"]),
        "times are always in the format of RFC 3339, which is told for `unix-epoch`",
    ),
    // Server
    value(
        "bind-ip",
        Fate::Becomes("listen"),
        "`tcp:IP:PORT`, which is refused without `--tls-…` or `--insecure-listen` (WARDIAN_INSECURE_LISTEN): whoever reaches it is root",
    ),
    value("bind-port", Fate::Becomes("listen"), "with `--bind-ip`"),
    value(
        "bind-socket",
        Fate::Becomes("listen"),
        "`unix:PATH`; default as in Guardian `/tmp/garden.sock`. Its mode is 0660, Guardian's 0777: `--socket-mode` (WARDIAN_SOCKET_MODE)",
    ),
    value(
        "debug-bind-ip",
        Fate::Becomes("debug-listen"),
        "`tcp:IP:PORT`, with the same condition as `--bind-ip`",
    ),
    value("debug-bind-port", Fate::Becomes("debug-listen"), "with `--debug-bind-ip`; default 17013"),
    value("tag", Fate::Nothing, "servers on one host are told apart by their run directories"),
    switch("skip-setup", Fate::Nothing, "there is nothing to set up: the server makes what it needs"),
    switch("rootless", Fate::Refused, "wardian runs as root"),
    // Containers
    value(
        "depot",
        Fate::Nothing,
        "the state of containers is in the run directory, a tmpfs: `--run` (WARDIAN_RUN)",
    ),
    value("properties-path", Fate::Nothing, KEPT),
    value("console-sockets-path", Fate::Nothing, "terminals need no sockets"),
    switch("cleanup-process-dirs-on-wait", Fate::Nothing, "processes have no directories"),
    switch("disable-privileged-containers", Fate::Same("disable-privileged-containers"), ""),
    value("uid-map-start", Fate::Unless(&["1"]), IDS),
    value("uid-map-length", Fate::Unless(&["0"]), IDS),
    value("gid-map-start", Fate::Unless(&["1"]), IDS),
    value("gid-map-length", Fate::Unless(&["0"]), IDS),
    value(
        "default-rootfs",
        Fate::Same("default-rootfs"),
        "a tar, an OCI layout, `docker://…` and more: [store.md](store.md)",
    ),
    value("default-grace-time", Fate::Becomes("default-grace-time"), "times as Go writes them"),
    switch("destroy-containers-on-startup", Fate::Same("destroy-containers-on-startup"), ""),
    value(
        "apparmor",
        Fate::Unless(&["unconfined"]),
        "AppArmor profiles are not applied; what confines containers instead is in security.md. Leave it out if that will do (garden-runc-release: `garden.apparmor_profile: \"\"`)",
    ),
    values(
        "device-cgroup-rule",
        Fate::Refused,
        "device rules cannot be changed: leave it out if those of garden.md will do",
    ),
    // Programs
    value("assets-dir", Fate::Nothing, NO_PROGRAM),
    value("dadoo-bin", Fate::Nothing, NO_PROGRAM),
    value("nstar-bin", Fate::Nothing, NO_PROGRAM),
    value("tar-bin", Fate::Nothing, NO_PROGRAM),
    value("iptables-bin", Fate::Nothing, NO_PROGRAM),
    value("iptables-restore-bin", Fate::Nothing, NO_PROGRAM),
    value("init-bin", Fate::Nothing, NO_PROGRAM),
    value("newuidmap-bin", Fate::Nothing, NO_PROGRAM),
    value("newgidmap-bin", Fate::Nothing, NO_PROGRAM),
    // Runtime
    value(
        "runtime-plugin",
        Fate::Becomes(""),
        "a program named `runc`: not needed. Any other is refused, for it may be there to isolate better: leave it out if wardian's isolation will do",
    ),
    values("runtime-plugin-extra-arg", Fate::Nothing, NO_PROGRAM),
    value("containerd-socket", Fate::Nothing, "containerd is not needed"),
    switch("use-containerd-for-processes", Fate::Nothing, "containerd is not needed"),
    // Images
    switch("no-image-plugin", Fate::Nothing, "the server opens images itself"),
    value(
        "image-plugin",
        Fate::Becomes(""),
        "a program named `grootfs`: the server does its work. Any other is refused: leave it out if images of wardian's kinds will do",
    ),
    values(
        "image-plugin-extra-arg",
        Fate::Becomes("root"),
        "the flags `--store` and `--config` of grootfs; of its file `store`, `create.insecure_registries`, `create.remote_layer_client_certificates_path`, `create.layer_hosts` and `clean.threshold_bytes` with `create.with_clean` become `--root`, `--insecure-registry`, `--layer-certificates`, `--layer-hosts` and `--gc-threshold`; WARDIAN_ROOT in the environment beats `store`. A `create.disk_limit_size_bytes` is refused",
    ),
    value("privileged-image-plugin", Fate::Becomes(""), "as `--image-plugin`"),
    values(
        "privileged-image-plugin-extra-arg",
        Fate::Nothing,
        "there is one store for all containers, that of `--image-plugin-extra-arg`",
    ),
    value(
        "docker-registry",
        Fate::Unless(&[
            "registry-1.docker.io",
            "https://registry-1.docker.io",
            "https://registry-1.docker.io/",
        ]),
        "mirrors of registries are in /etc/containers/registries.conf (images.md)",
    ),
    values("insecure-docker-registry", Fate::Same("insecure-registry"), ""),
    value(
        "graph",
        Fate::Becomes("root"),
        "the store, if no `--image-plugin-extra-arg` names it; WARDIAN_ROOT beats it",
    ),
    value("graph-cleanup-threshold-in-megabytes", Fate::Becomes("gc-threshold"), "in bytes; -1: none"),
    values(
        "persistent-image",
        Fate::Nothing,
        "images that have a name in the store stay: `wardian image pull`",
    ),
    // Network
    value(
        "network-pool",
        Fate::Same("network-pool"),
        "with a network plugin without a meaning, as in Guardian",
    ),
    switch("allow-host-access", Fate::Same("allow-host-access"), "likewise"),
    values(
        "deny-network",
        Fate::Same("deny-network"),
        "likewise: what containers reach is then up to the plugin",
    ),
    values("allow-network", Fate::Same("allow-network"), "likewise"),
    value("mtu", Fate::Same("mtu"), "likewise; 0 is the default"),
    values("dns-server", Fate::Same("dns-server"), ""),
    values("additional-dns-server", Fate::Same("additional-dns-server"), ""),
    values("additional-host-entry", Fate::Same("additional-host-entry"), ""),
    value("external-ip", Fate::Same("external-ip"), ""),
    value("port-pool-start", Fate::Same("port-pool-start"), ""),
    value("port-pool-size", Fate::Same("port-pool-size"), ""),
    value("port-pool-properties-path", Fate::Nothing, KEPT),
    value("network-plugin", Fate::Same("network-plugin"), "[network-plugins.md](network-plugins.md)"),
    values("network-plugin-extra-arg", Fate::Same("network-plugin-extra-arg"), ""),
    switch("enable-container-network-metrics", Fate::Always, "bytes are always counted"),
    // Limits
    value("cpu-quota-per-share", Fate::Refused, QUOTA),
    value(
        "tcp-memory-limit",
        Fate::Refused,
        "memory of TCP has no limit of its own: leave it out if the memory limit of the container will do",
    ),
    value(
        "default-container-blockio-weight",
        Fate::Refused,
        "block IO weights are not here: leave it out if all may do the same",
    ),
    value("max-containers", Fate::Same("max-containers"), ""),
    switch(
        "disable-swap-limit",
        Fate::Nothing,
        "a memory limit always bounds memory and swap together, where the kernel counts swap",
    ),
    switch(
        "enable-cpu-throttling",
        Fate::Refused,
        "CPU throttling is not here: leave it out if shares alone will do",
    ),
    value("cpu-throttling-check-interval", Fate::Nothing, "of `--enable-cpu-throttling`"),
    // Metrics
    value("metrics-emission-interval", Fate::Nothing, METRON),
    value("dropsonde-origin", Fate::Nothing, METRON),
    value("dropsonde-destination", Fate::Nothing, METRON),
    value("cpu-entitlement-per-share", Fate::Becomes("cpu-entitlement-per-share"), "0 is the default"),
    // Sysctls of containers
    value("tcp-keepalive-time", Fate::Nothing, SYSCTL),
    value("tcp-keepalive-interval", Fate::Nothing, SYSCTL),
    value("tcp-keepalive-probes", Fate::Nothing, SYSCTL),
    value("tcp-retries1", Fate::Nothing, SYSCTL),
    value("tcp-retries2", Fate::Nothing, SYSCTL),
];

/// Flags of `gdn setup` alone.
pub static OF_SETUP: &[Flag] = &[
    value("rootless-uid", Fate::Refused, "wardian runs as root"),
    value("rootless-gid", Fate::Refused, "wardian runs as root"),
    switch("reset-iptables-rules", Fate::Nothing, "the server makes its firewall anew when it starts"),
];

/// Returns the flag of a name.
pub fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().chain(OF_SETUP).find(|flag| flag.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Returns the table of the documentation.
    fn table() -> String {
        let ours = |flag: &Flag| match flag.fate {
            Fate::Same(ours) | Fate::Becomes(ours) if !ours.is_empty() => format!("`--{ours}`"),
            Fate::Always => "always so".to_owned(),
            Fate::Same(_) | Fate::Becomes(_) | Fate::Nothing => "no meaning".to_owned(),
            Fate::Refused => "**refused**, but for none, `0` and `false`".to_owned(),
            Fate::Unless(values) => {
                let values: Vec<_> = values.iter().map(|value| format!("`{value}`")).collect();
                format!("**refused**, but for {}", values.join(", "))
            }
        };
        let rows =
            FLAGS.iter().map(|flag| format!("| `--{}` | {} | {} |\n", flag.name, ours(flag), flag.why));
        format!("| `gdn server` | `wardian serve` | |\n|---|---|---|\n{}", rows.collect::<String>())
    }

    #[test]
    fn the_documentation_has_every_flag() {
        let page = include_str!("../../../../docs/garden.md");
        let (_, rest) = page.split_once("<!-- gdn -->\n").unwrap();
        let (found, _) = rest.split_once("<!-- /gdn -->").unwrap();
        let table = table();
        assert!(found == table, "docs/garden.md should have this table:\n{table}");
    }

    #[test]
    fn names_are_unique() {
        let all: Vec<_> = FLAGS.iter().chain(OF_SETUP).map(|flag| flag.name).collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    }
}
