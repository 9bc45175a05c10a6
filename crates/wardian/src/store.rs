//! `wardian store`, and the store for the other commands.

use crate::watch::{self, Interrupts};
use crate::{log, print};
use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args as ClapArgs, Subcommand};
use std::ffi::OsStr;
use std::io::IsTerminal as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt};
use wardian_image::Remote;
use wardian_store::{Collected, Config, Garbage, Host, Known, Limits, Progress, Store, Usage};
use wardian_sys::spawn;

/// The default directory of the store.
pub const ROOT: &str = "/var/lib/wardian";
/// The default run directory.
pub const RUN: &str = "/run/wardian";

/// The heading, in the help, of the flags for fetching and unpacking images.
const IMAGES: &str = "Fetch and unpack limits";

/// Where the store is, and how to answer.
#[derive(Debug, Clone, ClapArgs)]
pub struct Place {
    /// The store: images, layers, root file systems
    #[arg(long, value_name = "DIR", env = "WARDIAN_ROOT", default_value = ROOT, global = true)]
    root: PathBuf,
    /// Live state; the same as the server's, if there is one
    #[arg(long, value_name = "DIR", env = "WARDIAN_RUN", default_value = RUN, global = true)]
    run: PathBuf,
    /// Certificates for servers of layers and apps, but not for registries, which have certs.d: *.crt are trusted besides the
    /// system's, a *.cert with the *.key of the same name is shown to servers that ask for one [default: none]
    #[arg(long, value_name = "DIR", env = "WARDIAN_LAYER_CERTIFICATES", global = true, help_heading = IMAGES)]
    layer_certificates: Option<PathBuf>,
    /// Servers that an image may name for its layers: HOST or HOST:PORT, exactly; without a port, 80 and 443 [default: none]
    #[arg(
        long,
        value_name = "HOST[:PORT]",
        env = "WARDIAN_LAYER_HOSTS",
        global = true,
        help_heading = IMAGES,
        value_delimiter = ','
    )]
    layer_hosts: Vec<Host>,
    /// Registry, HOST or HOST:PORT exactly, whose certificate is not verified, and which may be contacted over plain HTTP; may
    /// be given more than once
    #[arg(
        long,
        value_name = "HOST[:PORT]",
        env = "WARDIAN_INSECURE_REGISTRY",
        global = true,
        help_heading = IMAGES,
        value_delimiter = ','
    )]
    insecure_registry: Vec<String>,
    /// Maximum size of a layer, unpacked or compressed [default: 64G]
    #[arg(
        long,
        value_name = "BYTES",
        env = "WARDIAN_MAX_LAYER_BYTES",
        global = true,
        help_heading = IMAGES,
        value_parser = size
    )]
    max_layer_bytes: Option<u64>,
    /// Maximum size of an image, all layers unpacked [default: 128G, or --max-layer-bytes if that is more]
    #[arg(
        long,
        value_name = "BYTES",
        env = "WARDIAN_MAX_IMAGE_BYTES",
        global = true,
        help_heading = IMAGES,
        value_parser = size
    )]
    max_image_bytes: Option<u64>,
    /// Maximum number of files, directories and links in all layers of an image [default: 8388608]
    #[arg(long, value_name = "N", env = "WARDIAN_MAX_IMAGE_ENTRIES", global = true, help_heading = IMAGES)]
    max_image_entries: Option<u64>,
    /// Maximum length of an image's uncompressed tar streams: 256 MiB plus N times its size as stored; 0: no limit
    /// [default: 200]
    #[arg(long, value_name = "N", env = "WARDIAN_MAX_IMAGE_RATIO", global = true, help_heading = IMAGES)]
    max_image_ratio: Option<u64>,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
}

/// The error for a store that does not exist.
#[derive(Debug)]
pub struct NoStore(PathBuf);

