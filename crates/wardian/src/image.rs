//! `wardian image`.

mod export;
mod history;
mod load;
mod registry;

use crate::exit::{self, mistake};
use crate::print;
use crate::store::Place;
use crate::watch::{self, Interrupts};
use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args as ClapArgs, Subcommand};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use wardian_image::export::Format;
use wardian_image::reference::{is_like_a_file, short};
use wardian_image::registry::{ImageName, Known};
use wardian_image::{App, Remote, Source, shown};
use wardian_store::image::{Named, Wish};
use wardian_store::{Image, LayerInfo, LayerProgress, Phase, Progress, Pull, Reference, Store};

/// The maximum number of names that an image gets from its source. Each is a record, and an archive can have any
/// number of names.
const MOST_NAMES: usize = 64;

/// Parses the hex digits of a sha256.
pub fn hex_digest(text: &str) -> Result<String, String> {
    let digits = text.chars().filter(char::is_ascii_hexdigit).count();
    let others = text.chars().count() - digits;
    match (digits, others, text == text.to_ascii_lowercase()) {
        (64, 0, true) => Ok(text.to_owned()),
        (64, 0, false) => Err("expected lower-case hex digits".to_owned()),
        (_, 0, _) => Err(format!("expected 64 hex digits, got {digits}")),
        _ => Err(format!(
            "expected 64 hex digits, got {digits} and {}",
            print::count(others, "other character")
        )),
    }
}

