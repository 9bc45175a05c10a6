//! The settings of `wardian serve`. Each is defined once, as a flag: the parser reads it from the command line, from the
//! environment, and from a file whose keys are named as the flags are ([`crate::context`]).

use crate::log;
use crate::store::{ROOT, RUN};
use anyhow::{Result, ensure};
use clap::Args as ClapArgs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tracing_subscriber::filter::Targets;
use wardian_engine::{IdRanges, LEAST_OUTPUT_FILES};
use wardian_store::{DiskDriver, Fetching, Host, Limits, Pull};

/// The default limit of connections. A process with an attached client takes three.
const CONNECTIONS: usize = 8192;
/// The memory of a connection while its request arrives, in bytes. All connections together may take an eighth of the
/// server's memory.
const CONNECTION_MEMORY: u64 = 128 << 10;

/// Settings. A flag beats the environment, which beats the file, which beats the default.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Where to listen: unix:/PATH or tcp:IP:PORT; may be given more than once, and replaces the default
    /// [default: unix:<run>/garden.sock]
    #[arg(long, value_name = "ADDR", env = "WARDIAN_LISTEN", value_delimiter = ',')]
    pub listen: Vec<String>,
    /// The store: images, layers, root file systems
    #[arg(long, value_name = "DIR", env = "WARDIAN_ROOT", default_value = ROOT)]
    pub root: PathBuf,
    /// Live state
    #[arg(long, value_name = "DIR", env = "WARDIAN_RUN", default_value = RUN)]
    pub run: PathBuf,
    /// Image of containers that name none
    #[arg(long, value_name = "IMAGE", env = "WARDIAN_DEFAULT_ROOTFS")]
    pub default_rootfs: Option<String>,
    /// Mode of unix sockets, octal
    #[arg(long, value_name = "MODE", env = "WARDIAN_SOCKET_MODE", value_parser = octal, default_value = "0660")]
    pub socket_mode: u32,
    /// Allow TCP addresses without TLS: whoever reaches them, every local user and every program here included, is root on
    /// this host
    #[arg(long, env = "WARDIAN_INSECURE_LISTEN", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true)]
    pub insecure_listen: bool,
    /// TLS on all TCP addresses: the server's certificate in PEM, with the intermediate ones up to its CA; wants --tls-key and
    /// --tls-client-ca as well
    #[arg(long, value_name = "FILE", env = "WARDIAN_TLS_CERT")]
    pub tls_cert: Option<PathBuf>,
    /// The key of the server's certificate, in PEM; nobody but root, and perhaps a group, may read the file
    #[arg(long, value_name = "FILE", env = "WARDIAN_TLS_KEY")]
    pub tls_key: Option<PathBuf>,
    /// Certificates in PEM of the CAs whose clients are let in; a client without a certificate issued by one of them
    /// is refused
    #[arg(long, value_name = "FILE", env = "WARDIAN_TLS_CLIENT_CA")]
    pub tls_client_ca: Option<PathBuf>,
    /// A name of this host: requests through TCP may name it, IP addresses, localhost and Garden's `api`, and no other host;
    /// may be given more than once
    #[arg(long, value_name = "NAME", env = "WARDIAN_HOST_NAME", value_delimiter = ',', value_parser = host_name)]
    pub host_name: Vec<String>,
    /// Most containers at a time; 0: no bound
    #[arg(long, value_name = "N", env = "WARDIAN_MAX_CONTAINERS", default_value = "0")]
    pub max_containers: u64,
    /// Creates at work at a time, 0: four for each processor, from 8 to 128; others wait for their turn
    #[arg(long, value_name = "N", env = "WARDIAN_MAX_CONCURRENT_CREATES", default_value = "0")]
    pub max_concurrent_creates: usize,
    /// Creates that wait for their turn, for at most a minute; more are refused
    #[arg(long, value_name = "N", env = "WARDIAN_MAX_QUEUED_CREATES", default_value = "1000")]
    pub max_queued_creates: usize,
    /// Connections with a request at a time; for one more, the one that has been idle longest is closed. Root has 16 more on
    /// unix sockets [default: 8192, and at most an eighth of the limit of open files]
    #[arg(long, value_name = "N", env = "WARDIAN_MAX_CONNECTIONS")]
    pub max_connections: Option<usize>,
    /// Close a connection whose request's head does not arrive in this time; 0: never
    #[arg(long, value_name = "TIME", env = "WARDIAN_READ_HEADER_TIMEOUT", value_parser = duration, default_value = "30s")]
    pub read_header_timeout: Duration,
    /// Abort a stream-in or stream-out that makes no progress for so long, because of the client or of the container; 0: never
    #[arg(long, value_name = "TIME", env = "WARDIAN_TRANSFER_PATIENCE", value_parser = duration, default_value = "60s")]
    pub transfer_patience: Duration,
    /// Refuse to make privileged containers, whose root is the host's
    #[arg(long, env = "WARDIAN_DISABLE_PRIVILEGED_CONTAINERS", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true)]
    pub disable_privileged_containers: bool,
    /// Where the debug server listens, unix:/PATH or tcp:IP:PORT: /debug/vars and /log-level, for whoever reaches it
    /// [default: nowhere]
    #[arg(long, value_name = "ADDR", env = "WARDIAN_DEBUG_LISTEN")]
    pub debug_listen: Option<String>,
    /// Collect garbage when the store's layers take more bytes than this [default: only when told to]
    #[arg(long, value_name = "BYTES", env = "WARDIAN_GC_THRESHOLD", value_parser = crate::store::size)]
    pub gc_threshold: Option<u64>,
    /// Certificates for servers of layers and apps, but not for registries, which have certs.d: *.crt are trusted besides the
    /// system's, a *.cert with the *.key of the same name is shown to servers that ask for one [default: none]
    #[arg(long, value_name = "DIR", env = "WARDIAN_LAYER_CERTIFICATES")]
    pub layer_certificates: Option<PathBuf>,
    /// Give up on a server that sends fewer than 64 KiB of a layer in this time; it is tried five times, from where it
    /// stopped
    #[arg(long, value_name = "TIME", env = "WARDIAN_LAYER_PATIENCE", value_parser = patience, default_value = "30s")]
    pub layer_patience: Duration,
    /// Maximum size of a layer, unpacked or compressed [default: 64G]
    #[arg(long, value_name = "BYTES", env = "WARDIAN_MAX_LAYER_BYTES", value_parser = crate::store::size)]
    pub max_layer_bytes: Option<u64>,
    /// Maximum size of an image, all layers unpacked [default: 128G, or --max-layer-bytes if that is more]
    #[arg(long, value_name = "BYTES", env = "WARDIAN_MAX_IMAGE_BYTES", value_parser = crate::store::size)]
    pub max_image_bytes: Option<u64>,
    /// Maximum number of files, directories and links in all layers of an image [default: 8388608]
    #[arg(long, value_name = "N", env = "WARDIAN_MAX_IMAGE_ENTRIES")]
    pub max_image_entries: Option<u64>,
    /// Maximum length of an image's uncompressed tar streams: 256 MiB plus N times its size as stored; 0: no limit
    /// [default: 200]
    #[arg(long, value_name = "N", env = "WARDIAN_MAX_IMAGE_RATIO")]
    pub max_image_ratio: Option<u64>,
    /// Servers that an image may name for its layers (its manifest's urls), and that those may redirect to: HOST or HOST:PORT,
    /// exactly; without a port, 80 and 443. What a client names itself, as for an app, needs none of them [default: none]
    #[arg(long, value_name = "HOST[:PORT]", env = "WARDIAN_LAYER_HOSTS", value_delimiter = ',')]
    pub layer_hosts: Vec<Host>,
    /// Pull policy for image URIs (docker://…) of clients that send none: always (check every time), newer (check; use the local
    /// image if the registry is unreachable), missing (pull if not local), never
    #[arg(long, value_name = "WHEN", env = "WARDIAN_PULL", default_value = "always")]
    pub pull: Pull,
    /// Registry, HOST or HOST:PORT exactly, whose certificate is not verified, and which may be contacted over plain HTTP; may
    /// be given more than once, and adds to those in /etc/containers/registries.conf
    #[arg(long, value_name = "HOST[:PORT]", env = "WARDIAN_INSECURE_REGISTRY", value_delimiter = ',')]
    pub insecure_registry: Vec<String>,
    /// Root file systems mounted ahead for each image that creates have asked for lately, at most 32; 0: none
    #[arg(long, value_name = "N", env = "WARDIAN_READY_ROOTFS", value_parser = ready, default_value = "8")]
    pub ready_rootfs: usize,
    /// What limits the disk space of containers: project-quota, btrfs, image, or none [default: the first of them that works for
    /// the file system under --root]
    #[arg(long, value_name = "DRIVER", env = "WARDIAN_DISK_DRIVER", value_parser = disk_driver)]
    pub disk_driver: Option<DiskDriver>,
    /// Give each unprivileged container its own range of SIZE host uids and gids, allocated from START [default: all containers
    /// share Garden's mapping]
    #[arg(long, value_name = "START:SIZE", env = "WARDIAN_ID_RANGES", value_parser = str::parse::<IdRanges>)]
    pub id_ranges: Option<IdRanges>,
    /// Pids limit of containers created without one, and of peas with limits of their own; 0: none
    #[arg(long, value_name = "N", env = "WARDIAN_DEFAULT_PIDS_LIMIT", default_value = "0")]
    pub default_pids_limit: u64,
    /// Set no_new_privs on every process: set-uid programs gain nothing
    #[arg(long, env = "WARDIAN_NO_NEW_PRIVILEGES", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true)]
    pub no_new_privileges: bool,
    /// Destroy containers that came without a grace time when nobody has called them for so long: 90s, 5m, 1h30m; 0: never
    ///
    #[arg(long, value_name = "TIME", env = "WARDIAN_DEFAULT_GRACE_TIME", value_parser = duration, default_value = "0")]
    pub default_grace_time: Duration,
    /// Size of /dev/shm in containers without a memory limit; with one, the size is 15/16 of that. 0: half of the host's memory
    /// in every container
    #[arg(long, value_name = "BYTES", env = "WARDIAN_SHM_SIZE", value_parser = crate::store::size, default_value = "64M")]
    pub shm_size: u64,
    /// Most memory, below --run, for the output that is kept of all processes for `wardian logs`; 0: none is kept [default: 256M,
    /// or a sixteenth of the host's memory if that is less]
    #[arg(long, value_name = "BYTES", env = "WARDIAN_KEPT_OUTPUT", value_parser = crate::store::size)]
    pub kept_output: Option<u64>,
    /// Write what is kept of a process's output to files as well, at most so much of each (256K or more): `64M`. They are in
    /// output/CONTAINER-ID of --root, in the format of CRI logs, rotated, and go with their container; 0: none
    #[arg(long, value_name = "BYTES", env = "WARDIAN_OUTPUT_FILES", value_parser = output_files, default_value = "0")]
    pub output_files: u64,
    /// Percent of a processor that one CPU share entitles to, in metrics [default: all processors over all memory in MiB]
    #[arg(long, value_name = "PERCENT", env = "WARDIAN_CPU_ENTITLEMENT_PER_SHARE", value_parser = percent)]
    pub cpu_entitlement_per_share: Option<f64>,
    /// Destroy the containers that an earlier server has left, before serving anybody
    #[arg(long, env = "WARDIAN_DESTROY_CONTAINERS_ON_STARTUP", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true)]
    pub destroy_containers_on_startup: bool,
    /// The keeper program [default: wardian-keeper beside this program, else in /usr/lib/wardian]
    #[arg(long, value_name = "PATH", env = "WARDIAN_KEEPER")]
    pub keeper: Option<PathBuf>,
    /// What is logged: a level (error, warn, info, debug, trace, off), or levels by crate (info,wardian_store=debug)
    #[arg(long, value_name = "LEVEL", env = log::VARIABLE, value_parser = log::levels, default_value = "info")]
    pub log_level: Targets,
    /// How the log on standard error looks
    #[arg(long, value_name = "FORMAT", env = "WARDIAN_LOG_FORMAT", value_enum, default_value = "auto")]
    pub log_format: log::Format,
    // Last: its heading would also be that of flags after it.
    #[command(flatten)]
    pub network: super::network::Args,
}

