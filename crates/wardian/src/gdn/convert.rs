//! What the flags of Guardian are as flags of `wardian serve`.

use super::flags::Given;
use super::table::{self, FLAGS, Fate, Flag, OF_SETUP, Takes};
use crate::grootfs::{self, Plugin};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The program that runs containers for Guardian, whose work is done here.
const RUNTIME: &str = "runc";
/// Where Guardian listens, and the port of its debug server, if it is told nothing else.
const SOCKET: &str = "/tmp/garden.sock";
const DEBUG_PORT: &str = "17013";

/// The host, as far as the settings depend on it.
pub struct Host<'a> {
    /// The highest user id, to which Guardian maps root, and the highest group id.
    pub last_ids: [u32; 2],
    /// Whether a variable of the environment is set and not empty.
    pub is_set: &'a dyn Fn(&str) -> bool,
}

/// Something that is not taken.
#[derive(Debug, PartialEq, Eq)]
pub struct Note {
    /// The flag, without dashes.
    pub flag: String,
    /// Why it is not taken, or what to do.
    pub why: String,
}

/// What became of the flags.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Converted {
    /// Flags of `wardian serve` with their values, `true` for switches.
    pub settings: Vec<(&'static str, Vec<String>)>,
    /// Files that were read, and that nobody but root may have written.
    pub files: Vec<PathBuf>,
    /// What has no meaning here.
    pub ignored: Vec<Note>,
    /// What must not be ignored.
    pub refused: Vec<Note>,
}

impl Converted {
    fn set(&mut self, ours: &'static str, value: impl Into<String>) {
        match self.settings.iter_mut().find(|(name, _)| *name == ours) {
            Some((_, values)) => values.push(value.into()),
            None => self.settings.push((ours, vec![value.into()])),
        }
    }

    fn ignore(&mut self, flag: &str, why: impl Into<String>) {
        self.ignored.push(Note { flag: flag.to_owned(), why: why.into() });
    }

    fn refuse(&mut self, flag: &str, value: &str, why: impl Into<String>) {
        let flag = if value == "true" { flag.to_owned() } else { format!("{flag} {value}") };
        self.refused.push(Note { flag, why: why.into() });
    }

    /// Returns the flags as a command line has them.
    pub fn words(&self) -> Vec<String> {
        let words = |(name, values): &(&str, Vec<String>)| {
            values.iter().map(|value| format!("--{name}={value}")).collect::<Vec<_>>()
        };
        self.settings.iter().flat_map(words).collect()
    }
}

/// Converts the flags of `gdn server`.
pub fn server(given: &Given, host: &Host<'_>) -> Converted {
    let mut done = Converted::default();
    for flag in OF_SETUP {
        if given.text(flag.name).is_some() {
            done.refuse(flag.name, "", "it is a flag of `gdn setup`");
        }
    }
    for flag in FLAGS {
        plain(&mut done, flag, given);
    }
    listen(&mut done, given, host);
    ids(&mut done, given, host);
    programs(&mut done, given);
    images(&mut done, given, host);
    rest(&mut done, given);
    let pluggable = ["network-pool", "allow-host-access", "deny-network", "allow-network", "mtu"];
    if given.text("network-plugin").is_some() {
        for name in pluggable {
            let count = done.settings.len();
            done.settings.retain(|(ours, _)| *ours != name);
            if done.settings.len() < count {
                done.ignore(name, "with a network plugin, what containers reach and how is up to the plugin, in Guardian too");
            }
        }
    }
    done
}

/// What `gdn setup` must not ignore, and what has no meaning there either.
pub fn setup(given: &Given) -> Converted {
    let mut done = Converted::default();
    for flag in FLAGS.iter().chain(OF_SETUP) {
        match flag.fate {
            Fate::Refused => plain(&mut done, flag, given),
            // The server is told the same flags, and heeds them.
            _ if given.text(flag.name).is_some() && OF_SETUP.iter().any(|of| of.name == flag.name) => {
                done.ignore(flag.name, flag.why);
            }
            _ => {}
        }
    }
    done
}