/// The images' commands.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Import an image from a file or directory: its layers are verified, unpacked and written to the disk
    Import {
        /// A file or directory (a root file system or a tar of one, what docker or podman saved, an OCI layout or a tar of
        /// one; plain, gzip or zstd; detected by its content), - for such a file on standard input, or an address: tar://,
        /// oci://, oci-archive:// or docker-archive:// with an absolute path; with -t also docker://
        source: String,
        /// As -t
        #[arg(value_name = "NAME", conflicts_with = "tag")]
        name: Option<String>,
        /// Name of the image; busybox, busybox:latest and docker.io/library/busybox are one name [default: the names in the
        /// source, at most 64 (names that look like files, such as i.tar, are skipped)]
        #[arg(short = 't', long = "tag", value_name = "NAME")]
        tag: Option<String>,
        /// Overwrite existing names with those in the source (implied by -t)
        #[arg(long)]
        force: bool,
        /// Do not wait until it is written to the disk: a process in the background sees to that, and until it is done a
        /// power cut takes the image
        #[arg(long)]
        no_wait: bool,
        /// Print its id alone
        #[arg(short, long)]
        quiet: bool,
        /// This is the process in the background.
        #[arg(long, hide = true)]
        detached: bool,
    },
    /// Load the images that docker or podman saved, from a file or standard input; their names are taken from others
    Load {
        /// The file [default: standard input]
        #[arg(short, long, value_name = "FILE")]
        input: Option<String>,
        /// Print their ids alone
        #[arg(short, long)]
        quiet: bool,
    },
    /// Save images in one archive, which docker, podman and `load` read
    Save {
        /// The file to make; one that exists is replaced [default: standard output]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Show how an image was made: its layers and the commands that made them, newest first
    History {
        /// Print ids of layers alone
        #[arg(short, long)]
        quiet: bool,
        /// Print all of each command
        #[arg(long)]
        no_trunc: bool,
        /// Its name
        name: String,
    },
    /// Fetch images ahead of time, so that no container waits for them; those in the store are not fetched again
    Prefetch {
        /// What import takes, names of images, and addresses with an app: IMAGE?app=FILE_OR_URL&app_path=/DIR, or
        /// preloaded+layer:///FILE?layer=URL&layer_path=DIR&layer_digest=HEX
        #[arg(required = true, value_name = "SOURCE")]
        sources: Vec<String>,
    },
    /// Make an image of another one and an app on top of it
    #[command(override_usage = "wardian image add-layer [OPTIONS] --path DIR -t NAME IMAGE APP")]
    AddLayer {
        /// What prefetch takes
        image: String,
        /// A tar (plain, gzip or zstd) of the app's files: a file, or an http or https URL
        #[arg(value_name = "FILE_OR_URL")]
        app: String,
        /// Where the app's files go; made if the image has no such directory
        #[arg(long, value_name = "DIR")]
        path: String,
        /// What to call the new image
        #[arg(short = 't', long = "tag", value_name = "NAME")]
        tag: String,
        /// The sha256 of the tar as it is stored: what does not have it is refused
        #[arg(long, value_name = "HEX", value_parser = hex_digest)]
        digest: Option<String>,
    },
    /// Pull images from registries; if an image is up to date, only a HEAD request is made
    Pull {
        /// Their names: alpine, alpine:3.20, docker.io/library/alpine, HOST:PORT/REPOSITORY@sha256:HEX, docker://…
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// Print only their ids
        #[arg(short, long)]
        quiet: bool,
    },
    /// Push an image to a registry; layers that it has already are not sent again
    Push(registry::Push),
    /// List the tags of a repository at its registry
    Tags {
        /// The repository: alpine, HOST:PORT/REPOSITORY
        #[arg(value_name = "REPOSITORY")]
        name: String,
    },
    /// Check a user name and password with a registry and store them in /etc/wardian/auth.json (or the file in
    /// REGISTRY_AUTH_FILE), which the server reads too
    Login(registry::Login),
    /// Remove the stored credentials for a registry
    Logout {
        /// HOST or HOST:PORT; docker.io for Docker Hub
        #[arg(value_name = "REGISTRY")]
        registry: String,
    },
    /// List the images that have a name
    #[command(alias = "list")]
    Ls {
        /// Print their ids alone
        #[arg(short, long)]
        quiet: bool,
    },
    /// Print the details of an image as JSON
    Inspect {
        /// Its name
        name: String,
    },
    /// Give an image another name as well
    Tag {
        /// Its name
        name: String,
        /// The other name; if another image has it, that one loses it
        new: String,
    },
    /// Untag images and delete layers that no other image or container uses
    Rm {
        /// Remove pinned images too
        #[arg(long)]
        force: bool,
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Pin images: garbage collection keeps them
    Pin {
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Unpin images
    Unpin {
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Export an image to a file or directory, or as an archive to standard output
    Export {
        /// Its name
        name: String,
        /// The file or directory to make; - for an archive on standard output
        dest: PathBuf,
        /// oci, oci-archive, docker-archive; tar or dir for the root file system alone, with dir in DEST/rootfs, where DEST
        /// can be entered by its owner only [default: docker-archive if DEST ends in .tar or is -, which docker, podman
        /// and wardian read; else oci, a directory]
        #[arg(long)]
        format: Option<Format>,
        /// Of --format dir: also make set-uid and set-gid bits, file capabilities and device nodes, which give whoever can
        /// reach them rights on this host. Archives always hold them
        #[arg(long)]
        keep_privileges: bool,
        /// Replace a file that exists; directories are never replaced
        #[arg(long)]
        force: bool,
    },
}

/// Runs the command.
pub fn run(args: Args) -> Result<ExitCode> {
    let Args { place, command } = args;
    match command {
        Command::Import { source, tag, name, force, no_wait: true, .. } => {
            ensure!(
                source != load::INPUT,
                mistake(anyhow::anyhow!("--no-wait: standard input has to be waited for"))
            );
            return import_apart(&place, &source, tag.or(name), force);
        }
        Command::Import { source, name, tag, force, quiet, detached, .. } => {
            let store = place.open()?;
            let what = Import { tag: tag.or(name), force, quiet, detached };
            let done = match source.as_str() {
                load::INPUT => {
                    load::input(&store).and_then(|(_inbox, path)| import(&place, &store, &path, what))
                }
                source => import(&place, &store, source, what),
            };
            place.leave(&store);
            done?;
        }
        Command::Load { input, quiet } => return load::load(&place, input.as_deref(), quiet),
        Command::Save { output, names } => {
            let dest = output.unwrap_or_else(|| load::INPUT.into());
            let to = export::target(dest, Some(Format::DockerArchive), false, true).map_err(mistake)?;
            export::export(&place, &names, &to)?;
        }
        Command::History { quiet, no_trunc, name } => {
            let store = place.open_existing()?;
            history::print(&place, &store, &meant(&store, &name), quiet, no_trunc)?;
        }
        Command::Prefetch { sources } => return prefetch(&place, &sources),
        Command::AddLayer { image, app, path, tag, digest } => {
            let store = place.open()?;
            let source = with_app(&address(&store, &image)?, &app, &path, digest.as_deref())?;
            let done = import(&place, &store, &source, Import { tag: Some(tag), ..Import::default() });
            place.leave(&store);
            done?;
        }
        Command::Pull { names, quiet } => return registry::pull(&place, &names, quiet),
        Command::Push(push) => registry::push(&place, &push)?,
        Command::Tags { name } => registry::tags(&place, &name)?,
        Command::Login(login) => registry::login(&place, &login)?,
        Command::Logout { registry } => registry::logout(&place, &registry)?,
        Command::Ls { quiet } => list(&place, quiet)?,
        Command::Inspect { name } => {
            let store = place.open_existing()?;
            inspect(&store, &meant(&store, &name))?;
        }
        Command::Tag { name, new } => tag(&place, &name, &new)?,
        Command::Rm { names, force } => return remove(&place, &names, force),
        Command::Pin { names } => return each(&names, &mut pin(place.open_existing()?, true)),
        Command::Unpin { names } => return each(&names, &mut pin(place.open_existing()?, false)),
        Command::Export { name, dest, format, keep_privileges, force } => {
            let to = export::target(dest, format, keep_privileges, force).map_err(mistake)?;
            export::export(&place, &[name], &to)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Parses the source of an import: an address with a scheme, or a path.
pub fn source(text: &str) -> Result<Source> {
    if text.contains("://") {
        return Ok(Source::parse(text)?);
    }
    Ok(match Source::detect(Path::new(text)) {
        Err(wardian_image::Error::Missing { .. }) => {
            bail!("there is no file {text:?}; `wardian image pull` fetches images from registries")
        }
        Err(wardian_image::Error::Directory { .. }) => {
            bail!(
                "the directory {text:?} is no OCI layout, which has an index.json, and no root file system, which has a bin, \
                 sbin or usr, and an etc, lib, dev or proc"
            )
        }
        found => found?,
    })
}

/// Converts a source, with or without an app on top, or the name of an image, to an address for the store.
pub fn address(store: &Store, text: &str) -> Result<String> {
    let Some((base, _)) = App::parse(text)? else {
        let unknown = |error: &wardian_store::Error| {
            use wardian_store::image::Error::{Invalid, Unknown};
            matches!(error, wardian_store::Error::Name(Unknown { .. } | Invalid { .. }))
        };
        return match store.find_image(text) {
            // A text with a tag or a digest is meant as a name.
            Ok(_) if !text.contains([':', '@']) && Source::detect(Path::new(text)).is_ok() => bail!(
                "{text:?} is an image in the store, and there is a file or layout of that name here: say `{text}:latest` \
                 for the image, or `./{text}` for the file"
            ),
            Ok(named) => Ok(named.name),
            Err(error) if unknown(&error) => {
                let other = || {
                    format!("{:?} is neither an image in the store nor one that can be fetched", shown(text))
                };
                match source(text) {
                    // It can only be the name of an image at a registry.
                    Err(_) if wardian_store::image::check(text).is_ok() && !Path::new(text).exists() => {
                        Ok(text.to_owned())
                    }
                    source => Ok(source.with_context(other)?.to_uri()),
                }
            }
            Err(error) => Err(error.into()),
        };
    };
    // If `base` is no prefix of the text, it is a path already.
    match text.strip_prefix(&base) {
        Some(app) => Ok(format!("{}{app}", address(store, &base)?)),
        None => Ok(text.to_owned()),
    }
}

/// Returns the address of an image with an app on top.
pub fn with_app(image: &str, app: &str, path: &str, digest: Option<&str>) -> Result<String> {
    ensure!(
        App::parse(image)?.is_none(),
        "there is an app on this image already; give that image a name first"
    );
    let app = if app.contains("://") {
        app.to_owned()
    } else {
        let path = std::path::absolute(app).with_context(|| format!("find {app}"))?;
        path.into_os_string().into_string().ok().with_context(|| format!("the path of {app} is not UTF-8"))?
    };
    let address = App::address(image, &app, path, digest);
    App::parse(&address)?;
    Ok(address)
}

/// Imports an image with a progress display, or pulls it if it is the name of one that the store does not have; Ctrl-C
/// cancels it.
pub fn fetch(store: &Store, uri: &str) -> Result<(Image, Vec<Arc<LayerProgress>>)> {
    let (image, progress) = watched(false, |progress| {
        let reference = Reference::parse(uri)?;
        let is_name = !reference.is_pulled() && reference.way().is_none();
        store.import(&if is_name { reference.pulled(Pull::Missing) } else { reference }, None, progress)
    })?;
    Ok((image, progress.layers()))
}

/// `lines` says whether a line is printed for each layer where there is no terminal.
fn watched<T>(
    lines: bool,
    import: impl FnOnce(&Progress) -> wardian_store::Result<T>,
) -> Result<(T, Arc<Progress>)> {
    let progress = Arc::new(Progress::default());
    let cancel = Arc::clone(&progress);
    let interrupts = Interrupts::catch(move || cancel.cancel())?;
    let image = watch::layers(&progress, lines, || import(&progress));
    match image {
        Err(error) if error.is_cancelled() => {
            interrupts.check(
                "interrupted: incomplete layers were removed; complete layers are not fetched again, and partial downloads \
                 from a registry are resumed by the next pull",
            )?;
            Err(error.into())
        }
        image => Ok((image?, progress)),
    }
}

/// Imports the image in a separate process. It answers as soon as the image can be used, and runs until the image is
/// durable: a layer is distrusted if its process ends before that.
fn import_apart(place: &Place, source: &str, tag: Option<String>, force: bool) -> Result<ExitCode> {
    let mut command = place.command(&["image", "import", "--detached"])?;
    command.args(tag.map(|tag| format!("--tag={tag}"))).args(force.then_some("--force"));
    command.arg("--").arg(source);
    wardian_sys::spawn::close_on_exec().context("keep our files to ourselves")?;
    let mut child = command.stdout(Stdio::piped()).spawn().context("start the import")?;
    let mut said = String::new();
    child.stdout.take().context("hear the import")?.read_to_string(&mut said).context("hear the import")?;
    if said.is_empty() {
        // It has printed the error.
        let code = child.wait().context("wait for the import")?.code();
        return Ok(ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)));
    }
    print::text(&said)?;
    Ok(ExitCode::SUCCESS)
}

/// Detaches from the parent's pipes and from the terminal's signals.
fn step_back() -> Result<()> {
    let null =
        std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").context("open /dev/null")?;
    rustix::stdio::dup2_stdout(&null).context("let go of standard output")?;
    rustix::stdio::dup2_stderr(&null).context("let go of standard error")?;
    std::env::set_current_dir("/").context("let go of the directory")?;
    // setsid works, because the process is no group leader.
    let _ = rustix::process::setsid();
    Ok(())
}

/// How an image is imported.
#[derive(Debug, Clone, Default)]
struct Import {
    /// Its name; none: those in the source.
    tag: Option<String>,
    /// Names in the source are taken from other images.
    force: bool,
    /// Its id alone is printed.
    quiet: bool,
    /// This is a process in the background.
    detached: bool,
}

fn import(place: &Place, store: &Store, text: &str, what: Import) -> Result<()> {
    let Import { tag, force, quiet, detached } = what;
    let wish = if force || tag.is_some() { Wish::Operator } else { Wish::Source };
    let mut names: Vec<String> = tag.map(|tag| short(&tag).to_owned()).into_iter().collect();
    // Held until the end: for an archive compressed as a whole it keeps the decompressed file, which later reads
    // share.
    let found = if App::parse(text)?.is_some() { None } else { Some(source(text)?) };
    ensure!(
        !names.is_empty() || found.as_ref().is_none_or(|source| source.image_name().is_none()),
        "{:?} is at a registry: `wardian image pull` fetches it, and here `-t NAME` gives it another name as well",
        shown(text)
    );
    let uri = found.as_ref().map_or_else(|| address(store, text), |source| Ok(source.to_uri()))?;
    if names.is_empty() && found.is_some() {
        let opened = Source::parse(&uri)?.open(&Remote::default())?;
        names.extend(opened.names.iter().map(|name| short(name).to_owned()));
        let mut seen = HashSet::new();
        names.retain(|name| wardian_store::image::check_brought(name).is_ok() && seen.insert(name.clone()));
        ensure!(
            names.len() <= MOST_NAMES,
            "the source has {} names for its image, which is too many to be meant ({MOST_NAMES} are possible): say what \
             to call it with `-t NAME`",
            names.len()
        );
        let (files, others): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| is_like_a_file(name));
        names = others;
        for file in files {
            print::note(&format!(
                "the source calls its image {file:?}, which could also be a file that somebody means: it gets this name \
                 by `-t {file}` alone"
            ));
        }
        if wish == Wish::Source {
            names.iter().try_for_each(|name| store.check_free(name, &opened))?;
        }
    }
    let reference = Reference::parse(&uri)?;
    let ((image, replaced), progress) = watched(false, |progress| {
        let Some((first, others)) = names.split_first() else {
            return Ok((store.import(&reference, None, progress)?, Vec::new()));
        };
        let (image, old) = store.import_as(&reference, first, wish, progress)?;
        let mut replaced: Vec<Named> = old.into_iter().collect();
        for name in others {
            replaced.extend(store.import_as(&reference, name, wish, &Progress::default())?.1);
        }
        Ok((image, replaced))
    })?;
    if !place.json {
        replaced.iter().for_each(tell_replaced);
    }
    warn(&image);
    let watched = progress.layers();
    let answer = || report(place, store, &image, &names, &replaced, &watched, quiet);
    if detached {
        answer()?;
        step_back()?;
    }
    wait_durable(store, &image, &stays(&names, &image.shown))?;
    if detached { Ok(()) } else { answer() }
}

/// Tells that a name was another image's.
fn tell_replaced(old: &Named) {
    let stays = if old.pinned { "; the name stays pinned" } else { "" };
    print::note(&format!("{} was the image {} until now{stays}", old.name, print::short(&old.id)));
}

/// Prints the image's warning, if it has one.
fn warn(image: &Image) {
    if let Some(warning) = image.config.warning() {
        print::note(&warning);
    }
}

/// Returns a text on the state of an image that is in the store and not durable yet.
fn stays(names: &[String], source: &str) -> String {
    let again = format!("what is not on the disk yet is fetched again from {source} when somebody uses it");
    match names {
        [] => format!("the image is in the store without a name, and {again}; `wardian store gc` removes it"),
        names => format!(
            "the image is in the store as {}, and {again}; `wardian image rm` removes it",
            names.join(", ")
        ),
    }
}

/// Waits until an image is durable; Ctrl-C ends the wait with the message `stays`.
pub fn wait_durable(store: &Store, image: &Image, stays: &str) -> Result<()> {
    let progress = Arc::new(Progress::default());
    let cancel = Arc::clone(&progress);
    let interrupts = Interrupts::catch(move || cancel.cancel())?;
    let written = watch::spinner("writing to the disk", || store.wait_image_durable(image, &progress));
    // A signal after everything was written has no effect.
    if !matches!(written, Ok(true)) {
        interrupts.check(&format!("interrupted before all was written to the disk: {stays}"))?;
    }
    written?;
    Ok(())
}

/// The layers that an import has fetched; the others were there.
struct Fetched<'a> {
    /// Their chain ids.
    layers: Vec<&'a str>,
    /// Their bytes as stored.
    bytes: u64,
}

impl<'a> Fetched<'a> {
    fn of(watched: &'a [Arc<LayerProgress>]) -> Self {
        let done = || watched.iter().filter(|layer| layer.phase() == Phase::Done);
        Self {
            layers: done().map(|layer| layer.chain_id.as_str()).collect(),
            // What was read twice, after a failure, is a layer's once.
            bytes: done()
                .map(|layer| layer.bytes_read().min(if layer.size > 0 { layer.size } else { u64::MAX }))
                .sum(),
        }
    }
}

impl std::fmt::Display for Fetched<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.layers.len() {
            0 => f.write_str("was there"),
            count => write!(f, "{} fetched, {}", print::count(count, "layer"), print::bytes(self.bytes)),
        }
    }
}

