//! Apps: a layer that is fetched on its own, from a server or a file, and lies on top of an image.

use std::fmt;
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use crate::bounds::watch::Watch;
use crate::digest::Digest;
use crate::disk::stored;
use crate::error::{Error, show, without_secrets};
use crate::format::archive::Section;
use crate::overlay::base::Base;
use crate::remote::{Fetch, Location, NamedBy, Remote, Stop, Validator};
use crate::source::address::{open_tar, state_of};
use crate::source::layer::{Blob, Identity, Layer, same};
use crate::unpack::entries::{Rules, Unpacked, unpack};
use crate::unpack::pipeline::{self, Input, Whole};

const PRELOADED: &str = "preloaded+layer:";
/// What [`App`]'s `Display` must encode in a value or in a path so that it ends where it ends.
const RESERVED: &AsciiSet = &CONTROLS.add(b' ').add(b'#').add(b'%').add(b'&').add(b'+').add(b'?');

/// The app of an address that has one, which looks like either of
///
/// * `preloaded+layer:///abs/rootfs.tar?layer=URL&layer_path=DIR&layer_digest=HEX`, as in Cloud Foundry's "OCI mode": a
///   gzip tar (the droplet) whose names are relative to DIR, which the root file system has;
/// * `IMAGE?app=FILE_OR_URL&app_path=/DIR[&app_digest=HEX]`: a tar, plain or compressed by gzip or zstd, on top of any
///   image. What is missing of DIR is made.
///
/// URLs are `http`, `https` or `file`; values are form-encoded (`%26` is `&`, `+` is a blank); HEX is the sha256 of the
/// bytes as stored, 64 lower-case hex digits. `Display` is the address without its secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct App {
    spelling: &'static Spelling,
    /// Without its secrets: to be shown.
    image: String,
    place: Place,
    /// None for the root.
    base: Option<Base>,
    digest: Option<Digest>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Url(Location),
    File(PathBuf),
}

/// What differs between the two kinds of address.
#[derive(Debug, PartialEq, Eq)]
struct Spelling {
    /// The keys of the query: where the app is, its base directory, its digest.
    keys: [&'static str; 3],
    unknown: &'static str,
    /// Whether a path stands for a file, and the digest may be left out.
    short: bool,
    only_gzip: bool,
    make_missing: bool,
}

const DROPLET: Spelling = Spelling {
    keys: ["layer", "layer_path", "layer_digest"],
    unknown: "it is unknown; known are layer, layer_path and layer_digest",
    short: false,
    only_gzip: true,
    make_missing: false,
};
const APP: Spelling = Spelling {
    keys: ["app", "app_path", "app_digest"],
    unknown: "it is unknown; known are app, app_path and app_digest",
    short: true,
    only_gzip: false,
    make_missing: true,
};

impl App {
    /// The address of the image below and the app, if `uri` has an app; none for an ordinary address. The image of the
    /// second kind is given back as it was written, and is empty if nothing was.
    ///
    /// # Errors
    /// [`Error::NoParameter`], [`Error::Parameter`] (also for a key of the first kind in an address of the second) and
    /// [`Error::App`], which name the key; [`Error::Source`] for the rest of the address. None of them shows a secret.
    pub fn parse(uri: &str) -> Result<Option<(String, Self)>, Error> {
        let (rest, query) = uri.split_once('?').unwrap_or((uri, ""));
        if let Some(scheme) = rest.get(..PRELOADED.len())
            && scheme.eq_ignore_ascii_case(PRELOADED)
        {
            let path = preloaded(&rest[PRELOADED.len()..])
                .map_err(|why| Error::Source { uri: without_secrets(uri), why })?;
            let image = format!("{PRELOADED}//{}", utf8_percent_encode(&path, RESERVED));
            let app = Self::read(&DROPLET, &image, query)?;
            return Ok(Some((format!("tar://{path}"), app)));
        }
        if let Some(key) = DROPLET.keys.into_iter().find(|key| has(query, key)) {
            let why =
                "it belongs to preloaded+layer; with other images app, app_path and app_digest are meant";
            return Err(Error::Parameter { key: key.to_owned(), why });
        }
        if !APP.keys.into_iter().any(|key| has(query, key)) {
            return Ok(None);
        }
        Ok(Some((rest.to_owned(), Self::read(&APP, rest, query)?)))
    }

