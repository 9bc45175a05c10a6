//! `wardian image load`, and imports from standard input.

use super::{Import, each, import, source};
use crate::exit::mistake;
use crate::print;
use crate::store::Place;
use anyhow::{Context as _, Result, bail};
use std::io::IsTerminal as _;
use std::process::ExitCode;
use wardian_image::{Error, Remote, Source};
use wardian_store::{Inbox, Store};

/// The name of standard input, and of standard output.
pub const INPUT: &str = "-";
/// The most images of an archive: each is imported, and gets names.
const MOST_IMAGES: usize = 256;

/// Reads all of standard input into a file of the store, which lives as long as what is returned with its path.
pub fn input(store: &Store) -> Result<(Inbox, String)> {
    let mut stdin = std::io::stdin().lock();
    if std::io::stdin().is_terminal() {
        return Err(mistake(anyhow::anyhow!(
            "standard input is a terminal: name the file (`wardian image load -i FILE`), or send it here"
        )));
    }
    let mut inbox = store.inbox().context("make a file in the store")?;
    std::io::copy(&mut stdin, &mut inbox.file).context("read standard input")?;
    let path = inbox.path.to_str().context("the path of the store is not UTF-8")?.to_owned();
    Ok((inbox, path))
}

/// Loads all images of a file.
pub fn load(place: &Place, from: Option<&str>, quiet: bool) -> Result<ExitCode> {
    let store = place.open()?;
    let done = match from.filter(|from| *from != INPUT) {
        Some(path) => load_file(place, &store, path, quiet),
        None => input(&store).and_then(|(_inbox, path)| load_file(place, &store, &path, quiet)),
    };
    place.leave(&store);
    done
}

fn load_file(place: &Place, store: &Store, path: &str, quiet: bool) -> Result<ExitCode> {
    let uri = source(path)?.to_uri();
    let what = Import { force: true, quiet, ..Import::default() };
    let (names, nameless) = match Source::parse(&uri)?.open(&Remote::default()) {
        Err(Error::Several { names, nameless, .. }) => (names, nameless),
        // The import says what is wrong.
        _ => return import(place, store, &uri, what).map(|()| ExitCode::SUCCESS),
    };
    if names.len() > MOST_IMAGES {
        bail!("there are {} images in it, of which {MOST_IMAGES} are possible", names.len());
    }
    if nameless > 0 {
        print::note(&format!("left out: {} without a name", print::count(nameless, "image")));
    }
    if path.contains(':') {
        bail!(
            "{path} has several images, and a colon in its path, which ends the path in an address: `wardian image load <FILE`"
        );
    }
    let addresses: Vec<String> = names.iter().map(|name| format!("{uri}:{name}")).collect();
    each(&addresses, &mut |address| import(place, store, address, what.clone()))
}