/// Fetches each source, also after a failure.
fn prefetch(place: &Place, sources: &[String]) -> Result<ExitCode> {
    let store = place.open()?;
    let mut done = Vec::new();
    let result = each(sources, &mut |text| {
        let (image, watched) = fetch(&store, &address(&store, text)?)?;
        warn(&image);
        wait_durable(&store, &image, &stays(&[], &image.shown))?;
        let fetched = Fetched::of(&watched);
        if place.json {
            let Fetched { layers, bytes } = fetched;
            done.push(
                json!({"id": image.id, "source": image.shown, "fetched": layers, "fetched_bytes": bytes}),
            );
            return Ok(());
        }
        print::text(&format!("{}  {} ({fetched})\n", print::short(&image.id), image.shown))
    });
    place.leave(&store);
    if place.json {
        print::json(&done)?;
    }
    result
}

fn report(
    place: &Place,
    store: &Store,
    image: &Image,
    names: &[String],
    replaced: &[Named],
    watched: &[Arc<LayerProgress>],
    quiet: bool,
) -> Result<()> {
    // An image with an app has the id of an ordinary image under its name.
    let id = match names.first() {
        Some(name) => store.find_image(name)?.id,
        None => image.id.clone(),
    };
    let layers: Vec<LayerInfo> = image.chain_ids().iter().filter_map(|chain| store.layer(chain)).collect();
    if let Some(suspect) = layers.iter().find(|layer| layer.suspect) {
        bail!(
            "the layer {} may not be on the disk: the kernel reported a write error (see dmesg). It is given to nobody; \
             import the image again",
            suspect.chain_id
        );
    }
    if quiet && !place.json {
        return print::text(&format!("{}\n", print::short(&id)));
    }
    let fetched = |chain: &str| watched.iter().any(|l| l.chain_id == chain && l.phase() == Phase::Done);
    if place.json {
        let layers = layers.iter().map(|layer| {
            let mut value = serde_json::to_value(layer)?;
            value["fetched"] = fetched(&layer.chain_id).into();
            Ok(value)
        });
        let layers = layers.collect::<Result<Vec<Value>>>()?;
        let replaced =
            replaced.iter().map(|old| json!({"name": old.name, "id": old.id, "pinned": old.pinned}));
        let replaced: Vec<_> = replaced.collect();
        return print::json(&json!({
            "name": names.first(), "id": id, "source": image.shown, "layers": layers, "replaced": replaced,
        }));
    }
    let what =
        format!("{}, {}", print::count(layers.len(), "layer"), print::bytes(layers.iter().map(size).sum()));
    if names.is_empty() {
        print::note(
            "the image has no name, so the next `wardian store gc` removes it; `-t NAME` gives it one",
        );
        return print::text(&format!("{id}  ({what})\n"));
    }
    let line = |name: &String| format!("{name}  {}  ({what})\n", print::short(&id));
    print::text(&names.iter().map(line).collect::<String>())
}