/// Converts a flag whose value stays as it is, or does not count.
fn plain(done: &mut Converted, flag: &Flag, given: &Given) {
    let values = given.list(flag.name);
    let values: Vec<_> = match flag.takes {
        Takes::Nothing => values.into_iter().filter(|value| *value == "true").collect(),
        Takes::Value => values.into_iter().last().into_iter().collect(),
        Takes::Values => values,
    };
    for value in &values {
        match flag.fate {
            Fate::Same("mtu") if *value == "0" => {}
            Fate::Same(ours) => {
                // These lists are separated by commas, in the environment and on the command line.
                if flag.takes == Takes::Values && ours != "network-plugin-extra-arg" && value.contains(',') {
                    done.refuse(flag.name, value, "a value with a comma cannot be given");
                } else {
                    done.set(ours, *value);
                }
            }
            Fate::Refused if !matches!(*value, "0" | "false") => done.refuse(flag.name, value, flag.why),
            Fate::Unless(usual) if !usual.contains(value) && !is_of_ids(flag.name) => {
                done.refuse(flag.name, value, flag.why);
            }
            Fate::Unless(_) if (flag.name, *value) == ("time-format", "unix-epoch") => {
                done.ignore(flag.name, flag.why);
            }
            Fate::Refused | Fate::Unless(_) | Fate::Always | Fate::Becomes(_) | Fate::Nothing => {}
        }
    }
    if flag.fate == Fate::Nothing && !values.is_empty() {
        done.ignore(flag.name, flag.why);
    }
}

fn is_of_ids(name: &str) -> bool {
    name.starts_with("uid-map-") || name.starts_with("gid-map-")
}

/// Addresses.
fn listen(done: &mut Converted, given: &Given, host: &Host<'_>) {
    let tcp = |ip: &str, port: &str| {
        let is_bare_v6 = ip.contains(':') && !ip.starts_with('[');
        if is_bare_v6 { format!("tcp:[{ip}]:{port}") } else { format!("tcp:{ip}:{port}") }
    };
    match (given.text("bind-ip"), given.text("bind-socket")) {
        (Some(ip), _) => done.set("listen", tcp(ip, given.text("bind-port").unwrap_or("0"))),
        (None, Some(path)) => done.set("listen", format!("unix:{path}")),
        (None, None) if !["WARDIAN_LISTEN", "LISTEN_FDS", "SOCKET2ME_FD"].into_iter().any(host.is_set) => {
            done.set("listen", format!("unix:{SOCKET}"));
        }
        (None, None) => {}
    }
    for (ip, port) in [("bind-ip", "bind-port"), ("debug-bind-ip", "debug-bind-port")] {
        if given.text(ip).is_none() && given.text(port).is_some() {
            done.ignore(port, format!("without --{ip} there is no port"));
        }
    }
    if given.text("bind-ip").is_some() && given.text("bind-socket").is_some() {
        done.ignore("bind-socket", "--bind-ip is given, and wins in Guardian too");
    }
    if let Some(ip) = given.text("debug-bind-ip") {
        done.set("debug-listen", tcp(ip, given.text("debug-bind-port").unwrap_or(DEBUG_PORT)));
    }
}

/// The mapping of ids, which is Guardian's with or without these flags, or refused.
fn ids(done: &mut Converted, given: &Given, host: &Host<'_>) {
    for (kind, last) in ["uid", "gid"].into_iter().zip(host.last_ids) {
        for (end, usual) in [("start", 1), ("length", last.saturating_sub(1))] {
            let name = format!("{kind}-map-{end}");
            let (Some(value), Some(flag)) = (given.text(&name), table::find(&name)) else { continue };
            let is_usual = |number: u32| number == usual || (end == "length" && number == 0);
            if !value.parse().is_ok_and(is_usual) {
                done.refuse(flag.name, value, flag.why);
            }
        }
    }
}