impl std::fmt::Display for NoStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "there is no store in {}: `wardian image pull` or `import` makes one, and so does a server; --root or \
             WARDIAN_ROOT names another",
            self.0.display()
        )
    }
}

impl std::error::Error for NoStore {}

impl Place {
    /// Returns the place of a store with the default limits and no servers of layers.
    pub fn at(root: PathBuf, run: PathBuf) -> Self {
        Self {
            root,
            run,
            layer_certificates: None,
            layer_hosts: Vec::new(),
            insecure_registry: Vec::new(),
            max_layer_bytes: None,
            max_image_bytes: None,
            max_image_entries: None,
            max_image_ratio: None,
            json: false,
        }
    }

    /// Returns the names of the images.
    pub fn names(&self) -> Result<Vec<String>> {
        let store = self.open_existing()?;
        Ok(store.images()?.into_iter().map(|image| image.name).collect())
    }

    /// Returns what is needed to ask registries.
    pub fn registries(&self) -> Result<(Known, Remote)> {
        let config = self.config()?;
        start_log()?;
        Ok((config.registries, Remote::new(config.remote)?))
    }

    fn config(&self) -> Result<Config> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "the store is root's, who makes containers of it: try sudo"
        );
        let absolute =
            |path: &PathBuf| std::path::absolute(path).with_context(|| format!("find {}", path.display()));
        let mut config = Config::new(absolute(&self.root)?, absolute(&self.run)?);
        config.remote.certificates = self.layer_certificates.as_ref().map(absolute).transpose()?;
        config.remote.layer_hosts.clone_from(&self.layer_hosts);
        config.registries = registries(&self.insecure_registry)?;
        config.limits = limits([
            self.max_layer_bytes,
            self.max_image_bytes,
            self.max_image_entries,
            self.max_image_ratio,
        ]);
        Ok(config)
    }

    /// Opens the store, beside a server or without one.
    pub fn open(&self) -> Result<Store> {
        let config = self.config()?;
        start_log()?;
        Ok(Store::open(&config)?)
    }

    /// As [`Place::open`], but fails with [`NoStore`] if there is no store, instead of making one.
    pub fn open_existing(&self) -> Result<Store> {
        let root = self.config()?.root;
        // A directory that is no store is reported by the store itself.
        if matches!(wardian_store::whose::store(&root), Ok(false)) {
            bail!(NoStore(root));
        }
        self.open()
    }

    /// As [`Place::open`], after preparing the run directory for records of root file systems.
    pub fn open_for_rootfs(&self) -> Result<Store> {
        let run = self.config()?.run;
        wardian_store::run::prepare(&run)
            .with_context(|| format!("make the run directory {} on a tmpfs", run.display()))?;
        self.open()
    }

    /// Ends a command that may have made trash, or found some of a killed one. The deletion is not waited for: the
    /// server does it, or a separate process.
    pub fn leave(&self, store: &Store) {
        if !store.has_server() {
            match store.has_trash() {
                Ok(true) => self.reap_later(store),
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "trash.unknown"),
            }
        }
        store.leave_run();
    }

    /// As [`Place::leave`], for a command that has thrown something away: it need not look for trash, which takes the
    /// longer the more root file systems there are.
    pub fn leave_trash(&self, store: &Store) {
        if !store.has_server() {
            self.reap_later(store);
        }
        store.leave_run();
    }

    fn reap_later(&self, store: &Store) {
        if store.is_reaper_waiting() {
            return;
        }
        if let Err(error) = self.start_reaper() {
            let advice = "`wardian store reap --wait` deletes what was thrown away";
            print::note(&format!("{error:#}; {advice}"));
        }
    }

    /// Starts `wardian store reap` detached: it keeps neither the terminal nor the working directory nor inherited
    /// descriptors, which may hold a lock.
    fn start_reaper(&self) -> Result<()> {
        let command = self.command(&["store", "reap", "--detached"])?;
        let argv: Vec<_> =
            [OsStr::new("wardian")].into_iter().chain(command.get_args()).map(OsStr::to_owned).collect();
        // Without a terminal (tty(4)) there is no hangup to wait for.
        let terminal = std::fs::File::open("/dev/tty").is_ok();
        spawn::leave_behind(Path::new(command.get_program()), &argv, terminal)
            .context("start `wardian store reap`")
    }

    /// Returns a command that runs this program for the same store.
    pub fn command(&self, args: &[&str]) -> Result<std::process::Command> {
        let config = self.config()?;
        let mut command = std::process::Command::new(std::env::current_exe().context("find this program")?);
        // This program may have been started under another name, which means another command line.
        command.arg0("wardian").args(args).arg("--root").arg(&config.root).arg("--run").arg(&config.run);
        if let Some(certificates) = &config.remote.certificates {
            command.arg("--layer-certificates").arg(certificates);
        }
        let Limits { max_bytes, max_image_bytes, max_image_entries, max_ratio, .. } = config.limits;
        command
            .arg(format!("--max-layer-bytes={max_bytes}"))
            .arg(format!("--max-image-bytes={max_image_bytes}"));
        command.arg(format!("--max-image-entries={max_image_entries}"));
        command.arg(format!("--max-image-ratio={max_ratio}"));
        command.args(config.remote.layer_hosts.iter().map(|host| format!("--layer-hosts={host}")));
        command.args(self.insecure_registry.iter().map(|host| format!("--insecure-registry={host}")));
        command.args(self.json.then_some("--json")).stdin(Stdio::null());
        Ok(command)
    }
}