/// Returns the bytes on the disk; as long as these are unknown, the bytes of the files.
fn size(layer: &LayerInfo) -> u64 {
    layer.disk_bytes.unwrap_or(layer.bytes)
}

fn layers_of(store: &Store, image: &Named) -> Vec<LayerInfo> {
    image.layers.iter().filter_map(|chain| store.layer(chain)).collect()
}

fn list(place: &Place, quiet: bool) -> Result<()> {
    let store = place.open_existing()?;
    let images = store.images()?;
    if quiet && !place.json {
        let lines: String = images.iter().map(|image| format!("{}\n", print::short(&image.id))).collect();
        return print::text(&lines);
    }
    let bytes = |image: &Named| layers_of(&store, image).iter().map(size).sum::<u64>();
    if place.json {
        let entry = |image: &Named| {
            json!({
                "name": image.name,
                "id": image.id,
                "source": shown(&image.source),
                "bytes": bytes(image),
                "layers": image.layers,
                "pinned": image.pinned,
                "imported_ms": image.imported_ms,
            })
        };
        return print::json(&images.iter().map(entry).collect::<Vec<_>>());
    }
    let row = |image: &Named| {
        [
            image.name.clone(),
            print::short(&image.id).to_owned(),
            print::bytes(bytes(image)),
            image.layers.len().to_string(),
            if image.pinned { "yes" } else { "-" }.to_owned(),
            print::age(image.imported_ms),
        ]
    };
    let rows: Vec<_> = images.iter().map(row).collect();
    print::text(&print::table(["NAME", "ID", "SIZE", "LAYERS", "PINNED", "IMPORTED"], &rows))
}

