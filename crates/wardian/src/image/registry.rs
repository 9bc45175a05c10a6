//! `wardian image pull`, `tags`, `login` and `logout`.

use super::{each, stays, wait_durable, warn, watched};
use crate::print;
use crate::store::Place;
use crate::watch::Interrupts;
use anyhow::{Context as _, Result, ensure};
use clap::Args as ClapArgs;
use serde_json::json;
use std::io::{IsTerminal as _, Read as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use wardian_image::reference::short;
use wardian_image::registry::{ImageName, Known, Login as Kept};
use wardian_store::{Phase, Pull, Reference};

/// The longest password in bytes; some are tokens of some kilobytes.
const MOST_PASSWORD: u64 = 64 << 10;

/// `wardian image login`.
#[derive(Debug, ClapArgs)]
pub struct Login {
    /// HOST or HOST:PORT; docker.io for Docker Hub
    #[arg(value_name = "REGISTRY")]
    registry: String,
    /// The user name; without it, it is asked for on the terminal
    #[arg(short, long, value_name = "NAME")]
    username: Option<String>,
    /// Read the password from standard input; without it, it is asked for on the terminal
    #[arg(long)]
    password_stdin: bool,
}

/// Pulls each image, also after a failure.
pub fn pull(place: &Place, names: &[String], quiet: bool) -> Result<ExitCode> {
    let store = place.open()?;
    let mut done = Vec::new();
    let result = each(names, &mut |text| {
        let reference = Reference::parse(text)?.pulled(Pull::Always);
        ensure!(reference.is_pulled() && !reference.has_app(), "{text:?} is not an image at a registry");
        let (image, layers) = watched(|progress| store.import(&reference, None, progress))?;
        warn(&image);
        let full =
            ImageName::of_uri(&image.shown).map_or_else(|_| image.shown.clone(), |name| name.to_string());
        let name = short(&full);
        wait_durable(&store, &image, &stays(&[name.to_owned()], &image.shown))?;
        let fetched: Vec<_> = layers.iter().filter(|layer| layer.phase() == Phase::Done).collect();
        let bytes = fetched.iter().map(|layer| layer.bytes_read()).sum();
        if place.json {
            let layers: Vec<_> = fetched.iter().map(|layer| &layer.chain_id).collect();
            let digest =
                ImageName::of_uri(&store.find_image(name)?.source)?.digest().map(ToString::to_string);
            done.push(json!({
                "id": image.id, "name": name, "digest": digest, "fetched": layers, "fetched_bytes": bytes,
            }));
            return Ok(());
        }
        if quiet {
            return print::text(&format!("{}\n", image.id));
        }
        let what = match fetched.len() {
            0 => "was there".to_owned(),
            count => format!("{} fetched, {}", print::count(count, "layer"), print::bytes(bytes)),
        };
        print::text(&format!("{}  {name} ({what})\n", print::short(&image.id)))
    });
    place.leave(&store);
    if place.json {
        print::json(&done)?;
    }
    result
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
    asked(|cancelled| known.try_login(&remote, &asked_for.registry, &login, cancelled))?;
    known.credentials().keep(&asked_for.registry, &login)?;
    let file = known.credentials().own().display();
    print::text(&format!("logged in at {}, kept in {file}\n", print::tame(&asked_for.registry)))
}

/// Forgets a login.
pub fn logout(registry: &str) -> Result<()> {
    let known = Known::of_host();
    let file = known.credentials().own().display().to_string();
    ensure!(
        known.credentials().forget(registry)?,
        "{file} has no login for {}; logins of podman and docker are in files of theirs",
        print::tame(registry)
    );
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
