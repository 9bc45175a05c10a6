//! `wardian serve`: settings from flags, environment and a file, then the server.

use crate::{log, systemd};
use anyhow::{Context, Result, ensure};
use clap::Args as ClapArgs;
use serde::Deserialize;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use wardian_engine::{Config, Engine, IdRanges};
use wardian_lab::signals::Asking;
use wardian_server::{Debug, ListenAddr, Listener, Options, SetLevel, SocketOptions, Tls};
use wardian_store::{Fetching, Host, Limits};

pub const ROOT: &str = "/var/lib/wardian";
pub const RUN: &str = "/run/wardian";
const SOCKET_MODE: u32 = 0o660;
/// Where a package puts the keeper.
const KEEPER: &str = "/usr/lib/wardian/wardian-keeper";

/// Bytes of the largest settings file that is read.
const MOST_SETTINGS: u64 = 1 << 20;

/// Creates in the queue: some kilobytes each.
const QUEUED_CREATES: usize = 1000;
/// A small scale-up's worth of one image.
const READY_ROOTFS: usize = 8;
const READ_HEADER_TIMEOUT: Duration = Duration::from_secs(30);
const TRANSFER_PATIENCE: Duration = Duration::from_secs(60);
/// As docker has it: what programs that share memory expect, and not half of the host.
const SHM_SIZE: u64 = 64 << 20;
/// Three for each process that somebody listens to.
const CONNECTIONS: usize = 8192;
/// Bytes that a connection takes while its request arrives. All together may have an eighth of the server's memory.
const CONNECTION_MEMORY: u64 = 16 << 10;