/// Returns what this host knows of registries; these are insecure, too.
pub fn registries(insecure: &[String]) -> Result<Known> {
    Known::of_host().with_insecure(insecure).context("registries")
}

/// Returns the limits of images, from `--max-layer-bytes`, `--max-image-bytes`, `--max-image-entries` and
/// `--max-image-ratio`. The default limit of an image is not below that of one of its layers.
pub fn limits(given: [Option<u64>; 4]) -> Limits {
    let usual = Limits::DEFAULT;
    let [layer_bytes, image_bytes, image_entries, ratio] = given;
    let max_bytes = layer_bytes.unwrap_or(usual.max_bytes);
    Limits {
        max_bytes,
        max_image_bytes: image_bytes.unwrap_or(usual.max_image_bytes.max(max_bytes)),
        max_image_entries: image_entries.unwrap_or(usual.max_image_entries),
        max_ratio: ratio.unwrap_or(usual.max_ratio),
        ..usual
    }
}

/// Starts a log on standard error, if the environment asks for it.
fn start_log() -> Result<()> {
    if let Some(targets) = log::wanted()? {
        // Otherwise the layer reports an unwritable standard error to standard error, and panics.
        let layer = fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
        // A command may open the store twice.
        let _ = tracing_subscriber::registry().with(layer.with_filter(targets)).try_init();
    }
    Ok(())
}

/// The store's commands.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what takes how much space, and how much of it can be reclaimed
    Usage,
    /// Delete layers that no named image has and no root file system uses, and partial downloads. On a terminal it lists the
    /// layers first, and asks
    Gc {
        /// Delete named images as well, least recently used first, until all layers take at most so many bytes: 500000000,
        /// 10G (2^30), 10GB (10^9). Layers in use or pinned stay; an image whose layers are deleted is untagged
        #[arg(long, value_name = "BYTES", value_parser = size)]
        threshold: Option<u64>,
        /// Only show what would be deleted
        #[arg(long)]
        dry_run: bool,
        /// Do not ask
        #[arg(long, conflicts_with = "dry_run")]
        yes: bool,
    },
    /// Delete what was thrown away. A running server does it by itself
    Reap {
        /// Wait until it is deleted; otherwise that goes on in the background
        #[arg(long)]
        wait: bool,
        /// This is the process in the background.
        #[arg(long, hide = true)]
        detached: bool,
    },
}