    /// The address of an image with an app on top, in the second spelling: `app` is an absolute path or a URL, `digest` the
    /// hex digits of its sha256. Nothing is checked but by [`App::parse`].
    pub fn address(image: &str, app: &str, path: &str, digest: Option<&str>) -> String {
        let [place_key, path_key, digest_key] = APP.keys;
        let value = |text| utf8_percent_encode(text, RESERVED);
        let digest = digest.map(|hex| format!("&{digest_key}={}", value(hex))).unwrap_or_default();
        format!("{image}?{place_key}={}&{path_key}={}{digest}", value(app), value(path))
    }

    fn read(spelling: &'static Spelling, image: &str, query: &str) -> Result<Self, Error> {
        let [place_key, path_key, digest_key] = spelling.keys;
        let [place, path, digest] = values(spelling, query)?;
        let needed = |key, value: Option<String>| {
            value.ok_or_else(|| Error::NoParameter { key, uri: without_secrets(image) })
        };
        let bad = |key: &str, why| Error::Parameter { key: key.to_owned(), why };
        let named = |key| move |source| Error::App { key, source: Box::new(source) };
        let place = needed(place_key, place)?;
        let place = if spelling.short && place.starts_with('/') {
            Place::File(place.into())
        } else {
            let location = Location::parse(&place).map_err(named(place_key))?;
            location.file().map_or(Place::Url(location), Place::File)
        };
        let path = needed(path_key, path)?;
        if spelling.short && !path.starts_with('/') {
            return Err(bad(path_key, "it must be absolute"));
        }
        let mut base = Base::parse(&path).map_err(named(path_key))?;
        if let Some(base) = &mut base {
            base.make_missing = spelling.make_missing;
            base.key = Some(path_key);
        }
        let digest = match digest {
            Some(hex) => Some(
                format!("sha256:{hex}")
                    .parse()
                    .map_err(|_| bad(digest_key, "expected 64 lower-case hex digits"))?,
            ),
            None if spelling.short => None,
            None => return Err(Error::NoParameter { key: digest_key, uri: without_secrets(image) }),
        };
        Ok(Self { spelling, image: without_secrets(image), place, base, digest })
    }

    /// Whether [`App::layer`] has to ask a server what tells this app from others: a URL without a digest.
    pub fn asks_server(&self) -> bool {
        self.digest.is_none() && matches!(self.place, Place::Url(_))
    }

    fn by_digest(&self, digest: &Digest) -> String {
        format!("blob:{digest} {}", self.directory())
    }

    fn by_file(&self, state: &Digest) -> String {
        format!("file:{state} {}", self.directory())
    }

    fn directory(&self) -> String {
        format!("base-directory:{}", self.base.as_ref().map(ToString::to_string).unwrap_or_default())
    }

    /// The app as a layer on top of the layer with the chain id `below` (hex). A server is only asked if there is no
    /// digest: for what tells this state of the file from others.
    ///
    /// Its own chain id is the sha256 of one line: `below`, a blank, and
    ///
    /// * with a digest `blob:<digest> base-directory:<directory>`: neither the URL, which may expire, nor the address'
    ///   kind make another tree;
    /// * of a file `file:<digest of its path and state> base-directory:<directory>`;
    /// * of a URL `url:<digest of the URL> <validator> base-directory:<directory>`, where the validator is `etag:` or
    ///   `modified:` with a digest of what the server said.
    ///
    /// The directory is the last and all before it has a fixed width, so no two apps have the same line. What other
    /// chain ids are made of begins with `sha256:` (OCI, and layers with a base directory) or with `/` (a tar file's
    /// path), this with a hex digit. And a diff id, which is the chain id of the lowest layer, is the digest of a tar
    /// stream, which no such line is.
    ///
    /// It blocks, at worst as long as a fetch does (see [`Remote`]); cancelling `watch` ends that.
    ///
    /// # Errors
    /// [`Error::App`] around whatever is wrong with the file or the server; [`Error::Cancelled`].
    pub fn layer(&self, below: &str, remote: &Remote, watch: &Watch) -> Result<Layer, Error> {
        let named = |source| self.blame(source);
        let (what, origin) = match (&self.place, &self.digest) {
            (Place::Url(location), Some(digest)) => {
                (self.by_digest(digest), Origin::Url { location: location.clone(), state: None })
            }
            (Place::File(path), Some(digest)) => {
                (self.by_digest(digest), Origin::File { path: path.clone(), state: None })
            }
            (Place::File(path), None) => {
                let (path, state) = state_of(path).map_err(named)?;
                (self.by_file(&state.of_path(&path)), Origin::File { path, state: Some(state) })
            }
            (Place::Url(location), None) => {
                let state = remote.validator(location, &Stop::new(watch)).map_err(named)?;
                let url = Digest::of(location.url().as_str().as_bytes());
                let validator = match &state.0 {
                    Validator::Etag(etag) => format!("etag:{}", Digest::of(etag.as_bytes())),
                    Validator::Modified { date, length } => {
                        format!(
                            "modified:{}",
                            Digest::of(format!("{} {date}", length.unwrap_or_default()).as_bytes())
                        )
                    }
                };
                let what = format!("url:{url} {validator} {}", self.directory());
                (what, Origin::Url { location: location.clone(), state: Some(state) })
            }
        };
        let chain_id = Digest::of(format!("{below} {what}").as_bytes()).as_hex().to_owned();
        let droplet = Droplet { app: self.clone(), origin, remote: remote.clone() };
        Ok(Layer::alone(chain_id, Blob::App(Arc::new(droplet)), self.base.clone()))
    }