/// Settings. A flag beats the environment, which beats the file, which beats the default.
#[derive(Debug, Default, ClapArgs)]
pub struct Args {
    /// Where to listen: unix:/PATH or tcp:IP:PORT; may be given more than once, and replaces the default
    /// [default: unix:<run>/garden.sock]
    #[arg(long, value_name = "ADDR", env = "WARDIAN_LISTEN", value_delimiter = ',')]
    listen: Vec<String>,
    /// The store: images, layers, root file systems [default: /var/lib/wardian]
    #[arg(long, value_name = "DIR", env = "WARDIAN_ROOT")]
    root: Option<PathBuf>,
    /// Live state [default: /run/wardian]
    #[arg(long, value_name = "DIR", env = "WARDIAN_RUN")]
    run: Option<PathBuf>,
    /// Image of containers that name none
    #[arg(long, value_name = "IMAGE", env = "WARDIAN_DEFAULT_ROOTFS")]
    default_rootfs: Option<String>,
    /// Mode of unix sockets, octal [default: 0660]
    #[arg(long, value_name = "MODE", env = "WARDIAN_SOCKET_MODE", value_parser = octal)]
    socket_mode: Option<u32>,
    /// Allow TCP addresses without TLS: whoever reaches them, every local user and every program here included, is root on
    /// this host
    #[arg(long, env = "WARDIAN_INSECURE_LISTEN", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    insecure_listen: Option<bool>,
    /// TLS on all TCP addresses: the server's certificate in PEM, with the intermediate ones up to its CA; wants --tls-key and
    /// --tls-client-ca as well
    #[arg(long, value_name = "FILE", env = "WARDIAN_TLS_CERT")]
    tls_cert: Option<PathBuf>,
    /// The key of the server's certificate, in PEM; nobody but root, and perhaps a group, may read the file
    #[arg(long, value_name = "FILE", env = "WARDIAN_TLS_KEY")]
    tls_key: Option<PathBuf>,
    /// Certificates in PEM of the CAs whose clients are let in; who shows no certificate that one of them has issued is not
    #[arg(long, value_name = "FILE", env = "WARDIAN_TLS_CLIENT_CA")]
    tls_client_ca: Option<PathBuf>,
    /// A name of this host: requests through TCP may name it, IP addresses, localhost and Garden's `api`, and no other host;
    /// may be given more than once
    #[arg(long, value_name = "NAME", env = "WARDIAN_HOST_NAME", value_delimiter = ',', value_parser = host_name)]
    host_name: Vec<String>,
    /// Most containers at a time; 0: no bound [default: 0]
    #[arg(long, value_name = "N", env = "WARDIAN_MAX_CONTAINERS")]
    max_containers: Option<u64>,
    /// Creates at work at a time, 0: four for each processor, from 8 to 128; others wait for their turn [default: 0]
    #[arg(long, value_name = "N", env = "WARDIAN_MAX_CONCURRENT_CREATES")]
    max_concurrent_creates: Option<usize>,
    /// Creates that wait for their turn, for at most a minute; more are refused [default: 1000]
    #[arg(long, value_name = "N", env = "WARDIAN_MAX_QUEUED_CREATES")]
    max_queued_creates: Option<usize>,
    /// Connections at a time; for one more, the one that has been idle longest is closed. Root has 16 more on unix sockets
    /// [default: 8192, and at most a quarter of the limit of open files]
    #[arg(long, value_name = "N", env = "WARDIAN_MAX_CONNECTIONS")]
    max_connections: Option<usize>,
    /// Close a connection whose request's head does not arrive in this time; 0: never [default: 30s]
    #[arg(long, value_name = "TIME", env = "WARDIAN_READ_HEADER_TIMEOUT", value_parser = duration)]
    read_header_timeout: Option<Duration>,
    /// Abort a stream-in or stream-out that makes no progress for so long, because of the client or of the container; 0: never
    /// [default: 60s]
    #[arg(long, value_name = "TIME", env = "WARDIAN_TRANSFER_PATIENCE", value_parser = duration)]
    transfer_patience: Option<Duration>,
    /// Refuse to make privileged containers, whose root is the host's
    #[arg(long, env = "WARDIAN_DISABLE_PRIVILEGED_CONTAINERS", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    disable_privileged_containers: Option<bool>,
    /// Where the debug server listens, unix:/PATH or tcp:IP:PORT: /debug/vars and /log-level, for whoever reaches it
    /// [default: nowhere]
    #[arg(long, value_name = "ADDR", env = "WARDIAN_DEBUG_LISTEN")]
    debug_listen: Option<String>,
    /// Collect garbage when the store's layers take more bytes than this [default: only when told to]
    #[arg(long, value_name = "BYTES", env = "WARDIAN_GC_THRESHOLD", value_parser = crate::store::size)]
    gc_threshold: Option<u64>,
    /// Certificates for servers that layers are fetched from: *.crt are trusted besides the system's, a *.cert with the *.key of
    /// the same name is shown to servers that ask for one [default: none]
    #[arg(long, value_name = "DIR", env = "WARDIAN_LAYER_CERTIFICATES")]
    layer_certificates: Option<PathBuf>,
    /// Give up on a server that sends fewer than 64 KiB of a layer in this time; it is tried five times, from where it
    /// stopped [default: 30s]
    #[arg(long, value_name = "TIME", env = "WARDIAN_LAYER_PATIENCE", value_parser = duration)]
    layer_patience: Option<Duration>,
    /// Refuse a layer whose files are larger, or whose blob is [default: 64G]
    #[arg(long, value_name = "BYTES", env = "WARDIAN_MAX_LAYER_BYTES", value_parser = crate::store::size)]
    max_layer_bytes: Option<u64>,
    /// Refuse an image whose layers' files are larger together [default: 128G, or --max-layer-bytes if that is more]
    #[arg(long, value_name = "BYTES", env = "WARDIAN_MAX_IMAGE_BYTES", value_parser = crate::store::size)]
    max_image_bytes: Option<u64>,
    /// Refuse an image whose layers have more files, directories and links together [default: 8388608]
    #[arg(long, value_name = "N", env = "WARDIAN_MAX_IMAGE_ENTRIES")]
    max_image_entries: Option<u64>,
    /// Refuse an image if its tar streams are longer than 256 MiB plus so many times its size as stored; 0: no limit
    /// [default: 200]
    #[arg(long, value_name = "N", env = "WARDIAN_MAX_IMAGE_RATIO")]
    max_image_ratio: Option<u64>,
    /// Servers that an image may name for its layers (its manifest's urls), and that those may redirect to: HOST or HOST:PORT,
    /// exactly; without a port, 80 and 443. What a client names itself, as for an app, needs none of them [default: none]
    #[arg(long, value_name = "HOST[:PORT]", env = "WARDIAN_LAYER_HOSTS", value_delimiter = ',')]
    layer_hosts: Vec<Host>,
    /// Root file systems mounted ahead for each image that creates have asked for lately, at most 32; 0: none [default: 8]
    #[arg(long, value_name = "N", env = "WARDIAN_READY_ROOTFS", value_parser = ready)]
    ready_rootfs: Option<usize>,
    /// Give each unprivileged container its own range of SIZE host uids and gids, allocated from START [default: all containers
    /// share Garden's mapping]
    #[arg(long, value_name = "START:SIZE", env = "WARDIAN_ID_RANGES", value_parser = str::parse::<IdRanges>)]
    id_ranges: Option<IdRanges>,
    /// Pids limit of containers created without one, and of peas with limits of their own; 0: none [default: 0]
    #[arg(long, value_name = "N", env = "WARDIAN_DEFAULT_PIDS_LIMIT")]
    default_pids_limit: Option<u64>,
    /// Set no_new_privs on every process: set-uid programs gain nothing
    #[arg(long, env = "WARDIAN_NO_NEW_PRIVILEGES", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    no_new_privileges: Option<bool>,
    /// Destroy containers that came without a grace time when nobody has called them for so long: 90s, 5m, 1h30m; 0: never
    /// [default: 0]
    #[arg(long, value_name = "TIME", env = "WARDIAN_DEFAULT_GRACE_TIME", value_parser = duration)]
    default_grace_time: Option<Duration>,
    /// Size of /dev/shm in containers without a memory limit; with one, the size is 15/16 of that. 0: half of the host's memory
    /// in every container [default: 64M]
    #[arg(long, value_name = "BYTES", env = "WARDIAN_SHM_SIZE", value_parser = crate::store::size)]
    shm_size: Option<u64>,
    /// Percent of a processor that one CPU share entitles to, in metrics [default: all processors over all memory in MiB]
    #[arg(long, value_name = "PERCENT", env = "WARDIAN_CPU_ENTITLEMENT_PER_SHARE", value_parser = percent)]
    cpu_entitlement_per_share: Option<f64>,
    /// Destroy the containers that an earlier server has left, before serving anybody
    #[arg(long, env = "WARDIAN_DESTROY_CONTAINERS_ON_STARTUP", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    destroy_containers_on_startup: Option<bool>,
    /// The keeper program [default: wardian-keeper beside this program, else in /usr/lib/wardian]
    #[arg(long, value_name = "PATH", env = "WARDIAN_KEEPER")]
    keeper: Option<PathBuf>,
    /// How the log on standard error looks [default: auto]
    #[arg(long, value_name = "FORMAT", env = "WARDIAN_LOG_FORMAT", value_enum)]
    log_format: Option<log::Format>,
    /// A TOML file with these settings, named as the flags are
    #[arg(long, value_name = "FILE", env = "WARDIAN_CONFIG")]
    config: Option<PathBuf>,
}