/// Programs whose work is done here.
fn programs(done: &mut Converted, given: &Given) {
    for (name, program) in [
        ("runtime-plugin", RUNTIME),
        ("image-plugin", grootfs::NAME),
        ("privileged-image-plugin", grootfs::NAME),
    ] {
        let (Some(value), Some(flag)) = (given.text(name), table::find(name)) else { continue };
        if Path::new(value).file_name().is_some_and(|found| found == program) {
            done.ignore(name, format!("{program} is not run: the server does its work"));
        } else {
            done.refuse(name, value, flag.why);
        }
    }
}

/// The store, and what the image plugin is told.
fn images(done: &mut Converted, given: &Given, host: &Host<'_>) {
    const ARGS: &str = "image-plugin-extra-arg";
    let args = given.list(ARGS);
    let mut root = given.text("graph").map(|dir| ("graph", dir.to_owned()));
    if !args.is_empty() {
        match Plugin::of(&args) {
            Err(why) => done.refuse(ARGS, &args.join(" "), why),
            Ok(plugin) => {
                done.files.extend(plugin.config);
                root = plugin.store.map(|store| (ARGS, store)).or(root);
                for (ours, values) in [
                    ("insecure-registry", plugin.insecure_registries),
                    ("layer-hosts", plugin.layer_hosts),
                    ("layer-certificates", plugin.certificates.into_iter().collect()),
                ] {
                    values.into_iter().for_each(|value| done.set(ours, value));
                }
                if let Some(bytes) = plugin.threshold {
                    done.set("gc-threshold", bytes.to_string());
                }
                if let Some(bytes) = plugin.disk_limit {
                    done.refuse(
                        ARGS,
                        &format!("create.disk_limit_size_bytes: {bytes}"),
                        "disk limits are those of each create",
                    );
                }
            }
        }
    }
    match root {
        Some((flag, dir)) if (host.is_set)("WARDIAN_ROOT") => {
            done.ignore(flag, format!("WARDIAN_ROOT names the store, so it is not {dir}"));
        }
        Some((flag, dir)) if grootfs::has_store(Path::new(&dir)) => done.refuse(
            flag,
            &dir,
            "it is a store of GrootFS, which is never touched: name another directory, new or empty, by WARDIAN_ROOT",
        ),
        Some((_, dir)) => done.set("root", dir),
        None => {}
    }
    let threshold = "graph-cleanup-threshold-in-megabytes";
    if let Some(value) = given.text(threshold) {
        match value.parse::<i64>() {
            Ok(megabytes) if megabytes >= 0 => {
                done.settings.retain(|(name, _)| *name != "gc-threshold");
                done.set("gc-threshold", (i128::from(megabytes) << 20).to_string());
            }
            Ok(_) => {}
            Err(_) => done.refuse(threshold, value, "it is no number"),
        }
    }
}

/// Values that are written in another way.
fn rest(done: &mut Converted, given: &Given) {
    match given.text("log-level") {
        Some("fatal") => done.set("log-level", "off"),
        // A warning is written as an error.
        Some("error") => done.set("log-level", "warn"),
        Some(level @ ("debug" | "info")) => done.set("log-level", level),
        Some(other) => done.refuse("log-level", other, "it is debug, info, error or fatal"),
        None => {}
    }
    if let Some(text) = given.text("default-grace-time") {
        match go_duration(text) {
            Some(time) => done.set("default-grace-time", humantime::format_duration(time).to_string()),
            None => done.refuse("default-grace-time", text, "it is no time such as 5m or 1h30m"),
        }
    }
    if let Some(percent) = given.text("cpu-entitlement-per-share")
        && percent.parse() != Ok(0.0)
    {
        done.set("cpu-entitlement-per-share", percent);
    }
}