    /// Names the part of the address that an error is about.
    fn blame(&self, error: Error) -> Error {
        let [place, _, digest] = self.spelling.keys;
        let key = match &error {
            Error::Cancelled { .. } | Error::App { .. } => return error,
            Error::DigestMismatch { .. } => digest,
            _ => place,
        };
        Error::App { key, source: Box::new(error) }
    }
}

impl fmt::Display for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [place, path, digest] = self.spelling.keys;
        let shown = match &self.place {
            Place::Url(location) => location.to_string(),
            Place::File(path) if self.spelling.short => path.display().to_string(),
            Place::File(path) => Location::of_file(path).map(|url| url.to_string()).unwrap_or_default(),
        };
        let shown = utf8_percent_encode(&shown, RESERVED);
        write!(f, "{}?{place}={shown}&{path}=/", self.image)?;
        if let Some(base) = &self.base {
            write!(f, "{}", utf8_percent_encode(&base.to_string(), RESERVED))?;
        }
        match &self.digest {
            Some(hex) => write!(f, "&{digest}={}", hex.as_hex()),
            None => Ok(()),
        }
    }
}

/// An address without what may be secret in it: of one with an app its `Display`, of any other its text (up to 300
/// characters) without a user and, unless that is part of a local path, without a query.
pub fn shown(uri: &str) -> String {
    match App::parse(uri) {
        Ok(Some((_, app))) => app.to_string(),
        _ => without_secrets(uri),
    }
}

/// Whether what follows an address' path has a key of an app's.
pub(crate) fn is_in(query: &str) -> bool {
    let query = query.strip_prefix(['?', '#']).unwrap_or(query);
    DROPLET.keys.into_iter().chain(APP.keys).any(|key| has(query, key))
}

/// Whether a query has that very key: with another it is the name of a file, in which a `?` may be.
fn has(query: &str, key: &str) -> bool {
    let is = |pair: &str| percent_decode_str(pair.split('=').next().unwrap_or_default()).eq(key.bytes());
    query.split('&').any(is)
}

/// The path of the root file system, from what follows the scheme.
fn preloaded(rest: &str) -> Result<String, &'static str> {
    // An authority, which would be a host, is empty; without one Go's url.Parse sees the same path.
    let path = rest.strip_prefix("//").unwrap_or(rest);
    if !path.starts_with('/') {
        return Err("the path of the root file system must be absolute, without a host");
    }
    let path = decode(path)?;
    if path.contains('?') {
        // It is given back as the text of an address, which must not have an app of its own.
        return Err("the path of the root file system must not contain a ?: a query begins there");
    }
    Ok(path)
}

/// Percent-decodes strictly: what is no escape, or no UTF-8, would be read differently elsewhere.
fn decode(text: &str) -> Result<String, &'static str> {
    let escapes = text.split('%').skip(1);
    if !escapes.into_iter().all(|part| part.len() > 1 && part.bytes().take(2).all(|b| b.is_ascii_hexdigit()))
    {
        return Err("a % that begins no escape must be written %25");
    }
    if text.contains('#') {
        return Err("a # must be written %23");
    }
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| "it is not UTF-8")?;
    if decoded.contains('\0') {
        return Err("it contains a NUL byte");
    }
    Ok(decoded.into_owned())
}

/// The values of a query, in the order of the spelling's keys.
fn values(spelling: &Spelling, query: &str) -> Result<[Option<String>; 3], Error> {
    let mut found = [None, None, None];
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        // A URL that was not encoded falls apart at its &, and what follows may be a secret without a value.
        let ordinary =
            key.len() <= 64 && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.%".contains(&b));
        let shown = if ordinary && pair.contains('=') { show(key.as_bytes()) } else { "(not shown)".into() };
        let bad = |why| Error::Parameter { key: shown.clone(), why };
        let key = decode(&key.replace('+', " ")).map_err(bad)?;
        let Some(index) = spelling.keys.iter().position(|known| *known == key) else {
            return Err(bad(spelling.unknown));
        };
        let bad = |why| Error::Parameter { key, why };
        if found[index].is_some() {
            return Err(bad("it is there twice"));
        }
        match decode(&value.replace('+', " ")) {
            Ok(value) if value.is_empty() => return Err(bad("it is empty")),
            Ok(value) => found[index] = Some(value),
            Err(why) => return Err(bad(why)),
        }
    }
    Ok(found)
}