/// The settings file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct File {
    listen: Vec<String>,
    root: Option<PathBuf>,
    run: Option<PathBuf>,
    default_rootfs: Option<String>,
    socket_mode: Option<String>,
    insecure_listen: Option<bool>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    tls_client_ca: Option<PathBuf>,
    host_name: Vec<String>,
    max_containers: Option<u64>,
    gc_threshold: Option<u64>,
    layer_certificates: Option<PathBuf>,
    layer_patience: Option<String>,
    max_layer_bytes: Option<u64>,
    max_image_bytes: Option<u64>,
    max_image_entries: Option<u64>,
    max_image_ratio: Option<u64>,
    layer_hosts: Vec<String>,
    ready_rootfs: Option<usize>,
    id_ranges: Option<String>,
    default_pids_limit: Option<u64>,
    no_new_privileges: Option<bool>,
    max_concurrent_creates: Option<usize>,
    max_queued_creates: Option<usize>,
    max_connections: Option<usize>,
    read_header_timeout: Option<String>,
    transfer_patience: Option<String>,
    disable_privileged_containers: Option<bool>,
    debug_listen: Option<String>,
    default_grace_time: Option<String>,
    shm_size: Option<u64>,
    cpu_entitlement_per_share: Option<f64>,
    destroy_containers_on_startup: Option<bool>,
    log_format: Option<log::Format>,
    keeper: Option<PathBuf>,
}