/// Go's time.ParseDuration, of times that are not negative: `0`, `1.5h`, `1h30m`.
fn go_duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, u64); 8] = [
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000),
        ("μs", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut total: u64 = 0;
    loop {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && part.is_empty() {
            return None;
        }
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        let mut time = whole.checked_mul(*unit)?;
        let mut share = *unit;
        for digit in part.chars() {
            share /= 10;
            time = time.checked_add(share * u64::from(digit.to_digit(10)?))?;
        }
        total = total.checked_add(time).filter(|total| i64::try_from(*total).is_ok())?;
        if next.is_empty() {
            break;
        }
        rest = next;
    }
    Some(Duration::from_nanos(total))
}

#[cfg(test)]
mod tests {
    use super::super::flags;
    use super::*;

    const LAST: u32 = 4_294_967_294;

    fn with(args: &[&str], is_set: &dyn Fn(&str) -> bool) -> Converted {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        server(&flags::parse(&args).unwrap().given, &Host { last_ids: [LAST; 2], is_set })
    }

    fn of(args: &[&str]) -> Converted {
        with(args, &|_| false)
    }

    /// The flags of ours, without the address that is always there.
    fn words(args: &[&str]) -> Vec<String> {
        let done = of(args);
        assert!(done.refused.is_empty() && done.ignored.is_empty(), "{args:?}: {done:?}");
        done.words().into_iter().filter(|word| word != "--listen=unix:/tmp/garden.sock").collect()
    }

    fn refused(args: &[&str]) -> String {
        let done = of(args);
        let texts = done.refused.iter().map(|note| format!("{}: {}", note.flag, note.why));
        texts.collect::<Vec<_>>().join("; ")
    }

    fn ignored(args: &[&str]) -> Vec<String> {
        let done = of(args);
        assert!(done.refused.is_empty(), "{args:?}: {done:?}");
        done.ignored.into_iter().map(|note| note.flag).collect()
    }

    #[test]
    fn what_is_the_same() {
        for (given, ours) in [
            (&["--max-containers=250"][..], &["--max-containers=250"][..]),
            (
                &["--deny-network=0.0.0.0/0", "--deny-network=::/0"],
                &["--deny-network=0.0.0.0/0", "--deny-network=::/0"],
            ),
            (&["--allow-host-access"], &["--allow-host-access=true"]),
            (&["--mtu=1400"], &["--mtu=1400"]),
            (&["--mtu=0"], &[]),
            (
                &["--dns-server=1.1.1.1", "--dns-server=8.8.8.8"],
                &["--dns-server=1.1.1.1", "--dns-server=8.8.8.8"],
            ),
            (&["--additional-host-entry=1.2.3.4 a b"], &["--additional-host-entry=1.2.3.4 a b"]),
            (&["--insecure-docker-registry=r:5000"], &["--insecure-registry=r:5000"]),
            (
                &["--network-plugin=/p", "--network-plugin-extra-arg=--a=b,c"],
                &["--network-plugin=/p", "--network-plugin-extra-arg=--a=b,c"],
            ),
            (&["--default-rootfs", "/b.tar"], &["--default-rootfs=/b.tar"]),
            (&["--default-rootfs="], &[]),
            (&["--log-level=fatal"], &["--log-level=off"]),
            (&["--log-level=error"], &["--log-level=warn"]),
            (&["--default-grace-time=1h30m"], &["--default-grace-time=1h 30m"]),
            (&["--cpu-entitlement-per-share=0.000000"], &[]),
            (&["--cpu-entitlement-per-share=0.5"], &["--cpu-entitlement-per-share=0.5"]),
            (
                &["--graph=/g", "--graph-cleanup-threshold-in-megabytes=10"],
                &["--root=/g", "--gc-threshold=10485760"],
            ),
            (&["--graph-cleanup-threshold-in-megabytes=-1"], &[]),
            (&["--uid-map-start=1", "--uid-map-length=4294967293", "--gid-map-length=0"], &[]),
            (&["--enable-container-network-metrics", "--apparmor=unconfined", "--time-format=rfc3339"], &[]),
            (
                &["--cpu-quota-per-share=0", "--tcp-memory-limit=0", "--default-container-blockio-weight=0"],
                &[],
            ),
        ] {
            assert_eq!(words(given), ours, "{given:?}");
        }
    }