/// The least hex digits that are taken for the beginning of an image's id.
const LEAST_ID: usize = 4;

/// Returns the name in the store that is meant: that name, the one that an address or a short name of an image at a
/// registry has there, or that of the only image whose id begins so. One that the store does not have stays as it is.
fn meant(store: &Store, text: &str) -> String {
    let is_there = |name: &String| store.find_image(name).is_ok();
    if let Ok(name) = ImageName::of_uri(text) {
        return short(&name.to_string()).to_owned();
    }
    let text = text.to_owned();
    if is_there(&text) {
        return text;
    }
    let candidates = Known::of_host().registries().ok().and_then(|all| all.candidates(&text).ok());
    let mut names = candidates.into_iter().flatten().map(|name| short(&name.to_string()).to_owned());
    if let Some(name) = names.find(is_there) {
        return name;
    }
    if text.len() >= LEAST_ID && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let images = store.images().unwrap_or_default();
        let found: Vec<_> = images.iter().filter(|image| image.id.starts_with(&text)).collect();
        // An image may have several names.
        if let Some(first) = found.first()
            && found.iter().all(|image| image.id == first.id)
        {
            return first.name.clone();
        }
    }
    text
}

fn inspect(store: &Store, name: &str) -> Result<()> {
    let (image, documents) = store.read_image(name)?;
    let layers = layers_of(store, &image);
    // The documents were verified when they were read; one that is no JSON anyway is shown as text.
    let document = |text: &Option<String>| {
        text.as_ref().map(|text| serde_json::from_str(text).unwrap_or_else(|_| Value::from(text.as_str())))
    };
    print::json(&json!({
        "name": image.name,
        "id": image.id,
        "source": shown(&image.source),
        "pinned": image.pinned,
        "imported_ms": image.imported_ms,
        "bytes": layers.iter().map(size).sum::<u64>(),
        "layers": layers,
        "manifest": document(&documents.manifest),
        "config": document(&documents.config),
    }))
}