/// What the server starts with.
#[derive(Debug, PartialEq)]
struct Settings {
    listen: Vec<String>,
    root: PathBuf,
    run: PathBuf,
    default_rootfs: Option<String>,
    socket_mode: u32,
    insecure_listen: bool,
    tls: Option<TlsFiles>,
    host_names: Vec<String>,
    max_containers: u64,
    gc_threshold: Option<u64>,
    fetching: Fetching,
    limits: Limits,
    ready_rootfs: usize,
    id_ranges: Option<IdRanges>,
    default_pids_limit: u64,
    no_new_privileges: bool,
    max_concurrent_creates: usize,
    max_queued_creates: usize,
    max_connections: usize,
    read_header_timeout: Duration,
    transfer_patience: Duration,
    disable_privileged_containers: bool,
    debug_listen: Option<String>,
    default_grace_time: Duration,
    shm_size: u64,
    cpu_entitlement_per_share: f64,
    destroy_containers_on_startup: bool,
    log_format: log::Format,
    keeper: Option<PathBuf>,
}

/// Files for TLS.
#[derive(Debug, PartialEq)]
struct TlsFiles {
    certificate: PathBuf,
    key: PathBuf,
    client_authorities: PathBuf,
}

impl TlsFiles {
    /// All or none.
    fn of(files: [Option<PathBuf>; 3]) -> Result<Option<Self>> {
        match files {
            [None, None, None] => Ok(None),
            [Some(certificate), Some(key), Some(client_authorities)] => {
                Ok(Some(Self { certificate, key, client_authorities }))
            }
            _ => anyhow::bail!(
                "tls-cert, tls-key and tls-client-ca belong together: without any one of them nobody knows who the clients are"
            ),
        }
    }
}

fn octal(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    match u32::from_str_radix(digits, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err(format!("{text:?} is not an octal file mode")),
    }
}

/// Connections, unless told otherwise: each has two descriptors, and containers need some too.
fn connections() -> usize {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let quarter = files.map_or(usize::MAX, |files| usize::try_from(files / 4).unwrap_or(usize::MAX));
    let memory = wardian_sys::memory::of_this_process() / 8 / CONNECTION_MEMORY;
    CONNECTIONS.min(quarter).min(usize::try_from(memory).unwrap_or(usize::MAX)).max(1)
}

/// `90s`, `1h30m`, `0`.
fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a time such as 90s, 5m or 1h30m");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (mut total, mut number, mut units) = (Duration::ZERO, String::new(), 0);
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c.is_ascii_digit() || c == '.' {
            number.push(c);
            continue;
        }
        let seconds = match c {
            'h' => 3600.0,
            'm' if rest.next_if_eq(&'s').is_some() => 1e-3,
            'm' => 60.0,
            's' => 1.0,
            _ => return Err(bad()),
        };
        let value: f64 = std::mem::take(&mut number).parse().map_err(|_| bad())?;
        let part = Duration::try_from_secs_f64(value * seconds).map_err(|_| bad())?;
        total = total.checked_add(part).ok_or_else(bad)?;
        units += 1;
    }
    if units > 0 && number.is_empty() { Ok(total) } else { Err(bad()) }
}

/// A name that a request can name this host by: no URL, no port, no wildcard.
fn host_name(text: &str) -> Result<String, String> {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if text.split('.').all(|label| !label.is_empty() && label.chars().all(known)) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is not a host name without port or wildcard, such as cell-1.example.com"))
    }
}

fn percent(text: &str) -> Result<f64, String> {
    checked_percent(text.parse().map_err(|_| format!("{text:?} is not a number"))?)
}

fn checked_percent(value: f64) -> Result<f64, String> {
    if value.is_finite() && value >= 0.0 {
        Ok(value)
    } else {
        Err(format!("cpu-entitlement-per-share: {value} is not a percentage"))
    }
}

fn ready(text: &str) -> Result<usize, String> {
    checked_ready(text.parse().map_err(|_| format!("{text:?} is not a number"))?)
}

