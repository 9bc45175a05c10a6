//! `wardian image pull`, `push`, `tags`, `login` and `logout`.

use super::export::Whole;
use super::{Fetched, each, stays, tell_replaced, wait_durable, warn, watched};
use crate::exit::mistake;
use crate::print;
use crate::store::Place;
use crate::watch::{self, Interrupts};
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args as ClapArgs;
use serde_json::json;
use std::io::{IsTerminal as _, Read as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use wardian_image::export::{self, Compression};
use wardian_image::reference::short;
use wardian_image::registry::{ImageName, Known, Login as Kept, Sent};
use wardian_image::{Error, Opening, RegistryError, Source, Watch, Way};
use wardian_store::{Pull, Reference};

/// The longest password in bytes; some are tokens of some kilobytes.
const MOST_PASSWORD: u64 = 64 << 10;

/// `wardian image login`.
#[derive(Debug, ClapArgs)]
pub struct Login {
    /// HOST or HOST:PORT; docker.io for Docker Hub
    #[arg(value_name = "REGISTRY")]
    registry: String,
    /// User name [default: asked for on the terminal]
    #[arg(short, long, value_name = "NAME")]
    username: Option<String>,
    /// Read the password from standard input instead of the terminal
    #[arg(long)]
    password_stdin: bool,
}

/// `wardian image push`.
#[derive(Debug, ClapArgs)]
pub struct Push {
    /// Its name in the store
    name: String,
    /// Its name at the registry: HOST[:PORT]/REPOSITORY[:TAG], or USER/REPOSITORY for Docker Hub [default: its name in the
    /// store, fully qualified: busybox is docker.io/library/busybox:latest]
    #[arg(value_name = "DEST")]
    dest: Option<String>,
    /// Compression for layers that must be re-created: gzip (readable everywhere) or zstd
    #[arg(long, value_name = "KIND", default_value = "gzip")]
    compression: Compression,
    /// Print only the digest
    #[arg(short, long)]
    quiet: bool,
}

/// Pulls each image, also after a failure.
pub fn pull(place: &Place, names: &[String], quiet: bool) -> Result<ExitCode> {
    let store = place.open()?;
    let mut done = Vec::new();
    let result = each(names, &mut |text| {
        let reference = Reference::parse(text)?.pulled(Pull::Always);
        ensure!(
            reference.is_pulled() && !reference.has_app(),
            "{text:?} is not an image at a registry; `wardian image import` brings in files and directories"
        );
        let (image, progress) =
            watched(!quiet && !place.json, |progress| store.import(&reference, None, progress))?;
        warn(&image);
        let full =
            ImageName::of_uri(&image.shown).map_or_else(|_| image.shown.clone(), |name| name.to_string());
        let name = short(&full);
        wait_durable(&store, &image, &stays(&[name.to_owned()], &image.shown))?;
        let (layers, replaced) = (progress.layers(), progress.replaced());
        let fetched = Fetched::of(&layers);
        if place.json {
            let Fetched { layers, bytes } = fetched;
            let digest =
                ImageName::of_uri(&store.find_image(name)?.source)?.digest().map(ToString::to_string);
            done.push(json!({
                "id": image.id, "name": name, "digest": digest, "fetched": layers, "fetched_bytes": bytes,
                "replaced": replaced.map(|old| old.id),
            }));
            return Ok(());
        }
        replaced.iter().for_each(tell_replaced);
        if quiet {
            return print::text(&format!("{}\n", image.id));
        }
        print::text(&format!("{}  {name} ({fetched})\n", print::short(&image.id)))
    });
    place.leave(&store);
    if place.json {
        print::json(&done)?;
    }
    result
}

/// Pushes an image of the store.
pub fn push(place: &Place, asked_for: &Push) -> Result<()> {
    let Push { name, dest, compression, quiet } = asked_for;
    let parsed = |name: &str| match name.starts_with("docker://") {
        true => ImageName::of_uri(name),
        false => ImageName::parse(name),
    };
    let dest = dest.as_deref().map(parsed).transpose().map_err(mistake)?;
    let (known, remote) = place.registries()?;
    let Whole { store, named, documents, image, dirs } = Whole::open(place, name)?;
    let dest = dest.map_or_else(|| parsed(&named.name), Ok).map_err(mistake)?;
    let dirs: Vec<_> = dirs.iter().map(std::os::fd::AsFd::as_fd).collect();
    let watch = Arc::new(Watch::default());
    let cancel = Arc::clone(&watch);
    let interrupts = Interrupts::catch(move || cancel.cancel())?;
    let progress = export::Progress::default();
    let work = || {
        let cancelled = || watch.is_cancelled();
        let source = origin(&named.source);
        let from = source.as_ref().and_then(Source::image_name);
        let pusher = known.pusher(&remote, &dest, from)?;
        // Without them the layers are exported.
        let puller = from.and_then(|from| known.puller(&remote, from, None).ok());
        let opening = Opening { cancelled: &cancelled, ..Opening::default() };
        let opened = source.as_ref().filter(|_| from.is_none());
        let opened = opened.and_then(|source| source.open_in(&remote, &opening).ok());
        let pushing = export::Pushing {
            layers: &dirs,
            chain_ids: &image.chain_ids(),
            manifest: documents.manifest.as_deref().map(str::as_bytes),
            config: documents.config.as_deref().map(str::as_bytes),
            puller: puller.as_ref(),
            opened: opened.as_ref(),
            compression: *compression,
            scratch: &|| store.scratch(),
            in_place: &|| store.is_in_place(&image),
        };
        export::push(&pushing, &pusher, &progress, &watch)
    };
    let pushed = watch::bar("pushing", || progress.bytes(), work);
    if pushed.is_err() {
        interrupts.check(
            "interrupted: the image was not pushed, and its tag is what it was; layers that the registry has whole are not sent \
             again",
        )?;
    }
    let pushed = pushed?;
    drop(interrupts);
    let dest = dest.to_string();
    if place.json {
        return print::json(&json!({
            "name": dest, "digest": pushed.digest, "id": pushed.config.as_hex(), "layers": pushed.layers,
        }));
    }
    if *quiet {
        return print::text(&format!("{}\n", pushed.digest));
    }
    let sum = |how| pushed.layers.iter().filter(move |layer| layer.how == how);
    let bytes = sum(Sent::Sent).map(|layer| layer.size).sum();
    let mut what = match sum(Sent::Sent).count() {
        0 => vec!["no layer had to be sent".to_owned()],
        sent => vec![format!("{} sent, {}", print::count(sent, "layer"), print::bytes(bytes))],
    };
    let mounted = sum(Sent::Mounted).count();
    if mounted > 0 {
        what.push(format!("{} mounted from another repository", print::count(mounted, "layer")));
    }
    let exported = pushed.layers.iter().filter(|layer| layer.exported).count();
    if exported > 0 {
        what.push(format!("{} re-created", print::count(exported, "layer")));
    }
    print::text(&format!("{}  {dest} ({})\n", pushed.digest, what.join("; ")))
}

/// Returns where an image came from, if its layers may be had from there as they are.
fn origin(source: &str) -> Option<Source> {
    if wardian_image::App::parse(source).ok()?.is_some() {
        return None;
    }
    // A directory would be scanned as a whole, and has no blobs.
    Source::parse(source).ok().filter(|source| source.way() != Way::Tree)
}

/// Runs what asks a registry; Ctrl-C cancels it.
fn asked<T>(work: impl FnOnce(&(dyn Fn() -> bool + Sync)) -> Result<T, wardian_image::Error>) -> Result<T> {
    let cancelled = Arc::new(AtomicBool::new(false));
    let cancel = Arc::clone(&cancelled);
    let interrupts = Interrupts::catch(move || cancel.store(true, Ordering::Release))?;
    let done = work(&|| cancelled.load(Ordering::Acquire));
    if done.is_err() {
        interrupts.check("interrupted: nothing was changed")?;
    }
    Ok(done?)
}

/// Lists the tags of a repository.
pub fn tags(place: &Place, text: &str) -> Result<()> {
    let (known, remote) = place.registries()?;
    let names = match text.starts_with("docker://") {
        true => vec![ImageName::of_uri(text)?],
        false => known.registries()?.candidates(text).map_err(wardian_image::Error::from)?,
    };
    let mut failure = None;
    for name in names {
        match asked(|cancelled| known.puller(&remote, &name, None)?.tags(cancelled)) {
            Err(error) => failure = failure.or(Some(error)),
            Ok(tags) if place.json => {
                return print::json(&json!({ "repository": name.without_tag(), "tags": tags }));
            }
            Ok(tags) => {
                let lines: String = tags.iter().map(|tag| format!("{}\n", print::tame(tag))).collect();
                return print::text(&lines);
            }
        }
    }
    failure.map_or(Ok(()), Err)
}

/// Keeps a login that the registry has accepted.
pub fn login(place: &Place, asked_for: &Login) -> Result<()> {
    let (known, remote) = place.registries()?;
    let user = match &asked_for.username {
        Some(user) => user.clone(),
        None => {
            ensure!(std::io::stdin().is_terminal(), "say who logs in, with --username NAME");
            ask("User name: ", false)?
        }
    };
    ensure!(!user.is_empty() && !user.contains(':'), "a user name is not empty and has no colon in it");
    let password = if asked_for.password_stdin {
        let mut text = String::new();
        std::io::stdin().take(MOST_PASSWORD).read_to_string(&mut text).context("read the password")?;
        text.trim_end_matches(['\n', '\r']).to_owned()
    } else {
        ensure!(std::io::stdin().is_terminal(), "give the password on standard input, with --password-stdin");
        ask("Password: ", true)?
    };
    ensure!(!password.is_empty(), "the password is empty");
    let login = Kept::Basic { user, password };
    let tried = asked(|cancelled| known.try_login(&remote, &asked_for.registry, &login, cancelled));
    if let Some(Error::Registry { source }) = tried.as_ref().err().and_then(|error| error.downcast_ref())
        && let RegistryError::Login { host, said, .. } = &**source
    {
        bail!("{host} does not accept this user name and password{said}");
    }
    if !tried? {
        print::note(&format!(
            "{} asks nobody for a password, so nothing can be said of this one",
            print::tame(&asked_for.registry)
        ));
    }
    known.credentials().keep(&asked_for.registry, &login)?;
    let file = known.credentials().own().display();
    if place.json {
        return print::json(&json!({ "registry": asked_for.registry, "file": file.to_string() }));
    }
    print::text(&format!("logged in at {}, kept in {file}\n", print::tame(&asked_for.registry)))
}

/// Forgets a login.
pub fn logout(place: &Place, registry: &str) -> Result<()> {
    let known = Known::of_host();
    let file = known.credentials().own().display().to_string();
    ensure!(
        known.credentials().forget(registry)?,
        "{file} has no login for {}; podman and docker store theirs in other files",
        print::tame(registry)
    );
    // Docker's users take it that nobody is logged in any more.
    if known.credentials().find(registry, "").is_ok_and(|login| login.is_some()) {
        print::note("another file, of podman or docker, still has a login for it, which is used from now on");
    }
    if place.json {
        return print::json(&json!({ "registry": registry, "file": file }));
    }
    print::text(&format!("logged out of {}\n", print::tame(registry)))
}

/// Asks a question on the terminal; a secret answer is not shown.
fn ask(question: &str, secret: bool) -> Result<String> {
    if secret {
        return rpassword::prompt_password(question).context("read the password");
    }
    print::say(question);
    let mut text = String::new();
    std::io::stdin().read_line(&mut text).context("read the user name")?;
    Ok(text.trim_end().to_owned())
}