    #[test]
    fn addresses() {
        for (given, ours) in [
            (&[][..], "--listen=unix:/tmp/garden.sock"),
            (&["--bind-socket=/g.sock"], "--listen=unix:/g.sock"),
            (&["--bind-ip=0.0.0.0", "--bind-port=7777"], "--listen=tcp:0.0.0.0:7777"),
            (&["--bind-ip=::1", "--bind-port=7777"], "--listen=tcp:[::1]:7777"),
        ] {
            assert_eq!(of(given).words(), [ours], "{given:?}");
        }
        assert_eq!(words(&["--debug-bind-ip=127.0.0.1"]), ["--debug-listen=tcp:127.0.0.1:17013"]);
        assert_eq!(ignored(&["--bind-port=7777"]), ["bind-port"]);
        assert_eq!(ignored(&["--bind-ip=::1", "--bind-socket=/s"]), ["bind-socket"]);
        // Whoever hands over a socket, or names one in the environment, has no other.
        for variable in ["WARDIAN_LISTEN", "SOCKET2ME_FD", "LISTEN_FDS"] {
            assert!(with(&[], &|name| name == variable).words().is_empty());
            assert_eq!(with(&["--bind-socket=/s"], &|name| name == variable).words(), ["--listen=unix:/s"]);
        }
    }

    #[test]
    fn what_must_not_be_ignored_is_refused() {
        for (given, says) in [
            ("--apparmor=garden-default", "apparmor garden-default: AppArmor"),
            ("--cpu-quota-per-share=100", "cpu-quota-per-share 100: CPU quotas"),
            ("--tcp-memory-limit=1", "tcp-memory-limit 1: "),
            ("--default-container-blockio-weight=500", "default-container-blockio-weight 500: "),
            ("--enable-cpu-throttling", "enable-cpu-throttling: "),
            ("--device-cgroup-rule=c 1:3 rwm", "device-cgroup-rule c 1:3 rwm: "),
            ("--uid-map-start=65536", "uid-map-start 65536: "),
            ("--gid-map-length=1000", "gid-map-length 1000: "),
            ("--uid-map-length=x", "uid-map-length x: "),
            ("--runtime-plugin=/usr/bin/runsc", "runtime-plugin /usr/bin/runsc: "),
            ("--image-plugin=/bin/fake", "image-plugin /bin/fake: "),
            ("--privileged-image-plugin=/bin/fake", "privileged-image-plugin /bin/fake: "),
            ("--image-plugin-extra-arg=--bogus", "image-plugin-extra-arg --bogus: "),
            ("--docker-registry=mirror", "docker-registry mirror: "),
            ("--log-level=warn", "log-level warn: "),
            ("--time-format=iso", "time-format iso: "),
            ("--default-grace-time=5", "default-grace-time 5: "),
            ("--graph-cleanup-threshold-in-megabytes=x", "graph-cleanup-threshold-in-megabytes x: "),
            ("--dns-server=1.1.1.1,2.2.2.2", "dns-server 1.1.1.1,2.2.2.2: a value with a comma"),
            ("--rootless", "rootless: "),
            ("--rootless-uid=1", "rootless-uid : it is a flag of `gdn setup`"),
        ] {
            let text = refused(&[given]);
            assert!(text.starts_with(says), "{given}: {text}");
        }
        // All of them are told at once.
        assert_eq!(of(&["--apparmor=a", "--tcp-memory-limit=1"]).refused.len(), 2);
        // A list: one value of it is enough.
        assert_eq!(of(&["--device-cgroup-rule=a", "--device-cgroup-rule=b"]).refused.len(), 2);
    }

