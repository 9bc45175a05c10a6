//! The documents of an image, from the first of its endpoints that gives them.

use std::sync::Arc;
use std::time::Instant;

use super::client::{Document, Registry, Work};
use super::document::{Kind, kind};
use super::{Endpoint, ImageName, Login};
use crate::bounds::stop::Stop;
use crate::bounds::watch::Watch;
use crate::digest::Digest;
use crate::error::{Error, RegistryError};
use crate::format::manifest::{Index, Manifest};
use crate::remote::Remote;

/// How many indexes may lead to a manifest; one is usual.
const MAX_NESTING: usize = 3;
/// How many manifests an index may have. Those for all platforms are some dozen.
const MAX_MANIFESTS: usize = 1000;

/// An image at a registry, and the endpoints that it may be pulled from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Puller(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: ImageName,
    /// The mirrors, then the registry itself; at least one.
    registries: Vec<Registry>,
}

/// What the name of an image stands for at present.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Found {
    /// The digest of the manifest, or of the index of manifests for several platforms.
    pub digest: Digest,
    /// The host of the endpoint that said so.
    pub host: String,
}

/// The documents of an image.
pub(crate) struct Documents {
    /// The digest that the name of the image stands for.
    pub(crate) digest: Digest,
    pub(crate) manifest: Manifest,
    pub(crate) manifest_json: Vec<u8>,
    pub(crate) config_json: Vec<u8>,
    /// The index of the endpoint that gave the manifest.
    pub(crate) from: usize,
}

impl Puller {
    /// Takes the endpoints in the order in which they are tried, each with its own credentials. Nothing is connected
    /// yet.
    ///
    /// # Errors
    /// [`RegistryError::Name`]; [`RegistryError::Nowhere`] if no endpoint is left.
    pub fn new(
        remote: &Remote,
        name: ImageName,
        endpoints: Vec<(Endpoint, Option<Login>)>,
    ) -> Result<Self, Error> {
        let count = endpoints.len();
        if count == 0 {
            let (image, source) = (name.to_string(), Box::new(RegistryError::Nowhere.into()));
            return Err(RegistryError::Manifest { image, source }.into());
        }
        let registries = endpoints
            .into_iter()
            .enumerate()
            .map(|(at, (endpoint, login))| Registry::new(remote, &name, endpoint, login, at + 1 < count));
        let registries = registries.collect::<Result<_, _>>()?;
        Ok(Self(Arc::new(Inner { name, registries })))
    }

    /// The name of the image.
    pub fn name(&self) -> &ImageName {
        &self.0.name
    }

    /// Asks which digest the name of the image stands for, by one request if the registry knows its scheme and
    /// credentials of before; by none if the name has a digest. `cancelled` ends it if it returns true.
    ///
    /// # Errors
    /// [`Error::Registry`], [`Error::Cancelled`].
    pub fn find(&self, cancelled: &(dyn Fn() -> bool + Sync)) -> Result<Found, Error> {
        let name = &self.0.name;
        if let Some(digest) = name.digest().cloned() {
            return Ok(Found { digest, host: Endpoint::of(name).host });
        }
        let watch = Watch::default();
        let stop = Stop::or(&watch, cancelled);
        let (reference, work) = (name.reference(), Work { stop: &stop, since: Instant::now() });
        let found = self.each(0, |_, registry| {
            let digest = match registry.head(&reference, work)? {
                Some(digest) => digest,
                None => registry.manifest(&reference, None, work)?.digest,
            };
            Ok(Found { digest, host: registry.endpoint.host.clone() })
        });
        found.map_err(|error| self.manifest_error(error))
    }

    /// Lists the tags of the image's repository, in the order of the registry.
    ///
    /// # Errors
    /// [`Error::Registry`], [`Error::Cancelled`]; [`Error::Limit`] for more than 100,000 of them.
    pub fn tags(&self, cancelled: &(dyn Fn() -> bool + Sync)) -> Result<Vec<String>, Error> {
        let watch = Watch::default();
        let stop = Stop::or(&watch, cancelled);
        let work = Work { stop: &stop, since: Instant::now() };
        self.each(0, |_, registry| registry.tags(work))
    }