/// Does the work for each name, also after a failure, but not after a signal.
fn each(names: &[String], work: &mut dyn FnMut(&str) -> Result<()>) -> Result<ExitCode> {
    let mut failure = None;
    for name in names {
        let Err(error) = work(name) else { continue };
        let interrupted = exit::of(&error).is_some_and(|code| code > 128);
        if let Some(earlier) = failure.replace(error) {
            print::failure(&earlier);
        }
        if interrupted {
            break;
        }
    }
    failure.map_or(Ok(ExitCode::SUCCESS), Err)
}

fn tag(place: &Place, name: &str, new: &str) -> Result<()> {
    let store = place.open_existing()?;
    let (image, replaced) = store.tag(&meant(&store, name), new)?;
    if place.json {
        let replaced = replaced.map(|old| old.id);
        return print::json(&json!({ "name": image.name, "id": image.id, "replaced": replaced }));
    }
    replaced.iter().for_each(tell_replaced);
    print::text(&format!("{}  {}\n", print::short(&image.id), image.name))
}

fn pin(store: Store, pinned: bool) -> impl FnMut(&str) -> Result<()> {
    move |name| Ok(store.pin(&meant(&store, name), pinned)?)
}

fn remove(place: &Place, names: &[String], force: bool) -> Result<ExitCode> {
    let store = place.open_existing()?;
    let mut done = Vec::new();
    let result = each(names, &mut |name| {
        let name = &meant(&store, name);
        let layers = store.find_image(name)?.layers;
        let collected = store.remove_image(name, force)?;
        let stay = layers.iter().filter(|chain| store.layer(chain).is_some()).count();
        if place.json {
            let (gone, freed) = (&collected.layers, collected.freed_bytes);
            done.push(json!({"name": name, "layers": gone, "freed_bytes": freed, "layers_that_stay": stay}));
            return Ok(());
        }
        let (gone, freed) =
            (print::count(collected.layers.len(), "layer"), print::bytes(collected.freed_bytes));
        let stay = if stay > 0 {
            let verb = if stay == 1 { "stays" } else { "stay" };
            format!("; {} {verb}, used elsewhere", print::count(stay, "layer"))
        } else {
            String::new()
        };
        print::text(&format!("{name}: freed {freed} in {gone}{stay}\n"))
    });
    place.leave(&store);
    if place.json {
        print::json(&done)?;
    }
    result
}