    #[test]
    fn what_has_no_meaning_is_told() {
        for flag in FLAGS.iter().filter(|flag| flag.fate == Fate::Nothing) {
            let given = if flag.takes == Takes::Nothing {
                format!("--{}", flag.name)
            } else {
                format!("--{}=/x", flag.name)
            };
            assert_eq!(ignored(&[&given]), [flag.name]);
        }
        assert_eq!(ignored(&["--time-format=unix-epoch"]), ["time-format"]);
        assert_eq!(
            ignored(&["--runtime-plugin=runc", "--image-plugin=/p/grootfs"]),
            ["runtime-plugin", "image-plugin"]
        );
        // With a plugin Guardian has no firewall of its own.
        let plugged =
            ["--network-plugin=/p", "--deny-network=0.0.0.0/0", "--mtu=1400", "--network-pool=10.0.0.0/8"];
        assert_eq!(of(&plugged).words(), ["--network-plugin=/p", "--listen=unix:/tmp/garden.sock"]);
        assert_eq!(ignored(&plugged), ["network-pool", "deny-network", "mtu"]);
    }

    #[test]
    fn the_image_plugins_store_is_the_servers() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("groot.yml");
        let yaml = "store: /data/store\ncreate:\n  with_clean: true\n  insecure_registries: [\"a:1\", \"\"]\n  \
            layer_hosts: [b:2]\n  remote_layer_client_certificates_path: /certs\nclean:\n  threshold_bytes: 7\n";
        std::fs::write(&config, yaml).unwrap();
        let args = [
            "--image-plugin-extra-arg=--config".to_owned(),
            format!("--image-plugin-extra-arg={}", config.display()),
        ];
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        assert_eq!(
            words(&args),
            [
                "--insecure-registry=a:1",
                "--layer-hosts=b:2",
                "--layer-certificates=/certs",
                "--gc-threshold=7",
                "--root=/data/store"
            ]
        );
        let elsewhere = with(&args, &|name| name == "WARDIAN_ROOT");
        assert!(!elsewhere.words().iter().any(|word| word.starts_with("--root")));
        assert!(elsewhere.ignored[0].why.starts_with("WARDIAN_ROOT"));
        let text = refused(&["--image-plugin-extra-arg=--config", "--image-plugin-extra-arg=/no/such"]);
        assert!(text.contains("invalid config path"), "{text}");
        std::fs::write(&config, "create: {disk_limit_size_bytes: 5}").unwrap();
        assert!(refused(&args).contains("disk_limit_size_bytes: 5"));
        for name in ["volumes", "images", "meta"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let store = format!("--image-plugin-extra-arg=--store={}", dir.path().display());
        assert!(refused(&[&store]).contains("is a store of GrootFS"));
        assert_eq!(words(&["--image-plugin-extra-arg=--log-level=debug"]), Vec::<String>::new());
    }

    #[test]
    fn setup_has_nothing_to_do() {
        let of = |args: &[&str]| {
            let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
            setup(&flags::parse(&args).unwrap().given)
        };
        assert_eq!(of(&["--tag=x", "--deny-network=0.0.0.0/0"]), Converted::default());
        assert_eq!(of(&["--reset-iptables-rules"]).ignored.len(), 1);
        assert_eq!(of(&["--enable-cpu-throttling"]).refused.len(), 1);
        assert_eq!(of(&["--rootless-uid=5"]).refused.len(), 1);
    }

    #[test]
    fn times_are_gos() {
        for (text, ms) in [
            ("0", 0),
            ("0s", 0),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("1.5h", 5_400_000),
            (".5s", 500),
            ("1.s", 1_000),
            ("+3s", 3_000),
            ("2m0.25s", 120_250),
        ] {
            assert_eq!(go_duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(go_duration("3us7ns"), Some(Duration::from_nanos(3007)));
        for bad in ["", "5", "-5s", "s", ".s", "1d", "5m3", "1.2.3s", "9999999999999h", "1 s"] {
            assert_eq!(go_duration(bad), None, "{bad}");
        }
    }
}
