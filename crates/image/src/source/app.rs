//! Apps: a layer that is fetched separately, from a server or a file, and lies on top of an image.

use std::fmt;
use std::path::PathBuf;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::query::{APP, DROPLET, Spelling, decode, has, values, without_secrets};
use crate::digest::Digest;
use crate::disk::file::Identity;
use crate::error::Error;
use crate::overlay::base::Base;
use crate::remote::{Location, Remote, Validator};

const PRELOADED: &str = "preloaded+layer:";
/// Characters that [`App`]'s `Display` must encode in a value or in a path, because they would end or change it.
const RESERVED: &AsciiSet = &CONTROLS.add(b' ').add(b'#').add(b'%').add(b'&').add(b'+').add(b'?');

/// The app of an address, which has one of two forms:
///
/// * `preloaded+layer:///abs/rootfs.tar?layer=URL&layer_path=DIR&layer_digest=HEX`, as in Cloud Foundry's "OCI mode": a
///   gzip tar (the droplet) whose names are relative to DIR, which the root file system has;
/// * `IMAGE?app=FILE_OR_URL&app_path=/DIR[&app_digest=HEX]`: a tar, plain or compressed by gzip or zstd, on top of
///   any image. Missing directories of DIR are made.
///
/// URLs are `http`, `https` or `file`; values are form-encoded (`%26` is `&`, `+` is a blank); HEX is the sha256 of the
/// bytes as stored, 64 lower-case hex digits. `Display` is the address without its secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct App {
    pub(crate) spelling: &'static Spelling,
    /// The image's address without secrets, for display.
    image: String,
    pub(super) place: Place,
    /// None for the root.
    pub(super) base: Option<Base>,
    pub(crate) digest: Option<Digest>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Url(Location),
    File(PathBuf),
}

impl App {
    /// Returns the address of the base image and the app, if `uri` has an app; `None` for an ordinary address. In the
    /// second form, the image's address is returned as it was written, and may be empty.
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

    /// Returns the address of an image with an app on top, in the second form: `app` is an absolute path or a URL,
    /// `digest` the hex digits of its sha256. Nothing is checked here; [`App::parse`] does that.
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

    /// Whether [`App::layer`] has to ask a server for a validator: the app is a URL without a digest.
    pub fn asks_server(&self) -> bool {
        self.digest.is_none() && matches!(self.place, Place::Url(_))
    }

    /// Adds to an error the query parameter that caused it.
    pub(crate) fn blame(&self, error: Error) -> Error {
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

/// Returns an address without possible secrets: for one with an app its `Display`, for any other its text (up to 300
/// characters) without a user and, unless it is part of a local path, without a query.
pub fn shown(uri: &str) -> String {
    match App::parse(uri) {
        Ok(Some((_, app))) => app.to_string(),
        _ => without_secrets(uri),
    }
}

/// Parses the path of the root file system, which follows the scheme.
fn preloaded(rest: &str) -> Result<String, &'static str> {
    // The authority (a host) must be empty; without `//`, Go's url.Parse gives the same path.
    let path = rest.strip_prefix("//").unwrap_or(rest);
    if !path.starts_with('/') {
        return Err("the path of the root file system must be absolute, without a host");
    }
    let path = decode(path)?;
    if path.contains('?') {
        // The path is returned as an address, which must not have an app of its own.
        return Err("the path of the root file system must not contain a ?: a query begins there");
    }
    Ok(path)
}

/// The source of an app's layer.
#[derive(Debug)]
pub(crate) struct Droplet {
    pub(crate) app: App,
    pub(crate) origin: Origin,
    pub(crate) remote: Remote,
}

/// Where the bytes are, and the expected state if there is no digest.
#[derive(Debug)]
pub(crate) enum Origin {
    Url { location: Location, state: Option<(Validator, Option<u64>)> },
    File { path: PathBuf, state: Option<Identity> },
}

/// Shows its address without secrets.
impl fmt::Display for Droplet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Url { location, .. } => location.fmt(f),
            Origin::File { path, .. } => path.display().fmt(f),
        }
    }
}

impl Droplet {
    /// The number of bytes as stored, if it is known.
    pub(crate) fn size(&self) -> Option<u64> {
        match &self.origin {
            Origin::Url { state, .. } => state.as_ref()?.1,
            Origin::File { state: Some(state), .. } => Some(state.size),
            Origin::File { path, state: None } => path.metadata().ok().map(|meta| meta.len()),
        }
    }
}