/// What the layer of an app is unpacked from.
#[derive(Debug)]
pub(crate) struct Droplet {
    app: App,
    origin: Origin,
    remote: Remote,
}

/// Where the bytes are, and what they must be if there is no digest.
#[derive(Debug)]
enum Origin {
    Url { location: Location, state: Option<(Validator, Option<u64>)> },
    File { path: PathBuf, state: Option<Identity> },
}

impl Droplet {
    /// Bytes as stored, as far as that is known.
    pub(crate) fn size(&self) -> Option<u64> {
        match &self.origin {
            Origin::Url { state, .. } => state.as_ref()?.1,
            Origin::File { state: Some(state), .. } => Some(state.size),
            Origin::File { path, state: None } => path.metadata().ok().map(|meta| meta.len()),
        }
    }

    pub(crate) fn unpack(
        &self,
        into: BorrowedFd<'_>,
        rules: &Rules<'_>,
        watch: &Watch,
    ) -> Result<Unpacked, Error> {
        let unpacked = match &self.origin {
            Origin::Url { location, state } => {
                let stop = Stop::new(watch);
                let fetch = Fetch {
                    remote: &self.remote,
                    locations: std::slice::from_ref(location),
                    by: NamedBy::Caller,
                    mirrors_of: None,
                    digest: self.app.digest.is_some(),
                    size: None,
                    limit: rules.limits.max_bytes,
                    validator: state.as_ref().map(|(validator, _)| validator),
                    stop: &stop,
                };
                let what = location.to_string();
                self.unpack_from(Box::new(fetch.start()), None, &what, &stop, into, rules)
            }
            Origin::File { path, state } => {
                self.unpack_file(path, state.as_ref(), into, rules, &Stop::new(watch))
            }
        };
        unpacked.map_err(|error| self.app.blame(error))
    }

    fn unpack_file(
        &self,
        path: &Path,
        state: Option<&Identity>,
        into: BorrowedFd<'_>,
        rules: &Rules<'_>,
        stop: &Stop<'_>,
    ) -> Result<Unpacked, Error> {
        let what = path.display().to_string();
        let file = Arc::new(open_tar(path)?.0);
        let now = || {
            let meta = file.metadata();
            meta.map_err(|source| Error::Io { op: "stat", path: what.clone(), source })
                .map(|m| Identity::of(&m))
        };
        let before = now()?;
        let unchanged = |now: &Identity| match state {
            Some(state) if state != now => Err(Error::Changed { path: what.clone() }),
            _ => Ok(()),
        };
        unchanged(&before)?;
        let limit = rules.limits.max_bytes;
        if before.size > limit {
            return Err(Error::layer_bytes(format!("the size of {what}"), limit));
        }
        let section = Section::new(Arc::clone(&file), 0, before.size);
        let whole = Some(stored::of(&file, path)?);
        let unpacked = self.unpack_from(Box::new(section), whole, &what, stop, into, rules)?;
        unchanged(&now()?)?;
        Ok(unpacked)
    }

    fn unpack_from(
        &self,
        reader: Box<dyn Read + Send + '_>,
        whole: Option<Whole>,
        what: &str,
        stop: &Stop<'_>,
        into: BorrowedFd<'_>,
        rules: &Rules<'_>,
    ) -> Result<Unpacked, Error> {
        let digest = self.app.digest.as_ref();
        let only_gzip = self.app.spelling.only_gzip;
        let budget = Some(&**rules.budget);
        let (size, digested) = (None, digest.is_some());
        let keep_in = matches!(self.origin, Origin::Url { .. }).then_some(into);
        let input = Input { reader, what, size, digest: digested, only_gzip, budget, keep_in, stop, whole };
        // Without a digest only the end's mark shows that nothing is missing.
        let rules = Rules { strict: digest.is_none(), ..*rules };
        let (counts, digests) = pipeline::run(input, |pieces| unpack(pieces, into, &rules))?;
        if let Some(digest) = digest {
            same(what, digest, digests.blob.as_ref().unwrap_or(&digests.plain))?;
        }
        Ok(counts.with(digests))
    }
}