impl Args {
    /// Checks the flags against each other.
    ///
    /// # Errors
    /// Flags that contradict each other.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.tls()?.is_none() || !self.insecure_listen,
            "insecure-listen and tls-cert: with TLS no TCP address is open to clients without a certificate; give one of the two"
        );
        self.network.check()
    }

    /// Returns the files for TLS, all or none.
    ///
    /// # Errors
    /// Only one or two of the three are given.
    pub fn tls(&self) -> Result<Option<TlsFiles<'_>>> {
        match [&self.tls_cert, &self.tls_key, &self.tls_client_ca] {
            [None, None, None] => Ok(None),
            [Some(certificate), Some(key), Some(client_authorities)] => {
                Ok(Some(TlsFiles { certificate, key, client_authorities }))
            }
            _ => anyhow::bail!(
                "tls-cert, tls-key and tls-client-ca belong together: without any one of them nobody knows who the clients are"
            ),
        }
    }

    /// Returns the addresses to listen on; inherited sockets replace the default one.
    pub fn addresses(&self, inherited: bool) -> Vec<String> {
        match self.listen.as_slice() {
            [] if !inherited => vec![format!("unix:{}", self.run.join("garden.sock").display())],
            given => given.to_vec(),
        }
    }

    /// Returns the limit of connections. The default leaves descriptors for containers: with each connection there
    /// may be two for the streams of a process, and a new connection.
    pub fn connections(&self) -> usize {
        let usual = || {
            let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
            let eighth = files.map_or(u64::MAX, |files| files / 8);
            let memory = wardian_sys::memory::of_this_process() / 8 / CONNECTION_MEMORY;
            CONNECTIONS.min(usize::try_from(eighth.min(memory)).unwrap_or(usize::MAX)).max(1)
        };
        self.max_connections.unwrap_or_else(usual)
    }

    /// Returns the settings for fetching layers.
    pub fn fetching(&self) -> Fetching {
        Fetching {
            certificates: self.layer_certificates.clone(),
            patience: self.layer_patience,
            layer_hosts: self.layer_hosts.clone(),
            ..Fetching::default()
        }
    }

    /// Returns the limits of images.
    pub fn limits(&self) -> Limits {
        crate::store::limits([
            self.max_layer_bytes,
            self.max_image_bytes,
            self.max_image_entries,
            self.max_image_ratio,
        ])
    }
}