fn checked_ready(value: usize) -> Result<usize, String> {
    let most = wardian_engine::MOST_READY_ROOTFS;
    if value <= most { Ok(value) } else { Err(format!("ready-rootfs: {value} is more than {most}")) }
}

impl Args {
    fn merge(self, file: File) -> Result<Settings> {
        let file_mode = file.socket_mode.map(|mode| octal(&mode)).transpose();
        let file_mode = file_mode.map_err(|e| anyhow::anyhow!("socket-mode: {e}"))?;
        let time = |name: &str, text: Option<String>| -> Result<Option<Duration>> {
            text.map(|text| duration(&text).map_err(|e| anyhow::anyhow!("{name}: {e}"))).transpose()
        };
        let file_grace = time("default-grace-time", file.default_grace_time)?;
        let file_patience = time("layer-patience", file.layer_patience)?;
        let patience = self.layer_patience.or(file_patience).unwrap_or(Fetching::default().patience);
        ensure!(!patience.is_zero(), "layer-patience must be more than 0");
        let file_hosts: Result<Vec<Host>, _> = file.layer_hosts.iter().map(|host| host.parse()).collect();
        let file_hosts = file_hosts.context("layer-hosts")?;
        let file_names: Result<Vec<_>, _> = file.host_name.iter().map(|name| host_name(name)).collect();
        let file_names = file_names.map_err(|error| anyhow::anyhow!("host-name: {error}"))?;
        let file_head = time("read-header-timeout", file.read_header_timeout)?;
        let file_transfer = time("transfer-patience", file.transfer_patience)?;
        let file_ready = file.ready_rootfs.map(checked_ready).transpose().map_err(anyhow::Error::msg)?;
        let file_ranges = file.id_ranges.map(|text| text.parse()).transpose().map_err(anyhow::Error::msg)?;
        let insecure_listen = self.insecure_listen.or(file.insecure_listen).unwrap_or(false);
        let tls = TlsFiles::of([
            self.tls_cert.or(file.tls_cert),
            self.tls_key.or(file.tls_key),
            self.tls_client_ca.or(file.tls_client_ca),
        ])?;
        ensure!(
            tls.is_none() || !insecure_listen,
            "insecure-listen and tls-cert: with TLS no TCP address is open to clients without a certificate; give one of the two"
        );
        let run = self.run.or(file.run).unwrap_or_else(|| RUN.into());
        Ok(Settings {
            listen: if self.listen.is_empty() { file.listen } else { self.listen },
            root: self.root.or(file.root).unwrap_or_else(|| ROOT.into()),
            run,
            default_rootfs: self.default_rootfs.or(file.default_rootfs),
            socket_mode: self.socket_mode.or(file_mode).unwrap_or(SOCKET_MODE),
            insecure_listen,
            tls,
            host_names: if self.host_name.is_empty() { file_names } else { self.host_name },
            max_containers: self.max_containers.or(file.max_containers).unwrap_or(0),
            gc_threshold: self.gc_threshold.or(file.gc_threshold),
            fetching: Fetching {
                certificates: self.layer_certificates.or(file.layer_certificates),
                patience,
                layer_hosts: if self.layer_hosts.is_empty() { file_hosts } else { self.layer_hosts },
                ..Fetching::default()
            },
            limits: crate::store::limits([
                self.max_layer_bytes.or(file.max_layer_bytes),
                self.max_image_bytes.or(file.max_image_bytes),
                self.max_image_entries.or(file.max_image_entries),
                self.max_image_ratio.or(file.max_image_ratio),
            ]),
            ready_rootfs: self.ready_rootfs.or(file_ready).unwrap_or(READY_ROOTFS),
            id_ranges: self.id_ranges.or(file_ranges),
            default_pids_limit: self.default_pids_limit.or(file.default_pids_limit).unwrap_or(0),
            no_new_privileges: self.no_new_privileges.or(file.no_new_privileges).unwrap_or(false),
            max_concurrent_creates: self.max_concurrent_creates.or(file.max_concurrent_creates).unwrap_or(0),
            max_queued_creates: self.max_queued_creates.or(file.max_queued_creates).unwrap_or(QUEUED_CREATES),
            max_connections: self.max_connections.or(file.max_connections).unwrap_or_else(connections),
            read_header_timeout: self.read_header_timeout.or(file_head).unwrap_or(READ_HEADER_TIMEOUT),
            transfer_patience: self.transfer_patience.or(file_transfer).unwrap_or(TRANSFER_PATIENCE),
            disable_privileged_containers: self
                .disable_privileged_containers
                .or(file.disable_privileged_containers)
                .unwrap_or(false),
            debug_listen: self.debug_listen.or(file.debug_listen),
            default_grace_time: self.default_grace_time.or(file_grace).unwrap_or_default(),
            shm_size: self.shm_size.or(file.shm_size).unwrap_or(SHM_SIZE),
            cpu_entitlement_per_share: self
                .cpu_entitlement_per_share
                .or(file
                    .cpu_entitlement_per_share
                    .map(checked_percent)
                    .transpose()
                    .map_err(anyhow::Error::msg)?)
                .unwrap_or(0.0),
            destroy_containers_on_startup: self
                .destroy_containers_on_startup
                .or(file.destroy_containers_on_startup)
                .unwrap_or(false),
            log_format: self.log_format.or(file.log_format).unwrap_or_default(),
            keeper: self.keeper.or(file.keeper),
        })
    }
}