/// Parses a number of bytes.
pub fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let prefixes = |unit: &str| ["k", "m", "g", "t"].iter().position(|k| unit.eq_ignore_ascii_case(k));
    let power = |unit: &str| prefixes(unit).map_or(0, |i| i as u32 + 1);
    let factor = match (unit.len(), unit.get(..1).unwrap_or_default(), unit.get(1..).unwrap_or_default()) {
        (0, ..) | (1, "B" | "b", _) => Some(1),
        (_, k, "" | "iB" | "ib") if power(k) > 0 => 1024_u64.checked_pow(power(k)),
        (_, k, "B" | "b") if power(k) > 0 => 1000_u64.checked_pow(power(k)),
        _ => None,
    };
    let bytes =
        number.parse::<u64>().ok().zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
    bytes.ok_or_else(|| {
        format!("{text:?} is no size: give bytes, or a number with K, M, G or T (GB: decimal)")
    })
}

/// Runs the command.
pub fn run(args: Args) -> Result<ExitCode> {
    let Args { place, command } = args;
    match command {
        Command::Usage => {
            let usage = place.open_existing()?.usage()?;
            if place.json {
                print::json(&usage)?;
            } else {
                print::text(&report(&usage))?;
            }
        }
        Command::Gc { threshold, dry_run, yes } => return collect(&place, threshold, dry_run, yes),
        Command::Reap { detached: true, .. } => {
            let store = place.open_existing()?;
            if let Some(_turn) = store.reaper_turn().context("wait for another one that deletes")? {
                store.reap(&Progress::default())?;
            }
        }
        Command::Reap { wait, .. } => reap(&place, wait)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn collect(place: &Place, threshold: Option<u64>, dry_run: bool, yes: bool) -> Result<ExitCode> {
    let store = place.open_existing()?;
    let garbage = threshold.map_or(Garbage::Unnamed, Garbage::Until);
    let ask = !dry_run && !yes && std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    let mut agreed = None;
    if dry_run || ask {
        let found = store.find_garbage(garbage)?;
        if dry_run {
            told(place, &found, "would free")?;
            store.leave_run();
            return Ok(ExitCode::SUCCESS);
        }
        if !found.layers.is_empty() {
            print::say(lines(&found, "this would free").trim_end());
            if !crate::watch::asked("Go on?")? {
                print::note("nothing was done");
                store.leave_run();
                return Ok(ExitCode::FAILURE);
            }
        }
        // Layers that have become garbage since were not shown, and stay.
        agreed = Some(found.layers.into_iter().collect());
    }
    let done = store.collect_garbage(garbage, agreed.as_ref());
    place.leave(&store);
    told(place, &done?, "freed")?;
    Ok(ExitCode::SUCCESS)
}

fn told(place: &Place, done: &Collected, freed: &str) -> Result<()> {
    if place.json { print::json(done) } else { print::text(&lines(done, freed)) }
}

fn lines(done: &Collected, freed: &str) -> String {
    let mut text = String::new();
    for chain in &done.layers {
        text += &format!("layer  {chain}\n");
    }
    for name in &done.images {
        text += &format!("image  {name}\n");
    }
    if done.partial_bytes > 0 {
        let bytes = print::bytes(done.partial_bytes);
        text += &format!("{freed} {bytes} in partial downloads of interrupted pulls\n");
    }
    text + &format!(
        "{freed} {} in {}; {} stay, {} of them in use, pinned or of images that keep their names\n",
        print::bytes(done.freed_bytes),
        print::count(done.layers.len(), "layer"),
        print::bytes(done.kept_bytes),
        print::bytes(done.needed_bytes)
    )
}

fn reap(place: &Place, wait: bool) -> Result<()> {
    let store = place.open_existing()?;
    if !wait {
        place.leave(&store);
        return Ok(());
    }
    let progress = Arc::new(Progress::default());
    let cancel = Arc::clone(&progress);
    let interrupts = Interrupts::catch(move || cancel.cancel())?;
    let deleted = watch::spinner("deleting what was thrown away", || -> Result<bool> {
        while store.has_server() && !progress.is_cancelled() {
            if !store.has_trash()? {
                return Ok(true);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(store.reap(&progress)?)
    })?;
    interrupts.check(
        "interrupted: what is not deleted yet waits for the next `wardian store reap`, or for the server",
    )?;
    if !deleted {
        bail!("some of it cannot be deleted now; WARDIAN_LOG=warn shows why");
    }
    Ok(())
}

fn report(usage: &Usage) -> String {
    let mut text = String::new();
    let mut line = |what: &str, bytes: u64, note: &str| {
        text += format!("{what:<22}{:>11}  {note}", print::bytes(bytes)).trim_end();
        text.push('\n');
    };
    line("layers", usage.layers_bytes, &print::count(usage.layers, "layer"));
    line("  in use", usage.used_bytes, "by root file systems");
    line("  pinned", usage.pinned_bytes, "not in use");
    line("  suspect", usage.suspect_bytes, "perhaps not on the disk, given to nobody");
    line("  reclaimable", usage.reclaimable_bytes, "wardian store gc --threshold 0, which forgets names");
    line("    without a name", usage.unnamed_bytes, "wardian store gc");
    line("  shared", usage.shared_bytes, "of all layers, what several have");
    line("image records", usage.records_bytes, "names, manifests, configs");
    line("root file systems", usage.rootfs_bytes, "what was written in them");
    line("volumes", usage.volumes_bytes, &print::count(usage.volumes.len(), "volume"));
    line("being unpacked", usage.staging_bytes, "");
    line("partial downloads", usage.partial_bytes, "for the next pull; wardian store gc deletes them");
    line("trash", usage.trash_bytes, "not deleted yet");
    line("free", usage.free_bytes, &format!("of {}", print::bytes(usage.total_bytes)));
    let yes = |is: bool| if is { "yes" } else { "-" }.to_owned();
    if !usage.images.is_empty() {
        let row = |image: &wardian_store::ImageUsage| {
            let (all, own) = (print::bytes(image.bytes), print::bytes(image.own_bytes));
            [image.name.clone(), all, own, yes(image.pinned), yes(image.used)]
        };
        let rows: Vec<_> = usage.images.iter().map(row).collect();
        text += "\n";
        text += &print::table(["IMAGE", "SIZE", "ITS OWN", "PINNED", "IN USE"], &rows);
    }
    if !usage.volumes.is_empty() {
        let row = |volume: &wardian_store::VolumeUsage| [volume.name.clone(), print::bytes(volume.bytes)];
        let rows: Vec<_> = usage.volumes.iter().map(row).collect();
        text += "\n";
        text += &print::table(["VOLUME", "SIZE"], &rows);
    }
    if !usage.rootfs.is_empty() {
        let row = |rootfs: &wardian_store::RootfsUsage| {
            let note = rootfs.writeback_error.as_deref().map(print::tame).unwrap_or_default();
            let (own, below) = (print::bytes(rootfs.own_bytes), print::bytes(rootfs.image_bytes));
            [rootfs.id.clone(), print::tame(&rootfs.image), own, below, note]
        };
        let rows: Vec<_> = usage.rootfs.iter().map(row).collect();
        text += "\n";
        text += &print::table(["ROOT FILE SYSTEM", "IMAGE", "WRITTEN", "IMAGE SIZE", ""], &rows);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("12", 12),
            ("12B", 12),
            ("1K", 1024),
            ("2m", 2 << 20),
            ("10G", 10 << 30),
            ("1TiB", 1 << 40),
            ("3kB", 3000),
            ("10GB", 10_000_000_000),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "G", "-1", "1.5G", "1X", "1Gb/s", "99999999999999999999", "99999999T", "1ä", "1kg"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