/// Files for TLS.
#[derive(Debug, PartialEq)]
pub struct TlsFiles<'a> {
    pub certificate: &'a Path,
    pub key: &'a Path,
    pub client_authorities: &'a Path,
}

fn octal(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    match u32::from_str_radix(digits, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err(format!("{text:?} is not an octal file mode")),
    }
}

/// Parses a duration: `90s`, `1h30m`, `0`.
fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| format!("{text:?} is not a time such as 90s, 5m or 1h30m"))
}

/// Parses a name of this host for requests: no URL, no port, no wildcard.
fn host_name(text: &str) -> Result<String, String> {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if text.split('.').all(|label| !label.is_empty() && label.chars().all(known)) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is not a host name without port or wildcard, such as cell-1.example.com"))
    }
}

fn output_files(text: &str) -> Result<u64, String> {
    match crate::store::size(text)? {
        bytes @ 1..LEAST_OUTPUT_FILES => {
            Err(format!("{bytes} bytes are too few: 256K at least, or 0 for none"))
        }
        bytes => Ok(bytes),
    }
}

fn percent(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0);
    value.ok_or_else(|| format!("{text:?} is not a percentage"))
}

fn disk_driver(text: &str) -> Result<DiskDriver, String> {
    let names = || DiskDriver::ALL.map(DiskDriver::name).join(", ");
    let found = DiskDriver::ALL.into_iter().find(|driver| driver.name() == text);
    found.ok_or_else(|| format!("{text:?} is none of {}", names()))
}