impl Settings {
    /// Addresses to listen on: sockets that were handed to us stand for the default one.
    fn addresses(&self, inherited: bool) -> Vec<String> {
        match self.listen.as_slice() {
            [] if !inherited => vec![format!("unix:{}", self.run.join("garden.sock").display())],
            given => given.to_vec(),
        }
    }
}

fn read_file(path: &Path) -> Result<File> {
    // They name the program that root runs as keeper, among others: nobody else may have written them.
    let text = wardian_sys::directory::read(path, MOST_SETTINGS)
        .with_context(|| format!("read the settings in {}", path.display()))?;
    let text = String::from_utf8(text).with_context(|| format!("settings in {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("settings in {}", path.display()))
}

/// The keeper beside this program, or where a package puts it.
fn find_keeper() -> Result<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|me| Some(me.parent()?.join("wardian-keeper")));
    let found = beside.into_iter().chain([PathBuf::from(KEEPER)]).find(|path| path.is_file());
    found.with_context(|| {
        format!("no wardian-keeper beside this program nor at {KEEPER}; name it with --keeper")
    })
}

/// Serve until SIGTERM or SIGINT.
pub fn run(args: Args) -> Result<ExitCode> {
    // Records hold environments: what is made without a mode of its own is for nobody else.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let file = args.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
    let settings = args.merge(file)?;
    ensure!(
        rustix::process::geteuid().is_root(),
        "serve must run as root, which makes the containers: try sudo"
    );
    let keeper = match &settings.keeper {
        Some(keeper) => {
            // It runs as root. One that is found beside this program could be changed by who could change this one.
            wardian_sys::directory::check_file(keeper).context("--keeper")?;
            keeper.clone()
        }
        None => find_keeper()?,
    };
    wardian_sys::failpoint::check()?;
    let inherited = systemd::listeners()?;
    let filter = log::start(settings.log_format)?;
    wardian_sys::heap::set_up();
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    runtime.block_on(serve(settings, keeper, inherited, filter))?;
    // Blocking work that is stuck in the kernel must not keep the server from ending.
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

async fn serve(
    settings: Settings,
    keeper: PathBuf,
    inherited: Vec<OwnedFd>,
    filter: log::Filter,
) -> Result<()> {
    let mut interrupt = Asking::catch(SignalKind::interrupt()).context("catch SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("catch SIGTERM")?;
    let absolute =
        |path: &Path| std::path::absolute(path).with_context(|| format!("find {}", path.display()));
    let addresses = settings.addresses(!inherited.is_empty());
    let mut all = addresses.iter().chain(&settings.debug_listen);
    ensure!(
        settings.tls.is_none() || !inherited.is_empty() || all.any(|address| address.starts_with("tcp:")),
        "--tls-cert: no address is a TCP address, so that nobody would be shown it; name one with --listen tcp:HOST:PORT"
    );
    let certificate = settings.tls.as_ref().map(|tls| absolute(&tls.certificate)).transpose()?;
    let tls = settings.tls.map(|TlsFiles { certificate, key, client_authorities }| {
        Tls::load(&certificate, &key, &client_authorities)
    });
    let tls = tls.transpose().context("TLS")?;
    let options = SocketOptions {
        mode: settings.socket_mode,
        insecure_listen: settings.insecure_listen,
        tls,
        host_names: settings.host_names,
        ..SocketOptions::default()
    };
    // Before anything is started.
    for address in addresses.iter().chain(&settings.debug_listen) {
        let checked = address.parse().and_then(|parsed| Listener::check(&parsed, &options));
        checked.with_context(|| format!("listen on {address}"))?;
    }
    let config = Config {
        root: absolute(&settings.root)?,
        run: absolute(&settings.run)?,
        default_rootfs: settings.default_rootfs,
        keeper,
        certificate,
        max_containers: settings.max_containers,
        gc_threshold: settings.gc_threshold,
        remote: settings.fetching,
        limits: settings.limits,
        ready_rootfs: settings.ready_rootfs,
        id_ranges: settings.id_ranges,
        default_pids: settings.default_pids_limit,
        no_new_privileges: settings.no_new_privileges,
        cpu_entitlement_per_share: settings.cpu_entitlement_per_share,
        destroy_on_start: settings.destroy_containers_on_startup,
        default_grace_time: settings.default_grace_time,
        shm_bytes: settings.shm_size,
        max_concurrent_creates: settings.max_concurrent_creates,
        max_queued_creates: settings.max_queued_creates,
        disable_privileged: settings.disable_privileged_containers,
    };
    let engine = Engine::start(config).await.context("start the engine")?;
    let bound = async {
        let listeners = bind(&addresses, inherited, &options).await?;
        let debug = bind(settings.debug_listen.as_slice(), Vec::new(), &options).await?.pop();
        let debug = debug.map(|listener| Debug { listener, set_level: set_level(filter) });
        anyhow::Ok((listeners, debug))
    };
    let (listeners, debug) = match bound.await {
        Ok(bound) => bound,
        Err(error) => {
            // What was made ahead must not stay.
            engine.shutdown().await;
            return Err(error);
        }
    };
    let head_timeout = Some(settings.read_header_timeout).filter(|time| !time.is_zero());
    let transfer_patience = Some(settings.transfer_patience).filter(|time| !time.is_zero());
    let max_connections = settings.max_connections;
    let server = Options { max_connections, head_timeout, transfer_patience, debug };
    let stop = async {
        let name = tokio::select! {
            () = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
        };
        tracing::info!(signal = name, "serve.draining");
        systemd::stopping();
    };
    systemd::ready();
    let served = wardian_server::serve(engine.clone(), listeners, server, stop).await;
    engine.shutdown().await;
    served.context("serve")
}

async fn bind(
    addresses: &[String],
    inherited: Vec<OwnedFd>,
    options: &SocketOptions,
) -> Result<Vec<Listener>> {
    let mut listeners = Vec::new();
    for socket in inherited {
        let listener = Listener::inherited(socket, options)?;
        let address = listener.address().map_or_else(|_| "?".to_owned(), |address| address.to_string());
        tracing::info!(%address, inherited = true, "serve.listening");
        listeners.push(listener);
    }
    for address in addresses {
        let parsed: ListenAddr = address.parse().with_context(|| format!("listen on {address}"))?;
        let bound = Listener::bind(&parsed, options).await;
        listeners.push(bound.with_context(|| format!("listen on {address}"))?);
        tracing::info!(%address, "serve.listening");
    }
    Ok(listeners)
}

/// From the debug server.
fn set_level(filter: log::Filter) -> SetLevel {
    Box::new(move |level| filter.reload(EnvFilter::new(level)).map_err(|error| error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> File {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn defaults() {
        let settings = Args::default().merge(File::default()).unwrap();
        assert_eq!(settings.addresses(false), ["unix:/run/wardian/garden.sock"]);
        assert!(settings.addresses(true).is_empty());
        assert_eq!(settings.root, Path::new("/var/lib/wardian"));
        assert_eq!(settings.socket_mode, 0o660);
        assert!(!settings.insecure_listen && !settings.no_new_privileges);
    }

    #[test]
    fn a_flag_beats_the_file() {
        let text = "listen = [\"tcp:127.0.0.1:1\"]\nroot = \"/a\"\nrun = \"/b\"\nsocket-mode = \"0600\"\n";
        let settings = Args::default().merge(file(text)).unwrap();
        assert_eq!(settings.listen, ["tcp:127.0.0.1:1"]);
        assert_eq!((settings.root.as_path(), settings.socket_mode), (Path::new("/a"), 0o600));
        let args = Args { root: Some("/c".into()), listen: vec!["unix:/x".into()], ..Args::default() };
        let settings = args.merge(file(text)).unwrap();
        assert!(!settings.destroy_containers_on_startup);
        assert_eq!(settings.listen, ["unix:/x"]);
        assert_eq!((settings.root.as_path(), settings.run.as_path()), (Path::new("/c"), Path::new("/b")));
    }

    #[test]
    fn what_nobody_knows_is_an_error() {
        assert!(toml::from_str::<File>("rot = \"/a\"\n").unwrap_err().to_string().contains("rot"));
        assert!(Args::default().merge(file("socket-mode = \"9\"\n")).is_err());
        assert!(Args::default().merge(file("tls-cert = \"/c\"\ntls-key = \"/k\"\n")).is_err());
        let tls = "tls-cert = \"/c\"\ntls-key = \"/k\"\ntls-client-ca = \"/a\"\nhost-name = [\"cell\"]\n";
        let settings = Args::default().merge(file(tls)).unwrap();
        assert_eq!((settings.tls.unwrap().key, settings.host_names), ("/k".into(), vec!["cell".to_owned()]));
        assert!(Args::default().merge(file(&format!("{tls}insecure-listen = true\n"))).is_err());
        assert!(octal("1777").is_err() && octal("").is_err());
        assert_eq!(octal("0o640"), Ok(0o640));
        assert!(Args::default().merge(file("default-grace-time = \"soon\"\n")).is_err());
        assert!(Args::default().merge(file("cpu-entitlement-per-share = -1.0\n")).is_err());
        assert!(Args::default().merge(file("ready-rootfs = 33\n")).is_err());
        assert_eq!(Args::default().merge(file("ready-rootfs = 0\n")).unwrap().ready_rootfs, 0);
        let settings = |text: &str| Args::default().merge(file(text));
        assert!(settings("id-ranges = \"0:65536\"\n").is_err());
        let ids = settings("id-ranges = \"100000:65536\"\ndefault-pids-limit = 7\n").unwrap();
        assert_eq!((ids.id_ranges, ids.default_pids_limit), ("100000:65536".parse().ok(), 7));
        assert!(ready("33").is_err() && ready("-1").is_err());
        assert!(settings("layer-hosts = [\"http://a\"]\n").is_err());
        assert!(settings("layer-patience = \"0\"\n").unwrap_err().to_string().contains("more than 0"));
        for bad in ["http://x", "x:7777", "*.example.com", "", "x.", ".x", "a b"] {
            let error = settings(&format!("host-name = [{bad:?}]\n")).unwrap_err().to_string();
            assert!(host_name(bad).is_err() && error.contains("without port or wildcard"), "{bad}: {error}");
        }
        let named = settings("host-name = [\"Cell-1.example.com\", \"10.0.0.5\"]\n").unwrap();
        assert_eq!(named.host_names, ["Cell-1.example.com", "10.0.0.5"]);
        let images = settings("layer-hosts = [\"a:1\"]\nmax-layer-bytes = 1\nmax-image-ratio = 0\n").unwrap();
        assert_eq!(images.fetching.layer_hosts, ["a:1".parse().unwrap()]);
        assert_eq!(images.limits, Limits { max_bytes: 1, max_ratio: 0, ..Limits::DEFAULT });
    }

    #[test]
    fn times() {
        for (text, ms) in [("0", 0), ("90s", 90_000), ("1h30m", 5_400_000), ("250ms", 250), ("1.5s", 1500)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "5", "s", "5 m", "-5s", "5d", "1m5", "1e9h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