    /// Fetches the manifest of the image for this host, by way of indexes if there are any, and its config.
    ///
    /// # Errors
    /// [`Error::Registry`], [`Error::Cancelled`].
    pub(crate) fn documents(&self, cancelled: &(dyn Fn() -> bool + Sync)) -> Result<Documents, Error> {
        let watch = Watch::default();
        let stop = Stop::or(&watch, cancelled);
        let work = Work { stop: &stop, since: Instant::now() };
        let (digest, manifest_json, manifest, from) =
            self.manifest(work).map_err(|error| self.manifest_error(error))?;
        let config = &manifest.config;
        let config_json = self.each(from, |_, registry| registry.config(&config.digest, config.size, work));
        let config_json = config_json
            .map_err(|error| self.wrapped(error, |image, source| RegistryError::Config { image, source }))?;
        Ok(Documents { digest, manifest, manifest_json, config_json, from })
    }

    fn manifest(&self, work: Work<'_>) -> Result<(Digest, Vec<u8>, Manifest, usize), Error> {
        let name = &self.0.name;
        let (mut from, mut document) = self.each(0, |at, registry| {
            let document = registry.manifest(&name.reference(), name.digest(), work)?;
            self.kind(&document).map(|kind| (at, (document, kind)))
        })?;
        let top = document.0.digest.clone();
        let mut nesting = 0;
        loop {
            let (Document { bytes, digest, .. }, kind) = document;
            match kind {
                Kind::Schema1 => return Err(RegistryError::Schema1 { image: name.to_string() }.into()),
                Kind::Manifest => {
                    let what = format!("manifest {digest}");
                    let manifest = Manifest::parse(&bytes, &what)?;
                    manifest.check_image(&format!("{what} of {name}"))?;
                    return Ok((top, bytes, manifest, from));
                }
                Kind::Index => {}
            }
            nesting += 1;
            let what = format!("index {digest}");
            if nesting > MAX_NESTING {
                let what = format!("the nesting of indexes in {what}");
                return Err(Error::Limit { what, limit: MAX_NESTING as u64 });
            }
            let chosen = Index::parse(&bytes, &what)?.of_host(&what, MAX_MANIFESTS)?;
            (from, document) = self.each(from, |at, registry| {
                let document = registry.manifest(&chosen.digest.to_string(), Some(&chosen.digest), work)?;
                let (expected, actual) = (chosen.size, document.bytes.len() as u64);
                if expected != actual {
                    let what = format!("manifest {}", chosen.digest);
                    return Err(Error::SizeMismatch { what, expected, actual });
                }
                self.kind(&document).map(|kind| (at, (document, kind)))
            })?;
        }
    }

    fn kind(&self, document: &Document) -> Result<Kind, Error> {
        let what = format!("manifest {} of {}", document.digest, self.0.name);
        kind(&document.bytes, &document.media_type, &what)
    }

    /// The endpoint of this index, and those to be tried after it; those that were silent just now are the last.
    pub(super) fn registries(&self, first: usize) -> Vec<(usize, &Registry)> {
        let all = self.0.registries.iter().enumerate();
        let mut all: Vec<_> = all.clone().skip(first).chain(all.take(first)).collect();
        all.sort_by_cached_key(|(_, registry)| registry.is_failing());
        all
    }

    /// Has one endpoint after the other try, beginning with the `first`.
    fn each<T>(
        &self,
        first: usize,
        mut get: impl FnMut(usize, &Registry) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut failures = Vec::new();
        let mut left = self.registries(first).into_iter();
        while let Some((at, registry)) = left.next() {
            match get(at, registry) {
                Err(error) if is_end(&error) => return Err(error),
                Err(error) => {
                    registry.has_failed(&error, left.len() > 0);
                    failures.push((registry.to_string(), error));
                }
                done => {
                    registry.has_answered();
                    return done;
                }
            }
        }
        Err(all(failures))
    }

    fn manifest_error(&self, error: Error) -> Error {
        self.wrapped(error, |image, source| RegistryError::Manifest { image, source })
    }

    /// Says what was to be fetched, unless it was cancelled.
    pub(super) fn wrapped(
        &self,
        error: Error,
        with: impl FnOnce(String, Box<Error>) -> RegistryError,
    ) -> Error {
        match error {
            Error::Cancelled { .. } => error,
            error => with(self.0.name.to_string(), Box::new(error)).into(),
        }
    }
}

/// Whether an error ends the work, so that no other endpoint is tried.
pub(super) fn is_end(error: &Error) -> bool {
    matches!(error, Error::Cancelled { .. } | Error::Deadline { .. })
}

/// Returns one error for those of all endpoints.
pub(super) fn all(mut failures: Vec<(String, Error)>) -> Error {
    match failures.pop() {
        Some((_, error)) if failures.is_empty() => error,
        last => {
            failures.extend(last);
            RegistryError::Everywhere { failures }.into()
        }
    }
}