fn ready(text: &str) -> Result<usize, String> {
    let most = wardian_engine::MOST_READY_ROOTFS;
    match text.parse() {
        Ok(value) if value <= most => Ok(value),
        Ok(value) => Err(format!("{value} is more than {most}")),
        Err(_) => Err(format!("{text:?} is not a number")),
    }
}

pub(super) fn patience(text: &str) -> Result<Duration, String> {
    duration(text)
        .and_then(|time| if time.is_zero() { Err("it must be more than 0".to_owned()) } else { Ok(time) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::FromArgMatches as _;
    use std::ffi::OsString;

    /// Returns the settings of a file and of arguments.
    fn settings(file: &str, args: &[&str]) -> Result<Args> {
        let args: Vec<_> = ["wardian", "serve"].iter().chain(args).map(OsString::from).collect();
        let matches = crate::context::tests::parse(file, &args)?;
        let settings = Args::from_arg_matches(matches.subcommand_matches("serve").unwrap())?;
        settings.check()?;
        Ok(settings)
    }

    fn refused(file: &str) -> String {
        format!("{:#}", settings(file, &[]).unwrap_err())
    }

    #[test]
    fn defaults() {
        let settings = settings("", &[]).unwrap();
        assert_eq!(settings.addresses(false), ["unix:/run/wardian/garden.sock"]);
        assert!(settings.addresses(true).is_empty());
        assert_eq!(settings.root, Path::new("/var/lib/wardian"));
        assert_eq!((settings.socket_mode, settings.shm_size), (0o660, 64 << 20));
        assert!(!settings.insecure_listen && !settings.no_new_privileges);
        assert_eq!(settings.fetching(), Fetching::default());
    }

    #[test]
    fn a_flag_beats_the_file() {
        let text = "listen = [\"tcp:127.0.0.1:1\", \"unix:/y\"]\nroot = \"/a\"\nrun = \"/b\"\nsocket-mode = \"0600\"\n\
            insecure-listen = true\nmax-containers = 7\n";
        let only_file = settings(text, &[]).unwrap();
        assert_eq!(only_file.listen, ["tcp:127.0.0.1:1", "unix:/y"]);
        assert_eq!((only_file.root.as_path(), only_file.socket_mode), (Path::new("/a"), 0o600));
        assert!(only_file.insecure_listen && only_file.max_containers == 7);
        let flags = ["--root", "/c", "--listen", "unix:/x", "--insecure-listen=false"];
        let both = settings(text, &flags).unwrap();
        assert_eq!((both.listen.as_slice(), both.insecure_listen), (&["unix:/x".to_owned()][..], false));
        assert_eq!((both.root.as_path(), both.run.as_path()), (Path::new("/c"), Path::new("/b")));
    }

    #[test]
    fn what_a_flag_refuses_is_refused_in_the_file() {
        for (file, why) in [
            ("rot = \"/a\"", "unknown key rot"),
            ("socket_mode = \"0600\"", "unknown key socket_mode"),
            ("config = \"/a\"", "unknown key config"),
            ("socket-mode = \"9\"", "octal"),
            ("root = [\"/a\", \"/b\"]", "root"),
            ("root = { a = 1 }", "it must be a text"),
            ("max-containers = 1979-05-27", "it must be a text"),
            ("max-containers = -1", "max-containers"),
            ("insecure-listen = \"maybe\"", "insecure-listen"),
            ("tls-cert = \"/c\"\ntls-key = \"/k\"", "belong together"),
            ("default-grace-time = \"soon\"", "default-grace-time"),
            ("cpu-entitlement-per-share = -1.0", "percentage"),
            ("ready-rootfs = 33", "more than 32"),
            ("id-ranges = \"0:65536\"", "id-ranges"),
            ("layer-hosts = [\"http://a\"]", "layer-hosts"),
            ("layer-patience = \"0\"", "more than 0"),
            ("log-format = \"xml\"", "log-format"),
        ] {
            let said = refused(file);
            assert!(said.contains(why), "{file}: {said}");
        }
        let tls = "tls-cert = \"/c\"\ntls-key = \"/k\"\ntls-client-ca = \"/a\"\nhost-name = [\"cell\"]\n";
        let with_tls = settings(tls, &[]).unwrap();
        assert_eq!(with_tls.tls().unwrap().unwrap().key, Path::new("/k"));
        assert_eq!(with_tls.host_name, ["cell"]);
        assert!(refused(&format!("{tls}insecure-listen = true\n")).contains("give one of the two"));
        for bad in ["http://x", "x:7777", "*.example.com", "", "x.", ".x", "a b"] {
            let said = refused(&format!("host-name = [{bad:?}]\n"));
            assert!(host_name(bad).is_err() && said.contains("without port or wildcard"), "{bad}: {said}");
        }
    }

    #[test]
    fn values() {
        let read = |text: &str| settings(text, &[]).unwrap();
        assert_eq!(read("ready-rootfs = 0").ready_rootfs, 0);
        let ids = read("id-ranges = \"100000:65536\"\ndefault-pids-limit = 7");
        assert_eq!((ids.id_ranges, ids.default_pids_limit), ("100000:65536".parse().ok(), 7));
        assert_eq!(read("cpu-entitlement-per-share = 1.5").cpu_entitlement_per_share, Some(1.5));
        assert_eq!(read("shm-size = 4096").shm_size, 4096);
        let named = read("host-name = [\"Cell-1.example.com\", \"10.0.0.5\"]");
        assert_eq!(named.host_name, ["Cell-1.example.com", "10.0.0.5"]);
        let images = read("layer-hosts = [\"a:1\"]\nmax-layer-bytes = 1\nmax-image-ratio = 0");
        assert_eq!(images.fetching().layer_hosts, ["a:1".parse().unwrap()]);
        assert_eq!(images.limits(), Limits { max_bytes: 1, max_ratio: 0, ..Limits::DEFAULT });
        assert!(octal("1777").is_err() && octal("").is_err() && ready("-1").is_err());
        assert_eq!(octal("0o640"), Ok(0o640));
    }

    #[test]
    fn times() {
        for (text, ms) in [("0", 0), ("90s", 90_000), ("1h30m", 5_400_000), ("250ms", 250)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "5", "s", "-5s", "1m5", "1e9h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
